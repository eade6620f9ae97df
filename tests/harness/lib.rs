//! A whole cluster of real processes, for end-to-end stories and benchmarks.
//!
//! In: how many nodes, of which kind, with which flags. Out: a [`Cluster`] that can be asked as any
//! person, whose scheduler and agents can be killed and started again, and that leaves no process,
//! cgroup or file behind. What is told about it stands in `e2e` and `benches`.
//!
//! Many clusters can run at once: each has a folder, a port and GPU UUIDs of its own.

mod audit; // what must hold at the end of every story
mod binaries; // where the programs are
mod cluster; // the parts of a cluster, and what one does to them
mod person; // somebody with a token, who asks by gRPC
mod process; // one child process and its log
pub mod sweep; // leaves nothing behind
mod wait; // for an event, never for a time

pub use binaries::Binaries;
pub use cluster::{Cluster, ClusterSpec, Node, Said, run};
pub use person::{Line, Person};
pub use process::Process;
pub use wait::{PATIENCE, until, until_within};

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Shared by everything that speaks gRPC here.
pub static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a test cannot go on without a runtime")
});

/// The wall clock, milliseconds since 1970.
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What a line of a usage report holds, in milliseconds of whole GPUs.
pub fn gpu_ms(line: &tessera_proto::v1::UsageLine) -> u64 {
    let parts: u128 = line.gpu_part_ms.parse().expect("a whole number");
    let whole = u128::from(tessera_model::PARTS_PER_GPU);
    assert_eq!(parts % whole, 0, "no job here shares a GPU: {line:?}");
    u64::try_from(parts / whole).expect("less than half a billion years")
}

/// Whether the long forms of the stories are asked for, `TESSERA_E2E_FULL=1`.
pub fn full() -> bool {
    std::env::var_os("TESSERA_E2E_FULL").is_some_and(|v| v == "1")
}
