//! A job runs, and its team pays for what it held and for nothing else.

use std::collections::BTreeMap;

use rusqlite::{Connection, OpenFlags};
use tessera_model::UnixMillis;
use tessera_proto::v1::{self, JobState};
use tessera_tests::{Cluster, ClusterSpec, gpu_ms, unix_ms, until};

const MICRO_USD: i128 = 2_950_000;
const PARTS: i128 = tessera_model::PARTS_PER_GPU as i128;

#[test]
fn a_job_runs_is_logged_and_is_paid_for_to_the_millisecond() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    admin.set_price("h100", "2.95");
    let from = unix_ms();

    let said = "echo hello from rank $RANK; echo a complaint >&2";
    let good =
        admin.submit(v1::JobSpec { gpus_per_node: 2, tasks_per_node: 2, ..cluster.sh(said) });
    let bad = v1::JobSpec { team: "vision".into(), gpus_per_node: 1, ..cluster.sh("exit 7") };
    let bad = admin.submit(bad);
    let hurt = admin.submit(cluster.sh("kill -SEGV $$"));

    let record = admin.wait(good);
    assert_eq!((record.state(), record.exit_code), (JobState::Succeeded, Some(0)), "{record:?}");
    assert_eq!(
        (record.attempt.as_str(), record.nodes.as_slice()),
        ("1.1", ["n0".to_owned()].as_slice())
    );
    let record = admin.wait(bad);
    assert_eq!((record.state(), record.exit_code), (JobState::Failed, Some(7)), "{record:?}");
    let record = admin.wait(hurt);
    assert_eq!((record.state(), record.exit_code), (JobState::Failed, Some(139)), "{record:?}");

    let logs = admin.logs(good);
    for rank in 0..2 {
        assert_eq!(logs[&rank], format!("hello from rank {rank}\na complaint\n"));
    }
    let one = cluster.cli(&["logs", "--rank", "1", &good.to_string()]).ok();
    assert_eq!(one.stdout, "hello from rank 1\na complaint\n");
    assert_eq!(cluster.cli(&["wait", &good.to_string()]).code(), 0);
    assert_eq!(cluster.cli(&["wait", &bad.to_string()]).code(), 1);

    until("all GPUs to be given back", || {
        let held = admin.node("n0").gpus.iter().filter(|g| g.held_by_job.is_some()).count();
        if held == 0 { Ok(()) } else { Err(format!("{held} held")) }
    });
    let to = unix_ms();

    // The leases themselves, read past the ledger.
    let held = held_by_team(&cluster, &[(good, "nlp"), (bad, "vision")]);
    assert!(held["nlp"] > 0 && held["vision"] > 0, "{held:?}");
    let report = admin.report(from, to, &["team"]);
    let by_team: BTreeMap<&str, &v1::UsageLine> =
        report.lines.iter().map(|l| (l.keys[0].as_str(), l)).collect();
    let names: Vec<&str> = by_team.keys().copied().collect();
    assert_eq!(names, ["nlp", "pool:idle", "vision"], "and nobody else");
    for team in ["nlp", "vision"] {
        assert_eq!(gpu_ms(by_team[team]), held[team], "{team}");
    }
    for (team, line) in &by_team {
        let amount = i128::from(gpu_ms(line)) * PARTS * MICRO_USD;
        assert_eq!(line.amount, amount.to_string(), "{team}");
        assert_eq!(line.unpriced_gpu_part_ms, "0", "{team}");
        // 2.52e16 of them are a dollar; twelve decimals, half a unit of the last either way.
        let printed = decimal12(&line.amount_usd) * 25_200_000_000_000_000;
        let exact = amount * 1_000_000_000_000;
        assert!((printed - exact).abs() <= 12_600_000_000_000_000, "{team}: {line:?}");
    }

    every_gpu_is_somewhere_all_the_time(&cluster, from, to);

    // The same by the command line.
    let (a, b) = (UnixMillis(from).rfc3339(), UnixMillis(to).rfc3339());
    let args = ["usage", "--from", &a, "--to", &b, "--by", "team", "--format", "csv"];
    let csv = cluster.cli(&args).ok().stdout;
    let mut lines = csv.split("\r\n");
    assert_eq!(lines.next(), Some("team,gpu_ms,gpu_hours,amount_usd,unpriced_gpu_ms"));
    for (team, line) in &by_team {
        let want = format!("{team},{},{},{},0", gpu_ms(line), line.gpu_hours, line.amount_usd);
        assert_eq!(lines.next(), Some(want.as_str()));
    }
}

/// For each GPU the classes add up to the wall time, with nothing missing and nothing twice.
pub fn every_gpu_is_somewhere_all_the_time(cluster: &Cluster, from: i64, to: i64) {
    let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in cluster.admin().report(from, to, &["gpu", "day", "class"]).lines {
        *sums.entry((line.keys[0].clone(), line.keys[1].clone())).or_default() += gpu_ms(&line);
    }
    let mut days: BTreeMap<String, u64> = BTreeMap::new();
    let mut at = from;
    while at < to {
        let end = (UnixMillis(at).day_start().0 + 86_400_000).min(to);
        days.insert(UnixMillis(at).date(), (end - at) as u64);
        at = end;
    }
    let nodes = cluster.admin().all_nodes();
    let gpus: Vec<String> = nodes
        .iter()
        .flat_map(|n| n.inventory.iter().flat_map(|i| i.gpus.iter().map(|g| g.uuid.clone())))
        .collect();
    assert_eq!(sums.len(), gpus.len() * days.len());
    for gpu in &gpus {
        for (day, wall) in &days {
            assert_eq!(sums.get(&(gpu.clone(), day.clone())), Some(wall), "{gpu} on {day}");
        }
    }
}

fn held_by_team(cluster: &Cluster, jobs: &[(u64, &'static str)]) -> BTreeMap<&'static str, u64> {
    let db =
        Connection::open_with_flags(cluster.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sum =
        "SELECT sum(released_at_unix_ms - granted_at_unix_ms) FROM lease_gpus WHERE attempt = ?1";
    let mut held = BTreeMap::new();
    for (job, team) in jobs {
        let ms: i64 = db.query_row(sum, [format!("{job}.1")], |row| row.get(0)).unwrap();
        *held.entry(*team).or_default() += u64::try_from(ms).unwrap();
    }
    held
}

/// `1.5` as 1_500_000_000_000.
fn decimal12(text: &str) -> i128 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{part:0<12}").parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}
