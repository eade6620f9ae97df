//! What is broken, seen from outside: codes, hangs, events, counters, and the journal's account.

mod common;

use std::mem::zeroed;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use common::{PATIENCE, TestNode, wait_for};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{self as sys, field_id};
use tessera_nvml_sim::Preset;
use tessera_nvml_sim::journal::What;
use tessera_nvml_sim::scenario::{FaultKind, FaultSpec, GpuSel, LoadSpec, Span};

fn on(gpu: usize, kind: FaultKind) -> FaultSpec {
    FaultSpec { gpu: Some(GpuSel::One(gpu)), ..FaultSpec::new(kind) }
}

fn node(faults: Vec<FaultSpec>) -> TestNode {
    TestNode::with("n0", Preset::DgxH100, |s| s.fault = faults)
}

#[test]
fn a_lost_gpu_is_lost_for_every_call_and_no_other_is() {
    let node = node(vec![on(3, FaultKind::Lost)]);
    let nvml = node.nvml();
    assert_eq!(nvml.device_count().unwrap(), 8);
    assert!(matches!(nvml.device_by_index(3), Err(NvmlError::GpuLost)));
    for i in [0, 1, 2, 4, 5, 6, 7] {
        let gpu = nvml.device_by_index(i).unwrap();
        gpu.power_usage().unwrap();
        gpu.temperature(TemperatureSensor::Gpu).unwrap();
    }
}

#[test]
fn a_gpu_is_lost_in_the_middle_of_work_and_comes_back() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let gpu = nvml.device_by_index(5).unwrap();
    gpu.name().unwrap();
    node.inject(on(5, FaultKind::Lost));
    wait_for("the GPU to be lost", || matches!(gpu.name(), Err(NvmlError::GpuLost)).then_some(()));
    for answer in [gpu.power_usage().err(), gpu.index().err(), gpu.ecc().err()] {
        assert!(matches!(answer, Some(NvmlError::GpuLost)), "{answer:?}");
    }
    tessera_nvml_sim::control::clear(node.path()).unwrap();
    wait_for("the GPU to come back", || gpu.name().ok());
    let kinds: Vec<_> = node.journal().iter().map(|r| (r.what, r.kind.clone())).collect();
    assert_eq!(kinds, [(What::Begin, "lost".to_owned()), (What::End, "lost".to_owned())]);
    let kmsg = std::fs::read_to_string(node.path().join("kmsg")).unwrap();
    let bus = gpu.pci_info().unwrap().bus_id.to_lowercase();
    // "00000000:1a:00.0" there, "0000:1a:00" here.
    assert!(kmsg.contains(&format!("NVRM: Xid (PCI:{}): 79,", &bus[4..14])), "{kmsg}");
}

trait Ecc {
    fn ecc(&self) -> Result<u64, NvmlError>;
}

impl Ecc for nvml_wrapper::Device<'_> {
    fn ecc(&self) -> Result<u64, NvmlError> {
        self.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
    }
}

#[test]
fn a_gpu_in_need_of_a_reset_still_says_who_it_is() {
    let node = node(vec![on(1, FaultKind::ResetRequired)]);
    let nvml = node.nvml();
    let gpu = nvml.device_by_index(1).unwrap();
    gpu.uuid().unwrap();
    let mut power = 0;
    // SAFETY: power outlives the call.
    let code = unsafe { nvml.lib().nvmlDeviceGetPowerUsage(gpu.handle(), &mut power) };
    assert_eq!(code, sys::nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED);
}

#[test]
fn a_hanging_gpu_blocks_its_own_callers_only() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    node.inject(FaultSpec { call: Some("GetPower*".to_owned()), ..on(2, FaultKind::Hang) });
    wait_for("the fault to begin", || {
        nvml.device_count().unwrap();
        node.journal().first().map(|_| ())
    });
    let returned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (inside, entered) = mpsc::channel();
        let (nvml, returned) = (&nvml, &returned);
        scope.spawn(move || {
            let gpu = nvml.device_by_index(2).unwrap();
            // Calls the pattern does not name work on the same GPU.
            gpu.temperature(TemperatureSensor::Gpu).unwrap();
            inside.send(()).unwrap();
            gpu.power_usage().unwrap();
            returned.store(true, Relaxed);
        });
        entered.recv_timeout(PATIENCE).unwrap();
        for _ in 0..50 {
            for i in [0, 1, 3, 7] {
                nvml.device_by_index(i).unwrap().power_usage().unwrap();
            }
        }
        // A second user of the node comes and goes, too.
        drop(node.nvml());
        assert!(!returned.load(Relaxed), "the call on GPU 2 came back");
        tessera_nvml_sim::control::clear(node.path()).unwrap();
    });
    assert!(returned.load(Relaxed));
}

/// Waits for one event the raw way: the wrapper drops bits it does not know.
fn wait_raw(
    nvml: &Nvml,
    set: sys::nvmlEventSet_t,
    timeout_ms: u32,
) -> Result<(u64, u64, String), u32> {
    // SAFETY: data and text outlive the calls, the lengths are theirs.
    unsafe {
        let mut data: sys::nvmlEventData_t = zeroed();
        match nvml.lib().nvmlEventSetWait_v2(set, &mut data, timeout_ms) {
            0 => {
                let mut text = [0; 96];
                nvml.lib().nvmlDeviceGetUUID(data.device, text.as_mut_ptr(), 96);
                let uuid = std::ffi::CStr::from_ptr(text.as_ptr()).to_str().unwrap().to_owned();
                Ok((data.eventType, data.eventData, uuid))
            }
            code => Err(code),
        }
    }
}

fn event_set(nvml: &Nvml, gpus: &[u32], mask: u64) -> sys::nvmlEventSet_t {
    // SAFETY: set outlives the calls.
    unsafe {
        let mut set = zeroed();
        assert_eq!(nvml.lib().nvmlEventSetCreate(&mut set), 0);
        for gpu in gpus {
            let gpu = nvml.device_by_index(*gpu).unwrap();
            assert_eq!(nvml.lib().nvmlDeviceRegisterEvents(gpu.handle(), mask, set), 0);
        }
        set
    }
}

#[test]
fn an_xid_arrives_at_a_waiter() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let uuid = nvml.device_by_index(6).unwrap().uuid().unwrap();
    let set = event_set(&nvml, &[0, 1, 2, 3, 4, 5, 6, 7], 0x8);
    assert_eq!(wait_raw(&nvml, set, 0), Err(10), "nothing has happened");
    assert_eq!(wait_raw(&nvml, set, 30), Err(10), "nothing has happened");
    let set_number = set as usize;
    std::thread::scope(|scope| {
        let nvml = &nvml;
        let waiter = scope.spawn(move || wait_raw(nvml, set_number as sys::nvmlEventSet_t, 60_000));
        node.inject(FaultSpec { code: Some(94), ..on(6, FaultKind::Xid) });
        assert_eq!(waiter.join().unwrap(), Ok((0x8, 94, uuid)));
    });
    let journal = node.journal();
    assert_eq!(journal.len(), 1);
    assert_eq!((journal[0].kind.as_str(), journal[0].gpus.as_slice()), ("xid", &[6][..]));
    assert_eq!(journal[0].fault.as_ref().unwrap().code, Some(94));
    assert!(journal[0].at_unix_ms >= journal[0].due_unix_ms);
    // SAFETY: the set is ours and is not used afterwards.
    unsafe {
        assert_eq!(nvml.lib().nvmlEventSetFree(set), 0);
        assert_eq!(nvml.lib().nvmlEventSetFree(set), 2);
    }
}

#[test]
fn event_bits_of_nvml_13_come_through_whole() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let set = event_set(&nvml, &[4], 0xfe0b);
    node.inject(on(4, FaultKind::RemapFailure));
    let mut seen = [wait_raw(&nvml, set, 60_000).unwrap(), wait_raw(&nvml, set, 60_000).unwrap()];
    seen.sort();
    assert_eq!((seen[0].0, seen[0].1, seen[1].0), (0x8, 64, 0x800));
    // An A100 knows none of them.
    let old = TestNode::new("n1", Preset::HgxA100);
    let nvml = old.nvml();
    let set = event_set(&nvml, &[], 0);
    let gpu = nvml.device_by_index(0).unwrap();
    // SAFETY: handle and set are of this library and alive.
    assert_eq!(unsafe { nvml.lib().nvmlDeviceRegisterEvents(gpu.handle(), 0x800, set) }, 3);
}

#[test]
fn a_vanished_gpu_is_not_counted() {
    let node = node(vec![on(0, FaultKind::Vanish)]);
    let nvml = node.nvml();
    assert_eq!(nvml.device_count().unwrap(), 7);
    let first = nvml.device_by_index(0).unwrap();
    assert_eq!((first.index().unwrap(), first.minor_number().unwrap()), (0, 1));
    assert!(matches!(nvml.device_by_index(7), Err(NvmlError::InvalidArg)));
}

#[test]
fn after_a_driver_reload_one_has_to_initialise_again_and_counters_restart() {
    let node = TestNode::with("n0", Preset::DgxH100, |s| {
        s.fault = vec![FaultSpec { n: Some(3), ..on(0, FaultKind::EccDbe) }];
        s.load = vec![LoadSpec {
            gpu: None,
            shape: tessera_nvml_sim::load::Shape::Const,
            level: 1.0,
            period: None,
            mem: None,
            at: None,
            until: None,
        }];
    });
    let nvml = node.nvml();
    let gpu = nvml.device_by_index(0).unwrap();
    assert_eq!(gpu.ecc().unwrap(), 3);
    let before =
        wait_for("energy", || gpu.total_energy_consumption().ok().filter(|e| *e > 300_000));
    node.inject(FaultSpec {
        lasts: Some("300ms".parse().unwrap()),
        ..FaultSpec::new(FaultKind::DriverReload)
    });
    wait_for("the driver to go", || {
        matches!(gpu.name(), Err(NvmlError::Uninitialized)).then_some(())
    });
    let again = wait_for("the driver to come back", || node.try_nvml().ok());
    assert!(matches!(gpu.name(), Err(NvmlError::InvalidArg)), "a handle from before the reload");
    let gpu = again.device_by_index(0).unwrap();
    assert_eq!(gpu.ecc().unwrap(), 0);
    assert_eq!(gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Aggregate).unwrap(), 3);
    assert!(gpu.total_energy_consumption().unwrap() < before);
}

#[test]
fn every_kind_of_fault_is_on_record_with_its_effect() {
    let all = vec![
        FaultSpec { n: Some(5), ..on(0, FaultKind::EccSbe) },
        FaultSpec { n: Some(2), ..on(0, FaultKind::EccDbe) },
        on(1, FaultKind::RemapPending),
        on(1, FaultKind::RemapFailure),
        FaultSpec { bits: Some(0x40), ..on(2, FaultKind::Throttle) },
        FaultSpec { link: Some(4), ..on(3, FaultKind::NvlinkDown) },
        FaultSpec { link: Some(2), rate: Some(1e6), ..on(4, FaultKind::NvlinkErrors) },
        on(5, FaultKind::FabricDegraded),
        FaultSpec { n: Some(3), ..on(6, FaultKind::ProcessChurn) },
        FaultSpec { ms: Some(1), call: Some("GetSerial".to_owned()), ..on(7, FaultKind::Slow) },
        FaultSpec { bits: Some(0x1000), ..on(7, FaultKind::Event) },
        FaultSpec { after_calls: Some(1), code: Some(31), ..on(7, FaultKind::Xid) },
    ];
    let kinds: Vec<String> = all.iter().map(|f| f.kind.name()).collect();
    let node = node(all);
    let nvml = node.nvml();
    let gpu = |i| nvml.device_by_index(i).unwrap();
    assert_eq!(gpu(0).total_ecc_errors(MemoryError::Corrected, EccCounter::Aggregate).unwrap(), 5);
    assert_eq!(gpu(0).ecc().unwrap(), 2);
    // SAFETY: all pointers are of locals that outlive the calls.
    unsafe {
        let (mut a, mut b, mut pending, mut failed) = (9, 9, 9, 9);
        assert_eq!(
            nvml.lib().nvmlDeviceGetRemappedRows(
                gpu(1).handle(),
                &mut a,
                &mut b,
                &mut pending,
                &mut failed
            ),
            0
        );
        assert_eq!((a, b, pending, failed), (0, 1, 1, 1));
        let mut bits = 0;
        assert_eq!(
            nvml.lib().nvmlDeviceGetCurrentClocksEventReasons(gpu(2).handle(), &mut bits),
            0
        );
        assert_eq!(bits & 0x41, 0x40);
        let mut fabric: sys::nvmlGpuFabricInfo_v3_t = zeroed();
        fabric.version = 40 | 3 << 24;
        assert_eq!(nvml.lib().nvmlDeviceGetGpuFabricInfoV(gpu(5).handle(), &mut fabric), 0);
        assert_eq!((fabric.healthMask & 3, fabric.healthSummary), (1, 2));
    }
    let link = |i, l| gpu(i).link_wrapper_for(l).is_active().unwrap();
    assert!(!link(3, 4) && link(3, 5) && link(4, 4));
    let crc = |l| {
        gpu(4)
            .link_wrapper_for(l)
            .error_counter(nvml_wrapper::enum_wrappers::nv_link::ErrorCounter::DlCrcFlit)
            .unwrap()
    };
    wait_for("NVLink errors", || (crc(2) > 0).then_some(()));
    assert_eq!(crc(3), 0);
    assert_eq!(gpu(6).running_compute_processes().unwrap().len(), 3);
    gpu(7).serial().unwrap();
    let mut recorded: Vec<_> = node.journal().into_iter().map(|r| r.kind).collect();
    let mut kinds = kinds;
    recorded.sort();
    kinds.sort();
    assert_eq!(recorded, kinds);
}

#[test]
fn another_process_life_does_not_repeat_the_journal() {
    let node = node(vec![
        FaultSpec { code: Some(79), ..on(0, FaultKind::Xid) },
        FaultSpec { after_calls: Some(1), ..on(1, FaultKind::RemapPending) },
    ]);
    let ask = || {
        let nvml = node.nvml();
        let gpu = nvml.device_by_index(1).unwrap();
        gpu.field_values_for(&[nvml_wrapper::structs::device::FieldId(
            field_id::NVML_FI_DEV_REMAPPED_PENDING,
        )])
        .unwrap()
        .remove(0)
        .unwrap()
        .value
        .unwrap()
    };
    assert_eq!(ask(), nvml_wrapper::enums::device::SampleValue::U32(1));
    let first = node.journal();
    // A changed scenario makes the library open the node anew, as another process would.
    let path = node.path().join("node.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n# touched\n")).unwrap();
    assert_eq!(ask(), nvml_wrapper::enums::device::SampleValue::U32(1));
    assert_eq!(node.journal(), first);
    assert_eq!(first.len(), 2);
}

#[test]
fn a_control_file_with_an_error_is_refused_on_record_and_changes_nothing() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    std::fs::write(node.path().join("control.toml"), "[[fault]]\nkind = 'lost'\ngpu = 99\n")
        .unwrap();
    let record = wait_for("the refusal", || {
        nvml.device_count().unwrap();
        node.journal().pop()
    });
    assert_eq!(record.what, What::Refused);
    assert!(record.error.unwrap().contains("is for GPU 99, the node has 8"));
}

#[test]
fn a_nic_that_loses_its_link_says_so_in_sysfs() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    node.inject(FaultSpec { nic: Some(3), ..FaultSpec::new(FaultKind::NicDown) });
    node.inject(FaultSpec {
        nic: Some(4),
        rate: Some(1000.0),
        ..FaultSpec::new(FaultKind::NicErrors)
    });
    let read = |path: &str| {
        std::fs::read_to_string(node.path().join("sys/class/infiniband").join(path))
            .unwrap()
            .trim()
            .to_owned()
    };
    wait_for("the link to go down", || {
        nvml.device_count().unwrap();
        (read("mlx5_3/ports/1/state") == "1: DOWN").then_some(())
    });
    assert_eq!(read("mlx5_3/ports/1/counters/link_downed"), "1");
    assert_eq!(read("mlx5_2/ports/1/state"), "4: ACTIVE");
    wait_for("symbol errors", || {
        nvml.device_count().unwrap();
        (read("mlx5_4/ports/1/counters/symbol_error").parse::<u64>().unwrap() > 0).then_some(())
    });
    tessera_nvml_sim::control::clear(node.path()).unwrap();
    wait_for("the link to come back", || {
        nvml.device_count().unwrap();
        (read("mlx5_3/ports/1/state") == "4: ACTIVE").then_some(())
    });
}

#[test]
fn pcie_throughput_takes_its_time_and_nobody_elses() {
    let node = TestNode::with("n0", Preset::DgxH100, |s| {
        s.node.pcie_throughput = Span(Duration::from_millis(40));
    });
    let nvml = node.nvml();
    let began = std::time::Instant::now();
    nvml.device_by_index(0)
        .unwrap()
        .pcie_throughput(nvml_wrapper::enum_wrappers::device::PcieUtilCounter::Send)
        .unwrap();
    assert!(began.elapsed() >= Duration::from_millis(40));
}
