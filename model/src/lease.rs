//! A lease: the GPUs one attempt holds, until every one of them has been given back.

use serde::{Deserialize, Serialize};

use crate::{AttemptId, Epoch, GpuId, NodeId, SessionId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub attempt: AttemptId,
    /// The reign that granted it.
    pub epoch: Epoch,
    /// In rank order: place i holds ranks `i * tasks_per_node ..`.
    pub places: Vec<Place>,
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
}
