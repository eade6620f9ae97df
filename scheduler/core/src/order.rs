//! What agents are told. Orders follow from the state, so they can be made again after a restart:
//! [`outstanding`] gives all that a node should be told now. Every order may arrive twice, but for
//! a signal, which follows from no state: it is sent once, and lost with its connection.

use std::sync::Arc;

use tessera_model::{ArrayTask, AttemptId, Gang, JobSpec, Lease, Millis, NodeId};

use crate::cluster::Cluster;
use crate::job_table::{Attempt, Phase};

/// From SIGTERM to SIGKILL.
pub const STOP_GRACE: Millis = Millis(10_000);

#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Get everything ready on the node at `place`, start nothing.
    Prepare {
        spec: Arc<JobSpec>,
        lease: Arc<Lease>,
        place: usize,
        part: Part,
        /// Of which array it is, and which task of it.
        array: Option<ArrayTask>,
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
    /// Send every task of the attempt a signal; it goes on.
    Signal {
        attempt: AttemptId,
        signal: i32,
    },
    Forget {
        attempt: AttemptId,
    },
    /// Answer to the heartbeat sent at this CLOCK_BOOTTIME: leases run on from there.
    Grant {
        heartbeat_sent_boottime_ms: u64,
    },
}

/// What one place of an attempt is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub first_rank: u32,
    /// 0: a spare, which is made ready and starts nothing.
    pub ranks: u32,
    /// Ranks of all places.
    pub world: u32,
    /// The further role it is of; `None`: the first, or a spare.
    pub role: Option<String>,
    /// Of its role; of the first for a spare.
    pub shape: Gang,
    /// Ranks of each place.
    pub ranks_of: Vec<u32>,
}

impl Part {
    pub fn of(attempt: &Attempt, place: usize) -> Self {
        let ranks = |i: usize| {
            let ranks = attempt.ranks_at(i);
            ranks.end - ranks.start
        };
        Self {
            first_rank: attempt.ranks_at(place).start,
            ranks: ranks(place),
            world: attempt.ranks(),
            role: attempt.role_at(place).map(str::to_owned),
            shape: attempt.shape_at(place).clone(),
            ranks_of: (0..attempt.lease.places.len()).map(ranks).collect(),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tessera_model::{
        Bytes, Epoch, JobId, JobRole, Place, Placement, Program, ProjectId, SessionId, TeamId,
        Tier, UnixMillis, UserId, WHOLE_GPU,
    };

    use super::*;

    fn gang(nodes: u32, tasks_per_node: u32) -> Gang {
        Gang {
            nodes,
            gpus_per_node: 0,
            tasks_per_node,
            cpus_per_task: 1,
            memory_per_node: Bytes(0),
            gpu_model: None,
            gpu_milli: WHOLE_GPU,
        }
    }

    /// Two workers of the four it asked for, a leader of one task, and a spare.
    fn attempt() -> Attempt {
        let leader =
            JobRole { name: "leader".into(), gang: gang(1, 1), placement: Placement::default() };
        let spec = JobSpec {
            name: "train".into(),
            team: TeamId::parse("nlp").unwrap(),
            project: ProjectId::parse("p").unwrap(),
            user: UserId::parse("ana").unwrap(),
            tags: BTreeMap::new(),
            tier: Tier::Normal,
            gang: gang(4, 8),
            roles: vec![leader],
            placement: Placement::default(),
            priority: 0,
            time_limit: None,
            requeue: false,
            begin: None,
            after: vec![],
            singleton: false,
            hold: false,
            min_nodes: Some(2),
            spares: 1,
            checkpoint: None,
            reservation: None,
            program: Program {
                argv: vec!["true".into()],
                script: None,
                env: BTreeMap::new(),
                working_dir: None,
            },
            unix: None,
        };
        let place = |name: &str| Place {
            node: NodeId::parse(name).unwrap(),
            session: SessionId(1),
            gpus: vec![],
            cpus: 8,
            memory: Bytes(0),
            gpu_milli: WHOLE_GPU,
        };
        let lease = Lease {
            attempt: AttemptId { job: JobId(9), number: 1 },
            epoch: Epoch(1),
            places: ["a", "b", "c", "d"].map(place).to_vec(),
            nodes: 2,
        };
        Attempt {
            lease: Arc::new(lease),
            spec: Arc::new(spec),
            phase: Phase::Preparing,
            granted_at: UnixMillis(0),
            running_since: None,
            committed: false,
            ended: BTreeMap::new(),
            released: BTreeSet::new(),
            first_failure: None,
            stop: None,
            stopping_since: None,
            leave: None,
            checkpoint_at: None,
            settled: false,
            prepared: BTreeMap::new(),
            started: BTreeSet::new(),
        }
    }

    #[test]
    fn ranks_go_over_all_roles_and_a_spare_has_none() {
        let attempt = attempt();
        let picture = |place: usize| {
            let Part { first_rank, ranks, world, role, shape, ranks_of } =
                Part::of(&attempt, place);
            assert_eq!(ranks_of, [8, 8, 1, 0]);
            let role = role.unwrap_or_else(|| "-".into());
            format!("{first_rank}+{ranks} of {world}, {role}, {} a node", shape.tasks_per_node)
        };
        let want = [
            "0+8 of 17, -, 8 a node",
            "8+8 of 17, -, 8 a node",
            "16+1 of 17, leader, 1 a node",
            "17+0 of 17, -, 8 a node",
        ];
        assert_eq!([0, 1, 2, 3].map(picture), want);
    }
}
