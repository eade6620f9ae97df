//! What people may ask of the queue, and how each no reads.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Story, node_id, spec};
use tessera_core::door;
use tessera_core::event::Event;
use tessera_model::{
    AtMost, Cell, CheckpointPlan, Dependency, DependencyKind, DomainMark, Gang, JobChange, JobId,
    JobRole, JobSpec, JobState, LabelOp, LabelRule, Millis, NodeId, Placement, Principal, Quota,
    Refusal, Reservation, Role, Slice, Spread, Strength, Target, TaskEnd, TeamId, TeamShare, Tier,
    Topology, UnixMillis, UserId, Within,
};

fn who(user: &str, role: Role) -> Principal {
    let teams = vec![TeamId::parse("nlp").unwrap()];
    Principal { user: UserId::parse(user).unwrap(), role, teams, unix: None }
}

fn ada() -> Principal {
    who("ada", Role::Member)
}

fn operator() -> Principal {
    who("olga", Role::Operator)
}

fn admin() -> Principal {
    who("root", Role::Admin)
}

fn team(name: &str) -> TeamId {
    TeamId::parse(name).unwrap()
}

/// Eight nodes of eight GPUs, in leaves of two and blocks of four, and two teams.
fn cluster() -> Story {
    let mut story = Story::with_nodes(8, 8);
    let path = |i: u32| vec![format!("b{}", i / 4), format!("l{}", i / 2)];
    let nodes: BTreeMap<NodeId, Vec<String>> =
        (0..8).map(|i| (node_id(&format!("n{i}")), path(i))).collect();
    let topology = Topology::net(vec!["block".to_owned(), "leaf".to_owned()], nodes);
    story.push(Event::TopologyLoaded { topology });
    for name in ["nlp", "vision", "lab"] {
        let (team, by) = (team(name), admin().user);
        story.push(Event::TeamCreated { team, description: String::new(), by });
    }
    story
}

/// `field: message | hint`
fn words(no: &Refusal) -> String {
    format!("{}: {} | {}", no.field, no.message, no.hint)
}

fn refused<T: std::fmt::Debug>(name: &str, answer: Result<T, Refusal>, want: &str) {
    let no = answer.expect_err(name);
    assert_eq!(words(&no), want, "{name}");
}

fn within(level: &str, strength: Strength) -> Within {
    Within { level: level.to_owned(), strength }
}

fn slice(nodes: u32, level: &str) -> Slice {
    Slice { nodes, level: level.to_owned(), strength: Strength::Required }
}

fn rule(key: &str, op: LabelOp, values: &[&str]) -> LabelRule {
    LabelRule { key: key.to_owned(), op, values: values.iter().map(|v| (*v).to_owned()).collect() }
}

#[test]
fn what_contradicts_itself_is_refused_at_the_door() {
    use Strength::*;
    let story = cluster();
    type Change = fn(&mut JobSpec);
    let cases: [(&str, Change, &str); 31] = [
        (
            "a level no map has",
            |s| s.placement.within = vec![within("leav", Required)],
            "placement: the topology has no level \"leav\" | did you mean leaf?",
        ),
        (
            "a level inside a node",
            |s| s.placement.within = vec![within("node", Required)],
            "placement: the topology has no level \"node\" | levels are above nodes; `--nodes 1` keeps a job in one node",
        ),
        (
            "a level like nothing",
            |s| s.placement.balance = Some("warehouse".to_owned()),
            "placement: the topology has no level \"warehouse\" | there are: block, leaf",
        ),
        (
            "a slice that does not divide the gang",
            |s| s.placement.slices = vec![slice(3, "leaf")],
            "placement.slices: slices of 3 nodes do not divide 8 nodes | these divide them: 1, 2, 4, 8",
        ),
        (
            "a slice of nothing",
            |s| s.placement.slices = vec![slice(0, "leaf")],
            "placement.slices: slices of 0 nodes do not divide 8 nodes | these divide them: 1, 2, 4, 8",
        ),
        (
            "a slice that does not divide the wider one",
            |s| s.placement.slices = vec![slice(4, "block"), slice(3, "leaf")],
            "placement.slices: slices of 3 nodes do not divide slices of 4 nodes | these divide them: 1, 2, 4",
        ),
        (
            "slices in the wrong order",
            |s| s.placement.slices = vec![slice(4, "leaf"), slice(2, "block")],
            "placement.slices: slices of 4 nodes in one leaf cannot hold slices in one block, which is no narrower | write the widest level and the largest slices first",
        ),
        (
            "at most none",
            |s| s.placement.at_most = vec![AtMost { level: "leaf".to_owned(), domains: 0 }],
            "placement.at_most: at most 0 domains of leaf leaves no room | ask for 1 or more",
        ),
        (
            "two bounds on one level",
            |s| {
                s.placement.at_most =
                    [1, 2].map(|domains| AtMost { level: "leaf".to_owned(), domains }).into()
            },
            "placement.at_most: two different bounds on domains of leaf | give one",
        ),
        (
            "a spread without skew",
            |s| s.placement.spread = vec![Spread { level: "leaf".to_owned(), max_skew: 0 }],
            "placement.spread: a spread over leaf with a skew of 0 | the skew is at least 1; `--balance` asks for the same number in each",
        ),
        (
            "spread and together",
            |s| {
                s.placement.within = vec![within("leaf", Required)];
                s.placement.spread = vec![Spread { level: "leaf".to_owned(), max_skew: 1 }];
            },
            "placement.spread: the gang is to be spread over leaf and to stay in one | leave one of the two out",
        ),
        (
            "patience for nothing",
            |s| {
                s.placement.within = vec![within("leaf", Required)];
                s.placement.patience = Some(Millis::HOUR);
            },
            "placement.patience: there is nothing preferred that the job could have patience for | make a level preferred, or leave the patience out",
        ),
        (
            "a label without values",
            |s| s.placement.labels = vec![rule("zone", LabelOp::In, &[])],
            "placement.labels: the rule on zone has no values | `zone=VALUE`",
        ),
        (
            "a label asked for and excluded",
            |s| {
                s.placement.labels = vec![
                    rule("zone", LabelOp::In, &["a"]),
                    rule("zone", LabelOp::NotIn, &["a", "b"]),
                ];
            },
            "placement.labels: no node can fulfil all that is asked of the label zone | nodes have to fulfil every rule; leave one out",
        ),
        (
            "a label that is to be there and not",
            |s| {
                s.placement.labels =
                    vec![rule("zone", LabelOp::Exists, &[]), rule("zone", LabelOp::Absent, &[])];
            },
            "placement.labels: no node can fulfil all that is asked of the label zone | nodes have to fulfil every rule; leave one out",
        ),
        (
            "a node nobody knows",
            |s| s.placement.exclude = BTreeSet::from([node_id("n9")]),
            "placement.exclude: there is no node n9 | did you mean n0?",
        ),
        (
            "a node asked for and excluded",
            |s| {
                s.gang.nodes = 1;
                s.placement.only = BTreeSet::from([node_id("n1")]);
                s.placement.exclude = BTreeSet::from([node_id("n1")]);
            },
            "placement.exclude: n1 is both asked for and excluded | leave it out of one of the two",
        ),
        (
            "fewer nodes listed than needed",
            |s| s.placement.only = BTreeSet::from([node_id("n1")]),
            "placement.only: 8 nodes cannot be found among the 1 listed | list more nodes, or ask for fewer",
        ),
        (
            "more at least than at most",
            |s| s.min_nodes = Some(9),
            "min_nodes: at least 9 of 8 nodes is impossible | 1 to 8 is possible",
        ),
        (
            "an elastic gang that breaks its slices",
            |s| {
                s.placement.slices = vec![slice(4, "block")];
                s.min_nodes = Some(6);
            },
            "min_nodes: slices of 4 nodes do not divide 6 nodes | ask for a multiple of 4 nodes at least",
        ),
        (
            "spares for a share",
            |s| {
                s.gang = Gang { nodes: 1, gpus_per_node: 1, gpu_milli: 500, ..s.gang.clone() };
                s.spares = 1;
            },
            "spares: a job on a share of a GPU cannot have spare nodes | leave the spares out, or ask for whole GPUs",
        ),
        (
            "a share of several GPUs",
            |s| s.gang.gpu_milli = 500,
            "gpu_milli: a share of a GPU is of one GPU on one node, the gang has 8 nodes with 8 each | ask for one GPU on one node, or for whole GPUs",
        ),
        (
            "more than a whole GPU",
            |s| s.gang.gpu_milli = 1_001,
            "gpu_milli: 1001 thousandths of a GPU is out of range | 1 to 1000 is possible; 1000 is a whole GPU",
        ),
        (
            "a role without a name",
            |s| {
                s.roles = vec![JobRole {
                    name: "a b".to_owned(),
                    gang: s.gang.clone(),
                    placement: Placement::default(),
                }]
            },
            "roles.name: \"a b\" is no name for a role | 1 to 63 letters, digits, - and _ make a name",
        ),
        (
            "a role's own placement",
            |s| {
                let placement =
                    Placement { slices: vec![slice(5, "leaf")], ..Placement::default() };
                s.roles = vec![JobRole { name: "ps".to_owned(), gang: s.gang.clone(), placement }];
            },
            "roles.ps.placement.slices: slices of 5 nodes do not divide 8 nodes | these divide them: 1, 2, 4, 8",
        ),
        (
            "movable but not to be stopped",
            |s| {
                s.checkpoint = Some(CheckpointPlan {
                    signal: None,
                    notice: Millis(0),
                    restart_cost: Millis(0),
                    file: None,
                    migratable: true,
                });
            },
            "checkpoint.migratable: a job that may be moved has to be one that may be stopped and started again | add `--requeue`",
        ),
        (
            "a file somewhere else",
            |s| {
                s.checkpoint = Some(CheckpointPlan {
                    signal: None,
                    notice: Millis(0),
                    restart_cost: Millis(0),
                    file: Some("../x".to_owned()),
                    migratable: false,
                });
            },
            "checkpoint.file: the checkpoint file \"../x\" is not inside the working directory | give a path relative to the working directory",
        ),
        (
            "a reservation nobody made",
            |s| s.reservation = Some("course".to_owned()),
            "reservation: there is no reservation \"course\" | `tessera reserve list` shows those there are",
        ),
        (
            "a job that never was",
            |s| s.after = vec![Dependency { job: JobId(99), kind: DependencyKind::AfterOk }],
            "after: there is no job 99 that you may see | a job can depend on jobs that were submitted before it",
        ),
        (
            "a begin in ten years",
            |s| s.begin = Some(UnixMillis(10 * 366 * 86_400_000)),
            "begin: the begin 1980-01-09T00:00:00Z is more than 366 days ahead | choose an earlier instant",
        ),
        (
            "no time at all",
            |s| s.time_limit = Some(Millis(0)),
            "time_limit: the time limit is 0 | leave it out, or give it time to run",
        ),
    ];
    for (name, change, want) in cases {
        let mut job = spec(8, 8);
        change(&mut job);
        refused(name, door::submit(&story.cluster, story.now, &ada(), job, ""), want);
    }
}

#[test]
fn what_only_sounds_like_a_contradiction_is_taken() {
    use Strength::*;
    let story = cluster();
    type Change = fn(&mut JobSpec);
    let cases: [(&str, Change); 6] = [
        ("nested slices", |s| s.placement.slices = vec![slice(4, "block"), slice(2, "leaf")]),
        ("a begin that has passed", |s| s.begin = Some(UnixMillis(-1))),
        ("patience for what is preferred", |s| {
            s.placement.within = vec![within("block", Preferred)];
            s.placement.patience = Some(Millis::HOUR);
        }),
        ("spread over what is only preferred", |s| {
            s.placement.within = vec![within("leaf", Preferred)];
            s.placement.spread = vec![Spread { level: "leaf".to_owned(), max_skew: 1 }];
        }),
        ("two values, one of them excluded", |s| {
            s.placement.labels =
                vec![rule("z", LabelOp::In, &["a", "b"]), rule("z", LabelOp::NotIn, &["b"])];
        }),
        ("fewer nodes if need be", |s| s.min_nodes = Some(2)),
    ];
    for (name, change) in cases {
        let mut job = spec(8, 8);
        change(&mut job);
        let answer = door::submit(&story.cluster, story.now, &ada(), job, "");
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
    // What is too large for the cluster is taken, too, and said.
    let (submitted, _) = door::submit(&story.cluster, story.now, &ada(), spec(9, 8), "").unwrap();
    assert_eq!(submitted.warnings.len(), 1);
}

#[test]
fn a_turn_before_others_is_not_for_everybody() {
    let story = cluster();
    let urgent = JobSpec { tier: Tier::Urgent, ..spec(1, 1) };
    let first = JobSpec { priority: 1, ..spec(1, 1) };
    let submit = |who: &Principal, spec: &JobSpec| {
        door::submit(&story.cluster, story.now, who, spec.clone(), "").map(|_| ())
    };
    refused(
        "urgent",
        submit(&ada(), &urgent),
        ": ada has the role member and may not put a job into the tier urgent | ask an admin of the team or an operator; lowering the priority is free",
    );
    refused(
        "priority",
        submit(&ada(), &first),
        ": ada has the role member and may not raise a job's priority above 0 | ask an admin of the team or an operator; lowering the priority is free",
    );
    refused(
        "far too high",
        submit(&admin(), &JobSpec { priority: 1_001, ..spec(1, 1) }),
        "priority: the priority 1001 is out of range | -1000 to 1000 is possible",
    );
    for chief in [who("ada", Role::TeamAdmin), operator(), admin()] {
        assert_eq!((submit(&chief, &urgent), submit(&chief, &first)), (Ok(()), Ok(())));
    }
    assert_eq!(submit(&ada(), &JobSpec { priority: -5, tier: Tier::Idle, ..spec(1, 1) }), Ok(()));
}

#[test]
fn arrays_are_counted_before_anything_is_made() {
    let mut story = cluster();
    refused(
        "four billion",
        door::expand(&[(0, u32::MAX, 1)]),
        "array: the array has 4294967296 tasks, at most 100000 are possible | let each task do more, or submit several arrays one after the other",
    );
    refused(
        "backwards",
        door::expand(&[(9, 0, 1)]),
        "array: 9-0:1 is no range of indices | write the smaller index first, and a step of at least 1: `0-99:2`",
    );
    refused(
        "no step",
        door::expand(&[(0, 9, 0)]),
        "array: 0-9:0 is no range of indices | write the smaller index first, and a step of at least 1: `0-99:2`",
    );
    assert_eq!(door::expand(&[(10, 20, 5), (0, 2, 1)]).unwrap(), [0, 1, 2, 10, 15, 20]);
    let submit = |story: &Story, indices: Vec<u32>, key: &str| {
        door::submit_array(&story.cluster, story.now, &ada(), spec(1, 1), key, indices, 2)
    };
    refused(
        "twice",
        submit(&story, vec![1, 1], ""),
        "array: the index 1 is there twice | give each index once, in order: `--array 0-9,20`",
    );
    refused(
        "none",
        submit(&story, vec![], ""),
        "array: the array has no tasks | give each index once, in order: `--array 0-9,20`",
    );
    let (first, events) = submit(&story, vec![3, 5, 8], "k").unwrap();
    events.into_iter().for_each(|e| story.push(e));
    assert_eq!(story.cluster.jobs.queue_len(), 3);
    // The same again is the same array, another one is refused.
    let (again, events) = submit(&story, vec![3, 5, 8], "k").unwrap();
    assert_eq!((again.job, again.existing, events.len()), (first.job, true, 0));
    refused(
        "another",
        submit(&story, vec![3, 5], "k"),
        "idempotency_key: the key \"k\" was used for job 1, which is a different one | use a new key for a new job",
    );
    // What an array's id means.
    let tasks = |index, only| door::tasks(&story.cluster, &ada(), first.job, index, only);
    assert_eq!(tasks(None, false), Ok(vec![JobId(1), JobId(2), JobId(3)]));
    assert_eq!(tasks(Some(8), false), Ok(vec![JobId(3)]));
    assert_eq!(tasks(None, true), Ok(vec![JobId(1)]));
    refused(
        "no such task",
        tasks(Some(4), false),
        "index: array 1 has no task 4, or it ended long ago | `tessera show 1` shows its tasks",
    );
    let stranger = Principal { teams: vec![], ..who("eve", Role::Member) };
    assert!(door::tasks(&story.cluster, &stranger, first.job, None, false).is_err());
}

#[test]
fn a_team_may_have_only_so_many_jobs_waiting() {
    let mut story = cluster();
    let indices: Vec<u32> = (0..60_000).collect();
    let submit = |story: &Story| {
        door::submit_array(&story.cluster, story.now, &ada(), spec(1, 1), "", indices.clone(), 10)
    };
    let (_, events) = submit(&story).unwrap();
    events.into_iter().for_each(|e| story.push(e));
    // Parked tasks count, and cost a round nothing.
    assert_eq!((story.cluster.jobs.queue_len(), story.cluster.jobs.eligible_len()), (60_000, 10));
    refused(
        "over",
        submit(&story),
        ": 60000 jobs of nlp wait already, with 60000 more it would be over 100000 | wait until some have started, or cancel some with `tessera cancel`",
    );
}

#[test]
fn an_array_whose_records_would_fill_the_disk_is_refused_before_it_is_written() {
    let story = cluster();
    let mut big = spec(1, 1);
    big.program.script = Some("#".repeat(1 << 20));
    big.program.argv.clear();
    big.program.env.clear();
    let submit = |tasks: u32| {
        let indices = (0..tasks).collect();
        door::submit_array(&story.cluster, story.now, &ada(), big.clone(), "", indices, 0)
    };
    assert!(submit(256).is_ok());
    refused(
        "too much",
        submit(257),
        "array: 257 tasks with 1048576 bytes of script and environment each take 257 MiB, at most 256 MiB are possible | put the script into a file that the tasks run, or submit arrays of up to 256 tasks",
    );
}

#[test]
fn hold_release_and_update_are_for_those_who_may() {
    let mut story = cluster();
    let job = story.submit(spec(1, 1));
    let bob = who("bob", Role::Member);
    refused(
        "not his",
        door::hold(&story.cluster, &bob, job),
        ": job 1 belongs to ada of team nlp | ask its owner, an admin of its team or an operator",
    );
    let (record, events) = door::hold(&story.cluster, &operator(), job).unwrap();
    assert!(record.held);
    events.into_iter().for_each(|e| story.push(e));
    assert_eq!(door::hold(&story.cluster, &ada(), job).unwrap().1, []);
    let (record, events) = door::release(&story.cluster, &ada(), job).unwrap();
    assert!(!record.held);
    events.into_iter().for_each(|e| story.push(e));

    let update = |story: &Story, who: &Principal, change| {
        door::update(&story.cluster, story.now, who, job, change)
    };
    let change = JobChange::default;
    refused(
        "nothing",
        update(&story, &ada(), change()),
        "change: there is nothing to change | say what, `--priority`, `--time`, `--nodes`, …",
    );
    refused(
        "no array",
        update(&story, &ada(), JobChange { throttle: Some(3), ..change() }),
        "throttle: job 1 is no task of an array | leave the throttle out",
    );
    refused(
        "more than a node",
        update(&story, &ada(), JobChange { nodes: Some(0), ..change() }),
        "nodes: the gang has no nodes | ask for 1 or more",
    );
    assert!(update(&story, &ada(), JobChange { priority: Some(1), ..change() }).is_err());
    let (record, events) =
        update(&story, &operator(), JobChange { priority: Some(7), nodes: Some(2), ..change() })
            .unwrap();
    assert_eq!((record.spec.priority, record.spec.gang.nodes), (7, 2));
    events.into_iter().for_each(|e| story.push(e));
    // Its owner may leave the priority where an operator put it, and lower it.
    assert!(update(&story, &ada(), JobChange { priority: Some(7), ..change() }).is_ok());
    assert!(update(&story, &ada(), JobChange { priority: Some(8), ..change() }).is_err());
    assert!(update(&story, &ada(), JobChange { priority: Some(0), ..change() }).is_ok());

    story.decide();
    story.run(job);
    refused(
        "it runs",
        update(&story, &operator(), JobChange { nodes: Some(3), ..change() }),
        "job: job 1 is running, only one that waits can be changed in that | `tessera cancel 1` stops it",
    );
    refused(
        "it runs",
        door::hold(&story.cluster, &ada(), job),
        "job: job 1 is running, only one that waits can be held back | `tessera cancel 1` stops it",
    );
}

#[test]
fn the_time_of_a_running_job_is_its_owners_to_shorten() {
    let mut story = cluster();
    let job = story.submit(JobSpec { time_limit: Some(Millis(10 * Millis::HOUR.0)), ..spec(1, 1) });
    story.decide();
    story.run(job);
    story.pass(Millis(2 * Millis::HOUR.0));
    let limit = |who: &Principal, hours: u64| {
        let change =
            JobChange { time_limit: Some(Millis(hours * Millis::HOUR.0)), ..JobChange::default() };
        door::update(&story.cluster, story.now, who, job, change).map(|(_, events)| events.len())
    };
    assert_eq!(limit(&ada(), 5), Ok(1));
    assert_eq!(limit(&operator(), 20), Ok(1));
    refused(
        "longer",
        limit(&ada(), 20),
        ": ada may shorten the time of a running job, not prolong it | ask an operator: others were promised its place",
    );
    refused(
        "over already",
        limit(&ada(), 1),
        "time_limit: job 1 has run for 2h already | give it more than that, or `tessera cancel 1`",
    );
}

#[test]
fn a_cycle_of_dependencies_is_refused() {
    let mut story = cluster();
    let on = |job| Dependency { job, kind: DependencyKind::AfterAny };
    let a = story.submit(spec(1, 1));
    let b = story.submit(JobSpec { after: vec![on(a)], ..spec(1, 1) });
    let c = story.submit(JobSpec { after: vec![on(b)], ..spec(1, 1) });
    let first = JobId(story.cluster.next_job);
    let spec_of_tasks = std::sync::Arc::new(JobSpec { after: vec![on(c)], ..spec(1, 1) });
    story.push(Event::ArraySubmitted {
        first,
        key: None,
        spec: spec_of_tasks,
        indices: vec![0, 1],
        throttle: 0,
    });
    let update = |job, after: &[JobId]| {
        let after = Some(after.iter().map(|job| on(*job)).collect());
        door::update(
            &story.cluster,
            story.now,
            &ada(),
            job,
            JobChange { after, ..JobChange::default() },
        )
        .map(|_| ())
    };
    let hint = "take one of the dependencies out; neither could ever start";
    refused("itself", update(a, &[a]), &format!("after: job 1 would depend on itself | {hint}"));
    refused(
        "by two",
        update(a, &[c]),
        &format!("after: job 1 would depend on job 3, which depends on it | {hint}"),
    );
    refused(
        "by an array",
        update(a, &[first]),
        &format!("after: job 1 would depend on job 4, which depends on it | {hint}"),
    );
    refused(
        "its own array",
        update(JobId(first.0 + 1), &[first]),
        &format!("after: job 5 would depend on itself | {hint}"),
    );
    assert_eq!(update(c, &[a]), Ok(()));
}

#[test]
fn what_ended_long_ago_can_be_waited_for_only_where_that_is_enough() {
    let mut story = cluster();
    // Ids of jobs that are no longer in memory.
    story.cluster.next_job = 50;
    let submit = |kind| {
        let after = vec![Dependency { job: JobId(7), kind }];
        door::submit(&story.cluster, story.now, &ada(), JobSpec { after, ..spec(1, 1) }, "")
            .map(|_| ())
    };
    assert_eq!(submit(DependencyKind::AfterAny), Ok(()));
    refused(
        "how",
        submit(DependencyKind::AfterOk),
        "after: job 7 ended too long ago to say here how | see `tessera show 7`, and leave the dependency out",
    );
}

#[test]
fn signals_and_checkpoints_are_for_what_runs() {
    let mut story = cluster();
    let job = story.submit(spec(1, 1));
    let waits = "job: job 1 is pending, its tasks do not run | `tessera wait 1 --for running` waits until they do";
    refused("waits", door::signal(&story.cluster, &ada(), job, 10), waits);
    refused("waits", door::checkpoint(&story.cluster, &ada(), job, None), waits);
    story.decide();
    story.run(job);
    refused(
        "no such signal",
        door::signal(&story.cluster, &ada(), job, 65),
        "signal: there is no signal 65 | 1 to 64 is possible, or a name: USR1, TERM",
    );
    let (_, events) = door::signal(&story.cluster, &ada(), job, 10).unwrap();
    assert_eq!(events, [Event::SignalRequested { job, signal: 10, by: ada().user }]);
    let attempt = story.attempt_of(job);
    let (_, events) = door::checkpoint(&story.cluster, &ada(), job, Some(attempt)).unwrap();
    assert_eq!(events, [Event::CheckpointReported { attempt }]);
    let other = common::attempt(1, 9);
    refused(
        "another attempt",
        door::checkpoint(&story.cluster, &ada(), job, Some(other)),
        "attempt: attempt 1.9 of job 1 is over, 1.1 is under way | what an earlier attempt has saved says nothing of this one",
    );
    story.end(job, TaskEnd::Exited { code: 0 });
    assert_eq!(story.cluster.jobs.get(job).unwrap().state, JobState::Succeeded);
    assert!(door::signal(&story.cluster, &ada(), job, 10).is_err());
}

fn share(parent: Option<&str>, weight: u32, quotas: Vec<Quota>) -> TeamShare {
    TeamShare { parent: parent.map(team), weight, quotas }
}

fn quota(model: &str, guaranteed: u32, limit: Option<u32>) -> Quota {
    Quota { gpu_model: model.to_owned(), guaranteed, limit, cell: None }
}

#[test]
fn shares_make_a_tree_whose_parts_fit_the_whole() {
    let mut story = cluster();
    let give = |story: &Story, name: &str, share: TeamShare| {
        door::share_team(&story.cluster, &admin(), team(name), share)
    };
    let cases: [(&str, TeamShare, &str); 9] = [
        (
            "no weight",
            share(None, 0, vec![]),
            "weight: the weight 0 is out of range | 1 to 1000000 is possible; 100 is what a team begins with",
        ),
        (
            "a negative weight as it comes over the wire",
            share(None, u32::MAX, vec![]),
            "weight: the weight 4294967295 is out of range | 1 to 1000000 is possible; 100 is what a team begins with",
        ),
        (
            "its own part",
            share(Some("nlp"), 1, vec![]),
            "parent: team nlp cannot be part of itself | choose a team that is not below it",
        ),
        (
            "part of nothing",
            share(Some("labs"), 1, vec![]),
            "parent: there is no team labs | did you mean lab?",
        ),
        (
            "less than guaranteed",
            share(None, 1, vec![quota("h100", 9, Some(8))]),
            "quotas.limit: 9 GPUs are guaranteed and 8 is the most it may hold | make the limit at least as high, or leave it out",
        ),
        (
            "twice",
            share(None, 1, vec![quota("h100", 1, None), quota(" H100", 2, None)]),
            "quotas.gpu_model: two quotas for GPUs of the model \"h100\" | name each model once",
        ),
        (
            "too many domains",
            share(
                None,
                1,
                vec![Quota {
                    cell: Some(Cell { level: "leaf".to_owned(), domains: 5 }),
                    ..quota("h100", 0, None)
                }],
            ),
            "quotas.cell: 5 domains of leaf with GPUs of the model \"h100\", there are 4 | 1 to 4 is possible",
        ),
        (
            "no such level",
            share(
                None,
                1,
                vec![Quota {
                    cell: Some(Cell { level: "pod".to_owned(), domains: 1 }),
                    ..quota("h100", 0, None)
                }],
            ),
            "quotas.cell: the topology has no level \"pod\" | there are: block, leaf",
        ),
        (
            "domains that hold another number",
            share(
                None,
                1,
                vec![Quota {
                    cell: Some(Cell { level: "leaf".to_owned(), domains: 2 }),
                    ..quota("h100", 30, None)
                }],
            ),
            "quotas.guaranteed: 2 domains of leaf hold 32 GPUs, and 30 are guaranteed | leave the number out",
        ),
    ];
    for (name, share, want) in cases {
        refused(name, give(&story, "nlp", share), want);
    }
    refused(
        "not his",
        door::share_team(&story.cluster, &operator(), team("nlp"), share(None, 1, vec![])),
        ": olga has the role operator and may not manage teams and tokens | it takes one of: admin",
    );

    let put = |story: &mut Story, name: &str, share: TeamShare| -> Vec<String> {
        let (warnings, events) = give(story, name, share).unwrap();
        events.into_iter().for_each(|e| story.push(e));
        warnings
    };
    assert_eq!(put(&mut story, "lab", share(None, 50, vec![quota("h100", 40, None)])), [""; 0]);
    assert_eq!(
        put(&mut story, "nlp", share(Some("lab"), 50, vec![quota("h100", 30, None)])),
        [""; 0]
    );
    refused(
        "above what is above",
        give(&story, "lab", share(Some("nlp"), 1, vec![])),
        "parent: team lab is above nlp already: nlp is part of lab | choose a team that is not below it",
    );
    refused(
        "more than the whole",
        give(&story, "vision", share(Some("lab"), 50, vec![quota("h100", 11, None)])),
        "quotas.guaranteed: the teams of lab are guaranteed 41 GPUs of the model \"h100\", lab itself 40: nlp 30, vision 11 | guarantee lab at least 41, or its teams less",
    );
    refused(
        "less than the parts",
        give(&story, "lab", share(None, 50, vec![quota("h100", 29, None)])),
        "quotas.guaranteed: the teams of lab are guaranteed 30 GPUs of the model \"h100\", lab itself 29: nlp 30 | guarantee lab at least 30, or its teams less",
    );
    // More than there is may be bought later: it is said, and taken.
    assert_eq!(
        put(
            &mut story,
            "vision",
            share(None, 50, vec![quota("h100", 30, None), quota("b200", 1, None)])
        ),
        [
            "no node has GPUs of the model \"b200\"",
            "70 GPUs of the model \"h100\" are guaranteed in all, there are 64",
            "1 GPUs of the model \"b200\" are guaranteed in all, there are 0",
        ]
    );
    // A guarantee in domains is filled in with what they hold.
    let cell = Some(Cell { level: "leaf".to_owned(), domains: 2 });
    put(&mut story, "vision", share(None, 50, vec![Quota { cell, ..quota("h100", 0, None) }]));
    assert_eq!(story.cluster.teams[&team("vision")].share.quotas[0].guaranteed, 32);
}

fn reservation(name: &str, nodes: &[&str], from: i64, until: i64) -> Reservation {
    Reservation {
        name: name.to_owned(),
        teams: vec![team("vision")],
        target: Target::Nodes { nodes: nodes.iter().map(|n| node_id(n)).collect() },
        from: UnixMillis(from),
        until: UnixMillis(until),
        owner: admin().user,
        reason: "a course".to_owned(),
    }
}

#[test]
fn reservations_lie_ahead_and_apart() {
    let mut story = cluster();
    story.pass(Millis(1_000));
    let make = |story: &Story, r| door::reserve(&story.cluster, story.now, &operator(), r);
    let year = 366 * 86_400_000;
    let domain = |level: &str, name: &str| Reservation {
        target: Target::Domain { level: level.to_owned(), name: name.to_owned() },
        ..reservation("d", &[], 2_000, 3_000)
    };
    let cases: [(&str, Reservation, &str); 9] = [
        (
            "in the past",
            reservation("r", &["n0"], 999, 3_000),
            "from: 1970-01-01T00:00:00.999Z has passed | choose an instant from now on",
        ),
        (
            "backwards",
            reservation("r", &["n0"], 3_000, 2_000),
            "until: it would end at 1970-01-01T00:00:02Z and begin at 1970-01-01T00:00:03Z | choose an end after the begin",
        ),
        (
            "for ever",
            reservation("r", &["n0"], 2_000, 2_001 + year),
            "until: it would last 366d | at most 366 days are possible; `tessera drain` takes nodes out for good",
        ),
        (
            "no nodes",
            reservation("r", &[], 2_000, 3_000),
            "target: there is no node in it | name nodes, or a domain: `leaf/l3`",
        ),
        (
            "an unknown node",
            reservation("r", &["n99"], 2_000, 3_000),
            "node: there is no node n99 | did you mean n0?",
        ),
        (
            "an unknown level",
            domain("leave", "l0"),
            "target: the topology has no level \"leave\" | did you mean leaf?",
        ),
        (
            "an unknown domain",
            domain("leaf", "pod7"),
            "target: there is no leaf \"pod7\" | there are: l0, l1, l2, l3",
        ),
        (
            "no name",
            reservation("a b", &["n0"], 2_000, 3_000),
            "name: \"a b\" is no name for a reservation | 1 to 63 letters, digits and . _ - make a name",
        ),
        (
            "no team",
            Reservation { teams: vec![team("nlq")], ..reservation("r", &["n0"], 2_000, 3_000) },
            "teams: there is no team nlq | did you mean nlp?",
        ),
    ];
    for (name, r, want) in cases {
        refused(name, make(&story, r), want);
    }
    refused(
        "not hers",
        door::reserve(&story.cluster, story.now, &ada(), reservation("r", &["n0"], 2_000, 3_000)),
        ": ada has the role member and may not reserve nodes | it takes one of: operator, admin",
    );

    // A job that may run into it is named.
    let job = story.submit(spec(8, 8));
    story.decide();
    let (warnings, events) = make(&story, reservation("r", &["n0", "n1"], 2_000, 3_000)).unwrap();
    assert_eq!(
        warnings,
        [format!("jobs that run there may reach into it: {job} without a time limit")]
    );
    events.into_iter().for_each(|e| story.push(e));
    assert_eq!(story.cluster.reservations["r"].owner, operator().user);
    refused(
        "the name",
        make(&story, reservation("r", &["n5"], 2_000, 3_000)),
        "name: there is a reservation r already, until 1970-01-01T00:00:03Z | choose another name, or `tessera reserve end r`",
    );
    refused(
        "the nodes",
        make(&story, Reservation { name: "q".to_owned(), ..domain("leaf", "l0") }),
        "target: n0 is in the reservation r of olga from 1970-01-01T00:00:02Z until 1970-01-01T00:00:03Z | choose other nodes or another time, or end that one first",
    );
    // Side by side in time is no overlap.
    assert!(make(&story, reservation("q", &["n0"], 3_000, 4_000)).is_ok());

    refused(
        "end",
        door::end_reservation(&story.cluster, &operator(), "q"),
        "name: there is no reservation \"q\" | did you mean r?",
    );
    let (_, events) = door::end_reservation(&story.cluster, &operator(), "r").unwrap();
    events.into_iter().for_each(|e| story.push(e));
    assert!(story.cluster.reservations.is_empty());
}

#[test]
fn a_mark_is_on_a_domain_that_there_is() {
    let mut story = cluster();
    let mark = |domain: &str, health, reason: &str| DomainMark {
        level: "leaf".to_owned(),
        domain: domain.to_owned(),
        health,
        by: ada().user,
        reason: reason.to_owned(),
        until: None,
    };
    let set = |story: &Story, who: &Principal, mark| {
        door::mark_domain(&story.cluster, story.now, who, mark)
    };
    refused(
        "not hers",
        set(&story, &ada(), mark("l0", 50, "flaps")),
        ": ada has the role member and may not cordon, drain, uncordon or retire nodes | it takes one of: operator, admin",
    );
    refused(
        "no such",
        set(&story, &operator(), mark("l9", 50, "flaps")),
        "domain: there is no leaf \"l9\" | did you mean l0?",
    );
    refused(
        "too well",
        set(&story, &operator(), mark("l0", 101, "flaps")),
        "health: 101 percent is out of range | 0 (no gang of several nodes there) to 100 (all is well) is possible",
    );
    assert!(set(&story, &operator(), mark("l0", 50, "")).is_err(), "a reason is asked for");
    let past = DomainMark { until: Some(UnixMillis(0)), ..mark("l0", 50, "flaps") };
    refused(
        "over",
        set(&story, &operator(), past),
        "until: 1970-01-01T00:00:00Z has passed | choose a later instant, or leave it out",
    );
    let ((), events) = set(&story, &operator(), mark("l0", 50, "flaps")).unwrap();
    events.into_iter().for_each(|e| story.push(e));
    assert_eq!(story.cluster.marks["leaf/l0"].by, operator().user);
    let ((), events) = set(&story, &operator(), mark("l0", 100, "")).unwrap();
    events.into_iter().for_each(|e| story.push(e));
    assert!(story.cluster.marks.is_empty());
    assert_eq!(set(&story, &operator(), mark("l0", 100, "")).unwrap().1, []);
}

#[test]
fn a_list_shows_as_many_as_asked_in_their_order_and_counts_all() {
    let mut story = cluster();
    let running = story.start(spec(8, 8));
    let jobs: Vec<JobId> = (0..20).map(|_| story.submit(spec(1, 8))).collect();
    let held = story.submit(JobSpec { hold: true, ..spec(1, 8) });
    let list = |limit| {
        let filter = door::JobFilter { limit, ..door::JobFilter::default() };
        let listed = door::list(&story.cluster, &ada(), &filter, story.now);
        let ids: Vec<JobId> = listed.jobs.iter().map(|j| j.id).collect();
        (ids, listed.total, listed.positions)
    };
    let (ids, total, positions) = list(3);
    assert_eq!((ids, total), (vec![running, jobs[0], jobs[1]], 22));
    assert_eq!(positions, BTreeMap::from([(jobs[0], 1), (jobs[1], 2)]));
    let (ids, total, positions) = list(100);
    assert_eq!((ids.len(), ids.last(), total), (22, Some(&held), 22));
    assert_eq!((positions.len(), positions.get(&held)), (20, None), "a held job has no place");
}
