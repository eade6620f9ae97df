//! What is asked of a job after its submission: another wish, or a signal.
//!
//! What depends on the job, such as whether slices still divide its gang, is the core's to check
//! when it has put the change into the job's spec.

use tessera_model::{JobChange, Millis, Refusal, UnixMillis};

use super::{placement, spec, when};
use crate::{
    door::{Checked, range},
    v1,
};

/// Tasks an array may ever have; a throttle beyond that holds nothing back.
const THROTTLE_MAX: u32 = 100_000;

pub fn change_to_wire(change: &JobChange) -> v1::JobChange {
    v1::JobChange {
        priority: change.priority,
        tier: change.tier.map(|t| spec::tier_to_wire(t).into()),
        time_limit_ms: change.time_limit.map(|t| t.0),
        nodes: change.nodes,
        placement: change.placement.as_ref().map(placement::placement_to_wire),
        begin_unix_ms: change.begin.map(|t| t.0),
        after: change
            .after
            .as_ref()
            .map(|after| v1::Dependencies { on: when::after_to_wire(after) }),
        throttle: change.throttle,
    }
}

pub fn change_from_wire(wire: v1::JobChange) -> Result<JobChange, Refusal> {
    let after = wire.after.map(|after| when::after_from_wire(&after.on)).transpose()?;
    let change = JobChange {
        priority: wire.priority,
        tier: wire.tier.map(spec::tier_from_wire).transpose()?,
        time_limit: wire.time_limit_ms.map(Millis),
        nodes: wire.nodes,
        placement: wire.placement.map(placement::placement_from_wire).transpose()?,
        begin: wire.begin_unix_ms.map(UnixMillis),
        after,
        throttle: wire.throttle,
    };
    check(&change)?;
    Ok(change)
}

fn check(change: &JobChange) -> Checked {
    if *change == JobChange::default() {
        let message = "nothing is to be changed";
        return Err(Refusal::invalid("change", message, "say what is to be changed"));
    }
    if let Some(priority) = change.priority {
        spec::check_priority(priority)?;
    }
    if let Some(limit) = change.time_limit {
        spec::check_time_limit(limit)?;
    }
    if let Some(nodes) = change.nodes {
        spec::check_nodes("nodes", nodes)?;
    }
    if let Some(placement) = &change.placement {
        // Slices are held against the gang where that is known; here only against each other.
        let largest = placement.slices.first().map_or(1, |s| s.nodes.max(1));
        placement::check("", placement, change.nodes.unwrap_or(largest))?;
    }
    if let Some(begin) = change.begin {
        when::check_instant("begin_unix_ms", begin)?;
    }
    if let Some(after) = &change.after {
        when::check_after(after)?;
    }
    if let Some(throttle) = change.throttle {
        range("throttle", throttle, 0, THROTTLE_MAX, "0 lets all tasks run at once")?;
    }
    Ok(())
}

/// A signal for every task of a job.
pub fn signal_from_wire(signal: i32) -> Result<i32, Refusal> {
    when::check_signal("signal", signal)?;
    Ok(signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::{
        Dependency, DependencyKind, JobId, Placement, Slice, Strength, Tier, Within,
    };

    fn slice(nodes: u32) -> Placement {
        let slice = Slice { nodes, level: "leaf".to_owned(), strength: Strength::Required };
        Placement { slices: vec![slice], ..Default::default() }
    }

    #[test]
    fn a_change_survives_the_round_trip() {
        let within = Within { level: "leaf".to_owned(), strength: Strength::Preferred };
        let full = JobChange {
            priority: Some(-5),
            tier: Some(Tier::Idle),
            time_limit: Some(Millis(60_000)),
            nodes: Some(4),
            placement: Some(Placement { within: vec![within], ..Default::default() }),
            begin: Some(UnixMillis(1)),
            after: Some(vec![Dependency { job: JobId(7), kind: DependencyKind::AfterOk }]),
            throttle: Some(0),
        };
        let freed = JobChange {
            placement: Some(Placement::default()),
            after: Some(Vec::new()),
            ..JobChange::default()
        };
        let sliced = JobChange { placement: Some(slice(3)), ..JobChange::default() };
        for change in [full, freed, sliced] {
            assert_eq!(change_from_wire(change_to_wire(&change)), Ok(change));
        }
    }

    #[test]
    fn a_change_has_the_bounds_of_a_submission() {
        let cases = [
            ("change", JobChange::default()),
            ("priority", JobChange { priority: Some(1_001), ..JobChange::default() }),
            ("time_limit_ms", JobChange { time_limit: Some(Millis(1)), ..JobChange::default() }),
            ("nodes", JobChange { nodes: Some(0), ..JobChange::default() }),
            ("begin_unix_ms", JobChange { begin: Some(UnixMillis(-1)), ..JobChange::default() }),
            ("throttle", JobChange { throttle: Some(100_001), ..JobChange::default() }),
            ("placement.slices", JobChange { placement: Some(slice(0)), ..JobChange::default() }),
            (
                "placement.slices",
                JobChange { nodes: Some(4), placement: Some(slice(3)), ..JobChange::default() },
            ),
        ];
        for (field, change) in cases {
            let refusal = change_from_wire(change_to_wire(&change)).expect_err(field);
            assert_eq!(refusal.field, field, "{refusal:?}");
        }
        let wire = v1::JobChange { tier: Some(9), ..Default::default() };
        assert_eq!(change_from_wire(wire).unwrap_err().field, "tier");
        assert_eq!(signal_from_wire(10), Ok(10));
        assert_eq!(signal_from_wire(0).unwrap_err().field, "signal");
    }
}
