//! The environment of a task, complete: nothing is inherited from the agent.
//!
//! In: the order, where rank 0 is, and whom the task runs as. Out: names and values. A job may set
//! anything but the names by which it learns who and where it is.

use std::collections::BTreeMap;
use std::path::Path;

use tessera_model::{UnixMillis, WHOLE_GPU};

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
    if order.is_share() {
        // Of use under an MPS daemon, harmless without one; a job that knows better says so.
        let percent = order.gpu_milli.div_ceil(10).max(1);
        set("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percent.to_string());
    }
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
    let job = order.attempt.job.to_string();
    // A spare runs nothing, so nobody is to wait for it.
    let (names, ranks): (Vec<&str>, Vec<u32>) = order.working().unzip();
    let (nodes, node_list) = (names.len(), names.join(","));
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
        ("TESSERA_ROLE", order.role.clone()),
        ("SLURM_JOB_ID", job.clone()),
        ("SLURM_JOBID", job),
        ("SLURM_JOB_NAME", order.job_name.clone()),
        ("SLURM_JOB_NODELIST", node_list.clone()),
        ("SLURM_NODELIST", node_list),
        ("SLURM_JOB_NUM_NODES", nodes.to_string()),
        ("SLURM_NNODES", nodes.to_string()),
        ("SLURM_NODEID", order.node_rank.to_string()),
        ("SLURM_PROCID", rank.to_string()),
        ("SLURM_LOCALID", local_rank.to_string()),
        ("SLURM_NTASKS", order.world_size.to_string()),
        ("SLURM_NPROCS", order.world_size.to_string()),
        ("SLURM_NTASKS_PER_NODE", order.ranks.to_string()),
        ("SLURM_TASKS_PER_NODE", short_form(&ranks)),
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
    if let Some(file) = &order.checkpoint_file {
        names.push(("TESSERA_CHECKPOINT_FILE", working_dir.join(file).display().to_string()));
    }
    if let Some(task) = order.array {
        names.push(("TESSERA_ARRAY_ID", task.array.to_string()));
        names.push(("TESSERA_ARRAY_INDEX", task.index.to_string()));
        names.push(("SLURM_ARRAY_JOB_ID", task.array.to_string()));
        names.push(("SLURM_ARRAY_TASK_ID", task.index.to_string()));
    }
    if order.is_share() {
        names.push(("TESSERA_GPU_SHARE", share(order.gpu_milli)));
        names.push(("TESSERA_GPU_SHARE_MODE", "cooperative".to_owned()));
    }
    names
}

/// Thousandths as a fraction: `0.25`.
fn share(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / WHOLE_GPU, milli % WHOLE_GPU);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Slurm's short form: alike neighbours are written once, `8(x2),1`.
fn short_form(ranks: &[u32]) -> String {
    let mut text = String::new();
    for alike in ranks.chunk_by(|a, b| a == b) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&alike[0].to_string());
        if alike.len() > 1 {
            text.push_str(&format!("(x{})", alike.len()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::{ArrayTask, JobId, Millis};

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
            MASTER_PORT=29500 TESSERA_JOB_ID=812 TESSERA_ATTEMPT=812.1 TESSERA_ROLE= SLURM_JOB_ID=812 \
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

    #[test]
    fn roles_spares_shares_and_checkpoints_are_told() {
        let mut order = crate::runner::order::tests::sample();
        let master = Master { address: "10.0.0.1".into(), port: 29_500 };
        let account = Account { name: "ada".into(), home: "/home/ada".into(), groups: vec![] };
        // Two workers, a leader, a spare; this is the leader's node.
        order.nodes = ["a", "b", "c", "d"].map(String::from).to_vec();
        order.addresses = order.nodes.clone();
        order.ranks_of = vec![2, 2, 1, 0];
        (order.node_rank, order.first_rank, order.ranks, order.world_size) = (2, 4, 1, 5);
        order.role = "leader".into();
        order.gpus.truncate(1);
        (order.gpus_per_node, order.gpu_milli) = (1, 250);
        order.checkpoint_file = Some("ckpt/latest".into());
        order.array = Some(ArrayTask { array: JobId(812), index: 7 });
        assert_eq!(order.problem(), None);
        let told = |order: &TaskOrder| {
            environment(order, 4, &master, &account, Path::new("/data"), UnixMillis(0))
        };
        let env = told(&order);
        let want = "RANK=4 WORLD_SIZE=5 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 NODE_RANK=2 \
            TESSERA_ROLE=leader TESSERA_GPU_SHARE=0.25 TESSERA_GPU_SHARE_MODE=cooperative \
            CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25 CUDA_VISIBLE_DEVICES=GPU-1 \
            TESSERA_CHECKPOINT_FILE=/data/ckpt/latest SLURM_JOB_NODELIST=a,b,c SLURM_NNODES=3 \
            SLURM_TASKS_PER_NODE=2(x2),1 SLURM_NTASKS=5 SLURMD_NODENAME=c \
            TESSERA_ARRAY_ID=812 TESSERA_ARRAY_INDEX=7 SLURM_ARRAY_JOB_ID=812 \
            SLURM_ARRAY_TASK_ID=7";
        for pair in want.split_whitespace() {
            let (name, value) = pair.split_once('=').unwrap();
            assert!(env.contains(&(name.into(), value.into())), "{pair} is not in {env:?}");
        }
        order.env.insert("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".into(), "60".into());
        assert!(told(&order).contains(&("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".into(), "60".into())));
        for (milli, want) in [(1, "0.001"), (500, "0.5"), (333, "0.333"), (1000, "1")] {
            assert_eq!(share(milli), want);
        }
    }
}
