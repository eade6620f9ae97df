//! A task in a temporary directory with a real shim, for the tests beside this file.
//!
//! In: a script. Out: what became of it. Everything is awaited, nothing is slept for; whatever a
//! failed test leaves running is killed when it is dropped.
#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tessera_shim::cgroup::{Cgroup, CgroupPlace, Limits};
use tessera_shim::{
    Liveness, Op, Reply, ShimChild, TaskDir, TaskExit, TaskSpec, TaskState, control, liveness,
    proc, reap_dead, spawn_shim, wait_exit,
};

/// Far beyond anything that happens on a busy machine; only a broken shim reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn shim_exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tessera-shim"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    Cooperative,
    /// Whatever this machine has.
    Cgroup,
    /// The v2 tree alone, as on a pure v2 machine.
    Unified,
}

/// Every fence this machine and user can have.
pub fn fences() -> Vec<Fence> {
    let (spec, why) = Cgroup::create_or_none(&fresh_name(), &Limits::default());
    match Cgroup::open(&spec) {
        Some(cgroup) => {
            cgroup.remove().unwrap();
            vec![Fence::Cooperative, Fence::Cgroup, Fence::Unified]
        }
        None => {
            eprintln!("{why:?}");
            vec![Fence::Cooperative]
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("shim-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub struct Task {
    pub temp: TempDir,
    pub dir: TaskDir,
    pub cgroup: Option<Cgroup>,
    pub shim: Option<ShimChild>,
}

impl Task {
    /// `script` run by sh, in the temporary directory.
    pub fn start(fence: Fence, script: &str) -> Self {
        Self::start_with(fence, script, |_| {})
    }

    pub fn start_with(fence: Fence, script: &str, change: impl FnOnce(&mut TaskSpec)) -> Self {
        let mut task = Self::prepare(fence, script, change);
        task.spawn();
        task
    }

    pub fn prepare(fence: Fence, script: &str, change: impl FnOnce(&mut TaskSpec)) -> Self {
        Self::prepare_limited(fence, &Limits::default(), script, change)
    }

    pub fn prepare_limited(
        fence: Fence,
        limits: &Limits,
        script: &str,
        change: impl FnOnce(&mut TaskSpec),
    ) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let name = fresh_name();
        let mut spec = TaskSpec::new(
            name.as_str(),
            ["sh", "-c", script].map(String::from).to_vec(),
            temp.path(),
        );
        spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        if fence != Fence::Cooperative {
            let mut place = CgroupPlace::discover().unwrap();
            if fence == Fence::Unified {
                place.v1.clear();
            }
            let (cgroup, missing) = Cgroup::create_at(&place, &name, limits).unwrap();
            assert_eq!(missing, []);
            spec.cgroup = cgroup.spec();
        }
        change(&mut spec);
        let dir = TaskDir::create(temp.path().join("task"), &spec).unwrap();
        Self { temp, cgroup: Cgroup::open(&spec.cgroup), dir, shim: None }
    }

    pub fn spawn(&mut self) {
        self.shim = Some(spawn_shim(shim_exe(), &self.dir).unwrap());
    }

    /// Waits for the end, and for the shim's own.
    pub fn exit(&mut self) -> TaskExit {
        match wait_exit(&self.dir, PATIENCE).unwrap() {
            Liveness::Exited(exit) => {
                if let Some(shim) = &mut self.shim {
                    assert!(shim.wait().unwrap().success(), "{}", self.complaints());
                }
                exit
            }
            other => panic!("{other:?}\nshim: {}\nlog: {}", self.complaints(), self.log()),
        }
    }

    pub fn state(&self) -> TaskState {
        wait_for("a state", || self.dir.read_state().unwrap())
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.log_path()).unwrap_or_default()).into_owned()
    }

    pub fn complaints(&self) -> String {
        fs::read_to_string(self.dir.file("shim.log")).unwrap_or_default()
    }

    /// Waits until the job has written a line that begins so, and returns its rest.
    pub fn line(&self, beginning: &str) -> String {
        wait_for(beginning, || {
            let log = self.log();
            let whole = log.rfind('\n').map(|end| log[..end].to_owned())?;
            whole.lines().find_map(|line| Some(line.strip_prefix(beginning)?.trim().to_owned()))
        })
    }

    pub fn pid_line(&self, beginning: &str) -> Process {
        Process::of(self.line(beginning).parse().unwrap())
    }

    pub fn ask(&self, op: Op) -> Reply {
        let reply = control(&self.dir, op).unwrap();
        assert!(reply.ok, "{reply:?}");
        reply
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn kill_shim(&mut self) {
        let shim = self.shim.as_mut().unwrap();
        kill(shim.pid(), 9);
        shim.wait().unwrap();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(shim) = &mut self.shim
            && !matches!(shim.try_wait(), Ok(Some(_)))
        {
            kill(shim.pid(), 9);
            let _ = shim.wait();
        }
        if !matches!(liveness(&self.dir), Ok(Liveness::Exited(_))) {
            let _ = reap_dead(&self.dir, self.cgroup.as_ref(), PATIENCE);
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.remove();
        }
    }
}

/// One process, not whoever has its pid later.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub pid: u32,
    start_time: u64,
}

impl Process {
    pub fn of(pid: u32) -> Self {
        Self { pid, start_time: proc::stat(pid).unwrap().expect("it runs").start_time }
    }

    pub fn runs(&self) -> bool {
        proc::stat(self.pid)
            .unwrap()
            .is_some_and(|stat| stat.start_time == self.start_time && !stat.is_zombie())
    }
}

pub fn kill(pid: u32, signal: i32) {
    let done = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
    assert!(done.success());
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
