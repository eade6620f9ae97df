//! The jobs that wait: each stands in the order, or is parked at what is in its way.
//!
//! In: every change of a job, told by the job table. Out: the order, the parked, what a team has
//! waiting. This room keeps `order` and `gate` in step with the jobs; both follow from the events
//! alone, so that a replay gives the same.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use tessera_model::{Dependency, JobId, JobState, TeamId, UnixMillis};

use super::gate::{Gate, Gates};
use super::order::{Order, Standing};
use crate::job_table::Job;

type Jobs = BTreeMap<JobId, Job>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    pub order: Order,
    pub gates: Gates,
    /// Since when parked jobs count that had a start before: one that failed, or that had to leave.
    clocks: BTreeMap<JobId, UnixMillis>,
    /// Stamp of the event that is being applied.
    #[serde(skip)]
    now: UnixMillis,
    /// Waiting jobs by team, parked ones too.
    #[serde(skip)]
    by_team: BTreeMap<TeamId, usize>,
    #[serde(skip)]
    len: usize,
    /// Bytes of their programs.
    #[serde(skip)]
    bytes: u64,
    /// Jobs that can never start, with the reason in words.
    #[serde(skip)]
    doomed: VecDeque<(JobId, String)>,
}

impl Waiting {
    pub fn now(&self) -> UnixMillis {
        self.now
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn len_of(&self, team: &TeamId) -> usize {
        self.by_team.get(team).copied().unwrap_or(0)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next job that can never start.
    pub fn take_doomed(&mut self) -> Option<(JobId, String)> {
        self.doomed.pop_front()
    }

    /// Time has come to `now`: what was waiting for it is looked at again.
    pub fn pass_to(&mut self, jobs: &mut Jobs, now: UnixMillis) {
        self.now = now;
        if self.gates.next_wake().is_some_and(|at| at <= now) {
            self.gates.pass_to(now);
            self.look_again(jobs);
        }
    }

    /// A new job waits.
    pub fn enter(&mut self, jobs: &mut Jobs, id: JobId) {
        let Some(job) = jobs.get(&id) else { return };
        self.count(job, true);
        if let Some(task) = job.array {
            self.gates.count_task(task.array);
        }
        self.gates.depend(jobs, job);
        self.place(jobs, id, None);
        self.look_again(jobs);
    }

    /// A job's state is no longer `before`.
    pub fn moved(&mut self, jobs: &mut Jobs, id: JobId, before: JobState) {
        let Some(job) = jobs.get(&id) else { return };
        let (team, tier) = (job.spec.team.clone(), job.spec.tier);
        if before == JobState::Pending {
            self.count(job, false);
            self.lift(job);
            self.order.promise(id, false);
        }
        self.gates.moved(jobs, job, before);
        if job.state == JobState::Pending {
            self.count(job, true);
            // It takes its turn again: its clock has gone on.
            let clock = job.eligible_at;
            self.place(jobs, id, clock);
        }
        self.order.hand_on(&team, tier, self.now);
        self.look_again(jobs);
    }

    /// Changes a waiting job in place; where it stands follows.
    pub fn change(&mut self, jobs: &mut Jobs, id: JobId, change: impl FnOnce(&mut Job)) {
        let Some(job) = jobs.get_mut(&id) else { return };
        self.count(job, false);
        let clock = self.lift(job);
        let (team, tier) = (job.spec.team.clone(), job.spec.tier);
        let (after, promise) = (job.spec.after.clone(), job.promise);
        change(job);
        if job.promise != promise {
            self.order.promise(id, job.promise.is_some());
        }
        let job = &jobs[&id];
        self.count(job, true);
        if job.spec.after != after {
            self.gates.depend(jobs, job);
        }
        self.place(jobs, id, clock);
        self.order.hand_on(&team, tier, self.now);
        self.look_again(jobs);
    }

    pub fn set_throttle(&mut self, jobs: &mut Jobs, array: JobId, throttle: u32) {
        self.gates.set_throttle(array, throttle);
        self.look_again(jobs);
    }

    pub fn set_reservation(
        &mut self,
        jobs: &mut Jobs,
        name: &str,
        span: Option<(UnixMillis, UnixMillis)>,
    ) {
        self.gates.set_reservation(name, span);
        self.look_again(jobs);
    }

    /// An ended job leaves memory.
    pub fn forget(&mut self, job: &Job) {
        if let Some(task) = job.array {
            self.gates.forget_task(task.array);
        }
    }

    /// Makes the indexes again after the state was read.
    pub fn restore(&mut self, jobs: &mut Jobs, now: UnixMillis) {
        let Self { mut order, mut gates, clocks, .. } = std::mem::take(self);
        order.forget_indexes();
        gates.forget_indexes();
        *self = Self { order, gates, clocks, now, ..Self::default() };
        let active = |j: &&Job| j.state != JobState::Pending && !j.state.is_terminal();
        for job in jobs.values().filter(active) {
            self.gates.restore_active(job);
        }
        let waiting = jobs.values().filter(|j| j.state == JobState::Pending);
        let waiting: Vec<JobId> = waiting.map(|j| j.id).collect();
        for id in waiting {
            let job = &jobs[&id];
            self.count(job, true);
            self.gates.index_dependencies(id);
            if let Some(gate) = self.gates.first(jobs, job, now) {
                self.gates.park(job, gate, now);
                continue;
            }
            let Some(job) = jobs.get_mut(&id) else { continue };
            let eligible_at = *job.eligible_at.get_or_insert(job.submitted_at);
            let standing = Standing::of(id, &job.spec, eligible_at);
            match self.clocks.remove(&id) {
                Some(clock) => self.order.insert(&standing, Some(clock), now),
                None => self.order.restore(&standing),
            }
            self.gates.admit(job);
        }
        while self.gates.take_woken().is_some() {}
    }

    fn count(&mut self, job: &Job, waits: bool) {
        let team = self.by_team.entry(job.spec.team.clone()).or_default();
        let bytes = queued_bytes(job);
        if waits {
            *team += 1;
            self.len += 1;
            self.bytes += bytes;
            return;
        }
        *team -= 1;
        if *team == 0 {
            self.by_team.remove(&job.spec.team);
        }
        self.len -= 1;
        self.bytes -= bytes;
    }

    fn place(&mut self, jobs: &mut Jobs, id: JobId, clock: Option<UnixMillis>) {
        let Some(job) = jobs.get(&id) else { return };
        let gate = self.gates.first(jobs, job, self.now);
        let Some(job) = jobs.get_mut(&id) else { return };
        match gate {
            None => {
                let eligible_at = *job.eligible_at.get_or_insert(self.now);
                self.order.insert(&Standing::of(id, &job.spec, eligible_at), clock, self.now);
                self.gates.admit(job);
            }
            Some(gate) => {
                match &gate {
                    Gate::Never(on) => self.doomed.push_back((id, never_words(on))),
                    Gate::Gone(name) => self.doomed.push_back((id, gone_words(name))),
                    _ => {}
                }
                // Of those that had a start before there are few: a team's claims stay bounded.
                let is_let_in =
                    matches!(gate, Gate::BackingOff(_) | Gate::Throttled(_) | Gate::Singleton);
                if let Some(clock) = clock.filter(|_| is_let_in && job.attempt.is_some()) {
                    self.clocks.insert(id, clock);
                }
                self.gates.park(job, gate, self.now);
            }
        }
    }

    /// Takes a waiting job from where it stands, and says since when it counted.
    fn lift(&mut self, job: &Job) -> Option<UnixMillis> {
        let parked = self.gates.gate(job.id).is_some();
        self.gates.lift(job);
        let kept = self.clocks.remove(&job.id);
        if parked {
            return kept;
        }
        let eligible_at = job.eligible_at?;
        self.order.remove(&Standing::of(job.id, &job.spec, eligible_at))
    }

    /// Looks at those again for which something has changed, until nothing follows any more.
    fn look_again(&mut self, jobs: &mut Jobs) {
        while let Some(id) = self.gates.take_woken() {
            let Some(job) = jobs.get(&id).filter(|j| j.state == JobState::Pending) else {
                continue;
            };
            let (team, tier) = (job.spec.team.clone(), job.spec.tier);
            let stood = self.gates.gate(id).cloned();
            if matches!(stood, Some(Gate::Never(_) | Gate::Gone(_))) {
                continue;
            }
            let clock = self.lift(job);
            self.place(jobs, id, clock);
            if stood.is_none() {
                self.order.hand_on(&team, tier, self.now);
            }
        }
    }
}

/// What a waiting job's program takes in memory. The tasks of an array share one.
fn queued_bytes(job: &Job) -> u64 {
    match job.array {
        Some(task) if task.array != job.id => 0,
        _ => job.spec.program.bytes(),
    }
}

/// What became of a job that can never start.
fn never_words(on: &Dependency) -> String {
    format!(
        "can never start: it was to run {} of job {}, which ended otherwise",
        on.kind.word(),
        on.job
    )
}

fn gone_words(reservation: &str) -> String {
    format!("can never start: the reservation {reservation} that it was to run in has ended")
}
