//! A task's directory: the only thing that agent and shim share besides the control socket.
//!
//! Files: `spec` (0600, agent), `lease` and `lease.spare` (agent), `lock` and `state` and `exit` and `ctl` (shim),
//! `out.log` with `out.log.1` ... (shim), `shim.log` (the shim's own complaints).
//! In: values. Out: files that are whole or absent, and errors for any other bytes. Meaning
//! ("is it alive?") is `live`'s work.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::durable::{Durability, write_with_spare};
pub use crate::durable::{write_durably, write_durably_with_spare};
use crate::spec::TaskSpec;

/// The largest file that is read back, bytes. A spec carries an environment, hence so much.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// One directory per task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDir {
    path: PathBuf,
}

/// Who runs the task: written once, when the job has been started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    pub shim_pid: u32,
    /// Clock ticks since boot; with pid and boot id it names a process for ever.
    pub shim_start_time: u64,
    pub boot_id: String,
    pub job_pid: u32,
    pub started_unix_ms: u64,
}

/// How the task ended: written once, after its last process is gone.
///
/// With no code, no signal and no spawn error the end is *unknown*: nobody was there to see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskExit {
    /// Exit code of the first process. 127 and 126 where the program was not found or could not
    /// be executed, as a shell has it; `spawn_error` tells these from a program's own.
    pub code: Option<i32>,
    /// The signal that ended the first process.
    pub signal: Option<i32>,
    /// The kernel's OOM killer ended at least one process in the job's cgroup.
    pub oom_killed: bool,
    /// The shim stopped the job because its lease had lapsed.
    pub lapsed: bool,
    pub ended_unix_ms: u64,
    /// `None` if the job was never started, or nobody knows when.
    pub started_unix_ms: Option<u64>,
    /// Why the job's program never ran, in words.
    pub spawn_error: Option<String>,
}

impl TaskExit {
    /// Nobody saw the end: the shim was killed or the node went down. Never a success.
    pub fn is_unknown(&self) -> bool {
        self.code.is_none() && self.signal.is_none() && self.spawn_error.is_none()
    }
}

/// Until when the task may run. Milliseconds of CLOCK_BOOTTIME, so it means nothing after a reboot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLease {
    /// `None`: no deadline. So is a lease file that is not there.
    pub deadline_boottime_ms: Option<u64>,
}

/// A file of the task could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("could not read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is {bytes} bytes, more than {FILE_BYTES_MAX}", .path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("{} is not what a shim or agent writes there: {why}", .path.display())]
    Garbage { path: PathBuf, why: String },
    #[error("could not write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not ask for the lock {}", .path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the job's processes under {} are still there after {waited_ms} ms", .path.display())]
    StillThere { path: PathBuf, waited_ms: u64 },
}

impl FileError {
    /// The next step for the person at the keyboard.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Lock { .. } => {
                "see that the agent runs as the owner of its state folder"
            }
            Self::TooLarge { .. } | Self::Garbage { .. } => {
                "the file was damaged; the task counts as lost once its processes are gone"
            }
            Self::Write { .. } => {
                "free space on the disk of the agent's state folder; nothing was lost, the write is tried again"
            }
            Self::StillThere { .. } => {
                "a process hangs in the kernel; its GPUs stay out of the pool until it is gone or the node restarts"
            }
        }
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        let kind = match &error {
            FileError::Read { source, .. }
            | FileError::Write { source, .. }
            | FileError::Lock { source, .. } => source.kind(),
            FileError::TooLarge { .. } | FileError::Garbage { .. } => io::ErrorKind::InvalidData,
            FileError::StillThere { .. } => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

impl TaskDir {
    /// Names a directory; touches nothing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { path: std::path::absolute(&path).unwrap_or(path) }
    }

    /// Makes the directory (0700) and writes the spec, both durably. Its parent must exist. A
    /// directory that holds a spec already is refused: one directory is one task.
    pub fn create(path: impl Into<PathBuf>, spec: &TaskSpec) -> Result<Self, FileError> {
        let dir = Self::new(path);
        let failed = |source| FileError::Write { path: dir.path.clone(), source };
        match DirBuilder::new().mode(0o700).create(&dir.path) {
            Ok(()) => {
                if let Some(parent) = dir.path.parent() {
                    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
                }
            }
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && !dir.file("spec").exists() => {}
            Err(error) => return Err(failed(error)),
        }
        dir.write_json("spec", spec)?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the job's output is: the newest part, and the rotated ones as `out.log.1`, ...
    pub fn log_path(&self) -> PathBuf {
        self.file("out.log")
    }

    pub fn read_spec(&self) -> Result<TaskSpec, FileError> {
        self.read_json("spec")?.ok_or_else(|| FileError::Read {
            path: self.file("spec"),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    pub fn read_state(&self) -> Result<Option<TaskState>, FileError> {
        self.read_json("state")
    }

    pub fn read_exit(&self) -> Result<Option<TaskExit>, FileError> {
        self.read_json("exit")
    }

    pub fn read_lease(&self) -> Result<TaskLease, FileError> {
        Ok(self.read_json("lease")?.unwrap_or_default())
    }

    pub fn write_state(&self, state: &TaskState) -> Result<(), FileError> {
        self.write_json("state", state)
    }

    pub fn write_exit(&self, exit: &TaskExit) -> Result<(), FileError> {
        self.write_json("exit", exit)
    }

    /// Replaces the lease in one step, without an fsync: a lease counts on the boot clock, so
    /// none outlives a power loss, and one is written per task and heartbeat. The shim looks at it
    /// when the old deadline passes; [`crate::Op::Lease`] makes it look at once. A full disk does
    /// not keep it from being renewed: see [`write_with_spare`].
    pub fn write_lease(&self, lease: TaskLease) -> Result<(), FileError> {
        let failed = |source| FileError::Write { path: self.file("lease"), source };
        let bytes = serde_json::to_vec(&lease).map_err(|error| failed(error.into()))?;
        write_with_spare(&self.path, "lease", &bytes, Durability::Process).map_err(failed)
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), FileError> {
        let failed = |source| FileError::Write { path: self.file(name), source };
        let bytes = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
        write_durably(&self.path, name, &bytes).map_err(failed)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let path = self.file(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::Read { path, source }),
        };
        let mut bytes = Vec::new();
        if let Err(source) = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes) {
            return Err(FileError::Read { path, source });
        }
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(FileError::TooLarge { path, bytes: bytes.len() as u64 });
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(FileError::Garbage { path, why: error.to_string() }),
        }
    }

    /// Takes the task's lock, or says `None` if another process has it.
    ///
    /// It is an open-file-description lock, which unlike `flock(2)` can be *asked about* without
    /// being taken: an agent that asks never gets in the way of a shim that starts.
    pub fn try_lock(&self) -> Result<Option<TaskLock>, FileError> {
        let path = self.file("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let locked =
            file.and_then(|file| lock_file(&file).map(|got| got.then_some(TaskLock { file })));
        locked.map_err(|source| FileError::Lock { path, source })
    }

    /// Whether some process holds the lock.
    pub fn is_locked(&self) -> Result<bool, FileError> {
        let path = self.file("lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(FileError::Lock { path, source }),
        };
        let mut query = whole_file_lock();
        // SAFETY: the descriptor is open and `query` is a valid flock struct that the kernel fills.
        let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut query) };
        if rc != 0 {
            return Err(FileError::Lock { path, source: io::Error::last_os_error() });
        }
        Ok(i32::from(query.l_type) != libc::F_UNLCK)
    }
}

/// The task's lock. It is free when the last copy of this descriptor is closed, so when its holder
/// dies, whatever the cause.
#[derive(Debug)]
pub struct TaskLock {
    file: File,
}

impl TaskLock {
    /// Takes the lock on a descriptor of the lock file that was handed over. A lock taken by the
    /// agent on the same open file counts as ours.
    pub fn adopt(file: File) -> io::Result<Option<Self>> {
        Ok(lock_file(&file)?.then_some(Self { file }))
    }
}

impl AsRawFd for TaskLock {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

impl From<TaskLock> for OwnedFd {
    fn from(lock: TaskLock) -> Self {
        lock.file.into()
    }
}

fn lock_file(file: &File) -> io::Result<bool> {
    let lock = whole_file_lock();
    // SAFETY: the descriptor is open and `lock` is a valid flock struct.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        error => Err(error),
    }
}

fn whole_file_lock() -> libc::flock {
    // SAFETY: flock is a plain C struct for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn task_dir(at: &Path) -> TaskDir {
        let spec = TaskSpec::new("a1", vec!["true".into()], "/");
        TaskDir::create(at.join("t"), &spec).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = task_dir(temp.path());
        assert_eq!(dir.read_spec().unwrap().argv, ["true"]);
        assert_eq!(dir.read_lease().unwrap(), TaskLease::default());
        let lease = TaskLease { deadline_boottime_ms: Some(7) };
        dir.write_lease(lease).unwrap();
        assert_eq!(dir.read_lease().unwrap(), lease);
        let exit = TaskExit { code: Some(3), ..TaskExit::default() };
        dir.write_exit(&exit).unwrap();
        assert_eq!(dir.read_exit().unwrap(), Some(exit));
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "no temporary file stays behind: {names:?}");
    }

    #[test]
    fn a_second_task_does_not_get_the_same_directory() {
        let temp = tempfile::tempdir().unwrap();
        let dir = task_dir(temp.path());
        let error = TaskDir::create(dir.path(), &TaskSpec::new("a2", vec![], "/")).unwrap_err();
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(dir.read_spec().unwrap().attempt, "a1");
    }

    #[test]
    fn a_lock_is_seen_without_being_touched() {
        let temp = tempfile::tempdir().unwrap();
        let dir = task_dir(temp.path());
        assert!(!dir.is_locked().unwrap(), "no lock file yet");
        let lock = dir.try_lock().unwrap().expect("free");
        assert!(dir.is_locked().unwrap());
        assert!(dir.try_lock().unwrap().is_none());
        drop(lock);
        assert!(!dir.is_locked().unwrap());
    }

    /// Any bytes in any file are an error or a value, never a panic.
    #[test]
    fn torn_and_foreign_bytes_are_errors() {
        let temp = tempfile::tempdir().unwrap();
        let dir = task_dir(temp.path());
        let whole = fs::read(dir.file("spec")).unwrap();
        let deep = vec![b'['; 200_000];
        let mut cases: Vec<Vec<u8>> = (0..whole.len()).map(|cut| whole[..cut].to_vec()).collect();
        cases.extend([
            b"null".to_vec(),
            b"{}".to_vec(),
            vec![0; 4096],
            vec![0xff; 64],
            deep,
            b"{\"code\":1e99}".to_vec(),
        ]);
        for bytes in cases {
            for name in ["spec", "state", "exit"] {
                fs::write(dir.file(name), &bytes).unwrap();
            }
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            assert!(matches!(dir.read_spec(), Err(FileError::Garbage { .. })), "spec: {shown}");
            assert!(matches!(dir.read_state(), Err(FileError::Garbage { .. })), "state: {shown}");
            assert!(matches!(dir.read_exit(), Err(FileError::Garbage { .. })), "exit: {shown}");
        }
        fs::write(dir.file("exit"), vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(dir.read_exit(), Err(FileError::TooLarge { .. })));
    }
}
