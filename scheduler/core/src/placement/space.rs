//! The cluster as placement sees it: what is free where, as plain arrays in a fixed order.
//!
//! In: the cluster's nodes, map and marks. Out: a [`Space`], which the cluster keeps up to date one
//! node at a time, which is cheap to copy, and which can be changed and changed back. Nodes stand
//! in the order of the first fabric, depth-first, then by name, so that neighbours in the arrays
//! are neighbours in the network and every domain of that fabric is a range.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_model::{DomainMark, GpuId, NodeId, SessionId, Topology, WHOLE_GPU};

pub use super::layout::*;
use crate::cluster::Cluster;
use crate::node_table::Node;

/// What is free, node by node.
#[derive(Debug, Clone, Default)]
pub struct Space {
    pub layout: Arc<Layout>,
    /// Bit i: GPU i is healthy and nobody holds any of it.
    pub free: Vec<u64>,
    /// Bit i: GPU i is healthy.
    pub healthy: Vec<u64>,
    pub cpus_free: Vec<u32>,
    pub memory_free: Vec<u64>,
    /// Up and not cordoned.
    pub takes_jobs: Vec<bool>,
    pub session: Vec<SessionId>,
    /// Thousandths left of the GPUs that are shared, by node and GPU; absent: all or nothing.
    pub shared: BTreeMap<(u32, u32), u32>,
    /// How nodes were before each change since the first open mark.
    log: Vec<Before>,
    /// Open marks.
    marks: u32,
}

/// A moment a [`Space`] can be changed back to.
#[derive(Debug)]
#[must_use = "a mark stays open until it is undone or kept"]
pub struct Mark(usize);

#[derive(Debug, Clone)]
struct Before {
    node: u32,
    free: u64,
    cpus_free: u32,
    memory_free: u64,
    /// A shared GPU, and what was left of it.
    shared: Option<(u32, Option<u32>)>,
}

/// What is taken on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub node: u32,
    /// Bits.
    pub gpus: u64,
    /// Thousandths of each.
    pub milli: u32,
    pub cpus: u32,
    pub memory: u64,
}

impl Space {
    /// The whole cluster, from nothing. `map` is the effective one.
    pub fn of(cluster: &Cluster, map: &Topology) -> Self {
        let sketch = |n: &Node| Sketch {
            id: n.id().clone(),
            kind: Kind::of(n),
            labels: n.inventory.labels.clone(),
        };
        let nodes = cluster.nodes.values().map(sketch).collect();
        let mut space = Self::sketch(nodes, map, &cluster.marks);
        let layout = Arc::clone(&space.layout);
        for (i, id) in (0..).zip(&layout.ids) {
            space.write(i, &cluster.nodes[id]);
        }
        space
    }

    /// Nodes that are up, healthy and empty. `marks` by `level/domain`, as the cluster has them.
    pub fn sketch(
        nodes: Vec<Sketch>,
        map: &Topology,
        marks: &BTreeMap<String, DomainMark>,
    ) -> Self {
        let layout = Arc::new(Layout::of(nodes, map, marks));
        let count = layout.len();
        let mut space = Self {
            layout,
            free: vec![0; count],
            healthy: vec![0; count],
            cpus_free: vec![0; count],
            memory_free: vec![0; count],
            takes_jobs: vec![false; count],
            session: vec![SessionId(0); count],
            ..Self::default()
        };
        space.empty();
        space
    }

    /// As it would be with every node up and healthy and nothing running.
    pub fn ideal(&self) -> Self {
        let mut space = Self { log: Vec::new(), marks: 0, ..self.clone() };
        space.empty();
        space
    }

    fn empty(&mut self) {
        self.shared.clear();
        for i in 0..self.len() {
            let kind = &self.layout.kinds[usize::from(self.layout.kind[i])];
            self.healthy[i] = kind.all();
            self.free[i] = kind.all();
            self.cpus_free[i] = kind.cpus;
            self.memory_free[i] = kind.memory;
            self.takes_jobs[i] = true;
        }
    }

    /// Takes in what has changed on one node. False: its hardware or labels have, or it is new, and
    /// the whole has to be made anew.
    pub fn refresh(&mut self, node: &Node) -> bool {
        let Some(i) = self.layout.index(node.id()) else { return false };
        assert!(self.marks == 0, "a node is taken in only where nothing is tried out");
        let same = *self.layout.kind_of(i) == Kind::of(node)
            && *self.layout.labels[i as usize] == node.inventory.labels;
        if same {
            self.write(i, node);
        }
        same
    }

    fn write(&mut self, index: u32, node: &Node) {
        let i = index as usize;
        let (mut healthy, mut free) = (0u64, 0u64);
        for (bit, gpu) in (0u32..).zip(node.inventory.gpus.iter().take(GPUS_MAX)) {
            let held = node.held_milli(&gpu.id);
            let fit = node.condition(&gpu.id).is_healthy();
            healthy |= u64::from(fit) << bit;
            free |= u64::from(fit && held == 0) << bit;
            if fit && held > 0 && held < WHOLE_GPU {
                self.shared.insert((index, bit), WHOLE_GPU - held);
            } else {
                self.shared.remove(&(index, bit));
            }
        }
        self.healthy[i] = healthy;
        self.free[i] = free;
        self.cpus_free[i] = node.inventory.cpus.saturating_sub(node.cpus_held);
        self.memory_free[i] = node.inventory.memory.0.saturating_sub(node.memory_held.0);
        self.takes_jobs[i] = node.takes_jobs();
        self.session[i] = node.session;
    }

    pub fn len(&self) -> usize {
        self.layout.len()
    }

    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    pub fn id(&self, node: u32) -> &NodeId {
        &self.layout.ids[node as usize]
    }

    /// Takes what must be free.
    pub fn take(&mut self, taken: &Taken) {
        self.remember(taken);
        let i = taken.node as usize;
        if taken.milli < WHOLE_GPU && taken.gpus != 0 {
            let key = (taken.node, taken.gpus.trailing_zeros());
            // Where nothing is left there is no entry either; what is kept may be taken from under
            // a job that is gone by then.
            let whole = if self.free[i] & taken.gpus != 0 { WHOLE_GPU } else { 0 };
            let left = self.shared.get(&key).copied().unwrap_or(whole);
            match left.saturating_sub(taken.milli) {
                0 => self.shared.remove(&key),
                left => self.shared.insert(key, left),
            };
        }
        self.free[i] &= !taken.gpus;
        self.cpus_free[i] = self.cpus_free[i].saturating_sub(taken.cpus);
        self.memory_free[i] = self.memory_free[i].saturating_sub(taken.memory);
    }

    /// Gives back; a GPU that is sick by now stays out.
    pub fn give(&mut self, taken: &Taken) {
        self.remember(taken);
        let i = taken.node as usize;
        let kind = self.layout.kind_of(taken.node);
        let (cpus, memory) = (kind.cpus, kind.memory);
        if taken.milli < WHOLE_GPU && taken.gpus != 0 {
            let bit = taken.gpus.trailing_zeros();
            let left = self.shared.get(&(taken.node, bit)).copied().unwrap_or(0) + taken.milli;
            if left >= WHOLE_GPU {
                self.shared.remove(&(taken.node, bit));
                self.free[i] |= taken.gpus & self.healthy[i];
            } else if self.healthy[i] & taken.gpus != 0 {
                self.shared.insert((taken.node, bit), left);
            }
        } else {
            self.free[i] |= taken.gpus & self.healthy[i];
        }
        self.cpus_free[i] = (self.cpus_free[i] + taken.cpus).min(cpus);
        self.memory_free[i] = (self.memory_free[i] + taken.memory).min(memory);
    }

    /// From here on changes can be undone, until the mark is undone or kept. Marks nest.
    pub fn mark(&mut self) -> Mark {
        self.marks += 1;
        Mark(self.log.len())
    }

    /// Changes everything back to how it was at the mark. Marks made after it have to be closed.
    pub fn undo_to(&mut self, mark: Mark) {
        while self.log.len() > mark.0 {
            let Some(before) = self.log.pop() else { break };
            let i = before.node as usize;
            self.free[i] = before.free;
            self.cpus_free[i] = before.cpus_free;
            self.memory_free[i] = before.memory_free;
            match before.shared {
                Some((gpu, Some(left))) => drop(self.shared.insert((before.node, gpu), left)),
                Some((gpu, None)) => drop(self.shared.remove(&(before.node, gpu))),
                None => {}
            }
        }
        self.marks -= 1;
    }

    /// Keeps what was changed since the mark. An outer mark can still undo it.
    pub fn keep(&mut self, _mark: Mark) {
        self.marks -= 1;
        if self.marks == 0 {
            self.log.clear();
        }
    }

    fn remember(&mut self, taken: &Taken) {
        if self.marks == 0 {
            return;
        }
        let i = taken.node as usize;
        let shared = (taken.milli < WHOLE_GPU && taken.gpus != 0).then(|| {
            let gpu = taken.gpus.trailing_zeros();
            (gpu, self.shared.get(&(taken.node, gpu)).copied())
        });
        self.log.push(Before {
            node: taken.node,
            free: self.free[i],
            cpus_free: self.cpus_free[i],
            memory_free: self.memory_free[i],
            shared,
        });
    }

    /// What a place of a lease takes here; `None` for a node that is gone.
    pub fn taken(&self, cluster: &Cluster, place: &tessera_model::Place) -> Option<Taken> {
        let node = self.layout.index(&place.node)?;
        let gpus = &cluster.nodes.get(&place.node)?.inventory.gpus;
        let held = |g: &GpuId| place.gpus.contains(g);
        let bits = (0..).zip(gpus.iter().take(GPUS_MAX)).filter(|(_, g)| held(&g.id));
        Some(Taken {
            node,
            gpus: bits.fold(0, |mask, (bit, _): (u32, _)| mask | 1 << bit),
            milli: place.gpu_milli,
            cpus: place.cpus,
            memory: place.memory.0,
        })
    }
}
