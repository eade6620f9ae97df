use std::collections::BTreeMap;
use std::pin::Pin;

use tessera_model::sample::{GpuSample, HostSample};
use tessera_model::{GpuId, NodeId, UnixMillis};
use tessera_proto::telemetry::Decoder;
use tessera_proto::v1::agents_server::{Agents, AgentsServer};
use tokio::net::TcpListener;
use tokio_stream::Stream as Incoming;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::*;

type Flow<T> = Pin<Box<dyn Incoming<Item = Result<T, Status>> + Send>>;

/// A scheduler that passes on what it hears and acknowledges it, or breaks the stream first. About
/// gaps alone it has nothing to say.
struct Fake {
    heard: mpsc::UnboundedSender<v1::TelemetryBatch>,
    /// Streams that end with an error after their first batch, unacknowledged.
    break_first: Arc<Mutex<u32>>,
}

#[tonic::async_trait]
impl Agents for Fake {
    type ControlStream = Flow<v1::Order>;
    type TelemetryStream = Flow<v1::TelemetryAck>;
    type LogsStream = Flow<v1::LogWanted>;

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::Certificate>, Status> {
        Err(Status::unimplemented("join"))
    }

    async fn renew(
        &self,
        _: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        Err(Status::unimplemented("renew"))
    }

    async fn control(
        &self,
        _: Request<Streaming<v1::Report>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        Err(Status::unimplemented("control"))
    }

    async fn logs(
        &self,
        _: Request<Streaming<v1::LogPiece>>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("logs"))
    }

    async fn telemetry(
        &self,
        request: Request<Streaming<v1::TelemetryBatch>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        let mut batches = request.into_inner();
        let (acks, outbox) = mpsc::channel(4);
        let (heard, breaks) = (self.heard.clone(), self.break_first.clone());
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                let broken = {
                    let mut left = breaks.lock();
                    let broken = *left > 0;
                    *left = left.saturating_sub(1);
                    broken
                };
                if broken {
                    let _ = acks.send(Err(Status::unavailable("not now"))).await;
                    return;
                }
                let ticks = batch.ticks.iter().map(|tick| tick.sequence).max().unwrap_or(0);
                let gaps = batch.gaps.iter().map(|g| g.first + g.count - 1).max().unwrap_or(0);
                let ack =
                    v1::TelemetryAck { boot_id: batch.boot_id.clone(), sequence: ticks.max(gaps) };
                let only_gaps = batch.ticks.is_empty();
                heard.send(batch).unwrap();
                if only_gaps {
                    continue;
                }
                let _ = acks.send(Ok(ack)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }
}

fn sample(boot: &str, sequence: u64) -> NodeSample {
    NodeSample {
        node: NodeId::parse("n0").unwrap(),
        boot: BootId::parse(boot).unwrap(),
        sequence,
        at: UnixMillis(1_790_000_000_000 + i64::try_from(sequence).unwrap() * 1000),
        gpus: vec![GpuSample {
            gpu: Some(GpuId::parse("GPU-0").unwrap()),
            power_mw: Some(u32::try_from(sequence).unwrap()),
            ..GpuSample::default()
        }],
        nics: Vec::new(),
        host: HostSample::default(),
    }
}

struct Bench {
    dir: tempfile::TempDir,
    heard: mpsc::UnboundedReceiver<v1::TelemetryBatch>,
    breaks: Arc<Mutex<u32>>,
    address: String,
}

impl Bench {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, heard) = mpsc::unbounded_channel();
        let breaks = Arc::new(Mutex::new(0));
        let fake = Fake { heard: sender, break_first: breaks.clone() };
        let serve = Server::builder().add_service(AgentsServer::new(fake));
        tokio::spawn(serve.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { dir: tempfile::tempdir().unwrap(), heard, breaks, address }
    }

    fn spool(&self, boot: &str) -> Spool {
        Spool::open(self.dir.path(), &BootId::parse(boot).unwrap(), 1 << 20).unwrap()
    }

    /// An uplink whose first `refused` dials fail.
    fn start(
        &self,
        spool: Spool,
        refused: u32,
    ) -> (mailbox::Sender<NodeSample>, tokio::task::JoinHandle<()>) {
        let (sender, samples) = mailbox::bounded(64);
        let config = UplinkConfig {
            backoff: (Duration::from_millis(1), Duration::from_millis(4)),
            batch_bytes: 1000,
            window: 2,
            ..UplinkConfig::default()
        };
        let address = self.address.clone();
        let left = Arc::new(Mutex::new(refused));
        let dial = move || {
            let endpoint = Endpoint::from_shared(address.clone()).unwrap();
            let refuse = {
                let mut left = left.lock();
                let refuse = *left > 0;
                *left = left.saturating_sub(1);
                refuse
            };
            async move {
                match refuse {
                    true => Err("nobody there".to_owned()),
                    false => endpoint.connect().await.map_err(|error| error.to_string()),
                }
            }
        };
        (sender, tokio::spawn(run(dial, samples, spool, config)))
    }

    /// Batches until all up to `last` of `boot` is accounted for: sequences in the order they came, and
    /// gaps. Each tick must decode on its own stream.
    async fn until(&mut self, boot: &str, last: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
        let mut sequences = Vec::new();
        let mut gaps = Vec::new();
        let mut done = 0;
        while done < last {
            let batch = self.heard.recv().await.unwrap();
            if batch.boot_id != boot {
                continue;
            }
            for gap in &batch.gaps {
                gaps.push((gap.first, gap.count));
                done = done.max(gap.first + gap.count - 1);
            }
            for tick in &batch.ticks {
                sequences.push(tick.sequence);
                done = done.max(tick.sequence);
            }
        }
        (sequences, gaps)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_arrive_and_leave_the_spool() {
    let mut bench = Bench::new().await;
    let (sender, uplink) = bench.start(bench.spool("b1"), 0);
    let mut decoder = Decoder::new(NodeId::parse("n0").unwrap());
    for sequence in 1..=3 {
        sender.send(sample("b1", sequence));
        let mut batch = bench.heard.recv().await.unwrap();
        assert_eq!(batch.ticks.len(), 1);
        let tick = batch.ticks.remove(0);
        // Names travel once.
        assert_eq!(tick.gpu_uuids.is_empty(), sequence > 1, "{sequence}");
        let boot = BootId::parse("b1").unwrap();
        let got = decoder.decode(&boot, tick).unwrap();
        assert_eq!(got, sample("b1", sequence));
    }
    drop(sender);
    uplink.await.unwrap();
    assert_eq!(bench.spool("b1").next_sequence(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_filled_in_order_with_its_gaps() {
    let mut bench = Bench::new().await;
    let mut spool = bench.spool("b1");
    // Left over from an earlier life; 11 to 14 were dropped by the mailbox.
    for sequence in (1..=10).chain(15..=40) {
        let bytes = Encoder::new().encode(&sample("b1", sequence)).encode_to_vec();
        spool.append(sequence, &bytes).unwrap();
    }
    *bench.breaks.lock() = 2;
    let (sender, uplink) = bench.start(spool, 3);
    sender.send(sample("b1", 41));
    let (sequences, gaps) = bench.until("b1", 41).await;
    let want: Vec<u64> = (1..=10).chain(15..=41).collect();
    assert_eq!((sequences, gaps), (want, vec![(11, 4)]));
    drop(sender);
    uplink.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_boot_is_sent_under_its_own_id() {
    let mut bench = Bench::new().await;
    let mut spool = bench.spool("b1");
    spool.append(1, &Encoder::new().encode(&sample("b1", 1)).encode_to_vec()).unwrap();
    drop(spool);
    let (sender, uplink) = bench.start(bench.spool("b2"), 0);
    sender.send(sample("b2", 1));
    let mut boots: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    while boots.len() < 2 {
        let batch = bench.heard.recv().await.unwrap();
        let sequences = batch.ticks.iter().map(|tick| tick.sequence);
        boots.entry(batch.boot_id).or_default().extend(sequences);
    }
    assert_eq!(boots, BTreeMap::from([("b1".into(), vec![1]), ("b2".into(), vec![1])]));
    drop(sender);
    uplink.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_uplink_never_connects() {
    let bench = Bench::new().await;
    let (sender, uplink) = bench.start(bench.spool("b1"), u32::MAX);
    for sequence in 1..=20 {
        sender.send(sample("b1", sequence));
    }
    drop(sender);
    uplink.await.unwrap();
    let mut spool = bench.spool("b1");
    assert_eq!(spool.waiting(), 20);
    let batch = spool.next(None, usize::MAX).unwrap().unwrap();
    assert_eq!(batch.records.len(), 20);
}

#[test]
fn a_pause_is_never_longer_than_said_nor_shorter_than_half() {
    let pause = Duration::from_secs(8);
    for _ in 0..200 {
        let taken = jitter(pause);
        assert!(taken >= pause / 2 && taken <= pause, "{taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gaps_that_nobody_acknowledges_hold_nothing_up() {
    let mut bench = Bench::new().await;
    let (b1, b2) = (BootId::parse("b1").unwrap(), BootId::parse("b2").unwrap());
    // All of an earlier boot was dropped for want of room.
    let mut spool = Spool::with_segments(bench.dir.path(), &b1, 200, 10).unwrap();
    spool.append(1, &[0; 100]).unwrap();
    drop(spool);
    let mut spool = Spool::with_segments(bench.dir.path(), &b2, 200, 10).unwrap();
    spool.append(1, &Encoder::new().encode(&sample("b2", 1)).encode_to_vec()).unwrap();
    spool.append(2, &Encoder::new().encode(&sample("b2", 2)).encode_to_vec()).unwrap();
    drop(spool);
    let spool = bench.spool("b2");
    let (sender, uplink) = bench.start(spool, 0);
    for sequence in 3..=60 {
        sender.send(sample("b2", sequence));
    }
    let mut batch = bench.heard.recv().await.unwrap();
    assert_eq!((batch.boot_id.as_str(), batch.ticks.len()), ("b1", 0));
    assert_eq!((batch.gaps[0].first, batch.gaps[0].count), (1, 1));
    while batch.ticks.last().is_none_or(|tick| tick.sequence < 60) {
        batch = bench.heard.recv().await.unwrap();
    }
    drop(sender);
    uplink.await.unwrap();
}
