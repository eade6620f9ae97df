//! GPUs that several jobs use: two processes on one, and one that is cut into MIG instances.

mod common;

use std::process::{Child, Command};

use common::{TestNode, wait_for};
use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;
use tessera_nvml_sim::Preset;
use tessera_nvml_sim::scenario::{GpuSel, MigCut, Span};

/// A job's process, which ends with the test.
struct Job(Child);

impl Job {
    fn on(devices: &str, mem_mib: u32) -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").env("CUDA_VISIBLE_DEVICES", devices);
        command.env("TESSERA_SIM_MEM_MIB", mem_mib.to_string());
        Self(command.env("TESSERA_SIM_LOAD", "const:0.3").spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn quick(scenario: &mut tessera_nvml_sim::scenario::Scenario) {
    scenario.node.process_scan = Span(std::time::Duration::from_millis(10));
}

fn pids(device: &Device<'_>) -> Vec<u32> {
    let mut pids: Vec<u32> =
        device.running_compute_processes().unwrap().iter().map(|p| p.pid).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn two_jobs_on_one_gpu_are_two_processes_and_their_loads_add_up() {
    let node = TestNode::with("n0", Preset::DgxH100, quick);
    let nvml = node.nvml();
    let (gpu, other) = (nvml.device_by_index(3).unwrap(), nvml.device_by_index(4).unwrap());
    let uuid = gpu.uuid().unwrap();
    let (one, two) = (Job::on(&uuid, 1_000), Job::on(&uuid, 2_000));
    let mut both = vec![one.pid(), two.pid()];
    both.sort_unstable();
    wait_for("both processes", || (pids(&gpu) == both).then_some(()));
    assert!(pids(&other).is_empty());
    let used = gpu.memory_info().unwrap().used;
    assert_eq!(used, 3_000 << 20, "what both have");
    drop(one);
    wait_for("the end of the first", || (pids(&gpu) == [two.pid()]).then_some(()));
    assert_eq!(gpu.memory_info().unwrap().used, 2_000 << 20);
}

#[test]
fn a_gpu_that_is_cut_has_instances_with_uuids_sizes_and_processes_of_their_own() {
    let cut = ["3g.40gb", "2g.20gb", "1g.10gb"].map(str::to_owned).to_vec();
    let node = TestNode::with("n0", Preset::DgxH100, |scenario| {
        quick(scenario);
        scenario.node.mig = vec![MigCut { gpu: Some(GpuSel::One(5)), cut }];
    });
    let nvml = node.nvml();
    let whole = nvml.device_by_index(4).unwrap();
    assert_eq!(whole.mig_mode().unwrap().current, 0);
    assert!(matches!(whole.mig_device_by_index(0), Err(NvmlError::NotFound)));
    assert!(whole.utilization_rates().is_ok());
    let parent = nvml.device_by_index(5).unwrap();
    assert_eq!(parent.mig_mode().unwrap().current, 1);
    assert_eq!(parent.mig_device_count().unwrap(), 7);
    assert!(matches!(parent.utilization_rates(), Err(NvmlError::NotSupported)));
    assert!(parent.power_usage().is_ok(), "power is the whole GPU's");
    let instances: Vec<_> = (0..3).map(|i| parent.mig_device_by_index(i).unwrap()).collect();
    assert!(matches!(parent.mig_device_by_index(3), Err(NvmlError::NotFound)));
    let mut uuids = Vec::new();
    for (instance, (profile, slices)) in
        instances.iter().zip([("3g.40gb", 3), ("2g.20gb", 2), ("1g.10gb", 1)])
    {
        assert_eq!(instance.name().unwrap(), format!("NVIDIA H100 80GB HBM3 MIG {profile}"));
        let uuid = instance.uuid().unwrap();
        assert!(uuid.starts_with("MIG-") && uuid.len() == 40, "{uuid}");
        assert!(instance.mig_is_mig_device_handle().unwrap());
        assert_eq!(instance.mig_parent_device().unwrap().uuid().unwrap(), parent.uuid().unwrap());
        let attributes = instance.attributes().unwrap();
        assert_eq!(attributes.gpu_instance_slice_count, slices);
        let memory = instance.memory_info().unwrap();
        assert_eq!(memory.total, attributes.memory_size_mb << 20);
        for refused in [
            instance.utilization_rates().map(drop),
            instance.power_usage().map(drop),
            instance
                .temperature(nvml_wrapper::enum_wrappers::device::TemperatureSensor::Gpu)
                .map(drop),
        ] {
            assert!(matches!(refused, Err(NvmlError::NotSupported)), "{refused:?}");
        }
        let again = nvml.device_by_uuid(uuid.as_str()).unwrap();
        assert_eq!(again.uuid().unwrap(), uuid);
        uuids.push(uuid);
    }
    uuids.dedup();
    assert_eq!(uuids.len(), 3);
    let job = Job::on(&uuids[1], 1_000);
    wait_for("its process", || (pids(&instances[1]) == [job.pid()]).then_some(()));
    assert_eq!(instances[1].memory_info().unwrap().used, 1_000 << 20);
    assert_eq!(pids(&parent), [job.pid()], "the whole GPU lists it, too");
    for other in [&instances[0], &instances[2], &whole] {
        assert!(pids(other).is_empty());
    }
}
