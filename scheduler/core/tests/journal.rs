//! The journal as a contract: names of events are pinned by a golden file, every variant survives
//! JSON, and a snapshot is as good as the whole journal.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Story, attempt, cases, gpu_id, inventory, node_id, spec};
use proptest::prelude::*;
use tessera_core::cluster::Cluster;
use tessera_core::door::agents::Report;
use tessera_core::event::{Event, LeaveWhy, PromiseCause, Stamped, StopWhy, WriteOffWhy};
use tessera_core::promises::{Slot, SlotPlace};
use tessera_core::snapshot::Snapshot;
use tessera_core::{decide, door};
use tessera_model::usage::{Price, PriceVersion};
use tessera_model::{
    AtMost, Bytes, Cell, Certificate, CheckpointPlan, Cordon, Dependency, DependencyKind,
    DomainMark, Epoch, Eta, Fabric, Gang, GpuCondition, Hold, JobChange, JobId, JobRole, JobSpec,
    LabelOp, LabelRule, Lease, MicroUsd, MigInstance, Millis, Nic, Optimality, Place, Placement,
    Principal, Quota, Reservation, Revision, Role, SessionId, Slice, Span, Spread, Strength,
    Target, TaskEnd, TeamId, TeamShare, Tier, Topology, UnixIdentity, UnixMillis, UserId, Within,
};

/// Every kind of constraint.
fn placement() -> Placement {
    let rule = |op, values: &[&str]| LabelRule {
        key: "zone".to_owned(),
        op,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    };
    Placement {
        within: vec![
            Within { level: "block".to_owned(), strength: Strength::Required },
            Within { level: "leaf".to_owned(), strength: Strength::Preferred },
        ],
        slices: vec![Slice { nodes: 2, level: "leaf".to_owned(), strength: Strength::Required }],
        at_most: vec![AtMost { domains: 2, level: "leaf".to_owned() }],
        spread: vec![Spread { level: "leaf".to_owned(), max_skew: 1 }],
        balance: Some("leaf".to_owned()),
        patience: Some(Millis(60_000)),
        labels: vec![
            rule(LabelOp::In, &["a", "b"]),
            rule(LabelOp::NotIn, &["c"]),
            rule(LabelOp::Exists, &[]),
            rule(LabelOp::Absent, &[]),
        ],
        only: BTreeSet::from([node_id("n0")]),
        exclude: BTreeSet::from([node_id("n1")]),
    }
}

/// One of each variant, and of each variant inside it, with every optional field there at least once.
fn one_of_each() -> Vec<Event> {
    let (team, user) = (TeamId::parse("nlp").unwrap(), UserId::parse("root").unwrap());
    let by = || user.clone();
    let unix = Some(UnixIdentity { uid: 1000, gid: 100 });
    let principal =
        Principal { user: by(), role: Role::TeamAdmin, teams: vec![team.clone()], unix };
    let full = JobSpec {
        tags: BTreeMap::from([("run".to_owned(), "7".to_owned())]),
        tier: Tier::Idle,
        placement: placement(),
        roles: vec![JobRole {
            name: "leader".to_owned(),
            gang: Gang { gpu_milli: 500, ..spec(1, 1).gang },
            placement: Placement { balance: Some("leaf".to_owned()), ..Placement::default() },
        }],
        priority: -3,
        time_limit: Some(Millis(3_600_000)),
        requeue: true,
        begin: Some(UnixMillis(1_790_000_000_000)),
        after: DependencyKind::ALL
            .into_iter()
            .map(|kind| Dependency { job: JobId(7), kind })
            .collect(),
        singleton: true,
        hold: true,
        min_nodes: Some(1),
        spares: 1,
        checkpoint: Some(CheckpointPlan {
            signal: Some(10),
            notice: Millis(120_000),
            restart_cost: Millis(60_000),
            file: Some("ckpt/last".to_owned()),
            migratable: true,
        }),
        reservation: Some("course".to_owned()),
        unix,
        program: tessera_model::Program {
            argv: vec!["a".to_owned()],
            script: Some("#!/bin/sh\n".to_owned()),
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            working_dir: Some("/data".to_owned()),
        },
        gang: tessera_model::Gang {
            gpu_model: Some("h100".to_owned()),
            memory_per_node: Bytes::gib(1),
            ..spec(2, 4).gang
        },
        ..spec(2, 4)
    };
    let mut node = inventory("n0", 0, &[(0, 0), (0, 1)]);
    node.gpus[0].nvlink_domain = Some("c.1".to_owned());
    (node.gpus[0].nic, node.gpus[0].rail) = (Some("mlx5_0".to_owned()), Some(0));
    (node.gpus[1].numa, node.gpus[1].nvlink_group) = (None, None);
    node.gpus[1].mig = Some(MigInstance {
        parent: gpu_id("n0", 7),
        profile: "1g.10gb".to_owned(),
        memory_slices: 1,
    });
    node.labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    node.neighbours = vec!["leaf-7".to_owned()];
    node.nics = vec![Nic {
        name: "mlx5_0".to_owned(),
        pci_bus_id: Some("0000:40:00.0".to_owned()),
        numa: Some(0),
        speed_mbps: Some(400_000),
        rdma: true,
    }];
    let lease = Lease {
        attempt: attempt(812, 1),
        epoch: Epoch(3),
        places: vec![Place {
            node: node_id("n0"),
            session: SessionId(u64::MAX),
            gpus: vec![gpu_id("n0", 0)],
            cpus: 8,
            memory: Bytes(0),
            gpu_milli: 250,
        }],
        nodes: 1,
    };
    let certificate = Certificate {
        revision: Revision(99),
        optimality: Optimality::Bound { percent: 12 },
        spans: vec![Span { level: "leaf".to_owned(), domains: 2, least: 1 }],
        given_up: vec!["within leaf".to_owned()],
    };
    let proven = Certificate {
        revision: Revision(0),
        optimality: Optimality::Optimal,
        spans: Vec::new(),
        given_up: Vec::new(),
    };
    let conditions = BTreeMap::from([
        (gpu_id("n0", 0), GpuCondition::Xid { code: 79 }),
        (gpu_id("n0", 1), GpuCondition::Occupied { pids: vec![7, 8] }),
        (gpu_id("n0", 2), GpuCondition::Unresponsive),
        (gpu_id("n0", 3), GpuCondition::Lost),
        (gpu_id("n0", 4), GpuCondition::ResetRequired),
        (gpu_id("n0", 5), GpuCondition::Duplicate { node: node_id("n1") }),
    ]);
    let (id, n0, at) = (attempt(812, 1), node_id("n0"), UnixMillis(1_790_000_000_000));
    let stopping = |why| Event::AttemptStopping { attempt: id, why };
    let ended = |end| Event::TaskEnded { attempt: id, rank: 1, end };
    let off =
        |why| Event::PlaceWrittenOff { attempt: id, node: n0.clone(), charged_until: at, why };
    let slot = Arc::new(Slot {
        at,
        until: Some(at.plus(Millis(1))),
        nodes: 1,
        places: vec![SlotPlace { node: n0.clone(), gpus: 15 }],
    });
    let promise = |at: Option<UnixMillis>, cause, slot| {
        let eta = at.map(|at| Eta { p50: UnixMillis(at.0 - 9), p90: UnixMillis(at.0 - 1) });
        Event::PromiseMade { job: JobId(812), at, cause, slot, eta }
    };
    let leave = |why| Event::LeaveAsked { attempt: id, why, deadline: at };
    let change = JobChange {
        priority: Some(5),
        tier: Some(Tier::Urgent),
        time_limit: Some(Millis(1)),
        nodes: Some(3),
        placement: Some(Placement::default()),
        begin: Some(at),
        after: Some(Vec::new()),
        throttle: Some(0),
    };
    vec![
        Event::EpochBegan { epoch: Epoch(3) },
        Event::TopologyLoaded {
            topology: Topology {
                fabrics: vec![Fabric {
                    name: "net".to_owned(),
                    levels: vec!["block".to_owned(), "leaf".to_owned()],
                    nodes: BTreeMap::from([(n0.clone(), vec!["b0".to_owned(), "l1".to_owned()])]),
                    switches: BTreeMap::from([(
                        "l1".to_owned(),
                        BTreeSet::from(["leaf-7".to_owned()]),
                    )]),
                }],
            },
        },
        Event::DomainMarked {
            mark: DomainMark {
                level: "leaf".to_owned(),
                domain: "l1".to_owned(),
                health: 0,
                by: by(),
                reason: "flaps".to_owned(),
                until: Some(at),
            },
        },
        Event::TimePassed,
        Event::TeamShared {
            team: team.clone(),
            share: TeamShare {
                parent: Some(TeamId::parse("research").unwrap()),
                weight: 250,
                quotas: vec![Quota {
                    gpu_model: "h100".to_owned(),
                    guaranteed: 64,
                    limit: Some(128),
                    cell: Some(Cell { level: "leaf".to_owned(), domains: 2 }),
                }],
            },
            by: by(),
        },
        Event::ReservationMade {
            reservation: Reservation {
                name: "course".to_owned(),
                teams: vec![team.clone()],
                target: Target::Nodes { nodes: BTreeSet::from([n0.clone()]) },
                from: at,
                until: at.plus(Millis(1)),
                owner: by(),
                reason: "week 48".to_owned(),
            },
        },
        Event::ReservationMade {
            reservation: Reservation {
                name: "firmware".to_owned(),
                teams: Vec::new(),
                target: Target::Domain { level: "leaf".to_owned(), name: "l1".to_owned() },
                from: at,
                until: at.plus(Millis(1)),
                owner: by(),
                reason: "new firmware".to_owned(),
            },
        },
        Event::ReservationEnded { name: "course".to_owned(), by: Some(by()) },
        Event::ReservationEnded { name: "firmware".to_owned(), by: None },
        Event::TeamCreated { team: team.clone(), description: "speech".to_owned(), by: by() },
        Event::TokenIssued {
            id: "t1".to_owned(),
            hash: "00ff".to_owned(),
            principal: principal.clone(),
            expires: Some(at),
            by: by(),
        },
        Event::TokenIssued {
            id: "t2".to_owned(),
            hash: "00ff".to_owned(),
            principal: Principal { unix: None, ..principal },
            expires: None,
            by: by(),
        },
        Event::TokenRevoked { id: "t1".to_owned(), by: by() },
        Event::JoinTokenIssued {
            id: "j1".to_owned(),
            hash: "00ff".to_owned(),
            node: Some(n0.clone()),
            expires: at,
            by: by(),
        },
        Event::JoinTokenUsed { id: "j1".to_owned(), node: n0.clone() },
        Event::PricesPublished {
            version: PriceVersion {
                version: 1,
                effective_from: at,
                prices: vec![Price {
                    gpu_model: "h100".to_owned(),
                    per_gpu_hour: MicroUsd(2_950_000),
                }],
                note: "list".to_owned(),
            },
            by: by(),
        },
        Event::NodeUp { inventory: node.clone(), session: SessionId(u64::MAX), adopted: vec![id] },
        Event::InventoryChanged { inventory: inventory("cpu-only", 1, &[]) },
        Event::ConditionsChanged { node: n0.clone(), conditions },
        Event::NodeSilent { node: n0.clone(), last_seen: at },
        Event::NodeHeard { node: n0.clone() },
        Event::NodeLost { node: n0.clone(), last_seen: at },
        Event::NodeCordoned {
            node: n0.clone(),
            cordon: Cordon { drain: true, by: "sre".to_owned(), reason: "fan".to_owned() },
        },
        Event::NodeUncordoned { node: n0.clone(), by: by() },
        Event::NodeRetired { node: n0.clone(), by: by(), reason: "scrapped".to_owned() },
        Event::JobSubmitted { job: JobId(812), key: Some("k".to_owned()), spec: Arc::new(full) },
        Event::JobSubmitted { job: JobId(813), key: None, spec: Arc::new(spec(1, 0)) },
        Event::ArraySubmitted {
            first: JobId(814),
            key: Some("a".to_owned()),
            spec: Arc::new(spec(1, 1)),
            indices: vec![0, 2, 7],
            throttle: 2,
        },
        Event::CancelRequested { job: JobId(812), by: by() },
        Event::JobHeld { job: JobId(812), by: by() },
        Event::JobReleased { job: JobId(812), by: by() },
        Event::JobUpdated { job: JobId(812), change, by: by() },
        Event::SignalRequested { job: JobId(812), signal: 10, by: by() },
        Event::CheckpointReported { attempt: id },
        promise(Some(at), PromiseCause::Reserved, Some(slot.clone())),
        promise(Some(at), PromiseCause::Earlier, Some(slot.clone())),
        promise(Some(at), PromiseCause::LostCapacity, Some(slot.clone())),
        promise(Some(at), PromiseCause::Overtaken, Some(slot.clone())),
        promise(Some(at), PromiseCause::Changed, Some(slot)),
        promise(None, PromiseCause::Over, None),
        leave(LeaveWhy::Preempted { by: JobId(9) }),
        leave(LeaveWhy::Reclaimed { by: JobId(9) }),
        leave(LeaveWhy::Shrunk { by: JobId(9), nodes: 2 }),
        leave(LeaveWhy::Moved { by: JobId(9) }),
        Event::HoldPlaced {
            hold: Hold { job: JobId(812), nodes: BTreeSet::from([n0.clone()]), until: at },
        },
        Event::HoldEnded { job: JobId(812) },
        Event::LeaseGranted { lease: lease.clone(), certificate },
        Event::LeaseGranted { lease, certificate: proven },
        Event::GangCommitted {
            attempt: id,
            master_addr: "n0.example".to_owned(),
            master_port: 29_500,
        },
        Event::AttemptRunning { attempt: id },
        stopping(StopWhy::Cancelled),
        stopping(StopWhy::TimeLimit),
        stopping(StopWhy::Refused { node: n0.clone(), text: "disk full".to_owned() }),
        stopping(StopWhy::LaunchTimeout { missing: vec![n0.clone()] }),
        stopping(StopWhy::Left { why: LeaveWhy::Preempted { by: JobId(9) } }),
        ended(TaskEnd::Exited { code: -1 }),
        ended(TaskEnd::Signaled { signal: 9, oom: true }),
        ended(TaskEnd::NotStarted { code: 127, why: "not found".to_owned() }),
        ended(TaskEnd::Lapsed),
        ended(TaskEnd::Unknown),
        Event::PlaceReleased {
            attempt: id,
            node: n0.clone(),
            occupied: BTreeMap::from([(gpu_id("n0", 0), vec![42])]),
        },
        off(WriteOffWhy::Rebooted),
        off(WriteOffWhy::Forgotten),
        off(WriteOffWhy::LeaseLapsed),
        off(WriteOffWhy::Retired),
    ]
}

/// The words of all variants. `Event::kind` has to name each, or it does not compile; so its source
/// is the list that cannot be forgotten.
fn kinds() -> BTreeSet<&'static str> {
    let source = include_str!("../src/event.rs");
    let (_, kind) = source.split_once("pub fn kind(").unwrap();
    kind.lines().filter_map(|l| l.split_once("=> \"")?.1.split_once('"')).map(|(w, _)| w).collect()
}

/// To change a line of the golden file is a decision: journals of years hold the old one. Where a
/// line is new, `TESSERA_GOLDEN=write` writes the file anew.
#[test]
fn every_event_reads_as_it_did() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/events.jsonl");
    let mut lines = String::new();
    for (i, event) in one_of_each().into_iter().enumerate() {
        let at = UnixMillis(1_790_000_000_000 + i as i64);
        lines += &serde_json::to_string(&Stamped { at, event }).unwrap();
        lines.push('\n');
    }
    if std::env::var("TESSERA_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::write(path, &lines).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (have, want) in lines.lines().zip(golden.lines()) {
        assert_eq!(have, want);
    }
    assert_eq!(lines.lines().count(), golden.lines().count());
    for line in golden.lines() {
        let read: Stamped = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), line);
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["event"], read.event.kind(), "the word it is filed under");
    }
}

#[test]
fn every_event_survives_the_journal() {
    let events = one_of_each();
    let shown: BTreeSet<&str> = events.iter().map(Event::kind).collect();
    assert_eq!(shown, kinds(), "one of each variant");
    for event in events {
        let stamped = Stamped { at: UnixMillis(-5), event };
        let text = serde_json::to_string(&stamped).unwrap();
        assert_eq!(serde_json::from_str::<Stamped>(&text).unwrap(), stamped, "{text}");
    }
}

/// One step of a story: whom it is about, and what happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    Submit { nodes: u32, gpus: u32, requeue: bool, limit: Option<u64> },
    Cancel(u64),
    Prepared(u32),
    Started(u32),
    Ended { node: u32, code: i32 },
    Released { node: u32, occupied: bool },
    Reboot(u32),
    Restart(u32),
    Conditions { node: u32, sick: bool },
    Cordon { node: u32, on: bool },
    Quiet(u64),
    Reign,
}

const NODES: u32 = 3;

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    prop_oneof![
        4 => (1..=NODES, 0..=4u32, any::<bool>(), prop::option::of(1..900u64))
            .prop_map(|(nodes, gpus, requeue, limit)| Step::Submit { nodes, gpus, requeue, limit }),
        1 => (1..20u64).prop_map(Step::Cancel),
        6 => node.clone().prop_map(Step::Prepared),
        6 => node.clone().prop_map(Step::Started),
        5 => (node.clone(), prop_oneof![3 => Just(0), 1 => Just(1)])
            .prop_map(|(node, code)| Step::Ended { node, code }),
        5 => (node.clone(), prop::bool::weighted(0.1))
            .prop_map(|(node, occupied)| Step::Released { node, occupied }),
        1 => node.clone().prop_map(Step::Reboot),
        1 => node.clone().prop_map(Step::Restart),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, sick)| Step::Conditions { node, sick }),
        1 => (node, any::<bool>()).prop_map(|(node, on)| Step::Cordon { node, on }),
        2 => (1..700u64).prop_map(Step::Quiet),
        1 => Just(Step::Reign),
    ]
}

/// Takes a step as the writer does, by the doors, and decides.
fn take(story: &mut Story, step: Step, boots: &mut u32) {
    story.pass(Millis(250));
    let now = story.now;
    let name = |i: u32| node_id(&format!("n{i}"));
    let session = |story: &Story, i: u32| story.cluster.nodes[&name(i)].session;
    let on = |story: &Story, i: u32| {
        story.cluster.jobs.attempts_on(&name(i)).next().map(|a| a.lease.attempt)
    };
    let mut reports: Vec<(u32, Report)> = Vec::new();
    match step {
        Step::Submit { nodes, gpus, requeue, limit } => {
            let mut spec = spec(nodes, gpus);
            (spec.requeue, spec.time_limit) = (requeue, limit.map(Millis::from_secs));
            story.submit(spec);
        }
        Step::Cancel(job) => {
            let by = UserId::parse("ada").unwrap();
            story.push(Event::CancelRequested { job: JobId(job), by });
        }
        Step::Prepared(i) => {
            if let Some(attempt) = on(story, i) {
                reports.push((i, Report::Prepared { attempt, master_port: 1 }));
            }
        }
        Step::Started(i) => {
            if let Some(attempt) = on(story, i) {
                reports.push((i, Report::Started { attempt }));
            }
        }
        Step::Ended { node, code } => {
            if let Some(attempt) = on(story, node) {
                for rank in 0..NODES {
                    let end = TaskEnd::Exited { code };
                    reports.push((node, Report::TaskEnded { attempt, rank, end }));
                }
            }
        }
        Step::Released { node, occupied } => {
            if let Some(attempt) = on(story, node) {
                let gpus = story.cluster.nodes[&name(node)].held.keys().next().cloned();
                let gpus = gpus.into_iter().filter(|_| occupied);
                let occupied = gpus.map(|g| (g, vec![1])).collect();
                reports.push((node, Report::Released { attempt, occupied }));
            }
        }
        Step::Reboot(i) | Step::Restart(i) => {
            *boots += 1;
            let boot = if matches!(step, Step::Reboot(_)) { *boots } else { 0 };
            let hello = door::Hello {
                epoch: Epoch(0),
                session: SessionId(1_000 + u64::from(*boots)),
                inventory: inventory(&format!("n{i}"), boot, &[(0, 0); 4]),
                conditions: BTreeMap::new(),
                running: Vec::new(),
                finished: Vec::new(),
            };
            let greeting = door::hello(&story.cluster, now, &hello);
            greeting.events.into_iter().for_each(|e| story.push(e));
        }
        Step::Conditions { node, sick } => {
            let gpu = (gpu_id(&format!("n{node}"), 0), GpuCondition::Lost);
            let conditions = std::iter::once(gpu).filter(|_| sick).collect();
            reports.push((node, Report::Conditions(conditions)));
        }
        Step::Cordon { node, on } => {
            let (node, by) = (name(node), UserId::parse("sre").unwrap());
            story.push(if on {
                let cordon = Cordon { drain: false, by: "sre".to_owned(), reason: "x".to_owned() };
                Event::NodeCordoned { node, cordon }
            } else {
                Event::NodeUncordoned { node, by }
            });
        }
        Step::Quiet(secs) => story.pass(Millis::from_secs(secs)),
        Step::Reign => {
            let epoch = Epoch(story.cluster.epoch.0 + 1);
            story.push(Event::EpochBegan { epoch });
        }
    }
    for (i, report) in reports {
        let session = session(story, i);
        let events = door::report(&mut story.cluster, now, &name(i), session, report);
        events.into_iter().for_each(|e| story.push(e));
    }
    let due = tessera_core::due::due(&story.cluster, story.now, &Default::default());
    due.into_iter().for_each(|e| story.push(e));
    story.decide();
    story.cluster.take_outbox();
}

/// Without what the journal does not hold: who is ready, and when a heartbeat came.
fn durable(mut cluster: Cluster) -> Cluster {
    cluster.take_outbox();
    for attempt in cluster.jobs.attempts.values_mut() {
        attempt.prepared.clear();
        attempt.started.clear();
    }
    cluster.nodes.values_mut().for_each(|n| n.last_seen = UnixMillis(0));
    cluster
}

fn replayed(journal: &[Stamped]) -> Cluster {
    let mut cluster = Cluster::default();
    for stamped in journal {
        let text = serde_json::to_string(stamped).unwrap();
        cluster.apply(&serde_json::from_str(&text).unwrap());
    }
    cluster.take_outbox();
    cluster
}

fn through_json(cluster: &Cluster) -> Cluster {
    serde_json::from_str(&serde_json::to_string(cluster).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(cases(150))]

    /// A scheduler that starts from a snapshot and one that reads the whole journal are the same:
    /// in state, in what they decide, and in all that follows.
    #[test]
    fn a_snapshot_is_as_good_as_the_journal(
        before in prop::collection::vec(step(), 1..60),
        after in prop::collection::vec(step(), 1..40),
    ) {
        let mut live = Story::with_nodes(NODES, 4);
        let mut boots = 0;
        before.into_iter().for_each(|s| take(&mut live, s, &mut boots));

        let restart = live.now.plus(Millis(10));
        let from_journal = replayed(&live.journal).restored(restart);
        let from_snapshot = through_json(&live.cluster).restored(restart);
        prop_assert_eq!(&durable(from_journal.clone()), &durable(live.cluster.clone()));
        prop_assert_eq!(&durable(from_snapshot.clone()), &durable(live.cluster.clone()));
        prop_assert_eq!(&from_journal, &from_snapshot);

        let go_on = |cluster: Cluster| {
            let mut story = Story { cluster, journal: Vec::new(), now: restart };
            let mut boots = boots;
            after.iter().for_each(|s| take(&mut story, *s, &mut boots));
            let decision = decide::decide(&Snapshot::of(&story.cluster, story.now));
            (story.cluster, story.journal, decision)
        };
        let (one, other) = (go_on(from_journal), go_on(from_snapshot));
        prop_assert_eq!(one.1, other.1);
        prop_assert_eq!(format!("{:?}", one.2), format!("{:?}", other.2));
        prop_assert_eq!(&one.0, &other.0);
        let (one, other) = (serde_json::to_string(&one.0), serde_json::to_string(&other.0));
        prop_assert_eq!(one.unwrap(), other.unwrap());
    }
}

#[test]
fn a_key_finds_its_job_again_from_a_snapshot() {
    let mut story = Story::with_nodes(1, 1);
    let key = Some("k".to_owned());
    story.push(Event::JobSubmitted { job: JobId(1), key, spec: Arc::new(spec(1, 1)) });
    let restored = through_json(&story.cluster).restored(story.now);
    let ada = UserId::parse("ada").unwrap();
    assert_eq!(restored.jobs.by_key(&ada, "k").map(|j| j.id), Some(JobId(1)));
    assert_eq!(restored.jobs.queue_len(), 1);
}
