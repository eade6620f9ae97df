//! SIGKILL at any moment: of the shim, or of the agent that starts it.
//!
//! Whatever the moment, the task ends up with exactly one record, the job ran at most once, and
//! nothing of it is left.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{PATIENCE, Task, fences, kill, shim_exe};
use tessera_shim::{Liveness, liveness, proc, reap_dead, spawn_shim, wait_exit};

/// Says that it ran, leaves a daemon, and ends after a moment.
const SCRIPT: &str = "echo ran >> ran\n(setsid sh -c 'exec sleep 1000' &)\nsleep 0.01; exit 3";

#[test]
fn a_shim_killed_at_any_moment_leaves_one_record_and_no_process() {
    let (mut lost, mut told) = (0, 0);
    for round in 0..60u64 {
        for fence in fences() {
            let mut task = Task::start(fence, SCRIPT);
            let shim = task.shim.as_mut().unwrap();
            // From before the shim's first instruction to about after its end.
            let moment = Duration::from_micros(round * 500);
            if !wait_or_end(shim, moment) {
                kill(shim.pid(), 9);
                shim.wait().unwrap();
            }
            // The other tests' threads fork too, and may carry a copy of the lock to their exec.
            let before = wait_exit(&task.dir, PATIENCE).unwrap();
            let exit = reap_dead(&task.dir, None, PATIENCE).unwrap();
            match before {
                Liveness::Dead => {
                    assert!(exit.is_unknown(), "{fence:?} {moment:?}: {exit:?}");
                    lost += 1;
                }
                Liveness::Exited(written) => {
                    assert_eq!((written.code, &written), (Some(3), &exit), "{fence:?} {moment:?}");
                    told += 1;
                }
                other => panic!("{fence:?} {moment:?}: {other:?}"),
            }
            assert_nothing_runs(&task);
            let ran = fs::read_to_string(task.path("ran")).unwrap_or_default();
            assert!(
                ran == "ran\n" || (ran.is_empty() && exit.is_unknown()),
                "{fence:?} {moment:?}: {ran:?}"
            );
            let again = spawn_shim(shim_exe(), &task.dir).unwrap_err();
            assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
        }
    }
    assert!(lost > 0, "no kill came in time, the test proves nothing");
    eprintln!("{lost} lost, {told} told");
}

/// The record may be closed while a shim is on its way; that shim must not start the job then.
#[test]
fn a_late_shim_starts_nothing() {
    for fence in fences() {
        let task = Task::prepare(fence, SCRIPT, |_| {});
        // The late one: it exists, but the shell that becomes it waits for a line.
        let mut late = Command::new("sh")
            .args(["-c", "read line; exec \"$0\" \"$1\""])
            .args([shim_exe(), task.dir.path()])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let exit = reap_dead(&task.dir, None, PATIENCE).unwrap();
        assert!(exit.is_unknown());
        late.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert_eq!(late.wait().unwrap().code(), Some(75), "{fence:?}");
        assert!(!task.path("ran").exists(), "{fence:?}");
    }
}

/// Asking about a task never gets in the way of its shim.
#[test]
fn many_curious_agents_do_not_stop_a_shim_from_starting() {
    for _ in 0..20 {
        let mut task = Task::prepare(common::Fence::Cooperative, "exit 3", |_| {});
        let dir = task.dir.clone();
        let curious = std::thread::spawn(move || {
            // Until the end: asked as fast as it goes.
            while !matches!(liveness(&dir).unwrap(), Liveness::Exited(_)) {}
        });
        // By hand, so that the shim has to take the lock itself.
        let status = Command::new(shim_exe()).arg(task.dir.path()).status().unwrap();
        assert_eq!(status.code(), Some(0));
        assert_eq!(task.exit().code, Some(3));
        curious.join().unwrap();
    }
}

fn wait_or_end(shim: &mut tessera_shim::ShimChild, moment: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(moment.subsec_nanos()) };
    let ended = poll(&mut [PollFd::new(shim, PollFlags::IN)], Some(&timeout)).unwrap() > 0;
    if ended {
        shim.wait().unwrap();
    }
    ended
}

fn assert_nothing_runs(task: &Task) {
    let spec = task.dir.read_spec().unwrap();
    if let Some(cgroup) = &task.cgroup {
        assert!(cgroup.is_empty().unwrap());
    }
    let entry = format!("TESSERA_ATTEMPT={}", spec.attempt);
    let cwd = task.temp.path();
    let left: Vec<u32> = (proc::all_pids().unwrap().into_iter())
        .filter(|&pid| {
            proc::has_env(pid, &entry)
                || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|path| path == cwd)
        })
        .filter(|&pid| proc::stat(pid).unwrap().is_some_and(|stat| !stat.is_zombie()))
        .collect();
    assert_eq!(left, [0; 0]);
    assert!(!matches!(wait_exit(&task.dir, Duration::ZERO).unwrap(), Liveness::Running(_)));
}
