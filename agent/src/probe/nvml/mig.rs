//! GPUs that are cut into MIG instances.
//!
//! In: a GPU's handle. Out: which instances it has; and for the reader of one, what it is of its
//! GPU and the little that NVML measures of it.

use tessera_model::sample::GpuSample;
use tessera_model::{GpuId, MigInstance};

use super::{CallWatch, Fault, GpuReader, Open};
use crate::probe::nvml_raw as raw;

/// More instances than any GPU has.
const MIG_MAX: u32 = 16;

/// How a GPU is cut, as it says at the start: instances are made and destroyed while nothing runs
/// on the GPU, and the agent reads them anew when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub gpu: GpuId,
    /// Places of its instances and their UUIDs. None: MIG is on, and nothing can run there.
    pub instances: Vec<(u32, GpuId)>,
}

/// `None` where MIG is off, or cannot be turned on.
pub fn cut(watch: &CallWatch, open: &Open, index: u32) -> Option<Cut> {
    let device = watch.during("nvmlDeviceGetHandle", || open.nvml.device_by_index(index)).ok()?;
    let mode = watch.during("nvmlDeviceGetMigMode", || device.mig_mode()).ok()?;
    if mode.current != 1 {
        return None;
    }
    let gpu = watch.during("nvmlDeviceGetUUID", || device.uuid()).ok()?;
    let most = watch.during("nvmlDeviceGetMaxMigDeviceCount", || device.mig_device_count());
    let id_at = |number: u32| {
        let uuid = watch.during("nvmlDeviceGetMigDeviceHandleByIndex", || {
            device.mig_device_by_index(number).and_then(|instance| instance.uuid())
        });
        Some((number, GpuId::parse(&uuid.ok()?).ok()?))
    };
    let instances = (0..most.unwrap_or(0).min(MIG_MAX)).filter_map(id_at).collect();
    Some(Cut { gpu: GpuId::parse(&gpu).ok()?, instances })
}

impl GpuReader {
    /// What it is of the GPU it is cut from; `model` is that GPU's name.
    pub(super) fn instance(&mut self, model: &str) -> Option<MigInstance> {
        self.parent.as_ref()?;
        let uuid = self.call("nvmlDeviceGetUUID (GPU)", |d| d.uuid())?;
        let total = self
            .call("nvmlDeviceGetMemoryInfo_v2 (GPU)", |d| d.memory_info())
            .map(|info| info.total)
            .or_else(|| self.call("nvmlDeviceGetMemoryInfo (GPU)", raw::memory_total_v1))?;
        let size = self.call_own("nvmlDeviceGetAttributes_v2", |d| d.attributes())?;
        let slices = memory_slices(size.memory_size_mb << 20, total);
        let name = self.call_own("nvmlDeviceGetName (instance)", |d| d.name());
        // The driver writes it behind the GPU's name, `… MIG 1g.10gb`.
        let named = name.as_deref().and_then(|name| name.strip_prefix(model)?.split_once("MIG "));
        let profile = match named {
            Some((_, profile)) => profile.trim().to_owned(),
            None => profile(
                size.compute_instance_slice_count,
                size.gpu_instance_slice_count,
                slices,
                total,
            ),
        };
        let parent = GpuId::parse(&uuid).ok()?;
        Some(MigInstance { parent, profile, memory_slices: slices })
    }

    /// Of a MIG instance NVML tells its memory and its processes. Utilization, power and clocks are
    /// the whole GPU's and no instance's, so they are absent.
    pub(super) fn fast_instance(&mut self) -> Result<GpuSample, Fault> {
        let memory = self.call_own("nvmlDeviceGetMemoryInfo_v2", |d| d.memory_info());
        let sample = GpuSample {
            gpu: Some(self.facts.id.clone()),
            memory_used_bytes: memory.map(|info| info.used),
            processes: self.process_count,
            ..GpuSample::default()
        };
        self.finish()?;
        Ok(sample)
    }
}

/// Eighths of a GPU's memory, rounded up as NVIDIA's own tools do: a part of it is kept by the driver.
fn memory_slices(instance_bytes: u64, gpu_bytes: u64) -> u32 {
    let eighths = (u128::from(instance_bytes) * 8).div_ceil(u128::from(gpu_bytes.max(1)));
    u32::try_from(eighths.clamp(1, 8)).unwrap_or(8)
}

/// A profile's name as NVIDIA's tools make it: `1g.10gb`, `1c.3g.40gb`.
fn profile(compute_slices: u32, gpu_slices: u32, memory_slices: u32, gpu_bytes: u64) -> String {
    let gb = (gpu_bytes.div_ceil(1 << 30) * u64::from(memory_slices) + 4) / 8;
    match compute_slices == gpu_slices {
        true => format!("{gpu_slices}g.{gb}gb"),
        false => format!("{compute_slices}c.{gpu_slices}g.{gb}gb"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_called_as_nvidia_calls_it() {
        let mib = |mib: u64| mib << 20;
        for (gpu, instance, compute, slices, want) in [
            (mib(81_559), mib(10_112), (1, 1), 1, "1g.10gb"),
            (mib(81_559), mib(40_448), (3, 3), 4, "3g.40gb"),
            (mib(81_559), mib(81_089), (7, 7), 8, "7g.80gb"),
            (mib(81_920), mib(19_968), (1, 2), 2, "1c.2g.20gb"),
            (mib(24_576), mib(5_952), (1, 1), 2, "1g.6gb"),
        ] {
            let got = memory_slices(instance, gpu);
            assert_eq!((got, profile(compute.0, compute.1, got, gpu).as_str()), (slices, want));
        }
        assert_eq!(memory_slices(0, 0), 1);
    }
}
