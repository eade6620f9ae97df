//! What GPUs do: field values, GPM, and real processes that use them.

mod common;

use std::mem::zeroed;
use std::process::{Child, Command};

use common::{TestNode, wait_for};
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper_sys::bindings::{self as sys, field_id::*};
use tessera_nvml_sim::Preset;
use tessera_nvml_sim::load::Shape;
use tessera_nvml_sim::scenario::{LoadSpec, NullQuery};

fn load(gpu: usize, shape: Shape, level: f64) -> LoadSpec {
    LoadSpec {
        gpu: Some(tessera_nvml_sim::scenario::GpuSel::One(gpu)),
        shape,
        level,
        period: None,
        mem: None,
        at: None,
        until: None,
    }
}

/// A child that is killed when the test is done with it, also when it fails.
struct Job(Child);

impl Job {
    fn on(uuid: &str, load: Option<&str>) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").env("CUDA_VISIBLE_DEVICES", uuid);
        if let Some(load) = load {
            command.env("TESSERA_SIM_LOAD", load);
        }
        Self(command.spawn().unwrap())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_process_uses_the_gpu_and_vanishes_with_its_end() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let gpu = nvml.device_by_index(3).unwrap();
    assert_eq!(gpu.running_compute_processes().unwrap(), []);
    let mut job = Job::on(&gpu.uuid().unwrap(), Some("const:0.8"));
    let list = wait_for("the process", || {
        Some(gpu.running_compute_processes().unwrap()).filter(|l| !l.is_empty())
    });
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].pid, job.0.id());
    let UsedGpuMemory::Used(bytes) = list[0].used_gpu_memory else { panic!("no memory") };
    assert!(bytes > 1 << 30 && gpu.memory_info().unwrap().used >= bytes);
    wait_for("utilization", || (gpu.utilization_rates().unwrap().gpu == 80).then_some(()));
    assert!(gpu.power_usage().unwrap() > 300_000);
    assert_eq!(nvml.device_by_index(2).unwrap().running_compute_processes().unwrap(), []);
    assert_eq!(nvml.device_by_index(2).unwrap().utilization_rates().unwrap().gpu, 0);
    assert_eq!(nvml.sys_process_name(job.0.id(), 64).unwrap(), "sleep");
    // Killed and not yet waited for it is a zombie, and gone from the list at once.
    job.0.kill().unwrap();
    wait_for("the end", || gpu.running_compute_processes().unwrap().is_empty().then_some(()));
    wait_for("rest", || (gpu.utilization_rates().unwrap().gpu == 0).then_some(()));
}

#[test]
fn a_job_that_does_nothing_holds_its_gpu_and_leaves_it_idle() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let gpu = |i| nvml.device_by_index(i).unwrap();
    let _idle = Job::on(&gpu(0).uuid().unwrap(), Some("idle:0"));
    // A shell and its child are one job step; two GPUs are named as a job with two would.
    let both = format!("{},{}", gpu(4).uuid().unwrap(), gpu(5).uuid().unwrap());
    let mut command = Command::new("sh");
    command
        .args(["-c", "sleep 600 & wait"])
        .env("CUDA_VISIBLE_DEVICES", both)
        .env("TESSERA_SIM_LOAD", "const:0.3");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let shell = Job(command.spawn().unwrap());
    for i in [4, 5] {
        wait_for("both processes", || {
            (gpu(i).running_compute_processes().unwrap().len() == 2).then_some(())
        });
        wait_for("their load, once", || {
            (gpu(i).utilization_rates().unwrap().gpu == 30).then_some(())
        });
    }
    assert_eq!(gpu(0).running_compute_processes().unwrap().len(), 1);
    assert_eq!(gpu(0).utilization_rates().unwrap().gpu, 0);
    let group = i32::try_from(shell.0.id()).unwrap();
    // SAFETY: the group is our own child's, which has not been waited for.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    wait_for("the end of both", || {
        gpu(4).running_compute_processes().unwrap().is_empty().then_some(())
    });
}

#[test]
fn both_answers_to_a_null_query_can_be_had() {
    for (form, code) in [(NullQuery::InsufficientSize, 7), (NullQuery::Success, 0)] {
        let node = TestNode::with("n0", Preset::DgxH100, |s| s.node.process_list_null_query = form);
        let nvml = node.nvml();
        let gpu = nvml.device_by_index(0).unwrap();
        let job = Job::on(&gpu.uuid().unwrap(), None);
        let ask = |room: u32, list: *mut sys::nvmlProcessInfo_t| {
            let mut count = room;
            // SAFETY: count outlives the call, and list has the room given.
            let code = unsafe {
                nvml.lib().nvmlDeviceGetComputeRunningProcesses_v3(gpu.handle(), &mut count, list)
            };
            (code, count)
        };
        wait_for("the process", || (ask(0, std::ptr::null_mut()) == (code, 1)).then_some(()));
        // SAFETY: the struct is plain numbers.
        let mut list: [sys::nvmlProcessInfo_t; 2] = unsafe { zeroed() };
        assert_eq!(ask(2, list.as_mut_ptr()), (0, 1));
        assert_eq!(list[0].pid, job.0.id());
    }
}

/// Asks the driver by its own numbers: result code, type and value of each.
fn raw_fields(nvml: &Nvml, gpu: u32, asked: &[(u32, u32)]) -> Vec<(u32, u32, u64)> {
    let gpu = nvml.device_by_index(gpu).unwrap();
    // SAFETY: the array is plain numbers, outlives the call and has the length given.
    unsafe {
        let mut values: Vec<sys::nvmlFieldValue_t> = vec![zeroed(); asked.len()];
        for (value, (id, scope)) in values.iter_mut().zip(asked) {
            value.fieldId = *id;
            value.scopeId = *scope;
        }
        let code = nvml.lib().nvmlDeviceGetFieldValues(
            gpu.handle(),
            asked.len() as i32,
            values.as_mut_ptr(),
        );
        assert_eq!(code, 0);
        values.iter().map(|v| (v.nvmlReturn, v.valueType, v.value.ullVal)).collect()
    }
}

#[test]
fn field_values_answer_each_for_itself() {
    let node = TestNode::new("n0", Preset::DgxH100);
    let nvml = node.nvml();
    let answers = raw_fields(
        &nvml,
        0,
        &[
            (NVML_FI_DEV_ECC_CURRENT, 0),
            (NVML_FI_DEV_NVLINK_LINK_COUNT, 0),
            (NVML_FI_DEV_RETIRED_SBE, 0),
            (100_000, 0),
            (NVML_FI_DEV_NVLINK_GET_SPEED, 17),
            (NVML_FI_DEV_NVLINK_GET_SPEED, 18),
            (NVML_FI_DEV_POWER_CURRENT_LIMIT, 0),
            (NVML_FI_DEV_POWER_INSTANT, 1),
        ],
    );
    let codes: Vec<_> = answers.iter().map(|a| a.0).collect();
    assert_eq!(codes, [0, 0, 3, 2, 0, 2, 0, 3]);
    assert_eq!((answers[0].2, answers[1].2, answers[4].2, answers[6].2), (1, 18, 26_562, 700_000));
    let tray = TestNode::new("t0", Preset::Gb200Nvl72Tray);
    assert_eq!(raw_fields(&tray.nvml(), 0, &[(NVML_FI_DEV_POWER_INSTANT, 1)])[0].0, 0);
}

#[test]
fn the_numbering_of_fields_is_the_drivers() {
    // Hardware thermal slowdown is 252 before 580.82 and 270 from then on; GB200 has power
    // smoothing, which is 256 before and 251 then.
    for (driver, thermal, smoothing) in [("580.65.06", 252, 256), ("580.95.05", 270, 251)] {
        let node = TestNode::with("t0", Preset::Gb200Nvl72Tray, |s| {
            s.node.driver_version = Some(driver.to_owned());
        });
        let nvml = node.nvml();
        assert_eq!(nvml.sys_driver_version().unwrap(), driver);
        let answers = raw_fields(
            &nvml,
            0,
            &[(thermal, 0), (smoothing, 0), (if thermal == 252 { 270 } else { 257 }, 0)],
        );
        assert_eq!((answers[0].0, answers[0].1), (0, 3), "{driver}: nanoseconds");
        assert_eq!((answers[1].0, answers[1].1), (0, 1), "{driver}: a switch");
        assert_eq!(answers[2].0, 3, "{driver}");
        // The wrapper translates on the way in, so the same canonical id works with both.
        let gpu = nvml.device_by_index(0).unwrap();
        let values = gpu
            .field_values_for(&[
                FieldId(NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN),
                FieldId(NVML_FI_PWR_SMOOTHING_ENABLED),
            ])
            .unwrap();
        let values: Vec<_> = values.into_iter().map(|v| v.unwrap().value.unwrap()).collect();
        assert_eq!(values, [SampleValue::U64(0), SampleValue::U32(0)], "{driver}");
    }
}

#[test]
fn gpm_measures_between_two_samples_where_there_is_gpm() {
    use nvml_wrapper::enums::gpm::GpmMetricId;
    let node = TestNode::with("n0", Preset::DgxH100, |s| s.load = vec![load(0, Shape::Const, 0.5)]);
    let nvml = node.nvml();
    let gpu = nvml.device_by_index(0).unwrap();
    let first = gpu.gpm_sample().unwrap();
    let metrics = wait_for("a span between samples", || {
        let second = gpu.gpm_sample().unwrap();
        let wanted =
            [GpmMetricId::SmUtil, GpmMetricId::DramBwUtil, GpmMetricId::NvlinkTotalTxPerSec];
        let got = nvml_wrapper::gpm::gpm_metrics_get(&nvml, &first, &second, &wanted).unwrap();
        let values: Vec<f64> = got.into_iter().map(|m| m.unwrap().value).collect();
        (!values[0].is_nan()).then_some(values)
    });
    assert!((metrics[0] - 50.0).abs() < 0.5 && (metrics[1] - 25.0).abs() < 0.5, "{metrics:?}");
    // A fifth of half of 18 links at 26562 MB/s, in MiB/s.
    let expected = 0.2 * 0.5 * 18.0 * 26_562e6 / 1048576.0;
    assert!((metrics[2] / expected - 1.0).abs() < 0.02, "{metrics:?} {expected}");
    let old = TestNode::new("n1", Preset::HgxA100);
    assert!(matches!(
        old.nvml().device_by_index(0).unwrap().gpm_sample(),
        Err(NvmlError::NotSupported)
    ));
}

#[test]
fn energy_goes_on_in_a_second_life() {
    let node =
        TestNode::with("n0", Preset::L40sPcie, |s| s.load = vec![load(0, Shape::Const, 1.0)]);
    let energy = |nvml: &Nvml| nvml.device_by_index(0).unwrap().total_energy_consumption().unwrap();
    let first = {
        let nvml = node.nvml();
        // Counters are kept once a second or at shutdown, by the process that holds the lock.
        wait_for("the counters to be kept", || {
            let now = energy(&nvml);
            node.path().join("lock").exists().then_some(now)
        })
    };
    assert!(first > 0 && node.path().join("counters.json").exists());
    let path = node.path().join("node.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n# touched\n")).unwrap();
    let second = energy(&node.nvml());
    assert!(second >= first, "{second} < {first}");
}

#[test]
fn samples_and_accounting_follow_a_process() {
    let node = TestNode::new("n0", Preset::HgxA100);
    let nvml = node.nvml();
    let mut gpu = nvml.device_by_index(1).unwrap();
    assert!(matches!(gpu.accounting_pids(), Err(NvmlError::NotSupported)));
    gpu.set_accounting(true).unwrap();
    let gpu = gpu;
    let job = Job::on(&gpu.uuid().unwrap(), None);
    let pid = job.0.id();
    let ask = || {
        // Any reading makes the library look for processes.
        gpu.utilization_rates().unwrap();
        gpu.accounting_stats_for(pid)
    };
    let stats = wait_for("accounting", || ask().ok());
    assert!(stats.is_running && stats.max_memory_usage.unwrap() > 1 << 30);
    let sample = wait_for("process utilization", || gpu.process_utilization_stats(None).ok());
    assert_eq!(sample[0].pid, pid);
    drop(job);
    wait_for("the end on account", || ask().ok().filter(|s| !s.is_running));
    assert!(gpu.accounting_pids().unwrap().contains(&pid));
    let power = gpu.samples(nvml_wrapper::enum_wrappers::device::Sampling::Power, None).unwrap();
    assert!(!power.is_empty());
}
