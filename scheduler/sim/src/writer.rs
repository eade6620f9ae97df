//! The scheduler: a single-threaded likeness of the writer around the real core.
//!
//! In: requests and reports. Out: the journal, and orders. Events are written down, then applied,
//! then their orders go out; a crash may fall between any two of these. After a crash the state is
//! made again from the journal alone, and compared with what it was.

use std::collections::BTreeMap;

use tessera_core::door;
use tessera_core::due::due;
use tessera_core::event::{Event, Stamped};
use tessera_core::order::outstanding;
use tessera_core::round::round;
use tessera_core::{Cluster, Order};
use tessera_model::usage::Interval;
use tessera_model::{Epoch, JobId, NodeId, SessionId, UnixMillis, WaitReason};

use crate::machine::ConnId;
use crate::world::{Happening, LIMITS, Message, World};

#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    pub up: bool,
    /// Counts its lives; what was sent to an earlier one is lost.
    pub reign: u64,
    pub journal: Vec<Stamped>,
    /// Closed usage intervals; written with the journal.
    pub closed: Vec<Interval>,
    pub cluster: Cluster,
    /// The newest stream of each node.
    pub conns: BTreeMap<NodeId, ConnId>,
    /// The session each stream began with.
    pub sessions: BTreeMap<ConnId, SessionId>,
    pub waits: BTreeMap<JobId, WaitReason>,
    /// It is killed at its next commit.
    pub doom: Option<Doom>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doom {
    BeforeCommit,
    /// Written, but nobody is answered and no order goes out.
    AfterCommit,
}

/// Whether a batch was written and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Answered,
    /// It was killed: the caller hears nothing, whether the events were written or not.
    Silence,
}

impl World {
    /// Takes in a batch: journal, apply, decide, send.
    pub(crate) fn take_in(&mut self, events: Vec<Event>) -> Taken {
        self.take_in_with(events, |_| ())
    }

    /// The same; `then` may commit more in the same batch, once the events are applied.
    fn take_in_with(&mut self, events: Vec<Event>, then: impl FnOnce(&mut Self)) -> Taken {
        if !events.is_empty() {
            if self.scheduler.doom == Some(Doom::BeforeCommit) {
                self.kill_scheduler();
                return Taken::Silence;
            }
            events.into_iter().for_each(|e| self.commit(e));
            then(self);
            self.decide();
            if self.scheduler.doom == Some(Doom::AfterCommit) {
                self.kill_scheduler();
                return Taken::Silence;
            }
        }
        self.send_orders();
        Taken::Answered
    }

    fn commit(&mut self, event: Event) {
        self.check_event(&event);
        let stamped = Stamped { at: self.now(), event };
        self.scheduler.cluster.apply(&stamped);
        self.scheduler.journal.push(stamped);
        let outbox = &mut self.scheduler.cluster.outbox;
        self.scheduler.closed.append(&mut outbox.closed);
        outbox.nodes.clear();
        let jobs = std::mem::take(&mut outbox.jobs);
        self.check_transitions(jobs);
    }

    /// A round: what follows from a decision, each event committed like any other.
    fn decide(&mut self) {
        let now = self.now();
        let mut cluster = std::mem::take(&mut self.scheduler.cluster);
        let outcome = round(&mut cluster, now, &mut |cluster, event| {
            std::mem::swap(cluster, &mut self.scheduler.cluster);
            self.commit(event);
            std::mem::swap(cluster, &mut self.scheduler.cluster);
            Ok::<(), std::convert::Infallible>(())
        });
        self.scheduler.cluster = cluster;
        let Ok(decision) = outcome;
        for violation in &decision.refused {
            self.promises.broken(self.now, violation.to_string());
        }
        self.scheduler.waits = decision.wait;
    }

    fn send_orders(&mut self) {
        for (node, order) in std::mem::take(&mut self.scheduler.cluster.outbox.orders) {
            self.send_order(&node, order);
        }
    }

    /// To a node without a stream nothing is sent: its next hello asks for all that is outstanding.
    fn send_order(&mut self, node: &NodeId, order: Order) {
        if let (Some(conn), Some(index)) = (self.scheduler.conns.get(node), self.index.get(node)) {
            self.send_down(*index, *conn, order);
        }
    }

    pub(crate) fn scheduler_hears(&mut self, index: usize, conn: ConnId, message: Message) {
        let now = self.now();
        let node = self.machines[index].id.clone();
        match message {
            Message::Hello(hello) => {
                let greeting = door::hello(&self.scheduler.cluster, now, &hello);
                if greeting.events.is_empty() {
                    // A session that is over: the stream is closed.
                    self.hang_up(index, conn);
                    return;
                }
                self.scheduler.sessions.insert(conn, hello.session);
                if let Some(before) = self.scheduler.conns.insert(node.clone(), conn)
                    && before != conn
                {
                    self.hang_up(index, before);
                }
                let taken = self.take_in_with(greeting.events, |world| {
                    for report in greeting.then {
                        let cluster = &mut world.scheduler.cluster;
                        let events = door::report(cluster, now, &node, hello.session, report);
                        events.into_iter().for_each(|e| world.commit(e));
                    }
                });
                if taken == Taken::Silence {
                    return;
                }
                let orders = outstanding(&self.scheduler.cluster, &node);
                for order in greeting.orders.into_iter().chain(orders) {
                    self.send_order(&node, order);
                }
            }
            Message::Report(report) => {
                let Some(session) = self.scheduler.sessions.get(&conn).copied() else { return };
                let cluster = &mut self.scheduler.cluster;
                let events = door::report(cluster, now, &node, session, *report);
                self.take_in(events);
            }
        }
    }

    /// Ends a stream from the scheduler's side; its agent sees that if it is still there.
    fn hang_up(&mut self, index: usize, conn: ConnId) {
        if self.machines[index].agent.as_ref().is_some_and(|a| a.conn == Some(conn)) {
            self.lose_connection(index);
        }
    }

    pub(crate) fn beat(&mut self, reign: u64) {
        if !self.scheduler.up || self.scheduler.reign != reign {
            return;
        }
        self.plan(1_000, Happening::Beat { reign });
        let events = due(&self.scheduler.cluster, self.now(), &LIMITS);
        if !events.is_empty() {
            self.take_in(events);
        } else if self.now % 5_000 < 1_000 && self.scheduler.cluster.jobs.queue_len() > 0 {
            // Waits between two tries end without an event.
            self.decide();
            self.send_orders();
        }
    }

    pub(crate) fn kill_scheduler(&mut self) {
        let scheduler = &mut self.scheduler;
        (scheduler.up, scheduler.doom) = (false, None);
        scheduler.reign += 1;
        scheduler.conns.clear();
        scheduler.sessions.clear();
        for node in 0..self.machines.len() {
            self.lose_connection(node);
        }
        self.promises.scheduler_crashes += 1;
        // One in ten is an outage longer than a lease.
        let outage = match self.rng.below(10) {
            0 => self.rng.between(60_000, 150_000),
            _ => self.rng.between(300, 15_000),
        };
        self.plan(outage, Happening::SchedulerStarts);
    }

    /// Starts from the journal alone.
    pub(crate) fn start_scheduler(&mut self) {
        if self.scheduler.up {
            return;
        }
        let (mut cluster, mut closed) = (Cluster::default(), Vec::new());
        for stamped in &self.scheduler.journal {
            cluster.apply(stamped);
            closed.append(&mut cluster.take_outbox().closed);
        }
        if durable(&cluster) != durable(&self.scheduler.cluster) {
            let text = "the journal does not give the state there was".to_owned();
            self.promises.broken(self.now, text);
        }
        if closed != self.scheduler.closed {
            let text = "the journal does not give the intervals there were".to_owned();
            self.promises.broken(self.now, text);
        }
        let epoch = Epoch(cluster.epoch.0 + 1);
        self.scheduler.cluster = cluster.restored(self.now());
        self.scheduler.up = true;
        let reign = self.scheduler.reign;
        self.commit(Event::EpochBegan { epoch });
        self.plan(1_000, Happening::Beat { reign });
        self.check_acknowledged();
    }
}

/// The part of the state that the journal has to give: not who is ready, nor when a heartbeat came.
fn durable(cluster: &Cluster) -> Cluster {
    let mut cluster = cluster.clone();
    cluster.take_outbox();
    for attempt in cluster.jobs.attempts.values_mut() {
        attempt.prepared.clear();
        attempt.started.clear();
    }
    cluster.nodes.values_mut().for_each(|n| n.last_seen = UnixMillis(0));
    cluster
}
