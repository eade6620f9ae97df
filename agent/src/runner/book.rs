//! Who holds which GPU here, how each attempt stands, and who is told about it.
//!
//! In: changes, made by the attempts' own tasks. Out: claims, events, snapshots. One lock, never
//! held over anything that waits: a change and its event, or a snapshot and the start of its
//! events, are one step, so a connection neither misses nor repeats anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use tessera_model::{AttemptId, GpuId, SessionId, TaskEnd, WHOLE_GPU};

use super::Occupied;
use super::attempt::Command;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Heard of, nothing decided.
    Fresh,
    /// Waits for the commit.
    Prepared,
    /// Its shims are on the way up.
    Starting,
    /// Every task has been started.
    Running,
    /// All tasks have ended; its GPUs are being looked at.
    Ending,
    /// Gone. Reported until it is acknowledged.
    Released,
}

/// One attempt on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub phase: Phase,
    /// The session it was prepared for.
    pub session: SessionId,
    pub ranks: Range<u32>,
    pub master_port: u16,
    pub gpus: Vec<GpuId>,
    /// Thousandths of each of `gpus`.
    pub gpu_milli: u32,
    pub stop_on_lapse: bool,
    /// It was told to end.
    pub stopping: bool,
    pub ended: BTreeMap<u32, TaskEnd>,
    /// What was on its GPUs when they were given back.
    pub occupied: Vec<Occupied>,
}

impl Status {
    pub fn fresh() -> Self {
        Self {
            phase: Phase::Fresh,
            session: SessionId(0),
            ranks: 0..0,
            master_port: 0,
            gpus: Vec::new(),
            gpu_milli: WHOLE_GPU,
            stop_on_lapse: false,
            stopping: false,
            ended: BTreeMap::new(),
            occupied: Vec::new(),
        }
    }

    /// Never of a spare: it has nothing that could end, and holds its GPUs until it is stopped.
    pub fn all_ended(&self) -> bool {
        !self.ranks.is_empty() && self.ended.len() == self.ranks.len()
    }

    fn holds(&self, gpu: &GpuId) -> bool {
        self.phase != Phase::Released && self.gpus.contains(gpu)
    }
}

/// What the scheduler has to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunnerEvent {
    Prepared {
        attempt: AttemptId,
        master_port: u16,
    },
    Refused {
        attempt: AttemptId,
        why: String,
    },
    Started {
        attempt: AttemptId,
    },
    TaskEnded {
        attempt: AttemptId,
        rank: u32,
        end: TaskEnd,
    },
    /// Its work up to now is safe. Lost where there is no connection: said later, it would be
    /// taken for work that was done since.
    Checkpoint {
        attempt: AttemptId,
    },
    Released {
        attempt: AttemptId,
        occupied: Vec<Occupied>,
    },
}

/// All attempts that are not acknowledged; nothing that is merely heard of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    pub running: Vec<(AttemptId, Status)>,
    pub finished: Vec<(AttemptId, Status)>,
}

/// Events that wait for the connection; one more ends it.
const EVENTS_MAX: usize = 16_384;
/// Orders that wait for one attempt; one more ends the connection that brought it.
const ORDERS_MAX: usize = 64;
/// Room that a new deadline leaves for real orders: the next grant brings a later one anyway.
const ORDERS_RESERVE: usize = ORDERS_MAX / 2;

pub(super) struct Book {
    inside: Mutex<Inside>,
    occupied_version: watch::Sender<u64>,
}

#[derive(Default)]
struct Inside {
    attempts: BTreeMap<AttemptId, Entry>,
    /// The connection, if there is one and it takes what happens.
    outlet: Option<mpsc::Sender<RunnerEvent>>,
    occupied: BTreeMap<GpuId, Vec<u32>>,
    /// Counts claims, so that a look at a GPU knows whether it was given out meanwhile.
    claims: u64,
}

struct Entry {
    status: Status,
    orders: mpsc::Sender<Command>,
}

/// Where an order went.
pub(super) enum Delivered {
    ToItsTask,
    /// There is no task yet: one has to begin with this.
    ToANewOne(mpsc::Receiver<Command>),
    /// Its task is busy, and too many wait already.
    Full,
}

impl Default for Book {
    fn default() -> Self {
        Self { inside: Mutex::default(), occupied_version: watch::Sender::new(0) }
    }
}

impl Inside {
    fn tell(&mut self, event: RunnerEvent) {
        if let Some(outlet) = &self.outlet
            && outlet.try_send(event).is_err()
        {
            // The connection is gone, or it does not keep up, which ends it: the next one starts
            // from a snapshot.
            self.outlet = None;
        }
    }
}

impl Book {
    pub fn connect(&self) -> (Snapshot, mpsc::Receiver<RunnerEvent>) {
        let (outlet, events) = mpsc::channel(EVENTS_MAX);
        let mut inside = self.inside.lock();
        inside.outlet = Some(outlet);
        let mut snapshot = Snapshot::default();
        for (id, entry) in &inside.attempts {
            match entry.status.phase {
                Phase::Fresh => {}
                Phase::Released => snapshot.finished.push((*id, entry.status.clone())),
                _ => snapshot.running.push((*id, entry.status.clone())),
            }
        }
        (snapshot, events)
    }

    /// Hands an order to the attempt's task.
    pub fn deliver(&self, attempt: AttemptId, command: Command) -> Delivered {
        let mut inside = self.inside.lock();
        if let Some(entry) = inside.attempts.get(&attempt) {
            // The task takes its entry out under this lock before it ends.
            return match entry.orders.try_send(command) {
                Ok(()) => Delivered::ToItsTask,
                Err(mpsc::error::TrySendError::Full(_)) => Delivered::Full,
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    panic!("an attempt in the book has a task that reads its orders")
                }
            };
        }
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let sent = orders.try_send(command);
        assert!(sent.is_ok(), "the receiver is here, and nothing in it");
        inside.attempts.insert(attempt, Entry { status: Status::fresh(), orders });
        Delivered::ToANewOne(receiver)
    }

    /// Enters an attempt that an earlier agent left.
    pub fn enter(&self, attempt: AttemptId, status: Status) -> mpsc::Receiver<Command> {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        self.inside.lock().attempts.insert(attempt, Entry { status, orders });
        receiver
    }

    /// Takes out an attempt of which nothing needs to be kept, unless orders came meanwhile.
    pub fn leave(&self, attempt: AttemptId, orders: &mpsc::Receiver<Command>) -> bool {
        let mut inside = self.inside.lock();
        if !orders.is_empty() {
            return false;
        }
        inside.attempts.remove(&attempt);
        true
    }

    pub fn status(&self, attempt: AttemptId) -> Option<Status> {
        self.inside.lock().attempts.get(&attempt).map(|entry| entry.status.clone())
    }

    /// Changes an attempt's status and tells what follows from it, in one step.
    pub fn change(
        &self,
        attempt: AttemptId,
        change: impl FnOnce(&mut Status) -> Option<RunnerEvent>,
    ) {
        let mut inside = self.inside.lock();
        let entry = inside.attempts.get_mut(&attempt);
        let entry = entry.expect("an attempt stays in the book while its task runs");
        if let Some(event) = change(&mut entry.status) {
            inside.tell(event);
        }
    }

    pub fn tell(&self, event: RunnerEvent) {
        self.inside.lock().tell(event);
    }

    /// Says again how it ended, for an order that came after the end.
    pub fn tell_end_again(&self, attempt: AttemptId) {
        let mut inside = self.inside.lock();
        let Some(entry) = inside.attempts.get(&attempt) else { return };
        let Status { ended, occupied, .. } = entry.status.clone();
        for (rank, end) in ended {
            inside.tell(RunnerEvent::TaskEnded { attempt, rank, end });
        }
        inside.tell(RunnerEvent::Released { attempt, occupied });
    }

    /// Takes GPUs for an attempt, all or none: whole ones that nobody else holds, or shares of
    /// what others hold shares of, as far as there is enough.
    pub fn claim(&self, attempt: AttemptId, gpus: &[GpuId], milli: u32) -> Result<(), String> {
        let mut inside = self.inside.lock();
        for gpu in gpus {
            let mut held = 0;
            for (holder, entry) in &inside.attempts {
                if *holder == attempt || !entry.status.holds(gpu) {
                    continue;
                }
                held += entry.status.gpu_milli;
                if milli == WHOLE_GPU || entry.status.gpu_milli == WHOLE_GPU {
                    return Err(format!("{gpu} is held by attempt {holder} here"));
                }
            }
            if held + milli > WHOLE_GPU {
                return Err(format!(
                    "{held} thousandths of {gpu} are held here, {milli} more are too many"
                ));
            }
            if let Some(pids) = inside.occupied.get(gpu) {
                return Err(format!("{gpu} is still used by processes of no job: {pids:?}"));
            }
        }
        inside.claims += 1;
        let entry = inside.attempts.get_mut(&attempt);
        let entry = entry.expect("an attempt stays in the book while its task runs");
        entry.status.gpus = gpus.to_vec();
        entry.status.gpu_milli = milli;
        Ok(())
    }

    /// Attempts that hold the GPU or a part of it.
    pub fn holders(&self, gpu: &GpuId, but: Option<AttemptId>) -> Vec<AttemptId> {
        let inside = self.inside.lock();
        let holds =
            inside.attempts.iter().filter(|(id, e)| Some(**id) != but && e.status.holds(gpu));
        holds.map(|(id, _)| *id).collect()
    }

    /// What was found on a GPU that an attempt has just claimed and does not get.
    pub fn found_on_claimed(&self, gpu: &GpuId, pids: Vec<u32>) {
        self.inside.lock().occupied.insert(gpu.clone(), pids);
        self.occupied_version.send_modify(|version| *version += 1);
    }

    pub fn unclaim(&self, attempt: AttemptId) {
        self.change(attempt, |status| {
            status.gpus.clear();
            None
        });
    }

    /// Master ports given to attempts that still need them.
    pub fn ports(&self) -> BTreeSet<u16> {
        let inside = self.inside.lock();
        let live = inside.attempts.values().filter(|e| e.status.phase != Phase::Released);
        live.map(|e| e.status.master_port).collect()
    }

    pub fn prepared_for_others(&self, session: SessionId) -> Vec<AttemptId> {
        let inside = self.inside.lock();
        let others = inside.attempts.iter().filter(|(_, entry)| {
            entry.status.phase == Phase::Prepared && entry.status.session != session
        });
        others.map(|(id, _)| *id).collect()
    }

    pub fn tell_leased(&self, command: impl Fn() -> Command) {
        for entry in self.inside.lock().attempts.values() {
            let phase = entry.status.phase;
            if entry.status.stop_on_lapse && (Phase::Starting..=Phase::Running).contains(&phase) {
                // A task that is ending its attempt has no use for it.
                if entry.orders.capacity() > ORDERS_RESERVE {
                    let _ = entry.orders.try_send(command());
                }
            }
        }
    }

    /// How many claims there were, and on which of these GPUs strangers are to be looked for: those
    /// that no attempt holds, and shared ones on which some were found, so that others may have a
    /// share again once they have gone.
    pub fn to_look_at(&self, gpus: Vec<GpuId>) -> (u64, Vec<GpuId>) {
        let inside = self.inside.lock();
        let wanted = |gpu: &GpuId| {
            let mut holders = inside.attempts.values().filter(|e| e.status.holds(gpu)).peekable();
            let shared = inside.occupied.contains_key(gpu);
            holders.peek().is_none() || (shared && holders.all(|e| e.status.gpu_milli < WHOLE_GPU))
        };
        (inside.claims, gpus.into_iter().filter(wanted).collect())
    }

    /// What a look at such a GPU found. Dropped if GPUs were claimed since: the processes may
    /// belong to the new attempt.
    pub fn found_on(&self, gpu: &GpuId, pids: Option<Vec<u32>>, claims: u64) {
        let mut inside = self.inside.lock();
        if inside.claims == claims {
            let changed = match pids {
                Some(pids) => inside.occupied.insert(gpu.clone(), pids.clone()) != Some(pids),
                None => inside.occupied.remove(gpu).is_some(),
            };
            drop(inside);
            if changed {
                self.occupied_version.send_modify(|version| *version += 1);
            }
        }
    }

    /// Gives the GPUs back; what is on them keeps them from the next one.
    pub fn release(&self, attempt: AttemptId, occupied: Vec<Occupied>) {
        let mut inside = self.inside.lock();
        for Occupied { gpu, pids } in &occupied {
            inside.occupied.insert(gpu.clone(), pids.clone());
        }
        let entry = inside.attempts.get_mut(&attempt);
        let entry = entry.expect("an attempt stays in the book while its task runs");
        entry.status.phase = Phase::Released;
        entry.status.occupied.clone_from(&occupied);
        let changed = !occupied.is_empty();
        inside.tell(RunnerEvent::Released { attempt, occupied });
        drop(inside);
        if changed {
            self.occupied_version.send_modify(|version| *version += 1);
        }
    }

    pub fn occupied(&self) -> Vec<Occupied> {
        let inside = self.inside.lock();
        let all = inside.occupied.iter();
        all.map(|(gpu, pids)| Occupied { gpu: gpu.clone(), pids: pids.clone() }).collect()
    }

    pub fn occupied_changed(&self) -> watch::Receiver<u64> {
        self.occupied_version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{BootMillis, LeaseTerm};
    use tessera_model::JobId;

    const ID: AttemptId = AttemptId { job: JobId(1), number: 1 };

    #[test]
    fn a_connection_that_does_not_keep_up_ends() {
        let book = Book::default();
        let (_, mut events) = book.connect();
        for _ in 0..=EVENTS_MAX {
            book.tell(RunnerEvent::Started { attempt: ID });
        }
        for n in 0..EVENTS_MAX {
            assert!(events.try_recv().is_ok(), "event {n}");
        }
        assert_eq!(events.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        let (_, mut next) = book.connect();
        book.tell(RunnerEvent::Started { attempt: ID });
        assert!(next.try_recv().is_ok());
    }

    #[test]
    fn a_busy_attempt_takes_so_many_orders_and_deadlines_leave_room_for_others() {
        let book = Book::default();
        let status = Status { phase: Phase::Running, stop_on_lapse: true, ..Status::fresh() };
        let mut orders = book.enter(ID, status);
        let term = LeaseTerm { until: BootMillis(1), lease_ms: 1 };
        for _ in 0..2 * ORDERS_MAX {
            book.tell_leased(|| Command::Lease(term));
        }
        assert_eq!(orders.len(), ORDERS_MAX - ORDERS_RESERVE);
        for _ in 0..ORDERS_RESERVE {
            assert!(matches!(book.deliver(ID, Command::Forget), Delivered::ToItsTask));
        }
        assert!(matches!(book.deliver(ID, Command::Forget), Delivered::Full));
        assert!(orders.try_recv().is_ok());
        assert!(matches!(book.deliver(ID, Command::Forget), Delivered::ToItsTask));
    }
}
