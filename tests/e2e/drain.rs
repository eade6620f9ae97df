//! A drained node keeps what it has and gets nothing new.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, gpu_ms, unix_ms, until};

#[test]
fn a_drained_node_finishes_its_job_and_takes_no_other() {
    let cluster = Cluster::start(ClusterSpec::nodes(2));
    let admin = cluster.admin();
    let whole = |script: &str| v1::JobSpec { gpus_per_node: 8, ..cluster.sh(script) };
    let first = admin.submit(whole("while [ ! -e first ]; do sleep 0.2; done"));
    let drained = admin.wait_running(first).nodes[0].clone();
    let other = if drained == "n0" { "n1" } else { "n0" };

    cluster.cli(&["drain", &drained, "--reason", "new firmware"]).ok();
    let cordon = admin.node(&drained).cordon.expect("it is marked");
    assert_eq!((cordon.drain, cordon.reason.as_str()), (true, "new firmware"));
    assert!(!cordon.by.is_empty());
    let second = admin.submit(whole("while [ ! -e second ]; do sleep 0.2; done"));
    assert_eq!(admin.wait_running(second).nodes, [other]);
    assert_eq!(admin.job(first).state(), JobState::Running, "what runs there goes on");
    let third = admin.submit(whole("true"));

    let touch = |name: &str| std::fs::write(cluster.work().join(name), "").unwrap();
    touch("first");
    assert_eq!(admin.wait(first).state(), JobState::Succeeded);
    until("the node to be empty", || {
        let held = admin.node(&drained).gpus.iter().filter(|g| g.held_by_job.is_some()).count();
        if held == 0 { Ok(()) } else { Err(format!("{held} held")) }
    });
    let empty_since = unix_ms();
    // A small job comes and goes: queues were looked at, and the third still waits.
    let small = admin.submit(cluster.sh("true"));
    assert_eq!(admin.wait(small).nodes, [other]);
    let waiting = admin.job(third);
    assert_eq!(waiting.state(), JobState::Pending, "{waiting:?}");

    let now = unix_ms();
    let report = admin.report(empty_since, now, &["node", "class"]);
    let classes: Vec<(&str, u64)> = report
        .lines
        .iter()
        .filter(|l| l.keys[0] == drained)
        .map(|l| (l.keys[1].as_str(), gpu_ms(l)))
        .collect();
    assert_eq!(classes, [("drain", 8 * (now - empty_since) as u64)], "{report:?}");

    cluster.cli(&["uncordon", &drained]).ok();
    assert_eq!(admin.wait(third).nodes, [drained]);
    touch("second");
    admin.wait(second);
}
