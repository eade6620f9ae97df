//! From a map that was read to the cluster that takes it or not.
//!
//! In: a [`Loaded`]. Out: what changed, or a refusal that names the file and, where a node is at
//! fault, its line. A map that is refused changes nothing: the one in force stays.

use std::path::PathBuf;

use tokio::signal::unix::Signal;

use tessera_core::door::topology::{Allow, MapChange, MapProblem, check_map};
use tessera_core::{Cluster, Event};
use tessera_model::Refusal;

use super::{Loaded, TopologyError, load};
use crate::writer::Handle;

/// Holds a map against the cluster; for [`Handle::change`], and with the events thrown away for a
/// dry run. What the file itself allows counts as well as what the caller does.
pub fn change(
    cluster: &Cluster,
    loaded: &Loaded,
    mut allow: Allow,
) -> Result<(MapChange, Vec<Event>), Refusal> {
    allow.unknown |= loaded.allow_unknown;
    allow.unplaced.extend(loaded.unplaced.iter().cloned());
    let (mut change, events) =
        check_map(cluster, loaded.map.clone(), &allow).map_err(|problem| {
            let mut refusal = problem.refusal();
            if let Some(place) = place_of(loaded, &problem) {
                refusal.message = format!("{place}: {}", refusal.message);
            }
            refusal
        })?;
    change.warnings.splice(0..0, loaded.warnings.iter().cloned());
    Ok((change, events))
}

/// The line of the first node that a problem is about, and where it is about nodes that are no
/// longer there, the files.
fn place_of(loaded: &Loaded, problem: &MapProblem) -> Option<String> {
    if let MapProblem::Unknown(nodes) = problem {
        return nodes.iter().find_map(|node| loaded.origins.get(node)).map(ToString::to_string);
    }
    let files: Vec<String> = loaded.files.iter().map(|f| f.display().to_string()).collect();
    (!files.is_empty()).then(|| files.join(", "))
}

/// Puts a map in force. The answer comes once that is durable.
pub async fn take(handle: &Handle, loaded: Loaded, allow: Allow) -> Result<MapChange, Refusal> {
    let change = handle.change(move |cluster, _| change(cluster, &loaded, allow)).await?;
    log(&change);
    Ok(change)
}

fn log(change: &MapChange) {
    for warning in &change.warnings {
        tracing::warn!(warning, "the map is odd");
    }
    if change.changed {
        tracing::info!(
            nodes = change.nodes,
            levels = change.levels.join(","),
            added = change.added.len(),
            moved = change.moved.len(),
            dropped = change.dropped.len(),
            "the map is in force"
        );
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl RereadError {
    pub fn hint(&self) -> String {
        match self {
            Self::Topology(e) => e.hint(),
            Self::Refused(e) => e.hint.clone(),
        }
    }
}

/// Reads the files again.
pub async fn reread(
    handle: &Handle,
    paths: Vec<PathBuf>,
    allow: Allow,
) -> Result<MapChange, RereadError> {
    let read = tokio::task::spawn_blocking(move || load(&paths)).await;
    let loaded = read.unwrap_or_else(|gone| std::panic::resume_unwind(gone.into_panic()))?;
    Ok(take(handle, loaded, allow).await?)
}

/// Reads the files again at each SIGHUP, for as long as it is let.
pub async fn reread_on(mut hangup: Signal, handle: Handle, paths: Vec<PathBuf>, allow: Allow) {
    while hangup.recv().await.is_some() {
        if paths.is_empty() {
            tracing::info!("SIGHUP: no topology file was given, so there is none to read again");
            continue;
        }
        match reread(&handle, paths.clone(), allow.clone()).await {
            Ok(change) if change.changed => {}
            Ok(_) => tracing::info!("SIGHUP: the topology files say what was in force already"),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                hint = error.hint(),
                "SIGHUP: the map in force stays"
            ),
        }
    }
}
