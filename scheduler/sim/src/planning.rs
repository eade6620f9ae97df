//! A world in which nodes do what they are told at once, so that it is all about planning: what is
//! placed where, who has to leave, what was promised.
//!
//! In: a seed. It draws a cluster's shape (blocks, leaves, NVLink domains over nodes, power rows,
//! kinds of nodes), jobs of every shape and constraint, and what happens: jobs end, are cancelled,
//! held, changed; nodes are lost, cordoned, moved to another leaf; GPUs fail; operators reserve.
//! After every step it checks that nothing is given out twice, that what is kept incrementally is
//! what would be made from nothing, that every lease keeps its job's constraints by an account of
//! its own ([`crate::constraints`]), that nobody had to leave for a lower tier, that whoever leaves
//! leaves whole, and that no promise was moved later without a cause. The same seed gives the same
//! journal.

mod checks; // what must hold
mod ideal; // rounds, and nodes that obey at once
mod shape; // the cluster drawn

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_core::cluster::Cluster;
use tessera_core::due::{Limits, due};
use tessera_core::event::{Event, Stamped};
use tessera_model::{
    AttemptId, BootId, Cordon, DomainMark, Epoch, GpuCondition, JobId, JobSpec, JobState, Millis,
    NodeId, SessionId, TaskEnd, TeamId, TeamShare, UnixMillis, UserId, WaitReason,
};

use crate::jobs_at_random;
use crate::rng::Rng;

use shape::Shape;

/// The virtual clock begins here, 2026-01-01T00:00:00Z.
const BEGINNING: i64 = 1_767_225_600_000;

/// A rule that a planted bug leaves out, to see that its absence is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedPlan {
    /// Jobs are placed as if they had asked for nothing, and nobody checks.
    ConstraintsIgnored,
    /// Of a job that has to leave, only the first node is told.
    VictimWithoutItsGang,
    /// The order of nodes, and with it every tie, depends on the run.
    TiesByHashOrder,
}

pub struct Planning {
    seed: u64,
    rng: Rng,
    pub cluster: Cluster,
    pub journal: Vec<Stamped>,
    now: u64,
    planted: Option<PlantedPlan>,
    /// How long each running attempt still has.
    ends: BTreeMap<AttemptId, u64>,
    /// Attempts that were told to stop on only some of their nodes.
    half_stopped: BTreeSet<AttemptId>,
    /// Events since the last promise of each job that may move it.
    excuses: BTreeMap<JobId, bool>,
    broken: Vec<String>,
    /// Why jobs wait, as the last round has it.
    waits: BTreeMap<JobId, WaitReason>,
    /// When the last round wants to be repeated though nothing happens.
    wake: Option<UnixMillis>,
    shape: Shape,
    pub steps: u64,
    pub starts: u64,
    pub leaves: u64,
    /// Somebody was asked to leave in the round at hand: promises of lower tiers may move for it.
    somebody_leaves: bool,
}

impl Planning {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, None)
    }

    pub fn with(seed: u64, planted: Option<PlantedPlan>) -> Self {
        let mut rng = Rng::new(seed ^ 0x7E55_E4A0);
        let shape = Shape::draw(&mut rng);
        let mut world = Self {
            seed,
            rng,
            cluster: Cluster::default(),
            journal: Vec::new(),
            now: 0,
            planted,
            ends: BTreeMap::new(),
            half_stopped: BTreeSet::new(),
            excuses: BTreeMap::new(),
            broken: Vec::new(),
            waits: BTreeMap::new(),
            wake: None,
            shape,
            steps: 0,
            starts: 0,
            leaves: 0,
            somebody_leaves: false,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.commit(Event::EpochBegan { epoch: Epoch(1) });
        for (name, weight) in [("nlp", 100), ("vision", 50), ("audio", 100)] {
            let (team, by) = (team(name), user("root"));
            self.commit(Event::TeamCreated {
                team: team.clone(),
                description: String::new(),
                by: by.clone(),
            });
            let share = TeamShare { weight, ..TeamShare::default() };
            self.commit(Event::TeamShared { team, share, by });
        }
        if self.rng.chance(80) {
            let topology = self.shape.topology.clone();
            self.commit(Event::TopologyLoaded { topology });
        }
        for i in 0..self.shape.nodes.len() {
            self.node_up(i);
        }
    }

    /// Plays so many steps, then lets everything heal and end.
    pub fn play(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
            if !self.broken.is_empty() {
                return;
            }
        }
        self.settle();
    }

    /// What was broken, one line each; empty when nothing was. It says how to repeat the run.
    pub fn broken_promises(&self) -> String {
        if self.broken.is_empty() {
            return String::new();
        }
        let seed = self.seed;
        format!(
            "{}\nrepeat with: TESSERA_SIM_FIRST={seed} TESSERA_SIM_SEEDS=1 cargo test -p tessera-sim planning",
            self.broken.join("\n")
        )
    }

    fn break_promise(&mut self, text: String) {
        self.broken.push(format!("at {} ms, step {}: {text}", self.now, self.steps));
    }

    fn at(&self) -> UnixMillis {
        UnixMillis(BEGINNING).plus(Millis(self.now))
    }

    // ---- what happens

    fn step(&mut self) {
        self.steps += 1;
        match self.rng.below(100) {
            0..=39 => self.submit(),
            40..=64 => self.pass_time(),
            65..=69 => self.cancel(),
            70..=73 => self.hold_or_release(),
            74..=77 => self.change_a_job(),
            78..=81 => self.checkpoint(),
            82..=85 => self.gpu_trouble(),
            86..=89 => self.cordon_or_not(),
            90..=92 => self.lose_or_return_a_node(),
            93..=94 => self.move_a_node(),
            95..=96 => self.reserve(),
            97 => self.mark_a_domain(),
            _ => self.share_out(),
        }
        self.round();
        self.check();
    }

    fn submit(&mut self) {
        let id = JobId(self.cluster.next_job.max(1));
        let now = self.at();
        let spec = jobs_at_random::draw(&mut self.rng, &self.cluster, now);
        if self.rng.chance(6) && spec.singleton {
            let indices: Vec<u32> = (0..self.rng.between(2, 6) as u32).collect();
            let throttle = self.rng.below(3) as u32;
            let spec = Arc::new(JobSpec { singleton: false, ..spec });
            self.commit(Event::ArraySubmitted { first: id, key: None, spec, indices, throttle });
            return;
        }
        self.commit(Event::JobSubmitted { job: id, key: None, spec: Arc::new(spec) });
    }

    fn pass_time(&mut self) {
        let length = match self.rng.below(4) {
            0 => self.rng.between(1, 1_000),
            1 | 2 => self.rng.between(1_000, 120_000),
            _ => self.rng.between(60_000, 3_600_000),
        };
        self.run_until(self.now + length);
    }

    /// Lets time go by, ending jobs and doing what is due on the way.
    fn run_until(&mut self, until: u64) {
        loop {
            let next = self.ends.values().copied().chain(self.deadlines()).min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            self.do_what_is_due();
            let over: Vec<AttemptId> =
                self.ends.iter().filter(|(_, end)| **end <= self.now).map(|(a, _)| *a).collect();
            for attempt in over {
                self.ends.remove(&attempt);
                let code = i32::from(self.rng.chance(10));
                self.end(attempt, TaskEnd::Exited { code });
            }
            self.round();
            self.check();
            if !self.broken.is_empty() {
                return;
            }
        }
        self.now = until;
        self.do_what_is_due();
    }

    /// When the scheduler wants to be asked again.
    fn deadlines(&self) -> Vec<u64> {
        // What is overdue already was done, or hangs on a node that is away.
        let ms = |at: UnixMillis| u64::try_from(at.0 - BEGINNING).ok().filter(|at| *at > self.now);
        let attempts = || self.cluster.jobs.attempts.values();
        let leaves = attempts().filter_map(|a| ms(a.leave.as_ref()?.deadline));
        let limits = attempts().filter_map(|a| ms(a.deadline()?));
        let holds = self.cluster.holds.values().filter_map(|h| ms(h.until));
        let windows = self.cluster.reservations.values();
        let windows = windows.flat_map(|r| [r.from, r.until]).filter_map(ms);
        let asked = self.wake.into_iter().chain(self.cluster.jobs.next_wake()).filter_map(ms);
        leaves.chain(limits).chain(holds).chain(windows).chain(asked).collect()
    }

    fn do_what_is_due(&mut self) {
        let up: Vec<NodeId> = self.cluster.nodes.keys().cloned().collect();
        for node in up {
            // Heartbeats of nodes that are up come all the time.
            if let Some(node) = self.cluster.nodes.get_mut(&node)
                && node.state == tessera_model::NodeState::Up
            {
                node.last_seen = UnixMillis(BEGINNING).plus(Millis(self.now));
            }
        }
        for event in due(&self.cluster, self.at(), &Limits::default()) {
            self.commit(event);
        }
    }

    fn any_job(&mut self, wanted: impl Fn(JobState) -> bool) -> Option<JobId> {
        let jobs: Vec<JobId> =
            self.cluster.jobs.jobs.values().filter(|j| wanted(j.state)).map(|j| j.id).collect();
        (!jobs.is_empty()).then(|| *self.rng.pick(&jobs))
    }

    fn cancel(&mut self) {
        if let Some(job) = self.any_job(|s| !s.is_terminal()) {
            self.excuse_all();
            self.commit(Event::CancelRequested { job, by: user("ada") });
        }
    }

    fn hold_or_release(&mut self) {
        let Some(job) = self.any_job(|s| s == JobState::Pending) else { return };
        self.excuse_all();
        let held = self.cluster.jobs.get(job).is_some_and(|j| j.held);
        let by = user("ada");
        self.commit(if held { Event::JobReleased { job, by } } else { Event::JobHeld { job, by } });
    }

    fn change_a_job(&mut self) {
        let Some(job) = self.any_job(|s| s == JobState::Pending) else { return };
        self.excuse_all();
        let change = jobs_at_random::change(&mut self.rng);
        self.commit(Event::JobUpdated { job, change, by: user("ada") });
    }

    fn checkpoint(&mut self) {
        let running: Vec<AttemptId> = self.ends.keys().copied().collect();
        if !running.is_empty() {
            let attempt = *self.rng.pick(&running);
            self.commit(Event::CheckpointReported { attempt });
        }
    }

    fn gpu_trouble(&mut self) {
        let i = self.rng.below(self.shape.nodes.len() as u64) as usize;
        let node = self.shape.nodes[i].node.clone();
        if !self.cluster.nodes.contains_key(&node) || self.shape.nodes[i].gpus.is_empty() {
            return;
        }
        self.excuse_all();
        let mut conditions = BTreeMap::new();
        if self.rng.chance(60) {
            let gpu = self.rng.pick(&self.shape.nodes[i].gpus).id.clone();
            conditions.insert(gpu, GpuCondition::Lost);
        }
        self.commit(Event::ConditionsChanged { node, conditions });
    }

    fn cordon_or_not(&mut self) {
        let i = self.rng.below(self.shape.nodes.len() as u64) as usize;
        let id = self.shape.nodes[i].node.clone();
        let Some(node) = self.cluster.nodes.get(&id) else { return };
        let cordoned = node.cordon.is_some();
        self.excuse_all();
        self.commit(match cordoned {
            true => Event::NodeUncordoned { node: id, by: user("root") },
            false => {
                let cordon = Cordon { drain: false, by: "root".into(), reason: "a look".into() };
                Event::NodeCordoned { node: id, cordon }
            }
        });
    }

    /// A node goes silent and is lost with all it ran, or comes back from a reboot.
    fn lose_or_return_a_node(&mut self) {
        let i = self.rng.below(self.shape.nodes.len() as u64) as usize;
        let node = self.shape.nodes[i].node.clone();
        let Some(known) = self.cluster.nodes.get(&node) else { return };
        let (last_seen, state) = (known.last_seen, known.state);
        self.excuse_all();
        if state != tessera_model::NodeState::Up {
            self.reboot(i);
            return;
        }
        self.commit(Event::NodeSilent { node: node.clone(), last_seen });
        if self.rng.chance(60) {
            self.commit(Event::NodeLost { node, last_seen });
        }
    }

    fn reboot(&mut self, index: usize) {
        let node = self.shape.nodes[index].node.clone();
        let here: Vec<AttemptId> =
            self.cluster.jobs.attempts_on(&node).map(|a| a.lease.attempt).collect();
        let boot = format!("boot-{node}-{}", self.steps);
        self.shape.nodes[index].boot = BootId::parse(&boot).expect("a plain word");
        for attempt in here {
            self.commit(Event::PlaceWrittenOff {
                attempt,
                node: node.clone(),
                charged_until: self.at(),
                why: tessera_core::event::WriteOffWhy::Rebooted,
            });
        }
        self.node_up(index);
    }

    fn node_up(&mut self, index: usize) {
        let inventory = self.shape.nodes[index].clone();
        let session = SessionId(self.steps * 1_000 + index as u64 + 1);
        self.commit(Event::NodeUp { inventory, session, adopted: Vec::new() });
    }

    /// An operator re-cables a node: it stands in another leaf from now on.
    fn move_a_node(&mut self) {
        let Some(net) = self.shape.topology.fabrics.first_mut() else { return };
        let nodes: Vec<NodeId> = net.nodes.keys().cloned().collect();
        if nodes.is_empty() {
            return;
        }
        let (a, b) = (self.rng.pick(&nodes).clone(), self.rng.pick(&nodes).clone());
        let path = net.nodes[&b].clone();
        net.nodes.insert(a, path);
        let topology = self.shape.topology.clone();
        self.excuse_all();
        self.commit(Event::TopologyLoaded { topology });
    }

    fn reserve(&mut self) {
        let names: Vec<String> = self.cluster.reservations.keys().cloned().collect();
        self.excuse_all();
        if names.len() > 1 {
            let name = self.rng.pick(&names).clone();
            self.commit(Event::ReservationEnded { name, by: Some(user("root")) });
            return;
        }
        let now = self.at();
        let reservation = jobs_at_random::reservation(&mut self.rng, &self.cluster, now);
        if let Some(reservation) = reservation {
            self.commit(Event::ReservationMade { reservation });
        }
    }

    fn mark_a_domain(&mut self) {
        let domains: Vec<(String, String)> = self
            .cluster
            .nodes
            .keys()
            .flat_map(|n| self.cluster.topology.domains_of(n).collect::<Vec<_>>())
            .map(|(l, d)| (l.to_owned(), d.to_owned()))
            .collect();
        if domains.is_empty() {
            return;
        }
        let (level, domain) = self.rng.pick(&domains).clone();
        let health = *self.rng.pick(&[0, 50, 100, 100]);
        let mark = DomainMark {
            level,
            domain,
            health,
            by: user("root"),
            reason: "links".into(),
            until: None,
        };
        self.excuse_all();
        self.commit(Event::DomainMarked { mark });
    }

    fn share_out(&mut self) {
        let name = *self.rng.pick(&["nlp", "vision", "audio"]);
        let share = jobs_at_random::share(&mut self.rng, &self.cluster);
        self.excuse_all();
        self.commit(Event::TeamShared { team: team(name), share, by: user("root") });
    }

    /// No node is sick or away any more, nothing is held or reserved, nobody submits: every job
    /// that can ever start does, and ends.
    fn settle(&mut self) {
        self.excuse_all();
        let names: Vec<String> = self.cluster.reservations.keys().cloned().collect();
        for name in names {
            self.commit(Event::ReservationEnded { name, by: None });
        }
        let marks: Vec<DomainMark> = self.cluster.marks.values().cloned().collect();
        for mark in marks {
            self.commit(Event::DomainMarked { mark: DomainMark { health: 100, ..mark } });
        }
        for name in ["nlp", "vision", "audio"] {
            let (team, share) = (team(name), TeamShare::default());
            self.commit(Event::TeamShared { team, share, by: user("root") });
        }
        for i in 0..self.shape.nodes.len() {
            let id = self.shape.nodes[i].node.clone();
            if self.cluster.nodes.get(&id).is_some_and(|n| n.state != tessera_model::NodeState::Up)
            {
                self.reboot(i);
            }
            self.commit(Event::NodeUncordoned { node: id.clone(), by: user("root") });
            self.commit(Event::ConditionsChanged { node: id, conditions: BTreeMap::new() });
        }
        let held: Vec<JobId> =
            self.cluster.jobs.jobs.values().filter(|j| j.held).map(|j| j.id).collect();
        for job in held {
            self.commit(Event::JobReleased { job, by: user("root") });
        }
        self.round();
        self.check();
        for _ in 0..400 {
            if !self.broken.is_empty() || self.cluster.jobs.queue_len() == 0 && self.ends.is_empty()
            {
                break;
            }
            self.run_until(self.now + 1_800_000);
            self.round();
        }
        if self.broken.is_empty() {
            self.check_that_nobody_waits_for_nothing();
            self.check_that_the_journal_says_it_all();
        }
    }
}

fn team(name: &str) -> TeamId {
    TeamId::parse(name).expect("a plain word is a team")
}

fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a plain word is a user")
}
