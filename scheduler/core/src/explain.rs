//! The reasons, for people: the one that counts, the ladder behind it, what was promised and what
//! can be expected, and which changes would help.
//!
//! In: a snapshot and a job, real or imagined. Out: an [`Explanation`]. Nothing is guessed: the
//! answer comes from the very pass that decides, and each change is put to it, too. To take a
//! [`Question`] off the cluster is quick; to answer it means to decide some dozens of times, which
//! is done elsewhere than where the cluster is.

mod changes; // what would help
mod ladder; // what was asked, and what there is

use std::collections::BTreeMap;

use tessera_model::{
    Explanation, JobId, JobRecord, JobSpec, JobState, NodeId, UnixMillis, Verdict, WaitReason,
};

use crate::cluster::Cluster;
use crate::decide::{DEPTH, Pass};
use crate::job_table::Job;
use crate::placement::Placed;
use crate::queue;
use crate::snapshot::{Pending, Snapshot};

pub(crate) use changes::limit_until;

/// Blocked jobs before the one in question whose places are worked out; with more before it, no
/// date is given.
const RESERVATIONS: usize = 48;
/// Nodes of a place that are named.
const NODES_SHOWN: usize = 64;

/// All that an answer is made from.
pub enum Question {
    /// There is nothing to find out.
    Answered(Box<Explanation>),
    Waiting {
        snapshot: Box<Snapshot>,
        /// In the snapshot's queue.
        position: usize,
        /// `None` for a job that was only imagined.
        id: Option<JobId>,
    },
}

impl Question {
    pub fn answer(self) -> Explanation {
        match self {
            Self::Answered(explanation) => *explanation,
            Self::Waiting { snapshot, position, id } => waiting(&snapshot, position, id),
        }
    }
}

/// What a job that does not wait any more has to say.
pub fn told(record: &JobRecord) -> Explanation {
    let verdict = if record.state.is_terminal() { Verdict::Ended } else { Verdict::Started };
    let mut summary = format!("job {} is {}", record.id, record.state.word());
    if !record.reason.is_empty() {
        summary += &format!(": {}", record.reason);
    }
    Explanation {
        expected_start: record.started_at,
        promised: record.promised_at,
        place: record.nodes.iter().take(NODES_SHOWN).cloned().collect(),
        ..bare(Some(record.id), verdict, summary)
    }
}

fn bare(job: Option<JobId>, verdict: Verdict, summary: String) -> Explanation {
    Explanation {
        job,
        verdict,
        summary,
        ladder: Vec::new(),
        expected_start: None,
        position: None,
        eta: None,
        promised: None,
        counterfactuals: Vec::new(),
        place: Vec::new(),
        hint: None,
    }
}

/// The question why a job waits. `waits` are the reasons of the last decision.
pub fn ask(
    cluster: &Cluster,
    now: UnixMillis,
    job: &Job,
    waits: &BTreeMap<JobId, WaitReason>,
) -> Question {
    if job.state != JobState::Pending {
        return Question::Answered(Box::new(told(&cluster.record(job))));
    }
    if let Some(reason) = queue::gate(cluster, job) {
        let summary = format!("job {}: {reason}", job.id);
        let hint = gate_hint(&reason);
        let explanation = Explanation { hint, ..bare(Some(job.id), Verdict::Waits, summary) };
        return Question::Answered(Box::new(explanation));
    }
    let snapshot = Snapshot::of(cluster, now);
    match snapshot.queue.iter().position(|p| p.job == job.id) {
        Some(position) => {
            Question::Waiting { snapshot: Box::new(snapshot), position, id: Some(job.id) }
        }
        None => {
            let ahead = cluster.jobs.ahead_of(job).max(DEPTH);
            let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
            let unknown = WaitReason::NotReached { ahead };
            let reason = waits.get(&job.id).unwrap_or(&unknown);
            let summary = format!("job {}: {reason}", job.id);
            let position = Some(ahead.saturating_add(1));
            let explanation =
                Explanation { position, ..bare(Some(job.id), Verdict::Waits, summary) };
            Question::Answered(Box::new(explanation))
        }
    }
}

/// What opens a gate.
fn gate_hint(reason: &WaitReason) -> Option<String> {
    let hint = match reason {
        WaitReason::Held => "let it go with `tessera release`",
        WaitReason::DependencyNever { .. } => {
            "cancel it, or give it another dependency with `tessera update --after`"
        }
        WaitReason::Begins { .. } => "change that with `tessera update --begin now`",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The question what would become of a job if it were submitted now: behind all that wait in its
/// tier with at least its priority.
pub fn ask_imagined(cluster: &Cluster, now: UnixMillis, spec: &JobSpec) -> Question {
    let mut snapshot = Snapshot::of(cluster, now);
    let id = JobId(cluster.next_job.max(1));
    let before = |p: &Pending| {
        let other = &p.spec;
        let same_line = other.team == spec.team && other.priority < spec.priority;
        (other.tier < spec.tier) || (other.tier == spec.tier && !same_line)
    };
    let position = snapshot.queue.iter().rposition(before).map_or(0, |last| last + 1);
    snapshot.queue.insert(position, Pending::imagined(id, spec.clone(), now));
    Question::Waiting { snapshot: Box::new(snapshot), position, id: None }
}

/// The pass up to a job's turn.
fn pass_before(snapshot: &Snapshot, position: usize) -> Pass<'_> {
    let mut pass = Pass::new(snapshot, RESERVATIONS);
    pass.walk(position);
    pass
}

fn waiting(snapshot: &Snapshot, position: usize, id: Option<JobId>) -> Explanation {
    let job = &snapshot.queue[position];
    let before = pass_before(snapshot, position);
    let mut pass = before.clone();
    let outcome = pass.turn(job);
    let subject = id.map_or("this job".to_owned(), |id| format!("job {id}"));
    let ladder = ladder::ladder(&before, job, position, &outcome);
    let place = |placed: &Placed| -> Vec<NodeId> {
        let nodes = placed.places.iter().take(NODES_SHOWN);
        nodes.map(|c| snapshot.space.id(c.node).clone()).collect()
    };
    let (verdict, summary, nodes, at) = match &outcome {
        Ok(placed) => {
            let summary = "it starts in the next round".to_owned();
            (Verdict::StartsNow, summary, place(placed), Some(snapshot.now))
        }
        Err(reason @ WaitReason::Infeasible { .. }) => {
            (Verdict::Infeasible, reason.to_string(), Vec::new(), None)
        }
        Err(reason) => (Verdict::Waits, reason.to_string(), Vec::new(), pass.kept_for(job.job)),
    };
    let eta = at.filter(|_| outcome.is_err()).and_then(|at| pass.eta(job, at));
    let counterfactuals = match verdict {
        Verdict::StartsNow => Vec::new(),
        _ => changes::changes(&before, job, at),
    };
    let hint = hint(snapshot, verdict, at, &counterfactuals, &ladder);
    Explanation {
        ladder,
        expected_start: at,
        position: (verdict != Verdict::Infeasible)
            .then(|| u32::try_from(position + 1).unwrap_or(u32::MAX)),
        eta,
        promised: job.promise.map(|p| p.latest),
        counterfactuals,
        place: nodes,
        hint,
        ..bare(id, verdict, format!("{subject}: {summary}"))
    }
}

/// The change that helps most, or what else the person can do.
fn hint(
    snapshot: &Snapshot,
    verdict: Verdict,
    at: Option<UnixMillis>,
    changes: &[tessera_model::Counterfactual],
    rungs: &[tessera_model::Rung],
) -> Option<String> {
    if verdict == Verdict::StartsNow {
        return None;
    }
    let now = snapshot.now;
    if let Some(change) = changes.iter().find(|c| c.starts_at == Some(now)) {
        return Some(format!("would start now with `{}`", change.change));
    }
    match (verdict, at) {
        (Verdict::Infeasible, _) => {
            Some("ask for fewer nodes or GPUs, or wait until nodes are added; `tessera nodes` shows what there is".to_owned())
        }
        (_, None) => Some(no_date(snapshot, rungs)),
        _ => None,
    }
}

/// Why no date follows from what is known.
fn no_date(snapshot: &Snapshot, rungs: &[tessera_model::Rung]) -> String {
    if let Some(rung) = rungs.get(ladder::WELL).filter(|r| !r.holds) {
        let (have, need) = (&rung.have, &rung.need);
        return format!(
            "no date can be given: {have} of the {need} nodes it needs are up and healthy; `tessera nodes` shows what is wrong with the others"
        );
    }
    if snapshot.running.iter().any(|r| r.ends_at.is_none()) {
        return "no date can be given: jobs in its way have no time limit; with `--time-limit` jobs can be planned around".to_owned();
    }
    "no date can be given: jobs before it have no time limit".to_owned()
}
