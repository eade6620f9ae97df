//! The library, opened, and which call a thread is in.
//!
//! In: a library path. Out: an [`Open`] that can be had again after a driver reload, and a [`CallWatch`]
//! in which a call that does not return can be seen from another thread.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use parking_lot::Mutex;

use crate::probe::nvml_raw::EventSet;

/// NVML, opened. Clones are cheap and never dangle: an opened library is leaked on purpose. A thread
/// may be stuck inside it for ever, and the wrapper's `Drop` panics where a library has no
/// `nvmlShutdown`. A driver reload costs some 20 kB.
#[derive(Debug, Clone)]
pub struct Open {
    pub nvml: &'static Nvml,
    pub driver_version: Option<String>,
    /// Counts the openings, from 1.
    pub generation: u32,
    /// Held during a wait, so that no device is registered in the middle of one. `None` where the
    /// library has no events.
    pub events: Option<&'static Mutex<EventSet>>,
}

/// The way to NVML, and back to it after a driver reload.
#[derive(Debug)]
pub struct Driver {
    /// `None`: the names under which drivers install it.
    library: Option<PathBuf>,
    state: Mutex<DriverState>,
}

#[derive(Debug)]
struct DriverState {
    open: Option<Open>,
    generation: u32,
    tried: Option<Instant>,
    pause: Duration,
}

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

impl Driver {
    pub fn new(library: Option<PathBuf>) -> Self {
        let state = DriverState { open: None, generation: 0, tried: None, pause: Duration::ZERO };
        Self { library, state: Mutex::new(state) }
    }

    /// The opening in use, if there is one. Does not wait for an opening under way.
    pub fn current(&self) -> Option<Open> {
        self.state.try_lock_for(Duration::from_millis(50))?.open.clone()
    }

    /// A newer opening than `seen` (0: any). Opens the library when there is none; after a failure
    /// the next try waits, longer each time.
    pub fn open(&self, seen: u32) -> Result<Open, NvmlError> {
        let mut state = self.state.lock();
        if let Some(open) = &state.open
            && open.generation > seen
        {
            return Ok(open.clone());
        }
        if state.tried.is_some_and(|tried| tried.elapsed() < state.pause) {
            return Err(NvmlError::Uninitialized);
        }
        state.tried = Some(Instant::now());
        match self.load() {
            Ok(nvml) => {
                state.generation += 1;
                state.pause = PAUSE_MIN;
                let nvml: &'static Nvml = Box::leak(Box::new(nvml));
                let events = EventSet::create(nvml)
                    .inspect_err(|error| tracing::warn!(%error, "NVML has no events; XIDs come from the kernel log only"))
                    .ok();
                let open = Open {
                    nvml,
                    driver_version: nvml.sys_driver_version().ok(),
                    generation: state.generation,
                    events: events.map(|set| &*Box::leak(Box::new(Mutex::new(set)))),
                };
                state.open = Some(open.clone());
                Ok(open)
            }
            Err(error) => {
                state.pause = (state.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                Err(error)
            }
        }
    }

    fn load(&self) -> Result<Nvml, NvmlError> {
        let init = |path: &OsStr| Nvml::builder().lib_path(path).init();
        match &self.library {
            Some(path) => init(path.as_os_str()),
            // The name without the number comes with the development files only.
            None => match init(OsStr::new("libnvidia-ml.so.1")) {
                Err(NvmlError::LibloadingError(_)) => init(OsStr::new("libnvidia-ml.so")),
                other => other,
            },
        }
    }
}

/// Says which call a thread is in, and since when.
#[derive(Debug, Default)]
pub struct CallWatch {
    /// Milliseconds on the process's own clock, from 1; 0 between calls.
    since: AtomicU64,
    call: Mutex<&'static str>,
}

impl CallWatch {
    pub fn during<T>(&self, call: &'static str, run: impl FnOnce() -> T) -> T {
        *self.call.lock() = call;
        self.since.store(clock_ms(), Ordering::Release);
        let result = run();
        self.since.store(0, Ordering::Release);
        result
    }

    /// The call that has been under way for longer than `deadline`.
    pub fn overdue(&self, deadline: Duration) -> Option<&'static str> {
        let since = self.since.load(Ordering::Acquire);
        let waited = clock_ms().saturating_sub(since);
        (since != 0 && u128::from(waited) > deadline.as_millis()).then(|| *self.call.lock())
    }
}

fn clock_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_overdue_only_while_it_lasts() {
        let watch = CallWatch::default();
        assert_eq!(watch.overdue(Duration::ZERO), None);
        watch.during("slow", || {
            while watch.overdue(Duration::ZERO).is_none() {
                std::thread::yield_now();
            }
            assert_eq!(watch.overdue(Duration::ZERO), Some("slow"));
            assert_eq!(watch.overdue(Duration::from_secs(3600)), None);
        });
        assert_eq!(watch.overdue(Duration::ZERO), None);
    }
}
