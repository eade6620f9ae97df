//! An idle-tier job gives way to an urgent one: it is told, saves its work, leaves whole, and comes
//! back to finish. Nothing is lost, and nobody pays twice.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, until};

#[test]
fn an_idle_gang_saves_its_work_leaves_whole_and_comes_back() {
    let cluster = Cluster::start(ClusterSpec::nodes(2));
    let admin = cluster.admin();
    // It counts its lives in a file, saves when it is told, and the second life ends well.
    let script = "trap 'echo saved >> saved; touch ckpt' USR1\n\
        echo life >> lives.$RANK\n\
        if [ $(wc -l < lives.$RANK) -ge 2 ]; then exit 0; fi\n\
        while :; do sleep 0.1; done";
    let idle = v1::JobSpec {
        nodes: 2,
        gpus_per_node: 8,
        tasks_per_node: 1,
        tier: v1::Tier::Idle.into(),
        requeue: true,
        time_limit_ms: Some(3_600_000),
        checkpoint: Some(v1::CheckpointPlan {
            signal: Some(10),
            notice_ms: 600_000,
            file: "ckpt".to_owned(),
            ..Default::default()
        }),
        ..cluster.sh(script)
    };
    let idle = admin.submit(idle);
    admin.wait_running(idle);
    until("the first life of both ranks", || {
        let lives = (0..2).filter(|r| cluster.work().join(format!("lives.{r}")).exists()).count();
        if lives == 2 { Ok(()) } else { Err(format!("{lives}")) }
    });

    let urgent = v1::JobSpec {
        nodes: 1,
        gpus_per_node: 8,
        tasks_per_node: 1,
        tier: v1::Tier::Urgent.into(),
        time_limit_ms: Some(60_000),
        ..cluster.sh("while [ ! -e go ]; do sleep 0.1; done")
    };
    let urgent = admin.submit(urgent);
    // The notice is ten minutes; a saved checkpoint ends it at once.
    admin.wait_running(urgent);
    let left = admin.job(idle);
    assert_eq!((left.state(), left.preemptions), (JobState::Pending, 1), "{left:?}");
    let saved = std::fs::read_to_string(cluster.work().join("saved")).unwrap();
    assert!(saved.lines().count() >= 2, "both ranks were told: {saved:?}");
    assert!(left.reason.contains(&format!("job {urgent}")), "{}", left.reason);

    std::fs::write(cluster.work().join("go"), "").unwrap();
    assert_eq!(admin.wait(urgent).state(), JobState::Succeeded);
    let done = admin.wait(idle);
    assert_eq!((done.state(), done.exit_code), (JobState::Succeeded, Some(0)), "{done:?}");
    assert_eq!(done.attempt, format!("{idle}.2"));
}
