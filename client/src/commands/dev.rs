//! `tessera dev`: a whole cluster on this machine, with simulated GPUs and real processes.
//!
//! In: how many nodes of what kind. Out: one line on stdout when all are up; then it stays until a
//! signal comes and leaves no process behind. What the programs do is theirs: here they are
//! started, watched and ended.

pub mod cluster; // all of it, from the first folder to the last process
pub mod demo; // a short story on it
pub mod reaper; // what is left when we are killed
pub mod rendezvous; // one rank of the story's gang

mod children; // one program and its log
mod folder; // what lies where
mod leftovers; // tasks that outlived their agents
mod seed; // a team and example prices

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::DevArgs;
use crate::failure::{Failure, Outcome};
use crate::output::Screen;
use crate::settings::Surroundings;
use cluster::{Cluster, Plan};

pub async fn run(args: &DevArgs, screen: &Screen) -> Outcome<u8> {
    let mut signals = Signals::new()?;
    let plan = Plan::of(args, Surroundings::of_this_process())?;
    let mut cluster = Cluster::prepare(plan)?;
    // A signal ends the story at any point, and what was started until then is ended below.
    let outcome = tokio::select! {
        outcome = live(&mut cluster, args, screen) => outcome,
        () = signals.next() => match args.demo {
            true => Err(Failure::no_answer("interrupted", "the demo was interrupted", "")),
            false => Ok(0),
        },
    };
    if let Err(failure) = &outcome
        && !failure.is_broken_pipe()
        && !screen.json
    {
        cluster.tell_logs(screen);
    }
    let hurried = tokio::select! {
        () = cluster.stop(screen) => false,
        () = signals.next() => true,
    };
    if hurried {
        cluster.kill().await;
    }
    // What a program that died has said is worth keeping.
    let died = outcome.as_ref().is_err_and(|failure| failure.kind == "child");
    cluster.clean_up(died);
    outcome
}

async fn live(cluster: &mut Cluster, args: &DevArgs, screen: &Screen) -> Outcome<u8> {
    if !screen.json {
        screen.note(&format!("starting {} nodes in {}", cluster.nodes(), cluster.folder()));
    }
    cluster.start(screen).await?;
    if args.demo {
        return demo::play(cluster, screen).await;
    }
    screen.line(cluster.ready_line())?;
    screen.hint("other tessera commands find this cluster by themselves; Ctrl-C ends it");
    // Only a child's death ends this: signals are waited for outside.
    Err(cluster.death().await)
}

/// Everything that asks a program in a terminal to end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Outcome<Self> {
        let on = |kind| {
            signal(kind).map_err(|error| {
                Failure::no_answer("system", format!("cannot listen for signals: {error}"), "")
            })
        };
        Ok(Self([
            on(SignalKind::interrupt())?,
            on(SignalKind::terminate())?,
            on(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
