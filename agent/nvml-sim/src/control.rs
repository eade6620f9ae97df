//! Changing a living node: what is written to its `control.toml`.
//!
//! In: faults and loads. Out: a new file in one step, so a node never reads half of one. The node
//! reads it by itself (`node`).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::scenario::Control;

/// Appends an entry to a node's `control.toml` in one step.
pub fn append(dir: &Path, entry: &Control) -> Result<(), String> {
    let path = dir.join("control.toml");
    let guard = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("control.lock"))
        .map_err(|e| format!("{}: {e}", dir.join("control.lock").display()))?;
    guard.lock().map_err(|e| format!("{}: {e}", path.display()))?;
    let mut text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&toml::to_string(entry).map_err(|e| e.to_string())?);
    write(dir, &text)
}

/// Takes every fault out of `control.toml`; what was in force ends.
pub fn clear(dir: &Path) -> Result<(), String> {
    write(dir, "")
}

fn write(dir: &Path, text: &str) -> Result<(), String> {
    let path = dir.join("control.toml");
    let temp = dir.join(format!("control.toml.{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&temp)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temp, &path)
    };
    write().map_err(|e| format!("{}: {e}", path.display()))
}
