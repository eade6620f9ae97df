//! What people ask for beside jobs: nodes, teams, tokens, prices.

use std::collections::BTreeSet;

use tessera_model::usage::PriceVersion;
use tessera_model::{
    Cordon, JobId, Millis, NodeId, NodeState, Principal, Refusal, RefusalKind, TeamId, UnixMillis,
    refusal,
};

use super::submit::check_team;
use crate::access::{Verb, require};
use crate::cluster::{Cluster, Token};
use crate::event::{Event, WriteOffWhy};

/// How long a join token is good for.
pub const JOIN_TOKEN_LIFE: Millis = Millis::from_secs(600);

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

pub fn check_reason(reason: &str) -> Result<String, Refusal> {
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
