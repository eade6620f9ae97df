//! A lease: the GPUs one attempt holds, until every one of them has been given back.

use serde::{Deserialize, Serialize};

use crate::{AttemptId, Epoch, GpuId, NodeId, SessionId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub attempt: AttemptId,
    /// The reign that granted it.
    pub epoch: Epoch,
    /// In rank order: the places of the first role, those of further roles, then spares.
    pub places: Vec<Place>,
    /// Nodes of the first role; fewer than asked for when the job is elastic.
    pub nodes: u32,
}

/// What a lease holds on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub node: NodeId,
    /// The agent's life the order is meant for. Kept with the attempt, so that what a later
    /// session says is compared with this and never with a scheduler's memory.
    pub session: SessionId,
    /// In local-rank order.
    pub gpus: Vec<GpuId>,
    pub cpus: u32,
    pub memory: crate::Bytes,
    /// Thousandths of each of `gpus`.
    #[serde(default = "crate::job::whole", skip_serializing_if = "crate::job::is_whole")]
    pub gpu_milli: u32,
}
