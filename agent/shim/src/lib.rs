//! The shim: one tiny process per task that owns the job's processes, outlives the agent, and tells
//! the truth about how they ended.
//!
//! This library is what the agent needs of it: the task's directory and its files, the question
//! "is it alive?", the start of a shim, the control socket's client, and the job's cgroup. The
//! shim itself (`tessera-shim DIR`) lives in the binary and uses the same words.
//!
//! A task's life, as the agent sees it:
//! 1. [`cgroup::Cgroup::create_or_none`], then [`TaskDir::create`] with the [`TaskSpec`], and
//!    [`TaskDir::write_lease`] where the task runs under one.
//! 2. [`spawn_shim`]. The agent may die at any time from here on.
//! 3. [`liveness`] at any time, by any agent: exited, running (then [`watch`] the shim), starting,
//!    dead or of another boot.
//! 4. Dead or of another boot: [`reap_dead`] kills what is left and closes the record as unknown.
//!
//! Left to others: which task to run, reporting its end, and removing the directory.

pub mod cgroup; // the job's fence
pub mod control; // talk to a running shim
pub mod dir; // where it is written down
mod durable; // files replaced as a whole
pub mod live; // is it alive, start it, bury it
pub mod proc;
pub mod spec; // what to run // facts the kernel gives about processes

pub use control::{Op, Reply, control};
pub use dir::{FileError, TaskDir, TaskExit, TaskLease, TaskState};
pub use live::{Liveness, ShimChild, liveness, reap_dead, spawn_shim, wait_exit, watch};
pub use spec::{CgroupSpec, LapsePolicy, TaskSpec};

/// `tessera-shim` ends with this code when another shim holds the task, or held it before.
pub const EXIT_TASK_TAKEN: u8 = 75;
