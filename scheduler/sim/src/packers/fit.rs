//! The two rules everybody knows.

use tessera_core::placement::packing::{Ask, Kind, Left};

use super::{Rule, tightest};

/// The first node that fits, and on it the tightest device.
pub struct FirstFit;

impl Rule for FirstFit {
    fn name(&self) -> &'static str {
        "first-fit"
    }

    fn choose(&mut self, ask: &Ask, nodes: &[Left]) -> Option<(usize, u64)> {
        let at = nodes.iter().position(|left| ask.fits(left))?;
        Some((at, tightest(ask, &nodes[at])))
    }
}

/// The node on which least is left: CPUs and GPU weigh the same, each as a part of the largest
/// node's. Scores have two digits, as in the simulator of the FGD paper, and of equals the
/// first node wins.
pub struct BestFit {
    cpus: f64,
    gpu_milli: f64,
}

impl BestFit {
    pub fn new(kinds: &[Kind]) -> Self {
        let most = |of: &dyn Fn(&Kind) -> f64| kinds.iter().map(of).fold(1.0, f64::max);
        Self { cpus: most(&|k| f64::from(k.cpus)), gpu_milli: most(&|k| f64::from(k.gpus) * 1e3) }
    }

    fn score(&self, ask: &Ask, left: &Left) -> i64 {
        let cpus = f64::from(left.cpus - ask.cpus) / self.cpus;
        let idle = left.gpus.iter().map(f64::from).sum::<f64>();
        let gpu = (idle - f64::from(ask.gpus) * f64::from(ask.milli)) / self.gpu_milli;
        ((1.0 - 0.5 * cpus - 0.5 * gpu) * 100.0) as i64
    }
}

impl Rule for BestFit {
    fn name(&self) -> &'static str {
        "best-fit"
    }

    fn choose(&mut self, ask: &Ask, nodes: &[Left]) -> Option<(usize, u64)> {
        let fitting = nodes.iter().enumerate().filter(|(_, left)| ask.fits(left));
        let best = fitting.max_by_key(|(at, left)| (self.score(ask, left), usize::MAX - at));
        best.map(|(at, left)| (at, tightest(ask, left)))
    }
}
