//! A trace as the replay sees it: nodes, and jobs in the order they arrive.
//!
//! In: what the readers found. Out: a [`Workload`] that is sound in itself: every request names
//! models that exist, events are in order. How long a job runs stands here and nowhere a policy
//! can look.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::Millis;

use super::error::TraceError;

/// Milli-GPUs of a whole device.
pub const WHOLE: u32 = 1_000;

/// CPUs and memory of a node where the trace does not say: more than anyone asks for.
pub const BOUNDLESS: u64 = 1 << 40;

/// What becomes of a job that cannot start at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is dropped for good, and nothing ever ends: the published packing protocol.
    Packing,
    /// It waits, and jobs end.
    Queue,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub kind: Kind,
    /// Widest first; empty without a topology.
    pub levels: Vec<String>,
    pub nodes: Vec<Node>,
    /// In the order of their submission.
    pub jobs: Vec<Job>,
    /// The request shapes that measure fragments, with their counts.
    pub typical: Vec<(Request, u64)>,
    /// Seed and inflation of a list that was shuffled; `None` when it came in its own order.
    pub shuffled: Option<(u64, f64)>,
    /// Things the reader left out, in a sentence each.
    pub remarks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub cpu_milli: u64,
    pub memory_mib: u64,
    pub gpus: u32,
    /// Empty where the trace does not say.
    pub model: String,
    /// Its domain at each level; empty when it is in no map.
    pub path: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What `--placements` calls it.
    pub seq: u64,
    pub name: String,
    pub submit: Millis,
    /// How long it runs; the driver alone reads it.
    pub duration: Millis,
    /// What policies are told instead.
    pub time_limit: Option<Millis>,
    pub priority: i32,
    /// Whoever pays: virtual cluster or team.
    pub tenant: String,
    pub request: Request,
}

/// What a job asks for, alike on each of its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    pub nodes: u32,
    /// Devices on each node.
    pub gpus: u32,
    /// Of each device; 0 for a job without GPUs.
    pub gpu_milli: u32,
    /// On each node.
    pub cpu_milli: u64,
    /// On each node.
    pub memory_mib: u64,
    /// Any of these; empty: any at all.
    pub models: Vec<String>,
}

impl Request {
    /// Whole GPUs on one or several nodes, nothing else.
    pub fn gpus(nodes: u32, gpus: u32) -> Self {
        let gpu_milli = if gpus == 0 { 0 } else { WHOLE };
        Self { nodes, gpus, gpu_milli, ..Self::default() }
    }

    /// Over all nodes.
    pub fn total_gpu_milli(&self) -> u64 {
        u64::from(self.nodes) * u64::from(self.gpus) * u64::from(self.gpu_milli)
    }

    /// Devices it touches, over all nodes.
    pub fn total_gpus(&self) -> u32 {
        self.nodes.saturating_mul(self.gpus)
    }

    pub fn is_share(&self) -> bool {
        self.gpus > 0 && self.gpu_milli < WHOLE
    }

    pub fn likes(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|m| m == model)
    }
}

impl Workload {
    pub fn total_gpus(&self) -> u64 {
        self.nodes.iter().map(|n| u64::from(n.gpus)).sum()
    }

    /// Work asked for over what the nodes could do until the last submission.
    pub fn offered_load(&self) -> Option<f64> {
        let (first, last) = (self.jobs.first()?.submit, self.jobs.last()?.submit);
        let capacity = u128::from(self.total_gpus()) * u128::from(last.0.saturating_sub(first.0));
        let asked = self.jobs.iter().map(gpu_milliseconds).sum::<u128>();
        (capacity > 0 && self.kind == Kind::Queue).then(|| asked as f64 / capacity as f64)
    }

    /// Every model that is asked for exists on some node, or none of a job's does: then the first
    /// such job is told.
    pub fn check_models(&self) -> Result<(), TraceError> {
        let known: BTreeSet<&str> = self.nodes.iter().map(|n| n.model.as_str()).collect();
        let stranger = self.jobs.iter().find(|job| {
            let models = &job.request.models;
            !models.is_empty() && !models.iter().any(|m| known.contains(m.as_str()))
        });
        match stranger {
            None => Ok(()),
            Some(job) => Err(TraceError::mismatch(
                format!(
                    "{} asks for GPU model {}, and no node has that",
                    job.name,
                    job.request.models.join(" or ")
                ),
                format!("models of the nodes: {}", Vec::from_iter(known).join(", ")),
            )),
        }
    }
}

pub fn gpu_milliseconds(job: &Job) -> u128 {
    u128::from(job.request.total_gpus()) * u128::from(job.duration.0)
}

/// Request shapes by their count, the most frequent first, up to 95 % of the jobs.
pub fn typical<'a>(requests: impl Iterator<Item = &'a Request>) -> Vec<(Request, u64)> {
    let mut counts: BTreeMap<&Request, u64> = BTreeMap::new();
    for request in requests {
        *counts.entry(request).or_default() += 1;
    }
    let total: u64 = counts.values().sum();
    let mut shapes: Vec<(&Request, u64)> = counts.into_iter().collect();
    // Stable: shapes of the same count stay in the order of the map.
    shapes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut covered = 0;
    let mut out = Vec::new();
    for (request, count) in shapes {
        if covered * 100 >= total * 95 {
            break;
        }
        covered += count;
        out.push((request.clone(), count));
    }
    out
}
