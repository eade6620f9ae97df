//! A team's place among the others: whose part it is, its weight, its quotas.
//!
//! In: a [`TeamShare`] as an admin wants it. Out: the event that puts it in force, with warnings
//! about guarantees the cluster cannot keep, or a refusal. What shares and quotas do is `queue`'s.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{Cell, Principal, Quota, Refusal, RefusalKind, TeamId, TeamShare, refusal};

use super::submit::no_team;
use crate::access::{Verb, require};
use crate::cluster::{Cluster, Team};
use crate::event::Event;
use crate::placement::space::{NOWHERE, Space};
use crate::queue::fairshare::DEPTH_MAX;
use crate::queue::quota;

pub const WEIGHT_MAX: u32 = 1_000_000;
pub const QUOTAS_MAX: usize = 16;
/// GPUs a quota may speak of.
pub const QUOTA_MAX: u32 = 10_000_000;

pub fn share_team(
    cluster: &Cluster,
    who: &Principal,
    team: TeamId,
    mut share: TeamShare,
) -> Result<(Vec<String>, Vec<Event>), Refusal> {
    require(who, Verb::ManageTeams)?;
    let known = cluster.teams.get(&team).ok_or_else(|| no_team(cluster, &team))?;
    check_weight(share.weight)?;
    check_parent(cluster, &team, &share)?;
    check_quotas(cluster.space(), &mut share)?;
    let shares = |id: &TeamId, other: &Team| match *id == team {
        true => (id.clone(), share.clone()),
        false => (id.clone(), other.share.clone()),
    };
    let after: BTreeMap<TeamId, TeamShare> =
        cluster.teams.iter().map(|(id, t)| shares(id, t)).collect();
    check_tree(&after, &team)?;
    let warnings = warnings(cluster.space(), &after, &share);
    if known.share == share {
        return Ok((warnings, Vec::new()));
    }
    let by = who.user.clone();
    Ok((warnings, vec![Event::TeamShared { team, share, by }]))
}

fn check_weight(weight: u32) -> Result<(), Refusal> {
    if (1..=WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    let hint = format!("1 to {WEIGHT_MAX} is possible; 100 is what a team begins with");
    Err(Refusal::invalid("weight", format!("the weight {weight} is out of range"), hint))
}

fn check_parent(cluster: &Cluster, team: &TeamId, share: &TeamShare) -> Result<(), Refusal> {
    let Some(parent) = &share.parent else { return Ok(()) };
    if !cluster.teams.contains_key(parent) {
        return Err(Refusal { field: "parent".to_owned(), ..no_team(cluster, parent) });
    }
    let up = |t: &&TeamId| cluster.teams.get(*t)?.share.parent.as_ref();
    let above: Vec<&TeamId> =
        std::iter::successors(Some(parent), up).take(cluster.teams.len() + 1).collect();
    if let Some(at) = above.iter().position(|t| *t == team) {
        let path: Vec<&str> = above[..=at].iter().map(|t| t.as_str()).collect();
        let message = match at {
            0 => format!("team {team} cannot be part of itself"),
            _ => format!("team {team} is above {parent} already: {}", path.join(" is part of ")),
        };
        return Err(Refusal::invalid("parent", message, "choose a team that is not below it"));
    }
    let below = depth_below(cluster, team);
    let depth = above.len() + below;
    if depth > DEPTH_MAX {
        let message = format!("the tree of teams would be {depth} deep");
        let hint = format!("at most {DEPTH_MAX} is possible");
        return Err(Refusal::invalid("parent", message, hint));
    }
    Ok(())
}

/// How deep the tree goes from a team down, itself included.
fn depth_below(cluster: &Cluster, team: &TeamId) -> usize {
    let mut level: BTreeSet<&TeamId> = BTreeSet::from([team]);
    let mut depth = 0;
    while !level.is_empty() && depth <= DEPTH_MAX {
        depth += 1;
        let below = cluster
            .teams
            .iter()
            .filter(|(_, t)| t.share.parent.as_ref().is_some_and(|p| level.contains(p)));
        level = below.map(|(id, _)| id).collect();
    }
    depth
}

fn check_quotas(space: &Space, share: &mut TeamShare) -> Result<(), Refusal> {
    if share.quotas.len() > QUOTAS_MAX {
        let message = format!("the team has {} quotas", share.quotas.len());
        return Err(Refusal::invalid(
            "quotas",
            message,
            format!("at most {QUOTAS_MAX} are possible"),
        ));
    }
    let mut seen = BTreeSet::new();
    for quota in &mut share.quotas {
        quota.gpu_model = quota.gpu_model.trim().to_ascii_lowercase();
        let model = &quota.gpu_model;
        if model.chars().count() > 80 || model.chars().any(char::is_control) {
            let message = "the model has more than 80 characters, or some that cannot be printed";
            return Err(Refusal::invalid(
                "quotas.gpu_model",
                message,
                "a part of its name is enough: h100",
            ));
        }
        if !seen.insert(model.clone()) {
            let message = format!("two quotas for {}", pattern_words(model));
            return Err(Refusal::invalid("quotas.gpu_model", message, "name each model once"));
        }
        if let Some(cell) = quota.cell.clone() {
            fill_cell(space, quota, &cell)?;
        }
        let most = quota.limit.unwrap_or(0).max(quota.guaranteed);
        if most > QUOTA_MAX {
            let hint = format!("at most {QUOTA_MAX} is possible");
            return Err(Refusal::invalid("quotas", format!("{most} GPUs is out of range"), hint));
        }
        if let Some(limit) = quota.limit.filter(|l| *l < quota.guaranteed) {
            let message = format!(
                "{} GPUs are guaranteed and {limit} is the most it may hold",
                quota.guaranteed
            );
            let hint = "make the limit at least as high, or leave it out";
            return Err(Refusal::invalid("quotas.limit", message, hint));
        }
    }
    Ok(())
}

fn pattern_words(model: &str) -> String {
    if model.is_empty() { "any GPU".to_owned() } else { format!("GPUs of the model {model:?}") }
}

/// A guarantee of so many domains is one of the GPUs that as many of the smallest have.
fn fill_cell(space: &Space, quota: &mut Quota, cell: &Cell) -> Result<(), Refusal> {
    let field = "quotas.cell";
    let Some((tree, depth)) = space.layout.level(&cell.level) else {
        let levels: Vec<&str> =
            space.layout.trees.iter().flat_map(|t| &t.levels).map(|l| l.name.as_str()).collect();
        let hint = match refusal::nearest(&cell.level, levels.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are: {}", levels.join(", ")),
        };
        let message = format!("the topology has no level {:?}", cell.level);
        return Err(Refusal::invalid(field, message, hint));
    };
    let level = &space.layout.trees[tree].levels[depth];
    let mut sizes = vec![0u32; level.domains.len()];
    for (node, domain) in (0u32..).zip(&level.of) {
        let gpus = &space.layout.kind_of(node).gpus;
        let count = gpus.iter().filter(|g| g.model.contains(&quota.gpu_model)).count();
        if *domain != NOWHERE {
            sizes[*domain as usize] += u32::try_from(count).unwrap_or(0);
        }
    }
    sizes.retain(|s| *s > 0);
    sizes.sort_unstable();
    let (asked, there) = (cell.domains as usize, sizes.len());
    if asked == 0 || asked > there {
        let of = pattern_words(&quota.gpu_model);
        let message = format!("{asked} domains of {} with {of}, there are {there}", cell.level);
        return Err(Refusal::invalid(field, message, format!("1 to {there} is possible")));
    }
    let gpus: u32 = sizes[..asked].iter().sum();
    if quota.guaranteed != 0 && quota.guaranteed != gpus {
        let message = format!(
            "{asked} domains of {} hold {gpus} GPUs, and {} are guaranteed",
            cell.level, quota.guaranteed
        );
        return Err(Refusal::invalid("quotas.guaranteed", message, "leave the number out"));
    }
    quota.guaranteed = gpus;
    Ok(())
}

/// Guarantees of the teams below fit what is guaranteed above, and cells are given once a branch.
fn check_tree(shares: &BTreeMap<TeamId, TeamShare>, team: &TeamId) -> Result<(), Refusal> {
    let parent = shares[team].parent.as_ref();
    for above in parent.into_iter().chain([team]) {
        for quota in &shares[above].quotas {
            let below = |(id, s): (&TeamId, &TeamShare)| {
                let own = s.quotas.iter().find(|q| q.gpu_model == quota.gpu_model);
                (s.parent.as_ref() == Some(above))
                    .then(|| own.map(|q| (id.clone(), q.guaranteed)))?
            };
            let parts: Vec<(TeamId, u32)> = shares.iter().filter_map(below).collect();
            let sum: u64 = parts.iter().map(|(_, g)| u64::from(*g)).sum();
            if sum > u64::from(quota.guaranteed) {
                let parts: Vec<String> = parts.iter().map(|(t, g)| format!("{t} {g}")).collect();
                let message = format!(
                    "the teams of {above} are guaranteed {sum} {}, {above} itself {}: {}",
                    pattern_words(&quota.gpu_model),
                    quota.guaranteed,
                    parts.join(", ")
                );
                let hint = format!("guarantee {above} at least {sum}, or its teams less");
                return Err(Refusal::new(
                    RefusalKind::Precondition,
                    "quotas.guaranteed",
                    message,
                    hint,
                ));
            }
        }
    }
    check_cells(shares, team)
}

fn check_cells(shares: &BTreeMap<TeamId, TeamShare>, team: &TeamId) -> Result<(), Refusal> {
    let above = |id: &TeamId| -> Vec<TeamId> {
        let up = |t: &TeamId| shares.get(t)?.parent.clone();
        std::iter::successors(up(id), up).take(DEPTH_MAX).collect()
    };
    for (id, share) in shares {
        for other in above(id).iter().filter(|o| *o == team || id == team) {
            let cells = |s: &TeamShare| -> BTreeSet<(String, String)> {
                let cell = |q: &Quota| Some((q.cell.as_ref()?.level.clone(), q.gpu_model.clone()));
                s.quotas.iter().filter_map(cell).collect()
            };
            let both = cells(share);
            let both = both.intersection(&cells(&shares[other])).next().cloned();
            if let Some((level, _)) = both {
                let message =
                    format!("team {other} above {id} is guaranteed domains of {level} already");
                let hint = "guarantee domains to one team of a branch, and GPUs to the others";
                return Err(Refusal::new(RefusalKind::Precondition, "quotas.cell", message, hint));
            }
        }
    }
    Ok(())
}

/// What the cluster cannot keep as it is. Nodes may join, so it is no error.
fn warnings(space: &Space, shares: &BTreeMap<TeamId, TeamShare>, share: &TeamShare) -> Vec<String> {
    let kinds = &space.layout.kinds;
    let mut warnings = Vec::new();
    for quota in &share.quotas {
        let there = kinds.iter().flat_map(|k| &k.gpus).any(|g| g.model.contains(&quota.gpu_model));
        if !there {
            warnings.push(format!("no node has {}", pattern_words(&quota.gpu_model)));
        }
    }
    for (pattern, guaranteed, capacity) in quota::guarantees(shares, space) {
        if guaranteed > capacity {
            let of = pattern_words(&pattern);
            warnings.push(format!("{guaranteed} {of} are guaranteed in all, there are {capacity}"));
        }
    }
    warnings
}
