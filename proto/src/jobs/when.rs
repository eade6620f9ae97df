//! What a job waits for beside its place, and how its work is saved: dependencies, begin, and the
//! checkpoint plan, both ways.

use tessera_model::{
    CheckpointPlan, Dependency, DependencyKind, JobId, Millis, Refusal, UnixMillis,
};

use crate::{
    door::{Checked, count, no_nul, quote, range, size},
    v1,
};

const AFTER_MAX: usize = 128;
const NOTICE_MAX: Millis = Millis::DAY;
const RESTART_COST_MAX: Millis = Millis(7 * Millis::DAY.0);
const PATH_BYTES_MAX: usize = 4_095;
/// The end of the year 9999.
const INSTANT_MAX: i64 = 253_402_300_799_999;

const KINDS: [(DependencyKind, v1::DependencyKind); 4] = [
    (DependencyKind::AfterOk, v1::DependencyKind::AfterOk),
    (DependencyKind::AfterAny, v1::DependencyKind::AfterAny),
    (DependencyKind::AfterNotOk, v1::DependencyKind::AfterNotOk),
    (DependencyKind::After, v1::DependencyKind::After),
];

pub fn after_to_wire(after: &[Dependency]) -> Vec<v1::Dependency> {
    let kind = |kind| {
        let row = KINDS.iter().find(|(k, _)| *k == kind);
        row.expect("KINDS has every kind; a test goes through them").1.into()
    };
    after.iter().map(|d| v1::Dependency { job_id: d.job.0, kind: kind(d.kind) }).collect()
}

pub(super) fn after_from_wire(wire: &[v1::Dependency]) -> Checked<Vec<Dependency>> {
    let one = |d: &v1::Dependency| {
        let row = KINDS.iter().find(|(_, wire)| *wire as i32 == d.kind);
        let (kind, _) = row.ok_or_else(|| {
            let message = format!("{} is no kind of dependency", d.kind);
            Refusal::invalid("after", message, "use client and scheduler of one release")
        })?;
        Ok(Dependency { job: JobId(d.job_id), kind: *kind })
    };
    wire.iter().map(one).collect()
}

pub(super) fn check_after(after: &[Dependency]) -> Checked {
    count("after", after.len(), AFTER_MAX, "let one job wait for them, and this one for it")?;
    let mut seen = std::collections::BTreeSet::new();
    for one in after {
        if !seen.insert(one.job) {
            let message = format!("job {} is waited for twice", one.job);
            return Err(Refusal::invalid("after", message, "name each job once"));
        }
    }
    Ok(())
}

/// A point in time that can be written down.
pub(crate) fn check_instant(field: &str, at: UnixMillis) -> Checked {
    range(field, at.0, 0, INSTANT_MAX, "give an instant from 1970 to 9999")
}

pub fn checkpoint_to_wire(plan: &CheckpointPlan) -> v1::CheckpointPlan {
    v1::CheckpointPlan {
        signal: plan.signal,
        notice_ms: plan.notice.0,
        restart_cost_ms: plan.restart_cost.0,
        file: plan.file.clone().unwrap_or_default(),
        migratable: plan.migratable,
    }
}

pub(super) fn checkpoint_from_wire(wire: v1::CheckpointPlan) -> CheckpointPlan {
    CheckpointPlan {
        signal: wire.signal,
        notice: Millis(wire.notice_ms),
        restart_cost: Millis(wire.restart_cost_ms),
        file: Some(wire.file).filter(|f| !f.is_empty()),
        migratable: wire.migratable,
    }
}

pub(super) fn check_checkpoint(plan: &CheckpointPlan) -> Checked {
    if let Some(signal) = plan.signal {
        check_signal("checkpoint.signal", signal)?;
    }
    let hint = "give up to 1 day: so long others wait for the place";
    range("checkpoint.notice_ms", plan.notice.0, 0, NOTICE_MAX.0, hint)?;
    let hint = "give up to 7 days";
    range("checkpoint.restart_cost_ms", plan.restart_cost.0, 0, RESTART_COST_MAX.0, hint)?;
    let Some(file) = &plan.file else { return Ok(()) };
    let field = "checkpoint.file";
    no_nul(field, file)?;
    size(field, file.len(), PATH_BYTES_MAX, "use a shorter path")?;
    let leaves = file.split('/').any(|part| part == "..");
    if file.starts_with('/') || leaves {
        let message = format!("the checkpoint file is {}", quote(file));
        let hint = "name a file below the working directory, such as `ckpt/latest`";
        return Err(Refusal::invalid(field, message, hint));
    }
    Ok(())
}

pub(super) fn check_signal(field: &str, signal: i32) -> Checked {
    if !(1..=64).contains(&signal) {
        let message = format!("{signal} is no signal, they are 1 to 64");
        return Err(Refusal::invalid(field, message, "`kill -l` lists them"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_dependency_survives_the_round_trip() {
        let after: Vec<Dependency> = (1..)
            .zip(DependencyKind::ALL)
            .map(|(n, kind)| Dependency { job: JobId(n), kind })
            .collect();
        assert_eq!(after_from_wire(&after_to_wire(&after)), Ok(after));
        let unknown = v1::Dependency { job_id: 1, kind: 0 };
        assert_eq!(after_from_wire(&[unknown]).unwrap_err().field, "after");
        let twice = Dependency { job: JobId(1), kind: DependencyKind::After };
        assert!(check_after(&[twice, twice]).unwrap_err().message.contains("twice"));
    }

    #[test]
    fn a_checkpoint_plan_has_bounds() {
        let plan = CheckpointPlan {
            signal: Some(12),
            notice: Millis(600_000),
            restart_cost: Millis(360_000),
            file: Some("ckpt/latest".to_owned()),
            migratable: true,
        };
        check_checkpoint(&plan).unwrap();
        assert_eq!(checkpoint_from_wire(checkpoint_to_wire(&plan)), plan);
        type Spoil = fn(&mut CheckpointPlan);
        let cases: [(&str, Spoil); 7] = [
            ("signal", |p| p.signal = Some(0)),
            ("signal", |p| p.signal = Some(65)),
            ("notice_ms", |p| p.notice = Millis(Millis::DAY.0 + 1)),
            ("restart_cost_ms", |p| p.restart_cost = Millis(u64::MAX)),
            ("file", |p| p.file = Some("/etc/passwd".to_owned())),
            ("file", |p| p.file = Some("a/../../b".to_owned())),
            ("file", |p| p.file = Some("a\0".to_owned())),
        ];
        for (field, spoil) in cases {
            let mut plan = plan.clone();
            spoil(&mut plan);
            let refusal = check_checkpoint(&plan).expect_err(field);
            assert_eq!(refusal.field, format!("checkpoint.{field}"));
        }
    }
}
