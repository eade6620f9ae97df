//! What a shim is told to run: the `spec` file.
//!
//! In: the agent's order. Out: JSON that any later shim or agent of the same major version reads.
//! Every field added after v1 has a default, so an old spec stays readable. Where a user id or an
//! environment comes from is the agent's matter.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One task: one rank's processes on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The attempt this task belongs to. A task is run at most once per attempt.
    pub attempt: String,
    pub rank: u32,
    /// Program and arguments. A program without a `/` is looked up in the `PATH` of [`Self::env`].
    pub argv: Vec<String>,
    /// The complete environment; nothing is inherited. Where [`Self::cgroup`] is `None` the shim
    /// adds `TESSERA_ATTEMPT` if it is missing, since that is how left-over processes are found.
    pub env: Vec<(String, String)>,
    pub working_dir: PathBuf,
    pub cgroup: CgroupSpec,
    /// Run as this user; `None` keeps the shim's own.
    pub uid: Option<u32>,
    /// Run as this group; `None` keeps the shim's own.
    pub gid: Option<u32>,
    /// Supplementary groups, set whenever a uid or gid is. Empty means: only [`Self::gid`].
    #[serde(default)]
    pub groups: Vec<u32>,
    #[serde(default = "default_umask")]
    pub umask: u32,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// The most that `out.log` and its rotated files hold together, bytes. The newest are kept.
    #[serde(default = "default_log_cap_bytes")]
    pub log_cap_bytes: u64,
    /// `out.log`, `out.log.1`, ... : how many files share the cap. At least 1.
    #[serde(default = "default_log_files")]
    pub log_files: u32,
    /// From SIGTERM to SIGKILL, milliseconds.
    #[serde(default = "default_kill_grace_ms")]
    pub kill_grace_ms: u64,
    #[serde(default)]
    pub policy_on_lapse: LapsePolicy,
}

impl TaskSpec {
    /// A spec with the defaults: no cgroup, the shim's own user, 1 GiB of log in two files, 30 s of
    /// grace, and a job that outlives its lease.
    pub fn new(
        attempt: impl Into<String>,
        argv: Vec<String>,
        working_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            attempt: attempt.into(),
            rank: 0,
            argv,
            env: Vec::new(),
            working_dir: working_dir.into(),
            cgroup: CgroupSpec::None,
            uid: None,
            gid: None,
            groups: Vec::new(),
            umask: default_umask(),
            rlimits: Vec::new(),
            log_cap_bytes: default_log_cap_bytes(),
            log_files: default_log_files(),
            kill_grace_ms: default_kill_grace_ms(),
            policy_on_lapse: LapsePolicy::Keep,
        }
    }
}

fn default_umask() -> u32 {
    0o022
}

fn default_log_cap_bytes() -> u64 {
    1 << 30
}

fn default_log_files() -> u32 {
    2
}

fn default_kill_grace_ms() -> u64 {
    30_000
}

/// What the shim does when the lease's deadline passes and the lease file gives no later one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LapsePolicy {
    /// SIGTERM, grace, SIGKILL. For jobs that may be placed again elsewhere.
    Stop,
    /// Run on: such a job is never placed again before its death is proven.
    #[default]
    Keep,
}

/// The job's cgroup, with absolute paths, so that a later agent in another cgroup finds it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupSpec {
    /// No cgroup could be written, as for a user without a delegated one. Containment is
    /// cooperative then: while the shim lives, it finds and kills every descendant (as their
    /// subreaper). If the shim is killed, the job's first process dies with it, and the rest are
    /// found by `TESSERA_ATTEMPT` in their environment, which a process can hide.
    #[default]
    None,
    /// Pure v2: one folder does it all.
    Unified { dir: PathBuf },
    /// Controllers on v1, next to a v2 tree without them: v2 starts, counts and kills, v1 limits.
    Hybrid { unified: PathBuf, v1: Vec<V1Group> },
}

/// One controller's folder in a v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1Group {
    pub controller: V1Controller,
    pub dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum V1Controller {
    Memory,
    Pids,
    Cpu,
}

/// A resource limit of the job's first process, inherited by the others. `None` is "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: Resource,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Largest core file, bytes.
    Core,
    /// Open files.
    Nofile,
    /// Locked memory, bytes; RDMA wants it unlimited.
    Memlock,
    /// Processes of the user.
    Nproc,
    /// Stack of the first thread, bytes.
    Stack,
}
