//! Speed and memory of the whole path, each beside a baseline of the same run on the same machine.
//!
//! In: names of benchmarks, or none for all; real processes, loopback only. Out: a table on stdout
//! and the same as JSON in a file beside this program (or `--json FILE`). What the figures ought to
//! be is for those who read them; nothing here passes or fails.

mod agent; // CPU and memory of an agent at rest
mod cold; // from nothing to a cluster that is ready
mod lone; // one job on an idle cluster
mod many; // a thousand tiny jobs
mod measure; // clocks, percentiles, /proc
mod place; // gangs on 12,800 nodes
mod report; // lines, the table, JSON
mod submit; // durable submissions
mod traces; // published traces and a published topology

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use report::{Machine, Report};

type Bench = fn(&mut Report);

const BENCHES: [(&str, &str, Bench); 9] = [
    ("openb", "packing the openb lists ($TESSERA_TRACES)", traces::openb),
    ("itp", "waits on ITP clusters ($TESSERA_TRACES)", traces::itp),
    ("span", "gang span on the Lingjun topology ($TESSERA_TRACES)", traces::span),
    (
        "place",
        "gangs on 12,800 nodes with 102,400 GPUs: searches, passes, plans, memory",
        place::run,
    ),
    ("submit", "durable submissions at 1 and 64 streams", submit::run),
    ("lone", "a lone job: submit to running, submit to end, and the command line", lone::run),
    ("many", "1,000 x `true` end to end on 16 agents", many::run),
    ("agent", "an agent at 1 Hz on a node with 8 GPUs and 8 NICs", agent::run),
    ("cold", "`tessera dev` with 4 nodes, from nothing to ready and to gone", cold::run),
];

/// Benchmarks that start no processes.
const INSIDE: [&str; 4] = ["place", "openb", "itp", "span"];

fn main() -> ExitCode {
    let mut names = Vec::new();
    let mut json: Option<PathBuf> = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = args.next().map(PathBuf::from),
            "--help" | "-h" => {
                help();
                return ExitCode::SUCCESS;
            }
            name if BENCHES.iter().any(|(n, ..)| *n == name) => names.push(name.to_owned()),
            other => {
                eprintln!("error: there is no benchmark {other:?}");
                help();
                return ExitCode::from(2);
            }
        }
    }
    // What runs inside this process needs no other programs.
    let own = |name: &String| INSIDE.contains(&name.as_str());
    let built = if !names.is_empty() && names.iter().all(own) { Ok(()) } else { build() };
    if let Err(why) = built {
        eprintln!("error: {why}");
        return ExitCode::from(2);
    }
    let mut report = Report::new(Machine::here());
    for (name, about, run) in BENCHES {
        if names.is_empty() || names.iter().any(|n| n == name) {
            eprintln!("{name}: {about}");
            run(&mut report);
        }
    }
    print!("{}", report.table());
    let path = json.unwrap_or_else(|| beside_us().join("benches.json"));
    match std::fs::write(&path, report.json()) {
        Ok(()) => {
            eprintln!("wrote {}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: could not write {}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}

fn help() {
    eprintln!("cargo run --release -p tessera-benches -- [--json FILE] [NAME...]");
    for (name, about, _) in BENCHES {
        eprintln!("  {name:<8} {about}");
    }
}

fn beside_us() -> PathBuf {
    let exe = std::env::current_exe().ok();
    exe.as_deref().and_then(Path::parent).unwrap_or(Path::new(".")).to_owned()
}

/// The programs that are measured, in the profile this one was built in. Only under cargo: a
/// benchmark that was copied elsewhere takes what lies beside it.
fn build() -> Result<(), String> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins", "--lib", "--quiet"]).current_dir(root);
    if beside_us().ends_with("release") {
        command.arg("--release");
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`cargo build --workspace --bins --lib` ended with {status}")),
        Err(error) => Err(format!("cargo does not start: {error}")),
    }
}
