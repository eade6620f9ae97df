//! The highest epoch this node has obeyed. A lower one is a scheduler that no longer reigns.
//!
//! In: the epoch of an order. Out: whether it may be obeyed; a higher one is on disk before the
//! answer. Tombstones of attempts lie in their folders.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use tessera_model::Epoch;

#[derive(Debug)]
pub struct Fence {
    dir: PathBuf,
    highest: Mutex<Epoch>,
}

#[derive(Serialize, Deserialize)]
struct FenceFile {
    epoch: Epoch,
}

const FILE: &str = "fence";

/// Why an order's epoch does not pass.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error("the order comes from epoch {got}, this node has obeyed {highest} already", got = .got.0, highest = .highest.0)]
    Old { got: Epoch, highest: Epoch },
    #[error("could not write down epoch {}, so the order is not obeyed", .epoch.0)]
    Write {
        epoch: Epoch,
        #[source]
        source: io::Error,
    },
}

impl Fence {
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = state.join(FILE);
        let highest = match std::fs::read(&path) {
            Ok(bytes) => {
                let file: FenceFile = serde_json::from_slice(&bytes).map_err(|error| {
                    let path = path.display();
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{path} holds no epoch ({error}); without it an old scheduler could not be told from the new one"),
                    )
                })?;
                file.epoch
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Epoch(0),
            Err(error) => return Err(error),
        };
        Ok(Self { dir: state.to_owned(), highest: Mutex::new(highest) })
    }

    pub fn highest(&self) -> Epoch {
        *self.highest.lock()
    }

    /// Whether [`Self::admit`] would have to write, which takes a disk's time.
    pub fn is_news(&self, epoch: Epoch) -> bool {
        epoch > self.highest()
    }

    pub fn admit(&self, epoch: Epoch) -> Result<(), FenceError> {
        let mut highest = self.highest.lock();
        if epoch < *highest {
            return Err(FenceError::Old { got: epoch, highest: *highest });
        }
        if epoch > *highest {
            serde_json::to_vec(&FenceFile { epoch })
                .map_err(io::Error::from)
                .and_then(|bytes| {
                    tessera_shim::dir::write_durably_with_spare(&self.dir, FILE, &bytes)
                })
                .map_err(|source| FenceError::Write { epoch, source })?;
            *highest = epoch;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_epoch_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let fence = Fence::open(dir.path()).unwrap();
        fence.admit(Epoch(3)).unwrap();
        fence.admit(Epoch(3)).unwrap();
        fence.admit(Epoch(9)).unwrap();
        assert!(matches!(fence.admit(Epoch(8)), Err(FenceError::Old { .. })));
        let fence = Fence::open(dir.path()).unwrap();
        assert_eq!(fence.highest(), Epoch(9));
        assert!(fence.admit(Epoch(8)).is_err());
        // A full disk, as far as new files go: a new scheduler is obeyed all the same.
        let obstacle = dir.path().join(format!(".fence.{}", std::process::id()));
        std::fs::create_dir(&obstacle).unwrap();
        fence.admit(Epoch(10)).unwrap();
        assert_eq!(Fence::open(dir.path()).unwrap().highest(), Epoch(10));
        std::fs::remove_file(dir.path().join("fence.spare")).unwrap();
        assert!(matches!(fence.admit(Epoch(11)), Err(FenceError::Write { .. })));
        assert_eq!(fence.highest(), Epoch(10), "what is not on disk is not obeyed");
        std::fs::write(dir.path().join("fence"), "x").unwrap();
        assert!(Fence::open(dir.path()).is_err(), "a damaged fence is never taken for 0");
    }
}
