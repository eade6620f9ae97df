//! Orders and reports at the door: wire words on one side, the runner's on the other.

use std::collections::BTreeMap;
use std::time::Duration;

use tessera_model::{
    ArrayTask, AttemptId, Bytes, Epoch, GpuCondition, GpuId, JobId, Millis, NodeInventory, Refusal,
    SessionId, TaskEnd, UnixIdentity, WHOLE_GPU,
};
use tessera_proto::jobs::end_to_wire;
use tessera_proto::nodes::{conditions_to_wire, inventory_to_wire};
use tessera_proto::v1;

use crate::runner::{Master, Occupied, Order, Phase, RunnerEvent, Snapshot, Status, TaskOrder};

const RELEASE: &str = "use agent and scheduler of one release";

/// The attempt an order is about, as it is written.
pub fn attempt_of(order: &v1::order::Order) -> &str {
    match order {
        v1::order::Order::Prepare(order) => &order.attempt,
        v1::order::Order::Commit(order) => &order.attempt,
        v1::order::Order::Stop(order) => &order.attempt,
        v1::order::Order::Signal(order) => &order.attempt,
        v1::order::Order::Forget(order) => &order.attempt,
        v1::order::Order::Welcome(_) | v1::order::Order::Grant(_) => "",
    }
}

/// Welcome and Grant are the connection's own matter and no order to the runner.
pub fn order_from_wire(order: v1::order::Order) -> Result<Order, Refusal> {
    Ok(match order {
        v1::order::Order::Prepare(order) => Order::Prepare(Box::new(prepare_from_wire(order)?)),
        v1::order::Order::Commit(order) => Order::Commit {
            attempt: attempt_from_wire(&order.attempt)?,
            master: Master { port: port_from_wire(order.master_port)?, address: order.master_addr },
        },
        v1::order::Order::Stop(order) => Order::Stop {
            attempt: attempt_from_wire(&order.attempt)?,
            grace: Duration::from_millis(order.grace_ms.min(Millis::DAY.0)),
        },
        v1::order::Order::Signal(order) => Order::Signal {
            attempt: attempt_from_wire(&order.attempt)?,
            signal: signal_from_wire(order.signal)?,
        },
        v1::order::Order::Forget(order) => {
            Order::Forget { attempt: attempt_from_wire(&order.attempt)? }
        }
        v1::order::Order::Welcome(_) | v1::order::Order::Grant(_) => {
            return Err(Refusal::invalid("order", "this is no order about an attempt", RELEASE));
        }
    })
}

pub fn attempt_from_wire(text: &str) -> Result<AttemptId, Refusal> {
    AttemptId::parse(text).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        Refusal::invalid("attempt", format!("{shown:?} is no attempt, such as 812.1"), RELEASE)
    })
}

fn signal_from_wire(signal: i32) -> Result<i32, Refusal> {
    if !(1..=64).contains(&signal) {
        let message = format!("{signal} is no signal, 1 to 64");
        return Err(Refusal::invalid("signal", message, RELEASE));
    }
    Ok(signal)
}

fn port_from_wire(port: u32) -> Result<u16, Refusal> {
    u16::try_from(port).map_err(|_| {
        Refusal::invalid("master_port", format!("{port} is no port, 0 to 65535"), RELEASE)
    })
}

fn prepare_from_wire(wire: v1::Prepare) -> Result<TaskOrder, Refusal> {
    let attempt = attempt_from_wire(&wire.attempt)?;
    let gpus = wire.gpu_uuids.iter().map(|uuid| {
        GpuId::parse(uuid).map_err(|bad| Refusal::invalid("gpu_uuids", bad.to_string(), RELEASE))
    });
    let unix = match (wire.uid, wire.gid) {
        (Some(uid), Some(gid)) => Some(UnixIdentity { uid, gid }),
        (None, None) => None,
        _ => {
            return Err(Refusal::invalid(
                "uid",
                "uid and gid come together or not at all",
                RELEASE,
            ));
        }
    };
    Ok(TaskOrder {
        attempt,
        session: SessionId(wire.session),
        first_rank: wire.first_rank,
        ranks: wire.ranks,
        world_size: wire.world_size,
        node_rank: wire.node_rank,
        gpus: gpus.collect::<Result<_, _>>()?,
        nodes: wire.nodes,
        addresses: wire.addresses,
        gpus_per_node: wire.gpus_per_node,
        // A scheduler that knows no shares says nothing of them.
        gpu_milli: if wire.gpu_milli == 0 { WHOLE_GPU } else { wire.gpu_milli },
        ranks_of: wire.ranks_of,
        role: wire.role,
        checkpoint_file: wire.checkpoint_file,
        array: wire.array_id.map(|id| ArrayTask { array: JobId(id), index: wire.array_index }),
        cpus_per_task: wire.cpus_per_task,
        memory: Bytes(wire.memory_bytes),
        argv: wire.argv,
        script: wire.script,
        env: wire.env,
        working_dir: wire.working_dir,
        unix,
        job_name: wire.job_name,
        team: wire.team,
        project: wire.project,
        user: wire.user,
        stop_on_lapse: wire.stop_on_lapse,
        lapse_grace: Millis(wire.lapse_grace_ms),
        time_limit: wire.time_limit_ms.map(Millis),
    })
}

pub fn hello(
    session: SessionId,
    epoch: Epoch,
    inventory: &NodeInventory,
    conditions: &BTreeMap<GpuId, GpuCondition>,
    snapshot: &Snapshot,
) -> v1::Hello {
    let running = |(attempt, status): &(AttemptId, Status)| v1::RunningAttempt {
        attempt: attempt.to_string(),
        started: status.phase >= Phase::Starting,
        master_port: u32::from(status.master_port),
        ended: ends(*attempt, status),
    };
    let finished = |(attempt, status): &(AttemptId, Status)| v1::FinishedAttempt {
        attempt: attempt.to_string(),
        ended: ends(*attempt, status),
        occupied: occupied(&status.occupied),
    };
    v1::Hello {
        session: session.0,
        inventory: Some(inventory_to_wire(inventory)),
        epoch: epoch.0,
        running: snapshot.running.iter().map(running).collect(),
        finished: snapshot.finished.iter().map(finished).collect(),
        conditions: Some(conditions_to_wire(conditions)),
    }
}

pub fn event_to_wire(event: RunnerEvent) -> v1::report::Report {
    use v1::report::Report;
    match event {
        RunnerEvent::Prepared { attempt, master_port } => Report::Prepared(v1::Prepared {
            attempt: attempt.to_string(),
            master_port: u32::from(master_port),
        }),
        RunnerEvent::Refused { attempt, why } => {
            Report::Refused(v1::Refused { attempt: attempt.to_string(), why })
        }
        RunnerEvent::Started { attempt } => {
            Report::Started(v1::Started { attempt: attempt.to_string() })
        }
        RunnerEvent::TaskEnded { attempt, rank, end } => {
            Report::TaskEnded(task_ended(attempt, rank, &end))
        }
        RunnerEvent::Checkpoint { attempt } => {
            Report::Checkpoint(v1::CheckpointSeen { attempt: attempt.to_string() })
        }
        RunnerEvent::Released { attempt, occupied: left } => Report::Released(v1::Released {
            attempt: attempt.to_string(),
            occupied: occupied(&left),
        }),
    }
}

fn ends(attempt: AttemptId, status: &Status) -> Vec<v1::TaskEnded> {
    status.ended.iter().map(|(rank, end)| task_ended(attempt, *rank, end)).collect()
}

fn task_ended(attempt: AttemptId, rank: u32, end: &TaskEnd) -> v1::TaskEnded {
    v1::TaskEnded { attempt: attempt.to_string(), rank, end: Some(end_to_wire(end)) }
}

fn occupied(left: &[Occupied]) -> Vec<v1::OccupiedGpu> {
    let gpu = |o: &Occupied| v1::OccupiedGpu { uuid: o.gpu.to_string(), pids: o.pids.clone() };
    left.iter().map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_from_outside_are_ours_or_refused() {
        use v1::order::Order as Wire;
        let prepare = v1::Prepare { attempt: "5.2".into(), ranks: 1, ..Default::default() };
        let good = order_from_wire(Wire::Prepare(prepare.clone())).unwrap();
        assert_eq!(good.attempt(), AttemptId::parse("5.2").unwrap());
        let bad = [
            ("attempt", Wire::Stop(v1::Stop { attempt: "../x".into(), grace_ms: 1 })),
            ("attempt", Wire::Forget(v1::Forget::default())),
            ("attempt", Wire::Signal(v1::SignalTasks { attempt: "5".into(), signal: 10 })),
            ("signal", Wire::Signal(v1::SignalTasks { attempt: "5.2".into(), signal: 0 })),
            ("signal", Wire::Signal(v1::SignalTasks { attempt: "5.2".into(), signal: 65 })),
            ("uid", Wire::Prepare(v1::Prepare { uid: Some(1), ..prepare.clone() })),
            ("gpu_uuids", Wire::Prepare(v1::Prepare { gpu_uuids: vec!["a,b".into()], ..prepare })),
            (
                "master_port",
                Wire::Commit(v1::Commit {
                    attempt: "5.2".into(),
                    master_port: 70_000,
                    ..Default::default()
                }),
            ),
        ];
        for (field, order) in bad {
            assert_eq!(order_from_wire(order).unwrap_err().field, field);
        }
        let Order::Prepare(task) = &good else { panic!() };
        assert_eq!((task.gpu_milli, task.is_spare()), (WHOLE_GPU, false));
        for signal in [1, 9, 19, 64] {
            let order = Wire::Signal(v1::SignalTasks { attempt: "5.2".into(), signal });
            let attempt = AttemptId::parse("5.2").unwrap();
            assert_eq!(order_from_wire(order), Ok(Order::Signal { attempt, signal }));
        }
        let endless = Wire::Stop(v1::Stop { attempt: "5.2".into(), grace_ms: u64::MAX });
        let Order::Stop { grace, .. } = order_from_wire(endless).unwrap() else { panic!() };
        assert_eq!(grace, Duration::from_secs(86_400), "a deadline must fit a clock");
    }
}
