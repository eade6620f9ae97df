//! Signals, checkpoints, spares and shares, with real shims and no scheduler.

#[allow(dead_code, reason = "each test file uses its part of it")]
mod runner_world;

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use runner_world::{World, attempt, gpu_id};
use tessera_agent::runner::{Phase, Processes, RunnerEvent, Snapshot, TaskOrder};
use tessera_model::{SessionId, TaskEnd};

const NO_GRACE: Duration = Duration::ZERO;
const USR1: i32 = 10;
const KILL: i32 = 9;

/// A pipe nobody writes to unless the test does.
fn fifo(world: &World, name: &str) -> PathBuf {
    let path = world.dir.path().join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Lets whoever reads from the pipe go on.
fn open(fifo: &PathBuf) {
    std::fs::write(fifo, "go\n").unwrap();
}

fn on_gpu(world: &World, id: &str, milli: u32, script: &str) -> TaskOrder {
    let mut order = world.order(id, 1, script);
    order.gpus = vec![gpu_id("GPU-1")];
    order.gpus_per_node = 1;
    order.gpu_milli = milli;
    order
}

fn until_prepared(world: &mut World, id: &str) {
    let id = attempt(id);
    world.until(|event| {
        matches!(event, RunnerEvent::Prepared { attempt, .. } if *attempt == id).then_some(())
    });
}

/// Waits until all of these lines stand in what a task wrote.
fn until_written(world: &World, id: &str, rank: u32, line: &str) {
    let mut all = Vec::new();
    loop {
        let piece = world.log(id, rank, all.len() as u64);
        all.extend(piece.data);
        let text = String::from_utf8_lossy(&all);
        if text.lines().any(|l| l == line) {
            return;
        }
        assert!(!piece.end, "it ended without {line:?}: {text}");
    }
}

#[test]
fn a_signal_reaches_every_process_of_each_task_and_nothing_else() {
    let mut world = World::new();
    let pipe = fifo(&world, "never");
    // Rank 1 has ended already; the others have a child that must get it as well.
    let script = format!(
        "[ $RANK = 1 ] && exit 0
         (trap 'echo child; exit 0' USR1; echo ready; while :; do read x < {0}; done) &
         child=$!
         trap 'echo parent; wait $child; exit 7' USR1
         echo up; while :; do wait $child; done",
        pipe.display()
    );
    let order = world.order("201.1", 3, &script);
    world.run(order);
    let bystander = world.order("202.1", 1, &format!("echo up; read x < {}", pipe.display()));
    world.run(bystander);
    assert_eq!(world.end("201.1", 1), TaskEnd::Exited { code: 0 });
    for rank in [0, 2] {
        until_written(&world, "201.1", rank, "ready");
        until_written(&world, "201.1", rank, "up");
    }
    // Of no attempt here, and of another one of the same job.
    world.signal("299.1", KILL);
    world.signal("201.2", KILL);
    world.signal("201.1", USR1);
    for rank in [0, 2] {
        assert_eq!(world.end("201.1", rank), TaskEnd::Exited { code: 7 }, "rank {rank}");
        let output = world.output("201.1", rank);
        for line in ["child", "parent"] {
            assert_eq!(output.lines().filter(|l| *l == line).count(), 1, "{line}: {output}");
        }
    }
    world.released("201.1");
    // After its end, and before the next one's beginning.
    world.signal("201.1", KILL);
    assert_eq!(world.runner.status(attempt("202.1")).unwrap().ended.len(), 0);
    world.signal("202.1", KILL);
    assert_eq!(world.end("202.1", 0), TaskEnd::Signaled { signal: KILL, oom: false });
    assert_eq!(world.runner.status(attempt("299.1")), None, "nothing is kept of it");
}

#[test]
fn a_signal_to_what_is_only_prepared_starts_and_ends_nothing() {
    let mut world = World::new();
    let order = world.order("203.1", 1, "exit 3");
    world.prepare(order);
    until_prepared(&mut world, "203.1");
    world.signal("203.1", KILL);
    world.commit("203.1");
    assert_eq!(world.end("203.1", 0), TaskEnd::Exited { code: 3 });
}

fn set_time(path: &PathBuf, second: u64) {
    let file = File::options().create(true).append(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
}

fn checkpoints(world: &mut World, id: &str) -> usize {
    // What is still on its way comes before the end of the attempt, which the caller has seen.
    world.earlier_events(|event| *event == RunnerEvent::Checkpoint { attempt: attempt(id) })
}

#[test]
fn each_change_of_the_checkpoint_is_reported_once() {
    let mut world = World::new();
    let pipe = fifo(&world, "go");
    let file = world.dir.path().join("latest");
    set_time(&file, 1_000);
    let mut order = world.order(
        "204.1",
        1,
        &format!("echo $TESSERA_CHECKPOINT_FILE; read x < {0}", pipe.display()),
    );
    order.checkpoint_file = Some("latest".into());
    world.run(order);
    until_written(&world, "204.1", 0, &file.display().to_string());
    set_time(&file, 2_000);
    world.checkpoint("204.1");
    // A link to another file of the same age, in its place.
    std::fs::rename(&file, world.dir.path().join("step-1")).unwrap();
    std::os::unix::fs::symlink("step-1", &file).unwrap();
    world.checkpoint("204.1");
    // A later agent says what came while there was none.
    world.restart();
    set_time(&file, 3_000);
    world.checkpoint("204.1");
    open(&pipe);
    world.end("204.1", 0);
    world.released("204.1");
    assert_eq!(checkpoints(&mut world, "204.1"), 0, "and nothing twice");
}

#[test]
fn a_checkpoint_written_just_before_the_end_counts_and_one_of_before_the_start_does_not() {
    let mut world = World::new();
    let file = world.dir.path().join("saved");
    set_time(&file, 1_000);
    let mut order = world.order("205.1", 2, "[ $RANK = 1 ] || touch saved");
    order.checkpoint_file = Some("saved".into());
    world.run(order.clone());
    world.checkpoint("205.1");
    world.released("205.1");
    assert_eq!(checkpoints(&mut world, "205.1"), 0);
    // Not the node of rank 0: another one watches.
    let mut elsewhere = world.order("206.1", 1, "touch saved");
    elsewhere.checkpoint_file = Some("saved".into());
    elsewhere.nodes = vec!["n0".into(), "n1".into()];
    elsewhere.addresses = vec!["127.0.0.1".into(), "127.0.0.1".into()];
    elsewhere.ranks_of = vec![1, 1];
    (elsewhere.node_rank, elsewhere.first_rank, elsewhere.world_size) = (1, 1, 2);
    world.run(elsewhere);
    world.released("206.1");
    assert_eq!(checkpoints(&mut world, "206.1"), 0);
}

fn spare(world: &World, id: &str) -> TaskOrder {
    let mut order = on_gpu(world, id, 1_000, "echo it must not run > ran");
    order.nodes = vec!["n0".into(), "n1".into()];
    order.addresses = vec!["127.0.0.1".into(), "127.0.0.1".into()];
    order.ranks_of = vec![4, 0];
    (order.node_rank, order.first_rank, order.ranks, order.world_size) = (1, 4, 0, 4);
    order
}

/// It was released before the connection, and stands in its snapshot, or is told on it.
fn until_released(world: &mut World, snapshot: &Snapshot, id: &str) {
    match snapshot.finished.iter().find(|(known, _)| *known == attempt(id)) {
        Some((_, status)) => assert_eq!(status.occupied, []),
        None => assert_eq!(world.released(id), []),
    }
}

#[test]
fn a_spare_holds_its_gpus_until_it_is_told_to_stop() {
    let mut world = World::new();
    let order = spare(&world, "207.1");
    world.run(order);
    let other = on_gpu(&world, "208.1", 1_000, "true");
    world.prepare(other.clone());
    assert!(world.refusal("208.1").contains("held by attempt 207.1"));
    let snapshot = world.reconnect();
    let (_, status) = &snapshot.running[0];
    assert_eq!((status.phase, status.ranks.len()), (Phase::Running, 0));
    world.signal("207.1", KILL);
    world.commit("207.1");
    let again = RunnerEvent::Started { attempt: attempt("207.1") };
    world.until(|event| (*event == again).then_some(()));
    // A later agent, of another session, goes on holding them.
    let snapshot = world.restart();
    assert_eq!(snapshot.running.len(), 1, "{snapshot:?}");
    assert_ne!(snapshot.running[0].1.session, SessionId(0));
    world.prepare(TaskOrder { session: world.session.id(), ..other.clone() });
    assert!(world.refusal("208.1").contains("held by attempt 207.1"));
    world.stop("207.1", NO_GRACE);
    assert_eq!(world.released("207.1"), []);
    assert!(!world.dir.path().join("ran").exists());
    world.run(TaskOrder { session: world.session.id(), ..other });
    world.released("208.1");
    // What was released stays so, until it is acknowledged.
    let snapshot = world.restart();
    for id in ["207.1", "208.1"] {
        until_released(&mut world, &snapshot, id);
        world.forget(id);
    }
}

#[test]
fn a_spare_that_was_only_prepared_is_gone_with_its_session() {
    let mut world = World::new();
    let order = spare(&world, "209.1");
    world.prepare(order);
    until_prepared(&mut world, "209.1");
    let snapshot = world.restart();
    assert_eq!((snapshot.running.len(), snapshot.finished.len()), (0, 1));
}

#[test]
fn a_spare_told_to_stop_while_no_agent_ran_is_released_by_the_next() {
    let mut world = World::new();
    let order = spare(&world, "210.1");
    world.run(order);
    let tombstone = world.state().join("jobs/210.1/tombstone");
    let snapshot = world.restart_after(|| std::fs::write(tombstone, "{\"grace_ms\":0}").unwrap());
    until_released(&mut world, &snapshot, "210.1");
}

#[test]
fn shares_of_a_gpu_fit_until_it_is_full_and_never_beside_a_whole_one() {
    let mut world = World::new();
    let pipe = fifo(&world, "go");
    let script = format!("env; echo up; read x < {}", pipe.display());
    for (id, milli) in [("211.1", 250), ("212.1", 500)] {
        let order = on_gpu(&world, id, milli, &script);
        world.run(order);
    }
    for (id, milli, want) in
        [("213.1", 251, "750 thousandths of GPU-1"), ("213.1", 1_000, "held by attempt 211.1")]
    {
        let order = on_gpu(&world, id, milli, "true");
        world.prepare(order);
        let why = world.refusal(id);
        assert!(why.contains(want), "{why}");
    }
    let third = on_gpu(&world, "213.1", 250, "true");
    world.run(third);
    world.released("213.1");
    until_written(&world, "211.1", 0, "TESSERA_GPU_SHARE=0.25");
    until_written(&world, "211.1", 0, "TESSERA_GPU_SHARE_MODE=cooperative");
    until_written(&world, "212.1", 0, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50");
    // A later agent knows the shares as well.
    world.restart();
    let fourth = on_gpu(&world, "214.1", 251, "true");
    world.prepare(fourth);
    assert!(world.refusal("214.1").contains("750 thousandths"));
    for id in ["211.1", "212.1"] {
        world.stop(id, NO_GRACE);
        world.released(id);
    }
    let whole = on_gpu(&world, "215.1", 1_000, &format!("read x < {}", pipe.display()));
    world.run(whole);
    let share = on_gpu(&world, "216.1", 1, "true");
    world.prepare(share);
    assert!(world.refusal("216.1").contains("held by attempt 215.1"));
}

#[test]
fn what_shares_a_gpu_is_no_stranger_on_it() {
    let mut world = World::new();
    let pipe = fifo(&world, "go");
    // A process of the job beside its first one, too.
    let script = format!("sleep 1000 & echo $!; echo up; read x < {}", pipe.display());
    let first = on_gpu(&world, "217.1", 500, &script);
    world.run(first);
    until_written(&world, "217.1", 0, "up");
    let lines = String::from_utf8(world.log("217.1", 0, 0).data).unwrap();
    let child: u32 = lines.lines().next().unwrap().parse().unwrap();
    let main = world.task("217.1", 0).read_state().unwrap().unwrap().job_pid;
    let both = Processes::Pids(vec![main, child]);
    world.gpus.set_processes("GPU-1", both.clone());
    // It may be prepared, run and given back beside them, and says nothing of them.
    let second = on_gpu(&world, "218.1", 500, "true");
    world.run(second.clone());
    assert_eq!(world.released("218.1"), []);
    assert_eq!(world.runner.occupied(), []);
    // A stranger is one all the same, and the only one that is named.
    let strange = 0x7fff_fff0;
    world.gpus.set_processes("GPU-1", Processes::Pids(vec![main, child, strange]));
    let mut third = second.clone();
    third.attempt = attempt("219.1");
    world.prepare(third.clone());
    let why = world.refusal("219.1");
    assert!(why.contains(&format!("[{strange}]")), "{why}");
    let mut changed = world.runner.occupied_changed();
    changed.mark_unchanged();
    assert_eq!(world.runner.occupied().len(), 1);
    // It leaves while the first job still runs: there is room for a share again.
    world.gpus.set_processes("GPU-1", both);
    world
        .runtime()
        .block_on(async { tokio::time::timeout(runner_world::HANG, changed.changed()).await })
        .expect("it is found free again")
        .unwrap();
    assert_eq!(world.runner.occupied(), []);
    world.run(third);
    assert_eq!(world.released("219.1"), []);
    // The last one out must leave nothing behind, whoever it was.
    world.stop("217.1", NO_GRACE);
    let left = world.released("217.1");
    assert_eq!(left, [("GPU-1".to_owned(), vec![main, child])]);
}
