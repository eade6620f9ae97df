//! Time since a node's epoch.
//!
//! In: the node's directory and, if it names one, its epoch. Out: a clock that does not jump when
//! the machine's does. All processes of a node, one after another or at once, have the same epoch.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time since the node's epoch.
#[derive(Debug)]
pub struct Clock {
    pub epoch_unix_ms: i64,
    base: Duration,
    started: Instant,
}

impl Clock {
    pub fn new(epoch_unix_ms: i64) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = Duration::from_millis(epoch_unix_ms.max(0) as u64);
        Self { epoch_unix_ms, base: unix.saturating_sub(epoch), started: Instant::now() }
    }

    pub fn now(&self) -> Duration {
        self.base + self.started.elapsed()
    }

    pub fn secs(&self) -> f64 {
        self.now().as_secs_f64()
    }

    /// Unix milliseconds of a time since the epoch.
    pub fn unix_ms(&self, secs: f64) -> i64 {
        self.epoch_unix_ms + (secs * 1000.0).round() as i64
    }

    pub fn unix_us(&self, secs: f64) -> u64 {
        (self.epoch_unix_ms.max(0) as u64) * 1000 + (secs.max(0.0) * 1e6) as u64
    }
}

/// The epoch of a node that does not name one: the first init ever, kept in a file.
pub fn epoch(dir: &Path) -> i64 {
    let unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let path = dir.join("epoch");
    let temp = dir.join(format!("epoch.{}.tmp", std::process::id()));
    // Linked into place whole: of two first callers one wins, and both read the winner's.
    if !path.exists() && fs::write(&temp, format!("{unix_ms}\n")).is_ok() {
        let _ = fs::hard_link(&temp, &path);
    }
    let _ = fs::remove_file(&temp);
    fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(unix_ms)
}
