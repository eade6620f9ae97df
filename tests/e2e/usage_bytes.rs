//! The bill of a period that has passed never changes by a byte.

use tessera_model::UnixMillis;
use tessera_proto::v1;
use tessera_tests::{Cluster, ClusterSpec, unix_ms};

use super::submit_to_invoice::every_gpu_is_somewhere_all_the_time;

#[test]
fn usage_is_the_same_bytes_after_a_crash() {
    let mut cluster = Cluster::start(ClusterSpec::nodes(2));
    let admin = cluster.admin().clone();
    admin.set_price("h100", "2.950001");
    let from = unix_ms();
    let job = |team: &str, project: &str, gpus, script: &str| v1::JobSpec {
        team: team.to_owned(),
        project: project.to_owned(),
        gpus_per_node: gpus,
        ..cluster.sh(script)
    };
    let done = [
        job("nlp", "bert", 8, "true"),
        job("nlp", "gpt", 3, "exit 3"),
        job("vision", "", 1, "sleep 0.3"),
    ]
    .map(|spec| admin.submit(spec));
    done.iter().for_each(|id| drop(admin.wait(*id)));
    // One that holds its GPUs across the crash, and a price that changes before it.
    let running = admin.submit(job("vision", "sam", 5, "sleep 600"));
    admin.wait_running(running);
    admin.set_price("h100", "3.5");
    admin.cordon("n1", true);
    let to = unix_ms();

    let cuts =
        ["team,project,gpu_model,day", "gpu,class,job,day", "user,team,class", "node,gpu_model"];
    let bills = |cluster: &Cluster| {
        let (a, b) = (UnixMillis(from).rfc3339(), UnixMillis(to).rfc3339());
        cuts.map(|by| {
            let args = ["usage", "--from", &a, "--to", &b, "--by", by, "--format", "csv"];
            cluster.cli(&args).ok().stdout
        })
    };
    let before = bills(&cluster);
    let teams = &before[0];
    for want in
        ["nlp,bert,NVIDIA H100", "nlp,gpt,", "vision,sam,", "vision,default,", "pool:idle,,"]
    {
        assert!(teams.contains(want), "{want} in\n{teams}");
    }
    for _ in 0..2 {
        cluster.restart_scheduler();
        assert_eq!(bills(&cluster), before, "at once");
        for node in ["n0", "n1"] {
            admin.wait_node_up(node, unix_ms());
        }
        assert_eq!(bills(&cluster), before, "and when the agents are back");
    }
    // Up to now, over both crashes.
    every_gpu_is_somewhere_all_the_time(&cluster, from, unix_ms());
    admin.cancel(running);
    admin.wait(running);
    assert_eq!(bills(&cluster), before, "and after its job has ended");
}
