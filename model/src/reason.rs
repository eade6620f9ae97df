//! Why a job waits. Part of the decision, so `explain`, the queue and the metrics read one value.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{JobId, UnixMillis};

/// The one dominant reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum WaitReason {
    /// No decision has been made since it was submitted.
    Undecided,
    /// It can never start on the nodes there are; a proof by counting, not a failed search.
    Infeasible { proof: String },
    /// Its shape fits the cluster, but not what is free now.
    NotEnoughFree {
        /// Nodes it needs at once.
        need: u32,
        /// Most nodes that are free for it in any one allowed domain.
        have: u32,
        gpus_per_node: u32,
        /// `None`: anywhere in the cluster.
        level: Option<String>,
        /// The domain that comes nearest.
        nearest: Option<String>,
    },
    /// It would fit now, but would delay the job that holds the reservation.
    HeldForReservation {
        job: JobId,
        /// `None`: the jobs in its way have no time limit, so its start has no date.
        at: Option<UnixMillis>,
    },
    /// Its last attempt failed to start; it waits before the next.
    BackingOff { until: UnixMillis },
    /// At least so many jobs stand before it: this round did not reach it.
    NotReached { ahead: u32 },
    /// The verifier did not accept the place that was found for it: our own fault.
    Refused { what: String },
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = |n: u32| if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") };
        match self {
            Self::Undecided => f.write_str("not looked at yet"),
            Self::Infeasible { proof } => write!(f, "cannot start on this cluster: {proof}"),
            Self::NotEnoughFree { need, have, gpus_per_node, level, nearest } => {
                let shape = match gpus_per_node {
                    0 => "enough free CPUs".to_owned(),
                    1 => "1 free GPU".to_owned(),
                    g => format!("{g} free GPUs"),
                };
                let each = if *need > 1 { " each" } else { "" };
                write!(f, "needs {} with {shape}{each}", nodes(*need))?;
                if let Some(level) = level {
                    write!(f, " in one {level}")?;
                }
                match (have, nearest) {
                    (0, _) => f.write_str(", none is free"),
                    (n, Some(name)) => write!(f, ", the best ({name}) has {n}"),
                    (n, None) => write!(f, ", {n} free"),
                }
            }
            Self::HeldForReservation { job, at: Some(at) } => {
                write!(f, "would delay job {job}, which is promised a start at {at}")
            }
            Self::HeldForReservation { job, at: None } => {
                write!(f, "would delay job {job}, which has waited long and is next")
            }
            Self::BackingOff { until } => write!(f, "its last attempt failed, next try at {until}"),
            Self::NotReached { ahead } => write!(f, "waits behind at least {ahead} jobs"),
            Self::Refused { what } => {
                write!(
                    f,
                    "was given a place that breaks its request ({what}); this is a fault of the scheduler, please report it"
                )
            }
        }
    }
}

/// One rung of the ladder behind an answer: a constraint, what it asks, what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    pub what: String,
    pub need: String,
    pub have: String,
    pub holds: bool,
}

/// The answer of `tessera explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `None` for a job that was only imagined.
    pub job: Option<JobId>,
    pub verdict: Verdict,
    pub summary: String,
    pub ladder: Vec<Rung>,
    /// When it starts at the latest, if every running job uses its whole time limit and nothing
    /// breaks. `None` where no such bound exists.
    pub expected_start: Option<UnixMillis>,
    /// From 1; `None` when it is not in the queue.
    pub position: Option<u32>,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds a lease.
    Started,
    Ended,
    /// It would start in the next round.
    StartsNow,
    Waits,
    Infeasible,
}
