//! Changes of jobs, for those who wait for them.
//!
//! After each commit one look at the cluster serves all who watch, however many they are. In: job
//! ids. Out: a receiver that changes when the job's fate does; what it is now, one asks the writer.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use tessera_core::Cluster;
use tessera_model::{AttemptId, JobId, JobState};

use crate::writer::Handle;

/// What a watcher is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    pub state: JobState,
    pub attempt: Option<AttemptId>,
    pub cancel_requested: bool,
}

impl Fate {
    /// `None`: the job is not in memory, so it ended long ago or never was.
    pub fn of(cluster: &Cluster, job: JobId) -> Option<Self> {
        let job = cluster.jobs.get(job)?;
        Some(Self {
            state: job.state,
            attempt: job.attempt,
            cancel_requested: job.cancelled_by.is_some(),
        })
    }
}

#[derive(Default)]
pub struct Watches {
    /// The outer `None` before the first look.
    jobs: Mutex<HashMap<JobId, watch::Sender<Option<Option<Fate>>>>>,
}

pub type Watch = watch::Receiver<Option<Option<Fate>>>;

impl Watches {
    /// Begins to look after each commit, until the writer or all who hold this are gone.
    pub fn start(handle: Handle) -> Arc<Self> {
        let watches = Arc::new(Self::default());
        let weak = Arc::downgrade(&watches);
        tokio::spawn(async move {
            let mut revision = handle.watch();
            while revision.changed().await.is_ok() {
                let Some(watches) = weak.upgrade() else { return };
                if watches.look(&handle).await.is_none() {
                    return;
                }
            }
        });
        watches
    }

    /// Changes after this call are not missed; one that came just before may be told again.
    pub fn subscribe(&self, job: JobId) -> Watch {
        let mut jobs = self.jobs.lock();
        jobs.entry(job).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// One look for all. `None` when the writer is gone.
    async fn look(&self, handle: &Handle) -> Option<()> {
        let ids: Vec<JobId> = {
            let mut jobs = self.jobs.lock();
            jobs.retain(|_, sender| sender.receiver_count() > 0);
            jobs.keys().copied().collect()
        };
        if ids.is_empty() {
            return Some(());
        }
        let fates = handle
            .read(move |view| {
                let fate = |id: JobId| (id, Fate::of(view.cluster, id));
                ids.into_iter().map(fate).collect::<Vec<_>>()
            })
            .await;
        let fates = match fates {
            Ok(fates) => fates,
            // Overrun: the next commit brings another look.
            Err(_) if !handle_is_gone(handle) => return Some(()),
            Err(_) => return None,
        };
        let jobs = self.jobs.lock();
        for (id, fate) in fates {
            if let Some(sender) = jobs.get(&id) {
                sender.send_if_modified(|known| {
                    let news = *known != Some(fate);
                    *known = Some(fate);
                    news
                });
            }
        }
        Some(())
    }
}

fn handle_is_gone(handle: &Handle) -> bool {
    handle.watch().has_changed().is_err()
}
