//! A required level is kept or waited for; a preferred one gives way.

use std::collections::BTreeSet;

use tessera_proto::v1::{self, JobState, Within};
use tessera_tests::{Cluster, ClusterSpec, until};

const MAP: &str = r#"
levels = ["block", "leaf"]
[[leaf]]
name = "leaf-a"
block = "block-1"
nodes = ["n0", "n1"]
[[leaf]]
name = "leaf-b"
block = "block-1"
nodes = ["n[2-3]"]
"#;

#[test]
fn a_gang_lies_inside_one_leaf_or_waits_for_one() {
    let spec = ClusterSpec { topology: Some(MAP), ..ClusterSpec::nodes(4) };
    let cluster = Cluster::start(spec);
    let admin = cluster.admin();
    let pair = |required| v1::JobSpec {
        nodes: 2,
        gpus_per_node: 8,
        placement: Some(v1::Placement {
            within: vec![Within { level: "leaf".into(), required }],
            ..Default::default()
        }),
        ..cluster.sh("while [ ! -e go ]; do sleep 0.2; done")
    };
    let json = cluster.cli(&["topology", "--json"]).ok().stdout;
    assert!(json.contains("leaf-a") && json.contains("leaf-b"), "{json}");

    // One node of each leaf is taken.
    for (kept_out, ground) in [("n1", "n0"), ("n3", "n2")] {
        admin.cordon(kept_out, false);
        let others: Vec<&str> = ["n0", "n1", "n2", "n3"]
            .into_iter()
            .filter(|n| *n != ground && *n != kept_out)
            .collect();
        others.iter().for_each(|n| admin.cordon(n, false));
        let single = v1::JobSpec { nodes: 1, placement: None, ..pair(true) };
        let single = admin.submit(single);
        assert_eq!(admin.wait_running(single).nodes, [ground]);
        others.iter().for_each(|n| admin.uncordon(n));
        admin.uncordon(kept_out);
    }

    let strict = admin.submit(pair(true));
    let reason = until("a reason that names the level", || {
        let job = admin.job(strict);
        assert_eq!(job.state(), JobState::Pending, "no leaf has two free nodes: {job:?}");
        if job.reason.contains("leaf") { Ok(job.reason) } else { Err(job.reason) }
    });
    assert!(reason.contains("needs 2 nodes") && reason.contains("in one leaf"), "{reason}");
    let tried = admin.explain_job(strict).counterfactuals;
    let looser = tried.iter().find(|c| c.change.contains("--within"));
    assert!(looser.is_some_and(|c| c.starts_at_unix_ms.is_some()), "what would start: {tried:?}");

    // Only preferred: across leaves at once. It has no time limit, nor have those in the way, so
    // the strict one holds no reservation yet.
    let loose = admin.submit(pair(false));
    let nodes: BTreeSet<String> = admin.wait_running(loose).nodes.into_iter().collect();
    assert_eq!(nodes, BTreeSet::from(["n1".to_owned(), "n3".to_owned()]));

    std::fs::write(cluster.work().join("go"), "").unwrap();
    let nodes: BTreeSet<String> = admin.wait(strict).nodes.into_iter().collect();
    let leaves = [["n0", "n1"], ["n2", "n3"]].map(|l| l.map(str::to_owned).into());
    assert!(leaves.contains(&nodes), "{nodes:?}");
}
