//! A program that cannot start says which value is at fault and what to do, and ends with 2.

use std::fs;
use std::process::Command;

use tessera_tests::{Cluster, ClusterSpec, Said};

#[track_caller]
fn refused(said: &Said, words: &[&str]) {
    assert_eq!(said.code(), 2, "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{word:?} is missing in: {}", said.stderr);
    }
    assert!(said.stderr.contains("hint:"), "what to do is missing in: {}", said.stderr);
    assert!(!said.stdout.contains("ready"), "{said:?}");
    assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
}

#[test]
fn a_scheduler_that_cannot_start_says_why() {
    let cluster = Cluster::start(ClusterSpec { agents: false, ..ClusterSpec::nodes(0) });
    let port = cluster.url().rsplit(':').next().unwrap().to_owned();
    let scheduler = || Command::new(cluster.binaries.path("tessera-scheduler"));
    let listen = ["--listen", "127.0.0.1:0"];
    let elsewhere = cluster.dir.join("elsewhere");

    let said = cluster.run(scheduler().arg("--data").arg(cluster.data()).args(listen));
    refused(&said, &["another scheduler", &cluster.data().display().to_string()]);
    let taken = format!("127.0.0.1:{port}");
    let said = cluster.run(scheduler().arg("--data").arg(&elsewhere).args(["--listen", &taken]));
    refused(&said, &[&taken, "in use"]);
    let said = cluster.run(&mut scheduler());
    refused(&said, &["data folder", "--data"]);
    let said = cluster.run(scheduler().args(["--data", "/proc/nowhere"]).args(listen));
    refused(&said, &["/proc/nowhere"]);

    let map = cluster.dir.join("map.toml");
    let cases = [
        ("levels = [\"leaf\"]\n\n[[leef]]\nname = \"a\"\n", "map.toml:3:", "leaf"),
        (
            "levels = [\"leaf\"]\n[[leaf]]\nname = \"a\"\nnodes = [\"n[3-1]\"]\n",
            "map.toml:4:",
            "n[3-1]",
        ),
        ("levels = [\"leaf\"\n", "map.toml:", "TOML"),
    ];
    for (text, place, word) in cases {
        fs::write(&map, text).unwrap();
        let said = cluster.run(
            scheduler().arg("--data").arg(&elsewhere).args(listen).arg("--topology").arg(&map),
        );
        refused(&said, &[place, word]);
    }
    let said = cluster.run(
        scheduler().arg("--data").arg(&elsewhere).args(listen).args(["--topology", "/no/such/map"]),
    );
    refused(&said, &["/no/such/map"]);

    let config = cluster.dir.join("scheduler.toml");
    fs::write(&config, "data = \"x\"\n\nhartbeat_ms = 100\n").unwrap();
    let said = cluster.run(scheduler().arg("--config").arg(&config));
    refused(&said, &["scheduler.toml:3:", "heartbeat_ms"]);
    let flags = ["--lease-ms", "10000", "--node-silent-ms", "20000"];
    let said = cluster.run(scheduler().arg("--data").arg(&elsewhere).args(listen).args(flags));
    refused(&said, &["10000", "20000"]);

    // The first one has noticed nothing.
    assert_eq!(cluster.cli(&["status"]).code(), 0);
}

#[test]
fn an_agent_that_cannot_start_says_why() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let agent = || Command::new(cluster.binaries.path("tessera-agent"));
    let state = cluster.dir.join("fresh");

    // Only the lock tells it from the node's own agent, which runs.
    let said = cluster.run(&mut cluster.agent_command(0));
    refused(&said, &["another agent", &cluster.nodes[0].state.display().to_string()]);
    let said = cluster.run(agent().args(["--server", &cluster.url()]));
    refused(&said, &["state folder", "--state"]);
    let said = cluster.run(agent().arg("--state").arg(&state));
    refused(&said, &["scheduler", "--server"]);
    let with = |more: &[&str]| {
        cluster
            .run(agent().args(["--server", &cluster.url()]).arg("--state").arg(&state).args(more))
    };
    refused(&with(&["--name", "fresh"]), &["join token"]);
    refused(&with(&["--join-token", "tsrj1.abc"]), &["join token"]);
    refused(&with(&["--name", "Not A Name"]), &["Not A Name"]);
    refused(&with(&["--shim", "/no/such/shim"]), &["/no/such/shim"]);
    refused(&with(&["--config", "/no/such/agent.toml"]), &["/no/such/agent.toml"]);
    let probe = cluster.run(
        agent()
            .args(["probe", "--json", "--nvml-lib"])
            .arg(cluster.nodes[0].machine.join("libnvidia-ml.so.1"))
            .arg("--sysfs-root")
            .arg(cluster.nodes[0].machine.join("sys")),
    );
    let probe = probe.ok();
    let uuid = cluster.admin().node("n0").inventory.unwrap().gpus[7].uuid.clone();
    assert!(probe.stdout.contains(&uuid), "{}", probe.stdout);
}
