//! Making a node directory.
//!
//! In: a folder, a preset and a name. Out: `node.toml`, `sys/` and the library, in a folder that
//! can be given to anything that loads NVML. Doing it twice changes nothing but an outdated library.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::hardware::{GpuHw, Hardware};
use crate::scenario::{MigCut, NodeSection, Preset, Scenario};
use crate::sysfs;

/// The name programs ask the loader for.
pub const LIBRARY: &str = "libnvidia-ml.so.1";
/// The name cargo builds it under.
const BUILT: &str = "libtessera_nvml_sim.so";

#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub name: String,
    pub preset: Preset,
    pub seed: u64,
    /// The NVLink domain of a tray; the same name gives the same cluster UUID.
    pub domain: Option<String>,
    pub tray: Option<u8>,
    pub driver_version: Option<String>,
    pub clock_rate: Option<f64>,
    pub mig: Vec<MigCut>,
    /// Where the built library is. `None`: [`find_library`] looks.
    pub library: Option<PathBuf>,
}

impl NodeOptions {
    pub fn new(name: &str, preset: Preset) -> Self {
        Self {
            name: name.to_owned(),
            preset,
            seed: 1,
            domain: None,
            tray: None,
            driver_version: None,
            clock_rate: None,
            mig: Vec::new(),
            library: None,
        }
    }

    fn scenario(&self) -> Scenario {
        let mut node = NodeSection::new(&self.name, self.preset, self.seed);
        node.domain.clone_from(&self.domain);
        node.tray = self.tray;
        node.driver_version.clone_from(&self.driver_version);
        node.mig.clone_from(&self.mig);
        node.clock_rate = self.clock_rate.unwrap_or(1.0);
        Scenario { node, load: Vec::new(), fault: Vec::new() }
    }
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    pub library: PathBuf,
    /// `false`: there was a `node.toml`, and it was kept.
    pub scenario_written: bool,
    /// Devices that jobs can have: GPUs, and MIG instances in the place of those that are cut.
    pub gpus: usize,
    pub uuids: Vec<String>,
}

/// The library beside this executable, or where cargo leaves it for tests; the newest there is.
pub fn find_library() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let dir = exe.parent()?;
    let mut folders = vec![dir.to_owned(), dir.join("deps")];
    if let Some(parent) =
        dir.parent().filter(|_| dir.ends_with("deps") || dir.ends_with("examples"))
    {
        folders.extend([parent.to_owned(), parent.join("deps")]);
    }
    folders
        .into_iter()
        .map(|folder| folder.join(BUILT))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
}

/// Makes `dir` a node. A `node.toml` that is there is kept, and decides.
pub fn create_node(dir: &Path, options: &NodeOptions) -> anyhow::Result<Made> {
    fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
    let path = dir.join("node.toml");
    let (scenario, scenario_written) = match fs::read_to_string(&path) {
        Ok(text) => (
            Scenario::parse(&text)
                .map_err(anyhow::Error::msg)
                .with_context(|| path.display().to_string())?,
            false,
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let scenario = options.scenario();
            let text = toml::to_string(&scenario)?;
            Scenario::parse(&text).map_err(anyhow::Error::msg)?;
            put(&path, text.as_bytes())?;
            (scenario, true)
        }
        Err(e) => return Err(e).with_context(|| format!("could not read {}", path.display())),
    };
    let hw = Hardware::of(&scenario.node);
    sysfs::write(&dir.join("sys"), &hw)
        .with_context(|| format!("could not write {}/sys", dir.display()))?;
    let built = match &options.library {
        Some(path) => path.clone(),
        None => match find_library() {
            Some(path) => path,
            None => {
                bail!("no {BUILT} beside this program; build it, or say where it is with --lib")
            }
        },
    };
    let library = dir.join(LIBRARY);
    let text = fs::read(&built).with_context(|| format!("could not read {}", built.display()))?;
    if fs::read(&library).ok().as_ref() != Some(&text) {
        put(&library, &text)?;
    }
    let of_gpu = |gpu: &GpuHw| match &gpu.mig {
        Some(cut) => cut.iter().map(|instance| instance.uuid.clone()).collect(),
        None => vec![gpu.uuid.clone()],
    };
    let uuids: Vec<String> = hw.gpus.iter().flat_map(of_gpu).collect();
    Ok(Made { library, scenario_written, gpus: uuids.len(), uuids })
}

/// Writes a file in one step. A library that is loaded somewhere keeps its old content there.
fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}.tmp", std::process::id()));
    fs::write(&temp, content)
        .and_then(|()| fs::rename(&temp, path))
        .with_context(|| format!("could not write {}", path.display()))
}
