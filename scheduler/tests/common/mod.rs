//! A whole scheduler in this process, and callers for it.
#![allow(dead_code)] // each test file uses its own part

use std::net::SocketAddr;
use std::sync::Arc;

use tessera_core::due::Limits;
use tessera_core::{Cluster, Event, door};
use tessera_model::{Millis, NodeId, Principal, Role, TeamId, UserId};
use tessera_proto::dial::{self, Dial, Identity, Trust};
use tessera_proto::v1;
use tessera_scheduler::ca::Ca;
use tessera_scheduler::config::wall_clock;
use tessera_scheduler::serve::listen::{self, Bounds, Tls};
use tessera_scheduler::serve::{self, Settings, Shared};
use tessera_scheduler::store::Store;
use tessera_scheduler::tokens;
use tessera_scheduler::writer::{self, Handle};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub struct Scheduler {
    pub handle: Handle,
    pub ca: Arc<Ca>,
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    served: Option<tokio::task::JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Scheduler {
    pub async fn start() -> Self {
        Self::start_as(true).await
    }

    /// With the settings of `--dev`, or without.
    pub async fn start_as(dev: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open(&dir.path().join("tls"), wall_clock()).unwrap());
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let tls = Arc::new(Tls::new(ca.clone(), names, wall_clock()).unwrap());
        let listener = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (handle, _thread) = writer::start(store, Limits::default()).unwrap();
        let (stop, stopping) = watch::channel(false);
        let settings = Settings {
            heartbeat: Millis(2_000),
            lease: Millis(600_000),
            lapse_grace: Millis(30_000),
            dev,
        };
        let shared = Shared::new(handle.clone(), ca.clone(), settings, stopping.clone());
        let router = serve::router(&shared).unwrap();
        let mut told = stopping;
        let served =
            tokio::spawn(listen::serve(listener, tls, router, Bounds::default(), async move {
                let _ = told.wait_for(|s| *s).await;
            }));
        let scheduler = Self { handle, ca, address, stop, served: Some(served), dir };
        for team in ["nlp", "vision"] {
            scheduler.team(team).await;
        }
        scheduler
    }

    async fn team(&self, name: &str) {
        let team = TeamId::parse(name).unwrap();
        self.handle.change(move |c, _| door::create_team(c, &admin(), team, "")).await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A token for a user of this role and these teams.
    pub async fn token(&self, user: &str, role: Role, teams: &[&str]) -> String {
        let principal = Principal {
            user: UserId::parse(user).unwrap(),
            role,
            teams: teams.iter().map(|t| TeamId::parse(t).unwrap()).collect(),
            unix: None,
        };
        let minted = tokens::mint().unwrap();
        let (id, hash) = (minted.id, minted.hash);
        self.handle
            .change(move |c, now| door::issue_token(c, now, &admin(), id, hash, principal, None))
            .await
            .unwrap();
        minted.token.reveal().to_owned()
    }

    pub async fn channel(&self, identity: Option<Identity>) -> Channel {
        let trust = Trust::CaPem(self.ca.pem().to_owned());
        dial::connect(&Dial { server: self.url(), trust, identity }).await.unwrap()
    }

    pub async fn person(&self, user: &str, role: Role, teams: &[&str]) -> Person {
        let token = self.token(user, role, teams).await;
        Person { channel: self.channel(None).await, token }
    }

    /// The text of a join token.
    pub async fn join_token(&self, node: Option<&str>) -> String {
        let minted = tokens::mint_join(&self.ca.fingerprint()).unwrap();
        let (id, hash) = (minted.id, minted.hash);
        let node = node.map(|n| NodeId::parse(n).unwrap());
        self.handle
            .change(move |_, now| door::issue_join_token(now, &admin(), id, hash, node))
            .await
            .unwrap();
        minted.token.reveal().to_owned()
    }

    /// What an agent does with a join token.
    pub async fn join(&self, token: &str, node: &str) -> Result<Identity, Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        self.join_with(token, node, &csr.pem().unwrap())
            .await
            .map(|cert_pem| Identity { cert_pem, key_pem: key.serialize_pem() })
    }

    pub async fn join_with(&self, token: &str, node: &str, csr: &str) -> Result<String, Status> {
        let parts: Vec<&str> = token.split('.').collect();
        let mut sha256 = [0; 32];
        for (i, byte) in sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&parts[1][2 * i..2 * i + 2], 16).unwrap();
        }
        let dial = Dial { server: self.url(), trust: Trust::CaSha256(sha256), identity: None };
        let channel = dial::connect(&dial).await.unwrap();
        let request = v1::JoinRequest {
            token_id: parts[2].into(),
            token_secret: parts[3].into(),
            node: node.into(),
            csr_pem: csr.into(),
        };
        let reply = v1::agents_client::AgentsClient::new(channel).join(request).await?;
        Ok(reply.into_inner().certificate_pem)
    }

    pub async fn events(&self) -> u64 {
        self.handle.read(|view| view.cluster.revision.0).await.unwrap()
    }

    /// As if nothing had been heard of a node for a while.
    pub async fn silence(&self, node: &str) {
        let node = NodeId::parse(node).unwrap();
        let silent =
            move |_: &Cluster, last_seen| Ok(((), vec![Event::NodeSilent { node, last_seen }]));
        self.handle.change(silent).await.unwrap();
    }

    pub async fn shut_down(mut self) {
        let _ = self.stop.send(true);
        self.served.take().unwrap().await.unwrap();
        self.handle.stop().await;
    }
}

pub fn admin() -> Principal {
    Principal { user: UserId::parse("root").unwrap(), role: Role::Admin, teams: vec![], unix: None }
}

#[derive(Clone)]
pub struct Bearer(MetadataValue<tonic::metadata::Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Called = InterceptedService<Channel, Bearer>;

/// Somebody with a token.
#[derive(Clone)]
pub struct Person {
    pub channel: Channel,
    pub token: String,
}

impl Person {
    fn bearer(&self) -> Bearer {
        Bearer(format!("Bearer {}", self.token).parse().unwrap())
    }

    pub fn jobs(&self) -> v1::jobs_client::JobsClient<Called> {
        v1::jobs_client::JobsClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn nodes(&self) -> v1::nodes_client::NodesClient<Called> {
        v1::nodes_client::NodesClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn usage(&self) -> v1::usage_client::UsageClient<Called> {
        v1::usage_client::UsageClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn admin(&self) -> v1::admin_client::AdminClient<Called> {
        v1::admin_client::AdminClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn agents(&self) -> v1::agents_client::AgentsClient<Called> {
        v1::agents_client::AgentsClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub async fn submit(&self, spec: v1::JobSpec, key: &str) -> Result<v1::SubmitReply, Status> {
        let request =
            v1::SubmitRequest { spec: Some(spec), idempotency_key: key.into(), array: None };
        self.jobs().submit(request).await.map(|r| r.into_inner())
    }
}

/// A job of one rank with one GPU.
pub fn spec(team: &str) -> v1::JobSpec {
    v1::JobSpec {
        name: "train".into(),
        team: team.into(),
        gpus_per_node: 1,
        script: Some("#!/bin/sh\necho secret\n".into()),
        env: [("KEY".to_owned(), "secret".to_owned())].into(),
        ..Default::default()
    }
}

/// An agent that does what the test says.
pub struct Agent {
    pub reports: mpsc::Sender<v1::Report>,
    pub orders: Streaming<v1::Order>,
    pub channel: Channel,
}

pub fn inventory(node: &str) -> v1::Inventory {
    let gpu = |i: u32| v1::Gpu {
        uuid: format!("GPU-{node}-{i}"),
        index: i,
        model: "NVIDIA H100 80GB HBM3".into(),
        memory_bytes: 80 << 30,
        pci_bus_id: format!("0000:{i:02x}:00.0"),
        ..Default::default()
    };
    v1::Inventory {
        node: node.into(),
        boot_id: "boot-1".into(),
        agent_version: "0.1.0".into(),
        address: "127.0.0.1".into(),
        cpus: 16,
        memory_bytes: 64 << 30,
        driver_version: Some("550.54".into()),
        gpus: (0..2).map(gpu).collect(),
        ..Default::default()
    }
}

pub fn report(report: v1::report::Report) -> v1::Report {
    v1::Report { report: Some(report) }
}

impl Agent {
    /// Connects with a hello for `named`, on a channel with somebody's certificate.
    pub async fn hello(channel: Channel, named: &str, session: u64) -> Result<Self, Status> {
        let (reports, outbox) = mpsc::channel(16);
        let hello = v1::Hello { session, inventory: Some(inventory(named)), ..Default::default() };
        reports.send(report(v1::report::Report::Hello(hello))).await.unwrap();
        let orders = v1::agents_client::AgentsClient::new(channel.clone())
            .control(ReceiverStream::new(outbox))
            .await?
            .into_inner();
        Ok(Self { reports, orders, channel })
    }

    pub async fn up(scheduler: &Scheduler, node: &str) -> Self {
        let token = scheduler.join_token(None).await;
        let identity = scheduler.join(&token, node).await.unwrap();
        let channel = scheduler.channel(Some(identity)).await;
        let mut agent = Self::hello(channel, node, 7).await.unwrap();
        assert!(matches!(agent.order().await, v1::order::Order::Welcome(_)));
        agent
    }

    pub async fn say(&self, what: v1::report::Report) {
        self.reports.send(report(what)).await.unwrap();
    }

    pub async fn order(&mut self) -> v1::order::Order {
        self.orders.message().await.unwrap().expect("an order").order.expect("its kind")
    }
}
