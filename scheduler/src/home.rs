//! The data folder: one scheduler in it at a time, and the file with which its admin comes in.
//!
//! In: a path. Out: a lock for as long as we live, `client.toml` with the server's address, its CA
//! and a token. Journal and certificates in the same folder have rooms of their own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use crate::durable::{self, Readers};
use crate::tokens::{self, Secret, Shown};

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("another scheduler (pid {pid}) uses the data folder {}", folder.display())]
    InUse { folder: PathBuf, pid: String },
    #[error("cannot read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
}

impl HomeError {
    pub fn hint(&self) -> String {
        match self {
            Self::InUse { .. } => {
                "stop that one first, or give this one another folder with --data".into()
            }
            Self::File { path, .. } => {
                format!("see who owns {} and whether its disk is full", path.display())
            }
        }
    }
}

/// The data folder, locked. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    _lock: File,
}

impl Home {
    pub fn open(folder: &Path) -> Result<Self, HomeError> {
        let wrong = |path: &Path| {
            let path = path.to_owned();
            move |source| HomeError::File { path, source }
        };
        durable::private_folder(folder).map_err(wrong(folder))?;
        let path = folder.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(wrong(&path))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(wrong(&path)(error.into()));
            }
            let mut pid = String::new();
            // Who holds it is a courtesy; that it is held is the point.
            let _ = lock.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(HomeError::InUse { folder: folder.to_owned(), pid });
        }
        let write_pid = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(wrong(&path))?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn tls(&self) -> PathBuf {
        self.folder.join("tls")
    }

    fn client_file(&self) -> PathBuf {
        self.folder.join("client.toml")
    }

    /// The token in `client.toml`; `None` when there is no such file or no token of ours in it.
    pub fn kept_token(&self) -> Option<(Shown, Secret)> {
        #[derive(Deserialize)]
        struct ClientFile {
            token: String,
        }
        let text = fs::read_to_string(self.client_file()).ok()?;
        let token = toml::from_str::<ClientFile>(&text).ok()?.token;
        Some((tokens::read(&token)?, Secret::known(token)))
    }

    /// Writes `client.toml`, with which the command line finds and trusts this scheduler.
    pub fn write_client(&self, url: &str, ca_pem: &str, token: &Secret) -> Result<(), HomeError> {
        let path = self.client_file();
        let text = format!(
            "# Settings of the `tessera` command for this scheduler; whoever reads the token is its\n\
             # admin. Written at each start. Without this file the next start makes a new token.\n\
             server = \"{url}\"\ntoken = \"{}\"\nca = \"\"\"\n{}\n\"\"\"\n",
            token.reveal(),
            ca_pem.trim()
        );
        durable::write(&path, text.as_bytes(), Readers::Owner)
            .map_err(|source| HomeError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_scheduler_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        let first = Home::open(&folder).unwrap();
        let error = Home::open(&folder).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Home::open(&folder).unwrap();
    }

    #[test]
    fn the_client_file_keeps_its_token_and_its_secrecy() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert_eq!(home.kept_token(), None);
        let minted = tokens::mint().unwrap();
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        home.write_client("https://127.0.0.1:7070", pem, &minted.token).unwrap();
        let (shown, token) = home.kept_token().unwrap();
        assert_eq!((shown.id, shown.hash), (minted.id, minted.hash));
        assert_eq!(token, minted.token);
        let path = dir.path().join("client.toml");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let table: toml::Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(table["ca"].as_str().unwrap(), pem);
        fs::write(&path, "server = 3").unwrap();
        assert_eq!(home.kept_token(), None);
    }
}
