//! What can be wrong with a trace, with the place and what to do about it.
//!
//! In: trouble met while reading or replaying. Out: one sentence and one hint. Printing them is the
//! client's work.

use std::io;
use std::path::PathBuf;

/// Why a replay cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("could not read {}: {source}", file.display())]
    Open { file: PathBuf, source: io::Error },
    #[error("could not write {}: {source}", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("{} ends in the middle of its compressed data, after line {line}", file.display())]
    Truncated { file: PathBuf, line: u64 },
    #[error("{}, after line {line}: {what}", file.display())]
    Damaged { file: PathBuf, line: u64, what: String },
    #[error("{} is larger than {limit} bytes when it is unpacked", file.display())]
    TooLarge { file: PathBuf, limit: u64 },
    #[error("{} has no row below its header", file.display())]
    Empty { file: PathBuf },
    #[error("{} has no column `{column}`, only {}", file.display(), list(found))]
    NoColumn { file: PathBuf, column: String, found: Vec<String>, hint: String },
    #[error("{}, line {line}: {found} fields, the header has {header}", file.display())]
    Uneven { file: PathBuf, line: u64, found: u64, header: u64 },
    #[error("{}, line {line}, column `{column}`: {value:?} is not {wanted}", file.display())]
    Value { file: PathBuf, line: u64, column: String, value: String, wanted: String },
    #[error("{}, line {line}: {what}", file.display())]
    Row { file: PathBuf, line: u64, what: String, hint: String },
    /// The files are sound, and do not go together with each other or with the options.
    #[error("{what}")]
    Mismatch { what: String, hint: String },
    /// The policy did what it must not; its figures would be worth nothing.
    #[error("policy {policy} broke a rule at event {event}: {what}")]
    Broken { policy: String, event: usize, what: String },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "an empty header".to_owned() } else { names.join(", ") }
}

impl TraceError {
    pub fn mismatch(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Mismatch { what: what.into(), hint: hint.into() }
    }

    /// The next step for the person at the keyboard; empty when there is none to name.
    pub fn hint(&self) -> String {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check the path".to_owned()
            }
            Self::Open { .. } | Self::Write { .. } => "check who may read and write it".to_owned(),
            Self::Truncated { .. } => "fetch the file again; `gzip -t` checks it".to_owned(),
            Self::Damaged { .. } => "the file must be CSV in UTF-8, plain or gzip".to_owned(),
            Self::TooLarge { .. } => "split the trace and replay the parts".to_owned(),
            Self::Empty { .. } => "give a file with a header line and at least one row".to_owned(),
            Self::NoColumn { hint, .. } | Self::Row { hint, .. } | Self::Mismatch { hint, .. } => {
                hint.clone()
            }
            Self::Uneven { .. } => {
                "a comma inside a value needs quotes around the value".to_owned()
            }
            Self::Value { column, .. } => format!("correct `{column}` on that line"),
            Self::Broken { .. } => "this is a bug in Tessera; please report the command".to_owned(),
        }
    }

    /// Whether the input is at fault (and not the machine or Tessera).
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Open { .. } | Self::Write { .. } | Self::Broken { .. })
    }
}
