//! Which nodes: the tightest domain that fits, inside it the fewest sub-domains, ties by name.
//!
//! All nodes of a gang are alike, so how many fit into a domain is a count, and "does not fit" a
//! proof.

use std::collections::BTreeSet;

use tessera_model::{Gang, NodeId, Strength, WaitReason, Within};

use super::gpus::{self, Cost};
use super::snapshot::NodeView;

/// A node of a placement: its index in the snapshot and its GPUs as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    pub node: usize,
    pub gpus: u64,
}

/// Why a gang does not fit what is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoFit {
    /// Most fitting nodes in any one allowed domain.
    pub have: u32,
    /// The narrowest required level.
    pub level: Option<String>,
    /// The domain with the most.
    pub nearest: Option<String>,
}

impl NoFit {
    pub fn reason(self, gang: &Gang) -> WaitReason {
        WaitReason::NotEnoughFree {
            need: gang.nodes,
            have: self.have,
            gpus_per_node: gang.gpus_per_node,
            level: self.level,
            nearest: self.nearest,
        }
    }
}

/// A node that can take one node's worth of the gang, and how well.
#[derive(Debug, Clone, Copy)]
struct Fit {
    chosen: Chosen,
    cost: Cost,
    /// GPUs free on it before; fewer is tighter.
    free: u32,
}

/// Places the gang on what is free, in rank order, or says what is missing.
pub fn place(
    nodes: &[NodeView],
    levels: &[String],
    gang: &Gang,
    within: &[Within],
    avoid: &BTreeSet<NodeId>,
) -> Result<Vec<Chosen>, NoFit> {
    let fits: Vec<Fit> =
        nodes.iter().enumerate().filter_map(|(i, n)| fit(i, n, gang, avoid)).collect();
    let want = usize::try_from(gang.nodes).unwrap_or(usize::MAX);
    let (start, limit) = search_levels(levels, within);
    // Levels count from 1; 0 is the whole cluster.
    let mut depth = start;
    loop {
        let domains = domains(nodes, &fits, depth);
        let tightest = domains.iter().filter(|d| d.len() >= want).min_by_key(|d| d.len());
        if let Some(domain) = tightest {
            let mut chosen = pick(nodes, domain, want, depth, levels.len());
            chosen.sort_by_key(|c| c.node);
            return Ok(chosen);
        }
        if depth == limit {
            let best = domains.iter().rev().max_by_key(|d| d.len());
            // At depth 0 the one domain may be empty.
            let first = best.and_then(|d| d.first());
            let name = first.and_then(|f| domain_of(&nodes[f.chosen.node], depth));
            return Err(NoFit {
                have: u32::try_from(best.map_or(0, Vec::len)).unwrap_or(u32::MAX),
                level: depth.checked_sub(1).map(|d| levels[d].clone()),
                nearest: name.map(str::to_owned),
            });
        }
        depth -= 1;
    }
}

/// The same question to the cluster as it would be with every job gone and every node well:
/// most nodes of one allowed domain that could ever take part.
pub fn could_ever_fit(
    nodes: &[NodeView],
    levels: &[String],
    gang: &Gang,
    within: &[Within],
) -> Result<(), String> {
    let ideal: Vec<NodeView> = nodes
        .iter()
        .map(|n| NodeView {
            takes_jobs: true,
            free: if n.gpus.is_empty() { 0 } else { u64::MAX >> (64 - n.gpus.len().min(64)) },
            cpus_free: n.cpus,
            memory_free: n.memory,
            ..n.clone()
        })
        .collect();
    let Err(no) = place(&ideal, levels, gang, within, &BTreeSet::new()) else { return Ok(()) };
    let model = gang.gpu_model.as_deref().map(|m| format!(" {m}")).unwrap_or_default();
    let shape = match gang.gpus_per_node {
        0 => format!("{} CPUs", gang.cpus_per_node()),
        1 => format!("1{model} GPU and {} CPUs", gang.cpus_per_node()),
        g => format!("{g}{model} GPUs and {} CPUs", gang.cpus_per_node()),
    };
    let memory = match gang.memory_per_node.0 {
        0 => String::new(),
        _ => format!(" and {}", gang.memory_per_node),
    };
    let place = match (&no.level, &no.nearest) {
        (Some(level), Some(name)) => format!("no {level} has more than {} ({name})", no.have),
        (Some(level), None) => format!("no {level} has any"),
        (None, _) => format!("the cluster has {}", no.have),
    };
    let nodes = if gang.nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", gang.nodes) };
    Err(format!("it needs {nodes} with {shape}{memory} each, and {place}"))
}

fn fit(index: usize, node: &NodeView, gang: &Gang, avoid: &BTreeSet<NodeId>) -> Option<Fit> {
    if !node.takes_jobs
        || node.cpus_free < gang.cpus_per_node()
        || node.memory_free < gang.memory_per_node.0
        || node.free.count_ones() < gang.gpus_per_node
        || (!avoid.is_empty() && avoid.contains(&node.id))
    {
        return None;
    }
    let model = gang.gpu_model.as_deref();
    let (cost, gpus) = gpus::choose(&node.gpus, node.free, gang.gpus_per_node, model)?;
    Some(Fit { chosen: Chosen { node: index, gpus }, cost, free: node.free.count_ones() })
}

/// The level the search begins at and the one it must not go above. A required level bounds it,
/// a preferred one is where it begins; without either it begins at the narrowest.
fn search_levels(levels: &[String], within: &[Within]) -> (usize, usize) {
    let depth = |w: &Within| levels.iter().position(|l| *l == w.level).map_or(0, |d| d + 1);
    let of = |strength| within.iter().filter(move |w| w.strength == strength).map(depth).max();
    let limit = of(Strength::Required).unwrap_or(0);
    let start = of(Strength::Preferred).unwrap_or(levels.len()).max(limit);
    (start, limit)
}

fn domain_of(node: &NodeView, depth: usize) -> Option<&str> {
    let path = node.path.as_ref()?;
    path.get(depth.checked_sub(1)?).map(String::as_str)
}

/// The fitting nodes by domain, in the snapshot's order. At depth 0 there is one, with all of them;
/// below, a node that is not in the map is in none.
fn domains(nodes: &[NodeView], fits: &[Fit], depth: usize) -> Vec<Vec<Fit>> {
    if depth == 0 {
        return vec![fits.to_vec()];
    }
    let mut domains: Vec<(&[String], Vec<Fit>)> = Vec::new();
    for fit in fits {
        let Some(path) = nodes[fit.chosen.node].path.as_deref().and_then(|p| p.get(..depth)) else {
            continue;
        };
        match domains.last_mut() {
            // Nodes are in depth-first order, so a domain's nodes follow each other.
            Some((last, members)) if *last == path => members.push(*fit),
            _ => domains.push((path, vec![*fit])),
        }
    }
    domains.into_iter().map(|(_, members)| members).collect()
}

/// `want` of a domain's nodes, out of the fewest sub-domains: the tightest that holds all, else the
/// fullest whole and go on with the rest.
fn pick(
    nodes: &[NodeView],
    domain: &[Fit],
    want: usize,
    depth: usize,
    deepest: usize,
) -> Vec<Chosen> {
    if domain.len() == want {
        return domain.iter().map(|f| f.chosen).collect();
    }
    if depth >= deepest {
        let mut fits = domain.to_vec();
        fits.sort_by_key(|f| (f.cost.nvlink_groups, f.cost.numa_nodes, f.free, f.cost.left_behind));
        return fits[..want].iter().map(|f| f.chosen).collect();
    }
    let mut parts = domains(nodes, domain, depth + 1);
    let mapped: usize = parts.iter().map(Vec::len).sum();
    if mapped < domain.len() {
        // Nodes outside the map: together, after all others.
        let outside = |f: &&Fit| nodes[f.chosen.node].path.is_none();
        parts.push(domain.iter().filter(outside).copied().collect());
    }
    let (mut chosen, mut left) = (Vec::new(), want);
    loop {
        let tightest =
            (0..parts.len()).filter(|i| parts[*i].len() >= left).min_by_key(|i| parts[*i].len());
        if let Some(i) = tightest {
            chosen.extend(pick(nodes, &parts[i], left, depth + 1, deepest));
            return chosen;
        }
        let Some(fullest) = (0..parts.len()).rev().max_by_key(|i| parts[*i].len()) else {
            return chosen;
        };
        let part = parts.remove(fullest);
        left -= part.len();
        chosen.extend(part.iter().map(|f| f.chosen));
    }
}
