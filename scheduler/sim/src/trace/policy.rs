//! The seam between the driver and whoever decides.
//!
//! In: submissions and ends, each in its turn. Out: what starts, where, and what was promised. A
//! policy sees nothing of the trace but these events.

use tessera_model::{Millis, UnixMillis};

use super::floor::Placed;
use super::workload::Request;

/// A job's index in the workload; also the order of arrival.
pub type JobIndex = usize;

/// What a policy is told of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    pub job: JobIndex,
    pub request: Request,
    /// How long it may run at most, the one thing known of its length.
    pub time_limit: Option<Millis>,
    pub priority: i32,
    pub tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub job: JobIndex,
    pub places: Vec<Placed>,
}

/// A job that waits was told when it starts at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    pub job: JobIndex,
    pub at: UnixMillis,
}

pub trait Policy {
    /// As the command line calls it.
    fn name(&self) -> &'static str;

    fn submitted(&mut self, now: UnixMillis, submission: &Submission);

    /// A job of this policy's came to its end.
    fn ended(&mut self, now: UnixMillis, job: JobIndex);

    /// It waits no longer: whoever asked for it has gone.
    fn withdrawn(&mut self, now: UnixMillis, job: JobIndex);

    /// What starts now. What it names here is running from now on.
    fn starts(&mut self, now: UnixMillis) -> Vec<Start>;

    /// Promises made since this was asked last.
    fn promises(&mut self) -> Vec<Promise> {
        Vec::new()
    }

    /// When it wants to be asked again though nothing has happened.
    fn wake(&self) -> Option<UnixMillis> {
        None
    }
}
