//! What is known of each GPU: who it is, its condition, its last reading.
//!
//! In: news from the threads. Out: rows of a sample, conditions, inventory rows. A row never goes: a GPU
//! that is lost keeps its place until the node's next boot.

use std::collections::BTreeMap;

use tessera_model::sample::GpuSample;
use tessera_model::{Gpu, GpuCondition, GpuId, MigInstance};

use super::known::KnownGpu;
use crate::probe::nvml::{Fault, GpuFacts, Health};
use crate::probe::xid::{Class, class};

/// XID 64 by another way: a memory row could not be remapped.
const XID_ROW_REMAP_FAILURE: u32 = 64;

#[derive(Debug, Default)]
pub struct Rows {
    rows: BTreeMap<GpuId, Row>,
    /// Which GPU a thread has.
    owners: BTreeMap<u32, GpuId>,
}

#[derive(Debug, Default)]
struct Row {
    /// `None` until the GPU was seen since the agent started.
    facts: Option<GpuFacts>,
    /// Its inventory row, as it was last made.
    gpu: Option<Gpu>,
    fault: Option<Fault>,
    late: bool,
    xid: Option<u32>,
    health: Health,
    epoch: u32,
    energy_mj: Option<u64>,
    latest: Option<GpuSample>,
}

impl Rows {
    /// What an earlier life of the agent saw in this boot. Lost until it is seen again.
    pub fn new(known: Vec<KnownGpu>) -> Self {
        let row = |known: KnownGpu| {
            let row = Row {
                fault: Some(Fault::Lost),
                xid: known.xid,
                epoch: known.counter_epoch,
                gpu: Some(known.gpu.clone()),
                ..Row::default()
            };
            (known.gpu.id, row)
        };
        Self { rows: known.into_iter().map(row).collect(), owners: BTreeMap::new() }
    }

    /// A thread has said which GPU it has, and how it is.
    pub fn found(
        &mut self,
        index: u32,
        facts: GpuFacts,
        reopened: bool,
        health: Result<Health, Fault>,
    ) {
        self.owners.insert(index, facts.id.clone());
        if facts.mig.is_none() {
            self.cut(&facts.id, false, &[]);
        }
        let row = self.rows.entry(facts.id.clone()).or_default();
        // What a broken GPU says of itself is not better than what it said before.
        if health.is_ok() || row.facts.is_none() {
            row.facts = Some(facts);
        }
        row.late = false;
        match health {
            Ok(health) => (row.health, row.fault) = (health, None),
            Err(fault) => row.fault = Some(fault),
        }
        if reopened {
            row.was_reset();
        }
    }

    /// True when more than the reading has changed.
    pub fn read(&mut self, index: u32, answer: Result<GpuSample, Fault>) -> bool {
        let Some(row) = self.row_of(index) else { return false };
        let before = (row.condition(), row.epoch);
        // A thread that answers is out of its call.
        row.late = false;
        match answer {
            Ok(sample) => {
                row.fault = None;
                if let (Some(before), Some(now)) = (row.energy_mj, sample.energy_mj)
                    && now < before
                {
                    row.was_reset();
                }
                row.energy_mj = sample.energy_mj.or(row.energy_mj);
                row.latest = Some(sample);
            }
            Err(fault) => {
                row.fault = Some(fault);
                row.latest = None;
            }
        }
        before != (row.condition(), row.epoch)
    }

    /// True when the condition has changed.
    pub fn health(&mut self, index: u32, health: Health) -> bool {
        let Some(row) = self.row_of(index) else { return false };
        let before = row.condition();
        row.health = health;
        before != row.condition()
    }

    pub fn late(&mut self, index: u32) {
        if let Some(row) = self.row_of(index) {
            row.late = true;
            row.latest = None;
        }
    }

    /// A fatal one stays until the GPU's counters fall back, which only a reset or a new driver does.
    pub fn xid(&mut self, gpu: &GpuId, code: u32) {
        let class = class(code);
        tracing::warn!(%gpu, code, ?class, "XID");
        if let Some(row) = self.rows.get_mut(gpu)
            && class == Class::Fatal
        {
            // The first one is the cause, later ones follow from it.
            row.xid.get_or_insert(code);
        }
    }

    /// What is in a PCI slot, `0000:1a:00`: a GPU, or all instances of one.
    pub fn in_slot(&self, slot: &str) -> Vec<GpuId> {
        let in_slot = |gpu: &Gpu| gpu.pci_bus_id.rsplit_once('.').is_some_and(|(s, _)| s == slot);
        let found = self.rows.iter().filter(|(_, row)| row.gpu.as_ref().is_some_and(in_slot));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// How a GPU is cut now; `instances` is empty where it is not. What was known of it when it was
    /// cut in another way is no longer there, and not lost either.
    pub fn cut(&mut self, gpu: &GpuId, is_cut: bool, instances: &[GpuId]) {
        self.rows.retain(|id, row| {
            let of_it = |mig: &MigInstance| mig.parent == *gpu;
            let was_instance = row.gpu.as_ref().and_then(|g| g.mig.as_ref()).is_some_and(of_it);
            (!was_instance || instances.contains(id)) && !(is_cut && id == gpu)
        });
    }

    pub fn owner(&self, gpu: &GpuId) -> Option<u32> {
        self.owners.iter().find(|(_, id)| *id == gpu).map(|(index, _)| *index)
    }

    pub fn facts(&self) -> Vec<GpuFacts> {
        self.rows.values().filter_map(|row| row.facts.clone()).collect()
    }

    /// Takes the inventory rows that were made from [`Self::facts`], and returns all there are: also
    /// those of GPUs that were not seen since the agent started.
    pub fn place(&mut self, made: Vec<Gpu>) -> Vec<Gpu> {
        for gpu in made {
            if let Some(row) = self.rows.get_mut(&gpu.id) {
                row.gpu = Some(gpu);
            }
        }
        let mut all: Vec<Gpu> = self.rows.values().filter_map(|row| row.gpu.clone()).collect();
        all.sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
        all
    }

    /// A row for each GPU, in index order; without values where there is no fresh reading.
    pub fn take_samples(&mut self) -> Vec<GpuSample> {
        let mut rows: Vec<_> = self
            .rows
            .iter_mut()
            .map(|(id, row)| {
                let mut sample = row.latest.take().unwrap_or_default();
                sample.gpu = Some(id.clone());
                sample.counter_epoch = row.epoch;
                (row.gpu.as_ref().map_or(u32::MAX, |gpu| gpu.index), sample)
            })
            .collect();
        rows.sort_by(|a, b| (a.0, &a.1.gpu).cmp(&(b.0, &b.1.gpu)));
        rows.into_iter().map(|(_, sample)| sample).collect()
    }

    pub fn conditions(&self) -> BTreeMap<GpuId, GpuCondition> {
        self.rows
            .iter()
            .map(|(id, row)| (id.clone(), row.condition()))
            .filter(|(_, condition)| !condition.is_healthy())
            .collect()
    }

    pub fn known(&self) -> Vec<KnownGpu> {
        let known = |row: &Row| {
            let gpu = row.gpu.clone()?;
            Some(KnownGpu { gpu, xid: row.xid, counter_epoch: row.epoch })
        };
        self.rows.values().filter_map(known).collect()
    }

    fn row_of(&mut self, index: u32) -> Option<&mut Row> {
        self.rows.get_mut(self.owners.get(&index)?)
    }
}

impl Row {
    fn was_reset(&mut self) {
        self.epoch += 1;
        self.xid = None;
        self.energy_mj = None;
        self.latest = None;
    }

    /// The worst first: what is gone cannot be slow as well.
    fn condition(&self) -> GpuCondition {
        match self.fault {
            Some(Fault::Lost | Fault::DriverGone | Fault::StaleHandle) => GpuCondition::Lost,
            Some(Fault::ResetRequired) => GpuCondition::ResetRequired,
            None if self.late => GpuCondition::Unresponsive,
            None => match (self.xid, self.health) {
                (Some(code), _) => GpuCondition::Xid { code },
                (None, health) if health.remap_failure => {
                    GpuCondition::Xid { code: XID_ROW_REMAP_FAILURE }
                }
                (None, health) if health.wants_reset => GpuCondition::ResetRequired,
                (None, _) => GpuCondition::Healthy,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::Bytes;

    use super::*;

    fn facts(memory: u64) -> GpuFacts {
        GpuFacts {
            id: GpuId::parse("GPU-0").unwrap(),
            index: 0,
            model: "NVIDIA H100 80GB HBM3".into(),
            memory: Bytes::gib(memory),
            pci_bus_id: "0000:1a:00.0".into(),
            links: Vec::new(),
            domain: None,
            cpus: Vec::new(),
            mig: None,
        }
    }

    fn energy(energy_mj: u64) -> Result<GpuSample, Fault> {
        Ok(GpuSample { energy_mj: Some(energy_mj), ..GpuSample::default() })
    }

    fn word(rows: &Rows) -> &'static str {
        rows.conditions().values().next().map_or("healthy", GpuCondition::word)
    }

    #[test]
    fn the_worst_condition_is_shown_and_each_ends_in_its_own_way() {
        let gpu = GpuId::parse("GPU-0").unwrap();
        let mut rows = Rows::default();
        rows.found(0, facts(80), false, Ok(Health::default()));
        assert_eq!(word(&rows), "healthy");
        rows.xid(&gpu, 13);
        assert_eq!(word(&rows), "healthy", "a job's own fault");
        rows.xid(&gpu, 48);
        rows.xid(&gpu, 79);
        assert_eq!(
            rows.conditions()[&gpu],
            GpuCondition::Xid { code: 48 },
            "the first is the cause"
        );
        rows.late(0);
        assert_eq!(word(&rows), "unresponsive");
        assert!(rows.read(0, Err(Fault::Lost)));
        assert_eq!(word(&rows), "lost");
        assert!(rows.read(0, energy(500)));
        assert_eq!(word(&rows), "xid", "it is back and was not reset");
        assert!(!rows.read(0, energy(600)));
        assert!(rows.read(0, energy(3)), "its counters fell back");
        assert_eq!(word(&rows), "healthy");
        assert_eq!(rows.take_samples()[0].counter_epoch, 1);
        assert!(rows.health(0, Health { wants_reset: true, ..Health::default() }));
        assert_eq!(word(&rows), "reset-required");
        assert!(rows.health(0, Health { remap_failure: true, ..Health::default() }));
        assert_eq!(rows.conditions()[&gpu], GpuCondition::Xid { code: 64 });
    }

    #[test]
    fn a_broken_gpu_does_not_spoil_what_it_said_when_it_was_whole() {
        let mut rows = Rows::default();
        rows.found(0, facts(80), false, Ok(Health::default()));
        rows.found(0, facts(0), false, Err(Fault::ResetRequired));
        assert_eq!(rows.facts()[0].memory, Bytes::gib(80));
        assert_eq!(word(&rows), "reset-required");
        let mut new = Rows::default();
        new.found(0, facts(0), false, Err(Fault::ResetRequired));
        assert_eq!((new.facts().len(), word(&new)), (1, "reset-required"));
    }
}
