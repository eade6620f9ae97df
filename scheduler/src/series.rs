//! Readings of nodes: the newest of each, and a quarter of an hour behind it.
//!
//! In: samples, in order within one boot, possibly sent twice. Out: the newest sample of a node,
//! when each of its GPUs last answered, a short history. Nothing here is durable and nothing here
//! is ever charged for.
//!
//! Bound: all histories together take at most [`Bounds::bytes`] (256 MiB). A node's history is a
//! ring of rows of 4 bytes a gauge and 8 a counter, 48 + 8×24 + 8×16 = 368 bytes for 8 GPUs and
//! 8 NICs: 900 rows each up to about 800 such nodes, then as many as fit. The newest sample of a node
//! comes on top, about 3 KiB.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tessera_model::sample::{GpuSample, NodeSample};
use tessera_model::{BootId, GpuId, NodeId, UnixMillis};

/// Gaps remembered for each node; more are only counted.
const GAPS_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of all histories together.
    pub bytes: usize,
    /// Rows of one node: 15 minutes at 1 Hz.
    pub rows: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 256 << 20, rows: 900 }
    }
}

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    New,
    /// It, or a later one of its boot, had arrived before.
    Duplicate,
    /// It is from a boot that has ended.
    Outdated,
}

/// The newest there is of one node.
#[derive(Debug, Clone)]
pub struct Latest {
    pub sample: Arc<NodeSample>,
    /// For each GPU of the sample, in its order: what it last said and when. `None` if it never did.
    pub answered: Vec<Option<(GpuSample, UnixMillis)>>,
}

/// A few gauges of one beat, parallel to the sample's GPUs and NICs. Not measured is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub sequence: u64,
    pub at: UnixMillis,
    pub gpus: Vec<GpuRow>,
    pub nics: Vec<NicRow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuRow {
    pub busy_percent: Option<f32>,
    pub sm_percent: Option<f32>,
    pub tensor_percent: Option<f32>,
    pub power_mw: Option<f32>,
    pub memory_used_mib: Option<f32>,
    pub temperature_c: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NicRow {
    pub receive_bytes: Option<u64>,
    pub transmit_bytes: Option<u64>,
}

/// Sequences of one boot that never came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub first: u64,
    pub count: u64,
}

pub struct Series {
    bounds: Bounds,
    nodes: RwLock<HashMap<NodeId, Arc<Mutex<NodeSeries>>>>,
}

impl Series {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, nodes: RwLock::new(HashMap::new()) }
    }

    /// Takes a sample in. One that came before, or that a gap covers, changes nothing.
    pub fn take(&self, sample: NodeSample) -> Taken {
        let series = self.of(&sample.node, &sample.boot);
        let share = self.bounds.bytes / self.nodes.read().len().max(1);
        let mut series = series.lock();
        match series.enter(&sample.boot) {
            false => Taken::Outdated,
            true => series.push(sample, share, self.bounds.rows),
        }
    }

    /// The agent says that these sequences will never come.
    pub fn gap(&self, node: &NodeId, boot: &BootId, gap: Gap) {
        let series = self.of(node, boot);
        let mut series = series.lock();
        let Some(last) = gap.count.checked_sub(1).and_then(|n| gap.first.checked_add(n)) else {
            return;
        };
        if series.enter(boot) && series.acknowledged.is_none_or(|done| last > done) {
            series.skip_to(last, gap.first);
        }
    }

    /// All sequences of this boot up to the answer have arrived or are gaps. `None`: none has.
    pub fn acknowledged(&self, node: &NodeId, boot: &BootId) -> Option<u64> {
        let series = self.nodes.read().get(node)?.clone();
        let series = series.lock();
        if series.boot == *boot { series.acknowledged } else { None }
    }

    pub fn latest(&self, node: &NodeId) -> Option<Latest> {
        let series = self.nodes.read().get(node)?.clone();
        let series = series.lock();
        let sample = series.newest.clone()?;
        let answered = sample
            .gpus
            .iter()
            .map(|g| g.gpu.as_ref().and_then(|id| series.answered.get(id).cloned()))
            .collect();
        Some(Latest { sample, answered })
    }

    /// Oldest first.
    pub fn history(&self, node: &NodeId) -> Vec<Row> {
        let Some(series) = self.nodes.read().get(node).cloned() else { return Vec::new() };
        let series = series.lock();
        series.ring.iter().map(|packed| packed.row()).collect()
    }

    /// The newest gaps of the present boot, and how many sequences it lost in all.
    pub fn gaps(&self, node: &NodeId) -> (Vec<Gap>, u64) {
        let Some(series) = self.nodes.read().get(node).cloned() else { return Default::default() };
        let series = series.lock();
        (series.gaps.iter().copied().collect(), series.missed)
    }

    fn of(&self, node: &NodeId, boot: &BootId) -> Arc<Mutex<NodeSeries>> {
        if let Some(known) = self.nodes.read().get(node) {
            return known.clone();
        }
        let fresh = || Arc::new(Mutex::new(NodeSeries::new(boot.clone())));
        self.nodes.write().entry(node.clone()).or_insert_with(fresh).clone()
    }
}

struct NodeSeries {
    boot: BootId,
    boot_before: Option<BootId>,
    acknowledged: Option<u64>,
    newest: Option<Arc<NodeSample>>,
    answered: HashMap<GpuId, (GpuSample, UnixMillis)>,
    ring: VecDeque<Packed>,
    gaps: VecDeque<Gap>,
    missed: u64,
}

impl NodeSeries {
    fn new(boot: BootId) -> Self {
        Self {
            boot,
            boot_before: None,
            acknowledged: None,
            newest: None,
            answered: HashMap::new(),
            ring: VecDeque::new(),
            gaps: VecDeque::new(),
            missed: 0,
        }
    }

    /// Whether `boot` is the present one; a new one ends the one before it for good.
    fn enter(&mut self, boot: &BootId) -> bool {
        if self.boot == *boot {
            return true;
        }
        if self.boot_before.as_ref() == Some(boot) {
            return false;
        }
        let ended = std::mem::replace(&mut self.boot, boot.clone());
        self.boot_before = Some(ended);
        self.acknowledged = None;
        self.answered.clear();
        self.gaps.clear();
        self.missed = 0;
        true
    }

    fn push(&mut self, sample: NodeSample, share: usize, rows: usize) -> Taken {
        match self.acknowledged {
            Some(done) if sample.sequence <= done => return Taken::Duplicate,
            // The first of a boot may have any number: those before it went to nobody.
            Some(done) if sample.sequence > done + 1 => self.skip_to(sample.sequence - 1, done + 1),
            _ => {}
        }
        self.acknowledged = Some(sample.sequence);
        for gpu in &sample.gpus {
            if let Some(id) = gpu.gpu.as_ref().filter(|_| has_answered(gpu)) {
                self.answered.insert(id.clone(), (gpu.clone(), sample.at));
            }
        }
        // GPUs that are no longer listed do not pile up.
        if self.answered.len() > sample.gpus.len() {
            self.answered.retain(|id, _| sample.gpus.iter().any(|g| g.gpu.as_ref() == Some(id)));
        }
        let packed = Packed::of(&sample);
        let keep = (share / packed.bytes()).clamp(1, rows.max(1));
        while self.ring.len() >= keep {
            self.ring.pop_front();
        }
        self.ring.push_back(packed);
        self.newest = Some(Arc::new(sample));
        Taken::New
    }

    /// Records that all up to `last` is lost, from `first` or from where we are.
    fn skip_to(&mut self, last: u64, first: u64) {
        let first = self.acknowledged.map_or(first, |done| first.max(done + 1));
        let gap = Gap { first, count: last - first + 1 };
        self.missed = self.missed.saturating_add(gap.count);
        if self.gaps.len() == GAPS_MAX {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap);
        self.acknowledged = Some(last);
    }
}

/// A GPU whose calls hang is still listed, with nothing measured.
fn has_answered(gpu: &GpuSample) -> bool {
    let silent = GpuSample {
        gpu: gpu.gpu.clone(),
        counter_epoch: gpu.counter_epoch,
        ..GpuSample::default()
    };
    *gpu != silent
}

/// A row without names and tags: NaN and the highest number stand for what was not measured.
struct Packed {
    sequence: u64,
    at: UnixMillis,
    gauges: Box<[[f32; 6]]>,
    counters: Box<[[u64; 2]]>,
}

impl Packed {
    fn of(sample: &NodeSample) -> Self {
        let gauge = |v: Option<f32>| v.unwrap_or(f32::NAN);
        let gpu = |g: &GpuSample| {
            [
                gauge(g.busy_percent),
                gauge(g.sm_percent),
                gauge(g.tensor_percent),
                gauge(g.power_mw.map(|mw| mw as f32)),
                gauge(g.memory_used_bytes.map(|b| (b as f64 / f64::from(1 << 20)) as f32)),
                gauge(g.temperature_c),
            ]
        };
        Self {
            sequence: sample.sequence,
            at: sample.at,
            gauges: sample.gpus.iter().map(gpu).collect(),
            counters: sample
                .nics
                .iter()
                .map(|n| [n.receive_bytes, n.transmit_bytes].map(|c| c.unwrap_or(u64::MAX)))
                .collect(),
        }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.gauges.len() * 24 + self.counters.len() * 16
    }

    fn row(&self) -> Row {
        let gauge = |v: f32| (!v.is_nan()).then_some(v);
        let gpu = |g: &[f32; 6]| GpuRow {
            busy_percent: gauge(g[0]),
            sm_percent: gauge(g[1]),
            tensor_percent: gauge(g[2]),
            power_mw: gauge(g[3]),
            memory_used_mib: gauge(g[4]),
            temperature_c: gauge(g[5]),
        };
        let nic = |n: &[u64; 2]| {
            let [receive_bytes, transmit_bytes] = n.map(|c| (c != u64::MAX).then_some(c));
            NicRow { receive_bytes, transmit_bytes }
        };
        Row {
            sequence: self.sequence,
            at: self.at,
            gpus: self.gauges.iter().map(gpu).collect(),
            nics: self.counters.iter().map(nic).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::sample::{HostSample, NicSample};

    use super::*;

    fn node() -> NodeId {
        NodeId::parse("n0").unwrap()
    }

    fn boot(name: &str) -> BootId {
        BootId::parse(name).unwrap()
    }

    /// A node with two GPUs; the second answers only if `both`.
    fn sample(boot_name: &str, sequence: u64, both: bool) -> NodeSample {
        let gpu = |name: &str, busy| GpuSample {
            gpu: Some(GpuId::parse(name).unwrap()),
            busy_percent: busy,
            ..GpuSample::default()
        };
        NodeSample {
            node: node(),
            boot: boot(boot_name),
            sequence,
            at: UnixMillis(1_000 * sequence as i64),
            gpus: vec![gpu("GPU-0", Some(50.0)), gpu("GPU-1", both.then_some(sequence as f32))],
            nics: vec![NicSample { receive_bytes: Some(7), ..NicSample::default() }],
            host: HostSample::default(),
        }
    }

    #[test]
    fn a_stream_resumes_without_double_rows() {
        let series = Series::new(Bounds::default());
        assert_eq!(series.acknowledged(&node(), &boot("a")), None);
        for (sequence, want) in [
            (5, Taken::New),
            (6, Taken::New),
            (6, Taken::Duplicate),
            (5, Taken::Duplicate),
            (9, Taken::New),
        ] {
            assert_eq!(series.take(sample("a", sequence, true)), want, "{sequence}");
        }
        assert_eq!(series.acknowledged(&node(), &boot("a")), Some(9));
        assert_eq!(series.gaps(&node()), (vec![Gap { first: 7, count: 2 }], 2));
        let sequences: Vec<u64> = series.history(&node()).iter().map(|r| r.sequence).collect();
        assert_eq!(sequences, [5, 6, 9]);
    }

    #[test]
    fn declared_gaps_move_the_acknowledgement() {
        let series = Series::new(Bounds::default());
        series.take(sample("a", 1, true));
        for (gap, want) in [
            (Gap { first: 2, count: 3 }, Some(4)),
            (Gap { first: 2, count: 3 }, Some(4)),
            (Gap { first: 4, count: 2 }, Some(5)),
            (Gap { first: 9, count: 0 }, Some(5)),
            (Gap { first: u64::MAX, count: 2 }, Some(5)),
        ] {
            series.gap(&node(), &boot("a"), gap);
            assert_eq!(series.acknowledged(&node(), &boot("a")), want, "{gap:?}");
        }
        assert_eq!(series.gaps(&node()).1, 4);
        assert_eq!(series.take(sample("a", 6, true)), Taken::New);
        assert_eq!(series.gaps(&node()).1, 4, "6 follows 5 without a gap");
    }

    #[test]
    fn a_reboot_starts_anew_and_the_old_boot_is_over() {
        let series = Series::new(Bounds::default());
        series.take(sample("a", 100, true));
        assert_eq!(series.take(sample("b", 1, true)), Taken::New);
        assert_eq!(series.take(sample("a", 101, true)), Taken::Outdated);
        assert_eq!(series.acknowledged(&node(), &boot("a")), None);
        assert_eq!(series.acknowledged(&node(), &boot("b")), Some(1));
        assert_eq!(series.latest(&node()).unwrap().sample.boot, boot("b"));
    }

    #[test]
    fn a_hung_gpu_keeps_its_last_answer_and_its_time() {
        let series = Series::new(Bounds::default());
        series.take(sample("a", 1, true));
        series.take(sample("a", 2, false));
        let latest = series.latest(&node()).unwrap();
        assert_eq!(latest.sample.sequence, 2);
        let times: Vec<i64> = latest.answered.iter().flatten().map(|(_, at)| at.0).collect();
        assert_eq!(times, [2_000, 1_000]);
        assert_eq!(latest.answered[1].as_ref().unwrap().0.busy_percent, Some(1.0));
        let last = series.history(&node()).pop().unwrap();
        assert_eq!(last.gpus[1].busy_percent, None, "not measured is not the value before");
        assert_eq!(last.nics[0], NicRow { receive_bytes: Some(7), transmit_bytes: None });
        series.take(sample("b", 1, false));
        assert_eq!(series.latest(&node()).unwrap().answered[1], None, "never since the boot");
    }

    #[test]
    fn history_is_bounded_in_rows_and_in_bytes() {
        let row = Packed::of(&sample("a", 1, true)).bytes();
        for (bounds, want) in [
            (Bounds { bytes: 1 << 20, rows: 10 }, 10),
            (Bounds { bytes: 7 * row, rows: 900 }, 7),
            (Bounds { bytes: 0, rows: 900 }, 1),
        ] {
            let series = Series::new(bounds);
            for sequence in 0..50 {
                series.take(sample("a", sequence, true));
            }
            let kept = series.history(&node());
            assert_eq!(kept.len(), want, "{bounds:?}");
            assert_eq!(kept.last().unwrap().sequence, 49);
        }
    }
}
