//! Readers, one a format. Each finds its columns by name and leaves out nothing in silence.

pub mod export; // what tessera itself prints
pub mod jobs; // ITP, Philly: who, when, how long, how many GPUs
pub mod nodes; // node lists and topologies
pub mod openb; // pods with shares, the packing protocol

/// GPUs of one node. A node's devices have to fit a machine word.
pub const GPUS_PER_NODE_MAX: u64 = 64;
/// Nodes a list may have.
pub const NODES_MAX: usize = 200_000;
/// Jobs a trace may have, inflated.
pub const JOBS_MAX: usize = 20_000_000;
