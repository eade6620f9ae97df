//! What is broken at a moment.
//!
//! In: the faults of `node.toml` and `control.toml`, the time, and how many calls were made.
//! Out: which faults begin or end now, and the state of each GPU that follows ([`GpuEffects`]).
//! Writing it down and telling waiters is `node`'s work. No clock and no file in here.

use std::collections::HashSet;

use crate::events::{Event, bits};
use crate::identity;
use crate::scenario::{FaultKind, FaultSpec, GpuSel};

/// How long the driver stays away when a scenario does not say.
const RELOAD_S: f64 = 5.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// Seconds since the node's epoch, real time.
    At(f64),
    Calls(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Pending,
    Active(f64),
    Ended(f64, f64),
}

#[derive(Debug)]
pub struct Entry {
    pub id: String,
    pub spec: FaultSpec,
    pub gpus: Vec<usize>,
    pub start: Start,
    /// Real seconds after its start.
    lasts: Option<f64>,
    /// Real seconds since the epoch.
    until: Option<f64>,
    state: State,
}

impl Entry {
    fn end(&self, since: f64) -> Option<f64> {
        let reload = (self.spec.kind == FaultKind::DriverReload).then_some(RELOAD_S);
        let lasts = self.lasts.or(if self.until.is_none() { reload } else { None });
        lasts.map(|l| since + l).or(self.until)
    }

    /// From when to when it was in force up to `now`.
    fn span(&self, now: f64) -> Option<(f64, f64)> {
        match self.state {
            State::Pending => None,
            State::Active(since) => Some((since, now)),
            State::Ended(since, end) => Some((since, end)),
        }
    }
}

/// Calls that do not come back in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    pub id: String,
    pub pattern: String,
    /// `None`: as long as the fault lasts.
    pub ms: Option<u64>,
}

impl Hold {
    /// Whether a function is meant: `*` stands for anything, the prefix may be left out.
    pub fn matches(&self, function: &str) -> bool {
        let short = function.strip_prefix("nvmlDevice").or_else(|| function.strip_prefix("nvml"));
        glob(&self.pattern, function) || short.is_some_and(|s| glob(&self.pattern, s))
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).filter(|i| rest.is_char_boundary(*i)).any(|i| glob(tail, &rest[i..]))
        }),
    }
}

/// Something that happened at a rate for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The NVLink or the NIC.
    pub which: u32,
    pub per_s: f64,
    pub from: f64,
    /// `None`: it goes on.
    pub to: Option<f64>,
}

impl Rate {
    /// How often it has happened between `since` and `now`.
    pub fn count(&self, since: f64, now: f64) -> u64 {
        let span = self.to.unwrap_or(now).min(now) - self.from.max(since);
        (span.max(0.0) * self.per_s) as u64
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuEffects {
    pub lost: bool,
    pub reset_required: bool,
    pub vanished: bool,
    pub remap_pending: bool,
    pub remap_failure: bool,
    pub remapped_rows: u64,
    pub throttle: u64,
    pub links_down: u32,
    pub link_errors: Vec<Rate>,
    pub fabric_degraded: bool,
    pub churn: u64,
    pub holds: Vec<Hold>,
    /// Corrected and uncorrected ECC errors, ever and since the driver was loaded.
    pub sbe: (u64, u64),
    pub dbe: (u64, u64),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeEffects {
    /// For calls about no GPU.
    pub holds: Vec<Hold>,
    pub driver_down: bool,
    /// When the driver was last loaded, seconds since the epoch. Negative: before it.
    pub driver_epoch: f64,
    /// How often it has been reloaded.
    pub reloads: u32,
    pub nics_down: Vec<usize>,
    pub nic_errors: Vec<Rate>,
    pub nic_congestion: Vec<Rate>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Begin { index: usize, due: f64 },
    End { index: usize, due: f64 },
}

/// All faults of a node.
#[derive(Debug)]
pub struct Faults {
    pub entries: Vec<Entry>,
    gpu_count: usize,
    seed: u64,
    rate: f64,
}

impl Faults {
    pub fn new(gpu_count: usize, seed: u64, rate: f64) -> Self {
        Self { entries: Vec::new(), gpu_count, seed, rate }
    }

    /// Adds a fault. `now_if_unsaid` is when it starts if it does not say; `epoch_unix_ms` turns a
    /// wall-clock start into ours. `began`, `ended`: what the journal knows of it.
    pub fn add(
        &mut self,
        id: String,
        spec: FaultSpec,
        epoch_unix_ms: i64,
        now_if_unsaid: f64,
        began: Option<f64>,
        ended: Option<f64>,
    ) {
        let all: Vec<usize> = (0..self.gpu_count).collect();
        let gpus = match &spec.gpu {
            None => all,
            Some(GpuSel::One(g)) => vec![*g],
            Some(GpuSel::Many(many)) => many.clone(),
            Some(GpuSel::Word(_)) if self.gpu_count == 0 => Vec::new(),
            Some(GpuSel::Word(_)) => {
                vec![(identity::hash(self.seed, id.as_bytes()) % self.gpu_count as u64) as usize]
            }
        };
        let real = |s: crate::scenario::Span| s.0.as_secs_f64() / self.rate;
        let start = match (spec.after_calls, spec.at_unix_ms, spec.at) {
            (Some(n), _, _) => Start::Calls(n),
            (_, Some(ms), _) => Start::At((ms - epoch_unix_ms) as f64 / 1000.0),
            (_, _, Some(at)) => Start::At(real(at)),
            _ => Start::At(now_if_unsaid),
        };
        let state = match (start, began, ended) {
            (Start::Calls(_), Some(from), Some(to)) => State::Ended(from, to),
            (Start::Calls(_), Some(from), None) => State::Active(from),
            _ => State::Pending,
        };
        // Without a time of its own it began when it was first seen, also for a later process.
        let start = match (start, began) {
            (Start::At(_), Some(from)) if spec.at.is_none() && spec.at_unix_ms.is_none() => {
                Start::At(from)
            }
            _ => start,
        };
        let (lasts, until) = (spec.lasts.map(real), spec.until.map(real));
        self.entries.push(Entry { id, spec, gpus, start, lasts, until, state });
    }

    /// Ends the faults from `control.toml` that no longer stand there.
    pub fn keep_controlled(&mut self, ids: &HashSet<String>, now: f64) {
        self.entries.retain(|e| {
            !(e.id.starts_with('c') && !ids.contains(&e.id) && e.state == State::Pending)
        });
        for entry in &mut self.entries {
            if entry.id.starts_with('c')
                && !ids.contains(&entry.id)
                && matches!(entry.state, State::Active(_))
            {
                entry.until = Some(now);
                entry.lasts = None;
            }
        }
    }

    /// What begins and ends by `now`. `calls` gives how many were made on these GPUs, or on the
    /// node where a fault names none.
    pub fn run(&mut self, now: f64, calls: impl Fn(Option<&[usize]>) -> u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.state == State::Pending {
                let due = match entry.start {
                    Start::At(t) if t <= now => t,
                    Start::Calls(n)
                        if calls(entry.spec.gpu.as_ref().map(|_| entry.gpus.as_slice())) >= n =>
                    {
                        now
                    }
                    _ => continue,
                };
                entry.state = State::Active(due);
                changes.push(Change::Begin { index, due });
            }
            if let State::Active(since) = entry.state
                && let Some(end) = entry.end(since)
                && end <= now
            {
                entry.state = State::Ended(since, end.max(since));
                changes.push(Change::End { index, due: end });
            }
        }
        changes
    }

    /// The next moment at which something begins or ends by itself.
    pub fn next_due(&self) -> Option<f64> {
        self.entries
            .iter()
            .filter_map(|e| match (e.state, e.start) {
                (State::Pending, Start::At(t)) => Some(t),
                (State::Active(since), _) => e.end(since),
                _ => None,
            })
            .min_by(f64::total_cmp)
    }

    /// The smallest number of calls that sets something off, for a GPU or (`None`) for the node.
    pub fn call_trigger(&self, gpu: Option<usize>) -> u64 {
        self.entries
            .iter()
            .filter(|e| e.state == State::Pending)
            .filter(|e| match gpu {
                Some(g) => e.spec.gpu.is_some() && e.gpus.contains(&g),
                None => e.spec.gpu.is_none(),
            })
            .filter_map(|e| match e.start {
                Start::Calls(n) => Some(n),
                Start::At(_) => None,
            })
            .min()
            .unwrap_or(u64::MAX)
    }

    pub fn node_effects(&self) -> NodeEffects {
        let mut fx = NodeEffects { driver_epoch: f64::NEG_INFINITY, ..NodeEffects::default() };
        for entry in &self.entries {
            let Some((from, to)) = entry.span(f64::INFINITY) else { continue };
            let active = matches!(entry.state, State::Active(_));
            let rate = Rate {
                which: entry.spec.nic.unwrap_or(0) as u32,
                per_s: entry.spec.rate.unwrap_or(0.0),
                from,
                to: (!active).then_some(to),
            };
            match entry.spec.kind {
                FaultKind::DriverReload => {
                    fx.reloads += 1;
                    fx.driver_down |= active;
                    if !active {
                        fx.driver_epoch = fx.driver_epoch.max(to);
                    }
                }
                FaultKind::Hang | FaultKind::Slow if active && entry.spec.gpu.is_none() => {
                    fx.holds.push(hold(entry));
                }
                FaultKind::NicDown if active => fx.nics_down.push(rate.which as usize),
                FaultKind::NicErrors => fx.nic_errors.push(rate),
                FaultKind::NicCongestion => fx.nic_congestion.push(rate),
                _ => {}
            }
        }
        fx
    }

    pub fn gpu_effects(&self, gpu: usize, driver_epoch: f64) -> GpuEffects {
        let mut fx = GpuEffects::default();
        for entry in self.entries.iter().filter(|e| e.gpus.contains(&gpu)) {
            let Some((from, to)) = entry.span(f64::INFINITY) else { continue };
            let active = matches!(entry.state, State::Active(_));
            let spec = &entry.spec;
            let n = spec.n.unwrap_or(1);
            let count = |total: &mut (u64, u64)| {
                total.0 += n;
                if from >= driver_epoch {
                    total.1 += n;
                }
            };
            match spec.kind {
                FaultKind::EccSbe => count(&mut fx.sbe),
                FaultKind::EccDbe => count(&mut fx.dbe),
                FaultKind::RemapPending => {
                    fx.remap_pending |= active;
                    fx.remapped_rows += n;
                }
                FaultKind::NvlinkErrors => fx.link_errors.push(Rate {
                    which: spec.link.unwrap_or(0),
                    per_s: spec.rate.unwrap_or(0.0),
                    from,
                    to: (!active).then_some(to),
                }),
                _ if !active => {}
                FaultKind::RemapFailure => fx.remap_failure = true,
                FaultKind::Lost => fx.lost = true,
                FaultKind::ResetRequired => fx.reset_required = true,
                FaultKind::Vanish => fx.vanished = true,
                FaultKind::Throttle => fx.throttle |= spec.bits.unwrap_or(0),
                FaultKind::NvlinkDown => {
                    fx.links_down |= 1u32.checked_shl(spec.link.unwrap_or(0)).unwrap_or(0);
                }
                FaultKind::FabricDegraded => fx.fabric_degraded = true,
                FaultKind::ProcessChurn => fx.churn += spec.n.unwrap_or(8),
                FaultKind::Hang | FaultKind::Slow => fx.holds.push(hold(entry)),
                FaultKind::Xid
                | FaultKind::Event
                | FaultKind::DriverReload
                | FaultKind::NicDown
                | FaultKind::NicErrors
                | FaultKind::NicCongestion => {}
            }
        }
        fx
    }
}

fn hold(entry: &Entry) -> Hold {
    Hold {
        id: entry.id.clone(),
        pattern: entry.spec.call.clone().unwrap_or_else(|| "*".to_owned()),
        ms: entry.spec.ms,
    }
}

/// The events a fault sets off on one of its GPUs when it begins.
pub fn events_of(spec: &FaultSpec, gpu: usize) -> Vec<Event> {
    let event = |bits, data| Event { gpu, bits, data };
    let xid = |code| event(bits::XID, code);
    let data = spec.code.unwrap_or(0);
    match spec.kind {
        _ if spec.quiet => Vec::new(),
        FaultKind::Xid => vec![xid(data)],
        FaultKind::Event => vec![event(spec.bits.unwrap_or(0), data)],
        FaultKind::EccSbe => vec![event(bits::SBE, 0)],
        FaultKind::EccDbe => vec![event(bits::DBE, 0), xid(48)],
        FaultKind::RemapPending => vec![event(bits::DRAM_RETIREMENT, 0), xid(63)],
        FaultKind::RemapFailure => vec![event(bits::DRAM_RETIREMENT_FAILURE, 0), xid(64)],
        FaultKind::Lost => vec![xid(79), event(bits::UNAVAILABLE, 0)],
        // 1 is NVML's recovery action "reset the GPU".
        FaultKind::ResetRequired => vec![xid(95), event(bits::RECOVERY_ACTION, 1)],
        FaultKind::Throttle => vec![event(bits::CLOCK, 0)],
        FaultKind::NvlinkDown => vec![xid(74)],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Span;
    use std::time::Duration;

    fn secs(s: u64) -> Option<Span> {
        Some(Span(Duration::from_secs(s)))
    }

    fn faults(specs: Vec<FaultSpec>) -> Faults {
        let mut faults = Faults::new(8, 1, 1.0);
        for (i, spec) in specs.into_iter().enumerate() {
            faults.add(format!("s{i}"), spec, 0, 0.0, None, None);
        }
        faults
    }

    #[test]
    fn patterns_name_functions() {
        let hold = |p: &str| Hold { id: String::new(), pattern: p.to_owned(), ms: None };
        for (pattern, function, yes) in [
            ("*", "nvmlDeviceGetName", true),
            ("GetPower*", "nvmlDeviceGetPowerUsage", true),
            ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetPowerUsage", true),
            ("*Power*Limit", "nvmlDeviceGetEnforcedPowerLimit", true),
            ("GetPower", "nvmlDeviceGetPowerUsage", false),
            ("SystemGetDriverVersion", "nvmlSystemGetDriverVersion", true),
        ] {
            assert_eq!(hold(pattern).matches(function), yes, "{pattern} {function}");
        }
    }

    #[test]
    fn a_fault_begins_and_ends_on_time() {
        let lost = FaultSpec {
            gpu: Some(GpuSel::One(3)),
            at: secs(10),
            until: secs(20),
            ..FaultSpec::new(FaultKind::Lost)
        };
        let mut f = faults(vec![lost]);
        assert!(f.run(9.9, |_| 0).is_empty());
        assert_eq!(f.next_due(), Some(10.0));
        assert_eq!(f.run(10.0, |_| 0), [Change::Begin { index: 0, due: 10.0 }]);
        assert!(f.gpu_effects(3, 0.0).lost && !f.gpu_effects(2, 0.0).lost);
        assert_eq!(f.next_due(), Some(20.0));
        assert_eq!(f.run(25.0, |_| 0), [Change::End { index: 0, due: 20.0 }]);
        assert!(!f.gpu_effects(3, 0.0).lost && f.next_due().is_none());
    }

    #[test]
    fn a_fault_may_wait_for_calls() {
        let spec = FaultSpec {
            gpu: Some(GpuSel::One(1)),
            after_calls: Some(5),
            ..FaultSpec::new(FaultKind::ResetRequired)
        };
        let mut f = faults(vec![spec]);
        assert_eq!(
            (f.call_trigger(Some(1)), f.call_trigger(Some(0)), f.call_trigger(None)),
            (5, u64::MAX, u64::MAX)
        );
        assert!(f.run(1.0, |_| 4).is_empty());
        assert_eq!(f.run(2.0, |_| 5).len(), 1);
        assert!(f.gpu_effects(1, 0.0).reset_required);
    }

    #[test]
    fn a_driver_reload_starts_volatile_counts_anew() {
        let dbe = |at| FaultSpec {
            gpu: Some(GpuSel::One(0)),
            at: secs(at),
            n: Some(2),
            ..FaultSpec::new(FaultKind::EccDbe)
        };
        let reload = FaultSpec { at: secs(10), ..FaultSpec::new(FaultKind::DriverReload) };
        let mut f = faults(vec![dbe(1), reload, dbe(20)]);
        f.run(12.0, |_| 0);
        assert!(f.node_effects().driver_down);
        f.run(30.0, |_| 0);
        let node = f.node_effects();
        assert_eq!((node.driver_down, node.driver_epoch, node.reloads), (false, 15.0, 1));
        assert_eq!(f.gpu_effects(0, node.driver_epoch).dbe, (4, 2));
    }

    #[test]
    fn any_gpu_is_the_same_gpu_for_the_same_seed() {
        let spec = FaultSpec {
            gpu: Some(GpuSel::Word("any".to_owned())),
            ..FaultSpec::new(FaultKind::Lost)
        };
        let (one, two) = (faults(vec![spec.clone()]), faults(vec![spec]));
        assert_eq!(one.entries[0].gpus.len(), 1);
        assert_eq!(one.entries[0].gpus, two.entries[0].gpus);
    }
}
