//! The world's clock: what happens next, and what follows.
//!
//! Everything that happens stands in one queue ordered by time, and by the order in which it was
//! planned within one millisecond; so a seed fixes the run.

use std::collections::{BTreeMap, BTreeSet};

use tessera_core::door::agents::{Hello, Report};
use tessera_core::due::Limits;
use tessera_core::event::Stamped;
use tessera_core::{Cluster, Order};
use tessera_model::{
    AttemptId, Epoch, JobId, JobSpec, Millis, NodeId, Refusal, RefusalKind, SessionId, UnixMillis,
};

use crate::chaos::{Customers, Fault};
use crate::faults::{Faults, Planted};
use crate::machine::{ConnId, Machine};
use crate::promises::{self, Promises};
use crate::rng::Rng;
use crate::writer::Scheduler;

/// The virtual clock begins here, 2026-01-01T00:00:00Z.
const BEGINNING: i64 = 1_767_225_600_000;

/// Shorter than in a real cluster, so that an hour sees many leases lapse. As there, `lost` is
/// longer than `lease`.
pub(crate) const LIMITS: Limits = Limits {
    silent: Millis::from_secs(10),
    lease: Millis::from_secs(60),
    lost: Millis::from_secs(66),
    launch: Millis::from_secs(30),
};

/// Something that happens at a certain time.
#[derive(Debug)]
pub(crate) enum Happening {
    /// An order arrives at a node; `conn` is `None` for one out of the past.
    Down {
        node: usize,
        conn: Option<ConnId>,
        epoch: Epoch,
        order: Order,
    },
    Up {
        node: usize,
        conn: ConnId,
        reign: u64,
        message: Message,
    },
    Dial {
        node: usize,
        life: u64,
    },
    Heartbeat {
        node: usize,
        life: u64,
        conn: ConnId,
    },
    PrepareDone {
        node: usize,
        life: u64,
        attempt: AttemptId,
    },
    ProcessEnds {
        node: usize,
        attempt: AttemptId,
        rank: u32,
        run: u64,
        by: EndsBy,
    },
    LeaseRunsOut {
        node: usize,
        attempt: AttemptId,
    },
    LookAtGpus {
        node: usize,
        life: u64,
        attempt: AttemptId,
    },
    AgentStarts {
        node: usize,
    },
    PowerOn {
        node: usize,
    },
    Beat {
        reign: u64,
    },
    SchedulerStarts,
    Fault(Fault),
    GpuBack {
        node: usize,
    },
    Uncordon {
        node: usize,
    },
    Customer,
    Retry {
        number: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    Hello(Box<Hello>),
    Report(Box<Report>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndsBy {
    Itself,
    Signal(i32),
}

/// A simulated cluster with its scheduler. See the crate's page for what it checks.
pub struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) planted: Option<Planted>,
    /// Faults have stopped.
    pub(crate) calm: bool,
    queue: BTreeMap<(u64, u64), Happening>,
    planned: u64,
    pub(crate) machines: Vec<Machine>,
    pub(crate) index: BTreeMap<NodeId, usize>,
    pub(crate) scheduler: Scheduler,
    pub(crate) customers: Customers,
    pub(crate) promises: Promises,
    pub(crate) conns: u64,
    pub(crate) lives: u64,
    pub(crate) runs: u64,
    /// Streams on which something was lost.
    torn: BTreeSet<ConnId>,
}

impl World {
    /// A cluster of 2 to 6 nodes with customers who submit and cancel jobs of many shapes.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut world = Self::quiet(seed, faults);
        world.plan(1_000, Happening::Customer);
        world
    }

    /// The same without customers: jobs come from [`World::submit`] only.
    pub fn quiet(seed: u64, faults: Faults) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.between(2, 6) as usize;
        let mut machines = Vec::new();
        for i in 0..count {
            let model = *rng.pick(&["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"]);
            let gpus = *rng.pick(&[1, 2, 4, 4, 8]);
            machines.push(Machine::new(i, gpus, model, &mut rng));
        }
        let index = machines.iter().enumerate().map(|(i, m)| (m.id.clone(), i)).collect();
        let mut world = Self {
            now: 0,
            rng,
            faults,
            planted: None,
            calm: false,
            queue: BTreeMap::new(),
            planned: 0,
            machines,
            index,
            scheduler: Scheduler::default(),
            customers: Customers::default(),
            promises: Promises::default(),
            conns: 0,
            lives: 0,
            runs: 0,
            torn: BTreeSet::new(),
        };
        world.start_scheduler();
        world.found_cluster();
        for node in 0..count {
            let wait = world.rng.below(3_000);
            world.plan(wait, Happening::AgentStarts { node });
        }
        world.plan_first_faults();
        world
    }

    /// Leaves one rule out in every agent and shim, to see that it is noticed.
    pub fn plant(&mut self, bug: Planted) {
        self.planted = Some(bug);
    }

    /// Submits a job as a customer would. It is acknowledged once it is in the journal.
    pub fn submit(&mut self, spec: JobSpec, key: &str) -> Result<JobId, Refusal> {
        self.submit_as_customer(spec, key).unwrap_or_else(|| {
            Err(Refusal::new(
                RefusalKind::Unavailable,
                "",
                "the scheduler does not answer",
                "submit it again with the same key",
            ))
        })
    }

    /// Lets this much virtual time pass.
    pub fn run_for(&mut self, length: Millis) {
        let until = self.now.saturating_add(length.0);
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > until {
                break;
            }
            let happening = entry.remove();
            self.now = at;
            self.promises.steps += 1;
            self.happen(happening);
        }
        self.now = until;
    }

    /// Stops the faults, repairs what can be repaired, and runs on until nothing changes any more,
    /// for a virtual day at the most.
    pub fn settle(&mut self) {
        self.heal();
        for _ in 0..144 {
            let before = self.scheduler.journal.len();
            // Longer than any wait of an agent, an operator or a job of ours.
            self.run_for(Millis::from_secs(600));
            if self.scheduler.journal.len() == before {
                return;
            }
        }
        let text = "P8: a day after the last fault the journal still grows".to_owned();
        self.promises.broken(self.now, text);
    }

    /// What was broken so far, one line each; empty when nothing was. After [`World::settle`] it
    /// also says who still waits without a good reason.
    pub fn broken_promises(&self) -> String {
        promises::verdict(self)
    }

    /// Every event so far, in order.
    pub fn journal(&self) -> &[Stamped] {
        &self.scheduler.journal
    }

    /// The scheduler's state.
    pub fn cluster(&self) -> &Cluster {
        &self.scheduler.cluster
    }

    pub fn now(&self) -> UnixMillis {
        UnixMillis(BEGINNING).plus(Millis(self.now))
    }

    pub fn report(&self) -> promises::Report {
        promises::report(self)
    }

    pub(crate) fn plan(&mut self, wait: u64, happening: Happening) {
        self.plan_at(self.now + wait, happening);
    }

    pub(crate) fn plan_at(&mut self, at: u64, happening: Happening) {
        self.planned += 1;
        self.queue.insert((at.max(self.now), self.planned), happening);
    }

    pub(crate) fn is_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// A chance that only faults have.
    pub(crate) fn misfortune(&mut self, percent: u32) -> bool {
        !self.calm && percent > 0 && self.rng.chance(percent)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Down { node, conn, epoch, order } => {
                self.order_arrives(node, conn, epoch, order);
            }
            Happening::Up { node, conn, reign, message } => {
                self.message_arrives(node, conn, reign, message);
            }
            Happening::Dial { node, life } => self.dial(node, life),
            Happening::Heartbeat { node, life, conn } => self.heartbeat(node, life, conn),
            Happening::PrepareDone { node, life, attempt } => {
                self.prepare_done(node, life, attempt);
            }
            Happening::ProcessEnds { node, attempt, rank, run, by } => {
                self.process_ends(node, attempt, rank, run, by);
            }
            Happening::LeaseRunsOut { node, attempt } => self.lease_runs_out(node, attempt),
            Happening::LookAtGpus { node, life, attempt } => {
                self.look_at_gpus(node, life, attempt);
            }
            Happening::AgentStarts { node } => self.agent_starts(node),
            Happening::PowerOn { node } => self.power_on(node),
            Happening::Beat { reign } => self.beat(reign),
            Happening::SchedulerStarts => self.start_scheduler(),
            Happening::Fault(fault) => self.strike(fault),
            Happening::GpuBack { node } => self.gpu_back(node),
            Happening::Uncordon { node } => self.uncordon(node),
            Happening::Customer => self.customer(),
            Happening::Retry { number } => self.retry(number),
        }
    }

    // ---- the network

    /// How long a message takes.
    fn delay(&mut self) -> u64 {
        let usual = self.rng.between(1, 40);
        if self.misfortune(self.faults.slow_percent) {
            usual + self.rng.below(12_000)
        } else {
            usual
        }
    }

    pub(crate) fn send_up(&mut self, node: usize, message: Message) {
        let Some(conn) = self.machines[node].agent.as_ref().and_then(|a| a.conn) else { return };
        let reign = self.scheduler.reign;
        let at = self.now + self.delay();
        let link = &mut self.machines[node].link;
        link.up_last = link.up_last.max(at);
        let at = link.up_last;
        if matches!(message, Message::Report(_)) && self.misfortune(self.faults.twice_percent) {
            let later = at + self.rng.below(20_000);
            let message = message.clone();
            self.plan_at(later, Happening::Up { node, conn, reign, message });
        }
        self.plan_at(at, Happening::Up { node, conn, reign, message });
    }

    pub(crate) fn send_down(&mut self, node: usize, conn: ConnId, order: Order) {
        let epoch = self.scheduler.cluster.epoch;
        let sent = &mut self.machines[node].sent;
        if !matches!(order, Order::Grant { .. }) {
            sent.push_back((epoch, order.clone()));
            if sent.len() > 12 {
                sent.pop_front();
            }
        }
        let at = self.now + self.delay();
        let link = &mut self.machines[node].link;
        link.down_last = link.down_last.max(at);
        let (at, conn) = (link.down_last, Some(conn));
        if self.misfortune(self.faults.twice_percent) {
            let later = at + self.rng.below(20_000);
            let order = order.clone();
            self.plan_at(later, Happening::Down { node, conn, epoch, order });
        }
        self.plan_at(at, Happening::Down { node, conn, epoch, order });
    }

    fn message_arrives(&mut self, node: usize, conn: ConnId, reign: u64, message: Message) {
        let cut = self.machines[node].link.up_cut_until;
        if cut > self.now {
            // The kernel sends it again once the way is free, also for an agent that is dead by then.
            self.plan_at(cut + 1, Happening::Up { node, conn, reign, message });
            return;
        }
        if !self.scheduler.up || self.scheduler.reign != reign {
            return;
        }
        // On a stream that its agent has closed, what is under way may arrive or not; but nothing
        // arrives behind a piece that did not.
        // What a kernel had not sent goes down with its machine.
        let boot = &self.machines[node].inventory.boot;
        if matches!(&message, Message::Hello(hello) if hello.inventory.boot != *boot) {
            return;
        }
        let closed = self.machines[node].agent.as_ref().is_none_or(|a| a.conn != Some(conn));
        if closed && self.rng.chance(30) {
            self.torn.insert(conn);
        }
        if self.torn.contains(&conn) {
            return;
        }
        self.scheduler_hears(node, conn, message);
    }

    fn order_arrives(&mut self, node: usize, conn: Option<ConnId>, epoch: Epoch, order: Order) {
        let machine = &self.machines[node];
        if conn.is_some() && machine.link.down_cut_until > self.now {
            let at = machine.link.down_cut_until + 1;
            self.plan_at(at, Happening::Down { node, conn, epoch, order });
            return;
        }
        let Some(agent) = &machine.agent else { return };
        if conn.is_some() && agent.conn != conn {
            return;
        }
        self.agent_obeys(node, epoch, order);
    }

    /// Sessions of a node grow with its clock.
    pub(crate) fn draw_session(&mut self) -> SessionId {
        SessionId((self.now << 20) + self.rng.between(1, 1 << 19))
    }
}
