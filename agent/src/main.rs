//! `tessera-agent`: one per node.
//!
//! In: the command line. Out: exit 0 after SIGTERM or SIGINT, 2 when it cannot start. What it does
//! in between is put together here and done in the library: the sampler reads, the runner runs,
//! control and telemetry talk to the scheduler. Control has a thread and a runtime of its own, so
//! that nothing the others do delays a heartbeat.

mod show; // what `probe` prints

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use tessera_agent::config::{
    Cli, ConfigError, Devices, LogFormat, ProbeFlags, RunFlags, Settings, Verb, default_node,
    host_name, lock_state,
};
use tessera_agent::control::{Control, serve_logs};
use tessera_agent::join::{JoinError, keep_renewed, load_or_join};
use tessera_agent::node_gpus::NodeGpus;
use tessera_agent::passage;
use tessera_agent::probe::{NodeIdentity, boot_id};
use tessera_agent::runner::{AgentIdentity, Runner, RunnerSettings};
use tessera_agent::sampler::{Sampler, SamplerConfig};
use tessera_agent::session::Session;
use tessera_agent::spool::{self, Spool};
use tessera_agent::telemetry::{self, UplinkConfig};
use tessera_model::{BootId, NodeId};
use tessera_proto::dial;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Verb::Probe(flags)) => probe(flags),
        Some(Verb::Run(flags)) => run(*flags),
        None => run(cli.run),
    };
    match done {
        Ok(()) => leave(0),
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(hint) = hint_of(&error) {
                eprintln!("hint: {hint}");
            }
            leave(2)
        }
    }
}

fn hint_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let config = cause.downcast_ref::<ConfigError>().map(ConfigError::hint);
        config.or_else(|| cause.downcast_ref::<JoinError>().map(JoinError::hint))
    })
}

/// Ends the process. A thread that hangs in the driver may hold up the orderly way through the
/// exit handlers of its library; then it ends without them.
fn leave(code: i32) -> ! {
    let watchdog = std::thread::Builder::new().name("leave".to_owned()).spawn(|| {
        std::thread::sleep(Duration::from_secs(2));
        // Nothing of ours is unfinished: what has to last is on disk already.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    drop(watchdog);
    std::process::exit(code)
}

fn runtime(workers: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(64)
        .thread_name("agent")
        .enable_all()
        .build()
        .context("could not start the agent's threads")
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init()
        }
        LogFormat::Json => log.json().init(),
    }
}

/// A broken promise of our own ends the agent, whichever thread finds it: half an agent would hold
/// its node's place and do nothing. The next start takes the tasks over.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

fn run(flags: RunFlags) -> anyhow::Result<()> {
    let settings = Settings::resolve(flags)?;
    start_log(settings.log_format);
    end_on_panic();
    let _lock = lock_state(&settings.state)?;
    passage::warn_if_closed(&settings.state);
    let runtime = runtime(2)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
        let parent_gone = parent(settings.exit_with_parent);
        tokio::select! {
            done = serve(settings) => done,
            Ok(()) = parent_gone => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })?;
    tracing::info!("the agent ends; tasks run on");
    // Without waiting for its threads: one may hang in the driver.
    runtime.shutdown_background();
    Ok(())
}

/// Ready when standard input ends, if that is to be the end; else never.
fn parent(watched: bool) -> tokio::sync::oneshot::Receiver<()> {
    let (gone, parent_gone) = tokio::sync::oneshot::channel();
    if watched {
        // A thread of its own: a read of standard input cannot be called off.
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while !matches!(std::io::Read::read(&mut std::io::stdin(), &mut buffer), Ok(0) | Err(_))
            {
            }
            // The agent may have ended for another reason.
            let _ = gone.send(());
        });
    }
    parent_gone
}

/// Runs until it is dropped.
async fn serve(settings: Settings) -> anyhow::Result<()> {
    let Settings { server, state, address, .. } = settings;
    let identity = load_or_join(
        &state,
        &server,
        settings.name.as_ref(),
        &default_node()?,
        settings.join_token.as_ref(),
    )
    .await?;
    let node = identity.node.clone();
    let boot = boot()?;
    let spool = Spool::open(&state.join("spool"), &boot, spool::CAPACITY)
        .with_context(|| format!("could not use the samples kept in {}", state.display()))?;
    let told = NodeIdentity {
        node: node.clone(),
        boot,
        address: address.clone(),
        labels: settings.labels,
        neighbours: settings.neighbours,
    };
    let mut config = sampler_config(told, &settings.devices);
    config.known_gpus = Some(state.join("gpus"));
    config.first_sequence = spool.next_sequence();
    let sampler = start_sampler(config).await?;
    let session = Arc::new(Session::begin());
    let runner = Runner::open(
        RunnerSettings {
            state: state.clone(),
            node: node.clone(),
            address,
            shim: settings.shim,
            identity: AgentIdentity::of_process(settings.run_as_agent_user),
            keep: settings.keep,
        },
        Arc::new(NodeGpus::new(Arc::clone(&sampler))),
        Arc::clone(&session),
    )
    .with_context(|| format!("could not use the state folder {}", state.display()))?;
    // What is on the GPUs now has to stand in the first Hello, or jobs are placed there at once.
    runner.look_for_strangers().await;
    tracing::info!(%node, server, gpus = sampler.inventory().borrow().gpus.len(), "the agent runs");
    let (dials, dialed) = watch::channel(identity.dial(&server));
    let control = Control {
        dial: dialed.clone(),
        runner: runner.clone(),
        session,
        inventory: sampler.inventory(),
        conditions: sampler.conditions(),
    };
    start_control(control)?;
    let redial = dialed.clone();
    let uplink = telemetry::run(
        move || {
            let dial = redial.borrow().clone();
            async move { dial::connect(&dial).await }
        },
        sampler.samples(),
        spool,
        UplinkConfig::default(),
    );
    tokio::spawn(uplink);
    tokio::spawn(serve_logs(dialed, runner));
    keep_renewed(state, server, identity, dials).await;
    Ok(())
}

fn start_control(control: Control) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("could not start the control thread")?;
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || runtime.block_on(control.run()))
        .context("could not start the control thread")?;
    Ok(())
}

fn boot() -> anyhow::Result<BootId> {
    boot_id().context("the kernel names no boot in /proc/sys/kernel/random/boot_id")
}

fn sampler_config(identity: NodeIdentity, devices: &Devices) -> SamplerConfig {
    let mut config = SamplerConfig::new(identity, devices.nvml_library.clone());
    config.sysfs.clone_from(&devices.sysfs);
    config
}

async fn start_sampler(config: SamplerConfig) -> anyhow::Result<Arc<Sampler>> {
    let started = tokio::task::spawn_blocking(move || Sampler::start(config)).await;
    Ok(Arc::new(
        started.context("the sampler did not start")?.context("the sampler did not start")?,
    ))
}

fn probe(flags: ProbeFlags) -> anyhow::Result<()> {
    let node = match &flags.name {
        Some(name) => NodeId::parse(name).map_err(ConfigError::from)?,
        None => default_node()?,
    };
    let identity = NodeIdentity {
        node,
        boot: boot()?,
        address: host_name(),
        labels: BTreeMap::new(),
        neighbours: Vec::new(),
    };
    let config = sampler_config(identity, &flags.devices.resolve());
    let runtime = runtime(1)?;
    let text = runtime.block_on(async {
        let sampler = start_sampler(config).await?;
        let sample = tokio::time::timeout(Duration::from_secs(10), sampler.samples().recv()).await;
        let sample = sample.ok().flatten().context("no sample came within 10 s")?;
        let inventory = sampler.inventory().borrow().clone();
        let conditions = sampler.conditions().borrow().clone();
        anyhow::Ok(if flags.json {
            show::json(&inventory, &conditions, &sample)
        } else {
            show::table(&inventory, &conditions, &sample)
        })
    })?;
    runtime.shutdown_background();
    use std::io::Write;
    // A reader that has seen enough, like `head`, is no error.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(())
}
