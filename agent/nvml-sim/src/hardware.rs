//! What each preset is made of: GPUs, NICs, CPUs, and where they sit on PCI.
//!
//! In: the `[node]` section. Out: [`Hardware`], which never changes while the node lives. Figures
//! are the public ones of the machines named. Distances follow from the PCI tree here, and the
//! same tree is written to `sys/`, so NVML and sysfs cannot contradict each other.

pub mod mig; // how a GPU may be cut
pub mod models; // the GPU models

use std::fmt;

pub use crate::hardware::mig::MigHw;
pub use crate::hardware::models::GpuSpec;
use crate::hardware::models::{A100, GB200, H100, L40S};
use crate::identity;
use crate::scenario::{NodeSection, Preset};

/// A PCI function, always function 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddr {
    pub domain: u32,
    pub bus: u32,
    pub device: u32,
}

impl PciAddr {
    /// `00000000:1A:00.0`, as NVML writes it.
    pub fn nvml(self) -> String {
        format!("{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }

    /// Reads both NVML's and sysfs' form.
    pub fn parse(text: &str) -> Option<Self> {
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, _function) = rest.split_once('.').unwrap_or((rest, "0"));
        let hex = |s| u32::from_str_radix(s, 16).ok();
        Some(Self { domain: hex(domain)?, bus: hex(bus)?, device: hex(device)? })
    }
}

impl fmt::Display for PciAddr {
    /// `0000:1a:00.0`, as sysfs writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.0", self.domain, self.bus, self.device)
    }
}

/// Where a device sits: its host bridge, the bridges on the way, itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciPath {
    pub host: (u32, u32),
    pub chain: Vec<PciAddr>,
    pub numa: u32,
}

impl PciPath {
    pub fn addr(&self) -> PciAddr {
        self.chain[self.chain.len() - 1]
    }
}

/// How far two devices are from each other. The numbers are NVML's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Distance {
    Internal = 0,
    Single = 10,
    Multiple = 20,
    HostBridge = 30,
    Node = 40,
    System = 50,
}

pub fn distance(a: &PciPath, b: &PciPath) -> Distance {
    if a == b {
        return Distance::Internal;
    }
    if a.host != b.host {
        return if a.numa == b.numa { Distance::Node } else { Distance::System };
    }
    let common = a.chain.iter().zip(&b.chain).take_while(|(x, y)| x == y).count();
    if common == 0 {
        return Distance::HostBridge;
    }
    // Below a switch's upstream port each device has a downstream port of its own: one bridge.
    let bridges = |p: &PciPath| p.chain.len() - common - 1;
    if bridges(a) <= 1 && bridges(b) <= 1 { Distance::Single } else { Distance::Multiple }
}

#[derive(Debug)]
pub struct GpuHw {
    pub index: usize,
    pub spec: &'static GpuSpec,
    pub uuid: String,
    pub serial: String,
    pub path: PciPath,
    /// `Some`: MIG is on, and these are its instances.
    pub mig: Option<Vec<MigHw>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    InfiniBand,
    Ethernet,
}

#[derive(Debug)]
pub struct NicHw {
    pub index: usize,
    /// `mlx5_0`; `None` for a plain Ethernet port.
    pub ibdev: Option<String>,
    pub netdev: String,
    pub path: PciPath,
    pub layer: LinkLayer,
    pub gbps: u32,
    /// The text after the rate: `4X NDR`.
    pub width: &'static str,
    pub hca: &'static str,
    pub pci_device: u32,
    pub guid: u64,
}

#[derive(Debug)]
pub struct Hardware {
    pub preset: Preset,
    pub gpus: Vec<GpuHw>,
    /// The rail NICs, in PCI order.
    pub nics: Vec<NicHw>,
    /// The port the node is managed through.
    pub mgmt: NicHw,
    pub numa_nodes: u32,
    pub cores_per_node: u32,
    pub threads: u32,
    pub mem_gib: u64,
    pub driver_version: String,
    /// `None` where the GPUs have no fabric. All zero: there is one, but no multi-node domain.
    pub cluster_uuid: Option<[u8; 16]>,
    pub tray: u8,
    pub domain: String,
}

fn pci(domain: u32, bus: u32, device: u32) -> PciAddr {
    PciAddr { domain, bus, device }
}

/// The paths of a preset's GPUs and rail NICs.
fn layout(preset: Preset) -> (Vec<PciPath>, Vec<PciPath>) {
    let (mut gpus, mut nics) = (Vec::new(), Vec::new());
    match preset {
        // Pairs of GPUs below one switch; under it each GPU shares a second switch with its rail NIC.
        Preset::DgxH100 => {
            for (pair, base) in [0x15, 0x4d, 0x98, 0xc9].into_iter().enumerate() {
                let numa = pair as u32 / 2;
                for child in 0..2 {
                    let inner = base + 3 + child * 4;
                    let trunk = [
                        pci(0, base, 1),
                        pci(0, base + 1, 0),
                        pci(0, base + 2, child),
                        pci(0, inner, 0),
                    ];
                    for (slot, out) in [&mut gpus, &mut nics].into_iter().enumerate() {
                        let slot = slot as u32;
                        let mut chain = trunk.to_vec();
                        chain.extend([pci(0, inner + 1, slot), pci(0, inner + 2 + slot, 0)]);
                        out.push(PciPath { host: (0, base), chain, numa });
                    }
                }
            }
        }
        // Two GPUs on one switch, their two NICs on its neighbour.
        Preset::HgxA100 => {
            for (pair, base) in [0x07, 0x41, 0x81, 0xc1].into_iter().enumerate() {
                let numa = pair as u32 / 2;
                for (side, out) in [&mut gpus, &mut nics].into_iter().enumerate() {
                    let side = side as u32;
                    let inner = base + 3 + side * 4;
                    for slot in 0..2 {
                        let chain = vec![
                            pci(0, base, 1),
                            pci(0, base + 1, 0),
                            pci(0, base + 2, side),
                            pci(0, inner, 0),
                            pci(0, inner + 1, slot),
                            pci(0, inner + 2 + slot, 0),
                        ];
                        out.push(PciPath { host: (0, base), chain, numa });
                    }
                }
            }
        }
        // Every GPU is the only device of its PCI domain and reaches the CPU over C2C.
        Preset::Gb200Nvl72Tray => {
            let own = |domain, bus, numa| PciPath {
                host: (domain, 0),
                chain: vec![pci(domain, 0, 0), pci(domain, bus, 0)],
                numa,
            };
            gpus.extend(
                [0x08, 0x09, 0x18, 0x19].iter().enumerate().map(|(i, d)| own(*d, 1, i as u32 / 2)),
            );
            nics.extend(
                [0x00, 0x02, 0x10, 0x12].iter().enumerate().map(|(i, d)| own(*d, 3, i as u32 / 2)),
            );
        }
        // Each device on a root port of its socket.
        Preset::L40sPcie => {
            for (socket, base) in [0x20, 0xa0].into_iter().enumerate() {
                for port in 0..5 {
                    let chain = vec![pci(0, base, port + 1), pci(0, base + 1 + port, 0)];
                    let path = PciPath { host: (0, base), chain, numa: socket as u32 };
                    if port < 4 { gpus.push(path) } else { nics.push(path) }
                }
            }
        }
        Preset::CpuOnly => {}
    }
    (gpus, nics)
}

impl Hardware {
    pub fn of(node: &NodeSection) -> Self {
        let preset = node.preset;
        let spec = match preset {
            Preset::DgxH100 => &H100,
            Preset::HgxA100 => &A100,
            Preset::Gb200Nvl72Tray => &GB200,
            Preset::L40sPcie | Preset::CpuOnly => &L40S,
        };
        let (gpu_paths, nic_paths) = layout(preset);
        let gpus = gpu_paths.into_iter().enumerate().map(|(index, path)| GpuHw {
            index,
            spec,
            uuid: identity::gpu_uuid(node.seed, &node.name, index),
            serial: identity::serial(node.seed, &node.name, index),
            path,
            mig: node.cut_of(index).map(|profiles| {
                mig::cut(profiles, spec, node.seed, &format!("{}/gpu/{index}", node.name))
            }),
        });
        let guid = |label: &str| {
            0xb83f_d200_0000_0000
                | identity::hash(node.seed, format!("{}/{label}", node.name).as_bytes()) >> 24
        };
        let (layer, gbps, width, hca, pci_device) = match preset {
            Preset::HgxA100 => (LinkLayer::InfiniBand, 200, "4X HDR", "MT4123", 0x101b),
            Preset::L40sPcie => (LinkLayer::Ethernet, 200, "4X HDR", "MT4129", 0x1021),
            _ => (LinkLayer::InfiniBand, 400, "4X NDR", "MT4129", 0x1021),
        };
        let nics = nic_paths.into_iter().enumerate().map(|(index, path)| NicHw {
            index,
            ibdev: Some(format!("mlx5_{index}")),
            netdev: match layer {
                LinkLayer::InfiniBand => format!("ib{index}"),
                LinkLayer::Ethernet => format!("eth{index}"),
            },
            path,
            layer,
            gbps,
            width,
            hca,
            pci_device,
            guid: guid(&format!("nic/{index}")),
        });
        let (cores_per_node, threads, mem_gib) = match preset {
            Preset::DgxH100 => (56, 2, 2048),
            Preset::HgxA100 => (64, 2, 1024),
            Preset::Gb200Nvl72Tray => (72, 1, 960),
            Preset::L40sPcie | Preset::CpuOnly => (32, 2, 512),
        };
        let domain = node.domain.clone().unwrap_or_else(|| node.name.clone());
        let cluster_uuid = match preset {
            Preset::Gb200Nvl72Tray => Some(identity::uuid_bytes(0, &format!("domain/{domain}"))),
            Preset::DgxH100 => Some([0; 16]),
            _ => None,
        };
        let digits: String = node.name.chars().rev().take_while(char::is_ascii_digit).collect();
        let number: u64 = digits.chars().rev().collect::<String>().parse().unwrap_or(0);
        Self {
            preset,
            gpus: gpus.collect(),
            nics: nics.collect(),
            mgmt: NicHw {
                index: 0,
                ibdev: None,
                netdev: "eno1".to_owned(),
                path: PciPath {
                    host: (if preset == Preset::Gb200Nvl72Tray { 5 } else { 0 }, 0),
                    chain: vec![
                        pci(if preset == Preset::Gb200Nvl72Tray { 5 } else { 0 }, 0, 0x1c),
                        pci(if preset == Preset::Gb200Nvl72Tray { 5 } else { 0 }, 1, 0),
                    ],
                    numa: 0,
                },
                layer: LinkLayer::Ethernet,
                gbps: 10,
                width: "",
                hca: "",
                pci_device: 0x1563,
                guid: guid("mgmt"),
            },
            numa_nodes: 2,
            cores_per_node,
            threads,
            mem_gib,
            driver_version: node.driver_version.clone().unwrap_or_else(|| {
                match preset {
                    Preset::HgxA100 => "550.163.01",
                    Preset::Gb200Nvl72Tray => "580.95.05",
                    _ => "570.172.08",
                }
                .to_owned()
            }),
            cluster_uuid,
            tray: node.tray.unwrap_or((number % 18) as u8),
            domain,
        }
    }

    /// UUIDs that a job may name, with the GPU and the MIG instance each means.
    pub fn devices(&self) -> Vec<(&str, usize, Option<usize>)> {
        let whole = self.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.index, None));
        let cut = self.gpus.iter().flat_map(|gpu| {
            let instances = gpu.mig.iter().flatten().enumerate();
            instances.map(|(mig, instance)| (instance.uuid.as_str(), gpu.index, Some(mig)))
        });
        whole.chain(cut).collect()
    }

    pub fn cpus(&self) -> u32 {
        self.numa_nodes * self.cores_per_node * self.threads
    }

    /// The CPUs of a NUMA node as ranges, both ends included. Second threads come after all cores.
    pub fn cpus_of(&self, numa: u32) -> Vec<(u32, u32)> {
        (0..self.threads)
            .map(|thread| {
                let first =
                    thread * self.numa_nodes * self.cores_per_node + numa * self.cores_per_node;
                (first, first + self.cores_per_node - 1)
            })
            .collect()
    }

    /// The same as a kernel CPU list: `0-55,112-167`.
    pub fn cpulist_of(&self, numa: u32) -> String {
        let parts: Vec<_> = self.cpus_of(numa).iter().map(|(a, b)| format!("{a}-{b}")).collect();
        parts.join(",")
    }

    /// Major and minor of the driver, as the field-id scheme and the CUDA version depend on them.
    pub fn driver(&self) -> (u32, u32) {
        let mut parts = self.driver_version.split('.').map(|p| p.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// `13000` is CUDA 13.0.
    pub fn cuda_version(&self) -> i32 {
        match self.driver().0 {
            580.. => 13_000,
            575.. => 12_090,
            570.. => 12_080,
            565.. => 12_070,
            560.. => 12_060,
            555.. => 12_050,
            550.. => 12_040,
            545.. => 12_030,
            535.. => 12_020,
            _ => 12_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(preset: Preset) -> Hardware {
        Hardware::of(&NodeSection::new("n0", preset, 1))
    }

    #[test]
    fn distances_follow_the_boards() {
        for (preset, gpu_pair, own_nic, socket, far) in [
            (
                Preset::DgxH100,
                Distance::Multiple,
                Distance::Single,
                Distance::Node,
                Distance::System,
            ),
            (
                Preset::HgxA100,
                Distance::Single,
                Distance::Multiple,
                Distance::Node,
                Distance::System,
            ),
            (
                Preset::Gb200Nvl72Tray,
                Distance::Node,
                Distance::Node,
                Distance::Node,
                Distance::System,
            ),
        ] {
            let h = hardware(preset);
            let gpu = |i: usize| &h.gpus[i].path;
            let near = h.gpus.len() / 2 - 1;
            assert_eq!(distance(gpu(0), gpu(1)), gpu_pair, "{preset:?} pair");
            assert_eq!(distance(gpu(0), &h.nics[0].path), own_nic, "{preset:?} rail");
            assert_eq!(distance(gpu(0), gpu(near)), socket, "{preset:?} socket");
            assert_eq!(distance(gpu(0), gpu(h.gpus.len() - 1)), far, "{preset:?} far");
        }
        let h = hardware(Preset::L40sPcie);
        assert_eq!(distance(&h.gpus[0].path, &h.gpus[3].path), Distance::HostBridge);
        assert_eq!(distance(&h.gpus[0].path, &h.gpus[4].path), Distance::System);
    }

    #[test]
    fn no_two_devices_share_an_address() {
        for preset in Preset::ALL {
            let h = hardware(preset);
            let mut all: Vec<_> = h.gpus.iter().map(|g| g.path.addr()).collect();
            all.extend(h.nics.iter().map(|n| n.path.addr()));
            all.push(h.mgmt.path.addr());
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "{preset:?}");
        }
    }

    #[test]
    fn cpu_lists_cover_every_cpu_once() {
        let h = hardware(Preset::DgxH100);
        assert_eq!(h.cpus(), 224);
        assert_eq!(h.cpulist_of(0), "0-55,112-167");
        assert_eq!(h.cpulist_of(1), "56-111,168-223");
    }
}
