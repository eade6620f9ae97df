//! How events change what is planned: holds, promises, who was asked to leave, what an owner said
//! of a job that waits or of the work it has saved.

use std::sync::Arc;

use tessera_model::{ArrayTask, AttemptId, Eta, JobChange, JobId, JobSpec, JobState, UnixMillis};

use super::Cluster;
use crate::event::{LeaveWhy, PromiseCause, StopWhy};
use crate::job_table::Leave;
use crate::order::Order;
use crate::promises::Slot;

impl Cluster {
    pub(super) fn array_submitted(
        &mut self,
        first: JobId,
        key: &Option<String>,
        spec: &Arc<JobSpec>,
        indices: &[u32],
        throttle: u32,
    ) {
        // Before its tasks come: else all of them would be let in first, and most put back.
        self.jobs.set_throttle(first, throttle);
        for (offset, index) in (0..).zip(indices) {
            let id = JobId(first.0 + offset);
            // The key finds the array by its first task.
            let key = if offset == 0 { key.clone() } else { None };
            let task = ArrayTask { array: first, index: *index };
            self.job_submitted(id, &key, spec, Some(task));
        }
    }

    pub(super) fn set_held(&mut self, id: JobId, held: bool) {
        self.jobs.change(id, |job| job.held = held);
        if held {
            self.plans_void(id);
            self.jobs.change(id, |job| job.promise = None);
        }
        self.outbox.jobs.insert(id);
    }

    /// What was kept for a waiting job suits it no more.
    pub(super) fn plans_void(&mut self, id: JobId) {
        self.holds.remove(&id);
        self.promises.changed(id);
    }

    pub(super) fn job_updated(&mut self, id: JobId, change: &JobChange) {
        if let (Some(throttle), Some(task)) =
            (change.throttle, self.jobs.get(id).and_then(|j| j.array))
        {
            self.jobs.set_throttle(task.array, throttle);
        }
        self.jobs.change(id, |job| {
            let spec = Arc::make_mut(&mut job.spec);
            if let Some(priority) = change.priority {
                spec.priority = priority;
            }
            if let Some(tier) = change.tier {
                spec.tier = tier;
            }
            if let Some(limit) = change.time_limit {
                spec.time_limit = Some(limit);
            }
            if let Some(nodes) = change.nodes {
                spec.gang.nodes = nodes;
            }
            if let Some(placement) = &change.placement {
                spec.placement = placement.clone();
            }
            if let Some(begin) = change.begin {
                spec.begin = Some(begin);
            }
            if let Some(after) = &change.after {
                spec.after = after.clone();
            }
        });
        let waits = self.jobs.get(id).is_some_and(|j| j.state == JobState::Pending);
        let other = change.tier.is_some()
            || change.time_limit.is_some()
            || change.nodes.is_some()
            || change.placement.is_some();
        if waits && other {
            self.plans_void(id);
            // Where its last attempt ran says nothing about another shape, nor does a promise.
            self.jobs.change(id, |job| {
                (job.former, job.shrink_to, job.promise) = (Vec::new(), None, None);
            });
        }
        // A running attempt's shape stays as it was granted; its time limit does not.
        let attempt = self.jobs.get(id).and_then(|j| j.attempt);
        if let (Some(limit), Some(attempt)) =
            (change.time_limit, attempt.and_then(|a| self.jobs.attempts.get_mut(&a)))
        {
            Arc::make_mut(&mut attempt.spec).time_limit = Some(limit);
        }
        self.outbox.jobs.insert(id);
    }

    pub(super) fn signal_job(&mut self, id: JobId, signal: i32) {
        let Some(attempt) = self.jobs.get(id).and_then(|j| j.attempt) else { return };
        self.signal_places(attempt, signal);
    }

    /// Every node on which tasks of it may run sends them a signal.
    fn signal_places(&mut self, id: AttemptId, signal: i32) {
        let Some(attempt) = self.jobs.attempts.get(&id).filter(|a| a.committed) else { return };
        for place in attempt.lease.places.iter().take(attempt.working_places()) {
            if !attempt.released.contains(&place.node) {
                let order = Order::Signal { attempt: id, signal };
                self.outbox.orders.push((place.node.clone(), order));
            }
        }
    }

    pub(super) fn checkpoint_reported(&mut self, id: AttemptId) {
        let now = self.now;
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        attempt.checkpoint_at = Some(now);
        let leave = attempt.leave.as_ref().map(|l| l.why.clone());
        if let Some(job) = self.jobs.jobs.get_mut(&id.job) {
            job.last_checkpoint = Some(now);
        }
        self.outbox.jobs.insert(id.job);
        // Its work is safe: there is nothing left to wait for.
        if let Some(why) = leave {
            self.stop_attempt(id, StopWhy::Left { why });
        }
    }

    pub(super) fn promise_made(
        &mut self,
        id: JobId,
        at: Option<UnixMillis>,
        cause: PromiseCause,
        slot: Option<&Arc<Slot>>,
        eta: Option<Eta>,
    ) {
        if self.jobs.get(id).is_none_or(|j| j.state != JobState::Pending) {
            return;
        }
        // Its place in the queue follows from whether it was promised something.
        let promises = &mut self.promises;
        self.jobs.change(id, |job| promises.note(job, at, cause, slot, eta));
        self.outbox.jobs.insert(id);
    }

    /// It is told at once, by the signal it asked for; when the notice is over it is stopped.
    pub(super) fn leave_asked(&mut self, id: AttemptId, why: &LeaveWhy, deadline: UnixMillis) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if attempt.settled || attempt.leave.is_some() {
            return;
        }
        attempt.leave = Some(Leave { why: why.clone(), deadline });
        let habits = Arc::make_mut(&mut self.habits);
        habits.left(id.job, self.now);
        if let LeaveWhy::Moved { .. } = why {
            habits.moved(attempt.lost_if_stopped(self.now), self.now);
        }
        let signal = attempt.spec.checkpoint.as_ref().and_then(|c| c.signal);
        if let Some(signal) = signal {
            self.signal_places(id, signal);
        }
        self.outbox.jobs.insert(id.job);
        if let LeaveWhy::Shrunk { nodes, .. } = why {
            let nodes = *nodes;
            self.jobs.change(id.job, |job| job.shrink_to = Some(nodes));
        }
        let over = deadline <= self.now;
        let pending = self.jobs.get(id.job).is_none_or(|j| j.state == JobState::Pending);
        if over && !pending {
            self.stop_attempt(id, StopWhy::Left { why: why.clone() });
        }
    }
}
