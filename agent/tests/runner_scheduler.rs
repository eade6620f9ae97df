//! The agent's connections, against a scheduler that does only what a test tells it: TLS, joining,
//! Hello, heartbeats and grants, orders down and reports up, output on request.

#[allow(dead_code, reason = "each test file uses its part of it")]
mod runner_world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use runner_world::{HANG, World, attempt, gpu_id};
use tessera_agent::control::{Control, serve_logs};
use tessera_agent::join::{JoinError, JoinToken, keep_renewed, load_or_join};
use tessera_agent::session::BootMillis;
use tessera_model::{BootId, Bytes, GpuCondition, NodeId, NodeInventory, Refusal, RefusalKind};
use tessera_proto::dial::{Dial, DialError};
use tessera_proto::status::to_status;
use tessera_proto::v1;
use tessera_proto::v1::agents_server::{Agents, AgentsServer};
use v1::order::Order as Down;
use v1::report::Report as Up;

/// One control connection, in the test's hands.
struct Line {
    up: Streaming<v1::Report>,
    down: mpsc::UnboundedSender<Result<v1::Order, Status>>,
}

struct LogLine {
    up: Streaming<v1::LogPiece>,
    down: mpsc::UnboundedSender<Result<v1::LogWanted, Status>>,
}

struct Fake {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    lines: mpsc::UnboundedSender<Line>,
    logs: mpsc::UnboundedSender<LogLine>,
    joins: AtomicU32,
    renewals: AtomicU32,
    /// How long certificates live, milliseconds.
    life_ms: i64,
}

impl Fake {
    fn sign(&self, csr_pem: &str) -> v1::Certificate {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let mut params = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&csr.public_key, &self.issuer).unwrap();
        let now = i64::try_from(tessera_shim::proc::unix_ms()).unwrap();
        v1::Certificate {
            certificate_pem: signed.pem(),
            ca_pem: self.ca_pem.clone(),
            expires_unix_ms: now + self.life_ms,
        }
    }
}

#[tonic::async_trait]
impl Agents for Fake {
    type ControlStream = UnboundedReceiverStream<Result<v1::Order, Status>>;
    type TelemetryStream = ReceiverStream<Result<v1::TelemetryAck, Status>>;
    type LogsStream = UnboundedReceiverStream<Result<v1::LogWanted, Status>>;

    async fn join(
        &self,
        call: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        let request = call.into_inner();
        assert_eq!((request.token_id.as_str(), request.node.as_str()), ("id7", "n1"));
        if self.joins.fetch_add(1, Ordering::SeqCst) > 0 {
            let hint = "make a fresh one with `tessera token create --node NAME`";
            let used = Refusal::new(
                RefusalKind::Denied,
                "token",
                "the join token id7 was used already",
                hint,
            );
            return Err(to_status(&used));
        }
        assert_eq!(request.token_secret, "s3cret");
        Ok(Response::new(self.sign(&request.csr_pem)))
    }

    async fn renew(
        &self,
        call: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(self.sign(&call.into_inner().csr_pem)))
    }

    async fn control(
        &self,
        call: Request<Streaming<v1::Report>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (down, orders) = mpsc::unbounded_channel();
        let line = Line { up: call.into_inner(), down };
        self.lines.send(line).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(orders)))
    }

    async fn telemetry(
        &self,
        _: Request<Streaming<v1::TelemetryBatch>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn logs(
        &self,
        call: Request<Streaming<v1::LogPiece>>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let (down, wanted) = mpsc::unbounded_channel();
        let line = LogLine { up: call.into_inner(), down };
        self.logs.send(line).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(wanted)))
    }
}

/// A scheduler on a port of its own, and its CA's hash.
struct Scheduler {
    server: String,
    ca_sha256: String,
    fake: Arc<Fake>,
    lines: mpsc::UnboundedReceiver<Line>,
    logs: mpsc::UnboundedReceiver<LogLine>,
}

impl Scheduler {
    async fn start(life_ms: i64) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let (ca_pem, ca_der) = (ca.pem(), ca.der().clone());
        let issuer = Issuer::new(params, key);
        let config = server_config(&issuer, &ca_der);
        let (lines_in, lines) = mpsc::unbounded_channel();
        let (logs_in, logs) = mpsc::unbounded_channel();
        let fake = Arc::new(Fake {
            ca_pem,
            issuer,
            lines: lines_in,
            logs: logs_in,
            joins: AtomicU32::new(0),
            renewals: AtomicU32::new(0),
            life_ms,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("https://{}", listener.local_addr().unwrap());
        serve(listener, TlsAcceptor::from(Arc::new(config)), fake.clone());
        let hash = ring::digest::digest(&ring::digest::SHA256, &ca_der);
        let ca_sha256 = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { server, ca_sha256, fake, lines, logs }
    }

    fn token(&self) -> JoinToken {
        JoinToken::parse(&format!("tsrj1.{}.id7.s3cret", self.ca_sha256)).unwrap()
    }
}

fn server_config(issuer: &Issuer<'static, KeyPair>, ca: &CertificateDer<'static>) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, issuer).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
        .with_single_cert(
            vec![leaf.der().clone(), ca.clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// tonic takes an in-memory pipe for each TLS connection.
fn serve(listener: TcpListener, tls: TlsAcceptor, fake: Arc<Fake>) {
    let (pipes, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, pipes) = (tls.clone(), pipes.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = tls.accept(stream).await else { return };
                let (mut ours, theirs) = tokio::io::duplex(1 << 16);
                let _ = pipes.send(Ok::<_, std::io::Error>(theirs)).await;
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut ours).await;
            });
        }
    });
    let server = tonic::transport::Server::builder().add_service(AgentsServer::from_arc(fake));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
}

impl Line {
    async fn accept(lines: &mut mpsc::UnboundedReceiver<Self>) -> (Self, v1::Hello) {
        let mut line = tokio::time::timeout(HANG, lines.recv()).await.unwrap().unwrap();
        match line.report().await {
            Up::Hello(hello) => (line, hello),
            other => panic!("{other:?} before the hello"),
        }
    }

    fn send(&self, epoch: u64, order: Down) {
        self.down.send(Ok(v1::Order { epoch, order: Some(order) })).unwrap();
    }

    fn welcome(&self, hello: &v1::Hello) {
        self.send(7, Down::Welcome(v1::Welcome { session: hello.session, heartbeat_ms: 50 }));
    }

    async fn report(&mut self) -> Up {
        let report =
            tokio::time::timeout(HANG, self.up.message()).await.expect("the agent is silent");
        report.unwrap().expect("the agent hung up").report.unwrap()
    }

    /// The next report that is no heartbeat.
    async fn next(&mut self) -> Up {
        loop {
            match self.report().await {
                Up::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    async fn heartbeat(&mut self) -> v1::Heartbeat {
        match self.report().await {
            Up::Heartbeat(heartbeat) => heartbeat,
            other => panic!("{other:?} instead of a heartbeat"),
        }
    }

    /// Until the agent hangs up.
    async fn hung_up(mut self) {
        let gone = async { while let Ok(Some(_)) = self.up.message().await {} };
        tokio::time::timeout(HANG, gone).await.expect("the agent holds on");
    }
}

fn prepare(world: &World, id: &str, session: u64, script: &str) -> v1::Prepare {
    v1::Prepare {
        attempt: id.into(),
        session,
        ranks: 1,
        world_size: 1,
        nodes: vec!["n1".into()],
        addresses: vec!["127.0.0.1".into()],
        gpu_uuids: vec!["GPU-1".into()],
        gpus_per_node: 1,
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        working_dir: Some(world.dir.path().display().to_string()),
        cpus_per_task: 1,
        ..Default::default()
    }
}

fn inventory() -> NodeInventory {
    NodeInventory {
        node: NodeId::parse("n1").unwrap(),
        boot: BootId::parse("boot").unwrap(),
        agent_version: "0".into(),
        address: "127.0.0.1".into(),
        cpus: 2,
        memory: Bytes::gib(1),
        driver_version: None,
        gpus: vec![],
        nics: vec![],
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        neighbours: vec!["leaf-3".into()],
    }
}

type Conditions = BTreeMap<tessera_model::GpuId, GpuCondition>;

/// Joins, and starts the agent's side in the world's runtime.
async fn connect(world: &World, scheduler: &Scheduler) -> (watch::Sender<Conditions>, Dial) {
    let name = NodeId::parse("n1").unwrap();
    let token = scheduler.token();
    let state = world.state();
    let identity =
        load_or_join(&state, &scheduler.server, None, &name, Some(&token)).await.unwrap();
    let dial = identity.dial(&scheduler.server);
    let (conditions, seen) = watch::channel(BTreeMap::new());
    let (dials, dialed) = watch::channel(dial.clone());
    let (inventories, inventory) = watch::channel(inventory());
    let control = Control {
        dial: dialed.clone(),
        runner: world.runner.clone(),
        session: world.session.clone(),
        inventory,
        conditions: seen,
    };
    tokio::spawn(async move {
        control.run().await;
        drop((dials, inventories));
    });
    tokio::spawn(serve_logs(dialed, world.runner.clone()));
    (conditions, dial)
}

#[test]
fn a_job_from_hello_to_forget_and_over_a_broken_connection() {
    let world = World::new();
    world.runtime().block_on(async {
        let mut scheduler = Scheduler::start(3_600_000).await;
        let (conditions, _) = connect(&world, &scheduler).await;
        let (mut line, hello) = Line::accept(&mut scheduler.lines).await;
        assert_eq!(hello.session, world.session.id().0);
        let told = hello.inventory.as_ref().unwrap();
        assert_eq!((told.node.as_str(), told.labels["zone"].as_str()), ("n1", "a"));
        assert_eq!(told.neighbours, ["leaf-3"]);
        line.welcome(&hello);
        // A heartbeat at once, and a grant for it.
        let beat = line.heartbeat().await;
        let now = BootMillis::now().0;
        assert!(beat.sent_boottime_ms <= now);
        line.send(
            7,
            Down::Grant(v1::Grant {
                heartbeat_sent_boottime_ms: beat.sent_boottime_ms,
                lease_ms: 3_600_000,
            }),
        );
        // A condition is said when it changes, and only then.
        conditions.send_replace(Conditions::from([(gpu_id("GPU-2"), GpuCondition::Lost)]));
        match line.next().await {
            Up::Conditions(said) => assert_eq!(said.gpus[0].uuid, "GPU-2"),
            other => panic!("{other:?}"),
        }
        // An order of a scheduler that is over, and one that makes no sense.
        let order = prepare(&world, "201.1", hello.session, "read x; exit 9");
        line.send(6, Down::Prepare(order.clone()));
        match line.next().await {
            Up::Refused(refused) => assert!(refused.why.contains("epoch 6"), "{}", refused.why),
            other => panic!("{other:?}"),
        }
        line.send(7, Down::Prepare(v1::Prepare { attempt: "../..".into(), ..order.clone() }));
        match line.next().await {
            Up::Refused(refused) => assert_eq!(refused.attempt, "../.."),
            other => panic!("{other:?}"),
        }
        // It waits for its signal, and saves its work first.
        let script =
            "exec 2> /dev/null; trap 'touch saved; echo hi; exit 9' USR1; mkfifo up; while :; do read x < up; done";
        let mut order = prepare(&world, "201.1", hello.session, script);
        order.stop_on_lapse = true;
        order.checkpoint_file = Some("saved".into());
        line.send(7, Down::Prepare(order));
        match line.next().await {
            Up::Prepared(prepared) => assert!(prepared.master_port > 0),
            other => panic!("{other:?}"),
        }
        let commit =
            v1::Commit { attempt: "201.1".into(), master_addr: "127.0.0.1".into(), master_port: 1 };
        line.send(7, Down::Commit(commit));
        match line.next().await {
            Up::Started(started) => assert_eq!(started.attempt, "201.1"),
            other => panic!("{other:?}"),
        }
        let up = async {
            while !world.dir.path().join("up").exists() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(HANG, up).await.unwrap();
        // One that is none, and one that is.
        for signal in [65, 10] {
            let signal = v1::SignalTasks { attempt: "201.1".into(), signal };
            line.send(7, Down::Signal(signal));
        }
        let mut said = Vec::new();
        for _ in 0..3 {
            said.push(match line.next().await {
                Up::Checkpoint(seen) => format!("checkpoint {}", seen.attempt),
                Up::TaskEnded(ended) => {
                    assert_eq!(ended.end.unwrap().how, Some(v1::task_end::How::Exited(9)));
                    format!("ended {}", ended.rank)
                }
                Up::Released(released) => format!("released {}", released.occupied.len()),
                other => panic!("{other:?}"),
            });
        }
        assert!(
            said[0] == "checkpoint 201.1" && said[1] == "ended 0",
            "{said:?}"
        );
        assert_eq!(said[2], "released 0");
        // The line breaks before it is acknowledged: the next Hello says it again.
        let session = hello.session;
        drop(line);
        let (line, hello) = Line::accept(&mut scheduler.lines).await;
        assert_eq!(hello.session, session, "a broken line is no new life");
        assert_eq!((hello.epoch, hello.running.len(), hello.finished.len()), (7, 0, 1));
        assert_eq!(
            hello.finished[0].ended[0].end.as_ref().unwrap().how,
            Some(v1::task_end::How::Exited(9))
        );
        assert_eq!(hello.conditions.as_ref().unwrap().gpus.len(), 1);
        line.welcome(&hello);
        line.send(7, Down::Forget(v1::Forget { attempt: "201.1".into() }));
        drop(line);
        // Its output is still there.
        let mut logs = tokio::time::timeout(HANG, scheduler.logs.recv()).await.unwrap().unwrap();
        assert_eq!(logs.up.message().await.unwrap().unwrap().request, 0);
        let wanted = |request, attempt: &str, offset| v1::LogWanted {
            request,
            attempt: attempt.into(),
            rank: 0,
            offset,
            max_bytes: 2,
        };
        for (request, offset, data, end) in [(5, 0, "hi", false), (6, 2, "\n", true)] {
            logs.down.send(Ok(wanted(request, "201.1", offset))).unwrap();
            let piece = logs.up.message().await.unwrap().unwrap();
            assert_eq!(
                (piece.request, piece.offset, piece.data.as_slice(), piece.end),
                (request, offset, data.as_bytes(), end)
            );
        }
        logs.down.send(Ok(wanted(8, "999.1", 0))).unwrap();
        assert!(logs.up.message().await.unwrap().unwrap().error.contains("never ran here"));
        let (_line, hello) = Line::accept(&mut scheduler.lines).await;
        assert!(hello.finished.len() <= 1);
        assert!(world.runner.status(attempt("201.2")).is_none());
    });
}

#[test]
fn a_grant_that_comes_after_the_lease_lapsed_ends_the_session() {
    let world = World::new();
    world.runtime().block_on(async {
        let mut scheduler = Scheduler::start(3_600_000).await;
        let _agent = connect(&world, &scheduler).await;
        let (mut line, hello) = Line::accept(&mut scheduler.lines).await;
        line.welcome(&hello);
        let beat = line.heartbeat().await;
        let grant = |beat: v1::Heartbeat, lease_ms| {
            Down::Grant(v1::Grant { heartbeat_sent_boottime_ms: beat.sent_boottime_ms, lease_ms })
        };
        line.send(7, grant(beat, 300));
        let mut until = world.session.follow();
        let granted = until.wait_for(Option::is_some);
        let term = tokio::time::timeout(HANG, granted).await.unwrap().unwrap().unwrap();
        // Heartbeats go on past the end of the lease; nobody answered them in time.
        let late = loop {
            let beat = line.heartbeat().await;
            if beat.sent_boottime_ms > term.until.0 {
                break beat;
            }
        };
        line.send(7, grant(late, 300));
        line.hung_up().await;
        let (_line, again) = Line::accept(&mut scheduler.lines).await;
        assert_ne!(again.session, hello.session);
        assert_eq!(again.session, world.session.id().0);
    });
}

#[test]
fn a_second_life_of_a_node_needs_no_token_and_a_used_token_lets_nobody_in() {
    let state = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scheduler = Scheduler::start(3_600_000).await;
        let other = Scheduler::start(3_600_000).await;
        let name = NodeId::parse("n1").unwrap();
        let join = async |state: &std::path::Path, token: Option<JoinToken>| {
            load_or_join(state, &scheduler.server, None, &name, token.as_ref()).await
        };
        // The pin of another CA: the secret is not even sent.
        let error = join(state.path(), Some(other.token())).await.err().unwrap();
        assert!(matches!(error, JoinError::Dial(DialError::Untrusted { .. })), "{error}");
        assert_eq!(scheduler.fake.joins.load(Ordering::SeqCst), 0);
        join(state.path(), Some(scheduler.token())).await.unwrap();
        join(state.path(), None).await.unwrap();
        assert_eq!(scheduler.fake.joins.load(Ordering::SeqCst), 1);
        let elsewhere = tempfile::tempdir().unwrap();
        let error = join(elsewhere.path(), Some(scheduler.token())).await.err().unwrap();
        assert!(error.to_string().contains("was used already"), "{error}");
        assert!(error.hint().contains("tessera token create --node NAME"));
        assert!(!elsewhere.path().join("tls/identity").exists());
    });
}

#[test]
fn a_certificate_is_renewed_before_it_ends_and_the_new_one_is_used() {
    let state = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Half of its life is over at once.
        let scheduler = Scheduler::start(1).await;
        let name = NodeId::parse("n1").unwrap();
        let token = scheduler.token();
        let identity =
            load_or_join(state.path(), &scheduler.server, None, &name, Some(&token)).await.unwrap();
        let first = identity.dial(&scheduler.server).identity.unwrap().cert_pem;
        let (dials, mut dial) = watch::channel(identity.dial(&scheduler.server));
        let renewing =
            keep_renewed(state.path().to_owned(), scheduler.server.clone(), identity, dials);
        let renewing = tokio::spawn(renewing);
        tokio::time::timeout(HANG, dial.changed()).await.unwrap().unwrap();
        let second = dial.borrow().identity.clone().unwrap().cert_pem;
        assert_ne!(first, second);
        assert!(scheduler.fake.renewals.load(Ordering::SeqCst) > 0);
        renewing.abort();
    });
}

/// The agent as a process of its own. Killed when the test is over.
struct AgentProcess(std::process::Child);

impl AgentProcess {
    fn start(scheduler: &Scheduler, state: &std::path::Path, token: Option<&str>) -> Self {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tessera-agent"));
        command.args(["--server", &scheduler.server, "--name", "n1", "--address", "127.0.0.1"]);
        command.arg("--state").arg(state).arg("--run-as-agent-user").env("RUST_LOG", "warn");
        // None that simulates a node, and not this machine's own either.
        command.args(["--nvml-lib", "/no/such/library"]);
        if let Some(token) = token {
            command.args(["--join-token", token]);
        }
        Self(command.stderr(std::process::Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }

    /// Its exit code, and what it said.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_agent_leaves_its_tasks_running_and_the_next_one_tells_how_they_ended() {
    use rustix::process::Signal;
    // For its folder, and so that nothing is left of the tasks.
    let world = World::new();
    let state = world.state();
    world.runtime().block_on(async {
        let mut scheduler = Scheduler::start(3_600_000).await;
        let token = format!("tsrj1.{}.id7.s3cret", scheduler.ca_sha256);
        let agent = AgentProcess::start(&scheduler, &state, Some(&token));
        let (mut line, hello) = Line::accept(&mut scheduler.lines).await;
        line.welcome(&hello);
        let second = AgentProcess::start(&scheduler, &state, None).ended();
        assert_eq!(second.0, Some(2));
        assert!(second.1.contains("another agent (pid"), "{}", second.1);
        let go = world.dir.path().join("go");
        let made = std::process::Command::new("mkfifo").arg(&go).status().unwrap();
        assert!(made.success());
        let script = format!("read x < {}; exit 23", go.display());
        let mut order = prepare(&world, "202.1", hello.session, &script);
        (order.gpu_uuids, order.gpus_per_node) = (vec![], 0);
        line.send(7, Down::Prepare(order));
        assert!(matches!(line.next().await, Up::Prepared(_)));
        let (attempt, master_addr) = ("202.1".to_owned(), "127.0.0.1".to_owned());
        line.send(7, Down::Commit(v1::Commit { attempt, master_addr, master_port: 1 }));
        assert!(matches!(line.next().await, Up::Started(_)));
        agent.signal(Signal::KILL);
        assert_eq!(agent.ended().0, None);
        drop(line);
        let agent = AgentProcess::start(&scheduler, &state, None);
        let (mut line, again) = Line::accept(&mut scheduler.lines).await;
        assert_ne!(again.session, hello.session);
        assert_eq!(again.epoch, 7);
        assert_eq!((again.running.len(), again.running[0].started), (1, true));
        line.welcome(&again);
        std::fs::write(&go, "go\n").unwrap();
        match line.next().await {
            Up::TaskEnded(ended) => {
                assert_eq!(ended.end.unwrap().how, Some(v1::task_end::How::Exited(23)));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(line.next().await, Up::Released(_)));
        agent.signal(Signal::TERM);
        let (code, said) = agent.ended();
        assert_eq!(code, Some(0), "{said}");
    });
}
