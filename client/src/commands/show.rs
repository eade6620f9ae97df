//! `tessera show`: everything about one job.

use std::fmt::Write as _;

use tessera_model::{JobRecord, UnixMillis};

use super::submit::shape_text;
use crate::call::Api;
use crate::cli::JobArg;
use crate::failure::Outcome;
use crate::output::{Screen, printable};
use crate::selector;
use crate::views::{JobView, strength_word};
use crate::when;

pub async fn run(api: &Api, args: &JobArg, screen: &Screen) -> Outcome<u8> {
    let job = api.job(selector::resolve_one(api, &args.job).await?).await?;
    if screen.json {
        screen.json(&JobView::of(&job))?;
    } else {
        screen.text(&text(&job, when::now()))?;
    }
    Ok(0)
}

pub fn text(job: &JobRecord, now: UnixMillis) -> String {
    let spec = &job.spec;
    let mut out = format!("job {}  {}\n", job.id, printable(&spec.name));
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:<11} {}", printable(&value));
        }
    };
    let since = |at: UnixMillis| format!("{at}  ({} ago)", when::between(at, now));
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    };
    fact(
        "state",
        if job.cancel_requested && !job.state.is_terminal() {
            format!("{}, its end was asked for", job.state.word())
        } else {
            job.state.word().to_owned()
        },
    );
    fact("reason", job.reason.clone());
    fact("exit code", job.exit_code.map(|c| c.to_string()).unwrap_or_default());
    fact("user", spec.user.to_string());
    fact("team", spec.team.to_string());
    fact("project", spec.project.to_string());
    fact("submitted", since(job.submitted_at));
    fact("started", job.started_at.map(since).unwrap_or_default());
    fact(
        "ended",
        match (job.ended_at, job.started_at) {
            (Some(end), Some(start)) => format!("{end}  (ran {})", when::between(start, end)),
            (Some(end), None) => end.to_string(),
            _ => String::new(),
        },
    );
    fact("asks for", shape_text(&spec.gang));
    fact("tasks", {
        let gang = &spec.gang;
        let memory = match gang.memory_per_node.0 {
            0 => String::new(),
            _ => format!(", {} on each node", gang.memory_per_node),
        };
        format!(
            "{} on each node, CPUs for each: {}{memory}",
            gang.tasks_per_node, gang.cpus_per_task
        )
    });
    fact("GPU model", spec.gang.gpu_model.clone().unwrap_or_default());
    let within = spec.within.iter().map(|w| format!("{} ({})", w.level, strength_word(w.strength)));
    fact("within", within.collect::<Vec<_>>().join(", "));
    fact("priority", spec.priority.to_string());
    fact("time limit", spec.time_limit.map_or("none".to_owned(), |t| t.to_string()));
    fact("requeue", if spec.requeue { "when its node is lost".to_owned() } else { String::new() });
    fact("attempt", job.attempt.map(|a| a.to_string()).unwrap_or_default());
    fact("nodes", job.nodes.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" "));
    fact("folder", spec.program.working_dir.clone().unwrap_or_default());
    fact(
        "command",
        match &spec.program.script {
            Some(_) => format!("a script, with {:?}", spec.program.argv),
            None => spec.program.argv.join(" "),
        },
    );
    fact("env", pairs(&spec.program.env));
    fact("tags", pairs(&spec.tags));
    out
}
