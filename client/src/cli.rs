//! The words of the command line, with help that teaches.
//!
//! In: arguments. Out: one [`Cli`]. What each verb does stands in `commands`.

mod request; // what a job asks for

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tessera_model::usage::UsageKey;
use tessera_model::{Bytes, JobState, Millis, Role, UnixMillis};
use tessera_proto::v1;
use tessera_sim::trace::Format;

pub use request::{ExplainArgs, PlacementArgs, RequestArgs, SubmitArgs, UpdateArgs};

use crate::commands::replay;
use crate::output::Colour;
use crate::{when, wishes};

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
            tessera submit -f job.toml --priority 10\n  \
            tessera submit -N 8 -G 8 --slice 4:leaf --within block --patience 45m train.sh\n  \
            tessera submit --array 0-99%5 --after ok:812 -G 1 eval.sh\n  \
            tessera submit --dry-run -N 8 -G 8 --within leaf -- train.sh\n\n\
            A job file:\n  \
            version = 1\n  name = \"train\"\n  gpus = 16\n  time_limit = \"3d\"\n  \
            command = [\"python\", \"train.py\"]\n  after = [\"ok:812\"]\n  \
            [placement]\n  within = [\"block\", \"leaf:preferred\"]\n  slices = [\"4:leaf\"]\n  \
            patience = \"45m\"\n  \
            [checkpoint]\n  signal = \"USR1\"\n  notice = \"5m\"\n  \
            [[role]]\n  name = \"leader\"\n  nodes = 1"
    )]
    Submit(Box<SubmitArgs>),
    /// List jobs that wait and run, and why they wait
    #[command(after_long_help = "Examples:\n  \
            tessera queue --team nlp\n  \
            tessera queue --tasks                      # each task of an array on its own line\n  \
            tessera queue --all --state failed --limit 20\n  \
            tessera queue --json | jq '.jobs[] | select(.state == \"pending\") | .reason'")]
    Queue(QueueArgs),
    /// Show everything about one job, and with --placement why it stands where it stands
    #[command(after_long_help = "Examples:\n  tessera show 812\n  tessera show last --json\n  \
            tessera show 812_7                         # a task of an array\n  \
            tessera show 812 --placement")]
    Show(ShowArgs),
    /// Say why a job waits, or what would become of one you only imagine
    #[command(
        long_about = "Say why a job waits, or what would become of one you only imagine.\n\n\
            The ladder lists each constraint with what it asks and what there is. The expected \
            start is the latest one: every running job uses its whole time limit and nothing breaks. \
            What would start sooner was really tried.",
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
    #[command(
        after_long_help = "Examples:\n  tessera cancel 812        # of an array: all its tasks\n  \
            tessera cancel 812_7      # one of them\n  \
            tessera cancel 812-815 last"
    )]
    Cancel(JobsArg),
    /// Keep waiting jobs from starting until they are released
    #[command(after_long_help = "Examples:\n  tessera hold 812\n  tessera hold 812_7 820-823")]
    Hold(JobsArg),
    /// Let held jobs start again
    #[command(after_long_help = "Example:\n  tessera release 812")]
    Release(JobsArg),
    /// Change what waiting jobs ask for; of a running one, the time limit
    #[command(
        long_about = "Change what waiting jobs ask for; of a running one, the time limit.\n\n\
            What is not named stays as it is. Of the place, each kind of wish that is given takes \
            the place of the earlier ones of its kind.",
        after_long_help = "Examples:\n  \
            tessera update 817 --nodes 6 --within leaf:preferred\n  \
            tessera update 817 --priority 10 --tier urgent\n  \
            tessera update 812 --throttle 20            # of an array\n  \
            tessera update 817 --anywhere --after none --begin now"
    )]
    Update(Box<UpdateArgs>),
    /// Send a signal to every process of running jobs
    #[command(after_long_help = "Examples:\n  tessera signal USR1 812\n  tessera signal 10 812_7")]
    Signal(SignalArgs),
    /// Say that a job's work up to now is safe
    #[command(
        long_about = "Say that a job's work up to now is safe. When others need its place, those \
            leave first whose last checkpoint is the least work ago.\n\n\
            Inside a job no id is needed: TESSERA_JOB_ID and TESSERA_ATTEMPT say which it is.",
        after_long_help = "Examples:\n  \
            tessera checkpoint done          # in a job's script, after its files are written\n  \
            tessera checkpoint done 812"
    )]
    Checkpoint(CheckpointArgs),
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
    /// Show which node stands where, mark a domain's links, or put another map in force
    #[command(after_long_help = "Examples:\n  tessera topology\n  \
            tessera topology load topology.conf --dry-run\n  \
            tessera topology mark leaf:leaf-3 --health 50 --for 4h --reason 'one uplink is down'\n  \
            tessera topology doubts\n\n\
            The level names are what --within takes.")]
    Topology(TopologyArgs),
    /// Keep nodes or a domain for some teams, or for nobody, over a time
    #[command(after_long_help = "Examples:\n  \
            tessera reserve make course --domain leaf:leaf-3 --from 2026-12-01T08:00 --for 10h \
            --team edu --reason 'GPU course'\n  \
            tessera reserve make fw --nodes n[01-04] --for 2h --reason 'new firmware'   # nobody's\n  \
            tessera reserve list\n  \
            tessera reserve end course\n\n\
            A job runs in it with --reservation NAME.")]
    Reserve(ReserveArgs),
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
    /// List teams with what they hold, set one up, or say what it may hold
    #[command(after_long_help = "Examples:\n  tessera team list\n  \
            tessera team create nlp --description 'Language models'\n  \
            tessera team share nlp --parent research --weight 200\n  \
            tessera team share nlp --quota h100=64..128      # guaranteed 64, at most 128\n  \
            tessera team share nlp --quota h100=2:leaf       # two whole leaves")]
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
    /// Replay a recorded workload: what would this scheduler have made of it, and what others
    #[command(
        long_about = "Replay a recorded workload in virtual time: what would this scheduler have \
            made of it, and what would others.\n\n\
            Needs no scheduler: the shipping core runs in this process. Every policy sees one event \
            at a time, and every placement is checked by a judge of its own. Files may be gzip; \
            columns are found by their names.\n\n\
            openb: pods that take shares of GPUs and never end; what fits nowhere is dropped. A list \
            with a column `seq` is replayed in that order; a raw one is shuffled by --seed and \
            inflated by --inflate. itp, philly: training jobs with times; they wait, and end. \
            tessera: what `tessera queue --all --json` and `tessera nodes --json` print.",
        after_long_help = "Examples:\n  \
            tessera replay --nodes openb_node_list_gpu_node.csv.gz --jobs openb_pod_list_default.csv.gz \\\n      \
            --placements out.csv --plot out.svg\n  \
            tessera replay --jobs itp-2021.csv.gz --cluster cluster04 --load 0.9 --policy ours,easy\n  \
            tessera replay --jobs itp-2021.csv.gz --cluster cluster07 --nodes 64:8 --topology topo.csv.gz\n  \
            tessera queue --all --limit 100000 --json > jobs.json; tessera nodes --json > nodes.json\n  \
            tessera replay --nodes nodes.json --jobs jobs.json"
    )]
    Replay(ReplayArgs),
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
pub struct QueueArgs {
    /// Each task of an array on its own line
    #[arg(long)]
    pub tasks: bool,
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
pub struct ShowArgs {
    /// An id, 812_7 for a task of an array, or `last` for your newest
    pub job: String,
    /// What was asked of its place, what it got, and what was proved of it
    #[arg(long)]
    pub placement: bool,
}

#[derive(Debug, Args)]
pub struct JobsArg {
    /// Ids, ranges such as 812-815, 812_7 for a task of an array, or `last` for your newest
    #[arg(required = true)]
    pub jobs: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SignalArgs {
    /// USR1, SIGUSR1 or 10
    #[arg(value_parser = wishes::signal)]
    pub signal: i32,
    /// Ids, ranges such as 812-815, 812_7 for a task of an array, or `last` for your newest
    #[arg(required = true)]
    pub jobs: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CheckpointArgs {
    #[command(subcommand)]
    pub verb: CheckpointVerb,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointVerb {
    /// A checkpoint is complete: what was computed until now need not be computed again
    Done {
        /// An id, 812_7 for a task of an array, or `last`; default: the job this runs in
        job: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct TopologyArgs {
    #[command(subcommand)]
    pub verb: Option<TopologyVerb>,
}

#[derive(Debug, Subcommand)]
pub enum TopologyVerb {
    /// Show the map in force as a tree, with free GPUs (the default)
    Show,
    /// Say how good a domain's links are: 0 keeps gangs of several nodes away, 100 ends the mark
    Mark(MarkArgs),
    /// Put another map in force; where anything is wrong with it, the old one stays
    Load(LoadArgs),
    /// List nodes that contradict the map
    Doubts,
}

#[derive(Debug, Args)]
pub struct MarkArgs {
    /// Which one, leaf:leaf-3
    #[arg(value_name = "LEVEL:DOMAIN", value_parser = wishes::domain)]
    pub domain: (String, String),
    /// Percent of its bandwidth that is to be had
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub health: u32,
    /// What the others should know; needed below 100
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The mark ends then: 2h from now, 14:05 (UTC), 2026-12-01
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    pub until: Option<UnixMillis>,
    /// The mark ends after this
    #[arg(long = "for", value_name = "LENGTH", value_parser = length, conflicts_with = "until")]
    pub lasts: Option<Millis>,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Our TOML, Slurm's topology.conf or topology.yaml, or topograph's JSON
    pub file: PathBuf,
    /// It may name nodes that the cluster does not have
    #[arg(long)]
    pub allow_unknown: bool,
    /// Nodes may lose the place they have
    #[arg(long)]
    pub drop_nodes: bool,
    /// Only say what would come of it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ReserveArgs {
    #[command(subcommand)]
    pub verb: ReserveVerb,
}

#[derive(Debug, Subcommand)]
pub enum ReserveVerb {
    /// Keep nodes or a domain
    Make(ReserveMakeArgs),
    /// List reservations, those to come and those that are open
    List,
    /// Take one back before it is over
    End { name: String },
}

#[derive(Debug, Args)]
pub struct ReserveMakeArgs {
    /// What jobs name with --reservation
    pub name: String,
    /// A whole domain, leaf:leaf-3
    #[arg(long, value_name = "LEVEL:DOMAIN", value_parser = wishes::domain, required_unless_present = "nodes")]
    pub domain: Option<(String, String)>,
    /// Nodes, n1,n[04-06]
    #[arg(long, value_name = "NODES", conflicts_with = "domain")]
    pub nodes: Option<String>,
    /// From when: 2h from now, 14:05 (UTC), 2026-12-01T08:00; default: at once
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    pub from: Option<UnixMillis>,
    /// Until when
    #[arg(long, value_name = "WHEN", value_parser = instant, required_unless_present = "lasts")]
    pub until: Option<UnixMillis>,
    /// For how long
    #[arg(long = "for", id = "lasts", value_name = "LENGTH", value_parser = length, conflicts_with = "until")]
    pub lasts: Option<Millis>,
    /// Whose jobs may use it; repeatable; default: nobody's
    #[arg(long)]
    pub team: Vec<String>,
    /// What the others should know
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on until the job ends
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Which ranks: 0, 0,8, 0-3 or all
    #[arg(long, default_value = "all", value_parser = ranks)]
    pub rank: Ranks,
    /// An id, 812_7 for a task of an array, or `last` for your newest
    pub job: String,
}

/// Which ranks are meant; empty: all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks(pub Vec<u32>);

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Ids, ranges such as 812-815, 812_7 for a task of an array, or `last`; of an array, all tasks
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
    /// Say where it stands among the teams, and what it may hold; what is not named stays
    Share(TeamShareArgs),
}

#[derive(Debug, Args)]
pub struct TeamShareArgs {
    pub team: String,
    /// The team it is part of; `none` for none
    #[arg(long)]
    pub parent: Option<String>,
    /// 1 to 1,000,000; its part is this over the sum of its siblings' weights
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub weight: Option<u32>,
    /// GPUs of a model it is guaranteed, and the most it may hold, h100=64..128; repeatable
    #[arg(long = "quota", value_name = "MODEL=QUOTA", value_parser = wishes::quota)]
    pub quotas: Vec<v1::Quota>,
    /// End its quota for a model; repeatable
    #[arg(long = "drop-quota", value_name = "MODEL")]
    pub drop_quotas: Vec<String>,
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
pub struct ReplayArgs {
    /// Nodes: a list (sn, cpu_milli, memory_mib, gpu, model), an export, a topology, or N:GPUS
    #[arg(long, value_name = "FILE|N:GPUS")]
    pub nodes: Option<String>,
    /// The recorded jobs or pods
    #[arg(long, value_name = "FILE")]
    pub jobs: PathBuf,
    /// openb, itp, philly or tessera; default: what the file looks like
    #[arg(long, value_parser = replay::format)]
    pub format: Option<Format>,
    /// ours, first-fit, best-fit, fgd (packing), fifo, greedy, easy, sjf (queues), or all that suit
    #[arg(long, value_name = "POLICY,…", value_delimiter = ',', default_value = "all")]
    pub policy: Vec<String>,
    /// Order of a raw pod list; default: 42
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// A raw pod list asks for this many times the cluster's GPUs; 1: as it is; default: 1.3
    #[arg(long, value_name = "TIMES")]
    pub inflate: Option<f64>,
    /// One virtual cluster of a job trace
    #[arg(long, value_name = "VC")]
    pub cluster: Option<String>,
    /// Take as many nodes as make this load, 0.9
    #[arg(long, value_name = "SHARE")]
    pub load: Option<f64>,
    /// A job's time limit is its true length times this; default: 1
    #[arg(long, value_name = "TIMES")]
    pub limit_factor: Option<f64>,
    /// Where hosts stand: a column host, and one for each level of switches
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Write where the first policy put every pod: seq,node,devices
    #[arg(long, value_name = "OUT.csv")]
    pub placements: Option<PathBuf>,
    /// Draw the policies' curves
    #[arg(long, value_name = "OUT.svg")]
    pub plot: Option<PathBuf>,
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

fn instant(text: &str) -> Result<UnixMillis, String> {
    when::ahead(text, when::now()).ok_or_else(|| {
        "write a time from now (2h), a time of day in UTC (14:05), a date, or 2026-12-01T08:00"
            .to_owned()
    })
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
