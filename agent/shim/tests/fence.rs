//! What the job gets, what it does not get, and that nothing of it stays behind.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{Fence, PATIENCE, Task, fences, is_root, wait_for};
use tessera_shim::control::Phase;
use tessera_shim::spec::{Resource, Rlimit};
use tessera_shim::{Liveness, Op, liveness, proc, reap_dead};

/// Starts a daemon the classic way: new session, parent gone, and says its pid.
const DAEMON: &str = "(setsid sh -c 'echo daemon $$; exec sleep 1000' &)\n";

#[test]
fn a_daemon_dies_with_the_job() {
    for fence in fences() {
        let mut task =
            Task::start(fence, &format!("{DAEMON} while [ ! -e go ]; do sleep 0.01; done; exit 5"));
        let daemon = task.pid_line("daemon ");
        assert!(daemon.runs());
        fs::write(task.path("go"), "").unwrap();
        assert_eq!(task.exit().code, Some(5), "{fence:?}");
        assert!(!daemon.runs(), "{fence:?}: gone before the end was written");
    }
}

/// A v1 freezer that a failed test does not leave frozen.
struct Freezer(PathBuf);

impl Freezer {
    /// `None` where there is no v1 freezer, or it is not ours.
    fn new() -> Option<Self> {
        let name = format!("shim-test-{}", std::process::id());
        let dir = Path::new("/sys/fs/cgroup/freezer").join(name);
        fs::create_dir(&dir).is_ok().then_some(Self(dir))
    }

    fn freeze(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(self.0.join("freezer.state"), "FROZEN").unwrap();
        let state = || fs::read_to_string(self.0.join("freezer.state")).unwrap();
        wait_for("the freezer", || (state() == "FROZEN\n").then_some(()));
    }

    fn thaw(&self) {
        fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        // What is still in it is there because the test failed.
        let pids = || fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        wait_for("the freezer to be let go", || {
            pids().lines().for_each(|pid| drop(Command::new("kill").args(["-9", pid]).status()));
            fs::remove_dir(&self.0).ok()
        });
    }
}

/// A process that no signal reaches, like one that hangs in a driver: here one frozen by a v1
/// freezer. What it holds is not free, so there is no end to report yet.
#[test]
fn there_is_no_end_while_a_process_cannot_be_killed() {
    let Some(freezer) = Freezer::new() else { return };
    for fence in fences() {
        let script = format!("{DAEMON} while [ ! -e go ]; do sleep 0.01; done; exit 5");
        let mut task = Task::start(fence, &script);
        let daemon = task.pid_line("daemon ");
        freezer.freeze(daemon.pid);
        fs::write(task.path("go"), "").unwrap();
        wait_for("the kill", || (task.ask(Op::Ping).phase == Some(Phase::Killing)).then_some(()));
        // Several rounds of the shim's loop later it is still waiting.
        for _ in 0..50 {
            assert_eq!(task.ask(Op::Ping).phase, Some(Phase::Killing), "{fence:?}");
        }
        assert!(matches!(liveness(&task.dir).unwrap(), Liveness::Running(_)), "{fence:?}");
        freezer.thaw();
        assert_eq!(task.exit().code, Some(5), "{fence:?}");
        assert!(!daemon.runs());
    }
}

#[test]
fn a_job_that_forks_all_the_time_is_killed_to_the_last() {
    for fence in fences() {
        let script = "f() { while :; do (setsid true &) ; done; }; f & f & echo main $$; while [ ! -e go ]; do sleep 0.01; done";
        let mut task = Task::start(fence, script);
        task.line("main ");
        fs::write(task.path("go"), "").unwrap();
        let attempt = task.dir.read_spec().unwrap().attempt;
        assert_eq!(task.exit().code, Some(0), "{fence:?}");
        if fence == Fence::Cooperative {
            let entry = format!("TESSERA_ATTEMPT={attempt}");
            let left: Vec<u32> = proc::all_pids()
                .unwrap()
                .into_iter()
                .filter(|&pid| proc::has_env(pid, &entry))
                .collect();
            assert_eq!(left, [0; 0]);
        }
    }
}

#[test]
fn what_a_killed_shim_leaves_can_be_killed_and_counts_as_lost() {
    for fence in fences() {
        let mut task = Task::start(fence, &format!("echo main $$\n {DAEMON} sleep 1000"));
        let (main, daemon) = (task.pid_line("main "), task.pid_line("daemon "));
        task.state();
        task.kill_shim();
        wait_for("the main process to go with its shim", || (!main.runs()).then_some(()));
        assert!(daemon.runs(), "{fence:?}: this one has to be killed");
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Dead);
        let exit = reap_dead(&task.dir, None, PATIENCE).unwrap();
        assert!(exit.is_unknown(), "{exit:?}");
        assert!(!daemon.runs());
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Exited(exit.clone()));
        assert_eq!(
            reap_dead(&task.dir, None, PATIENCE).unwrap(),
            exit,
            "a second time changes nothing"
        );
        if let Some(cgroup) = &task.cgroup {
            assert!(!cgroup.dir().exists());
        }
    }
}

/// The same by hand, as for an agent that lost the task's directory.
#[test]
fn a_cgroup_is_killed_empty_without_its_shim() {
    if !fences().contains(&Fence::Cgroup) {
        return;
    }
    let mut task = Task::start(Fence::Cgroup, &format!("{DAEMON} sleep 1000"));
    let daemon = task.pid_line("daemon ");
    let cgroup = task.cgroup.clone().unwrap();
    task.state();
    task.kill_shim();
    assert!(!cgroup.is_empty().unwrap());
    assert!(cgroup.pids().unwrap().contains(&daemon.pid));
    cgroup.kill_all_and_wait_empty(Instant::now() + PATIENCE).unwrap();
    assert!(cgroup.is_empty().unwrap() && !daemon.runs());
    cgroup.remove().unwrap();
}

#[test]
fn orphans_are_reaped_while_the_job_runs() {
    let script = "i=0; while [ $i -lt 50 ]; do (setsid true &); i=$((i+1)); done; echo ready; while [ ! -e go ]; do sleep 0.01; done";
    let mut task = Task::start(Fence::Cooperative, script);
    task.line("ready");
    let shim = task.state().shim_pid;
    wait_for("no zombie child of the shim", || {
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        let mut pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
        (!pids.any(|pid| proc::stat(pid).unwrap().is_some_and(|stat| stat.is_zombie())))
            .then_some(())
    });
    fs::write(task.path("go"), "").unwrap();
    assert_eq!(task.exit().code, Some(0));
}

#[test]
fn the_job_inherits_three_descriptors_and_no_lock() {
    for fence in fences() {
        // What a careless agent lets through.
        let leak = rustix::io::dup(fs::File::open("/dev/zero").unwrap().as_fd()).unwrap();
        let mut task = Task::start(fence, "kill -STOP $$");
        drop(leak);
        let job = task.state().job_pid;
        wait_for("the job to hold still", || {
            (proc::stat(job).unwrap().unwrap().state == b'T').then_some(())
        });
        let open = |pid: u32| {
            let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let mut open: Vec<String> = entries
                // A file that is closed while we look is no leak.
                .filter_map(|entry| {
                    let entry = entry.unwrap();
                    let target = fs::read_link(entry.path()).ok()?;
                    Some(format!("{} {}", entry.file_name().display(), target.display()))
                })
                .collect();
            open.sort();
            open
        };
        let got = open(job);
        assert_eq!(got.len(), 3, "{got:?}");
        assert_eq!(got[0], "0 /dev/null");
        assert!(got[1].starts_with("1 pipe:") && got[2].starts_with("2 pipe:"), "{got:?}");
        assert_eq!(got[1][2..], got[2][2..], "both go to the one log");
        let shim = open(task.state().shim_pid);
        assert!(!shim.iter().any(|fd| fd.contains("/dev/zero")), "{shim:?}");
        task.kill_shim();
        assert_eq!(liveness(&task.dir).unwrap(), Liveness::Dead);
    }
}

#[test]
fn the_job_starts_from_a_clean_slate() {
    for fence in fences() {
        let script = "grep -E '^(SigBlk|SigIgn|NoNewPrivs):' /proc/self/status; cat /proc/self/oom_score_adj; umask; \
                      ulimit -n; ulimit -Hc; ps -o sid= -p $$ | tr -d ' '; echo $$";
        let mut task = Task::start_with(fence, script, |spec| {
            spec.umask = 0o027;
            spec.rlimits = vec![
                Rlimit { resource: Resource::Nofile, soft: Some(77), hard: Some(99) },
                Rlimit { resource: Resource::Core, soft: Some(0), hard: Some(0) },
            ];
        });
        assert_eq!(task.exit().code, Some(0), "{}", task.log());
        let log = task.log();
        let lines: Vec<&str> =
            log.lines().map(|line| line.split_whitespace().last().unwrap()).collect();
        let clean = "0000000000000000";
        let own_score = fs::read_to_string("/proc/self/oom_score_adj")
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap()
            .max(0)
            .to_string();
        assert_eq!(lines[..7], [clean, clean, "1", &own_score, "0027", "77", "0"], "{log}");
        assert_eq!(lines[7], lines[8], "a session of its own");
    }
}

#[test]
fn the_environment_is_what_the_spec_says_and_nothing_else() {
    let mut task = Task::start_with(Fence::Cooperative, "", |spec| {
        spec.argv = vec!["env".into()];
        let vars =
            [("PATH", "/usr/bin:/bin"), ("B", "x=y z"), ("EMPTY", ""), ("TESSERA_ATTEMPT", "7.1")];
        spec.env = vars.map(|(name, value)| (name.into(), value.into())).to_vec();
    });
    assert_eq!(task.exit().code, Some(0));
    assert_eq!(task.log(), "PATH=/usr/bin:/bin\nB=x=y z\nEMPTY=\nTESSERA_ATTEMPT=7.1\n");
}

#[test]
fn the_job_becomes_its_user_before_anything_of_it_runs() {
    if !is_root() {
        return;
    }
    for fence in fences() {
        let mut task = Task::prepare(
            fence,
            "id -u; id -g; id -G; kill -0 $PPID || echo cannot signal the shim",
            |spec| {
                (spec.uid, spec.gid, spec.groups) = (Some(12345), Some(12346), vec![12346, 12347]);
                spec.working_dir = "/".into();
            },
        );
        fs::set_permissions(task.temp.path(), PermissionsExt::from_mode(0o700)).unwrap();
        task.spawn();
        assert_eq!(task.exit().code, Some(0));
        let log = task.log();
        assert!(log.starts_with("12345\n12346\n12346 12347\n"), "{log}");
        assert!(log.ends_with("cannot signal the shim\n"), "{log}");
    }
    // A folder that only root may enter is refused to the user, since chdir comes after.
    let mut task = Task::prepare(Fence::Cooperative, "true", |spec| {
        (spec.uid, spec.gid) = (Some(12345), Some(12346))
    });
    fs::set_permissions(task.temp.path(), PermissionsExt::from_mode(0o700)).unwrap();
    task.spawn();
    let why = task.exit().spawn_error.unwrap();
    assert!(why.starts_with("could not change to the working directory"), "{why}");
}

#[test]
fn a_user_cannot_become_another() {
    if is_root() {
        return;
    }
    let mut task = Task::start_with(Fence::Cooperative, "touch it-ran", |spec| spec.uid = Some(0));
    let exit = task.exit();
    assert!(exit.spawn_error.unwrap().starts_with("could not set the supplementary groups"));
    assert!(!task.path("it-ran").exists());
}

#[test]
fn the_log_keeps_its_cap_and_says_what_it_dropped() {
    for fence in fences() {
        let mut task = Task::start_with(fence, "seq 1 100000", |spec| {
            (spec.log_cap_bytes, spec.log_files) = (64 << 10, 4);
        });
        assert_eq!(task.exit().code, Some(0));
        let names = ["out.log", "out.log.1", "out.log.2", "out.log.3"];
        let total: u64 =
            names.iter().map(|name| fs::metadata(task.dir.file(name)).unwrap().len()).sum();
        assert!(total <= 64 << 10, "{total}");
        assert!(!task.dir.file("out.log.4").exists());
        let log = task.log();
        assert!(
            log.starts_with("[tessera-shim] the log is limited to 65536 bytes: the oldest "),
            "{log}"
        );
        assert!(log.ends_with("\n99999\n100000\n"));
    }
}
