//! The map is changed while the cluster runs: a good one is taken, a bad one is not, and jobs that
//! run go on.

use tessera_proto::v1::{self, JobState, Placement, Within};
use tessera_tests::{Cluster, ClusterSpec};

const FIRST: &str = "levels = [\"leaf\"]\n[[leaf]]\nname = \"a\"\nnodes = [\"n[0-1]\"]\n\
    [[leaf]]\nname = \"b\"\nnodes = [\"n[2-3]\"]\n";

#[test]
fn a_new_map_is_taken_whole_or_not_at_all() {
    let spec = ClusterSpec { topology: Some(FIRST), ..ClusterSpec::nodes(4) };
    let cluster = Cluster::start(spec);
    let admin = cluster.admin();
    let file = |name: &str, text: &str| {
        let path = cluster.work().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let before = cluster.cli(&["topology", "--json"]).ok().stdout;
    let bad = [
        ("twice.toml", FIRST.replace("n[2-3]", "n[1-3]"), "n1"),
        ("unknown.toml", FIRST.replace("n[2-3]", "n[2-4]"), "n4"),
        ("dropped.toml", FIRST.replace("n[2-3]", "n2"), "n3"),
        ("loop.conf", "SwitchName=s0 Switches=s1\nSwitchName=s1 Switches=s0\n".to_owned(), "s"),
    ];
    for (name, text, culprit) in &bad {
        let said = cluster.cli(&["topology", "load", &file(name, text)]);
        assert_ne!(said.code(), 0, "{name}: {}", said.stdout);
        assert!(said.stderr.contains(culprit), "{name}: {}", said.stderr);
        assert_eq!(cluster.cli(&["topology", "--json"]).ok().stdout, before, "{name}");
    }
    // Slurm's own words for the other way round.
    let slurm =
        "SwitchName=x Nodes=n[0,2]\nSwitchName=y Nodes=n[1,3]\nSwitchName=top Switches=x,y\n";
    cluster.cli(&["topology", "load", &file("topology.conf", slurm)]).ok();
    let pair = v1::JobSpec {
        nodes: 2,
        gpus_per_node: 8,
        placement: Some(Placement {
            within: vec![Within { level: "leaf".into(), required: true }],
            ..Default::default()
        }),
        ..cluster.sh("true")
    };
    let job = admin.submit(pair);
    let job = admin.wait(job);
    assert_eq!(job.state(), JobState::Succeeded);
    assert!([["n0", "n2"], ["n1", "n3"]].contains(&[&*job.nodes[0], &*job.nodes[1]]), "{job:?}");
    // What it proved stays with the job.
    let shown = cluster.cli(&["show", &job.id.to_string(), "--placement"]).ok().stdout;
    assert!(shown.contains("leaf") && shown.contains("optimal"), "{shown}");
}
