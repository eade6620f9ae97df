//! The mix: which asks have been seen, and how often.
//!
//! In: each ask, once, when it arrives. Out: a frozen list of shapes with their counts, which moves
//! only at stated arrivals, so that what packing thinks of a node does not change with every job.
//! It is part of the cluster's stored state: the same arrivals give the same bytes.

use serde::{Deserialize, Serialize};

use super::Ask;

/// Shapes kept while counting, and shapes in the frozen list: the rarest go first.
const COUNTED_MAX: usize = 512;
const FROZEN_MAX: usize = 256;
/// Arrivals at which the list is first frozen; then at every doubling up to [`STRIDE`], and after
/// that every so many.
const FIRST: u64 = 50;
/// From the first freeze this late on, counts are halved at each freeze: an ask from `n` strides
/// ago weighs 1 / 2^n.
const STRIDE: u64 = 12_800;

/// The observed distribution of asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    arrivals: u64,
    next_freeze: u64,
    revision: u32,
    /// Ascending by ask.
    counted: Vec<Seen>,
    /// Ascending by ask.
    frozen: Vec<Seen>,
}

/// A shape and how often it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub ask: Ask,
    pub count: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            arrivals: 0,
            next_freeze: FIRST,
            revision: 0,
            counted: Vec::new(),
            frozen: Vec::new(),
        }
    }
}

impl Mix {
    /// Counts one arrival. True when the frozen list moved, so that packers must be made anew.
    pub fn observe(&mut self, ask: &Ask) -> bool {
        self.arrivals += 1;
        match self.counted.binary_search_by(|seen| seen.ask.cmp(ask)) {
            Ok(at) => self.counted[at].count = self.counted[at].count.saturating_add(1),
            Err(at) => {
                self.counted.insert(at, Seen { ask: ask.clone(), count: 1 });
                if self.counted.len() > COUNTED_MAX {
                    self.drop_rarest_but(ask);
                }
            }
        }
        if self.arrivals < self.next_freeze {
            return false;
        }
        self.freeze();
        true
    }

    /// The frozen shapes, ascending by ask; empty before the first freeze.
    pub fn frozen(&self) -> &[Seen] {
        &self.frozen
    }

    /// Moves with each freeze.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    fn freeze(&mut self) {
        self.revision = self.revision.wrapping_add(1);
        self.frozen = self.counted.clone();
        if self.frozen.len() > FROZEN_MAX {
            // Most frequent first, equals by ask; then back into the order of asks.
            self.frozen.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.ask.cmp(&b.ask)));
            self.frozen.truncate(FROZEN_MAX);
            self.frozen.sort_by(|a, b| a.ask.cmp(&b.ask));
        }
        if self.arrivals < STRIDE {
            self.next_freeze = self.arrivals * 2;
        } else {
            self.next_freeze = self.arrivals + STRIDE;
            self.counted.iter_mut().for_each(|seen| seen.count /= 2);
            self.counted.retain(|seen| seen.count > 0);
        }
    }

    /// Makes room for a shape that just came; it stays itself, or it could never be counted.
    fn drop_rarest_but(&mut self, newest: &Ask) {
        let others = self.counted.iter().enumerate().filter(|(_, seen)| seen.ask != *newest);
        if let Some((at, _)) = others.min_by_key(|(at, seen)| (seen.count, *at)) {
            self.counted.remove(at);
        }
    }
}
