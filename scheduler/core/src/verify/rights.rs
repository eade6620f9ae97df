//! What is kept for others, and what a team may hold.

use std::collections::BTreeMap;

use tessera_model::{
    Gpu, JobSpec, Lease, NodeId, Place, Quota, Reservation, Target, TeamId, UnixMillis, WHOLE_GPU,
};

use crate::cluster::Cluster;
use crate::job_table::Job;

pub(super) fn check(
    cluster: &Cluster,
    held: &mut Holdings,
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
    within_limits(cluster, held, &job.spec, lease)
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

/// Thousandths of GPUs that teams with a limit hold, with those below them, by pattern of models.
/// Counted by one walk over all attempts, when it is asked for first.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    counted: Option<BTreeMap<(TeamId, String), u64>>,
}

impl Holdings {
    /// A lease was granted: from now on its team holds it.
    pub(crate) fn granted(&mut self, cluster: &Cluster, spec: &JobSpec, lease: &Lease) {
        if let Some(held) = &mut self.counted {
            add(cluster, held, &spec.team, lease.places.iter());
        }
    }

    fn of(&mut self, cluster: &Cluster, team: &TeamId, pattern: &str) -> u64 {
        let held = self.counted.get_or_insert_with(|| {
            let mut held = BTreeMap::new();
            for attempt in cluster.jobs.attempts.values() {
                let places = attempt.lease.places.iter();
                let places = places.filter(|p| !attempt.released.contains(&p.node));
                add(cluster, &mut held, &attempt.spec.team, places);
            }
            held
        });
        held.get(&(team.clone(), pattern.to_owned())).copied().unwrap_or(0)
    }
}

fn add<'a>(
    cluster: &Cluster,
    held: &mut BTreeMap<(TeamId, String), u64>,
    team: &TeamId,
    places: impl Iterator<Item = &'a Place> + Clone,
) {
    for (team, quota, _) in limits(cluster, team) {
        let milli: u64 = places.clone().map(|p| milli_at(cluster, p, &quota.gpu_model)).sum();
        *held.entry((team.clone(), quota.gpu_model.clone())).or_default() += milli;
    }
}

/// What a team and those above it may hold at most.
fn limits<'a>(
    cluster: &'a Cluster,
    team: &'a TeamId,
) -> impl Iterator<Item = (&'a TeamId, &'a Quota, u32)> {
    let above = |id: &&'a TeamId| cluster.teams.get(*id)?.share.parent.as_ref();
    // A broken tree must not hang the scheduler; the door refuses loops.
    let path = std::iter::successors(Some(team), above).take(cluster.teams.len() + 1);
    path.flat_map(|id| {
        let quotas = cluster.teams.get(id).map_or(&[][..], |t| &t.share.quotas);
        quotas.iter().filter_map(move |quota| Some((id, quota, quota.limit?)))
    })
}

/// No team, nor any above it, comes to hold more than its limit.
fn within_limits(
    cluster: &Cluster,
    holdings: &mut Holdings,
    spec: &JobSpec,
    lease: &Lease,
) -> Result<(), String> {
    for (id, quota, limit) in limits(cluster, &spec.team) {
        let pattern = &quota.gpu_model;
        let more: u64 = lease.places.iter().map(|p| milli_at(cluster, p, pattern)).sum();
        let held = holdings.of(cluster, id, pattern) + more;
        // A limit that was lowered below what is held keeps nobody from what takes no GPU.
        if more > 0 && held > u64::from(limit) * u64::from(WHOLE_GPU) {
            return Err(format!(
                "team {id} would hold {} of at most {limit} {pattern} GPUs",
                held.div_ceil(u64::from(WHOLE_GPU))
            ));
        }
    }
    Ok(())
}

fn milli_at(cluster: &Cluster, place: &Place, pattern: &str) -> u64 {
    let gpus = cluster.nodes.get(&place.node).map_or(&[][..], |n| &n.inventory.gpus);
    let held = gpus.iter().filter(|g| place.gpus.contains(&g.id) && is_named(g, pattern)).count();
    held as u64 * u64::from(place.gpu_milli)
}

/// Whether a pattern, in lower case, names the GPU.
fn is_named(gpu: &Gpu, pattern: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    if let Some(mig) = &gpu.mig {
        return format!("{} mig {}", gpu.model, mig.profile).to_lowercase().contains(pattern);
    }
    // Asked of every GPU that is held, so without a copy of its model.
    let same = |(a, b): (&u8, &u8)| a.to_ascii_lowercase() == *b;
    let (model, pattern) = (gpu.model.as_bytes(), pattern.as_bytes());
    model.windows(pattern.len()).any(|part| part.iter().zip(pattern).all(same))
}
