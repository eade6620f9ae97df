//! `tessera dev --demo`: a short story on a real cluster with simulated GPUs.
//!
//! In: a cluster that is up. Out: a narrative on stdout. Every step asks the cluster what happened
//! and ends the story with exit code 1 when the answer is not the one that was promised.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tessera_model::usage::UsageKey;
use tessera_model::{
    Amount, JobId, JobRecord, JobState, NodeRecord, NodeState, PARTS_PER_GPU, UnixMillis, Verdict,
};
use tessera_proto::v1;

use super::cluster::Cluster;
use super::seed;
use crate::call::{Api, fresh_key};
use crate::commands::{explain, logs, nodes, queue, submit, usage, wait};
use crate::failure::{Failure, NO, Outcome};
use crate::output::{Grid, Screen, left, right};
use crate::settings::{Secret, Settings};
use crate::when;

/// How long a step may take before the story is broken off.
const STEP: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Holds its GPUs until the story lets it go.
const HOLD: &str = "\"$1\" __rendezvous || exit 1; while [ ! -e \"$2\" ]; do sleep 0.1; done";

pub async fn play(cluster: &mut Cluster, screen: &Screen) -> Outcome<u8> {
    let begun = when::now();
    // A story is for people, wherever it is written to.
    let screen = &Screen { tty: true, width: screen.width.min(100) - 5, ..*screen };
    let tale = Tale { screen: *screen };
    tale.chapter(1, "A cluster")?;
    tale.say(&format!(
        "{} nodes with 8 H100 each, simulated; scheduler, agents and jobs are real processes.",
        cluster.nodes()
    ))?;
    let (settings, admin) = cluster.admin()?;
    let (settings, admin) = (settings.clone(), admin.clone());
    seed::teams(&admin, &[("nlp", "Language models"), ("vision", "Image models")]).await?;
    let nlp = caller(&settings, &admin, "ada", "nlp").await?;
    let vision = caller(&settings, &admin, "grace", "vision").await?;
    tale.say("Two teams with tokens of their own: ada of nlp, grace of vision.")?;

    tale.chapter(2, "A gang of two nodes")?;
    let let_go = PathBuf::from(cluster.folder()).join("let-go");
    let gang = start(&nlp, "pretrain", "nlp", (2, 8, 2), "10m", &let_go).await?;
    tale.say(&format!("nlp submits job {gang}, 2 nodes x 8 GPUs, all or nothing."))?;
    let running = state_of(&nlp, gang, JobState::Running).await?;
    expect(running.nodes.len() == 2, || {
        format!("job {gang} runs on {} nodes", running.nodes.len())
    })?;
    tale.say(&format!(
        "It runs on {} and {}. Its ranks meet:",
        running.nodes[0], running.nodes[1]
    ))?;
    let said = met(&nlp, gang, 4, 10).await?;
    tale.show(&said)?;

    let small = start(&vision, "finetune", "vision", (1, 4, 1), "10m", &let_go).await?;
    let small_job = state_of(&vision, small, JobState::Running).await?;
    let Some(node) = small_job.nodes.first().map(|n| n.as_str().to_owned()) else {
        return Err(broken(format!("job {small} runs on no node")));
    };
    tale.say(&format!("vision takes 4 GPUs on {node} for job {small}."))?;

    tale.chapter(3, "A job that must wait, and says why")?;
    let big = start(&nlp, "scale-up", "nlp", (3, 8, 1), "5m", &let_go).await?;
    tale.say(&format!("nlp wants 3 whole nodes for job {big}; $ tessera explain {big}"))?;
    let subject = || v1::explain_request::Subject::JobId(big.0);
    let answer = until("a decision about the waiting job", || async {
        let answer = nlp.explain(subject()).await?;
        Ok((answer.verdict == Verdict::Waits && !answer.ladder.is_empty()).then_some(answer))
    })
    .await?;
    tale.show(&explain::text(&answer, when::now(), screen))?;

    tale.chapter(4, "A GPU falls off the bus")?;
    let (index, before) = held_gpu(&admin, &node, small).await?;
    cluster.break_gpu(&node, "lost", index).await?;
    tale.say(&format!("GPU {index} of {node}, held by job {small}, falls off the bus."))?;
    let sick = until("the loss to be seen", || async {
        let now = one_node(&admin, &node).await?;
        let seen = now.gpus.get(index as usize).is_some_and(|g| !g.condition.is_healthy());
        Ok(seen.then_some(now))
    })
    .await?;
    expect(sick.state == NodeState::Up, || format!("{node} is {}", sick.state.word()))?;
    let healthy = |n: &NodeRecord| n.gpus.iter().filter(|g| g.condition.is_healthy()).count();
    expect(healthy(&sick) + 1 == healthy(&before), || {
        format!("{} GPUs of {node} are healthy, {} were", healthy(&sick), healthy(&before))
    })?;
    tale.say(
        "It is taken out of the pool; its node goes on with the other seven. $ tessera nodes",
    )?;
    tale.show(&nodes::table(&admin.node_list(&[]).await?, screen))?;
    let fate = vision.job(small).await?;
    tale.say(&format!("job {small} is told as it is: {}.", fate_text(&fate)))?;

    tale.chapter(5, "The queue moves on")?;
    std::fs::write(&let_go, "").map_err(|error| Failure::file("write", &let_go, &error))?;
    let ended = end_of(&nlp, gang).await?;
    tale.say(&format!("The gang is done: {}.", wait::ended(&ended)))?;
    expect(ended.state == JobState::Succeeded, || wait::ended(&ended))?;
    let big_job = end_of(&nlp, big).await?;
    expect(big_job.state == JobState::Succeeded, || wait::ended(&big_job))?;
    expect(big_job.nodes.iter().all(|n| n.as_str() != node), || {
        format!("job {big} was placed on {node}, which has a sick GPU")
    })?;
    let said = met(&nlp, big, 3, 6).await?;
    let names: Vec<&str> = big_job.nodes.iter().map(|n| n.as_str()).collect();
    tale.say(&format!("Job {big} got the three sound nodes, {}:", names.join(", ")))?;
    tale.show(&said)?;
    let small_end = end_of(&vision, small).await?;
    tale.say(&format!("{}.", wait::ended(&small_end)))?;
    let request = v1::ListJobsRequest { ended: true, ..Default::default() };
    tale.show(&queue::table(&admin.list(&request).await?, false, when::now(), screen))?;

    tale.chapter(6, "The bill")?;
    bill(&admin, begun, cluster.gpus(), &tale).await?;
    tale.say("Everything ends here; nothing is left behind.")?;
    Ok(0)
}

async fn bill(admin: &Api, begun: UnixMillis, gpus: usize, tale: &Tale) -> Outcome {
    let by = [UsageKey::Team, UsageKey::Class];
    let report = usage::fetch(admin, begun, when::now(), &by, &[]).await?;
    for team in ["nlp", "vision"] {
        let mut lines = report.lines.iter().filter(|l| l.keys.first().is_some_and(|k| k == team));
        expect(lines.any(|l| l.amount.0 > 0), || format!("there is no bill for {team}"))?;
    }
    expect(report.idle().is_some_and(|idle| idle.0 > 0), || {
        "no idle GPUs are accounted".to_owned()
    })?;
    expect(report.unpriced_warning().is_none(), || "some GPU-hours have no price".to_owned())?;
    // Whole GPUs only, so that whole milliseconds come out.
    let gpu_ms = |held: u128| u64::try_from(held / u128::from(PARTS_PER_GPU)).unwrap_or(u64::MAX);
    let held = gpu_ms(report.lines.iter().map(|l| l.held.0).sum());
    let there = report.to.since(report.from).0 * gpus as u64;
    expect(held == there, || format!("{held} GPU-ms are accounted, and there were {there}"))?;

    let secs = |ms: u64| format!("{}.{:03}", ms / 1_000, ms % 1_000);
    tale.say(&format!(
        "{gpus} GPUs for {} s are {} GPU-seconds, each millisecond in exactly one class.",
        secs(report.to.since(report.from).0),
        secs(held)
    ))?;
    tale.say("$ tessera usage --by team,class, to the last decimal; prices are examples")?;
    let columns = [left("TEAM"), left("CLASS"), right("GPU-SECONDS"), right("USD")];
    let mut grid = Grid::new(columns.to_vec());
    for line in &report.lines {
        let mut row = line.keys.clone();
        row.extend([secs(gpu_ms(line.held.0)), line.amount.usd12()]);
        grid.row(row);
    }
    let total = report.lines.iter().fold(Amount(0), |sum, line| sum + line.amount);
    grid.row(["total".to_owned(), String::new(), secs(held), total.usd12()]);
    tale.show(&grid.render(&tale.screen))
}

/// What is told, for people.
struct Tale {
    screen: Screen,
}

impl Tale {
    fn chapter(&self, number: u32, title: &str) -> Outcome {
        self.screen.line(format!("\n{number}. {title}"))
    }

    fn say(&self, text: &str) -> Outcome {
        self.screen.line(format!("   {}", crate::output::printable(text)))
    }

    /// What a command would print, set in.
    fn show(&self, text: &str) -> Outcome {
        for line in text.lines() {
            self.screen.line(format!("     {line}"))?;
        }
        Ok(())
    }
}

fn broken(why: String) -> Failure {
    Failure {
        exit: NO,
        ..Failure::no("demo", format!("the demo did not go as promised: {why}"), "please report it")
    }
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(broken(otherwise())) }
}

/// Asks until there is an answer.
async fn until<T, F, Fut>(what: &str, ask: F) -> Outcome<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Outcome<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if begun.elapsed() > STEP {
            return Err(broken(format!("{what} did not come within {} s", STEP.as_secs())));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A line to the scheduler as a member of a team.
async fn caller(settings: &Settings, admin: &Api, user: &str, team: &str) -> Outcome<Api> {
    let request = v1::CreateTokenRequest {
        user: user.to_owned(),
        role: "member".to_owned(),
        teams: vec![team.to_owned()],
        lifetime_ms: Some(3_600_000),
        uid: None,
        gid: None,
    };
    let secret = admin.once(admin.admin().create_token(request)).await?.secret;
    Api::connect(&Settings { token: Secret(secret), ..settings.clone() }).await
}

/// Submits a job whose ranks meet and then hold their GPUs until they are let go.
async fn start(
    api: &Api,
    name: &str,
    team: &str,
    (nodes, gpus_per_node, tasks_per_node): (u32, u32, u32),
    limit: &str,
    let_go: &Path,
) -> Outcome<JobId> {
    let exe = std::env::current_exe()
        .map_err(|error| Failure::file("find", Path::new("tessera"), &error))?;
    let word = |path: &Path| path.to_string_lossy().into_owned();
    let spec = v1::JobSpec {
        name: name.to_owned(),
        team: team.to_owned(),
        nodes,
        gpus_per_node,
        tasks_per_node,
        time_limit_ms: tessera_model::Millis::parse(limit).map(|l| l.0),
        argv: ["/bin/sh", "-c", HOLD, "sh"]
            .map(str::to_owned)
            .into_iter()
            .chain([word(&exe), word(let_go)])
            .collect(),
        working_dir: Some("/".to_owned()),
        ..Default::default()
    };
    Ok(JobId(submit::send(api, spec, None, fresh_key()).await?.job_id))
}

/// Waits until the job is in that state; one that ended otherwise breaks the story.
async fn state_of(api: &Api, id: JobId, state: JobState) -> Outcome<JobRecord> {
    until(&format!("job {id} {}", state.word()), || async {
        let job = api.job(id).await?;
        if job.state.is_terminal() && job.state != state {
            return Err(broken(wait::ended(&job)));
        }
        Ok((job.state == state).then_some(job))
    })
    .await
}

async fn end_of(api: &Api, id: JobId) -> Outcome<JobRecord> {
    match tokio::time::timeout(STEP, wait::until_end(api, id, |_| {})).await {
        Ok(job) => job,
        Err(_) => Err(broken(format!("job {id} did not end within {} s", STEP.as_secs()))),
    }
}

/// What the ranks wrote, once each has met the others and got the right sum.
async fn met(api: &Api, id: JobId, ranks: usize, sum: u64) -> Outcome<String> {
    until(&format!("the meeting of {ranks} ranks of job {id}"), || async {
        let mut by_rank: std::collections::BTreeMap<u32, Vec<u8>> = Default::default();
        let request = v1::LogsRequest { job_id: id.0, ..Default::default() };
        logs::pull(api, request, |piece| {
            if let logs::Piece::Bytes { rank, data, .. } = piece {
                by_rank.entry(rank).or_default().extend_from_slice(data);
            }
            Ok(())
        })
        .await?;
        let mut lines = Vec::new();
        for (rank, bytes) in &by_rank {
            let text = String::from_utf8_lossy(bytes);
            lines.extend(text.lines().map(|line| format!("[{rank}] {line}")));
        }
        let right = format!("the sum is {sum}");
        let wrong = lines.iter().find(|l| l.contains("the sum is") && !l.ends_with(&right));
        if let Some(line) = wrong {
            return Err(broken(format!("a rank of job {id} says {line:?}, wanted {sum}")));
        }
        let done = lines.iter().filter(|l| l.ends_with(&right)).count() == ranks;
        Ok(done.then(|| lines.join("\n")))
    })
    .await
}

async fn one_node(api: &Api, node: &str) -> Outcome<NodeRecord> {
    let mut found = api.node_list(&[node.to_owned()]).await?;
    found.pop().ok_or_else(|| broken(format!("{node} is not listed")))
}

/// A GPU that the job holds, by its index.
async fn held_gpu(api: &Api, node: &str, job: JobId) -> Outcome<(u32, NodeRecord)> {
    let record = one_node(api, node).await?;
    let place = record.gpus.iter().position(|g| g.held_by == Some(job));
    let place = place.ok_or_else(|| broken(format!("job {job} holds no GPU of {node}")))?;
    Ok((record.inventory.gpus[place].index, record))
}

fn fate_text(job: &JobRecord) -> String {
    let word = job.state.word();
    if job.reason.is_empty() { word.to_owned() } else { format!("{word}, {}", job.reason) }
}
