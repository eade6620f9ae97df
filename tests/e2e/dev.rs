//! `tessera dev`: a cluster without a flag, found by itself, gone without a trace.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tessera_tests::{Binaries, Process, Said, run, sweep, until};

/// Where one dev cluster keeps all it has, so that what it leaves can be found.
struct Place {
    folder: TempDir,
    binaries: Binaries,
}

impl Place {
    fn new() -> Self {
        let prefix = format!("{}{}-dev-", sweep::PREFIX, std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { folder, binaries: Binaries::find().unwrap_or_else(|why| panic!("{why}")) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `tessera ARGS` of somebody who has no settings but those that are found.
    fn tessera(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path("tessera"));
        command
            .args(args)
            .current_dir(self.path("tmp"))
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("HOME", self.folder.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("TESSERA_CONFIG");
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Said {
        run(&mut self.tessera(args)).ok()
    }

    /// Starts a cluster and gives its ready line.
    fn dev(&self, args: &[&str]) -> (Process, String) {
        let args: Vec<&str> = ["dev", "--port", "0"].iter().chain(args).copied().collect();
        let log = self.path("dev.log");
        let _ = fs::remove_file(&log);
        let mut dev = Process::spawn("dev", &mut self.tessera(&args), &log).unwrap();
        let line = until("the ready line", || {
            let text = dev.log();
            assert!(dev.ended().is_none(), "it ended: {text}");
            let line = text.lines().find(|l| l.starts_with("ready ")).map(str::to_owned);
            line.ok_or(text)
        });
        (dev, line)
    }

    /// Ctrl-C: it ends well, and none of its processes is left.
    #[track_caller]
    fn interrupt(&self, mut dev: Process) {
        let pid = i32::try_from(dev.pid()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(dev.wait().code(), Some(0), "{}", dev.tail());
        self.nothing_is_left();
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let groups = sweep::cgroups(self.folder.path());
        let there: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
        assert!(there.is_empty(), "cgroups: {there:?}");
        let left = sweep::processes_of(self.folder.path());
        let names = left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")));
        assert!(left.is_empty(), "{left:?}: {:?}", names.collect::<Vec<_>>());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        sweep::sweep(self.folder.path());
    }
}

#[test]
fn a_dev_cluster_is_found_by_itself_resumed_and_gone() {
    let place = Place::new();
    let data = place.path("data");
    let flags = ["--nodes", "2", "--data", data.to_str().unwrap()];
    let (dev, line) = place.dev(&flags);
    assert!(
        line.ends_with("nodes=2 gpus=16") && line.starts_with("ready https://127.0.0.1:"),
        "{line}"
    );
    let nodes = place.ok(&["nodes", "--json"]).json();
    assert_eq!(nodes.as_array().or(nodes["nodes"].as_array()).map(Vec::len), Some(2), "{nodes}");
    let said =
        place.ok(&["submit", "-G", "2", "--follow", "--", "sh", "-c", "echo it runs as $RANK"]);
    assert!(
        said.stdout.contains("it runs as 0") && said.stdout.contains("it runs as 1"),
        "{said:?}"
    );
    // One that would go on for ever goes with it.
    place.ok(&["submit", "-G", "8", "--", "sleep", "100000"]);
    place.interrupt(dev);

    let (dev, _) = place.dev(&flags);
    let jobs = place.ok(&["queue", "--all", "--json"]).json();
    let first = jobs["jobs"].as_array().unwrap().iter().find(|j| j["id"] == 1).cloned();
    assert_eq!(first.map(|j| j["state"].clone()), Some("succeeded".into()), "{jobs}");
    place.interrupt(dev);
    let said = run(&mut place.tessera(&["queue"]));
    assert_eq!(said.code(), 2, "{said:?}");
    assert!(said.stderr.contains("tessera dev"), "{said:?}");
}

#[test]
fn a_dev_cluster_that_is_killed_leaves_nothing_either() {
    let place = Place::new();
    let (mut dev, _) = place.dev(&["--nodes", "1"]);
    let id = place.ok(&["submit", "-q", "-G", "1", "--", "sleep", "100000"]).stdout;
    until("the job to run", || {
        let job = place.ok(&["show", "--json", id.trim()]).json();
        if job["state"] == "running" { Ok(()) } else { Err(job.to_string()) }
    });
    dev.kill();
    until("all of it to be gone", || {
        let left = sweep::processes_of(place.folder.path());
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn sixteen_nodes_run_128_ranks_and_explain_what_does_not_fit() {
    let place = Place::new();
    let (dev, line) = place.dev(&["--nodes", "16", "--preset", "dgx-h100"]);
    assert!(line.ends_with("nodes=16 gpus=128"), "{line}");
    let script = "echo rank $RANK of $WORLD_SIZE";
    let said = place.ok(&["submit", "-N", "16", "-G", "8", "--follow", "--", "sh", "-c", script]);
    for rank in 0..128 {
        let want = format!("rank {rank} of 128");
        let seen = said.stdout.lines().filter(|l| l.ends_with(&want)).count();
        assert_eq!(seen, 1, "{want}: {}", said.stdout);
    }
    let never = ["explain", "-N", "17", "-G", "8", "--json", "--", "true"];
    let never = run(&mut place.tessera(&never));
    assert_eq!(never.code(), 1, "the answer is no: {never:?}");
    let never = never.json();
    assert_eq!(never["verdict"], "infeasible", "{never}");
    let summary = never["summary"].as_str().unwrap();
    assert!(summary.contains("17") && summary.contains("16"), "it can be counted: {summary}");

    let all = ["submit", "-q", "-N", "16", "-G", "8", "-t", "1h", "--", "sleep", "100000"];
    place.ok(&all);
    let half = place.ok(&["submit", "-q", "-N", "8", "-G", "8", "-t", "1h", "--", "true"]).stdout;
    let waits = until("the reason and the date", || {
        let waits = place.ok(&["explain", "--json", half.trim()]).json();
        if waits["expected_start"].is_string() { Ok(waits) } else { Err(waits.to_string()) }
    });
    assert_eq!(waits["verdict"], "waits", "{waits}");
    assert!(waits["summary"].as_str().unwrap().contains("8 nodes"), "{waits}");
    place.interrupt(dev);
}

#[test]
fn the_demo_tells_its_story_and_leaves_nothing() {
    let place = Place::new();
    let said = run(&mut place.tessera(&["dev", "--demo"]));
    assert_eq!(said.code(), 0, "{said:?}");
    let text = format!("{}{}", said.stdout, said.stderr).to_lowercase();
    for word in ["gang", "wait", "gpu", "usd"] {
        assert!(text.contains(word), "{word:?} is missing in the story:\n{text}");
    }
    place.nothing_is_left();
    assert_eq!(fs::read_dir(place.path("tmp")).unwrap().count(), 0, "and no file");
}
