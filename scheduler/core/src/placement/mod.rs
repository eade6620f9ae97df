//! Placement: which GPUs a job should get.
//!
//! In: a [`Space`], what is free where, and a [`Request`], a job's shape and constraints made ready
//! for it. Out: [`Placed`], nodes in rank order with a GPU set each and what is proved of them, or
//! [`NoFit`], what is missing. The wanted properties stand in `README.md`. Whose turn it is, and
//! who may fill in around whom, is `decide`'s work.

pub mod space; // what is free where
pub mod layout; // where which nodes stand
pub mod nodes; // a set of nodes
pub mod request; // what is asked, made ready for a space
pub mod search; // which nodes
pub mod gpus; // which GPUs on a node
pub mod seats; // a packer, and what it knows of a space's nodes
pub mod packing; // single nodes and shares: where the least goes to waste

mod grid; // a cluster out of nothing
mod fit; // which nodes have room
mod plain; // gangs of alike nodes: exact by counting
mod span; // how they are divided over the fabric
mod mixed; // all others: searched for
mod former; // in-place replacement
mod finish; // which nodes, which GPUs, in which order
mod bonds; // whether nodes keep what binds them
mod proof; // why there is no place

pub use nodes::NodeSet;
pub use request::{Request, RequestKey, Terms};
pub use seats::Seats;
pub use search::{Chosen, NoFit, Placed, could_ever_fit, place};
pub use space::{Space, Taken};
