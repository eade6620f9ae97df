//! Nodes, their condition, and what is held on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_model::usage::UsageClass;
use tessera_model::{
    AttemptId, Bytes, Cordon, GpuCondition, GpuId, NodeId, NodeInventory, NodeState, Place,
    SessionId, UnixMillis,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub inventory: NodeInventory,
    pub session: SessionId,
    pub state: NodeState,
    pub cordon: Option<Cordon>,
    /// GPUs the agent says are not healthy.
    pub conditions: BTreeMap<GpuId, GpuCondition>,
    /// GPUs on which something still ran after their lease ended. The agent's next word on its
    /// GPUs' conditions goes before it.
    pub occupied: BTreeMap<GpuId, Vec<u32>>,
    /// GPUs of which another node has the same, by that node.
    pub duplicate: BTreeMap<GpuId, NodeId>,
    pub held: BTreeMap<GpuId, AttemptId>,
    pub cpus_held: u32,
    pub memory_held: Bytes,
    /// When a heartbeat last came. Heartbeats are not journalled: after a restart it is the time of
    /// the restart for a node that was up, which errs on the side of waiting.
    pub last_seen: UnixMillis,
}

impl Node {
    pub fn new(inventory: NodeInventory, session: SessionId, at: UnixMillis) -> Self {
        Self {
            inventory,
            session,
            state: NodeState::Up,
            cordon: None,
            conditions: BTreeMap::new(),
            occupied: BTreeMap::new(),
            duplicate: BTreeMap::new(),
            held: BTreeMap::new(),
            cpus_held: 0,
            memory_held: Bytes(0),
            last_seen: at,
        }
    }

    /// Whether new jobs may be placed here.
    pub fn takes_jobs(&self) -> bool {
        self.state == NodeState::Up && self.cordon.is_none()
    }

    pub fn condition(&self, gpu: &GpuId) -> GpuCondition {
        if let Some(node) = self.duplicate.get(gpu) {
            return GpuCondition::Duplicate { node: node.clone() };
        }
        match (self.conditions.get(gpu), self.occupied.get(gpu)) {
            (Some(condition), _) => condition.clone(),
            (None, Some(pids)) => GpuCondition::Occupied { pids: pids.clone() },
            (None, None) => GpuCondition::Healthy,
        }
    }

    /// Takes what `place` holds. A GPU that is held already is a broken promise.
    pub fn hold(&mut self, place: &Place, attempt: AttemptId) {
        for gpu in &place.gpus {
            let before = self.held.insert(gpu.clone(), attempt);
            assert!(before.is_none(), "{gpu} is held by {before:?} and was given to {attempt}");
        }
        self.cpus_held += place.cpus;
        self.memory_held.0 += place.memory.0;
    }

    pub fn release(&mut self, place: &Place, attempt: AttemptId) {
        for gpu in &place.gpus {
            let before = self.held.remove(gpu);
            assert!(before == Some(attempt), "{gpu} of {attempt} was held by {before:?}");
        }
        self.cpus_held -= place.cpus;
        self.memory_held.0 -= place.memory.0;
    }

    /// What a GPU that no job holds is doing.
    pub fn unheld_class(&self, gpu: &GpuId) -> UsageClass {
        if self.state != NodeState::Up {
            UsageClass::Unknown
        } else if !self.condition(gpu).is_healthy() {
            UsageClass::Failed
        } else if self.cordon.is_some() {
            UsageClass::Drain
        } else {
            UsageClass::Idle
        }
    }

    pub fn id(&self) -> &NodeId {
        &self.inventory.node
    }
}
