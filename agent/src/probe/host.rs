//! The machine itself: CPUs, memory, load, and the agent's own share.
//!
//! In: a sysfs root for what the machine has, this machine's `/proc` (through sysinfo) for how busy it
//! is. Out: a [`HostCapacity`] once and a [`HostSample`] at each beat.

use std::fs;
use std::path::Path;

use sysinfo::{MemoryRefreshKind, System};
use tessera_model::Bytes;
use tessera_model::sample::HostSample;

/// What the machine has. Read from the sysfs root, so that a simulated node is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapacity {
    pub cpus: u32,
    pub memory: Bytes,
}

pub fn capacity(sysfs: &Path) -> HostCapacity {
    let cpus = fs::read_to_string(sysfs.join("devices/system/cpu/present"))
        .ok()
        .and_then(|text| count_in_list(text.trim()))
        .or_else(|| std::thread::available_parallelism().ok()?.get().try_into().ok())
        .unwrap_or(1);
    let memory = numa_memory(&sysfs.join("devices/system/node")).or_else(|| {
        let mut system = System::new().ok()?;
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        Some(system.total_memory())
    });
    HostCapacity { cpus, memory: Bytes(memory.unwrap_or(0)) }
}

/// Words of 64 CPUs that a CPU mask of this machine takes: NVML counts masks in words.
pub fn cpu_words(sysfs: &Path) -> usize {
    let list = fs::read_to_string(sysfs.join("devices/system/cpu/present")).unwrap_or_default();
    let last = ranges(list.trim()).and_then(|ranges| ranges.iter().map(|(_, last)| *last).max());
    let cpus = last.map_or(u64::from(capacity(sysfs).cpus), |last| u64::from(last) + 1);
    usize::try_from(cpus.div_ceil(64)).unwrap_or(1).max(1)
}

/// The one NUMA node that all of these CPUs are in.
pub fn numa_of_cpus(sysfs: &Path, cpus: &[u32]) -> Option<u32> {
    let mut nodes =
        fs::read_dir(sysfs.join("devices/system/node")).ok()?.flatten().filter(|entry| {
            let list = fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
            let ranges = ranges(list.trim()).unwrap_or_default();
            cpus.iter().any(|cpu| ranges.iter().any(|(first, last)| (first..=last).contains(&cpu)))
        });
    let node = nodes.next()?.file_name().to_string_lossy().strip_prefix("node")?.parse().ok();
    if nodes.next().is_some() { None } else { node }
}

/// How many numbers a list such as `0-63,128-191` names.
fn count_in_list(list: &str) -> Option<u32> {
    ranges(list)?.iter().try_fold(0_u32, |sum, (first, last)| sum.checked_add(last - first + 1))
}

/// First and last of each range in a list.
fn ranges(list: &str) -> Option<Vec<(u32, u32)>> {
    list.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last && last < u32::MAX).then_some((first, last))
        })
        .collect()
}

/// `Node 0 MemTotal: 263921512 kB`, over all nodes. `None` where one cannot be read.
fn numa_memory(dir: &Path) -> Option<u64> {
    let mut bytes: Option<u64> = None;
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix("node").is_none_or(|n| n.parse::<u32>().is_err()) {
            continue;
        }
        let text = fs::read_to_string(entry.path().join("meminfo")).ok()?;
        let line = text.lines().find(|line| line.contains("MemTotal:"))?;
        let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
        bytes = Some(bytes.unwrap_or(0) + kib * 1024);
    }
    bytes
}

/// Reads how busy the machine is. The first reading has no CPU share, which needs two.
#[derive(Debug, Default)]
pub struct HostReader {
    system: Option<System>,
    readings: u64,
}

impl HostReader {
    pub fn new() -> Self {
        Self { system: System::new().ok(), readings: 0 }
    }

    /// Without `skew_ms` and `samples_dropped`, which the beat knows.
    pub fn sample(&mut self) -> HostSample {
        let (mut cpu_percent, mut memory_used_bytes) = (None, None);
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            cpu_percent = (self.readings > 0).then(|| system.global_cpu_usage());
            memory_used_bytes = Some(system.used_memory()).filter(|used| *used > 0);
        }
        self.readings += 1;
        HostSample {
            cpu_percent: cpu_percent.filter(|share| share.is_finite()),
            memory_used_bytes,
            load_1m: System::load_average().ok().map(|load| load.one as f32),
            agent_rss_bytes: own_rss(),
            ..HostSample::default()
        }
    }
}

/// Whether a program of that name runs on this machine.
pub fn runs(name: &str) -> bool {
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
}

/// Resident memory of this process, bytes.
pub fn own_rss() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        let cases = [
            ("0", Some(1)),
            ("0-1", Some(2)),
            ("0-63,128-191", Some(128)),
            ("", None),
            ("3-1", None),
            ("0-x", None),
        ];
        for (text, want) in cases {
            assert_eq!(count_in_list(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_simulated_node_has_the_size_its_tree_says() {
        let dir = tempfile::tempdir().unwrap();
        for node in 0..2 {
            let at = dir.path().join(format!("devices/system/node/node{node}"));
            fs::create_dir_all(&at).unwrap();
            let text = format!("Node {node} MemTotal:       1024 kB\nNode {node} MemFree: 3 kB\n");
            fs::write(at.join("meminfo"), text).unwrap();
        }
        fs::create_dir_all(dir.path().join("devices/system/cpu")).unwrap();
        fs::write(dir.path().join("devices/system/cpu/present"), "0-223\n").unwrap();
        let want = HostCapacity { cpus: 224, memory: Bytes(2 << 20) };
        assert_eq!(capacity(dir.path()), want);
        let real = capacity(Path::new("/nonexistent"));
        assert!(real.cpus > 0 && real.memory > Bytes(0), "{real:?}");
    }

    #[test]
    fn the_first_reading_has_no_cpu_share_and_the_second_one_has() {
        let mut reader = HostReader::new();
        let first = reader.sample();
        assert_eq!(first.cpu_percent, None);
        assert!(first.agent_rss_bytes.is_some_and(|rss| rss > 1 << 20));
        assert!(reader.sample().cpu_percent.is_some());
    }
}
