//! Checkpoints as agents report them: from the node of rank 0, of what runs there, one a second.

mod common;

use common::{Story, attempt, node_id, spec};
use tessera_core::door::agents::{Report, report};
use tessera_core::event::{Event, LeaveWhy};
use tessera_model::{AttemptId, Millis, SessionId, UnixMillis};

/// Takes the report in, and says whether it was news.
fn say(story: &mut Story, node: u32, session: u64, attempt: AttemptId) -> bool {
    let (now, session) = (story.now, SessionId(session));
    let name = node_id(&format!("n{node}"));
    let heard = report(&mut story.cluster, now, &name, session, Report::Checkpoint { attempt });
    for event in &heard {
        assert_eq!(*event, Event::CheckpointReported { attempt });
        story.push(event.clone());
    }
    !heard.is_empty()
}

#[test]
fn a_checkpoint_counts_from_where_rank_0_runs_and_at_most_once_a_second() {
    let mut story = Story::with_nodes(3, 8);
    story.now = UnixMillis(10_000);
    let job = story.submit(spec(2, 8));
    assert_eq!(story.decide(), [job]);
    let id = story.attempt_of(job);
    assert!(!say(&mut story, 0, 1, id), "nothing of it runs yet");
    story.run(job);
    for (what, node, session, id) in [
        ("another session", 0, 9, id),
        ("the node of rank 1", 1, 2, id),
        ("a node without it", 2, 3, id),
        ("another attempt", 0, 1, attempt(id.job.0, id.number + 1)),
    ] {
        assert!(!say(&mut story, node, session, id), "{what}");
    }
    assert!(say(&mut story, 0, 1, id));
    let last = |story: &Story| story.cluster.jobs.get(job).unwrap().last_checkpoint;
    assert_eq!(last(&story), Some(UnixMillis(10_000)));
    story.pass(Millis(999));
    assert!(!say(&mut story, 0, 1, id), "within the same second");
    story.pass(Millis(1));
    assert!(say(&mut story, 0, 1, id));
    assert_eq!(last(&story), Some(UnixMillis(11_000)));
    // Told to leave, it is waited for: the next one is never too soon.
    let why = LeaveWhy::Preempted { by: tessera_model::JobId(99) };
    let deadline = story.now.plus(Millis::from_secs(60));
    story.push(Event::LeaveAsked { attempt: id, why, deadline });
    story.pass(Millis(1));
    assert!(say(&mut story, 0, 1, id));
    assert_eq!(last(&story), Some(UnixMillis(11_001)));
}
