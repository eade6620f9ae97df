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
            let built = submit::build(api, &args.request, work).await?;
            if let Some(note) = built.note.filter(|_| !screen.json) {
                screen.note(&note);
            }
            Subject::Spec(built.spec)
        }
    };
    tell(api, subject, screen).await
}

/// Asks and prints. Exit code 1: it can never start.
pub async fn tell(api: &Api, subject: Subject, screen: &Screen) -> Outcome<u8> {
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

/// The answer for people: the one reason, when it starts, the ladder behind it, and what would help.
pub fn text(e: &Explanation, now: UnixMillis, screen: &Screen) -> String {
    let mut out = String::new();
    let mut say = |text: &str| {
        for line in wrap(text, screen.width) {
            out.push_str(&line);
            out.push('\n');
        }
    };
    let named = e.job.map(|j| format!("job {j}"));
    match &named {
        // The scheduler's sentence may name the job itself.
        Some(job) if !e.summary.starts_with(job.as_str()) => {
            say(&format!("{job}: {}", printable(&e.summary)));
        }
        _ => say(&printable(&e.summary)),
    }
    if let Some(when) = when_text(e, now) {
        say(&when);
    }
    if e.verdict == Verdict::StartsNow && !e.place.is_empty() {
        let nodes: Vec<&str> = e.place.iter().map(|n| n.as_str()).collect();
        say(&format!("on {}", printable(&nodes.join(" "))));
    }
    if !e.ladder.is_empty() {
        let mut grid = Grid::new(vec![left("CHECK"), left("NEEDS"), left("HAS"), left("HOLDS")]);
        for rung in &e.ladder {
            let holds = if rung.holds { "yes" } else { "NO" };
            grid.row([rung.what.as_str(), rung.need.as_str(), rung.have.as_str(), holds]);
        }
        out.push_str(&grid.render(screen));
    }
    if !e.counterfactuals.is_empty() {
        let title = if e.job.is_some() { "TESSERA UPDATE WITH" } else { "INSTEAD" };
        let mut grid = Grid::new(vec![left(title), left("WOULD START"), left("SOONER BY")]);
        for c in &e.counterfactuals {
            let starts = match c.starts_at {
                None => "not either".to_owned(),
                Some(at) if at <= now => "now".to_owned(),
                Some(at) => format!("by {}", when::clock(at, now)),
            };
            let sooner = c.sooner.map(|s| s.to_string()).unwrap_or_default();
            grid.row([c.change.clone(), starts, sooner]);
        }
        out.push_str(&grid.render(screen));
    }
    out
}

/// The position, the promise and the guess, in one line.
fn when_text(e: &Explanation, now: UnixMillis) -> Option<String> {
    let mut facts = Vec::new();
    if e.verdict != Verdict::StartsNow {
        facts.extend(e.position.map(|p| format!("position {p} in the queue")));
    }
    if e.verdict == Verdict::Waits {
        let clock = |at| when::clock(at, now);
        match (e.promised, e.expected_start) {
            (Some(at), _) => facts.push(format!(
                "promised a start by {}, in {}",
                clock(at),
                when::between(now, at)
            )),
            (None, Some(at)) => facts.push(format!(
                "starts by {} at the latest, in {}",
                clock(at),
                when::between(now, at)
            )),
            // The hint says why.
            (None, None) if e.hint.is_some() => {}
            (None, None) => facts.push("no date can be given".to_owned()),
        }
        facts.extend(e.eta.map(|eta| match clock(eta.p50) == clock(eta.p90) {
            true => format!("likely at {}", clock(eta.p50)),
            false => format!("likely at {}, or by {}", clock(eta.p50), clock(eta.p90)),
        }));
    }
    (!facts.is_empty()).then(|| facts.join(", "))
}
