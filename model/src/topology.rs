//! Where nodes stand: named trees of domains over nodes.
//!
//! The first version has one fabric, `net`. Level names are data and depth is free; a node is a
//! leaf of the tree and not a level of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// A fabric: levels from the widest to the narrowest, and each node's domain at every level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Widest first: `["block", "leaf"]`.
    pub levels: Vec<String>,
    /// For each node, its domain's name at each level, parallel to `levels`. A narrower domain
    /// lies inside exactly one wider one.
    pub nodes: BTreeMap<NodeId, Vec<String>>,
}

impl Topology {
    pub fn level(&self, name: &str) -> Option<usize> {
        self.levels.iter().position(|l| l == name)
    }

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
