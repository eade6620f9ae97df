//! Readings: one device with all its fields, for `Nodes.Latest` and for the host part of a tick.

use tessera_model::{
    GpuId, Refusal, UnixMillis,
    sample::{GpuSample, HostSample, NicSample, NodeSample},
};

use crate::{door::bad_id, v1};

/// A whole sample; every GPU is taken to have answered with it.
pub fn latest(sample: &NodeSample) -> v1::LatestReply {
    v1::LatestReply {
        at_unix_ms: Some(sample.at.0),
        gpus: sample.gpus.iter().map(|g| gpu_reading(g, sample.at)).collect(),
        nics: sample.nics.iter().map(nic_reading).collect(),
        host: Some(host_reading(&sample.host)),
    }
}

/// `answered` is when these values were measured; it falls behind while the GPU is unresponsive.
pub fn gpu_reading(gpu: &GpuSample, answered: UnixMillis) -> v1::GpuReading {
    v1::GpuReading {
        uuid: gpu.gpu.as_ref().map(GpuId::to_string).unwrap_or_default(),
        busy_percent: gpu.busy_percent,
        sm_percent: gpu.sm_percent,
        tensor_percent: gpu.tensor_percent,
        dram_percent: gpu.dram_percent,
        memory_used_bytes: gpu.memory_used_bytes,
        power_mw: gpu.power_mw,
        energy_mj: gpu.energy_mj,
        temperature_c: gpu.temperature_c,
        memory_temperature_c: gpu.memory_temperature_c,
        sm_clock_mhz: gpu.sm_clock_mhz,
        memory_clock_mhz: gpu.memory_clock_mhz,
        clock_event_reasons: gpu.clock_event_reasons,
        ecc_corrected: gpu.ecc_corrected,
        ecc_uncorrected: gpu.ecc_uncorrected,
        pcie_replays: gpu.pcie_replays,
        processes: gpu.processes,
        at_unix_ms: answered.0,
    }
}

/// The sample, and when the GPU answered. Counter epochs are not part of a reading.
pub fn gpu_from_reading(wire: &v1::GpuReading) -> Result<(GpuSample, UnixMillis), Refusal> {
    let gpu = match wire.uuid.as_str() {
        "" => None,
        uuid => Some(GpuId::parse(uuid).map_err(bad_id("uuid"))?),
    };
    let sample = GpuSample {
        gpu,
        counter_epoch: 0,
        busy_percent: wire.busy_percent,
        sm_percent: wire.sm_percent,
        tensor_percent: wire.tensor_percent,
        dram_percent: wire.dram_percent,
        memory_used_bytes: wire.memory_used_bytes,
        power_mw: wire.power_mw,
        energy_mj: wire.energy_mj,
        temperature_c: wire.temperature_c,
        memory_temperature_c: wire.memory_temperature_c,
        sm_clock_mhz: wire.sm_clock_mhz,
        memory_clock_mhz: wire.memory_clock_mhz,
        clock_event_reasons: wire.clock_event_reasons,
        ecc_corrected: wire.ecc_corrected,
        ecc_uncorrected: wire.ecc_uncorrected,
        pcie_replays: wire.pcie_replays,
        processes: wire.processes,
    };
    Ok((sample, UnixMillis(wire.at_unix_ms)))
}

pub fn nic_reading(nic: &NicSample) -> v1::NicReading {
    v1::NicReading {
        name: nic.name.clone(),
        up: nic.up,
        speed_mbps: nic.speed_mbps,
        receive_bytes: nic.receive_bytes,
        transmit_bytes: nic.transmit_bytes,
        receive_errors: nic.receive_errors,
        transmit_errors: nic.transmit_errors,
        carrier_changes: nic.carrier_changes,
        transmit_wait: nic.transmit_wait,
        symbol_errors: nic.symbol_errors,
        link_downed: nic.link_downed,
        cnp_handled: nic.cnp_handled,
        cnp_sent: nic.cnp_sent,
    }
}

pub fn nic_from_reading(wire: &v1::NicReading) -> NicSample {
    NicSample {
        name: wire.name.clone(),
        up: wire.up,
        speed_mbps: wire.speed_mbps,
        receive_bytes: wire.receive_bytes,
        transmit_bytes: wire.transmit_bytes,
        receive_errors: wire.receive_errors,
        transmit_errors: wire.transmit_errors,
        carrier_changes: wire.carrier_changes,
        transmit_wait: wire.transmit_wait,
        symbol_errors: wire.symbol_errors,
        link_downed: wire.link_downed,
        cnp_handled: wire.cnp_handled,
        cnp_sent: wire.cnp_sent,
    }
}

pub fn host_reading(host: &HostSample) -> v1::HostReading {
    v1::HostReading {
        cpu_percent: host.cpu_percent,
        memory_used_bytes: host.memory_used_bytes,
        load_1m: host.load_1m,
        agent_rss_bytes: host.agent_rss_bytes,
        skew_ms: host.skew_ms,
        samples_dropped: host.samples_dropped,
    }
}

/// What is no number was not measured.
pub fn host_from_reading(wire: &v1::HostReading) -> HostSample {
    let finite = |v: Option<f32>| v.filter(|v| v.is_finite());
    HostSample {
        cpu_percent: finite(wire.cpu_percent),
        memory_used_bytes: wire.memory_used_bytes,
        load_1m: finite(wire.load_1m),
        agent_rss_bytes: wire.agent_rss_bytes,
        skew_ms: finite(wire.skew_ms),
        samples_dropped: wire.samples_dropped,
    }
}
