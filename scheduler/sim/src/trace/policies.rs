//! The policies by the names people give them.
//!
//! In: a name and a workload. Out: a policy ready to run, or why it makes no sense there.

use super::error::TraceError;
use super::ours::Ours;
use super::policy::Policy;
use super::queueing::{Discipline, Queue};
use super::workload::{Kind, Workload};
use crate::packers::{self, Packing};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The shipping scheduler.
    Ours,
    FirstFit,
    BestFit,
    Fgd,
    Fifo,
    Greedy,
    Easy,
    Shortest,
}

impl Name {
    /// Ours first, so that it is the one whose placements are written.
    pub const ALL: [Self; 8] = [
        Self::Ours,
        Self::FirstFit,
        Self::BestFit,
        Self::Fgd,
        Self::Fifo,
        Self::Greedy,
        Self::Easy,
        Self::Shortest,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::FirstFit => "first-fit",
            Self::BestFit => "best-fit",
            Self::Fgd => "fgd",
            Self::Fifo => "fifo",
            Self::Greedy => "greedy",
            Self::Easy => "easy",
            Self::Shortest => "sjf",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|n| n.word() == word)
    }

    /// Whether it answers what the trace asks: where a pod goes, or whose turn it is.
    pub fn suits(self, kind: Kind) -> bool {
        match self {
            Self::Ours => true,
            Self::FirstFit | Self::BestFit | Self::Fgd => kind == Kind::Packing,
            Self::Fifo | Self::Greedy | Self::Easy | Self::Shortest => kind == Kind::Queue,
        }
    }

    pub fn make(self, workload: &Workload) -> Result<Box<dyn Policy>, TraceError> {
        if !self.suits(workload.kind) {
            let why = match workload.kind {
                Kind::Packing => "orders a queue, and in a packing trace nobody waits",
                Kind::Queue => "packs shares of GPUs, and this trace is about waiting",
            };
            let others = Self::ALL.into_iter().filter(|n| n.suits(workload.kind)).map(Self::word);
            return Err(TraceError::mismatch(
                format!("policy {} {why}", self.word()),
                format!("policies for it: {}", Vec::from_iter(others).join(", ")),
            ));
        }
        let queue = |discipline| -> Result<Box<dyn Policy>, TraceError> {
            Ok(Box::new(Queue::new(discipline, &workload.nodes)))
        };
        let packing = |rule| {
            packers::policy(rule, workload).ok_or_else(|| {
                TraceError::mismatch(
                    format!("policy {} cannot place pods that share several GPUs", self.word()),
                    "a pod may ask for a share of one GPU, or for whole ones",
                )
            })
        };
        match self {
            Self::Ours => Ok(Box::new(Ours::new(workload))),
            Self::FirstFit => packing(Packing::FirstFit),
            Self::BestFit => packing(Packing::BestFit),
            Self::Fgd => packing(Packing::Fgd),
            Self::Fifo => queue(Discipline::Fifo),
            Self::Greedy => queue(Discipline::Greedy),
            Self::Easy => queue(Discipline::Easy),
            Self::Shortest => queue(Discipline::Shortest),
        }
    }
}
