//! Files that are replaced as a whole, whatever happens meanwhile.
//!
//! In: a folder, a name, bytes. Out: the old file or the new one, never a mixture. Small files that
//! must be replaced on a full disk as well have a spare. What stands in them is `dir`'s matter.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Puts `bytes` under `dir/name` so that a reader, and a crash or power loss at any point, sees
/// the old file or the new one, whole. When this returns, it is the new one.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    write_temp(dir, name, bytes, Durability::Power)
}

/// The same for a file of at most [`SPARE_BYTES`] that has to be replaced also on a full disk.
pub fn write_durably_with_spare(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    write_with_spare(dir, name, bytes, Durability::Power)
}

/// Size of a file that has a spare, bytes; what is shorter is padded with spaces, which JSON allows.
pub const SPARE_BYTES: usize = 64;

/// Beside the file lies a spare of the same size. Where no new file can be written, the spare is
/// written over and the two change places, which takes no room on the disk; a reader sees the old
/// bytes or the new ones as ever.
pub(crate) fn write_with_spare(
    dir: &Path,
    name: &str,
    bytes: &[u8],
    survives: Durability,
) -> io::Result<()> {
    assert!(bytes.len() <= SPARE_BYTES, "{name} is {} bytes, its spare fewer", bytes.len());
    let mut padded = [b' '; SPARE_BYTES];
    padded[..bytes.len()].copy_from_slice(bytes);
    let spare = dir.join(format!("{name}.spare"));
    match write_temp(dir, name, &padded, survives) {
        Ok(()) => {
            if fs::metadata(&spare).map_or(true, |meta| meta.len() != SPARE_BYTES as u64) {
                // Best effort: it is made in good times, and missed only in bad ones. Not zeros,
                // so that its block is really there.
                let _ = fs::write(&spare, [b' '; SPARE_BYTES]);
            }
            Ok(())
        }
        // The first error is the one to tell.
        Err(error) => change_places(dir, name, &spare, &padded, survives).map_err(|_| error),
    }
}

fn change_places(
    dir: &Path,
    name: &str,
    spare: &Path,
    padded: &[u8; SPARE_BYTES],
    survives: Durability,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(spare)?;
    if file.metadata()?.len() != SPARE_BYTES as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    file.write_all_at(padded, 0)?;
    if survives == Durability::Power {
        file.sync_all()?;
    }
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, spare, here, dir.join(name), exchange)?;
    if survives == Durability::Power {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// What a finished write survives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    Process,
    Power,
}

fn write_temp(dir: &Path, name: &str, bytes: &[u8], survives: Durability) -> io::Result<()> {
    let temp = dir.join(format!(".{name}.{}", std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.write_all(bytes)?;
        if survives == Durability::Power {
            file.sync_all()?;
        }
        fs::rename(&temp, dir.join(name))?;
        if survives == Durability::Power {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    let written = write();
    if written.is_err() {
        // Best effort: a left-over temporary file is overwritten by the next try.
        let _ = fs::remove_file(&temp);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TaskDir, TaskLease, TaskSpec};

    fn task_dir(at: &Path) -> TaskDir {
        let spec = TaskSpec::new("a1", vec!["true".into()], "/");
        TaskDir::create(at.join("t"), &spec).unwrap()
    }

    #[test]
    fn a_lease_is_renewed_where_no_new_file_can_be_written() {
        let temp = tempfile::tempdir().unwrap();
        let dir = task_dir(temp.path());
        let lease = |ms| TaskLease { deadline_boottime_ms: Some(ms) };
        dir.write_lease(lease(u64::MAX)).unwrap();
        // Stands where the temporary file would be made.
        let obstacle = dir.path().join(format!(".lease.{}", std::process::id()));
        fs::create_dir(&obstacle).unwrap();
        for ms in [1_000, 999, 123_456_789] {
            dir.write_lease(lease(ms)).unwrap();
            assert_eq!(dir.read_lease().unwrap(), lease(ms));
        }
        fs::remove_file(dir.file("lease.spare")).unwrap();
        let error = dir.write_lease(lease(5)).unwrap_err();
        assert!(error.hint().contains("free space"), "{error}");
        assert_eq!(dir.read_lease().unwrap(), lease(123_456_789), "the old one stands");
        fs::remove_dir(&obstacle).unwrap();
        dir.write_lease(lease(6)).unwrap();
        assert!(dir.file("lease.spare").is_file(), "there is one again for the next time");
    }

    /// A real disk, and really full.
    #[test]
    fn a_lease_is_renewed_on_a_full_disk() {
        struct Mounted(std::path::PathBuf);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let _ = std::process::Command::new("umount").arg(&self.0).status();
            }
        }
        let temp = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tessera-test"]).arg(temp.path());
        let mounted = mount.stderr(std::process::Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("no file system can be mounted here; nothing was checked");
            return;
        }
        let mounted = Mounted(temp.path().to_owned());
        let dir = task_dir(&mounted.0);
        let lease = |ms| TaskLease { deadline_boottime_ms: Some(ms) };
        dir.write_lease(lease(1)).unwrap();
        let mut filler = File::create(mounted.0.join("filler")).unwrap();
        while filler.write_all(&[1; 512]).is_ok() {}
        let full = write_durably(dir.path(), "other", b"x").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        dir.write_lease(lease(2)).unwrap();
        dir.write_lease(lease(3)).unwrap();
        assert_eq!(dir.read_lease().unwrap(), lease(3));
    }
}
