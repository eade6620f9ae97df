//! What a team may hold, and its share of what all want.

use serde::{Deserialize, Serialize};

use crate::TeamId;

/// A team's place among the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TeamShare {
    /// The team it is part of; what it holds counts against that one, too.
    pub parent: Option<TeamId>,
    /// 1..=1,000,000; its part of what its siblings share is its weight over the sum of theirs.
    pub weight: u32,
    pub quotas: Vec<Quota>,
}

impl Default for TeamShare {
    fn default() -> Self {
        Self { parent: None, weight: 100, quotas: Vec::new() }
    }
}

/// GPUs of one model that a team is guaranteed, and the most it may hold. A team without a quota
/// for a model may hold any number, and is guaranteed none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// A part of the model's name, lower case; empty: any GPU.
    pub gpu_model: String,
    /// Given back to it by those who borrowed them, when it asks.
    pub guaranteed: u32,
    /// With what it borrows; `None`: no bound. At least `guaranteed`.
    pub limit: Option<u32>,
    /// The guarantee as shapes: so many whole domains of a level. `guaranteed` is then what they hold.
    pub cell: Option<Cell>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    pub level: String,
    pub domains: u32,
}
