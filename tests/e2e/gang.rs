//! A gang starts together, every rank knows its place, and nobody sees another's GPU.

use std::collections::{BTreeMap, BTreeSet};

use tessera_proto::v1;
use tessera_tests::{Cluster, ClusterSpec, Person};

const TELL: &str = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $NODE_RANK \
    $MASTER_ADDR:$MASTER_PORT $SLURMD_NODENAME $SLURM_JOB_ID/$SLURM_PROCID/$SLURM_NTASKS/$SLURM_LOCALID \
    $CUDA_VISIBLE_DEVICES";

#[test]
fn sixteen_ranks_on_two_nodes_know_their_places() {
    let cluster = Cluster::start(ClusterSpec::nodes(2));
    let admin = cluster.admin();
    let gang = v1::JobSpec { nodes: 2, gpus_per_node: 8, tasks_per_node: 0, ..cluster.sh(TELL) };
    let id = admin.submit(gang);
    let job = admin.wait(id);
    assert_eq!(job.exit_code, Some(0), "{job:?}");
    let logs = admin.logs(id);
    assert_eq!(logs.len(), 16);
    let mut masters = BTreeSet::new();
    for (rank, text) in &logs {
        let words: Vec<&str> = text.split_whitespace().collect();
        let node = *rank as usize / 8;
        let local = rank % 8;
        let name = job.nodes[node].as_str();
        let slurm = format!("{id}/{rank}/16/{local}");
        let want = [&rank.to_string(), "16", &local.to_string(), "8", &node.to_string()];
        assert_eq!(words[..5], want, "rank {rank}");
        assert_eq!(words[6..8], [name, &slurm], "rank {rank}");
        masters.insert(words[5].to_owned());
        let seen: BTreeSet<String> = words[8].split(',').map(str::to_owned).collect();
        assert_eq!(seen, uuids(admin, name), "rank {rank}: the 8 GPUs of its node");
    }
    assert_eq!(masters.len(), 1, "all ranks meet at one place: {masters:?}");
    let port = masters.first().and_then(|m| m.split(':').nth(1)?.parse::<u16>().ok());
    assert!(port.is_some_and(|p| p > 0), "{masters:?}");
}

#[test]
fn jobs_side_by_side_see_only_their_own_gpus() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let stay = format!("{TELL}; while [ ! -e go ]; do sleep 0.2; done");
    let ids: Vec<u64> = [3, 4, 1, 0]
        .map(|gpus| admin.submit(v1::JobSpec { gpus_per_node: gpus, ..cluster.sh(&stay) }))
        .to_vec();
    ids.iter().for_each(|id| drop(admin.wait_running(*id)));
    // What the scheduler says while they run.
    let node = admin.node("n0");
    let mut held: BTreeMap<u64, BTreeSet<String>> =
        ids.iter().map(|id| (*id, BTreeSet::new())).collect();
    for (gpu, status) in node.inventory.unwrap().gpus.iter().zip(&node.gpus) {
        let job = status.held_by_job.expect("3 + 4 + 1 are all of them");
        held.get_mut(&job).expect("one of ours").insert(gpu.uuid.clone());
        assert_eq!(status.team, "nlp");
    }
    std::fs::write(cluster.work().join("go"), "").unwrap();
    for (id, gpus) in [(ids[0], 3), (ids[1], 4), (ids[2], 1), (ids[3], 0)] {
        assert_eq!(admin.wait(id).exit_code, Some(0));
        let text = &admin.logs(id)[&0];
        let seen: BTreeSet<String> = text
            .split_whitespace()
            .nth(8)
            .map(|list| list.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        assert_eq!(held[&id].len(), gpus);
        assert_eq!(seen, held[&id], "job {id} sees what it holds");
    }
}

fn uuids(admin: &Person, node: &str) -> BTreeSet<String> {
    admin.node(node).inventory.unwrap().gpus.into_iter().map(|g| g.uuid).collect()
}
