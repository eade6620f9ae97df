//! Where nodes stand: several named trees of domains over the same nodes.
//!
//! Level names are data, depth is free, and no two fabrics share a level's name, so a level says
//! which fabric is meant. A node is a leaf of each tree and not a level of its own. Trees need not
//! nest into each other.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{NodeId, UnixMillis, UserId};

/// The fabric made of the NVLink domains that agents report, with the one level of the same name.
pub const NVLINK: &str = "nvlink";

/// The operator's map. The first fabric is the one placements are searched along; the others
/// filter and group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub fabrics: Vec<Fabric>,
}

/// A tree: levels from the widest to the narrowest, and each node's domain at every level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// `net`, `nvlink`, `power`, or what the operator calls it.
    pub name: String,
    /// Widest first: `["block", "leaf"]`.
    pub levels: Vec<String>,
    /// For each node, its domain's name at each level, parallel to `levels`. A narrower domain
    /// lies inside exactly one wider one.
    pub nodes: BTreeMap<NodeId, Vec<String>>,
    /// For narrowest domains whose switches are known by other names: what agents see as neighbours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub switches: BTreeMap<String, BTreeSet<String>>,
}

impl Topology {
    /// A map of one fabric called `net`.
    pub fn net(levels: Vec<String>, nodes: BTreeMap<NodeId, Vec<String>>) -> Self {
        let fabric = Fabric { name: "net".to_owned(), levels, nodes, switches: BTreeMap::new() };
        Self { fabrics: vec![fabric] }
    }

    /// The fabric and the depth in it that a level's name means.
    pub fn level(&self, name: &str) -> Option<(usize, usize)> {
        let depth = |f: &Fabric| f.levels.iter().position(|l| l == name);
        self.fabrics.iter().enumerate().find_map(|(i, f)| Some((i, depth(f)?)))
    }

    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.fabrics.iter().flat_map(|f| f.levels.iter().map(String::as_str))
    }

    /// Names of the domains a node stands in, fabric by fabric from the root down.
    pub fn domains_of<'a>(
        &'a self,
        node: &'a NodeId,
    ) -> impl Iterator<Item = (&'a str, &'a str)> + 'a {
        self.fabrics.iter().flat_map(move |f| {
            let path = f.nodes.get(node).map_or(&[][..], Vec::as_slice);
            f.levels.iter().map(String::as_str).zip(path.iter().map(String::as_str))
        })
    }

    pub fn nodes(&self) -> BTreeSet<&NodeId> {
        self.fabrics.iter().flat_map(|f| f.nodes.keys()).collect()
    }
}

impl Fabric {
    /// The first domain found under two different parents, with both: a broken tree.
    pub fn torn_domain(&self) -> Option<(String, String, String)> {
        let mut parents: BTreeMap<(usize, &str), &str> = BTreeMap::new();
        for path in self.nodes.values() {
            for depth in 1..path.len() {
                let parent = path[depth - 1].as_str();
                let seen = parents.entry((depth, &path[depth])).or_insert(parent);
                if *seen != parent {
                    return Some((path[depth].clone(), (*seen).to_owned(), parent.to_owned()));
                }
            }
        }
        None
    }
}

/// What an operator, or the health watch, says of a domain's links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainMark {
    pub level: String,
    pub domain: String,
    /// Percent of its bandwidth that is to be had. 0: no gang of several nodes is placed there.
    pub health: u32,
    pub by: UserId,
    pub reason: String,
    pub until: Option<UnixMillis>,
}
