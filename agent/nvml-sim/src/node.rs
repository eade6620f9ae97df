//! One simulated node: its hardware, its faults, its meters and its clock.
//!
//! In: a node directory. Out: the state the exported functions read. Whoever calls does what is due
//! ([`Node::tick`]); no thread of ours exists. Nothing here sleeps, and no lock is held across a
//! sleep elsewhere, so a hanging GPU holds up its own callers only.

pub mod broken; // faults as they begin and end
pub mod keep; // what outlives the process
pub mod users; // who uses the GPUs

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::clock::{self, Clock};
use crate::events::Events;
use crate::fault::{Faults, GpuEffects, NodeEffects};
use crate::hardware::{GpuHw, Hardware};
use crate::identity;
use crate::journal::Journal;
use crate::load::{Activity, Load};
use crate::meter::{Meter, Totals};
use crate::nics::Nics;
use crate::node::broken::{CONTROL_LOOK, ControlWatch, add_fault, entry_id};
use crate::node::keep::{HOUSEKEEPING, Keeper, read_counters};
use crate::node::users::Account;
use crate::procs::Procs;
use crate::scenario::{Control, GpuSel, LoadSpec, Scenario, Span};

#[derive(Debug)]
struct LoadEntry {
    gpus: Vec<usize>,
    load: Load,
    mem: f64,
    at: f64,
    until: f64,
}

#[derive(Debug)]
pub struct Gpu {
    meter: Mutex<(Meter, f64)>,
    fx: RwLock<Arc<GpuEffects>>,
    calls: AtomicU64,
    trigger: AtomicU64,
    /// What its processes ask for, with the time each began.
    jobs: RwLock<Arc<Vec<(Load, f64)>>>,
    pub accounting: AtomicBool,
    pub accounts: Mutex<Vec<Account>>,
}

#[derive(Debug)]
pub struct Node {
    pub dir: PathBuf,
    pub scenario: Scenario,
    pub hw: Hardware,
    pub clock: Clock,
    pub gpus: Vec<Gpu>,
    pub events: Events,
    node_fx: RwLock<Arc<NodeEffects>>,
    faults: Mutex<Faults>,
    journal: Mutex<Journal>,
    loads: RwLock<Arc<Vec<LoadEntry>>>,
    procs: Mutex<Procs>,
    control: Mutex<ControlWatch>,
    keeper: Mutex<Keeper>,
    calls: AtomicU64,
    trigger: AtomicU64,
    reloads: AtomicU64,
    // The next times of things to do, nanoseconds since the epoch.
    next_fault: AtomicU64,
    next_control: AtomicU64,
    next_keep: AtomicU64,
    next_search: AtomicU64,
    not_supported: HashSet<String>,
}

fn nanos(secs: f64) -> u64 {
    (secs.max(0.0) * 1e9) as u64
}

impl Node {
    /// Reads the node in `dir`. The error says what is wrong with it, for people.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join("node.toml");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let scenario = Scenario::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let hw = Hardware::of(&scenario.node);
        let clock = Clock::new(scenario.node.epoch_unix_ms.unwrap_or_else(|| clock::epoch(dir)));
        let t = clock.secs();
        let kept = read_counters(dir, hw.gpus.len());
        let gpus: Vec<Gpu> = hw
            .gpus
            .iter()
            .map(|gpu| {
                let seed = identity::hash(scenario.node.seed, gpu.uuid.as_bytes());
                let mut totals = Totals::default();
                let mut since = f64::NEG_INFINITY;
                if let Some((then, epoch, old)) =
                    kept.as_ref().map(|k| (k.t, k.driver_epoch, k.gpus[gpu.index]))
                {
                    totals = old;
                    // Nobody looked meanwhile: the GPU drew at least its idle power.
                    totals.energy_mj += (t - then).max(0.0) * gpu.spec.idle_w * 1000.0;
                    since = epoch;
                }
                let meter = Meter::new(gpu.spec, seed, nic_bps(&hw), t, totals);
                Gpu {
                    meter: Mutex::new((meter, since)),
                    fx: RwLock::default(),
                    calls: AtomicU64::new(0),
                    trigger: AtomicU64::new(u64::MAX),
                    jobs: RwLock::default(),
                    accounting: AtomicBool::new(false),
                    accounts: Mutex::default(),
                }
            })
            .collect();
        let first: Vec<Totals> = gpus.iter().map(|g| g.meter.lock().0.totals).collect();
        let journal = Journal::open(dir, clock.epoch_unix_ms);
        let mut faults = Faults::new(hw.gpus.len(), scenario.node.seed, scenario.node.clock_rate);
        for (i, spec) in scenario.fault.iter().enumerate() {
            let id = entry_id('s', i, &toml::to_string(spec).unwrap_or_default());
            add_fault(&mut faults, &journal, &clock, id, spec, 0.0);
        }
        let loads = load_entries(&scenario, &Control::default());
        let not_supported = scenario.node.not_supported.iter().cloned().collect();
        let node = Self {
            gpus,
            events: Events::default(),
            node_fx: RwLock::new(Arc::new(NodeEffects {
                driver_epoch: f64::NEG_INFINITY,
                ..NodeEffects::default()
            })),
            faults: Mutex::new(faults),
            journal: Mutex::new(journal),
            loads: RwLock::new(Arc::new(loads)),
            procs: Mutex::default(),
            control: Mutex::default(),
            keeper: Mutex::new(Keeper {
                lock: None,
                nics: Nics::new(dir.join("sys"), &hw),
                began: t,
                first,
                rounds: 0,
            }),
            calls: AtomicU64::new(0),
            trigger: AtomicU64::new(u64::MAX),
            reloads: AtomicU64::new(0),
            next_fault: AtomicU64::new(0),
            next_control: AtomicU64::new(0),
            next_keep: AtomicU64::new(nanos(t) + HOUSEKEEPING.as_nanos() as u64),
            next_search: AtomicU64::new(0),
            not_supported,
            dir: dir.to_owned(),
            scenario,
            hw,
            clock,
        };
        node.tick();
        Ok(node)
    }

    /// Does what has fallen due. Cheap when nothing has.
    pub fn tick(&self) {
        let now = self.clock.now().as_nanos() as u64;
        if now >= self.next_control.load(Relaxed) {
            self.look_at_control();
        }
        if now >= self.next_fault.load(Relaxed) {
            self.run_faults();
        }
        if now >= self.next_keep.load(Relaxed) {
            self.keep_house();
        }
    }

    /// How long a waiter may sleep before it should look again.
    pub fn until_next(&self) -> Duration {
        let now = self.clock.now().as_nanos() as u64;
        let next = self.next_fault.load(Relaxed).min(self.next_control.load(Relaxed));
        Duration::from_nanos(next.saturating_sub(now))
            .clamp(Duration::from_micros(200), CONTROL_LOOK)
    }

    pub fn effects(&self) -> Arc<NodeEffects> {
        self.node_fx.read().clone()
    }

    pub fn gpu_effects(&self, gpu: usize) -> Arc<GpuEffects> {
        self.gpus[gpu].fx.read().clone()
    }

    /// Counts driver reloads: who was there before one has to initialise again.
    pub fn driver_generation(&self) -> u64 {
        self.reloads.load(Relaxed)
    }

    pub fn answers_not_supported(&self, function: &str) -> bool {
        self.not_supported.contains(function)
    }

    /// Counts a call, and sets off a fault that has waited for it.
    pub fn count_call(&self, gpu: Option<usize>) {
        let mut due = self.calls.fetch_add(1, Relaxed) + 1 >= self.trigger.load(Relaxed);
        if let Some(gpu) = gpu.map(|g| &self.gpus[g]) {
            due |= gpu.calls.fetch_add(1, Relaxed) + 1 >= gpu.trigger.load(Relaxed);
        }
        if due {
            self.run_faults();
        }
    }

    /// The GPUs that are counted, in order.
    pub fn visible(&self) -> Vec<usize> {
        (0..self.gpus.len()).filter(|g| !self.gpu_effects(*g).vanished).collect()
    }

    pub fn gpu_hw(&self, gpu: usize) -> &GpuHw {
        &self.hw.gpus[gpu]
    }

    /// A GPU's meter, counted up to now.
    pub fn meter(&self, gpu: usize) -> parking_lot::MappedMutexGuard<'_, Meter> {
        self.search_processes();
        let fx = self.gpu_effects(gpu);
        let driver_epoch = self.effects().driver_epoch;
        let loads = self.loads.read().clone();
        let jobs = self.gpus[gpu].jobs.read().clone();
        let rate = self.scenario.node.clock_rate;
        let mut guard = self.gpus[gpu].meter.lock();
        if guard.1 < driver_epoch {
            guard.0.reset(driver_epoch);
            guard.1 = driver_epoch;
        }
        let now = self.clock.secs();
        guard.0.advance(now, fx.throttle, |t| {
            let from_jobs = jobs
                .iter()
                .map(|(load, since)| load.at((t - since) * rate))
                .fold(Activity::default(), Activity::plus);
            active_load(&loads, gpu, t)
                .map_or(from_jobs, |e| e.load.at((t - e.at) * rate).max(from_jobs))
        });
        MutexGuard::map(guard, |g| &mut g.0)
    }

    /// When the GPU's volatile counters began, seconds since the epoch.
    pub fn counting_since(&self) -> f64 {
        self.effects().driver_epoch.max(0.0)
    }
}

/// Bytes a second a rail NIC carries one way.
fn nic_bps(hw: &Hardware) -> f64 {
    hw.nics.first().map_or(0.0, |n| f64::from(n.gbps) * 1e9 / 8.0)
}

fn load_entries(scenario: &Scenario, control: &Control) -> Vec<LoadEntry> {
    let gpus = Hardware::of(&scenario.node).gpus.len();
    let rate = scenario.node.clock_rate;
    let real = |s: &Span| s.0.as_secs_f64() / rate;
    let entry = |spec: &LoadSpec| LoadEntry {
        gpus: match &spec.gpu {
            None => (0..gpus).collect(),
            Some(GpuSel::One(g)) => vec![*g],
            Some(GpuSel::Many(many)) => many.clone(),
            Some(GpuSel::Word(_)) if gpus == 0 => Vec::new(),
            Some(GpuSel::Word(_)) => {
                vec![(identity::mix(scenario.node.seed) % gpus as u64) as usize]
            }
        },
        load: Load {
            shape: spec.shape,
            level: spec.level,
            period: spec
                .period
                .map_or(spec.shape.default_period(), |p| p.0.as_secs_f64().max(0.001)),
        },
        mem: spec.mem.unwrap_or(if spec.shape == crate::load::Shape::Idle { 0.0 } else { 0.7 }),
        at: spec.at.as_ref().map_or(0.0, real),
        until: spec.until.as_ref().map_or(f64::INFINITY, real),
    };
    scenario.load.iter().chain(&control.load).map(entry).collect()
}

fn active_load(loads: &[LoadEntry], gpu: usize, t: f64) -> Option<&LoadEntry> {
    loads.iter().rev().find(|e| e.gpus.contains(&gpu) && e.at <= t && t < e.until)
}
