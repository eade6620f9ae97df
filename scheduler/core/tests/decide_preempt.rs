//! Who has to leave for whom: whole gangs, the cheapest by lost work, nobody of the same or a
//! higher tier, and nothing that goes back and forth.

mod common;

use common::{Story, limited, minutes, spec};
use tessera_core::decide::Leave;
use tessera_core::event::{Event, LeaveWhy, StopWhy};
use tessera_model::{
    CheckpointPlan, JobId, JobSpec, JobState, Millis, Quota, Strength, TaskEnd, TeamId, TeamShare,
    Tier, UserId, WaitReason, Within,
};

fn tier(tier: Tier, spec: JobSpec) -> JobSpec {
    JobSpec { tier, ..spec }
}

/// A job of the idle tier that may be stopped and started again.
fn idle(nodes: u32) -> JobSpec {
    JobSpec { requeue: true, ..tier(Tier::Idle, spec(nodes, 8)) }
}

fn plan(notice: Millis, restart: Millis) -> Option<CheckpointPlan> {
    Some(CheckpointPlan {
        signal: Some(10),
        notice,
        restart_cost: restart,
        file: None,
        migratable: false,
    })
}

fn victims(leave: &[Leave]) -> Vec<JobId> {
    leave.iter().map(|l| l.attempt.job).collect()
}

/// All that were told to stop have gone.
fn let_go(story: &mut Story, jobs: &[JobId]) {
    for job in jobs {
        story.end(*job, TaskEnd::Signaled { signal: 15, oom: false });
    }
}

#[test]
fn a_gang_leaves_whole() {
    let mut story = Story::with_nodes(4, 8);
    let gang = story.start(idle(3));
    story.start(tier(Tier::Normal, spec(1, 8)));
    story.pass(minutes(10));
    let job = story.submit(spec(1, 8));
    let round = story.round();
    assert_eq!(victims(&round.leave), [gang]);
    assert_eq!(story.cluster.jobs.get(gang).unwrap().state, JobState::Stopping);
    let by = round.wait[&job].clone();
    assert!(matches!(by, WaitReason::MakingRoom { ref victims, .. } if *victims == [gang]), "{by}");
    // One node is enough for the job, and one is kept; the others are free for all.
    assert_eq!(story.cluster.holds[&job].nodes.len(), 1);
    let_go(&mut story, &[gang]);
    assert_eq!(story.cluster.jobs.get(gang).unwrap().state, JobState::Pending);
    assert_eq!(story.decide(), [job]);
}

#[test]
fn the_cheapest_work_is_lost() {
    let mut story = Story::with_nodes(3, 8);
    let old = story.start(idle(1));
    story.pass(minutes(30));
    let young = story.start(idle(1));
    story.pass(minutes(10));
    let middle = story.start(idle(1));
    story.pass(minutes(20));
    // The oldest has saved its work a moment ago, so it loses least.
    let attempt = story.attempt_of(old);
    story.push(Event::CheckpointReported { attempt });
    story.pass(minutes(1));
    story.submit(spec(1, 8));
    assert_eq!(victims(&story.round().leave), [old]);
    story.submit(spec(1, 8));
    assert_eq!(victims(&story.round().leave), [middle], "then who has run least");
    let _ = young;
}

#[test]
fn what_a_restart_takes_counts_as_work() {
    let mut story = Story::with_nodes(2, 8);
    let slow = story.start(JobSpec { checkpoint: plan(Millis(0), minutes(60)), ..idle(1) });
    let quick = story.start(JobSpec { checkpoint: plan(Millis(0), minutes(1)), ..idle(1) });
    story.pass(minutes(5));
    story.submit(spec(1, 8));
    assert_eq!(victims(&story.round().leave), [quick]);
    let _ = slow;
}

/// Three small victims in one leaf cost less than two large ones that are spread over both.
#[test]
fn the_domain_that_costs_least_is_freed() {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    let at = |nodes: &str, spec: JobSpec| {
        let mut spec = spec;
        spec.placement.only = nodes.split(' ').map(common::node_id).collect();
        spec
    };
    let across = story.start(at("n0 n2", idle(2)));
    let left = story.start(at("n1", idle(1)));
    story.pass(minutes(60));
    let right = story.start(at("n3", idle(1)));
    story.pass(minutes(2));
    let mut gang = spec(2, 8);
    gang.placement.within = vec![Within { level: "leaf".to_owned(), strength: Strength::Required }];
    story.submit(gang);
    let mut found = victims(&story.round().leave);
    found.sort();
    assert_eq!(found, [across, right]);
    let _ = left;
}

#[test]
fn nobody_of_the_same_or_a_higher_tier_leaves() {
    for (runs, wants) in [
        (Tier::Normal, Tier::Normal),
        (Tier::Urgent, Tier::Normal),
        (Tier::Idle, Tier::Idle),
        (Tier::Normal, Tier::Idle),
    ] {
        let mut story = Story::with_nodes(1, 8);
        story.start(JobSpec { requeue: true, ..tier(runs, spec(1, 8)) });
        story.pass(minutes(10));
        story.submit(tier(wants, spec(1, 8)));
        assert_eq!(story.round().leave, [], "{runs:?} for {wants:?}");
    }
}

#[test]
fn who_is_lowest_leaves_first_though_it_costs_more() {
    let mut story = Story::with_nodes(2, 8);
    let dear = story.start(idle(1));
    story.pass(minutes(600));
    story.start(JobSpec { requeue: true, ..spec(1, 8) });
    story.pass(minutes(2));
    story.submit(tier(Tier::Urgent, spec(1, 8)));
    assert_eq!(victims(&story.round().leave), [dear]);
}

#[test]
fn who_cannot_be_requeued_or_has_just_begun_is_left_alone() {
    let mut story = Story::with_nodes(1, 8);
    let fresh = story.start(idle(1));
    story.pass(Millis::from_secs(59));
    let job = story.submit(spec(1, 8));
    assert_eq!(story.round().leave, []);
    story.pass(Millis::from_secs(1));
    assert_eq!(victims(&story.round().leave), [fresh]);
    let _ = job;

    let mut story = Story::with_nodes(1, 8);
    story.start(tier(Tier::Idle, spec(1, 8)));
    story.pass(minutes(60));
    story.submit(spec(1, 8));
    assert_eq!(story.round().leave, []);
}

#[test]
fn notice_then_the_end_and_a_checkpoint_ends_it_early() {
    let mut story = Story::with_nodes(1, 8);
    let spec_ = JobSpec { checkpoint: plan(minutes(5), Millis(0)), ..idle(1) };
    let old = story.start(spec_);
    story.pass(minutes(10));
    let job = story.submit(spec(1, 8));
    let round = story.round();
    assert_eq!(round.leave[0].deadline, story.now.plus(minutes(5)));
    assert_eq!(story.cluster.jobs.get(old).unwrap().state, JobState::Running);
    story.pass(minutes(1));
    story.due();
    assert_eq!(story.cluster.jobs.get(old).unwrap().state, JobState::Running);
    assert_eq!(story.round().leave, [], "it was asked already");
    let attempt = story.attempt_of(old);
    story.push(Event::CheckpointReported { attempt });
    assert_eq!(story.cluster.jobs.get(old).unwrap().state, JobState::Stopping);
    let_go(&mut story, &[old]);
    assert_eq!(story.decide(), [job]);
}

#[test]
fn who_does_not_say_so_is_stopped_when_the_notice_is_over() {
    let mut story = Story::with_nodes(1, 8);
    let old = story.start(JobSpec { checkpoint: plan(minutes(5), Millis(0)), ..idle(1) });
    story.pass(minutes(10));
    story.submit(spec(1, 8));
    story.round();
    story.pass(minutes(5));
    story.due();
    let attempt = story.attempt_of(old);
    let stop = story.cluster.jobs.attempts[&attempt].stop.clone();
    assert!(matches!(stop, Some(StopWhy::Left { .. })), "{stop:?}");
}

/// Whoever had to leave and is submitted again, unchanged, sends nobody away.
#[test]
fn nothing_goes_back_and_forth() {
    let mut story = Story::with_nodes(3, 8);
    let first = [story.start(idle(1)), story.start(idle(1))];
    story.start(JobSpec { requeue: true, ..spec(1, 8) });
    story.pass(minutes(10));
    let job = story.submit(spec(2, 8));
    let round = story.round();
    assert_eq!(round.leave.len(), 2);
    let_go(&mut story, &first);
    assert_eq!(story.decide(), [job]);
    story.run(job);
    for _ in 0..50 {
        story.pass(minutes(1));
        story.due();
        let round = story.round();
        assert_eq!((round.leave.len(), round.start.len(), round.holds.len()), (0, 0, 0));
    }
    assert!(first.iter().all(|j| story.cluster.jobs.get(*j).unwrap().state == JobState::Pending));
}

/// While nodes are freed for a job, who left them does not come back onto them.
#[test]
fn who_left_does_not_come_back_onto_what_it_freed() {
    let mut story = Story::with_nodes(2, 8);
    let one = story.start(idle(1));
    let other = story.start(JobSpec { checkpoint: plan(minutes(5), Millis(0)), ..idle(1) });
    story.pass(minutes(10));
    let job = story.submit(spec(2, 8));
    assert_eq!(story.round().leave.len(), 2);
    let_go(&mut story, &[one]);
    story.pass(minutes(1));
    let round = story.round();
    assert_eq!((round.start.len(), round.leave.len(), round.holds.len()), (0, 0, 0));
    assert_eq!(story.cluster.jobs.get(one).unwrap().state, JobState::Pending);
    story.pass(minutes(4));
    story.due();
    let_go(&mut story, &[other]);
    assert_eq!(story.decide(), [job]);
}

#[test]
fn the_same_job_has_to_leave_only_so_often_in_a_day() {
    let mut story = Story::with_nodes(1, 8);
    let old = story.start(idle(1));
    for times in 1..=4 {
        story.pass(minutes(10));
        story.due();
        let short = story.submit(limited(1, 8, 1));
        let round = story.round();
        if times > 3 {
            assert_eq!(round.leave, []);
            assert_eq!(story.cluster.jobs.get(old).unwrap().preemptions, 3);
            return;
        }
        assert_eq!(victims(&round.leave), [old], "{times}");
        let_go(&mut story, &[old]);
        assert_eq!(story.decide(), [short]);
        story.run(short);
        story.end(short, TaskEnd::Exited { code: 0 });
        assert_eq!(story.decide(), [old]);
        story.run(old);
    }
}

#[test]
fn an_elastic_job_shrinks_before_another_is_stopped() {
    let mut story = Story::with_nodes(5, 8);
    let elastic = story.start(JobSpec { min_nodes: Some(2), ..idle(4) });
    story.pass(minutes(100));
    let cheap = story.start(idle(1));
    story.pass(minutes(2));
    let job = story.submit(spec(2, 8));
    let round = story.round();
    assert_eq!(victims(&round.leave), [elastic]);
    assert_eq!(round.leave[0].why, LeaveWhy::Shrunk { by: job, nodes: 2 });
    let_go(&mut story, &[elastic]);
    // Both go on at once: the one on what it keeps, the other on what was freed.
    let mut started = story.decide();
    started.sort();
    assert_eq!(started, [elastic, job]);
    let lease = &story.cluster.jobs.attempts[&story.attempt_of(elastic)].lease;
    assert_eq!(lease.nodes, 2);
    assert_eq!(story.nodes_of(elastic), "n0 n1", "where its first ranks were");
    assert_eq!(story.cluster.jobs.get(cheap).unwrap().state, JobState::Running);
}

/// What it can do without is not enough, so all of it goes.
#[test]
fn an_elastic_job_that_cannot_shrink_far_enough_is_stopped_whole() {
    let mut story = Story::with_nodes(8, 8);
    let elastic = JobSpec { requeue: true, min_nodes: Some(4), ..spec(8, 8) };
    let elastic = story.start(elastic);
    story.pass(minutes(10));
    let job = story.submit(tier(Tier::Urgent, spec(8, 8)));
    let round = story.round();
    assert_eq!(victims(&round.leave), [elastic]);
    assert_eq!(round.leave[0].why, LeaveWhy::Preempted { by: job });
    let_go(&mut story, &[elastic]);
    assert_eq!(story.decide(), [job]);
}

/// Plans that come to nothing do not use up the plans of those behind.
#[test]
fn who_finds_no_plan_leaves_the_others_theirs() {
    let mut story = Story::with_nodes(2, 8);
    let mut stuck = JobSpec { requeue: true, ..tier(Tier::Urgent, spec(1, 8)) };
    stuck.checkpoint =
        Some(CheckpointPlan { migratable: true, ..plan(Millis(0), Millis(0)).unwrap() });
    let stuck = story.start(stuck);
    story.node_up(2, 0, 3, 4);
    let pinned = |mut spec: JobSpec| {
        spec.placement.only = std::collections::BTreeSet::from([common::node_id("n2")]);
        spec
    };
    let lower = story.start(pinned(JobSpec { requeue: true, ..spec(1, 4) }));
    story.pass(minutes(5));
    let attempt = story.attempt_of(stuck);
    story.push(Event::CheckpointReported { attempt });
    // Each would fit if the one moved, which has nowhere to go.
    for cpus in 1..=12 {
        let mut gang = tier(Tier::Urgent, spec(2, 8));
        gang.gang.cpus_per_task = cpus;
        story.submit(gang);
    }
    let last = story.submit(pinned(tier(Tier::Urgent, spec(1, 4))));
    let round = story.round();
    assert_eq!(victims(&round.leave), [lower]);
    assert_eq!(round.leave[0].why, LeaveWhy::Preempted { by: last });
}

#[test]
fn what_is_waited_for_when_all_have_left_is_said() {
    let none = WaitReason::MakingRoom { victims: Vec::new(), by: Story::default().now };
    assert!(none.to_string().starts_with("starts when the GPUs that are kept for it are free, by"));
}

fn share(story: &mut Story, name: &str, guaranteed: u32) {
    let (team, by) = (TeamId::parse(name).unwrap(), UserId::parse("root").unwrap());
    let description = String::new();
    story.push(Event::TeamCreated { team: team.clone(), description, by: by.clone() });
    let quotas = vec![Quota { gpu_model: "h100".to_owned(), guaranteed, limit: None, cell: None }];
    let share = TeamShare { quotas, ..TeamShare::default() };
    story.push(Event::TeamShared { team, share, by });
}

fn of_team(name: &str, spec: JobSpec) -> JobSpec {
    JobSpec { team: TeamId::parse(name).unwrap(), requeue: true, ..spec }
}

#[test]
fn a_team_takes_back_what_it_is_guaranteed_and_no_more() {
    let mut story = Story::with_nodes(4, 8);
    share(&mut story, "nlp", 16);
    share(&mut story, "vision", 16);
    let borrowed: Vec<JobId> = (0..4).map(|_| story.start(of_team("vision", spec(1, 8)))).collect();
    story.pass(minutes(10));
    let within = story.submit(of_team("nlp", spec(2, 8)));
    let beyond = story.submit(of_team("nlp", spec(1, 8)));
    let round = story.round();
    let left = victims(&round.leave);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(round.leave.iter().all(|l| l.why == LeaveWhy::Reclaimed { by: within }));
    let_go(&mut story, &left);
    assert_eq!(story.decide(), [within]);
    story.run(within);
    story.pass(minutes(10));
    let round = story.round();
    assert_eq!(round.leave, [], "what is beyond the guarantee is not taken from others");
    assert_eq!(story.cluster.jobs.get(beyond).unwrap().state, JobState::Pending);
    let runs = |j: &&JobId| story.cluster.jobs.get(**j).unwrap().state == JobState::Running;
    assert_eq!(borrowed.iter().filter(runs).count(), 2, "vision keeps what it is guaranteed");
}

/// A job that has just saved its work moves aside for a gang that finds no whole leaf, if it finds
/// a place elsewhere.
#[test]
fn a_job_moves_aside_right_after_its_checkpoint() {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    let at = |node: &str, migratable: bool| {
        let mut spec = JobSpec { requeue: true, ..spec(1, 8) };
        spec.checkpoint = plan(Millis(0), Millis(0));
        spec.checkpoint.as_mut().unwrap().migratable = migratable;
        // Where it began; afterwards any node will do.
        let _ = node;
        spec
    };
    let pin = |mut spec: JobSpec, node: &str| {
        spec.placement.only = std::collections::BTreeSet::from([common::node_id(node)]);
        spec
    };
    let movable = story.start(at("n0", true));
    assert_eq!(story.nodes_of(movable), "n0");
    let stays = story.start(pin(at("n2", false), "n2"));
    story.pass(minutes(60));
    let mut gang = spec(2, 8);
    gang.placement.within = vec![Within { level: "leaf".to_owned(), strength: Strength::Required }];
    let gang = story.submit(gang);
    assert_eq!(story.round().leave, [], "an hour of work is not thrown away");
    let attempt = story.attempt_of(movable);
    story.push(Event::CheckpointReported { attempt });
    let round = story.round();
    assert_eq!(victims(&round.leave), [movable]);
    assert_eq!(round.leave[0].why, LeaveWhy::Moved { by: gang });
    // Where it goes on is kept for it, so that nobody else takes it meanwhile.
    let there = story.cluster.holds[&movable].nodes.iter().map(|n| n.as_str());
    assert_eq!(there.collect::<Vec<_>>(), ["n3"]);
    let other = story.submit(spec(1, 8));
    assert_eq!(story.decide(), []);
    let_go(&mut story, &[movable]);
    let mut started = story.decide();
    started.sort();
    assert_eq!(started, [movable, gang]);
    assert_eq!(story.nodes_of(movable), "n3");
    assert_eq!(story.nodes_of(gang), "n0 n1");
    assert_eq!(story.cluster.jobs.get(other).unwrap().state, JobState::Pending);
    let _ = stays;
}

/// A job of the idle tier may stand on a place that is kept, since it can be told to leave in time.
#[test]
fn who_stands_on_a_kept_place_is_asked_in_time() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(1, 8, 120));
    let gang = story.submit(limited(2, 8, 10));
    let checkpoint = plan(minutes(5), Millis(0));
    let squatter = story.submit(JobSpec { checkpoint, ..idle(1) });
    assert_eq!(story.decide(), [squatter]);
    story.run(squatter);
    story.pass(minutes(60));
    let round = story.round();
    assert_eq!(round.leave, []);
    let wake = round.wake.unwrap();
    story.pass(wake.since(story.now));
    let mut leave = Vec::new();
    while leave.is_empty() && story.now < wake.plus(minutes(60)) {
        leave = story.round().leave;
        story.pass(Millis::from_secs(5));
    }
    assert_eq!(victims(&leave), [squatter]);
    assert_eq!(leave[0].why, LeaveWhy::Preempted { by: gang });
}
