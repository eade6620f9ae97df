//! The environment of a task, complete: nothing is inherited from the agent.
//!
//! In: the order, where rank 0 is, and whom the task runs as. Out: names and values. A job may set
//! anything but the names by which it learns who and where it is.

use std::collections::BTreeMap;
use std::path::Path;

use tessera_model::UnixMillis;

use super::account::Account;
use super::order::TaskOrder;

pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CLUSTER_NAME: &str = "tessera";

/// Where rank 0 listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    pub address: String,
    pub port: u16,
}

/// `rank` is global, one of `order.rank_range()`.
pub fn environment(
    order: &TaskOrder,
    rank: u32,
    master: &Master,
    account: &Account,
    working_dir: &Path,
    started: UnixMillis,
) -> Vec<(String, String)> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        env.insert(name.to_owned(), value);
    };
    set("PATH", DEFAULT_PATH.to_owned());
    set("HOME", account.home.display().to_string());
    set("USER", account.name.clone());
    set("LOGNAME", account.name.clone());
    set("LANG", "C.UTF-8".to_owned());
    set("TMPDIR", "/tmp".to_owned());
    for (name, value) in &order.env {
        set(name, value.clone());
    }
    for (name, value) in own_names(order, rank, master, working_dir, started) {
        set(name, value);
    }
    env.into_iter().collect()
}

/// The names a job cannot change.
fn own_names(
    order: &TaskOrder,
    rank: u32,
    master: &Master,
    working_dir: &Path,
    started: UnixMillis,
) -> Vec<(&'static str, String)> {
    let local_rank = rank - order.first_rank;
    let node = order.nodes.get(order.node_rank as usize).cloned().unwrap_or_default();
    let uuids: Vec<&str> = order.gpus.iter().map(|gpu| gpu.as_str()).collect();
    let (job, nodes) = (order.attempt.job.to_string(), order.nodes.len());
    // Slurm's short form: alike nodes are written once, `8(x2)`.
    let tasks_per_node =
        if nodes > 1 { format!("{}(x{nodes})", order.ranks) } else { order.ranks.to_string() };
    let mut names = vec![
        ("CUDA_VISIBLE_DEVICES", uuids.join(",")),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", order.world_size.to_string()),
        ("LOCAL_RANK", local_rank.to_string()),
        ("LOCAL_WORLD_SIZE", order.ranks.to_string()),
        ("NODE_RANK", order.node_rank.to_string()),
        ("GROUP_RANK", order.node_rank.to_string()),
        ("MASTER_ADDR", master.address.clone()),
        ("MASTER_PORT", master.port.to_string()),
        ("TESSERA_JOB_ID", job.clone()),
        ("TESSERA_ATTEMPT", order.attempt.to_string()),
        ("SLURM_JOB_ID", job.clone()),
        ("SLURM_JOBID", job),
        ("SLURM_JOB_NAME", order.job_name.clone()),
        ("SLURM_JOB_NODELIST", order.nodes.join(",")),
        ("SLURM_NODELIST", order.nodes.join(",")),
        ("SLURM_JOB_NUM_NODES", nodes.to_string()),
        ("SLURM_NNODES", nodes.to_string()),
        ("SLURM_NODEID", order.node_rank.to_string()),
        ("SLURM_PROCID", rank.to_string()),
        ("SLURM_LOCALID", local_rank.to_string()),
        ("SLURM_NTASKS", order.world_size.to_string()),
        ("SLURM_NPROCS", order.world_size.to_string()),
        ("SLURM_NTASKS_PER_NODE", order.ranks.to_string()),
        ("SLURM_TASKS_PER_NODE", tasks_per_node),
        ("SLURM_CPUS_PER_TASK", order.cpus_per_task.to_string()),
        ("SLURM_GPUS_ON_NODE", order.gpus.len().to_string()),
        ("SLURM_GPUS_PER_NODE", order.gpus_per_node.to_string()),
        ("SLURM_JOB_ACCOUNT", order.team.clone()),
        ("SLURM_JOB_USER", order.user.clone()),
        ("SLURM_SUBMIT_DIR", working_dir.display().to_string()),
        ("SLURMD_NODENAME", node),
        ("SLURM_RESTART_COUNT", order.attempt.number.saturating_sub(1).to_string()),
        ("SLURM_STEP_ID", "0".to_owned()),
        ("SLURM_CLUSTER_NAME", CLUSTER_NAME.to_owned()),
        ("SLURM_JOB_START_TIME", (started.0 / 1000).to_string()),
    ];
    if let Some(limit) = order.time_limit {
        names.push(("SLURM_JOB_END_TIME", (started.plus(limit).0 / 1000).to_string()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::Millis;

    #[test]
    fn a_task_knows_who_and_where_it_is_and_a_job_cannot_change_that() {
        let mut order = crate::runner::order::tests::sample();
        order.env = [("RANK", "99"), ("PATH", "/opt/bin"), ("MASTER_PORT", "1"), ("SEED", "7")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        order.time_limit = Some(Millis::from_secs(60));
        let master = Master { address: "10.0.0.1".into(), port: 29_500 };
        let account = Account { name: "ada".into(), home: "/home/ada".into(), groups: vec![] };
        let at = UnixMillis(1_000_000);
        let env = environment(&order, 3, &master, &account, Path::new("/data"), at);
        let get = |name: &str| {
            let found: Vec<&str> =
                env.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
            assert!(found.len() <= 1, "{name} twice");
            found.first().copied().unwrap_or("absent")
        };
        let want = "CUDA_VISIBLE_DEVICES=GPU-1,GPU-2 CUDA_DEVICE_ORDER=PCI_BUS_ID RANK=3 WORLD_SIZE=4 \
            LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 NODE_RANK=1 GROUP_RANK=1 MASTER_ADDR=10.0.0.1 \
            MASTER_PORT=29500 TESSERA_JOB_ID=812 TESSERA_ATTEMPT=812.1 SLURM_JOB_ID=812 \
            SLURM_JOBID=812 SLURM_JOB_NAME=train SLURM_JOB_NODELIST=a,b SLURM_NODELIST=a,b \
            SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 SLURM_NODEID=1 SLURM_PROCID=3 SLURM_LOCALID=1 \
            SLURM_NTASKS=4 SLURM_NPROCS=4 SLURM_NTASKS_PER_NODE=2 SLURM_TASKS_PER_NODE=2(x2) \
            SLURM_CPUS_PER_TASK=4 SLURM_GPUS_ON_NODE=2 SLURM_GPUS_PER_NODE=2 SLURM_JOB_ACCOUNT=nlp \
            SLURM_JOB_USER=ada SLURM_SUBMIT_DIR=/data SLURMD_NODENAME=b SLURM_RESTART_COUNT=0 \
            SLURM_STEP_ID=0 SLURM_CLUSTER_NAME=tessera SLURM_JOB_START_TIME=1000 \
            SLURM_JOB_END_TIME=1060 PATH=/opt/bin HOME=/home/ada USER=ada LOGNAME=ada LANG=C.UTF-8 \
            TMPDIR=/tmp SEED=7";
        let mut count = 0;
        for pair in want.split_whitespace() {
            let (name, value) = pair.split_once('=').unwrap();
            assert_eq!(get(name), value, "{name}");
            count += 1;
        }
        assert_eq!(env.len(), count, "and nothing else: {env:?}");
        order.gpus.clear();
        let env = environment(&order, 2, &master, &account, Path::new("/"), at);
        assert!(env.contains(&("CUDA_VISIBLE_DEVICES".into(), String::new())), "none means none");
    }
}
