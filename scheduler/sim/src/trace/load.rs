//! From files and options to a workload.
//!
//! In: paths, and what the person chose. Out: a [`Workload`], or what does not go together.

use std::path::{Path, PathBuf};

use super::error::TraceError;
use super::read::{export, jobs, nodes, openb};
use super::table::Table;
use super::workload::{Job, Kind, Node, Request, Workload, typical};
use crate::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Pods with shares of GPUs; packing without departures.
    Openb,
    Itp,
    Philly,
    /// What `tessera queue --all --json` prints.
    Tessera,
}

impl Format {
    pub const ALL: [Self; 4] = [Self::Openb, Self::Itp, Self::Philly, Self::Tessera];

    pub fn word(self) -> &'static str {
        match self {
            Self::Openb => "openb",
            Self::Itp => "itp",
            Self::Philly => "philly",
            Self::Tessera => "tessera",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.word() == word)
    }

    /// From the file itself. ITP and Philly have the same columns, and mean the same by them.
    pub fn detect(path: &Path) -> Result<Self, TraceError> {
        if export::is_json(path)? {
            return Ok(Self::Tessera);
        }
        let table = Table::open(path)?;
        if table.has("submit_s") || table.has("num_gpus") {
            return Ok(Self::Itp);
        }
        // The openb reader says best what is missing.
        Ok(Self::Openb)
    }
}

/// Levels, nodes, and what there is to remark.
type Listed = (Vec<String>, Vec<Node>, Vec<String>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodesFrom {
    File(PathBuf),
    /// So many nodes of so many GPUs.
    Count(usize, u32),
}

impl NodesFrom {
    /// `N:GPUS`, else a file. A file that is called so wins.
    pub fn parse(text: &str) -> Self {
        match nodes::parse_count(text) {
            Some((count, gpus)) if !Path::new(text).exists() => Self::Count(count, gpus),
            _ => Self::File(text.into()),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub jobs: PathBuf,
    pub nodes: Option<NodesFrom>,
    pub topology: Option<PathBuf>,
    pub format: Option<Format>,
    /// Of a raw pod list; [`SEED`](Self::SEED) without it.
    pub seed: Option<u64>,
    /// Of a raw pod list; [`INFLATE`](Self::INFLATE) without it.
    pub inflate: Option<f64>,
    /// One virtual cluster of a job trace.
    pub cluster: Option<String>,
    /// Choose the number of nodes for this load.
    pub load: Option<f64>,
    /// Of a job trace; 1 without it.
    pub limit_factor: Option<f64>,
}

impl Source {
    pub const SEED: u64 = 42;
    pub const INFLATE: f64 = 1.3;

    pub fn new(jobs: impl Into<PathBuf>) -> Self {
        Self {
            jobs: jobs.into(),
            nodes: None,
            topology: None,
            format: None,
            seed: None,
            inflate: None,
            cluster: None,
            load: None,
            limit_factor: None,
        }
    }

    pub fn load(&self) -> Result<Workload, TraceError> {
        let format = match self.format {
            Some(format) => format,
            None => Format::detect(&self.jobs)?,
        };
        let sound = |x: f64, least: f64, most: f64| x.is_finite() && (least..=most).contains(&x);
        let (inflate, limit_factor) =
            (self.inflate.unwrap_or(Self::INFLATE), self.limit_factor.unwrap_or(1.0));
        if !sound(inflate, 1.0, 100.0) {
            return Err(TraceError::mismatch(
                format!("--inflate {inflate} makes no sense"),
                "give 1 (the list as it is) to 100",
            ));
        }
        if !sound(limit_factor, 1.0, 1_000.0) {
            return Err(TraceError::mismatch(
                format!("--limit-factor {limit_factor} makes no sense"),
                "a time limit is at least the job's length: give 1 to 1000",
            ));
        }
        if self.load.is_some_and(|l| !sound(l, 0.01, 10.0)) {
            return Err(TraceError::mismatch(
                "--load makes no sense",
                "give 0.01 to 10, such as 0.9",
            ));
        }
        let mut workload = match format {
            Format::Openb => self.openb(inflate)?,
            Format::Itp | Format::Philly => self.queue_trace(limit_factor)?,
            Format::Tessera => self.own()?,
        };
        workload.remarks.extend(self.idle_options(&workload));
        Ok(workload)
    }

    /// Options that were given and play no part, in a sentence.
    fn idle_options(&self, workload: &Workload) -> Option<String> {
        let mut idle = Vec::new();
        if workload.shuffled.is_none() {
            idle.extend(self.seed.map(|_| "--seed"));
            idle.extend(self.inflate.map(|_| "--inflate"));
        }
        if workload.kind == Kind::Packing {
            idle.extend(self.limit_factor.map(|_| "--limit-factor"));
        }
        let what = match workload.kind {
            Kind::Packing => "the list has its order and no time",
            Kind::Queue => "the trace has its times",
        };
        (!idle.is_empty()).then(|| format!("{what}, so {} plays no part", idle.join(" or ")))
    }

    fn openb(&self, inflate: f64) -> Result<Workload, TraceError> {
        if let Some(option) =
            [self.cluster.is_some().then_some("--cluster"), self.load.is_some().then_some("--load")]
                .into_iter()
                .flatten()
                .next()
        {
            return Err(TraceError::mismatch(
                format!("{option} is for job traces, and openb lists have no time"),
                "leave it out",
            ));
        }
        let (levels, mut nodes, remarks) = self.nodes()?.ok_or_else(|| {
            TraceError::mismatch(
                "a pod list needs nodes",
                "give `--nodes FILE` or `--nodes N:GPUS`",
            )
        })?;
        let pods = openb::read(&self.jobs)?;
        // As published: of the list before it is inflated, and without regard to memory.
        let shapes: Vec<Request> =
            pods.pods.iter().map(|(_, r)| Request { memory_mib: 0, ..r.clone() }).collect();
        let typical = typical(shapes.iter());
        let seed = self.seed.unwrap_or(Self::SEED);
        let shuffled = pods.seq.is_none().then_some((seed, inflate));
        if shuffled.is_some() {
            // As published: ties between nodes fall to an order that is random and stays.
            Rng::new(!seed).shuffle(&mut nodes);
        }
        let capacity: u64 = nodes.iter().map(|n| u64::from(n.gpus) * 1_000).sum();
        let jobs = openb::arrivals(pods, seed, inflate, capacity)?;
        finish(Workload { kind: Kind::Packing, levels, nodes, jobs, typical, shuffled, remarks })
    }

    fn queue_trace(&self, limit_factor: f64) -> Result<Workload, TraceError> {
        let rows = jobs::read(&self.jobs, self.cluster.as_deref())?;
        let (levels, nodes, remarks) = match (self.nodes()?, self.load) {
            (Some((levels, mut nodes, mut remarks)), Some(load)) => {
                let per_node = nodes.iter().map(|n| n.gpus).max().unwrap_or(0).max(1);
                let wanted = jobs::nodes_for_load(&rows, load, per_node)?;
                if wanted > nodes.len() {
                    return Err(TraceError::mismatch(
                        format!("a load of {load} needs {wanted} nodes, there are {}", nodes.len()),
                        "give a higher --load, or more nodes",
                    ));
                }
                remarks.push(format!("the first {wanted} of {} nodes make the load", nodes.len()));
                nodes.truncate(wanted);
                (levels, nodes, remarks)
            }
            (Some(found), None) => found,
            (None, Some(load)) => {
                (Vec::new(), nodes::alike(jobs::nodes_for_load(&rows, load, 8)?, 8), Vec::new())
            }
            (None, None) => {
                return Err(TraceError::mismatch(
                    "a job trace needs nodes",
                    "give `--load 0.9` (nodes of 8 GPUs for that load), `--nodes N:GPUS` or a file",
                ));
            }
        };
        let per_node = nodes.iter().map(|n| n.gpus).max().unwrap_or(0).max(1);
        let jobs = jobs::jobs(rows, per_node, limit_factor);
        finish(queue(levels, nodes, jobs, remarks))
    }

    fn own(&self) -> Result<Workload, TraceError> {
        if self.load.is_some() || self.cluster.is_some() {
            return Err(TraceError::mismatch(
                "--load and --cluster are for the published job traces",
                "leave them out: an export knows its nodes",
            ));
        }
        let (levels, nodes, mut remarks) = match &self.nodes {
            Some(NodesFrom::File(path)) if export::is_json(path)? => {
                let (mut levels, mut nodes) = export::read_nodes(path)?;
                let mut remarks = Vec::new();
                if let Some(topology) = &self.topology {
                    let map = nodes::read_map(topology)?;
                    remarks.extend(map.place(&mut nodes)?);
                    levels = map.levels;
                }
                (levels, nodes, remarks)
            }
            _ => self.nodes()?.ok_or_else(|| {
                TraceError::mismatch(
                    "an export needs nodes",
                    "write them with `tessera nodes --json` and give that file as --nodes",
                )
            })?,
        };
        let (jobs, more) = export::read_jobs(&self.jobs, &nodes)?;
        remarks.extend(more);
        if self.limit_factor.is_some() {
            remarks.push("an export has time limits, so --limit-factor plays no part".to_owned());
        }
        finish(queue(levels, nodes, jobs, remarks))
    }

    /// Levels, nodes and remarks; `None` when nothing says what nodes there are.
    fn nodes(&self) -> Result<Option<Listed>, TraceError> {
        let map = self.topology.as_deref().map(nodes::read_map).transpose()?;
        let mut found = match (&self.nodes, &map) {
            (Some(NodesFrom::File(path)), _) => {
                let table = Table::open(path)?;
                let is_map = !table.has("gpu") && (table.has("host") || table.has("node"));
                drop(table);
                if is_map {
                    let map = nodes::read_map(path)?;
                    let nodes = map.nodes(8);
                    return Ok(Some((map.levels, nodes, vec![EIGHT.to_owned()])));
                }
                nodes::read(path)?
            }
            (Some(NodesFrom::Count(count, gpus)), Some(map)) => {
                // The topology's own hosts: the first of them, neighbours together.
                let mut nodes = map.nodes(*gpus);
                if nodes.len() < *count {
                    return Err(TraceError::mismatch(
                        format!("the topology has {} hosts, not {count}", nodes.len()),
                        "ask for fewer nodes",
                    ));
                }
                nodes.truncate(*count);
                return Ok(Some((map.levels.clone(), nodes, Vec::new())));
            }
            (Some(NodesFrom::Count(count, gpus)), None) => nodes::alike(*count, *gpus),
            (None, Some(map)) => {
                return Ok(Some((map.levels.clone(), map.nodes(8), vec![EIGHT.to_owned()])));
            }
            (None, None) => return Ok(None),
        };
        let Some(map) = map else { return Ok(Some((Vec::new(), found, Vec::new()))) };
        let remarks = map.place(&mut found)?.into_iter().collect();
        Ok(Some((map.levels, found, remarks)))
    }
}

const EIGHT: &str = "the topology does not say how many GPUs a host has; 8 are taken";

fn queue(levels: Vec<String>, nodes: Vec<Node>, jobs: Vec<Job>, remarks: Vec<String>) -> Workload {
    let typical = typical(jobs.iter().map(|j| &j.request));
    Workload { kind: Kind::Queue, levels, nodes, jobs, typical, shuffled: None, remarks }
}

fn finish(workload: Workload) -> Result<Workload, TraceError> {
    if workload.total_gpus() == 0 {
        return Err(TraceError::mismatch("no node has a GPU", "give nodes with GPUs"));
    }
    workload.check_models()?;
    Ok(workload)
}
