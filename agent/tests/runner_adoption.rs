//! An agent dies, or a shim does, and the truth about the tasks is still told. Real shims, no
//! scheduler.

#[allow(dead_code, reason = "each test file uses its part of it")]
mod runner_world;

use std::time::{Duration, Instant};

use runner_world::{HANG, World, attempt, gpu_id};
use tessera_agent::runner::{Phase, RunnerEvent};
use tessera_model::TaskEnd;
use tessera_shim::cgroup::Cgroup;
use tessera_shim::{TaskDir, TaskState};

fn fifo(world: &World, name: &str) -> String {
    let path = world.dir.path().join(name);
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path.display().to_string()
}

fn state_of(task: &TaskDir) -> TaskState {
    task.read_state().unwrap().expect("it runs")
}

fn kill_shim(task: &TaskDir) {
    let state = state_of(task);
    let pidfd = tessera_shim::watch(state.shim_pid, state.shim_start_time).unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
}

fn is_gone(pid: u32) -> bool {
    tessera_shim::proc::stat(pid).unwrap().is_none_or(|stat| stat.is_zombie())
}

#[test]
fn eight_running_tasks_are_taken_over_and_their_ends_are_exact() {
    let mut world = World::new();
    let fifos: Vec<String> = (0..8).map(|rank| fifo(&world, &format!("go.{rank}"))).collect();
    let fifo = world.dir.path().join("go").display().to_string();
    let mut order = world.order("101.1", 8, &format!("read x < {fifo}.$RANK; exit $((RANK + 10))"));
    order.gpus = (0..8).map(|i| gpu_id(&format!("GPU-{i}"))).collect();
    order.gpus_per_node = 8;
    world.run(order);
    let before: Vec<u32> = (0..8).map(|r| state_of(&world.task("101.1", r)).job_pid).collect();
    let old_session = world.session.id();
    let snapshot = world.restart();
    assert_ne!(world.session.id(), old_session);
    assert_eq!(snapshot.running.len(), 1);
    let (id, status) = &snapshot.running[0];
    assert_eq!((*id, status.phase, status.ended.len()), (attempt("101.1"), Phase::Running, 0));
    assert_eq!(status.session, old_session, "the scheduler compares with the one it launched for");
    // Its GPUs stay taken.
    let mut other = world.order("102.1", 1, "true");
    other.gpus = vec![gpu_id("GPU-7")];
    other.gpus_per_node = 1;
    world.prepare(other);
    assert!(world.refusal("102.1").contains("101.1"));
    let after: Vec<u32> = (0..8).map(|r| state_of(&world.task("101.1", r)).job_pid).collect();
    assert_eq!(before, after, "nothing was started again");
    for fifo in fifos {
        std::fs::write(fifo, "go\n").unwrap();
    }
    for rank in 0..8 {
        let code = i32::try_from(rank).unwrap() + 10;
        assert_eq!(world.end("101.1", rank), TaskEnd::Exited { code });
    }
    assert_eq!(world.released("101.1"), []);
}

#[test]
fn ends_that_nobody_saw_while_the_agent_was_away_are_reported_until_acknowledged() {
    let mut world = World::new();
    let go = fifo(&world, "go");
    let order = world.order("103.1", 1, &format!("read x < {go}; exit 42"));
    world.run(order);
    world.restart();
    std::fs::write(&go, "go\n").unwrap();
    tessera_shim::wait_exit(&world.task("103.1", 0), HANG).unwrap();
    for round in 0..2 {
        world.restart();
        world.released("103.1");
        let snapshot = world.reconnect();
        assert_eq!(snapshot.finished.len(), 1, "round {round}");
        let ended = &snapshot.finished[0].1.ended;
        assert_eq!(ended.get(&0), Some(&TaskEnd::Exited { code: 42 }), "round {round}");
    }
    world.forget("103.1");
    world.commit("103.1");
    world.refusal("103.1");
    assert_eq!(world.restart(), Default::default());
}

#[test]
fn a_killed_shim_leaves_an_unknown_end_and_no_process() {
    for restart in [false, true] {
        let mut world = World::new();
        let go = fifo(&world, "go");
        // A child that leaves its session is caught as well.
        let script = format!("setsid sh -c 'read y < {go}' & read x < {go}");
        let order = world.order("104.1", 1, &script);
        world.run(order);
        let task = world.task("104.1", 0);
        let cgroup = Cgroup::open(&task.read_spec().unwrap().cgroup);
        let job = state_of(&task).job_pid;
        let waited = Instant::now();
        if let Some(cgroup) = &cgroup {
            while cgroup.pids().unwrap().len() < 2 {
                assert!(waited.elapsed() < HANG, "the child never came");
                std::thread::yield_now();
            }
        }
        let pids = cgroup.as_ref().map_or(vec![job], |cgroup| cgroup.pids().unwrap());
        kill_shim(&task);
        if restart {
            world.restart();
        }
        assert_eq!(world.end("104.1", 0), TaskEnd::Unknown, "restart: {restart}");
        assert_eq!(world.released("104.1"), []);
        for pid in pids {
            assert!(is_gone(pid), "process {pid} is left");
        }
        if let Some(cgroup) = cgroup {
            assert!(cgroup.is_empty().unwrap());
        }
    }
}

#[test]
fn tasks_of_an_earlier_boot_ended_in_a_way_nobody_saw() {
    let mut world = World::new();
    let go = fifo(&world, "go");
    let order = world.order("105.1", 1, &format!("read x < {go}"));
    world.run(order);
    let task = world.task("105.1", 0);
    kill_shim(&task);
    assert_eq!(world.end("105.1", 0), TaskEnd::Unknown);
    // What a power loss leaves: a state of another boot, and no end.
    let mut state = state_of(&task);
    state.boot_id = "00000000-0000-0000-0000-000000000000".into();
    state.shim_pid = std::process::id();
    task.write_state(&state).unwrap();
    std::fs::remove_file(task.file("exit")).unwrap();
    world.restart();
    world.released("105.1");
    let ended = world.reconnect().finished[0].1.ended.clone();
    assert_eq!(ended.get(&0), Some(&TaskEnd::Unknown));
}

#[test]
fn what_was_prepared_and_not_started_does_not_outlive_its_agent() {
    let mut world = World::new();
    let mut order = world.order("106.1", 1, "true");
    order.gpus = vec![gpu_id("GPU-0")];
    order.gpus_per_node = 1;
    world.prepare(order.clone());
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    let snapshot = world.restart();
    assert!(snapshot.running.is_empty());
    assert!(snapshot.finished[0].1.ended.is_empty(), "no task ended, for none was started");
    world.commit("106.1");
    world.released("106.1");
    // The GPU is free for the next attempt.
    order.attempt = attempt("106.2");
    order.session = world.session.id();
    world.run(order);
    assert_eq!(world.end("106.2", 0), TaskEnd::Exited { code: 0 });
}

#[test]
fn a_stop_goes_on_after_the_agent_that_began_it_is_gone() {
    let mut world = World::new();
    let go = fifo(&world, "go");
    let order = world.order("107.1", 2, &format!("trap '' TERM; while :; do read x < {go}; done"));
    world.run(order);
    world.stop("107.1", Duration::from_secs(3600));
    let waited = Instant::now();
    while !world.state().join("jobs/107.1/tombstone").exists() {
        assert!(waited.elapsed() < HANG, "the tombstone never came");
        std::thread::yield_now();
    }
    let snapshot = world.restart();
    assert!(snapshot.running[0].1.stopping);
    world.stop("107.1", Duration::ZERO);
    for rank in 0..2 {
        assert_eq!(world.end("107.1", rank), TaskEnd::Signaled { signal: 9, oom: false });
    }
    world.released("107.1");
}

#[test]
fn a_damaged_order_ends_its_tasks_and_nothing_else() {
    let mut world = World::new();
    let go = fifo(&world, "go");
    for id in ["108.1", "109.1"] {
        let order = world.order(id, 1, &format!("read x < {go}"));
        world.run(order);
    }
    std::fs::write(world.state().join("jobs/108.1/order"), b"\0\0\0").unwrap();
    std::fs::create_dir(world.state().join("jobs/not an attempt")).unwrap();
    let snapshot = world.restart();
    assert_eq!(snapshot.running.len(), 2);
    assert!(matches!(world.end("108.1", 0), TaskEnd::Signaled { signal: 15, .. }));
    world.released("108.1");
    assert_eq!(world.runner.status(attempt("109.1")).unwrap().phase, Phase::Running);
}

#[test]
fn an_agent_that_died_while_it_made_the_folders_has_started_nothing() {
    let mut world = World::new();
    let order = world.order("110.1", 2, "true");
    world.prepare(order);
    world.until(|event| matches!(event, RunnerEvent::Prepared { .. }).then_some(()));
    let spec = tessera_shim::TaskSpec::new("110.1", vec!["true".into()], "/");
    TaskDir::create(world.task("110.1", 0).path(), &spec).unwrap();
    let snapshot = world.restart();
    assert_eq!((snapshot.running.len(), snapshot.finished.len()), (0, 1));
    assert!(snapshot.finished[0].1.ended.is_empty());
    assert!(world.task("110.1", 0).read_state().unwrap().is_none());
}

#[test]
fn a_folder_that_somebody_removed_does_not_hide_what_still_runs() {
    let mut world = World::new();
    let go = fifo(&world, "go");
    let order = world.order("111.1", 2, &format!("read x < {go}; exit 5"));
    world.run(order);
    kill_shim(&world.task("111.1", 1));
    assert_eq!(world.end("111.1", 1), TaskEnd::Unknown);
    std::fs::remove_dir_all(world.task("111.1", 1).path()).unwrap();
    let snapshot = world.restart();
    assert_eq!(snapshot.running.len(), 1);
    // It may have been found out before the connection was made.
    let known = snapshot.running[0].1.ended.get(&1).cloned();
    assert_eq!(known.unwrap_or_else(|| world.end("111.1", 1)), TaskEnd::Unknown);
    std::fs::write(&go, "go\n").unwrap();
    assert_eq!(world.end("111.1", 0), TaskEnd::Exited { code: 5 });
    world.released("111.1");
}
