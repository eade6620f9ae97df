//! The job file, and the request it and the flags make together.
//!
//! In: a job file as `read` reads it, flags, the size of the largest node. Out: the job to submit.
//! Limits and rights are the scheduler's to check.

mod read; // the file's text

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tessera_model::{Bytes, CheckpointPlan, Dependency, Millis, Placement, Tier, UnixMillis};
use tessera_proto::jobs::{after_to_wire, checkpoint_to_wire, placement_to_wire, tier_to_wire};
use tessera_proto::v1;

pub use read::{parse, read};

use crate::failure::{Failure, Outcome};

/// What a job file or a set of flags says; what it does not say is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draft {
    pub name: Option<String>,
    pub team: Option<String>,
    pub project: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub nodes: Option<u32>,
    pub gpus_per_node: Option<u32>,
    /// In total; how they lie on nodes is worked out by [`shape`].
    pub gpus: Option<u32>,
    /// Thousandths of one GPU.
    pub gpu_milli: Option<u32>,
    pub tasks_per_node: Option<u32>,
    pub cpus_per_task: Option<u32>,
    pub memory_per_node: Option<Bytes>,
    pub gpu_model: Option<String>,
    pub min_nodes: Option<u32>,
    pub spares: Option<u32>,
    /// Beside the shape above.
    pub roles: Vec<v1::JobRole>,
    pub placement: Placement,
    pub tier: Option<Tier>,
    pub priority: Option<i32>,
    pub time_limit: Option<Millis>,
    pub begin: Option<UnixMillis>,
    pub after: Vec<Dependency>,
    pub singleton: Option<bool>,
    pub hold: Option<bool>,
    pub reservation: Option<String>,
    pub requeue: Option<bool>,
    pub checkpoint: CheckpointDraft,
    /// One job for each index.
    pub array: Option<v1::ArraySpec>,
    pub program: Option<Work>,
    pub env: BTreeMap<String, String>,
    pub working_dir: Option<String>,
}

/// What is said of how the job saves its work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointDraft {
    pub signal: Option<i32>,
    pub notice: Option<Millis>,
    pub restart_cost: Option<Millis>,
    pub file: Option<String>,
    pub migratable: Option<bool>,
}

/// From the signal to SIGTERM, where nothing else is said.
const NOTICE: Millis = Millis::from_secs(300);

impl CheckpointDraft {
    fn over(self, below: Self) -> Self {
        Self {
            signal: self.signal.or(below.signal),
            notice: self.notice.or(below.notice),
            restart_cost: self.restart_cost.or(below.restart_cost),
            file: self.file.or(below.file),
            migratable: self.migratable.or(below.migratable),
        }
    }

    /// `None` where nothing was said.
    fn plan(self) -> Option<CheckpointPlan> {
        if self == Self::default() {
            return None;
        }
        // Who neither listens to a signal nor writes a file has no use for a wait.
        let usual = if self.signal.is_some() || self.file.is_some() { NOTICE } else { Millis(0) };
        Some(CheckpointPlan {
            signal: self.signal,
            notice: self.notice.unwrap_or(usual),
            restart_cost: self.restart_cost.unwrap_or_default(),
            file: self.file,
            migratable: self.migratable.unwrap_or(false),
        })
    }
}

/// Each kind of wish that `above` has, and those of `below` that it is silent about.
pub fn placement_over(above: Placement, below: Placement) -> Placement {
    fn either<T>(above: Vec<T>, below: Vec<T>) -> Vec<T> {
        if above.is_empty() { below } else { above }
    }
    Placement {
        within: either(above.within, below.within),
        slices: either(above.slices, below.slices),
        at_most: either(above.at_most, below.at_most),
        spread: either(above.spread, below.spread),
        balance: above.balance.or(below.balance),
        patience: above.patience.or(below.patience),
        labels: either(above.labels, below.labels),
        only: if above.only.is_empty() { below.only } else { above.only },
        exclude: if above.exclude.is_empty() { below.exclude } else { above.exclude },
    }
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
            gpu_milli: self.gpu_milli.or(below.gpu_milli),
            tasks_per_node: self.tasks_per_node.or(below.tasks_per_node),
            cpus_per_task: self.cpus_per_task.or(below.cpus_per_task),
            memory_per_node: self.memory_per_node.or(below.memory_per_node),
            gpu_model: self.gpu_model.or(below.gpu_model),
            min_nodes: self.min_nodes.or(below.min_nodes),
            spares: self.spares.or(below.spares),
            roles: if self.roles.is_empty() { below.roles } else { self.roles },
            placement: placement_over(self.placement, below.placement),
            tier: self.tier.or(below.tier),
            priority: self.priority.or(below.priority),
            time_limit: self.time_limit.or(below.time_limit),
            begin: self.begin.or(below.begin),
            after: if self.after.is_empty() { below.after } else { self.after },
            singleton: self.singleton.or(below.singleton),
            hold: self.hold.or(below.hold),
            reservation: self.reservation.or(below.reservation),
            requeue: self.requeue.or(below.requeue),
            checkpoint: self.checkpoint.over(below.checkpoint),
            array: self.array.or(below.array),
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
            gpu_milli: self.gpu_milli.unwrap_or(0),
            min_nodes: self.min_nodes,
            spares: self.spares.unwrap_or(0),
            roles: self.roles,
            placement: (!self.placement.is_empty()).then(|| placement_to_wire(&self.placement)),
            tier: self.tier.map_or(v1::Tier::Unspecified, tier_to_wire).into(),
            priority: self.priority.unwrap_or(0),
            time_limit_ms: self.time_limit.map(|t| t.0),
            begin_unix_ms: self.begin.map(|t| t.0),
            after: after_to_wire(&self.after),
            singleton: self.singleton.unwrap_or(false),
            hold: self.hold.unwrap_or(false),
            reservation: self.reservation.unwrap_or_default(),
            requeue: self.requeue.unwrap_or(false),
            checkpoint: self.checkpoint.plan().as_ref().map(checkpoint_to_wire),
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
        // A share is of a GPU, so there is one.
        let usual = u32::from(draft.gpu_milli.is_some());
        return Ok((draft.nodes.unwrap_or(1), draft.gpus_per_node.unwrap_or(usual), None));
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

#[cfg(test)]
mod tests;
