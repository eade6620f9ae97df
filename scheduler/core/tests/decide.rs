//! Whose turn it is and who may fill in around whom: backfill, places kept, patience, elastic
//! sizes, replacement in place, calendar reservations and holds.

mod common;

use std::collections::BTreeSet;

use common::{Story, limited, minutes, node_id, spec};
use tessera_core::decide::{Decision, HOLD_AFTER, RESERVATIONS, decide};
use tessera_core::event::{Event, WriteOffWhy};
use tessera_core::snapshot::{BEGINS_WITHIN, ENDS_WITHIN, Snapshot};
use tessera_model::{
    Hold, JobId, JobSpec, JobState, Millis, NodeId, Placement, Quota, Reservation, Slice, Strength,
    Target, TaskEnd, TeamId, TeamShare, UnixMillis, UserId, WaitReason, Within,
};

fn decided(story: &Story) -> Decision {
    decide(&Snapshot::of(&story.cluster, story.now))
}

/// When a place is kept for the job, and on which nodes.
fn kept(story: &Story, job: JobId) -> Option<(Option<UnixMillis>, Vec<NodeId>)> {
    let decision = decided(story);
    let found = decision.reservations.into_iter().find(|r| r.job == job)?;
    let nodes = found.taken.iter().map(|t| story.cluster.space().id(t.node).clone());
    Some((found.at, nodes.collect()))
}

fn nodes(names: &str) -> Vec<NodeId> {
    names.split_whitespace().map(node_id).collect()
}

/// When a job that has just begun to run, with this limit, is out at the latest.
fn out(story: &Story, limit: Millis) -> UnixMillis {
    story.now.plus(limit).plus(ENDS_WITHIN)
}

#[test]
fn a_short_job_fills_in_and_a_long_one_waits() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(1, 8, 60));
    let gang = story.submit(limited(2, 8, 10));
    let long = story.submit(limited(1, 8, 70));
    let short = story.submit(limited(1, 8, 50));
    assert_eq!(story.decide(), [short]);
    let at = Some(out(&story, minutes(60)));
    assert_eq!(
        story.wait_of(long),
        Some(WaitReason::NotEnoughFree {
            need: 1,
            have: 0,
            gpus_per_node: 8,
            level: None,
            nearest: None,
        })
    );
    assert_eq!(kept(&story, gang), Some((at, nodes("n0 n1"))));
}

#[test]
fn who_would_delay_a_kept_place_is_told_whose() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(1, 8, 60));
    let gang = story.submit(limited(2, 8, 10));
    let endless = story.submit(spec(1, 8));
    let at = Some(out(&story, minutes(60)));
    assert_eq!(
        story.wait_of(endless),
        Some(WaitReason::HeldForReservation { job: gang, at, promised: false })
    );
    assert_eq!(story.decide(), []);
}

/// A filler must be out before the place is due, with the time it takes to begin and to stop.
#[test]
fn a_filler_is_out_in_time_to_the_millisecond() {
    let gap = minutes(60).0 - BEGINS_WITHIN.0;
    for (limit, starts) in [(gap, true), (gap + 1, false)] {
        let mut story = Story::with_nodes(2, 8);
        story.start(limited(1, 8, 60));
        story.submit(limited(2, 8, 10));
        let filler = JobSpec { time_limit: Some(Millis(limit)), ..spec(1, 8) };
        let filler = story.submit(filler);
        assert_eq!(story.decide() == [filler], starts, "{limit}");
    }
}

#[test]
fn the_first_few_blocked_jobs_keep_places_behind_each_other() {
    let mut story = Story::with_nodes(1, 8);
    story.start(limited(1, 8, 60));
    let waiting: Vec<JobId> =
        (0..RESERVATIONS + 2).map(|_| story.submit(limited(1, 8, 10))).collect();
    let mut at = out(&story, minutes(60));
    for job in &waiting[..RESERVATIONS] {
        assert_eq!(kept(&story, *job), Some((Some(at), nodes("n0"))), "{job}");
        at = at.plus(BEGINS_WITHIN).plus(minutes(10)).plus(ENDS_WITHIN);
    }
    assert_eq!(kept(&story, waiting[RESERVATIONS]), None);
}

/// What stays idle until the date is left to others as far as can be: the place kept is the nodes
/// that are busy anyway.
#[test]
fn a_place_is_kept_on_busy_nodes() {
    let mut story = Story::with_nodes(4, 8);
    story.start(limited(2, 8, 60));
    story.start(limited(1, 8, 600));
    let gang = story.submit(limited(2, 8, 60));
    assert_eq!(kept(&story, gang).unwrap().1, nodes("n0 n1"));
    let endless = story.submit(spec(1, 8));
    assert_eq!(story.decide(), [endless]);
    assert_eq!(story.nodes_of(endless), "n3");
}

#[test]
fn a_kept_place_lies_inside_one_domain() {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    story.start(limited(1, 8, 10));
    story.start(limited(1, 8, 60));
    story.start(limited(1, 8, 20));
    story.start(limited(1, 8, 20));
    let mut gang = limited(2, 8, 60);
    gang.placement.within = vec![Within { level: "leaf".to_owned(), strength: Strength::Required }];
    let gang = story.submit(gang);
    // Two nodes come back at 20 minutes; before that, one of each leaf.
    let at = Some(out(&story, minutes(20)));
    assert_eq!(kept(&story, gang), Some((at, nodes("n2 n3"))));
}

#[test]
fn without_a_date_nodes_are_held_only_after_a_while() {
    let mut story = Story::with_nodes(2, 8);
    story.start(spec(1, 8));
    let gang = story.submit(limited(2, 8, 60));
    assert_eq!(kept(&story, gang), None);
    assert_eq!(decided(&story).wake, Some(story.now.plus(HOLD_AFTER)));
    story.pass(HOLD_AFTER);
    assert_eq!(kept(&story, gang), Some((None, nodes("n0 n1"))));
    let endless = story.submit(spec(1, 8));
    let held = WaitReason::HeldForReservation { job: gang, at: None, promised: false };
    assert_eq!(story.wait_of(endless), Some(held));
}

fn patient(level: &str, patience: Millis) -> JobSpec {
    let mut spec = limited(2, 8, 60);
    spec.placement.within = vec![Within { level: level.to_owned(), strength: Strength::Preferred }];
    spec.placement.patience = Some(patience);
    spec
}

#[test]
fn a_patient_job_waits_for_what_it_prefers_and_then_takes_what_there_is() {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    let pin = |node: &str| {
        let mut spec = limited(1, 8, 600);
        spec.placement.only = BTreeSet::from([node_id(node)]);
        spec
    };
    story.start(pin("n0"));
    story.start(pin("n2"));
    let job = story.submit(patient("leaf", minutes(30)));
    let until = story.now.plus(minutes(30));
    let waits = WaitReason::Patience { level: "leaf".to_owned(), until };
    assert_eq!(story.wait_of(job), Some(waits));
    assert_eq!(decided(&story).wake, Some(until));
    assert_eq!(story.decide(), []);
    story.pass(minutes(30));
    assert_eq!(story.decide(), [job]);
    assert_eq!(story.nodes_of(job), "n1 n3");
    let certificate = story.cluster.jobs.get(job).unwrap().certificate.clone().unwrap();
    assert_eq!(certificate.given_up.len(), 1, "{certificate:?}");
}

#[test]
fn without_patience_the_preferred_is_given_up_at_once() {
    let mut story = Story::with_nodes(2, 8);
    story.map("b0: l0 = n0, l1 = n1");
    let mut spec = patient("leaf", minutes(1));
    spec.placement.patience = None;
    let job = story.submit(spec);
    assert_eq!(story.decide(), [job]);
}

#[test]
fn an_elastic_job_takes_the_most_nodes_there_are() {
    let mut story = Story::with_nodes(5, 8);
    story.start(spec(2, 8));
    let elastic = |least| JobSpec { min_nodes: Some(least), ..limited(8, 8, 60) };
    let too_large = story.submit(elastic(4));
    assert_eq!(story.decide(), []);
    let by = UserId::parse("ada").unwrap();
    story.push(Event::CancelRequested { job: too_large, by });
    let job = story.submit(elastic(2));
    assert_eq!(story.decide(), [job]);
    let lease = story.cluster.jobs.attempts[&story.attempt_of(job)].lease.clone();
    assert_eq!((lease.nodes, lease.places.len()), (3, 3));
}

/// Sizes between that do not divide are passed over.
#[test]
fn an_elastic_job_keeps_its_slices_whole() {
    let mut story = Story::with_nodes(6, 8);
    story.map("b0: l0 = n0 n1 n2, l1 = n3 n4 n5");
    let mut spec = JobSpec { min_nodes: Some(2), ..limited(8, 8, 60) };
    let level = "leaf".to_owned();
    spec.placement.slices = vec![Slice { nodes: 2, level, strength: Strength::Required }];
    let job = story.submit(spec);
    assert_eq!(story.decide(), [job]);
    let lease = story.cluster.jobs.attempts[&story.attempt_of(job)].lease.clone();
    assert_eq!(lease.nodes % 2, 0);
    assert_eq!(lease.nodes, 4);
}

#[test]
fn a_spare_takes_the_place_of_a_node_that_dies_and_ranks_stay_where_they_were() {
    let mut story = Story::with_nodes(5, 8);
    let spec = JobSpec { spares: 1, requeue: true, ..limited(3, 8, 600) };
    let job = story.start(spec);
    assert_eq!(story.nodes_of(job), "n0 n1 n2 n3");
    let attempt = story.attempt_of(job);
    let known = &story.cluster.jobs.attempts[&attempt];
    assert_eq!((known.ranks(), known.ranks_at(3)), (3, 3..3), "no rank runs at a spare");
    let charged_until = story.now;
    let why = WriteOffWhy::LeaseLapsed;
    let cordon =
        tessera_model::Cordon { drain: false, by: "sre".to_owned(), reason: "dead".to_owned() };
    story.push(Event::NodeCordoned { node: node_id("n1"), cordon });
    story.push(Event::PlaceWrittenOff { attempt, node: node_id("n1"), charged_until, why });
    story.end(job, TaskEnd::Signaled { signal: 15, oom: false });
    assert_eq!(story.cluster.jobs.get(job).unwrap().state, JobState::Pending);
    story.pass(minutes(1));
    story.due();
    assert_eq!(story.decide(), [job]);
    assert_eq!(story.nodes_of(job), "n0 n3 n2 n4");
}

/// A spare that is lost costs the job nothing but the spare.
#[test]
fn the_loss_of_a_spare_stops_nobody() {
    let mut story = Story::with_nodes(3, 8);
    let job = story.start(JobSpec { spares: 1, requeue: true, ..limited(2, 8, 600) });
    let (attempt, charged_until) = (story.attempt_of(job), story.now);
    let why = WriteOffWhy::LeaseLapsed;
    story.push(Event::PlaceWrittenOff { attempt, node: node_id("n2"), charged_until, why });
    assert_eq!(story.cluster.jobs.get(job).unwrap().state, JobState::Running);
    assert_eq!(story.cluster.space_differs(), Vec::<String>::new());
    story.end(job, TaskEnd::Exited { code: 0 });
    assert_eq!(story.cluster.jobs.get(job).unwrap().state, JobState::Succeeded);
}

/// Nothing runs at a spare that could end there: it is told to stop once all ranks have ended.
#[test]
fn a_spare_is_told_when_the_others_are_done() {
    use tessera_core::Order;
    let mut story = Story::with_nodes(3, 8);
    let job = story.start(JobSpec { spares: 1, requeue: true, ..limited(2, 8, 600) });
    let attempt = story.attempt_of(job);
    story.cluster.take_outbox();
    for rank in 0..2 {
        story.push(Event::TaskEnded { attempt, rank, end: TaskEnd::Exited { code: 0 } });
    }
    let orders = story.cluster.take_outbox().orders;
    let told = orders.iter().any(|(n, o)| *n == node_id("n2") && matches!(o, Order::Stop { .. }));
    assert!(told, "{orders:?}");
    assert_eq!(story.cluster.jobs.get(job).unwrap().state, JobState::Succeeded);
}

fn reserve(story: &mut Story, name: &str, teams: &[&str], on: &str, from: u64, until: u64) {
    let reservation = Reservation {
        name: name.to_owned(),
        teams: teams.iter().map(|t| TeamId::parse(t).unwrap()).collect(),
        target: Target::Nodes { nodes: nodes(on).into_iter().collect() },
        from: story.now.plus(minutes(from)),
        until: story.now.plus(minutes(until)),
        owner: UserId::parse("sre").unwrap(),
        reason: "a test".to_owned(),
    };
    story.push(Event::ReservationMade { reservation });
}

#[test]
fn nobody_is_on_nodes_when_their_maintenance_begins() {
    let mut story = Story::with_nodes(2, 8);
    reserve(&mut story, "firmware", &[], "n0 n1", 60, 120);
    let endless = story.submit(spec(1, 8));
    let long = story.submit(limited(1, 8, 60));
    let short = story.submit(limited(1, 8, 50));
    let until = story.now.plus(minutes(120));
    let reserved = WaitReason::Reserved { name: "firmware".to_owned(), until };
    assert_eq!(story.wait_of(endless), Some(reserved.clone()));
    assert_eq!(story.wait_of(long), Some(reserved));
    assert_eq!(story.decide(), [short]);
    // The long one keeps a place from the end of the maintenance on.
    assert_eq!(kept(&story, long).unwrap().0, Some(until));
}

#[test]
fn a_reservation_is_open_to_its_teams_alone() {
    let mut story = Story::with_nodes(3, 8);
    reserve(&mut story, "course", &["vision"], "n0", 10, 120);
    let ours = JobSpec { reservation: Some("course".to_owned()), ..spec(1, 8) };
    let mut theirs = ours.clone();
    theirs.team = TeamId::parse("vision").unwrap();
    let (ours, theirs) = (story.submit(ours), story.submit(theirs));
    let plain = story.submit(spec(1, 8));
    assert_eq!(story.decide(), [plain]);
    assert_ne!(story.nodes_of(plain), "n0");
    story.pass(minutes(10));
    story.due();
    assert_eq!(story.decide(), [theirs]);
    assert_eq!(story.nodes_of(theirs), "n0");
    let closed = WaitReason::ReservationClosed { name: "course".to_owned() };
    assert_eq!(story.wait_of(ours), Some(closed));
}

#[test]
fn held_nodes_are_closed_to_all_but_one() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(1, 8, 60));
    let (other, holder) = (story.submit(spec(1, 8)), story.submit(spec(1, 8)));
    let nodes = BTreeSet::from([node_id("n1")]);
    let until = story.now.plus(minutes(5));
    story.push(Event::HoldPlaced { hold: Hold { job: holder, nodes, until } });
    assert_eq!(story.decide(), [holder]);
    assert_eq!(story.nodes_of(holder), "n1");
    assert!(story.cluster.holds.is_empty(), "a hold ends with the start");
    assert!(matches!(story.wait_of(other), Some(WaitReason::NotEnoughFree { .. })));
}

#[test]
fn a_hold_ends_by_itself() {
    let mut story = Story::with_nodes(1, 8);
    let (other, holder) = (story.submit(spec(1, 8)), story.submit(spec(1, 8)));
    let nodes = BTreeSet::from([node_id("n0")]);
    let until = story.now.plus(minutes(5));
    story.push(Event::HoldPlaced { hold: Hold { job: holder, nodes, until } });
    let by = UserId::parse("ada").unwrap();
    story.push(Event::JobHeld { job: holder, by });
    assert_eq!(story.cluster.holds.len(), 0, "who is held back keeps nothing");
    let _ = other;
    story.push(Event::HoldPlaced {
        hold: Hold { job: JobId(77), nodes: BTreeSet::from([node_id("n0")]), until },
    });
    assert_eq!(story.decide(), []);
    story.pass(minutes(5));
    story.due();
    assert_eq!(story.decide(), [other]);
}

/// Each of a thousand blocked jobs has its reason, and the same shape is not searched twice.
#[test]
fn every_job_has_a_reason() {
    let mut story = Story::with_nodes(1, 8);
    story.start(limited(1, 8, 60));
    let jobs: Vec<JobId> = (0..50).map(|_| story.submit(limited(1, 1, 60))).collect();
    let decision = decided(&story);
    assert!(jobs.iter().all(|j| decision.wait.contains_key(j)));
    let _ = Placement::default();
}

/// Nothing but its team's quota is in the way of the whole size.
#[test]
fn an_elastic_job_makes_do_with_what_its_team_may_have() {
    for (limit, starts) in [(64, 8), (32, 4), (20, 2)] {
        let mut story = Story::with_nodes(8, 8);
        limit_of(&mut story, limit);
        let job = story.submit(JobSpec { min_nodes: Some(2), ..spec(8, 8) });
        assert_eq!(story.decide(), [job]);
        let lease = &story.cluster.jobs.attempts[&story.attempt_of(job)].lease;
        assert_eq!(lease.nodes, starts, "limit {limit}");
    }
    let mut story = Story::with_nodes(8, 8);
    limit_of(&mut story, 15);
    let job = story.submit(JobSpec { min_nodes: Some(2), ..spec(8, 8) });
    assert_eq!(story.decide(), []);
    assert!(matches!(story.wait_of(job), Some(WaitReason::OverQuota { limit: 15, .. })));
}

fn limit_of(story: &mut Story, limit: u32) {
    let (team, by) = (TeamId::parse("nlp").unwrap(), UserId::parse("root").unwrap());
    story.push(Event::TeamCreated {
        team: team.clone(),
        description: String::new(),
        by: by.clone(),
    });
    let quota =
        Quota { gpu_model: "h100".to_owned(), guaranteed: 0, limit: Some(limit), cell: None };
    let share = TeamShare { quotas: vec![quota], ..TeamShare::default() };
    story.push(Event::TeamShared { team, share, by });
}
