//! Why a job waits. Part of the decision, so `explain`, the queue and the metrics read one value.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DependencyKind, JobId, Millis, NodeId, TeamId, UnixMillis};

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
        /// The date was promised; otherwise it is only what things look like now.
        #[serde(default)]
        promised: bool,
    },
    /// Its last attempt failed to start; it waits before the next.
    BackingOff { until: UnixMillis },
    /// At least so many jobs stand before it: this round did not reach it.
    NotReached { ahead: u32 },
    /// The verifier did not accept the place that was found for it: our own fault.
    Refused { what: String },
    /// Somebody holds it back.
    Held,
    /// Not before this instant, as its owner asked.
    Begins { at: UnixMillis },
    /// Another job has to end, or begin, first.
    Dependency { on: JobId, kind: DependencyKind },
    /// The job it depends on ended the other way: it can never start.
    DependencyNever { on: JobId, kind: DependencyKind },
    /// Another job of the same name, user and team runs.
    Singleton { running: JobId },
    /// As many tasks of its array run as may at once.
    Throttled { array: JobId, running: u32 },
    /// Its team, or one above it, holds as many GPUs as it may.
    OverQuota { team: TeamId, gpu_model: String, held: u32, limit: u32 },
    /// It would have to borrow, which only a job that can be stopped again may.
    MayNotBorrow { team: TeamId, gpu_model: String, held: u32, guaranteed: u32 },
    /// It would fit, but not as near as it prefers; until then it waits for better.
    Patience { level: String, until: UnixMillis },
    /// Nodes are being freed for it.
    MakingRoom {
        /// Empty: they have left, and what is kept for it is not all free yet.
        victims: Vec<JobId>,
        by: UnixMillis,
    },
    /// It would fit but for a calendar reservation.
    Reserved { name: String, until: UnixMillis },
    /// The reservation it wants to run in has not begun, or is over.
    ReservationClosed { name: String },
    /// Enough nodes are free, but they cannot be divided among the domains as it asks.
    Undivided { what: String },
    /// The search gave up before it had tried everything: it may fit.
    NotFound { tried: u64 },
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
            Self::HeldForReservation { job, at: Some(at), promised: true } => {
                write!(f, "would delay job {job}, which is promised a start at {at}")
            }
            Self::HeldForReservation { job, at: Some(at), promised: false } => {
                write!(f, "would delay job {job}, which is to start at {at} as things stand")
            }
            Self::HeldForReservation { job, at: None, .. } => {
                write!(f, "would delay job {job}, which has waited long and is next")
            }
            Self::BackingOff { until } => write!(f, "its last attempt failed, next try at {until}"),
            Self::NotReached { ahead } => write!(f, "waits behind at least {ahead} jobs"),
            Self::Held => f.write_str("is held back; `tessera release` lets it go"),
            Self::Begins { at } => write!(f, "is not to begin before {at}"),
            Self::Dependency { on, kind } => match kind {
                DependencyKind::AfterOk => write!(f, "waits until job {on} has succeeded"),
                DependencyKind::AfterAny => write!(f, "waits until job {on} has ended"),
                DependencyKind::AfterNotOk => write!(f, "waits until job {on} has failed"),
                DependencyKind::After => write!(f, "waits until job {on} has begun"),
            },
            Self::DependencyNever { on, kind } => {
                write!(f, "can never start: {} of job {on}, which ended otherwise", kind.word())
            }
            Self::Singleton { running } => {
                write!(f, "waits for job {running} of the same name and user")
            }
            Self::Throttled { array, running } => {
                write!(
                    f,
                    "waits while {running} tasks of array {array} run or go first, as many as may"
                )
            }
            Self::OverQuota { team, gpu_model, held, limit } => {
                let model = if gpu_model.is_empty() { "" } else { gpu_model };
                let space = if model.is_empty() { "" } else { " " };
                write!(f, "team {team} holds {held} of at most {limit} {model}{space}GPUs")
            }
            Self::MayNotBorrow { team, gpu_model, held, guaranteed } => {
                let space = if gpu_model.is_empty() { "" } else { " " };
                write!(
                    f,
                    "team {team} holds {held} of the {guaranteed} {gpu_model}{space}GPUs it is guaranteed, and only a job with `--requeue` may borrow more"
                )
            }
            Self::Patience { level, until } => {
                write!(f, "waits for a place in one {level} until {until}, then takes any")
            }
            Self::MakingRoom { victims, by } if victims.is_empty() => {
                write!(f, "starts when the GPUs that are kept for it are free, by {by}")
            }
            Self::MakingRoom { victims, by } => {
                let jobs: Vec<String> = victims.iter().map(JobId::to_string).collect();
                let (word, have) = if jobs.len() == 1 { ("job", "has") } else { ("jobs", "have") };
                write!(f, "starts when {word} {} {have} left, by {by}", jobs.join(", "))
            }
            Self::Reserved { name, until } => {
                write!(f, "would fit but for the reservation {name}, until {until}")
            }
            Self::ReservationClosed { name } => {
                write!(f, "wants to run in the reservation {name}, which is not open")
            }
            Self::Undivided { what } => {
                write!(f, "finds enough free nodes, but not as it wants them: {what}")
            }
            Self::NotFound { tried } => {
                write!(f, "no place was found among the {tried} looked at; there may be one")
            }
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
    /// When it will start, from how long jobs like those before it really run. Never a promise.
    pub eta: Option<Eta>,
    /// The latest start it was promised.
    pub promised: Option<UnixMillis>,
    /// Changes that were really tried, and when each would start.
    pub counterfactuals: Vec<Counterfactual>,
    /// Where it would start now: nodes in rank order, or the first few of them.
    pub place: Vec<NodeId>,
    pub hint: Option<String>,
}

/// Quantiles of a start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eta {
    pub p50: UnixMillis,
    pub p90: UnixMillis,
}

/// A change to the job, and what would come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counterfactual {
    /// As one would give it to `submit` or `update`: `--nodes 6`.
    pub change: String,
    /// `None`: it would not start either, or nobody can say when.
    pub starts_at: Option<UnixMillis>,
    /// How much sooner than unchanged; `None` where the unchanged job has no date.
    pub sooner: Option<Millis>,
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
