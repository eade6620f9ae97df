//! Where a GPU sits: neighbours, CPUs, NVLink, the fabric, MIG.

use std::ffi::{c_int, c_uint, c_ulong, c_ulonglong};

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Answer, Code, InOut, Out, OutArray, list, version};
use crate::call::{Device, Handle, Kind};
use crate::ffi::device_fns;
use crate::ffi::identity::pci_info;
use crate::ffi::process::instance_id;
use crate::fields::link_errors;
use crate::hardware::{PciAddr, distance};

fn other(d: &Device, handle: Handle) -> Result<usize, Code> {
    let index = d.session.resolve(handle, Kind::Device)? as usize;
    if index >= d.node().gpus.len() {
        return Err(Code::INVALID_ARGUMENT);
    }
    let fx = d.node().gpu_effects(index);
    if fx.lost || fx.vanished { Err(Code::GPU_IS_LOST) } else { Ok(index) }
}

/// Refuses a link the GPU does not have.
fn link(d: &Device, link: c_uint) -> Answer {
    match d.hw().spec.nvlinks {
        0 => Err(Code::NOT_SUPPORTED),
        n if link >= n => Err(Code::INVALID_ARGUMENT),
        _ => Ok(()),
    }
}

fn link_up(d: &Device, link: c_uint) -> bool {
    d.fx.links_down >> link & 1 == 0
}

/// Sets bits in a mask of machine words.
fn mask(words: c_uint, set: OutArray<c_ulong>, ranges: &[(u32, u32)]) -> Answer {
    if words == 0 {
        return Err(Code::INVALID_ARGUMENT);
    }
    let mut out = vec![0 as c_ulong; words as usize];
    for bit in ranges.iter().flat_map(|(a, b)| *a..=*b) {
        if let Some(word) = out.get_mut(bit as usize / c_ulong::BITS as usize) {
            *word |= 1 << (bit % c_ulong::BITS);
        }
    }
    set.fill(&out)
}

/// Healthy is 2 ("false") in each two-bit part, and 1 ("none") for wrong configuration.
fn health_mask(degraded: bool) -> c_uint {
    let bandwidth = if degraded { 1 } else { 2 };
    bandwidth | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8
}

struct Fabric {
    uuid: [u8; 16],
    state: u8,
}

fn fabric(d: &Device) -> Result<Fabric, Code> {
    let uuid = d.node().hw.cluster_uuid.ok_or(Code::NOT_SUPPORTED)?;
    Ok(Fabric { uuid, state: sys::NVML_GPU_FABRIC_STATE_COMPLETED as u8 })
}

device_fns! {
    nvmlDeviceGetTopologyCommonAncestor(second: Handle, level: Out<sys::nvmlGpuTopologyLevel_t>) |d| {
        let second = other(&d, second)?;
        level.set(distance(&d.hw().path, &d.node().gpu_hw(second).path) as u32)
    }
    nvmlDeviceGetTopologyNearestGpus(level: c_uint, count: InOut<c_uint>, devices: OutArray<Handle>) |d| {
        if ![0, 10, 20, 30, 40, 50].contains(&level) {
            return Err(Code::INVALID_ARGUMENT);
        }
        let near: Vec<_> = d.node().visible().into_iter()
            .filter(|g| *g != d.index)
            .filter(|g| distance(&d.hw().path, &d.node().gpu_hw(*g).path) as u32 == level)
            .map(|g| d.session.device(g))
            .collect();
        if devices.is_null() {
            return count.set(near.len() as c_uint);
        }
        list(count, devices, &near)
    }
    nvmlDeviceGetP2PStatus(second: Handle, index: c_uint, status: Out<sys::nvmlGpuP2PStatus_t>) |d| {
        let second = other(&d, second)?;
        let spec = d.hw().spec;
        let all_links = (1u32 << spec.nvlinks) - 1;
        let connected = spec.nvlinks > 0
            && d.fx.links_down & all_links != all_links
            && d.node().gpu_effects(second).links_down & all_links != all_links;
        let ok = match index {
            0 | 1 => true,
            2 => connected,
            3 => spec.nvlinks > 0,
            4 => spec.nvlinks == 0,
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        status.set(if ok { 0 } else { 5 })
    }
    nvmlDeviceOnSameBoard(second: Handle, same: Out<c_int>) |d| {
        let second = other(&d, second)?;
        same.set((second == d.index).into())
    }
    nvmlDeviceGetNumaNodeId(node: Out<c_uint>) |d| {
        // x86 drivers do not know; sysfs does.
        if d.hw().spec.c2c_links == 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        node.set(d.hw().path.numa)
    }
    nvmlDeviceGetCpuAffinity(words: c_uint, set: OutArray<c_ulong>) |d| {
        mask(words, set, &d.node().hw.cpus_of(d.hw().path.numa))
    }
    nvmlDeviceGetCpuAffinityWithinScope(words: c_uint, set: OutArray<c_ulong>, scope: c_uint) |d| {
        // One NUMA node is one socket on all presets.
        if scope > 1 {
            return Err(Code::INVALID_ARGUMENT);
        }
        mask(words, set, &d.node().hw.cpus_of(d.hw().path.numa))
    }
    nvmlDeviceGetMemoryAffinity(words: c_uint, set: OutArray<c_ulong>, scope: c_uint) |d| {
        if scope > 1 {
            return Err(Code::INVALID_ARGUMENT);
        }
        let numa = d.hw().path.numa;
        mask(words, set, &[(numa, numa)])
    }
    nvmlDeviceGetNvLinkState(number: c_uint, active: Out<c_uint>) |d| {
        link(&d, number)?;
        active.set(link_up(&d, number).into())
    }
    nvmlDeviceGetNvLinkVersion(number: c_uint, text: Out<c_uint>) |d| {
        link(&d, number)?;
        text.set(d.hw().spec.nvlink_version)
    }
    nvmlDeviceGetNvLinkCapability(number: c_uint, capability: c_uint, result: Out<c_uint>) |d| {
        link(&d, number)?;
        result.set(match capability {
            0..=3 | 5 => 1,
            4 => 0,
            _ => return Err(Code::INVALID_ARGUMENT),
        })
    }
    nvmlDeviceGetNvLinkRemotePciInfo_v2(number: c_uint, pci: Out<sys::nvmlPciInfo_t>) |d| {
        link(&d, number)?;
        let spec = d.hw().spec;
        // Links go to the switches in turn; those of an NVL72 rack are not on this node's PCI.
        if spec.nvswitches == 0 || !link_up(&d, number) {
            return Err(Code::NOT_SUPPORTED);
        }
        let switch = PciAddr { domain: 0, bus: 0xe8 + number % spec.nvswitches, device: 0 };
        let mut info = pci_info(switch, spec);
        info.pciDeviceId = if spec.arch >= 9 { 0x22a3_10de } else { 0x1af1_10de };
        info.pciSubSystemId = 0;
        pci.set(info)
    }
    nvmlDeviceGetNvLinkRemoteDeviceType(number: c_uint, kind: Out<sys::nvmlIntNvLinkDeviceType_t>) |d| {
        link(&d, number)?;
        kind.set(if link_up(&d, number) {
            sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH
        } else {
            sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_UNKNOWN
        })
    }
    nvmlDeviceGetNvLinkErrorCounter(number: c_uint, counter: c_uint, value: Out<c_ulonglong>) |d| {
        link(&d, number)?;
        let errors = link_errors(&d, Some(number), d.node().clock.secs());
        value.set(match counter {
            0 | 2 => errors,
            1 => errors / 16,
            3 => errors / 4,
            4 => 0,
            _ => return Err(Code::INVALID_ARGUMENT),
        })
    }
    nvmlDeviceGetGpuFabricInfo(info: Out<sys::nvmlGpuFabricInfo_t>) |d| {
        let f = fabric(&d)?;
        info.set(sys::nvmlGpuFabricInfo_t { clusterUuid: f.uuid, status: 0, cliqueId: 0, state: f.state })
    }
    nvmlDeviceGetGpuFabricInfoV(info: InOut<sys::nvmlGpuFabricInfo_v3_t>) |d| {
        let asked = info.version()?;
        let v2 = version::<sys::nvmlGpuFabricInfo_v2_t>(2);
        if asked != v2 && asked != version::<sys::nvmlGpuFabricInfo_v3_t>(3) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let f = fabric(&d)?;
        let health = health_mask(d.fx.fabric_degraded);
        if asked == v2 {
            return info.cast().set(sys::nvmlGpuFabricInfo_v2_t {
                version: asked,
                clusterUuid: f.uuid,
                status: 0,
                cliqueId: 0,
                state: f.state,
                healthMask: health,
            });
        }
        let summary = if d.fx.fabric_degraded {
            sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_UNHEALTHY
        } else {
            sys::NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY
        };
        info.set(sys::nvmlGpuFabricInfo_v3_t {
            version: asked,
            clusterUuid: f.uuid,
            status: 0,
            cliqueId: 0,
            state: f.state,
            healthMask: health,
            healthSummary: summary as u8,
        })
    }
    nvmlDeviceGetC2cModeInfoV(info: Out<sys::nvmlC2cModeInfo_v1_t>) |d| {
        info.set(sys::nvmlC2cModeInfo_v1_t { isC2cEnabled: (d.hw().spec.c2c_links > 0).into() })
    }
    nvmlDeviceGetMigMode(current: Out<c_uint>, pending: Out<c_uint>) |d| {
        if !d.hw().spec.mig {
            return Err(Code::NOT_SUPPORTED);
        }
        let on = d.hw().mig.is_some().into();
        current.set(on)?;
        pending.set(on)
    }
    nvmlDeviceGetMaxMigDeviceCount(count: Out<c_uint>) |d| { count.set(if d.hw().spec.mig { 7 } else { 0 }) }
    nvmlDeviceGetMigDeviceHandleByIndex(index: c_uint, mig: Out<Handle>) |d| {
        if !d.hw().spec.mig {
            return Err(Code::NOT_SUPPORTED);
        }
        let instances = d.hw().mig.as_ref().map_or(0, Vec::len);
        match index as usize {
            index if index < instances => mig.set(d.session.mig(d.index, index)),
            _ => Err(Code::NOT_FOUND),
        }
    }
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle(parent: Out<Handle>) |d| {
        d.instance().ok_or(Code::INVALID_ARGUMENT)?;
        parent.set(d.session.device(d.index))
    }
    nvmlDeviceIsMigDeviceHandle(is_mig: Out<c_uint>) |d| { is_mig.set(d.mig.is_some().into()) }
    nvmlDeviceGetAttributes_v2(attributes: Out<sys::nvmlDeviceAttributes_t>) |d| {
        let instance = d.instance().ok_or(Code::NOT_SUPPORTED)?;
        attributes.set(sys::nvmlDeviceAttributes_t {
            multiprocessorCount: d.hw().spec.sms / 8 * instance.compute_slices,
            sharedCopyEngineCount: instance.memory_slices,
            sharedDecoderCount: instance.compute_slices,
            sharedEncoderCount: 0,
            sharedJpegCount: instance.compute_slices,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: instance.compute_slices,
            computeInstanceSliceCount: instance.compute_slices,
            memorySizeMB: instance.mem_mib,
        })
    }
    nvmlDeviceGetGpuInstanceId(id: Out<c_uint>) |d| {
        id.set(instance_id(d.mig.ok_or(Code::NOT_SUPPORTED)?))
    }
    nvmlDeviceGetComputeInstanceId(id: Out<c_uint>) |d| {
        d.instance().ok_or(Code::NOT_SUPPORTED)?;
        id.set(0)
    }
}
