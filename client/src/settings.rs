//! Which scheduler to ask, and as whom.
//!
//! In: `--config`, the environment, the registry of running dev clusters, the home folder. Out:
//! address, CA and token. Connecting is `call`'s work.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

/// A token, kept out of debug output and logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `https://host:port`.
    pub server: String,
    /// CA certificate, PEM.
    pub ca: String,
    pub token: Secret,
    /// The file all of it came from.
    pub path: PathBuf,
}

/// What the lookup reads of the process's surroundings.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `TESSERA_CONFIG`.
    pub config: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, else `/tmp`.
    pub runtime: PathBuf,
    /// `XDG_CONFIG_HOME`, else `~/.config`.
    pub config_home: Option<PathBuf>,
    pub uid: u32,
}

impl Surroundings {
    pub fn of_this_process() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            config: path("TESSERA_CONFIG"),
            runtime: path("XDG_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from("/tmp")),
            config_home: path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config"))),
            uid: rustix::process::getuid().as_raw(),
        }
    }

    /// Where running dev clusters are listed.
    pub fn registry(&self) -> PathBuf {
        self.runtime.join(format!("tessera-{}", self.uid)).join("dev")
    }
}

/// Looks in the order of the contract: `--config`, `TESSERA_CONFIG`, the newest running dev
/// cluster, `~/.config/tessera/client.toml`. The first that is there counts.
pub fn find(flag: Option<&Path>, around: &Surroundings) -> Outcome<Settings> {
    if let Some(path) = flag {
        return read(path);
    }
    if let Some(path) = &around.config {
        return read(path);
    }
    if let Some(path) = newest_dev(around) {
        return read(&path);
    }
    let home = around.config_home.as_ref().map(|c| c.join("tessera/client.toml"));
    match home {
        Some(path) if path.exists() => read(&path),
        _ => Err(Failure::no_answer(
            "settings",
            "no settings: neither --config nor TESSERA_CONFIG is given, no dev cluster is \
             running, and there is no ~/.config/tessera/client.toml",
            "start a cluster with `tessera dev`, or ask your operator for a client.toml",
        )),
    }
}

fn newest_dev(around: &Surroundings) -> Option<PathBuf> {
    let registry = around.registry();
    // The folder may lie in /tmp, where anybody could have put it: only our own counts.
    let meta = std::fs::symlink_metadata(&registry).ok()?;
    if !meta.is_dir() || meta.uid() != around.uid || meta.mode() & 0o022 != 0 {
        return None;
    }
    let mut found: Vec<(std::time::SystemTime, u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(registry).ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_suffix(".toml")?.parse::<u32>().ok())
        else {
            continue;
        };
        if !is_alive(pid) {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let Ok(table) = text.parse::<toml::Table>() else { continue };
        if let Some(client) = table.get("client").and_then(toml::Value::as_str) {
            let Ok(modified) = entry.metadata().and_then(|m| m.modified()) else { continue };
            found.push((modified, pid, PathBuf::from(client)));
        }
    }
    found.into_iter().max().map(|(_, _, path)| path)
}

pub fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).is_some_and(|pid| {
        match rustix::process::test_kill_process(pid) {
            Ok(()) => true,
            Err(error) => error == rustix::io::Errno::PERM,
        }
    })
}

/// Reads one settings file.
pub fn read(path: &Path) -> Outcome<Settings> {
    let bad = |what: String| {
        Failure::no_answer(
            "settings",
            format!("{}: {what}", path.display()),
            "it needs `server`, `ca` or `ca_file`, and `token` or `token_file`",
        )
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::file("read the settings", path, &error))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
        bad(format!("line {line}: {}", error.message()))
    })?;
    let known = ["server", "ca", "ca_file", "token", "token_file"];
    let word = |key: &str| -> Outcome<Option<String>> {
        match table.get(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(bad(format!("`{key}` must be a text, not {}", other.type_str()))),
        }
    };
    if let Some(key) = table.keys().find(|k| !known.contains(&k.as_str())) {
        let near = tessera_model::refusal::nearest(key, known)
            .map(|k| format!(", did you mean `{k}`?"))
            .unwrap_or_default();
        return Err(bad(format!("unknown key `{key}`{near}")));
    }
    let beside = |file: String| -> Outcome<String> {
        let file = path.parent().unwrap_or(Path::new(".")).join(file);
        std::fs::read_to_string(&file)
            .map_err(|error: io::Error| Failure::file("read", &file, &error))
    };
    let either = |key: &str, file_key: &str| -> Outcome<String> {
        match (word(key)?, word(file_key)?) {
            (Some(text), None) => Ok(text),
            (None, Some(file)) => beside(file),
            (Some(_), Some(_)) => Err(bad(format!("both `{key}` and `{file_key}` are given"))),
            (None, None) => Err(bad(format!("neither `{key}` nor `{file_key}` is given"))),
        }
    };
    let server = word("server")?.ok_or_else(|| bad("`server` is not given".to_owned()))?;
    if !server.starts_with("https://") {
        return Err(bad(format!("`server` is {server:?}, it must begin with https://")));
    }
    let ca = either("ca", "ca_file")?;
    let token = either("token", "token_file")?.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad("the token is empty or holds spaces or strange characters".to_owned()));
    }
    Ok(Settings { server, ca, token: Secret(token), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, server: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("server = \"https://{server}\"\nca = \"PEM\"\ntoken = \"tsr_x\"\n");
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_first_settings_in_the_order_of_the_contract_count() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut around = Surroundings {
            config: None,
            runtime: at("run"),
            config_home: Some(at("home")),
            uid: rustix::process::getuid().as_raw(),
        };
        let ask = |flag: Option<&Path>, around: &Surroundings| {
            find(flag, around).map(|s| s.server).unwrap_or_else(|f| f.message)
        };
        assert!(ask(None, &around).starts_with("no settings"));

        write(&at("home/tessera/client.toml"), "home:1");
        assert_eq!(ask(None, &around), "https://home:1");

        // A cluster whose process is gone is none; one that runs is.
        let registry = around.registry();
        std::fs::create_dir_all(&registry).unwrap();
        std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o700)).unwrap();
        write(&at("dev.toml"), "dev:1");
        let entry = format!("client = {:?}\n", at("dev.toml"));
        std::fs::write(registry.join("4000000.toml"), &entry).unwrap();
        assert_eq!(ask(None, &around), "https://home:1");
        std::fs::write(registry.join(format!("{}.toml", std::process::id())), &entry).unwrap();
        assert_eq!(ask(None, &around), "https://dev:1");
        // A registry that others may write to is not believed.
        std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(ask(None, &around), "https://home:1");
        std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o700)).unwrap();

        write(&at("env.toml"), "env:1");
        around.config = Some(at("env.toml"));
        assert_eq!(ask(None, &around), "https://env:1");

        write(&at("flag.toml"), "flag:1");
        assert_eq!(ask(Some(&at("flag.toml")), &around), "https://flag:1");
        // What was named and is not there is an error, never a reason to ask another cluster.
        assert!(ask(Some(&at("none.toml")), &around).contains("none.toml"));
    }

    #[test]
    fn a_broken_file_says_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        let cases = [
            ("", "`server` is not given"),
            ("server = 7", "`server` must be a text, not integer"),
            ("server = \"http://x:1\"\nca = \"\"\ntoken = \"t\"", "must begin with https://"),
            ("server = \"https://x:1\"\ntoken = \"t\"", "neither `ca` nor `ca_file` is given"),
            (
                "server = \"https://x:1\"\nca = \"c\"\ntoken = \"a b\"",
                "the token is empty or holds",
            ),
            ("serve = \"https://x:1\"", "unknown key `serve`, did you mean `server`?"),
            ("a = 1\nb = [", "line 2"),
            ("server = \"https://x:1\"\nca_file = \"no.pem\"\ntoken = \"t\"", "no.pem"),
        ];
        for (text, want) in cases {
            std::fs::write(&path, text).unwrap();
            let failure = read(&path).unwrap_err();
            assert!(failure.message.contains(want), "{text:?}: {}", failure.message);
            assert_eq!(failure.exit, 2, "{text:?}");
        }
    }

    #[test]
    fn files_beside_the_settings_are_read_and_the_token_stays_out_of_logs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "PEM").unwrap();
        std::fs::write(dir.path().join("tok"), "tsr_secret\n").unwrap();
        let path = dir.path().join("client.toml");
        let text = "server = \"https://x:1\"\nca_file = \"ca.pem\"\ntoken_file = \"tok\"\n";
        std::fs::write(&path, text).unwrap();
        let settings = read(&path).unwrap();
        assert_eq!((settings.ca.as_str(), settings.token.0.as_str()), ("PEM", "tsr_secret"));
        assert!(!format!("{settings:?}").contains("tsr_secret"));
    }
}
