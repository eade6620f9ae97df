//! The one that stays for a moment when `tessera dev` itself is killed.
//!
//! In: the cluster's folder, and a stdin that ends when dev does. Out: no task of the cluster is
//! left. Scheduler and agents end by themselves then; the shims of real nodes must not, so on this
//! machine somebody has to end them. In an orderly end dev does all of it and ends this first.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::{folder, leftovers};
use crate::failure::Outcome;

/// Agents look for their parent's end at once; until they are gone they may still start a task.
const ROUNDS: u32 = 20;
const ROUND: Duration = Duration::from_millis(100);

pub async fn run(folder: &Path, remove: bool) -> Outcome<u8> {
    // An error is an end as well.
    let watch = tokio::task::spawn_blocking(|| {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
    });
    let _ = watch.await;
    reap(folder, remove).await;
    Ok(0)
}

async fn reap(folder: &Path, remove: bool) {
    // Whoever holds the lock is a living cluster, perhaps a new one in the same folder: it is not
    // ours to end. A child that dev was just starting when it died may hold it for a moment more.
    let Some(_lock) = lock_soon(folder).await else { return };
    for _ in 0..ROUNDS {
        end_tasks(folder).await;
        tokio::time::sleep(ROUND).await;
    }
    if remove {
        let _ = fs::remove_dir_all(folder);
    }
}

async fn lock_soon(folder: &Path) -> Option<fs::File> {
    for _ in 0..ROUNDS {
        if let Ok(lock) = folder::lock(folder) {
            return Some(lock);
        }
        tokio::time::sleep(ROUND).await;
    }
    None
}

/// Ends the tasks of all nodes that lie in the folder; one that is resumed may hold more of them
/// than are wanted now.
pub async fn end_tasks(folder: &Path) {
    for entry in fs::read_dir(folder.join("nodes")).into_iter().flatten().flatten() {
        leftovers::end(&entry.path().join("state")).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::dev::folder::Folder;

    #[tokio::test]
    async fn a_living_cluster_is_not_reaped() {
        let living = Folder::make(None).unwrap();
        reap(&living.path, true).await;
        assert!(living.path.join("logs").exists(), "a living cluster's folder was removed");
        let path = living.path.clone();
        drop(living);
        reap(&path, true).await;
        assert!(!path.exists(), "a dead cluster's folder is left");
    }
}
