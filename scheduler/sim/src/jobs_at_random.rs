//! Jobs, changes, reservations and quotas drawn from a seed: each one a door would let in.

use std::collections::{BTreeMap, BTreeSet};

use tessera_core::Cluster;
use tessera_model::{
    AtMost, Bytes, CheckpointPlan, Dependency, DependencyKind, Gang, JobChange, JobId, JobRole,
    JobSpec, LabelOp, LabelRule, Millis, NodeId, Placement, Program, ProjectId, Quota, Reservation,
    Slice, Spread, Strength, Target, TeamId, TeamShare, Tier, Topology, UnixMillis, UserId,
    WHOLE_GPU, Within,
};

use crate::rng::Rng;

/// A job of some shape; most are small and plain, as in life.
pub fn draw(rng: &mut Rng, cluster: &Cluster, now: UnixMillis) -> JobSpec {
    let most = cluster.nodes.values().map(|n| n.inventory.gpus.len()).max().unwrap_or(0) as u64;
    let share = rng.chance(12) && most > 0;
    let nodes = match rng.below(10) {
        _ if share => 1,
        0..=4 => 1,
        5..=7 => rng.between(2, 4) as u32,
        _ => rng.between(2, 8) as u32,
    };
    let gpus_per_node = match rng.below(5) {
        _ if share => 1,
        0 => most as u32,
        1 => 0,
        _ => rng.between(1, most.max(1)) as u32,
    };
    let tier = *rng.pick(&[
        Tier::Urgent,
        Tier::Normal,
        Tier::Normal,
        Tier::Normal,
        Tier::Normal,
        Tier::Idle,
        Tier::Idle,
    ]);
    let placement = if share { Placement::default() } else { placement(rng, cluster, nodes) };
    let divides = |n: &u32| placement.slices.first().is_none_or(|s| n.is_multiple_of(s.nodes));
    let min_nodes = (nodes > 1 && rng.chance(20) && placement.balance.is_none())
        .then(|| (1..=nodes).find(divides).unwrap_or(nodes));
    let role = (!share && placement.slices.is_empty() && rng.chance(8)).then(|| JobRole {
        name: "leader".to_owned(),
        gang: gang(rng, 1, rng_gpus(most, nodes)),
        placement: Placement::default(),
    });
    let after = match rng.chance(6) {
        true => dependency(rng, cluster).into_iter().collect(),
        false => Vec::new(),
    };
    let mut shape = gang(rng, nodes, gpus_per_node);
    if share {
        shape.gpu_milli = *rng.pick(&[100, 250, 500, 500, 810]);
    }
    let requeue = tier == Tier::Idle || rng.chance(50);
    let reserved = cluster.reservations.keys().next().filter(|_| rng.chance(10)).cloned();
    JobSpec {
        name: rng.pick(&["train", "eval", "sweep"]).to_string(),
        team: TeamId::parse(rng.pick::<&str>(&["nlp", "vision", "audio"])).expect("a plain word"),
        project: ProjectId::parse("default").expect("a plain word"),
        user: UserId::parse(rng.pick::<&str>(&["ada", "bob"])).expect("a plain word"),
        tags: BTreeMap::new(),
        tier,
        gang: shape,
        roles: role.into_iter().collect(),
        placement,
        priority: rng.between(0, 4) as i32 - 2,
        time_limit: rng.chance(85).then(|| Millis(rng.between(1_000, 7_200_000))),
        requeue,
        begin: rng.chance(4).then(|| now.plus(Millis(rng.between(1, 600_000)))),
        after,
        singleton: rng.chance(5),
        hold: rng.chance(3),
        min_nodes,
        spares: if !share && nodes > 1 && rng.chance(8) { 1 } else { 0 },
        checkpoint: (requeue && rng.chance(60)).then(|| plan(rng)),
        reservation: reserved,
        program: Program {
            argv: vec!["true".to_owned()],
            script: None,
            env: BTreeMap::new(),
            working_dir: None,
        },
        unix: None,
    }
}

fn rng_gpus(most: u64, nodes: u32) -> u32 {
    u32::from(nodes.is_multiple_of(2)) * (most.min(1) as u32)
}

fn gang(rng: &mut Rng, nodes: u32, gpus_per_node: u32) -> Gang {
    Gang {
        nodes,
        gpus_per_node,
        tasks_per_node: rng.between(1, 2) as u32,
        cpus_per_task: rng.between(1, 4) as u32,
        memory_per_node: Bytes::gib(rng.between(0, 32)),
        gpu_model: (gpus_per_node > 0 && rng.chance(15))
            .then(|| rng.pick(&["h100", "a100"]).to_string()),
        gpu_milli: WHOLE_GPU,
    }
}

fn plan(rng: &mut Rng) -> CheckpointPlan {
    CheckpointPlan {
        signal: rng.chance(60).then_some(10),
        notice: Millis(rng.between(0, 600_000)),
        restart_cost: Millis(rng.between(0, 300_000)),
        file: None,
        migratable: rng.chance(30),
    }
}

fn dependency(rng: &mut Rng, cluster: &Cluster) -> Option<Dependency> {
    let ids: Vec<JobId> = cluster.jobs.jobs.keys().copied().collect();
    if ids.is_empty() {
        return None;
    }
    Some(Dependency { job: *rng.pick(&ids), kind: *rng.pick(&DependencyKind::ALL) })
}

fn strength(rng: &mut Rng) -> Strength {
    if rng.chance(60) { Strength::Required } else { Strength::Preferred }
}

/// Constraints over levels there are. Slices are nested where two of them are drawn.
fn placement(rng: &mut Rng, cluster: &Cluster, nodes: u32) -> Placement {
    let map = effective(cluster);
    let levels: Vec<String> = map.levels().map(str::to_owned).collect();
    let mut placement = Placement::default();
    if rng.chance(8) {
        let op = *rng.pick(&[LabelOp::In, LabelOp::NotIn, LabelOp::Exists]);
        let values = if op == LabelOp::Exists { vec![] } else { vec!["a".to_owned()] };
        placement.labels.push(LabelRule { key: "zone".to_owned(), op, values });
    }
    if rng.chance(6) {
        let ids: Vec<NodeId> = cluster.nodes.keys().cloned().collect();
        placement.exclude = (0..2).map(|_| rng.pick(&ids).clone()).collect();
    }
    if levels.is_empty() || nodes < 2 {
        return placement;
    }
    let level = |rng: &mut Rng| rng.pick(&levels).clone();
    match rng.below(12) {
        0..=2 => {
            placement.within = vec![Within { level: level(rng), strength: strength(rng) }];
        }
        3 => {
            let at_most = AtMost { domains: rng.between(1, 2) as u32, level: level(rng) };
            placement.at_most = vec![at_most];
        }
        4 => {
            let spread = Spread { level: level(rng), max_skew: rng.between(1, 2) as u32 };
            placement.spread = vec![spread];
        }
        5 => placement.balance = Some(level(rng)),
        6 | 7 => {
            let sizes: Vec<u32> = (1..=nodes).filter(|s| nodes.is_multiple_of(*s)).collect();
            let wide = *rng.pick(&sizes);
            let narrow: Vec<u32> = (1..=wide).filter(|s| wide.is_multiple_of(*s)).collect();
            let net = map.fabrics.first().map(|f| f.levels.clone()).unwrap_or_default();
            if let [block, leaf] = net.as_slice()
                && rng.chance(50)
            {
                let (outer, inner) = (strength(rng), strength(rng));
                placement.slices = vec![
                    Slice { nodes: wide, level: block.clone(), strength: outer },
                    Slice { nodes: *rng.pick(&narrow), level: leaf.clone(), strength: inner },
                ];
            } else {
                let slice = Slice { nodes: wide, level: level(rng), strength: strength(rng) };
                placement.slices = vec![slice];
            }
        }
        _ => {}
    }
    if rng.chance(20) {
        placement.patience = Some(Millis(rng.between(1, 1_800_000)));
    }
    placement
}

pub fn change(rng: &mut Rng) -> JobChange {
    match rng.below(3) {
        0 => JobChange { priority: Some(rng.between(0, 6) as i32 - 3), ..JobChange::default() },
        1 => {
            let limit = Millis(rng.between(1_000, 3_600_000));
            JobChange { time_limit: Some(limit), ..JobChange::default() }
        }
        _ => JobChange { throttle: Some(rng.below(3) as u32), ..JobChange::default() },
    }
}

/// A reservation that touches none of those there are.
pub fn reservation(rng: &mut Rng, cluster: &Cluster, now: UnixMillis) -> Option<Reservation> {
    if !cluster.reservations.is_empty() {
        return None;
    }
    let ids: Vec<NodeId> = cluster.nodes.keys().cloned().collect();
    let nodes: BTreeSet<NodeId> = (0..3).map(|_| rng.pick(&ids).clone()).collect();
    let domain = cluster.topology.domains_of(&ids[0]).last();
    let target = match domain.filter(|_| rng.chance(50)) {
        Some((level, name)) => Target::Domain { level: level.to_owned(), name: name.to_owned() },
        None => Target::Nodes { nodes },
    };
    let from = now.plus(Millis(rng.below(3_600_000)));
    let teams = match rng.below(3) {
        0 => vec![],
        _ => vec![TeamId::parse(rng.pick::<&str>(&["nlp", "vision"])).expect("a plain word")],
    };
    Some(Reservation {
        name: format!("r{}", rng.below(1_000)),
        teams,
        target,
        from,
        until: from.plus(Millis(rng.between(60_000, 7_200_000))),
        owner: UserId::parse("root").expect("a plain word"),
        reason: "a course".to_owned(),
    })
}

pub fn share(rng: &mut Rng, cluster: &Cluster) -> TeamShare {
    let all: usize = cluster.nodes.values().map(|n| n.inventory.gpus.len()).sum();
    let guaranteed = rng.below(all as u64 / 3 + 1) as u32;
    let limit = rng.chance(50).then(|| guaranteed + rng.below(all as u64 + 1) as u32);
    let quota = Quota { gpu_model: String::new(), guaranteed, limit, cell: None };
    TeamShare {
        parent: None,
        weight: rng.between(1, 200) as u32,
        quotas: if rng.chance(70) { vec![quota] } else { vec![] },
    }
}

pub(crate) fn effective(cluster: &Cluster) -> Topology {
    let inventories = cluster.nodes.values().map(|n| &n.inventory);
    tessera_core::topology::effective(&cluster.topology, inventories)
}
