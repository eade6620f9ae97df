//! The GPUs seen in this boot, on disk.
//!
//! In and out: one small JSON file. A GPU that fell off the bus stays listed over a restart of the
//! agent, and a fatal XID stays fatal. A file of another boot, or one that cannot be read, says
//! nothing: after a reboot the driver is asked anew.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tessera_model::{BootId, Gpu};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownGpu {
    pub gpu: Gpu,
    /// A fatal XID, since the GPU's last reset.
    pub xid: Option<u32>,
    pub counter_epoch: u32,
}

#[derive(Serialize, Deserialize)]
struct KnownFile {
    boot: BootId,
    gpus: Vec<KnownGpu>,
}

pub fn load(path: &Path, boot: &BootId) -> Vec<KnownGpu> {
    let Ok(text) = fs::read(path) else { return Vec::new() };
    match serde_json::from_slice::<KnownFile>(&text) {
        Ok(file) if file.boot == *boot => file.gpus,
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "list of known GPUs cannot be read");
            Vec::new()
        }
    }
}

/// Whole or not at all. Not synced: what a crash of the machine loses, the next boot does not want.
pub fn store(path: &Path, boot: &BootId, gpus: &[KnownGpu]) -> io::Result<()> {
    let file = KnownFile { boot: boot.clone(), gpus: gpus.to_vec() };
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec(&file)?)?;
    fs::rename(next, path)
}
