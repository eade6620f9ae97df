//! Places and dates that are kept for blocked jobs.
//!
//! A place that was promised stands in the cluster's state until the job starts, so that what is
//! decided in between leaves it free at its date. In each pass it is looked at again: whether it
//! still can be had, and whether the job could start sooner elsewhere. The nodes bind at the start
//! and not before; the date only moves later when capacity was lost, a job of a higher tier went
//! before, or somebody changed something.

use std::sync::Arc;

use tessera_model::{Eta, JobId, JobSpec, Millis, Tier, UnixMillis, WHOLE_GPU};

use super::future::{Ahead, End, without};
use super::{HOLD_AFTER, PROMISE_AT_PERCENT, Pass, Promised, Reserved};
use crate::event::PromiseCause;
use crate::placement::request::Terms;
use crate::placement::{self, Chosen, Placed, Request, Space, Taken};
use crate::promises::{Slot, SlotPlace};
use crate::snapshot::{BEGINS_WITHIN, ENDS_WITHIN, Pending, occupies};

/// By how much a promised start is moved on without a word when the one before it is late.
const LATE: Millis = Millis::from_secs(60);
/// Bits in a view's mask.
const SLOTS_MAX: usize = 63;

/// A place that is kept in this pass.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub job: JobId,
    pub spec: Arc<JobSpec>,
    pub tier: Tier,
    /// `None`: kept from now on, since no date can be given.
    pub at: Option<UnixMillis>,
    pub until: Option<UnixMillis>,
    pub taken: Arc<[Taken]>,
    /// False once the job has started, or keeps another place.
    pub live: bool,
}

impl Kept {
    pub fn of(
        job: &Pending,
        at: Option<UnixMillis>,
        until: Option<UnixMillis>,
        taken: Arc<[Taken]>,
    ) -> Self {
        let (spec, tier) = (Arc::clone(&job.spec), job.tier());
        Self { job: job.job, spec, tier, at, until, taken, live: true }
    }

    /// Whether somebody who holds something over `[start, end)` meets it.
    pub fn meets(&self, start: UnixMillis, end: Option<UnixMillis>) -> bool {
        let begins_before = match (self.at, end) {
            (Some(at), Some(end)) => at < end,
            _ => true,
        };
        begins_before && self.until.is_none_or(|until| until > start)
    }
}

impl<'a> Pass<'a> {
    /// From here on jobs of `tier` have their turn: what was promised to them comes into force, as
    /// far as it can be kept.
    pub(super) fn enter(&mut self, tier: Tier) {
        if self.tier.is_some_and(|t| t >= tier) {
            return;
        }
        self.tier = Some(tier);
        let snapshot = self.snapshot;
        let promised: Vec<(&Pending, Arc<Slot>)> = snapshot
            .queue
            .iter()
            .filter(|p| p.tier() == tier)
            .filter_map(|p| {
                let slot = snapshot.slots.iter().find(|(job, _)| *job == p.job)?;
                Some((p, Arc::clone(&slot.1)))
            })
            .collect();
        if promised.is_empty() {
            return;
        }
        let ends = self.ends_at_best(tier);
        for (job, slot) in promised {
            // A view has no bit for more; those behind keep nothing in this pass.
            if self.slots.len() >= SLOTS_MAX {
                self.broken.push((job.job, PromiseCause::Overtaken));
                continue;
            }
            let (at, until) = self.due(job, &slot);
            match self.still_there(job, &slot, (at, until), &ends) {
                Ok(taken) => self.slots.push(Kept::of(job, Some(at), until, taken)),
                Err(cause) => self.broken.push((job.job, cause)),
            }
        }
    }

    /// The time a promised place is kept for, as things stand: what is due now and has not started
    /// is due now, and who is to follow on the same nodes follows as much later, if that is little.
    fn due(&self, job: &Pending, slot: &Slot) -> (UnixMillis, Option<UnixMillis>) {
        let late = slot.at.plus(LATE);
        let before = self.slots.iter().filter(|s| s.live && s.job != job.job);
        let taken = taken_in(&self.snapshot.space, job, slot);
        let taken = taken.as_deref().unwrap_or(&[]);
        let until = before.filter_map(|s| {
            let until = s.until.filter(|until| *until > slot.at && *until <= late)?;
            let shares = s.taken.iter().any(|t| taken.iter().any(|u| u.node == t.node));
            shares.then_some(until)
        });
        let at = until.max().unwrap_or(slot.at).max(slot.at).max(self.snapshot.now);
        (at, slot.until.map(|until| until.plus(at.since(slot.at))))
    }

    /// Whether a place that was promised can be had at its date, next to what is kept already.
    fn still_there(
        &mut self,
        job: &Pending,
        slot: &Slot,
        (at, until): (UnixMillis, Option<UnixMillis>),
        ends: &[End],
    ) -> Result<Arc<[Taken]>, PromiseCause> {
        let space = &self.snapshot.space;
        let taken = taken_in(space, job, slot).ok_or(PromiseCause::LostCapacity)?;
        let well = |t: &Taken| {
            let n = t.node as usize;
            space.takes_jobs[n] && t.gpus & !space.healthy[n] == 0
        };
        if !taken.iter().all(well) {
            return Err(PromiseCause::LostCapacity);
        }
        for closure in self.snapshot.closures.iter().filter(|c| c.keeps_out(job, at, until)) {
            if !taken.iter().any(|t| closure.nodes.contains(t.node)) {
                continue;
            }
            match closure.tier {
                None => return Err(PromiseCause::LostCapacity),
                Some(tier) if tier < job.tier() => return Err(PromiseCause::Overtaken),
                // Whom others leave for was given nodes that this place does not need in that time.
                Some(_) => {}
            }
        }
        if let Some(name) = &job.spec.reservation {
            let inside = |c: &&crate::snapshot::Closure| {
                c.is_named(name) && c.meets(at, Some(at.plus(Millis(1))))
            };
            let window = self.snapshot.closures.iter().find(inside);
            let all = |c: &crate::snapshot::Closure| taken.iter().all(|t| c.nodes.contains(t.node));
            if !window.is_some_and(all) {
                return Err(PromiseCause::LostCapacity);
            }
        }
        let kept: Vec<&super::Kept> =
            self.slots.iter().filter(|s| s.live && s.meets(at, until)).collect();
        // What should be back by now is taken to be back at any moment.
        let back = ends.partition_point(|(end, _)| *end <= at);
        let mut ahead = Ahead::new(&self.free, ends);
        if without(ahead.after(back), &kept, |space| all_there(space, &taken)) {
            return Ok(taken);
        }
        // Somebody else has it: one of a higher tier, or one that stays longer than it should.
        let before = self.slots.iter().any(|s| s.live && s.tier < job.tier() && overlap(s, &taken));
        let by_start = |(_, tier, theirs): &(_, Tier, Arc<[Taken]>)| {
            *tier < job.tier() && theirs.iter().any(|t| taken.iter().any(|u| u.node == t.node))
        };
        let running = self.snapshot.running.iter().any(|r| {
            r.spec.tier < job.tier()
                && r.taken.iter().any(|t| taken.iter().any(|u| u.node == t.node))
        });
        if before || running || self.started.iter().any(by_start) {
            Err(PromiseCause::Overtaken)
        } else {
            Err(PromiseCause::LostCapacity)
        }
    }

    /// Keeps a place for a blocked job, or a better one than it has.
    pub(super) fn keep_place(&mut self, job: &Pending) {
        let now = self.snapshot.now;
        let own = self.slots.iter().position(|s| s.live && s.job == job.job);
        let ends = self.ends(job.tier());
        if let Some(own) = own {
            let Some(at) = self.slots[own].at else { return };
            let before = crate::snapshot::before(at, tolerance(now, at));
            // A better place needs a bit of its own; without one the job keeps what it has.
            if before <= now || self.slots.len() >= SLOTS_MAX {
                return;
            }
            if let Some((sooner, placed)) = self.earliest(job, &ends, Some(before)) {
                self.promise(job, sooner, &placed, PromiseCause::Earlier);
            }
            return;
        }
        let lost = self.broken.iter().find(|(id, _)| *id == job.job).map(|(_, cause)| *cause);
        let kept = self.slots.iter().filter(|s| s.live && s.tier <= job.tier()).count();
        if (kept >= self.reservations && lost.is_none()) || self.slots.len() >= SLOTS_MAX {
            self.withdraw(job.job, PromiseCause::Overtaken);
            return;
        }
        let cause = match (lost, job.promise) {
            (Some(cause), _) => cause,
            // It was promised a start, and what was kept for it suits it no more.
            (None, Some(_)) => PromiseCause::Changed,
            (None, None) => PromiseCause::Reserved,
        };
        let sla = job.tier().start_sla().0;
        let due = job.eligible_at.plus(Millis(sla / 100 * PROMISE_AT_PERCENT));
        match self.earliest(job, &ends, None) {
            Some((at, placed)) if cause == PromiseCause::Reserved && now < due => {
                self.wake_at(due);
                let at = at.max(now.plus(ENDS_WITHIN));
                let until = job.spec.time_limit.map(|l| at.plus(occupies(l)));
                let taken = placed.taken(&job.spec).collect();
                self.keep(Kept::of(job, Some(at), until, taken));
            }
            Some((at, placed)) => self.promise(job, at, &placed, cause),
            None => {
                self.withdraw(job.job, cause);
                self.hold_without_date(job);
            }
        }
    }

    fn promise(&mut self, job: &Pending, at: UnixMillis, placed: &Placed, cause: PromiseCause) {
        // Whatever comes back at any moment needs a moment to come back.
        let at = at.max(self.snapshot.now.plus(ENDS_WITHIN));
        let until = job.spec.time_limit.map(|l| at.plus(occupies(l)));
        let layout = &self.snapshot.space.layout;
        let place =
            |c: &Chosen| SlotPlace { node: layout.ids[c.node as usize].clone(), gpus: c.gpus };
        let places = placed.places.iter().map(place).collect();
        let slot = Arc::new(Slot { at, until, nodes: placed.nodes, places });
        let taken = placed.taken(&job.spec).collect();
        self.drop_slot(job.job);
        self.keep(Kept::of(job, Some(at), until, taken));
        self.broken.retain(|(id, _)| *id != job.job);
        let eta = if cause == PromiseCause::Reserved { self.eta(job, at) } else { None };
        self.say(Promised { job: job.job, at: Some(at), cause, slot: Some(slot), eta });
    }

    /// What can be expected of a job whose place is kept for `at`: the same question, with run
    /// times as they usually are.
    pub(crate) fn eta(&mut self, job: &Pending, at: UnixMillis) -> Option<Eta> {
        let p50 = self.expected(job, 50)?;
        let p90 = self.expected(job, 90)?;
        Some(Eta { p50: p50.min(at), p90: p90.max(p50).min(at) })
    }

    fn expected(&mut self, job: &Pending, percent: u32) -> Option<UnixMillis> {
        let now = self.snapshot.now;
        let usual = |spec: &tessera_model::JobSpec, started: Option<UnixMillis>| {
            let elapsed = started.map_or(Millis(0), |s| now.since(s));
            let length = self.snapshot.habits.length(spec, elapsed, percent)?;
            Some(started.unwrap_or(now.plus(BEGINS_WITHIN)).plus(length))
        };
        let mut known = false;
        let mut ends: Vec<End> = Vec::new();
        for r in self.snapshot.running.iter() {
            let usual = usual(&r.spec, r.started).filter(|_| !r.leaving);
            known |= usual.is_some();
            let end = usual.into_iter().chain(r.ends_at).min();
            ends.extend(end.map(|e| (e.max(now), Arc::clone(&r.taken))));
        }
        let started = self.started.iter();
        ends.extend(started.filter_map(|(end, _, taken)| Some(((*end)?, Arc::clone(taken)))));
        ends.sort_by_key(|(at, _)| *at);
        if !known {
            return None;
        }
        self.earliest(job, &ends, None).map(|(at, _)| at)
    }

    /// No date follows from what is known. After a while it keeps the nodes it would get if all
    /// that runs were gone, from now on.
    fn hold_without_date(&mut self, job: &Pending) {
        let now = self.snapshot.now;
        if now.since(job.eligible_at) < HOLD_AFTER {
            self.wake_at(job.eligible_at.plus(HOLD_AFTER));
            return;
        }
        let Ok(ground) = self.ground(job, now, None) else { return };
        let emptied = self.emptied();
        let avoid = self.avoided(job, ground, job.sizes().1);
        let preferred = job.insists_until().is_none_or(|until| now < until);
        let terms = Terms { avoid: &avoid, former: &job.former, nodes: job.sizes().1, preferred };
        let request = Request::new(&emptied, &job.spec, &terms);
        let mut space = Space::clone(&emptied);
        let kept: Vec<Kept> =
            self.slots.iter().filter(|s| s.live && s.tier <= job.tier()).cloned().collect();
        let kept: Vec<&Kept> = kept.iter().collect();
        let closed = &self.grounds[ground].closed;
        let placed = without(&mut space, &kept, |space| {
            placement::place(space, &request, closed, None).ok()
        });
        let Some(placed) = placed else { return };
        let taken = placed.taken(&job.spec).collect();
        self.keep(Kept::of(job, None, None, taken));
    }

    /// From here on in this pass the place is kept.
    pub(super) fn keep(&mut self, kept: Kept) {
        if self.slots.len() < SLOTS_MAX {
            kept.at.into_iter().for_each(|at| self.wake_at(at));
            self.slots.push(kept);
        }
    }

    /// The job keeps its place no longer.
    pub(super) fn drop_slot(&mut self, job: JobId) {
        self.slots.iter_mut().filter(|s| s.job == job).for_each(|s| s.live = false);
    }

    /// Whether the place kept for the job was promised to it, and not only found in this pass.
    pub(super) fn is_promised(&self, job: JobId) -> bool {
        match self.decision.promises.iter().find(|p| p.job == job) {
            Some(said) => said.at.is_some(),
            None => {
                self.snapshot.slots.iter().any(|(id, _)| *id == job)
                    && !self.broken.iter().any(|(id, _)| *id == job)
            }
        }
    }

    /// A promise that cannot be kept, and no new one can be made: for `why`, unless it was broken
    /// for another reason before.
    pub(super) fn withdraw(&mut self, job: JobId, why: PromiseCause) {
        self.drop_slot(job);
        let lost = self.broken.iter().position(|(id, _)| *id == job);
        let cause = lost.map(|i| self.broken.remove(i).1);
        if self.snapshot.slots.iter().any(|(id, _)| *id == job) {
            let cause = cause.unwrap_or(why);
            self.say(Promised { job, at: None, cause, slot: None, eta: None });
        }
    }

    fn say(&mut self, promised: Promised) {
        self.decision.promises.retain(|p| p.job != promised.job);
        self.decision.promises.push(promised);
    }

    /// Promises of jobs that did not have a turn in this pass are over: they were held back, or
    /// something has to end before them. What started needs no promise any more.
    pub(super) fn report_slots(&mut self) {
        let started: Vec<JobId> = self.decision.start.iter().map(|s| s.job).collect();
        self.decision.promises.retain(|p| !started.contains(&p.job));
        let queued = |job: &JobId| self.snapshot.queue.iter().any(|p| p.job == *job);
        let gone: Vec<JobId> =
            self.snapshot.slots.iter().map(|(job, _)| *job).filter(|j| !queued(j)).collect();
        for job in gone {
            let cause = PromiseCause::Changed;
            self.say(Promised { job, at: None, cause, slot: None, eta: None });
        }
        let live = self.slots.iter().filter(|s| s.live);
        self.decision.reservations =
            live.map(|s| Reserved { job: s.job, at: s.at, taken: s.taken.to_vec() }).collect();
    }
}

/// By how much a date may be off without a word: a hundredth of what is left until then.
pub(super) fn tolerance(now: UnixMillis, at: UnixMillis) -> Millis {
    Millis((at.since(now).0 / 100).max(1_000))
}

/// What a kept place takes; `None` when a node is gone.
fn taken_in(space: &Space, job: &Pending, slot: &Slot) -> Option<Arc<[Taken]>> {
    let spec = &job.spec;
    let mut shapes = Vec::new();
    for (i, (_, gang)) in spec.all_roles().enumerate() {
        let count = if i == 0 { slot.nodes } else { gang.nodes };
        shapes.extend(std::iter::repeat_n(gang, count as usize));
    }
    shapes.extend(std::iter::repeat_n(&spec.gang, spec.spares as usize));
    if shapes.len() != slot.places.len() {
        return None;
    }
    let taken = slot.places.iter().zip(shapes).map(|(place, gang)| {
        Some(Taken {
            node: space.layout.index(&place.node)?,
            gpus: place.gpus,
            milli: if gang.is_share() { gang.gpu_milli } else { WHOLE_GPU },
            cpus: gang.cpus_per_node(),
            memory: gang.memory_per_node.0,
        })
    });
    taken.collect()
}

/// Whether all of it is free at once.
fn all_there(space: &Space, taken: &[Taken]) -> bool {
    taken.iter().all(|t| super::future::what_is_there(space, t) == *t)
}

pub(super) fn overlap(slot: &Kept, taken: &[Taken]) -> bool {
    slot.taken.iter().any(|t| taken.iter().any(|u| u.node == t.node && u.gpus & t.gpus != 0))
}
