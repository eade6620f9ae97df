//! One attempt: its orders, one after the other, and what happens to it meanwhile.
//!
//! In: commands, and the ends of its tasks. Out: decisions on disk, then changes in the book and
//! events. Whatever takes long (shims coming up, tasks ending, GPUs going idle, a grace running
//! out) runs beside this task, which therefore always hears the next order.

mod beside; // its tasks' ends, signals to them, its checkpoints
mod owed; // decisions that a full disk did not take yet

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use tessera_model::{AttemptId, Epoch, WHOLE_GPU};
use tessera_shim::{TaskDir, TaskExit, TaskLease};

use super::adopt::{LeftBehind, rank_dir, write_held};
use super::book::{Delivered, Phase, RunnerEvent, Status};
use super::checkpoint::Checkpoints;
use super::env::Master;
use super::order::{OrderRecord, TaskOrder};
use super::{ObeyError, Occupied, Shared, blocking, prepare, release, start, task_end, watch};
use crate::session::{BootMillis, LeaseTerm};
use owed::{Owed, sleep_until};

/// Orders to one attempt.
#[derive(Debug)]
pub(super) enum Command {
    Prepare { epoch: Epoch, order: Box<TaskOrder> },
    Commit { master: Master },
    Stop { grace: Duration },
    Signal { signal: i32 },
    Forget,
    Lease(LeaseTerm),
}

/// What comes back from beside.
enum Happening {
    /// All shims have written that they run, or that they ended.
    Up,
    Ended {
        rank: u32,
        exit: TaskExit,
        /// Seen when it had ended, and not said before.
        checkpoint: bool,
    },
    Idle {
        occupied: Vec<Occupied>,
    },
    /// Nothing to say: a grace ran out and was dealt with.
    Done,
}

/// A lease is written again when this part of it has passed since the last time.
const LEASE_PARTS: u64 = 20;
/// How long a commit waits for the first grant of a new connection.
const GRANT_WAIT: Duration = Duration::from_secs(10);

struct Attempt {
    shared: Arc<Shared>,
    id: AttemptId,
    dir: PathBuf,
    orders: mpsc::Receiver<Command>,
    /// What it was prepared with; `None` where nothing is, or where it could not be read.
    record: Option<OrderRecord>,
    beside: JoinSet<Happening>,
    /// What its shims were told last.
    lease_until: Option<BootMillis>,
    releasing: bool,
    /// The file that tells its checkpoints, and who looks at it.
    checkpoints: Arc<OnceLock<Arc<Checkpoints>>>,
    checkpoint_watch: Option<AbortHandle>,
    /// When its tasks are killed, if they were told to stop.
    kill_at: Option<Instant>,
    owed: Owed,
}

/// Hands a command to the attempt's task, which begins if there is none.
pub(super) fn send(shared: &Arc<Shared>, id: AttemptId, command: Command) -> Result<(), ObeyError> {
    match shared.book.deliver(id, command) {
        Delivered::ToItsTask => {}
        Delivered::ToANewOne(orders) => {
            shared.runtime.spawn(Attempt::new(shared, id, orders).run());
        }
        Delivered::Full => return Err(ObeyError::Full { attempt: id }),
    }
    Ok(())
}

/// Goes on with an attempt that an earlier agent left. Blocks for a moment.
pub(super) fn adopt(shared: &Arc<Shared>, left: LeftBehind) {
    let record = left.record.as_ref();
    let mut status = Status {
        phase: Phase::Running,
        session: record.map_or_else(|| shared.session.id(), |r| r.order.session),
        ranks: left.ranks.clone(),
        master_port: record.map_or(0, |r| r.master_port),
        gpus: left.gpus.clone(),
        gpu_milli: record.map_or(WHOLE_GPU, |r| r.order.gpu_milli),
        stop_on_lapse: record.is_some_and(|r| r.order.stop_on_lapse),
        stopping: left.tombstone.is_some(),
        ..Status::fresh()
    };
    if !left.started {
        // Prepared for a session that is over, or stopped before it began: nobody may start it any
        // more, and nothing of it ever ran.
        status.phase = Phase::Released;
        status.ranks = 0..0;
        status.stopping = true;
    }
    let orders = shared.book.enter(left.attempt, status);
    let mut attempt = Attempt::new(shared, left.attempt, orders);
    attempt.record = left.record;
    attempt.lease_until = left.lease_until;
    if left.started {
        // Entering the runtime is what lets tasks begin from here.
        let _inside = shared.runtime.enter();
        attempt.watch_checkpoints(attempt.record.clone());
        for rank in left.ranks.clone() {
            attempt.watch(rank, None);
        }
        if let Some(tombstone) = left.tombstone {
            attempt.stop_tasks(Duration::from_millis(tombstone.grace_ms));
            if left.ranks.is_empty() {
                attempt.release();
            }
        }
    }
    shared.runtime.spawn(attempt.run());
}

impl Attempt {
    fn new(shared: &Arc<Shared>, id: AttemptId, orders: mpsc::Receiver<Command>) -> Self {
        let dir = shared.attempt_dir(id);
        Self {
            shared: Arc::clone(shared),
            id,
            dir,
            orders,
            record: None,
            beside: JoinSet::new(),
            lease_until: None,
            releasing: false,
            checkpoints: Arc::default(),
            checkpoint_watch: None,
            kill_at: None,
            owed: Owed::nothing(),
        }
    }

    async fn run(mut self) {
        loop {
            tokio::select! {
                command = self.orders.recv() => {
                    let Some(command) = command else { return };
                    self.obey(command).await;
                }
                () = sleep_until(self.owed.at), if self.owed.at.is_some() => self.pay().await,
                Some(happened) = self.beside.join_next() => match happened {
                    Ok(happening) => self.happened(happening),
                    Err(error) => {
                        if let Ok(panic) = error.try_into_panic() {
                            std::panic::resume_unwind(panic);
                        }
                    }
                },
            }
            if self.phase() == Phase::Fresh
                && self.owed.at.is_none()
                && self.shared.book.leave(self.id, &self.orders)
            {
                return;
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Prepare { epoch, order } => self.prepare(epoch, *order).await,
            Command::Commit { master } => self.commit(master).await,
            Command::Stop { grace } => self.stop(grace).await,
            Command::Signal { signal } => self.signal(signal),
            Command::Forget => self.forget().await,
            Command::Lease(term) => self.lease(term).await,
        }
    }

    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Up => {
                let attempt = self.id;
                self.shared.book.change(attempt, |status| {
                    (status.phase == Phase::Starting).then(|| {
                        status.phase = Phase::Running;
                        RunnerEvent::Started { attempt }
                    })
                });
            }
            Happening::Ended { rank, exit, checkpoint } => {
                if checkpoint {
                    self.shared.book.tell(RunnerEvent::Checkpoint { attempt: self.id });
                }
                self.ended(rank, &exit);
            }
            Happening::Idle { occupied } => {
                tracing::info!(attempt = %self.id, ?occupied, "released");
                self.shared.book.release(self.id, occupied);
            }
            Happening::Done => {}
        }
        // The last end may come before the shims were all seen coming up; both must be said.
        let status = self.status();
        if status.phase == Phase::Running && status.all_ended() {
            self.release();
        }
    }

    // ---- orders

    async fn prepare(&mut self, epoch: Epoch, order: TaskOrder) {
        let attempt = self.id;
        let status = self.status();
        if self.is_to_stop(status.phase) {
            return self.refuse("it was told to stop");
        }
        match status.phase {
            Phase::Fresh => {}
            Phase::Released => {
                self.refuse("it has ended, or was told to stop");
                return self.shared.book.tell_end_again(attempt);
            }
            Phase::Prepared if self.record.as_ref().is_some_and(|r| !r.order.is_same(&order)) => {
                return self.refuse("another order was prepared under the same attempt");
            }
            phase => {
                // Once it has started, only its attempt counts: no answer may end what runs.
                let master_port = status.master_port;
                self.shared.book.tell(RunnerEvent::Prepared { attempt, master_port });
                if phase >= Phase::Running {
                    self.shared.book.tell(RunnerEvent::Started { attempt });
                }
                return;
            }
        }
        let prepared = {
            let (shared, order) = (Arc::clone(&self.shared), order);
            let _permit = self.shared.prepares.acquire().await;
            blocking(move || prepare::prepare(&shared, epoch, &order)).await
        };
        match prepared {
            Ok(record) => {
                let order = record.order.clone();
                self.record = Some(record);
                let master_port = self.record.as_ref().map_or(0, |record| record.master_port);
                self.shared.book.change(attempt, |status| {
                    status.phase = Phase::Prepared;
                    status.session = order.session;
                    status.ranks = order.rank_range();
                    status.master_port = master_port;
                    status.stop_on_lapse = order.stop_on_lapse;
                    Some(RunnerEvent::Prepared { attempt, master_port })
                });
            }
            Err(why) => {
                self.shared.book.unclaim(attempt);
                self.refuse(&why);
            }
        }
    }

    async fn commit(&mut self, master: Master) {
        let status = self.status();
        if self.is_to_stop(status.phase) {
            return self.refuse("it was told to stop");
        }
        match status.phase {
            Phase::Prepared => {}
            Phase::Fresh => return self.refuse("it was never prepared here"),
            Phase::Starting => return,
            Phase::Running | Phase::Ending => {
                return self.shared.book.tell(RunnerEvent::Started { attempt: self.id });
            }
            Phase::Released => return self.shared.book.tell_end_again(self.id),
        }
        let record = self.record.clone().expect("what is prepared has a record");
        let is_spare = record.order.is_spare();
        if record.order.session != self.shared.session.id() {
            self.refuse("it was prepared for an earlier session of this agent");
            return self.stop(Duration::ZERO).await;
        }
        if is_spare {
            return self.hold().await;
        }
        if record.order.stop_on_lapse {
            match self.wait_for_grant().await {
                Some(term) => self.lease_until = Some(term.until),
                None => {
                    self.refuse("the scheduler has granted no lease that still runs");
                    return self.stop(Duration::ZERO).await;
                }
            }
        }
        self.change(|status| status.phase = Phase::Starting);
        let lease = TaskLease { deadline_boottime_ms: self.lease_until.map(|until| until.0) };
        let started = {
            let (shared, checkpoints) = (Arc::clone(&self.shared), Arc::clone(&self.checkpoints));
            let _permit = self.shared.starts.acquire().await;
            blocking(move || {
                if let Some(watched) = Checkpoints::of(&shared, &record, true) {
                    checkpoints.get_or_init(|| Arc::new(watched));
                }
                start::start(&shared, &record, &master, lease)
            })
            .await
        };
        self.watch_checkpoints(None);
        let mut coming = Vec::new();
        for (rank, dir, started) in started {
            match started {
                Ok(child) => {
                    coming.push(dir);
                    self.watch(rank, Some(child));
                }
                Err(exit) => {
                    let exit = *exit;
                    let ended = Happening::Ended { rank, exit, checkpoint: false };
                    self.beside.spawn(async move { ended });
                }
            }
        }
        self.beside.spawn(async move {
            watch::all_up(coming).await;
            Happening::Up
        });
    }

    /// A spare starts nothing: it has what it holds, also for a later agent.
    async fn hold(&mut self) {
        let (attempt, dir) = (self.id, self.dir.clone());
        match blocking(move || write_held(&dir)).await {
            Ok(()) => self.shared.book.change(attempt, |status| {
                status.phase = Phase::Running;
                Some(RunnerEvent::Started { attempt })
            }),
            Err(error) => self.refuse(&format!("could not write down that it is held: {error}")),
        }
    }

    async fn wait_for_grant(&self) -> Option<LeaseTerm> {
        let mut terms = self.shared.session.follow();
        let granted = terms.wait_for(|term| term.is_some_and(|t| t.until > BootMillis::now()));
        match tokio::time::timeout(GRANT_WAIT, granted).await {
            Ok(Ok(term)) => *term,
            _ => None,
        }
    }

    async fn stop(&mut self, grace: Duration) {
        match self.phase() {
            Phase::Fresh if self.shared.done.holds(self.id) => {
                self.owed.tombstone = None;
                self.shared.book.tell(RunnerEvent::Released { attempt: self.id, occupied: vec![] });
            }
            Phase::Fresh | Phase::Prepared => {
                // Only on disk does it hold that it can never start here; then it may be said.
                if self.bury(grace).await {
                    self.change(|status| {
                        status.stopping = true;
                        status.ranks = 0..0;
                    });
                    self.shared.book.release(self.id, Vec::new());
                }
            }
            Phase::Starting | Phase::Running => {
                self.bury(grace).await;
                self.change(|status| status.stopping = true);
                self.stop_tasks(grace);
                if self.status().ranks.is_empty() {
                    self.release();
                }
            }
            Phase::Ending => {}
            Phase::Released => self.shared.book.tell_end_again(self.id),
        }
    }

    fn stop_tasks(&mut self, grace: Duration) {
        let kill_at = Instant::now() + grace;
        if self.kill_at.is_some_and(|earlier| earlier <= kill_at) {
            // The same order again.
            return;
        }
        self.kill_at = Some(kill_at);
        let status = self.status();
        for rank in status.ranks.filter(|rank| !status.ended.contains_key(rank)) {
            let dir = TaskDir::new(rank_dir(&self.dir, rank));
            self.beside.spawn(async move {
                watch::stop(dir, grace).await;
                Happening::Done
            });
        }
    }

    async fn forget(&mut self) {
        match self.phase() {
            Phase::Released => {}
            Phase::Fresh => return,
            phase => {
                return tracing::warn!(attempt = %self.id, ?phase, "told to forget what still runs; it is kept");
            }
        }
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        match blocking(move || shared.done.keep(id)).await {
            // Back to nothing: the task ends with this order.
            Ok(()) => {
                self.owed = Owed::nothing();
                self.change(|status| *status = Status::fresh());
            }
            Err(error) => {
                tracing::error!(attempt = %self.id, %error, "could not move the acknowledged attempt, it is tried again; free space on the disk of the state folder");
                self.owed.forget = true;
                self.owed.try_later();
            }
        }
    }

    async fn lease(&mut self, term: LeaseTerm) {
        let Some(until) = self.lease_until else { return };
        // What has lapsed stays lapsed, whatever is granted to this agent now.
        let lapsed = until <= BootMillis::now();
        let step = (term.lease_ms / LEASE_PARTS).max(1);
        if lapsed || term.until.0 < until.0.saturating_add(step) {
            return;
        }
        let status = self.status();
        let ranks: Vec<u32> = status.ranks.filter(|r| !status.ended.contains_key(r)).collect();
        let dir = self.dir.clone();
        let lease = TaskLease { deadline_boottime_ms: Some(term.until.0) };
        let written = blocking(move || {
            let mut written = Ok(());
            for rank in ranks {
                // One that cannot be renewed keeps none of the others from it.
                written = written.and(TaskDir::new(rank_dir(&dir, rank)).write_lease(lease));
            }
            written
        });
        match written.await {
            Ok(()) => self.lease_until = Some(term.until),
            Err(error) => {
                tracing::error!(attempt = %self.id, %error, hint = error.hint(), "could not write the lease")
            }
        }
    }

    // ---- what happens

    fn ended(&mut self, rank: u32, exit: &TaskExit) {
        let (attempt, end) = (self.id, task_end(exit));
        tracing::info!(%attempt, rank, %end, "task ended");
        self.shared.book.change(attempt, |status| {
            status.ended.insert(rank, end.clone());
            Some(RunnerEvent::TaskEnded { attempt, rank, end })
        });
    }

    /// Gives the GPUs back once nothing is on them.
    fn release(&mut self) {
        if std::mem::replace(&mut self.releasing, true) {
            return;
        }
        self.change(|status| status.phase = Phase::Ending);
        if let Some(watch) = self.checkpoint_watch.take() {
            watch.abort();
        }
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        let gpus = self.status().gpus;
        self.beside.spawn(async move {
            let occupied = release::until_idle(&shared, id, gpus).await;
            Happening::Idle { occupied }
        });
    }

    // ---- the book

    fn status(&self) -> Status {
        let status = self.shared.book.status(self.id);
        status.expect("an attempt stays in the book while its task runs")
    }

    fn phase(&self) -> Phase {
        self.status().phase
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        self.shared.book.change(self.id, |status| {
            change(status);
            None
        });
    }

    fn refuse(&self, why: &str) {
        tracing::warn!(attempt = %self.id, why, "order refused");
        let why = why.to_owned();
        self.shared.book.tell(RunnerEvent::Refused { attempt: self.id, why });
    }
}
