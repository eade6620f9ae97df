//! `tessera cancel`: end jobs, whether they wait or run.

use tessera_model::JobId;
use tessera_proto::v1;

use crate::call::{Api, job_record};
use crate::cli::JobsArg;
use crate::failure::{Failure, Outcome};
use crate::output::Screen;
use crate::selector;
use crate::views::JobView;

pub async fn run(api: &Api, args: &JobsArg, screen: &Screen) -> Outcome<u8> {
    let ids = selector::resolve(api, &args.jobs).await?;
    let (mut ended, mut failures): (Vec<_>, Vec<Failure>) = (Vec::new(), Vec::new());
    for id in ids {
        // One that cannot be cancelled is no reason to leave the others running.
        match one(api, id).await {
            Ok(job) => {
                if !screen.json {
                    let how = match job.state.is_terminal() {
                        true => format!("is {}", job.state.word()),
                        false => "is told to stop".to_owned(),
                    };
                    screen.line(format!("job {id} {how}"))?;
                }
                ended.push(job);
            }
            Err(failure) => failures.push(failure),
        }
    }
    if screen.json && failures.is_empty() {
        screen.json(&ended.iter().map(JobView::of).collect::<Vec<_>>())?;
    }
    let Some(last) = failures.pop() else { return Ok(0) };
    if !screen.json {
        failures.iter().for_each(|failure| screen.failure(failure));
    }
    Err(last)
}

/// Asking twice for the same end is asking once.
pub async fn one(api: &Api, id: JobId) -> Outcome<tessera_model::JobRecord> {
    let request = v1::CancelRequest { job_id: id.0 };
    job_record(api.ask(|api| async move { api.jobs().cancel(request).await }).await?)
}
