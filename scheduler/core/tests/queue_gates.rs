//! What keeps jobs from the order, and what lets them in: holds, begins, dependencies, namesakes,
//! arrays, reservations.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{Story, cases, spec};
use proptest::prelude::*;
use tessera_core::cluster::Cluster;
use tessera_core::event::Event;
use tessera_core::queue::{BOUND, gate};
use tessera_model::{
    Dependency, DependencyKind, JobChange, JobId, JobSpec, JobState, Millis, Reservation, Target,
    TaskEnd, TeamId, Tier, UnixMillis, UserId,
};

fn ada() -> UserId {
    UserId::parse("ada").unwrap()
}

const WELL: TaskEnd = TaskEnd::Exited { code: 0 };
const BADLY: TaskEnd = TaskEnd::Exited { code: 3 };

fn after(kind: DependencyKind, on: JobId) -> JobSpec {
    JobSpec { after: vec![Dependency { job: on, kind }], ..spec(1, 1) }
}

/// Jobs in the order.
fn order(story: &Story) -> Vec<u64> {
    story.cluster.jobs.in_order(story.now).map(|id| id.0).collect()
}

/// In one line what keeps a job out; empty when nothing does.
fn why(story: &Story, job: JobId) -> String {
    let known = story.cluster.jobs.get(job).unwrap();
    gate(&story.cluster, known).map(|r| r.to_string()).unwrap_or_default()
}

fn state(story: &Story, job: JobId) -> JobState {
    story.cluster.jobs.get(job).unwrap().state
}

fn array(story: &mut Story, spec: JobSpec, tasks: u32, throttle: u32) -> JobId {
    let first = JobId(story.cluster.next_job.max(1));
    let indices = (0..tasks).collect();
    story.push(Event::ArraySubmitted { first, key: None, spec: Arc::new(spec), indices, throttle });
    first
}

/// A job starts, runs and ends.
fn live(story: &mut Story, job: JobId, end: TaskEnd) {
    assert!(story.decide().contains(&job), "{job} does not start");
    story.run(job);
    story.end(job, end);
}

#[test]
fn a_held_job_waits_until_somebody_releases_it() {
    let mut story = Story::with_nodes(1, 8);
    let job = story.submit(JobSpec { hold: true, ..spec(1, 1) });
    assert_eq!(story.decide(), []);
    assert_eq!(why(&story, job), "is held back; `tessera release` lets it go");
    assert_eq!(story.cluster.jobs.get(job).unwrap().eligible_at, None);
    story.pass(Millis::HOUR);
    story.push(Event::JobReleased { job, by: ada() });
    assert_eq!(story.cluster.jobs.get(job).unwrap().eligible_at, Some(story.now));
    assert_eq!(story.decide(), [job]);
}

#[test]
fn time_alone_lets_a_job_begin() {
    let mut story = Story::with_nodes(1, 8);
    let begin = UnixMillis(5_000);
    let job = story.submit(JobSpec { begin: Some(begin), ..spec(1, 1) });
    let past = story.submit(JobSpec { begin: Some(UnixMillis(-1)), ..spec(1, 1) });
    story.due();
    assert_eq!(story.decide(), [past]);
    assert_eq!(why(&story, job), format!("is not to begin before {begin}"));
    assert_eq!(story.cluster.jobs.next_wake(), Some(begin));
    story.pass(Millis(5_000));
    story.due();
    assert_eq!(story.journal.last().unwrap().event, Event::TimePassed);
    assert_eq!(story.decide(), [job]);
    // Nothing is due a second time.
    let events = story.journal.len();
    story.due();
    assert_eq!(story.journal.len(), events);
}

#[test]
fn a_chain_goes_link_by_link() {
    let mut story = Story::with_nodes(4, 8);
    let a = story.submit(spec(1, 1));
    let b = story.submit(after(DependencyKind::AfterOk, a));
    let c = story.submit(after(DependencyKind::AfterOk, b));
    assert_eq!(order(&story), [a.0]);
    assert_eq!(why(&story, c), format!("waits until job {b} has succeeded"));
    for job in [a, b, c] {
        live(&mut story, job, WELL);
    }
    assert_eq!(state(&story, c), JobState::Succeeded);
}

#[test]
fn what_depends_on_the_success_of_a_failed_job_ends_with_it_down_the_chain() {
    let mut story = Story::with_nodes(4, 8);
    let a = story.submit(spec(1, 1));
    let b = story.submit(after(DependencyKind::AfterOk, a));
    let c = story.submit(after(DependencyKind::AfterOk, b));
    let clean_up = story.submit(after(DependencyKind::AfterAny, c));
    let alarm = story.submit(after(DependencyKind::AfterNotOk, a));
    live(&mut story, a, BADLY);
    for (job, on) in [(b, a), (c, b)] {
        let job = story.cluster.jobs.get(job).unwrap();
        assert_eq!(job.state, JobState::Cancelled);
        let text =
            format!("can never start: it was to run afterok of job {on}, which ended otherwise");
        assert_eq!(job.outcome, text);
        assert_eq!(job.ended_at, Some(story.now));
    }
    let started: BTreeSet<JobId> = story.decide().into_iter().collect();
    assert_eq!(started, BTreeSet::from([clean_up, alarm]));
}

#[test]
fn each_kind_of_dependency_is_met_by_what_it_says() {
    use DependencyKind::*;
    // What became of the first job; which dependents may go, and which can never.
    type Case<'a> = (&'a str, Option<TaskEnd>, &'a [DependencyKind], &'a [DependencyKind]);
    let cases: [Case; 3] = [
        ("it runs", None, &[After], &[]),
        ("it succeeded", Some(WELL), &[AfterOk, AfterAny, After], &[AfterNotOk]),
        ("it failed", Some(BADLY), &[AfterAny, AfterNotOk, After], &[AfterOk]),
    ];
    for (name, end, go, never) in cases {
        let mut story = Story::with_nodes(4, 8);
        let first = story.submit(spec(1, 1));
        let before: Vec<(DependencyKind, JobId)> =
            DependencyKind::ALL.into_iter().map(|k| (k, story.submit(after(k, first)))).collect();
        story.decide();
        story.run(first);
        if let Some(end) = end {
            story.end(first, end);
        }
        // It makes no difference whether the dependent came before or after.
        let late: Vec<(DependencyKind, JobId)> =
            DependencyKind::ALL.into_iter().map(|k| (k, story.submit(after(k, first)))).collect();
        for (kind, job) in before.into_iter().chain(late) {
            let known = story.cluster.jobs.get(job).unwrap();
            let eligible = known.state == JobState::Pending && why(&story, job).is_empty();
            assert_eq!(eligible, go.contains(&kind), "{name}: {}", kind.word());
            let ended = known.state == JobState::Cancelled;
            assert_eq!(ended, never.contains(&kind), "{name}: {}", kind.word());
        }
    }
}

#[test]
fn a_dependency_on_an_array_is_on_all_its_tasks() {
    let mut story = Story::with_nodes(1, 8);
    let tasks = array(&mut story, spec(1, 1), 3, 0);
    let well = story.submit(after(DependencyKind::AfterOk, tasks));
    let over = story.submit(after(DependencyKind::AfterAny, tasks));
    let begun = story.submit(after(DependencyKind::After, tasks));
    let failed = story.submit(after(DependencyKind::AfterNotOk, tasks));
    assert_eq!(story.decide().len(), 3);
    for task in 0..3 {
        assert!(!order(&story).contains(&begun.0), "a task still waits");
        story.run(JobId(tasks.0 + task));
    }
    assert!(order(&story).contains(&begun.0));
    story.end(tasks, WELL);
    story.end(JobId(tasks.0 + 2), WELL);
    assert!(!order(&story).contains(&over.0));
    story.end(JobId(tasks.0 + 1), BADLY);
    assert_eq!(order(&story), [over.0, begun.0, failed.0]);
    assert_eq!(state(&story, well), JobState::Cancelled);
}

#[test]
fn an_array_runs_so_many_tasks_at_once_as_it_says() {
    let mut story = Story::with_nodes(4, 8);
    let tasks = array(&mut story, spec(1, 1), 100, 5);
    let task = |n: u64| JobId(tasks.0 + n);
    assert_eq!(story.decide(), (0..5).map(task).collect::<Vec<_>>());
    assert_eq!(
        why(&story, task(50)),
        format!("waits while 5 tasks of array {tasks} run or go first, as many as may")
    );
    assert_eq!(story.cluster.jobs.eligible_len(), 0);
    story.run(task(2));
    story.end(task(2), WELL);
    assert_eq!(order(&story), [task(5).0]);
    // A task that is held leaves its turn to the next, and takes it again when it is released.
    story.push(Event::JobHeld { job: task(5), by: ada() });
    assert_eq!(order(&story), [task(6).0]);
    story.push(Event::JobReleased { job: task(5), by: ada() });
    assert_eq!(order(&story), [task(5).0]);
    // The throttle may be changed while it runs, both ways.
    let throttle = |n| JobChange { throttle: Some(n), ..JobChange::default() };
    story.push(Event::JobUpdated { job: tasks, change: throttle(8), by: ada() });
    assert_eq!(order(&story), (5..9).map(|n| task(n).0).collect::<Vec<_>>());
    story.push(Event::JobUpdated { job: tasks, change: throttle(2), by: ada() });
    assert_eq!(order(&story), [0u64; 0]);
    story.push(Event::JobUpdated { job: tasks, change: throttle(0), by: ada() });
    assert_eq!(story.cluster.jobs.eligible_len(), 95);
}

#[test]
fn tasks_of_an_array_share_their_spec_and_its_bytes_are_counted_once() {
    let mut story = Story::default();
    let mut big = spec(1, 1);
    big.program.script = Some("x".repeat(10_000));
    let bytes = big.program.bytes();
    let tasks = array(&mut story, big, 50, 2);
    let specs: Vec<_> = story.cluster.jobs.tasks_of(tasks).map(|t| Arc::as_ptr(&t.spec)).collect();
    assert_eq!(specs.len(), 50);
    assert!(specs.iter().all(|s| *s == specs[0]));
    assert_eq!(story.cluster.jobs.queue_bytes(), bytes);
    for n in 0..50 {
        story.push(Event::CancelRequested { job: JobId(tasks.0 + n), by: ada() });
    }
    assert_eq!(story.cluster.jobs.queue_bytes(), 0);
    assert_eq!(story.cluster.jobs.tasks_of(tasks).count(), 0);
}

#[test]
fn a_singleton_runs_alone_of_its_name_and_user() {
    let mut story = Story::with_nodes(4, 8);
    let one = JobSpec { singleton: true, ..spec(1, 1) };
    let first = story.submit(one.clone());
    let second = story.submit(one.clone());
    let other_name = story.submit(JobSpec { name: "eval".to_owned(), ..one.clone() });
    let other_user = story.submit(JobSpec { user: UserId::parse("bob").unwrap(), ..one.clone() });
    let started: BTreeSet<JobId> = story.decide().into_iter().collect();
    assert_eq!(started, BTreeSet::from([first, other_name, other_user]));
    assert_eq!(why(&story, second), format!("waits for job {first} of the same name and user"));
    // A namesake that is no singleton starts whenever it likes, and keeps the singleton waiting.
    let plain = story.submit(spec(1, 1));
    assert_eq!(story.decide(), [plain]);
    story.run(first);
    story.end(first, WELL);
    assert_eq!(story.decide(), []);
    story.run(plain);
    story.end(plain, WELL);
    assert_eq!(story.decide(), [second]);
}

#[test]
fn a_singleton_and_its_namesake_do_not_start_in_the_same_round() {
    let mut story = Story::with_nodes(4, 8);
    let plain = story.submit(JobSpec { time_limit: Some(Millis::HOUR), ..spec(1, 1) });
    let single = story.submit(JobSpec { singleton: true, ..spec(1, 1) });
    assert_eq!(story.decide(), [plain]);
    assert_eq!(state(&story, single), JobState::Pending);
}

fn reservation(from: i64, until: i64) -> Reservation {
    Reservation {
        name: "course".to_owned(),
        teams: vec![TeamId::parse("nlp").unwrap()],
        target: Target::Nodes { nodes: [common::node_id("n0")].into() },
        from: UnixMillis(from),
        until: UnixMillis(until),
        owner: ada(),
        reason: "a course".to_owned(),
    }
}

#[test]
fn a_job_for_a_reservation_waits_for_it_to_open_and_not_for_ever_in_the_way() {
    let mut story = Story::with_nodes(1, 8);
    story.push(Event::ReservationMade { reservation: reservation(1_000, 9_000) });
    let job = story.submit(JobSpec { reservation: Some("course".to_owned()), ..spec(1, 1) });
    let closed = "wants to run in the reservation course, which is not open";
    assert_eq!(why(&story, job), closed);
    story.pass(Millis(1_000));
    story.due();
    assert_eq!(order(&story), [job.0]);
    let after = story.submit(after(DependencyKind::AfterAny, job));
    // Once it is over those that have not started never can, and nobody waits for them.
    story.push(Event::ReservationEnded { name: "course".to_owned(), by: None });
    let job = story.cluster.jobs.get(job).unwrap();
    assert_eq!(job.state, JobState::Cancelled);
    let text = "can never start: the reservation course that it was to run in has ended";
    assert_eq!(job.outcome, text);
    assert_eq!(order(&story), [after.0]);
}

#[test]
fn a_failed_start_costs_a_job_nothing_of_the_time_it_has_waited() {
    let mut story = Story::with_nodes(1, 1);
    let first = story.submit(spec(1, 1));
    story.decide();
    // Teams meet by the time for which their jobs count, and for so long nobody is passed.
    story.pass(Millis(BOUND.0 + Millis::HOUR.0));
    let other = TeamId::parse("vision").unwrap();
    let second = story.submit(JobSpec { team: other, ..spec(1, 1) });
    let attempt = story.attempt_of(first);
    let why = tessera_core::event::StopWhy::LaunchTimeout { missing: Vec::new() };
    story.push(Event::AttemptStopping { attempt, why });
    let (node, occupied) = (common::node_id("n0"), Default::default());
    story.push(Event::PlaceReleased { attempt, node, occupied });
    assert_eq!(order(&story), [second.0]);
    let text = serde_json::to_string(&story.cluster).unwrap();
    let read: Cluster = serde_json::from_str(&text).unwrap();
    story.cluster = read.restored(story.now);
    story.pass(Millis::from_secs(120));
    story.due();
    assert_eq!(order(&story), [first.0, second.0]);
}

#[test]
fn an_update_moves_a_job_in_the_order() {
    let mut story = Story::default();
    let first = story.submit(spec(1, 1));
    let second = story.submit(spec(1, 1));
    assert_eq!(order(&story), [first.0, second.0]);
    let change = JobChange { priority: Some(5), ..JobChange::default() };
    story.push(Event::JobUpdated { job: second, change, by: ada() });
    assert_eq!(order(&story), [second.0, first.0]);
    let change = JobChange { tier: Some(Tier::Urgent), ..JobChange::default() };
    story.push(Event::JobUpdated { job: first, change, by: ada() });
    assert_eq!(order(&story), [first.0, second.0]);
    assert_eq!(story.cluster.jobs.position(second), Some(2));
    let on = Dependency { job: second, kind: DependencyKind::AfterAny };
    let change = JobChange { after: Some(vec![on]), ..JobChange::default() };
    story.push(Event::JobUpdated { job: first, change, by: ada() });
    assert_eq!(order(&story), [second.0]);
    assert_eq!(story.cluster.jobs.position(first), None);
    let change = JobChange { after: Some(Vec::new()), ..JobChange::default() };
    story.push(Event::JobUpdated { job: first, change, by: ada() });
    assert_eq!(order(&story), [first.0, second.0]);
}

#[test]
fn a_job_that_has_to_start_again_takes_the_turn_it_had() {
    let mut story = Story::with_nodes(1, 1);
    let first = story.submit(spec(1, 1));
    story.decide();
    story.pass(Millis::HOUR);
    let second = story.submit(spec(1, 1));
    // Its node never answers: the start has failed, and it is tried again.
    story.pass(Millis::from_secs(120));
    let attempt = story.attempt_of(first);
    let why = tessera_core::event::StopWhy::LaunchTimeout { missing: Vec::new() };
    story.push(Event::AttemptStopping { attempt, why });
    let (node, occupied) = (common::node_id("n0"), Default::default());
    story.push(Event::PlaceReleased { attempt, node, occupied });
    assert_eq!(order(&story), [second.0]);
    story.pass(Millis::from_secs(120));
    story.due();
    assert_eq!(order(&story), [first.0, second.0]);
}

#[derive(Debug, Clone)]
enum Step {
    Submit { after: u8, kind: u8, singleton: bool, hold: bool, begin: u8, name: u8 },
    Array { tasks: u8, throttle: u8 },
    Hold(u8),
    Release(u8),
    Cancel(u8),
    Update { job: u8, priority: i8, after: u8, throttle: u8 },
    Round,
    End { job: u8, well: bool },
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), 0..4u8, any::<bool>(), prop::bool::weighted(0.2), 0..60u8, 0..3u8).prop_map(
            |(after, kind, singleton, hold, begin, name)| Step::Submit { after, kind, singleton, hold, begin, name }
        ),
        1 => (1..12u8, 0..4u8).prop_map(|(tasks, throttle)| Step::Array { tasks, throttle }),
        1 => any::<u8>().prop_map(Step::Hold),
        2 => any::<u8>().prop_map(Step::Release),
        1 => any::<u8>().prop_map(Step::Cancel),
        2 => (any::<u8>(), -3..3i8, any::<u8>(), 0..4u8)
            .prop_map(|(job, priority, after, throttle)| Step::Update { job, priority, after, throttle }),
        4 => Just(Step::Round),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(job, well)| Step::End { job, well }),
        2 => (0..90u8).prop_map(Step::Pass),
    ]
}

/// One of the jobs there are.
fn some(story: &Story, pick: u8) -> Option<JobId> {
    let count = story.cluster.jobs.jobs.len();
    let nth = usize::from(pick) % count.max(1);
    story.cluster.jobs.jobs.keys().nth(nth).copied()
}

fn go(story: &mut Story, step: &Step) {
    let by = ada();
    match *step {
        Step::Submit { after, kind, singleton, hold, begin, name } => {
            let on = some(story, after).filter(|_| after > 100);
            let kind = DependencyKind::ALL[usize::from(kind)];
            let after = on.map(|job| Dependency { job, kind }).into_iter().collect();
            let begin = (begin > 40).then(|| story.now.plus(Millis::from_secs(begin.into())));
            let name = format!("n{name}");
            story.submit(JobSpec { after, singleton, hold, begin, name, ..spec(1, 1) });
        }
        Step::Array { tasks, throttle } => {
            array(story, spec(1, 1), tasks.into(), throttle.into());
        }
        Step::Hold(pick) => some(story, pick).into_iter().for_each(|job| {
            if state(story, job) == JobState::Pending {
                story.push(Event::JobHeld { job, by: by.clone() });
            }
        }),
        Step::Release(pick) => some(story, pick)
            .into_iter()
            .for_each(|job| story.push(Event::JobReleased { job, by: by.clone() })),
        Step::Cancel(pick) => some(story, pick)
            .into_iter()
            .for_each(|job| story.push(Event::CancelRequested { job, by: by.clone() })),
        Step::Update { job, priority, after, throttle } => {
            let Some(job) = some(story, job).filter(|j| state(story, *j) == JobState::Pending)
            else {
                return;
            };
            // Only on earlier ones, so that no cycle comes about.
            let on = some(story, after).filter(|on| *on < job && after < 80);
            let after = on.map(|job| vec![Dependency { job, kind: DependencyKind::AfterAny }]);
            let is_task = story.cluster.jobs.get(job).unwrap().array.is_some();
            let throttle = is_task.then_some(throttle.into());
            let change = JobChange {
                priority: Some(priority.into()),
                after,
                throttle,
                ..JobChange::default()
            };
            story.push(Event::JobUpdated { job, change, by });
        }
        Step::Round => {
            for job in story.decide() {
                story.run(job);
            }
        }
        Step::End { job, well } => {
            let running: Vec<JobId> = story.cluster.jobs.attempts.keys().map(|a| a.job).collect();
            if let Some(job) = running.get(usize::from(job) % running.len().max(1)) {
                story.end(*job, if well { WELL } else { BADLY });
            }
        }
        Step::Pass(secs) => {
            story.pass(Millis::from_secs(secs.into()));
            for node in ["n0", "n1"] {
                story.push(Event::NodeHeard { node: common::node_id(node) });
            }
            story.due();
        }
    }
}

/// Every waiting job is in one place, and what it may not do it does not.
fn check(story: &Story) -> Result<(), TestCaseError> {
    let jobs = &story.cluster.jobs;
    let standing: Vec<JobId> = jobs.in_order(story.now).collect();
    let parked: BTreeSet<JobId> = jobs.parked().collect();
    let waiting: BTreeSet<JobId> =
        jobs.jobs.values().filter(|j| j.state == JobState::Pending).map(|j| j.id).collect();
    let both: BTreeSet<JobId> = standing.iter().copied().chain(parked.iter().copied()).collect();
    prop_assert_eq!(&both, &waiting);
    prop_assert_eq!(standing.len() + parked.len(), waiting.len());
    prop_assert_eq!(jobs.queue_len(), waiting.len());
    prop_assert_eq!(jobs.eligible_len(), standing.len());
    for id in &standing {
        let job = jobs.get(*id).unwrap();
        prop_assert!(!job.held && job.eligible_at.is_some() && jobs.unmet(*id).is_empty());
        prop_assert!(job.spec.begin.is_none_or(|b| b <= story.now));
    }
    for id in &parked {
        prop_assert!(
            gate(&story.cluster, jobs.get(*id).unwrap()).is_some(),
            "{} has no reason",
            id
        );
    }
    let active =
        |j: &&tessera_core::job_table::Job| j.state != JobState::Pending && !j.state.is_terminal();
    let arrays: BTreeSet<JobId> = jobs.jobs.values().filter_map(|j| Some(j.array?.array)).collect();
    for id in arrays {
        let array = jobs.array(id).unwrap();
        let of = |j: &&tessera_core::job_table::Job| j.array.is_some_and(|t| t.array == id);
        let ready = standing.iter().filter(|s| of(&jobs.get(**s).unwrap())).count();
        let under_way = jobs.jobs.values().filter(of).filter(active).count();
        let throttle = array.throttle as usize;
        prop_assert!(throttle == 0 || ready == 0 || ready + under_way <= throttle);
        let over = jobs.jobs.values().filter(of).filter(|j| j.state.is_terminal()).count();
        prop_assert_eq!(array.ended as usize, over);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(60))]

    /// A random life of a queue: nothing is lost or let in too early, and a scheduler that starts
    /// from the snapshot goes on exactly like the one that wrote it.
    #[test]
    fn a_queue_keeps_its_rules_and_survives_a_restart(steps in prop::collection::vec(step(), 1..60)) {
        let mut story = Story::with_nodes(2, 4);
        for step in &steps {
            go(&mut story, step);
            check(&story)?;
        }
        let mut replayed = Cluster::default();
        story.journal.iter().for_each(|event| replayed.apply(event));
        let text = serde_json::to_string(&story.cluster).unwrap();
        prop_assert_eq!(&serde_json::to_string(&replayed).unwrap(), &text);
        let read: Cluster = serde_json::from_str(&text).unwrap();
        let read = read.restored(story.now);
        let order = |c: &Cluster| c.jobs.in_order(story.now).collect::<Vec<_>>();
        prop_assert_eq!(order(&read), order(&story.cluster));
        prop_assert_eq!(&read.jobs, &story.cluster.jobs);
        // To make the indexes once more changes nothing.
        prop_assert_eq!(&story.cluster.clone().restored(story.now).jobs, &story.cluster.jobs);
    }
}
