//! The file by which a job says that its work is safe.
//!
//! In: the order, where the job named a file, on the node of rank 0. Out: true once for each change
//! of it that has come to rest. What counts is the modification time of the file, of what a
//! symbolic link leads to and where that is, and, of a folder, its newest entry. One look a second,
//! away from the async threads, since a file server may hang.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::order::OrderRecord;
use super::patience::Patience;
use super::prepare::{whom, working_dir};
use super::{Shared, blocking};

/// Between two looks; a change is reported at the first look that finds it as the one before did,
/// so that a file which is still being written is not taken for a checkpoint.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Entries of a folder that are looked at.
const ENTRIES_MAX: usize = 10_000;
/// Where the agent keeps what it has seen, so that a later one reports what came in between.
const SEEN: &str = "checkpoint";

/// What a checkpoint looks like from outside; another value is another checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    inode: u64,
    /// Modification time: seconds, nanoseconds.
    modified: (i64, i64),
    /// Where a symbolic link leads.
    target: Option<Vec<u8>>,
    /// Of a folder: the newest entry and its modification time.
    newest: Option<((i64, i64), Vec<u8>)>,
}

pub(super) struct Checkpoints {
    path: PathBuf,
    /// Of its own: a file server that hangs must not keep other jobs from being prepared.
    patience: Patience,
    seen: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Known already, or what was there before the job; `None`: there is nothing yet.
    reported: Option<Mark>,
    /// Seen at the last look and not reported yet.
    fresh: Option<Mark>,
    complained: bool,
}

impl State {
    /// Takes a look in. True when it is a checkpoint that was not reported yet. `last`: nobody
    /// writes any more, so nothing needs to come to rest.
    fn take(&mut self, look: Option<Mark>, last: bool) -> bool {
        let Some(look) = look.filter(|look| self.reported.as_ref() != Some(look)) else {
            self.fresh = None;
            return false;
        };
        if !last && self.fresh.as_ref() != Some(&look) {
            self.fresh = Some(look);
            return false;
        }
        self.fresh = None;
        self.reported = Some(look);
        true
    }
}

impl Checkpoints {
    /// What is to be watched for this order here, if anything. `anew`: its tasks are about to
    /// start, and what is there now is none of theirs. Otherwise an earlier agent has watched.
    /// Blocks.
    pub fn of(shared: &Arc<Shared>, record: &OrderRecord, anew: bool) -> Option<Self> {
        let order = &record.order;
        let file = order.checkpoint_file.as_ref()?;
        if !order.rank_range().contains(&0) {
            return None;
        }
        let folder = whom(shared, order).and_then(|(_, a)| working_dir(shared, order, &a.home));
        let folder = match folder {
            Ok(folder) => folder,
            Err(why) => {
                tracing::warn!(attempt = %order.attempt, why, "its checkpoints are not watched");
                return None;
            }
        };
        let seen = shared.attempt_dir(order.attempt).join(SEEN);
        let this = Self {
            path: folder.join(file),
            patience: Patience::new(LOOK_LIMIT),
            seen,
            state: Mutex::default(),
        };
        let before = if anew {
            let look = this.look();
            this.keep(look.as_ref());
            look
        } else {
            // Without a record, what is there now counts as known: nothing is said too much.
            std::fs::read(&this.seen)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_else(|| this.look())
        };
        this.state.lock().reported = before;
        Some(this)
    }

    /// One look. True: there is a checkpoint that was not reported yet.
    pub async fn is_new(self: &Arc<Self>, last: bool) -> bool {
        let this = Arc::clone(self);
        blocking(move || {
            let look = this.look();
            let mut state = this.state.lock();
            let news = state.take(look, last);
            let reported = state.reported.clone();
            drop(state);
            if news {
                this.keep(reported.as_ref());
            }
            news
        })
        .await
    }

    fn look(&self) -> Option<Mark> {
        let what = format!("the checkpoint {}", self.path.display());
        let asked = self.path.clone();
        let why = match self.patience.ask(&what, move || mark(&asked)) {
            Ok(Ok(mark)) => return Some(mark),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return None,
            Ok(Err(error)) => error.to_string(),
            Err(why) => why,
        };
        if !std::mem::replace(&mut self.state.lock().complained, true) {
            tracing::warn!(path = %self.path.display(), why, "could not look at a checkpoint");
        }
        None
    }

    /// Not durable: what a power loss takes, the next agent only says again.
    fn keep(&self, mark: Option<&Mark>) {
        let kept = serde_json::to_vec(&mark).map_err(io::Error::from);
        if let Err(error) = kept.and_then(|bytes| std::fs::write(&self.seen, bytes)) {
            tracing::warn!(path = %self.seen.display(), %error, "could not keep a checkpoint's mark");
        }
    }
}

fn mark(path: &Path) -> io::Result<Mark> {
    let times = |meta: &std::fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    let own = std::fs::symlink_metadata(path)?;
    let target = match own.is_symlink() {
        true => Some(std::fs::read_link(path)?.into_os_string().into_vec()),
        false => None,
    };
    // A link whose target is not there yet is no checkpoint yet.
    let meta = std::fs::metadata(path)?;
    let newest = if meta.is_dir() {
        let entries = std::fs::read_dir(path)?.take(ENTRIES_MAX).flatten();
        let dated = entries.filter_map(|entry| {
            let name: OsString = entry.file_name();
            Some((times(&entry.metadata().ok()?), name.into_vec()))
        });
        dated.max()
    } else {
        None
    };
    Ok(Mark { inode: meta.ino(), modified: times(&meta), target, newest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<Mark> {
        Some(Mark { modified: (second, 0), ..Mark::default() })
    }

    #[test]
    fn a_change_counts_once_and_only_when_it_has_come_to_rest() {
        let mut state = State { reported: at(1), ..State::default() };
        let looks = [
            ("what was there before", at(1), false),
            ("being written", at(2), false),
            ("still being written", at(3), false),
            ("at rest", at(3), true),
            ("the same", at(3), false),
            ("gone", None, false),
            ("the same is back", at(3), false),
            ("a new one", at(4), false),
            ("gone before it rested", None, false),
            ("a new one again", at(4), false),
            ("at rest again", at(4), true),
        ];
        for (what, look, news) in looks {
            assert_eq!(state.take(look, false), news, "{what}");
        }
        assert!(state.take(at(5), true), "the last look does not wait");
        assert!(!state.take(at(5), true));
    }

    #[test]
    fn files_links_and_folders_are_marked_by_what_is_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert_eq!(mark(&path("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let set_time = |name: &str, second: u64| {
            let file = std::fs::File::options().append(true).create(true).open(path(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
        };
        set_time("a", 100);
        let first = mark(&path("a")).unwrap();
        assert_eq!(mark(&path("a")).unwrap(), first);
        set_time("a", 101);
        assert_ne!(mark(&path("a")).unwrap(), first);

        set_time("b", 101);
        std::os::unix::fs::symlink("b", path("latest")).unwrap();
        let to_b = mark(&path("latest")).unwrap();
        std::fs::remove_file(path("latest")).unwrap();
        std::os::unix::fs::symlink("a", path("latest")).unwrap();
        let to_a = mark(&path("latest")).unwrap();
        assert_ne!(to_a, to_b, "another target");
        set_time("a", 102);
        assert_ne!(mark(&path("latest")).unwrap(), to_a, "its target has changed");
        std::fs::remove_file(path("a")).unwrap();
        assert!(mark(&path("latest")).is_err(), "a link to nothing");

        std::fs::create_dir(path("d")).unwrap();
        set_time("d/x", 50);
        let folder = mark(&path("d")).unwrap();
        set_time("d/x", 51);
        assert_ne!(mark(&path("d")).unwrap(), folder, "its entry has changed");
    }
}
