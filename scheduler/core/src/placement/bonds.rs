//! Whether nodes in rank order keep what binds them. The search builds answers that do; this asks
//! it of nodes that came from elsewhere, and of what was only preferred.

use std::collections::BTreeMap;

use super::nodes::NodeSet;
use super::request::{At, Bonds, Request};
use super::space::Space;

/// The domain of a node.
pub(super) fn domain(space: &Space, at: At, node: u32) -> u32 {
    space.layout.trees[at.tree].levels[at.depth].of[node as usize]
}

/// Whether `ranks`, the nodes of all roles in rank order, keep all bonds. Each fits its role.
/// `fits` by role.
pub(super) fn hold(space: &Space, request: &Request, fits: &[NodeSet], ranks: &[u32]) -> bool {
    if !together(space, &request.bonds, ranks) || !shared_out(space, request, None, fits, ranks) {
        return false;
    }
    let mut rest = ranks;
    for (i, role) in request.roles.iter().enumerate() {
        let (own, further) = rest.split_at(role.nodes as usize);
        rest = further;
        let sliced = role.bonds.slices.iter().all(|(size, at)| sliced(space, *at, *size, own));
        if !sliced
            || !together(space, &role.bonds, own)
            || !shared_out(space, request, Some(i), fits, own)
        {
            return false;
        }
    }
    true
}

/// Each `size` nodes that follow each other lie in one domain.
pub(super) fn sliced(space: &Space, at: At, size: u32, nodes: &[u32]) -> bool {
    nodes.chunks(size.max(1) as usize).all(|slice| one_domain(space, at, slice))
}

pub(super) fn one_domain(space: &Space, at: At, nodes: &[u32]) -> bool {
    let Some(first) = nodes.first() else { return true };
    let first = domain(space, at, *first);
    first != super::space::NOWHERE && nodes.iter().all(|n| domain(space, at, *n) == first)
}

fn together(space: &Space, bonds: &Bonds, nodes: &[u32]) -> bool {
    bonds.within.iter().all(|at| one_domain(space, *at, nodes))
        && bonds.at_most.iter().all(|(most, at)| used(space, *at, nodes).len() <= *most as usize)
}

fn used(space: &Space, at: At, nodes: &[u32]) -> BTreeMap<u32, u32> {
    let mut used = BTreeMap::new();
    nodes.iter().for_each(|n| *used.entry(domain(space, at, *n)).or_insert(0) += 1);
    used
}

/// Spread and balance.
fn shared_out(
    space: &Space,
    request: &Request,
    role: Option<usize>,
    fits: &[NodeSet],
    nodes: &[u32],
) -> bool {
    let bonds = role.map_or(&request.bonds, |r| &request.roles[r].bonds);
    let even = |at: &At| {
        let used = used(space, *at, nodes);
        used.values().max() == used.values().min()
    };
    let spread = |(skew, at): &(u32, At)| {
        let used = used(space, *at, nodes);
        let least = eligible(space, request, role, fits, *at, nodes.first().copied())
            .into_iter()
            .map(|d| used.get(&d).copied().unwrap_or(0))
            .min();
        let most = used.values().max().copied().unwrap_or(0);
        most - least.unwrap_or(most).min(most) <= *skew
    };
    bonds.balance.as_ref().is_none_or(even) && bonds.spread.iter().all(spread)
}

/// Domains of a level that could take part: those with a node that fits the role, or any role, and
/// that lies in the same required domains as `one`.
fn eligible(
    space: &Space,
    request: &Request,
    role: Option<usize>,
    fits: &[NodeSet],
    at: At,
    one: Option<u32>,
) -> Vec<u32> {
    let own = role.map_or(&[][..], |r| &request.roles[r].bonds.within);
    let required: Vec<At> = request.bonds.within.iter().chain(own).copied().collect();
    let near = |n: u32| {
        one.is_none_or(|one| {
            required.iter().all(|w| domain(space, *w, n) == domain(space, *w, one))
        })
    };
    let roles = role.map_or(0..fits.len(), |r| r..r + 1);
    let nodes = roles.flat_map(|r| fits[r].iter()).filter(|n| near(*n));
    let mut domains: Vec<u32> = nodes.map(|n| domain(space, at, n)).collect();
    domains.sort_unstable();
    domains.dedup();
    domains.retain(|d| *d != super::space::NOWHERE);
    domains
}
