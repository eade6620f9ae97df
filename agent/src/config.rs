//! What the agent is told: flags, then a file, then defaults.
//!
//! In: the command line and `--config FILE`. Out: [`Settings`] with everything filled in, or an
//! error that names the value. The file has the flags' names; one it does not know is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use tessera_model::{BadId, Bytes, NodeId, Refusal};
use tessera_proto::nodes::{check_neighbours, checked_labels};

use crate::join::{JoinError, JoinToken};
use crate::probe::lldp;
use crate::runner::Keep;

const AFTER_HELP: &str = "\
First start on a new node (make the token with `tessera token create --node NAME`):
  TESSERA_JOIN_TOKEN=tsrj1.… tessera-agent --server https://scheduler:7070 --state /var/lib/tessera
Every later start:
  tessera-agent --server https://scheduler:7070 --state /var/lib/tessera
See what this machine offers, without a scheduler:
  tessera-agent probe

The same names work in a file: `--config /etc/tessera/agent.toml` with lines such as
  server = \"https://scheduler:7070\"
  state = \"/var/lib/tessera\"
A flag wins over the file.

SIGTERM ends the agent and leaves the node's tasks running; the next start takes them over.
Exit code: 0 after SIGTERM or SIGINT, 2 when it cannot start; stderr says why and what to do.";

/// The agent of a Tessera node: reads its GPUs and NICs, and runs the tasks it is told to.
#[derive(Debug, Parser)]
#[command(name = "tessera-agent", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Verb>,
    #[command(flatten)]
    pub run: RunFlags,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the agent; the same as no verb at all.
    Run(Box<RunFlags>),
    /// Print this machine's inventory and one sample, and end. Needs no scheduler.
    Probe(ProbeFlags),
}

#[derive(Debug, Clone, Default, Args)]
pub struct RunFlags {
    /// The scheduler, https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Folder for the node's certificate, its tasks and their output. One agent per folder.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// What this node is called. [default: the host name]
    #[arg(long, value_name = "NODE")]
    pub name: Option<String>,
    /// Lets a new node join, once; ignored when it has joined before. Better given in the
    /// environment: every user of a machine can read its command lines.
    #[arg(long, value_name = "TOKEN", env = "TESSERA_JOIN_TOKEN", hide_env_values = true)]
    pub join_token: Option<String>,
    /// Host name or IP address at which other nodes reach this one. [default: the host name]
    #[arg(long, value_name = "HOST")]
    pub address: Option<String>,
    /// A label of this node, NAME=VALUE, more than once for several: what jobs select by, and,
    /// under the names clouds and Kubernetes use, where the node stands.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// A switch that a link of this node ends at, more than once for several.
    #[arg(long = "neighbour", value_name = "SWITCH")]
    pub neighbours: Vec<String>,
    /// What `lldpctl -f json` or `-f json0` printed: its neighbours count as well. Read at the
    /// start.
    #[arg(long, value_name = "FILE")]
    pub lldp_json: Option<PathBuf>,
    #[command(flatten)]
    pub devices: DeviceFlags,
    /// The tessera-shim binary. [default: beside this one]
    #[arg(long, value_name = "PATH")]
    pub shim: Option<PathBuf>,
    /// Jobs without a user of their own run as the agent's user, even if that is root. For a
    /// machine of one's own.
    #[arg(long)]
    pub run_as_agent_user: bool,
    /// How many ended attempts are kept for their logs. [default: 2000]
    #[arg(long, value_name = "N")]
    pub keep_attempts: Option<usize>,
    /// How much room they may take together, such as 10G. [default: 10G]
    #[arg(long, value_name = "SIZE")]
    pub keep_bytes: Option<String>,
    /// How log lines look on stderr; RUST_LOG says which. [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Stop when standard input ends, so that no agent outlives the program that started it; its
    /// tasks run on.
    #[arg(long)]
    pub exit_with_parent: bool,
    /// A TOML file with these names.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct DeviceFlags {
    /// libnvidia-ml.so.1, or one that simulates it. [default: the driver's]
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Option<PathBuf>,
    /// Where to read about NICs and PCI. [default: /sys]
    #[arg(long, value_name = "DIR")]
    pub sysfs_root: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct ProbeFlags {
    #[command(flatten)]
    pub devices: DeviceFlags,
    /// What to call the node in the output. [default: the host name]
    #[arg(long, value_name = "NODE")]
    pub name: Option<String>,
    /// One JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The file, with the flags' names; dashes or underscores.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    server: Option<String>,
    state: Option<PathBuf>,
    name: Option<String>,
    #[serde(alias = "join-token")]
    join_token: Option<String>,
    address: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    neighbours: Vec<String>,
    #[serde(alias = "lldp-json")]
    lldp_json: Option<PathBuf>,
    #[serde(alias = "nvml-lib")]
    nvml_lib: Option<PathBuf>,
    #[serde(alias = "sysfs-root")]
    sysfs_root: Option<PathBuf>,
    shim: Option<PathBuf>,
    #[serde(alias = "run-as-agent-user")]
    run_as_agent_user: Option<bool>,
    #[serde(alias = "keep-attempts")]
    keep_attempts: Option<usize>,
    #[serde(alias = "keep-bytes")]
    keep_bytes: Option<String>,
    #[serde(alias = "log-format")]
    log_format: Option<LogFormat>,
    #[serde(alias = "exit-with-parent")]
    exit_with_parent: Option<bool>,
}

/// Everything the agent needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    pub server: String,
    pub state: PathBuf,
    /// `None`: as it joined, or the host's name.
    pub name: Option<NodeId>,
    pub join_token: Option<JoinToken>,
    pub address: String,
    pub labels: BTreeMap<String, String>,
    /// Each once.
    pub neighbours: Vec<String>,
    pub devices: Devices,
    pub shim: PathBuf,
    pub run_as_agent_user: bool,
    pub keep: Keep,
    pub log_format: LogFormat,
    pub exit_with_parent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    pub nvml_library: Option<PathBuf>,
    pub sysfs: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no {what} is given")]
    Missing { what: &'static str, flag: &'static str },
    #[error("could not read {}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not right: {why}", .path.display())]
    Toml { path: PathBuf, why: String },
    #[error(transparent)]
    Name(#[from] BadId),
    #[error(transparent)]
    Token(#[from] JoinError),
    #[error("{text:?} is no label")]
    Label { text: String },
    #[error("what is said of the node is not right: {0}")]
    Told(Refusal),
    #[error("{} is not what lldpctl prints: {why}", .path.display())]
    Lldp { path: PathBuf, why: String },
    #[error("{text:?} is no size")]
    Size { text: String },
    #[error("there is no shim at {}", .path.display())]
    NoShim { path: PathBuf },
    #[error("the folder {} cannot be used", .dir.display())]
    State {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another agent ({holder}) uses the folder {}", .dir.display())]
    InUse { dir: PathBuf, holder: String },
}

impl ConfigError {
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { flag, .. } => format!("say {flag}, or write it into the --config file"),
            Self::File { .. } => "check the path after --config or --lldp-json".to_owned(),
            Self::Label { .. } => "write it like --label zone=eu-west-1a".to_owned(),
            Self::Told(refusal) => refusal.hint.clone(),
            Self::Lldp { .. } => "write it with `lldpctl -f json0 > FILE`".to_owned(),
            Self::Toml { .. } => "`tessera-agent --help` lists the names".to_owned(),
            Self::Name(_) => "say --name, such as gpu-a01".to_owned(),
            Self::Token(error) => error.hint(),
            Self::Size { .. } => "write it like 10G or 500M".to_owned(),
            Self::NoShim { .. } => {
                "install tessera-shim beside tessera-agent, or say --shim PATH".to_owned()
            }
            Self::State { .. } => "the agent must own it and be able to write there".to_owned(),
            Self::InUse { .. } => {
                "stop that one first, or give this one a --state folder of its own".to_owned()
            }
        }
    }
}

impl Settings {
    pub fn resolve(flags: RunFlags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None => FileSettings::default(),
        };
        let server = flags.server.or(file.server);
        let server =
            server.ok_or(ConfigError::Missing { what: "scheduler", flag: "--server URL" })?;
        let state = flags.state.or(file.state);
        let state =
            state.ok_or(ConfigError::Missing { what: "state folder", flag: "--state DIR" })?;
        let state = std::path::absolute(&state)
            .map_err(|source| ConfigError::State { dir: state, source })?;
        let name = flags.name.or(file.name).map(|name| NodeId::parse(&name)).transpose()?;
        let token = flags.join_token.or(file.join_token).filter(|token| !token.is_empty());
        let labels = labels(file.labels, &flags.labels)?;
        let neighbours = match flags.neighbours.is_empty() {
            true => file.neighbours,
            false => flags.neighbours,
        };
        let neighbours = all_neighbours(neighbours, flags.lldp_json.or(file.lldp_json))?;
        let defaults = Keep::default();
        let bytes = match flags.keep_bytes.or(file.keep_bytes) {
            Some(text) => Bytes::parse(&text).ok_or(ConfigError::Size { text })?,
            None => defaults.bytes,
        };
        let attempts = flags.keep_attempts.or(file.keep_attempts).unwrap_or(defaults.attempts);
        let shim = match flags.shim.or(file.shim) {
            Some(path) => path,
            None => beside_us("tessera-shim"),
        };
        if !shim.is_file() {
            return Err(ConfigError::NoShim { path: shim });
        }
        let devices = DeviceFlags {
            nvml_lib: flags.devices.nvml_lib.or(file.nvml_lib),
            sysfs_root: flags.devices.sysfs_root.or(file.sysfs_root),
        };
        Ok(Self {
            server,
            state,
            name,
            join_token: token.map(|token| JoinToken::parse(&token)).transpose()?,
            address: flags.address.or(file.address).unwrap_or_else(host_name),
            labels,
            neighbours,
            devices: devices.resolve(),
            shim: std::path::absolute(&shim).unwrap_or(shim),
            run_as_agent_user: flags.run_as_agent_user || file.run_as_agent_user.unwrap_or(false),
            keep: Keep { attempts, bytes, ..defaults },
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
            exit_with_parent: flags.exit_with_parent || file.exit_with_parent.unwrap_or(false),
        })
    }
}

impl DeviceFlags {
    pub fn resolve(self) -> Devices {
        Devices {
            nvml_library: self.nvml_lib,
            sysfs: self.sysfs_root.unwrap_or_else(|| PathBuf::from("/sys")),
        }
    }
}

/// Those of the file, and over them those of the flags.
fn labels(
    mut labels: BTreeMap<String, String>,
    flags: &[String],
) -> Result<BTreeMap<String, String>, ConfigError> {
    for text in flags {
        let Some((name, value)) = text.split_once('=') else {
            return Err(ConfigError::Label { text: text.clone() });
        };
        labels.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    checked_labels(labels).map_err(ConfigError::Told)
}

fn all_neighbours(
    mut told: Vec<String>,
    lldp: Option<PathBuf>,
) -> Result<Vec<String>, ConfigError> {
    if let Some(path) = lldp {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::File { path: path.clone(), source })?;
        let heard = lldp::neighbours(&text).map_err(|why| ConfigError::Lldp { path, why })?;
        told.extend(heard);
    }
    let mut seen = BTreeSet::new();
    told.retain(|name| seen.insert(name.clone()));
    check_neighbours(&told).map_err(ConfigError::Told)?;
    Ok(told)
}

fn read_file(path: &Path) -> Result<FileSettings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Toml { path: path.to_owned(), why: error.to_string() })
}

fn beside_us(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().unwrap_or(Path::new("/usr/bin")).join(name)
}

pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of this node where none is given.
pub fn default_node() -> Result<NodeId, ConfigError> {
    Ok(NodeId::parse(&host_name())?)
}

/// Held for as long as the agent runs: one agent per state folder.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Makes the folder where it is missing, and takes it.
pub fn lock_state(dir: &Path) -> Result<StateLock, ConfigError> {
    let failed = |source| ConfigError::State { dir: dir.to_owned(), source };
    crate::passage::make(dir).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(dir.join("agent.lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Without its pid the message is a little poorer.
            let _ = file.take(64).read_to_string(&mut holder);
            return Err(ConfigError::InUse {
                dir: dir.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "pid {}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(StateLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(dir: &Path) -> RunFlags {
        RunFlags {
            server: Some("https://s:7070".into()),
            state: Some(dir.join("state")),
            shim: Some(PathBuf::from("/bin/sh")),
            ..RunFlags::default()
        }
    }

    #[test]
    fn the_sample_file_explains_every_setting_and_is_right() {
        use clap::CommandFactory;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let sample = include_str!("../../deploy/config/agent.toml");
        std::fs::write(&file, sample).unwrap();
        Settings::resolve(RunFlags { config: Some(file), ..flags(dir.path()) }).unwrap();
        for flag in Cli::command().get_arguments().filter_map(|a| a.get_long()) {
            let name = flag.replace('-', "_");
            let told = ["", "s"].iter().any(|s| sample.contains(&format!("{name}{s} = ")));
            assert!(told || ["config", "help", "version"].contains(&flag), "{name} is missing");
        }
    }

    #[test]
    fn the_unit_file_lets_jobs_reach_their_scripts_and_their_gpus() {
        let unit = include_str!("../../deploy/systemd/tessera-agent.service");
        let set = |line: &str| unit.lines().any(|l| l == line);
        assert!(set("StateDirectoryMode=0711"));
        for takes_devices_away in
            ["ProtectClock=", "PrivateDevices=", "DevicePolicy=", "DeviceAllow="]
        {
            assert!(
                !unit.lines().any(|l| l.starts_with(takes_devices_away)),
                "{takes_devices_away}"
            );
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        let resolve =
            || Settings::resolve(RunFlags { config: Some(file.clone()), ..flags(dir.path()) });
        write(
            "server = \"https://other:1\"\nname = \"gpu-7\"\nkeep-attempts = 5\nlog_format = \"json\"\nkeep_bytes = \"1G\"",
        );
        let settings = resolve().unwrap();
        assert_eq!(settings.server, "https://s:7070");
        assert_eq!(settings.name, Some(NodeId::parse("gpu-7").unwrap()));
        assert_eq!(settings.keep.attempts, 5);
        assert_eq!(settings.keep.bytes, Bytes::gib(1));
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.devices.sysfs, Path::new("/sys"));
        for (text, want) in [
            ("sever = \"x\"", "unknown field `sever`"),
            ("name = 7", "agent.toml"),
            ("name = \"a b\"", "letters, digits"),
            ("keep_bytes = \"much\"", "no size"),
            ("join_token = \"tsrj1.x\"", "join token"),
            ("labels = { \"a b\" = \"1\" }", "no name of a label"),
            ("labels = { zone = \"a\\u001b[2J\" }", "unprintable"),
            ("labels = { zone = 1 }", "agent.toml"),
            ("neighbours = [\"\"]", "neighbours is empty"),
            ("lldp_json = \"/no/such/file\"", "/no/such/file"),
            ("lldp_json = \"/dev/null\"", "lldpctl"),
            ("= 1", "agent.toml"),
        ] {
            write(text);
            let error = resolve().unwrap_err();
            assert!(error.to_string().contains(want), "{text}: {error}");
            assert!(!error.hint().is_empty(), "{text}");
        }
    }

    #[test]
    fn labels_and_neighbours_come_from_file_flags_and_lldp() {
        let dir = tempfile::tempdir().unwrap();
        let (file, heard) = (dir.path().join("agent.toml"), dir.path().join("lldp.json"));
        std::fs::write(
            &file,
            "labels = { zone = \"a\", \"nvidia.com/gpu.clique\" = \"x.1\" }\nneighbours = [\"leaf-4\", \"leaf-3\", \"leaf-4\"]",
        )
        .unwrap();
        let chassis = r#"{"lldp":[{"interface":[{"chassis":[{"name":[{"value":"leaf-5"}]}]},
            {"chassis":[{"name":[{"value":"leaf-3"}]}]}]}]}"#;
        std::fs::write(&heard, chassis).unwrap();
        let flags = RunFlags {
            config: Some(file),
            labels: vec!["zone=b=c".into(), "disk=".into()],
            lldp_json: Some(heard),
            ..flags(dir.path())
        };
        let settings = Settings::resolve(flags.clone()).unwrap();
        let labels: Vec<_> = settings.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(labels, ["disk=", "nvidia.com/gpu.clique=x.1", "zone=b=c"]);
        assert_eq!(settings.neighbours, ["leaf-4", "leaf-3", "leaf-5"]);
        let too_many = (0..65).map(|n| format!("l{n}=")).collect();
        for (labels, want) in [
            (vec!["zone".to_owned()], "no label"),
            (too_many, "at most 64"),
            (vec![format!("a={}", "x".repeat(257))], "at most 256"),
        ] {
            let error = Settings::resolve(RunFlags { labels, ..flags.clone() }).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_flag() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&str, RunFlags); 3] = [
            ("--server", RunFlags { server: None, ..flags(dir.path()) }),
            ("--state", RunFlags { state: None, ..flags(dir.path()) }),
            ("--shim", RunFlags { shim: Some(dir.path().join("none")), ..flags(dir.path()) }),
        ];
        for (flag, flags) in cases {
            let hint = Settings::resolve(flags).unwrap_err().hint();
            assert!(hint.contains(flag), "{hint} does not name {flag}");
        }
    }

    #[test]
    fn a_second_agent_on_the_same_folder_is_told_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let first = lock_state(&state).unwrap();
        let error = lock_state(&state).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        lock_state(&state).unwrap();
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["tessera-agent", "--server", "https://s:1", "--state", "/x"]);
        assert!(cli.command.is_none() && cli.run.server.is_some());
        let cli = Cli::parse_from(["tessera-agent", "run", "--run-as-agent-user"]);
        assert!(matches!(cli.command, Some(Verb::Run(flags)) if flags.run_as_agent_user));
        assert!(Cli::try_parse_from(["tessera-agent", "probe", "--json"]).is_ok());
    }
}
