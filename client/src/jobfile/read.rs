//! The text of a job file.
//!
//! In: TOML. Out: a [`Draft`], or what is wrong in which line: an unknown key is an error that names
//! the nearest known one. Single words are read by [`crate::wishes`], as in flags.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tessera_model::refusal::nearest;
use tessera_model::{Bytes, Millis, NodeId, Placement, Slice, Strength, Within};
use tessera_proto::jobs::placement_to_wire;
use tessera_proto::v1;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{CheckpointDraft, Draft, Work};
use crate::failure::{Failure, Outcome};
use crate::{when, wishes};

const KEYS: [&str; 33] = [
    "version",
    "name",
    "team",
    "project",
    "tags",
    "nodes",
    "gpus_per_node",
    "gpus",
    "gpu_share",
    "tasks_per_node",
    "cpus_per_task",
    "memory_per_node",
    "gpu_model",
    "min_nodes",
    "spares",
    "role",
    "placement",
    "tier",
    "priority",
    "time_limit",
    "begin",
    "after",
    "singleton",
    "hold",
    "reservation",
    "requeue",
    "checkpoint",
    "array",
    "command",
    "script",
    "args",
    "env",
    "working_dir",
];
const PLACEMENT_KEYS: [&str; 9] = [
    "within", "slices", "at_most", "spread", "balance", "patience", "select", "nodelist", "exclude",
];
const ROLE_KEYS: [&str; 9] = [
    "name",
    "nodes",
    "gpus_per_node",
    "gpu_share",
    "tasks_per_node",
    "cpus_per_task",
    "memory_per_node",
    "gpu_model",
    "placement",
];
const CHECKPOINT_KEYS: [&str; 5] = ["signal", "notice", "restart_cost", "file", "migratable"];

/// Reads the job file at `path`. A script's path in it is relative to the file's folder.
pub fn read(path: &Path) -> Outcome<Draft> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::file("read the job file", path, &error))?;
    parse(&text, path)
}

/// Reads the text of a job file that lies at `path`.
pub fn parse(text: &str, path: &Path) -> Outcome<Draft> {
    read_table(text, path).map_err(|fault| {
        let line = text[..fault.at.min(text.len())].matches('\n').count() + 1;
        Failure {
            field: fault.field,
            ..Failure::usage(format!("{}:{line}: {}", path.display(), fault.message), fault.hint)
        }
    })
}

/// Something wrong at one place of the text.
struct Fault {
    at: usize,
    field: String,
    message: String,
    hint: String,
}

type Value<'i> = Spanned<DeValue<'i>>;

fn fault(value: &Value<'_>, field: &str, message: impl Into<String>) -> Fault {
    Fault {
        at: value.span().start,
        field: field.to_owned(),
        message: message.into(),
        hint: String::new(),
    }
}

fn unknown(at: usize, prefix: &str, key: &str, known: &[&str]) -> Fault {
    let hint = match nearest(key, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known keys are {}", known.join(", ")),
    };
    Fault {
        at,
        field: format!("{prefix}{key}"),
        message: format!("unknown key `{prefix}{key}`"),
        hint,
    }
}

fn read_table(text: &str, path: &Path) -> Result<Draft, Fault> {
    let table = DeTable::parse(text).map_err(|error| Fault {
        at: error.span().map_or(0, |s| s.start),
        field: String::new(),
        message: error.message().to_owned(),
        hint: "the job file is TOML; texts stand in quotes: name = \"train\"".to_owned(),
    })?;
    let mut draft = Draft::default();
    let (mut command, mut script, mut args) = (None, None, None);
    let mut has_version = false;
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        match name {
            "version" => {
                has_version = true;
                let version = whole(value, name)?;
                if version != 1 {
                    return Err(Fault {
                        hint: "this tessera reads version = 1".to_owned(),
                        ..fault(
                            value,
                            name,
                            format!("version {version} of the job file is unknown"),
                        )
                    });
                }
            }
            "name" => draft.name = Some(text_of(value, name)?),
            "team" => draft.team = Some(text_of(value, name)?),
            "project" => draft.project = Some(text_of(value, name)?),
            "tags" => draft.tags = map_of(value, name)?,
            "nodes" => draft.nodes = Some(some_of(value, name)?),
            "gpus_per_node" => draft.gpus_per_node = Some(count_of(value, name)?),
            "gpus" => draft.gpus = Some(count_of(value, name)?),
            "tasks_per_node" => draft.tasks_per_node = Some(some_of(value, name)?),
            "cpus_per_task" => draft.cpus_per_task = Some(some_of(value, name)?),
            "gpu_share" => draft.gpu_milli = Some(share_of(value, name)?),
            "memory_per_node" => draft.memory_per_node = Some(size_of(value, name)?),
            "gpu_model" => draft.gpu_model = Some(text_of(value, name)?),
            "min_nodes" => draft.min_nodes = Some(some_of(value, name)?),
            "spares" => draft.spares = Some(count_of(value, name)?),
            "role" => draft.roles = roles(value)?,
            "placement" => draft.placement = placement(value, "placement.")?,
            "tier" => draft.tier = Some(read_as(value, name, wishes::tier)?),
            "priority" => {
                let number = whole(value, name)?;
                draft.priority = Some(i32::try_from(number).map_err(|_| {
                    fault(value, name, format!("`priority` {number} is out of range"))
                })?);
            }
            "time_limit" => draft.time_limit = Some(length_of(value, name)?),
            "begin" => {
                // TOML has a notation for instants of its own.
                let text = match value.get_ref() {
                    DeValue::Datetime(at) => at.to_string(),
                    _ => text_of(value, name)?,
                };
                draft.begin = Some(when::ahead(&text, when::now()).ok_or_else(|| {
                    let why = format!(
                        "{text:?} is no point in time; write \"2026-12-01T08:00\" or \"2h\""
                    );
                    fault(value, name, why)
                })?);
            }
            "after" => {
                for item in one_or_more(value) {
                    draft.after.extend(read_as(item, name, wishes::after)?);
                }
            }
            "singleton" => draft.singleton = Some(bool_of(value, name)?),
            "hold" => draft.hold = Some(bool_of(value, name)?),
            "reservation" => draft.reservation = Some(text_of(value, name)?),
            "requeue" => draft.requeue = Some(bool_of(value, name)?),
            "checkpoint" => draft.checkpoint = checkpoint(value)?,
            "array" => draft.array = Some(read_as(value, name, wishes::array)?),
            "command" => command = Some((value, list_of(value, name)?)),
            "script" => script = Some((value, text_of(value, name)?)),
            "args" => args = Some((value, list_of(value, name)?)),
            "env" => draft.env = map_of(value, name)?,
            "working_dir" => draft.working_dir = Some(text_of(value, name)?),
            _ => return Err(unknown(key.span().start, "", name, &KEYS)),
        }
    }
    if !has_version {
        return Err(Fault {
            at: 0,
            field: "version".to_owned(),
            message: "`version` is missing".to_owned(),
            hint: "begin the file with `version = 1`".to_owned(),
        });
    }
    draft.program = match (command, script, args) {
        (Some(_), Some((at, _)), _) => {
            return Err(fault(at, "script", "both `command` and `script` are given; keep one"));
        }
        (Some(_), None, Some((at, _))) => {
            return Err(fault(at, "args", "`args` goes with `script`; put them into `command`"));
        }
        (None, None, Some((at, _))) => {
            return Err(fault(at, "args", "`args` is given, but no `script`"));
        }
        (Some((at, argv)), None, None) => {
            if argv.is_empty() {
                return Err(fault(at, "command", "`command` is empty"));
            }
            Some(Work::Command(argv))
        }
        (None, Some((_, script)), args) => Some(Work::Script {
            path: path.parent().unwrap_or(Path::new("")).join(script),
            args: args.map(|(_, a)| a).unwrap_or_default(),
        }),
        (None, None, None) => None,
    };
    Ok(draft)
}

/// `prefix` stands before a key's name in errors: `placement.`.
fn placement(value: &Value<'_>, prefix: &str) -> Result<Placement, Fault> {
    let table = table_of(value, prefix.trim_end_matches('.'))?;
    let mut placement = Placement::default();
    for (key, value) in table {
        let name: &str = key.get_ref();
        let field = format!("{prefix}{name}");
        let field = field.as_str();
        match name {
            "within" => {
                for item in items(value, field)? {
                    placement.within.push(one_within(item, field)?);
                }
            }
            "slices" => {
                for item in items(value, field)? {
                    placement.slices.push(one_slice(item, field)?);
                }
            }
            "at_most" => {
                for item in items(value, field)? {
                    placement.at_most.push(read_as(item, field, wishes::at_most)?);
                }
            }
            "spread" => {
                for item in items(value, field)? {
                    placement.spread.push(read_as(item, field, wishes::spread)?);
                }
            }
            "balance" => placement.balance = Some(text_of(value, field)?),
            "patience" => placement.patience = Some(length_of(value, field)?),
            "select" => {
                for item in items(value, field)? {
                    placement.labels.push(read_as(item, field, wishes::label)?);
                }
            }
            "nodelist" => placement.only = nodes_of(value, field)?,
            "exclude" => placement.exclude = nodes_of(value, field)?,
            _ => return Err(unknown(key.span().start, prefix, name, &PLACEMENT_KEYS)),
        }
    }
    Ok(placement)
}

fn one_within(item: &Value<'_>, field: &str) -> Result<Within, Fault> {
    if item.get_ref().as_str().is_some() {
        return read_as(item, field, wishes::within);
    }
    let (level, strength, _) = constraint(item, field, &["level", "strength"])?;
    Ok(Within { level, strength })
}

fn one_slice(item: &Value<'_>, field: &str) -> Result<Slice, Fault> {
    if item.get_ref().as_str().is_some() {
        return read_as(item, field, wishes::slice);
    }
    let (level, strength, size) = constraint(item, field, &["size", "level", "strength"])?;
    let nodes = size.ok_or_else(|| fault(item, field, "`size` is missing"))?;
    Ok(Slice { nodes, level, strength })
}

/// `{ size = 4, level = "leaf", strength = "required" }`.
fn constraint(
    item: &Value<'_>,
    field: &str,
    known: &[&str],
) -> Result<(String, Strength, Option<u32>), Fault> {
    let want = "{ level = \"leaf\", strength = \"required\" }";
    let table = item.get_ref().as_table().ok_or_else(|| wrong_type(item, field, want))?;
    let (mut level, mut strength, mut size) = (None, Strength::Required, None);
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "level" => level = Some(text_of(value, "level")?),
            "strength" => strength = read_as(value, field, wishes::strength)?,
            "size" if known.contains(&"size") => size = Some(some_of(value, "size")?),
            other => return Err(unknown(key.span().start, &format!("{field}."), other, known)),
        }
    }
    let level = level.ok_or_else(|| fault(item, field, "`level` is missing"))?;
    Ok((level, strength, size))
}

fn roles(value: &Value<'_>) -> Result<Vec<v1::JobRole>, Fault> {
    items(value, "role")?.into_iter().map(role).collect()
}

fn role(value: &Value<'_>) -> Result<v1::JobRole, Fault> {
    let table = table_of(value, "role")?;
    let (mut name, mut gang, mut wish) = (None, v1::Gang::default(), Placement::default());
    for (key, value) in table {
        let field: &str = key.get_ref();
        match field {
            "name" => name = Some(text_of(value, "role.name")?),
            "nodes" => gang.nodes = some_of(value, "role.nodes")?,
            "gpus_per_node" => gang.gpus_per_node = count_of(value, "role.gpus_per_node")?,
            "gpu_share" => gang.gpu_milli = share_of(value, "role.gpu_share")?,
            "tasks_per_node" => gang.tasks_per_node = some_of(value, "role.tasks_per_node")?,
            "cpus_per_task" => gang.cpus_per_task = some_of(value, "role.cpus_per_task")?,
            "memory_per_node" => {
                gang.memory_per_node_bytes = size_of(value, "role.memory_per_node")?.0;
            }
            "gpu_model" => gang.gpu_model = text_of(value, "role.gpu_model")?,
            "placement" => wish = placement(value, "role.placement.")?,
            _ => return Err(unknown(key.span().start, "role.", field, &ROLE_KEYS)),
        }
    }
    if gang.gpu_milli > 0 && !table.contains_key("gpus_per_node") {
        gang.gpus_per_node = 1;
    }
    let name = name.ok_or_else(|| fault(value, "role", "`name` of the role is missing"))?;
    let wish = (!wish.is_empty()).then(|| placement_to_wire(&wish));
    Ok(v1::JobRole { name, gang: Some(gang), placement: wish })
}

fn checkpoint(value: &Value<'_>) -> Result<CheckpointDraft, Fault> {
    let mut plan = CheckpointDraft::default();
    for (key, value) in table_of(value, "checkpoint")? {
        let name: &str = key.get_ref();
        let field = format!("checkpoint.{name}");
        match name {
            "signal" => {
                // By its number, too.
                let text = match value.get_ref() {
                    DeValue::Integer(number) => number.as_str().to_owned(),
                    _ => text_of(value, &field)?,
                };
                let signal = wishes::signal(&text).map_err(|why| fault(value, &field, why))?;
                plan.signal = Some(signal);
            }
            "notice" => plan.notice = Some(length_of(value, &field)?),
            "restart_cost" => plan.restart_cost = Some(length_of(value, &field)?),
            "file" => plan.file = Some(text_of(value, &field)?),
            "migratable" => plan.migratable = Some(bool_of(value, &field)?),
            _ => return Err(unknown(key.span().start, "checkpoint.", name, &CHECKPOINT_KEYS)),
        }
    }
    Ok(plan)
}

fn table_of<'a, 'i>(value: &'a Value<'i>, field: &str) -> Result<&'a DeTable<'i>, Fault> {
    value.get_ref().as_table().ok_or_else(|| wrong_type(value, field, "a table"))
}

fn items<'a, 'i>(value: &'a Value<'i>, field: &str) -> Result<Vec<&'a Value<'i>>, Fault> {
    let list = value.get_ref().as_array().ok_or_else(|| wrong_type(value, field, "a list"))?;
    Ok(list.iter().collect())
}

/// The items of a list, or the value itself.
fn one_or_more<'a, 'i>(value: &'a Value<'i>) -> Vec<&'a Value<'i>> {
    match value.get_ref().as_array() {
        Some(list) => list.iter().collect(),
        None => vec![value],
    }
}

/// A text in one of the notations of [`wishes`].
fn read_as<T>(
    value: &Value<'_>,
    field: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Fault> {
    read(&text_of(value, field)?).map_err(|why| fault(value, field, why))
}

fn nodes_of(value: &Value<'_>, field: &str) -> Result<BTreeSet<NodeId>, Fault> {
    let mut nodes = BTreeSet::new();
    for item in one_or_more(value) {
        nodes.extend(read_as(item, field, wishes::nodes)?);
    }
    Ok(nodes)
}

fn length_of(value: &Value<'_>, field: &str) -> Result<Millis, Fault> {
    let length = text_of(value, field)?;
    Millis::parse(&length).ok_or_else(|| {
        let why = format!("{length:?} is no length of time; write \"3d\" or \"1h30m\"");
        fault(value, field, why)
    })
}

fn size_of(value: &Value<'_>, field: &str) -> Result<Bytes, Fault> {
    let size = text_of(value, field)?;
    Bytes::parse(&size).ok_or_else(|| {
        fault(value, field, format!("{size:?} is no size; write \"180GB\" or \"512M\""))
    })
}

fn share_of(value: &Value<'_>, field: &str) -> Result<u32, Fault> {
    let text = match value.get_ref() {
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        _ => text_of(value, field)?,
    };
    wishes::gpu_share(&text).map_err(|why| fault(value, field, why))
}

fn bool_of(value: &Value<'_>, field: &str) -> Result<bool, Fault> {
    value.get_ref().as_bool().ok_or_else(|| wrong_type(value, field, "true or false"))
}

fn wrong_type(value: &Value<'_>, field: &str, want: &str) -> Fault {
    let found = value.get_ref().type_str();
    fault(value, field, format!("`{field}` must be {want}, not {found}"))
}

fn text_of(value: &Value<'_>, field: &str) -> Result<String, Fault> {
    let text =
        value.get_ref().as_str().ok_or_else(|| wrong_type(value, field, "a text in quotes"))?;
    Ok(text.to_owned())
}

fn whole(value: &Value<'_>, field: &str) -> Result<i64, Fault> {
    value
        .get_ref()
        .as_integer()
        .and_then(|i| i64::from_str_radix(i.as_str(), i.radix()).ok())
        .ok_or_else(|| wrong_type(value, field, "a whole number"))
}

fn count_of(value: &Value<'_>, field: &str) -> Result<u32, Fault> {
    let number = whole(value, field)?;
    u32::try_from(number)
        .map_err(|_| fault(value, field, format!("`{field}` {number} is out of range")))
}

/// As [`count_of`], but none at all makes no sense.
fn some_of(value: &Value<'_>, field: &str) -> Result<u32, Fault> {
    match count_of(value, field)? {
        0 => Err(fault(value, field, format!("`{field}` is 0, it must be 1 or more"))),
        n => Ok(n),
    }
}

fn list_of(value: &Value<'_>, field: &str) -> Result<Vec<String>, Fault> {
    let want = "a list of texts, [\"python\", \"train.py\"]";
    let items = value.get_ref().as_array().ok_or_else(|| wrong_type(value, field, want))?;
    items.iter().map(|item| text_of(item, field)).collect()
}

/// Texts by name; whole numbers are taken as they are written, `OMP_NUM_THREADS = 8`.
fn map_of(value: &Value<'_>, field: &str) -> Result<BTreeMap<String, String>, Fault> {
    let want = "a table, { NAME = \"value\" }";
    let table = value.get_ref().as_table().ok_or_else(|| wrong_type(value, field, want))?;
    let mut out = BTreeMap::new();
    for (key, value) in table {
        let name: &str = key.get_ref();
        let text = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            _ => text_of(value, &format!("{field}.{name}"))?,
        };
        out.insert(name.to_owned(), text);
    }
    Ok(out)
}
