//! Who the nodes are: counts, names, sysfs, versions, lifetimes.

mod common;

use std::ffi::{CStr, c_char};
use std::fs;
use std::mem::zeroed;

use common::TestNode;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{self as sys, NvmlLib};
use tessera_nvml_sim::Preset;
use tessera_nvml_sim::scenario::NullQuery;

#[test]
fn every_preset_is_the_machine_it_says() {
    for (preset, gpus, name, mib, watts, links, gpm) in [
        (Preset::DgxH100, 8, "NVIDIA H100 80GB HBM3", 81_559, 700, 18, true),
        (Preset::HgxA100, 8, "NVIDIA A100-SXM4-80GB", 81_920, 400, 12, false),
        (Preset::Gb200Nvl72Tray, 4, "NVIDIA GB200", 189_471, 1200, 18, true),
        (Preset::L40sPcie, 8, "NVIDIA L40S", 46_068, 350, 0, false),
    ] {
        let node = TestNode::new("n0", preset);
        let nvml = node.nvml();
        assert_eq!(nvml.device_count().unwrap(), gpus, "{preset:?}");
        let mut uuids = Vec::new();
        for i in 0..gpus {
            let gpu = nvml.device_by_index(i).unwrap();
            assert_eq!(gpu.name().unwrap(), name);
            assert_eq!(gpu.memory_info().unwrap().total >> 20, mib);
            assert_eq!(gpu.enforced_power_limit().unwrap(), watts * 1000);
            assert_eq!(gpu.index().unwrap(), i);
            assert_eq!(gpu.gpm_support().unwrap(), gpm, "{preset:?}");
            let uuid = gpu.uuid().unwrap();
            assert!(uuid.starts_with("GPU-") && uuid.len() == 40, "{uuid}");
            let pci = gpu.pci_info().unwrap();
            assert_eq!(nvml.device_by_uuid(uuid.as_str()).unwrap().index().unwrap(), i);
            assert_eq!(nvml.device_by_pci_bus_id(pci.bus_id.as_str()).unwrap().index().unwrap(), i);
            uuids.push(uuid);
        }
        uuids.sort();
        uuids.dedup();
        assert_eq!(uuids.len(), gpus as usize);
        let gpu = nvml.device_by_index(0).unwrap();
        let active =
            (0..32).filter(|l| gpu.link_wrapper_for(*l).is_active().unwrap_or(false)).count();
        assert_eq!(active, links, "{preset:?}");
    }
}

#[test]
fn a_cpu_node_has_no_driver() {
    let node = TestNode::new("c0", Preset::CpuOnly);
    assert!(matches!(node.try_nvml(), Err(NvmlError::DriverNotLoaded)));
}

#[test]
fn two_nodes_in_one_process_are_two_nodes() {
    let (a, b) = (TestNode::new("a", Preset::DgxH100), TestNode::new("b", Preset::Gb200Nvl72Tray));
    let (na, nb) = (a.nvml(), b.nvml());
    assert_eq!((na.device_count().unwrap(), nb.device_count().unwrap()), (8, 4));
    let gpu = na.device_by_index(0).unwrap();
    let uuid = gpu.uuid().unwrap();
    assert!(matches!(nb.device_by_uuid(uuid.as_str()), Err(NvmlError::NotFound)));
    // A handle of one means nothing to the other.
    let mut index = 0;
    // SAFETY: index outlives the call; a wrong handle is what is tested.
    let code = unsafe { nb.lib().nvmlDeviceGetIndex(gpu.handle(), &mut index) };
    assert_eq!(code, sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
}

fn raw(node: &TestNode) -> NvmlLib {
    // SAFETY: loading our own library runs no code of its own.
    unsafe { NvmlLib::new(node.library()) }.unwrap()
}

#[test]
fn init_counts_and_old_handles_die() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let lib = raw(&node);
    // SAFETY: all pointers are of locals that outlive the calls.
    unsafe {
        let mut count = 0;
        assert_eq!(lib.nvmlDeviceGetCount_v2(&mut count), 1, "before init");
        assert_eq!(lib.nvmlShutdown(), 1, "shutdown before init");
        assert_eq!((lib.nvmlInit_v2(), lib.nvmlInitWithFlags(0)), (0, 0));
        let mut gpu = zeroed();
        assert_eq!(lib.nvmlDeviceGetHandleByIndex_v2(0, &mut gpu), 0);
        assert_eq!(lib.nvmlShutdown(), 0);
        assert_eq!(lib.nvmlDeviceGetIndex(gpu, &mut count), 0, "one init is left");
        assert_eq!(lib.nvmlShutdown(), 0);
        assert_eq!(lib.nvmlDeviceGetIndex(gpu, &mut count), 1, "none is left");
        assert_eq!(lib.nvmlInit_v2(), 0);
        assert_eq!(lib.nvmlDeviceGetIndex(gpu, &mut count), 2, "a handle from before");
        for nonsense in [0usize, 1, 0xdead_beef, usize::MAX] {
            assert_eq!(lib.nvmlDeviceGetIndex(nonsense as sys::nvmlDevice_t, &mut count), 2);
        }
        assert_eq!(lib.nvmlShutdown(), 0);
    }
}

#[test]
fn wrong_versions_and_short_buffers_are_refused() {
    let node = TestNode::new("n0", Preset::Gb200Nvl72Tray);
    let lib = raw(&node);
    // SAFETY: all pointers are of locals that outlive the calls, buffers have the length given.
    unsafe {
        assert_eq!(lib.nvmlInit_v2(), 0);
        let mut gpu = zeroed();
        assert_eq!(lib.nvmlDeviceGetHandleByIndex_v2(1, &mut gpu), 0);
        let mut memory: sys::nvmlMemory_v2_t = zeroed();
        for (version, code) in [(40 | 2 << 24, 0), (40 | 1 << 24, 25), (2, 25), (0, 25)] {
            memory.version = version;
            assert_eq!(lib.nvmlDeviceGetMemoryInfo_v2(gpu, &mut memory), code, "{version:x}");
        }
        let mut fabric: sys::nvmlGpuFabricInfo_v3_t = zeroed();
        for (version, code) in
            [(40 | 3 << 24, 0), (36 | 2 << 24, 0), (40 | 4 << 24, 25), (28 | 1 << 24, 25)]
        {
            fabric.version = version;
            assert_eq!(lib.nvmlDeviceGetGpuFabricInfoV(gpu, &mut fabric), code, "{version:x}");
        }
        let mut platform: sys::nvmlPlatformInfo_v2_t = zeroed();
        for (version, code) in [(44 | 1 << 24, 0), (44 | 2 << 24, 0), (44 | 3 << 24, 25)] {
            platform.version = version;
            assert_eq!(lib.nvmlDeviceGetPlatformInfo(gpu, &mut platform), code, "{version:x}");
        }
        assert_eq!(platform.moduleId, 2);
        let mut text = [1 as c_char; 96];
        let name = c"NVIDIA GB200";
        for (length, code) in [(96, 0), (13, 0), (12, 7), (0, 7)] {
            assert_eq!(lib.nvmlDeviceGetName(gpu, text.as_mut_ptr(), length), code, "{length}");
        }
        assert_eq!(CStr::from_ptr(text.as_ptr()), name);
        assert_eq!(lib.nvmlDeviceGetName(gpu, std::ptr::null_mut(), 96), 2);
        assert_eq!(CStr::from_ptr(lib.nvmlErrorString(15)), c"GPU is lost");
        assert_eq!(lib.nvmlShutdown(), 0);
    }
}

#[test]
fn a_function_that_is_not_there_fails_to_load_and_one_switched_off_is_not_supported() {
    let node = TestNode::with("n0", Preset::DgxH100, |s| {
        s.node.not_supported.push("nvmlDeviceGetPowerUsage".to_owned());
        s.node.process_list_null_query = NullQuery::Success;
    });
    let nvml = node.nvml();
    let gpu = nvml.device_by_index(0).unwrap();
    assert!(matches!(gpu.fan_speed(0), Err(NvmlError::FailedToLoadSymbol(_))));
    assert!(matches!(gpu.power_usage(), Err(NvmlError::NotSupported)));
    assert!(gpu.temperature(nvml_wrapper::enum_wrappers::device::TemperatureSensor::Gpu).is_ok());
}

#[test]
fn trays_of_one_domain_share_a_cluster_uuid_and_boxes_have_none() {
    let fabric = |name: &str, preset, domain: &str| {
        let node = TestNode::with(name, preset, |s| s.node.domain = Some(domain.to_owned()));
        let nvml = node.nvml();
        let gpu = nvml.device_by_index(0).unwrap();
        // SAFETY: the struct outlives the call and says its version.
        unsafe {
            let mut info: sys::nvmlGpuFabricInfo_v3_t = zeroed();
            info.version = 40 | 3 << 24;
            let code = nvml.lib().nvmlDeviceGetGpuFabricInfoV(gpu.handle(), &mut info);
            (code, u32::from(info.state), info.clusterUuid, info.cliqueId, info.healthSummary)
        }
    };
    let tray = |name, domain| fabric(name, Preset::Gb200Nvl72Tray, domain);
    let one = tray("t0", "rack1");
    assert_eq!((one.0, one.1, one.3, one.4), (0, 3, 0, 1));
    assert_eq!(one.2, tray("t1", "rack1").2);
    assert_ne!(one.2, tray("t1", "rack2").2);
    let h100 = fabric("h0", Preset::DgxH100, "rack1");
    assert_eq!((h100.0, h100.1, h100.2), (0, 3, [0; 16]));
    assert_eq!(fabric("a0", Preset::HgxA100, "rack1").0, 3);
}

#[test]
fn nvml_and_sysfs_tell_the_same_topology() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let level = |a, b| {
        nvml.device_by_index(a)
            .unwrap()
            .topology_common_ancestor(nvml.device_by_index(b).unwrap())
            .unwrap()
    };
    assert_eq!(level(0, 1), TopologyLevel::Multiple);
    assert_eq!(level(0, 2), TopologyLevel::Node);
    assert_eq!(level(0, 7), TopologyLevel::System);
    assert_eq!(level(3, 3), TopologyLevel::Internal);

    let sys = node.path().join("sys");
    let real = |link: String| fs::canonicalize(sys.join(link)).unwrap();
    let read = |path: String| fs::read_to_string(sys.join(path)).unwrap().trim().to_owned();
    for i in 0..8 {
        let bus_id = nvml.device_by_index(i).unwrap().pci_info().unwrap().bus_id.to_lowercase();
        // NVML has eight digits of domain, sysfs four.
        let gpu = real(format!("bus/pci/devices/{}", &bus_id[4..]));
        let nic = real(format!("class/infiniband/mlx5_{i}/device"));
        let shared = gpu.ancestors().skip(1).find(|p| nic.starts_with(p)).unwrap();
        // Each on its own downstream port of one switch.
        assert_eq!(gpu.strip_prefix(shared).unwrap().components().count(), 2);
        assert_eq!(nic.strip_prefix(shared).unwrap().components().count(), 2);
        assert_eq!(
            read(format!("class/infiniband/mlx5_{i}/device/numa_node")),
            (i / 4).to_string()
        );
        assert_eq!(read(format!("class/infiniband/mlx5_{i}/ports/1/rate")), "400 Gb/sec (4X NDR)");
        assert_eq!(read(format!("class/infiniband/mlx5_{i}/ports/1/state")), "4: ACTIVE");
        assert_eq!(read(format!("class/infiniband/mlx5_{i}/ports/1/counters/port_xmit_data")), "0");
        assert_eq!(read(format!("class/infiniband/mlx5_{i}/ports/1/hw_counters/np_cnp_sent")), "0");
        assert_eq!(real(format!("class/net/ib{i}/device")), nic);
        assert!(
            real(format!("class/infiniband/mlx5_{i}")).join(format!("device/net/ib{i}")).is_dir()
        );
    }
    assert!(!sys.join("class/net/lo/device").exists() && sys.join("class/net/lo/mtu").exists());
    assert_eq!(read("devices/system/cpu/present".to_owned()), "0-223");
    assert_eq!(read("devices/system/cpu/possible".to_owned()), "0-223");
    assert_eq!(read("devices/system/node/node1/cpulist".to_owned()), "56-111,168-223");
    assert!(
        read("devices/system/node/node0/meminfo".to_owned())
            .contains("MemTotal:       1073741824 kB")
    );
    let affinity = nvml.device_by_index(0).unwrap().cpu_affinity(4).unwrap();
    assert_eq!(affinity, [(1 << 56) - 1, 0xffff << 48, (1 << 40) - 1, 0]);
}
