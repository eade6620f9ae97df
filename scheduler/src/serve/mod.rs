//! What others can ask the scheduler, all on one port.
//!
//! In: requests of people and agents. Out: answers of the writer, the series and the store. A
//! request becomes one of `model`'s types, or is refused, on its first lines; what it may do is the
//! core's door's affair; nothing here decides anything.

/// Teams, tokens, reservations.
pub mod admin;
/// Joining, orders and reports, samples.
pub mod agents;
/// Who is calling, and the table of who may call what.
pub mod auth;
/// What is asked of jobs that are there.
mod changes;
/// Whether we serve.
mod health;
/// Submit, list, explain, cancel, watch.
pub mod jobs;
/// TLS, HTTP/2 and HTTP/1.1 on one port, and whose certificate a connection shows.
pub mod listen;
/// Pieces of output, fetched from agents.
pub mod logs;
/// Nodes for people.
pub mod nodes;
/// What tasks wrote, followed across ranks.
pub mod output;
/// What a browser sees.
mod pages;
/// The map in force, another one, and what is said of domains.
mod topology;
/// Who held what, at what price.
pub mod usage;
/// Changes of jobs, for those who wait for them.
pub mod watches;

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::Routes;

use tessera_model::{Millis, Refusal};
use tessera_proto::status::to_status;
use tessera_proto::v1;

use crate::ca::Ca;
use crate::series::Series;
use crate::writer::Handle;

/// Largest message taken in.
const MESSAGE_IN_MAX: usize = 4 << 20;
/// Largest message sent: a list of 10,000 jobs takes a third of it.
const MESSAGE_OUT_MAX: usize = 16 << 20;
/// Explanations thought out at the same time; more wait their turn.
const EXPLAINED_AT_ONCE: usize = 2;
/// Messages on their way to a slow reader before the sender waits.
const OUT_QUEUE: usize = 16;

/// What every service works with.
pub struct Shared {
    pub handle: Handle,
    pub ca: Arc<Ca>,
    pub series: Series,
    pub logs: Arc<logs::LogHub>,
    pub watches: Arc<watches::Watches>,
    pub gate: Arc<auth::Gate>,
    /// Explanations take whole decisions, many of them.
    explaining: Arc<Semaphore>,
    pub settings: Settings,
    /// Becomes true when the scheduler is told to stop; streams end then.
    pub stopping: watch::Receiver<bool>,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub heartbeat: Millis,
    pub lease: Millis,
    pub lapse_grace: Millis,
    /// gRPC reflection, for tools that find their way by themselves.
    pub dev: bool,
}

impl Shared {
    pub fn new(
        handle: Handle,
        ca: Arc<Ca>,
        settings: Settings,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ca,
            series: Series::default(),
            logs: Arc::default(),
            explaining: Arc::new(Semaphore::new(EXPLAINED_AT_ONCE)),
            watches: watches::Watches::start(handle.clone()),
            gate: Arc::new(auth::Gate::new(handle.clone())),
            handle,
            settings,
            stopping,
        })
    }
}

/// All services and pages behind the guard.
pub fn router(shared: &Arc<Shared>) -> Result<axum::Router, tonic_reflection::server::Error> {
    macro_rules! service {
        ($server:path, $service:expr) => {
            <$server>::new($service)
                .max_decoding_message_size(MESSAGE_IN_MAX)
                .max_encoding_message_size(MESSAGE_OUT_MAX)
        };
    }
    let s = || shared.clone();
    let (health, serving) = health::watch(shared.handle.clone(), shared.stopping.clone());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tessera_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::new(service!(v1::jobs_server::JobsServer<_>, jobs::Service(s())))
        .add_service(service!(v1::nodes_server::NodesServer<_>, nodes::Service(s())))
        .add_service(service!(v1::agents_server::AgentsServer<_>, agents::Service(s())))
        .add_service(service!(v1::usage_server::UsageServer<_>, usage::Service(s())))
        .add_service(service!(v1::admin_server::AdminServer<_>, admin::Service(s())))
        .add_service(health);
    if shared.settings.dev {
        // Python's grpcio-reflection speaks only the old one.
        routes =
            routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
    }
    let guard = axum::middleware::from_fn_with_state(shared.gate.clone(), auth::guard);
    // A route layer leaves what has no route to the fallback of the pages.
    Ok(pages::router(serving).merge(routes.into_axum_router().reset_fallback().route_layer(guard)))
}

type Sender<T> = mpsc::Sender<Result<T, Status>>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

fn stream<T>() -> (Sender<T>, Stream<T>) {
    let (tx, rx) = mpsc::channel(OUT_QUEUE);
    (tx, ReceiverStream::new(rx))
}

/// Waits until the scheduler is told to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Without a sender nobody can tell us any more, which says the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn going_down() -> Status {
    to_status(&Refusal::new(
        tessera_model::RefusalKind::Unavailable,
        "",
        "the scheduler is going down",
        "call again in a moment; jobs go on meanwhile",
    ))
}

fn internal(what: &str) -> Refusal {
    Refusal::new(
        tessera_model::RefusalKind::Internal,
        "",
        what,
        "the scheduler's log says more; try again",
    )
}
