//! The central scheduler: one writer over the core, a durable store, and the gRPC services.
