//! Packing, waiting and span on traces and a topology that others published, each beside the usual
//! rules in the same run.
//!
//! In: the folder that `TESSERA_TRACES` names, with `openb/`, `itp-2021.csv.gz` and
//! `lingjun-2023-topology.csv.gz` as their publishers wrote them (none of it is part of this
//! repository). Without it there is nothing to measure, and that is said.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tessera_core::placement::space::{GpuView, Kind, Sketch};
use tessera_core::placement::{NodeSet, Request, Space, Taken, Terms, place};
use tessera_model::{NodeId, Topology, WHOLE_GPU};
use tessera_sim::Rng;
use tessera_sim::trace::{
    Floor, Node, NodesFrom, Placed, PolicyName, PolicyReport, Request as Wanted, Source, Tree,
    Workload, replay,
};

use crate::place::spec;
use crate::report::Report;

/// Seeds of the raw openb lists.
const SEEDS: std::ops::Range<u64> = 42..44;
const GANGS: [u32; 5] = [4, 8, 16, 32, 64];
const DRAWS: u32 = 40;

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("TESSERA_TRACES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("  TESSERA_TRACES names no folder with traces: nothing is measured");
    }
    folder
}

/// Allocated share at 100 % and 130 % arrived, on every list of pods that is there.
pub fn openb(report: &mut Report) {
    let Some(folder) = folder().map(|f| f.join("openb")) else { return };
    let mut lists: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map(|dir| dir.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    lists.retain(|p| p.to_string_lossy().contains("openb_pod_list_"));
    lists.sort();
    for list in lists {
        let name = list.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name =
            name.trim_start_matches("openb_pod_list_").trim_end_matches(".csv.gz").to_owned();
        let policies = ["ours", "fgd", "best-fit", "first-fit"];
        let mut at = vec![(0.0, 0.0); policies.len()];
        for seed in SEEDS {
            let source = Source {
                nodes: Some(NodesFrom::File(folder.join("openb_node_list_gpu_node.csv.gz"))),
                seed: Some(seed),
                ..Source::new(&list)
            };
            let workload = source.load().expect("the published files can be read");
            for (i, policy) in policies.iter().enumerate() {
                let played = played(&workload, policy);
                assert_eq!(played.refused_avoidably, 0, "{policy} refused pods that would fit");
                let (hundred, all) = (allocated(&played, 100), allocated(&played, 130));
                at[i].0 += hundred / SEEDS.count() as f64;
                at[i].1 += all / SEEDS.count() as f64;
            }
        }
        for (i, policy) in policies.iter().enumerate().skip(1) {
            let beside = |value: f64| (*policy, value);
            let what = format!("{name}, allocated at 100 % arrived");
            report.add_beside("openb", what, at[0].0, "%", beside(at[i].0));
            let what = format!("{name}, allocated at 130 % arrived");
            report.add_beside("openb", what, at[0].1, "%", beside(at[i].1));
        }
    }
}

/// Waits on ITP clusters beside the textbook queues.
pub fn itp(report: &mut Report) {
    let Some(folder) = folder() else { return };
    for (cluster, load) in [("cluster04", 0.75), ("cluster04", 0.9), ("cluster07", 0.9)] {
        let source = Source {
            cluster: Some(cluster.to_owned()),
            load: Some(load),
            ..Source::new(folder.join("itp-2021.csv.gz"))
        };
        let workload = source.load().expect("the published files can be read");
        let ours = waits(&played(&workload, "ours"));
        for policy in ["fifo", "greedy", "easy"] {
            let theirs = waits(&played(&workload, policy));
            for (word, ours, theirs) in [
                ("mean wait", ours.0, theirs.0),
                ("p99 wait", ours.1, theirs.1),
                ("mean wait of 8 GPUs and more", ours.2, theirs.2),
            ] {
                let what = format!("{cluster} at {load}, {word}");
                report.add_beside("itp", what, ours, "s", (policy, theirs));
            }
        }
    }
}

/// Leaves a gang uses over the least possible, on the Lingjun topology with nodes busy at random.
pub fn span(report: &mut Report) {
    let Some(folder) = folder() else { return };
    let source = Source {
        nodes: Some(NodesFrom::File(folder.join("lingjun-2023-topology.csv.gz"))),
        cluster: Some("cluster04".to_owned()),
        ..Source::new(folder.join("itp-2021.csv.gz"))
    };
    let workload = source.load().expect("the published files can be read");
    let (levels, nodes) = (&workload.levels, &workload.nodes);
    let tree = Tree::new(levels.len(), nodes);
    for busy in [50u32, 80] {
        for gang in GANGS {
            let mut rng = Rng::new(u64::from(busy * 1_000 + gang));
            let (mut optimal, mut ours, mut first) = (0u32, 0.0, 0.0);
            for _ in 0..DRAWS {
                let free = drawn(&mut rng, nodes.len(), busy, gang as usize);
                let wanted = Wanted::gpus(gang, 8);
                let mut floor = Floor::new(nodes);
                for node in (0..nodes.len()).filter(|n| !free.contains(n)) {
                    let one = Wanted::gpus(1, 8);
                    let devices = floor.devices(node, &one);
                    floor.take(&one, &[Placed { node, devices }]).expect("it is free");
                }
                let least = tree.optimum(&floor, &wanted).expect("so many nodes are free");
                let found = search(levels, nodes, &free, gang);
                optimal += u32::from(found == least);
                let leaves = |span: &[u32]| f64::from(*span.last().unwrap_or(&1));
                ours += leaves(&found) / leaves(&least) / f64::from(DRAWS);
                let naive: Vec<Placed> = free
                    .iter()
                    .take(gang as usize)
                    .map(|n| Placed { node: *n, devices: (0..8).collect() })
                    .collect();
                let used = tree.used(nodes, &naive).expect("all nodes are in the map");
                first += leaves(&used) / leaves(&least) / f64::from(DRAWS);
            }
            let what = format!("{busy} % busy, {gang} nodes, leaves over the least");
            report.add_beside("span", what, ours, "x", ("first nodes that fit", first));
            let what = format!("{busy} % busy, {gang} nodes, optimal at every level");
            report.add("span", what, f64::from(optimal) * 100.0 / f64::from(DRAWS), "% of draws");
        }
    }
}

/// Nodes that are free, at least so many.
fn drawn(rng: &mut Rng, nodes: usize, busy: u32, least: usize) -> BTreeSet<usize> {
    loop {
        let free: BTreeSet<usize> = (0..nodes).filter(|_| !rng.chance(busy)).collect();
        if free.len() >= least {
            return free;
        }
    }
}

/// Domains our search uses at each level.
fn search(levels: &[String], nodes: &[Node], free: &BTreeSet<usize>, gang: u32) -> Vec<u32> {
    let id = |i: usize| NodeId::parse(&format!("n{i:04}")).expect("a plain word");
    let gpu =
        GpuView { model: "gpu".to_owned(), numa: None, nvlink_group: None, rail: None, mig: false };
    let kind = Kind { gpus: vec![gpu; 8], cpus: 64, memory: 1 << 40 };
    let sketch = |i: usize| Sketch { id: id(i), kind: kind.clone(), labels: Default::default() };
    let paths = nodes.iter().enumerate().map(|(i, n)| (id(i), n.path.clone())).collect();
    let map = Topology::net(levels.to_vec(), paths);
    let sketches = (0..nodes.len()).map(sketch).collect();
    let mut space = Space::sketch(sketches, &map, &Default::default());
    for i in (0..nodes.len()).filter(|i| !free.contains(i)) {
        let node = space.layout.index(&id(i)).expect("it is in the map");
        space.take(&Taken { node, gpus: 0xff, milli: WHOLE_GPU, cpus: 0, memory: 0 });
    }
    let spec = spec(gang, 8, None, None);
    let nobody = BTreeSet::new();
    let terms = Terms { avoid: &nobody, former: &[], nodes: gang, preferred: true };
    let request = Request::new(&space, &spec, &terms);
    let placed = place(&space, &request, &NodeSet::new(space.len()), None);
    let placed = placed.expect("so many nodes are free");
    placed.spans.iter().take(levels.len()).map(|s| s.domains).collect()
}

fn played(workload: &Workload, policy: &str) -> PolicyReport {
    let name = PolicyName::parse(policy).expect("there is such a policy");
    let mut policy = name.make(workload).expect("it can play this trace");
    let run = replay(workload, policy.as_mut(), &mut |_| {});
    PolicyReport::of(workload, &run.expect("a sound trace is played to its end"))
}

fn allocated(report: &PolicyReport, arrived: u32) -> f64 {
    let packing = report.packing.as_ref().expect("openb is about packing");
    let at = packing.at.iter().find(|a| a.arrived_pct == arrived);
    at.and_then(|a| a.allocated_pct).expect("so much arrives")
}

/// Mean and p99 of all, and the mean of those with eight GPUs and more; seconds.
fn waits(report: &PolicyReport) -> (f64, f64, f64) {
    let queue = report.queue.as_ref().expect("ITP is about waiting");
    let large = queue.by_size.iter().find(|s| s.gpus == "8+").expect("there are some");
    let p99 = queue.wait.wait_ms_p99 as f64;
    (queue.wait.wait_ms_mean / 1e3, p99 / 1e3, large.wait.wait_ms_mean / 1e3)
}
