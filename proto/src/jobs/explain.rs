//! The answer of `explain`, and how a task ended, both ways.

use tessera_model::{
    Counterfactual, Eta, Explanation, JobId, Millis, NodeId, Refusal, Rung, TaskEnd, UnixMillis,
    Verdict,
};

use crate::{
    door::{Checked, bad_id, clip, quote},
    v1,
};

/// Why a task could not be started is an agent's own text; more of it is of no use.
const WHY_BYTES_MAX: usize = 1_024;

const VERDICTS: [(Verdict, &str); 5] = [
    (Verdict::Started, "started"),
    (Verdict::Ended, "ended"),
    (Verdict::StartsNow, "starts_now"),
    (Verdict::Waits, "waits"),
    (Verdict::Infeasible, "infeasible"),
];

pub fn explanation_to_wire(answer: &Explanation) -> v1::ExplainReply {
    let verdict = VERDICTS.iter().find(|(v, _)| *v == answer.verdict);
    let rung = |r: &Rung| v1::Rung {
        what: r.what.clone(),
        need: r.need.clone(),
        have: r.have.clone(),
        holds: r.holds,
    };
    v1::ExplainReply {
        job_id: answer.job.map(|j| j.0),
        verdict: verdict
            .expect("VERDICTS has every verdict; a test goes through them")
            .1
            .to_owned(),
        summary: answer.summary.clone(),
        ladder: answer.ladder.iter().map(rung).collect(),
        expected_start_unix_ms: answer.expected_start.map(|t| t.0),
        position: answer.position,
        hint: answer.hint.clone(),
        eta: answer.eta.map(|e| v1::Eta { p50_unix_ms: e.p50.0, p90_unix_ms: e.p90.0 }),
        promised_unix_ms: answer.promised.map(|t| t.0),
        counterfactuals: answer
            .counterfactuals
            .iter()
            .map(|c| v1::Counterfactual {
                change: c.change.clone(),
                starts_at_unix_ms: c.starts_at.map(|t| t.0),
                sooner_ms: c.sooner.map(|m| m.0),
            })
            .collect(),
        place: answer.place.iter().map(NodeId::to_string).collect(),
    }
}

pub fn explanation_from_wire(wire: v1::ExplainReply) -> Result<Explanation, Refusal> {
    let verdict = VERDICTS.iter().find(|(_, word)| *word == wire.verdict);
    let Some((verdict, _)) = verdict else {
        let message = format!("{} is no verdict", quote(&wire.verdict));
        return Err(Refusal::invalid(
            "verdict",
            message,
            "use client and scheduler of one release",
        ));
    };
    let rung = |r: v1::Rung| Rung { what: r.what, need: r.need, have: r.have, holds: r.holds };
    Ok(Explanation {
        job: wire.job_id.map(JobId),
        verdict: *verdict,
        summary: wire.summary,
        ladder: wire.ladder.into_iter().map(rung).collect(),
        expected_start: wire.expected_start_unix_ms.map(UnixMillis),
        position: wire.position,
        hint: wire.hint,
        eta: wire
            .eta
            .map(|e| Eta { p50: UnixMillis(e.p50_unix_ms), p90: UnixMillis(e.p90_unix_ms) }),
        promised: wire.promised_unix_ms.map(UnixMillis),
        counterfactuals: wire
            .counterfactuals
            .into_iter()
            .map(|c| Counterfactual {
                change: c.change,
                starts_at: c.starts_at_unix_ms.map(UnixMillis),
                sooner: c.sooner_ms.map(Millis),
            })
            .collect(),
        place: wire
            .place
            .iter()
            .map(|n| NodeId::parse(n).map_err(bad_id("place")))
            .collect::<Checked<_>>()?,
    })
}

pub fn end_to_wire(end: &TaskEnd) -> v1::TaskEnd {
    use v1::task_end::How;
    let how = match end {
        TaskEnd::Exited { code } => How::Exited(*code),
        TaskEnd::Signaled { signal, oom } => {
            How::Signaled(v1::Signaled { signal: *signal, oom: *oom })
        }
        TaskEnd::NotStarted { code, why } => How::NotStarted(v1::NotStarted {
            code: *code,
            why: clip(why, WHY_BYTES_MAX).to_owned(),
        }),
        TaskEnd::Lapsed => How::Lapsed(true),
        TaskEnd::Unknown => How::Unknown(true),
    };
    v1::TaskEnd { how: Some(how) }
}

pub fn end_from_wire(wire: v1::TaskEnd) -> Result<TaskEnd, Refusal> {
    use v1::task_end::How;
    let refuse = |message: String| {
        Err(Refusal::invalid("end", message, "use agent and scheduler of one release"))
    };
    match wire.how {
        // The kernel gives an exit code eight bits, and knows signals 1 to 64.
        Some(How::Exited(code @ 0..=255)) => Ok(TaskEnd::Exited { code }),
        Some(How::Exited(code)) => refuse(format!("{code} is no exit code, they are 0 to 255")),
        Some(How::Signaled(v1::Signaled { signal: signal @ 1..=64, oom })) => {
            Ok(TaskEnd::Signaled { signal, oom })
        }
        Some(How::Signaled(s)) => refuse(format!("{} is no signal, they are 1 to 64", s.signal)),
        Some(How::NotStarted(v1::NotStarted { code: code @ 0..=255, why })) => {
            Ok(TaskEnd::NotStarted { code, why: clip(&why, WHY_BYTES_MAX).to_owned() })
        }
        Some(How::NotStarted(n)) => {
            refuse(format!("{} is no exit code, they are 0 to 255", n.code))
        }
        Some(How::Lapsed(true)) => Ok(TaskEnd::Lapsed),
        Some(How::Unknown(true)) => Ok(TaskEnd::Unknown),
        Some(How::Lapsed(false) | How::Unknown(false)) | None => {
            refuse("how the task ended is missing".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_survives_the_round_trip() {
        for (verdict, word) in VERDICTS {
            let answer = Explanation {
                job: Some(JobId(7)),
                verdict,
                summary: "waits for 2 nodes".to_owned(),
                ladder: vec![Rung {
                    what: "free GPUs".to_owned(),
                    need: "16".to_owned(),
                    have: "8".to_owned(),
                    holds: false,
                }],
                expected_start: None,
                position: Some(1),
                eta: Some(Eta { p50: UnixMillis(5), p90: UnixMillis(9) }),
                promised: Some(UnixMillis(10)),
                counterfactuals: vec![
                    Counterfactual {
                        change: "--nodes 6".to_owned(),
                        starts_at: Some(UnixMillis(1)),
                        sooner: Some(Millis(9)),
                    },
                    Counterfactual {
                        change: "--nodes 5".to_owned(),
                        starts_at: None,
                        sooner: None,
                    },
                ],
                place: vec![NodeId::parse("n1").unwrap()],
                hint: None,
            };
            let wire = explanation_to_wire(&answer);
            assert_eq!(wire.verdict, word);
            assert_eq!(explanation_from_wire(wire), Ok(answer));
        }
        let other = v1::ExplainReply { verdict: "perhaps".to_owned(), ..Default::default() };
        assert_eq!(explanation_from_wire(other).unwrap_err().field, "verdict");
    }

    #[test]
    fn every_end_survives_the_round_trip() {
        let ends = [
            TaskEnd::Exited { code: 0 },
            TaskEnd::Exited { code: 255 },
            TaskEnd::Signaled { signal: 9, oom: true },
            TaskEnd::Signaled { signal: 15, oom: false },
            TaskEnd::NotStarted { code: 127, why: "no such file".to_owned() },
            TaskEnd::Lapsed,
            TaskEnd::Unknown,
        ];
        for end in ends {
            assert_eq!(end_from_wire(end_to_wire(&end)), Ok(end));
        }
    }

    #[test]
    fn an_end_that_cannot_be_is_refused_and_not_guessed() {
        use v1::task_end::How;
        let cases = [
            None,
            Some(How::Exited(256)),
            Some(How::Exited(-1)),
            Some(How::Signaled(v1::Signaled { signal: 0, oom: false })),
            Some(How::Signaled(v1::Signaled { signal: i32::MAX, oom: false })),
            Some(How::NotStarted(v1::NotStarted { code: 1_000, why: String::new() })),
            Some(How::Lapsed(false)),
            Some(How::Unknown(false)),
        ];
        for how in cases {
            let refusal = end_from_wire(v1::TaskEnd { how: how.clone() }).unwrap_err();
            assert_eq!(refusal.field, "end", "{how:?}");
        }
        let why = "ü".repeat(5_000);
        let long = end_to_wire(&TaskEnd::NotStarted { code: 126, why });
        match end_from_wire(long) {
            Ok(TaskEnd::NotStarted { why, .. }) => assert_eq!(why.len(), WHY_BYTES_MAX),
            other => panic!("{other:?}"),
        }
    }
}
