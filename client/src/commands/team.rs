//! `tessera team`: the accounts that pay, what they hold, and what they may.

use std::collections::BTreeMap;

use serde::Serialize;
use tessera_model::{Millis, TeamId};
use tessera_proto::v1;

use crate::call::Api;
use crate::cli::{TeamArgs, TeamShareArgs, TeamVerb};
use crate::failure::{Failure, Outcome};
use crate::output::{Grid, Screen, left, right};

#[derive(Serialize)]
pub struct TeamView<'a> {
    team: &'a str,
    description: &'a str,
    /// The team it is part of.
    parent: Option<&'a str>,
    weight: u32,
    quotas: Vec<QuotaView<'a>>,
    /// Thousandths of GPUs, held by it and the teams below it.
    held_gpu_milli: u64,
    /// What these used, less and less counted the longer ago.
    decayed_usage_gpu_ms: u64,
    /// How much later than at its exact share its jobs take their turn; less than 0: earlier.
    turn_moved_ms: i64,
}

#[derive(Serialize)]
pub struct QuotaView<'a> {
    /// `null`: any.
    gpu_model: Option<&'a str>,
    guaranteed: u32,
    limit: Option<u32>,
    /// The guarantee as so many whole domains of a level.
    cell: Option<CellView<'a>>,
}

#[derive(Serialize)]
pub struct CellView<'a> {
    level: &'a str,
    domains: u32,
}

impl<'a> TeamView<'a> {
    pub fn of(team: &'a v1::Team) -> Self {
        let share = team.share.as_ref();
        let quota = |q: &'a v1::Quota| QuotaView {
            gpu_model: Some(q.gpu_model.as_str()).filter(|m| !m.is_empty()),
            guaranteed: q.guaranteed,
            limit: q.limit,
            cell: q.cell.as_ref().map(|c| CellView { level: &c.level, domains: c.domains }),
        };
        Self {
            team: &team.team,
            description: &team.description,
            parent: share.map(|s| s.parent.as_str()).filter(|p| !p.is_empty()),
            weight: share.map_or(0, |s| s.weight),
            quotas: share.map(|s| s.quotas.iter().map(quota).collect()).unwrap_or_default(),
            held_gpu_milli: team.held_gpu_milli,
            decayed_usage_gpu_ms: team.decayed_usage_gpu_ms,
            turn_moved_ms: team.turn_moved_ms,
        }
    }
}

pub async fn run(api: &Api, args: &TeamArgs, screen: &Screen) -> Outcome<u8> {
    match &args.verb {
        TeamVerb::List => {
            let teams = list(api).await?;
            if screen.json {
                screen.json(&teams.iter().map(TeamView::of).collect::<Vec<_>>())?;
            } else {
                screen.text(&table(&teams, screen))?;
            }
        }
        TeamVerb::Create { team, description } => {
            let team = create(api, team, description).await?;
            if screen.json {
                screen.json(&TeamView::of(&team))?;
            } else {
                screen.line(format!("team {} is set up", team.team))?;
                screen.hint(&format!("tessera token create --user NAME --team {}", team.team));
            }
        }
        TeamVerb::Share(args) => {
            let reply = share(api, args).await?;
            for warning in &reply.warnings {
                screen.warning(warning);
            }
            let team = reply.team.unwrap_or_default();
            if screen.json {
                screen.json(&TeamView::of(&team))?;
            } else {
                screen.line(share_text(&team))?;
            }
        }
    }
    Ok(0)
}

/// The teams as a tree: each below the one it is part of.
pub fn table(teams: &[v1::Team], screen: &Screen) -> String {
    let mut grid = Grid::with_remark(vec![
        left("TEAM"),
        right("WEIGHT"),
        right("HELD"),
        right("USED, GPU-H"),
        left("TURN").spare(2),
        left("QUOTAS").spare(1),
        left("DESCRIPTION"),
    ]);
    for (depth, team) in in_tree(teams) {
        let share = team.share.clone().unwrap_or_default();
        // In a pipe a name is a name.
        let indent = if screen.tty { "  ".repeat(depth) } else { String::new() };
        let used = team.decayed_usage_gpu_ms / Millis::HOUR.0;
        grid.row([
            format!("{indent}{}", team.team),
            share.weight.to_string(),
            gpus_text(team.held_gpu_milli),
            used.to_string(),
            turn_text(team.turn_moved_ms),
            quotas_text(&share.quotas),
            team.description.clone(),
        ]);
    }
    grid.render(screen)
}

/// `72`, or `0.25`.
fn gpus_text(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// How much later or earlier than at its exact share.
fn turn_text(moved_ms: i64) -> String {
    let length = Millis(moved_ms.unsigned_abs());
    match moved_ms {
        // Below a minute nobody notices.
        -59_999..60_000 => String::new(),
        60_000.. => format!("{length} later"),
        _ => format!("{length} earlier"),
    }
}

/// `h100 64..128, any ..256`.
fn quotas_text(quotas: &[v1::Quota]) -> String {
    let text = |q: &v1::Quota| {
        let model = if q.gpu_model.is_empty() { "any" } else { q.gpu_model.as_str() };
        let cell = q.cell.as_ref().map(|c| format!(" ({}:{})", c.domains, c.level));
        let limit = q.limit.map(|l| format!("..{l}"));
        format!("{model} {}{}{}", q.guaranteed, limit.unwrap_or_default(), cell.unwrap_or_default())
    };
    quotas.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Parents before children, siblings by name. A team whose parent is not shown stands at the top.
fn in_tree(teams: &[v1::Team]) -> Vec<(usize, &v1::Team)> {
    let mut children: BTreeMap<&str, Vec<&v1::Team>> = BTreeMap::new();
    for team in teams {
        let parent = team.share.as_ref().map_or("", |s| s.parent.as_str());
        let known = teams.iter().any(|t| t.team == parent);
        children.entry(if known { parent } else { "" }).or_default().push(team);
    }
    let mut out = Vec::new();
    let mut next: Vec<(usize, &v1::Team)> = Vec::new();
    let below = |name: &str, depth: usize, next: &mut Vec<_>| {
        next.extend(children.get(name).into_iter().flatten().rev().map(|t| (depth, *t)));
    };
    below("", 0, &mut next);
    while let Some((depth, team)) = next.pop() {
        // A tree has no loops; a scheduler that sent one must not hold us up.
        if out.len() >= teams.len() {
            break;
        }
        out.push((depth, team));
        below(&team.team, depth + 1, &mut next);
    }
    out
}

fn share_text(team: &v1::Team) -> String {
    let share = team.share.clone().unwrap_or_default();
    let of = match share.parent.as_str() {
        "" => String::new(),
        parent => format!(" in {parent}"),
    };
    let quotas = match share.quotas.is_empty() {
        true => ", no quota".to_owned(),
        false => format!(", quotas: {}", quotas_text(&share.quotas)),
    };
    format!("team {}{of}: weight {}{quotas}", team.team, share.weight)
}

pub async fn list(api: &Api) -> Outcome<Vec<v1::Team>> {
    let reply =
        api.ask(|api| async move { api.admin().list_teams(v1::ListTeamsRequest {}).await }).await?;
    Ok(reply.teams)
}

pub async fn create(api: &Api, team: &str, description: &str) -> Outcome<v1::Team> {
    TeamId::parse(team)
        .map_err(|bad| Failure::usage(bad.to_string(), "for example nlp or team-7"))?;
    let request =
        v1::CreateTeamRequest { team: team.to_owned(), description: description.to_owned() };
    api.once(api.admin().create_team(request)).await
}

async fn share(api: &Api, args: &TeamShareArgs) -> Outcome<v1::ShareTeamReply> {
    let parent = args.parent.as_deref().map(|p| if p == "none" { "" } else { p });
    let any = |model: &String| if model == "any" { String::new() } else { model.clone() };
    let request = &v1::ShareTeamRequest {
        team: args.team.clone(),
        parent: parent.map(str::to_owned),
        weight: args.weight,
        quotas: args.quotas.clone(),
        drop_quotas: args.drop_quotas.iter().map(any).collect(),
    };
    // The same share twice is one share.
    api.ask(|api| async move { api.admin().share_team(request.clone()).await }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_of_parents_holds_nobody_up() {
        let team = |name: &str, parent: &str| v1::Team {
            team: name.to_owned(),
            share: Some(v1::TeamShare { parent: parent.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let names = |teams: &[v1::Team]| {
            in_tree(teams).iter().map(|(d, t)| format!("{d}{}", t.team)).collect::<Vec<_>>()
        };
        assert_eq!(names(&[team("b", "a"), team("a", ""), team("c", "gone")]), ["0a", "1b", "0c"]);
        assert!(names(&[team("a", "b"), team("b", "a")]).len() <= 2);
        assert!(names(&[team("a", "a")]).len() <= 1);
        assert_eq!(
            ["72000", "250", "0", "1500"].map(|m| gpus_text(m.parse().unwrap())),
            ["72", "0.25", "0", "1.5"]
        );
    }
}
