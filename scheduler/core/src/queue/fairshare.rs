//! What each team has had, and how far that moves its claims back.
//!
//! In: GPUs as leases are granted and given back, and the tree of teams with its weights. Out: each
//! team's decayed use, and its standing among those that want something now. Everything is whole
//! numbers, so that two machines agree to the last digit.
//!
//! A GPU-hour counts half after [`HALF_LIFE`]. What a team holds at the moment counts as if it had
//! been used for [`HORIZON`] already, so that one round cannot give everything to whoever was
//! behind. In each group of siblings a team's part of the use is set against its part of the
//! weights; the wider group counts double the narrower one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_model::{Millis, TeamId, TeamShare, UnixMillis};

use super::order::SHIFT_MAX;

pub const HALF_LIFE: Millis = Millis(7 * Millis::DAY.0);
pub const HORIZON: Millis = Millis(4 * Millis::HOUR.0);
/// How steeply the standing answers to use beside one's share: at 1/16 more or less it is as high
/// or as low as it gets, near enough.
const STEEPNESS: i64 = 16;
/// Standings are counted in parts of this.
pub const STANDING_ONE: i64 = 1 << 20;
/// Teams within teams; the door refuses deeper trees.
pub const DEPTH_MAX: usize = 8;
const WHOLE: u64 = 1_000;

/// What a team has had by itself, without those below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    /// Decayed to `at`: thousandths of a GPU times milliseconds.
    used: u64,
    at: UnixMillis,
    /// Thousandths of GPUs it holds since then.
    held: u64,
}

impl Account {
    fn used_at(&self, now: UnixMillis) -> u64 {
        let passed = now.since(self.at);
        decay(self.used, passed).saturating_add(accrue(self.held, passed))
    }

    fn settle(&mut self, now: UnixMillis) {
        self.used = self.used_at(now);
        self.at = self.at.max(now);
    }
}

/// 2^-(1/2^i) for i = 1..=20, times 2^62, rounded down.
const HALVES: [u64; 20] = halves();

const fn halves() -> [u64; 20] {
    let mut table = [0; 20];
    // The square of each is the one before; the first is the root of 1/2.
    let mut square: u128 = 1 << 61;
    let mut i = 0;
    while i < 20 {
        let root = isqrt(square << 62);
        table[i] = root as u64;
        square = root;
        i += 1;
    }
    table
}

const fn isqrt(n: u128) -> u128 {
    let (mut low, mut high) = (0u128, 1u128 << 63);
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if mid * mid <= n {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    low
}

/// 2^-(passed / HALF_LIFE), times 2^62.
fn remains(passed: Millis) -> u64 {
    let whole = passed.0 / HALF_LIFE.0;
    if whole >= 62 {
        return 0;
    }
    // The fraction of a half-life in 2^-20ths.
    let fraction = (((passed.0 % HALF_LIFE.0) << 20) / HALF_LIFE.0) as u32;
    let mut factor: u128 = 1 << 62;
    for (i, half) in (0u32..).zip(HALVES) {
        if fraction & (1 << (19 - i)) != 0 {
            factor = (factor * u128::from(half)) >> 62;
        }
    }
    (factor >> whole) as u64
}

fn decay(used: u64, passed: Millis) -> u64 {
    ((u128::from(used) * u128::from(remains(passed))) >> 62) as u64
}

/// What holding so much for so long adds, decayed as it was used. The use of a short time is taken
/// as of its middle; a long one is taken in steps of an eighth of a half-life.
fn accrue(held: u64, passed: Millis) -> u64 {
    const STEP: u64 = HALF_LIFE.0 / 8;
    if held == 0 || passed.0 == 0 {
        return 0;
    }
    // Beyond 32 half-lives nothing is left to add.
    let mut left = passed.0.min(HALF_LIFE.0 * 32);
    let mut sum = 0u64;
    while left > 0 {
        let step = if left.is_multiple_of(STEP) { STEP } else { left % STEP };
        let middle = Millis(left - step / 2);
        sum = sum.saturating_add(decay(held.saturating_mul(step), middle));
        left -= step;
    }
    sum
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FairShare {
    accounts: BTreeMap<TeamId, Account>,
    #[serde(skip)]
    tree: BTreeMap<TeamId, Branch>,
}

#[derive(Debug, Clone, PartialEq)]
struct Branch {
    parent: Option<TeamId>,
    weight: u32,
}

/// Thousandths of a GPU times milliseconds; 3,600,000,000 of them make a GPU-hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliGpuMillis(pub u64);

impl MilliGpuMillis {
    /// GPU-hours with two decimals.
    pub fn hours(self) -> String {
        let hundredths = (self.0 + 18_000_000) / 36_000_000;
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

/// A team's account as people see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TeamAccount {
    /// Thousandths of GPUs, of the whole subtree.
    pub held_milli: u64,
    /// Decayed use of the whole subtree.
    pub used: MilliGpuMillis,
    /// How far its claims are moved back now, of at most [`SHIFT_MAX`].
    pub shift: Millis,
}

impl FairShare {
    pub fn set_team(&mut self, team: &TeamId, share: &TeamShare) {
        let branch = Branch { parent: share.parent.clone(), weight: share.weight.max(1) };
        self.tree.insert(team.clone(), branch);
    }

    /// A team begins to hold so many thousandths of GPUs more.
    pub fn hold(&mut self, team: &TeamId, milli: u64, now: UnixMillis) {
        let account = self.accounts.entry(team.clone()).or_default();
        account.settle(now);
        account.held = account.held.saturating_add(milli);
    }

    pub fn give_back(&mut self, team: &TeamId, milli: u64, now: UnixMillis) {
        let account = self.accounts.entry(team.clone()).or_default();
        account.settle(now);
        assert!(
            account.held >= milli,
            "{team} gives back {milli} of the {} it holds",
            account.held
        );
        account.held -= milli;
    }

    /// Thousandths of GPUs a team holds by itself.
    pub fn held(&self, team: &TeamId) -> u64 {
        self.accounts.get(team).map_or(0, |a| a.held)
    }

    /// The team and those above it, from the bottom up.
    pub fn path<'a>(&'a self, team: &'a TeamId) -> impl Iterator<Item = &'a TeamId> {
        let up = |team: &&'a TeamId| self.tree.get(*team)?.parent.as_ref();
        std::iter::successors(Some(team), up).take(DEPTH_MAX)
    }

    /// The standing of all teams, seen among those that want something: `wanting` have jobs that
    /// wait, others count while they hold something.
    pub fn shares<'a>(
        &self,
        wanting: impl IntoIterator<Item = &'a TeamId>,
        now: UnixMillis,
    ) -> Shares {
        let mut shares = Shares::default();
        shares.nodes.push(ShareNode::default());
        for team in wanting {
            self.add(&mut shares, team);
        }
        for (team, account) in &self.accounts {
            if account.held > 0 {
                self.add(&mut shares, team);
            }
        }
        for (team, account) in &self.accounts {
            // Seconds of whole GPUs: fine enough to compare, small enough to multiply.
            let used = account.used_at(now).saturating_add(account.held.saturating_mul(HORIZON.0));
            let known = self.path(team).find_map(|t| shares.index.get(t));
            if let Some(node) = known.copied() {
                shares.add_use(node, used / (1_000 * WHOLE));
            }
        }
        for node in 1..shares.nodes.len() {
            let parent = shares.nodes[node].parent;
            shares.nodes[parent].weights_below += shares.nodes[node].weight;
        }
        shares
    }

    /// A team's place among its siblings; makes those above it, too.
    fn add(&self, shares: &mut Shares, team: &TeamId) {
        let path: Vec<&TeamId> = self.path(team).collect();
        let mut parent = 0;
        for team in path.into_iter().rev() {
            parent = match shares.index.get(team) {
                Some(node) => *node,
                None => {
                    let weight = self.tree.get(team).map_or(100, |b| i64::from(b.weight));
                    let node = ShareNode { parent, weight, ..ShareNode::default() };
                    shares.nodes.push(node);
                    shares.index.insert(team.clone(), shares.nodes.len() - 1);
                    shares.nodes.len() - 1
                }
            };
        }
    }

    /// What people see of a team.
    pub fn account<'a>(
        &self,
        team: &'a TeamId,
        wanting: impl IntoIterator<Item = &'a TeamId>,
        now: UnixMillis,
    ) -> TeamAccount {
        let mut seen = TeamAccount::default();
        let mut used = 0u64;
        for (other, account) in &self.accounts {
            if self.path(other).any(|t| t == team) {
                seen.held_milli += account.held;
                used = used.saturating_add(account.used_at(now));
            }
        }
        seen.used = MilliGpuMillis(used);
        let wanting = wanting.into_iter().chain(std::iter::once(team));
        let shares = self.shares(wanting, now);
        seen.shift = shares.shift(shares.index(team));
        seen
    }
}

/// Standings at one instant, which go on with what is picked.
#[derive(Debug, Clone, Default)]
pub struct Shares {
    /// The first is the root of all.
    nodes: Vec<ShareNode>,
    index: BTreeMap<TeamId, usize>,
}

#[derive(Debug, Clone, Default)]
struct ShareNode {
    parent: usize,
    weight: i64,
    /// Of those directly below it that take part.
    weights_below: i64,
    /// Whole GPUs times seconds, of the whole subtree.
    used: i64,
    /// Part of it that is not a whole second of a GPU yet, in [`PICK_FINE`]ths.
    rest: u64,
}

/// A picked job's part of a GPU counts in thousandths.
const PICK_FINE: u64 = WHOLE;
const USED_MAX: i64 = 1 << 40;

impl Shares {
    /// Where a team stands; for one that was not named it is the root, which is never moved.
    pub fn index(&self, team: &TeamId) -> usize {
        self.index.get(team).copied().unwrap_or(0)
    }

    fn add_use(&mut self, node: usize, used: u64) {
        let used = i64::try_from(used).unwrap_or(USED_MAX);
        let mut node = node;
        loop {
            let here = &mut self.nodes[node];
            here.used = here.used.saturating_add(used).min(USED_MAX);
            if node == 0 {
                return;
            }
            node = here.parent;
        }
    }

    /// A job of the team would hold so many thousandths of GPUs.
    pub fn pick(&mut self, node: usize, demand: u64) {
        if node == 0 {
            return;
        }
        let here = &mut self.nodes[node];
        let fine = here.rest + demand.saturating_mul(HORIZON.0 / 1_000);
        here.rest = fine % PICK_FINE;
        self.add_use(node, fine / PICK_FINE);
    }

    pub fn pick_of(&mut self, team: &TeamId, demand: u64) {
        let node = self.index(team);
        self.pick(node, demand);
    }

    /// In `0..STANDING_ONE`: 0 has had least, half is its share.
    pub fn standing(&self, node: usize) -> i64 {
        // From the bottom up: what is wider counts double what is narrower.
        let (mut node, mut sum) = (node, 0i64);
        while node != 0 {
            let (here, parent) = (&self.nodes[node], &self.nodes[self.nodes[node].parent]);
            // Its part of the use against its part of the weights, both in parts of 2^20.
            let weight = here.weight * STANDING_ONE / parent.weights_below.max(1);
            let (used, due) = (here.used * STANDING_ONE, weight * parent.used);
            let (beside, both) = (used - due, used + due);
            let over = STEEPNESS * (beside / (both / STANDING_ONE).max(1));
            sum = over.clamp(-STANDING_ONE, STANDING_ONE) + sum / 2;
            node = here.parent;
        }
        let half = (sum.clamp(-STANDING_ONE, STANDING_ONE) + STANDING_ONE) / 2;
        half.min(STANDING_ONE - 1)
    }

    /// How far the team's claims move back.
    pub fn shift(&self, node: usize) -> Millis {
        let standing = self.standing(node).unsigned_abs();
        Millis((SHIFT_MAX.0 * standing) / STANDING_ONE.unsigned_abs())
    }
}
