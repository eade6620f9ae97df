//! What goes wrong, and how often; and which rule a planted bug leaves out.

/// Fault rates. Times are the mean virtual milliseconds between two such faults anywhere in the
/// world, 0 for never; percentages are chances for each message, start or return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// The agent is killed and comes back seconds later; its shims live on.
    pub agent_kill: u64,
    /// The node reboots: every process on it is gone.
    pub node_reboot: u64,
    /// Of those reboots, how many come back with an empty disk.
    pub disk_lost_percent: u32,
    /// Of those reboots, how many come back without one of their GPUs, until the next.
    pub gpu_missing_percent: u32,
    /// A node dies and never returns; at most a third of them do.
    pub node_gone: u64,
    /// The scheduler is killed, before or after a commit, and comes back from its journal.
    pub scheduler_crash: u64,
    /// A GPU falls off the bus for some minutes.
    pub gpu_lost: u64,
    /// An operator cordons or drains a node for some minutes.
    pub cordon: u64,
    /// A connection breaks: what is in flight is lost or comes late.
    pub break_connection: u64,
    /// A link is cut for up to `cut_length`: one way, the other, or both.
    pub cut: u64,
    pub cut_length: u64,
    /// The last orders a node was sent come once more, as from a scheduler that was stuck.
    pub replay: u64,
    /// Messages that take up to 12 s instead of up to 40 ms.
    pub slow_percent: u32,
    /// Messages that arrive twice.
    pub twice_percent: u32,
    /// Prepares that a node refuses.
    pub refuse_percent: u32,
    /// Prepares that take longer than a launch may.
    pub hang_percent: u32,
    /// Returns of GPUs on which something else still runs.
    pub occupied_percent: u32,
}

impl Faults {
    pub const NONE: Self = Self {
        agent_kill: 0,
        node_reboot: 0,
        disk_lost_percent: 0,
        gpu_missing_percent: 0,
        node_gone: 0,
        scheduler_crash: 0,
        gpu_lost: 0,
        cordon: 0,
        break_connection: 0,
        cut: 0,
        cut_length: 0,
        replay: 0,
        slow_percent: 0,
        twice_percent: 0,
        refuse_percent: 0,
        hang_percent: 0,
        occupied_percent: 0,
    };

    /// A bad month in a good data centre.
    pub const MILD: Self = Self {
        agent_kill: 600_000,
        node_reboot: 1_800_000,
        disk_lost_percent: 5,
        gpu_missing_percent: 5,
        node_gone: 0,
        scheduler_crash: 900_000,
        gpu_lost: 900_000,
        cordon: 900_000,
        break_connection: 120_000,
        cut: 900_000,
        cut_length: 30_000,
        replay: 0,
        slow_percent: 1,
        twice_percent: 1,
        refuse_percent: 1,
        hang_percent: 0,
        occupied_percent: 1,
    };

    /// Everything at once, all the time.
    pub const HARSH: Self = Self {
        agent_kill: 60_000,
        node_reboot: 180_000,
        disk_lost_percent: 30,
        gpu_missing_percent: 30,
        node_gone: 3_000_000,
        scheduler_crash: 120_000,
        gpu_lost: 240_000,
        cordon: 300_000,
        break_connection: 20_000,
        cut: 60_000,
        cut_length: 150_000,
        replay: 15_000,
        slow_percent: 4,
        twice_percent: 4,
        refuse_percent: 4,
        hang_percent: 2,
        occupied_percent: 4,
    };
}

/// A rule that the simulated agents or shims leave out, to see that its absence is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// R4: agents accept orders for any session.
    AnySession,
    /// R3: shims run on when their lease lapses.
    ShimIgnoresLease,
    /// R6: a grant counts from its arrival instead of from the heartbeat it answers.
    GrantFromArrival,
    /// R5 and R8: an agent keeps its session over restarts and lapsed leases.
    SameSession,
    /// R9: a finished attempt is forgotten as soon as it is reported, not when that is acknowledged.
    ForgetsEarly,
    /// R7: no tombstones: an attempt that ended here may start here again.
    NoTombstones,
    /// R9: on its return, an agent does not list what it still runs.
    HidesRunning,
}

impl Planted {
    pub const ALL: [Self; 7] = [
        Self::AnySession,
        Self::ShimIgnoresLease,
        Self::GrantFromArrival,
        Self::SameSession,
        Self::ForgetsEarly,
        Self::NoTombstones,
        Self::HidesRunning,
    ];
}
