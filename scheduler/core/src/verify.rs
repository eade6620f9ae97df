//! A second opinion on every placement.
//!
//! Deliberately simple and apart from `placement`: it reads the cluster itself, not a snapshot, and
//! shares no code with the search. A lease it does not accept is not granted.

use std::collections::BTreeSet;

use tessera_model::{Lease, NodeState, Strength};

use crate::cluster::Cluster;

/// What is wrong with a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the placement of attempt {attempt} breaks its request: {what}")]
pub struct Violation {
    pub attempt: tessera_model::AttemptId,
    pub what: String,
}

/// Accepts a lease that could be granted now, or says which part of the request it breaks.
pub fn verify(cluster: &Cluster, lease: &Lease) -> Result<(), Violation> {
    let fail = |what: String| Err(Violation { attempt: lease.attempt, what });
    let Some(job) = cluster.jobs.get(lease.attempt.job) else {
        return fail("the job does not exist".to_owned());
    };
    let gang = &job.spec.gang;
    let want = gang.nodes as usize;
    if lease.places.len() != want {
        return fail(format!("{} nodes instead of {want}", lease.places.len()));
    }
    if lease.epoch != cluster.epoch {
        return fail(format!("epoch {:?} instead of {:?}", lease.epoch, cluster.epoch));
    }
    let mut seen = BTreeSet::new();
    for place in &lease.places {
        let id = &place.node;
        let Some(node) = cluster.nodes.get(id) else { return fail(format!("no node {id}")) };
        if !seen.insert(id) {
            return fail(format!("{id} is there twice"));
        }
        if node.state != NodeState::Up || node.cordon.is_some() {
            return fail(format!("{id} takes no jobs"));
        }
        if node.session != place.session {
            return fail(format!("{id} has another session"));
        }
        if place.gpus.len() != gang.gpus_per_node as usize {
            return fail(format!(
                "{} GPUs on {id} instead of {}",
                place.gpus.len(),
                gang.gpus_per_node
            ));
        }
        let mut gpus = BTreeSet::new();
        for gpu in &place.gpus {
            let Some(known) = node.inventory.gpus.iter().find(|g| g.id == *gpu) else {
                return fail(format!("{id} has no {gpu}"));
            };
            let wanted = gang.gpu_model.as_deref().unwrap_or_default().to_lowercase();
            if !known.model.to_lowercase().contains(&wanted) {
                return fail(format!("{gpu} is a {}", known.model));
            }
            if !gpus.insert(gpu) || node.held.contains_key(gpu) {
                return fail(format!("{gpu} is held"));
            }
            // A UUID is one device, whatever two nodes say of it.
            if let Some(other) = cluster.timeline.home(gpu).filter(|home| *home != id) {
                return fail(format!("{gpu} is accounted at {other}"));
            }
            if !node.condition(gpu).is_healthy() {
                return fail(format!("{gpu} is not healthy"));
            }
        }
        let cpus = gang.tasks_per_node * gang.cpus_per_task;
        if place.cpus != cpus || node.cpus_held + cpus > node.inventory.cpus {
            return fail(format!("{id} has not {cpus} CPUs free"));
        }
        if place.memory != gang.memory_per_node
            || node.memory_held.0 + place.memory.0 > node.inventory.memory.0
        {
            return fail(format!("{id} has not {} of memory free", gang.memory_per_node));
        }
    }
    for within in job.spec.within.iter().filter(|w| w.strength == Strength::Required) {
        let Some(level) = cluster.topology.level(&within.level) else {
            return fail(format!("there is no level {}", within.level));
        };
        // A domain is named by its whole path: two blocks may each have a leaf of one name.
        let domains: BTreeSet<Option<&[String]>> = lease
            .places
            .iter()
            .map(|p| cluster.topology.nodes.get(&p.node).and_then(|path| path.get(..=level)))
            .collect();
        if domains.len() != 1 || domains.contains(&None) {
            return fail(format!("it is not inside one {}", within.level));
        }
    }
    Ok(())
}
