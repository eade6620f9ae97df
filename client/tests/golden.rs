//! What people and programs read, word for word. To change one of these files is a decision:
//! `TESSERA_BLESS=1 cargo test -p tessera --test golden` writes them anew.

mod common;

use std::path::PathBuf;

use common::{ago, nodes, now, queue};
use tessera::call::JobList;
use tessera::commands;
use tessera::commands::usage::Report;
use tessera::output::{Screen, to_json};
use tessera::views::{ExplainView, JobView, NodeView, QueueView};
use tessera_model::usage::UsageLine;
use tessera_model::*;
use tessera_proto::v1;

fn check(name: &str, got: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{name} differs.\n--- got\n{got}\n--- wanted\n{want}");
}

fn screen(width: usize, unicode: bool) -> Screen {
    Screen { json: false, tty: true, width, colour: false, stderr_colour: false, unicode }
}

fn pipe() -> Screen {
    Screen { tty: false, ..screen(80, true) }
}

fn fits(text: &str, width: usize) {
    for line in text.lines() {
        assert!(line.chars().count() <= width, "wider than {width}: {line:?}");
    }
}

fn list() -> JobList {
    JobList { jobs: queue(), total: 4, gpus_held: 72, gpus_total: 96 }
}

#[test]
fn the_queue_for_people() {
    for (name, screen) in [
        ("queue-130.txt", screen(130, true)),
        ("queue-80.txt", screen(80, true)),
        ("queue-80-c.txt", screen(80, false)),
        ("queue-50.txt", screen(50, true)),
    ] {
        let text = commands::queue::table(&list(), now(), &screen);
        fits(&text, screen.width);
        assert_eq!(!screen.unicode, text.is_ascii(), "{name}");
        check(name, &text);
    }
    check("queue.tsv", &commands::queue::table(&list(), now(), &pipe()));
    let none = JobList { jobs: vec![], total: 0, gpus_held: 0, gpus_total: 32 };
    let text = commands::queue::table(&none, now(), &screen(80, true));
    assert_eq!(text, "no jobs · 0 of 32 GPUs held\n");
}

#[test]
fn the_nodes_for_people() {
    for (name, screen) in [
        ("nodes-110.txt", screen(110, true)),
        ("nodes-80.txt", screen(80, true)),
        ("nodes-80-c.txt", screen(80, false)),
    ] {
        let text = commands::nodes::table(&nodes(), &screen);
        fits(&text, screen.width);
        assert_eq!(!screen.unicode, text.is_ascii(), "{name}");
        check(name, &text);
    }
}

fn latest() -> v1::LatestReply {
    v1::LatestReply {
        at_unix_ms: Some(ago("2s").0),
        gpus: vec![v1::GpuReading {
            uuid: "GPU-n10-0".to_owned(),
            sm_percent: Some(93.4),
            memory_used_bytes: Some(70 << 30),
            power_mw: Some(651_300),
            temperature_c: Some(64.0),
            at_unix_ms: ago("2s").0,
            ..Default::default()
        }],
        nics: vec![v1::NicReading {
            name: "mlx5_0".to_owned(),
            up: Some(true),
            speed_mbps: Some(400_000),
            receive_bytes: Some(5 << 30),
            ..Default::default()
        }],
        host: Some(v1::HostReading { memory_used_bytes: Some(300 << 30), ..Default::default() }),
    }
}

#[test]
fn one_node_in_detail() {
    let text = commands::nodes::detail(&nodes()[2], &latest(), now(), &screen(100, true));
    check("node-100.txt", &text);
    let text = commands::nodes::detail(&nodes()[2], &latest(), now(), &screen(80, false));
    fits(&text, 80);
    let view = to_json(&commands::nodes::DetailView::of(&nodes()[2], &latest())).unwrap();
    check("node-detail.json", &view);
}

#[test]
fn a_gpu_that_a_job_of_others_holds_is_held_and_nothing_more_is_said() {
    let mut node = nodes().swap_remove(2);
    let free = node.gpus.iter().position(|g| g.held_by.is_none() && g.condition.is_healthy());
    let gpu = free.expect("a free one");
    let jobs = tessera::views::jobs_on(&node);
    node.gpus[gpu].held_by = Some(JobId(0));
    assert_eq!(commands::nodes::bar(&node, true).chars().nth(gpu), Some('■'));
    assert_eq!(tessera::views::jobs_on(&node), jobs);
    let text = commands::nodes::detail(&node, &latest(), now(), &screen(120, true));
    assert!(text.contains("others'"), "{text}");
    let view = serde_json::to_value(NodeView::of(&node)).unwrap();
    assert_eq!(view["gpus"][gpu]["held"], true);
    assert_eq!(view["gpus"][gpu]["job"], serde_json::Value::Null);
}

#[test]
fn one_job_for_people() {
    let text: Vec<String> = queue().iter().map(|j| commands::show::text(j, now())).collect();
    check("show.txt", &text.join("\n"));
}

fn explanation() -> Explanation {
    let rung = |what: &str, need: &str, have: &str, holds| Rung {
        what: what.to_owned(),
        need: need.to_owned(),
        have: have.to_owned(),
        holds,
    };
    Explanation {
        job: Some(JobId(817)),
        verdict: Verdict::Waits,
        summary: "needs 4 nodes with 8 free GPUs each in one leaf, the best (leaf-2) has 2"
            .to_owned(),
        ladder: vec![
            rung("nodes of that shape", "4", "12", true),
            rung("in one leaf", "4", "4 in leaf-2", true),
            rung("free now in one leaf", "4", "2 in leaf-2", false),
        ],
        expected_start: Some(now().plus(Millis(7_500_000))),
        position: Some(1),
        hint: Some("it would start now with --nodes 2".to_owned()),
    }
}

#[test]
fn why_a_job_waits() {
    for (name, screen) in [("explain-80.txt", screen(80, true)), ("explain.tsv", pipe())] {
        check(name, &commands::explain::text(&explanation(), now(), &screen));
    }
    check("explain.json", &to_json(&ExplainView::of(&explanation())).unwrap());
}

#[test]
fn the_topology_as_a_tree() {
    let path = |node: &str, domains: &[&str]| v1::NodePath {
        node: node.to_owned(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
    };
    let reply = v1::TopologyReply {
        levels: vec!["block".to_owned(), "leaf".to_owned()],
        nodes: vec![
            path("n01", &["b0", "leaf-1"]),
            path("n02", &["b0", "leaf-1"]),
            path("n09", &["b0", "leaf-2"]),
            path("n21", &["b1", "leaf-3"]),
            path("n99", &[]),
        ],
    };
    check("topology.txt", &commands::topology::tree(&reply, &screen(80, true)));
    let ascii = commands::topology::tree(&reply, &screen(80, false));
    assert!(ascii.is_ascii(), "{ascii}");
}

#[test]
fn names_for_programs() {
    check("job.json", &to_json(&JobView::of(&queue()[0])).unwrap());
    let short = JobList { jobs: queue().split_off(3), total: 4, gpus_held: 72, gpus_total: 96 };
    check("queue.json", &to_json(&QueueView::of(&short)).unwrap());
    let mut node = nodes().swap_remove(1);
    node.inventory.gpus.drain(..2);
    node.gpus.drain(..2);
    node.inventory.gpus.truncate(2);
    node.gpus.truncate(2);
    check("node.json", &to_json(&NodeView::of(&node)).unwrap());
}

fn report() -> Report {
    let line = |keys: [&str; 3], ms: u64, price: &str, unpriced: u64| UsageLine {
        keys: keys.map(str::to_owned).to_vec(),
        held: GpuMillis(ms),
        amount: Amount::of(GpuMillis(ms - unpriced), MicroUsd::parse_price(price).unwrap()),
        unpriced: GpuMillis(unpriced),
    };
    let h100 = "NVIDIA H100 80GB HBM3";
    Report {
        from: UnixMillis::parse_date("2026-11-01").unwrap(),
        to: now(),
        by: ["team", "gpu_model", "class"].map(str::to_owned).to_vec(),
        lines: vec![
            // A third of an hour each: no line alone knows where the odd cent belongs.
            line(["nlp", h100, "allocated"], 1_200_000, "1.00", 0),
            line(["pool:failed", h100, "failed"], 5_000, "1.00", 0),
            line(["pool:idle", h100, "idle"], 1_195_000, "1.00", 0),
            line(["vision", h100, "allocated"], 1_200_000, "1.00", 0),
            line(["vision", "NVIDIA X \"new\", 1", "allocated"], 7_200_000, "0", 7_200_000),
        ],
    }
}

#[test]
fn the_bill() {
    let text = report().table(&screen(80, true));
    fits(&text, 80);
    check("usage-80.txt", &text);
    check("usage.csv", &report().csv());
    check("usage.json", &to_json(&report().view()).unwrap());
    assert!(report().csv().lines().all(|l| l.ends_with('\r') || !l.is_empty()));
    assert!(report().unpriced_warning().unwrap().contains("2.00 GPU-hours have no price"));
    assert_eq!(report().idle(), Some(GpuMillis(1_195_000)));
    let by_team = Report { by: vec!["team".to_owned()], ..report() };
    assert_eq!(
        by_team.idle(),
        Some(GpuMillis(1_195_000)),
        "the idle pool counts without the class"
    );
    let total = Report { by: vec![], lines: vec![], ..report() };
    assert_eq!(total.idle(), None);
}
