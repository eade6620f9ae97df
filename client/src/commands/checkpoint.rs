//! `tessera checkpoint done`: a job's work up to now is safe.
//!
//! In: a job, or the environment of one. A task needs no token for it: where the job names a
//! checkpoint file, the file is touched, and the agent of the node of rank 0 passes it on. Out: its
//! record. A word about an attempt that is over
//! changes nothing, so a late checkpoint of an earlier life does no harm.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tessera_model::{AttemptId, JobId};
use tessera_proto::v1;

use crate::call::{Api, job_record};
use crate::cli::{CheckpointArgs, CheckpointVerb};
use crate::failure::{Failure, Outcome};
use crate::output::Screen;
use crate::selector;
use crate::views::JobView;

pub async fn run(api: &Api, args: &CheckpointArgs, screen: &Screen) -> Outcome<u8> {
    let CheckpointVerb::Done { job } = &args.verb;
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let (id, attempt) = match job {
        Some(word) => (selector::resolve_one(api, word).await?, String::new()),
        None => inside(env("TESSERA_JOB_ID"), env("TESSERA_ATTEMPT"))?,
    };
    let request = &v1::ReportCheckpointRequest { job_id: id.0, attempt };
    // Said twice, the later word counts, which is true as well.
    let job =
        api.ask(|api| async move { api.jobs().report_checkpoint(request.clone()).await }).await?;
    let job = job_record(job)?;
    if screen.json {
        screen.json(&JobView::of(&job))?;
    } else {
        match job.last_checkpoint_at {
            Some(at) => screen.line(format!("job {id}: its work is safe up to {at}"))?,
            None => screen.line(format!("job {id} is told"))?,
        }
    }
    Ok(0)
}

/// Set by the agent for a job with a checkpoint file.
const FILE: &str = "TESSERA_CHECKPOINT_FILE";

/// Whether this runs inside a job whose agent watches a file, and is about that job.
pub fn has_file(args: &CheckpointArgs) -> bool {
    let CheckpointVerb::Done { job } = &args.verb;
    job.is_none() && std::env::var_os(FILE).is_some_and(|f| !f.is_empty())
}

/// Gives the checkpoint file the time of now; made if it is not there.
pub fn touch(screen: &Screen) -> Outcome<u8> {
    let path = PathBuf::from(std::env::var_os(FILE).unwrap_or_default());
    touch_at(&path, SystemTime::now())?;
    if screen.json {
        screen.json(&serde_json::json!({ "checkpoint_file": path.display().to_string() }))?;
    } else {
        screen.line(format!("{} is touched, the agent passes it on", path.display()))?;
    }
    Ok(0)
}

fn touch_at(path: &Path, now: SystemTime) -> Outcome {
    // A folder of checkpoints counts by its newest entry, and needs no touch of ours.
    if path.is_dir() {
        return Ok(());
    }
    let file = File::options().create(true).append(true).open(path);
    let touched = file.and_then(|file| file.set_modified(now));
    touched.map_err(|error| Failure::file("touch", path, &error))
}

/// The job this command runs in.
fn inside(job: Option<String>, attempt: Option<String>) -> Outcome<(JobId, String)> {
    let Some(job) = job else {
        return Err(Failure::usage(
            "no job is named, and this does not run inside one",
            "name it: tessera checkpoint done 812",
        ));
    };
    let strange = |name: &str, text: &str| {
        Failure::usage(format!("{name} is {text:?}"), "leave it as the agent has set it")
    };
    let id = job.parse().map(JobId).map_err(|_| strange("TESSERA_JOB_ID", &job))?;
    match attempt {
        None => Ok((id, String::new())),
        Some(text) => match AttemptId::parse(&text).filter(|a| a.job == id) {
            Some(_) => Ok((id, text)),
            None => Err(strange("TESSERA_ATTEMPT", &text)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_made_and_gets_the_time_of_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latest");
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        touch_at(&path, SystemTime::now()).unwrap();
        std::fs::write(&path, "step 12").unwrap();
        touch_at(&path, later).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "step 12", "what was there stays");
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), later);
        assert!(touch_at(&dir.path().join("no/such"), later).is_err());
    }

    #[test]
    fn inside_a_job_no_id_is_needed() {
        let s = |t: &str| Some(t.to_owned());
        assert_eq!(inside(s("812"), s("812.3")), Ok((JobId(812), "812.3".to_owned())));
        assert_eq!(inside(s("812"), None), Ok((JobId(812), String::new())));
        assert!(inside(None, s("812.3")).unwrap_err().hint.contains("done 812"));
        assert!(inside(s("x"), None).is_err());
        assert!(inside(s("812"), s("813.1")).is_err());
    }
}
