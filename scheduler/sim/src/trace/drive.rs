//! The virtual clock: gives a policy one event after the other and keeps the book.
//!
//! In: a workload and a policy. Out: what became of every job and the curves, for `report`. No event
//! is given before its turn, lengths are never told, and every placement is checked on a floor that
//! the policy does not own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tessera_model::{Millis, UnixMillis};

use super::error::TraceError;
use super::floor::{Floor, Placed};
use super::fragment::Fragments;
use super::policy::{JobIndex, Policy, Start, Submission};
use super::span::{Span, Tree};
use super::workload::{Kind, Workload};

/// What became of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fate {
    pub started: Option<UnixMillis>,
    pub places: Vec<Placed>,
    /// It got no place; `Some(true)`: although one existed.
    pub refused: Option<bool>,
    /// It asks for more than all nodes have.
    pub too_large: bool,
    pub first_promise: Option<UnixMillis>,
    last_promise: Option<UnixMillis>,
    /// Promises that were later than the one before.
    pub put_off: u32,
    /// Domains used and the least possible, for gangs of several nodes.
    pub span: Option<(Span, Span)>,
}

/// Sums over the events at one percentage of GPU that has arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    pub events: u64,
    pub allocated_milli: f64,
    pub fragment_milli: f64,
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub policy: String,
    pub fates: Vec<Fate>,
    /// Packing: by percent of capacity that has arrived.
    pub curve: Vec<Point>,
    /// Queue: GPU-milliseconds held, and milli-GPU-milliseconds of fragments, up to the last submission.
    pub held_gpu_ms: u128,
    pub fragment_milli_ms: f64,
    pub end: UnixMillis,
}

/// How far a run has come, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: usize,
    pub of: usize,
}

pub fn replay(
    workload: &Workload,
    policy: &mut dyn Policy,
    watch: &mut dyn FnMut(Progress),
) -> Result<Run, TraceError> {
    let floor = Floor::new(&workload.nodes);
    let fragments = Fragments::new(&floor, &workload.typical);
    let run = Run {
        policy: policy.name().to_owned(),
        fates: vec![Fate::default(); workload.jobs.len()],
        curve: Vec::new(),
        held_gpu_ms: 0,
        fragment_milli_ms: 0.0,
        end: UnixMillis(0),
    };
    let empty = Floor::new(&workload.nodes);
    let tree = (!workload.levels.is_empty())
        .then(|| Tree::new(workload.levels.len(), &workload.nodes))
        .filter(|tree| tree.unplaced < workload.nodes.len());
    let mut driver = Driver {
        workload,
        capacity: floor.free_milli(),
        floor,
        empty,
        fragments,
        tree,
        ends: BinaryHeap::new(),
        now: UnixMillis(0),
        last_submit: at(workload.jobs.last().map_or(Millis(0), |j| j.submit)),
        arrived: 0,
        event: 0,
        run,
    };
    match workload.kind {
        Kind::Packing => driver.pack(policy, watch)?,
        Kind::Queue => driver.queue(policy, watch)?,
    }
    watch(Progress { done: workload.jobs.len(), of: workload.jobs.len() });
    Ok(driver.run)
}

fn at(offset: Millis) -> UnixMillis {
    UnixMillis(0).plus(offset)
}

struct Driver<'a> {
    workload: &'a Workload,
    capacity: u64,
    floor: Floor,
    empty: Floor,
    fragments: Fragments,
    tree: Option<Tree>,
    ends: BinaryHeap<Reverse<(UnixMillis, JobIndex)>>,
    now: UnixMillis,
    last_submit: UnixMillis,
    /// Milli-GPU asked for until now.
    arrived: u64,
    event: usize,
    run: Run,
}

impl Driver<'_> {
    /// Pods come one by one; one that finds no place at once is dropped, and nothing ends.
    fn pack(
        &mut self,
        policy: &mut dyn Policy,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(), TraceError> {
        for (index, job) in self.workload.jobs.iter().enumerate() {
            self.event = index;
            self.now = at(job.submit);
            self.arrived += job.request.total_gpu_milli();
            policy.submitted(self.now, &self.submission(index));
            for start in policy.starts(self.now) {
                self.start(policy, start)?;
            }
            if self.run.fates[index].started.is_none() {
                let fits = self.floor.could_take(&job.request);
                self.run.fates[index].refused = Some(fits);
                policy.withdrawn(self.now, index);
            }
            self.note_point(index);
            if index % 256 == 0 {
                watch(Progress { done: index, of: self.workload.jobs.len() });
            }
        }
        self.run.end = self.now;
        Ok(())
    }

    fn note_point(&mut self, index: usize) {
        if self.capacity == 0 {
            return;
        }
        let percent = ((self.arrived * 200 + self.capacity) / (self.capacity * 2)) as usize;
        // A list may ask for any multiple of the cluster; the curve ends at ten times.
        let percent = percent.min(1_000);
        if self.run.curve.len() <= percent {
            self.run.curve.resize(percent + 1, Point::default());
        }
        let point = &mut self.run.curve[percent];
        point.events += 1;
        point.allocated_milli += (self.capacity - self.floor.free_milli()) as f64;
        point.fragment_milli += self.fragments.milli(&self.floor).unwrap_or(0.0);
        point.refused += u64::from(self.run.fates[index].refused.is_some());
    }

    /// Jobs come at their time, wait, run and end.
    fn queue(
        &mut self,
        policy: &mut dyn Policy,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(), TraceError> {
        let jobs = &self.workload.jobs;
        let mut next = 0;
        loop {
            let submit = jobs.get(next).map(|j| at(j.submit));
            let end = self.ends.peek().map(|Reverse((end, _))| *end);
            // With nothing to come the policy may still want to be asked again: then time goes on.
            let wake = policy.wake().filter(|w| *w > self.now);
            let Some(then) = [submit, end, wake].into_iter().flatten().min() else { break };
            self.advance(then);
            while let Some(Reverse((end, job))) = self.ends.peek().copied()
                && end == self.now
            {
                self.ends.pop();
                self.event += 1;
                let request = &jobs[job].request;
                self.floor.give(request, &self.run.fates[job].places);
                self.changed(job);
                policy.ended(self.now, job);
            }
            while let Some(job) = jobs.get(next)
                && at(job.submit) == self.now
            {
                self.event += 1;
                if self.empty.could_take(&job.request) {
                    policy.submitted(self.now, &self.submission(next));
                } else {
                    self.run.fates[next].too_large = true;
                    self.run.fates[next].refused = Some(false);
                }
                next += 1;
                if next % 256 == 0 {
                    watch(Progress { done: next, of: jobs.len() });
                }
            }
            for start in policy.starts(self.now) {
                self.start(policy, start)?;
            }
            self.note_promises(policy)?;
        }
        self.run.end = self.now;
        Ok(())
    }

    fn submission(&self, index: JobIndex) -> Submission {
        let job = &self.workload.jobs[index];
        Submission {
            job: index,
            request: job.request.clone(),
            time_limit: job.time_limit,
            priority: job.priority,
            tenant: job.tenant.clone(),
        }
    }

    /// Time passes: what is held and what is fragmented is summed up to the last submission.
    fn advance(&mut self, then: UnixMillis) {
        let (from, to) = (self.now.min(self.last_submit), then.min(self.last_submit));
        let passed = to.since(from).0;
        if passed > 0 {
            let held = self.capacity - self.floor.free_milli();
            self.run.held_gpu_ms += u128::from(held) * u128::from(passed) / 1_000;
            let fragment = self.fragments.milli(&self.floor).unwrap_or(0.0);
            self.run.fragment_milli_ms += fragment * passed as f64;
        }
        self.now = then;
    }

    fn start(&mut self, policy: &dyn Policy, start: Start) -> Result<(), TraceError> {
        let Start { job, places } = start;
        let broken = |what: String| TraceError::Broken {
            policy: policy.name().to_owned(),
            event: self.event,
            what,
        };
        let Some(fate) = self.run.fates.get(job) else {
            return Err(broken(format!("it starts job number {job}, which does not exist")));
        };
        let known = at(self.workload.jobs[job].submit) <= self.now;
        if fate.started.is_some() || fate.refused.is_some() || !known {
            return Err(broken(format!("it starts job number {job}, which does not wait")));
        }
        let request = &self.workload.jobs[job].request;
        let optimum = match &self.tree {
            Some(tree) if request.nodes > 1 => {
                tree.used(&self.workload.nodes, &places).zip(tree.optimum(&self.floor, request))
            }
            _ => None,
        };
        if let Err(what) = self.floor.take(request, &places) {
            return Err(broken(what));
        }
        let fate = &mut self.run.fates[job];
        fate.started = Some(self.now);
        fate.places = places;
        fate.span = optimum;
        self.changed(job);
        if self.workload.kind == Kind::Queue {
            let end = self.now.plus(self.workload.jobs[job].duration);
            self.ends.push(Reverse((end, job)));
        }
        Ok(())
    }

    fn changed(&mut self, job: JobIndex) {
        for placed in &self.run.fates[job].places {
            self.fragments.changed(&self.floor, placed.node);
        }
    }

    fn note_promises(&mut self, policy: &mut dyn Policy) -> Result<(), TraceError> {
        for promise in policy.promises() {
            let Some(fate) = self.run.fates.get_mut(promise.job) else {
                return Err(TraceError::Broken {
                    policy: policy.name().to_owned(),
                    event: self.event,
                    what: format!("it promises job number {}, which does not exist", promise.job),
                });
            };
            fate.first_promise.get_or_insert(promise.at);
            if fate.last_promise.is_some_and(|before| promise.at > before) {
                fate.put_off += 1;
            }
            fate.last_promise = Some(promise.at);
        }
        Ok(())
    }
}
