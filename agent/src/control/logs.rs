//! Output of tasks, on request: the scheduler asks for pieces, the runner reads them.
//!
//! A connection of its own, so that a flood of output delays neither a launch nor a sample. Never
//! more pieces at once than [`PIECES_AT_ONCE`]; further questions wait in the stream.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;

use tessera_proto::dial::{self, Dial};
use tessera_proto::v1;

use super::retry::Backoff;
use super::{ANSWER_WITHIN, ConnectionEnd, agents, full, wire, within};
use crate::runner::Runner;

const PIECES_AT_ONCE: usize = 16;

/// Never returns.
pub async fn serve_logs(dial: watch::Receiver<Dial>, runner: Runner) {
    let mut backoff = Backoff::new();
    loop {
        let end = match connection(&dial, &runner, &mut backoff).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        tracing::debug!(error = %full(&end), "no connection for logs");
        sleep(backoff.next()).await;
    }
}

async fn connection(
    dial: &watch::Receiver<Dial>,
    runner: &Runner,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, ConnectionEnd> {
    let target = dial.borrow().clone();
    let channel = dial::connect(&target).await?;
    let (pieces, stream) = mpsc::channel(PIECES_AT_ONCE);
    let here = v1::LogPiece { request: 0, ..Default::default() };
    let placed = pieces.try_send(here);
    assert!(placed.is_ok(), "the channel was made with room");
    let mut agents = agents(channel);
    let answer = agents.logs(ReceiverStream::new(stream));
    let mut wanted = within(ANSWER_WITHIN, answer).await??.into_inner();
    backoff.reset();
    let room = Arc::new(Semaphore::new(PIECES_AT_ONCE));
    loop {
        // A dead connection is noticed by the channel's keep-alive.
        let wanted = wanted.message().await?.ok_or(ConnectionEnd::Closed)?;
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return Err(ConnectionEnd::Closed);
        };
        let (runner, pieces) = (runner.clone(), pieces.clone());
        tokio::spawn(async move {
            let piece = piece(&runner, &wanted).await;
            // The connection is gone: whoever asked asks again on the next one.
            let _ = pieces.send(piece).await;
            drop(permit);
        });
    }
}

async fn piece(runner: &Runner, wanted: &v1::LogWanted) -> v1::LogPiece {
    let v1::LogWanted { request, rank, offset, max_bytes, .. } = *wanted;
    match wire::attempt_from_wire(&wanted.attempt) {
        Ok(attempt) => {
            let answer = runner.log_piece(attempt, rank, offset, max_bytes).await;
            v1::LogPiece {
                request,
                offset: answer.offset,
                data: answer.data,
                end: answer.end,
                error: answer.error,
            }
        }
        Err(refusal) => {
            v1::LogPiece { request, offset, error: refusal.message, ..Default::default() }
        }
    }
}
