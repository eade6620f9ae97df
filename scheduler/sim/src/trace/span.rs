//! How far apart a gang stands, and how near together it could have stood.
//!
//! In: the floor just before a start. Out: domains used at each level, and the least that any
//! placement could have used: fewest of the widest level, among those fewest of the next, and so on.
//! An own algorithm, written apart from the scheduler's, so that it can judge it.

use std::collections::{BTreeMap, BTreeSet};

use super::floor::{Floor, Placed};
use super::workload::{Node, Request};

/// Domains used, widest level first.
pub type Span = Vec<u32>;

pub struct Tree {
    depth: usize,
    /// Domains of the widest level.
    roots: Vec<Branch>,
    /// Nodes that are in no map: they can be used, and then the span is not known.
    pub unplaced: usize,
}

struct Branch {
    below: Vec<Branch>,
    /// At the narrowest level.
    nodes: Vec<usize>,
}

/// Domains used below a branch, and the most nodes that can be had with them.
type Table = BTreeMap<Span, u32>;

impl Tree {
    pub fn new(levels: usize, nodes: &[Node]) -> Self {
        let placed: Vec<usize> =
            (0..nodes.len()).filter(|n| nodes[*n].path.len() == levels).collect();
        let unplaced = nodes.len() - placed.len();
        Self { depth: levels, roots: branches(nodes, placed, 0, levels), unplaced }
    }

    /// `None` when a node is in no map.
    pub fn used(&self, nodes: &[Node], places: &[Placed]) -> Option<Span> {
        let paths: Vec<&[String]> = places.iter().map(|p| nodes[p.node].path.as_slice()).collect();
        if self.depth == 0 || paths.iter().any(|p| p.len() != self.depth) {
            return None;
        }
        let distinct =
            |level: usize| paths.iter().map(|p| &p[level]).collect::<BTreeSet<_>>().len();
        Some((0..self.depth).map(|level| distinct(level) as u32).collect())
    }

    /// The least span for the job on what is free; `None` when it does not fit on placed nodes.
    pub fn optimum(&self, floor: &Floor, request: &Request) -> Option<Span> {
        if self.depth == 0 {
            return None;
        }
        let tables: Vec<Table> =
            self.roots.iter().map(|b| b.table(floor, request, self.depth - 1)).collect();
        let all = combine(tables, request.nodes);
        all.into_iter().find(|(_, nodes)| *nodes >= request.nodes).map(|(span, _)| span)
    }
}

fn branches(nodes: &[Node], members: Vec<usize>, level: usize, levels: usize) -> Vec<Branch> {
    if level == levels {
        return Vec::new();
    }
    let mut domains: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for node in members {
        domains.entry(nodes[node].path[level].as_str()).or_default().push(node);
    }
    domains
        .into_values()
        .map(|members| Branch {
            below: branches(nodes, members.clone(), level + 1, levels),
            nodes: if level + 1 == levels { members } else { Vec::new() },
        })
        .collect()
}

impl Branch {
    /// With the branch itself counted in front. `below`: levels under this one.
    fn table(&self, floor: &Floor, request: &Request, below: usize) -> Table {
        if below == 0 {
            let able = self.nodes.iter().filter(|n| floor.fits(**n, request)).count();
            return Table::from([(vec![1], able as u32)]);
        }
        let tables = self.below.iter().map(|b| b.table(floor, request, below - 1)).collect();
        let inner = combine(tables, request.nodes);
        inner.into_iter().map(|(span, nodes)| ([vec![1], span].concat(), nodes)).collect()
    }
}

/// Any choice of the branches: their domains add up, and so do their nodes. What gives no more nodes
/// than a choice with fewer domains at every level is left out.
fn combine(tables: Vec<Table>, wanted: u32) -> Table {
    let mut tables: Vec<Table> =
        tables.into_iter().filter(|t| t.values().any(|n| *n > 0)).collect();
    if tables.iter().all(|t| t.len() == 1 && t.keys().all(|s| s.len() == 1)) {
        // Alike in cost: the largest first.
        let mut counts: Vec<u32> = tables.iter().flat_map(|t| t.values().copied()).collect();
        counts.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
        let mut out = Table::new();
        let mut sum = 0;
        for (used, count) in (1..).zip(counts) {
            sum += count;
            out.insert(vec![used], sum.min(wanted));
            if sum >= wanted {
                break;
            }
        }
        return out;
    }
    // More branches than this never help: the fewest that hold the job are the first condition, and
    // within a branch of fewer the same holds.
    let most = |t: &Table| t.values().copied().max().unwrap_or(0);
    tables.sort_by_key(|t| std::cmp::Reverse(most(t)));
    let mut sum = 0;
    let needed = tables
        .iter()
        .position(|t| {
            sum += most(t);
            sum >= wanted
        })
        .map_or(tables.len(), |at| at + 1) as u32;
    let mut all = Table::new();
    for table in tables {
        let mut next = all.clone();
        for (span, nodes) in &table {
            put(&mut next, span.clone(), (*nodes).min(wanted));
            for (before, had) in all.iter().filter(|(before, _)| before[0] < needed) {
                let sum: Span = before.iter().zip(span).map(|(a, b)| a + b).collect();
                put(&mut next, sum, (had + nodes).min(wanted));
            }
        }
        all = next;
    }
    all
}

fn put(table: &mut Table, span: Span, nodes: u32) {
    let best = table.entry(span).or_insert(0);
    *best = nodes.max(*best);
}

#[cfg(test)]
mod tests {
    use super::super::read::nodes::Map;
    use super::*;
    use crate::Rng;

    /// Every subset of nodes, looked at.
    fn brute(nodes: &[Node], floor: &Floor, request: &Request) -> Option<Span> {
        let tree = Tree::new(2, nodes);
        (0u32..1 << nodes.len())
            .filter(|set| set.count_ones() == request.nodes)
            .filter_map(|set| {
                let chosen: Vec<usize> = (0..nodes.len()).filter(|n| set >> n & 1 == 1).collect();
                let all = chosen.iter().all(|n| floor.fits(*n, request));
                let places: Vec<Placed> =
                    chosen.into_iter().map(|node| Placed { node, devices: Vec::new() }).collect();
                if all { tree.used(nodes, &places) } else { None }
            })
            .min()
    }

    #[test]
    fn the_optimum_is_that_of_looking_at_every_choice() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let count = rng.between(3, 11) as usize;
            let hosts = (0..count)
                .map(|i| {
                    let block = rng.below(3);
                    let leaf = format!("{block}/{}", rng.below(3));
                    (format!("n{i:02}"), vec![block.to_string(), leaf])
                })
                .collect();
            let map = Map { levels: vec!["block".into(), "leaf".into()], hosts };
            let nodes = map.nodes(2);
            let mut floor = Floor::new(&nodes);
            for node in 0..nodes.len() {
                if rng.chance(30) {
                    floor.take(&Request::gpus(1, 1), &[Placed { node, devices: vec![0] }]).unwrap();
                }
            }
            let request = Request::gpus(rng.between(1, 6) as u32, 2);
            let want = brute(&nodes, &floor, &request);
            assert_eq!(Tree::new(2, &nodes).optimum(&floor, &request), want, "seed {seed}");
        }
    }
}
