//! `tessera show`: everything about one job.

mod placement; // why it stands where it stands

use std::fmt::Write as _;

use tessera_model::{CheckpointPlan, JobRecord, Placement, Strength, Tier, UnixMillis};

pub use placement::Placed;

use super::submit::shape_text;
use crate::call::Api;
use crate::cli::ShowArgs;
use crate::failure::Outcome;
use crate::output::{Screen, count, printable};
use crate::selector;
use crate::views::{JobView, strength_word};
use crate::when;
use crate::wishes::{dependency_word, label_text, signal_text};

pub async fn run(api: &Api, args: &ShowArgs, screen: &Screen) -> Outcome<u8> {
    let job = api.job(selector::resolve_one(api, &args.job).await?).await?;
    if args.placement {
        return placement::run(api, &job, screen).await;
    }
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
            let held = if job.held && !job.state.is_terminal() { ", held" } else { "" };
            format!("{}{held}", job.state.word())
        },
    );
    fact("reason", job.reason.clone());
    fact(
        "array",
        job.array.map(|a| format!("task {} of {}", a.index, a.array)).unwrap_or_default(),
    );
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
    for role in &spec.roles {
        fact(
            "role",
            format!("{}: {}{}", role.name, shape_text(&role.gang), {
                let wishes = wishes_text(&role.placement);
                if wishes.is_empty() { wishes } else { format!(", {wishes}") }
            }),
        );
    }
    fact(
        "elastic",
        spec.min_nodes.map(|n| format!("from {} on", count(n.into(), "node"))).unwrap_or_default(),
    );
    fact("spares", if spec.spares > 0 { count(spec.spares.into(), "node") } else { String::new() });
    let within = spec.placement.within.iter();
    let within = within.map(|w| format!("{} ({})", w.level, strength_word(w.strength)));
    fact("within", within.collect::<Vec<_>>().join(", "));
    let others = Placement { within: Vec::new(), ..spec.placement.clone() };
    fact("place", wishes_text(&others));
    fact("reservation", spec.reservation.clone().unwrap_or_default());
    fact(
        "tier",
        if spec.tier == Tier::Normal { String::new() } else { spec.tier.word().to_owned() },
    );
    fact("priority", spec.priority.to_string());
    fact("time limit", spec.time_limit.map_or("none".to_owned(), |t| t.to_string()));
    let due = |at: UnixMillis| match at > now {
        true => format!("{at}  (in {})", when::between(now, at)),
        false => since(at),
    };
    fact("begins", spec.begin.map(due).unwrap_or_default());
    let after = spec.after.iter().map(|d| format!("{}:{}", dependency_word(d.kind), d.job));
    fact("after", after.collect::<Vec<_>>().join(", "));
    fact("singleton", if spec.singleton { "yes".to_owned() } else { String::new() });
    fact(
        "eligible",
        job.eligible_at.filter(|_| job.started_at.is_none()).map(since).unwrap_or_default(),
    );
    fact(
        "promised",
        job.promised_at.filter(|_| job.started_at.is_none()).map(due).unwrap_or_default(),
    );
    fact("requeue", if spec.requeue { "when its node is lost".to_owned() } else { String::new() });
    fact("checkpoint", spec.checkpoint.as_ref().map(checkpoint_text).unwrap_or_default());
    fact("safe up to", job.last_checkpoint_at.map(since).unwrap_or_default());
    fact(
        "preempted",
        if job.preemptions > 0 { count(job.preemptions.into(), "time") } else { String::new() },
    );
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

/// What is asked of a place, as one would write it.
pub fn wishes_text(placement: &Placement) -> String {
    let strength = |s: Strength| if s == Strength::Preferred { ":preferred" } else { "" };
    let mut all = Vec::new();
    let within = placement.within.iter();
    all.extend(within.map(|w| format!("within {}{}", w.level, strength(w.strength))));
    let slices = placement.slices.iter();
    all.extend(slices.map(|s| format!("slice {}:{}{}", s.nodes, s.level, strength(s.strength))));
    all.extend(placement.at_most.iter().map(|a| format!("at most {}:{}", a.domains, a.level)));
    all.extend(placement.spread.iter().map(|s| format!("spread {}:{}", s.level, s.max_skew)));
    all.extend(placement.balance.iter().map(|b| format!("balance {b}")));
    all.extend(placement.patience.map(|p| format!("patience {p}")));
    all.extend(placement.labels.iter().map(|l| format!("select {}", label_text(l))));
    let names = |n: &std::collections::BTreeSet<tessera_model::NodeId>| {
        n.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(",")
    };
    if !placement.only.is_empty() {
        all.push(format!("only {}", names(&placement.only)));
    }
    if !placement.exclude.is_empty() {
        all.push(format!("not {}", names(&placement.exclude)));
    }
    all.join(", ")
}

fn checkpoint_text(plan: &CheckpointPlan) -> String {
    let mut parts = Vec::new();
    parts.extend(plan.signal.map(|s| format!("signal {}", signal_text(s))));
    parts.push(format!("notice {}", plan.notice));
    parts.extend(plan.file.as_ref().map(|f| format!("file {f}")));
    if plan.restart_cost.0 > 0 {
        parts.push(format!("a restart costs {}", plan.restart_cost));
    }
    if plan.migratable {
        parts.push("may be moved".to_owned());
    }
    parts.join(", ")
}
