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

pub mod admin; // a team's share, and reservations
pub mod dial; // a TLS channel to the scheduler
mod door; // checks every door shares
pub mod jobs; // jobs, explanations, and how tasks end
pub mod nodes; // inventories, conditions, records
pub mod status; // refusals as gRPC statuses, and back
pub mod telemetry; // samples as columns, and as readings
pub mod topology; // the map, and what is said of its domains
pub mod usage; // lines and prices
