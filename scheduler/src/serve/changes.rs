//! What is asked of jobs that are there: cancel, hold, release, update, signal, and to be told that
//! their work is safe.
//!
//! In: a wish for a job, for one task of an array, or for all of them. Out: the named job as it is
//! then, and how many jobs the wish reached. A wish for a whole array passes over tasks it comes
//! too late for; it is refused only where it reaches none.

use std::sync::Arc;

use tessera_core::{Cluster, Event, door};
use tessera_model::{
    AttemptId, JobChange, JobId, JobRecord, Principal, Refusal, RefusalKind, UnixMillis,
};
use tessera_proto::jobs::{change_from_wire, job_to_wire};
use tessera_proto::v1;

use super::Shared;
use super::jobs::scoped;

/// Whom a wish is for.
#[derive(Debug, Clone, Copy)]
pub struct Whom {
    pub job: JobId,
    /// The task of the array `job` with this index.
    pub index: Option<u32>,
    /// `job` alone, even where it is the first task of an array.
    pub only: bool,
}

/// Who asks, and what it is held against.
pub struct Ask<'a> {
    pub cluster: &'a Cluster,
    pub now: UnixMillis,
    pub who: &'a Principal,
}

type Answer = Result<(JobRecord, Vec<Event>), Refusal>;

impl Shared {
    /// Carries a wish to every job it is for, in one transaction.
    pub(super) async fn change(
        &self,
        who: &Arc<Principal>,
        whom: Whom,
        mut ask: impl FnMut(&Ask<'_>, JobId) -> Answer + Send + 'static,
    ) -> Result<v1::ChangeReply, Refusal> {
        let asking = who.clone();
        let outcome = self.handle.change(move |cluster, now| {
            let asks = Ask { cluster, now, who: &asking };
            let ids = door::tasks(cluster, &asking, whom.job, whom.index, whom.only)?;
            every(&ids, whom.job, |id| ask(&asks, id))
        });
        let (record, changed) = outcome.await?;
        Ok(v1::ChangeReply { job: Some(job_to_wire(&scoped(who, record))), changed })
    }

    pub(super) async fn cancel(
        &self,
        who: &Arc<Principal>,
        whom: Whom,
    ) -> Result<v1::ChangeReply, Refusal> {
        let ask = |ask: &Ask<'_>, id| door::cancel(ask.cluster, ask.who, id);
        match self.change(who, whom, ask).await {
            // It may have ended so long ago that only the store has it.
            Err(refusal) if refusal.kind == RefusalKind::NotFound && whom.index.is_none() => {
                let record = self.job(who, whom.job).await?;
                Ok(v1::ChangeReply { job: Some(job_to_wire(&record)), changed: 1 })
            }
            answer => answer,
        }
    }

    pub(super) async fn update(
        &self,
        who: &Arc<Principal>,
        request: v1::UpdateRequest,
    ) -> Result<v1::ChangeReply, Refusal> {
        let v1::UpdateRequest { job_id, index, only, change } = request;
        let mut change = change_from_wire(change.unwrap_or_default())?;
        let whom = Whom { job: JobId(job_id), index, only };
        let ask = move |ask: &Ask<'_>, id| {
            if change == JobChange::default() {
                // It was about the array as a whole, which has been told.
                let job = door::visible(ask.cluster, ask.who, id)?;
                return Ok((ask.cluster.record(job), Vec::new()));
            }
            let answer = door::update(ask.cluster, ask.now, ask.who, id, change.clone())?;
            // An array has one throttle: the first task that takes it sets it for all.
            change.throttle = None;
            Ok(answer)
        };
        self.change(who, whom, ask).await
    }

    pub(super) async fn report_checkpoint(
        &self,
        who: &Arc<Principal>,
        request: v1::ReportCheckpointRequest,
    ) -> Result<v1::Job, Refusal> {
        let v1::ReportCheckpointRequest { job_id, attempt } = request;
        let attempt = match attempt.as_str() {
            "" => None,
            text => Some(AttemptId::parse(text).ok_or_else(|| {
                let shown: String = text.chars().take(40).collect();
                let hint = format!("write it like {job_id}.1, or leave it out");
                Refusal::invalid("attempt", format!("{shown:?} is no attempt"), hint)
            })?),
        };
        let whom = Whom { job: JobId(job_id), index: None, only: true };
        let ask = move |ask: &Ask<'_>, id| door::checkpoint(ask.cluster, ask.who, id, attempt);
        let reply = self.change(who, whom, ask).await?;
        reply.job.ok_or_else(|| door::no_job(JobId(job_id)))
    }
}

/// Asks for each of the jobs. `named` is whose record is the answer, where it is among them.
fn every(
    ids: &[JobId],
    named: JobId,
    mut ask: impl FnMut(JobId) -> Answer,
) -> Result<((JobRecord, u32), Vec<Event>), Refusal> {
    let several = ids.len() > 1;
    let (mut events, mut changed) = (Vec::new(), 0u32);
    let (mut shown, mut refused): (Option<JobRecord>, Option<Refusal>) = (None, None);
    for id in ids {
        match ask(*id) {
            Ok((record, mut more)) => {
                let late = several && more.is_empty() && record.state.is_terminal();
                changed += u32::from(!late);
                events.append(&mut more);
                if shown.as_ref().is_none_or(|s| s.id != named && record.id == named) {
                    shown = Some(record);
                }
            }
            Err(refusal) if several && refusal.kind == RefusalKind::Precondition => {
                refused = Some(refusal);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    match (shown, refused) {
        (Some(record), _) => Ok(((record, changed), events)),
        (None, Some(refusal)) => Err(refusal),
        (None, None) => Err(door::no_job(named)),
    }
}
