//! Teams and their shares, tokens, reservations, and who am I. The map is `topology`'s.
//!
//! Secrets are made here and shown once, in the reply; the journal has their hashes.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use tessera_core::queue::order::SHIFT_MAX;
use tessera_core::{Cluster, Event, door};
use tessera_model::{
    JobState, Millis, NodeId, NodeState, Principal, Refusal, Reservation, Role, TeamId,
    UnixIdentity, UnixMillis, UserId, WHOLE_GPU, refusal,
};
use tessera_proto::admin::{
    reservation_to_wire, reserve_from_wire, share_change_from_wire, share_to_wire,
};
use tessera_proto::status::to_status;
use tessera_proto::v1;

use super::{Shared, auth, internal};
use crate::tokens::{self, Minted, NoRandom};

pub struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl v1::admin_server::Admin for Service {
    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::Principal>, Status> {
        Ok(Response::new(principal_to_wire(&*auth::person(&request)?)))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        let answer = self.0.handle.read(|view| {
            let cluster = view.cluster;
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let nodes = || cluster.nodes.values();
            let holding = cluster.jobs.attempts.values().filter(|a| !a.settled);
            let running = holding
                .filter_map(|a| cluster.jobs.get(a.lease.attempt.job))
                .filter(|j| j.state == JobState::Running);
            v1::StatusReply {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                epoch: cluster.epoch.0,
                revision: cluster.revision.0,
                nodes_up: count(nodes().filter(|n| n.state == NodeState::Up).count()),
                nodes: count(cluster.nodes.len()),
                gpus: count(nodes().map(|n| n.inventory.gpus.len()).sum()),
                gpus_held: count(nodes().map(|n| n.held.len()).sum()),
                jobs_pending: cluster.jobs.queue_len() as u64,
                jobs_running: running.count() as u64,
                placements_refused: view.violations,
            }
        });
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn list_teams(
        &self,
        request: Request<v1::ListTeamsRequest>,
    ) -> Result<Response<v1::ListTeamsReply>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.handle.read(move |view| {
            let own_only = matches!(who.role, Role::Member | Role::TeamAdmin);
            let teams = view.cluster.teams.iter();
            let shown = teams.filter(|(id, _)| !own_only || who.teams.contains(id));
            let team = |(id, _): (&TeamId, _)| team_to_wire(view.cluster, id);
            v1::ListTeamsReply { teams: shown.filter_map(team).collect() }
        });
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn create_team(
        &self,
        request: Request<v1::CreateTeamRequest>,
    ) -> Result<Response<v1::Team>, Status> {
        let who = auth::person(&request)?;
        let v1::CreateTeamRequest { team, description } = request.into_inner();
        let answer = async {
            let id = TeamId::parse(&team).map_err(|e| {
                Refusal::invalid("team", e.to_string(), "choose a name like `nlp` or `team-7`")
            })?;
            let made = id.clone();
            self.0
                .handle
                .change(move |cluster, _| door::create_team(cluster, &who, made, &description))
                .await?;
            self.team(id).await
        };
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn share_team(
        &self,
        request: Request<v1::ShareTeamRequest>,
    ) -> Result<Response<v1::ShareTeamReply>, Status> {
        let who = auth::person(&request)?;
        let wire = request.into_inner();
        let answer = async {
            let (id, change) = share_change_from_wire(wire)?;
            let team = id.clone();
            let shared = self.0.handle.change(move |cluster, _| {
                // A team that is not there is refused by the door, with the nearest name.
                let share = cluster.teams.get(&team).map(|t| t.share.clone()).unwrap_or_default();
                door::share_team(cluster, &who, team, change.of(&share))
            });
            let warnings = shared.await?;
            Ok(v1::ShareTeamReply { team: Some(self.team(id).await?), warnings })
        };
        answer.await.map(Response::new).map_err(|e: Refusal| to_status(&e))
    }

    async fn list_tokens(
        &self,
        _request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        let answer = self.0.handle.read(|view| {
            let tokens = view.cluster.tokens.iter();
            v1::ListTokensReply { tokens: tokens.map(|(id, t)| token_to_wire(id, t)).collect() }
        });
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let who = auth::person(&request)?;
        let wire = request.into_inner();
        let answer = async {
            let principal = principal(&wire)?;
            let lifetime = match wire.lifetime_ms {
                Some(0) => {
                    let hint = "leave it out for a token without an end";
                    return Err(Refusal::invalid("lifetime_ms", "a token that ends at once", hint));
                }
                lifetime => lifetime.map(Millis),
            };
            let Minted { id, hash, token } = tokens::mint().map_err(no_random)?;
            let kept = id.clone();
            let stored = self
                .0
                .handle
                .change(move |cluster, now| {
                    door::issue_token(cluster, now, &who, id, hash, principal, lifetime)
                })
                .await?;
            Ok(v1::CreateTokenReply {
                token: Some(token_to_wire(&kept, &stored)),
                secret: token.reveal().to_owned(),
            })
        };
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::Token>, Status> {
        let who = auth::person(&request)?;
        let id = request.into_inner().id;
        let asked = id.clone();
        let token = self
            .0
            .handle
            .change(move |cluster, _| door::revoke_token(cluster, &who, &asked))
            .await
            .map_err(|e| to_status(&e))?;
        self.0.gate.forget();
        Ok(Response::new(token_to_wire(&id, &token)))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenReply>, Status> {
        let who = auth::person(&request)?;
        let name = request.into_inner().node;
        let answer = async {
            let node = match name.as_str() {
                "" => None,
                name => Some(NodeId::parse(name).map_err(|e| {
                    Refusal::invalid("node", e.to_string(), "name the node as it will be started")
                })?),
            };
            let Minted { id, hash, token } =
                tokens::mint_join(&self.0.ca.fingerprint()).map_err(no_random)?;
            let expires = self
                .0
                .handle
                .change(move |_, now| door::issue_join_token(now, &who, id, hash, node))
                .await?;
            Ok(v1::CreateJoinTokenReply {
                token: token.reveal().to_owned(),
                expires_unix_ms: expires.0,
            })
        };
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveReply>, Status> {
        let who = auth::person(&request)?;
        let wire = request.into_inner().reservation.unwrap_or_default();
        let answer = async {
            let wish = reserve_from_wire(wire, who.user.clone())?;
            let made = self.0.handle.change(move |cluster, now| {
                // Whoever says no begin means now, which is ours.
                let from = if wish.from == UnixMillis(0) { now } else { wish.from };
                let wish = Reservation { from, ..wish };
                let (warnings, events) = door::reserve(cluster, now, &who, wish)?;
                let made = events.iter().find_map(|e| match e {
                    Event::ReservationMade { reservation } => {
                        Some(reservation_to_wire(reservation))
                    }
                    _ => None,
                });
                Ok((v1::ReserveReply { reservation: made, warnings }, events))
            });
            made.await
        };
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn end_reservation(
        &self,
        request: Request<v1::EndReservationRequest>,
    ) -> Result<Response<v1::Reservation>, Status> {
        let who = auth::person(&request)?;
        let name = request.into_inner().name;
        let ended = self
            .0
            .handle
            .change(move |cluster, _| door::end_reservation(cluster, &who, &name))
            .await;
        ended.map(|r| Response::new(reservation_to_wire(&r))).map_err(|e| to_status(&e))
    }

    async fn list_reservations(
        &self,
        _request: Request<v1::ListReservationsRequest>,
    ) -> Result<Response<v1::ListReservationsReply>, Status> {
        let answer = self.0.handle.read(|view| {
            let mut all: Vec<&Reservation> = view.cluster.reservations.values().collect();
            all.sort_by_key(|r| (r.from, &r.name));
            v1::ListReservationsReply {
                reservations: all.into_iter().map(reservation_to_wire).collect(),
            }
        });
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn get_topology(
        &self,
        _request: Request<v1::GetTopologyRequest>,
    ) -> Result<Response<v1::TopologyReply>, Status> {
        self.0.topology().await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn load_topology(
        &self,
        request: Request<v1::LoadTopologyRequest>,
    ) -> Result<Response<v1::LoadTopologyReply>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.load_topology(&who, request.into_inner()).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn mark_domain(
        &self,
        request: Request<v1::MarkDomainRequest>,
    ) -> Result<Response<v1::DomainMark>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.mark_domain(&who, request.into_inner()).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }
}

impl Service {
    async fn team(&self, id: TeamId) -> Result<v1::Team, Refusal> {
        let found = self.0.handle.read(move |view| team_to_wire(view.cluster, &id)).await?;
        found.ok_or_else(|| internal("the team is gone"))
    }
}

fn team_to_wire(cluster: &Cluster, id: &TeamId) -> Option<v1::Team> {
    let team = cluster.teams.get(id)?;
    let account = cluster.jobs.account(id);
    // A team that used just its share is moved back by half of what is possible.
    Some(v1::Team {
        team: id.to_string(),
        description: team.description.clone(),
        share: Some(share_to_wire(&team.share)),
        held_gpu_milli: account.held_milli,
        decayed_usage_gpu_ms: account.used.0 / u64::from(WHOLE_GPU),
        turn_moved_ms: account.shift.0.cast_signed() - (SHIFT_MAX.0 / 2).cast_signed(),
    })
}

fn no_random(error: NoRandom) -> Refusal {
    tracing::error!(%error, "cannot make a secret");
    internal("the system gives no random numbers")
}

/// Whom a new token is for.
fn principal(wire: &v1::CreateTokenRequest) -> Result<Principal, Refusal> {
    let user = UserId::parse(&wire.user)
        .map_err(|e| Refusal::invalid("user", e.to_string(), "name a user like `ana`"))?;
    let role = Role::parse(&wire.role).ok_or_else(|| {
        let words: Vec<&str> = Role::ALL.iter().map(|r| r.word()).collect();
        let hint = match refusal::nearest(&wire.role, words.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are: {}", words.join(", ")),
        };
        let shown: String = wire.role.chars().take(40).collect();
        Refusal::invalid("role", format!("there is no role {shown:?}"), hint)
    })?;
    let mut teams: Vec<TeamId> = wire
        .teams
        .iter()
        .map(|t| TeamId::parse(t))
        .collect::<Result<_, _>>()
        .map_err(|e| Refusal::invalid("teams", e.to_string(), "name teams that exist"))?;
    teams.sort();
    teams.dedup();
    let unix = match (wire.uid, wire.gid) {
        (None, None) => None,
        (Some(0), _) | (_, Some(0)) => {
            let hint = "give the uid and gid of an ordinary user";
            return Err(Refusal::invalid("uid", "jobs do not run as root", hint));
        }
        (Some(uid), Some(gid)) => Some(UnixIdentity { uid, gid }),
        _ => {
            let hint = "give both --uid and --gid, or neither";
            return Err(Refusal::invalid("uid", "only one of uid and gid is given", hint));
        }
    };
    Ok(Principal { user, role, teams, unix })
}

fn principal_to_wire(principal: &Principal) -> v1::Principal {
    v1::Principal {
        user: principal.user.to_string(),
        role: principal.role.word().to_owned(),
        teams: principal.teams.iter().map(TeamId::to_string).collect(),
    }
}

fn token_to_wire(id: &str, token: &tessera_core::cluster::Token) -> v1::Token {
    v1::Token {
        id: id.to_owned(),
        principal: Some(principal_to_wire(&token.principal)),
        created_unix_ms: token.created.0,
        expires_unix_ms: token.expires.map(|e| e.0),
        revoked: token.revoked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_somebody_who_can_be() {
        let good = v1::CreateTokenRequest {
            user: "ana".into(),
            role: "member".into(),
            teams: vec!["nlp".into(), "nlp".into()],
            ..Default::default()
        };
        assert_eq!(principal(&good).unwrap().teams.len(), 1);
        type Change = fn(&mut v1::CreateTokenRequest);
        let cases: [(Change, &str); 5] = [
            (|r| r.user = "Ana B".into(), "user \"Ana B\""),
            (|r| r.role = "membre".into(), "there is no role \"membre\""),
            (|r| r.teams.push("NLP".into()), "team \"NLP\""),
            (|r| r.uid = Some(1_000), "only one of uid and gid"),
            (|r| (r.uid, r.gid) = (Some(0), Some(100)), "do not run as root"),
        ];
        for (change, want) in cases {
            let mut wire = good.clone();
            change(&mut wire);
            let refusal = principal(&wire).unwrap_err();
            assert!(
                refusal.message.starts_with(want) || refusal.message.contains(want),
                "{refusal}"
            );
        }
    }
}
