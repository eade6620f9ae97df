//! `tessera token`: who may call, and which nodes may join.
//!
//! Secrets go to stdout once and nowhere else.

use serde::Serialize;
use tessera_model::UnixMillis;
use tessera_proto::v1;

use crate::call::Api;
use crate::cli::{TokenArgs, TokenCreateArgs, TokenVerb};
use crate::failure::Outcome;
use crate::output::{Grid, Screen, left};
use crate::when;

#[derive(Serialize)]
struct TokenView<'a> {
    id: &'a str,
    user: &'a str,
    role: &'a str,
    teams: &'a [String],
    created_at: String,
    expires_at: Option<String>,
    revoked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

#[derive(Serialize)]
struct JoinView<'a> {
    token: &'a str,
    node: Option<&'a str>,
    expires_at: String,
}

impl<'a> TokenView<'a> {
    fn of(token: &'a v1::Token, secret: Option<&'a str>) -> Self {
        let principal = token.principal.as_ref();
        Self {
            id: &token.id,
            user: principal.map_or("", |p| p.user.as_str()),
            role: principal.map_or("", |p| p.role.as_str()),
            teams: principal.map_or(&[], |p| p.teams.as_slice()),
            created_at: UnixMillis(token.created_unix_ms).rfc3339(),
            expires_at: token.expires_unix_ms.map(|at| UnixMillis(at).rfc3339()),
            revoked: token.revoked,
            secret,
        }
    }
}

pub async fn run(api: &Api, args: &TokenArgs, screen: &Screen) -> Outcome<u8> {
    match &args.verb {
        TokenVerb::List => list(api, screen).await?,
        TokenVerb::Create(args) => match &args.node {
            Some(node) => create_join(api, node, screen).await?,
            None => create(api, args, screen).await?,
        },
        TokenVerb::Revoke { id } => {
            let request = &v1::RevokeTokenRequest { id: id.clone() };
            let token = api
                .ask(|api| async move { api.admin().revoke_token(request.clone()).await })
                .await?;
            if screen.json {
                screen.json(&TokenView::of(&token, None))?;
            } else {
                screen.line(format!("token {} is revoked", token.id))?;
            }
        }
    }
    Ok(0)
}

async fn list(api: &Api, screen: &Screen) -> Outcome {
    let reply = api
        .ask(|api| async move { api.admin().list_tokens(v1::ListTokensRequest {}).await })
        .await?;
    let views: Vec<TokenView<'_>> = reply.tokens.iter().map(|t| TokenView::of(t, None)).collect();
    if screen.json {
        return screen.json(&views);
    }
    let now = when::now();
    let mut grid = Grid::new(vec![
        left("ID"),
        left("USER"),
        left("ROLE"),
        left("TEAMS").spare(1),
        left("CREATED").spare(2),
        left("STATE"),
    ]);
    for (token, view) in reply.tokens.iter().zip(&views) {
        let state = match token.expires_unix_ms.map(UnixMillis) {
            _ if token.revoked => "revoked".to_owned(),
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => format!("until {}", at.date()),
            None => "valid".to_owned(),
        };
        let created = UnixMillis(token.created_unix_ms).date();
        grid.row([view.id, view.user, view.role, &view.teams.join(","), &created, &state]);
    }
    screen.text(&grid.render(screen))
}

async fn create(api: &Api, args: &TokenCreateArgs, screen: &Screen) -> Outcome {
    let request = v1::CreateTokenRequest {
        user: args.user.clone().unwrap_or_default(),
        role: args.role.word().to_owned(),
        teams: args.team.clone(),
        lifetime_ms: args.lifetime.map(|l| l.0),
        uid: args.uid,
        gid: args.gid,
    };
    // Asked once: a second try would make a second token.
    let reply = api.once(api.admin().create_token(request)).await?;
    let token = reply.token.unwrap_or_default();
    if screen.json {
        return screen.json(&TokenView::of(&token, Some(&reply.secret)));
    }
    screen.line(&reply.secret)?;
    screen.hint(&format!(
        "it is shown only now; it goes into client.toml as `token`. `tessera token revoke {}` ends it",
        token.id
    ));
    Ok(())
}

async fn create_join(api: &Api, node: &str, screen: &Screen) -> Outcome {
    let reply = join_token(api, node).await?;
    let expires = UnixMillis(reply.expires_unix_ms);
    if screen.json {
        return screen.json(&JoinView {
            token: &reply.token,
            node: Some(node).filter(|n| !n.is_empty()),
            expires_at: expires.rfc3339(),
        });
    }
    screen.line(&reply.token)?;
    screen.hint(&format!(
        "on the node, before {}: TESSERA_JOIN_TOKEN=TOKEN tessera-agent --server URL --state DIR",
        when::clock(expires, when::now())
    ));
    Ok(())
}

pub async fn join_token(api: &Api, node: &str) -> Outcome<v1::CreateJoinTokenReply> {
    let request = v1::CreateJoinTokenRequest { node: node.to_owned() };
    api.once(api.admin().create_join_token(request)).await
}
