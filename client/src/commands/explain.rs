//! `tessera explain`: why a job waits, or what would become of one that is only imagined.
//!
//! In: a job, or a request as in submit. Out: the scheduler's own reason, rung by rung.

use tessera_model::{Explanation, UnixMillis, Verdict};
use tessera_proto::v1::explain_request::Subject;

use super::submit;
use crate::call::Api;
use crate::cli::ExplainArgs;
use crate::failure::{Failure, Outcome};
use crate::jobfile::Work;
use crate::output::{Grid, Screen, left, printable, wrap};
use crate::selector;
use crate::views::ExplainView;
use crate::when;

pub async fn run(api: &Api, args: &ExplainArgs, screen: &Screen) -> Outcome<u8> {
    let imagined = !args.command.is_empty() || !args.request.is_silent();
    let subject = match (&args.job, imagined) {
        (Some(_), true) => {
            return Err(Failure::usage(
                "a job and a request are given",
                "name a job (tessera explain 817), or a command after `--`",
            ));
        }
        (None, false) => {
            return Err(Failure::usage(
                "neither a job nor a request is given",
                "tessera explain 817, or tessera explain -N 4 -G 8 -- train.sh",
            ));
        }
        (Some(word), false) => Subject::JobId(selector::resolve_one(api, word).await?.0),
        (None, true) => {
            // What it would run changes nothing about whether it would start.
            let work = match (args.command.is_empty(), args.request.file.is_some()) {
                (false, _) => Some(Work::Command(args.command.clone())),
                (true, true) => None,
                (true, false) => Some(Work::Command(vec!["true".to_owned()])),
            };
            let (spec, note) = submit::build(api, &args.request, work).await?;
            if let Some(note) = note.filter(|_| !screen.json) {
                screen.note(&note);
            }
            Subject::Spec(spec)
        }
    };
    let explanation = api.explain(subject).await?;
    if screen.json {
        screen.json(&ExplainView::of(&explanation))?;
    } else {
        screen.text(&text(&explanation, when::now(), screen))?;
        if let Some(hint) = &explanation.hint {
            screen.hint(hint);
        }
    }
    Ok(u8::from(explanation.verdict == Verdict::Infeasible))
}

/// The answer for people: the summary, the ladder, the expected start.
pub fn text(e: &Explanation, now: UnixMillis, screen: &Screen) -> String {
    let mut out = String::new();
    let named = e.job.map(|j| format!("job {j}"));
    let head = match &named {
        // The scheduler's sentence may name the job itself.
        Some(job) if !e.summary.starts_with(job.as_str()) => {
            format!("{job}: {}", printable(&e.summary))
        }
        _ => printable(&e.summary).into_owned(),
    };
    for line in wrap(&head, screen.width) {
        out.push_str(&line);
        out.push('\n');
    }
    if !e.ladder.is_empty() {
        let mut grid = Grid::new(vec![left("CHECK"), left("NEEDS"), left("HAS"), left("HOLDS")]);
        for rung in &e.ladder {
            let holds = if rung.holds { "yes" } else { "NO" };
            grid.row([rung.what.as_str(), rung.need.as_str(), rung.have.as_str(), holds]);
        }
        out.push_str(&grid.render(screen));
    }
    let mut facts = Vec::new();
    facts.extend(e.position.map(|p| format!("position {p} in the queue")));
    match (e.verdict, e.expected_start) {
        (Verdict::Waits, Some(at)) => facts.push(format!(
            "starts by {} at the latest, in {}",
            when::clock(at, now),
            when::between(now, at)
        )),
        // The hint says why.
        (Verdict::Waits, None) if e.hint.is_some() => {}
        (Verdict::Waits, None) => facts.push("no date can be given".to_owned()),
        _ => {}
    }
    if !facts.is_empty() {
        out.push_str(&facts.join(", "));
        out.push('\n');
    }
    out
}
