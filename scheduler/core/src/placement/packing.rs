//! Packing: which node, and which of its devices, one single-node ask should get.
//!
//! In: the states of the nodes that may be used, in a fixed order, and the observed [`Mix`] of asks.
//! Out: the node and device where the ask does least harm to what may still come. Gangs over
//! several nodes are `search`'s work, which whole GPUs of a node fit its topology is `gpus`'s; whether
//! the job may run at all is `decide`'s. A MIG instance is a device of a node of its own kind.
//!
//! The idea is *expected waste*: [`waste`] estimates how much GPU a node would still have idle
//! after many more asks of the mix were offered to it. An ask goes where that figure rises least,
//! plus a small price per position in the node order, so that small asks gather on early nodes and
//! whole nodes stay whole. It follows FGD (Weng et al., USENIX ATC'23), which counts the idle GPU
//! that asks of the mix cannot use *now*; looking at the end instead of at the next ask is what
//! packs tighter.
//!
//! Beside it stand the dual prices of the best way to cut devices into shares ([`prices`]); on the
//! openb lists they close most of what is left between expected waste and the bound.
//!
//! A node that fits is always used: the rule only says which one. Its answer depends on the mix,
//! the states and their order, and on nothing asked before.
//!
//! Units: GPU is in thousandths of one device ("milli"), memory in bytes or MiB and CPUs in whole
//! ones or thousandths, as the caller likes, but the same in every [`Left`], [`Ask`] and [`Kind`].

pub mod mix; // what asks have been seen
pub mod prices; // what the rest of a shared device is worth
pub mod waste; // how much a node state is expected to waste

mod classes; // node states, told apart by number

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

pub use classes::ClassId;
pub use mix::Mix;

use classes::{Classes, Quick};
use waste::Waste;

/// One whole device, in milli.
pub const WHOLE: u16 = 1000;
/// Most devices a node can have here.
pub const DEVICES_MAX: usize = 64;
/// Memo cells at which [`Packer::is_full`] says so: 8 bytes each.
const CELLS_MAX: usize = 8 << 20;

/// What is left on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Index into the [`Kind`]s the [`Packer`] was made with.
    pub kind: u16,
    pub cpus: u32,
    pub memory: u64,
    pub gpus: Devices,
}

/// What is left of each healthy device of a node, in milli, in the caller's order.
#[derive(Clone, Copy)]
pub struct Devices {
    len: u8,
    milli: [u16; DEVICES_MAX],
}

/// What a node of this kind has when nothing runs on it. Nodes that differ in what a
/// job can ask for by name (GPU model, MIG profile) are of different kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub cpus: u32,
    pub memory: u64,
    pub gpus: u16,
}

/// What one job, or one member of it, wants on one node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// Devices; 0 for a job that needs none.
    pub gpus: u16,
    /// Of each device. Below [`WHOLE`] only where `gpus` is 1.
    pub milli: u16,
    pub cpus: u32,
    pub memory: u64,
    /// The kinds it may use, ascending; `None` for any, kinds not yet seen included.
    pub kinds: Option<Vec<u16>>,
}

/// Which devices an ask takes, said in a way that holds for all nodes of the same class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    Nothing,
    /// A share of a device that has just this much left, milli.
    ShareOf(u16),
    /// So many devices of which nothing is used.
    Whole(u16),
}

/// The answer of [`Packer::choose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub position: u32,
    pub class: ClassId,
    pub take: Take,
    /// What the choice costs, position included, in [`Packer::cost_unit`]ths of a milli.
    pub cost: i64,
}

/// The defaults were found on the openb lists with seeds 100 to 103, those without departures
/// and the same asks with departures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// How many asks a node is offered before its idle GPU is counted.
    pub draws: u16,
    /// Over how many such series the mean is taken.
    pub series: u16,
    /// The price of one position in the node order, milli.
    pub position_milli: u16,
    /// A node's CPUs and memory are told apart in so many steps. What fits is decided exactly.
    pub steps: u16,
    /// How many times what the prices say counts beside what the series say.
    pub price_weight: u16,
    /// What a device in a block kept for asks for several whole ones counts, in percent of itself
    /// times the part such asks have in all the GPU asked for.
    pub block_percent: u16,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            draws: 40,
            series: 32,
            position_milli: 2,
            steps: 16,
            price_weight: 4,
            block_percent: 20,
        }
    }
}

/// Chooses nodes under one frozen [`Mix`]. Made anew whenever [`Mix::revision`] has moved or a kind
/// was added; never stored, since all it holds can be worked out again.
pub struct Packer {
    tuning: Tuning,
    waste: Waste,
    classes: Classes,
    asks: HashMap<Ask, u32, Quick>,
    /// By ask, then by class.
    rises: Vec<Vec<Cell>>,
    /// By class: the choice (`round`) in which it was last seen, and where in `distinct` it stands.
    seen: Vec<(u32, u32)>,
    round: u32,
    /// By class: how far its waste can fall at most.
    most: Vec<i32>,
    /// The classes of the choice at hand, with the lowest position of each.
    distinct: Vec<(ClassId, u32)>,
}

/// A memoised rise.
#[derive(Clone, Copy)]
struct Cell {
    rise: i32,
    state: u16,
    remaining: u16,
}

const UNKNOWN: u16 = 0;
const NO_FIT: u16 = 1;
const FITS: u16 = 2;

impl Packer {
    /// # Panics
    /// Where the tuning is out of all proportion: an estimate has to fit 32 bits.
    pub fn new(mix: &Mix, kinds: &[Kind], tuning: Tuning) -> Self {
        let weight = 1 + u64::from(tuning.price_weight) + u64::from(tuning.block_percent) / 100;
        assert!(
            u64::from(tuning.series) * weight < 30_000,
            "series times weights stays below 30,000"
        );
        Self {
            tuning,
            waste: Waste::new(mix, kinds, tuning),
            classes: Classes::default(),
            asks: HashMap::default(),
            rises: Vec::new(),
            seen: Vec::new(),
            round: 0,
            most: Vec::new(),
            distinct: Vec::new(),
        }
    }

    /// The number that stands for all nodes with about this left, whatever the order of their
    /// devices: CPUs and memory are rounded down to [`Tuning::steps`], devices are exact.
    ///
    /// # Panics
    /// Where `left.kind` is not among the kinds the packer was made with.
    pub fn class_of(&mut self, left: &Left) -> ClassId {
        assert!(
            usize::from(left.kind) < self.waste.kinds(),
            "a node's kind is among those the packer was made with"
        );
        let class = self.classes.intern(self.waste.coarse(left));
        if class.index() == self.most.len() {
            self.most.push(self.waste.most_fall(self.classes.get(class)));
        }
        class
    }

    /// Costs are in this many parts of a milli.
    pub fn cost_unit(&self) -> i64 {
        self.waste.unit()
    }

    /// True when the memo has grown so large that it should be thrown away: make a new packer and
    /// class the nodes again. No answer changes by it.
    pub fn is_full(&self) -> bool {
        self.classes.len().saturating_mul(self.rises.len().max(8)) > CELLS_MAX
    }

    /// How much more waste is to be expected of a node of this class once `ask` runs on it, in
    /// [`cost_unit`](Self::cost_unit)ths of a milli, and on which devices that is least. `None`
    /// where kind or devices do not do; whether its CPUs and memory suffice, a class does not know.
    pub fn rise(&mut self, class: ClassId, ask: &Ask) -> Option<(i64, Take)> {
        let row = self.row(ask);
        let cell = self.cell(row, class, ask);
        (cell.state == FITS).then(|| (i64::from(cell.rise), take(ask, cell.remaining)))
    }

    /// The best of `nodes` for this ask; of equals the lowest position. `None` only where it fits
    /// on none of them. `nodes` are those that may be used and [have the CPUs and memory](Ask::fits),
    /// which classes know only roughly; positions are places in a node order that stays the same
    /// from choice to choice.
    pub fn choose(
        &mut self,
        ask: &Ask,
        nodes: impl Iterator<Item = (u32, ClassId)>,
    ) -> Option<Choice> {
        self.gather(nodes);
        let row = self.row(ask);
        let distinct = std::mem::take(&mut self.distinct);
        let price = i64::from(self.tuning.position_milli) * self.waste.unit();
        let mut best: Option<Choice> = None;
        for &(class, position) in &distinct {
            // Too far back to win, however well it goes there. This spares most of the work.
            let least = price * i64::from(position) - i64::from(self.most[class.index()]);
            if best.is_some_and(|b| least > b.cost) {
                continue;
            }
            let cell = self.cell(row, class, ask);
            if cell.state != FITS {
                continue;
            }
            let cost = i64::from(cell.rise) + price * i64::from(position);
            if best.is_none_or(|b| (cost, position) < (b.cost, b.position)) {
                best = Some(Choice { position, class, take: take(ask, cell.remaining), cost });
            }
        }
        self.distinct = distinct;
        best
    }

    /// Only the first node of a class can win, as the price grows with the position.
    fn gather(&mut self, nodes: impl Iterator<Item = (u32, ClassId)>) {
        self.distinct.clear();
        self.seen.resize(self.classes.len(), (0, 0));
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.seen.fill((0, 0));
            self.round = 1;
        }
        for (position, class) in nodes {
            let (round, slot) = &mut self.seen[class.index()];
            if *round != self.round {
                (*round, *slot) = (self.round, self.distinct.len() as u32);
                self.distinct.push((class, position));
            } else {
                let (_, lowest) = &mut self.distinct[*slot as usize];
                *lowest = position.min(*lowest);
            }
        }
    }

    fn row(&mut self, ask: &Ask) -> usize {
        if let Some(&row) = self.asks.get(ask) {
            return row as usize;
        }
        let row = self.rises.len();
        self.asks.insert(ask.clone(), u32::try_from(row).expect("is_full comes long before"));
        self.rises.push(Vec::new());
        row
    }

    fn cell(&mut self, row: usize, class: ClassId, ask: &Ask) -> Cell {
        let cells = &mut self.rises[row];
        if cells.len() <= class.index() {
            cells.resize(self.classes.len(), Cell { rise: 0, state: UNKNOWN, remaining: 0 });
        }
        if cells[class.index()].state == UNKNOWN {
            let left = self.classes.get(class);
            cells[class.index()] = match self.waste.rise(left, ask) {
                Some((rise, remaining)) => Cell { rise, state: FITS, remaining },
                None => Cell { rise: 0, state: NO_FIT, remaining: 0 },
            };
        }
        cells[class.index()]
    }
}

fn take(ask: &Ask, remaining: u16) -> Take {
    match ask.gpus {
        0 => Take::Nothing,
        1 if ask.milli < WHOLE => Take::ShareOf(remaining),
        n => Take::Whole(n),
    }
}

impl Take {
    /// The devices meant, as bits in the node's own order; of equals the lowest. `None` where the
    /// node does not have them.
    pub fn devices(self, gpus: &Devices) -> Option<u64> {
        let (wanted, count) = match self {
            Self::Nothing => return Some(0),
            Self::ShareOf(remaining) => (remaining, 1),
            Self::Whole(count) => (WHOLE, usize::from(count)),
        };
        let mut mask = 0u64;
        for (at, _) in gpus.iter().enumerate().filter(|&(_, m)| m == wanted).take(count) {
            mask |= 1 << at;
        }
        (mask.count_ones() as usize == count).then_some(mask)
    }
}

impl Ask {
    pub fn may_use(&self, kind: u16) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.binary_search(&kind).is_ok())
    }

    /// Whether a node with this left can take it.
    pub fn fits(&self, left: &Left) -> bool {
        self.may_use(left.kind)
            && self.cpus <= left.cpus
            && self.memory <= left.memory
            && (self.gpus == 0
                || left.gpus.iter().filter(|&m| m >= self.milli).count() >= usize::from(self.gpus))
    }
}

impl Left {
    /// Takes `ask` off, on these devices (bits in the node's own order).
    ///
    /// # Panics
    /// Where it does not fit there: the caller has a choice that says it does.
    pub fn take(&mut self, ask: &Ask, devices: u64) {
        assert!(
            ask.cpus <= self.cpus && ask.memory <= self.memory,
            "an ask is taken off a node only where it fits"
        );
        self.cpus -= ask.cpus;
        self.memory -= ask.memory;
        for at in 0..self.gpus.len() {
            if devices >> at & 1 == 1 {
                let milli = self.gpus.milli[at].checked_sub(ask.milli);
                self.gpus.milli[at] = milli.expect("a device has what is taken off it");
            }
        }
    }

    /// Puts back what [`take`](Self::take) took.
    pub fn give(&mut self, ask: &Ask, devices: u64) {
        self.cpus += ask.cpus;
        self.memory += ask.memory;
        for at in 0..self.gpus.len() {
            if devices >> at & 1 == 1 {
                self.gpus.milli[at] += ask.milli;
            }
        }
    }
}

impl Devices {
    /// `None` where there are more than [`DEVICES_MAX`] or one has more left than [`WHOLE`].
    pub fn new(milli: &[u16]) -> Option<Self> {
        if milli.len() > DEVICES_MAX || milli.iter().any(|&m| m > WHOLE) {
            return None;
        }
        let mut all = [0; DEVICES_MAX];
        all[..milli.len()].copy_from_slice(milli);
        Some(Self { len: milli.len() as u8, milli: all })
    }

    pub fn as_slice(&self) -> &[u16] {
        &self.milli[..usize::from(self.len)]
    }

    fn as_mut_slice(&mut self) -> &mut [u16] {
        &mut self.milli[..usize::from(self.len)]
    }

    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.as_slice().iter().copied()
    }
}

impl PartialEq for Devices {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Devices {}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
