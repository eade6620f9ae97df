//! What the core's tests build their clusters and jobs from.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_core::cluster::Cluster;
use tessera_core::decide::{Decision, decide};
use tessera_core::due::{Limits, due};
use tessera_core::event::{Event, Stamped};
use tessera_core::round::round;
use tessera_core::snapshot::Snapshot;
use tessera_model::{
    AttemptId, BootId, Bytes, Epoch, Gang, Gpu, GpuId, JobId, JobSpec, Millis, NodeId,
    NodeInventory, Placement, Program, ProjectId, SessionId, TaskEnd, TeamId, Tier, Topology,
    UnixMillis, UserId, WaitReason,
};

/// `TESSERA_CASES_TIMES=20` asks for so many times more. Failing cases are not kept in files: what
/// was fixed has a test with a name.
pub fn cases(count: u32) -> proptest::test_runner::Config {
    let times = std::env::var("TESSERA_CASES_TIMES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    proptest::test_runner::Config {
        failure_persistence: None,
        ..proptest::test_runner::Config::with_cases(count * times)
    }
}

pub fn node_id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub fn gpu_id(node: &str, index: u32) -> GpuId {
    GpuId::parse(&format!("GPU-{node}-{index}")).unwrap()
}

pub fn attempt(job: u64, number: u32) -> AttemptId {
    AttemptId { job: JobId(job), number }
}

/// A node whose GPUs are (NVLink group, NUMA node).
pub fn inventory(name: &str, boot: u32, gpus: &[(u32, u32)]) -> NodeInventory {
    let gpu = |(index, (group, numa)): (usize, &(u32, u32))| Gpu {
        id: gpu_id(name, index as u32),
        index: index as u32,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory: Bytes::gib(80),
        pci_bus_id: format!("0000:{index:02x}:00.0"),
        numa: Some(*numa),
        nvlink_group: Some(*group),
        nvlink_domain: None,
        nic: None,
        rail: None,
        mig: None,
    };
    NodeInventory {
        node: node_id(name),
        boot: BootId::parse(&format!("boot-{name}-{boot}")).unwrap(),
        agent_version: "0.1.0".to_owned(),
        address: format!("{name}.example"),
        cpus: 64,
        memory: Bytes::gib(512),
        driver_version: Some("580.95".to_owned()),
        gpus: gpus.iter().enumerate().map(gpu).collect(),
        nics: Vec::new(),
        labels: BTreeMap::new(),
        neighbours: Vec::new(),
    }
}

pub fn spec(nodes: u32, gpus_per_node: u32) -> JobSpec {
    JobSpec {
        name: "train".to_owned(),
        team: TeamId::parse("nlp").unwrap(),
        project: ProjectId::parse("llm").unwrap(),
        user: UserId::parse("ada").unwrap(),
        tags: BTreeMap::new(),
        tier: Tier::Normal,
        gang: Gang {
            nodes,
            gpus_per_node,
            tasks_per_node: 1,
            cpus_per_task: 1,
            memory_per_node: Bytes(0),
            gpu_model: None,
            gpu_milli: 1_000,
        },
        roles: Vec::new(),
        placement: Placement::default(),
        priority: 0,
        time_limit: None,
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

/// The same with a time limit in minutes.
pub fn limited(nodes: u32, gpus_per_node: u32, minutes: u64) -> JobSpec {
    JobSpec { time_limit: Some(Millis::from_secs(60 * minutes)), ..spec(nodes, gpus_per_node) }
}

pub fn minutes(count: u64) -> Millis {
    Millis::from_secs(60 * count)
}

/// A cluster under test, with its journal.
#[derive(Default)]
pub struct Story {
    pub cluster: Cluster,
    pub journal: Vec<Stamped>,
    pub now: UnixMillis,
}

impl Story {
    /// `nodes` up nodes `n0..` with `gpus` GPUs each, in sessions 1, 2, ...
    pub fn with_nodes(nodes: u32, gpus: u32) -> Self {
        let mut story = Self::default();
        story.push(Event::EpochBegan { epoch: Epoch(1) });
        for i in 0..nodes {
            story.node_up(i, 0, u64::from(i) + 1, gpus);
        }
        story
    }

    pub fn node_up(&mut self, index: u32, boot: u32, session: u64, gpus: u32) {
        let shape: Vec<(u32, u32)> = (0..gpus).map(|g| (0, g / 4)).collect();
        let inventory = inventory(&format!("n{index}"), boot, &shape);
        self.push(Event::NodeUp { inventory, session: SessionId(session), adopted: Vec::new() });
    }

    pub fn push(&mut self, event: Event) {
        let stamped = Stamped { at: self.now, event };
        self.cluster.apply(&stamped);
        self.journal.push(stamped);
    }

    pub fn pass(&mut self, length: Millis) {
        self.now = self.now.plus(length);
    }

    pub fn submit(&mut self, spec: JobSpec) -> JobId {
        let job = JobId(self.cluster.next_job.max(1));
        self.push(Event::JobSubmitted { job, key: None, spec: Arc::new(spec) });
        job
    }

    /// A round: grants what can start, each lease verified. What started, in order.
    pub fn decide(&mut self) -> Vec<JobId> {
        self.round().start.into_iter().map(|s| s.job).collect()
    }

    /// A round, with all that was decided.
    pub fn round(&mut self) -> Decision {
        let now = self.now;
        let (cluster, journal) = (&mut self.cluster, &mut self.journal);
        let decision = round(cluster, now, &mut |cluster, event| {
            let stamped = Stamped { at: now, event };
            cluster.apply(&stamped);
            journal.push(stamped);
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(decision) = decision;
        assert_eq!(decision.refused, [], "the verifier refused a placement");
        assert_eq!(self.cluster.space_differs(), Vec::<String>::new());
        decision
    }

    /// Submits a job that fits now, and has it run. Its nodes, in rank order.
    pub fn start(&mut self, spec: JobSpec) -> JobId {
        let job = self.submit(spec);
        assert_eq!(self.decide(), [job], "{:?}", self.wait_of(job));
        self.run(job);
        job
    }

    /// Why a job waits, by a decision made now that is not carried out.
    pub fn wait_of(&self, job: JobId) -> Option<WaitReason> {
        decide(&Snapshot::of(&self.cluster, self.now)).wait.remove(&job)
    }

    pub fn nodes_of(&self, job: JobId) -> String {
        let nodes = &self.cluster.jobs.get(job).unwrap().nodes;
        nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")
    }

    /// A map of one fabric: `b0: l0 = n0 n1, l1 = n2 n3; b1: l2 = n4`.
    pub fn map(&mut self, text: &str) {
        let mut nodes = BTreeMap::new();
        for block in text.split(';') {
            let (block, leaves) = block.split_once(':').unwrap();
            for leaf in leaves.split(',') {
                let (leaf, members) = leaf.split_once('=').unwrap();
                for node in members.split_whitespace() {
                    let path = vec![block.trim().to_owned(), leaf.trim().to_owned()];
                    nodes.insert(node_id(node), path);
                }
            }
        }
        let levels = vec!["block".to_owned(), "leaf".to_owned()];
        self.push(Event::TopologyLoaded { topology: Topology::net(levels, nodes) });
    }

    /// What time has brought about by now.
    pub fn due(&mut self) {
        // Every node was heard a moment ago.
        self.cluster.listens_again(self.now);
        let events = due(&self.cluster, self.now, &Limits::default());
        events.into_iter().for_each(|event| self.push(event));
    }

    /// The job's present attempt.
    pub fn attempt_of(&self, job: JobId) -> AttemptId {
        self.cluster.jobs.get(job).unwrap().attempt.unwrap()
    }

    /// All of its tasks have begun.
    pub fn run(&mut self, job: JobId) {
        let attempt = self.attempt_of(job);
        let master_addr = "n0".to_owned();
        self.push(Event::GangCommitted { attempt, master_addr, master_port: 1 });
        self.push(Event::AttemptRunning { attempt });
    }

    /// All of its tasks end like this, and its nodes give everything back.
    pub fn end(&mut self, job: JobId, end: TaskEnd) {
        let attempt = self.attempt_of(job);
        let Some(known) = self.cluster.jobs.attempts.get(&attempt) else { return };
        let (ranks, lease) = (known.ranks(), known.lease.clone());
        for rank in 0..ranks {
            self.push(Event::TaskEnded { attempt, rank, end: end.clone() });
        }
        for place in &lease.places {
            let (node, occupied) = (place.node.clone(), BTreeMap::new());
            self.push(Event::PlaceReleased { attempt, node, occupied });
        }
    }
}
