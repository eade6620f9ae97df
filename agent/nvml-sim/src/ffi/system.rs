//! Init, shutdown, versions, and handles of GPUs.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Code, InOut, InText, Out, OutArray, OutText, guard, list};
use crate::call::{self, Handle, Session, enter_gpu};
use crate::ffi::system_fns;
use crate::hardware::PciAddr;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> sys::nvmlReturn_t {
    guard(call::init)
}

/// Flags ask for a lenient start (no GPUs, no attach); ours is always that.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> sys::nvmlReturn_t {
    guard(call::init)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> sys::nvmlReturn_t {
    guard(call::shutdown)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: sys::nvmlReturn_t) -> *const c_char {
    let text = match result {
        0 => c"The operation was successful",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        16 => c"GPU requires restart",
        21 => c"No data",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

/// Gives out a handle for a GPU, unless a fault of that GPU bars it.
fn hand_out(
    session: Session,
    function: &str,
    index: usize,
    device: Out<Handle>,
) -> Result<(), Code> {
    let device_found = enter_gpu(session, function, index)?;
    device.set(device_found.handle())
}

system_fns! {
    nvmlSystemGetDriverVersion(version: OutText, length: c_uint) |s| {
        version.set(length, &s.node.hw.driver_version)
    }
    nvmlSystemGetNVMLVersion(version: OutText, length: c_uint) |s| {
        let cuda = s.node.hw.cuda_version() / 1000;
        version.set(length, &format!("{cuda}.{}", s.node.hw.driver_version))
    }
    nvmlSystemGetCudaDriverVersion(version: Out<c_int>) |s| {
        version.set(s.node.hw.cuda_version())
    }
    nvmlSystemGetCudaDriverVersion_v2(version: Out<c_int>) |s| {
        version.set(s.node.hw.cuda_version())
    }
    nvmlSystemGetProcessName(pid: c_uint, name: OutText, length: c_uint) |_s| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| Code::NOT_FOUND)?;
        let first = line.split(|b| *b == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(first);
        // NVML cuts a name that does not fit.
        let mut end = text.len().min((length as usize).saturating_sub(1));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        name.set(length, &text[..end])
    }
    nvmlSystemGetTopologyGpuSet(cpu: c_uint, count: InOut<c_uint>, devices: OutArray<Handle>) |s| {
        let hw = &s.node.hw;
        let numa = (0..hw.numa_nodes)
            .find(|n| hw.cpus_of(*n).iter().any(|(a, b)| (*a..=*b).contains(&cpu)))
            .ok_or(Code::INVALID_ARGUMENT)?;
        let near: Vec<_> = s.node.visible().into_iter()
            .filter(|g| hw.gpus[*g].path.numa == numa)
            .map(|g| s.device(g))
            .collect();
        if devices.is_null() {
            return count.set(near.len() as c_uint);
        }
        list(count, devices, &near)
    }
    nvmlDeviceGetCount_v2(count: Out<c_uint>) |s| {
        count.set(s.node.visible().len() as c_uint)
    }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: Out<Handle>) |s| {
        let gpu = *s.node.visible().get(index as usize).ok_or(Code::INVALID_ARGUMENT)?;
        hand_out(s, "nvmlDeviceGetHandleByIndex_v2", gpu, device)
    }
    nvmlDeviceGetHandleByUUID(uuid: InText, device: Out<Handle>) |s| {
        let uuid = uuid.get()?;
        for gpu in s.node.visible() {
            let instances = s.node.gpu_hw(gpu).mig.iter().flatten();
            if let Some(mig) = instances.clone().position(|instance| instance.uuid == uuid) {
                let entered = enter_gpu(s, "nvmlDeviceGetHandleByUUID", gpu)?;
                return device.set(entered.session.mig(gpu, mig));
            }
        }
        let gpu = s.node.visible().into_iter().find(|g| s.node.gpu_hw(*g).uuid == uuid);
        hand_out(s, "nvmlDeviceGetHandleByUUID", gpu.ok_or(Code::NOT_FOUND)?, device)
    }
    nvmlDeviceGetHandleByPciBusId_v2(bus_id: InText, device: Out<Handle>) |s| {
        let addr = PciAddr::parse(&bus_id.get()?).ok_or(Code::INVALID_ARGUMENT)?;
        let gpu = s.node.visible().into_iter().find(|g| s.node.gpu_hw(*g).path.addr() == addr);
        hand_out(s, "nvmlDeviceGetHandleByPciBusId_v2", gpu.ok_or(Code::NOT_FOUND)?, device)
    }
}
