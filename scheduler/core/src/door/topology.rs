//! A new map at the door: taken whole, or refused and the old one stays.
//!
//! In: a map, as files or a caller gave it. Out: the event that puts it in force and what it
//! changes, or a refusal. Running jobs keep their places whatever the map says of them now.
//!
//! Two things are never done without being said. **A node does not drop out of a level**: who stood
//! in one, by the operator's word, a label's or its GPUs', stands in it under the new map too, in
//! whatever domain, unless the caller allows the drop or the map lists the node as unplaced. **A map
//! does not name nodes nobody has heard of**, since that is how a slip looks; known are nodes that
//! joined, those that a join token is out for, and those of the map in force.

use std::collections::BTreeSet;

use tessera_model::{NodeId, Refusal, RefusalKind, Target, Topology};

use crate::cluster::Cluster;
use crate::event::Event;
use crate::topology::{effective, flaw};

/// What the caller answers for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// The map may name nodes that never joined, since they will.
    pub unknown: bool,
    /// Nodes may lose levels.
    pub drop: bool,
    /// These may, too.
    pub unplaced: BTreeSet<NodeId>,
}

impl From<bool> for Allow {
    fn from(unknown: bool) -> Self {
        Self { unknown, ..Self::default() }
    }
}

/// What a map changes, for whoever brought it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapChange {
    /// False: the same map is in force already.
    pub changed: bool,
    /// Every level there is then, with those that labels and GPUs add.
    pub levels: Vec<String>,
    /// Nodes the map names.
    pub nodes: usize,
    /// Nodes of the cluster that come into a level.
    pub added: Vec<NodeId>,
    /// Nodes that stand in another domain of a level than before.
    pub moved: Vec<NodeId>,
    /// Nodes that leave a level, as was allowed.
    pub dropped: Vec<NodeId>,
    /// Nodes the map names that never joined.
    pub unknown: Vec<NodeId>,
    /// A sentence each.
    pub warnings: Vec<String>,
}

/// Why a map is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapProblem {
    #[error("the map is broken: {0}")]
    Broken(String),
    #[error("the map names {}, which never joined", some(.0.iter()))]
    Unknown(Vec<NodeId>),
    #[error("the map drops {} out of {}", some(.nodes.iter()), levels_word(.levels))]
    Drops { nodes: Vec<NodeId>, levels: BTreeSet<String> },
}

impl MapProblem {
    /// The nodes it is about, so that whoever read a file can say in which line they stand.
    pub fn nodes(&self) -> &[NodeId] {
        match self {
            Self::Broken(_) => &[],
            Self::Unknown(nodes) | Self::Drops { nodes, .. } => nodes,
        }
    }

    pub fn hint(&self) -> String {
        match self {
            Self::Broken(_) => "the map in force stays; give each node one place".to_owned(),
            Self::Unknown(_) => {
                "the map in force stays; if they are yet to join, say so: allow_unknown = true in the file, --allow-unknown, or --topology-allow-unknown for the scheduler's own files"
                    .to_owned()
            }
            Self::Drops { .. } => {
                "the map in force stays; give them a place, list them as unplaced in the file, or allow it: --drop-nodes, or --topology-drop-nodes for the scheduler's own files"
                    .to_owned()
            }
        }
    }

    pub fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Broken(_) => RefusalKind::Invalid,
            Self::Unknown(_) | Self::Drops { .. } => RefusalKind::Precondition,
        };
        Refusal::new(kind, "map", self.to_string(), self.hint())
    }
}

/// [`check_map`] for callers without lines to point at. `true` allows unknown nodes.
pub fn load_map(
    cluster: &Cluster,
    map: Topology,
    allow: impl Into<Allow>,
) -> Result<(MapChange, Vec<Event>), Refusal> {
    check_map(cluster, map, &allow.into()).map_err(|problem| problem.refusal())
}

/// Holds a map against the cluster as it is.
pub fn check_map(
    cluster: &Cluster,
    map: Topology,
    allow: &Allow,
) -> Result<(MapChange, Vec<Event>), MapProblem> {
    if let Some(flaw) = flaw(&map) {
        return Err(MapProblem::Broken(flaw));
    }
    let unknown = unknown_nodes(cluster, &map);
    let new_names: Vec<NodeId> =
        unknown.iter().filter(|n| !is_in(&cluster.topology, n)).cloned().collect();
    if !new_names.is_empty() && !allow.unknown {
        return Err(MapProblem::Unknown(new_names));
    }
    let inventories = || cluster.nodes.values().map(|n| &n.inventory);
    let before = effective(&cluster.topology, inventories());
    let after = effective(&map, inventories());
    let mut change = MapChange {
        changed: map != cluster.topology,
        levels: after.levels().map(str::to_owned).collect(),
        nodes: map.nodes().len(),
        unknown,
        ..MapChange::default()
    };
    let mut forbidden = Vec::new();
    let mut lost_levels = BTreeSet::new();
    for node in cluster.nodes.keys() {
        let old: BTreeSet<(&str, &str)> = before.domains_of(node).collect();
        let new: BTreeSet<(&str, &str)> = after.domains_of(node).collect();
        let levels = |of: &BTreeSet<(&'_ str, &'_ str)>| -> BTreeSet<String> {
            of.iter().map(|(level, _)| (*level).to_owned()).collect()
        };
        let (old_levels, new_levels) = (levels(&old), levels(&new));
        let lost: Vec<&String> = old_levels.difference(&new_levels).collect();
        if !lost.is_empty() {
            change.dropped.push(node.clone());
            if !allow.drop && !allow.unplaced.contains(node) {
                forbidden.push(node.clone());
                lost_levels.extend(lost.into_iter().cloned());
            }
        }
        if new_levels.difference(&old_levels).next().is_some() {
            change.added.push(node.clone());
        }
        let is_moved =
            new.difference(&old).any(|(level, _)| old.iter().any(|(before, _)| before == level));
        if is_moved {
            change.moved.push(node.clone());
        }
    }
    if !forbidden.is_empty() {
        return Err(MapProblem::Drops { nodes: forbidden, levels: lost_levels });
    }
    change.warnings = warnings(cluster, &change, &after);
    let events = match change.changed {
        true => vec![Event::TopologyLoaded { topology: map }],
        false => Vec::new(),
    };
    Ok((change, events))
}

/// Nodes of the map that never joined and are not about to.
fn unknown_nodes(cluster: &Cluster, map: &Topology) -> Vec<NodeId> {
    let invited: BTreeSet<&NodeId> = cluster
        .join_tokens
        .values()
        .filter(|t| t.used_by.is_none() && t.expires > cluster.now)
        .filter_map(|t| t.node.as_ref())
        .collect();
    let is_known = |node: &NodeId| {
        cluster.nodes.contains_key(node) || cluster.retired.contains(node) || invited.contains(node)
    };
    map.nodes().into_iter().filter(|node| !is_known(node)).cloned().collect()
}

fn is_in(map: &Topology, node: &NodeId) -> bool {
    map.fabrics.iter().any(|f| f.nodes.contains_key(node))
}

fn warnings(cluster: &Cluster, change: &MapChange, after: &Topology) -> Vec<String> {
    let mut warnings = Vec::new();
    if !change.unknown.is_empty() {
        let nodes = some(change.unknown.iter());
        warnings.push(format!("the map names {nodes}, which never joined"));
    }
    if !change.dropped.is_empty() {
        warnings.push(format!("{} left a level", some(change.dropped.iter())));
    }
    let domains: BTreeSet<(&str, &str)> = after
        .fabrics
        .iter()
        .flat_map(|f| f.nodes.values().flat_map(|path| f.levels.iter().zip(path)))
        .map(|(level, domain)| (level.as_str(), domain.as_str()))
        .collect();
    for mark in cluster.marks.values() {
        let (level, domain) = (mark.level.as_str(), mark.domain.as_str());
        if !domains.contains(&(level, domain)) {
            let health = mark.health;
            warnings.push(format!(
                "{level} {domain:?} is marked with {health} % of its bandwidth and is not in the map"
            ));
        }
    }
    for reservation in cluster.reservations.values() {
        if let Target::Domain { level, name } = &reservation.target
            && !domains.contains(&(level.as_str(), name.as_str()))
        {
            let reserved = &reservation.name;
            warnings.push(format!(
                "reservation {reserved:?} is for {level} {name:?}, which is not in the map"
            ));
        }
    }
    warnings
}

/// The first few names, and how many there are beside them.
fn some<'a>(nodes: impl ExactSizeIterator<Item = &'a NodeId>) -> String {
    const SHOWN: usize = 5;
    let total = nodes.len();
    let names: Vec<&str> = nodes.take(SHOWN).map(NodeId::as_str).collect();
    match total {
        0..=SHOWN => names.join(", "),
        _ => format!("{} and {} more nodes", names.join(", "), total - SHOWN),
    }
}

fn levels_word(levels: &BTreeSet<String>) -> String {
    let names: Vec<String> = levels.iter().map(|l| format!("level {l:?}")).collect();
    names.join(" and ")
}
