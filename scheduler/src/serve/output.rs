//! What a job's tasks wrote, fetched from its nodes and followed across ranks.
//!
//! In: a request with ranks and offsets. Out: chunks as they come, each rank in order, ranks mixed.
//! It ends when all asked ranks have been sent whole: with `follow`, when the job has ended too.
//! What cannot be had is a chunk with a sentence in `gap` in its place, never silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Status;

use tessera_core::access;
use tessera_model::{AttemptId, JobId, JobRecord, NodeId, Principal, Refusal, RefusalKind};
use tessera_proto::v1;

use super::logs::{NoPiece, PIECE_MAX_BYTES, Wish};
use super::watches::{Fate, Watch};
use super::{Sender, Shared, Stream, going_down, stopped, stream};

/// Ranks in one answer.
const RANKS_MAX: usize = 1_024;
/// Between two questions to a node that had nothing new; it holds such an answer back for a while
/// itself.
const PAUSE: Duration = Duration::from_millis(50);
/// After an error, doubling.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A node that is gone for less is not worth a word: its agent is just connecting.
const GAP_AFTER: Duration = Duration::from_secs(3);

/// One request for output.
struct Follow {
    shared: Arc<Shared>,
    who: Arc<Principal>,
    job: JobId,
    /// Empty: all.
    ranks: Vec<u32>,
    follow: bool,
    changes: Watch,
    out: Sender<v1::LogChunk>,
}

/// One rank of one attempt.
struct Rank {
    node: NodeId,
    attempt: AttemptId,
    rank: u32,
    offset: u64,
}

/// The reader is gone, or we are: nothing more can be sent.
struct Over;

pub async fn follow(
    shared: Arc<Shared>,
    who: Arc<Principal>,
    request: v1::LogsRequest,
) -> Result<Stream<v1::LogChunk>, Refusal> {
    let job = JobId(request.job_id);
    let record = shared.job(&who, job).await?;
    if !access::may_see_content(&who, &record.spec) {
        return Err(access::denied(
            format!("the output of job {job} belongs to {}", record.spec.user),
            "ask its owner or an admin of its team".to_owned(),
        ));
    }
    let all = record.spec.gang.ranks();
    if let Some(rank) = request.ranks.iter().find(|r| **r >= all) {
        let message = format!("job {job} has no rank {rank}");
        return Err(Refusal::invalid("ranks", message, format!("its ranks are 0 to {}", all - 1)));
    }
    let count = if request.ranks.is_empty() { all as usize } else { request.ranks.len() };
    if count > RANKS_MAX {
        let message = format!("{count} ranks are asked for, at most {RANKS_MAX} are followed");
        return Err(Refusal::new(
            RefusalKind::Invalid,
            "ranks",
            message,
            "name some: --rank 0 --rank 1",
        ));
    }
    let (out, answer) = stream();
    let mut stopping = shared.stopping.clone();
    let mut ranks = request.ranks;
    ranks.sort_unstable();
    ranks.dedup();
    let changes = shared.watches.subscribe(job);
    let follow =
        Follow { shared, who, job, ranks, follow: request.follow, changes, out: out.clone() };
    let offsets: BTreeMap<u32, u64> = request.offsets.into_iter().collect();
    tokio::spawn(async move {
        tokio::select! {
            _ = follow.run(record, offsets) => {}
            () = out.closed() => {}
            () = stopped(&mut stopping) => {
                let _ = out.send(Err(going_down())).await;
            }
        }
    });
    Ok(answer)
}

impl Follow {
    /// Attempt by attempt, until there is no further one.
    async fn run(
        &self,
        mut record: JobRecord,
        mut offsets: BTreeMap<u32, u64>,
    ) -> Result<(), Over> {
        let mut changes = self.changes.clone();
        let mut done: Option<AttemptId> = None;
        loop {
            match record.attempt.filter(|a| done != Some(*a)) {
                Some(attempt) => {
                    if let Some(before) = done {
                        let text = format!("attempt {before} is over; {attempt} begins anew");
                        for rank in self.asked(&record) {
                            self.gap(rank, 0, text.clone()).await?;
                        }
                    }
                    self.attempt(&record, attempt, &offsets).await?;
                    done = Some(attempt);
                    offsets.clear();
                }
                None if done.is_none() && (!self.follow || record.state.is_terminal()) => {
                    let text = format!(
                        "job {} is {} and has written nothing",
                        self.job,
                        record.state.word()
                    );
                    return self
                        .gap(self.asked(&record).first().copied().unwrap_or(0), 0, text)
                        .await;
                }
                None => {}
            }
            if !self.follow {
                return Ok(());
            }
            record = self.record().await?;
            let over = record.state.is_terminal() && record.attempt == done;
            if over {
                return Ok(());
            }
            if record.attempt == done {
                // Between two attempts, or before the first.
                changes.changed().await.map_err(|_| Over)?;
                record = self.record().await?;
            }
        }
    }

    /// All asked ranks of one attempt, side by side.
    async fn attempt(
        &self,
        record: &JobRecord,
        attempt: AttemptId,
        offsets: &BTreeMap<u32, u64>,
    ) -> Result<(), Over> {
        let per_node = record.spec.gang.tasks_per_node.max(1);
        let mut ranks = tokio::task::JoinSet::new();
        for rank in self.asked(record) {
            let offset = offsets.get(&rank).copied().unwrap_or(0);
            let Some(node) = record.nodes.get((rank / per_node) as usize).cloned() else {
                self.gap(rank, offset, "the node it ran on is not known".into()).await?;
                continue;
            };
            let one = Follow {
                shared: self.shared.clone(),
                who: self.who.clone(),
                job: self.job,
                ranks: Vec::new(),
                follow: self.follow,
                changes: self.changes.clone(),
                out: self.out.clone(),
            };
            ranks.spawn(async move { one.rank(Rank { node, attempt, rank, offset }).await });
        }
        while let Some(ended) = ranks.join_next().await {
            ended.map_err(|_| Over)??;
        }
        Ok(())
    }

    /// One rank to its end, or to where it is now.
    async fn rank(&self, mut at: Rank) -> Result<(), Over> {
        let mut retry = RETRY_MIN;
        // A gap that lasts is told once.
        let mut told = false;
        let mut failing: Option<Instant> = None;
        let mut last_look = false;
        loop {
            let wish = Wish {
                node: at.node.clone(),
                attempt: at.attempt,
                rank: at.rank,
                offset: at.offset,
            };
            match self.shared.logs.ask(&wish).await {
                Ok(piece) => {
                    told = false;
                    failing = None;
                    retry = RETRY_MIN;
                    if piece.offset > at.offset {
                        let text = format!("{} bytes are no longer kept", piece.offset - at.offset);
                        self.gap(at.rank, at.offset, text).await?;
                    }
                    let length = piece.data.len() as u64;
                    if length > 0 {
                        self.send(v1::LogChunk {
                            rank: at.rank,
                            offset: piece.offset,
                            data: piece.data,
                            gap: String::new(),
                        })
                        .await?;
                        at.offset = piece.offset + length;
                    }
                    if piece.end {
                        return Ok(());
                    }
                    let is_full = length >= u64::from(PIECE_MAX_BYTES);
                    if is_full || (length > 0 && self.follow) {
                        continue;
                    }
                    if !self.follow || last_look {
                        return Ok(());
                    }
                    // What it wrote between our question and its end is worth one more.
                    last_look = self.is_over(at.attempt).await?;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(why) => {
                    let over = self.is_over(at.attempt).await?;
                    let since = *failing.get_or_insert_with(Instant::now);
                    let lasts = over || !self.follow || since.elapsed() >= GAP_AFTER;
                    // A task that is not there yet is refused until it is.
                    let early = matches!(why, NoPiece::Refused { .. }) && self.follow && !over;
                    if lasts && !told && !early {
                        self.gap(at.rank, at.offset, why.to_string()).await?;
                        told = true;
                    }
                    if !self.follow || over {
                        return Ok(());
                    }
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Whether nothing of the attempt runs any more. Each rank asks this again and again, so it is
    /// read off the watch that all share; the writer is asked only before the watch's first look.
    async fn is_over(&self, attempt: AttemptId) -> Result<bool, Over> {
        let known = *self.changes.borrow();
        let fate = match known {
            Some(fate) => fate,
            None => {
                let job = self.job;
                let asked = self.shared.handle.read(move |view| Fate::of(view.cluster, job)).await;
                match asked {
                    Ok(fate) => fate,
                    Err(refusal) => return self.refused(&refusal).await,
                }
            }
        };
        // The watch may be a moment behind: an attempt it does not know of yet is not over.
        Ok(fate.is_none_or(|f| f.state.is_terminal() || f.attempt > Some(attempt)))
    }

    fn asked(&self, record: &JobRecord) -> Vec<u32> {
        match self.ranks.as_slice() {
            [] => (0..record.spec.gang.ranks()).collect(),
            some => some.to_vec(),
        }
    }

    async fn record(&self) -> Result<JobRecord, Over> {
        match self.shared.job(&self.who, self.job).await {
            Ok(record) => Ok(record),
            Err(refusal) => self.refused(&refusal).await,
        }
    }

    async fn refused<T>(&self, refusal: &Refusal) -> Result<T, Over> {
        let status: Status = tessera_proto::status::to_status(refusal);
        let _ = self.out.send(Err(status)).await;
        Err(Over)
    }

    async fn gap(&self, rank: u32, offset: u64, text: String) -> Result<(), Over> {
        self.send(v1::LogChunk { rank, offset, gap: text, ..Default::default() }).await
    }

    async fn send(&self, chunk: v1::LogChunk) -> Result<(), Over> {
        self.out.send(Ok(chunk)).await.map_err(|_| Over)
    }
}
