//! What agents ask and say: joining, orders and reports, samples, pieces of output.
//!
//! In: streams of one node, named by its certificate and by nothing it says. Out: certificates,
//! orders, acknowledgements. What a report means is the core's affair.

/// Reports and orders, to and from the wire.
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use tessera_core::{Cluster, Order, door};
use tessera_model::{BootId, Epoch, NodeId, Refusal, RefusalKind, SessionId};
use tessera_proto::status::to_status;
use tessera_proto::telemetry::Decoder;
use tessera_proto::v1;

use super::{Sender, Shared, Stream, auth, going_down, stopped, stream};
use crate::ca::{self, CaError};
use crate::config::wall_clock;
use crate::series::{Gap, Taken};
use crate::tokens;

/// How long an agent may take for its first word.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Orders on their way to one agent; one that falls further behind is cut off and says hello again.
const ORDERS_MAX: usize = 8_192;
/// Ticks in one batch: an hour at 1 Hz.
const TICKS_MAX: usize = 3_600;

pub struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl v1::agents_server::Agents for Service {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        let v1::JoinRequest { token_id, token_secret, node, csr_pem } = request.into_inner();
        let certificate = self.admit(&token_id, &token_secret, &node, &csr_pem).await;
        certificate.map(Response::new).map_err(|refusal| {
            tracing::warn!(node = %node.escape_debug(), reason = %refusal, "a node was not let in");
            to_status(&refusal)
        })
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        let node = self.present_node(&request).await?;
        let csr = request.into_inner().csr_pem;
        let certificate = self.certificate(&csr, &node).map_err(|e| to_status(&e))?;
        tracing::info!(%node, "renewed a node's certificate");
        Ok(Response::new(certificate))
    }

    type ControlStream = Stream<v1::Order>;

    async fn control(
        &self,
        request: Request<Streaming<v1::Report>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let node = auth::node(&request)?;
        let mut reports = request.into_inner();
        let first = tokio::time::timeout(HELLO_WITHIN, reports.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came within 10 s"))??;
        self.not_retired(&node).await?;
        let hello = wire::hello(first, &node).map_err(|e| to_status(&e))?;
        let session = hello.session;
        let (orders_tx, orders) = mpsc::channel(ORDERS_MAX);
        let epoch = self.0.handle.hello(hello, orders_tx).await.map_err(|e| to_status(&e))?;
        tracing::info!(%node, session = session.0, "agent connected");
        let (out, answer) = stream();
        let welcome = v1::Welcome { session: session.0, heartbeat_ms: self.0.settings.heartbeat.0 };
        let welcome = v1::Order { epoch: epoch.0, order: Some(v1::order::Order::Welcome(welcome)) };
        // The stream is new and has room for this.
        let _ = out.send(Ok(welcome)).await;
        let line = Line { shared: self.0.clone(), node, session, epoch, out };
        tokio::spawn(line.run(reports, orders));
        Ok(Response::new(answer))
    }

    type TelemetryStream = Stream<v1::TelemetryAck>;

    async fn telemetry(
        &self,
        request: Request<Streaming<v1::TelemetryBatch>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        let node = self.present_node(&request).await?;
        let mut batches = request.into_inner();
        let (out, answer) = stream();
        let shared = self.0.clone();
        tokio::spawn(async move {
            let mut decoder = Decoder::new(node.clone());
            let mut stopping = shared.stopping.clone();
            loop {
                let batch = tokio::select! {
                    batch = batches.message() => batch,
                    () = stopped(&mut stopping) => Err(going_down()),
                };
                let answer = match batch {
                    Ok(Some(batch)) => {
                        match take_batch(&shared, &node, &mut decoder, batch) {
                            Ok(Some(ack)) => Ok(ack),
                            // There was nothing in it to acknowledge.
                            Ok(None) => continue,
                            Err(refusal) => Err(to_status(&refusal)),
                        }
                    }
                    Ok(None) => return,
                    Err(status) => Err(status),
                };
                let ended = answer.is_err();
                if out.send(answer).await.is_err() || ended {
                    return;
                }
            }
        });
        Ok(Response::new(answer))
    }

    type LogsStream = Stream<v1::LogWanted>;

    async fn logs(
        &self,
        request: Request<Streaming<v1::LogPiece>>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let node = self.present_node(&request).await?;
        let mut pieces = request.into_inner();
        let (out, answer) = stream();
        let (line, mut wanted) = self.0.logs.connect(node);
        let mut stopping = self.0.stopping.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    piece = pieces.message() => match piece {
                        Ok(Some(piece)) => line.answer(piece),
                        Ok(None) | Err(_) => return,
                    },
                    wish = wanted.recv() => {
                        let Some(wish) = wish else { return };
                        if out.send(Ok(wish)).await.is_err() {
                            return;
                        }
                    }
                    () = stopped(&mut stopping) => {
                        let _ = out.send(Err(going_down())).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(answer))
    }
}

impl Service {
    /// The node that calls, unless it was retired: its certificate is good for nothing then, until
    /// the node joins anew.
    async fn present_node<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let node = auth::node(request)?;
        self.not_retired(&node).await?;
        Ok(node)
    }

    async fn not_retired(&self, node: &NodeId) -> Result<(), Status> {
        let asked = node.clone();
        let retired = self.0.handle.read(move |view| view.cluster.retired.contains(&asked)).await;
        if retired.map_err(|e| to_status(&e))? {
            tracing::warn!(%node, "a node that was retired called");
            return Err(to_status(&Refusal::new(
                RefusalKind::Unauthenticated,
                "",
                format!("node {node} was retired, its certificate is no longer good"),
                format!(
                    "to have it back, let it join anew: `tessera token create --node {node}`, and start its agent with that token and an empty state folder"
                ),
            )));
        }
        Ok(())
    }

    /// Uses up a join token for a certificate. Token and request are looked at and the certificate
    /// is made first, so that what fails here costs no token.
    async fn admit(
        &self,
        id: &str,
        secret: &str,
        node: &str,
        csr: &str,
    ) -> Result<v1::Certificate, Refusal> {
        let node = NodeId::parse(node).map_err(|e| {
            Refusal::invalid("node", e.to_string(), "give the node a host name: --name NAME")
        })?;
        ca::check_request(csr).map_err(bad_request)?;
        let shown = tokens::read_join(id, secret).ok_or_else(|| {
            Refusal::new(
                RefusalKind::Unauthenticated,
                "join_token",
                "that is no join token",
                "give the agent the whole token, as it was printed",
            )
        })?;
        let joining = node.clone();
        let used = move |cluster: &Cluster, now| {
            let used = door::use_join_token(cluster, now, &shown.id, &shown.hash, &joining)?;
            not_taken(cluster, &shown.id, &joining)?;
            Ok(used)
        };
        let checked = used.clone();
        self.0.handle.read(move |view| checked(view.cluster, view.now).map(|_| ())).await??;
        let certificate = self.certificate(csr, &node)?;
        self.0.handle.change(used).await?;
        tracing::info!(%node, "a node joined");
        Ok(certificate)
    }

    fn certificate(&self, csr: &str, node: &NodeId) -> Result<v1::Certificate, Refusal> {
        let signed = self.0.ca.sign_node(csr, node, wall_clock()).map_err(bad_request)?;
        Ok(v1::Certificate {
            certificate_pem: signed.certificate_pem,
            ca_pem: self.0.ca.pem().to_owned(),
            expires_unix_ms: signed.expires.0,
        })
    }
}

/// A token for any name gives no right to the name of a node that is known, be it up or not: its
/// holder would get that node's jobs and could say how they ended.
fn not_taken(cluster: &Cluster, token: &str, node: &NodeId) -> Result<(), Refusal> {
    let names_it = cluster.join_tokens.get(token).is_some_and(|t| t.node.as_ref() == Some(node));
    if !names_it && let Some(known) = cluster.nodes.get(node) {
        let state = known.state.word();
        return Err(Refusal::new(
            RefusalKind::Precondition,
            "node",
            format!(
                "there is a node {node} already, it is {state}, and the token is for a new one"
            ),
            format!(
                "choose another --name, or make a token for this one: `tessera token create --node {node}`"
            ),
        ));
    }
    Ok(())
}

fn bad_request(error: CaError) -> Refusal {
    let hint = error.hint();
    match error {
        CaError::Request(_) => Refusal::invalid("csr_pem", error.to_string(), hint),
        _ => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot sign a certificate");
            Refusal::new(RefusalKind::Internal, "", error.to_string(), hint)
        }
    }
}

/// One agent's control stream.
struct Line {
    shared: Arc<Shared>,
    node: NodeId,
    session: SessionId,
    epoch: Epoch,
    out: Sender<v1::Order>,
}

impl Line {
    async fn run(self, mut reports: Streaming<v1::Report>, mut orders: mpsc::Receiver<Order>) {
        let mut stopping = self.shared.stopping.clone();
        let why = loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        let order = wire::order(self.epoch, &self.shared.settings, order);
                        if self.out.send(Ok(order)).await.is_err() {
                            break None;
                        }
                    }
                    None => break Some(Status::aborted("a newer stream of this node took over, or it fell behind")),
                },
                report = reports.message() => match report {
                    Ok(Some(report)) => {
                        if let Err(refusal) = self.take(report) {
                            break Some(to_status(&refusal));
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => {
                        tracing::debug!(node = %self.node, %status, "control stream broke");
                        break None;
                    }
                },
                () = stopped(&mut stopping) => break Some(going_down()),
            }
        };
        tracing::info!(node = %self.node, session = self.session.0, why = why.as_ref().map(Status::message), "agent disconnected");
        if let Some(status) = why {
            let _ = self.out.send(Err(status)).await;
        }
    }

    fn take(&self, report: v1::Report) -> Result<(), Refusal> {
        let report = wire::report(report, &self.node)?;
        self.shared.handle.report(self.node.clone(), self.session, report)
    }
}

/// Takes ticks and gaps in the order of their sequences, so that neither hides the other.
fn take_batch(
    shared: &Shared,
    node: &NodeId,
    decoder: &mut Decoder,
    batch: v1::TelemetryBatch,
) -> Result<Option<v1::TelemetryAck>, Refusal> {
    let boot = BootId::parse(&batch.boot_id).map_err(|e| {
        Refusal::invalid("boot_id", e.to_string(), "send /proc/sys/kernel/random/boot_id")
    })?;
    if batch.ticks.len() > TICKS_MAX || batch.gaps.len() > TICKS_MAX {
        let message = format!(
            "{} ticks and {} gaps in one batch, {TICKS_MAX} of each are taken",
            batch.ticks.len(),
            batch.gaps.len()
        );
        return Err(Refusal::invalid("ticks", message, "send smaller batches"));
    }
    let mut gaps = batch.gaps;
    gaps.sort_by_key(|g| g.first);
    let mut gaps = gaps.into_iter().peekable();
    let skip = |gap: v1::Gap| {
        shared.series.gap(node, &boot, Gap { first: gap.first, count: gap.count });
    };
    let mut outdated = None;
    for tick in batch.ticks {
        let sequence = tick.sequence;
        while let Some(gap) = gaps.next_if(|g| g.first < sequence) {
            skip(gap);
        }
        match decoder.decode(&boot, tick) {
            Ok(sample) => {
                if shared.series.take(sample) == Taken::Outdated {
                    outdated = Some(sequence);
                }
            }
            // Sent again it would be no better: it is lost, and the stream goes on.
            Err(refusal) => {
                tracing::warn!(%node, sequence, reason = %refusal, "a sample cannot be read");
                skip(v1::Gap { first: sequence, count: 1 });
            }
        }
    }
    gaps.for_each(skip);
    // What is left of a boot that is over is taken off the agent's hands.
    let done = shared.series.acknowledged(node, &boot).or(outdated);
    Ok(done.map(|sequence| v1::TelemetryAck { sequence, boot_id: batch.boot_id }))
}
