//! `tessera team`: the accounts that pay.

use serde::Serialize;
use tessera_model::TeamId;
use tessera_proto::v1;

use crate::call::Api;
use crate::cli::{TeamArgs, TeamVerb};
use crate::failure::{Failure, Outcome};
use crate::output::{Grid, Screen, left};

#[derive(Serialize)]
struct TeamView<'a> {
    team: &'a str,
    description: &'a str,
}

impl<'a> TeamView<'a> {
    fn of(team: &'a v1::Team) -> Self {
        Self { team: &team.team, description: &team.description }
    }
}

pub async fn run(api: &Api, args: &TeamArgs, screen: &Screen) -> Outcome<u8> {
    match &args.verb {
        TeamVerb::List => {
            let teams = list(api).await?;
            if screen.json {
                screen.json(&teams.iter().map(TeamView::of).collect::<Vec<_>>())?;
            } else {
                let mut grid = Grid::with_remark(vec![left("TEAM"), left("DESCRIPTION")]);
                for team in &teams {
                    grid.row([team.team.as_str(), team.description.as_str()]);
                }
                screen.text(&grid.render(screen))?;
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
    }
    Ok(0)
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
