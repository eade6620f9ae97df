//! Attempts whose end the scheduler has: kept a while for their logs, then removed.
//!
//! In: an acknowledged attempt's folder. Out: the same folder under `done/`, until there are too
//! many, they are too old, or they take too much room; the oldest go first. While it is there, the
//! attempt is known to have ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use tessera_model::{AttemptId, Bytes};

/// How much is kept of attempts that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub attempts: usize,
    pub bytes: Bytes,
    pub age: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Self { attempts: 2_000, bytes: Bytes::gib(10), age: Duration::from_secs(30 * 24 * 3600) }
    }
}

pub(super) struct Done {
    jobs: PathBuf,
    done: PathBuf,
    keep: Keep,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_age: BTreeMap<(SystemTime, AttemptId), u64>,
    bytes: u64,
}

impl Done {
    pub fn open(state: &Path, keep: Keep) -> io::Result<Self> {
        let done = state.join("done");
        make_folder(&done)?;
        let mut kept = Kept::default();
        for entry in std::fs::read_dir(&done)? {
            let entry = entry?;
            let Some(attempt) = entry.file_name().to_str().and_then(AttemptId::parse) else {
                continue;
            };
            kept.add(entry.metadata()?.modified()?, attempt, bytes_below(&entry.path()));
        }
        let done = Self { jobs: state.join("jobs"), done, keep, kept: Mutex::new(kept) };
        done.prune();
        Ok(done)
    }

    pub fn dir(&self, attempt: AttemptId) -> PathBuf {
        self.done.join(attempt.to_string())
    }

    pub fn holds(&self, attempt: AttemptId) -> bool {
        self.dir(attempt).is_dir()
    }

    /// Moves it over and lets the oldest go. Blocks. Not durable: after a power loss it may be back,
    /// and is reported and acknowledged once more.
    pub fn keep(&self, attempt: AttemptId) -> io::Result<()> {
        let from = self.jobs.join(attempt.to_string());
        if !from.try_exists()? {
            // Somebody took it away; there is nothing to keep.
            return Ok(());
        }
        // The folder's own time is when it was moved here: that is what its age counts from.
        File::open(&from)?.set_modified(SystemTime::now())?;
        std::fs::rename(&from, self.dir(attempt))?;
        let bytes = bytes_below(&self.dir(attempt));
        self.kept.lock().add(SystemTime::now(), attempt, bytes);
        self.prune();
        Ok(())
    }

    fn prune(&self) {
        let oldest_kept = SystemTime::now().checked_sub(self.keep.age);
        loop {
            let gone = {
                let mut kept = self.kept.lock();
                let Some((&(at, attempt), &bytes)) = kept.by_age.first_key_value() else { return };
                let too_many = kept.by_age.len() > self.keep.attempts;
                let too_old = oldest_kept.is_some_and(|oldest| at < oldest);
                if !too_many && !too_old && kept.bytes <= self.keep.bytes.0 {
                    return;
                }
                kept.by_age.pop_first();
                kept.bytes -= bytes;
                attempt
            };
            if let Err(error) = std::fs::remove_dir_all(self.dir(gone)) {
                tracing::warn!(attempt = %gone, %error, "could not remove an old attempt's folder");
            }
        }
    }
}

impl Kept {
    fn add(&mut self, at: SystemTime, attempt: AttemptId, bytes: u64) {
        if self.by_age.insert((at, attempt), bytes).is_none() {
            self.bytes += bytes;
        }
    }
}

/// Bytes on disk; what cannot be read counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

pub(super) fn make_folder(dir: &Path) -> io::Result<()> {
    crate::passage::make(dir)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::JobId;

    fn id(job: u64) -> AttemptId {
        AttemptId { job: JobId(job), number: 1 }
    }

    fn finish(done: &Done, job: u64, bytes: usize) {
        let dir = done.jobs.join(id(job).to_string());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("out.log"), vec![b'x'; bytes]).unwrap();
        done.keep(id(job)).unwrap();
    }

    #[test]
    fn the_oldest_go_first_when_there_are_too_many_or_too_large_ones() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("jobs")).unwrap();
        let keep = Keep { attempts: 3, bytes: Bytes(1 << 20), age: Duration::from_secs(3600) };
        let done = Done::open(state.path(), keep).unwrap();
        for job in 1..=5 {
            finish(&done, job, 10);
        }
        let held = |done: &Done| (1..=9).filter(|job| done.holds(id(*job))).collect::<Vec<_>>();
        assert_eq!(held(&done), [3, 4, 5]);
        finish(&done, 6, 900 << 10);
        assert_eq!(held(&done), [4, 5, 6]);
        finish(&done, 7, 900 << 10);
        assert_eq!(held(&done), [7], "two of these are over a mebibyte");
        let again = Done::open(state.path(), keep).unwrap();
        assert_eq!(held(&again), [7]);
        let none = Keep { age: Duration::ZERO, ..keep };
        assert_eq!(held(&Done::open(state.path(), none).unwrap()), [0u64; 0]);
    }
}
