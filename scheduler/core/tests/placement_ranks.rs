//! Which nodes and GPUs of the chosen domains, and in which order: (G) GPU sets, (K) spares,
//! (L) former places, (M) rails, (N) rank order.

mod small;

use std::collections::{BTreeMap, BTreeSet};

use small::{Draw, Size, Wants, World, id, judge, question};
use tessera_core::placement::space::{GpuView, Kind, Sketch};
use tessera_core::placement::{Chosen, NodeSet, Placed, Request, Space, Taken, Terms, place};
use tessera_model::{JobSpec, NodeId, Placement, Topology, WHOLE_GPU};

/// Nodes of one kind with `gpus` GPUs, drawn free, in two blocks of two leaves.
fn drawn(draw: &mut Draw, gpus: u32) -> Space {
    let view = |i: u32| GpuView {
        model: "h100".to_owned(),
        numa: Some(u32::from(i * 2 >= gpus)),
        nvlink_group: Some(i / 3),
        rail: Some(i),
        mig: false,
    };
    let kind = Kind { gpus: (0..gpus).map(view).collect(), cpus: 64, memory: 1 << 40 };
    let (mut sketches, mut paths) = (Vec::new(), BTreeMap::new());
    for i in 0..4 + draw.below(12) {
        let name = id(&format!("n{i:02}"));
        let (block, leaf) = (i / 8, i / 4);
        paths.insert(name.clone(), vec![format!("b{block}"), format!("l{leaf}")]);
        sketches.push(Sketch { id: name, kind: kind.clone(), labels: BTreeMap::new() });
    }
    let map = Topology::net(vec!["block".to_owned(), "leaf".to_owned()], paths);
    let mut space = Space::sketch(sketches, &map, &BTreeMap::new());
    for node in 0..space.len() as u32 {
        let gpus = draw.below(1 << gpus) & draw.below(1 << gpus);
        space.take(&Taken { node, gpus, milli: WHOLE_GPU, cpus: 0, memory: 0 });
        if draw.chance(30) {
            // Sick ones are not free either.
            space.healthy[node as usize] &= !gpus;
        }
    }
    space
}

fn ask(space: &Space, spec: &JobSpec, former: &[NodeId]) -> Option<Placed> {
    let avoid = BTreeSet::new();
    let request = Request::new(space, spec, &small::terms(spec, &avoid, former));
    place(space, &request, &NodeSet::new(space.len()), None).ok()
}

fn gang(nodes: u32, gpus: u32) -> JobSpec {
    small::job(small::gang(nodes, gpus), Placement::default())
}

/// NVLink groups and NUMA nodes of a set.
fn cost(space: &Space, node: u32, set: u64) -> (usize, usize) {
    let gpus = &space.layout.kind_of(node).gpus;
    let held = || gpus.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, g)| g);
    let groups: BTreeSet<_> = held().map(|g| g.nvlink_group).collect();
    let numas: BTreeSet<_> = held().map(|g| g.numa).collect();
    (groups.len(), numas.len())
}

/// Sets of `count` of the free GPUs of a node that are as near as any.
fn nearest(space: &Space, node: u32, count: u32) -> Vec<u64> {
    let free = space.free[node as usize];
    let sets = |s: &u64| s & free == *s && s.count_ones() == count;
    let all: Vec<u64> = (0..1u64 << space.layout.kind_of(node).gpus.len()).filter(sets).collect();
    let best = all.iter().map(|s| cost(space, node, *s)).min();
    all.into_iter().filter(|s| Some(cost(space, node, *s)) == best).collect()
}

#[test]
fn g_m_gpu_sets_are_the_nearest_and_the_same_on_all_nodes_where_they_can_be() {
    let (mut alike, mut unlike) = (0, 0);
    for seed in 0..1_500 {
        let mut draw = Draw(seed);
        let gpus = draw.of(&[4, 6, 8]);
        let space = drawn(&mut draw, gpus);
        let count = 1 + draw.below(u64::from(gpus)) as u32;
        let spec = gang(1 + draw.below(4) as u32, count);
        let Some(placed) = ask(&space, &spec, &[]) else { continue };
        for c in &placed.places {
            let nearest = nearest(&space, c.node, count);
            assert!(nearest.contains(&c.gpus), "seed {seed}: {c:?} is none of {nearest:?}");
        }
        let sets: BTreeSet<u64> = placed.places.iter().map(|c| c.gpus).collect();
        // Could the leaves that are used have given one set?
        let leaf = |n: u32| space.layout.trees[0].levels[1].of[n as usize];
        let mut used: BTreeMap<u32, usize> = BTreeMap::new();
        placed.places.iter().for_each(|c| *used.entry(leaf(c.node)).or_insert(0) += 1);
        let giving = |set: u64, of: u32| {
            let nodes = (0..space.len() as u32).filter(|n| leaf(*n) == of);
            nodes.filter(|n| nearest_has(&space, *n, count, set)).count()
        };
        let possible = (0..1u64 << gpus)
            .filter(|s| s.count_ones() == count)
            .any(|set| used.iter().all(|(leaf, need)| giving(set, *leaf) >= *need));
        if placed.places.len() > 1 && possible {
            assert_eq!(sets.len(), 1, "seed {seed}: {:?}", placed.places);
            alike += 1;
        } else if placed.places.len() > 1 {
            unlike += 1;
        }
    }
    assert!(alike > 300 && unlike > 50, "{alike} {unlike}");
}

fn nearest_has(space: &Space, node: u32, count: u32, set: u64) -> bool {
    nearest(space, node, count).contains(&set)
}

#[test]
fn k_spares_are_the_nearest_there_are() {
    let mut checked = 0;
    for seed in 0..800 {
        let mut draw = Draw(seed);
        let space = drawn(&mut draw, 4);
        let mut spec = gang(1 + draw.below(4) as u32, 1);
        spec.spares = 1 + draw.below(3) as u32;
        let Some(placed) = ask(&space, &spec, &[]) else { continue };
        let (ranks, spares) = placed.places.split_at(spec.gang.nodes as usize);
        let distance = |node: u32| {
            let shares = |level: usize| {
                let of = &space.layout.trees[0].levels[level].of;
                ranks.iter().any(|r| of[r.node as usize] == of[node as usize])
            };
            if shares(1) { 0 } else { 2 - usize::from(shares(0)) }
        };
        let used: BTreeSet<u32> = placed.places.iter().map(|c| c.node).collect();
        let furthest = spares.iter().map(|c| distance(c.node)).max().unwrap();
        for other in (0..space.len() as u32).filter(|n| !used.contains(n)) {
            let fits = space.free[other as usize] != 0;
            assert!(!fits || distance(other) >= furthest, "seed {seed}: node {other} is nearer");
        }
        checked += 1;
    }
    assert!(checked > 300, "{checked}");
}

#[test]
fn l_former_nodes_keep_their_places_and_the_others_are_replaced_near_by() {
    let (mut kept, mut moved) = (0, 0);
    for seed in 0..1_500 {
        let mut draw = Draw(seed);
        let size = Size { blocks: 2, leaves: 3, nodes: 4, gone: 10 };
        let mut world = World::draw(&mut draw, size);
        let wants = Wants { roles: seed % 3 == 0, spares: true, elsewhere: true, nodes: 6 };
        let spec = question(&mut draw, &world, wants);
        let space = world.space();
        let avoid = BTreeSet::new();
        let closed = world.closed(&space);
        let Ok(first) = place(&space, &world.request(&space, &spec), &closed, None) else {
            continue;
        };
        let former: Vec<NodeId> = first.places.iter().map(|c| space.id(c.node).clone()).collect();
        // One of its nodes dies.
        let dead = draw.below(former.len() as u64) as usize;
        let node = world.nodes.iter_mut().find(|n| n.name == former[dead].as_str()).unwrap();
        node.takes_jobs = false;
        let space = world.space();
        let request = Request::new(&space, &spec, &small::terms(&spec, &avoid, &former));
        let Ok(again) = place(&space, &request, &closed, None) else { continue };
        let now: Vec<NodeId> = again.places.iter().map(|c| space.id(c.node).clone()).collect();
        judge(&world, &spec, &now).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let ranks = spec.nodes() as usize;
        let stays = |i: &usize| *i == dead || now[*i] == former[*i];
        if (0..ranks).all(|i| stays(&i)) {
            kept += 1;
            // A spare that is well and did not step in is still one.
            for spare in former[ranks..].iter().filter(|s| **s != former[dead]) {
                assert!(now.contains(spare), "seed {seed}: the spare {spare} is given up");
            }
            continue;
        }
        // If they moved, then because no single other node would have done.
        moved += 1;
        for other in &world.nodes {
            let mut places = former[..ranks].to_vec();
            if let Some(place) = places.get_mut(dead) {
                *place = id(&other.name);
            }
            let alone = JobSpec { spares: 0, ..spec.clone() };
            let fine = judge(&world, &alone, &places).is_ok();
            let spares = spec.spares == 0 || {
                let left = world.nodes.iter().filter(|n| !places.contains(&id(&n.name)));
                let with = |n: &small::Node| {
                    let mut all = places.clone();
                    all.push(id(&n.name));
                    judge(&world, &JobSpec { spares: 1, ..spec.clone() }, &all).is_ok()
                };
                left.filter(|n| with(n)).count() >= spec.spares as usize
            };
            assert!(!fine || !spares, "seed {seed}: {} would have done", other.name);
        }
    }
    assert!(kept > 300, "{kept} kept, {moved} moved");
}

#[test]
fn n_ranks_follow_the_fabric_and_rank_0_is_the_healthiest_of_its_domain() {
    let mut turned = 0;
    for seed in 0..800 {
        let mut draw = Draw(seed);
        let space = drawn(&mut draw, 4);
        let spec = gang(2 + draw.below(5) as u32, 1);
        let Some(placed) = ask(&space, &spec, &[]) else { continue };
        let nodes: Vec<u32> = placed.places.iter().map(|c| c.node).collect();
        assert!(nodes[1..].is_sorted(), "seed {seed}: {nodes:?}");
        let leaf = |n: &u32| space.layout.trees[0].levels[1].of[*n as usize];
        let first = nodes.iter().min().unwrap();
        assert_eq!(leaf(&nodes[0]), leaf(first), "seed {seed}: {nodes:?}");
        let sick =
            |n: &u32| (space.layout.kind_of(*n).all() & !space.healthy[*n as usize]).count_ones();
        let best = nodes.iter().filter(|n| leaf(n) == leaf(first)).map(|n| (sick(n), *n)).min();
        assert_eq!(Some((sick(&nodes[0]), nodes[0])), best, "seed {seed}: {nodes:?}");
        turned += u32::from(nodes[0] != *first);
    }
    assert!(turned > 30, "{turned}");
}

#[test]
fn local_ranks_follow_the_rails() {
    let gpu =
        |rail| GpuView { model: String::new(), numa: None, nvlink_group: None, rail, mig: false };
    let gpus = vec![gpu(Some(2)), gpu(None), gpu(Some(0)), gpu(Some(1))];
    let kind = Kind { gpus, cpus: 1, memory: 1 };
    assert_eq!(kind.by_rail(0b1111), [2, 3, 0, 1]);
    assert_eq!(kind.by_rail(0b1001), [3, 0]);
}

#[test]
fn the_same_key_is_the_same_question() {
    let space = Space::grid(1, 2, 4, 8);
    let (none, some) = (BTreeSet::new(), BTreeSet::from([id("b000-l000-n000")]));
    let spec = gang(2, 8);
    let key = |spec: &JobSpec, terms: &Terms<'_>| Request::new(&space, spec, terms).key().clone();
    let plain = small::terms(&spec, &none, &[]);
    let other_name = JobSpec { name: "other".to_owned(), ..spec.clone() };
    assert_eq!(key(&spec, &plain), key(&other_name, &plain));
    assert_ne!(key(&spec, &plain), key(&spec, &Terms { avoid: &some, ..plain }));
    assert_ne!(key(&spec, &plain), key(&spec, &Terms { nodes: 1, ..plain }));
    let mut patient = spec.clone();
    patient.placement.patience = Some(tessera_model::Millis(5));
    assert_eq!(key(&spec, &plain), key(&patient, &plain), "patience is for who asks");
    let first = |c: &Placed| c.places.iter().map(|c: &Chosen| c.node).collect::<Vec<_>>();
    assert_eq!(ask(&space, &spec, &[]).as_ref().map(first), Some(vec![0, 1]));
}
