//! From numbers to nodes: which nodes of a domain, which GPUs on them, in which order of ranks, and
//! which spares. Nothing here changes what a placement spans.

use std::cmp::Reverse;

use tessera_model::WHOLE_GPU;

use super::bonds::domain;
use super::fit::{self, Worth};
use super::nodes::NodeSet;
use super::request::{Request, Role};
use super::search::{Chosen, Part};
use super::space::{NOWHERE, Space};

/// Nodes of which so many are to be taken, and the parts they are for.
struct Group {
    nodes: Vec<u32>,
    count: u32,
    parts: Vec<usize>,
}

/// The places of all roles in rank order.
pub(super) fn ranks(space: &Space, request: &Request, parts: Vec<Part>) -> Vec<Chosen> {
    let mut taken = NodeSet::new(space.len());
    let mut by_role: Vec<Vec<Part>> = request.roles.iter().map(|_| Vec::new()).collect();
    parts.into_iter().for_each(|p| by_role[p.role].push(p));
    let mut ranks = Vec::new();
    for (i, (role, parts)) in request.roles.iter().zip(by_role).enumerate() {
        let counts: Vec<u32> = parts.iter().map(|p| p.count).collect();
        let groups = groups(parts, &taken);
        let mut of_part: Vec<Vec<Chosen>> = counts.iter().map(|_| Vec::new()).collect();
        let common = common(space, role, &groups);
        for group in groups {
            let mut chosen = choose(space, role, &group, common).into_iter();
            chosen.as_slice().iter().for_each(|c| taken.insert(c.node));
            for part in group.parts {
                of_part[part].extend(chosen.by_ref().take(counts[part] as usize));
            }
        }
        let mut own = of_part.concat();
        let sizes: Vec<u32> = role.bonds.slices.iter().map(|s| s.0).collect();
        arrange(&mut own, &sizes);
        if i == 0 {
            healthiest_first(space, role, &mut own);
        }
        ranks.extend(own);
    }
    ranks
}

/// Parts of the same nodes as one, without the nodes that are taken.
fn groups(parts: Vec<Part>, taken: &NodeSet) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        let first = part.nodes.first().copied();
        let same = groups.iter_mut().find(|g| g.nodes.first().copied() == first);
        if let Some(same) = same {
            same.count += part.count;
            same.parts.push(i);
        } else {
            groups.push(Group { nodes: part.nodes, count: part.count, parts: vec![i] });
        }
    }
    for group in &mut groups {
        group.nodes.retain(|n| !taken.contains(*n));
    }
    groups
}

/// A group's nodes and their GPUs, in node order: with the common GPU set where there is one, else
/// each with its own best; those that are used best, started ones before empty ones.
fn choose(space: &Space, role: &Role, group: &Group, common: Option<u64>) -> Vec<Chosen> {
    let own = |n: &u32| fit::worth(space, role, *n);
    let mut worths: Vec<Worth> = match common {
        None => group.nodes.iter().filter_map(own).collect(),
        Some(set) => {
            let with = |n: &u32| {
                let worth = own(n)?;
                accepts(space, role, worth, set).then_some(Worth { gpus: set, ..worth })
            };
            group.nodes.iter().filter_map(with).collect()
        }
    };
    let count = group.count as usize;
    if worths.len() > count && count > 0 {
        worths.select_nth_unstable(count - 1);
        worths.truncate(count);
    }
    worths.sort_unstable_by_key(|w| w.node);
    worths.into_iter().map(|w| Chosen { node: w.node, gpus: w.gpus }).collect()
}

/// Whether a node can give just this set, and has none that is nearer.
fn accepts(space: &Space, role: &Role, best: Worth, set: u64) -> bool {
    let kind = space.layout.kind[best.node as usize];
    let own = space.layout.table(kind).best(space.layout.kind_of(best.node), set, role.gpus);
    fit::usable(space, role, best.node) & set == set
        && own.is_some_and(|(cost, _)| {
            (cost.nvlink_groups, cost.numa_nodes) == (best.nvlink_groups, best.numa_nodes)
        })
}

/// Sets of GPUs that could be the same on every node of a gang: where it has several nodes, takes
/// fewer GPUs than a node has, and all `nodes` have their GPUs linked alike.
pub(super) fn sets(space: &Space, role: &Role, nodes: impl Iterator<Item = u32>) -> Vec<u64> {
    let mut kinds: Vec<u16> = nodes.map(|n| space.layout.kind[n as usize]).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let views = |k: &u16| {
        let gpus = space.layout.kinds[usize::from(*k)].gpus.iter();
        gpus.map(|g| (g.rail, g.numa, g.nvlink_group)).collect::<Vec<_>>()
    };
    let Some(first) = kinds.first().map(views) else { return Vec::new() };
    let whole = role.gpus > 0 && role.milli == WHOLE_GPU && role.nodes > 1;
    let count = first.len() as u32;
    if !whole || count > 8 || role.gpus >= count || kinds.iter().any(|k| views(k) != first) {
        return Vec::new();
    }
    (1u64..1 << count).filter(|set| set.count_ones() == role.gpus).collect()
}

/// The set that every group can give on as many nodes as are taken from it, so that all nodes are
/// on the same rails: the nearest one, then the one for which the fewest free nodes are broken up.
fn common(space: &Space, role: &Role, groups: &[Group]) -> Option<u64> {
    let sets = sets(space, role, groups.iter().flat_map(|g| g.nodes.iter().copied()));
    if sets.is_empty() {
        return None;
    }
    // Nodes with the same usable GPUs are alike here.
    type Alike = Vec<(u64, Worth, u32)>;
    let mut alike: Vec<Alike> = Vec::new();
    for group in groups {
        let mut kinds: Alike = Vec::new();
        for node in &group.nodes {
            let usable = fit::usable(space, role, *node);
            match kinds.iter_mut().find(|k| k.0 == usable) {
                Some(kind) => kind.2 += 1,
                None => kinds.push((usable, fit::worth(space, role, *node)?, 1)),
            }
        }
        kinds.sort_by_key(|k| (k.1.free, k.0));
        alike.push(kinds);
    }
    let cost = |set: u64| {
        let (mut free, mut near) = (0, (0, 0));
        for (kinds, group) in alike.iter().zip(groups) {
            let mut need = group.count;
            for (_, worth, count) in kinds.iter().filter(|k| accepts(space, role, k.1, set)) {
                let take = need.min(*count);
                free += take * worth.free;
                need -= take;
                near = near.max((worth.nvlink_groups, worth.numa_nodes));
                if need == 0 {
                    break;
                }
            }
            if need > 0 {
                return None;
            }
        }
        Some((near, free, set))
    };
    sets.into_iter().filter_map(cost).min().map(|c| c.2)
}

/// Whether a set exists that `parts` of the first role can give on every node.
pub(super) fn aligned(space: &Space, role: &Role, parts: &[Part]) -> bool {
    let group = |p: &Part| Group { nodes: p.nodes.clone(), count: p.count, parts: Vec::new() };
    let groups: Vec<Group> = parts.iter().map(group).collect();
    let sets = sets(space, role, groups.iter().flat_map(|g| g.nodes.iter().copied()));
    sets.is_empty() || common(space, role, &groups).is_some()
}

/// The fitting nodes that can give this set and have none that is nearer.
pub(super) fn giving(space: &Space, role: &Role, fits: &NodeSet, set: u64) -> NodeSet {
    let mut giving = NodeSet::new(space.len());
    for node in fits.iter().filter(|n| fit::usable(space, role, *n) & set == set) {
        let worth = fit::worth(space, role, node);
        if worth.is_some_and(|w| accepts(space, role, w, set)) {
            giving.insert(node);
        }
    }
    giving
}

/// Nodes in the order of the fabric, slices whole: inside a slice in order, slices by their first.
fn arrange(nodes: &mut [Chosen], sizes: &[u32]) {
    let Some((size, inner)) = sizes.split_first() else {
        nodes.sort_unstable_by_key(|c| c.node);
        return;
    };
    let mut slices: Vec<Vec<Chosen>> =
        nodes.chunks(*size as usize).map(<[Chosen]>::to_vec).collect();
    slices.iter_mut().for_each(|s| arrange(s, inner));
    slices.sort_unstable_by_key(|s| s[0].node);
    for (to, from) in nodes.iter_mut().zip(slices.into_iter().flatten()) {
        *to = from;
    }
}

/// Rank 0 coordinates, so of the nodes that could be first without parting what belongs together
/// (the first innermost slice, inside the first narrowest domain) the healthiest is: the one with
/// the fewest sick GPUs, then in domains of the best health, then the first.
fn healthiest_first(space: &Space, role: &Role, nodes: &mut [Chosen]) {
    let Some(first) = nodes.first().map(|c| c.node) else { return };
    let size = role.bonds.slices.last().map_or(nodes.len(), |s| s.0 as usize);
    let runs = space.layout.runs.last();
    let end = runs.map_or(u32::MAX, |r| r[r.partition_point(|r| r.end <= first)].end);
    let together = nodes.iter().take(size).take_while(|c| c.node < end).count();
    let sickness = |c: &Chosen| {
        let kind = space.layout.kind_of(c.node);
        let sick = (kind.all() & !space.healthy[c.node as usize]).count_ones();
        let levels = space.layout.trees.iter().flat_map(|t| &t.levels);
        let health = levels.filter_map(|l| l.domains.get(l.of[c.node as usize] as usize));
        (sick, Reverse(health.map(|d| d.health).min().unwrap_or(100)))
    };
    let best = (0..together).min_by_key(|i| (sickness(&nodes[*i]), *i));
    if let Some(best) = best {
        nodes[..=best].rotate_right(1);
    }
}

/// Nodes of the first role's shape beside the ranks, in the same required domains: as near to the
/// first role's nodes as there are. `None`: too few.
pub(super) fn spares(
    space: &Space,
    request: &Request,
    fits: &NodeSet,
    ranks: &[u32],
    count: usize,
) -> Option<Vec<Chosen>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let role = &request.roles[0];
    let own = &ranks[..(role.nodes as usize).min(ranks.len())];
    let first = *own.first()?;
    let layout = &space.layout;
    let near: Vec<Vec<bool>> = layout
        .runs
        .iter()
        .map(|runs| {
            let mut used = vec![false; runs.len()];
            for node in own {
                used[runs.partition_point(|r| r.end <= *node)] = true;
            }
            used
        })
        .collect();
    let within = |n: u32| {
        request.bonds.within.iter().all(|w| domain(space, *w, n) == domain(space, *w, first))
    };
    let distance = |n: u32| {
        let shares = |level: &usize| {
            let runs = &layout.runs[*level];
            near[*level][runs.partition_point(|r| r.end <= n)]
        };
        (0..near.len()).rev().position(|l| shares(&l)).unwrap_or(near.len())
    };
    let candidates = fits.iter().filter(|n| !ranks.contains(n) && within(*n));
    let mut worths: Vec<(usize, Worth)> =
        candidates.filter_map(|n| Some((distance(n), fit::worth(space, role, n)?))).collect();
    if worths.len() < count {
        return None;
    }
    worths.select_nth_unstable(count - 1);
    worths.truncate(count);
    worths.sort_unstable();
    Some(worths.into_iter().map(|(_, w)| Chosen { node: w.node, gpus: w.gpus }).collect())
}

/// Domains that nodes use at each level of the first fabric, widest first; a node that stands in
/// none counts as one of its own.
pub(super) fn span(space: &Space, ranks: &[u32]) -> Vec<u32> {
    let mut nodes = ranks.to_vec();
    nodes.sort_unstable();
    let levels = space.layout.trees.first().map_or(&[][..], |t| &t.levels);
    let used = |of: &Vec<u32>| {
        let mut last = NOWHERE;
        let new = nodes.iter().filter(|n| {
            let here = of[**n as usize];
            let new = here == NOWHERE || here != last;
            last = here;
            new
        });
        new.count() as u32
    };
    levels.iter().map(|l| used(&l.of)).collect()
}
