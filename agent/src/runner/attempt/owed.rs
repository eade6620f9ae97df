//! Decisions that a full disk did not take yet: a tombstone, or an acknowledged end.
//!
//! In: a decision that could not be written. Out: the same decision, tried again ever more seldom
//! until it is on disk; only then is it answered. In memory it holds from the beginning.

use std::time::Duration;

use tokio::time::Instant;

use super::super::book::Phase;
use super::super::order::Tombstone;
use super::super::{blocking, prepare};
use super::Attempt;
use crate::control::retry::Backoff;

/// Decisions that a full disk did not take yet. They hold all the same, and are tried until they
/// are written.
pub(super) struct Owed {
    /// It was told to stop, with this grace.
    pub tombstone: Option<Duration>,
    /// Its end was acknowledged.
    pub forget: bool,
    /// When to try again; none where nothing is owed.
    pub at: Option<Instant>,
    backoff: Backoff,
}

impl Owed {
    pub fn nothing() -> Self {
        Self { tombstone: None, forget: false, at: None, backoff: Backoff::new() }
    }

    pub fn try_later(&mut self) {
        self.at = Some(Instant::now() + self.backoff.next());
    }
}

impl Attempt {
    /// Told to stop before it started, although that may not be on disk yet.
    pub(super) fn is_to_stop(&self, phase: Phase) -> bool {
        phase <= Phase::Prepared && self.owed.tombstone.is_some()
    }

    /// Writes the tombstone. A full disk does not keep a running task alive: it is stopped all the
    /// same, and the tombstone is tried again until it is written.
    pub(super) async fn bury(&mut self, grace: Duration) -> bool {
        let dir = self.dir.clone();
        let tombstone = Tombstone { grace_ms: grace.as_millis().try_into().unwrap_or(u64::MAX) };
        let written = blocking(move || {
            prepare::make_attempt_dir(&dir)?;
            tombstone.write(&dir)
        });
        match written.await {
            Ok(()) => {
                self.owed.tombstone = None;
                true
            }
            Err(error) => {
                tracing::error!(attempt = %self.id, %error, "could not write the tombstone, it is tried again; free space on the disk of the state folder");
                let owed = self.owed.tombstone.map_or(grace, |earlier| earlier.min(grace));
                self.owed.tombstone = Some(owed);
                self.owed.try_later();
                false
            }
        }
    }

    /// Tries again what is owed.
    pub(super) async fn pay(&mut self) {
        self.owed.at = None;
        if self.owed.forget {
            return self.forget().await;
        }
        let Some(grace) = self.owed.tombstone else { return };
        match self.phase() {
            Phase::Fresh | Phase::Prepared => self.stop(grace).await,
            // Its tasks were told at once.
            Phase::Starting | Phase::Running => drop(self.bury(grace).await),
            // Nothing of it can start any more: its tasks' ends are on disk.
            Phase::Ending | Phase::Released => self.owed.tombstone = None,
        }
    }
}

/// Ready at once where there is no time to wait for; the caller asks first.
pub(super) async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
