//! What `explain` says: one reason, the ladder behind it, dates, and changes that were really tried.
//! Each counterfactual is checked by making the change and deciding.

mod common;

use common::{Story, limited, minutes, node_id, spec};
use tessera_core::decide::decide;
use tessera_core::explain;
use tessera_core::snapshot::{ENDS_WITHIN, Snapshot};
use tessera_model::{
    Counterfactual, Explanation, JobId, JobSpec, Strength, TaskEnd, Tier, Verdict, Within,
};

fn explained(story: &Story, job: JobId) -> Explanation {
    let job = story.cluster.jobs.get(job).unwrap();
    let waits = decide(&Snapshot::of(&story.cluster, story.now)).wait;
    explain::ask(&story.cluster, story.now, job, &waits).answer()
}

fn dry_run(story: &Story, spec: &JobSpec) -> Explanation {
    explain::ask_imagined(&story.cluster, story.now, spec).answer()
}

fn change<'a>(explanation: &'a Explanation, words: &str) -> &'a Counterfactual {
    let found = explanation.counterfactuals.iter().find(|c| c.change == words);
    found.unwrap_or_else(|| panic!("no {words:?} in {:?}", explanation.counterfactuals))
}

fn within(level: &str, spec: JobSpec) -> JobSpec {
    let mut spec = spec;
    spec.placement.within = vec![Within { level: level.to_owned(), strength: Strength::Required }];
    spec
}

#[test]
fn a_job_that_fits_starts_now_and_shows_where() {
    let mut story = Story::with_nodes(2, 8);
    let job = story.submit(spec(2, 8));
    let said = explained(&story, job);
    assert_eq!((said.verdict, said.expected_start), (Verdict::StartsNow, Some(story.now)));
    assert_eq!(said.place, [node_id("n0"), node_id("n1")]);
    assert_eq!((said.hint, said.position), (None, Some(1)));
    assert!(said.counterfactuals.is_empty(), "there is nothing to help");
}

#[test]
fn the_reason_the_ladder_and_the_date_are_of_one_piece() {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    story.start(limited(1, 8, 60));
    story.start(within("leaf", limited(2, 8, 90)));
    let job = story.submit(within("leaf", limited(2, 8, 10)));
    let said = explained(&story, job);
    assert_eq!(said.verdict, Verdict::Waits);
    assert_eq!(
        said.summary,
        format!("job {job}: needs 2 nodes with 8 free GPUs each in one leaf, the best (l0) has 1")
    );
    assert_eq!(said.expected_start, Some(story.now.plus(minutes(60)).plus(ENDS_WITHIN)));
    let ladder: Vec<String> = said
        .ladder
        .iter()
        .map(|r| format!("{} | {} | {} | {}", r.what, r.need, r.have, r.holds))
        .collect();
    assert_eq!(
        ladder,
        [
            "nodes with 8 GPUs | 2 | 4 | true",
            "nodes with 8 GPUs, up, healthy and not cordoned | 2 | 4 | true",
            "nodes with 8 GPUs, free now | 2 | 1 | false",
            "of these in one leaf | 2 | 1 | false",
            "jobs before it in the queue | - | 0 | true",
        ]
    );
}

/// "Would start now with 1 node, or with block instead of leaf": and it does.
#[test]
fn what_would_help_does_help() {
    let mut story = Story::with_nodes(4, 8);
    story.map("b0: l0 = n0 n1, l1 = n2 n3");
    let pin = |node: &str| {
        let mut spec = limited(1, 8, 600);
        spec.placement.only = std::collections::BTreeSet::from([node_id(node)]);
        spec
    };
    story.start(pin("n0"));
    story.start(pin("n2"));
    let asked = within("leaf", limited(2, 8, 10));
    let job = story.submit(asked.clone());
    let said = explained(&story, job);
    assert_eq!(said.hint.as_deref(), Some("would start now with `--nodes 1`"));
    let now = Some(story.now);
    assert_eq!(change(&said, "--nodes 1").starts_at, now);
    assert_eq!(change(&said, "--within block").starts_at, now);
    assert_eq!(change(&said, "without --within leaf").starts_at, now);
    let unchanged = said.expected_start.unwrap();
    assert_eq!(change(&said, "--nodes 1").sooner, Some(unchanged.since(story.now)));
    for (words, changed) in [
        ("--nodes 1", within("leaf", limited(1, 8, 10))),
        ("--within block", within("block", limited(2, 8, 10))),
        ("without --within leaf", limited(2, 8, 10)),
    ] {
        let mut other =
            Story { cluster: story.cluster.clone(), now: story.now, ..Story::default() };
        let by = tessera_model::UserId::parse("ada").unwrap();
        other.push(tessera_core::Event::CancelRequested { job, by });
        let changed = other.submit(changed);
        assert_eq!(other.decide(), [changed], "{words}");
    }
}

#[test]
fn a_shorter_limit_fills_in() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(1, 8, 60));
    story.submit(limited(2, 8, 10));
    let job = story.submit(limited(1, 8, 600));
    let said = explained(&story, job);
    let shorter = change(&said, "--time-limit 59m");
    assert_eq!(shorter.starts_at, Some(story.now));
    let job = story.submit(limited(1, 8, 59));
    assert_eq!(story.decide(), [job]);
}

#[test]
fn another_model_and_a_higher_tier_are_tried() {
    let mut story = Story::with_nodes(1, 8);
    let mut other = common::inventory("a0", 0, &[(0, 0); 8]);
    other.gpus.iter_mut().for_each(|g| g.model = "NVIDIA A100-SXM4-80GB".to_owned());
    let session = tessera_model::SessionId(7);
    let up = tessera_core::Event::NodeUp { inventory: other, session, adopted: Vec::new() };
    story.push(up);
    let mut asked = limited(1, 8, 60);
    asked.gang.gpu_model = Some("h100".to_owned());
    story.start(asked.clone());
    let job = story.submit(asked);
    let said = explained(&story, job);
    assert_eq!(change(&said, "without --gpu-model").starts_at, Some(story.now));

    // Twenty wait before it; as an urgent one it would be the first.
    let mut story = Story::with_nodes(1, 8);
    story.start(limited(1, 8, 60));
    for _ in 0..20 {
        story.submit(limited(1, 8, 60));
    }
    let job = story.submit(limited(1, 8, 60));
    let said = explained(&story, job);
    let urgent = change(&said, "--tier urgent");
    assert!(urgent.starts_at.unwrap() < said.expected_start.unwrap());
    assert_eq!(said.position, Some(21));
}

#[test]
fn a_proof_stays_a_proof() {
    let mut story = Story::with_nodes(2, 8);
    let job = story.submit(spec(3, 8));
    let said = explained(&story, job);
    assert_eq!((said.verdict, said.position), (Verdict::Infeasible, None));
    assert_eq!(said.hint.as_deref(), Some("would start now with `--nodes 2`"));
}

#[test]
fn without_limits_no_date_is_given_and_it_is_said_why() {
    let mut story = Story::with_nodes(1, 8);
    story.start(spec(1, 8));
    let job = story.submit(spec(1, 8));
    let said = explained(&story, job);
    assert_eq!((said.expected_start, said.eta), (None, None));
    assert!(said.hint.unwrap().contains("have no time limit"));
}

#[test]
fn what_is_shown_is_learnt_and_the_bound_is_not() {
    let mut story = Story::with_nodes(1, 8);
    for _ in 0..6 {
        let job = story.start(limited(1, 8, 60));
        story.pass(minutes(14));
        story.end(job, TaskEnd::Exited { code: 0 });
    }
    story.start(limited(1, 8, 60));
    let job = story.submit(limited(1, 8, 10));
    let said = explained(&story, job);
    assert_eq!(said.expected_start, Some(story.now.plus(minutes(60)).plus(ENDS_WITHIN)));
    assert_eq!(said.eta.unwrap().p50, story.now.plus(minutes(15)));
}

/// A dry run answers as a submission would, and leaves no trace.
#[test]
fn a_job_that_was_only_imagined_is_told_the_same() {
    let mut story = Story::with_nodes(2, 8);
    story.start(limited(1, 8, 60));
    let before = story.cluster.clone();
    let imagined = dry_run(&story, &limited(2, 8, 10));
    assert_eq!(story.cluster, before);
    let job = story.submit(limited(2, 8, 10));
    let real = explained(&story, job);
    assert_eq!(imagined.job, None);
    assert_eq!(imagined.expected_start, real.expected_start);
    assert_eq!(imagined.counterfactuals, real.counterfactuals);
    assert_eq!(imagined.ladder, real.ladder);
    assert!(imagined.summary.starts_with("this job: "), "{}", imagined.summary);
}

/// Of a higher tier it goes before those that wait, and is told what would start then.
#[test]
fn an_imagined_job_stands_where_its_tier_says() {
    let mut story = Story::with_nodes(1, 8);
    story.start(limited(1, 8, 60));
    for _ in 0..3 {
        story.submit(limited(1, 8, 60));
    }
    let normal = dry_run(&story, &limited(1, 8, 60));
    let urgent = dry_run(&story, &JobSpec { tier: Tier::Urgent, ..limited(1, 8, 60) });
    assert_eq!((normal.position, urgent.position), (Some(4), Some(1)));
    assert!(urgent.expected_start < normal.expected_start);
}

#[test]
fn who_is_held_back_is_told_how_to_let_go() {
    let mut story = Story::with_nodes(1, 8);
    let job = story.submit(JobSpec { hold: true, ..spec(1, 8) });
    let said = explained(&story, job);
    assert_eq!(said.summary, format!("job {job}: is held back; `tessera release` lets it go"));
}
