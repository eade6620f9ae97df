//! What placement works on, kept beside the state it follows from.
//!
//! In: the cluster's nodes, map and attempts. Out: the map in force, a [`Space`] and what each
//! attempt takes in it, made when somebody asks first and then kept up to date one node at a time.
//! When nodes come or go, or the map changes, it is let go and made anew at the next question, so
//! that a thousand nodes that join one after the other cost one making. It says nothing that the
//! state does not say, so it takes no part when two clusters are compared, and stands in no snapshot.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tessera_model::{AttemptId, NodeId, Topology};

use super::Cluster;
use crate::job_table::Attempt;
use crate::placement::{Space, Taken};

#[derive(Debug, Clone, Default)]
pub struct Ground {
    kept: OnceLock<Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    map: Arc<Topology>,
    space: Space,
    /// Asked by id only, so that its order says nothing.
    taken: HashMap<AttemptId, Arc<[Taken]>>,
}

impl PartialEq for Ground {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Cluster {
    /// What is free where.
    pub fn space(&self) -> &Space {
        &self.ground().space
    }

    /// The map in force: the operator's, completed by what nodes say of themselves.
    pub fn map(&self) -> &Topology {
        &self.ground().map
    }

    /// What an attempt takes on the nodes it has not given back.
    pub fn taken_by(&self, attempt: AttemptId) -> Arc<[Taken]> {
        self.ground().taken.get(&attempt).cloned().unwrap_or_else(|| Arc::from([]))
    }

    fn ground(&self) -> &Kept {
        self.ground.kept.get_or_init(|| {
            let inventories = self.nodes.values().map(|n| &n.inventory);
            let map = Arc::new(crate::topology::effective(&self.topology, inventories));
            let space = Space::of(self, &map);
            let attempts = self.jobs.attempts.values();
            let taken = attempts.map(|a| (a.lease.attempt, taken(self, &space, a))).collect();
            Kept { map, space, taken }
        })
    }

    /// In what the space that is kept differs from one made from nothing, in words: must be empty.
    /// For tests; it costs as much as to make the space anew.
    pub fn space_differs(&self) -> Vec<String> {
        let Some(kept) = self.ground.kept.get() else { return Vec::new() };
        let fresh = Cluster { ground: Ground::default(), ..self.clone() };
        let space = fresh.space();
        let mut differs = Vec::new();
        if kept.map != fresh.ground().map {
            differs.push("another map".to_owned());
        }
        if kept.space.layout.ids != space.layout.ids {
            differs.push("other nodes".to_owned());
            return differs;
        }
        for (i, id) in space.layout.ids.iter().enumerate() {
            let at = |s: &Space| {
                (s.free[i], s.healthy[i], s.cpus_free[i], s.memory_free[i], s.takes_jobs[i])
            };
            if at(&kept.space) != at(space) || kept.space.session[i] != space.session[i] {
                differs.push(format!("{id} is {:?} instead of {:?}", at(&kept.space), at(space)));
            }
        }
        if kept.space.shared != space.shared {
            differs.push(format!("shares {:?} instead of {:?}", kept.space.shared, space.shared));
        }
        for id in self.jobs.attempts.keys() {
            if kept.taken.get(id) != fresh.ground().taken.get(id) {
                differs.push(format!("attempt {id} takes something else"));
            }
        }
        if kept.taken.len() != self.jobs.attempts.len() {
            differs.push("attempts that are gone take something".to_owned());
        }
        differs
    }

    /// Nodes, their hardware, their labels or the map have changed.
    pub(super) fn ground_changed(&mut self) {
        self.ground = Ground::default();
    }

    /// What is free on one node has changed.
    pub(super) fn ground_node(&mut self, id: &NodeId) {
        let Some(kept) = self.ground.kept.get_mut() else { return };
        let known = self.nodes.get(id).is_some_and(|node| kept.space.refresh(node));
        if !known {
            self.ground_changed();
        }
    }

    /// An attempt holds other places than before, or none.
    pub(super) fn ground_attempt(&mut self, id: AttemptId) {
        let Some(mut kept) = self.ground.kept.take() else { return };
        match self.jobs.attempts.get(&id) {
            Some(attempt) => {
                kept.taken.insert(id, taken(self, &kept.space, attempt));
            }
            None => {
                kept.taken.remove(&id);
            }
        }
        self.ground.kept = OnceLock::from(kept);
    }
}

fn taken(cluster: &Cluster, space: &Space, attempt: &Attempt) -> Arc<[Taken]> {
    let held = attempt.lease.places.iter().filter(|p| !attempt.released.contains(&p.node));
    held.filter_map(|p| space.taken(cluster, p)).collect()
}
