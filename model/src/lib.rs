//! The words every part of Tessera shares: units, ids, nodes, jobs, leases, samples, money.
//!
//! Plain values only. What they may do is decided in `core`, how they travel in `proto`, how they
//! are measured in `agent`.

pub mod identity; // who is calling
pub mod ids; // who and which
pub mod job; // what was asked for, and how far it got
pub mod lease; // which GPUs a job holds
pub mod node; // what a node has
pub mod placement; // how near a job's nodes have to be, and what was proved of its place
pub mod quota; // what a team may hold
pub mod reason; // why a job waits, and the whole ladder behind it
pub mod refusal;
pub mod sample; // what was measured, raw
pub mod topology; // where a node stands
pub mod units; // milliseconds, GPU-milliseconds, dollars
pub mod usage; // who held what for how long, and at what price // how a request is turned down

pub use identity::{Principal, Role};
pub use ids::*;
pub use job::*;
pub use lease::*;
pub use node::*;
pub use placement::*;
pub use quota::*;
pub use reason::*;
pub use refusal::{Refusal, RefusalKind};
pub use topology::{DomainMark, Fabric, Topology};
pub use units::*;
