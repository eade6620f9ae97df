//! Gangs of alike nodes whose bonds all lie along the first fabric, or say only that everything is
//! inside one domain of another: nearly all there are. Their answers are always exact.

use super::bonds::domain;
use super::nodes::NodeSet;
use super::request::{At, Request};
use super::search::Part;
use super::space::{NOWHERE, Space};
use super::span::{self, Division, Outcome, Shape, Window};

/// What [`divide`](span::divide) is to be asked, in turn.
pub(super) struct Plain {
    root: usize,
    /// Levels of other fabrics that everything has to share.
    elsewhere: Vec<At>,
    unit: Vec<u32>,
    /// Innermost slices in domains that are smaller than the first fabric's narrowest.
    inner: Option<(u32, At)>,
    share: Share,
    at_most: Vec<(u32, usize)>,
}

#[derive(Clone, Copy)]
enum Share {
    Free,
    Balance(usize),
    Spread { level: usize, skew: u32 },
}

/// The best of all divisions, with the nodes it is about.
pub(super) struct Best {
    division: Division,
    region: NodeSet,
}

pub(super) enum Answer {
    Best(Best),
    /// Proven.
    None,
    /// For another search to decide.
    Undecided,
}

impl Plain {
    /// `None` where bonds combine in a way that needs a search.
    pub fn of(space: &Space, request: &Request) -> Option<Self> {
        let [role] = &request.roles[..] else { return None };
        let levels = space.layout.runs.len();
        let first = |at: At| (at.tree == 0).then_some(at.depth + 1);
        let bonds = &request.bonds;
        let root = bonds.within.iter().copied().filter_map(first).max().unwrap_or(0);
        let elsewhere = bonds.within.iter().copied().filter(|at| at.tree > 0).collect();
        let mut plain = Self {
            root,
            elsewhere,
            unit: vec![1; levels + 1],
            inner: None,
            share: Share::Free,
            at_most: Vec::new(),
        };
        let mut outer = 0;
        for (size, at) in &role.bonds.slices {
            match first(*at) {
                // Inside a wider slice of a domain no wider: it holds by itself.
                Some(level) if level <= outer && outer > 0 => {}
                Some(level) if plain.inner.is_none() => {
                    plain.unit[outer + 1..=level].fill(*size);
                    if outer == 0 {
                        plain.unit[0] = *size;
                    }
                    outer = level;
                }
                None if plain.inner.is_none() && space.layout.trees[at.tree].nested[at.depth] => {
                    if outer == 0 {
                        plain.unit[0] = *size;
                    }
                    plain.unit[outer + 1..].fill(*size);
                    plain.inner = Some((*size, *at));
                    outer = levels;
                }
                _ => return None,
            }
        }
        for (most, at) in &bonds.at_most {
            plain.at_most.push((*most, first(*at)?));
        }
        // In one domain of a level as wide or wider all are together anyway.
        let narrower = |level: usize| level > root;
        if let Some(level) = bonds.balance.map(first) {
            plain.share = if narrower(level?) { Share::Balance(level?) } else { Share::Free };
        }
        for (skew, at) in &bonds.spread {
            let level = first(*at)?;
            if !narrower(level) {
                continue;
            }
            let wider_slices = role
                .bonds
                .slices
                .iter()
                .any(|(size, at)| *size > 1 && first(*at).is_some_and(|slice| slice < level));
            if wider_slices || !matches!(plain.share, Share::Free) {
                return None;
            }
            plain.share = Share::Spread { level, skew: *skew };
        }
        Some(plain)
    }

    pub fn best(&self, space: &Space, request: &Request, fits: &NodeSet) -> Answer {
        let mut best: Option<Best> = None;
        let need = request.roles[0].nodes.saturating_add(request.spares);
        for region in self.regions(space, fits, need) {
            let fitting = span::count(&space.layout, &region);
            let leaves = self.inner.map(|(size, at)| leaves(space, &region, size, at));
            for shape in self.shapes(space, request, &fitting) {
                match span::divide(&space.layout, &fitting, leaves.as_deref(), &shape) {
                    Outcome::Undecided => return Answer::Undecided,
                    Outcome::None => {}
                    Outcome::Found(division) => {
                        let better = best.as_ref().is_none_or(|b| {
                            let of = |d: &Division| (d.span.clone(), d.tightness);
                            of(&division) < of(&b.division)
                        });
                        if better {
                            best = Some(Best { division, region: region.clone() });
                        }
                    }
                }
            }
        }
        best.map_or(Answer::None, Answer::Best)
    }

    /// Sets of fitting nodes one of which has to hold everything.
    fn regions(&self, space: &Space, fits: &NodeSet, need: u32) -> Vec<NodeSet> {
        let mut regions = vec![fits.clone()];
        for at in &self.elsewhere {
            let domains = space.layout.trees[at.tree].levels[at.depth].domains.len();
            let mut next = Vec::new();
            for region in regions {
                let mut counts = vec![0u32; domains];
                region.iter().for_each(|n| counts[domain(space, *at, n) as usize] += 1);
                let mut parts: Vec<Option<NodeSet>> = counts
                    .iter()
                    .map(|count| (*count >= need).then(|| NodeSet::new(space.len())))
                    .collect();
                for node in region.iter() {
                    if let Some(part) = &mut parts[domain(space, *at, node) as usize] {
                        part.insert(node);
                    }
                }
                next.extend(parts.into_iter().flatten());
            }
            regions = next;
        }
        regions
    }

    /// Domains of a level with a fitting node, in the root with the fewest of them.
    fn fewest_eligible(
        &self,
        space: &Space,
        level: usize,
        fitting: &[Vec<u32>],
        nodes: u32,
    ) -> u32 {
        let runs = &space.layout.runs;
        let within = |root: usize| {
            let all = 0..space.len() as u32;
            let range = match self.root {
                0 => all,
                depth => runs[depth - 1][root].first..runs[depth - 1][root].end,
            };
            let inside = runs[level - 1].iter().zip(&fitting[level]);
            inside.filter(|(r, n)| range.contains(&r.first) && **n > 0).count() as u32
        };
        let roots = (0..fitting[self.root].len()).filter(|r| fitting[self.root][*r] >= nodes);
        roots.map(within).min().unwrap_or(1).max(1)
    }

    fn shapes(&self, space: &Space, request: &Request, fitting: &[Vec<u32>]) -> Vec<Shape> {
        let nodes = request.roles[0].nodes;
        let shape = |unit: Vec<u32>, window| Shape {
            nodes,
            beside: request.spares,
            root: self.root,
            unit,
            window,
            at_most: self.at_most.clone(),
        };
        match self.share {
            Share::Free => vec![shape(self.unit.clone(), None)],
            Share::Balance(level) => {
                let sizes = (1..=nodes)
                    .filter(|c| nodes.is_multiple_of(*c) && c.is_multiple_of(self.unit[level]))
                    .filter(|c| nodes / c <= fitting[level].len() as u32);
                let mut shapes = Vec::new();
                for each in sizes {
                    let mut unit = self.unit.clone();
                    unit[..=level].iter_mut().for_each(|u| *u = lcm(*u, each));
                    // Slices that would have to be larger than the gang.
                    if unit[0] > nodes {
                        continue;
                    }
                    let window = Window { level, least: each, most: each, all: false };
                    shapes.push(shape(unit, Some(window)));
                }
                shapes
            }
            Share::Spread { level, skew } => {
                let of_unit = |n: u32| n / self.unit[level] * self.unit[level];
                let mut shapes = Vec::new();
                let window = Window { level, least: 0, most: of_unit(skew), all: false };
                if window.most > 0 {
                    shapes.push(shape(self.unit.clone(), Some(window)));
                }
                // Each domain with a fitting node takes part, with at least so many nodes.
                let mut least = self.unit[level];
                while least <= nodes / self.fewest_eligible(space, level, fitting, nodes) {
                    let most = of_unit(least.saturating_add(skew));
                    let window = Window { level, least, most, all: true };
                    shapes.push(shape(self.unit.clone(), Some(window)));
                    least += self.unit[level];
                }
                shapes
            }
        }
    }

    /// Whether the domains that a division shares have enough fitting nodes for spares, too.
    pub fn room_beside(
        &self,
        space: &Space,
        request: &Request,
        fits: &NodeSet,
        best: &Best,
    ) -> bool {
        let Some(one) = self.parts(space, best).first().map(|p| p.nodes[0]) else { return true };
        let within = &request.bonds.within;
        let near = |n: &u32| within.iter().all(|w| domain(space, *w, *n) == domain(space, *w, one));
        let need = request.roles[0].nodes.saturating_add(request.spares) as usize;
        request.spares == 0 || fits.iter().filter(near).count() >= need
    }

    /// The division as parts in rank order.
    pub fn parts(&self, space: &Space, best: &Best) -> Vec<Part> {
        let runs = space.layout.runs.last();
        let mut parts = Vec::new();
        for (run, count) in &best.division.parts {
            let (first, end) = match runs {
                Some(runs) => (runs[*run as usize].first, runs[*run as usize].end),
                None => (0, space.len() as u32),
            };
            let nodes: Vec<u32> = best.region.iter_in(first, end).collect();
            match self.inner {
                None => parts.push(Part { role: 0, nodes, count: *count }),
                Some((size, at)) => parts.extend(inner(space, nodes, *count, size, at)),
            }
        }
        parts
    }
}

impl Best {
    pub fn span(&self) -> &[u32] {
        &self.division.span
    }
}

/// What each narrowest run can host in slices inside domains smaller than it.
fn leaves(space: &Space, region: &NodeSet, size: u32, at: At) -> Vec<u32> {
    let domains = space.layout.trees[at.tree].levels[at.depth].domains.len();
    let mut counts = vec![0u32; domains];
    let mut touched: Vec<u32> = Vec::new();
    let mut hosted = |first: u32, end: u32| {
        for node in region.iter_in(first, end) {
            let domain = domain(space, at, node);
            if domain != NOWHERE {
                counts[domain as usize] += 1;
                touched.push(domain);
            }
        }
        let mut sum = 0;
        for domain in touched.drain(..) {
            sum += std::mem::take(&mut counts[domain as usize]) / size * size;
        }
        sum
    };
    match space.layout.runs.last() {
        Some(runs) => runs.iter().map(|r| hosted(r.first, r.end)).collect(),
        None => vec![hosted(0, space.len() as u32)],
    }
}

/// A narrowest domain's nodes divided over the smaller domains inside it: as few as can be.
fn inner(space: &Space, nodes: Vec<u32>, count: u32, size: u32, at: At) -> Vec<Part> {
    let mut groups: Vec<(u32, Vec<u32>)> = Vec::new();
    for node in nodes {
        let of = domain(space, at, node);
        match groups.iter_mut().find(|(d, _)| *d == of) {
            Some((_, members)) => members.push(node),
            None => groups.push((of, vec![node])),
        }
    }
    let sizes: Vec<u32> = groups.iter().map(|(_, m)| m.len() as u32 / size * size).collect();
    let chosen = span::tightest(&sizes, count, size);
    let part =
        |(i, count): (usize, u32)| Part { role: 0, nodes: std::mem::take(&mut groups[i].1), count };
    chosen.into_iter().map(part).collect()
}

fn lcm(a: u32, b: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (a / gcd(a, b)).saturating_mul(b)
}
