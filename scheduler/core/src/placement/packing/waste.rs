//! Waste: how much of a node's GPU is expected to stay idle for good.
//!
//! In: what is left on a node. Out: the sum of three figures, each in milli.
//! - *Idle at the end*: the mean GPU still idle after many asks of the mix were offered to the node,
//!   each taken where it fits, on the tightest device. The asks come from series drawn once, the
//!   same for every node state, so that two states differ by what they are and not by luck. This
//!   knows CPUs and memory.
//! - *Unsold*: what the remainders of its devices are not worth by [`Prices`]. This knows which sizes
//!   go together well over all devices, which one node's series cannot show.
//! - *Blocks*: less what the node still offers to asks for several whole devices. Such asks are rare
//!   in a series, and come in vain once every node is broken into.

use std::collections::{BTreeMap, HashMap};

use super::classes::Quick;
use super::mix::{Mix, Seen};
use super::prices::{DEVICE, Prices};
use super::{Ask, Kind, Left, Tuning, WHOLE};

const SEED: u64 = 0x7465_7373_6572_6121;

pub struct Waste {
    kinds: Vec<ForKind>,
    series: u16,
    memo: HashMap<Left, i32, Quick>,
}

/// The series as nodes of one kind meet them.
struct ForKind {
    cpus_step: u32,
    memory_step: u64,
    shapes: Vec<Shape>,
    /// Indices into `shapes`, series after series; asks this kind can never take are left out.
    draws: Vec<u8>,
    /// Where each series ends in `draws`.
    ends: Vec<u32>,
    /// Asks for several whole devices, and what a thousand milli kept for them count.
    blocks: Vec<(Shape, i64)>,
    /// What a remainder of each size, 0 to [`WHOLE`] milli, is not worth.
    unsold: Vec<i64>,
    /// The least of `unsold` up to each remainder. A remainder may be worth more than its size: of
    /// 810 one device can be spared where nobody wants the other 190.
    unsold_least: Vec<i64>,
}

#[derive(Clone, Copy)]
struct Shape {
    cpus: u32,
    memory: u64,
    gpus: u16,
    milli: u16,
}

impl Waste {
    pub fn new(mix: &Mix, kinds: &[Kind], tuning: Tuning) -> Self {
        let frozen = mix.frozen();
        let all = draw(frozen.iter().map(|seen| seen.count), tuning);
        let kinds =
            (0u16..).zip(kinds).map(|(at, kind)| ForKind::new(frozen, &all, at, kind, tuning));
        Self { kinds: kinds.collect(), series: series(tuning), memo: HashMap::default() }
    }

    pub fn kinds(&self) -> usize {
        self.kinds.len()
    }

    /// Estimates are sums over the series, so in this many parts of a milli.
    pub fn unit(&self) -> i64 {
        i64::from(self.series)
    }

    /// CPUs and memory rounded down, so that close states share an estimate. What fits is never
    /// decided on it.
    pub fn coarse(&self, left: &Left) -> Left {
        let kind = &self.kinds[usize::from(left.kind)];
        let mut coarse = *left;
        coarse.cpus -= coarse.cpus % kind.cpus_step;
        coarse.memory -= coarse.memory % kind.memory_step;
        coarse
    }

    /// The waste of this coarse state can fall by no more than this, whatever is put on it: nothing
    /// idle at the end, each device at its best remainder, and its blocks as they are.
    pub fn most_fall(&mut self, left: &Left) -> i32 {
        let waste = i64::from(self.of(left));
        let kind = &self.kinds[usize::from(left.kind)];
        let best: i64 = left.gpus.iter().map(|m| kind.unsold_least[usize::from(m)]).sum();
        (waste + kind.blocks(left) - best) as i32
    }

    /// The least rise on a node of this coarse state, and what the device taken from had left (0
    /// where it takes no share). `left`'s devices are ascending. CPUs and memory are taken to do.
    pub fn rise(&mut self, left: &Left, ask: &Ask) -> Option<(i32, u16)> {
        let roomy = Left { cpus: u32::MAX, memory: u64::MAX, ..*left };
        if !ask.fits(&roomy) {
            return None;
        }
        let mut after = *left;
        after.cpus = after.cpus.saturating_sub(ask.cpus);
        after.memory = after.memory.saturating_sub(ask.memory);
        let before = self.of(left);
        if ask.gpus == 0 {
            return Some((self.of(&after) - before, 0));
        }
        if ask.milli == WHOLE {
            // Ascending, so the untouched ones are last; the rest moves up behind the emptied.
            let devices = after.gpus.as_mut_slice();
            let taken = usize::from(ask.gpus);
            let kept = devices.len() - taken;
            devices.copy_within(..kept, taken);
            devices[..taken].fill(0);
            return Some((self.of(&after) - before, 0));
        }
        let mut best: Option<(i32, u16)> = None;
        for at in 0..left.gpus.len() {
            let milli = left.gpus.as_slice()[at];
            let again = at > 0 && left.gpus.as_slice()[at - 1] == milli;
            if milli < ask.milli || again {
                continue;
            }
            after.gpus = left.gpus;
            let devices = after.gpus.as_mut_slice();
            devices[at] -= ask.milli;
            devices.sort_unstable();
            let rise = self.of(&after) - before;
            // Ascending, so of equals the tightest stays.
            if best.is_none_or(|(least, _)| rise < least) {
                best = Some((rise, milli));
            }
        }
        best
    }

    /// `left`'s devices are ascending.
    fn of(&mut self, left: &Left) -> i32 {
        let coarse = self.coarse(left);
        if let Some(&known) = self.memo.get(&coarse) {
            return known;
        }
        let kind = &self.kinds[usize::from(left.kind)];
        let unsold: i64 = coarse.gpus.iter().map(|m| kind.unsold[usize::from(m)]).sum();
        let waste = (i64::from(kind.play(&coarse)) + unsold - kind.blocks(&coarse)) as i32;
        self.memo.insert(coarse, waste);
        waste
    }
}

impl ForKind {
    fn new(frozen: &[Seen], all: &[Vec<u8>], at: u16, kind: &Kind, tuning: Tuning) -> Self {
        let can = |ask: &Ask| {
            ask.may_use(at)
                && ask.cpus <= kind.cpus
                && ask.memory <= kind.memory
                && ask.gpus <= kind.gpus
        };
        let mut shapes = Vec::new();
        let numbers: Vec<Option<u8>> = frozen
            .iter()
            .map(|seen| {
                can(&seen.ask).then(|| {
                    shapes.push(Shape::of(&seen.ask));
                    (shapes.len() - 1) as u8
                })
            })
            .collect();
        let (mut draws, mut ends) = (Vec::new(), Vec::new());
        for one in all {
            draws.extend(one.iter().filter_map(|&drawn| numbers[usize::from(drawn)]));
            ends.push(draws.len() as u32);
        }
        let unsold = unsold(frozen, can, tuning);
        let least = unsold.iter().scan(i64::MAX, |least, &one| {
            *least = one.min(*least);
            Some(*least)
        });
        Self {
            unsold_least: least.collect(),
            cpus_step: (kind.cpus / u32::from(tuning.steps.max(1))).max(1),
            memory_step: (kind.memory / u64::from(tuning.steps.max(1))).max(1),
            shapes,
            draws,
            ends,
            unsold,
            blocks: blocks(frozen, can, tuning),
        }
    }

    /// What is left for asks for several whole devices. What such an ask could not use
    /// anyway counts nothing: only breaking into it does.
    fn blocks(&self, left: &Left) -> i64 {
        let whole = left.gpus.iter().filter(|&m| m == WHOLE).count() as u64;
        let offered = |&(shape, weight): &(Shape, i64)| {
            let by_cpus = u64::from(left.cpus).checked_div(u64::from(shape.cpus));
            let by_memory = left.memory.checked_div(shape.memory);
            let gangs = (whole / u64::from(shape.gpus))
                .min(by_cpus.unwrap_or(u64::MAX))
                .min(by_memory.unwrap_or(u64::MAX));
            weight * gangs as i64 * i64::from(shape.gpus)
        };
        self.blocks.iter().map(offered).sum()
    }

    /// The GPU idle at the end, summed over the series.
    fn play(&self, start: &Left) -> i32 {
        let (mut fits, mut want_gpu) = ([0u64; 4], [0u64; 4]);
        for (at, shape) in self.shapes.iter().enumerate() {
            if shape.gpus > 0 {
                want_gpu[at / 64] |= 1 << (at % 64);
            }
            if shape.take(&mut start.clone()) {
                fits[at / 64] |= 1 << (at % 64);
            }
        }
        let mut idle = 0i32;
        let mut from = 0;
        for &end in &self.ends {
            let mut left = *start;
            let mut open = fits;
            for &draw in &self.draws[from..end as usize] {
                let (word, bit) = (usize::from(draw) / 64, 1u64 << (draw % 64));
                // What did not fit once will not fit later in the series.
                if open[word] & bit == 0 {
                    continue;
                }
                if !self.shapes[usize::from(draw)].take(&mut left) {
                    open[word] &= !bit;
                    if open.iter().zip(&want_gpu).all(|(o, w)| o & w == 0) {
                        break;
                    }
                }
            }
            idle += left.gpus.iter().map(i32::from).sum::<i32>();
            from = end as usize;
        }
        idle
    }
}

impl Shape {
    fn of(ask: &Ask) -> Self {
        Self { cpus: ask.cpus, memory: ask.memory, gpus: ask.gpus, milli: ask.milli }
    }

    /// Takes it off on the tightest device; false, and nothing taken, where it does not fit.
    fn take(self, left: &mut Left) -> bool {
        if self.cpus > left.cpus || self.memory > left.memory {
            return false;
        }
        if self.gpus > 0 {
            let devices = left.gpus.as_mut_slice();
            if self.milli == WHOLE {
                let idle = devices.iter().filter(|&&m| m == WHOLE).count();
                if idle < usize::from(self.gpus) {
                    return false;
                }
                let untouched = devices.iter_mut().filter(|m| **m == WHOLE);
                untouched.take(usize::from(self.gpus)).for_each(|m| *m = 0);
            } else {
                let able = devices.iter_mut().filter(|m| **m >= self.milli);
                match able.min_by_key(|m| **m) {
                    Some(tightest) => *tightest -= self.milli,
                    None => return false,
                }
            }
        }
        left.cpus -= self.cpus;
        left.memory -= self.memory;
        true
    }
}

/// The asks for several whole devices among those this kind could take, weighed by their part of
/// the GPU asked for.
fn blocks(frozen: &[Seen], can: impl Fn(&Ask) -> bool, tuning: Tuning) -> Vec<(Shape, i64)> {
    let able: Vec<&Seen> = frozen.iter().filter(|seen| can(&seen.ask)).collect();
    let milli =
        |seen: &Seen| i64::from(seen.count) * i64::from(seen.ask.gpus) * i64::from(seen.ask.milli);
    let total = able.iter().map(|seen| milli(seen)).sum::<i64>().max(1);
    let thousand = i64::from(WHOLE) * i64::from(series(tuning));
    let several = able.into_iter().filter(|seen| seen.ask.gpus > 1);
    several
        .map(|seen| {
            let counts = i128::from(thousand * i64::from(tuning.block_percent));
            let weight = i128::from(milli(seen)) * counts / (i128::from(total) * 100);
            (Shape::of(&seen.ask), weight as i64)
        })
        .collect()
}

/// What a remainder of each size is not worth.
fn unsold(frozen: &[Seen], can: impl Fn(&Ask) -> bool, tuning: Tuning) -> Vec<i64> {
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    for seen in frozen {
        if seen.ask.gpus == 1 && seen.ask.milli < WHOLE && can(&seen.ask) {
            *counts.entry(seen.ask.milli).or_default() += u64::from(seen.count);
        }
    }
    let prices = Prices::of(&counts.into_iter().collect::<Vec<_>>());
    let scale = i64::from(series(tuning)) * i64::from(tuning.price_weight);
    (0..=WHOLE)
        .map(|m| i64::from(m) * scale - prices.worth(m) * i64::from(WHOLE) * scale / DEVICE)
        .collect()
}

fn series(tuning: Tuning) -> u16 {
    tuning.series.max(1)
}

/// `tuning.series` series of `tuning.draws` shape numbers each, drawn by the counts.
fn draw(counts: impl Iterator<Item = u32>, tuning: Tuning) -> Vec<Vec<u8>> {
    let mut total = 0u64;
    let sums: Vec<u64> = counts
        .map(|count| {
            total += u64::from(count);
            total
        })
        .collect();
    let mut state = SEED;
    let mut one = || {
        let at = ((u128::from(next(&mut state)) * u128::from(total)) >> 64) as u64;
        sums.partition_point(|&sum| sum <= at) as u8
    };
    let draws = if total == 0 { 0 } else { tuning.draws };
    (0..series(tuning)).map(|_| (0..draws).map(|_| one()).collect()).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
