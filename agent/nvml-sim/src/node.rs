//! One simulated node: its hardware, its faults, its meters and its clock.
//!
//! In: a node directory. Out: the state the exported functions read. Whoever calls does what is due
//! ([`Node::tick`]); no thread of ours exists. Nothing here sleeps, and no lock is held across a
//! sleep elsewhere, so a hanging GPU holds up its own callers only.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::events::Events;
use crate::fault::{Change, Faults, GpuEffects, NodeEffects, Start, events_of};
use crate::hardware::{GpuHw, Hardware};
use crate::identity;
use crate::journal::{self, Journal, Record, What};
use crate::load::{Activity, Load};
use crate::meter::{Meter, Totals};
use crate::nics::{self, Carried, Nics};
use crate::procs::Procs;
use crate::scenario::{Control, FaultKind, GpuSel, LoadSpec, Scenario, Span};

/// How often `control.toml` is looked at; it is read at most once per [`CONTROL_READ`].
pub const CONTROL_LOOK: Duration = Duration::from_millis(250);
const CONTROL_READ: Duration = Duration::from_secs(1);
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Housekeepings between two writings of the counters.
const PERSIST_EVERY: u64 = 5;

/// Time since the node's epoch.
#[derive(Debug)]
pub struct Clock {
    pub epoch_unix_ms: i64,
    base: Duration,
    started: Instant,
}

impl Clock {
    fn new(epoch_unix_ms: i64) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = Duration::from_millis(epoch_unix_ms.max(0) as u64);
        Self { epoch_unix_ms, base: unix.saturating_sub(epoch), started: Instant::now() }
    }

    pub fn now(&self) -> Duration {
        self.base + self.started.elapsed()
    }

    pub fn secs(&self) -> f64 {
        self.now().as_secs_f64()
    }

    /// Unix milliseconds of a time since the epoch.
    pub fn unix_ms(&self, secs: f64) -> i64 {
        self.epoch_unix_ms + (secs * 1000.0).round() as i64
    }

    pub fn unix_us(&self, secs: f64) -> u64 {
        (self.epoch_unix_ms.max(0) as u64) * 1000 + (secs.max(0.0) * 1e6) as u64
    }
}

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

/// What accounting mode keeps of a process.
#[derive(Debug, Clone)]
pub struct Account {
    pub pid: u32,
    pub start_unix_us: u64,
    pub last_unix_us: u64,
    pub max_mem_bytes: u64,
    pub util_sum: u64,
    pub mem_sum: u64,
    pub samples: u64,
    pub running: bool,
}

/// One process on a GPU, as a process list shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub pid: u32,
    pub mem_bytes: u64,
}

#[derive(Debug, Default)]
struct ControlWatch {
    stamp: Option<(SystemTime, u64)>,
    read_at: Option<Duration>,
}

#[derive(Debug)]
struct Keeper {
    /// Held while this process is the one that writes counters.
    lock: Option<File>,
    nics: Nics,
    began: f64,
    first: Vec<Totals>,
    rounds: u64,
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

/// The epoch of a node that does not name one: the first init ever, kept in a file.
fn epoch(dir: &Path) -> i64 {
    let unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let path = dir.join("epoch");
    let temp = dir.join(format!("epoch.{}.tmp", std::process::id()));
    // Linked into place whole: of two first callers one wins, and both read the winner's.
    if !path.exists() && fs::write(&temp, format!("{unix_ms}\n")).is_ok() {
        let _ = fs::hard_link(&temp, &path);
    }
    let _ = fs::remove_file(&temp);
    fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(unix_ms)
}

impl Node {
    /// Reads the node in `dir`. The error says what is wrong with it, for people.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join("node.toml");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let scenario = Scenario::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let hw = Hardware::of(&scenario.node);
        let clock = Clock::new(scenario.node.epoch_unix_ms.unwrap_or_else(|| epoch(dir)));
        let t = clock.secs();
        let kept = read_counters(dir, hw.gpus.len());
        let gpus: Vec<Gpu> = hw
            .gpus
            .iter()
            .map(|gpu| {
                let seed = identity::hash(scenario.node.seed, gpu.uuid.as_bytes());
                let mut totals = Totals::default();
                let mut since = f64::NEG_INFINITY;
                if let Some((then, epoch, old)) = kept.as_ref().map(|k| (k.t, k.driver_epoch, k.gpus[gpu.index])) {
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
        Duration::from_nanos(next.saturating_sub(now)).clamp(Duration::from_micros(200), CONTROL_LOOK)
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
            active_load(&loads, gpu, t).map_or(from_jobs, |e| e.load.at((t - e.at) * rate).max(from_jobs))
        });
        MutexGuard::map(guard, |g| &mut g.0)
    }

    /// When the GPU's volatile counters began, seconds since the epoch.
    pub fn counting_since(&self) -> f64 {
        self.effects().driver_epoch.max(0.0)
    }

    /// The processes on a GPU; those that have ended are gone at once.
    pub fn processes(&self, gpu: usize) -> Vec<Listed> {
        self.search_processes();
        let mut procs = self.procs.lock();
        let before = procs.using.len();
        procs.drop_ended();
        if procs.using.len() != before {
            self.publish_jobs(&procs);
        }
        let total = self.hw.gpus[gpu].spec.mem_mib;
        let count = procs.on(gpu).count() as u64;
        let mut list: Vec<Listed> = procs
            .on(gpu)
            .map(|p| {
                let mib = p.mem_mib.unwrap_or(total * 6 / 10 / count).min(total);
                Listed { pid: p.pid, mem_bytes: mib << 20 }
            })
            .collect();
        drop(procs);
        // Churning processes live 100 ms each; their pids are above any the kernel gives.
        let slot = (self.clock.secs() * 10.0) as u64;
        for n in 0..self.gpu_effects(gpu).churn {
            let pid = 0x0080_0000 + identity::hash(n ^ self.scenario.node.seed, &slot.to_le_bytes()) % 0x0070_0000;
            list.push(Listed { pid: pid as u32, mem_bytes: 512 << 20 });
        }
        list
    }

    /// Bytes of memory in use beyond what the driver reserves.
    pub fn memory_used(&self, gpu: usize) -> u64 {
        let spec = self.hw.gpus[gpu].spec;
        let usable = (spec.mem_mib - spec.reserved_mib) << 20;
        let by_jobs: u64 = self.processes(gpu).iter().map(|p| p.mem_bytes).sum();
        let loads = self.loads.read().clone();
        let by_scenario = active_load(&loads, gpu, self.clock.secs()).map_or(0.0, |e| e.mem);
        by_jobs.max((usable as f64 * by_scenario) as u64).min(usable)
    }

    fn search_processes(&self) {
        let every = self.scenario.node.process_scan.0;
        let now = self.clock.now().as_nanos() as u64;
        if every.is_zero() || now < self.next_search.load(Relaxed) {
            return;
        }
        // Somebody else searching is as good.
        let Some(mut procs) = self.procs.try_lock() else { return };
        self.next_search.store(now + every.as_nanos() as u64, Relaxed);
        let uuids: Vec<&str> = self.hw.gpus.iter().map(|g| g.uuid.as_str()).collect();
        procs.search(&uuids, self.clock.secs());
        self.publish_jobs(&procs);
        self.account(&procs);
    }

    fn publish_jobs(&self, procs: &Procs) {
        for (i, gpu) in self.gpus.iter().enumerate() {
            let loads = procs.loads(i);
            if **gpu.jobs.read() != loads {
                *gpu.jobs.write() = Arc::new(loads);
            }
        }
    }

    fn account(&self, procs: &Procs) {
        const KEPT: usize = 4000;
        let now = self.clock.unix_us(self.clock.secs());
        for (i, gpu) in self.gpus.iter().enumerate() {
            if !gpu.accounting.load(Relaxed) {
                continue;
            }
            let (busy, mem) = {
                let meter = gpu.meter.lock();
                (u64::from(meter.0.busy_pct), u64::from(meter.0.mem_pct))
            };
            let total = self.hw.gpus[i].spec.mem_mib;
            let count = procs.on(i).count() as u64;
            let mut accounts = gpu.accounts.lock();
            for account in accounts.iter_mut() {
                account.running = procs.on(i).any(|p| p.pid == account.pid);
            }
            for proc in procs.on(i) {
                let mem_bytes = proc.mem_mib.unwrap_or(total * 6 / 10 / count).min(total) << 20;
                let at = accounts.iter().rposition(|a| a.pid == proc.pid).unwrap_or_else(|| {
                    if accounts.len() == KEPT {
                        accounts.remove(0);
                    }
                    accounts.push(Account {
                        pid: proc.pid,
                        start_unix_us: self.clock.unix_us(proc.since),
                        last_unix_us: now,
                        max_mem_bytes: 0,
                        util_sum: 0,
                        mem_sum: 0,
                        samples: 0,
                        running: true,
                    });
                    accounts.len() - 1
                });
                let account = &mut accounts[at];
                account.last_unix_us = now;
                account.max_mem_bytes = account.max_mem_bytes.max(mem_bytes);
                account.util_sum += busy;
                account.mem_sum += mem;
                account.samples += 1;
            }
        }
    }

    fn look_at_control(&self) {
        let Some(mut watch) = self.control.try_lock() else { return };
        let now = self.clock.now();
        self.next_control.store((now + CONTROL_LOOK).as_nanos() as u64, Relaxed);
        let path = self.dir.join("control.toml");
        let stamp = fs::metadata(&path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        if stamp == watch.stamp || watch.read_at.is_some_and(|at| now < at + CONTROL_READ) {
            return;
        }
        watch.stamp = stamp;
        watch.read_at = Some(now);
        let text = if stamp.is_some() { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let control = match Control::parse(&text, &self.hw) {
            Ok(control) => control,
            Err(error) => return self.refuse_control(&text, error),
        };
        let written = stamp
            .and_then(|(time, _)| time.duration_since(UNIX_EPOCH).ok())
            .map_or(now.as_secs_f64(), |d| (d.as_millis() as i64 - self.clock.epoch_unix_ms) as f64 / 1000.0);
        let mut faults = self.faults.lock();
        let mut ids = HashSet::new();
        for (i, spec) in control.fault.iter().enumerate() {
            let id = entry_id('c', i, &toml::to_string(spec).unwrap_or_default());
            ids.insert(id.clone());
            if !faults.entries.iter().any(|e| e.id == id) {
                add_fault(&mut faults, &self.journal.lock(), &self.clock, id, spec, written);
            }
        }
        faults.keep_controlled(&ids, now.as_secs_f64());
        drop(faults);
        *self.loads.write() = Arc::new(load_entries(&self.scenario, &control));
        drop(watch);
        self.run_faults();
    }

    fn refuse_control(&self, text: &str, error: String) {
        eprintln!("tessera-nvml-sim: {}/control.toml: {error}", self.dir.display());
        let now = self.clock.secs();
        let at = self.clock.unix_ms(now);
        let record = Record {
            id: entry_id('c', 0, text),
            what: What::Refused,
            kind: String::new(),
            gpus: Vec::new(),
            due_unix_ms: at,
            at_unix_ms: at,
            at_ms: (now * 1000.0) as i64,
            epoch_unix_ms: self.clock.epoch_unix_ms,
            fault: None,
            error: Some(error),
        };
        self.write_down(&record, &[]);
    }

    fn run_faults(&self) {
        let mut faults = self.faults.lock();
        let now = self.clock.secs();
        let changes = faults.run(now, |gpus| match gpus {
            Some(gpus) => gpus.iter().map(|g| self.gpus[*g].calls.load(Relaxed)).max().unwrap_or(0),
            None => self.calls.load(Relaxed),
        });
        if !changes.is_empty() {
            // Readings up to now belong to the state before.
            for gpu in 0..self.gpus.len() {
                drop(self.meter(gpu));
            }
            let node = Arc::new(faults.node_effects());
            for (i, gpu) in self.gpus.iter().enumerate() {
                *gpu.fx.write() = Arc::new(faults.gpu_effects(i, node.driver_epoch));
            }
            self.reloads.store(u64::from(node.reloads), Relaxed);
            *self.node_fx.write() = node;
        }
        self.next_fault.store(faults.next_due().map_or(u64::MAX, nanos), Relaxed);
        self.trigger.store(faults.call_trigger(None), Relaxed);
        for (i, gpu) in self.gpus.iter().enumerate() {
            gpu.trigger.store(faults.call_trigger(Some(i)), Relaxed);
        }
        for change in changes {
            self.announce(&faults, &change, now);
        }
    }

    fn announce(&self, faults: &Faults, change: &Change, now: f64) {
        let (index, due, what) = match change {
            Change::Begin { index, due } => (*index, *due, What::Begin),
            Change::End { index, due } => (*index, *due, What::End),
        };
        let entry = &faults.entries[index];
        let of_the_node = matches!(
            entry.spec.kind,
            FaultKind::DriverReload | FaultKind::NicDown | FaultKind::NicErrors | FaultKind::NicCongestion
        );
        let record = Record {
            id: entry.id.clone(),
            what,
            kind: entry.spec.kind.name(),
            gpus: if of_the_node { Vec::new() } else { entry.gpus.clone() },
            due_unix_ms: self.clock.unix_ms(if matches!(entry.start, Start::Calls(_)) { now } else { due }),
            at_unix_ms: self.clock.unix_ms(now),
            at_ms: (now * 1000.0).round() as i64,
            epoch_unix_ms: self.clock.epoch_unix_ms,
            fault: Some(entry.spec.clone()),
            error: None,
        };
        let events: Vec<_> = match what {
            What::Begin => entry.gpus.iter().flat_map(|g| events_of(&entry.spec, *g)).collect(),
            _ => Vec::new(),
        };
        let kmsg: Vec<String> = events
            .iter()
            .filter(|e| e.bits & crate::events::bits::XID != 0)
            .map(|e| {
                let pci = self.hw.gpus[e.gpu].path.addr();
                journal::kmsg_line(index as u64, (now * 1e6) as u64, pci, e.data)
            })
            .collect();
        self.write_down(&record, &kmsg);
        for event in events {
            self.events.push(event, self.scenario.node.last_xid_wins);
        }
        self.events.nudge();
    }

    fn write_down(&self, record: &Record, kmsg: &[String]) {
        if let Err(error) = self.journal.lock().write(record, kmsg) {
            eprintln!("tessera-nvml-sim: {}/journal.jsonl: {error}", self.dir.display());
        }
    }

    /// Once a second: the NICs' counters, and now and then our own, so that they outlive us.
    fn keep_house(&self) {
        let Some(mut keeper) = self.keeper.try_lock() else { return };
        let now = self.clock.now();
        self.next_keep.store((now + HOUSEKEEPING).as_nanos() as u64, Relaxed);
        if keeper.lock.is_none() {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.dir.join("lock"));
            keeper.lock = file.ok().filter(|f| f.try_lock().is_ok());
        }
        if keeper.lock.is_none() {
            return;
        }
        let totals: Vec<Totals> = (0..self.gpus.len()).map(|g| self.meter(g).totals).collect();
        let per_nic = totals.len().checked_div(self.hw.nics.len()).unwrap_or(0).max(1);
        let began = keeper.began;
        let mut carried = vec![Carried::default(); self.hw.nics.len()];
        for (nic, load) in carried.iter_mut().enumerate() {
            for gpu in (nic * per_nic..(nic + 1) * per_nic).filter(|g| *g < totals.len()) {
                let first = keeper.first[gpu];
                // A driver reload sets the meters back; a NIC does not notice.
                if totals[gpu].nic_tx < first.nic_tx {
                    keeper.first[gpu] = Totals::default();
                }
                load.tx_bytes += (totals[gpu].nic_tx - keeper.first[gpu].nic_tx) as u64 / per_nic as u64;
                load.rx_bytes += (totals[gpu].nic_rx - keeper.first[gpu].nic_rx) as u64 / per_nic as u64;
            }
        }
        let fx = self.effects();
        if let Err(error) = keeper.nics.update(&self.hw, &carried, &fx, began, now.as_secs_f64()) {
            eprintln!("tessera-nvml-sim: {}/sys: {error}", self.dir.display());
        }
        keeper.rounds += 1;
        if keeper.rounds.is_multiple_of(PERSIST_EVERY) {
            self.write_counters(&totals);
        }
    }

    /// Keeps the counters for the next process, if it is on us to do so.
    pub fn persist(&self) {
        let Some(keeper) = self.keeper.try_lock() else { return };
        if keeper.lock.is_some() {
            let totals: Vec<Totals> = (0..self.gpus.len()).map(|g| self.meter(g).totals).collect();
            self.write_counters(&totals);
        }
    }

    fn write_counters(&self, totals: &[Totals]) {
        let kept = Kept {
            t: self.clock.secs(),
            // JSON has no infinities.
            driver_epoch: self.effects().driver_epoch.max(-1e18),
            gpus: totals.to_vec(),
        };
        let Ok(text) = serde_json::to_string(&kept) else { return };
        if let Err(error) = nics::replace(&self.dir.join("counters.json"), &text) {
            eprintln!("tessera-nvml-sim: {}/counters.json: {error}", self.dir.display());
        }
    }
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Kept {
    t: f64,
    driver_epoch: f64,
    gpus: Vec<Totals>,
}

fn read_counters(dir: &Path, gpus: usize) -> Option<Kept> {
    let kept: Kept = serde_json::from_str(&fs::read_to_string(dir.join("counters.json")).ok()?).ok()?;
    (kept.gpus.len() == gpus).then_some(kept)
}

/// Bytes a second a rail NIC carries one way.
fn nic_bps(hw: &Hardware) -> f64 {
    hw.nics.first().map_or(0.0, |n| f64::from(n.gbps) * 1e9 / 8.0)
}

fn entry_id(file: char, index: usize, text: &str) -> String {
    format!("{file}{index}-{:08x}", identity::hash(0, text.as_bytes()) as u32)
}

fn add_fault(
    faults: &mut Faults,
    journal: &Journal,
    clock: &Clock,
    id: String,
    spec: &crate::scenario::FaultSpec,
    unsaid: f64,
) {
    let when = |what| journal.when(&id, what).map(|ms| (ms - clock.epoch_unix_ms) as f64 / 1000.0);
    let (began, ended) = (when(What::Begin), when(What::End));
    faults.add(id, spec.clone(), clock.epoch_unix_ms, unsaid, began, ended);
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
            Some(GpuSel::Word(_)) => vec![(identity::mix(scenario.node.seed) % gpus as u64) as usize],
        },
        load: Load {
            shape: spec.shape,
            level: spec.level,
            period: spec.period.map_or(spec.shape.default_period(), |p| p.0.as_secs_f64().max(0.001)),
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

/// Appends an entry to a node's `control.toml` in one step.
pub fn append_control(dir: &Path, entry: &Control) -> Result<(), String> {
    let path = dir.join("control.toml");
    let guard = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("control.lock"))
        .map_err(|e| format!("{}: {e}", dir.join("control.lock").display()))?;
    guard.lock().map_err(|e| format!("{}: {e}", path.display()))?;
    let mut text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&toml::to_string(entry).map_err(|e| e.to_string())?);
    write_control(dir, &text)
}

/// Takes every fault out of `control.toml`; what was in force ends.
pub fn clear_control(dir: &Path) -> Result<(), String> {
    write_control(dir, "")
}

fn write_control(dir: &Path, text: &str) -> Result<(), String> {
    let path = dir.join("control.toml");
    let temp = dir.join(format!("control.toml.{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&temp)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temp, &path)
    };
    write().map_err(|e| format!("{}: {e}", path.display()))
}
