//! Whose turn it is, who may fill in around whom, and who has to leave for whom.
//!
//! In: a [`Snapshot`]. Out: a [`Decision`]: what starts now and where, of every other job why not,
//! which places are kept for whom from when on, and which running jobs are asked to leave. One pass
//! over the queue in the order of claims. The first [`RESERVATIONS`] jobs of a tier that could
//! start but do not fit keep a place and a date, those behind them only where they do not delay
//! them. The same snapshot always gives the same decision.

mod fit; // where a job would go now
mod future; // when it would fit at the latest
mod preempt; // who has to leave
mod quota; // what its team may hold
mod slots; // places and dates that are kept
mod why; // why a job waits

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tessera_model::{
    AttemptId, Eta, Gang, Hold, JobId, JobRole, Millis, Placement, TeamId, Tier, UnixMillis,
    WaitReason,
};

use crate::event::{LeaveWhy, PromiseCause};
use crate::placement::request::RequestKey;
use crate::placement::{NoFit, NodeSet, Placed, Seats, Space, Taken};
use crate::promises::Slot;
use crate::queue::Quotas;
use crate::snapshot::{Pending, Snapshot};
use crate::verify::Violation;

use fit::{Ground, View};
use future::End;
use slots::Kept;

/// Waiting jobs looked at in one pass; those behind wait for a later one.
pub const DEPTH: usize = 1_000;

/// Blocked jobs of a tier, and of those above it, that keep a place and a date in one pass.
pub const RESERVATIONS: usize = 8;

/// A kept place is promised once the job has waited so many percent of its tier's start SLA. Before
/// that it is found anew in every pass, since the order may still change for the better of all;
/// from then on it stands, and the job goes before those that were promised nothing.
pub const PROMISE_AT_PERCENT: u64 = 66;

/// A job whose way is blocked by jobs without a time limit holds nodes only after this long.
pub const HOLD_AFTER: Millis = Millis::from_secs(600);

#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// In the order of claims.
    pub start: Vec<Start>,
    pub wait: BTreeMap<JobId, WaitReason>,
    pub reservations: Vec<Reserved>,
    /// What has to be said of promises, new and old.
    pub promises: Vec<Promised>,
    pub leave: Vec<Leave>,
    pub holds: Vec<Hold>,
    /// When to decide again though nothing has happened; `None`: nothing waits for a moment.
    pub wake: Option<UnixMillis>,
    /// Placements the verifier did not accept; must be empty. Filled in by [`crate::round`].
    pub refused: Vec<Violation>,
}

#[derive(Debug, Clone)]
pub struct Start {
    pub job: JobId,
    pub placed: Placed,
}

/// What is kept for a job that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub job: JobId,
    /// When it starts at the latest; `None`: no date can be given.
    pub at: Option<UnixMillis>,
    pub taken: Vec<Taken>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Promised {
    pub job: JobId,
    pub at: Option<UnixMillis>,
    pub cause: PromiseCause,
    pub slot: Option<Arc<Slot>>,
    pub eta: Option<Eta>,
}

/// An attempt that has to leave.
#[derive(Debug, Clone, PartialEq)]
pub struct Leave {
    pub attempt: AttemptId,
    pub why: LeaveWhy,
    pub deadline: UnixMillis,
}

/// Picks what to start now, and says of every other job why not.
pub fn decide(snapshot: &Snapshot) -> Decision {
    decide_with(snapshot, &mut Seats::default())
}

/// The same, with a packer that remembers earlier rounds, which makes it quicker and no different.
pub(crate) fn decide_with(snapshot: &Snapshot, seats: &mut Seats) -> Decision {
    let mut pass = Pass::new(snapshot, RESERVATIONS);
    std::mem::swap(&mut pass.seats, seats);
    pass.run(snapshot.queue.len());
    std::mem::swap(&mut pass.seats, seats);
    pass.decision
}

/// All of a job that a search looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shape<'a> {
    gang: &'a Gang,
    roles: &'a [JobRole],
    placement: &'a Placement,
    spares: u32,
    min_nodes: Option<u32>,
}

/// What decides whether a plan can be found: shape, ground, tier, team and time limit.
type NoPlan = (usize, usize, Tier, TeamId, Option<Millis>);

/// One walk through the queue.
#[derive(Clone)]
pub(crate) struct Pass<'a> {
    snapshot: &'a Snapshot,
    /// How many blocked jobs keep a place.
    reservations: usize,
    /// What is free, less what this pass has given out.
    free: Space,
    /// Chooses nodes for jobs of a single one.
    seats: Seats,
    quotas: Quotas,
    /// The same, less the places kept that a job must leave alone; by the set of those, as bits.
    views: BTreeMap<u64, View>,
    /// Nodes closed to a job, by what keeps it out.
    grounds: Vec<Ground>,
    /// Places kept; bit i of a view is slot i.
    slots: Vec<Kept>,
    /// Promises that cannot be kept, and why; until a new one is made.
    broken: Vec<(JobId, PromiseCause)>,
    /// What did not fit in this pass: what is free only shrinks, so it needs no second look.
    failed: HashMap<(RequestKey, u64, usize), NoFit>,
    /// What this pass has started, and when it is back.
    started: Vec<(Option<UnixMillis>, Tier, Arc<[Taken]>)>,
    /// Shapes seen in this pass, numbered. A thousand alike jobs are searched for once.
    shapes: HashMap<Shape<'a>, usize>,
    /// Why jobs of a shape wait that meet the same places kept and the same closed nodes.
    reasons: HashMap<(usize, u64, usize), WaitReason>,
    /// Proofs that a shape can never start.
    never: HashMap<usize, Option<String>>,
    /// What comes back when, by tier; until something starts.
    ends: BTreeMap<Tier, Arc<Vec<End>>>,
    /// All that was running, gone; made when it is asked for.
    emptied: Option<Arc<Space>>,
    /// Whether others may be asked to leave.
    may_preempt: bool,
    /// Plans carried out so far, searches for one, and questions to which there was none.
    plans: u32,
    searches: u32,
    no_plan: HashSet<NoPlan>,
    /// The tier whose kept places are in force; those of lower ones give way.
    tier: Option<Tier>,
    /// Nodes that this pass keeps for those others leave for; closed to all that come after.
    held: NodeSet,
    /// Attempts that this pass asks to leave.
    leaving: Vec<AttemptId>,
    pub(crate) decision: Decision,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, reservations: usize) -> Self {
        Self {
            snapshot,
            reservations,
            free: snapshot.space.clone(),
            seats: Seats::default(),
            quotas: snapshot.quotas.clone(),
            views: BTreeMap::new(),
            grounds: Vec::new(),
            slots: Vec::new(),
            broken: Vec::new(),
            failed: HashMap::new(),
            shapes: HashMap::new(),
            reasons: HashMap::new(),
            never: HashMap::new(),
            ends: BTreeMap::new(),
            started: Vec::new(),
            emptied: None,
            may_preempt: true,
            plans: 0,
            searches: 0,
            no_plan: HashSet::new(),
            tier: None,
            held: NodeSet::new(snapshot.space.len()),
            leaving: Vec::new(),
            decision: Decision::default(),
        }
    }

    /// Looks at the first `count` jobs.
    pub(crate) fn run(&mut self, count: usize) {
        let snapshot = self.snapshot;
        for (position, job) in snapshot.queue.iter().enumerate().take(count) {
            let ahead = u32::try_from(position).unwrap_or(u32::MAX);
            let outcome = if position >= DEPTH && job.promise.is_none() {
                Err(WaitReason::NotReached { ahead })
            } else {
                self.turn(job)
            };
            match outcome {
                Ok(placed) => self.decision.start.push(Start { job: job.job, placed }),
                Err(reason) => {
                    self.decision.wait.insert(job.job, reason);
                }
            }
        }
        self.clear_the_way();
        self.report_slots();
        // What is kept on nodes of one that does not end is looked at again then.
        snapshot.running.iter().filter_map(|r| r.overdue_at).for_each(|at| self.wake_at(at));
        for closure in &snapshot.closures {
            self.wake_at(closure.from);
            closure.until.into_iter().for_each(|until| self.wake_at(until));
        }
    }

    /// One job's turn: it starts, or keeps a place, or makes room, or just waits.
    pub(crate) fn turn(&mut self, job: &'a Pending) -> Result<Placed, WaitReason> {
        self.enter(job.tier());
        let now = self.snapshot.now;
        if let Some(until) = job.not_before.filter(|t| *t > now) {
            self.withdraw(job.job, PromiseCause::LostCapacity);
            self.wake_at(until);
            return Err(WaitReason::BackingOff { until });
        }
        let ground = self.ground(job, now, job.ends(now))?;
        let mask = self.mask(job, job.ends(now));
        if let Some(reason) = self.over_quota(job, mask) {
            self.withdraw(job.job, PromiseCause::OverQuota);
            return Err(reason);
        }
        let shape = self.shape(job);
        let alike = (shape, mask, ground);
        let plain = self.is_plain(job, mask);
        let known = self.reasons.get(&alike).filter(|_| plain).cloned();
        let outcome = match known {
            Some(reason) => Err(reason),
            None => self.try_now(job, ground).map_err(|no| self.why_not(job, shape, ground, no)),
        };
        match outcome {
            Ok(placed) => {
                if let Some(reason) = self.over_quota_at(job, mask, &placed) {
                    self.withdraw(job.job, PromiseCause::OverQuota);
                    return Err(reason);
                }
                self.start(job, &placed);
                Ok(placed)
            }
            Err(reason) => {
                if plain {
                    self.reasons.insert(alike, reason.clone());
                }
                if matches!(reason, WaitReason::Infeasible { .. }) {
                    self.withdraw(job.job, PromiseCause::LostCapacity);
                    return Err(reason);
                }
                if let Some(making_room) = self.make_room(job, shape, ground, &reason) {
                    return Err(making_room);
                }
                if let WaitReason::Patience { until, .. } = &reason {
                    self.wake_at(*until);
                }
                self.keep_place(job);
                Err(reason)
            }
        }
    }

    fn shape(&mut self, job: &'a Pending) -> usize {
        let spec = &job.spec;
        let shape = Shape {
            gang: &spec.gang,
            roles: &spec.roles,
            placement: &spec.placement,
            spares: spec.spares,
            min_nodes: spec.min_nodes,
        };
        let next = self.shapes.len();
        *self.shapes.entry(shape).or_insert(next)
    }

    /// Whether what holds for its shape holds for the job: nothing of its own comes in.
    fn is_plain(&self, job: &Pending, mask: u64) -> bool {
        job.avoid.is_empty()
            && job.former.is_empty()
            && job.shrink_to.is_none()
            && job.insists_until().is_none()
            && (self.quotas.is_empty() || self.closed_by_quota(job, mask).is_none())
    }

    /// Something changes then by itself.
    fn wake_at(&mut self, at: UnixMillis) {
        if at > self.snapshot.now {
            let wake = &mut self.decision.wake;
            *wake = Some(wake.map_or(at, |before| before.min(at)));
        }
    }

    /// What it takes is gone from every view.
    fn start(&mut self, job: &Pending, placed: &Placed) {
        let taken: Arc<[Taken]> = placed.taken(&job.spec).collect();
        self.drop_slot(job.job);
        self.quotas.take(&self.free, &job.spec, &taken);
        for view in self.views.values_mut() {
            view.quotas.take(&self.free, &job.spec, &taken);
            taken.iter().for_each(|t| view.space.take(t));
        }
        taken.iter().for_each(|t| self.free.take(t));
        self.ends.clear();
        self.started.push((job.ends(self.snapshot.now), job.tier(), taken));
    }
}

/// What `explain` asks of a pass.
impl<'a> Pass<'a> {
    /// Looks at the first `count` jobs, and says nothing of it.
    pub(crate) fn walk(&mut self, count: usize) {
        let snapshot = self.snapshot;
        for job in snapshot.queue.iter().take(count) {
            // Whether it starts or waits shows in what is left.
            let _ = self.turn(job);
        }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.snapshot.now
    }

    pub(crate) fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    pub(crate) fn free(&self) -> &Space {
        &self.free
    }

    /// Places kept: for whom, from when on, and how many nodes.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (JobId, Option<UnixMillis>, usize)> + '_ {
        self.slots.iter().filter(|s| s.live).map(|s| (s.job, s.at, s.taken.len()))
    }

    /// From when on a place is kept for the job.
    pub(crate) fn kept_for(&self, job: JobId) -> Option<UnixMillis> {
        self.slots.iter().find(|s| s.live && s.job == job).and_then(|s| s.at)
    }

    /// When a job would start if it had its turn now; only whether it would at once, if asked so.
    pub(crate) fn when(&self, job: &Pending, only_now: bool) -> Option<UnixMillis> {
        let mut pass = self.clone();
        pass.enter(job.tier());
        let now = self.snapshot.now;
        let ground = pass.ground(job, now, job.ends(now)).ok();
        if ground.is_some_and(|ground| pass.try_now(job, ground).is_ok()) {
            return Some(now);
        }
        let space = &self.snapshot.space;
        if only_now || crate::placement::could_ever_fit(space, &job.spec).is_err() {
            return None;
        }
        let ends = pass.ends(job.tier());
        let at = pass.earliest(job, &ends, None).map(|(at, _)| at);
        at.map(|at| at.max(now.plus(crate::snapshot::ENDS_WITHIN)))
    }

    /// The limit with which a job would be out before the first place kept is due.
    pub(crate) fn gap(&self) -> Option<Millis> {
        let now = self.snapshot.now;
        let due = self.slots.iter().filter(|s| s.live).filter_map(|s| s.at).max()?;
        crate::explain::limit_until(now, due)
    }

    /// The level one above, in its fabric.
    pub(crate) fn wider_level(&self, level: &str) -> Option<String> {
        let layout = &self.snapshot.space.layout;
        let (tree, depth) = layout.level(level)?;
        Some(layout.trees[tree].levels[depth.checked_sub(1)?].name.clone())
    }
}
