//! What the simulated library costs a 1 Hz reader.
//!
//! In: the number of seconds to run (10). Out: CPU per second of running, in this process, with all
//! GPUs of a dgx-h100 under load. Run: `cargo run -p tessera-nvml-sim --example cost -- 10`

use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::structs::device::FieldId;
use tessera_nvml_sim::{NodeOptions, Preset, control, create_node, scenario};

fn cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: usage outlives the call, which fills it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn main() -> anyhow::Result<()> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(10), |s| s.parse())?;
    let dir = tempfile::tempdir()?;
    create_node(dir.path(), &NodeOptions::new("n0", Preset::DgxH100))?;
    let busy =
        toml::from_str::<scenario::Control>("[[load]]\nshape = 'train-step'\nlevel = 0.9\n")?;
    control::append(dir.path(), &busy).map_err(anyhow::Error::msg)?;
    let nvml = Nvml::builder().lib_path(dir.path().join("libnvidia-ml.so.1").as_os_str()).init()?;
    let fields: Vec<FieldId> = (1..60).map(|i| FieldId(130 + i)).collect();
    let (began, cpu_before) = (Instant::now(), cpu());
    for round in 1..=seconds {
        for i in 0..nvml.device_count()? {
            let gpu = nvml.device_by_index(i)?;
            gpu.utilization_rates()?;
            gpu.memory_info()?;
            gpu.power_usage()?;
            gpu.temperature(TemperatureSensor::Gpu)?;
            gpu.clock_info(Clock::SM)?;
            gpu.total_energy_consumption()?;
            gpu.current_throttle_reasons()?;
            gpu.running_compute_processes()?;
            gpu.field_values_for(&fields)?;
            gpu.gpm_sample()?;
        }
        std::thread::sleep(
            (began + Duration::from_secs(round)).saturating_duration_since(Instant::now()),
        );
    }
    let spent = cpu() - cpu_before;
    println!(
        "{:.3} ms CPU a second = {:.3} % of a core",
        spent.as_secs_f64() * 1e3 / seconds as f64,
        spent.as_secs_f64() * 100.0 / seconds as f64
    );
    Ok(())
}
