//! Tasks outlive their agent: it may be killed at any moment, and none restarts or loses its end.

use std::collections::BTreeMap;
use std::fs;

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, full, until};

const TASKS: u32 = 32;

#[test]
fn thirty_two_tasks_outlive_kills_of_their_agent() {
    let kills = if full() { 20 } else { 6 };
    let mut cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin().clone();
    // Some end while there is an agent, some while there is none.
    let script = |n: u32| {
        let gate = if n.is_multiple_of(4) { "early" } else { "late" };
        format!(
            "echo {n} >> marks; echo {n} lives; while [ ! -e {gate} ]; do sleep 0.3; done; echo {n} ends; exit {n}"
        )
    };
    let jobs: Vec<(u32, u64)> = (0..TASKS)
        .map(|n| {
            let gpus_per_node = u32::from(n < 8);
            (n, admin.submit(v1::JobSpec { gpus_per_node, ..cluster.sh(&script(n)) }))
        })
        .collect();
    jobs.iter().for_each(|(_, id)| drop(admin.wait_running(*id)));
    let once: BTreeMap<String, u32> = (0..TASKS).map(|n| (n.to_string(), 1)).collect();
    until("every task's mark", || {
        let seen = marks(&cluster);
        if seen.len() == TASKS as usize { Ok(()) } else { Err(format!("{}", seen.len())) }
    });

    for kill in 0..kills {
        cluster.kill_agent(0);
        if kill == kills / 2 {
            fs::write(cluster.work().join("early"), "").unwrap();
            until("the early ones to end with nobody watching", || {
                let ended = tessera_tests::sweep::tasks(&cluster.nodes[0].state);
                let ended = ended.iter().filter(|task| task.join("exit").exists()).count();
                if ended == 8 { Ok(()) } else { Err(format!("{ended} ended")) }
            });
        }
        cluster.start_agent_and_wait(0);
    }

    fs::write(cluster.work().join("late"), "").unwrap();
    for (n, id) in &jobs {
        let job = admin.wait(*id);
        let want = if *n == 0 { JobState::Succeeded } else { JobState::Failed };
        let seen = (job.state(), job.exit_code, job.attempt.as_str());
        assert_eq!(
            seen,
            (want, Some(*n as i32), format!("{id}.1").as_str()),
            "task {n}: {}",
            job.reason
        );
        assert_eq!(admin.logs(*id)[&0], format!("{n} lives\n{n} ends\n"), "task {n}");
    }
    assert_eq!(marks(&cluster), once, "no task began twice");
    until("all GPUs to be given back", || {
        let held = admin.node("n0").gpus.iter().filter(|g| g.held_by_job.is_some()).count();
        if held == 0 { Ok(()) } else { Err(format!("{held} held")) }
    });
}

fn marks(cluster: &Cluster) -> BTreeMap<String, u32> {
    let text = fs::read_to_string(cluster.work().join("marks")).unwrap_or_default();
    let mut counts = BTreeMap::new();
    text.lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
    counts
}
