//! Orders, with real shims and no scheduler: what is obeyed, what is refused, what is reported.

#[allow(dead_code, reason = "each test file uses its part of it")]
mod runner_world;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use runner_world::{World, attempt, gpu_id};
use tessera_agent::runner::{Order, Processes, RunnerEvent};
use tessera_agent::session::{BootMillis, Granted};
use tessera_model::{Epoch, GpuCondition, SessionId, TaskEnd, UnixIdentity};

const NO_GRACE: Duration = Duration::ZERO;

#[test]
fn ends_are_exactly_what_the_kernel_said() {
    let mut world = World::new();
    let order = world.order("1.1", 6, "case $RANK in 0) exit 0;; 1) exit 3;; 2) exit 255;; 3) kill -9 $$;; 4) kill -TERM $$;; 5) kill -SEGV $$;; esac");
    world.run(order);
    let wanted = [
        TaskEnd::Exited { code: 0 },
        TaskEnd::Exited { code: 3 },
        TaskEnd::Exited { code: 255 },
        TaskEnd::Signaled { signal: 9, oom: false },
        TaskEnd::Signaled { signal: 15, oom: false },
        TaskEnd::Signaled { signal: 11, oom: false },
    ];
    for (rank, want) in (0..).zip(wanted) {
        assert_eq!(world.end("1.1", rank), want, "rank {rank}");
    }
    assert_eq!(world.released("1.1"), []);
}

#[test]
fn a_program_that_is_not_there_is_no_program_that_failed() {
    let mut world = World::new();
    let mut order = world.order("2.1", 1, "");
    order.argv = vec!["/no/such/program".into()];
    world.run(order);
    match world.end("2.1", 0) {
        TaskEnd::NotStarted { code: 127, why } => {
            assert!(why.contains("/no/such/program"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    world.released("2.1");
}

#[test]
fn a_task_knows_who_it_is_and_sees_only_its_gpus() {
    let mut world = World::new();
    let mut order = world.order("3.2", 2, "env");
    order.gpus = vec![gpu_id("GPU-5"), gpu_id("GPU-2")];
    order.gpus_per_node = 2;
    order.env = [("SEED", "7"), ("RANK", "99"), ("CUDA_VISIBLE_DEVICES", "all")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    world.run(order);
    for rank in 0..2 {
        assert_eq!(world.end("3.2", rank), TaskEnd::Exited { code: 0 });
        let output = world.output("3.2", rank);
        let want = format!(
            "CUDA_VISIBLE_DEVICES=GPU-5,GPU-2 CUDA_DEVICE_ORDER=PCI_BUS_ID RANK={rank} LOCAL_RANK={rank} \
             WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 NODE_RANK=0 GROUP_RANK=0 MASTER_ADDR=10.9.8.7 \
             MASTER_PORT=1234 TESSERA_JOB_ID=3 TESSERA_ATTEMPT=3.2 SLURM_JOB_ID=3 SLURM_PROCID={rank} \
             SLURM_NTASKS=2 SLURMD_NODENAME=n1 SLURM_RESTART_COUNT=1 SLURM_JOB_USER=ada SEED=7"
        );
        for line in want.split_whitespace() {
            assert!(output.lines().any(|l| l == line), "{line} is not in\n{output}");
        }
        for ours in ["CARGO", "RUST_"] {
            assert!(!output.contains(ours), "the agent's own {ours} is in\n{output}");
        }
    }
    world.released("3.2");
}

#[test]
fn a_script_runs_by_its_first_line_with_its_arguments() {
    let mut world = World::new();
    let mut order = world.order("4.1", 1, "");
    order.script = Some("#!/bin/sh\necho \"got $1\"; pwd; exit 4\n".into());
    order.argv = vec!["a b".into()];
    world.run(order);
    assert_eq!(world.end("4.1", 0), TaskEnd::Exited { code: 4 });
    let output = world.output("4.1", 0);
    assert_eq!(output, format!("got a b\n{}\n", world.dir.path().display()));
    let script = world.state().join("jobs/4.1/script");
    assert_eq!(std::fs::metadata(script).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn orders_may_come_twice_and_a_task_starts_once() {
    let mut world = World::new();
    let mark = world.dir.path().join("starts");
    let order = world.order(
        "5.1",
        1,
        &format!("echo x >> {}; echo up; read forever < {}", mark.display(), fifo(&world)),
    );
    let port = |world: &mut World| {
        world.until(|event| match event {
            RunnerEvent::Prepared { master_port, .. } => Some(*master_port),
            _ => None,
        })
    };
    world.prepare(order.clone());
    let first = port(&mut world);
    world.prepare(order.clone());
    assert_eq!(port(&mut world), first, "the same order gets the same answer");
    let other = world.order("5.1", 1, "something else");
    world.prepare(other);
    assert!(world.refusal("5.1").contains("another order"));
    for _ in 0..3 {
        world.commit("5.1");
    }
    let started = RunnerEvent::Started { attempt: attempt("5.1") };
    world.until(|event| (*event == started).then_some(()));
    world.commit("5.1");
    world.until(|event| (*event == started).then_some(()));
    world.prepare(order);
    port(&mut world);
    assert_eq!(world.log("5.1", 0, 0).data, b"up\n");
    world.stop("5.1", NO_GRACE);
    world.stop("5.1", NO_GRACE);
    assert!(matches!(world.end("5.1", 0), TaskEnd::Signaled { .. }));
    world.released("5.1");
    world.stop("5.1", NO_GRACE);
    assert!(matches!(world.end("5.1", 0), TaskEnd::Signaled { .. }), "said again when asked again");
    world.released("5.1");
    assert_eq!(std::fs::read_to_string(mark).unwrap(), "x\n");
}

/// A pipe nobody writes to: reading from it waits for ever.
fn fifo(world: &World) -> String {
    let path = world.dir.path().join("fifo");
    if !path.exists() {
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
    }
    path.display().to_string()
}

#[test]
fn what_does_not_fit_is_refused_with_its_value() {
    let mut world = World::new();
    world.gpus.set_condition("GPU-3", GpuCondition::Xid { code: 79 });
    let base = world.order("6.1", 1, "true");
    let with_gpu = |gpu: &str| {
        let mut order = base.clone();
        order.gpus = vec![gpu_id(gpu)];
        order.gpus_per_node = 1;
        order
    };
    let mut other_session = base.clone();
    other_session.session = SessionId(base.session.0 ^ 1);
    let mut other_node = base.clone();
    other_node.nodes = vec!["n2".into()];
    let mut no_dir = base.clone();
    no_dir.working_dir = Some("/no/such/folder".into());
    let mut no_sense = base.clone();
    (no_sense.ranks, no_sense.ranks_of) = (0, vec![]);
    let cases = [
        ("session", other_session),
        ("n2", other_node),
        ("/no/such/folder", no_dir),
        ("0 ranks", no_sense),
        ("GPU-9", with_gpu("GPU-9")),
        ("XID 79", with_gpu("GPU-3")),
    ];
    for (want, order) in cases {
        world.prepare(order);
        let why = world.refusal("6.1");
        assert!(why.contains(want), "{why:?} does not name {want:?}");
    }
    world.commit("6.1");
    assert!(world.refusal("6.1").contains("never prepared"));
    assert!(!world.state().join("jobs/6.1").exists(), "a refusal leaves nothing behind");
    assert_eq!(world.reconnect(), Default::default());
    // After all these, a good one is still good.
    world.run(base);
    assert_eq!(world.end("6.1", 0), TaskEnd::Exited { code: 0 });
}

#[test]
fn a_gpu_is_held_by_one_attempt_until_nothing_is_on_it() {
    let mut world = World::new();
    let on_gpu = |world: &World, id: &str, script: &str| {
        let mut order = world.order(id, 1, script);
        order.gpus = vec![gpu_id("GPU-1")];
        order.gpus_per_node = 1;
        order
    };
    let script = format!("read forever < {}", fifo(&world));
    let first = on_gpu(&world, "7.1", &script);
    world.run(first);
    let second = on_gpu(&world, "8.1", "true");
    world.prepare(second.clone());
    assert!(world.refusal("8.1").contains("held by attempt 7.1"));
    // A process that NVML still lists keeps the GPU; nobody but it is named.
    world.gpus.set_processes("GPU-1", Processes::Pids(vec![4711]));
    world.stop("7.1", NO_GRACE);
    world.end("7.1", 0);
    assert_eq!(world.released("7.1"), [("GPU-1".to_owned(), vec![4711])]);
    world.prepare(second.clone());
    assert!(world.refusal("8.1").contains("4711"));
    assert_eq!(world.runner.occupied().len(), 1);
    let mut changed = world.runner.occupied_changed();
    changed.mark_unchanged();
    world.gpus.set_processes("GPU-1", Processes::Pids(vec![]));
    world
        .runtime()
        .block_on(async { tokio::time::timeout(runner_world::HANG, changed.changed()).await })
        .expect("it is found free again")
        .unwrap();
    assert_eq!(world.runner.occupied(), []);
    world.run(second);
    world.end("8.1", 0);
    assert_eq!(world.released("8.1"), []);
}

#[test]
fn a_gpu_that_hangs_keeps_its_attempt_until_it_answers() {
    let mut world = World::new();
    let mut order = world.order("9.1", 1, "exit 2");
    order.gpus = vec![gpu_id("GPU-4"), gpu_id("GPU-5")];
    order.gpus_per_node = 2;
    world.prepare(order);
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    world.gpus.set_processes("GPU-4", Processes::Silent);
    world.commit("9.1");
    assert_eq!(world.end("9.1", 0), TaskEnd::Exited { code: 2 });
    let snapshot = world.reconnect();
    assert_eq!(snapshot.running.len(), 1, "its task has ended, it has not: {snapshot:?}");
    assert_eq!(snapshot.running[0].1.ended.len(), 1);
    world.gpus.set_processes("GPU-4", Processes::Pids(vec![]));
    assert_eq!(world.released("9.1"), []);
}

#[test]
fn a_gpu_that_fell_off_the_bus_is_given_back_as_nobody_knows() {
    let mut world = World::new();
    let mut order = world.order("10.1", 1, "exit 1");
    order.gpus = vec![gpu_id("GPU-6")];
    order.gpus_per_node = 1;
    world.prepare(order);
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    world.gpus.set_condition("GPU-6", GpuCondition::Lost);
    world.gpus.set_processes("GPU-6", Processes::Silent);
    world.commit("10.1");
    assert_eq!(world.end("10.1", 0), TaskEnd::Exited { code: 1 });
    assert_eq!(world.released("10.1"), [("GPU-6".to_owned(), vec![])]);
}

#[test]
fn orders_of_a_scheduler_that_is_over_are_refused_also_after_a_restart() {
    let mut world = World::new();
    let order = world.order("11.1", 1, "true");
    world.obey(5, Order::Prepare(Box::new(order.clone()))).unwrap();
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    let stop = Order::Stop { attempt: attempt("11.1"), grace: NO_GRACE };
    assert!(world.obey(4, stop.clone()).unwrap_err().contains("epoch 4"));
    world.restart();
    assert_eq!(world.runner.highest_epoch(), Epoch(5));
    assert!(world.obey(4, stop.clone()).is_err());
    world.obey(6, stop).unwrap();
    world.released("11.1");
}

#[test]
fn a_stop_that_overtakes_its_prepare_wins() {
    let mut world = World::new();
    world.stop("12.1", NO_GRACE);
    assert_eq!(world.released("12.1"), []);
    let order = world.order("12.1", 1, "true");
    world.prepare(order);
    assert!(world.refusal("12.1").contains("told to stop"));
    // It is kept for whoever connects next, agent or scheduler, until it is acknowledged.
    assert_eq!(world.reconnect().finished.len(), 1);
    assert_eq!(world.restart().finished.len(), 1);
    let order = world.order("12.1", 1, "true");
    world.prepare(order);
    world.refusal("12.1");
    world.released("12.1");
    world.forget("12.1");
    let order = world.order("12.1", 1, "true");
    world.prepare(order);
    assert!(world.refusal("12.1").contains("ended here"), "the acknowledged one stays known");
    assert_eq!(world.reconnect(), Default::default());
}

/// Something stands where the file's temporary would be written, as if the disk were full.
fn obstruct(world: &World, id: &str, file: &str) -> std::path::PathBuf {
    let dir = world.state().join("jobs").join(id);
    let obstacle = dir.join(format!(".{file}.{}", std::process::id()));
    std::fs::create_dir_all(&obstacle).unwrap();
    obstacle
}

#[test]
fn a_stop_that_a_full_disk_does_not_take_holds_and_is_answered_once_it_is_written() {
    let mut world = World::new();
    // One that comes before its prepare, and one that comes after.
    let before = obstruct(&world, "31.1", "tombstone");
    world.stop("31.1", NO_GRACE);
    let order = world.order("31.1", 1, "true");
    world.prepare(order);
    assert!(world.refusal("31.1").contains("told to stop"));
    let order = world.order("32.1", 1, "true");
    world.prepare(order);
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    let after = obstruct(&world, "32.1", "tombstone");
    world.stop("32.1", NO_GRACE);
    world.commit("32.1");
    assert!(world.refusal("32.1").contains("told to stop"));
    assert_eq!(world.reconnect().finished, [], "what is not on disk is not said");
    for (id, obstacle) in [("31.1", before), ("32.1", after)] {
        std::fs::remove_dir(obstacle).unwrap();
        assert_eq!(world.released(id), []);
        assert!(world.state().join("jobs").join(id).join("tombstone").is_file());
    }
    assert_eq!(world.restart().finished.len(), 2);
}

#[test]
fn an_acknowledged_end_that_a_full_disk_does_not_take_is_moved_later() {
    let mut world = World::new();
    let order = world.order("33.1", 1, "true");
    world.run(order);
    world.released("33.1");
    let obstacle = world.state().join("done/33.1/in-the-way");
    std::fs::create_dir_all(&obstacle).unwrap();
    world.forget("33.1");
    // Obeyed after the one before, which therefore has failed.
    world.stop("33.1", NO_GRACE);
    world.released("33.1");
    assert_eq!(world.reconnect().finished.len(), 1);
    std::fs::remove_dir(&obstacle).unwrap();
    let waited = std::time::Instant::now();
    while world.runner.status(attempt("33.1")).is_some() {
        assert!(waited.elapsed() < runner_world::HANG, "it was not tried again");
        std::thread::yield_now();
    }
    assert!(world.state().join("done/33.1/rank-0").is_dir());
}

#[test]
fn a_gpu_that_somebody_uses_is_refused_and_told() {
    let mut world = World::new();
    let on_gpu_3 = |world: &World, id: &str| {
        let mut order = world.order(id, 1, "true");
        order.gpus = vec![gpu_id("GPU-2"), gpu_id("GPU-3")];
        order.gpus_per_node = 2;
        order
    };
    // Before the first Hello.
    world.gpus.set_processes("GPU-5", Processes::Pids(vec![55]));
    world.runtime().block_on(world.runner.look_for_strangers());
    let occupied = |world: &World| -> Vec<(String, Vec<u32>)> {
        world.runner.occupied().into_iter().map(|o| (o.gpu.to_string(), o.pids)).collect()
    };
    assert_eq!(occupied(&world), [("GPU-5".into(), vec![55])]);
    // Since the last round.
    world.gpus.set_processes("GPU-3", Processes::Pids(vec![33, 34]));
    world.prepare(on_gpu_3(&world, "34.1"));
    let why = world.refusal("34.1");
    assert!(why.contains("GPU-3 is used by processes of no job: [33, 34]"), "{why}");
    assert_eq!(occupied(&world)[0], ("GPU-3".to_owned(), vec![33, 34]));
    world.gpus.set_processes("GPU-3", Processes::Pids(vec![]));
    world.gpus.set_processes("GPU-5", Processes::Pids(vec![]));
    world.runtime().block_on(world.runner.look_for_strangers());
    assert_eq!(occupied(&world), []);
    world.gpus.set_processes("GPU-2", Processes::Silent);
    world.prepare(on_gpu_3(&world, "35.1"));
    assert!(world.refusal("35.1").contains("GPU-2 does not say what runs on it"));
    world.gpus.set_processes("GPU-2", Processes::Pids(vec![]));
    world.prepare(on_gpu_3(&world, "36.1"));
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
}

#[test]
fn what_was_prepared_for_another_session_is_given_up() {
    let mut world = World::new();
    let mut order = world.order("13.1", 1, "true");
    order.gpus = vec![gpu_id("GPU-0")];
    order.gpus_per_node = 1;
    world.prepare(order);
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    // The lease lapses: a new session begins, and the scheduler may have placed the job elsewhere.
    let now = BootMillis::now();
    assert!(matches!(world.session.granted(now, 1, now), Granted::Extended(_)));
    assert!(world.session.renew_if_lapsed(BootMillis(now.0 + 1)));
    world.commit("13.1");
    assert!(world.refusal("13.1").contains("earlier session"));
    assert_eq!(world.released("13.1"), []);
    assert!(!world.task("13.1", 0).path().exists(), "nothing was started");
}

#[test]
fn a_lease_reaches_the_shims_and_a_lapsed_one_is_not_revived() {
    let mut world = World::new();
    let now = BootMillis::now();
    world.session.granted(now, 3_600_000, now);
    let mut order = world.order("14.1", 2, &format!("read forever < {}", fifo(&world)));
    order.stop_on_lapse = true;
    world.run(order);
    let deadline = |world: &World| world.task("14.1", 1).read_lease().unwrap().deadline_boottime_ms;
    assert_eq!(deadline(&world), Some(now.0 + 3_600_000));
    let extend = |world: &World, lease_ms| {
        let now = BootMillis::now();
        assert!(matches!(world.session.granted(now, lease_ms, now), Granted::Extended(_)));
        world.runner.lease_extended();
    };
    extend(&world, 3_700_000);
    extend(&world, 9_000_000);
    let want = world.session.term().unwrap().until.0;
    let waited = std::time::Instant::now();
    while deadline(&world) != Some(want) {
        assert!(waited.elapsed() < runner_world::HANG, "the shims never got it");
        std::thread::yield_now();
    }
    world.stop("14.1", NO_GRACE);
    for rank in 0..2 {
        assert!(matches!(world.end("14.1", rank), TaskEnd::Signaled { .. }));
    }
    // One whose time runs out is stopped by its shim, whatever this agent does.
    let mut short = world.order("15.1", 1, &format!("read forever < {}", fifo(&world)));
    short.stop_on_lapse = true;
    world.restart();
    short.session = world.session.id();
    let now = BootMillis::now();
    world.session.granted(now, 700, now);
    world.run(short);
    assert_eq!(world.end("15.1", 0), TaskEnd::Lapsed);
    world.released("15.1");
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_after_the_orders_grace() {
    let mut world = World::new();
    let order = world.order(
        "16.1",
        1,
        &format!("trap '' TERM; echo ready; while :; do read x < {}; done", fifo(&world)),
    );
    world.run(order);
    let ready = world.log("16.1", 0, 0);
    assert_eq!(ready.data, b"ready\n", "{ready:?}");
    // The shim's own grace is half a minute; the order's counts.
    world.stop("16.1", Duration::from_millis(50));
    assert_eq!(world.end("16.1", 0), TaskEnd::Signaled { signal: 9, oom: false });
    assert_eq!(world.released("16.1"), []);
}

#[test]
fn jobs_without_a_right_to_run_do_not() {
    use tessera_agent::runner::AgentIdentity;
    let identity = AgentIdentity { uid: 1000, gid: 1000, run_as_agent_user: false };
    let mut world = World::with_identity(identity);
    for (want, unix) in [
        ("names no user", None),
        ("root", Some(UnixIdentity { uid: 0, gid: 0 })),
        ("cannot become uid 1001", Some(UnixIdentity { uid: 1001, gid: 1001 })),
    ] {
        let mut order = world.order("17.1", 1, "true");
        order.unix = unix;
        world.prepare(order);
        let why = world.refusal("17.1");
        assert!(why.contains(want), "{why:?} does not say {want:?}");
    }
}

#[test]
fn output_is_read_by_offset_while_it_grows_and_after_it_was_acknowledged() {
    let mut world = World::new();
    let fifo = fifo(&world);
    let order = world.order("18.1", 1, &format!("echo one; read x < {fifo}; echo $x; exit 5"));
    world.run(order);
    assert_eq!(world.log("18.1", 0, 0).data, b"one\n");
    let nothing_yet = world.log("18.1", 0, 4);
    assert_eq!((nothing_yet.data.as_slice(), nothing_yet.end), (&b""[..], false));
    std::fs::write(&fifo, "two\n").unwrap();
    assert_eq!(world.end("18.1", 0), TaskEnd::Exited { code: 5 });
    world.released("18.1");
    assert_eq!(world.output("18.1", 0), "one\ntwo\n");
    world.forget("18.1");
    world.commit("18.1");
    world.refusal("18.1");
    assert!(world.state().join("done/18.1").is_dir());
    assert_eq!(world.output("18.1", 0), "one\ntwo\n");
    assert!(world.log("18.1", 0, 99).error.contains("beyond the 8 bytes"));
    assert!(world.log("18.1", 1, 0).error.contains("rank 1"));
    assert!(world.log("19.1", 0, 0).error.contains("never ran here"));
}

#[test]
fn a_job_runs_as_the_orders_user_and_can_read_its_own_script() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can become another user; nothing was checked");
        return;
    }
    const NOBODY: u32 = 65_534;
    let mut world = World::new();
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(world.dir.path(), open).unwrap();
    let mut order = world.order("20.1", 1, "");
    order.script = Some(
        "#!/bin/sh\nid -u; id -g; id -G; ls .. 2>/dev/null; cat $0 | head -1; exit 6\n".into(),
    );
    order.argv = vec![];
    order.unix = Some(UnixIdentity { uid: NOBODY, gid: NOBODY });
    order.working_dir = Some("/".into());
    world.run(order);
    assert_eq!(world.end("20.1", 0), TaskEnd::Exited { code: 6 });
    let output = world.output("20.1", 0);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], lines[1], lines[2]), ("65534", "65534", "65534"), "{output}");
    assert_eq!(lines.last(), Some(&"#!/bin/sh"), "{output}");
    let mode = |path: &str| {
        std::fs::metadata(world.state().join(path)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("jobs/20.1/order"), 0o600, "the order holds the job's environment");
    assert_eq!(mode("jobs"), 0o711, "walked through, not listed");
}

#[test]
fn one_rank_that_eats_the_nodes_share_of_memory_is_named_as_such() {
    let mut world = World::new();
    let go = fifo(&world);
    std::fs::rename(&go, format!("{go}.0")).unwrap();
    std::fs::rename(fifo(&world), format!("{go}.1")).unwrap();
    // Memory is of all ranks together: each alone may have it all.
    let mut order = world.order(
        "21.1",
        2,
        &format!("read x < {go}.$RANK; test $RANK = 1 || exit 0; exec tail /dev/zero"),
    );
    order.memory = tessera_model::Bytes(64 << 20);
    world.run(order);
    let around = world.state().join("jobs/21.1/cgroup");
    let limited = match world.task("21.1", 1).read_spec().unwrap().cgroup {
        tessera_shim::CgroupSpec::None => false,
        tessera_shim::CgroupSpec::Unified { .. } => around.exists(),
        tessera_shim::CgroupSpec::Hybrid { v1, .. } => {
            v1.iter().any(|g| g.controller == tessera_shim::spec::V1Controller::Memory)
        }
    };
    if !limited {
        eprintln!("memory cannot be limited here; nothing was checked");
        world.stop("21.1", NO_GRACE);
        world.released("21.1");
        return;
    }
    for rank in 0..2 {
        std::fs::write(format!("{go}.{rank}"), "go\n").unwrap();
    }
    assert_eq!(world.end("21.1", 0), TaskEnd::Exited { code: 0 });
    assert_eq!(world.end("21.1", 1), TaskEnd::Signaled { signal: 9, oom: true });
    assert_eq!(world.released("21.1"), []);
    let spec: tessera_shim::CgroupSpec =
        serde_json::from_slice(&std::fs::read(around).unwrap()).unwrap();
    let cgroup = tessera_shim::cgroup::Cgroup::open(&spec).unwrap();
    assert!(!cgroup.dir().exists(), "the cgroup around all ranks goes with them");
}
