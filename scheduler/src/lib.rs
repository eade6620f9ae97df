//! The central scheduler: one writer over the core, a durable store, and the gRPC services.
//!
//! What decides stands in `tessera-core` and knows neither clock nor socket. This crate gives it
//! both: it reads settings, keeps the journal, speaks to agents and people.

/// Certificates.
pub mod ca;
/// Time that does not go back.
pub mod clock;
/// Flags and the settings file.
pub mod config;
/// Files that survive a power cut.
pub mod durable;
/// The data folder: its lock, its client.toml.
pub mod home;
/// From settings to a scheduler that serves.
pub mod run;
/// Newest readings.
pub mod series;
/// The port.
pub mod serve;
/// The journal and what follows from it.
pub mod store;
/// Secrets of people and joining nodes.
pub mod tokens;
/// Where nodes stand, from files.
pub mod topology;
/// The one loop.
pub mod writer;
