//! The shipping scheduler as a policy: the same core, events and rounds as in production.
//!
//! In: submissions and ends. Out: what the core's leases say. Every job goes the whole way: submitted,
//! decided about, verified by the core's second opinion, granted, running, ended, given back. What is
//! left out is what needs machines: preparation takes no time, and nothing is lost.
//!
//! A CPU of the core stands for a thousandth of one here, since traces count them so. Models are
//! asked for by label, for the core matches model names by part and a trace means the whole name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tessera_core::event::{Event, Stamped};
use tessera_core::{Cluster, round};
use tessera_model::{
    AttemptId, BootId, Bytes, Epoch, Gang, Gpu, GpuId, JobId, JobSpec, LabelOp, LabelRule, Lease,
    NodeId, NodeInventory, Placement, Program, ProjectId, SessionId, TaskEnd, TeamId, Tier,
    Topology, UnixMillis, UserId, WHOLE_GPU,
};

use super::floor::Placed;
use super::policy::{JobIndex, Policy, Promise, Start, Submission};
use super::workload::{Node, Request, Workload};

/// The node label that holds the GPU model as the trace writes it.
const MODEL: &str = "gpu-model";

pub struct Ours {
    cluster: Cluster,
    /// In the workload's order.
    ids: Vec<NodeId>,
    index: HashMap<NodeId, usize>,
    /// Models of the workload in lower case, to see which name is a part of another.
    models: Vec<String>,
    running: HashMap<JobIndex, Lease>,
    promises: Vec<Promise>,
    wake: Option<UnixMillis>,
    by: UserId,
}

impl Ours {
    pub fn new(workload: &Workload) -> Self {
        let ids = node_ids(&workload.nodes);
        let mut ours = Self {
            cluster: Cluster::default(),
            index: ids.iter().cloned().zip(0..).collect(),
            ids,
            models: models(&workload.nodes),
            running: HashMap::new(),
            promises: Vec::new(),
            wake: None,
            by: UserId::parse("replay").expect("a constant that is a user's name"),
        };
        let start = UnixMillis(0);
        ours.apply(start, Event::EpochBegan { epoch: Epoch(1) });
        if !workload.levels.is_empty() {
            let placed = ours.ids.iter().zip(&workload.nodes);
            let placed = placed.filter(|(_, n)| n.path.len() == workload.levels.len());
            let nodes = placed.map(|(id, n)| (id.clone(), n.path.clone())).collect();
            let topology = Topology::net(workload.levels.clone(), nodes);
            ours.apply(start, Event::TopologyLoaded { topology });
        }
        for (i, node) in workload.nodes.iter().enumerate() {
            let inventory = inventory(&ours.ids[i], node);
            let session = SessionId(i as u64 + 1);
            ours.apply(start, Event::NodeUp { inventory, session, adopted: Vec::new() });
        }
        ours
    }

    fn apply(&mut self, at: UnixMillis, event: Event) {
        self.cluster.apply(&Stamped { at, event });
        // There are no agents to order about and no bill to write.
        self.cluster.take_outbox();
    }

    fn team(&mut self, now: UnixMillis, tenant: &str) -> TeamId {
        let named = TeamId::parse(&tenant.to_lowercase());
        let team = named.unwrap_or_else(|_| TeamId::parse("all").expect("a team's name"));
        if !self.cluster.teams.contains_key(&team) {
            let (description, by) = (tenant.to_owned(), self.by.clone());
            self.apply(now, Event::TeamCreated { team: team.clone(), description, by });
        }
        team
    }

    fn spec(&mut self, now: UnixMillis, submission: &Submission) -> JobSpec {
        let request = &submission.request;
        let team = self.team(now, &submission.tenant);
        let (gpu_model, labels) = self.models_of(request);
        JobSpec {
            name: "trace".to_owned(),
            project: ProjectId::parse("default").expect("a project's name"),
            team,
            user: self.by.clone(),
            tags: BTreeMap::new(),
            tier: Tier::default(),
            gang: Gang {
                nodes: request.nodes,
                gpus_per_node: request.gpus,
                tasks_per_node: 1,
                cpus_per_task: u32::try_from(request.cpu_milli).unwrap_or(u32::MAX),
                memory_per_node: Bytes(request.memory_mib << 20),
                gpu_model,
                gpu_milli: if request.gpus == 0 { WHOLE_GPU } else { request.gpu_milli },
            },
            roles: Vec::new(),
            placement: Placement { labels, ..Placement::default() },
            priority: submission.priority,
            time_limit: submission.time_limit,
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
                argv: vec!["true".to_owned()],
                script: None,
                env: BTreeMap::new(),
                working_dir: None,
            },
            unix: None,
        }
    }

    /// By name where no other model has it as a part, else by label.
    fn models_of(&self, request: &Request) -> (Option<String>, Vec<LabelRule>) {
        if request.models.is_empty() || request.gpus == 0 {
            return (None, Vec::new());
        }
        if let [only] = request.models.as_slice() {
            let part = only.to_lowercase();
            if self.models.iter().filter(|m| m.contains(&part)).count() == 1 {
                return (Some(part), Vec::new());
            }
        }
        let values = request.models.clone();
        (None, vec![LabelRule { key: MODEL.to_owned(), op: LabelOp::In, values }])
    }

    fn started(&mut self, now: UnixMillis, lease: Lease) -> Start {
        let attempt = lease.attempt;
        let master_addr = lease.places.first().map(|p| p.node.to_string()).unwrap_or_default();
        self.apply(now, Event::GangCommitted { attempt, master_addr, master_port: 1 });
        self.apply(now, Event::AttemptRunning { attempt });
        let places = lease.places.iter().map(|place| {
            let inventory = &self.cluster.nodes[&place.node].inventory;
            let mut devices: Vec<u32> = place
                .gpus
                .iter()
                .filter_map(|id| inventory.gpus.iter().find(|g| g.id == *id).map(|g| g.index))
                .collect();
            devices.sort_unstable();
            Placed { node: self.index[&place.node], devices }
        });
        let start = Start { job: index(attempt.job), places: places.collect() };
        self.running.insert(start.job, lease);
        start
    }
}

fn id(job: JobIndex) -> JobId {
    JobId(job as u64 + 1)
}

fn index(job: JobId) -> JobIndex {
    (job.0 - 1) as JobIndex
}

/// The trace's own names where they are names of hosts, else numbers in the same order.
fn node_ids(nodes: &[Node]) -> Vec<NodeId> {
    let own: Result<Vec<NodeId>, _> = nodes.iter().map(|n| NodeId::parse(&n.name)).collect();
    own.unwrap_or_else(|_| {
        let numbered = (0..nodes.len()).map(|i| NodeId::parse(&format!("node-{i:06}")));
        numbered.map(|id| id.expect("letters and digits")).collect()
    })
}

fn models(nodes: &[Node]) -> Vec<String> {
    let mut models: Vec<String> = nodes.iter().map(|n| n.model.to_lowercase()).collect();
    models.sort();
    models.dedup();
    models
}

fn inventory(id: &NodeId, node: &Node) -> NodeInventory {
    let gpu = |i: u32| Gpu {
        // The id must not hang on the node's name, which may be longer than an id can be.
        id: GpuId::parse(&format!("GPU-{:016x}-{i}", digest(id.as_str())))
            .expect("letters and digits"),
        index: i,
        model: node.model.clone(),
        memory: Bytes(0),
        pci_bus_id: format!("0000:{i:02x}:00.0"),
        numa: None,
        nvlink_group: None,
        nvlink_domain: None,
        nic: None,
        rail: None,
        mig: None,
    };
    NodeInventory {
        node: id.clone(),
        boot: BootId::parse("boot-1").expect("letters and digits"),
        agent_version: String::new(),
        address: id.to_string(),
        cpus: u32::try_from(node.cpu_milli).unwrap_or(u32::MAX),
        memory: Bytes(node.memory_mib << 20),
        driver_version: None,
        gpus: (0..node.gpus).map(gpu).collect(),
        nics: Vec::new(),
        labels: BTreeMap::from([(MODEL.to_owned(), node.model.clone())]),
        neighbours: Vec::new(),
    }
}

/// FNV-1a, so that ids are the same in every run.
fn digest(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Policy for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn submitted(&mut self, now: UnixMillis, submission: &Submission) {
        let spec = Arc::new(self.spec(now, submission));
        self.apply(now, Event::JobSubmitted { job: id(submission.job), key: None, spec });
    }

    fn ended(&mut self, now: UnixMillis, job: JobIndex) {
        let Some(lease) = self.running.remove(&job) else { return };
        let attempt: AttemptId = lease.attempt;
        for rank in 0..lease.places.len() as u32 {
            let end = TaskEnd::Exited { code: 0 };
            self.apply(now, Event::TaskEnded { attempt, rank, end });
        }
        for place in lease.places {
            let (node, occupied) = (place.node, BTreeMap::new());
            self.apply(now, Event::PlaceReleased { attempt, node, occupied });
        }
    }

    fn withdrawn(&mut self, now: UnixMillis, job: JobIndex) {
        let by = self.by.clone();
        self.apply(now, Event::CancelRequested { job: id(job), by });
    }

    fn starts(&mut self, now: UnixMillis) -> Vec<Start> {
        let mut leases = Vec::new();
        let mut promises = Vec::new();
        let done = round::round(&mut self.cluster, now, &mut |cluster, event| {
            match &event {
                Event::LeaseGranted { lease, .. } => leases.push(lease.clone()),
                Event::PromiseMade { job, at: Some(at), .. } => {
                    promises.push(Promise { job: index(*job), at: *at });
                }
                _ => {}
            }
            cluster.apply(&Stamped { at: now, event });
            cluster.take_outbox();
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(decision) = done;
        // The verifier is part of what ships: a placement it refuses is a bug, and must not be
        // counted as a wait.
        assert!(decision.refused.is_empty(), "the verifier refused: {:?}", decision.refused);
        assert!(decision.leave.is_empty(), "nobody is asked to leave among jobs of one tier");
        self.promises.append(&mut promises);
        self.wake = decision.wake;
        leases.into_iter().map(|lease| self.started(now, lease)).collect()
    }

    fn promises(&mut self) -> Vec<Promise> {
        std::mem::take(&mut self.promises)
    }

    fn wake(&self) -> Option<UnixMillis> {
        self.wake
    }
}
