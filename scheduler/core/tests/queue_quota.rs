//! What teams may hold: limits, guarantees, borrowing, and guarantees of whole domains.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Story, cases, inventory, node_id, spec};
use proptest::prelude::*;
use tessera_core::event::Event;
use tessera_core::placement::Taken;
use tessera_core::queue::surplus::SURPLUS_PER_TEAM;
use tessera_core::queue::{Claim, Quotas};
use tessera_core::snapshot::Snapshot;
use tessera_model::{
    Cell, JobId, JobSpec, NodeId, Quota, SessionId, TeamId, TeamShare, Tier, Topology, UserId,
};

fn team(name: &str) -> TeamId {
    TeamId::parse(name).unwrap()
}

fn quota(model: &str, guaranteed: u32, limit: Option<u32>) -> Quota {
    Quota { gpu_model: model.to_owned(), guaranteed, limit, cell: None }
}

/// Eight nodes of eight GPUs in leaves of two: `n0..n5` H100, `n6` and `n7` A100.
fn cluster(teams: &[(&str, Option<&str>, Vec<Quota>)]) -> Story {
    let mut story = Story::default();
    for i in 0..8u32 {
        let mut inventory = inventory(&format!("n{i}"), 0, &[(0, 0); 8]);
        if i >= 6 {
            inventory.gpus.iter_mut().for_each(|g| g.model = "NVIDIA A100-SXM4-80GB".to_owned());
        }
        let session = SessionId(u64::from(i) + 1);
        story.push(Event::NodeUp { inventory, session, adopted: Vec::new() });
    }
    let leaf = |i: u32| (node_id(&format!("n{i}")), vec![format!("l{}", i / 2)]);
    let nodes: BTreeMap<NodeId, Vec<String>> = (0..8).map(leaf).collect();
    let topology = Topology::net(vec!["leaf".to_owned()], nodes);
    story.push(Event::TopologyLoaded { topology });
    let by = UserId::parse("root").unwrap();
    for (name, parent, quotas) in teams {
        let description = String::new();
        story.push(Event::TeamCreated { team: team(name), description, by: by.clone() });
        let (parent, quotas) = (parent.map(team), quotas.clone());
        let share = TeamShare { parent, weight: 100, quotas };
        story.push(Event::TeamShared { team: team(name), share, by: by.clone() });
    }
    story
}

fn job(of: &str, nodes: u32, gpus: u32, model: Option<&str>, requeue: bool) -> JobSpec {
    let mut spec = spec(nodes, gpus);
    spec.team = team(of);
    spec.requeue = requeue;
    spec.gang.gpu_model = model.map(str::to_owned);
    spec
}

/// All GPUs of some nodes.
fn on(story: &Story, nodes: &[u32]) -> Vec<Taken> {
    let index = |n: &u32| story.cluster.space().layout.index(&node_id(&format!("n{n}"))).unwrap();
    let taken = |n| Taken { node: index(n), gpus: 0xff, milli: 1_000, cpus: 1, memory: 0 };
    nodes.iter().map(taken).collect()
}

fn quotas(story: &Story) -> Quotas {
    Quotas::of(&story.cluster, story.cluster.space(), [])
}

/// `ok`, `borrows`, or why not.
fn answer(answer: Result<Claim, tessera_model::WaitReason>) -> String {
    match answer {
        Ok(Claim { borrows: false }) => "ok".to_owned(),
        Ok(Claim { borrows: true }) => "borrows".to_owned(),
        Err(why) => why.to_string(),
    }
}

#[test]
fn without_quotas_everybody_may_have_everything() {
    let story = cluster(&[("a", None, vec![])]);
    let quotas = quotas(&story);
    assert!(quotas.is_empty());
    assert_eq!(answer(quotas.check(&job("a", 8, 8, None, false))), "ok");
    assert_eq!(quotas.closed_to(story.cluster.space(), &job("a", 8, 8, None, false)), None);
}

#[test]
fn a_limit_holds_for_a_team_and_for_all_above_it() {
    let h100 = |guaranteed, limit| vec![quota("h100", guaranteed, Some(limit))];
    let story = cluster(&[
        ("lab", None, h100(0, 24)),
        ("a", Some("lab"), h100(0, 16)),
        ("b", Some("lab"), vec![]),
    ]);
    let mut quotas = quotas(&story);
    let (a, b) = (job("a", 1, 8, Some("h100"), true), job("b", 1, 8, Some("h100"), true));
    for node in [0, 1] {
        assert_eq!(answer(quotas.check(&a)), "ok");
        quotas.take(story.cluster.space(), &a, &on(&story, &[node]));
    }
    assert_eq!(answer(quotas.check(&a)), "team a holds 16 of at most 16 h100 GPUs");
    assert_eq!(answer(quotas.check(&b)), "ok");
    quotas.take(story.cluster.space(), &b, &on(&story, &[2]));
    assert_eq!(answer(quotas.check(&b)), "team lab holds 24 of at most 24 h100 GPUs");
    // Another model is another matter.
    assert_eq!(answer(quotas.check(&job("a", 1, 8, Some("a100"), true))), "ok");
    // What is given back may be had again.
    quotas.give(story.cluster.space(), &a, &on(&story, &[0]));
    assert_eq!(quotas.held(&team("a"), "h100"), Some(8_000));
    assert_eq!(answer(quotas.check(&a)), "ok");
}

#[test]
fn a_job_without_a_model_is_closed_from_gpus_its_team_may_not_have() {
    let story = cluster(&[("a", None, vec![quota("a100", 0, Some(0))])]);
    let quotas = quotas(&story);
    let any = job("a", 1, 8, None, false);
    assert_eq!(answer(quotas.check(&any)), "ok");
    let closed = quotas.closed_to(story.cluster.space(), &any).unwrap();
    let names: Vec<&str> = closed.iter().map(|n| story.cluster.space().id(n).as_str()).collect();
    assert_eq!(names, ["n6", "n7"]);
    assert_eq!(answer(quotas.check_placed(story.cluster.space(), &any, &on(&story, &[0]))), "ok");
    assert_eq!(
        answer(quotas.check_placed(story.cluster.space(), &any, &on(&story, &[6]))),
        "team a holds 0 of at most 0 a100 GPUs"
    );
    assert_eq!(
        answer(quotas.check(&job("a", 1, 1, Some("A100"), false))),
        "team a holds 0 of at most 0 a100 GPUs"
    );
}

#[test]
fn a_share_counts_its_thousandths() {
    let story = cluster(&[("a", None, vec![quota("", 0, Some(1))])]);
    let mut quotas = quotas(&story);
    let mut half = job("a", 1, 1, None, false);
    half.gang.gpu_milli = 500;
    let place =
        |n: u32, gpu: u32| vec![Taken { gpus: 1 << gpu, milli: 500, ..on(&story, &[n])[0] }];
    quotas.take(story.cluster.space(), &half, &place(0, 0));
    assert_eq!(answer(quotas.check(&half)), "ok");
    quotas.take(story.cluster.space(), &half, &place(6, 3));
    assert_eq!(answer(quotas.check(&half)), "team a holds 1 of at most 1 GPUs");
}

#[test]
fn firm_jobs_leave_what_others_are_guaranteed_and_requeue_jobs_borrow_it() {
    // Of 48 H100: 24 for a, 16 for b, 8 for whoever comes.
    let story = cluster(&[
        ("a", None, vec![quota("h100", 24, None)]),
        ("b", None, vec![quota("h100", 16, None)]),
        ("c", None, vec![]),
    ]);
    let mut quotas = quotas(&story);
    let space = story.cluster.space();
    let firm = |of| job(of, 1, 8, Some("h100"), false);
    let soft = |of| job(of, 1, 8, Some("h100"), true);
    assert_eq!(answer(quotas.check(&firm("c"))), "borrows");
    quotas.take(space, &firm("c"), &on(&story, &[0]));
    // The 8 that nobody is guaranteed are gone.
    assert_eq!(
        answer(quotas.check(&firm("c"))),
        "team c holds 8 of the 0 h100 GPUs it is guaranteed, and only a job with `--requeue` may borrow more"
    );
    for node in [1, 2, 3, 4] {
        assert_eq!(answer(quotas.check(&soft("c"))), "borrows");
        quotas.take(space, &soft("c"), &on(&story, &[node]));
    }
    // Within its guarantee a team is never refused, whoever sits on it; and it may ask back.
    assert_eq!(answer(quotas.check(&firm("a"))), "ok");
    let borrowers = quotas.borrowers(&firm("a"));
    let words: Vec<String> = borrowers.iter().map(|b| format!("{} {}", b.team, b.excess)).collect();
    assert_eq!(words, ["c 40000"]);
    // Beyond it, it is a borrower like others.
    let beyond = job("a", 4, 8, Some("h100"), false);
    assert!(quotas.check(&beyond).is_err());
    assert_eq!(quotas.borrowers(&beyond), []);
    // Nobody asks back from a team within its guarantee.
    quotas.take(space, &soft("b"), &on(&story, &[5]));
    assert_eq!(quotas.borrowers(&firm("a")).len(), 1);
}

#[test]
fn inside_a_team_of_teams_the_guarantee_is_shared_out_again() {
    let story = cluster(&[
        ("lab", None, vec![quota("h100", 32, None)]),
        ("x", Some("lab"), vec![quota("h100", 16, None)]),
        ("y", Some("lab"), vec![]),
        ("out", None, vec![]),
    ]);
    let mut quotas = quotas(&story);
    let space = story.cluster.space();
    let (firm, soft) = (job("y", 1, 8, Some("h100"), false), job("y", 1, 8, Some("h100"), true));
    // y has 16 of the lab's and the 16 that nobody is guaranteed; x's 16 are out of its reach.
    for node in [0, 1, 2, 3] {
        assert!(quotas.check(&firm).is_ok(), "{node}");
        quotas.take(space, &firm, &on(&story, &[node]));
    }
    assert!(quotas.check(&firm).is_err());
    quotas.take(space, &soft, &on(&story, &[4]));
    let asks = job("x", 1, 8, Some("h100"), false);
    assert_eq!(answer(quotas.check(&asks)), "ok");
    // The lab as a whole is over its guarantee by then, so x asks its sister, not outsiders.
    quotas.take(space, &job("out", 1, 8, Some("h100"), true), &on(&story, &[5]));
    let from: Vec<TeamId> = quotas.borrowers(&asks).into_iter().map(|b| b.team).collect();
    assert_eq!(from, [team("y")]);
}

fn cells(domains: u32, guaranteed: u32) -> Vec<Quota> {
    let cell = Some(Cell { level: "leaf".to_owned(), domains });
    vec![Quota { cell, ..quota("h100", guaranteed, None) }]
}

#[test]
fn firm_strangers_leave_enough_whole_domains() {
    // Three leaves of H100, two of them for a.
    let story = cluster(&[("a", None, cells(2, 32)), ("b", None, vec![])]);
    let mut quotas = quotas(&story);
    let space = story.cluster.space();
    let firm = job("b", 1, 4, Some("h100"), false);
    let half = |n: u32| vec![Taken { gpus: 0xf, ..on(&story, &[n])[0] }];
    assert_eq!(answer(quotas.check_placed(space, &firm, &half(2))), "borrows");
    quotas.take(space, &firm, &half(2));
    // Its leaf is lost to a anyway, so it may fill that up; the other two are closed.
    let closed = quotas.closed_to(space, &firm).unwrap();
    let names: Vec<&str> = closed.iter().map(|n| space.id(n).as_str()).collect();
    assert_eq!(names, ["n0", "n1", "n4", "n5"]);
    assert!(quotas.check_placed(space, &firm, &half(3)).is_ok());
    assert!(quotas.check_placed(space, &firm, &half(4)).is_err());
    // Neither is closed to a itself, nor to a job that gives way.
    assert_eq!(quotas.closed_to(space, &job("a", 2, 8, Some("h100"), false)), None);
    assert_eq!(quotas.closed_to(space, &job("b", 2, 8, Some("h100"), true)), None);
    // A100s are no part of it.
    assert_eq!(
        answer(quotas.check_placed(space, &job("b", 1, 8, Some("a100"), false), &on(&story, &[6]))),
        "ok"
    );
    // Where a sits in a leaf of its own and another is whole, nothing has changed.
    quotas.take(space, &job("a", 1, 8, Some("h100"), false), &on(&story, &[0]));
    assert_eq!(quotas.closed_to(space, &firm).map(|c| c.count()), Some(4));
    // Once the stranger is gone, one leaf is open again.
    quotas.give(space, &firm, &half(2));
    assert_eq!(quotas.closed_to(space, &firm), None);
    // A gang of two could enter both, so one of them is closed to it.
    let gang = job("b", 2, 8, Some("h100"), false);
    let closed = quotas.closed_to(space, &gang).unwrap();
    let names: Vec<&str> = closed.iter().map(|n| space.id(n).as_str()).collect();
    assert_eq!(names, ["n0", "n1", "n4", "n5"]);
    assert!(quotas.check_placed(space, &gang, &on(&story, &[2, 4])).is_err());
    assert!(quotas.check_placed(space, &gang, &on(&story, &[2, 3])).is_ok());
}

#[derive(Debug, Clone)]
struct Ask {
    team: usize,
    node: u32,
    requeue: bool,
    leave: bool,
}

fn ask() -> impl Strategy<Value = Ask> {
    (0..3usize, 0..6u32, any::<bool>(), prop::bool::weighted(0.3))
        .prop_map(|(team, node, requeue, leave)| Ask { team, node, requeue, leave })
}

proptest! {
    #![proptest_config(cases(150))]

    /// Whatever comes and goes: when all that can be asked to leave has left, each team can still
    /// have what it is guaranteed, in GPUs and in whole domains.
    #[test]
    fn guarantees_can_always_be_made_good(
        asks in prop::collection::vec(ask(), 1..60),
        (domains, nodes) in prop_oneof![Just((1, 3)), Just((2, 1)), Just((2, 2)), Just((3, 0)), Just((0, 5))],
    ) {
        let story = cluster(&[
            ("a", None, cells(domains, 16 * domains)),
            ("b", None, vec![quota("h100", 8 * nodes, None)]),
            ("c", None, vec![]),
        ]);
        let want_a = story.cluster.teams[&team("a")].share.quotas[0].clone();
        let want_b = story.cluster.teams[&team("b")].share.quotas[0].guaranteed;
        let space = story.cluster.space();
        let mut quotas = quotas(&story);
        let mut held: BTreeMap<u32, (Arc<JobSpec>, Vec<Taken>)> = BTreeMap::new();
        for ask in &asks {
            let name = ["a", "b", "c"][ask.team];
            if ask.leave {
                if let Some((spec, taken)) = held.remove(&ask.node) {
                    quotas.give(space, &spec, &taken);
                }
                continue;
            }
            let job = job(name, 1, 8, Some("h100"), ask.requeue);
            let taken = on(&story, &[ask.node]);
            let closed = quotas.closed_to(space, &job).is_some_and(|c| c.contains(taken[0].node));
            if held.contains_key(&ask.node)
                || closed
                || quotas.check(&job).is_err()
                || quotas.check_placed(space, &job, &taken).is_err()
            {
                continue;
            }
            quotas.take(space, &job, &taken);
            held.insert(ask.node, (Arc::new(job), taken));
            // All that is soft leaves.
            let firm = |of: &str| held.values().filter(|(s, _)| !s.requeue && s.team == team(of)).count() as u32 * 8;
            let free = 48 - firm("a") - firm("b") - firm("c");
            let missing = want_a.guaranteed.saturating_sub(firm("a")) + want_b.saturating_sub(firm("b"));
            prop_assert!(missing <= free, "{missing} missing, {free} free");
            if let Some(cell) = &want_a.cell {
                let strange = |leaf: u32| held.iter().any(|(n, (s, _))| n / 2 == leaf && !s.requeue && s.team != team("a"));
                let clean = (0..3).filter(|l| !strange(*l)).count() as u32;
                prop_assert!(clean >= cell.domains, "{clean} clean leaves of {}", cell.domains);
            }
        }
    }
}

#[test]
fn a_team_at_its_limit_does_not_keep_those_behind_it_from_being_looked_at() {
    let teams = [("a", None, vec![quota("h100", 0, Some(8))]), ("b", None, vec![])];
    let mut story = cluster(&teams);
    let mine = Arc::new(job("a", 1, 1, Some("h100"), true));
    let (first, indices) = (JobId(1), (0..3_000).collect());
    let event = Event::ArraySubmitted { first, key: None, spec: mine, indices, throttle: 0 };
    story.push(event);
    // Behind all of them, whatever else the order looks at.
    let other = JobSpec { tier: Tier::Idle, ..job("b", 1, 1, Some("h100"), true) };
    let other = story.submit(other);
    let snapshot = Snapshot::of(&story.cluster, story.now);
    let of_a = snapshot.queue.iter().filter(|p| p.spec.team == team("a")).count();
    assert_eq!(of_a, 8 + SURPLUS_PER_TEAM);
    let started = story.decide();
    assert_eq!(started.len(), 9, "eight, as many as the team may, and the other");
    assert!(started.contains(&other));
}
