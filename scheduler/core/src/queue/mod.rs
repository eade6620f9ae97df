//! The queue: which jobs may go, whose turn it is, and how much each team may hold.
//!
//! In: the cluster's jobs, teams and reservations, as events change them. Out: the jobs that lack
//! nothing but a place, in one total order; for all others what is in their way; and, for a job
//! whose turn it is, whether its team may have what it asks. Finding the place is `placement`'s
//! work, and putting all of it together `decide`'s.

pub mod fairshare; // what each team has had
pub mod gate; // what keeps a job out of the order
pub mod order; // whose turn it is
pub mod quota; // what a team may hold
pub mod surplus; // who is passed over when too many wait
pub mod waiting; // all that wait, in the order or parked

use tessera_model::{JobState, WaitReason};

use crate::cluster::Cluster;
use crate::job_table::Job;

pub use order::BOUND;
pub use quota::{Claim, Quotas};

/// What keeps a waiting job from being looked at for a place; `None`: nothing does. Its state is as
/// of the last event.
pub fn gate(cluster: &Cluster, job: &Job) -> Option<WaitReason> {
    (job.state == JobState::Pending).then(|| cluster.jobs.gate_reason(job))?
}
