//! Pieces of a task's output.
//!
//! In: attempt, rank, an offset into all that the task ever wrote. Out: bytes from there on, whether
//! they are the last ones, or why there are none. The shim keeps the newest output in `out.log` and
//! up to a cap in `out.log.1`, `out.log.2`, ...; once older parts are dropped, the first line of
//! `out.log` says how many bytes went with them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use tessera_model::AttemptId;
use tessera_shim::TaskDir;

use super::adopt::rank_dir;
use super::{Shared, blocking};

/// The largest piece, bytes.
pub const PIECE_BYTES_MAX: u32 = 256 << 10;
/// How long an answer is held back where there is nothing new yet.
const HOLD: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// As many files as a shim keeps at most.
const FILES_MAX: u32 = 100;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogAnswer {
    /// Where `data` begins. It is the offset asked for.
    pub offset: u64,
    pub data: Vec<u8>,
    /// The task has ended and nothing follows.
    pub end: bool,
    /// Empty when all is well.
    pub error: String,
}

pub(super) async fn answer(
    shared: &Arc<Shared>,
    attempt: AttemptId,
    rank: u32,
    offset: u64,
    max_bytes: u32,
) -> LogAnswer {
    // 0 leaves it to us.
    let max_bytes = if max_bytes == 0 { PIECE_BYTES_MAX } else { max_bytes.min(PIECE_BYTES_MAX) };
    let deadline = Instant::now() + HOLD;
    loop {
        let shared = Arc::clone(shared);
        let piece = blocking(move || {
            let dirs = [shared.attempt_dir(attempt), shared.done.dir(attempt)];
            // It may be moved from one to the other between two looks.
            for dir in dirs.iter().chain(&dirs) {
                let task = TaskDir::new(rank_dir(dir, rank));
                if task.path().is_dir() {
                    return read_piece(&task, offset, max_bytes);
                }
            }
            let known = shared.book.status(attempt).is_some_and(|s| s.ranks.contains(&rank));
            if known {
                // Prepared, or about to start: nothing is written yet.
                return Ok(LogAnswer { offset, ..LogAnswer::default() });
            }
            Err(format!(
                "node {} has no output of rank {rank} of attempt {attempt}: it never ran here, or its output was cleared away since",
                shared.settings.node
            ))
        })
        .await;
        match piece {
            Err(error) => return LogAnswer { offset, error, ..LogAnswer::default() },
            Ok(piece) if piece.data.is_empty() && !piece.end && Instant::now() < deadline => {
                sleep(LOOK_AGAIN).await;
            }
            Ok(piece) => return piece,
        }
    }
}

fn read_piece(task: &TaskDir, offset: u64, max_bytes: u32) -> Result<LogAnswer, String> {
    // Asked before the bytes are read: what is written after the end is not missed then.
    let ended = matches!(task.read_exit(), Ok(Some(_)));
    let failed =
        |error: io::Error| format!("could not read {}: {error}", task.log_path().display());
    let output = Output::open(&task.log_path()).map_err(failed)?;
    let Some(output) = output else {
        // It ended without a word, or its folder was moved away between our two looks.
        let end = ended && offset == 0 && task.path().is_dir();
        return Ok(LogAnswer { offset, end, ..LogAnswer::default() });
    };
    if offset < output.first {
        return Err(format!(
            "the first {first} bytes of this output were dropped, since it is longer than what is kept; it can be read from offset {first} on",
            first = output.first
        ));
    }
    let end = output.end();
    if offset > end {
        return Err(format!("offset {offset} is beyond the {end} bytes that were written"));
    }
    let data = output.read(offset, max_bytes as usize).map_err(failed)?;
    let end = ended && offset + data.len() as u64 == end;
    Ok(LogAnswer { offset, data, end, error: String::new() })
}

/// All files of one task's output, held open together.
struct Output {
    /// Offset of the first byte that is still there.
    first: u64,
    /// Oldest first, with their lengths.
    files: Vec<(File, u64)>,
}

impl Output {
    /// `None` where nothing was written yet.
    fn open(newest: &Path) -> io::Result<Option<Self>> {
        // The shim may rotate while we open one after the other; then it is done again.
        for _ in 0..8 {
            let Some(head) = open_if_there(newest)? else {
                if rotated(newest, 1).exists() {
                    continue; // in the midst of a rotation
                }
                return Ok(None);
            };
            let mut files = Vec::new();
            for number in 1..FILES_MAX {
                let Some(file) = open_if_there(&rotated(newest, number))? else { break };
                files.push(file);
            }
            let dropped = dropped_bytes(&head)?;
            let now = std::fs::metadata(newest).map(|meta| meta.ino()).unwrap_or(0);
            if now != head.metadata()?.ino() {
                continue;
            }
            files.reverse();
            files.push(head);
            let files = files
                .into_iter()
                .map(|file| file.metadata().map(|meta| (file, meta.len())))
                .collect::<io::Result<Vec<_>>>()?;
            return Ok(Some(Self { first: dropped, files }));
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "it is rotated faster than it can be read; try again",
        ))
    }

    fn end(&self) -> u64 {
        self.first + self.files.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    fn read(&self, offset: u64, max_bytes: usize) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        let mut begins = self.first;
        for (file, bytes) in &self.files {
            let ends = begins + bytes;
            let at = offset + data.len() as u64;
            if at < ends && data.len() < max_bytes {
                let room = usize::try_from(ends - at).unwrap_or(usize::MAX);
                let before = data.len();
                data.resize(before + room.min(max_bytes - before), 0);
                file.read_exact_at(&mut data[before..], at - begins)?;
            }
            begins = ends;
        }
        Ok(data)
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn rotated(newest: &Path, number: u32) -> std::path::PathBuf {
    let mut name = newest.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// What the shim's first line says: `... the oldest 4711 bytes were dropped`. 0 without such a line.
fn dropped_bytes(newest: &File) -> io::Result<u64> {
    let mut start = [0u8; 160];
    let read = newest.read_at(&mut start, 0)?;
    let line = start[..read].split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let dropped = line.strip_prefix("[tessera-shim] ").and_then(|rest| {
        rest.split_once("the oldest ")?.1.strip_suffix(" bytes were dropped")?.parse().ok()
    });
    Ok(dropped.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(files: &[(&str, &str)]) -> (tempfile::TempDir, TaskDir) {
        let temp = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(temp.path().join(name), text).unwrap();
        }
        let dir = TaskDir::new(temp.path());
        (temp, dir)
    }

    fn piece(dir: &TaskDir, offset: u64, max: u32) -> (String, bool) {
        let piece = read_piece(dir, offset, max).unwrap();
        assert_eq!(piece.offset, offset);
        (String::from_utf8(piece.data).unwrap(), piece.end)
    }

    #[test]
    fn offsets_run_through_all_files() {
        let (_temp, dir) = task(&[("out.log.2", "aaaa"), ("out.log.1", "bbb"), ("out.log", "cc")]);
        assert_eq!(piece(&dir, 0, 100), ("aaaabbbcc".into(), false));
        assert_eq!(piece(&dir, 2, 3), ("aab".into(), false));
        assert_eq!(piece(&dir, 7, 100), ("cc".into(), false));
        assert_eq!(piece(&dir, 9, 100), (String::new(), false));
        std::fs::write(
            dir.file("exit"),
            br#"{"code":0,"oom_killed":false,"lapsed":false,"ended_unix_ms":1}"#,
        )
        .unwrap();
        assert_eq!(piece(&dir, 8, 100), ("c".into(), true));
        assert_eq!(piece(&dir, 0, 4), ("aaaa".into(), false), "not the last piece");
        assert_eq!(piece(&dir, 9, 4), (String::new(), true));
        assert!(read_piece(&dir, 10, 4).unwrap_err().contains("beyond the 9 bytes"));
    }

    #[test]
    fn dropped_bytes_keep_their_offsets_and_are_an_error_with_a_way_out() {
        let marker =
            "[tessera-shim] the log is limited to 8192 bytes: the oldest 5000 bytes were dropped\n";
        let (_temp, dir) = task(&[("out.log.1", "old\n"), ("out.log", &format!("{marker}new\n"))]);
        assert_eq!(piece(&dir, 5000, 4), ("old\n".into(), false));
        assert_eq!(piece(&dir, 5004 + marker.len() as u64, 9), ("new\n".into(), false));
        let error = read_piece(&dir, 4999, 9).unwrap_err();
        assert!(error.contains("from offset 5000 on"), "{error}");
    }

    #[test]
    fn no_output_is_no_error() {
        let (_temp, dir) = task(&[]);
        assert_eq!(piece(&dir, 0, 9), (String::new(), false));
    }
}
