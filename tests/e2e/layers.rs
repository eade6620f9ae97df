//! Arrows between the rooms point down only, and the core stays pure.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Who may name whom. A room that is not here must not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("tessera-model", &[]),
    ("tessera-proto", &["tessera-model"]),
    ("tessera-core", &["tessera-model"]),
    ("tessera-sim", &["tessera-core", "tessera-model"]),
    ("tessera-shim", &[]),
    ("tessera-nvml-sim", &[]),
    ("tessera-agent", &["tessera-model", "tessera-proto", "tessera-shim"]),
    ("tessera-scheduler", &["tessera-core", "tessera-model", "tessera-proto"]),
    ("tessera", &["tessera-model", "tessera-proto", "tessera-sim"]),
    ("tessera-tests", &["tessera-model", "tessera-proto"]),
    (
        "tessera-benches",
        &["tessera-model", "tessera-proto", "tessera-core", "tessera-sim", "tessera-tests"],
    ),
];

/// All that the pure rooms may take from outside.
const PURE: &[(&str, &[&str])] =
    &[("tessera-model", &["serde", "thiserror"]), ("tessera-core", &["serde", "thiserror"])];

#[test]
fn arrows_between_the_rooms_point_down_only() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(violations(&metadata), [""; 0]);
}

/// Rooms that the table does not know, arrows it does not allow, rooms it has and we have not.
fn violations(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let room = name(package);
        let Some((_, allowed)) = ARROWS.iter().find(|(r, _)| *r == room) else {
            wrong.push(format!("{room} is in no row of the table"));
            continue;
        };
        let pure = PURE.iter().find(|(r, _)| *r == room).map(|(_, outside)| *outside);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"] == "dev" {
                continue;
            }
            let to = name(dependency);
            if ours.contains(&to) && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{room} -> {to}"));
            }
            if !ours.contains(&to) && pure.is_some_and(|outside| !outside.contains(&to.as_str())) {
                wrong.push(format!("{room} is pure, and has {to}"));
            }
        }
    }
    let missing = ARROWS.iter().filter(|(room, _)| !ours.contains(*room));
    wrong.extend(missing.map(|(room, _)| format!("{room} is in the table and nowhere else")));
    wrong
}

#[test]
fn a_wrong_arrow_is_found() {
    let package = |name: &str, dependencies: &[(&str, Option<&str>)]| {
        let list: Vec<Value> = dependencies
            .iter()
            .map(|(to, kind)| serde_json::json!({ "name": to, "kind": kind }))
            .collect();
        serde_json::json!({ "name": name, "dependencies": list })
    };
    let mut packages: Vec<Value> = ARROWS.iter().map(|(room, _)| package(room, &[])).collect();
    let core = packages.iter().position(|p| p["name"] == "tessera-core").unwrap();
    packages[core] = package(
        "tessera-core",
        &[("tessera-proto", None), ("tokio", Some("build")), ("proptest", Some("dev"))],
    );
    packages.push(package("tessera-new", &[]));
    let found = violations(&serde_json::json!({ "packages": packages }));
    assert_eq!(
        found,
        [
            "tessera-core -> tessera-proto",
            "tessera-core is pure, and has tokio",
            "tessera-new is in no row of the table",
        ]
    );
}
