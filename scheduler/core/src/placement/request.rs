//! What a job asks of its place, made ready for one space.
//!
//! In: the job's roles and constraints and the [`Terms`] of the moment. Out: a [`Request`] in which
//! level names are indices, models are masks per kind of node, and label rules, lists of nodes,
//! sick domains and missing map entries have become one set of nodes per role. What is free plays
//! no part here, so a request holds for a space however it is filled. The exact meaning of each
//! constraint stands in `README.md`.

use std::collections::BTreeSet;

use tessera_model::{Gang, JobSpec, NodeId, Placement, Strength, WHOLE_GPU};

use super::gpus;
use super::nodes::NodeSet;
use super::space::{NOWHERE, Space};

/// What holds for this attempt beside the job's own wishes.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Nodes that are not to be used.
    pub avoid: &'a BTreeSet<NodeId>,
    /// Places of the attempt that is to be replaced, in rank order, spares last: each that still
    /// fits keeps its place. Empty: a fresh start.
    pub former: &'a [NodeId],
    /// Of the first role: what the gang says, or fewer for an elastic job.
    pub nodes: u32,
    /// Whether preferred constraints bind. If not, none of them does.
    pub preferred: bool,
}

/// Two requests with the same key have the same answer on the same space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    roles: Vec<(Gang, Placement)>,
    spares: u32,
    avoid: BTreeSet<NodeId>,
    former: Vec<NodeId>,
    preferred: bool,
}

#[derive(Debug, Clone)]
pub struct Request {
    key: RequestKey,
    pub(super) roles: Vec<Role>,
    pub(super) spares: u32,
    /// What holds for the nodes of all roles together; its slices stand with the first role.
    pub(super) bonds: Bonds,
    /// Node of each former place; [`NOWHERE`] for one that is gone.
    pub(super) former: Vec<u32>,
    /// Preferred constraints that do not bind; they are looked at again in what was found.
    pub(super) waived: Vec<Waived>,
    /// Why no space can have it, whatever is free.
    pub(super) contradiction: Option<String>,
}

/// Alike nodes that are asked for.
#[derive(Debug, Clone)]
pub(super) struct Role {
    pub name: String,
    pub nodes: u32,
    pub gpus: u32,
    /// Thousandths of each GPU.
    pub milli: u32,
    pub cpus: u32,
    pub memory: u64,
    /// GPUs it may use, by kind.
    pub usable: Vec<u64>,
    /// Nodes it may use.
    pub allowed: NodeSet,
    pub bonds: Bonds,
}

/// A level: tree and depth in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub tree: usize,
    pub depth: usize,
}

/// Constraints that bind, by level.
#[derive(Debug, Clone, Default)]
pub(super) struct Bonds {
    pub within: Vec<At>,
    /// Widest first.
    pub slices: Vec<(u32, At)>,
    pub at_most: Vec<(u32, At)>,
    /// With the greatest skew.
    pub spread: Vec<(u32, At)>,
    pub balance: Option<At>,
}

/// A preferred constraint that does not bind.
#[derive(Debug, Clone)]
pub(super) struct Waived {
    /// The role whose nodes it is about; `None`: all.
    pub role: Option<usize>,
    /// Nodes of a slice; `None`: all of them in one domain.
    pub slice: Option<u32>,
    /// `None`: no map has the level.
    pub at: Option<At>,
    pub words: String,
}

impl Request {
    pub fn new(space: &Space, spec: &JobSpec, terms: &Terms<'_>) -> Self {
        Self::under(space, spec, terms, false)
    }

    /// `well`: as if every domain's links were in order.
    pub(super) fn under(space: &Space, spec: &JobSpec, terms: &Terms<'_>, well: bool) -> Self {
        let gang = Gang { nodes: terms.nodes, ..spec.gang.clone() };
        let plain = |p: &Placement| Placement { patience: None, ..p.clone() };
        let further = spec.roles.iter().map(|r| (r.gang.clone(), plain(&r.placement)));
        let placements: Vec<(Gang, Placement)> =
            std::iter::once((gang, plain(&spec.placement))).chain(further).collect();
        let nodes = placements.iter().fold(0u32, |sum, (g, _)| sum.saturating_add(g.nodes));
        let mut request = Self {
            key: RequestKey {
                roles: placements,
                spares: spec.spares,
                avoid: terms.avoid.clone(),
                former: terms.former.to_vec(),
                preferred: terms.preferred,
            },
            roles: Vec::new(),
            spares: spec.spares,
            bonds: Bonds::default(),
            former: Vec::new(),
            waived: Vec::new(),
            contradiction: None,
        };
        let layout = &space.layout;
        let former = terms.former.iter().map(|id| layout.index(id).unwrap_or(NOWHERE));
        request.former = former.collect();
        let mut common = NodeSet::all(space.len());
        for id in terms.avoid {
            layout.index(id).into_iter().for_each(|i| common.remove(i));
        }
        if nodes > 1 && !well {
            leave_sick_domains(space, &mut common);
        }
        let key = request.key.roles.clone();
        filter(space, &key[0].1, &mut common);
        let mut job = request.resolve(space, None, &key[0].1);
        let slices = std::mem::take(&mut job.slices);
        mapped(space, &job, &mut common);
        request.bonds = job;
        for (i, (gang, placement)) in key.iter().enumerate() {
            let (bonds, name) = match i.checked_sub(1) {
                None => (Bonds { slices: slices.clone(), ..Bonds::default() }, String::new()),
                Some(further) => {
                    let bonds = request.resolve(space, Some(i), placement);
                    (bonds, spec.roles[further].name.clone())
                }
            };
            let mut allowed = common.clone();
            if i > 0 {
                filter(space, placement, &mut allowed);
            }
            mapped(space, &bonds, &mut allowed);
            if gang.is_share() && gang.gpus_per_node > 1 {
                let what = "a share is a part of one GPU, not of several".to_owned();
                request.contradiction.get_or_insert(what);
            }
            request.check(&name, gang.nodes, &bonds);
            let model = gang.gpu_model.as_deref().map(str::to_lowercase);
            let usable = |k| gpus::of_model(k, model.as_deref());
            request.roles.push(Role {
                name,
                nodes: gang.nodes,
                gpus: gang.gpus_per_node,
                milli: if gang.is_share() { gang.gpu_milli } else { WHOLE_GPU },
                cpus: gang.cpus_per_node(),
                memory: gang.memory_per_node.0,
                usable: layout.kinds.iter().map(usable).collect(),
                allowed,
                bonds,
            });
        }
        request
    }

    /// Same key, same answer on the same space.
    pub fn key(&self) -> &RequestKey {
        &self.key
    }

    /// Nodes of all roles, without spares.
    pub fn nodes(&self) -> u32 {
        self.roles.iter().fold(0, |sum, r| sum.saturating_add(r.nodes))
    }

    /// The role of a place; spares are of the first one's shape.
    pub(super) fn role_of(&self, mut place: usize) -> usize {
        for (i, role) in self.roles.iter().enumerate() {
            match place.checked_sub(role.nodes as usize) {
                None => return i,
                Some(rest) => place = rest,
            }
        }
        0
    }

    /// Names to indices; what does not bind goes to `waived`.
    fn resolve(&mut self, space: &Space, role: Option<usize>, asked: &Placement) -> Bonds {
        let mut bonds = Bonds::default();
        let preferred = self.key.preferred;
        let at = |level: &str| space.layout.level(level).map(|(tree, depth)| At { tree, depth });
        let mut unknown = None;
        let mut known = |level: &str| {
            let found = at(level);
            if found.is_none() {
                unknown.get_or_insert_with(|| level.to_owned());
            }
            found
        };
        for within in &asked.within {
            if within.strength == Strength::Required || preferred {
                bonds.within.extend(known(&within.level));
            } else {
                let words = format!("all nodes within one {}", within.level);
                self.waived.push(Waived { role, slice: None, at: at(&within.level), words });
            }
        }
        for slice in &asked.slices {
            if slice.strength == Strength::Required || preferred {
                bonds.slices.extend(known(&slice.level).map(|at| (slice.nodes, at)));
            } else {
                let words = format!("slices of {} nodes within one {}", slice.nodes, slice.level);
                let (role, slice, at) =
                    (Some(role.unwrap_or(0)), Some(slice.nodes), at(&slice.level));
                self.waived.push(Waived { role, slice, at, words });
            }
        }
        for at_most in &asked.at_most {
            bonds.at_most.extend(known(&at_most.level).map(|at| (at_most.domains, at)));
        }
        for spread in &asked.spread {
            bonds.spread.extend(known(&spread.level).map(|at| (spread.max_skew, at)));
        }
        bonds.balance = asked.balance.as_deref().and_then(&mut known);
        if let Some(level) = unknown {
            let what = format!("no map has a level called {level}");
            self.contradiction.get_or_insert(what);
        }
        bonds.within.sort_unstable();
        bonds.within.dedup();
        bonds
    }

    fn check(&mut self, name: &str, nodes: u32, bonds: &Bonds) {
        let mut outer = (nodes, String::new());
        for (size, _) in &bonds.slices {
            if *size == 0 || !outer.0.is_multiple_of(*size) {
                let of = match (&*outer.1, name) {
                    ("", "") => format!("{nodes} nodes"),
                    ("", name) => format!("the {nodes} nodes of {name}"),
                    (outer, _) => outer.to_owned(),
                };
                let what = format!("slices of {size} nodes do not divide {of}");
                self.contradiction.get_or_insert(what);
                return;
            }
            outer = (*size, format!("slices of {size} nodes"));
        }
    }
}

impl Bonds {
    /// Every level that a bond is about.
    pub fn levels(&self) -> impl Iterator<Item = At> + '_ {
        let slices = self.slices.iter().map(|s| s.1);
        let at_most = self.at_most.iter().map(|s| s.1);
        let spread = self.spread.iter().map(|s| s.1);
        self.within.iter().copied().chain(slices).chain(at_most).chain(spread).chain(self.balance)
    }
}

/// Label rules and lists of nodes.
fn filter(space: &Space, asked: &Placement, allowed: &mut NodeSet) {
    let layout = &space.layout;
    if !asked.only.is_empty() {
        let mut only = NodeSet::new(space.len());
        asked.only.iter().filter_map(|id| layout.index(id)).for_each(|i| only.insert(i));
        allowed.intersect(&only);
    }
    for id in &asked.exclude {
        layout.index(id).into_iter().for_each(|i| allowed.remove(i));
    }
    if !asked.labels.is_empty() {
        for (i, labels) in (0u32..).zip(&layout.labels) {
            if !asked.labels.iter().all(|rule| rule.holds(labels)) {
                allowed.remove(i);
            }
        }
    }
}

/// A node that stands in no domain of a level cannot keep a bond about that level.
fn mapped(space: &Space, bonds: &Bonds, allowed: &mut NodeSet) {
    for at in bonds.levels() {
        let of = &space.layout.trees[at.tree].levels[at.depth].of;
        for (i, _) in (0u32..).zip(of).filter(|(_, domain)| **domain == NOWHERE) {
            allowed.remove(i);
        }
    }
}

/// No gang of several nodes where an operator says that the links are down.
fn leave_sick_domains(space: &Space, allowed: &mut NodeSet) {
    for level in space.layout.trees.iter().flat_map(|t| &t.levels) {
        if level.domains.iter().all(|d| d.health > 0) {
            continue;
        }
        for (i, domain) in (0u32..).zip(&level.of) {
            if *domain != NOWHERE && level.domains[*domain as usize].health == 0 {
                allowed.remove(i);
            }
        }
    }
}
