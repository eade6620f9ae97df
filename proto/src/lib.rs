//! The wire: `tessera/v1/*.proto`, the code made from it, and the conversions at the door.
//!
//! Generated types stay on the edge: a request becomes one of `model`'s types, or is refused, on
//! its first lines. How a connection is made secure stands in [`dial`].

/// Generated code.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("tessera.v1");
}

/// All `.proto` files as one descriptor set, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tessera.bin"));

mod door; // checks every door shares

/// A TLS channel to the scheduler.
pub mod dial;
/// Jobs, explanations, and how tasks end.
pub mod jobs;
/// Inventories, conditions, records, topology.
pub mod nodes;
/// Refusals as gRPC statuses, and back.
pub mod status;
/// Samples as columns, and as readings.
pub mod telemetry;
/// Lines and prices.
pub mod usage;
