//! The job's cgroup: a fence that no process of the job gets out of by forking.
//!
//! In: a name and limits. Out: a [`Cgroup`] on pure v2, or on a hybrid machine where a v2 tree
//! without controllers starts, counts and kills the job's processes and v1 controllers limit them.
//! Where neither can be written, [`CgroupSpec::None`]. Finding the place is `place`'s work.

mod place;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::spec::{CgroupSpec, V1Controller, V1Group};

pub use place::CgroupPlace;

/// All job cgroups lie under a folder of this name.
const PARENT: &str = "tessera";
/// At most this long between two looks and kills; the kernel's event usually comes first.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the job may use at most. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_max_bytes: Option<u64>,
    pub pids_max: Option<u64>,
    /// Thousandths of a CPU core.
    pub cpu_max_milli: Option<u64>,
}

/// A cgroup of one job on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The v2 folder.
    unified: PathBuf,
    /// The v1 folders of a hybrid machine; none on pure v2.
    v1: Vec<V1Group>,
    pure: bool,
}

/// A cgroup was made, but not every limit could be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {controller} limit is not enforced: {why}")]
pub struct LimitNotEnforced {
    pub controller: &'static str,
    pub why: String,
}

impl Cgroup {
    /// Makes the cgroup `tessera/NAME` below the caller's own. A cgroup of that name must not exist.
    pub fn create(name: &str, limits: &Limits) -> io::Result<(Self, Vec<LimitNotEnforced>)> {
        Self::create_at(&CgroupPlace::discover()?, name, limits)
    }

    /// As [`Self::create`], or [`CgroupSpec::None`] where no cgroup can be written. With it come
    /// warnings in words: why there is no cgroup, or which limits are not enforced.
    pub fn create_or_none(name: &str, limits: &Limits) -> (CgroupSpec, Vec<String>) {
        match Self::create(name, limits) {
            Ok((cgroup, missing)) => {
                (cgroup.spec(), missing.iter().map(LimitNotEnforced::to_string).collect())
            }
            Err(error) => {
                (CgroupSpec::None, vec![format!("no cgroup, containment is cooperative: {error}")])
            }
        }
    }

    pub fn create_at(
        place: &CgroupPlace,
        name: &str,
        limits: &Limits,
    ) -> io::Result<(Self, Vec<LimitNotEnforced>)> {
        check_name(name)?;
        let parent = place.unified.join(PARENT);
        make_dir(&parent)?;
        let unified = parent.join(name);
        fs::create_dir(&unified)?;
        let mut cgroup = Self { unified, v1: Vec::new(), pure: place.v1.is_empty() };
        let mut missing = Vec::new();
        if cgroup.pure {
            cgroup.limit_v2(place, limits, &mut missing);
        } else {
            cgroup.limit_v1(place, name, limits, &mut missing);
        }
        Ok((cgroup, missing))
    }

    /// The cgroup a spec names; `None` for [`CgroupSpec::None`]. Touches nothing.
    pub fn open(spec: &CgroupSpec) -> Option<Self> {
        match spec {
            CgroupSpec::None => None,
            CgroupSpec::Unified { dir } => {
                Some(Self { unified: dir.clone(), v1: Vec::new(), pure: true })
            }
            CgroupSpec::Hybrid { unified, v1 } => {
                Some(Self { unified: unified.clone(), v1: v1.clone(), pure: false })
            }
        }
    }

    pub fn spec(&self) -> CgroupSpec {
        if self.pure {
            CgroupSpec::Unified { dir: self.unified.clone() }
        } else {
            CgroupSpec::Hybrid { unified: self.unified.clone(), v1: self.v1.clone() }
        }
    }

    /// The v2 folder.
    pub fn dir(&self) -> &Path {
        &self.unified
    }

    /// The v2 folder's descriptor, for `clone3(CLONE_INTO_CGROUP)`.
    pub fn open_dir(&self) -> io::Result<File> {
        File::open(&self.unified)
    }

    /// One open `cgroup.procs` per v1 controller, for the new process to write itself into.
    pub fn open_v1_joins(&self) -> io::Result<Vec<File>> {
        self.v1
            .iter()
            .map(|group| OpenOptions::new().write(true).open(group.dir.join("cgroup.procs")))
            .collect()
    }

    /// Whether no process is left. A cgroup that is gone is empty; a zombie does not count.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(match read_or_gone(&self.unified.join("cgroup.events"))? {
            Some(events) => counter(&events, "populated").unwrap_or(1) == 0,
            None => true,
        } && self.v1_pids()?.is_empty())
    }

    /// Pids of all processes in it and below. Outdated as soon as it is read.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        collect_pids(&self.unified, &mut pids)?;
        Ok(pids)
    }

    /// Sends SIGKILL to every process in it once. New ones cannot slip through `cgroup.kill`.
    pub fn kill_all(&self) -> io::Result<()> {
        match write_file(&self.unified.join("cgroup.kill"), "1") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.unified.exists() => {}
            // Before Linux 5.14 there is no cgroup.kill: nothing forks while frozen.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let freeze = self.unified.join("cgroup.freeze");
                let _ = write_file(&freeze, "1");
                let killed = self
                    .pids()
                    .map(|pids| pids.into_iter().for_each(|pid| send_signal(pid, libc::SIGKILL)));
                let _ = write_file(&freeze, "0");
                killed?;
            }
            Err(error) => return Err(error),
        }
        // Only root inside the job can leave the v2 tree; it is still in the v1 ones then.
        for pid in self.v1_pids()? {
            send_signal(pid, libc::SIGKILL);
        }
        Ok(())
    }

    /// Sends a signal to every process in it.
    pub fn signal_all(&self, signal: i32) -> io::Result<()> {
        self.pids()?.into_iter().for_each(|pid| send_signal(pid, signal));
        Ok(())
    }

    /// Kills until nothing is left, or `TimedOut` at the deadline: a process that hangs in the
    /// kernel cannot be killed, and what it holds is not free.
    pub fn kill_all_and_wait_empty(&self, deadline: Instant) -> io::Result<()> {
        loop {
            self.kill_all()?;
            let events = match File::open(self.unified.join("cgroup.events")) {
                Ok(events) => Some(events),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            if self.is_empty()? {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "processes are left in {}: {:?}",
                        self.unified.display(),
                        self.pids().unwrap_or_default()
                    ),
                ));
            }
            wait_for_change(events.as_ref(), left.min(LOOK_AGAIN));
        }
    }

    /// How many processes the kernel killed in it for want of memory. `None` where no memory
    /// controller watches it.
    pub fn oom_kills(&self) -> io::Result<Option<u64>> {
        let file = match self.v1_dir(V1Controller::Memory) {
            Some(memory) => memory.join("memory.oom_control"),
            None => self.unified.join("memory.events"),
        };
        Ok(read_or_gone(&file)?.and_then(|text| counter(&text, "oom_kill")))
    }

    /// Removes its folders, and those the job made below. It must be empty.
    pub fn remove(&self) -> io::Result<()> {
        let v1 = self.v1.iter().map(|group| group.dir.as_path());
        v1.chain([self.unified.as_path()]).map(remove_tree).fold(Ok(()), Result::and)
    }

    fn v1_dir(&self, controller: V1Controller) -> Option<&Path> {
        self.v1.iter().find(|group| group.controller == controller).map(|group| group.dir.as_path())
    }

    fn v1_pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for group in &self.v1 {
            collect_pids(&group.dir, &mut pids)?;
        }
        Ok(pids)
    }

    fn limit_v2(&self, place: &CgroupPlace, limits: &Limits, missing: &mut Vec<LimitNotEnforced>) {
        let cpu = limits
            .cpu_max_milli
            .map(|milli| format!("{} 100000", milli.saturating_mul(100).max(1000)));
        let wanted = [
            // Asked for without a limit too, since it is what counts OOM kills.
            (
                "memory",
                "memory.max",
                Some(limits.memory_max_bytes.map_or("max".to_owned(), |max| max.to_string())),
            ),
            ("pids", "pids.max", limits.pids_max.map(|max| max.to_string())),
            ("cpu", "cpu.max", cpu),
        ];
        for (controller, file, value) in wanted {
            let Some(value) = value else { continue };
            let set = place
                .enable(controller)
                .and_then(|()| write_file(&self.unified.join(file), &value));
            if let Err(error) = set
                && value != "max"
            {
                missing.push(LimitNotEnforced { controller, why: error.to_string() });
            }
        }
    }

    fn limit_v1(
        &mut self,
        place: &CgroupPlace,
        name: &str,
        limits: &Limits,
        missing: &mut Vec<LimitNotEnforced>,
    ) {
        let memory = limits.memory_max_bytes.map(|max| max.to_string());
        let cpu = limits.cpu_max_milli.map(|milli| milli.saturating_mul(100).max(1000).to_string());
        let pids = limits.pids_max.map(|max| max.to_string());
        let wanted = [
            (V1Controller::Memory, "memory", true, "memory.limit_in_bytes", memory),
            (V1Controller::Pids, "pids", false, "pids.max", pids),
            (V1Controller::Cpu, "cpu", false, "cpu.cfs_quota_us", cpu),
        ];
        for (controller, label, without_limit, file, value) in wanted {
            if value.is_none() && !without_limit {
                continue;
            }
            let made = match place.v1.iter().find(|group| group.controller == controller) {
                Some(group) => {
                    let parent = group.dir.join(PARENT);
                    let dir = parent.join(name);
                    make_dir(&parent).and_then(|()| make_dir(&dir)).map(|()| dir)
                }
                None => {
                    Err(io::Error::new(io::ErrorKind::NotFound, "the controller is not mounted"))
                }
            };
            let set = made.and_then(|dir| {
                self.v1.push(V1Group { controller, dir: dir.clone() });
                value.as_ref().map_or(Ok(()), |value| write_file(&dir.join(file), value))
            });
            if let Err(error) = set
                && value.is_some()
            {
                missing.push(LimitNotEnforced { controller: label, why: error.to_string() });
            }
        }
    }
}

/// A name is one folder and nothing else.
fn check_name(name: &str) -> io::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{name:?} is no name for a cgroup: letters, digits, '.', '-' and '_', not starting with '.'"
            ),
        ));
    }
    Ok(())
}

/// Sleeps until the v2 tree reports a change, or the time is up.
fn wait_for_change(events: Option<&File>, at_most: Duration) {
    let timeout = Timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: i64::from(at_most.subsec_nanos()) as _,
    };
    let mut fds: Vec<PollFd<'_>> = Vec::new();
    if let Some(events) = events {
        fds.push(PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI));
    }
    // An interrupted wait only means an earlier look.
    let _ = poll(&mut fds, Some(&timeout));
}

fn send_signal(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // Pid 0 and negative ones mean groups; `cgroup.procs` shows 0 for processes of another pid
    // namespace.
    if pid > 0 {
        // SAFETY: kill(2) takes plain numbers and touches no memory of ours.
        unsafe { libc::kill(pid, signal) };
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Kernel files must exist already, so nothing is ever created by a mistyped name.
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn read_or_gone(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A cgroup that is removed while a file of it is open answers ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The value in a line `KEY VALUE`.
fn counter(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn subdirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    if let Some(text) = read_or_gone(&dir.join("cgroup.procs"))? {
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    subdirs(dir)?.iter().try_for_each(|sub| collect_pids(sub, pids))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for sub in subdirs(dir)? {
        remove_tree(&sub)?;
    }
    // The kernel lets go of a just emptied cgroup a little later than it reports it empty.
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match fs::remove_dir(dir) {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", ".hidden", "a/b", "../x", "a b", "a\0b", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["42.0", "job-1_r3", &"x".repeat(128)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn counters_are_whole_words() {
        let events = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(counter(events, "oom_kill"), Some(2));
        assert_eq!(counter(events, "oom"), Some(3));
        assert_eq!(counter("populated x", "populated"), None);
        assert_eq!(counter("", "populated"), None);
    }

    #[test]
    fn a_cgroup_that_is_gone_is_empty_and_can_be_killed_and_removed() {
        let spec = CgroupSpec::Unified { dir: "/sys/fs/cgroup/tessera-no-such-group/x".into() };
        let cgroup = Cgroup::open(&spec).unwrap();
        assert!(cgroup.is_empty().unwrap());
        assert_eq!(cgroup.oom_kills().unwrap(), None);
        cgroup.kill_all_and_wait_empty(Instant::now()).unwrap();
        cgroup.remove().unwrap();
    }
}
