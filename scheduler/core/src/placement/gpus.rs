//! Which GPUs on one node: as few NVLink groups as possible, then as few NUMA nodes, then the set
//! that leaves the least behind in the NUMA nodes it touches, then the lowest indices.

use super::snapshot::GpuView;

/// How good a set is; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    pub nvlink_groups: u32,
    pub numa_nodes: u32,
    pub left_behind: u32,
}

/// The best `count` of the `free` GPUs whose model contains `model`, as a bit mask.
pub fn choose(gpus: &[GpuView], free: u64, count: u32, model: Option<&str>) -> Option<(Cost, u64)> {
    let usable = matching(gpus, free, model);
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

/// Those of `among` whose model contains `model`, without regard to case.
pub fn matching(gpus: &[GpuView], among: u64, model: Option<&str>) -> u64 {
    let Some(model) = model else {
        let there = if gpus.len() < 64 { (1 << gpus.len()) - 1 } else { u64::MAX };
        return among & there;
    };
    gpus.iter()
        .enumerate()
        .filter(|(i, g)| among >> i & 1 == 1 && contains(&g.model, model))
        .fold(0, |mask, (i, _)| mask | 1 << i)
}

/// Asked for every GPU of every node: it must not allocate.
fn contains(text: &str, part: &str) -> bool {
    let (text, part) = (text.as_bytes(), part.as_bytes());
    part.is_empty() || text.windows(part.len()).any(|w| w.eq_ignore_ascii_case(part))
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
    use tessera_model::GpuId;

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
                    let id = GpuId::parse(&format!("GPU-{}", gpus.len())).unwrap();
                    let (numa, nvlink_group) = (Some(numa), Some(group));
                    gpus.push(GpuView { id, model: "h100".into(), numa, nvlink_group });
                }
            }
        }
        let got = choose(&gpus, free, count, None).map_or("none".to_owned(), |(_, mask)| {
            let picked = (0..gpus.len()).filter(|i| mask >> i & 1 == 1).map(|i| i.to_string());
            picked.collect::<Vec<_>>().join(",")
        });
        assert_eq!(got, want, "{count} of {picture:?}");
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
}
