//! What a job's team may hold, as the pass goes on: what it has started counts at once, and so do
//! places kept that a job would still be there for.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_model::{JobSpec, TeamId, WaitReason};

use super::Pass;
use crate::placement::nodes::NodeSet;
use crate::placement::{Placed, Taken};
use crate::queue::Quotas;
use crate::queue::quota::Borrower;
use crate::snapshot::Pending;

impl Pass<'_> {
    pub(super) fn quotas(&self, mask: u64) -> &Quotas {
        self.views.get(&mask).map_or(&self.quotas, |v| &v.quotas)
    }

    /// Why the job's team may not have what it asks, in the smallest size it would start with.
    pub(super) fn over_quota(&mut self, job: &Pending, mask: u64) -> Option<WaitReason> {
        if self.quotas.is_empty() {
            return None;
        }
        self.make_view(mask);
        let (most, least) = job.sizes();
        let spec = if least < most { smaller(&job.spec, least) } else { Arc::clone(&job.spec) };
        self.quotas(mask).check(&spec).err()
    }

    /// The largest of an elastic job's sizes that its team may have; the least is known to be one.
    pub(super) fn most_by_quota(&mut self, job: &Pending, mask: u64, most: u32, least: u32) -> u32 {
        if self.quotas.is_empty() || least >= most {
            return most;
        }
        self.make_view(mask);
        let quotas = self.quotas(mask);
        let mut spec = JobSpec::clone(&job.spec);
        let mut may = |nodes: u32| {
            spec.gang.nodes = nodes;
            quotas.check(&spec).is_ok()
        };
        if may(most) {
            return most;
        }
        let unit = job.size_step();
        let (mut low, mut high) = (least.div_ceil(unit), (most - 1) / unit);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if may(middle * unit) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low * unit
    }

    /// Why its team may not have a place that was found.
    pub(super) fn over_quota_at(
        &self,
        job: &Pending,
        mask: u64,
        placed: &Placed,
    ) -> Option<WaitReason> {
        if self.quotas.is_empty() {
            return None;
        }
        let taken: Vec<Taken> = placed.taken(&job.spec).collect();
        self.quotas(mask).check_placed(&self.free, &job.spec, &taken).err()
    }

    /// The nodes of a ground that are closed to the job, those closed for its quota among them.
    pub(super) fn closed_for(&self, job: &Pending, ground: usize, mask: u64) -> NodeSet {
        let mut closed = self.grounds[ground].closed.clone();
        if let Some(more) = self.closed_by_quota(job, mask) {
            closed.union(&more);
        }
        closed
    }

    pub(super) fn closed_by_quota(&self, job: &Pending, mask: u64) -> Option<NodeSet> {
        let quotas = self.quotas(mask);
        if quotas.is_empty() { None } else { quotas.closed_to(&self.free, &job.spec) }
    }

    /// Teams that hold what the job's team is guaranteed, as long as the job stays within that. Who
    /// was asked to leave already holds nothing any more, and what is kept for others of the job's
    /// team counts as theirs.
    pub(super) fn owed_by(&self, job: &Pending) -> Vec<Borrower> {
        if self.quotas.is_empty() {
            return Vec::new();
        }
        let mut quotas = self.quotas.clone();
        for kept in self.slots.iter().filter(|s| s.live && s.job != job.job && s.at.is_none()) {
            quotas.take(&self.free, &kept.spec, &kept.taken);
        }
        for r in &self.snapshot.running {
            if r.leaves_for.is_some() || self.leaving.contains(&r.attempt) {
                quotas.give(&self.free, &r.spec, &r.taken);
            }
        }
        quotas.borrowers(&job.spec)
    }

    /// Whether each of these running jobs would leave while its team still holds too much.
    pub(super) fn only_what_is_borrowed(
        &self,
        job: &Pending,
        leaving: impl Iterator<Item = usize>,
    ) -> bool {
        let owed = self.owed_by(job);
        let mut excess: BTreeMap<&TeamId, u64> = owed.iter().map(|b| (&b.team, b.excess)).collect();
        let running = leaving.map(|i| &self.snapshot.running[i]);
        let mut sizes: Vec<(u64, &TeamId)> = running
            .filter(|r| r.spec.tier == job.tier())
            .map(|r| (held(&r.taken), &r.spec.team))
            .collect();
        sizes.sort_unstable();
        sizes.into_iter().all(|(size, team)| {
            let Some(left) = excess.get_mut(team).filter(|left| **left > 0) else { return false };
            *left = left.saturating_sub(size);
            true
        })
    }
}

fn smaller(spec: &JobSpec, nodes: u32) -> Arc<JobSpec> {
    let mut spec = spec.clone();
    spec.gang.nodes = nodes;
    Arc::new(spec)
}

/// Thousandths of GPUs.
fn held(taken: &[Taken]) -> u64 {
    taken.iter().map(|t| u64::from(t.gpus.count_ones()) * u64::from(t.milli)).sum()
}
