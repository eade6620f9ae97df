//! A job as everybody sees it, both ways. Clients read it with the same care: a scheduler of
//! another release may say what they do not know.

use tessera_model::{
    ArrayTask, AttemptId, Certificate, JobId, JobRecord, JobState, NodeId, Optimality, Refusal,
    Revision, Span, TeamId, UnixMillis, UserId,
};

use super::spec;
use crate::{
    door::{bad_id, present, quote},
    v1,
};

pub fn job_to_wire(job: &JobRecord) -> v1::Job {
    v1::Job {
        id: job.id.0,
        spec: Some(spec::spec_to_wire(&job.spec)),
        state: state_to_wire(job.state).into(),
        reason: job.reason.clone(),
        submitted_at_unix_ms: job.submitted_at.0,
        started_at_unix_ms: job.started_at.map(|t| t.0),
        ended_at_unix_ms: job.ended_at.map(|t| t.0),
        exit_code: job.exit_code,
        attempt: job.attempt.map(|a| a.to_string()).unwrap_or_default(),
        nodes: job.nodes.iter().map(NodeId::to_string).collect(),
        cancel_requested: job.cancel_requested,
        held: job.held,
        array: job.array.map(|a| v1::ArrayTask { array: a.array.0, index: a.index }),
        eligible_at_unix_ms: job.eligible_at.map(|t| t.0),
        promised_at_unix_ms: job.promised_at.map(|t| t.0),
        last_checkpoint_at_unix_ms: job.last_checkpoint_at.map(|t| t.0),
        preemptions: job.preemptions,
        certificate: job.certificate.as_ref().map(certificate_to_wire),
    }
}

fn certificate_to_wire(certificate: &Certificate) -> v1::PlacementCertificate {
    let span = |s: &Span| v1::Span { level: s.level.clone(), domains: s.domains, least: s.least };
    v1::PlacementCertificate {
        revision: certificate.revision.0,
        bound_percent: match certificate.optimality {
            Optimality::Optimal => None,
            Optimality::Bound { percent } => Some(percent),
        },
        spans: certificate.spans.iter().map(span).collect(),
        given_up: certificate.given_up.clone(),
    }
}

fn certificate_from_wire(wire: v1::PlacementCertificate) -> Certificate {
    let span = |s: v1::Span| Span { level: s.level, domains: s.domains, least: s.least };
    Certificate {
        revision: Revision(wire.revision),
        optimality: match wire.bound_percent {
            None => Optimality::Optimal,
            Some(percent) => Optimality::Bound { percent },
        },
        spans: wire.spans.into_iter().map(span).collect(),
        given_up: wire.given_up,
    }
}

/// Whom its processes run as is not on the wire, so `spec.unix` is `None` here.
pub fn job_from_wire(wire: v1::Job) -> Result<JobRecord, Refusal> {
    let spec = present("spec", wire.spec)?;
    let team = TeamId::parse(&spec.team).map_err(bad_id("team"))?;
    let user = UserId::parse(&spec.user).map_err(bad_id("user"))?;
    let id = JobId(wire.id);
    let attempt = match wire.attempt.as_str() {
        "" => None,
        text => Some(AttemptId::parse(text).filter(|a| a.job == id).ok_or_else(|| {
            let message = format!("{} is no attempt of job {id}", quote(text));
            Refusal::invalid("attempt", message, format!("write it like {id}.1"))
        })?),
    };
    let nodes = wire.nodes.iter().map(|n| NodeId::parse(n).map_err(bad_id("nodes")));
    Ok(JobRecord {
        id,
        spec: spec::read(spec, team, user, None)?,
        state: state_from_wire(wire.state)?,
        submitted_at: UnixMillis(wire.submitted_at_unix_ms),
        started_at: wire.started_at_unix_ms.map(UnixMillis),
        ended_at: wire.ended_at_unix_ms.map(UnixMillis),
        exit_code: wire.exit_code,
        reason: wire.reason,
        attempt,
        nodes: nodes.collect::<Result<_, _>>()?,
        cancel_requested: wire.cancel_requested,
        held: wire.held,
        array: wire.array.map(|a| ArrayTask { array: JobId(a.array), index: a.index }),
        eligible_at: wire.eligible_at_unix_ms.map(UnixMillis),
        promised_at: wire.promised_at_unix_ms.map(UnixMillis),
        last_checkpoint_at: wire.last_checkpoint_at_unix_ms.map(UnixMillis),
        preemptions: wire.preemptions,
        certificate: wire.certificate.map(certificate_from_wire),
    })
}

pub fn state_to_wire(state: JobState) -> v1::JobState {
    match state {
        JobState::Pending => v1::JobState::Pending,
        JobState::Starting => v1::JobState::Starting,
        JobState::Running => v1::JobState::Running,
        JobState::Stopping => v1::JobState::Stopping,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
        JobState::Lost => v1::JobState::Lost,
    }
}

/// From the bare number a message holds.
pub fn state_from_wire(number: i32) -> Result<JobState, Refusal> {
    let known = JobState::ALL.into_iter().find(|s| state_to_wire(*s) as i32 == number);
    known.ok_or_else(|| {
        Refusal::invalid(
            "state",
            format!("{number} is no state of a job"),
            "use client and scheduler of one release",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::{Principal, Role};

    fn record(state: JobState) -> JobRecord {
        let caller = Principal {
            user: UserId::parse("ada").unwrap(),
            role: Role::Member,
            teams: vec![TeamId::parse("nlp").unwrap()],
            unix: None,
        };
        let wire = v1::JobSpec { argv: vec!["true".to_owned()], nodes: 2, ..Default::default() };
        JobRecord {
            id: JobId(812),
            spec: spec::spec_from_wire(wire, &caller).unwrap(),
            state,
            submitted_at: UnixMillis(1),
            started_at: Some(UnixMillis(0)),
            ended_at: None,
            exit_code: Some(0),
            reason: "on 2 nodes".to_owned(),
            attempt: Some(AttemptId { job: JobId(812), number: 3 }),
            nodes: ["n1", "n0"].map(|n| NodeId::parse(n).unwrap()).to_vec(),
            cancel_requested: true,
            held: true,
            array: Some(ArrayTask { array: JobId(810), index: 2 }),
            eligible_at: Some(UnixMillis(2)),
            promised_at: Some(UnixMillis(3)),
            last_checkpoint_at: Some(UnixMillis(4)),
            preemptions: 5,
            certificate: Some(Certificate {
                revision: Revision(77),
                optimality: Optimality::Bound { percent: 12 },
                spans: vec![Span { level: "leaf".to_owned(), domains: 2, least: 1 }],
                given_up: vec!["within leaf".to_owned()],
            }),
        }
    }

    #[test]
    fn a_record_survives_the_round_trip_in_every_state() {
        for state in JobState::ALL {
            let record = record(state);
            assert_eq!(job_from_wire(job_to_wire(&record)), Ok(record));
        }
        let record = JobRecord {
            attempt: None,
            nodes: vec![],
            held: false,
            array: None,
            eligible_at: None,
            promised_at: None,
            last_checkpoint_at: None,
            certificate: None,
            ..record(JobState::Pending)
        };
        assert_eq!(job_from_wire(job_to_wire(&record)), Ok(record));
    }

    #[test]
    fn a_proof_of_the_best_and_a_bound_are_told_apart() {
        for optimality in [Optimality::Optimal, Optimality::Bound { percent: 0 }] {
            let mut record = record(JobState::Running);
            record.certificate.as_mut().unwrap().optimality = optimality;
            assert_eq!(job_from_wire(job_to_wire(&record)), Ok(record));
        }
    }

    #[test]
    fn a_job_beyond_todays_bounds_is_still_shown() {
        let mut record = record(JobState::Running);
        record.spec.priority = 5_000;
        assert_eq!(job_from_wire(job_to_wire(&record)), Ok(record));
    }

    #[test]
    fn a_broken_record_is_refused() {
        type Spoil = fn(&mut v1::Job);
        let cases: &[(&str, Spoil)] = &[
            ("spec", |j| j.spec = None),
            ("state", |j| j.state = 0),
            ("state", |j| j.state = 99),
            ("attempt", |j| j.attempt = "812".to_owned()),
            ("attempt", |j| j.attempt = "7.1".to_owned()),
            ("nodes", |j| j.nodes.push("a b".to_owned())),
            ("team", |j| j.spec.as_mut().unwrap().team.clear()),
            ("user", |j| j.spec.as_mut().unwrap().user.clear()),
        ];
        for (field, spoil) in cases {
            let mut wire = job_to_wire(&record(JobState::Running));
            spoil(&mut wire);
            assert_eq!(job_from_wire(wire).expect_err(field).field, *field);
        }
    }
}
