//! A small cluster at one instant, for golden files and for the fake scheduler.
#![allow(dead_code)] // Each test program uses its part.

use std::collections::BTreeMap;

use tessera_model::*;

pub fn now() -> UnixMillis {
    UnixMillis::parse_date("2026-11-24").unwrap().plus(Millis(43_200_000))
}

pub fn ago(text: &str) -> UnixMillis {
    UnixMillis(now().0 - i64::try_from(Millis::parse(text).unwrap().0).unwrap())
}

pub fn job(id: u64, name: &str, team: &str, nodes: u32, gpus: u32, state: JobState) -> JobRecord {
    JobRecord {
        id: JobId(id),
        spec: JobSpec {
            name: name.to_owned(),
            team: TeamId::parse(team).unwrap(),
            project: ProjectId::parse("default").unwrap(),
            user: UserId::parse("ada").unwrap(),
            tags: BTreeMap::new(),
            gang: Gang {
                nodes,
                gpus_per_node: gpus,
                tasks_per_node: gpus.max(1),
                cpus_per_task: 1,
                memory_per_node: Bytes(0),
                gpu_model: None,
                gpu_milli: WHOLE_GPU,
            },
            tier: Tier::Normal,
            roles: vec![],
            placement: Placement::default(),
            priority: 0,
            time_limit: None,
            requeue: false,
            begin: None,
            after: vec![],
            singleton: false,
            hold: false,
            min_nodes: None,
            spares: 0,
            checkpoint: None,
            reservation: None,
            program: Program {
                argv: vec!["python".to_owned(), "train.py".to_owned()],
                script: None,
                env: BTreeMap::new(),
                working_dir: Some("/home/ada".to_owned()),
            },
            unix: None,
        },
        state,
        submitted_at: ago("3h"),
        started_at: None,
        ended_at: None,
        exit_code: None,
        reason: String::new(),
        attempt: None,
        nodes: vec![],
        cancel_requested: false,
        held: false,
        array: None,
        eligible_at: None,
        promised_at: None,
        last_checkpoint_at: None,
        preemptions: 0,
        certificate: None,
    }
}

/// A job with every wish there is.
pub fn wishful() -> JobRecord {
    let level = str::to_owned;
    let node = |n: &str| NodeId::parse(n).unwrap();
    let mut job = job(830, "moe", "nlp", 4, 8, JobState::Running);
    job.spec.tier = Tier::Urgent;
    job.spec.placement = Placement {
        within: vec![Within { level: level("block"), strength: Strength::Required }],
        slices: vec![Slice { nodes: 2, level: level("leaf"), strength: Strength::Preferred }],
        at_most: vec![AtMost { domains: 2, level: level("leaf") }],
        spread: vec![Spread { level: level("leaf"), max_skew: 1 }],
        balance: Some(level("leaf")),
        patience: Some(Millis(2_700_000)),
        labels: vec![LabelRule {
            key: level("pool"),
            op: LabelOp::In,
            values: vec![level("a"), level("b")],
        }],
        only: (1..=5).map(|n| node(&format!("n0{n}"))).collect(),
        exclude: [node("n09")].into(),
    };
    let gang = Gang {
        nodes: 1,
        gpus_per_node: 1,
        tasks_per_node: 1,
        gpu_milli: 250,
        ..job.spec.gang.clone()
    };
    job.spec.roles =
        vec![JobRole { name: "leader".to_owned(), gang, placement: Placement::default() }];
    job.spec.begin = Some(ago("4h"));
    job.spec.after = vec![Dependency { job: JobId(812), kind: DependencyKind::AfterOk }];
    job.spec.singleton = true;
    job.spec.min_nodes = Some(2);
    job.spec.spares = 1;
    job.spec.reservation = Some("course".to_owned());
    job.spec.checkpoint = Some(CheckpointPlan {
        signal: Some(10),
        notice: Millis(300_000),
        restart_cost: Millis(360_000),
        file: Some("ckpt/latest".to_owned()),
        migratable: true,
    });
    job.array = Some(ArrayTask { array: JobId(823), index: 7 });
    job.attempt = AttemptId::parse("830.2");
    job.started_at = Some(ago("1h"));
    job.eligible_at = Some(ago("2h"));
    job.promised_at = Some(ago("50m"));
    job.last_checkpoint_at = Some(ago("5m"));
    job.preemptions = 1;
    job.nodes = ["n01", "n02", "n10", "n11", "n03", "n04"].map(node).to_vec();
    job.certificate = Some(Certificate {
        revision: Revision(4_711),
        optimality: Optimality::Bound { percent: 12 },
        spans: [("block", 1, 1), ("leaf", 2, 1), ("node", 4, 4)]
            .map(|(l, domains, least)| Span { level: level(l), domains, least })
            .to_vec(),
        given_up: vec!["slice 2:leaf".to_owned()],
    });
    job
}

/// Tasks of an array: two that run, one that failed, one held, and the rest waiting or done.
pub fn array() -> Vec<JobRecord> {
    let task = |index: u32, state| {
        let id = 900 + u64::from(index);
        let mut job = job(id, "sweep", "nlp", 1, 1, state);
        job.array = Some(ArrayTask { array: JobId(900), index });
        job.spec.tier = Tier::Idle;
        job
    };
    let mut tasks: Vec<JobRecord> = (0..3).map(|i| task(i, JobState::Succeeded)).collect();
    let failed = JobRecord {
        reason: "rank 0 exited with 1".to_owned(),
        ended_at: Some(ago("2h")),
        ..task(3, JobState::Failed)
    };
    tasks.push(failed);
    for index in [4, 5] {
        tasks.push(JobRecord { started_at: Some(ago("10m")), ..task(index, JobState::Running) });
    }
    for index in (6..100).filter(|i| *i != 50) {
        tasks.push(JobRecord {
            reason: "waits while 2 tasks of array 900 run, as many as may".to_owned(),
            promised_at: (index == 6).then(|| UnixMillis(now().0 + 3_600_000)),
            ..task(index, JobState::Pending)
        });
    }
    let reason = "is held back; `tessera release` lets it go".to_owned();
    tasks.push(JobRecord { held: true, reason, ..task(50, JobState::Pending) });
    tasks
}

pub fn queue() -> Vec<JobRecord> {
    let pretrain = JobRecord {
        started_at: Some(ago("2h14m")),
        attempt: AttemptId::parse("812.1"),
        nodes: (1..=8).map(|n| NodeId::parse(&format!("n0{n}")).unwrap()).collect(),
        ..job(812, "pretrain-70b", "nlp", 8, 8, JobState::Running)
    };
    let mut full = pretrain.clone();
    full.spec.gang.gpu_model = Some("h100".to_owned());
    full.spec.gang.memory_per_node = Bytes::gib(180);
    full.spec.placement.within = vec![
        Within { level: "block".to_owned(), strength: Strength::Required },
        Within { level: "leaf".to_owned(), strength: Strength::Preferred },
    ];
    full.spec.time_limit = Some(Millis::DAY);
    full.spec.tags = BTreeMap::from([("cost_center".to_owned(), "4711".to_owned())]);
    full.spec.program.env = BTreeMap::from([("NCCL_DEBUG".to_owned(), "WARN".to_owned())]);
    let finetune = JobRecord {
        submitted_at: ago("4m"),
        reason: "needs 4 nodes with 8 free GPUs each in one leaf, the best (leaf-2) has 2"
            .to_owned(),
        ..job(817, "finetune", "vision", 4, 8, JobState::Pending)
    };
    let hostile = JobRecord {
        submitted_at: ago("90s"),
        reason: "2 jobs stand before it".to_owned(),
        ..job(821, "ablate\x1b[2J\n", "nlp", 1, 1, JobState::Pending)
    };
    let failed = JobRecord {
        started_at: Some(ago("50m")),
        ended_at: Some(ago("20m")),
        exit_code: Some(137),
        attempt: AttemptId::parse("811.1"),
        nodes: vec![NodeId::parse("n10").unwrap()],
        reason: "rank 3 ran out of memory and was killed (signal 9)".to_owned(),
        ..job(811, "eval", "nlp", 1, 8, JobState::Failed)
    };
    vec![full, finetune, hostile, failed]
}

pub fn node(name: &str, leaf: &str, held: &[Option<u64>]) -> NodeRecord {
    let gpus = (0..8)
        .map(|i| Gpu {
            id: GpuId::parse(&format!("GPU-{name}-{i}")).unwrap(),
            index: i,
            model: "NVIDIA H100 80GB HBM3".to_owned(),
            memory: Bytes::gib(80),
            pci_bus_id: format!("0000:{i:02x}:00.0"),
            numa: Some(i / 4),
            nvlink_group: Some(0),
            nvlink_domain: None,
            nic: Some(format!("mlx5_{i}")),
            rail: Some(i),
            mig: None,
        })
        .collect();
    NodeRecord {
        inventory: NodeInventory {
            node: NodeId::parse(name).unwrap(),
            boot: BootId::parse("b1").unwrap(),
            agent_version: "0.1.0".to_owned(),
            address: format!("{name}.hall"),
            cpus: 192,
            memory: Bytes::gib(2048),
            driver_version: Some("580.95".to_owned()),
            gpus,
            nics: vec![Nic {
                name: "mlx5_0".to_owned(),
                pci_bus_id: None,
                numa: Some(0),
                speed_mbps: Some(400_000),
                rdma: true,
            }],
            labels: [("pool".to_owned(), "a".to_owned())].into(),
            neighbours: vec![],
        },
        state: NodeState::Up,
        cordon: None,
        domains: vec![("block".to_owned(), "b0".to_owned()), ("leaf".to_owned(), leaf.to_owned())],
        map_doubts: vec![],
        gpus: (0..8)
            .map(|i| GpuRecord {
                condition: GpuCondition::Healthy,
                held_by: held.get(i).copied().flatten().map(JobId),
                team: held.get(i).copied().flatten().map(|_| TeamId::parse("nlp").unwrap()),
                held_milli: if held.get(i).copied().flatten().is_some() { WHOLE_GPU } else { 0 },
            })
            .collect(),
        cpus_held: 12 * u32::try_from(held.iter().flatten().count()).unwrap(),
        last_seen: ago("1s"),
    }
}

pub fn nodes() -> Vec<NodeRecord> {
    let mut drained = node("n09", "leaf-2", &[]);
    drained.cordon =
        Some(Cordon { drain: true, by: "olga".to_owned(), reason: "new firmware".to_owned() });
    drained.gpus[2].condition = GpuCondition::Xid { code: 79 };
    let mut silent = node("n11", "leaf-2", &[Some(815)]);
    silent.state = NodeState::Silent;
    vec![
        node("n01", "leaf-1", &[Some(812); 8]),
        drained,
        node("n10", "leaf-2", &[Some(815), Some(815), None, Some(816)]),
        silent,
    ]
}
