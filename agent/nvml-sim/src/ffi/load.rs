//! What a GPU does: utilization, memory, power, heat, clocks, PCIe, field values, samples.

use std::ffi::{c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Code, InOut, Out, OutArray, version};
use crate::ffi::device_fns;
use crate::fields::{self, Value};

/// Microseconds over which encoder and decoder utilization are averaged.
const CODEC_PERIOD_US: c_uint = 1_000_000;

fn clock_mhz(spec: &crate::hardware::GpuSpec, sm_mhz: u32, kind: u32) -> Result<u32, Code> {
    Ok(match kind {
        0 | 1 => sm_mhz,
        2 => spec.mem_mhz,
        3 => sm_mhz / 10 * 9,
        _ => return Err(Code::INVALID_ARGUMENT),
    })
}

/// All and used, bytes, where the call is about a MIG instance.
fn instance_memory(d: &crate::call::Device) -> Option<(u64, u64)> {
    let total = d.instance()?.mem_mib << 20;
    let listed = d.node().processes(d.index);
    let used: u64 = listed.iter().filter(|p| p.mig == d.mig).map(|p| p.mem_bytes).sum();
    Some((total, used.min(total)))
}

device_fns! {
    nvmlDeviceGetMemoryInfo(memory: Out<sys::nvmlMemory_t>) |d| {
        if let Some((total, used)) = instance_memory(&d) {
            return memory.set(sys::nvmlMemory_t { total, free: total - used, used });
        }
        let spec = d.hw().spec;
        let total = spec.mem_mib << 20;
        // The first form counts what the driver reserves as used.
        let used = d.node().memory_used(d.index) + (spec.reserved_mib << 20);
        memory.set(sys::nvmlMemory_t { total, free: total - used, used })
    }
    nvmlDeviceGetMemoryInfo_v2(memory: InOut<sys::nvmlMemory_v2_t>) |d| {
        let asked = memory.version()?;
        if asked != version::<sys::nvmlMemory_v2_t>(2) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        if let Some((total, used)) = instance_memory(&d) {
            let free = total - used;
            return memory.set(sys::nvmlMemory_v2_t { version: asked, total, reserved: 0, free, used });
        }
        let spec = d.hw().spec;
        let (total, reserved) = (spec.mem_mib << 20, spec.reserved_mib << 20);
        let used = d.node().memory_used(d.index);
        memory.set(sys::nvmlMemory_v2_t { version: asked, total, reserved, free: total - reserved - used, used })
    }
    nvmlDeviceGetBAR1MemoryInfo(memory: Out<sys::nvmlBAR1Memory_t>) |d| {
        let (total, used) = (d.hw().spec.bar1_mib << 20, 1 << 20);
        memory.set(sys::nvmlBAR1Memory_t { bar1Total: total, bar1Free: total - used, bar1Used: used })
    }
    nvmlDeviceGetUtilizationRates(rates: Out<sys::nvmlUtilization_t>) |d| {
        if d.hw().mig.is_some() {
            return Err(Code::NOT_SUPPORTED);
        }
        let meter = d.node().meter(d.index);
        rates.set(sys::nvmlUtilization_t { gpu: meter.busy_pct, memory: meter.mem_pct })
    }
    nvmlDeviceGetEncoderUtilization(share: Out<c_uint>, period: Out<c_uint>) |_d| {
        share.set(0)?;
        period.set(CODEC_PERIOD_US)
    }
    nvmlDeviceGetDecoderUtilization(share: Out<c_uint>, period: Out<c_uint>) |_d| {
        share.set(0)?;
        period.set(CODEC_PERIOD_US)
    }
    nvmlDeviceGetPowerUsage(power: Out<c_uint>) |d| { power.set(d.node().meter(d.index).power_mw) }
    nvmlDeviceGetEnforcedPowerLimit(limit: Out<c_uint>) |d| {
        limit.set((d.hw().spec.limit_w * 1000.0) as c_uint)
    }
    nvmlDeviceGetPowerManagementLimit(limit: Out<c_uint>) |d| {
        limit.set((d.hw().spec.limit_w * 1000.0) as c_uint)
    }
    nvmlDeviceGetPowerManagementDefaultLimit(limit: Out<c_uint>) |d| {
        limit.set((d.hw().spec.limit_w * 1000.0) as c_uint)
    }
    nvmlDeviceGetPowerManagementLimitConstraints(least: Out<c_uint>, most: Out<c_uint>) |d| {
        least.set((d.hw().spec.min_limit_w * 1000.0) as c_uint)?;
        most.set((d.hw().spec.limit_w * 1000.0) as c_uint)
    }
    nvmlDeviceGetTotalEnergyConsumption(energy: Out<c_ulonglong>) |d| {
        energy.set(d.node().meter(d.index).totals.energy_mj as u64)
    }
    nvmlDeviceGetTemperature(sensor: c_uint, temp: Out<c_uint>) |d| {
        if sensor != sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(Code::INVALID_ARGUMENT);
        }
        temp.set(d.node().meter(d.index).temp_c as c_uint)
    }
    nvmlDeviceGetTemperatureV(temp: InOut<sys::nvmlTemperature_v1_t>) |d| {
        if temp.version()? != version::<sys::nvmlTemperature_v1_t>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let asked = temp.get()?;
        if asked.sensorType != sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(Code::INVALID_ARGUMENT);
        }
        temp.set(sys::nvmlTemperature_v1_t { temperature: d.node().meter(d.index).temp_c as c_int, ..asked })
    }
    nvmlDeviceGetMarginTemperature(margin: InOut<sys::nvmlMarginTemperature_v1_t>) |d| {
        let asked = margin.version()?;
        if asked != version::<sys::nvmlMarginTemperature_v1_t>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        if d.hw().spec.arch < 8 {
            return Err(Code::NOT_SUPPORTED);
        }
        let left = 87 - d.node().meter(d.index).temp_c as c_int;
        margin.set(sys::nvmlMarginTemperature_v1_t { version: asked, marginTemperature: left })
    }
    nvmlDeviceGetTemperatureThreshold(kind: c_uint, temp: Out<c_uint>) |d| {
        temp.set(match kind {
            0 => 92,
            1 => 89,
            2 if d.hw().spec.nvlinks > 0 => 95,
            3 => 87,
            2..8 => return Err(Code::NOT_SUPPORTED),
            _ => return Err(Code::INVALID_ARGUMENT),
        })
    }
    nvmlDeviceGetClockInfo(kind: c_uint, clock: Out<c_uint>) |d| {
        let sm_mhz = d.node().meter(d.index).sm_mhz;
        clock.set(clock_mhz(d.hw().spec, sm_mhz, kind)?)
    }
    nvmlDeviceGetMaxClockInfo(kind: c_uint, clock: Out<c_uint>) |d| {
        clock.set(clock_mhz(d.hw().spec, d.hw().spec.sm_mhz_max, kind)?)
    }
    nvmlDeviceGetPerformanceState(state: Out<sys::nvmlPstates_t>) |d| {
        // Data centre GPUs stay in P0; an L40S falls to P8 when idle.
        let idle = d.node().meter(d.index).own_reasons & crate::meter::REASON_IDLE != 0;
        state.set(if idle && d.hw().spec.nvlinks == 0 { 8 } else { 0 })
    }
    nvmlDeviceGetPcieThroughput(counter: c_uint, value: Out<c_uint>) |d| {
        if counter > 1 {
            return Err(Code::INVALID_ARGUMENT);
        }
        let total = |d: &crate::call::Device| {
            let meter = d.node().meter(d.index);
            (meter.now(), if counter == 0 { meter.totals.pcie_tx } else { meter.totals.pcie_rx })
        };
        let before = total(&d);
        // The driver watches the link for 20 ms before it answers.
        std::thread::sleep(d.node().scenario.node.pcie_throughput.0);
        let after = total(&d);
        let span = after.0 - before.0;
        let kb_s = if span > 0.0 { (after.1 - before.1) / span / 1000.0 } else { 0.0 };
        value.set(kb_s.max(0.0) as c_uint)
    }
    nvmlDeviceGetPcieReplayCounter(value: Out<c_uint>) |_d| { value.set(0) }
    nvmlDeviceGetCurrPcieLinkGeneration(value: Out<c_uint>) |d| { value.set(d.hw().spec.pcie_gen) }
    nvmlDeviceGetMaxPcieLinkGeneration(value: Out<c_uint>) |d| { value.set(d.hw().spec.pcie_gen) }
    nvmlDeviceGetCurrPcieLinkWidth(value: Out<c_uint>) |d| { value.set(d.hw().spec.pcie_width) }
    nvmlDeviceGetMaxPcieLinkWidth(value: Out<c_uint>) |d| { value.set(d.hw().spec.pcie_width) }
    nvmlDeviceGetFieldValues(count: c_int, values: OutArray<sys::nvmlFieldValue_t>) |d| {
        let count = usize::try_from(count).ok().filter(|n| *n > 0).ok_or(Code::INVALID_ARGUMENT)?;
        let driver = d.node().hw.driver();
        for i in 0..count {
            let place = values.at(i);
            let began = std::time::Instant::now();
            let mut field = place.get()?;
            let id = fields::canonical(field.fieldId, driver);
            match fields::value(&d, id, field.scopeId) {
                Ok(value) => {
                    field.nvmlReturn = 0;
                    (field.valueType, field.value) = match value {
                        Value::U32(v) => (1, sys::nvmlValue_t { ullVal: u64::from(v) }),
                        Value::U64(v) => (3, sys::nvmlValue_t { ullVal: v }),
                        Value::I32(v) => (5, sys::nvmlValue_t { sllVal: i64::from(v) }),
                    };
                }
                Err(code) => field.nvmlReturn = code.0,
            }
            field.timestamp = d.node().clock.unix_us(d.node().clock.secs()) as i64;
            field.latencyUsec = began.elapsed().as_micros() as i64;
            place.set(field)?;
        }
        Ok(())
    }
    nvmlDeviceGetSamples(kind: c_uint, since: c_ulonglong, value_type: Out<sys::nvmlValueType_t>,
                         count: InOut<c_uint>, samples: OutArray<sys::nvmlSample_t>) |d| {
        let pick: fn(&crate::meter::Reading) -> u32 = match kind {
            0 => |r| r.power_mw,
            1 => |r| r.busy,
            2 => |r| r.mem,
            3 | 4 => |_| 0,
            5 => |r| r.sm_mhz,
            6..10 => return Err(Code::NOT_SUPPORTED),
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        let all: Vec<sys::nvmlSample_t> = {
            let clock = &d.node().clock;
            let meter = d.node().meter(d.index);
            meter.readings.iter()
                .map(|r| sys::nvmlSample_t {
                    timeStamp: clock.unix_us(r.t),
                    sampleValue: sys::nvmlValue_t { ullVal: u64::from(pick(r)) },
                })
                .filter(|s| s.timeStamp > since)
                .collect()
        };
        value_type.set(sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT)?;
        if samples.is_null() {
            return count.set(all.len() as c_uint);
        }
        if all.is_empty() {
            return Err(Code::NOT_FOUND);
        }
        // The newest, if there is no room for all.
        let room = count.get()? as usize;
        let newest = &all[all.len().saturating_sub(room)..];
        count.set(newest.len() as c_uint)?;
        samples.fill(newest)
    }
}
