//! A simulated node for a test: a directory, its library, and ways to break both.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tessera_agent::probe::nvml::{CallWatch, Driver, Fault, GpuReader, Open, ReadOptions, Which};
use tessera_agent::probe::{NodeIdentity, host};
use tessera_agent::sampler::{GpmUse, SamplerConfig};
use tessera_model::{BootId, GpuId, NodeId};
use tessera_nvml_sim::scenario::{
    Control, FaultKind, FaultSpec, GpuSel, NodeSection, Preset, Scenario,
};
use tessera_nvml_sim::{NodeOptions, control, create_node};

pub struct SimNode {
    pub dir: tempfile::TempDir,
    pub library: PathBuf,
    pub uuids: Vec<GpuId>,
}

impl SimNode {
    pub fn new(preset: Preset) -> Self {
        Self::with(preset, |_| {})
    }

    pub fn with(preset: Preset, change: impl FnOnce(&mut Scenario)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeSection::new("n0", preset, 1);
        let mut scenario = Scenario { node, load: Vec::new(), fault: Vec::new() };
        change(&mut scenario);
        fs::write(dir.path().join("node.toml"), toml::to_string(&scenario).unwrap()).unwrap();
        let made = create_node(dir.path(), &NodeOptions::new("n0", preset)).unwrap();
        let uuids = made.uuids.iter().map(|uuid| GpuId::parse(uuid).unwrap()).collect();
        Self { library: made.library, uuids, dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn sysfs(&self) -> PathBuf {
        self.dir.path().join("sys")
    }

    /// Takes functions out of the library, as an older one would lack them.
    pub fn without(self, symbols: &[&str]) -> Self {
        let mut bytes = fs::read(&self.library).unwrap();
        for symbol in symbols {
            // In the table of names: between two zero bytes. Its last letter changes, and nothing is
            // found under the old name any more.
            let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
            let places: Vec<usize> = bytes
                .windows(name.len())
                .enumerate()
                .filter(|(_, window)| *window == name)
                .map(|(at, _)| at)
                .collect();
            assert!(!places.is_empty(), "{symbol} is not in the library");
            for at in places {
                bytes[at + symbol.len()] = b'_';
            }
        }
        fs::remove_file(&self.library).unwrap();
        fs::write(&self.library, bytes).unwrap();
        self
    }

    pub fn open(&self) -> Open {
        Driver::new(Some(self.library.clone())).open(0).unwrap()
    }

    pub fn options(&self) -> ReadOptions {
        ReadOptions { gpm: true, cpu_words: host::cpu_words(&self.sysfs()) }
    }

    pub fn reader(&self, index: u32) -> GpuReader {
        self.try_reader(&self.open(), index).unwrap()
    }

    pub fn try_reader(&self, open: &Open, index: u32) -> Result<GpuReader, Fault> {
        let watch = Arc::new(CallWatch::default());
        GpuReader::open(watch, open.clone(), &Which::Index(index), self.options())
    }

    pub fn fault(&self, spec: FaultSpec) {
        let entry = Control { load: Vec::new(), fault: vec![spec] };
        control::append(self.path(), &entry).unwrap();
    }

    /// Ends every fault that was added.
    pub fn heal(&self) {
        control::clear(self.path()).unwrap();
    }

    /// Ten beats a second, a deadline of 1.5 s.
    pub fn config(&self) -> SamplerConfig {
        let identity = NodeIdentity {
            node: NodeId::parse("n0").unwrap(),
            boot: BootId::parse("boot-1").unwrap(),
            address: "127.0.0.1".into(),
            labels: BTreeMap::new(),
            neighbours: Vec::new(),
        };
        SamplerConfig {
            sysfs: self.sysfs(),
            interval: Duration::from_millis(100),
            slow_every: Duration::from_millis(300),
            call_deadline: Duration::from_millis(1_500),
            reprobe_every: Duration::from_millis(200),
            gpm: GpmUse::On,
            ..SamplerConfig::new(identity, Some(self.library.clone()))
        }
    }
}

pub fn fault(kind: FaultKind, gpu: usize) -> FaultSpec {
    FaultSpec { gpu: Some(GpuSel::One(gpu)), ..FaultSpec::new(kind) }
}
