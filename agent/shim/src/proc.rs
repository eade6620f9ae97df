//! What the kernel says about processes and clocks.
//!
//! In: pids. Out: start times, children, the boot id, the boot clock. All of it read from `/proc`
//! or a clock; nothing here changes anything.

use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The parts of `/proc/PID/stat` that identify a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcStat {
    /// `R`, `S`, `D`, `Z`, ...
    pub state: u8,
    pub parent: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl ProcStat {
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// `None` if there is no such process.
pub fn stat(pid: u32) -> io::Result<Option<ProcStat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => match parse_stat(&bytes) {
            Some(stat) => Ok(Some(stat)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat has an unknown form"),
            )),
        },
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The name in field 2 may hold spaces and brackets, so fields count from the last bracket.
fn parse_stat(bytes: &[u8]) -> Option<ProcStat> {
    let close = bytes.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22; field 5 is next.
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(ProcStat { state, parent, start_time })
}

/// Direct children of the calling process (which has one thread), zombies included.
pub fn children_of_self() -> io::Result<Vec<u32>> {
    let pid = std::process::id();
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        return Ok(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect());
    }
    // A kernel without CONFIG_PROC_CHILDREN.
    let mut children = Vec::new();
    for other in all_pids()? {
        if stat(other)?.is_some_and(|stat| stat.parent == pid) {
            children.push(other);
        }
    }
    Ok(children)
}

pub fn all_pids() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Whether `NAME=value` stands in the environment the process was started with. A process that
/// is gone or not ours to read does not have it.
pub fn has_env(pid: u32, entry: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|bytes| bytes.split(|&byte| byte == 0).any(|found| found == entry.as_bytes()))
}

/// Names this boot of this kernel.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// CLOCK_BOOTTIME, milliseconds: never set, never jumps, and counts while the machine sleeps.
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Both are never negative on the boot clock.
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Wall clock, milliseconds since 1970. For display and records only.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_any_program_name() {
        let fields = "S 7 9 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4321 0 0";
        let want = Some(ProcStat { state: b'S', parent: 7, start_time: 4321 });
        for name in ["sh", "a b", "x) R 1 (y", ")))", ""] {
            assert_eq!(parse_stat(format!("9 ({name}) {fields}").as_bytes()), want, "{name}");
        }
        for torn in ["", "9 (sh", "9 (sh)", "9 (sh) S", "9 (sh) S x", "9 (sh) S 7 9 9"] {
            assert_eq!(parse_stat(torn.as_bytes()), None, "{torn}");
        }
    }

    #[test]
    fn we_have_a_start_time_and_pid_0_has_none() {
        let me = stat(std::process::id()).unwrap().expect("we are running");
        assert!(!me.is_zombie() && me.start_time > 0);
        assert_eq!(stat(0).unwrap(), None);
    }
}
