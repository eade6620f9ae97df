//! The shim's life, from the lock to the last fsync.
//!
//! In: a task's directory. Out: its `state`, its log, its `exit`. One thread, one poll loop over
//! the log pipe, the job's children, the lease, the control socket. Starting the job is `launch`'s
//! work, its output is `log`'s, the socket is `serve`'s.

mod launch;
mod lease;
mod log;
mod serve;
mod signals;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tessera_shim::cgroup::Cgroup;
use tessera_shim::control::{Phase, Reply};
use tessera_shim::dir::TaskLock;
use tessera_shim::live::has_run;
use tessera_shim::{
    EXIT_TASK_TAKEN, FileError, LapsePolicy, Op, TaskDir, TaskExit, TaskSpec, TaskState, proc,
};

use launch::{Job, JobEnd, LaunchError};
use lease::LeaseTimer;
use log::TaskLog;
use serve::ControlServer;
use signals::ChildSignals;

const EXIT_INTERNAL: u8 = 70;
/// The shim dies last: the OOM killer takes the job before it.
const OOM_SCORE_ADJ: &str = "-999";
/// A full disk is asked again this often; the end is not forgotten meanwhile.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// While the last processes go, looks come at this pace at first, and slower each time...
const KILL_AGAIN_FIRST: Duration = Duration::from_millis(1);
/// ...down to this.
const KILL_AGAIN_LAST: Duration = Duration::from_secs(1);

/// Runs the task in `dir` to its end.
pub fn run(dir: &TaskDir) -> ExitCode {
    close_inherited();
    let lock = match take_lock(dir) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            eprintln!("tessera-shim: another shim has {}", dir.path().display());
            return ExitCode::from(EXIT_TASK_TAKEN);
        }
        Err(error) => {
            eprintln!("tessera-shim: no lock on {}: {error}", dir.path().display());
            return ExitCode::from(EXIT_INTERNAL);
        }
    };
    if has_run(dir) {
        eprintln!("tessera-shim: the task in {} ran before", dir.path().display());
        return ExitCode::from(EXIT_TASK_TAKEN);
    }
    let (exit, cgroup) = match prepare(dir) {
        Ok(ready) => {
            let cgroup = ready.cgroup.clone();
            (ready.run(dir, &lock), cgroup)
        }
        Err(Failure { cgroup, why, lapsed }) => {
            let ended_unix_ms = proc::unix_ms();
            let spawn_error = Some(why);
            (TaskExit { spawn_error, lapsed, ended_unix_ms, ..TaskExit::default() }, cgroup)
        }
    };
    let code = write_exit(dir, &exit);
    if let Some(cgroup) = cgroup
        && let Err(error) = cgroup.remove()
    {
        // An empty folder does no harm.
        eprintln!("tessera-shim: {} stays: {error}", cgroup.dir().display());
    }
    // Nobody answers there any more, which is what a left-over socket says too.
    let _ = std::fs::remove_file(dir.file("ctl"));
    code
}

/// The job cannot be started.
struct Failure {
    cgroup: Option<Cgroup>,
    why: String,
    lapsed: bool,
}

/// All that the job needs before its first process is made.
struct Ready {
    spec: TaskSpec,
    cgroup: Option<Cgroup>,
    log: TaskLog,
    lease: LeaseTimer,
    control: ControlServer,
    children: ChildSignals,
}

fn prepare(dir: &TaskDir) -> Result<Ready, Failure> {
    let text = |what: &str, error: &dyn std::error::Error| {
        error
            .source()
            .map_or(format!("{what}: {error}"), |source| format!("{what}: {error}: {source}"))
    };
    let early = |why| Failure { cgroup: None, why, lapsed: false };
    let children = detach().map_err(|error| early(text("could not leave the agent", &error)))?;
    let spec = dir.read_spec().map_err(|error| early(text("the task cannot be read", &error)))?;
    let cgroup = Cgroup::open(&spec.cgroup);
    let failed = |why| Failure { cgroup: cgroup.clone(), why, lapsed: false };
    let log = TaskLog::open(dir, spec.log_cap_bytes, spec.log_files)
        .map_err(|error| failed(text("no log", &error)))?;
    let lease = LeaseTimer::start(dir).map_err(|error| failed(text("no lease", &error)))?;
    if spec.policy_on_lapse == LapsePolicy::Stop && lease.has_lapsed() {
        let why = "the lease had lapsed before the start".to_owned();
        return Err(Failure { lapsed: true, ..failed(why) });
    }
    let control =
        ControlServer::bind(dir).map_err(|error| failed(text("no control socket", &error)))?;
    Ok(Ready { cgroup, log, lease, control, children, spec })
}

/// The agent's end, its terminal and its process group are nothing to the shim from here on.
fn detach() -> io::Result<ChildSignals> {
    // A group leader cannot leave its session; that is a shim started by hand, and it stays safe
    // since it ignores what a terminal sends.
    let _ = rustix::process::setsid();
    signals::ignore_all_but_kill();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    std::env::set_current_dir("/")?;
    // Needs CAP_SYS_RESOURCE. Without it the shim is as likely a victim as anyone of its size.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    ChildSignals::block_and_watch()
}

fn close_inherited() {
    // SAFETY: close_range takes plain numbers; nothing in this process has opened anything yet
    // beyond 0, 1 and 2.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if rc != 0
        && let Ok(entries) = std::fs::read_dir("/proc/self/fd")
    {
        // Before Linux 5.9. The folder's own descriptor is in the list too, hence the collecting.
        let fds: Vec<i32> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        for fd in fds.into_iter().filter(|&fd| fd > 2) {
            // SAFETY: as above; closing a number that is not open is an error without effect.
            unsafe { libc::close(fd) };
        }
    }
}

/// The lock handed over as standard input if there is one, else one of our own.
fn take_lock(dir: &TaskDir) -> io::Result<Option<TaskLock>> {
    let handed = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let null = File::open("/dev/null")?;
    let is_lock = match (handed.metadata(), std::fs::metadata(dir.file("lock"))) {
        (Ok(ours), Ok(theirs)) => ours.dev() == theirs.dev() && ours.ino() == theirs.ino(),
        _ => false,
    };
    if !is_lock {
        return Ok(dir.try_lock()?);
    }
    // SAFETY: dup2 onto 0 closes the handed-over number and leaves /dev/null there; nobody in this
    // process holds 0 as an owned descriptor.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    TaskLock::adopt(handed)
}

/// The end must not get lost for a full disk, so it is tried until it is written.
fn write_exit(dir: &TaskDir, exit: &TaskExit) -> ExitCode {
    let mut complained = false;
    loop {
        match dir.write_exit(exit) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => {
                if !complained {
                    complained = true;
                    eprintln!(
                        "tessera-shim: {error}: {:?}; trying on",
                        std::error::Error::source(&error)
                    );
                }
                if !dir.path().exists() {
                    return ExitCode::from(EXIT_INTERNAL);
                }
                thread::sleep(WRITE_AGAIN);
            }
        }
    }
}

/// What the loop is waiting for.
enum Stage {
    Running,
    Stopping { kill_at: Instant },
    Killing { again_at: Instant, pace: Duration },
}

impl Stage {
    fn phase(&self) -> Phase {
        match self {
            Self::Running => Phase::Running,
            Self::Stopping { .. } => Phase::Stopping,
            Self::Killing { .. } => Phase::Killing,
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::Stopping { kill_at } => Some(*kill_at),
            Self::Killing { again_at, .. } => Some(*again_at),
        }
    }
}

impl Ready {
    fn run(mut self, dir: &TaskDir, lock: &TaskLock) -> TaskExit {
        let started_unix_ms = proc::unix_ms();
        let job = match launch::start(&self.spec, self.cgroup.as_ref(), lock) {
            Ok(job) => job,
            Err(error) => {
                let why = self.tell_in_log(&error);
                let ended_unix_ms = proc::unix_ms();
                return TaskExit { spawn_error: Some(why), ended_unix_ms, ..TaskExit::default() };
            }
        };
        let mut watch =
            Watch { end: None, launch_error: None, lapsed: false, stage: Stage::Running, job };
        let mut unwritten = None;
        if let Err(error) = write_state(dir, &watch.job, started_unix_ms) {
            // Without a state no agent could find the job again, so it must not run.
            unwritten = Some(format!("the state could not be written: {error}"));
            self.kill(&mut watch);
        }
        self.watch(&mut watch);
        self.conclude(watch, started_unix_ms, unwritten)
    }

    /// Until the first process has ended and no other is left.
    fn watch(&mut self, watch: &mut Watch) {
        loop {
            if let Err(error) = self.wait(watch) {
                // Cannot happen but for want of kernel memory; a pause keeps it from spinning.
                eprintln!("tessera-shim: poll: {error}");
                thread::sleep(Duration::from_millis(100));
            }
            watch.read_launch_error();
            self.log.pump(&mut watch.job.output);
            self.children.clear();
            if watch.reap() && !matches!(watch.stage, Stage::Killing { .. }) {
                self.kill(watch);
                watch.reap();
            }
            if watch.end.is_some() && self.is_all_gone() {
                return;
            }
            if self.lease.take_lapse() && self.spec.policy_on_lapse == LapsePolicy::Stop {
                self.lapse(watch);
            }
            while let Some((op, asker)) = self.control.next_request() {
                let reply = self.answer(op, watch);
                self.control.answer(asker, &reply);
            }
            if watch.stage.wake_at().is_some_and(|at| at <= Instant::now()) {
                self.kill(watch);
            }
        }
    }

    fn wait(&mut self, watch: &Watch) -> io::Result<()> {
        let timeout =
            [watch.stage.wake_at(), self.control.wake_at()].into_iter().flatten().min().map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: i64::from(left.subsec_nanos()) as _,
                }
            });
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.children.as_fd(), self.lease.as_fd()];
        fds.extend(watch.job.output.as_ref().map(OwnedFd::as_fd));
        fds.extend(watch.job.errors.as_ref().map(OwnedFd::as_fd));
        fds.extend(self.control.fds());
        let mut fds: Vec<PollFd<'_>> =
            fds.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn answer(&mut self, op: Op, watch: &mut Watch) -> Reply {
        match op {
            Op::Ping => {}
            Op::Signal { signal } => self.signal_all(watch, signal),
            Op::SignalMain { signal } => watch.signal_main(signal),
            Op::Stop => self.stop(watch),
            Op::Lease => {
                if let Err(error) = self.lease.look() {
                    return Reply::refused(format!("the lease stays as it was: {error}"));
                }
                if self.lease.has_lapsed() && self.spec.policy_on_lapse == LapsePolicy::Stop {
                    self.lapse(watch);
                }
            }
        }
        Reply::done(watch.stage.phase(), watch.job.pid)
    }

    fn lapse(&self, watch: &mut Watch) {
        // A job that is being stopped already is not stopped by the lapse.
        if matches!(watch.stage, Stage::Running) {
            watch.lapsed = true;
            self.stop(watch);
        }
    }

    /// SIGTERM to all, then the grace. Asked again, the grace does not begin anew.
    fn stop(&self, watch: &mut Watch) {
        if matches!(watch.stage, Stage::Running) {
            self.signal_all(watch, libc::SIGTERM);
            // A stopped process takes its SIGTERM only once it goes on.
            self.signal_all(watch, libc::SIGCONT);
            let grace = Duration::from_millis(self.spec.kill_grace_ms);
            watch.stage = match Instant::now().checked_add(grace) {
                Some(kill_at) => Stage::Stopping { kill_at },
                None => Stage::Running, // a grace beyond all time is no SIGKILL at all
            };
        }
    }

    fn signal_all(&self, watch: &Watch, signal: i32) {
        match &self.cgroup {
            Some(cgroup) => {
                if let Err(error) = cgroup.signal_all(signal) {
                    eprintln!("tessera-shim: signal {signal}: {error}");
                    watch.signal_main(signal);
                }
            }
            None => watch.signal_group(signal),
        }
    }

    /// SIGKILL to everything, once, and a time to look again.
    fn kill(&self, watch: &mut Watch) {
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.kill_all()
        {
            eprintln!("tessera-shim: {}: {error}", cgroup.dir().display());
        }
        kill_children();
        let pace = match watch.stage {
            Stage::Killing { pace, .. } => (pace * 2).min(KILL_AGAIN_LAST),
            _ => KILL_AGAIN_FIRST,
        };
        watch.stage = Stage::Killing { again_at: Instant::now() + pace, pace };
    }

    /// Orphans of the job become the shim's children, so "no children" is "nobody left" even
    /// without a cgroup.
    fn is_all_gone(&self) -> bool {
        let no_children = proc::children_of_self().is_ok_and(|children| children.is_empty());
        no_children && self.cgroup.as_ref().is_none_or(|cgroup| cgroup.is_empty().unwrap_or(false))
    }

    fn conclude(
        &mut self,
        mut watch: Watch,
        started_unix_ms: u64,
        unwritten: Option<String>,
    ) -> TaskExit {
        watch.read_launch_error();
        self.log.drain(&mut watch.job.output);
        let oom_kills =
            self.cgroup.as_ref().and_then(|cgroup| cgroup.oom_kills().unwrap_or_default());
        let end = watch.end.unwrap_or_default();
        let mut exit = TaskExit {
            code: end.code,
            signal: end.signal,
            oom_killed: oom_kills.is_some_and(|kills| kills > 0),
            lapsed: watch.lapsed,
            ended_unix_ms: end.ended_unix_ms,
            started_unix_ms: Some(started_unix_ms),
            spawn_error: unwritten,
        };
        if let Some(error) = watch.launch_error {
            exit.code = error.shell_code();
            exit.signal = None;
            exit.started_unix_ms = None;
            exit.spawn_error = Some(self.tell_in_log(&error));
        }
        self.log.finish();
        exit
    }

    fn tell_in_log(&mut self, error: &LaunchError) -> String {
        let why = error.explain(&self.spec);
        self.log.write(format!("tessera-shim: {why}\n").as_bytes());
        why
    }
}

fn write_state(dir: &TaskDir, job: &Job, started_unix_ms: u64) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: dir.file("state"), source };
    let shim_pid = std::process::id();
    let me = proc::stat(shim_pid)
        .map_err(failed)?
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    dir.write_state(&TaskState {
        shim_pid,
        shim_start_time: me.start_time,
        boot_id: proc::boot_id().map_err(failed)?,
        job_pid: job.pid,
        started_unix_ms,
    })
}

/// The running job as the loop sees it.
struct Watch {
    job: Job,
    end: Option<JobEnd>,
    launch_error: Option<LaunchError>,
    lapsed: bool,
    stage: Stage,
}

impl Watch {
    /// Takes every ended child. True once the job's first process is among them.
    fn reap(&mut self) -> bool {
        while let Some((pid, status)) = signals::next_ended_child() {
            if pid == self.job.pid {
                self.end = Some(JobEnd::new(status));
            }
        }
        self.end.is_some()
    }

    fn read_launch_error(&mut self) {
        if self.launch_error.is_none() {
            self.launch_error = self.job.read_error();
        }
    }

    fn signal_main(&self, signal: i32) {
        self.job.signal(signal);
    }

    /// Only while the first process is not reaped: its pid, hence its group, is still its own.
    fn signal_group(&self, signal: i32) {
        if self.end.is_none() {
            self.job.signal_group(signal);
        }
    }
}

/// A child cannot be reaped by anyone else, so its pid is still its own when the signal is sent.
fn kill_children() {
    for pid in proc::children_of_self().unwrap_or_default() {
        // SAFETY: kill(2) takes plain numbers; a child's pid is positive.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
}
