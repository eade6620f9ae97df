//! What keeps a waiting job out of the order: somebody holds it, its begin, its dependencies, its
//! reservation, a pause after a failed start, its array's throttle, a namesake that runs.
//!
//! In: jobs as they come, change and move on. Out: for each parked job the first thing in its way,
//! and which jobs have to be looked at again when something has changed. Parked jobs stand in an
//! index by what they wait for, so that a hundred thousand of them cost a round nothing. Whether
//! there is a place for a job, and whether its team may have it, is not asked here.
//!
//! A dependency on an array's id means the whole array: `afterok` all its tasks, `afternotok` that
//! it is over and not all went well, `afterany` that it is over, `after` that none of it still
//! waits. A dependency that is fulfilled stays so. One that never can be ends the job: something
//! may be waiting for its end, and a job that can never start would keep it waiting for ever. A
//! calendar reservation that has ended ends the jobs that wait for it in the same way.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tessera_model::{
    Dependency, DependencyKind, JobId, JobState, TeamId, UnixMillis, UserId, WaitReason,
};

use crate::job_table::Job;

/// The first thing in a job's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    Held,
    Dependency(Dependency),
    /// It can never start.
    Never(Dependency),
    Begins(UnixMillis),
    /// The calendar reservation it wants is not open.
    Reservation(String),
    /// The calendar reservation it wants has ended: it can never start.
    Gone(String),
    BackingOff(UnixMillis),
    Throttled(JobId),
    Singleton,
}

/// What is known of an array as a whole. It outlives the tasks that are kept in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Array {
    /// Tasks that may run at once; 0: all.
    pub throttle: u32,
    pub tasks: u32,
    pub ended: u32,
    pub succeeded: u32,
    /// Tasks that wait or are being started.
    pub unbegun: u32,
    /// Tasks that are still in memory.
    pub kept: u32,
}

/// Jobs of which only so many may be under way at once.
#[derive(Debug, Clone, Default, PartialEq)]
struct Group {
    /// They hold a lease.
    active: BTreeSet<JobId>,
    /// They stand in the order.
    admitted: BTreeSet<JobId>,
    parked: BTreeSet<JobId>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum GroupKey {
    Array(JobId),
    Name(TeamId, UserId, String),
}

impl GroupKey {
    fn name_of(job: &Job) -> Self {
        let spec = &job.spec;
        Self::Name(spec.team.clone(), spec.user.clone(), spec.name.clone())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Met,
    Never,
    Open,
}

type Jobs = BTreeMap<JobId, Job>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gates {
    /// What waiting jobs still depend on.
    unmet: BTreeMap<JobId, Vec<Dependency>>,
    arrays: BTreeMap<JobId, Array>,
    #[serde(skip)]
    parked: BTreeMap<JobId, Gate>,
    #[serde(skip)]
    timed: BTreeSet<(UnixMillis, JobId)>,
    #[serde(skip)]
    dependents: BTreeMap<(JobId, DependencyKind), BTreeSet<JobId>>,
    /// All waiting jobs that want to run in a reservation, by its name.
    #[serde(skip)]
    reserved: BTreeMap<String, BTreeSet<JobId>>,
    #[serde(skip)]
    open: BTreeMap<String, (UnixMillis, UnixMillis)>,
    #[serde(skip)]
    groups: BTreeMap<GroupKey, Group>,
    /// Jobs to look at again.
    #[serde(skip)]
    woken: BTreeSet<JobId>,
}

impl Gates {
    pub fn parked(&self) -> impl Iterator<Item = JobId> {
        self.parked.keys().copied()
    }

    pub fn gate(&self, job: JobId) -> Option<&Gate> {
        self.parked.get(&job)
    }

    pub fn array(&self, array: JobId) -> Option<Array> {
        self.arrays.get(&array).copied()
    }

    /// When time alone lets a parked job go on next.
    pub fn next_wake(&self) -> Option<UnixMillis> {
        self.timed.first().map(|(at, _)| *at)
    }

    /// Empties what follows from the jobs; reservations stay known.
    pub fn forget_indexes(&mut self) {
        let Self { unmet, arrays, open, .. } = std::mem::take(self);
        *self = Self { unmet, arrays, open, ..Self::default() };
    }

    /// What a waiting job still depends on.
    pub fn unmet(&self, job: JobId) -> &[Dependency] {
        self.unmet.get(&job).map_or(&[], Vec::as_slice)
    }

    /// Takes the next job that has to be looked at again.
    pub fn take_woken(&mut self) -> Option<JobId> {
        self.woken.pop_first()
    }

    /// How a dependency stands. A job nobody remembers has ended long ago; whether that is good
    /// enough was asked at the door.
    pub fn status(&self, jobs: &Jobs, on: &Dependency) -> Status {
        use DependencyKind::*;
        let verdict = |met: bool, never: bool| match (met, never) {
            (true, _) => Status::Met,
            (_, true) => Status::Never,
            _ => Status::Open,
        };
        if let Some(array) = self.arrays.get(&on.job) {
            let over = array.ended == array.tasks;
            let well = array.ended == array.succeeded;
            return match on.kind {
                AfterOk => verdict(over && well, !well),
                AfterNotOk => verdict(over && !well, over && well),
                AfterAny => verdict(over, false),
                After => verdict(array.unbegun == 0, false),
            };
        }
        let Some(job) = jobs.get(&on.job) else { return Status::Met };
        let over = job.state.is_terminal();
        let well = job.state == JobState::Succeeded;
        match on.kind {
            AfterOk => verdict(well, over),
            AfterNotOk => verdict(over && !well, over),
            AfterAny => verdict(over, false),
            After => verdict(!matches!(job.state, JobState::Pending | JobState::Starting), false),
        }
    }

    /// A job came, or its dependencies were changed.
    pub fn depend(&mut self, jobs: &Jobs, job: &Job) {
        self.forget_dependencies(job.id);
        let open = |on: &&Dependency| self.status(jobs, on) != Status::Met;
        let unmet: Vec<Dependency> = job.spec.after.iter().filter(open).cloned().collect();
        if !unmet.is_empty() {
            self.unmet.insert(job.id, unmet);
            self.index_dependencies(job.id);
        }
    }

    /// Makes the index of what a job waits for again.
    pub fn index_dependencies(&mut self, job: JobId) {
        for on in self.unmet.get(&job).into_iter().flatten() {
            self.dependents.entry((on.job, on.kind)).or_default().insert(job);
        }
    }

    pub fn forget_dependencies(&mut self, job: JobId) {
        for on in self.unmet.remove(&job).into_iter().flatten() {
            let key = (on.job, on.kind);
            if let Some(waiting) = self.dependents.get_mut(&key) {
                waiting.remove(&job);
                if waiting.is_empty() {
                    self.dependents.remove(&key);
                }
            }
        }
    }

    /// The first thing in a waiting job's way.
    pub fn first(&self, jobs: &Jobs, job: &Job, now: UnixMillis) -> Option<Gate> {
        if job.held {
            return Some(Gate::Held);
        }
        let unmet = self.unmet(job.id);
        if let Some(never) = unmet.iter().find(|on| self.status(jobs, on) == Status::Never) {
            return Some(Gate::Never(*never));
        }
        if let Some(name) = job.spec.reservation.as_ref().filter(|n| !self.open.contains_key(*n)) {
            return Some(Gate::Gone(name.clone()));
        }
        if let Some(on) = unmet.first() {
            return Some(Gate::Dependency(*on));
        }
        if let Some(begin) = job.spec.begin.filter(|b| *b > now) {
            return Some(Gate::Begins(begin));
        }
        if let Some(name) = &job.spec.reservation
            && !self.open.get(name).is_some_and(|(from, until)| *from <= now && now < *until)
        {
            return Some(Gate::Reservation(name.clone()));
        }
        if let Some(until) = job.not_before.filter(|t| *t > now) {
            return Some(Gate::BackingOff(until));
        }
        if let Some(task) = job.array
            && !self.has_room(&GroupKey::Array(task.array), job.id)
        {
            return Some(Gate::Throttled(task.array));
        }
        (job.spec.singleton && !self.has_room(&GroupKey::name_of(job), job.id))
            .then_some(Gate::Singleton)
    }

    fn limit(&self, key: &GroupKey) -> usize {
        match key {
            GroupKey::Name(..) => 1,
            GroupKey::Array(array) => match self.arrays.get(array).map_or(0, |a| a.throttle) {
                0 => usize::MAX,
                throttle => throttle as usize,
            },
        }
    }

    /// Whether a job may stand in the order beside the others of its group: those under way and
    /// those that came before it leave room. One that came later has to make way for it.
    fn has_room(&self, key: &GroupKey, job: JobId) -> bool {
        let Some(group) = self.groups.get(key) else { return true };
        let limit = self.limit(key);
        let room = limit.saturating_sub(group.active.len());
        limit == usize::MAX || group.admitted.range(..job).take(room).count() < room
    }

    /// Groups a waiting job counts in.
    fn groups_of(job: &Job) -> impl Iterator<Item = GroupKey> {
        let array = job.array.map(|t| GroupKey::Array(t.array));
        let name = job.spec.singleton.then(|| GroupKey::name_of(job));
        array.into_iter().chain(name)
    }

    /// A waiting job goes into the order.
    pub fn admit(&mut self, job: &Job) {
        self.note_reservation(job);
        for key in Self::groups_of(job) {
            self.groups.entry(key.clone()).or_default().admitted.insert(job.id);
            self.balance(&key);
        }
    }

    /// A waiting job stays out of the order, for this reason.
    pub fn park(&mut self, job: &Job, gate: Gate, now: UnixMillis) {
        self.note_reservation(job);
        match &gate {
            Gate::Begins(at) | Gate::BackingOff(at) => {
                self.timed.insert((*at, job.id));
            }
            Gate::Reservation(name) => {
                if let Some((from, _)) = self.open.get(name).filter(|(from, _)| *from > now) {
                    self.timed.insert((*from, job.id));
                }
            }
            Gate::Throttled(array) => {
                let group = self.groups.entry(GroupKey::Array(*array)).or_default();
                group.parked.insert(job.id);
            }
            Gate::Singleton => {
                let group = self.groups.entry(GroupKey::name_of(job)).or_default();
                group.parked.insert(job.id);
            }
            Gate::Held | Gate::Dependency(_) | Gate::Never(_) | Gate::Gone(_) => {}
        }
        self.parked.insert(job.id, gate);
    }

    fn note_reservation(&mut self, job: &Job) {
        if let Some(name) = &job.spec.reservation {
            self.reserved.entry(name.clone()).or_default().insert(job.id);
        }
    }

    /// A waiting job is taken out, of the order or of where it was parked, as it was put there.
    pub fn lift(&mut self, job: &Job) {
        if let Some(name) = &job.spec.reservation
            && let Some(jobs) = self.reserved.get_mut(name)
        {
            jobs.remove(&job.id);
            if jobs.is_empty() {
                self.reserved.remove(name);
            }
        }
        match self.parked.remove(&job.id) {
            Some(Gate::Begins(at) | Gate::BackingOff(at)) => {
                self.timed.remove(&(at, job.id));
            }
            Some(Gate::Reservation(name)) => {
                if let Some((from, _)) = self.open.get(&name) {
                    self.timed.remove(&(*from, job.id));
                }
            }
            _ => {}
        }
        for key in Self::groups_of(job) {
            if let Some(group) = self.groups.get_mut(&key) {
                group.admitted.remove(&job.id);
                group.parked.remove(&job.id);
            }
            self.balance(&key);
        }
    }

    /// Wakes who may come in now, or who has to make way.
    fn balance(&mut self, key: &GroupKey) {
        let limit = self.limit(key);
        let Some(group) = self.groups.get(key) else { return };
        let taken = group.active.len() + group.admitted.len();
        let room = limit.saturating_sub(taken);
        self.woken.extend(group.parked.iter().take(room));
        let over = taken.saturating_sub(limit);
        self.woken.extend(group.admitted.iter().rev().take(over));
        let is_empty =
            group.active.is_empty() && group.admitted.is_empty() && group.parked.is_empty();
        if is_empty {
            self.groups.remove(key);
        }
    }

    /// A task of an array was accepted.
    pub fn count_task(&mut self, array: JobId) {
        let array = self.arrays.entry(array).or_default();
        array.tasks += 1;
        array.unbegun += 1;
        array.kept += 1;
    }

    pub fn set_throttle(&mut self, array: JobId, throttle: u32) {
        self.arrays.entry(array).or_default().throttle = throttle;
        self.balance(&GroupKey::Array(array));
    }

    /// A task of an array is no longer kept in memory.
    pub fn forget_task(&mut self, array: JobId) {
        if let Some(known) = self.arrays.get_mut(&array) {
            known.kept -= 1;
            if known.kept == 0 {
                self.arrays.remove(&array);
            }
        }
    }

    /// A job is under way, as it was when the state was written down.
    pub fn restore_active(&mut self, job: &Job) {
        self.set_active(job, true);
    }

    /// Under way, it counts in the group of its name, singleton or not.
    fn set_active(&mut self, job: &Job, active: bool) {
        let array = job.array.map(|t| GroupKey::Array(t.array));
        for key in array.into_iter().chain(std::iter::once(GroupKey::name_of(job))) {
            let group = self.groups.entry(key.clone()).or_default();
            match active {
                true => group.active.insert(job.id),
                false => group.active.remove(&job.id),
            };
            self.balance(&key);
        }
    }

    /// A job's state has changed from `before` to what it is now.
    pub fn moved(&mut self, jobs: &Jobs, job: &Job, before: JobState) {
        let is_active = |s: JobState| s != JobState::Pending && !s.is_terminal();
        if is_active(before) != is_active(job.state) {
            self.set_active(job, is_active(job.state));
        }
        if job.state.is_terminal() {
            self.forget_dependencies(job.id);
        }
        if let Some(array) = job.array.and_then(|t| self.arrays.get_mut(&t.array)) {
            let unbegun = |s: JobState| matches!(s, JobState::Pending | JobState::Starting);
            match (unbegun(before), unbegun(job.state)) {
                (true, false) => array.unbegun -= 1,
                (false, true) => array.unbegun += 1,
                _ => {}
            }
            array.ended += u32::from(job.state.is_terminal());
            array.succeeded += u32::from(job.state == JobState::Succeeded);
        }
        self.resolve(jobs, job.id);
        if let Some(task) = job.array.filter(|t| t.array != job.id) {
            self.resolve(jobs, task.array);
        }
    }

    /// Settles what waits for a job or an array, where that is decided by now.
    fn resolve(&mut self, jobs: &Jobs, on: JobId) {
        for kind in DependencyKind::ALL {
            let key = (on, kind);
            if !self.dependents.contains_key(&key) {
                continue;
            }
            let dependency = Dependency { job: on, kind };
            match self.status(jobs, &dependency) {
                Status::Open => {}
                Status::Never => self.woken.extend(self.dependents[&key].iter().copied()),
                Status::Met => {
                    for job in self.dependents.remove(&key).into_iter().flatten() {
                        if let Some(unmet) = self.unmet.get_mut(&job) {
                            unmet.retain(|d| *d != dependency);
                            if unmet.is_empty() {
                                self.unmet.remove(&job);
                            }
                        }
                        self.woken.insert(job);
                    }
                }
            }
        }
    }

    /// Time has come to `now`.
    pub fn pass_to(&mut self, now: UnixMillis) {
        while let Some((at, job)) = self.timed.first().copied().filter(|(at, _)| *at <= now) {
            self.timed.remove(&(at, job));
            self.woken.insert(job);
        }
    }

    /// A reservation was made, changed (`Some`: from, until) or ended.
    pub fn set_reservation(&mut self, name: &str, span: Option<(UnixMillis, UnixMillis)>) {
        let before = match span {
            Some(span) => self.open.insert(name.to_owned(), span),
            None => self.open.remove(name),
        };
        let waiting = self.reserved.get(name);
        if let (Some((from, _)), Some(waiting)) = (before, waiting) {
            for job in waiting {
                self.timed.remove(&(from, *job));
            }
        }
        self.woken.extend(waiting.into_iter().flatten());
    }

    /// Why a parked job waits, in the words of the decision.
    pub fn reason(&self, job: &Job) -> Option<WaitReason> {
        let under_way = |key: &GroupKey| {
            let group = self.groups.get(key);
            group.map(|g| (g.active.len() + g.admitted.len(), g.active.first(), g.admitted.first()))
        };
        Some(match self.parked.get(&job.id)? {
            Gate::Held => WaitReason::Held,
            Gate::Dependency(on) => WaitReason::Dependency { on: on.job, kind: on.kind },
            Gate::Never(on) => WaitReason::DependencyNever { on: on.job, kind: on.kind },
            Gate::Begins(at) => WaitReason::Begins { at: *at },
            Gate::Reservation(name) | Gate::Gone(name) => {
                WaitReason::ReservationClosed { name: name.clone() }
            }
            Gate::BackingOff(until) => WaitReason::BackingOff { until: *until },
            Gate::Throttled(array) => {
                let running = under_way(&GroupKey::Array(*array)).map_or(0, |(n, ..)| n);
                let running = u32::try_from(running).unwrap_or(u32::MAX);
                WaitReason::Throttled { array: *array, running }
            }
            Gate::Singleton => {
                let (_, active, admitted) = under_way(&GroupKey::name_of(job))?;
                WaitReason::Singleton { running: *active.or(admitted)? }
            }
        })
    }

    /// Whether a job that stands in the order may start at this very moment: another of its name
    /// may have since the round began.
    pub fn may_start(&self, job: &Job) -> Option<WaitReason> {
        let group = job.spec.singleton.then(|| self.groups.get(&GroupKey::name_of(job)))??;
        let running = *group.active.first()?;
        Some(WaitReason::Singleton { running })
    }
}
