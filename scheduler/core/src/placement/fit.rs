//! Which nodes have room for a role, and with which GPUs: one pass over the arrays.
//!
//! A pass costs a few nanoseconds a node, which for any cluster is less than keeping counters for
//! each shape that might be asked for; it is also never out of date.

use tessera_model::WHOLE_GPU;

use super::gpus::Cost;
use super::nodes::NodeSet;
use super::request::Role;
use super::space::Space;

/// Bits set in each byte.
const COUNTS: [u8; 256] = {
    let mut counts = [0; 256];
    let mut i = 0;
    while i < 256 {
        counts[i] = (i as u8).count_ones() as u8;
        i += 1;
    }
    counts
};

/// The nodes that can take one node's worth of the role now.
pub(super) fn fits(space: &Space, role: &Role, closed: &NodeSet) -> NodeSet {
    let mut fits = role.allowed.clone();
    fits.subtract(closed);
    let layout = &space.layout;
    let share = role.gpus > 0 && role.milli < WHOLE_GPU;
    let small = role.usable.iter().all(|mask| *mask <= 0xff);
    for (w, word) in fits.words_mut().iter_mut().enumerate() {
        if *word == 0 {
            continue;
        }
        let first = w * 64;
        let end = (first + 64).min(space.free.len());
        let nodes = first..end;
        let (free, kinds) = (&space.free[nodes.clone()], &layout.kind[nodes.clone()]);
        let (cpus, memory) = (&space.cpus_free[nodes.clone()], &space.memory_free[nodes.clone()]);
        let takes = &space.takes_jobs[nodes];
        let mut ok = 0u64;
        for i in 0..free.len() {
            let usable = free[i] & role.usable[usize::from(kinds[i])];
            // Looking a byte up is quicker than counting bits where there is no instruction for it.
            let count = if small {
                u32::from(COUNTS[(usable & 0xff) as usize])
            } else {
                usable.count_ones()
            };
            let fit = takes[i]
                & (cpus[i] >= role.cpus)
                & (memory[i] >= role.memory)
                & (share | (count >= role.gpus));
            ok |= u64::from(fit) << i;
        }
        *word &= ok;
    }
    if share {
        let nodes: Vec<u32> = fits.iter().filter(|n| share_of(space, role, *n).is_none()).collect();
        nodes.into_iter().for_each(|n| fits.remove(n));
    }
    fits
}

/// GPUs of a node that are wholly free for the role.
pub(super) fn usable(space: &Space, role: &Role, node: u32) -> u64 {
    space.free[node as usize] & role.usable[usize::from(space.layout.kind[node as usize])]
}

/// The GPU for a share: the one with the least left that suffices, else the lowest free one; and
/// what is left of it before, in thousandths.
fn share_of(space: &Space, role: &Role, node: u32) -> Option<(u32, u64)> {
    let mask = role.usable[usize::from(space.layout.kind[node as usize])];
    let shared = space.shared.range((node, 0)..=(node, u32::MAX));
    let fitting = shared.filter(|((_, gpu), left)| mask >> gpu & 1 == 1 && **left >= role.milli);
    let tightest = fitting.map(|((_, gpu), left)| (*left, 1u64 << gpu)).min();
    let free = usable(space, role, node);
    tightest.or_else(|| (free != 0).then_some((WHOLE_GPU, free & free.wrapping_neg())))
}

/// The lowest GPU that the role may share and that has just so much left, in thousandths.
pub(super) fn share_with(space: &Space, role: &Role, node: u32, left: u32) -> Option<u64> {
    if left == WHOLE_GPU {
        let free = usable(space, role, node);
        return (free != 0).then_some(free & free.wrapping_neg());
    }
    let mask = role.usable[usize::from(space.layout.kind[node as usize])];
    let mut shared = space.shared.range((node, 0)..=(node, u32::MAX));
    shared.find(|((_, gpu), l)| mask >> gpu & 1 == 1 && **l == left).map(|((_, gpu), _)| 1 << gpu)
}

/// How well a node that fits would be used, smaller is better, and the GPUs it would give. A
/// started node goes before an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth {
    pub nvlink_groups: u32,
    pub numa_nodes: u32,
    /// GPUs free before, all that the role may use; for a share what the GPU has left.
    pub free: u32,
    pub left_behind: u32,
    pub node: u32,
    pub gpus: u64,
}

pub(super) fn worth(space: &Space, role: &Role, node: u32) -> Option<Worth> {
    let kind = space.layout.kind[node as usize];
    if role.gpus > 0 && role.milli < WHOLE_GPU {
        let (free, gpus) = share_of(space, role, node)?;
        let (nvlink_groups, numa_nodes, left_behind) = (1, 1, 0);
        return Some(Worth { nvlink_groups, numa_nodes, free, left_behind, node, gpus });
    }
    let usable = usable(space, role, node);
    let table = space.layout.table(kind);
    let (cost, gpus) = table.best(space.layout.kind_of(node), usable, role.gpus)?;
    let Cost { nvlink_groups, numa_nodes, left_behind } = cost;
    // Whoever asks for no GPU leaves nodes with many free ones to others.
    let free = match role.gpus {
        0 => space.free[node as usize].count_ones(),
        _ => usable.count_ones(),
    };
    Some(Worth { nvlink_groups, numa_nodes, free, left_behind, node, gpus })
}

/// The fitting node that is used best. Nodes of a kind with the same free GPUs are alike but for
/// their place in the order, so only the first of each sort is looked at.
pub(super) fn best(space: &Space, role: &Role, fits: &NodeSet) -> Option<Worth> {
    const SMALL: usize = 256;
    let share = role.gpus > 0 && role.milli < WHOLE_GPU;
    let kinds = &space.layout.kinds;
    if share || kinds.iter().any(|k| k.gpus.len() > 8) {
        return fits.iter().filter_map(|n| worth(space, role, n)).min();
    }
    let mut seen = vec![false; kinds.len() * SMALL];
    let mut best: Option<Worth> = None;
    for node in fits.iter() {
        let sort = usize::from(space.layout.kind[node as usize]) * SMALL
            + (space.free[node as usize] & 0xff) as usize;
        if !std::mem::replace(&mut seen[sort], true) {
            best = best.into_iter().chain(worth(space, role, node)).min();
        }
    }
    best
}
