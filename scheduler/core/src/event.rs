//! All that can change the cluster, in one list. Names and fields are a contract: they stand in
//! the journal for years. `core/tests/golden` pins them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::usage::PriceVersion;
use tessera_model::{
    AttemptId, Certificate, Cordon, DomainMark, Epoch, Eta, GpuCondition, GpuId, Hold, JobChange,
    JobId, JobSpec, Lease, NodeId, NodeInventory, Principal, Reservation, SessionId, TaskEnd,
    TeamId, TeamShare, Topology, UnixMillis, UserId,
};

use crate::promises::Slot;

/// An event and when the writer took it in. Stamps never go back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    pub at: UnixMillis,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A scheduler took over. Epochs only grow.
    EpochBegan {
        epoch: Epoch,
    },
    /// Nothing has happened but that time went on: a job's begin has come, a pause is over.
    TimePassed,
    TopologyLoaded {
        topology: Topology,
    },

    /// A domain's links are not what they should be, or are again (health 100).
    DomainMarked {
        mark: DomainMark,
    },

    TeamCreated {
        team: TeamId,
        description: String,
        by: UserId,
    },
    /// Where the team stands in the tree, its weight and its quotas.
    TeamShared {
        team: TeamId,
        share: TeamShare,
        by: UserId,
    },
    ReservationMade {
        reservation: Reservation,
    },
    /// Taken back, or over.
    ReservationEnded {
        name: String,
        by: Option<UserId>,
    },
    /// `hash` is the SHA-256 of the secret, in hex; the secret itself is nowhere.
    TokenIssued {
        id: String,
        hash: String,
        principal: Principal,
        expires: Option<UnixMillis>,
        by: UserId,
    },
    TokenRevoked {
        id: String,
        by: UserId,
    },
    JoinTokenIssued {
        id: String,
        hash: String,
        node: Option<NodeId>,
        expires: UnixMillis,
        by: UserId,
    },
    JoinTokenUsed {
        id: String,
        node: NodeId,
    },
    PricesPublished {
        version: PriceVersion,
        by: UserId,
    },

    /// An agent connected. `adopted`: attempts it holds and goes on with under its new session.
    NodeUp {
        inventory: NodeInventory,
        session: SessionId,
        adopted: Vec<AttemptId>,
    },
    InventoryChanged {
        inventory: NodeInventory,
    },
    /// Every GPU of the node that is not healthy; one that is missing is healthy again.
    ConditionsChanged {
        node: NodeId,
        conditions: BTreeMap<GpuId, GpuCondition>,
    },
    NodeSilent {
        node: NodeId,
        last_seen: UnixMillis,
    },
    /// Heartbeats came back on the same session.
    NodeHeard {
        node: NodeId,
    },
    /// Teams pay for what they hold there up to `last_seen`, the last proof of life; from then on
    /// nobody knows, until the node is up again.
    NodeLost {
        node: NodeId,
        last_seen: UnixMillis,
    },
    NodeCordoned {
        node: NodeId,
        cordon: Cordon,
    },
    NodeUncordoned {
        node: NodeId,
        by: UserId,
    },
    /// It is gone for good, and with it its GPUs. What ran there was written off before.
    NodeRetired {
        node: NodeId,
        by: UserId,
        reason: String,
    },

    JobSubmitted {
        job: JobId,
        key: Option<String>,
        spec: Arc<JobSpec>,
    },
    /// Tasks of an array: the jobs `first`, `first + 1`, … in the order of `indices`.
    ArraySubmitted {
        first: JobId,
        key: Option<String>,
        spec: Arc<JobSpec>,
        indices: Vec<u32>,
        /// Tasks that may run at once; 0: all.
        throttle: u32,
    },
    CancelRequested {
        job: JobId,
        by: UserId,
    },
    JobHeld {
        job: JobId,
        by: UserId,
    },
    JobReleased {
        job: JobId,
        by: UserId,
    },
    JobUpdated {
        job: JobId,
        change: JobChange,
        by: UserId,
    },
    SignalRequested {
        job: JobId,
        signal: i32,
        by: UserId,
    },
    /// Work up to now is safe: said by the job's owner, by the job itself, or seen in its file.
    CheckpointReported {
        attempt: AttemptId,
    },
    /// A gang was promised a start, or the promise has changed.
    PromiseMade {
        job: JobId,
        /// `None`: withdrawn. Every event has an `at` of its own.
        #[serde(rename = "start")]
        at: Option<UnixMillis>,
        cause: PromiseCause,
        /// The place that is kept for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<Arc<Slot>>,
        /// The time of arrival that was shown with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eta: Option<Eta>,
    },
    /// The attempt has to leave: it is told now, and stopped at `deadline`, or once it says that
    /// its work is safe.
    LeaveAsked {
        attempt: AttemptId,
        why: LeaveWhy,
        deadline: UnixMillis,
    },
    /// Nodes are kept for a job while others leave them.
    HoldPlaced {
        hold: Hold,
    },
    HoldEnded {
        job: JobId,
    },
    LeaseGranted {
        lease: Lease,
        certificate: Certificate,
    },
    /// Every node is ready: they are told to start, with the address of rank 0.
    GangCommitted {
        attempt: AttemptId,
        master_addr: String,
        master_port: u16,
    },
    AttemptRunning {
        attempt: AttemptId,
    },
    AttemptStopping {
        attempt: AttemptId,
        why: StopWhy,
    },
    TaskEnded {
        attempt: AttemptId,
        rank: u32,
        end: TaskEnd,
    },
    /// The node holds nothing of the attempt any more; on `occupied` GPUs something else still runs.
    PlaceReleased {
        attempt: AttemptId,
        node: NodeId,
        occupied: BTreeMap<GpuId, Vec<u32>>,
    },
    /// The attempt is known to be dead there although nobody saw it end. Its team pays to
    /// `charged_until`; what lies between there and now is nobody's.
    PlaceWrittenOff {
        attempt: AttemptId,
        node: NodeId,
        charged_until: UnixMillis,
        why: WriteOffWhy,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum StopWhy {
    Cancelled,
    TimeLimit,
    /// A node refused or could not prepare it.
    Refused {
        node: NodeId,
        text: String,
    },
    /// Not every node was ready in time.
    LaunchTimeout {
        missing: Vec<NodeId>,
    },
    /// It was asked to leave, and its notice is over or its work is safe.
    Left {
        why: LeaveWhy,
    },
}

/// For what a job has to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum LeaveWhy {
    /// A job of a higher tier needs the place.
    Preempted { by: JobId },
    /// A team wants back what it is guaranteed.
    Reclaimed { by: JobId },
    /// It goes on with fewer nodes, so that another can start.
    Shrunk { by: JobId, nodes: u32 },
    /// It goes on elsewhere, so that a larger gang finds a whole domain.
    Moved { by: JobId },
}

impl LeaveWhy {
    /// The job that gains.
    pub fn by(&self) -> JobId {
        match self {
            Self::Preempted { by }
            | Self::Reclaimed { by }
            | Self::Shrunk { by, .. }
            | Self::Moved { by } => *by,
        }
    }
}

/// Why a promised start is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromiseCause {
    /// The first one.
    Reserved,
    /// Something ended earlier than it had to.
    Earlier,
    /// A node or GPU was lost, cordoned or reserved.
    LostCapacity,
    /// A job of a higher tier, or one with an older claim, went before.
    Overtaken,
    /// Its team may not hold so much any more.
    OverQuota,
    /// Its owner or an operator changed it.
    Changed,
    /// It started, was cancelled, or no date can be given any more.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteOffWhy {
    /// The node came back from a reboot.
    Rebooted,
    /// The agent came back in a new session and knows nothing of it.
    Forgotten,
    /// Its lease has lapsed for certain, so its shims have stopped it.
    LeaseLapsed,
    /// An operator says that the node is dead or gone.
    Retired,
}

impl Event {
    /// The word the journal files it under.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::EpochBegan { .. } => "epoch_began",
            Self::TimePassed => "time_passed",
            Self::TopologyLoaded { .. } => "topology_loaded",
            Self::DomainMarked { .. } => "domain_marked",
            Self::TeamCreated { .. } => "team_created",
            Self::TeamShared { .. } => "team_shared",
            Self::ReservationMade { .. } => "reservation_made",
            Self::ReservationEnded { .. } => "reservation_ended",
            Self::TokenIssued { .. } => "token_issued",
            Self::TokenRevoked { .. } => "token_revoked",
            Self::JoinTokenIssued { .. } => "join_token_issued",
            Self::JoinTokenUsed { .. } => "join_token_used",
            Self::PricesPublished { .. } => "prices_published",
            Self::NodeUp { .. } => "node_up",
            Self::InventoryChanged { .. } => "inventory_changed",
            Self::ConditionsChanged { .. } => "conditions_changed",
            Self::NodeSilent { .. } => "node_silent",
            Self::NodeHeard { .. } => "node_heard",
            Self::NodeLost { .. } => "node_lost",
            Self::NodeCordoned { .. } => "node_cordoned",
            Self::NodeUncordoned { .. } => "node_uncordoned",
            Self::NodeRetired { .. } => "node_retired",
            Self::JobSubmitted { .. } => "job_submitted",
            Self::ArraySubmitted { .. } => "array_submitted",
            Self::CancelRequested { .. } => "cancel_requested",
            Self::JobHeld { .. } => "job_held",
            Self::JobReleased { .. } => "job_released",
            Self::JobUpdated { .. } => "job_updated",
            Self::SignalRequested { .. } => "signal_requested",
            Self::CheckpointReported { .. } => "checkpoint_reported",
            Self::PromiseMade { .. } => "promise_made",
            Self::LeaveAsked { .. } => "leave_asked",
            Self::HoldPlaced { .. } => "hold_placed",
            Self::HoldEnded { .. } => "hold_ended",
            Self::LeaseGranted { .. } => "lease_granted",
            Self::GangCommitted { .. } => "gang_committed",
            Self::AttemptRunning { .. } => "attempt_running",
            Self::AttemptStopping { .. } => "attempt_stopping",
            Self::TaskEnded { .. } => "task_ended",
            Self::PlaceReleased { .. } => "place_released",
            Self::PlaceWrittenOff { .. } => "place_written_off",
        }
    }
}
