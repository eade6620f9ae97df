//! What would become of a job, before it is submitted: where it starts now, or when, and what would
//! start now instead. And that this is what then happens.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec};

#[test]
fn a_dry_run_says_what_happens_and_what_else_would() {
    let cluster = Cluster::start(ClusterSpec::nodes(3));
    let admin = cluster.admin();
    let dry = |nodes: &str| {
        let args = [
            "submit",
            "--dry-run",
            "--json",
            "--nodes",
            nodes,
            "--gpus-per-node",
            "8",
            "-t",
            "10m",
            "--",
            "true",
        ];
        cluster.cli(&args)
    };
    let now = dry("3").ok().json();
    assert_eq!(now["verdict"], "starts_now", "{now}");
    assert_eq!(now["place"].as_array().map(Vec::len), Some(3), "{now}");
    assert!(admin.all_jobs().is_empty(), "nothing was submitted");

    let ground = v1::JobSpec {
        gpus_per_node: 8,
        time_limit_ms: Some(600_000),
        ..cluster.sh("while [ ! -e go ]; do sleep 0.1; done")
    };
    let ground = admin.submit(ground);
    admin.wait_running(ground);
    let later = dry("3").ok().json();
    assert_eq!(later["verdict"], "waits", "{later}");
    let smaller = later["counterfactuals"]
        .as_array()
        .expect("some were tried")
        .iter()
        .find(|c| c["change"].as_str().is_some_and(|change| change.contains("--nodes 2")));
    assert!(smaller.is_some_and(|c| c["starts_at"].is_string()), "{later}");
    // What was said to start now does.
    let pair = v1::JobSpec { nodes: 2, gpus_per_node: 8, ..cluster.sh("true") };
    let pair = admin.submit(pair);
    assert_eq!(admin.wait(pair).state(), JobState::Succeeded);
    let never = dry("4");
    assert_eq!(never.code(), 1, "{}", never.stdout);
    std::fs::write(cluster.work().join("go"), "").unwrap();
    admin.wait(ground);
}
