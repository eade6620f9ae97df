//! One GPU's NVML call hangs: that GPU is set apart, and nothing else notices.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, unix_ms, until};

#[test]
fn a_hung_nvml_call_stalls_one_gpu_and_nothing_else() {
    const SICK: usize = 3;
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    until("a reading of all eight", || {
        let read = admin.latest("n0").gpus.iter().filter(|g| g.power_mw.is_some()).count();
        if read == 8 { Ok(()) } else { Err(format!("{read}")) }
    });
    let broken_at = unix_ms();
    cluster.machine(0, "fault", &["hang", "--gpu", &SICK.to_string()]);
    until("the GPU to be shown unresponsive", || match admin.condition("n0", SICK) {
        word if word == "unresponsive" => Ok(()),
        word => Err(word),
    });
    eprintln!("shown unresponsive after {} ms", unix_ms() - broken_at);

    // The others' readings and the heartbeat go on beating.
    let stuck_at = admin.latest("n0").gpus[SICK].at_unix_ms;
    for _ in 0..3 {
        let now = unix_ms();
        until("fresh readings of the seven others", || {
            let latest = admin.latest("n0");
            let stale: Vec<usize> =
                (0..8).filter(|i| *i != SICK && latest.gpus[*i].at_unix_ms <= now).collect();
            if stale.is_empty() { Ok(()) } else { Err(format!("stale: {stale:?}")) }
        });
        until("a heartbeat", || {
            let node = admin.node("n0");
            assert_eq!(node.state, "up");
            if node.last_seen_unix_ms > now {
                Ok(())
            } else {
                Err(format!("{}", node.last_seen_unix_ms))
            }
        });
    }
    assert_eq!(admin.latest("n0").gpus[SICK].at_unix_ms, stuck_at, "no reading is made up");

    // Jobs go on, around it.
    let sick = admin.node("n0").inventory.unwrap().gpus[SICK].uuid.clone();
    let script = "echo $CUDA_VISIBLE_DEVICES";
    let seven = admin.submit(v1::JobSpec { gpus_per_node: 7, ..cluster.sh(script) });
    assert_eq!(admin.wait(seven).state(), JobState::Succeeded);
    let seen = &admin.logs(seven)[&0];
    assert!(seen.split(',').count() == 7 && !seen.contains(&sick), "{seen}");

    // It answers again, and is used again.
    cluster.machine(0, "clear", &[]);
    until("the GPU to be healthy", || match admin.condition("n0", SICK) {
        word if word == "healthy" => Ok(()),
        word => Err(word),
    });
    let eight = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") });
    assert_eq!(admin.wait(eight).state(), JobState::Succeeded);
}
