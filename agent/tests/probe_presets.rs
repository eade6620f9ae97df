//! What the agent makes of each simulated machine: groups, domains, NICs, rails, sizes.

mod sim;

use sim::SimNode;
use tessera_agent::probe::{self, nic};
use tessera_model::{Bytes, NodeInventory};
use tessera_nvml_sim::scenario::Preset;

fn inventory(node: &SimNode) -> NodeInventory {
    let open = node.open();
    let count = open.nvml.device_count().unwrap();
    let gpus: Vec<_> =
        (0..count).map(|i| node.try_reader(&open, i).unwrap().facts().clone()).collect();
    let nics: Vec<_> = nic::discover(&node.sysfs()).into_iter().map(|files| files.nic).collect();
    let identity = node.config().identity;
    probe::inventory(&identity, &node.sysfs(), open.driver_version.clone(), &gpus, &nics)
}

/// One line for each GPU: `index numa group nic rail`.
fn picture(node: &NodeInventory) -> Vec<String> {
    let show = |value: Option<u32>| value.map_or("-".to_owned(), |n| n.to_string());
    node.gpus
        .iter()
        .map(|gpu| {
            let nic = gpu.nic.as_deref().unwrap_or("-");
            let (numa, group, rail) = (show(gpu.numa), show(gpu.nvlink_group), show(gpu.rail));
            format!("{} {numa} {group} {nic} {rail}", gpu.index)
        })
        .collect()
}

#[test]
fn each_gpu_of_a_dgx_has_the_nic_of_its_own_switch() {
    let node = inventory(&SimNode::new(Preset::DgxH100));
    let want = [
        "0 0 0 mlx5_0 0",
        "1 0 0 mlx5_1 1",
        "2 0 0 mlx5_2 2",
        "3 0 0 mlx5_3 3",
        "4 1 0 mlx5_4 4",
        "5 1 0 mlx5_5 5",
        "6 1 0 mlx5_6 6",
        "7 1 0 mlx5_7 7",
    ];
    assert_eq!(picture(&node), want);
    assert_eq!(node.gpus[0].nvlink_domain, None, "HGX boards say zeros, which join nothing");
    assert!(node.gpus[0].model.contains("H100"));
    assert!(node.gpus[0].memory > Bytes::gib(70));
    assert!(node.memory > Bytes::gib(1000) && node.cpus > 100, "{node:?}");
    assert!(node.driver_version.is_some());
    assert_eq!(node.nics.iter().filter(|nic| nic.rdma).count(), 8);
    assert!(node.nics.iter().filter(|nic| nic.rdma).all(|nic| nic.speed_mbps == Some(400_000)));
    assert!(node.nics.iter().all(|nic| nic.name != "lo"));
}

#[test]
fn an_a100_board_shares_its_switches() {
    let node = inventory(&SimNode::new(Preset::HgxA100));
    let rows = picture(&node);
    assert_eq!(rows.len(), 8);
    // Two GPUs and two NICs a switch: each GPU gets one of its own, and every rail is used once.
    let mut rails: Vec<_> = node.gpus.iter().map(|gpu| gpu.rail.unwrap()).collect();
    rails.sort_unstable();
    assert_eq!(rails, [0, 1, 2, 3, 4, 5, 6, 7], "{rows:?}");
    for gpu in &node.gpus {
        let nic = node.nics.iter().find(|nic| Some(&nic.name) == gpu.nic.as_ref()).unwrap();
        assert_eq!(gpu.numa, nic.numa, "{rows:?}");
        assert_eq!(gpu.nvlink_group, Some(0));
    }
}

#[test]
fn a_tray_says_which_rack_it_is_in() {
    let tray = |domain: &str| {
        inventory(&SimNode::with(Preset::Gb200Nvl72Tray, |scenario| {
            scenario.node.domain = Some(domain.to_owned());
        }))
    };
    let (one, same, other) = (tray("rack1"), tray("rack1"), tray("rack2"));
    let want = ["0 0 0 mlx5_0 0", "1 0 0 mlx5_1 1", "2 1 0 mlx5_2 2", "3 1 0 mlx5_3 3"];
    assert_eq!(picture(&one), want);
    let domain = |node: &NodeInventory| node.gpus[0].nvlink_domain.clone().unwrap();
    assert!(one.gpus.iter().all(|gpu| gpu.nvlink_domain.as_deref() == Some(&*domain(&one))));
    assert_eq!(domain(&one), domain(&same));
    assert_ne!(domain(&one), domain(&other));
    let (cluster, clique) = one.gpus[0].nvlink_domain.as_deref().unwrap().split_once('.').unwrap();
    assert_eq!(cluster.len(), 36);
    assert!(clique.parse::<u32>().is_ok());
}

#[test]
fn gpus_on_pcie_alone_are_in_no_group() {
    let node = inventory(&SimNode::new(Preset::L40sPcie));
    let want = [
        "0 0 - mlx5_0 0",
        "1 0 - mlx5_0 0",
        "2 0 - mlx5_0 0",
        "3 0 - mlx5_0 0",
        "4 1 - mlx5_1 1",
        "5 1 - mlx5_1 1",
        "6 1 - mlx5_1 1",
        "7 1 - mlx5_1 1",
    ];
    assert_eq!(picture(&node), want);
}

#[test]
fn a_trees_broken_places_cost_only_what_they_say() {
    let node = SimNode::new(Preset::DgxH100);
    let whole = inventory(&node);
    // The tree of one NIC's device is gone, and one GPU's NUMA node cannot be read.
    std::fs::remove_file(node.sysfs().join("class/infiniband/mlx5_3/device")).unwrap();
    let bus_id = &whole.gpus[5].pci_bus_id;
    let numa = node.sysfs().join("bus/pci/devices").join(bus_id).join("numa_node");
    std::fs::write(numa, "?\n").unwrap();
    let broken = inventory(&node);
    assert_eq!(broken.gpus.len(), 8);
    // NVML's CPU mask tells it as well.
    assert_eq!(broken.gpus[5].numa, Some(1));
    assert_ne!(broken.gpus[3].nic.as_deref(), Some("mlx5_3"));
    assert_eq!(broken.gpus[0], whole.gpus[0]);
    assert!(broken.nics.iter().any(|nic| nic.name == "mlx5_3" && nic.pci_bus_id.is_none()));
}
