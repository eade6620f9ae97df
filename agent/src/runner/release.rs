//! Are an attempt's GPUs really free? And does anybody use one that is not given out?
//!
//! In: GPUs whose tasks have all ended. Out: what is still on them when they are given back. A GPU
//! that holds strangers, or that cannot be asked, is given back as occupied and stays so until
//! NVML lists nothing on it; it is never taken for free. On a shared GPU the processes of the
//! others that hold a share of it are no strangers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use tessera_model::{AttemptId, GpuCondition, GpuId};
use tessera_shim::TaskDir;
use tessera_shim::cgroup::Cgroup;

use super::gpus::Processes;
use super::{Occupied, Shared, blocking, start, tenants};

/// How long processes may take to vanish from NVML's lists after their end.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a GPU that does not answer keeps its attempt from being given back.
const SILENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often GPUs that are not given out are looked at.
const ROUNDS: Duration = Duration::from_secs(5);

enum Look {
    Idle,
    Busy(Vec<u32>),
    Silent,
    /// It fell off the bus or wants a reset: no use waiting for its answer.
    Gone,
}

pub(super) async fn until_idle(
    shared: &Arc<Shared>,
    attempt: AttemptId,
    gpus: Vec<GpuId>,
) -> Vec<Occupied> {
    until_cgroups_empty(shared, attempt).await;
    let begun = Instant::now();
    let mut open = gpus;
    let mut pause = FIRST_PAUSE;
    loop {
        let looks = look_at(shared, open, Some(attempt)).await;
        let waited = begun.elapsed();
        let still_waits = looks.iter().any(|(_, look)| match look {
            Look::Idle | Look::Gone => false,
            Look::Busy(_) => waited < DRAIN,
            Look::Silent => waited < SILENCE,
        });
        if !still_waits {
            return looks.into_iter().filter_map(left_on).collect();
        }
        open = looks.into_iter().map(|(gpu, _)| gpu).collect();
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn left_on((gpu, look): (GpuId, Look)) -> Option<Occupied> {
    match look {
        Look::Idle => None,
        Look::Busy(pids) => Some(Occupied { gpu, pids }),
        Look::Silent | Look::Gone => Some(Occupied { gpu, pids: Vec::new() }),
    }
}

/// What is on the GPUs that is not of their holders; `but` counts for none of them.
async fn look_at(
    shared: &Arc<Shared>,
    gpus: Vec<GpuId>,
    but: Option<AttemptId>,
) -> Vec<(GpuId, Look)> {
    let asked = gpus.into_iter().map(|gpu| {
        let shared = Arc::clone(shared);
        tokio::spawn(blocking(move || {
            let look = match tenants::strangers(&shared, &gpu, but) {
                Processes::Pids(pids) if pids.is_empty() => Look::Idle,
                Processes::Pids(pids) => Look::Busy(pids),
                Processes::Silent => match shared.gpus.condition(&gpu) {
                    None | Some(GpuCondition::Lost | GpuCondition::ResetRequired) => Look::Gone,
                    Some(_) => Look::Silent,
                },
            };
            (gpu, look)
        }))
    });
    let mut looks = Vec::new();
    for look in asked.collect::<Vec<_>>() {
        match look.await {
            Ok(look) => looks.push(look),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
    looks
}

/// The shims emptied their ranks' cgroups before they wrote an end; what is looked at here is
/// whether that is so, and the cgroup around them goes.
async fn until_cgroups_empty(shared: &Arc<Shared>, attempt: AttemptId) {
    let mut pause = FIRST_PAUSE;
    loop {
        let dir = shared.attempt_dir(attempt);
        let left = blocking(move || {
            let ranks = super::adopt::rank_dirs(&dir).unwrap_or_default();
            let specs = ranks.iter().filter_map(|(_, dir)| TaskDir::new(dir).read_spec().ok());
            let of_ranks = specs.filter_map(|spec| Cgroup::open(&spec.cgroup));
            let around = start::cgroup_around(&dir);
            for cgroup in of_ranks.chain(around.clone()) {
                match cgroup.is_empty() {
                    Ok(true) => {}
                    Ok(false) => return Some(format!("{} is not empty", cgroup.dir().display())),
                    Err(error) => return Some(format!("{}: {error}", cgroup.dir().display())),
                }
            }
            if let Some(Err(error)) = around.map(|around| around.remove()) {
                tracing::warn!(%error, "an empty cgroup stays behind");
            }
            None
        })
        .await;
        let Some(left) = left else { return };
        if pause == LAST_PAUSE {
            tracing::warn!(%attempt, left, "the attempt's processes are not gone yet; its GPUs are kept");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Looks again and again for strangers, for as long as the runner is there.
pub(super) async fn look_for_strangers(shared: Weak<Shared>) {
    loop {
        sleep(ROUNDS).await;
        let Some(shared) = shared.upgrade() else { return };
        look_at_free(&shared).await;
    }
}

/// One round over the GPUs that no attempt holds, and shared ones that strangers were on.
pub(super) async fn look_at_free(shared: &Arc<Shared>) {
    let (claims, gpus) = shared.book.to_look_at(shared.gpus.all());
    for (gpu, look) in look_at(shared, gpus, None).await {
        match look {
            Look::Idle => shared.book.found_on(&gpu, None, claims),
            Look::Busy(pids) => shared.book.found_on(&gpu, Some(pids), claims),
            // Its own condition says so already; what was last seen on it still holds.
            Look::Silent | Look::Gone => {}
        }
    }
}
