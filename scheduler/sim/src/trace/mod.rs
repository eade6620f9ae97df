//! A recorded workload, replayed in virtual time: what would this policy have made of it?
//!
//! In: a trace of jobs and a list of nodes (published ones, or our own export). Out: waits,
//! utilisation, fragments, span and promises of each policy, side by side. The policies see one event
//! at a time; the driver keeps the clock, the lengths and a floor of its own, and stops with an error
//! when a policy breaks a rule. Files are read here and written here, and nothing reads a clock: the
//! same input gives the same numbers on every machine.
//!
//! ```
//! use tessera_sim::trace::{self, Discipline, PolicyReport, Request};
//!
//! let mut workload = trace::Workload {
//!     kind: trace::Kind::Queue,
//!     levels: vec![],
//!     nodes: trace::alike(1, 8),
//!     jobs: vec![],
//!     typical: vec![],
//!     shuffled: None,
//!     remarks: vec![],
//! };
//! for (submit_s, gpus) in [(0, 6), (1, 4), (2, 2)] {
//!     workload.jobs.push(trace::job(submit_s, 100, Request::gpus(1, gpus)));
//! }
//! let mut greedy = trace::queue_policy(Discipline::Greedy, &workload.nodes);
//! let run = trace::replay(&workload, greedy.as_mut(), &mut |_| {}).unwrap();
//! let report = PolicyReport::of(&workload, &run);
//! // The second job waits 99 s for the first; the third fits beside the first.
//! assert_eq!(report.queue.unwrap().wait.wait_ms_mean, 33_000.0);
//! ```

mod error;
mod load; // files and options: a workload
mod read; // one reader a format
mod table; // CSV, gzip, columns by name
mod workload;

mod drive; // the virtual clock
mod floor; // what is free; the judge
mod ours; // the shipping core
mod policies; // by name
mod policy; // the seam
mod queueing; // textbook queues

mod fragment;
mod report; // what it amounts to
mod span;

pub mod chart; // SVG
pub mod placements;

pub use drive::{Fate, Point, Progress, Run, replay};
pub use error::TraceError;
pub use floor::{Floor, Free, Placed};
pub use load::{Format, NodesFrom, Source};
pub use policies::Name as PolicyName;
pub use policy::{JobIndex, Policy, Promise, Start, Submission};
pub use queueing::Discipline;
pub use read::nodes::alike;
pub use report::{
    ARRIVED, Arrived, LevelSpan, Packing, PolicyReport, Promises, Queueing, SizeClass, SpanReport,
    TraceReport, Waits, allocation_curve, waits_s,
};
pub use span::{Span, Tree};
pub use workload::{BOUNDLESS, Job, Kind, Node, Request, WHOLE, Workload, typical};

use tessera_model::Millis;

pub fn queue_policy(discipline: Discipline, nodes: &[Node]) -> Box<dyn Policy> {
    Box::new(queueing::Queue::new(discipline, nodes))
}

/// A job made by hand; its limit is its length.
pub fn job(submit_s: u64, duration_s: u64, request: Request) -> Job {
    Job {
        seq: 0,
        name: String::new(),
        submit: Millis::from_secs(submit_s),
        duration: Millis::from_secs(duration_s),
        time_limit: Some(Millis::from_secs(duration_s)),
        priority: 0,
        tenant: String::new(),
        request,
    }
}
