//! What was asked for, and how far it got.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AttemptId, Bytes, Certificate, JobId, JobRole, Millis, NodeId, Placement, ProjectId, TeamId,
    UnixMillis, UserId,
};

/// A job as it was accepted. Every default is filled in: nothing here is optional that must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub name: String,
    pub team: TeamId,
    pub project: ProjectId,
    pub user: UserId,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub tier: Tier,
    /// The first role; ranks begin here.
    pub gang: Gang,
    /// Further roles, in rank order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<JobRole>,
    #[serde(default, skip_serializing_if = "Placement::is_empty")]
    pub placement: Placement,
    /// -1000..=1000; higher goes first among the jobs of its team and tier.
    #[serde(default)]
    pub priority: i32,
    pub time_limit: Option<Millis>,
    /// May be stopped and started again elsewhere: when its node is lost, or when its GPUs are
    /// claimed by whom they are guaranteed to.
    #[serde(default)]
    pub requeue: bool,
    /// Not before this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency>,
    /// Not while another job of the same name, user and team runs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub singleton: bool,
    /// Accepted, and not to be started until somebody releases it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hold: bool,
    /// Elastic: it may start with as few nodes of its first role, and be shrunk to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_nodes: Option<u32>,
    /// Nodes of the first role's shape it holds beside the gang, to replace one that dies.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spares: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointPlan>,
    /// The calendar reservation it wants to run in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
    pub program: Program,
    /// Whom its processes run as on a node; from the caller's identity, never from the request.
    pub unix: Option<UnixIdentity>,
}

fn is_false(b: &bool) -> bool {
    !b
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl JobSpec {
    /// All roles in rank order: name, shape, and how many places of that shape a start has.
    pub fn all_roles(&self) -> impl Iterator<Item = (&str, &Gang)> {
        let further = self.roles.iter().map(|r| (r.name.as_str(), &r.gang));
        std::iter::once(("", &self.gang)).chain(further)
    }

    /// Nodes of a whole start, without spares.
    pub fn nodes(&self) -> u32 {
        self.all_roles().fold(0, |sum, (_, g)| sum.saturating_add(g.nodes))
    }

    /// GPUs of a whole start, spares included; a share counts as one.
    pub fn gpus(&self) -> u32 {
        let spares = self.spares.saturating_mul(self.gang.gpus_per_node);
        self.all_roles().fold(spares, |sum, (_, g)| sum.saturating_add(g.gpus()))
    }

    pub fn ranks(&self) -> u32 {
        self.all_roles().fold(0, |sum, (_, g)| sum.saturating_add(g.ranks()))
    }
}

/// How urgent a job is. Each tier has a start SLA; a lower one gives way to a higher one.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Urgent,
    #[default]
    Normal,
    /// Takes what would stand idle, and gives it back when somebody needs it.
    Idle,
}

impl Tier {
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Normal, Self::Idle];

    pub fn word(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Normal => "normal",
            Self::Idle => "idle",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.word() == word)
    }

    /// How long a job of the tier should wait at most once it could start by quota and dependencies.
    pub fn start_sla(self) -> Millis {
        match self {
            Self::Urgent => Millis::from_secs(10 * 60),
            Self::Normal => Millis::from_secs(24 * 3_600),
            Self::Idle => Millis::from_secs(7 * 24 * 3_600),
        }
    }
}

/// A job that has to end first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dependency {
    pub job: JobId,
    pub kind: DependencyKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyKind {
    /// It succeeded.
    AfterOk,
    /// It ended, however.
    AfterAny,
    /// It ended without success.
    AfterNotOk,
    /// It has begun, or ended.
    After,
}

impl DependencyKind {
    pub const ALL: [Self; 4] = [Self::AfterOk, Self::AfterAny, Self::AfterNotOk, Self::After];

    /// As `sbatch --dependency` writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::AfterOk => "afterok",
            Self::AfterAny => "afterany",
            Self::AfterNotOk => "afternotok",
            Self::After => "after",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.word() == word)
    }
}

/// How a job saves its work when it has to leave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointPlan {
    /// Sent to every task when the job has to leave; `None`: nothing but the later SIGTERM.
    pub signal: Option<i32>,
    /// From the signal to SIGTERM at most; a reported checkpoint ends it early.
    pub notice: Millis,
    /// What a restart costs beside the work since the last checkpoint.
    pub restart_cost: Millis,
    /// A file on the node of rank 0, relative to the working directory; each change of its
    /// modification time is a checkpoint.
    pub file: Option<String>,
    /// May be moved right after a checkpoint to make room for a larger gang.
    pub migratable: bool,
}

/// One task of a job array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ArrayTask {
    /// The id of the array's first task; the array's own id.
    pub array: JobId,
    pub index: u32,
}

/// What `update` may change of a job that waits. `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Also of a running job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begin: Option<UnixMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<Dependency>>,
    /// Of the array it belongs to: tasks that may run at once; 0: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<u32>,
}

/// What every rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Program and arguments; with a script, the script's arguments only.
    pub argv: Vec<String>,
    /// Text of a script, run by its `#!` line.
    pub script: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    pub working_dir: Option<String>,
}

impl Program {
    /// What it takes in memory, near enough for a bound.
    pub fn bytes(&self) -> u64 {
        let argv: usize = self.argv.iter().map(String::len).sum();
        let env: usize = self.env.iter().map(|(k, v)| k.len() + v.len()).sum();
        (argv + env + self.script.as_ref().map_or(0, String::len)) as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixIdentity {
    pub uid: u32,
    pub gid: u32,
}

/// The shape of a job: alike on each of its nodes, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gang {
    /// At least 1.
    pub nodes: u32,
    /// 0 for a job that needs CPUs only.
    pub gpus_per_node: u32,
    /// Processes on each node; rank r of a node is its `LOCAL_RANK`.
    pub tasks_per_node: u32,
    pub cpus_per_task: u32,
    /// 0 asks for none in particular.
    pub memory_per_node: Bytes,
    /// A part of the model's name, `h100`; matched without regard to case.
    pub gpu_model: Option<String>,
    /// Thousandths of each GPU; 1000 is a whole one. Less is a share of one GPU of one node, kept
    /// to by agreement: nothing but the job's own restraint enforces it (`cooperative`).
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub gpu_milli: u32,
}

/// Thousandths of a whole GPU.
pub const WHOLE_GPU: u32 = 1_000;

pub(crate) fn whole() -> u32 {
    WHOLE_GPU
}

pub(crate) fn is_whole(milli: &u32) -> bool {
    *milli == WHOLE_GPU
}

impl Gang {
    /// Whether it takes less than a whole GPU.
    pub fn is_share(&self) -> bool {
        self.gpus_per_node > 0 && self.gpu_milli < WHOLE_GPU
    }

    pub fn ranks(&self) -> u32 {
        self.nodes.saturating_mul(self.tasks_per_node)
    }
    pub fn gpus(&self) -> u32 {
        self.nodes.saturating_mul(self.gpus_per_node)
    }
    pub fn cpus_per_node(&self) -> u32 {
        self.tasks_per_node.saturating_mul(self.cpus_per_task)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Pending,
    /// It holds a lease; its nodes prepare and start its tasks.
    Starting,
    Running,
    /// Told to stop; not all of its tasks are known to be gone.
    Stopping,
    Succeeded,
    Failed,
    Cancelled,
    /// Its end cannot be known: the node never came back, or came back without it.
    Lost,
}

impl JobState {
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Lost,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.word() == word)
    }

    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Lost)
    }

    /// The published graph: a job moves only along these edges, and never out of a terminal state.
    pub fn may_become(self, next: Self) -> bool {
        use JobState::*;
        matches!(
            (self, next),
            (Pending, Starting | Cancelled)
                | (Starting, Running | Stopping | Pending | Succeeded | Failed | Lost)
                | (Running, Stopping | Pending | Succeeded | Failed | Lost)
                | (Stopping, Pending | Succeeded | Failed | Cancelled | Lost)
        )
    }
}

/// How one task ended. Exactly what the kernel said, or that it is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum TaskEnd {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
        oom: bool,
    },
    /// Could not be started; a shell's codes: 126 not executable, 127 not found.
    NotStarted {
        code: i32,
        why: String,
    },
    /// Its lease lapsed and its shim stopped it.
    Lapsed,
    /// The shim is gone and left no record: it is not known how the task ended.
    Unknown,
}

impl TaskEnd {
    /// As a shell reports it: the code, or 128 + signal. `None` when it is not known.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited { code } | Self::NotStarted { code, .. } => Some(*code),
            Self::Signaled { signal, .. } => Some(128 + signal),
            Self::Lapsed | Self::Unknown => None,
        }
    }

    pub fn is_success(&self) -> bool {
        *self == Self::Exited { code: 0 }
    }
}

impl std::fmt::Display for TaskEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with {code}"),
            Self::Signaled { signal, oom: true } => {
                write!(f, "ran out of memory and was killed (signal {signal})")
            }
            Self::Signaled { signal, oom: false } => write!(f, "was killed by signal {signal}"),
            Self::NotStarted { why, .. } => write!(f, "could not be started: {why}"),
            Self::Lapsed => {
                f.write_str("was stopped, since its node lost the scheduler for too long")
            }
            Self::Unknown => f.write_str("ended in a way nobody saw"),
        }
    }
}

/// A job as everybody sees it: what `show --json` prints, the projection in the store, the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    pub spec: JobSpec,
    pub state: JobState,
    pub submitted_at: UnixMillis,
    /// When the present or last attempt began to run.
    pub started_at: Option<UnixMillis>,
    pub ended_at: Option<UnixMillis>,
    pub exit_code: Option<i32>,
    /// What became of it, or why it waits; a sentence for people.
    pub reason: String,
    pub attempt: Option<AttemptId>,
    /// In rank order.
    pub nodes: Vec<NodeId>,
    /// Whether somebody asked for its end.
    pub cancel_requested: bool,
    /// Waits until somebody releases it.
    pub held: bool,
    pub array: Option<ArrayTask>,
    /// When it was first able to start: dependencies, hold, begin and quota out of the way.
    pub eligible_at: Option<UnixMillis>,
    /// The latest start it was promised, if a reservation was made for it.
    pub promised_at: Option<UnixMillis>,
    pub last_checkpoint_at: Option<UnixMillis>,
    /// How often it had to leave for others.
    pub preemptions: u32,
    /// What was proved of its present or last place.
    pub certificate: Option<Certificate>,
}
