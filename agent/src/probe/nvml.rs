//! GPUs, through NVML.
//!
//! In: an [`Open`] library. Out: [`GpuFacts`] once for each GPU, and readings: fast ones at each
//! beat, slow ones every few beats. All calls on one GPU come from one thread, which owns its
//! [`GpuReader`]; whether a call is overdue is for the supervisor to see in the [`CallWatch`].
//! What a call cannot do on this GPU is learnt once. `nvmlDeviceGetPcieThroughput` is never called:
//! it takes 20 ms to sample.

mod driver; // the library, opened, and which call a thread is in
mod mig; // GPUs that are cut

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use tessera_model::sample::GpuSample;
use tessera_model::{Bytes, GpuId, MigInstance};

pub use driver::{CallWatch, Driver, Open};
pub use mig::{Cut, cut};

use super::nvml_raw::{self as raw, FieldAsked, GpmPair, ProcessKind, RemoteKind};
use super::pci;

/// XID, fatal poison, GPU unavailable, recovery action: what changes a GPU's condition.
pub const EVENTS_WANTED: u64 = EVENT_XID | 0x2000 | 0x4000 | 0x8000;
pub const EVENT_XID: u64 = 0x8;

/// NVML's own limit of links on one GPU.
const NVLINKS_MAX: u32 = 18;
/// Two samples of the performance monitor that are closer than this give nothing.
const GPM_GAP: Duration = Duration::from_millis(100);
/// SM, any tensor pipe, DRAM bandwidth; percent. (PCIe and NVLink metrics would be MiB/s.)
const GPM_METRICS: [u32; 3] = [2, 5, 10];

const FIELD_ECC_CORRECTED: u32 = 3;
const FIELD_ECC_UNCORRECTED: u32 = 4;
const FIELD_MEMORY_TEMPERATURE: u32 = 82;
const FIELD_NVLINK_COUNT: u32 = 91;
const FIELD_PCIE_REPLAYS: u32 = 94;
const FIELD_REMAP_FAILURE: u32 = 145;
const FIELD_RECOVERY_ACTION: u32 = 230;

/// Why a GPU cannot be read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `GPU_IS_LOST`, or the driver does not know its UUID any more.
    Lost,
    ResetRequired,
    /// The driver was unloaded; NVML has to be opened again.
    DriverGone,
    /// Every call says that the handle is none.
    StaleHandle,
}

/// What does not change while the driver is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    pub id: GpuId,
    pub index: u32,
    pub model: String,
    pub memory: Bytes,
    /// As sysfs writes it.
    pub pci_bus_id: String,
    pub links: Vec<Link>,
    pub domain: Option<String>,
    /// CPUs near it, for machines whose firmware tells sysfs no NUMA node.
    pub cpus: Vec<u32>,
    /// Of a MIG instance: what it is cut from. Everything else is then its GPU's, but for its own
    /// UUID and memory.
    pub mig: Option<MigInstance>,
}

/// An active NVLink, by what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    Switch,
    /// A device by its bus id; a GPU as far as the driver says.
    Peer(String),
}

/// What the slow round says about a GPU's health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// A memory row could not be remapped; XID 64 says the same.
    pub remap_failure: bool,
    /// The driver asks for a reset (1), a reboot (2), or a reset after a drain (4).
    pub wants_reset: bool,
}

/// Which GPU to open.
#[derive(Debug, Clone)]
pub enum Which {
    Index(u32),
    /// A MIG instance, by its place on a GPU.
    Instance {
        gpu: u32,
        number: u32,
    },
    Id(GpuId),
}

/// What a GPU's reader is told once.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// Read the performance monitor. Off where DCGM reads the same counters.
    pub gpm: bool,
    /// Words of 64 CPUs that a CPU mask of this machine takes.
    pub cpu_words: usize,
}

/// Reads one GPU.
#[derive(Debug)]
pub struct GpuReader {
    watch: Arc<CallWatch>,
    open: Open,
    device: Device<'static>,
    /// Of a MIG instance: the GPU it is cut from, which knows where it sits and how it is.
    parent: Option<Device<'static>>,
    facts: GpuFacts,
    options: ReadOptions,
    /// What this GPU or this library cannot do.
    unsupported: BTreeSet<&'static str>,
    gpm: Option<GpmPair>,
    gpm_taken: Option<Instant>,
    fault: Option<Fault>,
    answered: u32,
    bad_handle: u32,
    ecc: (Option<u64>, Option<u64>),
    process_count: Option<u32>,
    fabric_pending: bool,
}

impl GpuReader {
    pub fn open(
        watch: Arc<CallWatch>,
        open: Open,
        which: &Which,
        options: ReadOptions,
    ) -> Result<Self, Fault> {
        let device = watch
            .during("nvmlDeviceGetHandle", || match which {
                Which::Index(index) => open.nvml.device_by_index(*index),
                Which::Instance { gpu, number } => {
                    open.nvml.device_by_index(*gpu)?.mig_device_by_index(*number)
                }
                Which::Id(id) => open.nvml.device_by_uuid(id.as_str()),
            })
            .map_err(|error| fault_of(&error).unwrap_or(Fault::Lost))?;
        let is_instance = match which {
            Which::Index(_) => false,
            Which::Instance { .. } => true,
            Which::Id(id) => id.as_str().starts_with("MIG-"),
        };
        let parent = match is_instance {
            true => {
                let parent = watch.during("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", || {
                    device.mig_parent_device()
                });
                Some(parent.map_err(|error| fault_of(&error).unwrap_or(Fault::Lost))?)
            }
            false => None,
        };
        let mut reader = Self {
            watch,
            open,
            device,
            parent,
            facts: GpuFacts {
                id: GpuId::parse("unknown").map_err(|_| Fault::Lost)?,
                index: 0,
                model: String::new(),
                memory: Bytes(0),
                pci_bus_id: String::new(),
                links: Vec::new(),
                domain: None,
                cpus: Vec::new(),
                mig: None,
            },
            options,
            unsupported: BTreeSet::new(),
            gpm: None,
            gpm_taken: None,
            fault: None,
            answered: 0,
            bad_handle: 0,
            ecc: (None, None),
            process_count: None,
            fabric_pending: false,
        };
        reader.identify(which)?;
        reader.register_events();
        // What the monitor tells of a whole GPU is not its instances'.
        if options.gpm && reader.parent.is_none() {
            reader.gpm = reader.call("nvmlGpmSampleAlloc", |device| GpmPair::create(device));
        }
        Ok(reader)
    }

    pub fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    pub fn generation(&self) -> u32 {
        self.open.generation
    }

    /// Of the device whose events tell of it.
    pub fn key(&self) -> raw::DeviceKey {
        raw::key(self.parent.as_ref().unwrap_or(&self.device))
    }

    /// What was learnt not to work here, by call or field.
    pub fn unsupported(&self) -> impl Iterator<Item = &'static str> {
        self.unsupported.iter().copied()
    }

    fn identify(&mut self, which: &Which) -> Result<(), Fault> {
        let uuid = self.call_own("nvmlDeviceGetUUID", |d| d.uuid());
        let id = match (uuid.as_deref().map(GpuId::parse), which) {
            (Some(Ok(id)), _) => id,
            (_, Which::Id(id)) if self.fault.is_none() => id.clone(),
            _ => return Err(self.fault.unwrap_or(Fault::Lost)),
        };
        let index = match which {
            Which::Index(index) | Which::Instance { gpu: index, .. } => *index,
            Which::Id(_) => self.call("nvmlDeviceGetIndex", |d| d.index()).unwrap_or(0),
        };
        let bus = self.call("nvmlDeviceGetPciInfo_v3", |d| d.pci_info());
        let Some(pci_bus_id) = bus.and_then(|bus| pci::sysfs_bus_id(&bus.bus_id)) else {
            return Err(self.fault.unwrap_or(Fault::Lost));
        };
        let model = self.call("nvmlDeviceGetName", |d| d.name()).unwrap_or_default();
        let memory = self
            .call_own("nvmlDeviceGetMemoryInfo_v2", |d| d.memory_info())
            .map(|info| info.total)
            .or_else(|| self.call_own("nvmlDeviceGetMemoryInfo", raw::memory_total_v1));
        let mig = self.instance(&model);
        // NVLink is the whole GPU's: instances do not reach each other over it.
        let whole = self.parent.is_none();
        let links = if whole { self.links() } else { Vec::new() };
        let domain = if whole { self.domain() } else { None };
        let words = self.options.cpu_words;
        let mask = self.call("nvmlDeviceGetCpuAffinity", |d| d.cpu_affinity(words));
        // A GPU that is lost or waits for a reset is still this GPU; its sizes come later.
        if let Some(Fault::DriverGone) = self.fault.take() {
            return Err(Fault::DriverGone);
        }
        self.facts = GpuFacts {
            id,
            index,
            model,
            memory: Bytes(memory.unwrap_or(0)),
            pci_bus_id,
            links,
            domain,
            cpus: mask.map(|words| cpus_in(&words)).unwrap_or_default(),
            mig,
        };
        Ok(())
    }

    fn links(&mut self) -> Vec<Link> {
        let count = FieldAsked { id: FIELD_NVLINK_COUNT, scope: 0 };
        let count = self
            .call("nvmlDeviceGetFieldValues", |d| raw::fields(d, &[count]))
            .and_then(|values| values.into_iter().next()?.ok())
            .map_or(NVLINKS_MAX, |n| u32::try_from(n).unwrap_or(NVLINKS_MAX).min(NVLINKS_MAX));
        let mut links = Vec::new();
        for link in 0..count {
            // Not supported is learnt at the first link, and a GPU without NVLink is asked once.
            let active =
                self.call("nvmlDeviceGetNvLinkState", |d| d.link_wrapper_for(link).is_active());
            match active {
                Some(true) => {}
                Some(false) => continue,
                None if self.unsupported.contains("nvmlDeviceGetNvLinkState") => break,
                None => continue,
            }
            let kind = self
                .call("nvmlDeviceGetNvLinkRemoteDeviceType", |d| raw::nvlink_remote_kind(d, link));
            if kind == Some(RemoteKind::Switch) {
                links.push(Link::Switch);
                continue;
            }
            let remote = self.call("nvmlDeviceGetNvLinkRemotePciInfo_v2", |d| {
                d.link_wrapper_for(link).remote_pci_info()
            });
            if let Some(bus_id) = remote.and_then(|remote| pci::sysfs_bus_id(&remote.bus_id)) {
                links.push(Link::Peer(bus_id));
            }
        }
        links
    }

    fn domain(&mut self) -> Option<String> {
        let fabric = self.call("nvmlDeviceGetGpuFabricInfoV", raw::fabric)?;
        self.fabric_pending = matches!(fabric.state, 1 | 2);
        domain_of(&fabric)
    }

    fn register_events(&mut self) {
        let Some(events) = self.open.events else { return };
        // The event thread holds the set for at most a second at a time, unless it is stuck.
        let Some(mut set) = events.try_lock_for(Duration::from_secs(3)) else {
            tracing::warn!(gpu = %self.facts.id, "event queue is stuck; no XID events for this GPU");
            return;
        };
        let set = &mut *set;
        self.call("nvmlDeviceRegisterEvents", |device| set.register(device, EVENTS_WANTED));
    }

    /// The readings of each beat. Slow ones are repeated from the last slow round.
    pub fn fast(&mut self) -> Result<GpuSample, Fault> {
        self.begin();
        if self.parent.is_some() {
            return self.fast_instance();
        }
        let busy = self.call("nvmlDeviceGetUtilizationRates", |d| d.utilization_rates());
        let memory = self.call("nvmlDeviceGetMemoryInfo_v2", |d| d.memory_info());
        let mut sample = GpuSample {
            gpu: Some(self.facts.id.clone()),
            busy_percent: busy.map(|rates| rates.gpu as f32),
            memory_used_bytes: memory.map(|info| info.used),
            power_mw: self.call("nvmlDeviceGetPowerUsage", |d| d.power_usage()),
            energy_mj: self
                .call("nvmlDeviceGetTotalEnergyConsumption", |d| d.total_energy_consumption()),
            temperature_c: self
                .call("nvmlDeviceGetTemperature", |d| d.temperature(TemperatureSensor::Gpu))
                .map(|degrees| degrees as f32),
            sm_clock_mhz: self.call("nvmlDeviceGetClockInfo(SM)", |d| d.clock_info(Clock::SM)),
            memory_clock_mhz: self
                .call("nvmlDeviceGetClockInfo(memory)", |d| d.clock_info(Clock::Memory)),
            clock_event_reasons: self
                .call("nvmlDeviceGetCurrentClocksEventReasons", raw::clock_event_reasons),
            ecc_corrected: self.ecc.0,
            ecc_uncorrected: self.ecc.1,
            processes: self.process_count,
            ..GpuSample::default()
        };
        let fields = [
            (FIELD_MEMORY_TEMPERATURE, "field 82 (memory temperature)"),
            (FIELD_PCIE_REPLAYS, "field 94 (PCIe replays)"),
        ];
        let [memory_temperature, replays] = self.fields(fields);
        sample.memory_temperature_c = memory_temperature.map(|degrees| degrees as f32);
        sample.pcie_replays = match replays {
            Some(count) => Some(count),
            None if self.unsupported.contains(fields[1].1) || self.no_fields() => self
                .call("nvmlDeviceGetPcieReplayCounter", |d| d.pcie_replay_counter())
                .map(u64::from),
            None => None,
        };
        if let Some([sm, tensor, dram]) = self.gpm() {
            sample.sm_percent = sm;
            sample.tensor_percent = tensor;
            sample.dram_percent = dram;
        }
        self.finish()?;
        Ok(sample)
    }

    /// The readings that walk driver state: processes, ECC, remapped rows, recovery action.
    pub fn slow(&mut self) -> Result<Health, Fault> {
        self.begin();
        let names = [
            (FIELD_ECC_CORRECTED, "field 3 (corrected ECC errors)"),
            (FIELD_ECC_UNCORRECTED, "field 4 (uncorrected ECC errors)"),
            (FIELD_REMAP_FAILURE, "field 145 (row remap failure)"),
            (FIELD_RECOVERY_ACTION, "field 230 (recovery action)"),
        ];
        let [mut corrected, mut uncorrected, remap_failure, action] = self.fields(names);
        if corrected.is_none() && (self.unsupported.contains(names[0].1) || self.no_fields()) {
            corrected = self.call("nvmlDeviceGetTotalEccErrors(corrected)", |d| {
                d.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile)
            });
        }
        if uncorrected.is_none() && (self.unsupported.contains(names[1].1) || self.no_fields()) {
            uncorrected = self.call("nvmlDeviceGetTotalEccErrors(uncorrected)", |d| {
                d.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
            });
        }
        if self.parent.is_none() {
            self.ecc = (corrected, uncorrected);
        }
        if self.fabric_pending {
            self.facts.domain = self.domain();
        }
        self.process_count =
            self.lists().ok().flatten().map(|pids| u32::try_from(pids.len()).unwrap_or(u32::MAX));
        self.finish()?;
        Ok(Health {
            remap_failure: remap_failure.is_some_and(|n| n > 0),
            wants_reset: matches!(action, Some(1 | 2 | 4)),
        })
    }

    /// Host pids that have the GPU open, asked now, each once, in order. Empty where this GPU keeps no
    /// such lists.
    pub fn processes(&mut self) -> Result<Vec<u32>, ProcessError> {
        self.begin();
        let lists = self.lists();
        self.finish().map_err(ProcessError::Fault)?;
        let pids: Vec<u32> = lists?.unwrap_or_default().into_iter().collect();
        self.process_count = Some(u32::try_from(pids.len()).unwrap_or(u32::MAX));
        Ok(pids)
    }

    /// `Ok(None)`: this GPU has none of the lists. An error: one that it has could not be read.
    fn lists(&mut self) -> Result<Option<BTreeSet<u32>>, ProcessError> {
        let mut pids: Option<BTreeSet<u32>> = None;
        for (kind, name) in [
            (ProcessKind::Compute, "nvmlDeviceGetComputeRunningProcesses_v3"),
            (ProcessKind::Graphics, "nvmlDeviceGetGraphicsRunningProcesses_v3"),
            (ProcessKind::Mps, "nvmlDeviceGetMPSComputeRunningProcesses_v3"),
        ] {
            match self.call_own(name, |device| raw::processes(device, kind)) {
                Some(list) => pids.get_or_insert_default().extend(list),
                None if self.unsupported.contains(name) => {}
                None => return Err(ProcessError::Failed(name)),
            }
        }
        Ok(pids)
    }

    /// Values by position; a field that this GPU does not have is not asked again.
    fn fields<const N: usize>(&mut self, fields: [(u32, &'static str); N]) -> [Option<u64>; N] {
        let asked: Vec<usize> =
            (0..N).filter(|i| !self.unsupported.contains(fields[*i].1)).collect();
        let batch: Vec<FieldAsked> =
            asked.iter().map(|i| FieldAsked { id: fields[*i].0, scope: 0 }).collect();
        let mut values = [None; N];
        if batch.is_empty() {
            return values;
        }
        let answers = self.call("nvmlDeviceGetFieldValues", |d| raw::fields(d, &batch));
        for (i, answer) in asked.into_iter().zip(answers.into_iter().flatten()) {
            values[i] = self.judge(fields[i].1, answer);
        }
        values
    }

    fn no_fields(&self) -> bool {
        self.unsupported.contains("nvmlDeviceGetFieldValues")
    }

    fn gpm(&mut self) -> Option<[Option<f32>; 3]> {
        let mut pair = self.gpm.take()?;
        let first = self.gpm_taken.is_none();
        if self.gpm_taken.is_some_and(|taken| taken.elapsed() < GPM_GAP) {
            self.gpm = Some(pair);
            return None;
        }
        let taken = self.call("nvmlGpmSampleGet", |device| pair.take(device)).is_some();
        let metrics = if taken {
            self.gpm_taken = Some(Instant::now());
            if first {
                None
            } else {
                self.call("nvmlGpmMetricsGet", |d| pair.metrics(d, GPM_METRICS))
            }
        } else {
            None
        };
        self.gpm = Some(pair);
        let names = ["GPM 2 (SM)", "GPM 5 (tensor)", "GPM 10 (DRAM)"];
        let mut values = [None; 3];
        for ((value, name), answer) in values.iter_mut().zip(names).zip(metrics?) {
            *value = self.judge(name, answer).map(|percent| percent as f32);
        }
        Some(values)
    }

    fn begin(&mut self) {
        (self.fault, self.answered, self.bad_handle) = (None, 0, 0);
    }

    fn finish(&mut self) -> Result<(), Fault> {
        match self.fault.take() {
            Some(fault) => Err(fault),
            None if self.answered == 0 && self.bad_handle > 0 => Err(Fault::StaleHandle),
            None => Ok(()),
        }
    }

    /// Makes one call under the watch, unless it is known not to work here or the GPU has just said that
    /// it cannot answer any.
    fn call<T>(
        &mut self,
        what: &'static str,
        run: impl FnOnce(&Device<'static>) -> Result<T, NvmlError>,
    ) -> Option<T> {
        if self.fault.is_some() || self.unsupported.contains(what) {
            return None;
        }
        let device = self.parent.as_ref().unwrap_or(&self.device);
        let answer = self.watch.during(what, || run(device));
        self.judge(what, answer)
    }

    /// The same on the device itself, where [`Self::call`] asks the GPU it is cut from. No call is
    /// made under one name on both.
    fn call_own<T>(
        &mut self,
        what: &'static str,
        run: impl FnOnce(&Device<'static>) -> Result<T, NvmlError>,
    ) -> Option<T> {
        if self.fault.is_some() || self.unsupported.contains(what) {
            return None;
        }
        let device = &self.device;
        let answer = self.watch.during(what, || run(device));
        self.judge(what, answer)
    }

    fn judge<T>(&mut self, what: &'static str, answer: Result<T, NvmlError>) -> Option<T> {
        match answer {
            Ok(value) => {
                self.answered += 1;
                return Some(value);
            }
            Err(
                NvmlError::NotSupported
                | NvmlError::FunctionNotFound
                | NvmlError::FailedToLoadSymbol(_)
                | NvmlError::NoPermission
                // NVML_ERROR_ARGUMENT_VERSION_MISMATCH: the library is older than the struct.
                | NvmlError::UnexpectedVariant(25),
            ) => {
                self.unsupported.insert(what);
            }
            Err(NvmlError::InvalidArg) => self.bad_handle += 1,
            Err(error) => match fault_of(&error) {
                Some(fault) => self.fault = Some(fault),
                // Without a value this time; asked again next time.
                None => tracing::trace!(gpu = %self.facts.id, what, %error, "no reading"),
            },
        }
        None
    }
}

/// Why a process list could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessError {
    Fault(Fault),
    /// The call that failed for another reason.
    Failed(&'static str),
}

fn fault_of(error: &NvmlError) -> Option<Fault> {
    match error {
        NvmlError::GpuLost => Some(Fault::Lost),
        NvmlError::ResetRequired => Some(Fault::ResetRequired),
        NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch => {
            Some(Fault::DriverGone)
        }
        _ => None,
    }
}

/// `<cluster uuid>.<clique>`. A fabric that is not completed, or whose cluster is all zeros (as HGX
/// boards say it), is no domain: grouping on zeros would join unrelated nodes.
fn domain_of(fabric: &raw::Fabric) -> Option<String> {
    if fabric.state != 3 || fabric.status != 0 || fabric.cluster == [0; 16] {
        return None;
    }
    let mut text = String::with_capacity(48);
    for (i, byte) in fabric.cluster.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(format!("{text}.{}", fabric.clique))
}

/// The CPUs of a mask of 64-bit words.
fn cpus_in(words: &[std::ffi::c_ulong]) -> Vec<u32> {
    let bits = std::ffi::c_ulong::BITS;
    (0_u32..)
        .zip(words)
        .flat_map(|(i, word)| {
            (0..bits).filter(move |b| word >> b & 1 == 1).map(move |b| i * bits + b)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fabric_without_a_cluster_is_no_domain() {
        let whole = raw::Fabric { cluster: [0x1a; 16], clique: 7, state: 3, status: 0 };
        let want = "1a1a1a1a-1a1a-1a1a-1a1a-1a1a1a1a1a1a.7";
        assert_eq!(domain_of(&whole).as_deref(), Some(want));
        for (name, fabric) in [
            ("all zeros", raw::Fabric { cluster: [0; 16], ..whole }),
            ("in progress", raw::Fabric { state: 2, ..whole }),
            ("failed", raw::Fabric { status: 999, ..whole }),
        ] {
            assert_eq!(domain_of(&fabric), None, "{name}");
        }
    }

    #[test]
    fn a_cpu_mask_counts_in_words() {
        assert_eq!(cpus_in(&[0b101, 1 << 63, 0]), [0, 2, 127]);
        assert!(cpus_in(&[]).is_empty());
    }
}
