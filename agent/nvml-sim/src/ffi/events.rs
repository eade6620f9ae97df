//! Event sets: registering, waiting, letting go.

use std::ffi::{c_uint, c_ulonglong};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings as sys;

use crate::abi::{Code, Out, guard};
use crate::call::{Device, Handle, Kind, enter};
use crate::events::bits;
use crate::ffi::{device_fns, system_fns};

/// Event types a GPU can tell of: those of NVML 13 from Hopper on.
fn supported(d: &Device) -> u64 {
    let all = bits::SBE | bits::DBE | bits::PSTATE | bits::XID | bits::CLOCK | bits::MIG;
    if d.hw().spec.arch >= 9 { all | bits::NVML_13 } else { all }
}

device_fns! {
    nvmlDeviceGetSupportedEventTypes(types: Out<c_ulonglong>) |d| { types.set(supported(&d)) }
    nvmlDeviceRegisterEvents(types: c_ulonglong, set: Handle) |d| {
        let number = d.session.resolve(set, Kind::EventSet)?;
        if types & !supported(&d) != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        if !d.node().events.register(number, d.index, types) {
            return Err(Code::INVALID_ARGUMENT);
        }
        Ok(())
    }
}

system_fns! {
    nvmlEventSetCreate(set: Out<Handle>) |s| {
        let number = s.node.events.create();
        set.set(s.handle(Kind::EventSet, number))
    }
    nvmlEventSetFree(set: Handle) |s| {
        let number = s.resolve(set, Kind::EventSet)?;
        if s.node.events.free(number) { Ok(()) } else { Err(Code::INVALID_ARGUMENT) }
    }
}

/// Waits until there is an event or the time is up. The waiter does what falls due meanwhile: the
/// event it waits for may be of its own making.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetWait_v2(
    set: Handle,
    data: Out<sys::nvmlEventData_t>,
    timeout_ms: c_uint,
) -> sys::nvmlReturn_t {
    guard(|| {
        let s = enter("nvmlEventSetWait_v2")?;
        let number = s.resolve(set, Kind::EventSet)?;
        let generation = s.node.driver_generation();
        let began = Instant::now();
        let patience = Duration::from_millis(timeout_ms.into());
        loop {
            s.node.tick();
            let left = patience.saturating_sub(began.elapsed());
            let found = s.node.events.take(number, left.min(s.node.until_next()));
            if let Some(event) = found.ok_or(Code::UNINITIALIZED)? {
                return data.set(sys::nvmlEventData_t {
                    device: s.device(event.gpu).0.cast(),
                    eventType: event.bits,
                    eventData: event.data,
                    gpuInstanceId: u32::MAX,
                    computeInstanceId: u32::MAX,
                });
            }
            if s.node.driver_generation() != generation {
                return Err(Code::UNINITIALIZED);
            }
            if began.elapsed() >= patience {
                return Err(Code::TIMEOUT);
            }
        }
    })
}
