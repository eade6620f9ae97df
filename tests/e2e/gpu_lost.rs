//! A GPU falls off the bus: it is taken out, its node goes on with the others.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, gpu_ms, unix_ms, until};

#[test]
fn a_lost_gpu_is_taken_out_and_its_node_goes_on() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let uuids: Vec<String> =
        admin.node("n0").inventory.unwrap().gpus.into_iter().map(|g| g.uuid).collect();
    let from = unix_ms();
    // A job's own fault (13), a GPU that needs a reset (79), and one that is gone.
    cluster.machine(0, "fault", &["xid", "--gpu", "5", "--code", "13"]);
    cluster.machine(0, "fault", &["xid", "--gpu", "6", "--code", "79"]);
    cluster.machine(0, "fault", &["lost", "--gpu", "2"]);
    let shown = |gpu: usize, wanted: &[&str]| {
        until(&format!("GPU {gpu} to be {wanted:?}"), || {
            let word = admin.condition("n0", gpu);
            if wanted.contains(&word.as_str()) { Ok(()) } else { Err(word) }
        });
    };
    shown(6, &["xid"]);
    // It may first be seen by its XID and then by its silence.
    shown(2, &["lost", "xid"]);
    for healthy in [0, 1, 3, 4, 5, 7] {
        assert_eq!(admin.condition("n0", healthy), "healthy", "GPU {healthy}");
    }
    assert_eq!(admin.node("n0").state, "up");
    let journal = cluster.machine(0, "show", &["--json"]).stdout;
    assert!(
        journal.contains("lost") && journal.contains("xid"),
        "the machine did break: {journal}"
    );
    let text = cluster.cli(&["nodes", "n0"]).ok().stdout;
    assert!(text.contains("79"), "the code is shown: {text}");

    let six = v1::JobSpec { gpus_per_node: 6, ..cluster.sh("echo $CUDA_VISIBLE_DEVICES") };
    let six = admin.submit(six);
    assert_eq!(admin.wait(six).state(), JobState::Succeeded);
    let seen = &admin.logs(six)[&0];
    assert!(!seen.contains(&uuids[2]) && !seen.contains(&uuids[6]), "{seen}");
    assert_eq!(seen.split(',').count(), 6);
    // Seven are not to be had now, but may be once the GPU is well again: it waits and says so.
    let seven = admin.submit(v1::JobSpec { gpus_per_node: 7, ..cluster.sh("true") });
    let why = admin.explain_job(seven);
    assert!(why.ladder.iter().any(|r| !r.holds && r.what.contains("healthy")), "{why:?}");
    assert_eq!(admin.job(seven).state(), JobState::Pending);

    // Its time is nobody's bill.
    let report = admin.report(from, unix_ms(), &["gpu", "class"]);
    for gpu in [2, 6] {
        let failed = report.lines.iter().find(|l| l.keys == [uuids[gpu].as_str(), "failed"]);
        assert!(failed.is_some_and(|l| gpu_ms(l) > 0), "GPU {gpu}: {report:?}");
    }
    assert!(!report.lines.iter().any(|l| l.keys == [uuids[5].as_str(), "failed"]));
}

#[test]
fn a_job_whose_gpu_falls_off_the_bus_ends_and_gives_the_others_back() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let all = v1::JobSpec {
        gpus_per_node: 8,
        ..cluster.sh("while [ ! -e go ]; do sleep 0.1; done; exit 9")
    };
    let job = admin.submit(all);
    admin.wait_running(job);
    cluster.machine(0, "fault", &["lost", "--gpu", "1"]);
    until("the loss to be seen", || match admin.condition("n0", 1).as_str() {
        "lost" | "xid" => Ok(()),
        word => Err(word.to_owned()),
    });
    assert_eq!(admin.job(job).state(), JobState::Running, "it may yet save what it has");
    std::fs::write(cluster.work().join("go"), "").unwrap();
    let job = admin.wait(job);
    assert_eq!((job.state(), job.exit_code), (JobState::Failed, Some(9)));
    let seven = admin.submit(v1::JobSpec { gpus_per_node: 7, ..cluster.sh("true") });
    assert_eq!(admin.wait(seven).state(), JobState::Succeeded);
    let eight = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") });
    assert!(!admin.explain_job(eight).ladder.iter().all(|r| r.holds));
}
