//! The job's output, from the pipe to `out.log`.
//!
//! In: bytes. Out: files that together never exceed the cap, newest kept, and a line wherever
//! bytes are missing. A full or broken disk costs output, never the job: its pipe is always read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use tessera_shim::TaskDir;

/// As much as a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;
/// No file is smaller than this at rotation, so that a marker line always fits.
const FILE_BYTES_MIN: u64 = 4 << 10;
/// More rotated files than this help nobody.
const FILES_MAX: u32 = 100;

pub struct TaskLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    file_bytes_max: u64,
    files: u32,
    /// Bytes gone with the oldest files.
    rotated_away: u64,
    /// Bytes that could not be written since the last marker, and why.
    unwritten: Option<(u64, String)>,
    buffer: Vec<u8>,
}

impl TaskLog {
    pub fn open(dir: &TaskDir, cap_bytes: u64, files: u32) -> io::Result<Self> {
        let files = files.clamp(1, FILES_MAX);
        let path = dir.log_path();
        let file = open_append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            file: Some(file),
            size,
            file_bytes_max: (cap_bytes / u64::from(files)).max(FILE_BYTES_MIN),
            files,
            rotated_away: 0,
            unwritten: None,
            buffer: vec![0; CHUNK_BYTES],
        })
    }

    /// Takes what one read gives. Closes the pipe when the job has closed its end.
    pub fn pump(&mut self, pipe: &mut Option<OwnedFd>) {
        self.read_once(pipe);
    }

    /// Takes all that is left. A writer that still holds the pipe is not waited for.
    pub fn drain(&mut self, pipe: &mut Option<OwnedFd>) {
        while self.read_once(pipe) {}
        *pipe = None;
    }

    /// True if there may be more.
    fn read_once(&mut self, pipe: &mut Option<OwnedFd>) -> bool {
        let Some(fd) = pipe.as_ref() else { return false };
        let mut buffer = std::mem::take(&mut self.buffer);
        let more = match rustix::io::read(fd, &mut buffer[..]) {
            Ok(0) => {
                *pipe = None;
                false
            }
            Ok(read) => {
                self.write(&buffer[..read]);
                true
            }
            Err(rustix::io::Errno::INTR) => true,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(error) => {
                eprintln!("tessera-shim: the log pipe: {error}");
                *pipe = None;
                false
            }
        };
        self.buffer = buffer;
        more
    }

    /// Appends, rotating as needed, at ends of lines where there are any.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.file_bytes_max.saturating_sub(self.size))
                .unwrap_or(usize::MAX);
            if bytes.len() <= room {
                self.append(bytes);
                return;
            }
            let cut =
                bytes[..room].iter().rposition(|&byte| byte == b'\n').map_or(room, |at| at + 1);
            self.append(&bytes[..cut]);
            bytes = &bytes[cut..];
            if let Err(error) = self.rotate() {
                // Growing past the cap could fill the node's disk, so these bytes are lost.
                self.lose(bytes.len() as u64, &error);
                return;
            }
        }
    }

    /// A last word on bytes that are missing at the very end.
    pub fn finish(&mut self) {
        self.append(b"");
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some((lost, why)) = self.unwritten.take() {
            let marker =
                format!("\n[tessera-shim] {lost} bytes of output are missing here: {why}\n");
            if let Err((_, error)) = self.write_all(marker.as_bytes()) {
                self.lose(lost + bytes.len() as u64, &error);
                return;
            }
        }
        if let Err((written, error)) = self.write_all(bytes) {
            self.lose((bytes.len() - written) as u64, &error);
        }
    }

    fn lose(&mut self, bytes: u64, why: &io::Error) {
        let before = self.unwritten.take().map_or(0, |(lost, _)| lost);
        self.unwritten = Some((before + bytes, why.to_string()));
    }

    /// On failure says how many bytes did get there.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open_append(&self.path).map_err(|error| (0, error))?),
        };
        let mut written = 0;
        while written < bytes.len() {
            match file.write(&bytes[written..]) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(more) => {
                    written += more;
                    self.size += more as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let oldest = if self.files == 1 { self.path.clone() } else { self.rotated(self.files - 1) };
        let gone = fs::metadata(&oldest).map_or(0, |meta| meta.len());
        for number in (1..self.files.saturating_sub(1)).rev() {
            match fs::rename(self.rotated(number), self.rotated(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.files == 1 {
            fs::remove_file(&self.path)?;
        } else {
            fs::rename(&self.path, self.rotated(1))?;
        }
        self.file = None;
        self.size = 0;
        self.rotated_away += gone;
        self.file = Some(open_append(&self.path)?);
        if self.rotated_away > 0 {
            let marker = format!(
                "[tessera-shim] the log is limited to {} bytes: the oldest {} bytes were dropped\n",
                self.file_bytes_max * u64::from(self.files),
                self.rotated_away
            );
            self.write_all(marker.as_bytes()).map_err(|(_, error)| error)?;
        }
        Ok(())
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn open_append(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(temp: &std::path::Path, cap: u64, files: u32) -> TaskLog {
        TaskLog::open(&TaskDir::new(temp), cap, files).unwrap()
    }

    fn read(log: &TaskLog, number: u32) -> String {
        let path = if number == 0 { log.path.clone() } else { log.rotated(number) };
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn below_the_cap_bytes_are_kept_as_they_are() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 1 << 20, 2);
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        bytes.chunks(777).for_each(|chunk| log.write(chunk));
        assert_eq!(fs::read(&log.path).unwrap(), bytes);
        assert!(!log.rotated(1).exists());
    }

    #[test]
    fn rotation_keeps_the_newest_whole_lines_within_the_cap() {
        for files in [1, 2, 3, 5] {
            let temp = tempfile::tempdir().unwrap();
            let cap = 8192 * u64::from(files);
            let mut log = log(temp.path(), cap, files);
            let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}\n")).collect();
            let all = lines.concat();
            all.as_bytes().chunks(1000).for_each(|chunk| log.write(chunk));
            let kept: String = (0..files).rev().map(|number| read(&log, number)).collect();
            assert!(kept.len() as u64 <= cap, "{files} files hold {} of {cap}", kept.len());
            assert!(kept.len() as u64 > cap / 4, "{files} files hold only {}", kept.len());
            assert!(!log.rotated(files).exists(), "{files} files and no more");
            let output: String = kept
                .lines()
                .filter(|line| !line.starts_with("[tessera-shim]"))
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(
                all.ends_with(&output),
                "{files} files: what is kept is the end, without a gap"
            );
            let marker = read(&log, 0).lines().next().unwrap().to_owned();
            let dropped: usize = marker
                .split("the oldest ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            // Dropped files held marker lines too, so the figure is a little above the output's share.
            assert!(dropped >= all.len() - output.len(), "{files} files: {marker}");
        }
    }

    #[test]
    fn a_line_longer_than_a_file_is_cut() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 8192, 2);
        log.write(&vec![b'x'; 100_000]);
        assert!(read(&log, 0).len() + read(&log, 1).len() <= 8192);
    }

    #[test]
    fn lost_bytes_are_counted_and_told_when_writing_works_again() {
        let temp = tempfile::tempdir().unwrap();
        let mut log = log(temp.path(), 1 << 20, 2);
        log.write(b"before\n");
        log.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.write(b"lost\n");
        log.write(b"lost too\n");
        log.file = None; // the disk has space again
        log.write(b"after\n");
        let text = read(&log, 0);
        assert!(
            text.starts_with("before\n\n[tessera-shim] 14 bytes of output are missing here: "),
            "{text}"
        );
        assert!(text.ends_with("\nafter\n"), "{text}");
    }
}
