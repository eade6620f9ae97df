//! The shape of a cluster, drawn from a seed.

use std::collections::BTreeMap;

use tessera_model::{BootId, Bytes, Fabric, Gpu, GpuId, NodeId, NodeInventory, Topology};

use crate::rng::Rng;

#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub nodes: Vec<NodeInventory>,
    pub topology: Topology,
}

impl Shape {
    pub fn draw(rng: &mut Rng) -> Self {
        let (blocks, leaves) = (rng.between(1, 3), rng.between(1, 3));
        let (per_leaf, gpus) = (rng.between(1, 4), *rng.pick(&[1, 2, 4, 8, 8]));
        let mixed = rng.chance(30);
        let nvl = rng.chance(30);
        let (mut nodes, mut paths, mut rows) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for block in 0..blocks {
            for leaf in 0..leaves {
                for _ in 0..per_leaf {
                    let i = nodes.len();
                    let id = NodeId::parse(&format!("n{i:02}")).expect("a plain word");
                    let model = match mixed && rng.chance(40) {
                        true => "NVIDIA A100-SXM4-80GB",
                        false => "NVIDIA H100 80GB HBM3",
                    };
                    let domain = nvl.then(|| format!("4d3c-{block}{leaf}.{}", i / 2 % 2));
                    nodes.push(node(&id, gpus, model, domain.as_deref()));
                    if rng.below(12) > 0 {
                        let path = vec![format!("b{block}"), format!("b{block}l{leaf}")];
                        paths.insert(id.clone(), path);
                    }
                    rows.insert(id, vec![format!("row{}", i % 2)]);
                }
            }
        }
        let mut topology = Topology::net(vec!["block".to_owned(), "leaf".to_owned()], paths);
        if rng.chance(30) {
            topology.fabrics.push(Fabric {
                name: "power".to_owned(),
                levels: vec!["row".to_owned()],
                nodes: rows,
                ..Fabric::default()
            });
        }
        Self { nodes, topology }
    }
}

fn node(id: &NodeId, gpus: u64, model: &str, domain: Option<&str>) -> NodeInventory {
    let gpu = |i: u64| Gpu {
        id: GpuId::parse(&format!("GPU-{id}-{i}")).expect("a plain word"),
        index: i as u32,
        model: model.to_owned(),
        memory: Bytes::gib(80),
        pci_bus_id: format!("0000:{i:02x}:00.0"),
        numa: Some((i / 4) as u32),
        nvlink_group: Some(0),
        nvlink_domain: domain.map(str::to_owned),
        nic: None,
        rail: Some(i as u32),
        mig: None,
    };
    NodeInventory {
        node: id.clone(),
        boot: BootId::parse(&format!("boot-{id}-0")).expect("a plain word"),
        agent_version: "0.1.0".to_owned(),
        address: format!("{id}.example"),
        cpus: 32,
        memory: Bytes::gib(256),
        driver_version: Some("580.95".to_owned()),
        gpus: (0..gpus).map(gpu).collect(),
        nics: Vec::new(),
        labels: BTreeMap::from([("zone".to_owned(), if gpus > 4 { "a" } else { "b" }.to_owned())]),
        neighbours: Vec::new(),
    }
}
