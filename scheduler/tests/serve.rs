//! The services as callers meet them: over TLS, with tokens and certificates.

mod common;

use common::{Agent, Person, Scheduler, inventory, report, spec};
use tessera_model::Role;
use tessera_proto::dial::{self, Dial, DialError, Trust};
use tessera_proto::status::from_status;
use tessera_proto::v1;
use tessera_proto::v1::order::Order;
use tessera_proto::v1::report::Report;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|s| s.code(), |_| Code::Ok)
}

#[tokio::test]
async fn nobody_calls_without_a_good_token_and_the_error_says_what_to_do() {
    let scheduler = Scheduler::start().await;
    let good = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let me = good.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.user.as_str(), me.role.as_str()), ("ana", "member"));
    assert_eq!(me.teams, ["nlp"]);
    let forged = {
        let mut token = good.token.clone();
        token.pop();
        token.push(if good.token.ends_with('0') { '1' } else { '0' });
        token
    };
    for token in ["tsr_0123456789ab_00", "rubbish", forged.as_str()] {
        let stranger = Person { token: token.into(), ..good.clone() };
        let status = stranger.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token}");
        assert!(from_status(&status).hint.contains("client.toml"), "{status:?}");
    }
    let mut bare = v1::admin_client::AdminClient::new(good.channel.clone());
    let status = bare.who_am_i(v1::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // A person is no node, with whatever token.
    let renew = good.agents().renew(v1::RenewRequest::default()).await;
    assert_eq!(code(renew), Code::Unauthenticated);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn each_role_gets_as_far_as_it_may() {
    let scheduler = Scheduler::start().await;
    for (role, submit, cordon, prices, teams, join) in [
        (Role::Member, true, false, false, false, false),
        (Role::TeamAdmin, true, false, false, false, false),
        (Role::Operator, true, true, false, false, true),
        (Role::Finance, false, false, false, false, false),
        (Role::Admin, true, true, true, true, true),
    ] {
        let who = scheduler.person(&format!("u-{}", role.word()), role, &["nlp"]).await;
        let allowed = |code: Code| !matches!(code, Code::PermissionDenied);
        let word = role.word();
        assert_eq!(allowed(code(who.submit(spec("nlp"), "").await)), submit, "{word} submit");
        let request = v1::CordonRequest { node: "n9".into(), reason: "x".into(), drain: false };
        assert_eq!(allowed(code(who.nodes().cordon(request).await)), cordon, "{word} cordon");
        let request = v1::SetPricesRequest::default();
        assert_eq!(allowed(code(who.usage().set_prices(request).await)), prices, "{word} prices");
        let request = v1::CreateTeamRequest { team: format!("t-{word}"), ..Default::default() };
        assert_eq!(allowed(code(who.admin().create_team(request).await)), teams, "{word} teams");
        let request = v1::ListTokensRequest {};
        assert_eq!(allowed(code(who.admin().list_tokens(request).await)), teams, "{word} tokens");
        let request = v1::CreateJoinTokenRequest::default();
        let outcome = who.admin().create_join_token(request).await;
        assert_eq!(allowed(code(outcome)), join, "{word} join token");
    }
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_revoked_token_opens_nothing_from_that_moment() {
    let scheduler = Scheduler::start().await;
    let admin = scheduler.person("boss", Role::Admin, &[]).await;
    let request = v1::CreateTokenRequest {
        user: "ana".into(),
        role: "member".into(),
        teams: vec!["nlp".into()],
        ..Default::default()
    };
    let made = admin.admin().create_token(request).await.unwrap().into_inner();
    let ana = Person { token: made.secret, ..admin.clone() };
    assert_eq!(code(ana.admin().who_am_i(v1::WhoAmIRequest {}).await), Code::Ok);
    let id = made.token.unwrap().id;
    let revoked = admin.admin().revoke_token(v1::RevokeTokenRequest { id }).await.unwrap();
    assert!(revoked.into_inner().revoked);
    let status = ana.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("was revoked"), "{status:?}");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_join_token_lets_one_node_in_once() {
    let scheduler = Scheduler::start().await;
    let token = scheduler.join_token(Some("n0")).await;
    // A bad request costs no token, and neither does the wrong name.
    assert_eq!(code(scheduler.join_with(&token, "n0", "rubbish").await), Code::InvalidArgument);
    assert_eq!(code(scheduler.join(&token, "n1").await), Code::Unauthenticated);
    assert_eq!(code(scheduler.join(&token, "../n0").await), Code::InvalidArgument);
    assert_eq!(code(scheduler.join(&token, "n0").await), Code::Ok);
    let again = scheduler.join(&token, "n0").await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert!(again.message().contains("used already"), "{again:?}");
    // The right id with another secret.
    let other = scheduler.join_token(None).await;
    let (id, secret) = (token.split('.').nth(2).unwrap(), other.split('.').nth(3).unwrap());
    let ca = token.split('.').nth(1).unwrap();
    let mixed = format!("tsrj1.{ca}.{id}.{secret}");
    assert_eq!(code(scheduler.join(&mixed, "n0").await), Code::Unauthenticated);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_token_for_any_node_does_not_give_the_name_of_one_that_is_known() {
    let scheduler = Scheduler::start().await;
    let _agent = Agent::up(&scheduler, "n0").await;
    let any = scheduler.join_token(None).await;
    for state in ["up", "silent"] {
        let status = scheduler.join(&any, "n0").await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{state}");
        assert!(status.message().contains(state), "{status:?}");
        scheduler.silence("n0").await;
    }
    assert_eq!(code(scheduler.join(&any, "n1").await), Code::Ok, "the token is still good");
    let named = scheduler.join_token(Some("n0")).await;
    assert_eq!(code(scheduler.join(&named, "n0").await), Code::Ok);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_node_speaks_for_itself_only() {
    let scheduler = Scheduler::start().await;
    let token = scheduler.join_token(None).await;
    let identity = scheduler.join(&token, "n0").await.unwrap();
    let channel = scheduler.channel(Some(identity)).await;
    let status = Agent::hello(channel.clone(), "n1", 1).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    // And it is no person: its certificate opens nothing of theirs.
    let mut jobs = v1::jobs_client::JobsClient::new(channel.clone());
    assert_eq!(code(jobs.list(v1::ListJobsRequest::default()).await), Code::Unauthenticated);
    // A certificate is renewed for the same node, whatever the request asks for.
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["n1".to_owned()]).unwrap();
    let csr_pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let mut agents = v1::agents_client::AgentsClient::new(channel);
    let renewed = agents.renew(v1::RenewRequest { csr_pem }).await.unwrap().into_inner();
    let identity =
        dial::Identity { cert_pem: renewed.certificate_pem, key_pem: key.serialize_pem() };
    let channel = scheduler.channel(Some(identity)).await;
    assert!(Agent::hello(channel, "n0", 2).await.is_ok());
    scheduler.shut_down().await;
}

#[tokio::test]
async fn an_agent_does_not_take_a_node_for_the_scheduler() {
    use std::sync::Arc;
    use tokio_rustls::rustls;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let scheduler = Scheduler::start().await;
    let token = scheduler.join_token(None).await;
    // Even under a name the agent would look for.
    let identity = scheduler.join(&token, "localhost").await.unwrap();
    let mut chain = vec![CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap()];
    chain.push(scheduler.ca.der().clone());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = acceptor.accept(tcp).await;
        }
    });
    for trust in
        [Trust::CaPem(scheduler.ca.pem().to_owned()), Trust::CaSha256(scheduler.ca.fingerprint())]
    {
        let dial = Dial { server: server.clone(), trust, identity: None };
        let outcome = dial::connect(&dial).await;
        assert!(matches!(outcome, Err(DialError::Untrusted { .. })), "{outcome:?}");
    }
    scheduler.shut_down().await;
}

/// Runs a job through its whole life and gives its id.
async fn run_a_job(ana: &Person, agent: &mut Agent) -> u64 {
    let job = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let Order::Prepare(prepare) = agent.order().await else { panic!("no Prepare") };
    assert_eq!((prepare.attempt.as_str(), prepare.session), (&*format!("{job}.1"), 7));
    assert_eq!((prepare.ranks, prepare.world_size, prepare.gpu_uuids.len()), (1, 1, 1));
    assert_eq!(prepare.user, "ana");
    let attempt = prepare.attempt;
    agent
        .say(Report::Prepared(v1::Prepared { attempt: attempt.clone(), master_port: 4_000 }))
        .await;
    let Order::Commit(commit) = agent.order().await else { panic!("no Commit") };
    assert_eq!((commit.master_addr.as_str(), commit.master_port), ("127.0.0.1", 4_000));
    agent.say(Report::Started(v1::Started { attempt: attempt.clone() })).await;
    let end = Some(v1::TaskEnd { how: Some(v1::task_end::How::Exited(3)) });
    agent.say(Report::TaskEnded(v1::TaskEnded { attempt: attempt.clone(), rank: 0, end })).await;
    agent.say(Report::Released(v1::Released { attempt: attempt.clone(), occupied: vec![] })).await;
    loop {
        match agent.order().await {
            Order::Stop(_) => {}
            Order::Forget(forget) => {
                assert_eq!(forget.attempt, attempt);
                return job;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_job_goes_through_its_life_and_whoever_watches_sees_it() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    // It waits for a node that does not exist yet.
    let job_id = ana.submit(spec("nlp"), "once").await.unwrap().job_id;
    let again = ana.submit(spec("nlp"), "once").await.unwrap();
    assert_eq!((again.job_id, again.existing), (job_id, true));
    let mut other = spec("nlp");
    other.name = "different".into();
    assert_eq!(code(ana.submit(other, "once").await), Code::AlreadyExists);
    let mut watch = ana.jobs().watch(v1::WatchRequest { job_id }).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.state(), v1::JobState::Pending);
    let watched = tokio::spawn(async move {
        let mut states = vec![first.state()];
        while let Some(job) = watch.message().await.unwrap() {
            states.push(job.state());
        }
        states
    });
    let request = v1::CancelRequest { job_id, ..Default::default() };
    let cancelled = ana.jobs().cancel(request).await.unwrap().into_inner();
    assert!(cancelled.job.is_some_and(|j| j.cancel_requested));
    assert_eq!(cancelled.changed, 1);
    let states = watched.await.unwrap();
    assert_eq!(states.last(), Some(&v1::JobState::Cancelled), "{states:?}");

    let mut agent = Agent::up(&scheduler, "n0").await;
    let job_id = run_a_job(&ana, &mut agent).await;
    let job = ana.jobs().get(v1::GetJobRequest { job_id, index: None }).await.unwrap().into_inner();
    assert_eq!((job.state(), job.exit_code), (v1::JobState::Failed, Some(3)), "{}", job.reason);
    assert_eq!(job.nodes, ["n0"]);
    assert_eq!(job.spec.unwrap().env["KEY"], "secret");
    // Watching what has ended gives it once.
    let mut watch = ana.jobs().watch(v1::WatchRequest { job_id }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().state(), v1::JobState::Failed);
    assert!(watch.message().await.unwrap().is_none());
    let status = ana.admin().status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.nodes_up, status.gpus, status.gpus_held), (1, 2, 0));
    assert_eq!(status.placements_refused, 0);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_second_stream_of_a_node_ends_the_first() {
    let scheduler = Scheduler::start().await;
    let mut first = Agent::up(&scheduler, "n0").await;
    let mut second = Agent::hello(first.channel.clone(), "n0", 8).await.unwrap();
    assert!(matches!(second.order().await, Order::Welcome(w) if w.session == 8));
    let ended = first.orders.message().await;
    assert!(matches!(ended, Ok(None) | Err(_)), "{ended:?}");
    // The second one's heartbeats are answered.
    let beat = v1::Heartbeat { sent_boottime_ms: 1_234, unix_ms: 0 };
    second.say(Report::Heartbeat(beat)).await;
    let Order::Grant(grant) = second.order().await else { panic!("no Grant") };
    assert_eq!((grant.heartbeat_sent_boottime_ms, grant.lease_ms), (1_234, 600_000));
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_hello_must_come_first() {
    let scheduler = Scheduler::start().await;
    let token = scheduler.join_token(None).await;
    let identity = scheduler.join(&token, "n0").await.unwrap();
    let channel = scheduler.channel(Some(identity)).await;
    let (reports, outbox) = mpsc::channel(1);
    reports.send(report(Report::Heartbeat(v1::Heartbeat::default()))).await.unwrap();
    let mut agents = v1::agents_client::AgentsClient::new(channel);
    let outcome = agents.control(ReceiverStream::new(outbox)).await;
    assert_eq!(code(outcome), Code::InvalidArgument);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn others_jobs_are_seen_as_far_as_each_may() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let job_id = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    // Who: sees the job, sees its script, may read its output, may cancel it.
    for (user, role, team, sees, content, cancels) in [
        ("bob", Role::Member, "nlp", true, false, false),
        ("eve", Role::Member, "vision", false, false, false),
        ("eva", Role::TeamAdmin, "vision", false, false, false),
        ("ops", Role::Operator, "vision", true, false, true),
        ("fin", Role::Finance, "vision", true, false, false),
        ("tia", Role::TeamAdmin, "nlp", true, true, true),
    ] {
        let who = scheduler.person(user, role, &[team]).await;
        let got = who.jobs().get(v1::GetJobRequest { job_id, index: None }).await;
        let explained = who
            .jobs()
            .explain(v1::ExplainRequest {
                subject: Some(v1::explain_request::Subject::JobId(job_id)),
            })
            .await;
        let watch = who.jobs().watch(v1::WatchRequest { job_id }).await;
        let want = if sees { Code::Ok } else { Code::NotFound };
        assert_eq!(code(explained), want, "{user} explain");
        assert_eq!(code(watch), want, "{user} watch");
        match got {
            Ok(job) => {
                assert!(sees, "{user}");
                let spec = job.into_inner().spec.unwrap();
                assert_eq!(spec.script.is_some(), content, "{user} script");
                assert_eq!(!spec.env.is_empty(), content, "{user} env");
            }
            Err(status) => {
                assert_eq!((status.code(), sees), (Code::NotFound, false), "{user}");
            }
        }
        let logs = who.jobs().logs(v1::LogsRequest { job_id, ..Default::default() }).await;
        let want = match (sees, content) {
            (_, true) => Code::Ok,
            (true, false) => Code::PermissionDenied,
            (false, _) => Code::NotFound,
        };
        assert_eq!(code(logs), want, "{user} logs");
        let list = who.jobs().list(v1::ListJobsRequest::default()).await.unwrap().into_inner();
        assert_eq!(list.jobs.len(), usize::from(sees), "{user} list");
        assert!(list.jobs.iter().all(|j| j.spec.as_ref().unwrap().script.is_none()));
        if !cancels {
            let outcome =
                who.jobs().cancel(v1::CancelRequest { job_id, ..Default::default() }).await;
            let want = if sees { Code::PermissionDenied } else { Code::NotFound };
            assert_eq!(code(outcome), want, "{user} cancel");
        }
    }
    scheduler.shut_down().await;
}

#[tokio::test]
async fn usage_is_rated_and_shown_to_its_team() {
    let scheduler = Scheduler::start().await;
    let boss = scheduler.person("boss", Role::Admin, &[]).await;
    let price = v1::Price { gpu_model: "h100".into(), usd_per_gpu_hour: "3.6".into() };
    let request = v1::SetPricesRequest { prices: vec![price], ..Default::default() };
    let version = boss.usage().set_prices(request).await.unwrap().into_inner();
    assert_eq!(version.version, 1);
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let eve = scheduler.person("eve", Role::Member, &["vision"]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    run_a_job(&ana, &mut agent).await;
    let window = |teams: &[&str]| v1::UsageRequest {
        from_unix_ms: 0,
        to_unix_ms: i64::MAX,
        by: vec!["team".into(), "class".into()],
        teams: teams.iter().map(|t| (*t).to_owned()).collect(),
    };
    let own = ana.usage().report(window(&[])).await.unwrap().into_inner();
    assert_eq!(own.by, ["team", "class"]);
    assert!(own.lines.iter().all(|l| l.keys == ["nlp", "allocated"]), "{own:?}");
    assert!(eve.usage().report(window(&[])).await.unwrap().into_inner().lines.is_empty());
    assert_eq!(code(eve.usage().report(window(&["nlp"])).await), Code::PermissionDenied);
    let all = boss.usage().report(window(&[])).await.unwrap().into_inner();
    assert!(all.lines.iter().any(|l| l.keys == ["pool:idle", "idle"]), "{all:?}");
    assert!(all.to_unix_ms < i64::MAX, "the window is cut to now");
    assert!(all.lines.iter().all(|l| l.unpriced_gpu_part_ms == "0"));
    let backwards = v1::UsageRequest { from_unix_ms: 2, to_unix_ms: 1, ..Default::default() };
    assert_eq!(code(boss.usage().report(backwards).await), Code::InvalidArgument);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn samples_are_acknowledged_once_and_shown() {
    let scheduler = Scheduler::start().await;
    let ops = scheduler.person("ops", Role::Operator, &[]).await;
    let agent = Agent::up(&scheduler, "n0").await;
    let latest = |node: &str| v1::LatestRequest { node: node.into() };
    let before = ops.nodes().latest(latest("n0")).await.unwrap().into_inner();
    assert_eq!(before.at_unix_ms, None);
    assert_eq!(code(ops.nodes().latest(latest("n7")).await), Code::NotFound);

    let (batches, outbox) = mpsc::channel(4);
    let mut agents = v1::agents_client::AgentsClient::new(agent.channel.clone());
    let mut acks = agents.telemetry(ReceiverStream::new(outbox)).await.unwrap().into_inner();
    let tick = |sequence: u64, watts: f32| v1::Tick {
        sequence,
        at_unix_ms: 1_000 * sequence as i64,
        gpu_uuids: vec!["GPU-n0-0".into(), "GPU-n0-1".into()],
        gpu_gauges: vec![v1::FloatColumn {
            field: v1::GaugeField::GpuPowerMw.into(),
            present: 0b01,
            values: vec![watts * 1_000.0, 0.0],
        }],
        ..Default::default()
    };
    let batch = |ticks: Vec<v1::Tick>, gaps: Vec<v1::Gap>| v1::TelemetryBatch {
        boot_id: "boot-1".into(),
        ticks,
        gaps,
    };
    for (sent, want) in [
        (batch(vec![tick(1, 300.0), tick(2, 310.0)], vec![]), 2),
        (batch(vec![tick(2, 999.0)], vec![]), 2),
        (batch(vec![tick(6, 320.0)], vec![v1::Gap { first: 3, count: 3 }]), 6),
        // One that cannot be read is lost, and does not come again for ever.
        (batch(vec![v1::Tick { gpu_uuids: vec!["a b".into()], ..tick(7, 0.0) }], vec![]), 7),
    ] {
        batches.send(sent).await.unwrap();
        let ack = acks.message().await.unwrap().unwrap();
        assert_eq!((ack.boot_id.as_str(), ack.sequence), ("boot-1", want));
    }
    let now = ops.nodes().latest(latest("n0")).await.unwrap().into_inner();
    assert_eq!(now.at_unix_ms, Some(6_000));
    let power: Vec<Option<u32>> = now.gpus.iter().map(|g| g.power_mw).collect();
    assert_eq!(power, [Some(320_000), None], "not measured is not 0");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn output_is_fetched_from_the_node_and_gaps_are_told() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    let job_id = run_a_job(&ana, &mut agent).await;
    let logs = |follow: bool, offset: u64| v1::LogsRequest {
        job_id,
        follow,
        offsets: [(0, offset)].into(),
        ..Default::default()
    };
    let read = async |request: v1::LogsRequest| {
        let mut stream = ana.jobs().logs(request).await.unwrap().into_inner();
        let mut got = Vec::new();
        while let Some(chunk) = stream.message().await.unwrap() {
            got.push((chunk.offset, String::from_utf8(chunk.data.to_vec()).unwrap(), chunk.gap));
        }
        got
    };
    // Its agent has no stream for output yet.
    let told = read(logs(true, 0)).await;
    assert_eq!(told, [(0, String::new(), "n0 is not connected".to_owned())]);

    let (pieces, outbox) = mpsc::channel(4);
    pieces.send(v1::LogPiece::default()).await.unwrap();
    let mut agents = v1::agents_client::AgentsClient::new(agent.channel.clone());
    let mut wanted = agents.logs(ReceiverStream::new(outbox)).await.unwrap().into_inner();
    tokio::spawn(async move {
        let all = b"one\ntwo\n";
        while let Ok(Some(wish)) = wanted.message().await {
            let from = usize::try_from(wish.offset).unwrap().max(4);
            let piece = v1::LogPiece {
                request: wish.request,
                offset: from as u64,
                data: all[from..].to_vec(),
                end: true,
                error: String::new(),
            };
            pieces.send(piece).await.unwrap();
        }
    });
    let gap = (0, String::new(), "4 bytes are no longer kept".to_owned());
    let rest = (4, "two\n".to_owned(), String::new());
    assert_eq!(read(logs(true, 0)).await, [gap, rest.clone()]);
    assert_eq!(read(logs(false, 4)).await, [rest]);
    assert_eq!(read(logs(false, 8)).await, []);
    let wrong = v1::LogsRequest { job_id, ranks: vec![1], ..Default::default() };
    assert_eq!(code(ana.jobs().logs(wrong).await), Code::InvalidArgument);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn output_is_followed_from_before_the_start_to_the_last_byte() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let two_ranks = v1::JobSpec { tasks_per_node: 2, ..spec("nlp") };
    let job_id = ana.submit(two_ranks, "").await.unwrap().job_id;
    let request = v1::LogsRequest { job_id, follow: true, ..Default::default() };
    let mut stream = ana.jobs().logs(request).await.unwrap().into_inner();

    let mut agent = Agent::up(&scheduler, "n0").await;
    let (pieces, outbox) = mpsc::channel(4);
    let mut agents = v1::agents_client::AgentsClient::new(agent.channel.clone());
    let mut wanted = agents.logs(ReceiverStream::new(outbox)).await.unwrap().into_inner();
    // What the tasks have written so far, and whether that is all.
    let (written, look) = tokio::sync::watch::channel((String::new(), false));
    tokio::spawn(async move {
        while let Ok(Some(wish)) = wanted.message().await {
            let (text, end) = look.borrow().clone();
            let text = format!("{}:{text}", wish.rank);
            let from = usize::try_from(wish.offset).unwrap();
            let piece = v1::LogPiece {
                request: wish.request,
                offset: wish.offset,
                data: text.as_bytes()[from..].to_vec(),
                end,
                error: String::new(),
            };
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    });
    let Order::Prepare(prepare) = agent.order().await else { panic!("no Prepare") };
    let attempt = prepare.attempt;
    agent.say(Report::Prepared(v1::Prepared { attempt: attempt.clone(), master_port: 1 })).await;
    // An order may come twice.
    while !matches!(agent.order().await, Order::Commit(_)) {}
    agent.say(Report::Started(v1::Started { attempt: attempt.clone() })).await;

    let mut got = [String::new(), String::new()];
    let mut until = async |want: [&str; 2]| {
        while got != want {
            let chunk = stream.message().await.unwrap().expect("more to come");
            assert_eq!(chunk.gap, "");
            let text = &mut got[chunk.rank as usize];
            assert_eq!(chunk.offset as usize, text.len());
            text.push_str(std::str::from_utf8(&chunk.data).unwrap());
        }
    };
    until(["0:", "1:"]).await;
    written.send(("step 1\n".into(), false)).unwrap();
    until(["0:step 1\n", "1:step 1\n"]).await;
    written.send(("step 1\nbye\n".into(), true)).unwrap();
    until(["0:step 1\nbye\n", "1:step 1\nbye\n"]).await;
    for rank in 0..2 {
        let end = Some(v1::TaskEnd { how: Some(v1::task_end::How::Exited(0)) });
        agent.say(Report::TaskEnded(v1::TaskEnded { attempt: attempt.clone(), rank, end })).await;
    }
    assert!(stream.message().await.unwrap().is_none(), "it ends with the job");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_browser_and_a_grpc_tool_find_their_way() {
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::pki_types::ServerName;

    let scheduler = Scheduler::start().await;
    let get = async |path: &str| {
        let trust = Trust::CaPem(scheduler.ca.pem().to_owned());
        let mut config = dial::client_tls_config(&trust, None).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = tokio::net::TcpStream::connect(scheduler.address).await.unwrap();
        let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), tcp)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tls.read_to_string(&mut answer).await.unwrap();
        answer
    };
    for (path, status, text) in [
        ("/", "200", "tessera submit"),
        ("/healthz", "200", "ok\n"),
        ("/nothing", "404", "there is no such page"),
        // Not gRPC, and still nothing of it without a token.
        ("/tessera.v1.Jobs/List", "200", "grpc-status: 16"),
        ("/tessera.v1.Jobs/Destroy", "200", "grpc-status: 12"),
    ] {
        let answer = get(path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(answer.contains(text), "{path}: {answer}");
    }

    use tonic_health::pb::health_client::HealthClient;
    let channel = scheduler.channel(None).await;
    let check = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let health = HealthClient::new(channel.clone()).check(check).await.unwrap().into_inner();
    assert_eq!(health.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"tessera.v1.Jobs"), "{names:?}");
    scheduler.shut_down().await;
}

#[tokio::test]
async fn nodes_are_listed_cordoned_and_told_apart() {
    let scheduler = Scheduler::start().await;
    let ops = scheduler.person("ops", Role::Operator, &[]).await;
    let _agent = Agent::up(&scheduler, "n0").await;
    let request = v1::CordonRequest { node: "n0".into(), drain: true, reason: "fan".into() };
    let node = ops.nodes().cordon(request).await.unwrap().into_inner();
    let cordon = node.cordon.unwrap();
    assert_eq!((cordon.drain, &*cordon.by, &*cordon.reason), (true, "ops", "fan"));
    let request = v1::UncordonRequest { node: "n0".into() };
    assert!(ops.nodes().uncordon(request).await.unwrap().into_inner().cordon.is_none());
    let all = ops.nodes().list(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].state, "up");
    assert_eq!(all[0].inventory.as_ref().unwrap(), &inventory("n0"));
    let request = v1::ListNodesRequest { nodes: vec!["n1".into()] };
    let status = ops.nodes().list(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(from_status(&status).hint, "did you mean n0?");
    let map = ops.admin().get_topology(v1::GetTopologyRequest {}).await.unwrap().into_inner();
    assert_eq!(map.unplaced, ["n0"]);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn who_may_not_see_a_job_is_told_that_a_gpu_is_held_and_no_more() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let eve = scheduler.person("eve", Role::Member, &["vision"]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    let job = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let Order::Prepare(_) = agent.order().await else { panic!("no Prepare") };
    let held = async |who: &Person| {
        let nodes = who.nodes().list(v1::ListNodesRequest::default()).await.unwrap().into_inner();
        let mut held = nodes.nodes[0].gpus.clone();
        held.retain(|g| g.held_by_job.is_some());
        assert_eq!(held.len(), 1);
        (held[0].held_by_job.unwrap(), held[0].team.clone())
    };
    assert_eq!(held(&ana).await, (job, "nlp".to_owned()));
    assert_eq!(held(&eve).await, (0, String::new()));
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_retired_node_is_gone_and_its_certificate_with_it() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let ops = scheduler.person("ops", Role::Operator, &[]).await;
    let mut agent = Agent::up(&scheduler, "n0").await;
    let job_id = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let Order::Prepare(prepare) = agent.order().await else { panic!("no Prepare") };
    let attempt = prepare.attempt;
    agent.say(Report::Prepared(v1::Prepared { attempt: attempt.clone(), master_port: 1 })).await;
    while !matches!(agent.order().await, Order::Commit(_)) {}
    agent.say(Report::Started(v1::Started { attempt })).await;

    let request = || v1::RetireRequest { node: "n0".into(), reason: "burnt".into() };
    assert_eq!(code(ana.nodes().retire(request()).await), Code::PermissionDenied);
    assert_eq!(code(ops.nodes().retire(request()).await), Code::FailedPrecondition, "it is up");
    let wrong = v1::RetireRequest { node: "n1".into(), ..request() };
    assert_eq!(code(ops.nodes().retire(wrong).await), Code::NotFound);
    scheduler.silence("n0").await;
    let retired = ops.nodes().retire(request()).await.unwrap().into_inner();
    assert_eq!(retired.jobs, [job_id]);
    assert_eq!(code(ops.nodes().retire(request()).await), Code::NotFound, "it is gone");

    let job = ana.jobs().get(v1::GetJobRequest { job_id, index: None }).await.unwrap().into_inner();
    assert_eq!(job.state(), v1::JobState::Lost, "{}", job.reason);
    let all = ops.nodes().list(v1::ListNodesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.nodes, []);
    // Its stream ends, and none begins again.
    while let Ok(Some(_)) = agent.orders.message().await {}
    let again = Agent::hello(agent.channel.clone(), "n0", 8).await.err().unwrap();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert!(again.message().contains("was retired"), "{again:?}");
    assert!(from_status(&again).hint.contains("tessera token create --node n0"), "{again:?}");
    let mut agents = v1::agents_client::AgentsClient::new(agent.channel.clone());
    let renewed = agents.renew(v1::RenewRequest::default()).await;
    assert_eq!(code(renewed), Code::Unauthenticated, "renew");
    let samples = agents.telemetry(tokio_stream::iter([])).await;
    assert_eq!(code(samples), Code::Unauthenticated, "telemetry");
    let output = agents.logs(tokio_stream::iter([])).await;
    assert_eq!(code(output), Code::Unauthenticated, "logs");
    // With a new token it is a node like any other.
    let mut back = Agent::up(&scheduler, "n0").await;
    back.say(Report::Heartbeat(v1::Heartbeat { sent_boottime_ms: 5, unix_ms: 0 })).await;
    while !matches!(back.order().await, Order::Grant(_)) {}
    scheduler.shut_down().await;
}

#[tokio::test]
async fn an_imagined_job_meets_the_same_door_as_a_submitted_one() {
    use v1::explain_request::Subject;
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let _agent = Agent::up(&scheduler, "n0").await;
    let within = vec![v1::Within { level: "nosuch".into(), required: true }];
    let placement = Some(v1::Placement { within, ..Default::default() });
    for (what, wrong) in [
        ("no such level", v1::JobSpec { placement, ..spec("nlp") }),
        ("no such team", spec("nobody")),
        ("another's team", spec("vision")),
        ("larger than any node", v1::JobSpec { gpus_per_node: 9, ..spec("nlp") }),
    ] {
        let subject = Some(Subject::Spec(wrong.clone()));
        let explained = ana.jobs().explain(v1::ExplainRequest { subject }).await.unwrap_err();
        let submitted = ana.submit(wrong, "").await.unwrap_err();
        assert_eq!(from_status(&explained), from_status(&submitted), "{what}");
    }
    let explain = async |subject| {
        let request = v1::ExplainRequest { subject: Some(subject) };
        ana.jobs().explain(request).await.unwrap().into_inner()
    };
    let many = v1::JobSpec { nodes: 5, ..spec("nlp") };
    assert_eq!(explain(Subject::Spec(many.clone())).await.verdict, "infeasible");
    assert_eq!(explain(Subject::Spec(spec("nlp"))).await.verdict, "starts_now");
    let job = ana.submit(many, "").await.unwrap().job_id;
    let waits = explain(Subject::JobId(job)).await;
    assert_eq!((waits.verdict.as_str(), waits.job_id), ("infeasible", Some(job)));
    ana.jobs().cancel(v1::CancelRequest { job_id: job, ..Default::default() }).await.unwrap();
    let ended = explain(Subject::JobId(job)).await;
    assert_eq!((ended.verdict.as_str(), ended.ladder.len()), ("ended", 0));
    assert!(ended.summary.contains("cancelled"), "{}", ended.summary);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn a_job_that_left_memory_is_explained_from_the_store() {
    use tessera_core::Event;
    use tessera_core::job_table::ENDED_KEPT;
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let job_id = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    ana.jobs().cancel(v1::CancelRequest { job_id, ..Default::default() }).await.unwrap();
    // So many more end that the first is no longer kept.
    let more = move |cluster: &tessera_core::Cluster, _| {
        let spec = cluster.jobs.get(tessera_model::JobId(job_id)).unwrap().spec.clone();
        let job = |i| {
            let job = tessera_model::JobId(cluster.next_job + i);
            let spec = spec.clone();
            let by = spec.user.clone();
            [Event::JobSubmitted { job, key: None, spec }, Event::CancelRequested { job, by }]
        };
        Ok(((), (0..ENDED_KEPT as u64).flat_map(job).collect()))
    };
    scheduler.handle.change(more).await.unwrap();
    let in_memory = move |view: &tessera_scheduler::writer::View<'_>| {
        view.cluster.jobs.get(tessera_model::JobId(job_id)).is_some()
    };
    assert!(!scheduler.handle.read(in_memory).await.unwrap());
    let subject = Some(v1::explain_request::Subject::JobId(job_id));
    let request = v1::ExplainRequest { subject };
    let explained = ana.jobs().explain(request.clone()).await.unwrap().into_inner();
    assert_eq!((explained.verdict.as_str(), explained.job_id), ("ended", Some(job_id)));
    let eve = scheduler.person("eve", Role::Member, &["vision"]).await;
    assert_eq!(code(eve.jobs().explain(request).await), Code::NotFound);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn health_follows_the_writer() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let scheduler = Scheduler::start().await;
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut health = HealthClient::new(scheduler.channel(None).await);
    let mut told = health.watch(request).await.unwrap().into_inner();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    // The writer ends while all else goes on.
    scheduler.handle.stop().await;
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    drop(told);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn reflection_is_for_trying_out_only() {
    let scheduler = Scheduler::start_as(false).await;
    let channel = scheduler.channel(None).await;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest::default();
    let outcome = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
        channel.clone(),
    )
    .server_reflection_info(tokio_stream::iter([request]))
    .await;
    assert_eq!(code(outcome), Code::Unimplemented);
    let request = tonic_reflection::pb::v1alpha::ServerReflectionRequest::default();
    let outcome =
        tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(
            channel,
        )
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    assert_eq!(code(outcome), Code::Unimplemented);
    scheduler.shut_down().await;
}

#[tokio::test]
async fn streams_end_when_the_scheduler_is_told_to_stop() {
    let scheduler = Scheduler::start().await;
    let ana = scheduler.person("ana", Role::Member, &["nlp"]).await;
    let job_id = ana.submit(spec("nlp"), "").await.unwrap().job_id;
    let mut watch = ana.jobs().watch(v1::WatchRequest { job_id }).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let mut agent = Agent::up(&scheduler, "n0").await;
    scheduler.shut_down().await;
    // What came before the end may still arrive.
    let last = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            other => break other.map(|_| ()),
        }
    };
    assert_eq!(code(last), Code::Unavailable);
    let last = loop {
        match agent.orders.message().await {
            Ok(Some(_)) => {}
            other => break other.map(|_| ()),
        }
    };
    assert_eq!(code(last), Code::Unavailable);
}
