//! What the runner asks about the node's GPUs. The sampler answers on a real node, a table in tests.

use tessera_model::{GpuCondition, GpuId};

/// Processes on one GPU, as NVML lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Processes {
    /// Sorted; may be empty.
    Pids(Vec<u32>),
    /// No answer within the deadline, or an error: nobody knows.
    Silent,
}

pub trait Gpus: Send + Sync + 'static {
    /// All GPUs this node has.
    fn all(&self) -> Vec<GpuId>;
    /// `None`: there is no such GPU here.
    fn condition(&self, gpu: &GpuId) -> Option<GpuCondition>;
    /// Asks NVML now. May block up to NVML's deadline; never called on an async thread.
    fn processes(&self, gpu: &GpuId) -> Processes;
}
