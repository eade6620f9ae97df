//! Jobs at the door: specs, records, explanations, and how tasks end.
//!
//! Wire to model may be refused, model to wire always succeeds. Whether a caller may use a team,
//! and whether a level or a GPU model exists, is decided further in.

mod spec; // what was asked for, with its bounds

mod array; // one job for each index
mod change; // what is asked of a job later
mod placement; // how near its nodes have to be
mod when; // not before what, and how its work is saved

mod explain; // why it waits, how a task ended
mod record; // a job as everybody sees it

pub use array::{ARRAY_TASKS_MAX, array_from_wire, array_to_wire};
pub use change::{change_from_wire, change_to_wire, signal_from_wire};
pub use explain::{end_from_wire, end_to_wire, explanation_from_wire, explanation_to_wire};
pub use placement::{placement_from_wire, placement_to_wire};
pub use record::{job_from_wire, job_to_wire, state_from_wire, state_to_wire};
pub use spec::{spec_from_wire, spec_to_wire, tier_from_wire, tier_to_wire};
pub use when::{after_to_wire, checkpoint_to_wire};

pub(crate) use when::check_instant;
