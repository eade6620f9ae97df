//! What must hold after every step, and at the end.

use std::collections::BTreeMap;

use tessera_core::cluster::Cluster;
use tessera_core::event::{Event, LeaveWhy, PromiseCause};
use tessera_core::promises::Promise;
use tessera_model::{AttemptId, GpuId, JobId, JobState, NodeId, Tier, UnixMillis};

use super::Planning;
use crate::constraints;

impl Planning {
    /// From here on a promise may move later once, for each job.
    pub(super) fn excuse_all(&mut self) {
        let promised = self.cluster.jobs.jobs.values().filter(|j| j.promise.is_some());
        let ids: Vec<JobId> = promised.map(|j| j.id).collect();
        self.excuses.extend(ids.into_iter().map(|id| (id, true)));
    }

    /// `promised`: what the job of a new promise had been promised before.
    pub(super) fn watch(&mut self, event: &Event, promised: Option<Promise>) {
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

    pub(super) fn watch_leave(&mut self, attempt: AttemptId, why: &LeaveWhy) {
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

    pub(super) fn watch_promise(
        &mut self,
        id: JobId,
        before: Option<Promise>,
        at: Option<UnixMillis>,
        cause: PromiseCause,
    ) {
        let excused = self.excuses.remove(&id).unwrap_or(false);
        let (Some(at), Some(before)) = (at, before) else { return };
        if at > before.latest && !excused && !self.somebody_leaves {
            let text = format!(
                "job {id} was promised {} and now {at} ({cause:?}), though nothing was lost",
                before.latest
            );
            self.break_promise(text);
        }
    }

    /// Conservation, after every step.
    pub(super) fn check(&mut self) {
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

    pub(super) fn conservation(&self) -> Vec<String> {
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

    pub(super) fn check_that_nobody_waits_for_nothing(&mut self) {
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

    pub(super) fn check_that_the_journal_says_it_all(&mut self) {
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

pub(super) fn promise_of(cluster: &Cluster, event: &Event) -> Option<Promise> {
    let Event::PromiseMade { job, .. } = event else { return None };
    cluster.jobs.get(*job)?.promise
}
