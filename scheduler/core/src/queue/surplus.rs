//! Who is passed over when more jobs wait than a pass looks at: those that their team may not start
//! even if each job before them did.
//!
//! In: the quotas as they stand, and jobs in the order of their turns. Out: whether a job takes up
//! one of the few places. Without this, a team at its limit with thousands of waiting jobs would
//! keep everybody behind them from being looked at.

use std::collections::{HashMap, HashSet};

use tessera_model::{JobSpec, TeamId};

use super::Quotas;

/// Such jobs that are looked at for each team: those before them may find no place, and then it is
/// their turn after all.
pub const SURPLUS_PER_TEAM: usize = 50;

#[derive(Debug)]
pub struct Surplus<'a> {
    /// As they would be if all that were let in had started.
    quotas: Quotas,
    over: HashMap<&'a TeamId, usize>,
    /// Specs that are over, by where they are: the tasks of an array share theirs.
    known: HashSet<*const JobSpec>,
}

impl<'a> Surplus<'a> {
    pub fn new(quotas: &Quotas) -> Self {
        Self { quotas: quotas.clone(), over: HashMap::new(), known: HashSet::new() }
    }

    /// Whether the next job is to be looked at.
    pub fn lets_in(&mut self, spec: &'a JobSpec) -> bool {
        // What the smallest size of a job would take is asked in the pass itself.
        if self.quotas.is_empty() || spec.min_nodes.is_some() {
            return true;
        }
        let at = std::ptr::from_ref(spec);
        if !self.known.contains(&at) {
            if self.quotas.check(spec).is_ok() {
                self.quotas.expect(spec);
                return true;
            }
            self.known.insert(at);
        }
        let over = self.over.entry(&spec.team).or_default();
        *over += 1;
        *over <= SURPLUS_PER_TEAM
    }
}
