//! Whose turn it is: the one total order over the waiting jobs that lack nothing but a place.
//!
//! In: jobs as they become eligible, start, are promised a start or change. Out: all of them in
//! order, lazily, so that a pass over the first thousand of a hundred thousand costs no more than
//! that. Which jobs are eligible is `gate`'s work, how much a team has had `fairshare`'s.
//!
//! The order, widest first:
//! 1. the tier;
//! 2. those that were promised a start, in the order of their promises, so that no promise is
//!    moved by a later one;
//! 3. the *turn*: the instant a job became eligible plus its [`slack`], which grows with its time
//!    limit up to [`SLACK_MAX`] and is an eighth less for a job of several nodes or of [`LARGE`]
//!    GPUs, which find a place more rarely. Short jobs go before long ones, and time wins in the end.
//!
//! Teams meet in step 3 with their *claims*. A claim is the turn of a job whose clock runs, moved
//! back by up to [`SHIFT_MAX`] for what the team has had already. The team's first claim goes to
//! its first job, by priority and turn, the second to its second, and so on: a priority reorders a
//! team's own jobs and takes nothing from others. At most [`CLAIMS`] clocks run for a team and
//! tier at once; those behind count from when one becomes free, with the slack they have, so that whoever hands in a month
//! of work at once does not stand before everybody else for a month.
//!
//! What follows, and is tested: within a team, among equal priorities, nobody is passed by a job
//! that became eligible more than `SLACK_MAX` later. Between teams with at most `CLAIMS` waiting
//! jobs of equal priority, nobody is passed by one that came more than [`BOUND`] later. A promise
//! made to whoever stands first keeps to that, since all before it are promised or have started.

use std::cmp::Reverse;
use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_map, btree_set};

use serde::{Deserialize, Serialize};
use tessera_model::{JobId, JobSpec, Millis, TeamId, Tier, UnixMillis, WHOLE_GPU};

use super::fairshare::Shares;

/// The slack of a job without a time limit; no job has more.
pub const SLACK_MAX: Millis = Millis(72 * Millis::HOUR.0);
/// The time limit at which a job has half of that.
pub const SLACK_HALF: Millis = Millis(48 * Millis::HOUR.0);
/// GPUs from which on a job counts as large.
const LARGE: u32 = 8;
/// How far a team's claims move back for what it has had.
pub const SHIFT_MAX: Millis = Millis(72 * Millis::HOUR.0);
/// How much later a job may have come that goes before another.
pub const BOUND: Millis = Millis(SLACK_MAX.0 + SHIFT_MAX.0);
/// Clocks that run at once for one team in one tier.
pub const CLAIMS: usize = 100;
/// What a CPU counts, in thousandths of a GPU, where a job takes no GPU beside it.
pub const CPU_MILLI: u64 = 10;

/// How long a job lets others that came later go first: `SLACK_MAX x limit / (limit + SLACK_HALF)`.
pub fn slack(spec: &JobSpec) -> Millis {
    let of = |limit: Millis| {
        let limit = u128::from(limit.0);
        let part = u128::from(SLACK_MAX.0) * limit / (limit + u128::from(SLACK_HALF.0));
        u64::try_from(part).unwrap_or(SLACK_MAX.0)
    };
    let slack = spec.time_limit.map_or(SLACK_MAX.0, of);
    let large = spec.nodes() > 1 || spec.gpus() >= LARGE;
    Millis(if large { slack - slack / 8 } else { slack })
}

/// What a job takes while it runs, in thousandths of a GPU.
pub fn demand(spec: &JobSpec) -> u64 {
    let spares = u64::from(spec.spares) * place_demand(&spec.gang);
    spec.all_roles().fold(spares, |sum, (_, gang)| {
        sum.saturating_add(u64::from(gang.nodes).saturating_mul(place_demand(gang)))
    })
}

fn place_demand(gang: &tessera_model::Gang) -> u64 {
    held(gang.gpus_per_node, gang.gpu_milli, gang.cpus_per_node())
}

/// Thousandths of a GPU that one place of a job stands for.
pub fn held(gpus: u32, gpu_milli: u32, cpus: u32) -> u64 {
    match gpus {
        0 => u64::from(cpus) * CPU_MILLI,
        _ => u64::from(gpus) * u64::from(gpu_milli.min(WHOLE_GPU)),
    }
}

/// What the order has to know of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub job: JobId,
    pub team: TeamId,
    pub tier: Tier,
    pub priority: i32,
    pub eligible_at: UnixMillis,
    pub slack: Millis,
    /// See [`demand`].
    pub demand: u64,
}

impl Standing {
    pub fn of(job: JobId, spec: &JobSpec, eligible_at: UnixMillis) -> Self {
        Self {
            job,
            team: spec.team.clone(),
            tier: spec.tier,
            priority: spec.priority,
            eligible_at,
            slack: slack(spec),
            demand: demand(spec),
        }
    }

    /// When it would be its turn if its team had had nothing.
    pub fn turn(&self) -> UnixMillis {
        self.eligible_at.plus(self.slack)
    }

    fn rank(&self) -> Rank {
        (Reverse(self.priority), self.turn(), self.job)
    }
}

type Rank = (Reverse<i32>, UnixMillis, JobId);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Order {
    /// Since when jobs with a running clock count. The rest of the order follows from the jobs.
    clocks: BTreeMap<JobId, UnixMillis>,
    /// Waiting jobs that were promised a start, by the number of the promise.
    promises: BTreeMap<JobId, u64>,
    promises_made: u64,
    #[serde(skip)]
    tiers: [TierLine; Tier::ALL.len()],
    #[serde(skip)]
    len: usize,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct TierLine {
    promised: BTreeMap<(u64, JobId), Promised>,
    teams: BTreeMap<TeamId, TeamLine>,
}

#[derive(Debug, Clone, PartialEq)]
struct Promised {
    team: TeamId,
    demand: u64,
}

/// The waiting jobs of one team in one tier.
#[derive(Debug, Clone, Default, PartialEq)]
struct TeamLine {
    /// All of them in the team's own order, with what they would take and their slack.
    ranks: BTreeMap<Rank, (u64, Millis)>,
    /// Those whose clock does not run yet, with their slack.
    backlog: BTreeMap<Rank, Millis>,
    /// The turns of those whose clock runs.
    claims: BTreeSet<(UnixMillis, JobId)>,
}

impl Order {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Teams with eligible jobs.
    pub fn teams(&self) -> BTreeSet<&TeamId> {
        let promised = self.tiers.iter().flat_map(|t| t.promised.values().map(|p| &p.team));
        self.tiers.iter().flat_map(|t| t.teams.keys()).chain(promised).collect()
    }

    pub fn is_promised(&self, job: JobId) -> bool {
        self.promises.contains_key(&job)
    }

    /// Takes note that a job was promised a start, or that it no longer is. Only for a job that is
    /// not in the order at that moment.
    pub fn promise(&mut self, job: JobId, promised: bool) {
        if !promised {
            self.promises.remove(&job);
        } else if let MapEntry::Vacant(vacant) = self.promises.entry(job) {
            self.promises_made += 1;
            vacant.insert(self.promises_made);
        }
    }

    /// Puts a job in. `clock`: since when it counts, where it has stood here before.
    pub fn insert(&mut self, standing: &Standing, clock: Option<UnixMillis>, now: UnixMillis) {
        let (job, slack) = (standing.job, standing.slack);
        self.len += 1;
        let tier = &mut self.tiers[standing.tier as usize];
        if let Some(number) = self.promises.get(&job) {
            let promised = Promised { team: standing.team.clone(), demand: standing.demand };
            tier.promised.insert((*number, job), promised);
            self.clocks.insert(job, clock.unwrap_or(now));
            return;
        }
        let team = tier.teams.entry(standing.team.clone()).or_default();
        team.ranks.insert(standing.rank(), (standing.demand, slack));
        if clock.is_some() || team.claims.len() < CLAIMS {
            let clock = clock.unwrap_or(now);
            team.claims.insert((clock.plus(slack), job));
            self.clocks.insert(job, clock);
        } else {
            team.backlog.insert(standing.rank(), slack);
        }
    }

    /// Empties what follows from the jobs; they are put back in one by one.
    pub fn forget_indexes(&mut self) {
        let Self { clocks, promises, promises_made, .. } = std::mem::take(self);
        *self = Self { clocks, promises, promises_made, ..Self::default() };
    }

    /// Puts a job back in as it stood when the order was written down.
    pub fn restore(&mut self, standing: &Standing) {
        match self.clocks.get(&standing.job).copied() {
            Some(clock) => self.insert(standing, Some(clock), clock),
            None => {
                self.len += 1;
                let tier = &mut self.tiers[standing.tier as usize];
                let team = tier.teams.entry(standing.team.clone()).or_default();
                team.ranks.insert(standing.rank(), (standing.demand, standing.slack));
                team.backlog.insert(standing.rank(), standing.slack);
            }
        }
    }

    /// Takes a job out and says since when it counted. `standing` is what it was put in with.
    /// [`Self::hand_on`] has to follow, at once or after the job was put in again.
    pub fn remove(&mut self, standing: &Standing) -> Option<UnixMillis> {
        let job = standing.job;
        let clock = self.clocks.remove(&job);
        let tier = &mut self.tiers[standing.tier as usize];
        if let Some(number) = self.promises.get(&job)
            && tier.promised.remove(&(*number, job)).is_some()
        {
            self.len -= 1;
            return clock;
        }
        let Some(team) = tier.teams.get_mut(&standing.team) else { return clock };
        if team.ranks.remove(&standing.rank()).is_none() {
            return clock;
        }
        self.len -= 1;
        match clock {
            Some(clock) => {
                team.claims.remove(&(clock.plus(standing.slack), job));
            }
            None => {
                team.backlog.remove(&standing.rank());
            }
        }
        if team.ranks.is_empty() {
            tier.teams.remove(&standing.team);
        }
        clock
    }

    /// Starts clocks for the next jobs of a team where others have gone.
    pub fn hand_on(&mut self, team: &TeamId, tier: Tier, now: UnixMillis) {
        let Some(team) = self.tiers[tier as usize].teams.get_mut(team) else { return };
        while team.claims.len() < CLAIMS
            && let Some(((_, _, job), slack)) = team.backlog.pop_first()
        {
            team.claims.insert((now.plus(slack), job));
            self.clocks.insert(job, now);
        }
    }

    /// All jobs in order. `shares` says how far each team's claims move back, and takes note of
    /// what it would hold with each job of it that was named.
    pub fn iter(&self, shares: Shares, now: UnixMillis) -> InOrder<'_> {
        InOrder {
            tiers: self.tiers.iter(),
            promised: None,
            lines: Vec::new(),
            heads: BinaryHeap::new(),
            shares,
            now,
        }
    }
}

/// Jobs in order.
pub struct InOrder<'a> {
    tiers: std::slice::Iter<'a, TierLine>,
    promised: Option<btree_map::Iter<'a, (u64, JobId), Promised>>,
    lines: Vec<Line<'a>>,
    /// The next claim of each team, by its turn and then by the job it is from, which need not be
    /// the one it goes to.
    heads: BinaryHeap<Reverse<(UnixMillis, JobId, usize)>>,
    shares: Shares,
    now: UnixMillis,
}

/// What is left of a team's line.
struct Line<'a> {
    share: usize,
    ranks: btree_map::Iter<'a, Rank, (u64, Millis)>,
    claims: btree_set::Iter<'a, (UnixMillis, JobId)>,
    /// The job that goes with the claim in `heads`, and what it would take.
    job: JobId,
    demand: u64,
}

impl InOrder<'_> {
    /// Brings the next job of a line to the front. Jobs behind the claims count as they
    /// would if their clocks began to run now.
    fn advance(&mut self, index: usize) {
        let line = &mut self.lines[index];
        let Some((&(_, _, job), &(demand, slack))) = line.ranks.next() else { return };
        (line.job, line.demand) = (job, demand);
        let behind = (self.now.plus(slack), JobId(u64::MAX));
        let (turn, owner) = line.claims.next().copied().unwrap_or(behind);
        let claim = turn.plus(self.shares.shift(line.share));
        self.heads.push(Reverse((claim, owner, index)));
    }
}

impl Iterator for InOrder<'_> {
    type Item = JobId;

    fn next(&mut self) -> Option<JobId> {
        loop {
            if let Some(promised) = &mut self.promised {
                if let Some(((_, job), what)) = promised.next() {
                    self.shares.pick_of(&what.team, what.demand);
                    return Some(*job);
                }
                self.promised = None;
            }
            if let Some(Reverse((.., index))) = self.heads.pop() {
                let Line { share, job, demand, .. } = self.lines[index];
                self.shares.pick(share, demand);
                self.advance(index);
                return Some(job);
            }
            let tier = self.tiers.next()?;
            self.promised = Some(tier.promised.iter());
            self.lines.clear();
            for (team, line) in &tier.teams {
                self.lines.push(Line {
                    share: self.shares.index(team),
                    ranks: line.ranks.iter(),
                    claims: line.claims.iter(),
                    job: JobId(0),
                    demand: 0,
                });
            }
            // Teams are compared only after the promised jobs were counted in.
            if tier.promised.is_empty() {
                self.promised = None;
            }
            self.start_lines();
        }
    }
}

impl InOrder<'_> {
    fn start_lines(&mut self) {
        for index in 0..self.lines.len() {
            self.advance(index);
        }
    }
}
