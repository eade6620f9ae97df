//! `tessera submit`: hand in a job.
//!
//! In: flags, a job file, a script. Out: the job's id and what becomes of it next. Whether it is
//! allowed and when it starts is the scheduler's to say.

use tessera_model::{Explanation, JobId, Verdict};
use tessera_proto::v1::{self, explain_request::Subject};

use super::{explain, logs, wait};
use crate::call::{Api, fresh_key};
use crate::cli::{Ranks, RequestArgs, SubmitArgs};
use crate::failure::{Failure, Outcome};
use crate::jobfile::{self, Draft, Work};
use crate::output::{Screen, count};
use crate::views::JobView;
use crate::when;

pub async fn run(api: &Api, args: &SubmitArgs, screen: &Screen) -> Outcome<u8> {
    let built = build(api, &args.request, args.work()).await?;
    let array = args.array.clone().or(built.array);
    let quiet = args.quiet || screen.json;
    if let Some(note) = built.note.filter(|_| !quiet) {
        screen.note(&note);
    }
    if args.dry_run {
        if array.is_some() && !screen.json {
            screen.note("said of one task of the array");
        }
        return explain::tell(api, Subject::Spec(built.spec), screen).await;
    }
    if args.follow && array.is_some() {
        return Err(Failure::usage(
            "the output of a whole array cannot be followed",
            "use --wait, and then tessera logs 812_7 for one task",
        ));
    }
    let key = args.idempotency_key.clone().unwrap_or_else(fresh_key);
    let is_array = array.is_some();
    let reply = send(api, built.spec, array, key).await?;
    let id = JobId(reply.job_id);
    for warning in &reply.warnings {
        screen.warning(warning);
    }
    if args.quiet && !screen.json {
        screen.line(id.to_string())?;
    } else if !screen.json {
        let line = if reply.existing {
            let what = if is_array { "array" } else { "job" };
            format!("{what} {id} is there already: this idempotency key made it")
        } else if is_array {
            array_text(id, reply.jobs)
        } else {
            // The job is safe; a missing outlook is no reason to alarm anybody.
            match api.explain(Subject::JobId(id.0)).await {
                Ok(explanation) => outlook(id, &explanation, when::now()),
                Err(_) => format!("job {id} queued"),
            }
        };
        // With --follow, stdout belongs to the job's own output.
        if args.follow {
            screen.note(&line)
        } else {
            screen.line(line)?
        }
        if is_array {
            screen.hint(&format!("tessera queue --tasks, tessera logs {id}_INDEX"));
        } else if !args.follow && !args.wait {
            screen.hint(&format!("tessera logs -f {id}"));
        }
    }
    if is_array && args.wait {
        let ids: Vec<JobId> = (0..u64::from(reply.jobs.max(1))).map(|n| JobId(id.0 + n)).collect();
        let silent = Screen { json: screen.json || args.quiet, ..*screen };
        let jobs = wait::wait_all(api, &ids, &silent).await?;
        if screen.json {
            screen.json(&jobs.iter().map(JobView::of).collect::<Vec<_>>())?;
        }
        return Ok(jobs.iter().map(wait::exit_code).max().unwrap_or(0));
    }
    if args.follow {
        logs::stream(api, id, &Ranks(Vec::new()), true, screen).await?;
    }
    if args.follow || args.wait {
        let job = wait::until_end(api, id, |_| {}).await?;
        match (screen.json, args.follow) {
            (true, false) => screen.json(&JobView::of(&job))?,
            (false, false) if !args.quiet => screen.line(wait::ended(&job))?,
            (false, true) => screen.note(&wait::ended(&job)),
            _ => {}
        }
        return Ok(wait::exit_code(&job));
    }
    if screen.json {
        screen.json(&JobView::of(&api.job(id).await?))?;
    }
    Ok(0)
}

/// `array 812 queued: 100 tasks, jobs 812 to 911`.
fn array_text(id: JobId, jobs: u32) -> String {
    match jobs {
        0 | 1 => format!("array {id} queued: 1 task"),
        n => format!("array {id} queued: {n} tasks, jobs {id} to {}", id.0 + u64::from(n) - 1),
    }
}

/// Sends the job, again and again with the same key while the scheduler is away: it makes one job.
pub async fn send(
    api: &Api,
    spec: v1::JobSpec,
    array: Option<v1::ArraySpec>,
    key: String,
) -> Outcome<v1::SubmitReply> {
    let request = &v1::SubmitRequest { spec: Some(spec), idempotency_key: key, array };
    api.ask(|api| async move { api.jobs().submit(request.clone()).await }).await
}

/// What flags and job file ask for together.
pub struct Built {
    pub spec: v1::JobSpec,
    pub array: Option<v1::ArraySpec>,
    /// How a total of GPUs was read.
    pub note: Option<String>,
}

/// The request that flags and job file make together.
pub async fn build(api: &Api, args: &RequestArgs, work: Option<Work>) -> Outcome<Built> {
    let file = args.file.as_deref().map(jobfile::read).transpose()?.unwrap_or_default();
    let flags = Draft { program: work, ..args.draft() };
    let mut draft = flags.over(file);
    if draft.working_dir.is_none() {
        let here = std::env::current_dir().map_err(|error| {
            Failure::no_answer(
                "file",
                format!("the current folder is not known: {error}"),
                "name one with --working-dir",
            )
        })?;
        draft.working_dir = Some(here.to_string_lossy().into_owned());
    }
    let largest = if draft.needs_largest_node() {
        largest_node(api, draft.gpu_model.as_deref()).await?
    } else {
        0
    };
    let (nodes, gpus_per_node, note) = jobfile::shape(&draft, largest)?;
    let array = draft.array.take();
    Ok(Built { spec: draft.spec(nodes, gpus_per_node)?, array, note })
}

/// Most GPUs of the model on one node, sick ones included: they come back.
async fn largest_node(api: &Api, model: Option<&str>) -> Outcome<u32> {
    let model = model.unwrap_or_default().to_ascii_lowercase();
    let nodes = api.node_list(&[]).await?;
    let fitting = nodes.iter().map(|node| {
        let gpus = node.inventory.gpus.iter();
        gpus.filter(|g| g.model.to_ascii_lowercase().contains(&model)).count()
    });
    Ok(fitting.max().and_then(|n| u32::try_from(n).ok()).unwrap_or(0))
}

/// `job 823 queued: position 3, starts by 14:05 UTC at the latest`.
pub fn outlook(id: JobId, e: &Explanation, now: tessera_model::UnixMillis) -> String {
    // The scheduler's sentence may name the job itself.
    let named = format!("job {id}");
    let own = match e.summary.strip_prefix(&named) {
        Some(rest) => rest.trim_start_matches([':', ' ']),
        None => &e.summary,
    };
    match e.verdict {
        Verdict::Started | Verdict::Ended if own.len() < e.summary.len() => e.summary.clone(),
        Verdict::Started | Verdict::Ended => format!("job {id}: {own}"),
        Verdict::StartsNow => format!("job {id} queued: it starts now"),
        Verdict::Infeasible => format!("job {id} queued: {own}"),
        Verdict::Waits => {
            let mut parts = Vec::new();
            parts.extend(e.position.map(|p| format!("position {p}")));
            parts.push(match e.promised.or(e.expected_start) {
                Some(at) => format!("starts by {} at the latest", when::clock(at, now)),
                // Why not, the scheduler knows best.
                None => e.hint.clone().unwrap_or_else(|| "no date can be given".to_owned()),
            });
            if e.position.is_none() && e.expected_start.is_none() {
                parts = vec![own.to_owned()];
            }
            format!("job {id} queued: {}", parts.join(", "))
        }
    }
}

/// `8 nodes with 8 GPUs each`.
pub fn shape_text(gang: &tessera_model::Gang) -> String {
    let nodes = count(gang.nodes.into(), "node");
    let each = if gang.nodes > 1 { " each" } else { "" };
    match gang.gpus_per_node {
        1 if gang.is_share() => format!("{nodes} with {}", share_text(gang.gpu_milli)),
        0 => format!("{nodes}, no GPUs"),
        n => format!("{nodes} with {}{each}", count(n.into(), "GPU")),
    }
}

/// `0.25 of a GPU`.
pub fn share_text(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    format!("{} of a GPU", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use tessera_model::UnixMillis;

    use super::*;

    #[test]
    fn the_outlook_is_honest() {
        let now = UnixMillis::parse_date("2026-11-24").unwrap();
        let base = Explanation {
            job: Some(JobId(823)),
            verdict: Verdict::Waits,
            summary: "it needs 4 nodes".to_owned(),
            ladder: vec![],
            expected_start: Some(UnixMillis(now.0 + 50_700_000)),
            position: Some(3),
            eta: None,
            promised: None,
            counterfactuals: vec![],
            place: vec![],
            hint: None,
        };
        assert_eq!(share_text(250), "0.25 of a GPU");
        assert_eq!(array_text(JobId(812), 100), "array 812 queued: 100 tasks, jobs 812 to 911");
        assert_eq!(array_text(JobId(812), 1), "array 812 queued: 1 task");
        let cases = [
            (base.clone(), "job 823 queued: position 3, starts by 14:05 UTC at the latest"),
            (
                Explanation { promised: Some(UnixMillis(now.0 + 3_600_000)), ..base.clone() },
                "job 823 queued: position 3, starts by 01:00 UTC at the latest",
            ),
            (
                Explanation { expected_start: None, ..base.clone() },
                "job 823 queued: position 3, no date can be given",
            ),
            (
                Explanation {
                    expected_start: None,
                    hint: Some("no date can be given: 2 of the 4 nodes it needs are up".to_owned()),
                    ..base.clone()
                },
                "job 823 queued: position 3, no date can be given: 2 of the 4 nodes it needs are up",
            ),
            (
                Explanation { expected_start: None, position: None, ..base.clone() },
                "job 823 queued: it needs 4 nodes",
            ),
            (
                Explanation {
                    verdict: Verdict::Infeasible,
                    summary: "job 823: cannot start".to_owned(),
                    ..base.clone()
                },
                "job 823 queued: cannot start",
            ),
            (
                Explanation {
                    verdict: Verdict::Started,
                    summary: "job 823 runs on n01".to_owned(),
                    ..base.clone()
                },
                "job 823 runs on n01",
            ),
            (
                Explanation { verdict: Verdict::StartsNow, ..base.clone() },
                "job 823 queued: it starts now",
            ),
        ];
        for (explanation, want) in cases {
            assert_eq!(outlook(JobId(823), &explanation, now), want);
        }
    }
}
