//! What outlives a process: NIC counters in `sys/`, and the meters' totals.
//!
//! Of several processes on one node the one that holds `lock` writes.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::meter::Totals;
use crate::nics::{self, Carried, Nics};
use crate::node::Node;

pub const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Housekeepings between two writings of the counters.
const PERSIST_EVERY: u64 = 5;

#[derive(Debug)]
pub struct Keeper {
    /// Held while this process is the one that writes counters.
    pub lock: Option<File>,
    pub nics: Nics,
    pub began: f64,
    pub first: Vec<Totals>,
    pub rounds: u64,
}

impl Node {
    /// Once a second: the NICs' counters, and now and then our own, so that they outlive us.
    pub(super) fn keep_house(&self) {
        let Some(mut keeper) = self.keeper.try_lock() else { return };
        let now = self.clock.now();
        self.next_keep.store((now + HOUSEKEEPING).as_nanos() as u64, Relaxed);
        if keeper.lock.is_none() {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.dir.join("lock"));
            keeper.lock = file.ok().filter(|f| f.try_lock().is_ok());
            if keeper.lock.is_none() {
                return;
            }
            // From now on the files are ours; what they say is where we go on from.
            keeper.nics = Nics::new(self.dir.join("sys"), &self.hw);
            keeper.began = now.as_secs_f64();
            keeper.first = (0..self.gpus.len()).map(|g| self.meter(g).totals).collect();
        }
        let totals: Vec<Totals> = (0..self.gpus.len()).map(|g| self.meter(g).totals).collect();
        let per_nic = totals.len().checked_div(self.hw.nics.len()).unwrap_or(0).max(1);
        let began = keeper.began;
        let mut carried = vec![Carried::default(); self.hw.nics.len()];
        for (nic, load) in carried.iter_mut().enumerate() {
            for gpu in (nic * per_nic..(nic + 1) * per_nic).filter(|g| *g < totals.len()) {
                let first = keeper.first[gpu];
                // A driver reload sets the meters back; a NIC does not notice.
                if totals[gpu].nic_tx < first.nic_tx {
                    keeper.first[gpu] = Totals::default();
                }
                load.tx_bytes +=
                    (totals[gpu].nic_tx - keeper.first[gpu].nic_tx) as u64 / per_nic as u64;
                load.rx_bytes +=
                    (totals[gpu].nic_rx - keeper.first[gpu].nic_rx) as u64 / per_nic as u64;
            }
        }
        let fx = self.effects();
        if let Err(error) = keeper.nics.update(&self.hw, &carried, &fx, began, now.as_secs_f64()) {
            eprintln!("tessera-nvml-sim: {}/sys: {error}", self.dir.display());
        }
        keeper.rounds += 1;
        if keeper.rounds.is_multiple_of(PERSIST_EVERY) {
            self.write_counters(&totals);
        }
    }

    /// Nobody uses NVML here any more: keeps the counters for the next process, if it is on us to
    /// do so, and leaves the files to whoever comes.
    pub fn rest(&self) {
        let Some(mut keeper) = self.keeper.try_lock() else { return };
        let Some(lock) = keeper.lock.take() else { return };
        let totals: Vec<Totals> = (0..self.gpus.len()).map(|g| self.meter(g).totals).collect();
        self.write_counters(&totals);
        drop(lock);
    }

    fn write_counters(&self, totals: &[Totals]) {
        let kept = Kept {
            t: self.clock.secs(),
            // JSON has no infinities.
            driver_epoch: self.effects().driver_epoch.max(-1e18),
            gpus: totals.to_vec(),
        };
        let Ok(text) = serde_json::to_string(&kept) else { return };
        if let Err(error) = nics::replace(&self.dir.join("counters.json"), &text) {
            eprintln!("tessera-nvml-sim: {}/counters.json: {error}", self.dir.display());
        }
    }
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    pub t: f64,
    pub driver_epoch: f64,
    pub gpus: Vec<Totals>,
}

pub fn read_counters(dir: &Path, gpus: usize) -> Option<Kept> {
    let kept: Kept =
        serde_json::from_str(&fs::read_to_string(dir.join("counters.json")).ok()?).ok()?;
    (kept.gpus.len() == gpus).then_some(kept)
}
