//! Jobs and nodes as everybody sees them: what `show` and `nodes` print and the store projects.
//!
//! In: the cluster's state. Out: records, with what is going on as a sentence. Why a job waits is
//! the decision's to say, not this room's.

use tessera_model::{GpuRecord, JobRecord, JobState, NodeRecord, NodeState};

use crate::cluster::Cluster;
use crate::event::StopWhy;
use crate::job_table::{Attempt, Job, Phase};
use crate::node_table::Node;

impl Cluster {
    /// A job as everybody sees it. While it waits, its reason is the decision's and comes from there.
    pub fn record(&self, job: &Job) -> JobRecord {
        JobRecord {
            id: job.id,
            spec: tessera_model::JobSpec::clone(&job.spec),
            state: job.state,
            submitted_at: job.submitted_at,
            started_at: job.started_at,
            ended_at: job.ended_at,
            exit_code: job.exit_code,
            reason: self.reason(job),
            attempt: job.attempt,
            nodes: job.nodes.clone(),
            cancel_requested: job.cancelled_by.is_some(),
            held: job.held,
            array: job.array,
            eligible_at: job.eligible_at,
            promised_at: job.promise.map(|p| p.latest),
            last_checkpoint_at: job.last_checkpoint,
            preemptions: job.preemptions,
            certificate: job.certificate.as_deref().cloned(),
        }
    }

    /// A node as everybody sees it.
    pub fn node_record(&self, node: &Node) -> NodeRecord {
        let gpu = |gpu: &tessera_model::Gpu| {
            let held_by = node.holders(&gpu.id).first().map(|h| h.attempt.job);
            GpuRecord {
                condition: node.condition(&gpu.id),
                held_by,
                team: held_by.and_then(|j| self.jobs.get(j)).map(|j| j.spec.team.clone()),
                held_milli: node.held_milli(&gpu.id),
            }
        };
        NodeRecord {
            state: node.state,
            cordon: node.cordon.clone(),
            domains: self
                .map()
                .domains_of(node.id())
                .map(|(level, domain)| (level.to_owned(), domain.to_owned()))
                .collect(),
            map_doubts: Vec::new(),
            gpus: node.inventory.gpus.iter().map(gpu).collect(),
            cpus_held: node.cpus_held,
            last_seen: node.last_seen,
            inventory: node.inventory.clone(),
        }
    }

    fn reason(&self, job: &Job) -> String {
        let attempt = job.attempt.and_then(|a| self.jobs.attempts.get(&a));
        match (job.state, attempt) {
            (JobState::Starting, Some(a)) => match a.phase {
                Phase::Preparing => {
                    format!("{} of {} nodes ready", a.prepared.len(), a.lease.places.len())
                }
                _ => "its tasks are being started".to_owned(),
            },
            (JobState::Stopping, Some(a)) => match &a.stop {
                Some(StopWhy::Cancelled) => "cancelled, its tasks are being stopped".to_owned(),
                Some(StopWhy::Left { .. }) => "leaves for another job".to_owned(),
                Some(StopWhy::TimeLimit) => {
                    "at its time limit, its tasks are being stopped".to_owned()
                }
                _ => "its tasks are being stopped".to_owned(),
            },
            (JobState::Running, Some(a)) => match &a.first_failure {
                Some((rank, end)) => format!("rank {rank} {end}; the others are being stopped"),
                None => self.silent_nodes(a),
            },
            _ => job.outcome.clone(),
        }
    }

    fn silent_nodes(&self, attempt: &Attempt) -> String {
        let silent: Vec<&str> = attempt
            .lease
            .places
            .iter()
            .filter(|p| self.nodes.get(&p.node).is_some_and(|n| n.state != NodeState::Up))
            .map(|p| p.node.as_str())
            .collect();
        if silent.is_empty() {
            String::new()
        } else {
            format!("no word from {}; it is believed to go on there", silent.join(", "))
        }
    }
}
