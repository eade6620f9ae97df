//! The scheduler's disk is full: nothing is half done, nothing acknowledged is lost, and it goes on
//! when there is room again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;

use tessera_model::RefusalKind;
use tessera_proto::v1;
use tessera_tests::{Cluster, ClusterSpec, until};

#[test]
fn a_full_disk_refuses_and_recovers() {
    let spec = ClusterSpec { data_size: Some("24m"), agents: false, ..ClusterSpec::nodes(0) };
    let mut cluster = match Cluster::try_start(spec) {
        Ok(cluster) => cluster,
        Err(why) => {
            eprintln!("not told here, a small disk cannot be mounted: {why}");
            return;
        }
    };
    let admin = cluster.admin().clone();
    let large = |n: usize| v1::JobSpec {
        name: format!("job-{n}"),
        script: Some(format!("#!/bin/sh\n# {}\n", "x".repeat(100_000))),
        argv: Vec::new(),
        ..cluster.sh("")
    };
    let mut kept = BTreeSet::new();
    for n in 0..5 {
        kept.insert(admin.submit(large(n)));
    }
    let filler = cluster.data().join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0u8; 64 << 10]).is_ok() {}
    let refusal = until("a submission that finds no room", || {
        let n = kept.len();
        match admin.try_submit(large(n), "") {
            Ok(reply) => {
                kept.insert(reply.job_id);
                Err("there was room in the log".to_owned())
            }
            Err(no) => Ok(no),
        }
    });
    assert!(
        matches!(refusal.kind, RefusalKind::Exhausted | RefusalKind::Unavailable),
        "{refusal:?}"
    );
    assert!(
        refusal.message.contains("disk is full") && refusal.hint.contains("space"),
        "{refusal:?}"
    );
    // It still answers.
    let seen: BTreeSet<u64> = admin.all_jobs().iter().map(|j| j.id).collect();
    assert_eq!(seen, kept, "what was acknowledged, and nothing else");

    drop(file);
    fs::remove_file(&filler).unwrap();
    let id = until("a submission to pass again", || {
        admin.try_submit(large(99), "once").map(|r| r.job_id).map_err(|no| no.message)
    });
    kept.insert(id);
    let seen: BTreeSet<u64> = admin.all_jobs().iter().map(|j| j.id).collect();
    assert_eq!(seen, kept);
    cluster.stop_scheduler();
}
