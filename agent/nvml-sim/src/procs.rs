//! The real processes that use a simulated GPU.
//!
//! In: /proc of this machine and the UUIDs of the node. Out: which living process names which GPU
//! in `CUDA_VISIBLE_DEVICES`, and what load it asks for in `TESSERA_SIM_LOAD` (`kind:level`).
//! A search looks at new processes only, and at a sixteenth of the old ones in turn (a program may
//! have replaced itself), so a quiet machine costs one directory listing.

use std::collections::HashMap;
use std::fs;

use crate::load::Load;

/// Searches in which a new process is looked at again: between fork and exec it has its parent's
/// environment.
const YOUNG_SCANS: u64 = 4;
const TURN: u64 = 16;

#[derive(Debug, Clone, PartialEq)]
pub struct Proc {
    pub pid: u32,
    pub parent: u32,
    /// Clock ticks since boot; with the pid it names one process for good.
    pub start_ticks: u64,
    pub gpus: Vec<usize>,
    /// Of these GPUs only a MIG instance: GPU, instance.
    pub instances: Vec<(usize, usize)>,
    pub load: Load,
    /// MiB asked for in `TESSERA_SIM_MEM_MIB`.
    pub mem_mib: Option<u64>,
    /// Seconds since the node's epoch at which it was found.
    pub since: f64,
}

impl Proc {
    fn same_job_step(&self, other: &Self) -> bool {
        self.load == other.load && self.gpus == other.gpus
    }
}

#[derive(Debug, Default)]
pub struct Procs {
    /// pid -> (search that found it, last search that saw it)
    seen: HashMap<u32, (u64, u64)>,
    scan: u64,
    pub using: Vec<Proc>,
}

impl Procs {
    /// Searches /proc. `devices` are what a job may name: UUID, GPU, MIG instance.
    pub fn search(&mut self, devices: &[(&str, usize, Option<usize>)], now: f64) {
        self.scan += 1;
        let scan = self.scan;
        let Ok(dir) = fs::read_dir("/proc") else { return };
        let mut examine = Vec::new();
        for entry in dir.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let seen = self.seen.entry(pid).or_insert((scan, scan));
            seen.1 = scan;
            if scan - seen.0 < YOUNG_SCANS || (u64::from(pid) + scan).is_multiple_of(TURN) {
                examine.push(pid);
            }
        }
        self.seen.retain(|_, (_, last)| *last == scan);
        for pid in examine {
            match (read_proc(pid, devices, now), self.using.iter_mut().find(|p| p.pid == pid)) {
                (Some(new), Some(old)) => {
                    let since = if new.start_ticks == old.start_ticks { old.since } else { now };
                    *old = Proc { since, ..new };
                }
                (Some(new), None) => self.using.push(new),
                (None, Some(_)) => self.using.retain(|p| p.pid != pid),
                (None, None) => {}
            }
        }
        self.drop_ended();
        self.using.sort_by_key(|p| p.pid);
    }

    /// Forgets processes that have ended, zombies included.
    pub fn drop_ended(&mut self) {
        self.using
            .retain(|p| stat(p.pid).is_some_and(|s| s.alive && s.start_ticks == p.start_ticks));
    }

    /// The processes of one GPU.
    pub fn on(&self, gpu: usize) -> impl Iterator<Item = &Proc> {
        self.using.iter().filter(move |p| p.gpus.contains(&gpu))
    }

    /// The loads on one GPU with the time each began. A child that asks for just what its parent
    /// asks for is part of it: `sh -c 'python train.py'` is one job step.
    pub fn loads(&self, gpu: usize) -> Vec<(Load, f64)> {
        self.on(gpu)
            .filter(|p| !self.using.iter().any(|q| q.pid == p.parent && q.same_job_step(p)))
            .map(|p| (p.load, p.since))
            .collect()
    }
}

struct Stat {
    alive: bool,
    parent: u32,
    start_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold blanks and brackets; the last bracket ends it.
    let mut rest = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = rest.next()?;
    let parent = rest.next()?.parse().ok()?;
    // Field 22 of the line; two are gone behind the command's two.
    let start_ticks = rest.nth(17)?.parse().ok()?;
    Some(Stat { alive: !matches!(state, "Z" | "X" | "x"), parent, start_ticks })
}

fn read_proc(pid: u32, devices: &[(&str, usize, Option<usize>)], now: f64) -> Option<Proc> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let var = |name: &str| {
        environ.split(|b| *b == 0).find_map(|entry| {
            entry
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
                .and_then(|v| std::str::from_utf8(v).ok())
        })
    };
    let named = devices_named(var("CUDA_VISIBLE_DEVICES")?, devices);
    if named.is_empty() {
        return None;
    }
    let mut gpus: Vec<usize> = named.iter().map(|(gpu, _)| *gpu).collect();
    gpus.dedup();
    let instances = named.into_iter().filter_map(|(gpu, mig)| Some((gpu, mig?))).collect();
    let stat = stat(pid)?;
    Some(Proc {
        pid,
        parent: stat.parent,
        start_ticks: stat.start_ticks,
        gpus,
        instances,
        // A job with a typing error in its wish is a busy job, not an idle one.
        load: var("TESSERA_SIM_LOAD").and_then(|t| t.parse().ok()).unwrap_or(Load::TRAINING),
        mem_mib: var("TESSERA_SIM_MEM_MIB").and_then(|t| t.parse().ok()),
        since: now,
    })
}

/// Which of our GPUs and MIG instances a `CUDA_VISIBLE_DEVICES` names. CUDA takes the start of a
/// UUID too.
fn devices_named(
    value: &str,
    devices: &[(&str, usize, Option<usize>)],
) -> Vec<(usize, Option<usize>)> {
    let is_uuid = |part: &&str| part.starts_with("GPU-") || part.starts_with("MIG-");
    let mut found: Vec<(usize, Option<usize>)> = value
        .split(',')
        .map(str::trim)
        .filter(|part| is_uuid(part) && part.len() >= 8)
        .filter_map(|part| devices.iter().find(|(uuid, ..)| uuid.starts_with(part)))
        .map(|(_, gpu, mig)| (*gpu, *mig))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_visible_devices_is_read_as_cuda_reads_it() {
        let ours = [
            ("GPU-aaaaaaaa-1", 0, None),
            ("GPU-bbbbbbbb-2", 1, None),
            ("MIG-cccccccc-3", 1, Some(4)),
        ];
        for (value, gpus) in [
            ("GPU-bbbbbbbb-2", vec![(1, None)]),
            ("GPU-bbbbbbbb-2, GPU-aaaaaaaa-1", vec![(0, None), (1, None)]),
            ("GPU-aaaa", vec![(0, None)]),
            ("MIG-cccccccc-3", vec![(1, Some(4))]),
            ("GPU-cccccccc-3", vec![]),
            ("0,1", vec![]),
            ("", vec![]),
            ("GPU-", vec![]),
        ] {
            assert_eq!(devices_named(value, &ours), gpus, "{value:?}");
        }
    }

    #[test]
    fn this_very_process_is_alive() {
        let me = stat(std::process::id()).unwrap();
        assert!(me.alive && me.start_ticks > 0);
    }
}
