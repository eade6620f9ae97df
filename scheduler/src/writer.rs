//! The one writer: a thread that owns the cluster, its journal, and the order of all changes.
//!
//! In: requests of people, reports of agents, and the clock. Each batch is one transaction: events
//! are journalled and applied, a decision is made, and only after COMMIT do replies and orders go
//! out. What the store could not take did not happen: the batch is refused whole and the state is
//! read again from the journal.
//!
//! Bounds: the inbox holds [`INBOX_MAX`] messages; when it is full a request is refused with "try
//! again", and an agent is cut off, whose next hello makes up for what was lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tessera_core::decide::{self, Decision};
use tessera_core::door::{self, Hello, Report};
use tessera_core::due::{self, Limits};
use tessera_core::round::round;
use tessera_core::{Cluster, Event, Order, Stamped, order};
use tessera_model::{
    Epoch, JobId, NodeId, NodeState, Refusal, RefusalKind, Revision, SessionId, UnixMillis,
    WaitReason,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::store::{Reader, SnapshotKeeper, Store, StoreError};

pub const INBOX_MAX: usize = 65_536;
/// Requests in one transaction at most.
const BATCH_MAX: usize = 512;
/// How often time itself is looked at.
const BEAT: Duration = Duration::from_millis(200);
/// How often a full disk is tried.
const TRY_DISK: Duration = Duration::from_secs(1);
/// A gap between two beats beyond which this process must have been stopped for a while.
const PAUSED: Duration = Duration::from_secs(5);
/// Waiting jobs are looked at again this often even when nothing has happened, since reservations
/// without a date depend on how long a job has waited.
const REVIEW: Duration = Duration::from_secs(5);

/// Sends to the writer thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: Sender<Message>,
    revision: watch::Receiver<Revision>,
    reader: Reader,
}

enum Message {
    Change(Change),
    Read(Look),
    Hello(Box<Hello>, mpsc::Sender<Order>, oneshot::Sender<Result<Epoch, Refusal>>),
    Report(NodeId, SessionId, Box<Report>),
    Stop(oneshot::Sender<()>),
}

/// A request: looks at the cluster and answers with events. Its reply waits for COMMIT.
type Change = Box<dyn FnOnce(&Cluster, UnixMillis) -> Staged + Send>;

/// Told whether the batch was committed.
type Reply = Box<dyn FnOnce(Result<(), Refusal>) + Send>;
type Look = Box<dyn FnOnce(&View<'_>) + Send>;

struct Staged {
    events: Vec<Event>,
    reply: Reply,
}

/// An agent that said hello in this batch, and the orders that follow from its hello alone.
struct Greeted {
    node: NodeId,
    agent: Agent,
    orders: Vec<Order>,
    reply: oneshot::Sender<Result<Epoch, Refusal>>,
}

/// What a reader sees: committed state, and the last decision's reasons.
pub struct View<'a> {
    pub cluster: &'a Cluster,
    pub now: UnixMillis,
    pub waits: &'a BTreeMap<JobId, WaitReason>,
    /// Placements the verifier has refused since the start; must be 0.
    pub violations: u64,
}

impl View<'_> {
    /// Why a job waits or what became of it, for its record.
    pub fn record(&self, job: &tessera_core::job_table::Job) -> tessera_model::JobRecord {
        let mut record = self.cluster.record(job);
        if job.state == tessera_model::JobState::Pending {
            // A round looks at the first so many of those whose gates are open.
            let deep = self.cluster.jobs.queue_len() > decide::DEPTH && !self.waits.is_empty();
            let ahead = u32::try_from(decide::DEPTH).unwrap_or(u32::MAX);
            let unknown =
                || if deep { WaitReason::NotReached { ahead } } else { WaitReason::Undecided };
            let gate = tessera_core::queue::gate(self.cluster, job);
            let wait = gate.or_else(|| self.waits.get(&job.id).cloned()).unwrap_or_else(unknown);
            record.reason = match job.outcome.as_str() {
                "" => wait.to_string(),
                before => format!("{wait} ({before})"),
            };
        }
        record
    }
}

impl Handle {
    /// Has the writer carry out a request. The answer comes only once it is durable.
    pub async fn change<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Cluster, UnixMillis) -> Result<(T, Vec<Event>), Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (tx, rx) = oneshot::channel();
        let change: Change = Box::new(move |cluster, now| {
            let (value, events) = match request(cluster, now) {
                Ok((value, events)) => (Ok(value), events),
                Err(refusal) => (Err(refusal), Vec::new()),
            };
            let reply = Box::new(move |committed: Result<(), Refusal>| {
                // A caller that has gone away needs no answer.
                let _ = tx.send(committed.and(value));
            });
            Staged { events, reply }
        });
        self.send(Message::Change(change))?;
        rx.await.map_err(|_| gone())?
    }

    /// Looks at committed state, between two batches.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (tx, rx) = oneshot::channel();
        self.send(Message::Read(Box::new(move |view| {
            let _ = tx.send(look(view));
        })))?;
        rx.await.map_err(|_| gone())
    }

    /// An agent's first word. From the answer on, orders for its node go to `orders`, beginning
    /// with all it should be told now.
    pub async fn hello(&self, hello: Hello, orders: mpsc::Sender<Order>) -> Result<Epoch, Refusal> {
        let (tx, rx) = oneshot::channel();
        self.send(Message::Hello(Box::new(hello), orders, tx))?;
        rx.await.map_err(|_| gone())?
    }

    /// What an agent reports. Refused only when the writer is overrun: the agent has to be cut off.
    pub fn report(&self, node: NodeId, session: SessionId, report: Report) -> Result<(), Refusal> {
        self.send(Message::Report(node, session, Box::new(report)))
    }

    /// Changes after each commit.
    pub fn watch(&self) -> watch::Receiver<Revision> {
        self.revision.clone()
    }

    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Finishes the batch at hand, keeps a snapshot, and ends the writer.
    pub async fn stop(&self) {
        let (tx, rx) = oneshot::channel();
        if self.send(Message::Stop(tx)).is_ok() {
            // An error says that it has ended already, which is what was asked for.
            let _ = rx.await;
        }
    }

    fn send(&self, message: Message) -> Result<(), Refusal> {
        self.inbox.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::new(
                RefusalKind::Unavailable,
                "",
                format!("the scheduler has {INBOX_MAX} requests to do already"),
                "try again in a moment; nothing was done",
            ),
            TrySendError::Disconnected(_) => gone(),
        })
    }
}

fn disk_full() -> Refusal {
    Refusal::new(
        RefusalKind::Exhausted,
        "",
        "the scheduler's disk is full",
        "nothing was done; free space on the scheduler's disk, it goes on by itself",
    )
}

fn gone() -> Refusal {
    let hint = "try again; if it was a submission, use the same idempotency key";
    Refusal::new(RefusalKind::Unavailable, "", "the scheduler is going down", hint)
}

/// Starts the writer on a store that was opened. A new epoch begins before this returns.
pub fn start(
    mut store: Store,
    limits: Limits,
) -> Result<(Handle, std::thread::JoinHandle<()>), StoreError> {
    let (inbox, messages) = bounded(INBOX_MAX);
    let (revision_tx, revision) = watch::channel(Revision::default());
    let reader = store.reader();
    let cluster = store.load()?;
    let clock = Clock::start(cluster.now);
    let now = clock.now(cluster.now);
    let mut writer = Writer {
        store,
        limits,
        clock,
        cluster: cluster.restored(now),
        agents: HashMap::new(),
        unheard: BTreeSet::new(),
        decision: Decision::default(),
        decide_at: Some(Instant::now()),
        violations: 0,
        revision: revision_tx,
        full: None,
        snapshot: SnapshotKeeper::default(),
    };
    writer.begin_reign()?;
    let thread = std::thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || writer.run(&messages))
        .map_err(StoreError::Thread)?;
    Ok((Handle { inbox, revision, reader }, thread))
}

struct Writer {
    store: Store,
    limits: Limits,
    clock: Clock,
    cluster: Cluster,
    agents: HashMap<NodeId, Agent>,
    /// Nodes that were up when the last reign ended, of which this one has not heard yet. They may
    /// be dead by now, so nothing is decided until each has said hello or is known to be silent.
    unheard: BTreeSet<NodeId>,
    decision: Decision,
    /// When to decide even though nothing has happened.
    decide_at: Option<Instant>,
    violations: u64,
    revision: watch::Sender<Revision>,
    /// Since the disk is full: when it was last tried. Heartbeats are answered, so leases go on;
    /// all else is refused.
    full: Option<Instant>,
    /// Where the last snapshot stands, and whether one is being written.
    snapshot: SnapshotKeeper,
}

/// Journals an event, then believes it.
fn record(
    store: &mut Store,
    clock: &Clock,
    cluster: &mut Cluster,
    batch: &mut Batch,
    event: Event,
) -> Result<(), StoreError> {
    if !batch.open {
        store.begin()?;
        batch.open = true;
    }
    let stamped = Stamped { at: clock.now(cluster.now), event };
    store.append(Revision(cluster.revision.0 + 1), &stamped)?;
    cluster.apply(&stamped);
    batch.events += 1;
    Ok(())
}

struct Agent {
    session: SessionId,
    orders: mpsc::Sender<Order>,
}

/// What waits for the end of a batch.
#[derive(Default)]
struct Batch {
    replies: Vec<Reply>,
    reads: Vec<Look>,
    greeted: Vec<Greeted>,
    stop: Option<oneshot::Sender<()>>,
    /// A transaction is open.
    open: bool,
    events: u32,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Message>) {
        let mut beat = Instant::now();
        loop {
            let first = match inbox.recv_timeout(BEAT.saturating_sub(beat.elapsed())) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut batch = Batch::default();
            let outcome = self.fill(first, inbox, &mut beat, &mut batch);
            let outcome = outcome.and_then(|()| self.finish(&mut batch));
            match outcome {
                Ok(()) => self.publish(&mut batch),
                Err(error) => self.give_up(error, &mut batch),
            }
            if let Some(stopped) = batch.stop {
                self.snapshot.keep_now(&self.store, &self.cluster);
                let _ = stopped.send(());
                break;
            }
        }
    }

    /// Takes in all that waits, up to a bound, and what time has brought about.
    fn fill(
        &mut self,
        first: Option<Message>,
        inbox: &Receiver<Message>,
        beat: &mut Instant,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        for message in first.into_iter().chain(inbox.try_iter().take(BATCH_MAX)) {
            self.take_in(message, batch)?;
        }
        if beat.elapsed() >= BEAT {
            let now = self.clock.now(self.cluster.now);
            let paused = self.clock.since_last_look();
            if paused >= PAUSED {
                tracing::warn!(paused_ms = paused.as_millis() as u64, "the scheduler stood still");
                self.cluster.listens_again(now);
            }
            *beat = Instant::now();
            if self.full.is_some_and(|tried| tried.elapsed() >= TRY_DISK) {
                self.try_disk(now);
            }
            if self.full.is_some() {
                return Ok(());
            }
            for event in due::due(&self.cluster, now, &self.limits) {
                self.record(event, batch)?;
            }
        }
        Ok(())
    }

    fn take_in(&mut self, message: Message, batch: &mut Batch) -> Result<(), StoreError> {
        let now = self.clock.now(self.cluster.now);
        if self.full.is_some() {
            self.take_in_while_full(message, now, batch);
            return Ok(());
        }
        match message {
            Message::Change(change) => {
                let staged = change(&self.cluster, now);
                batch.replies.push(staged.reply);
                self.record_all(staged.events, batch)
            }
            Message::Read(look) => {
                batch.reads.push(look);
                Ok(())
            }
            Message::Report(node, session, report) => {
                let events = door::report(&mut self.cluster, now, &node, session, *report);
                self.record_all(events, batch)
            }
            Message::Hello(hello, orders, reply) => {
                let (node, session) = (hello.inventory.node.clone(), hello.session);
                let greeting = door::hello(&self.cluster, now, &hello);
                if greeting.events.is_empty() {
                    let refusal = Refusal::new(
                        RefusalKind::Precondition,
                        "session",
                        format!("node {node} was retired, or has said hello in a newer session"),
                        "a retired node joins again with a token; else the agent that was started last goes on, end this one",
                    );
                    batch.replies.push(Box::new(move |committed| {
                        let _ = reply.send(Err(committed.err().unwrap_or(refusal)));
                    }));
                    return Ok(());
                }
                self.outlive(hello.epoch, batch)?;
                self.unheard.remove(&node);
                self.record_all(greeting.events, batch)?;
                for report in greeting.then {
                    let events = door::report(&mut self.cluster, now, &node, session, report);
                    self.record_all(events, batch)?;
                }
                let agent = Agent { session, orders };
                batch.greeted.push(Greeted { node, agent, orders: greeting.orders, reply });
                Ok(())
            }
            Message::Stop(reply) => {
                batch.stop = Some(reply);
                Ok(())
            }
        }
    }

    /// With a full disk only what needs no journal is done.
    fn take_in_while_full(&mut self, message: Message, now: UnixMillis, batch: &mut Batch) {
        match message {
            Message::Change(change) => {
                // What it would change is not taken in; its caller hears why.
                let staged = change(&self.cluster, now);
                if staged.events.is_empty() {
                    batch.replies.push(staged.reply);
                } else {
                    (staged.reply)(Err(disk_full()));
                }
            }
            Message::Read(look) => batch.reads.push(look),
            Message::Report(node, session, report) => {
                // Agents say all else again in the hello that follows the recovery. A silent node
                // stays so until its return can be written down.
                if matches!(*report, Report::Heartbeat { .. }) {
                    door::report(&mut self.cluster, now, &node, session, *report);
                }
            }
            Message::Hello(.., reply) => {
                // The agent may have gone away meanwhile.
                let _ = reply.send(Err(disk_full()));
            }
            Message::Stop(reply) => batch.stop = Some(reply),
        }
    }

    /// A node that has obeyed a later reign than ours says that our journal is an old copy. It
    /// obeys again only to a later one still.
    fn outlive(&mut self, seen: Epoch, batch: &mut Batch) -> Result<(), StoreError> {
        if seen <= self.cluster.epoch {
            return Ok(());
        }
        tracing::error!(
            ours = self.cluster.epoch.0,
            seen = seen.0,
            "a node has obeyed a later scheduler: this store is an old copy, jobs submitted since are unknown here and their numbers may be used again"
        );
        self.record(Event::EpochBegan { epoch: Epoch(seen.0 + 1) }, batch)?;
        // All agents have to hear the new number.
        self.agents.clear();
        Ok(())
    }

    fn record_all(&mut self, events: Vec<Event>, batch: &mut Batch) -> Result<(), StoreError> {
        events.into_iter().try_for_each(|event| self.record(event, batch))
    }

    /// Journals an event, then believes it.
    fn record(&mut self, event: Event, batch: &mut Batch) -> Result<(), StoreError> {
        record(&mut self.store, &self.clock, &mut self.cluster, batch, event)
    }

    /// Decides, writes what followed, commits.
    fn finish(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        let due = self.decide_at.is_some_and(|at| at <= Instant::now());
        if batch.events > 0 || due {
            self.decide(batch)?;
        }
        if batch.open {
            self.store.project(&self.cluster, &self.cluster.outbox)?;
            self.store.commit()?;
            batch.open = false;
        }
        Ok(())
    }

    /// Goes on once the disk takes a good piece of data again. Agents say hello anew, since what
    /// they have reported meanwhile was not taken in.
    fn try_disk(&mut self, now: UnixMillis) {
        self.full = Some(Instant::now());
        match self.store.try_disk() {
            Ok(()) => {
                tracing::info!("the disk has space again, going on");
                self.full = None;
                self.cluster.listens_again(now);
                self.cluster.epoch_at = now;
                self.agents.clear();
            }
            Err(StoreError::Full(_)) => {}
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the journal failed, stopping"
                );
                std::process::exit(2);
            }
        }
    }

    fn decide(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        self.decide_at = None;
        if self.full.is_some() {
            return Ok(());
        }
        let nodes = &self.cluster.nodes;
        self.unheard.retain(|n| nodes.get(n).is_some_and(|n| n.state == NodeState::Up));
        if !self.unheard.is_empty() {
            // The hello, or the silence, of the last of them is an event, which leads here again.
            return Ok(());
        }
        let now = self.clock.now(self.cluster.now);
        let (store, clock) = (&mut self.store, &self.clock);
        self.decision = round(&mut self.cluster, now, &mut |cluster, event| {
            record(store, clock, cluster, batch, event)
        })?;
        for violation in &self.decision.refused {
            self.violations += 1;
            tracing::error!(%violation, "a placement was refused by the verifier");
        }
        if self.cluster.jobs.queue_len() > 0 {
            let wake = self.decision.wake.map(|at| Duration::from_millis(at.since(now).0));
            self.decide_at = Some(Instant::now() + wake.map_or(REVIEW, |wake| wake.min(REVIEW)));
        }
        Ok(())
    }

    /// The batch is durable: answers and orders go out.
    fn publish(&mut self, batch: &mut Batch) {
        for reply in batch.replies.drain(..) {
            reply(Ok(()));
        }
        let outbox = self.cluster.take_outbox();
        for Greeted { node, agent, orders, reply } in batch.greeted.drain(..) {
            let due = order::outstanding(&self.cluster, &node);
            let all_taken =
                orders.into_iter().chain(due).all(|order| agent.orders.try_send(order).is_ok());
            if all_taken {
                self.agents.insert(node, agent);
            }
            let _ = reply.send(Ok(self.cluster.epoch));
        }
        for (node, order) in outbox.orders {
            self.tell(&node, order);
        }
        for node in outbox.hang_up {
            self.agents.remove(&node);
        }
        if batch.events > 0 {
            self.revision.send_replace(self.cluster.revision);
            self.snapshot.keep_sometimes(&self.store, &self.cluster);
        }
        let view = View {
            cluster: &self.cluster,
            now: self.clock.now(self.cluster.now),
            waits: &self.decision.wait,
            violations: self.violations,
        };
        for look in batch.reads.drain(..) {
            look(&view);
        }
    }

    /// An agent that does not take its orders is cut off; it comes back with a hello.
    fn tell(&mut self, node: &NodeId, order: Order) {
        let Some(agent) = self.agents.get(node) else { return };
        let current = self.cluster.nodes.get(node).is_some_and(|n| n.session == agent.session);
        if !current || agent.orders.try_send(order).is_err() {
            self.agents.remove(node);
        }
    }

    /// The store did not take the batch. A full disk passes: the batch is refused, the state read
    /// again, and all agents say hello again. Anything else ends the process, since what is on
    /// disk is no longer known.
    fn give_up(&mut self, error: StoreError, batch: &mut Batch) {
        self.store.rollback();
        if !matches!(error, StoreError::Full(_)) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the journal failed, stopping"
            );
            std::process::exit(2);
        }
        tracing::error!("the disk is full: nothing new is taken in until there is space");
        let refusal = disk_full();
        self.full = Some(Instant::now());
        for reply in batch.replies.drain(..) {
            reply(Err(refusal.clone()));
        }
        for greeted in batch.greeted.drain(..) {
            let _ = greeted.reply.send(Err(refusal.clone()));
        }
        batch.reads.clear();
        if let Err(error) = self.reload() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the journal cannot be read, stopping"
            );
            std::process::exit(2);
        }
    }

    fn reload(&mut self) -> Result<(), StoreError> {
        let cluster = self.store.load()?;
        let now = self.clock.now(cluster.now);
        self.cluster = cluster.restored(now);
        // Nobody could answer while the disk was full, so launches get their whole time again.
        self.cluster.epoch_at = now;
        self.decide_at = Some(Instant::now());
        Ok(())
    }

    fn begin_reign(&mut self) -> Result<(), StoreError> {
        let up = self.cluster.nodes.iter().filter(|(_, n)| n.state == NodeState::Up);
        self.unheard = up.map(|(id, _)| id.clone()).collect();
        let epoch = Epoch(self.cluster.epoch.0 + 1);
        let mut batch = Batch::default();
        self.record(Event::EpochBegan { epoch }, &mut batch)?;
        self.finish(&mut batch)?;
        self.publish(&mut batch);
        Ok(())
    }
}
