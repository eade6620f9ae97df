//! Tables in files: CSV, plain or gzip, with columns found by their name in the header.
//!
//! In: a path. Out: rows whose cells are read by column, each with an error that names the file, the
//! line and the column. What the columns mean is for the readers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use csv::StringRecord;
use flate2::bufread::MultiGzDecoder;

use super::error::TraceError;

/// Bytes that are read from one file, unpacked. The largest published job trace has 1.1 GB.
pub const BYTES_MAX: u64 = 4 << 30;

/// Opens a file, unpacks it if it is gzip, and stops at [`BYTES_MAX`].
pub fn open(path: &Path) -> Result<Box<dyn Read>, TraceError> {
    let failed = |source| TraceError::Open { file: path.to_owned(), source };
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
    let packed = reader.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) };
    Ok(Box::new(Bounded { inner: plain, left: BYTES_MAX }))
}

/// Fails with [`io::ErrorKind::FileTooLarge`] instead of reading on for ever.
struct Bounded {
    inner: Box<dyn Read>,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(count)
    }
}

/// What reading on has failed with, as a situation.
pub fn trouble(file: &Path, line: u64, error: &io::Error) -> TraceError {
    let file = file.to_owned();
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TraceError::Truncated { file, line },
        io::ErrorKind::FileTooLarge => TraceError::TooLarge { file, limit: BYTES_MAX },
        _ => TraceError::Damaged { file, line, what: error.to_string() },
    }
}

pub struct Table {
    file: PathBuf,
    headers: Vec<String>,
    reader: csv::Reader<Box<dyn Read>>,
    record: StringRecord,
    line: u64,
    rows: u64,
}

/// A column that was found: its place and its name.
#[derive(Debug, Clone)]
pub struct Column {
    at: usize,
    name: String,
}

impl Table {
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(open(path)?);
        let file = path.to_owned();
        let header = reader.headers().map_err(|e| wrong(&file, 0, &e))?;
        let first = header.get(0).unwrap_or_default().trim_start_matches('\u{feff}').to_owned();
        let mut headers: Vec<String> = header.iter().map(str::to_owned).collect();
        if let Some(name) = headers.first_mut() {
            *name = first;
        }
        if headers.is_empty() {
            return Err(TraceError::Empty { file });
        }
        Ok(Self { file, headers, reader, record: StringRecord::new(), line: 1, rows: 0 })
    }

    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    pub fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|h| h == name)
    }

    pub fn optional(&self, name: &str) -> Option<Column> {
        let at = self.headers.iter().position(|h| h == name)?;
        Some(Column { at, name: name.to_owned() })
    }

    /// A column that must be there; `hint` says what file was expected.
    pub fn column(&self, name: &str, hint: &str) -> Result<Column, TraceError> {
        self.optional(name).ok_or_else(|| TraceError::NoColumn {
            file: self.file.clone(),
            column: name.to_owned(),
            found: self.headers.clone(),
            hint: hint.to_owned(),
        })
    }

    /// Goes to the next row; `false` after the last one. A table without rows is an error.
    pub fn advance(&mut self) -> Result<bool, TraceError> {
        let more = self
            .reader
            .read_record(&mut self.record)
            .map_err(|e| wrong(&self.file, self.line, &e))?;
        if more {
            self.line = self.record.position().map_or(self.line + 1, csv::Position::line);
            self.rows += 1;
        } else if self.rows == 0 {
            return Err(TraceError::Empty { file: self.file.clone() });
        }
        Ok(more)
    }

    pub fn text(&self, column: &Column) -> &str {
        self.record.get(column.at).unwrap_or_default()
    }

    pub fn value(&self, column: &Column, wanted: &str) -> TraceError {
        TraceError::Value {
            file: self.file.clone(),
            line: self.line,
            column: column.name.clone(),
            value: self.text(column).chars().take(60).collect(),
            wanted: wanted.to_owned(),
        }
    }

    pub fn row_error(&self, what: impl Into<String>, hint: impl Into<String>) -> TraceError {
        TraceError::Row {
            file: self.file.clone(),
            line: self.line,
            what: what.into(),
            hint: hint.into(),
        }
    }

    /// A whole number from 0 to `most`.
    pub fn number(&self, column: &Column, most: u64) -> Result<u64, TraceError> {
        let text = self.text(column);
        // Some tools write whole numbers as 8.0.
        let text = text.strip_suffix(".0").unwrap_or(text);
        match text.parse::<u64>() {
            Ok(number) if number <= most => Ok(number),
            _ => Err(self.value(column, &format!("a whole number from 0 to {most}"))),
        }
    }

    /// Seconds, with up to three decimals, as milliseconds.
    pub fn seconds(&self, column: &Column) -> Result<u64, TraceError> {
        const MOST: u64 = 100 * 366 * 86_400;
        let bad =
            || self.value(column, "a length of time in seconds, at least 0 and below 100 years");
        let text = self.text(column);
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || (text.contains('.') && !digits(part)) {
            return Err(bad());
        }
        let whole: u64 = whole.parse().ok().filter(|s| *s < MOST).ok_or_else(bad)?;
        let ms: String = part.chars().chain("000".chars()).take(3).collect();
        Ok(whole * 1_000 + ms.parse::<u64>().map_err(|_| bad())?)
    }
}

fn wrong(file: &Path, line: u64, error: &csv::Error) -> TraceError {
    let line = error.position().map_or(line, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::Io(error) => trouble(file, line, error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            TraceError::Uneven { file: file.to_owned(), line, found: *len, header: *expected_len }
        }
        csv::ErrorKind::Utf8 { .. } => TraceError::Damaged {
            file: file.to_owned(),
            line,
            what: "bytes that are no UTF-8 text".to_owned(),
        },
        _ => TraceError::Damaged { file: file.to_owned(), line, what: error.to_string() },
    }
}
