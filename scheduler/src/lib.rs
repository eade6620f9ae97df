//! The central scheduler: one writer over the core, a durable store, and the gRPC services.
//!
//! What decides stands in `tessera-core` and knows neither clock nor socket. This crate gives it
//! both: it reads settings, keeps the journal, speaks to agents and people.

pub mod config; // flags and the settings file
pub mod topology_file; // where nodes stand
pub mod durable; // files that survive a power cut
pub mod tokens; // secrets of people and joining nodes
pub mod ca; // certificates
pub mod series; // newest readings
pub mod serve; // the port
pub mod clock; // time that does not go back
pub mod store; // the journal and what follows from it
pub mod writer; // the one loop
