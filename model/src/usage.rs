//! Who held which GPU for how long, and at what price.

use serde::{Deserialize, Serialize};

use crate::{
    Amount, AttemptId, GpuId, MicroUsd, NodeId, PARTS_PER_GPU, PartMillis, ProjectId, TeamId,
    UnixMillis, UserId,
};

/// What a GPU, or a part of one that is shared, was doing. At any instant each part is in exactly
/// one class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum UsageClass {
    /// Held by a job; its team pays.
    Allocated { attempt: AttemptId, team: TeamId, project: ProjectId, user: UserId },
    /// Free to be given out.
    Idle,
    /// Kept from new jobs by an operator.
    Drain,
    /// Not fit to be given out.
    Failed,
    /// The node is silent: nobody knows.
    Unknown,
}

impl UsageClass {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Allocated { .. } => "allocated",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The account it is charged to: the team, or a pool of the platform.
    pub fn account(&self) -> String {
        match self {
            Self::Allocated { team, .. } => team.to_string(),
            other => format!("pool:{}", other.word()),
        }
    }
}

/// A stretch `[start, end)` of one GPU, or of some of its parts, in one class. At each instant of a
/// GPU's life the parts of its intervals add up to the whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    pub gpu: GpuId,
    pub node: NodeId,
    pub model: String,
    pub start: UnixMillis,
    pub end: UnixMillis,
    #[serde(default = "whole_gpu", skip_serializing_if = "is_whole_gpu")]
    pub parts: u32,
    #[serde(flatten)]
    pub class: UsageClass,
}

fn whole_gpu() -> u32 {
    PARTS_PER_GPU
}

fn is_whole_gpu(parts: &u32) -> bool {
    *parts == PARTS_PER_GPU
}

/// Prices from one instant on, until a later version takes over. Never changed once published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceVersion {
    /// From 1.
    pub version: u32,
    pub effective_from: UnixMillis,
    /// By a part of the GPU model's name, first match wins; without regard to case.
    pub prices: Vec<Price>,
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    pub gpu_model: String,
    pub per_gpu_hour: MicroUsd,
}

/// What `tessera usage` may group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageKey {
    Team,
    Project,
    User,
    Job,
    GpuModel,
    Gpu,
    Node,
    Class,
    Day,
}

impl UsageKey {
    pub const ALL: [Self; 9] = [
        Self::Team,
        Self::Project,
        Self::User,
        Self::Job,
        Self::GpuModel,
        Self::Gpu,
        Self::Node,
        Self::Class,
        Self::Day,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Team => "team",
            Self::Project => "project",
            Self::User => "user",
            Self::Job => "job",
            Self::GpuModel => "gpu_model",
            Self::Gpu => "gpu",
            Self::Node => "node",
            Self::Class => "class",
            Self::Day => "day",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.word() == word)
    }
}

/// A line of a usage report: a value for each key asked for, in the order asked, and the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageLine {
    pub keys: Vec<String>,
    pub held: PartMillis,
    /// Exact; what of `held` has a price.
    pub amount: Amount,
    /// What of `held` no price version covers.
    pub unpriced: PartMillis,
}
