//! What lies where in a dev cluster's folder.
//!
//! ```text
//! client.toml  tls/ …   the scheduler's own
//! topology.toml         where the nodes stand; made here, and left alone once edited
//! logs/NAME.log         what each program says
//! nodes/NAME/gpu/       the simulated node: node.toml, sys/, libnvidia-ml.so.1
//! nodes/NAME/state/     the agent's own
//! ```

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

pub struct Folder {
    pub path: PathBuf,
    /// Made by us and to be removed.
    pub temporary: bool,
    /// Held as long as we live: two clusters in one folder would end each other's jobs.
    _lock: fs::File,
}

impl Folder {
    /// The given one, kept; or a new one that nobody else can read, removed at the end.
    pub fn make(data: Option<&Path>) -> Outcome<Self> {
        let (path, temporary) = match data {
            Some(path) => (path.to_owned(), false),
            None => {
                let (pid, now) = (std::process::id(), crate::when::now().0);
                let name = format!("tessera-dev-{pid}-{now}");
                (std::env::temp_dir().join(name), true)
            }
        };
        let made = fs::DirBuilder::new().mode(0o700).recursive(!temporary).create(&path);
        made.map_err(|error| Failure::file("make the folder", &path, &error))?;
        let path = fs::canonicalize(&path)
            .map_err(|error| Failure::file("find the folder", &path, &error))?;
        let folder = Self { _lock: lock(&path)?, path, temporary };
        folder.make_inner("logs")?;
        folder.make_inner("nodes")?;
        Ok(folder)
    }

    fn make_inner(&self, name: &str) -> Outcome {
        let path = self.path.join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&path)
            .map_err(|error| Failure::file("make the folder", &path, &error))
    }

    pub fn client(&self) -> PathBuf {
        self.path.join("client.toml")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    pub fn gpu(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node).join("gpu")
    }

    pub fn state(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node).join("state")
    }

    pub fn make_state(&self, node: &str) -> Outcome {
        self.make_inner(&format!("nodes/{node}/state"))
    }

    /// Writes the map of so many nodes, unless somebody has edited the one that is there.
    pub fn write_topology(&self, nodes: u32) -> Outcome<PathBuf> {
        let path = self.path.join("topology.toml");
        let there = fs::read_to_string(&path).unwrap_or_default();
        let is_ours = there.is_empty() || (1..=64).any(|n| there == topology(n));
        if is_ours {
            fs::write(&path, topology(nodes))
                .map_err(|error| Failure::file("write", &path, &error))?;
        }
        Ok(path)
    }

    pub fn remove_if_temporary(&self) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// For as long as the file lives; the kernel gives it back when its holder dies, however it dies.
pub fn lock(folder: &Path) -> Outcome<fs::File> {
    let path = folder.join("dev.lock");
    let file = fs::File::create(&path).map_err(|error| Failure::file("write", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Failure::no_answer(
            "in_use",
            format!("another `tessera dev` runs in {}", folder.display()),
            "end that one first, or give this one another folder with --data",
        )),
        Err(fs::TryLockError::Error(error)) => Err(Failure::file("lock", &path, &error)),
    }
}

pub fn node_name(index: u32) -> String {
    format!("node{index}")
}

/// Leaves of 4 nodes, blocks of 4 leaves.
pub fn topology(nodes: u32) -> String {
    let mut out = String::from(
        "# Where the nodes of this dev cluster stand. Edit it, and start `tessera dev --data` again.\n\
         levels = [\"block\", \"leaf\"]      # widest first\n",
    );
    for leaf in 0..nodes.div_ceil(4) {
        let names: Vec<String> =
            (leaf * 4..nodes.min(leaf * 4 + 4)).map(|n| format!("\"{}\"", node_name(n))).collect();
        out.push_str(&format!(
            "\n[[leaf]]\nname = \"leaf{leaf}\"\nblock = \"block{}\"\nnodes = [{}]\n",
            leaf / 4,
            names.join(", ")
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stand_in_leaves_of_four() {
        let text = topology(6);
        let table: toml::Table = text.parse().unwrap();
        let leaves = table["leaf"].as_array().unwrap();
        assert_eq!(leaves.len(), 2);
        assert_eq!(leaves[1]["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(leaves[1]["block"].as_str(), Some("block0"));
        assert!(topology(64).contains("block3"));
    }

    #[test]
    fn a_folder_has_one_cluster_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::make(Some(dir.path())).unwrap();
        let failure = Folder::make(Some(dir.path())).err().unwrap();
        assert!(failure.message.contains("another `tessera dev` runs in"), "{}", failure.message);
        first.remove_if_temporary();
        drop(first);
        assert!(Folder::make(Some(dir.path())).is_ok(), "a given folder is kept and free again");
    }

    #[test]
    fn an_edited_map_is_left_alone_and_a_temporary_folder_goes() {
        let folder = Folder::make(None).unwrap();
        let path = folder.write_topology(4).unwrap();
        folder.write_topology(8).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), topology(8));
        fs::write(&path, "levels = [\"rack\"]\n").unwrap();
        folder.write_topology(4).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "levels = [\"rack\"]\n");
        folder.remove_if_temporary();
        assert!(!folder.path.exists());
    }
}
