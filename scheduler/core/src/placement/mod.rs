//! Placement: which GPUs a job should get.
//!
//! In: a [`Space`], what is free where, and a [`Request`], a job's shape and constraints made ready
//! for it. Out: [`Placed`], nodes in rank order with a GPU set each and what is proved of them, or
//! [`NoFit`], what is missing. The wanted properties stand in `README.md`. Whose turn it is, and
//! who may fill in around whom, is `decide`'s work.

pub mod gpus; // which GPUs on a node
pub mod layout; // where which nodes stand
pub mod nodes; // a set of nodes
pub mod packing;
pub mod request; // what is asked, made ready for a space
pub mod search; // which nodes
pub mod seats; // a packer, and what it knows of a space's nodes
pub mod space; // what is free where // single nodes and shares: where the least goes to waste

mod bonds; // whether nodes keep what binds them
mod finish; // which nodes, which GPUs, in which order
mod fit; // which nodes have room
mod former; // in-place replacement
mod grid; // a cluster out of nothing
mod mixed; // all others: searched for
mod plain; // gangs of alike nodes: exact by counting
mod proof;
mod span; // how they are divided over the fabric // why there is no place

pub use nodes::NodeSet;
pub use request::{Request, RequestKey, Terms};
pub use search::{Chosen, NoFit, Placed, could_ever_fit, place};
pub use seats::Seats;
pub use space::{Space, Taken};
