//! The map at the door: fabrics, what is said of their domains, and what speaks against them.
//!
//! A map from outside is read with bounds; whether it is a good one for this cluster is the core's
//! to say, and reading the formats of files is the scheduler's.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{DomainMark, Fabric, NodeId, Refusal, Topology, UnixMillis, UserId};

use crate::{
    door::{Checked, bad_id, count, label, line, quote, range},
    jobs, v1,
};

const FABRICS_MAX: usize = 16;
const LEVELS_MAX: usize = 16;
const NODES_MAX: usize = 200_000;
const NAME_CHARS_MAX: usize = 63;
const DOMAIN_CHARS_MAX: usize = 128;
const REASON_CHARS_MAX: usize = 1_024;

pub fn fabrics_to_wire(topology: &Topology) -> Vec<v1::Fabric> {
    let fabric = |f: &Fabric| v1::Fabric {
        name: f.name.clone(),
        levels: f.levels.clone(),
        nodes: f
            .nodes
            .iter()
            .map(|(node, path)| v1::NodePath { node: node.to_string(), domains: path.clone() })
            .collect(),
        switches: f
            .switches
            .iter()
            .map(|(domain, names)| v1::SwitchNames {
                domain: domain.clone(),
                switches: names.iter().cloned().collect(),
            })
            .collect(),
    };
    topology.fabrics.iter().map(fabric).collect()
}

pub fn fabrics_from_wire(wire: Vec<v1::Fabric>) -> Result<Topology, Refusal> {
    count("fabrics", wire.len(), FABRICS_MAX, "a map has no more fabrics than that")?;
    all_different("fabrics", "fabric", wire.iter().map(|f| f.name.as_str()))?;
    let levels = wire.iter().flat_map(|f| f.levels.iter().map(String::as_str));
    all_different("levels", "level", levels)?;
    Ok(Topology { fabrics: wire.into_iter().map(fabric_from_wire).collect::<Checked<_>>()? })
}

fn fabric_from_wire(wire: v1::Fabric) -> Checked<Fabric> {
    label("fabrics", &wire.name, NAME_CHARS_MAX)?;
    count("levels", wire.levels.len(), LEVELS_MAX, "merge levels that mean the same")?;
    wire.levels.iter().try_for_each(|l| label("levels", l, NAME_CHARS_MAX))?;
    count("nodes", wire.nodes.len(), NODES_MAX, "a map has no more nodes than that")?;
    all_different("nodes", "node", wire.nodes.iter().map(|n| n.node.as_str()))?;
    let depth = wire.levels.len();
    let mut fabric = Fabric { name: wire.name, levels: wire.levels, ..Fabric::default() };
    for path in wire.nodes {
        let node = NodeId::parse(&path.node).map_err(bad_id("nodes"))?;
        let domains = path.domains.len();
        if depth != domains {
            let name = &fabric.name;
            let message = format!("node {node} has {domains} domains, {name} has {depth} levels");
            return Err(Refusal::invalid("domains", message, "name one domain for each level"));
        }
        path.domains.iter().try_for_each(|d| label("domains", d, DOMAIN_CHARS_MAX))?;
        fabric.nodes.insert(node, path.domains);
    }
    for known in wire.switches {
        label("switches", &known.domain, DOMAIN_CHARS_MAX)?;
        known.switches.iter().try_for_each(|s| label("switches", s, DOMAIN_CHARS_MAX))?;
        fabric.switches.entry(known.domain).or_default().extend(known.switches);
    }
    match fabric.torn_domain() {
        None => Ok(fabric),
        Some((name, one, other)) => Err(Refusal::invalid(
            "domains",
            format!("{name} lies in both {one} and {other}"),
            "a domain lies in one wider domain: give one of the two another name",
        )),
    }
}

fn all_different<'a>(field: &str, what: &str, names: impl Iterator<Item = &'a str>) -> Checked {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            let message = format!("the {what} {} is there twice", quote(name));
            return Err(Refusal::invalid(field, message, "each may be listed once"));
        }
    }
    Ok(())
}

pub fn mark_to_wire(mark: &DomainMark) -> v1::DomainMark {
    v1::DomainMark {
        level: mark.level.clone(),
        domain: mark.domain.clone(),
        health_percent: mark.health,
        by: mark.by.to_string(),
        reason: mark.reason.clone(),
        until_unix_ms: mark.until.map(|t| t.0),
    }
}

pub fn mark_from_wire(wire: v1::DomainMark) -> Result<DomainMark, Refusal> {
    let by = UserId::parse(&wire.by).map_err(bad_id("by"))?;
    mark(wire.level, wire.domain, wire.health_percent, wire.reason, wire.until_unix_ms, by)
}

/// A wish to mark a domain, which is `by`'s.
pub fn wish_from_wire(wire: v1::MarkDomainRequest, by: UserId) -> Result<DomainMark, Refusal> {
    mark(wire.level, wire.domain, wire.health_percent, wire.reason, wire.until_unix_ms, by)
}

fn mark(
    level: String,
    domain: String,
    health: u32,
    reason: String,
    until: Option<i64>,
    by: UserId,
) -> Checked<DomainMark> {
    label("level", &level, NAME_CHARS_MAX)?;
    label("domain", &domain, DOMAIN_CHARS_MAX)?;
    range("health_percent", health, 0, 100, "100 is a healthy domain, 0 one without its links")?;
    line("reason", &reason, REASON_CHARS_MAX)?;
    let until = until.map(UnixMillis);
    if let Some(until) = until {
        jobs::check_instant("until_unix_ms", until)?;
    }
    Ok(DomainMark { level, domain, health, by, reason, until })
}

/// What speaks against the map, a sentence each.
pub fn doubts_to_wire(doubts: &BTreeMap<NodeId, Vec<String>>) -> Vec<v1::MapDoubt> {
    let each = |(node, texts): (&NodeId, &Vec<String>)| {
        let doubt = |text: &String| v1::MapDoubt { node: node.to_string(), text: text.clone() };
        texts.iter().map(doubt).collect::<Vec<_>>()
    };
    doubts.iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> Topology {
        let node = |n: &str| NodeId::parse(n).unwrap();
        let path = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let net = Fabric {
            name: "net".to_owned(),
            levels: path("block", "leaf"),
            nodes: [(node("n0"), path("b0", "l0")), (node("n1"), path("b0", "l1"))].into(),
            switches: [("l0".to_owned(), ["sw-1".to_owned()].into())].into(),
        };
        let nvlink = Fabric {
            name: "nvlink".to_owned(),
            levels: vec!["nvlink".to_owned()],
            nodes: [(node("n0"), vec!["d1".to_owned()])].into(),
            switches: BTreeMap::new(),
        };
        Topology { fabrics: vec![net, nvlink] }
    }

    #[test]
    fn a_map_survives_the_round_trip() {
        for map in [Topology::default(), map()] {
            assert_eq!(fabrics_from_wire(fabrics_to_wire(&map)), Ok(map));
        }
    }

    #[test]
    fn a_map_that_is_none_is_refused() {
        type Spoil = fn(&mut Vec<v1::Fabric>);
        let cases: [(&str, &str, Spoil); 9] = [
            ("domains", "l0 lies in both b0 and b1", |f| {
                f[0].nodes[1].domains = vec!["b1".to_owned(), "l0".to_owned()];
            }),
            ("domains", "has 1 domains, net has 2 levels", |f| {
                f[0].nodes[0].domains.pop();
            }),
            ("domains", "is empty", |f| f[0].nodes[0].domains[0].clear()),
            ("nodes", "the node \"n0\" is there twice", |f| f[0].nodes[1].node = "n0".to_owned()),
            ("nodes", "node \"a b\"", |f| f[0].nodes[1].node = "a b".to_owned()),
            ("levels", "\"leaf\" is there twice", |f| f[1].levels[0] = "leaf".to_owned()),
            ("levels", "17 entries", |f| {
                f[0].levels = (0..17).map(|i| format!("l{i}")).collect();
            }),
            ("fabrics", "\"net\" is there twice", |f| f[1].name = "net".to_owned()),
            ("switches", "is empty", |f| f[0].switches[0].domain.clear()),
        ];
        for (field, message, spoil) in cases {
            let mut wire = fabrics_to_wire(&map());
            spoil(&mut wire);
            let refusal = fabrics_from_wire(wire).expect_err(message);
            assert_eq!(refusal.field, field, "{refusal:?}");
            assert!(refusal.message.contains(message), "{message}: {refusal:?}");
        }
    }

    #[test]
    fn a_mark_survives_the_round_trip_and_has_bounds() {
        let mark = DomainMark {
            level: "leaf".to_owned(),
            domain: "l0".to_owned(),
            health: 50,
            by: UserId::parse("olga").unwrap(),
            reason: "one of two links is down".to_owned(),
            until: Some(UnixMillis(5)),
        };
        assert_eq!(mark_from_wire(mark_to_wire(&mark)), Ok(mark.clone()));
        let good = v1::MarkDomainRequest {
            level: "leaf".to_owned(),
            domain: "l0".to_owned(),
            ..Default::default()
        };
        let wish = |change: fn(&mut v1::MarkDomainRequest)| {
            let mut wire = good.clone();
            change(&mut wire);
            wish_from_wire(wire, mark.by.clone()).map_err(|e| e.field)
        };
        assert_eq!(wish(|_| {}).unwrap().health, 0);
        assert_eq!(wish(|w| w.health_percent = 101), Err("health_percent".to_owned()));
        assert_eq!(wish(|w| w.level.clear()), Err("level".to_owned()));
        assert_eq!(wish(|w| w.domain = "\u{202e}".to_owned()), Err("domain".to_owned()));
        assert_eq!(wish(|w| w.until_unix_ms = Some(-1)), Err("until_unix_ms".to_owned()));
    }
}
