//! What agents say, and what must not follow from it. Each test is named for what somebody saw.

mod common;

use std::collections::BTreeMap;

use common::{Story, attempt, gpu_id, inventory, node_id, spec};
use tessera_core::door::{self, Hello, Report, agents::Running};
use tessera_core::due::{Limits, due};
use tessera_core::event::{Event, StopWhy, WriteOffWhy};
use tessera_model::{
    AttemptId, Epoch, GpuCondition, JobId, JobSpec, JobState, Millis, SessionId, TaskEnd,
};

fn hello(index: u32, boot: u32, session: u64, running: &[AttemptId]) -> Hello {
    Hello {
        session: SessionId(session),
        epoch: Epoch(0),
        inventory: inventory(&format!("n{index}"), boot, &[(0, 0); 2]),
        conditions: BTreeMap::new(),
        running: running
            .iter()
            .map(|id| Running { attempt: *id, started: true, master_port: 1, ended: Vec::new() })
            .collect(),
        finished: Vec::new(),
    }
}

/// Takes a hello in as the writer does; true if it was heard.
fn greet(story: &mut Story, hello: Hello) -> bool {
    let greeting = door::hello(&story.cluster, story.now, &hello);
    let heard = !greeting.events.is_empty();
    greeting.events.into_iter().for_each(|e| story.push(e));
    let node = hello.inventory.node.clone();
    for r in greeting.then {
        let events = door::report(&mut story.cluster, story.now, &node, hello.session, r);
        events.into_iter().for_each(|e| story.push(e));
    }
    heard
}

fn report(story: &mut Story, index: u32, session: u64, report: Report) {
    let node = node_id(&format!("n{index}"));
    let events = door::report(&mut story.cluster, story.now, &node, SessionId(session), report);
    events.into_iter().for_each(|e| story.push(e));
}

fn state(story: &Story) -> JobState {
    story.cluster.jobs.get(JobId(1)).unwrap().state
}

/// A cluster of one node in session 1 on which job 1 runs.
fn running(spec: JobSpec) -> Story {
    let mut story = Story::with_nodes(1, 2);
    story.submit(spec);
    story.decide();
    let id = attempt(1, 1);
    report(&mut story, 0, 1, Report::Prepared { attempt: id, master_port: 1 });
    report(&mut story, 0, 1, Report::Started { attempt: id });
    assert_eq!(state(&story), JobState::Running);
    story
}

#[test]
fn a_late_hello_of_a_dead_agent_does_not_write_off_what_its_successor_runs() {
    let mut story = Story::with_nodes(1, 2);
    // The agent of session 2 dies before its first word arrives, and is followed by session 3.
    let late = hello(0, 0, 2, &[]);
    assert!(greet(&mut story, hello(0, 0, 3, &[])));
    story.submit(JobSpec { requeue: true, ..spec(1, 2) });
    story.decide();
    let id = attempt(1, 1);
    report(&mut story, 0, 3, Report::Prepared { attempt: id, master_port: 1 });
    report(&mut story, 0, 3, Report::Started { attempt: id });
    assert!(!greet(&mut story, late), "its stream is to be closed");
    assert_eq!(state(&story), JobState::Running);
    assert_eq!(story.cluster.nodes[&node_id("n0")].session, SessionId(3));
    // The living one may say hello as often as it likes, and a new one may take over.
    assert!(greet(&mut story, hello(0, 0, 3, &[id])));
    assert!(greet(&mut story, hello(0, 0, 4, &[id])));
    assert_eq!(state(&story), JobState::Running);
    // After a reboot the clock begins again.
    assert!(greet(&mut story, hello(0, 1, 1, &[])));
    assert_eq!(state(&story), JobState::Pending);
}

#[test]
fn a_job_that_was_only_being_prepared_is_not_lost_with_its_agent() {
    let mut story = Story::with_nodes(1, 2);
    story.submit(spec(1, 2));
    story.decide();
    // The agent was restarted before the order reached it: it has never heard of the attempt.
    assert!(greet(&mut story, hello(0, 0, 2, &[])));
    assert_eq!(state(&story), JobState::Pending);
    story.pass(Millis::from_secs(60));
    story.due();
    assert_eq!(story.decide(), [JobId(1)]);
}

#[test]
fn a_job_that_ran_and_is_forgotten_is_lost_and_never_guessed() {
    let mut story = running(spec(1, 2));
    assert!(greet(&mut story, hello(0, 1, 2, &[])));
    assert_eq!(state(&story), JobState::Lost);
    assert_eq!(story.cluster.jobs.get(JobId(1)).unwrap().exit_code, None);
}

#[test]
fn a_scheduler_that_was_away_for_long_does_not_stop_what_was_just_starting() {
    let mut story = Story::with_nodes(1, 2);
    story.submit(spec(1, 2));
    story.decide();
    let id = attempt(1, 1);
    report(&mut story, 0, 1, Report::Prepared { attempt: id, master_port: 1 });
    // Killed before the agent's Started was written down, back after ten minutes.
    story.pass(Millis::from_secs(600));
    let limits = Limits::default();
    story.cluster = std::mem::take(&mut story.cluster).restored(story.now);
    story.push(Event::EpochBegan { epoch: Epoch(2) });
    assert_eq!(due(&story.cluster, story.now, &limits), []);
    greet(&mut story, hello(0, 0, 1, &[id]));
    assert_eq!(state(&story), JobState::Running);
    // Without an answer it is stopped all the same, a launch time later.
    let mut story = Story::with_nodes(1, 2);
    story.submit(spec(1, 2));
    story.decide();
    story.push(Event::EpochBegan { epoch: Epoch(2) });
    story.pass(limits.launch);
    assert_eq!(due(&story.cluster, story.now, &Limits { silent: Millis::DAY, ..limits }), []);
    story.pass(Millis(1));
    let stopping = due(&story.cluster, story.now, &Limits { silent: Millis::DAY, ..limits });
    assert!(matches!(
        stopping.as_slice(),
        [Event::AttemptStopping { why: StopWhy::LaunchTimeout { .. }, .. }]
    ));
}

#[test]
fn a_late_started_does_not_bring_an_ended_job_back() {
    // Two nodes, so that the attempt is settled while one place is still out.
    let mut story = Story::with_nodes(2, 2);
    story.submit(spec(2, 2));
    story.decide();
    let id = attempt(1, 1);
    for i in 0..2 {
        let session = u64::from(i) + 1;
        report(&mut story, i, session, Report::Prepared { attempt: id, master_port: 1 });
    }
    for i in 0..2 {
        let (session, end) = (u64::from(i) + 1, TaskEnd::Exited { code: 0 });
        report(&mut story, i, session, Report::TaskEnded { attempt: id, rank: i, end });
    }
    assert_eq!(state(&story), JobState::Succeeded);
    for i in 0..2 {
        let session = u64::from(i) + 1;
        report(&mut story, i, session, Report::Started { attempt: id });
        report(&mut story, i, session, Report::Prepared { attempt: id, master_port: 1 });
    }
    assert_eq!(state(&story), JobState::Succeeded);
}

#[test]
fn an_ended_job_whose_gpus_are_still_out_does_not_fill_the_journal() {
    let limit = Some(Millis::from_secs(10));
    let mut story = running(JobSpec { time_limit: limit, ..spec(1, 2) });
    let (attempt, end) = (attempt(1, 1), TaskEnd::Exited { code: 0 });
    report(&mut story, 0, 1, Report::TaskEnded { attempt, rank: 0, end });
    story.pass(Millis::from_secs(60));
    let limits = Limits { silent: Millis::DAY, ..Limits::default() };
    assert_eq!(due(&story.cluster, story.now, &limits), []);
}

#[test]
fn a_gpu_that_is_still_used_is_kept_back_also_when_its_lease_was_written_off() {
    let mut story = running(JobSpec { requeue: true, ..spec(1, 2) });
    let (id, node, gpu) = (attempt(1, 1), node_id("n0"), gpu_id("n0", 1));
    let (charged_until, why) = (story.now, WriteOffWhy::LeaseLapsed);
    let written_off =
        Event::PlaceWrittenOff { attempt: id, node: node.clone(), charged_until, why };
    story.push(written_off);
    let occupied = BTreeMap::from([(gpu.clone(), vec![42])]);
    let released = Report::Released { attempt: id, occupied };
    report(&mut story, 0, 1, released.clone());
    let condition = |story: &Story| story.cluster.nodes[&node].condition(&gpu);
    assert_eq!(condition(&story), GpuCondition::Occupied { pids: vec![42] });
    let events = story.journal.len();
    report(&mut story, 0, 1, released);
    assert_eq!(story.journal.len(), events, "heard before");
    story.pass(Millis::HOUR);
    story.submit(spec(1, 2));
    assert_eq!(story.decide(), [], "both GPUs are needed, one is occupied");
}

#[test]
fn what_an_older_session_says_is_not_heard() {
    let mut story = running(spec(1, 2));
    let id = attempt(1, 1);
    assert!(greet(&mut story, hello(0, 0, 2, &[id])));
    let events = story.journal.len();
    for said in [
        Report::Heartbeat { sent_boottime_ms: 1 },
        Report::TaskEnded { attempt: id, rank: 0, end: TaskEnd::Exited { code: 0 } },
        Report::Released { attempt: id, occupied: BTreeMap::new() },
    ] {
        report(&mut story, 0, 1, said);
    }
    assert_eq!(story.journal.len(), events);
    assert_eq!(state(&story), JobState::Running);
}

fn admin() -> tessera_model::Principal {
    let user = tessera_model::UserId::parse("root").unwrap();
    tessera_model::Principal { user, role: tessera_model::Role::Admin, teams: vec![], unix: None }
}

#[test]
fn a_gpu_that_two_nodes_list_stays_with_the_first_and_is_given_out_once() {
    let mut story = Story::with_nodes(1, 2);
    // n1 shows n0's board: the same image, or the board was moved.
    let mut other = hello(1, 0, 9, &[]);
    other.inventory.gpus[0].id = gpu_id("n0", 0);
    assert!(greet(&mut story, other.clone()));
    let home = node_id("n0");
    let doubted = &story.cluster.nodes[&node_id("n1")];
    let condition = doubted.condition(&gpu_id("n0", 0));
    assert_eq!(condition, GpuCondition::Duplicate { node: home.clone() });
    for _ in 0..4 {
        story.submit(spec(1, 1));
    }
    assert_eq!(story.decide().len(), 3, "three boards are there");
    assert_eq!(story.cluster.timeline.home(&gpu_id("n0", 0)), Some(&home));
    // Once the first one is gone for good, it is the other's.
    story.pass(Millis::from_secs(20));
    for event in due(&story.cluster, story.now, &Limits::default()) {
        story.push(event);
    }
    greet(&mut story, Hello { session: SessionId(10), ..other });
    let (jobs, events) = door::retire(&story.cluster, story.now, &admin(), &home, "moved").unwrap();
    assert_eq!(jobs.len(), 2);
    events.into_iter().for_each(|e| story.push(e));
    let now_at = &story.cluster.nodes[&node_id("n1")];
    assert!(now_at.condition(&gpu_id("n0", 0)).is_healthy());
    assert_eq!(story.cluster.timeline.home(&gpu_id("n0", 0)), Some(&node_id("n1")));
}

#[test]
fn a_node_that_burnt_down_is_retired_and_its_job_is_over() {
    let mut story = running(spec(1, 2));
    let node = node_id("n0");
    let refused = door::retire(&story.cluster, story.now, &admin(), &node, "fire").unwrap_err();
    assert!(refused.message.contains("is up"), "{refused}");
    story.pass(Millis::HOUR);
    while let Some(event) = due(&story.cluster, story.now, &Limits::default()).into_iter().next() {
        story.push(event);
    }
    assert_eq!(state(&story), JobState::Running, "nobody knows, so it is not said to be over");
    let (jobs, events) = door::retire(&story.cluster, story.now, &admin(), &node, "fire").unwrap();
    assert_eq!(jobs, [JobId(1)]);
    events.into_iter().for_each(|e| story.push(e));
    assert_eq!(state(&story), JobState::Lost);
    assert!(story.cluster.nodes.is_empty());
    assert_eq!(story.cluster.timeline.open_until(story.now).count(), 0);
    let charged: u64 = story
        .cluster
        .take_outbox()
        .closed
        .iter()
        .filter(|i| i.class.word() == "allocated")
        .map(|i| i.end.since(i.start).0)
        .sum();
    assert_eq!(charged, 0, "its team pays up to the last proof of life");
}

#[test]
fn a_gang_whose_last_node_only_said_that_its_tasks_have_ended_runs() {
    let mut story = Story::with_nodes(2, 2);
    story.submit(spec(2, 2));
    story.decide();
    let id = attempt(1, 1);
    for i in 0..2 {
        report(&mut story, i, u64::from(i) + 1, Report::Prepared { attempt: id, master_port: 1 });
    }
    report(&mut story, 0, 1, Report::Started { attempt: id });
    let limits = Limits::default();
    assert_eq!(due(&story.cluster, story.now, &limits), [], "one is missing");
    let end = TaskEnd::Exited { code: 0 };
    report(&mut story, 1, 2, Report::TaskEnded { attempt: id, rank: 1, end });
    let events = due(&story.cluster, story.now, &limits);
    assert_eq!(events, [Event::AttemptRunning { attempt: id }]);
    events.into_iter().for_each(|e| story.push(e));
    assert_eq!(state(&story), JobState::Running);
    story.pass(limits.launch);
    let silent = Limits { silent: Millis::DAY, ..limits };
    assert_eq!(due(&story.cluster, story.now, &silent), []);
}

#[test]
fn a_task_that_ended_before_a_restart_counts_as_started() {
    let mut story = Story::with_nodes(2, 2);
    story.submit(spec(2, 2));
    story.decide();
    let id = attempt(1, 1);
    for i in 0..2 {
        report(&mut story, i, u64::from(i) + 1, Report::Prepared { attempt: id, master_port: 1 });
    }
    report(&mut story, 1, 2, Report::Started { attempt: id });
    let end = TaskEnd::Exited { code: 0 };
    report(&mut story, 1, 2, Report::TaskEnded { attempt: id, rank: 1, end });
    report(&mut story, 1, 2, Report::Released { attempt: id, occupied: BTreeMap::new() });
    // A restart forgets who has said that its tasks were started.
    story.cluster.jobs.attempts.get_mut(&id).unwrap().started.clear();
    report(&mut story, 0, 1, Report::Started { attempt: id });
    assert_eq!(state(&story), JobState::Running);
}
