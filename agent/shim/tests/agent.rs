//! What an agent sees and does: liveness, the second shim, leases, the control socket, and its
//! own sudden death.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use common::{Fence, PATIENCE, Process, Task, fences, shim_exe, wait_for};
use tessera_shim::control::{Phase, socket_path};
use tessera_shim::{
    LapsePolicy, Liveness, Op, TaskDir, TaskLease, TaskSpec, TaskState, control, liveness, proc,
    reap_dead, spawn_shim, wait_exit, watch,
};

const UNTIL_GO: &str = "echo ready $$; while [ ! -e go ]; do sleep 0.01; done; exit 4";

#[test]
fn liveness_through_a_task_s_life() {
    for fence in fences() {
        let mut task = Task::prepare(fence, UNTIL_GO, |_| {});
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Dead, "no shim yet");
        let lock = task.dir.try_lock().unwrap().unwrap();
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Starting, "a lock and no state");
        drop(lock);
        task.spawn();
        assert!(
            matches!(liveness(&task.dir).unwrap(), Liveness::Starting | Liveness::Running(_)),
            "never dead once spawn has returned"
        );
        task.line("ready");
        let state = task.state();
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Running(state.clone()));
        assert_eq!(state.shim_pid, task.shim.as_ref().unwrap().pid());
        assert_eq!(
            wait_exit(&task.dir, Duration::ZERO).unwrap(),
            Liveness::Running(state.clone()),
            "still"
        );
        fs::write(task.path("go"), "").unwrap();
        let exit = task.exit();
        assert_eq!(exit.code, Some(4));
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Exited(exit));
        assert!(watch(state.shim_pid, state.shim_start_time).is_err(), "there is nobody to watch");
    }
}

#[test]
fn a_state_of_another_boot_or_a_damaged_file_is_not_taken_for_life() {
    let temp = tempfile::tempdir().unwrap();
    let dir =
        TaskDir::create(temp.path().join("task"), &TaskSpec::new("a", vec!["true".into()], "/"))
            .unwrap();
    let mut state = TaskState {
        shim_pid: std::process::id(),
        shim_start_time: Process::of(std::process::id()).pid.into(),
        boot_id: "of another boot".into(),
        job_pid: 1,
        started_unix_ms: 5,
    };
    dir.write_state(&state).unwrap();
    assert_eq!(liveness(&dir).unwrap(), Liveness::OtherBoot);
    // A pid that was given to another process since, with the lock held by whomever.
    state.boot_id = proc::boot_id().unwrap();
    dir.write_state(&state).unwrap();
    let lock = dir.try_lock().unwrap().unwrap();
    assert_eq!(liveness(&dir).unwrap(), Liveness::Dead);
    drop(lock);
    for name in ["state", "exit"] {
        fs::write(dir.file(name), "{\"shim_pid\":").unwrap();
        assert!(liveness(&dir).is_err(), "{name}");
        assert!(wait_exit(&dir, PATIENCE).is_err(), "{name}");
    }
    let error = spawn_shim(shim_exe(), &dir).unwrap_err();
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::AlreadyExists,
        "damaged files are no leave to run again"
    );
    let exit = reap_dead(&dir, None, PATIENCE).unwrap();
    assert!(exit.is_unknown());
    assert_eq!(liveness(&dir).unwrap(), Liveness::Exited(exit));
}

#[test]
fn a_second_shim_leaves_with_75() {
    for fence in fences() {
        let mut task = Task::start(fence, UNTIL_GO);
        let by_hand = || Command::new(shim_exe()).arg(task.dir.path()).output().unwrap();
        // From the moment spawn returns, and while it runs.
        assert_eq!(by_hand().status.code(), Some(75));
        task.line("ready");
        assert_eq!(by_hand().status.code(), Some(75));
        assert_eq!(
            spawn_shim(shim_exe(), &task.dir).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
        fs::write(task.path("go"), "").unwrap();
        assert_eq!(task.exit().code, Some(4));
        // And after the end: a task runs once.
        let again = Command::new(shim_exe()).arg(task.dir.path()).output().unwrap();
        assert_eq!(again.status.code(), Some(75));
        assert_eq!(
            spawn_shim(shim_exe(), &task.dir).unwrap_err().kind(),
            std::io::ErrorKind::AlreadyExists
        );
        assert_eq!(task.log().matches("ready").count(), 1);
    }
}

#[test]
fn many_shims_at_once_start_the_job_once() {
    let task = Task::prepare(Fence::Cooperative, "echo ran", |_| {});
    let shims: Vec<_> = (0..8)
        .map(|_| {
            Command::new(shim_exe())
                .arg(task.dir.path())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let codes: Vec<_> =
        shims.into_iter().map(|mut shim| shim.wait().unwrap().code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, 0 | 75)), "{codes:?}");
    assert_eq!(task.log(), "ran\n");
}

#[test]
fn the_job_survives_the_agent_and_its_whole_process_group() {
    for fence in fences() {
        let mut task = Task::prepare(fence, UNTIL_GO, |_| {});
        let mut agent = Command::new("sh")
            .args(["-c", "\"$0\" \"$1\" & wait"])
            .args([shim_exe(), task.dir.path()])
            .process_group(0)
            .spawn()
            .unwrap();
        let job: Process = task.pid_line("ready ");
        let state = task.state();
        let group = format!("-{}", agent.id());
        assert!(Command::new("kill").args(["-9", "--", &group]).status().unwrap().success());
        agent.wait().unwrap();
        // A new agent finds it, watches it, and learns the exact end.
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Running(state.clone()));
        assert!(job.runs());
        let pidfd = watch(state.shim_pid, state.shim_start_time).unwrap();
        assert!(
            watch(state.shim_pid, state.shim_start_time + 1).is_err(),
            "not whoever has that pid"
        );
        fs::write(task.path("go"), "").unwrap();
        assert_eq!(task.exit().code, Some(4));
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
    }
}

fn lease_in(ms: i64) -> TaskLease {
    TaskLease { deadline_boottime_ms: Some(proc::boottime_ms().saturating_add_signed(ms)) }
}

#[test]
fn a_lapsed_lease_stops_the_job_and_says_so() {
    for fence in fences() {
        let script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
        let mut task =
            Task::prepare(fence, script, |spec| spec.policy_on_lapse = LapsePolicy::Stop);
        task.dir.write_lease(lease_in(3_600_000)).unwrap();
        task.spawn();
        task.line("ready");
        task.dir.write_lease(lease_in(50)).unwrap();
        task.ask(Op::Lease);
        let exit = task.exit();
        assert!(exit.lapsed);
        assert_eq!(exit.code, Some(0), "{fence:?}: it ended in its own way");
        task.line("asked");
    }
}

#[test]
fn a_lapsed_lease_kills_what_does_not_listen() {
    for fence in fences() {
        let mut task = Task::prepare(
            fence,
            "trap '' TERM; echo ready; while :; do sleep 0.01; done",
            |spec| {
                (spec.policy_on_lapse, spec.kill_grace_ms) = (LapsePolicy::Stop, 50);
            },
        );
        task.dir.write_lease(lease_in(300)).unwrap();
        task.spawn();
        let exit = task.exit();
        // On a very slow machine the job may not have got to its trap.
        assert!(exit.lapsed && matches!(exit.signal, Some(9 | 15)), "{exit:?}");
    }
}

#[test]
fn a_lease_that_lapsed_before_the_start_starts_nothing() {
    let mut task = Task::prepare(Fence::Cooperative, "touch it-ran", |spec| {
        spec.policy_on_lapse = LapsePolicy::Stop
    });
    task.dir.write_lease(TaskLease { deadline_boottime_ms: Some(0) }).unwrap();
    task.spawn();
    let exit = task.exit();
    assert!(exit.lapsed && exit.spawn_error.is_some());
    assert!(!task.path("it-ran").exists());
}

#[test]
fn a_renewed_lease_is_found_when_the_old_deadline_passes() {
    let mut task = Task::prepare(Fence::Cooperative, UNTIL_GO, |spec| {
        spec.policy_on_lapse = LapsePolicy::Stop
    });
    task.dir.write_lease(lease_in(3_600_000)).unwrap();
    task.spawn();
    task.line("ready");
    let first = lease_in(1_000);
    task.dir.write_lease(first).unwrap();
    task.ask(Op::Lease);
    // From here on the shim knows the near deadline, and only the file knows the far one.
    task.dir.write_lease(lease_in(3_600_000)).unwrap();
    wait_for("the first deadline to pass", || {
        (Some(proc::boottime_ms()) > first.deadline_boottime_ms).then_some(())
    });
    // The answer comes from a loop that has seen its timer fire.
    assert_eq!(task.ask(Op::Ping).phase, Some(Phase::Running));
    fs::write(task.path("go"), "").unwrap();
    let exit = task.exit();
    assert_eq!((exit.code, exit.lapsed), (Some(4), false));
}

#[test]
fn a_damaged_lease_renews_nothing() {
    let mut task = Task::prepare(Fence::Cooperative, "while :; do sleep 0.01; done", |spec| {
        spec.policy_on_lapse = LapsePolicy::Stop;
    });
    task.dir.write_lease(lease_in(1_000)).unwrap();
    task.spawn();
    task.state();
    fs::write(task.dir.file("lease"), "{\"deadline_boot").unwrap();
    let exit = task.exit();
    assert!(exit.lapsed, "{exit:?}");
}

#[test]
fn a_keeping_job_survives_its_lease() {
    for fence in fences() {
        let mut task =
            Task::prepare(fence, UNTIL_GO, |spec| spec.policy_on_lapse = LapsePolicy::Keep);
        task.dir.write_lease(lease_in(0)).unwrap();
        task.spawn();
        task.line("ready");
        task.ask(Op::Lease);
        assert_eq!(task.ask(Op::Ping).phase, Some(Phase::Running));
        fs::write(task.path("go"), "").unwrap();
        let exit = task.exit();
        assert_eq!((exit.code, exit.lapsed), (Some(4), false));
    }
}

#[test]
fn stop_asks_first_and_kills_after_the_grace() {
    for fence in fences() {
        let mut polite =
            Task::start(fence, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        polite.line("ready");
        assert_eq!(polite.ask(Op::Stop).phase, Some(Phase::Stopping));
        assert_eq!(polite.exit().code, Some(7), "{fence:?}");

        let script = "trap 'echo deaf' TERM; echo ready; while :; do sleep 0.01; done";
        let mut deaf = Task::start_with(fence, script, |spec| spec.kill_grace_ms = 500);
        deaf.line("ready");
        deaf.ask(Op::Stop);
        deaf.ask(Op::Stop);
        let exit = deaf.exit();
        assert_eq!((exit.code, exit.signal, exit.lapsed), (None, Some(9), false), "{fence:?}");
        assert_eq!(deaf.log().matches("deaf").count(), 1, "{fence:?}: asked once, then killed");

        let mut frozen = Task::start(
            fence,
            "trap 'exit 8' TERM; echo ready; kill -STOP $$; while :; do sleep 0.01; done",
        );
        frozen.line("ready");
        let job = frozen.state().job_pid;
        wait_for("the stop", || (proc::stat(job).unwrap().unwrap().state == b'T').then_some(()));
        frozen.ask(Op::Stop);
        assert_eq!(frozen.exit().code, Some(8), "{fence:?}: a stopped job hears it too");
    }
}

#[test]
fn signals_reach_all_or_only_the_first() {
    for fence in fences() {
        let script = "trap 'echo main got it' USR1\n\
            sh -c 'trap \"echo child got it\" USR1; echo child ready; while [ ! -e go ]; do sleep 0.01; done' &\n\
            echo ready; while [ ! -e go ]; do sleep 0.01; done; wait; exit 6";
        let mut task = Task::start(fence, script);
        task.line("ready");
        task.line("child ready");
        task.ask(Op::SignalMain { signal: 10 });
        task.line("main got it");
        assert!(!task.log().contains("child got it"));
        // The `sleep`s of both loops may be killed by it, which the loops do not mind.
        task.ask(Op::Signal { signal: 10 });
        task.line("child got it");
        wait_for("the second time", || {
            (task.log().matches("main got it").count() == 2).then_some(())
        });
        fs::write(task.path("go"), "").unwrap();
        assert_eq!(task.exit().code, Some(6), "{fence:?}");
    }
}

#[test]
fn nonsense_on_the_socket_is_refused_and_nobody_is_held_up() {
    let mut task = Task::start(Fence::Cooperative, UNTIL_GO);
    task.line("ready");
    let connect = || {
        let (_held, path) = socket_path(&task.dir).unwrap();
        UnixStream::connect(path).unwrap()
    };
    // More silent callers than the shim keeps.
    let silent: Vec<_> = (0..20).map(|_| connect()).collect();
    for line in [
        "",
        "{}",
        "{\"v\":9,\"op\":\"stop\"}",
        "{\"v\":1,\"op\":\"signal\",\"signal\":999}",
        "\u{0}[[[[",
    ] {
        let mut stream = connect();
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("\"ok\":false"), "{line}: {answer}");
    }
    let mut flood = connect();
    // The shim hangs up in the middle of it, which is the point.
    let _ = flood.write_all(&vec![b'x'; 1 << 20]);
    let reply = task.ask(Op::Ping);
    assert_eq!((reply.phase, reply.job_pid), (Some(Phase::Running), Some(task.state().job_pid)));
    drop(silent);
    fs::write(task.path("go"), "").unwrap();
    assert_eq!(task.exit().code, Some(4));
    assert!(control(&task.dir, Op::Ping).is_err(), "nobody answers after the end");
}

#[test]
fn a_deep_directory_has_a_socket_too() {
    let temp = tempfile::tempdir().unwrap();
    let deep = temp.path().join("d".repeat(200));
    fs::create_dir(&deep).unwrap();
    let mut spec = TaskSpec::new("deep", ["sleep", "1000"].map(String::from).to_vec(), "/");
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    let dir = TaskDir::create(deep.join("task"), &spec).unwrap();
    let mut task = Task { temp, dir, cgroup: None, shim: None };
    task.spawn();
    task.state();
    task.ask(Op::Signal { signal: 15 });
    assert_eq!(task.exit().signal, Some(15));
}

/// The state is there before the program is: a signal in between waits for it.
#[test]
fn a_signal_right_after_the_start_is_not_lost() {
    for _ in 0..25 {
        for fence in fences() {
            let mut task = Task::start_with(fence, "exec sleep 1000", |spec| {
                spec.kill_grace_ms = 24 * 3_600_000;
            });
            task.state();
            task.ask(Op::Stop);
            assert_eq!(task.exit().signal, Some(15), "{fence:?}");
        }
    }
}
