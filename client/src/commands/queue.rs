//! `tessera queue`: jobs that wait and run, and why they wait.
//!
//! In: filters. Out: a table in queue order, each waiting job with its reason.

use tessera_model::{JobRecord, JobState, UnixMillis};
use tessera_proto::{jobs::state_to_wire, v1};

use crate::call::{Api, JobList, check_user};
use crate::cli::QueueArgs;
use crate::failure::Outcome;
use crate::output::{Grid, Screen, count, left, right, wrap};
use crate::views::QueueView;
use crate::when;

pub async fn run(api: &Api, args: &QueueArgs, screen: &Screen) -> Outcome<u8> {
    let request = v1::ListJobsRequest {
        teams: args.team.clone(),
        states: args.state.iter().map(|s| state_to_wire(*s).into()).collect(),
        user: args.user.as_deref().map(check_user).transpose()?.unwrap_or_default(),
        limit: args.limit,
        // Asking for an ended state is asking for ended jobs.
        ended: args.all || args.state.iter().any(|s| s.is_terminal()),
    };
    let list = api.list(&request).await?;
    if screen.json {
        screen.json(&QueueView::of(&list))?;
    } else {
        screen.text(&table(&list, when::now(), screen))?;
        if list.total > list.jobs.len() as u64 {
            let shown = list.jobs.len();
            screen.hint(&format!("{shown} of {} jobs are shown; see --limit", list.total));
        }
    }
    Ok(0)
}

pub fn table(list: &JobList, now: UnixMillis, screen: &Screen) -> String {
    let mut grid = Grid::with_remark(vec![
        right("JOB"),
        left("NAME"),
        left("TEAM").spare(1),
        right("GPUS"),
        left("STATE"),
        right("FOR"),
        left("WHY"),
    ]);
    for job in &list.jobs {
        grid.row([
            job.id.to_string(),
            job.spec.name.clone(),
            job.spec.team.to_string(),
            job.spec.gang.gpus().to_string(),
            job.state.word().to_owned(),
            age(job, now),
            why(job).to_owned(),
        ]);
    }
    let mut out = if list.jobs.is_empty() { String::new() } else { grid.render(screen) };
    if screen.tty {
        for line in wrap(&footer(list, screen), screen.width) {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

/// How long it has been in its state, as well as that is known: waiting, running, or how long it ran.
fn age(job: &JobRecord, now: UnixMillis) -> String {
    match (job.state, job.started_at) {
        (JobState::Pending, _) | (_, None) => {
            when::between(job.submitted_at, job.ended_at.unwrap_or(now))
        }
        (_, Some(started)) => when::between(started, job.ended_at.unwrap_or(now)),
    }
}

fn why(job: &JobRecord) -> &str {
    match job.state {
        JobState::Running | JobState::Succeeded => "",
        _ => &job.reason,
    }
}

fn footer(list: &JobList, screen: &Screen) -> String {
    let dot = if screen.unicode { " · " } else { " - " };
    let jobs = if list.total == 0 { "no jobs".to_owned() } else { count(list.total, "job") };
    let mut parts = vec![jobs, format!("{} of {} GPUs held", list.gpus_held, list.gpus_total)];
    if let Some(waiting) = list.jobs.iter().find(|j| j.state == JobState::Pending) {
        parts.push(format!("tessera explain {} says more", waiting.id));
    }
    parts.join(dot)
}
