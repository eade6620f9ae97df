//! The second opinion: it accepts what placement finds, and refuses a lease with any one thing wrong.

mod common;

use std::collections::BTreeSet;

use common::{Story, gpu_id, inventory, limited, minutes, node_id, spec};
use tessera_core::decide::decide;
use tessera_core::event::Event;
use tessera_core::round::granted;
use tessera_core::snapshot::Snapshot;
use tessera_core::verify::verify;
use tessera_model::{
    AtMost, Cordon, DomainMark, GpuCondition, GpuId, Hold, JobId, JobRole, JobSpec, LabelOp,
    LabelRule, Lease, MigInstance, Millis, Quota, Reservation, SessionId, Slice, Spread, Strength,
    Target, TeamId, TeamShare, UserId, Within,
};

/// The lease that a decision made now would lead to, with the job submitted.
fn lease_for(story: &mut Story, spec: JobSpec) -> Lease {
    let job = story.submit(spec);
    let snapshot = Snapshot::of(&story.cluster, story.now);
    let decision = decide(&snapshot);
    let start = decision.start.iter().find(|s| s.job == job);
    let start = start.unwrap_or_else(|| panic!("{:?}", decision.wait.get(&job)));
    let (lease, _) = granted(&story.cluster, &snapshot, job, &start.placed);
    assert_eq!(verify(&story.cluster, &lease, story.now), Ok(()));
    lease
}

/// What the verifier says of a lease.
fn said(story: &Story, lease: &Lease) -> String {
    match verify(&story.cluster, lease, story.now) {
        Ok(()) => "accepted".to_owned(),
        Err(violation) => violation.what,
    }
}

/// Puts place `index` of the lease onto another node of the same shape.
fn moved(story: &Story, lease: &Lease, index: usize, to: &str) -> Lease {
    let mut lease = lease.clone();
    let place = &mut lease.places[index];
    place.node = node_id(to);
    place.session = story.cluster.nodes[&place.node].session;
    let count = place.gpus.len() as u32;
    place.gpus = (0..count).map(|i| gpu_id(to, i)).collect();
    lease
}

#[test]
fn a_lease_with_one_thing_wrong_is_refused() {
    let mut story = Story::with_nodes(5, 8);
    story.start(limited(1, 8, 60));
    let cordon = Cordon { drain: false, by: "sre".to_owned(), reason: "x".to_owned() };
    story.push(Event::NodeCordoned { node: node_id("n4"), cordon });
    let conditions = [(gpu_id("n2", 7), GpuCondition::Lost)].into_iter().collect();
    story.push(Event::ConditionsChanged { node: node_id("n2"), conditions });
    let lease = lease_for(&mut story, limited(2, 2, 60));
    type Spoil<'a> = (&'a str, &'a dyn Fn(&mut Lease));
    let on = |l: &Lease| l.places[0].node.as_str().to_owned();
    let spoils: &[Spoil<'_>] = &[
        ("1 nodes instead of 2", &|l| drop(l.places.pop())),
        ("is there twice", &|l| l.places[1] = l.places[0].clone()),
        ("has another session", &|l| l.places[0].session = SessionId(99)),
        ("epoch Epoch(2) instead of Epoch(1)", &|l| l.epoch.0 += 1),
        ("has not 2 CPUs free", &|l| l.places[0].cpus += 1),
        ("of memory free", &|l| l.places[0].memory.0 += 1),
        ("there is no node nowhere", &|l| l.places[0].node = node_id("nowhere")),
        ("3 GPUs on", &|l| l.places[0].gpus.push(gpu_id("n9", 0))),
        ("has no GPU-n9-0", &|l| l.places[0].gpus[0] = gpu_id("n9", 0)),
        ("is there twice", &|l| l.places[0].gpus[0] = l.places[0].gpus[1].clone()),
        ("500 thousandths of each GPU", &|l| l.places[0].gpu_milli = 500),
        ("1 nodes instead of 2 to 2", &|l| l.nodes = 1),
        ("the job does not exist", &|l| l.attempt.job = JobId(99)),
        ("the job is running", &|l| l.attempt.job = JobId(1)),
    ];
    for (want, spoil) in spoils {
        let mut spoilt = lease.clone();
        spoil(&mut spoilt);
        let what = said(&story, &spoilt);
        let asked = want.replace("has not 2 CPUs", "has not 1 CPUs");
        assert!(what.contains(&asked), "{what:?} instead of {want:?} ({})", on(&lease));
    }
    let held = moved(&story, &lease, 0, "n0");
    assert!(said(&story, &held).contains("1000 thousandths of GPU-n0-0 are held"));
    assert!(said(&story, &moved(&story, &lease, 0, "n4")).contains("n4 takes no jobs"));
    let mut sick = moved(&story, &lease, 0, "n2");
    if sick.places[1].node == node_id("n2") {
        sick = moved(&story, &sick, 1, "n3");
    }
    sick.places[0].gpus[0] = gpu_id("n2", 7);
    assert!(said(&story, &sick).contains("GPU-n2-7 is not healthy"));
}

#[test]
fn an_attempt_has_its_number_once() {
    let mut story = Story::with_nodes(1, 8);
    let job = story.start(JobSpec { requeue: true, ..limited(1, 8, 60) });
    let lease = Lease::clone(&story.cluster.jobs.attempts[&story.attempt_of(job)].lease);
    let (attempt, node) = (lease.attempt, node_id("n0"));
    let (charged_until, why) = (story.now, tessera_core::event::WriteOffWhy::Rebooted);
    story.push(Event::PlaceWrittenOff { attempt, node, charged_until, why });
    assert_eq!(said(&story, &lease), "the job has had an attempt of this number");
}

#[test]
fn the_model_is_the_one_that_was_asked_for() {
    let mut story = Story::with_nodes(1, 8);
    let mut other = inventory("a0", 0, &[(0, 0); 8]);
    other.gpus.iter_mut().for_each(|g| g.model = "NVIDIA A100-SXM4-80GB".to_owned());
    story.push(Event::NodeUp { inventory: other, session: SessionId(7), adopted: Vec::new() });
    let mut asked = spec(1, 2);
    asked.gang.gpu_model = Some("H100".to_owned());
    let lease = lease_for(&mut story, asked);
    let what = said(&story, &moved(&story, &lease, 0, "a0"));
    assert!(what.contains("is a NVIDIA A100"), "{what}");
}

#[test]
fn a_part_of_a_gpu_goes_to_who_asks_for_parts() {
    let mut story = Story::with_nodes(1, 1);
    let mut parts = inventory("m0", 0, &[(0, 0); 2]);
    for gpu in &mut parts.gpus {
        let parent = GpuId::parse("GPU-parent").unwrap();
        gpu.mig = Some(MigInstance { parent, profile: "1g.10gb".to_owned(), memory_slices: 1 });
    }
    story.push(Event::NodeUp { inventory: parts, session: SessionId(7), adopted: Vec::new() });
    let whole = lease_for(&mut story, spec(1, 1));
    assert_eq!(whole.places[0].node, node_id("n0"));
    assert!(said(&story, &moved(&story, &whole, 0, "m0")).contains("GPU-m0-0 is a"));
    let mut asked = spec(1, 1);
    asked.gang.gpu_model = Some("1g.10gb".to_owned());
    assert_eq!(lease_for(&mut story, asked).places[0].node, node_id("m0"));
}

#[test]
fn shares_of_a_gpu_add_up_to_one_at_most() {
    let mut story = Story::with_nodes(1, 1);
    let share = |milli| {
        let mut spec = spec(1, 1);
        spec.gang.gpu_milli = milli;
        spec
    };
    story.start(share(600));
    let lease = lease_for(&mut story, share(400));
    let mut more = lease.clone();
    more.places[0].gpu_milli = 401;
    assert!(said(&story, &more).contains("401 thousandths"));
    // A job that asks for more than is left is refused what is left.
    let other = story.submit(share(500));
    let mut others = lease;
    others.attempt.job = other;
    others.places[0].gpu_milli = 500;
    assert!(said(&story, &others).contains("600 thousandths of GPU-n0-0 are held"));
}

/// Four nodes: two leaves of two in one block, and a node in another block whose leaf has a name
/// that the first block has, too.
fn mapped() -> Story {
    let mut story = Story::with_nodes(6, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3; b1: l0 = n4");
    story
}

fn within(level: &str, spec: JobSpec) -> JobSpec {
    let mut spec = spec;
    spec.placement.within = vec![Within { level: level.to_owned(), strength: Strength::Required }];
    spec
}

#[test]
fn a_required_level_holds_for_all_and_for_spares() {
    let mut story = mapped();
    let lease = lease_for(&mut story, within("leaf", spec(2, 8)));
    let wrong = moved(&story, &lease, 1, "n4");
    assert!(said(&story, &wrong).contains("it is not inside one leaf but in 2"), "another block");
    assert!(said(&story, &moved(&story, &lease, 1, "n5")).contains("n5 stands in no leaf"));
    let mut spare = within("leaf", spec(1, 8));
    (spare.spares, spare.requeue) = (1, true);
    let lease = lease_for(&mut story, spare);
    assert_eq!(lease.places.len(), 2);
    assert!(said(&story, &moved(&story, &lease, 1, "n4")).contains("not inside one leaf"));
}

#[test]
fn the_verifier_knows_domains_by_their_whole_path() {
    let mut story = mapped();
    let job = within("leaf", spec(2, 8));
    let lease = lease_for(&mut story, job);
    let mut wrong = moved(&story, &lease, 0, "n0");
    wrong = moved(&story, &wrong, 1, "n4");
    assert!(said(&story, &wrong).contains("one leaf"), "l0 of b0 is not l0 of b1");
}

#[test]
fn slices_stay_whole() {
    let mut story = mapped();
    let mut sliced = spec(4, 8);
    sliced.placement.slices =
        vec![Slice { nodes: 2, level: "leaf".to_owned(), strength: Strength::Required }];
    let lease = lease_for(&mut story, sliced);
    let mut wrong = lease.clone();
    wrong.places.swap(1, 2);
    assert!(said(&story, &wrong).contains("slice 0: it is not inside one leaf"));
}

#[test]
fn at_most_spread_and_balance_hold() {
    let leaf = || "leaf".to_owned();
    let mut story = mapped();
    let mut few = spec(2, 8);
    few.placement.at_most = vec![AtMost { domains: 1, level: leaf() }];
    let lease = lease_for(&mut story, few);
    let wrong = moved(&story, &moved(&story, &lease, 0, "n0"), 1, "n2");
    assert!(said(&story, &wrong).contains("it is in 2 domains of leaf, 1 may be"));

    let mut story = mapped();
    let mut even = spec(4, 8);
    even.placement.balance = Some(leaf());
    let lease = lease_for(&mut story, even);
    let wrong = moved(&story, &lease, 3, "n4");
    assert!(said(&story, &wrong).contains("the same number of nodes in each leaf"));

    let mut story = Story::with_nodes(6, 8);
    story.map("b0: l0 = n0 n1 n2, l1 = n3 n4 n5");
    let mut spread = spec(4, 8);
    spread.placement.spread = vec![Spread { level: leaf(), max_skew: 1 }];
    let lease = lease_for(&mut story, spread);
    let names = ["n0", "n1", "n2", "n3"];
    let wrong = (0..4).fold(lease, |l, i| moved(&story, &l, i, names[i]));
    assert!(said(&story, &wrong).contains("it has 3 nodes in one leaf and 1 in another"));
}

#[test]
fn labels_and_lists_of_nodes_hold_for_every_role() {
    let mut story = Story::with_nodes(2, 8);
    let mut labelled = inventory("z0", 0, &[(0, 0); 8]);
    labelled.labels.insert("zone".to_owned(), "a".to_owned());
    story.push(Event::NodeUp { inventory: labelled, session: SessionId(9), adopted: Vec::new() });
    let rule = |op| LabelRule { key: "zone".to_owned(), op, values: Vec::new() };
    let mut asked = spec(1, 2);
    asked.placement.labels = vec![rule(LabelOp::Exists)];
    let lease = lease_for(&mut story, asked);
    let what = said(&story, &moved(&story, &lease, 0, "n0"));
    assert!(what.contains("the label zone of n0 is not as it asks"), "{what}");

    let mut asked = spec(1, 2);
    asked.placement.only = BTreeSet::from([node_id("n1")]);
    let lease = lease_for(&mut story, asked);
    assert!(
        said(&story, &moved(&story, &lease, 0, "n0")).contains("not one of the nodes it names")
    );

    let mut asked = spec(1, 2);
    asked.placement.exclude = BTreeSet::from([node_id("n0")]);
    let lease = lease_for(&mut story, asked);
    assert!(said(&story, &moved(&story, &lease, 0, "n0")).contains("one that it excludes"));

    let mut roles = spec(1, 2);
    let mut leader =
        JobRole { name: "leader".to_owned(), gang: spec(1, 1).gang, placement: Default::default() };
    leader.placement.labels = vec![rule(LabelOp::Exists)];
    roles.roles = vec![leader];
    let lease = lease_for(&mut story, roles);
    assert_eq!(lease.places[1].node, node_id("z0"));
    let mut swapped = lease.clone();
    swapped = moved(&story, &swapped, 1, "n0");
    swapped = moved(&story, &swapped, 0, "n1");
    assert!(said(&story, &swapped).contains("the label zone of n0"));
    let mut one_gpu = lease;
    one_gpu.places[1].gpus.push(gpu_id("z0", 7));
    assert!(said(&story, &one_gpu).contains("2 GPUs on z0 instead of 1"), "the role's own shape");
}

#[test]
fn no_gang_stands_where_links_are_down() {
    let mut story = mapped();
    let mark = DomainMark {
        level: "leaf".to_owned(),
        domain: "l1".to_owned(),
        health: 0,
        by: UserId::parse("sre").unwrap(),
        reason: "flaps".to_owned(),
        until: None,
    };
    story.push(Event::DomainMarked { mark });
    let lease = lease_for(&mut story, spec(2, 8));
    assert!(
        said(&story, &moved(&story, &lease, 1, "n2")).contains("the links of leaf l1 are down")
    );
    let lone = lease_for(&mut story, spec(1, 8));
    assert_eq!(said(&story, &moved(&story, &lone, 0, "n2")), "accepted", "a lone node needs none");
}

#[test]
fn an_elastic_job_has_a_size_between() {
    let mut story = Story::with_nodes(3, 8);
    let lease = lease_for(&mut story, JobSpec { min_nodes: Some(2), ..spec(4, 8) });
    assert_eq!(lease.nodes, 3);
    let mut small = lease.clone();
    (small.nodes, _) = (1, small.places.truncate(1));
    assert!(said(&story, &small).contains("1 nodes instead of 2 to 4"));
    let mut fits = lease;
    (fits.nodes, _) = (2, fits.places.truncate(2));
    assert_eq!(said(&story, &fits), "accepted");
}

#[test]
fn what_is_kept_for_others_is_not_given() {
    let mut story = Story::with_nodes(3, 8);
    let lease = lease_for(&mut story, limited(1, 8, 60));
    let nodes = BTreeSet::from([node_id("n1")]);
    let hold = Hold { job: JobId(77), nodes, until: story.now.plus(minutes(5)) };
    story.push(Event::HoldPlaced { hold });
    assert!(said(&story, &moved(&story, &lease, 0, "n1")).contains("n1 is kept for job 77"));
    let reservation = |name: &str, teams: Vec<TeamId>, from: Millis| Reservation {
        name: name.to_owned(),
        teams,
        target: Target::Nodes { nodes: BTreeSet::from([node_id("n2")]) },
        from: story.now.plus(from),
        until: story.now.plus(minutes(600)),
        owner: UserId::parse("sre").unwrap(),
        reason: String::new(),
    };
    let (soon, later) = (minutes(59), minutes(61));
    let (soon, later) =
        (reservation("soon", Vec::new(), soon), reservation("later", vec![], later));
    story.push(Event::ReservationMade { reservation: later });
    let on_n2 = moved(&story, &lease, 0, "n2");
    assert_eq!(said(&story, &on_n2), "accepted", "it is out before");
    story.push(Event::ReservationMade { reservation: soon });
    assert!(said(&story, &on_n2).contains("n2 is reserved"));
}

#[test]
fn who_names_a_reservation_stays_inside_it() {
    let mut story = Story::with_nodes(2, 8);
    let reservation = Reservation {
        name: "course".to_owned(),
        teams: vec![TeamId::parse("nlp").unwrap()],
        target: Target::Nodes { nodes: BTreeSet::from([node_id("n1")]) },
        from: story.now,
        until: story.now.plus(minutes(60)),
        owner: UserId::parse("sre").unwrap(),
        reason: String::new(),
    };
    story.push(Event::ReservationMade { reservation });
    let asked = JobSpec { reservation: Some("course".to_owned()), ..spec(1, 8) };
    let lease = lease_for(&mut story, asked);
    assert_eq!(lease.places[0].node, node_id("n1"));
    let what = said(&story, &moved(&story, &lease, 0, "n0"));
    assert!(what.contains("n0 is not in the reservation course"), "{what}");
    story.pass(minutes(60));
    assert!(said(&story, &lease).contains("the reservation course is not open to it"));
}

#[test]
fn no_team_comes_to_hold_more_than_its_limit() {
    let mut story = Story::with_nodes(2, 8);
    let by = UserId::parse("root").unwrap();
    let team = |name: &str| TeamId::parse(name).unwrap();
    for (name, parent, limit) in [("ai", None, 12), ("nlp", Some("ai"), 100)] {
        let description = String::new();
        story.push(Event::TeamCreated { team: team(name), description, by: by.clone() });
        let (gpu_model, limit) = ("h100".to_owned(), Some(limit));
        let quotas = vec![Quota { gpu_model, guaranteed: 0, limit, cell: None }];
        let share = TeamShare { parent: parent.map(team), quotas, ..TeamShare::default() };
        story.push(Event::TeamShared { team: team(name), share, by: by.clone() });
    }
    story.start(spec(1, 8));
    let lease = lease_for(&mut story, spec(1, 4));
    let other = story.submit(spec(1, 5));
    let mut more = lease;
    more.attempt.job = other;
    let node = more.places[0].node.as_str().to_owned();
    more.places[0].gpus = (0..5).map(|i| gpu_id(&node, i)).collect();
    let what = said(&story, &more);
    assert!(what.contains("team ai would hold 13 of at most 12 h100 GPUs"), "{what}");
}
