//! How near the nodes have to be, how they are divided, and which may take part at all.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{Lease, NodeId, Placement, Strength};

use crate::cluster::Cluster;
use crate::job_table::Job;

pub(super) fn check(cluster: &Cluster, job: &Job, lease: &Lease) -> Result<(), String> {
    let spec = &job.spec;
    let nodes: Vec<&NodeId> = lease.places.iter().map(|p| &p.node).collect();
    let spares = nodes.len() - spec.spares as usize;
    let working = &nodes[..spares];
    let names = |node: &NodeId, placement: &Placement| may_take_part(cluster, node, placement);
    nodes.iter().try_for_each(|node| names(node, &spec.placement))?;
    if working.len() > 1 {
        nodes.iter().try_for_each(|node| links_work(cluster, node))?;
    }
    together(cluster, &spec.placement, working)?;
    // Spares stand where those do whom they may have to replace.
    for within in spec.placement.within.iter().filter(|w| w.strength == Strength::Required) {
        one_domain(cluster, &within.level, &nodes)?;
    }
    sliced(cluster, &spec.placement, &working[..lease.nodes as usize])?;
    let mut first = lease.nodes as usize;
    for role in &spec.roles {
        let own = &working[first..first + role.gang.nodes as usize];
        first += own.len();
        own.iter().try_for_each(|node| names(node, &role.placement))?;
        together(cluster, &role.placement, own)?;
        sliced(cluster, &role.placement, own)?;
    }
    Ok(())
}

fn may_take_part(cluster: &Cluster, node: &NodeId, placement: &Placement) -> Result<(), String> {
    if !placement.only.is_empty() && !placement.only.contains(node) {
        return Err(format!("{node} is not one of the nodes it names"));
    }
    if placement.exclude.contains(node) {
        return Err(format!("{node} is one that it excludes"));
    }
    let labels = cluster.nodes.get(node).map(|n| &n.inventory.labels);
    let broken = placement.labels.iter().find(|rule| labels.is_none_or(|l| !rule.holds(l)));
    match broken {
        Some(rule) => Err(format!("the label {} of {node} is not as it asks", rule.key)),
        None => Ok(()),
    }
}

/// No gang of several nodes where an operator says that the links are down.
fn links_work(cluster: &Cluster, node: &NodeId) -> Result<(), String> {
    for (level, domain) in cluster.map().domains_of(node) {
        let mark = cluster.marks.get(&format!("{level}/{domain}"));
        if mark.is_some_and(|m| m.health == 0) {
            return Err(format!("the links of {level} {domain} are down, where {node} stands"));
        }
    }
    Ok(())
}

/// The domain of a node at a level, by its whole path: two blocks may each have a leaf of one name.
fn domain(cluster: &Cluster, level: &str, node: &NodeId) -> Result<Vec<String>, String> {
    let map = cluster.map();
    let Some((fabric, depth)) = map.level(level) else {
        return Err(format!("there is no level {level}"));
    };
    let path = map.fabrics[fabric].nodes.get(node).and_then(|path| path.get(..=depth));
    path.map(<[String]>::to_vec).ok_or_else(|| format!("{node} stands in no {level}"))
}

/// How many of the nodes stand in each domain of a level.
fn counts(
    cluster: &Cluster,
    level: &str,
    nodes: &[&NodeId],
) -> Result<BTreeMap<Vec<String>, u32>, String> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        *counts.entry(domain(cluster, level, node)?).or_insert(0) += 1;
    }
    Ok(counts)
}

fn one_domain(cluster: &Cluster, level: &str, nodes: &[&NodeId]) -> Result<(), String> {
    match counts(cluster, level, nodes)?.len() {
        0 | 1 => Ok(()),
        n => Err(format!("it is not inside one {level} but in {n}")),
    }
}

fn together(cluster: &Cluster, placement: &Placement, nodes: &[&NodeId]) -> Result<(), String> {
    for within in placement.within.iter().filter(|w| w.strength == Strength::Required) {
        one_domain(cluster, &within.level, nodes)?;
    }
    for at_most in &placement.at_most {
        let used = counts(cluster, &at_most.level, nodes)?.len();
        if used > at_most.domains as usize {
            let (level, most) = (&at_most.level, at_most.domains);
            return Err(format!("it is in {used} domains of {level}, {most} may be"));
        }
    }
    for spread in &placement.spread {
        let counts = counts(cluster, &spread.level, nodes)?;
        let most = counts.values().max().copied().unwrap_or(0);
        let least = counts.values().min().copied().unwrap_or(0);
        if most - least > spread.max_skew {
            let level = &spread.level;
            return Err(format!("it has {most} nodes in one {level} and {least} in another"));
        }
    }
    if let Some(level) = &placement.balance {
        let sizes: BTreeSet<u32> = counts(cluster, level, nodes)?.into_values().collect();
        if sizes.len() > 1 {
            return Err(format!("it has not the same number of nodes in each {level}"));
        }
    }
    Ok(())
}

/// Each so many nodes that follow each other stand in one domain.
fn sliced(cluster: &Cluster, placement: &Placement, nodes: &[&NodeId]) -> Result<(), String> {
    for slice in placement.slices.iter().filter(|s| s.strength == Strength::Required) {
        let size = slice.nodes.max(1) as usize;
        if !nodes.len().is_multiple_of(size) {
            return Err(format!("slices of {size} do not divide {} nodes", nodes.len()));
        }
        for (i, part) in nodes.chunks(size).enumerate() {
            one_domain(cluster, &slice.level, part).map_err(|what| format!("slice {i}: {what}"))?;
        }
    }
    Ok(())
}
