//! How events change nodes: their inventories, what state they are in, and the class of each GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_model::usage::UsageClass;
use tessera_model::{
    AttemptId, Gpu, GpuId, Lease, NodeId, NodeInventory, NodeState, PARTS_PER_GPU, SessionId,
    UnixMillis, WHOLE_GPU,
};

use super::Cluster;
use crate::node_table::Node;

impl Cluster {
    pub(super) fn node_up(
        &mut self,
        inventory: &NodeInventory,
        session: SessionId,
        adopted: &[AttemptId],
    ) {
        let now = self.now;
        let id = inventory.node.clone();
        match self.nodes.get_mut(&id) {
            Some(node) => {
                if node.inventory.boot != inventory.boot {
                    node.occupied.clear();
                }
                node.session = session;
                node.state = NodeState::Up;
                node.last_seen = now;
            }
            None => {
                self.nodes.insert(id.clone(), Node::new(inventory.clone(), session, now));
            }
        }
        for attempt in adopted {
            if let Some(attempt) = self.jobs.attempts.get_mut(attempt) {
                let mut lease = Lease::clone(&attempt.lease);
                lease.places.iter_mut().filter(|p| p.node == id).for_each(|p| p.session = session);
                attempt.lease = Arc::new(lease);
            }
        }
        self.inventory_changed(inventory);
    }

    pub(super) fn node_lost(&mut self, id: &NodeId, last_seen: UnixMillis) {
        let held = self.nodes.get(id).map(|n| n.held.keys().cloned().collect::<Vec<_>>());
        for gpu in held.into_iter().flatten() {
            let closed = &mut self.outbox.closed;
            self.timeline.unknown_since(&gpu, None, last_seen, self.now, closed);
        }
        self.with_node(id, |n| n.state = NodeState::Lost);
    }

    /// A node leaves. Nothing may be held there any more.
    pub(super) fn node_retired(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.remove(id) else { return };
        assert!(node.held.is_empty(), "{id} was retired while jobs hold its GPUs");
        let gpus: Vec<GpuId> = self.timeline.at_node(id).cloned().collect();
        for gpu in gpus {
            self.timeline.retire(&gpu, self.now, &mut self.outbox.closed);
        }
        self.retired.insert(id.clone());
        self.outbox.nodes.insert(id.clone());
        self.outbox.hang_up.insert(id.clone());
        self.ground_changed();
        self.settle_duplicates();
    }

    /// Whose GPU a UUID is: the node that had it first, for as long as it lists or holds it.
    pub(super) fn settle_duplicates(&mut self) {
        let doubted = self.nodes.values().filter(|n| !n.duplicate.is_empty());
        let ids: Vec<NodeId> = doubted.map(|n| n.id().clone()).collect();
        for id in ids {
            self.find_duplicates(&id);
            self.refresh_classes(&id);
        }
    }

    pub(super) fn find_duplicates(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let other_home = |gpu: &GpuId| {
            let home = self.timeline.home(gpu).filter(|home| *home != id)?;
            let other = self.nodes.get(home)?;
            let has = other.held.contains_key(gpu)
                || (other.inventory.gpus.iter().any(|g| g.id == *gpu)
                    && !other.duplicate.contains_key(gpu));
            has.then(|| home.clone())
        };
        let gpus = node.inventory.gpus.iter().filter(|g| !node.held.contains_key(&g.id));
        let duplicate: BTreeMap<GpuId, NodeId> =
            gpus.filter_map(|g| Some((g.id.clone(), other_home(&g.id)?))).collect();
        if let Some(node) = self.nodes.get_mut(id) {
            node.duplicate = duplicate;
        }
    }

    /// Takes a new inventory. A GPU that is gone ends its timeline, unless a job still holds it.
    pub(super) fn inventory_changed(&mut self, inventory: &NodeInventory) {
        let id = &inventory.node;
        let Some(node) = self.nodes.get_mut(id) else { return };
        // Where it stands may follow from what it says of itself, so the map goes with it.
        let before = std::mem::replace(&mut node.inventory, inventory.clone());
        let same_hardware = before.gpus == inventory.gpus && before.labels == inventory.labels;
        let held: BTreeSet<&GpuId> = node.held.keys().collect();
        let listed: BTreeSet<&GpuId> = inventory.gpus.iter().map(|g| &g.id).collect();
        let gone: Vec<GpuId> = self
            .timeline
            .at_node(id)
            .filter(|g| !listed.contains(g) && !held.contains(g))
            .cloned()
            .collect();
        for gpu in gone {
            self.timeline.retire(&gpu, self.now, &mut self.outbox.closed);
        }
        if !same_hardware {
            self.ground_changed();
        }
        self.find_duplicates(id);
        self.refresh_classes(id);
        self.settle_duplicates();
    }

    pub(super) fn with_node(&mut self, id: &NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(id) {
            change(node);
            self.refresh_classes(id);
        }
    }

    /// What each part of a GPU is doing: what attempts hold of it, and the rest.
    fn classes_of(&self, node: &Node, gpu: &Gpu) -> Vec<(UsageClass, u32)> {
        let whole = match &gpu.mig {
            Some(mig) => (mig.memory_slices * (PARTS_PER_GPU / 8)).min(PARTS_PER_GPU),
            None => PARTS_PER_GPU,
        };
        // What is held there is believed to go on, but nobody can say so on a bill.
        if node.state == NodeState::Lost {
            return vec![(UsageClass::Unknown, whole)];
        }
        let mut rest = whole;
        let mut classes = Vec::new();
        for holder in node.holders(&gpu.id) {
            let Some(attempt) = self.jobs.attempts.get(&holder.attempt) else { continue };
            let parts = (holder.milli * (PARTS_PER_GPU / WHOLE_GPU)).min(rest);
            let parts = if holder.milli == WHOLE_GPU { whole } else { parts };
            classes.push((attempt.usage_class(), parts));
            rest -= parts;
        }
        if rest > 0 {
            classes.push((node.unheld_class(&gpu.id), rest));
        }
        classes
    }

    /// Writes the class of each of the node's GPUs into the timeline, and what is free on it into
    /// what placement works on.
    pub(super) fn refresh_classes(&mut self, id: &NodeId) {
        self.outbox.nodes.insert(id.clone());
        self.ground_node(id);
        let Some(node) = self.nodes.get(id) else { return };
        for gpu in &node.inventory.gpus {
            // Another node keeps its account.
            if node.duplicate.contains_key(&gpu.id) {
                continue;
            }
            let classes = self.classes_of(node, gpu);
            let closed = &mut self.outbox.closed;
            self.timeline.set(&gpu.id, id, &gpu.model, classes, self.now, closed);
        }
    }
}
