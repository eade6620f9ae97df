//! Packing: nothing goes where it does not fit, nothing that fits is turned away, and the same
//! question has the same answer whatever was asked before.

use proptest::prelude::*;
use tessera_core::placement::packing::prices::{DEVICE, Prices};
use tessera_core::placement::packing::{
    Ask, Choice, ClassId, Devices, Kind, Left, Mix, Packer, Take, Tuning, WHOLE,
};

fn kinds() -> Vec<Kind> {
    vec![
        Kind { cpus: 96, memory: 384, gpus: 8 },
        Kind { cpus: 64, memory: 256, gpus: 4 },
        Kind { cpus: 16, memory: 64, gpus: 2 },
    ]
}

fn ask(gpus: u16, milli: u16, cpus: u32) -> Ask {
    Ask { gpus, milli, cpus, memory: u64::from(cpus) * 4, kinds: None }
}

fn left(kind: u16, cpus: u32, gpus: &[u16]) -> Left {
    Left { kind, cpus, memory: u64::from(cpus) * 4, gpus: Devices::new(gpus).unwrap() }
}

/// A small generator, so that a workload is the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Shares that pair badly with themselves and well with each other, whole devices, half nodes and
/// asks that need no GPU.
fn drawn(dice: &mut Dice) -> Ask {
    match dice.below(100) {
        0..30 => ask(1, 470, 4),
        30..45 => ask(1, 320, 4),
        45..55 => ask(1, 650, 6),
        55..65 => ask(1, 200, 2),
        65..85 => ask(1, WHOLE, 11),
        85..90 => ask(2, WHOLE, 22),
        90..93 => ask(4, WHOLE, 44),
        _ => ask(0, 0, 12),
    }
}

fn learnt(arrivals: u32) -> Mix {
    let (mut mix, mut dice) = (Mix::default(), Dice(1));
    for _ in 0..arrivals {
        mix.observe(&drawn(&mut dice));
    }
    mix
}

/// Most asks leave a rest that nobody wants, so remainders are worth more than their size.
fn lossy() -> Mix {
    let wants = [ask(1, 810, 3), ask(1, WHOLE, 11), ask(1, 470, 4), ask(4, WHOLE, 44)];
    let mut mix = Mix::default();
    for n in 0..50 {
        mix.observe(&wants[[0, 0, 0, 1, 2, 0, 1, 3, 0, 1][n % 10]]);
    }
    mix
}

fn class_all(packer: &mut Packer, lefts: &[Left]) -> Vec<ClassId> {
    lefts.iter().map(|left| packer.class_of(left)).collect()
}

/// As callers do: only nodes with the CPUs and memory are offered.
fn choose(packer: &mut Packer, ask: &Ask, lefts: &[Left], classes: &[ClassId]) -> Option<Choice> {
    packer.choose(ask, offered(ask, lefts, classes).into_iter())
}

fn offered(ask: &Ask, lefts: &[Left], classes: &[ClassId]) -> Vec<(u32, ClassId)> {
    let numbered = (0u32..).zip(classes.iter().copied());
    let roomy = |left: &Left| ask.cpus <= left.cpus && ask.memory <= left.memory;
    numbered.filter(|&(at, _)| roomy(&lefts[at as usize])).collect()
}

fn any_left() -> impl Strategy<Value = Left> {
    let device = prop_oneof![Just(0u16), Just(WHOLE), Just(530), 0..=WHOLE];
    (0u16..3).prop_flat_map(move |kind| {
        let most = kinds()[usize::from(kind)].clone();
        let gpus = prop::collection::vec(device.clone(), usize::from(most.gpus));
        (Just(kind), 0..=most.cpus, 0..=most.memory, gpus).prop_map(|(kind, cpus, memory, gpus)| {
            Left { kind, cpus, memory, gpus: Devices::new(&gpus).unwrap() }
        })
    })
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let shape = prop_oneof![
        Just((0u16, 0u16)),
        (Just(1u16), 1u16..=WHOLE),
        (1u16..=8, Just(WHOLE)),
        Just((1, 470)),
    ];
    let kinds = prop::option::of(prop::sample::subsequence(vec![0u16, 1, 2], 0..=3));
    (shape, 0u32..=40, 0u64..=160, kinds).prop_map(|((gpus, milli), cpus, memory, kinds)| Ask {
        gpus,
        milli,
        cpus,
        memory,
        kinds,
    })
}

/// By counting alone, on purpose unlike the code under test.
fn really_fits(ask: &Ask, left: &Left) -> bool {
    let liked = ask.kinds.as_ref().is_none_or(|kinds| kinds.contains(&left.kind));
    let able = left.gpus.as_slice().iter().filter(|m| **m >= ask.milli).count();
    let enough = ask.gpus == 0 || able >= usize::from(ask.gpus);
    liked && enough && left.cpus >= ask.cpus && left.memory >= ask.memory
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_is_chosen_fits_and_what_fits_is_chosen(
        lefts in prop::collection::vec(any_left(), 1..12),
        asks in prop::collection::vec(any_ask(), 1..8),
        arrivals in prop_oneof![Just(0u32), Just(60), Just(400)],
    ) {
        let mut packer = Packer::new(&learnt(arrivals), &kinds(), Tuning::default());
        let classes = class_all(&mut packer, &lefts);
        for ask in &asks {
            let some = lefts.iter().any(|left| really_fits(ask, left));
            let choice = choose(&mut packer, ask, &lefts, &classes);
            prop_assert_eq!(choice.is_some(), some, "{:?}", ask);
            let Some(choice) = choice else { continue };
            let at = &lefts[choice.position as usize];
            prop_assert!(really_fits(ask, at), "{:?} on {:?}", ask, at);
            let devices = choice.take.devices(&at.gpus).unwrap();
            prop_assert_eq!(devices.count_ones(), u32::from(ask.gpus));
            for bit in (0..64).filter(|bit| devices >> bit & 1 == 1) {
                prop_assert!(at.gpus.as_slice()[bit] >= ask.milli);
            }
            let mut after = *at;
            after.take(ask, devices);
            after.give(ask, devices);
            prop_assert_eq!(&after, at);
        }
    }

    #[test]
    fn the_answer_does_not_depend_on_what_was_asked_before(
        lefts in prop::collection::vec(any_left(), 1..12),
        others in prop::collection::vec(any_left(), 0..8),
        asks in prop::collection::vec(any_ask(), 1..8),
    ) {
        let mix = learnt(400);
        let mut used = Packer::new(&mix, &kinds(), Tuning::default());
        class_all(&mut used, &others);
        let classes = class_all(&mut used, &lefts);
        asks.iter().rev().for_each(|ask| { choose(&mut used, ask, &lefts, &classes); });
        for ask in &asks {
            let mut fresh = Packer::new(&mix, &kinds(), Tuning::default());
            let fresh_classes = class_all(&mut fresh, &lefts);
            let (a, b) = (choose(&mut used, ask, &lefts, &classes), choose(&mut fresh, ask, &lefts, &fresh_classes));
            let bare = |c: Option<Choice>| c.map(|c| (c.position, c.take, c.cost));
            prop_assert_eq!(bare(a), bare(b));
        }
    }

    #[test]
    fn the_order_of_the_nodes_given_does_not_matter(
        lefts in prop::collection::vec(any_left(), 2..12),
        ask in any_ask(),
        turn in 0usize..24,
    ) {
        let mut packer = Packer::new(&learnt(400), &kinds(), Tuning::default());
        // Each state twice, so that positions of one class come out of order as well.
        let twice: Vec<Left> = lefts.iter().chain(&lefts).copied().collect();
        let classes = class_all(&mut packer, &twice);
        let forward = choose(&mut packer, &ask, &twice, &classes);
        let numbered = offered(&ask, &twice, &classes);
        let backward = packer.choose(&ask, numbered.iter().copied().rev());
        prop_assert_eq!(forward, backward);
        let (a, b) = numbered.split_at(turn % numbered.len().max(1));
        prop_assert_eq!(forward, packer.choose(&ask, b.iter().chain(a).copied()));
    }

    /// Leaving out nodes that are too far back to win must not change who wins.
    #[test]
    fn it_is_the_cheapest_of_all(
        lefts in prop::collection::vec(any_left(), 1..12),
        ask in any_ask(),
        apart in prop_oneof![Just(1u32), 10u32..1_500],
    ) {
        let tuning = Tuning::default();
        let mix = lossy();
        let mut packer = Packer::new(&mix, &kinds(), tuning);
        let classes = class_all(&mut packer, &lefts);
        let spread: Vec<(u32, ClassId)> =
            offered(&ask, &lefts, &classes).into_iter().map(|(at, c)| (at * apart, c)).collect();
        let price = i64::from(tuning.position_milli) * packer.cost_unit();
        let all = spread.iter().filter_map(|&(at, class)| {
            let (rise, _) = packer.rise(class, &ask)?;
            Some((rise + price * i64::from(at), at))
        });
        let least = all.collect::<Vec<_>>().into_iter().min();
        let mut fresh = Packer::new(&mix, &kinds(), tuning);
        class_all(&mut fresh, &lefts);
        let choice = fresh.choose(&ask, spread.into_iter());
        prop_assert_eq!(choice.map(|c| (c.cost, c.position)), least);
    }

    /// What a device's remainder is worth: no pattern beats a whole device, and more is not less.
    #[test]
    fn prices_are_sound(
        counts in prop::collection::btree_map(1u16..WHOLE, 1u64..1_000, 0..24),
    ) {
        let shares: Vec<(u16, u64)> = counts.into_iter().collect();
        let prices = Prices::of(&shares);
        for milli in 1..=WHOLE {
            prop_assert!(prices.worth(milli) >= prices.worth(milli - 1), "at {}", milli);
        }
        for a in 0..=WHOLE {
            prop_assert!(prices.worth(a) + prices.worth(WHOLE - a) <= DEVICE);
        }
    }
}

#[test]
fn of_equal_nodes_the_first_is_taken() {
    let mut packer = Packer::new(&learnt(400), &kinds(), Tuning::default());
    // The same left, its devices in another order: still equal.
    let a = left(1, 20, &[1000, 530, 0, 0]);
    let b = left(1, 20, &[0, 0, 530, 1000]);
    let lefts = [a, b, a];
    let classes = class_all(&mut packer, &lefts);
    assert_eq!(classes[0], classes[1]);
    for ask in [ask(1, 470, 4), ask(1, WHOLE, 11), ask(0, 0, 12)] {
        let choice = choose(&mut packer, &ask, &lefts, &classes).unwrap();
        assert_eq!(choice.position, 0, "{ask:?}");
        let later = packer.choose(&ask, [(7, classes[0]), (5, classes[1])].into_iter()).unwrap();
        assert_eq!((later.position, later.take), (5, choice.take), "{ask:?}");
    }
}

#[test]
fn a_share_goes_where_it_fills_a_device_up() {
    let mut packer = Packer::new(&learnt(400), &kinds(), Tuning::default());
    // 320 beside 650 wastes 30; the tighter 350 comes first in the order, but on a fresh device.
    let lefts = [left(1, 40, &[1000, 1000, 1000, 1000]), left(1, 40, &[350, 0, 0, 0])];
    let classes = class_all(&mut packer, &lefts);
    let choice = choose(&mut packer, &ask(1, 320, 4), &lefts, &classes).unwrap();
    assert_eq!((choice.position, choice.take), (1, Take::ShareOf(350)));
    // Without any mix as well: a device in use rather than a fresh one of the same node.
    let mut blind = Packer::new(&Mix::default(), &kinds(), Tuning::default());
    let class = blind.class_of(&left(1, 40, &[1000, 700, 1000, 400]));
    let (_, take) = blind.rise(class, &ask(1, 320, 4)).unwrap();
    assert_eq!(take, Take::ShareOf(400));
}

#[test]
fn a_node_far_back_still_wins_where_it_is_much_better() {
    // The first node spoils a remainder of 810 that is worth a whole device; the other has a fresh
    // device, of which taking 190 costs nothing.
    let (tuning, little) = (Tuning::default(), ask(1, 190, 1));
    let lefts = [left(2, 16, &[810, 0]), left(2, 16, &[1000, 1000])];
    let mut winners = Vec::new();
    for position in (1..2_000).step_by(10) {
        let mut packer = Packer::new(&lossy(), &kinds(), tuning);
        let classes = class_all(&mut packer, &lefts);
        let price = i64::from(tuning.position_milli) * packer.cost_unit();
        let near = packer.rise(classes[0], &little).unwrap().0;
        let far = packer.rise(classes[1], &little).unwrap().0 + price * i64::from(position);
        let nodes = [(0, classes[0]), (position, classes[1])];
        let choice = packer.choose(&little, nodes.into_iter()).unwrap();
        assert_eq!(choice.cost, near.min(far), "at {position}");
        winners.push(choice.position > 0);
    }
    // It wins up to some position and not beyond.
    assert!(winners[0] && !winners[winners.len() - 1]);
}

#[test]
fn prices_follow_the_best_way_to_cut() {
    // 650 and 350 make a device, and so do two of 500: nothing is lost, and all is worth its part.
    let fair = Prices::of(&[(350, 10), (500, 10), (650, 10)]);
    assert_eq!(fair.worth(500), DEVICE / 2);
    assert_eq!(fair.worth(650) + fair.worth(350), DEVICE);
    // 600 fits a device once, and nobody can use the rest.
    let lone = Prices::of(&[(600, 10)]);
    assert_eq!((lone.worth(599), lone.worth(600), lone.worth(400)), (0, DEVICE, 0));
    // Nobody asks for shares: only an untouched device is worth something.
    let none = Prices::of(&[]);
    assert_eq!((none.worth(999), none.worth(WHOLE)), (0, DEVICE));
}

#[test]
fn the_mix_is_the_same_bytes_for_the_same_arrivals() {
    let bytes = |mix: &Mix| serde_json::to_vec(mix).unwrap();
    let (a, b) = (learnt(3_000), learnt(3_000));
    assert_eq!(bytes(&a), bytes(&b));
    assert_ne!(bytes(&a), bytes(&learnt(2_999)));
    let read: Mix = serde_json::from_slice(&bytes(&a)).unwrap();
    assert_eq!(read, a);
}

#[test]
fn the_mix_moves_at_stated_arrivals_only() {
    let (mut mix, mut dice) = (Mix::default(), Dice(1));
    let mut moved = Vec::new();
    for n in 1..=40_000u64 {
        let before = (mix.revision(), mix.frozen().to_vec());
        if mix.observe(&drawn(&mut dice)) {
            moved.push(n);
            assert_eq!(mix.revision(), before.0 + 1);
        } else {
            assert_eq!((mix.revision(), mix.frozen().to_vec()), before);
        }
    }
    let doublings = [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800];
    assert_eq!(moved, [&doublings[..], &[25_600, 38_400]].concat());
}

#[test]
fn the_mix_stays_small_and_forgets() {
    let mut mix = Mix::default();
    // A flood of shapes that never come again, between asks of one that does.
    for n in 0..60_000u32 {
        mix.observe(&ask(1, 470, 4));
        mix.observe(&ask(1, 100, 100 + n));
    }
    assert!(mix.frozen().len() <= 256);
    assert!(mix.frozen().iter().any(|seen| seen.ask == ask(1, 470, 4)));
    assert!(serde_json::to_vec(&mix).unwrap().len() < 200_000);
    // What nobody asks for any more is forgotten.
    for _ in 0..25 * 12_800 {
        mix.observe(&ask(2, WHOLE, 22));
    }
    assert!(mix.frozen().iter().all(|seen| seen.ask == ask(2, WHOLE, 22)), "{:?}", mix.frozen());
}

#[test]
fn ours_leaves_less_idle_than_first_fit_and_best_fit() {
    for seed in 0..4 {
        let (ours, first, best) = (
            idle_at_the_end(seed, Rule::Ours),
            idle_at_the_end(seed, Rule::FirstFit),
            idle_at_the_end(seed, Rule::BestFit),
        );
        assert!(ours < first && ours < best, "seed {seed}: {ours}, {first}, {best}");
    }
}

#[derive(Clone, Copy)]
enum Rule {
    Ours,
    FirstFit,
    BestFit,
}

/// Milli-GPU left on 100 nodes after more was offered than they hold.
fn idle_at_the_end(seed: u64, rule: Rule) -> u64 {
    let mut dice = Dice(seed);
    let kinds = kinds();
    let mut lefts: Vec<Left> = (0..100)
        .map(|_| {
            let kind = dice.below(2) as u16;
            let most = &kinds[usize::from(kind)];
            left(kind, most.cpus, &vec![WHOLE; usize::from(most.gpus)])
        })
        .collect();
    let mut mix = Mix::default();
    let mut packer = Packer::new(&mix, &kinds, Tuning::default());
    let mut classes = class_all(&mut packer, &lefts);
    for _ in 0..1_600 {
        let ask = drawn(&mut dice);
        if mix.observe(&ask) {
            packer = Packer::new(&mix, &kinds, Tuning::default());
            classes = class_all(&mut packer, &lefts);
        }
        let fitting = (0..lefts.len()).filter(|&at| ask.fits(&lefts[at]));
        let idle = |at: &usize| lefts[*at].gpus.iter().map(u64::from).sum::<u64>();
        let chosen = match rule {
            Rule::Ours => choose(&mut packer, &ask, &lefts, &classes).map(|c| {
                (c.position as usize, c.take.devices(&lefts[c.position as usize].gpus).unwrap())
            }),
            Rule::FirstFit => fitting.min().map(|at| (at, tightest(&ask, &lefts[at]))),
            Rule::BestFit => fitting.min_by_key(idle).map(|at| (at, tightest(&ask, &lefts[at]))),
        };
        if let Some((at, devices)) = chosen {
            lefts[at].take(&ask, devices);
            classes[at] = packer.class_of(&lefts[at]);
        }
    }
    lefts.iter().flat_map(|left| left.gpus.as_slice()).map(|&m| u64::from(m)).sum()
}

fn tightest(ask: &Ask, left: &Left) -> u64 {
    let mut able: Vec<usize> =
        (0..left.gpus.len()).filter(|&i| left.gpus.as_slice()[i] >= ask.milli).collect();
    able.sort_by_key(|&i| (left.gpus.as_slice()[i], i));
    able.iter().take(usize::from(ask.gpus)).fold(0, |mask, i| mask | 1 << i)
}
