//! One file of records: `[length u32][sequence u64][checksum u32][bytes]`, little-endian.
//!
//! In: records in rising order. Out: the same. Reading stops at the first record that is torn or whose
//! checksum is wrong, and the file is cut there when it is opened, so that what comes later follows on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const HEAD: usize = 16;
/// No sample is nearly as large; a length above it is rubbish.
const RECORD_MAX: usize = 4 << 20;

#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    first: u64,
    last: u64,
    bytes: u64,
    /// Where reading went on last time: the offset after a sequence. Readers go forward.
    mark: (u64, u64),
}

impl Segment {
    pub fn create(dir: &Path, first: u64) -> io::Result<Self> {
        let path = dir.join(format!("{first:020}.samples"));
        let file =
            File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        Ok(Self { path, file, first, last: first - 1, bytes: 0, mark: (0, 0) })
    }

    /// `None` where the file is no segment. One without a whole record is removed.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(first) = name.strip_suffix(".samples").and_then(|n| n.parse::<u64>().ok()) else {
            return Ok(None);
        };
        let file = File::options().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let mut segment =
            Self { path: path.to_owned(), file, first, last: 0, bytes: length, mark: (0, 0) };
        let mut offset = 0;
        while let Some((sequence, _, next)) = segment.record(offset)? {
            segment.last = sequence;
            offset = next;
        }
        if offset == 0 {
            fs::remove_file(path)?;
            return Ok(None);
        }
        if offset < length {
            tracing::warn!(path = %path.display(), bytes = length - offset, "torn end of spool cut off");
            segment.file.set_len(offset)?;
            segment.bytes = offset;
        }
        Ok(Some(segment))
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn append(&mut self, sequence: u64, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= RECORD_MAX);
        let length = length.ok_or_else(|| io::Error::other("a sample is larger than 4 MiB"))?;
        let mut record = Vec::with_capacity(HEAD + bytes.len());
        record.extend(length.to_le_bytes());
        record.extend(sequence.to_le_bytes());
        record.extend(checksum(sequence, bytes).to_le_bytes());
        record.extend(bytes);
        // A write that failed half-way (a full disk) is written over by the next one.
        self.file.write_all_at(&record, self.bytes)?;
        self.bytes += u64::try_from(record.len()).unwrap_or(0);
        self.last = sequence;
        Ok(())
    }

    /// Records after a sequence, at least one if there is one, then while there is room, and `most`.
    pub fn read(
        &mut self,
        after: u64,
        room: usize,
        most: usize,
    ) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let mut records: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut used = 0;
        let mut offset = if self.mark.0 <= after { self.mark.1 } else { 0 };
        while let Some((sequence, bytes, next)) = self.record(offset)? {
            if sequence > after {
                if !records.is_empty() && (used + bytes.len() > room || records.len() >= most) {
                    break;
                }
                used += bytes.len();
                records.push((sequence, bytes));
            }
            offset = next;
            self.mark = (sequence, offset);
        }
        Ok(records)
    }

    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }

    /// The record at an offset and where the next one begins. `None` at the end or at rubbish.
    fn record(&self, offset: u64) -> io::Result<Option<(u64, Vec<u8>, u64)>> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        if left < HEAD {
            return Ok(None);
        }
        let mut head = [0_u8; HEAD];
        self.file.read_exact_at(&mut head, offset)?;
        let [a, b, c, d, s @ .., e, f, g, h] = head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let sequence = u64::from_le_bytes(s);
        let sum = u32::from_le_bytes([e, f, g, h]);
        if length > RECORD_MAX || length > left - HEAD {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset + HEAD as u64)?;
        if checksum(sequence, &bytes) != sum {
            return Ok(None);
        }
        Ok(Some((sequence, bytes, offset + (HEAD + length) as u64)))
    }
}

fn checksum(sequence: u64, bytes: &[u8]) -> u32 {
    !extend(extend(!0, &sequence.to_le_bytes()), bytes)
}

/// CRC-32 as in zlib.
pub fn crc32(bytes: &[u8]) -> u32 {
    !extend(!0, bytes)
}

fn extend(sum: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut value = n as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    bytes.iter().fold(sum, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_zlibs() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
