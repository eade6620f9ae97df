//! Faults as they begin and end: the control file is read, effects are put in force, the journal
//! is written, waiters are told.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Clock;
use crate::fault::{Change, Faults, Start, events_of};
use crate::identity;
use crate::journal::{self, Journal, Record, What};
use crate::node::{Node, load_entries, nanos};
use crate::scenario::{Control, FaultKind, FaultSpec};

/// How often `control.toml` is looked at; it is read at most once per [`CONTROL_READ`].
pub const CONTROL_LOOK: Duration = Duration::from_millis(250);
const CONTROL_READ: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct ControlWatch {
    stamp: Option<(SystemTime, u64)>,
    read_at: Option<Duration>,
}

impl Node {
    pub(super) fn look_at_control(&self) {
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
        let text = if stamp.is_some() {
            fs::read_to_string(&path).unwrap_or_default()
        } else {
            String::new()
        };
        let control = match Control::parse(&text, &self.hw) {
            Ok(control) => control,
            Err(error) => return self.refuse_control(&text, error),
        };
        let written = stamp
            .and_then(|(time, _)| time.duration_since(UNIX_EPOCH).ok())
            .map_or(now.as_secs_f64(), |d| {
                (d.as_millis() as i64 - self.clock.epoch_unix_ms) as f64 / 1000.0
            });
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

    pub(super) fn run_faults(&self) {
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
            FaultKind::DriverReload
                | FaultKind::NicDown
                | FaultKind::NicErrors
                | FaultKind::NicCongestion
        );
        let record = Record {
            id: entry.id.clone(),
            what,
            kind: entry.spec.kind.name(),
            gpus: if of_the_node { Vec::new() } else { entry.gpus.clone() },
            due_unix_ms: self.clock.unix_ms(if matches!(entry.start, Start::Calls(_)) {
                now
            } else {
                due
            }),
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
                journal::kmsg_line((now * 1e6) as u64, (now * 1e6) as u64, pci, e.data)
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
}

pub fn entry_id(file: char, index: usize, text: &str) -> String {
    format!("{file}{index}-{:08x}", identity::hash(0, text.as_bytes()) as u32)
}

pub fn add_fault(
    faults: &mut Faults,
    journal: &Journal,
    clock: &Clock,
    id: String,
    spec: &FaultSpec,
    unsaid: f64,
) {
    let when = |what| journal.when(&id, what).map(|ms| (ms - clock.epoch_unix_ms) as f64 / 1000.0);
    let (began, ended) = (when(What::Begin), when(What::End));
    faults.add(id, spec.clone(), clock.epoch_unix_ms, unsaid, began, ended);
}
