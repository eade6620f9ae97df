//! The program as its starter meets it: its line, its files, its exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

struct Running {
    child: Child,
    url: String,
}

fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera-scheduler"));
    command.args(["--listen", "127.0.0.1:0", "--data"]).arg(data);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(command: &mut Command) -> Running {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        let mut log = String::new();
        child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        panic!("no ready line; its log: {log}");
    }
    let url = line.trim_end().strip_prefix("ready ").expect(&line).to_owned();
    Running { child, url }
}

impl Running {
    fn signal(&mut self, signal: rustix::process::Signal) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_starts_says_so_keeps_its_token_and_stops_at_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let client = || std::fs::read_to_string(dir.path().join("client.toml")).unwrap();
    let mut first = start(&mut command(dir.path()));
    let table: toml::Table = toml::from_str(&client()).unwrap();
    assert_eq!(table["server"].as_str().unwrap(), first.url);
    assert!(!first.url.ends_with(":0"), "{}", first.url);
    // Scripts and tokens are in these, whoever made the folder.
    for name in ["client.toml", "tessera.db", "tls/ca.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    assert!(first.signal(rustix::process::Signal::TERM).success());

    let mut second = start(&mut command(dir.path()));
    let again: toml::Table = toml::from_str(&client()).unwrap();
    assert_eq!(again["server"].as_str().unwrap(), second.url);
    assert_eq!((&again["token"], &again["ca"]), (&table["token"], &table["ca"]));
    assert!(second.signal(rustix::process::Signal::INT).success());

    // Whoever lost the file gets a new token, and the cluster stays.
    std::fs::remove_file(dir.path().join("client.toml")).unwrap();
    let _third = start(&mut command(dir.path()));
    let fresh: toml::Table = toml::from_str(&client()).unwrap();
    assert_ne!(fresh["token"], table["token"]);
    assert_eq!(fresh["ca"], table["ca"]);
}

#[test]
fn a_killed_scheduler_starts_again_and_a_second_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&mut command(dir.path()));
    let text = refused(&mut command(dir.path()));
    assert!(text.contains(&format!("pid {}", first.child.id())), "{text}");
    assert!(text.contains("hint: "), "{text}");
    first.signal(rustix::process::Signal::KILL);
    start(&mut command(dir.path()));
}

#[test]
fn a_port_in_use_a_bad_map_and_a_bad_setting_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(&mut command(&dir.path().join("a")));
    let address = first.url.strip_prefix("https://").unwrap();
    let mut other = Command::new(env!("CARGO_BIN_EXE_tessera-scheduler"));
    other.args(["--listen", address, "--data"]).arg(dir.path().join("b"));
    let text = refused(&mut other);
    assert!(text.contains(address) && text.contains("--listen"), "{text}");

    let map = dir.path().join("map.toml");
    std::fs::write(&map, "levels = ['leaf']\n[[laef]]\nname = 'x'\n").unwrap();
    let text = refused(command(&dir.path().join("c")).arg("--topology").arg(&map));
    assert!(text.contains("map.toml:2") && text.contains("did you mean `leaf`?"), "{text}");

    let text = refused(command(&dir.path().join("d")).args(["--lost-ms", "5"]));
    assert!(text.contains("lost_ms (5) is not 2 s more than lease_ms"), "{text}");
}

#[test]
fn it_stops_with_its_parent_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = start(command(dir.path()).arg("--exit-with-parent"));
    running.child.stdin.as_mut().unwrap().write_all(b"anything\n").unwrap();
    drop(running.child.stdin.take());
    assert!(running.child.wait().unwrap().success());
}
