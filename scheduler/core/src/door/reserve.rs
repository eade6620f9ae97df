//! Nodes kept over a time, and domains whose links are not what they should be.
//!
//! In: what an operator wants. Out: the event that does it, or a refusal. A reservation is a lease
//! with an owner and an expiry: it ends by itself.

use std::collections::BTreeSet;

use tessera_model::{
    DomainMark, Millis, NodeId, Principal, Refusal, RefusalKind, Reservation, Target, Topology,
    UnixMillis, refusal,
};

use super::people::{check_reason, known_node};
use super::submit::no_team;
use crate::access::{Verb, require};
use crate::cluster::Cluster;
use crate::event::Event;

/// How long a reservation may last, and how far ahead it may begin.
pub const RESERVATION_MAX: Millis = Millis(366 * Millis::DAY.0);
/// Running jobs a warning names.
const NAMED_MAX: usize = 10;

/// Keeps nodes from `from` until `until`. Gives warnings about running jobs that reach into it.
pub fn reserve(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    reservation: Reservation,
) -> Result<(Vec<String>, Vec<Event>), Refusal> {
    require(who, Verb::Reserve)?;
    let reason = check_reason(&reservation.reason)?;
    let reservation = Reservation { owner: who.user.clone(), reason, ..reservation };
    check_name(&reservation.name)?;
    if let Some(known) = cluster.reservations.get(&reservation.name) {
        let message =
            format!("there is a reservation {} already, until {}", known.name, known.until);
        let hint = format!("choose another name, or `tessera reserve end {}`", known.name);
        return Err(Refusal::new(RefusalKind::AlreadyExists, "name", message, hint));
    }
    check_span(now, &reservation)?;
    if let Some(team) = reservation.teams.iter().find(|t| !cluster.teams.contains_key(t)) {
        return Err(Refusal { field: "teams".to_owned(), ..no_team(cluster, team) });
    }
    let nodes = check_target(cluster, &reservation.target)?;
    check_overlap(cluster, &reservation, &nodes)?;
    let warnings = reaching_in(cluster, &reservation, &nodes);
    Ok((warnings, vec![Event::ReservationMade { reservation }]))
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=63).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let hint = "1 to 63 letters, digits and . _ - make a name";
    Err(Refusal::invalid("name", format!("{shown:?} is no name for a reservation"), hint))
}

fn check_span(now: UnixMillis, reservation: &Reservation) -> Result<(), Refusal> {
    let (from, until) = (reservation.from, reservation.until);
    if from < now {
        let message = format!("{from} has passed");
        return Err(Refusal::invalid("from", message, "choose an instant from now on"));
    }
    if until <= from {
        let message = format!("it would end at {until} and begin at {from}");
        return Err(Refusal::invalid("until", message, "choose an end after the begin"));
    }
    if from.since(now) > RESERVATION_MAX {
        let message = format!("{from} is more than 366 days ahead");
        return Err(Refusal::invalid("from", message, "choose an earlier begin"));
    }
    if until.since(from) > RESERVATION_MAX {
        let message = format!("it would last {}", until.since(from));
        let hint = "at most 366 days are possible; `tessera drain` takes nodes out for good";
        return Err(Refusal::invalid("until", message, hint));
    }
    Ok(())
}

/// The nodes a reservation is about; every one of them is there.
fn check_target(cluster: &Cluster, target: &Target) -> Result<BTreeSet<NodeId>, Refusal> {
    match target {
        Target::Nodes { nodes } => {
            if nodes.is_empty() {
                let hint = "name nodes, or a domain: `leaf/l3`";
                return Err(Refusal::invalid("target", "there is no node in it", hint));
            }
            nodes.iter().try_for_each(|n| known_node(cluster, n).map(|_| ()))?;
        }
        Target::Domain { level, name } => known_domain(cluster.map(), "target", level, name)?,
    }
    Ok(nodes_of(cluster, target))
}

fn nodes_of(cluster: &Cluster, target: &Target) -> BTreeSet<NodeId> {
    match target {
        Target::Nodes { nodes } => nodes.clone(),
        Target::Domain { level, name } => {
            let map = cluster.map();
            let Some((fabric, depth)) = map.level(level) else { return BTreeSet::new() };
            let inside = |path: &[String]| path.get(depth).is_some_and(|d| d == name);
            let nodes = map.fabrics[fabric].nodes.iter().filter(|(_, path)| inside(path));
            nodes.map(|(node, _)| node.clone()).collect()
        }
    }
}

/// Refuses a level or a domain that no map has.
pub fn known_domain(map: &Topology, field: &str, level: &str, domain: &str) -> Result<(), Refusal> {
    let near = |typed: &str, known: &BTreeSet<&str>, none: &str| match refusal::nearest(
        typed,
        known.iter().copied(),
    ) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => none.to_owned(),
        None => {
            let some: Vec<&str> = known.iter().copied().take(20).collect();
            let rest = known.len().saturating_sub(some.len());
            let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            format!("there are: {}{rest}", some.join(", "))
        }
    };
    let shown = |text: &str| text.chars().take(80).collect::<String>();
    let Some((fabric, depth)) = map.level(level) else {
        let hint =
            near(level, &map.levels().collect(), "`tessera topology load FILE` gives it a map");
        let message = format!("the topology has no level {:?}", shown(level));
        return Err(Refusal::new(RefusalKind::NotFound, field, message, hint));
    };
    let paths = map.fabrics[fabric].nodes.values();
    let known: BTreeSet<&str> = paths.filter_map(|p| p.get(depth)).map(String::as_str).collect();
    if known.contains(domain) {
        return Ok(());
    }
    let hint = near(domain, &known, "no node stands in any");
    let message = format!("there is no {level} {:?}", shown(domain));
    Err(Refusal::new(RefusalKind::NotFound, field, message, hint))
}

fn check_overlap(
    cluster: &Cluster,
    wanted: &Reservation,
    nodes: &BTreeSet<NodeId>,
) -> Result<(), Refusal> {
    let meets = |r: &&Reservation| r.from < wanted.until && wanted.from < r.until;
    for other in cluster.reservations.values().filter(meets) {
        if let Some(node) = nodes_of(cluster, &other.target).intersection(nodes).next() {
            let message = format!(
                "{node} is in the reservation {} of {} from {} until {}",
                other.name, other.owner, other.from, other.until
            );
            let hint = "choose other nodes or another time, or end that one first";
            return Err(Refusal::new(RefusalKind::Precondition, "target", message, hint));
        }
    }
    Ok(())
}

/// Jobs that run there and need not be over when it begins. They are not stopped for it.
fn reaching_in(cluster: &Cluster, wanted: &Reservation, nodes: &BTreeSet<NodeId>) -> Vec<String> {
    let mut jobs = BTreeSet::new();
    for node in nodes {
        for attempt in cluster.jobs.attempts_on(node) {
            let ends = attempt.deadline();
            let theirs = wanted.teams.contains(&attempt.spec.team);
            if !theirs && ends.is_none_or(|at| at > wanted.from) {
                jobs.insert((attempt.lease.attempt.job, ends));
            }
        }
    }
    if jobs.is_empty() {
        return Vec::new();
    }
    let named = jobs.iter().take(NAMED_MAX).map(|(job, ends)| match ends {
        Some(at) => format!("{job} until {at}"),
        None => format!("{job} without a time limit"),
    });
    let named: Vec<String> = named.collect();
    let rest = jobs.len() - named.len();
    let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    vec![format!("jobs that run there may reach into it: {}{rest}", named.join(", "))]
}

pub fn end_reservation(
    cluster: &Cluster,
    who: &Principal,
    name: &str,
) -> Result<(Reservation, Vec<Event>), Refusal> {
    require(who, Verb::Reserve)?;
    let Some(reservation) = cluster.reservations.get(name) else {
        let shown: String = name.chars().take(80).collect();
        let hint = match refusal::nearest(name, cluster.reservations.keys().map(String::as_str)) {
            Some(near) => format!("did you mean {near}?"),
            None => "`tessera reserve list` shows those there are".to_owned(),
        };
        let message = format!("there is no reservation {shown:?}");
        return Err(Refusal::new(RefusalKind::NotFound, "name", message, hint));
    };
    let event = Event::ReservationEnded { name: name.to_owned(), by: Some(who.user.clone()) };
    Ok((reservation.clone(), vec![event]))
}

/// Says how well a domain's links do; health 100 takes the mark away.
pub fn mark_domain(
    cluster: &Cluster,
    now: UnixMillis,
    who: &Principal,
    mark: DomainMark,
) -> Result<((), Vec<Event>), Refusal> {
    require(who, Verb::ManageNodes)?;
    known_domain(cluster.map(), "domain", &mark.level, &mark.domain)?;
    if mark.health > 100 {
        let message = format!("{} percent is out of range", mark.health);
        let hint = "0 (no gang of several nodes there) to 100 (all is well) is possible";
        return Err(Refusal::invalid("health", message, hint));
    }
    if let Some(until) = mark.until.filter(|u| *u <= now) {
        let message = format!("{until} has passed");
        return Err(Refusal::invalid("until", message, "choose a later instant, or leave it out"));
    }
    let known = cluster.marks.contains_key(&format!("{}/{}", mark.level, mark.domain));
    if mark.health == 100 && !known {
        return Ok(((), Vec::new()));
    }
    // Whoever takes a mark away need not say why.
    let reason = match (mark.health, mark.reason.trim()) {
        (100, "") => String::new(),
        (_, reason) => check_reason(reason)?,
    };
    let until = mark.until.filter(|_| mark.health < 100);
    let mark = DomainMark { by: who.user.clone(), reason, until, ..mark };
    Ok(((), vec![Event::DomainMarked { mark }]))
}
