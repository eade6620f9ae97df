//! The node's `sys/` tree: PCI, NUMA, CPUs, network and RDMA devices.
//!
//! In: [`Hardware`]. Out: files and relative links below one folder, laid out as Linux does, so
//! that the distance between a GPU and a NIC can be read from real paths. What is already there
//! stays, since `nics` keeps counters in these files.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::hardware::{Hardware, LinkLayer, NicHw, PciPath};

/// Counters of an InfiniBand port, all 0 at first.
pub const IB_COUNTERS: [&str; 16] = [
    "port_xmit_data",
    "port_rcv_data",
    "port_xmit_packets",
    "port_rcv_packets",
    "port_xmit_wait",
    "port_xmit_discards",
    "port_rcv_errors",
    "link_downed",
    "link_error_recovery",
    "symbol_error",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "VL15_dropped",
    "port_rcv_remote_physical_errors",
    "port_rcv_constraint_errors",
    "port_xmit_constraint_errors",
];

pub const HW_COUNTERS: [&str; 16] = [
    "np_cnp_sent",
    "np_ecn_marked_roce_packets",
    "rp_cnp_handled",
    "rp_cnp_ignored",
    "out_of_sequence",
    "packet_seq_err",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "out_of_buffer",
    "implied_nak_seq_err",
    "rx_icrc_encapsulated",
    "roce_adp_retrans",
    "req_cqe_error",
    "resp_cqe_error",
    "duplicate_request",
    "rx_read_requests",
];

pub const NET_STATISTICS: [&str; 12] = [
    "rx_bytes",
    "tx_bytes",
    "rx_packets",
    "tx_packets",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "rx_crc_errors",
    "rx_missed_errors",
    "collisions",
    "multicast",
];

/// Writes a file unless it is there.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, format!("{text}\n"))
}

/// Makes a link at `at` to `to`, both below `root`, relative so that the tree can be moved.
fn link(root: &Path, at: &str, to: &str) -> io::Result<()> {
    let path = root.join(at);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let up = "../".repeat(at.matches('/').count());
    symlink(format!("{up}{to}"), path)
}

/// `devices/pci0000:15/0000:15:01.0/...` of a device.
pub fn device_dir(path: &PciPath) -> String {
    let chain: Vec<_> = path.chain.iter().map(ToString::to_string).collect();
    format!("devices/pci{:04x}:{:02x}/{}", path.host.0, path.host.1, chain.join("/"))
}

/// The folder of a NIC's InfiniBand port, below the sysfs root.
pub fn port_dir(nic: &NicHw) -> Option<String> {
    let ibdev = nic.ibdev.as_ref()?;
    Some(format!("{}/infiniband/{ibdev}/ports/1", device_dir(&nic.path)))
}

/// The folder of a NIC's network interface, below the sysfs root.
pub fn net_dir(nic: &NicHw) -> String {
    format!("{}/net/{}", device_dir(&nic.path), nic.netdev)
}

struct PciFacts {
    vendor: u32,
    device: u32,
    class: u32,
    speed: &'static str,
}

fn pci_device(
    root: &Path,
    hardware: &Hardware,
    path: &PciPath,
    facts: &PciFacts,
) -> io::Result<()> {
    let cpulist = hardware.cpulist_of(path.numa);
    let mut dir = format!("devices/pci{:04x}:{:02x}", path.host.0, path.host.1);
    for (depth, addr) in path.chain.iter().enumerate() {
        dir = format!("{dir}/{addr}");
        let here = root.join(&dir);
        let last = depth + 1 == path.chain.len();
        let (vendor, device, class) = if last {
            (facts.vendor, facts.device, facts.class)
        } else {
            (0x1000, 0xc030, 0x06_0400)
        };
        put(&here.join("numa_node"), &path.numa.to_string())?;
        put(&here.join("local_cpulist"), &cpulist)?;
        put(&here.join("vendor"), &format!("0x{vendor:04x}"))?;
        put(&here.join("device"), &format!("0x{device:04x}"))?;
        put(&here.join("class"), &format!("0x{class:06x}"))?;
        for name in ["current_link_speed", "max_link_speed"] {
            put(&here.join(name), facts.speed)?;
        }
        for name in ["current_link_width", "max_link_width"] {
            put(&here.join(name), "16")?;
        }
        link(root, &format!("bus/pci/devices/{addr}"), &dir)?;
    }
    Ok(())
}

fn network(root: &Path, nic: &NicHw, carrier_changes: u32) -> io::Result<()> {
    let dir = net_dir(nic);
    let here = root.join(&dir);
    for (name, text) in [
        ("operstate", "up".to_owned()),
        ("carrier", "1".to_owned()),
        ("carrier_changes", carrier_changes.to_string()),
        ("speed", (nic.gbps * 1000).to_string()),
        ("mtu", if nic.layer == LinkLayer::InfiniBand { "4092" } else { "9000" }.to_owned()),
        ("duplex", "full".to_owned()),
        ("type", if nic.layer == LinkLayer::InfiniBand { "32" } else { "1" }.to_owned()),
        ("address", mac(nic.guid)),
        ("phys_port_name", "p0".to_owned()),
    ] {
        put(&here.join(name), &text)?;
    }
    for name in NET_STATISTICS {
        put(&here.join("statistics").join(name), "0")?;
    }
    link(root, &format!("{dir}/device"), &device_dir(&nic.path))?;
    link(root, &format!("class/net/{}", nic.netdev), &dir)
}

fn mac(guid: u64) -> String {
    let b = guid.to_be_bytes();
    let bytes: Vec<_> =
        [b[0], b[1], b[2], b[5], b[6], b[7]].iter().map(|x| format!("{x:02x}")).collect();
    bytes.join(":")
}

fn guid_text(guid: u64) -> String {
    format!(
        "{:04x}:{:04x}:{:04x}:{:04x}",
        guid >> 48,
        (guid >> 32) & 0xffff,
        (guid >> 16) & 0xffff,
        guid & 0xffff
    )
}

fn rdma(root: &Path, nic: &NicHw) -> io::Result<()> {
    let (Some(ibdev), Some(port)) = (&nic.ibdev, port_dir(nic)) else { return Ok(()) };
    let dir = format!("{}/infiniband/{ibdev}", device_dir(&nic.path));
    let here = root.join(&dir);
    for (name, text) in [
        ("node_guid", guid_text(nic.guid)),
        ("sys_image_guid", guid_text(nic.guid)),
        ("fw_ver", if nic.hca == "MT4123" { "20.43.1014" } else { "28.43.1014" }.to_owned()),
        ("hca_type", nic.hca.to_owned()),
        ("board_id", "MT_0000000838".to_owned()),
        ("node_type", "1: CA".to_owned()),
    ] {
        put(&here.join(name), &text)?;
    }
    let here = root.join(&port);
    let ib = nic.layer == LinkLayer::InfiniBand;
    for (name, text) in [
        ("state", "4: ACTIVE".to_owned()),
        ("phys_state", "5: LinkUp".to_owned()),
        ("rate", format!("{} Gb/sec ({})", nic.gbps, nic.width)),
        ("link_layer", if ib { "InfiniBand" } else { "Ethernet" }.to_owned()),
        ("lid", if ib { format!("0x{:x}", 16 + nic.guid % 4096) } else { "0x0".to_owned() }),
        ("sm_lid", if ib { "0x1" } else { "0x0" }.to_owned()),
        ("gids/0", format!("fe80:0000:0000:0000:{}", guid_text(nic.guid))),
        ("gid_attrs/types/0", if ib { "IB/RoCE v1" } else { "RoCE v2" }.to_owned()),
        ("gid_attrs/ndevs/0", nic.netdev.clone()),
        ("hw_counters/lifespan", "10".to_owned()),
    ] {
        put(&here.join(name), &text)?;
    }
    for name in IB_COUNTERS {
        put(&here.join("counters").join(name), "0")?;
    }
    for name in HW_COUNTERS {
        put(&here.join("hw_counters").join(name), "0")?;
    }
    link(root, &format!("{dir}/device"), &device_dir(&nic.path))?;
    link(root, &format!("class/infiniband/{ibdev}"), &dir)
}

fn cpus_and_memory(root: &Path, hardware: &Hardware) -> io::Result<()> {
    let cpu = root.join("devices/system/cpu");
    let all = format!("0-{}", hardware.cpus() - 1);
    for name in ["present", "possible", "online"] {
        put(&cpu.join(name), &all)?;
    }
    let numa = root.join("devices/system/node");
    let nodes = format!("0-{}", hardware.numa_nodes - 1);
    for name in ["online", "possible"] {
        put(&numa.join(name), &nodes)?;
    }
    let kib = hardware.mem_gib * 1024 * 1024 / u64::from(hardware.numa_nodes);
    for n in 0..hardware.numa_nodes {
        let here: PathBuf = numa.join(format!("node{n}"));
        put(&here.join("cpulist"), &hardware.cpulist_of(n))?;
        put(
            &here.join("meminfo"),
            &format!(
                "Node {n} MemTotal:       {kib} kB\nNode {n} MemFree:        {} kB\nNode {n} MemUsed:        {} kB",
                kib - kib / 32,
                kib / 32
            ),
        )?;
        let distances: Vec<_> =
            (0..hardware.numa_nodes).map(|m| if m == n { "10" } else { "21" }).collect();
        put(&here.join("distance"), &distances.join(" "))?;
    }
    Ok(())
}

/// Writes the whole tree below `root`; files that are there already are left alone.
pub fn write(root: &Path, hardware: &Hardware) -> io::Result<()> {
    for gpu in &hardware.gpus {
        let speed = match gpu.spec.pcie_gen {
            5 => "32.0 GT/s PCIe",
            _ => "16.0 GT/s PCIe",
        };
        let facts = PciFacts {
            vendor: 0x10de,
            device: gpu.spec.pci_device_id >> 16,
            class: 0x03_0200,
            speed,
        };
        pci_device(root, hardware, &gpu.path, &facts)?;
    }
    for nic in &hardware.nics {
        let (class, speed) = (
            if nic.layer == LinkLayer::InfiniBand { 0x02_0700 } else { 0x02_0000 },
            if nic.gbps == 400 { "32.0 GT/s PCIe" } else { "16.0 GT/s PCIe" },
        );
        let facts = PciFacts { vendor: 0x15b3, device: nic.pci_device, class, speed };
        pci_device(root, hardware, &nic.path, &facts)?;
        network(root, nic, 1)?;
        rdma(root, nic)?;
    }
    let facts = PciFacts {
        vendor: 0x8086,
        device: hardware.mgmt.pci_device,
        class: 0x02_0000,
        speed: "8.0 GT/s PCIe",
    };
    pci_device(root, hardware, &hardware.mgmt.path, &facts)?;
    network(root, &hardware.mgmt, 1)?;
    // The loopback interface has no device behind it; a reader has to skip it.
    let lo = root.join("devices/virtual/net/lo");
    for (name, text) in
        [("operstate", "unknown"), ("mtu", "65536"), ("address", "00:00:00:00:00:00")]
    {
        put(&lo.join(name), text)?;
    }
    for name in NET_STATISTICS {
        put(&lo.join("statistics").join(name), "0")?;
    }
    link(root, "class/net/lo", "devices/virtual/net/lo")?;
    cpus_and_memory(root, hardware)
}
