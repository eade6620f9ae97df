//! What people ask for.

use std::collections::BTreeSet;
use std::sync::Arc;

use tessera_model::usage::PriceVersion;
use tessera_model::{
    Cordon, JobId, JobRecord, JobSpec, JobState, Millis, NodeId, NodeState, Principal, Refusal,
    RefusalKind, Role, TeamId, UnixMillis, refusal,
};

use crate::access::{self, Verb, require};
use crate::cluster::{Cluster, Token};
use crate::event::{Event, WriteOffWhy};
use crate::job_table::Job;
use crate::placement::{self, Snapshot};

/// Waiting jobs one team may have, and the bytes of all waiting jobs' programs.
pub const QUEUED_PER_TEAM_MAX: usize = 100_000;
pub const QUEUED_BYTES_MAX: u64 = 4 << 30;
pub const KEY_MAX: usize = 128;
/// How long a join token is good for.
pub const JOIN_TOKEN_LIFE: Millis = Millis::from_secs(600);

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
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
    if key.len() > KEY_MAX || key.chars().any(char::is_control) {
        let message =
            format!("the key has {} bytes, at most {KEY_MAX} printable ones are kept", key.len());
        return Err(Refusal::invalid("idempotency_key", message, "use a UUID"));
    }
    if !key.is_empty()
        && let Some(job) = cluster.jobs.by_key(&spec.user, key)
    {
        return existing(job, &spec, key);
    }
    check_room(cluster, &spec)?;
    let snapshot = check_spec(cluster, now, who, &spec)?;
    let mut warnings = Vec::new();
    if let Err(proof) =
        placement::could_ever_fit(&snapshot.nodes, &snapshot.levels, &spec.gang, &spec.within)
    {
        warnings.push(format!("it cannot start on this cluster as it is: {proof}"));
    }
    let job = JobId(cluster.next_job.max(1));
    let key = (!key.is_empty()).then(|| key.to_owned());
    let event = Event::JobSubmitted { job, key, spec: Arc::new(spec) };
    Ok((Submitted { job, existing: false, warnings }, vec![event]))
}

/// Checks a job as far as a submission would, whatever is free now. Gives what it was checked
/// against.
pub fn check_spec(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    spec: &JobSpec,
) -> Result<Snapshot, Refusal> {
    require(who, Verb::Submit)?;
    check_team(cluster, who, &spec.team)?;
    check_levels(cluster, spec)?;
    let snapshot = Snapshot::nodes_of(cluster, now);
    check_model(cluster, spec)?;
    check_shape(&snapshot, spec)?;
    Ok(snapshot)
}

fn check_room(cluster: &Cluster, spec: &JobSpec) -> Result<(), Refusal> {
    let waiting = cluster.jobs.queue_len_of(&spec.team);
    let message = if waiting >= QUEUED_PER_TEAM_MAX {
        format!("{waiting} jobs of {} wait already, the limit is {QUEUED_PER_TEAM_MAX}", spec.team)
    } else if cluster.jobs.queue_bytes() + spec.program.bytes() > QUEUED_BYTES_MAX {
        let bytes = tessera_model::Bytes(QUEUED_BYTES_MAX);
        format!("the programs of all waiting jobs would take more than {bytes}")
    } else {
        return Ok(());
    };
    let hint = "wait until some have started, or cancel some with `tessera cancel`";
    Err(Refusal::new(RefusalKind::Exhausted, "", message, hint))
}

fn existing(job: &Job, spec: &JobSpec, key: &str) -> Result<(Submitted, Vec<Event>), Refusal> {
    if *job.spec == *spec {
        return Ok((Submitted { job: job.id, existing: true, warnings: Vec::new() }, Vec::new()));
    }
    Err(Refusal::new(
        RefusalKind::AlreadyExists,
        "idempotency_key",
        format!("the key {key:?} was used for job {}, which is a different one", job.id),
        "use a new key for a new job",
    ))
}

fn check_team(cluster: &Cluster, who: &Principal, team: &TeamId) -> Result<(), Refusal> {
    // Which other teams there are is nobody's business but an admin's.
    if !cluster.teams.contains_key(team) && who.role == Role::Admin {
        let known: Vec<&str> = cluster.teams.keys().map(TeamId::as_str).collect();
        let hint = match refusal::nearest(team.as_str(), known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if known.is_empty() => "create one with `tessera team create NAME`".to_owned(),
            None => format!("there are: {}", known.join(", ")),
        };
        return Err(Refusal::new(
            RefusalKind::NotFound,
            "team",
            format!("there is no team {team}"),
            hint,
        ));
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

fn check_levels(cluster: &Cluster, spec: &JobSpec) -> Result<(), Refusal> {
    let levels = &cluster.topology.levels;
    for within in &spec.within {
        if !levels.contains(&within.level) {
            let hint = if levels.is_empty() {
                "the scheduler was started without a topology file; leave `--within` out".to_owned()
            } else {
                format!("there are: {}", levels.join(", "))
            };
            let message = format!("the topology has no level {:?}", within.level);
            return Err(Refusal::invalid("within", message, hint));
        }
    }
    Ok(())
}

fn check_model(cluster: &Cluster, spec: &JobSpec) -> Result<(), Refusal> {
    let Some(model) = spec.gang.gpu_model.as_deref().filter(|_| !cluster.nodes.is_empty()) else {
        return Ok(());
    };
    let gpus = cluster.nodes.values().flat_map(|n| &n.inventory.gpus);
    let known: BTreeSet<&str> = gpus.map(|g| g.model.as_str()).collect();
    let wanted = model.to_ascii_lowercase();
    if known.iter().any(|m| m.to_ascii_lowercase().contains(&wanted)) {
        return Ok(());
    }
    let hint = if known.is_empty() {
        "no node has a GPU".to_owned()
    } else {
        format!("there are: {}", known.into_iter().collect::<Vec<_>>().join(", "))
    };
    let message = format!("no node has a GPU of the model {model:?}");
    Err(Refusal::invalid("gpu_model", message, hint))
}

/// Refuses what no single node could take part in, and says which limit is in the way.
fn check_shape(snapshot: &Snapshot, spec: &JobSpec) -> Result<(), Refusal> {
    let gang = &spec.gang;
    if snapshot.nodes.is_empty() {
        // Nodes may still join; the job waits for them.
        return Ok(());
    }
    let model = gang.gpu_model.as_deref();
    let gpus =
        |n: &placement::NodeView| placement::gpus::matching(&n.gpus, u64::MAX, model).count_ones();
    let largest = snapshot.nodes.iter().map(gpus).max().unwrap_or(0);
    if gang.gpus_per_node > largest {
        let asked = gang.gpus_per_node;
        let message =
            format!("the job asks for {asked} GPUs on one node, the largest node has {largest}");
        let hint = match largest {
            0 => "leave the GPUs out, or add nodes that have some".to_owned(),
            _ => format!("ask for `--gpus-per-node {largest}` and more nodes"),
        };
        return Err(Refusal::invalid("gpus_per_node", message, hint));
    }
    let cpus = snapshot.nodes.iter().map(|n| n.cpus).max().unwrap_or(0);
    if gang.cpus_per_node() > cpus {
        let message = format!(
            "{} tasks with {} CPUs each need {} CPUs on one node, the largest node has {cpus}",
            gang.tasks_per_node,
            gang.cpus_per_task,
            gang.cpus_per_node()
        );
        return Err(Refusal::invalid(
            "cpus_per_task",
            message,
            "ask for fewer CPUs or tasks a node",
        ));
    }
    let memory = snapshot.nodes.iter().map(|n| n.memory).max().unwrap_or(0);
    if gang.memory_per_node.0 > memory {
        let message = format!(
            "the job asks for {} of memory on one node, the largest node has {}",
            gang.memory_per_node,
            tessera_model::Bytes(memory)
        );
        return Err(Refusal::invalid(
            "memory_per_node",
            message,
            "ask for less memory and more nodes",
        ));
    }
    Ok(())
}

pub fn cancel(
    cluster: &Cluster,
    who: &Principal,
    id: JobId,
) -> Result<(JobRecord, Vec<Event>), Refusal> {
    let job = visible(cluster, who, id)?;
    if !access::may_cancel(who, &job.spec) {
        return Err(access::denied(
            format!("job {id} belongs to {} of team {}", job.spec.user, job.spec.team),
            "ask its owner, an admin of its team or an operator".to_owned(),
        ));
    }
    let mut record = cluster.record(job);
    // Asking twice is no error: the answer is the job as it is.
    if job.state.is_terminal() || job.cancelled_by.is_some() {
        return Ok((record, Vec::new()));
    }
    record.cancel_requested = true;
    let by = who.user.clone();
    Ok((record, vec![Event::CancelRequested { job: id, by }]))
}

/// A job the caller may know of. One that belongs to others is not told apart from one that is not there.
pub fn visible<'a>(cluster: &'a Cluster, who: &Principal, id: JobId) -> Result<&'a Job, Refusal> {
    cluster.jobs.get(id).filter(|job| access::may_see_job(who, &job.spec)).ok_or_else(|| no_job(id))
}

pub fn no_job(id: JobId) -> Refusal {
    Refusal::not_found(
        format!("there is no job {id} that you may see"),
        "`tessera queue --all` lists those you may",
    )
}

pub fn cordon(
    cluster: &Cluster,
    who: &Principal,
    node: &NodeId,
    drain: bool,
    reason: &str,
) -> Result<((), Vec<Event>), Refusal> {
    require(who, Verb::ManageNodes)?;
    known_node(cluster, node)?;
    let cordon = Cordon { drain, by: who.user.to_string(), reason: check_reason(reason)? };
    Ok(((), vec![Event::NodeCordoned { node: node.clone(), cordon }]))
}

pub fn uncordon(
    cluster: &Cluster,
    who: &Principal,
    node: &NodeId,
) -> Result<((), Vec<Event>), Refusal> {
    require(who, Verb::ManageNodes)?;
    let n = known_node(cluster, node)?;
    if n.cordon.is_none() && n.occupied.is_empty() {
        return Ok(((), Vec::new()));
    }
    Ok(((), vec![Event::NodeUncordoned { node: node.clone(), by: who.user.clone() }]))
}

/// A node is dead for certain, or gone for good: what ran there is written off, and it leaves.
pub fn retire(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    node: &NodeId,
    reason: &str,
) -> Result<(Vec<JobId>, Vec<Event>), Refusal> {
    require(who, Verb::ManageNodes)?;
    let known = known_node(cluster, node)?;
    if known.state == NodeState::Up {
        return Err(Refusal::new(
            RefusalKind::Precondition,
            "node",
            format!("{node} is up, its agent was heard {} ago", now.since(known.last_seen)),
            format!(
                "`tessera drain {node}`, wait until it is empty, stop its agent, then retire it"
            ),
        ));
    }
    let reason = check_reason(reason)?;
    let mut events: Vec<Event> = cluster
        .jobs
        .attempts_on(node)
        .map(|a| Event::PlaceWrittenOff {
            attempt: a.lease.attempt,
            node: node.clone(),
            charged_until: known.last_seen.max(a.granted_at),
            why: WriteOffWhy::Retired,
        })
        .collect();
    let jobs = cluster.jobs.attempts_on(node).map(|a| a.lease.attempt.job).collect();
    events.push(Event::NodeRetired { node: node.clone(), by: who.user.clone(), reason });
    Ok((jobs, events))
}

fn check_reason(reason: &str) -> Result<String, Refusal> {
    let reason = reason.trim();
    let length = reason.chars().count();
    if reason.is_empty() || length > 200 || reason.chars().any(char::is_control) {
        let message = format!("the reason has {length} characters, or some that cannot be printed");
        let hint = "say in 1 to 200 characters why, for whoever finds it at night: `--reason TEXT`";
        return Err(Refusal::invalid("reason", message, hint));
    }
    Ok(reason.to_owned())
}

pub fn known_node<'a>(
    cluster: &'a Cluster,
    node: &NodeId,
) -> Result<&'a crate::node_table::Node, Refusal> {
    cluster.nodes.get(node).ok_or_else(|| {
        let known = cluster.nodes.keys().map(NodeId::as_str);
        let hint = match refusal::nearest(node.as_str(), known) {
            Some(near) => format!("did you mean {near}?"),
            None => "`tessera nodes` lists them".to_owned(),
        };
        Refusal::new(RefusalKind::NotFound, "node", format!("there is no node {node}"), hint)
    })
}

pub fn create_team(
    cluster: &Cluster,
    who: &Principal,
    team: TeamId,
    description: &str,
) -> Result<((), Vec<Event>), Refusal> {
    require(who, Verb::ManageTeams)?;
    if cluster.teams.contains_key(&team) {
        let message = format!("there is a team {team} already");
        return Err(Refusal::new(
            RefusalKind::AlreadyExists,
            "team",
            message,
            "choose another name",
        ));
    }
    let description: String = description.chars().filter(|c| !c.is_control()).take(200).collect();
    Ok(((), vec![Event::TeamCreated { team, description, by: who.user.clone() }]))
}

/// Issues a token for somebody. `hash` is the SHA-256 of the secret in hex.
pub fn issue_token(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    id: String,
    hash: String,
    principal: Principal,
    lifetime: Option<Millis>,
) -> Result<(Token, Vec<Event>), Refusal> {
    require(who, Verb::ManageTeams)?;
    for team in &principal.teams {
        check_team(cluster, who, team)?;
    }
    if cluster.tokens.contains_key(&id) {
        return Err(Refusal::new(RefusalKind::AlreadyExists, "id", "the id is taken", "try again"));
    }
    let expires = lifetime.map(|l| now.plus(l));
    let token = Token {
        hash: hash.clone(),
        principal: principal.clone(),
        created: now,
        expires,
        revoked: false,
    };
    let by = who.user.clone();
    Ok((token, vec![Event::TokenIssued { id, hash, principal, expires, by }]))
}

pub fn revoke_token(
    cluster: &Cluster,
    who: &Principal,
    id: &str,
) -> Result<(Token, Vec<Event>), Refusal> {
    require(who, Verb::ManageTeams)?;
    let Some(token) = cluster.tokens.get(id) else {
        let message = format!("there is no token {:?}", id.chars().take(40).collect::<String>());
        return Err(Refusal::not_found(message, "`tessera token list` lists them"));
    };
    let event = Event::TokenRevoked { id: id.to_owned(), by: who.user.clone() };
    let events = if token.revoked { Vec::new() } else { vec![event] };
    Ok((Token { revoked: true, ..token.clone() }, events))
}

/// Lets one node join, once.
pub fn issue_join_token(
    now: UnixMillis,
    who: &Principal,
    id: String,
    hash: String,
    node: Option<NodeId>,
) -> Result<(UnixMillis, Vec<Event>), Refusal> {
    require(who, Verb::ManageNodes)?;
    let (expires, by) = (now.plus(JOIN_TOKEN_LIFE), who.user.clone());
    Ok((expires, vec![Event::JoinTokenIssued { id, hash, node, expires, by }]))
}

/// Publishes prices from an instant on; without one, from now.
pub fn publish_prices(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    from: Option<UnixMillis>,
    prices: Vec<tessera_model::usage::Price>,
    note: &str,
) -> Result<(PriceVersion, Vec<Event>), Refusal> {
    require(who, Verb::SetPrices)?;
    if prices.is_empty() {
        let hint = "give at least one, `--gpu h100=2.95`";
        return Err(Refusal::invalid("prices", "there is no price in it", hint));
    }
    let mut seen = BTreeSet::new();
    for price in &prices {
        let model = price.gpu_model.trim().to_ascii_lowercase();
        if model.is_empty() || model.chars().any(char::is_control) || !seen.insert(model) {
            let message = format!("{:?} is empty or there twice", price.gpu_model);
            return Err(Refusal::invalid("prices.gpu_model", message, "name each model once"));
        }
        if !(0..=1_000_000_000_000).contains(&price.per_gpu_hour.0) {
            let message = format!("{} dollars an hour is out of range", price.per_gpu_hour);
            return Err(Refusal::invalid(
                "prices.usd_per_gpu_hour",
                message,
                "0 to 1000000 is possible",
            ));
        }
    }
    let effective_from = from.unwrap_or(now);
    let last = cluster.prices.versions().last();
    if let Some(last) = last.filter(|l| l.effective_from >= effective_from) {
        return Err(Refusal::new(
            RefusalKind::Precondition,
            "effective_from",
            format!(
                "version {} is in force from {}; prices that were published stay as they are",
                last.version, last.effective_from
            ),
            "choose a later instant",
        ));
    }
    if last.is_some() && effective_from < now {
        let hint = "choose an instant from now on; usage so far was priced already";
        let message = format!("{effective_from} has passed");
        return Err(Refusal::new(RefusalKind::Precondition, "effective_from", message, hint));
    }
    let version = PriceVersion {
        version: last.map_or(1, |l| l.version + 1),
        effective_from,
        prices,
        note: note.chars().filter(|c| !c.is_control()).take(200).collect(),
    };
    let event = Event::PricesPublished { version: version.clone(), by: who.user.clone() };
    Ok((version, vec![event]))
}

/// What `list` is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFilter {
    pub teams: Vec<TeamId>,
    pub states: Vec<JobState>,
    pub user: Option<tessera_model::UserId>,
    /// Also those that ended.
    pub ended: bool,
    pub limit: usize,
}

/// Jobs the caller may know of: running ones, then waiting ones in queue order, then ended ones,
/// newest last. And how many there are in all.
pub fn list<'a>(
    cluster: &'a Cluster,
    who: &Principal,
    filter: &JobFilter,
) -> (Vec<&'a Job>, usize) {
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
    let mut jobs: Vec<&Job> = running.chain(cluster.jobs.queue()).filter(wanted).collect();
    let ended_wanted = filter.ended || filter.states.iter().any(|s| s.is_terminal());
    if ended_wanted {
        let ended = cluster.jobs.jobs.values().filter(|j| j.state.is_terminal()).filter(wanted);
        let mut ended: Vec<&Job> = ended.collect();
        ended.sort_by_key(|j| (j.ended_at, j.id));
        let room = filter.limit.saturating_sub(jobs.len());
        let total = jobs.len() + ended.len();
        jobs.extend(&ended[ended.len().saturating_sub(room)..]);
        jobs.truncate(filter.limit);
        return (jobs, total);
    }
    let total = jobs.len();
    jobs.truncate(filter.limit);
    (jobs, total)
}
