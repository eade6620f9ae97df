//! Prices: what the rest of a shared device is worth, if all devices are cut up as well as can be.
//!
//! In: how often shares of each size are asked for. Out: for each remainder of a device, the part of
//! a device that it saves when the best sizes are put into it. A remainder of 190 may be worth
//! nothing, since nobody asks for so little, and one of 530 half a device.
//!
//! Cutting devices into asked-for sizes so that fewest are used is the cutting-stock problem. Its
//! linear relaxation has one variable per pattern (sizes that fit one device together), and its dual
//! one price per size. Patterns are made as they are needed, by a knapsack over the prices (Gilmore
//! and Gomory, 1961). Only `+ - * /` and comparisons of `f64` are used, so every machine computes
//! the same prices; they are rounded before anything is added up.

use super::WHOLE;

/// A worth of this much is one whole device.
pub const DEVICE: i64 = 1_000_000;

const EPSILON: f64 = 1e-9;

/// What a remainder of each size, 0 to [`WHOLE`] milli, is worth, in [`DEVICE`]ths of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prices {
    worth: Vec<i64>,
}

impl Prices {
    /// `shares`: size in milli (1 to 999) and how often it is asked for; each size once.
    pub fn of(shares: &[(u16, u64)]) -> Self {
        let sizes: Vec<u16> = shares.iter().map(|&(size, _)| size).collect();
        // Sizes are mostly round numbers; counting in their common divisor makes short tables.
        let grain = sizes.iter().fold(WHOLE, |g, &size| common_divisor(g, size));
        let stock = Stock {
            sizes: sizes.iter().map(|&size| usize::from(size / grain)).collect(),
            length: usize::from(WHOLE / grain),
        };
        let counts: Vec<f64> = shares.iter().map(|&(_, count)| count as f64).collect();
        let prices = stock.prices(&counts);
        let rounded: Vec<i64> = prices.iter().map(|&p| (p * DEVICE as f64) as i64).collect();

        let mut best = vec![0i64; stock.length + 1];
        for room in 1..=stock.length {
            best[room] = best[room - 1];
            for (&size, &price) in stock.sizes.iter().zip(&rounded) {
                if size <= room {
                    best[room] = best[room].max(best[room - size] + price);
                }
            }
        }
        let mut worth: Vec<i64> = (0..=WHOLE).map(|m| best[usize::from(m / grain)]).collect();
        // An untouched device can also be had whole.
        worth[usize::from(WHOLE)] = DEVICE;
        Self { worth }
    }

    pub fn worth(&self, milli: u16) -> i64 {
        self.worth[usize::from(milli)]
    }
}

/// Devices of one length and the sizes to be cut from them.
struct Stock {
    sizes: Vec<usize>,
    length: usize,
}

impl Stock {
    /// The optimal dual prices, or, where the rounds run out first, prices that are nearly so. No
    /// pattern is worth more than 1 (but for rounding).
    fn prices(&self, counts: &[f64]) -> Vec<f64> {
        let n = self.sizes.len();
        // The basis: as many of one size as fit, for each size. Its inverse is a diagonal.
        let mut inverse = vec![vec![0.0; n]; n];
        let mut cost = vec![1.0; n];
        let mut amount = vec![0.0; n];
        for i in 0..n {
            inverse[i][i] = 1.0 / (self.length / self.sizes[i]) as f64;
            amount[i] = counts[i] * inverse[i][i];
        }
        for round in 0.. {
            let prices: Vec<f64> =
                (0..n).map(|j| (0..n).map(|i| cost[i] * inverse[i][j]).sum()).collect();
            let surplus = (0..n).find(|&j| prices[j] < -EPSILON);
            let (value, pattern) = self.best_pattern(&prices);
            let (entering, entering_cost) = match surplus {
                Some(j) => ((0..n).map(|i| if i == j { -1.0 } else { 0.0 }).collect(), 0.0),
                None => (pattern, 1.0),
            };
            let done = surplus.is_none() && value <= 1.0 + EPSILON;
            if done || round >= 8 * n + 64 {
                let scale = if value > 1.0 { value } else { 1.0 };
                return prices.into_iter().map(|p| if p > 0.0 { p / scale } else { 0.0 }).collect();
            }
            let change: Vec<f64> = inverse
                .iter()
                .map(|row| row.iter().zip(&entering).map(|(a, b)| a * b).sum())
                .collect();
            let Some(leaving) = leaving(&amount, &change) else {
                // Cannot be, as every pattern uses up what is asked for; rounding might make it so.
                return prices
                    .into_iter()
                    .map(|p| if p > 0.0 { p / value.max(1.0) } else { 0.0 })
                    .collect();
            };
            let pivot = change[leaving];
            inverse[leaving].iter_mut().for_each(|a| *a /= pivot);
            amount[leaving] /= pivot;
            let (row, enters) = (inverse[leaving].clone(), amount[leaving]);
            for i in (0..n).filter(|&i| i != leaving && change[i] != 0.0) {
                inverse[i].iter_mut().zip(&row).for_each(|(a, b)| *a -= change[i] * b);
                amount[i] -= change[i] * enters;
            }
            cost[leaving] = entering_cost;
        }
        unreachable!("the rounds are bounded")
    }

    /// The pattern worth most at these prices: its value, and how many of each size.
    fn best_pattern(&self, prices: &[f64]) -> (f64, Vec<f64>) {
        let mut best = vec![0.0; self.length + 1];
        let mut last = vec![usize::MAX; self.length + 1];
        for room in 1..=self.length {
            best[room] = best[room - 1];
            for (i, (&size, &price)) in self.sizes.iter().zip(prices).enumerate() {
                if price > 0.0 && size <= room && best[room - size] + price > best[room] {
                    best[room] = best[room - size] + price;
                    last[room] = i;
                }
            }
        }
        let mut pattern = vec![0.0; self.sizes.len()];
        let mut room = self.length;
        while room > 0 {
            if last[room] == usize::MAX {
                room -= 1;
            } else {
                pattern[last[room]] += 1.0;
                room -= self.sizes[last[room]];
            }
        }
        (best[self.length], pattern)
    }
}

/// The basic pattern used up first as the entering one grows; of equals the first.
fn leaving(amount: &[f64], change: &[f64]) -> Option<usize> {
    let mut least: Option<(f64, usize)> = None;
    for (i, (&have, &per)) in amount.iter().zip(change).enumerate() {
        if per > EPSILON && least.is_none_or(|(ratio, _)| have / per < ratio) {
            least = Some((have / per, i));
        }
    }
    least.map(|(_, i)| i)
}

fn common_divisor(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}
