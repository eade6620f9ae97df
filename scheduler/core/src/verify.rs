//! A second opinion on every placement.
//!
//! Deliberately simple and apart from `placement`: it reads the cluster's state and the map in
//! force, never a space or a snapshot, and shares no code with the search. A lease it does not
//! accept is not granted. What is only preferred is not its business, and of a spread it sees the
//! domains used, not those that could have been.

mod rights; // what is kept for others, and what a team may hold
mod shape; // how near the nodes have to be

use std::collections::BTreeSet;

use tessera_model::{Gang, JobState, Lease, NodeState, Place, UnixMillis, WHOLE_GPU};

use crate::cluster::Cluster;
use crate::job_table::Job;

pub(crate) use rights::Holdings;

/// What is wrong with a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the placement of attempt {attempt} breaks its request: {what}")]
pub struct Violation {
    pub attempt: tessera_model::AttemptId,
    pub what: String,
}

/// Accepts a lease that could be granted now, or says which part of the request it breaks.
pub fn verify(cluster: &Cluster, lease: &Lease, now: UnixMillis) -> Result<(), Violation> {
    verify_with(cluster, &mut Holdings::default(), lease, now)
}

/// The same for one lease of many. `held` is empty at first; of each lease that was accepted and
/// granted it has to be told by [`Holdings::granted`], and nothing else may change meanwhile.
pub(crate) fn verify_with(
    cluster: &Cluster,
    held: &mut Holdings,
    lease: &Lease,
    now: UnixMillis,
) -> Result<(), Violation> {
    check(cluster, held, lease, now).map_err(|what| Violation { attempt: lease.attempt, what })
}

fn check(
    cluster: &Cluster,
    held: &mut Holdings,
    lease: &Lease,
    now: UnixMillis,
) -> Result<(), String> {
    let Some(job) = cluster.jobs.get(lease.attempt.job) else {
        return Err("the job does not exist".to_owned());
    };
    if job.state != JobState::Pending {
        return Err(format!("the job is {}", job.state.word()));
    }
    if job.attempt.is_some_and(|before| before.number >= lease.attempt.number) {
        return Err("the job has had an attempt of this number".to_owned());
    }
    if lease.epoch != cluster.epoch {
        return Err(format!("epoch {:?} instead of {:?}", lease.epoch, cluster.epoch));
    }
    let shapes = shapes(job, lease)?;
    let mut nodes = BTreeSet::new();
    for (place, gang) in lease.places.iter().zip(&shapes) {
        if !nodes.insert(&place.node) {
            return Err(format!("{} is there twice", place.node));
        }
        node_has_it(cluster, place, gang)?;
    }
    shape::check(cluster, job, lease)?;
    rights::check(cluster, held, job, lease, now)
}

/// The shape each place has to have: first role, further roles, spares.
fn shapes<'a>(job: &'a Job, lease: &Lease) -> Result<Vec<&'a Gang>, String> {
    let spec = &job.spec;
    let most = spec.gang.nodes;
    let least = spec.min_nodes.unwrap_or(most);
    if !(least..=most).contains(&lease.nodes) {
        return Err(format!("{} nodes instead of {least} to {most}", lease.nodes));
    }
    let mut shapes = vec![&spec.gang; lease.nodes as usize];
    for role in &spec.roles {
        shapes.extend(vec![&role.gang; role.gang.nodes as usize]);
    }
    shapes.extend(vec![&spec.gang; spec.spares as usize]);
    if lease.places.len() != shapes.len() {
        return Err(format!("{} nodes instead of {}", lease.places.len(), shapes.len()));
    }
    Ok(shapes)
}

/// One node can give what is taken there, and it is what was asked.
fn node_has_it(cluster: &Cluster, place: &Place, gang: &Gang) -> Result<(), String> {
    let id = &place.node;
    let node = cluster.nodes.get(id).ok_or_else(|| format!("there is no node {id}"))?;
    if node.state != NodeState::Up || node.cordon.is_some() {
        return Err(format!("{id} takes no jobs"));
    }
    if node.session != place.session {
        return Err(format!("{id} has another session"));
    }
    if place.gpus.len() != gang.gpus_per_node as usize {
        let (given, asked) = (place.gpus.len(), gang.gpus_per_node);
        return Err(format!("{given} GPUs on {id} instead of {asked}"));
    }
    let milli = if gang.is_share() { gang.gpu_milli } else { WHOLE_GPU };
    if place.gpu_milli != milli {
        let given = place.gpu_milli;
        return Err(format!("{given} thousandths of each GPU on {id} instead of {milli}"));
    }
    let wanted = gang.gpu_model.as_deref().unwrap_or_default().to_lowercase();
    let mut gpus = BTreeSet::new();
    for gpu in &place.gpus {
        let Some(known) = node.inventory.gpus.iter().find(|g| g.id == *gpu) else {
            return Err(format!("{id} has no {gpu}"));
        };
        let model = known.model.to_lowercase();
        let is_it = match &known.mig {
            None => model.contains(&wanted),
            // A part of a GPU goes to who asks for parts, by their profile.
            Some(mig) => {
                let profile = format!("{model} mig {}", mig.profile.to_lowercase());
                !model.contains(&wanted) && profile.contains(&wanted)
            }
        };
        if !is_it {
            return Err(format!("{gpu} is a {}", known.model));
        }
        if !gpus.insert(gpu) {
            return Err(format!("{gpu} is there twice"));
        }
        let held: u32 = node.holders(gpu).iter().map(|h| h.milli).sum();
        if held + milli > WHOLE_GPU {
            return Err(format!("{held} thousandths of {gpu} are held"));
        }
        // A UUID is one device, whatever two nodes say of it.
        if let Some(other) = cluster.timeline.home(gpu).filter(|home| *home != id) {
            return Err(format!("{gpu} is accounted at {other}"));
        }
        if !node.condition(gpu).is_healthy() {
            return Err(format!("{gpu} is not healthy"));
        }
    }
    let cpus = gang.tasks_per_node.saturating_mul(gang.cpus_per_task);
    if place.cpus != cpus || node.cpus_held.saturating_add(cpus) > node.inventory.cpus {
        return Err(format!("{id} has not {cpus} CPUs free"));
    }
    let memory = gang.memory_per_node;
    if place.memory != memory
        || node.memory_held.0.saturating_add(memory.0) > node.inventory.memory.0
    {
        return Err(format!("{id} has not {memory} of memory free"));
    }
    Ok(())
}
