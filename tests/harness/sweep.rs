//! Leaving nothing behind: shims and jobs outlive agents by design, so somebody must end them.
//!
//! In: a folder that belonged to one cluster. Out: no process that knows it, no cgroup of its
//! tasks. A process is known by the folder's path in its command line or environment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::until_within;

/// Every cluster's folder begins with this, then the pid of its owner.
pub const PREFIX: &str = "tessera-e2e-";

/// Ends everything below `dir` and removes it.
pub fn sweep(dir: &Path) {
    let groups = cgroups(dir);
    let gone = until_within(Duration::from_secs(20), || {
        groups.iter().for_each(|group| empty(group));
        let left: Vec<u32> = processes_of(dir);
        left.iter().for_each(|pid| kill(*pid));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    if let Err(pids) = gone {
        eprintln!("these processes of {} do not go away: {pids}", dir.display());
    }
    for group in groups.iter().rev() {
        // The kernel lets go a moment after the last process.
        let _ = until_within(Duration::from_secs(2), || {
            remove(group);
            if group.exists() { Err(String::new()) } else { Ok(()) }
        });
    }
}

/// A cgroup and those below it; they go one by one, from the innermost.
fn remove(group: &Path) {
    children(group).iter().for_each(|inner| remove(inner));
    // Tried again by the caller.
    let _ = fs::remove_dir(group);
}

/// Ends what earlier runs left that were killed before they could clean up.
pub fn sweep_orphans(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            sweep(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// As if the power had gone: shims first, so that none of them can tell how its job ended.
pub fn cut_power(node_state: &Path) {
    for task in tasks(node_state) {
        if let Some(pid) = read_json(&task.join("state")).and_then(|s| s["shim_pid"].as_u64()) {
            kill(pid as u32);
        }
    }
    let groups = cgroups(node_state);
    let _ = until_within(Duration::from_secs(20), || {
        groups.iter().for_each(|group| empty(group));
        let left = processes_of(node_state);
        left.iter().for_each(|pid| kill(*pid));
        if left.is_empty() && groups.iter().all(|g| members(g).is_empty()) {
            Ok(())
        } else {
            Err(String::new())
        }
    });
}

/// Task folders below a node's state folder.
pub fn tasks(node_state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for attempt in children(&node_state.join("jobs")) {
        found.extend(children(&attempt).into_iter().filter(|d| d.join("spec").is_file()));
    }
    found.sort();
    found
}

/// Cgroup folders of all attempts and tasks anywhere below `dir`, whether they are still there or
/// not; outer ones first.
pub fn cgroups(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for child in children(&folder) {
            if folder.ends_with("jobs") || folder.ends_with("done") {
                if let Some(around) = read_json(&child.join("cgroup")) {
                    paths_in(&around, &mut found);
                }
                for task in children(&child) {
                    if let Some(spec) = read_json(&task.join("spec")) {
                        paths_in(&spec["cgroup"], &mut found);
                    }
                }
            } else if child.file_name().is_none_or(|n| n != "sys") {
                folders.push(child);
            }
        }
    }
    found.retain(|path| path.starts_with("/sys/fs/cgroup"));
    found
}

fn paths_in(value: &Value, out: &mut BTreeSet<PathBuf>) {
    match value {
        Value::String(text) if text.starts_with('/') => {
            out.insert(PathBuf::from(text));
        }
        Value::Array(list) => list.iter().for_each(|v| paths_in(v, out)),
        Value::Object(map) => map.values().for_each(|v| paths_in(v, out)),
        _ => {}
    }
}

fn empty(group: &Path) {
    if fs::write(group.join("cgroup.kill"), "1").is_err() {
        members(group).into_iter().for_each(kill);
    }
}

fn members(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Living processes with the folder's path in their command line or environment.
pub fn processes_of(dir: &Path) -> Vec<u32> {
    let needle = format!("{}/", dir.display());
    let us = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let knows = |pid: &u32| {
        ["cmdline", "environ"].iter().any(|file| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
        })
    };
    // A zombie has neither command line nor environment, so it is not counted.
    pids.filter(|pid| *pid != us).filter(knows).collect()
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()).collect()
}
