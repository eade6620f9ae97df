//! nvmlGpm*: activity between two samples.
//!
//! In: snapshots of a GPU's meter. Out: averages between them, in NVML's units: percent for
//! utilizations, MiB/s for PCIe and NVLink. Hopper and later only.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::hardware::GpuSpec;
use crate::meter::Totals;

/// A sample handle's content: empty until it is taken.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub gpu: usize,
    /// Seconds since the node's epoch.
    pub t: f64,
    pub totals: Totals,
}

/// The samples that callers hold, by number. Numbers are not used twice.
#[derive(Debug, Default)]
pub struct Samples {
    next: u32,
    open: HashMap<u32, Option<Sample>>,
}

pub static SAMPLES: Mutex<Option<Samples>> = Mutex::new(None);

impl Samples {
    pub fn alloc(&mut self) -> u32 {
        self.next += 1;
        self.open.insert(self.next, None);
        self.next
    }

    pub fn free(&mut self, number: u32) -> bool {
        self.open.remove(&number).is_some()
    }

    /// `false`: there is no such sample.
    pub fn set(&mut self, number: u32, sample: Sample) -> bool {
        self.open.get_mut(&number).map(|s| *s = Some(sample)).is_some()
    }

    pub fn get(&self, number: u32) -> Option<Sample> {
        self.open.get(&number).copied().flatten()
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// One metric between two samples of one GPU. `None`: this GPU has no such metric. Not a number:
/// the samples lie too close together to say.
pub fn metric(id: u32, spec: &GpuSpec, a: &Sample, b: &Sample) -> Option<f64> {
    let span = b.t - a.t;
    let share = |f: fn(&Totals) -> f64| {
        if span > 0.0 {
            (100.0 * (f(&b.totals) - f(&a.totals)) / span).clamp(0.0, 100.0)
        } else {
            f64::NAN
        }
    };
    let mib_s = |f: fn(&Totals) -> f64| {
        if span > 0.0 { (f(&b.totals) - f(&a.totals)).max(0.0) / span / MIB } else { f64::NAN }
    };
    let links = f64::from(spec.nvlinks);
    Some(match id {
        1 => share(|t| t.busy_s),
        2 => share(|t| t.sm_s),
        3 => share(|t| t.sm_s) * 0.4,
        4 => share(|t| t.sm_s) * 0.2,
        5 | 7 => share(|t| t.tensor_s),
        6 | 9 => 0.0 * share(|t| t.tensor_s),
        10 => share(|t| t.dram_s),
        11 => 0.0 * share(|t| t.sm_s),
        12 => share(|t| t.sm_s) * 0.3,
        13 => share(|t| t.sm_s) * 0.1,
        20 => mib_s(|t| t.pcie_tx),
        21 => mib_s(|t| t.pcie_rx),
        60 if links > 0.0 => mib_s(|t| t.nvlink_rx),
        61 if links > 0.0 => mib_s(|t| t.nvlink_tx),
        // Per link, receive and transmit in turn.
        62..=97 if id - 62 < 2 * spec.nvlinks => {
            let total =
                if id.is_multiple_of(2) { mib_s(|t| t.nvlink_rx) } else { mib_s(|t| t.nvlink_tx) };
            total / links
        }
        _ => return None,
    })
}
