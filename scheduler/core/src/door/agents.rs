//! What agents say. An agent is the node its certificate names, and speaks for one session; what
//! an older session still says is not heard.

use std::collections::BTreeMap;

use tessera_model::{
    AttemptId, Epoch, GpuCondition, GpuId, Millis, NodeId, NodeInventory, NodeState, Refusal,
    RefusalKind, SessionId, TaskEnd, UnixMillis,
};

use crate::cluster::Cluster;
use crate::event::{Event, StopWhy, WriteOffWhy};
use crate::job_table::{Attempt, Phase};
use crate::node_table::Node;
use crate::order::{Order, STOP_GRACE};

/// The first word of an agent on a new connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    pub session: SessionId,
    /// Highest epoch the node has obeyed. Above ours only when our journal is older than the node.
    pub epoch: Epoch,
    pub inventory: NodeInventory,
    pub conditions: BTreeMap<GpuId, GpuCondition>,
    pub running: Vec<Running>,
    pub finished: Vec<Finished>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    pub attempt: AttemptId,
    pub started: bool,
    pub master_port: u16,
    pub ended: Vec<(u32, TaskEnd)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub attempt: AttemptId,
    pub ended: Vec<(u32, TaskEnd)>,
    pub occupied: BTreeMap<GpuId, Vec<u32>>,
}

/// What follows from a hello: events, orders that follow from no state of ours, and reports to be
/// taken in once the events are applied. No events at all: the session is over, and its stream is
/// to be closed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Greeting {
    pub events: Vec<Event>,
    pub orders: Vec<Order>,
    pub then: Vec<Report>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    Heartbeat {
        sent_boottime_ms: u64,
    },
    Prepared {
        attempt: AttemptId,
        master_port: u16,
    },
    Refused {
        attempt: AttemptId,
        why: String,
    },
    Started {
        attempt: AttemptId,
    },
    TaskEnded {
        attempt: AttemptId,
        rank: u32,
        end: TaskEnd,
    },
    /// The file that tells the attempt's checkpoints has changed.
    Checkpoint {
        attempt: AttemptId,
    },
    Released {
        attempt: AttemptId,
        occupied: BTreeMap<GpuId, Vec<u32>>,
    },
    Conditions(BTreeMap<GpuId, GpuCondition>),
    Inventory(NodeInventory),
}

/// Uses up a join token. `hash` is the SHA-256 of the secret that was shown.
pub fn use_join_token(
    cluster: &Cluster,
    now: UnixMillis,
    id: &str,
    hash: &str,
    node: &NodeId,
) -> Result<((), Vec<Event>), Refusal> {
    let refuse = |message: &str| {
        let hint =
            "make a new one with `tessera token create --node NAME` and start the agent with it";
        Err(Refusal::new(RefusalKind::Unauthenticated, "join_token", message, hint))
    };
    let Some(token) = cluster.join_tokens.get(id).filter(|t| same(&t.hash, hash)) else {
        return refuse("the join token is not known");
    };
    if token.used_by.is_some() {
        return refuse("the join token was used already; it is good for one node, once");
    }
    if token.expires <= now {
        return refuse("the join token has expired; it is good for ten minutes");
    }
    if token.node.as_ref().is_some_and(|n| n != node) {
        return refuse("the join token is for another node");
    }
    Ok(((), vec![Event::JoinTokenUsed { id: id.to_owned(), node: node.clone() }]))
}

/// Equal, in a time that does not tell where the first difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// Reconciles what the node holds with what we believe it holds, attempt by attempt.
pub fn hello(cluster: &Cluster, now: UnixMillis, hello: &Hello) -> Greeting {
    let node = &hello.inventory.node;
    let mut greeting = Greeting::default();
    let over = |n: &Node| n.inventory.boot == hello.inventory.boot && hello.session < n.session;
    if cluster.retired.contains(node) {
        // It has to join again.
        return greeting;
    }
    if cluster.nodes.get(node).is_some_and(over) {
        // Written by an agent that is dead by now, and late: the kernel goes on sending what a dead
        // process has written. What it does not name may well be running under its successor.
        return greeting;
    }
    let mut adopted = Vec::new();
    for running in &hello.running {
        let id = running.attempt;
        let ours = cluster.jobs.attempts.get(&id).is_some_and(|a| a.holds(node));
        if !ours {
            greeting.orders.push(Order::Stop { attempt: id, grace: STOP_GRACE });
            continue;
        }
        adopted.push(id);
        if running.started {
            greeting.then.push(Report::Started { attempt: id });
        } else {
            greeting.then.push(Report::Prepared { attempt: id, master_port: running.master_port });
        }
        greeting.then.extend(ends(id, &running.ended));
    }
    for finished in &hello.finished {
        let (attempt, occupied) = (finished.attempt, finished.occupied.clone());
        greeting.then.extend(ends(attempt, &finished.ended));
        greeting.then.push(Report::Released { attempt, occupied });
    }
    let up = Event::NodeUp { inventory: hello.inventory.clone(), session: hello.session, adopted };
    greeting.events.push(up);
    greeting.events.extend(forgotten(cluster, now, hello));
    let known = cluster.nodes.get(node).map(|n| &n.conditions);
    if known.map_or(!hello.conditions.is_empty(), |k| *k != hello.conditions) {
        let (node, conditions) = (node.clone(), hello.conditions.clone());
        greeting.events.push(Event::ConditionsChanged { node, conditions });
    }
    greeting
}

fn ends(attempt: AttemptId, ended: &[(u32, TaskEnd)]) -> impl Iterator<Item = Report> + '_ {
    ended.iter().map(move |(rank, end)| Report::TaskEnded {
        attempt,
        rank: *rank,
        end: end.clone(),
    })
}

/// Attempts we believe to be there, of which the node says nothing. One that was meant for this
/// very session may still be on its way to it; any other is dead.
fn forgotten<'a>(
    cluster: &'a Cluster,
    now: UnixMillis,
    hello: &'a Hello,
) -> impl Iterator<Item = Event> + 'a {
    let node = &hello.inventory.node;
    let known = cluster.nodes.get(node);
    let rebooted = known.is_some_and(|n| n.inventory.boot != hello.inventory.boot);
    let last_seen = known.map_or(now, |n| n.last_seen);
    let named = |id: AttemptId| {
        hello.running.iter().any(|r| r.attempt == id)
            || hello.finished.iter().any(|f| f.attempt == id)
    };
    let silent = cluster.jobs.attempts_on(node).filter(move |a| {
        let session = a.place(node).map(|(_, p)| p.session);
        !named(a.lease.attempt) && session != Some(hello.session)
    });
    silent.map(move |a| Event::PlaceWrittenOff {
        attempt: a.lease.attempt,
        node: node.clone(),
        charged_until: last_seen.max(a.granted_at),
        why: if rebooted { WriteOffWhy::Rebooted } else { WriteOffWhy::Forgotten },
    })
}

/// Takes in what an agent reports. Notes that are not journalled (who is ready, when a heartbeat
/// came) are made in `cluster` at once; all else comes back as events.
pub fn report(
    cluster: &mut Cluster,
    now: UnixMillis,
    node: &NodeId,
    session: SessionId,
    report: Report,
) -> Vec<Event> {
    let Some(known) = cluster.nodes.get_mut(node).filter(|n| n.session == session) else {
        return Vec::new();
    };
    match report {
        Report::Heartbeat { sent_boottime_ms } => {
            if known.state == NodeState::Lost {
                // Its leases may have been given to others: it has to say hello again.
                cluster.outbox.hang_up.insert(node.clone());
                return Vec::new();
            }
            known.last_seen = now;
            let order = Order::Grant { heartbeat_sent_boottime_ms: sent_boottime_ms };
            cluster.outbox.orders.push((node.clone(), order));
            let silent = cluster.nodes.get(node).is_some_and(|n| n.state == NodeState::Silent);
            if silent { vec![Event::NodeHeard { node: node.clone() }] } else { Vec::new() }
        }
        Report::Prepared { attempt, master_port } => prepared(cluster, node, attempt, master_port),
        Report::Started { attempt } => started(cluster, node, attempt),
        Report::Refused { attempt, why } => {
            let Some(a) = cluster.jobs.attempts.get(&attempt).filter(|a| a.holds(node)) else {
                return Vec::new();
            };
            if a.stop.is_some() {
                return Vec::new();
            }
            let text = why.chars().filter(|c| !c.is_control()).take(500).collect();
            let why = StopWhy::Refused { node: node.clone(), text };
            vec![Event::AttemptStopping { attempt, why }]
        }
        Report::TaskEnded { attempt, rank, end } => {
            let news = cluster.jobs.attempts.get(&attempt).is_some_and(|a| {
                let here = a.place(node).is_some_and(|(i, _)| a.ranks_at(i).contains(&rank));
                here && a.holds(node) && !a.ended.contains_key(&rank)
            });
            if news { vec![Event::TaskEnded { attempt, rank, end }] } else { Vec::new() }
        }
        Report::Checkpoint { attempt } => {
            let news = cluster.jobs.attempts.get(&attempt).is_some_and(|a| {
                let watches = a.place(node).is_some_and(|(i, _)| a.ranks_at(i).contains(&0));
                watches && a.holds(node) && a.committed && !a.settled && is_news(a, now)
            });
            if news { vec![Event::CheckpointReported { attempt }] } else { Vec::new() }
        }
        Report::Released { attempt, occupied } => {
            let held = cluster.jobs.attempts.get(&attempt).is_some_and(|a| a.holds(node));
            // Written off before, but what runs on its GPUs is news all the same.
            let occupied_now = occupied
                .keys()
                .any(|g| !known.held.contains_key(g) && !known.occupied.contains_key(g));
            if held || occupied_now {
                return vec![Event::PlaceReleased { attempt, node: node.clone(), occupied }];
            }
            // Known before: the agent only waits to hear that it may forget.
            cluster.outbox.orders.push((node.clone(), Order::Forget { attempt }));
            Vec::new()
        }
        Report::Conditions(conditions) => {
            if known.conditions == conditions {
                return Vec::new();
            }
            vec![Event::ConditionsChanged { node: node.clone(), conditions }]
        }
        Report::Inventory(inventory) => {
            if inventory.node != *node || known.inventory == inventory {
                return Vec::new();
            }
            vec![Event::InventoryChanged { inventory }]
        }
    }
}

/// Checkpoints nearer to each other than this are one.
const CHECKPOINTS_APART: Millis = Millis(1_000);

/// One that an attempt is waited for to leave is never too soon.
fn is_news(attempt: &Attempt, now: UnixMillis) -> bool {
    let too_soon = attempt.checkpoint_at.is_some_and(|at| now < at.plus(CHECKPOINTS_APART));
    attempt.leave.is_some() || !too_soon
}

/// One more node is ready. When all are, the gang is told to start.
fn prepared(cluster: &mut Cluster, node: &NodeId, id: AttemptId, port: u16) -> Vec<Event> {
    let live = |a: &&mut Attempt| a.holds(node) && !a.settled;
    let Some(attempt) = cluster.jobs.attempts.get_mut(&id).filter(live) else {
        let order = Order::Stop { attempt: id, grace: STOP_GRACE };
        cluster.outbox.orders.push((node.clone(), order));
        return Vec::new();
    };
    match &attempt.phase {
        Phase::Preparing => {}
        Phase::Committed { master_addr, master_port } => {
            let (master_addr, master_port) = (master_addr.clone(), *master_port);
            let order = Order::Commit { attempt: id, master_addr, master_port };
            cluster.outbox.orders.push((node.clone(), order));
            return Vec::new();
        }
        Phase::Running => return Vec::new(),
        Phase::Stopping => {
            let order = Order::Stop { attempt: id, grace: STOP_GRACE };
            cluster.outbox.orders.push((node.clone(), order));
            return Vec::new();
        }
    }
    attempt.prepared.insert(node.clone(), port);
    if attempt.prepared.len() < attempt.lease.places.len() {
        return Vec::new();
    }
    let first = &attempt.lease.places[0].node;
    let master_port = attempt.prepared.get(first).copied().unwrap_or(port);
    let master_addr =
        cluster.nodes.get(first).map(|n| n.inventory.address.clone()).unwrap_or_default();
    vec![Event::GangCommitted { attempt: id, master_addr, master_port }]
}

fn started(cluster: &mut Cluster, node: &NodeId, id: AttemptId) -> Vec<Event> {
    let live = |a: &&mut Attempt| a.holds(node) && !a.settled;
    let Some(attempt) = cluster.jobs.attempts.get_mut(&id).filter(live) else {
        return Vec::new();
    };
    attempt.started.insert(node.clone());
    if attempt.all_started() && matches!(attempt.phase, Phase::Committed { .. }) {
        return vec![Event::AttemptRunning { attempt: id }];
    }
    Vec::new()
}
