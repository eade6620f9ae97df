//! The end of a job, told exactly: codes, signals, OOM, and programs that never ran.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Fence, Task, fences, kill, shim_exe};
use tessera_shim::cgroup::Limits;
use tessera_shim::{CgroupSpec, Liveness, TaskExit, liveness};

#[test]
fn exit_codes_are_exact() {
    for fence in fences() {
        for code in [0, 1, 3, 126, 127, 200, 255] {
            let exit = Task::start(fence, &format!("exit {code}")).exit();
            let want = TaskExit { code: Some(code), ..exit.clone() };
            assert_eq!(exit, want, "{fence:?}");
            assert_eq!(
                (exit.signal, exit.spawn_error, exit.oom_killed, exit.lapsed),
                (None, None, false, false)
            );
            assert!(exit.started_unix_ms.unwrap() <= exit.ended_unix_ms);
        }
    }
}

#[test]
fn deaths_by_signal_are_exact() {
    for fence in fences() {
        for signal in [1, 6, 9, 11, 15, 34, 64] {
            let exit = Task::start(fence, &format!("kill -{signal} $$")).exit();
            assert_eq!((exit.code, exit.signal), (None, Some(signal)), "{fence:?}");
            assert!(!exit.oom_killed && exit.spawn_error.is_none());
        }
    }
}

#[test]
fn output_of_the_last_moment_is_in_the_log() {
    for fence in fences() {
        let mut task = Task::start(fence, "seq 1 9000; echo to stderr >&2; kill -9 $$");
        assert_eq!(task.exit().signal, Some(9));
        let want: String = (1..=9000).map(|number| format!("{number}\n")).collect();
        assert_eq!(task.log(), want + "to stderr\n");
    }
}

#[test]
fn a_program_that_is_not_there_is_127_with_its_name() {
    for fence in fences() {
        for (argv, want) in [
            (
                vec!["no-such-program", "x"],
                "no-such-program: command not found in PATH=/usr/bin:/bin",
            ),
            (vec!["/no/such/program"], "/no/such/program: no such file"),
            (vec!["./no-such-program"], "./no-such-program: no such file"),
        ] {
            let mut task = Task::start_with(fence, "", |spec| {
                spec.argv = argv.into_iter().map(String::from).collect()
            });
            let exit = task.exit();
            assert_eq!(exit.code, Some(127), "{want}");
            assert_eq!(exit.spawn_error.as_deref(), Some(want));
            assert_eq!((exit.signal, exit.started_unix_ms), (None, None));
            assert_eq!(task.log(), format!("tessera-shim: {want}\n"));
        }
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_126() {
    for (text, mode, code, want) in [
        ("#!/bin/sh\n", 0o644, 126, "./program: permission denied; is it executable?"),
        (
            "no shebang\n",
            0o755,
            126,
            "./program: not a program; does its first line begin with #! ?",
        ),
        (
            "#!/no/interpreter\n",
            0o755,
            127,
            "./program: the interpreter it names in its first line was not found",
        ),
    ] {
        let mut task =
            Task::prepare(Fence::Cooperative, "", |spec| spec.argv = vec!["./program".into()]);
        fs::write(task.path("program"), text).unwrap();
        fs::set_permissions(task.path("program"), PermissionsExt::from_mode(mode)).unwrap();
        task.spawn();
        let exit = task.exit();
        assert_eq!((exit.code, exit.spawn_error.as_deref()), (Some(code), Some(want)));
    }
}

#[test]
fn whatever_else_fails_before_the_program_is_told_and_nothing_runs() {
    type Change = fn(&mut tessera_shim::TaskSpec);
    let cases: [(&str, Change); 6] = [
        ("could not change to the working directory /no/such/folder: ", |spec| {
            spec.working_dir = "/no/such/folder".into()
        }),
        ("the task has no program to run", |spec| spec.argv.clear()),
        ("a program, argument, variable or path of the task holds a NUL byte", |spec| {
            spec.argv.push("a\0b".into())
        }),
        ("\"A=B\" cannot be the name of an environment variable", |spec| {
            spec.env.push(("A=B".into(), "1".into()))
        }),
        ("could not open the job's cgroup: ", |spec| {
            spec.cgroup =
                CgroupSpec::Unified { dir: "/sys/fs/cgroup/tessera-no-such-group".into() };
        }),
        ("could not set the resource limits: ", |spec| {
            spec.rlimits = vec![tessera_shim::spec::Rlimit {
                resource: tessera_shim::spec::Resource::Nofile,
                soft: Some(20),
                hard: Some(10),
            }];
        }),
    ];
    for (want, change) in cases {
        let mut task = Task::start_with(Fence::Cooperative, "touch it-ran", change);
        let exit = task.exit();
        let why = exit.spawn_error.unwrap_or_default();
        assert!(why.starts_with(want), "{why} instead of {want}");
        assert_eq!((exit.code, exit.signal, exit.started_unix_ms), (None, None, None), "{want}");
        assert!(!task.path("it-ran").exists(), "{want}");
        assert!(task.log().contains(want), "{want}: {}", task.log());
    }
}

#[test]
fn a_damaged_spec_is_an_end_that_says_so() {
    for bytes in ["", "{", "{\"attempt\":1}", "\u{0}\u{0}"] {
        let mut task = Task::prepare(Fence::Cooperative, "touch it-ran", |_| {});
        fs::write(task.dir.file("spec"), bytes).unwrap();
        task.spawn();
        let exit = task.exit();
        assert!(exit.spawn_error.unwrap().starts_with("the task cannot be read: "), "{bytes:?}");
        assert!(!task.path("it-ran").exists());
    }
}

#[test]
fn an_oom_kill_is_told() {
    if !fences().contains(&Fence::Cgroup) {
        return; // without a cgroup there is no limit to exceed
    }
    let limits = Limits { memory_max_bytes: Some(24 << 20), ..Limits::default() };
    let mut task = Task::prepare_limited(Fence::Cgroup, &limits, "exec tail /dev/zero", |_| {});
    if task.cgroup.as_ref().unwrap().oom_kills().unwrap().is_none() {
        return; // a v2 tree whose memory controller is not ours
    }
    task.spawn();
    let exit = task.exit();
    assert_eq!((exit.signal, exit.oom_killed), (Some(9), true));
}

#[test]
fn the_cgroup_and_the_socket_are_gone_after_the_end() {
    for fence in fences() {
        let mut task = Task::start(fence, "true");
        assert_eq!(task.exit().code, Some(0));
        assert!(!task.dir.file("ctl").exists());
        if let Some(cgroup) = &task.cgroup {
            assert!(!cgroup.dir().exists());
            if let CgroupSpec::Hybrid { v1, .. } = cgroup.spec() {
                assert!(!v1.is_empty() && v1.iter().all(|group| !group.dir.exists()));
            }
        }
        assert_eq!(task.complaints(), "");
    }
}

/// A stray signal for the shim, as from a terminal or an eager operator, changes nothing.
#[test]
fn the_shim_outlives_polite_signals() {
    let mut task = Task::start(
        Fence::Cooperative,
        "echo ready; while [ ! -e go ]; do sleep 0.01; done; exit 9",
    );
    task.line("ready");
    for signal in [1, 2, 3, 10, 12, 13, 15] {
        kill(task.shim.as_ref().unwrap().pid(), signal);
    }
    assert!(matches!(liveness(&task.dir).unwrap(), Liveness::Running(_)));
    fs::write(task.path("go"), "").unwrap();
    assert_eq!(task.exit().code, Some(9));
}

#[test]
fn wrong_usage_is_64() {
    for args in [&[][..], &["a", "b"], &["--help"]] {
        let status = std::process::Command::new(shim_exe())
            .args(args)
            .stderr(std::process::Stdio::null())
            .status();
        assert_eq!(status.unwrap().code(), Some(64), "{args:?}");
    }
}
