//! placeholder
pub mod rendezvous;
use crate::{cli::DevArgs, failure::Outcome, output::Screen};
pub async fn run(_args: &DevArgs, _screen: &Screen) -> Outcome<u8> {
    Ok(0)
}
