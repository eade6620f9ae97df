//! A cluster on this machine, from the first folder to the last process.
//!
//! In: a plan. Out: a scheduler and agents that are up, a line to them, and in the end nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tessera_model::NodeState;
use tessera_proto::v1;
use tokio::process::Command;

use super::children::{Child, tail};
use super::folder::{Folder, node_name};
use super::{reaper, seed};
use crate::call::Api;
use crate::cli::DevArgs;
use crate::commands::{change, token};
use crate::failure::{Failure, Outcome};
use crate::output::{Screen, count};
use crate::selector::Target;
use crate::settings::{self, Settings, Surroundings};

const READY_WITHIN: Duration = Duration::from_secs(60);
/// From asking the jobs to end to taking the agents away.
const JOBS_END_WITHIN: Duration = Duration::from_secs(5);
const PROGRAM_ENDS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub struct Plan {
    nodes: u32,
    preset: String,
    data: Option<PathBuf>,
    port: u16,
    topology: Option<PathBuf>,
    around: Surroundings,
}

impl Plan {
    pub fn of(args: &DevArgs, around: Surroundings) -> Outcome<Self> {
        let topology = args.topology.as_deref().map(|path| {
            fs::canonicalize(path).map_err(|error| Failure::file("read the topology", path, &error))
        });
        Ok(Self {
            nodes: args.nodes,
            preset: args.preset.clone(),
            data: args.data.clone(),
            port: args.port,
            topology: topology.transpose()?,
            around,
        })
    }
}

/// The other programs of Tessera, beside this one.
struct Programs {
    folder: PathBuf,
}

impl Programs {
    fn beside_us() -> Outcome<Self> {
        let exe = std::env::current_exe().map_err(|error| {
            Failure::no_answer("system", format!("cannot tell where tessera lies: {error}"), "")
        })?;
        let folder = exe.parent().unwrap_or(Path::new("/")).to_owned();
        let programs = Self { folder };
        for name in
            ["tessera", "tessera-scheduler", "tessera-agent", "tessera-shim", "tessera-nvml-sim"]
        {
            let path = programs.folder.join(name);
            if !path.exists() {
                return Err(Failure::no_answer(
                    "install",
                    format!("{} is missing", path.display()),
                    "all programs of Tessera lie in one folder; in a checkout, run `cargo build`",
                ));
            }
        }
        Ok(programs)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(name));
        // A cluster of our own must not hear of the settings of another.
        command.env_remove("TESSERA_CONFIG");
        command
    }
}

pub struct Cluster {
    plan: Plan,
    folder: Folder,
    programs: Programs,
    registry: PathBuf,
    scheduler: Option<Child>,
    agents: Vec<Child>,
    reaper: Option<Child>,
    line: Option<(Settings, Api)>,
    gpus: usize,
}

impl Cluster {
    pub fn prepare(plan: Plan) -> Outcome<Self> {
        let programs = Programs::beside_us()?;
        check_port(plan.port)?;
        let registry = plan.around.registry();
        let folder = Folder::make(plan.data.as_deref())?;
        Ok(Self {
            plan,
            folder,
            programs,
            registry,
            scheduler: None,
            agents: Vec::new(),
            reaper: None,
            line: None,
            gpus: 0,
        })
    }

    pub fn nodes(&self) -> u32 {
        self.plan.nodes
    }

    /// Of all nodes, once they are up.
    pub fn gpus(&self) -> usize {
        self.gpus
    }

    pub fn folder(&self) -> String {
        self.folder.path.display().to_string()
    }

    /// `ready https://127.0.0.1:7070 nodes=4 gpus=32`.
    pub fn ready_line(&self) -> String {
        let server = self.line.as_ref().map_or("", |(settings, _)| settings.server.as_str());
        format!("ready {server} nodes={} gpus={}", self.plan.nodes, self.gpus)
    }

    /// As the administrator.
    pub fn admin(&self) -> Outcome<(&Settings, &Api)> {
        match &self.line {
            Some((settings, api)) => Ok((settings, api)),
            None => Err(Failure::no_answer("internal", "the cluster is not up", "")),
        }
    }

    pub async fn start(&mut self, screen: &Screen) -> Outcome {
        // Side by side: each copies its library and writes its tree.
        let mut made = tokio::task::JoinSet::new();
        for index in 0..self.plan.nodes {
            made.spawn(self.make_node(&node_name(index))?);
        }
        while let Some(one) = made.join_next().await {
            one.map_err(|error| Failure::no_answer("internal", error.to_string(), ""))??;
        }
        self.start_reaper()?;
        self.start_scheduler().await?;
        let settings = settings::read(&self.folder.client())?;
        let api = Api::connect(&settings).await?;
        self.line = Some((settings, api));
        for index in 0..self.plan.nodes {
            self.start_agent(&node_name(index)).await?;
        }
        self.wait_until_up(screen).await?;
        let (_, api) = self.admin()?;
        seed::prices(api).await?;
        self.register()
    }

    fn make_node(&self, node: &str) -> Outcome<impl Future<Output = Outcome> + use<>> {
        let gpu = self.folder.gpu(node);
        self.folder.make_state(node)?;
        let mut command = self.programs.command("tessera-nvml-sim");
        command.arg("init").arg(&gpu).args(["--preset", &self.plan.preset, "--name", node]);
        command.arg("--seed").arg(seed_of(&self.folder.path).to_string());
        Ok(async { run_to_end("tessera-nvml-sim", command).await.map(|_| ()) })
    }

    fn start_reaper(&mut self) -> Outcome {
        let mut command = self.programs.command("tessera");
        command.arg("__reaper").arg(&self.folder.path);
        if self.folder.temporary {
            command.arg("--remove");
        }
        self.reaper = Some(Child::start("the reaper", command, &self.folder.log("reaper"))?);
        Ok(())
    }

    async fn start_scheduler(&mut self) -> Outcome {
        let topology = match &self.plan.topology {
            Some(path) => path.clone(),
            None => self.folder.write_topology(self.plan.nodes)?,
        };
        let mut command = self.programs.command("tessera-scheduler");
        command.arg("--dev").arg("--exit-with-parent").arg("--data").arg(&self.folder.path);
        command.arg("--topology").arg(topology);
        command.args(["--listen", &format!("127.0.0.1:{}", self.plan.port)]);
        let log = self.folder.log("scheduler");
        let (child, line) =
            Child::start_and_hear("the scheduler", command, &log, READY_WITHIN).await?;
        self.scheduler = Some(child);
        if !line.starts_with("ready https://") {
            return Err(Failure::no_answer(
                "child",
                format!("the scheduler said {line:?} where `ready https://…` was due"),
                "are all programs of one version?",
            ));
        }
        Ok(())
    }

    async fn start_agent(&mut self, node: &str) -> Outcome {
        let (settings, api) = self.admin()?;
        let state = self.folder.state(node);
        let gpu = self.folder.gpu(node);
        let mut command = self.programs.command("tessera-agent");
        command.arg("run").args(["--server", &settings.server, "--name", node]);
        command.arg("--state").arg(&state);
        command.arg("--nvml-lib").arg(gpu.join("libnvidia-ml.so.1"));
        command.arg("--sysfs-root").arg(gpu.join("sys"));
        command.args(["--address", "127.0.0.1", "--run-as-agent-user", "--exit-with-parent"]);
        // One that has its certificate needs no token.
        let joined = fs::read_dir(state.join("tls")).is_ok_and(|mut files| files.next().is_some());
        if !joined {
            // In the environment, since arguments can be read by everybody on the machine.
            command.env("TESSERA_JOIN_TOKEN", &token::join_token(api, node).await?.token);
        }
        let log = self.folder.log(node);
        self.agents.push(Child::start(&format!("the agent of {node}"), command, &log)?);
        Ok(())
    }

    async fn wait_until_up(&mut self, screen: &Screen) -> Outcome {
        let begun = Instant::now();
        let mut told = 0;
        loop {
            if let Some(failure) = self.any_death() {
                return Err(failure);
            }
            let (_, api) = self.admin()?;
            let nodes = api.node_list(&[]).await?;
            // A folder that is resumed may know nodes that are not wanted any more.
            let wanted = |name: &str| (0..self.plan.nodes).any(|i| node_name(i) == name);
            let up: Vec<_> = nodes
                .iter()
                .filter(|n| n.state == NodeState::Up && wanted(n.inventory.node.as_str()))
                .collect();
            if up.len() > told && !screen.json {
                told = up.len();
                screen.note(&format!("{told} of {} nodes are up", self.plan.nodes));
            }
            if up.len() == self.plan.nodes as usize {
                self.gpus = up.iter().map(|n| n.inventory.gpus.len()).sum();
                return Ok(());
            }
            if begun.elapsed() > READY_WITHIN {
                let secs = READY_WITHIN.as_secs();
                let (up, all) = (up.len(), self.plan.nodes);
                return Err(Failure::no_answer(
                    "timeout",
                    format!("only {up} of {all} nodes came up within {secs} s"),
                    format!("see the logs in {}", self.folder.path.join("logs").display()),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Lists the cluster where other tessera commands look.
    fn register(&self) -> Outcome {
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.registry);
        made.map_err(|error| Failure::file("make the folder", &self.registry, &error))?;
        self.forget_the_dead();
        let path = self.registry_file();
        let client = toml::Value::String(self.folder.client().display().to_string());
        fs::write(&path, format!("client = {client}\n"))
            .map_err(|error| Failure::file("write", &path, &error))
    }

    /// Entries of clusters that were killed before they could take them back.
    fn forget_the_dead(&self) {
        for entry in fs::read_dir(&self.registry).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|n| n.strip_suffix(".toml")?.parse().ok());
            if pid.is_some_and(|pid| !settings::is_alive(pid)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn registry_file(&self) -> PathBuf {
        self.registry.join(format!("{}.toml", std::process::id()))
    }

    fn any_death(&mut self) -> Option<Failure> {
        self.scheduler.iter_mut().chain(&mut self.agents).find_map(Child::death)
    }

    /// Waits until one of the programs is gone, and says which and why.
    pub async fn death(&mut self) -> Failure {
        loop {
            if let Some(failure) = self.any_death() {
                return failure;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Breaks something on a node's simulated hardware.
    pub async fn break_gpu(&self, node: &str, fault: &str, gpu: u32) -> Outcome {
        let mut command = self.programs.command("tessera-nvml-sim");
        command.arg("fault").arg(self.folder.gpu(node)).arg(fault);
        command.args(["--gpu", &gpu.to_string()]);
        run_to_end("tessera-nvml-sim", command).await.map(|_| ())
    }

    /// The last words of the programs that have died.
    pub fn tell_logs(&mut self, screen: &Screen) {
        for child in self.scheduler.iter_mut().chain(&mut self.agents) {
            if child.death().is_some() {
                screen.note(&format!("--- {} said last:", child.name));
                tail(&child.log, 15).iter().for_each(|line| screen.note(line));
            }
        }
    }

    /// Ends everything in order: jobs, agents, what they left, the scheduler.
    pub async fn stop(&mut self, screen: &Screen) {
        if let Some((_, api)) = &self.line
            && self.scheduler.as_mut().is_some_and(|s| s.death().is_none())
        {
            // A job that does not end now is ended with its agent below.
            let _ = tokio::time::timeout(JOBS_END_WITHIN, end_jobs(api, screen)).await;
        }
        for agent in &self.agents {
            agent.signal(rustix::process::Signal::TERM);
        }
        for agent in &mut self.agents {
            agent.end(PROGRAM_ENDS_WITHIN).await;
        }
        reaper::end_tasks(&self.folder.path).await;
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.end(PROGRAM_ENDS_WITHIN).await;
        }
        self.dismiss_reaper().await;
    }

    /// Ends everything at once.
    pub async fn kill(&mut self) {
        for child in self.agents.iter_mut().chain(&mut self.scheduler) {
            child.kill().await;
        }
        reaper::end_tasks(&self.folder.path).await;
        self.dismiss_reaper().await;
    }

    async fn dismiss_reaper(&mut self) {
        if let Some(reaper) = &mut self.reaper {
            reaper.kill().await;
        }
    }

    pub fn clean_up(&mut self, keep_folder: bool) {
        let _ = fs::remove_file(self.registry_file());
        if !keep_folder {
            self.folder.remove_if_temporary();
        }
    }
}

/// Cancels every job and waits until none is left.
async fn end_jobs(api: &Api, screen: &Screen) -> Outcome {
    let request = v1::ListJobsRequest { limit: 10_000, ..Default::default() };
    let mut told = false;
    loop {
        let jobs = api.list(&request).await?.jobs;
        if !jobs.is_empty() && !told && !screen.json {
            told = true;
            let jobs = count(jobs.len() as u64, "job");
            screen.note(&format!("ending {jobs} first; Ctrl-C again ends all at once"));
        }
        if jobs.is_empty() {
            return Ok(());
        }
        for job in jobs.iter().filter(|j| !j.cancel_requested) {
            let _ =
                change::cancel_one(api.clone(), Target { only: true, ..Target::job(job.id) }).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn check_port(port: u16) -> Outcome {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::no_answer(
            "port",
            format!("port {port} of 127.0.0.1 is in use, perhaps by another dev cluster"),
            "take another with --port, or --port 0 for any free one",
        )),
        Err(error) => Err(Failure::no_answer(
            "port",
            format!("cannot listen on 127.0.0.1:{port}: {error}"),
            "take another with --port, or --port 0 for any free one",
        )),
    }
}

/// Runs a short program and returns its stdout.
async fn run_to_end(name: &str, mut command: Command) -> Outcome<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| {
        Failure::no_answer("child", format!("could not start {name}: {error}"), "")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|l| !l.is_empty()).collect();
        let why = lines
            .iter()
            .find_map(|l| l.strip_prefix("error: "))
            .unwrap_or(lines.last().copied().unwrap_or("it gave no reason"));
        return Err(Failure::no_answer(
            "tool",
            format!("{name}: {why}"),
            "tessera-nvml-sim presets",
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Simulated GPUs are told apart by their UUIDs, which follow from a seed: two clusters on one
/// machine must not share any.
fn seed_of(folder: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    // The scenario file holds whole numbers up to 2^63.
    hasher.finish() >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_told_with_the_way_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = check_port(listener.local_addr().unwrap().port()).unwrap_err();
        assert!(failure.message.contains("is in use"), "{}", failure.message);
        assert!(failure.hint.contains("--port"));
        assert_eq!(check_port(0), Ok(()));
    }
}
