//! The way to the scheduler: orders down, heartbeats and reports up.
//!
//! In: how to dial, the runner, the node as it is seen. Out: nothing but effects; it runs until the
//! agent ends. A connection that breaks is made again, and the Hello on it says everything that is
//! not acknowledged, so nothing needs to be remembered in between. Meant for a thread and a runtime
//! of its own: then neither telemetry nor a full pool of workers delays a heartbeat.

mod logs; // output of tasks, on request
mod outgoing; // reports, heartbeats first
pub(crate) mod retry; // when to dial again
mod wire; // wire words and ours

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::Channel;

use tessera_model::{Epoch, GpuCondition, GpuId, NodeInventory, Refusal};
use tessera_proto::dial::{self, Dial, DialError};
use tessera_proto::status::from_status;
use tessera_proto::v1;
use tessera_proto::v1::agents_client::AgentsClient;

use crate::runner::{FenceError, ObeyError, Order, Runner, RunnerEvent};
use crate::session::{BootMillis, Granted, Session};
use outgoing::Outgoing;
use retry::Backoff;

pub use logs::serve_logs;
pub use outgoing::heartbeat_now;

/// A Prepare carries a script of at most 1 MiB and an environment.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// For answers that a living scheduler gives at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// So many heartbeats without any answer, and the connection is taken for dead.
const SILENT_HEARTBEATS: u32 = 5;
const SILENT_AT_LEAST: Duration = Duration::from_secs(15);
/// Reports that wait to be sent on one connection; one more ends it.
const REPORTS_MAX: usize = 16_384;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the scheduler says: {0}")]
    Refused(Refusal),
    #[error("the scheduler gave no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the scheduler closed the connection")]
    Closed,
    #[error("the scheduler sent {0}")]
    Nonsense(&'static str),
    #[error("the lease had lapsed, so this session is over")]
    Lapsed,
    /// An old scheduler, or an epoch that could not be written down.
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error("more happened here than the connection took")]
    Overrun,
    #[error(transparent)]
    Orders(ObeyError),
}

impl ConnectionEnd {
    fn hint(&self) -> String {
        match self {
            Self::Dial(error) => error.hint(),
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::Silent(_) | Self::Closed => {
                "see whether the scheduler runs; tasks run on meanwhile".to_owned()
            }
            Self::Nonsense(_) => "use agent and scheduler of one release".to_owned(),
            Self::Lapsed => "it connects again with a new session".to_owned(),
            Self::Fence(FenceError::Old { .. }) => {
                "a newer scheduler has taken over; stop the one at this address, or give the agent the newer one's".to_owned()
            }
            Self::Fence(FenceError::Write { .. }) => {
                "free space on the disk of the state folder, and see that the agent may write there; it is tried again".to_owned()
            }
            Self::Overrun | Self::Orders(_) => {
                "it connects again and both sides say everything anew".to_owned()
            }
        }
    }
}

impl From<tonic::Status> for ConnectionEnd {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(from_status(&status))
    }
}

/// Everything the control connection needs.
pub struct Control {
    /// Renewals of the node's certificate arrive here; the next connection uses them.
    pub dial: watch::Receiver<Dial>,
    pub runner: Runner,
    pub session: Arc<Session>,
    /// The node as the sampler sees it; healthy GPUs may be left out of the conditions.
    pub inventory: watch::Receiver<NodeInventory>,
    pub conditions: watch::Receiver<BTreeMap<GpuId, GpuCondition>>,
}

impl Control {
    /// Never returns.
    pub async fn run(self) {
        let mut backoff = Backoff::new();
        loop {
            if self.session.renew_if_lapsed(BootMillis::now()) {
                tracing::warn!("the lease had lapsed: a new session begins");
            }
            let end = self.connection(&mut backoff).await;
            let (pause, hint) = (backoff.next(), end.hint());
            tracing::warn!(error = %full(&end), hint, retry_ms = pause.as_millis() as u64, "not connected to the scheduler");
            sleep(pause).await;
        }
    }

    async fn connection(&self, backoff: &mut Backoff) -> ConnectionEnd {
        match self.converse(backoff).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn converse(
        &self,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, ConnectionEnd> {
        let target = self.dial.borrow().clone();
        let channel = dial::connect(&target).await?;
        let session = self.session.id();
        let (mut reporter, stream) = Reporter::new(self);
        let mut events = reporter.hello(session)?;
        let mut agents = agents(channel);
        let answer = agents.control(stream);
        let mut orders = within(ANSWER_WITHIN, answer).await??.into_inner();
        let first = within(ANSWER_WITHIN, orders.message()).await??;
        let welcome = match first.map(|order| (order.epoch, order.order)) {
            Some((epoch, Some(v1::order::Order::Welcome(welcome)))) => {
                self.runner.admit(Epoch(epoch)).await?;
                welcome
            }
            Some(_) => return Err(ConnectionEnd::Nonsense("something else before its welcome")),
            None => return Err(ConnectionEnd::Closed),
        };
        if welcome.session != session.0 {
            return Err(ConnectionEnd::Nonsense("a welcome for another session"));
        }
        backoff.reset();
        let beat = Duration::from_millis(welcome.heartbeat_ms.clamp(50, 60_000));
        tracing::info!(
            server = target.server,
            session = format!("{:016x}", session.0),
            heartbeat_ms = beat.as_millis() as u64,
            "connected"
        );
        let _heart = Heart::start(beat, reporter.urgent.clone());
        let patience = (beat * SILENT_HEARTBEATS).max(SILENT_AT_LEAST);
        let (mut inventory, mut conditions) = (self.inventory.clone(), self.conditions.clone());
        let mut occupied = self.runner.occupied_changed();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                // Orders first: whatever else there is to say can wait for a launch.
                biased;
                order = orders.message() => {
                    heard = Instant::now();
                    let order = order?.ok_or(ConnectionEnd::Closed)?;
                    self.obey(order, &reporter).await?;
                }
                event = events.recv() => reporter.event(event.ok_or(ConnectionEnd::Overrun)?)?,
                Ok(()) = inventory.changed() => reporter.node_changed()?,
                Ok(()) = conditions.changed() => reporter.node_changed()?,
                Ok(()) = occupied.changed() => reporter.node_changed()?,
                () = tokio::time::sleep_until(heard + patience) => {
                    return Err(ConnectionEnd::Silent(patience));
                }
            }
        }
    }

    async fn obey(&self, order: v1::Order, reporter: &Reporter<'_>) -> Result<(), ConnectionEnd> {
        let epoch = Epoch(order.epoch);
        let order = match order.order {
            Some(v1::order::Order::Grant(grant)) => return self.grant(epoch, grant).await,
            Some(v1::order::Order::Welcome(_)) => {
                return Err(ConnectionEnd::Nonsense("a second welcome"));
            }
            Some(order) => order,
            // A newer scheduler may say things we do not know; it must not count on them.
            None => return Ok(()),
        };
        let attempt = wire::attempt_of(&order).to_owned();
        let answers = matches!(&order, v1::order::Order::Prepare(_) | v1::order::Order::Commit(_));
        let order: Order = match wire::order_from_wire(order) {
            Ok(order) => order,
            Err(refusal) => {
                tracing::error!(attempt, error = %refusal, "an order that cannot be read");
                if answers {
                    reporter.refused(attempt, refusal.message)?;
                }
                return Ok(());
            }
        };
        match self.runner.obey(epoch, order).await {
            Ok(()) => Ok(()),
            // Orders follow from the state: the scheduler makes them again for a new connection.
            Err(error @ ObeyError::Full { .. }) => Err(ConnectionEnd::Orders(error)),
            Err(ObeyError::Fence(error)) => {
                tracing::warn!(attempt, error = %full(&error), "order refused");
                if answers { reporter.refused(attempt, full(&error)) } else { Ok(()) }
            }
        }
    }

    async fn grant(&self, epoch: Epoch, grant: v1::Grant) -> Result<(), ConnectionEnd> {
        if let Err(error) = self.runner.admit(epoch).await {
            tracing::warn!(error = %full(&error), "grant refused");
            return Ok(());
        }
        let sent = BootMillis(grant.heartbeat_sent_boottime_ms);
        match self.session.granted(sent, grant.lease_ms, BootMillis::now()) {
            Granted::Extended(_) => self.runner.lease_extended(),
            Granted::Nothing => {}
            Granted::TooLate => return Err(ConnectionEnd::Lapsed),
        }
        Ok(())
    }
}

fn agents(channel: Channel) -> AgentsClient<Channel> {
    AgentsClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Result<T, ConnectionEnd> {
    timeout(limit, answer).await.map_err(|_| ConnectionEnd::Silent(limit))
}

/// An error and what is behind it, on one line.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(cause) = behind {
        let more = cause.to_string();
        // Some errors repeat their cause in their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        behind = cause.source();
    }
    text
}

/// Beats for as long as it is held.
struct Heart(tokio::task::JoinHandle<()>);

impl Heart {
    fn start(beat: Duration, urgent: mpsc::Sender<v1::Report>) -> Self {
        Self(tokio::spawn(async move {
            let mut ticks = interval(beat);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // Full: the last one is not even sent, so another would say nothing new.
                if let Err(mpsc::error::TrySendError::Closed(_)) = urgent.try_send(heartbeat_now())
                {
                    return;
                }
            }
        }))
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What goes up on one connection.
struct Reporter<'a> {
    control: &'a Control,
    urgent: mpsc::Sender<v1::Report>,
    rest: mpsc::Sender<v1::Report>,
    /// What was said last, so that only changes are said.
    said: Option<(NodeInventory, BTreeMap<GpuId, GpuCondition>)>,
}

impl<'a> Reporter<'a> {
    fn new(control: &'a Control) -> (Self, Outgoing) {
        let (urgent, beats) = mpsc::channel(1);
        let (rest, reports) = mpsc::channel(REPORTS_MAX);
        (Self { control, urgent, rest, said: None }, Outgoing::new(beats, reports))
    }

    fn send(&self, report: v1::report::Report) -> Result<(), ConnectionEnd> {
        match self.rest.try_send(v1::Report { report: Some(report) }) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(ConnectionEnd::Overrun),
            // The stream is gone: the select loop hears of it from the other side.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn hello(
        &mut self,
        session: tessera_model::SessionId,
    ) -> Result<mpsc::Receiver<RunnerEvent>, ConnectionEnd> {
        let (inventory, conditions) = self.node();
        let (snapshot, events) = self.control.runner.connect();
        self.send(v1::report::Report::Hello(wire::hello(
            session,
            self.control.runner.highest_epoch(),
            &inventory,
            &conditions,
            &snapshot,
        )))?;
        self.said = Some((inventory, conditions));
        Ok(events)
    }

    /// The sampler's view, and what the runner found on GPUs that should be free.
    fn node(&self) -> (NodeInventory, BTreeMap<GpuId, GpuCondition>) {
        let mut conditions = self.control.conditions.borrow().clone();
        for found in self.control.runner.occupied() {
            let condition = conditions.entry(found.gpu).or_insert(GpuCondition::Healthy);
            if condition.is_healthy() {
                *condition = GpuCondition::Occupied { pids: found.pids };
            }
        }
        conditions.retain(|_, condition| !condition.is_healthy());
        (self.control.inventory.borrow().clone(), conditions)
    }

    fn node_changed(&mut self) -> Result<(), ConnectionEnd> {
        let (inventory, conditions) = self.node();
        let (old_inventory, old_conditions) = match &self.said {
            Some((inventory, conditions)) => (Some(inventory), Some(conditions)),
            None => (None, None),
        };
        if old_inventory != Some(&inventory) {
            let wire = tessera_proto::nodes::inventory_to_wire(&inventory);
            self.send(v1::report::Report::Inventory(wire))?;
        }
        if old_conditions != Some(&conditions) {
            let wire = tessera_proto::nodes::conditions_to_wire(&conditions);
            self.send(v1::report::Report::Conditions(wire))?;
        }
        self.said = Some((inventory, conditions));
        Ok(())
    }

    fn event(&self, event: RunnerEvent) -> Result<(), ConnectionEnd> {
        self.send(wire::event_to_wire(event))
    }

    fn refused(&self, attempt: String, why: String) -> Result<(), ConnectionEnd> {
        self.send(v1::report::Report::Refused(v1::Refused { attempt, why }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_does_not_pass_says_whether_the_disk_or_the_scheduler_is_at_fault() {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full_disk = ConnectionEnd::from(FenceError::Write { epoch: Epoch(7), source });
        let text = full(&full_disk);
        assert!(text.contains("could not write down epoch 7"), "{text}");
        assert!(text.contains("no storage space"), "{text}");
        assert!(full_disk.hint().contains("free space"), "{}", full_disk.hint());
        let old = ConnectionEnd::from(FenceError::Old { got: Epoch(3), highest: Epoch(7) });
        assert!(old.to_string().contains("epoch 3"), "{old}");
        assert!(old.hint().contains("newer scheduler"), "{}", old.hint());
    }
}
