//! The ledger of promised starts: which place is kept for whom from when on, how often a promise
//! moved and why, and how far the actual start was from the first promise and from the time of
//! arrival that was shown with it.
//!
//! In: promises as the decision makes them, and starts. Out: the places kept, which the next
//! decision has to honour, and sums that `replay`, the metrics and the start SLO read. Which
//! promise to make is `decide`'s work.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tessera_model::{Eta, JobId, Millis, NodeId, UnixMillis};

use crate::event::PromiseCause;
use crate::job_table::Job;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Promises {
    /// First promises made.
    pub made: u64,
    /// Promises that moved to a later start or were taken back, by cause.
    pub later: BTreeMap<String, u64>,
    /// Promised jobs that started.
    pub started: u64,
    /// Of these, how many began after their first promise, and by how much in sum.
    pub late: u64,
    pub late_ms: u64,
    /// And how much sooner than promised the others began.
    pub early_ms: u64,
    /// Started jobs that were shown a time of arrival, by how much its middle was off in sum, and
    /// how many had begun by its 90th percentile.
    pub eta_started: u64,
    pub eta_error_ms: u64,
    pub eta_in_p90: u64,
    /// What is kept for jobs that wait.
    pub slots: BTreeMap<JobId, Arc<Slot>>,
    /// The time of arrival shown with the first promise of jobs that wait.
    pub etas: BTreeMap<JobId, Eta>,
}

/// What a waiting job was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    pub first: UnixMillis,
    pub latest: UnixMillis,
}

/// A place and the time it is kept for. Which nodes it is made of may change until the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub at: UnixMillis,
    /// When the job is out again at the latest; `None`: it has no time limit.
    pub until: Option<UnixMillis>,
    /// Of the first role.
    pub nodes: u32,
    /// In rank order.
    pub places: Vec<SlotPlace>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPlace {
    pub node: NodeId,
    /// Bits, by the order of the node's inventory.
    pub gpus: u64,
}

impl Promises {
    /// A promise was made, moved or withdrawn.
    pub fn note(
        &mut self,
        job: &mut Job,
        at: Option<UnixMillis>,
        cause: PromiseCause,
        slot: Option<&Arc<Slot>>,
        eta: Option<Eta>,
    ) {
        match slot {
            Some(slot) => self.slots.insert(job.id, Arc::clone(slot)),
            None => self.slots.remove(&job.id),
        };
        let Some(at) = at else {
            self.etas.remove(&job.id);
            if job.promise.take().is_some() && cause != PromiseCause::Over {
                *self.later.entry(word(cause).to_owned()).or_default() += 1;
            }
            return;
        };
        match &mut job.promise {
            None => {
                self.made += 1;
                job.promise = Some(Promise { first: at, latest: at });
                if let Some(eta) = eta {
                    self.etas.insert(job.id, eta);
                }
            }
            // What was promised was promised to another job, as it were.
            Some(promise) if cause == PromiseCause::Changed => {
                *promise = Promise { first: at, latest: at };
            }
            Some(promise) => {
                if at > promise.latest {
                    *self.later.entry(word(cause).to_owned()).or_default() += 1;
                }
                promise.latest = at;
            }
        }
    }

    /// The job is not what it was: what is kept for it does not suit it any more.
    pub fn changed(&mut self, job: JobId) {
        self.slots.remove(&job);
        self.etas.remove(&job);
    }

    /// A job begins to hold its lease.
    pub fn started(&mut self, job: &Job, now: UnixMillis) {
        self.slots.remove(&job.id);
        if let Some(eta) = self.etas.remove(&job.id) {
            self.eta_started += 1;
            self.eta_error_ms += now.since(eta.p50).0.max(eta.p50.since(now).0);
            self.eta_in_p90 += u64::from(now <= eta.p90);
        }
        let Some(promise) = job.promise else { return };
        self.started += 1;
        if now > promise.first {
            self.late += 1;
            self.late_ms += now.since(promise.first).0;
        } else {
            self.early_ms += promise.first.since(now).0;
        }
    }

    /// How far starts are from their first promise, in the mean.
    pub fn error(&self) -> Option<Millis> {
        (self.started > 0).then(|| Millis((self.late_ms + self.early_ms) / self.started))
    }

    /// How far starts are from the middle of what was shown, in the mean.
    pub fn eta_error(&self) -> Option<Millis> {
        (self.eta_started > 0).then(|| Millis(self.eta_error_ms / self.eta_started))
    }
}

fn word(cause: PromiseCause) -> &'static str {
    match cause {
        PromiseCause::Reserved => "reserved",
        PromiseCause::Earlier => "earlier",
        PromiseCause::LostCapacity => "lost_capacity",
        PromiseCause::Overtaken => "overtaken",
        PromiseCause::OverQuota => "over_quota",
        PromiseCause::Changed => "changed",
        PromiseCause::Over => "over",
    }
}
