//! How far a NIC is from a GPU, and which NIC is a GPU's own.
//!
//! In: a sysfs root and bus ids. Out: a [`Distance`] for a pair and a [`Pairing`] for each GPU. The
//! path of a device is its real path below `bus/pci/devices`: a bridge is a folder around it.

use std::path::Path;

use tessera_model::Nic;

/// NVML's and `nvidia-smi topo`'s scale, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// At most one PCIe bridge: both hang off one switch.
    Pix,
    /// Several bridges, but not the host bridge.
    Pxb,
    /// Through the host bridge.
    Phb,
    /// Between host bridges of one NUMA node.
    Node,
    /// Between NUMA nodes, or not known.
    Sys,
}

impl Distance {
    pub fn word(self) -> &'static str {
        match self {
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Node => "NODE",
            Self::Sys => "SYS",
        }
    }
}

/// Where a PCI function sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Host bridge first (`pci0000:15`), then every bridge, the function itself last.
    path: Vec<String>,
    pub numa: Option<u32>,
}

/// `00000000:1A:00.0` as sysfs writes it, `0000:1a:00.0`. Domains above 16 bits keep their digits.
pub fn sysfs_bus_id(nvml: &str) -> Option<String> {
    let (domain, rest) = nvml.trim().split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let (bus, function) = rest.split_once(':')?;
    let bus = u8::from_str_radix(bus, 16).ok()?;
    let (slot, function) = function.split_once('.').unwrap_or((function, "0"));
    let slot = u8::from_str_radix(slot, 16).ok()?;
    let function = u8::from_str_radix(function, 16).ok()?;
    Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
}

/// `None` where sysfs has no such device.
pub fn place(sysfs: &Path, bus_id: &str) -> Option<Place> {
    let real = sysfs.join("bus/pci/devices").join(bus_id).canonicalize().ok()?;
    let names: Vec<String> = real.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let host = names.iter().rposition(|name| name.starts_with("pci"))?;
    Some(Place { path: names[host..].to_vec(), numa: numa_node(&real) })
}

/// `numa_node` of a device folder; -1 is no node.
pub fn numa_node(device: &Path) -> Option<u32> {
    std::fs::read_to_string(device.join("numa_node")).ok()?.trim().parse().ok()
}

pub fn distance(a: &Place, b: &Place) -> Distance {
    let common = a.path.iter().zip(&b.path).take_while(|(a, b)| a == b).count();
    match common {
        0 if a.numa.is_some() && a.numa == b.numa => Distance::Node,
        0 => Distance::Sys,
        1 => Distance::Phb,
        // Below a switch's upstream port each device has a downstream port of its own.
        _ if a.path.len() - common <= 2 && b.path.len() - common <= 2 => Distance::Pix,
        _ => Distance::Pxb,
    }
}

/// The NIC a GPU should use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairing {
    pub nic: String,
    pub distance: Distance,
    /// The NIC's place, in PCI order, among those that serve GPUs of the node.
    pub rail: u32,
}

/// One answer for each GPU bus id, `None` where the node has no NIC that would do.
///
/// RDMA devices come first: an interface without RDMA serves only a node that has none. Then the
/// nearest, then the fastest unless RDMA (a link that is down must not move a rail), then
/// the one that serves the fewest GPUs so far, then PCI order.
pub fn pair(sysfs: &Path, gpus: &[String], nics: &[Nic]) -> Vec<Option<Pairing>> {
    let any_rdma = nics.iter().any(|nic| nic.rdma && nic.pci_bus_id.is_some());
    let mut ports: Vec<(&str, &Nic, Option<Place>)> = nics
        .iter()
        .filter(|nic| nic.rdma == any_rdma)
        .filter_map(|nic| {
            let bus_id = nic.pci_bus_id.as_deref()?;
            Some((bus_id, nic, place(sysfs, bus_id)))
        })
        .collect();
    ports.sort_by(|a, b| pci_order(a.0).cmp(&pci_order(b.0)).then(a.1.name.cmp(&b.1.name)));
    let mut serves = vec![0_u32; ports.len()];
    let chosen: Vec<Option<(usize, Distance)>> = gpus
        .iter()
        .map(|bus_id| {
            let here = place(sysfs, bus_id);
            let best = (0..ports.len())
                .map(|i| {
                    let (_, nic, there) = &ports[i];
                    let far = match (&here, there) {
                        (Some(here), Some(there)) => distance(here, there),
                        _ => Distance::Sys,
                    };
                    let slow = if any_rdma { 0 } else { u64::MAX - nic.speed_mbps.unwrap_or(0) };
                    (far, slow, serves[i], i)
                })
                .min()?;
            serves[best.3] += 1;
            Some((best.3, best.0))
        })
        .collect();
    chosen
        .into_iter()
        .map(|choice| {
            let (index, distance) = choice?;
            let rail = serves[..index].iter().filter(|count| **count > 0).count();
            Some(Pairing {
                nic: ports[index].1.name.clone(),
                distance,
                rail: u32::try_from(rail).unwrap_or(u32::MAX),
            })
        })
        .collect()
}

/// A bus id as numbers, so that domain 10000 comes after 0fff.
pub fn pci_order(bus_id: &str) -> (u32, u32, u32, u32) {
    let mut parts =
        bus_id.split([':', '.']).map(|p| u32::from_str_radix(p, 16).unwrap_or(u32::MAX));
    let mut next = || parts.next().unwrap_or(u32::MAX);
    (next(), next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str, numa: Option<u32>) -> Place {
        Place { path: path.split('/').map(str::to_owned).collect(), numa }
    }

    #[test]
    fn distances_are_read_from_the_real_path() {
        // root port, switch upstream port, its downstream ports
        let gpu = "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0";
        let cases = [
            (
                "one switch",
                "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0",
                Distance::Pix,
            ),
            (
                "a switch behind the switch",
                "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0/0000:1a:00.0/0000:1b:00.0",
                Distance::Pxb,
            ),
            ("another root port", "pci0000:15/0000:15:02.0/0000:20:00.0", Distance::Phb),
            ("another host bridge", "pci0000:30/0000:30:01.0/0000:31:00.0", Distance::Node),
        ];
        for (name, other, want) in cases {
            let (a, b) = (at(gpu, Some(0)), at(other, Some(0)));
            assert_eq!((distance(&a, &b), distance(&b, &a)), (want, want), "{name}");
        }
        let far = "pci0000:30/0000:30:01.0/0000:31:00.0";
        assert_eq!(distance(&at(gpu, Some(0)), &at(far, Some(1))), Distance::Sys);
        assert_eq!(distance(&at(gpu, None), &at(far, None)), Distance::Sys);
    }

    #[test]
    fn bus_ids_lose_the_padding_of_their_domain_only() {
        let cases = [
            ("00000000:1A:00.0", Some("0000:1a:00.0")),
            ("00010002:1A:1F.3", Some("10002:1a:1f.3")),
            ("0000:1a:00.0", Some("0000:1a:00.0")),
            ("1a:00.0", None),
            ("", None),
        ];
        for (nvml, want) in cases {
            assert_eq!(sysfs_bus_id(nvml).as_deref(), want, "{nvml:?}");
        }
        assert!(pci_order("10000:00:00.0") > pci_order("0fff:ff:1f.7"));
    }
}
