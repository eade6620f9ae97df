//! A job that waits says why and until when; one that never can start has its proof.

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, until};

#[test]
fn a_waiting_gang_has_a_reason_and_a_date_and_an_impossible_one_a_proof() {
    let cluster = Cluster::start(ClusterSpec::nodes(2));
    let admin = cluster.admin();
    let gang = |nodes, seconds: u64| v1::JobSpec {
        nodes,
        gpus_per_node: 8,
        time_limit_ms: Some(seconds * 1000),
        ..cluster.sh("sleep 600")
    };
    let first = admin.submit(gang(2, 600));
    let first = admin.wait_running(first);
    let starts_latest = first.started_at_unix_ms.unwrap() + 600_000;

    // One node more than there is: never, and it can be counted.
    let never = admin.explain_spec(gang(3, 60));
    assert_eq!(never.verdict, "infeasible", "{never:?}");
    let broken = never.ladder.iter().find(|r| !r.holds).expect("a rung that does not hold");
    assert_eq!((broken.need.as_str(), broken.have.as_str()), ("3", "2"), "{never:?}");
    assert_eq!(never.expected_start_unix_ms, None);
    assert!(never.summary.contains('3') && never.summary.contains('2'), "{}", never.summary);
    assert!(never.hint.is_some());
    let warned = admin.try_submit(gang(3, 60), "").unwrap();
    assert_eq!(warned.warnings.len(), 1, "told at once: {warned:?}");
    admin.cancel(warned.job_id);

    // Two nodes: later, and when at the latest.
    let second = admin.submit(gang(2, 60));
    let job = until("its reason", || {
        let job = admin.job(second);
        if job.reason.contains("2 nodes") { Ok(job) } else { Err(job.reason) }
    });
    assert_eq!(job.state(), JobState::Pending);
    let why = admin.explain_job(second);
    assert_eq!((why.verdict.as_str(), why.position), ("waits", Some(1)), "{why:?}");
    let start = why.expected_start_unix_ms.expect("the job before it has a time limit");
    assert!(
        (starts_latest..starts_latest + 60_000).contains(&start),
        "{start} is the end of the first one, {starts_latest}, or a little later"
    );
    let text = cluster.cli(&["explain", &second.to_string()]).ok().stdout;
    assert!(text.contains("2 nodes") && text.contains("free now"), "{text}");
    let json = cluster.cli(&["explain", &second.to_string(), "--json"]).ok().json();
    assert_eq!((json["verdict"].as_str(), json["position"].as_u64()), (Some("waits"), Some(1)));
    let queue = cluster.cli(&["queue", "--json"]).ok().json();
    let states: Vec<&str> =
        queue["jobs"].as_array().unwrap().iter().map(|j| j["state"].as_str().unwrap()).collect();
    assert!(states.contains(&"running") && states.contains(&"pending"), "{queue}");

    // The first goes, the second comes.
    admin.cancel(first.id);
    assert_eq!(admin.wait(first.id).state(), JobState::Cancelled);
    let second = admin.wait_running(second);
    assert_eq!(second.nodes.len(), 2);
}

#[test]
fn a_small_job_fills_in_only_where_it_delays_nobody() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let job = |gpus, seconds: u64| v1::JobSpec {
        gpus_per_node: gpus,
        time_limit_ms: Some(seconds * 1000),
        ..cluster.sh("sleep 600")
    };
    let running = admin.submit(job(6, 300));
    admin.wait_running(running);
    let head = admin.submit(job(8, 300));
    let long = admin.submit(job(2, 3_000));
    let reason = until("the long one's reason", || {
        let long = admin.job(long);
        assert_eq!(long.state(), JobState::Pending, "it would delay job {head}");
        let known = long.reason.contains(&format!("job {head}"));
        if known { Ok(long.reason) } else { Err(long.reason) }
    });
    assert!(reason.contains("would delay"), "{reason}");
    let short = admin.submit(job(2, 100));
    admin.wait_running(short);
    assert_eq!(admin.job(long).state(), JobState::Pending);
    assert_eq!(admin.job(head).state(), JobState::Pending);
}
