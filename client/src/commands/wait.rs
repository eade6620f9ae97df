//! `tessera wait`: until jobs end.
//!
//! In: jobs. Out: how each ended; exit code 0 only when all succeeded. A broken connection is
//! taken up again: a watch begins with the present state, so no end is missed.

use std::time::Duration;

use tessera_model::{JobId, JobRecord, JobState};
use tessera_proto::{status::from_status, v1};

use crate::call::{Api, job_record};
use crate::cli::WaitArgs;
use crate::failure::{Failure, NO, Outcome};
use crate::output::Screen;
use crate::selector;
use crate::views::JobView;

/// How often a stream may break with nothing read in between, before we give up.
pub const BREAKS_MAX: u32 = 60;
pub const BREAK_PAUSE: Duration = Duration::from_millis(500);

pub async fn run(api: &Api, args: &WaitArgs, screen: &Screen) -> Outcome<u8> {
    let ids = selector::resolve_tasks(api, &args.jobs).await?;
    let all = wait_all(api, &ids, screen);
    let jobs = match args.timeout {
        None => all.await?,
        Some(limit) => match tokio::time::timeout(Duration::from_millis(limit.0), all).await {
            Ok(jobs) => jobs?,
            Err(_) => {
                return Err(Failure::no_answer(
                    "timeout",
                    format!("not all of these jobs ended within {limit}"),
                    "they go on; `tessera queue` shows them",
                ));
            }
        },
    };
    if screen.json {
        screen.json(&jobs.iter().map(JobView::of).collect::<Vec<_>>())?;
    }
    Ok(jobs.iter().map(exit_code).max().unwrap_or(0))
}

/// All at once, so that each is told of when it ends; the answer is in the order asked.
pub async fn wait_all(api: &Api, ids: &[JobId], screen: &Screen) -> Outcome<Vec<JobRecord>> {
    let mut waits = tokio::task::JoinSet::new();
    for &id in ids {
        let api = api.clone();
        waits.spawn(async move { until_end(&api, id, |_| {}).await });
    }
    let mut done = Vec::new();
    while let Some(joined) = waits.join_next().await {
        let job = joined.map_err(|error| {
            Failure::no_answer("internal", format!("a wait broke: {error}"), "")
        })??;
        if !screen.json {
            screen.line(ended(&job))?;
        }
        done.push(job);
    }
    done.sort_by_key(|job| ids.iter().position(|id| *id == job.id));
    Ok(done)
}

/// The job as it ended; each state on the way goes to `seen`.
pub async fn until_end(
    api: &Api,
    id: JobId,
    mut seen: impl FnMut(&JobRecord),
) -> Outcome<JobRecord> {
    let mut breaks = 0;
    loop {
        let request = v1::WatchRequest { job_id: id.0 };
        let opened = api.once(api.jobs().watch(request)).await;
        let failure = match opened {
            Err(failure) => Some(failure),
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(job)) => {
                        breaks = 0;
                        let job = job_record(job)?;
                        seen(&job);
                        if job.state.is_terminal() {
                            return Ok(job);
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(from_status(&status).into()),
                }
            },
        };
        breaks += 1;
        match failure {
            Some(failure) if !failure.is_unavailable() || breaks > BREAKS_MAX => {
                return Err(failure);
            }
            None if breaks > BREAKS_MAX => {
                return Err(Failure::no_answer(
                    "unavailable",
                    format!("the scheduler stopped telling of job {id} before its end"),
                    "ask again",
                ));
            }
            _ => tokio::time::sleep(BREAK_PAUSE).await,
        }
    }
}

/// `job 812 failed with exit code 3: rank 0 exited with 3`.
pub fn ended(job: &JobRecord) -> String {
    let code = job.exit_code.filter(|c| *c != 0).map(|c| format!(" with exit code {c}"));
    let reason = match job.state {
        JobState::Succeeded => "",
        _ => job.reason.as_str(),
    };
    let colon = if reason.is_empty() { "" } else { ": " };
    let word = job.state.word();
    format!(
        "job {} {word}{}{colon}{}",
        job.id,
        code.unwrap_or_default(),
        crate::output::printable(reason)
    )
}

pub fn exit_code(job: &JobRecord) -> u8 {
    if job.state == JobState::Succeeded { 0 } else { NO }
}
