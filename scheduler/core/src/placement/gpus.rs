//! Which GPUs on one node: as few NVLink groups as possible, then as few NUMA nodes, then the set
//! that leaves the least behind in the NUMA nodes it touches, then the lowest indices.
//!
//! Up to eight GPUs the answer to every question a node can be asked stands in a [`Table`], made
//! once for all nodes of the same hardware; beyond that it is searched for.

use super::space::{GpuView, Kind};

/// How good a set is; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    pub nvlink_groups: u32,
    pub numa_nodes: u32,
    pub left_behind: u32,
}

/// GPUs of a node up to which all sets are tried.
const TABLE_GPUS: usize = 8;

/// The best set for each number of GPUs out of each set of usable ones; empty for nodes with more
/// than eight GPUs.
#[derive(Debug)]
pub struct Table {
    /// By usable GPUs as bits, then by count.
    sets: Vec<Set>,
    counts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Set {
    nvlink_groups: u8,
    numa_nodes: u8,
    left_behind: u8,
    gpus: u8,
}

const NO_SET: Set = Set { nvlink_groups: u8::MAX, numa_nodes: 0, left_behind: 0, gpus: 0 };

impl Table {
    pub fn of(gpus: &[GpuView]) -> Self {
        let counts = gpus.len() + 1;
        if gpus.len() > TABLE_GPUS {
            return Self { sets: Vec::new(), counts };
        }
        let masks = 1usize << gpus.len();
        let of = |set: usize| gpus.iter().enumerate().filter(move |(i, _)| set >> i & 1 == 1);
        let mut sets = vec![NO_SET; masks * counts];
        for set in 0..masks {
            let distinct = |key: &dyn Fn(&GpuView) -> Option<u32>| {
                let mut seen: Vec<Option<u32>> = of(set).map(|(_, g)| key(g)).collect();
                seen.sort_unstable();
                seen.dedup();
                seen
            };
            let numas = distinct(&|g| g.numa);
            let near = (0..gpus.len()).filter(|i| numas.contains(&gpus[*i].numa));
            let near = near.fold(0usize, |mask, i| mask | 1 << i);
            let (count, rest) = (set.count_ones(), masks - 1 - set);
            let groups = distinct(&|g| g.nvlink_group).len();
            // Every usable set that holds this one: this one and any part of the rest.
            let mut more = rest;
            loop {
                let candidate = Set {
                    nvlink_groups: groups as u8,
                    numa_nodes: numas.len() as u8,
                    left_behind: (more & near).count_ones() as u8,
                    gpus: set as u8,
                };
                let best = &mut sets[(set | more) * counts + count as usize];
                *best = candidate.min(*best);
                if more == 0 {
                    break;
                }
                more = (more - 1) & rest;
            }
        }
        Self { sets, counts }
    }

    /// The best `count` of the `usable` GPUs of a node of the kind the table was made for.
    pub fn best(&self, kind: &Kind, usable: u64, count: u32) -> Option<(Cost, u64)> {
        if self.sets.is_empty() {
            return choose(&kind.gpus, usable, count);
        }
        let usable = (usable & kind.all()) as usize;
        if count as usize >= self.counts {
            return None;
        }
        let set = self.sets[usable * self.counts + count as usize];
        let cost = Cost {
            nvlink_groups: set.nvlink_groups.into(),
            numa_nodes: set.numa_nodes.into(),
            left_behind: set.left_behind.into(),
        };
        (set != NO_SET).then_some((cost, set.gpus.into()))
    }
}

/// GPUs of a kind that a job may take which asks for this model, a part of its name, in lower
/// case. An instance of a partitioned GPU is given only to who asks for it: where the name alone
/// does not contain the model, but with the profile behind it does.
pub fn of_model(kind: &Kind, model: Option<&str>) -> u64 {
    let fits = |gpu: &GpuView| {
        let model = model.unwrap_or_default();
        if !gpu.mig {
            return gpu.model.contains(model);
        }
        let whole = gpu.model.find(" mig ").map_or(&*gpu.model, |at| &gpu.model[..at]);
        gpu.model.contains(model) && !whole.contains(model)
    };
    let bits = (0u32..).zip(&kind.gpus).filter(|(_, g)| fits(g));
    bits.fold(0, |mask, (bit, _)| mask | 1 << bit)
}

/// The best `count` of the `usable` GPUs, as a bit mask.
pub fn choose(gpus: &[GpuView], usable: u64, count: u32) -> Option<(Cost, u64)> {
    if usable.count_ones() < count {
        return None;
    }
    if count == 0 {
        return Some((Cost { nvlink_groups: 0, numa_nodes: 0, left_behind: 0 }, 0));
    }
    // Sets are built group by group: whole groups differ only in how many of each are taken, so
    // trying each (NVLink group, NUMA node) cell in order of size is exact for the first two costs
    // on up to 8 cells, which is every node there is.
    let cells = cells(gpus, usable);
    let mut best: Option<(Cost, u64)> = None;
    let mut pick = Vec::new();
    search(&cells, count, 0, &mut pick, &mut |pick| {
        let candidate = (cost(&cells, pick), mask(&cells, pick));
        if best.is_none_or(|b| candidate < b) {
            best = Some(candidate);
        }
    });
    best
}

/// Free GPUs that are alike: same NVLink group, same NUMA node. Lowest indices first.
struct Cell {
    nvlink: u32,
    numa: u32,
    gpus: u64,
}

fn cells(gpus: &[GpuView], usable: u64) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for (i, gpu) in gpus.iter().enumerate().filter(|(i, _)| usable >> i & 1 == 1) {
        // Without NVLink a GPU is a group of its own only where some GPUs have links: otherwise
        // none is nearer than another.
        let nvlink = gpu.nvlink_group.unwrap_or(u32::MAX);
        let numa = gpu.numa.unwrap_or(u32::MAX);
        match cells.iter_mut().find(|c| c.nvlink == nvlink && c.numa == numa) {
            Some(cell) => cell.gpus |= 1 << i,
            None => cells.push(Cell { nvlink, numa, gpus: 1 << i }),
        }
    }
    cells
}

/// Every way to take `left` GPUs from cells `at..`; prunes to greedy beyond eight cells.
fn search(
    cells: &[Cell],
    left: u32,
    at: usize,
    pick: &mut Vec<u32>,
    found: &mut impl FnMut(&[u32]),
) {
    if at == cells.len() {
        if left == 0 {
            found(pick);
        }
        return;
    }
    let size = cells[at].gpus.count_ones();
    let rest: u32 = cells[at + 1..].iter().map(|c| c.gpus.count_ones()).sum();
    let (least, most) = (left.saturating_sub(rest), left.min(size));
    // With few cells all counts are tried; with many only the extremes, which hold the optimum of
    // the first two costs: a cell is best used whole or not at all, but for the last.
    let all = cells.len() <= 8;
    for count in (least..=most).rev().filter(|c| all || *c == least || *c == most) {
        pick.push(count);
        search(cells, left - count, at + 1, pick, found);
        pick.pop();
    }
}

fn mask(cells: &[Cell], pick: &[u32]) -> u64 {
    let mut mask = 0;
    for (cell, count) in cells.iter().zip(pick) {
        let mut bits = cell.gpus;
        for _ in 0..*count {
            let lowest = bits & bits.wrapping_neg();
            mask |= lowest;
            bits ^= lowest;
        }
    }
    mask
}

fn cost(cells: &[Cell], pick: &[u32]) -> Cost {
    let used = || cells.iter().zip(pick).filter(|(_, n)| **n > 0).map(|(c, _)| c);
    let distinct = |key: fn(&Cell) -> u32| {
        let mut seen: Vec<u32> = used().map(key).collect();
        seen.sort_unstable();
        seen.dedup();
        u32::try_from(seen.len()).unwrap_or(u32::MAX)
    };
    let taken: u32 = pick.iter().sum();
    let numas: Vec<u32> = used().map(|c| c.numa).collect();
    let touched: u32 =
        cells.iter().filter(|c| numas.contains(&c.numa)).map(|c| c.gpus.count_ones()).sum();
    Cost {
        nvlink_groups: distinct(|c| c.nvlink),
        numa_nodes: distinct(|c| c.numa),
        left_behind: touched - taken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node as a picture: one cell a GPU, `X` busy, `.` free, `|` parts NUMA nodes, a gap parts
    /// NVLink groups.
    fn check(picture: &str, count: u32, want: &str) {
        let (mut gpus, mut free, mut numa, mut group) = (Vec::new(), 0u64, 0, 0);
        for c in picture.chars() {
            match c {
                '|' => numa += 1,
                ' ' => group += 1,
                _ => {
                    if c == '.' {
                        free |= 1 << gpus.len();
                    }
                    let (numa, nvlink_group) = (Some(numa), Some(group));
                    let model = "h100".to_owned();
                    gpus.push(GpuView { model, numa, nvlink_group, rail: None, mig: false });
                }
            }
        }
        let kind = Kind { gpus, cpus: 1, memory: 1 };
        let got = Table::of(&kind.gpus).best(&kind, free, count);
        let text = |got: Option<(Cost, u64)>| {
            got.map_or("none".to_owned(), |(_, mask)| {
                let picked =
                    (0..kind.gpus.len()).filter(|i| mask >> i & 1 == 1).map(|i| i.to_string());
                picked.collect::<Vec<_>>().join(",")
            })
        };
        assert_eq!(text(got), want, "{count} of {picture:?}");
        let searched = choose(&kind.gpus, free, count);
        assert_eq!(searched.map(|s| s.0), got.map(|g| g.0), "searched: {count} of {picture:?}");
    }

    #[test]
    fn a_set_stays_in_one_nvlink_group_then_in_one_numa_node() {
        check("XX..| ....", 4, "4,5,6,7");
        check("XX..|....", 4, "4,5,6,7");
        check("XX..|....", 2, "2,3");
        check("....|....", 2, "0,1");
        check("X...|.XXX", 1, "4");
        check("X...|....", 8, "none");
        check(".X.X|.X.X", 3, "0,2,4");
        check("........", 8, "0,1,2,3,4,5,6,7");
        check("....", 0, "");
        check(".. .. ..|.. .. ..", 4, "4,5,6,7");
    }

    #[test]
    fn a_mig_instance_is_given_only_to_who_names_it() {
        let gpu = |model: &str, mig| GpuView {
            model: model.to_owned(),
            numa: None,
            nvlink_group: None,
            rail: None,
            mig,
        };
        let gpus = vec![gpu("a100-sxm4", false), gpu("a100-sxm4 mig 1g.5gb", true)];
        let kind = Kind { gpus, cpus: 1, memory: 1 };
        for (asked, want) in [
            (None, 0b01),
            (Some("a100"), 0b01),
            (Some("1g.5gb"), 0b10),
            (Some("a100-sxm4 mig 1g"), 0b10),
            (Some("mig"), 0b10),
            (Some("h100"), 0),
        ] {
            assert_eq!(of_model(&kind, asked), want, "{asked:?}");
        }
    }
}
