//! Nodes, their condition, and what is held on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_model::usage::UsageClass;
use tessera_model::{
    AttemptId, Bytes, Cordon, GpuCondition, GpuId, NodeId, NodeInventory, NodeState, Place,
    SessionId, UnixMillis, WHOLE_GPU,
};

/// An attempt's part of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub attempt: AttemptId,
    /// Thousandths.
    pub milli: u32,
}

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
    /// Who holds each GPU: one attempt the whole of it, or several shares of it.
    pub held: BTreeMap<GpuId, Vec<Holder>>,
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

    /// Takes what `place` holds. To give out more of a GPU than there is breaks a promise.
    pub fn hold(&mut self, place: &Place, attempt: AttemptId) {
        for gpu in &place.gpus {
            let before = self.held_milli(gpu);
            assert!(
                before + place.gpu_milli <= WHOLE_GPU,
                "{gpu} is held by {:?} and {} of it was given to {attempt}",
                self.held.get(gpu),
                place.gpu_milli
            );
            let holder = Holder { attempt, milli: place.gpu_milli };
            self.held.entry(gpu.clone()).or_default().push(holder);
        }
        self.cpus_held += place.cpus;
        self.memory_held.0 += place.memory.0;
    }

    pub fn release(&mut self, place: &Place, attempt: AttemptId) {
        for gpu in &place.gpus {
            let holders = self.held.get_mut(gpu);
            let held = holders.as_ref().and_then(|h| h.iter().position(|h| h.attempt == attempt));
            let Some((holders, at)) = holders.zip(held) else {
                panic!("{gpu} of {attempt} was not held by it");
            };
            holders.remove(at);
            if holders.is_empty() {
                self.held.remove(gpu);
            }
        }
        self.cpus_held -= place.cpus;
        self.memory_held.0 -= place.memory.0;
    }

    /// Thousandths of a GPU that attempts hold.
    pub fn held_milli(&self, gpu: &GpuId) -> u32 {
        self.held.get(gpu).map_or(0, |holders| holders.iter().map(|h| h.milli).sum())
    }

    pub fn holders(&self, gpu: &GpuId) -> &[Holder] {
        self.held.get(gpu).map_or(&[], Vec::as_slice)
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
