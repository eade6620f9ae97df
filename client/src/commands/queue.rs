//! `tessera queue`: jobs that wait and run, and why they wait.
//!
//! In: filters. Out: a table in queue order, each waiting job with its place, what it was promised,
//! and its reason. The tasks of an array that wait stand in one line.

use std::collections::BTreeMap;

use tessera_model::{JobId, JobRecord, JobState, Tier, UnixMillis};
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
        screen.text(&table(&list, args.tasks, when::now(), screen))?;
        if list.total > list.jobs.len() as u64 {
            let shown = list.jobs.len();
            screen.hint(&format!("{shown} of {} jobs are shown; see --limit", list.total));
        }
    }
    Ok(0)
}

/// A line of the table: a job, or the tasks of an array that are in one state.
struct Row<'a> {
    job: &'a JobRecord,
    /// Of an array; one where the task stands alone.
    indices: Vec<u32>,
    gpus: u64,
}

/// Tasks that wait, or went well, or were cancelled, stand together; what runs or went wrong is one
/// line each.
fn rows(list: &JobList, unfold: bool) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut folded: BTreeMap<(JobId, JobState, bool), usize> = BTreeMap::new();
    for job in &list.jobs {
        let gpus = u64::from(job.spec.gpus());
        let indices = job.array.map(|a| vec![a.index]).unwrap_or_default();
        let folds =
            matches!(job.state, JobState::Pending | JobState::Succeeded | JobState::Cancelled);
        let Some(array) = job.array.filter(|_| folds && !unfold) else {
            rows.push(Row { job, indices, gpus });
            continue;
        };
        let at = *folded.entry((array.array, job.state, job.held)).or_insert(rows.len());
        match rows.get_mut(at) {
            Some(row) => {
                row.indices.push(array.index);
                row.gpus += gpus;
            }
            None => rows.push(Row { job, indices, gpus }),
        }
    }
    rows
}

impl Row<'_> {
    /// `812`, `812_7`, or `812_[0-99%5]`.
    fn id(&self, throttles: &BTreeMap<JobId, u32>) -> String {
        let Some(array) = self.job.array else { return self.job.id.to_string() };
        match self.indices.as_slice() {
            [one] => format!("{}_{one}", array.array),
            many => {
                let throttle = throttles.get(&array.array).filter(|t| **t > 0);
                let throttle = throttle.filter(|_| self.job.state == JobState::Pending);
                let throttle = throttle.map(|t| format!("%{t}")).unwrap_or_default();
                format!("{}_[{}{throttle}]", array.array, ranges(many))
            }
        }
    }
}

/// `0-4,9`; shortened where there are many.
fn ranges(indices: &[u32]) -> String {
    let mut sorted = indices.to_vec();
    sorted.sort_unstable();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for index in sorted {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(index) => *last = index,
            _ => parts.push((index, index)),
        }
    }
    const SHOWN: usize = 4;
    let more = parts.len() > SHOWN;
    let text = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    let shown: Vec<String> = parts.iter().take(SHOWN).map(text).collect();
    format!("{}{}", shown.join(","), if more { ",…" } else { "" })
}

pub fn table(list: &JobList, unfold: bool, now: UnixMillis, screen: &Screen) -> String {
    let rows = rows(list, unfold);
    let position = |row: &Row<'_>| list.positions.get(&row.job.id).copied();
    // A column in which nothing would stand is left out, but not from a pipe: programs count them.
    let all = !screen.tty;
    let tiers = all || rows.iter().any(|r| r.job.spec.tier != Tier::Normal);
    let positions = all || rows.iter().any(|r| position(r).is_some());
    let promises = all || rows.iter().any(|r| promised(r.job).is_some());
    let columns = [
        (true, right("JOB")),
        (true, left("NAME")),
        (true, left("TEAM").spare(2)),
        (tiers, left("TIER").spare(4)),
        (true, right("GPUS")),
        (true, left("STATE")),
        (positions, right("POS").spare(3)),
        (true, right("FOR")),
        (promises, left("STARTS").spare(1)),
        (true, left("WHY")),
    ];
    let kept: Vec<bool> = columns.iter().map(|(kept, _)| *kept).collect();
    let kept_of = |cells: [String; 10]| {
        cells.into_iter().zip(&kept).filter(|(_, kept)| **kept).map(|(cell, _)| cell)
    };
    let columns = columns.into_iter().filter(|(kept, _)| *kept).map(|(_, column)| column);
    let mut grid = Grid::with_remark(columns.collect());
    for row in &rows {
        let job = row.job;
        let id = row.id(&list.throttles);
        grid.row(kept_of([
            if screen.unicode { id } else { id.replace('…', "...") },
            job.spec.name.clone(),
            job.spec.team.to_string(),
            job.spec.tier.word().to_owned(),
            row.gpus.to_string(),
            state(job).to_owned(),
            position(row).map(|p| p.to_string()).unwrap_or_default(),
            age(job, now),
            promised(job).map(|at| format!("by {}", when::clock(at, now))).unwrap_or_default(),
            why(job).to_owned(),
        ]));
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

fn state(job: &JobRecord) -> &'static str {
    if job.held && job.state == JobState::Pending { "held" } else { job.state.word() }
}

fn promised(job: &JobRecord) -> Option<UnixMillis> {
    job.promised_at.filter(|_| job.state == JobState::Pending)
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
