//! Placement: which GPUs a job should get.
//!
//! In: a [`Snapshot`]'s nodes with what is free on them, and a gang. Out: nodes in rank order with a
//! GPU set each, or why not. The wanted properties stand in `README.md`. Whose turn it is, and who
//! may fill in around whom, is `decide`'s work.

pub mod gang; // which nodes
pub mod gpus;
pub mod snapshot; // the cluster as placement sees it // which GPUs on a node

pub use gang::{Chosen, NoFit, could_ever_fit, place};
pub use snapshot::{NodeView, Pending, Release, Snapshot};
