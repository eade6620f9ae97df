//! Promised starts: what is promised, when that changes, and that it is kept.
//!
//! The worlds here are small and virtual: jobs come, use some or all of their time, and end; nothing
//! sleeps. Promises are kept to the millisecond unless capacity was lost, a job of a higher tier went
//! before, or somebody changed something, and each of these is counted by its cause.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Story, cases, limited, minutes, node_id, spec};
use proptest::prelude::*;
use tessera_core::decide::PROMISE_AT_PERCENT;
use tessera_core::event::{Event, PromiseCause, StopWhy};
use tessera_core::promises::{Slot, SlotPlace};
use tessera_core::snapshot::ENDS_WITHIN;
use tessera_model::{
    Cordon, JobChange, JobId, JobSpec, JobState, Millis, Quota, Strength, TaskEnd, TeamId,
    TeamShare, Tier, UnixMillis, UserId, WaitReason, Within,
};

fn urgent(spec: JobSpec) -> JobSpec {
    JobSpec { tier: Tier::Urgent, ..spec }
}

/// From when on a blocked job of a tier is promised its place.
fn promised_after(tier: Tier) -> Millis {
    Millis(tier.start_sla().0 / 100 * PROMISE_AT_PERCENT)
}

fn promises(story: &Story) -> Vec<(JobId, Option<UnixMillis>, PromiseCause)> {
    let made = story.journal.iter().filter_map(|s| match &s.event {
        Event::PromiseMade { job, at, cause, .. } => Some((*job, *at, *cause)),
        _ => None,
    });
    made.collect()
}

/// Two nodes, both busy for an hour, and a gang that waits for them until it is promised a start.
fn promised() -> (Story, JobId, [JobId; 2]) {
    let mut story = Story::with_nodes(2, 8);
    let busy = [story.start(limited(1, 8, 60)), story.start(limited(1, 8, 90))];
    let gang = story.submit(urgent(limited(2, 8, 60)));
    assert_eq!(story.round().promises, []);
    story.pass(promised_after(Tier::Urgent));
    assert_eq!(story.round().promises.len(), 1);
    (story, gang, busy)
}

#[test]
fn a_promise_is_made_once_and_moves_forward_when_somebody_ends_early() {
    let (mut story, gang, [_, longer]) = promised();
    let first = story.cluster.jobs.get(gang).unwrap().promise.unwrap().first;
    assert_eq!(promises(&story), [(gang, Some(first), PromiseCause::Reserved)]);
    story.pass(minutes(1));
    assert_eq!(story.round().promises, [], "nothing has changed");
    story.end(longer, TaskEnd::Exited { code: 0 });
    story.round();
    let (_, at, cause) = promises(&story)[1];
    assert_eq!(cause, PromiseCause::Earlier);
    assert!(at.unwrap() < first);
    let promise = story.cluster.jobs.get(gang).unwrap().promise.unwrap();
    assert_eq!((promise.first, Some(promise.latest)), (first, at));
    assert_eq!(story.cluster.promises.later, BTreeMap::new());
}

#[test]
fn who_is_promised_goes_before_who_is_not_whatever_the_order_says() {
    let (mut story, gang, [short, long]) = promised();
    // Much higher in its team's line, and it fits as soon as one node is free.
    let first = story.submit(urgent(JobSpec { priority: 1_000, ..limited(1, 8, 600) }));
    story.pass(minutes(5));
    story.end(short, TaskEnd::Exited { code: 0 });
    assert_eq!(story.decide(), [], "it would delay the promised one");
    story.end(long, TaskEnd::Exited { code: 0 });
    assert_eq!(story.decide(), [gang]);
    let _ = first;
}

#[test]
fn a_lost_node_moves_a_promise_and_says_so() {
    let (mut story, gang, _) = promised();
    let cordon = Cordon { drain: false, by: "sre".to_owned(), reason: "fan".to_owned() };
    story.push(Event::NodeCordoned { node: node_id("n1"), cordon });
    story.round();
    let (job, at, cause) = promises(&story)[1];
    assert_eq!((job, at, cause), (gang, None, PromiseCause::LostCapacity));
    assert_eq!(story.cluster.promises.later, BTreeMap::from([("lost_capacity".to_owned(), 1)]));
}

/// What was told to stop is expected back at any moment, but not for ever.
#[test]
fn a_node_on_which_nothing_stops_moves_a_promise_and_says_so() {
    let (mut story, gang, [short, long]) = promised();
    story.pass(minutes(1));
    story.end(long, TaskEnd::Exited { code: 0 });
    let attempt = story.attempt_of(short);
    story.push(Event::AttemptStopping { attempt, why: StopWhy::TimeLimit });
    let before = promises(&story).len();
    let wake = story.round().wake.unwrap();
    let overdue = story.now.plus(ENDS_WITHIN).plus(minutes(1));
    assert!(wake <= overdue);
    assert!(promises(&story)[before..].iter().all(|p| p.2 == PromiseCause::Earlier));
    story.now = overdue;
    story.round();
    let (job, at, cause) = *promises(&story).last().unwrap();
    assert_eq!((job, at, cause), (gang, None, PromiseCause::LostCapacity));
}

#[test]
fn a_promise_that_the_quota_forbids_is_withdrawn_for_that() {
    let (mut story, gang, _) = promised();
    let (team, by) = (TeamId::parse("nlp").unwrap(), UserId::parse("root").unwrap());
    let description = String::new();
    story.push(Event::TeamCreated { team: team.clone(), description, by: by.clone() });
    let quota = Quota { gpu_model: "h100".to_owned(), guaranteed: 0, limit: Some(16), cell: None };
    let share = TeamShare { quotas: vec![quota], ..TeamShare::default() };
    story.push(Event::TeamShared { team, share, by });
    story.round();
    assert_eq!(promises(&story)[1], (gang, None, PromiseCause::OverQuota));
    assert_eq!(story.cluster.promises.later, BTreeMap::from([("over_quota".to_owned(), 1)]));
}

#[test]
fn who_would_delay_a_promised_start_is_told_so() {
    let (mut story, gang, [short, _]) = promised();
    story.end(short, TaskEnd::Exited { code: 0 });
    let endless = story.submit(urgent(spec(1, 8)));
    let why = story.wait_of(endless).unwrap();
    let WaitReason::HeldForReservation { job, promised, .. } = why else { panic!("{why}") };
    assert_eq!((job, promised), (gang, true));
    assert!(why.to_string().contains("which is promised a start at"), "{why}");
}

/// More promises than places can be told apart: those behind lose theirs, and it is said.
#[test]
fn so_many_places_are_kept_and_no_more() {
    let mut story = Story::with_nodes(70, 1);
    for _ in 0..70 {
        story.submit(limited(1, 1, 60));
    }
    let running = story.decide();
    assert_eq!(running.len(), 70);
    running.iter().for_each(|job| story.run(*job));
    let at = story.now.plus(minutes(120));
    for i in 0..70 {
        let job = story.submit(limited(1, 1, 60));
        let places = vec![SlotPlace { node: node_id(&format!("n{i}")), gpus: 1 }];
        let slot = Arc::new(Slot { at, until: Some(at.plus(minutes(62))), nodes: 1, places });
        let cause = PromiseCause::Reserved;
        story.push(Event::PromiseMade { job, at: Some(at), cause, slot: Some(slot), eta: None });
    }
    let decision = story.round();
    assert_eq!(decision.reservations.len(), 63);
    let lost = decision.promises.iter().filter(|p| p.at.is_none()).count();
    assert_eq!(lost, 7);
}

#[test]
fn the_same_date_on_other_nodes_is_the_same_promise() {
    let mut story = Story::with_nodes(3, 8);
    for _ in 0..3 {
        story.start(limited(1, 8, 60));
    }
    let gang = story.submit(urgent(limited(2, 8, 60)));
    story.pass(promised_after(Tier::Urgent));
    story.round();
    let before = story.cluster.jobs.get(gang).unwrap().promise.unwrap();
    let slot = story.cluster.promises.slots[&gang].clone();
    let cordon = Cordon { drain: false, by: "sre".to_owned(), reason: "fan".to_owned() };
    story.push(Event::NodeCordoned { node: slot.places[0].node.clone(), cordon });
    story.round();
    let after = story.cluster.jobs.get(gang).unwrap().promise.unwrap();
    assert_eq!(before, after);
    assert_ne!(slot.places, story.cluster.promises.slots[&gang].places);
    assert_eq!(story.cluster.promises.later, BTreeMap::new());
}

#[test]
fn a_job_of_a_higher_tier_goes_before_and_it_is_said() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(2, 8, 60 * 30));
    let gang = story.submit(limited(2, 8, 60));
    story.pass(promised_after(Tier::Normal));
    story.round();
    let first = story.cluster.jobs.get(gang).unwrap().promise.unwrap().first;
    story.submit(urgent(limited(2, 8, 120)));
    story.pass(promised_after(Tier::Urgent));
    story.round();
    let of_gang: Vec<_> = promises(&story).into_iter().filter(|p| p.0 == gang).collect();
    let (_, at, cause) = of_gang[1];
    assert_eq!(cause, PromiseCause::Overtaken);
    assert!(at.unwrap() > first);
    assert_eq!(story.cluster.jobs.get(gang).unwrap().promise.unwrap().first, first);
    assert_eq!(story.cluster.promises.later, BTreeMap::from([("overtaken".to_owned(), 1)]));
}

#[test]
fn who_changes_the_job_gets_a_new_promise() {
    let (mut story, gang, _) = promised();
    let change = JobChange { time_limit: Some(minutes(30)), ..JobChange::default() };
    let by = UserId::parse("ada").unwrap();
    story.push(Event::JobUpdated { job: gang, change, by: by.clone() });
    assert!(story.cluster.promises.slots.is_empty());
    story.pass(minutes(1));
    story.round();
    // It is measured by the new promise alone: the old one was for another job, as it were.
    let (job, at, cause) = promises(&story)[1];
    assert_eq!(job, gang);
    assert!(matches!(cause, PromiseCause::Changed | PromiseCause::Reserved), "{cause:?}");
    let promise = story.cluster.jobs.get(gang).unwrap().promise.unwrap();
    assert_eq!((Some(promise.first), Some(promise.latest)), (at, at));
    assert_eq!(story.cluster.promises.later, BTreeMap::new());
    story.push(Event::JobHeld { job: gang, by });
    assert!(story.cluster.promises.slots.is_empty());
    assert_eq!(story.cluster.jobs.get(gang).unwrap().promise, None);
}

#[test]
fn what_usually_ends_early_moves_what_is_shown_and_never_the_promise() {
    let mut story = Story::with_nodes(2, 8);
    // Six jobs of the project have ended after a quarter of their time.
    for _ in 0..6 {
        let job = story.start(limited(1, 8, 60));
        story.pass(minutes(14));
        story.end(job, TaskEnd::Exited { code: 0 });
    }
    story.start(limited(1, 8, 60));
    story.start(limited(1, 8, 60));
    let began = story.now;
    let gang = story.submit(urgent(limited(2, 8, 60)));
    story.pass(promised_after(Tier::Urgent));
    story.round();
    let promise = story.cluster.jobs.get(gang).unwrap().promise.unwrap();
    assert!(promise.first >= began.plus(minutes(60)));
    let eta = story.cluster.promises.etas[&gang];
    assert_eq!(eta.p50, began.plus(minutes(15)), "a twentieth of the limit is the grain");
    assert!(eta.p50 <= eta.p90 && eta.p90 <= promise.first);
    let running: Vec<JobId> = story.cluster.jobs.attempts.keys().map(|a| a.job).collect();
    story.pass(began.plus(minutes(16)).since(story.now));
    running.into_iter().for_each(|j| story.end(j, TaskEnd::Exited { code: 0 }));
    assert_eq!(story.decide(), [gang]);
    let ledger = &story.cluster.promises;
    assert_eq!((ledger.eta_started, ledger.eta_error_ms), (1, 60_000));
    assert_eq!((ledger.started, ledger.late), (1, 0));
}

/// A job of a world: when it comes, its shape and limit, and how much of its time it uses.
#[derive(Debug, Clone)]
struct Coming {
    after: u64,
    nodes: u32,
    gpus: u32,
    limit: Option<u64>,
    /// Percent; 100 and more: until it is stopped.
    uses: u64,
    tier: Tier,
    leaf: bool,
    min_nodes: Option<u32>,
    requeue: bool,
    priority: i32,
}

fn coming(tiers: &'static [Tier], endless: f64) -> impl Strategy<Value = Coming> {
    let shape = (1..=3u32, prop::sample::select(vec![1u32, 2, 4, 8]));
    let limit = prop::option::weighted(1.0 - endless, 1..240u64);
    let rest = (0..120u64, prop::sample::select(tiers), any::<bool>(), any::<bool>(), -2..3i32);
    (0..40u64, shape, limit, rest, prop::bool::weighted(0.2)).prop_map(
        |(after, (nodes, gpus), limit, (uses, tier, leaf, requeue, priority), elastic)| Coming {
            after,
            nodes,
            gpus,
            limit,
            uses,
            tier,
            leaf: leaf && nodes <= 2,
            min_nodes: (elastic && nodes > 1 && !leaf).then_some(1),
            requeue,
            priority,
        },
    )
}

fn spec_of(c: &Coming) -> JobSpec {
    let mut spec = spec(c.nodes, c.gpus);
    spec.time_limit = c.limit.map(minutes);
    (spec.tier, spec.requeue, spec.priority) = (c.tier, c.requeue, c.priority);
    spec.min_nodes = c.min_nodes;
    if c.leaf {
        spec.placement.within =
            vec![Within { level: "leaf".to_owned(), strength: Strength::Required }];
    }
    spec
}

/// Lets a world run until nothing moves any more, and calls `look` after each round.
fn run(jobs: &[Coming], look: &mut dyn FnMut(&Story)) -> Story {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    let mut coming: Vec<(UnixMillis, JobSpec, u64)> = Vec::new();
    let mut at = story.now;
    for job in jobs {
        at = at.plus(minutes(job.after));
        coming.push((at, spec_of(job), job.uses));
    }
    coming.reverse();
    let mut uses: BTreeMap<JobId, u64> = BTreeMap::new();
    let mut ends: BTreeMap<(UnixMillis, JobId), ()> = BTreeMap::new();
    for _ in 0..2_000 {
        while coming.last().is_some_and(|(at, ..)| *at <= story.now) {
            let (_, spec, used) = coming.pop().unwrap();
            let job = story.submit(spec);
            uses.insert(job, used);
        }
        while let Some(((at, job), ())) = ends.first_key_value().map(|(k, v)| (*k, *v)) {
            if at > story.now {
                break;
            }
            ends.pop_first();
            let state = story.cluster.jobs.get(job).map(|j| j.state);
            if matches!(state, Some(JobState::Running | JobState::Stopping)) {
                story.end(job, TaskEnd::Exited { code: 0 });
            }
        }
        story.due();
        let decision = story.round();
        for start in &decision.start {
            story.run(start.job);
            let (spec, used) = (&story.cluster.jobs.get(start.job).unwrap().spec, uses[&start.job]);
            let whole = spec.time_limit.unwrap_or(minutes(100));
            let length = Millis(whole.0 / 100 * used.clamp(1, 100));
            ends.insert((story.now.plus(length), start.job), ());
        }
        // Who is being stopped is gone when its grace is over.
        for attempt in story.cluster.jobs.attempts.values() {
            if attempt.stop.is_some() {
                let job = attempt.lease.attempt.job;
                ends.retain(|(_, j), ()| *j != job);
                ends.insert((story.now.plus(Millis(9_000)), job), ());
            }
        }
        look(&story);
        let leaves = story.cluster.jobs.attempts.values();
        let notices = leaves.filter_map(|a| a.leave.as_ref()).map(|l| l.deadline);
        let limits = story.cluster.jobs.attempts.values().filter_map(|a| a.deadline());
        let next = coming.last().map(|(at, ..)| *at);
        let next = next.into_iter().chain(ends.keys().map(|(at, _)| *at));
        let next = next.chain(decision.wake).chain(notices).chain(limits);
        match next.filter(|at| *at > story.now).min() {
            Some(at) => story.now = at,
            None => break,
        }
    }
    story
}

/// All that runs has ended or holds on without a limit: nobody waits who could start.
fn all_done(story: &Story) -> bool {
    story.cluster.jobs.queue_len() == 0
}

proptest! {
    #![proptest_config(cases(60))]

    /// With one tier and no faults every promise is kept, and none ever moves to a later start.
    #[test]
    fn a_promise_is_kept(jobs in prop::collection::vec(coming(&[Tier::Urgent], 0.1), 4..40)) {
        let mut first: BTreeMap<JobId, UnixMillis> = BTreeMap::new();
        let story = run(&jobs, &mut |story| {
            for job in story.cluster.jobs.jobs.values() {
                if let Some(promise) = job.promise.filter(|_| job.state == JobState::Pending) {
                    let known = *first.entry(job.id).or_insert(promise.first);
                    assert!(promise.latest <= known, "job {} moved to {}", job.id, promise.latest);
                    assert!(story.now <= known, "job {} waits beyond {known}", job.id);
                }
            }
        });
        let ledger = &story.cluster.promises;
        prop_assert_eq!(&ledger.later, &BTreeMap::new());
        prop_assert_eq!(ledger.late, 0);
        prop_assert!(all_done(&story), "somebody waits for ever");
    }

    /// With all tiers: whoever is of the highest keeps its promise; of others it is said why not.
    #[test]
    fn a_higher_tier_keeps_its_promises_against_all_others(
        jobs in prop::collection::vec(coming(&Tier::ALL, 0.1), 4..40),
    ) {
        let mut first: BTreeMap<JobId, UnixMillis> = BTreeMap::new();
        let story = run(&jobs, &mut |story| {
            for job in story.cluster.jobs.jobs.values().filter(|j| j.spec.tier == Tier::Urgent) {
                if let Some(promise) = job.promise.filter(|_| job.state == JobState::Pending) {
                    let known = *first.entry(job.id).or_insert(promise.first);
                    assert!(promise.latest <= known, "job {} moved to {}", job.id, promise.latest);
                }
            }
            // Nobody has to leave for a job of its own tier or a lower one.
            for attempt in story.cluster.jobs.attempts.values() {
                let Some(leave) = &attempt.leave else { continue };
                let by = story.cluster.jobs.get(leave.why.by()).unwrap();
                assert!(by.spec.tier < attempt.spec.tier, "{leave:?}");
                assert!(attempt.spec.requeue);
            }
        });
        for cause in story.cluster.promises.later.keys() {
            prop_assert!(cause == "overtaken", "{}", cause);
        }
        prop_assert!(all_done(&story), "somebody waits for ever");
    }
}
