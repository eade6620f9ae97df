//! The newest sample of each node, and how far its stream of samples has come.
//!
//! In: samples as the agents send them, perhaps twice, perhaps with gaps. Out: the newest of each
//! node with what each GPU said last, and up to which sequence an agent need not send again. Nothing
//! here is durable and nothing here is ever charged for.
//!
//! Bound: one sample for each node, and for each of its GPUs the last one that it answered: about
//! 6 KiB for a node with 8 GPUs.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tessera_model::sample::{GpuSample, NodeSample};
use tessera_model::{BootId, GpuId, NodeId, UnixMillis};

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

/// Sequences of one boot that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub first: u64,
    pub count: u64,
}

#[derive(Default)]
pub struct Series {
    nodes: RwLock<HashMap<NodeId, Arc<Mutex<NodeSeries>>>>,
}

impl Series {
    /// Takes a sample in. One that came before, or that a gap covers, changes nothing.
    pub fn take(&self, sample: NodeSample) -> Taken {
        let series = self.of(&sample.node, &sample.boot);
        let mut series = series.lock();
        match series.enter(&sample.boot) {
            false => Taken::Outdated,
            true => series.push(sample),
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
            series.acknowledged = Some(last);
        }
    }

    /// All sequences of this boot up to the answer have arrived or are gaps. `None`: none has.
    pub fn acknowledged(&self, node: &NodeId, boot: &BootId) -> Option<u64> {
        let series = self.nodes.read().get(node)?.clone();
        let series = series.lock();
        if series.boot == *boot { series.acknowledged } else { None }
    }

    /// The node is gone for good.
    pub fn forget(&self, node: &NodeId) {
        self.nodes.write().remove(node);
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
}

impl NodeSeries {
    fn new(boot: BootId) -> Self {
        Self { boot, boot_before: None, acknowledged: None, newest: None, answered: HashMap::new() }
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
        true
    }

    /// A sequence that is skipped is taken to be lost: an agent sends in order.
    fn push(&mut self, sample: NodeSample) -> Taken {
        if self.acknowledged.is_some_and(|done| sample.sequence <= done) {
            return Taken::Duplicate;
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
        self.newest = Some(Arc::new(sample));
        Taken::New
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
    fn a_stream_resumes_without_taking_anything_twice() {
        let series = Series::default();
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
        assert_eq!(series.latest(&node()).unwrap().sample.sequence, 9);
    }

    #[test]
    fn declared_gaps_move_the_acknowledgement() {
        let series = Series::default();
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
        assert_eq!(series.take(sample("a", 5, true)), Taken::Duplicate, "it was given up");
        assert_eq!(series.take(sample("a", 6, true)), Taken::New);
    }

    #[test]
    fn a_reboot_starts_anew_and_the_old_boot_is_over() {
        let series = Series::default();
        series.take(sample("a", 100, true));
        assert_eq!(series.take(sample("b", 1, true)), Taken::New);
        assert_eq!(series.take(sample("a", 101, true)), Taken::Outdated);
        assert_eq!(series.acknowledged(&node(), &boot("a")), None);
        assert_eq!(series.acknowledged(&node(), &boot("b")), Some(1));
        assert_eq!(series.latest(&node()).unwrap().sample.boot, boot("b"));
    }

    #[test]
    fn a_hung_gpu_keeps_its_last_answer_and_its_time() {
        let series = Series::default();
        series.take(sample("a", 1, true));
        series.take(sample("a", 2, false));
        let latest = series.latest(&node()).unwrap();
        assert_eq!(latest.sample.sequence, 2);
        let times: Vec<i64> = latest.answered.iter().flatten().map(|(_, at)| at.0).collect();
        assert_eq!(times, [2_000, 1_000]);
        assert_eq!(latest.answered[1].as_ref().unwrap().0.busy_percent, Some(1.0));
        let newest = &latest.sample;
        assert_eq!(newest.gpus[1].busy_percent, None, "not measured is not the value before");
        assert_eq!(newest.nics[0].transmit_bytes, None);
        series.take(sample("b", 1, false));
        assert_eq!(series.latest(&node()).unwrap().answered[1], None, "never since the boot");
    }
}
