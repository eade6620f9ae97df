//! Who has to leave for whom: the domain that costs the least work.
//!
//! A blocked job may have jobs of a lower tier stopped, and, within what its team is guaranteed,
//! jobs of those who borrowed it. Victims are whole jobs, or nodes that an elastic one can do
//! without. What a victim costs is the work since its last checkpoint and what a restart takes. A
//! plan is tried out before anybody is told: only if the job then fits is it carried out, and the
//! nodes it frees are kept for the job. Who left cannot come back onto them, and a job that makes
//! room makes no second plan meanwhile, so nothing goes back and forth.

mod domain; // the cheapest way to free one domain

use std::collections::BTreeSet;
use std::sync::Arc;

use tessera_model::{Hold, JobId, Millis, Tier, UnixMillis, WaitReason};

use super::fit::{LEAVES_A_DAY, PROTECTED};
use super::{Leave, Pass};
use crate::event::LeaveWhy;
use crate::habits::MOVES_A_DAY_GPU_MS;
use crate::placement::{NodeSet, Placed, Taken, gpus};
use crate::snapshot::{ENDS_WITHIN, OpenTo, Pending, Running};

/// How long freed nodes are kept after the last victim's notice is over.
const HELD_FOR: Millis = Millis::from_secs(300);
/// Plans carried out in one pass at most.
const PLANS_MAX: u32 = 8;
/// Searches for a plan in one pass at most, whether or not one comes of it.
const SEARCHES_MAX: u32 = 32;
/// How long after a checkpoint a job may be moved for next to nothing.
const FRESH: Millis = Millis::from_secs(120);
/// How much sooner than needed somebody is asked to clear a kept place: a few rounds.
const AHEAD: Millis = Millis::from_secs(30);

/// Somebody who could leave.
#[derive(Debug, Clone)]
struct Victim {
    /// In the snapshot's `running`.
    index: usize,
    taken: Arc<[Taken]>,
    /// GPU-milliseconds of work that would be lost.
    cost: u64,
    /// The last so many nodes can go alone; `None`: all of it has to.
    spare_nodes: Option<usize>,
}

/// Who leaves, and where the job goes then.
#[derive(Debug, Clone)]
struct Plan {
    victims: Vec<usize>,
    placed: Placed,
    cost: u64,
    /// Where victims that are moved go on, in their order.
    moved_to: Vec<Vec<Taken>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Of a lower tier.
    Tier,
    /// What the job's team is guaranteed.
    Guarantee,
    /// Moved elsewhere, right after a checkpoint.
    Move,
}

impl Pass<'_> {
    /// Finds out whether others have to leave for a blocked job; then it waits for them.
    pub(super) fn make_room(
        &mut self,
        job: &Pending,
        shape: usize,
        ground: usize,
        reason: &WaitReason,
    ) -> Option<WaitReason> {
        let is_mine = |o: &OpenTo| *o == OpenTo::Job(job.job);
        if let Some(held) = self.snapshot.closures.iter().find(|c| is_mine(&c.open_to)) {
            let taken = self.claim_on(job, &held.nodes);
            self.drop_slot(job.job);
            self.keep(super::Kept::of(job, None, None, taken));
            return self.making_room(job.job);
        }
        let blocked = matches!(
            reason,
            WaitReason::NotEnoughFree { .. }
                | WaitReason::Undivided { .. }
                | WaitReason::NotFound { .. }
                | WaitReason::HeldForReservation { .. }
        );
        let spent = self.plans >= PLANS_MAX || self.searches >= SEARCHES_MAX;
        if !blocked || !self.may_preempt || spent {
            return None;
        }
        let key = (shape, ground, job.tier(), job.spec.team.clone(), job.spec.time_limit);
        if self.no_plan.contains(&key) {
            return None;
        }
        for (claim, victims) in self.choices(job) {
            if let Some(mut plan) = self.cheapest(job, ground, &victims)
                && self.within_bounds(job, claim, &victims, &mut plan)
            {
                self.plans += 1;
                return Some(self.carry_out(job, claim, &victims, &plan));
            }
        }
        self.no_plan.insert(key);
        None
    }

    /// What the job is going to take on the nodes that are kept for it, near enough to count.
    fn claim_on(&self, job: &Pending, nodes: &NodeSet) -> Arc<[Taken]> {
        let (gang, layout) = (&job.spec.gang, &self.free.layout);
        let model = gang.gpu_model.as_deref().map(str::to_lowercase);
        let claim = |node| {
            let mut gpus = gpus::of_model(layout.kind_of(node), model.as_deref());
            while gpus.count_ones() > gang.gpus_per_node {
                gpus &= gpus - 1;
            }
            let milli = if gang.is_share() { gang.gpu_milli } else { tessera_model::WHOLE_GPU };
            let (cpus, memory) = (gang.cpus_per_node(), gang.memory_per_node.0);
            Taken { node, gpus, milli, cpus, memory }
        };
        nodes.iter().map(claim).collect()
    }

    /// It waits for those who were asked to leave for it.
    fn making_room(&self, job: JobId) -> Option<WaitReason> {
        let leaving = self.snapshot.running.iter().filter_map(|r| {
            let (by, deadline) = r.leaves_for?;
            (by == job).then_some((r.attempt.job, deadline))
        });
        let (victims, deadlines): (Vec<JobId>, Vec<UnixMillis>) = leaving.unzip();
        let by = deadlines.into_iter().max().unwrap_or(self.snapshot.now).plus(ENDS_WITHIN);
        Some(WaitReason::MakingRoom { victims, by })
    }

    /// Sets of victims in the order they are tried: the least harm first.
    fn choices(&self, job: &Pending) -> Vec<(Claim, Vec<Victim>)> {
        let lower =
            |above: Tier| move |r: &Running| r.spec.tier > job.tier() && r.spec.tier >= above;
        let mut choices = Vec::new();
        let mut add = |claim, victims: Vec<Victim>| {
            let who = |v: &Victim| (v.index, v.spare_nodes);
            let as_before = choices.last().is_some_and(|(_, last): &(Claim, Vec<Victim>)| {
                last.iter().map(who).eq(victims.iter().map(who))
            });
            if !victims.is_empty() && !as_before {
                choices.push((claim, victims));
            }
        };
        let shrinkable: Vec<Victim> = self
            .victims(&lower(Tier::Normal))
            .into_iter()
            .filter(|v| v.spare_nodes.is_some_and(|n| n > 0))
            .collect();
        add(Claim::Tier, shrinkable);
        let whole = |victims: Vec<Victim>| -> Vec<Victim> {
            victims.into_iter().map(|v| Victim { spare_nodes: None, ..v }).collect()
        };
        // Those of the lowest tier can stop nobody in their turn.
        add(Claim::Tier, whole(self.victims(&lower(Tier::Idle))));
        add(Claim::Tier, whole(self.victims(&lower(Tier::Normal))));
        let owed = self.owed_by(job);
        if !owed.is_empty() {
            let borrows = |r: &Running| {
                r.spec.tier >= job.tier()
                    && (r.spec.tier > job.tier() || owed.iter().any(|b| b.team == r.spec.team))
            };
            add(Claim::Guarantee, whole(self.victims(&borrows)));
        }
        let now = self.snapshot.now;
        if job.spec.nodes() > 1 && self.snapshot.habits.moved_lately(now) < MOVES_A_DAY_GPU_MS {
            let movable = |r: &Running| {
                let fresh = r.checkpoint_at.is_some_and(|at| now.since(at) <= FRESH);
                let opted = r.spec.checkpoint.as_ref().is_some_and(|c| c.migratable);
                r.spec.tier >= job.tier() && fresh && opted
            };
            let movable = whole(self.victims(&movable));
            if !movable.is_empty() {
                choices.push((Claim::Move, movable));
            }
        }
        choices
    }

    /// Those of whom `may` holds and who can be asked at all.
    fn victims(&self, may: &dyn Fn(&Running) -> bool) -> Vec<Victim> {
        let now = self.snapshot.now;
        let running = self.snapshot.running.iter().enumerate();
        running
            .filter(|(_, r)| {
                r.spec.requeue
                    && !r.leaving
                    && !self.leaving.contains(&r.attempt)
                    && r.left_lately < LEAVES_A_DAY
                    && r.started.is_some_and(|at| now.since(at) >= PROTECTED)
                    && may(r)
            })
            .map(|(index, r)| Victim {
                index,
                taken: Arc::clone(&r.taken),
                cost: r.cost,
                spare_nodes: r.spec.min_nodes.map(|least| r.nodes.saturating_sub(least) as usize),
            })
            .collect()
    }

    /// Whether a plan takes no more than it may.
    fn within_bounds(
        &mut self,
        job: &Pending,
        claim: Claim,
        victims: &[Victim],
        plan: &mut Plan,
    ) -> bool {
        match claim {
            Claim::Tier => true,
            Claim::Guarantee => {
                let leaving = plan.victims.iter().map(|v| victims[*v].index);
                self.only_what_is_borrowed(job, leaving)
            }
            Claim::Move => {
                let spent = self.snapshot.habits.moved_lately(self.snapshot.now);
                if spent.saturating_add(plan.cost) > MOVES_A_DAY_GPU_MS {
                    return false;
                }
                let Some(found) = self.all_find_a_place(job, victims, plan) else { return false };
                plan.moved_to = found;
                true
            }
        }
    }

    /// Where all that are moved can go on at once; `None`: not all of them can.
    fn all_find_a_place(
        &mut self,
        job: &Pending,
        victims: &[Victim],
        plan: &Plan,
    ) -> Option<Vec<Vec<Taken>>> {
        let mut found = Vec::new();
        let mut space = self.free.clone();
        let running = &self.snapshot.running;
        let moved: Vec<&Victim> = plan.victims.iter().map(|v| &victims[*v]).collect();
        moved.iter().flat_map(|v| v.taken.iter()).for_each(|t| space.give(t));
        let taken: Vec<Taken> = plan.placed.taken(&job.spec).collect();
        taken.iter().for_each(|t| space.take(t));
        for victim in moved {
            let r = &running[victim.index];
            let again = Pending::again(r, self.snapshot.now);
            let mask = self.mask(&again, again.ends(self.snapshot.now));
            let kept: Vec<super::Kept> = self.kept_of(mask);
            let kept: Vec<&super::Kept> = kept.iter().collect();
            let end = again.ends(self.snapshot.now);
            let ground = self.ground(&again, self.snapshot.now, end).ok()?;
            let placed = self.place_in(&mut space, &again, ground, &kept, r.nodes)?;
            let taken: Vec<Taken> = placed.taken(&again.spec).collect();
            taken.iter().for_each(|t| space.take(t));
            found.push(taken);
        }
        Some(found)
    }

    fn carry_out(
        &mut self,
        job: &Pending,
        claim: Claim,
        victims: &[Victim],
        plan: &Plan,
    ) -> WaitReason {
        let now = self.snapshot.now;
        let by = job.job;
        let taken: Arc<[Taken]> = plan.placed.taken(&job.spec).collect();
        let mut last = now;
        let mut jobs = Vec::new();
        // A node is held for one only: two that are to share it would wait for each other.
        let mut spoken_for: Vec<u32> = taken.iter().map(|t| t.node).collect();
        for (i, victim) in plan.victims.iter().map(|v| &victims[*v]).enumerate() {
            let r = &self.snapshot.running[victim.index];
            let deadline = now.plus(r.notice());
            last = last.max(deadline);
            jobs.push(r.attempt.job);
            let stays = nodes_it_can_keep(r, &taken);
            let why = match (claim, stays) {
                (Claim::Move, _) => LeaveWhy::Moved { by },
                (_, Some(nodes)) => LeaveWhy::Shrunk { by, nodes },
                (Claim::Guarantee, None) if r.spec.tier == job.tier() => LeaveWhy::Reclaimed { by },
                (_, None) => LeaveWhy::Preempted { by },
            };
            if let LeaveWhy::Shrunk { .. } = why {
                // What it keeps is kept for it until it goes on there.
                let rest = r.taken.iter().filter(|t| !taken.iter().any(|u| u.node == t.node));
                let nodes = rest.map(|t| self.snapshot.space.id(t.node).clone()).collect();
                let until = deadline.plus(HELD_FOR);
                self.decision.holds.push(Hold { job: r.attempt.job, nodes, until });
            }
            if let Some(there) = plan.moved_to.get(i) {
                let mut goes_on: Vec<u32> = there.iter().map(|t| t.node).collect();
                goes_on.retain(|n| !spoken_for.contains(n));
                spoken_for.extend(&goes_on);
                let nodes = goes_on.iter().map(|n| self.snapshot.space.id(*n).clone());
                let nodes: BTreeSet<_> = nodes.collect();
                if !nodes.is_empty() {
                    let until = deadline.plus(HELD_FOR);
                    self.decision.holds.push(Hold { job: r.attempt.job, nodes, until });
                }
            }
            self.leaving.push(r.attempt);
            self.decision.leave.push(Leave { attempt: r.attempt, why, deadline });
        }
        let nodes = taken.iter().map(|t| self.snapshot.space.id(t.node).clone());
        let until = last.plus(HELD_FOR);
        self.decision.holds.push(Hold { job: by, nodes: nodes.collect(), until });
        let layout = Arc::clone(&self.snapshot.space.layout);
        for hold in &self.decision.holds {
            hold.nodes.iter().filter_map(|n| layout.index(n)).for_each(|n| self.held.insert(n));
        }
        self.grounds.iter_mut().for_each(|g| g.closed.union(&self.held));
        self.drop_slot(by);
        self.keep(super::Kept::of(job, None, None, taken));
        WaitReason::MakingRoom { victims: jobs, by: last.plus(ENDS_WITHIN) }
    }

    /// Jobs on kept places that have to be out when those are due are asked in time.
    pub(super) fn clear_the_way(&mut self) {
        let now = self.snapshot.now;
        let slots: Vec<super::Kept> =
            self.slots.iter().filter(|s| s.live && s.at.is_some()).cloned().collect();
        for slot in slots {
            let Some(at) = slot.at else { continue };
            for r in &self.snapshot.running {
                let stays = r.ends_at.is_none_or(|end| end > at);
                let asked = self.leaving.contains(&r.attempt);
                if !stays
                    || asked
                    || !self.gives_way(r, slot.tier)
                    || !super::slots::overlap(&slot, &r.taken)
                {
                    continue;
                }
                let needs = Millis(r.notice().0 + ENDS_WITHIN.0 + AHEAD.0);
                let protected = r.started.unwrap_or(now).plus(PROTECTED);
                let ask_at = crate::snapshot::before(at, needs).max(protected);
                if ask_at > now {
                    self.wake_at(ask_at);
                    continue;
                }
                self.leaving.push(r.attempt);
                let why = LeaveWhy::Preempted { by: slot.job };
                let deadline = now.plus(r.notice());
                self.decision.leave.push(Leave { attempt: r.attempt, why, deadline });
            }
        }
    }
}

/// How many nodes of its first role an elastic job can go on with, if the others take `taken`.
fn nodes_it_can_keep(r: &Running, taken: &[Taken]) -> Option<u32> {
    let least = r.spec.min_nodes?;
    let lost = r.taken.iter().filter(|t| taken.iter().any(|u| u.node == t.node)).count();
    let keeps = r.nodes.checked_sub(u32::try_from(lost).ok()?)?;
    (keeps >= least && keeps < r.nodes && r.spec.roles.is_empty() && r.spec.spares == 0)
        .then_some(keeps)
}
