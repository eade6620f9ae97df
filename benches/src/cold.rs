//! `tessera dev` with four nodes: from nothing to its ready line, and from Ctrl-C to gone.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tessera_tests::{Binaries, until};

use crate::measure::Samples;
use crate::report::Report;

const BENCH: &str = "cold";
const TIMES: usize = 5;

pub fn run(report: &mut Report) {
    let binaries = Binaries::find().unwrap_or_else(|why| panic!("{why}"));
    let (mut ready, mut gone) = (Samples::default(), Samples::default());
    for _ in 0..TIMES {
        let (up, down) = once(&binaries);
        ready.push(up);
        gone.push(down);
    }
    report.add(BENCH, "4 nodes: start -> ready, p50", ready.ms(0.5), "ms");
    report.add(BENCH, "4 nodes: start -> ready, slowest of 5", ready.ms(1.0), "ms");
    report.add(BENCH, "4 nodes: Ctrl-C -> gone, p50", gone.ms(0.5), "ms");
}

fn once(binaries: &Binaries) -> (Duration, Duration) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out");
    let file = fs::File::create(&out).expect("a file");
    let log = file.try_clone().expect("a file");
    let begin = Instant::now();
    let mut child = Command::new(binaries.path("tessera"))
        .args(["dev", "--nodes", "4", "--port", "0"])
        .env("XDG_RUNTIME_DIR", folder.path())
        .env_remove("TESSERA_CONFIG")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(log)
        .spawn()
        .expect("it starts");
    until("the ready line", || {
        let text = fs::read_to_string(&out).unwrap_or_default();
        let ended = child.try_wait().ok().flatten();
        assert!(ended.is_none(), "it ended with {ended:?}: {text}");
        if text.lines().any(|l| l.starts_with("ready ")) { Ok(()) } else { Err(text) }
    });
    let ready = begin.elapsed();
    let begin = Instant::now();
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    // Not waited for yet, so the pid is still its own.
    kill_process(pid, Signal::INT).expect("it can be told");
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}: {}", fs::read_to_string(&out).unwrap_or_default());
    (ready, begin.elapsed())
}
