//! What of a cluster changes only when nodes come or go or the map does: hardware, labels, and
//! where each node stands.
//!
//! In: nodes to be and a map. Out: a [`Layout`], in which nodes stand in the order of the first
//! fabric, depth-first, then by name, so that every domain of that fabric is a range.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use tessera_model::{DomainMark, NodeId, Topology};

use super::gpus::Table;
use crate::node_table::Node;

/// A node that stands in no domain of a level.
pub const NOWHERE: u32 = u32::MAX;

/// GPUs of one node that placement knows of.
pub const GPUS_MAX: usize = 64;

/// What changes only when nodes come or go, or the map does.
#[derive(Debug, Default)]
pub struct Layout {
    pub ids: Vec<NodeId>,
    index: HashMap<NodeId, u32>,
    /// Into `kinds`.
    pub kind: Vec<u16>,
    pub kinds: Vec<Kind>,
    pub labels: Vec<Arc<BTreeMap<String, String>>>,
    /// The first is searched along; see [`Topology`].
    pub trees: Vec<Tree>,
    /// For each level of the first tree, widest first, its nodes in stretches: a domain is one, and
    /// so is each node that stands in none.
    pub runs: Vec<Vec<Run>>,
    /// For each level but the narrowest, which stretches of the next each of its stretches has.
    pub kids: Vec<Vec<(u32, u32)>>,
    /// Best GPU sets, by kind; made when first asked for.
    tables: Vec<OnceLock<Table>>,
}

/// Nodes that follow each other and share a domain of the first tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first: u32,
    /// One behind the last.
    pub end: u32,
    /// [`NOWHERE`]: one node that stands in no domain of this level.
    pub domain: u32,
}

/// A node to be, for spaces that are not made from a cluster.
#[derive(Debug, Clone)]
pub struct Sketch {
    pub id: NodeId,
    pub kind: Kind,
    pub labels: BTreeMap<String, String>,
}

/// Nodes of the same hardware.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kind {
    pub gpus: Vec<GpuView>,
    pub cpus: u32,
    pub memory: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GpuView {
    /// Lower case; a MIG instance has its profile behind the model.
    pub model: String,
    pub numa: Option<u32>,
    pub nvlink_group: Option<u32>,
    pub rail: Option<u32>,
    pub mig: bool,
}

#[derive(Debug, Default)]
pub struct Tree {
    pub name: String,
    /// Widest first.
    pub levels: Vec<Level>,
    /// By level: whether each domain lies inside one narrowest stretch of the first tree.
    pub nested: Vec<bool>,
}

#[derive(Debug, Default)]
pub struct Level {
    pub name: String,
    pub domains: Vec<Domain>,
    /// For each node its domain, or [`NOWHERE`].
    pub of: Vec<u32>,
}

#[derive(Debug)]
pub struct Domain {
    pub name: String,
    /// In the level above; [`NOWHERE`] at the widest.
    pub parent: u32,
    /// Percent; 0: no gang of several nodes.
    pub health: u32,
}

impl Layout {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub fn index(&self, node: &NodeId) -> Option<u32> {
        self.index.get(node).copied()
    }

    pub fn kind_of(&self, node: u32) -> &Kind {
        &self.kinds[usize::from(self.kind[node as usize])]
    }

    /// The tree and the depth in it that a level's name means.
    pub fn level(&self, name: &str) -> Option<(usize, usize)> {
        let depth = |t: &Tree| t.levels.iter().position(|l| l.name == name);
        self.trees.iter().enumerate().find_map(|(i, t)| Some((i, depth(t)?)))
    }

    /// The best sets of up to eight GPUs of a kind.
    pub fn table(&self, kind: u16) -> &Table {
        let kind = usize::from(kind);
        self.tables[kind].get_or_init(|| Table::of(&self.kinds[kind].gpus))
    }

    pub(super) fn of(
        mut nodes: Vec<Sketch>,
        map: &Topology,
        marks: &BTreeMap<String, DomainMark>,
    ) -> Self {
        let first = map.fabrics.first();
        let path = |n: &Sketch| first.and_then(|f| f.nodes.get(&n.id));
        nodes.sort_by(|a, b| {
            let (pa, pb) = (path(a), path(b));
            (pa.is_none(), pa, &a.id).cmp(&(pb.is_none(), pb, &b.id))
        });
        let mut layout = Self::default();
        let mut known: HashMap<Kind, u16> = HashMap::new();
        for (i, node) in (0u32..).zip(&nodes) {
            layout.ids.push(node.id.clone());
            layout.index.insert(node.id.clone(), i);
            layout.labels.push(Arc::new(node.labels.clone()));
            let kind = *known.entry(node.kind.clone()).or_insert_with(|| {
                layout.kinds.push(node.kind.clone());
                layout.tables.push(OnceLock::new());
                u16::try_from(layout.kinds.len() - 1).expect("fewer than 65,536 kinds of nodes")
            });
            layout.kind.push(kind);
        }
        for fabric in &map.fabrics {
            let levels = fabric.levels.iter().enumerate().map(|(depth, name)| {
                let mut level = Level { name: name.clone(), ..Level::default() };
                let mut known: BTreeMap<&[String], u32> = BTreeMap::new();
                for node in &nodes {
                    let path = fabric.nodes.get(&node.id).and_then(|p| p.get(..=depth));
                    let Some(path) = path else {
                        level.of.push(NOWHERE);
                        continue;
                    };
                    let next = u32::try_from(level.domains.len()).unwrap_or(NOWHERE);
                    let domain = *known.entry(path).or_insert(next);
                    if domain == next {
                        let mark = marks.get(&format!("{name}/{}", path[depth]));
                        let health = mark.map_or(100, |m| m.health);
                        let name = path[depth].clone();
                        level.domains.push(Domain { name, parent: NOWHERE, health });
                    }
                    level.of.push(domain);
                }
                level
            });
            let mut tree =
                Tree { name: fabric.name.clone(), levels: levels.collect(), nested: Vec::new() };
            for depth in 1..tree.levels.len() {
                for node in 0..nodes.len() {
                    let (up, own) = (tree.levels[depth - 1].of[node], tree.levels[depth].of[node]);
                    if own != NOWHERE {
                        tree.levels[depth].domains[own as usize].parent = up;
                    }
                }
            }
            layout.trees.push(tree);
        }
        let levels = layout.trees.first().map_or(&[][..], |t| &t.levels);
        layout.runs = levels.iter().map(|l| runs(&l.of)).collect();
        layout.kids = layout.runs.windows(2).map(|pair| kids(&pair[0], &pair[1])).collect();
        for tree in &mut layout.trees {
            tree.nested = tree.levels.iter().map(|l| nests(l, layout.runs.last())).collect();
        }
        layout
    }
}

fn runs(of: &[u32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (i, domain) in (0u32..).zip(of) {
        match runs.last_mut() {
            Some(last) if last.domain == *domain && *domain != NOWHERE => last.end = i + 1,
            _ => runs.push(Run { first: i, end: i + 1, domain: *domain }),
        }
    }
    runs
}

/// Whether each domain of a level lies inside one of the runs; without runs all are in one.
fn nests(level: &Level, runs: Option<&Vec<Run>>) -> bool {
    let mut seen = vec![NOWHERE; level.domains.len()];
    (0u32..).zip(runs.into_iter().flatten()).all(|(at, run)| {
        level.of[run.first as usize..run.end as usize].iter().all(|domain| {
            let Some(seen) = seen.get_mut(*domain as usize) else { return true };
            let same = *seen == NOWHERE || *seen == at;
            *seen = at;
            same
        })
    })
}

fn kids(wide: &[Run], narrow: &[Run]) -> Vec<(u32, u32)> {
    let mut next = 0;
    let mut of = |run: &Run| {
        let first = next;
        while narrow.get(next as usize).is_some_and(|n| n.end <= run.end) {
            next += 1;
        }
        (first, next)
    };
    wide.iter().map(&mut of).collect()
}

impl Kind {
    pub(super) fn of(node: &Node) -> Self {
        let gpus = node.inventory.gpus.iter().take(GPUS_MAX).map(|g| {
            let profile = g.mig.as_ref().map(|m| format!(" mig {}", m.profile));
            GpuView {
                model: (g.model.clone() + profile.as_deref().unwrap_or_default()).to_lowercase(),
                numa: g.numa,
                nvlink_group: g.nvlink_group,
                rail: g.rail,
                mig: g.mig.is_some(),
            }
        });
        Self { gpus: gpus.collect(), cpus: node.inventory.cpus, memory: node.inventory.memory.0 }
    }

    /// All its GPUs, as bits.
    pub fn all(&self) -> u64 {
        match self.gpus.len() {
            0 => 0,
            n => u64::MAX >> (GPUS_MAX - n.min(GPUS_MAX)),
        }
    }

    /// GPUs of a set in the order of their rails, so that local rank r gets rail r.
    pub fn by_rail(&self, gpus: u64) -> Vec<u32> {
        let held = |bit: &u32| gpus >> bit & 1 == 1;
        let mut bits: Vec<u32> = (0u32..).take(self.gpus.len()).filter(held).collect();
        bits.sort_by_key(|bit| {
            let rail = self.gpus[*bit as usize].rail;
            (rail.is_none(), rail, *bit)
        });
        bits
    }
}
