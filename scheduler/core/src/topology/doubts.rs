//! Nodes of which something speaks against their place in the map.
//!
//! In: the map in force and what agents see: the switches at the ends of links, and the NVLink
//! domains of GPUs. Out: sentences for people. Nothing is moved for a doubt; whoever owns the map
//! decides.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::topology::NVLINK;
use tessera_model::{Fabric, NodeId, NodeInventory, Topology};

use super::{Reported, reported};

/// Nodes of which something speaks against their place in the map, with a sentence for each. `map`
/// is the effective one.
pub fn doubts<'a>(
    map: &Topology,
    nodes: impl Iterator<Item = &'a NodeInventory>,
) -> BTreeMap<NodeId, Vec<String>> {
    let nodes: Vec<&NodeInventory> = nodes.collect();
    let mut doubts: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for fabric in &map.fabrics {
        for node in nodes.iter().filter(|n| !fabric.nodes.contains_key(&n.node)) {
            let text = format!("the map has no place for it in {:?}", fabric.name);
            doubts.entry(node.node.clone()).or_default().push(text);
        }
    }
    // Names of switches are looked for in the fabric that placements are searched along.
    let main = map.fabrics.iter().position(|f| f.name != NVLINK);
    for (index, fabric) in map.fabrics.iter().enumerate() {
        if Some(index) == main || !fabric.switches.is_empty() {
            doubt_neighbours(fabric, Some(index) == main, &nodes, &mut doubts);
        }
    }
    if let Some(fabric) = map.fabrics.iter().find(|f| f.name == NVLINK) {
        doubt_nvlink(fabric, &nodes, &mut doubts);
    }
    doubts
}

fn leaf_of<'a>(fabric: &'a Fabric, node: &NodeId) -> Option<&'a str> {
    fabric.nodes.get(node).and_then(|path| path.last()).map(String::as_str)
}

/// Compares the switches a node's links end at with those of its domain. Where the map names no
/// switches, a domain may bear its switch's own name, as in maps made by tools; and where it does
/// not, a node that sees quite other switches than its mates, and the very ones of another domain,
/// is told of.
fn doubt_neighbours(
    fabric: &Fabric,
    is_main: bool,
    nodes: &[&NodeInventory],
    doubts: &mut BTreeMap<NodeId, Vec<String>>,
) {
    // Nodes of one domain mostly see the same switches, so what is said is said of such a group.
    let mut groups: BTreeMap<(&str, Vec<&str>), Vec<&NodeId>> = BTreeMap::new();
    for node in nodes.iter().filter(|n| !n.neighbours.is_empty()) {
        let Some(leaf) = leaf_of(fabric, &node.node) else { continue };
        let mut switches: Vec<&str> = node.neighbours.iter().map(String::as_str).collect();
        switches.sort_unstable();
        switches.dedup();
        groups.entry((leaf, switches)).or_default().push(&node.node);
    }
    if groups.is_empty() {
        return;
    }
    let sight = Sight::new(fabric, is_main, groups.keys());
    for ((leaf, switches), nodes) in &groups {
        let Some(text) = sight.doubt(leaf, switches) else { continue };
        for node in nodes {
            doubts.entry((*node).clone()).or_default().push(text.clone());
        }
    }
}

/// Which switches belong where, by the map and by what nodes see.
struct Sight<'a> {
    fabric: &'a Fabric,
    level: &'a str,
    is_main: bool,
    /// The narrowest domains whose switch it is.
    owners: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// How many groups of a domain see a switch.
    seen_in: BTreeMap<(&'a str, &'a str), usize>,
    /// Where exactly these switches are seen.
    seen_at: BTreeMap<&'a [&'a str], BTreeSet<&'a str>>,
    /// How many groups there are in a domain.
    groups: BTreeMap<&'a str, usize>,
}

impl<'a> Sight<'a> {
    fn new(
        fabric: &'a Fabric,
        is_main: bool,
        seen: impl Iterator<Item = &'a (&'a str, Vec<&'a str>)>,
    ) -> Self {
        let mut sight = Self {
            fabric,
            level: fabric.levels.last().map_or("domain", String::as_str),
            is_main,
            owners: BTreeMap::new(),
            seen_in: BTreeMap::new(),
            seen_at: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        let leaves: BTreeSet<&str> =
            fabric.nodes.values().filter_map(|path| path.last()).map(String::as_str).collect();
        for leaf in leaves {
            let switches: Vec<&str> = match fabric.switches.get(leaf) {
                Some(switches) => switches.iter().map(String::as_str).collect(),
                None if is_main => vec![leaf],
                None => Vec::new(),
            };
            for switch in switches {
                sight.owners.entry(switch).or_default().insert(leaf);
            }
        }
        for (leaf, switches) in seen {
            *sight.groups.entry(leaf).or_default() += 1;
            for switch in switches {
                *sight.seen_in.entry((leaf, switch)).or_default() += 1;
            }
            sight.seen_at.entry(switches).or_default().insert(leaf);
        }
        sight
    }

    fn doubt(&self, leaf: &str, switches: &[&str]) -> Option<String> {
        let level = self.level;
        let mut known = switches.iter().filter_map(|s| Some((s, self.owners.get(s)?))).peekable();
        if known.peek().is_some() {
            let (switch, homes) = known.find(|(_, homes)| !homes.contains(leaf))?;
            let homes = quoted(homes.iter().copied());
            return Some(format!(
                "a link of it ends at switch {switch:?} of {level} {homes}, the map puts it into {leaf:?}"
            ));
        }
        if let Some(expected) = self.fabric.switches.get(leaf) {
            return Some(format!(
                "its links end at {}, none of them a switch of {level} {leaf:?} ({})",
                quoted(switches.iter().copied()),
                quoted(expected.iter().map(String::as_str)),
            ));
        }
        let is_apart = self.groups[leaf] > 1
            && switches.iter().all(|switch| self.seen_in[&(leaf, *switch)] == 1);
        if !self.is_main || !is_apart {
            return None;
        }
        let elsewhere: Vec<&str> =
            self.seen_at[switches].iter().copied().filter(|l| *l != leaf).collect();
        (!elsewhere.is_empty()).then(|| {
            format!(
                "it sees the switches that {level} {} sees, and none that others of {leaf:?} see",
                quoted(elsewhere)
            )
        })
    }
}

/// Compares what GPUs report with the map's NVLink domains. Names need not be equal, since people
/// name racks; who is together with whom has to be.
fn doubt_nvlink(
    fabric: &Fabric,
    nodes: &[&NodeInventory],
    doubts: &mut BTreeMap<NodeId, Vec<String>>,
) {
    // How many nodes of a domain report what, and how many of those that report it are where.
    let mut said_in: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut homes_of: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for node in nodes {
        if let (Some(at), Reported::One(says)) = (leaf_of(fabric, &node.node), reported(node)) {
            *said_in.entry(at).or_default().entry(says).or_default() += 1;
            *homes_of.entry(says).or_default().entry(at).or_default() += 1;
        }
    }
    // The commonest beside one's own that is at least as common; of equals the first by name.
    let rival = |counts: &BTreeMap<&'_ str, usize>, own: &str| -> Option<(String, usize)> {
        let others = counts.iter().filter(|(name, n)| **name != own && **n >= counts[own]);
        let most = others.max_by_key(|(name, n)| (**n, std::cmp::Reverse(**name)));
        most.map(|(name, n)| ((*name).to_owned(), *n))
    };
    for node in nodes {
        let Some(at) = leaf_of(fabric, &node.node) else { continue };
        let text = match reported(node) {
            Reported::Nothing => {
                let mates: usize = said_in.get(at).map_or(0, |said| said.values().sum());
                if mates == 0 {
                    continue;
                }
                format!("its GPUs report no NVLink domain, {mates} other nodes of {at:?} do")
            }
            Reported::Several(domains, silent) => {
                let domains = quoted(domains);
                let none =
                    if silent > 0 { format!(", and {silent} name none") } else { String::new() };
                format!("its GPUs do not agree on their NVLink domain: {domains}{none}")
            }
            Reported::One(says) => match (rival(&homes_of[says], at), rival(&said_in[at], says)) {
                (Some((home, count)), _) => format!(
                    "its GPUs report NVLink domain {says:?}, as {count} of {home:?} do, the map puts it into {at:?}"
                ),
                (None, Some((other, count))) => format!(
                    "its GPUs report NVLink domain {says:?}, {count} of {at:?} report {other:?}"
                ),
                (None, None) => continue,
            },
        };
        doubts.entry(node.node.clone()).or_default().push(text);
    }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("{n:?}")).collect();
    match names.len() {
        0..=4 => names.join(", "),
        more => format!("{} and {} more", names[..3].join(", "), more - 3),
    }
}
