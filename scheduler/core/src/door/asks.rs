//! What a job asks of its place, checked before it is accepted: levels and nodes that do not exist,
//! wishes that contradict each other, shapes no node could take part in.
//!
//! In: a job and the cluster's layout. Out: nothing, or a refusal with the field, the reason and
//! what to write instead. That a job does not fit for now, or that the cluster is too small, is no
//! error: nodes may join.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{
    Gang, JobSpec, LabelOp, LabelRule, Millis, NodeId, Placement, Refusal, Strength, UnixMillis,
    WHOLE_GPU, refusal,
};

use crate::cluster::Cluster;
use crate::placement::space::{Kind, Layout, Space};
use crate::snapshot::NOTICE_MAX;

/// How far ahead a begin may lie.
pub const BEGIN_MAX: Millis = Millis(366 * Millis::DAY.0);
/// The highest signal Linux has.
pub const SIGNAL_MAX: i32 = 64;

type Checked = Result<(), Refusal>;

fn no(field: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Checked {
    Err(Refusal::invalid(field, message, hint))
}

pub fn check(cluster: &Cluster, now: UnixMillis, spec: &JobSpec) -> Checked {
    let space = cluster.space();
    check_counts(spec)?;
    check_when(cluster, now, spec)?;
    check_leaving(spec)?;
    let levels: Vec<&str> = cluster.map().levels().collect();
    check_placement(&levels, space, "placement", &spec.placement, &spec.gang)?;
    check_elastic(spec)?;
    check_roles(&levels, space, spec)?;
    for (_, gang) in spec.all_roles() {
        check_model(space, gang)?;
        check_shape(space, gang)?;
    }
    Ok(())
}

/// Whether it asks for nothing but nodes of one shape.
pub fn is_plain(spec: &JobSpec) -> bool {
    spec.placement.is_empty() && spec.roles.is_empty()
}

/// Whether there are as many nodes of the hardware that a plain job asks for. Looks at no more
/// nodes than it has to.
pub fn has_nodes_for(space: &Space, spec: &JobSpec) -> bool {
    let fits: Vec<bool> = space.layout.kinds.iter().map(|k| fits(k, &spec.gang)).collect();
    let need = spec.min_nodes.unwrap_or(spec.gang.nodes).saturating_add(spec.spares) as usize;
    let nodes = space.layout.kind.iter().filter(|kind| fits[usize::from(**kind)]);
    nodes.take(need).count() == need
}

fn fits(kind: &Kind, gang: &Gang) -> bool {
    matching(kind, gang) >= gang.gpus_per_node
        && kind.cpus >= gang.cpus_per_node()
        && kind.memory >= gang.memory_per_node.0
}

/// GPUs of such a node that have the model asked for.
fn matching(kind: &Kind, gang: &Gang) -> u32 {
    let model = gang.gpu_model.as_deref().unwrap_or_default().to_ascii_lowercase();
    let gpus = kind.gpus.iter().filter(|g| g.model.contains(&model)).count();
    u32::try_from(gpus).unwrap_or(u32::MAX)
}

fn check_counts(spec: &JobSpec) -> Checked {
    for (role, gang) in spec.all_roles() {
        let of = if role.is_empty() { String::new() } else { format!(" of the role {role}") };
        if gang.nodes == 0 {
            return no("nodes", format!("the gang{of} has no nodes"), "ask for 1 or more");
        }
        if !(1..=WHOLE_GPU).contains(&gang.gpu_milli) {
            let message = format!("{} thousandths of a GPU{of} is out of range", gang.gpu_milli);
            return no("gpu_milli", message, "1 to 1000 is possible; 1000 is a whole GPU");
        }
        if gang.is_share() && (gang.gpus_per_node > 1 || gang.nodes > 1) {
            let message = format!(
                "a share of a GPU is of one GPU on one node, the gang{of} has {} nodes with {} each",
                gang.nodes, gang.gpus_per_node
            );
            return no("gpu_milli", message, "ask for one GPU on one node, or for whole GPUs");
        }
    }
    if spec.spares > 0 && spec.gang.is_share() {
        let hint = "leave the spares out, or ask for whole GPUs";
        return no("spares", "a job on a share of a GPU cannot have spare nodes", hint);
    }
    Ok(())
}

fn check_when(cluster: &Cluster, now: UnixMillis, spec: &JobSpec) -> Checked {
    if let Some(begin) = spec.begin.filter(|b| b.since(now) > BEGIN_MAX) {
        let message = format!("the begin {begin} is more than 366 days ahead");
        return no("begin", message, "choose an earlier instant");
    }
    if spec.time_limit == Some(Millis(0)) {
        return no("time_limit", "the time limit is 0", "leave it out, or give it time to run");
    }
    let Some(name) = &spec.reservation else { return Ok(()) };
    let Some(reservation) = cluster.reservations.get(name) else {
        let known = cluster.reservations.keys().map(String::as_str);
        let hint = match refusal::nearest(name, known) {
            Some(near) => format!("did you mean {near}?"),
            None => "`tessera reserve list` shows those there are".to_owned(),
        };
        return no("reservation", format!("there is no reservation {name:?}"), hint);
    };
    if !reservation.teams.contains(&spec.team) {
        let message = format!("the reservation {name} is not for team {}", spec.team);
        let hint = format!("ask {}, who made it", reservation.owner);
        return no("reservation", message, hint);
    }
    Ok(())
}

fn check_leaving(spec: &JobSpec) -> Checked {
    let Some(plan) = &spec.checkpoint else { return Ok(()) };
    if let Some(signal) = plan.signal.filter(|s| !(1..=SIGNAL_MAX).contains(s)) {
        let hint = format!("1 to {SIGNAL_MAX} is possible; USR1 is {}", 10);
        return no("checkpoint.signal", format!("there is no signal {signal}"), hint);
    }
    if plan.notice > NOTICE_MAX {
        let message = format!("a notice of {} is too long", plan.notice);
        return no("checkpoint.notice", message, format!("at most {NOTICE_MAX} is possible"));
    }
    if let Some(file) = &plan.file
        && (file.is_empty() || file.starts_with('/') || file.split('/').any(|part| part == ".."))
    {
        let message = format!("the checkpoint file {file:?} is not inside the working directory");
        return no("checkpoint.file", message, "give a path relative to the working directory");
    }
    if plan.migratable && !spec.requeue {
        let message = "a job that may be moved has to be one that may be stopped and started again";
        return no("checkpoint.migratable", message, "add `--requeue`");
    }
    Ok(())
}

fn check_elastic(spec: &JobSpec) -> Checked {
    let Some(least) = spec.min_nodes else { return Ok(()) };
    let nodes = spec.gang.nodes;
    if least == 0 || least > nodes {
        let message = format!("at least {least} of {nodes} nodes is impossible");
        return no("min_nodes", message, format!("1 to {nodes} is possible"));
    }
    if let Some(slice) = spec.placement.slices.first()
        && !least.is_multiple_of(slice.nodes)
    {
        let message = format!("slices of {} nodes do not divide {least} nodes", slice.nodes);
        let hint = format!("ask for a multiple of {} nodes at least", slice.nodes);
        return no("min_nodes", message, hint);
    }
    Ok(())
}

fn check_roles(levels: &[&str], space: &Space, spec: &JobSpec) -> Checked {
    let mut names = BTreeSet::new();
    for role in &spec.roles {
        let name = role.name.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            let shown: String = name.chars().take(80).collect();
            let hint = "1 to 63 letters, digits, - and _ make a name";
            return no("roles.name", format!("{shown:?} is no name for a role"), hint);
        }
        if !names.insert(name) {
            let message = format!("two roles are called {name}");
            return no("roles.name", message, "give each role its own name");
        }
        let field = format!("roles.{name}.placement");
        check_placement(levels, space, &field, &role.placement, &role.gang)?;
    }
    Ok(())
}

fn check_placement(
    levels: &[&str],
    space: &Space,
    field: &str,
    asked: &Placement,
    gang: &Gang,
) -> Checked {
    if asked.is_empty() {
        return Ok(());
    }
    for level in asked.levels() {
        check_level(levels, field, level)?;
    }
    check_slices(&space.layout, field, asked, gang)?;
    check_spans(field, asked, gang)?;
    check_labels(field, &asked.labels)?;
    check_nodes(&space.layout, field, asked, gang)?;
    let preferred = asked.within.iter().map(|w| w.strength);
    let preferred = preferred.chain(asked.slices.iter().map(|s| s.strength));
    if asked.patience.is_some() && preferred.filter(|s| *s == Strength::Preferred).count() == 0 {
        let message = "there is nothing preferred that the job could have patience for";
        let hint = "make a level preferred, or leave the patience out";
        return no(format!("{field}.patience"), message, hint);
    }
    Ok(())
}

fn check_level(levels: &[&str], field: &str, level: &str) -> Checked {
    if levels.contains(&level) {
        return Ok(());
    }
    let shown: String = level.chars().take(80).collect();
    let hint = match (level, refusal::nearest(level, levels.iter().copied())) {
        ("node" | "host" | "gpu" | "numa", _) => {
            "levels are above nodes; `--nodes 1` keeps a job in one node".to_owned()
        }
        (_, Some(near)) => format!("did you mean {near}?"),
        _ if levels.is_empty() => {
            "there is no map of the network yet: `tessera topology load FILE`, or leave `--within` and the like out"
                .to_owned()
        }
        _ => format!("there are: {}", levels.join(", ")),
    };
    no(field, format!("the topology has no level {shown:?}"), hint)
}

fn check_slices(layout: &Layout, field: &str, asked: &Placement, gang: &Gang) -> Checked {
    let field = format!("{field}.slices");
    let mut outer: Option<(u32, &str)> = None;
    for slice in &asked.slices {
        let (size, level) = (slice.nodes, slice.level.as_str());
        let (whole, of) = match outer {
            None => (gang.nodes, format!("{} nodes", gang.nodes)),
            Some((wider, _)) => (wider, format!("slices of {wider} nodes")),
        };
        if size == 0 || !whole.is_multiple_of(size) {
            let message = format!("slices of {size} nodes do not divide {of}");
            let fits: Vec<String> = (1..=whole.min(1_024))
                .filter(|d| whole.is_multiple_of(*d))
                .map(|d| d.to_string())
                .collect();
            return no(field, message, format!("these divide them: {}", fits.join(", ")));
        }
        if let Some((wider, above)) = outer {
            let (a, b) = (layout.level(above), layout.level(level));
            let same_tree = a.map(|a| a.0) == b.map(|b| b.0);
            if same_tree && a >= b {
                let message = format!(
                    "slices of {wider} nodes in one {above} cannot hold slices in one {level}, which is no narrower"
                );
                return no(field, message, "write the widest level and the largest slices first");
            }
        }
        outer = Some((size, level));
    }
    Ok(())
}

/// Wishes about how many domains are used, against each other.
fn check_spans(field: &str, asked: &Placement, gang: &Gang) -> Checked {
    let required = |level: &str| {
        asked.within.iter().any(|w| w.level == level && w.strength == Strength::Required)
    };
    let mut bounds: BTreeMap<&str, u32> = BTreeMap::new();
    for at_most in &asked.at_most {
        let (level, domains) = (at_most.level.as_str(), at_most.domains);
        let field = format!("{field}.at_most");
        if domains == 0 {
            let message = format!("at most 0 domains of {level} leaves no room");
            return no(field, message, "ask for 1 or more");
        }
        if bounds.insert(level, domains).is_some_and(|other| other != domains) {
            let message = format!("two different bounds on domains of {level}");
            return no(field, message, "give one");
        }
    }
    for spread in &asked.spread {
        let (level, field) = (spread.level.as_str(), format!("{field}.spread"));
        if spread.max_skew == 0 {
            let message = format!("a spread over {level} with a skew of 0");
            let hint = "the skew is at least 1; `--balance` asks for the same number in each";
            return no(field, message, hint);
        }
        let one = required(level) || bounds.get(level) == Some(&1);
        if one && gang.nodes > 1 {
            let message = format!("the gang is to be spread over {level} and to stay in one");
            return no(field, message, "leave one of the two out");
        }
    }
    Ok(())
}

fn check_labels(field: &str, rules: &[LabelRule]) -> Checked {
    let field = format!("{field}.labels");
    for rule in rules {
        let takes_values = matches!(rule.op, LabelOp::In | LabelOp::NotIn);
        if rule.key.is_empty() || rule.key.len() > 317 || rule.key.chars().any(char::is_control) {
            let shown: String = rule.key.chars().take(80).collect();
            return no(field, format!("{shown:?} is no label"), "give a label's name: `zone=a`");
        }
        if takes_values == rule.values.is_empty() {
            let key = &rule.key;
            let (message, hint) = match takes_values {
                true => (format!("the rule on {key} has no values"), format!("`{key}=VALUE`")),
                false => {
                    (format!("the rule on {key} needs no values"), format!("`{key}` or `!{key}`"))
                }
            };
            return no(field, message, hint);
        }
    }
    // A value that every `in` of a key allows, and that no `not_in` takes away again.
    let keys: BTreeSet<&str> = rules.iter().map(|r| r.key.as_str()).collect();
    for key in keys {
        let of = |op: LabelOp| rules.iter().filter(move |r| r.key == key && r.op == op);
        let has = |op: LabelOp| of(op).next().is_some();
        let mut left: Option<BTreeSet<&String>> = None;
        for rule in of(LabelOp::In) {
            let values: BTreeSet<&String> = rule.values.iter().collect();
            left = Some(match left {
                Some(left) => left.intersection(&values).copied().collect(),
                None => values,
            });
        }
        let taken: BTreeSet<&String> = of(LabelOp::NotIn).flat_map(|r| &r.values).collect();
        let none_left = left.is_some_and(|l| l.iter().all(|v| taken.contains(v)));
        let must_have = has(LabelOp::In) || has(LabelOp::Exists);
        if none_left || (must_have && has(LabelOp::Absent)) {
            let message = format!("no node can fulfil all that is asked of the label {key}");
            return no(field, message, "nodes have to fulfil every rule; leave one out");
        }
    }
    Ok(())
}

fn check_nodes(layout: &Layout, field: &str, asked: &Placement, gang: &Gang) -> Checked {
    for (list, name) in [(&asked.only, "only"), (&asked.exclude, "exclude")] {
        if let Some(node) = list.iter().find(|n| layout.index(n).is_none()) {
            let known = layout.ids.iter().map(NodeId::as_str);
            let hint = match refusal::nearest(node.as_str(), known) {
                Some(near) => format!("did you mean {near}?"),
                None => "`tessera nodes` lists them".to_owned(),
            };
            return no(format!("{field}.{name}"), format!("there is no node {node}"), hint);
        }
    }
    if let Some(node) = asked.only.intersection(&asked.exclude).next() {
        let message = format!("{node} is both asked for and excluded");
        return no(format!("{field}.exclude"), message, "leave it out of one of the two");
    }
    let listed = u32::try_from(asked.only.len()).unwrap_or(u32::MAX);
    if listed > 0 && listed < gang.nodes {
        let message = format!("{} nodes cannot be found among the {listed} listed", gang.nodes);
        return no(format!("{field}.only"), message, "list more nodes, or ask for fewer");
    }
    Ok(())
}

fn check_model(space: &Space, gang: &Gang) -> Checked {
    let Some(model) = gang.gpu_model.as_deref().filter(|_| !space.is_empty()) else {
        return Ok(());
    };
    let models = space.layout.kinds.iter().flat_map(|k| &k.gpus).map(|g| g.model.as_str());
    let known: BTreeSet<&str> = models.collect();
    let wanted = model.to_ascii_lowercase();
    if known.iter().any(|m| m.contains(&wanted)) {
        return Ok(());
    }
    let hint = if known.is_empty() {
        "no node has a GPU".to_owned()
    } else {
        format!("there are: {}", known.into_iter().collect::<Vec<_>>().join(", "))
    };
    let shown: String = model.chars().take(80).collect();
    no("gpu_model", format!("no node has a GPU of the model {shown:?}"), hint)
}

/// Refuses what no single node could take part in, and says which limit is in the way.
fn check_shape(space: &Space, gang: &Gang) -> Checked {
    let kinds = &space.layout.kinds;
    if kinds.is_empty() {
        // Nodes may still join; the job waits for them.
        return Ok(());
    }
    let largest = kinds.iter().map(|k| matching(k, gang)).max().unwrap_or(0);
    if gang.gpus_per_node > largest {
        let asked = gang.gpus_per_node;
        let message =
            format!("the job asks for {asked} GPUs on one node, the largest node has {largest}");
        let hint = match largest {
            0 => "leave the GPUs out, or add nodes that have some".to_owned(),
            _ => format!("ask for `--gpus-per-node {largest}` and more nodes"),
        };
        return no("gpus_per_node", message, hint);
    }
    let cpus = kinds.iter().map(|k| k.cpus).max().unwrap_or(0);
    if gang.cpus_per_node() > cpus {
        let message = format!(
            "{} tasks with {} CPUs each need {} CPUs on one node, the largest node has {cpus}",
            gang.tasks_per_node,
            gang.cpus_per_task,
            gang.cpus_per_node()
        );
        return no("cpus_per_task", message, "ask for fewer CPUs or tasks a node");
    }
    let memory = kinds.iter().map(|k| k.memory).max().unwrap_or(0);
    if gang.memory_per_node.0 > memory {
        let message = format!(
            "the job asks for {} of memory on one node, the largest node has {}",
            gang.memory_per_node,
            tessera_model::Bytes(memory)
        );
        return no("memory_per_node", message, "ask for less memory and more nodes");
    }
    Ok(())
}
