//! Placement on 12,800 nodes with 102,400 GPUs: one gang, a whole pass, a plan that makes others
//! leave, and what such a cluster takes in memory.
//!
//! The searches run on a space that is 78 % held, in fragments; the pass and the plan on a cluster
//! made of events, as a scheduler's journal would make it. The baseline of a search is the plainest
//! one there is: the first nodes in order that fit, without a look at the network.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::sync::Arc;

use tessera_core::decide::decide;
use tessera_core::event::{Event, Stamped};
use tessera_core::placement::nodes::NodeSet;
use tessera_core::placement::request::Terms;
use tessera_core::placement::{Request, Space, Taken, place};
use tessera_core::round::round;
use tessera_core::snapshot::Snapshot;
use tessera_core::{Cluster, door};
use tessera_model::{
    BootId, Bytes, Epoch, Gang, Gpu, GpuId, JobId, JobSpec, Millis, NodeId, NodeInventory,
    Placement, Program, ProjectId, SessionId, Slice, Strength, TeamId, Tier, Topology, UnixMillis,
    UserId, WHOLE_GPU, Within,
};
use tessera_sim::Rng;

use crate::measure::{Samples, status_kib, timed};
use crate::report::Report;

const BLOCKS: u32 = 25;
const LEAVES: u32 = 16;
const NODES: u32 = 32;
const GPUS: u32 = 8;
const ROUNDS: usize = 2_000;
const PENDING: u32 = 100_000;

pub fn run(report: &mut Report) {
    searches(report);
    passes(report);
}

/// Name, nodes, GPUs a node, nodes of a slice in one leaf, level the whole lies in.
type Shape = (&'static str, u32, u32, Option<u32>, Option<&'static str>);

/// Shapes that the figures are about.
const SHAPES: [Shape; 5] = [
    ("1 x 1", 1, 1, None, None),
    ("1 x 4", 1, 4, None, None),
    ("8 x 8 in one block", 8, 8, None, Some("block")),
    ("32 x 8 in slices of 4 a leaf, in one block", 32, 8, Some(4), Some("block")),
    ("512 x 8", 512, 8, None, None),
];

fn searches(report: &mut Report) {
    let mut space = Space::grid(BLOCKS, LEAVES, NODES, GPUS);
    let mut rng = Rng::new(7);
    // Three nodes in four are held whole or in part, which leaves 22 % of the GPUs free.
    for node in 0..space.len() as u32 {
        let held = match rng.below(100) {
            0..=69 => GPUS,
            70..=89 => rng.between(1, u64::from(GPUS) - 1) as u32,
            _ => 0,
        };
        let gpus = (1u64 << held) - 1;
        space.take(&Taken { node, gpus, milli: WHOLE_GPU, cpus: held, memory: 0 });
    }
    let free: u32 = space.free.iter().map(|f| f.count_ones()).sum();
    report.add("place", "GPUs free in the measured space", f64::from(free), "of 102400");
    let nobody = BTreeSet::new();
    for (name, nodes, gpus, slice, level) in SHAPES {
        let spec = spec(nodes, gpus, slice, level);
        let terms = Terms { avoid: &nobody, former: &[], nodes, preferred: true };
        let closed = NodeSet::new(space.len());
        let (mut ours, mut first) = (Samples::default(), Samples::default());
        for _ in 0..ROUNDS {
            // A node changes hands between two questions, as in life.
            let mark = space.mark();
            let node = rng.below(space.len() as u64) as u32;
            space.take(&Taken {
                node,
                gpus: 1 << rng.below(8),
                milli: WHOLE_GPU,
                cpus: 1,
                memory: 0,
            });
            let (placed, took) = timed(|| {
                let request = Request::new(&space, &spec, &terms);
                place(&space, &request, &closed, None)
            });
            assert!(placed.is_ok(), "{name} fits a space with so many free nodes");
            ours.push(took);
            first.push(timed(|| black_box(first_fit(&space, nodes, gpus))).1);
            space.undo_to(mark);
        }
        for (quantile, word) in [(0.5, "p50"), (0.99, "p99")] {
            let (ours, first) = (ours.ms(quantile) * 1_000.0, first.ms(quantile) * 1_000.0);
            let what = format!("{name}, {word}");
            report.add_beside("place", what, ours, "us", ("first nodes that fit", first));
        }
    }
}

/// The first nodes in order that have enough free GPUs.
fn first_fit(space: &Space, nodes: u32, gpus: u32) -> Vec<u32> {
    let fits = |n: &u32| {
        let i = *n as usize;
        space.takes_jobs[i] && space.free[i].count_ones() >= gpus && space.cpus_free[i] >= gpus
    };
    (0..space.len() as u32).filter(fits).take(nodes as usize).collect()
}

/// A job of so many nodes with so many GPUs each.
pub fn spec(nodes: u32, gpus: u32, slice: Option<u32>, level: Option<&str>) -> JobSpec {
    let within = level.map(|l| Within { level: l.to_owned(), strength: Strength::Required });
    let slice =
        slice.map(|nodes| Slice { nodes, level: "leaf".to_owned(), strength: Strength::Required });
    JobSpec {
        name: "train".to_owned(),
        team: TeamId::parse("nlp").expect("a plain word"),
        project: ProjectId::parse("default").expect("a plain word"),
        user: UserId::parse("ada").expect("a plain word"),
        tags: BTreeMap::new(),
        tier: Tier::Normal,
        gang: Gang {
            nodes,
            gpus_per_node: gpus,
            tasks_per_node: gpus.max(1),
            cpus_per_task: 1,
            memory_per_node: Bytes(0),
            gpu_model: None,
            gpu_milli: WHOLE_GPU,
        },
        roles: Vec::new(),
        placement: Placement {
            within: within.into_iter().collect(),
            slices: slice.into_iter().collect(),
            ..Placement::default()
        },
        priority: 0,
        time_limit: Some(Millis::from_secs(3_600)),
        requeue: false,
        begin: None,
        after: Vec::new(),
        singleton: false,
        hold: false,
        min_nodes: None,
        spares: 0,
        checkpoint: None,
        reservation: None,
        program: Program {
            argv: vec!["python".to_owned(), "train.py".to_owned()],
            script: None,
            env: BTreeMap::new(),
            working_dir: None,
        },
        unix: None,
    }
}

/// A cluster as its journal makes it.
struct World {
    cluster: Cluster,
    now: UnixMillis,
}

impl World {
    fn new() -> Self {
        let mut world = Self { cluster: Cluster::default(), now: UnixMillis(1_767_225_600_000) };
        world.push(Event::EpochBegan { epoch: Epoch(1) });
        for name in ["nlp", "vision"] {
            let (team, by) = (TeamId::parse(name).expect("a word"), user());
            world.push(Event::TeamCreated { team, description: String::new(), by });
        }
        let mut paths = BTreeMap::new();
        let mut inventories = Vec::new();
        for block in 0..BLOCKS {
            for leaf in 0..LEAVES {
                for node in 0..NODES {
                    let id = NodeId::parse(&format!("b{block:02}-l{leaf:02}-n{node:02}"))
                        .expect("a plain word");
                    let path = vec![format!("b{block:02}"), format!("b{block:02}-l{leaf:02}")];
                    paths.insert(id.clone(), path);
                    inventories.push(inventory(id));
                }
            }
        }
        let levels = vec!["block".to_owned(), "leaf".to_owned()];
        world.push(Event::TopologyLoaded { topology: Topology::net(levels, paths) });
        for (i, inventory) in inventories.into_iter().enumerate() {
            let session = SessionId(i as u64 + 1);
            world.push(Event::NodeUp { inventory, session, adopted: Vec::new() });
        }
        world
    }

    fn push(&mut self, event: Event) {
        self.cluster.apply(&Stamped { at: self.now, event });
        self.cluster.take_outbox();
    }

    fn submit(&mut self, spec: &Arc<JobSpec>) {
        let job = JobId(self.cluster.next_job.max(1));
        self.push(Event::JobSubmitted { job, key: None, spec: Arc::clone(spec) });
    }

    /// Plans, and carries it out.
    fn round(&mut self) -> usize {
        let now = self.now;
        let decision = round(&mut self.cluster, now, &mut |cluster: &mut Cluster, event| {
            cluster.apply(&Stamped { at: now, event });
            Ok::<(), std::convert::Infallible>(())
        });
        self.cluster.take_outbox();
        decision.map_or(0, |d| {
            assert!(d.refused.is_empty(), "the verifier refused {:?}", d.refused);
            d.start.len()
        })
    }
}

fn user() -> UserId {
    UserId::parse("root").expect("a plain word")
}

fn inventory(id: NodeId) -> NodeInventory {
    let gpu = |i: u32| Gpu {
        id: GpuId::parse(&format!("GPU-{id}-{i}")).expect("a plain word"),
        index: i,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory: Bytes::gib(80),
        pci_bus_id: format!("0000:{i:02x}:00.0"),
        numa: Some(i / 4),
        nvlink_group: Some(0),
        nvlink_domain: None,
        nic: None,
        rail: Some(i),
        mig: None,
    };
    NodeInventory {
        boot: BootId::parse(&format!("boot-{id}")).expect("a plain word"),
        agent_version: "0.1.0".to_owned(),
        address: format!("{id}.example"),
        cpus: 128,
        memory: Bytes::gib(2_048),
        driver_version: None,
        gpus: (0..GPUS).map(gpu).collect(),
        nics: Vec::new(),
        labels: BTreeMap::new(),
        neighbours: Vec::new(),
        node: id,
    }
}

fn passes(report: &mut Report) {
    let (mut world, built) = timed(World::new);
    report.add("place", "12,800 nodes join, in events", built.as_secs_f64() * 1_000.0, "ms");
    // Filled to the brim with jobs that give way, of 1 to 8 nodes, checkpoints of all ages.
    let mut rng = Rng::new(11);
    let fill = |nodes: u32| {
        Arc::new(JobSpec { tier: Tier::Idle, requeue: true, ..spec(nodes, GPUS, None, None) })
    };
    let shapes = [fill(1), fill(2), fill(4), fill(8)];
    while world.cluster.jobs.queue_len() < 12_000 {
        let shape = rng.pick(&shapes);
        world.submit(shape);
    }
    let mut rounds = 0;
    let (_, filled) = timed(|| {
        while world.round() > 0 {
            rounds += 1;
        }
    });
    report.add(
        "place",
        "a full pass that starts 1,000 jobs",
        filled.as_secs_f64() * 1_000.0 / f64::from(rounds.max(1)),
        "ms",
    );
    // They run, and each saved its work at some time.
    let attempts: Vec<_> = world.cluster.jobs.attempts.keys().copied().collect();
    for attempt in &attempts {
        for node in world.cluster.jobs.attempts[attempt]
            .lease
            .places
            .iter()
            .map(|p| p.node.clone())
            .collect::<Vec<_>>()
        {
            let session = world.cluster.nodes[&node].session;
            for what in [
                door::Report::Prepared { attempt: *attempt, master_port: 1 },
                door::Report::Started { attempt: *attempt },
            ] {
                let now = world.now;
                let events = door::report(&mut world.cluster, now, &node, session, what);
                events.into_iter().for_each(|e| world.push(e));
            }
        }
    }
    for attempt in &attempts {
        if rng.chance(50) {
            continue;
        }
        world.now = world.now.plus(Millis(rng.below(500)));
        world.push(Event::CheckpointReported { attempt: *attempt });
    }
    world.now = world.now.plus(Millis::from_secs(120));
    let waiting: Vec<JobId> = world.cluster.jobs.in_order(world.now).collect();
    for job in waiting {
        world.push(Event::CancelRequested { job, by: user() });
    }

    // A pass over 1,000 jobs of which none can start.
    let wide = Arc::new(JobSpec { ..spec(64, GPUS, None, Some("block")) });
    let mixed: Vec<Arc<JobSpec>> = (0..1_000)
        .map(|i| {
            let limit = Some(Millis::from_secs(600 + i));
            Arc::new(JobSpec {
                time_limit: limit,
                tier: Tier::Idle,
                requeue: true,
                ..spec(1 + (i % 64) as u32, GPUS, None, None)
            })
        })
        .collect();
    mixed.iter().for_each(|s| world.submit(s));
    let (mut snap, mut pass) = (Samples::default(), Samples::default());
    for _ in 0..50 {
        let (snapshot, took) = timed(|| Snapshot::of(&world.cluster, world.now));
        snap.push(took);
        pass.push(timed(|| black_box(decide(&snapshot))).1);
    }
    report.add("place", "taking a snapshot, p50", snap.ms(0.5), "ms");
    report.add("place", "a pass over 1,000 waiting jobs, none fits, p50", pass.ms(0.5), "ms");
    report.add("place", "the same, p99", pass.ms(0.99), "ms");

    // An urgent gang for which others have to leave: the difference is the plan.
    let (mut plan, mut victims) = (Samples::default(), 0);
    for nodes in [1u32, 8, 32, 128] {
        let urgent = JobSpec { tier: Tier::Urgent, ..JobSpec::clone(&wide) };
        let urgent = Arc::new(JobSpec { gang: Gang { nodes, ..urgent.gang.clone() }, ..urgent });
        let id = JobId(world.cluster.next_job.max(1));
        world.submit(&urgent);
        for _ in 0..20 {
            let mut snapshot = Snapshot::of(&world.cluster, world.now);
            snapshot.queue.truncate(1);
            let (decision, took) = timed(|| decide(&snapshot));
            victims = decision.leave.len();
            plan.push(took);
        }
        assert!(victims > 0, "nobody had to leave for a gang of {nodes} on a full cluster");
        let what = format!("urgent gang of {nodes} x 8 on a full cluster, with its plan, p99");
        report.add("place", what, plan.ms(0.99), "ms");
        plan = Samples::default();
        world.push(Event::CancelRequested { job: id, by: user() });
    }

    // Memory, with a long queue.
    let before = status_kib(std::process::id(), "VmRSS:").unwrap_or(0);
    report.add(
        "place",
        "memory of the cluster with 1,000 waiting jobs",
        before as f64 / 1_024.0,
        "MiB",
    );
    let specs: Vec<Arc<JobSpec>> = mixed;
    for i in 0..PENDING {
        // Every job has a spec of its own, as if each had come by itself.
        let own = JobSpec::clone(&specs[i as usize % specs.len()]);
        world.submit(&Arc::new(JobSpec { name: format!("job-{i}"), ..own }));
    }
    let after = status_kib(std::process::id(), "VmRSS:").unwrap_or(0);
    report.add("place", "memory with 100,000 waiting jobs more", after as f64 / 1_024.0, "MiB");
    let mut pass = Samples::default();
    for _ in 0..20 {
        let (_, took) = timed(|| {
            let snapshot = Snapshot::of(&world.cluster, world.now);
            black_box(decide(&snapshot))
        });
        pass.push(took);
    }
    report.add("place", "snapshot and pass with 101,000 waiting jobs, p50", pass.ms(0.5), "ms");
}
