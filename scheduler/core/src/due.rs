//! What the passing of time brings about. Asked by the writer at each beat; the answer is events,
//! so time itself is never a hidden input.

use tessera_model::{Millis, NodeId, NodeState, UnixMillis};

use crate::cluster::Cluster;
use crate::event::{Event, StopWhy, WriteOffWhy};
use crate::job_table::Phase;

/// How long is too long. `lost` is longer than `lease`, since a node may only be written off when
/// its shims have stopped what ran under a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Without a heartbeat for this long, a node gets no new jobs.
    pub silent: Millis,
    /// How long a heartbeat's grant lets an attempt with a lease run.
    pub lease: Millis,
    /// Without a heartbeat for this long, leases on the node have lapsed for certain.
    pub lost: Millis,
    /// From the grant of a lease, or the begin of a reign, until every task was started.
    pub launch: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silent: Millis::from_secs(10),
            lease: Millis::from_secs(600),
            lost: Millis::from_secs(660),
            launch: Millis::from_secs(60),
        }
    }
}

/// All that is due at `now`.
pub fn due(cluster: &Cluster, now: UnixMillis, limits: &Limits) -> Vec<Event> {
    let mut events = Vec::new();
    for (id, node) in &cluster.nodes {
        let (node_id, last_seen, quiet) = (id.clone(), node.last_seen, now.since(node.last_seen));
        match node.state {
            NodeState::Up if quiet > limits.silent => {
                events.push(Event::NodeSilent { node: node_id, last_seen });
            }
            NodeState::Silent if quiet > limits.lost => {
                events.push(Event::NodeLost { node: node_id, last_seen });
            }
            NodeState::Lost => events.extend(lapsed(cluster, id, last_seen)),
            _ => {}
        }
    }
    // Of a settled attempt only GPUs are still out; there is nothing left to stop.
    for (id, attempt) in cluster.jobs.attempts.iter().filter(|(_, a)| !a.settled) {
        let overdue = match attempt.phase {
            Phase::Running => {
                let left = attempt.leave.as_ref().filter(|l| l.deadline <= now);
                let left = left.map(|l| StopWhy::Left { why: l.why.clone() });
                let limit = attempt.deadline().is_some_and(|d| d <= now);
                left.or(limit.then_some(StopWhy::TimeLimit))
            }
            // The last that had not said so may have ended, or given all back, instead.
            Phase::Committed { .. } if attempt.all_started() => {
                events.push(Event::AttemptRunning { attempt: *id });
                None
            }
            Phase::Preparing | Phase::Committed { .. }
                // After a restart, agents get as long again to say what they have started.
                if now.since(attempt.granted_at.max(cluster.epoch_at)) > limits.launch =>
            {
                let committed = attempt.phase != Phase::Preparing;
                let answered = |n: &NodeId| {
                    if committed {
                        attempt.has_started(n)
                    } else {
                        attempt.prepared.contains_key(n)
                    }
                };
                let places = attempt.lease.places.iter();
                let missing = places.map(|p| &p.node).filter(|n| !answered(n)).cloned().collect();
                Some(StopWhy::LaunchTimeout { missing })
            }
            _ => None,
        };
        if let Some(why) = overdue {
            events.push(Event::AttemptStopping { attempt: *id, why });
        }
    }
    // Begin times, waits between two tries, reservations that open: what parks a job by time.
    if cluster.jobs.next_wake().is_some_and(|at| at <= now) {
        events.push(Event::TimePassed);
    }
    let holds = cluster.holds.values().filter(|h| h.until <= now);
    events.extend(holds.map(|h| Event::HoldEnded { job: h.job }));
    let over = cluster.reservations.values().filter(|r| r.until <= now);
    events.extend(over.map(|r| Event::ReservationEnded { name: r.name.clone(), by: None }));
    let marks = cluster.marks.values().filter(|m| m.until.is_some_and(|u| u <= now));
    events.extend(marks.map(|m| {
        let mark = tessera_model::DomainMark { health: 100, until: None, ..m.clone() };
        Event::DomainMarked { mark }
    }));
    events
}

/// Attempts under a lease on a lost node: their shims have stopped them by now.
fn lapsed<'a>(
    cluster: &'a Cluster,
    node: &'a NodeId,
    last_seen: UnixMillis,
) -> impl Iterator<Item = Event> + 'a {
    let under_lease = cluster.jobs.attempts_on(node).filter(|a| a.spec.requeue && a.holds(node));
    under_lease.map(move |a| Event::PlaceWrittenOff {
        attempt: a.lease.attempt,
        node: node.clone(),
        charged_until: last_seen,
        why: WriteOffWhy::LeaseLapsed,
    })
}
