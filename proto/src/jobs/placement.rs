//! What a job asks of its place, both ways, and whether its wishes can be meant together.
//!
//! Which levels and labels there are is the core's to know; that four nodes do not come in slices
//! of three is seen here.

use std::collections::BTreeSet;

use tessera_model::{
    AtMost, LabelOp, LabelRule, Millis, NodeId, Placement, Refusal, Slice, Spread, Strength, Within,
};

use crate::{
    door::{Checked, bad_id, count, label, line, quote, range},
    v1,
};

/// Constraints of one kind.
const EACH_MAX: usize = 16;
const LEVEL_CHARS_MAX: usize = 63;
const LABELS_MAX: usize = 64;
const LABEL_VALUES_MAX: usize = 64;
const LABEL_CHARS_MAX: usize = 256;
const NAMED_NODES_MAX: usize = 10_000;
const PATIENCE_MAX: Millis = Millis(365 * Millis::DAY.0);

pub fn placement_to_wire(placement: &Placement) -> v1::Placement {
    let required = |strength| strength == Strength::Required;
    v1::Placement {
        within: placement
            .within
            .iter()
            .map(|w| v1::Within { level: w.level.clone(), required: required(w.strength) })
            .collect(),
        slices: placement
            .slices
            .iter()
            .map(|s| v1::Slice {
                nodes: s.nodes,
                level: s.level.clone(),
                required: required(s.strength),
            })
            .collect(),
        at_most: placement
            .at_most
            .iter()
            .map(|a| v1::AtMost { domains: a.domains, level: a.level.clone() })
            .collect(),
        spread: placement
            .spread
            .iter()
            .map(|s| v1::Spread { level: s.level.clone(), max_skew: s.max_skew })
            .collect(),
        balance: placement.balance.clone().unwrap_or_default(),
        patience_ms: placement.patience.map(|p| p.0),
        labels: placement
            .labels
            .iter()
            .map(|l| v1::LabelRule {
                key: l.key.clone(),
                op: op_to_wire(l.op).into(),
                values: l.values.clone(),
            })
            .collect(),
        only: placement.only.iter().map(NodeId::to_string).collect(),
        exclude: placement.exclude.iter().map(NodeId::to_string).collect(),
    }
}

/// Only reads: a job of an earlier release must not be hidden by today's bounds, which [`check`]
/// knows.
pub fn placement_from_wire(wire: v1::Placement) -> Result<Placement, Refusal> {
    let strength = |required| if required { Strength::Required } else { Strength::Preferred };
    let nodes = |field: &'static str, names: Vec<String>| -> Checked<BTreeSet<NodeId>> {
        names.iter().map(|n| NodeId::parse(n).map_err(bad_id(field))).collect()
    };
    let rule = |wire: v1::LabelRule| {
        Ok(LabelRule { key: wire.key, op: op_from_wire(wire.op)?, values: wire.values })
    };
    Ok(Placement {
        within: wire
            .within
            .into_iter()
            .map(|w| Within { level: w.level, strength: strength(w.required) })
            .collect(),
        slices: wire
            .slices
            .into_iter()
            .map(|s| Slice { nodes: s.nodes, level: s.level, strength: strength(s.required) })
            .collect(),
        at_most: wire
            .at_most
            .into_iter()
            .map(|a| AtMost { domains: a.domains, level: a.level })
            .collect(),
        spread: wire
            .spread
            .into_iter()
            .map(|s| Spread { level: s.level, max_skew: s.max_skew.max(1) })
            .collect(),
        balance: Some(wire.balance).filter(|b| !b.is_empty()),
        patience: wire.patience_ms.map(Millis),
        labels: wire.labels.into_iter().map(rule).collect::<Checked<_>>()?,
        only: nodes("placement.only", wire.only)?,
        exclude: nodes("placement.exclude", wire.exclude)?,
    })
}

const OPS: [(LabelOp, v1::LabelOp); 4] = [
    (LabelOp::In, v1::LabelOp::In),
    (LabelOp::NotIn, v1::LabelOp::NotIn),
    (LabelOp::Exists, v1::LabelOp::Exists),
    (LabelOp::Absent, v1::LabelOp::Absent),
];

fn op_to_wire(op: LabelOp) -> v1::LabelOp {
    OPS.iter().find(|(o, _)| *o == op).expect("OPS has every operator; a test goes through them").1
}

fn op_from_wire(number: i32) -> Checked<LabelOp> {
    let known = OPS.iter().find(|(_, wire)| *wire as i32 == number);
    known.map(|(op, _)| *op).ok_or_else(|| {
        let message = format!("{number} is no operator of a label rule");
        Refusal::invalid("placement.labels", message, "use client and scheduler of one release")
    })
}

/// Bounds, and contradictions that are seen without a map. `at` stands before each field's name;
/// `nodes` is how many nodes the gang has that the slices divide.
pub(super) fn check(at: &str, placement: &Placement, nodes: u32) -> Checked {
    let field = |name: &str| format!("{at}placement.{name}");
    levels(&field("within"), placement.within.iter().map(|w| w.level.as_str()))?;
    levels(&field("slices"), placement.slices.iter().map(|s| s.level.as_str()))?;
    levels(&field("at_most"), placement.at_most.iter().map(|a| a.level.as_str()))?;
    levels(&field("spread"), placement.spread.iter().map(|s| s.level.as_str()))?;
    levels(&field("balance"), placement.balance.as_deref().into_iter())?;
    slices(&field("slices"), &placement.slices, nodes)?;
    for one in &placement.at_most {
        let hint = "name how many domains it may use, 1 or more";
        range(&field("at_most"), one.domains, 1, u32::MAX, hint)?;
    }
    for one in &placement.spread {
        let hint = "1 is as even as can be";
        range(&field("spread"), one.max_skew, 1, u32::MAX, hint)?;
    }
    if let Some(patience) = placement.patience {
        let hint = "give up to 365 days, or none to take what there is at once";
        range(&field("patience_ms"), patience.0, 0, PATIENCE_MAX.0, hint)?;
        let prefers = placement.within.iter().map(|w| w.strength);
        let mut prefers = prefers.chain(placement.slices.iter().map(|s| s.strength));
        if !prefers.any(|s| s == Strength::Preferred) {
            let message = "a patience is given, and nothing that is only preferred";
            let hint = "say what it is to wait for, such as `--within leaf:preferred`";
            return Err(Refusal::invalid(field("patience_ms"), message, hint));
        }
    }
    labels(&field("labels"), &placement.labels)?;
    count(&field("only"), placement.only.len(), NAMED_NODES_MAX, "select nodes by a label")?;
    count(&field("exclude"), placement.exclude.len(), NAMED_NODES_MAX, "exclude by a label")?;
    if let Some(both) = placement.only.intersection(&placement.exclude).next() {
        let message = format!("node {both} is both asked for and excluded");
        return Err(Refusal::invalid(field("exclude"), message, "name it once"));
    }
    Ok(())
}

/// Each level of one kind of constraint is named once.
fn levels<'a>(field: &str, levels: impl Iterator<Item = &'a str>) -> Checked {
    let mut seen = BTreeSet::new();
    for level in levels {
        label(field, level, LEVEL_CHARS_MAX)?;
        if !seen.insert(level) {
            let message = format!("the level {} is named twice", quote(level));
            return Err(Refusal::invalid(field, message, "name each level once"));
        }
        count(field, seen.len(), EACH_MAX, "name the levels that matter")?;
    }
    Ok(())
}

fn slices(field: &str, slices: &[Slice], nodes: u32) -> Checked {
    let mut whole = nodes;
    let mut of = format!("the gang of {nodes}");
    for slice in slices {
        let size = slice.nodes;
        if size == 0 {
            let message = "a slice of 0 nodes is asked for";
            return Err(Refusal::invalid(field, message, "a slice has at least 1 node"));
        }
        if !whole.is_multiple_of(size) {
            let message = format!("a slice of {size} nodes does not divide {of}");
            let fits = (1..size.min(whole)).rev().find(|n| whole.is_multiple_of(*n));
            let hint = match fits {
                Some(fits) if size < whole => format!("slices of {fits} would"),
                _ => "write the widest slice first, and none larger than the gang".to_owned(),
            };
            return Err(Refusal::invalid(field, message, hint));
        }
        whole = size;
        of = format!("the slice of {size} before it");
    }
    Ok(())
}

fn labels(field: &str, rules: &[LabelRule]) -> Checked {
    count(field, rules.len(), LABELS_MAX, "give the node one label that stands for them all")?;
    for rule in rules {
        label(field, &rule.key, LABEL_CHARS_MAX)?;
        count(field, rule.values.len(), LABEL_VALUES_MAX, "name fewer values")?;
        rule.values.iter().try_for_each(|v| line(field, v, LABEL_CHARS_MAX))?;
        let wants_values = matches!(rule.op, LabelOp::In | LabelOp::NotIn);
        if wants_values == rule.values.is_empty() {
            let message = match wants_values {
                true => format!("the label {} is to have one of no values", quote(&rule.key)),
                false => format!("whether the label {} is there needs no value", quote(&rule.key)),
            };
            let hint = "write key=value, key!=value, key or !key";
            return Err(Refusal::invalid(field, message, hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn full() -> Placement {
        let node = |n: &str| NodeId::parse(n).unwrap();
        let rule = |key: &str, op, values: &[&str]| LabelRule {
            key: key.to_owned(),
            op,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        };
        Placement {
            within: vec![
                Within { level: "block".to_owned(), strength: Strength::Required },
                Within { level: "leaf".to_owned(), strength: Strength::Preferred },
            ],
            slices: vec![
                Slice { nodes: 8, level: "leaf".to_owned(), strength: Strength::Preferred },
                Slice { nodes: 4, level: "nvlink".to_owned(), strength: Strength::Required },
            ],
            at_most: vec![AtMost { domains: 2, level: "leaf".to_owned() }],
            spread: vec![Spread { level: "rack".to_owned(), max_skew: 1 }],
            balance: Some("leaf".to_owned()),
            patience: Some(Millis(2_700_000)),
            labels: vec![
                rule("pool", LabelOp::In, &["a", "b"]),
                rule("pool", LabelOp::NotIn, &[""]),
                rule("ssd", LabelOp::Exists, &[]),
                rule("old", LabelOp::Absent, &[]),
            ],
            only: [node("n1"), node("n2")].into(),
            exclude: [node("n3")].into(),
        }
    }

    #[test]
    fn every_wish_survives_the_round_trip() {
        for placement in [Placement::default(), full()] {
            check("", &placement, 16).unwrap();
            assert_eq!(placement_from_wire(placement_to_wire(&placement)), Ok(placement));
        }
        let broken = v1::LabelRule { key: "a".to_owned(), ..Default::default() };
        let broken = v1::Placement { labels: vec![broken], ..Default::default() };
        assert_eq!(placement_from_wire(broken).unwrap_err().field, "placement.labels");
        let broken = v1::Placement { only: vec!["a b".to_owned()], ..Default::default() };
        assert_eq!(placement_from_wire(broken).unwrap_err().field, "placement.only");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_field() {
        type Spoil = fn(&mut Placement);
        let cases: &[(&str, &str, Spoil)] = &[
            ("slices", "a slice of 0 nodes", |p| p.slices[0].nodes = 0),
            ("slices", "3 nodes does not divide the gang of 16", |p| p.slices[0].nodes = 3),
            ("slices", "32 nodes does not divide the gang", |p| p.slices[0].nodes = 32),
            ("slices", "3 nodes does not divide the slice of 8", |p| p.slices[1].nodes = 3),
            ("slices", "\"leaf\" is named twice", |p| p.slices[1].level = "leaf".to_owned()),
            ("within", "is named twice", |p| p.within[1].level = "block".to_owned()),
            ("within", "64 characters", |p| p.within[1].level = "x".repeat(64)),
            ("at_most", "is 0", |p| p.at_most[0].domains = 0),
            ("at_most", "is empty", |p| p.at_most[0].level.clear()),
            ("spread", "is 0", |p| p.spread[0].max_skew = 0),
            ("balance", "unprintable", |p| p.balance = Some("a\n".to_owned())),
            ("patience_ms", "must be 0 to", |p| p.patience = Some(Millis(u64::MAX))),
            ("patience_ms", "only preferred", |p| {
                p.within.clear();
                p.slices.clear();
            }),
            ("labels", "one of no values", |p| p.labels[0].values.clear()),
            ("labels", "needs no value", |p| p.labels[2].values.push("x".to_owned())),
            ("labels", "is empty", |p| p.labels[0].key.clear()),
            ("labels", "65 entries", |p| p.labels = vec![p.labels[0].clone(); 65]),
            ("exclude", "n1 is both", |p| {
                p.exclude.insert(NodeId::parse("n1").unwrap());
            }),
        ];
        for (field, message, spoil) in cases {
            let mut placement = full();
            spoil(&mut placement);
            let refusal = check("roles[1].", &placement, 16).expect_err(message);
            assert_eq!(refusal.field, format!("roles[1].placement.{field}"), "{refusal:?}");
            assert!(refusal.message.contains(message), "{message}: {refusal:?}");
            assert!(!refusal.hint.is_empty(), "{refusal:?}");
        }
    }

    #[test]
    fn every_operator_is_on_the_wire() {
        for op in [LabelOp::In, LabelOp::NotIn, LabelOp::Exists, LabelOp::Absent] {
            assert_eq!(op_from_wire(op_to_wire(op) as i32), Ok(op));
        }
    }
}
