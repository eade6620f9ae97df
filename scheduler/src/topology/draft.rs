//! What every reader hands over: fabrics whose statements still know their lines.
//!
//! In: where a file puts each node, statement by statement. Out: a [`Fabric`] that is a tree in
//! which each node stands once, or the line of the statement that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_core::topology::{LEVELS_MAX, NODES_MAX, is_domain};
use tessera_model::{Fabric, NodeId};

use super::ranges;

/// What is wrong in which line, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub line: usize,
    pub problem: String,
    pub hint: String,
}

impl Wrong {
    pub fn new(line: usize, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { line, problem: problem.into(), hint: hint.into() }
    }
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    pub fabrics: Vec<Draft>,
    /// Nodes may be named that never joined, also in a map that is taken while we serve.
    pub allow_unknown: bool,
    /// Nodes that stand nowhere on purpose.
    pub unplaced: BTreeSet<NodeId>,
    /// Odd, but no error: a line each.
    pub warnings: Vec<(usize, String)>,
}

#[derive(Debug)]
pub(super) struct Draft {
    pub name: String,
    /// The line that named the fabric or its levels.
    pub line: usize,
    /// Widest first.
    pub levels: Vec<String>,
    pub nodes: Vec<Placed>,
    pub switches: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug)]
pub(super) struct Placed {
    pub node: NodeId,
    pub line: usize,
    /// A domain for each level, shared by the nodes of a narrowest domain.
    pub path: Arc<[String]>,
}

impl Draft {
    /// The tree, and the line each node stands in.
    pub fn finish(self) -> Result<(Fabric, BTreeMap<NodeId, usize>), Wrong> {
        let Self { name, line, levels, nodes: placed, switches } = self;
        if levels.len() > LEVELS_MAX {
            let what = format!("fabric {name:?} has {} levels", levels.len());
            return Err(Wrong::new(line, what, format!("{LEVELS_MAX} levels at most")));
        }
        if placed.is_empty() {
            let what = format!("fabric {name:?} has no nodes");
            return Err(Wrong::new(line, what, "list nodes, or take the fabric out"));
        }
        if placed.len() > NODES_MAX {
            let what = format!("fabric {name:?} has more than {NODES_MAX} nodes");
            return Err(Wrong::new(line, what, "look for a range that goes too far"));
        }
        let mut parents: BTreeMap<(usize, &str), &str> = BTreeMap::new();
        for at in &placed {
            for (depth, pair) in at.path.windows(2).enumerate() {
                let [parent, domain] = pair else { continue };
                let first = *parents.entry((depth, domain)).or_insert(parent);
                if first != parent {
                    return Err(torn(at.line, &levels[depth + 1], domain, first, parent));
                }
            }
        }
        let narrowest = levels.last().cloned().unwrap_or_default();
        let mut lines = BTreeMap::new();
        let mut nodes: BTreeMap<NodeId, Arc<[String]>> = BTreeMap::new();
        for Placed { node, line, path } in placed {
            if let Some(before) = nodes.get(&node) {
                let (first, second) = (before.last(), path.last());
                let (first, second) = (first.map_or("", |d| d), second.map_or("", |d| d));
                let what = match first == second {
                    true => format!("node {node} is listed twice in {narrowest} {first:?}"),
                    false => format!("node {node} is in {narrowest} {first:?} and in {second:?}"),
                };
                let hint =
                    format!("a node stands in one place, the first is in line {}", lines[&node]);
                return Err(Wrong::new(line, what, hint));
            }
            lines.insert(node.clone(), line);
            nodes.insert(node, path);
        }
        let nodes = nodes.into_iter().map(|(node, path)| (node, path.to_vec())).collect();
        Ok((Fabric { name, levels, nodes, switches }, lines))
    }
}

pub(super) fn torn(line: usize, level: &str, domain: &str, first: &str, second: &str) -> Wrong {
    Wrong::new(
        line,
        format!("{level} {domain:?} is torn: it lies in {first:?} and in {second:?}"),
        "a domain lies in one wider domain; give one of the two another name",
    )
}

/// The nodes a text stands for.
pub(super) fn node_list(text: &str, line: usize) -> Result<Vec<NodeId>, Wrong> {
    const HINT: &str = "write n[0-3], n[01-16,20] or one name";
    let names = ranges::expand_list(text)
        .map_err(|problem| Wrong::new(line, format!("{text:?} {problem}"), HINT))?;
    let node =
        |name: &String| NodeId::parse(name).map_err(|e| Wrong::new(line, e.to_string(), HINT));
    names.iter().map(node).collect()
}

pub(super) fn domain_name(text: &str, line: usize, what: &str) -> Result<(), Wrong> {
    match is_domain(text) {
        true => Ok(()),
        false => Err(Wrong::new(
            line,
            format!("{text:?} is no name for a {what}"),
            "1 to 128 bytes without white space",
        )),
    }
}

/// Where lines begin, so that a byte's line is found by halving.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at).collect())
    }

    /// The line, from 1, in which byte `offset` lies.
    pub fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}
