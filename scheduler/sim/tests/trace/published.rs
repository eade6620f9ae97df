//! Published traces, where they are at hand: our textbook policies give the figures that others have.

use std::path::{Path, PathBuf};

use tessera_sim::trace::{self, Discipline, NodesFrom, PolicyName, PolicyReport, Source};

use crate::run;

fn traces() -> Option<PathBuf> {
    let folder = std::env::var_os("TESSERA_TRACES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("TESSERA_TRACES names no folder, so the published traces are not replayed");
    }
    folder
}

fn replayed(source: &Source, discipline: Discipline) -> PolicyReport {
    let workload = source.load().unwrap();
    let mut policy = trace::queue_policy(discipline, &workload.nodes);
    let run = trace::replay(&workload, policy.as_mut(), &mut |_| {}).unwrap();
    PolicyReport::of(&workload, &run)
}

fn itp(folder: &Path, cluster: &str, load: f64) -> Source {
    let mut source = Source::new(folder.join("itp-2021.csv.gz"));
    (source.cluster, source.load) = (Some(cluster.to_owned()), Some(load));
    source
}

#[test]
fn the_queues_give_the_waits_that_others_measured() {
    let Some(folder) = traces() else { return };
    assert_eq!(itp(&folder, "cluster04", 0.9).load().unwrap().nodes.len(), 69);
    assert_eq!(itp(&folder, "cluster04", 0.75).load().unwrap().nodes.len(), 82);
    // Mean wait and, of jobs of 8 GPUs and more, seconds.
    let cases = [
        (0.9, Discipline::Fifo, 42_161.0, 35_699.0),
        (0.9, Discipline::Greedy, 13_483.0, 21_569.0),
        (0.9, Discipline::Easy, 22_274.0, 27_829.0),
        (0.9, Discipline::Shortest, 5_384.0, 12_962.0),
        (0.75, Discipline::Fifo, 3_330.0, f64::NAN),
        (0.75, Discipline::Easy, 2_340.0, f64::NAN),
    ];
    for (load, discipline, mean, large) in cases {
        let queue = replayed(&itp(&folder, "cluster04", load), discipline).queue.unwrap();
        let got = queue.wait.wait_ms_mean / 1_000.0;
        assert!((got / mean - 1.0).abs() < 0.001, "{discipline:?} at {load}: {got}, not {mean}");
        let got = queue.by_size.last().unwrap().wait.wait_ms_mean / 1_000.0;
        let same = large.is_nan() || (got / large - 1.0).abs() < 0.001;
        assert!(same, "{discipline:?} at {load}, large: {got}, not {large}");
    }
}

#[test]
fn the_packers_allocate_what_their_authors_measured() {
    let Some(folder) = traces() else { return };
    let mut source = Source::new(folder.join("openb/openb_pod_list_default.csv.gz"));
    source.nodes = Some(NodesFrom::File(folder.join("openb/openb_node_list_gpu_node.csv.gz")));
    // Published means of ten seeds at 100 % arrived; one seed has a deviation of about 0.12.
    let cases = [
        (PolicyName::FirstFit, 94.41, 5.6),
        (PolicyName::BestFit, 92.86, 7.05),
        (PolicyName::Fgd, 95.23, 4.73),
    ];
    let mut sums = [(0.0, 0.0); 3];
    const SEEDS: [u64; 1] = [42];
    for seed in SEEDS {
        source.seed = Some(seed);
        let workload = source.load().unwrap();
        assert_eq!(workload.typical.len(), 35, "shapes that make up 95 % of the pods");
        for ((name, _, _), sum) in cases.iter().zip(&mut sums) {
            let (_, report) = run(*name, &workload);
            assert_eq!(report.refused_avoidably, 0, "{name:?}");
            let at = report.packing.unwrap().at.into_iter().find(|a| a.arrived_pct == 100).unwrap();
            sum.0 += at.allocated_pct.unwrap() / SEEDS.len() as f64;
            sum.1 += at.fragment_pct.unwrap() / SEEDS.len() as f64;
        }
    }
    for ((name, allocated, fragment), sum) in cases.iter().zip(sums) {
        assert!((sum.0 - allocated).abs() < 0.4, "{name:?}: {}, not {allocated}", sum.0);
        assert!((sum.1 - fragment).abs() < 0.3, "{name:?}: {}, not {fragment}", sum.1);
    }
}

#[test]
fn the_shipping_core_waits_less_than_backfill_and_spans_no_more_than_it_must() {
    let Some(folder) = traces() else { return };
    let mut source = itp(&folder, "cluster07", 0.9);
    source.topology = Some(folder.join("lingjun-2023-topology.csv.gz"));
    let mut workload = source.load().unwrap();
    // As much as a build without optimisation replays in half a minute.
    workload.jobs.truncate(4_000);
    let reports =
        [PolicyName::Ours, PolicyName::Greedy, PolicyName::Easy].map(|name| run(name, &workload).1);
    let wait = |r: &PolicyReport| {
        let wait = &r.queue.as_ref().unwrap().wait;
        (wait.wait_ms_mean, wait.wait_ms_p99)
    };
    let [ours, greedy, easy] = &reports;
    for other in [greedy, easy] {
        let (a, b) = (wait(ours), wait(other));
        assert!(a.0 < b.0 && a.1 < b.1, "{a:?} and, of {}, {b:?}", other.policy);
    }
    assert_eq!(ours.promises.as_ref().map(|p| p.broken), Some(0));
    if let Some(span) = &ours.span {
        assert_eq!(span.gangs, span.optimal, "{span:?}");
    }
}
