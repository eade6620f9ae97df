//! What people ask of jobs that are there, of teams, of reservations and of the map, over the wire:
//! each call once, and who may not make it.

mod common;

use common::{Agent, Person, Scheduler, spec};
use tessera_model::Role;
use tessera_proto::status::from_status;
use tessera_proto::v1;
use tessera_proto::v1::order::Order;
use tessera_proto::v1::report::Report;
use tonic::{Code, Status};

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|s| s.code(), |_| Code::Ok)
}

fn indices(first: u32, last: u32) -> v1::ArraySpec {
    v1::ArraySpec { ranges: vec![v1::IndexRange { first, last, step: 1 }], throttle: 2 }
}

async fn submit_array(
    who: &Person,
    array: v1::ArraySpec,
    key: &str,
) -> Result<v1::SubmitReply, Status> {
    let request = v1::SubmitRequest {
        spec: Some(spec("nlp")),
        idempotency_key: key.into(),
        array: Some(array),
    };
    who.jobs().submit(request).await.map(|r| r.into_inner())
}

async fn get(who: &Person, job_id: u64, index: Option<u32>) -> v1::Job {
    who.jobs().get(v1::GetJobRequest { job_id, index }).await.unwrap().into_inner()
}

/// A job whose one task runs on `agent`.
async fn running(who: &Person, agent: &mut Agent) -> (u64, String) {
    let job = who.submit(spec("nlp"), "").await.unwrap().job_id;
    let Order::Prepare(prepare) = agent.order().await else { panic!("no Prepare") };
    let attempt = prepare.attempt;
    agent.say(Report::Prepared(v1::Prepared { attempt: attempt.clone(), master_port: 1 })).await;
    while !matches!(agent.order().await, Order::Commit(_)) {}
    agent.say(Report::Started(v1::Started { attempt: attempt.clone() })).await;
    let mut watch = who.jobs().watch(v1::WatchRequest { job_id: job }).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().state() != v1::JobState::Running {}
    (job, attempt)
}

#[tokio::test]
async fn an_array_is_submitted_once_and_held_as_a_whole_or_in_parts() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let made = submit_array(&ana, indices(0, 9), "sweep").await.unwrap();
    assert_eq!((made.jobs, made.existing), (10, false));
    let again = submit_array(&ana, indices(0, 9), "sweep").await.unwrap();
    assert_eq!((again.job_id, again.existing, again.jobs), (made.job_id, true, 10));
    let other = submit_array(&ana, indices(0, 8), "sweep").await;
    assert_eq!(code(other), Code::AlreadyExists);
    let huge = submit_array(&ana, indices(0, u32::MAX), "").await.unwrap_err();
    assert_eq!(huge.code(), Code::InvalidArgument);
    assert!(huge.message().contains("4294967296 tasks"), "{huge:?}");
    assert_eq!(from_status(&huge).field, "array");

    let array = made.job_id;
    let task = get(&ana, array, Some(7)).await;
    assert_eq!((task.id, task.array), (array + 7, Some(v1::ArrayTask { array, index: 7 })));
    let hold = |index, only| v1::HoldRequest { job_id: array, index, only };
    let held = ana.jobs().hold(hold(Some(7), false)).await.unwrap().into_inner();
    assert_eq!((held.changed, held.job.unwrap().id), (1, array + 7));
    let held = ana.jobs().hold(hold(None, true)).await.unwrap().into_inner();
    assert_eq!((held.changed, held.job.unwrap().held), (1, true));
    assert!(!get(&ana, array + 1, None).await.held);
    let held = ana.jobs().hold(hold(None, false)).await.unwrap().into_inner();
    assert_eq!((held.changed, held.job.unwrap().id), (10, array));
    let release = v1::ReleaseRequest { job_id: array, ..Default::default() };
    assert_eq!(ana.jobs().release(release).await.unwrap().into_inner().changed, 10);
    assert!(!get(&ana, array, Some(7)).await.held);

    let list = ana.jobs().list(v1::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.total, list.throttles.get(&array)), (10, Some(&2)));
    let change = v1::JobChange { throttle: Some(5), priority: Some(-3), ..Default::default() };
    let update = v1::UpdateRequest { job_id: array, change: Some(change), ..Default::default() };
    assert_eq!(ana.jobs().update(update).await.unwrap().into_inner().changed, 10);
    let list = ana.jobs().list(v1::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.throttles.get(&array), Some(&5));
    assert!(list.jobs.iter().all(|j| j.spec.as_ref().unwrap().priority == -3));

    let cancel = v1::CancelRequest { job_id: array, index: Some(3), only: false };
    assert_eq!(ana.jobs().cancel(cancel).await.unwrap().into_inner().changed, 1);
    let cancel = v1::CancelRequest { job_id: array, ..Default::default() };
    let cancelled = ana.jobs().cancel(cancel).await.unwrap().into_inner();
    assert_eq!(cancelled.changed, 9, "one had ended already");
    let none = v1::CancelRequest { job_id: array, index: Some(77), only: false };
    assert_eq!(code(ana.jobs().cancel(none).await), Code::NotFound);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_waiting_job_is_changed_and_shows_its_place() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let first = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let second = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let list = async || {
        let reply = ana.jobs().list(v1::ListJobsRequest::default()).await.unwrap();
        reply.into_inner().positions
    };
    assert_eq!(list().await, [(first, 1), (second, 2)].into());
    let update = async |job_id, change| {
        let request = v1::UpdateRequest { job_id, change: Some(change), ..Default::default() };
        ana.jobs().update(request).await.map(|r| r.into_inner())
    };
    let lower = v1::JobChange { priority: Some(-10), ..Default::default() };
    update(first, lower).await.unwrap();
    assert_eq!(list().await, [(second, 1), (first, 2)].into());
    let after = v1::Dependency { job_id: second, kind: v1::DependencyKind::AfterOk.into() };
    let wait = v1::JobChange {
        after: Some(v1::Dependencies { on: vec![after] }),
        time_limit_ms: Some(60_000),
        ..Default::default()
    };
    let job = update(first, wait).await.unwrap().job.unwrap();
    assert_eq!(job.spec.unwrap().time_limit_ms, Some(60_000));
    assert_eq!(list().await, [(second, 1)].into(), "a parked job stands in no line");
    let circle = v1::Dependency { job_id: first, kind: v1::DependencyKind::AfterOk.into() };
    let circle =
        v1::JobChange { after: Some(v1::Dependencies { on: vec![circle] }), ..Default::default() };
    let refused = from_status(&update(second, circle).await.unwrap_err());
    assert!(refused.message.contains("depends on it"), "{refused:?}");
    let raise = v1::JobChange { priority: Some(10), ..Default::default() };
    assert_eq!(code(update(second, raise).await), Code::PermissionDenied);
    assert_eq!(code(update(second, v1::JobChange::default()).await), Code::InvalidArgument);
    let throttle = v1::JobChange { throttle: Some(1), ..Default::default() };
    assert_eq!(code(update(second, throttle).await), Code::InvalidArgument, "it is no array");
    let absurd = v1::JobChange { nodes: Some(u32::MAX), ..Default::default() };
    assert_eq!(from_status(&update(second, absurd).await.unwrap_err()).field, "nodes");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_running_job_is_signalled_and_says_that_its_work_is_safe() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let waiting = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let signal = |job_id, signal| v1::SignalRequest { job_id, signal, ..Default::default() };
    let early = ana.jobs().signal(signal(waiting, 10)).await;
    assert_eq!(code(early), Code::FailedPrecondition);
    let cancel = v1::CancelRequest { job_id: waiting, ..Default::default() };
    ana.jobs().cancel(cancel).await.unwrap();

    let mut agent = Agent::up(&scheduler, "n0").await;
    let (job, attempt) = running(&ana, &mut agent).await;
    assert_eq!(code(ana.jobs().signal(signal(job, 0)).await), Code::InvalidArgument);
    let sent = ana.jobs().signal(signal(job, 10)).await.unwrap().into_inner();
    assert_eq!((sent.changed, sent.job.unwrap().id), (1, job));
    let told = loop {
        if let Order::Signal(told) = agent.order().await {
            break told;
        }
    };
    assert_eq!((told.attempt.as_str(), told.signal), (attempt.as_str(), 10));

    let report =
        |attempt: &str| v1::ReportCheckpointRequest { job_id: job, attempt: attempt.to_owned() };
    let safe = ana.jobs().report_checkpoint(report("")).await.unwrap().into_inner();
    assert!(safe.last_checkpoint_at_unix_ms.is_some());
    assert_eq!(code(ana.jobs().report_checkpoint(report(&attempt)).await), Code::Ok);
    let late = ana.jobs().report_checkpoint(report(&format!("{job}.9"))).await;
    assert_eq!(code(late), Code::FailedPrecondition);
    let rubbish = ana.jobs().report_checkpoint(report("rubbish")).await;
    assert_eq!(code(rubbish), Code::InvalidArgument);
    let held = v1::HoldRequest { job_id: job, ..Default::default() };
    assert_eq!(code(ana.jobs().hold(held).await), Code::FailedPrecondition, "it runs");
    let certificate = get(&ana, job, None).await.certificate;
    assert!(certificate.is_some(), "every start has its proof");
    let list = ana.jobs().list(v1::ListJobsRequest::default()).await.unwrap().into_inner();
    assert!(list.jobs.iter().all(|j| j.certificate.is_none()), "and lists are short");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn each_wish_for_a_job_is_for_those_who_may() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let job_id = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    for (user, role, team, want) in [
        ("bob", Role::Member, "nlp", Code::PermissionDenied),
        ("eve", Role::Member, "vision", Code::NotFound),
        ("eva", Role::TeamAdmin, "vision", Code::NotFound),
        ("fin", Role::Finance, "vision", Code::PermissionDenied),
        ("ops", Role::Operator, "vision", Code::Ok),
        ("tia", Role::TeamAdmin, "nlp", Code::Ok),
        ("root", Role::Admin, "vision", Code::Ok),
    ] {
        let who = scheduler.person(user, role, &[team]).await;
        let hold = v1::HoldRequest { job_id, ..Default::default() };
        let held = who.jobs().hold(hold).await;
        if let Ok(reply) = &held {
            let shown = reply.get_ref().job.as_ref().unwrap().spec.as_ref().unwrap();
            let content = matches!(role, Role::Admin | Role::TeamAdmin);
            assert_eq!(shown.script.is_some(), content, "{user} sees the script");
        }
        assert_eq!(code(held), want, "{user} hold");
        let release = v1::ReleaseRequest { job_id, ..Default::default() };
        assert_eq!(code(who.jobs().release(release).await), want, "{user} release");
        let change = Some(v1::JobChange { priority: Some(-1), ..Default::default() });
        let update = v1::UpdateRequest { job_id, change, ..Default::default() };
        assert_eq!(code(who.jobs().update(update).await), want, "{user} update");
        // They would, but it does not run.
        let late = if want == Code::Ok { Code::FailedPrecondition } else { want };
        let signal = v1::SignalRequest { job_id, signal: 10, ..Default::default() };
        assert_eq!(code(who.jobs().signal(signal).await), late, "{user} signal");
        let report = v1::ReportCheckpointRequest { job_id, ..Default::default() };
        let reported = who.jobs().report_checkpoint(report).await;
        assert_eq!(code(reported), late, "{user} checkpoint");
    }
    scheduler.shut_down().await;
}

#[tokio::test]
async fn teams_reservations_and_maps_are_for_those_who_answer_for_them() {
    let scheduler = Scheduler::start().await;
    let _agent = Agent::up(&scheduler, "n0").await;
    for (role, share, reserve, map) in [
        (Role::Member, false, false, false),
        (Role::TeamAdmin, false, false, false),
        (Role::Finance, false, false, false),
        (Role::Operator, false, true, true),
        (Role::Admin, true, true, true),
    ] {
        let word = role.word();
        let who = scheduler.person(&format!("u-{word}"), role, &["nlp"]).await;
        let allowed = |code: Code| code != Code::PermissionDenied;
        let request = v1::ShareTeamRequest::default();
        assert_eq!(allowed(code(who.admin().share_team(request).await)), share, "{word} share");
        let request = v1::ReserveRequest::default();
        assert_eq!(allowed(code(who.admin().reserve(request).await)), reserve, "{word} reserve");
        let request = v1::EndReservationRequest::default();
        let ended = who.admin().end_reservation(request).await;
        assert_eq!(allowed(code(ended)), reserve, "{word} end");
        let request = v1::LoadTopologyRequest::default();
        assert_eq!(allowed(code(who.admin().load_topology(request).await)), map, "{word} load");
        let request = v1::MarkDomainRequest::default();
        assert_eq!(allowed(code(who.admin().mark_domain(request).await)), map, "{word} mark");
        // Everybody may look.
        let request = v1::ListReservationsRequest {};
        assert_eq!(code(who.admin().list_reservations(request).await), Code::Ok, "{word}");
        let request = v1::GetTopologyRequest {};
        assert_eq!(code(who.admin().get_topology(request).await), Code::Ok, "{word}");
    }
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_teams_share_changes_in_parts_and_is_listed() {
    let scheduler = Scheduler::start().await;
    let boss = scheduler.person("boss", Role::Admin, &[]).await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    running(&ana, &mut agent).await;
    let share = async |request: v1::ShareTeamRequest| {
        boss.admin().share_team(request).await.map(|r| r.into_inner())
    };
    let quota = v1::Quota { gpu_model: "H100".into(), guaranteed: 1, ..Default::default() };
    let request = v1::ShareTeamRequest {
        team: "nlp".into(),
        weight: Some(250),
        quotas: vec![quota],
        ..Default::default()
    };
    let team = share(request).await.unwrap().team.unwrap();
    let got = team.share.unwrap();
    assert_eq!((got.weight, got.quotas[0].gpu_model.as_str()), (250, "h100"));
    let request = v1::ShareTeamRequest {
        team: "nlp".into(),
        parent: Some("vision".into()),
        ..Default::default()
    };
    let got = share(request).await.unwrap().team.unwrap().share.unwrap();
    assert_eq!((got.parent.as_str(), got.weight, got.quotas.len()), ("vision", 250, 1));
    let circle = v1::ShareTeamRequest {
        team: "vision".into(),
        parent: Some("nlp".into()),
        ..Default::default()
    };
    assert_eq!(from_status(&share(circle).await.unwrap_err()).field, "parent");
    let unknown =
        v1::ShareTeamRequest { team: "nlq".into(), weight: Some(1), ..Default::default() };
    let refusal = from_status(&share(unknown).await.unwrap_err());
    assert!(refusal.hint.contains("nlp"), "{refusal:?}");
    let teams = boss.admin().list_teams(v1::ListTeamsRequest {}).await.unwrap().into_inner().teams;
    let held: Vec<(&str, u64)> =
        teams.iter().map(|t| (t.team.as_str(), t.held_gpu_milli)).collect();
    assert_eq!(held, [("nlp", 1_000), ("vision", 1_000)], "what a team holds counts above it, too");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn nodes_are_reserved_and_given_back() {
    use v1::reservation::Target;
    let scheduler = Scheduler::start().await;
    let ops = scheduler.person("ops", Role::Operator, &[]).await;
    let _agent = Agent::up(&scheduler, "n0").await;
    let hour = 3_600_000;
    let now = scheduler.handle.read(|view| view.now.0).await.unwrap();
    let wish = v1::Reservation {
        name: "course".into(),
        teams: vec!["nlp".into()],
        target: Some(Target::Nodes(v1::NodeNames { nodes: vec!["n0".into()] })),
        from_unix_ms: 0,
        until_unix_ms: now + hour,
        owner: "mallory".into(),
        reason: "a course".into(),
    };
    let reserve = async |wish: v1::Reservation| {
        let request = v1::ReserveRequest { reservation: Some(wish) };
        ops.admin().reserve(request).await.map(|r| r.into_inner())
    };
    let made = reserve(wish.clone()).await.unwrap().reservation.unwrap();
    assert_eq!(made.owner, "ops", "whoever asks answers for it");
    assert!(made.from_unix_ms >= now, "it begins at once");
    assert_eq!(code(reserve(wish.clone()).await), Code::AlreadyExists);
    let past = v1::Reservation { name: "a".into(), from_unix_ms: 1, ..wish.clone() };
    let refusal = from_status(&reserve(past).await.unwrap_err());
    assert!(refusal.message.contains("has passed"), "{refusal:?}");
    let nodes = Some(Target::Nodes(v1::NodeNames { nodes: vec!["n7".into()] }));
    let unknown = v1::Reservation { name: "a".into(), target: nodes, ..wish.clone() };
    assert_eq!(code(reserve(unknown).await), Code::NotFound);
    let backwards = v1::Reservation { name: "a".into(), from_unix_ms: now + 2 * hour, ..wish };
    assert_eq!(from_status(&reserve(backwards).await.unwrap_err()).field, "until_unix_ms");

    let list = async || {
        let reply = ops.admin().list_reservations(v1::ListReservationsRequest {}).await;
        reply.unwrap().into_inner().reservations
    };
    assert_eq!(list().await, [made]);
    let end = || v1::EndReservationRequest { name: "course".into() };
    assert_eq!(ops.admin().end_reservation(end()).await.unwrap().into_inner().name, "course");
    assert_eq!(code(ops.admin().end_reservation(end()).await), Code::NotFound);
    assert_eq!(list().await, []);
    scheduler.shut_down().await;
}

const MAP: &str = "levels = [\"block\", \"leaf\"]\n\
    [[leaf]]\nname = \"l0\"\nblock = \"b0\"\nnodes = [\"n0\"]\n";

#[tokio::test]
async fn a_map_is_loaded_and_a_bad_one_leaves_the_old() {
    use v1::load_topology_request::Map;
    let scheduler = Scheduler::start().await;
    let ops = scheduler.person("ops", Role::Operator, &[]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    let text = |text: &str| v1::LoadTopologyRequest {
        map: Some(Map::Text(v1::TopologyText { name: "my.toml".into(), text: text.into() })),
        ..Default::default()
    };
    let load = async |request: v1::LoadTopologyRequest| {
        ops.admin().load_topology(request).await.map(|r| r.into_inner())
    };
    let show = async || {
        let reply = ops.admin().get_topology(v1::GetTopologyRequest {}).await;
        reply.unwrap().into_inner()
    };
    let dry = load(v1::LoadTopologyRequest { dry_run: true, ..text(MAP) }).await.unwrap();
    assert_eq!((dry.changed, dry.nodes), (false, 1));
    assert_eq!(show().await.fabrics, []);
    let loaded = load(text(MAP)).await.unwrap();
    assert_eq!((loaded.changed, loaded.levels.join(" ").as_str()), (true, "block leaf"));
    assert!(!load(text(MAP)).await.unwrap().changed, "the same map twice is one");
    let map = show().await;
    assert_eq!(map.unplaced, [""; 0]);
    let counts: Vec<(&str, &str, u32, u32)> =
        map.domains.iter().map(|d| (&*d.level, &*d.domain, d.gpus, d.gpus_free)).collect();
    assert_eq!(counts, [("block", "b0", 2, 2), ("leaf", "l0", 2, 2)]);

    // Errors name the file and the line, and nothing changes.
    for (bad, want) in [
        ("levels = [\"leaf\"]\n[[leaf]]\nname = \"l0\"\nnodes = [\"n0\", \"n0\"]\n", "my.toml:"),
        ("levels = [\"leaf\"]\n[[laef]]\n", "my.toml:2"),
        (&MAP.replace("n0", "n[0-1]"), "n1"),
        ("levels = [\"leaf\"]\n[[leaf]]\nname = \"x\"\nnodes = [\"n0\"]\n", "drops n0"),
        ("", "my.toml"),
    ] {
        let refusal = from_status(&load(text(bad)).await.unwrap_err());
        assert!(refusal.message.contains(want), "{want}: {refusal:?}");
        assert!(refusal.hint.contains("the map in force stays"), "{refusal:?}");
        assert_eq!(show().await.fabrics, map.fabrics);
    }
    assert_eq!(code(load(v1::LoadTopologyRequest::default()).await), Code::InvalidArgument);
    let unknown = text(&MAP.replace("n0", "n[0-1]"));
    let unknown = v1::LoadTopologyRequest { allow_unknown: true, ..unknown };
    assert!(load(unknown).await.unwrap().warnings[0].contains("n1"));
    let parsed = v1::TopologyMap { fabrics: map.fabrics.clone() };
    let parsed = v1::LoadTopologyRequest { map: Some(Map::Parsed(parsed)), ..Default::default() };
    assert!(load(parsed).await.unwrap().changed);

    let mark = |health_percent, domain: &str| v1::MarkDomainRequest {
        level: "leaf".into(),
        domain: domain.into(),
        health_percent,
        reason: "one uplink is down".into(),
        until_unix_ms: None,
    };
    let marked = ops.admin().mark_domain(mark(50, "l0")).await.unwrap().into_inner();
    assert_eq!((marked.health_percent, marked.by.as_str()), (50, "ops"));
    assert_eq!(show().await.marks, [marked]);
    let wrong = ops.admin().mark_domain(mark(50, "l1")).await.unwrap_err();
    assert!(from_status(&wrong).message.contains("l1"), "{wrong:?}");
    assert_eq!(code(ops.admin().mark_domain(mark(101, "l0")).await), Code::InvalidArgument);
    ops.admin().mark_domain(mark(100, "l0")).await.unwrap();
    assert_eq!(show().await.marks, []);

    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    running(&ana, &mut agent).await;
    assert_eq!(show().await.domains[1].gpus_free, 1);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_job_not_yet_submitted_is_explained_with_its_place() {
    use v1::explain_request::Subject;
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    let explain = async |spec: v1::JobSpec| {
        let request = v1::ExplainRequest { subject: Some(Subject::Spec(spec)) };
        ana.jobs().explain(request).await.unwrap().into_inner()
    };
    let now = explain(spec("nlp")).await;
    assert_eq!(
        (now.verdict.as_str(), now.place.as_slice()),
        ("starts_now", &["n0".to_owned()][..])
    );
    running(&ana, &mut agent).await;
    let both = v1::JobSpec { gpus_per_node: 2, ..spec("nlp") };
    let later = explain(both).await;
    assert_eq!(later.verdict, "waits", "{later:?}");
    let held = explain(v1::JobSpec { hold: true, ..spec("nlp") }).await;
    assert!(held.job_id.is_none(), "{held:?}");
    scheduler.shut_down().await;
}
