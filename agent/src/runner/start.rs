//! Shims: one for each rank, all of them made ready before the first one starts.
//!
//! In: a prepared record, where rank 0 is, and the lease. Out: for each rank a running shim, or the
//! end of a task that could not be started. Blocks; not for async threads.

use std::path::{Path, PathBuf};
use std::thread;

use tessera_model::UnixMillis;
use tessera_shim::cgroup::{Cgroup, CgroupPlace, Limits};
use tessera_shim::spec::V1Group;
use tessera_shim::{
    CgroupSpec, LapsePolicy, ShimChild, TaskDir, TaskExit, TaskLease, TaskSpec, spawn_shim,
};

use super::Shared;
use super::account::Account;
use super::adopt::rank_dir;
use super::env::{Master, environment};
use super::order::OrderRecord;
use super::prepare::{SCRIPT, whom, working_dir};

/// Ranks handled at once; each waits for a few fsyncs.
const AT_ONCE: usize = 16;

/// The cgroup around those of all ranks, where there is more than one: it holds the memory limit
/// of the node's part of the job. Kept in the file `cgroup` of the attempt.
pub(super) const CGROUP: &str = "cgroup";

pub(super) type Started = (u32, TaskDir, Result<ShimChild, Box<TaskExit>>);

pub(super) fn start(
    shared: &Shared,
    record: &OrderRecord,
    master: &Master,
    lease: TaskLease,
) -> Vec<Started> {
    let attempt_dir = shared.attempt_dir(record.order.attempt);
    let ranks: Vec<u32> = record.order.rank_range().collect();
    let plan = match Plan::of(shared, record, master, lease, &attempt_dir) {
        Ok(plan) => plan,
        Err(why) => {
            let end = |rank| {
                let dir = TaskDir::new(rank_dir(&attempt_dir, rank));
                let exit = not_started(&dir, &why);
                (rank, dir, Err(Box::new(exit)))
            };
            return ranks.into_iter().map(end).collect();
        }
    };
    let dirs = each(&ranks, |&rank| plan.make_dir(rank));
    let failed = dirs.iter().find_map(|made| made.as_ref().err().cloned());
    if let Some(why) = failed {
        // One rank that cannot start makes the others wait for it in vain.
        let end = |(rank, made): (u32, Result<TaskDir, String>)| {
            let dir = made.unwrap_or_else(|_| TaskDir::new(rank_dir(&attempt_dir, rank)));
            let exit = not_started(&dir, &why);
            (rank, dir, Err(Box::new(exit)))
        };
        return ranks.into_iter().zip(dirs).map(end).collect();
    }
    let dirs: Vec<(u32, TaskDir)> = ranks.into_iter().zip(dirs.into_iter().flatten()).collect();
    each(&dirs, |(rank, dir)| {
        let child = spawn_shim(&shared.settings.shim, dir).map_err(|error| {
            let shim = shared.settings.shim.display();
            Box::new(not_started(dir, &format!("could not start {shim}: {error}")))
        });
        (*rank, dir.clone(), child)
    })
}

/// A few at a time, the answers in order.
pub(super) fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if let [item] = items {
        return vec![work(item)];
    }
    let mut results = Vec::with_capacity(items.len());
    for part in items.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let threads: Vec<_> = part.iter().map(|item| scope.spawn(|| work(item))).collect();
            for handle in threads {
                match handle.join() {
                    Ok(result) => results.push(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    results
}

/// The end of a task whose program never ran, written down where that is possible.
fn not_started(dir: &TaskDir, why: &str) -> TaskExit {
    let exit = TaskExit {
        code: Some(126),
        spawn_error: Some(why.to_owned()),
        ended_unix_ms: tessera_shim::proc::unix_ms(),
        ..TaskExit::default()
    };
    if let Err(error) = dir.write_exit(&exit) {
        tracing::warn!(dir = %dir.path().display(), %error, "the end of the task is not on disk; it is reported from memory");
    }
    if let Some(cgroup) = dir.read_spec().ok().and_then(|spec| Cgroup::open(&spec.cgroup)) {
        // Nothing was ever in it.
        let _ = cgroup.remove();
    }
    exit
}

/// What all ranks share.
struct Plan<'a> {
    record: &'a OrderRecord,
    master: &'a Master,
    lease: TaskLease,
    attempt_dir: &'a Path,
    argv: Vec<String>,
    working_dir: PathBuf,
    account: Account,
    identity: Option<tessera_model::UnixIdentity>,
    started: UnixMillis,
    around: Option<CgroupPlace>,
}

impl<'a> Plan<'a> {
    fn of(
        shared: &Shared,
        record: &'a OrderRecord,
        master: &'a Master,
        lease: TaskLease,
        attempt_dir: &'a Path,
    ) -> Result<Self, String> {
        let order = &record.order;
        // Asked at prepare already, but a file server may be gone since.
        let (identity, account) = whom(shared, order)?;
        let working_dir = working_dir(shared, order, &account.home)?;
        let mut argv = order.argv.clone();
        if order.script.is_some() {
            argv.insert(0, attempt_dir.join(SCRIPT).display().to_string());
        }
        let started = UnixMillis(i64::try_from(tessera_shim::proc::unix_ms()).unwrap_or(i64::MAX));
        let around = if order.ranks > 1 { around(record, attempt_dir) } else { None };
        Ok(Self {
            record,
            master,
            lease,
            attempt_dir,
            argv,
            working_dir,
            account,
            identity,
            started,
            around,
        })
    }

    fn make_dir(&self, rank: u32) -> Result<TaskDir, String> {
        let order = &self.record.order;
        let dir = rank_dir(self.attempt_dir, rank);
        let env =
            environment(order, rank, self.master, &self.account, &self.working_dir, self.started);
        let mut spec =
            TaskSpec::new(order.attempt.to_string(), self.argv.clone(), &self.working_dir);
        spec.rank = rank;
        spec.env = env;
        spec.cgroup = self.cgroup(rank);
        if let Some(user) = self.identity {
            spec.uid = Some(user.uid);
            spec.gid = Some(user.gid);
            spec.groups.clone_from(&self.account.groups);
        }
        if order.stop_on_lapse {
            spec.policy_on_lapse = LapsePolicy::Stop;
            spec.kill_grace_ms = order.lapse_grace.0;
        }
        let made = TaskDir::create(dir, &spec).and_then(|dir| {
            if order.stop_on_lapse {
                dir.write_lease(self.lease)?;
            }
            Ok(dir)
        });
        made.map_err(|error| {
            if let Some(cgroup) = Cgroup::open(&spec.cgroup) {
                // Nothing was ever in it.
                let _ = cgroup.remove();
            }
            let cause = std::error::Error::source(&error).map(|s| format!(": {s}"));
            format!("{error}{}; {}", cause.unwrap_or_default(), error.hint())
        })
    }

    fn cgroup(&self, rank: u32) -> CgroupSpec {
        let made = match &self.around {
            Some(place) => Cgroup::create_at(place, &format!("r{rank}"), &Limits::default()),
            None => Cgroup::create(&self.cgroup_name(rank), &limits(self.record)),
        };
        match made {
            Ok((cgroup, missing)) => {
                for limit in missing {
                    tracing::warn!(attempt = %self.record.order.attempt, %limit, "a limit is missing");
                }
                cgroup.spec()
            }
            Err(error) => {
                tracing::warn!(attempt = %self.record.order.attempt, %error, "no cgroup can be made here: processes are followed by their environment, and memory is not limited");
                CgroupSpec::None
            }
        }
    }

    fn cgroup_name(&self, rank: u32) -> String {
        format!("{}-r{rank}-{}", self.record.order.attempt, self.record.mark)
    }
}

fn limits(record: &OrderRecord) -> Limits {
    let memory = record.order.memory.0;
    Limits { memory_max_bytes: (memory > 0).then_some(memory), ..Limits::default() }
}

/// Makes the cgroup around those of the ranks, and keeps its name.
fn around(record: &OrderRecord, attempt_dir: &Path) -> Option<CgroupPlace> {
    let name = format!("{}-{}", record.order.attempt, record.mark);
    // Where none can be made, each rank's own try says why.
    let (cgroup, missing) = Cgroup::create(&name, &limits(record)).ok()?;
    for limit in missing {
        tracing::warn!(attempt = %record.order.attempt, %limit, "a limit is missing");
    }
    let spec = cgroup.spec();
    // Not durable: after a power loss the cgroup is gone as well.
    let kept = serde_json::to_vec(&spec).map_err(std::io::Error::from);
    if let Err(error) = kept.and_then(|bytes| std::fs::write(attempt_dir.join(CGROUP), bytes)) {
        tracing::warn!(attempt = %record.order.attempt, %error, "could not write down the attempt's cgroup; it may stay behind, empty");
    }
    match spec {
        CgroupSpec::Unified { dir } => {
            Some(CgroupPlace { unified: dir, v1: Vec::<V1Group>::new() })
        }
        CgroupSpec::Hybrid { unified, v1 } => Some(CgroupPlace { unified, v1 }),
        CgroupSpec::None => None,
    }
}

/// The cgroup around all ranks, if there is one.
pub(super) fn cgroup_around(attempt_dir: &Path) -> Option<Cgroup> {
    let bytes = std::fs::read(attempt_dir.join(CGROUP)).ok()?;
    Cgroup::open(&serde_json::from_slice(&bytes).ok()?)
}
