//! A node that breaks under the sampler: one GPU's trouble is that GPU's alone.

mod sim;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use sim::{SimNode, fault};
use tessera_agent::mailbox::Receiver;
use tessera_agent::sampler::Sampler;
use tessera_model::sample::{GpuSample, NodeSample};
use tessera_model::{GpuCondition, GpuId};
use tessera_nvml_sim::scenario::{FaultKind, FaultSpec, Preset};
use tokio::sync::watch;

/// Far more than any of this takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

type Conditions = watch::Receiver<BTreeMap<GpuId, GpuCondition>>;

async fn until(
    conditions: &mut Conditions,
    what: &str,
    want: impl Fn(&BTreeMap<GpuId, GpuCondition>) -> bool,
) -> BTreeMap<GpuId, GpuCondition> {
    let seen = conditions.clone();
    match tokio::time::timeout(PATIENCE, conditions.wait_for(|now| want(now))).await {
        Ok(Ok(now)) => now.clone(),
        Ok(Err(_)) => panic!("the sampler ended before: {what}"),
        Err(_) => panic!("did not come: {what}; now {:?}", seen.borrow()),
    }
}

/// The next sample that is as wanted.
async fn sample(
    samples: &mut Receiver<NodeSample>,
    what: &str,
    want: impl Fn(&NodeSample) -> bool,
) -> NodeSample {
    let next = async {
        loop {
            let sample = samples.recv().await.expect("samples go on");
            if want(&sample) {
                return sample;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("did not come: {what}"))
}

fn row<'a>(sample: &'a NodeSample, gpu: &GpuId) -> &'a GpuSample {
    sample.gpus.iter().find(|row| row.gpu.as_ref() == Some(gpu)).expect("a row never goes")
}

fn only(gpu: &GpuId, condition: GpuCondition) -> BTreeMap<GpuId, GpuCondition> {
    BTreeMap::from([(gpu.clone(), condition)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_node_is_whole_from_the_start() {
    let node = SimNode::new(Preset::DgxH100);
    let sampler = Sampler::start(node.config()).unwrap();
    // Known when start returns, without waiting for a change.
    let inventory = sampler.inventory().borrow().clone();
    let ids: Vec<_> = inventory.gpus.iter().map(|gpu| gpu.id.clone()).collect();
    assert_eq!(ids, node.uuids);
    assert!(sampler.conditions().borrow().is_empty());
    let mut samples = sampler.samples();
    let first = samples.recv().await.unwrap();
    assert_eq!(first.sequence, 1);
    let whole = |s: &NodeSample| s.gpus.iter().all(|gpu| gpu.sm_percent.is_some());
    let second = sample(&mut samples, "a whole sample", whole).await;
    for gpu in &second.gpus {
        assert!(gpu.power_mw.is_some() && gpu.energy_mj.is_some() && gpu.processes == Some(0));
        assert!(gpu.ecc_corrected.is_some() && gpu.clock_event_reasons.is_some(), "{gpu:?}");
    }
    assert!(second.nics.iter().any(|nic| nic.receive_bytes.is_some()), "{:?}", second.nics);
    assert!(second.host.agent_rss_bytes.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_gpu_stops_nothing_but_itself() {
    let node = SimNode::new(Preset::DgxH100);
    let sampler = Sampler::start(node.config()).unwrap();
    let mut conditions = sampler.conditions();
    let mut samples = sampler.samples();
    let hung = &node.uuids[3];
    let call = Some("nvmlDeviceGetPower*".to_owned());
    node.fault(FaultSpec { call, ..fault(FaultKind::Hang, 3) });
    let now = until(&mut conditions, "one GPU unresponsive", |now| !now.is_empty()).await;
    assert_eq!(now, only(hung, GpuCondition::Unresponsive));

    let mut last = None;
    for _ in 0..10 {
        let sample = samples.recv().await.unwrap();
        // Samples from before the hang may still wait in the box.
        if row(&sample, hung).power_mw.is_some() {
            continue;
        }
        if let Some(last) = last {
            assert_eq!(sample.sequence, last + 1, "no beat is left out");
        }
        last = Some(sample.sequence);
    }
    let is_late = |s: &NodeSample| {
        node.uuids.iter().all(|gpu| (gpu == hung) == row(s, gpu).power_mw.is_none())
    };
    for _ in 0..3 {
        sample(&mut samples, "the other seven read, the hung one not", is_late).await;
    }
    // Nobody knows what runs on it, and the others answer.
    assert!(sampler.processes(&[node.uuids[0].clone(), hung.clone()]).await.is_err());
    let gpus = [node.uuids[0].clone(), node.uuids[7].clone()];
    let lists = sampler.processes(&gpus).await.unwrap();
    assert_eq!(lists, [(gpus[0].clone(), vec![]), (gpus[1].clone(), vec![])]);
    assert!(sampler.processes_on(hung).unwrap_err().to_string().contains("has not returned"));

    node.heal();
    until(&mut conditions, "healthy again", BTreeMap::is_empty).await;
    sample(&mut samples, "its values are back", |s| row(s, hung).power_mw.is_some()).await;
    assert_eq!(sampler.processes(std::slice::from_ref(hung)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_hangs_whole_is_seen_on_every_gpu_and_the_beat_goes_on() {
    let node = SimNode::new(Preset::DgxH100);
    let sampler = Sampler::start(node.config()).unwrap();
    let mut conditions = sampler.conditions();
    let mut samples = sampler.samples();
    let call = Some("*".to_owned());
    node.fault(FaultSpec { call, ..FaultSpec::new(FaultKind::Hang) });
    let now = until(&mut conditions, "all unresponsive", |now| now.len() == 8).await;
    assert!(now.values().all(|condition| *condition == GpuCondition::Unresponsive), "{now:?}");
    let silent = |s: &NodeSample| s.gpus.iter().all(|gpu| gpu.power_mw.is_none());
    let first = sample(&mut samples, "rows without values", silent).await;
    assert_eq!(first.gpus.len(), 8);
    let next = samples.recv().await.unwrap();
    assert_eq!(next.sequence, first.sequence + 1);
    node.heal();
    until(&mut conditions, "all healthy again", BTreeMap::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_hangs_before_it_has_a_name_delays_the_start_and_not_the_others() {
    let node = SimNode::with(Preset::DgxH100, |scenario| {
        let call = Some("nvmlDeviceGetUUID".to_owned());
        scenario.fault.push(FaultSpec { call, ..fault(FaultKind::Hang, 2) });
    });
    let sampler = Sampler::start(node.config()).unwrap();
    let inventory = sampler.inventory().borrow().clone();
    let ids: Vec<_> = inventory.gpus.iter().map(|gpu| gpu.id.clone()).collect();
    let want: Vec<_> = node.uuids.iter().filter(|gpu| **gpu != node.uuids[2]).cloned().collect();
    assert_eq!(ids, want);
    sample(&mut sampler.samples(), "readings of the seven", |s| {
        s.gpus.len() == 7 && s.gpus.iter().all(|gpu| gpu.power_mw.is_some())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_gpu_keeps_its_row_and_comes_back() {
    for (kind, want) in [
        (FaultKind::Lost, GpuCondition::Lost),
        (FaultKind::Vanish, GpuCondition::Lost),
        (FaultKind::ResetRequired, GpuCondition::ResetRequired),
    ] {
        let node = SimNode::new(Preset::DgxH100);
        let sampler = Sampler::start(node.config()).unwrap();
        let before = sampler.inventory().borrow().clone();
        let mut conditions = sampler.conditions();
        let mut samples = sampler.samples();
        let gpu = &node.uuids[6];
        node.fault(FaultSpec { quiet: true, ..fault(kind, 6) });
        let name = format!("{kind:?}");
        let now = until(&mut conditions, &name, |now| !now.is_empty()).await;
        assert_eq!(now, only(gpu, want.clone()), "{name}");
        let broken = |s: &NodeSample| {
            node.uuids.iter().all(|id| (id == gpu) == row(s, id).power_mw.is_none())
        };
        sample(&mut samples, &name, broken).await;
        assert_eq!(*sampler.inventory().borrow(), before, "{name}");
        if want == GpuCondition::Lost {
            let lists = sampler.processes(std::slice::from_ref(gpu)).await.unwrap();
            assert_eq!(lists, [(gpu.clone(), vec![])], "{name}");
        }
        node.heal();
        until(&mut conditions, &name, BTreeMap::is_empty).await;
        sample(&mut samples, &name, |s| row(s, gpu).power_mw.is_some()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_gpu_stays_listed_over_a_restart_and_an_xid_stays_fatal() {
    let node = SimNode::new(Preset::DgxH100);
    let mut config = node.config();
    config.known_gpus = Some(node.path().join("gpus.json"));
    let sampler = Sampler::start(config.clone()).unwrap();
    let before = sampler.inventory().borrow().clone();
    let mut conditions = sampler.conditions();
    node.fault(FaultSpec { code: Some(95), ..fault(FaultKind::Xid, 1) });
    node.fault(FaultSpec { quiet: true, ..fault(FaultKind::Vanish, 7) });
    let want = BTreeMap::from([
        (node.uuids[1].clone(), GpuCondition::Xid { code: 95 }),
        (node.uuids[7].clone(), GpuCondition::Lost),
    ]);
    until(&mut conditions, "XID and loss", |now| *now == want).await;
    drop(sampler);

    let again = Sampler::start(config.clone()).unwrap();
    assert_eq!(again.inventory().borrow().gpus, before.gpus);
    assert_eq!(*again.conditions().borrow(), want);
    drop(again);

    // After a reboot the driver is asked anew.
    config.identity.boot = tessera_model::BootId::parse("boot-2").unwrap();
    let rebooted = Sampler::start(config).unwrap();
    assert_eq!(rebooted.inventory().borrow().gpus.len(), 7);
    assert!(!rebooted.conditions().borrow().contains_key(&node.uuids[7]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xids_count_by_their_class() {
    let node = SimNode::with(Preset::DgxH100, |scenario| scenario.node.last_xid_wins = false);
    let sampler = Sampler::start(node.config()).unwrap();
    let mut conditions = sampler.conditions();
    // The job's own fault first: the queue keeps the order, so it has been heard when the other is.
    node.fault(FaultSpec { code: Some(13), ..fault(FaultKind::Xid, 0) });
    node.fault(FaultSpec { code: Some(79), ..fault(FaultKind::Xid, 4) });
    let now = until(&mut conditions, "the fatal XID", |now| !now.is_empty()).await;
    assert_eq!(now, only(&node.uuids[4], GpuCondition::Xid { code: 79 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_waits_for_a_reset_when_the_agent_starts_is_listed() {
    let node = SimNode::with(Preset::DgxH100, |scenario| {
        scenario.fault.push(fault(FaultKind::ResetRequired, 5));
    });
    let sampler = Sampler::start(node.config()).unwrap();
    let now = sampler.conditions().borrow().clone();
    assert_eq!(now[&node.uuids[5]].word(), "reset-required", "{now:?}");
    assert_eq!(sampler.inventory().borrow().gpus.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_log_is_a_second_witness() {
    // A library without events: only the log tells.
    let node = SimNode::new(Preset::DgxH100).without(&["nvmlEventSetCreate"]);
    let log = node.path().join("log");
    let old = format!("NVRM: Xid (PCI:{}): 48\n", "0000:00:00");
    fs::write(&log, old).unwrap();
    let mut config = node.config();
    config.kernel_log = Some(log.clone());
    let sampler = Sampler::start(config).unwrap();
    let mut conditions = sampler.conditions();
    let inventory = sampler.inventory().borrow().clone();
    let slot = inventory.gpus[2].pci_bus_id.trim_end_matches(".0");
    // Written again until it is seen: the reader begins at the end of the file, whenever it opens it.
    let seen = async {
        loop {
            let line = format!("4,100,200,-;NVRM: Xid (PCI:{slot}): 48, pid=1, name=x\n");
            let mut text = fs::read_to_string(&log).unwrap();
            text.push_str(&line);
            fs::OpenOptions::new()
                .write(true)
                .open(&log)
                .map(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()))
                .unwrap()
                .unwrap();
            tokio::select! {
                changed = conditions.changed() => return changed.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    let want = only(&node.uuids[2], GpuCondition::Xid { code: 48 });
    assert_eq!(*sampler.conditions().borrow(), want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_reload_begins_a_new_epoch_and_cures_an_xid() {
    let node = SimNode::new(Preset::DgxH100);
    let sampler = Sampler::start(node.config()).unwrap();
    let mut conditions = sampler.conditions();
    let mut samples = sampler.samples();
    node.fault(FaultSpec { code: Some(48), ..fault(FaultKind::Xid, 0) });
    until(&mut conditions, "the XID", |now| now.contains_key(&node.uuids[0])).await;
    let lasts = Some("1s".parse().unwrap());
    node.fault(FaultSpec { lasts, ..FaultSpec::new(FaultKind::DriverReload) });
    let gone =
        |now: &BTreeMap<_, _>| now.values().all(|c| *c == GpuCondition::Lost) && now.len() == 8;
    until(&mut conditions, "no driver", gone).await;
    until(&mut conditions, "the driver is back", BTreeMap::is_empty).await;
    let back = |s: &NodeSample| {
        s.gpus.len() == 8 && s.gpus.iter().all(|g| g.counter_epoch == 1 && g.power_mw.is_some())
    };
    sample(&mut samples, "readings of a new epoch", back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_gpus_beats_like_any_other() {
    let node = SimNode::new(Preset::CpuOnly);
    let mut config = node.config();
    for library in [node.library.clone(), node.path().join("no-such-library.so")] {
        config.nvml_library = Some(library);
        config.first_sequence = 500;
        let sampler = Sampler::start(config.clone()).unwrap();
        assert!(sampler.inventory().borrow().gpus.is_empty());
        assert!(sampler.inventory().borrow().cpus > 0);
        let sample = sampler.samples().recv().await.unwrap();
        assert_eq!((sample.sequence, sample.gpus.len()), (500, 0));
        let nobody = GpuId::parse("GPU-none").unwrap();
        assert!(sampler.processes(&[nobody]).await.is_err());
    }
}
