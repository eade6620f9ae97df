//! Arrays with a throttle, and what depends on them.

use tessera_proto::v1::JobState;
use tessera_tests::{Cluster, ClusterSpec, until};

#[test]
fn an_array_runs_as_many_at_once_as_it_may_and_the_next_job_waits_for_all() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let script = "mkdir run.$TESSERA_ARRAY_INDEX; ls -d run.* | wc -l >> seen; sleep 0.3; rmdir run.$TESSERA_ARRAY_INDEX";
    let args = ["submit", "--json", "--array", "0-5%2", "-t", "1m", "--", "sh", "-c", script];
    let said = cluster.cli(&args).ok().json();
    let array = said["id"].as_u64().expect("the array's id");
    let next = format!("afterok:{array}");
    let said = cluster.cli(&["submit", "--json", "--after", &next, "--", "true"]).ok().json();
    let last = said["id"].as_u64().expect("an id");
    let why = admin.job(last);
    assert_eq!(why.state(), JobState::Pending);
    assert_eq!(admin.wait(last).state(), JobState::Succeeded);
    let seen = std::fs::read_to_string(cluster.work().join("seen")).unwrap();
    let most = seen.lines().map(|l| l.trim().parse::<u32>().unwrap()).max();
    assert_eq!((seen.lines().count(), most <= Some(2)), (6, true), "{seen}");

    // Held jobs wait until somebody lets them go.
    let said = cluster.cli(&["submit", "--json", "--hold", "--", "true"]).ok().json();
    let held = said["id"].as_u64().expect("an id");
    until("its reason", || {
        let job = admin.job(held);
        if job.reason.contains("release") { Ok(()) } else { Err(job.reason) }
    });
    cluster.cli(&["release", &held.to_string()]).ok();
    assert_eq!(admin.wait(held).state(), JobState::Succeeded);

    let refused = cluster.cli(&["submit", "--array", "0-4000000000", "--", "true"]);
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("4000000001") || refused.stderr.contains("100000"),
        "{}",
        refused.stderr
    );
}
