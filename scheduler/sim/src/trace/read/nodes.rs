//! Nodes: the openb list, `N:GPUS`, and a topology that names hosts and their switches.
//!
//! In: a file or a few numbers. Out: nodes with what they have and where they stand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::error::TraceError;
use super::super::table::{Column, Table};
use super::super::workload::{BOUNDLESS, Node};
use super::{GPUS_PER_NODE_MAX, NODES_MAX};

const OPENB: &str =
    "a node list has the columns sn, cpu_milli, memory_mib, gpu, model (and `--nodes` takes it)";

/// Levels and, by host, its domain at each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Map {
    /// Widest first.
    pub levels: Vec<String>,
    /// In the order of the file.
    pub hosts: Vec<(String, Vec<String>)>,
}

/// Reads `sn,cpu_milli,memory_mib,gpu,model`.
pub fn read(path: &Path) -> Result<Vec<Node>, TraceError> {
    let mut table = Table::open(path)?;
    if !table.has("sn") && (table.has("num_gpu") || table.has("num_gpus")) {
        return Err(TraceError::mismatch(
            format!("{} lists jobs, where nodes are expected", path.display()),
            "were the files of --nodes and --jobs swapped?",
        ));
    }
    let [sn, cpu, memory, gpu, model] =
        ["sn", "cpu_milli", "memory_mib", "gpu", "model"].map(|name| table.column(name, OPENB));
    let (sn, cpu, memory, gpu, model) = (sn?, cpu?, memory?, gpu?, model?);
    let mut nodes: Vec<Node> = Vec::new();
    let mut seen = BTreeSet::new();
    while table.advance()? {
        let name = table.text(&sn).to_owned();
        if name.is_empty() {
            return Err(table.value(&sn, "a node's name"));
        }
        if !seen.insert(name.clone()) {
            return Err(table.row_error(format!("node {name} stands there twice"), ONE_ROW));
        }
        if nodes.len() == NODES_MAX {
            return Err(table.row_error(format!("more than {NODES_MAX} nodes"), "split the list"));
        }
        let gpus = small(table.number(&gpu, GPUS_PER_NODE_MAX)?);
        nodes.push(Node {
            name,
            cpu_milli: table.number(&cpu, 1 << 40)?,
            memory_mib: table.number(&memory, 1 << 40)?,
            gpus,
            model: if gpus == 0 { String::new() } else { table.text(&model).to_owned() },
            path: Vec::new(),
        });
    }
    Ok(nodes)
}

const ONE_ROW: &str = "keep one row for each node";

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `N:GPUS`: that many nodes of that many GPUs, and of nothing else in particular.
pub fn parse_count(text: &str) -> Option<(usize, u32)> {
    let (nodes, gpus) = text.split_once(':')?;
    let (nodes, gpus) = (nodes.parse::<usize>().ok()?, gpus.parse::<u32>().ok()?);
    let sound = (1..=NODES_MAX).contains(&nodes) && (1..=64).contains(&gpus);
    sound.then_some((nodes, gpus))
}

pub fn alike(count: usize, gpus: u32) -> Vec<Node> {
    let width = count.saturating_sub(1).to_string().len();
    (0..count).map(|i| plain(format!("node-{i:0width$}"), gpus)).collect()
}

fn plain(name: String, gpus: u32) -> Node {
    let (cpu_milli, memory_mib) = (BOUNDLESS, BOUNDLESS);
    Node { name, cpu_milli, memory_mib, gpus, model: String::new(), path: Vec::new() }
}

/// Reads hosts and their switches: a column of hosts and one column for each level. The widest
/// level is the one with the fewest names. A switch's name may be used again under another parent,
/// as on real sites, so a domain is called by its whole path.
pub fn read_map(path: &Path) -> Result<Map, TraceError> {
    const HINT: &str =
        "a topology has a column host (or node, sn), and one column for each level of switches";
    let mut table = Table::open(path)?;
    let host = ["host", "node", "sn"].iter().find_map(|name| table.optional(name));
    let host = host.map_or_else(|| table.column("host", HINT), Ok)?;
    let columns: Vec<(String, Column)> = table
        .headers()
        .iter()
        .filter(|h| !["host", "node", "sn"].contains(&h.as_str()))
        .filter_map(|h| Some((h.clone(), table.optional(h)?)))
        .collect();
    if columns.is_empty() {
        return Err(TraceError::mismatch(
            format!("{} names hosts, and no switches", path.display()),
            HINT,
        ));
    }
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut seen = BTreeSet::new();
    while table.advance()? {
        let name = table.text(&host).to_owned();
        if name.is_empty() {
            return Err(table.value(&host, "a host's name"));
        }
        if !seen.insert(name.clone()) {
            return Err(table.row_error(format!("host {name} stands there twice"), ONE_ROW));
        }
        if rows.len() == NODES_MAX {
            return Err(table.row_error(format!("more than {NODES_MAX} hosts"), "split the list"));
        }
        for (_, column) in &columns {
            if table.text(column).is_empty() {
                return Err(table.value(column, "the name of a switch"));
            }
        }
        let path = columns.iter().map(|(_, c)| table.text(c).to_owned()).collect();
        rows.push((name, path));
    }
    let names = columns.into_iter().map(|(name, _)| name).collect();
    Ok(order_levels(names, rows))
}

/// Puts levels with the fewest domains first, and calls each domain by its path.
pub fn order_levels(names: Vec<String>, rows: Vec<(String, Vec<String>)>) -> Map {
    let distinct = |i: usize| rows.iter().map(|(_, path)| &path[i]).collect::<BTreeSet<_>>().len();
    let mut order: Vec<usize> = (0..names.len()).collect();
    // Of two levels with as many names the later column is the wider: hosts stand on the left.
    order.sort_by_key(|i| (distinct(*i), std::cmp::Reverse(*i)));
    let hosts = rows
        .into_iter()
        .map(|(host, path)| {
            let mut full = String::new();
            let whole = order.iter().map(|i| {
                if !full.is_empty() {
                    full.push('/');
                }
                full.push_str(&path[*i]);
                full.clone()
            });
            (host, whole.collect())
        })
        .collect();
    Map { levels: order.iter().map(|i| names[*i].clone()).collect(), hosts }
}

impl Map {
    /// Its hosts as nodes of `gpus` GPUs, neighbours beside each other.
    pub fn nodes(&self, gpus: u32) -> Vec<Node> {
        let mut hosts = self.hosts.clone();
        hosts.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
        hosts.into_iter().map(|(name, path)| Node { path, ..plain(name, gpus) }).collect()
    }

    /// Gives nodes their places. A node that is not in the map stands nowhere; that is told.
    pub fn place(&self, nodes: &mut [Node]) -> Result<Option<String>, TraceError> {
        let by_name: BTreeMap<&str, &Vec<String>> =
            self.hosts.iter().map(|(name, path)| (name.as_str(), path)).collect();
        let mut missing = 0;
        for node in nodes.iter_mut() {
            match by_name.get(node.name.as_str()) {
                Some(path) => node.path = (*path).clone(),
                None => missing += 1,
            }
        }
        if missing == nodes.len() {
            return Err(TraceError::mismatch(
                "the topology names none of the nodes",
                "the names in both files must be the same; without --nodes the topology's hosts are taken",
            ));
        }
        Ok((missing > 0).then(|| format!("{missing} nodes are not in the topology")))
    }
}
