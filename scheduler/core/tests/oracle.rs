//! The gang search against brute force on tiny clusters: every answer is right, every "optimal" is
//! the optimum, every "cannot" is true. Letters are those of `src/placement/README.md`.

mod small;

use small::{Draw, Size, Wants, World, judge, question, span, truth};
use tessera_core::placement::{NoFit, place};
use tessera_model::{NodeId, Optimality};

#[derive(Debug, Default)]
struct Tally {
    placed: u32,
    optimal: u32,
    no: u32,
    unknown: u32,
}

/// One seed: a cluster, a job, the answer and the truth.
fn compare(seed: u64, size: Size, wants: Wants, tally: &mut Tally) {
    let mut draw = Draw(seed);
    let world = World::draw(&mut draw, size);
    let spec = question(&mut draw, &world, wants);
    let space = world.space();
    let answer = place(&space, &world.request(&space, &spec), &world.closed(&space), None);
    let truth = truth(&world, &spec);
    let about = || format!("seed {seed}: {:?} x {:?}\n{:?}", spec.gang, spec.roles, spec.placement);
    match answer {
        Ok(placed) => {
            tally.placed += 1;
            let ids: Vec<NodeId> = placed.places.iter().map(|c| space.id(c.node).clone()).collect();
            if let Err(wrong) = judge(&world, &spec, &ids) {
                panic!("{wrong}: {ids:?}\n{}", about());
            }
            let nodes: Vec<_> =
                ids[..spec.nodes() as usize].iter().map(|i| world.node(i)).collect();
            let span = span(&nodes);
            let said: Vec<u32> = placed.spans.iter().map(|s| s.domains).collect();
            assert_eq!(said[..2], span, "what it says it spans; {}", about());
            let truth = truth.unwrap_or_else(|| panic!("the oracle found none; {}", about()));
            assert!(truth <= span, "the oracle missed {span:?}; {}", about());
            for (level, said) in placed.spans.iter().enumerate().take(2) {
                if placed.optimality != Optimality::Optimal {
                    let most = said.domains;
                    assert!(said.least <= most, "level {level}; {}", about());
                }
            }
            match placed.optimality {
                Optimality::Optimal => {
                    tally.optimal += 1;
                    assert_eq!(span, truth, "said to be optimal; {}", about());
                }
                Optimality::Bound { percent } => {
                    assert!(percent > 0, "{}", about());
                    // The first level on which it is worse is within the bound.
                    let worse = span.iter().zip(&truth).find(|(a, b)| a > b);
                    if let Some((a, b)) = worse {
                        assert!(a * 100 <= b * (100 + percent), "beyond the bound; {}", about());
                    }
                }
            }
        }
        Err(no) => {
            match &no {
                NoFit::NotFound { .. } => {
                    tally.unknown += 1;
                    return;
                }
                NoFit::Short { need, have, .. } => {
                    assert!(have < need, "{no:?}; {}", about());
                }
                NoFit::Shape { .. } => {}
            }
            tally.no += 1;
            assert_eq!(truth, None, "said to be impossible: {no:?}; {}", about());
        }
    }
}

fn run(seeds: std::ops::Range<u64>, size: Size, wants: Wants) -> Tally {
    let mut tally = Tally::default();
    seeds.for_each(|seed| compare(seed, size, wants, &mut tally));
    // The worlds are neither all full nor all empty, or the test would say nothing.
    let all = tally.placed + tally.no + tally.unknown;
    assert!(tally.placed * 6 > all && tally.no * 20 > all, "{tally:?}");
    assert!(tally.unknown * 100 <= all, "{tally:?}");
    tally
}

/// (D) complete, (E) least span, (J) honest: one role, levels of the first fabric.
#[test]
fn d_e_one_role_along_the_first_fabric() {
    let size = Size { blocks: 3, leaves: 3, nodes: 4, gone: 25 };
    let wants = Wants { roles: false, spares: true, elsewhere: false, nodes: 8 };
    let tally = run(0..3_000, size, wants);
    assert!(tally.optimal * 100 >= tally.placed * 99, "{tally:?}");
}

/// The same with levels of other fabrics.
#[test]
fn d_e_one_role_over_several_fabrics() {
    let size = Size { blocks: 2, leaves: 3, nodes: 3, gone: 20 };
    let wants = Wants { roles: false, spares: true, elsewhere: true, nodes: 6 };
    run(10_000..13_000, size, wants);
}

/// The same with two roles.
#[test]
fn d_e_two_roles() {
    let size = Size { blocks: 2, leaves: 3, nodes: 3, gone: 5 };
    let wants = Wants { roles: true, spares: true, elsewhere: true, nodes: 4 };
    run(20_000..21_500, size, wants);
}
