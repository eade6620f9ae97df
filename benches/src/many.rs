//! A thousand times `true`, end to end: submitted by 64 streams, placed on 16 agents, each with a
//! shim of its own, every end durable.

use std::time::{Duration, Instant};

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, Person, RUNTIME};

use crate::measure::{cpu_time, fork_exec};
use crate::report::Report;

const BENCH: &str = "many";
const AGENTS: usize = 16;
const JOBS: usize = 1_000;
const STREAMS: usize = 64;

pub fn run(report: &mut Report) {
    let bare = JOBS as f64 / fork_exec(JOBS).as_secs_f64();
    let cluster = Cluster::start(ClusterSpec::nodes(AGENTS));
    let person = cluster.admin();
    let spec = v1::JobSpec { argv: vec!["/bin/true".into()], ..cluster.sh("") };
    // Not counted: one job on each agent, so that all of them are warm.
    submit(person, &spec, AGENTS);
    all_over(person);
    let agents = |cluster: &Cluster| -> Duration {
        cluster.nodes.iter().map(|node| cpu_time(node.agent_pid())).sum()
    };
    let (scheduler_before, agents_before) = (cpu_time(cluster.scheduler_pid()), agents(&cluster));
    let begin = Instant::now();
    submit(person, &spec, JOBS);
    let acknowledged = begin.elapsed();
    all_over(person);
    let wall = begin.elapsed();
    let scheduler = cpu_time(cluster.scheduler_pid()).saturating_sub(scheduler_before);
    let agents = agents(&cluster).saturating_sub(agents_before);
    let well = person.all_jobs().iter().filter(|j| j.state() == JobState::Succeeded).count();
    assert_eq!(well, JOBS + AGENTS, "all of them ended well");

    let rate = JOBS as f64 / wall.as_secs_f64();
    let us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / JOBS as f64;
    report.add_beside(
        BENCH,
        "end to end",
        rate,
        "jobs/s",
        ("fork + exec of `true`, one by one", bare),
    );
    report.add(BENCH, "all acknowledged after", acknowledged.as_secs_f64() * 1_000.0, "ms");
    report.add(BENCH, "all ended after", wall.as_secs_f64() * 1_000.0, "ms");
    report.add(BENCH, "scheduler CPU a job", us(scheduler), "us");
    report.add(BENCH, "agents' CPU a job, shims not counted", us(agents), "us");
}

fn submit(person: &Person, spec: &v1::JobSpec, jobs: usize) {
    let streams = STREAMS.min(jobs);
    let tasks: Vec<_> = (0..streams)
        .map(|stream| {
            let mut line = person.jobs();
            let spec = spec.clone();
            RUNTIME.spawn(async move {
                // The first ones take what does not divide.
                let mine = jobs / streams + usize::from(stream < jobs % streams);
                for _ in 0..mine {
                    let request = v1::SubmitRequest {
                        array: None,
                        spec: Some(spec.clone()),
                        idempotency_key: String::new(),
                    };
                    line.submit(request).await.expect("it is accepted");
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| RUNTIME.block_on(task).expect("a stream ends well"));
}

fn all_over(person: &Person) {
    use JobState::{Pending, Running, Starting, Stopping};
    let states = [Pending, Starting, Running, Stopping].map(i32::from).to_vec();
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let request =
            v1::ListJobsRequest { states: states.clone(), limit: 1, ..Default::default() };
        let open = person
            .once(async { person.jobs().list(request).await })
            .expect("jobs are listed")
            .total;
        if open == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{open} jobs do not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
