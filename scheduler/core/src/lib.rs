//! The scheduler's pure core. No clock, file, socket, thread or random number in here: time comes
//! with each event, so a replay of last month's journal runs the very code that schedules today.
//!
//! What comes in is an [`event::Event`]; [`cluster::Cluster::apply`] is the only thing that changes
//! state. What should happen next is asked of [`decide::decide`]. What a caller wants is checked in
//! [`door`], which answers with events or with a refusal.

pub mod access; // who may do what
pub mod cluster; // the state, and how each event changes it
pub mod decide; // whose turn it is, who fills in around it
pub mod door; // requests: events or a refusal
pub mod due; // what the passing of time brings about
pub mod event; // what may change the cluster
pub mod explain; // the reasons, for people
pub mod habits; // what jobs are known to do
pub mod job_table; // jobs and their attempts
pub mod ledger;
pub mod node_table; // nodes and what is held on them
pub mod order; // what agents are told
pub mod placement; // which GPUs a job should get
pub mod promises; // what starts were promised, and what came of it
pub mod queue; // which jobs may go, whose turn it is, how much a team may hold
pub mod records; // jobs and nodes as everybody sees them
pub mod round; // what follows from a decision, verified and written down
pub mod snapshot; // the cluster at one instant, as a decision sees it
pub mod topology; // the map in force, and where nodes contradict it
pub mod verify; // a second opinion on every placement // what each GPU was doing, and what it costs

pub use cluster::Cluster;
pub use event::{Event, Stamped};
pub use order::Order;
