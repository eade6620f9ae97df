//! The beat: one sample an interval, whatever hangs.
//!
//! In: news from the threads. Out: samples to the mailbox, inventory and conditions to whoever watches.
//! It asks each thread for a reading, waits half an interval at most, and sends what came. A
//! thread in an overdue call is not asked and not waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use tessera_model::sample::{HostSample, NicSample, NodeSample};
use tessera_model::{GpuCondition, GpuId, Nic, NodeInventory, UnixMillis};
use tokio::sync::watch;

use super::known::{self, KnownGpu};
use super::rows::Rows;
use super::watchers::read_node;
use super::{Command, News, Shared, beats, spawn};
use crate::mailbox;
use crate::probe;

pub struct Beat {
    shared: Arc<Shared>,
    heard: Receiver<News>,
    out: mailbox::Sender<NodeSample>,
    inventory: watch::Sender<NodeInventory>,
    conditions: watch::Sender<BTreeMap<GpuId, GpuCondition>>,
    rows: Rows,
    nics: Vec<Nic>,
    driver_version: Option<String>,
    /// GPU threads; `None` until it is known whether there is a driver.
    expected: Option<usize>,
    /// Threads of MIG instances, beside those.
    more: usize,
    /// GPU threads that have said anything.
    spoke: BTreeSet<u32>,
    node: Option<Sender<Command>>,
    node_spoke: bool,
    node_reading: Option<(Vec<NicSample>, HostSample)>,
    /// The beat under way.
    number: u64,
    /// Threads in an overdue call.
    late: BTreeSet<u32>,
    /// Threads that have not answered this beat.
    pending: BTreeSet<u32>,
    node_pending: bool,
    /// Beats that were sent to the node's thread and not answered.
    node_behind: u64,
    /// GPUs that want a slow round out of turn.
    look: BTreeSet<u32>,
    stored: Vec<KnownGpu>,
    /// Something that shows in the conditions may have changed.
    changed: bool,
    /// Something that shows in the inventory has changed; making one reads sysfs.
    inventory_changed: bool,
}

impl Beat {
    pub fn new(
        shared: Arc<Shared>,
        heard: Receiver<News>,
        out: mailbox::Sender<NodeSample>,
    ) -> Self {
        let config = &shared.config;
        let stored = match &config.known_gpus {
            Some(path) => known::load(path, &config.identity.boot),
            None => Vec::new(),
        };
        let (node, inbox) = beats();
        let reader = shared.clone();
        let node = spawn("nics", move || read_node(&reader, &inbox))
            .inspect_err(|error| tracing::error!(%error, "no thread for NICs and host"))
            .ok()
            .map(|()| node);
        let empty = NodeInventory {
            node: config.identity.node.clone(),
            boot: config.identity.boot.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            address: config.identity.address.clone(),
            cpus: 0,
            memory: tessera_model::Bytes(0),
            driver_version: None,
            gpus: Vec::new(),
            nics: Vec::new(),
            labels: config.identity.labels.clone(),
            neighbours: config.identity.neighbours.clone(),
        };
        Self {
            heard,
            out,
            inventory: watch::Sender::new(empty),
            conditions: watch::Sender::new(BTreeMap::new()),
            rows: Rows::new(stored.clone()),
            nics: Vec::new(),
            driver_version: None,
            expected: None,
            more: 0,
            spoke: BTreeSet::new(),
            node_spoke: node.is_none(),
            node,
            node_reading: None,
            number: 0,
            late: BTreeSet::new(),
            pending: BTreeSet::new(),
            node_pending: false,
            node_behind: 0,
            look: BTreeSet::new(),
            stored,
            changed: true,
            inventory_changed: true,
            shared,
        }
    }

    pub fn watches(
        &self,
    ) -> (watch::Receiver<NodeInventory>, watch::Receiver<BTreeMap<GpuId, GpuCondition>>) {
        (self.inventory.subscribe(), self.conditions.subscribe())
    }

    /// Waits until each thread has said who it is, twice a call's deadline at most.
    pub fn first(&mut self) {
        let until = Instant::now() + self.shared.config.call_deadline * 2;
        while !(self.expected.is_some_and(|gpus| self.spoke.len() >= gpus + self.more)
            && self.node_spoke)
        {
            match self.heard.recv_deadline(until) {
                Ok(news) => self.hear(news),
                Err(_) => break,
            }
        }
        self.find_late();
        self.publish();
    }

    pub fn run(mut self) {
        let interval = self.shared.config.interval;
        let mut number = self.shared.config.first_sequence;
        let mut next = Instant::now();
        while self.listen(next, |_| false) {
            let skew = next.elapsed();
            self.beat(number, skew);
            number += 1;
            next += interval;
            // After a suspend or a long stall the beat starts anew instead of catching up.
            if next.elapsed() > interval {
                next = Instant::now() + interval;
            }
        }
    }

    fn beat(&mut self, number: u64, skew: Duration) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = UnixMillis(i64::try_from(at.as_millis()).unwrap_or(i64::MAX));
        self.ask(number);
        let until = Instant::now() + self.shared.config.interval / 2;
        if !self.listen(until, |beat| beat.pending.is_empty() && !beat.node_pending) {
            return;
        }
        let (nics, mut host) = self.node_reading.take().unwrap_or_else(|| {
            let silent = |nic: &Nic| NicSample { name: nic.name.clone(), ..NicSample::default() };
            (self.nics.iter().map(silent).collect(), HostSample::default())
        });
        host.skew_ms = Some(skew.as_secs_f32() * 1000.0);
        host.samples_dropped = self.out.dropped();
        let identity = &self.shared.config.identity;
        self.out.send(NodeSample {
            node: identity.node.clone(),
            boot: identity.boot.clone(),
            sequence: number,
            at,
            gpus: self.rows.take_samples(),
            nics,
            host,
        });
    }

    /// Asks every thread that is not in an overdue call for a reading.
    fn ask(&mut self, number: u64) {
        self.number = number;
        let config = &self.shared.config;
        let slow_beats =
            (config.slow_every.as_millis() / config.interval.as_millis().max(1)).max(1);
        let slow_beats = u64::try_from(slow_beats).unwrap_or(u64::MAX);
        self.pending.clear();
        for slot in self.shared.slots.lock().iter() {
            if self.late.contains(&slot.index) {
                continue;
            }
            // GPUs take turns with their slow rounds.
            let turn = number % slow_beats == u64::from(slot.index) % slow_beats;
            let slow = turn || self.look.contains(&slot.index);
            // A full queue: it is still busy with earlier beats.
            if slot.commands.try_send(Command::Beat { number, slow }).is_ok() {
                self.pending.insert(slot.index);
                self.look.remove(&slot.index);
            }
        }
        // The NIC thread has no deadline of its own; it is behind by whole beats when it hangs.
        if let Some(node) = &self.node
            && node.try_send(Command::Beat { number, slow: false }).is_ok()
        {
            self.node_behind += 1;
            self.node_pending = self.node_behind <= 2;
        } else {
            self.node_pending = false;
        }
    }

    /// Hears news until `until` or until `done`. False when the sampler is gone.
    fn listen(&mut self, until: Instant, done: impl Fn(&Self) -> bool) -> bool {
        let look_every = (self.shared.config.call_deadline / 4).max(Duration::from_millis(10));
        let mut look = Instant::now() + look_every;
        loop {
            if self.shared.stopped() {
                return false;
            }
            if done(self) {
                break;
            }
            match self.heard.recv_deadline(until.min(look)) {
                Ok(news) => self.hear(news),
                Err(_) if Instant::now() >= until => break,
                Err(_) => {}
            }
            if Instant::now() >= look {
                self.find_late();
                look = Instant::now() + look_every;
            }
            self.publish();
        }
        self.find_late();
        self.publish();
        true
    }

    fn find_late(&mut self) {
        let deadline = self.shared.config.call_deadline;
        for slot in self.shared.slots.lock().iter() {
            let index = slot.index;
            match slot.watch.overdue(deadline) {
                Some(call) if self.late.insert(index) => {
                    tracing::warn!(index, call, "NVML call does not return; GPU is unresponsive");
                    self.pending.remove(&index);
                    self.rows.late(index);
                    self.changed = true;
                }
                _ => {}
            }
        }
    }

    fn back(&mut self, index: u32) {
        if self.late.remove(&index) {
            tracing::info!(index, "NVML call has returned");
        }
        self.spoke.insert(index);
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Driver { version, gpus } => {
                self.driver_version = version;
                self.expected = Some(gpus);
                self.inventory_changed = true;
            }
            News::Cut { index, cut } => {
                let instances: Vec<GpuId> = cut.instances.into_iter().map(|(_, id)| id).collect();
                self.more += instances.len();
                self.back(index);
                self.pending.remove(&index);
                self.rows.cut(&cut.gpu, true, &instances);
                (self.changed, self.inventory_changed) = (true, true);
            }
            News::NoDriver => self.expected = self.expected.or(Some(0)),
            News::Facts { index, facts, reopened, health } => {
                self.back(index);
                self.rows.found(index, *facts, reopened, health);
                if reopened && let Some(open) = self.shared.driver.current() {
                    self.driver_version = open.driver_version.clone();
                }
                (self.changed, self.inventory_changed) = (true, true);
            }
            News::Reading { index, number, answer } => {
                self.back(index);
                self.changed |= self.rows.read(index, *answer);
                // An answer to an earlier beat is not the one that is waited for; its values count.
                if number == self.number {
                    self.pending.remove(&index);
                }
            }
            News::Health { index, health } => self.changed |= self.rows.health(index, health),
            News::Xid { gpu, code } => self.xid(&gpu, code),
            News::KernelXid { slot, code } => {
                let gpus = self.rows.in_slot(&slot);
                if gpus.is_empty() {
                    tracing::warn!(slot, code, "XID of an unknown GPU");
                }
                for gpu in gpus {
                    self.xid(&gpu, code);
                }
            }
            News::Look { gpu } => self.look.extend(self.rows.owner(&gpu)),
            News::Nics(nics) => {
                self.node_spoke = true;
                if self.nics != nics {
                    self.nics = nics;
                    self.inventory_changed = true;
                }
            }
            News::Node { number, nics, host } => {
                self.node_behind = self.node_behind.saturating_sub(1);
                self.node_pending &= number != self.number;
                self.node_reading = Some((nics, host));
            }
            News::Stop => {}
        }
    }

    fn xid(&mut self, gpu: &GpuId, code: u32) {
        self.rows.xid(gpu, code);
        self.look.extend(self.rows.owner(gpu));
        self.changed = true;
    }

    /// Tells those who watch, and the disk, what has changed.
    fn publish(&mut self) {
        if std::mem::take(&mut self.inventory_changed) {
            self.publish_inventory();
        } else if !self.changed {
            return;
        }
        self.changed = false;
        let conditions = self.rows.conditions();
        self.conditions.send_if_modified(|known| {
            for (gpu, condition) in &conditions {
                if known.get(gpu) != Some(condition) {
                    tracing::warn!(%gpu, %condition, "GPU is not healthy");
                }
            }
            for gpu in known.keys().filter(|gpu| !conditions.contains_key(*gpu)) {
                tracing::info!(%gpu, "GPU is healthy again");
            }
            let changed = *known != conditions;
            *known = conditions;
            changed
        });
        let known = self.rows.known();
        let config = &self.shared.config;
        if let Some(path) = &config.known_gpus
            && known != self.stored
        {
            if let Err(error) = known::store(path, &config.identity.boot, &known) {
                tracing::warn!(path = %path.display(), %error, "list of known GPUs not written");
            }
            self.stored = known;
        }
    }

    fn publish_inventory(&mut self) {
        let config = &self.shared.config;
        let mut node = probe::inventory(
            &config.identity,
            &config.sysfs,
            self.driver_version.clone(),
            &self.rows.facts(),
            &self.nics,
        );
        node.gpus = self.rows.place(std::mem::take(&mut node.gpus));
        self.inventory.send_if_modified(|known| {
            let changed = *known != node;
            *known = node;
            changed
        });
    }
}
