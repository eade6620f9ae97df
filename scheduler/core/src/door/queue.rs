//! What people ask for a job that is there: cancel, hold, release, update, signal, and to be told
//! that its work is safe.
//!
//! In: who asks, and which job. Out: the events that do it, or a refusal. Its owner may, an admin
//! of its team, an operator. A job that belongs to others is not told apart from one that is not
//! there. `tasks` says which jobs are meant by an array.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{
    AttemptId, Dependency, JobChange, JobId, JobRecord, JobSpec, JobState, Principal, Refusal,
    RefusalKind, TeamId, UnixMillis, UserId,
};

use super::{asks, submit};
use crate::access::{self, Verb};
use crate::cluster::Cluster;
use crate::event::Event;
use crate::job_table::{Attempt, Job, Phase};

/// A job the caller may know of.
pub fn visible<'a>(cluster: &'a Cluster, who: &Principal, id: JobId) -> Result<&'a Job, Refusal> {
    cluster.jobs.get(id).filter(|job| access::may_see_job(who, &job.spec)).ok_or_else(|| no_job(id))
}

pub fn no_job(id: JobId) -> Refusal {
    Refusal::not_found(
        format!("there is no job {id} that you may see"),
        "`tessera queue --all` lists those you may",
    )
}

/// A job the caller may have a say in.
fn own<'a>(cluster: &'a Cluster, who: &Principal, id: JobId) -> Result<&'a Job, Refusal> {
    let job = visible(cluster, who, id)?;
    if access::may_manage(who, &job.spec) {
        return Ok(job);
    }
    Err(access::denied(
        format!("job {id} belongs to {} of team {}", job.spec.user, job.spec.team),
        "ask its owner, an admin of its team or an operator".to_owned(),
    ))
}

/// The jobs somebody means. `index`: one task of the array. Otherwise an array's id means all its
/// unfinished tasks, unless `only` says that it is the job itself.
pub fn tasks(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
    index: Option<u32>,
    only: bool,
) -> Result<Vec<JobId>, Refusal> {
    let Some(array) = cluster.jobs.array(id) else {
        return match (visible(cluster, who, id)?, index) {
            (_, None) => Ok(vec![id]),
            (_, Some(index)) => {
                let hint = format!("leave the index out: `{id}`");
                let message = format!("job {id} is no array and has no task {index}");
                Err(Refusal::new(RefusalKind::NotFound, "index", message, hint))
            }
        };
    };
    let span = id..JobId(id.0.saturating_add(u64::from(array.tasks)));
    // The array's first task may have left memory before the others.
    let some = cluster.jobs.jobs.range(span.clone()).next().map(|(_, job)| job);
    some.filter(|job| access::may_see_job(who, &job.spec)).ok_or_else(|| no_job(id))?;
    if let Some(index) = index {
        let mut tasks = cluster.jobs.jobs.range(span);
        let task = tasks.find(|(_, job)| job.array.is_some_and(|t| t.index == index));
        return task.map(|(id, _)| vec![*id]).ok_or_else(|| {
            let message = format!("array {id} has no task {index}, or it ended long ago");
            let hint = format!("`tessera show {id}` shows its tasks");
            Refusal::new(RefusalKind::NotFound, "index", message, hint)
        });
    }
    if only {
        return Ok(vec![visible(cluster, who, id)?.id]);
    }
    Ok(cluster.jobs.tasks_of(id).map(|job| job.id).collect())
}

pub fn cancel(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = own(cluster, who, id)?;
    let mut record = cluster.record(job);
    // Asking twice is no error: the answer is the job as it is.
    if job.state.is_terminal() || job.cancelled_by.is_some() {
        return Ok((record, Vec::new()));
    }
    record.cancel_requested = true;
    let by = who.user.clone();
    Ok((record, vec![Event::CancelRequested { job: id, by }]))
}

/// Keeps a waiting job from starting until somebody releases it.
pub fn hold(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = own(cluster, who, id)?;
    waits(job, "be held back")?;
    let mut record = cluster.record(job);
    if job.held {
        return Ok((record, Vec::new()));
    }
    record.held = true;
    Ok((record, vec![Event::JobHeld { job: id, by: who.user.clone() }]))
}

pub fn release(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = own(cluster, who, id)?;
    let mut record = cluster.record(job);
    if !job.held {
        return Ok((record, Vec::new()));
    }
    record.held = false;
    Ok((record, vec![Event::JobReleased { job: id, by: who.user.clone() }]))
}

fn waits(job: &Job, what: &str) -> Result<(), Refusal> {
    if job.state == JobState::Pending {
        return Ok(());
    }
    let message = format!("job {} is {}, only one that waits can {what}", job.id, job.state.word());
    let hint = match job.state.is_terminal() {
        true => "submit it again".to_owned(),
        false => format!("`tessera cancel {}` stops it", job.id),
    };
    Err(Refusal::new(RefusalKind::Precondition, "job", message, hint))
}

/// Changes a job that waits; of a running one only its time limit and its array's throttle.
pub fn update(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    id: JobId,
    change: JobChange,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = own(cluster, who, id)?;
    if change == JobChange::default() {
        let hint = "say what, `--priority`, `--time`, `--nodes`, …";
        return Err(Refusal::invalid("change", "there is nothing to change", hint));
    }
    if change.throttle.is_some() && job.array.is_none() {
        let message = format!("job {id} is no task of an array");
        return Err(Refusal::invalid("throttle", message, "leave the throttle out"));
    }
    let spec = changed(&job.spec, &change);
    if job.state == JobState::Pending {
        check_raise(who, &job.spec, &change)?;
        if change.after.is_some() {
            submit::check_after(cluster, who, &spec)?;
            check_cycle(cluster, job, &spec.after)?;
        }
        asks::check(cluster, now, &spec)?;
    } else {
        let rest = JobChange { time_limit: None, throttle: None, ..change.clone() };
        if rest != JobChange::default() || job.state.is_terminal() {
            waits(job, "be changed in that")?;
        }
        check_limit(cluster, now, who, job, &change)?;
    }
    let mut record = cluster.record(job);
    record.spec = spec;
    Ok((record, vec![Event::JobUpdated { job: id, change, by: who.user.clone() }]))
}

/// To leave a rank as it is, or to lower it, is everybody's right.
fn check_raise(who: &Principal, spec: &JobSpec, change: &JobChange) -> Result<(), Refusal> {
    let priority = change.priority.unwrap_or(0);
    let priority = if priority > spec.priority { priority } else { priority.min(0) };
    let tier = change.tier.filter(|tier| *tier != spec.tier).unwrap_or_default();
    submit::check_rank(who, priority, tier)
}

/// The job as it would be.
fn changed(spec: &JobSpec, change: &JobChange) -> JobSpec {
    let mut spec = spec.clone();
    spec.priority = change.priority.unwrap_or(spec.priority);
    spec.tier = change.tier.unwrap_or(spec.tier);
    spec.time_limit = change.time_limit.or(spec.time_limit);
    spec.gang.nodes = change.nodes.unwrap_or(spec.gang.nodes);
    spec.begin = change.begin.or(spec.begin);
    if let Some(placement) = &change.placement {
        spec.placement = placement.clone();
    }
    if let Some(after) = &change.after {
        spec.after.clone_from(after);
    }
    spec
}

/// A running job's time: others were promised what it has to give back.
fn check_limit(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    job: &Job,
    change: &JobChange,
) -> Result<(), Refusal> {
    let Some(limit) = change.time_limit else { return Ok(()) };
    let attempt = running(cluster, job)?;
    let longer = attempt.spec.time_limit.is_some_and(|before| limit > before);
    if longer && !access::may(who, Verb::ManageNodes) {
        return Err(access::denied(
            format!("{} may shorten the time of a running job, not prolong it", who.user),
            "ask an operator: others were promised its place".to_owned(),
        ));
    }
    let ran = now.since(attempt.running_since.unwrap_or(attempt.granted_at));
    if limit <= ran {
        let message = format!("job {} has run for {ran} already", job.id);
        let hint = format!("give it more than that, or `tessera cancel {}`", job.id);
        return Err(Refusal::invalid("time_limit", message, hint));
    }
    Ok(())
}

/// A job may come to depend on a later one, which must not depend on it.
fn check_cycle(cluster: &Cluster, job: &Job, after: &[Dependency]) -> Result<(), Refusal> {
    let array = job.array.map(|t| t.array);
    let mut seen: BTreeSet<JobId> = BTreeSet::new();
    let mut left: Vec<(JobId, JobId)> = after.iter().map(|on| (on.job, on.job)).collect();
    while let Some((at, by)) = left.pop() {
        if at == job.id || Some(at) == array {
            let message = if by == at {
                format!("job {} would depend on itself", job.id)
            } else {
                format!("job {} would depend on job {by}, which depends on it", job.id)
            };
            let hint = "take one of the dependencies out; neither could ever start";
            return Err(Refusal::invalid("after", message, hint));
        }
        if !seen.insert(at) {
            continue;
        }
        let unmet = cluster.jobs.unmet(at).iter().chain(
            // An array depends on what its tasks depend on.
            cluster
                .jobs
                .array(at)
                .into_iter()
                .flat_map(|_| cluster.jobs.tasks_of(at).flat_map(|t| cluster.jobs.unmet(t.id))),
        );
        left.extend(unmet.map(|on| (on.job, by)));
    }
    Ok(())
}

/// Sends a running job's tasks a signal.
pub fn signal(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
    signal: i32,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = own(cluster, who, id)?;
    if !(1..=asks::SIGNAL_MAX).contains(&signal) {
        let hint = format!("1 to {} is possible, or a name: USR1, TERM", asks::SIGNAL_MAX);
        return Err(Refusal::invalid("signal", format!("there is no signal {signal}"), hint));
    }
    running(cluster, job)?;
    let event = Event::SignalRequested { job: id, signal, by: who.user.clone() };
    Ok((cluster.record(job), vec![event]))
}

/// The job's work is safe up to now: said by its owner, or from within it. `attempt`: the one that
/// says so, where it is known.
pub fn checkpoint(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
    attempt: Option<AttemptId>,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = own(cluster, who, id)?;
    let present = running(cluster, job)?.lease.attempt;
    if let Some(said) = attempt.filter(|said| *said != present) {
        let message = format!("attempt {said} of job {id} is over, {present} is under way");
        let hint = "what an earlier attempt has saved says nothing of this one";
        return Err(Refusal::new(RefusalKind::Precondition, "attempt", message, hint));
    }
    let mut record = cluster.record(job);
    record.last_checkpoint_at = Some(cluster.now);
    Ok((record, vec![Event::CheckpointReported { attempt: present }]))
}

/// The attempt of a job whose tasks run.
fn running<'a>(cluster: &'a Cluster, job: &Job) -> Result<&'a Attempt, Refusal> {
    let attempt = job.attempt.and_then(|a| cluster.jobs.attempts.get(&a));
    let under_way = |a: &&Attempt| {
        a.committed && !a.settled && (a.phase != Phase::Stopping || a.leave.is_some())
    };
    attempt.filter(under_way).ok_or_else(|| {
        let message = format!("job {} is {}, its tasks do not run", job.id, job.state.word());
        let hint = format!("`tessera wait {} --for running` waits until they do", job.id);
        Refusal::new(RefusalKind::Precondition, "job", message, hint)
    })
}

/// What `list` is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFilter {
    pub teams: Vec<TeamId>,
    pub states: Vec<JobState>,
    pub user: Option<UserId>,
    /// Also those that ended.
    pub ended: bool,
    pub limit: usize,
}

/// What `list` answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed<'a> {
    pub jobs: Vec<&'a Job>,
    /// How many there are, shown or not.
    pub total: usize,
    /// Of those shown that stand in the queue's order: where, from 1.
    pub positions: BTreeMap<JobId, u32>,
}

/// Jobs the caller may know of: running ones, then waiting ones in queue order, then ended ones,
/// newest last. Of a long queue no more is put in order than is shown.
pub fn list<'a>(
    cluster: &'a Cluster,
    who: &Principal,
    filter: &JobFilter,
    now: UnixMillis,
) -> Listed<'a> {
    let wanted = |job: &&Job| {
        access::may_see_job(who, &job.spec)
            && (filter.teams.is_empty() || filter.teams.contains(&job.spec.team))
            && (filter.states.is_empty() || filter.states.contains(&job.state))
            && filter.user.as_ref().is_none_or(|u| job.spec.user == *u)
    };
    let active: BTreeSet<JobId> = cluster
        .jobs
        .attempts
        .values()
        .filter(|a| !a.settled)
        .map(|a| a.lease.attempt.job)
        .collect();
    let running = active
        .iter()
        .filter_map(|id| cluster.jobs.get(*id))
        .filter(|j| j.state != JobState::Pending);
    let mut jobs: Vec<&Job> = running.filter(wanted).collect();
    let mut total = jobs.len();
    let mut positions = BTreeMap::new();
    let waits_wanted = filter.states.is_empty() || filter.states.contains(&JobState::Pending);
    if waits_wanted {
        let waiting = || cluster.jobs.jobs.values().filter(|j| j.state == JobState::Pending);
        let waiting = waiting().filter(wanted).count();
        total += waiting;
        let mut left = waiting.min(filter.limit.saturating_sub(jobs.len()));
        let order = (1u32..).map(Some).zip(cluster.jobs.in_order(now));
        let mut queue = order.chain(cluster.jobs.parked().map(|id| (None, id)));
        while left > 0
            && let Some((position, id)) = queue.next()
        {
            let Some(job) = cluster.jobs.get(id).filter(wanted) else { continue };
            jobs.push(job);
            left -= 1;
            if let Some(position) = position {
                positions.insert(id, position);
            }
        }
    }
    let ended_wanted = filter.ended || filter.states.iter().any(|s| s.is_terminal());
    if ended_wanted {
        let ended = cluster.jobs.jobs.values().filter(|j| j.state.is_terminal()).filter(wanted);
        let mut ended: Vec<&Job> = ended.collect();
        ended.sort_by_key(|j| (j.ended_at, j.id));
        let room = filter.limit.saturating_sub(jobs.len());
        total += ended.len();
        jobs.extend(&ended[ended.len().saturating_sub(room)..]);
    }
    jobs.truncate(filter.limit);
    Listed { jobs, total, positions }
}
