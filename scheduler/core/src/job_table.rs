//! Jobs and their attempts, with the indexes that make the common questions cheap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::usage::UsageClass;
use tessera_model::{
    AttemptId, JobId, JobSpec, JobState, Lease, NodeId, TaskEnd, TeamId, UnixMillis, UserId,
};

use crate::event::StopWhy;

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

    /// Ranks that run at place `index`.
    pub fn ranks_at(&self, index: usize) -> std::ops::Range<u32> {
        let per_node = self.spec.gang.tasks_per_node;
        let first = u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(per_node);
        first..first.saturating_add(per_node)
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
    /// Waiting jobs in the one total order: higher priority, then earlier.
    #[serde(skip)]
    queue: BTreeSet<(Reverse<i32>, JobId)>,
    /// Waiting jobs by team, and the bytes of all waiting programs.
    #[serde(skip)]
    waiting: BTreeMap<TeamId, usize>,
    #[serde(skip)]
    waiting_bytes: u64,
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
    /// Makes the indexes again after a snapshot was read.
    pub fn reindex(&mut self) {
        let jobs: Vec<Job> = self.jobs.values().cloned().collect();
        for job in &jobs {
            self.index_key(job);
            if job.state == JobState::Pending {
                self.enqueue(&job.spec, job.id);
            }
            if job.state.is_terminal() && self.ended.insert((job.ended_at, job.id)) {
                self.ended_bytes += job.spec.program.bytes();
            }
        }
        for (id, attempt) in &self.attempts {
            for place in &attempt.lease.places {
                if !attempt.released.contains(&place.node) {
                    self.on_node.entry(place.node.clone()).or_default().insert(*id);
                }
            }
        }
    }

    fn index_key(&mut self, job: &Job) {
        if let Some(key) = &job.key {
            self.keys.insert((job.spec.user.clone(), key.clone()), job.id);
        }
    }

    pub fn insert(&mut self, job: Job) {
        self.index_key(&job);
        self.enqueue(&job.spec, job.id);
        self.jobs.insert(job.id, job);
    }

    pub fn get(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    pub fn by_key(&self, user: &UserId, key: &str) -> Option<&Job> {
        let id = self.keys.get(&(user.clone(), key.to_owned()))?;
        self.jobs.get(id)
    }

    /// Waiting jobs, in order.
    pub fn queue(&self) -> impl Iterator<Item = &Job> {
        self.queue.iter().filter_map(|(_, id)| self.jobs.get(id))
    }

    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Waiting jobs of one team.
    pub fn queue_len_of(&self, team: &TeamId) -> usize {
        self.waiting.get(team).copied().unwrap_or(0)
    }

    /// Bytes that the programs of waiting jobs take in memory.
    pub fn queue_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// How many jobs stand before a waiting one.
    pub fn ahead_of(&self, job: &Job) -> usize {
        self.queue.range(..(Reverse(job.spec.priority), job.id)).count()
    }

    fn enqueue(&mut self, spec: &JobSpec, id: JobId) {
        if self.queue.insert((Reverse(spec.priority), id)) {
            *self.waiting.entry(spec.team.clone()).or_default() += 1;
            self.waiting_bytes += spec.program.bytes();
        }
    }

    fn dequeue(&mut self, spec: &JobSpec, id: JobId) {
        if !self.queue.remove(&(Reverse(spec.priority), id)) {
            return;
        }
        self.waiting_bytes -= spec.program.bytes();
        if let Some(count) = self.waiting.get_mut(&spec.team) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&spec.team);
            }
        }
    }

    /// Moves a job along the published graph; any other move is a broken promise.
    pub fn set_state(&mut self, id: JobId, next: JobState) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.state == next {
            return;
        }
        assert!(
            job.state.may_become(next),
            "job {id} cannot go from {} to {}",
            job.state.word(),
            next.word()
        );
        job.state = next;
        let (spec, ended_at) = (Arc::clone(&job.spec), job.ended_at);
        if next == JobState::Pending {
            self.enqueue(&spec, id);
        } else {
            self.dequeue(&spec, id);
        }
        if next.is_terminal() {
            self.ended.insert((ended_at, id));
            self.ended_bytes += spec.program.bytes();
        }
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
                self.ended_bytes -= job.spec.program.bytes();
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
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.released.insert(node.clone());
        }
    }
}
