//! Where the programs are: in the folder of the running executable or above it, where cargo builds.

use std::path::{Path, PathBuf};

/// A folder with all five programs and the simulated library.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

const PROGRAMS: [&str; 5] =
    ["tessera", "tessera-scheduler", "tessera-agent", "tessera-shim", "tessera-nvml-sim"];
const LIBRARY: &str = "libtessera_nvml_sim.so";

impl Binaries {
    /// Beside this executable, or up to two folders above (`target/debug/deps/e2e-…`).
    pub fn find() -> Result<Self, String> {
        let exe = std::env::current_exe().map_err(|e| format!("who are we? {e}"))?;
        let folders: Vec<&Path> = exe.ancestors().skip(1).take(3).collect();
        let complete = |folder: &&&Path| missing(folder).is_empty();
        if let Some(folder) = folders.iter().find(complete) {
            return Ok(Self { folder: folder.to_path_buf() });
        }
        // The folder that has most of them is the one that was meant.
        let meant = folders.iter().min_by_key(|f| missing(f).len()).copied();
        let meant = meant.unwrap_or(Path::new("."));
        let release = if meant.ends_with("release") { " --release" } else { "" };
        Err(format!(
            "{} is without {}: run `cargo build --workspace --bins --lib{release}` first",
            meant.display(),
            missing(meant).join(", ")
        ))
    }

    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }
}

fn missing(folder: &Path) -> Vec<&'static str> {
    let all = PROGRAMS.into_iter().chain([LIBRARY]);
    all.filter(|name| !folder.join(name).is_file()).collect()
}
