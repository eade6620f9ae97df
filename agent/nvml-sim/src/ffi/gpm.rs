//! nvmlGpm*: samples and the metrics between them.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Code, InOut, Out, OutArray};
use crate::call::{Handle, Kind};
use crate::ffi::{device_fns, system_fns};
use crate::gpm::{SAMPLES, Sample, metric};

/// GPM structs carry a plain version.
const GPM_VERSION: u32 = 1;

device_fns! {
    nvmlGpmQueryDeviceSupport(support: InOut<sys::nvmlGpmSupport_t>) |d| {
        let asked = support.version()?;
        if asked != GPM_VERSION {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        support.set(sys::nvmlGpmSupport_t { version: asked, isSupportedDevice: d.hw().spec.gpm.into() })
    }
    nvmlGpmSampleGet(sample: Handle) |d| {
        if !d.hw().spec.gpm {
            return Err(Code::NOT_SUPPORTED);
        }
        let number = d.session.resolve(sample, Kind::GpmSample)?;
        let taken = {
            let meter = d.node().meter(d.index);
            Sample { gpu: d.index, t: meter.now(), totals: meter.totals }
        };
        if SAMPLES.lock().get_or_insert_default().set(number, taken) { Ok(()) } else { Err(Code::INVALID_ARGUMENT) }
    }
    // Activity of a MIG instance is not simulated.
    nvmlGpmMigSampleGet(_instance: c_uint, _sample: Handle) |_d| { Err(Code::NOT_SUPPORTED) }
}

system_fns! {
    nvmlGpmSampleAlloc(sample: Out<Handle>) |s| {
        let number = SAMPLES.lock().get_or_insert_default().alloc();
        sample.set(s.handle(Kind::GpmSample, number))
    }
    nvmlGpmSampleFree(sample: Handle) |s| {
        let number = s.resolve(sample, Kind::GpmSample)?;
        if SAMPLES.lock().get_or_insert_default().free(number) { Ok(()) } else { Err(Code::INVALID_ARGUMENT) }
    }
    nvmlGpmMetricsGet(request: InOut<GpmHead>) |s| {
        if request.version()? != GPM_VERSION {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let head = request.get()?;
        let sample = |handle| {
            let number = s.resolve(handle, Kind::GpmSample)?;
            SAMPLES.lock().get_or_insert_default().get(number).ok_or(Code::INVALID_ARGUMENT)
        };
        let (a, b) = (sample(head.sample1)?, sample(head.sample2)?);
        if a.gpu != b.gpu {
            return Err(Code::INVALID_ARGUMENT);
        }
        let spec = s.node.gpu_hw(a.gpu).spec;
        // The array is as long as the caller's NVML says (210, 333 later): only what it counts is there.
        let metrics = OutArray::of(request.address().wrapping_add(1).cast::<sys::nvmlGpmMetric_t>());
        for i in 0..head.count as usize {
            let place = metrics.at(i);
            let mut one = place.get()?;
            (one.nvmlReturn, one.value) = match metric(one.metricId, spec, &a, &b) {
                Some(value) => (0, value),
                None => (Code::NOT_SUPPORTED.0, f64::NAN),
            };
            place.set(one)?;
        }
        Ok(())
    }
}

/// The front of nvmlGpmMetricsGet_t, before its array.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GpmHead {
    version: u32,
    count: u32,
    sample1: Handle,
    sample2: Handle,
}

const _: () =
    assert!(size_of::<GpmHead>() == std::mem::offset_of!(sys::nvmlGpmMetricsGet_t, metrics));
