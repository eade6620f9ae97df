//! A simulated NVML: the real C ABI of `libnvidia-ml.so.1`, answered from a scenario.
//!
//! In: a node directory (`node.toml`, `control.toml`), the clock, and the processes of this machine
//! whose `CUDA_VISIBLE_DEVICES` names one of the simulated GPUs. Out: NVML answers, a `sys/` tree,
//! `journal.jsonl` with every fault and the moment it took effect, and `kmsg` lines for XIDs.
//!
//! A node is a directory. The library finds its own file with `dladdr` and reads the scenario that
//! lies beside it, so two copies loaded by one process are two nodes.
//!
//! The library starts no thread of its own: it can be unloaded at any time, and what falls due is
//! done by whoever calls next (a caller inside `nvmlEventSetWait_v2` sleeps only until then).

pub mod control;
pub mod hardware; // what each preset is made of, and where it sits
pub mod identity; // UUIDs, serials and seeded chance
pub mod nodedir; // making a node directory
pub mod scenario; // node.toml and control.toml
pub mod sysfs; // its /sys tree // changing a living one

pub mod load; // how busy a GPU is at a moment
pub mod meter; // what that does to power, heat and counters
pub mod nics;
pub mod procs; // the real processes that use a simulated GPU // counters of the simulated NICs

pub mod clock; // time since the node's epoch
pub mod events; // event sets
pub mod fault; // what is broken at a moment
pub mod journal; // the record of it
pub mod node; // one simulated node: all of the above

pub mod abi; // what crosses the C boundary
pub mod call; // init, shutdown, handles, the way into every call
pub mod fields; // nvmlDeviceGetFieldValues
pub mod gpm; // nvmlGpm*

mod ffi; // the exported functions

pub use nodedir::{NodeOptions, create_node, find_library};
pub use scenario::Preset;
