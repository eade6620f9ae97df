//! What is wrong with a GPU: ECC, remapped rows, clock event reasons, violations.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Code, InOut, Out, OutArray, version};
use crate::call::Device;
use crate::ffi::device_fns;

/// ECC errors by kind (0 corrected, 1 uncorrected) and counter (0 volatile, 1 aggregate).
fn ecc(d: &Device, kind: c_uint, counter: c_uint) -> Result<u64, Code> {
    let (aggregate, volatile) = match kind {
        0 => d.fx.sbe,
        1 => d.fx.dbe,
        _ => return Err(Code::INVALID_ARGUMENT),
    };
    match counter {
        0 => Ok(volatile),
        1 => Ok(aggregate),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

fn reasons(d: &Device) -> u64 {
    let own = d.node().meter(d.index).own_reasons;
    // A throttled GPU is not called idle.
    if d.fx.throttle != 0 { (own & !crate::meter::REASON_IDLE) | d.fx.throttle } else { own }
}

device_fns! {
    nvmlDeviceGetCurrentClocksThrottleReasons(bits: Out<c_ulonglong>) |d| { bits.set(reasons(&d)) }
    nvmlDeviceGetCurrentClocksEventReasons(bits: Out<c_ulonglong>) |d| { bits.set(reasons(&d)) }
    nvmlDeviceGetSupportedClocksThrottleReasons(bits: Out<c_ulonglong>) |_d| { bits.set(0x1ff) }
    nvmlDeviceGetViolationStatus(policy: c_uint, time: Out<sys::nvmlViolationTime_t>) |d| {
        let node = d.node();
        let totals = node.meter(d.index).totals;
        let ns = match policy {
            0 => totals.power_violation_ns,
            1 => totals.thermal_violation_ns,
            2..=5 | 10 | 11 => 0.0,
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        time.set(sys::nvmlViolationTime_t {
            referenceTime: node.clock.unix_us(node.clock.secs()),
            violationTime: ns as u64,
        })
    }
    nvmlDeviceGetEccMode(current: Out<c_uint>, pending: Out<c_uint>) |_d| {
        current.set(1)?;
        pending.set(1)
    }
    nvmlDeviceGetTotalEccErrors(kind: c_uint, counter: c_uint, count: Out<c_ulonglong>) |d| {
        count.set(ecc(&d, kind, counter)?)
    }
    nvmlDeviceGetMemoryErrorCounter(kind: c_uint, counter: c_uint, place: c_uint, count: Out<c_ulonglong>) |d| {
        let in_dram = ecc(&d, kind, counter)?;
        count.set(match place {
            2 => in_dram,
            0 | 1 | 3 | 6 | 7 => 0,
            4 | 5 => return Err(Code::NOT_SUPPORTED),
            _ => return Err(Code::INVALID_ARGUMENT),
        })
    }
    // All our GPUs remap rows; pages were retired on those before.
    nvmlDeviceGetRetiredPages(_cause: c_uint, _count: InOut<c_uint>, _addresses: OutArray<c_ulonglong>) |_d| {
        Err(Code::NOT_SUPPORTED)
    }
    nvmlDeviceGetRetiredPages_v2(_cause: c_uint, _count: InOut<c_uint>, _addresses: OutArray<c_ulonglong>,
                                 _times: OutArray<c_ulonglong>) |_d| {
        Err(Code::NOT_SUPPORTED)
    }
    nvmlDeviceGetRetiredPagesPendingStatus(_pending: Out<c_uint>) |_d| { Err(Code::NOT_SUPPORTED) }
    nvmlDeviceGetRemappedRows(corrected: Out<c_uint>, uncorrected: Out<c_uint>, pending: Out<c_uint>,
                              failed: Out<c_uint>) |d| {
        corrected.set(0)?;
        uncorrected.set(d.fx.remapped_rows as c_uint)?;
        pending.set(d.fx.remap_pending.into())?;
        failed.set(d.fx.remap_failure.into())
    }
    nvmlDeviceGetSramEccErrorStatus(status: InOut<sys::nvmlEccSramErrorStatus_v1_t>) |_d| {
        let asked = status.version()?;
        if asked != version::<sys::nvmlEccSramErrorStatus_v1_t>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        // The simulated errors are all in DRAM.
        status.set(sys::nvmlEccSramErrorStatus_v1_t {
            version: asked,
            aggregateUncParity: 0,
            aggregateUncSecDed: 0,
            aggregateCor: 0,
            volatileUncParity: 0,
            volatileUncSecDed: 0,
            volatileCor: 0,
            aggregateUncBucketL2: 0,
            aggregateUncBucketSm: 0,
            aggregateUncBucketPcie: 0,
            aggregateUncBucketMcu: 0,
            aggregateUncBucketOther: 0,
            bThresholdExceeded: 0,
        })
    }
    nvmlDeviceGetPersistenceMode(mode: Out<c_uint>) |_d| { mode.set(1) }
    nvmlDeviceGetComputeMode(mode: Out<c_uint>) |_d| { mode.set(0) }
}
