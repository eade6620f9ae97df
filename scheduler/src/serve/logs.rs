//! Output of tasks, fetched from the nodes they ran on.
//!
//! In: an agent's `Logs` stream, and somebody's wish for a piece. Out: the piece, or why it is not
//! to be had. The scheduler keeps no output. Each agent has one stream; a new one ends the old one.
//!
//! Bounds: 256 wishes on their way to a node, then the next waits its turn; each is given up after
//! 10 s.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use tessera_model::{AttemptId, NodeId};
use tessera_proto::v1;

const ON_THEIR_WAY: usize = 256;
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Of one piece.
pub const PIECE_MAX_BYTES: u32 = 256 * 1024;

/// Why a piece is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPiece {
    #[error("{0} is not connected")]
    NotConnected(NodeId),
    #[error("{0} went away while it was asked")]
    WentAway(NodeId),
    #[error("{0} did not answer within 10 s")]
    NoAnswer(NodeId),
    #[error("{node}: {why}")]
    Refused { node: NodeId, why: String },
}

/// Which piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub node: NodeId,
    pub attempt: AttemptId,
    pub rank: u32,
    pub offset: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub offset: u64,
    pub data: prost::bytes::Bytes,
    /// The task has ended and there is nothing after this.
    pub end: bool,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<v1::LogPiece>>>>;

struct Line {
    number: u64,
    wishes: mpsc::Sender<v1::LogWanted>,
    waiting: Waiting,
}

/// All agents that answer for their logs.
#[derive(Default)]
pub struct LogHub {
    lines: Mutex<HashMap<NodeId, Line>>,
    next: AtomicU64,
}

/// An agent's end of it. Dropped when its stream ends.
pub struct AgentLine {
    hub: Arc<LogHub>,
    node: NodeId,
    number: u64,
    waiting: Waiting,
}

impl LogHub {
    /// A node's stream begins; what it is asked comes out of the receiver.
    pub fn connect(self: &Arc<Self>, node: NodeId) -> (AgentLine, mpsc::Receiver<v1::LogWanted>) {
        let (wishes, wanted) = mpsc::channel(ON_THEIR_WAY);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting::default();
        let line = Line { number, wishes, waiting: waiting.clone() };
        // The old line's sender goes, which ends the old stream.
        self.lines.lock().insert(node.clone(), line);
        (AgentLine { hub: self.clone(), node, number, waiting }, wanted)
    }

    /// Ends a node's stream, if it has one.
    pub fn disconnect(&self, node: &NodeId) {
        // The sender goes, which ends the stream.
        self.lines.lock().remove(node);
    }

    pub async fn ask(&self, wish: &Wish) -> Result<Piece, NoPiece> {
        let node = &wish.node;
        // Requests begin at 1: 0 is what an agent says when it comes.
        let request = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (wishes, waiting) = match self.lines.lock().get(node) {
            Some(line) => (line.wishes.clone(), line.waiting.clone()),
            None => return Err(NoPiece::NotConnected(node.clone())),
        };
        let (answer, answered) = oneshot::channel();
        waiting.lock().insert(request, answer);
        // Whatever way this ends, nobody waits for the answer afterwards.
        let _done = Forget { waiting: waiting.clone(), request };
        let wanted = v1::LogWanted {
            request,
            attempt: wish.attempt.to_string(),
            rank: wish.rank,
            offset: wish.offset,
            max_bytes: PIECE_MAX_BYTES,
        };
        let piece = tokio::time::timeout(ANSWER_WITHIN, async {
            wishes.send(wanted).await.map_err(|_| NoPiece::WentAway(node.clone()))?;
            // Let go of the sender: only the hub's own keeps the stream open.
            drop(wishes);
            answered.await.map_err(|_| NoPiece::WentAway(node.clone()))
        })
        .await
        .map_err(|_| NoPiece::NoAnswer(node.clone()))??;
        if !piece.error.is_empty() {
            let why = piece.error.chars().filter(|c| !c.is_control()).take(300).collect();
            return Err(NoPiece::Refused { node: node.clone(), why });
        }
        Ok(Piece { offset: piece.offset, data: piece.data.into(), end: piece.end })
    }
}

struct Forget {
    waiting: Waiting,
    request: u64,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.request);
    }
}

impl AgentLine {
    /// Hands an answer to who asked. One that nobody waits for any more is dropped.
    pub fn answer(&self, piece: v1::LogPiece) {
        if let Some(asker) = self.waiting.lock().remove(&piece.request) {
            let _ = asker.send(piece);
        }
    }
}

impl Drop for AgentLine {
    fn drop(&mut self) {
        let mut lines = self.hub.lines.lock();
        if lines.get(&self.node).is_some_and(|l| l.number == self.number) {
            lines.remove(&self.node);
        }
        // Who still waits learns at once that no answer will come.
        self.waiting.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::JobId;

    use super::*;

    fn node() -> NodeId {
        NodeId::parse("n0").unwrap()
    }

    fn wish(offset: u64) -> Wish {
        let attempt = AttemptId { job: JobId(7), number: 1 };
        Wish { node: node(), attempt, rank: 3, offset }
    }

    #[tokio::test]
    async fn a_piece_comes_from_the_node_that_has_it() {
        let hub = Arc::new(LogHub::default());
        assert_eq!(hub.ask(&wish(0)).await, Err(NoPiece::NotConnected(node())));
        let (line, mut wanted) = hub.connect(node());
        let agent = tokio::spawn(async move {
            while let Some(w) = wanted.recv().await {
                assert_eq!((w.attempt.as_str(), w.rank), ("7.1", 3));
                let error = if w.offset == 99 { "no\tsuch file".to_owned() } else { String::new() };
                line.answer(v1::LogPiece { request: 424_242, ..Default::default() });
                line.answer(v1::LogPiece {
                    request: w.request,
                    offset: w.offset,
                    data: b"hi".to_vec(),
                    end: true,
                    error,
                });
            }
        });
        let piece = hub.ask(&wish(5)).await.unwrap();
        assert_eq!((piece.offset, &piece.data[..], piece.end), (5, &b"hi"[..], true));
        let refused = hub.ask(&wish(99)).await.unwrap_err();
        assert_eq!(refused.to_string(), "n0: nosuch file");
        // A second stream ends the first.
        let (_line, _wanted) = hub.connect(node());
        agent.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_learns_that_the_node_went_away() {
        let hub = Arc::new(LogHub::default());
        let (line, mut wanted) = hub.connect(node());
        let asker = tokio::spawn({
            let hub = hub.clone();
            async move { hub.ask(&wish(0)).await }
        });
        assert!(wanted.recv().await.is_some());
        drop(line);
        assert_eq!(asker.await.unwrap(), Err(NoPiece::WentAway(node())));
        assert_eq!(hub.ask(&wish(0)).await, Err(NoPiece::NotConnected(node())));
    }
}
