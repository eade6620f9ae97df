//! Network devices, from sysfs.
//!
//! In: a sysfs root. Out: the list of [`Nic`]s, and a [`NicSample`] for each. Everything is optional:
//! a file that is absent, unreadable or odd (`EINVAL`, `N/A (no PMA)`, -1) loses one field of
//! one port and nothing else. Rates are not made here, and counters travel as they are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tessera_model::Nic;
use tessera_model::sample::NicSample;

use super::pci;

/// A NIC and where its files are.
#[derive(Debug, Clone)]
pub struct NicFiles {
    pub nic: Nic,
    /// Folders of the RDMA ports, lowest number first.
    ports: Vec<PathBuf>,
    /// Folder of the interface; an RDMA device may have none.
    interface: Option<PathBuf>,
}

/// All RDMA devices, all interfaces of PCI devices without one, and bonds. Virtual interfaces are
/// left out. In name order, RDMA first.
pub fn discover(sysfs: &Path) -> Vec<NicFiles> {
    let mut found = Vec::new();
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    for dir in entries(&sysfs.join("class/infiniband")) {
        let device = dir.join("device").canonicalize().ok();
        let interface = device.as_ref().and_then(|d| entries(&d.join("net")).into_iter().next());
        let ports = entries(&dir.join("ports"));
        taken.extend(device.clone());
        found.push(NicFiles { nic: identity(&dir, device.as_deref(), true), ports, interface });
    }
    for dir in entries(&sysfs.join("class/net")) {
        let device = dir.join("device").canonicalize().ok();
        match &device {
            // The interface of an RDMA device that is listed already.
            Some(device) if taken.contains(device) => continue,
            Some(_) => {}
            None if dir.join("bonding").is_dir() => {}
            None => continue,
        }
        let nic = identity(&dir, device.as_deref(), false);
        found.push(NicFiles { nic, ports: Vec::new(), interface: Some(dir) });
    }
    for files in &mut found {
        files.nic.speed_mbps = files.speed_mbps();
    }
    found
}

fn identity(dir: &Path, device: Option<&Path>, rdma: bool) -> Nic {
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    Nic {
        name: name(dir).unwrap_or_default(),
        // A virtio or USB device has a link too, but no PCI address of its own.
        pci_bus_id: device.and_then(name).filter(|n| pci::sysfs_bus_id(n).as_deref() == Some(n)),
        numa: device.and_then(pci::numa_node),
        speed_mbps: None,
        rdma,
    }
}

/// Paths in a folder, in the order of their names with numbers as numbers (`mlx5_2` < `mlx5_10`).
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort_by_key(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (stem, number) = name.split_at(name.len() - digits);
        (stem.to_owned(), number.parse::<u64>().unwrap_or(0), name.clone())
    });
    paths
}

impl NicFiles {
    pub fn sample(&self) -> NicSample {
        let up = self.up();
        NicSample {
            name: self.nic.name.clone(),
            up,
            speed_mbps: if up == Some(false) { None } else { self.speed_mbps() },
            // InfiniBand counts in words of 4 bytes.
            receive_bytes: self
                .port_sum("counters/port_rcv_data")
                .map(|n| n.wrapping_mul(4))
                .or_else(|| self.statistic("rx_bytes")),
            transmit_bytes: self
                .port_sum("counters/port_xmit_data")
                .map(|n| n.wrapping_mul(4))
                .or_else(|| self.statistic("tx_bytes")),
            receive_errors: self
                .port_sum("counters/port_rcv_errors")
                .or_else(|| self.statistic("rx_errors")),
            transmit_errors: self
                .port_sum("counters/port_xmit_discards")
                .or_else(|| self.statistic("tx_errors")),
            carrier_changes: self
                .interface
                .as_ref()
                .and_then(|dir| number(&dir.join("carrier_changes"))),
            transmit_wait: self.port_sum("counters/port_xmit_wait"),
            symbol_errors: self.port_sum("counters/symbol_error"),
            link_downed: self.port_sum("counters/link_downed"),
            cnp_handled: self.port_sum("hw_counters/rp_cnp_handled"),
            cnp_sent: self.port_sum("hw_counters/np_cnp_sent"),
        }
    }

    /// A device with several ports is up while one of them is.
    fn up(&self) -> Option<bool> {
        let ports: Vec<bool> = self
            .ports
            .iter()
            .filter_map(|port| text(&port.join("state")))
            .map(|state| state.starts_with("4:"))
            .collect();
        if !ports.is_empty() {
            return Some(ports.contains(&true));
        }
        let dir = self.interface.as_ref()?;
        match text(&dir.join("operstate")).as_deref() {
            Some("up") => Some(true),
            // Drivers that do not tell: the carrier does. Reading it fails on a downed interface.
            Some("unknown") => number(&dir.join("carrier")).map(|carrier| carrier == 1),
            Some(_) => Some(false),
            None => None,
        }
    }

    fn speed_mbps(&self) -> Option<u64> {
        let active =
            |port: &&PathBuf| text(&port.join("state")).is_none_or(|state| state.starts_with("4:"));
        let ports: Vec<u64> = self
            .ports
            .iter()
            .filter(active)
            .filter_map(|port| rate_mbps(&text(&port.join("rate"))?))
            .collect();
        if !ports.is_empty() {
            return Some(ports.iter().sum());
        }
        if !self.ports.is_empty() && self.up() == Some(false) {
            return None;
        }
        number(&self.interface.as_ref()?.join("speed")).filter(|speed| *speed > 0)
    }

    fn port_sum(&self, file: &str) -> Option<u64> {
        self.ports.iter().filter_map(|port| number(&port.join(file))).reduce(u64::wrapping_add)
    }

    fn statistic(&self, file: &str) -> Option<u64> {
        number(&self.interface.as_ref()?.join("statistics").join(file))
    }
}

/// `400 Gb/sec (4X NDR)`, `2.5 Gb/sec (1X SDR)`.
fn rate_mbps(text: &str) -> Option<u64> {
    let (figure, unit) = text.split_once(' ')?;
    let (whole, tenths) = figure.split_once('.').unwrap_or((figure, "0"));
    let whole: u64 = whole.parse().ok()?;
    let tenths: u64 = tenths.get(..1)?.parse().ok()?;
    (unit.starts_with("Gb/sec") && (whole, tenths) != (0, 0)).then_some(whole * 1000 + tenths * 100)
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The trimmed text of a small file, without a heap buffer for the reading.
fn text(path: &Path) -> Option<String> {
    let mut buffer = [0_u8; 128];
    let mut used = 0;
    let mut file = File::open(path).ok()?;
    while used < buffer.len() {
        match file.read(&mut buffer[used..]) {
            Ok(0) => break,
            Ok(n) => used += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let text = std::str::from_utf8(&buffer[..used]).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// One RDMA NIC with an interface, one plain interface, one bond, one loopback.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let rdma = "devices/pci0000:15/0000:15:01.0/0000:16:00.0";
        let port = format!("{rdma}/infiniband/mlx5_0/ports/1");
        for (file, text) in [
            ("state", "4: ACTIVE\n"),
            ("rate", "400 Gb/sec (4X NDR)\n"),
            ("counters/port_rcv_data", "1000\n"),
            ("counters/port_xmit_data", "2000\n"),
            ("counters/port_xmit_wait", "7\n"),
            ("counters/symbol_error", "3\n"),
            ("hw_counters/np_cnp_sent", "5\n"),
        ] {
            put(root, &format!("{port}/{file}"), text);
        }
        put(root, &format!("{rdma}/numa_node"), "1\n");
        put(root, &format!("{rdma}/net/ib0/carrier_changes"), "2\n");
        let plain = "devices/pci0000:00/0000:00:03.0";
        put(root, &format!("{plain}/numa_node"), "-1\n");
        for (file, text) in [
            ("operstate", "up\n"),
            ("speed", "10000\n"),
            ("statistics/rx_bytes", "11\n"),
            ("statistics/tx_errors", "1\n"),
        ] {
            put(root, &format!("{plain}/net/eth0/{file}"), text);
        }
        put(root, "devices/virtual/net/lo/operstate", "unknown\n");
        put(root, "devices/virtual/net/bond0/operstate", "down\n");
        put(root, "devices/virtual/net/bond0/bonding/mode", "802.3ad 4\n");
        for (at, to) in [
            ("class/infiniband/mlx5_0", format!("{rdma}/infiniband/mlx5_0")),
            ("class/net/ib0", format!("{rdma}/net/ib0")),
            ("class/net/eth0", format!("{plain}/net/eth0")),
            ("class/net/lo", "devices/virtual/net/lo".to_owned()),
            ("class/net/bond0", "devices/virtual/net/bond0".to_owned()),
            (&*format!("{rdma}/infiniband/mlx5_0/device"), rdma.to_owned()),
            (&*format!("{rdma}/net/ib0/device"), rdma.to_owned()),
            (&*format!("{plain}/net/eth0/device"), plain.to_owned()),
        ] {
            let path = root.join(at);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(root.join(to), path).unwrap();
        }
        dir
    }

    #[test]
    fn devices_are_named_once_and_virtual_ones_left_out() {
        let dir = tree();
        let found = discover(dir.path());
        let rows: Vec<_> = found
            .iter()
            .map(|f| (f.nic.name.as_str(), f.nic.rdma, f.nic.speed_mbps, f.nic.numa))
            .collect();
        assert_eq!(
            rows,
            [
                ("mlx5_0", true, Some(400_000), Some(1)),
                ("bond0", false, None, None),
                ("eth0", false, Some(10_000), None),
            ]
        );
        assert_eq!(found[0].nic.pci_bus_id.as_deref(), Some("0000:16:00.0"));
        let sample = found[0].sample();
        assert_eq!((sample.receive_bytes, sample.transmit_bytes), (Some(4000), Some(8000)));
        assert_eq!((sample.cnp_sent, sample.cnp_handled), (Some(5), None));
        assert_eq!((sample.carrier_changes, sample.up), (Some(2), Some(true)));
        assert_eq!(found[1].sample().up, Some(false));
        assert_eq!(found[2].sample().transmit_errors, Some(1));
    }

    #[test]
    fn a_broken_file_loses_its_own_field_only() {
        for (name, spoil) in [
            ("no PMA", Some("N/A (no PMA)\n".as_bytes())),
            ("empty", Some(b"".as_slice())),
            ("not text", Some(b"\xff\xfe".as_slice())),
            ("a folder, so that reading fails", None),
        ] {
            let dir = tree();
            let found = discover(dir.path());
            let whole = found[0].sample();
            let file = dir.path().join("class/infiniband/mlx5_0/ports/1/counters/port_rcv_data");
            fs::remove_file(&file).unwrap();
            match spoil {
                Some(bytes) => fs::write(&file, bytes).unwrap(),
                None => fs::create_dir(&file).unwrap(),
            }
            let broken = found[0].sample();
            assert_eq!(broken.receive_bytes, None, "{name}");
            assert_eq!(NicSample { receive_bytes: whole.receive_bytes, ..broken }, whole, "{name}");
        }
        assert!(discover(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_link_that_is_down_has_no_speed() {
        let dir = tree();
        fs::write(dir.path().join("class/infiniband/mlx5_0/ports/1/state"), "1: DOWN\n").unwrap();
        fs::write(dir.path().join("class/net/eth0/operstate"), "down\n").unwrap();
        fs::write(dir.path().join("class/net/eth0/speed"), "-1\n").unwrap();
        for found in discover(dir.path()) {
            let sample = found.sample();
            assert_eq!((sample.up, sample.speed_mbps), (Some(false), None), "{}", sample.name);
        }
    }

    #[test]
    fn rates_are_read_as_sysfs_writes_them() {
        let cases = [
            ("400 Gb/sec (4X NDR)", Some(400_000)),
            ("2.5 Gb/sec (1X SDR)", Some(2_500)),
            ("0 Gb/sec", None),
            ("fast", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(rate_mbps(text), want, "{text:?}");
        }
    }
}
