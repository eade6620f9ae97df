//! What `--json` prints. Field names here are a contract, held by `tests/golden`.
//!
//! In: records. Out: serializable views. Times are RFC 3339 in UTC, durations end in `_ms`, money
//! is a decimal text.

use std::collections::BTreeMap;

use serde::Serialize;
use tessera_model::{
    Explanation, GpuRecord, JobId, JobRecord, NodeRecord, Strength, UnixMillis, Verdict,
};

use crate::call::JobList;

fn time(at: UnixMillis) -> String {
    at.rfc3339()
}

#[derive(Debug, Serialize)]
pub struct JobView<'a> {
    pub id: u64,
    pub name: &'a str,
    pub team: &'a str,
    pub project: &'a str,
    pub user: &'a str,
    pub state: &'static str,
    pub reason: &'a str,
    pub submitted_at: String,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub exit_code: Option<i32>,
    /// In total, over all nodes.
    pub gpus: u32,
    /// Names, in rank order; empty while it waits.
    pub nodes: Vec<&'a str>,
    pub node_count: u32,
    pub gpus_per_node: u32,
    pub tasks_per_node: u32,
    pub cpus_per_task: u32,
    pub memory_per_node_bytes: u64,
    pub gpu_model: Option<&'a str>,
    pub within: Vec<WithinView<'a>>,
    pub priority: i32,
    pub time_limit_ms: Option<u64>,
    pub requeue: bool,
    pub tags: &'a BTreeMap<String, String>,
    pub argv: &'a [String],
    pub script: Option<&'a str>,
    pub env: &'a BTreeMap<String, String>,
    pub working_dir: Option<&'a str>,
    /// `812.1`.
    pub attempt: Option<String>,
    pub cancel_requested: bool,
}

#[derive(Debug, Serialize)]
pub struct WithinView<'a> {
    pub level: &'a str,
    pub strength: &'static str,
}

impl<'a> JobView<'a> {
    pub fn of(job: &'a JobRecord) -> Self {
        let spec = &job.spec;
        Self {
            id: job.id.0,
            name: &spec.name,
            team: spec.team.as_str(),
            project: spec.project.as_str(),
            user: spec.user.as_str(),
            state: job.state.word(),
            reason: &job.reason,
            submitted_at: time(job.submitted_at),
            started_at: job.started_at.map(time),
            ended_at: job.ended_at.map(time),
            exit_code: job.exit_code,
            gpus: spec.gang.gpus(),
            nodes: job.nodes.iter().map(|n| n.as_str()).collect(),
            node_count: spec.gang.nodes,
            gpus_per_node: spec.gang.gpus_per_node,
            tasks_per_node: spec.gang.tasks_per_node,
            cpus_per_task: spec.gang.cpus_per_task,
            memory_per_node_bytes: spec.gang.memory_per_node.0,
            gpu_model: spec.gang.gpu_model.as_deref(),
            within: spec
                .within
                .iter()
                .map(|w| WithinView { level: &w.level, strength: strength_word(w.strength) })
                .collect(),
            priority: spec.priority,
            time_limit_ms: spec.time_limit.map(|t| t.0),
            requeue: spec.requeue,
            tags: &spec.tags,
            argv: &spec.program.argv,
            script: spec.program.script.as_deref(),
            env: &spec.program.env,
            working_dir: spec.program.working_dir.as_deref(),
            attempt: job.attempt.map(|a| a.to_string()),
            cancel_requested: job.cancel_requested,
        }
    }
}

pub fn strength_word(strength: Strength) -> &'static str {
    match strength {
        Strength::Required => "required",
        Strength::Preferred => "preferred",
    }
}

#[derive(Debug, Serialize)]
pub struct QueueView<'a> {
    pub jobs: Vec<JobView<'a>>,
    /// How many match; `jobs` may be the first of them.
    pub total: u64,
    pub gpus_held: u32,
    pub gpus_total: u32,
}

impl<'a> QueueView<'a> {
    pub fn of(list: &'a JobList) -> Self {
        Self {
            jobs: list.jobs.iter().map(JobView::of).collect(),
            total: list.total,
            gpus_held: list.gpus_held,
            gpus_total: list.gpus_total,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ExplainView<'a> {
    pub job: Option<u64>,
    pub verdict: &'static str,
    pub summary: &'a str,
    pub ladder: Vec<RungView<'a>>,
    pub expected_start: Option<String>,
    pub position: Option<u32>,
    pub hint: Option<&'a str>,
}

#[derive(Debug, Serialize)]
pub struct RungView<'a> {
    pub what: &'a str,
    pub need: &'a str,
    pub have: &'a str,
    pub holds: bool,
}

pub fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Started => "started",
        Verdict::Ended => "ended",
        Verdict::StartsNow => "starts_now",
        Verdict::Waits => "waits",
        Verdict::Infeasible => "infeasible",
    }
}

impl<'a> ExplainView<'a> {
    pub fn of(e: &'a Explanation) -> Self {
        Self {
            job: e.job.map(|j| j.0),
            verdict: verdict_word(e.verdict),
            summary: &e.summary,
            ladder: e
                .ladder
                .iter()
                .map(|r| RungView { what: &r.what, need: &r.need, have: &r.have, holds: r.holds })
                .collect(),
            expected_start: e.expected_start.map(time),
            position: e.position,
            hint: e.hint.as_deref(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct NodeView<'a> {
    pub name: &'a str,
    pub state: &'static str,
    pub cordon: Option<CordonView<'a>>,
    /// Domain names by level.
    pub domains: BTreeMap<&'a str, &'a str>,
    pub gpus: Vec<GpuView<'a>>,
    pub cpus: u32,
    pub cpus_held: u32,
    pub memory_bytes: u64,
    pub jobs: Vec<u64>,
    pub address: &'a str,
    pub agent_version: &'a str,
    pub driver_version: Option<&'a str>,
    pub nics: Vec<NicView<'a>>,
    pub last_seen: String,
}

#[derive(Debug, Serialize)]
pub struct CordonView<'a> {
    pub drain: bool,
    pub by: &'a str,
    pub reason: &'a str,
}

#[derive(Debug, Serialize)]
pub struct GpuView<'a> {
    pub index: u32,
    pub uuid: &'a str,
    pub model: &'a str,
    pub memory_bytes: u64,
    pub pci_bus_id: &'a str,
    pub condition: &'static str,
    /// The condition as a sentence.
    pub detail: String,
    pub held: bool,
    /// `null` when it is free, or held by a job you may not see.
    pub job: Option<u64>,
    pub team: Option<&'a str>,
    pub nvlink_group: Option<u32>,
    pub nvlink_domain: Option<&'a str>,
    pub nic: Option<&'a str>,
    pub rail: Option<u32>,
    pub numa: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct NicView<'a> {
    pub name: &'a str,
    pub speed_mbps: Option<u64>,
    pub rdma: bool,
}

impl<'a> NodeView<'a> {
    pub fn of(node: &'a NodeRecord) -> Self {
        let inventory = &node.inventory;
        let gpus = inventory.gpus.iter().zip(&node.gpus).map(|(gpu, now)| GpuView {
            index: gpu.index,
            uuid: gpu.id.as_str(),
            model: &gpu.model,
            memory_bytes: gpu.memory.0,
            pci_bus_id: &gpu.pci_bus_id,
            condition: now.condition.word(),
            detail: now.condition.to_string(),
            held: now.held_by.is_some(),
            job: told(now).map(|j| j.0),
            team: now.team.as_ref().map(|t| t.as_str()),
            nvlink_group: gpu.nvlink_group,
            nvlink_domain: gpu.nvlink_domain.as_deref(),
            nic: gpu.nic.as_deref(),
            rail: gpu.rail,
            numa: gpu.numa,
        });
        Self {
            name: inventory.node.as_str(),
            state: node.state.word(),
            cordon: node.cordon.as_ref().map(|c| CordonView {
                drain: c.drain,
                by: &c.by,
                reason: &c.reason,
            }),
            domains: node.domains.iter().map(|(l, n)| (l.as_str(), n.as_str())).collect(),
            gpus: gpus.collect(),
            cpus: inventory.cpus,
            cpus_held: node.cpus_held,
            memory_bytes: inventory.memory.0,
            jobs: jobs_on(node),
            address: &inventory.address,
            agent_version: &inventory.agent_version,
            driver_version: inventory.driver_version.as_deref(),
            nics: inventory
                .nics
                .iter()
                .map(|n| NicView { name: &n.name, speed_mbps: n.speed_mbps, rdma: n.rdma })
                .collect(),
            last_seen: time(node.last_seen),
        }
    }
}

/// The job that holds a GPU, unless it is one that the caller may not know of: that has no number.
pub fn told(gpu: &GpuRecord) -> Option<JobId> {
    gpu.held_by.filter(|job| job.0 != 0)
}

/// Jobs that hold a GPU there, each once, as far as the caller may know of them.
pub fn jobs_on(node: &NodeRecord) -> Vec<u64> {
    let held: std::collections::BTreeSet<u64> =
        node.gpus.iter().filter_map(|g| told(g).map(|j| j.0)).collect();
    held.into_iter().collect()
}
