//! A cluster out of nothing, as regular as a drawing: for measurements, and for plans of clusters
//! that do not stand yet.

use std::collections::BTreeMap;

use tessera_model::{NodeId, Topology};

use super::space::{GpuView, Kind, Sketch, Space};

impl Space {
    /// `blocks` of `leaves` of `nodes` with `gpus` each, empty and healthy: levels `block` and
    /// `leaf`, one NVLink domain a node, two NUMA nodes, a rail for each GPU.
    pub fn grid(blocks: u32, leaves: u32, nodes: u32, gpus: u32) -> Self {
        let gpu = |rail: u32| GpuView {
            model: "nvidia h100 80gb hbm3".to_owned(),
            numa: Some(if rail * 2 < gpus { 0 } else { 1 }),
            nvlink_group: Some(0),
            rail: Some(rail),
            mig: false,
        };
        let kind = Kind { gpus: (0..gpus).map(gpu).collect(), cpus: 128, memory: 2 << 40 };
        let (mut sketches, mut paths) = (Vec::new(), BTreeMap::new());
        for block in 0..blocks {
            for leaf in 0..leaves {
                for node in 0..nodes {
                    let name = format!("b{block:03}-l{leaf:03}-n{node:03}");
                    let id = NodeId::parse(&name).expect("letters, digits and dashes make a name");
                    let path = vec![format!("b{block:03}"), format!("b{block:03}-l{leaf:03}")];
                    paths.insert(id.clone(), path);
                    sketches.push(Sketch { id, kind: kind.clone(), labels: BTreeMap::new() });
                }
            }
        }
        let levels = vec!["block".to_owned(), "leaf".to_owned()];
        Self::sketch(sketches, &Topology::net(levels, paths), &BTreeMap::new())
    }
}
