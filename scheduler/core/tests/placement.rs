//! Placement: one property for each letter of `src/placement/README.md`. D and E stand in
//! `oracle.rs`, E also in `placement_span.rs`, G, K, L, M and N in `placement_ranks.rs`, I in
//! `placement_verified.rs`; stories are in `placement_stories.rs`.

mod small;

use std::collections::BTreeSet;

use small::{Draw, Node, Size, Wants, World, judge, question, span};
use tessera_core::placement::{Chosen, NoFit, Placed, Request, Seats, Space, Taken, place};
use tessera_model::{JobSpec, NodeId, Optimality, Placement, Slice, Strength, WHOLE_GPU, Within};

const SIZE: Size = Size { blocks: 3, leaves: 3, nodes: 4, gone: 15 };
const WANTS: Wants = Wants { roles: false, spares: true, elsewhere: false, nodes: 6 };
const ANYTHING: Wants = Wants { roles: true, spares: true, elsewhere: true, nodes: 4 };

/// For many seeds: a world, a job in it, and the seed's further draws.
fn worlds(seeds: std::ops::Range<u64>, mut with: impl FnMut(u64, Draw, World, JobSpec)) {
    for seed in seeds {
        let mut draw = Draw(seed);
        let world = World::draw(&mut draw, SIZE);
        let wants = if seed % 2 == 0 { WANTS } else { ANYTHING };
        let spec = question(&mut draw, &world, wants);
        with(seed, draw, world, spec);
    }
}

fn answer(world: &World, space: &Space, spec: &JobSpec) -> Result<Placed, NoFit> {
    place(space, &world.request(space, spec), &world.closed(space), None)
}

fn named(space: &Space, placed: &Placed) -> Vec<(NodeId, u64)> {
    placed.places.iter().map(|c| (space.id(c.node).clone(), c.gpus)).collect()
}

#[test]
fn a_b_c_all_or_nothing_of_what_is_free_and_as_it_was_asked() {
    let mut found = 0;
    worlds(0..2_000, |seed, _, world, spec| {
        let mut space = world.space();
        let Ok(placed) = answer(&world, &space, &spec) else { return };
        found += 1;
        let ids: Vec<NodeId> = placed.places.iter().map(|c| space.id(c.node).clone()).collect();
        judge(&world, &spec, &ids).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let taken: Vec<Taken> = placed.taken(&spec).collect();
        assert_eq!(taken.len(), (spec.nodes() + spec.spares) as usize, "seed {seed}");
        for (i, t) in taken.iter().enumerate() {
            let further = (i as u32).checked_sub(spec.gang.nodes);
            let further = further.filter(|i| *i + spec.gang.nodes < spec.nodes());
            let gang = further.map_or(&spec.gang, |_| &spec.roles[0].gang);
            assert_eq!(t.gpus.count_ones(), gang.gpus_per_node, "seed {seed}: place {i}");
            assert_eq!((t.cpus, t.memory), (gang.cpus_per_node(), 0), "seed {seed}: place {i}");
            assert_eq!(space.free[t.node as usize] & t.gpus, t.gpus, "seed {seed}: place {i}");
            space.take(t);
        }
    });
    assert!(found > 600, "{found}");
}

#[test]
fn f_neither_the_order_of_listing_nor_hash_seeds_nor_names_matter() {
    worlds(0..600, |seed, mut draw, world, spec| {
        let space = world.space();
        let first = answer(&world, &space, &spec).map(|p| (named(&space, &p), p.spans));
        for _ in 0..3 {
            let mut other = world.clone();
            draw.shuffle(&mut other.nodes);
            // A new space each time has hash maps with seeds of their own.
            let space = other.space();
            let again = answer(&other, &space, &spec).map(|p| (named(&space, &p), p.spans));
            assert_eq!(first, again, "seed {seed}");
        }
        // Other names in the same order; what a job says by name is left out.
        if !spec.placement.only.is_empty() || !spec.placement.exclude.is_empty() {
            return;
        }
        let mut other = world.clone();
        for node in &mut other.nodes {
            node.name = node.name.replace('n', "host-");
            node.path = node.path.map(|(b, l)| (b + 3, l + 2));
        }
        other.sick_leaf = world.sick_leaf.map(|(b, l)| (b + 3, l + 2));
        let renamed = other.space();
        let again = answer(&other, &renamed, &spec);
        let places = |p: Result<Placed, NoFit>| p.map(|p| p.places).map_err(|_| ());
        assert_eq!(places(answer(&world, &space, &spec)), places(again), "seed {seed}");
    });
}

#[test]
fn h_freeing_more_never_hurts() {
    let mut compared = 0;
    worlds(0..1_500, |seed, mut draw, world, mut spec| {
        spec.placement.spread.clear();
        spec.roles.iter_mut().for_each(|r| r.placement.spread.clear());
        let space = world.space();
        let Ok(before) = answer(&world, &space, &spec) else { return };
        let mut more = world.clone();
        for node in &mut more.nodes {
            if draw.chance(40) {
                node.busy = 0;
                node.closed = false;
                node.takes_jobs = true;
            }
        }
        let space = more.space();
        let after = answer(&more, &space, &spec)
            .unwrap_or_else(|no| panic!("seed {seed}: fitted before, now {no:?}"));
        if (before.optimality, after.optimality) == (Optimality::Optimal, Optimality::Optimal) {
            let spans = |p: &Placed| p.spans.iter().map(|s| s.domains).collect::<Vec<_>>();
            assert!(spans(&after) <= spans(&before), "seed {seed}");
            compared += 1;
        }
    });
    assert!(compared > 500, "{compared}");
}

/// Of all choices of nodes of the least span, by brute force: how many fitting nodes the narrowest
/// domain has that holds all, and how many nodes are left over in the leaves it uses.
#[test]
fn j_the_tightest_domain_and_in_it_the_least_left_over() {
    for seed in 0..800 {
        let mut draw = Draw(seed);
        let size = Size { blocks: 3, leaves: 3, nodes: 3, gone: 20 };
        let mut world = World::draw(&mut draw, size);
        world.nodes.retain(|n| n.path.is_some());
        let spec = small::job(small::gang(2 + draw.below(4) as u32, 2), Placement::default());
        let space = world.space();
        let Ok(placed) = answer(&world, &space, &spec) else { continue };
        let fit: Vec<&Node> =
            world.nodes.iter().filter(|n| small::fits(&world, &spec, 0, n)).collect();
        let key = |nodes: &[&Node]| {
            let shared = |level: &str| {
                let domains: BTreeSet<_> = nodes.iter().map(|n| small::domain(n, level)).collect();
                (domains.len() == 1).then(|| domains.into_iter().next().flatten())
            };
            let inside = |level: &str| {
                let domain = shared(level)?;
                Some(fit.iter().filter(|n| small::domain(n, level) == domain).count())
            };
            let tight = inside("leaf").or_else(|| inside("block")).unwrap_or(fit.len());
            let leaves: BTreeSet<_> = nodes.iter().map(|n| n.path).collect();
            let left = fit.iter().filter(|n| leaves.contains(&n.path)).count();
            // Several blocks: what is left over is not promised.
            let left = if shared("block").is_some() { left } else { 0 };
            // Of equals the first; only then what is left over inside.
            (span(nodes), tight, shared("leaf"), shared("block"), left)
        };
        let want = spec.gang.nodes as usize;
        let mut best = None;
        each_choice(&fit, want, &mut Vec::new(), &mut |nodes| {
            let key = key(nodes);
            if best.as_ref().is_none_or(|b| key < *b) {
                best = Some(key);
            }
        });
        let nodes: Vec<&Node> =
            placed.places.iter().map(|c| world.node(space.id(c.node))).collect();
        assert_eq!(Some(key(&nodes)), best, "seed {seed}");
    }
}

fn each_choice<'a>(
    of: &[&'a Node],
    want: usize,
    chosen: &mut Vec<&'a Node>,
    with: &mut impl FnMut(&[&Node]),
) {
    if want == 0 {
        with(chosen);
        return;
    }
    for i in 0..of.len().saturating_sub(want - 1) {
        chosen.push(of[i]);
        each_choice(&of[i + 1..], want - 1, chosen, with);
        chosen.pop();
    }
}

#[test]
fn o_undo_restores_the_space_however_marks_nest() {
    for seed in 0..500 {
        let mut draw = Draw(seed);
        let mut space = Space::grid(2, 2, 2, 4);
        let mut held: Vec<Taken> = Vec::new();
        for _ in 0..10 {
            change(&mut draw, &mut space, &mut held);
        }
        let before = (space.clone(), held.clone());
        let outer = space.mark();
        for _ in 0..5 {
            change(&mut draw, &mut space, &mut held);
        }
        let middle = (space.clone(), held.clone());
        let inner = space.mark();
        for _ in 0..5 {
            change(&mut draw, &mut space, &mut held);
        }
        let kept = draw.chance(50);
        if kept {
            space.keep(inner);
        } else {
            space.undo_to(inner);
            same(&space, &middle.0, seed);
            held = middle.1;
        }
        for _ in 0..5 {
            change(&mut draw, &mut space, &mut held);
        }
        space.undo_to(outer);
        same(&space, &before.0, seed);
        // Nothing of it is left to undo by mistake.
        let mark = space.mark();
        space.undo_to(mark);
        same(&space, &before.0, seed);
    }
}

fn change(draw: &mut Draw, space: &mut Space, held: &mut Vec<Taken>) {
    if !held.is_empty() && draw.chance(40) {
        let taken = held.swap_remove(draw.below(held.len() as u64) as usize);
        space.give(&taken);
        return;
    }
    let node = draw.below(space.len() as u64) as u32;
    let gpu = draw.below(4) as u32;
    let left = space.shared.get(&(node, gpu)).copied();
    let free = space.free[node as usize] >> gpu & 1 == 1;
    let milli = if draw.chance(50) { 250 } else { WHOLE_GPU };
    if free || left.is_some_and(|l| l >= milli) {
        let taken = Taken { node, gpus: 1 << gpu, milli, cpus: 1, memory: 1 };
        space.take(&taken);
        held.push(taken);
    }
}

fn same(a: &Space, b: &Space, seed: u64) {
    assert_eq!(a.free, b.free, "seed {seed}");
    assert_eq!(a.shared, b.shared, "seed {seed}");
    assert_eq!((&a.cpus_free, &a.memory_free), (&b.cpus_free, &b.memory_free), "seed {seed}");
}

#[test]
fn p_what_was_preferred_and_is_not_kept_is_listed() {
    worlds(0..600, |seed, mut draw, world, mut spec| {
        let (level, strength) = (draw.of(&["block", "leaf"]).to_owned(), Strength::Preferred);
        spec.roles.clear();
        spec.placement = Placement {
            within: vec![Within { level: level.clone(), strength }],
            slices: vec![Slice { nodes: spec.gang.nodes, level: "leaf".to_owned(), strength }],
            ..Placement::default()
        };
        let space = world.space();
        let avoid = BTreeSet::new();
        let terms = small::terms(&spec, &avoid, &[]);
        let bound =
            place(&space, &Request::new(&space, &spec, &terms), &world.closed(&space), None);
        let terms = tessera_core::placement::Terms { preferred: false, ..terms };
        let free = place(&space, &Request::new(&space, &spec, &terms), &world.closed(&space), None);
        if let Ok(bound) = &bound {
            assert_eq!(bound.given_up, Vec::<String>::new(), "seed {seed}");
        }
        let Ok(free) = free else {
            assert!(bound.is_err(), "seed {seed}");
            return;
        };
        let ranks = &free.places[..spec.gang.nodes as usize];
        let one = |level: &str| {
            let of = |c: &Chosen| small::domain(world.node(space.id(c.node)), level);
            let domains: BTreeSet<_> = ranks.iter().map(of).collect();
            domains.len() == 1 && !domains.contains(&None)
        };
        let want = usize::from(!one(&level)) + usize::from(!one("leaf"));
        assert_eq!(free.given_up.len(), want, "seed {seed}: {:?}", free.given_up);
    });
}

#[test]
fn seats_say_where_a_single_node_job_goes_and_never_that_there_is_no_place() {
    use tessera_core::placement::packing::Mix;
    let mut mix = Mix::default();
    for i in 0..60 {
        let mut gang = small::gang(1, 1);
        gang.gpu_milli = if i % 3 == 0 { 500 } else { WHOLE_GPU };
        let space = Space::grid(1, 1, 1, 2);
        mix.observe(&tessera_core::placement::seats::ask(&space, &gang).unwrap());
    }
    let mut chose_otherwise = 0;
    for seed in 0..300 {
        let mut draw = Draw(seed);
        let world = World::draw(&mut draw, SIZE);
        let mut spec = small::job(small::gang(1, draw.of(&[0, 1, 2])), Placement::default());
        if spec.gang.gpus_per_node == 1 && draw.chance(50) {
            spec.gang.gpu_milli = draw.of(&[250, 500]);
        }
        let mut space = world.space();
        let (mut kept, closed) = (Seats::default(), world.closed(&space));
        for _ in 0..4 {
            let request = world.request(&space, &spec);
            kept.ready(&space, &mix);
            let packed = place(&space, &request, &closed, Some(&mut kept));
            let mut fresh = Seats::default();
            fresh.ready(&space, &mix);
            let again = place(&space, &request, &closed, Some(&mut fresh));
            assert_eq!(packed, again, "seed {seed}: what was asked before plays no part");
            let plain = place(&space, &request, &closed, None);
            assert_eq!(packed.is_ok(), plain.is_ok(), "seed {seed}");
            let Ok(packed) = packed else { break };
            chose_otherwise += u32::from(plain.is_ok_and(|p| p.places != packed.places));
            let taken: Vec<Taken> = packed.taken(&spec).collect();
            for t in taken {
                let left = |gpu: u32| space.shared.get(&(t.node, gpu)).copied().unwrap_or(0);
                let free = space.free[t.node as usize] & t.gpus == t.gpus;
                let shared = t.milli < WHOLE_GPU && left(t.gpus.trailing_zeros()) >= t.milli;
                assert!(free || shared, "seed {seed}: {t:?} is not free");
                space.take(&t);
            }
        }
    }
    assert!(chose_otherwise > 0, "the packer never had a say");
}
