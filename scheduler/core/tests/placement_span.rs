//! (E) least span, where brute force over nodes is too slow: counts that share nothing with the
//! search, on trees of any depth and on a cluster of the size of the published Lingjun topology.

mod small;

use std::collections::{BTreeMap, BTreeSet};

use small::{Draw, id};
use tessera_core::placement::space::Sketch;
use tessera_core::placement::{NoFit, NodeSet, Placed, Request, Space, Taken, place};
use tessera_model::topology::Fabric;
use tessera_model::{
    AtMost, JobSpec, NodeId, Optimality, Placement, Slice, Spread, Strength, Topology, WHOLE_GPU,
    Within,
};

/// Nodes by path, all of one kind; `busy` of them are full.
fn space(levels: &[&str], paths: &[Vec<String>], busy: &dyn Fn(usize) -> bool) -> Space {
    let name = |i: usize| id(&format!("n{i:04}"));
    let sketch =
        |i: usize| Sketch { id: name(i), kind: small::World::kind(), labels: BTreeMap::new() };
    let nodes: BTreeMap<NodeId, Vec<String>> =
        paths.iter().enumerate().map(|(i, p)| (name(i), p.clone())).collect();
    let levels = levels.iter().map(|l| (*l).to_owned()).collect();
    let fabric = Fabric { name: "net".to_owned(), levels, nodes, switches: BTreeMap::new() };
    let map = Topology { fabrics: vec![fabric] };
    let sketches = (0..paths.len()).map(sketch).collect();
    let mut space = Space::sketch(sketches, &map, &BTreeMap::new());
    for i in (0..paths.len()).filter(|i| busy(*i)) {
        let node = space.layout.index(&name(i)).unwrap();
        space.take(&Taken { node, gpus: 3, milli: WHOLE_GPU, cpus: 0, memory: 0 });
    }
    space
}

fn ask(space: &Space, spec: &JobSpec) -> Result<Placed, NoFit> {
    let avoid = BTreeSet::new();
    let request = Request::new(space, spec, &small::terms(spec, &avoid, &[]));
    place(space, &request, &NodeSet::new(space.len()), None)
}

fn gang(nodes: u32) -> JobSpec {
    small::job(small::gang(nodes, 2), Placement::default())
}

fn domains(placed: &Placed) -> Vec<u32> {
    placed.spans.iter().map(|s| s.domains).collect()
}

/// As published: 847 hosts under 119 access switches in three pods, here of drawn sizes; gangs of
/// whole nodes, 80 % of which are busy at random.
#[test]
fn e_every_gang_on_the_lingjun_topology_spans_the_least() {
    let (mut placed, mut apart) = (0, 0);
    for seed in 0..60 {
        let mut draw = Draw(seed);
        let mut paths = Vec::new();
        for leaf in 0..119 {
            let pod = leaf % 3;
            for _ in 0..if leaf < 14 { 8 } else { 7 - u64::from(draw.chance(3)) } {
                paths.push(vec!["dsw".to_owned(), format!("pod{pod}"), format!("asw{leaf:03}")]);
            }
        }
        let percent = if seed % 2 == 0 { 80 } else { 50 };
        let busy: Vec<bool> = paths.iter().map(|_| draw.chance(percent)).collect();
        let space = space(&["dsw", "pod", "asw"], &paths, &|i| busy[i]);
        // Free nodes by pod and leaf, from the drawing.
        let mut free: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
        for (path, _) in paths.iter().zip(&busy).filter(|(_, busy)| !**busy) {
            *free.entry(&path[1]).or_default().entry(&path[2]).or_insert(0) += 1;
        }
        let pods: Vec<Vec<u32>> =
            free.values().map(|leaves| leaves.values().copied().collect()).collect();
        for nodes in [4, 8, 16, 32, 64] {
            // Every set of pods, and out of it the fullest leaves.
            let best = (1u32..1 << pods.len()).filter_map(|set| {
                let chosen = pods.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
                let mut leaves: Vec<u32> = chosen.flat_map(|(_, l)| l.iter().copied()).collect();
                leaves.sort_unstable_by(|a, b| b.cmp(a));
                let (mut sum, mut used) = (0, 0);
                for leaf in leaves {
                    if sum < nodes {
                        (sum, used) = (sum + leaf, used + 1);
                    }
                }
                (sum >= nodes).then(|| (set.count_ones(), used))
            });
            match (best.min(), ask(&space, &gang(nodes))) {
                (None, Err(NoFit::Short { need, have, .. })) => assert!(have < need),
                (Some((pods, leaves)), Ok(answer)) => {
                    placed += 1;
                    apart += u32::from(leaves > 1);
                    assert_eq!(domains(&answer), [1, pods, leaves, nodes], "seed {seed}: {nodes}");
                    assert_eq!(answer.optimality, Optimality::Optimal, "seed {seed}: {nodes}");
                }
                (truth, answer) => panic!("seed {seed}: {nodes} nodes, {truth:?}: {answer:?}"),
            }
        }
    }
    assert!(placed > 250 && apart > 200, "{placed} {apart}");
}

/// Trees of no to five levels against every way to take nodes from leaves.
#[test]
fn e_trees_of_any_depth() {
    let names = ["l1", "l2", "l3", "l4", "l5"];
    for seed in 0..1_200 {
        let mut draw = Draw(seed);
        let depth = draw.below(6) as usize;
        let leaves = 2 + draw.below(6);
        let mut paths: Vec<Vec<String>> = Vec::new();
        let mut path = vec![0u64; depth];
        for _ in 0..leaves {
            // The next leaf parts from this one somewhere.
            if depth > 0 {
                let from = draw.below(depth as u64) as usize;
                path[from..].iter_mut().for_each(|p| *p += 1);
            }
            for _ in 0..1 + draw.below(3) {
                let name =
                    |d: usize| format!("{d}.{}", path[..=d].iter().sum::<u64>() + path[d] * 9);
                let full = |d: usize| (0..=d).map(name).collect::<Vec<_>>().join("/");
                paths.push((0..depth).map(full).collect());
            }
        }
        let busy: Vec<bool> = paths.iter().map(|_| draw.chance(20)).collect();
        let space = space(&names[..depth], &paths, &|i| busy[i]);
        let mut spec = gang(1 + draw.below(6) as u32);
        let level = |draw: &mut Draw| names[draw.below(depth as u64) as usize].to_owned();
        if depth > 0 && draw.chance(30) {
            let domains = 1 + draw.below(2) as u32;
            spec.placement.at_most = vec![AtMost { domains, level: level(&mut draw) }];
        }
        let free: Vec<usize> = (0..paths.len()).filter(|i| !busy[*i]).collect();
        let mut best: Option<Vec<u32>> = None;
        for set in 0u32..1 << free.len() {
            if set.count_ones() != spec.gang.nodes {
                continue;
            }
            let chosen = (0..free.len()).filter(|i| set >> i & 1 == 1).map(|i| free[i]);
            let chosen: Vec<usize> = chosen.collect();
            let used = |d: usize| {
                chosen.iter().map(|i| &paths[*i][d]).collect::<BTreeSet<_>>().len() as u32
            };
            let span: Vec<u32> = (0..depth).map(used).collect();
            let allowed = spec.placement.at_most.iter().all(|a| {
                names.iter().position(|n| *n == a.level).is_none_or(|d| span[d] <= a.domains)
            });
            if allowed && best.as_ref().is_none_or(|b| span < *b) {
                best = Some(span);
            }
        }
        let answer = ask(&space, &spec);
        match (&best, &answer) {
            (Some(best), Ok(answer)) => {
                assert_eq!(domains(answer)[..depth], best[..], "seed {seed}");
                assert_eq!(answer.optimality, Optimality::Optimal, "seed {seed}");
            }
            (None, Err(NoFit::Short { .. } | NoFit::Shape { .. })) => {}
            _ => panic!("seed {seed}: {best:?}, {answer:?}"),
        }
    }
}

/// The large cluster of the measurements: what is asked holds there, too, and is proven.
#[test]
fn c_bonds_hold_on_a_large_cluster() {
    let mut space = Space::grid(25, 16, 32, 8);
    let mut draw = Draw(1);
    for node in 0..space.len() as u32 {
        let gpus = if draw.chance(78) { 255 >> draw.below(8) } else { 0 };
        space.take(&Taken { node, gpus, milli: WHOLE_GPU, cpus: 0, memory: 0 });
    }
    let leaf = || "leaf".to_owned();
    let slices = |nodes| vec![Slice { nodes, level: leaf(), strength: Strength::Required }];
    let plain = Placement::default();
    let within =
        |level: &str| vec![Within { level: level.to_owned(), strength: Strength::Required }];
    for (nodes, placement) in [
        (64, plain.clone()),
        (32, Placement { slices: slices(4), ..plain.clone() }),
        (512, plain.clone()),
        (1_500, plain.clone()),
        (40, Placement { within: within("block"), slices: slices(2), ..plain.clone() }),
        (12, Placement { at_most: vec![AtMost { domains: 2, level: leaf() }], ..plain.clone() }),
        (48, Placement { balance: Some(leaf()), ..plain.clone() }),
        (
            32,
            Placement {
                within: within("block"),
                spread: vec![Spread { level: leaf(), max_skew: 1 }],
                ..plain.clone()
            },
        ),
    ] {
        let mut spec = gang(nodes);
        spec.gang.gpus_per_node = 8;
        spec.placement = placement;
        let about = format!("{nodes}: {:?}", spec.placement);
        let placed = ask(&space, &spec).unwrap_or_else(|no| panic!("{about}: {no:?}"));
        assert_eq!(placed.optimality, Optimality::Optimal, "{about}");
        let leaf_of = |node: u32| space.layout.trees[0].levels[1].of[node as usize];
        let mut leaves: BTreeMap<u32, u32> = BTreeMap::new();
        placed.places.iter().for_each(|c| *leaves.entry(leaf_of(c.node)).or_insert(0) += 1);
        assert_eq!(placed.spans[1].domains as usize, leaves.len(), "{about}");
        for slice in &spec.placement.slices {
            for chunk in placed.places.chunks(slice.nodes as usize) {
                assert!(chunk.iter().all(|c| leaf_of(c.node) == leaf_of(chunk[0].node)), "{about}");
            }
        }
        let (most, least) = (leaves.values().max(), leaves.values().min());
        if spec.placement.balance.is_some() {
            assert_eq!(most, least, "{about}");
        }
        for spread in &spec.placement.spread {
            assert!(most.unwrap() - least.unwrap() <= spread.max_skew, "{about}");
        }
        for at_most in &spec.placement.at_most {
            assert!(leaves.len() <= at_most.domains as usize, "{about}");
        }
        if !spec.placement.within.is_empty() {
            assert_eq!(placed.spans[0].domains, 1, "{about}");
        }
    }
}
