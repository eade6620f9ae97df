//! Acknowledged means kept: the scheduler is killed while eight clients submit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tessera_model::RefusalKind;
use tessera_proto::v1::JobState;
use tessera_tests::{Cluster, ClusterSpec, full, until, until_within};

const CLIENTS: usize = 8;

#[test]
fn no_acknowledged_job_is_lost_or_doubled_while_the_scheduler_is_killed() {
    let (total, kills) = if full() { (2_000, 20) } else { (200, 5) };
    let mut cluster = Cluster::start(ClusterSpec::nodes(2));
    let admin = cluster.admin().clone();
    let acknowledged: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());
    let count = AtomicUsize::new(0);
    let repeats = AtomicUsize::new(0);
    // Each run leaves a mark with the key it was submitted under.
    let spec = |key: &str| tessera_proto::v1::JobSpec {
        name: key.to_owned(),
        ..cluster.sh(&format!("echo {key} >> marks"))
    };
    let specs: Vec<Vec<_>> = (0..CLIENTS)
        .map(|c| {
            (0..total / CLIENTS)
                .map(|i| format!("client-{c}-job-{i}"))
                .map(|k| (spec(&k), k))
                .collect()
        })
        .collect();
    std::thread::scope(|scope| {
        for mine in &specs {
            let person = admin.again();
            let (acknowledged, count, repeats) = (&acknowledged, &count, &repeats);
            scope.spawn(move || {
                for (spec, key) in mine {
                    let id = until(&format!("{key} to be acknowledged"), || {
                        match person.try_submit(spec.clone(), key) {
                            Ok(reply) => {
                                repeats.fetch_add(usize::from(reply.existing), Ordering::Relaxed);
                                Ok(reply.job_id)
                            }
                            Err(no) if no.kind == RefusalKind::Unavailable => Err(no.message),
                            Err(no) => panic!("{key}: {no}"),
                        }
                    });
                    acknowledged.lock().unwrap().push((key.clone(), id));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for kill in 1..=kills {
            let share = total * kill / (kills + 1);
            until(&format!("{share} acknowledgements"), || {
                let n = count.load(Ordering::Relaxed);
                if n >= share { Ok(()) } else { Err(format!("{n}")) }
            });
            cluster.restart_scheduler();
        }
    });

    let acknowledged = acknowledged.into_inner().unwrap();
    assert_eq!(acknowledged.len(), total);
    let ids: BTreeSet<u64> = acknowledged.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids.len(), total, "ids are unique");
    let by_id: BTreeMap<u64, String> =
        admin.all_jobs().into_iter().map(|j| (j.id, j.spec.unwrap().name)).collect();
    assert_eq!(by_id.len(), total, "none doubled");
    for (key, id) in &acknowledged {
        assert_eq!(by_id.get(id), Some(key), "job {id} was acknowledged");
    }
    // A key that is sent once more still gives its job.
    let (key, id) = &acknowledged[total / 2];
    let again = admin.try_submit(spec_of(&specs, key), key).unwrap();
    assert_eq!((again.job_id, again.existing), (*id, true));

    // And every one of them runs, once.
    let all_over = until_within(Duration::from_secs(300), || {
        let open = admin.all_jobs().into_iter().filter(|j| j.state() != JobState::Succeeded);
        let open: Vec<String> =
            open.map(|j| format!("{} {:?} {}", j.id, j.state(), j.reason)).collect();
        if open.is_empty() {
            Ok(())
        } else {
            Err(format!("{} open: {:?}", open.len(), &open[..open.len().min(5)]))
        }
    });
    if let Err(open) = all_over {
        panic!("{open}");
    }
    let marks = fs::read_to_string(cluster.work().join("marks")).unwrap();
    let mut marks: Vec<&str> = marks.lines().collect();
    marks.sort_unstable();
    let mut keys: Vec<&str> = acknowledged.iter().map(|(k, _)| k.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(marks, keys, "each ran once");
    eprintln!("{total} jobs, {kills} kills, {} keys had to be sent again", repeats.into_inner());
}

fn spec_of(
    specs: &[Vec<(tessera_proto::v1::JobSpec, String)>],
    key: &str,
) -> tessera_proto::v1::JobSpec {
    let all = specs.iter().flatten();
    all.clone().find(|(_, k)| k == key).map(|(spec, _)| spec.clone()).expect("one of ours")
}
