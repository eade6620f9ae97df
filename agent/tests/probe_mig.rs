//! GPUs cut into MIG instances: each instance is a device of its own, and tells no more than NVML does.

mod sim;

use std::time::{Duration, Instant};

use sim::{SimNode, fault};
use tessera_agent::sampler::{Sampler, SamplerConfig};
use tessera_model::sample::NodeSample;
use tessera_model::{Gpu, GpuCondition, GpuId};
use tessera_nvml_sim::scenario::{FaultKind, FaultSpec, GpuSel, MigCut, Preset, Scenario};

/// A hang is a failure; no test measures time.
const HANG: Duration = Duration::from_secs(60);

fn cut(scenario: &mut Scenario, gpu: usize, profiles: &[&str]) {
    let cut = profiles.iter().map(|p| (*p).to_owned()).collect();
    scenario.node.mig.push(MigCut { gpu: Some(GpuSel::One(gpu)), cut });
}

fn node() -> SimNode {
    SimNode::with(Preset::DgxH100, |scenario| {
        cut(scenario, 1, &["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]);
        cut(scenario, 6, &["7g.80gb"]);
        cut(scenario, 7, &[]);
    })
}

fn gpus(sampler: &Sampler) -> Vec<Gpu> {
    sampler.inventory().borrow().gpus.clone()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn sample(sampler: &Sampler, fits: impl Fn(&NodeSample) -> bool) -> NodeSample {
    let samples = async {
        loop {
            let sample = sampler.samples().recv().await.unwrap();
            if fits(&sample) {
                return sample;
            }
        }
    };
    runtime().block_on(async { tokio::time::timeout(HANG, samples).await.unwrap() })
}

fn until(what: &str, ask: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ask() {
        assert!(begun.elapsed() < HANG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn instances_are_listed_in_the_place_of_their_gpu() {
    let node = node();
    let sampler = Sampler::start(node.config()).unwrap();
    let all = gpus(&sampler);
    // Five whole ones, four and one instances, and nothing where nothing is cut.
    assert_eq!(all.len(), 10, "{all:?}");
    let mut listed: Vec<GpuId> = all.iter().map(|gpu| gpu.id.clone()).collect();
    let mut made = node.uuids.clone();
    listed.sort();
    made.sort();
    assert_eq!(listed, made);
    let on = |index: u32| all.iter().filter(move |gpu| gpu.index == index);
    let mut profiles: Vec<(&str, u32)> = on(1)
        .map(|gpu| gpu.mig.as_ref().unwrap())
        .map(|m| (m.profile.as_str(), m.memory_slices))
        .collect();
    profiles.sort_unstable();
    assert_eq!(profiles, [("1g.10gb", 1), ("1g.10gb", 1), ("2g.20gb", 2), ("3g.40gb", 4)]);
    let first = on(1).next().unwrap();
    for gpu in on(1) {
        let mig = gpu.mig.as_ref().unwrap();
        assert!(gpu.id.as_str().starts_with("MIG-"), "{gpu:?}");
        assert_eq!(gpu.model, "NVIDIA H100 80GB HBM3");
        assert_eq!(mig.parent, first.mig.as_ref().unwrap().parent);
        assert!(mig.parent.as_str().starts_with("GPU-"));
        assert!(gpu.memory.0 < 45 << 30, "its own memory: {}", gpu.memory);
        // It sits where its GPU does, and shares its NIC; NVLink is not its own.
        assert_eq!((gpu.nic.as_deref(), gpu.rail, gpu.numa), (Some("mlx5_1"), Some(1), Some(0)));
        assert_eq!(gpu.pci_bus_id, first.pci_bus_id);
        assert_eq!((gpu.nvlink_group, gpu.nvlink_domain.as_ref()), (None, None));
    }
    assert_eq!(on(6).next().unwrap().mig.as_ref().unwrap().profile, "7g.80gb");
    assert_eq!(on(6).next().unwrap().mig.as_ref().unwrap().memory_slices, 8);
    assert_eq!(on(7).count(), 0);
    // The others' NICs are theirs as before.
    for index in [0, 2, 3, 4, 5] {
        let gpu = on(index).next().unwrap();
        assert_eq!((gpu.mig.as_ref(), gpu.rail), (None, Some(index)));
    }
}

#[test]
fn an_instance_tells_its_memory_and_its_processes_and_never_a_zero_for_the_rest() {
    let node = node();
    let sampler = Sampler::start(node.config()).unwrap();
    let instance = gpus(&sampler).into_iter().find(|gpu| gpu.index == 6).unwrap().id;
    let mut command = std::process::Command::new("sleep");
    let mut job =
        command.arg("1000").env("CUDA_VISIBLE_DEVICES", instance.as_str()).spawn().unwrap();
    until("its process", || sampler.processes_on(&instance) == Ok(vec![job.id()]));
    let read = sample(&sampler, |sample| {
        sample
            .gpus
            .iter()
            .any(|gpu| gpu.gpu.as_ref() == Some(&instance) && gpu.processes == Some(1))
    });
    job.kill().unwrap();
    job.wait().unwrap();
    assert_eq!(read.gpus.len(), 10);
    for gpu in &read.gpus {
        let is_instance = gpu.gpu.as_ref().unwrap().as_str().starts_with("MIG-");
        assert!(gpu.memory_used_bytes.is_some());
        let of_the_whole = [
            gpu.busy_percent.is_some(),
            gpu.power_mw.is_some(),
            gpu.energy_mj.is_some(),
            gpu.temperature_c.is_some(),
            gpu.sm_clock_mhz.is_some(),
            gpu.ecc_corrected.is_some(),
        ];
        assert_eq!(of_the_whole, [!is_instance; 6], "{gpu:?}");
    }
    let read = read.gpus.iter().find(|gpu| gpu.gpu.as_ref() == Some(&instance)).unwrap();
    assert!(read.memory_used_bytes.unwrap() > 1 << 30);
    for other in gpus(&sampler).iter().filter(|gpu| gpu.id != instance) {
        assert_eq!(sampler.processes_on(&other.id), Ok(vec![]), "{}", other.id);
    }
}

#[test]
fn what_befalls_a_gpu_befalls_all_its_instances_and_no_other() {
    let node = node();
    let sampler = Sampler::start(node.config()).unwrap();
    node.fault(FaultSpec { code: Some(79), ..fault(FaultKind::Xid, 1) });
    let hit: Vec<GpuId> =
        gpus(&sampler).into_iter().filter(|gpu| gpu.index == 1).map(|gpu| gpu.id).collect();
    until("all four", || sampler.conditions().borrow().len() == hit.len());
    for gpu in &hit {
        assert_eq!(sampler.conditions().borrow().get(gpu), Some(&GpuCondition::Xid { code: 79 }));
    }
}

#[test]
fn a_gpu_that_could_not_be_asked_at_the_start_is_never_taken_for_a_whole_one() {
    let node = node();
    node.fault(fault(FaultKind::Lost, 1));
    let sampler = Sampler::start(node.config()).unwrap();
    let on_1 = |sampler: &Sampler| -> Vec<bool> {
        let all = gpus(sampler);
        all.iter().filter(|gpu| gpu.index == 1).map(|gpu| gpu.mig.is_some()).collect()
    };
    assert_eq!(on_1(&sampler), [true; 0]);
    node.heal();
    until("its instances", || on_1(&sampler).len() == 4);
    assert_eq!(on_1(&sampler), [true; 4]);
    until("all of them well", || sampler.conditions().borrow().is_empty());
}

#[test]
fn a_gpu_that_was_cut_anew_has_lost_nothing() {
    let node = node();
    let config = SamplerConfig { known_gpus: Some(node.path().join("known")), ..node.config() };
    let sampler = Sampler::start(config.clone()).unwrap();
    assert_eq!(gpus(&sampler).len(), 10);
    until("the list on disk", || node.path().join("known").exists());
    drop(sampler);
    // GPU 1 in another way, GPU 6 not any more, GPU 0 as well; the library reads it when it is
    // opened anew, as a driver does after its reload.
    let file = node.path().join("node.toml");
    let mut scenario = Scenario::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
    scenario.node.mig.clear();
    cut(&mut scenario, 1, &["7g.80gb"]);
    cut(&mut scenario, 0, &["1g.10gb", "1g.10gb"]);
    std::fs::write(&file, toml::to_string(&scenario).unwrap()).unwrap();
    let again = node.path().join("again");
    std::fs::create_dir(&again).unwrap();
    for name in ["node.toml", "libnvidia-ml.so.1"] {
        std::fs::copy(node.path().join(name), again.join(name)).unwrap();
    }
    let library = Some(again.join("libnvidia-ml.so.1"));
    let sampler = Sampler::start(SamplerConfig { nvml_library: library, ..config }).unwrap();
    let all = gpus(&sampler);
    let on = |index: u32| all.iter().filter(move |gpu| gpu.index == index).count();
    assert_eq!((on(0), on(1), on(6), on(7), all.len()), (2, 1, 1, 1, 9), "{all:?}");
    assert_eq!(sampler.conditions().borrow().len(), 0);
}
