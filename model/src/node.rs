//! What a node has, and in what condition it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BootId, Bytes, GpuId, NodeId};

/// Everything about a node that does not change while it runs. Sent when an agent connects, and
/// again when a GPU appears or disappears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInventory {
    pub node: NodeId,
    pub boot: BootId,
    pub agent_version: String,
    /// Host name or IP address other nodes reach this one at; `MASTER_ADDR` for rank 0 here.
    pub address: String,
    /// Logical CPUs.
    pub cpus: u32,
    pub memory: Bytes,
    /// `None` on a node without an NVIDIA driver.
    pub driver_version: Option<String>,
    /// In index order. A GPU that fell off the bus stays listed until the node's next boot.
    pub gpus: Vec<Gpu>,
    pub nics: Vec<Nic>,
    /// Free words about the node, from the agent's settings and from its environment: what
    /// `--select` asks for, and, under the names clouds and Kubernetes use, where it stands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names of the switches its links end at, where the agent can see them (LLDP, `ibnetdiscover`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub id: GpuId,
    /// NVML index at this boot.
    pub index: u32,
    /// NVML's name, `NVIDIA H100 80GB HBM3`.
    pub model: String,
    pub memory: Bytes,
    /// As sysfs writes it: `0000:1a:00.0`.
    pub pci_bus_id: String,
    pub numa: Option<u32>,
    /// GPUs of one node with the same number reach each other over NVLink; `None` without NVLink.
    pub nvlink_group: Option<u32>,
    /// NVLink domain that may span nodes, `<cluster uuid>.<clique>`; `None` where there is none.
    pub nvlink_domain: Option<String>,
    /// The nearest NIC by PCI distance, and its rail: the NIC's place in PCI order.
    pub nic: Option<String>,
    pub rail: Option<u32>,
    /// Set on a MIG instance, which is a device of its own; the whole GPU is not listed beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigInstance>,
}

/// A part of a GPU, cut off by the hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigInstance {
    /// UUID of the GPU it is cut from.
    pub parent: GpuId,
    /// `1g.10gb`, as NVIDIA writes it.
    pub profile: String,
    /// Memory slices it has of the GPU's eight.
    pub memory_slices: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Name of the RDMA device or, without one, of the interface: `mlx5_0`, `eth0`.
    pub name: String,
    pub pci_bus_id: Option<String>,
    pub numa: Option<u32>,
    /// Megabits per second; `None` when the link is down.
    pub speed_mbps: Option<u64>,
    pub rdma: bool,
}

/// Whether a GPU may be given to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "condition", rename_all = "snake_case")]
pub enum GpuCondition {
    Healthy,
    /// An NVML call on it has not returned within its deadline.
    Unresponsive,
    /// NVML says it fell off the bus (`NVML_ERROR_GPU_IS_LOST`), or it is missing.
    Lost,
    ResetRequired,
    /// A fatal XID, by its code.
    Xid {
        code: u32,
    },
    /// Processes that belong to no job of ours are on it.
    Occupied {
        pids: Vec<u32>,
    },
    /// Another node lists a GPU of the same UUID, and had it first.
    Duplicate {
        node: NodeId,
    },
}

impl GpuCondition {
    pub fn is_healthy(&self) -> bool {
        *self == Self::Healthy
    }

    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unresponsive => "unresponsive",
            Self::Lost => "lost",
            Self::ResetRequired => "reset-required",
            Self::Xid { .. } => "xid",
            Self::Occupied { .. } => "occupied",
            Self::Duplicate { .. } => "duplicate",
        }
    }
}

impl std::fmt::Display for GpuCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::Unresponsive => f.write_str("does not answer NVML calls"),
            Self::Lost => f.write_str("fell off the bus"),
            Self::ResetRequired => f.write_str("needs a reset"),
            Self::Xid { code } => write!(f, "fatal XID {code}"),
            Self::Occupied { pids } => {
                if pids.is_empty() {
                    return f.write_str("still used by something");
                }
                let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
                write!(f, "used by processes of no job: {}", pids.join(", "))
            }
            Self::Duplicate { node } => write!(f, "{node} lists it, too"),
        }
    }
}

/// What the scheduler knows of a node's agent. See ARCHITECTURE for the transition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Heartbeats arrive.
    Up,
    /// No heartbeat for a while: nothing new is placed there, what runs there goes on.
    Silent,
    /// Silent so long that its requeueable attempts are taken as stopped by their shims.
    Lost,
}

impl NodeState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Silent => "silent",
            Self::Lost => "lost",
        }
    }
}

/// An operator's wish for a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// A drain also says that the node is wanted empty; a cordon only keeps new jobs away.
    pub drain: bool,
    pub by: String,
    pub reason: String,
}

/// A node as `tessera nodes` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub inventory: NodeInventory,
    pub state: NodeState,
    pub cordon: Option<Cordon>,
    /// Names of the domains it stands in, fabric by fabric from the root down:
    /// `[("block","b0"),("leaf","l1")]`.
    pub domains: Vec<(String, String)>,
    /// Where what its agent sees contradicts the map; a sentence each.
    pub map_doubts: Vec<String>,
    /// Parallel to `inventory.gpus`.
    pub gpus: Vec<GpuRecord>,
    pub cpus_held: u32,
    pub last_seen: crate::UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecord {
    pub condition: GpuCondition,
    /// The job that holds it, or the first of those that share it. Job 0 stands for one that
    /// whoever asks may not see.
    pub held_by: Option<crate::JobId>,
    pub team: Option<crate::TeamId>,
    /// Thousandths that jobs hold of it.
    pub held_milli: u32,
}
