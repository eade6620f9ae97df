//! What operators and admins set, at the door: a team's share, and reservations.
//!
//! Whether a team, a node or a domain exists, and whether the guarantees of a tree add up, is
//! decided further in.

use std::collections::BTreeSet;

use tessera_model::{
    Cell, NodeId, Quota, Refusal, Reservation, Target, TeamId, TeamShare, UnixMillis, UserId,
};

use crate::{
    door::{Checked, bad_id, count, label, line, present, quote, range},
    jobs, v1,
};

const WEIGHT_MAX: u32 = 1_000_000;
const QUOTAS_MAX: usize = 64;
const TEAMS_MAX: usize = 256;
const NODES_MAX: usize = 10_000;
const NAME_CHARS_MAX: usize = 63;
const DOMAIN_CHARS_MAX: usize = 128;
const REASON_CHARS_MAX: usize = 1_024;
/// GPUs of a quota: far above any cluster, and so low that sums cannot overflow.
const GPUS_MAX: u32 = 100_000_000;

pub fn share_to_wire(share: &TeamShare) -> v1::TeamShare {
    v1::TeamShare {
        parent: share.parent.as_ref().map(TeamId::to_string).unwrap_or_default(),
        weight: share.weight,
        quotas: share.quotas.iter().map(quota_to_wire).collect(),
    }
}

fn quota_to_wire(quota: &Quota) -> v1::Quota {
    v1::Quota {
        gpu_model: quota.gpu_model.clone(),
        guaranteed: quota.guaranteed,
        limit: quota.limit,
        cell: quota.cell.as_ref().map(|c| v1::Cell { level: c.level.clone(), domains: c.domains }),
    }
}

pub fn share_from_wire(wire: v1::TeamShare) -> Result<TeamShare, Refusal> {
    let share = TeamShare {
        parent: parent(&wire.parent)?,
        weight: if wire.weight == 0 { TeamShare::default().weight } else { wire.weight },
        quotas: quotas(wire.quotas)?,
    };
    check_weight(share.weight)?;
    Ok(share)
}

/// What of a team's share is to be another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShareChange {
    /// `Some(None)`: it is no longer part of another team.
    pub parent: Option<Option<TeamId>>,
    pub weight: Option<u32>,
    pub quotas: Vec<Quota>,
    pub drop_quotas: Vec<String>,
}

impl ShareChange {
    /// The share as it is then.
    pub fn of(&self, share: &TeamShare) -> TeamShare {
        let mut share = share.clone();
        if let Some(parent) = &self.parent {
            share.parent = parent.clone();
        }
        if let Some(weight) = self.weight {
            share.weight = weight;
        }
        let gone = |q: &Quota| {
            self.drop_quotas.contains(&q.gpu_model)
                || self.quotas.iter().any(|new| new.gpu_model == q.gpu_model)
        };
        share.quotas.retain(|q| !gone(q));
        share.quotas.extend(self.quotas.iter().cloned());
        share
    }
}

/// The team that is meant, and what of its share is to be another.
pub fn share_change_from_wire(
    wire: v1::ShareTeamRequest,
) -> Result<(TeamId, ShareChange), Refusal> {
    let team = TeamId::parse(&wire.team).map_err(bad_id("team"))?;
    let change = ShareChange {
        parent: wire.parent.map(|p| parent(&p)).transpose()?,
        weight: wire.weight,
        quotas: quotas(wire.quotas)?,
        drop_quotas: wire.drop_quotas.iter().map(|m| m.to_ascii_lowercase()).collect(),
    };
    if let Some(weight) = change.weight {
        check_weight(weight)?;
    }
    if change == ShareChange::default() {
        let hint = "give a parent, a weight or a quota";
        return Err(Refusal::invalid("share", "nothing is to be changed", hint));
    }
    Ok((team, change))
}

fn parent(text: &str) -> Checked<Option<TeamId>> {
    match text {
        "" => Ok(None),
        text => TeamId::parse(text).map(Some).map_err(bad_id("parent")),
    }
}

fn check_weight(weight: u32) -> Checked {
    let hint = "100 is usual; a team's part is its weight over the sum of its siblings'";
    range("weight", weight, 1, WEIGHT_MAX, hint)
}

fn quotas(wire: Vec<v1::Quota>) -> Checked<Vec<Quota>> {
    count("quotas", wire.len(), QUOTAS_MAX, "one for each GPU model is enough")?;
    let quotas = wire.into_iter().map(quota_from_wire).collect::<Checked<Vec<_>>>()?;
    let mut seen = BTreeSet::new();
    for quota in &quotas {
        if !seen.insert(quota.gpu_model.as_str()) {
            let message = format!("there are two quotas for {}", quote(&quota.gpu_model));
            return Err(Refusal::invalid("quotas", message, "give one for each GPU model"));
        }
    }
    Ok(quotas)
}

fn quota_from_wire(wire: v1::Quota) -> Checked<Quota> {
    line("quotas.gpu_model", &wire.gpu_model, NAME_CHARS_MAX)?;
    let hint = "give GPUs, up to 100 million";
    range("quotas.guaranteed", wire.guaranteed, 0, GPUS_MAX, hint)?;
    if let Some(limit) = wire.limit {
        range("quotas.limit", limit, 0, GPUS_MAX, hint)?;
        if limit < wire.guaranteed {
            let message =
                format!("{} GPUs are guaranteed, and the limit is {limit}", wire.guaranteed);
            let hint = "a limit is at least what is guaranteed";
            return Err(Refusal::invalid("quotas.limit", message, hint));
        }
    }
    let cell = wire.cell.map(|c| {
        label("quotas.cell.level", &c.level, NAME_CHARS_MAX)?;
        range("quotas.cell.domains", c.domains, 1, GPUS_MAX, "name how many domains it is")?;
        Ok(Cell { level: c.level, domains: c.domains })
    });
    Ok(Quota {
        gpu_model: wire.gpu_model.to_ascii_lowercase(),
        guaranteed: wire.guaranteed,
        limit: wire.limit,
        cell: cell.transpose()?,
    })
}

pub fn reservation_to_wire(reservation: &Reservation) -> v1::Reservation {
    use v1::reservation::Target as Wire;
    v1::Reservation {
        name: reservation.name.clone(),
        teams: reservation.teams.iter().map(TeamId::to_string).collect(),
        target: Some(match &reservation.target {
            Target::Nodes { nodes } => {
                Wire::Nodes(v1::NodeNames { nodes: nodes.iter().map(NodeId::to_string).collect() })
            }
            Target::Domain { level, name } => {
                Wire::Domain(v1::Domain { level: level.clone(), name: name.clone() })
            }
        }),
        from_unix_ms: reservation.from.0,
        until_unix_ms: reservation.until.0,
        owner: reservation.owner.to_string(),
        reason: reservation.reason.clone(),
    }
}

pub fn reservation_from_wire(wire: v1::Reservation) -> Result<Reservation, Refusal> {
    let owner = UserId::parse(&wire.owner).map_err(bad_id("owner"))?;
    reserve_from_wire(wire, owner)
}

/// A wish for a reservation, for which `owner` answers, whatever the request says.
pub fn reserve_from_wire(wire: v1::Reservation, owner: UserId) -> Result<Reservation, Refusal> {
    use v1::reservation::Target as Wire;
    label("name", &wire.name, NAME_CHARS_MAX)?;
    count("teams", wire.teams.len(), TEAMS_MAX, "name the teams that will use it")?;
    let teams = wire.teams.iter().map(|t| TeamId::parse(t).map_err(bad_id("teams")));
    let target = match present("target", wire.target)? {
        Wire::Nodes(names) => {
            let names = names.nodes;
            count("nodes", names.len(), NODES_MAX, "reserve a domain")?;
            if names.is_empty() {
                let hint = "name nodes or a domain";
                return Err(Refusal::invalid("nodes", "no node is to be reserved", hint));
            }
            let nodes = names.iter().map(|n| NodeId::parse(n).map_err(bad_id("nodes")));
            Target::Nodes { nodes: nodes.collect::<Checked<_>>()? }
        }
        Wire::Domain(domain) => {
            label("domain.level", &domain.level, NAME_CHARS_MAX)?;
            label("domain.name", &domain.name, DOMAIN_CHARS_MAX)?;
            Target::Domain { level: domain.level, name: domain.name }
        }
    };
    line("reason", &wire.reason, REASON_CHARS_MAX)?;
    let (from, until) = (UnixMillis(wire.from_unix_ms), UnixMillis(wire.until_unix_ms));
    jobs::check_instant("from_unix_ms", from)?;
    jobs::check_instant("until_unix_ms", until)?;
    if until <= from {
        let message = format!("the reservation is to begin at {from} and to end at {until}");
        return Err(Refusal::invalid("until_unix_ms", message, "let it end after it begins"));
    }
    Ok(Reservation {
        name: wire.name,
        teams: teams.collect::<Checked<_>>()?,
        target,
        from,
        until,
        owner,
        reason: wire.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(name: &str) -> TeamId {
        TeamId::parse(name).unwrap()
    }

    fn quota(model: &str, guaranteed: u32, limit: Option<u32>) -> Quota {
        Quota { gpu_model: model.to_owned(), guaranteed, limit, cell: None }
    }

    #[test]
    fn a_share_survives_the_round_trip_and_changes_in_parts() {
        let cell = Some(Cell { level: "leaf".to_owned(), domains: 2 });
        let share = TeamShare {
            parent: Some(team("research")),
            weight: 250,
            quotas: vec![quota("h100", 64, Some(128)), Quota { cell, ..quota("", 0, None) }],
        };
        assert_eq!(share_from_wire(share_to_wire(&share)), Ok(share.clone()));
        assert_eq!(share_from_wire(v1::TeamShare::default()), Ok(TeamShare::default()));

        let wire = v1::ShareTeamRequest {
            team: "nlp".to_owned(),
            parent: Some(String::new()),
            quotas: vec![v1::Quota {
                gpu_model: "H100".into(),
                guaranteed: 8,
                ..Default::default()
            }],
            drop_quotas: vec![String::new()],
            ..Default::default()
        };
        let (id, change) = share_change_from_wire(wire).unwrap();
        assert_eq!(id, team("nlp"));
        let want = TeamShare { parent: None, weight: 250, quotas: vec![quota("h100", 8, None)] };
        assert_eq!(change.of(&share), want);
    }

    #[test]
    fn a_negative_or_absurd_share_is_refused() {
        type Spoil = fn(&mut v1::ShareTeamRequest);
        let cases: [(&str, Spoil); 9] = [
            ("share", |w| w.weight = None),
            ("weight", |w| w.weight = Some(0)),
            ("weight", |w| w.weight = Some(u32::MAX)),
            ("team", |w| w.team = "NLP".to_owned()),
            ("parent", |w| w.parent = Some("A B".to_owned())),
            ("quotas", |w| w.quotas = vec![v1::Quota::default(); 2]),
            ("quotas.guaranteed", |w| {
                w.quotas = vec![v1::Quota { guaranteed: u32::MAX, ..Default::default() }];
            }),
            ("quotas.limit", |w| {
                w.quotas = vec![v1::Quota { guaranteed: 8, limit: Some(7), ..Default::default() }];
            }),
            ("quotas.cell.domains", |w| {
                let cell = Some(v1::Cell { level: "leaf".to_owned(), domains: 0 });
                w.quotas = vec![v1::Quota { cell, ..Default::default() }];
            }),
        ];
        for (field, spoil) in cases {
            let mut wire = v1::ShareTeamRequest {
                team: "nlp".to_owned(),
                weight: Some(100),
                ..Default::default()
            };
            spoil(&mut wire);
            assert_eq!(share_change_from_wire(wire).expect_err(field).field, field);
        }
    }

    fn reservation(target: Target) -> Reservation {
        Reservation {
            name: "course".to_owned(),
            teams: vec![team("nlp")],
            target,
            from: UnixMillis(1_000),
            until: UnixMillis(2_000),
            owner: UserId::parse("olga").unwrap(),
            reason: "a course".to_owned(),
        }
    }

    #[test]
    fn a_reservation_survives_the_round_trip_and_is_the_callers() {
        let node = |n: &str| NodeId::parse(n).unwrap();
        let nodes = Target::Nodes { nodes: [node("n1"), node("n2")].into() };
        let domain = Target::Domain { level: "leaf".to_owned(), name: "l0".to_owned() };
        for target in [nodes, domain] {
            let reservation = reservation(target);
            let wire = reservation_to_wire(&reservation);
            assert_eq!(reservation_from_wire(wire.clone()), Ok(reservation.clone()));
            let other = UserId::parse("mallory").unwrap();
            assert_eq!(reserve_from_wire(wire, other.clone()).unwrap().owner, other);
        }
    }

    #[test]
    fn a_reservation_of_nothing_or_backwards_is_refused() {
        use v1::reservation::Target as Wire;
        type Spoil = fn(&mut v1::Reservation);
        let cases: [(&str, Spoil); 9] = [
            ("name", |r| r.name.clear()),
            ("teams", |r| r.teams.push("A".to_owned())),
            ("target", |r| r.target = None),
            ("nodes", |r| r.target = Some(Wire::Nodes(v1::NodeNames::default()))),
            ("nodes", |r| {
                r.target = Some(Wire::Nodes(v1::NodeNames { nodes: vec!["a b".to_owned()] }));
            }),
            ("domain.level", |r| r.target = Some(Wire::Domain(v1::Domain::default()))),
            ("until_unix_ms", |r| r.until_unix_ms = r.from_unix_ms),
            ("from_unix_ms", |r| r.from_unix_ms = i64::MIN),
            ("reason", |r| r.reason = "a\nb".to_owned()),
        ];
        for (field, spoil) in cases {
            let domain = Target::Domain { level: "leaf".to_owned(), name: "l0".to_owned() };
            let mut wire = reservation_to_wire(&reservation(domain));
            spoil(&mut wire);
            assert_eq!(reservation_from_wire(wire).expect_err(field).field, field);
        }
    }
}
