//! The cluster: all state, and how each event changes it.
//!
//! [`Cluster::apply`] is deterministic: the same events give the same state. What the outside has
//! to do about an event is left in [`Outbox`]: orders for agents, closed usage intervals, and which
//! jobs and nodes changed. A broken promise of our own stops the scheduler here, before it is
//! believed.

mod ground; // what placement works on, made from the state
mod jobs; // jobs and attempts, from submission to conclusion
mod nodes; // nodes, their inventories and their GPUs' classes
mod plans; // what is held, promised and asked to leave

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::usage::Interval;
use tessera_model::{
    DomainMark, Epoch, Hold, JobId, JobState, NodeId, NodeState, Principal, Reservation, Revision,
    TeamId, TeamShare, Topology, UnixMillis,
};

use crate::event::{Event, Stamped};
use crate::habits::Habits;
use crate::job_table::JobTable;
use crate::ledger::book::PriceBook;
use crate::ledger::timeline::Timeline;
use crate::node_table::Node;
use crate::order::Order;
use crate::placement::Seats;
use crate::placement::packing::Mix;

pub use jobs::FAILED_STARTS_MAX;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Stamp of the last event.
    pub now: UnixMillis,
    /// Events applied so far.
    pub revision: Revision,
    pub epoch: Epoch,
    /// When this reign began: agents could not answer before.
    pub epoch_at: UnixMillis,
    pub topology: Topology,
    pub teams: BTreeMap<TeamId, Team>,
    pub tokens: BTreeMap<String, Token>,
    pub join_tokens: BTreeMap<String, JoinToken>,
    /// Nodes that were retired: their certificates are good for nothing until they join again.
    pub retired: BTreeSet<NodeId>,
    /// By `level/domain`.
    pub marks: BTreeMap<String, DomainMark>,
    pub reservations: BTreeMap<String, Reservation>,
    /// Nodes kept for a job while others leave them.
    pub holds: BTreeMap<JobId, Hold>,
    pub promises: crate::promises::Promises,
    /// Shared with the snapshots that read it.
    #[serde(default)]
    pub habits: Arc<Habits>,
    pub prices: PriceBook,
    pub nodes: BTreeMap<NodeId, Node>,
    pub jobs: JobTable,
    pub next_job: u64,
    /// What single-node jobs have asked for so far: what the packer expects to come.
    #[serde(default)]
    pub mix: Arc<Mix>,
    pub timeline: Timeline,
    #[serde(skip)]
    pub outbox: Outbox,
    #[serde(skip)]
    ground: ground::Ground,
    /// The packer, kept from round to round; it says nothing that the mix and the nodes do not.
    #[serde(skip)]
    pub(crate) seats: Seats,
}

/// What the outside has to do about the events applied since it was last emptied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outbox {
    pub orders: Vec<(NodeId, Order)>,
    pub closed: Vec<Interval>,
    pub jobs: BTreeSet<JobId>,
    pub nodes: BTreeSet<NodeId>,
    /// Nodes whose agent has to say hello again.
    pub hang_up: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    pub description: String,
    #[serde(default)]
    pub share: TeamShare,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256 of the secret, hex.
    pub hash: String,
    pub principal: Principal,
    pub created: UnixMillis,
    pub expires: Option<UnixMillis>,
    pub revoked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub hash: String,
    pub node: Option<NodeId>,
    pub expires: UnixMillis,
    pub used_by: Option<NodeId>,
}

impl Cluster {
    /// Makes what a snapshot leaves out. Heartbeats count from `now` on.
    pub fn restored(mut self, now: UnixMillis) -> Self {
        for (id, team) in &self.teams {
            self.jobs.fair.set_team(id, &team.share);
        }
        for r in self.reservations.values() {
            self.jobs.set_reservation(&r.name, Some((r.from, r.until)));
        }
        self.jobs.reindex(self.now);
        self.timeline.reindex();
        self.listens_again(now);
        self
    }

    /// Nobody listened until `now`: that no heartbeat was heard says nothing about the nodes.
    pub fn listens_again(&mut self, now: UnixMillis) {
        let up = self.nodes.values_mut().filter(|n| n.state == NodeState::Up);
        up.for_each(|n| n.last_seen = now);
    }

    pub fn take_outbox(&mut self) -> Outbox {
        std::mem::take(&mut self.outbox)
    }

    pub fn apply(&mut self, stamped: &Stamped) {
        assert!(stamped.at >= self.now, "the clock went back to {} from {}", stamped.at, self.now);
        self.now = stamped.at;
        self.revision.0 += 1;
        self.jobs.pass_to(self.now);
        self.step(&stamped.event);
        self.end_doomed();
    }

    /// Jobs that can never start end at once: others may be waiting for their end.
    fn end_doomed(&mut self) {
        while let Some((id, outcome)) = self.jobs.take_doomed() {
            if self.jobs.get(id).is_some_and(|j| j.state == JobState::Pending) {
                self.end_job(id, JobState::Cancelled, None, outcome);
            }
        }
    }

    fn step(&mut self, event: &Event) {
        match event {
            Event::EpochBegan { epoch } => {
                assert!(*epoch > self.epoch, "epoch {epoch:?} after {:?}", self.epoch);
                self.epoch = *epoch;
                self.epoch_at = self.now;
            }
            // What was waiting for it has been looked at before.
            Event::TimePassed => {}
            Event::TopologyLoaded { topology } => {
                self.topology = topology.clone();
                self.ground_changed();
                self.outbox.nodes.extend(self.nodes.keys().cloned());
            }
            Event::TeamCreated { team, description, .. } => {
                let (description, share) = (description.clone(), TeamShare::default());
                self.jobs.fair.set_team(team, &share);
                self.teams.insert(team.clone(), Team { description, share });
            }
            Event::TeamShared { team: id, share, .. } => {
                if let Some(team) = self.teams.get_mut(id) {
                    self.jobs.fair.set_team(id, share);
                    team.share = share.clone();
                }
            }
            Event::DomainMarked { mark } => {
                let key = format!("{}/{}", mark.level, mark.domain);
                match mark.health {
                    100 => self.marks.remove(&key),
                    _ => self.marks.insert(key, mark.clone()),
                };
                self.ground_changed();
            }
            Event::ReservationMade { reservation } => {
                let span = (reservation.from, reservation.until);
                self.jobs.set_reservation(&reservation.name, Some(span));
                self.reservations.insert(reservation.name.clone(), reservation.clone());
            }
            Event::ReservationEnded { name, .. } => {
                self.jobs.set_reservation(name, None);
                self.reservations.remove(name);
            }
            Event::TokenIssued { id, hash, principal, expires, .. } => {
                let token = Token {
                    hash: hash.clone(),
                    principal: principal.clone(),
                    created: self.now,
                    expires: *expires,
                    revoked: false,
                };
                self.tokens.insert(id.clone(), token);
            }
            Event::TokenRevoked { id, .. } => {
                if let Some(token) = self.tokens.get_mut(id) {
                    token.revoked = true;
                }
            }
            Event::JoinTokenIssued { id, hash, node, expires, .. } => {
                // Used and expired ones say nothing any more.
                let now = self.now;
                self.join_tokens.retain(|_, t| t.expires > now && t.used_by.is_none());
                let (hash, node, expires) = (hash.clone(), node.clone(), *expires);
                let token = JoinToken { hash, node, expires, used_by: None };
                self.join_tokens.insert(id.clone(), token);
            }
            Event::JoinTokenUsed { id, node } => {
                if let Some(token) = self.join_tokens.get_mut(id) {
                    token.used_by = Some(node.clone());
                }
                self.retired.remove(node);
            }
            Event::PricesPublished { version, .. } => self.prices.publish(version.clone()),

            Event::NodeUp { inventory, session, adopted } => {
                self.node_up(inventory, *session, adopted);
            }
            Event::InventoryChanged { inventory } => self.inventory_changed(inventory),
            Event::ConditionsChanged { node, conditions } => self.with_node(node, |n| {
                n.conditions = conditions.clone();
                n.occupied.clear();
            }),
            Event::NodeSilent { node, last_seen } => self.with_node(node, |n| {
                n.state = NodeState::Silent;
                n.last_seen = *last_seen;
            }),
            Event::NodeHeard { node } => {
                let now = self.now;
                self.with_node(node, |n| {
                    n.state = NodeState::Up;
                    n.last_seen = now;
                });
            }
            Event::NodeLost { node, last_seen } => self.node_lost(node, *last_seen),
            Event::NodeCordoned { node, cordon } => {
                self.with_node(node, |n| n.cordon = Some(cordon.clone()));
            }
            Event::NodeUncordoned { node, .. } => self.with_node(node, |n| {
                n.cordon = None;
                n.occupied.clear();
            }),

            Event::NodeRetired { node, .. } => self.node_retired(node),

            Event::JobSubmitted { job, key, spec } => self.job_submitted(*job, key, spec, None),
            Event::ArraySubmitted { first, key, spec, indices, throttle } => {
                self.array_submitted(*first, key, spec, indices, *throttle);
            }
            Event::JobHeld { job, .. } => self.set_held(*job, true),
            Event::JobReleased { job, .. } => self.set_held(*job, false),
            Event::JobUpdated { job, change, .. } => self.job_updated(*job, change),
            Event::SignalRequested { job, signal, .. } => self.signal_job(*job, *signal),
            Event::CheckpointReported { attempt } => self.checkpoint_reported(*attempt),
            Event::PromiseMade { job, at, cause, slot, eta } => {
                self.promise_made(*job, *at, *cause, slot.as_ref(), *eta);
            }
            Event::LeaveAsked { attempt, why, deadline } => {
                self.leave_asked(*attempt, why, *deadline);
            }
            Event::HoldPlaced { hold } => {
                self.holds.insert(hold.job, hold.clone());
            }
            Event::HoldEnded { job } => {
                self.holds.remove(job);
            }
            Event::CancelRequested { job, by } => self.cancel_requested(*job, by),
            Event::LeaseGranted { lease, certificate } => self.lease_granted(lease, certificate),
            Event::GangCommitted { attempt, master_addr, master_port } => {
                self.gang_committed(*attempt, master_addr, *master_port);
            }
            Event::AttemptRunning { attempt } => self.attempt_running(*attempt),
            Event::AttemptStopping { attempt, why } => self.stop_attempt(*attempt, why.clone()),
            Event::TaskEnded { attempt, rank, end } => self.task_ended(*attempt, *rank, end),
            Event::PlaceReleased { attempt, node, occupied } => {
                self.place_released(*attempt, node, occupied);
            }
            Event::PlaceWrittenOff { attempt, node, charged_until, why } => {
                self.place_written_off(*attempt, node, *charged_until, *why);
            }
        }
    }
}
