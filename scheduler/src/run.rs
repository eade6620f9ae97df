//! From settings to a scheduler that serves, and to its end.
//!
//! In: a [`Config`]. Out: one line on stdout when it serves, and the reason for which it stopped.
//! What fails here fails before anything was promised to anybody.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use tessera_core::door;
use tessera_core::door::topology::Allow;
use tessera_core::due::Limits;
use tessera_model::{Principal, Refusal, Role, TeamId, UserId};

use crate::ca::{Ca, CaError};
use crate::config::{Config, wall_clock};
use crate::home::{Home, HomeError};
use crate::serve::listen::{self, Bounds, ListenError, Tls};
use crate::serve::{self, Settings, Shared, auth};
use crate::store::{Store, StoreError};
use crate::tokens::{self, NoRandom, Secret};
use crate::topology::{self, TopologyError, live};
use crate::writer::{self, Handle};

/// How often the server's certificate is looked at.
const RENEWAL: Duration = Duration::from_secs(6 * 3_600);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error("cannot watch for signals")]
    Signals(#[source] std::io::Error),
    #[error("gRPC reflection cannot be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the writer broke off; its last words are in the log")]
    WriterGone,
}

impl RunError {
    pub fn hint(&self) -> String {
        match self {
            Self::Home(e) => e.hint(),
            Self::Topology(e) => e.hint(),
            Self::Ca(e) => e.hint(),
            Self::Listen(e) => e.hint(),
            Self::Store(e) => e.hint().to_owned(),
            Self::Refused(e) => e.hint.clone(),
            Self::NoRandom(_) | Self::Signals(_) | Self::Reflection(_) => {
                "start it again".to_owned()
            }
            Self::WriterGone => {
                "nothing acknowledged is lost: start it again, and report what the log says".into()
            }
        }
    }
}

/// Serves until a signal, or until `parent_gone` when the settings ask for that.
pub async fn run(config: Config, parent_gone: oneshot::Receiver<()>) -> Result<(), RunError> {
    // Early, so that a signal during the start stops us in order.
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;

    let home = Home::open(&config.data)?;
    // Without files the map of the journal stays, whoever loaded it.
    let map = match &config.topology[..] {
        [] => None,
        files => Some(topology::load(files)?),
    };
    let ca = Arc::new(Ca::open(&home.tls(), wall_clock())?);
    let tls = Arc::new(Tls::new(ca.clone(), config.certificate_names(), wall_clock())?);
    let listener = listen::bind(config.listen).await?;
    let bound = listener
        .local_addr()
        .map_err(|source| ListenError::Bind { address: config.listen, source })?;
    let store = Store::open(home.folder())?;
    let limits = Limits {
        silent: config.node_silent,
        lease: config.lease,
        lost: config.lost,
        ..Limits::default()
    };
    let (handle, writer) = writer::start(store, limits)?;
    let writer = tokio::task::spawn_blocking(move || writer.join());

    let mut allow = Allow { drop: config.topology_drop_nodes, ..Allow::from(true) };
    if let Some(map) = map {
        // Nodes join later: at the start that is no error.
        live::take(&handle, map, allow.clone()).await?;
    }
    allow.unknown = config.topology_allow_unknown;
    let url = config.url(bound);
    let token = admin_token(&handle, &home).await?;
    home.write_client(&url, ca.pem(), &token)?;

    let (stop, stopping) = watch::channel(false);
    let settings = Settings {
        heartbeat: config.heartbeat,
        lease: config.lease,
        lapse_grace: config.lapse_grace(),
        dev: config.dev,
    };
    let shared = Shared::new(handle.clone(), ca, settings, stopping.clone());
    let router = serve::router(&shared)?;
    let mut told = stopping.clone();
    let stop_serving = async move {
        let _ = told.wait_for(|stop| *stop).await;
    };
    let served =
        tokio::spawn(listen::serve(listener, tls.clone(), router, Bounds::default(), stop_serving));
    let renewal = tokio::spawn(renew(tls));
    let reread =
        tokio::spawn(live::reread_on(hangup, handle.clone(), config.topology.clone(), allow));
    tracing::info!(%url, data = %home.folder().display(), "serving");
    // Whoever started us may have closed the pipe already.
    let _ = writeln!(std::io::stdout(), "ready {url}");

    tokio::pin!(writer);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        Ok(()) = parent_gone => Ok("the end of standard input"),
        _ = &mut writer => Err(RunError::WriterGone),
    };
    if let Ok(why) = outcome {
        tracing::info!(why, "stopping");
    }
    let _ = stop.send(true);
    renewal.abort();
    reread.abort();
    // A broken-off connection at the end is no reason to keep the journal open.
    let _ = served.await;
    if outcome.is_ok() {
        handle.stop().await;
        let _ = writer.await;
    }
    outcome.map(|_| ())
}

async fn renew(tls: Arc<Tls>) {
    let mut beat = tokio::time::interval(RENEWAL);
    beat.tick().await;
    loop {
        beat.tick().await;
        if let Err(error) = tls.refresh(wall_clock()) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot renew the server's certificate"
            );
        }
    }
}

/// The token in `client.toml` as long as it is good; else a new one, with a first team to begin with.
async fn admin_token(handle: &Handle, home: &Home) -> Result<Secret, RunError> {
    if let Some((shown, token)) = home.kept_token() {
        let now = wall_clock();
        let good = move |view: &writer::View<'_>| auth::look_up(view.cluster, &shown, now).is_ok();
        if handle.read(good).await? {
            return Ok(token);
        }
    }
    let minted = tokens::mint()?;
    let (id, hash) = (minted.id, minted.hash);
    let ourselves = Principal {
        user: name(UserId::parse("tessera"))?,
        role: Role::Admin,
        teams: Vec::new(),
        unix: None,
    };
    let first_team = name(TeamId::parse("default"))?;
    let (creator, team) = (ourselves.clone(), first_team.clone());
    handle
        .change(move |cluster, _| match cluster.teams.is_empty() {
            true => door::create_team(cluster, &creator, team, "a team to begin with"),
            false => Ok(((), Vec::new())),
        })
        .await?;
    let user = name(UserId::parse("admin"))?;
    handle
        .change(move |cluster, now| {
            let teams = cluster.teams.contains_key(&first_team).then_some(first_team);
            let admin = Principal { user, teams: teams.into_iter().collect(), ..ourselves.clone() };
            door::issue_token(cluster, now, &ourselves, id, hash, admin, None)
        })
        .await?;
    tracing::info!("made an admin token; it is in client.toml in the data folder");
    Ok(minted.token)
}

/// Names of our own are in order; were one not, it is refused like anybody's.
fn name<T>(parsed: Result<T, tessera_model::BadId>) -> Result<T, Refusal> {
    parsed.map_err(|e| Refusal::invalid("", e.to_string(), "report this"))
}
