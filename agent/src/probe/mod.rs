//! What the node has: GPUs, NICs, CPUs, memory, put together.
//!
//! In: sysfs, and what each GPU's own thread read through NVML. Out: a [`NodeInventory`]. Who reads
//! when, and what happens when a reading hangs, is `sampler`'s work.

pub mod host; // CPUs, memory, load
pub mod lldp; // which switches the links end at
pub mod nic; // network devices, from sysfs
pub mod nvml; // GPUs
pub mod nvml_raw; // the calls that nvml-wrapper lacks; all unsafe code
pub mod pci; // which NIC is near which GPU
pub mod xid; // what an XID means

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tessera_model::{BootId, Gpu, Nic, NodeId, NodeInventory};

use nvml::{GpuFacts, Link};

/// What the agent is told about its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    pub node: NodeId,
    pub boot: BootId,
    /// Where other nodes reach this one.
    pub address: String,
    /// What jobs select by, and where the node stands.
    pub labels: BTreeMap<String, String>,
    /// Switches its links end at.
    pub neighbours: Vec<String>,
}

/// The kernel's id of this boot.
pub fn boot_id() -> Option<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    BootId::parse(text.trim()).ok()
}

/// All of the node. `gpus` may be in any order and of any number.
pub fn inventory(
    identity: &NodeIdentity,
    sysfs: &Path,
    driver_version: Option<String>,
    gpus: &[GpuFacts],
    nics: &[Nic],
) -> NodeInventory {
    let host = host::capacity(sysfs);
    NodeInventory {
        node: identity.node.clone(),
        boot: identity.boot.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        address: identity.address.clone(),
        cpus: host.cpus,
        memory: host.memory,
        driver_version,
        gpus: gpu_rows(sysfs, gpus, nics),
        nics: nics.to_vec(),
        labels: identity.labels.clone(),
        neighbours: identity.neighbours.clone(),
    }
}

fn gpu_rows(sysfs: &Path, gpus: &[GpuFacts], nics: &[Nic]) -> Vec<Gpu> {
    let mut facts: Vec<&GpuFacts> = gpus.iter().collect();
    facts.sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
    let groups = nvlink_groups(&facts);
    // Instances of one GPU have its NIC; none takes that of another GPU.
    let mut bus_ids: Vec<String> = facts.iter().map(|gpu| gpu.pci_bus_id.clone()).collect();
    let mut seen = BTreeSet::new();
    bus_ids.retain(|id| seen.insert(id.clone()));
    let pairs = pci::pair(sysfs, &bus_ids, nics);
    let pairs: BTreeMap<&str, _> = bus_ids.iter().map(String::as_str).zip(pairs).collect();
    let pair = |gpu: &GpuFacts| pairs.get(gpu.pci_bus_id.as_str()).cloned().flatten();
    facts
        .into_iter()
        .zip(groups)
        .map(|(gpu, nvlink_group)| (gpu, nvlink_group, pair(gpu)))
        .map(|(gpu, nvlink_group, pair)| Gpu {
            id: gpu.id.clone(),
            index: gpu.index,
            model: gpu.model.clone(),
            memory: gpu.memory,
            pci_bus_id: gpu.pci_bus_id.clone(),
            numa: pci::place(sysfs, &gpu.pci_bus_id)
                .and_then(|place| place.numa)
                .or_else(|| host::numa_of_cpus(sysfs, &gpu.cpus)),
            nvlink_group,
            nvlink_domain: gpu.domain.clone(),
            rail: pair.as_ref().map(|pair| pair.rail),
            nic: pair.map(|pair| pair.nic),
            mig: gpu.mig.clone(),
        })
        .collect()
}

/// Groups of GPUs that reach each other over NVLink, numbered from 0 in the order of their first
/// member: all that are linked to a switch, and whatever hangs together by direct links. A GPU
/// without links, or linked to nothing of this node, is in none.
fn nvlink_groups(gpus: &[&GpuFacts]) -> Vec<Option<u32>> {
    let place: BTreeMap<&str, usize> =
        gpus.iter().enumerate().map(|(i, gpu)| (gpu.pci_bus_id.as_str(), i)).collect();
    // One more node than GPUs: the switch.
    let switch = gpus.len();
    let mut parent: Vec<usize> = (0..=switch).collect();
    fn root(parent: &[usize], mut at: usize) -> usize {
        while parent[at] != at {
            at = parent[at];
        }
        at
    }
    let mut linked = vec![false; gpus.len()];
    for (i, gpu) in gpus.iter().enumerate() {
        for link in &gpu.links {
            // Older drivers do not tell what is at the other end. What is no GPU of this node is an
            // NVSwitch; a link to a GPU of another node goes through one.
            let other = match link {
                Link::Switch => switch,
                Link::Peer(bus_id) => place.get(bus_id.as_str()).copied().unwrap_or(switch),
            };
            if other == i {
                continue;
            }
            linked[i] = true;
            if other != switch {
                linked[other] = true;
            }
            let (a, b) = (root(&parent, i), root(&parent, other));
            parent[a.max(b)] = a.min(b);
        }
    }
    let mut numbers: BTreeMap<usize, u32> = BTreeMap::new();
    (0..gpus.len())
        .map(|i| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            linked[i].then(|| *numbers.entry(root(&parent, i)).or_insert(next))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tessera_model::{Bytes, GpuId};

    use super::*;

    fn gpu(index: u32, links: &[Link]) -> GpuFacts {
        GpuFacts {
            id: GpuId::parse(&format!("GPU-{index}")).unwrap(),
            index,
            model: "NVIDIA H100 80GB HBM3".into(),
            memory: Bytes::gib(80),
            pci_bus_id: format!("0000:{index:02x}:00.0"),
            links: links.to_vec(),
            domain: None,
            cpus: Vec::new(),
            mig: None,
        }
    }

    #[test]
    fn nvlink_groups_follow_the_links() {
        let peer = |index: u32| Link::Peer(format!("0000:{index:02x}:00.0"));
        let cases = [
            ("no links", vec![gpu(0, &[]), gpu(1, &[])], vec![None, None]),
            (
                "all on a switch",
                vec![gpu(0, &[Link::Switch]), gpu(1, &[Link::Switch, Link::Switch])],
                vec![Some(0), Some(0)],
            ),
            (
                "two bridged pairs and one alone",
                vec![
                    gpu(0, &[peer(3)]),
                    gpu(1, &[peer(2)]),
                    gpu(2, &[peer(1)]),
                    gpu(3, &[peer(0)]),
                    gpu(4, &[]),
                ],
                vec![Some(0), Some(1), Some(1), Some(0), None],
            ),
            (
                "a driver that names the switch as a device",
                vec![
                    gpu(0, &[Link::Peer("0000:f0:00.0".into())]),
                    gpu(1, &[Link::Peer("0000:f1:00.0".into())]),
                ],
                vec![Some(0), Some(0)],
            ),
            (
                "one side of a pair is silent",
                vec![gpu(0, &[peer(1)]), gpu(1, &[])],
                vec![Some(0), Some(0)],
            ),
        ];
        for (name, gpus, want) in cases {
            assert_eq!(nvlink_groups(&gpus.iter().collect::<Vec<_>>()), want, "{name}");
        }
    }

    #[test]
    fn a_node_without_gpus_is_a_fine_node() {
        let identity = NodeIdentity {
            node: NodeId::parse("n0").unwrap(),
            boot: boot_id().unwrap(),
            address: "10.0.0.1".into(),
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            neighbours: vec!["leaf-3".into()],
        };
        let node = inventory(&identity, Path::new("/nonexistent"), None, &[], &[]);
        assert!(node.gpus.is_empty() && node.nics.is_empty() && node.cpus > 0);
        assert_eq!((node.labels, node.neighbours), (identity.labels, identity.neighbours));
    }
}
