//! The scenario: what `node.toml` and `control.toml` may say.
//!
//! In: TOML text. Out: checked values, or an error that names the line or the fault. What a fault
//! does is `fault`'s subject; what a load looks like is `load`'s.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::load::Shape;

/// The machines we can pretend to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// 8 H100 SXM, 18 NVLinks each to NVSwitch, 8 ConnectX-7 at 400 Gb/s, 224 CPUs, 2 TiB.
    DgxH100,
    /// 8 A100 SXM4, 12 NVLinks each, 8 ConnectX-6 at 200 Gb/s, 256 CPUs, 1 TiB.
    HgxA100,
    /// One tray of an NVL72 rack: 4 GB200 GPUs, 4 ConnectX-7, 144 CPUs, 960 GiB.
    Gb200Nvl72Tray,
    /// 8 L40S on PCIe, no NVLink, 2 RoCE NICs at 200 Gb/s, 128 CPUs, 512 GiB.
    L40sPcie,
    /// No GPU: NVML says the driver is not loaded. 128 CPUs, 512 GiB.
    CpuOnly,
}

impl Preset {
    pub const ALL: [Self; 5] =
        [Self::DgxH100, Self::HgxA100, Self::Gb200Nvl72Tray, Self::L40sPcie, Self::CpuOnly];

    pub fn name(self) -> &'static str {
        match self {
            Self::DgxH100 => "dgx-h100",
            Self::HgxA100 => "hgx-a100",
            Self::Gb200Nvl72Tray => "gb200-nvl72-tray",
            Self::L40sPcie => "l40s-pcie",
            Self::CpuOnly => "cpu-only",
        }
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            format!("no preset {s:?}; there are {}", names.join(", "))
        })
    }
}

/// A length of time as people write it: `20ms`, `1.5s`, `2m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is not a length of time; write 20ms, 1.5s, 2m or 1h");
        let split = s.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
        let (number, unit) = s.split_at(split);
        let n: f64 = number.trim().parse().map_err(|_| bad())?;
        let factor = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        Duration::try_from_secs_f64(n * factor).map(Span).map_err(|_| bad())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1000) { write!(f, "{}s", ms / 1000) } else { write!(f, "{ms}ms") }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which GPUs an entry is about. Left out: all of them, and calls that are about no GPU too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GpuSel {
    One(usize),
    Many(Vec<usize>),
    /// `"any"`: one GPU, picked by the node's seed.
    Word(String),
}

/// How `nvmlDeviceGetComputeRunningProcesses_v3` answers a null buffer with count 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NullQuery {
    /// `INSUFFICIENT_SIZE` when there are processes, as the driver does.
    #[default]
    InsufficientSize,
    /// `SUCCESS` with the count filled in, as NVIDIA's mock does.
    Success,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    pub name: String,
    pub preset: Preset,
    #[serde(default)]
    pub seed: u64,
    /// Decides the field-id scheme too: 580.82 and later number 251..273 differently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// The NVLink domain (rack) a tray belongs to: the same name gives the same cluster UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// 0..17, the place in the rack. Left out: the number at the end of the node's name, mod 18.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tray: Option<u8>,
    /// Milliseconds since 1970 that `at = "0s"` means. Left out: the first `nvmlInit` ever made on
    /// this node, kept in the file `epoch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_unix_ms: Option<i64>,
    /// How fast loads and the times of faults run; 60 makes a minute of scenario a second.
    #[serde(default = "one")]
    pub clock_rate: f64,
    /// Symbols that answer NOT_SUPPORTED although they are exported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_supported: Vec<String>,
    #[serde(default)]
    pub process_list_null_query: NullQuery,
    /// What one `nvmlDeviceGetPcieThroughput` takes.
    #[serde(default = "pcie_throughput")]
    pub pcie_throughput: Span,
    /// How often /proc may be searched for jobs; `0s` never.
    #[serde(default = "process_scan")]
    pub process_scan: Span,
    /// Several XIDs before a wait all come back with the last code, as NVML documents.
    #[serde(default = "yes")]
    pub last_xid_wins: bool,
    /// GPUs that are cut into MIG instances; the last entry for a GPU counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mig: Vec<MigCut>,
}

/// Turns MIG on for some GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigCut {
    /// Left out: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSel>,
    /// Profiles by NVIDIA's names, `1g.10gb`; none at all: MIG is on and nothing is cut.
    pub cut: Vec<String>,
}

impl FromStr for MigCut {
    type Err = String;

    /// `3g.40gb,1g.10gb` for all GPUs, `0=7g.80gb` for one.
    fn from_str(s: &str) -> Result<Self, String> {
        let (gpu, cut) = match s.split_once('=') {
            Some((gpu, cut)) => {
                let gpu = gpu.parse().map_err(|_| format!("{gpu:?} is no index of a GPU"))?;
                (Some(GpuSel::One(gpu)), cut)
            }
            None => (None, s),
        };
        let cut = cut.split(',').map(|p| p.trim().to_owned()).filter(|p| !p.is_empty());
        Ok(Self { gpu, cut: cut.collect() })
    }
}

fn one() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}
fn pcie_throughput() -> Span {
    Span(Duration::from_millis(20))
}
fn process_scan() -> Span {
    Span(Duration::from_secs(1))
}

impl NodeSection {
    pub fn new(name: &str, preset: Preset, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            preset,
            seed,
            driver_version: None,
            domain: None,
            tray: None,
            epoch_unix_ms: None,
            clock_rate: 1.0,
            not_supported: Vec::new(),
            process_list_null_query: NullQuery::default(),
            pcie_throughput: pcie_throughput(),
            process_scan: process_scan(),
            last_xid_wins: true,
            mig: Vec::new(),
        }
    }

    /// How a GPU is cut, if it is.
    pub fn cut_of(&self, gpu: usize) -> Option<&[String]> {
        let for_it = |cut: &&MigCut| match &cut.gpu {
            None => true,
            Some(GpuSel::One(one)) => *one == gpu,
            Some(GpuSel::Many(many)) => many.contains(&gpu),
            Some(GpuSel::Word(_)) => false,
        };
        self.mig.iter().rev().find(for_it).map(|cut| cut.cut.as_slice())
    }
}

/// A load put on a GPU by the scenario, with or without a process. The last entry that is active
/// for a GPU counts; `control.toml` comes after `node.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSel>,
    pub shape: Shape,
    /// 0..1: SM activity at the top of the shape.
    #[serde(default = "one")]
    pub level: f64,
    /// One turn of the shape. Left out: 1.2 s for train-step, 60 s else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    /// 0..1: share of the memory in use. Left out: 0.7 when the shape is not idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum FaultKind {
    /// An XID event with `code`.
    Xid,
    /// Any event: `bits` is the NVML event type, `code` its data.
    Event,
    /// `n` corrected ECC errors.
    EccSbe,
    /// `n` uncorrected ECC errors; XID 48.
    EccDbe,
    /// A row waits for a reset to be remapped; XID 63.
    RemapPending,
    /// A row could not be remapped; XID 64.
    RemapFailure,
    /// The GPU has fallen off the bus: every call answers GPU_IS_LOST (15); XID 79.
    Lost,
    /// All but identity calls answer RESET_REQUIRED (16); XID 95.
    ResetRequired,
    /// Matching calls do not return: for `ms`, or for as long as the fault lasts.
    Hang,
    /// Matching calls take `ms` longer.
    Slow,
    /// Clock event reasons: `bits`. The clock halves; thermal bits heat the GPU up.
    Throttle,
    /// NVLink `link` goes down; XID 74.
    NvlinkDown,
    /// `rate` NVLink errors a second, on `link` or on link 0.
    NvlinkErrors,
    /// The fabric reports degraded bandwidth and an unhealthy summary.
    FabricDegraded,
    /// The driver is unloaded for the fault's length (5 s if none is given): calls answer
    /// UNINITIALIZED until a new nvmlInit, which works once the driver is back. Counters restart.
    DriverReload,
    /// `n` processes (8) come and go all the time; their pids are of no living process.
    ProcessChurn,
    /// The GPU is no longer counted, as after a reboot that did not find it.
    Vanish,
    /// NIC `nic` loses its link.
    NicDown,
    /// `rate` symbol errors a second on NIC `nic`.
    NicErrors,
    /// `rate` congestion notifications a second on NIC `nic`.
    NicCongestion,
}

impl FaultKind {
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_else(|| format!("{self:?}"))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    pub kind: FaultKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSel>,
    /// Since the node's epoch, on the scenario's clock. Left out: at once (in `control.toml`: when
    /// the file was last written).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Span>,
    /// The same on the wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_unix_ms: Option<i64>,
    /// With the so-many-th call on the GPU (or on the node) in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_calls: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Span>,
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
    /// XID code, or the data of an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Which functions: a name with `*`, with or without the `nvmlDevice` in front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<usize>,
    /// No event and no kernel message goes with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
}

impl FaultSpec {
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            gpu: None,
            at: None,
            at_unix_ms: None,
            after_calls: None,
            until: None,
            lasts: None,
            code: None,
            n: None,
            call: None,
            ms: None,
            bits: None,
            link: None,
            rate: None,
            nic: None,
            quiet: false,
        }
    }

    /// What is missing or contradicts itself, in words.
    pub fn check(&self, gpus: usize, nics: usize) -> Result<(), String> {
        let kind = self.kind.name();
        let need = |have: bool, what: &str| {
            if have { Ok(()) } else { Err(format!("fault {kind} needs `{what}`")) }
        };
        match self.kind {
            FaultKind::Xid => need(self.code.is_some(), "code")?,
            FaultKind::Event | FaultKind::Throttle => need(self.bits.is_some(), "bits")?,
            FaultKind::Slow => need(self.ms.is_some(), "ms")?,
            FaultKind::NvlinkDown => need(self.link.is_some(), "link")?,
            FaultKind::NvlinkErrors => need(self.rate.is_some(), "rate")?,
            FaultKind::NicDown => need(self.nic.is_some(), "nic")?,
            FaultKind::NicErrors | FaultKind::NicCongestion => {
                need(self.nic.is_some(), "nic")?;
                need(self.rate.is_some(), "rate")?;
            }
            _ => {}
        }
        if [self.at.is_some(), self.at_unix_ms.is_some(), self.after_calls.is_some()]
            .into_iter()
            .filter(|x| *x)
            .count()
            > 1
        {
            return Err(format!("fault {kind} has more than one of at, at_unix_ms, after_calls"));
        }
        if self.until.is_some() && self.lasts.is_some() {
            return Err(format!("fault {kind} has both until and for"));
        }
        if let Some(nic) = self.nic
            && nic >= nics
        {
            return Err(format!("fault {kind} is for NIC {nic}, the node has {nics}"));
        }
        check_gpus(self.gpu.as_ref(), gpus).map_err(|e| format!("fault {kind} {e}"))
    }
}

fn check_gpus(sel: Option<&GpuSel>, gpus: usize) -> Result<(), String> {
    let named: &[usize] = match sel {
        None => &[],
        Some(GpuSel::One(g)) => std::slice::from_ref(g),
        Some(GpuSel::Many(v)) => v,
        Some(GpuSel::Word(w)) if w == "any" => &[],
        Some(GpuSel::Word(w)) => return Err(format!("names gpu {w:?}; only \"any\" is a word")),
    };
    match named.iter().find(|g| **g >= gpus) {
        Some(g) => Err(format!("is for GPU {g}, the node has {gpus}")),
        None => Ok(()),
    }
}

/// `node.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub node: NodeSection,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load: Vec<LoadSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fault: Vec<FaultSpec>,
}

/// `control.toml`: what a test or an operator adds while the node lives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load: Vec<LoadSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fault: Vec<FaultSpec>,
}

impl Scenario {
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        let rate = scenario.node.clock_rate;
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(format!("clock_rate is {rate}; it must be above 0"));
        }
        if scenario.node.tray.is_some_and(|t| t > 17) {
            return Err("tray must be 0..17".to_owned());
        }
        let shape = crate::hardware::Hardware::of(&scenario.node);
        for cut in &scenario.node.mig {
            check_gpus(cut.gpu.as_ref(), shape.gpus.len()).map_err(|e| format!("mig {e}"))?;
            if matches!(cut.gpu, Some(GpuSel::Word(_))) {
                return Err("mig is for GPUs by their indices".to_owned());
            }
            let Some(gpu) = shape.gpus.first() else {
                return Err("mig is for GPUs, and the node has none".to_owned());
            };
            crate::hardware::mig::check(&cut.cut, gpu.spec)?;
        }
        check_entries(&scenario.load, &scenario.fault, &shape)?;
        Ok(scenario)
    }
}

impl Control {
    pub fn parse(text: &str, hardware: &crate::hardware::Hardware) -> Result<Self, String> {
        let control: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        check_entries(&control.load, &control.fault, hardware)?;
        Ok(control)
    }
}

fn check_entries(
    loads: &[LoadSpec],
    faults: &[FaultSpec],
    hardware: &crate::hardware::Hardware,
) -> Result<(), String> {
    for load in loads {
        check_gpus(load.gpu.as_ref(), hardware.gpus.len()).map_err(|e| format!("load {e}"))?;
        if !(0.0..=1.0).contains(&load.level) {
            return Err(format!("load level is {}; it must be 0..1", load.level));
        }
    }
    faults.iter().try_for_each(|f| f.check(hardware.gpus.len(), hardware.nics.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_and_write() {
        for (text, ms) in [("20ms", 20), ("1.5s", 1500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), ms, "{text}");
        }
        for text in ["", "5", "5 parsecs", "-1s", "s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_example_says_all_there_is_to_say() {
        let text = include_str!("../examples/node.toml");
        let scenario = Scenario::parse(text).unwrap();
        let again = toml::to_string(&scenario).unwrap();
        assert_eq!(Scenario::parse(&again).unwrap(), scenario);
        for field in ["driver_version", "tray", "clock_rate", "epoch_unix_ms", "last_xid_wins"] {
            assert!(again.contains(field), "{field}");
        }
        for kind in <FaultKind as clap::ValueEnum>::value_variants() {
            assert!(text.contains(&kind.name()), "{kind:?}");
        }
    }

    #[test]
    fn a_wrong_scenario_is_refused_with_the_reason() {
        let head = "[node]\nname='n0'\npreset='dgx-h100'\n";
        for (tail, reason) in [
            ("[[fault]]\nkind='xid'", "needs `code`"),
            ("[[fault]]\nkind='lost'\ngpu=8", "is for GPU 8, the node has 8"),
            ("[[fault]]\nkind='lost'\ngpu='some'", "only \"any\" is a word"),
            ("[[fault]]\nkind='lost'\nat='1s'\nafter_calls=3", "more than one of"),
            ("[[load]]\nshape='const'\nlevel=2.0", "must be 0..1"),
            ("[[load]]\nshape='const'\nlevle=1.0", "unknown field"),
            ("[[fault]]\nkind='nic_down'\nnic=8", "the node has 8"),
            ("[[node.mig]]\ngpu=8\ncut=['1g.10gb']", "is for GPU 8"),
            ("[[node.mig]]\ngpu='any'\ncut=['1g.10gb']", "by their indices"),
            ("[[node.mig]]\ncut=['1g.5gb']", "no profile"),
            ("[[node.mig]]\ncut=['4g.40gb', '4g.40gb']", "8 compute"),
        ] {
            let error = Scenario::parse(&format!("{head}{tail}")).unwrap_err();
            assert!(error.contains(reason), "{tail}: {error}");
        }
    }
}
