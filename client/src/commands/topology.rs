//! `tessera topology`: which node stands where, what is said of its domains, and another map.
//!
//! In: the map in force; or a file, sent as it is, since the scheduler has the readers for all its
//! formats. Out: a tree with free GPUs, marks and doubts.

use std::collections::BTreeMap;

use serde::Serialize;
use tessera_proto::v1;

use crate::call::Api;
use crate::cli::{LoadArgs, MarkArgs, TopologyArgs, TopologyVerb};
use crate::failure::{Failure, NO, Outcome};
use crate::output::{Grid, Screen, count, left, printable, wrap};
use crate::when;

/// As much as the scheduler takes in.
const FILE_BYTES_MAX: usize = 3 << 20;

pub async fn run(api: &Api, args: &TopologyArgs, screen: &Screen) -> Outcome<u8> {
    match &args.verb {
        None | Some(TopologyVerb::Show) => show(api, screen).await,
        Some(TopologyVerb::Doubts) => doubts(api, screen).await,
        Some(TopologyVerb::Mark(args)) => mark(api, args, screen).await,
        Some(TopologyVerb::Load(args)) => load(api, args, screen).await,
    }
}

async fn show(api: &Api, screen: &Screen) -> Outcome<u8> {
    let reply = api.topology().await?;
    if screen.json {
        screen.json(&TopologyView::of(&reply))?;
        return Ok(0);
    }
    screen.text(&tree(&reply, screen))?;
    if !reply.doubts.is_empty() {
        let nodes = count(reply.doubts.len() as u64, "doubt");
        screen.hint(&format!("{nodes} about the map: tessera topology doubts"));
    }
    Ok(0)
}

/// Exit code 1 where there is a doubt.
async fn doubts(api: &Api, screen: &Screen) -> Outcome<u8> {
    let reply = api.topology().await?;
    if screen.json {
        screen.json(&reply.doubts.iter().map(DoubtView::of).collect::<Vec<_>>())?;
    } else if reply.doubts.is_empty() {
        screen.line("nothing speaks against the map")?;
    } else {
        screen.text(&doubts_table(&reply.doubts, screen))?;
    }
    Ok(if reply.doubts.is_empty() { 0 } else { NO })
}

pub fn doubts_table(doubts: &[v1::MapDoubt], screen: &Screen) -> String {
    let mut grid = Grid::with_remark(vec![left("NODE"), left("DOUBT")]);
    for doubt in doubts {
        grid.row([doubt.node.as_str(), doubt.text.as_str()]);
    }
    grid.render(screen)
}

async fn mark(api: &Api, args: &MarkArgs, screen: &Screen) -> Outcome<u8> {
    let (level, domain) = args.domain.clone();
    let until = args.until.or(args.lasts.map(|l| when::now().plus(l)));
    let request = &v1::MarkDomainRequest {
        level,
        domain,
        health_percent: args.health,
        reason: args.reason.clone(),
        until_unix_ms: until.map(|t| t.0),
    };
    // The same mark twice is one mark.
    let mark = api.ask(|api| async move { api.admin().mark_domain(request.clone()).await }).await?;
    if screen.json {
        screen.json(&MarkView::of(&mark))?;
    } else {
        screen.line(mark_text(&mark))?;
    }
    Ok(0)
}

/// `leaf leaf-3 has 50% of its bandwidth until 2026-11-24T16:00:00Z: one uplink is down (olga)`.
fn mark_text(mark: &v1::DomainMark) -> String {
    let health = match mark.health_percent {
        100 => "is marked healthy".to_owned(),
        0 => "takes no gang of several nodes".to_owned(),
        n => format!("has {n}% of its bandwidth"),
    };
    let until = mark.until_unix_ms.map(|t| format!(" until {}", tessera_model::UnixMillis(t)));
    let reason = if mark.reason.is_empty() { "" } else { ": " };
    let text = format!(
        "{} {} {health}{}{reason}{} ({})",
        mark.level,
        mark.domain,
        until.unwrap_or_default(),
        mark.reason,
        mark.by
    );
    printable(&text).into_owned()
}

async fn load(api: &Api, args: &LoadArgs, screen: &Screen) -> Outcome<u8> {
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| Failure::file("read the map", &args.file, &error))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(
            format!(
                "{} has {} bytes, {FILE_BYTES_MAX} may be sent",
                args.file.display(),
                text.len()
            ),
            "put it beside the scheduler and name it with `topology` in scheduler.toml",
        ));
    }
    // Its path is what errors name, line by line.
    let name = args.file.display().to_string();
    let text = v1::TopologyText { name, text };
    let request = &v1::LoadTopologyRequest {
        map: Some(v1::load_topology_request::Map::Text(text)),
        allow_unknown: args.allow_unknown,
        drop_nodes: args.drop_nodes,
        dry_run: args.dry_run,
    };
    // The same map twice is one map.
    let reply =
        api.ask(|api| async move { api.admin().load_topology(request.clone()).await }).await?;
    for warning in &reply.warnings {
        screen.warning(warning);
    }
    if screen.json {
        screen.json(&LoadView {
            changed: reply.changed,
            nodes: reply.nodes,
            levels: &reply.levels,
            warnings: &reply.warnings,
        })?;
        return Ok(0);
    }
    let what = format!("{} at {}", count(reply.nodes.into(), "node"), reply.levels.join(", "));
    screen.line(match (args.dry_run, reply.changed) {
        (true, _) => format!("the map could be put in force: {what}"),
        (false, true) => format!("the map is in force: {what}"),
        (false, false) => format!("the map was in force already: {what}"),
    })?;
    Ok(0)
}

#[derive(Debug, Serialize)]
struct LoadView<'a> {
    changed: bool,
    nodes: u32,
    levels: &'a [String],
    warnings: &'a [String],
}

#[derive(Debug, Serialize)]
pub struct TopologyView<'a> {
    /// Of the first fabric, widest first.
    levels: &'a [String],
    nodes: Vec<PathView<'a>>,
    fabrics: Vec<FabricView<'a>>,
    domains: Vec<DomainView<'a>>,
    marks: Vec<MarkView<'a>>,
    doubts: Vec<DoubtView<'a>>,
}

#[derive(Debug, Serialize)]
struct PathView<'a> {
    node: &'a str,
    /// By level, of all fabrics; empty: the node is not in the map.
    domains: BTreeMap<&'a str, &'a str>,
}

#[derive(Debug, Serialize)]
struct FabricView<'a> {
    name: &'a str,
    /// Widest first.
    levels: &'a [String],
}

#[derive(Debug, Serialize)]
struct DomainView<'a> {
    level: &'a str,
    domain: &'a str,
    nodes: u32,
    nodes_up: u32,
    gpus: u32,
    gpus_free: u32,
}

#[derive(Debug, Serialize)]
struct MarkView<'a> {
    level: &'a str,
    domain: &'a str,
    health_percent: u32,
    by: &'a str,
    reason: &'a str,
    until: Option<String>,
}

impl<'a> MarkView<'a> {
    fn of(m: &'a v1::DomainMark) -> Self {
        Self {
            level: &m.level,
            domain: &m.domain,
            health_percent: m.health_percent,
            by: &m.by,
            reason: &m.reason,
            until: m.until_unix_ms.map(|t| tessera_model::UnixMillis(t).rfc3339()),
        }
    }
}

#[derive(Debug, Serialize)]
struct DoubtView<'a> {
    node: &'a str,
    text: &'a str,
}

impl<'a> DoubtView<'a> {
    fn of(d: &'a v1::MapDoubt) -> Self {
        Self { node: &d.node, text: &d.text }
    }
}

impl<'a> TopologyView<'a> {
    pub fn of(reply: &'a v1::TopologyReply) -> Self {
        let mut nodes: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
        for fabric in &reply.fabrics {
            for path in &fabric.nodes {
                let levels = fabric.levels.iter().map(String::as_str);
                let domains = levels.zip(path.domains.iter().map(String::as_str));
                nodes.entry(&path.node).or_default().extend(domains);
            }
        }
        for node in &reply.unplaced {
            nodes.entry(node).or_default();
        }
        Self {
            levels: reply.fabrics.first().map_or(&[], |f| &f.levels),
            nodes: nodes.into_iter().map(|(node, domains)| PathView { node, domains }).collect(),
            fabrics: reply
                .fabrics
                .iter()
                .map(|f| FabricView { name: &f.name, levels: &f.levels })
                .collect(),
            domains: reply
                .domains
                .iter()
                .map(|d| DomainView {
                    level: &d.level,
                    domain: &d.domain,
                    nodes: d.nodes,
                    nodes_up: d.nodes_up,
                    gpus: d.gpus,
                    gpus_free: d.gpus_free,
                })
                .collect(),
            marks: reply.marks.iter().map(MarkView::of).collect(),
            doubts: reply.doubts.iter().map(DoubtView::of).collect(),
        }
    }
}

/// A domain: its narrower ones, or at the end its nodes.
#[derive(Default)]
struct Branch<'a> {
    branches: BTreeMap<&'a str, Branch<'a>>,
    nodes: Vec<&'a str>,
}

impl Branch<'_> {
    fn size(&self) -> usize {
        self.nodes.len() + self.branches.values().map(Branch::size).sum::<usize>()
    }
}

/// What is said beside each domain's name.
struct Remarks<'a> {
    counts: BTreeMap<(&'a str, &'a str), &'a v1::DomainCount>,
    marks: BTreeMap<(&'a str, &'a str), &'a v1::DomainMark>,
}

impl Remarks<'_> {
    fn text(&self, level: &str, domain: &str, nodes: usize) -> String {
        let mut text = count(nodes as u64, "node");
        if let Some(known) = self.counts.get(&(level, domain)) {
            if known.nodes_up < known.nodes {
                text.push_str(&format!(", {} up", known.nodes_up));
            }
            text.push_str(&format!(", {} of {} GPUs free", known.gpus_free, known.gpus));
        }
        if let Some(mark) = self.marks.get(&(level, domain)) {
            text.push_str(&format!(", health {}%", mark.health_percent));
            if !mark.reason.is_empty() {
                text.push_str(&format!(": {}", printable(&mark.reason)));
            }
        }
        text
    }
}

pub fn tree(reply: &v1::TopologyReply, screen: &Screen) -> String {
    let remarks = Remarks {
        counts: reply.domains.iter().map(|d| ((d.level.as_str(), d.domain.as_str()), d)).collect(),
        marks: reply.marks.iter().map(|m| ((m.level.as_str(), m.domain.as_str()), m)).collect(),
    };
    let mut out = String::new();
    if reply.fabrics.is_empty() {
        out.push_str("no topology is known: every node stands beside every other\n");
    }
    let is_plain = reply.fabrics.len() == 1 && reply.fabrics[0].name == "net";
    for fabric in &reply.fabrics {
        let mut root = Branch::default();
        for node in &fabric.nodes {
            let branch = node
                .domains
                .iter()
                .fold(&mut root, |b, domain| b.branches.entry(domain.as_str()).or_default());
            branch.nodes.push(&node.node);
        }
        let name = if is_plain { String::new() } else { format!("{}: ", printable(&fabric.name)) };
        out.push_str(&format!("{name}levels, widest first: {}\n", fabric.levels.join(", ")));
        draw(&root, &fabric.levels, "", &remarks, screen, &mut out);
    }
    if !reply.unplaced.is_empty() {
        out.push_str(&format!("not in the map: {}\n", printable(&reply.unplaced.join(" "))));
    }
    out
}

fn draw(
    branch: &Branch<'_>,
    levels: &[String],
    indent: &str,
    remarks: &Remarks<'_>,
    screen: &Screen,
    out: &mut String,
) {
    let (tee, elbow, bar) =
        if screen.unicode { ("├─ ", "└─ ", "│  ") } else { ("|- ", "`- ", "|  ") };
    let level = levels.first().map_or("", String::as_str);
    let last = branch.branches.len().saturating_sub(1);
    for (i, (name, inner)) in branch.branches.iter().enumerate() {
        let (mark, below) = if i == last { (elbow, "   ") } else { (tee, bar) };
        let remark = remarks.text(level, name, inner.size());
        out.push_str(&format!("{indent}{mark}{level} {}  {remark}\n", printable(name)));
        let indent = format!("{indent}{below}");
        draw(inner, levels.get(1..).unwrap_or_default(), &indent, remarks, screen, out);
    }
    if !branch.nodes.is_empty() {
        let width = screen.width.saturating_sub(indent.chars().count() + 3).max(20);
        for line in wrap(&branch.nodes.join(" "), width) {
            out.push_str(&format!("{indent}   {}\n", printable(&line)));
        }
    }
}
