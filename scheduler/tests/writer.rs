//! The writer and its store, without a network: what is acknowledged is on disk, what is refused
//! left no trace.

use std::collections::BTreeMap;
use std::path::Path;

use tessera_core::door::{self, Hello, Report};
use tessera_core::due::Limits;
use tessera_core::{Event, Order};
use tessera_model::*;
use tessera_scheduler::store::Store;
use tessera_scheduler::writer::{self, Handle};

fn admin() -> Principal {
    let user = UserId::parse("root").unwrap();
    Principal { user, role: Role::Admin, teams: Vec::new(), unix: None }
}

fn spec(gpus: u32) -> JobSpec {
    JobSpec {
        name: "job".into(),
        team: TeamId::parse("nlp").unwrap(),
        project: ProjectId::parse("default").unwrap(),
        user: admin().user,
        tags: BTreeMap::new(),
        gang: Gang {
            nodes: 1,
            gpus_per_node: gpus,
            tasks_per_node: 1,
            cpus_per_task: 1,
            memory_per_node: Bytes(0),
            gpu_model: None,
            gpu_milli: WHOLE_GPU,
        },
        tier: Tier::Normal,
        roles: Vec::new(),
        placement: Placement::default(),
        priority: 0,
        time_limit: None,
        requeue: false,
        begin: None,
        after: Vec::new(),
        singleton: false,
        hold: false,
        min_nodes: None,
        spares: 0,
        checkpoint: None,
        reservation: None,
        program: Program {
            argv: vec!["true".into()],
            script: None,
            env: BTreeMap::new(),
            working_dir: None,
        },
        unix: None,
    }
}

fn inventory() -> NodeInventory {
    let gpu = |index: u32| Gpu {
        id: GpuId::parse(&format!("GPU-{index}")).unwrap(),
        index,
        model: "NVIDIA H100 80GB HBM3".into(),
        memory: Bytes::gib(80),
        pci_bus_id: format!("0000:{index:02x}:00.0"),
        numa: Some(index / 4),
        nvlink_group: Some(0),
        nvlink_domain: None,
        nic: None,
        rail: None,
        mig: None,
    };
    NodeInventory {
        node: NodeId::parse("n0").unwrap(),
        boot: BootId::parse("boot-1").unwrap(),
        agent_version: "0".into(),
        address: "127.0.0.1".into(),
        cpus: 64,
        memory: Bytes::gib(512),
        driver_version: None,
        gpus: (0..8).map(gpu).collect(),
        nics: Vec::new(),
        labels: BTreeMap::new(),
        neighbours: Vec::new(),
    }
}

fn start(dir: &Path) -> Handle {
    let store = Store::open(dir).unwrap();
    writer::start(store, Limits::default()).unwrap().0
}

async fn with_team(dir: &Path) -> Handle {
    let handle = start(dir);
    let team = TeamId::parse("nlp").unwrap();
    handle.change(move |c, _| door::create_team(c, &admin(), team, "")).await.unwrap();
    handle
}

async fn submit(handle: &Handle, spec: JobSpec, key: &str) -> Result<door::Submitted, Refusal> {
    let key = key.to_owned();
    handle.change(move |c, now| door::submit(c, now, &admin(), spec, &key)).await
}

/// Brings node n0 up in a session and returns what it is told.
async fn node_up(handle: &Handle, session: u64) -> tokio::sync::mpsc::Receiver<Order> {
    let (tx, rx) = tokio::sync::mpsc::channel(64);
    let hello = Hello {
        session: SessionId(session),
        epoch: Epoch(0),
        inventory: inventory(),
        conditions: BTreeMap::new(),
        running: Vec::new(),
        finished: Vec::new(),
    };
    handle.hello(hello, tx).await.unwrap();
    rx
}

#[tokio::test]
async fn an_acknowledged_job_is_in_the_file_whatever_happens_next() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let job = submit(&handle, spec(1), "key").await.unwrap().job;
    // The process is gone at once: a copy of its folder is all that is left.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let after = start(copy.path());
    let again = submit(&after, spec(1), "key").await.unwrap();
    assert_eq!((again.job, again.existing), (job, true));
    let other = submit(&after, spec(2), "key").await.unwrap_err();
    assert_eq!(other.kind, RefusalKind::AlreadyExists);
}

#[tokio::test]
async fn many_submitters_get_one_number_each() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..200 {
        let handle = handle.clone();
        tasks.spawn(async move { submit(&handle, spec(1), &format!("k{i}")).await.unwrap().job });
    }
    let mut ids = tasks.join_all().await;
    ids.sort();
    assert_eq!(ids, (1..=200).map(JobId).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_job_goes_its_way_and_its_gpu_time_is_in_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let mut orders = node_up(&handle, 7).await;
    let job = submit(&handle, spec(2), "").await.unwrap().job;
    let Some(Order::Prepare { lease, .. }) = orders.recv().await else { panic!("no prepare") };
    let attempt = lease.attempt;
    assert_eq!(attempt.job, job);
    let node = inventory().node;
    let tell = |report| handle.report(node.clone(), SessionId(7), report).unwrap();
    tell(Report::Prepared { attempt, master_port: 4242 });
    let Some(Order::Commit { master_port: 4242, .. }) = orders.recv().await else {
        panic!("no commit")
    };
    tell(Report::Started { attempt });
    // The lease has to have some length to be seen in whole milliseconds.
    let started = handle.read(|v| v.now).await.unwrap();
    while handle.read(|v| v.now).await.unwrap() <= started {}
    tell(Report::TaskEnded { attempt, rank: 0, end: TaskEnd::Exited { code: 0 } });
    tell(Report::Released { attempt, occupied: BTreeMap::new() });
    assert_eq!(orders.recv().await, Some(Order::Forget { attempt }));
    let (state, revision, now, open) = handle
        .read(move |v| {
            let state = v.cluster.jobs.get(job).unwrap().state;
            let open: Vec<_> = v.cluster.timeline.open_until(v.now).collect();
            (state, v.cluster.revision, v.now, open)
        })
        .await
        .unwrap();
    assert_eq!(state, JobState::Succeeded);
    let mut all = open;
    handle.reader().intervals(UnixMillis(0), now, revision, |i| all.push(i)).unwrap();
    let length = |i: &tessera_model::usage::Interval| i.end.since(i.start).0;
    let first_seen = all.iter().map(|i| i.start).min().unwrap();
    assert_eq!(all.iter().map(length).sum::<u64>(), 8 * now.since(first_seen).0);
    let held: Vec<_> = all.iter().filter(|i| i.class.word() == "allocated").collect();
    assert_eq!(held.len(), 2, "one stretch for each of its two GPUs");
    assert_eq!((held[0].start, held[0].end), (held[1].start, held[1].end));
    assert_eq!(held[0].class.account(), "nlp");
}

#[tokio::test]
async fn an_agent_that_takes_no_orders_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let orders = node_up(&handle, 7).await;
    drop(orders);
    submit(&handle, spec(1), "").await.unwrap();
    // It is heard again in a new session, and told everything once more.
    let mut orders = node_up(&handle, 8).await;
    let Some(Order::Prepare { lease, .. }) = orders.recv().await else { panic!("no prepare") };
    assert_eq!(lease.places[0].session, SessionId(8), "the first lease was for session 7");
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let size = "size=3m";
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", size, "tmpfs"])
        .arg(dir.path())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        eprintln!("skipped: mounting a small disk takes root");
        return;
    }
    let handle = with_team(dir.path()).await;
    let mut orders = node_up(&handle, 7).await;
    let mut acknowledged = Vec::new();
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![0u8; 1 << 20]).unwrap();
    let refusal = loop {
        let mut job = spec(0);
        job.gang.cpus_per_task = 64;
        job.program.argv = vec!["x".repeat(20_000)];
        match submit(&handle, job, &format!("k{}", acknowledged.len())).await {
            Ok(done) => acknowledged.push(done.job),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.kind, RefusalKind::Exhausted, "{refusal}");
    assert!(refusal.message.contains("disk is full"), "{refusal}");
    // Leases go on all the same: a heartbeat is answered.
    while orders.try_recv().is_ok() {}
    let beat = Report::Heartbeat { sent_boottime_ms: 42 };
    handle.report(inventory().node, SessionId(7), beat).unwrap();
    let grant = Order::Grant { heartbeat_sent_boottime_ms: 42 };
    assert_eq!(orders.recv().await, Some(grant));
    std::fs::remove_file(&ballast).unwrap();
    let next = loop {
        match submit(&handle, spec(1), "after").await {
            Ok(next) => break next,
            Err(refusal) => assert_eq!(refusal.kind, RefusalKind::Exhausted, "{refusal}"),
        }
    };
    assert_eq!(orders.recv().await, None, "agents say hello again and repeat what was missed");
    assert_eq!(next.job.0, acknowledged.last().unwrap().0 + 1, "nothing of the refused one stayed");
    let known = acknowledged.clone();
    let all =
        handle.read(move |v| known.iter().all(|j| v.cluster.jobs.get(*j).is_some())).await.unwrap();
    assert!(all, "every acknowledged job is still there");
    handle.stop().await;
    let unmounted =
        std::process::Command::new("umount").arg("-l").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
}

#[tokio::test]
async fn a_snapshot_and_the_journal_tell_the_same_story() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let _orders = node_up(&handle, 7).await;
    for _ in 0..5 {
        submit(&handle, spec(3), "").await.unwrap();
    }
    let before = handle.read(|v| v.cluster.clone()).await.unwrap();
    handle.stop().await;
    let mut from_snapshot = Store::open(dir.path()).unwrap();
    let a = from_snapshot.load().unwrap();
    std::fs::remove_file(dir.path().join("snapshot.json")).unwrap();
    let db = rusqlite::Connection::open(dir.path().join("tessera.db")).unwrap();
    let b = from_snapshot.load().unwrap();
    let strip = |mut c: tessera_core::Cluster| {
        c.nodes.values_mut().for_each(|n| n.last_seen = UnixMillis(0));
        c.take_outbox();
        c
    };
    assert_eq!(strip(a), strip(before.clone()));
    assert_eq!(strip(b), strip(before));
    let kinds: Vec<String> = {
        let mut query = db.prepare("SELECT DISTINCT kind FROM journal ORDER BY 1").unwrap();
        query.query_map([], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(kinds, ["epoch_began", "job_submitted", "lease_granted", "node_up", "team_created"]);
    assert_eq!(Event::EpochBegan { epoch: Epoch(1) }.kind(), "epoch_began");
}

#[tokio::test]
async fn a_retired_node_leaves_the_table_that_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { silent: Millis(1), ..Limits::default() };
    let handle = writer::start(Store::open(dir.path()).unwrap(), limits).unwrap().0;
    let _orders = node_up(&handle, 7).await;
    let db = rusqlite::Connection::open(dir.path().join("tessera.db")).unwrap();
    let rows = || db.query_row("SELECT count(*) FROM nodes", [], |r| r.get::<_, u32>(0)).unwrap();
    assert_eq!(rows(), 1);
    let node = inventory().node;
    let mut changes = handle.watch();
    loop {
        let node = node.clone();
        let retired = handle.change(move |c, now| door::retire(c, now, &admin(), &node, "scrap"));
        match retired.await {
            Ok(jobs) => break assert_eq!(jobs, []),
            // It is up until its silence is noticed.
            Err(refusal) => assert_eq!(refusal.kind, RefusalKind::Precondition, "{refusal}"),
        }
        changes.changed().await.unwrap();
    }
    assert_eq!(rows(), 0);
}

#[tokio::test]
async fn a_new_reign_places_nothing_on_a_node_that_it_has_not_heard_of() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let _orders = node_up(&handle, 7).await;
    handle.stop().await;
    let handle = start(dir.path());
    let job = submit(&handle, spec(2), "").await.unwrap().job;
    let state = |v: &writer::View<'_>| v.cluster.jobs.get(JobId(1)).unwrap().state;
    assert_eq!(handle.read(state).await.unwrap(), JobState::Pending);
    let mut orders = node_up(&handle, 8).await;
    let Some(Order::Prepare { lease, .. }) = orders.recv().await else { panic!("no prepare") };
    assert_eq!(lease.attempt.job, job);
}

#[tokio::test]
async fn a_node_that_died_with_the_last_reign_holds_a_new_one_up_only_until_it_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let handle = with_team(dir.path()).await;
    let _orders = node_up(&handle, 7).await;
    handle.stop().await;
    let limits = Limits { silent: Millis(1), ..Limits::default() };
    let handle = writer::start(Store::open(dir.path()).unwrap(), limits).unwrap().0;
    let job = submit(&handle, spec(2), "").await.unwrap().job;
    // Decided: there is a reason, and the dead node got nothing.
    let mut changed = handle.watch();
    while handle.read(move |v| !v.waits.contains_key(&job)).await.unwrap() {
        changed.changed().await.unwrap();
    }
    let state = handle.read(move |v| v.cluster.jobs.get(job).unwrap().state).await.unwrap();
    assert_eq!(state, JobState::Pending);
}
