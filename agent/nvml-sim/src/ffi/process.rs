//! Who uses a GPU: process lists, process utilization, accounting.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::atomic::Ordering::Relaxed;

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Answer, Code, InOut, Out, OutArray, list};
use crate::call::Device;
use crate::ffi::device_fns;
use crate::scenario::NullQuery;

/// NVML's "this process is in no MIG instance".
const NO_INSTANCE: c_uint = u32::MAX;

/// The id of a GPU instance, as NVML has it: 0 is the whole GPU.
pub fn instance_id(mig: usize) -> c_uint {
    mig as c_uint + 1
}

fn compute_processes(
    d: &Device,
    count: InOut<c_uint>,
    infos: OutArray<sys::nvmlProcessInfo_t>,
) -> Answer {
    let found: Vec<_> = d
        .node()
        .processes(d.index)
        .iter()
        .filter(|p| d.mig.is_none() || p.mig == d.mig)
        .map(|p| sys::nvmlProcessInfo_t {
            pid: p.pid,
            usedGpuMemory: p.mem_bytes,
            gpuInstanceId: p.mig.map_or(NO_INSTANCE, instance_id),
            computeInstanceId: p.mig.map_or(NO_INSTANCE, |_| 0),
        })
        .collect();
    let asks_count = infos.is_null() && count.get()? == 0;
    if asks_count && d.node().scenario.node.process_list_null_query == NullQuery::Success {
        return count.set(found.len() as c_uint);
    }
    list(count, infos, &found)
}

device_fns! {
    nvmlDeviceGetComputeRunningProcesses_v3(count: InOut<c_uint>, infos: OutArray<sys::nvmlProcessInfo_t>) |d| {
        compute_processes(&d, count, infos)
    }
    nvmlDeviceGetGraphicsRunningProcesses_v3(count: InOut<c_uint>, _infos: OutArray<sys::nvmlProcessInfo_t>) |_d| {
        count.get()?;
        count.set(0)
    }
    nvmlDeviceGetMPSComputeRunningProcesses_v3(count: InOut<c_uint>, _infos: OutArray<sys::nvmlProcessInfo_t>) |_d| {
        count.get()?;
        count.set(0)
    }
    nvmlDeviceGetProcessUtilization(samples: OutArray<sys::nvmlProcessUtilizationSample_t>,
                                    count: InOut<c_uint>, since: c_ulonglong) |d| {
        let node = d.node();
        let listed = node.processes(d.index);
        let (sm, mem, at) = {
            let meter = node.meter(d.index);
            (meter.sm_pct, meter.mem_pct, node.clock.unix_us(meter.window_end))
        };
        if listed.is_empty() || at <= since {
            count.set(0)?;
            return Err(Code::NOT_FOUND);
        }
        let share = listed.len() as u32;
        let found: Vec<_> = listed.iter()
            .map(|p| sys::nvmlProcessUtilizationSample_t {
                pid: p.pid,
                timeStamp: at,
                smUtil: sm / share,
                memUtil: mem / share,
                encUtil: 0,
                decUtil: 0,
            })
            .collect();
        list(count, samples, &found)
    }
    nvmlDeviceGetAccountingMode(mode: Out<c_uint>) |d| {
        mode.set(d.node().gpus[d.index].accounting.load(Relaxed).into())
    }
    nvmlDeviceSetAccountingMode(mode: c_uint) |d| {
        if mode > 1 {
            return Err(Code::INVALID_ARGUMENT);
        }
        let gpu = &d.node().gpus[d.index];
        gpu.accounting.store(mode == 1, Relaxed);
        if mode == 0 {
            gpu.accounts.lock().clear();
        }
        Ok(())
    }
    nvmlDeviceGetAccountingBufferSize(size: Out<c_uint>) |_d| { size.set(4000) }
    nvmlDeviceGetAccountingPids(count: InOut<c_uint>, pids: OutArray<c_uint>) |d| {
        let gpu = &d.node().gpus[d.index];
        if !gpu.accounting.load(Relaxed) {
            return Err(Code::NOT_SUPPORTED);
        }
        let found: Vec<c_uint> = gpu.accounts.lock().iter().map(|a| a.pid).collect();
        list(count, pids, &found)
    }
    nvmlDeviceGetAccountingStats(pid: c_uint, stats: Out<sys::nvmlAccountingStats_t>) |d| {
        let gpu = &d.node().gpus[d.index];
        if !gpu.accounting.load(Relaxed) {
            return Err(Code::NOT_SUPPORTED);
        }
        let accounts = gpu.accounts.lock();
        let a = accounts.iter().rfind(|a| a.pid == pid).ok_or(Code::NOT_FOUND)?;
        stats.set(sys::nvmlAccountingStats_t {
            gpuUtilization: a.util_sum.checked_div(a.samples).unwrap_or(0) as c_uint,
            memoryUtilization: a.mem_sum.checked_div(a.samples).unwrap_or(0) as c_uint,
            maxMemoryUsage: a.max_mem_bytes,
            // 0 while it runs; then milliseconds.
            time: if a.running { 0 } else { a.last_unix_us.saturating_sub(a.start_unix_us) / 1000 },
            startTime: a.start_unix_us,
            isRunning: a.running.into(),
            reserved: [0; 5],
        })
    }
}
