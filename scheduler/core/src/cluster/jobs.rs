//! How events change jobs: from submission over attempts to a conclusion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_model::{
    ArrayTask, AttemptId, Certificate, GpuId, JobId, JobState, Lease, Millis, NodeId, TaskEnd,
    UnixMillis, UserId,
};

use super::Cluster;
use crate::event::{LeaveWhy, StopWhy, WriteOffWhy};
use crate::job_table::{Attempt, Job, Phase};
use crate::order::{Order, STOP_GRACE};
use crate::placement::seats;

/// Starts that may fail one after another before the job is given up.
pub const FAILED_STARTS_MAX: u32 = 5;

impl Cluster {
    pub(super) fn job_submitted(
        &mut self,
        id: JobId,
        key: &Option<String>,
        spec: &Arc<tessera_model::JobSpec>,
        array: Option<ArrayTask>,
    ) {
        assert!(id.0 >= self.next_job, "job ids only grow, {id} came after {}", self.next_job);
        self.next_job = id.0 + 1;
        self.outbox.jobs.insert(id);
        if spec.nodes() == 1
            && spec.spares == 0
            && let Some(ask) = seats::ask(self.space(), &spec.gang)
        {
            Arc::make_mut(&mut self.mix).observe(&ask);
        }
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
            held: spec.hold,
            array,
            eligible_at: None,
            promise: None,
            last_checkpoint: None,
            preemptions: 0,
            shrink_to: None,
            former: Vec::new(),
            certificate: None,
        });
    }

    pub(super) fn cancel_requested(&mut self, id: JobId, by: &UserId) {
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

    pub(super) fn lease_granted(&mut self, lease: &Lease, certificate: &Certificate) {
        let id = lease.attempt;
        let job = self.jobs.jobs.get_mut(&id.job).expect("a lease is granted to a job that exists");
        job.attempt = Some(id);
        job.nodes = lease.places.iter().map(|p| p.node.clone()).collect();
        job.started_at = None;
        job.certificate = Some(Arc::new(certificate.clone()));
        // Until here it had to make do with less, and was to go back to where it was.
        job.former.clear();
        job.shrink_to = None;
        self.promises.started(job, self.now);
        self.holds.remove(&id.job);
        let spec = Arc::clone(&job.spec);
        // What it was promised it has got; its next start is another matter.
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
            stopping_since: None,
            leave: None,
            checkpoint_at: None,
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
        self.ground_attempt(id);
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
            part: crate::order::Part::of(attempt, place),
            array: self.jobs.get(attempt.lease.attempt.job).and_then(|j| j.array),
            addresses: attempt.lease.places.iter().map(address).collect(),
        })
    }

    pub(super) fn gang_committed(&mut self, id: AttemptId, master_addr: &str, master_port: u16) {
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

    pub(super) fn attempt_running(&mut self, id: AttemptId) {
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
    pub(super) fn stop_attempt(&mut self, id: AttemptId, why: StopWhy) {
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

    pub(super) fn stop_places(&mut self, id: AttemptId) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if attempt.phase == Phase::Stopping {
            return;
        }
        attempt.phase = Phase::Stopping;
        attempt.stopping_since.get_or_insert(self.now);
        for place in &attempt.lease.places {
            if !attempt.released.contains(&place.node) {
                let order = Order::Stop { attempt: id, grace: STOP_GRACE };
                self.outbox.orders.push((place.node.clone(), order));
            }
        }
    }

    /// A task's end. The first that went wrong takes the rest of the gang with it.
    pub(super) fn task_ended(&mut self, id: AttemptId, rank: u32, end: &TaskEnd) {
        let Some(attempt) = self.jobs.attempts.get_mut(&id) else { return };
        if rank >= attempt.ranks() || attempt.ended.contains_key(&rank) {
            return;
        }
        attempt.ended.insert(rank, end.clone());
        let failed = !end.is_success();
        if failed {
            attempt.first_failure.get_or_insert((rank, end.clone()));
        }
        if (failed && !attempt.is_over()) || attempt.only_spares_left() {
            self.stop_places(id);
        }
        self.settle(id);
    }

    pub(super) fn place_released(
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
        if self.jobs.attempts.get(&id).is_some_and(Attempt::only_spares_left) {
            self.stop_places(id);
        }
        self.settle(id);
    }

    pub(super) fn place_written_off(
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
            self.timeline.unknown_since(gpu, Some(id), charged_until, self.now, closed);
        }
        self.give_back(id, node, &BTreeMap::new());
        // Without a spare the others go on; without one of their own they cannot.
        let cannot_go_on = |a: &Attempt| !a.is_over() && index < a.working_places();
        let stops = |a: &Attempt| cannot_go_on(a) || a.only_spares_left();
        if self.jobs.attempts.get(&id).is_some_and(stops) {
            self.stop_places(id);
        }
        self.settle(id);
    }

    pub(super) fn give_back(
        &mut self,
        id: AttemptId,
        node: &NodeId,
        occupied: &BTreeMap<GpuId, Vec<u32>>,
    ) {
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
        self.ground_attempt(id);
        self.refresh_classes(node);
    }

    /// Draws the conclusion for the job once nothing of the attempt can run any more, and lets the
    /// attempt go once every GPU is back.
    pub(super) fn settle(&mut self, id: AttemptId) {
        let Some(attempt) = self.jobs.attempts.get(&id) else { return };
        let gone = attempt.all_released();
        if !attempt.settled && attempt.is_over() {
            let verdict = self.verdict(attempt);
            // A new attempt may only follow when the old one holds nothing and cannot run.
            let again = matches!(verdict, Conclusion::Again { .. } | Conclusion::Back { .. });
            let wait_for_release = again && !gone;
            if !wait_for_release {
                if let Some(attempt) = self.jobs.attempts.get_mut(&id) {
                    attempt.settled = true;
                    attempt.stopping_since.get_or_insert(self.now);
                    if let (
                        Conclusion::End(JobState::Succeeded | JobState::Failed, ..),
                        Some(began),
                    ) = (&verdict, attempt.running_since)
                    {
                        let length = self.now.since(began);
                        Arc::make_mut(&mut self.habits).ran(&attempt.spec, length);
                    }
                }
                self.conclude(id.job, verdict);
            }
        }
        if gone {
            self.jobs.attempts.remove(&id);
            self.ground_attempt(id);
            self.jobs.prune();
        }
    }

    fn verdict(&self, attempt: &Attempt) -> Conclusion {
        let job = self.jobs.get(attempt.lease.attempt.job);
        let by = job.and_then(|j| j.cancelled_by.clone());
        let ranks = attempt.ranks();
        let all_well = (0..ranks).all(|r| attempt.ended.get(&r).is_some_and(TaskEnd::is_success));
        // A task that was told to stop and left with 0 has not done its work.
        let told_to_stop = matches!(
            attempt.stop,
            Some(StopWhy::Cancelled | StopWhy::TimeLimit | StopWhy::Left { .. })
        ) || attempt.was_told_to_leave();
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
        // At its limit it has had its time, whatever else was asked of it.
        if let Some(leave) =
            attempt.leave.as_ref().filter(|_| attempt.stop != Some(StopWhy::TimeLimit))
            && (attempt.was_told_to_leave() || matches!(attempt.stop, Some(StopWhy::Left { .. })))
        {
            return Conclusion::Back { why: leave_words(&leave.why) };
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
                    why: if names.is_empty() {
                        "it did not begin in time, though each of its nodes had answered".to_owned()
                    } else {
                        format!("no answer in time from {}", names.join(", "))
                    },
                };
            }
            Some(StopWhy::Cancelled | StopWhy::Left { .. }) | None => {}
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
                job.former = std::mem::take(&mut job.nodes);
                job.promise = None;
                job.avoid.extend(avoid);
                job.not_before = Some(now.plus(Millis(1_000 << job.failed_starts.min(6))));
                job.outcome = why;
                job.started_at = None;
                self.jobs.set_state(id, JobState::Pending);
                self.outbox.jobs.insert(id);
            }
            Conclusion::Back { why } => {
                let Some(job) = self.jobs.jobs.get_mut(&id) else { return };
                job.preemptions += 1;
                job.former = std::mem::take(&mut job.nodes);
                job.promise = None;
                job.outcome = why;
                job.started_at = None;
                self.jobs.set_state(id, JobState::Pending);
                self.outbox.jobs.insert(id);
            }
        }
    }

    pub(super) fn end_job(
        &mut self,
        id: JobId,
        state: JobState,
        exit_code: Option<i32>,
        outcome: String,
    ) {
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
        self.plans_void(id);
        self.jobs.set_state(id, state);
        self.jobs.prune();
        self.outbox.jobs.insert(id);
    }
}

/// What follows for a job from an attempt that is over.
enum Conclusion {
    End(JobState, Option<i32>, String),
    Again {
        avoid: Vec<NodeId>,
        why: String,
    },
    /// It had to leave for another and takes its turn again; nothing failed.
    Back {
        why: String,
    },
}

fn leave_words(why: &LeaveWhy) -> String {
    let by = why.by();
    match why {
        LeaveWhy::Preempted { .. } => format!("left for job {by} of a higher tier"),
        LeaveWhy::Reclaimed { .. } => {
            format!("left for job {by}, whose team is guaranteed its GPUs")
        }
        LeaveWhy::Shrunk { nodes, .. } => {
            format!("goes on with {nodes} nodes, so that job {by} can start")
        }
        LeaveWhy::Moved { .. } => format!("moves, so that job {by} finds a whole domain"),
    }
}
