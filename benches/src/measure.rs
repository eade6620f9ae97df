//! Clocks and counters: percentiles of durations, CPU and memory of a process from /proc.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Durations of the same thing, many times.
#[derive(Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub fn extend(&mut self, other: Vec<Duration>) {
        self.0.extend(other);
    }

    /// The value that a share of all do not exceed, milliseconds.
    pub fn ms(&mut self, share: f64) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        self.0.sort_unstable();
        let last = self.0.len() - 1;
        let at = ((last as f64) * share).round() as usize;
        self.0[at.min(last)].as_secs_f64() * 1_000.0
    }
}

pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

/// User and system time a process has used so far.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in the second field may hold anything, but no `)` comes after its own.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis((ticks(11) + ticks(12)) * 1_000 / per_second)
}

/// One line of /proc/PID/status in KiB, such as `VmRSS:`.
pub fn status_kib(pid: u32, line: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix(line)?.split_whitespace().next()?.parse().ok())
}

/// `true`, started and waited for, one after the other.
pub fn fork_exec(times: usize) -> Duration {
    let one = || {
        let status = Command::new("/bin/true").stdin(Stdio::null()).status();
        assert!(status.is_ok_and(|s| s.success()), "/bin/true works");
    };
    timed(|| (0..times).for_each(|_| one())).1
}
