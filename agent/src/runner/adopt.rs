//! What an earlier agent left in the state folder.
//!
//! In: `jobs/`. Out: for each attempt what was ordered, whether any task may have been started, and
//! whether it is to end. A task is never started from here: what has no end and no shim is ended
//! as unknown. Anything unreadable counts as running until nobody is left of it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tessera_model::{AttemptId, GpuId};
use tessera_shim::cgroup::Cgroup;
use tessera_shim::live::has_run;
use tessera_shim::{TaskDir, TaskSpec};

use super::order::{OrderRecord, Tombstone};
use super::start;
use crate::session::BootMillis;

pub(super) struct LeftBehind {
    pub attempt: AttemptId,
    pub record: Option<OrderRecord>,
    pub ranks: Range<u32>,
    pub gpus: Vec<GpuId>,
    /// All task folders are complete, so that shims may have been started; none is before. Of a
    /// spare: it was told to go on holding its GPUs.
    pub started: bool,
    pub tombstone: Option<Tombstone>,
    pub lease_until: Option<BootMillis>,
}

pub(super) fn rank_dir(attempt_dir: &Path, rank: u32) -> PathBuf {
    attempt_dir.join(format!("rank-{rank}"))
}

/// Says that a spare was told to go on holding its GPUs, so that a later agent holds them too.
const HELD: &str = "held";

/// Durable before it is answered. Blocks.
pub(super) fn write_held(attempt_dir: &Path) -> io::Result<()> {
    tessera_shim::dir::write_durably(attempt_dir, HELD, b"")
}

/// The task folders of an attempt, by rank.
pub(super) fn rank_dirs(attempt_dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(attempt_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(rank) = name.to_str().and_then(|name| name.strip_prefix("rank-")?.parse().ok())
        {
            found.push((rank, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn left_behind(jobs: &Path) -> io::Result<Vec<LeftBehind>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(jobs)? {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_str().and_then(AttemptId::parse) {
            Some(attempt) => left.extend(read(attempt, &entry.path())?),
            None => {
                tracing::warn!(folder = %entry.path().display(), "this is no attempt's folder; it is left alone");
            }
        }
    }
    Ok(left)
}

fn read(attempt: AttemptId, dir: &Path) -> io::Result<Option<LeftBehind>> {
    let record = OrderRecord::read(dir);
    if let Err(error) = &record {
        tracing::error!(%attempt, %error, "the order cannot be read; what runs of the attempt is stopped");
    }
    let mut tombstone = Tombstone::read(dir);
    let with_spec: Vec<(u32, TaskDir)> = rank_dirs(dir)?
        .into_iter()
        .map(|(rank, path)| (rank, TaskDir::new(path)))
        .filter(|(_, task)| task.file("spec").exists())
        .collect();
    let record = match record {
        Ok(Some(record)) if record.order.attempt == attempt => Some(record),
        Ok(None) if with_spec.is_empty() && tombstone.is_none() => {
            // The agent died before anything was decided.
            std::fs::remove_dir_all(dir)?;
            return Ok(None);
        }
        _ => {
            // Nobody knows whose it is, so nobody may go on with it.
            tombstone = tombstone.or(Some(Tombstone { grace_ms: 30_000 }));
            None
        }
    };
    let (ranks, gpus) = match &record {
        Some(record) => (record.order.rank_range(), record.order.gpus.clone()),
        None => from_specs(&with_spec),
    };
    let complete = !with_spec.is_empty() && with_spec.len() == ranks.len();
    // A folder that somebody damaged must not hide what runs.
    let held = record.as_ref().is_some_and(|r| r.order.is_spare()) && dir.join(HELD).exists();
    let started = complete || held || with_spec.iter().any(|(_, task)| has_begun(task));
    if !started {
        remove_unused_cgroups(dir, &with_spec);
    }
    let lease_until = with_spec
        .iter()
        .filter_map(|(_, task)| task.read_lease().ok()?.deadline_boottime_ms)
        .min()
        .map(BootMillis);
    Ok(Some(LeftBehind { attempt, record, ranks, gpus, started, tombstone, lease_until }))
}

fn has_begun(task: &TaskDir) -> bool {
    has_run(task) || task.is_locked().unwrap_or(true)
}

/// The agent died while it made the folders; what it made so far never held a process.
fn remove_unused_cgroups(dir: &Path, tasks: &[(u32, TaskDir)]) {
    let of_tasks =
        tasks.iter().filter_map(|(_, task)| Cgroup::open(&task.read_spec().ok()?.cgroup));
    for cgroup in of_tasks.chain(start::cgroup_around(dir)) {
        if let Err(error) = cgroup.remove() {
            tracing::warn!(cgroup = %cgroup.dir().display(), %error, "an unused cgroup stays behind");
        }
    }
}

/// What the task folders alone say.
fn from_specs(tasks: &[(u32, TaskDir)]) -> (Range<u32>, Vec<GpuId>) {
    let (Some((first, _)), Some((last, _))) = (tasks.first(), tasks.last()) else {
        return (0..0, Vec::new());
    };
    let gpus = tasks.iter().find_map(|(_, task)| task.read_spec().ok()).map(|s| visible(&s));
    (*first..last.saturating_add(1), gpus.unwrap_or_default())
}

fn visible(spec: &TaskSpec) -> Vec<GpuId> {
    let value = spec.env.iter().find(|(name, _)| name == "CUDA_VISIBLE_DEVICES");
    value.map_or_else(Vec::new, |(_, value)| {
        value.split(',').filter_map(|uuid| GpuId::parse(uuid).ok()).collect()
    })
}
