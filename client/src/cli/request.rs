//! What a job asks for, as flags: of `submit`, `explain` and `update`.
//!
//! In: words, read by [`crate::wishes`]. Out: a [`Draft`], in which a flag that was not given is
//! silent, so that a job file or the job as it is can speak.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use tessera_model::{
    AtMost, Bytes, Dependency, LabelRule, Millis, NodeId, Placement, Slice, Spread, Tier,
    UnixMillis, Within,
};
use tessera_proto::v1;

use super::{COMMAND, at_least_one, count, instant, length, pair, size, variable};
use crate::jobfile::{CheckpointDraft, Draft, Work};
use crate::wishes;

/// One `--after` or `--nodelist`, which may name several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependencies(pub Vec<Dependency>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(pub BTreeSet<NodeId>);

#[derive(Debug, Args)]
pub struct RequestArgs {
    /// Read the job from a TOML file; flags override it
    #[arg(short = 'f', long, value_name = "JOB.toml")]
    pub file: Option<PathBuf>,
    /// What people call it; default: the program's name
    #[arg(long)]
    pub name: Option<String>,
    /// The team that pays; needed when you belong to several
    #[arg(long)]
    pub team: Option<String>,
    /// The piece of the team's work it is billed under
    #[arg(long)]
    pub project: Option<String>,
    /// A tag for reports; repeatable
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = pair)]
    pub tags: Vec<(String, String)>,
    /// Nodes it needs at once
    #[arg(short = 'N', long, value_name = "COUNT", value_parser = at_least_one, allow_negative_numbers = true, help_heading = "Shape")]
    pub nodes: Option<u32>,
    /// GPUs on each node
    #[arg(short = 'G', long, value_name = "COUNT", value_parser = count, allow_negative_numbers = true, help_heading = "Shape")]
    pub gpus_per_node: Option<u32>,
    /// GPUs in total: one node where they fit, else whole nodes
    #[arg(long, value_name = "COUNT", value_parser = count, allow_negative_numbers = true, help_heading = "Shape")]
    pub gpus: Option<u32>,
    /// A part of one GPU, 0.25; nothing but the job's own restraint keeps it to that
    #[arg(long, value_name = "PART", value_parser = wishes::gpu_share, allow_negative_numbers = true, help_heading = "Shape")]
    pub gpu_share: Option<u32>,
    /// Processes on each node; default: one a GPU, at least one
    #[arg(long, value_name = "COUNT", value_parser = at_least_one, allow_negative_numbers = true, help_heading = "Shape")]
    pub tasks_per_node: Option<u32>,
    /// CPUs for each process
    #[arg(short = 'c', long, value_name = "COUNT", value_parser = at_least_one, allow_negative_numbers = true, help_heading = "Shape")]
    pub cpus_per_task: Option<u32>,
    /// Memory on each node, 180GB; a bare number is MiB
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Shape")]
    pub memory: Option<Bytes>,
    /// Part of the GPU model's name, h100
    #[arg(long, value_name = "PART", help_heading = "Shape")]
    pub gpu_model: Option<String>,
    /// Elastic: it may start with as few nodes, and be shrunk to that
    #[arg(long, value_name = "COUNT", value_parser = at_least_one, allow_negative_numbers = true, help_heading = "Shape")]
    pub min_nodes: Option<u32>,
    /// Nodes it holds beside the gang, each to replace one that dies
    #[arg(long, value_name = "COUNT", value_parser = count, allow_negative_numbers = true, help_heading = "Shape")]
    pub spares: Option<u32>,
    #[command(flatten)]
    pub place: PlacementArgs,
    /// How urgent it is: urgent, normal or idle
    #[arg(long, value_parser = wishes::tier, help_heading = "Turn")]
    pub tier: Option<Tier>,
    /// -1000 to 1000; higher goes first among your team's jobs of the tier
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "Turn")]
    pub priority: Option<i32>,
    /// It is stopped after this: 90s, 4h, 3d, or Slurm's 1-12:00:00; a bare number is minutes
    #[arg(short = 't', long, value_name = "LENGTH", allow_negative_numbers = true, value_parser = length, help_heading = "Turn")]
    pub time_limit: Option<Millis>,
    /// Not before: 2h from now, the next 14:05 (UTC), 2026-12-01T08:00
    #[arg(long, value_name = "WHEN", value_parser = instant, help_heading = "Turn")]
    pub begin: Option<UnixMillis>,
    /// Only after another job: ok:812, any:812, notok:812 or begun:812; repeatable
    #[arg(long, value_name = "KIND:JOB", value_parser = after, help_heading = "Turn")]
    pub after: Vec<Dependencies>,
    /// Not while another of your team's jobs of the same name and yours runs
    #[arg(long, help_heading = "Turn")]
    pub singleton: bool,
    /// Accept it, and start it only once it is released
    #[arg(long, help_heading = "Turn")]
    pub hold: bool,
    /// Run inside a calendar reservation
    #[arg(long, value_name = "NAME", help_heading = "Turn")]
    pub reservation: Option<String>,
    /// Start it elsewhere when its node is lost, or its place is needed
    #[arg(long, help_heading = "When it has to leave")]
    pub requeue: bool,
    /// Sent to every process when it has to leave: USR1
    #[arg(long, value_name = "SIGNAL", value_parser = wishes::signal, help_heading = "When it has to leave")]
    pub checkpoint_signal: Option<i32>,
    /// From the signal to SIGTERM at most; default with a signal or a file: 5m
    #[arg(long, value_name = "LENGTH", value_parser = length, help_heading = "When it has to leave")]
    pub notice: Option<Millis>,
    /// A file below its folder; each time it changes, its work is safe
    #[arg(long, value_name = "PATH", help_heading = "When it has to leave")]
    pub checkpoint_file: Option<String>,
    /// What a restart costs beside the work since the last checkpoint
    #[arg(long, value_name = "LENGTH", value_parser = length, help_heading = "When it has to leave")]
    pub restart_cost: Option<Millis>,
    /// May be moved right after a checkpoint, to make room for a larger gang
    #[arg(long, help_heading = "When it has to leave")]
    pub migratable: bool,
    /// A variable for its environment; without a value, yours is taken; repeatable
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Folder it runs in; default: the current one
    #[arg(long, value_name = "DIR")]
    pub working_dir: Option<String>,
}

#[derive(Debug, Args)]
pub struct PlacementArgs {
    /// All of it inside one domain of a level, leaf or leaf:preferred; repeatable
    #[arg(long, value_name = "LEVEL[:STRENGTH]", value_parser = wishes::within, help_heading = "Place")]
    pub within: Vec<Within>,
    /// Nodes in groups, each inside one domain, 4:leaf; repeatable, widest first
    #[arg(long = "slice", value_name = "NODES:LEVEL[:STRENGTH]", value_parser = wishes::slice, allow_hyphen_values = true, help_heading = "Place")]
    pub slices: Vec<Slice>,
    /// No more than so many domains of a level, 2:block; repeatable
    #[arg(long, value_name = "COUNT:LEVEL", value_parser = wishes::at_most, allow_hyphen_values = true, help_heading = "Place")]
    pub at_most: Vec<AtMost>,
    /// Evenly over the domains of a level, leaf or leaf:1; repeatable
    #[arg(long, value_name = "LEVEL[:SKEW]", value_parser = wishes::spread, help_heading = "Place")]
    pub spread: Vec<Spread>,
    /// The same number of nodes in each domain of a level that it uses
    #[arg(long, value_name = "LEVEL", help_heading = "Place")]
    pub balance: Option<String>,
    /// How long to wait for what is only preferred, before taking what there is
    #[arg(long, value_name = "LENGTH", value_parser = length, allow_hyphen_values = true, help_heading = "Place")]
    pub patience: Option<Millis>,
    /// Only nodes with a label: key=value, key=a,b, key!=value, key or !key; repeatable
    #[arg(long = "select", value_name = "RULE", value_parser = wishes::label, help_heading = "Place")]
    pub labels: Vec<LabelRule>,
    /// Only these nodes, n1,n[04-06]; repeatable
    #[arg(long = "nodelist", short = 'w', value_name = "NODES", value_parser = names, help_heading = "Place")]
    pub only: Vec<Names>,
    /// Not these nodes; repeatable
    #[arg(long, short = 'x', value_name = "NODES", value_parser = names, help_heading = "Place")]
    pub exclude: Vec<Names>,
}

impl PlacementArgs {
    pub fn placement(&self) -> Placement {
        let names = |all: &[Names]| all.iter().flat_map(|n| n.0.iter().cloned()).collect();
        Placement {
            within: self.within.clone(),
            slices: self.slices.clone(),
            at_most: self.at_most.clone(),
            spread: self.spread.clone(),
            balance: self.balance.clone(),
            patience: self.patience,
            labels: self.labels.clone(),
            only: names(&self.only),
            exclude: names(&self.exclude),
        }
    }
}

#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub request: RequestArgs,
    /// One job for each index: 0-99, 1,3,7, 0-99:2; %5 lets five run at once
    #[arg(long, value_name = "INDICES", value_parser = wishes::array, allow_hyphen_values = true)]
    pub array: Option<v1::ArraySpec>,
    /// Submit nothing; say whether it would start now and where, or when, and what would help
    #[arg(long, conflicts_with_all = ["wait", "follow", "idempotency_key", "quiet"])]
    pub dry_run: bool,
    /// The same key gives the same job, however often it is sent
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Wait for its end; the exit code tells how it went
    #[arg(long)]
    pub wait: bool,
    /// Print its output until it ends; the exit code tells how it went
    #[arg(long, conflicts_with = "array")]
    pub follow: bool,
    /// Print only the id
    #[arg(short = 'q', long, visible_alias = "parsable")]
    pub quiet: bool,
    /// A script and its arguments; after `--`, a command and its arguments
    #[arg(value_name = "SCRIPT | -- COMMAND", trailing_var_arg = true, num_args = 0..)]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A job: an id, 812_7 for a task of an array, or `last`
    pub job: Option<String>,
    #[command(flatten)]
    pub request: RequestArgs,
    /// A command, as in submit
    #[arg(value_name = "COMMAND", last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Ids, ranges such as 812-815, 812_7 for a task of an array, or `last`
    #[arg(required = true)]
    pub jobs: Vec<String>,
    /// -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// urgent, normal or idle
    #[arg(long, value_parser = wishes::tier)]
    pub tier: Option<Tier>,
    /// It is stopped after this; also of a job that runs
    #[arg(short = 't', long, value_name = "LENGTH", value_parser = length, allow_negative_numbers = true)]
    pub time_limit: Option<Millis>,
    /// Nodes it needs at once
    #[arg(short = 'N', long, value_name = "COUNT", value_parser = at_least_one, allow_negative_numbers = true)]
    pub nodes: Option<u32>,
    /// Not before; `now` ends the wait
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    pub begin: Option<UnixMillis>,
    /// Only after another job, in the place of all it waited for; `none` for no other
    #[arg(long, value_name = "KIND:JOB", value_parser = after_or_none)]
    pub after: Vec<Dependencies>,
    /// Tasks of its array that may run at once; 0: all
    #[arg(long, value_name = "COUNT", value_parser = count, allow_negative_numbers = true)]
    pub throttle: Option<u32>,
    /// Drop all it asks of its place, before the flags below count
    #[arg(long, help_heading = "Place")]
    pub anywhere: bool,
    #[command(flatten)]
    pub place: PlacementArgs,
}

impl RequestArgs {
    /// What the flags alone say.
    pub fn draft(&self) -> Draft {
        let after = self.after.iter().flat_map(|a| a.0.iter().cloned()).collect();
        Draft {
            name: self.name.clone(),
            team: self.team.clone(),
            project: self.project.clone(),
            tags: self.tags.iter().cloned().collect(),
            nodes: self.nodes,
            gpus_per_node: self.gpus_per_node,
            gpus: self.gpus,
            gpu_milli: self.gpu_share,
            tasks_per_node: self.tasks_per_node,
            cpus_per_task: self.cpus_per_task,
            memory_per_node: self.memory,
            gpu_model: self.gpu_model.clone(),
            min_nodes: self.min_nodes,
            spares: self.spares,
            roles: Vec::new(),
            placement: self.place.placement(),
            tier: self.tier,
            priority: self.priority,
            time_limit: self.time_limit,
            begin: self.begin,
            after,
            singleton: self.singleton.then_some(true),
            hold: self.hold.then_some(true),
            reservation: self.reservation.clone(),
            requeue: self.requeue.then_some(true),
            checkpoint: CheckpointDraft {
                signal: self.checkpoint_signal,
                notice: self.notice,
                restart_cost: self.restart_cost,
                file: self.checkpoint_file.clone(),
                migratable: self.migratable.then_some(true),
            },
            array: None,
            program: None,
            env: self.env.iter().cloned().collect(),
            working_dir: self.working_dir.clone(),
        }
    }

    /// Whether anything at all was said.
    pub fn is_silent(&self) -> bool {
        self.file.is_none() && self.draft() == Draft::default()
    }
}

impl SubmitArgs {
    pub fn work(&self) -> Option<Work> {
        match self.words.split_first()? {
            (first, rest) if first == COMMAND => Some(Work::Command(rest.to_vec())),
            (path, args) => {
                let args = args.iter().filter(|a| *a != COMMAND).cloned().collect();
                Some(Work::Script { path: PathBuf::from(path), args })
            }
        }
    }
}

fn after(text: &str) -> Result<Dependencies, String> {
    wishes::after(text).map(Dependencies)
}

fn after_or_none(text: &str) -> Result<Dependencies, String> {
    if text == "none" { Ok(Dependencies(Vec::new())) } else { after(text) }
}

fn names(text: &str) -> Result<Names, String> {
    wishes::nodes(text).map(Names)
}
