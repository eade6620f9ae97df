//! Whose turn it is, and who may fill in around whom.
//!
//! One pass over the queue in its one total order. The first job that could start but does not fit
//! reserves: a set of nodes and, where time limits allow, a date. Jobs after it start only where
//! they do not delay it. The same snapshot always gives the same decision, and every job that does
//! not start has its reason in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tessera_model::{AttemptId, Gang, JobId, Lease, Millis, Place, UnixMillis, WaitReason, Within};

use crate::cluster::Cluster;
use crate::placement::{self, Chosen, NodeView, Pending, Snapshot};

/// Waiting jobs looked at in one pass; those behind wait for a later one.
pub const DEPTH: usize = 1_000;

/// A job whose way is blocked by jobs without a time limit holds nodes only after this long.
pub const HOLD_AFTER: Millis = Millis::from_secs(600);

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// In queue order.
    pub start: Vec<(JobId, Vec<Chosen>)>,
    pub wait: BTreeMap<JobId, WaitReason>,
    pub reservation: Option<Reservation>,
}

/// What is kept for the first job that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub job: JobId,
    /// When it starts at the latest; `None`: no date can be given.
    pub at: Option<UnixMillis>,
    pub places: Vec<Chosen>,
}

/// Picks what to start now, and says of every other job why not.
pub fn decide(snapshot: &Snapshot) -> Decision {
    let mut pass = Pass {
        snapshot,
        free: snapshot.nodes.clone(),
        unreserved: None,
        decision: Decision::default(),
        failed: HashMap::new(),
    };
    for (position, job) in snapshot.pending.iter().enumerate() {
        let ahead = u32::try_from(position).unwrap_or(u32::MAX);
        let outcome = if position >= DEPTH {
            Err(WaitReason::NotReached { ahead })
        } else {
            pass.try_start(job)
        };
        match outcome {
            Ok(chosen) => pass.decision.start.push((job.job, chosen)),
            Err(reason) => {
                pass.decision.wait.insert(job.job, reason);
            }
        }
    }
    pass.decision
}

struct Pass<'a> {
    snapshot: &'a Snapshot,
    /// What is free, less what this pass has given out.
    free: Vec<NodeView>,
    /// The same, less what is reserved; made with the reservation.
    unreserved: Option<Vec<NodeView>>,
    decision: Decision,
    /// Shapes that did not fit in this pass: what is free only shrinks, so they need no second look.
    failed: HashMap<(&'a Gang, &'a [Within], bool), WaitReason>,
}

impl<'a> Pass<'a> {
    fn try_start(&mut self, job: &'a Pending) -> Result<Vec<Chosen>, WaitReason> {
        if let Some(until) = job.not_before.filter(|t| *t > self.snapshot.now) {
            return Err(WaitReason::BackingOff { until });
        }
        let ends_in_time = self.ends_before_reservation(job);
        let shape = (&job.gang, job.within.as_slice(), ends_in_time);
        if job.avoid.is_empty()
            && let Some(reason) = self.failed.get(&shape)
        {
            return Err(reason.clone());
        }
        let nodes = match &self.unreserved {
            Some(unreserved) if !ends_in_time => unreserved,
            _ => &self.free,
        };
        let levels = &self.snapshot.levels;
        match placement::place(nodes, levels, &job.gang, &job.within, &job.avoid) {
            Ok(chosen) => {
                self.take(job, &chosen);
                Ok(chosen)
            }
            Err(no) => {
                let reason = self.why_not(job, no, ends_in_time);
                if job.avoid.is_empty() {
                    self.failed.insert(shape, reason.clone());
                }
                Err(reason)
            }
        }
    }

    fn ends_before_reservation(&self, job: &Pending) -> bool {
        match (&self.decision.reservation, job.time_limit) {
            (None, _) => true,
            (Some(Reservation { at: Some(at), .. }), Some(limit)) => {
                self.snapshot.now.plus(limit) <= *at
            }
            (Some(_), _) => false,
        }
    }

    fn take(&mut self, job: &Pending, chosen: &[Chosen]) {
        let (cpus, memory) = (job.gang.cpus_per_node(), job.gang.memory_per_node.0);
        for c in chosen {
            self.free[c.node].take(c.gpus, cpus, memory);
            if let Some(unreserved) = &mut self.unreserved {
                let node = &mut unreserved[c.node];
                // A job that ends in time may stand on reserved ground, which is not counted here.
                node.free &= !c.gpus;
                node.cpus_free = node.cpus_free.saturating_sub(cpus);
                node.memory_free = node.memory_free.saturating_sub(memory);
            }
        }
    }

    fn why_not(&mut self, job: &Pending, no: placement::NoFit, ends_in_time: bool) -> WaitReason {
        let snapshot = self.snapshot;
        let (levels, gang) = (&snapshot.levels, &job.gang);
        if let Err(proof) = placement::could_ever_fit(&snapshot.nodes, levels, gang, &job.within) {
            return WaitReason::Infeasible { proof };
        }
        match &self.decision.reservation {
            Some(reservation) if !ends_in_time => {
                let fits_but_for_it =
                    placement::place(&self.free, levels, gang, &job.within, &job.avoid).is_ok();
                if fits_but_for_it {
                    let (job, at) = (reservation.job, reservation.at);
                    return WaitReason::HeldForReservation { job, at };
                }
            }
            Some(_) => {}
            None => self.reserve(job),
        }
        no.reason(gang)
    }

    /// Keeps the earliest place and date for the job: free what ends first until it fits.
    fn reserve(&mut self, job: &Pending) {
        let snapshot = self.snapshot;
        let mut ends: Vec<(UnixMillis, usize)> = snapshot
            .releases
            .iter()
            .enumerate()
            .filter_map(|(i, r)| Some((r.at?.max(snapshot.now), i)))
            .collect();
        // Jobs started in this pass end, too.
        let started: Vec<(UnixMillis, Vec<Chosen>, u32, u64)> = self.started_now();
        ends.extend(started.iter().enumerate().map(|(i, s)| (s.0, snapshot.releases.len() + i)));
        ends.sort();
        let after = |count: usize| {
            let mut nodes = self.free.clone();
            for (_, i) in &ends[..count] {
                match snapshot.releases.get(*i) {
                    Some(release) => give(&mut nodes, &release.places),
                    None => {
                        let (_, chosen, cpus, memory) = &started[*i - snapshot.releases.len()];
                        chosen.iter().for_each(|c| nodes[c.node].give(c.gpus, *cpus, *memory));
                    }
                }
            }
            placement::place(&nodes, &snapshot.levels, &job.gang, &job.within, &job.avoid)
        };
        // More ends never make it fit worse, so the first that suffices is found by halving.
        let (mut low, mut high) = (0, ends.len());
        let dated = after(high).is_ok();
        while dated && low < high {
            let middle = (low + high) / 2;
            if after(middle).is_ok() { high = middle } else { low = middle + 1 }
        }
        let reservation = if dated {
            let at = low.checked_sub(1).map_or(snapshot.now, |last| ends[last].0);
            after(low).ok().map(|places| Reservation { job: job.job, at: Some(at), places })
        } else if snapshot.now.since(job.submitted_at) >= HOLD_AFTER {
            self.undated_places(job).map(|places| Reservation { job: job.job, at: None, places })
        } else {
            None
        };
        if let Some(reservation) = reservation {
            let mut unreserved = self.free.clone();
            for c in &reservation.places {
                let node = &mut unreserved[c.node];
                node.free &= !c.gpus;
                node.cpus_free = node.cpus_free.saturating_sub(job.gang.cpus_per_node());
                node.memory_free = node.memory_free.saturating_sub(job.gang.memory_per_node.0);
            }
            self.unreserved = Some(unreserved);
            self.failed.clear();
            self.decision.reservation = Some(reservation);
        }
    }

    /// Where the job would go if every running job ended: what is kept when no date can be given.
    fn undated_places(&self, job: &Pending) -> Option<Vec<Chosen>> {
        let mut nodes = self.free.clone();
        self.snapshot.releases.iter().for_each(|r| give(&mut nodes, &r.places));
        placement::place(&nodes, &self.snapshot.levels, &job.gang, &job.within, &job.avoid).ok()
    }

    fn started_now(&self) -> Vec<(UnixMillis, Vec<Chosen>, u32, u64)> {
        let by_id: HashMap<JobId, &Pending> =
            self.snapshot.pending.iter().map(|p| (p.job, p)).collect();
        let of = |(id, chosen): &(JobId, Vec<Chosen>)| {
            let job = by_id.get(id)?;
            let end = self.snapshot.now.plus(job.time_limit?);
            let (cpus, memory) = (job.gang.cpus_per_node(), job.gang.memory_per_node.0);
            Some((end, chosen.clone(), cpus, memory))
        };
        self.decision.start.iter().filter_map(of).collect()
    }
}

fn give(nodes: &mut [NodeView], places: &[(usize, u64, u32, u64)]) {
    for (node, gpus, cpus, memory) in places {
        nodes[*node].give(*gpus, *cpus, *memory);
    }
}

/// The lease that follows from a placement. Before it is granted, `verify` has to accept it.
pub fn lease(
    cluster: &Cluster,
    snapshot: &Snapshot,
    job: JobId,
    chosen: &[Chosen],
) -> Option<Lease> {
    let job = cluster.jobs.get(job)?;
    let gang = &job.spec.gang;
    let place = |c: &Chosen| {
        let node = &snapshot.nodes[c.node];
        let gpus = node.gpus.iter().enumerate().filter(|(i, _)| c.gpus >> i & 1 == 1);
        Place {
            node: node.id.clone(),
            session: node.session,
            gpus: gpus.map(|(_, g)| g.id.clone()).collect(),
            cpus: gang.cpus_per_node(),
            memory: gang.memory_per_node,
        }
    };
    Some(Lease {
        attempt: AttemptId { job: job.id, number: job.attempt.map_or(1, |a| a.number + 1) },
        epoch: cluster.epoch,
        places: chosen.iter().map(place).collect(),
    })
}

/// When the job at `target` starts at the latest: this very decision, made again at each future
/// end, with every job using its whole limit. `None` when no date follows from what is known.
pub fn forecast(snapshot: &Snapshot, target: JobId) -> Option<UnixMillis> {
    /// Ends looked at before giving up.
    const STEPS: usize = 2_000;
    let mut snapshot = snapshot.clone();
    // What stands behind the job cannot delay it by more than the reservation allows.
    let position = snapshot.pending.iter().position(|p| p.job == target)?;
    snapshot.pending.truncate(position + 1);
    let limits: HashMap<JobId, (Option<Millis>, Arc<Gang>)> = snapshot
        .pending
        .iter()
        .map(|p| (p.job, (p.time_limit, Arc::new(p.gang.clone()))))
        .collect();
    for _ in 0..STEPS {
        let decision = decide(&snapshot);
        for (id, chosen) in &decision.start {
            if *id == target {
                return Some(snapshot.now);
            }
            let (limit, gang) = &limits[id];
            let (cpus, memory) = (gang.cpus_per_node(), gang.memory_per_node.0);
            chosen.iter().for_each(|c| snapshot.nodes[c.node].take(c.gpus, cpus, memory));
            snapshot.releases.push(crate::placement::Release {
                attempt: AttemptId { job: *id, number: 0 },
                at: limit.map(|l| snapshot.now.plus(l)),
                places: chosen.iter().map(|c| (c.node, c.gpus, cpus, memory)).collect(),
            });
        }
        let started: Vec<JobId> = decision.start.iter().map(|(id, _)| *id).collect();
        snapshot.pending.retain(|p| !started.contains(&p.job));
        // Go on to the next instant at which anything can change.
        let ends = snapshot.releases.iter().filter_map(|r| r.at);
        let waits = snapshot.pending.iter().filter_map(|p| p.not_before);
        let next = ends.chain(waits).filter(|t| *t > snapshot.now).min();
        let overdue = snapshot.releases.iter().any(|r| r.at.is_some_and(|t| t <= snapshot.now));
        let now = match next {
            _ if overdue => snapshot.now,
            Some(next) => next,
            None => return None,
        };
        snapshot.now = now;
        let (ended, running) =
            snapshot.releases.into_iter().partition(|r| r.at.is_some_and(|t| t <= now));
        snapshot.releases = running;
        let ended: Vec<crate::placement::Release> = ended;
        ended.iter().for_each(|r| give(&mut snapshot.nodes, &r.places));
    }
    None
}
