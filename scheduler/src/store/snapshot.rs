//! The whole state at one revision, in a file of its own beside the store, so that a start replays
//! only what came after. It is a shortcut and nothing else: a file that is missing, torn or of
//! another version is passed over, since the journal has everything.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tessera_core::Cluster;

use super::Store;

/// Events between two snapshots while the scheduler runs.
const EVERY: u64 = 50_000;

/// First line of the file; another one is not read.
const HEADER: &str = "tessera snapshot 1";

pub(super) fn path(store: &Path) -> PathBuf {
    store.with_file_name("snapshot.json")
}

/// The state of the file, if it is whole.
pub(super) fn read(path: &Path) -> Option<Cluster> {
    let file = File::open(path).ok()?;
    let mut reader = BufReader::new(file);
    let mut header = String::new();
    reader.read_line(&mut header).ok()?;
    if header.trim_end() != HEADER {
        tracing::warn!(path = %path.display(), "the snapshot is of another version, replaying the journal");
        return None;
    }
    match serde_json::from_reader(reader) {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the snapshot cannot be read, replaying the journal");
            None
        }
    }
}

fn write(path: &Path, cluster: &Cluster) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut out = BufWriter::new(File::create(&temporary)?);
    writeln!(out, "{HEADER}")?;
    serde_json::to_writer(&mut out, cluster)?;
    out.into_inner()?.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Keeps a snapshot now and then, in the background, one at a time.
#[derive(Debug, Default)]
pub struct SnapshotKeeper {
    last: u64,
    busy: Arc<AtomicBool>,
}

impl SnapshotKeeper {
    /// After a commit: begins one when enough has happened since the last.
    pub fn keep_sometimes(&mut self, store: &Store, cluster: &Cluster) {
        let revision = cluster.revision.0;
        if self.last == 0 {
            self.last = revision;
        }
        if revision - self.last < EVERY || self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        self.last = revision;
        let (path, copy, busy) = (path(store.path()), cluster.clone(), Arc::clone(&self.busy));
        let done = std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
            report(write(&path, &copy));
            busy.store(false, Ordering::Release);
        });
        if let Err(error) = done {
            self.busy.store(false, Ordering::Release);
            report(Err(error));
        }
    }

    /// At a clean stop.
    pub fn keep_now(&self, store: &Store, cluster: &Cluster) {
        if !self.busy.load(Ordering::Acquire) {
            report(write(&path(store.path()), cluster));
        }
    }
}

fn report(written: io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(%error, "no snapshot was kept; the next start replays more of the journal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_snapshot_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        assert_eq!(read(&path), None, "there is none");
        write(&path, &Cluster::default()).unwrap();
        assert_eq!(read(&path), Some(Cluster::default()));
        let whole = fs::read(&path).unwrap();
        for cut in [0, 5, HEADER.len() + 1, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path), None, "cut at {cut}");
        }
    }
}
