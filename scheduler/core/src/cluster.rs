//! The cluster: all state, and how each event changes it.
//!
//! [`Cluster::apply`] is deterministic: the same events give the same state. What the outside has
//! to do about an event is left in [`Outbox`]: orders for agents, closed usage intervals, and which
//! jobs and nodes changed. A broken promise of our own stops the scheduler here, before it is
//! believed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::topology::Topology;
use tessera_model::usage::{Interval, UsageClass};
use tessera_model::{
    AttemptId, Epoch, GpuId, JobId, JobState, Lease, Millis, NodeId, NodeInventory, NodeState,
    Principal, Revision, SessionId, TaskEnd, TeamId, UnixMillis, UserId,
};

use crate::event::{Event, Stamped, StopWhy, WriteOffWhy};
use crate::job_table::{Attempt, Job, JobTable, Phase};
use crate::ledger::book::PriceBook;
use crate::ledger::timeline::Timeline;
use crate::node_table::Node;
use crate::order::{Order, STOP_GRACE};

/// Starts that may fail one after another before the job is given up.
pub const FAILED_STARTS_MAX: u32 = 5;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Stamp of the last event.
    pub now: UnixMillis,
    /// Events applied so far.
    pub revision: Revision,
    pub epoch: Epoch,
    /// When this reign began: agents could not answer before.
    pub epoch_at: UnixMillis,
    pub topology: Topology,
    pub teams: BTreeMap<TeamId, Team>,
    pub tokens: BTreeMap<String, Token>,
    pub join_tokens: BTreeMap<String, JoinToken>,
    /// Nodes that were retired: their certificates are good for nothing until they join again.
    pub retired: BTreeSet<NodeId>,
    pub prices: PriceBook,
    pub nodes: BTreeMap<NodeId, Node>,
    pub jobs: JobTable,
    pub next_job: u64,
    pub timeline: Timeline,
    #[serde(skip)]
    pub outbox: Outbox,
}

/// What the outside has to do about the events applied since it was last emptied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outbox {
    pub orders: Vec<(NodeId, Order)>,
    pub closed: Vec<Interval>,
    pub jobs: BTreeSet<JobId>,
    pub nodes: BTreeSet<NodeId>,
    /// Nodes whose agent has to say hello again.
    pub hang_up: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256 of the secret, hex.
    pub hash: String,
    pub principal: Principal,
    pub created: UnixMillis,
    pub expires: Option<UnixMillis>,
    pub revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub hash: String,
    pub node: Option<NodeId>,
    pub expires: UnixMillis,
    pub used_by: Option<NodeId>,
}

impl Cluster {
    /// Makes what a snapshot leaves out. Heartbeats count from `now` on.
    pub fn restored(mut self, now: UnixMillis) -> Self {
        self.jobs.reindex();
        self.listens_again(now);
        self
    }

    /// Nobody listened until `now`: that no heartbeat was heard says nothing about the nodes.
    pub fn listens_again(&mut self, now: UnixMillis) {
        let up = self.nodes.values_mut().filter(|n| n.state == NodeState::Up);
        up.for_each(|n| n.last_seen = now);
    }

    pub fn take_outbox(&mut self) -> Outbox {
        std::mem::take(&mut self.outbox)
    }

    pub fn apply(&mut self, stamped: &Stamped) {
        assert!(stamped.at >= self.now, "the clock went back to {} from {}", stamped.at, self.now);
        self.now = stamped.at;
        self.revision.0 += 1;
        self.step(&stamped.event);
    }

    fn step(&mut self, event: &Event) {
        match event {
            Event::EpochBegan { epoch } => {
                assert!(*epoch > self.epoch, "epoch {epoch:?} after {:?}", self.epoch);
                self.epoch = *epoch;
                self.epoch_at = self.now;
            }
            Event::TopologyLoaded { topology } => {
                self.topology = topology.clone();
                self.outbox.nodes.extend(self.nodes.keys().cloned());
            }
            Event::TeamCreated { team, description, .. } => {
                self.teams.insert(team.clone(), Team { description: description.clone() });
            }
            Event::TokenIssued { id, hash, principal, expires, .. } => {
                let token = Token {
                    hash: hash.clone(),
                    principal: principal.clone(),
                    created: self.now,
                    expires: *expires,
                    revoked: false,
                };
                self.tokens.insert(id.clone(), token);
            }
            Event::TokenRevoked { id, .. } => {
                if let Some(token) = self.tokens.get_mut(id) {
                    token.revoked = true;
                }
            }
            Event::JoinTokenIssued { id, hash, node, expires, .. } => {
                // Used and expired ones say nothing any more.
                let now = self.now;
                self.join_tokens.retain(|_, t| t.expires > now && t.used_by.is_none());
                let (hash, node, expires) = (hash.clone(), node.clone(), *expires);
                let token = JoinToken { hash, node, expires, used_by: None };
                self.join_tokens.insert(id.clone(), token);
            }
            Event::JoinTokenUsed { id, node } => {
                if let Some(token) = self.join_tokens.get_mut(id) {
                    token.used_by = Some(node.clone());
                }
                self.retired.remove(node);
            }
            Event::PricesPublished { version, .. } => self.prices.publish(version.clone()),

            Event::NodeUp { inventory, session, adopted } => {
                self.node_up(inventory, *session, adopted);
            }
            Event::InventoryChanged { inventory } => self.inventory_changed(inventory),
            Event::ConditionsChanged { node, conditions } => self.with_node(node, |n| {
                n.conditions = conditions.clone();
                n.occupied.clear();
            }),
            Event::NodeSilent { node, last_seen } => self.with_node(node, |n| {
                n.state = NodeState::Silent;
                n.last_seen = *last_seen;
            }),
            Event::NodeHeard { node } => {
                let now = self.now;
                self.with_node(node, |n| {
                    n.state = NodeState::Up;
                    n.last_seen = now;
                });
            }
            Event::NodeLost { node, last_seen } => self.node_lost(node, *last_seen),
            Event::NodeCordoned { node, cordon } => {
                self.with_node(node, |n| n.cordon = Some(cordon.clone()));
            }
            Event::NodeUncordoned { node, .. } => self.with_node(node, |n| {
                n.cordon = None;
                n.occupied.clear();
            }),

            Event::NodeRetired { node, .. } => self.node_retired(node),

            Event::JobSubmitted { job, key, spec } => self.job_submitted(*job, key, spec),
            Event::CancelRequested { job, by } => self.cancel_requested(*job, by),
            Event::LeaseGranted { lease } => self.lease_granted(lease),
            Event::GangCommitted { attempt, master_addr, master_port } => {
                self.gang_committed(*attempt, master_addr, *master_port);
            }
            Event::AttemptRunning { attempt } => self.attempt_running(*attempt),
            Event::AttemptStopping { attempt, why } => self.stop_attempt(*attempt, why.clone()),
            Event::TaskEnded { attempt, rank, end } => self.task_ended(*attempt, *rank, end),
            Event::PlaceReleased { attempt, node, occupied } => {
                self.place_released(*attempt, node, occupied);
            }
            Event::PlaceWrittenOff { attempt, node, charged_until, why } => {
                self.place_written_off(*attempt, node, *charged_until, *why);
            }
        }
    }

    // ---- nodes

    fn node_up(&mut self, inventory: &NodeInventory, session: SessionId, adopted: &[AttemptId]) {
        let now = self.now;
        let id = inventory.node.clone();
        match self.nodes.get_mut(&id) {
            Some(node) => {
                if node.inventory.boot != inventory.boot {
                    node.occupied.clear();
                }
                node.session = session;
                node.state = NodeState::Up;
                node.last_seen = now;
            }
            None => {
                self.nodes.insert(id.clone(), Node::new(inventory.clone(), session, now));
            }
        }
        for attempt in adopted {
            if let Some(attempt) = self.jobs.attempts.get_mut(attempt) {
                let mut lease = Lease::clone(&attempt.lease);
                lease.places.iter_mut().filter(|p| p.node == id).for_each(|p| p.session = session);
                attempt.lease = Arc::new(lease);
            }
        }
        self.inventory_changed(inventory);
    }

    fn node_lost(&mut self, id: &NodeId, last_seen: UnixMillis) {
        let held = self.nodes.get(id).map(|n| n.held.keys().cloned().collect::<Vec<_>>());
        for gpu in held.into_iter().flatten() {
            let closed = &mut self.outbox.closed;
            self.timeline.unknown_since(&gpu, last_seen, self.now, closed);
        }
        self.with_node(id, |n| n.state = NodeState::Lost);
    }

    /// A node leaves. Nothing may be held there any more.
    fn node_retired(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.remove(id) else { return };
        assert!(node.held.is_empty(), "{id} was retired while jobs hold its GPUs");
        let gpus: Vec<GpuId> = self.timeline.at_node(id).cloned().collect();
        for gpu in gpus {
            self.timeline.retire(&gpu, self.now, &mut self.outbox.closed);
        }
        self.retired.insert(id.clone());
        self.outbox.nodes.insert(id.clone());
        self.outbox.hang_up.insert(id.clone());
        self.settle_duplicates();
    }

    /// Whose GPU a UUID is: the node that had it first, for as long as it lists or holds it.
    fn settle_duplicates(&mut self) {
        let doubted = self.nodes.values().filter(|n| !n.duplicate.is_empty());
        let ids: Vec<NodeId> = doubted.map(|n| n.id().clone()).collect();
        for id in ids {
            self.find_duplicates(&id);
            self.refresh_classes(&id);
        }
    }

    fn find_duplicates(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let other_home = |gpu: &GpuId| {
            let home = self.timeline.home(gpu).filter(|home| *home != id)?;
            let other = self.nodes.get(home)?;
            let has = other.held.contains_key(gpu)
                || (other.inventory.gpus.iter().any(|g| g.id == *gpu)
                    && !other.duplicate.contains_key(gpu));
            has.then(|| home.clone())
        };
        let gpus = node.inventory.gpus.iter().filter(|g| !node.held.contains_key(&g.id));
        let duplicate: BTreeMap<GpuId, NodeId> =
            gpus.filter_map(|g| Some((g.id.clone(), other_home(&g.id)?))).collect();
        if let Some(node) = self.nodes.get_mut(id) {
            node.duplicate = duplicate;
        }
    }

    /// Takes a new inventory. A GPU that is gone ends its timeline, unless a job still holds it.
    fn inventory_changed(&mut self, inventory: &NodeInventory) {
        let id = &inventory.node;
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.inventory = inventory.clone();
        let held: BTreeSet<&GpuId> = node.held.keys().collect();
        let listed: BTreeSet<&GpuId> = inventory.gpus.iter().map(|g| &g.id).collect();
        let gone: Vec<GpuId> = self
            .timeline
            .at_node(id)
            .filter(|g| !listed.contains(g) && !held.contains(g))
            .cloned()
            .collect();
        for gpu in gone {
            self.timeline.retire(&gpu, self.now, &mut self.outbox.closed);
        }
        self.find_duplicates(id);
        self.refresh_classes(id);
        self.settle_duplicates();
    }

    fn with_node(&mut self, id: &NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(id) {
            change(node);
            self.refresh_classes(id);
        }
    }

    /// Writes the class of each of the node's GPUs into the timeline.
    fn refresh_classes(&mut self, id: &NodeId) {
        self.outbox.nodes.insert(id.clone());
        let Some(node) = self.nodes.get(id) else { return };
        for gpu in &node.inventory.gpus {
            // Another node keeps its account.
            if node.duplicate.contains_key(&gpu.id) {
                continue;
            }
            let holder = node.held.get(&gpu.id).and_then(|a| self.jobs.attempts.get(a));
            let class = match holder {
                // It is believed to go on there, but nobody can say so on a bill.
                Some(_) if node.state == NodeState::Lost => UsageClass::Unknown,
                Some(attempt) => attempt.usage_class(),
                None => node.unheld_class(&gpu.id),
            };
            let closed = &mut self.outbox.closed;
            self.timeline.set(&gpu.id, id, &gpu.model, class, self.now, closed);
        }
    }

    // ---- jobs

    fn job_submitted(
        &mut self,
        id: JobId,
        key: &Option<String>,
        spec: &Arc<tessera_model::JobSpec>,
    ) {
        assert!(id.0 >= self.next_job, "job ids only grow, {id} came after {}", self.next_job);
        self.next_job = id.0 + 1;
        self.outbox.jobs.insert(id);
        self.jobs.insert(Job {
            id,
            spec: Arc::clone(spec),
            key: key.clone(),
            state: JobState::Pending,
            submitted_at: self.now,
            started_at: None,
            ended_at: None,
            exit_code: None,
            outcome: String::new(),
            cancelled_by: None,
            attempt: None,
            nodes: Vec::new(),
            failed_starts: 0,
            not_before: None,
            avoid: BTreeSet::new(),
        });
    }

    fn cancel_requested(&mut self, id: JobId, by: &UserId) {
        let Some(job) = self.jobs.jobs.get_mut(&id) else { return };
        if job.state.is_terminal() {
            return;
        }
        job.cancelled_by = Some(by.clone());
        self.outbox.jobs.insert(id);
        match job.attempt.filter(|a| self.jobs.attempts.contains_key(a)) {
            Some(attempt) if job.state != JobState::Pending => {
                self.stop_attempt(attempt, StopWhy::Cancelled);
            }
            _ => self.end_job(id, JobState::Cancelled, None, format!("cancelled by {by}")),
        }
    }

    fn lease_granted(&mut self, lease: &Lease) {
        let id = lease.attempt;
        let job = self.jobs.jobs.get_mut(&id.job).expect("a lease is granted to a job that exists");
        job.attempt = Some(id);
        job.nodes = lease.places.iter().map(|p| p.node.clone()).collect();
        job.started_at = None;
        let spec = Arc::clone(&job.spec);
        self.jobs.set_state(id.job, JobState::Starting);
        self.outbox.jobs.insert(id.job);
        for place in &lease.places {
            let node = self.nodes.get_mut(&place.node).expect("a lease names nodes that exist");
            node.hold(place, id);
        }
        let attempt = Attempt {
            lease: Arc::new(lease.clone()),
            spec,
            phase: Phase::Preparing,
            granted_at: self.now,
            running_since: None,
            committed: false,
            ended: BTreeMap::new(),
            released: BTreeSet::new(),
            first_failure: None,
            stop: None,
            settled: false,
            prepared: BTreeMap::new(),
            started: BTreeSet::new(),
        };
        for place in &attempt.lease.places {
            if let Some(order) = self.prepare_order(&attempt, &place.node) {
                self.outbox.orders.push((place.node.clone(), order));
            }
        }
        self.jobs.add_attempt(attempt);
        for place in &lease.places {
            self.refresh_classes(&place.node);
        }
    }

    pub(crate) fn prepare_order(&self, attempt: &Attempt, node: &NodeId) -> Option<Order> {
        let (place, _) = attempt.place(node)?;
        let address = |p: &tessera_model::Place| {
            self.nodes.get(&p.node).map(|n| n.inventory.address.clone()).unwrap_or_default()
        };
        Some(Order::Prepare {
            spec: Arc::clone(&attempt.spec),
            lease: Arc::clone(&attempt.lease),
            place,
            addresses: attempt.lease.places.iter().map(address).collect(),
        })
    }

    fn gang_committed(&mut self, id: AttemptId, master_addr: &str, master_port: u16) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if attempt.settled || attempt.phase != Phase::Preparing {
            return;
        }
        attempt.phase = Phase::Committed { master_addr: master_addr.to_owned(), master_port };
        attempt.committed = true;
        for place in &attempt.lease.places {
            let master_addr = master_addr.to_owned();
            let order = Order::Commit { attempt: id, master_addr, master_port };
            self.outbox.orders.push((place.node.clone(), order));
        }
    }

    fn attempt_running(&mut self, id: AttemptId) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if attempt.settled || !matches!(attempt.phase, Phase::Committed { .. }) {
            return;
        }
        attempt.phase = Phase::Running;
        attempt.running_since = Some(self.now);
        if let Some(job) = self.jobs.jobs.get_mut(&id.job) {
            job.started_at = Some(self.now);
            job.failed_starts = 0;
        }
        self.jobs.set_state(id.job, JobState::Running);
        self.outbox.jobs.insert(id.job);
    }

    /// Tells every node that still has some of it to stop. The first reason stays.
    fn stop_attempt(&mut self, id: AttemptId, why: StopWhy) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if attempt.settled {
            return;
        }
        attempt.stop.get_or_insert(why);
        self.stop_places(id);
        if let Some(job) = self.jobs.get(id.job)
            && matches!(job.state, JobState::Starting | JobState::Running)
        {
            self.jobs.set_state(id.job, JobState::Stopping);
        }
        self.outbox.jobs.insert(id.job);
    }

    fn stop_places(&mut self, id: AttemptId) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if attempt.phase == Phase::Stopping {
            return;
        }
        attempt.phase = Phase::Stopping;
        for place in &attempt.lease.places {
            if !attempt.released.contains(&place.node) {
                let order = Order::Stop { attempt: id, grace: STOP_GRACE };
                self.outbox.orders.push((place.node.clone(), order));
            }
        }
    }

    /// A task's end. The first that went wrong takes the rest of the gang with it.
    fn task_ended(&mut self, id: AttemptId, rank: u32, end: &TaskEnd) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if rank >= attempt.spec.gang.ranks() || attempt.ended.contains_key(&rank) {
            return;
        }
        attempt.ended.insert(rank, end.clone());
        if !end.is_success() {
            attempt.first_failure.get_or_insert((rank, end.clone()));
            if !attempt.is_over() {
                self.stop_places(id);
            }
        }
        self.settle(id);
    }

    fn place_released(
        &mut self,
        id: AttemptId,
        node: &NodeId,
        occupied: &BTreeMap<GpuId, Vec<u32>>,
    ) {
        if !self.jobs.attempts.get(&id).is_some_and(|a| a.holds(node)) {
            // Heard before, or written off: the agent wants to know that it may forget it, and
            // GPUs on which something still runs are kept from others.
            self.with_node(node, |n| {
                let here = |g: &GpuId| n.inventory.gpus.iter().any(|gpu| gpu.id == *g);
                let free = occupied.iter().filter(|(g, _)| here(g) && !n.held.contains_key(*g));
                let free: Vec<_> = free.map(|(g, pids)| (g.clone(), pids.clone())).collect();
                n.occupied.extend(free);
            });
            self.outbox.orders.push((node.clone(), Order::Forget { attempt: id }));
            return;
        }
        self.give_back(id, node, occupied);
        self.outbox.orders.push((node.clone(), Order::Forget { attempt: id }));
        self.settle(id);
    }

    fn place_written_off(
        &mut self,
        id: AttemptId,
        node: &NodeId,
        charged_until: UnixMillis,
        why: WriteOffWhy,
    ) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id).filter(|a| a.holds(node)) else {
            return;
        };
        let Some((index, place)) = attempt.place(node).map(|(i, p)| (i, p.clone())) else { return };
        let end = if why == WriteOffWhy::LeaseLapsed { TaskEnd::Lapsed } else { TaskEnd::Unknown };
        for rank in attempt.ranks_at(index) {
            // What was never told to start has not run: it has no end, and may be tried again.
            if attempt.committed && !attempt.ended.contains_key(&rank) {
                attempt.ended.insert(rank, end.clone());
                attempt.first_failure.get_or_insert((rank, end.clone()));
            }
        }
        for gpu in &place.gpus {
            let closed = &mut self.outbox.closed;
            self.timeline.unknown_since(gpu, charged_until, self.now, closed);
        }
        self.give_back(id, node, &BTreeMap::new());
        if self.jobs.attempts.get(&id).is_some_and(|a| !a.is_over()) {
            self.stop_places(id);
        }
        self.settle(id);
    }

    fn give_back(&mut self, id: AttemptId, node: &NodeId, occupied: &BTreeMap<GpuId, Vec<u32>>) {
        let Some(attempt) = self.jobs.attempts.get(&id) else { return };
        let Some((_, place)) = attempt.place(node) else { return };
        let place = place.clone();
        self.jobs.mark_released(id, node);
        if let Some(n) = self.nodes.get_mut(node) {
            n.release(&place, id);
            let ours = occupied.iter().filter(|(g, _)| place.gpus.contains(g));
            n.occupied.extend(ours.map(|(g, pids)| (g.clone(), pids.clone())));
            // A GPU that left the inventory while it was held ends its timeline now.
            let listed: BTreeSet<&GpuId> = n.inventory.gpus.iter().map(|g| &g.id).collect();
            for gpu in place.gpus.iter().filter(|g| !listed.contains(g)) {
                self.timeline.retire(gpu, self.now, &mut self.outbox.closed);
            }
        }
        self.refresh_classes(node);
    }

    /// Draws the conclusion for the job once nothing of the attempt can run any more, and lets the
    /// attempt go once every GPU is back.
    fn settle(&mut self, id: AttemptId) {
        let Some(attempt) = self.jobs.attempts.get(&id) else { return };
        let gone = attempt.all_released();
        if !attempt.settled && attempt.is_over() {
            let verdict = self.verdict(attempt);
            // A new attempt may only follow when the old one holds nothing and cannot run.
            let wait_for_release = matches!(verdict, Conclusion::Again { .. }) && !gone;
            if !wait_for_release {
                if let Some(attempt) = self.jobs.attempts.get_mut(&id) {
                    attempt.settled = true;
                }
                self.conclude(id.job, verdict);
            }
        }
        if gone {
            self.jobs.attempts.remove(&id);
            self.jobs.prune();
        }
    }

    fn verdict(&self, attempt: &Attempt) -> Conclusion {
        let job = self.jobs.get(attempt.lease.attempt.job);
        let by = job.and_then(|j| j.cancelled_by.clone());
        let ranks = attempt.spec.gang.ranks();
        let all_well = (0..ranks).all(|r| attempt.ended.get(&r).is_some_and(TaskEnd::is_success));
        // A task that was told to stop and left with 0 has not done its work.
        let told_to_stop = matches!(attempt.stop, Some(StopWhy::Cancelled | StopWhy::TimeLimit));
        if all_well && !told_to_stop {
            return Conclusion::End(JobState::Succeeded, Some(0), String::new());
        }
        let code = match &attempt.first_failure {
            Some((_, end)) => end.exit_code(),
            None => all_well.then_some(0),
        };
        if let Some(by) = by {
            return Conclusion::End(JobState::Cancelled, code, format!("cancelled by {by}"));
        }
        match &attempt.stop {
            Some(StopWhy::TimeLimit) => {
                let limit = attempt.spec.time_limit.unwrap_or_default();
                if let Some((rank, end @ TaskEnd::Unknown)) = &attempt.first_failure {
                    let text =
                        format!("told to stop at its time limit of {limit}; rank {rank} {end}");
                    return Conclusion::End(JobState::Lost, None, text);
                }
                return Conclusion::End(
                    JobState::Failed,
                    code,
                    format!("stopped at its time limit of {limit}"),
                );
            }
            Some(StopWhy::Refused { node, text }) => {
                return Conclusion::Again {
                    avoid: vec![node.clone()],
                    why: format!("{node} could not start it: {text}"),
                };
            }
            Some(StopWhy::LaunchTimeout { missing }) => {
                let names: Vec<String> = missing.iter().map(NodeId::to_string).collect();
                return Conclusion::Again {
                    avoid: missing.clone(),
                    why: format!("no answer in time from {}", names.join(", ")),
                };
            }
            Some(StopWhy::Cancelled) | None => {}
        }
        let Some((rank, end)) = &attempt.first_failure else {
            // Every rank is accounted for and none failed, yet not all ended well: never started.
            return Conclusion::Again { avoid: Vec::new(), why: "it was never started".to_owned() };
        };
        let known = end.exit_code().is_some();
        if !known && attempt.spec.requeue {
            return Conclusion::Again {
                avoid: Vec::new(),
                why: format!("its attempt {} was lost: rank {rank} {end}", attempt.lease.attempt),
            };
        }
        let text = if ranks == 1 { format!("it {end}") } else { format!("rank {rank} {end}") };
        let state = if known { JobState::Failed } else { JobState::Lost };
        Conclusion::End(state, end.exit_code(), text)
    }

    fn conclude(&mut self, id: JobId, conclusion: Conclusion) {
        match conclusion {
            Conclusion::End(state, code, outcome) => self.end_job(id, state, code, outcome),
            Conclusion::Again { avoid, why } => {
                let now = self.now;
                let Some(job) = self.jobs.jobs.get_mut(&id) else { return };
                job.failed_starts += 1;
                if job.failed_starts >= FAILED_STARTS_MAX {
                    let tries = job.failed_starts;
                    let outcome = format!("given up after {tries} tries; the last: {why}");
                    self.end_job(id, JobState::Failed, None, outcome);
                    return;
                }
                job.avoid.extend(avoid);
                job.not_before = Some(now.plus(Millis(1_000 << job.failed_starts.min(6))));
                job.outcome = why;
                job.started_at = None;
                job.nodes.clear();
                self.jobs.set_state(id, JobState::Pending);
                self.outbox.jobs.insert(id);
            }
        }
    }

    fn end_job(&mut self, id: JobId, state: JobState, exit_code: Option<i32>, outcome: String) {
        let now = self.now;
        if let Some(job) = self.jobs.jobs.get_mut(&id) {
            job.ended_at = Some(now);
            job.exit_code = exit_code;
            job.outcome = outcome;
            // It ran, and was over before all of its nodes had said that it had begun.
            if exit_code.is_some() {
                job.started_at.get_or_insert(now);
            }
        }
        self.jobs.set_state(id, state);
        self.jobs.prune();
        self.outbox.jobs.insert(id);
    }
}

/// What follows for a job from an attempt that is over.
enum Conclusion {
    End(JobState, Option<i32>, String),
    Again { avoid: Vec<NodeId>, why: String },
}
