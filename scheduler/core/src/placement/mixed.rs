//! Gangs whose bonds combine so that no table answers them: several roles, levels of several
//! fabrics, spread together with slices. Branch and bound within a budget.
//!
//! Nodes that no bond and no role tells apart form an *atom*; a placement is a number of nodes from
//! each atom for each role. Roles are placed one after the other, the scarcest first; slices of one
//! size are interchangeable, so they are filled in one order only. The divisions of each role alone
//! give a bound from below: reaching it is a proof, and they say where to look first. Used up, the
//! budget leaves what was found without a proof, or no answer.

use std::collections::BTreeMap;

use super::bonds::domain;
use super::nodes::NodeSet;
use super::plain::{Answer, Plain};
use super::request::{At, Bonds, Request};
use super::search::Part;
use super::space::Space;
use super::span::{self, Outcome, Shape};

/// Atoms looked at before giving up: some milliseconds.
const WORK_MAX: u64 = 1_500_000;

pub(super) enum Verdict {
    Found {
        parts: Vec<Part>,
        proven: bool,
    },
    /// Everything was tried.
    None,
    NotFound {
        tried: u64,
    },
}

struct Atom {
    nodes: Vec<u32>,
    left: u32,
    /// Roles that fit, as bits.
    roles: u64,
    /// Its run at each level of the first fabric, widest first.
    runs: Vec<u32>,
    /// Its domain at each of the search's levels.
    domains: Vec<u32>,
}

/// A bond over a level that counts nodes.
struct Limit {
    /// Roles whose nodes it counts, as bits.
    roles: u64,
    /// Into the search's levels.
    level: usize,
    rule: Rule,
    /// Nodes by domain.
    counts: Vec<u32>,
    used: u32,
    /// Nodes it will count in the end.
    total: u32,
}

enum Rule {
    /// All in one domain.
    Within,
    AtMost(u32),
    /// The number each used domain gets; tried one after the other.
    Balance(u32),
    Spread {
        skew: u32,
        eligible: Vec<u32>,
    },
}

struct Search<'a> {
    request: &'a Request,
    /// Of the region at hand, in the order they are tried.
    atoms: Vec<Atom>,
    limits: Vec<Limit>,
    /// Roles in the order they are placed.
    order: Vec<usize>,
    /// For each role, its slices: size and level, widest first.
    slices: Vec<Vec<(u32, usize)>>,
    /// For each slice being filled: the first atom of it, and its domain.
    open: Vec<(usize, u32)>,
    taken: Vec<(usize, usize, u32)>,
    /// Nodes by level and run, and how many runs are used by level.
    visits: Vec<Vec<u32>>,
    span: Vec<u32>,
    least: Vec<u32>,
    best: Option<(Vec<u32>, Vec<Part>)>,
    work: u64,
    tried: u64,
}

/// `fits` by role; that the nodes suffice by number has been seen to.
pub(super) fn search(space: &Space, request: &Request, fits: &[NodeSet]) -> Verdict {
    let mut levels: Vec<At> = request.bonds.levels().collect();
    levels.extend(request.roles.iter().flat_map(|r| r.bonds.levels()));
    levels.sort_unstable();
    levels.dedup();
    let at = |level: At| levels.binary_search(&level).expect("every bond's level is listed");
    let (least, near) = lower_bound(space, request, fits);
    let slices = |b: &Bonds| b.slices.iter().map(|(size, level)| (*size, at(*level))).collect();
    let mut order: Vec<usize> = (0..request.roles.len()).collect();
    let slack = |r: &usize| fits[*r].count().saturating_sub(request.roles[*r].nodes);
    order.sort_by_key(|r| (slack(r), *r));
    let runs = &space.layout.runs;
    let mut search = Search {
        request,
        atoms: Vec::new(),
        limits: Vec::new(),
        order,
        slices: request.roles.iter().map(|r| slices(&r.bonds)).collect(),
        open: Vec::new(),
        taken: Vec::new(),
        visits: runs.iter().map(|r| vec![0; r.len()]).collect(),
        span: vec![0; runs.len()],
        least,
        best: None,
        work: 0,
        tried: 0,
    };
    let mut regions: BTreeMap<Vec<u32>, Vec<Atom>> = BTreeMap::new();
    for atom in atoms(space, fits, &levels) {
        let key = request.bonds.within.iter().map(|w| atom.domains[at(*w)]).collect();
        regions.entry(key).or_default().push(atom);
    }
    let distance = |atom: &Atom| {
        let shared = (0..runs.len()).rev().find(|l| near[*l].contains(&atom.runs[*l]));
        shared.map_or(runs.len(), |l| runs.len() - 1 - l)
    };
    for atoms in regions.into_values() {
        search.atoms = atoms;
        if !search.suffices() {
            continue;
        }
        // Nodes that suit few roles go first, so that the others stay for those that need them.
        search.atoms.sort_by_cached_key(|a| {
            (distance(a), a.runs.clone(), a.roles.count_ones(), a.nodes[0])
        });
        search.limits = limits(space, request, &search.atoms, &at);
        if search.balanced(0) {
            break;
        }
    }
    let spent = search.work > WORK_MAX;
    match search.best {
        Some((span, parts)) => Verdict::Found { parts, proven: !spent || span == search.least },
        None if spent => Verdict::NotFound { tried: search.tried },
        None => Verdict::None,
    }
}

/// Nodes that nothing tells apart, in the order of their first ones.
fn atoms(space: &Space, fits: &[NodeSet], levels: &[At]) -> Vec<Atom> {
    let mut any = fits[0].clone();
    fits.iter().for_each(|f| any.union(f));
    let runs = &space.layout.runs;
    let mut at = vec![0usize; runs.len()];
    let mut atoms: Vec<Atom> = Vec::new();
    let (mut fresh, mut end) = (0, 0);
    for node in any.iter() {
        for (level, at) in at.iter_mut().enumerate() {
            while runs[level][*at].end <= node {
                *at += 1;
            }
        }
        if let (Some(at), Some(runs)) = (at.last(), runs.last())
            && node >= end
        {
            (fresh, end) = (atoms.len(), runs[*at].end);
        }
        let roles = (0..).zip(fits).filter(|(_, f)| f.contains(node));
        let roles = roles.fold(0u64, |mask, (r, _)| mask | 1 << r);
        let same = |a: &&mut Atom| {
            let here = |(at, d): (&At, &u32)| domain(space, *at, node) == *d;
            a.roles == roles && levels.iter().zip(&a.domains).all(here)
        };
        if let Some(atom) = atoms[fresh..].iter_mut().find(same) {
            atom.nodes.push(node);
            atom.left += 1;
        } else {
            atoms.push(Atom {
                nodes: vec![node],
                left: 1,
                roles,
                runs: at.iter().map(|at| *at as u32).collect(),
                domains: levels.iter().map(|at| domain(space, *at, node)).collect(),
            });
        }
    }
    atoms
}

fn limits(
    space: &Space,
    request: &Request,
    atoms: &[Atom],
    at: &dyn Fn(At) -> usize,
) -> Vec<Limit> {
    let mut limits = Vec::new();
    let all = (0..request.roles.len()).fold(0u64, |mask, r| mask | 1 << r);
    let scopes = request.roles.iter().enumerate().map(|(r, role)| (1 << r, &role.bonds));
    for (roles, bonds) in std::iter::once((all, &request.bonds)).chain(scopes) {
        let of = |r: &usize| roles >> r & 1 == 1;
        let total = (0..request.roles.len()).filter(of).map(|r| request.roles[r].nodes).sum();
        let mut limit = |level: At, rule| {
            let domains = space.layout.trees[level.tree].levels[level.depth].domains.len();
            let (level, counts) = (at(level), vec![0; domains]);
            limits.push(Limit { roles, level, rule, counts, used: 0, total });
        };
        // The job's own are what a region is.
        if roles != all || request.roles.len() == 1 {
            bonds.within.iter().for_each(|w| limit(*w, Rule::Within));
        }
        bonds.at_most.iter().for_each(|(most, level)| limit(*level, Rule::AtMost(*most)));
        for (skew, level) in &bonds.spread {
            let fitting = atoms.iter().filter(|a| a.roles & roles != 0);
            let mut eligible: Vec<u32> = fitting.map(|a| a.domains[at(*level)]).collect();
            eligible.sort_unstable();
            eligible.dedup();
            limit(*level, Rule::Spread { skew: *skew, eligible });
        }
        if let Some(level) = bonds.balance {
            limit(level, Rule::Balance(0));
        }
    }
    limits
}

/// What the span is at least, and the runs of each level in which it would be that.
fn lower_bound(space: &Space, request: &Request, fits: &[NodeSet]) -> (Vec<u32>, Vec<Vec<u32>>) {
    let runs = &space.layout.runs;
    let mut bound = (vec![0; runs.len()], vec![Vec::new(); runs.len()]);
    let mut consider = |span: Vec<u32>, nodes: &[u32]| {
        if span > bound.0 {
            let at = |level: usize| {
                let run = |n: &u32| runs[level].partition_point(|r| r.end <= *n) as u32;
                nodes.iter().map(run).collect()
            };
            bound = (span, (0..runs.len()).map(at).collect());
        }
    };
    for (role, fits) in request.roles.iter().zip(fits) {
        // The role alone, under those bonds that a table can answer.
        let mut alone = request.clone();
        let mut role = role.clone();
        let own = std::mem::take(&mut role.bonds);
        alone.bonds = Bonds { within: request.bonds.within.clone(), ..Bonds::default() };
        alone.bonds.within.extend(own.within);
        role.bonds.slices = own.slices;
        alone.spares = 0;
        alone.roles = vec![role];
        let plain = Plain::of(space, &alone).or_else(|| {
            alone.roles[0].bonds.slices.clear();
            Plain::of(space, &alone)
        });
        if let Some(plain) = plain
            && let Answer::Best(best) = plain.best(space, &alone, fits)
        {
            let parts = plain.parts(space, &best);
            let nodes: Vec<u32> = parts.iter().map(|p| p.nodes[0]).collect();
            consider(best.span().to_vec(), &nodes);
        }
    }
    // All together, as if every node fitted every role.
    let mut any = fits[0].clone();
    fits.iter().for_each(|f| any.union(f));
    let unit = vec![1; runs.len() + 1];
    let (nodes, beside) = (request.nodes(), 0);
    let shape = Shape { nodes, beside, root: 0, unit, window: None, at_most: Vec::new() };
    let fitting = span::count(&space.layout, &any);
    if let (Outcome::Found(division), Some(narrowest)) =
        (span::divide(&space.layout, &fitting, None, &shape), runs.last())
    {
        let parts = division.parts.iter().map(|(run, _)| narrowest[*run as usize].first);
        let nodes: Vec<u32> = parts.collect();
        consider(division.span, &nodes);
    }
    bound
}

impl Search<'_> {
    /// Whether the nodes of the region suffice by number: for no set of roles are there fewer nodes
    /// that suit any of them than they need together.
    fn suffices(&self) -> bool {
        let roles = self.request.roles.len();
        let singles = (0..roles).map(|r| 1u64 << r);
        let all = (1u64 << (roles - 1) << 1).wrapping_sub(1);
        let few = if roles <= 6 { 1..1u64 << roles } else { 0..0 };
        singles.chain([all]).chain(few).all(|set| {
            let needs = (0..roles).filter(|r| set >> r & 1 == 1);
            let needs = needs.map(|r| {
                let spares = if r == 0 { self.request.spares } else { 0 };
                u64::from(self.request.roles[r].nodes) + u64::from(spares)
            });
            let have = self.atoms.iter().filter(|a| a.roles & set != 0).map(|a| u64::from(a.left));
            needs.sum::<u64>() <= have.sum::<u64>()
        })
    }

    /// Tries each number of nodes a domain for each balanced level, then dives. True: enough.
    fn balanced(&mut self, from: usize) -> bool {
        let rule = |l: &Limit| matches!(l.rule, Rule::Balance(_));
        let Some(at) = (from..self.limits.len()).find(|i| rule(&self.limits[*i])) else {
            return self.dive(0, 0, 0);
        };
        let total = self.limits[at].total;
        for each in (1..=total).rev().filter(|each| total.is_multiple_of(*each)) {
            self.limits[at].rule = Rule::Balance(each);
            if self.balanced(at + 1) {
                return true;
            }
        }
        false
    }

    /// Places what is left of the `r`th role to be placed, from `offset` on; atoms before `lower`
    /// are done with. True: enough, the best is known or the budget is spent.
    fn dive(&mut self, r: usize, offset: u32, lower: usize) -> bool {
        self.tried += 1;
        self.work += self.atoms.len() as u64 + 1;
        if self.work > WORK_MAX {
            return true;
        }
        if self.best.as_ref().is_some_and(|(span, _)| self.span >= *span) || !self.can_even_out() {
            return false;
        }
        let role = self.order[r];
        let nodes = self.request.roles[role].nodes;
        if offset == nodes {
            if r + 1 == self.order.len() {
                return self.complete();
            }
            let open = std::mem::take(&mut self.open);
            let enough = self.dive(r + 1, 0, 0);
            self.open = open;
            return enough;
        }
        let slices = self.slices[role].clone();
        let unit = slices.last().map_or(nodes, |s| s.0);
        let rest = unit - offset % unit;
        // The slices that begin here, from the outermost that does.
        let begins = slices.iter().position(|(size, _)| offset.is_multiple_of(*size));
        let begins = begins.unwrap_or(slices.len());
        let starts = offset.is_multiple_of(unit);
        let lower = match (starts, offset) {
            (false, _) => lower,
            (true, 0) => 0,
            // Slices of one size are ordered by their first atoms.
            (true, _) => self.open.get(begins).map_or(0, |o| o.0),
        };
        let inside = |search: &Self, a: usize| {
            let atom = &search.atoms[a];
            atom.left > 0
                && atom.roles >> role & 1 == 1
                && (slices[..begins].iter().zip(&search.open))
                    .all(|((_, level), open)| atom.domains[*level] == open.1)
        };
        let left = (lower..self.atoms.len()).filter(|a| inside(self, *a));
        if left.map(|a| u64::from(self.atoms[a].left)).sum::<u64>() < u64::from(rest) {
            return false;
        }
        for a in lower..self.atoms.len() {
            if !inside(self, a) {
                continue;
            }
            let kept = self.open.clone();
            if starts {
                self.open.truncate(begins);
                for (_, level) in &slices[begins..] {
                    self.open.push((a, self.atoms[a].domains[*level]));
                }
            }
            for count in (1..=self.room(role, a).min(rest)).rev() {
                self.put(role, a, count);
                let enough = self.dive(r, offset + count, a + 1);
                self.take_back(role, a, count);
                if enough {
                    self.open = kept;
                    return true;
                }
            }
            self.open = kept;
        }
        false
    }

    /// How many nodes of an atom a role may take now.
    fn room(&self, role: usize, atom: usize) -> u32 {
        let atom = &self.atoms[atom];
        let mut room = atom.left;
        for limit in self.limits.iter().filter(|l| l.roles >> role & 1 == 1) {
            let here = limit.counts[atom.domains[limit.level] as usize];
            room = room.min(match &limit.rule {
                Rule::Within if here == 0 && limit.used > 0 => 0,
                Rule::AtMost(most) if here == 0 && limit.used >= *most => 0,
                Rule::Within | Rule::AtMost(_) => room,
                Rule::Balance(each) if here == 0 && limit.used >= limit.total / each => 0,
                Rule::Balance(each) => each.saturating_sub(here),
                // In one domain that its role requires there may be just one of these.
                Rule::Spread { .. } if self.own_domains(limit).next().is_some() => room,
                Rule::Spread { skew, eligible } => {
                    // The emptiest of so many domains has no more than their mean.
                    (limit.total / eligible.len().max(1) as u32 + skew).saturating_sub(here)
                }
            });
        }
        room
    }

    fn put(&mut self, role: usize, atom: usize, count: u32) {
        self.taken.push((role, atom, count));
        let atom = &mut self.atoms[atom];
        atom.left -= count;
        for (level, run) in atom.runs.iter().enumerate() {
            let visits = &mut self.visits[level][*run as usize];
            self.span[level] += u32::from(*visits == 0);
            *visits += count;
        }
        for limit in self.limits.iter_mut().filter(|l| l.roles >> role & 1 == 1) {
            let here = &mut limit.counts[atom.domains[limit.level] as usize];
            limit.used += u32::from(*here == 0);
            *here += count;
        }
    }

    fn take_back(&mut self, role: usize, atom: usize, count: u32) {
        self.taken.pop();
        let atom = &mut self.atoms[atom];
        atom.left += count;
        for (level, run) in atom.runs.iter().enumerate() {
            let visits = &mut self.visits[level][*run as usize];
            *visits -= count;
            self.span[level] -= u32::from(*visits == 0);
        }
        for limit in self.limits.iter_mut().filter(|l| l.roles >> role & 1 == 1) {
            let here = &mut limit.counts[atom.domains[limit.level] as usize];
            *here -= count;
            limit.used -= u32::from(*here == 0);
        }
    }

    /// Whether the nodes still to come could bring every domain up to what a spread asks.
    fn can_even_out(&self) -> bool {
        self.limits.iter().all(|limit| {
            let Rule::Spread { skew, .. } = &limit.rule else { return true };
            let most = limit.counts.iter().max().copied().unwrap_or(0);
            let floor = most.saturating_sub(*skew);
            let placed: u32 = limit.counts.iter().sum();
            let lacking: u32 =
                self.takes_part(limit).iter().map(|d| floor.saturating_sub(limit.counts[*d])).sum();
            lacking <= limit.total - placed
        })
    }

    /// Domains that a spread is over: where its role has required domains of its own, only what
    /// lies in those that it uses.
    fn takes_part(&self, limit: &Limit) -> Vec<usize> {
        let Rule::Spread { eligible, .. } = &limit.rule else { return Vec::new() };
        let own: Vec<&Limit> = self.own_domains(limit).filter(|l| l.used > 0).collect();
        let mut domains: Vec<usize> = eligible.iter().map(|d| *d as usize).collect();
        if !own.is_empty() {
            domains.retain(|d| {
                self.atoms.iter().any(|a| {
                    a.roles & limit.roles != 0
                        && a.domains[limit.level] as usize == *d
                        && own.iter().all(|w| w.counts[a.domains[w.level] as usize] > 0)
                })
            });
        }
        domains
    }

    /// Domains that the role of a limit requires for itself.
    fn own_domains<'b>(&'b self, limit: &'b Limit) -> impl Iterator<Item = &'b Limit> {
        let within = |l: &&Limit| matches!(l.rule, Rule::Within);
        self.limits.iter().filter(within).filter(|l| l.roles == limit.roles)
    }

    fn complete(&mut self) -> bool {
        let kept = self.limits.iter().all(|limit| match &limit.rule {
            Rule::Within | Rule::AtMost(_) => true,
            Rule::Balance(each) => limit.counts.iter().all(|c| *c == 0 || c == each),
            Rule::Spread { skew, .. } => {
                let most = limit.counts.iter().max().copied().unwrap_or(0);
                self.takes_part(limit).into_iter().all(|d| limit.counts[d] + skew >= most)
            }
        });
        let spare = self.atoms.iter().filter(|a| a.roles & 1 == 1);
        let spare = spare.map(|a| u64::from(a.left)).sum::<u64>();
        if !kept || spare < u64::from(self.request.spares) {
            return false;
        }
        let part = |(role, atom, count): &(usize, usize, u32)| Part {
            role: *role,
            nodes: self.atoms[*atom].nodes.clone(),
            count: *count,
        };
        self.best = Some((self.span.clone(), self.taken.iter().map(part).collect()));
        self.span <= self.least
    }
}
