//! The textbook queues, to be compared with: FIFO, greedy backfill, EASY and shortest job first.
//!
//! In: submissions and ends. Out: starts. All place alike: best fit inside one node, whole nodes for
//! larger gangs. Nothing is preempted. A job's length is taken to be its time limit.

use std::collections::{BTreeMap, HashMap};

use tessera_model::UnixMillis;

use super::floor::{Floor, Placed};
use super::policy::{JobIndex, Policy, Promise, Start, Submission};
use super::workload::{Node, Request};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// Strictly in order: the first that does not fit holds up all others.
    Fifo,
    /// Whatever fits starts, in order of arrival.
    Greedy,
    /// The first that does not fit reserves; others start where they do not delay it.
    Easy,
    /// Whatever fits starts, the shortest first.
    Shortest,
}

impl Discipline {
    pub fn word(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Greedy => "greedy",
            Self::Easy => "easy",
            Self::Shortest => "sjf",
        }
    }
}

const NEVER: i64 = i64::MAX;

pub struct Queue {
    discipline: Discipline,
    floor: Floor,
    /// By what goes first, then arrival.
    waiting: BTreeMap<(u64, JobIndex), Waiting>,
    keys: HashMap<JobIndex, (u64, JobIndex)>,
    /// By when it ends at the latest.
    running: BTreeMap<(i64, JobIndex), (Request, Vec<Placed>)>,
    ends: HashMap<JobIndex, i64>,
    classes: BTreeMap<Request, usize>,
    promises: Vec<Promise>,
    promised: HashMap<JobIndex, i64>,
}

struct Waiting {
    request: Request,
    /// Jobs of one class are alike in what they ask for.
    class: usize,
    limit: i64,
}

/// What is kept for the first job that does not fit.
struct Reservation {
    request: Request,
    at: i64,
    /// What is free then, if nothing else starts.
    floor: Floor,
}

impl Queue {
    pub fn new(discipline: Discipline, nodes: &[Node]) -> Self {
        Self {
            discipline,
            floor: Floor::new(nodes),
            waiting: BTreeMap::new(),
            keys: HashMap::new(),
            running: BTreeMap::new(),
            ends: HashMap::new(),
            classes: BTreeMap::new(),
            promises: Vec::new(),
            promised: HashMap::new(),
        }
    }

    /// The earliest time at which the job fits when every running job uses its whole limit.
    fn reserve(&self, request: &Request) -> Option<Reservation> {
        let mut floor = self.floor.clone();
        let mut ends = self.running.iter().peekable();
        while let Some(((at, _), (held, places))) = ends.next() {
            floor.give(held, places);
            if ends.peek().is_some_and(|((next, _), _)| next == at) {
                continue;
            }
            if floor.could_take(request) {
                return Some(Reservation { request: request.clone(), at: *at, floor });
            }
        }
        None
    }
}

impl Reservation {
    /// Whether a job that runs on past the reserved time leaves room for it; if so it is counted.
    fn allows(&mut self, request: &Request, places: &[Placed]) -> bool {
        // Free now means free then, so this take breaks no rule.
        if self.floor.take(request, places).is_err() {
            return false;
        }
        if self.floor.could_take(&self.request) {
            return true;
        }
        self.floor.give(request, places);
        false
    }
}

impl Policy for Queue {
    fn name(&self) -> &'static str {
        self.discipline.word()
    }

    fn submitted(&mut self, _: UnixMillis, submission: &Submission) {
        let limit = submission.time_limit.and_then(|l| i64::try_from(l.0).ok()).unwrap_or(NEVER);
        let first = match self.discipline {
            Discipline::Shortest => u64::try_from(limit).unwrap_or(u64::MAX),
            _ => 0,
        };
        let next = self.classes.len();
        let class = *self.classes.entry(submission.request.clone()).or_insert(next);
        let key = (first, submission.job);
        self.keys.insert(submission.job, key);
        self.waiting.insert(key, Waiting { request: submission.request.clone(), class, limit });
    }

    fn ended(&mut self, _: UnixMillis, job: JobIndex) {
        let Some(end) = self.ends.remove(&job) else { return };
        if let Some((request, places)) = self.running.remove(&(end, job)) {
            self.floor.give(&request, &places);
        }
    }

    fn withdrawn(&mut self, _: UnixMillis, job: JobIndex) {
        if let Some(key) = self.keys.remove(&job) {
            self.waiting.remove(&key);
        }
    }

    fn starts(&mut self, now: UnixMillis) -> Vec<Start> {
        let mut starts = Vec::new();
        // What is free only shrinks in a pass, so a class that did not fit needs no second look.
        let mut failed = vec![false; self.classes.len()];
        let mut reservation: Option<Reservation> = None;
        let mut dated = false;
        let keys: Vec<(u64, JobIndex)> = self.waiting.keys().copied().collect();
        for key in keys {
            let job = &self.waiting[&key];
            if failed[job.class] {
                continue;
            }
            let end = now.0.saturating_add(job.limit);
            let places = self.floor.best_fit(&job.request);
            let Some(places) = places else {
                failed[job.class] = true;
                if self.discipline == Discipline::Fifo {
                    break;
                }
                if self.discipline == Discipline::Easy && !dated {
                    dated = true;
                    reservation = self.reserve(&job.request);
                    if let Some(reserved) = &reservation
                        && self.promised.insert(key.1, reserved.at) != Some(reserved.at)
                    {
                        self.promises.push(Promise { job: key.1, at: UnixMillis(reserved.at) });
                    }
                }
                continue;
            };
            if let Some(reserved) = &mut reservation
                && end > reserved.at
                && !reserved.allows(&job.request, &places)
            {
                continue;
            }
            let Some(job) = self.waiting.remove(&key) else { continue };
            if self.floor.take(&job.request, &places).is_err() {
                unreachable!("best_fit names only what is free");
            }
            self.keys.remove(&key.1);
            self.promised.remove(&key.1);
            self.ends.insert(key.1, end);
            self.running.insert((end, key.1), (job.request, places.clone()));
            starts.push(Start { job: key.1, places });
        }
        starts
    }

    fn promises(&mut self) -> Vec<Promise> {
        std::mem::take(&mut self.promises)
    }
}
