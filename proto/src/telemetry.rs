//! Samples at the door: as columns for the agent's stream, as readings for people.
//!
//! A tick holds one column for each field that was measured on any device, so a node with 8 GPUs
//! and 8 NICs takes less than 2 kB. Names of devices are sent once a stream and again when they
//! change; [`Encoder`] and [`Decoder`] keep them, one pair for each stream.

mod columns; // one field of all devices
mod readings; // one device with all its fields

use tessera_model::{
    BootId, GpuId, NodeId, Refusal, UnixMillis,
    sample::{GpuSample, NicSample, NodeSample},
};

use crate::{
    door::{Checked, bad_id, count, label},
    v1,
};
use columns::{
    GPU_COUNTERS, GPU_GAUGES, NIC_COUNTERS, NIC_GAUGES, read_counters, read_gauges, write_counters,
    write_gauges,
};
pub use readings::{
    gpu_from_reading, gpu_reading, host_from_reading, host_reading, latest, nic_from_reading,
    nic_reading,
};

/// A column's presence is one bit a device in 64.
pub const DEVICES_MAX: usize = 64;

/// One name that no NIC can have says that a node has no devices any more; an empty list would
/// say that nothing changed.
const NO_DEVICES: &str = "";

/// Makes ticks of samples. Call it when a sample is sent and not when it is taken: a tick that is
/// dropped on the way out would take the names with it.
#[derive(Debug, Default)]
pub struct Encoder {
    /// What the other side knows; `None` before the first tick.
    names: Option<(Vec<String>, Vec<String>)>,
}

impl Encoder {
    /// For a stream on which nothing was sent yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Devices beyond the first [`DEVICES_MAX`] of a kind have no place in a tick and are left out.
    pub fn encode(&mut self, sample: &NodeSample) -> v1::Tick {
        let gpus = &sample.gpus[..sample.gpus.len().min(DEVICES_MAX)];
        let nics = &sample.nics[..sample.nics.len().min(DEVICES_MAX)];
        let mut tick = v1::Tick {
            sequence: sample.sequence,
            at_unix_ms: sample.at.0,
            gpu_gauges: write_gauges(&GPU_GAUGES, gpus),
            gpu_counters: write_counters(&GPU_COUNTERS, gpus),
            nic_gauges: write_gauges(&NIC_GAUGES, nics),
            nic_counters: write_counters(&NIC_COUNTERS, nics),
            host: Some(host_reading(&sample.host)),
            ..Default::default()
        };
        if !self.knows(gpus, nics) {
            let gpu_name = |g: &GpuSample| g.gpu.as_ref().map(GpuId::to_string).unwrap_or_default();
            let gpu_names: Vec<String> = gpus.iter().map(gpu_name).collect();
            let nic_names: Vec<String> = nics.iter().map(|n| n.name.clone()).collect();
            tick.gpu_uuids = gpu_names.clone();
            tick.nic_names = match (gpus, nics) {
                ([], []) => vec![NO_DEVICES.to_owned()],
                _ => nic_names.clone(),
            };
            self.names = Some((gpu_names, nic_names));
        }
        tick
    }

    fn knows(&self, gpus: &[GpuSample], nics: &[NicSample]) -> bool {
        let Some((gpu_names, nic_names)) = &self.names else { return false };
        let gpu_name = |g: &GpuSample| g.gpu.as_ref().map_or("", GpuId::as_str).to_owned();
        gpus.iter().map(gpu_name).eq(gpu_names.iter().cloned())
            && nics.iter().map(|n| &n.name).eq(nic_names)
    }
}

/// Makes samples of ticks. A tick that is refused changes nothing here.
#[derive(Debug)]
pub struct Decoder {
    node: NodeId,
    /// `None` before the first tick.
    devices: Option<Devices>,
}

#[derive(Debug)]
struct Devices {
    /// `None` where the agent did not know it.
    gpus: Vec<Option<GpuId>>,
    nics: Vec<String>,
}

impl Decoder {
    /// `node` is the one the stream's certificate names.
    pub fn new(node: NodeId) -> Self {
        Self { node, devices: None }
    }

    pub fn decode(&mut self, boot: &BootId, mut tick: v1::Tick) -> Result<NodeSample, Refusal> {
        let nic_names = std::mem::take(&mut tick.nic_names);
        if !(tick.gpu_uuids.is_empty() && nic_names.is_empty()) {
            let devices = Devices::read(&tick.gpu_uuids, nic_names)?;
            let sample = devices.sample(&self.node, boot, &tick)?;
            self.devices = Some(devices);
            return Ok(sample);
        }
        match &self.devices {
            Some(devices) => devices.sample(&self.node, boot, &tick),
            None => Err(Refusal::invalid(
                "gpu_uuids",
                format!("tick {} is the first of its stream and names no devices", tick.sequence),
                "start each stream with a new encoder",
            )),
        }
    }
}

impl Devices {
    fn read(gpu_uuids: &[String], nic_names: Vec<String>) -> Checked<Self> {
        const HINT: &str = "send the first 64 of them";
        count("gpu_uuids", gpu_uuids.len(), DEVICES_MAX, HINT)?;
        count("nic_names", nic_names.len(), DEVICES_MAX, HINT)?;
        let gpu = |uuid: &String| match uuid.as_str() {
            "" => Ok(None),
            uuid => GpuId::parse(uuid).map(Some).map_err(bad_id("gpu_uuids")),
        };
        let gpus = gpu_uuids.iter().map(gpu).collect::<Checked<_>>()?;
        if gpu_uuids.is_empty() && nic_names == [NO_DEVICES] {
            return Ok(Self { gpus, nics: Vec::new() });
        }
        nic_names.iter().try_for_each(|name| label("nic_names", name, 64))?;
        Ok(Self { gpus, nics: nic_names })
    }

    fn sample(&self, node: &NodeId, boot: &BootId, tick: &v1::Tick) -> Checked<NodeSample> {
        let gpu = |gpu: &Option<GpuId>| GpuSample { gpu: gpu.clone(), ..Default::default() };
        let nic = |name: &String| NicSample { name: name.clone(), ..Default::default() };
        let mut gpus: Vec<GpuSample> = self.gpus.iter().map(gpu).collect();
        let mut nics: Vec<NicSample> = self.nics.iter().map(nic).collect();
        read_gauges("gpu_gauges", &GPU_GAUGES, &tick.gpu_gauges, &mut gpus)?;
        read_counters("gpu_counters", &GPU_COUNTERS, &tick.gpu_counters, &mut gpus)?;
        read_gauges("nic_gauges", &NIC_GAUGES, &tick.nic_gauges, &mut nics)?;
        read_counters("nic_counters", &NIC_COUNTERS, &tick.nic_counters, &mut nics)?;
        Ok(NodeSample {
            node: node.clone(),
            boot: boot.clone(),
            sequence: tick.sequence,
            at: UnixMillis(tick.at_unix_ms),
            gpus,
            nics,
            host: tick.host.as_ref().map(host_from_reading).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests;
