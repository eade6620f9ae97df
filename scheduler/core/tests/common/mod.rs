//! What the core's tests build their clusters and jobs from.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_core::cluster::Cluster;
use tessera_core::event::{Event, Stamped};
use tessera_model::{
    AttemptId, BootId, Bytes, Epoch, Gang, Gpu, GpuId, JobId, JobSpec, Millis, NodeId,
    NodeInventory, Program, ProjectId, SessionId, TeamId, UnixMillis, UserId,
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
    }
}

pub fn spec(nodes: u32, gpus_per_node: u32) -> JobSpec {
    JobSpec {
        name: "train".to_owned(),
        team: TeamId::parse("nlp").unwrap(),
        project: ProjectId::parse("llm").unwrap(),
        user: UserId::parse("ada").unwrap(),
        tags: BTreeMap::new(),
        gang: Gang {
            nodes,
            gpus_per_node,
            tasks_per_node: 1,
            cpus_per_task: 1,
            memory_per_node: Bytes(0),
            gpu_model: None,
        },
        within: Vec::new(),
        priority: 0,
        time_limit: None,
        requeue: false,
        program: Program {
            argv: vec!["python".to_owned(), "train.py".to_owned()],
            script: None,
            env: BTreeMap::new(),
            working_dir: None,
        },
        unix: None,
    }
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

    /// Grants what can start, each lease verified.
    pub fn decide(&mut self) -> Vec<JobId> {
        use tessera_core::{decide, placement::Snapshot, verify::verify};
        let snapshot = Snapshot::of(&self.cluster, self.now);
        let decision = decide::decide(&snapshot);
        for (job, chosen) in &decision.start {
            let lease = decide::lease(&self.cluster, &snapshot, *job, chosen).unwrap();
            verify(&self.cluster, &lease).unwrap();
            self.push(Event::LeaseGranted { lease });
        }
        decision.start.into_iter().map(|(job, _)| job).collect()
    }
}
