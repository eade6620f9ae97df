//! Nodes for tests: made in a folder of their own, loaded through nvml-wrapper as real programs do.

#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::InitFlags;
use nvml_wrapper_sys::bindings::NvmlLib;
use tempfile::TempDir;
use tessera_nvml_sim::scenario::{Control, FaultSpec, Scenario};
use tessera_nvml_sim::{NodeOptions, Preset, control, create_node, find_library, journal};

/// How long a test waits for what must come; only a broken library makes it wait so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct TestNode {
    pub dir: TempDir,
}

impl TestNode {
    pub fn new(name: &str, preset: Preset) -> Self {
        Self::with(name, preset, |_| {})
    }

    /// A node whose scenario is changed before anything loads it.
    pub fn with(name: &str, preset: Preset, change: impl FnOnce(&mut Scenario)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = library();
        // GPUs of two tests must not share a UUID, or a job of one would run on both.
        static NODES: AtomicU64 = AtomicU64::new(0);
        let seed = u64::from(std::process::id()) << 20 | NODES.fetch_add(1, Relaxed);
        let options =
            NodeOptions { library: Some(library), seed, ..NodeOptions::new(name, preset) };
        create_node(dir.path(), &options).unwrap();
        let path = dir.path().join("node.toml");
        let mut scenario = Scenario::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut scenario);
        std::fs::write(&path, toml::to_string(&scenario).unwrap()).unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    pub fn nvml(&self) -> Nvml {
        self.try_nvml().unwrap()
    }

    pub fn try_nvml(&self) -> Result<Nvml, nvml_wrapper::error::NvmlError> {
        Nvml::builder().lib_path(self.library().as_os_str()).flags(InitFlags::empty()).init()
    }

    /// Adds a fault to the living node.
    pub fn inject(&self, spec: FaultSpec) {
        control::append(self.path(), &Control { load: Vec::new(), fault: vec![spec] }).unwrap();
    }

    pub fn journal(&self) -> Vec<journal::Record> {
        journal::read(self.path()).unwrap()
    }
}

/// A copy of the built library, made once: cargo may be building it anew for somebody else meanwhile.
pub fn library() -> PathBuf {
    static COPY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COPY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libtessera_nvml_sim.so");
        wait_for("the built library", || {
            std::fs::copy(find_library()?, &path).ok()?;
            // A file that is still being written cannot be loaded.
            // SAFETY: loading our own library runs no code of its own.
            unsafe { NvmlLib::new(&path) }.ok().map(drop)
        });
        (dir, path)
    });
    path.clone()
}

/// Asks until the answer is there.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
