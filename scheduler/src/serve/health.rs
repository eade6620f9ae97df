//! Whether we serve, for load balancers and for those who look after the machine.
//!
//! In: answers of the writer, asked for once a second. Out: gRPC's health service, and the same for
//! `/healthz`. We serve only while the writer answers: a scheduler that takes connections and does
//! nothing with them is better left alone. From the moment we are told to stop we no longer serve.

use std::time::Duration;

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use super::stopped;
use crate::writer::Handle;

const EVERY: Duration = Duration::from_secs(1);
/// A writer that takes longer than this for a look at its own state serves nobody.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The service, and what it says.
pub fn watch(
    handle: Handle,
    stopping: watch::Receiver<bool>,
) -> (HealthServer<impl Health>, watch::Receiver<bool>) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let (serving, watched) = watch::channel(true);
    tokio::spawn(keep_looking(handle, stopping, reporter, serving));
    (service, watched)
}

async fn keep_looking(
    handle: Handle,
    mut stopping: watch::Receiver<bool>,
    reporter: HealthReporter,
    serving: watch::Sender<bool>,
) {
    let mut beat = tokio::time::interval(EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let well = tokio::select! {
            well = async {
                beat.tick().await;
                answers(&handle).await
            } => well,
            () = stopped(&mut stopping) => false,
        };
        if *serving.borrow() != well {
            if !well && !*stopping.borrow() {
                tracing::error!("the writer does not answer: we say that we do not serve");
            }
            let status = if well { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", status).await;
            let _ = serving.send(well);
        }
        // Without a sender nobody can stop us any more: the scheduler is gone.
        if *stopping.borrow() || stopping.has_changed().is_err() {
            return;
        }
    }
}

async fn answers(handle: &Handle) -> bool {
    matches!(tokio::time::timeout(ANSWER_WITHIN, handle.read(|_| ())).await, Ok(Ok(())))
}
