//! Jobs and their attempts, with the indexes that make the common questions cheap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::usage::UsageClass;
use tessera_model::{
    ArrayTask, AttemptId, Certificate, Dependency, Gang, JobId, JobSpec, JobState, Lease, NodeId,
    Place, TaskEnd, TeamId, UnixMillis, UserId, WaitReason,
};

use crate::event::{LeaveWhy, StopWhy};
use crate::promises::Promise;
use crate::queue::fairshare::{FairShare, TeamAccount};
use crate::queue::gate::Array;
use crate::queue::order::{self, InOrder};
use crate::queue::waiting::Waiting;

/// Ended jobs kept in memory, and the bytes of their programs. Older ones are in the store only.
pub const ENDED_KEPT: usize = 20_000;
pub const ENDED_BYTES: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub spec: Arc<JobSpec>,
    pub key: Option<String>,
    pub state: JobState,
    pub submitted_at: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub ended_at: Option<UnixMillis>,
    pub exit_code: Option<i32>,
    /// What became of it; empty while it waits or runs.
    pub outcome: String,
    pub cancelled_by: Option<UserId>,
    /// The present attempt, or the last one.
    pub attempt: Option<AttemptId>,
    /// Where the present or last attempt ran, in rank order.
    pub nodes: Vec<NodeId>,
    /// Starts that failed one after another; each doubles the wait before the next.
    pub failed_starts: u32,
    pub not_before: Option<UnixMillis>,
    /// Nodes that failed to start it; not tried again for it.
    pub avoid: BTreeSet<NodeId>,
    /// Waits until somebody releases it.
    pub held: bool,
    pub array: Option<ArrayTask>,
    /// When nothing but a place was missing first.
    pub eligible_at: Option<UnixMillis>,
    /// The start it was promised.
    pub promise: Option<Promise>,
    /// Of any of its attempts.
    pub last_checkpoint: Option<UnixMillis>,
    /// How often it had to leave for others.
    pub preemptions: u32,
    /// Nodes it has to make do with until it can have more.
    pub shrink_to: Option<u32>,
    /// Where the attempt before ran, in rank order: what is still fit of it is taken again, so
    /// that ranks stay where they were.
    pub former: Vec<NodeId>,
    pub certificate: Option<Arc<Certificate>>,
}

/// An attempt that was asked to leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leave {
    pub why: LeaveWhy,
    pub deadline: UnixMillis,
}

/// One try at running a job, from the grant of its lease until every GPU has been given back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub lease: Arc<Lease>,
    pub spec: Arc<JobSpec>,
    pub phase: Phase,
    pub granted_at: UnixMillis,
    pub running_since: Option<UnixMillis>,
    /// Its nodes were told to start: from here on something of it may have run.
    pub committed: bool,
    pub ended: BTreeMap<u32, TaskEnd>,
    pub released: BTreeSet<NodeId>,
    /// The first task that did not end well; it decides the job's exit code.
    pub first_failure: Option<(u32, TaskEnd)>,
    pub stop: Option<StopWhy>,
    /// Since when what it holds should come back: it was told to stop, or has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping_since: Option<UnixMillis>,
    pub leave: Option<Leave>,
    /// When its work was last known to be safe.
    pub checkpoint_at: Option<UnixMillis>,
    /// The job's state has followed from this attempt already; only GPUs are still out.
    pub settled: bool,
    /// Nodes that have said they are ready, with a free port. Not journalled: a new scheduler asks again.
    #[serde(skip)]
    pub prepared: BTreeMap<NodeId, u16>,
    /// Nodes that have said all their tasks were started.
    #[serde(skip)]
    pub started: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    Preparing,
    Committed { master_addr: String, master_port: u16 },
    Running,
    Stopping,
}

impl Attempt {
    pub fn place(&self, node: &NodeId) -> Option<(usize, &tessera_model::Place)> {
        self.lease.places.iter().enumerate().find(|(_, p)| p.node == *node)
    }

    /// The class of the GPUs it holds.
    pub fn usage_class(&self) -> UsageClass {
        UsageClass::Allocated {
            attempt: self.lease.attempt,
            team: self.spec.team.clone(),
            project: self.spec.project.clone(),
            user: self.spec.user.clone(),
        }
    }

    /// Whether `node` has started its tasks, as far as can be known: it said so, or they have
    /// ended already.
    pub fn has_started(&self, node: &NodeId) -> bool {
        let ended =
            |(index, _): (usize, _)| self.ranks_at(index).all(|r| self.ended.contains_key(&r));
        self.started.contains(node)
            || self.released.contains(node)
            || self.place(node).is_some_and(ended)
    }

    /// Every node has started its tasks.
    pub fn all_started(&self) -> bool {
        self.lease.places.iter().all(|p| self.has_started(&p.node))
    }

    /// The shape of place `index`; spares have the first role's.
    pub fn shape_at(&self, index: usize) -> &Gang {
        let mut before = self.lease.nodes as usize;
        if index >= before {
            for role in &self.spec.roles {
                before += role.gang.nodes as usize;
                if index < before {
                    return &role.gang;
                }
            }
        }
        &self.spec.gang
    }

    /// The name of the further role place `index` belongs to; `None` for the first role and spares.
    pub fn role_at(&self, index: usize) -> Option<&str> {
        let mut before = self.lease.nodes as usize;
        for role in &self.spec.roles {
            let first = before;
            before += role.gang.nodes as usize;
            if (first..before).contains(&index) {
                return Some(&role.name);
            }
        }
        None
    }

    /// Places that run ranks; those from here on are spares.
    pub fn working_places(&self) -> usize {
        let further: u32 = self.spec.roles.iter().map(|r| r.gang.nodes).sum();
        (self.lease.nodes + further) as usize
    }

    /// Ranks that run at place `index`; none at a spare.
    pub fn ranks_at(&self, index: usize) -> std::ops::Range<u32> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let (mut place, mut rank) = (0u32, 0u32);
        let nodes = |(i, g): (usize, &Gang)| {
            (if i == 0 { self.lease.nodes } else { g.nodes }, g.tasks_per_node)
        };
        for (nodes, tasks) in self.spec.all_roles().map(|(_, g)| g).enumerate().map(nodes) {
            if index < place.saturating_add(nodes) {
                let first = rank.saturating_add((index - place).saturating_mul(tasks));
                return first..first.saturating_add(tasks);
            }
            place = place.saturating_add(nodes);
            rank = rank.saturating_add(nodes.saturating_mul(tasks));
        }
        rank..rank
    }

    /// Ranks in all.
    pub fn ranks(&self) -> u32 {
        let further: u32 = self.spec.roles.iter().map(|r| r.gang.ranks()).sum();
        self.lease.nodes * self.spec.gang.tasks_per_node + further
    }

    /// Its tasks were sent the signal they asked for, so that whatever they exit with means that
    /// they have left, not that they are done.
    pub fn was_told_to_leave(&self) -> bool {
        let signal = self.spec.checkpoint.as_ref().and_then(|c| c.signal);
        self.leave.is_some() && signal.is_some()
    }

    /// The node still holds GPUs of it.
    pub fn holds(&self, node: &NodeId) -> bool {
        self.place(node).is_some() && !self.released.contains(node)
    }

    pub fn all_released(&self) -> bool {
        self.released.len() == self.lease.places.len()
    }

    /// Whether nothing of it can be running any more.
    pub fn is_over(&self) -> bool {
        self.lease.places.iter().enumerate().all(|(i, p)| {
            self.released.contains(&p.node) || self.ranks_at(i).all(|r| self.ended.contains_key(&r))
        })
    }

    /// Nothing of it can be running any more, and some of its nodes do not know: those of spares,
    /// which have no task that could end.
    pub fn only_spares_left(&self) -> bool {
        let spare = |(i, p): (usize, &tessera_model::Place)| {
            i >= self.working_places() && !self.released.contains(&p.node)
        };
        self.is_over() && self.lease.places.iter().enumerate().any(spare)
    }

    /// GPU-milliseconds of work that are lost if it is stopped now, a restart included.
    pub fn lost_if_stopped(&self, now: UnixMillis) -> u64 {
        let since = self.running_since.into_iter().chain(self.checkpoint_at).max().unwrap_or(now);
        let restart = self.spec.checkpoint.as_ref().map_or(0, |c| c.restart_cost.0);
        let milli = |p: &tessera_model::Place| p.gpus.len() as u64 * u64::from(p.gpu_milli);
        // A job without GPUs still loses its time.
        let milli = self.lease.places.iter().map(milli).sum::<u64>().max(1);
        let length = now.since(since).0.saturating_add(restart);
        length.saturating_mul(milli) / u64::from(tessera_model::WHOLE_GPU)
    }

    /// When it must end at the latest; `None` without a time limit.
    pub fn deadline(&self) -> Option<UnixMillis> {
        let limit = self.spec.time_limit?;
        Some(self.running_since.unwrap_or(self.granted_at).plus(limit))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobTable {
    pub jobs: BTreeMap<JobId, Job>,
    pub attempts: BTreeMap<AttemptId, Attempt>,
    /// Those that wait: in the order, or parked at what is in their way.
    #[serde(default)]
    waiting: Waiting,
    /// What each team holds and has had.
    #[serde(default)]
    pub fair: FairShare,
    #[serde(skip)]
    ended_bytes: u64,
    /// Attempts that hold something on a node.
    #[serde(skip)]
    on_node: BTreeMap<NodeId, BTreeSet<AttemptId>>,
    #[serde(skip)]
    keys: BTreeMap<(UserId, String), JobId>,
    /// Ended jobs, oldest first; by what a snapshot holds, so that a restored table lets the same go.
    #[serde(skip)]
    ended: BTreeSet<(Option<UnixMillis>, JobId)>,
}

impl JobTable {
    /// Makes the indexes again after a snapshot was read. Teams and reservations are told before.
    pub fn reindex(&mut self, now: UnixMillis) {
        self.keys.clear();
        self.ended.clear();
        self.ended_bytes = 0;
        self.on_node.clear();
        for (id, job) in &self.jobs {
            if let Some(key) = &job.key {
                self.keys.insert((job.spec.user.clone(), key.clone()), *id);
            }
            if job.state.is_terminal() && self.ended.insert((job.ended_at, *id)) {
                self.ended_bytes += ended_bytes(job);
            }
        }
        for (id, attempt) in &self.attempts {
            for place in &attempt.lease.places {
                if !attempt.released.contains(&place.node) {
                    self.on_node.entry(place.node.clone()).or_default().insert(*id);
                }
            }
        }
        self.waiting.restore(&mut self.jobs, now);
    }

    /// Time has come to `now`, the stamp of the event that is applied next.
    pub fn pass_to(&mut self, now: UnixMillis) {
        self.waiting.pass_to(&mut self.jobs, now);
    }

    /// When time alone lets a parked job go on next: an event has to take note of it then.
    pub fn next_wake(&self) -> Option<UnixMillis> {
        self.waiting.gates.next_wake()
    }

    pub fn insert(&mut self, job: Job) {
        if let Some(key) = &job.key {
            self.keys.insert((job.spec.user.clone(), key.clone()), job.id);
        }
        let id = job.id;
        self.jobs.insert(id, job);
        self.waiting.enter(&mut self.jobs, id);
    }

    /// Changes a job in place; its place in the queue follows.
    pub fn change(&mut self, id: JobId, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match job.state {
            JobState::Pending => self.waiting.change(&mut self.jobs, id, change),
            _ => change(job),
        }
    }

    /// Tasks of an array that may run at once; 0: all. Said before its tasks come, or after.
    pub fn set_throttle(&mut self, array: JobId, throttle: u32) {
        self.waiting.set_throttle(&mut self.jobs, array, throttle);
    }

    pub fn array(&self, array: JobId) -> Option<Array> {
        self.waiting.gates.array(array)
    }

    /// Unfinished tasks of an array, in order.
    pub fn tasks_of(&self, array: JobId) -> impl Iterator<Item = &Job> {
        let tasks = self.array(array).map_or(0, |a| u64::from(a.tasks));
        let span = self.jobs.range(array..JobId(array.0.saturating_add(tasks)));
        span.map(|(_, job)| job).filter(|job| !job.state.is_terminal())
    }

    /// What a waiting job still depends on.
    pub fn unmet(&self, job: JobId) -> &[Dependency] {
        self.waiting.gates.unmet(job)
    }

    /// A calendar reservation was made (`Some`: from, until) or is over.
    pub fn set_reservation(&mut self, name: &str, span: Option<(UnixMillis, UnixMillis)>) {
        self.waiting.set_reservation(&mut self.jobs, name, span);
    }

    pub fn get(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    pub fn by_key(&self, user: &UserId, key: &str) -> Option<&Job> {
        let id = self.keys.get(&(user.clone(), key.to_owned()))?;
        self.jobs.get(id)
    }

    /// Waiting jobs that lack nothing but a place, in the one total order.
    pub fn in_order(&self, now: UnixMillis) -> InOrder<'_> {
        let order = &self.waiting.order;
        order.iter(self.fair.shares(order.teams(), now), now)
    }

    /// Waiting jobs that are kept out of the order, by id.
    pub fn parked(&self) -> impl Iterator<Item = JobId> {
        self.waiting.gates.parked()
    }

    /// What keeps a waiting job out of the order.
    pub fn gate_reason(&self, job: &Job) -> Option<WaitReason> {
        self.waiting.gates.reason(job).or_else(|| self.waiting.gates.may_start(job))
    }

    pub fn queue_len(&self) -> usize {
        self.waiting.len()
    }

    /// Waiting jobs that stand in the order.
    pub fn eligible_len(&self) -> usize {
        self.waiting.order.len()
    }

    /// Waiting jobs of one team.
    pub fn queue_len_of(&self, team: &TeamId) -> usize {
        self.waiting.len_of(team)
    }

    /// Bytes that the programs of waiting jobs take in memory.
    pub fn queue_bytes(&self) -> u64 {
        self.waiting.bytes()
    }

    /// A waiting job's place in the order, from 1; `None` for one that is parked.
    pub fn position(&self, id: JobId) -> Option<u32> {
        let job = self.jobs.get(&id).filter(|j| j.state == JobState::Pending)?;
        if self.waiting.gates.gate(job.id).is_some() {
            return None;
        }
        let before = self.in_order(self.waiting.now()).position(|other| other == id)?;
        u32::try_from(before + 1).ok()
    }

    /// How many jobs stand before a waiting one; before a parked one all that are in the order.
    pub fn ahead_of(&self, job: &Job) -> usize {
        self.position(job.id).map_or(self.eligible_len(), |p| p as usize - 1)
    }

    /// What a team holds, has had, and how far that moves its claims back.
    pub fn account(&self, team: &TeamId) -> TeamAccount {
        self.fair.account(team, self.waiting.order.teams(), self.waiting.now())
    }

    /// Takes the next job that can never start, with the reason in words.
    pub fn take_doomed(&mut self) -> Option<(JobId, String)> {
        self.waiting.take_doomed()
    }

    /// Moves a job along the published graph; any other move is a broken promise.
    pub fn set_state(&mut self, id: JobId, next: JobState) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let before = job.state;
        if before == next {
            return;
        }
        assert!(
            before.may_become(next),
            "job {id} cannot go from {} to {}",
            before.word(),
            next.word()
        );
        job.state = next;
        if next.is_terminal() {
            self.ended.insert((job.ended_at, id));
            self.ended_bytes += ended_bytes(job);
        }
        self.waiting.moved(&mut self.jobs, id, before);
    }

    /// Lets the oldest ended jobs go, but none that still holds a GPU.
    pub fn prune(&mut self) {
        while self.ended.len() > ENDED_KEPT || self.ended_bytes > ENDED_BYTES {
            let holds = |id: &JobId| {
                let attempt = self.jobs.get(id).and_then(|j| j.attempt);
                attempt.is_some_and(|a| self.attempts.contains_key(&a))
            };
            let Some(oldest) = self.ended.iter().find(|(_, id)| !holds(id)).copied() else {
                return;
            };
            self.ended.remove(&oldest);
            if let Some(job) = self.jobs.remove(&oldest.1) {
                self.ended_bytes -= ended_bytes(&job);
                self.waiting.forget(&job);
                if let Some(key) = job.key {
                    self.keys.remove(&(job.spec.user.clone(), key));
                }
            }
        }
    }

    pub fn add_attempt(&mut self, attempt: Attempt) {
        for place in &attempt.lease.places {
            self.on_node.entry(place.node.clone()).or_default().insert(attempt.lease.attempt);
        }
        let milli = attempt.lease.places.iter().map(place_milli).sum();
        self.fair.hold(&attempt.spec.team, milli, self.waiting.now());
        self.attempts.insert(attempt.lease.attempt, attempt);
    }

    pub fn attempts_on(&self, node: &NodeId) -> impl Iterator<Item = &Attempt> {
        let ids = self.on_node.get(node).into_iter().flatten();
        ids.filter_map(|id| self.attempts.get(id))
    }

    /// `node` gave everything of the attempt back. The attempt goes when its last place did.
    pub fn mark_released(&mut self, id: AttemptId, node: &NodeId) {
        if let Some(on_node) = self.on_node.get_mut(node) {
            on_node.remove(&id);
            if on_node.is_empty() {
                self.on_node.remove(node);
            }
        }
        let now = self.waiting.now();
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let Some((_, place)) = attempt.place(node) else { return };
        let milli = place_milli(place);
        if attempt.released.insert(node.clone()) {
            self.fair.give_back(&attempt.spec.team, milli, now);
        }
    }
}

/// What a place counts in its team's account, in thousandths of a GPU.
fn place_milli(place: &Place) -> u64 {
    let gpus = u32::try_from(place.gpus.len()).unwrap_or(u32::MAX);
    order::held(gpus, place.gpu_milli, place.cpus)
}

/// What an ended job's program takes in memory. The tasks of an array share one.
fn ended_bytes(job: &Job) -> u64 {
    match job.array {
        Some(task) if task.array != job.id => 0,
        _ => job.spec.program.bytes(),
    }
}
