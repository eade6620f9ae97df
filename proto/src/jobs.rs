//! Jobs at the door: specs, records, explanations, and how tasks end.
//!
//! Wire to model may be refused, model to wire always succeeds. Whether a caller may use a team,
//! and whether a level or a GPU model exists, is decided further in.

mod explain; // why it waits, how a task ended
mod record; // a job as everybody sees it
mod spec; // what was asked for, with its bounds

pub use explain::{end_from_wire, end_to_wire, explanation_from_wire, explanation_to_wire};
pub use record::{job_from_wire, job_to_wire, state_from_wire, state_to_wire};
pub use spec::{spec_from_wire, spec_to_wire};
