//! Where on this machine a job's cgroup can be made.
//!
//! In: `/proc/self/mountinfo` and `/proc/self/cgroup`. Out: the v2 folder we are in, and the v1
//! folders where the machine still has controllers there. Whether they can be written shows when
//! the cgroup is made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{PARENT, make_dir, write_file};
use crate::spec::{V1Controller, V1Group};

/// Where the agent puts itself if a v2 cgroup must not hold processes next to job cgroups.
const AGENT_LEAF: &str = "tessera-agent";

/// The folders below which job cgroups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlace {
    pub unified: PathBuf,
    /// Empty on pure v2.
    pub v1: Vec<V1Group>,
}

impl CgroupPlace {
    /// The caller's own cgroups, which systemd delegates to a service with `Delegate=yes`.
    pub fn discover() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        parse(&mounts, &own)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 tree is mounted"))
    }

    /// Hands a v2 controller down to the job cgroups.
    pub(super) fn enable(&self, controller: &str) -> io::Result<()> {
        let value = format!("+{controller}");
        let own = self.unified.join("cgroup.subtree_control");
        match write_file(&own, &value) {
            // "No internal processes": we ourselves may be the only ones in the way.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let leaf = self.unified.join(AGENT_LEAF);
                make_dir(&leaf)?;
                write_file(&leaf.join("cgroup.procs"), "0")?;
                write_file(&own, &value)?;
            }
            other => other?,
        }
        write_file(&self.unified.join(PARENT).join("cgroup.subtree_control"), &value)
    }
}

fn parse(mounts: &str, own: &str) -> Option<CgroupPlace> {
    let mut unified = None;
    let mut v1 = Vec::new();
    for line in mounts.lines() {
        // ID PARENT DEV ROOT MOUNT_POINT OPTIONS... - FSTYPE SOURCE SUPER_OPTIONS
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (left.next(), left.next()) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
        match kind {
            "cgroup2" if unified.is_none() => {
                let path = own_path(own, "")?;
                let path = path.strip_suffix(&format!("/{AGENT_LEAF}")).unwrap_or(path);
                unified = Some(below(point, root, path));
            }
            "cgroup" => {
                for (controller, label) in [
                    (V1Controller::Memory, "memory"),
                    (V1Controller::Pids, "pids"),
                    (V1Controller::Cpu, "cpu"),
                ] {
                    if options.split(',').any(|option| option == label)
                        && !v1.iter().any(|group: &V1Group| group.controller == controller)
                        && let Some(path) = own_path(own, label)
                    {
                        v1.push(V1Group { controller, dir: below(point, root, path) });
                    }
                }
            }
            _ => {}
        }
    }
    Some(CgroupPlace { unified: unified?, v1 })
}

/// Our path in one hierarchy, out of lines `ID:CONTROLLERS:PATH`. v2 has no controllers there.
fn own_path<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let names = fields.nth(1)?;
        let path = fields.next()?;
        names.split(',').any(|name| name == controller).then_some(path)
    })
}

/// A mount may show only the part of the hierarchy from `root` on, as in containers.
fn below(point: &str, root: &str, path: &str) -> PathBuf {
    let path = Path::new(path);
    let relative =
        path.strip_prefix(root).or_else(|_| path.strip_prefix("/")).unwrap_or(Path::new(""));
    if relative.as_os_str().is_empty() {
        PathBuf::from(point)
    } else {
        Path::new(point).join(relative)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_v2_of_a_systemd_service() {
        let mounts =
            "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        for own in
            ["0::/system.slice/agent.service\n", "0::/system.slice/agent.service/tessera-agent\n"]
        {
            let place = parse(mounts, own).unwrap();
            assert_eq!(
                place.unified,
                Path::new("/sys/fs/cgroup/system.slice/agent.service"),
                "{own}"
            );
            assert_eq!(place.v1, []);
        }
    }

    #[test]
    fn hybrid_finds_each_controller_where_we_are() {
        let mounts = "\
            30 1 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            31 1 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            32 1 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            33 1 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let place = parse(mounts, "5:memory:/a/b\n2:cpu,cpuacct:/\n1:cpuset:/c\n0::/\n").unwrap();
        assert_eq!(place.unified, Path::new("/sys/fs/cgroup/unified"));
        let dirs: Vec<_> =
            place.v1.iter().map(|group| (group.controller, group.dir.to_str().unwrap())).collect();
        assert_eq!(
            dirs,
            [
                (V1Controller::Cpu, "/sys/fs/cgroup/cpu,cpuacct"),
                (V1Controller::Memory, "/sys/fs/cgroup/memory/a/b"),
            ]
        );
    }

    #[test]
    fn a_container_sees_its_own_part() {
        let mounts = "25 1 0:22 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(
            parse(mounts, "0::/docker/x/y\n").unwrap().unified,
            Path::new("/sys/fs/cgroup/y")
        );
        assert_eq!(parse("", "0::/\n"), None);
        assert_eq!(parse("garbage\n - \n", "x"), None);
    }
}
