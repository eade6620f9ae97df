//! What would help: each change is put to the very pass that decides, at the job's own place in
//! the queue, and what comes of it is said.

use std::sync::Arc;

use tessera_model::{Counterfactual, JobSpec, Millis, Strength, Tier, UnixMillis};

use crate::decide::Pass;
use crate::snapshot::{Pending, occupies};

/// Questions put to the pass at most.
const TRIES: u32 = 36;

/// Changes that make the job start sooner than at `unchanged`, the soonest first.
pub(super) fn changes(
    before: &Pass<'_>,
    job: &Pending,
    unchanged: Option<UnixMillis>,
) -> Vec<Counterfactual> {
    let mut asker = Asker { before, job, tries: 0 };
    let mut found: Vec<Counterfactual> = Vec::new();
    let now = before.now();
    let mut note = |change: String, at: Option<UnixMillis>| {
        let helps = match (at, unchanged) {
            (Some(at), Some(unchanged)) => at < unchanged,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if helps {
            let sooner = at.zip(unchanged).map(|(at, unchanged)| unchanged.since(at));
            found.push(Counterfactual { change, starts_at: at, sooner });
        }
    };
    let spec = &job.spec;
    if let Some((nodes, at)) = asker.fewer_nodes(now) {
        note(format!("--nodes {nodes}"), Some(at));
    }
    for (i, within) in spec.placement.within.iter().enumerate() {
        let wider = before.wider_level(&within.level);
        let strength = if within.strength == Strength::Required { "" } else { "prefer:" };
        if let Some(wider) = wider {
            let at = asker.with(|s| s.placement.within[i].level.clone_from(&wider));
            note(format!("--within {strength}{wider}"), at);
        }
        let at = asker.with(|s| drop(s.placement.within.remove(i)));
        note(format!("without --within {}", within.level), at);
    }
    for (i, slice) in spec.placement.slices.iter().enumerate() {
        let at = asker.with(|s| drop(s.placement.slices.remove(i)));
        note(format!("without --slice {}:{}", slice.nodes, slice.level), at);
    }
    if spec.gang.gpu_model.is_some() {
        let at = asker.with(|s| s.gang.gpu_model = None);
        note("without --gpu-model".to_owned(), at);
    }
    if let Some(limit) = before.gap().filter(|l| spec.time_limit.is_none_or(|own| *l < own)) {
        let at = asker.with(|s| s.time_limit = Some(limit));
        note(format!("--time-limit {}", minutes(limit)), at.filter(|at| *at == now));
    }
    if !spec.requeue {
        let at = asker.with(|s| s.requeue = true);
        note("--requeue".to_owned(), at);
    }
    let above = match spec.tier {
        Tier::Urgent => None,
        Tier::Normal => Some(Tier::Urgent),
        Tier::Idle => Some(Tier::Normal),
    };
    if let Some(tier) = above {
        let at = asker.in_tier(tier);
        note(format!("--tier {}", tier.word()), at);
    }
    found.sort_by_key(|c| c.starts_at);
    found
}

/// Whole minutes, as one would write them.
fn minutes(limit: Millis) -> String {
    format!("{}m", limit.0 / 60_000)
}

struct Asker<'b, 'a> {
    before: &'b Pass<'a>,
    job: &'b Pending,
    tries: u32,
}

impl Asker<'_, '_> {
    /// When the job would start with a change, if anybody can say.
    fn with(&mut self, change: impl FnOnce(&mut JobSpec)) -> Option<UnixMillis> {
        let mut spec = JobSpec::clone(&self.job.spec);
        change(&mut spec);
        self.when(spec, false)
    }

    fn when(&mut self, spec: JobSpec, only_now: bool) -> Option<UnixMillis> {
        if self.tries >= TRIES {
            return None;
        }
        self.tries += 1;
        let job = Pending { spec: Arc::new(spec), ..self.job.clone() };
        self.before.when(&job, only_now)
    }

    /// The most nodes that start now, if fewer than asked for do.
    fn fewer_nodes(&mut self, now: UnixMillis) -> Option<(u32, UnixMillis)> {
        let (mut low, mut high) = (0, self.job.sizes().1.saturating_sub(1));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let mut spec = JobSpec::clone(&self.job.spec);
            spec.gang.nodes = middle;
            spec.min_nodes = None;
            match self.when(spec, true) {
                Some(_) => low = middle,
                None => high = middle - 1,
            }
        }
        (low > 0).then_some((low, now))
    }

    /// As a job of another tier it would stand elsewhere in the queue.
    fn in_tier(&mut self, tier: Tier) -> Option<UnixMillis> {
        if self.tries >= TRIES {
            return None;
        }
        self.tries += 1;
        let spec = JobSpec { tier, ..JobSpec::clone(&self.job.spec) };
        let job = Pending { spec: Arc::new(spec), ..self.job.clone() };
        let snapshot = self.before.snapshot();
        let position = snapshot.queue.iter().take_while(|p| p.tier() <= tier).count();
        super::pass_before(snapshot, position).when(&job, false)
    }
}

/// The longest whole number of minutes with which a job that starts now is out again at `at`.
pub(crate) fn limit_until(now: UnixMillis, at: UnixMillis) -> Option<Millis> {
    let room = at.since(now).0.checked_sub(occupies(Millis(0)).0)?;
    let minutes = room / 60_000;
    (minutes > 0).then_some(Millis(minutes * 60_000))
}
