//! The thread that owns one GPU, and the one that finds them.
//!
//! In: commands from the beat and from whoever wants a process list. Out: news. Every NVML call on
//! the GPU is made here, under its watch, so that a call which does not return is seen and
//! stops nothing else.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nvml_wrapper::error::NvmlError;
use parking_lot::Mutex;
use tessera_model::GpuId;
use tessera_model::sample::GpuSample;

use super::{Command, GpmUse, News, Reply, Shared, Slot, beats, problem, spawn};
use crate::probe::host;
use crate::probe::nvml::{
    self, CallWatch, Fault, GpuReader, Open, ProcessError, ReadOptions, Which,
};

/// Indices of threads from here on are MIG instances'.
const INSTANCES_FROM: u32 = 1_000;
/// Between two looks for a driver on a node that has none yet.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Finds the driver and starts a thread for each of its GPUs. Opening a library may hang as well.
pub fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = shared.clone();
    spawn("driver", move || {
        loop {
            match find(&shared) {
                Ok(true) => return,
                Ok(false) => shared.tell(News::NoDriver),
                Err(error) => {
                    tracing::error!(%error, "no thread could be started for a GPU");
                    shared.tell(News::NoDriver);
                }
            }
            let until = Instant::now() + LOOK_AGAIN;
            while Instant::now() < until {
                if shared.stopped() {
                    return;
                }
                thread::sleep(Duration::from_millis(250));
            }
        }
    })
}

/// True once there are GPUs and their threads run.
fn find(shared: &Arc<Shared>) -> std::io::Result<bool> {
    let open = match shared.driver.open(0) {
        Ok(open) => open,
        Err(error) => {
            // A node without GPUs is a fine node; one with a library of its choice expects it.
            match (&shared.config.nvml_library, &error) {
                (Some(path), NvmlError::LibloadingError(_)) => {
                    tracing::warn!(path = %path.display(), %error, "the NVML library cannot be loaded");
                }
                _ => tracing::debug!(%error, "no NVIDIA driver"),
            }
            return Ok(false);
        }
    };
    let count = open.nvml.device_count().unwrap_or(0);
    if count == 0 {
        return Ok(false);
    }
    let options = ReadOptions {
        gpm: match shared.config.gpm {
            GpmUse::On => true,
            GpmUse::Off => false,
            GpmUse::Auto => !host::runs("nv-hostengine"),
        },
        cpu_words: host::cpu_words(&shared.config.sysfs),
    };
    for index in 0..count {
        if shared.stopped() {
            return Ok(true);
        }
        employ(shared, &open, index, Which::Index(index), options)?;
    }
    let version = open.driver_version.clone();
    shared.tell(News::Driver { version, gpus: usize::try_from(count).unwrap_or(0) });
    Ok(true)
}

/// Starts a thread for a GPU or an instance of one.
fn employ(
    shared: &Arc<Shared>,
    open: &Open,
    index: u32,
    which: Which,
    options: ReadOptions,
) -> std::io::Result<()> {
    let (commands, inbox) = beats();
    let slot = Arc::new(Slot {
        index,
        watch: Arc::new(CallWatch::default()),
        id: Mutex::new(None),
        commands,
    });
    let worker = Worker {
        shared: shared.clone(),
        watch: slot.watch.clone(),
        slot: Arc::downgrade(&slot),
        index,
        which,
        options,
        state: State::Unknown,
        tried: None,
        gone: 0,
    };
    shared.slots.lock().push(slot);
    let open = open.clone();
    spawn(&format!("gpu-{index}"), move || worker.run(&open, &inbox))
}

/// Number of the thread of an instance: different from that of any GPU.
fn instance_index(gpu: u32, number: u32) -> u32 {
    (number + 1).saturating_mul(INSTANCES_FROM).saturating_add(gpu)
}

fn slow_round(shared: &Shared, index: u32, reader: &mut GpuReader) -> Result<(), Fault> {
    let before = reader.facts().domain.clone();
    let health = reader.slow()?;
    if reader.facts().domain == before {
        shared.tell(News::Health { index, health });
    } else {
        let facts = Box::new(reader.facts().clone());
        shared.tell(News::Facts { index, facts, reopened: false, health: Ok(health) });
    }
    Ok(())
}

struct Worker {
    shared: Arc<Shared>,
    watch: Arc<CallWatch>,
    /// Weak: the channel of commands ends when the sampler lets go of its slots.
    slot: std::sync::Weak<Slot>,
    index: u32,
    which: Which,
    options: ReadOptions,
    state: State,
    /// When the GPU was last tried in vain.
    tried: Option<Instant>,
    /// The opening of NVML under which the driver went; only a newer one will do.
    gone: u32,
}

enum State {
    /// Has not said its UUID yet.
    Unknown,
    Read(Box<GpuReader>),
    Broken {
        id: GpuId,
        generation: u32,
        fault: Fault,
    },
}

impl Worker {
    fn run(mut self, open: &Open, inbox: &Receiver<Command>) {
        if self.is_cut(open) {
            return;
        }
        if let Err(fault) = self.open(open, &self.which.clone(), false) {
            tracing::warn!(index = self.index, ?fault, "GPU cannot be used");
            self.tried = Some(Instant::now());
            if fault == Fault::DriverGone {
                self.gone = open.generation;
            }
            let answer = Box::new(Err(fault));
            self.shared.tell(News::Reading { index: self.index, number: 0, answer });
        }
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Beat { number, slow } => self.beat(number, slow),
                Command::Processes(reply) => self.processes(reply),
            }
        }
    }

    /// True when the GPU is cut: its instances have threads of their own then, and it has none.
    fn is_cut(&self, open: &Open) -> bool {
        let Which::Index(gpu) = self.which else { return false };
        let Some(cut) = nvml::cut(&self.watch, open, gpu) else { return false };
        if cut.instances.is_empty() {
            tracing::warn!(gpu = %cut.gpu, "MIG is on and the GPU is not cut: nothing can run there");
        }
        let numbers: Vec<u32> = cut.instances.iter().map(|(number, _)| *number).collect();
        self.shared.slots.lock().retain(|slot| slot.index != self.index);
        self.shared.tell(News::Cut { index: self.index, cut });
        for number in numbers {
            let which = Which::Instance { gpu, number };
            let index = instance_index(gpu, number);
            if let Err(error) = employ(&self.shared, open, index, which, self.options) {
                tracing::error!(gpu, number, %error, "no thread could be started for an instance");
            }
        }
        true
    }

    fn beat(&mut self, number: u64, slow: bool) {
        self.recover();
        let mut answer = self.read(slow);
        if matches!(answer, Err(Fault::StaleHandle)) {
            // Nothing is wrong with the GPU until a new handle says the same.
            self.recover();
            answer = self.read(slow);
        }
        self.shared.tell(News::Reading { index: self.index, number, answer: Box::new(answer) });
    }

    fn read(&mut self, slow: bool) -> Result<GpuSample, Fault> {
        let reader = match &mut self.state {
            State::Unknown => return Err(Fault::Lost),
            State::Broken { fault, .. } => return Err(*fault),
            State::Read(reader) => reader,
        };
        let answer = if slow { slow_round(&self.shared, self.index, reader) } else { Ok(()) };
        let answer = answer.and_then(|()| reader.fast());
        if let Err(fault) = &answer {
            self.break_down(*fault);
        }
        answer
    }

    fn processes(&mut self, reply: Reply) {
        self.recover();
        reply(match &mut self.state {
            State::Read(reader) => match reader.processes() {
                // What fell off the bus runs nothing, and will never say so.
                Err(ProcessError::Fault(Fault::Lost)) => Ok(Vec::new()),
                other => other.map_err(problem),
            },
            State::Broken { fault: Fault::Lost, .. } => Ok(Vec::new()),
            State::Broken { fault, .. } => Err(problem(ProcessError::Fault(*fault))),
            State::Unknown => Err("it has not said who it is".to_owned()),
        });
    }

    fn break_down(&mut self, fault: Fault) {
        if let State::Read(reader) = &self.state {
            tracing::warn!(gpu = %reader.facts().id, ?fault, "GPU cannot be read");
            let (id, generation) = (reader.facts().id.clone(), reader.generation());
            // A driver that comes back is noticed at once; a lost GPU is left alone for a while.
            self.tried = match fault {
                Fault::DriverGone => {
                    self.gone = generation;
                    None
                }
                Fault::StaleHandle => None,
                Fault::Lost | Fault::ResetRequired => Some(Instant::now()),
            };
            self.state = State::Broken { id, generation, fault };
        }
    }

    /// Tries a GPU that cannot be read again, when it is time.
    fn recover(&mut self) {
        let every = match &self.state {
            State::Read(_) => return,
            // The driver counts its own tries.
            State::Broken { fault: Fault::DriverGone, .. } => Duration::ZERO,
            State::Broken { .. } | State::Unknown => self.shared.config.reprobe_every,
        };
        if self.tried.is_some_and(|tried| tried.elapsed() < every) {
            return;
        }
        self.tried = Some(Instant::now());
        let (which, seen) = match &self.state {
            State::Broken { id, generation, .. } => (Which::Id(id.clone()), *generation),
            State::Unknown | State::Read(_) => (self.which.clone(), 0),
        };
        let Ok(open) = self.watch.during("nvmlInit_v2", || self.shared.driver.open(self.gone))
        else {
            return;
        };
        // One that could not be asked at the start may be cut; its thread ends with this then, since
        // nobody sends it anything any more.
        if matches!(self.state, State::Unknown) && self.is_cut(&open) {
            return;
        }
        let reopened = seen != 0 && open.generation > seen;
        if let Err(fault) = self.open(&open, &which, reopened) {
            if let State::Broken { fault: known, .. } = &mut self.state {
                *known = fault;
            }
            if fault == Fault::DriverGone {
                self.gone = open.generation;
            }
        }
    }

    fn open(&mut self, open: &Open, which: &Which, reopened: bool) -> Result<(), Fault> {
        let mut reader = GpuReader::open(self.watch.clone(), open.clone(), which, self.options)?;
        // Who it is can be told while it is of no use: one reading says whether it is.
        let health = reader.slow();
        let facts = reader.facts().clone();
        tracing::info!(gpu = %facts.id, index = facts.index, model = facts.model, "GPU found");
        let mut names = self.shared.names.lock();
        let named = names.entry((open.generation, reader.key())).or_default();
        if !named.contains(&facts.id) {
            named.push(facts.id.clone());
        }
        drop(names);
        if let Some(slot) = self.slot.upgrade() {
            *slot.id.lock() = Some(facts.id.clone());
        }
        let id = facts.id.clone();
        let (index, facts) = (self.index, Box::new(facts));
        self.shared.tell(News::Facts { index, facts, reopened, health });
        self.state = match health {
            Ok(_) => State::Read(Box::new(reader)),
            Err(fault) => State::Broken { id, generation: open.generation, fault },
        };
        health.map(drop)
    }
}
