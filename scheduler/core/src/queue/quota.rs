//! What a team may hold: guarantees, limits, and what one team lends to another.
//!
//! In: the teams' quotas, the GPUs there are, who holds which. Out: for a job whether its team may
//! have what it asks, which nodes it must leave alone, and from whom its team may take back. Used
//! inside one pass: what the pass gives out is counted at once.
//!
//! A quota names GPUs by a part of their model. A job counts by the models it may be placed on:
//! where all of them fall under the quota, or none, that is known before a place is sought;
//! where only some do, GPUs it may not have are closed to it. A MIG instance counts as one device,
//! a share by its thousandths. What a team holds counts against every team above it.
//!
//! Guarantees are kept by one rule. The *need* of a team is what it is guaranteed or what its firm
//! jobs hold, whichever is more, and for a team of teams the sum of theirs, if that is more than
//! its own guarantee; firm is a job without `requeue`, which nobody can ask to leave. A firm job
//! starts only where it raises no need, or where the sum of all needs stays within the GPUs there
//! are. Jobs with `requeue` borrow freely, since they give back in the time of their notice.
//!
//! A guarantee in *cells* is so many whole domains of a level. A firm job of another team starts
//! in a domain only while enough domains remain that are free of firm strangers (HiveD's safety).

mod cells; // guarantees of whole domains

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{JobSpec, TeamId, TeamShare, WHOLE_GPU, WaitReason};

use crate::cluster::Cluster;
use crate::placement::nodes::NodeSet;
use crate::placement::space::{Space, Taken};

use cells::Cells;

const WHOLE: u64 = WHOLE_GPU as u64;

/// A job may have what it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Beyond what its team, and every team above it, is guaranteed: it may have to give it back.
    pub borrows: bool,
}

/// A team that holds more than it is guaranteed while another wants its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Borrower {
    pub team: TeamId,
    /// Thousandths of GPUs that may be asked back from it, at most.
    pub excess: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Quotas {
    /// Narrower teams after wider ones.
    teams: Vec<Member>,
    index: BTreeMap<TeamId, usize>,
    /// Every model there is.
    models: Vec<String>,
    pools: Vec<Pool>,
    cells: Vec<Cells>,
}

#[derive(Debug, Clone)]
struct Member {
    id: TeamId,
    parent: Option<usize>,
}

/// The GPUs that one pattern of models names, and what teams have of them. Thousandths of GPUs.
#[derive(Debug, Clone)]
struct Pool {
    pattern: String,
    /// By model.
    has: Vec<bool>,
    /// By kind of node: which of its GPUs.
    masks: Vec<u64>,
    capacity: u64,
    guaranteed: Vec<u64>,
    limit: Vec<Option<u64>>,
    /// With those below.
    held: Vec<u64>,
    /// Of its own firm jobs.
    firm: Vec<u64>,
}

impl Quotas {
    /// `running`: what each running job holds.
    pub fn of<'a>(
        cluster: &Cluster,
        space: &Space,
        running: impl IntoIterator<Item = (&'a JobSpec, &'a [Taken])>,
    ) -> Self {
        let teams = cluster.teams.iter().map(|(id, team)| (id.clone(), &team.share)).collect();
        let mut quotas = Self::empty(&teams, space);
        if !quotas.is_empty() {
            for (spec, taken) in running {
                quotas.take(space, spec, taken);
            }
        }
        quotas
    }

    /// No team has a quota.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    fn empty(teams: &BTreeMap<TeamId, &TeamShare>, space: &Space) -> Self {
        let mut quotas = Self::default();
        if teams.values().all(|t| t.quotas.is_empty()) {
            return quotas;
        }
        for team in teams.keys() {
            quotas.add_team(teams, team, 0);
        }
        let kinds = &space.layout.kinds;
        let models: BTreeSet<&String> =
            kinds.iter().flat_map(|k| k.gpus.iter().map(|g| &g.model)).collect();
        quotas.models = models.into_iter().cloned().collect();
        for (id, team) in teams {
            for quota in &team.quotas {
                let pool = quotas.pool(space, &quota.gpu_model);
                let (index, pool_at) = (quotas.index[id], pool);
                let pool = &mut quotas.pools[pool_at];
                pool.guaranteed[index] = u64::from(quota.guaranteed) * WHOLE;
                pool.limit[index] = quota.limit.map(|l| u64::from(l) * WHOLE);
                if let Some(cell) = &quota.cell
                    && let Some((tree, depth)) = space.layout.level(&cell.level)
                {
                    quotas
                        .cells(space, pool_at, tree, depth)
                        .wants
                        .insert(index, cell.domains as usize);
                }
            }
        }
        quotas
    }

    /// Adds a team after those above it.
    fn add_team(
        &mut self,
        teams: &BTreeMap<TeamId, &TeamShare>,
        id: &TeamId,
        depth: usize,
    ) -> usize {
        if let Some(index) = self.index.get(id) {
            return *index;
        }
        // The door refuses loops; the bound only keeps a broken tree from running away.
        let parent = teams.get(id).and_then(|t| t.parent.as_ref());
        let parent = parent.filter(|_| depth < super::fairshare::DEPTH_MAX);
        let parent = parent.map(|p| self.add_team(teams, p, depth + 1));
        self.teams.push(Member { id: id.clone(), parent });
        self.index.insert(id.clone(), self.teams.len() - 1);
        self.teams.len() - 1
    }

    fn pool(&mut self, space: &Space, pattern: &str) -> usize {
        if let Some(known) = self.pools.iter().position(|p| p.pattern == pattern) {
            return known;
        }
        let (kinds, count) = (&space.layout.kinds, self.teams.len());
        let mask = |gpus: &[crate::placement::space::GpuView]| {
            let bits = (0u32..).zip(gpus).filter(|(_, g)| g.model.contains(pattern));
            bits.fold(0u64, |mask, (bit, _)| mask | 1 << bit)
        };
        let masks: Vec<u64> = kinds.iter().map(|k| mask(&k.gpus)).collect();
        let gpus =
            |(healthy, kind): (&u64, &u16)| (healthy & masks[usize::from(*kind)]).count_ones();
        let capacity =
            space.healthy.iter().zip(&space.layout.kind).map(gpus).map(u64::from).sum::<u64>();
        self.pools.push(Pool {
            pattern: pattern.to_owned(),
            has: self.models.iter().map(|m| m.contains(pattern)).collect(),
            capacity: capacity * WHOLE,
            masks,
            guaranteed: vec![0; count],
            limit: vec![None; count],
            held: vec![0; count],
            firm: vec![0; count],
        });
        self.pools.len() - 1
    }

    /// The team and those above it.
    fn path(&self, team: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(team), |t| self.teams[*t].parent)
    }

    fn is_within(&self, team: usize, branch: usize) -> bool {
        self.path(team).any(|t| t == branch)
    }

    /// What a job asks of a pool, as far as that is known before it has a place: for certain, and
    /// at most.
    fn asks(&self, pool: &Pool, spec: &JobSpec) -> (u64, u64) {
        let (mut sure, mut most) = (0, 0);
        for (i, (_, gang)) in spec.all_roles().enumerate() {
            let places = u64::from(gang.nodes) + if i == 0 { u64::from(spec.spares) } else { 0 };
            let milli = u64::from(if gang.is_share() { gang.gpu_milli } else { WHOLE_GPU });
            let ask = places * u64::from(gang.gpus_per_node) * milli;
            let wanted = gang.gpu_model.as_deref().unwrap_or_default().to_ascii_lowercase();
            let fits = |m: &&String| m.contains(&wanted);
            let mut models = self.models.iter().zip(&pool.has).filter(|(m, _)| fits(m)).peekable();
            if models.peek().is_none() {
                continue;
            }
            let (all, any) = models.fold((true, false), |(a, o), (_, has)| (a && *has, o || *has));
            sure += if all { ask } else { 0 };
            most += if any { ask } else { 0 };
        }
        (sure, most)
    }

    fn placed(space: &Space, pool: &Pool, taken: &[Taken]) -> u64 {
        let gpus = |t: &Taken| {
            let mask = pool.masks[usize::from(space.layout.kind[t.node as usize])];
            u64::from((t.gpus & mask).count_ones()) * u64::from(t.milli)
        };
        taken.iter().map(gpus).sum()
    }

    /// Whether a job's team may have what it asks, as far as its place does not matter.
    pub fn check(&self, spec: &JobSpec) -> Result<Claim, WaitReason> {
        let mut claim = Claim { borrows: false };
        let Some(&team) = self.index.get(&spec.team) else { return Ok(claim) };
        for pool in &self.pools {
            let (sure, _) = self.asks(pool, spec);
            claim.borrows |= self.allow(pool, team, sure, spec.requeue)?;
        }
        Ok(claim)
    }

    /// The same for a place that was found: the last word.
    pub fn check_placed(
        &self,
        space: &Space,
        spec: &JobSpec,
        taken: &[Taken],
    ) -> Result<Claim, WaitReason> {
        let mut claim = Claim { borrows: false };
        let Some(&team) = self.index.get(&spec.team) else { return Ok(claim) };
        for pool in &self.pools {
            let ask = Self::placed(space, pool, taken);
            claim.borrows |= self.allow(pool, team, ask, spec.requeue)?;
        }
        if !spec.requeue {
            self.check_cells(space, team, taken)?;
        }
        Ok(claim)
    }

    /// Whether `ask` more of a pool is borrowed; an error where it may not be had.
    fn allow(&self, pool: &Pool, team: usize, ask: u64, requeue: bool) -> Result<bool, WaitReason> {
        if ask == 0 {
            return Ok(false);
        }
        for t in self.path(team) {
            if let Some(limit) = pool.limit[t].filter(|l| pool.held[t] + ask > *l) {
                return Err(WaitReason::OverQuota {
                    team: self.teams[t].id.clone(),
                    gpu_model: pool.pattern.clone(),
                    held: whole(pool.held[t]),
                    limit: whole(limit),
                });
            }
        }
        if pool.guaranteed.iter().all(|g| *g == 0) {
            return Ok(false);
        }
        if !requeue {
            let (before, after) = (self.needs(pool, team, 0), self.needs(pool, team, ask));
            if after > before && after > pool.capacity {
                return Err(self.may_not_borrow(pool, team));
            }
        }
        Ok(self.path(team).all(|t| pool.held[t] + ask > pool.guaranteed[t]))
    }

    fn may_not_borrow(&self, pool: &Pool, team: usize) -> WaitReason {
        // The nearest team above that is guaranteed something is the one to speak of.
        let speaks = self.path(team).find(|t| pool.guaranteed[*t] > 0).unwrap_or(team);
        WaitReason::MayNotBorrow {
            team: self.teams[speaks].id.clone(),
            gpu_model: pool.pattern.clone(),
            held: whole(pool.held[speaks]),
            guaranteed: whole(pool.guaranteed[speaks]),
        }
    }

    /// The sum of all teams' needs if `team` held so much more firmly.
    fn needs(&self, pool: &Pool, team: usize, more: u64) -> u64 {
        let mut below = pool.firm.clone();
        below[team] += more;
        let mut sum = 0;
        for t in (0..self.teams.len()).rev() {
            let need = below[t].max(pool.guaranteed[t]);
            match self.teams[t].parent {
                Some(parent) => below[parent] += need,
                None => sum += need,
            }
        }
        sum
    }

    /// Nodes that the job must leave alone for what other teams are guaranteed, or since its own
    /// may have no more GPUs of that model. `None`: none.
    pub fn closed_to(&self, space: &Space, spec: &JobSpec) -> Option<NodeSet> {
        let &team = self.index.get(&spec.team)?;
        let mut closed: Option<NodeSet> = None;
        let mut close = |node: u32| {
            closed.get_or_insert_with(|| NodeSet::new(space.len())).insert(node);
        };
        for pool in &self.pools {
            let (sure, most) = self.asks(pool, spec);
            if most > sure && self.allow(pool, team, most, spec.requeue).is_err() {
                let nodes = (0u32..).zip(&space.layout.kind);
                nodes
                    .filter(|(_, k)| pool.masks[usize::from(**k)] != 0)
                    .for_each(|(n, _)| close(n));
            }
        }
        if !spec.requeue {
            self.close_cells(space, team, (spec.nodes() + spec.spares) as usize, &mut close);
        }
        closed
    }

    /// Teams that hold more than they are guaranteed of what the job asks, while its own team asks
    /// for no more than its guarantee: those with most too much first. Only their jobs with
    /// `requeue` can be asked.
    pub fn borrowers(&self, spec: &JobSpec) -> Vec<Borrower> {
        let Some(&team) = self.index.get(&spec.team) else { return Vec::new() };
        let mut most: BTreeMap<usize, u64> = BTreeMap::new();
        for pool in &self.pools {
            let (ask, _) = self.asks(pool, spec);
            if ask == 0 {
                continue;
            }
            for other in 0..self.teams.len() {
                if let Some(excess) = self.excess(pool, team, ask, other) {
                    let known = most.entry(other).or_default();
                    *known = excess.max(*known);
                }
            }
        }
        let mut borrowers: Vec<Borrower> = most
            .into_iter()
            .map(|(t, excess)| Borrower { team: self.teams[t].id.clone(), excess })
            .collect();
        borrowers.sort_by(|a, b| b.excess.cmp(&a.excess).then_with(|| a.team.cmp(&b.team)));
        borrowers
    }

    /// What `team` may ask back from `other`: judged where their branches part.
    fn excess(&self, pool: &Pool, team: usize, ask: u64, other: usize) -> Option<u64> {
        let above: Vec<usize> = self.path(team).collect();
        let theirs: Vec<usize> = self.path(other).collect();
        // The widest team of each branch that the other is not part of.
        let ours = above.iter().rev().find(|t| !theirs.contains(t))?;
        let branch = theirs.iter().rev().find(|t| !above.contains(t))?;
        let within = pool.held[*ours] + ask <= pool.guaranteed[*ours];
        let over = pool.held[*branch].checked_sub(pool.guaranteed[*branch]).filter(|o| *o > 0)?;
        // No more than the branch has too much, and no more than the team itself holds.
        (within && pool.held[other] > 0).then(|| over.min(pool.held[other]))
    }

    /// A job takes a place.
    pub fn take(&mut self, space: &Space, spec: &JobSpec, taken: &[Taken]) {
        self.count(space, spec, taken, true);
    }

    /// A job is taken to start: what it asks for certain counts as held.
    pub fn expect(&mut self, spec: &JobSpec) {
        let Some(&team) = self.index.get(&spec.team) else { return };
        let path: Vec<usize> = self.path(team).collect();
        let asks: Vec<u64> = self.pools.iter().map(|pool| self.asks(pool, spec).0).collect();
        for (pool, ask) in self.pools.iter_mut().zip(asks) {
            path.iter().for_each(|t| pool.held[*t] += ask);
            if !spec.requeue {
                pool.firm[team] += ask;
            }
        }
    }

    /// A job gives its place back.
    pub fn give(&mut self, space: &Space, spec: &JobSpec, taken: &[Taken]) {
        self.count(space, spec, taken, false);
    }

    fn count(&mut self, space: &Space, spec: &JobSpec, taken: &[Taken], takes: bool) {
        let Some(&team) = self.index.get(&spec.team) else { return };
        let path: Vec<usize> = self.path(team).collect();
        let change = |value: &mut u64, by: u64| match takes {
            true => *value += by,
            false => *value = value.checked_sub(by).expect("a team gives back what it holds"),
        };
        for pool in &mut self.pools {
            let by = Self::placed(space, pool, taken);
            path.iter().for_each(|t| change(&mut pool.held[*t], by));
            if !spec.requeue {
                change(&mut pool.firm[team], by);
            }
        }
        if !spec.requeue {
            self.count_cells(space, team, taken, takes);
        }
    }

    /// What a team holds of the GPUs a pattern names, with those below it, in thousandths.
    pub fn held(&self, team: &TeamId, pattern: &str) -> Option<u64> {
        let pool = self.pools.iter().find(|p| p.pattern == pattern)?;
        Some(pool.held[*self.index.get(team)?])
    }
}

/// For each pattern of models the GPUs that are guaranteed in all, and those there are.
pub fn guarantees(shares: &BTreeMap<TeamId, TeamShare>, space: &Space) -> Vec<(String, u32, u32)> {
    let teams = shares.iter().map(|(id, share)| (id.clone(), share)).collect();
    let quotas = Quotas::empty(&teams, space);
    let sums = quotas.pools.iter().map(|pool| {
        let need = quotas.needs(pool, 0, 0);
        (pool.pattern.clone(), whole(need), whole(pool.capacity))
    });
    sums.collect()
}

/// Whole GPUs, begun ones too.
fn whole(milli: u64) -> u32 {
    u32::try_from(milli.div_ceil(WHOLE)).unwrap_or(u32::MAX)
}
