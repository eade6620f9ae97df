//! The `tessera` command: submit, watch, explain, and settle the bill.
//!
//! In: a command line. Out: an answer of the scheduler, for people or as JSON, and an exit code: 0
//! done, 1 the answer is no, 2 there is no answer. Deciding anything is the scheduler's work.

pub mod cli; // the words
pub mod commands; // what each verb does
pub mod jobfile; // the job file, and the request it makes with the flags
pub mod selector;
pub mod wishes; // how people write what a job wishes for // which jobs are meant

pub mod call; // asking the scheduler
pub mod failure; // how a command ends badly
pub mod output; // what people and programs see
pub mod settings; // whom to ask, and as whom
pub mod views; // what --json prints
pub mod when; // points in time

use std::process::ExitCode;

use cli::Cli;
use output::Screen;

pub fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; their reader may have gone, which is fine too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::NO_ANSWER } else { 0 });
        }
    };
    let screen = Screen::detect(cli.common.json, cli.common.color);
    // One thread is enough to wait for answers, and the quickest to start.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = failure::Failure::no_answer("system", format!("no threads: {error}"), "");
            screen.failure(&failure);
            return ExitCode::from(failure.exit);
        }
    };
    let code = match runtime.block_on(commands::run(&cli, &screen)) {
        Ok(code) => code,
        Err(failure) if failure.is_broken_pipe() => 0,
        Err(failure) => {
            screen.failure(&failure);
            failure.exit
        }
    };
    // What is still under way must not hold up the answer.
    runtime.shutdown_background();
    ExitCode::from(code)
}
