//! The driver gives events in their turn, and lets no policy break a rule.

use tessera_model::UnixMillis;
use tessera_sim::trace::{
    self, JobIndex, Kind, Placed, Policy, PolicyReport, Request, Start, Submission, TraceError,
};

use crate::workload;

/// Does what a test tells it, and remembers all that it was told.
struct Puppet<F> {
    act: F,
    told: Vec<String>,
}

impl<F: FnMut(&[String]) -> Vec<Start>> Policy for Puppet<F> {
    fn name(&self) -> &'static str {
        "puppet"
    }
    fn submitted(&mut self, now: UnixMillis, s: &Submission) {
        self.told.push(format!("{} +{}", now.0 / 1_000, s.job));
    }
    fn ended(&mut self, now: UnixMillis, job: JobIndex) {
        self.told.push(format!("{} -{job}", now.0 / 1_000));
    }
    fn withdrawn(&mut self, now: UnixMillis, job: JobIndex) {
        self.told.push(format!("{} x{job}", now.0 / 1_000));
    }
    fn starts(&mut self, _: UnixMillis) -> Vec<Start> {
        (self.act)(&self.told)
    }
}

fn puppet(act: impl FnMut(&[String]) -> Vec<Start>) -> Puppet<impl FnMut(&[String]) -> Vec<Start>> {
    Puppet { act, told: Vec::new() }
}

fn start(job: JobIndex, node: usize, devices: &[u32]) -> Start {
    Start { job, places: vec![Placed { node, devices: devices.to_vec() }] }
}

#[test]
fn events_come_in_their_turn_ends_before_submissions() {
    let jobs =
        [(5, 10, Request::gpus(1, 1)), (15, 0, Request::gpus(1, 1)), (20, 3, Request::gpus(1, 9))];
    let workload = workload(Kind::Queue, 1, 1, &jobs);
    let mut policy = puppet(|told| match told.last().map(String::as_str) {
        Some("5 +0") => vec![start(0, 0, &[0])],
        Some("15 +1") => vec![start(1, 0, &[0])],
        _ => Vec::new(),
    });
    let run = trace::replay(&workload, &mut policy, &mut |_| {}).unwrap();
    assert_eq!(policy.told, ["5 +0", "15 -0", "15 +1", "15 -1"]);
    assert!(run.fates[2].too_large, "nine GPUs are more than there are, no policy is bothered");
    let report = PolicyReport::of(&workload, &run);
    assert_eq!((report.started, report.refused, report.too_large, report.stranded), (2, 0, 1, 0));
}

#[test]
fn a_pod_that_finds_no_place_is_dropped_and_an_avoidable_refusal_is_counted() {
    let jobs =
        [(0, 0, Request::gpus(1, 1)), (1, 0, Request::gpus(1, 2)), (2, 0, Request::gpus(1, 1))];
    let workload = workload(Kind::Packing, 1, 2, &jobs);
    let mut policy = puppet(|told| match told.len() {
        1 => vec![start(0, 0, &[1])],
        _ => Vec::new(),
    });
    let run = trace::replay(&workload, &mut policy, &mut |_| {}).unwrap();
    assert_eq!(policy.told, ["0 +0", "1 +1", "1 x1", "2 +2", "2 x2"]);
    let report = PolicyReport::of(&workload, &run);
    assert_eq!((report.refused, report.refused_avoidably), (2, 1));
    let mut csv = Vec::new();
    trace::placements::write(&workload, &run, &mut csv).unwrap();
    assert_eq!(String::from_utf8(csv).unwrap(), "seq,node,devices\n0,node-0,1\n0,,\n0,,\n");
}

#[test]
fn a_policy_that_breaks_a_rule_is_stopped() {
    let half = Request { gpu_milli: 600, ..Request::gpus(1, 1) };
    let picky = Request { models: vec!["T4".into()], ..Request::gpus(1, 1) };
    let jobs = [
        (0, 9, half.clone()),
        (0, 9, half),
        (0, 9, Request::gpus(2, 2)),
        (0, 9, picky),
        (9, 9, Request::gpus(1, 1)),
    ];
    let mut workload = workload(Kind::Queue, 2, 2, &jobs);
    workload.nodes[1].model = "T4".to_owned();
    let gang = |places: Vec<(usize, Vec<u32>)>| Start {
        job: 2,
        places: places.into_iter().map(|(node, devices)| Placed { node, devices }).collect(),
    };
    let cases: Vec<(&str, Vec<Start>)> = vec![
        ("node-0 device 0 has 400 milli, not 600", vec![start(0, 0, &[0]), start(1, 0, &[0])]),
        ("2 devices on node-0, the job asks for 1", vec![start(0, 0, &[0, 1])]),
        ("node-0 has no device 2", vec![start(0, 0, &[2])]),
        ("there is no node number 7", vec![start(0, 7, &[0])]),
        ("1 nodes for a job of 2", vec![gang(vec![(0, vec![0, 1])])]),
        ("node-0 is used twice by one job", vec![gang(vec![(0, vec![0, 1]), (0, vec![0, 1])])]),
        ("do not ascend", vec![gang(vec![(0, vec![1, 1]), (1, vec![0, 1])])]),
        ("node-0 has , the job asks for T4", vec![start(3, 0, &[0])]),
        ("job number 0, which does not wait", vec![start(0, 0, &[0]), start(0, 1, &[0])]),
        ("job number 4, which does not wait", vec![start(4, 0, &[0])]),
        ("job number 5, which does not exist", vec![start(5, 0, &[0])]),
    ];
    for (what, starts) in cases {
        let mut policy = puppet(move |_| starts.clone());
        let error = trace::replay(&workload, &mut policy, &mut |_| {}).expect_err(what);
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert!(matches!(error, TraceError::Broken { .. }), "{what}");
    }
}
