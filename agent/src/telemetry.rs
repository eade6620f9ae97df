//! The uplink: samples to the scheduler, each one once it is safe, and again after an outage.
//!
//! In: samples from the mailbox, a spool, and a way to get a channel. Out: `Agents.Telemetry`. Every
//! sample goes to the spool first and leaves it when the scheduler has acknowledged it, so the
//! way of a live sample and of one from an outage is the same. How a connection is made secure
//! is for whoever dials.

use std::collections::VecDeque;
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tessera_model::BootId;
use tessera_model::sample::NodeSample;
use tessera_proto::telemetry::Encoder;
use tessera_proto::v1::{self, agents_client::AgentsClient};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::mailbox;
use crate::spool::{Batch, Spool};

#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// Samples of an outage are sent in batches of about so many bytes.
    pub batch_bytes: usize,
    /// Batches that may wait for their acknowledgement.
    pub window: usize,
    /// The pause after a failure doubles from the first to the second, and a random part is taken off.
    pub backoff: (Duration, Duration),
    /// A stream without an acknowledgement for so long, while some are due, is given up.
    pub patience: Duration,
}

impl Default for UplinkConfig {
    fn default() -> Self {
        Self {
            batch_bytes: 256 << 10,
            window: 16,
            backoff: (Duration::from_secs(1), Duration::from_secs(30)),
            patience: Duration::from_secs(30),
        }
    }
}

/// Why a stream ended. All of these are followed by another one.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("{0}")]
    Dial(String),
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(tonic::Status),
    #[error("the scheduler closed the stream")]
    Closed,
    #[error("no acknowledgement for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the spool cannot be read")]
    Spool(#[source] io::Error),
}

impl From<tonic::Status> for StreamEnd {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(status)
    }
}

/// Sends until the mailbox ends. What is not acknowledged by then stays in the spool.
pub async fn run<D, F, E>(
    dial: D,
    samples: mailbox::Receiver<NodeSample>,
    spool: Spool,
    config: UplinkConfig,
) where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, E>>,
    E: Display,
{
    let store = Store { spool: Arc::new(Mutex::new(spool)), arrived: Arc::new(Notify::new()) };
    tokio::select! {
        () = keep(samples, &store) => {}
        () = send(dial, &store, &config) => {}
    }
}

/// The spool, used from threads that may block.
#[derive(Clone)]
struct Store {
    spool: Arc<Mutex<Spool>>,
    arrived: Arc<Notify>,
}

impl Store {
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let spool = self.spool.clone();
        match tokio::task::spawn_blocking(move || work(&mut spool.lock())).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// From the mailbox to the spool, whatever the stream does.
async fn keep(mut samples: mailbox::Receiver<NodeSample>, store: &Store) {
    let mut failing = false;
    while let Some(first) = samples.recv().await {
        let mut batch = vec![first];
        while let Some(sample) = samples.try_recv() {
            batch.push(sample);
        }
        let kept = store
            .with(move |spool| {
                let mut result = Ok(());
                for sample in batch {
                    // Each record names its devices, since any may be the first of a stream.
                    let bytes = Encoder::new().encode(&sample).encode_to_vec();
                    result = spool.append(sample.sequence, &bytes).and(result);
                }
                result
            })
            .await;
        match kept {
            Ok(()) => failing = false,
            // Once for each time that it begins to fail.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "samples cannot be kept on disk; the newest are kept in memory");
            }
            Err(_) => {}
        }
        store.arrived.notify_one();
    }
}

/// One stream after another, for ever.
async fn send<D, F, E>(dial: D, store: &Store, config: &UplinkConfig)
where
    D: Fn() -> F,
    F: Future<Output = Result<Channel, E>>,
    E: Display,
{
    let mut pause = config.backoff.0;
    loop {
        let mut stream = Stream::new(store, config);
        let end = match dial().await {
            Ok(channel) => stream.run(channel).await,
            Err(error) => StreamEnd::Dial(error.to_string()),
        };
        if stream.acknowledged {
            pause = config.backoff.0;
        }
        let waiting = store.spool.lock().waiting();
        tracing::warn!(%end, waiting, pause_ms = pause.as_millis(), "telemetry stream ended");
        sleep(jitter(pause)).await;
        pause = (pause * 2).min(config.backoff.1);
    }
}

/// Between half of it and all of it, so that a thousand agents do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1024;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 1024
}

struct Stream<'a> {
    store: &'a Store,
    config: &'a UplinkConfig,
    /// Last sequence under way, and of which boot.
    sent: Option<(BootId, u64)>,
    /// Last sequence of each batch that waits for its acknowledgement.
    unacknowledged: VecDeque<(BootId, u64)>,
    acknowledged: bool,
    names: Option<(Vec<String>, Vec<String>)>,
}

impl<'a> Stream<'a> {
    fn new(store: &'a Store, config: &'a UplinkConfig) -> Self {
        Self {
            store,
            config,
            sent: None,
            unacknowledged: VecDeque::new(),
            acknowledged: false,
            names: None,
        }
    }

    async fn run(&mut self, channel: Channel) -> StreamEnd {
        match self.run_until_error(channel).await {
            Ok(()) => StreamEnd::Closed,
            Err(end) => end,
        }
    }

    async fn run_until_error(&mut self, channel: Channel) -> Result<(), StreamEnd> {
        let patience = self.config.patience;
        // As long as the window: what may be sent always has room.
        let (batches, outbox) = mpsc::channel(self.config.window.max(1));
        // The call begins with something to say, since a server may wait for it before it answers.
        while self.unacknowledged.is_empty() {
            if !self.fill(&batches).await? {
                self.store.arrived.notified().await;
            }
        }
        let mut client = AgentsClient::new(channel);
        let call = client.telemetry(ReceiverStream::new(outbox));
        let answer = timeout(patience, call).await.map_err(|_| StreamEnd::Silent(patience))?;
        let mut acks = answer?.into_inner();
        tracing::info!("telemetry stream open");
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                ack = acks.message() => match ack? {
                    Some(ack) => {
                        heard = Instant::now();
                        self.acknowledge(ack).await?;
                    }
                    None => return Ok(()),
                },
                () = self.store.arrived.notified() => {}
                () = sleep_until(heard + patience), if !self.unacknowledged.is_empty() => {
                    return Err(StreamEnd::Silent(patience));
                }
            }
            if self.unacknowledged.is_empty() {
                // Nothing was due until now.
                heard = Instant::now();
            }
            self.fill(&batches).await?;
        }
    }

    /// Sends what the window lets through. False when there was nothing.
    async fn fill(
        &mut self,
        batches: &mpsc::Sender<v1::TelemetryBatch>,
    ) -> Result<bool, StreamEnd> {
        let mut any = false;
        while self.unacknowledged.len() < self.config.window.max(1) {
            let (sent, bytes) = (self.sent.clone(), self.config.batch_bytes);
            let next = self
                .store
                .with(move |spool| spool.next(sent.as_ref().map(|(boot, n)| (boot, *n)), bytes))
                .await
                .map_err(StreamEnd::Spool)?;
            let Some(batch) = next else { break };
            any = true;
            let last = (batch.boot.clone(), batch.last);
            let wire = self.wire(batch);
            if batches.try_send(wire).is_err() {
                return Err(StreamEnd::Closed);
            }
            self.sent = Some(last.clone());
            self.unacknowledged.push_back(last);
        }
        Ok(any)
    }

    async fn acknowledge(&mut self, ack: v1::TelemetryAck) -> Result<(), StreamEnd> {
        let Ok(boot) = BootId::parse(&ack.boot_id) else { return Ok(()) };
        self.acknowledged = true;
        let mut done = vec![(boot.clone(), ack.sequence)];
        // Batches are taken in order: what went before an acknowledged one was taken or given up, such
        // as the gaps of a boot that is over, which the scheduler has nothing to say about.
        let covered = |(b, n): &(BootId, u64)| *b == boot && *n <= ack.sequence;
        if let Some(last) = self.unacknowledged.iter().rposition(covered) {
            done.extend(self.unacknowledged.drain(..=last).filter(|(b, _)| *b != boot));
        }
        self.store
            .with(move |spool| done.iter().try_for_each(|(boot, n)| spool.ack(boot, *n)))
            .await
            .map_err(StreamEnd::Spool)
    }

    /// A batch as it travels: names of devices only where they change.
    fn wire(&mut self, batch: Batch) -> v1::TelemetryBatch {
        let mut wire = v1::TelemetryBatch {
            boot_id: batch.boot.to_string(),
            ticks: Vec::with_capacity(batch.records.len()),
            gaps: batch.gaps.iter().map(|g| v1::Gap { first: g.first, count: g.count }).collect(),
        };
        for (sequence, bytes) in batch.records {
            // The checksum was right, so only another version of the agent can have written it.
            let Ok(mut tick) = v1::Tick::decode(&*bytes) else {
                tracing::warn!(sequence, "sample in the spool is of an unknown form; left out");
                wire.gaps.push(v1::Gap { first: sequence, count: 1 });
                continue;
            };
            let names = (tick.gpu_uuids.clone(), tick.nic_names.clone());
            if self.names.as_ref() == Some(&names) {
                tick.gpu_uuids.clear();
                tick.nic_names.clear();
            } else {
                self.names = Some(names);
            }
            wire.ticks.push(tick);
        }
        wire
    }
}

#[cfg(test)]
mod tests;
