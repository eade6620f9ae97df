//! The end of a task, seen through its shim, and the stop of one.
//!
//! In: a task folder, and the shim if we started it. Out: how the task ended, once it is written
//! down and none of its processes is left. The kernel tells us when the shim ends (a pidfd); the
//! shim's record tells how the job did.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use tessera_shim::cgroup::Cgroup;
use tessera_shim::{Liveness, Op, ShimChild, TaskDir, TaskExit, control, liveness, reap_dead};

use super::blocking;

/// How long a dead shim's job is given to be gone, and its lock to be free, at a time.
const REAP: Duration = Duration::from_secs(5);
/// Between tries at what gives no event.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// What a shim may take beyond the grace before its job is killed past it, and then itself.
const SHIM_LATE: Duration = Duration::from_secs(10);
const SHIM_STUCK: Duration = Duration::from_secs(30);

/// Waits for the end, however long it takes.
pub(super) async fn end_of(dir: &TaskDir, child: Option<ShimChild>) -> TaskExit {
    if let Some(child) = child {
        wait_child(child).await;
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let look = dir.clone();
        match blocking(move || liveness(&look)).await {
            Ok(Liveness::Exited(exit)) => return exit,
            Ok(Liveness::Running(state)) => {
                match tessera_shim::watch(state.shim_pid, state.shim_start_time) {
                    Ok(pidfd) => {
                        readable(pidfd).await;
                        pause = FIRST_PAUSE;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        tracing::warn!(dir = %dir.path().display(), %error, "could not watch a shim; looking again");
                    }
                }
            }
            Ok(Liveness::Starting) => {}
            Ok(Liveness::Dead | Liveness::OtherBoot) => {
                if let Some(exit) = reap(dir).await {
                    return exit;
                }
            }
            // A record that cannot be read tells nothing: what counts is that nobody is left.
            Err(error) => {
                tracing::warn!(dir = %dir.path().display(), %error, hint = error.hint(), "could not read a task's record");
                let look = dir.clone();
                if !blocking(move || look.is_locked().unwrap_or(false)).await
                    && let Some(exit) = reap(dir).await
                {
                    return exit;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn reap(dir: &TaskDir) -> Option<TaskExit> {
    let reaped = dir.clone();
    if !dir.path().exists() {
        // Somebody took the folder away, and with it all that could be known.
        return Some(TaskExit::default());
    }
    match blocking(move || reap_dead(&reaped, None, REAP)).await {
        Ok(exit) => Some(exit),
        Err(error) => {
            tracing::error!(dir = %dir.path().display(), %error, hint = error.hint(), "the shim is gone, its job is not");
            None
        }
    }
}

struct Pidfd<T>(T);

impl<T: AsFd> AsRawFd for Pidfd<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Follows a pidfd on the runtime's own event loop.
#[expect(
    deprecated,
    reason = "its successor is unsafe, for types that may lose their descriptor; a Pidfd owns it to its end"
)]
fn follow<T: AsFd>(pidfd: T) -> io::Result<AsyncFd<Pidfd<T>>> {
    AsyncFd::with_interest(Pidfd(pidfd), Interest::READABLE)
}

async fn readable(pidfd: OwnedFd) {
    match follow(pidfd) {
        // An error here means that the runtime ends.
        Ok(pidfd) => drop(pidfd.readable().await),
        // Out of descriptors: the caller looks again after a pause.
        Err(error) => {
            tracing::warn!(%error, "could not follow a shim");
            sleep(LAST_PAUSE).await;
        }
    }
}

/// Waits for our own child and clears its zombie away.
async fn wait_child(child: ShimChild) {
    match follow(child) {
        Ok(mut pidfd) => {
            if pidfd.readable().await.is_ok() {
                // Its exit status says nothing about the job.
                let _ = pidfd.get_mut().0.try_wait();
            }
        }
        Err(error) => {
            tracing::warn!(%error, "could not follow a new shim; its record is looked at instead");
        }
    }
}

/// Waits until each task has said that it runs, or how it ended, or its shim died.
pub(super) async fn all_up(dirs: Vec<TaskDir>) {
    for dir in dirs {
        let mut pause = FIRST_PAUSE;
        loop {
            let look = dir.clone();
            match blocking(move || liveness(&look)).await {
                Ok(Liveness::Starting) => {}
                Ok(_) | Err(_) => break,
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// How long a task that is just being started may take until it can be sent a signal.
const SIGNAL_WAIT: Duration = Duration::from_secs(5);

/// Sends a signal to every process of the task, once. Nothing where it has ended.
pub(super) async fn signal(dir: TaskDir, signal: i32) {
    let deadline = Instant::now() + SIGNAL_WAIT;
    let mut pause = FIRST_PAUSE;
    loop {
        if ask(&dir, Op::Signal { signal }).await || !alive(&dir).await {
            return;
        }
        // Its control socket is not there yet.
        if Instant::now() >= deadline {
            return tracing::warn!(dir = %dir.path().display(), signal, "a signal is lost: the shim does not take it");
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// SIGTERM, the grace, SIGKILL. The shim does it by its own clock, also if this agent dies; we
/// shorten it to the order's grace, and go past a shim that does not do its work.
pub(super) async fn stop(dir: TaskDir, grace: Duration) {
    let deadline = Instant::now() + grace;
    let spec = dir.clone();
    let own_grace = blocking(move || spec.read_spec().map(|spec| spec.kill_grace_ms)).await;
    let own_grace = Duration::from_millis(own_grace.unwrap_or(0));
    if grace > own_grace {
        // The shim's own grace would end too early, so its stop has to begin later.
        ask(&dir, Op::Signal { signal: Signal::TERM.as_raw() }).await;
        sleep_until_or_gone(&dir, deadline - own_grace).await;
    }
    let mut pause = FIRST_PAUSE;
    loop {
        if ask(&dir, Op::Stop).await || !alive(&dir).await {
            break;
        }
        // Starting: its control socket is not there yet.
        if Instant::now() >= deadline + SHIM_LATE {
            break;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    sleep_until_or_gone(&dir, deadline).await;
    if !alive(&dir).await {
        return;
    }
    ask(&dir, Op::Signal { signal: Signal::KILL.as_raw() }).await;
    sleep_until_or_gone(&dir, deadline + SHIM_LATE).await;
    if !alive(&dir).await {
        return;
    }
    tracing::warn!(dir = %dir.path().display(), "the shim did not stop its job in time; killing the job's cgroup");
    let cgroup = dir.clone();
    blocking(move || {
        if let Some(cgroup) = cgroup.read_spec().ok().and_then(|spec| Cgroup::open(&spec.cgroup))
            && let Err(error) = cgroup.kill_all()
        {
            tracing::error!(cgroup = %cgroup.dir().display(), %error, "could not kill a cgroup");
        }
    })
    .await;
    sleep_until_or_gone(&dir, deadline + SHIM_STUCK).await;
    if let Ok(Liveness::Running(state)) = liveness_of(&dir).await
        && let Ok(pidfd) = tessera_shim::watch(state.shim_pid, state.shim_start_time)
    {
        tracing::error!(dir = %dir.path().display(), "the shim hangs; killing it, the task's end will be unknown");
        // Gone in between is what we want.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

async fn liveness_of(dir: &TaskDir) -> Result<Liveness, tessera_shim::FileError> {
    let look = dir.clone();
    blocking(move || liveness(&look)).await
}

async fn alive(dir: &TaskDir) -> bool {
    matches!(liveness_of(dir).await, Ok(Liveness::Running(_) | Liveness::Starting))
}

/// Whether the shim said yes.
async fn ask(dir: &TaskDir, op: Op) -> bool {
    let asked = dir.clone();
    match blocking(move || control(&asked, op)).await {
        Ok(reply) => {
            if let Some(error) = &reply.error {
                tracing::warn!(dir = %dir.path().display(), %error, ?op, "the shim refused");
            }
            reply.ok
        }
        Err(_) => false,
    }
}

async fn sleep_until_or_gone(dir: &TaskDir, deadline: Instant) {
    let gone = async {
        if let Ok(Liveness::Running(state)) = liveness_of(dir).await
            && let Ok(pidfd) = tessera_shim::watch(state.shim_pid, state.shim_start_time)
        {
            readable(pidfd).await;
        }
    };
    // Starting or dead: `gone` is there at once, and the caller looks again.
    let _ = tokio::time::timeout_at(deadline, gone).await;
}
