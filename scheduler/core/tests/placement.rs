//! Placement and backfill: one property for each letter of `src/placement/README.md`, checked
//! against brute force on small clusters, and the common stories as pictures.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Story, attempt, cases, gpu_id, inventory, node_id, spec};
use proptest::prelude::*;
use tessera_core::decide::{self, Decision, decide, forecast};
use tessera_core::event::Event;
use tessera_core::placement::snapshot::GpuView;
use tessera_core::placement::{Chosen, NodeView, Pending, Release, Snapshot, place};
use tessera_core::verify::verify;
use tessera_model::topology::Topology;
use tessera_model::{
    Bytes, Cordon, Gang, GpuCondition, JobId, JobSpec, Lease, Millis, NodeId, Place, SessionId,
    Strength, UnixMillis, WaitReason, Within,
};

// ---- random small clusters

/// A node to be: its GPUs as (NVLink group, NUMA node, free, healthy), and where it stands.
#[derive(Debug, Clone)]
struct Plan {
    gpus: Vec<(u32, u32, bool, bool)>,
    cordoned: bool,
    path: Option<(u8, u8)>,
}

#[derive(Debug, Clone)]
struct Question {
    plans: Vec<Plan>,
    spec: JobSpec,
}

fn plan() -> impl Strategy<Value = Plan> {
    let gpu = (0..2u32, 0..2u32, prop::bool::weighted(0.75), prop::bool::weighted(0.9));
    let gpus = prop::collection::vec(gpu, 0..=4);
    let path = prop::option::weighted(0.85, (0..2u8, 0..2u8));
    (gpus, prop::bool::weighted(0.1), path).prop_map(|(gpus, cordoned, path)| Plan {
        gpus,
        cordoned,
        path,
    })
}

fn question() -> impl Strategy<Value = Question> {
    let within = prop::collection::vec(
        (prop_oneof![Just("block"), Just("leaf")], any::<bool>()).prop_map(|(level, required)| {
            let strength = if required { Strength::Required } else { Strength::Preferred };
            Within { level: level.to_owned(), strength }
        }),
        0..=2,
    );
    (prop::collection::vec(plan(), 1..=6), 1..=4u32, 0..=3u32, within).prop_map(
        |(plans, nodes, gpus, within)| {
            let spec = JobSpec { within, ..spec(nodes, gpus) };
            Question { plans, spec }
        },
    )
}

/// The cluster of a question, its nodes coming up in `order`, with job 1000 waiting.
fn build(question: &Question, order: &[usize]) -> Story {
    let mut story = Story::default();
    story.push(Event::EpochBegan { epoch: tessera_model::Epoch(1) });
    let mut topology =
        Topology { levels: vec!["block".to_owned(), "leaf".to_owned()], nodes: BTreeMap::new() };
    for (i, plan) in question.plans.iter().enumerate() {
        if let Some((block, leaf)) = plan.path {
            let path = vec![format!("b{block}"), format!("b{block}l{leaf}")];
            topology.nodes.insert(node_id(&format!("n{i}")), path);
        }
    }
    story.push(Event::TopologyLoaded { topology });
    for i in order {
        let (name, plan) = (format!("n{i}"), &question.plans[*i]);
        let shape: Vec<(u32, u32)> = plan.gpus.iter().map(|g| (g.0, g.1)).collect();
        let (inventory, session) = (inventory(&name, 0, &shape), SessionId(*i as u64 + 1));
        story.push(Event::NodeUp { inventory, session, adopted: Vec::new() });
        let sick = |(g, gpu): (usize, &(u32, u32, bool, bool))| {
            (!gpu.3).then(|| (gpu_id(&name, g as u32), GpuCondition::Lost))
        };
        let conditions = plan.gpus.iter().enumerate().filter_map(sick).collect();
        story.push(Event::ConditionsChanged { node: node_id(&name), conditions });
    }
    for (i, plan) in question.plans.iter().enumerate() {
        let node = node_id(&format!("n{i}"));
        let busy = plan.gpus.iter().enumerate().filter(|(_, g)| !g.2);
        let gpus: Vec<_> = busy.map(|(g, _)| gpu_id(node.as_str(), g as u32)).collect();
        if !gpus.is_empty() {
            let job = story.submit(spec(1, gpus.len() as u32));
            let session = SessionId(i as u64 + 1);
            let place = Place { node: node.clone(), session, gpus, cpus: 1, memory: Bytes(0) };
            let (attempt, epoch) = (attempt(job.0, 1), tessera_model::Epoch(1));
            let lease = Lease { attempt, epoch, places: vec![place] };
            story.push(Event::LeaseGranted { lease });
        }
        if plan.cordoned {
            let cordon = Cordon { drain: false, by: "sre".to_owned(), reason: "x".to_owned() };
            story.push(Event::NodeCordoned { node, cordon });
        }
    }
    story.submit(question.spec.clone());
    story
}

fn in_order(question: &Question) -> Story {
    build(question, &(0..question.plans.len()).collect::<Vec<_>>())
}

fn answer(snapshot: &Snapshot, spec: &JobSpec) -> Option<Vec<Chosen>> {
    place(&snapshot.nodes, &snapshot.levels, &spec.gang, &spec.within, &BTreeSet::new()).ok()
}

/// Nodes that could take part, counted from the plan and not from the snapshot.
fn fitting(question: &Question) -> Vec<usize> {
    let wanted = question.spec.gang.gpus_per_node as usize;
    let fits =
        |plan: &Plan| !plan.cordoned && plan.gpus.iter().filter(|g| g.2 && g.3).count() >= wanted;
    (0..question.plans.len()).filter(|i| fits(&question.plans[*i])).collect()
}

/// The domain of a node at a depth; at depth 0 all are in one.
fn domain(question: &Question, node: usize, depth: usize) -> Option<Vec<u8>> {
    match (depth, question.plans[node].path) {
        (0, _) => Some(Vec::new()),
        (1, Some((block, _))) => Some(vec![block]),
        (2, Some((block, leaf))) => Some(vec![block, leaf]),
        _ => None,
    }
}

fn depth_of(level: &str) -> usize {
    if level == "block" { 1 } else { 2 }
}

fn deepest(spec: &JobSpec, strength: Strength) -> Option<usize> {
    let of = spec.within.iter().filter(|w| w.strength == strength);
    of.map(|w| depth_of(&w.level)).max()
}

fn subsets(of: &[usize], size: usize) -> Vec<Vec<usize>> {
    (0..1u32 << of.len())
        .filter(|mask| mask.count_ones() as usize == size)
        .map(|mask| (0..of.len()).filter(|i| mask >> i & 1 == 1).map(|i| of[i]).collect())
        .collect()
}

fn in_one_domain(question: &Question, nodes: &[usize], depth: usize) -> bool {
    let domains: BTreeSet<_> = nodes.iter().map(|n| domain(question, *n, depth)).collect();
    domains.len() == 1 && !domains.contains(&None)
}

/// Index in the plan of each chosen node.
fn indices(snapshot: &Snapshot, chosen: &[Chosen]) -> Vec<usize> {
    let index = |c: &Chosen| snapshot.nodes[c.node].id.as_str()[1..].parse().unwrap();
    let mut indices: Vec<usize> = chosen.iter().map(index).collect();
    indices.sort_unstable();
    indices
}

fn named(snapshot: &Snapshot, chosen: &[Chosen]) -> Vec<(NodeId, u64)> {
    chosen.iter().map(|c| (snapshot.nodes[c.node].id.clone(), c.gpus)).collect()
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_all_or_nothing(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        if let Some(chosen) = answer(&snapshot, &q.spec) {
            prop_assert_eq!(chosen.len() as u32, q.spec.gang.nodes);
            for c in &chosen {
                prop_assert_eq!(c.gpus.count_ones(), q.spec.gang.gpus_per_node);
            }
        }
    }

    #[test]
    fn b_nothing_twice_and_only_what_is_free_and_healthy(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        if let Some(chosen) = answer(&snapshot, &q.spec) {
            let nodes: BTreeSet<usize> = chosen.iter().map(|c| c.node).collect();
            prop_assert_eq!(nodes.len(), chosen.len(), "a node twice");
            for c in &chosen {
                let plan = &q.plans[indices(&snapshot, &[*c])[0]];
                prop_assert!(!plan.cordoned);
                for (i, gpu) in plan.gpus.iter().enumerate() {
                    prop_assert!(c.gpus >> i & 1 == 0 || (gpu.2 && gpu.3), "GPU {} of {:?}", i, plan);
                }
                prop_assert_eq!(c.gpus >> plan.gpus.len(), 0);
            }
        }
    }

    #[test]
    fn c_required_levels_hold(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        if let Some(chosen) = answer(&snapshot, &q.spec) {
            let nodes = indices(&snapshot, &chosen);
            for within in q.spec.within.iter().filter(|w| w.strength == Strength::Required) {
                prop_assert!(in_one_domain(&q, &nodes, depth_of(&within.level)));
            }
        }
    }

    #[test]
    fn d_complete_what_brute_force_finds_is_found(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        let required = deepest(&q.spec, Strength::Required).unwrap_or(0);
        let exists = subsets(&fitting(&q), q.spec.gang.nodes as usize)
            .iter()
            .any(|nodes| in_one_domain(&q, nodes, required));
        prop_assert_eq!(answer(&snapshot, &q.spec).is_some(), exists);
    }

    #[test]
    fn e_the_tightest_domain_and_in_it_the_fewest_subdomains(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        let Some(chosen) = answer(&snapshot, &q.spec) else { return Ok(()) };
        let (fits, want) = (fitting(&q), q.spec.gang.nodes as usize);
        let required = deepest(&q.spec, Strength::Required).unwrap_or(0);
        let start = deepest(&q.spec, Strength::Preferred).unwrap_or(2).max(required);
        let at = |depth: usize| {
            let mut domains: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
            for node in &fits {
                if let Some(d) = domain(&q, *node, depth) {
                    domains.entry(d).or_default().push(*node);
                }
            }
            domains.retain(|_, nodes| nodes.len() >= want);
            domains
        };
        // The narrowest level, from the preferred one upwards, at which a domain fits.
        let (depth, domains) = (required..=start)
            .rev()
            .map(|depth| (depth, at(depth)))
            .find(|(_, domains)| !domains.is_empty())
            .unwrap();
        let nodes = indices(&snapshot, &chosen);
        prop_assert!(in_one_domain(&q, &nodes, depth));
        let mine = &domains[&domain(&q, nodes[0], depth).unwrap()];
        let tightest = domains.values().map(Vec::len).min().unwrap();
        prop_assert_eq!(mine.len(), tightest);
        if depth < 2 {
            let parts = |nodes: &[usize]| {
                nodes.iter().map(|n| domain(&q, *n, depth + 1)).collect::<BTreeSet<_>>().len()
            };
            let fewest = subsets(mine, want).iter().map(|s| parts(s)).min().unwrap();
            prop_assert_eq!(parts(&nodes), fewest, "{:?} of {:?}", nodes, mine);
        }
    }

    #[test]
    fn f_the_order_in_which_nodes_come_makes_no_difference(
        (q, order) in question().prop_flat_map(|q| {
            let order: Vec<usize> = (0..q.plans.len()).collect();
            (Just(q), Just(order).prop_shuffle())
        })
    ) {
        let (one, other) = (in_order(&q), build(&q, &order));
        let (one, other) =
            (Snapshot::of(&one.cluster, one.now), Snapshot::of(&other.cluster, other.now));
        let placed = |s: &Snapshot| answer(s, &q.spec).map(|chosen| named(s, &chosen));
        prop_assert_eq!(placed(&one), placed(&other));
    }

    #[test]
    fn g_no_other_set_of_gpus_spans_less(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        for c in answer(&snapshot, &q.spec).unwrap_or_default() {
            let gpus = &q.plans[indices(&snapshot, &[c])[0]].gpus;
            let spans = |set: &[usize]| {
                let groups: BTreeSet<u32> = set.iter().map(|i| gpus[*i].0).collect();
                let numas: BTreeSet<u32> = set.iter().map(|i| gpus[*i].1).collect();
                (groups.len(), numas.len())
            };
            let usable: Vec<usize> = (0..gpus.len()).filter(|i| gpus[*i].2 && gpus[*i].3).collect();
            let best = subsets(&usable, c.gpus.count_ones() as usize).iter().map(|s| spans(s)).min();
            let mine: Vec<usize> = (0..gpus.len()).filter(|i| c.gpus >> i & 1 == 1).collect();
            prop_assert_eq!(Some(spans(&mine)), best, "{:?} of {:?}", mine, gpus);
        }
    }

    #[test]
    fn h_freeing_more_never_makes_it_not_fit(q in question(), node in 0..6usize, gpu in 0..4usize) {
        let story = in_order(&q);
        let before = answer(&Snapshot::of(&story.cluster, story.now), &q.spec).is_some();
        let mut freer = q.clone();
        let node = node % q.plans.len();
        freer.plans[node].cordoned = false;
        if let Some(gpu) = freer.plans[node].gpus.get_mut(gpu) {
            (gpu.2, gpu.3) = (true, true);
        }
        let story = in_order(&freer);
        let after = answer(&Snapshot::of(&story.cluster, story.now), &q.spec).is_some();
        prop_assert!(!before || after);
    }

    #[test]
    fn i_the_verifier_accepts_every_placement_and_no_spoilt_one(q in question()) {
        let story = in_order(&q);
        let snapshot = Snapshot::of(&story.cluster, story.now);
        for (job, chosen) in decide(&snapshot).start {
            let lease = decide::lease(&story.cluster, &snapshot, job, &chosen).unwrap();
            prop_assert_eq!(verify(&story.cluster, &lease), Ok(()));
            for (what, spoilt) in spoil(&story, &lease) {
                prop_assert!(verify(&story.cluster, &spoilt).is_err(), "{} was accepted", what);
            }
        }
    }
}

/// The lease with one thing wrong, in each way there is.
fn spoil(story: &Story, lease: &Lease) -> Vec<(&'static str, Lease)> {
    let mut spoilt = Vec::new();
    let mut with = |what, change: &mut dyn FnMut(&mut Lease)| {
        let mut other = lease.clone();
        change(&mut other);
        spoilt.push((what, other));
    };
    with("a place too few", &mut |l| drop(l.places.pop()));
    with("a place twice", &mut |l| l.places.push(l.places[0].clone()));
    with("another session", &mut |l| l.places[0].session = SessionId(99));
    with("another reign", &mut |l| l.epoch.0 += 1);
    with("more CPUs", &mut |l| l.places[0].cpus += 1);
    with("more memory", &mut |l| l.places[0].memory.0 += 1);
    with("an unknown node", &mut |l| l.places[0].node = node_id("nowhere"));
    with("an unknown GPU", &mut |l| l.places[0].gpus.push(gpu_id("n9", 0)));
    if !lease.places[0].gpus.is_empty() {
        with("a GPU too few", &mut |l| drop(l.places[0].gpus.pop()));
        let node = &story.cluster.nodes[&lease.places[0].node];
        if let Some(held) = node.held.keys().next() {
            with("a GPU that is held", &mut |l| l.places[0].gpus[0] = held.clone());
        }
        if let Some(sick) = node.conditions.keys().next() {
            with("a GPU that is sick", &mut |l| l.places[0].gpus[0] = sick.clone());
        }
    }
    spoilt
}

#[test]
fn the_verifier_knows_domains_by_their_whole_path() {
    // Two blocks whose leaves have one name: being "in l0" of different blocks is not one leaf.
    let mut story = Story::with_nodes(2, 1);
    let path = |block: &str| vec![block.to_owned(), "l0".to_owned()];
    story.push(Event::TopologyLoaded {
        topology: Topology {
            levels: vec!["block".to_owned(), "leaf".to_owned()],
            nodes: BTreeMap::from([(node_id("n0"), path("b0")), (node_id("n1"), path("b1"))]),
        },
    });
    let within = vec![Within { level: "leaf".to_owned(), strength: Strength::Required }];
    let job = story.submit(JobSpec { within, ..spec(2, 1) });
    let place = |i: u64| Place {
        node: node_id(&format!("n{i}")),
        session: SessionId(i + 1),
        gpus: vec![gpu_id(&format!("n{i}"), 0)],
        cpus: 1,
        memory: Bytes(0),
    };
    let (attempt, epoch) = (attempt(job.0, 1), tessera_model::Epoch(1));
    let lease = Lease { attempt, epoch, places: vec![place(0), place(1)] };
    assert!(verify(&story.cluster, &lease).unwrap_err().what.contains("one leaf"));
    assert!(story.decide().is_empty(), "and placement agrees");
}

// ---- queues that are played to their end

/// A job of a queue: its gang, and how long it runs, which is also its limit.
type Shape = (u32, u32, u64);

fn shapes(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Shape>> {
    prop::collection::vec((1..=3u32, 1..=4u32, 1..=20u64), count)
}

fn pending(id: u64, (nodes, gpus, minutes): Shape) -> Pending {
    Pending {
        job: JobId(id),
        gang: Gang { cpus_per_task: 0, ..spec(nodes, gpus).gang },
        within: Vec::new(),
        time_limit: Some(Millis::from_secs(60 * minutes)),
        submitted_at: UnixMillis(0),
        not_before: None,
        avoid: BTreeSet::new(),
    }
}

fn empty_nodes(sizes: &[u32]) -> Snapshot {
    let lines: Vec<String> = sizes
        .iter()
        .enumerate()
        .map(|(i, n)| format!("n{i}: {}", ".".repeat(*n as usize)))
        .collect();
    Snapshot { now: UnixMillis(0), ..Picture::read(&lines.join("\n")).snapshot }
}

/// When each job starts, if each runs for its whole limit. `arrivals`: (minute, job), in queue order.
fn play(mut snapshot: Snapshot, arrivals: &[(u64, Pending)]) -> BTreeMap<JobId, UnixMillis> {
    let minute = |m: u64| UnixMillis(m as i64 * 60_000);
    let mut starts = BTreeMap::new();
    let mut instants: BTreeSet<UnixMillis> = arrivals.iter().map(|(m, _)| minute(*m)).collect();
    while let Some(now) = instants.pop_first() {
        snapshot.now = now;
        let (ended, running) =
            snapshot.releases.into_iter().partition(|r: &Release| r.at.is_some_and(|t| t <= now));
        snapshot.releases = running;
        let ended: Vec<Release> = ended;
        for (node, gpus, cpus, memory) in ended.iter().flat_map(|r| &r.places) {
            snapshot.nodes[*node].give(*gpus, *cpus, *memory);
        }
        let here = |(m, p): &&(u64, Pending)| minute(*m) <= now && !starts.contains_key(&p.job);
        snapshot.pending = arrivals.iter().filter(here).map(|(_, p)| p.clone()).collect();
        for (id, chosen) in decide(&snapshot).start {
            let job = snapshot.pending.iter().find(|p| p.job == id).unwrap();
            let end = now.plus(job.time_limit.unwrap());
            for c in &chosen {
                let node = &mut snapshot.nodes[c.node];
                assert_eq!(c.gpus & !node.free, 0, "job {id} was given what is not free");
                node.take(c.gpus, 0, 0);
            }
            let places = chosen.iter().map(|c| (c.node, c.gpus, 0, 0)).collect();
            let attempt = attempt(id.0, 1);
            snapshot.releases.push(Release { attempt, at: Some(end), places });
            starts.insert(id, now);
            instants.insert(end);
        }
    }
    starts
}

fn queue(shapes: &[Shape], first: u64, at: u64) -> Vec<(u64, Pending)> {
    shapes.iter().zip(first..).map(|(s, id)| (at, pending(id, *s))).collect()
}

proptest! {
    #![proptest_config(cases(300))]

    /// The first job that waits starts when it would have started without all that came later.
    #[test]
    fn backfill_never_delays_the_head(
        sizes in prop::collection::vec(1..=4u32, 1..=4),
        jobs in shapes(2..8),
        later in prop::collection::vec((0..30u64, (1..=3u32, 1..=4u32, 1..=20u64)), 0..12),
    ) {
        let nodes = empty_nodes(&sizes);
        let all = queue(&jobs, 1, 0);
        let mut first = nodes.clone();
        first.pending = all.iter().map(|(_, p)| p.clone()).collect();
        let decision = decide(&first);
        let Some(reservation) = decision.reservation else { return Ok(()) };
        let upto = all.iter().position(|(_, p)| p.job == reservation.job).unwrap();
        let mut arrivals = all[..=upto].to_vec();
        let alone = play(nodes.clone(), &arrivals)[&reservation.job];
        prop_assert_eq!(Some(alone), reservation.at, "the promise");
        arrivals.extend(later.iter().zip(100u64..).map(|((at, s), id)| (*at, pending(id, *s))));
        let crowded = play(nodes, &arrivals)[&reservation.job];
        prop_assert_eq!(crowded, alone);
    }

    /// What `explain` says of the head and of the last in the queue comes true to the millisecond.
    #[test]
    fn a_forecast_comes_true(
        sizes in prop::collection::vec(1..=4u32, 1..=4),
        jobs in shapes(1..10),
    ) {
        let mut snapshot = empty_nodes(&sizes);
        let all = queue(&jobs, 1, 0);
        let starts = play(snapshot.clone(), &all);
        snapshot.pending = all.iter().map(|(_, p)| p.clone()).collect();
        let head = decide(&snapshot).reservation.map(|r| r.job);
        let last = snapshot.pending.last().map(|p| p.job);
        for job in head.into_iter().chain(last) {
            prop_assert_eq!(forecast(&snapshot, job), starts.get(&job).copied(), "job {}", job);
        }
    }

    /// Whoever waits has a reason, and nobody is in both lists.
    #[test]
    fn every_job_starts_or_has_a_reason(
        sizes in prop::collection::vec(1..=4u32, 1..=4),
        jobs in shapes(1..12),
    ) {
        let mut snapshot = empty_nodes(&sizes);
        snapshot.pending = queue(&jobs, 1, 0).into_iter().map(|(_, p)| p).collect();
        let decision = decide(&snapshot);
        let started: BTreeSet<JobId> = decision.start.iter().map(|(id, _)| *id).collect();
        for job in &snapshot.pending {
            prop_assert!(started.contains(&job.job) != decision.wait.contains_key(&job.job));
        }
        prop_assert_eq!(&decision, &decide(&snapshot), "the same snapshot, the same decision");
    }
}

// ---- pictures

/// A cluster and a queue as text. A node is `n0: XX.. ....`, with `b0/l1` before it where it is on
/// the map: `.` is free, `X` is held without a known end, a digit is held for so many minutes more,
/// `?` is sick, a gap parts NVLink domains. A job is `job a: 2x4` (nodes x GPUs), then
/// `within=leaf` (required), `near=leaf` (preferred), `limit=MINUTES`, `waited=MINUTES`,
/// `backoff=MINUTES`, `avoid=NODE`, `model=NAME`.
struct Picture {
    snapshot: Snapshot,
    names: Vec<String>,
}

impl Picture {
    fn read(text: &str) -> Self {
        let mut nodes: Vec<NodeView> = Vec::new();
        let (mut pending, mut names) = (Vec::new(), Vec::new());
        let mut held: BTreeMap<Option<u64>, Vec<(NodeId, u64)>> = BTreeMap::new();
        let now = UnixMillis(3_600_000);
        for line in text.lines().map(|l| l.split('#').next().unwrap().trim()) {
            let Some((head, rest)) = line.split_once(':') else { continue };
            if let Some(name) = head.strip_prefix("job ") {
                names.push(name.to_owned());
                pending.push(Self::job(names.len() as u64, now, rest.trim()));
                continue;
            }
            let (path, name) = match head.split_once(' ') {
                Some((path, name)) => (Some(path), name),
                None => (None, head),
            };
            let node = Self::node(name, path, rest.trim(), &mut held);
            nodes.push(node);
        }
        nodes.sort_by(|a, b| {
            (a.path.is_none(), &a.path, &a.id).cmp(&(b.path.is_none(), &b.path, &b.id))
        });
        let at = |id: &NodeId| nodes.iter().position(|n| n.id == *id).unwrap();
        let releases = held
            .iter()
            .zip(9_000u64..)
            .map(|((minutes, gpus), id)| Release {
                attempt: attempt(id, 1),
                at: minutes.map(|m| now.plus(Millis(m * 60_000))),
                places: gpus.iter().map(|(n, mask)| (at(n), *mask, 0, 0)).collect(),
            })
            .collect();
        let levels = Arc::from(vec!["block".to_owned(), "leaf".to_owned()]);
        Self { snapshot: Snapshot { now, levels, nodes, pending, releases }, names }
    }

    fn node(
        name: &str,
        path: Option<&str>,
        cells: &str,
        held: &mut BTreeMap<Option<u64>, Vec<(NodeId, u64)>>,
    ) -> NodeView {
        let (mut gpus, mut free, mut healthy, mut group) = (Vec::new(), 0u64, 0u64, 0);
        for cell in cells.chars() {
            let bit = 1u64 << gpus.len();
            match cell {
                ' ' => {
                    group += 1;
                    continue;
                }
                '.' => free |= bit,
                '?' => {}
                'X' => held.entry(None).or_default().push((node_id(name), bit)),
                digit => {
                    let minutes = u64::from(digit.to_digit(10).expect("one of . X ? or a digit"));
                    held.entry(Some(minutes)).or_default().push((node_id(name), bit));
                }
            }
            if cell != '?' {
                healthy |= bit;
            }
            let id = gpu_id(name, gpus.len() as u32);
            let (numa, nvlink_group) = (Some(0), Some(group));
            gpus.push(GpuView { id, model: "nvidia h100".to_owned(), numa, nvlink_group });
        }
        NodeView {
            id: node_id(name),
            session: SessionId(1),
            takes_jobs: true,
            gpus: gpus.into(),
            healthy,
            free,
            cpus: 64,
            cpus_free: 64,
            memory: 0,
            memory_free: 0,
            path: path.map(|p| p.split('/').map(str::to_owned).collect()),
        }
    }

    fn job(id: u64, now: UnixMillis, text: &str) -> Pending {
        let mut words = text.split_whitespace();
        let (nodes, gpus) = words.next().unwrap().split_once('x').unwrap();
        let mut job = pending(id, (nodes.parse().unwrap(), gpus.parse().unwrap(), 0));
        (job.time_limit, job.submitted_at) = (None, now);
        for word in words {
            let (what, value) = word.split_once('=').unwrap();
            let minutes = || Millis(value.parse::<u64>().unwrap() * 60_000);
            let within = |strength| Within { level: value.to_owned(), strength };
            match what {
                "within" => job.within.push(within(Strength::Required)),
                "near" => job.within.push(within(Strength::Preferred)),
                "limit" => job.time_limit = Some(minutes()),
                "waited" => job.submitted_at = UnixMillis(now.0 - minutes().0 as i64),
                "backoff" => job.not_before = Some(now.plus(minutes())),
                "avoid" => drop(job.avoid.insert(node_id(value))),
                "model" => job.gang.gpu_model = Some(value.to_owned()),
                other => panic!("no such word: {other}"),
            }
        }
        job
    }

    fn show(&self, decision: &Decision) -> String {
        let name = |id: &JobId| self.names[id.0 as usize - 1].clone();
        let minutes = |at: UnixMillis| at.since(self.snapshot.now).0 / 60_000;
        let mut lines = Vec::new();
        for job in &self.snapshot.pending {
            if let Some((id, chosen)) = decision.start.iter().find(|(id, _)| *id == job.job) {
                let places: Vec<String> = chosen.iter().map(|c| self.place(c)).collect();
                lines.push(format!("{} -> {}", name(id), places.join(" ")));
                continue;
            }
            let why = match &decision.wait[&job.job] {
                WaitReason::HeldForReservation { job, .. } => format!("held for {}", name(job)),
                WaitReason::BackingOff { until } => format!("backs off {} min", minutes(*until)),
                other => other.to_string(),
            };
            let reserved = decision.reservation.as_ref().filter(|r| r.job == job.job);
            let promise = reserved.map_or(String::new(), |r| {
                let places: Vec<String> = r.places.iter().map(|c| self.place(c)).collect();
                let when =
                    r.at.map_or("some day".to_owned(), |at| format!("in {} min", minutes(at)));
                format!("; promised {} {when}", places.join(" "))
            });
            lines.push(format!("{} waits: {why}{promise}", name(&job.job)));
        }
        lines.join("\n")
    }

    fn place(&self, c: &Chosen) -> String {
        let bits: Vec<u32> = (0..64).filter(|i| c.gpus >> i & 1 == 1).collect();
        let name = &self.snapshot.nodes[c.node].id;
        match (bits.first(), bits.last()) {
            (Some(first), Some(last)) if bits.len() == 1 => format!("{name}[{}]", first.max(last)),
            (Some(first), Some(last)) if (last - first) as usize + 1 == bits.len() => {
                format!("{name}[{first}-{last}]")
            }
            (None, _) => name.to_string(),
            _ => {
                let bits: Vec<String> = bits.iter().map(u32::to_string).collect();
                format!("{name}[{}]", bits.join(","))
            }
        }
    }
}

fn check(picture: &str, want: &str) {
    let picture_read = Picture::read(picture);
    let got = picture_read.show(&decide(&picture_read.snapshot));
    let want: Vec<&str> = want.lines().map(str::trim).collect();
    assert_eq!(got, want.join("\n"), "\n{picture}");
}

#[test]
fn a_gang_stays_inside_one_nvlink_domain() {
    check(
        "n0: XX.. ....
         job a: 1x4",
        "a -> n0[4-7]",
    );
}

#[test]
fn a_gang_stays_in_a_leaf() {
    check(
        "b0/l0 n0: ....
         b0/l1 n1: ....
         b0/l1 n2: ....
         job a: 2x4",
        "a -> n1[0-3] n2[0-3]",
    );
}

#[test]
fn the_tightest_leaf_is_taken() {
    check(
        "b0/l0 n0: ....
         b0/l0 n1: ....
         b0/l0 n2: ....
         b0/l1 n3: ....
         b0/l1 n4: ....
         job a: 2x2",
        "a -> n3[0-1] n4[0-1]",
    );
}

#[test]
fn a_started_node_is_filled_before_an_empty_one() {
    check(
        "b0/l0 n0: ....
         b0/l0 n1: XX..
         job a: 1x1",
        "a -> n1[2]",
    );
}

#[test]
fn a_preferred_level_falls_back_to_a_wider_one() {
    check(
        "b0/l0 n0: ....
         b0/l1 n1: ....
         b1/l2 n2: ....
         job a: 2x4 near=leaf",
        "a -> n0[0-3] n1[0-3]",
    );
}

#[test]
fn a_required_level_waits_and_says_which_domain_is_nearest() {
    check(
        "b0/l0 n0: ....
         b0/l0 n1: XXXX
         b0/l1 n2: ....
         job a: 2x4 within=leaf",
        "a waits: needs 2 nodes with 4 free GPUs each in one leaf, the best (l0) has 1",
    );
}

#[test]
fn a_level_that_could_never_hold_it_is_a_proof() {
    check(
        "b0/l0 n0: ....
         b0/l1 n1: ....
         job a: 2x4 within=leaf",
        "a waits: cannot start on this cluster: it needs 2 nodes with 4 GPUs and 0 CPUs each, and no leaf has more than 1 (l0)",
    );
}

#[test]
fn a_cluster_in_which_nothing_fits_says_so() {
    // The search once looked for the name of the best domain where there was none.
    check(
        "n0: XX
         job a: 1x2",
        "a waits: needs 1 node with 2 free GPUs, none is free",
    );
}

#[test]
fn the_first_that_waits_has_a_place_and_a_date() {
    check(
        "n0: 55..
         n1: XXXX
         job a: 1x4 limit=10",
        "a waits: needs 1 node with 4 free GPUs, none is free; promised n0[0-3] in 5 min",
    );
}

#[test]
fn short_jobs_fill_in_around_a_reservation_and_long_ones_stay_out_of_it() {
    check(
        "n0: 55..
         n1: XXX.
         job a: 1x4 limit=60
         job long: 1x2 limit=6
         job short: 1x2 limit=5
         job beside: 1x1",
        "a waits: needs 1 node with 4 free GPUs, none is free; promised n0[0-3] in 5 min
         long waits: held for a
         short -> n0[2-3]
         beside -> n1[3]",
    );
}

#[test]
fn a_long_job_takes_what_is_not_reserved() {
    check(
        "n0: 55..
         n1: ....
         job a: 2x4 limit=60
         job b: 1x1",
        "a waits: needs 2 nodes with 4 free GPUs each, 1 free; promised n0[0-3] n1[0-3] in 5 min
         b waits: held for a",
    );
    check(
        "n0: 55..
         n1: .XXX
         job a: 1x4 limit=60
         job b: 1x1",
        "a waits: needs 1 node with 4 free GPUs, none is free; promised n0[0-3] in 5 min
         b -> n1[0]",
    );
}

#[test]
fn behind_jobs_without_a_limit_there_is_no_date_and_ground_is_held_only_after_a_while() {
    let nodes = "n0: XX..\n";
    check(
        &format!("{nodes} job a: 1x4 limit=60\n job b: 1x1"),
        "a waits: needs 1 node with 4 free GPUs, none is free
         b -> n0[2]",
    );
    check(
        &format!("{nodes} job a: 1x4 limit=60 waited=10\n job b: 1x1\n job c: 1x1 limit=1"),
        "a waits: needs 1 node with 4 free GPUs, none is free; promised n0[0-3] some day
         b waits: held for a
         c waits: held for a",
    );
}

#[test]
fn who_backs_off_is_passed_over_and_reserves_nothing() {
    check(
        "n0: 55..
         job a: 1x4 limit=60 backoff=2
         job b: 1x2",
        "a waits: backs off 2 min
         b -> n0[2-3]",
    );
}

#[test]
fn sick_gpus_and_avoided_nodes_are_left_out() {
    check(
        "n0: ?...
         n1: ....
         job a: 1x2 avoid=n1
         job b: 1x4",
        "a -> n0[1-2]
         b -> n1[0-3]",
    );
}

#[test]
fn a_model_is_found_however_it_is_written() {
    check(
        "n0: ..
         job a: 1x1 model=H100
         job b: 1x1 model=h100
         job c: 1x1 model=A100",
        "a -> n0[0]
         b -> n0[1]
         c waits: cannot start on this cluster: it needs 1 node with 1 A100 GPU and 0 CPUs each, and the cluster has 0",
    );
}

#[test]
fn jobs_without_gpus_leave_the_gpus_to_others() {
    check(
        "n0: ..
         job a: 1x0
         job b: 1x2",
        "a -> n0
         b -> n0[0-1]",
    );
}

#[test]
fn higher_priority_goes_first_then_the_earlier() {
    let mut story = Story::with_nodes(1, 2);
    for priority in [0, 5, 5] {
        story.submit(JobSpec { priority, ..spec(1, 1) });
    }
    let order: Vec<u64> = story.cluster.jobs.queue().map(|j| j.id.0).collect();
    assert_eq!(order, [2, 3, 1]);
    assert_eq!(story.decide(), [JobId(2), JobId(3)]);
}

/// A job whose start was refused by every node once had to wait for ever on an empty cluster.
#[test]
fn nodes_that_refused_a_job_are_tried_again_when_there_are_no_others() {
    let mut story = Story::with_nodes(2, 1);
    let job = story.submit(spec(1, 1));
    let mut tried = Vec::new();
    for _ in 0..3 {
        story.pass(Millis::HOUR);
        assert_eq!(story.decide(), [job]);
        let lease = Arc::clone(&story.cluster.jobs.attempts.values().next().unwrap().lease);
        let (attempt, node) = (lease.attempt, lease.places[0].node.clone());
        tried.push(node.to_string());
        let text = "disk full".to_owned();
        let why = tessera_core::event::StopWhy::Refused { node: node.clone(), text };
        story.push(Event::AttemptStopping { attempt, why });
        story.push(Event::PlaceReleased { attempt, node, occupied: BTreeMap::new() });
    }
    assert_eq!(tried, ["n0", "n1", "n0"]);
}
