//! The map in force: what the operator says, completed by what nodes say of themselves, and where
//! the two disagree.
//!
//! In: the operator's [`Topology`] and the inventories of all nodes. Out: the map placements are
//! searched in ([`effective`]), and sentences about nodes that may stand elsewhere than the map
//! says ([`doubts`]). Reading files is the shell's work; accepting a new map is
//! [`crate::door::topology`]'s.
//!
//! Trust goes from the operator down: a fabric that the operator gave is taken as it is. Labels
//! fill in a fabric nobody gave, and GPUs their NVLink domains.

mod doubts; // what speaks against the map
mod labels; // fabrics from nodes' labels

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::topology::NVLINK;
use tessera_model::{Fabric, NodeId, NodeInventory, Topology};

pub use doubts::doubts;
pub use labels::from_labels;

/// The fabric labels speak of when they name switches or blocks.
pub const NET: &str = "net";
/// The fabric of regions and zones, with the levels `region` and `zone`.
pub const ZONE: &str = "zone";

/// Labels that name a node's NVLink domain, the most exact first.
pub const NVLINK_LABELS: [&str; 3] = [
    "nvidia.com/gpu.clique",
    "accelerator.topograph.run/domain",
    "network.topology.nvidia.com/accelerator",
];

/// More nodes than any cluster we know of; a slip such as `n[1-99999999]` ends here.
pub const NODES_MAX: usize = 200_000;
/// Levels a fabric may have.
pub const LEVELS_MAX: usize = 16;

/// What is wrong with a map whoever it comes from: a sentence without its full stop.
pub fn flaw(map: &Topology) -> Option<String> {
    let mut fabrics = BTreeSet::new();
    let mut levels: BTreeMap<&str, &str> = BTreeMap::new();
    for fabric in &map.fabrics {
        let name = fabric.name.as_str();
        if !is_name(name) {
            return Some(format!("{name:?} is no name for a fabric"));
        }
        if !fabrics.insert(name) {
            return Some(format!("there are two fabrics called {name:?}"));
        }
        if fabric.levels.is_empty() || fabric.levels.len() > LEVELS_MAX {
            let count = fabric.levels.len();
            return Some(format!("fabric {name:?} has {count} levels, 1 to {LEVELS_MAX} may be"));
        }
        for level in &fabric.levels {
            if !is_name(level) {
                return Some(format!("{level:?} is no name for a level"));
            }
            if let Some(other) = levels.insert(level, name) {
                return Some(match other == name {
                    true => format!("level {level:?} is named twice"),
                    false => format!("level {level:?} is one of fabric {other:?} and of {name:?}"),
                });
            }
        }
        if fabric.nodes.is_empty() || fabric.nodes.len() > NODES_MAX {
            let count = fabric.nodes.len();
            return Some(format!("fabric {name:?} has {count} nodes, 1 to {NODES_MAX} may be"));
        }
        for (node, path) in &fabric.nodes {
            let wanted = fabric.levels.len();
            if path.len() != wanted || !path.iter().all(|d| is_domain(d)) {
                return Some(format!("node {node} has no domain at each level of {name:?}"));
            }
        }
        if let Some((domain, a, b)) = fabric.torn_domain() {
            return Some(format!("domain {domain:?} of {name:?} lies in {a:?} and in {b:?}"));
        }
    }
    None
}

/// Letters, digits, `-` and `_`, 1 to 63 of them: what a fabric or level may be called.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// What a domain may be called: 1 to 128 bytes without white space or control characters.
pub fn is_domain(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// What a level is called whose place above the nodes is all that is known; 0 is the narrowest.
pub fn tier_name(tier: usize) -> String {
    match tier {
        0 => "leaf".to_owned(),
        1 => "spine".to_owned(),
        2 => "core".to_owned(),
        n => format!("tier_{n}"),
    }
}

/// An NVLink domain as it is reported, unless it is one of the ways to say that there is none: GPUs
/// without a fabric have a cluster UUID of zeros.
pub fn nvlink_domain(reported: &str) -> Option<&str> {
    let cluster = reported.rsplit_once('.').map_or(reported, |(cluster, _clique)| cluster);
    let is_zero = cluster.bytes().all(|b| b == b'0' || b == b'-');
    (!is_zero && is_domain(reported)).then_some(reported)
}

/// The NVLink domain that labels name.
pub fn nvlink_label(labels: &BTreeMap<String, String>) -> Option<&str> {
    NVLINK_LABELS.iter().find_map(|key| labels.get(*key).and_then(|value| nvlink_domain(value)))
}

/// The map placements are searched in: the operator's fabrics first and in their order, then those
/// that labels give where the operator gave none of that name, then NVLink domains. A derived
/// fabric one of whose level names the operator uses is left out, so a level means one thing.
pub fn effective<'a>(map: &Topology, nodes: impl Iterator<Item = &'a NodeInventory>) -> Topology {
    let nodes: Vec<&NodeInventory> = nodes.collect();
    let mut whole = map.clone();
    let mut derived = Vec::new();
    if !nodes.iter().all(|n| n.labels.is_empty()) {
        derived = from_labels(nodes.iter().map(|n| (&n.node, &n.labels)));
    }
    if !whole.fabrics.iter().any(|f| f.name == NVLINK) {
        derived.extend(nvlink_fabric(&nodes));
    }
    for fabric in derived {
        let is_given = whole.fabrics.iter().any(|f| f.name == fabric.name)
            || fabric.levels.iter().any(|level| whole.level(level).is_some());
        if !is_given {
            whole.fabrics.push(fabric);
        }
    }
    // A node that nobody puts into an NVLink domain is one of its own.
    let nvlink = whole.fabrics.iter_mut().find(|f| f.name == NVLINK && f.levels.len() == 1);
    if let Some(fabric) = nvlink {
        let taken: BTreeSet<String> = fabric.nodes.values().flatten().cloned().collect();
        for node in nodes {
            fabric.nodes.entry(node.node.clone()).or_insert_with(|| {
                let mut name = node.node.to_string();
                // No node's name has a slash, so no two of these are the same.
                while taken.contains(&name) {
                    name.push_str("/alone");
                }
                vec![name]
            });
        }
    }
    whole
}

/// What a node's GPUs say about their NVLink domain.
enum Reported<'a> {
    Nothing,
    One(&'a str),
    /// Not all say the same: the domains, and how many GPUs name none.
    Several(BTreeSet<&'a str>, usize),
}

fn reported(node: &NodeInventory) -> Reported<'_> {
    let whole = node.gpus.iter().filter(|g| g.mig.is_none());
    let said = whole.map(|g| g.nvlink_domain.as_deref().and_then(nvlink_domain));
    let mut said_first = said.clone();
    let Some(first) = said_first.next() else { return Reported::Nothing };
    if said_first.all(|other| other == first) {
        return first.map_or(Reported::Nothing, Reported::One);
    }
    let silent = said.clone().filter(Option::is_none).count();
    Reported::Several(said.flatten().collect(), silent)
}

/// A node's NVLink domain: what all of its GPUs say, and where they say nothing, its label.
fn own_domain(node: &NodeInventory) -> Option<&str> {
    match reported(node) {
        Reported::One(domain) => Some(domain),
        Reported::Nothing => nvlink_label(&node.labels),
        Reported::Several(..) => None,
    }
}

/// The domains that two nodes or more are in; `None` where there is no such domain.
fn nvlink_fabric(nodes: &[&NodeInventory]) -> Option<Fabric> {
    let mut members: BTreeMap<&str, Vec<&NodeId>> = BTreeMap::new();
    for node in nodes {
        if let Some(domain) = own_domain(node) {
            members.entry(domain).or_default().push(&node.node);
        }
    }
    let shared = members.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    let nodes: BTreeMap<NodeId, Vec<String>> = shared
        .flat_map(|(domain, nodes)| nodes.into_iter().map(move |n| (n.clone(), domain)))
        .map(|(node, domain)| (node, vec![domain.to_owned()]))
        .collect();
    (!nodes.is_empty()).then(|| Fabric {
        name: NVLINK.to_owned(),
        levels: vec![NVLINK.to_owned()],
        nodes,
        switches: BTreeMap::new(),
    })
}
