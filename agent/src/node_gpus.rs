//! The runner's questions about GPUs, answered by the sampler.

use std::sync::Arc;

use tessera_model::{GpuCondition, GpuId};

use crate::runner::{Gpus, Processes};
use crate::sampler::Sampler;

pub struct NodeGpus {
    sampler: Arc<Sampler>,
}

impl NodeGpus {
    pub fn new(sampler: Arc<Sampler>) -> Self {
        Self { sampler }
    }
}

impl Gpus for NodeGpus {
    fn all(&self) -> Vec<GpuId> {
        self.sampler.inventory().borrow().gpus.iter().map(|gpu| gpu.id.clone()).collect()
    }

    fn condition(&self, gpu: &GpuId) -> Option<GpuCondition> {
        if let Some(condition) = self.sampler.conditions().borrow().get(gpu) {
            return Some(condition.clone());
        }
        let known = self.sampler.inventory().borrow().gpus.iter().any(|known| known.id == *gpu);
        known.then_some(GpuCondition::Healthy)
    }

    fn processes(&self, gpu: &GpuId) -> Processes {
        match self.sampler.processes_on(gpu) {
            Ok(mut pids) => {
                pids.sort_unstable();
                Processes::Pids(pids)
            }
            Err(silent) => {
                tracing::debug!(%gpu, error = %silent, "no process list");
                Processes::Silent
            }
        }
    }
}
