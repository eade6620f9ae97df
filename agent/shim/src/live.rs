//! Is the task alive? Start its shim, wait for it, and close the record of one that died unseen.
//!
//! In: a [`TaskDir`]. Out: a [`Liveness`], a running shim, or a final [`TaskExit`]. Every answer
//! rests on the lock, the boot id and (pid, start time), never on `kill(pid, 0)`: a zombie answers
//! that, and so does a stranger who was given the same pid.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::Cgroup;
use crate::dir::{FileError, TaskDir, TaskExit, TaskLock, TaskState};
use crate::proc;
use crate::spec::TaskSpec;

/// Looking again at something that gives no event: the lock, left-over processes.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A process in the middle of an exec shows no environment, and one that forks may be gone before
/// its child is listed. So many looks in a row must find nothing.
const CLEAN_LOOKS: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Liveness {
    /// The end is written down, and every process of the job is gone.
    Exited(TaskExit),
    /// The shim lives. Its job may be ending right now.
    Running(TaskState),
    /// A shim has the lock and has not started the job yet. Seen for an instant after the death of
    /// such a shim too, while a process that the agent forked meanwhile has not come to its exec.
    Starting,
    /// No shim has the lock and no end is written: the shim was killed, or never came up.
    /// Processes of the job may be left; [`reap_dead`] is the next step.
    Dead,
    /// As `Dead`, but the node has restarted since, so nothing can be left.
    OtherBoot,
}

/// What is known about the task right now. Changes nothing on disk and takes no lock.
pub fn liveness(dir: &TaskDir) -> Result<Liveness, FileError> {
    if let Some(exit) = dir.read_exit()? {
        return Ok(Liveness::Exited(exit));
    }
    let locked = dir.is_locked()?;
    let state = dir.read_state()?;
    if let Some(state) = &state {
        let boot_id = proc::boot_id()
            .map_err(|source| FileError::Read { path: dir.file("state"), source })?;
        if state.boot_id != boot_id {
            return Ok(Liveness::OtherBoot);
        }
    }
    let alive = match &state {
        // A lock without its shim is held by a copy of the descriptor that is about to close.
        Some(state) => locked && is_same_process(state.shim_pid, state.shim_start_time),
        None => locked,
    };
    if !alive {
        // The shim writes `exit` before it lets go of the lock, so a second look settles it.
        return Ok(dir.read_exit()?.map_or(Liveness::Dead, Liveness::Exited));
    }
    Ok(state.map_or(Liveness::Starting, Liveness::Running))
}

fn is_same_process(pid: u32, start_time: u64) -> bool {
    matches!(proc::stat(pid), Ok(Some(stat)) if stat.start_time == start_time && !stat.is_zombie())
}

/// A pidfd of the process with this pid and start time: it becomes readable when the process ends.
/// Fits `poll` and tokio's `AsyncFd`. `NotFound` if that process is gone already.
pub fn watch(pid: u32, start_time: u64) -> io::Result<OwnedFd> {
    let gone = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("process {pid} (start time {start_time}) is gone"),
        )
    };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let pidfd = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
        Err(rustix::io::Errno::SRCH) => return Err(gone()),
        other => other?,
    };
    // Asked after the pidfd is held: if the start time fits now, the pidfd is of that process.
    match proc::stat(pid)? {
        Some(stat) if stat.start_time == start_time => Ok(pidfd),
        _ => Err(gone()),
    }
}

/// Blocks until the task is no longer starting or running, or the time is up. The answer is the
/// last look, so `Running` and `Starting` mean "still".
pub fn wait_exit(dir: &TaskDir, timeout: Duration) -> Result<Liveness, FileError> {
    let deadline = Instant::now() + timeout;
    loop {
        let now = liveness(dir)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(now);
        }
        match &now {
            Liveness::Running(state) => match watch(state.shim_pid, state.shim_start_time) {
                Ok(pidfd) => {
                    poll_readable(pidfd.as_fd(), left).map_err(|source| FileError::Read {
                        path: dir.path().to_owned(),
                        source,
                    })?;
                }
                // Gone in between; the next look says how.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(FileError::Read { path: dir.path().to_owned(), source }),
            },
            Liveness::Starting => thread::sleep(LOOK_AGAIN.min(left)),
            Liveness::Exited(_) | Liveness::Dead | Liveness::OtherBoot => return Ok(now),
        }
    }
}

fn poll_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()) as _,
    };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A shim that this process started. Dropping it leaves the shim alone; once the pidfd is
/// readable, [`Self::try_wait`] clears the zombie away.
#[derive(Debug)]
pub struct ShimChild {
    child: Child,
    pidfd: OwnedFd,
}

impl ShimChild {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends of the shim as seen by its parent. Only `exit` tells how the *job* ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// The pidfd alone, for an event loop of its own. The zombie is then the caller's to wait for,
    /// or stays until the caller ends.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }
}

impl AsFd for ShimChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Starts `tessera-shim DIR`. `AlreadyExists` if the task ran before, `WouldBlock` if a shim has
/// it now.
///
/// The lock is taken here and handed to the shim as its standard input, so from before the fork
/// until the shim's end there is no moment at which the task looks dead. If the caller dies before
/// the fork, the lock is free and no shim comes late.
pub fn spawn_shim(shim_exe: &Path, dir: &TaskDir) -> io::Result<ShimChild> {
    let ran_before = || {
        let what = format!("the task in {} ran before", dir.path().display());
        io::Error::new(io::ErrorKind::AlreadyExists, what)
    };
    if dir.file("exit").exists() {
        return Err(ran_before());
    }
    let Some(lock) = dir.try_lock()? else {
        let what = format!("another shim holds {}", dir.path().display());
        return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
    };
    // Under the lock nobody else can start it, so this answer stays true.
    if has_run(dir) {
        return Err(ran_before());
    }
    let complaints =
        OpenOptions::new().append(true).create(true).mode(0o600).open(dir.file("shim.log"))?;
    let mut command = Command::new(shim_exe);
    command.arg(dir.path()).env_clear().current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(lock))).stdout(Stdio::null()).stderr(complaints);
    let child = command.spawn()?;
    // Our copy of the lock goes with `command`; the shim's copy holds it from here on.
    drop(command);
    let pid = Pid::from_child(&child);
    Ok(ShimChild { child, pidfd: pidfd_open(pid, PidfdFlags::NONBLOCK)? })
}

/// A task that has a state or an end is never started again, whatever stands in these files.
pub fn has_run(dir: &TaskDir) -> bool {
    dir.file("state").exists() || dir.file("exit").exists()
}

/// Closes the record of a task whose shim is gone: takes the lock, so that no shim can come late;
/// kills what is left of the job and waits until it is gone; then writes an *unknown* end.
///
/// An end that the shim wrote is returned as it is. A damaged `exit` is replaced by an unknown
/// one; a damaged `state` or `spec` does not stand in the way, but with a damaged `spec` the cgroup
/// is unknown, so the caller may pass the one it remembers.
pub fn reap_dead(
    dir: &TaskDir,
    remembered: Option<&Cgroup>,
    timeout: Duration,
) -> Result<TaskExit, FileError> {
    let deadline = Instant::now() + timeout;
    let _lock = lock_by(dir, deadline, timeout)?;
    if let Ok(Some(exit)) = dir.read_exit() {
        return Ok(exit);
    }
    let spec = dir.read_spec().ok();
    let opened = spec.as_ref().and_then(|spec| Cgroup::open(&spec.cgroup));
    let state = dir.read_state().ok().flatten();
    let mut oom_killed = false;
    if let Some(cgroup) = opened.as_ref().or(remembered) {
        cgroup
            .kill_all_and_wait_empty(deadline)
            .map_err(|source| still_there(cgroup.dir(), timeout, source))?;
        oom_killed = matches!(cgroup.oom_kills(), Ok(Some(kills)) if kills > 0);
        // An empty folder that stays does no harm, and the record must not wait for it.
        let _ = cgroup.remove();
    } else if let Some(spec) = &spec {
        kill_marked(spec, state.as_ref(), deadline)
            .map_err(|source| still_there(dir.path(), timeout, source))?;
    }
    let exit = TaskExit {
        oom_killed,
        ended_unix_ms: proc::unix_ms(),
        started_unix_ms: state.map(|state| state.started_unix_ms),
        ..TaskExit::default()
    };
    dir.write_exit(&exit)?;
    Ok(exit)
}

fn still_there(path: &Path, waited: Duration, source: io::Error) -> FileError {
    match source.kind() {
        io::ErrorKind::TimedOut => {
            FileError::StillThere { path: path.to_owned(), waited_ms: waited.as_millis() as u64 }
        }
        _ => FileError::Write { path: path.to_owned(), source },
    }
}

/// A child of the shim between clone and exec may hold the lock a little longer than the shim.
fn lock_by(dir: &TaskDir, deadline: Instant, waited: Duration) -> Result<TaskLock, FileError> {
    loop {
        if let Some(lock) = dir.try_lock()? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(FileError::StillThere {
                path: dir.file("lock"),
                waited_ms: waited.as_millis() as u64,
            });
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// The cooperative way: kills every process that carries this attempt in its environment and is
/// not older than the shim.
fn kill_marked(spec: &TaskSpec, state: Option<&TaskState>, deadline: Instant) -> io::Result<()> {
    let entry = attempt_entry(spec);
    let not_before = state.map_or(0, |state| state.shim_start_time);
    let mut clean_looks = 0;
    while clean_looks < CLEAN_LOOKS {
        let mut found = false;
        for pid in proc::all_pids()? {
            let ours = |pid| {
                proc::has_env(pid, &entry)
                    && matches!(proc::stat(pid), Ok(Some(stat)) if stat.start_time >= not_before && !stat.is_zombie())
            };
            if pid == std::process::id() || !ours(pid) {
                continue;
            }
            found = true;
            let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            // Looked at again through a held pidfd, so that a reused pid is never killed.
            let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { continue };
            if ours(pid) {
                // Gone in between is as good as killed; a refusal shows as "still there".
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        clean_looks = if found { 0 } else { clean_looks + 1 };
        if found && Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The line by which left-over processes are known: the job's own `TESSERA_ATTEMPT`, or the one
/// that the shim adds.
pub fn attempt_entry(spec: &TaskSpec) -> String {
    let own = spec.env.iter().rev().find(|(name, _)| name == ATTEMPT_ENV);
    format!("{ATTEMPT_ENV}={}", own.map_or(spec.attempt.as_str(), |(_, value)| value))
}

/// Names the attempt inside the job.
pub const ATTEMPT_ENV: &str = "TESSERA_ATTEMPT";
