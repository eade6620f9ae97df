//! What an agent measured, raw. Not measured is `None`, never 0; counters travel as they are and
//! become rates once, from two samples of the same epoch.

use crate::{BootId, GpuId, NodeId, UnixMillis};

/// All of one node at one beat.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSample {
    pub node: NodeId,
    pub boot: BootId,
    /// Counts beats within one boot; survives a restart of the agent.
    pub sequence: u64,
    pub at: UnixMillis,
    pub gpus: Vec<GpuSample>,
    pub nics: Vec<NicSample>,
    pub host: HostSample,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuSample {
    pub gpu: Option<GpuId>,
    /// Grows when the driver was reloaded and counters fell back to 0.
    pub counter_epoch: u32,
    /// Share of the last period in which a kernel ran, 0..=100. For old dashboards, never for
    /// decisions. Source: `nvmlDeviceGetUtilizationRates`.
    pub busy_percent: Option<f32>,
    /// Share of SMs with work, 0..=100. Source: GPM `SM_UTIL`; Hopper and later.
    pub sm_percent: Option<f32>,
    /// Share of cycles in which a tensor pipe was busy, 0..=100. Source: GPM `ANY_TENSOR_UTIL`.
    pub tensor_percent: Option<f32>,
    /// Share of peak memory bandwidth, 0..=100. Source: GPM `DRAM_BW_UTIL`.
    pub dram_percent: Option<f32>,
    /// Without the driver's reserve. Source: `nvmlDeviceGetMemoryInfo_v2`.
    pub memory_used_bytes: Option<u64>,
    pub power_mw: Option<u32>,
    /// Energy since the driver was loaded. Source: `nvmlDeviceGetTotalEnergyConsumption`.
    pub energy_mj: Option<u64>,
    pub temperature_c: Option<f32>,
    pub memory_temperature_c: Option<f32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    /// Raw bits of `nvmlDeviceGetCurrentClocksEventReasons`; unknown ones are kept.
    pub clock_event_reasons: Option<u64>,
    pub ecc_corrected: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    pub pcie_replays: Option<u64>,
    /// Processes on the GPU.
    pub processes: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct NicSample {
    pub name: String,
    /// `Some(true)` when the link carries traffic.
    pub up: Option<bool>,
    pub speed_mbps: Option<u64>,
    pub receive_bytes: Option<u64>,
    pub transmit_bytes: Option<u64>,
    pub receive_errors: Option<u64>,
    pub transmit_errors: Option<u64>,
    pub carrier_changes: Option<u64>,
    /// RDMA: ticks with data to send and no credit.
    pub transmit_wait: Option<u64>,
    pub symbol_errors: Option<u64>,
    pub link_downed: Option<u64>,
    /// RoCE: congestion notifications handled (we were slowed) and sent (we saw ECN marks).
    pub cnp_handled: Option<u64>,
    pub cnp_sent: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostSample {
    pub cpu_percent: Option<f32>,
    pub memory_used_bytes: Option<u64>,
    pub load_1m: Option<f32>,
    /// Resident memory of the agent itself.
    pub agent_rss_bytes: Option<u64>,
    /// How late the beat was.
    pub skew_ms: Option<f32>,
    /// Samples dropped by the mailbox since the agent started.
    pub samples_dropped: u64,
}
