//! What was asked for, and how far it got.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AttemptId, Bytes, JobId, Millis, NodeId, ProjectId, TeamId, UnixMillis, UserId};

/// A job as it was accepted. Every default is filled in: nothing here is optional that must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub name: String,
    pub team: TeamId,
    pub project: ProjectId,
    pub user: UserId,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    pub gang: Gang,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<Within>,
    /// -1000..=1000; higher goes first.
    #[serde(default)]
    pub priority: i32,
    pub time_limit: Option<Millis>,
    /// May be stopped with its lease and started elsewhere when its node is lost.
    #[serde(default)]
    pub requeue: bool,
    pub program: Program,
    /// Whom its processes run as on a node; from the caller's identity, never from the request.
    pub unix: Option<UnixIdentity>,
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
}

impl Gang {
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

/// The whole gang inside one domain of a level.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Within {
    pub level: String,
    pub strength: Strength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    Required,
    Preferred,
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
}
