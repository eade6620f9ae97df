//! `tessera completions`: for a shell.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::failure::Outcome;
use crate::output::Screen;

pub fn run(shell: clap_complete::Shell, screen: &Screen) -> Outcome<u8> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tessera", &mut out);
    screen.bytes(&out)?;
    Ok(0)
}
