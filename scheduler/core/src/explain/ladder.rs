//! Each constraint from the cheapest to the dearest, with what it needs and what there is.

use tessera_model::{Gang, Rung, Strength, WaitReason};

use crate::decide::Pass;
use crate::placement::{Placed, Space, gpus};
use crate::snapshot::Pending;

/// Which rung counts the nodes that are fit to be used at all.
pub(super) const WELL: usize = 1;

pub(super) fn ladder(
    pass: &Pass<'_>,
    job: &Pending,
    position: usize,
    outcome: &Result<Placed, WaitReason>,
) -> Vec<Rung> {
    let space = pass.free();
    let gang = &job.spec.gang;
    let need = job.sizes().1;
    let shape = shape(gang);
    let mut rungs = Vec::new();
    let mut rung = |what: String, have: u32| {
        let holds = have >= need;
        rungs.push(Rung { what, need: need.to_string(), have: have.to_string(), holds });
    };
    let nodes = || 0..u32::try_from(space.len()).unwrap_or(u32::MAX);
    let count = |keep: &dyn Fn(u32) -> bool| {
        u32::try_from(nodes().filter(|n| keep(*n)).count()).unwrap_or(u32::MAX)
    };
    rung(shape.clone(), count(&|n| big_enough(space, gang, n, u64::MAX)));
    let well = |n: u32| {
        space.takes_jobs[n as usize] && big_enough(space, gang, n, space.healthy[n as usize])
    };
    rung(format!("{shape}, up, healthy and not cordoned"), count(&well));
    let allowed = |n: u32| well(n) && may_use(space, job, n);
    if !job.spec.placement.labels.is_empty()
        || !job.spec.placement.only.is_empty()
        || !job.spec.placement.exclude.is_empty()
        || !job.avoid.is_empty()
    {
        rung("of these as it selects them".to_owned(), count(&allowed));
    }
    let free = |n: u32| allowed(n) && is_free(space, gang, n);
    rung(format!("{shape}, free now"), count(&free));
    for within in job.spec.placement.within.iter().filter(|w| w.strength == Strength::Required) {
        let Some((tree, depth)) = space.layout.level(&within.level) else { continue };
        let level = &space.layout.trees[tree].levels[depth];
        let mut by_domain = vec![0u32; level.domains.len()];
        for n in nodes().filter(|n| free(*n)) {
            if let Some(count) = by_domain.get_mut(level.of[n as usize] as usize) {
                *count += 1;
            }
        }
        let most = by_domain.into_iter().max().unwrap_or(0);
        rung(format!("of these in one {}", within.level), most);
    }
    rungs.push(Rung {
        what: "jobs before it in the queue".to_owned(),
        need: "-".to_owned(),
        have: position.to_string(),
        holds: position == 0,
    });
    for (other, at, count) in pass.kept() {
        let until = at.map_or("with no date".to_owned(), |at| format!("for {at}"));
        let held = matches!(
            outcome,
            Err(WaitReason::HeldForReservation { job, .. }) if *job == other
        );
        rungs.push(Rung {
            what: format!("nodes that job {other} has reserved {until}"),
            need: "-".to_owned(),
            have: count.to_string(),
            holds: !held,
        });
    }
    rungs
}

fn shape(gang: &Gang) -> String {
    let model = gang.gpu_model.as_deref().map(|m| format!("{m} ")).unwrap_or_default();
    match gang.gpus_per_node {
        0 => format!("nodes with {} CPUs", gang.cpus_per_node()),
        _ if gang.is_share() => {
            format!("nodes with {} thousandths of a {model}GPU", gang.gpu_milli)
        }
        g => format!("nodes with {g} {model}GPUs"),
    }
}

fn of_model(space: &Space, gang: &Gang, node: u32) -> u64 {
    let model = gang.gpu_model.as_deref().map(str::to_lowercase);
    gpus::of_model(space.layout.kind_of(node), model.as_deref())
}

fn big_enough(space: &Space, gang: &Gang, node: u32, among: u64) -> bool {
    let kind = space.layout.kind_of(node);
    (of_model(space, gang, node) & among).count_ones() >= gang.gpus_per_node
        && kind.cpus >= gang.cpus_per_node()
        && kind.memory >= gang.memory_per_node.0
}

fn may_use(space: &Space, job: &Pending, node: u32) -> bool {
    let id = space.id(node);
    let placement = &job.spec.placement;
    (placement.only.is_empty() || placement.only.contains(id))
        && !placement.exclude.contains(id)
        && !job.avoid.contains(id)
        && placement.labels.iter().all(|rule| rule.holds(&space.layout.labels[node as usize]))
}

fn is_free(space: &Space, gang: &Gang, node: u32) -> bool {
    let n = node as usize;
    let model = of_model(space, gang, node);
    let gpus = if gang.is_share() {
        let left = |bit: u32| space.shared.get(&(node, bit)).is_some_and(|l| *l >= gang.gpu_milli);
        space.free[n] & model != 0 || (0..64).any(|bit| model >> bit & 1 == 1 && left(bit))
    } else {
        (space.free[n] & model).count_ones() >= gang.gpus_per_node
    };
    gpus && space.cpus_free[n] >= gang.cpus_per_node()
        && space.memory_free[n] >= gang.memory_per_node.0
}
