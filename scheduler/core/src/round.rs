//! A round: what follows from a decision, each lease verified and each event written down.
//!
//! In: the cluster, the time, and a way to write an event down and apply it. Out: the decision, as
//! far as it was carried out. The writer, the simulated world and replay all go through here, so
//! that what is tested is what ships.

use tessera_model::{
    AttemptId, Certificate, JobId, JobState, Lease, Place, UnixMillis, WaitReason,
};

use crate::cluster::Cluster;
use crate::decide::{Decision, decide_with};
use crate::event::Event;
use crate::placement::{Placed, Space};
use crate::queue;
use crate::snapshot::Snapshot;
use crate::verify::{Holdings, verify_with};

/// Decides, and carries it out: promises, leases, and last the nodes kept for those others leave for,
/// since what starts in the same round may stand on them.
pub fn round<E>(
    cluster: &mut Cluster,
    now: UnixMillis,
    record: &mut dyn FnMut(&mut Cluster, Event) -> Result<(), E>,
) -> Result<Decision, E> {
    if cluster.jobs.queue_len() == 0 {
        return Ok(Decision::default());
    }
    let snapshot = Snapshot::of(cluster, now);
    let mut seats = std::mem::take(&mut cluster.seats);
    let mut decision = decide_with(&snapshot, &mut seats);
    cluster.seats = seats;
    for promised in &decision.promises {
        let (job, at, cause) = (promised.job, promised.at, promised.cause);
        let (slot, eta) = (promised.slot.clone(), promised.eta);
        record(cluster, Event::PromiseMade { job, at, cause, slot, eta })?;
    }
    let (mut started, mut held) = (Vec::new(), Holdings::default());
    for start in std::mem::take(&mut decision.start) {
        // What has started a moment ago may close the gate: two of a name, tasks of one array.
        let job = cluster.jobs.get(start.job).filter(|j| j.state == JobState::Pending);
        let Some(job) = job else { continue };
        if let Some(reason) = queue::gate(cluster, job) {
            decision.wait.insert(start.job, reason);
            continue;
        }
        let (lease, certificate) = granted(cluster, &snapshot, start.job, &start.placed);
        match verify_with(cluster, &mut held, &lease, now) {
            Ok(()) => {
                held.granted(cluster, &job.spec, &lease);
                record(cluster, Event::LeaseGranted { lease, certificate })?;
                started.push(start);
            }
            Err(violation) => {
                let what = violation.what.clone();
                decision.wait.insert(start.job, WaitReason::Refused { what });
                decision.refused.push(violation);
            }
        }
    }
    decision.start = started;
    for hold in &decision.holds {
        record(cluster, Event::HoldPlaced { hold: hold.clone() })?;
    }
    for leave in &decision.leave {
        let (attempt, why, deadline) = (leave.attempt, leave.why.clone(), leave.deadline);
        record(cluster, Event::LeaveAsked { attempt, why, deadline })?;
    }
    Ok(decision)
}

/// The lease that follows from a placement, and what is proved of it. Before it is granted,
/// [`verify`] has to accept it.
pub fn granted(
    cluster: &Cluster,
    snapshot: &Snapshot,
    job: JobId,
    placed: &Placed,
) -> (Lease, Certificate) {
    let job = cluster.jobs.get(job).expect("only jobs of the table are decided about");
    let number = job.attempt.map_or(1, |a| a.number + 1);
    let certificate = Certificate {
        revision: snapshot.revision,
        optimality: placed.optimality,
        spans: placed.spans.clone(),
        given_up: placed.given_up.clone(),
    };
    let places = placed.taken(&job.spec).map(|taken| place(cluster, &snapshot.space, &taken));
    let lease = Lease {
        attempt: AttemptId { job: job.id, number },
        epoch: cluster.epoch,
        places: places.collect(),
        nodes: placed.nodes,
    };
    (lease, certificate)
}

fn place(cluster: &Cluster, space: &Space, taken: &crate::placement::Taken) -> Place {
    let node = space.id(taken.node);
    let gpus = cluster.nodes.get(node).map_or(&[][..], |n| &n.inventory.gpus);
    // Local rank r gets the GPU on rail r.
    let bits = space.layout.kind_of(taken.node).by_rail(taken.gpus);
    let chosen = bits.iter().filter_map(|bit| gpus.get(*bit as usize));
    Place {
        node: node.clone(),
        session: space.session[taken.node as usize],
        gpus: chosen.map(|g| g.id.clone()).collect(),
        cpus: taken.cpus,
        memory: tessera_model::Bytes(taken.memory),
        gpu_milli: taken.milli,
    }
}
