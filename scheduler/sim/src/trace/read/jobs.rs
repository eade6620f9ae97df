//! Training-job traces: ITP 2021 and Philly 2017, in one table each.
//!
//! In: `job_id,submit_s,duration_s,num_gpus,vc` (other columns are not read). Out: rows by submit
//! time; for a size of nodes, the jobs; and how many nodes make a wanted load.

use std::path::Path;

use tessera_model::Millis;

use super::super::error::TraceError;
use super::super::table::Table;
use super::super::workload::{Job, Request};
use super::JOBS_MAX;

const COLUMNS: &str = "a job trace has the columns job_id, submit_s, duration_s, num_gpus, vc";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub submit: Millis,
    pub duration: Millis,
    pub gpus: u32,
    pub vc: String,
}

/// Reads the rows of one virtual cluster, or all; sorted by submit time, then as in the file.
pub fn read(path: &Path, cluster: Option<&str>) -> Result<Vec<Row>, TraceError> {
    let mut table = Table::open(path)?;
    if table.has("sn") && table.has("gpu") {
        return Err(TraceError::mismatch(
            format!("{} lists nodes, where jobs are expected", path.display()),
            "were the files of --nodes and --jobs swapped?",
        ));
    }
    let [id, submit, duration, gpus] =
        ["job_id", "submit_s", "duration_s", "num_gpus"].map(|name| table.column(name, COLUMNS));
    let (id, submit, duration, gpus) = (id?, submit?, duration?, gpus?);
    let vc =
        if cluster.is_some() { Some(table.column("vc", COLUMNS)?) } else { table.optional("vc") };
    let (mut rows, mut others) = (Vec::new(), std::collections::BTreeSet::new());
    while table.advance()? {
        let row = Row {
            name: table.text(&id).to_owned(),
            submit: Millis(table.seconds(&submit)?),
            duration: Millis(table.seconds(&duration)?),
            gpus: u32::try_from(table.number(&gpus, 1_000_000)?).unwrap_or(u32::MAX),
            vc: vc.as_ref().map(|c| table.text(c).to_owned()).unwrap_or_default(),
        };
        if cluster.is_some_and(|c| c != row.vc) {
            if others.len() < 40 {
                others.insert(row.vc);
            }
            continue;
        }
        if rows.len() == JOBS_MAX {
            return Err(table.row_error(format!("more than {JOBS_MAX} jobs"), "split the trace"));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(TraceError::mismatch(
            format!("{} has no job of cluster {}", path.display(), cluster.unwrap_or_default()),
            format!("clusters there: {}", Vec::from_iter(others).join(", ")),
        ));
    }
    rows.sort_by_key(|r| r.submit);
    Ok(rows)
}

/// How many nodes of `gpus` GPUs make this load: all GPU-time asked for, over what the nodes can
/// give between the first and the last submission; rounded, and enough for the largest gang.
pub fn nodes_for_load(rows: &[Row], load: f64, gpus: u32) -> Result<usize, TraceError> {
    let (first, last) = match (rows.first(), rows.last()) {
        (Some(a), Some(b)) if a.submit < b.submit => (a.submit, b.submit),
        _ => {
            return Err(TraceError::mismatch(
                "all jobs come at the same instant, so no load can be told",
                "give `--nodes N:GPUS` instead of --load",
            ));
        }
    };
    let work: u128 = rows.iter().map(|r| u128::from(r.gpus) * u128::from(r.duration.0)).sum();
    let each = (last.0 - first.0) as f64 * f64::from(gpus);
    let wanted = (work as f64 / each / load).round();
    let largest = rows.iter().map(|r| r.gpus.div_ceil(gpus)).max().unwrap_or(1);
    let nodes = (wanted as usize).max(largest as usize).max(1);
    if nodes > super::NODES_MAX {
        return Err(TraceError::mismatch(
            format!("a load of {load} needs {nodes} nodes, the most is {}", super::NODES_MAX),
            "give a higher --load, or nodes",
        ));
    }
    Ok(nodes)
}

/// Up to a node's GPUs inside one node, more in whole nodes, as the traces' own clusters did it.
pub fn shape(gpus: u32, per_node: u32) -> Request {
    if gpus <= per_node {
        Request::gpus(1, gpus)
    } else {
        Request::gpus(gpus.div_ceil(per_node), per_node)
    }
}

/// The jobs on nodes of `per_node` GPUs. A job's limit is its true length times `limit_factor`.
pub fn jobs(rows: Vec<Row>, per_node: u32, limit_factor: f64) -> Vec<Job> {
    let job = |(seq, row): (usize, Row)| Job {
        seq: seq as u64,
        submit: row.submit,
        duration: row.duration,
        time_limit: Some(Millis((row.duration.0 as f64 * limit_factor).ceil() as u64)),
        priority: 0,
        tenant: row.vc,
        request: shape(row.gpus, per_node),
        name: row.name,
    };
    rows.into_iter().enumerate().map(job).collect()
}
