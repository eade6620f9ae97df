//! The runner: tasks of attempts on this node, from the order to the last process gone.
//!
//! In: orders that have become ours at the door, and the state folder. Out: [`RunnerEvent`]s as
//! things happen, and a [`Snapshot`] of everything not yet acknowledged for whoever connects anew.
//! One async task per attempt obeys its orders, so that a slow disk under one delays no other.
//! Each decision is on disk before it is acted on or answered; a task is never started twice.
//!
//! ```text
//! <state>/fence, fence.spare        highest epoch obeyed
//! <state>/jobs/<attempt>/order      what was ordered            tombstone: it ends, for good
//! <state>/jobs/<attempt>/script     cgroup: of all ranks, where there are several
//! <state>/jobs/<attempt>/held        a spare was told to go on holding its GPUs
//! <state>/jobs/<attempt>/checkpoint  the last one seen
//! <state>/jobs/<attempt>/rank-<r>/   a shim's task folder
//! <state>/done/<attempt>/           acknowledged; kept a while for its logs
//! ```
//! Talking to the scheduler is `control`'s work, owning the processes the shim's.

mod account; // whom a task runs as
mod adopt; // what an earlier agent left
mod attempt; // one attempt: its orders and what happens to it
mod book; // who holds what, and what was reported
mod checkpoint; // the file by which a job says that its work is safe
mod done; // acknowledged attempts, for a while
mod env; // the environment of a task
mod fence; // the highest epoch
mod gpus; // what we ask about GPUs
mod logs; // pieces of output
mod order; // what an attempt runs
mod patience; // questions that may hang
mod prepare; // may it run here?
mod release; // are its GPUs really free?
mod start; // shims
mod tenants; // who else may be on a GPU
mod watch; // the end of a task

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use tessera_model::{AttemptId, Epoch, GpuId, NodeId, TaskEnd};

use crate::session::Session;
use attempt::Command;
use book::Book;

pub use account::AgentIdentity;
pub use book::{Phase, RunnerEvent, Snapshot, Status};
pub use done::Keep;
pub use env::Master;
pub use fence::FenceError;
pub use gpus::{Gpus, Processes};
pub use logs::LogAnswer;
pub use order::TaskOrder;

/// What the scheduler tells a node to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Prepare(Box<TaskOrder>),
    Commit {
        attempt: AttemptId,
        master: Master,
    },
    Stop {
        attempt: AttemptId,
        grace: Duration,
    },
    /// To every process of its tasks, once; what does not run here is left out.
    Signal {
        attempt: AttemptId,
        signal: i32,
    },
    Forget {
        attempt: AttemptId,
    },
}

impl Order {
    pub fn attempt(&self) -> AttemptId {
        match self {
            Self::Prepare(order) => order.attempt,
            Self::Commit { attempt, .. }
            | Self::Stop { attempt, .. }
            | Self::Signal { attempt, .. }
            | Self::Forget { attempt } => *attempt,
        }
    }
}

#[derive(Debug, Clone)]
pub struct RunnerSettings {
    pub state: PathBuf,
    pub node: NodeId,
    /// Where other nodes reach this one; the master port is looked for there.
    pub address: String,
    /// The `tessera-shim` binary.
    pub shim: PathBuf,
    pub identity: AgentIdentity,
    pub keep: Keep,
}

/// A GPU that was given back with processes still on it, or that nobody could ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupied {
    pub gpu: GpuId,
    /// Empty: it does not answer, so nobody knows.
    pub pids: Vec<u32>,
}

/// Why an order was not even taken.
#[derive(Debug, thiserror::Error)]
pub enum ObeyError {
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error("too many orders wait for attempt {attempt} already")]
    Full { attempt: AttemptId },
}

#[derive(Clone)]
pub struct Runner {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    settings: RunnerSettings,
    gpus: Arc<dyn Gpus>,
    session: Arc<Session>,
    fence: fence::Fence,
    accounts: account::Accounts,
    patience: patience::Patience,
    book: Book,
    /// Shims started at once; each is a fork and a few fsyncs.
    starts: tokio::sync::Semaphore,
    /// Attempts prepared at once; each may wait for folders and account servers that hang.
    prepares: tokio::sync::Semaphore,
    done: done::Done,
    /// Where attempts' tasks run, whoever brings their orders.
    runtime: tokio::runtime::Handle,
}

impl Shared {
    fn attempt_dir(&self, attempt: AttemptId) -> PathBuf {
        self.settings.state.join("jobs").join(attempt.to_string())
    }
}

impl Runner {
    /// Opens the state folder and takes over what an earlier agent left. What is not yet known of
    /// it (a shim that died, a GPU that does not answer) is found out in the background and
    /// reported like everything else. Needs a tokio runtime, and must be the folder's only user.
    pub fn open(
        settings: RunnerSettings,
        gpus: Arc<dyn Gpus>,
        session: Arc<Session>,
    ) -> io::Result<Self> {
        done::make_folder(&settings.state)?;
        done::make_folder(&settings.state.join("jobs"))?;
        let shared = Arc::new(Shared {
            fence: fence::Fence::open(&settings.state)?,
            accounts: account::Accounts::default(),
            patience: patience::Patience::new(patience::LIMIT),
            book: Book::default(),
            starts: tokio::sync::Semaphore::new(16),
            prepares: tokio::sync::Semaphore::new(16),
            done: done::Done::open(&settings.state, settings.keep)?,
            settings,
            gpus,
            session,
            runtime: tokio::runtime::Handle::current(),
        });
        for left in adopt::left_behind(&shared.settings.state.join("jobs"))? {
            attempt::adopt(&shared, left);
        }
        tokio::spawn(release::look_for_strangers(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Obeys an order, or says why it does not pass. What comes of it is an event. Orders may come
    /// twice.
    pub async fn obey(&self, epoch: Epoch, order: Order) -> Result<(), ObeyError> {
        self.admit(epoch).await?;
        let attempt = order.attempt();
        let command = match order {
            Order::Prepare(order) => Command::Prepare { epoch, order },
            Order::Commit { master, .. } => Command::Commit { master },
            Order::Stop { grace, .. } => Command::Stop { grace },
            Order::Signal { signal, .. } => {
                if let Err(error) = attempt::send(&self.shared, attempt, Command::Signal { signal })
                {
                    // Nobody makes it again, so there is no use in a new connection for it.
                    tracing::warn!(%attempt, signal, %error, "a signal is lost");
                }
                return Ok(());
            }
            Order::Forget { .. } => Command::Forget,
        };
        attempt::send(&self.shared, attempt, command)
    }

    /// Looks once at all GPUs that no attempt holds, so that [`Self::occupied`] is true of them.
    /// Waits for NVML, but not beyond its deadline.
    pub async fn look_for_strangers(&self) {
        release::look_at_free(&self.shared).await;
    }

    /// Whether an order of this epoch may be obeyed; a higher one than ever is on disk then.
    pub async fn admit(&self, epoch: Epoch) -> Result<(), FenceError> {
        if !self.shared.fence.is_news(epoch) {
            return self.shared.fence.admit(epoch);
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.fence.admit(epoch)).await
    }

    pub fn highest_epoch(&self) -> Epoch {
        self.shared.fence.highest()
    }

    /// Everything that is not acknowledged, and from now on what happens. Ends an earlier
    /// connection's events, which also end when they are not taken in time. Attempts prepared for an earlier session are given up: nobody may
    /// commit them any more.
    pub fn connect(&self) -> (Snapshot, mpsc::Receiver<RunnerEvent>) {
        let session = self.shared.session.id();
        for attempt in self.shared.book.prepared_for_others(session) {
            let stop = Command::Stop { grace: Duration::ZERO };
            // Full: its task looks at the session again before it starts anything.
            let _ = attempt::send(&self.shared, attempt, stop);
        }
        self.shared.book.connect()
    }

    /// A grant has moved the session's deadline: attempts under a lease get it too.
    pub fn lease_extended(&self) {
        let Some(term) = self.shared.session.term() else { return };
        self.shared.book.tell_leased(|| Command::Lease(term));
    }

    /// GPUs that hold processes of nobody's, or that could not be asked after an attempt ended.
    pub fn occupied(&self) -> Vec<Occupied> {
        self.shared.book.occupied()
    }

    /// Told whenever [`Self::occupied`] may have changed.
    pub fn occupied_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.book.occupied_changed()
    }

    /// How an attempt stands; `None` when nothing is known of it (any more).
    pub fn status(&self, attempt: AttemptId) -> Option<Status> {
        self.shared.book.status(attempt)
    }

    /// Output of one rank from `offset` on, at most `max_bytes`. Waits up to a second for the
    /// first byte where there is none yet.
    pub async fn log_piece(
        &self,
        attempt: AttemptId,
        rank: u32,
        offset: u64,
        max_bytes: u32,
    ) -> LogAnswer {
        logs::answer(&self.shared, attempt, rank, offset, max_bytes).await
    }
}

/// Runs what may block away from the async threads. A panic in there goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nothing that follows would be obeyed any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a shim wrote down, in the words everyone shares.
pub fn task_end(exit: &tessera_shim::TaskExit) -> TaskEnd {
    if exit.lapsed {
        return TaskEnd::Lapsed;
    }
    match (&exit.spawn_error, exit.signal, exit.code) {
        (Some(why), _, code) => TaskEnd::NotStarted { code: code.unwrap_or(126), why: why.clone() },
        (None, Some(signal), _) => TaskEnd::Signaled { signal, oom: exit.oom_killed },
        (None, None, Some(code)) => TaskEnd::Exited { code },
        (None, None, None) => TaskEnd::Unknown,
    }
}
