//! `tessera-nvml-sim`: makes simulated nodes and breaks them.
//!
//! In: a node directory and a command. Out: the directory's files; results on stdout, errors and
//! hints on stderr. Exit 0: done; 2: not done. The node itself lives in the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use tessera_nvml_sim::hardware::Hardware;
use tessera_nvml_sim::load::Load;
use tessera_nvml_sim::scenario::{
    Control, FaultKind, FaultSpec, GpuSel, LoadSpec, MigCut, NodeSection, Preset, Scenario, Span,
};
use tessera_nvml_sim::{NodeOptions, control, create_node, journal};

#[derive(Parser)]
#[command(
    name = "tessera-nvml-sim",
    version,
    about = "A GPU node in a directory: make one, load it, break it",
    after_help = "Examples:
  tessera-nvml-sim init /tmp/n0 --preset dgx-h100
  tessera-nvml-sim init /tmp/n2 --preset dgx-h100 --mig 7=3g.40gb,2g.20gb,1g.10gb
  tessera-nvml-sim init /tmp/n1 --preset gb200-nvl72-tray --name n1 --domain rack1
  tessera-nvml-sim fault /tmp/n0 xid --gpu 2 --code 79
  tessera-nvml-sim fault /tmp/n0 hang --gpu 3 --call 'GetPower*' --for 30s
  tessera-nvml-sim load /tmp/n0 train-step:0.9 --gpu 0 --gpu 1
  tessera-nvml-sim show /tmp/n0

Then let anything load NVML from /tmp/n0/libnvidia-ml.so.1. A process with one of the node's
UUIDs in CUDA_VISIBLE_DEVICES counts as a job on that GPU; TESSERA_SIM_LOAD=sine:0.5 in its
environment says what it does."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a node; what is there already is kept
    Init(InitArgs),
    /// Add a fault to a living node
    Fault(Box<FaultArgs>),
    /// Put a load on GPUs of a living node, without a process
    Load(LoadArgs),
    /// End all faults and loads that were added to a node
    Clear {
        /// The node's directory
        dir: PathBuf,
    },
    /// Show what was broken when, from the node's journal
    Show {
        /// The node's directory
        dir: PathBuf,
        /// The journal's own lines
        #[arg(long)]
        json: bool,
    },
    /// List the machines we can pretend to be
    Presets,
}

#[derive(Args)]
struct InitArgs {
    /// The node's directory
    dir: PathBuf,
    /// The machine to be; see `presets`
    #[arg(long, value_enum)]
    preset: Preset,
    /// The node's name [default: the directory's]
    #[arg(long)]
    name: Option<String>,
    /// UUIDs and chance follow from it and the name
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// NVLink domain (rack) of a gb200 tray; the same name gives the same cluster UUID
    #[arg(long)]
    domain: Option<String>,
    /// Place in the rack, 0..17
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..18))]
    tray: Option<u8>,
    /// Driver version to report; 580.82 and later number fields differently
    #[arg(long)]
    driver: Option<String>,
    /// How fast loads and the times of faults run
    #[arg(long)]
    clock_rate: Option<f64>,
    /// Cut all GPUs, or one (GPU=…), into MIG instances, such as 3g.40gb,2g.20gb,1g.10gb; more than
    /// once for several
    #[arg(long)]
    mig: Vec<MigCut>,
    /// The built library [default: libtessera_nvml_sim.so beside this program]
    #[arg(long)]
    lib: Option<PathBuf>,
}

#[derive(Args)]
struct FaultArgs {
    /// The node's directory
    dir: PathBuf,
    #[arg(value_enum)]
    kind: FaultKind,
    /// GPU index, more than once for several, or "any" [default: all]
    #[arg(long)]
    gpu: Vec<String>,
    /// From now
    #[arg(long, default_value = "0s")]
    at: Span,
    /// With the so-many-th call on the GPU instead
    #[arg(long, conflicts_with = "at")]
    after_calls: Option<u64>,
    /// How long it lasts [default: until cleared]
    #[arg(long = "for")]
    lasts: Option<Span>,
    /// XID code, or an event's data
    #[arg(long)]
    code: Option<u64>,
    /// How many: ECC errors, rows, processes
    #[arg(long)]
    n: Option<u64>,
    /// Which functions hang or are slow, with `*`
    #[arg(long)]
    call: Option<String>,
    /// How long a call takes
    #[arg(long)]
    ms: Option<u64>,
    /// Clock event reasons, or an event's type; 0x40 is thermal
    #[arg(long, value_parser = number)]
    bits: Option<u64>,
    /// NVLink index
    #[arg(long)]
    link: Option<u32>,
    /// Errors a second
    #[arg(long)]
    rate: Option<f64>,
    /// NIC index
    #[arg(long)]
    nic: Option<usize>,
    /// Without event and kernel message
    #[arg(long)]
    quiet: bool,
}

#[derive(Args)]
struct LoadArgs {
    /// The node's directory
    dir: PathBuf,
    /// kind:level, of idle, const, ramp, sine, square, train-step
    load: String,
    /// GPU index, more than once for several [default: all]
    #[arg(long)]
    gpu: Vec<String>,
    /// One turn of the shape
    #[arg(long)]
    period: Option<Span>,
    /// Share of the memory in use, 0..1
    #[arg(long)]
    mem: Option<f64>,
}

fn number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|e| format!("{text:?}: {e}"))
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Init(args) => init(args),
        Command::Fault(args) => fault(*args),
        Command::Load(args) => load(args),
        Command::Clear { dir } => clear(&dir),
        Command::Show { dir, json } => show(&dir, json),
        Command::Presets => presets(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn init(args: InitArgs) -> anyhow::Result<()> {
    let name = match args.name {
        Some(name) => name,
        None => {
            let last = args.dir.file_name().and_then(|n| n.to_str());
            last.context("the directory has no name to give the node; say --name")?.to_owned()
        }
    };
    let options = NodeOptions {
        name,
        preset: args.preset,
        seed: args.seed,
        domain: args.domain,
        tray: args.tray,
        driver_version: args.driver,
        clock_rate: args.clock_rate,
        mig: args.mig,
        library: args.lib,
    };
    let made = create_node(&args.dir, &options)?;
    if !made.scenario_written {
        eprintln!(
            "kept {}/node.toml as it is; options that differ from it have no effect",
            args.dir.display()
        );
    }
    println!("{} gpus={}", made.library.display(), made.gpus);
    for uuid in made.uuids {
        println!("{uuid}");
    }
    Ok(())
}

fn hardware(dir: &Path) -> anyhow::Result<Hardware> {
    let path = dir.join("node.toml");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("{} is not a node; make one with `tessera-nvml-sim init`", dir.display())
    })?;
    let scenario = Scenario::parse(&text)
        .map_err(anyhow::Error::msg)
        .with_context(|| path.display().to_string())?;
    Ok(Hardware::of(&scenario.node))
}

fn gpus(words: &[String]) -> anyhow::Result<Option<GpuSel>> {
    Ok(match words {
        [] => None,
        [word] if word == "any" => Some(GpuSel::Word(word.clone())),
        _ => {
            let numbers: Result<Vec<usize>, _> = words.iter().map(|w| w.parse()).collect();
            let mut numbers =
                numbers.with_context(|| format!("--gpu {} is no index", words.join(" ")))?;
            Some(if numbers.len() == 1 {
                GpuSel::One(numbers.remove(0))
            } else {
                GpuSel::Many(numbers)
            })
        }
    })
}

fn fault(args: FaultArgs) -> anyhow::Result<()> {
    let hardware = hardware(&args.dir)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let at = now + args.at.0.as_millis() as i64;
    let spec = FaultSpec {
        gpu: gpus(&args.gpu)?,
        at_unix_ms: args.after_calls.is_none().then_some(at),
        after_calls: args.after_calls,
        lasts: args.lasts,
        code: args.code,
        n: args.n,
        call: args.call,
        ms: args.ms,
        bits: args.bits,
        link: args.link,
        rate: args.rate,
        nic: args.nic,
        quiet: args.quiet,
        ..FaultSpec::new(args.kind)
    };
    if let Err(reason) = spec.check(hardware.gpus.len(), hardware.nics.len()) {
        bail!("{}", reason.replace('`', "--").replace("-- ", " ").trim_end_matches("--"));
    }
    let entry = Control { load: Vec::new(), fault: vec![spec] };
    control::append(&args.dir, &entry).map_err(anyhow::Error::msg)?;
    println!(
        "added to {}/control.toml:\n{}",
        args.dir.display(),
        toml::to_string(&entry)?.trim_end()
    );
    Ok(())
}

fn load(args: LoadArgs) -> anyhow::Result<()> {
    let hardware = hardware(&args.dir)?;
    let wanted: Load = args.load.parse().map_err(anyhow::Error::msg)?;
    let entry = Control {
        load: vec![LoadSpec {
            gpu: gpus(&args.gpu)?,
            shape: wanted.shape,
            level: wanted.level,
            period: args.period,
            mem: args.mem,
            at: None,
            until: None,
        }],
        fault: Vec::new(),
    };
    let text = toml::to_string(&entry)?;
    Control::parse(&text, &hardware).map_err(anyhow::Error::msg)?;
    control::append(&args.dir, &entry).map_err(anyhow::Error::msg)?;
    println!("added to {}/control.toml:\n{}", args.dir.display(), text.trim_end());
    Ok(())
}

fn clear(dir: &Path) -> anyhow::Result<()> {
    hardware(dir)?;
    control::clear(dir).map_err(anyhow::Error::msg)?;
    println!("cleared {}/control.toml; faults of node.toml go on", dir.display());
    Ok(())
}

fn show(dir: &Path, json: bool) -> anyhow::Result<()> {
    hardware(dir)?;
    let records = journal::read(dir)
        .with_context(|| format!("could not read {}/journal.jsonl", dir.display()))?;
    if records.is_empty() {
        eprintln!("nothing has been broken yet");
    }
    for record in records {
        if json {
            println!("{}", serde_json::to_string(&record)?);
            continue;
        }
        let what = serde_json::to_value(record.what)?;
        let gpus: Vec<_> = record.gpus.iter().map(ToString::to_string).collect();
        println!(
            "{:>12.3} s  {:<8} {:<16} {}",
            record.at_ms as f64 / 1000.0,
            what.as_str().unwrap_or_default(),
            record.kind,
            match (&record.error, gpus.is_empty()) {
                (Some(error), _) => error.trim_end().to_owned(),
                (None, true) => "node".to_owned(),
                (None, false) => format!("gpu {}", gpus.join(",")),
            }
        );
    }
    Ok(())
}

fn presets() -> anyhow::Result<()> {
    for preset in Preset::ALL {
        let hw = Hardware::of(&NodeSection::new("n0", preset, 1));
        let gpus = match hw.gpus.first() {
            Some(gpu) => format!(
                "{} x {}, {} MiB, {} W",
                hw.gpus.len(),
                gpu.spec.name,
                gpu.spec.mem_mib,
                gpu.spec.limit_w
            ),
            None => "no GPU".to_owned(),
        };
        let nics = match hw.nics.first() {
            Some(nic) => format!("{} x {} Gb/s", hw.nics.len(), nic.gbps),
            None => "no rail NIC".to_owned(),
        };
        println!(
            "{:<17} {gpus}; {nics}; {} CPUs, {} GiB; driver {}",
            preset.name(),
            hw.cpus(),
            hw.mem_gib,
            hw.driver_version
        );
    }
    Ok(())
}
