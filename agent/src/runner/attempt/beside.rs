//! What runs beside an attempt's orders: the ends of its tasks, signals to them, its checkpoints.
//!
//! In: tasks that were started. Out: what happens, in the attempt's own queue, and checkpoints as
//! events.

use std::sync::Arc;

use tokio::time::sleep;

use tessera_shim::{ShimChild, TaskDir};

use super::super::adopt::rank_dir;
use super::super::book::{Phase, RunnerEvent};
use super::super::checkpoint::{self, Checkpoints};
use super::super::order::OrderRecord;
use super::super::{blocking, watch};
use super::{Attempt, Happening};

impl Attempt {
    pub(super) fn watch(&mut self, rank: u32, child: Option<ShimChild>) {
        let dir = TaskDir::new(rank_dir(&self.dir, rank));
        let checkpoints = Arc::clone(&self.checkpoints);
        self.beside.spawn(async move {
            let exit = watch::end_of(&dir, child).await;
            // Written just before the end it counts as well.
            let checkpoint = match checkpoints.get() {
                Some(checkpoints) => checkpoints.is_new(true).await,
                None => false,
            };
            Happening::Ended { rank, exit, checkpoint }
        });
    }

    /// Looks at the file that tells its checkpoints from now on, if there is one. `adopted`: an
    /// earlier agent did so, and where it is has to be found out first.
    pub(super) fn watch_checkpoints(&mut self, adopted: Option<OrderRecord>) {
        let (shared, attempt) = (Arc::clone(&self.shared), self.id);
        let checkpoints = Arc::clone(&self.checkpoints);
        self.checkpoint_watch = Some(self.beside.spawn(async move {
            if let Some(record) = adopted {
                let (shared, checkpoints) = (Arc::clone(&shared), Arc::clone(&checkpoints));
                blocking(move || {
                    if let Some(watched) = Checkpoints::of(&shared, &record, false) {
                        checkpoints.get_or_init(|| Arc::new(watched));
                    }
                })
                .await;
            }
            let Some(watched) = checkpoints.get() else { return Happening::Done };
            loop {
                sleep(checkpoint::EVERY).await;
                if watched.is_new(false).await {
                    tracing::info!(%attempt, "checkpoint");
                    shared.book.tell(RunnerEvent::Checkpoint { attempt });
                }
            }
        }));
    }

    pub(super) fn signal(&mut self, signal: i32) {
        let status = self.status();
        if !(Phase::Starting..=Phase::Running).contains(&status.phase) {
            return tracing::info!(attempt = %self.id, signal, phase = ?status.phase, "nothing runs that could be sent a signal");
        }
        tracing::info!(attempt = %self.id, signal, "sending its tasks a signal");
        for rank in status.ranks.filter(|rank| !status.ended.contains_key(rank)) {
            let dir = TaskDir::new(rank_dir(&self.dir, rank));
            self.beside.spawn(async move {
                watch::signal(dir, signal).await;
                Happening::Done
            });
        }
    }
}
