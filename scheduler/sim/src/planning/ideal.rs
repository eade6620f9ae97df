//! The scheduler's rounds, and nodes that do what they are told at once.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

use tessera_core::cluster::Cluster;
use tessera_core::decide::decide;
use tessera_core::event::{Event, Stamped};
use tessera_core::placement::Chosen;
use tessera_core::promises::Promise;
use tessera_core::snapshot::Snapshot;
use tessera_core::verify::verify;
use tessera_core::{Order, door, round};
use tessera_model::{AttemptId, JobState, NodeId, Placement, SessionId, TaskEnd};

use super::checks::promise_of;
use super::{Planning, PlantedPlan};

impl Planning {
    pub(super) fn commit(&mut self, event: Event) {
        self.watch(&event, promise_of(&self.cluster, &event));
        let stamped = Stamped { at: self.at(), event };
        self.cluster.apply(&stamped);
        self.journal.push(stamped);
        self.obey();
    }

    /// Nodes do what they are told, at once.
    pub(super) fn obey(&mut self) {
        let orders = std::mem::take(&mut self.cluster.outbox.orders);
        self.cluster.take_outbox();
        for (node, order) in orders {
            self.obey_one(&node, order);
        }
    }

    pub(super) fn obey_one(&mut self, node: &NodeId, order: Order) {
        let up = self.cluster.nodes.get(node).filter(|n| n.state == tessera_model::NodeState::Up);
        let Some(session) = up.map(|n| n.session) else { return };
        let report = |world: &mut Self, report: door::Report| {
            let now = world.at();
            let events = door::report(&mut world.cluster, now, node, session, report);
            events.into_iter().for_each(|e| world.commit(e));
        };
        match order {
            Order::Prepare { lease, .. } => {
                let attempt = lease.attempt;
                report(self, door::Report::Prepared { attempt, master_port: 29_500 });
            }
            Order::Commit { attempt, .. } => {
                report(self, door::Report::Started { attempt });
                let running = self
                    .cluster
                    .jobs
                    .get(attempt.job)
                    .is_some_and(|j| j.state == JobState::Running);
                if running && !self.ends.contains_key(&attempt) {
                    let length = self.run_time(attempt);
                    self.ends.insert(attempt, self.now + length);
                }
            }
            Order::Stop { attempt, .. } => {
                let first_node = self
                    .cluster
                    .jobs
                    .attempts
                    .get(&attempt)
                    .map(|a| a.lease.places[0].node.clone());
                let left =
                    self.cluster.jobs.attempts.get(&attempt).is_some_and(|a| a.leave.is_some());
                if self.planted == Some(PlantedPlan::VictimWithoutItsGang)
                    && left
                    && first_node.as_ref() != Some(node)
                {
                    self.half_stopped.insert(attempt);
                    return;
                }
                self.stop_at(node, session, attempt);
            }
            Order::Signal { attempt, .. } => {
                // Most jobs save their work when they are asked to.
                if self.rng.chance(70) {
                    self.commit(Event::CheckpointReported { attempt });
                }
            }
            Order::Forget { .. } | Order::Grant { .. } => {}
        }
    }

    pub(super) fn run_time(&mut self, attempt: AttemptId) -> u64 {
        let limit = self.cluster.jobs.get(attempt.job).and_then(|j| j.spec.time_limit);
        let most = limit.map_or(7_200_000, |l| l.0);
        match self.rng.below(10) {
            0 => most + 1_000,
            1 => most.min(1_000),
            _ => self.rng.between(1, most.max(1)),
        }
    }

    /// One node stops what it has of an attempt and gives it back.
    pub(super) fn stop_at(&mut self, node: &NodeId, session: SessionId, attempt: AttemptId) {
        self.ends.remove(&attempt);
        let Some(a) = self.cluster.jobs.attempts.get(&attempt).filter(|a| a.holds(node)) else {
            return;
        };
        let (place, _) = a.place(node).expect("it holds something there");
        let ranks: Vec<u32> = a.ranks_at(place).filter(|r| !a.ended.contains_key(r)).collect();
        let started = a.committed;
        let now = self.at();
        let mut reports: Vec<door::Report> = Vec::new();
        for rank in ranks.into_iter().filter(|_| started) {
            let end = TaskEnd::Signaled { signal: 15, oom: false };
            reports.push(door::Report::TaskEnded { attempt, rank, end });
        }
        reports.push(door::Report::Released { attempt, occupied: BTreeMap::new() });
        for report in reports {
            let events = door::report(&mut self.cluster, now, node, session, report);
            events.into_iter().for_each(|e| self.commit(e));
        }
    }

    /// All ranks of an attempt end by themselves, and its nodes give back what they held.
    pub(super) fn end(&mut self, attempt: AttemptId, end: TaskEnd) {
        let Some(a) = self.cluster.jobs.attempts.get(&attempt) else { return };
        let places: Vec<(NodeId, Vec<u32>)> = a
            .lease
            .places
            .iter()
            .enumerate()
            .map(|(i, p)| (p.node.clone(), a.ranks_at(i).collect()))
            .collect();
        for (node, ranks) in &places {
            let up =
                self.cluster.nodes.get(node).filter(|n| n.state == tessera_model::NodeState::Up);
            let Some(session) = up.map(|n| n.session) else { continue };
            let now = self.at();
            for rank in ranks {
                let report = door::Report::TaskEnded { attempt, rank: *rank, end: end.clone() };
                let events = door::report(&mut self.cluster, now, node, session, report);
                events.into_iter().for_each(|e| self.commit(e));
            }
        }
        for (node, _) in places {
            let up =
                self.cluster.nodes.get(&node).filter(|n| n.state == tessera_model::NodeState::Up);
            let Some(session) = up.map(|n| n.session) else { continue };
            let now = self.at();
            let report = door::Report::Released { attempt, occupied: BTreeMap::new() };
            let events = door::report(&mut self.cluster, now, &node, session, report);
            events.into_iter().for_each(|e| self.commit(e));
        }
    }

    /// The scheduler plans once, as the writer has it do after each batch.
    pub(super) fn round(&mut self) {
        let now = self.at();
        match self.planted {
            Some(PlantedPlan::ConstraintsIgnored) => return self.round_without_constraints(),
            Some(PlantedPlan::TiesByHashOrder) => return self.round_with_loose_ties(),
            Some(PlantedPlan::VictimWithoutItsGang) | None => {}
        }
        let mut cluster = std::mem::take(&mut self.cluster);
        let mut committed: Vec<(Event, Option<Promise>)> = Vec::new();
        let journal = &mut self.journal;
        let outcome =
            round::round(&mut cluster, now, &mut |cluster: &mut Cluster, event: Event| {
                let promised = promise_of(cluster, &event);
                let stamped = Stamped { at: now, event };
                cluster.apply(&stamped);
                committed.push((stamped.event.clone(), promised));
                journal.push(stamped);
                Ok::<(), Infallible>(())
            });
        self.cluster = cluster;
        match outcome {
            Ok(round) => {
                self.waits = round.wait;
                self.wake = round.wake;
                for violation in round.refused {
                    self.break_promise(format!("the verifier refused a placement: {violation}"));
                }
            }
            Err(never) => match never {},
        }
        // Promises are said first, also those that move for whom others leave in the same round.
        let leaves = |e: &&(Event, Option<Promise>)| matches!(e.0, Event::LeaveAsked { .. });
        let asked = committed.iter().filter(leaves).count() as u64;
        self.leaves += asked;
        self.somebody_leaves = asked > 0;
        for (event, promised) in &committed {
            self.watch(event, *promised);
        }
        self.obey();
    }

    /// As if no job had asked for anything, and with the verifier switched off.
    pub(super) fn round_without_constraints(&mut self) {
        let mut snapshot = Snapshot::of(&self.cluster, self.at());
        for pending in &mut snapshot.queue {
            Arc::make_mut(&mut pending.spec).placement = Placement::default();
        }
        for start in decide(&snapshot).start {
            let (lease, certificate) =
                round::granted(&self.cluster, &snapshot, start.job, &start.placed);
            self.commit(Event::LeaseGranted { lease, certificate });
        }
    }

    /// A job of one node goes to any node that is as good, whichever a hash map names first.
    pub(super) fn round_with_loose_ties(&mut self) {
        let now = self.at();
        let snapshot = Snapshot::of(&self.cluster, now);
        for mut start in decide(&snapshot).start {
            let usual = start.placed.places.clone();
            if let [only] = usual.as_slice() {
                let nodes: HashSet<u32> = (0..snapshot.space.len() as u32).collect();
                let other = nodes.into_iter().find(|node| {
                    start.placed.places = vec![Chosen { node: *node, gpus: only.gpus }];
                    let (lease, _) =
                        round::granted(&self.cluster, &snapshot, start.job, &start.placed);
                    verify(&self.cluster, &lease, now).is_ok()
                });
                if other.is_none() {
                    start.placed.places = usual;
                }
            }
            let (lease, certificate) =
                round::granted(&self.cluster, &snapshot, start.job, &start.placed);
            if verify(&self.cluster, &lease, now).is_ok() {
                self.commit(Event::LeaseGranted { lease, certificate });
            }
        }
    }
}
