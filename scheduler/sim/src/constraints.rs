//! A third opinion on placements, from the request, the lease and the map alone: neither the search
//! nor the verifier is asked. What they mean by a constraint stands in `core/placement/README.md`.

use std::collections::{BTreeMap, BTreeSet};

use tessera_core::Cluster;
use tessera_model::{Gang, JobSpec, Lease, NodeId, Place, Placement, Strength, Topology};

/// What of the request the lease breaks, in words.
pub fn broken(spec: &JobSpec, lease: &Lease, map: &Topology, cluster: &Cluster) -> Vec<String> {
    let mut wrong = Vec::new();
    let least = spec.min_nodes.unwrap_or(spec.gang.nodes);
    if !(least..=spec.gang.nodes).contains(&lease.nodes) {
        wrong
            .push(format!("{} nodes, and it asks for {least} to {}", lease.nodes, spec.gang.nodes));
    }
    let mut shapes: Vec<(&Gang, &Placement)> =
        vec![(&spec.gang, &spec.placement); lease.nodes as usize];
    for role in &spec.roles {
        shapes.extend(vec![(&role.gang, &role.placement); role.gang.nodes as usize]);
    }
    let working = shapes.len();
    shapes.extend(vec![(&spec.gang, &spec.placement); spec.spares as usize]);
    if lease.places.len() != shapes.len() {
        wrong.push(format!("{} places instead of {}", lease.places.len(), shapes.len()));
        return wrong;
    }
    let distinct: BTreeSet<&NodeId> = lease.places.iter().map(|p| &p.node).collect();
    if distinct.len() != lease.places.len() {
        wrong.push("a node is there twice".to_owned());
    }
    for (place, (gang, placement)) in lease.places.iter().zip(&shapes) {
        wrong.extend(one_place(place, gang, placement, spec, cluster));
    }
    let domain = |place: &Place, level: &str| domain_of(map, &place.node, level);
    let all = &lease.places[..working];
    for within in required(&spec.placement) {
        let domains: BTreeSet<Option<String>> = all.iter().map(|p| domain(p, within)).collect();
        if domains.len() > 1 || domains.contains(&None) {
            wrong.push(format!("not inside one {within}: {domains:?}"));
        }
    }
    for at_most in &spec.placement.at_most {
        let domains: BTreeSet<Option<String>> =
            all.iter().map(|p| domain(p, &at_most.level)).collect();
        if domains.len() > at_most.domains as usize {
            let (have, most) = (domains.len(), at_most.domains);
            wrong.push(format!("{have} domains of {} and at most {most} allowed", at_most.level));
        }
    }
    let first = &lease.places[..lease.nodes as usize];
    for slice in spec.placement.slices.iter().filter(|s| s.strength == Strength::Required) {
        for (i, part) in first.chunks(slice.nodes as usize).enumerate() {
            let domains: BTreeSet<Option<String>> =
                part.iter().map(|p| domain(p, &slice.level)).collect();
            if domains.len() > 1 || domains.contains(&None) || part.len() < slice.nodes as usize {
                wrong.push(format!(
                    "slice {i} of {} is not inside one {}",
                    slice.nodes, slice.level
                ));
            }
        }
    }
    let count = |level: &str| {
        let mut counts: BTreeMap<Option<String>, u32> = BTreeMap::new();
        for place in all {
            *counts.entry(domain(place, level)).or_default() += 1;
        }
        counts
    };
    if let Some(level) = &spec.placement.balance {
        let counts: BTreeSet<u32> = count(level).into_values().collect();
        if counts.len() > 1 {
            wrong.push(format!("not the same number of nodes in each {level}: {counts:?}"));
        }
    }
    for spread in &spec.placement.spread {
        // Of the domains that are used, which is less than is promised, and needs no search.
        let counts = count(&spread.level);
        let (most, least) = (counts.values().max(), counts.values().min());
        if let (Some(most), Some(least)) = (most, least)
            && most - least > spread.max_skew
        {
            wrong.push(format!("skew {} over {}", most - least, spread.level));
        }
    }
    wrong
}

fn required(placement: &Placement) -> impl Iterator<Item = &str> {
    placement.within.iter().filter(|w| w.strength == Strength::Required).map(|w| w.level.as_str())
}

fn one_place(
    place: &Place,
    gang: &Gang,
    placement: &Placement,
    spec: &JobSpec,
    cluster: &Cluster,
) -> Vec<String> {
    let id = &place.node;
    let Some(node) = cluster.nodes.get(id) else { return vec![format!("there is no node {id}")] };
    let mut wrong = Vec::new();
    if place.gpus.len() != gang.gpus_per_node as usize || place.gpu_milli != gang.gpu_milli {
        wrong.push(format!("{id} gives other GPUs than asked for"));
    }
    for gpu in &place.gpus {
        let known = node.inventory.gpus.iter().find(|g| g.id == *gpu);
        let model = gang.gpu_model.as_deref().unwrap_or_default().to_lowercase();
        if !known.is_some_and(|g| g.model.to_lowercase().contains(&model)) {
            wrong.push(format!("{gpu} of {id} is of another model, or not there"));
        }
    }
    for wish in [placement, &spec.placement] {
        if wish.exclude.contains(id) || (!wish.only.is_empty() && !wish.only.contains(id)) {
            wrong.push(format!("{id} is excluded"));
        }
        if !wish.labels.iter().all(|rule| rule.holds(&node.inventory.labels)) {
            wrong.push(format!("{id} does not have the labels asked for"));
        }
    }
    wrong
}

fn domain_of(map: &Topology, node: &NodeId, level: &str) -> Option<String> {
    let (fabric, depth) = map.level(level)?;
    let path = map.fabrics[fabric].nodes.get(node)?;
    // The whole path: two blocks may call their leaves alike.
    Some(path.get(..=depth)?.join("/"))
}

/// Whether a job that asks for nothing in particular has enough nodes, were it alone. Of jobs with
/// constraints nothing is said here: that takes a search.
pub fn could_start_alone(spec: &JobSpec, cluster: &Cluster) -> bool {
    let plain = spec.placement.is_empty()
        && spec.roles.is_empty()
        && spec.after.is_empty()
        && !spec.singleton
        && spec.reservation.is_none()
        && spec.spares == 0;
    let gang = &spec.gang;
    let model = gang.gpu_model.as_deref().unwrap_or_default().to_lowercase();
    let fits = cluster.nodes.values().filter(|node| {
        let gpus = node.inventory.gpus.iter().filter(|g| g.model.to_lowercase().contains(&model));
        gpus.count() >= gang.gpus_per_node as usize
            && node.inventory.cpus >= gang.cpus_per_node()
            && node.inventory.memory.0 >= gang.memory_per_node.0
    });
    plain && fits.count() >= gang.nodes as usize
}
