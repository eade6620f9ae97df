//! The agent, one per node: reads GPUs and NICs, streams what it sees, and runs the tasks it is told to.

pub mod mailbox; // the way of a sample to the uplink: bounded
pub mod probe; // what this node has, and how it is
pub mod sampler; // who reads it, and when
pub mod spool; // samples that wait on disk
pub mod telemetry; // the uplink

pub mod runner; // tasks on this node
pub mod session; // one life of this agent, and its lease

pub mod node_gpus; // what the runner asks the sampler

pub mod config; // what the agent is told
pub mod control; // the way to the scheduler
pub mod join;
pub mod passage; // can a job's user get through to its script? // who this node is to it
