//! `tessera nodes`: what there is, who holds it, and what is wrong with it.
//!
//! In: nodes by name, or none for all. Out: one line a node with one character a GPU; with names,
//! each GPU with its newest reading.

use std::fmt::Write as _;

use serde::Serialize;
use tessera_model::{GpuRecord, NodeRecord, NodeState, UnixMillis};
use tessera_proto::v1;

use crate::call::Api;
use crate::cli::NodesArgs;
use crate::failure::Outcome;
use crate::output::{Grid, Screen, count, left, printable, right};
use crate::views::{NodeView, jobs_on, told};
use crate::when;

pub async fn run(api: &Api, args: &NodesArgs, screen: &Screen) -> Outcome<u8> {
    let nodes = api.node_list(&args.names).await?;
    if args.names.is_empty() {
        if screen.json {
            screen.json(&nodes.iter().map(NodeView::of).collect::<Vec<_>>())?;
        } else {
            screen.text(&table(&nodes, screen))?;
        }
        return Ok(0);
    }
    let mut details = Vec::new();
    for node in nodes {
        let request = v1::LatestRequest { node: node.inventory.node.to_string() };
        let request = &request;
        let latest =
            api.ask(|api| async move { api.nodes().latest(request.clone()).await }).await?;
        details.push((node, latest));
    }
    if screen.json {
        let views = details.iter().map(|(node, latest)| DetailView::of(node, latest));
        screen.json(&views.collect::<Vec<_>>())?;
        return Ok(0);
    }
    for (node, latest) in &details {
        screen.text(&detail(node, latest, when::now(), screen))?;
    }
    Ok(0)
}

/// What a GPU is to a job that looks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    Held,
    Free,
    Sick,
    Kept,
}

impl Face {
    pub fn of(node: &NodeRecord, gpu: &GpuRecord) -> Self {
        if !gpu.condition.is_healthy() {
            Self::Sick
        } else if gpu.held_by.is_some() {
            Self::Held
        } else if node.cordon.is_some() || node.state != NodeState::Up {
            Self::Kept
        } else {
            Self::Free
        }
    }

    pub fn glyph(self, unicode: bool) -> char {
        match (self, unicode) {
            (Self::Held, true) => '■',
            (Self::Free, true) => '□',
            (Self::Sick, true) => '✗',
            (Self::Kept, true) => '▒',
            (Self::Held, false) => '#',
            (Self::Free, false) => '.',
            (Self::Sick, false) => 'x',
            (Self::Kept, false) => '~',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Free => "free",
            Self::Sick => "sick",
            Self::Kept => "kept",
        }
    }
}

/// One character a GPU, in index order.
pub fn bar(node: &NodeRecord, unicode: bool) -> String {
    node.gpus.iter().map(|gpu| Face::of(node, gpu).glyph(unicode)).collect()
}

/// `up`, `silent`, `lost`, `cordoned`, `draining` while jobs are there, then `drained`.
pub fn state_word(node: &NodeRecord) -> &'static str {
    match (node.state, &node.cordon) {
        (NodeState::Up, Some(cordon)) if cordon.drain => {
            let is_empty = node.cpus_held == 0 && node.gpus.iter().all(|g| g.held_by.is_none());
            if is_empty { "drained" } else { "draining" }
        }
        (NodeState::Up, Some(_)) => "cordoned",
        (state, _) => state.word(),
    }
}

pub fn table(nodes: &[NodeRecord], screen: &Screen) -> String {
    // The narrowest level the nodes stand in gives the column its name.
    let level = nodes.iter().find_map(|n| n.domains.last().map(|(level, _)| level.clone()));
    let title = level.as_deref().unwrap_or("leaf").to_uppercase();
    let mut grid = Grid::with_remark(vec![
        left("NODE"),
        left(title).spare(2),
        left("STATE"),
        left("GPUS"),
        right("CPUS").spare(3),
        left("JOBS").spare(1),
        left("NOTE"),
    ]);
    for node in nodes {
        let jobs: Vec<String> = jobs_on(node).iter().map(u64::to_string).collect();
        grid.row([
            node.inventory.node.to_string(),
            node.domains.last().map(|(_, name)| name.clone()).unwrap_or_default(),
            state_word(node).to_owned(),
            bar(node, screen.unicode),
            format!("{}/{}", node.cpus_held, node.inventory.cpus),
            jobs.join(","),
            note(node),
        ]);
    }
    let mut out = if nodes.is_empty() { String::new() } else { grid.render(screen) };
    if screen.tty {
        out.push_str(&footer(nodes, screen));
    }
    out
}

/// What an operator should know: the cordon's reason, and each sick GPU.
fn note(node: &NodeRecord) -> String {
    let mut parts = Vec::new();
    if let Some(cordon) = &node.cordon {
        let reason = if cordon.reason.is_empty() { "no reason given" } else { &cordon.reason };
        parts.push(format!("{reason} ({})", cordon.by));
    }
    for (gpu, now) in node.inventory.gpus.iter().zip(&node.gpus) {
        if !now.condition.is_healthy() {
            parts.push(format!("GPU {} {}", gpu.index, now.condition));
        }
    }
    parts.join("; ")
}

fn footer(nodes: &[NodeRecord], screen: &Screen) -> String {
    let faces: Vec<Face> =
        nodes.iter().flat_map(|n| n.gpus.iter().map(|g| Face::of(n, g))).collect();
    let of = |face: Face| faces.iter().filter(|f| **f == face).count();
    let dot = if screen.unicode { " · " } else { " - " };
    let mut parts = vec![count(nodes.len() as u64, "node"), count(faces.len() as u64, "GPU")];
    for face in [Face::Held, Face::Free, Face::Sick, Face::Kept] {
        if of(face) > 0 || face == Face::Held {
            parts.push(format!("{} {} {}", face.glyph(screen.unicode), of(face), face.word()));
        }
    }
    format!("{}\n", parts.join(dot))
}

/// One node with all its devices.
pub fn detail(
    node: &NodeRecord,
    latest: &v1::LatestReply,
    now: UnixMillis,
    screen: &Screen,
) -> String {
    let inventory = &node.inventory;
    let mut out =
        format!("{}  {}  {}\n", inventory.node, state_word(node), bar(node, screen.unicode));
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:<10} {}", printable(&value));
        }
    };
    let domains = node.domains.iter().map(|(level, name)| format!("{level} {name}"));
    fact("stands in", domains.collect::<Vec<_>>().join(", "));
    for doubt in &node.map_doubts {
        fact("doubt", doubt.clone());
    }
    fact("note", note(node));
    let labels = inventory.labels.iter().map(|(key, value)| format!("{key}={value}"));
    fact("labels", labels.collect::<Vec<_>>().join(" "));
    fact("switches", inventory.neighbours.join(" "));
    fact("address", inventory.address.clone());
    fact("CPUs", format!("{} of {} held", node.cpus_held, inventory.cpus));
    let host = latest.host.unwrap_or_default();
    fact(
        "memory",
        match host.memory_used_bytes {
            Some(used) => format!("{} of {} used", tessera_model::Bytes(used), inventory.memory),
            None => inventory.memory.to_string(),
        },
    );
    fact("driver", inventory.driver_version.clone().unwrap_or_else(|| "none".to_owned()));
    fact(
        "agent",
        format!("{}, heard {} ago", inventory.agent_version, when::between(node.last_seen, now)),
    );
    fact(
        "reading",
        match latest.at_unix_ms {
            Some(at) => format!("{} ago", when::between(UnixMillis(at), now)),
            None => "none yet".to_owned(),
        },
    );
    if !inventory.gpus.is_empty() {
        out.push_str(&gpu_grid(node, latest).render(screen));
    }
    if !latest.nics.is_empty() {
        out.push_str(&nic_grid(latest).render(screen));
    }
    out
}

/// Not measured is a dash, never 0.
fn measured<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn gpu_grid(node: &NodeRecord, latest: &v1::LatestReply) -> Grid {
    let mut grid = Grid::new(vec![
        right("GPU"),
        left("MODEL").spare(3),
        left("CONDITION"),
        right("JOB"),
        left("TEAM").spare(4),
        right("SM %"),
        right("TENSOR %").spare(2),
        right("MEM GiB"),
        right("POWER W"),
        right("TEMP C").spare(1),
    ]);
    for (gpu, state) in node.inventory.gpus.iter().zip(&node.gpus) {
        let reading = latest.gpus.iter().find(|r| r.uuid == gpu.id.as_str());
        let percent = |value: Option<f32>| measured(value, |v| format!("{v:.0}"));
        grid.row([
            gpu.index.to_string(),
            gpu.model.clone(),
            state.condition.to_string(),
            match (state.held_by, told(state)) {
                (Some(_), None) => "others'".to_owned(),
                (_, job) => measured(job, |j| j.to_string()),
            },
            state.team.as_ref().map(ToString::to_string).unwrap_or_default(),
            percent(reading.and_then(|r| r.sm_percent.or(r.busy_percent))),
            percent(reading.and_then(|r| r.tensor_percent)),
            measured(reading.and_then(|r| r.memory_used_bytes), |b| {
                format!("{}.{}", b >> 30, ((b & ((1 << 30) - 1)) * 10) >> 30)
            }),
            measured(reading.and_then(|r| r.power_mw), |p| (p / 1_000).to_string()),
            percent(reading.and_then(|r| r.temperature_c)),
        ]);
    }
    grid
}

fn nic_grid(latest: &v1::LatestReply) -> Grid {
    let mut grid = Grid::new(vec![
        left("NIC"),
        left("LINK"),
        right("GBIT/S"),
        right("RECEIVED GiB"),
        right("SENT GiB"),
        right("ERRORS"),
    ]);
    for nic in &latest.nics {
        let gib = |value: Option<u64>| measured(value, |b| (b >> 30).to_string());
        let errors = match (nic.receive_errors, nic.transmit_errors) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
        };
        grid.row([
            nic.name.clone(),
            measured(nic.up, |up| if up { "up".to_owned() } else { "down".to_owned() }),
            measured(nic.speed_mbps, |s| (s / 1_000).to_string()),
            gib(nic.receive_bytes),
            gib(nic.transmit_bytes),
            measured(errors, |e| e.to_string()),
        ]);
    }
    grid
}

/// A node with its newest reading, as JSON.
#[derive(Debug, Serialize)]
pub struct DetailView<'a> {
    #[serde(flatten)]
    node: NodeView<'a>,
    latest: LatestView<'a>,
}

impl<'a> DetailView<'a> {
    pub fn of(node: &'a NodeRecord, latest: &'a v1::LatestReply) -> Self {
        Self { node: NodeView::of(node), latest: LatestView::of(latest) }
    }
}

#[derive(Debug, Serialize)]
struct LatestView<'a> {
    at: Option<String>,
    gpus: Vec<GpuReadingView<'a>>,
    nics: Vec<NicReadingView<'a>>,
    host: Option<HostReadingView>,
}

#[derive(Debug, Serialize)]
struct GpuReadingView<'a> {
    uuid: &'a str,
    at: String,
    busy_percent: Option<f32>,
    sm_percent: Option<f32>,
    tensor_percent: Option<f32>,
    dram_percent: Option<f32>,
    memory_used_bytes: Option<u64>,
    power_mw: Option<u32>,
    energy_mj: Option<u64>,
    temperature_c: Option<f32>,
    memory_temperature_c: Option<f32>,
    sm_clock_mhz: Option<u32>,
    memory_clock_mhz: Option<u32>,
    clock_event_reasons: Option<u64>,
    ecc_corrected: Option<u64>,
    ecc_uncorrected: Option<u64>,
    pcie_replays: Option<u64>,
    processes: Option<u32>,
}

#[derive(Debug, Serialize)]
struct NicReadingView<'a> {
    name: &'a str,
    up: Option<bool>,
    speed_mbps: Option<u64>,
    receive_bytes: Option<u64>,
    transmit_bytes: Option<u64>,
    receive_errors: Option<u64>,
    transmit_errors: Option<u64>,
    carrier_changes: Option<u64>,
    transmit_wait: Option<u64>,
    symbol_errors: Option<u64>,
    link_downed: Option<u64>,
    cnp_handled: Option<u64>,
    cnp_sent: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HostReadingView {
    cpu_percent: Option<f32>,
    memory_used_bytes: Option<u64>,
    load_1m: Option<f32>,
    agent_rss_bytes: Option<u64>,
    skew_ms: Option<f32>,
    samples_dropped: u64,
}

impl<'a> LatestView<'a> {
    fn of(latest: &'a v1::LatestReply) -> Self {
        let gpu = |r: &'a v1::GpuReading| GpuReadingView {
            uuid: &r.uuid,
            at: UnixMillis(r.at_unix_ms).rfc3339(),
            busy_percent: r.busy_percent,
            sm_percent: r.sm_percent,
            tensor_percent: r.tensor_percent,
            dram_percent: r.dram_percent,
            memory_used_bytes: r.memory_used_bytes,
            power_mw: r.power_mw,
            energy_mj: r.energy_mj,
            temperature_c: r.temperature_c,
            memory_temperature_c: r.memory_temperature_c,
            sm_clock_mhz: r.sm_clock_mhz,
            memory_clock_mhz: r.memory_clock_mhz,
            clock_event_reasons: r.clock_event_reasons,
            ecc_corrected: r.ecc_corrected,
            ecc_uncorrected: r.ecc_uncorrected,
            pcie_replays: r.pcie_replays,
            processes: r.processes,
        };
        let nic = |n: &'a v1::NicReading| NicReadingView {
            name: &n.name,
            up: n.up,
            speed_mbps: n.speed_mbps,
            receive_bytes: n.receive_bytes,
            transmit_bytes: n.transmit_bytes,
            receive_errors: n.receive_errors,
            transmit_errors: n.transmit_errors,
            carrier_changes: n.carrier_changes,
            transmit_wait: n.transmit_wait,
            symbol_errors: n.symbol_errors,
            link_downed: n.link_downed,
            cnp_handled: n.cnp_handled,
            cnp_sent: n.cnp_sent,
        };
        Self {
            at: latest.at_unix_ms.map(|at| UnixMillis(at).rfc3339()),
            gpus: latest.gpus.iter().map(gpu).collect(),
            nics: latest.nics.iter().map(nic).collect(),
            host: latest.host.as_ref().map(|h| HostReadingView {
                cpu_percent: h.cpu_percent,
                memory_used_bytes: h.memory_used_bytes,
                load_1m: h.load_1m,
                agent_rss_bytes: h.agent_rss_bytes,
                skew_ms: h.skew_ms,
                samples_dropped: h.samples_dropped,
            }),
        }
    }
}
