//! A packing rule as a policy of the replay.
//!
//! In: submissions and ends. Out: starts, each on one node, as the rule chooses. What does not fit
//! waits until the driver withdraws it or something ends; whatever fits starts, in order of arrival.

use std::collections::BTreeMap;

use tessera_core::placement::packing::{Ask, Devices, Kind, Left, WHOLE};
use tessera_model::UnixMillis;

use super::{BestFit, Fgd, FirstFit, Rule, Waste};
use crate::trace::{JobIndex, Node, Placed, Policy, Request, Start, Submission, Workload};

/// The rules, by the name the command line has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    FirstFit,
    BestFit,
    Fgd,
    Waste,
}

impl Packing {
    pub const ALL: [Self; 4] = [Self::FirstFit, Self::BestFit, Self::Fgd, Self::Waste];

    pub fn word(self) -> &'static str {
        match self {
            Self::FirstFit => "first-fit",
            Self::BestFit => "best-fit",
            Self::Fgd => "fgd",
            Self::Waste => "tessera",
        }
    }
}

/// The rule at work on this workload's nodes, in their order. `None` where some job wants several
/// nodes, more devices than a node here can have, or shares of several devices: these rules place
/// single nodes.
pub fn policy(rule: Packing, workload: &Workload) -> Option<Box<dyn Policy>> {
    let map = Map::of(&workload.nodes)?;
    if workload.jobs.iter().any(|job| map.ask(&job.request).is_none()) {
        return None;
    }
    let rule: Box<dyn Rule> = match rule {
        Packing::FirstFit => Box::new(FirstFit),
        Packing::BestFit => Box::new(BestFit::new(&map.kinds)),
        Packing::Fgd => {
            let typical = workload.typical.iter();
            let asks = typical.filter_map(|(r, count)| Some((map.ask(r)?, *count)));
            Box::new(Fgd::new(&asks.collect::<Vec<_>>()))
        }
        Packing::Waste => Box::new(Waste::new(&map.kinds, &map.nodes)),
    };
    let Map { models, nodes, .. } = map;
    Some(Box::new(Packers {
        rule,
        models,
        nodes,
        waiting: BTreeMap::new(),
        running: BTreeMap::new(),
    }))
}

struct Packers {
    rule: Box<dyn Rule>,
    models: Vec<String>,
    nodes: Vec<Left>,
    waiting: BTreeMap<JobIndex, Ask>,
    running: BTreeMap<JobIndex, (Ask, usize, u64)>,
}

impl Policy for Packers {
    fn name(&self) -> &'static str {
        self.rule.name()
    }

    fn submitted(&mut self, _now: UnixMillis, submission: &Submission) {
        let ask = ask(&submission.request, &self.models);
        let ask = ask.expect("policy() looked at every request of the workload");
        self.waiting.insert(submission.job, ask);
    }

    fn ended(&mut self, _now: UnixMillis, job: JobIndex) {
        if let Some((ask, node, devices)) = self.running.remove(&job) {
            self.nodes[node].give(&ask, devices);
            self.rule.changed(node, &self.nodes[node]);
        }
    }

    fn withdrawn(&mut self, _now: UnixMillis, job: JobIndex) {
        self.waiting.remove(&job);
    }

    fn starts(&mut self, _now: UnixMillis) -> Vec<Start> {
        let mut starts = Vec::new();
        for (job, ask) in std::mem::take(&mut self.waiting) {
            let Some((node, devices)) = self.rule.choose(&ask, &self.nodes) else {
                self.waiting.insert(job, ask);
                continue;
            };
            self.nodes[node].take(&ask, devices);
            self.rule.changed(node, &self.nodes[node]);
            self.running.insert(job, (ask, node, devices));
            let devices = (0..64).filter(|bit| devices >> bit & 1 == 1).collect();
            starts.push(Start { job, places: vec![Placed { node, devices }] });
        }
        starts
    }
}

/// The workload's nodes as packing sees them.
struct Map {
    kinds: Vec<Kind>,
    /// By kind.
    models: Vec<String>,
    nodes: Vec<Left>,
}

impl Map {
    fn of(nodes: &[Node]) -> Option<Self> {
        let mut map = Self { kinds: Vec::new(), models: Vec::new(), nodes: Vec::new() };
        for node in nodes {
            let kind = Kind {
                cpus: u32::try_from(node.cpu_milli).unwrap_or(u32::MAX),
                memory: node.memory_mib,
                gpus: u16::try_from(node.gpus).ok()?,
            };
            let known = map.kinds.iter().zip(&map.models);
            let at = known.clone().position(|(k, m)| *k == kind && *m == node.model);
            let at = at.unwrap_or(map.kinds.len());
            if at == map.kinds.len() {
                map.kinds.push(kind.clone());
                map.models.push(node.model.clone());
            }
            map.nodes.push(Left {
                kind: u16::try_from(at).ok()?,
                cpus: kind.cpus,
                memory: kind.memory,
                gpus: Devices::new(&vec![WHOLE; usize::from(kind.gpus)])?,
            });
        }
        Some(map)
    }

    fn ask(&self, request: &Request) -> Option<Ask> {
        ask(request, &self.models)
    }
}

/// `models`: of each kind.
fn ask(request: &Request, models: &[String]) -> Option<Ask> {
    let milli = u16::try_from(request.gpu_milli).ok()?;
    let share = request.gpus > 0 && milli < WHOLE;
    if request.nodes != 1 || milli > WHOLE || (share && request.gpus > 1) {
        return None;
    }
    // A job that needs no GPU does not care which there are.
    let choosy = request.gpus > 0 && !request.models.is_empty();
    let liked = |kind: &u16| request.likes(&models[usize::from(*kind)]);
    Some(Ask {
        gpus: u16::try_from(request.gpus).ok()?,
        milli,
        cpus: u32::try_from(request.cpu_milli).ok()?,
        memory: request.memory_mib,
        kinds: choosy.then(|| (0..models.len() as u16).filter(liked).collect()),
    })
}
