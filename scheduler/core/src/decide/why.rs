//! Why a job waits: the one dominant reason, found by asking the same question with one obstacle
//! fewer at a time.

use tessera_model::{Strength, WaitReason};

use super::Pass;
use crate::placement::{NoFit, could_ever_fit};
use crate::snapshot::{OpenTo, Pending};

impl Pass<'_> {
    /// What stands in the way of a job that found no place on its `ground`.
    pub(super) fn why_not(
        &mut self,
        job: &Pending,
        shape: usize,
        ground: usize,
        no: NoFit,
    ) -> WaitReason {
        if let Some(proof) = self.never(job, shape) {
            return WaitReason::Infeasible { proof };
        }
        let now = self.snapshot.now;
        let until = job.insists_until().filter(|until| *until > now);
        let mask = self.mask(job, job.ends(now));
        if let Some(until) = until
            && self.try_in(job, ground, mask, true).is_ok()
        {
            return WaitReason::Patience { level: preferred_level(job), until };
        }
        if mask != 0
            && self.try_in(job, ground, 0, true).is_ok()
            && let Some((job, at)) = self.first_in(mask)
        {
            let promised = self.is_promised(job);
            return WaitReason::HeldForReservation { job, at, promised };
        }
        let open = self.ground_of(Vec::new(), self.grounds[ground].inside);
        if open != ground && self.try_in(job, open, mask, true).is_ok() {
            let by = self.grounds[ground].by.iter().map(|i| &self.snapshot.closures[*i]);
            let window = by.clone().find_map(|c| match &c.open_to {
                OpenTo::Teams { name, .. } => Some((name.clone(), c.until.unwrap_or(now))),
                OpenTo::Job(_) => None,
            });
            if let Some((name, until)) = window {
                return WaitReason::Reserved { name, until };
            }
            let hold = by.clone().find_map(|c| match &c.open_to {
                OpenTo::Job(holder) => Some(*holder),
                OpenTo::Teams { .. } => None,
            });
            if let Some(holder) = hold {
                return WaitReason::HeldForReservation { job: holder, at: None, promised: false };
            }
        }
        reason(no)
    }

    /// The proof that a job of the shape can never start on the nodes there are.
    fn never(&mut self, job: &Pending, shape: usize) -> Option<String> {
        let space = &self.snapshot.space;
        let known = self.never.entry(shape);
        known.or_insert_with(|| could_ever_fit(space, &job.spec).err()).clone()
    }
}

fn reason(no: NoFit) -> WaitReason {
    match no {
        NoFit::Short { need, have, gpus_per_node, level, nearest, .. } => {
            WaitReason::NotEnoughFree { need, have, gpus_per_node, level, nearest }
        }
        NoFit::Shape { what } => WaitReason::Undivided { what },
        NoFit::NotFound { tried } => WaitReason::NotFound { tried },
    }
}

/// The narrowest level the job would rather share.
fn preferred_level(job: &Pending) -> String {
    let placement = &job.spec.placement;
    let within = placement.within.iter().filter(|w| w.strength == Strength::Preferred);
    let slices = placement.slices.iter().filter(|s| s.strength == Strength::Preferred);
    let levels = within.map(|w| &w.level).chain(slices.map(|s| &s.level));
    levels.last().cloned().unwrap_or_default()
}
