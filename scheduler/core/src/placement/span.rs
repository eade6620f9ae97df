//! How alike nodes are divided over the first fabric so that they span the least: exactly.
//!
//! In: which nodes fit, and a [`Shape`]. Out: how many nodes each narrowest domain gives, so that
//! the gang uses the fewest domains of the widest level, then of the next, and so on; or that there
//! is no way. All nodes are alike, so a domain is a number, what it can host, and slices, balance
//! and skew only round that number. The cost of a division is a sum over the domains used, ordered
//! like a number with one digit a level, and sums keep that order: so a table "least cost to host
//! at least h nodes" can be made for a domain out of those of its parts, and its last entry is a
//! proof. Which nodes inside a narrowest domain are taken is `finish`'s work.
//!
//! A *place* of the tree is (level, run): level 0 is the whole cluster, level d + 1 is depth d of
//! the fabric.

mod counts; // what domains have and can host
mod tightest; // parts of which only the size counts

use super::space::{Layout, NOWHERE};

use counts::{Cost, Counts};

pub(super) use counts::count;
pub(super) use tightest::tightest;

/// What is asked of the division.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// To be hosted.
    pub nodes: u32,
    /// More fitting nodes that have to be in the same root, for spares.
    pub beside: u32,
    /// All inside one domain of this level; 0: of the cluster.
    pub root: usize,
    /// By level: what a domain hosts is a multiple of it.
    pub unit: Vec<u32>,
    /// Of the domains of a level.
    pub window: Option<Window>,
    /// Domains used of a level, at most.
    pub at_most: Vec<(u32, usize)>,
}

/// Limits on what each used domain of a level hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub level: usize,
    pub least: u32,
    pub most: u32,
    /// Every domain with a fitting node has to take part.
    pub all: bool,
}

/// A division: for narrowest runs, in order, how many nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Division {
    pub parts: Vec<(u32, u32)>,
    /// Domains used by level, from level 1 on.
    pub span: Vec<u32>,
    /// Fitting nodes of the narrowest domain that hosts all; fewer is tighter.
    pub tightness: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Found(Division),
    /// Proven.
    None,
    /// More than one at-most stands in each other's way: not decided here.
    Undecided,
}

/// The division of least span, with ties to the tightest domain and then to the order of nodes.
/// `leaves`: what each narrowest run can host where that is not what fits there.
pub(super) fn divide(
    layout: &Layout,
    fitting: &[Vec<u32>],
    leaves: Option<&[u32]>,
    shape: &Shape,
) -> Outcome {
    let most = |level: usize| layout.runs[level].len().min(shape.nodes as usize).max(1);
    let bits: Vec<u32> = (0..layout.runs.len()).map(|l| most(l).ilog2() + 1).collect();
    let bits_in_all = bits.iter().sum::<u32>();
    if bits_in_all <= <i32 as Cost>::BITS {
        Solver::<i32>::new(layout, fitting, leaves, shape, &bits).run()
    } else if bits_in_all <= <u64 as Cost>::BITS {
        Solver::<u64>::new(layout, fitting, leaves, shape, &bits).run()
    } else {
        Solver::<u128>::new(layout, fitting, leaves, shape, &bits).run()
    }
}

struct Solver<'a, C> {
    layout: &'a Layout,
    counts: Counts,
    shape: &'a Shape,
    /// By level: where its digits stand, and how many bits they have. Level 0 costs nothing.
    digits: Vec<(u32, u32)>,
    weight: Vec<C>,
    /// The level of which no more than so many domains may be used.
    limit: Option<(u32, usize)>,
    /// Rows of the whole cluster.
    whole: std::cell::RefCell<Option<Vec<Row<C>>>>,
}

/// At least `more` nodes beside those that are forced can be hosted at this cost.
#[derive(Debug, Clone, Copy)]
struct Step<C> {
    more: u32,
    /// Domains used of the limited level.
    limited: u32,
    cost: C,
}

/// The best root, or domain below it that hosts all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Host<C> {
    cost: C,
    fitting: u32,
    level: usize,
    run: u32,
}

impl<'a, C: Cost> Solver<'a, C> {
    fn new(
        layout: &'a Layout,
        fitting: &[Vec<u32>],
        leaves: Option<&[u32]>,
        shape: &'a Shape,
        bits: &[u32],
    ) -> Self {
        let mut digits = vec![(0, 0); bits.len() + 1];
        let mut shift = 0;
        for level in (1..=bits.len()).rev() {
            // A map of more levels than there is room for: the narrowest are not told apart.
            let room = bits[level - 1].min(C::BITS.saturating_sub(shift));
            digits[level] = (shift, room);
            shift += room;
        }
        let digit = |d: &(u32, u32)| if d.1 == 0 { C::ZERO } else { C::digit(d.0) };
        let weight = digits.iter().map(digit).collect();
        let counts = Counts::of(layout, fitting, leaves, shape);
        Self { layout, counts, shape, digits, weight, limit: None, whole: Default::default() }
    }

    fn run(mut self) -> Outcome {
        let Some(best) = self.best_root() else { return Outcome::None };
        let broken = self.broken(best.0.cost);
        let Some(limit) = broken else { return Outcome::Found(self.division(best)) };
        // The least span uses too many domains of one level: count these as well.
        self.limit = Some(limit);
        let Some(best) = self.best_root() else { return Outcome::None };
        match self.broken(best.0.cost) {
            None => Outcome::Found(self.division(best)),
            Some(_) => Outcome::Undecided,
        }
    }

    fn broken(&self, cost: C) -> Option<(u32, usize)> {
        let used = |level: usize| cost.count(self.digits[level].0, self.digits[level].1);
        self.shape.at_most.iter().copied().find(|(most, level)| used(*level) > *most)
    }

    /// Whether a sum of parts is all there is to it: no part is forced and none is limited.
    fn is_simple(&self) -> bool {
        self.limit.is_none() && !self.shape.window.is_some_and(|w| w.all)
    }

    /// The host of least cost, and domains used of the limited level.
    fn best_root(&self) -> Option<(Host<C>, u32)> {
        let (level, need) = (self.shape.root, self.shape.nodes);
        let above = (1..=level).fold(C::ZERO, |sum, l| sum + self.weight[l]);
        let mut best: Option<(Host<C>, u32)> = None;
        for run in 0..self.counts.fitting[level].len() {
            let at = run as u32;
            let named = level == 0 || self.layout.runs[level - 1][run].domain != NOWHERE;
            let room = self.counts.fitting[level][run] >= need.saturating_add(self.shape.beside);
            if !named || !room || self.counts.hosted[level][run] < need {
                continue;
            }
            let found = if self.is_simple() {
                let host = self.host(level, at, need);
                Some((Host { cost: host.cost + above, ..host }, 0))
            } else {
                self.cheapest(level, at, need).map(|step| {
                    let fitting = self.counts.fitting[level][run];
                    (Host { cost: step.cost + above, fitting, level, run: at }, step.limited)
                })
            };
            if let Some(found) = found
                && best.is_none_or(|b| found < b)
            {
                best = Some(found);
            }
        }
        best
    }

    fn division(&self, (host, limited): (Host<C>, u32)) -> Division {
        let mut parts = Vec::new();
        if self.is_simple() {
            self.split(host.level, host.run, self.shape.nodes, &mut parts);
        } else {
            self.hand_out(host.level, host.run, self.shape.nodes, limited, &mut parts);
        }
        let mut span = Vec::new();
        for level in 1..self.digits.len() {
            span.push(self.used(level, &parts));
        }
        Division { parts, span, tightness: host.fitting }
    }

    /// Domains of a level that narrowest runs lie in.
    fn used(&self, level: usize, parts: &[(u32, u32)]) -> u32 {
        let narrowest = &self.layout.runs[self.layout.runs.len() - 1];
        let runs = &self.layout.runs[level - 1];
        let (mut used, mut end) = (0, 0);
        for (part, _) in parts {
            let first = narrowest[*part as usize].first;
            if first >= end {
                used += 1;
                end = runs[runs.partition_point(|r| r.end <= first)].end;
            }
        }
        used
    }

    fn is_narrowest(&self, level: usize) -> bool {
        level == self.layout.runs.len()
    }

    fn kids(&self, level: usize, run: u32) -> std::ops::Range<usize> {
        if level == 0 {
            return 0..self.layout.runs[0].len();
        }
        let (first, end) = self.layout.kids[level - 1][run as usize];
        first as usize..end as usize
    }

    // ---- simple: costs are sums over parts that are free to take any number

    /// The narrowest domain at or below this one that hosts `need` at least cost, the cost counted
    /// from below this one. It has room for them.
    fn host(&self, level: usize, run: u32, need: u32) -> Host<C> {
        let here = |cost| {
            let fitting = self.counts.fitting[level][run as usize];
            Host { cost, fitting, level, run }
        };
        if self.is_narrowest(level) {
            return here(C::ZERO);
        }
        let (below, weight) = (level + 1, self.weight[level + 1]);
        let kids = self.kids(level, run);
        let hosted = &self.counts.hosted[below][kids.clone()];
        // One part that holds all costs one domain of the next level, and no other way so few.
        let alone = hosted.iter().zip(kids.clone()).filter(|(h, _)| **h >= need);
        let best = alone.map(|(_, kid)| self.host(below, kid as u32, need)).min();
        if let Some(best) = best {
            return Host { cost: best.cost + weight, ..best };
        }
        if self.is_narrowest(below) {
            let mut sizes = hosted.to_vec();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let (mut sum, mut cost) = (0, C::ZERO);
            for size in sizes {
                if sum >= need {
                    break;
                }
                sum += size;
                cost = cost + weight;
            }
            return here(cost);
        }
        let cost = |rows: &[Row<C>]| {
            let last = rows.last().and_then(|r| r.least.last());
            last.copied().unwrap_or(C::NEVER)
        };
        // Of the whole cluster only one question is asked, twice: what it costs, and who gets what.
        if level > 0 {
            return here(cost(&self.rows(level, run, need, need)));
        }
        let mut whole = self.whole.borrow_mut();
        here(cost(whole.get_or_insert_with(|| self.rows(level, run, need, need))))
    }

    /// Divides `need` nodes over the parts of a domain.
    fn split(&self, level: usize, run: u32, need: u32, parts: &mut Vec<(u32, u32)>) {
        let host = self.host(level, run, need);
        let (level, run) = (host.level, host.run);
        if self.is_narrowest(level) {
            parts.push((run, need));
            return;
        }
        let kids = self.kids(level, run);
        if self.is_narrowest(level + 1) {
            let hosted = &self.counts.hosted[level + 1][kids.clone()];
            let given = tightest(hosted, need, self.shape.unit[level + 1]);
            parts.extend(given.into_iter().map(|(i, n)| ((kids.start + i) as u32, n)));
            return;
        }
        let whole = if level == 0 { self.whole.take() } else { None };
        let rows = whole.unwrap_or_else(|| self.rows(level, run, need, need));
        self.follow(&rows, level, run, need, 0, parts);
    }

    // ---- in general: tables of steps

    /// Least cost to host `total` nodes in a place of the tree, counted from below it.
    fn cheapest(&self, level: usize, run: u32, total: u32) -> Option<Step<C>> {
        let forced = self.counts.forced[level][run as usize];
        let more = total.checked_sub(forced)?;
        let steps = self.steps_below(level, run, total);
        let allowed =
            |s: &&Step<C>| s.more >= more && self.limit.is_none_or(|(most, _)| s.limited <= most);
        steps.iter().filter(allowed).min_by_key(|s| (s.cost, s.limited)).copied()
    }

    /// What a domain can host at which cost, itself included, up to `total` nodes.
    fn steps(&self, level: usize, run: u32, total: u32) -> Vec<Step<C>> {
        let at = run as usize;
        let (hosted, forced) = (self.counts.hosted[level][at], self.counts.forced[level][at]);
        if hosted == 0 || hosted < forced {
            return Vec::new();
        }
        let (unit, window) = (self.shape.unit[level], self.window(level));
        let mut steps = self.steps_below(level, run, total.min(hosted));
        for step in &mut steps {
            step.cost = step.cost + self.weight[level];
            step.limited += u32::from(self.limit.is_some_and(|(_, l)| l == level));
            if let Some(window) = window {
                // Below this level nothing is forced: so far it counts all nodes.
                let all = step.more.min(window.most) / unit * unit;
                step.more = if all < window.least { u32::MAX } else { all - forced };
            } else {
                step.more = step.more / unit * unit;
            }
        }
        steps.retain(|s| s.more != u32::MAX && (s.more > 0 || forced > 0));
        thin(steps)
    }

    fn window(&self, level: usize) -> Option<Window> {
        self.shape.window.filter(|w| w.level == level)
    }

    /// The same without the domain itself and its own roundings.
    fn steps_below(&self, level: usize, run: u32, total: u32) -> Vec<Step<C>> {
        let at = run as usize;
        if self.is_narrowest(level) {
            let more = total.min(self.counts.fitting[level][at]);
            return vec![Step { more, limited: 0, cost: C::ZERO }];
        }
        let (below, kids) = (level + 1, self.kids(level, run));
        if self.is_narrowest(below) && self.is_simple() {
            let mut sizes = self.counts.hosted[below][kids].to_vec();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let (mut steps, mut sum, mut cost) = (Vec::new(), 0u32, C::ZERO);
            for size in sizes.into_iter().filter(|s| *s > 0) {
                sum = (sum + size).min(total);
                cost = cost + self.weight[below];
                steps.push(Step { more: sum, limited: 0, cost });
                if sum == total {
                    break;
                }
            }
            return steps;
        }
        let rows = self.rows(level, run, total, 0);
        let Some(last) = rows.last() else { return Vec::new() };
        let unit = self.shape.unit[below];
        let width = self.width(total, below);
        let mut steps = Vec::new();
        for (limited, row) in (0u32..).zip(last.least.chunks(width)) {
            for h in 0..width {
                let next = row.get(h + 1).copied().unwrap_or(C::NEVER);
                if row[h] < C::NEVER && row[h] < next {
                    steps.push(Step { more: h as u32 * unit, limited, cost: row[h] });
                }
            }
        }
        steps
    }

    fn width(&self, total: u32, below: usize) -> usize {
        (total / self.shape.unit[below]) as usize + 1
    }

    /// For the parts of a place one after the other, the least cost to host what they have to. Of
    /// the last row only the entries from `wanted` nodes on are asked for.
    fn rows(&self, level: usize, run: u32, total: u32, wanted: u32) -> Vec<Row<C>> {
        let (below, unit) = (level + 1, self.shape.unit[level + 1]);
        let width = self.width(total, below);
        let heights = self.limit.map_or(1, |(most, _)| most as usize + 1);
        let mut kids: Vec<usize> = self.kids(level, run).collect();
        if wanted == total && self.is_simple() && self.weight[below] > C::ZERO {
            self.leave_out(below, &mut kids, total);
        }
        let room = |kid: usize| self.counts.hosted[below][kid] as usize / unit as usize;
        // What the parts from here on can host at most: less than the rest is no use before them.
        let mut ahead: usize = kids.iter().map(|k| room(*k)).sum();
        let wanted = wanted as usize / unit as usize;
        let mut behind = 0;
        let mut rows: Vec<Row<C>> = Vec::new();
        let mut before = vec![C::NEVER; width * heights];
        before[0] = C::ZERO;
        for kid in kids {
            let steps = self.steps(below, kid as u32, total);
            let forced = self.counts.forced[below][kid] > 0;
            ahead -= room(kid);
            behind += room(kid);
            let (low, high) = (wanted.saturating_sub(ahead), width.min(behind + 1));
            let mut row = if forced { vec![C::NEVER; width * heights] } else { before.clone() };
            for step in steps.iter().filter(|_| low < high) {
                let units = ((step.more / unit) as usize).min(width - 1);
                for from in 0..heights.saturating_sub(step.limited as usize) {
                    let old = &before[from * width..(from + 1) * width];
                    let to = from + step.limited as usize;
                    let new = &mut row[to * width..(to + 1) * width];
                    let least = old[0] + step.cost;
                    // Up to `units` this part hosts all.
                    for cell in new[..units].iter_mut().skip(low) {
                        *cell = least.min(*cell);
                    }
                    let first = units.max(low);
                    let olds = &old[first - units..];
                    for (cell, old) in new[..high.max(first)][first..].iter_mut().zip(olds) {
                        *cell = (*old + step.cost).min(*cell);
                    }
                }
            }
            rows.push(Row { kid: kid as u32, steps, least: row });
            before.clone_from(&rows[rows.len() - 1].least);
        }
        rows
    }

    /// Leaves out the parts that cannot be among the fewest that hold `need`: the others that would
    /// have to be with them do not hold the rest.
    fn leave_out(&self, below: usize, kids: &mut Vec<usize>, need: u32) {
        let room = |kid: usize| self.counts.hosted[below][kid];
        let mut sizes: Vec<u32> = kids.iter().map(|k| room(*k)).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let (mut few, mut sum) = (0, 0);
        while few < sizes.len() && sum < need {
            sum += sizes[few];
            few += 1;
        }
        // One of the largest has itself among the others counted here, which errs on the safe side.
        let others: u32 = sizes[..few.saturating_sub(1)].iter().sum();
        kids.retain(|k| room(*k) > 0 && room(*k) + others >= need);
    }

    fn hand_out(
        &self,
        level: usize,
        run: u32,
        need: u32,
        limited: u32,
        parts: &mut Vec<(u32, u32)>,
    ) {
        if self.is_narrowest(level) {
            parts.push((run, need));
            return;
        }
        let rows = self.rows(level, run, need, 0);
        self.follow(&rows, level, run, need, limited, parts);
    }

    /// Follows the rows back: which part hosts how many.
    fn follow(
        &self,
        rows: &[Row<C>],
        level: usize,
        run: u32,
        need: u32,
        limited: u32,
        parts: &mut Vec<(u32, u32)>,
    ) {
        let (below, unit) = (level + 1, self.shape.unit[level + 1]);
        // Below the windowed level nothing is forced.
        let forced = match self.window(level) {
            Some(_) => 0,
            None => self.counts.forced[level][run as usize],
        };
        let width = self.width(need, below);
        let (mut h, mut q) = (((need - forced) / unit) as usize, limited as usize);
        let mut given = Vec::new();
        let nothing = |h: usize, q: usize| if h + q == 0 { C::ZERO } else { C::NEVER };
        for (i, row) in rows.iter().enumerate().rev() {
            let before = |h: usize, q: usize| match i {
                0 => nothing(h, q),
                _ => rows[i - 1].least[q * width + h],
            };
            let forced = self.counts.forced[below][row.kid as usize];
            let cost = row.least[q * width + h];
            if forced == 0 && before(h, q) == cost {
                continue;
            }
            let step = row.steps.iter().find(|s| {
                let left = h.saturating_sub((s.more / unit) as usize);
                let q = q.checked_sub(s.limited as usize);
                q.is_some_and(|q| before(left, q) + s.cost == cost)
            });
            let step = step.expect("each entry of a row comes from the row before or from a step");
            let units = h.min((step.more / unit) as usize);
            h -= units;
            q -= step.limited as usize;
            let own = u32::from(self.limit.is_some_and(|(_, l)| l == below));
            given.push((row.kid, forced + units as u32 * unit, step.limited - own));
        }
        for (kid, nodes, limited) in given.into_iter().rev().filter(|g| g.1 > 0) {
            if self.is_simple() {
                self.split(below, kid, nodes, parts);
            } else {
                self.hand_out(below, kid, nodes, limited, parts);
            }
        }
    }
}

/// After one more part.
struct Row<C> {
    kid: u32,
    steps: Vec<Step<C>>,
    /// Least cost to host at least h units beside what is forced, for each number of limited
    /// domains.
    least: Vec<C>,
}

/// Steps that no other beats: more nodes, or fewer limited domains, or cheaper.
fn thin<C: Cost>(mut steps: Vec<Step<C>>) -> Vec<Step<C>> {
    if steps
        .windows(2)
        .all(|s| s[0].more < s[1].more && s[0].cost < s[1].cost && s[0].limited == s[1].limited)
    {
        return steps;
    }
    steps.sort_unstable_by(|a, b| (b.more, a.limited, a.cost).cmp(&(a.more, b.limited, b.cost)));
    let mut kept: Vec<Step<C>> = Vec::new();
    for step in steps {
        if !kept.iter().any(|k| k.limited <= step.limited && k.cost <= step.cost) {
            kept.push(step);
        }
    }
    kept.reverse();
    kept
}
