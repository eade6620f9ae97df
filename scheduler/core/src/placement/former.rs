//! In-place replacement: an attempt starts again with those of its nodes that still fit, each at
//! its place, and with others for the rest, from as near as the bonds allow.

use super::bonds;
use super::finish;
use super::fit;
use super::nodes::NodeSet;
use super::request::Request;
use super::space::{NOWHERE, Space};

/// Ways to replace that are looked at before a fresh search is made instead.
const TRIES: u32 = 500;

/// Nodes of all places, spares last, with every former node that still fits where it was; `None`
/// where the bonds cannot be kept that way.
pub(super) fn keep(space: &Space, request: &Request, fits: &[NodeSet]) -> Option<Vec<u32>> {
    let (ranks, spares) = (request.nodes() as usize, request.spares as usize);
    if request.former.len() != ranks + spares {
        return None;
    }
    let mut kept = NodeSet::new(space.len());
    let mut places: Vec<u32> = Vec::new();
    for (place, node) in request.former.iter().enumerate() {
        let fits = fits[request.role_of(place)].contains(*node) && !kept.contains(*node);
        if fits {
            kept.insert(*node);
        }
        places.push(if fits { *node } else { NOWHERE });
    }
    if kept.is_empty() {
        return None;
    }
    let spare: Vec<u32> = places.split_off(ranks).into_iter().filter(|n| *n != NOWHERE).collect();
    // A spare may step in for a rank: only ranks hold their nodes.
    let mut used = NodeSet::new(space.len());
    places.iter().filter(|n| **n != NOWHERE).for_each(|n| used.insert(*n));
    let mut replace = Replace { space, request, fits, spare: &spare, used, tries: 0 };
    replace.from(0, &mut places).then_some(())?;
    // The map may have changed under a spare: it has to be where the ranks have to be.
    let required = request.bonds.within.iter().chain(&request.roles[0].bonds.within);
    let required: Vec<_> = required.copied().collect();
    let near = |n: u32| {
        required
            .iter()
            .all(|at| bonds::domain(space, *at, n) == bonds::domain(space, *at, places[0]))
    };
    let stays = |n: &u32| !places.contains(n) && near(*n);
    let mut left: Vec<u32> = spare.into_iter().filter(stays).collect();
    let missing = spares - left.len();
    let mut open = fits[0].clone();
    left.iter().for_each(|n| open.remove(*n));
    let fresh = finish::spares(space, request, &open, &places, missing)?;
    left.extend(fresh.into_iter().map(|c| c.node));
    places.extend(left);
    Some(places)
}

struct Replace<'a> {
    space: &'a Space,
    request: &'a Request,
    fits: &'a [NodeSet],
    spare: &'a [u32],
    used: NodeSet,
    tries: u32,
}

impl Replace<'_> {
    /// Fills the open places from `at` on, nearest nodes first.
    fn from(&mut self, at: usize, places: &mut Vec<u32>) -> bool {
        let Some(open) = (at..places.len()).find(|p| places[*p] == NOWHERE) else {
            self.tries += 1;
            let (space, request) = (self.space, self.request);
            let spares = request.spares as usize;
            return bonds::hold(space, request, self.fits, places)
                && finish::spares(space, request, &self.fits[0], places, spares).is_some();
        };
        for node in self.candidates(open, places) {
            if self.tries >= TRIES {
                return false;
            }
            places[open] = node;
            self.used.insert(node);
            if self.from(open + 1, places) {
                return true;
            }
            self.used.remove(node);
            places[open] = NOWHERE;
        }
        false
    }

    /// One node of each sort that bonds and roles can tell apart, the nearest first: to the node that was
    /// there, or if that is not on the map any more to the place's neighbours in rank order.
    fn candidates(&self, open: usize, places: &[u32]) -> Vec<u32> {
        let (space, role) = (self.space, self.request.role_of(open));
        let near = |by: usize| {
            let around = [open.checked_sub(by), Some(open + by)].into_iter().flatten();
            around.filter_map(|p| places.get(p)).copied().find(|n| *n != NOWHERE)
        };
        let former = Some(self.request.former[open]).filter(|n| *n != NOWHERE);
        let anchor = former.or_else(|| (1..=places.len()).find_map(near));
        let levels: Vec<_> = {
            let own = self.request.roles.iter().flat_map(|r| r.bonds.levels());
            self.request.bonds.levels().chain(own).collect()
        };
        let distance = |n: u32| {
            let shares = |of: &Vec<u32>| {
                anchor
                    .is_some_and(|a| of[n as usize] != NOWHERE && of[n as usize] == of[a as usize])
            };
            let first = space.layout.trees.first().map_or(&[][..], |t| &t.levels);
            // Levels of other fabrics that bind come first: a slice's domain above all.
            let bound = levels
                .iter()
                .filter(|at| !shares(&space.layout.trees[at.tree].levels[at.depth].of));
            let apart = first.iter().rev().position(|l| shares(&l.of)).unwrap_or(first.len());
            (bound.count(), apart)
        };
        let free = self.fits[role].iter().filter(|n| !self.used.contains(*n));
        let mut sorted: Vec<_> = free
            .filter_map(|n| {
                let worth = fit::worth(space, &self.request.roles[role], n)?;
                Some((distance(n), !self.spare.contains(&n), worth))
            })
            .collect();
        sorted.sort_unstable();
        let mut seen = std::collections::BTreeSet::new();
        let sort = |n: u32| {
            let first = space.layout.runs.last();
            let run = first.map_or(0, |r| r.partition_point(|r| r.end <= n));
            let domains = levels.iter().map(|at| bonds::domain(space, *at, n));
            let fits = self.fits.iter().map(|f| f.contains(n));
            (run, domains.collect::<Vec<_>>(), fits.collect::<Vec<_>>())
        };
        sorted.into_iter().map(|s| s.2.node).filter(|n| seen.insert(sort(*n))).collect()
    }
}
