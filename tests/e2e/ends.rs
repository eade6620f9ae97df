//! How jobs end: the exact code or signal, the one rank that was at fault, and why it was stopped.

use std::fs;

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, sweep, until};

#[test]
fn every_end_is_told_as_it_was() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let sh = |script: &str| cluster.sh(script);
    let program = |path: &str| v1::JobSpec { argv: vec![path.to_owned()], ..sh("") };
    let plain_file = cluster.work().join("plain");
    fs::write(&plain_file, "no program").unwrap();
    let cases = [
        ("a code", sh("exit 255"), JobState::Failed, Some(255), "255"),
        ("a signal", sh("kill -KILL $$"), JobState::Failed, Some(137), "signal 9"),
        (
            "no program",
            program("/no/such/program"),
            JobState::Failed,
            Some(127),
            "/no/such/program",
        ),
        (
            "no execute bit",
            program(plain_file.to_str().unwrap()),
            JobState::Failed,
            Some(126),
            "plain",
        ),
        (
            "a script without its interpreter",
            v1::JobSpec { script: Some("#!/no/such/shell\n".into()), argv: vec![], ..sh("") },
            JobState::Failed,
            Some(127),
            "",
        ),
        (
            "a time limit",
            v1::JobSpec { time_limit_ms: Some(1_000), ..sh("sleep 600") },
            JobState::Failed,
            Some(143),
            "time limit of 1s",
        ),
        (
            "one rank of four",
            v1::JobSpec { tasks_per_node: 4, ..sh("[ $RANK = 2 ] && exit 5; sleep 600") },
            JobState::Failed,
            Some(5),
            "rank 2",
        ),
        (
            "no such folder",
            v1::JobSpec { working_dir: Some("/no/such/folder".into()), ..sh("true") },
            JobState::Failed,
            // Another node might have it, so it is tried a few times.
            None,
            "given up after 5 tries; the last: n0 could not start it: the working folder /no/such",
        ),
    ];
    let jobs: Vec<_> = cases
        .into_iter()
        .map(|(name, spec, s, c, r)| (name, admin.submit(spec), s, c, r))
        .collect();
    let mut wrong = Vec::new();
    for (name, id, state, code, reason) in jobs {
        let job = admin.wait(id);
        if (job.state(), job.exit_code) != (state, code) || !job.reason.contains(reason) {
            wrong.push(format!("{name}: {:?} {:?} {:?}", job.state(), job.exit_code, job.reason));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_cancelled_job_has_time_to_say_goodbye() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let script = "trap 'echo saved > checkpoint; exit 0' TERM; echo ready > ready; while :; do sleep 0.1; done";
    let id = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh(script) });
    until("its trap to be set", || {
        fs::metadata(cluster.work().join("ready")).map(drop).map_err(|e| e.to_string())
    });
    let waiting = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") });
    cluster.cli(&["cancel", &id.to_string()]).ok();
    let job = admin.wait(id);
    assert_eq!(job.state(), JobState::Cancelled);
    assert!(job.reason.contains("cancelled by admin"), "{}", job.reason);
    assert_eq!(fs::read_to_string(cluster.work().join("checkpoint")).unwrap(), "saved\n");
    assert_eq!(admin.wait(waiting).state(), JobState::Succeeded, "its GPUs are free");
    // Twice is no error, and changes nothing.
    assert_eq!(admin.cancel(id).state(), JobState::Cancelled);

    let gone = admin.submit(v1::JobSpec { nodes: 5, ..cluster.sh("true") });
    admin.cancel(gone);
    let gone = admin.wait(gone);
    assert_eq!(
        (gone.state(), gone.exit_code, gone.started_at_unix_ms),
        (JobState::Cancelled, None, None)
    );
}

#[test]
fn what_a_job_leaves_behind_ends_with_it() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    // A daemon of its own session, with a clean environment, and deaf to SIGTERM.
    let script = "echo begun; setsid env -i sh -c 'trap : TERM; echo $$ > pid; while :; do sleep 0.2; done' >/dev/null 2>&1 & \
        while [ ! -s pid ]; do sleep 0.1; done; exit 3";
    let id = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh(script) });
    admin.wait_running(id);
    let has_cgroup = sweep::tasks(&cluster.nodes[0].state).iter().any(|task| {
        fs::read_to_string(task.join("spec")).is_ok_and(|s| s.contains("/sys/fs/cgroup"))
    });
    let job = admin.wait(id);
    assert_eq!((job.state(), job.exit_code), (JobState::Failed, Some(3)));
    let pid = fs::read_to_string(cluster.work().join("pid")).unwrap();
    let daemon = format!("/proc/{}", pid.trim());
    until("the GPUs to be given back", || {
        let held = admin.node("n0").gpus.iter().filter(|g| g.held_by_job.is_some()).count();
        if held == 0 { Ok(()) } else { Err(format!("{held} held")) }
    });
    assert!(!fs::exists(&daemon).unwrap(), "the daemon lives (cgroup: {has_cgroup})");
    let next = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") });
    assert_eq!(admin.wait(next).state(), JobState::Succeeded);
}

#[test]
fn a_gpu_that_a_stranger_uses_is_not_given_out() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let uuid = admin.node("n0").inventory.unwrap().gpus[4].uuid.clone();
    let mut stranger = std::process::Command::new("sleep");
    stranger.arg("100000").env("CUDA_VISIBLE_DEVICES", &uuid);
    let log = cluster.dir.join("stranger.log");
    let mut stranger = tessera_tests::Process::spawn("stranger", &mut stranger, &log).unwrap();
    let pids = until("GPU 4 to be occupied", || {
        let condition = admin.node("n0").gpus[4].condition.clone().unwrap();
        if condition.word == "occupied" { Ok(condition.pids) } else { Err(condition.word) }
    });
    assert_eq!(pids, [stranger.pid()]);
    let eight = admin.submit(v1::JobSpec { gpus_per_node: 8, ..cluster.sh("true") });
    let seven = admin.submit(v1::JobSpec {
        gpus_per_node: 7,
        time_limit_ms: Some(60_000),
        ..cluster.sh("echo $CUDA_VISIBLE_DEVICES")
    });
    admin.wait(seven);
    assert!(!admin.logs(seven)[&0].contains(&uuid));
    assert_eq!(admin.job(eight).state(), JobState::Pending);
    stranger.kill();
    assert_eq!(admin.wait(eight).state(), JobState::Succeeded, "and once it is gone, it is");
}
