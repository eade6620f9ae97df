//! A simulated node: its hardware, its disk, the processes on it, and the agent.
//!
//! Processes are the truth the promises are checked against. They outlive the agent, as they do
//! under shims; a reboot ends them. The disk outlives both, unless it is lost, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tessera_core::Order;
use tessera_core::door::agents::{Finished, Hello, Running};
use tessera_model::{
    AttemptId, BootId, Bytes, Epoch, Gpu, GpuCondition, GpuId, JobSpec, Lease, NodeId,
    NodeInventory, SessionId, TaskEnd,
};

use crate::rng::Rng;

/// One connection from an agent to the scheduler. They only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

#[derive(Debug)]
pub struct Machine {
    pub id: NodeId,
    pub inventory: NodeInventory,
    pub disk: Disk,
    pub processes: BTreeMap<(AttemptId, u32), Process>,
    pub conditions: BTreeMap<GpuId, GpuCondition>,
    /// The GPU that did not come back from the last reboot.
    pub missing: Option<Gpu>,
    pub powered: bool,
    pub gone: bool,
    pub boots: u64,
    pub agent: Option<Agent>,
    /// Only a planted bug reads it.
    pub last_session: Option<SessionId>,
    pub link: Link,
    /// The last orders it was sent.
    pub sent: VecDeque<(Epoch, Order)>,
}

/// The way to the scheduler and back. Times are virtual milliseconds.
#[derive(Debug, Default)]
pub struct Link {
    pub up_cut_until: u64,
    pub down_cut_until: u64,
    /// When the latest message of the present connection arrives: none overtakes another.
    pub up_last: u64,
    pub down_last: u64,
}

#[derive(Debug, Default)]
pub struct Disk {
    /// Highest epoch obeyed.
    pub epoch: Epoch,
    /// Attempts that ended here or were told to; they never start here again.
    pub tombstones: BTreeSet<AttemptId>,
    pub records: BTreeMap<AttemptId, Record>,
}

#[derive(Debug)]
pub struct Agent {
    pub session: SessionId,
    pub conn: Option<ConnId>,
    /// Until when leases run, on the boot clock; `None` before the first grant.
    pub term: Option<u64>,
    /// When the scheduler last answered a heartbeat.
    pub answered: u64,
    /// Tells this life's timers from those of earlier ones.
    pub life: u64,
}

/// What an agent keeps of an attempt, in a folder on its disk.
#[derive(Debug, Clone)]
pub struct Record {
    pub spec: Arc<JobSpec>,
    pub lease: Arc<Lease>,
    pub place: usize,
    pub phase: Phase,
    pub ended: BTreeMap<u32, TaskEnd>,
    pub occupied: BTreeMap<GpuId, Vec<u32>>,
    pub stopping: bool,
    /// Told to start, but under a lease that no grant has begun yet.
    pub waits_for_grant: bool,
    /// When its shims stop it; `None` for an attempt without a lease.
    pub deadline: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Preparing,
    Prepared,
    Running,
    Finished,
}

/// A process of a job. It exists or it does not; nobody's opinion of it matters.
#[derive(Debug, Clone)]
pub struct Process {
    pub run: u64,
    pub gpus: Vec<GpuId>,
    /// How it will end if nothing comes in its way.
    pub end: TaskEnd,
}

impl Record {
    pub fn gpus(&self) -> &[GpuId] {
        &self.lease.places[self.place].gpus
    }

    pub fn ranks(&self) -> std::ops::Range<u32> {
        let tasks = self.spec.gang.tasks_per_node;
        let first = self.place as u32 * tasks;
        first..first + tasks
    }

    pub fn all_ended(&self) -> bool {
        self.ranks().all(|r| self.ended.contains_key(&r))
    }
}

impl Machine {
    pub fn new(index: usize, gpus: u32, model: &str, rng: &mut Rng) -> Self {
        let id = NodeId::parse(&format!("n{index}")).expect("a letter and a number is a name");
        let gpu = |i: u32| Gpu {
            id: GpuId::parse(&format!("GPU-{index}-{i}")).expect("letters and numbers are a UUID"),
            index: i,
            model: model.to_owned(),
            memory: Bytes::gib(80),
            pci_bus_id: format!("0000:{i:02x}:00.0"),
            numa: Some(i / 2),
            nvlink_group: (gpus > 2).then_some(i / 4),
            nvlink_domain: None,
            nic: None,
            rail: None,
            mig: None,
        };
        let inventory = NodeInventory {
            node: id.clone(),
            boot: boot_id(index, 0),
            agent_version: "sim".to_owned(),
            address: format!("10.0.0.{index}"),
            cpus: 8 * rng.between(1, 3) as u32,
            memory: Bytes::gib(256),
            driver_version: Some("580.0".to_owned()),
            gpus: (0..gpus).map(gpu).collect(),
            nics: Vec::new(),
            labels: BTreeMap::new(),
            neighbours: Vec::new(),
        };
        Self {
            id,
            inventory,
            disk: Disk::default(),
            processes: BTreeMap::new(),
            conditions: BTreeMap::new(),
            missing: None,
            powered: true,
            gone: false,
            boots: 0,
            agent: None,
            last_session: None,
            link: Link::default(),
            sent: VecDeque::new(),
        }
    }

    /// Everything stops. What the shims had not written down is not known afterwards. Gives the
    /// processes that vanished.
    pub fn reboot(
        &mut self,
        index: usize,
        disk_lost: bool,
        gpu_missing: bool,
    ) -> Vec<(AttemptId, u32)> {
        self.inventory.gpus.extend(self.missing.take());
        if gpu_missing {
            self.missing = self.inventory.gpus.pop();
        }
        self.powered = false;
        self.agent = None;
        self.boots += 1;
        self.inventory.boot = boot_id(index, self.boots);
        self.conditions.clear();
        let vanished = std::mem::take(&mut self.processes).into_keys().collect();
        if disk_lost {
            self.disk = Disk::default();
        }
        for (id, record) in &mut self.disk.records {
            if record.phase == Phase::Running {
                for rank in record.ranks() {
                    record.ended.entry(rank).or_insert(TaskEnd::Unknown);
                }
            }
            self.disk.tombstones.insert(*id);
            record.phase = Phase::Finished;
        }
        vanished
    }

    pub fn hello(&self, session: SessionId, hide_running: bool) -> Hello {
        let ended = |r: &Record| r.ended.iter().map(|(rank, e)| (*rank, e.clone())).collect();
        let mut hello = Hello {
            session,
            epoch: self.disk.epoch,
            inventory: self.inventory.clone(),
            conditions: self.conditions.clone(),
            running: Vec::new(),
            finished: Vec::new(),
        };
        for (attempt, record) in &self.disk.records {
            match record.phase {
                Phase::Preparing => {}
                Phase::Finished => hello.finished.push(Finished {
                    attempt: *attempt,
                    ended: ended(record),
                    occupied: record.occupied.clone(),
                }),
                Phase::Prepared | Phase::Running if !hide_running => hello.running.push(Running {
                    attempt: *attempt,
                    started: record.phase == Phase::Running,
                    master_port: PORT,
                    ended: ended(record),
                }),
                Phase::Prepared | Phase::Running => {}
            }
        }
        hello
    }
}

pub const PORT: u16 = 29_500;

fn boot_id(index: usize, boots: u64) -> BootId {
    BootId::parse(&format!("boot-{index}-{boots}")).expect("letters and numbers are a boot id")
}
