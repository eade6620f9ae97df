//! What agents are told. Orders follow from the state, so they can be made again after a restart:
//! [`outstanding`] gives all that a node should be told now. Every order may arrive twice.

use std::sync::Arc;

use tessera_model::{AttemptId, JobSpec, Lease, Millis, NodeId};

use crate::cluster::Cluster;
use crate::job_table::Phase;

/// From SIGTERM to SIGKILL.
pub const STOP_GRACE: Millis = Millis(10_000);

#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Get everything ready on the node at `place`, start nothing.
    Prepare {
        spec: Arc<JobSpec>,
        lease: Arc<Lease>,
        place: usize,
        addresses: Vec<String>,
    },
    Commit {
        attempt: AttemptId,
        master_addr: String,
        master_port: u16,
    },
    Stop {
        attempt: AttemptId,
        grace: Millis,
    },
    Forget {
        attempt: AttemptId,
    },
    /// Answer to the heartbeat sent at this CLOCK_BOOTTIME: leases run on from there.
    Grant {
        heartbeat_sent_boottime_ms: u64,
    },
}

/// All that `node` should be told, as if it had heard nothing yet.
pub fn outstanding(cluster: &Cluster, node: &NodeId) -> Vec<Order> {
    let mut orders = Vec::new();
    for attempt in cluster.jobs.attempts_on(node) {
        let id = attempt.lease.attempt;
        match &attempt.phase {
            Phase::Preparing => orders.extend(cluster.prepare_order(attempt, node)),
            Phase::Committed { master_addr, master_port } => {
                orders.extend(cluster.prepare_order(attempt, node));
                orders.push(Order::Commit {
                    attempt: id,
                    master_addr: master_addr.clone(),
                    master_port: *master_port,
                });
            }
            Phase::Running => {}
            Phase::Stopping => orders.push(Order::Stop { attempt: id, grace: STOP_GRACE }),
        }
    }
    orders
}
