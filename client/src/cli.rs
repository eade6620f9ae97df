//! The words of the command line, with help that teaches.
//!
//! In: arguments. Out: one [`Cli`]. What each verb does stands in `commands`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tessera_model::usage::UsageKey;
use tessera_model::{Bytes, JobState, Millis, Role, Within};

use crate::jobfile::{Draft, Work, parse_within};
use crate::output::Colour;

#[derive(Debug, Parser)]
#[command(
    name = "tessera",
    version,
    about = "Submit jobs to a GPU cluster, see why they wait, and settle the bill",
    long_about = "Submit jobs to a GPU cluster, see why they wait, and settle the bill.\n\n\
        Results go to stdout; progress, warnings and hints to stderr. Every verb takes --json.\n\
        Exit codes: 0 done, 1 the answer is no (refused, not found, the job failed), 2 no answer \
        (nobody reachable, bad settings, bad usage).",
    after_long_help = "No cluster at hand? Start one on this machine:\n  \
        tessera dev                       # leave it running, and in another terminal:\n  \
        tessera submit -G 2 -- nvidia-smi\n  tessera queue",
    max_term_width = 100,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Stands behind the first `--` of a submit while it is parsed: clap drops the dashes, and with
/// them whether a script or a command was meant. No one types a control character.
const COMMAND: &str = "\u{1}command";

impl Cli {
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let dashes = args.iter().position(|a| a == "--");
        if let Some(at) = dashes.filter(|at| args[1..*at].iter().any(|a| a == "submit")) {
            args.insert(at + 1, COMMAND.into());
        }
        Self::try_parse_from(args)
    }
}

#[derive(Debug, Args)]
pub struct Common {
    /// Settings file: server, CA and token.
    ///
    /// Without it: TESSERA_CONFIG, then the newest running `tessera dev` cluster, then
    /// ~/.config/tessera/client.toml.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    pub config: Option<PathBuf>,
    /// Print JSON on stdout; an error is one JSON object too.
    #[arg(long, global = true, help_heading = "Common options")]
    pub json: bool,
    /// When to use colour. NO_COLOR is honoured.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Common options"
    )]
    pub color: Colour,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Hand in a job: a script, a command, or a job file
    #[command(
        long_about = "Hand in a job: a script, a command after `--`, or a job file.\n\n\
            The job is acknowledged only after it is safely written down; asking again with the \
            same --idempotency-key never makes a second one. All its ranks start together or not \
            at all.",
        after_long_help = "Examples:\n  \
            tessera submit -- hostname\n  \
            tessera submit -N 2 -G 8 -t 4h --within leaf train.sh --lr 3e-4\n  \
            tessera submit --gpus 16 --gpu-model h100 --wait -- python train.py\n  \
            tessera submit -f job.toml --priority 10\n\n\
            A job file:\n  \
            version = 1\n  name = \"train\"\n  gpus = 16\n  time_limit = \"3d\"\n  \
            command = [\"python\", \"train.py\"]"
    )]
    Submit(Box<SubmitArgs>),
    /// List jobs that wait and run, and why they wait
    #[command(after_long_help = "Examples:\n  \
            tessera queue --team nlp\n  \
            tessera queue --all --state failed --limit 20\n  \
            tessera queue --json | jq '.jobs[] | select(.state == \"pending\") | .reason'")]
    Queue(QueueArgs),
    /// Show everything about one job
    #[command(after_long_help = "Examples:\n  tessera show 812\n  tessera show last --json")]
    Show(JobArg),
    /// Say why a job waits, or what would become of one you only imagine
    #[command(
        long_about = "Say why a job waits, or what would become of one you only imagine.\n\n\
            The ladder lists each constraint with what it asks and what there is. The expected \
            start is the latest one: every running job uses its whole time limit and nothing breaks.",
        after_long_help = "Examples:\n  \
            tessera explain 817\n  \
            tessera explain -N 4 -G 8 --within leaf -- train.sh"
    )]
    Explain(Box<ExplainArgs>),
    /// Print what a job's ranks write
    #[command(
        long_about = "Print what a job's ranks write, from the nodes they run on.\n\n\
            Several ranks are merged line by line, each line with [rank] before it. With -f the \
            output is followed until the job ends, over broken connections too.",
        after_long_help = "Examples:\n  \
            tessera logs 812\n  tessera logs -f last\n  tessera logs --rank 0,8 812"
    )]
    Logs(LogsArgs),
    /// Wait until jobs end; the exit code tells how
    #[command(
        long_about = "Wait until jobs end. Exit code 0: all succeeded; 1: one did not; 2: the \
            timeout passed or nobody could be asked.",
        after_long_help = "Examples:\n  tessera wait last && tessera submit eval.sh\n  \
            tessera wait 812-815 --timeout 2h"
    )]
    Wait(WaitArgs),
    /// Cancel jobs, whether they wait or run
    #[command(after_long_help = "Examples:\n  tessera cancel 812\n  tessera cancel 812-815 last")]
    Cancel(JobsArg),
    /// List nodes and who holds their GPUs; with names, their details and newest readings
    #[command(after_long_help = "Each GPU is one character:\n  \
            ■ held   □ free   ✗ sick   ▒ kept from new jobs     (# . x ~ without UTF-8)\n\n\
            Examples:\n  tessera nodes\n  tessera nodes n09")]
    Nodes(NodesArgs),
    /// Keep new jobs away from nodes; what runs there goes on
    #[command(after_long_help = "Example:\n  tessera cordon n09 --reason 'XID 79 on GPU 2'")]
    Cordon(CordonArgs),
    /// Want nodes empty: no new jobs, and the state says when the last one is gone
    #[command(after_long_help = "Example:\n  tessera drain n09 n10 --reason 'new firmware'")]
    Drain(CordonArgs),
    /// Give nodes back to the queue after a cordon or a drain
    #[command(after_long_help = "Example:\n  tessera uncordon n09")]
    Uncordon(NodeNames),
    /// Take a node out for good: it is dead for certain, or will not come back
    #[command(
        long_about = "Take a node out of the cluster for good: it is dead for certain, or will not \
            come back.\n\n\
            What ran there is written off as lost, and its GPUs are billed to nobody from the \
            moment the node was last heard. Jobs with --requeue start again elsewhere at once, \
            instead of waiting for a node that is silent. So be certain: on a node that only lost \
            its network the job would run twice. While the node is up this is refused; drain it \
            and stop its agent first.\n\n\
            The node may come back with a new join token.",
        after_long_help = "Examples:\n  \
            tessera retire n09 --reason 'mainboard burnt'\n  \
            tessera retire n09 --reason 'sold' --json\n  \
            tessera token create --node n09        # to have it back"
    )]
    Retire(RetireArgs),
    /// Show which node stands where
    #[command(after_long_help = "Example:\n  tessera topology\n\n\
            The level names are what --within takes.")]
    Topology,
    /// Report who held which GPUs for how long, and at what price
    #[command(
        long_about = "Report who held which GPUs for how long, and at what price.\n\n\
            The report covers [from, to), in UTC; a date means its first instant. Every \
            GPU-millisecond is in exactly one class: allocated (a team pays), idle, drain, failed \
            or unknown. CSV and JSON carry exact values with 12 decimals; the table rounds to cents \
            so that its lines add up to the total.",
        after_long_help = "Examples:\n  \
            tessera usage                                   # this month until now\n  \
            tessera usage --from 7d --by team,user\n  \
            tessera usage --from 2026-10-01 --to 2026-11-01 --by team,project,day --format csv -o oct.csv"
    )]
    Usage(UsageArgs),
    /// Show prices, or publish new ones
    #[command(after_long_help = "Examples:\n  tessera prices\n  \
            tessera prices set --gpu h100=2.95 --gpu a100=1.60 --from 2026-12-01\n  \
            tessera prices set prices.toml")]
    Prices(PricesArgs),
    /// List teams, or set one up
    #[command(after_long_help = "Examples:\n  tessera team list\n  \
            tessera team create nlp --description 'Language models'")]
    Team(TeamArgs),
    /// List, make and revoke tokens, for people and for nodes that join
    #[command(after_long_help = "Examples:\n  \
            tessera token create --user ada --team nlp\n  \
            tessera token create --node n17        # lets one node join, once\n  \
            tessera token revoke 3f9a")]
    Token(TokenArgs),
    /// Say who you are and how the cluster is
    #[command(after_long_help = "Example:\n  tessera status --json")]
    Status,
    /// Start a whole cluster with simulated GPUs on this machine
    #[command(
        long_about = "Start a whole cluster on this machine: CA, token, scheduler, and agents on \
            simulated GPUs. The jobs are real processes. It prints one line when all nodes are up, \
            stays until Ctrl-C, and leaves no process behind.\n\n\
            While it runs, other tessera commands find it by themselves.",
        after_long_help = "Examples:\n  \
            tessera dev\n  \
            tessera dev --nodes 8 --data ./cluster     # kept, and resumed next time\n  \
            tessera dev --demo                         # a short story, then it ends"
    )]
    Dev(DevArgs),
    /// Print completions for a shell
    #[command(after_long_help = "Example:\n  \
            tessera completions bash > ~/.local/share/bash-completion/completions/tessera")]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// One rank of the demo's gang: all ranks meet, add up, and leave
    #[command(name = "__rendezvous", hide = true)]
    Rendezvous,
    /// Ends what a dev cluster left when it was killed; waits for that on its stdin
    #[command(name = "__reaper", hide = true)]
    Reaper {
        folder: PathBuf,
        #[arg(long)]
        remove: bool,
    },
}

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
    /// All of it inside one domain of a level, leaf or leaf:preferred; repeatable
    #[arg(long, value_name = "LEVEL[:STRENGTH]", value_parser = parse_within, help_heading = "Shape")]
    pub within: Vec<Within>,
    /// -1000 to 1000; higher goes first
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// It is stopped after this: 90s, 4h, 3d, or Slurm's 1-12:00:00; a bare number is minutes
    #[arg(short = 't', long, value_name = "LENGTH", allow_negative_numbers = true, value_parser = length)]
    pub time_limit: Option<Millis>,
    /// Start it elsewhere when its node is lost
    #[arg(long)]
    pub requeue: bool,
    /// A variable for its environment; without a value, yours is taken; repeatable
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Folder it runs in; default: the current one
    #[arg(long, value_name = "DIR")]
    pub working_dir: Option<String>,
}

#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub request: RequestArgs,
    /// The same key gives the same job, however often it is sent
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Wait for its end; the exit code tells how it went
    #[arg(long)]
    pub wait: bool,
    /// Print its output until it ends; the exit code tells how it went
    #[arg(long)]
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
    /// A job: an id or `last`
    pub job: Option<String>,
    #[command(flatten)]
    pub request: RequestArgs,
    /// A command, as in submit
    #[arg(value_name = "COMMAND", last = true)]
    pub command: Vec<String>,
}

impl RequestArgs {
    /// What the flags alone say.
    pub fn draft(&self) -> Draft {
        Draft {
            name: self.name.clone(),
            team: self.team.clone(),
            project: self.project.clone(),
            tags: self.tags.iter().cloned().collect(),
            nodes: self.nodes,
            gpus_per_node: self.gpus_per_node,
            gpus: self.gpus,
            tasks_per_node: self.tasks_per_node,
            cpus_per_task: self.cpus_per_task,
            memory_per_node: self.memory,
            gpu_model: self.gpu_model.clone(),
            time_limit: self.time_limit,
            priority: self.priority,
            requeue: self.requeue.then_some(true),
            within: self.within.clone(),
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

#[derive(Debug, Args)]
pub struct QueueArgs {
    /// Also jobs that ended
    #[arg(long, short = 'a')]
    pub all: bool,
    /// Only this team's; repeatable
    #[arg(long)]
    pub team: Vec<String>,
    /// Only in this state; repeatable
    #[arg(long, value_parser = state)]
    pub state: Vec<JobState>,
    /// Only this user's
    #[arg(long)]
    pub user: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

#[derive(Debug, Args)]
pub struct JobArg {
    /// An id, or `last` for your newest
    pub job: String,
}

#[derive(Debug, Args)]
pub struct JobsArg {
    /// Ids, ranges such as 812-815, or `last` for your newest
    #[arg(required = true)]
    pub jobs: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on until the job ends
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Which ranks: 0, 0,8, 0-3 or all
    #[arg(long, default_value = "all", value_parser = ranks)]
    pub rank: Ranks,
    /// An id, or `last` for your newest
    pub job: String,
}

/// Which ranks are meant; empty: all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks(pub Vec<u32>);

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Ids, ranges such as 812-815, or `last` for your newest
    #[arg(required = true)]
    pub jobs: Vec<String>,
    /// Give up after this
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    pub timeout: Option<Millis>,
}

#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Nodes to show in detail; default: a table of all
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NodeNames {
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RetireArgs {
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Why, for whoever looks for it later
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct CordonArgs {
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
    /// What the others should know
    #[arg(long, default_value = "")]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Beginning: a date, RFC 3339, today, yesterday, month, or a time ago such as 7d
    #[arg(long, default_value = "month")]
    pub from: String,
    /// End, not included
    #[arg(long, default_value = "now")]
    pub to: String,
    /// Columns to group by: team, project, user, job, gpu_model, gpu, node, class, day
    #[arg(long, value_delimiter = ',', value_parser = usage_key, default_value = "team,gpu_model,class")]
    pub by: Vec<UsageKey>,
    /// Only these accounts; repeatable
    #[arg(long)]
    pub team: Vec<String>,
    #[arg(long, value_enum, default_value_t)]
    pub format: UsageFormat,
    /// Write to a file instead of stdout
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum UsageFormat {
    /// For people, in cents
    #[default]
    Table,
    /// For spreadsheets and loaders: RFC 4180, exact decimals
    Csv,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
pub struct PricesArgs {
    #[command(subcommand)]
    pub verb: Option<PricesVerb>,
}

#[derive(Debug, Subcommand)]
pub enum PricesVerb {
    /// Show all versions (the default)
    List,
    /// Publish a new version; earlier ones stay as they are
    #[command(
        after_long_help = "The first model part that matches a GPU's name counts, so write the \
            longer names first. A file:\n  \
            from = \"2026-12-01\"\n  note = \"winter\"\n  \
            [[prices]]\n  gpu_model = \"h100\"\n  usd_per_gpu_hour = \"2.95\""
    )]
    Set(PricesSetArgs),
}

#[derive(Debug, Args)]
pub struct PricesSetArgs {
    /// A TOML file with from, note and [[prices]]
    #[arg(conflicts_with_all = ["gpu", "from", "note"], required_unless_present = "gpu")]
    pub file: Option<PathBuf>,
    /// A price in USD per GPU-hour, h100=2.95; repeatable, first match counts
    #[arg(long, value_name = "MODEL=USD", value_parser = pair)]
    pub gpu: Vec<(String, String)>,
    /// When they begin to hold; default: now
    #[arg(long)]
    pub from: Option<String>,
    /// A word to those who read the version later
    #[arg(long)]
    pub note: Option<String>,
}

#[derive(Debug, Args)]
pub struct TeamArgs {
    #[command(subcommand)]
    pub verb: TeamVerb,
}

#[derive(Debug, Subcommand)]
pub enum TeamVerb {
    /// List teams
    List,
    /// Set one up
    Create {
        team: String,
        #[arg(long, default_value = "")]
        description: String,
    },
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// List tokens, without their secrets
    List,
    /// Make a token; its secret is shown once
    Create(TokenCreateArgs),
    /// End a token at once
    Revoke { id: String },
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// Whom it stands for
    #[arg(long, required_unless_present = "node")]
    pub user: Option<String>,
    /// What it may do: member, team-admin, operator, finance or admin
    #[arg(long, default_value = "member", value_parser = role)]
    pub role: Role,
    /// Team it may act for; repeatable
    #[arg(long)]
    pub team: Vec<String>,
    /// It ends after this; default: never
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    pub lifetime: Option<Millis>,
    /// Unix user its jobs run as
    #[arg(long, requires = "gid")]
    pub uid: Option<u32>,
    /// Unix group its jobs run as
    #[arg(long, requires = "uid")]
    pub gid: Option<u32>,
    /// Instead: a token that lets one node join, once, within ten minutes; with a name, only that one
    #[arg(long, value_name = "NODE", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["user", "role", "team", "lifetime", "uid"])]
    pub node: Option<String>,
}

#[derive(Debug, Args)]
pub struct DevArgs {
    /// How many nodes
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: u32,
    /// What each node is; `tessera-nvml-sim presets` lists them
    #[arg(long, default_value = "dgx-h100")]
    pub preset: String,
    /// Keep the cluster's state here and go on with it next time; default: a folder that is removed
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Port on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = 7070)]
    pub port: u16,
    /// Which node stands where; default: leaves of 4 nodes, blocks of 4 leaves
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Play a short story with real processes and end
    #[arg(long, conflicts_with_all = ["nodes", "preset", "data", "topology"])]
    pub demo: bool,
}

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "give a whole number, such as 8".to_owned())
}

fn at_least_one(text: &str) -> Result<u32, String> {
    count(text).ok().filter(|n| *n > 0).ok_or_else(|| "give a whole number from 1 on".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it like NAME=VALUE".to_owned()),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') || text.is_empty() {
        return pair(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("{text} is not set here; write {text}=VALUE")),
    }
}

fn size(text: &str) -> Result<Bytes, String> {
    Bytes::parse(text).ok_or_else(|| "write a size such as 180GB or 512M".to_owned())
}

fn length(text: &str) -> Result<Millis, String> {
    Millis::parse(text).ok_or_else(|| "write a length of time such as 90s, 4h or 3d".to_owned())
}

fn state(text: &str) -> Result<JobState, String> {
    let words = JobState::ALL.map(JobState::word);
    JobState::parse(text).ok_or_else(|| format!("states are {}", words.join(", ")))
}

fn role(text: &str) -> Result<Role, String> {
    let words = Role::ALL.map(Role::word);
    Role::parse(text).ok_or_else(|| format!("roles are {}", words.join(", ")))
}

fn usage_key(text: &str) -> Result<UsageKey, String> {
    let words = UsageKey::ALL.map(UsageKey::word);
    UsageKey::parse(text).ok_or_else(|| format!("columns are {}", words.join(", ")))
}

fn ranks(text: &str) -> Result<Ranks, String> {
    if text == "all" {
        return Ok(Ranks(Vec::new()));
    }
    let bad = || "write a rank (0), a list (0,8), a range (0-3) or all".to_owned();
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    let mut out = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => out.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to || to - from > 100_000 {
                    return Err(bad());
                }
                out.extend(from..=to);
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(Ranks(out))
}

#[cfg(test)]
mod tests;
