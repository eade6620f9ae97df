//! Pods of Alibaba's openb lists, and the order in which the packing protocol offers them.
//!
//! In: a pod list. Out: pods one after the other. With a column `seq` they come in that order as it
//! stands. A raw list is sorted by name, shuffled, and inflated by uniform re-draws until enough GPU
//! is asked for; time stamps are not used.

use std::path::Path;

use tessera_model::Millis;

use super::super::error::TraceError;
use super::super::table::Table;
use super::super::workload::{Job, Request, WHOLE};
use super::JOBS_MAX;
use crate::Rng;

const COLUMNS: &str = "a pod list has the columns name, cpu_milli, memory_mib, num_gpu, gpu_milli, and may have gpu_spec and seq";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    pub pods: Vec<(String, Request)>,
    /// The column `seq`, where there is one.
    pub seq: Option<Vec<u64>>,
}

pub fn read(path: &Path) -> Result<Pods, TraceError> {
    let mut table = Table::open(path)?;
    if table.has("sn") && table.has("gpu") {
        return Err(TraceError::mismatch(
            format!("{} lists nodes, where pods are expected", path.display()),
            "were the files of --nodes and --jobs swapped?",
        ));
    }
    let [cpu, memory, gpus, milli] =
        ["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"].map(|name| table.column(name, COLUMNS));
    let (cpu, memory, gpus, milli) = (cpu?, memory?, gpus?, milli?);
    let (spec, seq) = (table.optional("gpu_spec"), table.optional("seq"));
    // A list in a fixed order may do without names; one that is to be sorted by them may not.
    let name = match table.optional("name") {
        None if seq.is_none() => Some(table.column("name", COLUMNS)?),
        found => found,
    };
    let mut pods: Vec<(String, Request)> = Vec::new();
    let mut numbers: Vec<u64> = Vec::new();
    while table.advance()? {
        if let Some(seq) = &seq {
            let number = table.number(seq, u64::MAX)?;
            if let Some(before) = numbers.last().filter(|n| **n >= number) {
                return Err(table.row_error(
                    format!("seq {number} comes after {before}"),
                    "a list with `seq` is replayed as it stands: sort it by seq, each number once",
                ));
            }
            numbers.push(number);
        }
        let count = table.number(&gpus, 1_024)?;
        let share = table.number(&milli, u64::from(WHOLE))?;
        if count > 0 && share == 0 {
            return Err(table.row_error(
                format!("{count} GPUs with gpu_milli 0"),
                "gpu_milli is what the pod takes of each GPU: 1000 for whole ones",
            ));
        }
        let mut models: Vec<String> = spec
            .as_ref()
            .map(|c| table.text(c))
            .unwrap_or_default()
            .split('|')
            .filter(|m| !m.is_empty())
            .map(str::to_owned)
            .collect();
        // "A|B" and "B|A" are one shape.
        models.sort();
        models.dedup();
        if pods.len() == JOBS_MAX {
            return Err(table.row_error(format!("more than {JOBS_MAX} pods"), "split the list"));
        }
        let label = match &name {
            Some(name) => table.text(name).to_owned(),
            None => format!("pod {}", numbers.last().copied().unwrap_or_default()),
        };
        let request = Request {
            nodes: 1,
            gpus: u32::try_from(count).unwrap_or(u32::MAX),
            gpu_milli: if count == 0 { 0 } else { u32::try_from(share).unwrap_or(WHOLE) },
            cpu_milli: table.number(&cpu, 1 << 40)?,
            memory_mib: table.number(&memory, 1 << 40)?,
            models,
        };
        pods.push((label, request));
    }
    Ok(Pods { pods, seq: seq.map(|_| numbers) })
}

/// The pods as they will arrive. `capacity_milli` is the GPU of all nodes; `inflate` times that is
/// asked for in the end, if the list alone does not ask for more.
pub fn arrivals(
    list: Pods,
    seed: u64,
    inflate: f64,
    capacity_milli: u64,
) -> Result<Vec<Job>, TraceError> {
    let Pods { mut pods, seq } = list;
    let Some(seq) = seq else {
        pods.sort();
        let mut rng = Rng::new(seed);
        rng.shuffle(&mut pods);
        let wanted = (capacity_milli as f64 * inflate) as u64;
        re_draw(&mut pods, &mut rng, if inflate > 1.0 { wanted } else { 0 })?;
        return Ok(pods.into_iter().enumerate().map(|(i, p)| job(i as u64, i, p)).collect());
    };
    Ok(seq.into_iter().zip(pods).enumerate().map(|(i, (seq, pod))| job(seq, i, pod)).collect())
}

/// Appends pods drawn from the list itself. As published, a draw counts with the milli of one of
/// its devices and not of all, so the end lies a little above what is wanted.
fn re_draw(
    pods: &mut Vec<(String, Request)>,
    rng: &mut Rng,
    wanted: u64,
) -> Result<(), TraceError> {
    let base = pods.len();
    let mut asked: u64 = pods.iter().map(|(_, r)| r.total_gpu_milli()).sum();
    if asked < wanted && asked == 0 {
        return Err(TraceError::mismatch(
            "no pod of the list asks for GPU, so it cannot be inflated",
            "give `--inflate 1`",
        ));
    }
    while asked < wanted {
        if pods.len() == JOBS_MAX {
            return Err(TraceError::mismatch(
                format!("inflating needs more than {JOBS_MAX} pods"),
                "give a smaller --inflate",
            ));
        }
        let pod = pods[rng.below(base as u64) as usize].clone();
        asked += u64::from(pod.1.gpu_milli);
        pods.push(pod);
    }
    Ok(())
}

fn job(seq: u64, index: usize, (name, request): (String, Request)) -> Job {
    Job {
        seq,
        name,
        // One after the other; nothing ever ends.
        submit: Millis::from_secs(index as u64),
        duration: Millis(0),
        time_limit: None,
        priority: 0,
        tenant: String::new(),
        request,
    }
}
