//! Who else may be on a GPU that several attempts share.
//!
//! In: a GPU and what NVML lists on it. Out: of those processes the ones that belong to no attempt
//! which holds a part of the GPU. A process belongs to an attempt whose cgroup it is in; where no
//! cgroup could be made, to the one it carries in its environment.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use tessera_model::{AttemptId, GpuId};
use tessera_shim::cgroup::Cgroup;
use tessera_shim::{TaskDir, live, proc};

use super::Shared;
use super::adopt::rank_dirs;
use super::gpus::Processes;

/// A process may end between NVML's list and ours, and then belongs to nobody. So many looks in a
/// row must see a stranger.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Asks what is on the GPU that belongs to none of its holders; `but` counts for none of them.
/// Blocks.
pub(super) fn strangers(shared: &Shared, gpu: &GpuId, but: Option<AttemptId>) -> Processes {
    let mut look = 1;
    loop {
        let tenants = shared.book.holders(gpu, but);
        let found = match shared.gpus.processes(gpu) {
            Processes::Pids(pids) if !pids.is_empty() && !tenants.is_empty() => {
                Processes::Pids(of_nobody(shared, &tenants, pids))
            }
            other => other,
        };
        let none = !matches!(&found, Processes::Pids(pids) if !pids.is_empty());
        if none || tenants.is_empty() || look == LOOKS {
            return found;
        }
        look += 1;
        thread::sleep(LOOK_AGAIN);
    }
}

fn of_nobody(shared: &Shared, tenants: &[AttemptId], mut pids: Vec<u32>) -> Vec<u32> {
    let mut known: BTreeSet<u32> = BTreeSet::new();
    let mut marks = Vec::new();
    for tenant in tenants {
        let ranks = rank_dirs(&shared.attempt_dir(*tenant)).unwrap_or_default();
        for spec in ranks.iter().filter_map(|(_, dir)| TaskDir::new(dir).read_spec().ok()) {
            match Cgroup::open(&spec.cgroup) {
                Some(cgroup) => known.extend(cgroup.pids().unwrap_or_default()),
                None => marks.push(live::attempt_entry(&spec)),
            }
        }
    }
    let is_known = |pid: &u32| known.contains(pid) || marks.iter().any(|m| proc::has_env(*pid, m));
    pids.retain(|pid| !is_known(pid));
    pids
}
