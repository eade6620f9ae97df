//! All that can change the cluster, in one list. Names and fields are a contract: they stand in
//! the journal for years. `core/tests/golden` pins them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::topology::Topology;
use tessera_model::usage::PriceVersion;
use tessera_model::{
    AttemptId, Cordon, Epoch, GpuCondition, GpuId, JobId, JobSpec, Lease, NodeId, NodeInventory,
    Principal, SessionId, TaskEnd, TeamId, UnixMillis, UserId,
};

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
    TopologyLoaded {
        topology: Topology,
    },

    TeamCreated {
        team: TeamId,
        description: String,
        by: UserId,
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
    CancelRequested {
        job: JobId,
        by: UserId,
    },
    LeaseGranted {
        lease: Lease,
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
#[serde(tag = "why", rename_all = "snake_case")]
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
            Self::TopologyLoaded { .. } => "topology_loaded",
            Self::TeamCreated { .. } => "team_created",
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
            Self::CancelRequested { .. } => "cancel_requested",
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
