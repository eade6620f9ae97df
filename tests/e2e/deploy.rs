//! What `deploy/` holds is what systemd takes.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn the_units_are_right() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for unit in ["tessera-scheduler.service", "tessera-agent.service"] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        // The programs are not installed here; all else is checked as it stands.
        let here = text.replace("ExecStart=/usr/bin/tessera-scheduler", "ExecStart=/bin/true");
        let here = here.replace("ExecStart=/usr/bin/tessera-agent", "ExecStart=/bin/true");
        fs::write(dir.path().join(unit), here).unwrap();
        paths.push(dir.path().join(unit));
    }
    let output = Command::new("systemd-analyze").arg("verify").args(&paths).output();
    let output = output.expect("systemd-analyze is there: tests/run installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for line in said.lines() {
        assert!(!line.contains("tessera-"), "{line}");
    }
    let agent = fs::read_to_string(units.join("tessera-agent.service")).unwrap();
    for needed in ["KillMode=process", "Delegate=yes"] {
        assert!(agent.contains(needed), "without {needed} a restart of the agent kills every job");
    }
}
