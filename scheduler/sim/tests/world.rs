//! Simulated hours: the real core, a virtual clock, dying nodes and late messages. The same seed
//! gives the same run, so a failure names the one to repeat with.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tessera_model::Millis;
use tessera_sim::{Faults, Planning, Planted, PlantedPlan, World};

/// Seeds a test runs; `TESSERA_SIM_SEEDS` asks for more.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("TESSERA_SIM_SEEDS").ok().and_then(|n| n.parse().ok());
    let first = std::env::var("TESSERA_SIM_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    first..first + asked.unwrap_or(usual)
}

/// Runs a world to its end and says what was broken. A broken promise that stops the core is one, too.
fn broken(seed: u64, faults: Faults, planted: Option<Planted>, length: Millis) -> String {
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, faults);
        if let Some(bug) = planted {
            world.plant(bug);
        }
        world.run_for(length);
        world.settle();
        world.broken_promises()
    }));
    run.unwrap_or_else(|panic| match panic.downcast::<String>() {
        Ok(text) => format!("the scheduler stopped: {text}"),
        Err(_) => "the scheduler stopped".to_owned(),
    })
}

#[test]
fn in_a_world_without_faults_everything_ends_well() {
    for seed in seeds(20) {
        let broken = broken(seed, Faults::NONE, None, Millis::from_secs(1_200));
        assert_eq!(broken, "", "seed {seed}");
    }
}

#[test]
fn promises_hold_under_mild_faults() {
    for seed in seeds(30) {
        let broken = broken(seed, Faults::MILD, None, Millis::from_secs(3_600));
        assert_eq!(broken, "", "seed {seed}");
    }
}

#[test]
fn promises_hold_under_harsh_faults() {
    for seed in seeds(60) {
        let broken = broken(seed, Faults::HARSH, None, Millis::from_secs(1_800));
        assert_eq!(broken, "", "seed {seed}");
    }
}

#[test]
fn promises_hold_on_slow_and_cut_links() {
    for seed in seeds(30) {
        let broken = broken(seed, SLOW, None, Millis::from_secs(1_800));
        assert_eq!(broken, "", "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_journal() {
    let run = || {
        let mut world = World::new(11, Faults::HARSH);
        world.run_for(Millis::from_secs(1_800));
        world.settle();
        (format!("{:?}", world.journal()), world.report())
    };
    let (first, report) = run();
    assert_eq!((first, report.clone()), run());
    assert!(report.scheduler_crashes > 3, "{report:?}");
    assert!(report.orders_refused > 0, "{report:?}");
}

/// Slow and cut links above all, which is what a late grant needs.
const SLOW: Faults = Faults { slow_percent: 30, cut: 12_000, ..Faults::HARSH };

/// Runs seeds until the missing rule is noticed. `most` is several times what it took when written.
fn is_noticed(bug: Planted, faults: Faults, most: u64) {
    let run = |seed| broken(seed, faults, Some(bug), Millis::from_secs(1_800));
    let noticed = (0..most).map(|seed| (seed, run(seed))).find(|(_, broken)| !broken.is_empty());
    let (seed, broken) =
        noticed.unwrap_or_else(|| panic!("{bug:?} was not noticed in {most} seeds"));
    println!("{bug:?}: seed {seed}: {}", broken.lines().next().unwrap_or_default());
}

#[test]
fn an_agent_that_accepts_any_session_is_noticed() {
    is_noticed(Planted::AnySession, Faults::HARSH, 200);
}

#[test]
fn a_shim_that_ignores_its_lease_is_noticed() {
    is_noticed(Planted::ShimIgnoresLease, Faults::HARSH, 20);
}

#[test]
fn a_grant_that_counts_from_its_arrival_is_noticed() {
    is_noticed(Planted::GrantFromArrival, SLOW, 200);
}

#[test]
fn an_agent_that_keeps_its_session_is_noticed() {
    is_noticed(Planted::SameSession, Faults::HARSH, 20);
}

#[test]
fn an_agent_that_forgets_before_it_is_acknowledged_is_noticed() {
    is_noticed(Planted::ForgetsEarly, Faults::HARSH, 20);
}

#[test]
fn an_agent_without_tombstones_is_noticed() {
    is_noticed(Planted::NoTombstones, Faults::HARSH, 20);
}

#[test]
fn an_agent_that_hides_what_it_runs_is_noticed() {
    is_noticed(Planted::HidesRunning, Faults::HARSH, 20);
}

/// `cargo test -p tessera-sim --test world -- --ignored --nocapture speed`
#[test]
#[ignore = "prints how fast this machine simulates"]
fn speed() {
    for (name, faults) in [("none", Faults::NONE), ("mild", Faults::MILD), ("harsh", Faults::HARSH)]
    {
        let (began, mut steps, mut events) = (std::time::Instant::now(), 0, 0);
        for seed in seeds(10) {
            let mut world = World::new(seed, faults);
            world.run_for(Millis::from_secs(1_800));
            world.settle();
            steps += world.report().steps;
            events += world.report().events;
            println!("seed {seed}: {:?} {:?}", world.now(), world.report());
        }
        let took = began.elapsed().as_secs_f64();
        println!(
            "{name}: {steps} steps, {events} events in {took:.1} s, {:.0} steps/s",
            steps as f64 / took
        );
    }
}

/// `TESSERA_SIM_FIRST=7 TESSERA_SIM_JOB=12 cargo test -p tessera-sim --test world -- --ignored --nocapture story`
#[test]
#[ignore = "prints the journal of one job and its nodes"]
fn story() {
    let mut world = World::new(seeds(1).start, Faults::HARSH);
    world.run_for(Millis::from_secs(1_800));
    let job = std::env::var("TESSERA_SIM_JOB").unwrap_or_else(|_| "1".to_owned());
    let about =
        [format!("JobId({job})"), "NodeUp".to_owned(), "NodeLost".to_owned(), "Epoch".to_owned()];
    let began = world.journal()[0].at;
    for stamped in world.journal() {
        let text = format!("{:?}", stamped.event);
        if about.iter().any(|a| text.contains(a)) {
            let short: String = text.chars().take(400).collect();
            println!("{:>9.3} {short}", stamped.at.since(began).0 as f64 / 1_000.0);
        }
    }
    println!("{}", world.broken_promises());
}

/// Worlds that are all about planning, in two threads.
#[test]
fn planning_keeps_every_promise_in_two_thousand_worlds() {
    let seeds: Vec<u64> = seeds(2_000).collect();
    let halves: Vec<&[u64]> = seeds.chunks(seeds.len().div_ceil(2).max(1)).collect();
    let (mut starts, mut leaves) = (0, 0);
    std::thread::scope(|scope| {
        let played = |seeds: &[u64]| {
            let (mut starts, mut leaves) = (0, 0);
            for seed in seeds {
                let (broken, world) = planned(*seed, None);
                assert_eq!(broken, "", "seed {seed}");
                starts += world.0;
                leaves += world.1;
            }
            (starts, leaves)
        };
        let threads: Vec<_> = halves.iter().map(|half| scope.spawn(move || played(half))).collect();
        for thread in threads {
            let (s, l) = thread.join().expect("its own message says what was broken");
            starts += s;
            leaves += l;
        }
    });
    let worlds = seeds.len() as u64;
    assert!(starts > 5 * worlds, "{starts} starts in {worlds} worlds: they test nothing");
    assert!(leaves > worlds / 10, "{leaves} jobs had to leave in {worlds} worlds");
}

/// What was broken in a planning world, and how much went on in it.
fn planned(seed: u64, planted: Option<PlantedPlan>) -> (String, (u64, u64)) {
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut world = Planning::with(seed, planted);
        world.play(60);
        (world.broken_promises(), (world.starts, world.leaves))
    }));
    run.unwrap_or_else(|panic| match panic.downcast::<String>() {
        Ok(text) => (format!("the scheduler stopped: {text}"), (0, 0)),
        Err(_) => ("the scheduler stopped".to_owned(), (0, 0)),
    })
}

/// A planted bug has to be noticed within so many worlds.
fn noticed_in_plans(bug: PlantedPlan, worlds: u64, word: &str) {
    let found = (0..worlds).map(|seed| planned(seed, Some(bug)).0).find(|b| !b.is_empty());
    let found = found.unwrap_or_else(|| panic!("{bug:?} was not noticed in {worlds} worlds"));
    assert!(found.contains(word), "{bug:?}: {found}");
}

#[test]
fn a_constraint_that_nobody_keeps_is_noticed() {
    noticed_in_plans(PlantedPlan::ConstraintsIgnored, 100, "job ");
}

#[test]
fn a_victim_that_leaves_without_its_gang_is_noticed() {
    noticed_in_plans(PlantedPlan::VictimWithoutItsGang, 200, "left");
}

#[test]
fn the_same_seed_gives_the_same_plans_and_a_tie_broken_by_hash_order_does_not() {
    let journal = |seed, planted| {
        let mut world = Planning::with(seed, planted);
        world.play(60);
        format!("{:?}", world.journal)
    };
    for seed in 0..20 {
        assert_eq!(journal(seed, None), journal(seed, None), "seed {seed}");
    }
    let differs = |seed| {
        let loose = Some(PlantedPlan::TiesByHashOrder);
        journal(seed, loose) != journal(seed, loose)
    };
    assert!((0..20).any(differs), "a hash map's order reached decisions, and nobody noticed");
}
