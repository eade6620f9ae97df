//! The cheapest way to free one domain for a job.
//!
//! Each domain the job could go to is weighed by counting; the most promising are worked out:
//! victims by cost for what they free, then those that became unnecessary are let off again, and
//! where few are in question every set of them is tried, so that the answer is the cheapest there is.

use tessera_model::Strength;

use super::super::{Kept, Pass};
use super::{Plan, Victim};
use crate::placement::nodes::NodeSet;
use crate::placement::request::Terms;
use crate::placement::{self, Placed, Request, Space, Taken, gpus};
use crate::snapshot::{NOTICE_MAX, Pending};

/// Domains worked out, of those that look cheapest.
const DOMAINS_MAX: usize = 6;
/// Up to so many victims every set of them is tried.
const EXACT_MAX: usize = 12;
/// Sets that are tried out on the space at most.
const SETS_MAX: usize = 256;
/// Victims looked at in one domain beyond those that would just suffice.
const VICTIMS_MIN: usize = 48;

/// What every question about one job has in common.
struct Room<'p> {
    space: Space,
    request: Request,
    closed: NodeSet,
    kept: Vec<Kept>,
    victims: &'p [Victim],
    need: Need,
}

/// What one node has to offer, and how many have to.
struct Need {
    nodes: u32,
    gpus: u32,
    cpus: u32,
    memory: u64,
    /// Fitting GPUs, by kind.
    usable: Vec<u64>,
}

impl Pass<'_> {
    /// The cheapest plan that some of the victims make possible.
    pub(super) fn cheapest(
        &mut self,
        job: &Pending,
        ground: usize,
        victims: &[Victim],
    ) -> Option<Plan> {
        let now = self.snapshot.now;
        // It may begin as late as its hold lasts: nodes of places that are due before it would be
        // out are left alone altogether, so that the two never wait for each other.
        let late = now.plus(NOTICE_MAX).plus(super::HELD_FOR);
        let mask = self.mask(job, job.ends(late));
        let kept = self.kept_of(mask);
        let nodes = job.sizes().1;
        let avoid = self.avoided(job, ground, nodes);
        let preferred = job.insists_until().is_none_or(|until| until > now);
        let terms = Terms { avoid: &avoid, former: &job.former, nodes, preferred };
        let mut room = Room {
            space: self.free.clone(),
            request: Request::new(&self.free, &job.spec, &terms),
            closed: self.closed_for(job, ground, 0),
            kept: Vec::new(),
            victims,
            need: Need::of(&self.free, job, nodes),
        };
        kept.iter().flat_map(|k| k.taken.iter()).for_each(|t| room.closed.insert(t.node));
        room.kept = kept;
        let all: Vec<usize> = (0..victims.len()).collect();
        let everywhere = room.closed.clone();
        room.try_set(&all, None, &everywhere)?;
        self.searches += 1;
        let mut domains = room.domains(job);
        domains.sort_by_key(|d| (d.estimate, d.width, d.first));
        let mut best: Option<(u64, Plan)> = None;
        for domain in domains.iter().take(DOMAINS_MAX) {
            if best.as_ref().is_some_and(|(cost, _)| *cost <= domain.estimate / 2) {
                break;
            }
            if let Some(plan) = room.free_up(domain)
                && best.as_ref().is_none_or(|(cost, _)| plan.cost < *cost)
            {
                best = Some((plan.cost, plan));
            }
        }
        best.map(|(_, plan)| plan)
    }

    /// Kept places by their bits.
    pub(super) fn kept_of(&self, mask: u64) -> Vec<Kept> {
        let kept = self.slots.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
        kept.map(|(_, s)| s.clone()).collect()
    }

    /// A place for `nodes` nodes of the job in a space that is tried out.
    pub(super) fn place_in(
        &mut self,
        space: &mut Space,
        job: &Pending,
        ground: usize,
        kept: &[&Kept],
        nodes: u32,
    ) -> Option<Placed> {
        let avoid = self.avoided(job, ground, nodes);
        let terms = Terms { avoid: &avoid, former: &job.former, nodes, preferred: false };
        let request = Request::new(space, &job.spec, &terms);
        let closed = self.closed_for(job, ground, 0);
        super::super::future::without(space, kept, |space| {
            placement::place(space, &request, &closed, None).ok()
        })
    }
}

/// Nodes of one domain, and what it would about cost to free it.
struct Candidate {
    /// Nodes outside.
    closed: NodeSet,
    inside: NodeSet,
    /// Who holds something in it, cheapest for what it frees first.
    victims: Vec<usize>,
    estimate: u64,
    /// 0 is the narrowest level.
    width: usize,
    first: u32,
}

impl Need {
    fn of(space: &Space, job: &Pending, nodes: u32) -> Self {
        let gang = &job.spec.gang;
        let model = gang.gpu_model.as_deref().map(str::to_lowercase);
        let usable = space.layout.kinds.iter().map(|k| gpus::of_model(k, model.as_deref()));
        Self {
            nodes,
            // A share is had as soon as a GPU is free; that a shared one will do, too, shows in the
            // space itself.
            gpus: gang.gpus_per_node,
            cpus: gang.cpus_per_node(),
            memory: gang.memory_per_node.0,
            usable: usable.collect(),
        }
    }

    fn gpus_at(&self, space: &Space, node: u32) -> u32 {
        let kind = usize::from(space.layout.kind[node as usize]);
        (space.free[node as usize] & self.usable[kind]).count_ones()
    }

    fn fits(&self, space: &Space, node: u32) -> bool {
        let n = node as usize;
        space.takes_jobs[n]
            && self.gpus_at(space, node) >= self.gpus
            && space.cpus_free[n] >= self.cpus
            && space.memory_free[n] >= self.memory
    }

    /// How much closer to a fitting node the victim's part of it brings one, in GPUs; 1 at least
    /// where only CPUs or memory are missing.
    fn gain(&self, space: &Space, taken: &Taken) -> u64 {
        let n = taken.node as usize;
        if !space.takes_jobs[n] || self.fits(space, taken.node) {
            return 0;
        }
        let kind = usize::from(space.layout.kind[n]);
        let missing = self.gpus.saturating_sub(self.gpus_at(space, taken.node));
        let frees = (taken.gpus & self.usable[kind] & space.healthy[n]).count_ones();
        let short = space.cpus_free[n] < self.cpus || space.memory_free[n] < self.memory;
        u64::from(missing.min(frees)) + u64::from(short && taken.cpus > 0)
    }
}

impl Room<'_> {
    /// What a victim frees inside a domain: all of it, or nodes an elastic job can do without.
    fn freed(&self, victim: usize, inside: Option<&NodeSet>) -> Vec<Taken> {
        let victim = &self.victims[victim];
        match victim.spare_nodes {
            None => victim.taken.to_vec(),
            Some(spare) => {
                let here = |t: &&Taken| inside.is_none_or(|i| i.contains(t.node));
                victim.taken.iter().rev().filter(here).take(spare).copied().collect()
            }
        }
    }

    /// Where the job goes if these leave.
    fn try_set(
        &mut self,
        set: &[usize],
        inside: Option<&NodeSet>,
        closed: &NodeSet,
    ) -> Option<Placed> {
        let freed: Vec<Taken> = set.iter().flat_map(|v| self.freed(*v, inside)).collect();
        let kept: Vec<&Kept> = self.kept.iter().collect();
        let mark = self.space.mark();
        freed.iter().for_each(|t| self.space.give(t));
        let request = &self.request;
        let placed = super::super::future::without(&mut self.space, &kept, |space| {
            placement::place(space, request, closed, None).ok()
        });
        self.space.undo_to(mark);
        placed
    }

    /// The domains the job could go to if everybody left who may be asked.
    fn domains(&mut self, job: &Pending) -> Vec<Candidate> {
        let layout = std::sync::Arc::clone(&self.space.layout);
        let within = job.spec.placement.within.iter();
        let required = within.filter(|w| w.strength == Strength::Required);
        let levels = required.filter_map(|w| layout.level(&w.level));
        let narrowest = levels.max_by_key(|(_, depth)| *depth);
        let mut found = Vec::new();
        let levels: Vec<(usize, usize)> = match narrowest {
            Some(level) => vec![level],
            None => {
                let depths = layout.trees.first().map_or(0, |t| t.levels.len());
                (0..depths).rev().map(|depth| (0, depth)).collect()
            }
        };
        for (width, (tree, depth)) in levels.iter().enumerate() {
            let level = &layout.trees[*tree].levels[*depth];
            let mut insides = vec![NodeSet::new(layout.len()); level.domains.len()];
            for (node, domain) in (0u32..).zip(&level.of) {
                if let Some(inside) = insides.get_mut(*domain as usize) {
                    inside.insert(node);
                }
            }
            let large = |inside: &NodeSet| inside.count() >= self.need.nodes;
            let insides: Vec<NodeSet> = insides.into_iter().filter(large).collect();
            found.extend(insides.into_iter().filter_map(|inside| self.weigh(inside, width)));
        }
        if narrowest.is_none() {
            let all = NodeSet::all(layout.len());
            found.extend(self.weigh(all, levels.len()));
        }
        found
    }

    /// Counts whether a domain can be freed, and about what that costs.
    fn weigh(&mut self, inside: NodeSet, width: usize) -> Option<Candidate> {
        let mut closed = NodeSet::all(inside.len());
        closed.subtract(&inside);
        closed.union(&self.closed);
        let mut victims: Vec<(u128, usize)> = Vec::new();
        for v in 0..self.victims.len() {
            let touches = self.victims[v].taken.iter().any(|t| !closed.contains(t.node));
            let gain = if touches { self.gain(v, &inside, &closed) } else { 0 };
            if gain > 0 {
                let cost = u128::from(self.victims[v].cost) + 1;
                victims.push((cost * 1_000 / u128::from(gain), v));
            }
        }
        victims.sort_unstable();
        let mut fitting = self.fitting(&inside, &closed);
        let mark = self.space.mark();
        let (mut estimate, mut suffices) = (0u64, 0);
        for (i, (_, v)) in victims.iter().enumerate() {
            if fitting >= self.need.nodes {
                break;
            }
            suffices = i + 1;
            estimate = estimate.saturating_add(self.victims[*v].cost);
            for t in self.freed(*v, Some(&inside)) {
                let counts = !closed.contains(t.node);
                let before = counts && self.need.fits(&self.space, t.node);
                self.space.give(&t);
                fitting += u32::from(counts && !before && self.need.fits(&self.space, t.node));
            }
        }
        self.space.undo_to(mark);
        if fitting < self.need.nodes {
            return None;
        }
        let keep = (2 * suffices).max(VICTIMS_MIN);
        let victims = victims.into_iter().take(keep).map(|(_, v)| v).collect();
        let first = inside.iter().next().unwrap_or(0);
        Some(Candidate { closed, inside, victims, estimate, width, first })
    }

    fn fitting(&self, inside: &NodeSet, closed: &NodeSet) -> u32 {
        let fits = |n: &u32| !closed.contains(*n) && self.need.fits(&self.space, *n);
        u32::try_from(inside.iter().filter(fits).count()).unwrap_or(u32::MAX)
    }

    fn gain(&self, victim: usize, inside: &NodeSet, closed: &NodeSet) -> u64 {
        let freed = self.freed(victim, Some(inside));
        let here = freed.iter().filter(|t| !closed.contains(t.node));
        here.map(|t| self.need.gain(&self.space, t)).sum()
    }

    /// The cheapest set of victims that frees the domain.
    fn free_up(&mut self, domain: &Candidate) -> Option<Plan> {
        let mut chosen = self.greedy(domain)?;
        // Who became unnecessary is let off again, the dearest first.
        let mut by_cost = chosen.clone();
        by_cost.sort_by_key(|v| (std::cmp::Reverse(self.victims[*v].cost), *v));
        for v in by_cost {
            let without: Vec<usize> = chosen.iter().copied().filter(|c| *c != v).collect();
            if self.try_set(&without, Some(&domain.inside), &domain.closed).is_some() {
                chosen = without;
            }
        }
        if domain.victims.len() <= EXACT_MAX {
            chosen = self.exact(domain, chosen);
        }
        chosen.sort_unstable();
        let placed = self.try_set(&chosen, Some(&domain.inside), &domain.closed)?;
        let cost = self.cost(&chosen);
        Some(Plan { victims: chosen, placed, cost, moved_to: Vec::new() })
    }

    fn cost(&self, set: &[usize]) -> u64 {
        set.iter().fold(0, |sum, v| sum.saturating_add(self.victims[*v].cost))
    }

    /// One after the other the one that frees most for its cost, until the job fits.
    fn greedy(&mut self, domain: &Candidate) -> Option<Vec<usize>> {
        let mark = self.space.mark();
        let mut left = domain.victims.clone();
        let mut chosen = Vec::new();
        let mut fits = false;
        loop {
            let enough = self.fitting(&domain.inside, &domain.closed) >= self.need.nodes;
            if enough {
                let kept: Vec<&Kept> = self.kept.iter().collect();
                let (request, closed) = (&self.request, &domain.closed);
                fits = super::super::future::without(&mut self.space, &kept, |space| {
                    placement::place(space, request, closed, None).is_ok()
                });
                if fits {
                    break;
                }
            }
            let worth = |v: &usize| {
                let gain = self.gain(*v, &domain.inside, &domain.closed);
                // Once the count is right it is the shape that is missing: any node may help.
                let gain = if enough { gain.max(1) } else { gain };
                let cost = u128::from(self.victims[*v].cost) + 1;
                (gain > 0).then(|| (cost * 1_000 / u128::from(gain), *v))
            };
            let Some((_, best)) = left.iter().filter_map(worth).min() else { break };
            left.retain(|v| *v != best);
            let freed = self.freed(best, Some(&domain.inside));
            freed.iter().for_each(|t| self.space.give(t));
            chosen.push(best);
        }
        self.space.undo_to(mark);
        fits.then_some(chosen)
    }

    /// Every set that costs less than the one that is known, cheapest first.
    fn exact(&mut self, domain: &Candidate, known: Vec<usize>) -> Vec<usize> {
        let victims = &domain.victims;
        let bound = (self.cost(&known), known.len());
        let mut sets: Vec<(u64, usize, Vec<usize>)> = (1u32..1 << victims.len())
            .map(|bits| {
                let set = (0..victims.len()).filter(|i| bits >> i & 1 == 1).map(|i| victims[i]);
                let set: Vec<usize> = set.collect();
                (self.cost(&set), set.len(), set)
            })
            .filter(|(cost, len, _)| (*cost, *len) < bound)
            .collect();
        sets.sort();
        let mut tried = 0;
        for (_, _, set) in sets {
            if tried == SETS_MAX {
                break;
            }
            let mark = self.space.mark();
            let freed: Vec<Taken> =
                set.iter().flat_map(|v| self.freed(*v, Some(&domain.inside))).collect();
            freed.iter().for_each(|t| self.space.give(t));
            let enough = self.fitting(&domain.inside, &domain.closed) >= self.need.nodes;
            self.space.undo_to(mark);
            if !enough {
                continue;
            }
            tried += 1;
            if self.try_set(&set, Some(&domain.inside), &domain.closed).is_some() {
                return set;
            }
        }
        known
    }
}
