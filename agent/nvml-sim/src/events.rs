//! Event sets: what happens to GPUs, queued for those who asked.
//!
//! In: events from `fault`. Out: one queue a set, over all GPUs registered with it. Nothing here
//! knows when the next event is due; the waiter is told (`node`).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Events a set holds at most; then the oldest goes.
const QUEUE_MAX: usize = 4096;

/// Bits of NVML's event types.
pub mod bits {
    pub const SBE: u64 = 0x1;
    pub const DBE: u64 = 0x2;
    pub const PSTATE: u64 = 0x4;
    pub const XID: u64 = 0x8;
    pub const CLOCK: u64 = 0x10;
    pub const MIG: u64 = 0x100;
    pub const DRAM_RETIREMENT: u64 = 0x400;
    pub const DRAM_RETIREMENT_FAILURE: u64 = 0x800;
    pub const UNAVAILABLE: u64 = 0x4000;
    pub const RECOVERY_ACTION: u64 = 0x8000;
    /// Those that came with NVML 13.
    pub const NVML_13: u64 = 0xfe00;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub gpu: usize,
    pub bits: u64,
    pub data: u64,
}

#[derive(Debug, Default)]
struct Set {
    masks: BTreeMap<usize, u64>,
    queue: VecDeque<Event>,
}

#[derive(Debug, Default)]
struct Sets {
    next: u32,
    open: BTreeMap<u32, Set>,
}

#[derive(Debug, Default)]
pub struct Events {
    sets: Mutex<Sets>,
    arrived: Condvar,
}

impl Events {
    pub fn create(&self) -> u32 {
        let mut sets = self.sets.lock();
        sets.next += 1;
        let id = sets.next;
        sets.open.insert(id, Set::default());
        id
    }

    /// `false`: there is no such set.
    pub fn free(&self, id: u32) -> bool {
        let gone = self.sets.lock().open.remove(&id).is_some();
        self.arrived.notify_all();
        gone
    }

    pub fn clear(&self) {
        self.sets.lock().open.clear();
        self.arrived.notify_all();
    }

    pub fn register(&self, id: u32, gpu: usize, mask: u64) -> bool {
        let mut sets = self.sets.lock();
        let Some(set) = sets.open.get_mut(&id) else { return false };
        *set.masks.entry(gpu).or_default() |= mask;
        true
    }

    pub fn push(&self, event: Event, last_xid_wins: bool) {
        let mut sets = self.sets.lock();
        for set in sets.open.values_mut() {
            if set.masks.get(&event.gpu).copied().unwrap_or(0) & event.bits == 0 {
                continue;
            }
            if last_xid_wins && event.bits == bits::XID {
                for earlier in &mut set.queue {
                    if earlier.gpu == event.gpu && earlier.bits == bits::XID {
                        earlier.data = event.data;
                    }
                }
            }
            if set.queue.len() == QUEUE_MAX {
                set.queue.pop_front();
            }
            set.queue.push_back(event);
        }
        drop(sets);
        self.arrived.notify_all();
    }

    /// Wakes every waiter, so that it looks at the clock again.
    pub fn nudge(&self) {
        self.arrived.notify_all();
    }

    /// The next event of a set, waiting no longer than `patience`. `None`: no such set.
    /// `Some(None)`: nothing yet.
    pub fn take(&self, id: u32, patience: Duration) -> Option<Option<Event>> {
        let mut sets = self.sets.lock();
        if let Some(event) = sets.open.get_mut(&id)?.queue.pop_front() {
            return Some(Some(event));
        }
        if patience.is_zero() {
            return Some(None);
        }
        self.arrived.wait_for(&mut sets, patience);
        Some(sets.open.get_mut(&id)?.queue.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xid(gpu: usize, data: u64) -> Event {
        Event { gpu, bits: bits::XID, data }
    }

    #[test]
    fn one_queue_for_all_gpus_and_only_what_was_asked_for() {
        let events = Events::default();
        let set = events.create();
        assert!(events.register(set, 0, bits::XID) && events.register(set, 1, bits::XID));
        events.push(xid(1, 31), true);
        events.push(xid(0, 79), true);
        events.push(xid(2, 13), true);
        events.push(Event { gpu: 0, bits: bits::DBE, data: 0 }, true);
        assert_eq!(events.take(set, Duration::ZERO), Some(Some(xid(1, 31))));
        assert_eq!(events.take(set, Duration::ZERO), Some(Some(xid(0, 79))));
        assert_eq!(events.take(set, Duration::ZERO), Some(None));
        assert!(events.free(set) && !events.free(set));
        assert_eq!(events.take(set, Duration::ZERO), None);
    }

    #[test]
    fn the_last_xid_hides_those_before_it_unless_told_otherwise() {
        for (last_wins, codes) in [(true, [94, 94]), (false, [48, 94])] {
            let events = Events::default();
            let set = events.create();
            events.register(set, 0, bits::XID);
            events.push(xid(0, 48), last_wins);
            events.push(xid(0, 94), last_wins);
            for code in codes {
                assert_eq!(
                    events.take(set, Duration::ZERO),
                    Some(Some(xid(0, code))),
                    "{last_wins}"
                );
            }
        }
    }
}
