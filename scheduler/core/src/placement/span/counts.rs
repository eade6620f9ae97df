//! What each domain has and can host, and what it costs to use it.

use std::ops::{Add, Sub};

use super::Shape;
use crate::placement::nodes::NodeSet;
use crate::placement::space::{Layout, Run};

/// Fitting nodes and what can be hosted, by level and run.
pub(in crate::placement) struct Counts {
    pub fitting: Vec<Vec<u32>>,
    pub hosted: Vec<Vec<u32>>,
    /// Nodes that every eligible domain has to take; only where a window wants all.
    pub forced: Vec<Vec<u32>>,
}

/// A cost packs the domains used, widest level in the highest digits.
pub trait Cost: Copy + Ord + Add<Output = Self> + Sub<Output = Self> {
    const BITS: u32;
    const ZERO: Self;
    /// More than any cost, and small enough to add two of them.
    const NEVER: Self;
    fn digit(shift: u32) -> Self;
    fn count(self, shift: u32, bits: u32) -> u32;
}

macro_rules! cost {
    ($type:ty, $bits:expr) => {
        impl Cost for $type {
            const BITS: u32 = $bits;
            const ZERO: Self = 0;
            const NEVER: Self = 1 << $bits;
            fn digit(shift: u32) -> Self {
                1 << shift
            }
            fn count(self, shift: u32, bits: u32) -> u32 {
                u32::try_from((self >> shift) & ((1 << bits) - 1)).unwrap_or(u32::MAX)
            }
        }
    };
}
// Signed, since processors compare many of those at once.
cost!(i32, 29);
cost!(u64, 62);
cost!(u128, 126);

/// Fitting nodes of each run of each level.
pub(in crate::placement) fn count(layout: &Layout, fits: &NodeSet) -> Vec<Vec<u32>> {
    let levels = layout.runs.len();
    let mut fitting = vec![Vec::new(); levels + 1];
    if let Some(narrowest) = layout.runs.last() {
        let count = |r: &Run| fits.count_in(r.first, r.end);
        fitting[levels] = narrowest.iter().map(count).collect();
        for level in (1..levels).rev() {
            fitting[level] = sums(&layout.kids[level - 1], &fitting[level + 1]);
        }
        fitting[0] = vec![fitting[1].iter().sum()];
    } else {
        fitting[0] = vec![fits.count()];
    }
    fitting
}

fn sums(kids: &[(u32, u32)], below: &[u32]) -> Vec<u32> {
    kids.iter().map(|(a, b)| below[*a as usize..*b as usize].iter().sum()).collect()
}

impl Counts {
    pub fn of(
        layout: &Layout,
        fitting: &[Vec<u32>],
        leaves: Option<&[u32]>,
        shape: &Shape,
    ) -> Self {
        let levels = layout.runs.len();
        let round = |level: usize, n: u32| {
            let window = shape.window.filter(|w| w.level == level);
            let most = window.map_or(n, |w| n.min(w.most)) / shape.unit[level] * shape.unit[level];
            if window.is_some_and(|w| most < w.least) { 0 } else { most }
        };
        let mut hosted = vec![Vec::new(); levels + 1];
        let narrowest = leaves.unwrap_or(&fitting[levels]);
        hosted[levels] = narrowest.iter().map(|n| round(levels, *n)).collect();
        for level in (0..levels).rev() {
            let raw = match level {
                0 => vec![hosted[1].iter().sum()],
                _ => sums(&layout.kids[level - 1], &hosted[level + 1]),
            };
            hosted[level] = raw.into_iter().map(|n| round(level, n)).collect();
        }
        let mut forced: Vec<Vec<u32>> = fitting.iter().map(|f| vec![0; f.len()]).collect();
        if let Some(window) = shape.window.filter(|w| w.all) {
            let least = |n: &u32| if *n > 0 { window.least } else { 0 };
            forced[window.level] = fitting[window.level].iter().map(least).collect();
            for level in (0..window.level).rev() {
                forced[level] = match level {
                    0 => vec![forced[1].iter().sum()],
                    _ => sums(&layout.kids[level - 1], &forced[level + 1]),
                };
            }
        }
        Self { fitting: fitting.to_vec(), hosted, forced }
    }
}
