//! The reasons, for people. Everything here is read off the decision and the snapshot it was made
//! from; the ladder shows each constraint in the order a search meets them.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{
    Explanation, JobId, JobRecord, JobSpec, JobState, Rung, Strength, UnixMillis, Verdict,
    WaitReason,
};

use crate::cluster::Cluster;
use crate::decide::{self, Decision};
use crate::job_table::Job;
use crate::placement::{self, NodeView, Pending, Snapshot};

/// All that an answer is made from. To take it off the cluster is quick; to answer means to decide
/// many times over, which is done elsewhere than where the cluster is.
pub enum Question {
    /// There is nothing to find out.
    Answered(Explanation),
    Waiting {
        snapshot: Snapshot,
        position: usize,
        id: Option<JobId>,
        known: Option<WaitReason>,
    },
}

impl Question {
    pub fn answer(self) -> Explanation {
        match self {
            Self::Answered(explanation) => explanation,
            Self::Waiting { snapshot, position, id, known } => {
                waiting(&snapshot, position, id, known)
            }
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
        job: Some(record.id),
        verdict,
        summary,
        ladder: Vec::new(),
        expected_start: record.started_at,
        position: None,
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
        return Question::Answered(told(&cluster.record(job)));
    }
    let snapshot = Snapshot::of(cluster, now);
    let Some(position) = snapshot.pending.iter().position(|p| p.job == job.id) else {
        return Question::Answered(not_reached(job, cluster.jobs.ahead_of(job)));
    };
    let known = waits.get(&job.id).cloned();
    Question::Waiting { snapshot, position, id: Some(job.id), known }
}

/// A job so far behind that no round has looked at it yet.
fn not_reached(job: &Job, ahead: usize) -> Explanation {
    let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
    Explanation {
        job: Some(job.id),
        verdict: Verdict::Waits,
        summary: format!("job {}: {}", job.id, WaitReason::NotReached { ahead }),
        ladder: Vec::new(),
        expected_start: None,
        position: Some(ahead.saturating_add(1)),
        hint: None,
    }
}

/// The question what would become of a job if it were submitted now.
pub fn ask_imagined(cluster: &Cluster, now: UnixMillis, spec: &JobSpec) -> Question {
    let mut snapshot = Snapshot::of(cluster, now);
    let id = JobId(cluster.next_job.max(1));
    let higher =
        |p: &&Pending| cluster.jobs.get(p.job).is_some_and(|j| j.spec.priority >= spec.priority);
    let position = snapshot.pending.iter().take_while(higher).count();
    snapshot.pending.insert(
        position,
        Pending {
            job: id,
            gang: spec.gang.clone(),
            within: spec.within.clone(),
            time_limit: spec.time_limit,
            submitted_at: now,
            not_before: None,
            avoid: BTreeSet::new(),
        },
    );
    Question::Waiting { snapshot, position, id: None, known: None }
}

fn waiting(
    snapshot: &Snapshot,
    position: usize,
    id: Option<JobId>,
    known: Option<WaitReason>,
) -> Explanation {
    let job = &snapshot.pending[position];
    let decision = decide::decide(snapshot);
    let starts = decision.start.iter().any(|(j, _)| *j == job.job);
    let reason = decision.wait.get(&job.job).cloned().or(known).unwrap_or(WaitReason::Undecided);
    let infeasible = matches!(reason, WaitReason::Infeasible { .. });
    let (verdict, summary) = match (starts, infeasible) {
        (true, _) => (Verdict::StartsNow, "it starts in the next round".to_owned()),
        (_, true) => (Verdict::Infeasible, reason.to_string()),
        _ => (Verdict::Waits, format!("it waits: it {reason}")),
    };
    let expected_start = if infeasible { None } else { decide::forecast(snapshot, job.job) };
    let subject = id.map_or("this job".to_owned(), |id| format!("job {id}"));
    let ladder = ladder(snapshot, job, position, &decision);
    let hint = hint(snapshot, job, verdict, expected_start, &ladder);
    Explanation {
        job: id,
        verdict,
        summary: format!("{subject}: {}", summary.trim_start_matches("it waits: it ")),
        ladder,
        expected_start,
        position: (!infeasible).then(|| u32::try_from(position + 1).unwrap_or(u32::MAX)),
        hint,
    }
}

/// Which rung counts the nodes that are fit to be used at all.
const WELL: usize = 1;

/// Each constraint from the cheapest to the dearest, with what it needs and what there is.
fn ladder(snapshot: &Snapshot, job: &Pending, position: usize, decision: &Decision) -> Vec<Rung> {
    let gang = &job.gang;
    let count = |keep: &dyn Fn(&NodeView) -> bool| {
        u32::try_from(snapshot.nodes.iter().filter(|n| keep(n)).count()).unwrap_or(u32::MAX)
    };
    let model = gang.gpu_model.as_deref();
    let shaped = |n: &NodeView, among: u64| {
        placement::gpus::matching(&n.gpus, among, model).count_ones() >= gang.gpus_per_node
    };
    let big_enough = |n: &NodeView| {
        shaped(n, u64::MAX) && n.cpus >= gang.cpus_per_node() && n.memory >= gang.memory_per_node.0
    };
    let well = |n: &NodeView| n.takes_jobs && big_enough(n) && shaped(n, n.healthy);
    let free = |n: &NodeView| {
        well(n)
            && shaped(n, n.free)
            && n.cpus_free >= gang.cpus_per_node()
            && n.memory_free >= gang.memory_per_node.0
    };
    let shape = match gang.gpus_per_node {
        0 => format!("nodes with {} CPUs", gang.cpus_per_node()),
        g => format!("nodes with {g} {}GPUs", model.map(|m| format!("{m} ")).unwrap_or_default()),
    };
    let mut rungs = Vec::new();
    let mut rung = |what: String, have: u32| {
        let holds = have >= gang.nodes;
        rungs.push(Rung { what, need: gang.nodes.to_string(), have: have.to_string(), holds });
    };
    rung(shape.clone(), count(&big_enough));
    rung(format!("{shape}, up, healthy and not cordoned"), count(&well));
    rung(format!("{shape}, free now"), count(&free));
    for within in job.within.iter().filter(|w| w.strength == Strength::Required) {
        let only = [within.clone()];
        let fit =
            placement::place(&snapshot.nodes, &snapshot.levels, gang, &only, &BTreeSet::new());
        let have = fit.map_or_else(|no| no.have, |_| gang.nodes);
        rung(format!("of these in one {}", within.level), have);
    }
    rungs.push(Rung {
        what: "jobs before it in the queue".to_owned(),
        need: "-".to_owned(),
        have: position.to_string(),
        holds: position == 0,
    });
    if let Some(r) = decision.reservation.as_ref().filter(|r| r.job != job.job) {
        let until = r.at.map_or("with no date".to_owned(), |at| format!("for {at}"));
        let held =
            matches!(decision.wait.get(&job.job), Some(WaitReason::HeldForReservation { .. }));
        rungs.push(Rung {
            what: format!("free nodes that job {} has reserved {until}", r.job),
            need: "-".to_owned(),
            have: r.places.len().to_string(),
            holds: !held,
        });
    }
    rungs
}

/// A change that was tried and found to start at once, or what else the person can do.
fn hint(
    snapshot: &Snapshot,
    job: &Pending,
    verdict: Verdict,
    expected: Option<UnixMillis>,
    ladder: &[Rung],
) -> Option<String> {
    if verdict == Verdict::StartsNow {
        return None;
    }
    let starts_with = |change: &dyn Fn(&mut Pending)| {
        let mut other = snapshot.clone();
        let at = other.pending.iter().position(|p| p.job == job.job)?;
        change(&mut other.pending[at]);
        decide::decide(&other).start.iter().any(|(id, _)| *id == job.job).then_some(())
    };
    if !job.within.is_empty() && starts_with(&|p| p.within.clear()).is_some() {
        return Some("would start now without `--within`".to_owned());
    }
    // Fewer nodes start at once: the most that do, by halving.
    let (mut low, mut high) = (0, job.gang.nodes.saturating_sub(1));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if starts_with(&|p| p.gang.nodes = middle).is_some() {
            low = middle
        } else {
            high = middle - 1
        }
    }
    if low > 0 {
        return Some(format!("would start now with `--nodes {low}`"));
    }
    match (verdict, expected) {
        (Verdict::Infeasible, _) => {
            Some("ask for fewer nodes or GPUs, or wait until nodes are added; `tessera nodes` shows what there is".to_owned())
        }
        (_, None) => Some(no_date(snapshot, ladder)),
        _ => None,
    }
}

/// Why no date follows from what is known.
fn no_date(snapshot: &Snapshot, ladder: &[Rung]) -> String {
    if let Some(rung) = ladder.get(WELL).filter(|r| !r.holds) {
        let (have, need) = (&rung.have, &rung.need);
        return format!(
            "no date can be given: {have} of the {need} nodes it needs are up and healthy; `tessera nodes` shows what is wrong with the others"
        );
    }
    if snapshot.releases.iter().any(|r| r.at.is_none()) {
        return "no date can be given: jobs in its way have no time limit; with `--time-limit` jobs can be planned around".to_owned();
    }
    "no date can be given: jobs before it have no time limit".to_owned()
}
