//! New jobs at the door: one, or an array of them.
//!
//! In: a job as it was asked for. Out: the event that accepts it, or a refusal that names the field.
//! What a job may ask of its place is checked in `asks`. A key makes a submission idempotent, that
//! of an array as a whole. Nothing here costs more than the job itself: no walk over the nodes.

use std::sync::Arc;

use tessera_model::{
    ArrayTask, DependencyKind, JobId, JobSpec, Principal, Refusal, RefusalKind, Role, TeamId, Tier,
    UnixMillis, refusal,
};

use super::asks;
use crate::access::{self, Verb, require};
use crate::cluster::Cluster;
use crate::event::Event;
use crate::job_table::Job;
use crate::placement;

/// Waiting jobs one team may have, and the bytes of all waiting jobs' programs.
pub const QUEUED_PER_TEAM_MAX: usize = 100_000;
pub const QUEUED_BYTES_MAX: u64 = 4 << 30;
/// Bytes that the records of one submission may take. In memory the tasks of an array share their
/// program, in the store each has its own.
pub const RECORDS_BYTES_MAX: u64 = 256 << 20;
pub const KEY_MAX: usize = 128;
pub const ARRAY_MAX: usize = 100_000;
pub const DEPENDENCIES_MAX: usize = 1_000;

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The job, or the first task of the array.
    pub job: JobId,
    /// The key was known: no new job was made.
    pub existing: bool,
    pub warnings: Vec<String>,
}

pub fn submit(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    spec: JobSpec,
    key: &str,
) -> Result<(Submitted, Vec<Event>), Refusal> {
    require(who, Verb::Submit)?;
    check_team(cluster, who, &spec.team)?;
    if let Some(job) = known_key(cluster, &spec, key)? {
        let same = *job.spec == spec && job.array.is_none();
        return existing(job, same, key);
    }
    check_room(cluster, &spec, 1)?;
    check_spec(cluster, now, who, &spec)?;
    let warnings = never_fits(cluster, &spec).into_iter().collect();
    let job = JobId(cluster.next_job.max(1));
    let key = (!key.is_empty()).then(|| key.to_owned());
    let event = Event::JobSubmitted { job, key, spec: Arc::new(spec) };
    Ok((Submitted { job, existing: false, warnings }, vec![event]))
}

/// Many jobs alike but for their index. `throttle`: how many may run at once; 0: all.
pub fn submit_array(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    spec: JobSpec,
    key: &str,
    indices: Vec<u32>,
    throttle: u32,
) -> Result<(Submitted, Vec<Event>), Refusal> {
    require(who, Verb::Submit)?;
    check_team(cluster, who, &spec.team)?;
    check_indices(&indices)?;
    if let Some(job) = known_key(cluster, &spec, key)? {
        let first = Some(ArrayTask { array: job.id, index: indices[0] });
        let tasks = cluster.jobs.array(job.id).map(|a| a.tasks as usize);
        let same = *job.spec == spec && job.array == first && tasks == Some(indices.len());
        return existing(job, same, key);
    }
    check_records(&spec, indices.len())?;
    check_room(cluster, &spec, indices.len())?;
    check_spec(cluster, now, who, &spec)?;
    let mut warnings: Vec<String> = never_fits(cluster, &spec).into_iter().collect();
    if spec.singleton && indices.len() > 1 {
        warnings
            .push("its tasks share a name and are singletons: they run one at a time".to_owned());
    }
    let first = JobId(cluster.next_job.max(1));
    let key = (!key.is_empty()).then(|| key.to_owned());
    let event = Event::ArraySubmitted { first, key, spec: Arc::new(spec), indices, throttle };
    Ok((Submitted { job: first, existing: false, warnings }, vec![event]))
}

/// Writes ranges of an array out, `(first, last, step)` each, after counting them.
pub fn expand(ranges: &[(u32, u32, u32)]) -> Result<Vec<u32>, Refusal> {
    let mut count = 0u64;
    for (first, last, step) in ranges {
        if *step == 0 || first > last {
            let message = format!("{first}-{last}:{step} is no range of indices");
            let hint = "write the smaller index first, and a step of at least 1: `0-99:2`";
            return Err(Refusal::invalid("array", message, hint));
        }
        count = count.saturating_add(u64::from((last - first) / step) + 1);
    }
    if count > ARRAY_MAX as u64 {
        return Err(too_many(count));
    }
    let each = ranges.iter().flat_map(|(a, b, step)| (*a..=*b).step_by(*step as usize));
    let mut indices: Vec<u32> = each.collect();
    indices.sort_unstable();
    Ok(indices)
}

fn too_many(count: u64) -> Refusal {
    let message = format!("the array has {count} tasks, at most {ARRAY_MAX} are possible");
    let hint = "let each task do more, or submit several arrays one after the other";
    Refusal::invalid("array", message, hint)
}

fn check_indices(indices: &[u32]) -> Result<(), Refusal> {
    if indices.len() > ARRAY_MAX {
        return Err(too_many(indices.len() as u64));
    }
    let hint = "give each index once, in order: `--array 0-9,20`";
    if indices.is_empty() {
        return Err(Refusal::invalid("array", "the array has no tasks", hint));
    }
    match indices.windows(2).find(|w| w[0] >= w[1]) {
        Some(w) if w[0] == w[1] => {
            Err(Refusal::invalid("array", format!("the index {} is there twice", w[0]), hint))
        }
        Some(w) => Err(Refusal::invalid(
            "array",
            format!("the index {} stands after {}", w[1], w[0]),
            hint,
        )),
        None => Ok(()),
    }
}

/// Checks a job as far as a submission would, whatever is free now.
pub fn check_spec(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    spec: &JobSpec,
) -> Result<(), Refusal> {
    require(who, Verb::Submit)?;
    check_team(cluster, who, &spec.team)?;
    check_rank(who, spec.priority, spec.tier)?;
    check_after(cluster, who, spec)?;
    asks::check(cluster, now, spec)
}

/// Whether the caller may ask for such a turn.
pub fn check_rank(who: &Principal, priority: i32, tier: Tier) -> Result<(), Refusal> {
    if !(-1_000..=1_000).contains(&priority) {
        let message = format!("the priority {priority} is out of range");
        return Err(Refusal::invalid("priority", message, "-1000 to 1000 is possible"));
    }
    let what = match (priority > 0, tier == Tier::Urgent) {
        (_, true) => "put a job into the tier urgent",
        (true, _) => "raise a job's priority above 0",
        _ => return Ok(()),
    };
    if access::may(who, Verb::Prioritize) {
        return Ok(());
    }
    Err(access::denied(
        format!("{} has the role {} and may not {what}", who.user, who.role.word()),
        "ask an admin of the team or an operator; lowering the priority is free".to_owned(),
    ))
}

/// What a job depends on has to be there, or to have ended in a way that is still known.
pub fn check_after(cluster: &Cluster, who: &Principal, spec: &JobSpec) -> Result<(), Refusal> {
    if spec.after.len() > DEPENDENCIES_MAX {
        let message = format!("the job depends on {} others", spec.after.len());
        let hint =
            format!("at most {DEPENDENCIES_MAX} are possible; depend on an array as a whole");
        return Err(Refusal::invalid("after", message, hint));
    }
    for on in &spec.after {
        if is_known(cluster, who, on.job) {
            continue;
        }
        let ended_long_ago = on.job.0 < cluster.next_job && cluster.jobs.get(on.job).is_none();
        match on.kind {
            DependencyKind::AfterAny | DependencyKind::After if ended_long_ago => {}
            _ if ended_long_ago => {
                let message = format!("job {} ended too long ago to say here how", on.job);
                let hint = format!("see `tessera show {}`, and leave the dependency out", on.job);
                return Err(Refusal::invalid("after", message, hint));
            }
            _ => {
                let message = format!("there is no job {} that you may see", on.job);
                let hint = "a job can depend on jobs that were submitted before it";
                return Err(Refusal::invalid("after", message, hint));
            }
        }
    }
    Ok(())
}

/// Whether the caller may know of a job, or of an array whose first task has left memory.
fn is_known(cluster: &Cluster, who: &Principal, id: JobId) -> bool {
    let tasks = cluster.jobs.array(id).map_or(1, |a| u64::from(a.tasks));
    let mut jobs = cluster.jobs.jobs.range(id..JobId(id.0.saturating_add(tasks)));
    jobs.next().is_some_and(|(_, job)| access::may_see_job(who, &job.spec))
}

/// A proof that the job can start on no cluster like this one, however empty.
pub fn never_fits(cluster: &Cluster, spec: &JobSpec) -> Option<String> {
    let space = cluster.space();
    if asks::is_plain(spec) && asks::has_nodes_for(space, spec) {
        return None;
    }
    let proof = placement::could_ever_fit(space, spec).err()?;
    Some(format!("it cannot start on this cluster as it is: {proof}"))
}

/// All tasks of an array are written in one transaction, each with its script and environment.
fn check_records(spec: &JobSpec, tasks: usize) -> Result<(), Refusal> {
    let each = spec.program.bytes();
    let all = each.saturating_mul(tasks as u64);
    if all <= RECORDS_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "{tasks} tasks with {each} bytes of script and environment each take {}, at most {} are possible",
        tessera_model::Bytes(all),
        tessera_model::Bytes(RECORDS_BYTES_MAX)
    );
    let hint = format!(
        "put the script into a file that the tasks run, or submit arrays of up to {} tasks",
        RECORDS_BYTES_MAX / each.max(1)
    );
    Err(Refusal::invalid("array", message, hint))
}

fn check_room(cluster: &Cluster, spec: &JobSpec, jobs: usize) -> Result<(), Refusal> {
    let waiting = cluster.jobs.queue_len_of(&spec.team);
    let message = if waiting + jobs > QUEUED_PER_TEAM_MAX {
        format!(
            "{waiting} jobs of {} wait already, with {jobs} more it would be over {QUEUED_PER_TEAM_MAX}",
            spec.team
        )
    } else if cluster.jobs.queue_bytes() + spec.program.bytes() > QUEUED_BYTES_MAX {
        let bytes = tessera_model::Bytes(QUEUED_BYTES_MAX);
        format!("the programs of all waiting jobs would take more than {bytes}")
    } else {
        return Ok(());
    };
    let hint = "wait until some have started, or cancel some with `tessera cancel`";
    Err(Refusal::new(RefusalKind::Exhausted, "", message, hint))
}

fn known_key<'a>(
    cluster: &'a Cluster,
    spec: &JobSpec,
    key: &str,
) -> Result<Option<&'a Job>, Refusal> {
    if key.len() > KEY_MAX || key.chars().any(char::is_control) {
        let message =
            format!("the key has {} bytes, at most {KEY_MAX} printable ones are kept", key.len());
        return Err(Refusal::invalid("idempotency_key", message, "use a UUID"));
    }
    let known = || cluster.jobs.by_key(&spec.user, key);
    Ok(if key.is_empty() { None } else { known() })
}

fn existing(job: &Job, same: bool, key: &str) -> Result<(Submitted, Vec<Event>), Refusal> {
    if same {
        return Ok((Submitted { job: job.id, existing: true, warnings: Vec::new() }, Vec::new()));
    }
    Err(Refusal::new(
        RefusalKind::AlreadyExists,
        "idempotency_key",
        format!("the key {key:?} was used for job {}, which is a different one", job.id),
        "use a new key for a new job",
    ))
}

pub fn check_team(cluster: &Cluster, who: &Principal, team: &TeamId) -> Result<(), Refusal> {
    // Which other teams there are is nobody's business but an admin's.
    if !cluster.teams.contains_key(team) && who.role == Role::Admin {
        return Err(no_team(cluster, team));
    }
    if !access::acts_for(who, team) {
        let own: Vec<&str> = who.teams.iter().map(TeamId::as_str).collect();
        let message = format!("{} belongs to no team {team}", who.user);
        let hint = match (own.as_slice(), refusal::nearest(team.as_str(), own.iter().copied())) {
            ([], _) => "ask an admin for a token with a team".to_owned(),
            (_, Some(near)) => format!("did you mean {near}?"),
            (own, None) => format!("use one of your teams: {}", own.join(", ")),
        };
        return Err(Refusal::new(RefusalKind::Denied, "team", message, hint));
    }
    Ok(())
}

pub fn no_team(cluster: &Cluster, team: &TeamId) -> Refusal {
    let known: Vec<&str> = cluster.teams.keys().map(TeamId::as_str).collect();
    let hint = match refusal::nearest(team.as_str(), known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "create one with `tessera team create NAME`".to_owned(),
        None => format!("there are: {}", known.join(", ")),
    };
    Refusal::new(RefusalKind::NotFound, "team", format!("there is no team {team}"), hint)
}
