//! Can a job's user get through to the job's script?
//!
//! In: a folder below which scripts lie. Out: the folder, made so that others pass it and list
//! nothing; or the folders on the way to it that others cannot pass. Folders that were there
//! before belong to somebody else: they are named, not changed.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Passed by others, listed by none.
const PASSED: u32 = 0o711;

/// Makes the folder and what is missing above it.
pub fn make(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make(parent)?;
    }
    match DirBuilder::new().mode(PASSED).create(dir) {
        // Said once more: the umask took its part of it.
        Ok(()) => std::fs::set_permissions(dir, Permissions::from_mode(PASSED)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The folder and those above it that others cannot pass, the highest first. One that cannot be
/// asked is not among them: nobody knows.
pub fn closed(dir: &Path) -> Vec<PathBuf> {
    let is_closed = |dir: &&Path| {
        std::fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0)
    };
    let mut closed: Vec<PathBuf> = dir.ancestors().filter(is_closed).map(Path::to_owned).collect();
    closed.reverse();
    closed
}

/// Says so where an agent that becomes other users keeps their scripts behind a closed door.
pub fn warn_if_closed(state: &Path) {
    let closed = closed(state);
    if closed.is_empty() || !rustix::process::geteuid().is_root() {
        return;
    }
    let folders: Vec<String> = closed.iter().map(|dir| dir.display().to_string()).collect();
    let folders = folders.join(" ");
    tracing::warn!(
        folders,
        hint = format!("chmod o+x {folders}"),
        "only root can pass these folders: scripts of jobs that run as another user cannot be executed below them"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_can_be_passed_and_what_was_there_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let there = temp.path().join("there");
        std::fs::create_dir(&there).unwrap();
        let mode = |dir: &Path, mode| {
            std::fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
        };
        mode(&there, 0o700);
        mode(temp.path(), 0o711);
        let state = there.join("a/b");
        make(&state).unwrap();
        make(&state).unwrap();
        for made in [&state, &there.join("a")] {
            let got = std::fs::metadata(made).unwrap().permissions().mode() & 0o777;
            assert_eq!(got, PASSED, "{}", made.display());
        }
        let below_temp = |dir: &Path| -> Vec<PathBuf> {
            closed(dir).into_iter().filter(|dir| dir.starts_with(temp.path())).collect()
        };
        assert_eq!(below_temp(&state), std::slice::from_ref(&there));
        mode(&there, 0o701);
        assert_eq!(below_temp(&state), Vec::<PathBuf>::new());
        mode(&state, 0o750);
        mode(temp.path(), 0o700);
        assert_eq!(below_temp(&state), [temp.path().to_owned(), state.clone()]);
        std::fs::write(there.join("file"), "").unwrap();
        assert!(make(&there.join("file")).is_err());
    }
}
