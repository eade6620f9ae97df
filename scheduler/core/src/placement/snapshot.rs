//! The cluster as placement sees it: dense, cheap to copy, in a fixed order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tessera_model::{
    AttemptId, Gang, GpuId, JobId, Millis, NodeId, Place, SessionId, UnixMillis, Within,
};

use crate::cluster::Cluster;

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub now: UnixMillis,
    /// Widest first.
    pub levels: Arc<[String]>,
    /// In topology order, then by name: depth-first through the tree, so that neighbours in this
    /// list are neighbours in the network.
    pub nodes: Vec<NodeView>,
    /// The first [`DEPTH`](crate::decide::DEPTH) waiting jobs, in queue order.
    pub pending: Vec<Pending>,
    /// What running attempts give back, and when at the latest.
    pub releases: Vec<Release>,
}

#[derive(Debug, Clone)]
pub struct NodeView {
    pub id: NodeId,
    pub session: SessionId,
    /// Up and not cordoned.
    pub takes_jobs: bool,
    pub gpus: Arc<[GpuView]>,
    /// Bit i: GPU i is healthy.
    pub healthy: u64,
    /// Bit i: GPU i is healthy and not held.
    pub free: u64,
    pub cpus: u32,
    pub cpus_free: u32,
    pub memory: u64,
    pub memory_free: u64,
    /// Domain at each level; `None` for a node that is not in the map.
    pub path: Option<Arc<[String]>>,
}

#[derive(Debug, Clone)]
pub struct GpuView {
    pub id: GpuId,
    /// Lower case.
    pub model: String,
    pub numa: Option<u32>,
    pub nvlink_group: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct Pending {
    pub job: JobId,
    pub gang: Gang,
    pub within: Vec<Within>,
    pub time_limit: Option<Millis>,
    pub submitted_at: UnixMillis,
    pub not_before: Option<UnixMillis>,
    pub avoid: BTreeSet<NodeId>,
}

#[derive(Debug, Clone)]
pub struct Release {
    pub attempt: AttemptId,
    /// `None`: without a limit, at no known time.
    pub at: Option<UnixMillis>,
    /// (index into `nodes`, GPU bits, CPUs, memory)
    pub places: Vec<(usize, u64, u32, u64)>,
}

impl Snapshot {
    pub fn of(cluster: &Cluster, now: UnixMillis) -> Self {
        let mut snapshot = Self::without_jobs(cluster, now);
        snapshot.pending = cluster
            .jobs
            .queue()
            .take(crate::decide::DEPTH)
            .map(|job| Pending {
                job: job.id,
                gang: job.spec.gang.clone(),
                within: job.spec.within.clone(),
                time_limit: job.spec.time_limit,
                submitted_at: job.submitted_at,
                not_before: job.not_before,
                avoid: job.avoid.clone(),
            })
            .collect();
        let mut pending = std::mem::take(&mut snapshot.pending);
        for job in pending.iter_mut().filter(|p| !p.avoid.is_empty()) {
            // Nodes that failed to start it are avoided only while the others could take it.
            if !snapshot.could_do_without(job) {
                job.avoid.clear();
            }
        }
        snapshot.pending = pending;
        snapshot
    }

    /// Whether the job would fit on the nodes it does not avoid, were they empty.
    fn could_do_without(&self, job: &Pending) -> bool {
        let mut empty = self.nodes.clone();
        for node in &mut empty {
            node.give(u64::MAX, node.cpus, node.memory);
        }
        super::place(&empty, &self.levels, &job.gang, &job.within, &job.avoid).is_ok()
    }

    /// All but the queue.
    pub fn without_jobs(cluster: &Cluster, now: UnixMillis) -> Self {
        let mut snapshot = Self::nodes_of(cluster, now);
        let index: HashMap<&NodeId, usize> =
            snapshot.nodes.iter().enumerate().map(|(i, n)| (&n.id, i)).collect();
        let releases = cluster.jobs.attempts.values().map(|attempt| Release {
            attempt: attempt.lease.attempt,
            at: attempt.deadline(),
            places: attempt
                .lease
                .places
                .iter()
                .filter(|p| !attempt.released.contains(&p.node))
                .filter_map(|p| Some(snapshot.held_at(*index.get(&p.node)?, p)))
                .collect(),
        });
        snapshot.releases = releases.collect();
        snapshot
    }

    /// Nodes, and nothing of jobs but what they hold.
    pub fn nodes_of(cluster: &Cluster, now: UnixMillis) -> Self {
        let mut nodes: Vec<NodeView> = cluster
            .nodes
            .values()
            .map(|node| {
                let gpus: Arc<[GpuView]> = node
                    .inventory
                    .gpus
                    .iter()
                    .take(64)
                    .map(|g| GpuView {
                        id: g.id.clone(),
                        model: g.model.to_ascii_lowercase(),
                        numa: g.numa,
                        nvlink_group: g.nvlink_group,
                    })
                    .collect();
                let bits = |keep: &dyn Fn(&GpuId) -> bool| {
                    gpus.iter()
                        .enumerate()
                        .filter(|(_, g)| keep(&g.id))
                        .fold(0u64, |mask, (i, _)| mask | 1 << i)
                };
                let healthy = bits(&|g| node.condition(g).is_healthy());
                let held = bits(&|g| node.held.contains_key(g));
                let memory = node.inventory.memory.0;
                NodeView {
                    id: node.id().clone(),
                    session: node.session,
                    takes_jobs: node.takes_jobs(),
                    healthy,
                    free: healthy & !held,
                    cpus: node.inventory.cpus,
                    cpus_free: node.inventory.cpus.saturating_sub(node.cpus_held),
                    memory,
                    memory_free: memory.saturating_sub(node.memory_held.0),
                    path: cluster.topology.nodes.get(node.id()).map(|p| p.as_slice().into()),
                    gpus,
                }
            })
            .collect();
        nodes.sort_by(|a, b| {
            (a.path.is_none(), &a.path, &a.id).cmp(&(b.path.is_none(), &b.path, &b.id))
        });
        Self {
            now,
            levels: cluster.topology.levels.as_slice().into(),
            nodes,
            pending: Vec::new(),
            releases: Vec::new(),
        }
    }

    fn held_at(&self, index: usize, place: &Place) -> (usize, u64, u32, u64) {
        let node = &self.nodes[index];
        let bits = node
            .gpus
            .iter()
            .enumerate()
            .filter(|(_, g)| place.gpus.contains(&g.id))
            .fold(0u64, |mask, (i, _)| mask | 1 << i);
        (index, bits, place.cpus, place.memory.0)
    }
}

impl NodeView {
    pub fn take(&mut self, gpus: u64, cpus: u32, memory: u64) {
        self.free &= !gpus;
        self.cpus_free -= cpus;
        self.memory_free -= memory;
    }

    /// Gives back; a GPU that is sick by now stays out.
    pub fn give(&mut self, gpus: u64, cpus: u32, memory: u64) {
        self.free |= gpus & self.healthy;
        self.cpus_free = (self.cpus_free + cpus).min(self.cpus);
        self.memory_free = (self.memory_free + memory).min(self.memory);
    }
}
