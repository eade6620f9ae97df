//! The central scheduler: one writer over the core, a durable store, and the gRPC services.
//!
//! What decides stands in `tessera-core` and knows neither clock nor socket. This crate gives it
//! both: it reads settings, keeps the journal, speaks to agents and people.

/// From settings to a scheduler that serves.
pub mod run;
/// Flags and the settings file.
pub mod config;
/// Where nodes stand.
pub mod topology_file;
/// The data folder: its lock, its client.toml.
pub mod home;
/// Files that survive a power cut.
pub mod durable;
/// Secrets of people and joining nodes.
pub mod tokens;
/// Certificates.
pub mod ca;
/// Newest readings.
pub mod series;
/// The port.
pub mod serve;
/// Time that does not go back.
pub mod clock;
/// The journal and what follows from it.
pub mod store;
/// The one loop.
pub mod writer;
