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
    JobList {
        jobs: queue(),
        total: 4,
        gpus_held: 72,
        gpus_total: 96,
        positions: [(JobId(817), 1), (JobId(821), 2)].into(),
        throttles: Default::default(),
    }
}

#[test]
fn the_queue_for_people() {
    for (name, screen) in [
        ("queue-130.txt", screen(130, true)),
        ("queue-80.txt", screen(80, true)),
        ("queue-80-c.txt", screen(80, false)),
        ("queue-50.txt", screen(50, true)),
    ] {
        let text = commands::queue::table(&list(), false, now(), &screen);
        fits(&text, screen.width);
        assert_eq!(!screen.unicode, text.is_ascii(), "{name}");
        check(name, &text);
    }
    check("queue.tsv", &commands::queue::table(&list(), false, now(), &pipe()));
    let none = JobList { jobs: vec![], total: 0, gpus_held: 0, gpus_total: 32, ..list() };
    let text = commands::queue::table(&none, false, now(), &screen(80, true));
    assert_eq!(text, "no jobs · 0 of 32 GPUs held\n");
}

#[test]
fn an_array_stands_in_few_lines_unless_all_are_wanted() {
    let list = JobList {
        jobs: common::array(),
        total: 100,
        positions: (6..100).filter(|i| *i != 50).map(|i| (JobId(900 + i), i as u32 - 5)).collect(),
        throttles: [(JobId(900), 2)].into(),
        ..list()
    };
    for (name, screen) in [
        ("array-130.txt", screen(130, true)),
        ("array-80.txt", screen(80, true)),
        ("array-60-c.txt", screen(60, false)),
        ("array.tsv", pipe()),
    ] {
        let text = commands::queue::table(&list, false, now(), &screen);
        if screen.tty {
            fits(&text, screen.width);
        }
        assert!(screen.unicode || text.is_ascii(), "{name}");
        check(name, &text);
    }
    let text = commands::queue::table(&list, true, now(), &pipe());
    assert_eq!(text.lines().count(), 101);
    assert!(text.contains("\n900_99\t"), "{text}");
    let mut few = list;
    few.jobs.retain(|j| j.array.is_some_and(|a| a.index % 7 == 6));
    let text = commands::queue::table(&few, false, now(), &pipe());
    assert!(text.contains("900_[6,13,20,27,…%2]"), "{text}");
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
    let jobs = queue().into_iter().chain([common::wishful()]);
    let text: Vec<String> = jobs.map(|j| commands::show::text(&j, now())).collect();
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
        eta: Some(Eta { p50: now().plus(Millis(2_400_000)), p90: now().plus(Millis(4_800_000)) }),
        promised: Some(now().plus(Millis(7_500_000))),
        counterfactuals: vec![
            Counterfactual {
                change: "--nodes 2".to_owned(),
                starts_at: Some(now()),
                sooner: Some(Millis(7_500_000)),
            },
            Counterfactual {
                change: "--within block".to_owned(),
                starts_at: Some(now().plus(Millis(1_200_000))),
                sooner: Some(Millis(6_300_000)),
            },
            Counterfactual { change: "--tier urgent".to_owned(), starts_at: None, sooner: None },
        ],
        place: vec![],
        hint: Some("it would start now with --nodes 2".to_owned()),
    }
}

#[test]
fn what_would_become_of_a_job_that_is_only_imagined() {
    let starts = Explanation {
        job: None,
        verdict: Verdict::StartsNow,
        summary: "it would start now".to_owned(),
        expected_start: None,
        position: None,
        eta: None,
        promised: None,
        counterfactuals: vec![],
        place: ["n01", "n02"].map(|n| NodeId::parse(n).unwrap()).to_vec(),
        hint: None,
        ladder: vec![],
    };
    let text = commands::explain::text(&starts, now(), &screen(80, true));
    assert_eq!(text, "it would start now\non n01 n02\n");
    let waits = Explanation { job: None, ..explanation() };
    check("dry-run-80.txt", &commands::explain::text(&waits, now(), &screen(80, true)));
    let later = Explanation { promised: None, eta: None, counterfactuals: vec![], ..explanation() };
    let text = commands::explain::text(&later, now(), &screen(80, true));
    assert!(text.contains("starts by 14:05 UTC at the latest, in 2h5m"), "{text}");
}

#[test]
fn why_a_job_stands_where_it_stands() {
    let job = common::wishful();
    let mut nodes: Vec<NodeRecord> = ["n01", "n02", "n03", "n04"]
        .iter()
        .map(|n| common::node(n, "leaf-1", &[]))
        .chain(["n10", "n11"].iter().map(|n| common::node(n, "leaf-2", &[])))
        .collect();
    let placed = commands::show::Placed::of(&job, &nodes);
    let text = placed.text(&screen(100, true));
    fits(&text, 100);
    check("placement-100.txt", &text);
    check("placement.tsv", &placed.text(&pipe()));
    check("placement.json", &to_json(&placed).unwrap());
    // A node that was moved, and one that has gone.
    nodes[1].domains[1].1 = "leaf-9".to_owned();
    let placed = commands::show::Placed::of(&job, &nodes);
    let broken: Vec<&str> =
        placed.constraints.iter().filter(|c| c.holds == Some(false)).map(|c| &*c.what).collect();
    assert_eq!(
        broken,
        ["slice 2:leaf", "at most 2:leaf", "balance leaf", "only 5 named nodes"],
        "{placed:?}"
    );
    nodes.remove(0);
    let placed = commands::show::Placed::of(&job, &nodes);
    assert!(placed.constraints.iter().any(|c| c.holds.is_none()), "{placed:?}");
    let early = JobRecord { certificate: None, ..job };
    let text = commands::show::Placed::of(&early, &nodes).text(&screen(100, true));
    assert!(text.contains("nothing is known of how it was found"), "{text}");
}

#[test]
fn teams_as_a_tree() {
    let quota = |model: &str, guaranteed, limit, cell| v1::Quota {
        gpu_model: model.to_owned(),
        guaranteed,
        limit,
        cell,
    };
    let team = |name: &str, parent: &str, weight, quotas, held, used, moved| v1::Team {
        team: name.to_owned(),
        description: format!("{name}\x1b people"),
        share: Some(v1::TeamShare { parent: parent.to_owned(), weight, quotas }),
        held_gpu_milli: held,
        decayed_usage_gpu_ms: used,
        turn_moved_ms: moved,
    };
    let cell = Some(v1::Cell { level: "leaf".to_owned(), domains: 2 });
    let teams = [
        team(
            "nlp",
            "research",
            200,
            vec![quota("h100", 64, Some(128), None)],
            72_000,
            9 << 32,
            5_400_000,
        ),
        team("research", "", 100, vec![quota("", 0, Some(256), None)], 72_000, 9 << 32, 0),
        team("vision", "research", 100, vec![quota("h100", 64, None, cell)], 0, 0, -7_200_000),
        team("edu", "", 100, vec![], 250, 0, 0),
    ];
    let text = commands::team::table(&teams, &screen(110, true));
    fits(&text, 110);
    check("teams-110.txt", &text);
    check("teams.tsv", &commands::team::table(&teams, &pipe()));
    let views: Vec<_> = teams.iter().map(commands::team::TeamView::of).collect();
    check("teams.json", &to_json(&views).unwrap());
}

#[test]
fn reservations() {
    let node = |n: &str| NodeId::parse(n).unwrap();
    let make = |name: &str, teams: &[&str], target, from, hours: u64| Reservation {
        name: name.to_owned(),
        teams: teams.iter().map(|t| TeamId::parse(t).unwrap()).collect(),
        target,
        from,
        until: UnixMillis(from.0).plus(Millis(hours * 3_600_000)),
        owner: UserId::parse("olga").unwrap(),
        reason: "as agreed".to_owned(),
    };
    let leaf = Target::Domain { level: "leaf".to_owned(), name: "leaf-3".to_owned() };
    let nodes = Target::Nodes { nodes: [node("n01"), node("n02")].into() };
    let list = [
        make("course", &["edu", "nlp"], leaf, now().plus(Millis::DAY), 10),
        make("firmware", &[], nodes, ago("1h"), 2),
    ];
    let text = commands::reserve::table(&list, now(), &screen(120, true));
    fits(&text, 120);
    check("reservations-120.txt", &text);
    let views: Vec<_> = list.iter().map(commands::reserve::ReservationView::of).collect();
    check("reservations.json", &to_json(&views).unwrap());
    assert_eq!(commands::reserve::table(&[], now(), &screen(80, true)), "no reservations\n");
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
    let texts = |all: &[&str]| all.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>();
    let path = |(node, domains): &(&str, &[&str])| v1::NodePath {
        node: (*node).to_owned(),
        domains: texts(domains),
    };
    let fabric = |name: &str, levels: &[&str], nodes: &[(&str, &[&str])]| v1::Fabric {
        name: name.to_owned(),
        levels: texts(levels),
        nodes: nodes.iter().map(path).collect(),
        switches: vec![],
    };
    let count = |level: &str, domain: &str, nodes, up, gpus, free| v1::DomainCount {
        level: level.to_owned(),
        domain: domain.to_owned(),
        nodes,
        nodes_up: up,
        gpus,
        gpus_free: free,
    };
    let net = fabric(
        "net",
        &["block", "leaf"],
        &[
            ("n01", &["b0", "leaf-1"]),
            ("n02", &["b0", "leaf-1"]),
            ("n09", &["b0", "leaf-2"]),
            ("n21", &["b1", "leaf-3"]),
        ],
    );
    let mut reply = v1::TopologyReply {
        fabrics: vec![net],
        unplaced: vec!["n99".to_owned()],
        domains: vec![
            count("block", "b0", 3, 3, 24, 9),
            count("leaf", "leaf-1", 2, 2, 16, 1),
            count("leaf", "leaf-2", 1, 1, 8, 8),
            count("block", "b1", 1, 0, 8, 0),
            count("leaf", "leaf-3", 1, 0, 8, 0),
        ],
        ..Default::default()
    };
    check("topology.txt", &commands::topology::tree(&reply, &screen(80, true)));
    let ascii = commands::topology::tree(&reply, &screen(80, false));
    assert!(ascii.is_ascii(), "{ascii}");

    let nvlink = fabric("nvlink", &["nvlink"], &[("n01", &["d1"]), ("n02", &["d1"])]);
    reply.fabrics.push(nvlink);
    reply.marks = vec![v1::DomainMark {
        level: "leaf".to_owned(),
        domain: "leaf-1".to_owned(),
        health_percent: 50,
        by: "olga".to_owned(),
        reason: "one uplink is down\n".to_owned(),
        until_unix_ms: Some(now().0),
    }];
    let text = "it sees sw-3, and the map says leaf-1".to_owned();
    reply.doubts = vec![v1::MapDoubt { node: "n02".to_owned(), text }];
    check("topology-two.txt", &commands::topology::tree(&reply, &screen(80, true)));
    let view = commands::topology::TopologyView::of(&reply);
    check("topology.json", &to_json(&view).unwrap());
    check("doubts.tsv", &commands::topology::doubts_table(&reply.doubts, &pipe()));
    let none = v1::TopologyReply::default();
    let text = commands::topology::tree(&none, &screen(80, true));
    assert!(text.starts_with("no topology is known"), "{text}");
}

#[test]
fn names_for_programs() {
    check("job.json", &to_json(&JobView::of(&queue()[0])).unwrap());
    check("job-wishful.json", &to_json(&JobView::of(&common::wishful())).unwrap());
    let short = JobList { jobs: queue().split_off(3), ..list() };
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
        held: PartMillis::whole(ms),
        amount: Amount::of(PartMillis::whole(ms - unpriced), MicroUsd::parse_price(price).unwrap()),
        unpriced: PartMillis::whole(unpriced),
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
    assert_eq!(report().idle(), Some(PartMillis::whole(1_195_000)));
    let by_team = Report { by: vec!["team".to_owned()], ..report() };
    assert_eq!(
        by_team.idle(),
        Some(PartMillis::whole(1_195_000)),
        "the idle pool counts without the class"
    );
    let total = Report { by: vec![], lines: vec![], ..report() };
    assert_eq!(total.idle(), None);
}
