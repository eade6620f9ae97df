//! `tessera-shim DIR`: runs the task described in DIR and writes down how it ended.
//!
//! In: `DIR/spec`, `DIR/lease`, the control socket. Out: `DIR/state`, `DIR/out.log`, `DIR/exit`.
//! Exit codes: 0 the end is written; 64 wrong usage; 70 the end could not be written for a reason
//! that time does not mend; 75 another shim has or had this task.
//! Deliberately absent: network code, threads, a runtime.

mod supervisor;

use std::process::ExitCode;

use tessera_shim::TaskDir;

const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(dir), None) if dir != "--help" && dir != "-h" => supervisor::run(&TaskDir::new(dir)),
        _ => {
            eprintln!(
                "usage: tessera-shim DIR\nRuns the task in DIR; an agent starts it, people need not."
            );
            ExitCode::from(EXIT_USAGE)
        }
    }
}
