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

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

use tessera_core::cluster::Cluster;
use tessera_core::decide::decide;
use tessera_core::due::{Limits, due};
use tessera_core::event::{Event, LeaveWhy, PromiseCause, Stamped};
use tessera_core::placement::Chosen;
use tessera_core::promises::Promise;
use tessera_core::snapshot::Snapshot;
use tessera_core::verify::verify;
use tessera_core::{Order, door, round};
use tessera_model::{
    AttemptId, BootId, Bytes, Cordon, DomainMark, Epoch, Fabric, Gpu, GpuCondition, GpuId, JobId,
    JobSpec, JobState, Millis, NodeId, NodeInventory, Placement, SessionId, TaskEnd, TeamId,
    TeamShare, Tier, Topology, UnixMillis, UserId, WaitReason,
};

use crate::constraints;
use crate::jobs_at_random;
use crate::rng::Rng;

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
}

#[derive(Debug, Clone)]
struct Shape {
    nodes: Vec<NodeInventory>,
    topology: Topology,
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

    // ---- the scheduler and its ideal nodes

    fn commit(&mut self, event: Event) {
        self.watch(&event, promise_of(&self.cluster, &event));
        let stamped = Stamped { at: self.at(), event };
        self.cluster.apply(&stamped);
        self.journal.push(stamped);
        self.obey();
    }

    /// Nodes do what they are told, at once.
    fn obey(&mut self) {
        let orders = std::mem::take(&mut self.cluster.outbox.orders);
        self.cluster.take_outbox();
        for (node, order) in orders {
            self.obey_one(&node, order);
        }
    }

    fn obey_one(&mut self, node: &NodeId, order: Order) {
        let up = self.cluster.nodes.get(node).filter(|n| n.state == tessera_model::NodeState::Up);
        let Some(session) = up.map(|n| n.session) else { return };
        let report = |world: &mut Self, report: door::Report| {
            let now = world.at();
            let events = door::report(&mut world.cluster, now, node, session, report);
            events.into_iter().for_each(|e| world.commit(e));
        };
        match order {
            Order::Prepare { lease, .. } => {
                let attempt = lease.attempt;
                report(self, door::Report::Prepared { attempt, master_port: 29_500 });
            }
            Order::Commit { attempt, .. } => {
                report(self, door::Report::Started { attempt });
                let running = self
                    .cluster
                    .jobs
                    .get(attempt.job)
                    .is_some_and(|j| j.state == JobState::Running);
                if running && !self.ends.contains_key(&attempt) {
                    let length = self.run_time(attempt);
                    self.ends.insert(attempt, self.now + length);
                }
            }
            Order::Stop { attempt, .. } => {
                let first_node = self
                    .cluster
                    .jobs
                    .attempts
                    .get(&attempt)
                    .map(|a| a.lease.places[0].node.clone());
                let left =
                    self.cluster.jobs.attempts.get(&attempt).is_some_and(|a| a.leave.is_some());
                if self.planted == Some(PlantedPlan::VictimWithoutItsGang)
                    && left
                    && first_node.as_ref() != Some(node)
                {
                    self.half_stopped.insert(attempt);
                    return;
                }
                self.stop_at(node, session, attempt);
            }
            Order::Signal { attempt, .. } => {
                // Most jobs save their work when they are asked to.
                if self.rng.chance(70) {
                    self.commit(Event::CheckpointReported { attempt });
                }
            }
            Order::Forget { .. } | Order::Grant { .. } => {}
        }
    }

    fn run_time(&mut self, attempt: AttemptId) -> u64 {
        let limit = self.cluster.jobs.get(attempt.job).and_then(|j| j.spec.time_limit);
        let most = limit.map_or(7_200_000, |l| l.0);
        match self.rng.below(10) {
            0 => most + 1_000,
            1 => most.min(1_000),
            _ => self.rng.between(1, most.max(1)),
        }
    }

    /// One node stops what it has of an attempt and gives it back.
    fn stop_at(&mut self, node: &NodeId, session: SessionId, attempt: AttemptId) {
        self.ends.remove(&attempt);
        let Some(a) = self.cluster.jobs.attempts.get(&attempt).filter(|a| a.holds(node)) else {
            return;
        };
        let (place, _) = a.place(node).expect("it holds something there");
        let ranks: Vec<u32> = a.ranks_at(place).filter(|r| !a.ended.contains_key(r)).collect();
        let started = a.committed;
        let now = self.at();
        let mut reports: Vec<door::Report> = Vec::new();
        for rank in ranks.into_iter().filter(|_| started) {
            let end = TaskEnd::Signaled { signal: 15, oom: false };
            reports.push(door::Report::TaskEnded { attempt, rank, end });
        }
        reports.push(door::Report::Released { attempt, occupied: BTreeMap::new() });
        for report in reports {
            let events = door::report(&mut self.cluster, now, node, session, report);
            events.into_iter().for_each(|e| self.commit(e));
        }
    }

    /// All ranks of an attempt end by themselves, and its nodes give back what they held.
    fn end(&mut self, attempt: AttemptId, end: TaskEnd) {
        let Some(a) = self.cluster.jobs.attempts.get(&attempt) else { return };
        let places: Vec<(NodeId, Vec<u32>)> = a
            .lease
            .places
            .iter()
            .enumerate()
            .map(|(i, p)| (p.node.clone(), a.ranks_at(i).collect()))
            .collect();
        for (node, ranks) in &places {
            let up =
                self.cluster.nodes.get(node).filter(|n| n.state == tessera_model::NodeState::Up);
            let Some(session) = up.map(|n| n.session) else { continue };
            let now = self.at();
            for rank in ranks {
                let report = door::Report::TaskEnded { attempt, rank: *rank, end: end.clone() };
                let events = door::report(&mut self.cluster, now, node, session, report);
                events.into_iter().for_each(|e| self.commit(e));
            }
        }
        for (node, _) in places {
            let up =
                self.cluster.nodes.get(&node).filter(|n| n.state == tessera_model::NodeState::Up);
            let Some(session) = up.map(|n| n.session) else { continue };
            let now = self.at();
            let report = door::Report::Released { attempt, occupied: BTreeMap::new() };
            let events = door::report(&mut self.cluster, now, &node, session, report);
            events.into_iter().for_each(|e| self.commit(e));
        }
    }

    /// The scheduler plans once, as the writer has it do after each batch.
    fn round(&mut self) {
        let now = self.at();
        match self.planted {
            Some(PlantedPlan::ConstraintsIgnored) => return self.round_without_constraints(),
            Some(PlantedPlan::TiesByHashOrder) => return self.round_with_loose_ties(),
            Some(PlantedPlan::VictimWithoutItsGang) | None => {}
        }
        let mut cluster = std::mem::take(&mut self.cluster);
        let mut committed: Vec<(Event, Option<Promise>)> = Vec::new();
        let journal = &mut self.journal;
        let outcome =
            round::round(&mut cluster, now, &mut |cluster: &mut Cluster, event: Event| {
                let promised = promise_of(cluster, &event);
                let stamped = Stamped { at: now, event };
                cluster.apply(&stamped);
                committed.push((stamped.event.clone(), promised));
                journal.push(stamped);
                Ok::<(), Infallible>(())
            });
        self.cluster = cluster;
        match outcome {
            Ok(round) => {
                self.waits = round.wait;
                self.wake = round.wake;
                for violation in round.refused {
                    self.break_promise(format!("the verifier refused a placement: {violation}"));
                }
            }
            Err(never) => match never {},
        }
        // Promises are said first, also those that move for whom others leave in the same round.
        let leaves = |e: &&(Event, Option<Promise>)| matches!(e.0, Event::LeaveAsked { .. });
        self.leaves += committed.iter().filter(leaves).count() as u64;
        for (event, promised) in &committed {
            self.watch(event, *promised);
        }
        self.obey();
    }

    /// As if no job had asked for anything, and with the verifier switched off.
    fn round_without_constraints(&mut self) {
        let mut snapshot = Snapshot::of(&self.cluster, self.at());
        for pending in &mut snapshot.queue {
            Arc::make_mut(&mut pending.spec).placement = Placement::default();
        }
        for start in decide(&snapshot).start {
            let (lease, certificate) =
                round::granted(&self.cluster, &snapshot, start.job, &start.placed);
            self.commit(Event::LeaseGranted { lease, certificate });
        }
    }

    /// A job of one node goes to any node that is as good, whichever a hash map names first.
    fn round_with_loose_ties(&mut self) {
        let now = self.at();
        let snapshot = Snapshot::of(&self.cluster, now);
        for mut start in decide(&snapshot).start {
            let usual = start.placed.places.clone();
            if let [only] = usual.as_slice() {
                let nodes: HashSet<u32> = (0..snapshot.space.len() as u32).collect();
                let other = nodes.into_iter().find(|node| {
                    start.placed.places = vec![Chosen { node: *node, gpus: only.gpus }];
                    let (lease, _) =
                        round::granted(&self.cluster, &snapshot, start.job, &start.placed);
                    verify(&self.cluster, &lease, now).is_ok()
                });
                if other.is_none() {
                    start.placed.places = usual;
                }
            }
            let (lease, certificate) =
                round::granted(&self.cluster, &snapshot, start.job, &start.placed);
            if verify(&self.cluster, &lease, now).is_ok() {
                self.commit(Event::LeaseGranted { lease, certificate });
            }
        }
    }

    // ---- what must hold

    /// From here on a promise may move later once, for each job.
    fn excuse_all(&mut self) {
        let promised = self.cluster.jobs.jobs.values().filter(|j| j.promise.is_some());
        let ids: Vec<JobId> = promised.map(|j| j.id).collect();
        self.excuses.extend(ids.into_iter().map(|id| (id, true)));
    }

    /// `promised`: what the job of a new promise had been promised before.
    fn watch(&mut self, event: &Event, promised: Option<Promise>) {
        match event {
            Event::LeaseGranted { lease, .. } => {
                self.starts += 1;
                if let Some(job) = self.cluster.jobs.get(lease.attempt.job) {
                    let map = tessera_core::topology::effective(
                        &self.cluster.topology,
                        self.cluster.nodes.values().map(|n| &n.inventory),
                    );
                    let spec = job.spec.clone();
                    for what in constraints::broken(&spec, lease, &map, &self.cluster) {
                        self.break_promise(format!("job {}: {what}", lease.attempt.job));
                    }
                }
            }
            Event::LeaveAsked { attempt, why, .. } => self.watch_leave(*attempt, why),
            Event::PromiseMade { job, at, cause, .. } => {
                self.watch_promise(*job, promised, *at, *cause);
            }
            Event::JobSubmitted { spec, .. } if spec.tier == Tier::Urgent => self.excuse_all(),
            _ => {}
        }
    }

    fn watch_leave(&mut self, attempt: AttemptId, why: &LeaveWhy) {
        let (by, victim) = (self.cluster.jobs.get(why.by()), self.cluster.jobs.get(attempt.job));
        let (Some(by), Some(victim)) = (by, victim) else { return };
        let (high, low) = (by.spec.tier, victim.spec.tier);
        if !victim.spec.requeue {
            let text = format!("job {} may not be stopped, and was asked to leave", victim.id);
            self.break_promise(text);
        } else if matches!(why, LeaveWhy::Preempted { .. }) && high >= low {
            let text =
                format!("job {} ({low:?}) had to leave for job {} ({high:?})", victim.id, by.id);
            self.break_promise(text);
        }
    }

    fn watch_promise(
        &mut self,
        id: JobId,
        before: Option<Promise>,
        at: Option<UnixMillis>,
        cause: PromiseCause,
    ) {
        let excused = self.excuses.remove(&id).unwrap_or(false);
        let (Some(at), Some(before)) = (at, before) else { return };
        if at > before.latest && !excused && self.leaves == 0 {
            let text = format!(
                "job {id} was promised {} and now {at} ({cause:?}), though nothing was lost",
                before.latest
            );
            self.break_promise(text);
        }
    }

    /// Conservation, after every step.
    fn check(&mut self) {
        for text in self.conservation() {
            self.break_promise(text);
        }
        let stopped: Vec<AttemptId> = self.half_stopped.iter().copied().collect();
        for attempt in stopped {
            let Some(a) = self.cluster.jobs.attempts.get(&attempt) else { continue };
            let still = a.lease.places.iter().filter(|p| a.holds(&p.node)).count();
            if still > 0 && !a.released.is_empty() {
                self.break_promise(format!(
                    "attempt {attempt} left {} of its nodes and is still on {still}",
                    a.released.len()
                ));
            }
        }
    }

    fn conservation(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut held: BTreeMap<&GpuId, u32> = BTreeMap::new();
        let mut cpus: BTreeMap<&NodeId, (u32, u64)> = BTreeMap::new();
        for attempt in self.cluster.jobs.attempts.values() {
            for place in attempt.lease.places.iter().filter(|p| attempt.holds(&p.node)) {
                for gpu in &place.gpus {
                    *held.entry(gpu).or_default() += place.gpu_milli;
                }
                let sum = cpus.entry(&place.node).or_default();
                sum.0 += place.cpus;
                sum.1 += place.memory.0;
            }
        }
        for (gpu, milli) in &held {
            if *milli > tessera_model::WHOLE_GPU {
                wrong.push(format!("{milli} thousandths of {gpu} are held"));
            }
        }
        for (id, node) in &self.cluster.nodes {
            let (want_cpus, want_memory) = cpus.get(id).copied().unwrap_or_default();
            if (node.cpus_held, node.memory_held.0) != (want_cpus, want_memory) {
                wrong
                    .push(format!("{id} counts other CPUs or memory as held than its leases hold"));
            }
            if node.cpus_held > node.inventory.cpus {
                wrong.push(format!("{id} has given out more CPUs than it has"));
            }
            for gpu in &node.inventory.gpus {
                if node.held_milli(&gpu.id) != held.get(&gpu.id).copied().unwrap_or(0) {
                    wrong.push(format!("{} counts as held what no lease holds", gpu.id));
                }
            }
        }
        wrong.extend(self.cluster.space_differs());
        wrong
    }

    fn check_that_nobody_waits_for_nothing(&mut self) {
        let waiting: Vec<(JobId, String)> = self
            .cluster
            .jobs
            .jobs
            .values()
            .filter(|j| j.state == JobState::Pending)
            .filter(|j| constraints::could_start_alone(&j.spec, &self.cluster))
            .map(|j| {
                let why = self.waits.get(&j.id).cloned();
                let why = why.or_else(|| tessera_core::queue::gate(&self.cluster, j));
                (j.id, why.map_or("has no reason".to_owned(), |why| why.to_string()))
            })
            .collect();
        for (job, why) in waiting {
            self.break_promise(format!("job {job} still waits on an empty cluster: it {why}"));
        }
    }

    fn check_that_the_journal_says_it_all(&mut self) {
        let mut again = Cluster::default();
        for stamped in &self.journal {
            again.apply(stamped);
            again.take_outbox();
        }
        let strip = |cluster: &Cluster| {
            let mut cluster = cluster.clone();
            cluster.take_outbox();
            for attempt in cluster.jobs.attempts.values_mut() {
                attempt.prepared.clear();
                attempt.started.clear();
            }
            cluster.nodes.values_mut().for_each(|n| n.last_seen = UnixMillis(0));
            cluster
        };
        if strip(&again) != strip(&self.cluster) {
            self.break_promise("the journal does not give the state there was".to_owned());
        }
    }
}

fn promise_of(cluster: &Cluster, event: &Event) -> Option<Promise> {
    let Event::PromiseMade { job, .. } = event else { return None };
    cluster.jobs.get(*job)?.promise
}

impl Shape {
    fn draw(rng: &mut Rng) -> Self {
        let (blocks, leaves) = (rng.between(1, 3), rng.between(1, 3));
        let (per_leaf, gpus) = (rng.between(1, 4), *rng.pick(&[1, 2, 4, 8, 8]));
        let mixed = rng.chance(30);
        let nvl = rng.chance(30);
        let (mut nodes, mut paths, mut rows) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for block in 0..blocks {
            for leaf in 0..leaves {
                for _ in 0..per_leaf {
                    let i = nodes.len();
                    let id = NodeId::parse(&format!("n{i:02}")).expect("a plain word");
                    let model = match mixed && rng.chance(40) {
                        true => "NVIDIA A100-SXM4-80GB",
                        false => "NVIDIA H100 80GB HBM3",
                    };
                    let domain = nvl.then(|| format!("4d3c-{block}{leaf}.{}", i / 2 % 2));
                    nodes.push(node(&id, gpus, model, domain.as_deref()));
                    if rng.below(12) > 0 {
                        let path = vec![format!("b{block}"), format!("b{block}l{leaf}")];
                        paths.insert(id.clone(), path);
                    }
                    rows.insert(id, vec![format!("row{}", i % 2)]);
                }
            }
        }
        let mut topology = Topology::net(vec!["block".to_owned(), "leaf".to_owned()], paths);
        if rng.chance(30) {
            topology.fabrics.push(Fabric {
                name: "power".to_owned(),
                levels: vec!["row".to_owned()],
                nodes: rows,
                ..Fabric::default()
            });
        }
        Self { nodes, topology }
    }
}

fn node(id: &NodeId, gpus: u64, model: &str, domain: Option<&str>) -> NodeInventory {
    let gpu = |i: u64| Gpu {
        id: GpuId::parse(&format!("GPU-{id}-{i}")).expect("a plain word"),
        index: i as u32,
        model: model.to_owned(),
        memory: Bytes::gib(80),
        pci_bus_id: format!("0000:{i:02x}:00.0"),
        numa: Some((i / 4) as u32),
        nvlink_group: Some(0),
        nvlink_domain: domain.map(str::to_owned),
        nic: None,
        rail: Some(i as u32),
        mig: None,
    };
    NodeInventory {
        node: id.clone(),
        boot: BootId::parse(&format!("boot-{id}-0")).expect("a plain word"),
        agent_version: "0.1.0".to_owned(),
        address: format!("{id}.example"),
        cpus: 32,
        memory: Bytes::gib(256),
        driver_version: Some("580.95".to_owned()),
        gpus: (0..gpus).map(gpu).collect(),
        nics: Vec::new(),
        labels: BTreeMap::from([("zone".to_owned(), if gpus > 4 { "a" } else { "b" }.to_owned())]),
        neighbours: Vec::new(),
    }
}

fn team(name: &str) -> TeamId {
    TeamId::parse(name).expect("a plain word is a team")
}

fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a plain word is a user")
}
