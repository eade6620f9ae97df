//! Who reads the node, and when.
//!
//! In: a [`SamplerConfig`]. Out: a [`NodeSample`] at each beat, the node's inventory and the
//! conditions of its GPUs as they change, and process lists on request. One OS thread for each GPU
//! makes all NVML calls on it, one waits for XIDs, one reads NICs and the host; the beat waits
//! for none of them longer than half an interval. A thread that is stuck in a call is written off,
//! never joined and never replaced, and used again when the call returns. What a reading means
//! is `probe`'s work, sending it `telemetry`'s.

mod beat; // the supervisor: one sample an interval, whatever hangs
mod gpu; // the thread that owns one GPU
mod known; // GPUs seen in this boot, on disk
mod rows; // what is known of each GPU
mod watchers; // XIDs, NICs and host

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use tessera_model::sample::{GpuSample, HostSample, NicSample, NodeSample};
use tessera_model::{GpuCondition, GpuId, Nic, NodeInventory};
use tokio::sync::{oneshot, watch};

use crate::mailbox;
use crate::probe::NodeIdentity;
use crate::probe::nvml::{CallWatch, Cut, Driver, Fault, GpuFacts, Health, ProcessError};
use crate::probe::nvml_raw::DeviceKey;

/// NVML itself needs little; the driver's calls go to the kernel.
const STACK: usize = 256 << 10;

/// Whether to read the performance monitor of Hopper and later. DCGM reads the same counters, and
/// two readers disturb each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpmUse {
    /// Unless `nv-hostengine` runs when the sampler starts.
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone)]
pub struct SamplerConfig {
    pub identity: NodeIdentity,
    /// `None`: the driver's own.
    pub nvml_library: Option<PathBuf>,
    /// `/sys` on a real node.
    pub sysfs: PathBuf,
    /// Where to read `NVRM: Xid` lines, next to NVML's events; a file that cannot be read is no error.
    pub kernel_log: Option<PathBuf>,
    /// Where to remember GPUs, so that one which is lost stays listed over a restart of the agent.
    pub known_gpus: Option<PathBuf>,
    /// Number of the first beat; `Spool::next_sequence`.
    pub first_sequence: u64,
    pub interval: Duration,
    /// Between two readings of processes, ECC and remapped rows.
    pub slow_every: Duration,
    /// A call that takes longer makes its GPU unresponsive.
    pub call_deadline: Duration,
    /// Between two tries to reach a GPU that is lost or waits for a reset.
    pub reprobe_every: Duration,
    /// Samples that wait for the uplink; the oldest is dropped when there are more.
    pub mailbox: usize,
    pub gpm: GpmUse,
}

impl SamplerConfig {
    /// One beat a second. With a library of one's own the node is taken for a simulated one, and the
    /// kernel log of this machine has nothing to say about it.
    pub fn new(identity: NodeIdentity, nvml_library: Option<PathBuf>) -> Self {
        Self {
            identity,
            kernel_log: nvml_library.is_none().then(|| PathBuf::from("/dev/kmsg")),
            nvml_library,
            sysfs: PathBuf::from("/sys"),
            known_gpus: None,
            first_sequence: 1,
            interval: Duration::from_secs(1),
            slow_every: Duration::from_secs(10),
            call_deadline: Duration::from_secs(2),
            reprobe_every: Duration::from_secs(30),
            mailbox: 120,
            gpm: GpmUse::Auto,
        }
    }
}

/// A GPU's process list could not be had in time, or at all: nobody knows what runs on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{gpu} gives no process list: {why}")]
pub struct Unresponsive {
    pub gpu: GpuId,
    pub why: String,
}

/// The running threads. When it goes they end by themselves; none is waited for.
#[derive(Debug)]
pub struct Sampler {
    shared: Arc<Shared>,
    inventory: watch::Receiver<NodeInventory>,
    conditions: watch::Receiver<BTreeMap<GpuId, GpuCondition>>,
    samples: mailbox::Receiver<NodeSample>,
}

impl Sampler {
    /// Starts the threads. Blocks until each GPU has said who it is, at most twice the call deadline: a
    /// GPU that is slower joins the inventory later.
    pub fn start(config: SamplerConfig) -> std::io::Result<Self> {
        let (news, heard) = crossbeam_channel::unbounded();
        let (out, samples) = mailbox::bounded(config.mailbox);
        let shared = Arc::new(Shared {
            driver: Driver::new(config.nvml_library.clone()),
            slots: Mutex::new(Vec::new()),
            names: Mutex::new(HashMap::new()),
            stop: AtomicBool::new(false),
            news,
            config,
        });
        let mut beat = beat::Beat::new(shared.clone(), heard, out);
        let (inventory, conditions) = beat.watches();
        watchers::start(&shared)?;
        gpu::start(&shared)?;
        beat.first();
        spawn("beat", move || beat.run())?;
        Ok(Self { shared, inventory, conditions, samples })
    }

    /// What the node has; changes when a GPU appears or a NIC's link does.
    pub fn inventory(&self) -> watch::Receiver<NodeInventory> {
        self.inventory.clone()
    }

    /// The GPUs that are not healthy.
    pub fn conditions(&self) -> watch::Receiver<BTreeMap<GpuId, GpuCondition>> {
        self.conditions.clone()
    }

    /// The beats' samples. There is one box: two receivers would share its content.
    pub fn samples(&self) -> mailbox::Receiver<NodeSample> {
        self.samples.clone()
    }

    /// Host pids on each of `gpus`, asked now, all at once. A GPU that is lost runs nothing.
    pub async fn processes(&self, gpus: &[GpuId]) -> Result<Vec<(GpuId, Vec<u32>)>, Unresponsive> {
        let asked: Vec<_> = gpus
            .iter()
            .map(|gpu| {
                let (reply, answer) = oneshot::channel();
                let sent = self.ask(gpu, move |result| drop(reply.send(result)));
                (gpu, sent.map(|()| answer))
            })
            .collect();
        let deadline = self.shared.config.call_deadline;
        let mut lists = Vec::with_capacity(gpus.len());
        for (gpu, sent) in asked {
            let answer = match tokio::time::timeout(deadline, sent?).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) | Err(_) => Err(no_answer(deadline)),
            };
            let pids = answer.map_err(|why| Unresponsive { gpu: gpu.clone(), why })?;
            lists.push((gpu.clone(), pids));
        }
        Ok(lists)
    }

    /// The same for one GPU and for threads that may block, up to the call deadline.
    pub fn processes_on(&self, gpu: &GpuId) -> Result<Vec<u32>, Unresponsive> {
        let deadline = self.shared.config.call_deadline;
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.ask(gpu, move |result| drop(reply.try_send(result)))?;
        answer
            .recv_timeout(deadline)
            .unwrap_or_else(|_| Err(no_answer(deadline)))
            .map_err(|why| Unresponsive { gpu: gpu.clone(), why })
    }

    fn ask(
        &self,
        gpu: &GpuId,
        reply: impl FnOnce(Result<Vec<u32>, String>) + Send + 'static,
    ) -> Result<(), Unresponsive> {
        let fail = |why: String| Err(Unresponsive { gpu: gpu.clone(), why });
        let slot = self.shared.slots.lock().iter().find(|s| s.is(gpu)).cloned();
        let Some(slot) = slot else {
            // Listed, and not found since the agent started: it fell off the bus before that.
            return match self.conditions.borrow().get(gpu) {
                Some(GpuCondition::Lost) => {
                    reply(Ok(Vec::new()));
                    Ok(())
                }
                _ => fail("there is no such GPU on this node".to_owned()),
            };
        };
        if let Some(call) = slot.watch.overdue(self.shared.config.call_deadline) {
            return fail(format!("{call} has not returned"));
        }
        match slot.commands.try_send(Command::Processes(Box::new(reply))) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => fail("too many requests wait for it".to_owned()),
            Err(TrySendError::Disconnected(_)) => fail("its thread has ended".to_owned()),
        }
    }
}

fn no_answer(deadline: Duration) -> String {
    format!("no answer within {} ms", deadline.as_millis())
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.slots.lock().clear();
        let _ = self.shared.news.send(News::Stop);
    }
}

/// What all threads see.
#[derive(Debug)]
struct Shared {
    config: SamplerConfig,
    driver: Driver,
    slots: Mutex<Vec<Arc<Slot>>>,
    /// Whose event it is, by the opening of NVML and the device: all instances of one that is cut.
    names: Mutex<HashMap<(u32, DeviceKey), Vec<GpuId>>>,
    stop: AtomicBool,
    /// To the beat. Not bounded, since each thread sends a handful for each beat it was sent, and none
    /// when the beat is gone.
    news: Sender<News>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }
}

/// A thread that owns a GPU or a MIG instance, as the others see it.
#[derive(Debug)]
struct Slot {
    /// Which thread: a GPU's index, or beyond all of them.
    index: u32,
    watch: Arc<CallWatch>,
    /// `None` until it has said its UUID.
    id: Mutex<Option<GpuId>>,
    commands: Sender<Command>,
}

impl Slot {
    fn is(&self, gpu: &GpuId) -> bool {
        self.id.lock().as_ref() == Some(gpu)
    }
}

type Reply = Box<dyn FnOnce(Result<Vec<u32>, String>) + Send>;

enum Command {
    Beat { number: u64, slow: bool },
    Processes(Reply),
}

/// What a thread tells the beat.
#[derive(Debug)]
enum News {
    /// The driver is open and has so many GPUs, a thread for each.
    Driver {
        version: Option<String>,
        gpus: usize,
    },
    /// A GPU is cut into instances, each with a thread of its own from now on.
    Cut {
        index: u32,
        cut: Cut,
    },
    /// There is no driver, or none that can be opened now.
    NoDriver,
    /// A GPU has said who it is and how it is; `reopened` after the driver was loaded anew.
    Facts {
        index: u32,
        facts: Box<GpuFacts>,
        reopened: bool,
        health: Result<Health, Fault>,
    },
    /// The answer to a beat.
    Reading {
        index: u32,
        number: u64,
        answer: Box<Result<GpuSample, Fault>>,
    },
    Health {
        index: u32,
        health: Health,
    },
    Xid {
        gpu: GpuId,
        code: u32,
    },
    /// The kernel log names a GPU by its PCI slot, `0000:1a:00`.
    KernelXid {
        slot: String,
        code: u32,
    },
    /// Something happened to a GPU that a slow round will tell.
    Look {
        gpu: GpuId,
    },
    Nics(Vec<Nic>),
    Node {
        number: u64,
        nics: Vec<NicSample>,
        host: HostSample,
    },
    Stop,
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    // The handle is dropped: a thread may hang in the driver for ever.
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run).map(drop)
}

/// The NIC thread takes beats like a GPU's.
fn beats() -> (Sender<Command>, Receiver<Command>) {
    crossbeam_channel::bounded(4)
}

fn problem(error: ProcessError) -> String {
    match error {
        ProcessError::Fault(fault) => format!("{fault:?}"),
        ProcessError::Failed(call) => format!("{call} failed"),
    }
}
