//! The counters of the simulated NICs, kept in the node's `sys/` tree.
//!
//! In: how many bytes each GPU's rail has carried, and what is wrong with a NIC. Out: the files
//! below `ports/1` and `statistics`. Only what has changed is written, so an idle node writes
//! nothing. Counters only grow and are written in place; words are replaced by rename.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::fault::NodeEffects;
use crate::hardware::Hardware;
use crate::sysfs;

#[derive(Debug)]
pub struct Nics {
    root: PathBuf,
    /// What the counters said when we began, and what we last wrote.
    base: HashMap<PathBuf, u64>,
    last: HashMap<PathBuf, u64>,
    down: Vec<bool>,
}

/// What a NIC has carried since this process began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

impl Nics {
    pub fn new(root: PathBuf, hardware: &Hardware) -> Self {
        // A link may be down from before: it is not to go down a second time.
        let down = hardware.nics.iter().map(|nic| {
            let path = root.join(sysfs::net_dir(nic)).join("operstate");
            fs::read_to_string(path).is_ok_and(|text| text.trim() == "down")
        });
        let down = down.collect();
        Self { root, base: HashMap::new(), last: HashMap::new(), down }
    }

    /// `began`: seconds since the node's epoch at which this process took over the counters.
    pub fn update(
        &mut self,
        hardware: &Hardware,
        carried: &[Carried],
        fx: &NodeEffects,
        began: f64,
        now: f64,
    ) -> io::Result<()> {
        for (nic, load) in hardware.nics.iter().zip(carried) {
            let i = nic.index;
            let down = fx.nics_down.contains(&i);
            if down != self.down[i] {
                self.set_link(hardware, i, down)?;
                self.down[i] = down;
            }
            let of = |rates: &[crate::fault::Rate]| -> u64 {
                rates.iter().filter(|r| r.which as usize == i).map(|r| r.count(began, now)).sum()
            };
            let (errors, congestion) = (of(&fx.nic_errors), of(&fx.nic_congestion));
            let net = sysfs::net_dir(nic);
            let mut set: Vec<(String, u64)> = vec![
                (format!("{net}/statistics/tx_bytes"), load.tx_bytes),
                (format!("{net}/statistics/rx_bytes"), load.rx_bytes),
                (format!("{net}/statistics/tx_packets"), load.tx_bytes / 4096),
                (format!("{net}/statistics/rx_packets"), load.rx_bytes / 4096),
                (format!("{net}/statistics/rx_errors"), errors),
            ];
            if let Some(port) = sysfs::port_dir(nic) {
                for (name, value) in [
                    // InfiniBand counts words of four bytes.
                    ("counters/port_xmit_data", load.tx_bytes / 4),
                    ("counters/port_rcv_data", load.rx_bytes / 4),
                    ("counters/port_xmit_packets", load.tx_bytes / 4096),
                    ("counters/port_rcv_packets", load.rx_bytes / 4096),
                    ("counters/symbol_error", errors),
                    ("counters/port_rcv_errors", errors / 4),
                    ("counters/port_xmit_wait", congestion * 50),
                    ("hw_counters/packet_seq_err", errors / 8),
                    ("hw_counters/np_cnp_sent", congestion),
                    ("hw_counters/np_ecn_marked_roce_packets", congestion * 3),
                    ("hw_counters/rp_cnp_handled", congestion),
                ] {
                    set.push((format!("{port}/{name}"), value));
                }
            }
            for (path, value) in set {
                self.grow(Path::new(&path), value)?;
            }
        }
        Ok(())
    }

    /// Sets a counter to what it was plus `since`.
    fn grow(&mut self, path: &Path, since: u64) -> io::Result<()> {
        if self.last.get(path).copied().unwrap_or(0) == since {
            return Ok(());
        }
        let full = self.root.join(path);
        let base = match self.base.get(path) {
            Some(base) => *base,
            None => {
                let base = fs::read_to_string(&full)?.trim().parse().unwrap_or(0);
                self.base.insert(path.to_owned(), base);
                base
            }
        };
        OpenOptions::new()
            .write(true)
            .open(&full)?
            .write_all(format!("{}\n", base + since).as_bytes())?;
        self.last.insert(path.to_owned(), since);
        Ok(())
    }

    fn set_link(&mut self, hardware: &Hardware, index: usize, down: bool) -> io::Result<()> {
        let nic = &hardware.nics[index];
        let net = sysfs::net_dir(nic);
        let mut words = vec![
            (format!("{net}/operstate"), if down { "down" } else { "up" }.to_owned()),
            (format!("{net}/carrier"), if down { "0" } else { "1" }.to_owned()),
            (
                format!("{net}/speed"),
                if down { "-1".to_owned() } else { (nic.gbps * 1000).to_string() },
            ),
        ];
        let mut bump = vec![format!("{net}/carrier_changes")];
        if let Some(port) = sysfs::port_dir(nic) {
            words.push((
                format!("{port}/state"),
                if down { "1: DOWN" } else { "4: ACTIVE" }.to_owned(),
            ));
            words.push((
                format!("{port}/phys_state"),
                if down { "3: Disabled" } else { "5: LinkUp" }.to_owned(),
            ));
            if down {
                bump.push(format!("{port}/counters/link_downed"));
            }
        }
        for path in bump {
            let old: u64 = fs::read_to_string(self.root.join(&path))?.trim().parse().unwrap_or(0);
            words.push((path, (old + 1).to_string()));
        }
        for (path, text) in words {
            replace(&self.root.join(path), &format!("{text}\n"))?;
        }
        Ok(())
    }
}

/// Replaces a file in one step: a reader sees the old text or the new one.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}.tmp", std::process::id()));
    fs::write(&temp, text)?;
    fs::rename(&temp, path)
}
