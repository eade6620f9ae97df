//! A lone job on an idle cluster: how long until it runs, until it has ended, and what the command
//! line adds.

use std::time::Instant;

use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, Person, RUNTIME};

use crate::measure::{Samples, fork_exec, timed};
use crate::report::Report;

const BENCH: &str = "lone";
const TIMES: usize = 40;

pub fn run(report: &mut Report) {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let person = cluster.admin();
    let bare = fork_exec(200).as_secs_f64() * 1_000.0 / 200.0;
    let base = ("fork + exec of `true`", bare);

    let stay = v1::JobSpec { gpus_per_node: 1, ..cluster.sh("sleep 600") };
    let quick = v1::JobSpec { gpus_per_node: 1, argv: vec!["/bin/true".into()], ..stay.clone() };
    // Not counted: the first job finds caches cold.
    until(person, &quick, |s| s == JobState::Succeeded);
    let (mut running, mut ended, mut cli) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..TIMES {
        let (id, took) = timed(|| until(person, &stay, |s| s == JobState::Running));
        running.push(took);
        // The next one shall find an idle cluster.
        person.cancel(id);
        person.wait(id);
    }
    for _ in 0..TIMES {
        let (_, took) = timed(|| until(person, &quick, |s| s == JobState::Succeeded));
        ended.push(took);
    }
    for _ in 0..TIMES {
        let args = ["submit", "-q", "--team", "nlp", "--", "/bin/true"];
        let (said, took) = timed(|| cluster.cli(&args));
        person.wait(said.ok().stdout.trim().parse().expect("an id"));
        cli.push(took);
    }
    report.add_beside(BENCH, "submit -> running, p50", running.ms(0.5), "ms", base);
    report.add(BENCH, "submit -> running, p99", running.ms(0.99), "ms");
    report.add_beside(BENCH, "submit -> ended (`true`), p50", ended.ms(0.5), "ms", base);
    report.add(BENCH, "submit -> ended (`true`), p99", ended.ms(0.99), "ms");
    report.add_beside(BENCH, "`tessera submit`, whole process, p50", cli.ms(0.5), "ms", base);
    report.add(BENCH, "`tessera submit`, whole process, p99", cli.ms(0.99), "ms");
}

/// Submits and watches, as a client would that wants to know at once.
fn until(person: &Person, spec: &v1::JobSpec, enough: impl Fn(JobState) -> bool) -> u64 {
    let begin = Instant::now();
    RUNTIME.block_on(async {
        let request = v1::SubmitRequest {
            spec: Some(spec.clone()),
            idempotency_key: String::new(),
            array: None,
        };
        let reply = person.jobs().submit(request).await.expect("it is accepted");
        let job_id = reply.into_inner().job_id;
        let stream = person.jobs().watch(v1::WatchRequest { job_id }).await;
        let mut stream = stream.expect("it can be watched").into_inner();
        while let Ok(Some(job)) = stream.message().await {
            if enough(job.state()) {
                return job_id;
            }
        }
        panic!("job {job_id} did not get there within {:?}", begin.elapsed());
    })
}
