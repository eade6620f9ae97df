//! What goes wrong between nvml-wrapper and a driver, each on a simulated node: `TRAP n` is the number in
//! the list of what was found in the wrapper.

mod sim;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;
use sim::{SimNode, fault};
use tessera_agent::probe::nvml::{EVENT_XID, EVENTS_WANTED, Link};
use tessera_agent::probe::nvml_raw::{self as raw, FieldAsked, GpmPair};
use tessera_agent::probe::{host, nvml};
use tessera_nvml_sim::load::Shape;
use tessera_nvml_sim::scenario::{FaultKind, FaultSpec, LoadSpec, NullQuery, Preset};

/// A call that takes its faults from a file needs a moment; nothing here waits longer than this.
const PATIENCE: Duration = Duration::from_secs(20);

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(found) = look() {
            return found;
        }
        // Not a wait for a time, only not to burn a core.
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} did not come");
}

fn device(node: &SimNode, index: u32) -> Device<'static> {
    node.open().nvml.device_by_index(index).unwrap()
}

struct Job(Child);

impl Job {
    fn on(node: &SimNode, gpu: usize) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("600").env("CUDA_VISIBLE_DEVICES", node.uuids[gpu].as_str());
        Self(sleep.spawn().unwrap())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn trap_1_a_library_without_shutdown_and_free_functions_is_used_and_let_go() {
    let node = SimNode::new(Preset::DgxH100).without(&[
        "nvmlShutdown",
        "nvmlEventSetFree",
        "nvmlGpmSampleFree",
    ]);
    let driver = nvml::Driver::new(Some(node.library.clone()));
    let open = driver.open(0).unwrap();
    assert!(open.nvml.lib().nvmlShutdown.is_err(), "the test's own premise");
    let mut reader = node.try_reader(&open, 0).unwrap();
    assert!(reader.fast().unwrap().power_mw.is_some());
    // The wrapper's own types would panic here.
    drop((reader, open, driver));
}

#[test]
fn trap_1_a_missing_function_is_learnt_once_and_costs_its_field_only() {
    let whole = SimNode::new(Preset::DgxH100).reader(0).fast().unwrap();
    let cases = [
        ("nvmlDeviceGetPowerUsage", "power"),
        ("nvmlDeviceGetMemoryInfo_v2", "memory"),
        ("nvmlDeviceGetUtilizationRates", "busy"),
        ("nvmlDeviceGetTemperature", "temperature"),
    ];
    for (symbol, field) in cases {
        let mut reader = SimNode::new(Preset::DgxH100).without(&[symbol]).reader(0);
        let sample = reader.fast().unwrap();
        assert!(reader.unsupported().any(|what| what == symbol), "{symbol}");
        let have = |s: &tessera_model::sample::GpuSample| {
            [
                ("power", s.power_mw.is_some()),
                ("memory", s.memory_used_bytes.is_some()),
                ("busy", s.busy_percent.is_some()),
                ("temperature", s.temperature_c.is_some()),
                ("energy", s.energy_mj.is_some()),
                ("replays", s.pcie_replays.is_some()),
            ]
        };
        assert!(have(&whole).iter().all(|(_, there)| *there), "{whole:?}");
        for (name, there) in have(&sample) {
            assert_eq!(there, name != field, "{name} without {symbol}");
        }
    }
    // The older memory call still tells the size.
    let reader = SimNode::new(Preset::DgxH100).without(&["nvmlDeviceGetMemoryInfo_v2"]).reader(0);
    let facts = reader.facts();
    let supported = !reader.unsupported().any(|what| what == "nvmlDeviceGetMemoryInfo");
    assert_eq!(facts.memory.0 > 0, supported, "{facts:?}");
}

#[test]
fn what_a_gpu_does_not_support_is_not_asked_again() {
    let node = SimNode::with(Preset::DgxH100, |scenario| {
        scenario.node.not_supported =
            vec!["nvmlDeviceGetPowerUsage".into(), "nvmlDeviceGetTotalEnergyConsumption".into()];
    });
    let mut reader = node.reader(0);
    let sample = reader.fast().unwrap();
    assert_eq!((sample.power_mw, sample.energy_mj), (None, None));
    assert!(sample.temperature_c.is_some());
    let learnt: BTreeSet<_> = reader.unsupported().collect();
    assert!(learnt.contains("nvmlDeviceGetPowerUsage"), "{learnt:?}");
    // An older GPU has no performance monitor; that is absent and not 0.
    let mut old = SimNode::new(Preset::HgxA100).reader(0);
    old.fast().unwrap();
    assert_eq!(old.fast().unwrap().sm_percent, None);
    assert!(old.unsupported().any(|what| what == "nvmlGpmSampleAlloc"));
}

#[test]
fn trap_2_fields_are_matched_by_position_under_both_numberings() {
    for driver in ["570.86.15", "580.95.05"] {
        let node = SimNode::with(Preset::DgxH100, |scenario| {
            scenario.node.driver_version = Some(driver.into());
        });
        let device = device(&node, 0);
        let ask = |ids: [u32; 3]| {
            let asked = ids.map(|id| FieldAsked { id, scope: 0 });
            raw::fields(&device, &asked).unwrap().into_iter().map(Result::ok).collect::<Vec<_>>()
        };
        // Memory temperature, an id that is none, number of links.
        let there = ask([82, 200_000, 91]);
        let back = ask([91, 200_000, 82]);
        assert_eq!(there[2], Some(18), "{driver}");
        assert_eq!(there[1], None, "{driver}");
        assert!(there[0].is_some_and(|c| (20..110).contains(&c)), "{driver}: {there:?}");
        assert_eq!((back[0], back[1]), (there[2], there[1]), "{driver}");
        let sample = node.reader(0).fast().unwrap();
        assert!(sample.memory_temperature_c.is_some() && sample.pcie_replays.is_some(), "{driver}");
    }
    // Ids that depend on the driver are refused, in release builds as well.
    let device = device(&SimNode::new(Preset::DgxH100), 0);
    let asked = [FieldAsked { id: 252, scope: 0 }];
    assert!(catch_unwind(AssertUnwindSafe(|| raw::fields(&device, &asked))).is_err());
}

#[test]
fn trap_3_a_field_of_a_link_is_asked_for_that_link() {
    let device = device(&SimNode::new(Preset::DgxH100), 0);
    // Speed of a link; the board has 18, so the last one answers and the next one does not.
    let asked = [17, 18].map(|scope| FieldAsked { id: 90, scope });
    let answers = raw::fields(&device, &asked).unwrap();
    assert!(answers[0].as_ref().is_ok_and(|mbps| *mbps > 0), "{answers:?}");
    assert!(answers[1].is_err(), "{answers:?}");
}

#[test]
fn trap_4_no_process_is_missed_however_the_library_counts() {
    for style in [NullQuery::InsufficientSize, NullQuery::Success] {
        let node = SimNode::with(Preset::DgxH100, |s| s.node.process_list_null_query = style);
        let mut reader = node.reader(1);
        let job = Job::on(&node, 1);
        let pid = job.0.id();
        eventually("the job's pid", || reader.processes().unwrap().contains(&pid).then_some(()));
        assert!(!node.reader(0).processes().unwrap().contains(&pid));
        reader.slow().unwrap();
        assert_eq!(reader.fast().unwrap().processes, Some(1), "{style:?}");
        drop(job);
        eventually("an empty list", || reader.processes().unwrap().is_empty().then_some(()));
    }
}

#[test]
fn trap_4_the_buffer_grows_with_the_list() {
    let node = SimNode::new(Preset::DgxH100);
    let mut reader = node.reader(2);
    assert!(reader.processes().unwrap().is_empty());
    node.fault(FaultSpec { n: Some(300), ..fault(FaultKind::ProcessChurn, 2) });
    let pids = eventually("a long list", || {
        let pids = reader.processes().unwrap();
        (pids.len() > 100).then_some(pids)
    });
    let distinct: BTreeSet<_> = pids.iter().collect();
    assert_eq!(distinct.len(), pids.len());
}

#[test]
fn trap_5_unknown_bits_of_events_and_clock_reasons_are_kept() {
    let node = SimNode::new(Preset::DgxH100);
    let open = node.open();
    let reader = node.try_reader(&open, 3).unwrap();
    let mut set = open.events.unwrap().lock();
    // GPU unavailable: the wrapper knows no such event.
    node.fault(FaultSpec { bits: Some(0x4000), code: Some(7), ..fault(FaultKind::Event, 3) });
    let event = eventually("the event", || set.wait(200).ok());
    assert_eq!((event.kind, event.data, event.device), (0x4000, 7, reader.key()));
    assert_ne!(EVENTS_WANTED & 0x4000, 0);
    drop(set);

    let bits = 1 << 45 | 0x40;
    node.fault(FaultSpec { bits: Some(bits), ..fault(FaultKind::Throttle, 3) });
    let device = device(&node, 3);
    let reasons = eventually("the reasons", || {
        raw::clock_event_reasons(&device).ok().filter(|reasons| reasons & bits == bits)
    });
    assert_ne!(reasons & 1 << 45, 0);
}

#[test]
fn trap_6_an_event_names_the_gpu_it_is_for() {
    let node = SimNode::new(Preset::DgxH100);
    let open = node.open();
    let readers: Vec<_> = (0..8).map(|index| node.try_reader(&open, index).unwrap()).collect();
    let mut set = open.events.unwrap().lock();
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    node.fault(FaultSpec { code: Some(31), ..fault(FaultKind::Xid, 5) });
    let event = eventually("the XID", || set.wait(200).ok());
    assert_eq!((event.kind & EVENT_XID, event.data), (EVENT_XID, 31));
    let whose: Vec<_> = readers.iter().filter(|reader| reader.key() == event.device).collect();
    assert_eq!(whose.len(), 1);
    assert_eq!(whose[0].facts().id, node.uuids[5]);
}

#[test]
fn trap_7_utilizations_are_percent() {
    let node = SimNode::with(Preset::DgxH100, |scenario| {
        scenario.load.push(LoadSpec {
            gpu: None,
            shape: Shape::Const,
            level: 0.8,
            period: None,
            mem: None,
            at: None,
            until: None,
        });
    });
    let mut reader = node.reader(0);
    let sample = eventually("a performance sample", || {
        Some(reader.fast().unwrap()).filter(|sample| sample.sm_percent.is_some())
    });
    let sm = sample.sm_percent.unwrap();
    // 0.8 would be DCGM's scale, and MiB/s would be far above 100.
    assert!((50.0..=100.0).contains(&sm), "{sample:?}");
    for percent in [sample.tensor_percent, sample.dram_percent] {
        assert!(percent.is_some_and(|p| (1.0..=100.0).contains(&p)), "{sample:?}");
    }
}

#[test]
fn trap_8_performance_samples_are_not_taken_too_close_together() {
    let mut reader = SimNode::new(Preset::DgxH100).reader(0);
    // The first one has nothing to compare with, the second one is too early.
    let start = Instant::now();
    assert_eq!(reader.fast().unwrap().sm_percent, None);
    let second = reader.fast().unwrap();
    if start.elapsed() < Duration::from_millis(100) {
        assert_eq!(second.sm_percent, None);
    }
    eventually("a value", || reader.fast().unwrap().sm_percent);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn trap_8_nan_and_unknown_metrics_are_no_values() {
    let device = device(&SimNode::new(Preset::DgxH100), 0);
    let mut pair = GpmPair::create(&device).unwrap();
    pair.take(&device).unwrap();
    // Two samples at least 100 ms apart; the library says when.
    let answers = eventually("metrics", || {
        std::thread::sleep(Duration::from_millis(110));
        pair.take(&device).unwrap();
        pair.metrics(&device, [2, 209]).ok()
    });
    assert!(answers[0].as_ref().is_ok_and(|value| value.is_finite()), "{answers:?}");
    assert!(answers[1].is_err(), "{answers:?}");
}

#[test]
fn trap_9_a_cpu_mask_has_as_many_words_as_the_machine_needs() {
    let node = SimNode::new(Preset::DgxH100);
    let (first, last) = (node.reader(0), node.reader(7));
    let (first, last) = (&first.facts().cpus, &last.facts().cpus);
    assert!(!first.is_empty() && !last.is_empty());
    assert!(last.iter().any(|cpu| *cpu >= 64), "beyond the first word: {last:?}");
    assert_eq!(host::numa_of_cpus(&node.sysfs(), first), Some(0));
    assert_eq!(host::numa_of_cpus(&node.sysfs(), last), Some(1));
}

#[test]
fn trap_10_links_are_counted_by_the_field_and_known_by_their_far_end() {
    for (preset, links) in [
        (Preset::DgxH100, 18),
        (Preset::HgxA100, 12),
        (Preset::Gb200Nvl72Tray, 18),
        (Preset::L40sPcie, 0),
    ] {
        let reader = SimNode::new(preset).reader(0);
        // The wrapper's own call says "unknown" for every one of them.
        assert_eq!(reader.facts().links, vec![Link::Switch; links], "{preset:?}");
    }
    // A link that is down is no link.
    let node = SimNode::with(Preset::DgxH100, |scenario| {
        scenario.fault.push(FaultSpec { link: Some(4), ..fault(FaultKind::NvlinkDown, 0) });
    });
    assert_eq!(node.reader(0).facts().links.len(), 17);
}

#[test]
fn pcie_throughput_is_never_sampled() {
    // It would take 20 ms a direction; here it takes a minute, and a round is over long before.
    let node = SimNode::with(Preset::DgxH100, |scenario| {
        scenario
            .fault
            .push(FaultSpec { call: Some("*PcieThroughput".into()), ..fault(FaultKind::Hang, 0) });
    });
    let mut reader = node.reader(0);
    reader.slow().unwrap();
    assert!(reader.fast().unwrap().power_mw.is_some());
}
