//! The calls that `nvml-wrapper` does not make, or makes in a way that loses something.
//!
//! In: an open [`Nvml`] and a [`Device`] of it. Out: plain values, or the wrapper's own error. This
//! is the only file of the agent with unsafe code; what the values mean is `nvml`'s work. Raw
//! handles leave it only inside opaque types that live as long as the library, which is never
//! unloaded (see `nvml::Driver`).
#![allow(unsafe_code)]
// NVML's own names of its constants.
#![allow(non_upper_case_globals)]

use std::mem;
use std::ptr;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::*;

/// What an NVML event says, with every bit kept: the wrapper's `EventTypes` drops the ones that
/// it does not know, and with them NVML 13's GPU-unavailable and recovery-action events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub device: DeviceKey,
    pub kind: u64,
    /// The code, for an XID event.
    pub data: u64,
}

/// Which device an event is for. Only good for comparing, within one initialisation of NVML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKey(usize);

pub fn key(device: &Device<'_>) -> DeviceKey {
    // SAFETY: the handle is only compared, never passed to NVML from the key.
    DeviceKey(unsafe { device.handle() } as usize)
}

/// A queue of events. It is never freed: there is one for each initialisation of NVML, and
/// the wrapper's own `EventSet` panics when it is dropped with a library that has no
/// `nvmlEventSetFree`.
#[derive(Debug)]
pub struct EventSet {
    nvml: &'static Nvml,
    set: nvmlEventSet_t,
}

// SAFETY: NVML is thread-safe and the set is a handle, not memory of ours. Two calls at once on one
// set are kept apart by the mutex that the owner holds it in.
unsafe impl Send for EventSet {}

impl EventSet {
    pub fn create(nvml: &'static Nvml) -> Result<Self, NvmlError> {
        let create = nvml_sym(nvml.lib().nvmlEventSetCreate.as_ref())?;
        let mut set: nvmlEventSet_t = ptr::null_mut();
        // SAFETY: `set` is a valid place for the handle, and NVML is initialised.
        nvml_try(unsafe { create(&mut set) })?;
        Ok(Self { nvml, set })
    }

    /// Asks for those of `wanted` that the device can send. Returns the bits that were registered.
    pub fn register(&mut self, device: &Device<'_>, wanted: u64) -> Result<u64, NvmlError> {
        let supported = nvml_sym(self.nvml.lib().nvmlDeviceGetSupportedEventTypes.as_ref())?;
        let register = nvml_sym(self.nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
        let mut can: u64 = 0;
        // SAFETY: the handle comes from the same library and `can` is a valid place for the bits.
        nvml_try(unsafe { supported(device.handle(), &mut can) })?;
        let bits = can & wanted;
        if bits == 0 {
            return Err(NvmlError::NotSupported);
        }
        // SAFETY: device and set come from the same library; the set has not been freed.
        nvml_try(unsafe { register(device.handle(), bits, self.set) })?;
        Ok(bits)
    }

    /// Waits for one event. `Err(Timeout)` when none came.
    pub fn wait(&mut self, timeout_ms: u32) -> Result<Event, NvmlError> {
        let wait = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
        // SAFETY: the struct holds integers and a pointer, for which all-zero is valid.
        let mut data: nvmlEventData_t = unsafe { mem::zeroed() };
        // SAFETY: the set is alive and `data` is a valid place for the answer.
        nvml_try(unsafe { wait(self.set, &mut data, timeout_ms) })?;
        Ok(Event {
            device: DeviceKey(data.device as usize),
            kind: data.eventType,
            data: data.eventData,
        })
    }
}

/// Which list of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessKind {
    Compute,
    Graphics,
    Mps,
}

/// Above this many processes on one GPU the list is given up; no GPU has so many contexts.
const PROCESSES_MAX: usize = 1 << 16;

/// Host pids in one of the device's lists, in NVML's order. The wrapper asks for the count with an
/// empty buffer first and takes a success for an empty list; this asks with a real buffer and
/// lets it grow until the list fits.
pub fn processes(device: &Device<'_>, kind: ProcessKind) -> Result<Vec<u32>, NvmlError> {
    let lib = device.nvml().lib();
    let list = match kind {
        ProcessKind::Compute => nvml_sym(lib.nvmlDeviceGetComputeRunningProcesses_v3.as_ref())?,
        ProcessKind::Graphics => nvml_sym(lib.nvmlDeviceGetGraphicsRunningProcesses_v3.as_ref())?,
        ProcessKind::Mps => nvml_sym(lib.nvmlDeviceGetMPSComputeRunningProcesses_v3.as_ref())?,
    };
    let mut room: usize = 32;
    loop {
        // SAFETY: the struct holds integers only, for which all-zero is valid.
        let empty: nvmlProcessInfo_t = unsafe { mem::zeroed() };
        let mut infos = vec![empty; room];
        let mut count = u32::try_from(room).unwrap_or(u32::MAX);
        // SAFETY: `infos` has room for `count` entries, and NVML writes at most that many.
        match nvml_try(unsafe { list(device.handle(), &mut count, infos.as_mut_ptr()) }) {
            Ok(()) => {
                let used = usize::try_from(count).unwrap_or(room).min(room);
                return Ok(infos[..used].iter().map(|info| info.pid).collect());
            }
            // Processes may start between two calls: ask for more than was said to be needed.
            Err(NvmlError::InsufficientSize(_)) if room < PROCESSES_MAX => {
                room = (usize::try_from(count).unwrap_or(0) + 32).max(room * 2);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Why the clocks are not at their highest; unknown bits are kept.
pub fn clock_event_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    let lib = device.nvml().lib();
    // The older name is the same function; drivers before 535 have only that.
    let get = nvml_sym(lib.nvmlDeviceGetCurrentClocksEventReasons.as_ref())
        .or_else(|_| nvml_sym(lib.nvmlDeviceGetCurrentClocksThrottleReasons.as_ref()))?;
    let mut bits: u64 = 0;
    // SAFETY: the handle comes from the same library and `bits` is a valid place for the answer.
    nvml_try(unsafe { get(device.handle(), &mut bits) })?;
    Ok(bits)
}

/// One field to ask for. Ids from 251 to 273 differ between drivers and are not to be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldAsked {
    pub id: u32,
    /// The link, for a field that each link has. The wrapper always sends 0.
    pub scope: u32,
}

/// The values of a batch of fields, in the order asked. They are matched by position: the id that
/// comes back may be the driver's own number for the field.
pub fn fields(
    device: &Device<'_>,
    asked: &[FieldAsked],
) -> Result<Vec<Result<u64, NvmlError>>, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values: Vec<nvmlFieldValue_t> = asked
        .iter()
        .map(|field| {
            assert!(!(251..=273).contains(&field.id), "field ids 251..=273 depend on the driver");
            // SAFETY: integers and a union of numbers, for which all-zero is valid.
            let mut value: nvmlFieldValue_t = unsafe { mem::zeroed() };
            value.fieldId = field.id;
            value.scopeId = field.scope;
            value
        })
        .collect();
    let count = i32::try_from(values.len()).unwrap_or(i32::MAX);
    // SAFETY: `values` has `count` entries, each valid.
    nvml_try(unsafe { get(device.handle(), count, values.as_mut_ptr()) })?;
    Ok(values.iter().map(number).collect())
}

fn number(field: &nvmlFieldValue_t) -> Result<u64, NvmlError> {
    nvml_try(field.nvmlReturn)?;
    // SAFETY: every member of the union is a number and every bit pattern is one; which was
    // written is what `valueType` says.
    let signed = unsafe {
        match field.valueType {
            nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE => return Ok(field.value.dVal as u64),
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => return Ok(field.value.uiVal.into()),
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG
            | nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => {
                return Ok(field.value.ullVal);
            }
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT => {
                return Ok(field.value.usVal.into());
            }
            nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT => field.value.siVal.into(),
            nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => field.value.sllVal,
            other => return Err(NvmlError::UnexpectedVariant(other)),
        }
    };
    // A negative value stands for "none" in every signed field that is read here.
    u64::try_from(signed).map_err(|_| NvmlError::NoData)
}

/// What is at the other end of an NVLink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    Gpu,
    Switch,
    Other,
}

/// The wrapper's `remote_device_type` hands NVML a temporary and always answers "unknown".
pub fn nvlink_remote_kind(device: &Device<'_>, link: u32) -> Result<RemoteKind, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref())?;
    let mut kind: nvmlIntNvLinkDeviceType_t = 0;
    // SAFETY: the handle comes from the same library and `kind` is a valid place for the answer.
    nvml_try(unsafe { get(device.handle(), link, &mut kind) })?;
    Ok(match kind {
        nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU => RemoteKind::Gpu,
        nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH => RemoteKind::Switch,
        _ => RemoteKind::Other,
    })
}

/// All memory, bytes. For drivers that lack the second version of the call.
pub fn memory_total_v1(device: &Device<'_>) -> Result<u64, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    // SAFETY: three integers, for which all-zero is valid.
    let mut info: nvmlMemory_t = unsafe { mem::zeroed() };
    // SAFETY: the handle comes from the same library and `info` is a valid place for the answer.
    nvml_try(unsafe { get(device.handle(), &mut info) })?;
    Ok(info.total)
}

/// A GPU's place in an NVLink fabric, as the driver says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fabric {
    pub cluster: [u8; 16],
    pub clique: u32,
    /// 3 is completed.
    pub state: u8,
    /// `NVML_SUCCESS` is 0; only good once the state is completed.
    pub status: u32,
}

/// Version 3 of the struct, then 2, then the first call, which had no version.
pub fn fabric(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    fabric_v(device, 3).or_else(|_| fabric_v(device, 2)).or_else(|_| fabric_v1(device))
}

fn fabric_v(device: &Device<'_>, version: u32) -> Result<Fabric, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfoV.as_ref())?;
    let size = match version {
        2 => mem::size_of::<nvmlGpuFabricInfo_v2_t>(),
        _ => mem::size_of::<nvmlGpuFabricInfo_v3_t>(),
    };
    // SAFETY: integers only, for which all-zero is valid.
    let mut info: nvmlGpuFabricInfo_v3_t = unsafe { mem::zeroed() };
    info.version = u32::try_from(size).unwrap_or(0) | (version << 24);
    // SAFETY: version 2 is a prefix of version 3, so the buffer is large enough for both.
    nvml_try(unsafe { get(device.handle(), &mut info) })?;
    Ok(Fabric {
        cluster: info.clusterUuid,
        clique: info.cliqueId,
        state: info.state,
        status: info.status,
    })
}

fn fabric_v1(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfo.as_ref())?;
    // SAFETY: integers only, for which all-zero is valid.
    let mut info: nvmlGpuFabricInfo_t = unsafe { mem::zeroed() };
    // SAFETY: the handle comes from the same library and `info` is a valid place for the answer.
    nvml_try(unsafe { get(device.handle(), &mut info) })?;
    Ok(Fabric {
        cluster: info.clusterUuid,
        clique: info.cliqueId,
        state: info.state,
        status: info.status,
    })
}

/// Two samples of a GPU's performance monitor that are filled in turns. Rates come from the two
/// of them; they are allocated once and live as long as the process.
#[derive(Debug)]
pub struct GpmPair {
    samples: [nvmlGpmSample_t; 2],
    /// The one that was filled last.
    newest: usize,
}

// SAFETY: the samples are handles of a library that is never unloaded, and `&mut self` keeps two
// threads from using them at once.
unsafe impl Send for GpmPair {}

impl GpmPair {
    /// `Err(NotSupported)` on GPUs before Hopper.
    pub fn create(device: &Device<'_>) -> Result<Self, NvmlError> {
        let lib = device.nvml().lib();
        let query = nvml_sym(lib.nvmlGpmQueryDeviceSupport.as_ref())?;
        let alloc = nvml_sym(lib.nvmlGpmSampleAlloc.as_ref())?;
        let mut support =
            nvmlGpmSupport_t { version: NVML_GPM_SUPPORT_VERSION, isSupportedDevice: 0 };
        // SAFETY: `support` is valid and says its version.
        nvml_try(unsafe { query(device.handle(), &mut support) })?;
        if support.isSupportedDevice == 0 {
            return Err(NvmlError::NotSupported);
        }
        let mut samples = [ptr::null_mut(); 2];
        for sample in &mut samples {
            // SAFETY: `sample` is a valid place for the handle.
            nvml_try(unsafe { alloc(sample) })?;
        }
        Ok(Self { samples, newest: 0 })
    }

    /// Fills the older of the two; afterwards it is the newest.
    pub fn take(&mut self, device: &Device<'_>) -> Result<(), NvmlError> {
        let get = nvml_sym(device.nvml().lib().nvmlGpmSampleGet.as_ref())?;
        let older = 1 - self.newest;
        // SAFETY: device and sample come from the same library; `&mut self` excludes other users.
        nvml_try(unsafe { get(device.handle(), self.samples[older]) })?;
        self.newest = older;
        Ok(())
    }

    /// Metrics between the two samples, in the order asked; NaN is no value. `Err` for a
    /// metric is that metric's own.
    pub fn metrics<const N: usize>(
        &self,
        device: &Device<'_>,
        ids: [u32; N],
    ) -> Result<[Result<f64, NvmlError>; N], NvmlError> {
        const { assert!(N <= 210, "nvmlGpmMetricsGet_t has 210 entries") };
        let get = nvml_sym(device.nvml().lib().nvmlGpmMetricsGet.as_ref())?;
        // SAFETY: integers, floats and pointers, for which all-zero is valid.
        let mut request: Box<nvmlGpmMetricsGet_t> = Box::new(unsafe { mem::zeroed() });
        request.version = NVML_GPM_METRICS_GET_VERSION;
        request.numMetrics = u32::try_from(N).unwrap_or(0);
        request.sample1 = self.samples[1 - self.newest];
        request.sample2 = self.samples[self.newest];
        for (metric, id) in request.metrics.iter_mut().zip(ids) {
            metric.metricId = id;
        }
        // SAFETY: both samples are filled and the request holds N entries, as it says.
        nvml_try(unsafe { get(&mut *request) })?;
        Ok(std::array::from_fn(|i| {
            let metric = &request.metrics[i];
            nvml_try(metric.nvmlReturn)?;
            if metric.value.is_finite() { Ok(metric.value) } else { Err(NvmlError::NoData) }
        }))
    }
}
