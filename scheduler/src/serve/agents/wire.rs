//! Reports and orders, to and from the wire.

use std::collections::BTreeMap;

use tessera_core::Order;
use tessera_core::door::agents::{Finished, Hello, Report, Running};
use tessera_model::{AttemptId, Epoch, GpuId, NodeId, Refusal, RefusalKind, SessionId, TaskEnd};
use tessera_proto::jobs::end_from_wire;
use tessera_proto::nodes::{conditions_from_wire, inventory_from_wire};
use tessera_proto::v1;

use super::super::Settings;

/// As many GPUs as a node may have.
const OCCUPIED_MAX: usize = 64;
/// Of each GPU.
const PIDS_KEPT: usize = 64;
const RELEASE: &str = "use agent and scheduler of one release";

/// The first word on a stream; it must be a hello of the node the certificate names.
pub fn hello(first: Option<v1::Report>, node: &NodeId) -> Result<Hello, Refusal> {
    let Some(v1::report::Report::Hello(wire)) = first.and_then(|r| r.report) else {
        return Err(Refusal::invalid("report", "the first word is no hello", RELEASE));
    };
    let inventory = inventory_from_wire(present("hello.inventory", wire.inventory)?)?;
    is_own(&inventory.node, node)?;
    let running = |r: v1::RunningAttempt| {
        Ok(Running {
            attempt: attempt(&r.attempt)?,
            started: r.started,
            master_port: port(r.master_port)?,
            ended: ends(r.ended)?,
        })
    };
    let finished = |f: v1::FinishedAttempt| {
        Ok(Finished {
            attempt: attempt(&f.attempt)?,
            ended: ends(f.ended)?,
            occupied: occupied(f.occupied)?,
        })
    };
    Ok(Hello {
        session: SessionId(wire.session),
        epoch: Epoch(wire.epoch),
        conditions: conditions_from_wire(wire.conditions.unwrap_or_default())?,
        running: wire.running.into_iter().map(running).collect::<Result<_, Refusal>>()?,
        finished: wire.finished.into_iter().map(finished).collect::<Result<_, Refusal>>()?,
        inventory,
    })
}

/// Any later word.
pub fn report(wire: v1::Report, node: &NodeId) -> Result<Report, Refusal> {
    use v1::report::Report as Wire;
    Ok(match present("report", wire.report)? {
        Wire::Hello(_) => {
            return Err(Refusal::invalid("report", "a second hello on one stream", RELEASE));
        }
        Wire::Heartbeat(h) => Report::Heartbeat { sent_boottime_ms: h.sent_boottime_ms },
        Wire::Prepared(p) => {
            Report::Prepared { attempt: attempt(&p.attempt)?, master_port: port(p.master_port)? }
        }
        Wire::Refused(r) => Report::Refused { attempt: attempt(&r.attempt)?, why: r.why },
        Wire::Started(s) => Report::Started { attempt: attempt(&s.attempt)? },
        Wire::TaskEnded(t) => {
            let attempt = attempt(&t.attempt)?;
            Report::TaskEnded { attempt, rank: t.rank, end: end(t.end)? }
        }
        Wire::Checkpoint(c) => Report::Checkpoint { attempt: attempt(&c.attempt)? },
        Wire::Released(r) => {
            Report::Released { attempt: attempt(&r.attempt)?, occupied: occupied(r.occupied)? }
        }
        Wire::Conditions(c) => Report::Conditions(conditions_from_wire(c)?),
        Wire::Inventory(i) => {
            let inventory = inventory_from_wire(i)?;
            is_own(&inventory.node, node)?;
            Report::Inventory(inventory)
        }
    })
}

pub fn order(epoch: Epoch, settings: &Settings, order: Order) -> v1::Order {
    use v1::order::Order as Wire;
    let order = match order {
        Order::Prepare { spec, lease, place, part, array, addresses } => {
            let here = &lease.places[place];
            let gang = &part.shape;
            let node_rank = u32::try_from(place).unwrap_or(u32::MAX);
            Wire::Prepare(v1::Prepare {
                attempt: lease.attempt.to_string(),
                session: here.session.0,
                first_rank: part.first_rank,
                ranks: part.ranks,
                world_size: part.world,
                node_rank,
                nodes: lease.places.iter().map(|p| p.node.to_string()).collect(),
                addresses,
                gpu_uuids: here.gpus.iter().map(GpuId::to_string).collect(),
                cpus_per_task: gang.cpus_per_task,
                memory_bytes: gang.memory_per_node.0,
                argv: spec.program.argv.clone(),
                script: spec.program.script.clone(),
                env: spec.program.env.clone(),
                working_dir: spec.program.working_dir.clone(),
                uid: spec.unix.map(|u| u.uid),
                gid: spec.unix.map(|u| u.gid),
                job_name: spec.name.clone(),
                team: spec.team.to_string(),
                project: spec.project.to_string(),
                user: spec.user.to_string(),
                stop_on_lapse: spec.requeue,
                time_limit_ms: spec.time_limit.map(|t| t.0),
                gpus_per_node: gang.gpus_per_node,
                lapse_grace_ms: settings.lapse_grace.0,
                role: part.role.unwrap_or_default(),
                gpu_milli: here.gpu_milli,
                checkpoint_file: spec.checkpoint.as_ref().and_then(|c| c.file.clone()),
                ranks_of: part.ranks_of,
                array_id: array.map(|a| a.array.0),
                array_index: array.map_or(0, |a| a.index),
            })
        }
        Order::Commit { attempt, master_addr, master_port } => Wire::Commit(v1::Commit {
            attempt: attempt.to_string(),
            master_addr,
            master_port: u32::from(master_port),
        }),
        Order::Stop { attempt, grace } => {
            Wire::Stop(v1::Stop { attempt: attempt.to_string(), grace_ms: grace.0 })
        }
        Order::Signal { attempt, signal } => {
            Wire::Signal(v1::SignalTasks { attempt: attempt.to_string(), signal })
        }
        Order::Forget { attempt } => Wire::Forget(v1::Forget { attempt: attempt.to_string() }),
        Order::Grant { heartbeat_sent_boottime_ms } => {
            Wire::Grant(v1::Grant { heartbeat_sent_boottime_ms, lease_ms: settings.lease.0 })
        }
    };
    v1::Order { epoch: epoch.0, order: Some(order) }
}

fn is_own(said: &NodeId, node: &NodeId) -> Result<(), Refusal> {
    if said == node {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalKind::Denied,
        "inventory.node",
        format!("the certificate is {node}'s and the inventory says {said}"),
        "start the agent under the name it joined with, or join anew with an empty state folder",
    ))
}

fn attempt(text: &str) -> Result<AttemptId, Refusal> {
    AttemptId::parse(text).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        Refusal::invalid("attempt", format!("{shown:?} is no attempt"), RELEASE)
    })
}

/// 0 says that the agent has kept none: it matters on the node of rank 0 only.
fn port(number: u32) -> Result<u16, Refusal> {
    u16::try_from(number)
        .map_err(|_| Refusal::invalid("master_port", format!("{number} is no port"), RELEASE))
}

fn end(wire: Option<v1::TaskEnd>) -> Result<TaskEnd, Refusal> {
    end_from_wire(present("end", wire)?)
}

fn ends(wire: Vec<v1::TaskEnded>) -> Result<Vec<(u32, TaskEnd)>, Refusal> {
    wire.into_iter().map(|t| Ok((t.rank, end(t.end)?))).collect()
}

fn occupied(wire: Vec<v1::OccupiedGpu>) -> Result<BTreeMap<GpuId, Vec<u32>>, Refusal> {
    if wire.len() > OCCUPIED_MAX {
        let message = format!("{} occupied GPUs on one node", wire.len());
        return Err(Refusal::invalid("occupied", message, RELEASE));
    }
    let gpu = |mut o: v1::OccupiedGpu| {
        let id = GpuId::parse(&o.uuid)
            .map_err(|e| Refusal::invalid("occupied.uuid", e.to_string(), RELEASE))?;
        // More would tell nobody more: the GPU is occupied.
        o.pids.truncate(PIDS_KEPT);
        Ok((id, o.pids))
    };
    wire.into_iter().map(gpu).collect()
}

fn present<T>(field: &str, value: Option<T>) -> Result<T, Refusal> {
    value.ok_or_else(|| Refusal::invalid(field, format!("{field} is missing"), RELEASE))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tessera_core::order::Part;
    use tessera_model::{
        Bytes, CheckpointPlan, Gang, JobId, JobSpec, Lease, Millis, Place, Placement, Program,
        ProjectId, TeamId, Tier, UserId,
    };

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    #[test]
    fn the_second_node_of_a_gang_gets_its_ranks_and_its_own_session() {
        let gang = Gang {
            nodes: 2,
            gpus_per_node: 1,
            tasks_per_node: 2,
            cpus_per_task: 3,
            memory_per_node: Bytes(0),
            gpu_model: None,
            gpu_milli: 250,
        };
        let spec = JobSpec {
            name: "train".into(),
            team: TeamId::parse("nlp").unwrap(),
            project: ProjectId::parse("p").unwrap(),
            user: UserId::parse("ana").unwrap(),
            tags: BTreeMap::new(),
            tier: Tier::Normal,
            gang: gang.clone(),
            roles: vec![],
            placement: Placement::default(),
            priority: 0,
            time_limit: Some(Millis(5)),
            requeue: true,
            begin: None,
            after: vec![],
            singleton: false,
            hold: false,
            min_nodes: None,
            spares: 0,
            checkpoint: Some(CheckpointPlan {
                signal: Some(10),
                notice: Millis(1),
                restart_cost: Millis(1),
                file: Some("latest".into()),
                migratable: false,
            }),
            reservation: None,
            program: Program {
                argv: vec!["true".into()],
                script: None,
                env: BTreeMap::new(),
                working_dir: None,
            },
            unix: None,
        };
        let place = |name: &str, session| Place {
            node: node(name),
            session: SessionId(session),
            gpus: vec![GpuId::parse(&format!("GPU-{name}")).unwrap()],
            cpus: 6,
            memory: Bytes(0),
            gpu_milli: 250,
        };
        let lease = Lease {
            attempt: AttemptId { job: JobId(9), number: 2 },
            epoch: Epoch(3),
            places: vec![place("a", 11), place("b", 22)],
            nodes: 2,
        };
        let part = Part {
            first_rank: 2,
            ranks: 2,
            world: 4,
            role: Some("leader".into()),
            shape: gang,
            ranks_of: vec![2, 2],
        };
        let prepare = Order::Prepare {
            spec: Arc::new(spec),
            lease: Arc::new(lease),
            place: 1,
            part,
            array: None,
            addresses: vec!["10.0.0.1".into(), "10.0.0.2".into()],
        };
        let settings =
            Settings { heartbeat: Millis(1), lease: Millis(7), lapse_grace: Millis(3), dev: false };
        let wire = order(Epoch(4), &settings, prepare);
        assert_eq!(wire.epoch, 4);
        let Some(v1::order::Order::Prepare(p)) = wire.order else { panic!("{wire:?}") };
        assert_eq!((p.attempt.as_str(), p.session), ("9.2", 22));
        assert_eq!((p.first_rank, p.ranks, p.world_size, p.node_rank), (2, 2, 4, 1));
        assert_eq!((p.nodes, p.gpu_uuids), (vec!["a".into(), "b".into()], vec!["GPU-b".into()]));
        assert!(p.stop_on_lapse);
        assert_eq!(p.time_limit_ms, Some(5));
        assert_eq!((p.role.as_str(), p.gpu_milli, p.gpus_per_node), ("leader", 250, 1));
        assert_eq!((p.checkpoint_file.as_deref(), p.ranks_of), (Some("latest"), vec![2, 2]));
        let signal = order(
            Epoch(4),
            &settings,
            Order::Signal { attempt: AttemptId { job: JobId(9), number: 2 }, signal: 12 },
        );
        let Some(v1::order::Order::Signal(s)) = signal.order else { panic!("{signal:?}") };
        assert_eq!((s.attempt.as_str(), s.signal), ("9.2", 12));
        let grant = order(Epoch(4), &settings, Order::Grant { heartbeat_sent_boottime_ms: 8 });
        let Some(v1::order::Order::Grant(g)) = grant.order else { panic!("{grant:?}") };
        assert_eq!((g.heartbeat_sent_boottime_ms, g.lease_ms), (8, 7));
    }

    #[test]
    fn what_is_no_hello_of_this_node_is_refused() {
        use v1::report::Report as Wire;
        let inventory = |name: &str| v1::Inventory {
            node: name.into(),
            boot_id: "boot".into(),
            agent_version: "0.1.0".into(),
            address: "10.0.0.1".into(),
            cpus: 8,
            memory_bytes: 1 << 30,
            ..Default::default()
        };
        let hello_of = |name: &str| {
            let inventory = Some(inventory(name));
            v1::Report { report: Some(Wire::Hello(v1::Hello { inventory, ..Default::default() })) }
        };
        let heartbeat = v1::Report { report: Some(Wire::Heartbeat(v1::Heartbeat::default())) };
        let bare = v1::Report { report: Some(Wire::Hello(v1::Hello::default())) };
        for (what, first) in [
            ("nothing", None),
            ("an empty report", Some(v1::Report::default())),
            ("a heartbeat", Some(heartbeat)),
            ("no inventory", Some(bare)),
            ("another node", Some(hello_of("n1"))),
        ] {
            assert!(hello(first, &node("n0")).is_err(), "{what}");
        }
        assert!(hello(Some(hello_of("n0")), &node("n0")).is_ok());
        let inventory = Some(inventory("n0"));
        let older = v1::Hello { inventory, epoch: 9, session: 8, ..Default::default() };
        let older = v1::Report { report: Some(Wire::Hello(older)) };
        let older = hello(Some(older), &node("n0")).unwrap();
        assert_eq!((older.epoch, older.session), (Epoch(9), SessionId(8)));
        assert!(report(hello_of("n0"), &node("n0")).is_err(), "a second hello");
    }

    #[test]
    fn what_an_agent_says_of_strange_processes_is_bounded() {
        use v1::report::Report as Wire;
        let released = |gpus: usize, pids: u32| {
            let gpu = |i| v1::OccupiedGpu { uuid: format!("GPU-{i}"), pids: (1..=pids).collect() };
            let occupied = (0..gpus).map(gpu).collect();
            let report = Wire::Released(v1::Released { attempt: "9.2".into(), occupied });
            report_of(report)
        };
        let most = released(64, 1_000).unwrap();
        let Report::Released { occupied, .. } = most else { panic!("{most:?}") };
        assert_eq!(occupied.len(), 64);
        assert!(occupied.values().all(|pids| pids.len() == 64 && pids[0] == 1));
        assert!(released(65, 1).is_err());
    }

    fn report_of(wire: v1::report::Report) -> Result<Report, Refusal> {
        report(v1::Report { report: Some(wire) }, &node("n0"))
    }

    #[test]
    fn bad_values_in_a_report_are_refused() {
        use v1::report::Report as Wire;
        let prepared = |attempt: &str, port| {
            let report =
                Wire::Prepared(v1::Prepared { attempt: attempt.into(), master_port: port });
            v1::Report { report: Some(report) }
        };
        for (attempt, port, fine) in [
            ("9.2", 4_000, true),
            ("9", 4_000, false),
            ("", 4_000, false),
            ("9.2", 0, true),
            ("9.2", 65_536, false),
        ] {
            let got = report(prepared(attempt, port), &node("n0"));
            assert_eq!(got.is_ok(), fine, "{attempt:?} {port}");
        }
        let seen = |attempt: &str| {
            report_of(Wire::Checkpoint(v1::CheckpointSeen { attempt: attempt.into() }))
        };
        let wanted = Report::Checkpoint { attempt: AttemptId { job: JobId(9), number: 2 } };
        assert_eq!(seen("9.2"), Ok(wanted));
        assert!(seen("9").is_err());
    }
}
