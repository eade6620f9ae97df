//! Where a job would go now: on what is free, without the nodes that are closed to it and without
//! the places kept for others that it would still hold when they are due.

use std::collections::BTreeSet;
use std::sync::Arc;

use tessera_model::{JobId, Millis, NodeId, Tier, UnixMillis, WaitReason};

use super::Pass;
use crate::placement::nodes::NodeSet;
use crate::placement::request::Terms;
use crate::placement::{self, NoFit, Placed, Request, Space};
use crate::queue::Quotas;
use crate::snapshot::{BEGINS_WITHIN, ENDS_WITHIN, NOTICE_MAX, Pending};

/// A job that had to leave so often within a day is left alone.
pub const LEAVES_A_DAY: u32 = 3;
/// A job that has run for less is left alone.
pub const PROTECTED: Millis = Millis::from_secs(60);

/// What is free less some of the places kept.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub space: Space,
    /// With what is kept counted as held.
    pub quotas: Quotas,
}

/// Nodes closed to some jobs, and why.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// Indices of the closures that keep out.
    pub by: Vec<usize>,
    /// The one it has to stay inside.
    pub inside: Option<usize>,
    pub closed: NodeSet,
}

impl<'a> Pass<'a> {
    /// The nodes closed to a job that would hold what it gets over `[start, end)`; an index into
    /// `grounds`.
    pub(super) fn ground(
        &mut self,
        job: &Pending,
        start: UnixMillis,
        end: Option<UnixMillis>,
    ) -> Result<usize, WaitReason> {
        let closures = &self.snapshot.closures;
        let inside = match &job.spec.reservation {
            None => None,
            Some(wanted) => {
                let found = closures.iter().position(|c| {
                    c.is_named(wanted)
                        && c.is_open_to(job)
                        && c.from <= start
                        && c.until.is_none_or(|until| until > start)
                });
                let closed = || WaitReason::ReservationClosed { name: wanted.clone() };
                Some(found.ok_or_else(closed)?)
            }
        };
        let by = (0..closures.len()).filter(|i| closures[*i].keeps_out(job, start, end)).collect();
        Ok(self.ground_of(by, inside))
    }

    pub(super) fn ground_of(&mut self, by: Vec<usize>, inside: Option<usize>) -> usize {
        if let Some(known) = self.grounds.iter().position(|g| g.by == by && g.inside == inside) {
            return known;
        }
        let closures = &self.snapshot.closures;
        let mut closed = match inside {
            None => NodeSet::new(self.free.len()),
            Some(inside) => {
                let mut outside = NodeSet::all(self.free.len());
                outside.subtract(&closures[inside].nodes);
                outside
            }
        };
        by.iter().for_each(|i| closed.union(&closures[*i].nodes));
        closed.union(&self.held);
        self.grounds.push(Ground { by, inside, closed });
        self.grounds.len() - 1
    }

    /// A place for the job now, in its whole size or, where it is elastic, the largest there is.
    pub(super) fn try_now(&mut self, job: &Pending, ground: usize) -> Result<Placed, NoFit> {
        let mask = self.mask(job, job.ends(self.snapshot.now));
        let patient = job.insists_until().is_some_and(|until| until > self.snapshot.now);
        self.try_in(job, ground, mask, !patient)
    }

    /// The same around the places kept that `mask` says, and with or without giving up what it
    /// prefers.
    pub(super) fn try_in(
        &mut self,
        job: &Pending,
        ground: usize,
        mask: u64,
        may_give_up: bool,
    ) -> Result<Placed, NoFit> {
        let (most, least) = job.sizes();
        let most = self.most_by_quota(job, mask, most, least);
        let gives_up = may_give_up && job.insists_until().is_some();
        let mut outcome = match self.fit(job, ground, mask, most, true) {
            Err(_) if gives_up => self.fit(job, ground, mask, most, false),
            other => other,
        };
        if outcome.is_err() && least < most {
            // Fewer whole slices never fit worse, so the most that do are found by halving.
            let unit = job.size_step();
            let mut low = least.div_ceil(unit);
            let mut high = (most - 1) / unit;
            outcome = self.fit(job, ground, mask, low * unit, !gives_up);
            while outcome.is_ok() && low < high {
                let middle = low + (high - low).div_ceil(2);
                match self.fit(job, ground, mask, middle * unit, !gives_up) {
                    Ok(placed) => (low, outcome) = (middle, Ok(placed)),
                    Err(_) => high = middle - 1,
                }
            }
        }
        outcome
    }

    /// One search. What has failed in this pass fails again without a search.
    fn fit(
        &mut self,
        job: &Pending,
        ground: usize,
        mask: u64,
        nodes: u32,
        preferred: bool,
    ) -> Result<Placed, NoFit> {
        let avoid = self.avoided(job, ground, nodes);
        let former = self.former(job, nodes, ground);
        let terms = Terms { avoid: &avoid, former: &former, nodes, preferred };
        let request = Request::new(&self.free, &job.spec, &terms);
        let key = (request.key().clone(), mask, ground);
        self.make_view(mask);
        // What is closed for a team's quota says nothing about the jobs of others.
        let quota = self.closed_by_quota(job, mask);
        if quota.is_none()
            && let Some(no) = self.failed.get(&key)
        {
            return Err(no.clone());
        }
        // Until enough has been asked for to expect anything, the tightest node is the best.
        let mut seats = std::mem::take(&mut self.seats);
        let knows = request.nodes() == 1 && self.snapshot.mix.revision() > 0;
        if knows {
            seats.ready(&self.free, &self.snapshot.mix);
        }
        let chooser = knows.then_some(&mut seats);
        let space = if mask == 0 { &self.free } else { &self.views[&mask].space };
        let found = match &quota {
            None => placement::place(space, &request, &self.grounds[ground].closed, chooser),
            Some(_) => {
                placement::place(space, &request, &self.closed_for(job, ground, mask), chooser)
            }
        };
        self.seats = seats;
        if let (None, Err(no)) = (&quota, &found) {
            self.failed.insert(key, no.clone());
        }
        found
    }

    /// Where its last attempt ran, as far as a start with so many nodes can go on there: a job that
    /// was shrunk stays on the first of the nodes it keeps.
    fn former(&self, job: &Pending, nodes: u32, ground: usize) -> Vec<NodeId> {
        let spec = &job.spec;
        if job.former.len() <= nodes as usize || !spec.roles.is_empty() || spec.spares > 0 {
            return job.former.clone();
        }
        let (layout, closed) = (&self.free.layout, &self.grounds[ground].closed);
        let open = |id: &&NodeId| layout.index(id).is_some_and(|n| !closed.contains(n));
        job.former.iter().filter(open).take(nodes as usize).cloned().collect()
    }

    pub(super) fn make_view(&mut self, mask: u64) {
        if mask == 0 || self.views.contains_key(&mask) {
            return;
        }
        let (mut space, mut quotas) = (self.free.clone(), self.quotas.clone());
        for (_, kept) in self.slots.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
            quotas.take(&space, &kept.spec, &kept.taken);
            for taken in kept.taken.iter() {
                // Part of it may be in use still, which is as good as taken.
                super::future::take_what_is_there(&mut space, taken);
            }
        }
        self.views.insert(mask, View { space, quotas });
    }

    /// The places kept that the job has to leave alone, as bits, if it holds what it gets until `end`.
    pub(super) fn mask(&self, job: &Pending, end: Option<UnixMillis>) -> u64 {
        let in_the_way = |s: &super::Kept| {
            s.live
                && s.job != job.job
                && s.tier <= job.tier()
                && s.at.is_none_or(|at| end.is_none_or(|end| at < end))
                && !self.leaves_in_time(job, s.tier, s.at)
        };
        let bits = self.slots.iter().enumerate().filter(|(_, s)| in_the_way(s));
        bits.fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// Whether a job that starts now can be made to leave before another of that tier is due.
    fn leaves_in_time(&self, job: &Pending, tier: Tier, at: Option<UnixMillis>) -> bool {
        let now = self.snapshot.now;
        let notice = job.spec.checkpoint.as_ref().map_or(Millis(0), |c| c.notice.min(NOTICE_MAX));
        let needs = BEGINS_WITHIN.0 + PROTECTED.0 + notice.0 + 2 * ENDS_WITHIN.0;
        job.tier() == Tier::Idle
            && tier < Tier::Idle
            && job.spec.requeue
            && self.snapshot.habits.left_lately(job.job, now) < LEAVES_A_DAY
            && at.is_some_and(|at| now.plus(Millis(needs)) <= at)
    }

    /// Nodes that failed to start the job, as long as the others could take it.
    pub(super) fn avoided(&mut self, job: &Pending, ground: usize, nodes: u32) -> BTreeSet<NodeId> {
        if job.avoid.is_empty() {
            return BTreeSet::new();
        }
        let emptied = self.emptied();
        let terms = Terms { avoid: &job.avoid, former: &[], nodes, preferred: false };
        let request = Request::new(&emptied, &job.spec, &terms);
        match placement::place(&emptied, &request, &self.grounds[ground].closed, None) {
            Ok(_) => job.avoid.clone(),
            Err(_) => BTreeSet::new(),
        }
    }

    /// The cluster as it would be if all that runs were gone.
    pub(super) fn emptied(&mut self) -> Arc<Space> {
        let snapshot = self.snapshot;
        let make = || {
            let mut space = snapshot.space.clone();
            snapshot.running.iter().flat_map(|r| r.taken.iter()).for_each(|t| space.give(t));
            Arc::new(space)
        };
        Arc::clone(self.emptied.get_or_insert_with(make))
    }

    /// The job of the earliest place kept among those of `mask`.
    pub(super) fn first_in(&self, mask: u64) -> Option<(JobId, Option<UnixMillis>)> {
        let kept = self.slots.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
        let first = kept.min_by_key(|(i, s)| (s.at.is_none(), s.at, *i));
        first.map(|(_, s)| (s.job, s.at))
    }
}
