//! Settings: flags first, then the file named by `--config`, then what we think best.
//!
//! In: arguments and a TOML file with the same names. Out: a [`Config`] in which nothing is missing
//! and no rule between settings is broken.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Deserialize;

use tessera_model::refusal::nearest;
use tessera_model::{Millis, UnixMillis};

const HELP_AFTER: &str = "\
Examples:
  tessera-scheduler --data /var/lib/tessera
      One machine. Writes /var/lib/tessera/client.toml, which the command line reads:
      TESSERA_CONFIG=/var/lib/tessera/client.toml tessera nodes

  tessera-scheduler --data /var/lib/tessera --listen 0.0.0.0:7070 --server-name head.cluster.lan
      For a cluster. Then, for each node: `tessera token create --node NAME` here, and there
      TESSERA_JOIN_TOKEN=… tessera-agent --server https://head.cluster.lan:7070 --state /var/lib/tessera-agent

  tessera-scheduler --config /etc/tessera/scheduler.toml
      Every flag above can stand in the file, with _ for -:
          data = \"/var/lib/tessera\"
          listen = \"0.0.0.0:7070\"
          server_name = [\"head.cluster.lan\"]
          topology = \"/etc/tessera/topology.toml\"

It prints one line on stdout once it serves, `ready https://…`; its log goes to stderr (RUST_LOG
sets how much). Exit codes: 0 stopped by a signal, 2 could not start or had to give up.

To try everything on this machine with simulated GPUs, run `tessera dev` instead.";

/// What may be said on the command line or in the file.
#[derive(Debug, Default, Parser, Deserialize)]
#[command(
    name = "tessera-scheduler",
    version,
    about = "The central scheduler of a Tessera cluster: queue, placement, ledger.",
    after_help = HELP_AFTER
)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder for everything that must survive: journal, certificates, client.toml
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Address and port to serve on; port 0 takes a free one [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Name or address by which nodes and people reach this scheduler; may be repeated. localhost,
    /// this host's name and the listen address are known anyway
    #[arg(long = "server-name", value_name = "NAME")]
    #[serde(default)]
    server_name: Vec<String>,

    /// Where each node stands in the network; may be repeated: each file adds its fabrics or
    /// replaces those of the same name. Our TOML, Slurm's topology.conf or topology.yaml, or
    /// topograph's graph JSON. Read at every start and at SIGHUP; without it the last map stays
    #[arg(long, value_name = "FILE")]
    #[serde(default, deserialize_with = "one_or_more")]
    topology: Vec<PathBuf>,

    /// At SIGHUP the files may also name nodes that never joined; at the start they always may
    #[arg(long)]
    #[serde(default)]
    topology_allow_unknown: bool,

    /// The files may leave out nodes that stood in the map, which is refused otherwise
    #[arg(long)]
    #[serde(default)]
    topology_drop_nodes: bool,

    /// Read settings from this TOML file; flags go before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// For trying out: loopback only, with gRPC reflection
    #[arg(long)]
    #[serde(default)]
    dev: bool,

    /// How log lines look on stderr [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,

    /// Stop when standard input ends, so that no scheduler outlives the program that started it
    #[arg(long)]
    #[serde(default)]
    exit_with_parent: bool,

    /// How often agents report, milliseconds [default: 2000]
    #[arg(long, value_name = "MS")]
    heartbeat_ms: Option<u64>,

    /// A node that says nothing for so long gets no new jobs, milliseconds [default: 10000]
    #[arg(long, value_name = "MS")]
    node_silent_ms: Option<u64>,

    /// How long requeueable jobs run on without word from the scheduler, milliseconds
    /// [default: 600000]
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u64>,

    /// When they are taken as stopped and may start elsewhere, milliseconds; at least 2000 more than
    /// lease-ms, and half of the difference, up to 30 s, is their grace [default: 660000]
    #[arg(long, value_name = "MS")]
    lost_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// Between the end of a lease and the loss of its node, milliseconds: time to stop what ran.
const LAPSE_MARGIN_MIN: u64 = 2_000;

/// Settings with everything in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub server_names: Vec<String>,
    pub topology: Vec<PathBuf>,
    pub topology_allow_unknown: bool,
    pub topology_drop_nodes: bool,
    pub dev: bool,
    pub log_format: LogFormat,
    pub exit_with_parent: bool,
    pub heartbeat: Millis,
    pub node_silent: Millis,
    pub lease: Millis,
    pub lost: Millis,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the settings file {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}: {problem}")]
    Broken { path: PathBuf, line: usize, problem: String, near: Option<String> },
    #[error("no data folder is given")]
    NoData,
    #[error("--dev serves on loopback only, and {0} is not")]
    DevNotLoopback(IpAddr),
    #[error("{name} is 0")]
    Zero { name: &'static str },
    #[error("node_silent_ms ({silent}) is less than three heartbeats ({heartbeat} each)")]
    SilentTooSoon { silent: u64, heartbeat: u64 },
    #[error("lease_ms ({lease}) is not more than node_silent_ms ({silent})")]
    LeaseTooShort { lease: u64, silent: u64 },
    #[error("lost_ms ({lost}) is not 2 s more than lease_ms ({lease})")]
    LostTooSoon { lost: u64, lease: u64 },
}

impl ConfigError {
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "see that the file exists and may be read".into(),
            Self::Broken { near: Some(near), .. } => format!("did you mean `{near}`?"),
            Self::Broken { near: None, .. } => {
                "the names are those of the flags in `tessera-scheduler --help`, with _ for -"
                    .into()
            }
            Self::NoData => "say where to keep things: --data /var/lib/tessera".into(),
            Self::DevNotLoopback(_) => {
                "leave --dev away to serve others; everything else stays".into()
            }
            Self::Zero { name } => format!("give {name} a time in milliseconds"),
            Self::SilentTooSoon { heartbeat, .. } => {
                format!(
                    "a late heartbeat is no dead node: node_silent_ms = {} or more",
                    heartbeat * 3
                )
            }
            Self::LeaseTooShort { .. } => {
                "a lease must outlast a short silence, or jobs stop for a hiccup".into()
            }
            Self::LostTooSoon { lease, .. } => format!(
                "a job may start elsewhere only after its lease has lapsed for certain, or it would run twice: lost_ms = {} or more",
                lease + 60_000.min(lease / 10).max(LAPSE_MARGIN_MIN)
            ),
        }
    }
}

/// Reads arguments and, if named, the file.
pub fn load(flags: Settings) -> Result<Config, ConfigError> {
    let file = match &flags.config {
        None => Settings::default(),
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
            parse_file(&text).map_err(|(line, problem, near)| ConfigError::Broken {
                path: path.clone(),
                line,
                problem,
                near,
            })?
        }
    };
    merge(flags, file)
}

fn parse_file(text: &str) -> Result<Settings, (usize, String, Option<String>)> {
    toml::from_str(text).map_err(|e| {
        let line = line_of(text, e.span().map_or(0, |s| s.start));
        let problem = e.message().lines().next().unwrap_or("cannot be read").to_owned();
        let near = problem.strip_prefix("unknown field `").and_then(|rest| {
            let (typed, known) = rest.split_once('`')?;
            nearest(typed, known.split('`').skip(1).step_by(2)).map(str::to_owned)
        });
        (line, problem, near)
    })
}

/// A path, or a list of paths.
fn one_or_more<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a file or a list of files is wanted")]
    enum Paths {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(from)? {
        Paths::One(path) => vec![path],
        Paths::More(paths) => paths,
    })
}

/// The line, from 1, in which byte `offset` of `text` lies.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

fn merge(flags: Settings, file: Settings) -> Result<Config, ConfigError> {
    let millis =
        |flag: Option<u64>, file: Option<u64>, otherwise: u64, name: &'static str| match flag
            .or(file)
            .unwrap_or(otherwise)
        {
            0 => Err(ConfigError::Zero { name }),
            ms => Ok(Millis(ms)),
        };
    let mut server_names = flags.server_name;
    server_names.extend(file.server_name);
    let config = Config {
        data: flags.data.or(file.data).ok_or(ConfigError::NoData)?,
        listen: flags.listen.or(file.listen).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7070))),
        server_names,
        topology: if flags.topology.is_empty() { file.topology } else { flags.topology },
        topology_allow_unknown: flags.topology_allow_unknown || file.topology_allow_unknown,
        topology_drop_nodes: flags.topology_drop_nodes || file.topology_drop_nodes,
        dev: flags.dev || file.dev,
        log_format: flags.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
        exit_with_parent: flags.exit_with_parent || file.exit_with_parent,
        heartbeat: millis(flags.heartbeat_ms, file.heartbeat_ms, 2_000, "heartbeat_ms")?,
        node_silent: millis(flags.node_silent_ms, file.node_silent_ms, 10_000, "node_silent_ms")?,
        lease: millis(flags.lease_ms, file.lease_ms, 600_000, "lease_ms")?,
        lost: millis(flags.lost_ms, file.lost_ms, 660_000, "lost_ms")?,
    };
    config.check()?;
    Ok(config)
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        if self.dev && !self.listen.ip().is_loopback() {
            return Err(ConfigError::DevNotLoopback(self.listen.ip()));
        }
        let (heartbeat, silent) = (self.heartbeat.0, self.node_silent.0);
        if silent < heartbeat.saturating_mul(3) {
            return Err(ConfigError::SilentTooSoon { silent, heartbeat });
        }
        if self.lease.0 <= silent {
            return Err(ConfigError::LeaseTooShort { lease: self.lease.0, silent });
        }
        if self.lost.0 < self.lease.0.saturating_add(LAPSE_MARGIN_MIN) {
            return Err(ConfigError::LostTooSoon { lost: self.lost.0, lease: self.lease.0 });
        }
        Ok(())
    }

    /// How long a task whose lease lapsed has from SIGTERM to SIGKILL: at most half of what lies
    /// between the end of the lease and the node's loss, so that it is surely gone by then.
    pub fn lapse_grace(&self) -> Millis {
        Millis(((self.lost.0 - self.lease.0) / 2).min(30_000))
    }

    /// Names and addresses the server's certificate is for.
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        let is_dns = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        };
        if is_dns(&host) {
            names.push(host.into_owned());
        }
        names.extend(self.server_names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }

    /// Where clients reach it, once it serves on `bound`.
    pub fn url(&self, bound: SocketAddr) -> String {
        let port = bound.port();
        match (self.server_names.first(), bound.ip()) {
            (Some(name), _) => match name.parse::<IpAddr>() {
                Ok(IpAddr::V6(ip)) => format!("https://[{ip}]:{port}"),
                _ => format!("https://{name}:{port}"),
            },
            (None, ip) if ip.is_unspecified() => format!("https://127.0.0.1:{port}"),
            (None, ip) => format!("https://{}", SocketAddr::new(ip, port)),
        }
    }
}

/// What the clock on the wall says. The writer makes stamps that never go back from it.
pub fn wall_clock() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixMillis(since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn flags(args: &[&str]) -> Settings {
        Settings::parse_from(std::iter::once("tessera-scheduler").chain(args.iter().copied()))
    }

    #[test]
    fn the_flags_are_sound() {
        Settings::command().debug_assert();
    }

    #[test]
    fn the_sample_file_explains_every_setting_and_is_right() {
        let sample = include_str!("../../deploy/config/scheduler.toml");
        merge(flags(&[]), parse_file(sample).unwrap()).unwrap();
        for flag in Settings::command().get_arguments().filter_map(|a| a.get_long()) {
            let name = flag.replace('-', "_");
            let told = sample.contains(&format!("{name} = "));
            assert!(told || ["config", "help", "version"].contains(&flag), "{name} is missing");
        }
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_our_choice() {
        let file = parse_file(
            "data = '/f'\nlisten = '127.0.0.1:1'\nheartbeat_ms = 1000\nserver_name = ['h']\ndev = true\nlog_format = 'json'",
        )
        .unwrap();
        let config = merge(flags(&["--data", "/x", "--lease-ms", "20000"]), file).unwrap();
        assert_eq!(config.data, PathBuf::from("/x"));
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.heartbeat, Millis(1_000));
        assert_eq!(config.lease, Millis(20_000));
        assert_eq!(config.lost, Millis(660_000));
        assert_eq!(config.log_format, LogFormat::Json);
        assert!(config.dev && !config.exit_with_parent);
        assert_eq!(config.url("0.0.0.0:81".parse().unwrap()), "https://h:81");
    }

    #[test]
    fn topology_files_are_one_or_several_and_flags_go_before_them() {
        let paths = |args: &[&str], file: &str| {
            let config = merge(flags(args), parse_file(&format!("data = 'x'\n{file}")).unwrap());
            let paths = config.unwrap().topology;
            paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(paths(&[], ""), "");
        assert_eq!(paths(&[], "topology = 'a'"), "a");
        assert_eq!(paths(&[], "topology = ['a', 'b']"), "a b");
        assert_eq!(paths(&["--topology", "c", "--topology", "d"], "topology = 'a'"), "c d");
        let (line, problem, _) = parse_file("data = 'x'\ntopology = 3").unwrap_err();
        assert_eq!((line, problem.as_str()), (2, "a file or a list of files is wanted"));
    }

    #[test]
    fn broken_rules_are_named() {
        let cases: [(&[&str], &str); 7] = [
            (&[], "no data folder"),
            (&["--data", "x", "--dev", "--listen", "0.0.0.0:1"], "loopback only, and 0.0.0.0"),
            (&["--data", "x", "--heartbeat-ms", "0"], "heartbeat_ms is 0"),
            (&["--data", "x", "--heartbeat-ms", "4000"], "three heartbeats (4000 each)"),
            (&["--data", "x", "--lease-ms", "5000"], "lease_ms (5000) is not more than"),
            (
                &["--data", "x", "--lost-ms", "600000"],
                "lost_ms (600000) is not 2 s more than lease_ms",
            ),
            (&["--data", "x", "--lease-ms", "700000"], "lost_ms (660000) is not 2 s more"),
        ];
        for (args, want) in cases {
            let error = merge(flags(args), Settings::default()).unwrap_err();
            assert!(error.to_string().contains(want), "{args:?}: {error}");
            assert!(!error.hint().is_empty(), "{args:?}");
        }
    }

    #[test]
    fn a_mistyped_name_in_the_file_is_found_and_the_right_one_offered() {
        let (line, problem, near) = parse_file("data = 'x'\nhartbeat_ms = 3\n").unwrap_err();
        assert_eq!((line, near.as_deref()), (2, Some("heartbeat_ms")), "{problem}");
        let (line, ..) = parse_file("data = 'x'\n\nlisten = 7\n").unwrap_err();
        assert_eq!(line, 3);
    }

    #[test]
    fn urls_say_what_a_client_can_reach() {
        for (listen, want) in [
            ("127.0.0.1:7070", "https://127.0.0.1:7070"),
            ("0.0.0.0:7070", "https://127.0.0.1:7070"),
            ("[::1]:7070", "https://[::1]:7070"),
        ] {
            let config =
                merge(flags(&["--data", "x", "--listen", listen]), Settings::default()).unwrap();
            assert_eq!(config.url(config.listen), want);
        }
    }
}
