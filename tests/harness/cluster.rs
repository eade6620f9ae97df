//! A cluster: one scheduler, some agents on simulated nodes, and the command line.
//!
//! In: a [`ClusterSpec`]. Out: processes that run, and that can be killed and started again one by
//! one. Dropping it ends everything; when the test has failed, the ends of all logs are printed.
//! `TESSERA_E2E_KEEP=1` keeps the folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use tessera_proto::v1;

use crate::audit;
use crate::binaries::Binaries;
use crate::person::Person;
use crate::process::{Process, tail};
use crate::sweep;
use crate::unix_ms;
use crate::wait::until;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// n0, n1, …
    pub nodes: usize,
    /// What `tessera-nvml-sim presets` lists.
    pub preset: &'static str,
    /// Text of the topology file.
    pub topology: Option<&'static str>,
    pub scheduler_flags: Vec<&'static str>,
    pub agent_flags: Vec<&'static str>,
    /// Whether to start agents and wait for them.
    pub agents: bool,
    /// The size of a disk of its own for the scheduler's data, `24m`; gone with the scheduler. See
    /// [`Cluster::try_start`].
    pub data_size: Option<&'static str>,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            nodes: 1,
            preset: "dgx-h100",
            topology: None,
            scheduler_flags: Vec::new(),
            agent_flags: Vec::new(),
            agents: true,
            data_size: None,
        }
    }
}

impl ClusterSpec {
    pub fn nodes(nodes: usize) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// Nodes are given up within seconds.
    pub fn impatient(mut self) -> Self {
        self.scheduler_flags.extend([
            "--heartbeat-ms",
            "200",
            "--node-silent-ms",
            "2000",
            "--lease-ms",
            "6000",
            "--lost-ms",
            "8000",
        ]);
        self
    }
}

/// One simulated node and the agent on it.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// The simulated machine.
    pub machine: PathBuf,
    /// The agent's state folder.
    pub state: PathBuf,
    agent: Option<Process>,
}

impl Node {
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("its agent runs").pid()
    }
}

pub struct Cluster {
    pub dir: PathBuf,
    pub binaries: Binaries,
    spec: ClusterSpec,
    listen: String,
    scheduler: Option<Process>,
    lives: u32,
    pub nodes: Vec<Node>,
    admin: Option<Person>,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// -1 where a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code(), 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Cluster {
    /// A cluster with all nodes up, the teams nlp and vision, and an admin.
    pub fn start(spec: ClusterSpec) -> Self {
        let mut cluster = Self::prepare(spec);
        cluster.start_scheduler();
        let admin = cluster.admin().clone();
        admin.create_team("nlp");
        admin.create_team("vision");
        if cluster.spec.agents {
            for i in 0..cluster.nodes.len() {
                cluster.start_agent(i);
            }
            for node in &cluster.nodes {
                admin.wait_node_up(&node.name, 0);
            }
        }
        cluster
    }

    /// The same, where this machine may not have what the spec asks for: a mount of its own.
    pub fn try_start(spec: ClusterSpec) -> Result<Self, String> {
        let said = run(private_mounts().arg("true"));
        if said.code() != 0 {
            return Err(said.stderr);
        }
        Ok(Self::start(spec))
    }

    /// Its folder and its simulated machines; nothing runs.
    pub fn prepare(spec: ClusterSpec) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static ORPHANS: Once = Once::new();
        let binaries = Binaries::find().unwrap_or_else(|why| panic!("{why}"));
        let base = std::env::temp_dir();
        ORPHANS.call_once(|| sweep::sweep_orphans(&base));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        // The last letter keeps one folder's path from being the beginning of another's.
        let dir = base.join(format!("{}{pid}-{number}-c", sweep::PREFIX));
        fs::create_dir_all(dir.join("work")).expect("the temporary folder can be written");
        let mut cluster = Self {
            dir,
            binaries,
            spec,
            listen: "127.0.0.1:0".to_owned(),
            scheduler: None,
            lives: 0,
            nodes: Vec::new(),
            admin: None,
        };
        for i in 0..cluster.spec.nodes {
            cluster.add_node(&format!("n{i}"), u64::from(pid) << 16 | u64::from(number));
        }
        cluster
    }

    fn add_node(&mut self, name: &str, seed: u64) {
        let machine = self.dir.join(name).join("machine");
        let state = self.dir.join(name).join("state");
        fs::create_dir_all(&machine).expect("the cluster's folder can be written");
        let node = Node { name: name.to_owned(), machine, state, agent: None };
        let seed = seed.to_string();
        let mut init = Command::new(self.binaries.path("tessera-nvml-sim"));
        init.arg("init").arg(&node.machine);
        init.args(["--preset", self.spec.preset, "--name", name, "--seed", &seed]);
        run(&mut init).ok();
        self.nodes.push(node);
    }

    // ---- the scheduler

    pub fn data(&self) -> PathBuf {
        let folder = self.dir.join("data");
        match (&self.scheduler, self.spec.data_size) {
            // Only the scheduler has it mounted; this is how others look through its eyes.
            (Some(process), Some(_)) => {
                let seen = folder.strip_prefix("/").unwrap_or(&folder);
                PathBuf::from(format!("/proc/{}/root", process.pid())).join(seen)
            }
            _ => folder,
        }
    }

    pub fn client_toml(&self) -> PathBuf {
        self.data().join("client.toml")
    }

    /// Where jobs of [`Self::sh`] run, and where they may leave marks.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    pub fn database(&self) -> PathBuf {
        self.data().join("tessera.db")
    }

    /// The command that starts this cluster's scheduler.
    pub fn scheduler_command(&self) -> Command {
        let program = self.binaries.path("tessera-scheduler");
        let data = self.dir.join("data");
        let mut command = match self.spec.data_size {
            None => Command::new(program),
            Some(size) => {
                fs::create_dir_all(&data).expect("the cluster's folder can be written");
                let mount =
                    r#"mount -t tmpfs -o "size=$0,mode=700" tmpfs "$1" && shift && exec "$@""#;
                let mut command = private_mounts();
                command.args(["sh", "-c", mount, size]).arg(&data).arg(program);
                command
            }
        };
        command.arg("--data").arg(&data).args(["--listen", &self.listen]);
        if let Some(text) = self.spec.topology {
            let path = self.dir.join("topology.toml");
            fs::write(&path, text).expect("the cluster's folder can be written");
            command.arg("--topology").arg(path);
        }
        command.args(&self.spec.scheduler_flags);
        command
    }

    /// Starts it and waits for its ready line.
    pub fn start_scheduler(&mut self) {
        assert!(self.scheduler.is_none(), "it runs already");
        let url = until("the scheduler to be ready", || {
            self.lives += 1;
            let log = self.scheduler_log();
            let mut process = Process::spawn("scheduler", &mut self.scheduler_command(), &log)
                .unwrap_or_else(|e| panic!("the scheduler does not start: {e}"));
            let url = until("the scheduler's ready line", || {
                let text = process.log();
                let line = text.lines().find_map(|l| l.strip_prefix("ready "));
                match (line, process.ended()) {
                    (Some(url), _) => Ok(Some(url.trim().to_owned())),
                    (None, Some(_)) => Ok(None),
                    (None, None) => Err(text),
                }
            });
            let Some(url) = url else {
                // Between two lives somebody's connection may have taken the port for a moment.
                let said = process.tail();
                let passes = self.lives > 1 && said.contains("in use");
                assert!(passes, "the scheduler ended: {said}");
                return Err(said);
            };
            self.scheduler = Some(process);
            Ok(url)
        });
        self.listen = url.trim_start_matches("https://").to_owned();
        if self.admin.is_none() {
            self.admin = Some(self.person_of(&self.client_toml()));
        }
    }

    fn scheduler_log(&self) -> PathBuf {
        self.dir.join(format!("scheduler.{}.log", self.lives))
    }

    pub fn scheduler_pid(&self) -> u32 {
        self.scheduler.as_ref().expect("it runs").pid()
    }

    /// SIGKILL.
    pub fn kill_scheduler(&mut self) {
        self.scheduler.take().expect("it runs").kill();
    }

    /// SIGTERM; it must end well.
    #[track_caller]
    pub fn stop_scheduler(&mut self) {
        let mut process = self.scheduler.take().expect("it runs");
        let status = process.terminate();
        assert_eq!(status.code(), Some(0), "{}", process.tail());
    }

    /// `kill -9`, and a new one on the same folder and port.
    pub fn restart_scheduler(&mut self) {
        self.kill_scheduler();
        self.start_scheduler();
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    // ---- agents

    /// The command that starts the agent of a node; a first start needs a token as well.
    pub fn agent_command(&self, i: usize) -> Command {
        let node = &self.nodes[i];
        let mut command = Command::new(self.binaries.path("tessera-agent"));
        command
            .args(["--server", &self.url(), "--name", &node.name, "--address", "127.0.0.1"])
            .arg("--state")
            .arg(&node.state)
            .arg("--nvml-lib")
            .arg(node.machine.join("libnvidia-ml.so.1"))
            .arg("--sysfs-root")
            .arg(node.machine.join("sys"))
            .arg("--run-as-agent-user")
            .args(&self.spec.agent_flags);
        command
    }

    /// Starts the agent, with a join token if the node has not joined yet.
    pub fn start_agent(&mut self, i: usize) {
        let mut command = self.agent_command(i);
        if !self.nodes[i].state.join("tls/identity").exists() {
            let name = self.nodes[i].name.clone();
            command.args(["--join-token", &self.admin().join_token(&name)]);
        }
        let node = &mut self.nodes[i];
        assert!(node.agent.is_none(), "the agent of {} runs already", node.name);
        let log = self.dir.join(&node.name).join("agent.log");
        let process = Process::spawn(&node.name, &mut command, &log);
        node.agent = Some(process.unwrap_or_else(|e| panic!("no agent on {}: {e}", node.name)));
    }

    /// Starts it, and waits until the scheduler has heard of it.
    pub fn start_agent_and_wait(&mut self, i: usize) {
        let before = unix_ms();
        self.start_agent(i);
        self.admin().wait_node_up(&self.nodes[i].name, before);
    }

    /// SIGKILL; its tasks run on.
    pub fn kill_agent(&mut self, i: usize) {
        self.nodes[i].agent.take().expect("it runs").kill();
    }

    /// SIGTERM; it must end well.
    #[track_caller]
    pub fn stop_agent(&mut self, i: usize) {
        let mut process = self.nodes[i].agent.take().expect("it runs");
        let status = process.terminate();
        assert_eq!(status.code(), Some(0), "{}", process.tail());
    }

    /// The whole node is gone: agent, shims and jobs, and nobody saw how.
    pub fn cut_power(&mut self, i: usize) {
        self.kill_agent(i);
        sweep::cut_power(&self.nodes[i].state);
    }

    /// `tessera-nvml-sim VERB MACHINE ARGS`.
    #[track_caller]
    pub fn machine(&self, i: usize, verb: &str, args: &[&str]) -> Said {
        let mut command = Command::new(self.binaries.path("tessera-nvml-sim"));
        command.arg(verb).arg(&self.nodes[i].machine).args(args);
        run(&mut command).ok()
    }

    // ---- people

    pub fn admin(&self) -> &Person {
        self.admin.as_ref().expect("the scheduler was started")
    }

    fn person_of(&self, path: &Path) -> Person {
        let text = fs::read_to_string(path)
            .unwrap_or_else(|e| panic!("the scheduler did not write {}: {e}", path.display()));
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let get = |key: &str| {
            let value = table.get(key).and_then(toml::Value::as_str);
            value.unwrap_or_else(|| panic!("{} has no {key}", path.display()))
        };
        Person::connect(get("server"), get("ca"), get("token"))
            .unwrap_or_else(|e| panic!("{}: {e} ({})", path.display(), e.hint()))
    }

    /// A job of team nlp: one task, a shell script.
    pub fn sh(&self, script: &str) -> v1::JobSpec {
        v1::JobSpec {
            name: "story".to_owned(),
            team: "nlp".to_owned(),
            tasks_per_node: 1,
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            working_dir: Some(self.work().display().to_string()),
            ..Default::default()
        }
    }

    // ---- the command line

    /// `tessera ARGS` as the admin.
    pub fn cli(&self, args: &[&str]) -> Said {
        run(&mut self.cli_command(&self.client_toml(), args))
    }

    /// `tessera ARGS` as somebody else.
    pub fn cli_as(&self, person: &Person, args: &[&str]) -> Said {
        let id: String =
            person.token.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let path = self.dir.join(format!("{id}.toml"));
        let text = format!(
            "server = {:?}\nca = \"\"\"{}\"\"\"\ntoken = {:?}\n",
            person.server, person.ca, person.token
        );
        fs::write(&path, text).expect("the cluster's folder can be written");
        run(&mut self.cli_command(&path, args))
    }

    /// The command, to be changed or run otherwise.
    pub fn cli_command(&self, settings: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path("tessera"));
        command
            .args(args)
            .current_dir(self.work())
            .env("TESSERA_CONFIG", settings)
            .env("XDG_RUNTIME_DIR", &self.dir)
            .env("HOME", &self.dir)
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Runs any program and hears it out.
    pub fn run(&self, command: &mut Command) -> Said {
        run(command)
    }

    /// What no story may leave: see [`audit`].
    fn broken_promises(&self) -> Vec<String> {
        let mut broken: Vec<String> = (1..=self.lives)
            .flat_map(|life| audit::panics(&self.dir.join(format!("scheduler.{life}.log"))))
            .collect();
        for node in &self.nodes {
            broken.extend(audit::panics(&self.dir.join(&node.name).join("agent.log")));
            for task in sweep::tasks(&node.state) {
                broken.extend(audit::panics(&task.join("shim.log")));
            }
        }
        if let (Some(_), Some(admin)) = (&self.scheduler, &self.admin) {
            broken.extend(audit::broken_promises(&self.database(), admin));
        }
        broken
    }

    fn print_logs(&self) {
        for life in 1..=self.lives {
            let log = self.dir.join(format!("scheduler.{life}.log"));
            // Of earlier lives the last line or two say enough.
            let text = tail(&log);
            let from = if life == self.lives { 0 } else { text.len().saturating_sub(400) };
            let text = text.get(from..).unwrap_or(&text);
            eprintln!("---- scheduler, life {life}\n{text}");
        }
        for node in &self.nodes {
            let log = self.dir.join(&node.name).join("agent.log");
            eprintln!("---- agent of {}\n{}", node.name, tail(&log));
            for task in sweep::tasks(&node.state) {
                let shim = tail(&task.join("shim.log"));
                if !shim.is_empty() && !shim.starts_with("no log") {
                    eprintln!("---- {}\n{shim}", task.display());
                }
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let told_well = !std::thread::panicking();
        let broken = if told_well { self.broken_promises() } else { Vec::new() };
        if !told_well || !broken.is_empty() {
            self.print_logs();
        }
        self.scheduler = None;
        self.nodes.iter_mut().for_each(|node| node.agent = None);
        sweep::sweep(&self.dir);
        if std::env::var_os("TESSERA_E2E_KEEP").is_some() {
            eprintln!("kept {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("could not remove {}: {error}", self.dir.display());
        }
        assert!(broken.is_empty(), "broken promises:\n{}", broken.join("\n"));
    }
}

/// Whatever it runs may mount things that nobody else sees.
fn private_mounts() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
}

/// Runs a program to its end, without input.
pub fn run(command: &mut Command) -> Said {
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{:?} does not start: {e}", command.get_program()));
    Said {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
