//! What a run amounts to, in numbers that two policies can be compared by.
//!
//! In: a workload and what became of its jobs. Out: values for tables and JSON. What was not measured
//! is `None`. Percentiles are nearest-rank: a wait that some job really had.

use serde::Serialize;

use super::drive::{Fate, Run};
use super::workload::{Kind, Workload};

/// Percentages of arrived GPU at which a packing run is reported.
pub const ARRIVED: [usize; 10] = [50, 60, 70, 80, 90, 95, 100, 110, 120, 130];

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TraceReport {
    pub kind: &'static str,
    pub jobs: u64,
    pub nodes: u64,
    pub gpus: u64,
    /// Widest first.
    pub levels: Vec<String>,
    /// GPU-time asked for over capacity, from the first to the last submission.
    pub offered_load: Option<f64>,
    /// Of a raw pod list that was shuffled and inflated.
    pub seed: Option<u64>,
    pub inflate: Option<f64>,
    pub remarks: Vec<String>,
}

impl TraceReport {
    pub fn of(workload: &Workload) -> Self {
        Self {
            kind: match workload.kind {
                Kind::Packing => "packing",
                Kind::Queue => "queue",
            },
            jobs: workload.jobs.len() as u64,
            nodes: workload.nodes.len() as u64,
            gpus: workload.total_gpus(),
            levels: workload.levels.clone(),
            offered_load: workload.offered_load(),
            seed: workload.shuffled.map(|(seed, _)| seed),
            inflate: workload.shuffled.map(|(_, inflate)| inflate),
            remarks: workload.remarks.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    pub policy: String,
    pub started: u64,
    /// Dropped, since they found no place when they came.
    pub refused: u64,
    /// Of those, jobs for which there was a place. Must be 0.
    pub refused_avoidably: u64,
    /// Ask for more than all nodes have; no policy was bothered with them.
    pub too_large: u64,
    /// Still waiting when nothing more happened. Must be 0.
    pub stranded: u64,
    pub packing: Option<Packing>,
    pub queue: Option<Queueing>,
    pub span: Option<SpanReport>,
    pub promises: Option<Promises>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Packing {
    /// After the last event.
    pub allocated_pct: f64,
    pub at: Vec<Arrived>,
}

/// Means over the events at which so much had arrived; `None` where no event falls on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arrived {
    pub arrived_pct: u32,
    pub allocated_pct: Option<f64>,
    /// Idle GPU that typical pods could not use, of the capacity.
    pub fragment_pct: Option<f64>,
    pub fragment_of_idle_pct: Option<f64>,
    /// Until then.
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Queueing {
    pub wait: Waits,
    /// From submission to end.
    pub jct_ms_mean: f64,
    /// GPU-time held over capacity, until the last submission.
    pub utilisation_pct: Option<f64>,
    /// Idle GPU that typical jobs could not use, of the capacity, over the same time.
    pub fragment_pct: Option<f64>,
    pub end_ms: u64,
    pub by_size: Vec<SizeClass>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waits {
    pub jobs: u64,
    pub wait_ms_mean: f64,
    pub wait_ms_p50: u64,
    pub wait_ms_p99: u64,
    pub wait_ms_max: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeClass {
    /// GPUs over all nodes: `1`, `2-7`, `8+`.
    pub gpus: &'static str,
    pub wait: Waits,
}

/// `8+` covers the classes above it once more, as published tables do.
const SIZES: [(&str, u32, u32); 7] = [
    ("0-1", 0, 1),
    ("2-7", 2, 7),
    ("8-15", 8, 15),
    ("16-31", 16, 31),
    ("32-63", 32, 63),
    ("64+", 64, u32::MAX),
    ("8+", 8, u32::MAX),
];

/// Gangs of several nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpanReport {
    pub gangs: u64,
    /// With the least domains possible at every level, the widest first.
    pub optimal: u64,
    pub levels: Vec<LevelSpan>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LevelSpan {
    pub level: String,
    /// Domains used over the least possible, mean over the gangs.
    pub over_optimum_mean: f64,
}

/// What jobs were told about their start, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Promises {
    pub jobs: u64,
    /// Started after the first promise.
    pub broken: u64,
    /// By how much, mean over those.
    pub late_ms_mean: Option<f64>,
    /// Distance of the first promise from the start, mean over all.
    pub error_ms_mean: f64,
    pub error_ms_p50: u64,
    /// Promises later than the one before, in all.
    pub put_off: u64,
}

impl PolicyReport {
    pub fn of(workload: &Workload, run: &Run) -> Self {
        let count = |p: &dyn Fn(&Fate) -> bool| run.fates.iter().filter(|f| p(f)).count() as u64;
        Self {
            policy: run.policy.clone(),
            started: count(&|f| f.started.is_some()),
            refused: count(&|f| f.refused.is_some() && !f.too_large),
            refused_avoidably: count(&|f| f.refused == Some(true)),
            too_large: count(&|f| f.too_large),
            stranded: count(&|f| f.started.is_none() && f.refused.is_none()),
            packing: (workload.kind == Kind::Packing).then(|| packing(workload, run)),
            queue: if workload.kind == Kind::Queue { queueing(workload, run) } else { None },
            span: spans(workload, run),
            promises: promises(run),
        }
    }
}

fn capacity_milli(workload: &Workload) -> f64 {
    (workload.total_gpus() * 1_000) as f64
}

/// Allocated GPU in percent at each percent that has arrived, for a chart.
pub fn allocation_curve(workload: &Workload, run: &Run) -> Vec<(f64, f64)> {
    let capacity = capacity_milli(workload);
    let points = run.curve.iter().enumerate().filter(|(_, p)| p.events > 0);
    points
        .map(|(x, p)| (x as f64, 100.0 * p.allocated_milli / p.events as f64 / capacity))
        .collect()
}

/// Waits in seconds, ascending, for a chart.
pub fn waits_s(workload: &Workload, run: &Run) -> Vec<f64> {
    let mut waits: Vec<u64> = waits(workload, run, 0, u32::MAX);
    waits.sort_unstable();
    waits.into_iter().map(|ms| ms as f64 / 1_000.0).collect()
}

fn packing(workload: &Workload, run: &Run) -> Packing {
    let capacity = capacity_milli(workload);
    let placed = |(job, fate): (usize, &Fate)| {
        if fate.started.is_some() { workload.jobs[job].request.total_gpu_milli() } else { 0 }
    };
    let allocated: u64 = run.fates.iter().enumerate().map(placed).sum();
    let at = |percent: usize| {
        let point = run.curve.get(percent).filter(|p| p.events > 0);
        let mean = |sum: f64, events: u64| sum / events as f64;
        Arrived {
            arrived_pct: percent as u32,
            allocated_pct: point.map(|p| 100.0 * mean(p.allocated_milli, p.events) / capacity),
            fragment_pct: point.map(|p| 100.0 * mean(p.fragment_milli, p.events) / capacity),
            fragment_of_idle_pct: point.and_then(|p| {
                let idle = capacity * p.events as f64 - p.allocated_milli;
                (idle > 0.0).then(|| 100.0 * p.fragment_milli / idle)
            }),
            refused: run.curve.iter().take(percent + 1).map(|p| p.refused).sum(),
        }
    };
    Packing {
        allocated_pct: 100.0 * allocated as f64 / capacity,
        at: ARRIVED.into_iter().map(at).collect(),
    }
}

fn waits(workload: &Workload, run: &Run, least: u32, most: u32) -> Vec<u64> {
    let jobs = workload.jobs.iter().zip(&run.fates);
    jobs.filter(|(job, _)| (least..=most).contains(&job.request.total_gpus()))
        .filter_map(|(job, fate)| Some(fate.started?.0.abs_diff(job.submit.0 as i64)))
        .collect()
}

fn summary(mut waits: Vec<u64>) -> Option<Waits> {
    waits.sort_unstable();
    let max = *waits.last()?;
    let sum: u128 = waits.iter().map(|w| u128::from(*w)).sum();
    Some(Waits {
        jobs: waits.len() as u64,
        wait_ms_mean: sum as f64 / waits.len() as f64,
        wait_ms_p50: percentile(&waits, 50),
        wait_ms_p99: percentile(&waits, 99),
        wait_ms_max: max,
    })
}

/// Nearest rank. `sorted` is not empty.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len());
    sorted[rank - 1]
}

fn queueing(workload: &Workload, run: &Run) -> Option<Queueing> {
    let wait = summary(waits(workload, run, 0, u32::MAX))?;
    let ran: u128 = workload
        .jobs
        .iter()
        .zip(&run.fates)
        .filter(|(_, fate)| fate.started.is_some())
        .map(|(job, _)| u128::from(job.duration.0))
        .sum();
    // Nothing is held before the first submission, so that is where the time begins.
    let (first, last) = (workload.jobs.first()?.submit, workload.jobs.last()?.submit);
    let span = (last.0 - first.0) as f64;
    let capacity_ms = span * workload.total_gpus() as f64;
    // Before the first submission everything was idle, and counted as it passed.
    let before = first.0 as f64 * idle_fragment(workload);
    let fragment = (run.fragment_milli_ms - before).max(0.0);
    Some(Queueing {
        jct_ms_mean: wait.wait_ms_mean + ran as f64 / wait.jobs as f64,
        utilisation_pct: (capacity_ms > 0.0).then(|| 100.0 * run.held_gpu_ms as f64 / capacity_ms),
        fragment_pct: (capacity_ms > 0.0 && !workload.typical.is_empty())
            .then(|| 100.0 * fragment / 1_000.0 / capacity_ms),
        end_ms: u64::try_from(run.end.0).unwrap_or(0),
        by_size: SIZES
            .into_iter()
            .filter_map(|(gpus, least, most)| {
                Some(SizeClass { gpus, wait: summary(waits(workload, run, least, most))? })
            })
            .collect(),
        wait,
    })
}

fn idle_fragment(workload: &Workload) -> f64 {
    let floor = super::floor::Floor::new(&workload.nodes);
    super::fragment::Fragments::new(&floor, &workload.typical).milli(&floor).unwrap_or(0.0)
}

fn spans(workload: &Workload, run: &Run) -> Option<SpanReport> {
    let spans: Vec<_> = run.fates.iter().filter_map(|f| f.span.as_ref()).collect();
    if spans.is_empty() {
        return None;
    }
    let mean = |level: usize| {
        let ratio = |(used, least): &&(Vec<u32>, Vec<u32>)| {
            f64::from(used[level]) / f64::from(least[level])
        };
        spans.iter().map(ratio).sum::<f64>() / spans.len() as f64
    };
    Some(SpanReport {
        gangs: spans.len() as u64,
        optimal: spans.iter().filter(|(used, least)| used == least).count() as u64,
        levels: workload
            .levels
            .iter()
            .enumerate()
            .map(|(i, level)| LevelSpan { level: level.clone(), over_optimum_mean: mean(i) })
            .collect(),
    })
}

fn promises(run: &Run) -> Option<Promises> {
    let pairs: Vec<(i64, i64)> =
        run.fates.iter().filter_map(|f| Some((f.first_promise?.0, f.started?.0))).collect();
    if pairs.is_empty() {
        return None;
    }
    let mut errors: Vec<u64> = pairs.iter().map(|(p, s)| p.abs_diff(*s)).collect();
    errors.sort_unstable();
    let late: Vec<u64> = pairs.iter().filter(|(p, s)| s > p).map(|(p, s)| s.abs_diff(*p)).collect();
    let mean =
        |list: &[u64]| list.iter().map(|e| u128::from(*e)).sum::<u128>() as f64 / list.len() as f64;
    Some(Promises {
        jobs: pairs.len() as u64,
        broken: late.len() as u64,
        late_ms_mean: (!late.is_empty()).then(|| mean(&late)),
        error_ms_mean: mean(&errors),
        error_ms_p50: percentile(&errors, 50),
        put_off: run.fates.iter().map(|f| u64::from(f.put_off)).sum(),
    })
}
