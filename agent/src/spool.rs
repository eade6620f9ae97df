//! Samples that have not reached the scheduler yet, on disk and bounded.
//!
//! In: records, each a sequence and bytes, in order. Out: the same, oldest first, until they are
//! acknowledged; and [`Gap`]s for sequences that are gone. Each boot of the machine has a folder of
//! its own, sent in the order of the boots. What the bytes mean and when they are sent is `telemetry`'s.
//!
//! Nothing is synced: a sequence counts within one boot, so what has to survive is a restart of
//! the agent, and that the page cache does. A crash of the machine may tear the last record or lose
//! a file's end; both are noticed and become gaps.

mod segment; // one file of records

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use segment::Segment;
use tessera_model::BootId;

/// Room for everything that waits.
pub const CAPACITY: u64 = 64 << 20;
/// A segment is closed when it is larger; the oldest one is dropped as a whole.
const SEGMENT: u64 = 1 << 20;

/// Records in one batch, however small they are.
const BATCH: usize = 1000;
/// Records kept in memory while the disk takes none; the oldest one goes.
const MEMORY: usize = 1024;

/// Sequences that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub first: u64,
    pub count: u64,
}

/// What to send next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub boot: BootId,
    pub records: Vec<(u64, Vec<u8>)>,
    pub gaps: Vec<Gap>,
    /// The last sequence that this batch accounts for.
    pub last: u64,
}

#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    capacity: u64,
    segment_size: u64,
    /// Oldest first; the last one is this boot's.
    boots: VecDeque<Boot>,
}

#[derive(Debug)]
struct Boot {
    id: BootId,
    dir: PathBuf,
    segments: VecDeque<Segment>,
    /// Later than all segments. Used from the first failure to write until it is empty again, so that a
    /// node with a full disk is still seen.
    memory: VecDeque<(u64, Vec<u8>)>,
    /// All up to here have arrived or are gone.
    acked: u64,
    /// The highest sequence that was ever put in.
    highest: u64,
}

impl Spool {
    /// Opens what earlier lives of the agent left in `dir`, or begins anew.
    pub fn open(dir: &Path, boot: &BootId, capacity: u64) -> io::Result<Self> {
        Self::with_segments(dir, boot, capacity, SEGMENT)
    }

    /// For tests: small segments.
    pub fn with_segments(
        dir: &Path,
        boot: &BootId,
        capacity: u64,
        segment_size: u64,
    ) -> io::Result<Self> {
        if boot.as_str().contains('/') {
            let why = format!("boot id {boot} has a / and cannot name a folder");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        fs::create_dir_all(dir)?;
        let mut boots = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            // `00000003-<boot id>`; whatever else lies here is not ours.
            let Some((order, id)) = name.as_deref().and_then(|name| name.split_once('-')) else {
                continue;
            };
            if let (Ok(order), Ok(id)) = (order.parse::<u64>(), BootId::parse(id)) {
                boots.push((order, Boot::open(id, path)?));
            }
        }
        boots.sort_by_key(|(order, _)| *order);
        // This boot's folder is the newest, or there is none yet.
        if boots.last().is_none_or(|(_, last)| last.id != *boot) {
            let order = boots.last().map_or(1, |(order, _)| order + 1);
            let path = dir.join(format!("{order:08}-{boot}"));
            fs::create_dir_all(&path)?;
            boots.push((order, Boot::open(boot.clone(), path)?));
        }
        let boots = boots.into_iter().map(|(_, boot)| boot).collect();
        let mut spool = Self { dir: dir.to_owned(), capacity, segment_size, boots };
        spool.drop_finished()?;
        spool.shrink()?;
        Ok(spool)
    }

    /// The number for the next sample of this boot, from 1.
    pub fn next_sequence(&self) -> u64 {
        self.boots.back().map_or(1, |boot| boot.highest + 1)
    }

    /// Puts in a record of this boot. One that is not newer than the last is refused. An error of the
    /// disk is told, and the record kept in memory.
    pub fn append(&mut self, sequence: u64, bytes: &[u8]) -> io::Result<()> {
        let size = self.segment_size;
        let Some(boot) = self.boots.back_mut() else {
            return Err(io::Error::other("spool has no boot"));
        };
        if sequence <= boot.highest {
            let why = format!("sequence {sequence} is not after {}", boot.highest);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        boot.highest = sequence;
        let written = boot.write(sequence, bytes, size);
        if written.is_err() {
            if boot.memory.len() >= MEMORY {
                boot.memory.pop_front();
            }
            boot.memory.push_back((sequence, bytes.to_vec()));
        }
        written.and_then(|()| self.shrink())
    }

    /// Records after `sent`, which is a boot and its last sequence under way, or after what was
    /// acknowledged. At most about `max_bytes`, of one boot. `None`: all is sent.
    pub fn next(
        &mut self,
        sent: Option<(&BootId, u64)>,
        max_bytes: usize,
    ) -> io::Result<Option<Batch>> {
        let start = match sent {
            // What was sent of a boot that is finished by now is no reason to skip another one.
            Some((id, _)) => self.boots.iter().position(|boot| boot.id == *id).unwrap_or(0),
            None => 0,
        };
        for boot in self.boots.iter_mut().skip(start) {
            let after = match sent {
                Some((id, last)) if boot.id == *id => last.max(boot.acked),
                _ => boot.acked,
            };
            if let Some(batch) = boot.read(after, max_bytes)? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// All of `boot` up to `sequence` need not be kept. A boot that is over and has nothing left goes.
    pub fn ack(&mut self, boot: &BootId, sequence: u64) -> io::Result<()> {
        if let Some(boot) = self.boots.iter_mut().find(|b| b.id == *boot) {
            boot.ack(sequence)?;
        }
        self.drop_finished()
    }

    /// Sequences that wait, over all boots, lost ones included.
    pub fn waiting(&self) -> u64 {
        self.boots.iter().map(|boot| boot.highest - boot.acked).sum()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.boots.iter().flat_map(|boot| &boot.segments).map(Segment::bytes).sum()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn drop_finished(&mut self) -> io::Result<()> {
        while self.boots.len() > 1 && self.boots.front().is_some_and(|b| b.acked >= b.highest) {
            if let Some(boot) = self.boots.pop_front() {
                fs::remove_dir_all(&boot.dir)?;
            }
        }
        Ok(())
    }

    /// Drops the oldest segments until the rest fits. What they held becomes a gap by being absent.
    fn shrink(&mut self) -> io::Result<()> {
        while self.bytes() > self.capacity {
            let last = self.boots.len() - 1;
            let Some((i, boot)) = self
                .boots
                .iter_mut()
                .enumerate()
                // The segment that is being written stays.
                .find(|(i, boot)| boot.segments.len() > usize::from(*i == last))
            else {
                return Ok(());
            };
            if let Some(segment) = boot.segments.pop_front() {
                // So that what is gone is known to have been there.
                write_state(&boot.dir.join(STATE), boot.acked, boot.highest)?;
                let (first, last) = (segment.first(), segment.last());
                tracing::warn!(
                    first,
                    last,
                    old_boot = i < self.boots.len() - 1,
                    "spool is full, oldest samples dropped"
                );
                segment.remove()?;
            }
        }
        Ok(())
    }
}

impl Boot {
    fn open(id: BootId, dir: PathBuf) -> io::Result<Self> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&dir)? {
            if let Some(segment) = Segment::open(&entry?.path())? {
                segments.push(segment);
            }
        }
        segments.sort_by_key(Segment::first);
        let (acked, counted) = read_state(&dir.join(STATE));
        let highest = segments.iter().map(Segment::last).max().unwrap_or(0).max(counted).max(acked);
        let memory = VecDeque::new();
        Ok(Self { id, dir, segments: segments.into(), memory, acked, highest })
    }

    fn write(&mut self, sequence: u64, bytes: &[u8], segment_size: u64) -> io::Result<()> {
        if !self.memory.is_empty() {
            return Err(io::Error::other("earlier samples wait in memory for want of disk space"));
        }
        match self.segments.back_mut() {
            Some(segment) if segment.bytes() < segment_size => segment.append(sequence, bytes),
            _ => {
                let mut segment = Segment::create(&self.dir, sequence)?;
                segment.append(sequence, bytes)?;
                self.segments.push_back(segment);
                Ok(())
            }
        }
    }

    /// The next records after `after`, and the holes before and between them.
    fn read(&mut self, after: u64, max_bytes: usize) -> io::Result<Option<Batch>> {
        if after >= self.highest {
            return Ok(None);
        }
        let mut batch =
            Batch { boot: self.id.clone(), records: Vec::new(), gaps: Vec::new(), last: after };
        let mut room = max_bytes;
        for segment in self.segments.iter_mut().filter(|segment| segment.last() > after) {
            let left = BATCH - batch.records.len();
            for (sequence, bytes) in segment.read(batch.last, room, left)? {
                batch.skip_to(sequence);
                room = room.saturating_sub(bytes.len());
                batch.records.push((sequence, bytes));
                batch.last = sequence;
            }
            if room == 0
                || batch.records.len() >= BATCH
                || (!batch.records.is_empty() && batch.last < segment.last())
            {
                return Ok(Some(batch));
            }
        }
        for (sequence, bytes) in &self.memory {
            if *sequence <= batch.last {
                continue;
            }
            if !batch.records.is_empty() && (room < bytes.len() || batch.records.len() >= BATCH) {
                return Ok(Some(batch));
            }
            batch.skip_to(*sequence);
            room = room.saturating_sub(bytes.len());
            batch.records.push((*sequence, bytes.clone()));
            batch.last = *sequence;
        }
        // Nothing is left behind the last record: the rest of what was counted is gone.
        batch.skip_to(self.highest + 1);
        batch.last = self.highest;
        Ok(Some(batch))
    }

    fn ack(&mut self, sequence: u64) -> io::Result<()> {
        let sequence = sequence.min(self.highest);
        if sequence <= self.acked {
            return Ok(());
        }
        self.acked = sequence;
        while self.memory.front().is_some_and(|(first, _)| *first <= sequence) {
            self.memory.pop_front();
        }
        // Written first: without it, sequences would be given out twice once the files are gone.
        write_state(&self.dir.join(STATE), self.acked, self.highest)?;
        while self.segments.front().is_some_and(|segment| segment.last() <= sequence) {
            if let Some(segment) = self.segments.pop_front() {
                segment.remove()?;
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Records a gap where `next` does not follow the last sequence.
    fn skip_to(&mut self, next: u64) {
        let first = self.last + 1;
        if next > first {
            self.gaps.push(Gap { first, count: next - first });
        }
    }
}

/// Acknowledged and highest sequence, with a checksum.
const STATE: &str = "state";

fn read_state(path: &Path) -> (u64, u64) {
    let parse = |bytes: Vec<u8>| {
        let (values, sum) = bytes.split_at_checked(16)?;
        let sum = u32::from_le_bytes(sum.try_into().ok()?);
        let number = |part: &[u8]| part.try_into().ok().map(u64::from_le_bytes);
        (segment::crc32(values) == sum).then_some(())?;
        Some((number(&values[..8])?, number(&values[8..])?))
    };
    // Torn or absent: the segments say what there is, and some may be sent twice.
    fs::read(path).ok().and_then(parse).unwrap_or((0, 0))
}

fn write_state(path: &Path, acked: u64, highest: u64) -> io::Result<()> {
    let mut bytes = acked.to_le_bytes().to_vec();
    bytes.extend(highest.to_le_bytes());
    bytes.extend(segment::crc32(&bytes).to_le_bytes());
    // In place and in one write of 20 bytes; the process cannot die in the middle of it.
    use std::os::unix::fs::FileExt;
    fs::File::options().create(true).truncate(false).write(true).open(path)?.write_all_at(&bytes, 0)
}

#[cfg(test)]
mod tests;
