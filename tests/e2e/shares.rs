//! Two jobs share one GPU by agreement: both run at once, a third waits, and each team pays its part.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, unix_ms, until};

#[test]
fn two_jobs_share_a_gpu_and_pay_their_parts() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let from = unix_ms();
    let share = |team: &str, milli: u32| v1::JobSpec {
        team: team.to_owned(),
        gpus_per_node: 1,
        gpu_milli: milli,
        ..cluster.sh(
            "echo $CUDA_VISIBLE_DEVICES $TESSERA_GPU_SHARE; while [ ! -e go ]; do sleep 0.1; done",
        )
    };
    let first = admin.submit(share("nlp", 250));
    let second = admin.submit(share("vision", 500));
    admin.wait_running(first);
    admin.wait_running(second);
    let said = |job| {
        until("what it printed", || {
            let text: String = admin.logs_now(job)?.into_values().collect();
            if text.contains('\n') { Ok(text.trim().to_owned()) } else { Err(text) }
        })
    };
    let (a, b) = (said(first), said(second));
    let (gpu_a, share_a) = a.split_once(' ').expect("a GPU and a share");
    let (gpu_b, share_b) = b.split_once(' ').expect("a GPU and a share");
    assert_eq!(gpu_a, gpu_b, "shares gather on one GPU");
    assert_eq!((share_a, share_b), ("0.25", "0.5"));

    // Seven GPUs are whole, and half of the eighth is not.
    let whole = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") });
    let reason = until("its reason", || {
        let job = admin.job(whole);
        if job.reason.contains("8 free GPUs") { Ok(job.reason) } else { Err(job.reason) }
    });
    assert!(reason.contains("none is free"), "{reason}");
    std::fs::write(cluster.work().join("go"), "").unwrap();
    for job in [first, second, whole] {
        assert_eq!(admin.wait(job).state(), JobState::Succeeded);
    }
    let to = until("all given back", || {
        let node = admin.node("n0");
        let held: u32 = node.gpus.iter().map(|g| g.held_milli).sum();
        if held == 0 { Ok(unix_ms()) } else { Err(format!("{held} thousandths are held")) }
    });
    let lines = admin.report(from, to, &["job", "gpu"]).lines;
    let parts = |job: u64| {
        let own = lines.iter().filter(|l| l.keys[0] == job.to_string());
        own.map(|l| l.gpu_part_ms.parse::<u128>().unwrap()).sum::<u128>()
    };
    assert!(
        parts(first) > 0 && parts(first).is_multiple_of(1_750),
        "a quarter of 7,000 parts each ms"
    );
    assert!(parts(second) > 0 && parts(second).is_multiple_of(3_500), "half of them");
}
