//! The job file, and the request it and the flags make together.
//!
//! In: TOML text, flags, the size of the largest node. Out: the job to submit. An unknown key is
//! an error that names the line and the nearest key. Limits and rights are the scheduler's to check.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tessera_model::refusal::nearest;
use tessera_model::{Bytes, Millis, Strength, Within};
use tessera_proto::v1;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::{Failure, Outcome};

/// What a job file or a set of flags says; what it does not say is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    pub name: Option<String>,
    pub team: Option<String>,
    pub project: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub nodes: Option<u32>,
    pub gpus_per_node: Option<u32>,
    /// In total; how they lie on nodes is worked out by [`shape`].
    pub gpus: Option<u32>,
    pub tasks_per_node: Option<u32>,
    pub cpus_per_task: Option<u32>,
    pub memory_per_node: Option<Bytes>,
    pub gpu_model: Option<String>,
    pub time_limit: Option<Millis>,
    pub priority: Option<i32>,
    pub requeue: Option<bool>,
    pub within: Vec<Within>,
    pub program: Option<Work>,
    pub env: BTreeMap<String, String>,
    pub working_dir: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Command(Vec<String>),
    Script { path: PathBuf, args: Vec<String> },
}

impl Draft {
    /// These words count; where they are silent, those of `below` do.
    pub fn over(self, below: Self) -> Self {
        let mut tags = below.tags;
        tags.extend(self.tags);
        let mut env = below.env;
        env.extend(self.env);
        // A total in one place and a shape in the other contradict each other: the upper one counts.
        let total_here = self.gpus.is_some();
        let shape_here = self.nodes.is_some() || self.gpus_per_node.is_some();
        let (low_gpus, low_nodes, low_each) = match (total_here, shape_here) {
            (true, _) => (None, None, None),
            (false, true) => (None, below.nodes, below.gpus_per_node),
            (false, false) => (below.gpus, below.nodes, below.gpus_per_node),
        };
        Self {
            name: self.name.or(below.name),
            team: self.team.or(below.team),
            project: self.project.or(below.project),
            tags,
            nodes: self.nodes.or(low_nodes),
            gpus_per_node: self.gpus_per_node.or(low_each),
            gpus: self.gpus.or(low_gpus),
            tasks_per_node: self.tasks_per_node.or(below.tasks_per_node),
            cpus_per_task: self.cpus_per_task.or(below.cpus_per_task),
            memory_per_node: self.memory_per_node.or(below.memory_per_node),
            gpu_model: self.gpu_model.or(below.gpu_model),
            time_limit: self.time_limit.or(below.time_limit),
            priority: self.priority.or(below.priority),
            requeue: self.requeue.or(below.requeue),
            within: if self.within.is_empty() { below.within } else { self.within },
            program: self.program.or(below.program),
            env,
            working_dir: self.working_dir.or(below.working_dir),
        }
    }

    /// Whether [`shape`] has to know the largest node.
    pub fn needs_largest_node(&self) -> bool {
        self.gpus.is_some_and(|g| g > 0) && self.nodes.is_none() && self.gpus_per_node.is_none()
    }

    /// The request on the wire; reads the script.
    pub fn spec(self, nodes: u32, gpus_per_node: u32) -> Outcome<v1::JobSpec> {
        let Some(program) = self.program else {
            return Err(Failure::usage(
                "nothing to run",
                "give a script (`tessera submit run.sh`), a command after `--`, or `command` in \
                 the job file",
            ));
        };
        let (argv, script, default_name) = match program {
            Work::Command(argv) => {
                let name = argv.first().map(|p| base_name(Path::new(p))).unwrap_or_default();
                if argv.first().is_none_or(String::is_empty) {
                    return Err(Failure::usage(
                        "the command is empty",
                        "name a program after `--`",
                    ));
                }
                (argv, None, name)
            }
            Work::Script { path, args } => {
                let name = base_name(&path);
                (args, Some(read_script(&path)?), name)
            }
        };
        Ok(v1::JobSpec {
            name: self.name.unwrap_or(default_name),
            team: self.team.unwrap_or_default(),
            project: self.project.unwrap_or_default(),
            tags: self.tags,
            nodes,
            gpus_per_node,
            tasks_per_node: self.tasks_per_node.unwrap_or(0),
            cpus_per_task: self.cpus_per_task.unwrap_or(0),
            memory_per_node_bytes: self.memory_per_node.map_or(0, |m| m.0),
            gpu_model: self.gpu_model.unwrap_or_default(),
            within: self
                .within
                .into_iter()
                .map(|w| v1::Within { required: w.strength == Strength::Required, level: w.level })
                .collect(),
            priority: self.priority.unwrap_or(0),
            time_limit_ms: self.time_limit.map(|t| t.0),
            requeue: self.requeue.unwrap_or(false),
            argv,
            script,
            env: self.env,
            working_dir: self.working_dir,
            user: String::new(),
        })
    }
}

fn base_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read_script(path: &Path) -> Outcome<String> {
    if !path.exists() {
        return Err(Failure::usage(
            format!("there is no script {}", path.display()),
            "check the path; a command with arguments goes after `--`: tessera submit -- hostname",
        ));
    }
    let bytes =
        std::fs::read(path).map_err(|error| Failure::file("read the script", path, &error))?;
    String::from_utf8(bytes).map_err(|_| {
        Failure::usage(
            format!("{} is no text, so it is no script", path.display()),
            format!("run a program by its path: tessera submit -- {}", path.display()),
        )
    })
}

/// How many nodes, and how many GPUs on each. The text says how a total was read.
pub fn shape(draft: &Draft, largest: u32) -> Outcome<(u32, u32, Option<String>)> {
    let Some(total) = draft.gpus else {
        return Ok((draft.nodes.unwrap_or(1), draft.gpus_per_node.unwrap_or(0), None));
    };
    let uneven = |parts: u32, what: &str| {
        Failure::usage(
            format!("{total} GPUs do not divide by {parts} {what}"),
            "give --nodes and --gpus-per-node instead of --gpus",
        )
    };
    let (nodes, each) = match (draft.nodes, draft.gpus_per_node) {
        (Some(nodes), each) if nodes > 0 => {
            if total % nodes != 0 {
                return Err(uneven(nodes, "nodes"));
            }
            if each.is_some_and(|e| e != total / nodes) {
                return Err(Failure::usage(
                    format!("{total} GPUs on {nodes} nodes are not {} on each", each.unwrap_or(0)),
                    "leave out one of --gpus, --nodes and --gpus-per-node",
                ));
            }
            (nodes, total / nodes)
        }
        (_, Some(each)) if each > 0 => {
            if total % each != 0 {
                return Err(uneven(each, "GPUs per node"));
            }
            (total / each, each)
        }
        _ if total <= largest || total == 0 => (1, total),
        _ if largest == 0 => {
            return Err(Failure::usage(
                format!("{total} GPUs are asked for, and no node has any"),
                "see `tessera nodes`, or give --nodes and --gpus-per-node",
            ));
        }
        _ if total.is_multiple_of(largest) => (total / largest, largest),
        _ => {
            let down = total / largest * largest;
            return Err(Failure::usage(
                format!("{total} GPUs do not fill whole nodes: the largest node has {largest}"),
                format!(
                    "ask for {down} or {}, or give --nodes and --gpus-per-node",
                    down.saturating_add(largest)
                ),
            ));
        }
    };
    let on =
        if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes, {each} on each") };
    Ok((nodes, each, Some(format!("{total} GPUs read as {on}"))))
}

/// `leaf`, `leaf:required` or `leaf:preferred`.
pub fn parse_within(text: &str) -> Result<Within, String> {
    let (level, strength) = text.split_once(':').unwrap_or((text, "required"));
    if level.is_empty() {
        return Err("the level's name is missing; write leaf or leaf:preferred".to_owned());
    }
    Ok(Within { level: level.to_owned(), strength: parse_strength(strength)? })
}

fn parse_strength(text: &str) -> Result<Strength, String> {
    match text {
        "required" => Ok(Strength::Required),
        "preferred" => Ok(Strength::Preferred),
        other => Err(format!("{other:?} is neither \"required\" nor \"preferred\"")),
    }
}

const KEYS: [&str; 20] = [
    "version",
    "name",
    "team",
    "project",
    "tags",
    "nodes",
    "gpus_per_node",
    "gpus",
    "tasks_per_node",
    "cpus_per_task",
    "memory_per_node",
    "gpu_model",
    "time_limit",
    "priority",
    "requeue",
    "command",
    "script",
    "args",
    "env",
    "working_dir",
];

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
            "memory_per_node" => {
                let size = text_of(value, name)?;
                draft.memory_per_node = Some(Bytes::parse(&size).ok_or_else(|| {
                    fault(value, name, format!("{size:?} is no size; write \"180GB\" or \"512M\""))
                })?);
            }
            "gpu_model" => draft.gpu_model = Some(text_of(value, name)?),
            "time_limit" => {
                let length = text_of(value, name)?;
                draft.time_limit = Some(Millis::parse(&length).ok_or_else(|| {
                    let why = format!("{length:?} is no length of time; write \"3d\" or \"1h30m\"");
                    fault(value, name, why)
                })?);
            }
            "priority" => {
                let number = whole(value, name)?;
                draft.priority = Some(i32::try_from(number).map_err(|_| {
                    fault(value, name, format!("`priority` {number} is out of range"))
                })?);
            }
            "requeue" => {
                draft.requeue = Some(
                    value
                        .get_ref()
                        .as_bool()
                        .ok_or_else(|| wrong_type(value, name, "true or false"))?,
                );
            }
            "command" => command = Some((value, list_of(value, name)?)),
            "script" => script = Some((value, text_of(value, name)?)),
            "args" => args = Some((value, list_of(value, name)?)),
            "env" => draft.env = map_of(value, name)?,
            "working_dir" => draft.working_dir = Some(text_of(value, name)?),
            "placement" => draft.within = placement(value)?,
            _ => {
                let known: Vec<&str> = KEYS.iter().copied().chain(["placement"]).collect();
                return Err(unknown(key.span().start, "", name, &known));
            }
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

fn placement(value: &Value<'_>) -> Result<Vec<Within>, Fault> {
    let table =
        value.get_ref().as_table().ok_or_else(|| wrong_type(value, "placement", "a table"))?;
    let mut within = Vec::new();
    for (key, value) in table {
        if *key.get_ref() != "within" {
            return Err(unknown(key.span().start, "placement.", key.get_ref(), &["within"]));
        }
        let field = "placement.within";
        let items = value.get_ref().as_array().ok_or_else(|| wrong_type(value, field, "a list"))?;
        for item in items.iter() {
            within.push(one_within(item, field)?);
        }
    }
    Ok(within)
}

fn one_within(item: &Value<'_>, field: &str) -> Result<Within, Fault> {
    if let Some(text) = item.get_ref().as_str() {
        return parse_within(text).map_err(|why| fault(item, field, why));
    }
    let table = item
        .get_ref()
        .as_table()
        .ok_or_else(|| wrong_type(item, field, "{ level = \"leaf\", strength = \"required\" }"))?;
    let (mut level, mut strength) = (None, Strength::Required);
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "level" => level = Some(text_of(value, "level")?),
            "strength" => {
                let word = text_of(value, "strength")?;
                strength = parse_strength(&word).map_err(|why| fault(value, field, why))?;
            }
            other => {
                let known = ["level", "strength"];
                return Err(unknown(key.span().start, "placement.within.", other, &known));
            }
        }
    }
    let level = level.ok_or_else(|| fault(item, field, "`level` is missing"))?;
    Ok(Within { level, strength })
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

#[cfg(test)]
mod tests;
