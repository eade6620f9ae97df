//! `tessera status`: who you are, and how the cluster is.

use serde::Serialize;
use tessera_proto::v1;

use crate::call::Api;
use crate::failure::Outcome;
use crate::output::{Screen, printable};
use crate::settings::Settings;

#[derive(Serialize)]
struct StatusView<'a> {
    server: &'a str,
    settings: String,
    user: &'a str,
    role: &'a str,
    teams: &'a [String],
    client_version: &'static str,
    version: &'a str,
    epoch: u64,
    revision: u64,
    nodes: u32,
    nodes_up: u32,
    gpus: u32,
    gpus_held: u32,
    jobs_pending: u64,
    jobs_running: u64,
    placements_refused: u64,
}

pub async fn run(api: &Api, settings: &Settings, screen: &Screen) -> Outcome<u8> {
    let me = api.who_am_i().await?;
    let status =
        api.ask(|api| async move { api.admin().status(v1::StatusRequest {}).await }).await?;
    let client_version = env!("CARGO_PKG_VERSION");
    if screen.json {
        screen.json(&StatusView {
            server: &settings.server,
            settings: settings.path.display().to_string(),
            user: &me.user,
            role: &me.role,
            teams: &me.teams,
            client_version,
            version: &status.version,
            epoch: status.epoch,
            revision: status.revision,
            nodes: status.nodes,
            nodes_up: status.nodes_up,
            gpus: status.gpus,
            gpus_held: status.gpus_held,
            jobs_pending: status.jobs_pending,
            jobs_running: status.jobs_running,
            placements_refused: status.placements_refused,
        })?;
        return Ok(0);
    }
    let teams = if me.teams.is_empty() { "no team".to_owned() } else { me.teams.join(", ") };
    screen.line(format!("you     {}, {}, {}", printable(&me.user), me.role, printable(&teams)))?;
    screen.line(format!(
        "server  {}, version {}, epoch {}, revision {}",
        settings.server, status.version, status.epoch, status.revision
    ))?;
    screen.line(format!("config  {}", settings.path.display()))?;
    screen.line(format!("nodes   {} of {} up", status.nodes_up, status.nodes))?;
    screen.line(format!("GPUs    {} of {} held", status.gpus_held, status.gpus))?;
    screen.line(format!(
        "jobs    {} running, {} waiting",
        status.jobs_running, status.jobs_pending
    ))?;
    if status.version != client_version {
        screen.warning(&format!(
            "this tessera is version {client_version}, the scheduler {}",
            status.version
        ));
    }
    if status.placements_refused > 0 {
        screen.warning(&format!(
            "the verifier refused {} placements, a fault of the scheduler: please report it",
            status.placements_refused
        ));
    }
    Ok(0)
}
