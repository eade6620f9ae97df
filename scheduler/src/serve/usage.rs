//! Who held what, at what price.
//!
//! In: a window, keys to group by, teams. Out: lines rated by the core, over closed intervals from
//! the store and open ones from the cluster, both as of the same commit. A person sees the usage of
//! own teams; roles that see all usage see all of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use tessera_core::access::{self, Verb};
use tessera_core::door;
use tessera_core::ledger::rating::{Question, Rating};
use tessera_model::usage::{Interval, UsageClass};
use tessera_model::{Principal, Refusal, RefusalKind, TeamId, UnixMillis};
use tessera_proto::status::to_status;
use tessera_proto::usage::{
    keys_from_wire, keys_to_wire, line_to_wire, note_from_wire, price_version_to_wire,
    prices_from_wire,
};
use tessera_proto::v1;

use super::jobs::blocking;
use super::{Shared, auth};

pub struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl v1::usage_server::Usage for Service {
    async fn report(
        &self,
        request: Request<v1::UsageRequest>,
    ) -> Result<Response<v1::UsageReply>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.report(&who, request.into_inner()).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn get_prices(
        &self,
        _request: Request<v1::GetPricesRequest>,
    ) -> Result<Response<v1::PricesReply>, Status> {
        let answer = self.0.handle.read(|view| {
            let versions = view.cluster.prices.versions();
            v1::PricesReply { versions: versions.iter().map(price_version_to_wire).collect() }
        });
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn set_prices(
        &self,
        request: Request<v1::SetPricesRequest>,
    ) -> Result<Response<v1::PriceVersion>, Status> {
        let who = auth::person(&request)?;
        let wire = request.into_inner();
        let answer = async {
            let prices = prices_from_wire(wire.prices)?;
            let note = note_from_wire(wire.note)?;
            let from = (wire.effective_from_unix_ms != 0)
                .then_some(UnixMillis(wire.effective_from_unix_ms));
            self.0
                .handle
                .change(move |cluster, now| {
                    door::publish_prices(cluster, now, &who, from, prices, &note)
                })
                .await
        };
        let version = answer.await.map_err(|e| to_status(&e))?;
        Ok(Response::new(price_version_to_wire(&version)))
    }
}

impl Shared {
    async fn report(
        &self,
        who: &Principal,
        wire: v1::UsageRequest,
    ) -> Result<v1::UsageReply, Refusal> {
        let by = keys_from_wire(&wire.by)?;
        let teams = scope(who, &wire.teams)?;
        let (from, asked_to) = (UnixMillis(wire.from_unix_ms), UnixMillis(wire.to_unix_ms));
        if from >= asked_to {
            let message = format!("the window from {from} to {asked_to} is empty");
            return Err(Refusal::invalid("from", message, "let --from be earlier than --to"));
        }
        let (now, revision, open, book) = self
            .handle
            .read(move |view| {
                let open: Vec<Interval> =
                    view.cluster.timeline.open_until(asked_to.min(view.now)).collect();
                (view.now, view.cluster.revision, open, view.cluster.prices.clone())
            })
            .await?;
        let to = asked_to.min(now);
        let reader = self.handle.reader().clone();
        let keys = by.clone();
        let lines = blocking(move || {
            let mut rating = Rating::new(Question { from, to, by: &keys }, &book);
            let mut add = |interval: &Interval| {
                if teams.shows(&interval.class) {
                    rating.add(interval);
                }
            };
            open.iter().for_each(&mut add);
            reader.intervals(from, to, revision, |interval| add(&interval))?;
            Ok(rating.lines())
        })
        .await?;
        Ok(v1::UsageReply {
            by: keys_to_wire(&by),
            lines: lines.iter().map(line_to_wire).collect(),
            from_unix_ms: from.0,
            to_unix_ms: to.0,
        })
    }
}

/// Whose usage is shown.
#[derive(Debug, PartialEq)]
enum Scope {
    /// All teams and the platform's pools.
    All,
    Teams(BTreeSet<TeamId>),
}

impl Scope {
    fn shows(&self, class: &UsageClass) -> bool {
        match (self, class) {
            (Self::All, _) => true,
            (Self::Teams(teams), UsageClass::Allocated { team, .. }) => teams.contains(team),
            (Self::Teams(_), _) => false,
        }
    }
}

/// What was asked for, cut to what the caller may see.
fn scope(who: &Principal, asked: &[String]) -> Result<Scope, Refusal> {
    let asked: BTreeSet<TeamId> = asked
        .iter()
        .map(|t| TeamId::parse(t))
        .collect::<Result<_, _>>()
        .map_err(|e| Refusal::invalid("teams", e.to_string(), "name a team: --team NAME"))?;
    let sees_all = access::may(who, Verb::SeeAllUsage);
    if asked.is_empty() {
        return Ok(match sees_all {
            true => Scope::All,
            false => Scope::Teams(who.teams.iter().cloned().collect()),
        });
    }
    match asked.iter().find(|t| !sees_all && !who.teams.contains(t)) {
        None => Ok(Scope::Teams(asked)),
        Some(foreign) => {
            let own: Vec<&str> = who.teams.iter().map(TeamId::as_str).collect();
            Err(Refusal::new(
                RefusalKind::Denied,
                "teams",
                format!("{} does not belong to the team {foreign}", who.user),
                format!("leave --team out, or name one of: {}", own.join(", ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::{Role, UserId};

    use super::*;

    fn who(role: Role, teams: &[&str]) -> Principal {
        Principal {
            user: UserId::parse("ana").unwrap(),
            role,
            teams: teams.iter().map(|t| TeamId::parse(t).unwrap()).collect(),
            unix: None,
        }
    }

    #[test]
    fn usage_is_shown_to_those_whose_it_is() {
        let teams = |names: &[&str]| {
            Some(Scope::Teams(names.iter().map(|t| TeamId::parse(t).unwrap()).collect()))
        };
        for (role, own, asked, want) in [
            (Role::Member, &["nlp"][..], &[][..], teams(&["nlp"])),
            (Role::Member, &[], &[], teams(&[])),
            (Role::Member, &["nlp"], &["nlp"], teams(&["nlp"])),
            (Role::Member, &["nlp"], &["vision"], None),
            (Role::TeamAdmin, &["nlp"], &["nlp", "vision"], None),
            (Role::Finance, &[], &[], Some(Scope::All)),
            (Role::Finance, &[], &["vision"], teams(&["vision"])),
            (Role::Admin, &[], &["pool:idle"], None),
        ] {
            let asked: Vec<String> = asked.iter().map(|t| (*t).to_owned()).collect();
            assert_eq!(scope(&who(role, own), &asked).ok(), want, "{role:?} {own:?} {asked:?}");
        }
        assert!(!Scope::Teams(BTreeSet::new()).shows(&UsageClass::Idle));
        assert!(Scope::All.shows(&UsageClass::Idle));
    }
}
