//! Who may what: deny by default, by token for people and by certificate for nodes.

use std::fs;
use std::future::Future;

use tessera_model::RefusalKind::{self, Denied, NotFound, Unauthenticated};
use tessera_proto::dial::{Dial, Identity, Trust, connect};
use tessera_proto::status::from_status;
use tessera_proto::v1::agents_client::AgentsClient;
use tessera_proto::v1::jobs_client::JobsClient;
use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, Person, RUNTIME};
use tonic::{Request, Status};

#[test]
fn nobody_is_let_in_without_a_good_token() {
    let cluster = Cluster::start(ClusterSpec { agents: false, ..ClusterSpec::nodes(1) });
    let admin = cluster.admin();
    let as_token = |token: &str| Person::connect(&admin.server, &admin.ca, token).unwrap();
    let look = |p: &Person| {
        p.once(async { p.jobs().list(v1::ListJobsRequest::default()).await })
            .map(drop)
            .map_err(|no| no.kind)
    };
    assert_eq!(look(admin), Ok(()));
    // Nothing, nonsense, one that is cut off, one with a letter changed.
    let (cut, mut changed) = (&admin.token[..admin.token.len() - 1], admin.token.clone());
    let last = changed.pop().unwrap();
    changed.push(if last == 'a' { 'b' } else { 'a' });
    for token in ["", "tsr_", "nonsense", cut, &changed] {
        assert_eq!(look(&as_token(token)), Err(Unauthenticated), "{token:?}");
    }
    // One that was good until it was revoked.
    let ada = admin.create_person("ada", "member", &["nlp"]);
    assert_eq!(look(&ada), Ok(()));
    let tokens =
        admin.once(async { admin.admin().list_tokens(v1::ListTokensRequest {}).await }).unwrap();
    let id = tokens
        .tokens
        .iter()
        .find(|t| t.principal.as_ref().is_some_and(|p| p.user == "ada"))
        .unwrap()
        .id
        .clone();
    cluster.cli(&["token", "revoke", &id]).ok();
    assert_eq!(look(&ada), Err(Unauthenticated), "revoked");
    // The client file is for its owner alone, the secret nowhere in the database.
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(cluster.client_toml()).unwrap().permissions().mode() & 0o777, 0o600);
    let secret =
        admin.token.trim_start_matches("tsr_").rsplit(['.', '_']).next().unwrap().as_bytes();
    for file in ["tessera.db", "tessera.db-wal"] {
        let bytes = fs::read(cluster.data().join(file)).unwrap_or_default();
        assert!(
            !bytes.windows(secret.len()).any(|w| w == secret),
            "the token's secret is in {file}"
        );
    }
}

#[test]
fn everybody_may_what_the_role_says_and_no_more() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let ada = admin.create_person("ada", "member", &["nlp"]);
    let bob = admin.create_person("bob", "member", &["nlp"]);
    let eve = admin.create_person("eve", "member", &["vision"]);
    let fin = admin.create_person("fin", "finance", &[]);
    let ops = admin.create_person("ops", "operator", &[]);
    let script = "echo a secret line; while [ ! -e go ]; do sleep 0.2; done";
    let secret =
        v1::JobSpec { env: [("PASSWORD".into(), "hunter2".into())].into(), ..cluster.sh(script) };
    let id = ada.submit(secret);
    ada.wait_running(id);

    let get = |p: &Person| {
        p.once(async { p.jobs().get(v1::GetJobRequest { job_id: id, index: None }).await })
    };
    let kind = |answer: Result<(), tessera_model::Refusal>| answer.err().map(|no| no.kind);
    // Its own user sees all of it; a team mate, finance and operators its record; others nothing.
    let full = get(&ada).unwrap().spec.unwrap();
    assert_eq!((full.env.len(), full.argv.len()), (1, 3));
    for (who, p) in [("a team mate", &bob), ("finance", &fin), ("an operator", &ops)] {
        let spec = get(p).unwrap_or_else(|no| panic!("{who}: {no}")).spec.unwrap();
        let shown = format!("{spec:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("secret line"), "{who} sees {shown}");
    }
    assert_eq!(kind(get(&eve).map(drop)), Some(NotFound), "it is not even told apart from none");
    let listed = eve.all_jobs();
    assert!(listed.is_empty(), "{listed:?}");
    // Output is content too.
    for (who, p, want) in [("bob", &bob, Denied), ("fin", &fin, Denied), ("eve", &eve, NotFound)] {
        let request = v1::LogsRequest { job_id: id, ..Default::default() };
        let logs = p.once(async {
            let mut stream = p.jobs().logs(request).await?.into_inner();
            stream.message().await.map(tonic::Response::new)
        });
        assert_eq!(logs.err().map(|no| no.kind), Some(want), "{who} reads the output");
    }
    // Cancelling.
    let cancel = |p: &Person| {
        p.once(async {
            p.jobs().cancel(v1::CancelRequest { job_id: id, ..Default::default() }).await
        })
    };
    for (who, p, want) in [("bob", &bob, Denied), ("fin", &fin, Denied), ("eve", &eve, NotFound)] {
        assert_eq!(kind(cancel(p).map(drop)), Some(want), "{who} cancels");
    }
    assert_eq!(ada.job(id).state(), JobState::Running);
    let said = cluster.cli_as(&fin, &["cancel", &id.to_string()]);
    assert_eq!(said.code(), 1, "{said:?}");
    assert!(said.stderr.contains("error:") && said.stderr.contains("hint:"), "{said:?}");

    // Submitting for a team that is not one's own; submitting as finance.
    let submit = |p: &Person, team: &str| {
        let spec = v1::JobSpec { team: team.to_owned(), ..cluster.sh("true") };
        kind(p.try_submit(spec, "").map(drop))
    };
    assert_eq!(submit(&eve, "nlp"), Some(Denied));
    assert_eq!(submit(&fin, "nlp"), Some(Denied));
    assert_eq!(submit(&bob, "nlp"), None);
    // What is for admins and operators.
    let prices = v1::SetPricesRequest {
        prices: vec![v1::Price { gpu_model: "h100".into(), usd_per_gpu_hour: "1".into() }],
        ..Default::default()
    };
    let cordon = v1::CordonRequest { node: "n0".into(), drain: false, reason: "why not".into() };
    for (who, p) in [("ada", &ada), ("fin", &fin)] {
        let (prices, cordon) = (prices.clone(), cordon.clone());
        assert_eq!(
            kind(p.once(async { p.usage().set_prices(prices).await }).map(drop)),
            Some(Denied),
            "{who}"
        );
        assert_eq!(
            kind(p.once(async { p.nodes().cordon(cordon).await }).map(drop)),
            Some(Denied),
            "{who}"
        );
        let join = v1::CreateJoinTokenRequest::default();
        assert_eq!(
            kind(p.once(async { p.admin().create_join_token(join).await }).map(drop)),
            Some(Denied),
            "{who}"
        );
        let king = v1::CreateTokenRequest {
            user: "king".into(),
            role: "admin".into(),
            ..Default::default()
        };
        assert_eq!(
            kind(p.once(async { p.admin().create_token(king).await }).map(drop)),
            Some(Denied),
            "{who}"
        );
    }
    // A member's report holds its own teams only.
    let report = eve.report(0, tessera_tests::unix_ms(), &["team"]);
    assert!(report.lines.iter().all(|l| l.keys[0] != "nlp"), "{report:?}");
    assert_eq!(kind(cancel(&ops).map(drop)), None, "an operator may cancel");
    assert_eq!(ada.wait(id).state(), JobState::Cancelled);
}

#[test]
fn nodes_and_people_cannot_pass_for_each_other() {
    let mut cluster = Cluster::start(ClusterSpec { agents: false, ..ClusterSpec::nodes(2) });
    let admin = cluster.admin().clone();
    let token = admin.join_token("n0");
    let mut first = cluster.agent_command(0);
    first.args(["--join-token", &token]);
    let log = cluster.dir.join("first.log");
    let first = tessera_tests::Process::spawn("first", &mut first, &log).unwrap();
    admin.wait_node_up("n0", 0);

    // The same token again, from another folder: used up, and the agent says so and ends.
    let mut second = cluster.agent_command(1);
    second.args(["--join-token", &token]);
    let said = cluster.run(&mut second);
    assert_eq!(said.code(), 2, "{said:?}");
    assert!(said.stderr.contains("join"), "{said:?}");
    // A token for n0 lets no n1 in, even when it is new.
    let mut second = cluster.agent_command(1);
    second.args(["--join-token", &admin.join_token("n0")]);
    assert_eq!(cluster.run(&mut second).code(), 2);
    // One whose CA is another's is not sent at all.
    let fresh = admin.join_token("n1");
    let parts: Vec<&str> = fresh.split('.').collect();
    let wrong_ca = format!("{}.{}.{}.{}", parts[0], "0".repeat(64), parts[2], parts[3]);
    let mut second = cluster.agent_command(1);
    second.args(["--join-token", &wrong_ca]);
    let said = cluster.run(&mut second);
    assert_eq!(said.code(), 2, "{said:?}");
    let mut second = cluster.agent_command(1);
    second.args(["--join-token", &fresh]);
    let log = cluster.dir.join("second.log");
    let second = tessera_tests::Process::spawn("second", &mut second, &log).unwrap();
    admin.wait_node_up("n1", 0);
    drop(second);

    // A node's certificate is good for Agents and for nothing else.
    let kept = fs::read(cluster.nodes[0].state.join("tls/identity")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    let text = |key: &str| kept[key].as_str().unwrap_or_else(|| panic!("{key} is kept")).to_owned();
    let dial = |identity| Dial {
        server: admin.server.clone(),
        trust: Trust::CaPem(admin.ca.clone()),
        identity,
    };
    let identity = Identity { cert_pem: text("certificate_pem"), key_pem: text("key_pem") };
    let node = RUNTIME.block_on(connect(&dial(Some(identity)))).unwrap();
    let anybody = RUNTIME.block_on(connect(&dial(None))).unwrap();
    let list = v1::ListJobsRequest::default();
    assert_eq!(kind(JobsClient::new(node.clone()).list(list)), Some(Unauthenticated));
    let submit = v1::SubmitRequest { spec: Some(cluster.sh("true")), ..Default::default() };
    assert_eq!(kind(JobsClient::new(node.clone()).submit(submit)), Some(Unauthenticated));
    let csr = || v1::RenewRequest { csr_pem: "none".into() };
    assert_eq!(
        kind(AgentsClient::new(node).renew(csr())),
        Some(RefusalKind::Invalid),
        "let in, and the request is no good"
    );
    // A person's token, even an admin's, is no node.
    assert_eq!(kind(AgentsClient::new(anybody.clone()).renew(csr())), Some(Unauthenticated));
    let as_admin = |mut request: Request<v1::RenewRequest>| {
        let bearer = format!("Bearer {}", admin.token).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    };
    let request = as_admin(Request::new(csr()));
    assert_eq!(kind(AgentsClient::new(anybody.clone()).renew(request)), Some(Unauthenticated));
    let reports = tokio_stream::iter([v1::Report { report: None }]);
    assert_eq!(kind(AgentsClient::new(anybody).control(reports)), Some(Unauthenticated));
    assert_eq!(admin.node("n0").state, "up", "its agent was not disturbed");
    drop(first);
    cluster.stop_scheduler();
}

fn kind<T>(call: impl Future<Output = Result<T, Status>>) -> Option<RefusalKind> {
    RUNTIME.block_on(call).err().map(|status| from_status(&status).kind)
}
