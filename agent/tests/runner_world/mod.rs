//! A runner with real shims in a folder of its own, and a table for its GPUs. No scheduler.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

use tessera_agent::runner::{
    AgentIdentity, Gpus, Keep, LogAnswer, Master, Order, Processes, Runner, RunnerEvent,
    RunnerSettings, Snapshot, TaskOrder,
};
use tessera_agent::session::Session;
use tessera_model::{AttemptId, Bytes, Epoch, GpuCondition, GpuId, NodeId, TaskEnd, WHOLE_GPU};
use tessera_shim::TaskDir;

/// A hang is a failure; no test measures time.
pub const HANG: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct TableGpus {
    conditions: Mutex<BTreeMap<GpuId, GpuCondition>>,
    processes: Mutex<BTreeMap<GpuId, Processes>>,
}

impl TableGpus {
    pub fn set_condition(&self, gpu: &str, condition: GpuCondition) {
        self.conditions.lock().unwrap().insert(gpu_id(gpu), condition);
    }
    pub fn set_processes(&self, gpu: &str, processes: Processes) {
        self.processes.lock().unwrap().insert(gpu_id(gpu), processes);
    }
}

impl Gpus for TableGpus {
    fn all(&self) -> Vec<GpuId> {
        self.conditions.lock().unwrap().keys().cloned().collect()
    }
    fn condition(&self, gpu: &GpuId) -> Option<GpuCondition> {
        self.conditions.lock().unwrap().get(gpu).cloned()
    }
    fn processes(&self, gpu: &GpuId) -> Processes {
        let table = self.processes.lock().unwrap();
        table.get(gpu).cloned().unwrap_or(Processes::Pids(vec![]))
    }
}

pub struct World {
    pub dir: TempDir,
    pub gpus: Arc<TableGpus>,
    identity: AgentIdentity,
    pub session: Arc<Session>,
    pub runner: Runner,
    events: Receiver<RunnerEvent>,
    /// Came before the one that was waited for.
    earlier: VecDeque<RunnerEvent>,
    runtime: Option<Runtime>,
}

pub fn gpu_id(text: &str) -> GpuId {
    GpuId::parse(text).unwrap()
}

pub fn attempt(text: &str) -> AttemptId {
    AttemptId::parse(text).unwrap()
}

fn shim() -> PathBuf {
    // target/debug/deps/runner_x-1234 -> target/debug
    let own = std::env::current_exe().unwrap();
    let shim = own.parent().and_then(Path::parent).unwrap().join("tessera-shim");
    assert!(
        shim.is_file(),
        "{} is missing: run `cargo build -p tessera-shim` before these tests",
        shim.display()
    );
    shim
}

fn start(
    dir: &Path,
    gpus: &Arc<TableGpus>,
    identity: AgentIdentity,
) -> (Runtime, Runner, Arc<Session>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let session = Arc::new(Session::begin());
    let settings = RunnerSettings {
        state: dir.join("state"),
        node: NodeId::parse("n1").unwrap(),
        address: "127.0.0.1".to_owned(),
        shim: shim(),
        identity,
        keep: Keep::default(),
    };
    let runner = {
        let _inside = runtime.enter();
        Runner::open(settings, gpus.clone(), session.clone()).unwrap()
    };
    (runtime, runner, session)
}

impl World {
    /// Eight healthy GPUs, `GPU-0` to `GPU-7`, and nobody on them.
    pub fn new() -> Self {
        Self::with_identity(AgentIdentity::of_process(true))
    }

    pub fn with_identity(identity: AgentIdentity) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gpus = Arc::new(TableGpus::default());
        for i in 0..8 {
            gpus.set_condition(&format!("GPU-{i}"), GpuCondition::Healthy);
        }
        let (runtime, runner, session) = start(dir.path(), &gpus, identity);
        let (_, events) = runner.connect();
        Self {
            dir,
            gpus,
            identity,
            session,
            runner,
            events,
            earlier: VecDeque::new(),
            runtime: Some(runtime),
        }
    }

    /// The agent dies and another one starts on the same folder; what it knows is returned.
    pub fn restart(&mut self) -> Snapshot {
        self.restart_after(|| {})
    }

    /// The same, with something done while there is no agent.
    pub fn restart_after(&mut self, meanwhile: impl FnOnce()) -> Snapshot {
        self.runtime.take().unwrap().shutdown_background();
        meanwhile();
        let (runtime, runner, session) = start(self.dir.path(), &self.gpus, self.identity);
        let (snapshot, events) = runner.connect();
        self.runtime = Some(runtime);
        (self.runner, self.session, self.events) = (runner, session, events);
        self.earlier.clear();
        snapshot
    }

    /// The connection to the scheduler is made anew; the agent lives on.
    pub fn reconnect(&mut self) -> Snapshot {
        let (snapshot, events) = self.runner.connect();
        self.events = events;
        self.earlier.clear();
        snapshot
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn task(&self, id: &str, rank: u32) -> TaskDir {
        TaskDir::new(self.state().join("jobs").join(id).join(format!("rank-{rank}")))
    }

    /// `ranks` tasks of `sh -c SCRIPT`, alone in their world, without GPUs.
    pub fn order(&self, id: &str, ranks: u32, script: &str) -> TaskOrder {
        TaskOrder {
            attempt: attempt(id),
            session: self.session.id(),
            first_rank: 0,
            ranks,
            world_size: ranks,
            node_rank: 0,
            nodes: vec!["n1".into()],
            addresses: vec!["127.0.0.1".into()],
            ranks_of: vec![ranks],
            role: String::new(),
            gpus: vec![],
            gpus_per_node: 0,
            gpu_milli: WHOLE_GPU,
            cpus_per_task: 1,
            memory: Bytes(0),
            argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
            script: None,
            env: BTreeMap::new(),
            working_dir: Some(self.dir.path().display().to_string()),
            unix: None,
            job_name: "test".into(),
            team: "nlp".into(),
            project: "llm".into(),
            user: "ada".into(),
            stop_on_lapse: false,
            lapse_grace: tessera_model::Millis(1_000),
            time_limit: None,
            checkpoint_file: None,
            array: None,
        }
    }

    pub fn obey(&self, epoch: u64, order: Order) -> Result<(), String> {
        let obeyed = self.runtime().block_on(self.runner.obey(Epoch(epoch), order));
        obeyed.map_err(|error| error.to_string())
    }

    pub fn prepare(&self, order: TaskOrder) {
        self.obey(1, Order::Prepare(Box::new(order))).unwrap();
    }

    pub fn commit(&self, id: &str) {
        let master = Master { address: "10.9.8.7".into(), port: 1234 };
        self.obey(1, Order::Commit { attempt: attempt(id), master }).unwrap();
    }

    pub fn stop(&self, id: &str, grace: Duration) {
        self.obey(1, Order::Stop { attempt: attempt(id), grace }).unwrap();
    }

    pub fn signal(&self, id: &str, signal: i32) {
        self.obey(1, Order::Signal { attempt: attempt(id), signal }).unwrap();
    }

    pub fn forget(&self, id: &str) {
        self.obey(1, Order::Forget { attempt: attempt(id) }).unwrap();
    }

    /// Prepares, commits, and waits until it runs.
    pub fn run(&mut self, order: TaskOrder) {
        let id = order.attempt;
        self.prepare(order);
        self.until(|event| match event {
            RunnerEvent::Prepared { attempt, master_port } => {
                (*attempt == id).then_some(*master_port)
            }
            _ => None,
        });
        self.commit(&id.to_string());
        self.until(|event| (*event == RunnerEvent::Started { attempt: id }).then_some(()));
    }

    pub fn log(&self, id: &str, rank: u32, offset: u64) -> LogAnswer {
        self.runtime().block_on(self.runner.log_piece(attempt(id), rank, offset, 1 << 20))
    }

    /// All a task wrote, after its end.
    pub fn output(&self, id: &str, rank: u32) -> String {
        let mut all = Vec::new();
        loop {
            let piece = self.log(id, rank, all.len() as u64);
            assert_eq!(piece.error, "");
            all.extend(piece.data);
            if piece.end {
                return String::from_utf8(all).unwrap();
            }
        }
    }

    /// The first event that fits; others stay for later questions.
    pub fn until<T>(&mut self, mut fits: impl FnMut(&RunnerEvent) -> Option<T>) -> T {
        for i in 0..self.earlier.len() {
            if let Some(found) = fits(&self.earlier[i]) {
                self.earlier.remove(i);
                return found;
            }
        }
        loop {
            let event = {
                let runtime = self.runtime.as_ref().unwrap();
                let next = self.events.recv();
                runtime.block_on(async { tokio::time::timeout(HANG, next).await })
            };
            let Ok(Some(event)) = event else {
                panic!("nothing fits, and no more comes; before it: {:?}", self.earlier);
            };
            if let Some(found) = fits(&event) {
                return found;
            }
            self.earlier.push_back(event);
        }
    }

    pub fn refusal(&mut self, id: &str) -> String {
        let id = attempt(id);
        self.until(|event| match event {
            RunnerEvent::Refused { attempt, why } if *attempt == id => Some(why.clone()),
            _ => None,
        })
    }

    pub fn end(&mut self, id: &str, wanted: u32) -> TaskEnd {
        let id = attempt(id);
        self.until(|event| match event {
            RunnerEvent::TaskEnded { attempt, rank, end } if (*attempt, *rank) == (id, wanted) => {
                Some(end.clone())
            }
            _ => None,
        })
    }

    /// How many events fit of those that came so far and were not asked for.
    pub fn earlier_events(&mut self, fits: impl Fn(&RunnerEvent) -> bool) -> usize {
        while let Ok(event) = self.events.try_recv() {
            self.earlier.push_back(event);
        }
        self.earlier.iter().filter(|event| fits(event)).count()
    }

    /// Waits until a checkpoint of it is reported.
    pub fn checkpoint(&mut self, id: &str) {
        let wanted = RunnerEvent::Checkpoint { attempt: attempt(id) };
        self.until(|event| (*event == wanted).then_some(()));
    }

    /// UUIDs and pids of what was left on its GPUs.
    pub fn released(&mut self, id: &str) -> Vec<(String, Vec<u32>)> {
        let id = attempt(id);
        self.until(|event| match event {
            RunnerEvent::Released { attempt, occupied } if *attempt == id => {
                Some(occupied.iter().map(|o| (o.gpu.to_string(), o.pids.clone())).collect())
            }
            _ => None,
        })
    }

    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }
}

impl Drop for World {
    /// Nothing a test starts outlives it.
    fn drop(&mut self) {
        let jobs = std::fs::read_dir(self.state().join("jobs")).into_iter().flatten().flatten();
        for entry in jobs.flat_map(|job| std::fs::read_dir(job.path())).flatten().flatten() {
            let task = TaskDir::new(entry.path());
            if let Ok(Some(state)) = task.read_state()
                && let Ok(pidfd) = tessera_shim::watch(state.shim_pid, state.shim_start_time)
            {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                let _ = tessera_shim::wait_exit(&task, HANG);
                let _ = tessera_shim::reap_dead(&task, None, HANG);
            }
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
