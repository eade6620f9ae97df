//! What activity does to a GPU: power, heat, clocks, energy and byte counters.
//!
//! In: a function from time to [`Activity`], and the throttle bits in force. Out: the readings of
//! one GPU. Integration goes in steps of at most 100 ms, so a 1 Hz reader sees true averages.
//! Energy is in real seconds: it is the integral of the power that could have been read.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::hardware::GpuSpec;
use crate::identity;
use crate::load::Activity;

const STEP_S: f64 = 0.1;
/// After a long silence the steps grow, so that catching up costs no more than this many.
const STEPS_MAX: u64 = 64;
const WINDOW_S: f64 = 1.0;
const SAMPLES_MAX: usize = 120;
const TEMP_IDLE_C: f64 = 31.0;
const TEMP_RISE_C: f64 = 42.0;
const TEMP_TAU_S: f64 = 15.0;

/// Bits of the clock event reasons that mean heat.
const THERMAL_BITS: u64 = 0x20 | 0x40;
pub const REASON_IDLE: u64 = 0x1;
pub const REASON_POWER_CAP: u64 = 0x4;

/// What only grows until the driver is reloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub energy_mj: f64,
    pub nvlink_tx: f64,
    pub nvlink_rx: f64,
    pub pcie_tx: f64,
    pub pcie_rx: f64,
    pub nic_tx: f64,
    pub nic_rx: f64,
    pub power_violation_ns: f64,
    pub thermal_violation_ns: f64,
    /// Seconds of full activity.
    pub busy_s: f64,
    pub sm_s: f64,
    pub tensor_s: f64,
    pub dram_s: f64,
}

impl Totals {
    fn add(&mut self, a: &Activity, spec: &GpuSpec, nic_bps: f64, power_mw: f64, dt: f64) {
        self.energy_mj += power_mw * dt;
        let nvlink = a.nvlink * f64::from(spec.nvlinks * spec.nvlink_mbps) * 1e6 * dt;
        self.nvlink_tx += nvlink;
        self.nvlink_rx += nvlink * 0.99;
        let pcie = a.pcie * spec.pcie_mbps() * 1e6 * dt;
        self.pcie_tx += pcie * 0.6;
        self.pcie_rx += pcie;
        self.nic_tx += a.nic * nic_bps * dt;
        self.nic_rx += a.nic * nic_bps * 0.99 * dt;
        self.busy_s += a.busy * dt;
        self.sm_s += a.sm * dt;
        self.tensor_s += a.tensor * dt;
        self.dram_s += a.dram * dt;
    }
}

/// One entry of what nvmlDeviceGetSamples gives back.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Seconds since the node's epoch.
    pub t: f64,
    pub power_mw: u32,
    pub busy: u32,
    pub mem: u32,
    pub sm_mhz: u32,
}

#[derive(Debug)]
pub struct Meter {
    spec: &'static GpuSpec,
    seed: u64,
    /// Bytes a second one way on the GPU's rail NIC.
    nic_bps: f64,
    /// Seconds since the node's epoch up to which everything is counted.
    t: f64,
    pub totals: Totals,
    pub power_mw: u32,
    pub temp_c: f64,
    pub sm_mhz: u32,
    /// Percent over the last whole window.
    pub busy_pct: u32,
    pub mem_pct: u32,
    pub sm_pct: u32,
    pub window_end: f64,
    pub own_reasons: u64,
    window: (f64, Totals),
    pub readings: VecDeque<Reading>,
}

impl Meter {
    pub fn new(spec: &'static GpuSpec, seed: u64, nic_bps: f64, t: f64, totals: Totals) -> Self {
        Self {
            spec,
            seed,
            nic_bps,
            t,
            totals,
            power_mw: (spec.idle_w * 1000.0) as u32,
            temp_c: TEMP_IDLE_C,
            sm_mhz: spec.sm_mhz_idle,
            busy_pct: 0,
            mem_pct: 0,
            sm_pct: 0,
            window_end: t,
            own_reasons: REASON_IDLE,
            window: (t, totals),
            readings: VecDeque::new(),
        }
    }

    pub fn now(&self) -> f64 {
        self.t
    }

    /// The driver was reloaded at `t`: counters restart.
    pub fn reset(&mut self, t: f64) {
        self.t = self.t.max(t);
        self.totals = Totals::default();
        self.window = (self.t, self.totals);
        self.window_end = self.t;
        self.readings.clear();
    }

    /// Counts everything up to `now`. `activity` is asked for the middle of each step.
    pub fn advance(&mut self, now: f64, throttle: u64, activity: impl Fn(f64) -> Activity) {
        let gap = now - self.t;
        // Calls that follow each other at once see one reading, as they do on hardware.
        if gap < 0.02 {
            return;
        }
        let steps = ((gap / STEP_S).ceil() as u64).clamp(1, STEPS_MAX);
        let dt = gap / steps as f64;
        for _ in 0..steps {
            let a = activity(self.t + dt / 2.0);
            self.step(a, throttle, dt);
        }
    }

    fn step(&mut self, asked: Activity, throttle: u64, dt: f64) {
        let spec = self.spec;
        let slowed = throttle & !(REASON_IDLE | 0x2) != 0;
        let a = if slowed { asked.scaled(0.6) } else { asked };
        let a = Activity { busy: asked.busy, ..a };
        let effort = (0.55 * a.sm + 0.3 * a.tensor / 0.7 + 0.15 * a.dram / 0.55).min(1.05);
        let noise = 1.0 + 0.01 * (identity::unit(self.seed, (self.t * 10.0) as u64) - 0.5);
        let watts = (spec.idle_w + (spec.limit_w - spec.idle_w) * effort) * noise;
        let capped = watts >= spec.limit_w * 0.985;
        self.power_mw = (watts.min(spec.limit_w) * 1000.0) as u32;

        let mut target =
            TEMP_IDLE_C + TEMP_RISE_C * (watts - spec.idle_w) / (spec.limit_w - spec.idle_w);
        if throttle & THERMAL_BITS != 0 {
            target = target.max(88.0);
        }
        self.temp_c += (target - self.temp_c) * (1.0 - (-dt / TEMP_TAU_S).exp());

        let idle = a.busy < 0.005;
        self.sm_mhz = match () {
            () if idle => spec.sm_mhz_idle,
            () if slowed => spec.sm_mhz_max / 2,
            () if capped => spec.sm_mhz_max / 100 * 94,
            () => spec.sm_mhz_max,
        };
        self.own_reasons =
            if idle { REASON_IDLE } else { 0 } | if capped { REASON_POWER_CAP } else { 0 };
        if (self.own_reasons | throttle) & REASON_POWER_CAP != 0 {
            self.totals.power_violation_ns += dt * 1e9;
        }
        if throttle & THERMAL_BITS != 0 {
            self.totals.thermal_violation_ns += dt * 1e9;
        }
        self.totals.add(&a, spec, self.nic_bps, f64::from(self.power_mw), dt);
        self.t += dt;
        self.close_window();
        if self.readings.back().is_none_or(|r| self.t - r.t >= 0.099) {
            if self.readings.len() == SAMPLES_MAX {
                self.readings.pop_front();
            }
            self.readings.push_back(Reading {
                t: self.t,
                power_mw: self.power_mw,
                busy: pct(a.busy),
                mem: pct(a.dram),
                sm_mhz: self.sm_mhz,
            });
        }
    }

    fn close_window(&mut self) {
        let (start, then) = self.window;
        let span = self.t - start;
        if span < WINDOW_S - 1e-9 {
            return;
        }
        self.busy_pct = pct((self.totals.busy_s - then.busy_s) / span);
        self.mem_pct = pct((self.totals.dram_s - then.dram_s) / span);
        self.sm_pct = pct((self.totals.sm_s - then.sm_s) / span);
        self.window = (self.t, self.totals);
        self.window_end = self.t;
    }
}

fn pct(share: f64) -> u32 {
    (share * 100.0).round().clamp(0.0, 100.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::Hardware;
    use crate::load::Load;
    use crate::scenario::{NodeSection, Preset};

    fn meter() -> Meter {
        let h = Hardware::of(&NodeSection::new("n0", Preset::DgxH100, 1));
        Meter::new(h.gpus[0].spec, 7, 50e9, 0.0, Totals::default())
    }

    #[test]
    fn energy_is_the_integral_of_power_and_never_falls() {
        let mut m = meter();
        let load: Load = "const:0.5".parse().unwrap();
        let (mut last, mut by_hand) = (0.0, 0.0);
        for i in 1..=600 {
            m.advance(f64::from(i) * 0.1, 0, |t| load.at(t));
            assert!(m.totals.energy_mj > last);
            last = m.totals.energy_mj;
            by_hand += f64::from(m.power_mw) * 0.1;
        }
        // A step may be split in two, each with its own noise.
        assert!((last / by_hand - 1.0).abs() < 1e-3, "{last} {by_hand}");
        assert_eq!((m.busy_pct, m.mem_pct), (50, 25));
    }

    #[test]
    fn a_full_load_meets_the_power_limit_and_a_thermal_fault_slows_it() {
        let mut m = meter();
        let load: Load = "const:1.0".parse().unwrap();
        m.advance(60.0, 0, |t| load.at(t));
        assert!(m.power_mw <= 700_000 && m.power_mw > 600_000, "{}", m.power_mw);
        let cool = m.power_mw;
        m.advance(120.0, 0x40, |t| load.at(t));
        assert!(m.power_mw < cool && m.temp_c > 80.0 && m.sm_mhz == 990);
        assert!(m.totals.thermal_violation_ns > 59e9);
    }

    #[test]
    fn an_idle_gpu_stays_at_idle_power() {
        let mut m = meter();
        m.advance(10.0, 0, |_| Activity::default());
        assert!((m.power_mw as i64 - 70_000).abs() < 1000);
        assert_eq!((m.busy_pct, m.own_reasons), (0, REASON_IDLE));
    }
}
