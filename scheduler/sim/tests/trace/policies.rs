//! What the policies do: queues against pictures, packers and the shipping core against what must hold.

use tessera_model::Millis;
use tessera_sim::Rng;
use tessera_sim::trace::{
    self, Discipline, Kind, Placed, PolicyName, PolicyReport, Request, Workload,
};

use crate::{Folder, openb, run, workload};

/// Jobs as `at length nodesxgpus`, and when each starts.
fn check(discipline: Discipline, nodes: usize, gpus: u32, jobs: &str, want: &[i64]) {
    let jobs: Vec<(u64, u64, Request)> = jobs
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (n, g) = words[2].split_once('x').unwrap();
            let request = Request::gpus(n.parse().unwrap(), g.parse().unwrap());
            (words[0].parse().unwrap(), words[1].parse().unwrap(), request)
        })
        .collect();
    let workload = workload(Kind::Queue, nodes, gpus, &jobs);
    let mut policy = trace::queue_policy(discipline, &workload.nodes);
    let run = trace::replay(&workload, policy.as_mut(), &mut |_| {}).unwrap();
    let starts: Vec<i64> = run.fates.iter().map(|f| f.started.unwrap().0 / 1_000).collect();
    assert_eq!(starts, want, "{discipline:?}: {jobs:?}");
}

#[test]
fn each_queue_keeps_its_own_order() {
    // The second job blocks; the third is long and the fourth short, and both fit beside the first.
    let jobs = "0 100 1x6\n1 50 1x4\n2 200 1x2\n3 90 1x2";
    check(Discipline::Fifo, 1, 8, jobs, &[0, 100, 100, 100]);
    check(Discipline::Greedy, 1, 8, jobs, &[0, 100, 2, 100]);
    // Until 100 the third may use what is left over, since six GPUs are free then.
    check(Discipline::Easy, 1, 8, jobs, &[0, 100, 2, 100]);
    // Now the blocked job needs all: the long one would delay it, the short one would not.
    let jobs = "0 100 1x6\n1 50 1x8\n2 200 1x2\n3 90 1x2";
    check(Discipline::Greedy, 1, 8, jobs, &[0, 202, 2, 100]);
    check(Discipline::Easy, 1, 8, jobs, &[0, 100, 150, 3]);
    check(Discipline::Shortest, 1, 8, "0 9 1x8\n1 5 1x8\n2 4 1x8\n3 6 1x8", &[0, 13, 9, 18]);
    // Best fit keeps the empty node for the gang that needs it.
    check(Discipline::Fifo, 2, 4, "0 9 1x2\n1 9 1x2\n2 9 1x4\n3 9 2x4", &[0, 1, 2, 11]);
}

fn random(seed: u64) -> Workload {
    let mut rng = Rng::new(seed);
    let mut at = 0;
    let jobs: Vec<(u64, u64, Request)> = (0..120)
        .map(|_| {
            at += rng.below(20);
            let request = match rng.below(6) {
                0 => Request::gpus(rng.between(2, 4) as u32, 4),
                1 => Request { gpu_milli: 250, ..Request::gpus(1, 1) },
                _ => Request::gpus(1, rng.between(1, 4) as u32),
            };
            (at, rng.between(1, 200), request)
        })
        .collect();
    workload(Kind::Queue, 4, 4, &jobs)
}

#[test]
fn no_queue_strands_a_job_and_easy_keeps_its_word() {
    for seed in 0..60 {
        let mut workload = random(seed);
        for job in &mut workload.jobs {
            // Some end early, some have no limit.
            job.time_limit = match job.duration.0 % 5_000 {
                0 => None,
                1_000 => Some(Millis(job.duration.0 * 3)),
                _ => Some(job.duration),
            };
        }
        let disciplines =
            [Discipline::Fifo, Discipline::Greedy, Discipline::Easy, Discipline::Shortest];
        let mut work = Vec::new();
        for discipline in disciplines {
            let mut policy = trace::queue_policy(discipline, &workload.nodes);
            let run = trace::replay(&workload, policy.as_mut(), &mut |_| {}).unwrap();
            let report = PolicyReport::of(&workload, &run);
            assert_eq!(report.stranded, 0, "{discipline:?}, seed {seed}");
            let promises = report.promises.map(|p| (p.broken, p.put_off));
            if discipline == Discipline::Easy {
                assert_eq!(promises, Some((0, 0)), "seed {seed}");
            } else {
                assert_eq!(promises, None, "{discipline:?}");
            }
            let queue = report.queue.unwrap();
            work.push(queue.jct_ms_mean - queue.wait.wait_ms_mean);
        }
        assert!(
            work.windows(2).all(|w| (w[0] - w[1]).abs() < 1.0),
            "the work is the same: {work:?}"
        );
    }
}

#[test]
fn figures_are_what_a_pencil_says() {
    // Two GPUs; one is held from 10 to 60 and from 60 to 110, the other from 40 to 60.
    let jobs = [
        (10, 50, Request::gpus(1, 1)),
        (40, 20, Request::gpus(1, 1)),
        (50, 50, Request::gpus(1, 2)),
        (110, 1, Request::gpus(1, 1)),
    ];
    let workload = workload(Kind::Queue, 1, 2, &jobs);
    let mut policy = trace::queue_policy(Discipline::Fifo, &workload.nodes);
    let run = trace::replay(&workload, policy.as_mut(), &mut |_| {}).unwrap();
    let report = PolicyReport::of(&workload, &run);
    let queue = report.queue.unwrap();
    assert_eq!(
        (queue.wait.wait_ms_mean, queue.wait.wait_ms_p50, queue.wait.wait_ms_p99),
        (2_500.0, 0, 10_000)
    );
    assert_eq!(queue.jct_ms_mean, 2_500.0 + 121_000.0 / 4.0);
    // 50 + 20 + 100 GPU-seconds of 200.
    assert_eq!(queue.utilisation_pct, Some(85.0));
    // Shapes: one GPU three times, two once. While one of two is idle, the two-GPU shape cannot use
    // it: a quarter, for 30 s of 100.
    assert_eq!(queue.fragment_pct, Some(100.0 * 0.25 * 30.0 / 200.0));
    let sizes: Vec<(&str, u64)> = queue.by_size.iter().map(|s| (s.gpus, s.wait.jobs)).collect();
    assert_eq!(sizes, [("0-1", 3), ("2-7", 1)]);
    assert_eq!(queue.end_ms, 111_000);
}

#[test]
fn a_chart_is_whole_and_names_its_lines() {
    let lines = vec![
        trace::chart::Line {
            name: "a<b".into(),
            points: (0..=130).map(|x| (f64::from(x), f64::from(x.min(95)))).collect(),
        },
        trace::chart::Line {
            name: "fgd".into(),
            points: (0..=130).map(|x| (f64::from(x), f64::from(x.min(96)))).collect(),
        },
    ];
    let waits = vec![("easy".to_owned(), vec![0.0, 5.0, 90_000.0]), ("none".to_owned(), vec![])];
    for svg in [
        trace::chart::allocation(lines).svg(),
        trace::chart::waits(waits).svg(),
        trace::chart::allocation(vec![]).svg(),
    ] {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("prefers-color-scheme: dark"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
    let svg = trace::chart::waits(vec![("a<b".to_owned(), vec![1.0])]).svg();
    assert!(svg.contains(">a&lt;b</text>") && svg.contains("class=\"line c0\""), "{svg}");
}

/// Pods of the published shapes, near enough, on nodes of three kinds.
fn pods(seed: u64, count: usize) -> (String, String) {
    let mut rng = Rng::new(seed);
    let mut nodes = "sn,cpu_milli,memory_mib,gpu,model\n".to_owned();
    for i in 0..24 {
        let (gpus, model) = [(8, "G2"), (4, "T4"), (2, "T4"), (2, "T40")][i % 4];
        nodes.push_str(&format!("n{i:02},{},{},{gpus},{model}\n", 12_000 * gpus, 65_536 * gpus));
    }
    let mut pods = "seq,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n".to_owned();
    for i in 0..count {
        let (gpus, milli) = match rng.below(20) {
            0 => (0, 0),
            1..8 => (1, *rng.pick(&[100, 250, 500, 810])),
            8..17 => (1, 1_000),
            17..19 => (2, 1_000),
            _ => (8, 1_000),
        };
        let model = if gpus == 1 { *rng.pick(&["", "", "", "", "T4", "G2|T40"]) } else { "" };
        let cpus = rng.between(1_000, 8_000);
        pods.push_str(&format!("{},{cpus},{},{gpus},{milli},{model}\n", i * 2, cpus * 4));
    }
    (nodes, pods)
}

#[test]
fn no_packing_policy_refuses_what_would_fit() {
    for seed in 0..4 {
        let folder = Folder::new();
        let (nodes, list) = pods(seed, 220);
        let workload = openb(&folder, &nodes, &list).load().unwrap();
        for name in PolicyName::ALL.into_iter().filter(|n| n.suits(Kind::Packing)) {
            let (_, report) = run(name, &workload);
            assert!(report.refused > 0, "{name:?}: the list is too small to say anything");
            assert_eq!(report.refused_avoidably, 0, "{name:?}, seed {seed}");
            let packing = report.packing.unwrap();
            assert!(packing.allocated_pct > 75.0, "{name:?}, seed {seed}: {packing:?}");
        }
    }
}

#[test]
fn what_is_to_come_changes_nothing_of_what_was_decided() {
    // A policy that looked ahead would place the first pods otherwise once the later ones change.
    let folder = Folder::new();
    let (nodes, list) = pods(7, 160);
    let lines: Vec<&str> = list.lines().collect();
    let mut other = lines.clone();
    let end = other.len();
    other[end - 60..].reverse();
    let mut renumbered = vec![other[0].to_owned()];
    for (i, line) in other[1..].iter().enumerate() {
        renumbered.push(format!("{},{}", i * 2, line.split_once(',').unwrap().1));
    }
    let first = openb(&folder, &nodes, &list).load().unwrap();
    let second = openb(&folder, &nodes, &renumbered.join("\n")).load().unwrap();
    for name in [PolicyName::Ours, PolicyName::FirstFit, PolicyName::BestFit] {
        let (a, b) = (run(name, &first).0, run(name, &second).0);
        let places = |run: &trace::Run| -> Vec<Vec<Placed>> {
            run.fates[..100].iter().map(|f| f.places.clone()).collect()
        };
        assert_eq!(places(&a), places(&b), "{name:?}");
        assert_eq!(a, run(name, &first).0, "{name:?} is not the same twice");
    }
}

#[test]
fn the_shipping_core_runs_queues_to_their_end() {
    for seed in 0..8 {
        let mut workload = random(seed);
        workload.levels = vec!["leaf".to_owned()];
        for (i, node) in workload.nodes.iter_mut().enumerate() {
            node.path = vec![format!("l{}", i / 2)];
        }
        let (_, ours) = run(PolicyName::Ours, &workload);
        let (_, fifo) = run(PolicyName::Fifo, &workload);
        assert_eq!((ours.stranded, ours.started), (0, 120), "seed {seed}");
        let mean = |r: &PolicyReport| r.queue.as_ref().unwrap().wait.wait_ms_mean;
        assert!(mean(&ours) < mean(&fifo), "seed {seed}: {} and {}", mean(&ours), mean(&fifo));
        let span = ours.span.unwrap();
        assert_eq!(span.gangs, span.optimal, "seed {seed}: {span:?}");
    }
}

#[test]
fn a_policy_that_answers_another_question_is_refused() {
    let packing = workload(Kind::Packing, 1, 1, &[(0, 0, Request::gpus(1, 1))]);
    let queue = workload(Kind::Queue, 1, 1, &[(0, 1, Request::gpus(1, 1))]);
    for (name, workload, hint) in [
        (PolicyName::Easy, &packing, "ours, first-fit, best-fit, fgd"),
        (PolicyName::Fgd, &queue, "ours, fifo, greedy, easy, sjf"),
    ] {
        let error = name.make(workload).err().unwrap();
        assert!(error.hint().ends_with(hint), "{}", error.hint());
    }
    assert!(PolicyName::ALL.into_iter().all(|n| PolicyName::parse(n.word()) == Some(n)));
}
