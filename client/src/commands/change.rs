//! `tessera cancel`, `hold`, `release`, `update`, `signal`: what one asks of jobs that are there.
//!
//! In: jobs, arrays or tasks of arrays, and a wish. Out: what became of each. One job that refuses
//! is no reason to leave the others as they are. Whether a wish is allowed is the scheduler's to say.

use std::future::Future;

use tessera_model::{JobChange, JobRecord};
use tessera_proto::jobs::change_to_wire;
use tessera_proto::v1;
use tonic::{Response, Status};

use crate::call::{Api, job_record};
use crate::cli::{JobsArg, SignalArgs, UpdateArgs};
use crate::failure::{Failure, Outcome};
use crate::jobfile::placement_over;
use crate::output::{Screen, count};
use crate::selector::{self, Target};
use crate::views::JobView;
use crate::wishes::signal_text;

/// A job as it is now, and how many the wish reached.
pub struct Changed {
    pub job: JobRecord,
    pub changed: u32,
}

pub async fn cancel(api: &Api, args: &JobsArg, screen: &Screen) -> Outcome<u8> {
    let how = |done: &Changed, whom: &str| match done.job.state.is_terminal() {
        true if done.changed <= 1 => format!("{whom} is {}", done.job.state.word()),
        _ => format!("{whom} {} told to stop", are(done.changed)),
    };
    each(api, &args.jobs, screen, cancel_one, how).await
}

pub async fn hold(api: &Api, args: &JobsArg, screen: &Screen) -> Outcome<u8> {
    let how = |done: &Changed, whom: &str| format!("{whom} {} held", are(done.changed));
    each(api, &args.jobs, screen, hold_one, how).await
}

pub async fn release(api: &Api, args: &JobsArg, screen: &Screen) -> Outcome<u8> {
    let how = |done: &Changed, whom: &str| format!("{whom} {} released", are(done.changed));
    each(api, &args.jobs, screen, release_one, how).await
}

pub async fn signal(api: &Api, args: &SignalArgs, screen: &Screen) -> Outcome<u8> {
    let signal = args.signal;
    let how = |done: &Changed, whom: &str| {
        format!("{whom} {} sent {}", are(done.changed), signal_text(signal))
    };
    each(api, &args.jobs, screen, |api, target| signal_one(api, target, signal), how).await
}

pub async fn update(api: &Api, args: &UpdateArgs, screen: &Screen) -> Outcome<u8> {
    let asked = wanted(args)?;
    let ask = |api, target| update_one(api, target, args, asked.clone());
    let how = |done: &Changed, whom: &str| format!("{whom} {} changed", are(done.changed));
    each(api, &args.jobs, screen, ask, how).await
}

fn are(changed: u32) -> &'static str {
    if changed == 1 { "is" } else { "are" }
}

/// Carries the wish to every job the words mean.
async fn each<F, Fut>(
    api: &Api,
    words: &[String],
    screen: &Screen,
    ask: F,
    how: impl Fn(&Changed, &str) -> String,
) -> Outcome<u8>
where
    F: Fn(Api, Target) -> Fut,
    Fut: Future<Output = Outcome<Changed>>,
{
    let (mut done, mut failures): (Vec<JobRecord>, Vec<Failure>) = (Vec::new(), Vec::new());
    for target in selector::targets(api, words).await? {
        match ask(api.clone(), target).await {
            Ok(changed) => {
                if !screen.json {
                    screen.line(how(&changed, &whom(&changed, target)))?;
                }
                done.push(changed.job);
            }
            Err(failure) => failures.push(failure),
        }
    }
    if screen.json && failures.is_empty() {
        screen.json(&done.iter().map(JobView::of).collect::<Vec<_>>())?;
    }
    let Some(last) = failures.pop() else { return Ok(0) };
    if !screen.json {
        failures.iter().for_each(|failure| screen.failure(failure));
    }
    Err(last)
}

/// `job 812`, `task 7 of array 812`, or `100 tasks of array 812`.
fn whom(changed: &Changed, target: Target) -> String {
    let whole = target.index.is_none() && !target.only;
    match changed.job.array {
        Some(array) if whole && array.array == target.job => {
            format!("{} of array {}", count(changed.changed.into(), "task"), array.array)
        }
        Some(array) if !whole => format!("task {} of array {}", array.index, array.array),
        _ => format!("job {}", changed.job.id),
    }
}

fn changed(reply: v1::ChangeReply) -> Outcome<Changed> {
    let job = reply.job.ok_or_else(|| {
        Failure::no_answer("strange_answer", "the scheduler's answer names no job", "ask again")
    })?;
    Ok(Changed { job: job_record(job)?, changed: reply.changed })
}

/// Asks again while the scheduler is away: the same wish twice is one wish.
async fn ask<F, Fut>(api: &Api, call: F) -> Outcome<Changed>
where
    F: Fn(Api) -> Fut,
    Fut: Future<Output = Result<Response<v1::ChangeReply>, Status>>,
{
    changed(api.ask(call).await?)
}

pub async fn cancel_one(api: Api, target: Target) -> Outcome<Changed> {
    let Target { job, index, only } = target;
    let request = v1::CancelRequest { job_id: job.0, index, only };
    ask(&api, |api| async move { api.jobs().cancel(request).await }).await
}

async fn hold_one(api: Api, target: Target) -> Outcome<Changed> {
    let Target { job, index, only } = target;
    let request = v1::HoldRequest { job_id: job.0, index, only };
    ask(&api, |api| async move { api.jobs().hold(request).await }).await
}

async fn release_one(api: Api, target: Target) -> Outcome<Changed> {
    let Target { job, index, only } = target;
    let request = v1::ReleaseRequest { job_id: job.0, index, only };
    ask(&api, |api| async move { api.jobs().release(request).await }).await
}

/// Asked once: a signal that comes twice is two signals.
async fn signal_one(api: Api, target: Target, signal: i32) -> Outcome<Changed> {
    let Target { job, index, only } = target;
    let request = v1::SignalRequest { job_id: job.0, index, only, signal };
    changed(api.once(api.jobs().signal(request)).await?)
}

async fn update_one(
    api: Api,
    target: Target,
    args: &UpdateArgs,
    mut change: JobChange,
) -> Outcome<Changed> {
    let Target { job, index, only } = target;
    let wish = args.place.placement();
    if args.anywhere {
        change.placement = Some(wish);
    } else if !wish.is_empty() {
        // The wire knows the whole of a placement only: what is not named stays as it is.
        let record = api.get(job, index).await?;
        change.placement = Some(placement_over(wish, record.spec.placement));
    }
    let wire = change_to_wire(&change);
    let request = &v1::UpdateRequest { job_id: job.0, index, only, change: Some(wire) };
    ask(&api, |api| async move { api.jobs().update(request.clone()).await }).await
}

/// What is to change, but for the place.
fn wanted(args: &UpdateArgs) -> Outcome<JobChange> {
    let after = args.after.iter().flat_map(|a| a.0.iter().cloned()).collect();
    let change = JobChange {
        priority: args.priority,
        tier: args.tier,
        time_limit: args.time_limit,
        nodes: args.nodes,
        placement: None,
        begin: args.begin,
        after: (!args.after.is_empty()).then_some(after),
        throttle: args.throttle,
    };
    let place = args.anywhere || !args.place.placement().is_empty();
    if change == JobChange::default() && !place {
        return Err(Failure::usage(
            "nothing is to be changed",
            "say what, for example --nodes 6 or --priority 10; see tessera update --help",
        ));
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use tessera_model::{ArrayTask, JobId, JobState};

    use super::*;

    #[test]
    fn a_job_a_task_and_an_array_are_told_apart() {
        let wire = v1::Job {
            id: 812,
            state: v1::JobState::Pending.into(),
            spec: Some(v1::JobSpec {
                team: "nlp".to_owned(),
                user: "ada".to_owned(),
                argv: vec!["true".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let job = job_record(wire).unwrap();
        assert_eq!(job.state, JobState::Pending);
        let task =
            JobRecord { array: Some(ArrayTask { array: JobId(812), index: 0 }), ..job.clone() };
        let target = Target::job(JobId(812));
        let one = Changed { job, changed: 1 };
        assert_eq!(whom(&one, target), "job 812");
        let many = Changed { job: task, changed: 100 };
        assert_eq!(whom(&many, target), "100 tasks of array 812");
        let first = Target { only: true, ..target };
        assert_eq!(whom(&Changed { changed: 1, ..many }, first), "task 0 of array 812");
    }
}
