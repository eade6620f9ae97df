//! When a job would fit at the latest: every running job uses its whole time, nothing breaks, and
//! what is kept for others stays kept.
//!
//! Between two instants at which a kept place or a closure begins or ends, what is free only grows,
//! so each such stretch is asked once, at its last moment, and only in the first that will do is
//! the earliest instant sought, by halving. The answer is exact, not a guess.

use std::sync::Arc;

use tessera_model::{Millis, Tier, UnixMillis};

use super::fit::{LEAVES_A_DAY, PROTECTED};
use super::{Kept, Pass};
use crate::placement::nodes::NodeSet;
use crate::placement::request::Terms;
use crate::placement::{self, Placed, Request, Space, Taken};
use crate::snapshot::{ENDS_WITHIN, OpenTo, Pending, Running, before as before_by, occupies};

/// When something comes back, and what.
pub(super) type End = (UnixMillis, Arc<[Taken]>);

/// Part of what is to be taken that is there to be taken; the rest is in use.
pub(super) fn what_is_there(space: &Space, taken: &Taken) -> Taken {
    let n = taken.node as usize;
    let mut there = Taken {
        gpus: taken.gpus & space.free[n],
        cpus: taken.cpus.min(space.cpus_free[n]),
        memory: taken.memory.min(space.memory_free[n]),
        ..*taken
    };
    if taken.milli < tessera_model::WHOLE_GPU && there.gpus == 0 {
        let bit = taken.gpus.trailing_zeros();
        if let Some(left) = space.shared.get(&(taken.node, bit)) {
            there.gpus = taken.gpus;
            there.milli = taken.milli.min(*left);
        }
    }
    there
}

/// Takes what is there of a place that is kept. Of a whole GPU that others share by now, what is
/// left is taken as well: nobody may begin to share it who would still be there when it is due.
pub(super) fn take_what_is_there(space: &mut Space, taken: &Taken) {
    let there = what_is_there(space, taken);
    space.take(&there);
    let mut rest =
        if taken.milli < tessera_model::WHOLE_GPU { 0 } else { taken.gpus & !there.gpus };
    while rest != 0 {
        let gpus = rest & rest.wrapping_neg();
        rest &= !gpus;
        if let Some(left) = space.shared.get(&(taken.node, gpus.trailing_zeros())).copied() {
            space.take(&Taken { gpus, milli: left, cpus: 0, memory: 0, ..*taken });
        }
    }
}

impl Pass<'_> {
    /// What comes back when, as a job of `tier` may count on: those that have to leave for it leave
    /// in time. Earliest first.
    pub(super) fn ends(&mut self, tier: Tier) -> Arc<Vec<End>> {
        if let Some(known) = self.ends.get(&tier) {
            return Arc::clone(known);
        }
        let now = self.snapshot.now;
        let running = self.snapshot.running.iter();
        let mut ends: Vec<End> = running
            .filter_map(|r| Some((self.end_for(r, tier)?.max(now), Arc::clone(&r.taken))))
            .collect();
        let started = self.started.iter();
        ends.extend(started.filter_map(|(end, _, taken)| Some(((*end)?, Arc::clone(taken)))));
        // Stable, and attempts come in order, so this order is fixed.
        ends.sort_by_key(|(at, _)| *at);
        let ends = Arc::new(ends);
        self.ends.insert(tier, Arc::clone(&ends));
        ends
    }

    /// The same, with those that have to leave for the tier gone already: they are asked in time.
    pub(super) fn ends_at_best(&self, tier: Tier) -> Vec<End> {
        let now = self.snapshot.now;
        let mut ends = Vec::new();
        for r in &self.snapshot.running {
            let end = if self.gives_way(r, tier) { Some(now) } else { r.ends_at };
            ends.extend(end.map(|end| (end.max(now), Arc::clone(&r.taken))));
        }
        let started = self.started.iter();
        ends.extend(started.filter_map(|(end, _, taken)| Some(((*end)?, Arc::clone(taken)))));
        ends.sort_by_key(|(at, _)| *at);
        ends
    }

    /// Whether it is asked to leave in time for a place that is kept in that tier.
    pub(super) fn gives_way(&self, r: &Running, tier: Tier) -> bool {
        r.spec.tier == Tier::Idle
            && tier < Tier::Idle
            && r.spec.requeue
            && !r.leaving
            && r.left_lately < LEAVES_A_DAY
    }

    fn end_for(&self, r: &Running, tier: Tier) -> Option<UnixMillis> {
        if !self.gives_way(r, tier) {
            return r.ends_at;
        }
        let now = self.snapshot.now;
        let free_to_go = r.started.unwrap_or(now).plus(PROTECTED).max(now);
        let left = free_to_go.plus(Millis(r.notice().0 + ENDS_WITHIN.0));
        Some(r.ends_at.map_or(left, |end| end.min(left)))
    }

    /// The earliest instant at which the job fits, and where; before `before`, if that is given.
    pub(super) fn earliest(
        &mut self,
        job: &Pending,
        ends: &[End],
        before: Option<UnixMillis>,
    ) -> Option<(UnixMillis, Placed)> {
        let now = self.snapshot.now.max(job.not_before.unwrap_or_default());
        let length = job.spec.time_limit.map(occupies);
        let slots: Vec<Kept> = self.slots.iter().filter(|s| is_before(s, job)).cloned().collect();
        let points = self.points(job, &slots, now, before);
        let mut ahead = Ahead::new(&self.free, ends);
        for (i, from) in points.iter().enumerate() {
            let until = points.get(i + 1).copied().into_iter().chain(before).min();
            let end = length.map(|l| from.plus(l));
            let Ok(ground) = self.ground(job, *from, end) else { continue };
            let closed = self.closed_for(job, ground, 0);
            let blocked: Vec<&Kept> = slots.iter().filter(|s| s.meets(*from, end)).collect();
            let preferred = job.insists_until().is_none_or(|until| *from < until);
            let avoid = self.avoided(job, ground, job.sizes().1);
            let terms =
                Terms { avoid: &avoid, former: &job.former, nodes: job.sizes().1, preferred };
            let request = Request::new(&self.free, &job.spec, &terms);
            // All that is back by the last moment of this stretch.
            let last = until.map_or(ends.len(), |u| ends.partition_point(|(at, _)| *at < u));
            if ahead.place(last, &blocked, &request, &closed).is_none() {
                continue;
            }
            let (mut low, mut high) = (ends.partition_point(|(at, _)| at <= from).min(last), last);
            while low < high {
                let middle = (low + high) / 2;
                match ahead.place(middle, &blocked, &request, &closed) {
                    Some(_) => high = middle,
                    None => low = middle + 1,
                }
            }
            let at = low.checked_sub(1).map_or(*from, |l| ends[l].0.max(*from));
            let placed = ahead.on_busy_nodes(low, &blocked, &request, &closed, &self.free)?;
            return Some((at, placed));
        }
        None
    }

    /// The instants from `now` on at which what is closed or kept changes for the job.
    fn points(
        &self,
        job: &Pending,
        slots: &[Kept],
        now: UnixMillis,
        before: Option<UnixMillis>,
    ) -> Vec<UnixMillis> {
        let length = job.spec.time_limit.map(occupies);
        // The first start that would still be there when something begins.
        let meets = |at: UnixMillis| length.map(|l| before_by(at, l).plus(Millis(1)));
        let mut points = vec![now];
        for slot in slots {
            points.extend(slot.at.and_then(meets));
            points.extend(slot.until);
        }
        for closure in &self.snapshot.closures {
            points.extend(meets(closure.from));
            points.extend(closure.until);
            if matches!(closure.open_to, OpenTo::Teams { .. }) {
                points.push(closure.from);
            }
        }
        points.extend(job.insists_until());
        points.retain(|p| *p >= now && before.is_none_or(|b| *p < b));
        points.sort_unstable();
        points.dedup();
        points
    }
}

/// Whether a kept place goes before the job.
fn is_before(slot: &Kept, job: &Pending) -> bool {
    slot.live && slot.job != job.job && slot.tier <= job.tier()
}

/// A space that moves through time.
pub(super) struct Ahead<'e> {
    space: Space,
    ends: &'e [End],
    given: usize,
}

impl<'e> Ahead<'e> {
    pub(super) fn new(free: &Space, ends: &'e [End]) -> Self {
        Self { space: free.clone(), ends, given: 0 }
    }

    /// The space once the first `count` ends are back.
    pub(super) fn after(&mut self, count: usize) -> &mut Space {
        while self.given < count {
            self.ends[self.given].1.iter().for_each(|t| self.space.give(t));
            self.given += 1;
        }
        while self.given > count {
            self.given -= 1;
            self.ends[self.given].1.iter().for_each(|t| self.space.take(t));
        }
        &mut self.space
    }

    fn place(
        &mut self,
        count: usize,
        blocked: &[&Kept],
        request: &Request,
        closed: &NodeSet,
    ) -> Option<Placed> {
        without(self.after(count), blocked, |space| {
            placement::place(space, request, closed, None).ok()
        })
    }

    /// A place that leaves as much of what is free now to others as can be: of the nodes the job
    /// could use now, only the first so many that are needed.
    fn on_busy_nodes(
        &mut self,
        count: usize,
        blocked: &[&Kept],
        request: &Request,
        closed: &NodeSet,
        now: &Space,
    ) -> Option<Placed> {
        let any = self.place(count, blocked, request, closed)?;
        let gpus = any.places.iter().map(|c| c.gpus.count_ones()).max().unwrap_or(0);
        let nodes = 0..u32::try_from(now.len()).unwrap_or(u32::MAX);
        let idle: Vec<u32> = nodes
            .filter(|n| {
                let free = now.free[*n as usize].count_ones();
                now.takes_jobs[*n as usize] && free >= gpus.max(1) && !closed.contains(*n)
            })
            .collect();
        let with = |ahead: &mut Self, open: usize| {
            let mut closed = closed.clone();
            idle[open..].iter().for_each(|n| closed.insert(*n));
            ahead.place(count, blocked, request, &closed)
        };
        let uses = any.places.iter().filter(|c| idle.binary_search(&c.node).is_ok()).count();
        if uses == 0 {
            return Some(any);
        }
        let (mut low, mut high, mut best) = (0, idle.len(), any);
        while low < high {
            let middle = (low + high) / 2;
            match with(self, middle) {
                Some(placed) => (high, best) = (middle, placed),
                None => low = middle + 1,
            }
        }
        Some(best)
    }
}

/// Asks a space as it is without the places kept, and puts them back.
pub(super) fn without<T>(space: &mut Space, blocked: &[&Kept], ask: impl FnOnce(&Space) -> T) -> T {
    let mark = space.mark();
    for t in blocked.iter().flat_map(|k| k.taken.iter()) {
        take_what_is_there(space, t);
    }
    let answer = ask(space);
    space.undo_to(mark);
    answer
}
