//! What Tessera itself prints, as a trace: yesterday's own queue, replayed.
//!
//! In: JSON values one after the other, each on one line or on many: a whole answer of
//! `tessera queue --all --json` (`{"jobs": […]}`) or `tessera nodes --json` (`{"nodes": […]}`), or
//! single job and node objects with the same fields. Both files may hold both; jobs are taken from
//! `--jobs`, nodes from `--nodes`. Out: nodes, levels, jobs. A job that never ran has no length, and
//! is left out with a remark. Unknown fields are not read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tessera_model::Millis;

use super::super::error::TraceError;
use super::super::table;
use super::super::workload::{Job, Node, Request};
use super::nodes::{Map, order_levels};
use super::{GPUS_PER_NODE_MAX, JOBS_MAX, NODES_MAX};

#[derive(Debug, Deserialize)]
struct ExportedNode {
    name: String,
    cpus: u32,
    memory_bytes: u64,
    gpus: Vec<ExportedGpu>,
    #[serde(default)]
    domains: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct ExportedGpu {
    model: String,
}

#[derive(Debug, Deserialize)]
struct ExportedJob {
    id: u64,
    #[serde(default)]
    team: String,
    submitted_at: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    node_count: u32,
    gpus_per_node: u32,
    #[serde(default)]
    gpu_milli: Option<u32>,
    #[serde(default)]
    tasks_per_node: u32,
    #[serde(default)]
    cpus_per_task: u32,
    #[serde(default)]
    memory_per_node_bytes: u64,
    #[serde(default)]
    gpu_model: Option<String>,
    #[serde(default)]
    priority: i32,
    time_limit_ms: Option<u64>,
}

/// Whether the file begins as JSON does.
pub fn is_json(path: &Path) -> Result<bool, TraceError> {
    let mut reader = table::open(path)?;
    let mut first = [0u8; 64];
    let count = reader.read(&mut first).map_err(|e| table::trouble(path, 0, &e))?;
    let byte = first[..count].iter().find(|b| !b.is_ascii_whitespace());
    Ok(byte.is_some_and(|b| *b == b'{' || *b == b'['))
}

/// Every object of one kind in the file: those in a list under `key`, and single ones that have the
/// field `sign`.
fn objects(path: &Path, key: &str, sign: &str) -> Result<Vec<Value>, TraceError> {
    let reader = std::io::BufReader::new(table::open(path)?);
    let mut found = Vec::new();
    let mut values = serde_json::Deserializer::from_reader(reader).into_iter::<Value>();
    for value in &mut values {
        let value = value.map_err(|e| match e.io_error_kind() {
            Some(kind) => table::trouble(path, e.line() as u64, &kind.into()),
            None => TraceError::Row {
                file: path.to_owned(),
                line: e.line() as u64,
                what: format!("no JSON: {e}"),
                hint: EXPECTED.to_owned(),
            },
        })?;
        match value {
            Value::Object(mut map) => match map.remove(key) {
                Some(Value::Array(list)) => found.extend(list),
                _ if map.contains_key(sign) => found.push(Value::Object(map)),
                _ => {}
            },
            Value::Array(list) => found.extend(list),
            _ => {}
        }
    }
    if found.is_empty() {
        return Err(TraceError::mismatch(
            format!("{} holds no {key} of a Tessera export", path.display()),
            EXPECTED,
        ));
    }
    Ok(found)
}

const EXPECTED: &str = "write the files with `tessera queue --all --json` (--jobs) and `tessera nodes --json` (--nodes)";

fn decode<T: for<'a> Deserialize<'a>>(
    path: &Path,
    what: &str,
    at: usize,
    value: Value,
) -> Result<T, TraceError> {
    serde_json::from_value(value).map_err(|e| {
        TraceError::mismatch(format!("{}, {what} {}: {e}", path.display(), at + 1), EXPECTED)
    })
}

/// Nodes and their map.
pub fn read_nodes(path: &Path) -> Result<(Vec<String>, Vec<Node>), TraceError> {
    let mut nodes = Vec::new();
    let (mut levels, mut rows) = (BTreeSet::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for (at, value) in objects(path, "nodes", "memory_bytes")?.into_iter().enumerate() {
        let node: ExportedNode = decode(path, "node", at, value)?;
        if nodes.len() == NODES_MAX || node.gpus.len() as u64 > GPUS_PER_NODE_MAX {
            return Err(TraceError::mismatch(
                format!("{}: too many nodes, or GPUs on {}", path.display(), node.name),
                format!("at most {NODES_MAX} nodes of {GPUS_PER_NODE_MAX} GPUs"),
            ));
        }
        if !seen.insert(node.name.clone()) {
            return Err(TraceError::mismatch(
                format!("{}: node {} stands there twice", path.display(), node.name),
                "keep one object for each node",
            ));
        }
        levels.extend(node.domains.keys().cloned());
        rows.push((node.name.clone(), node.domains));
        nodes.push(Node {
            name: node.name,
            cpu_milli: u64::from(node.cpus) * 1_000,
            memory_mib: node.memory_bytes >> 20,
            gpus: u32::try_from(node.gpus.len()).unwrap_or(u32::MAX),
            model: node.gpus.first().map(|g| g.model.clone()).unwrap_or_default(),
            path: Vec::new(),
        });
    }
    let levels: Vec<String> = levels.into_iter().collect();
    let whole = |domains: &BTreeMap<String, String>| {
        levels.iter().map(|l| domains.get(l).cloned()).collect::<Option<Vec<_>>>()
    };
    let placed: Vec<(String, Vec<String>)> =
        rows.iter().filter_map(|(name, d)| Some((name.clone(), whole(d)?))).collect();
    if levels.is_empty() || placed.is_empty() {
        return Ok((Vec::new(), nodes));
    }
    let map: Map = order_levels(levels, placed);
    map.place(&mut nodes)?;
    Ok((map.levels, nodes))
}

/// Jobs that have run, by submit time, and what was left out.
pub fn read_jobs(path: &Path, nodes: &[Node]) -> Result<(Vec<Job>, Vec<String>), TraceError> {
    let (mut jobs, mut never_ran): (Vec<(i64, Job)>, usize) = (Vec::new(), 0);
    let models: BTreeSet<&str> = nodes.iter().map(|n| n.model.as_str()).collect();
    for (at, value) in objects(path, "jobs", "submitted_at")?.into_iter().enumerate() {
        let job: ExportedJob = decode(path, "job", at, value)?;
        if jobs.len() == JOBS_MAX {
            return Err(TraceError::mismatch(
                format!("more than {JOBS_MAX} jobs"),
                "split the export",
            ));
        }
        let time = |field: &str, text: &str| {
            text.parse::<jiff::Timestamp>().map(|t| t.as_millisecond()).map_err(|_| {
                TraceError::mismatch(
                    format!(
                        "{}, job {}: {field} {text:?} is no RFC 3339 time",
                        path.display(),
                        job.id
                    ),
                    "times look like 2026-11-24T11:00:00Z",
                )
            })
        };
        let (Some(started), Some(ended)) = (&job.started_at, &job.ended_at) else {
            never_ran += 1;
            continue;
        };
        let (started, ended) = (time("started_at", started)?, time("ended_at", ended)?);
        let submitted = time("submitted_at", &job.submitted_at)?;
        let length = u64::try_from(ended.saturating_sub(started)).map_err(|_| {
            TraceError::mismatch(
                format!("{}, job {}: it ended before it started", path.display(), job.id),
                "a job's started_at is at most its ended_at",
            )
        })?;
        let wanted = job.gpu_model.map(|m| m.to_lowercase());
        let named: Vec<String> = wanted
            .iter()
            .flat_map(|part| {
                models
                    .iter()
                    .filter(|m| m.to_lowercase().contains(part.as_str()))
                    .map(|m| (*m).to_owned())
            })
            .collect();
        if let (Some(part), true) = (&wanted, named.is_empty()) {
            return Err(TraceError::mismatch(
                format!("job {} asks for GPU model {part}, and no node has that", job.id),
                format!("models of the nodes: {}", Vec::from_iter(models).join(", ")),
            ));
        }
        let whole = if job.gpus_per_node == 0 { 0 } else { super::super::workload::WHOLE };
        let share = job.gpu_milli.filter(|m| (1..whole).contains(m)).unwrap_or(whole);
        jobs.push((
            submitted,
            Job {
                seq: job.id,
                name: format!("job {}", job.id),
                submit: Millis(0),
                duration: Millis(length),
                time_limit: job.time_limit_ms.map(Millis),
                priority: job.priority,
                tenant: job.team,
                request: Request {
                    nodes: job.node_count.max(1),
                    gpus: job.gpus_per_node,
                    gpu_milli: share,
                    cpu_milli: u64::from(job.tasks_per_node) * u64::from(job.cpus_per_task) * 1_000,
                    memory_mib: job.memory_per_node_bytes.div_ceil(1 << 20),
                    models: named,
                },
            },
        ));
    }
    jobs.sort_by_key(|(at, job)| (*at, job.seq));
    let Some(first) = jobs.first().map(|(at, _)| *at) else {
        return Err(TraceError::mismatch(
            format!("none of the jobs in {} has run to its end", path.display()),
            "export with `tessera queue --all --json`: --all adds the jobs that have ended",
        ));
    };
    let remarks = (never_ran > 0)
        .then(|| format!("jobs left out, since they have not run to their end: {never_ran}"));
    let jobs = jobs
        .into_iter()
        .map(|(at, job)| Job { submit: Millis(u64::try_from(at - first).unwrap_or(0)), ..job });
    Ok((jobs.collect(), remarks.into_iter().collect()))
}
