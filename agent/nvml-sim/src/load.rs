//! How busy a GPU is at a moment.
//!
//! In: a shape, its level and a time. Out: an [`Activity`]: the parts of a GPU that move together
//! in one phase. What it costs in watts and bytes is `meter`'s subject. Pure: no clock, no chance.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    Idle,
    Const,
    Ramp,
    Sine,
    Square,
    /// Forward and backward (80 %), all-reduce (15 %), optimizer and input (5 %).
    TrainStep,
}

impl Shape {
    /// Seconds of one turn when the scenario names none.
    pub fn default_period(self) -> f64 {
        if self == Self::TrainStep { 1.2 } else { 60.0 }
    }
}

/// Each 0..1 of what the hardware can do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Activity {
    /// Share of time in which any kernel ran: what NVML calls utilization.
    pub busy: f64,
    pub sm: f64,
    pub tensor: f64,
    pub dram: f64,
    pub nvlink: f64,
    pub pcie: f64,
    /// Traffic on this GPU's rail NIC.
    pub nic: f64,
}

impl Activity {
    fn zip(self, o: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            busy: f(self.busy, o.busy),
            sm: f(self.sm, o.sm),
            tensor: f(self.tensor, o.tensor),
            dram: f(self.dram, o.dram),
            nvlink: f(self.nvlink, o.nvlink),
            pcie: f(self.pcie, o.pcie),
            nic: f(self.nic, o.nic),
        }
    }

    /// Two jobs on one GPU: together they cannot do more than it can.
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| (a + b).min(1.0))
    }

    /// The busier of two accounts of the same GPU.
    pub fn max(self, other: Self) -> Self {
        self.zip(other, f64::max)
    }

    pub fn scaled(self, factor: f64) -> Self {
        self.zip(Self::default(), |a, _| a * factor)
    }
}

/// A load with a level and a period; the text form is `kind:level`, as in `TESSERA_SIM_LOAD`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    pub shape: Shape,
    pub level: f64,
    /// Seconds.
    pub period: f64,
}

impl Load {
    /// What a job does that says nothing about itself.
    pub const TRAINING: Self = Self { shape: Shape::TrainStep, level: 0.9, period: 1.2 };

    /// The activity `t` seconds after the load began.
    pub fn at(&self, t: f64) -> Activity {
        let phase = (t / self.period).rem_euclid(1.0);
        let steady = |level: f64| Activity {
            busy: level,
            sm: level,
            tensor: 0.65 * level,
            dram: 0.5 * level,
            nvlink: 0.2 * level,
            pcie: 0.05 * level,
            nic: 0.2 * level,
        };
        let level = self.level;
        match self.shape {
            Shape::Idle => Activity::default(),
            Shape::Const => steady(level),
            Shape::Ramp => steady(level * phase),
            Shape::Sine => steady(level * (0.5 - 0.5 * (std::f64::consts::TAU * phase).cos())),
            Shape::Square => steady(if phase < 0.5 { level } else { 0.0 }),
            Shape::TrainStep if phase < 0.8 => Activity {
                busy: level.sqrt(),
                sm: level,
                tensor: 0.7 * level,
                dram: 0.55 * level,
                nvlink: 0.15 * level,
                pcie: 0.03 * level,
                nic: 0.1 * level,
            },
            // The all-reduce keeps kernels running, on few SMs.
            Shape::TrainStep if phase < 0.95 => Activity {
                busy: level.sqrt(),
                sm: 0.3 * level,
                tensor: 0.02 * level,
                dram: 0.3 * level,
                nvlink: 0.9 * level,
                pcie: 0.05 * level,
                nic: 0.9 * level,
            },
            Shape::TrainStep => Activity {
                busy: 0.6 * level,
                sm: 0.2 * level,
                tensor: 0.0,
                dram: 0.7 * level,
                nvlink: 0.0,
                pcie: 0.4 * level,
                nic: 0.0,
            },
        }
    }
}

impl FromStr for Load {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, level) = s.split_once(':').unwrap_or((s, "0.9"));
        let shape = match kind {
            "idle" => Shape::Idle,
            "const" => Shape::Const,
            "ramp" => Shape::Ramp,
            "sine" => Shape::Sine,
            "square" => Shape::Square,
            "train-step" => Shape::TrainStep,
            _ => return Err(format!("no load is called {kind:?}")),
        };
        let level: f64 = level.parse().map_err(|_| format!("{level:?} is not a level"))?;
        if !(0.0..=1.0).contains(&level) {
            return Err(format!("level {level} is not within 0..1"));
        }
        Ok(Self { shape, level, period: shape.default_period() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_their_form() {
        let load = |text: &str| text.parse::<Load>().unwrap();
        for (text, t, sm) in [
            ("idle:1", 3.0, 0.0),
            ("const:0.5", 3.0, 0.5),
            ("ramp:1", 30.0, 0.5),
            ("sine:1", 30.0, 1.0),
            ("square:1", 29.0, 1.0),
            ("square:1", 31.0, 0.0),
            ("train-step:1", 0.1, 1.0),
            ("train-step:1", 1.0, 0.3),
        ] {
            assert!((load(text).at(t).sm - sm).abs() < 1e-9, "{text} at {t}");
        }
        for text in ["", "const:2", "const:x", "train"] {
            assert!(text.parse::<Load>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_all_reduce_moves_bytes_instead_of_multiplying() {
        let load = Load::TRAINING;
        let (compute, reduce) = (load.at(0.1), load.at(1.0));
        assert!(reduce.nvlink > 4.0 * compute.nvlink && reduce.tensor < 0.1 * compute.tensor);
    }
}
