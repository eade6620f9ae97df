//! FGD: fragmentation gradient descent (Weng et al., USENIX ATC'23).
//!
//! In: besides the ask, the list's typical shapes with their counts, which the published protocol
//! takes from the whole list beforehand. A node's fragment is the GPU that a typical job could not
//! use, averaged over the shapes; the node and device whose fragment grows least win. Its score is
//! `int(100 * sigmoid(-growth in GPUs))`, and the truncation matters: the ties it makes go to the
//! first node. With exact scores the rule is a point worse on the openb list.

use std::collections::HashMap;

use tessera_core::placement::packing::{Ask, Devices, Left, WHOLE};

use super::{Rule, tightest};

/// A node's score and the devices it would take; `None`: there is no room on it.
type Score = Option<(i64, u64)>;

pub struct Fgd {
    typical: Vec<(Ask, f64)>,
    asks: HashMap<Ask, usize>,
    /// By ask, then by node: score and devices, where they are known.
    known: Vec<Vec<Option<Score>>>,
}

impl Fgd {
    /// Shapes that differ only in memory are one, as published.
    pub fn new(typical: &[(Ask, u64)]) -> Self {
        let total: u64 = typical.iter().map(|(_, count)| count).sum();
        let mut merged: Vec<(Ask, f64)> = Vec::new();
        for (ask, count) in typical {
            let ask = Ask { memory: 0, ..ask.clone() };
            let part = *count as f64 / total as f64;
            match merged.iter_mut().find(|(known, _)| *known == ask) {
                Some((_, sum)) => *sum += part,
                None => merged.push((ask, part)),
            }
        }
        Self { typical: merged, asks: HashMap::new(), known: Vec::new() }
    }

    fn score(&self, ask: &Ask, left: &Left) -> Option<(i64, u64)> {
        if !ask.fits(left) {
            return None;
        }
        let before = self.fragment(left);
        let score = |devices: u64| {
            let mut after = *left;
            after.take(ask, devices);
            let shrinks = (before - self.fragment(&after)) / f64::from(WHOLE);
            ((100.0 / (1.0 + (-shrinks).exp())) as i64, devices)
        };
        if ask.gpus != 1 || ask.milli == WHOLE {
            return Some(score(tightest(ask, left)));
        }
        let able = (0..left.gpus.len()).filter(|&i| left.gpus.as_slice()[i] >= ask.milli);
        // Of equals the first device.
        able.map(|i| score(1 << i)).max_by_key(|&(score, mask)| (score, u64::MAX - mask))
    }

    fn fragment(&self, left: &Left) -> f64 {
        self.typical.iter().map(|(ask, part)| part * f64::from(unusable(ask, left))).sum()
    }
}

impl Rule for Fgd {
    fn name(&self) -> &'static str {
        "fgd"
    }

    fn choose(&mut self, ask: &Ask, nodes: &[Left]) -> Option<(usize, u64)> {
        let row = match self.asks.get(ask) {
            Some(&row) => row,
            None => {
                self.asks.insert(ask.clone(), self.known.len());
                self.known.push(vec![None; nodes.len()]);
                self.known.len() - 1
            }
        };
        let mut best: Option<(i64, usize, u64)> = None;
        for (at, left) in nodes.iter().enumerate() {
            let known = match self.known[row][at] {
                Some(known) => known,
                None => {
                    let fresh = self.score(ask, left);
                    self.known[row][at] = Some(fresh);
                    fresh
                }
            };
            if let Some((score, devices)) = known
                && best.is_none_or(|(most, _, _)| score > most)
            {
                best = Some((score, at, devices));
            }
        }
        best.map(|(_, at, devices)| (at, devices))
    }

    fn changed(&mut self, node: usize, _left: &Left) {
        self.known.iter_mut().for_each(|row| row[node] = None);
    }
}

/// Milli idle on the node that the job could not use. Where it fits, devices with less than its
/// share left are lost to it; where it does not, and to a job that needs no GPU, all are.
fn unusable(ask: &Ask, left: &Left) -> u32 {
    let idle = |gpus: &Devices| gpus.iter().map(u32::from).sum::<u32>();
    if ask.gpus == 0 || !ask.fits(left) {
        return idle(&left.gpus);
    }
    left.gpus.iter().filter(|&m| m < ask.milli).map(u32::from).sum()
}
