//! What an XID means for the GPU it names, and how the kernel log says one.
//!
//! In: `xid_classes.toml`, lines of the kernel log. Out: a [`Class`], or a GPU's address and a code.

use std::collections::BTreeSet;
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The GPU is not to be used before a reset.
    Fatal,
    /// Only the job is affected.
    Job,
    /// A reset is due when the GPU is idle.
    Note,
    Unknown,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Classes {
    fatal: BTreeSet<u32>,
    job: BTreeSet<u32>,
    note: BTreeSet<u32>,
}

pub fn class(code: u32) -> Class {
    static CLASSES: OnceLock<Classes> = OnceLock::new();
    let classes = CLASSES.get_or_init(|| {
        // The file is part of the program, and a test reads it.
        toml::from_str(include_str!("xid_classes.toml")).expect("xid_classes.toml is well-formed")
    });
    match code {
        _ if classes.fatal.contains(&code) => Class::Fatal,
        _ if classes.job.contains(&code) => Class::Job,
        _ if classes.note.contains(&code) => Class::Note,
        _ => Class::Unknown,
    }
}

/// `… NVRM: Xid (PCI:0000:1a:00): 79, pid=…`: the bus id up to its slot, as sysfs writes it, and
/// the code.
pub fn in_kernel_log(line: &str) -> Option<(String, u32)> {
    let rest = line.split_once("NVRM: Xid (PCI:")?.1;
    let (address, rest) = rest.split_once("): ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let code = rest[..digits].parse().ok()?;
    let bus_id = super::pci::sysfs_bus_id(address)?;
    Some((bus_id.split('.').next()?.to_owned(), code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_come_from_the_file() {
        let cases =
            [(79, Class::Fatal), (13, Class::Job), (63, Class::Note), (9999, Class::Unknown)];
        for (code, want) in cases {
            assert_eq!(class(code), want, "{code}");
        }
    }

    #[test]
    fn kernel_lines_are_read_in_both_forms() {
        let cases = [
            (
                "3,1234,5678,-;NVRM: Xid (PCI:0000:1a:00): 79, pid='<unknown>', GPU has fallen off",
                Some(("0000:1a:00".to_owned(), 79)),
            ),
            ("NVRM: Xid (PCI:00010002:1A:00): 31", Some(("10002:1a:00".to_owned(), 31))),
            ("NVRM: Xid (PCI:0000:1a:00): many", None),
            ("usb 1-1: new device", None),
        ];
        for (line, want) in cases {
            assert_eq!(in_kernel_log(line), want, "{line}");
        }
    }
}
