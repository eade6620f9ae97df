//! The command: what it makes, what it prints, what it refuses.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::wait_for;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tessera-nvml-sim")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn init(dir: &Path, more: &[&str]) -> Output {
    let library = common::library();
    let mut args = vec!["init", dir.to_str().unwrap(), "--lib", library.to_str().unwrap()];
    args.extend(more);
    run(&args)
}

#[test]
fn a_node_is_made_broken_and_shown() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n0");
    let made = init(&dir, &["--preset", "dgx-h100", "--seed", "7"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let uuids: Vec<String> =
        stdout(&made).lines().filter(|l| l.starts_with("GPU-")).map(str::to_owned).collect();
    assert_eq!(uuids.len(), 8);
    let nvml = Nvml::builder().lib_path(dir.join("libnvidia-ml.so.1").as_os_str()).init().unwrap();
    assert_eq!(nvml.device_by_index(2).unwrap().uuid().unwrap(), uuids[2]);

    // Again, with other wishes: the node stays what it is.
    let again = init(&dir, &["--preset", "l40s-pcie"]);
    assert!(again.status.success() && stderr(&again).contains("kept"));
    assert_eq!(stdout(&again).lines().filter(|l| l.starts_with("GPU-")).count(), 8);

    let dir = dir.to_str().unwrap();
    let fault = run(&["fault", dir, "lost", "--gpu", "2"]);
    assert!(
        fault.status.success() && stdout(&fault).contains("kind = \"lost\""),
        "{}",
        stderr(&fault)
    );
    wait_for("the GPU to be lost", || {
        matches!(nvml.device_by_index(2), Err(NvmlError::GpuLost)).then_some(())
    });
    let load = run(&["load", dir, "const:0.5", "--gpu", "0"]);
    assert!(load.status.success(), "{}", stderr(&load));
    wait_for("the load", || {
        (nvml.device_by_index(0).unwrap().utilization_rates().unwrap().gpu == 50).then_some(())
    });
    let shown = stdout(&run(&["show", dir]));
    assert!(shown.contains("begin    lost") && shown.contains("gpu 2"), "{shown}");
    assert!(run(&["clear", dir]).status.success());
    wait_for("the GPU to come back", || nvml.device_by_index(2).ok());
    let json = stdout(&run(&["show", dir, "--json"]));
    let records: Vec<serde_json::Value> =
        json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&records[0]["what"], &records[1]["what"]), (&"begin".into(), &"end".into()));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n0");
    assert!(init(&dir, &["--preset", "dgx-h100"]).status.success());
    let dir = dir.to_str().unwrap();
    for (args, reason) in [
        (vec!["fault", dir, "xid", "--gpu", "2"], "needs --code"),
        (vec!["fault", dir, "lost", "--gpu", "8"], "is for GPU 8, the node has 8"),
        (vec!["fault", dir, "lost", "--gpu", "x"], "no index"),
        (vec!["fault", dir, "melt"], "invalid value 'melt'"),
        (vec!["fault", "/nonexistent", "lost"], "is not a node"),
        (vec!["load", dir, "dance:1"], "no load is called \"dance\""),
        (vec!["init", dir], "--preset"),
        (
            vec!["init", dir, "--preset", "dgx-h100", "--lib", "/nonexistent.so"],
            "could not read /nonexistent.so",
        ),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(reason), "{args:?}: {}", stderr(&output));
    }
    assert!(!Path::new(dir).join("control.toml").exists(), "a refused fault was written");
}

#[test]
fn help_and_presets_say_what_there_is() {
    let presets = stdout(&run(&["presets"]));
    for name in ["dgx-h100", "hgx-a100", "gb200-nvl72-tray", "l40s-pcie", "cpu-only"] {
        assert!(presets.contains(name), "{presets}");
    }
    assert!(stdout(&run(&["--help"])).contains("Examples:"));
}
