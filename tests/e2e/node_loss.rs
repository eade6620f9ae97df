//! A node is lost: what may be repeated goes elsewhere once it is sure to have stopped, all else
//! stays with its node. Never are there two live attempts of a job.

use std::collections::BTreeMap;
use std::fs;

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, until};

/// See [`ClusterSpec::impatient`].
const LOST_MS: i64 = 8_000;

#[test]
fn a_dead_node_loses_its_jobs_to_others_or_keeps_them() {
    let mut cluster = Cluster::start(ClusterSpec::nodes(2).impatient());
    let admin = cluster.admin().clone();
    admin.cordon("n1", false);
    let stay = "echo $TESSERA_ATTEMPT >> marks; while [ ! -e go ]; do sleep 0.2; done";
    let half = v1::JobSpec { gpus_per_node: 4, ..cluster.sh(stay) };
    let requeued = admin.submit(v1::JobSpec { requeue: true, ..half.clone() });
    let kept = admin.submit(half);
    for job in [requeued, kept] {
        assert_eq!(admin.wait_running(job).nodes, ["n0"]);
    }
    until("both to have begun", || match marks(&cluster).len() {
        2 => Ok(()),
        n => Err(format!("{n} marks")),
    });
    admin.uncordon("n1");

    cluster.cut_power(0);
    until("n0 to be silent", || is_in(&admin.node("n0"), &["silent", "lost"]));
    assert_eq!(admin.job(requeued).attempt, format!("{requeued}.1"), "silent is not yet dead");
    until("n0 to be lost", || is_in(&admin.node("n0"), &["lost"]));
    let last_seen = admin.node("n0").last_seen_unix_ms;
    let again = until("the job to run elsewhere", || {
        let job = admin.job(requeued);
        let there = job.state() == JobState::Running && job.attempt == format!("{requeued}.2");
        if there { Ok(job) } else { Err(format!("{job:?}")) }
    });
    assert_eq!(again.nodes, ["n1"]);
    let started = again.started_at_unix_ms.unwrap();
    assert!(
        started >= last_seen + LOST_MS,
        "not before its lease had surely lapsed: {started} {last_seen}"
    );
    let job = admin.job(kept);
    assert_eq!(
        (job.state(), job.attempt.as_str()),
        (JobState::Running, format!("{kept}.1").as_str())
    );
    assert!(job.reason.contains("no word from n0"), "{}", job.reason);
    let held = admin.node("n0").gpus.iter().filter(|g| g.held_by_job == Some(kept)).count();
    assert_eq!(held, 4, "its GPUs are held until its death is proven");

    // The node comes back, with the proof.
    cluster.start_agent_and_wait(0);
    let job = admin.wait(kept);
    assert_eq!(
        (job.state(), job.exit_code),
        (JobState::Lost, None),
        "nobody saw how it ended: {job:?}"
    );
    until("its GPUs to be free", || {
        let held = admin.node("n0").gpus.iter().filter(|g| g.held_by_job.is_some()).count();
        if held == 0 { Ok(()) } else { Err(format!("{held} held")) }
    });
    fs::write(cluster.work().join("go"), "").unwrap();
    let job = admin.wait(requeued);
    assert_eq!(
        (job.state(), job.exit_code, job.attempt),
        (JobState::Succeeded, Some(0), format!("{requeued}.2"))
    );
    let want = BTreeMap::from([
        (format!("{requeued}.1"), 1),
        (format!("{requeued}.2"), 1),
        (format!("{kept}.1"), 1),
    ]);
    assert_eq!(marks(&cluster), want);
    let fresh = admin.submit(v1::JobSpec { gpus_per_node: 8, nodes: 2, ..cluster.sh("true") });
    assert_eq!(admin.wait(fresh).state(), JobState::Succeeded, "both nodes take jobs again");
}

#[test]
fn a_job_cut_off_from_the_scheduler_stops_before_it_starts_elsewhere() {
    let mut cluster = Cluster::start(ClusterSpec::nodes(2).impatient());
    let admin = cluster.admin().clone();
    admin.cordon("n1", false);
    // Each attempt writes down when it lives.
    let live = "while [ ! -e go ]; do date +%s%3N >> alive.$TESSERA_ATTEMPT; sleep 0.1; done";
    let job = admin.submit(v1::JobSpec { gpus_per_node: 8, requeue: true, ..cluster.sh(live) });
    assert_eq!(admin.wait_running(job).nodes, ["n0"]);
    let moments = |attempt: u32| -> Vec<i64> {
        let text = fs::read_to_string(cluster.work().join(format!("alive.{job}.{attempt}")));
        text.unwrap_or_default().lines().filter_map(|l| l.parse().ok()).collect()
    };
    until("a sign of life", || moments(1).first().copied().ok_or_else(String::new));
    admin.uncordon("n1");

    // Only the agent dies. The task runs on, and its shim must end it in time.
    cluster.kill_agent(0);
    let moments = |attempt: u32| -> Vec<i64> {
        let text = fs::read_to_string(cluster.work().join(format!("alive.{job}.{attempt}")));
        text.unwrap_or_default().lines().filter_map(|l| l.parse().ok()).collect()
    };
    let first_of_second = until("the second attempt's first sign of life", || {
        moments(2).first().copied().ok_or_else(|| format!("{:?}", admin.job(job)))
    });
    let last_of_first = *moments(1).last().unwrap();
    assert!(last_of_first < first_of_second, "{last_of_first} is before {first_of_second}");
    assert_eq!(admin.job(job).nodes, ["n1"]);
    let count = moments(1).len();

    // The first node comes back; its old attempt stays dead, the new one goes on.
    cluster.start_agent_and_wait(0);
    fs::write(cluster.work().join("go"), "").unwrap();
    let record = admin.wait(job);
    assert_eq!((record.state(), record.attempt), (JobState::Succeeded, format!("{job}.2")));
    let text = fs::read_to_string(cluster.work().join(format!("alive.{job}.1"))).unwrap();
    assert_eq!(text.lines().count(), count, "no sign of life after its end");
}

fn is_in(node: &v1::Node, states: &[&str]) -> Result<(), String> {
    if states.contains(&node.state.as_str()) { Ok(()) } else { Err(node.state.clone()) }
}

/// How often each attempt began.
fn marks(cluster: &Cluster) -> BTreeMap<String, u32> {
    let text = fs::read_to_string(cluster.work().join("marks")).unwrap_or_default();
    let mut counts = BTreeMap::new();
    text.lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
    counts
}
