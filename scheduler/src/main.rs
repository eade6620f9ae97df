//! `tessera-scheduler`: reads its settings, runs, and says why it stopped.
//!
//! Exit codes: 0 stopped by a signal or with its parent, 2 could not start or had to give up.

use std::error::Error;
use std::io::Read;
use std::process::ExitCode;

use clap::Parser;
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use tessera_scheduler::config::{self, Config, LogFormat, Settings};
use tessera_scheduler::run;

fn main() -> ExitCode {
    // clap answers --help with 0 and a mistake with 2 itself.
    let config = match config::load(Settings::parse()) {
        Ok(config) => config,
        Err(error) => return fail(&error, &error.hint()),
    };
    // The journal has everybody's scripts in it, and the data folder may have been made by others.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    log_to_stderr(config.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, "raise the limit of threads or open files"),
    };
    let parent_gone = parent(&config);
    let outcome = runtime.block_on(run::run(config, parent_gone));
    // What still runs are streams of callers that are gone.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, &error.hint()),
    }
}

fn fail(error: &dyn Error, hint: &str) -> ExitCode {
    eprint!("error: {error}");
    let mut cause = error.source();
    while let Some(deeper) = cause {
        eprint!(": {deeper}");
        cause = deeper.source();
    }
    eprintln!("\nhint: {hint}");
    ExitCode::from(2)
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match format {
        LogFormat::Text => log.with_target(false).with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Ready when standard input ends, if the settings ask to stop then; else never.
fn parent(config: &Config) -> oneshot::Receiver<()> {
    let (gone, parent_gone) = oneshot::channel();
    if config.exit_with_parent {
        // A thread of its own: a read of standard input cannot be called off.
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while !matches!(std::io::stdin().read(&mut buffer), Ok(0) | Err(_)) {}
            let _ = gone.send(());
        });
    }
    parent_gone
}
