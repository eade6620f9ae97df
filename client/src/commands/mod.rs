//! What each verb does.
//!
//! In: the parsed command line and the screen. Out: the exit code, or why there is none.

pub mod submit; // hand in a job

pub mod explain; // why it waits
pub mod logs; // what it writes
pub mod queue; // all of them
pub mod show; // one of them
pub mod wait; // until it ends

pub mod change; // cancel, hold, release, update, signal
pub mod checkpoint; // its work is safe

pub mod cordon; // keep jobs away from nodes
pub mod nodes; // what there is
pub mod reserve; // nodes kept for somebody
pub mod retire; // a node that is gone for good
pub mod topology; // where it stands

pub mod prices;
pub mod usage; // who held what

pub mod status; // who am I
pub mod team;
pub mod token;

pub mod replay; // what would have been

pub mod completions;
pub mod dev; // a whole cluster on this machine

use crate::call::Api;
use crate::cli::{Cli, Verb};
use crate::failure::Outcome;
use crate::output::Screen;
use crate::settings::{self, Surroundings};

pub async fn run(cli: &Cli, screen: &Screen) -> Outcome<u8> {
    match &cli.verb {
        Verb::Dev(args) => return dev::run(args, screen).await,
        Verb::Completions { shell } => return completions::run(*shell, screen),
        Verb::Replay(args) => return replay::run(args, screen),
        Verb::Checkpoint(args) if checkpoint::has_file(args) => return checkpoint::touch(screen),
        Verb::Rendezvous => return dev::rendezvous::run(screen).await,
        Verb::Reaper { folder, remove } => return dev::reaper::run(folder, *remove).await,
        _ => {}
    }
    let around = Surroundings::of_this_process();
    let settings = settings::find(cli.common.config.as_deref(), &around)?;
    let api = Api::connect(&settings).await?;
    match &cli.verb {
        Verb::Submit(args) => submit::run(&api, args, screen).await,
        Verb::Queue(args) => queue::run(&api, args, screen).await,
        Verb::Show(args) => show::run(&api, args, screen).await,
        Verb::Explain(args) => explain::run(&api, args, screen).await,
        Verb::Logs(args) => logs::run(&api, args, screen).await,
        Verb::Wait(args) => wait::run(&api, args, screen).await,
        Verb::Cancel(args) => change::cancel(&api, args, screen).await,
        Verb::Hold(args) => change::hold(&api, args, screen).await,
        Verb::Release(args) => change::release(&api, args, screen).await,
        Verb::Update(args) => change::update(&api, args, screen).await,
        Verb::Signal(args) => change::signal(&api, args, screen).await,
        Verb::Checkpoint(args) => checkpoint::run(&api, args, screen).await,
        Verb::Nodes(args) => nodes::run(&api, args, screen).await,
        Verb::Cordon(args) => cordon::keep_away(&api, args, false, screen).await,
        Verb::Drain(args) => cordon::keep_away(&api, args, true, screen).await,
        Verb::Uncordon(args) => cordon::give_back(&api, args, screen).await,
        Verb::Retire(args) => retire::run(&api, args, screen).await,
        Verb::Topology(args) => topology::run(&api, args, screen).await,
        Verb::Reserve(args) => reserve::run(&api, args, screen).await,
        Verb::Usage(args) => usage::run(&api, args, screen).await,
        Verb::Prices(args) => prices::run(&api, args, screen).await,
        Verb::Team(args) => team::run(&api, args, screen).await,
        Verb::Token(args) => token::run(&api, args, screen).await,
        Verb::Status => status::run(&api, &settings, screen).await,
        // They needed no scheduler, and were answered above.
        Verb::Dev(_)
        | Verb::Completions { .. }
        | Verb::Replay(_)
        | Verb::Rendezvous
        | Verb::Reaper { .. } => Ok(0),
    }
}
