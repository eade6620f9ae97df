//! Guarantees of whole domains, and the rule that keeps them: a firm job of another team enters a
//! domain only while enough remain that are free of firm strangers.
//!
//! A domain is free for all, or one team with a guarantee has it to itself, or it is lost to all of
//! them. Entering one of the first two costs; how many costly domains a team may enter follows from
//! what the others still miss.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::WaitReason;

use super::Quotas;
use crate::placement::space::{NOWHERE, Space, Taken};

/// Guarantees of whole domains of one level, for GPUs of one pattern.
#[derive(Debug, Clone)]
pub(super) struct Cells {
    pub(super) pool: usize,
    pub(super) tree: usize,
    pub(super) depth: usize,
    /// How many domains each team is guaranteed.
    pub(super) wants: BTreeMap<usize, usize>,
    /// Whether the domain has such GPUs.
    counts: Vec<bool>,
    /// By domain: teams with firm jobs there, and in how many places.
    firm: Vec<BTreeMap<usize, u32>>,
}

impl Quotas {
    pub(super) fn cells(
        &mut self,
        space: &Space,
        pool: usize,
        tree: usize,
        depth: usize,
    ) -> &mut Cells {
        let same = |c: &Cells| (c.pool, c.tree, c.depth) == (pool, tree, depth);
        if let Some(known) = self.cells.iter().position(same) {
            return &mut self.cells[known];
        }
        let level = &space.layout.trees[tree].levels[depth];
        let mut counts = vec![false; level.domains.len()];
        for (domain, kind) in level.of.iter().zip(&space.layout.kind) {
            if *domain != NOWHERE && self.pools[pool].masks[usize::from(*kind)] != 0 {
                counts[*domain as usize] = true;
            }
        }
        let firm = vec![BTreeMap::new(); counts.len()];
        self.cells.push(Cells { pool, tree, depth, wants: BTreeMap::new(), counts, firm });
        let last = self.cells.len() - 1;
        &mut self.cells[last]
    }

    fn mask(&self, space: &Space, cells: &Cells, node: u32) -> u64 {
        self.pools[cells.pool].masks[usize::from(space.layout.kind[node as usize])]
    }

    /// Domains that a firm job of the team would take from what others are guaranteed.
    fn costly(&self, cells: &Cells, team: usize) -> Vec<bool> {
        let owned = self.owned(cells);
        let costs = |(domain, firm): (usize, &BTreeMap<usize, u32>)| {
            if !cells.counts[domain] {
                return false;
            }
            match self.owner(cells, firm) {
                // Free for all, or lost for all.
                None => firm.is_empty(),
                Some(owner) => !self.is_within(team, owner) && owned[&owner] <= cells.wants[&owner],
            }
        };
        cells.firm.iter().enumerate().map(costs).collect()
    }

    /// The team with cells whose firm jobs alone are in a domain.
    fn owner(&self, cells: &Cells, firm: &BTreeMap<usize, u32>) -> Option<usize> {
        let mut wanting = cells.wants.keys().copied();
        wanting.find(|w| !firm.is_empty() && firm.keys().all(|t| self.is_within(*t, *w)))
    }

    /// How many domains each team with cells has to itself.
    fn owned(&self, cells: &Cells) -> BTreeMap<usize, usize> {
        let mut owned: BTreeMap<usize, usize> = cells.wants.keys().map(|t| (*t, 0)).collect();
        for firm in &cells.firm {
            if let Some(owner) = self.owner(cells, firm) {
                *owned.entry(owner).or_default() += 1;
            }
        }
        owned
    }

    /// How many costly domains a firm job of the team may enter.
    fn allowance(&self, cells: &Cells, team: usize) -> usize {
        let free =
            cells.counts.iter().zip(&cells.firm).filter(|(c, f)| **c && f.is_empty()).count();
        let owned = self.owned(cells);
        let missing = |(t, want): (&usize, &usize)| want.saturating_sub(owned[t]);
        let others = cells.wants.iter().filter(|(t, _)| !self.is_within(team, **t)).map(missing);
        free.saturating_sub(others.sum())
    }

    /// Whether a firm job of the team leaves the others their domains.
    pub(super) fn check_cells(
        &self,
        space: &Space,
        team: usize,
        taken: &[Taken],
    ) -> Result<(), WaitReason> {
        for cells in &self.cells {
            let costly = self.costly(cells, team);
            let level = &space.layout.trees[cells.tree].levels[cells.depth];
            let entered: BTreeSet<u32> = taken
                .iter()
                .filter(|t| t.gpus & self.mask(space, cells, t.node) != 0)
                .map(|t| level.of[t.node as usize])
                .filter(|d| *d != NOWHERE && costly[*d as usize])
                .collect();
            if entered.len() > self.allowance(cells, team) {
                return Err(self.may_not_borrow(&self.pools[cells.pool], team));
            }
        }
        Ok(())
    }

    /// Names the nodes that a firm job of so many nodes must leave alone.
    pub(super) fn close_cells(
        &self,
        space: &Space,
        team: usize,
        nodes: usize,
        close: &mut impl FnMut(u32),
    ) {
        for cells in &self.cells {
            let mut open = self.allowance(cells, team);
            if open >= nodes {
                continue;
            }
            let mut costly = self.costly(cells, team);
            // It may enter so many of them: the first ones, so that what it takes is known, and
            // rather those where nobody is than those where a team sits in its own.
            let (used, free): (Vec<usize>, Vec<usize>) = (0..costly.len())
                .filter(|domain| costly[*domain])
                .partition(|domain| !cells.firm[*domain].is_empty());
            for domain in free.into_iter().chain(used) {
                if open == 0 {
                    break;
                }
                costly[domain] = false;
                open -= 1;
            }
            let level = &space.layout.trees[cells.tree].levels[cells.depth];
            for (node, domain) in (0u32..).zip(&level.of) {
                if *domain != NOWHERE
                    && costly[*domain as usize]
                    && self.mask(space, cells, node) != 0
                {
                    close(node);
                }
            }
        }
    }

    /// A firm job of the team takes places, or gives them back.
    pub(super) fn count_cells(&mut self, space: &Space, team: usize, taken: &[Taken], takes: bool) {
        for cells in &mut self.cells {
            let level = &space.layout.trees[cells.tree].levels[cells.depth];
            let masks = &self.pools[cells.pool].masks;
            for t in taken {
                let domain = level.of[t.node as usize];
                if domain == NOWHERE
                    || t.gpus & masks[usize::from(space.layout.kind[t.node as usize])] == 0
                {
                    continue;
                }
                let firm = &mut cells.firm[domain as usize];
                if takes {
                    *firm.entry(team).or_default() += 1;
                } else if let Some(places) = firm.get_mut(&team) {
                    *places -= 1;
                    if *places == 0 {
                        firm.remove(&team);
                    }
                }
            }
        }
    }
}
