//! How near a job's nodes have to be, which nodes may take part, and what a placement proved.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Gang, Millis, NodeId, Revision, UnixMillis};

/// What a job asks of its place. Everything empty: any nodes, as near as can be had.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// All nodes of all roles inside one domain of each level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<Within>,
    /// Nodes of the first role come in groups, each inside one domain. Widest first; each size
    /// divides the one before, and the first divides the gang.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<Slice>,
    /// No more than so many domains of a level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at_most: Vec<AtMost>,
    /// Spread over the domains of a level, for those that want to survive the loss of one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Spread>,
    /// The same number of nodes in each domain used of this level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<String>,
    /// How long to wait for what is preferred before taking what there is. `None`: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<Millis>,
    /// Labels a node must, or must not, have; all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<LabelRule>,
    /// Only these nodes; empty: any.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub only: BTreeSet<NodeId>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub exclude: BTreeSet<NodeId>,
}

impl Placement {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every level it names, in the order written.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        let within = self.within.iter().map(|w| w.level.as_str());
        let slices = self.slices.iter().map(|s| s.level.as_str());
        let at_most = self.at_most.iter().map(|a| a.level.as_str());
        let spread = self.spread.iter().map(|s| s.level.as_str());
        within.chain(slices).chain(at_most).chain(spread).chain(self.balance.as_deref())
    }
}

/// The whole gang inside one domain of a level.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Within {
    pub level: String,
    pub strength: Strength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    Required,
    Preferred,
}

/// Each `nodes` nodes that follow each other in rank order inside one domain of `level`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slice {
    /// At least 1.
    pub nodes: u32,
    pub level: String,
    pub strength: Strength,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AtMost {
    /// At least 1.
    pub domains: u32,
    pub level: String,
}

/// Domains of a level take part so evenly that the fullest has at most `max_skew` nodes more than
/// the emptiest of those that could take part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spread {
    pub level: String,
    /// At least 1.
    pub max_skew: u32,
}

/// A wish about a node's labels. A node without the label fulfils `not_in` and `absent`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LabelRule {
    pub key: String,
    pub op: LabelOp,
    /// Empty for `exists` and `absent`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelOp {
    In,
    NotIn,
    Exists,
    Absent,
}

impl LabelRule {
    pub fn holds(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.op {
            LabelOp::In => value.is_some_and(|v| self.values.contains(v)),
            LabelOp::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            LabelOp::Exists => value.is_some(),
            LabelOp::Absent => value.is_none(),
        }
    }
}

/// A further role of a job, beside its first gang: a leader, parameter servers, evaluators. Its
/// ranks follow those of the roles before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobRole {
    pub name: String,
    pub gang: Gang,
    /// Of this role alone; what holds for all roles stands with the job.
    #[serde(default, skip_serializing_if = "Placement::is_empty")]
    pub placement: Placement,
}

/// What the scheduler can say for a placement: kept with the start of every job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The state of the cluster it was found in, by the number of events until then.
    pub revision: Revision,
    pub optimality: Optimality,
    /// Domains used at each level of the fabric that was searched, widest first, and last the nodes.
    pub spans: Vec<Span>,
    /// Preferred constraints that were given up, in words; the required ones all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<String>,
}

/// How good a placement is among all that were possible at that moment: fewest domains of the
/// widest level, then of the next, then fewest nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "optimality", rename_all = "snake_case")]
pub enum Optimality {
    /// No placement that keeps the constraints spans less.
    Optimal,
    /// At most so many percent more domains than the least possible.
    Bound { percent: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub level: String,
    pub domains: u32,
    /// Least possible in the same state.
    pub least: u32,
}

/// Nodes kept for somebody over a time, by an operator: a maintenance, a course, a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub name: String,
    /// Whose jobs may use it; empty: nobody's, for maintenance.
    pub teams: Vec<crate::TeamId>,
    pub target: Target,
    pub from: UnixMillis,
    pub until: UnixMillis,
    /// The operator who answers for it.
    pub owner: crate::UserId,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "snake_case")]
pub enum Target {
    Nodes { nodes: BTreeSet<NodeId> },
    Domain { level: String, name: String },
}

/// Nodes that were freed for a job and that only it may take, until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub job: crate::JobId,
    pub nodes: BTreeSet<NodeId>,
    pub until: UnixMillis,
}
