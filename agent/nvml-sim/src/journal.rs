//! The record of what was broken when: the oracle for tests of detection.
//!
//! In: faults as they begin and end. Out: `journal.jsonl`, one object a line, and `kmsg`, the lines
//! the kernel log would have. Several processes may share a node; each fact is written once.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::hardware::PciAddr;
use crate::scenario::FaultSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Begin,
    End,
    /// `control.toml` could not be read; `error` says why.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The entry's file, place and content.
    pub id: String,
    pub what: What,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<usize>,
    /// When it was to happen.
    pub due_unix_ms: i64,
    /// When it took effect: from here on a caller can see it.
    pub at_unix_ms: i64,
    /// The same since the node's epoch.
    pub at_ms: i64,
    pub epoch_unix_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    kmsg: PathBuf,
    epoch_unix_ms: i64,
    /// How far the file has been read.
    offset: u64,
    known: HashMap<(String, What), i64>,
}

/// Reads a journal. Lines that are no records (a write cut short) are skipped.
pub fn read(dir: &Path) -> io::Result<Vec<Record>> {
    match std::fs::read_to_string(dir.join("journal.jsonl")) {
        Ok(text) => Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

impl Journal {
    pub fn open(dir: &Path, epoch_unix_ms: i64) -> Self {
        let mut journal = Self {
            path: dir.join("journal.jsonl"),
            kmsg: dir.join("kmsg"),
            epoch_unix_ms,
            offset: 0,
            known: HashMap::new(),
        };
        if let Ok(mut file) = File::open(&journal.path) {
            // An unreadable journal is an empty one: the simulation goes on.
            let _ = journal.catch_up(&mut file);
        }
        journal
    }

    /// When something already on record took effect, Unix milliseconds.
    pub fn when(&self, id: &str, what: What) -> Option<i64> {
        self.known.get(&(id.to_owned(), what)).copied()
    }

    fn catch_up(&mut self, file: &mut File) -> io::Result<()> {
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        self.offset += text.len() as u64;
        for record in text.lines().filter_map(|l| serde_json::from_str::<Record>(l).ok()) {
            // A record from before the epoch was set anew is about another life of the node.
            if record.epoch_unix_ms == self.epoch_unix_ms {
                self.known.insert((record.id, record.what), record.at_unix_ms);
            }
        }
        Ok(())
    }

    /// Writes a record and the kernel's lines for it, unless another process has. `true`: written.
    pub fn write(&mut self, record: &Record, kmsg: &[String]) -> io::Result<bool> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        file.lock()?;
        self.catch_up(&mut file)?;
        if self.known.contains_key(&(record.id.clone(), record.what)) {
            return Ok(false);
        }
        if !kmsg.is_empty() {
            let mut log = OpenOptions::new().append(true).create(true).open(&self.kmsg)?;
            log.write_all(kmsg.concat().as_bytes())?;
        }
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        file.write_all(line.as_bytes())?;
        self.catch_up(&mut file)?;
        Ok(true)
    }
}

/// A line as /dev/kmsg gives it, for an XID.
pub fn kmsg_line(sequence: u64, micros: u64, pci: PciAddr, code: u64) -> String {
    let text = match code {
        79 => "GPU has fallen off the bus.",
        _ => "simulated",
    };
    format!(
        "4,{sequence},{micros},-;NVRM: Xid (PCI:{:04x}:{:02x}:{:02x}): {code}, {text}\n",
        pci.domain, pci.bus, pci.device
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_is_written_once_even_by_two_writers() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record {
            id: "s0-1".to_owned(),
            what: What::Begin,
            kind: "xid".to_owned(),
            gpus: vec![1],
            due_unix_ms: 5,
            at_unix_ms: 6,
            at_ms: 1,
            epoch_unix_ms: 5,
            fault: None,
            error: None,
        };
        let (mut one, mut two) = (Journal::open(dir.path(), 5), Journal::open(dir.path(), 5));
        assert!(one.write(&record, &["a\n".to_owned()]).unwrap());
        assert!(!two.write(&record, &["a\n".to_owned()]).unwrap());
        assert_eq!(read(dir.path()).unwrap(), std::slice::from_ref(&record));
        assert_eq!(std::fs::read_to_string(dir.path().join("kmsg")).unwrap(), "a\n");
        assert_eq!(Journal::open(dir.path(), 5).when("s0-1", What::Begin), Some(6));
        assert_eq!(Journal::open(dir.path(), 9).when("s0-1", What::Begin), None);
    }
}
