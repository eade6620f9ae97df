//! Round trips, and what an agent may not say.

use super::*;

fn inventory() -> NodeInventory {
    let gpu = |index: u32| Gpu {
        id: GpuId::parse(&format!("GPU-{index:04}")).unwrap(),
        index,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory: Bytes::gib(80),
        pci_bus_id: format!("0000:{index:02x}:00.0"),
        numa: Some(0),
        nvlink_group: Some(0),
        nvlink_domain: (index == 0).then(|| "8c1f.1".to_owned()),
        nic: Some("mlx5_0".to_owned()),
        rail: None,
        mig: (index == 7).then(|| MigInstance {
            parent: GpuId::parse("GPU-ffff").unwrap(),
            profile: "1g.10gb".to_owned(),
            memory_slices: 1,
        }),
    };
    let nic = |name: &str, rdma: bool| Nic {
        name: name.to_owned(),
        pci_bus_id: rdma.then(|| "0000:18:00.0".to_owned()),
        numa: None,
        speed_mbps: Some(400_000),
        rdma,
    };
    NodeInventory {
        node: NodeId::parse("n0").unwrap(),
        boot: BootId::parse("5a1c8d2e-0000").unwrap(),
        agent_version: "0.1.0".to_owned(),
        address: "fe80::1%eth0".to_owned(),
        cpus: 112,
        memory: Bytes::gib(2_048),
        driver_version: None,
        gpus: (0..8).map(gpu).collect(),
        nics: vec![nic("mlx5_0", true), nic("eth0", false)],
        labels: [("nvidia.com/gpu.clique", "8c1f.1"), ("disk", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        neighbours: vec!["leaf-3".to_owned(), "leaf-4".to_owned()],
    }
}

fn conditions() -> Vec<GpuCondition> {
    vec![
        GpuCondition::Healthy,
        GpuCondition::Unresponsive,
        GpuCondition::Lost,
        GpuCondition::ResetRequired,
        GpuCondition::Xid { code: 79 },
        GpuCondition::Occupied { pids: vec![1, 2] },
        GpuCondition::Occupied { pids: vec![] },
        GpuCondition::Healthy,
    ]
}

#[test]
fn a_node_survives_the_round_trip() {
    let record = NodeRecord {
        inventory: inventory(),
        state: NodeState::Silent,
        cordon: Some(Cordon { drain: true, by: "ada".to_owned(), reason: "fan".to_owned() }),
        domains: vec![("block".to_owned(), "b0".to_owned()), ("leaf".to_owned(), "l1".to_owned())],
        gpus: conditions()
            .into_iter()
            .enumerate()
            .map(|(i, condition)| GpuRecord {
                condition,
                held_by: (i % 2 == 0).then_some(JobId(i as u64)),
                team: (i % 2 == 0).then(|| TeamId::parse("nlp").unwrap()),
                held_milli: 250,
            })
            .collect(),
        cpus_held: 12,
        last_seen: UnixMillis(-1),
        map_doubts: vec!["it sees leaf-3, the map has it under leaf-4".to_owned()],
    };
    for state in [NodeState::Up, NodeState::Silent, NodeState::Lost] {
        let record = NodeRecord { state, ..record.clone() };
        assert_eq!(node_from_wire(node_to_wire(&record)), Ok(record));
    }
    let mut short = node_to_wire(&record);
    short.gpus.pop();
    assert_eq!(node_from_wire(short).unwrap_err().field, "gpus");
}

#[test]
fn a_machine_without_a_gpu_is_a_node_too() {
    let bare = NodeInventory { gpus: vec![], nics: vec![], ..inventory() };
    assert_eq!(inventory_from_wire(inventory_to_wire(&bare)), Ok(bare));
}

#[test]
fn an_inventory_out_of_bounds_is_refused() {
    type Spoil = fn(&mut v1::Inventory);
    let cases: &[(&str, Spoil)] = &[
        ("node", |i| i.node = "../x".to_owned()),
        ("boot_id", |i| i.boot_id.clear()),
        ("agent_version", |i| i.agent_version = "1".repeat(65)),
        ("address", |i| i.address.clear()),
        ("address", |i| i.address = "a b".to_owned()),
        ("cpus", |i| i.cpus = 0),
        ("driver_version", |i| i.driver_version = Some(String::new())),
        ("gpus", |i| i.gpus = vec![i.gpus[0].clone(); 65]),
        ("gpus", |i| i.gpus[1].uuid = i.gpus[0].uuid.clone()),
        ("nics", |i| i.nics = vec![i.nics[0].clone(); 257]),
        ("nics", |i| i.nics[1].name = i.nics[0].name.clone()),
        ("uuid", |i| i.gpus[0].uuid = "GPU 0".to_owned()),
        ("model", |i| i.gpus[0].model = "x".repeat(129)),
        ("model", |i| i.gpus[0].model = "H100\u{1b}[2J".to_owned()),
        ("pci_bus_id", |i| i.gpus[0].pci_bus_id = "0".repeat(65)),
        ("nvlink_domain", |i| i.gpus[0].nvlink_domain = Some("x".repeat(129))),
        ("name", |i| i.nics[0].name.clear()),
        ("mig.profile", |i| i.gpus[7].mig.as_mut().unwrap().profile.clear()),
        ("mig.parent_uuid", |i| i.gpus[7].mig.as_mut().unwrap().parent_uuid.clear()),
        ("mig.memory_slices", |i| i.gpus[7].mig.as_mut().unwrap().memory_slices = 0),
        ("labels", |i| i.labels = (0..65).map(|n| (n.to_string(), String::new())).collect()),
        ("labels", |i| drop(i.labels.insert("x".repeat(257), String::new()))),
        ("labels", |i| drop(i.labels.insert(String::new(), String::new()))),
        ("labels", |i| drop(i.labels.insert("a b".to_owned(), String::new()))),
        ("labels", |i| drop(i.labels.insert("a=b".to_owned(), String::new()))),
        ("labels.k", |i| drop(i.labels.insert("k".to_owned(), "x".repeat(257)))),
        ("labels.k", |i| drop(i.labels.insert("k".to_owned(), "a\u{1b}[2J".to_owned()))),
        ("labels.k", |i| drop(i.labels.insert("k".to_owned(), "a\u{202e}b".to_owned()))),
        ("neighbours", |i| i.neighbours = (0..65).map(|n| n.to_string()).collect()),
        ("neighbours", |i| i.neighbours[0] = "leaf\n3".to_owned()),
        ("neighbours", |i| i.neighbours[1] = i.neighbours[0].clone()),
    ];
    for (field, spoil) in cases {
        let mut wire = inventory_to_wire(&inventory());
        spoil(&mut wire);
        assert_eq!(inventory_from_wire(wire).expect_err(field).field, *field);
    }
}

#[test]
fn only_what_is_not_healthy_is_reported() {
    let ids = inventory().gpus.into_iter().map(|g| g.id);
    let all: BTreeMap<_, _> = ids.zip(conditions()).collect();
    let unwell: BTreeMap<_, _> = all.clone().into_iter().filter(|(_, c)| !c.is_healthy()).collect();
    let wire = conditions_to_wire(&all);
    assert_eq!(wire.gpus.len(), 6);
    assert_eq!(conditions_from_wire(wire.clone()), Ok(unwell));

    let twice = v1::Conditions { gpus: [wire.gpus.clone(), wire.gpus.clone()].concat() };
    assert_eq!(conditions_from_wire(twice).unwrap_err().field, "gpus");
    let mut strange = wire.clone();
    strange.gpus[0].condition.as_mut().unwrap().word = "tired".to_owned();
    assert_eq!(conditions_from_wire(strange).unwrap_err().field, "condition");
    let mut missing = wire;
    missing.gpus[0].condition = None;
    assert_eq!(conditions_from_wire(missing).unwrap_err().field, "condition");
}
