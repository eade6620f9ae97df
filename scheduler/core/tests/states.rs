//! The published graph of a job's states: every edge is walked by some story, no story walks
//! another, and what has ended stays as it is.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Story, attempt, node_id, spec};
use tessera_core::event::{Event, StopWhy, WriteOffWhy};
use tessera_model::{JobId, JobState, Millis, TaskEnd, UserId};

/// The graph as people read it. It is a contract: `model::job` has to agree.
const GRAPH: &str = "\
pending -> starting cancelled
starting -> pending running stopping succeeded failed lost
running -> pending stopping succeeded failed lost
stopping -> pending succeeded failed cancelled lost
succeeded ->
failed ->
cancelled ->
lost ->
";

#[test]
fn the_graph_is_as_published() {
    let mut graph = String::new();
    for from in JobState::ALL {
        let next: Vec<&str> =
            JobState::ALL.into_iter().filter(|to| from.may_become(*to)).map(|s| s.word()).collect();
        graph += format!("{} -> {}", from.word(), next.join(" ")).trim_end();
        graph += "\n";
    }
    assert_eq!(graph, GRAPH);
    for from in JobState::ALL {
        let ends = !JobState::ALL.into_iter().any(|to| from.may_become(to));
        assert_eq!(from.is_terminal(), ends, "{}", from.word());
    }
}

/// Words of the stories below, each one event about job 1, which runs one task on each of n0 and n1.
fn tell(story: &mut Story, word: &str) {
    let id = story.cluster.jobs.get(JobId(1)).unwrap().attempt.unwrap_or(attempt(1, 0));
    let ada = UserId::parse("ada").unwrap();
    let end = |rank, end| Event::TaskEnded { attempt: id, rank, end };
    let released =
        |n: &str| Event::PlaceReleased { attempt: id, node: node_id(n), occupied: BTreeMap::new() };
    let charged_until = story.now;
    let gone =
        |n: &str, why| Event::PlaceWrittenOff { attempt: id, node: node_id(n), charged_until, why };
    let stopping = |why| Event::AttemptStopping { attempt: id, why };
    let event = match word {
        "grant" => {
            story.pass(Millis::HOUR);
            assert_eq!(story.decide(), [JobId(1)]);
            return;
        }
        "commit" => Event::GangCommitted { attempt: id, master_addr: "n0".into(), master_port: 1 },
        "run" => Event::AttemptRunning { attempt: id },
        "cancel" => Event::CancelRequested { job: JobId(1), by: ada },
        "limit" => stopping(StopWhy::TimeLimit),
        "refuse" => stopping(StopWhy::Refused { node: node_id("n0"), text: "disk full".into() }),
        "late" => stopping(StopWhy::LaunchTimeout { missing: vec![node_id("n1")] }),
        "ok0" => end(0, TaskEnd::Exited { code: 0 }),
        "ok1" => end(1, TaskEnd::Exited { code: 0 }),
        "bad0" => end(0, TaskEnd::Exited { code: 3 }),
        "term0" => end(0, TaskEnd::Signaled { signal: 15, oom: false }),
        "term1" => end(1, TaskEnd::Signaled { signal: 15, oom: false }),
        "rel0" => released("n0"),
        "rel1" => released("n1"),
        "boot0" => gone("n0", WriteOffWhy::Rebooted),
        "boot1" => gone("n1", WriteOffWhy::Rebooted),
        "lapse0" => gone("n0", WriteOffWhy::LeaseLapsed),
        "forgot0" => gone("n0", WriteOffWhy::Forgotten),
        other => panic!("no such word: {other}"),
    };
    story.push(event);
}

/// Tells a story and gives the states it went through, job 1 being `requeue` or not.
fn states(words: &str, requeue: bool) -> Vec<&'static str> {
    let mut story = Story::with_nodes(2, 8);
    let mut spec = spec(2, 8);
    (spec.requeue, spec.time_limit) = (requeue, Some(Millis::DAY));
    story.submit(spec);
    let mut seen = vec![JobState::Pending];
    for word in words.split_whitespace() {
        tell(&mut story, word);
        let state = story.cluster.jobs.get(JobId(1)).unwrap().state;
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    }
    seen.into_iter().map(JobState::word).collect()
}

const STORIES: &[(&str, bool, &str)] = &[
    ("cancel", false, "pending cancelled"),
    ("grant commit run ok0 ok1", false, "pending starting running succeeded"),
    ("grant commit ok0 ok1", false, "pending starting succeeded"),
    ("grant commit bad0 term1", false, "pending starting failed"),
    ("grant commit boot0 term1", false, "pending starting lost"),
    ("grant commit run bad0 term1", false, "pending starting running failed"),
    ("grant commit run boot0 term1", false, "pending starting running lost"),
    // Killed with the rest, so the node that went down is what decides.
    ("grant commit run boot0 term1 rel1", true, "pending starting running pending"),
    ("grant commit run lapse0 term1 rel1", true, "pending starting running pending"),
    // Told to prepare only: nothing has run, so it may be tried again whatever it says of requeue.
    ("grant forgot0 rel1", false, "pending starting pending"),
    ("grant commit run cancel term0 term1", false, "pending starting running stopping cancelled"),
    // Told to stop, it left with 0: it has not done its work.
    ("grant commit run cancel ok0 ok1", false, "pending starting running stopping cancelled"),
    ("grant commit run limit ok0 ok1", false, "pending starting running stopping failed"),
    // Both had done their work before anybody heard that they had begun.
    ("grant commit late ok0 ok1", false, "pending starting stopping succeeded"),
    ("grant cancel rel0 rel1", false, "pending starting stopping cancelled"),
    ("grant refuse rel0 rel1", false, "pending starting stopping pending"),
    ("grant commit late rel0 rel1", false, "pending starting stopping pending"),
    ("grant commit run limit term0 term1", false, "pending starting running stopping failed"),
    // How it ended is not known, so it is not said to have been stopped in time.
    ("grant commit run limit boot0 boot1", false, "pending starting running stopping lost"),
    // A cancel that comes too late changes nothing.
    ("grant commit run ok0 ok1 cancel rel0 rel1", false, "pending starting running succeeded"),
];

#[test]
fn each_story_goes_through_the_states_it_should() {
    for (words, requeue, want) in STORIES {
        assert_eq!(states(words, *requeue).join(" "), *want, "{words:?}");
    }
}

#[test]
fn every_edge_of_the_graph_is_walked() {
    let mut walked = BTreeSet::new();
    for (_, _, states) in STORIES {
        let states: Vec<&str> = states.split(' ').collect();
        walked.extend(states.windows(2).map(|w| (w[0], w[1])));
    }
    let published: BTreeSet<(&str, &str)> = JobState::ALL
        .into_iter()
        .flat_map(|from| JobState::ALL.map(|to| (from, to)))
        .filter(|(from, to)| from.may_become(*to))
        .map(|(from, to)| (from.word(), to.word()))
        .collect();
    assert_eq!(walked, published);
}

/// Whatever is said of a job that has ended, and of its attempt, changes nothing about the job.
#[test]
fn an_end_is_final() {
    let endings = [
        "cancel",
        "grant commit run ok0 ok1",
        "grant commit run bad0 term1",
        "grant commit run boot0 term1",
        "grant commit run cancel term0 term1",
    ];
    let after =
        "cancel ok0 ok1 bad0 term1 commit run limit refuse late rel0 boot1 rel1 lapse0 boot0";
    for ending in endings {
        let mut story = Story::with_nodes(2, 8);
        story.submit(spec(2, 8));
        ending.split_whitespace().for_each(|w| tell(&mut story, w));
        let ended = story.cluster.jobs.get(JobId(1)).unwrap().clone();
        assert!(ended.state.is_terminal(), "{ending:?}");
        for word in after.split_whitespace() {
            story.pass(Millis::from_secs(1));
            tell(&mut story, word);
            let now = story.cluster.jobs.get(JobId(1)).unwrap();
            assert_eq!(*now, ended, "{ending:?}, then {word:?}");
            assert!(story.decide().is_empty(), "{ending:?}, then {word:?}: it was started again");
        }
    }
}
