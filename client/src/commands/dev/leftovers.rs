//! Tasks that outlived their agents. On a real node that is a promise; on this machine, at the end
//! of a dev cluster, it would be litter.
//!
//! In: an agent's state folder. Out: none of its shims and their processes is left. A shim counts
//! only while boot, pid and start time say it is the very one that was written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

/// How long the shims may take to see that their jobs are gone.
const PATIENCE_STEPS: u32 = 60;
const STEP: Duration = Duration::from_millis(50);

#[derive(Debug, Deserialize)]
struct TaskState {
    shim_pid: u32,
    /// Clock ticks since boot.
    shim_start_time: u64,
    boot_id: String,
}

/// Ends whatever the agent's tasks have left.
pub async fn end(state: &Path) {
    for step in 0.. {
        let shims = living(state);
        if shims.is_empty() {
            remove_cgroups(&state.join("jobs"), 3);
            return;
        }
        let mut doomed = descendants(&shims);
        if step > PATIENCE_STEPS {
            doomed.extend(&shims);
        }
        for pid in doomed {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if step > 2 * PATIENCE_STEPS {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
}

/// A shim removes its own cgroup; the one around all ranks of an attempt was the agent's to remove.
fn remove_cgroups(folder: &Path, depth: u32) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name() == "cgroup" {
            let text = fs::read(&path).unwrap_or_default();
            cgroup_paths(&serde_json::from_slice(&text).unwrap_or_default()).for_each(remove_empty);
        } else if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroups(&path, depth - 1);
        }
    }
}

/// The folders in what the agent wrote down, whichever kind of cgroup it is.
fn cgroup_paths(value: &Value) -> Box<dyn Iterator<Item = &Path> + '_> {
    match value {
        Value::String(text) => {
            Box::new(Some(Path::new(text)).filter(|p| p.starts_with("/sys/fs/cgroup")).into_iter())
        }
        Value::Array(list) => Box::new(list.iter().flat_map(cgroup_paths)),
        Value::Object(map) => Box::new(map.values().flat_map(cgroup_paths)),
        _ => Box::new(std::iter::empty()),
    }
}

/// From the innermost. One that has processes stays, and so do those around it.
fn remove_empty(group: &Path) {
    for inner in fs::read_dir(group).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|t| t.is_dir()) {
            remove_empty(&inner.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Shims below the folder that still run.
fn living(state: &Path) -> BTreeSet<u32> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut found = Vec::new();
    find_states(&state.join("jobs"), 3, &mut found);
    found
        .into_iter()
        .filter(|s| s.boot_id == boot.trim())
        .filter(|s| stat(s.shim_pid).is_some_and(|(_, start)| start == s.shim_start_time))
        .map(|s| s.shim_pid)
        .collect()
}

fn find_states(folder: &Path, depth: u32, found: &mut Vec<TaskState>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name() == "state" {
            let text = fs::read_to_string(&path).unwrap_or_default();
            found.extend(serde_json::from_str(&text).ok());
        } else if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            find_states(&path, depth - 1, found);
        }
    }
}

/// Every process below the given ones.
fn descendants(roots: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if let Some((parent, _)) = stat(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut below = BTreeSet::new();
    let mut ahead: Vec<u32> = roots.iter().copied().collect();
    while let Some(pid) = ahead.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            if below.insert(child) {
                ahead.push(child);
            }
        }
    }
    below
}

/// Parent and start time of a process that is no zombie.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, even a parenthesis.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    let (state, parent, start) = (fields.first()?, fields.get(1)?, fields.get(19)?);
    if matches!(*state, "Z" | "X") {
        return None;
    }
    Some((parent.parse().ok()?, start.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_dead_agent_left_is_ended_and_a_stranger_is_not() {
        let dir = tempfile::tempdir().unwrap();
        // Stands for a shim: it ends when its job does.
        let mut shim = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 1000; exit 0"])
            .spawn()
            .unwrap();
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let write = |name: &str, pid: u32, start: u64| {
            let task = dir.path().join("jobs").join(name).join("0");
            fs::create_dir_all(&task).unwrap();
            let text = format!(
                r#"{{"shim_pid":{pid},"shim_start_time":{start},"boot_id":"{}","job_pid":1,"started_unix_ms":0}}"#,
                boot.trim()
            );
            fs::write(task.join("state"), text).unwrap();
        };
        write("1.1", shim.id(), stat(shim.id()).unwrap().1);
        // The same pid, but another process than the one written down.
        write("2.1", stranger.id(), stat(stranger.id()).unwrap().1 + 1);
        // The shell has to have its child before it can lose it.
        while descendants(&BTreeSet::from([shim.id()])).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        end(dir.path()).await;
        shim.wait().unwrap();
        assert!(stranger.try_wait().unwrap().is_none(), "a stranger was ended");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
