//! Who a GPU is: names, numbers, model and place in a rack.

use std::ffi::{c_int, c_uint};

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Code, InOut, Out, OutText, chars, version};
use crate::ffi::device_fns;
use crate::hardware::{GpuSpec, PciAddr};
use crate::identity;

pub fn pci_info(addr: PciAddr, spec: &GpuSpec) -> sys::nvmlPciInfo_t {
    sys::nvmlPciInfo_t {
        busIdLegacy: chars(&format!("{:04X}:{:02X}:{:02X}.0", addr.domain, addr.bus, addr.device)),
        domain: addr.domain,
        bus: addr.bus,
        device: addr.device,
        pciDeviceId: spec.pci_device_id,
        pciSubSystemId: spec.pci_subsystem_id,
        busId: chars(&addr.nvml()),
    }
}

device_fns! {
    nvmlDeviceGetName(name: OutText, length: c_uint) |d| {
        match d.instance() {
            Some(instance) => name.set(length, &format!("{} MIG {}", d.hw().spec.name, instance.profile)),
            None => name.set(length, d.hw().spec.name),
        }
    }
    nvmlDeviceGetUUID(uuid: OutText, length: c_uint) |d| {
        uuid.set(length, d.instance().map_or(&d.hw().uuid, |instance| &instance.uuid))
    }
    nvmlDeviceGetSerial(serial: OutText, length: c_uint) |d| { serial.set(length, &d.hw().serial) }
    nvmlDeviceGetIndex(index: Out<c_uint>) |d| {
        if let Some(mig) = d.mig {
            return index.set(mig as c_uint);
        }
        let at = d.node().visible().iter().position(|g| *g == d.index).ok_or(Code::GPU_IS_LOST)?;
        index.set(at as c_uint)
    }
    nvmlDeviceGetMinorNumber(minor: Out<c_uint>) |d| { minor.set(d.index as c_uint) }
    nvmlDeviceGetPciInfo_v3(pci: Out<sys::nvmlPciInfo_t>) |d| {
        pci.set(pci_info(d.hw().path.addr(), d.hw().spec))
    }
    nvmlDeviceGetArchitecture(arch: Out<sys::nvmlDeviceArchitecture_t>) |d| { arch.set(d.hw().spec.arch) }
    nvmlDeviceGetBrand(brand: Out<sys::nvmlBrandType_t>) |_d| {
        brand.set(sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA)
    }
    nvmlDeviceGetVbiosVersion(text: OutText, length: c_uint) |d| { text.set(length, d.hw().spec.vbios) }
    nvmlDeviceGetBoardPartNumber(text: OutText, length: c_uint) |d| {
        text.set(length, d.hw().spec.part_number)
    }
    nvmlDeviceGetCudaComputeCapability(major: Out<c_int>, minor: Out<c_int>) |d| {
        let (a, b) = d.hw().spec.compute_capability;
        major.set(a)?;
        minor.set(b)
    }
    nvmlDeviceGetModuleId(module: Out<c_uint>) |d| {
        if d.hw().spec.nvlinks == 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        module.set(d.index as c_uint + 1)
    }
    nvmlDeviceGetNumGpuCores(cores: Out<c_uint>) |d| { cores.set(d.hw().spec.cores) }
    nvmlDeviceGetPlatformInfo(info: InOut<sys::nvmlPlatformInfo_v2_t>) |d| {
        let hw = &d.node().hw;
        let asked = info.version()?;
        let (v1, v2) = (version::<sys::nvmlPlatformInfo_v1_t>(1), version::<sys::nvmlPlatformInfo_v2_t>(2));
        if asked != v1 && asked != v2 {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        if d.hw().spec.c2c_links == 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let guid = identity::uuid_bytes(hw.nics[d.index].guid, "ib");
        let module = d.index as u8 + 1;
        if asked == v1 {
            return info.cast().set(sys::nvmlPlatformInfo_v1_t {
                version: asked,
                ibGuid: guid,
                rackGuid: identity::uuid_bytes(0, &format!("rack/{}", hw.domain)),
                chassisPhysicalSlotNumber: hw.tray + 1,
                computeSlotIndex: hw.tray,
                nodeIndex: 1,
                peerType: 1,
                moduleId: module,
            });
        }
        let serial = format!("{:013}", identity::hash(0, format!("chassis/{}", hw.domain).as_bytes()) % 10_000_000_000_000);
        let mut chassis = [0; 16];
        chassis[..13].copy_from_slice(serial.as_bytes());
        info.set(sys::nvmlPlatformInfo_v2_t {
            version: asked,
            ibGuid: guid,
            chassisSerialNumber: chassis,
            slotNumber: hw.tray + 1,
            trayIndex: hw.tray,
            hostId: 1,
            peerType: 1,
            moduleId: module,
        })
    }
}
