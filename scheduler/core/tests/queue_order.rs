//! Whose turn it is: what the order promises, and what teams get in the long run.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::cases;
use proptest::prelude::*;
use tessera_core::queue::fairshare::{DEPTH_MAX, FairShare, HALF_LIFE, STANDING_ONE};
use tessera_core::queue::order::{BOUND, CLAIMS, Order, SHIFT_MAX, SLACK_MAX, Standing, slack};
use tessera_model::{JobId, Millis, TeamId, TeamShare, Tier, UnixMillis};

const HOUR: i64 = 3_600_000;

fn team(name: &str) -> TeamId {
    TeamId::parse(name).unwrap()
}

fn at(hours: i64) -> UnixMillis {
    UnixMillis(hours * HOUR)
}

fn standing(job: u64, of: &str, eligible_at: UnixMillis, limit: Option<Millis>) -> Standing {
    let mut spec = common::spec(1, 1);
    spec.time_limit = limit;
    spec.team = team(of);
    Standing::of(JobId(job), &spec, eligible_at)
}

fn tree(teams: &[(&str, Option<&str>, u32)]) -> FairShare {
    let mut fair = FairShare::default();
    for (name, parent, weight) in teams {
        let share = TeamShare { parent: parent.map(team), weight: *weight, quotas: Vec::new() };
        fair.set_team(&team(name), &share);
    }
    fair
}

fn in_order(order: &Order, fair: &FairShare, now: UnixMillis) -> Vec<JobId> {
    order.iter(fair.shares(order.teams(), now), now).collect()
}

/// (team, hours after 0 it came, time limit in hours with 0 for none)
fn jobs(max: usize) -> impl Strategy<Value = Vec<(usize, i64, u64)>> {
    prop::collection::vec((0..4usize, 0..2_000i64, 0..200u64), 1..max)
}

const TEAMS: [&str; 4] = ["a", "b", "c", "d"];

/// What teams hold: some nothing, some the whole cluster.
fn held() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![Just(0), 1..1_000_000u64], 4)
}

fn build(
    jobs: &[(usize, i64, u64)],
    held: &[u64],
) -> (Order, FairShare, BTreeMap<JobId, Standing>) {
    let mut fair = tree(&[("a", None, 1), ("b", None, 100), ("c", None, 7), ("d", Some("c"), 100)]);
    for (name, milli) in TEAMS.iter().zip(held) {
        fair.hold(&team(name), *milli, at(0));
    }
    let mut sorted: Vec<(usize, i64, u64)> = jobs.to_vec();
    sorted.sort_by_key(|j| j.1);
    let (mut order, mut all) = (Order::default(), BTreeMap::new());
    for (id, (of, came, limit)) in (1u64..).zip(sorted) {
        let limit = (limit > 0).then(|| Millis(limit * Millis::HOUR.0));
        let one = standing(id, TEAMS[of], at(came), limit);
        order.insert(&one, None, one.eligible_at);
        all.insert(one.job, one);
    }
    (order, fair, all)
}

proptest! {
    #![proptest_config(cases(200))]

    /// Ageing has a bound: whoever has waited so much longer goes first, whatever its team has had
    /// and however long it asks to run.
    #[test]
    fn nobody_is_passed_by_one_that_came_much_later(jobs in jobs(90), held in held()) {
        let (order, fair, all) = build(&jobs, &held);
        let mut latest_before = at(0);
        for id in in_order(&order, &fair, at(2_000)) {
            let job = &all[&id];
            prop_assert!(
                latest_before.since(job.eligible_at) <= BOUND,
                "{id} came at {} and stands behind one that came at {latest_before}",
                job.eligible_at
            );
            latest_before = latest_before.max(job.eligible_at);
        }
    }

    /// In a team the bound is narrower, and holds however many jobs it has.
    #[test]
    fn in_a_team_only_shorter_jobs_pass_and_not_for_long(jobs in jobs(600), held in held()) {
        let jobs: Vec<_> = jobs.into_iter().map(|(_, came, limit)| (0, came, limit)).collect();
        let (order, fair, all) = build(&jobs, &held);
        let mut before: Vec<&Standing> = Vec::new();
        for id in in_order(&order, &fair, at(2_000)) {
            let job = &all[&id];
            for other in before.iter().filter(|o| o.eligible_at > job.eligible_at) {
                prop_assert!(other.eligible_at.since(job.eligible_at) <= SLACK_MAX);
                prop_assert!(other.slack <= job.slack);
            }
            before.push(job);
        }
    }

    /// A priority moves a team's own jobs among the places the team has; it takes none from others.
    #[test]
    fn a_priority_takes_nothing_from_other_teams(
        jobs in jobs(150),
        priorities in prop::collection::vec(-3..3i32, 150),
        held in held(),
    ) {
        let (order, fair, all) = build(&jobs, &held);
        let teams_of = |order: &Order| -> Vec<TeamId> {
            in_order(order, &fair, at(2_000)).iter().map(|id| all[id].team.clone()).collect()
        };
        let plain = teams_of(&order);
        let mut ranked = order.clone();
        for (one, priority) in all.values().zip(priorities) {
            let clock = ranked.remove(one);
            let changed = Standing { priority, ..one.clone() };
            ranked.insert(&changed, clock, at(2_000));
        }
        prop_assert_eq!(teams_of(&ranked), plain);
    }

    /// The order is a function of the jobs: in which order they were put in leaves no trace.
    #[test]
    fn the_order_does_not_depend_on_how_it_came_about(jobs in jobs(90), held in held(), turn in 0..90usize) {
        let (order, fair, all) = build(&jobs, &held);
        let mut standings: Vec<&Standing> = all.values().collect();
        let turn = turn % standings.len();
        standings.rotate_left(turn);
        standings.reverse();
        let mut other = Order::default();
        for one in standings {
            other.insert(one, Some(one.eligible_at), at(2_000));
        }
        prop_assert_eq!(in_order(&order, &fair, at(2_000)), in_order(&other, &fair, at(2_000)));
        // And each of them is in it once.
        let named: BTreeSet<JobId> = in_order(&order, &fair, at(2_000)).into_iter().collect();
        prop_assert_eq!(named.len(), all.len());
    }

    /// What comes out is written down and read back without a change.
    #[test]
    fn an_order_that_was_restored_is_the_same(jobs in jobs(500), held in held(), started in 0..300usize) {
        let (mut order, fair, all) = build(&jobs, &held);
        let gone: Vec<JobId> = in_order(&order, &fair, at(2_000)).into_iter().take(started).collect();
        for (n, id) in gone.iter().enumerate() {
            let one = &all[id];
            order.remove(one);
            order.hand_on(&one.team, one.tier, at(2_000 + n as i64));
        }
        let text = serde_json::to_string(&order).unwrap();
        let mut read: Order = serde_json::from_str(&text).unwrap();
        for one in all.values().filter(|s| !gone.contains(&s.job)) {
            read.restore(one);
        }
        prop_assert_eq!(&read, &order);
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}

#[test]
fn a_short_job_lets_others_go_first_for_less_long() {
    let of = |nodes, gpus, hours: Option<u64>| {
        let mut spec = common::spec(nodes, gpus);
        spec.time_limit = hours.map(|h| Millis(h * Millis::HOUR.0));
        slack(&spec)
    };
    for (nodes, gpus, hours, want) in [
        (1, 1, Some(1), "1h28m"),
        (1, 1, Some(48), "1d12h"),
        (1, 1, Some(24 * 365), "2d23h"),
        (1, 1, None, "3d"),
        // A large one an eighth less.
        (1, 8, Some(48), "1d7h"),
        (4, 1, Some(48), "1d7h"),
    ] {
        assert_eq!(of(nodes, gpus, hours).to_string(), want, "{nodes}x{gpus} for {hours:?} h");
    }
    assert!(of(1, 1, Some(u64::MAX / Millis::HOUR.0)) <= SLACK_MAX);
}

#[test]
fn tiers_come_before_everything_else_and_promises_before_turns() {
    let (mut order, fair) = (Order::default(), tree(&[("a", None, 100)]));
    let mut put = |job, tier, hours, promised| {
        let one = Standing { tier, ..standing(job, "a", at(hours), None) };
        order.promise(one.job, promised);
        order.insert(&one, None, at(hours));
    };
    put(1, Tier::Idle, 0, true);
    put(2, Tier::Normal, 0, false);
    put(3, Tier::Normal, 5, false);
    put(4, Tier::Normal, 90, true);
    put(5, Tier::Normal, 80, true);
    put(6, Tier::Urgent, 99, false);
    let ids: Vec<u64> = in_order(&order, &fair, at(100)).iter().map(|id| id.0).collect();
    // Promises in the order they were made: 4 before 5, though 5 has waited longer.
    assert_eq!(ids, [6, 4, 5, 2, 3, 1]);
}

#[test]
fn a_month_of_work_handed_in_at_once_does_not_stand_before_everybody_for_a_month() {
    let (mut order, fair) = (Order::default(), tree(&[("a", None, 100), ("b", None, 100)]));
    let heap: Vec<Standing> =
        (1..=2_000).map(|n| standing(n, "a", at(0), Some(Millis::HOUR))).collect();
    heap.iter().for_each(|one| order.insert(one, None, at(0)));
    // One starts every quarter of an hour; after five days 480 have.
    for (n, one) in heap.iter().take(480).enumerate() {
        order.remove(one);
        order.hand_on(&one.team, one.tier, UnixMillis(n as i64 * HOUR / 4));
    }
    let late = standing(9_999, "b", at(120), Some(Millis::HOUR));
    order.insert(&late, None, at(120));
    let place = |order: &Order, now| {
        in_order(order, &fair, now).iter().position(|id| *id == late.job).unwrap()
    };
    // Only those stand before it whose clocks had started before it came.
    assert!(place(&order, at(120)) <= CLAIMS, "{}", place(&order, at(120)));
    // And they do not go on being refilled before it.
    for (n, one) in heap.iter().enumerate().skip(480).take(CLAIMS) {
        order.remove(one);
        order.hand_on(&one.team, one.tier, UnixMillis(at(120).0 + n as i64 * HOUR / 4));
    }
    assert_eq!(place(&order, at(150)), 0);
}

/// Lets teams with endless work share a cluster of `gpus` GPUs for so many days. Each team: its
/// name and the hours its jobs take. Gives each team's part of the GPU-hours of the second half.
fn shared_between(
    fair: &mut FairShare,
    gpus: usize,
    days: i64,
    teams: &[(&str, i64)],
) -> BTreeMap<TeamId, f64> {
    let mut order = Order::default();
    let mut all: BTreeMap<JobId, (Standing, i64)> = BTreeMap::new();
    let mut running: BTreeSet<(UnixMillis, JobId)> = BTreeSet::new();
    let mut had: BTreeMap<TeamId, f64> = BTreeMap::new();
    let (mut next, mut now) = (1, at(0));
    while now < at(days * 24) {
        // Each team always has some more waiting.
        for (name, hours) in teams {
            let waiting = all.values().filter(|(s, _)| s.team == team(name)).count();
            for _ in waiting..gpus {
                let limit = Millis(*hours as u64 * Millis::HOUR.0);
                let one = standing(next, name, now, Some(limit));
                order.insert(&one, None, now);
                all.insert(one.job, (one, *hours));
                next += 1;
            }
        }
        let free = gpus - running.len();
        let start: Vec<JobId> =
            order.iter(fair.shares(order.teams(), now), now).take(free).collect();
        for id in start {
            let (one, hours) = all[&id].clone();
            order.remove(&one);
            order.hand_on(&one.team, one.tier, now);
            fair.hold(&one.team, one.demand, now);
            running.insert((UnixMillis(now.0 + hours * HOUR), id));
        }
        let (end, id) = running.pop_first().unwrap();
        now = end;
        let (one, hours) = all.remove(&id).unwrap();
        fair.give_back(&one.team, one.demand, now);
        if now > at(days * 12) {
            *had.entry(one.team).or_default() += hours as f64;
        }
    }
    let sum: f64 = had.values().sum();
    had.into_iter().map(|(team, hours)| (team, hours / sum)).collect()
}

#[test]
fn teams_with_endless_work_get_their_shares() {
    type Case<'a> =
        (&'a str, &'a [(&'a str, Option<&'a str>, u32)], &'a [(&'a str, i64)], &'a [f64]);
    let cases: [Case; 5] = [
        ("alike", &[("a", None, 100), ("b", None, 100)], &[("a", 2), ("b", 2)], &[0.5, 0.5]),
        (
            "short against long",
            &[("a", None, 100), ("b", None, 100)],
            &[("a", 1), ("b", 20)],
            &[0.5, 0.5],
        ),
        (
            "three to one",
            &[("a", None, 300), ("b", None, 100)],
            &[("a", 3), ("b", 5)],
            &[0.75, 0.25],
        ),
        (
            "a group of two against one",
            &[("p", None, 100), ("a", Some("p"), 100), ("b", Some("p"), 100), ("c", None, 100)],
            &[("a", 3), ("b", 3), ("c", 3)],
            &[0.25, 0.25, 0.5],
        ),
        (
            "one that has no work leaves its part to the others",
            &[("a", None, 100), ("b", None, 100), ("z", None, 1_000_000)],
            &[("a", 2), ("b", 2)],
            &[0.5, 0.5],
        ),
    ];
    for (name, teams, work, want) in cases {
        let had = shared_between(&mut tree(teams), 16, 60, work);
        for ((team_name, _), want) in work.iter().zip(want) {
            let part = had[&team(team_name)];
            assert!((part - want).abs() < 0.04, "{name}: {team_name} had {part:.3}, not {want}");
        }
    }
}

#[test]
fn use_counts_half_after_a_week_and_holding_adds_up() {
    let (a, mut fair) = (team("a"), tree(&[("a", None, 100)]));
    fair.hold(&a, 8_000, at(0));
    let hour_of_eight = 8_000 * HOUR as u64;
    let used = |fair: &FairShare, now| fair.account(&a, [], now).used.0;
    let near = |is: u64, want: f64| (is as f64 - want).abs() < want / 200.0;
    assert!(near(used(&fair, at(1)), hour_of_eight as f64), "{}", used(&fair, at(1)));
    fair.give_back(&a, 8_000, at(1));
    let then = used(&fair, at(1));
    let later = UnixMillis(at(1).0 + HALF_LIFE.0 as i64);
    assert!(near(used(&fair, later), then as f64 / 2.0));
    assert_eq!(used(&fair, at(24 * 365 * 9)), 0);
    // Held for ever, the account comes to rest at the half-life over ln 2.
    fair.hold(&a, 1_000, later);
    let rest = 1_000.0 * HALF_LIFE.0 as f64 / std::f64::consts::LN_2;
    assert!(near(used(&fair, at(24 * 365 * 3)), rest), "{}", used(&fair, at(24 * 365 * 3)));
    assert_eq!(fair.account(&a, [], at(24 * 365)).held_milli, 1_000);
    assert_eq!(fair.account(&a, [], later).used.hours(), "3.99");
}

#[test]
fn what_comes_at_the_same_instant_may_come_in_any_order() {
    let (a, b) = (team("a"), team("b"));
    let (mut one, mut other) = (tree(&[]), tree(&[]));
    for hour in 0..200 {
        let milli = 1_000 + hour as u64;
        one.hold(&a, milli, at(hour));
        one.hold(&b, 7, at(hour));
        one.hold(&a, 3, at(hour));
        other.hold(&a, 3, at(hour));
        other.hold(&a, milli, at(hour));
        other.hold(&b, 7, at(hour));
    }
    assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&other).unwrap());
}

#[test]
fn a_team_at_its_share_stands_in_the_middle_and_none_reaches_the_end() {
    let mut fair = tree(&[("a", None, 1), ("b", None, 3), ("c", None, 1_000_000)]);
    fair.hold(&team("a"), 1_000, at(0));
    fair.hold(&team("b"), 3_000, at(0));
    let wanting = [team("a"), team("b")];
    let shares = fair.shares(&wanting, at(100));
    for name in ["a", "b"] {
        let standing = shares.standing(shares.index(&team(name)));
        assert!((standing - STANDING_ONE / 2).abs() < STANDING_ONE / 1_000, "{name}: {standing}");
    }
    fair.hold(&team("a"), 1_000_000_000, at(100));
    let shares = fair.shares(&wanting, at(2_000));
    let greedy = shares.standing(shares.index(&team("a")));
    assert!((STANDING_ONE - 2..STANDING_ONE).contains(&greedy), "{greedy}");
    assert_eq!(shares.standing(shares.index(&team("b"))), 0);
    assert!(shares.shift(shares.index(&team("a"))) < SHIFT_MAX);
}

#[test]
fn a_tree_as_deep_as_may_be_still_tells_its_leaves_apart() {
    let names: Vec<String> = (0..DEPTH_MAX).map(|n| format!("t{n}")).collect();
    let mut fair = FairShare::default();
    for (n, name) in names.iter().enumerate() {
        let parent = n.checked_sub(1).map(|p| team(&names[p]));
        fair.set_team(&team(name), &TeamShare { parent, ..TeamShare::default() });
    }
    let last = &names[DEPTH_MAX - 2];
    fair.set_team(&team("x"), &TeamShare { parent: Some(team(last)), ..TeamShare::default() });
    let leaf = team(&names[DEPTH_MAX - 1]);
    fair.hold(&leaf, 1_000, at(0));
    let (wanting, now) = ([leaf.clone(), team("x")], at(50));
    let shares = fair.shares(&wanting, now);
    assert!(shares.shift(shares.index(&leaf)) > shares.shift(shares.index(&team("x"))));
}
