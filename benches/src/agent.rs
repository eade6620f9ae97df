//! An agent at rest: what a node with 8 GPUs and 8 NICs gives up for being watched once a second.

use std::time::{Duration, Instant};

use tessera_tests::{Cluster, ClusterSpec, until};

use crate::measure::{cpu_time, status_kib};
use crate::report::Report;

const BENCH: &str = "agent";
/// Until the first samples, the log lines and the spool have settled.
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(30);

pub fn run(report: &mut Report) {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let (person, pid) = (cluster.admin(), cluster.nodes[0].agent_pid());
    let beats = || until("a reading", || person.latest("n0").at_unix_ms.ok_or_else(String::new));
    beats();
    std::thread::sleep(SETTLE);
    let (first, begin, before) = (beats(), Instant::now(), cpu_time(pid));
    std::thread::sleep(WINDOW);
    let (last, wall, cpu) = (beats(), begin.elapsed(), cpu_time(pid).saturating_sub(before));
    assert!(last > first, "it is sampling");

    report.add(BENCH, "CPU, of one core", cpu.as_secs_f64() * 100.0 / wall.as_secs_f64(), "%");
    for (name, line) in
        [("resident memory", "VmRSS:"), ("of it its own", "RssAnon:"), ("highest so far", "VmHWM:")]
    {
        if let Some(kib) = status_kib(pid, line) {
            report.add(BENCH, name, kib as f64 / 1_024.0, "MiB");
        }
    }
    if let Some(threads) = status_kib(pid, "Threads:") {
        report.add(BENCH, "threads", threads as f64, "");
    }
}
