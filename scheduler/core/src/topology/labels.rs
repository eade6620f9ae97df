//! Fabrics from nodes' labels.
//!
//! In: every node's labels. Out: what they alone describe, for clusters whose operator gives no map:
//! clouds, topograph and Kubernetes label nodes with the switches, blocks and zones they stand in.
//! Which NVLink domain a label names is [`super::nvlink_label`]'s.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{Fabric, NodeId};

use super::{LEVELS_MAX, NET, ZONE, is_domain, tier_name};

/// One source's labels for the same tree: a name for each level, widest first, and its label.
struct Family {
    levels: Vec<String>,
    /// Parallel to `levels`.
    keys: Vec<String>,
}

/// The fabrics that labels alone describe: [`NET`] from the kind of labels that places most nodes,
/// [`ZONE`] from regions and zones. A node that lacks one of a fabric's levels is not in it.
pub fn from_labels<'a>(
    nodes: impl Iterator<Item = (&'a NodeId, &'a BTreeMap<String, String>)>,
) -> Vec<Fabric> {
    let nodes: Vec<(&NodeId, &BTreeMap<String, String>)> =
        nodes.filter(|(_, labels)| !labels.is_empty()).collect();
    let mut families = net_families(&nodes);
    // On a tie the earlier, more exact kind stays: the sort is stable.
    families.sort_by_cached_key(|f| {
        std::cmp::Reverse(nodes.iter().filter(|(_, labels)| f.path(labels).is_some()).count())
    });
    let net = families.iter().find_map(|family| family.fabric(NET, &nodes));
    net.into_iter().chain(zone_family(&nodes).fabric(ZONE, &nodes)).collect()
}

impl Family {
    fn new<const N: usize>(levels: [(&str, &str); N]) -> Self {
        Self {
            levels: levels.iter().map(|(level, _)| (*level).to_owned()).collect(),
            keys: levels.iter().map(|(_, key)| (*key).to_owned()).collect(),
        }
    }

    /// A node's domains; `None` where one is missing.
    fn path<'a>(&self, labels: &'a BTreeMap<String, String>) -> Option<Vec<&'a str>> {
        let value =
            |key: &String| labels.get(key).map(String::as_str).filter(|domain| is_domain(domain));
        self.keys.iter().map(value).collect()
    }

    /// `None` where no node has all of the labels.
    fn fabric(&self, name: &str, nodes: &[(&NodeId, &BTreeMap<String, String>)]) -> Option<Fabric> {
        let owned = |path: Vec<&str>| path.into_iter().map(str::to_owned).collect();
        let placed = nodes
            .iter()
            .filter_map(|(node, labels)| Some(((*node).clone(), owned(self.path(labels)?))));
        let fabric = Fabric {
            name: name.to_owned(),
            levels: self.levels.clone(),
            nodes: placed.collect(),
            switches: BTreeMap::new(),
        };
        if fabric.nodes.is_empty() { None } else { told_apart(fabric) }
    }
}

/// A name that is found under two parents stands for two domains: it is written behind its parent's.
/// `None` where that makes one that is there already: the labels are no tree.
fn told_apart(mut fabric: Fabric) -> Option<Fabric> {
    for depth in 1..fabric.levels.len() {
        let mut parents: BTreeMap<&str, &str> = BTreeMap::new();
        let mut torn: BTreeSet<String> = BTreeSet::new();
        for path in fabric.nodes.values() {
            let parent = path[depth - 1].as_str();
            if *parents.entry(&path[depth]).or_insert(parent) != parent {
                torn.insert(path[depth].clone());
            }
        }
        for path in fabric.nodes.values_mut().filter(|path| torn.contains(&path[depth])) {
            path[depth] = format!("{}/{}", path[depth - 1], path[depth]);
        }
    }
    let is_sound = fabric.torn_domain().is_none()
        && fabric.nodes.values().flatten().all(|domain| is_domain(domain));
    is_sound.then_some(fabric)
}

fn net_families(nodes: &[(&NodeId, &BTreeMap<String, String>)]) -> Vec<Family> {
    let numbered = |begin: &str, from: usize| -> Vec<String> {
        (from..from + LEVELS_MAX).map(|n| format!("{begin}{n}")).collect()
    };
    // topograph counts tiers from the leaf, its older releases name them; AWS counts from the top,
    // and the last layer that a node has is its leaf.
    let topograph = numbered("fabric.topograph.run/tier-", 0);
    let older = ["leaf", "spine", "core"].map(|t| format!("network.topology.nvidia.com/{t}"));
    let aws = numbered("topology.k8s.aws/network-node-layer-", 1);
    let mut families: Vec<Family> = [(&topograph[..], true), (&older[..], true), (&aws[..], false)]
        .into_iter()
        .filter_map(|(keys, is_from_leaf)| {
            let depth = usual_depth(nodes, keys)?;
            let mut keys = keys[..depth].to_vec();
            if is_from_leaf {
                keys.reverse();
            }
            Some(Family { levels: (0..depth).rev().map(tier_name).collect(), keys })
        })
        .collect();
    let mut gce = Family::new([
        ("block", "cloud.google.com/gce-topology-block"),
        ("subblock", "cloud.google.com/gce-topology-subblock"),
    ]);
    // A physical host is a level only where several nodes share one.
    const HOST: &str = "cloud.google.com/gce-topology-host";
    let mut hosts = BTreeSet::new();
    if nodes.iter().filter_map(|(_, labels)| labels.get(HOST)).any(|host| !hosts.insert(host)) {
        gce.levels.push("host".to_owned());
        gce.keys.push(HOST.to_owned());
    }
    families.push(gce);
    families
}

fn zone_family(nodes: &[(&NodeId, &BTreeMap<String, String>)]) -> Family {
    const REGION: &str = "topology.kubernetes.io/region";
    const ZONE: &str = "topology.kubernetes.io/zone";
    let have = |key: &str| nodes.iter().filter(|(_, labels)| labels.contains_key(key)).count();
    match (have(REGION), have(ZONE)) {
        (0, _) => Family::new([("zone", ZONE)]),
        (_, 0) => Family::new([("region", REGION)]),
        _ => Family::new([("region", REGION), ("zone", ZONE)]),
    }
}

/// How many of the labels, counted from the first, most of the nodes have that have any; of two
/// answers that as many give, the larger. So one node with odd labels does not change what all
/// others see.
fn usual_depth(nodes: &[(&NodeId, &BTreeMap<String, String>)], keys: &[String]) -> Option<usize> {
    let mut count: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, labels) in nodes {
        *count.entry(keys.iter().take_while(|k| labels.contains_key(*k)).count()).or_default() += 1;
    }
    count.remove(&0);
    count.into_iter().max_by_key(|(depth, nodes)| (*nodes, *depth)).map(|(depth, _)| depth)
}
