//! Why there is no place, as numbers and in words.

use std::collections::BTreeMap;

use tessera_model::{Gang, JobSpec};

use super::bonds::domain;
use super::nodes::NodeSet;
use super::request::{At, Bonds, Request};
use super::search::NoFit;
use super::space::Space;

/// The count that fails, if one does: a role's nodes, or those of several roles together, in the
/// domain that all of them have to share.
pub(super) fn short(space: &Space, request: &Request, fits: &[NodeSet]) -> Option<NoFit> {
    let job = &request.bonds.within;
    for (i, (role, fits)) in request.roles.iter().zip(fits).enumerate() {
        let within: Vec<At> = job.iter().chain(&role.bonds.within).copied().collect();
        let need = role.nodes.saturating_add(if i == 0 { request.spares } else { 0 });
        let (have, nearest) = most(space, fits, &within);
        if have < need {
            let (level, nearest) = names(space, &within, nearest);
            return Some(NoFit::Short {
                role: (i > 0).then(|| role.name.clone()),
                need,
                have,
                gpus_per_node: role.gpus,
                level,
                nearest,
            });
        }
    }
    let roles = request.roles.len();
    let sets = if roles <= 6 { 1..1u64 << roles } else { 0..0 };
    let all = (1u64 << (roles - 1) << 1).wrapping_sub(1);
    for set in sets.chain([all]).filter(|s| s.count_ones() > 1) {
        let members = || (0..roles).filter(|r| set >> r & 1 == 1);
        let mut any = NodeSet::new(space.len());
        members().for_each(|r| any.union(&fits[r]));
        let spares = if set & 1 == 1 { request.spares } else { 0 };
        let need = members().fold(spares, |sum, r| sum.saturating_add(request.roles[r].nodes));
        let (have, nearest) = most(space, &any, job);
        if have < need {
            let gpus_per_node = members().map(|r| request.roles[r].gpus).min().unwrap_or(0);
            let (level, nearest) = names(space, job, nearest);
            return Some(NoFit::Short { role: None, need, have, gpus_per_node, level, nearest });
        }
    }
    None
}

/// Most fitting nodes that share a domain of each level, and one of them.
fn most(space: &Space, fits: &NodeSet, within: &[At]) -> (u32, Option<u32>) {
    if within.is_empty() {
        return (fits.count(), None);
    }
    let mut counts: BTreeMap<Vec<u32>, (u32, u32)> = BTreeMap::new();
    for node in fits.iter() {
        let key = within.iter().map(|at| domain(space, *at, node)).collect();
        counts.entry(key).or_insert((0, node)).0 += 1;
    }
    let best = counts.values().max_by_key(|(count, first)| (*count, std::cmp::Reverse(*first)));
    best.map_or((0, None), |(count, node)| (*count, Some(*node)))
}

/// The narrowest of the levels, of the first fabric if one is, and the domain of it.
fn names(space: &Space, within: &[At], node: Option<u32>) -> (Option<String>, Option<String>) {
    let Some(at) = within.iter().max_by_key(|at| (std::cmp::Reverse(at.tree), at.depth)) else {
        return (None, None);
    };
    let level = &space.layout.trees[at.tree].levels[at.depth];
    let name = node.and_then(|n| level.domains.get(level.of[n as usize] as usize));
    (Some(level.name.clone()), name.map(|d| d.name.clone()))
}

/// What cannot be had together, in words.
pub(super) fn shape(space: &Space, request: &Request) -> String {
    let mut wants = wants(space, &request.bonds);
    for role in &request.roles {
        let of = |w: String| if role.name.is_empty() { w } else { format!("{} {w}", role.name) };
        wants.extend(self::wants(space, &role.bonds).into_iter().map(of));
    }
    let nodes = request.nodes();
    let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
    if wants.is_empty() {
        // Roles that want the same nodes.
        return format!("{nodes} fit one by one, but not all of its roles at once");
    }
    format!("there are enough nodes, but {nodes} cannot be had {}", wants.join(", "))
}

fn wants(space: &Space, bonds: &Bonds) -> Vec<String> {
    let name = |at: &At| &*space.layout.trees[at.tree].levels[at.depth].name;
    let within = bonds.within.iter().map(|at| format!("within one {}", name(at)));
    let slices = bonds
        .slices
        .iter()
        .map(|(size, at)| format!("in slices of {size} within one {} each", name(at)));
    let at_most = bonds.at_most.iter().map(|(most, at)| match most {
        1 => format!("in at most 1 {}", name(at)),
        n => format!("in at most {n} {}s", name(at)),
    });
    let spread = bonds
        .spread
        .iter()
        .map(|(skew, at)| format!("spread over every {} with a skew of {skew}", name(at)));
    let balance = bonds.balance.iter().map(|at| format!("as many in each {}", name(at)));
    within.chain(slices).chain(at_most).chain(spread).chain(balance).collect()
}

/// That it can never start.
pub(super) fn never(no: &NoFit, spec: &JobSpec) -> String {
    let (role, need, have, level, nearest) = match no {
        NoFit::Short { role, need, have, level, nearest, .. } => (role, need, have, level, nearest),
        NoFit::Shape { what } => return what.clone(),
        NoFit::NotFound { tried } => return format!("nothing was found among {tried}"),
    };
    let place = match (level, nearest) {
        (Some(level), Some(name)) => format!("no {level} has more than {have} ({name})"),
        (Some(level), None) => format!("no {level} has any"),
        (None, _) => format!("the cluster has {have}"),
    };
    let nodes = if *need == 1 { "1 node".to_owned() } else { format!("{need} nodes") };
    let further = role.as_ref().and_then(|name| spec.roles.iter().find(|r| r.name == *name));
    let together = role.is_none() && *need > spec.gang.nodes.saturating_add(spec.spares);
    if together {
        return format!("its roles need {nodes} together, and {place} that fit any of them");
    }
    let gang = further.map_or(&spec.gang, |r| &r.gang);
    let whose = role.as_ref().map_or("it needs".to_owned(), |name| format!("{name} needs"));
    format!("{whose} {nodes} with {} each, and {place}", shape_of(gang))
}

fn shape_of(gang: &Gang) -> String {
    let model = gang.gpu_model.as_deref().map(|m| format!(" {m}")).unwrap_or_default();
    let gpus = match gang.gpus_per_node {
        0 => format!("{} CPUs", gang.cpus_per_node()),
        1 if gang.is_share() => {
            format!("{}/1000 of a{model} GPU and {} CPUs", gang.gpu_milli, gang.cpus_per_node())
        }
        1 => format!("1{model} GPU and {} CPUs", gang.cpus_per_node()),
        g => format!("{g}{model} GPUs and {} CPUs", gang.cpus_per_node()),
    };
    match gang.memory_per_node.0 {
        0 => gpus,
        _ => format!("{gpus} and {}", gang.memory_per_node),
    }
}
