//! The C boundary: which names are there, and that nothing a careless caller does brings it down.

mod common;

use std::ffi::{CString, c_void};
use std::mem::zeroed;
use std::os::unix::ffi::OsStrExt;

use common::{TestNode, wait_for};
use nvml_wrapper_sys::bindings::NvmlLib;
use tessera_nvml_sim::Preset;
use tessera_nvml_sim::scenario::{FaultKind, FaultSpec, GpuSel};

const SYSTEM: [&str; 23] = [
    "nvmlInit_v2",
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlErrorString",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetNVMLVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlSystemGetProcessName",
    "nvmlSystemGetTopologyGpuSet",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlEventSetCreate",
    "nvmlEventSetWait_v2",
    "nvmlEventSetFree",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleFree",
    "nvmlGpmSampleGet",
    "nvmlGpmMigSampleGet",
    "nvmlGpmMetricsGet",
    "nvmlDeviceRegisterEvents",
];

/// Each with `nvmlDevice` in front.
const DEVICE: &str = "GetName GetUUID GetSerial GetIndex GetMinorNumber GetPciInfo_v3 GetArchitecture
    GetBrand GetVbiosVersion GetCudaComputeCapability GetBoardPartNumber GetModuleId GetPlatformInfo
    GetNumGpuCores GetMemoryInfo_v2 GetBAR1MemoryInfo GetUtilizationRates GetEncoderUtilization
    GetDecoderUtilization GetPowerUsage GetEnforcedPowerLimit GetPowerManagementLimit
    GetTotalEnergyConsumption GetTemperature GetTemperatureThreshold GetClockInfo GetMaxClockInfo
    GetPerformanceState GetPcieThroughput GetPcieReplayCounter GetCurrPcieLinkGeneration
    GetCurrPcieLinkWidth GetMaxPcieLinkGeneration GetMaxPcieLinkWidth GetFieldValues GetSamples
    GetProcessUtilization GetCurrentClocksThrottleReasons GetCurrentClocksEventReasons
    GetViolationStatus GetEccMode GetTotalEccErrors GetMemoryErrorCounter GetRetiredPages
    GetRetiredPages_v2 GetRetiredPagesPendingStatus GetRemappedRows GetSupportedEventTypes
    GetTopologyCommonAncestor GetTopologyNearestGpus GetP2PStatus GetNvLinkState GetNvLinkVersion
    GetNvLinkCapability GetNvLinkRemotePciInfo_v2 GetNvLinkRemoteDeviceType GetNvLinkErrorCounter
    GetNumaNodeId GetCpuAffinity GetCpuAffinityWithinScope GetMemoryAffinity GetGpuFabricInfo
    GetGpuFabricInfoV GetC2cModeInfoV GetComputeRunningProcesses_v3 GetGraphicsRunningProcesses_v3
    GetMPSComputeRunningProcesses_v3 GetAccountingMode SetAccountingMode GetAccountingPids
    GetAccountingStats GetAccountingBufferSize GetMigMode GetMaxMigDeviceCount
    GetMigDeviceHandleByIndex GetDeviceHandleFromMigDeviceHandle IsMigDeviceHandle GetAttributes_v2
    GetGpuInstanceId GetComputeInstanceId GetTemperatureV GetMarginTemperature GetSramEccErrorStatus";

struct Symbols(*mut c_void);

impl Symbols {
    fn open(node: &TestNode) -> Self {
        let path = CString::new(node.library().as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a C string; loading our own library runs no code of its own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null());
        Self(handle)
    }

    fn get(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is open and the name is a C string.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }
}

#[test]
fn every_name_is_exported_and_no_other() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let symbols = Symbols::open(&node);
    for name in SYSTEM {
        assert!(!symbols.get(name).is_null(), "{name}");
    }
    for name in DEVICE.split_whitespace() {
        assert!(!symbols.get(&format!("nvmlDevice{name}")).is_null(), "{name}");
    }
    for name in
        ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetFanSpeed_v2", "nvmlUnitGetCount"]
    {
        assert!(symbols.get(name).is_null(), "{name} is exported");
    }
}

#[test]
fn null_pointers_are_invalid_arguments_and_never_a_crash() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let symbols = Symbols::open(&node);
    // SAFETY: loading our own library runs no code of its own.
    let lib = unsafe { NvmlLib::new(node.library()) }.unwrap();
    let mut gpu = unsafe { zeroed() };
    // SAFETY: gpu outlives the call.
    unsafe {
        assert_eq!(lib.nvmlInit_v2(), 0);
        assert_eq!(lib.nvmlDeviceGetHandleByIndex_v2(0, &mut gpu), 0);
    }
    for name in DEVICE.split_whitespace() {
        let symbol = symbols.get(&format!("nvmlDevice{name}"));
        type Six = unsafe extern "C" fn(*mut c_void, usize, usize, usize, usize, usize) -> u32;
        // SAFETY: all these functions take a handle and at most five words more, all in registers;
        // words they do not take are ignored. Null is what is tested.
        let call = |handle: *mut c_void| unsafe {
            std::mem::transmute::<*mut c_void, Six>(symbol)(handle, 0, 0, 0, 0, 0)
        };
        assert_eq!(call(std::ptr::null_mut()), 2, "{name} without a handle");
        let code = call(gpu.cast());
        // Nothing to write to: refused, or not supported before one looks. Switching accounting off
        // takes no pointer, and a version read from null is no version.
        let fine = if name == "SetAccountingMode" { code == 0 } else { [2, 3, 6].contains(&code) };
        assert!(fine, "{name} answered {code}");
    }
    // SAFETY: nothing of the library is used afterwards.
    assert_eq!(unsafe { lib.nvmlShutdown() }, 0);
}

#[test]
fn many_threads_and_faults_at_once_do_no_harm() {
    let any =
        |kind| FaultSpec { gpu: Some(GpuSel::Word("any".to_owned())), ..FaultSpec::new(kind) };
    let node = TestNode::with("n0", Preset::DgxH100, |s| {
        s.fault = (1..=40)
            .map(|i| FaultSpec {
                code: Some(i),
                after_calls: Some(i * 50),
                lasts: Some("5ms".parse().unwrap()),
                ..any(if i % 2 == 0 { FaultKind::Xid } else { FaultKind::Lost })
            })
            .collect();
    });
    let nvml = node.nvml();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..400 {
                    let Ok(gpu) = nvml.device_by_index(round % 8) else { continue };
                    let _ = gpu.power_usage();
                    let _ = gpu.utilization_rates();
                    let _ = gpu.memory_info();
                }
            });
        }
    });
    let begun = wait_for("all faults to be over", || {
        nvml.device_count().unwrap();
        for i in 0..8 {
            // Those that wait for calls on one GPU get them.
            let _ = nvml.device_by_index(i);
        }
        let journal = node.journal();
        let ends =
            journal.iter().filter(|r| r.what == tessera_nvml_sim::journal::What::End).count();
        (ends == 40).then(|| journal.len() - ends)
    });
    assert_eq!(begun, 40);
    for i in 0..8 {
        nvml.device_by_index(i).unwrap().power_usage().unwrap();
    }
}
