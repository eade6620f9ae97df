//! What is kept for others, and what a team may hold.

use tessera_model::{JobSpec, Lease, NodeId, Reservation, Target, TeamId, UnixMillis, WHOLE_GPU};

use crate::cluster::Cluster;
use crate::job_table::Job;

pub(super) fn check(
    cluster: &Cluster,
    job: &Job,
    lease: &Lease,
    now: UnixMillis,
) -> Result<(), String> {
    for place in &lease.places {
        let node = &place.node;
        let hold = cluster.holds.values().find(|h| h.job != job.id && h.nodes.contains(node));
        if let Some(hold) = hold.filter(|h| h.until > now) {
            return Err(format!("{node} is kept for job {}", hold.job));
        }
        for reservation in cluster.reservations.values() {
            not_reserved(cluster, job, node, reservation, now)?;
        }
    }
    if let Some(name) = &job.spec.reservation {
        inside(cluster, job, lease, name, now)?;
    }
    within_limits(cluster, &job.spec, lease)
}

fn is_in(cluster: &Cluster, reservation: &Reservation, node: &NodeId) -> bool {
    match &reservation.target {
        Target::Nodes { nodes } => nodes.contains(node),
        Target::Domain { level, name } => {
            cluster.map().domains_of(node).any(|(l, d)| l == level && d == name)
        }
    }
}

/// Nobody else's job may still be there when a reservation begins, or while it lasts.
fn not_reserved(
    cluster: &Cluster,
    job: &Job,
    node: &NodeId,
    reservation: &Reservation,
    now: UnixMillis,
) -> Result<(), String> {
    if reservation.teams.contains(&job.spec.team)
        || now >= reservation.until
        || !is_in(cluster, reservation, node)
    {
        return Ok(());
    }
    let out_before = job.spec.time_limit.is_some_and(|limit| now.plus(limit) <= reservation.from);
    if out_before {
        return Ok(());
    }
    Err(format!("{node} is reserved from {} on for {}", reservation.from, reservation.name))
}

/// A job that names a reservation runs inside it, while it is open.
fn inside(
    cluster: &Cluster,
    job: &Job,
    lease: &Lease,
    name: &str,
    now: UnixMillis,
) -> Result<(), String> {
    let open =
        |r: &&Reservation| r.from <= now && now < r.until && r.teams.contains(&job.spec.team);
    let Some(reservation) = cluster.reservations.get(name).filter(open) else {
        return Err(format!("the reservation {name} is not open to it"));
    };
    match lease.places.iter().find(|p| !is_in(cluster, reservation, &p.node)) {
        Some(place) => Err(format!("{} is not in the reservation {name}", place.node)),
        None => Ok(()),
    }
}

/// No team, nor any above it, comes to hold more than its limit.
fn within_limits(cluster: &Cluster, spec: &JobSpec, lease: &Lease) -> Result<(), String> {
    let mut team = Some(&spec.team);
    // A broken tree must not hang the scheduler; the door refuses loops.
    for _ in 0..=cluster.teams.len() {
        let Some(id) = team else { break };
        let Some(known) = cluster.teams.get(id) else { break };
        for quota in &known.share.quotas {
            let Some(limit) = quota.limit else { continue };
            let pattern = &quota.gpu_model;
            let held = held_by(cluster, id, pattern) + milli_of(cluster, lease, pattern);
            if held > u64::from(limit) * u64::from(WHOLE_GPU) {
                return Err(format!(
                    "team {id} would hold {} of at most {limit} {pattern} GPUs",
                    held.div_ceil(u64::from(WHOLE_GPU))
                ));
            }
        }
        team = known.share.parent.as_ref();
    }
    Ok(())
}

/// Thousandths of GPUs that a team and those below it hold.
fn held_by(cluster: &Cluster, team: &TeamId, pattern: &str) -> u64 {
    let attempts = cluster.jobs.attempts.values().filter(|a| is_below(cluster, &a.spec.team, team));
    let places =
        attempts.flat_map(|a| a.lease.places.iter().filter(|p| !a.released.contains(&p.node)));
    places.map(|p| milli_at(cluster, p, pattern)).sum()
}

fn is_below(cluster: &Cluster, id: &TeamId, team: &TeamId) -> bool {
    let mut id = Some(id);
    for _ in 0..=cluster.teams.len() {
        if id == Some(team) {
            return true;
        }
        let known = id.and_then(|id| cluster.teams.get(id));
        id = known.and_then(|t| t.share.parent.as_ref());
    }
    false
}

fn milli_of(cluster: &Cluster, lease: &Lease, pattern: &str) -> u64 {
    lease.places.iter().map(|p| milli_at(cluster, p, pattern)).sum()
}

fn milli_at(cluster: &Cluster, place: &tessera_model::Place, pattern: &str) -> u64 {
    let gpus = cluster.nodes.get(&place.node).map_or(&[][..], |n| &n.inventory.gpus);
    let model = |g: &&tessera_model::Gpu| {
        let profile = g.mig.as_ref().map(|m| format!(" mig {}", m.profile)).unwrap_or_default();
        (g.model.clone() + &profile).to_lowercase().contains(pattern)
    };
    let held = gpus.iter().filter(|g| place.gpus.contains(&g.id)).filter(model).count();
    held as u64 * u64::from(place.gpu_milli)
}
