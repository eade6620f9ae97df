//! A map that changes while the scheduler serves: the program as its operator meets it, and what
//! is said when the old map stays.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use tessera_core::Cluster;
use tessera_core::door::topology::Allow;
use tessera_scheduler::topology::{live, parse};

struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Running {
    fn start(data: &Path, map: Option<&Path>, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tessera-scheduler"));
        command.args(["--listen", "127.0.0.1:0", "--data"]).arg(data).args(more);
        if let Some(map) = map {
            command.arg("--topology").arg(map);
        }
        command.env("RUST_LOG", "info").env("NO_COLOR", "1");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to a line that has one of the words, and gives that line.
    fn says(&mut self, words: &[&str]) -> String {
        let mut before = String::new();
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended without saying {words:?}: {before}");
            if words.iter().any(|word| line.contains(word)) {
                return line;
            }
            before += &line;
        }
    }

    fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SAID: [&str; 3] = ["the map is in force", "the map in force stays", "was in force already"];

#[test]
fn the_files_are_read_again_at_sighup_and_what_is_wrong_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let map = dir.path().join("map.toml");
    let write = |text: &str| std::fs::write(&map, text).unwrap();
    write("levels = ['leaf']\n[[leaf]]\nname = 'l0'\nnodes = ['n[1-2]']\n");
    let mut scheduler = Running::start(&dir.path().join("data"), Some(&map), &[]);
    let line = scheduler.says(&["never joined"]);
    assert!(line.contains("the map names n1, n2, which never joined"), "{line}");
    let line = scheduler.says(&SAID);
    assert!(line.contains("the map is in force") && line.contains("nodes=2"), "{line}");
    // Only then does a hangup mean us.
    scheduler.says(&["serving"]);

    scheduler.hang_up();
    assert!(scheduler.says(&SAID).contains("was in force already"));

    write("levels = ['leaf']\n[[leef]]\n");
    scheduler.hang_up();
    let line = scheduler.says(&SAID);
    assert!(line.contains("the map in force stays"), "{line}");
    assert!(
        line.contains("map.toml:2: \\\"leef\\\" is no level")
            || line.contains("map.toml:2: \"leef\" is no level"),
        "{line}"
    );

    // A node nobody has heard of looks like a slip, and its line is named.
    write("levels = ['leaf']\n[[leaf]]\nname = 'l0'\nnodes = ['n1',\n 'n2', 'm7']\n");
    scheduler.hang_up();
    let line = scheduler.says(&SAID);
    assert!(line.contains("the map in force stays"), "{line}");
    assert!(line.contains("map.toml:5: the map names m7, which never joined"), "{line}");

    write(
        "allow_unknown = true\nlevels = ['leaf']\n[[leaf]]\nname = 'l0'\nnodes = ['n[1-2]', 'm7']\n",
    );
    scheduler.hang_up();
    let line = scheduler.says(&SAID);
    assert!(line.contains("the map is in force") && line.contains("nodes=3"), "{line}");
    scheduler.stop();

    // Without a file the map of the journal stays.
    let mut scheduler = Running::start(&dir.path().join("data"), None, &[]);
    scheduler.says(&["serving"]);
    scheduler.hang_up();
    scheduler.says(&["no topology file was given"]);
    scheduler.stop();
    let mut scheduler = Running::start(&dir.path().join("data"), Some(&map), &[]);
    let line = scheduler.says(&["the map is in force", "serving"]);
    assert!(line.contains("serving"), "it was in force: {line}");
}

#[test]
fn a_map_from_slurm_is_taken_with_its_fabrics_beside_ours() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("topology.conf");
    std::fs::write(
        &conf,
        "SwitchName=l0 Nodes=n1\nSwitchName=l1 Nodes=n2\nSwitchName=s Switches=l[0-1]\n",
    )
    .unwrap();
    let power = dir.path().join("power.toml");
    std::fs::write(
        &power,
        "[[fabric]]\nname='power'\nlevels=['pdu']\n[[fabric.pdu]]\nname='p'\nnodes=['n1']\n",
    )
    .unwrap();
    let more = ["--topology", power.to_str().unwrap()];
    let mut scheduler = Running::start(&dir.path().join("data"), Some(&conf), &more);
    let line = scheduler.says(&SAID);
    // Flags in their order: the power file comes first here.
    assert!(line.contains("levels=\"pdu,spine,leaf\""), "{line}");
}

#[test]
fn a_refusal_says_where() {
    let file = |text: &str| parse(&[(PathBuf::from("m.toml"), text.to_owned())]).unwrap();
    let cluster = Cluster::default();
    let map = "levels=['leaf']\n[[leaf]]\nname='l'\nnodes=['a',\n'b']";
    let refusal = live::change(&cluster, &file(map), Allow::default()).unwrap_err();
    assert_eq!(refusal.message, "m.toml:4: the map names a, b, which never joined");
    assert!(refusal.hint.contains("--allow-unknown"), "{}", refusal.hint);
    let (change, events) = live::change(&cluster, &file(map), Allow::from(true)).unwrap();
    assert!(change.changed && events.len() == 1);
    let (change, _) =
        live::change(&cluster, &file(&format!("allow_unknown=true\n{map}")), Allow::default())
            .unwrap();
    assert_eq!(change.levels, ["leaf"]);
}
