//! What `--json` prints. Field names here are a contract, held by `tests/golden`.
//!
//! In: records. Out: serializable views. Times are RFC 3339 in UTC, durations end in `_ms`, money
//! is a decimal text.

use std::collections::BTreeMap;

use serde::Serialize;
use tessera_model::{
    Certificate, Counterfactual, Explanation, Gang, GpuRecord, JobId, JobRecord, LabelOp,
    NodeRecord, Optimality, Placement, Strength, UnixMillis, Verdict,
};

use crate::call::JobList;
use crate::wishes;

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
    /// Thousandths of each GPU.
    pub gpu_milli: u32,
    /// As in `placement`, for readers of the first release.
    pub within: Vec<WithinView<'a>>,
    pub placement: PlacementView<'a>,
    pub roles: Vec<RoleView<'a>>,
    pub min_nodes: Option<u32>,
    pub spares: u32,
    pub tier: &'static str,
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
    pub held: bool,
    pub array: Option<ArrayView>,
    pub begin: Option<String>,
    pub after: Vec<AfterView>,
    pub singleton: bool,
    pub reservation: Option<&'a str>,
    pub checkpoint: Option<CheckpointView<'a>>,
    /// When it was first able to start.
    pub eligible_at: Option<String>,
    /// The latest start it was promised.
    pub promised_at: Option<String>,
    pub last_checkpoint_at: Option<String>,
    pub preemptions: u32,
    /// Of its present or last place; not in lists.
    pub certificate: Option<CertificateView<'a>>,
}

#[derive(Debug, Serialize)]
pub struct ArrayView {
    /// Id of the array's first task.
    pub id: u64,
    pub index: u32,
}

#[derive(Debug, Serialize)]
pub struct AfterView {
    pub job: u64,
    pub kind: &'static str,
}

#[derive(Debug, Serialize)]
pub struct CheckpointView<'a> {
    pub signal: Option<i32>,
    pub notice_ms: u64,
    pub restart_cost_ms: u64,
    pub file: Option<&'a str>,
    pub migratable: bool,
}

#[derive(Debug, Serialize)]
pub struct RoleView<'a> {
    pub name: &'a str,
    pub node_count: u32,
    pub gpus_per_node: u32,
    pub tasks_per_node: u32,
    pub cpus_per_task: u32,
    pub memory_per_node_bytes: u64,
    pub gpu_model: Option<&'a str>,
    pub gpu_milli: u32,
    pub placement: PlacementView<'a>,
}

#[derive(Debug, Serialize)]
pub struct PlacementView<'a> {
    pub within: Vec<WithinView<'a>>,
    pub slices: Vec<SliceView<'a>>,
    pub at_most: Vec<AtMostView<'a>>,
    pub spread: Vec<SpreadView<'a>>,
    pub balance: Option<&'a str>,
    pub patience_ms: Option<u64>,
    pub select: Vec<LabelView<'a>>,
    pub nodelist: Vec<&'a str>,
    pub exclude: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
pub struct SliceView<'a> {
    pub nodes: u32,
    pub level: &'a str,
    pub strength: &'static str,
}

#[derive(Debug, Serialize)]
pub struct AtMostView<'a> {
    pub domains: u32,
    pub level: &'a str,
}

#[derive(Debug, Serialize)]
pub struct SpreadView<'a> {
    pub level: &'a str,
    pub max_skew: u32,
}

#[derive(Debug, Serialize)]
pub struct LabelView<'a> {
    pub key: &'a str,
    /// in, not_in, exists, absent.
    pub op: &'static str,
    pub values: &'a [String],
}

impl<'a> PlacementView<'a> {
    pub fn of(placement: &'a Placement) -> Self {
        let strength = strength_word;
        Self {
            within: within(placement),
            slices: placement
                .slices
                .iter()
                .map(|s| SliceView {
                    nodes: s.nodes,
                    level: &s.level,
                    strength: strength(s.strength),
                })
                .collect(),
            at_most: placement
                .at_most
                .iter()
                .map(|a| AtMostView { domains: a.domains, level: &a.level })
                .collect(),
            spread: placement
                .spread
                .iter()
                .map(|s| SpreadView { level: &s.level, max_skew: s.max_skew })
                .collect(),
            balance: placement.balance.as_deref(),
            patience_ms: placement.patience.map(|p| p.0),
            select: placement
                .labels
                .iter()
                .map(|l| LabelView { key: &l.key, op: op_word(l.op), values: &l.values })
                .collect(),
            nodelist: placement.only.iter().map(|n| n.as_str()).collect(),
            exclude: placement.exclude.iter().map(|n| n.as_str()).collect(),
        }
    }
}

fn within(placement: &Placement) -> Vec<WithinView<'_>> {
    let all = placement.within.iter();
    all.map(|w| WithinView { level: &w.level, strength: strength_word(w.strength) }).collect()
}

fn op_word(op: LabelOp) -> &'static str {
    match op {
        LabelOp::In => "in",
        LabelOp::NotIn => "not_in",
        LabelOp::Exists => "exists",
        LabelOp::Absent => "absent",
    }
}

/// What was proved of a place when it was chosen.
#[derive(Debug, Serialize)]
pub struct CertificateView<'a> {
    /// Of the cluster's state it was found in.
    pub revision: u64,
    /// optimal or bound.
    pub optimality: &'static str,
    /// At most so many percent more domains than the least possible; `null` when optimal.
    pub bound_percent: Option<u32>,
    pub spans: Vec<SpanView<'a>>,
    /// Preferred wishes that were not kept.
    pub given_up: &'a [String],
}

#[derive(Debug, Serialize)]
pub struct SpanView<'a> {
    pub level: &'a str,
    pub domains: u32,
    /// Least possible in that state.
    pub least: u32,
}

impl<'a> CertificateView<'a> {
    pub fn of(certificate: &'a Certificate) -> Self {
        let (optimality, bound_percent) = match certificate.optimality {
            Optimality::Optimal => ("optimal", None),
            Optimality::Bound { percent } => ("bound", Some(percent)),
        };
        let spans = certificate.spans.iter();
        Self {
            revision: certificate.revision.0,
            optimality,
            bound_percent,
            spans: spans
                .map(|s| SpanView { level: &s.level, domains: s.domains, least: s.least })
                .collect(),
            given_up: &certificate.given_up,
        }
    }
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
            gpus: spec.gpus(),
            nodes: job.nodes.iter().map(|n| n.as_str()).collect(),
            node_count: spec.gang.nodes,
            gpus_per_node: spec.gang.gpus_per_node,
            tasks_per_node: spec.gang.tasks_per_node,
            cpus_per_task: spec.gang.cpus_per_task,
            memory_per_node_bytes: spec.gang.memory_per_node.0,
            gpu_model: spec.gang.gpu_model.as_deref(),
            gpu_milli: spec.gang.gpu_milli,
            within: within(&spec.placement),
            placement: PlacementView::of(&spec.placement),
            roles: spec.roles.iter().map(role_view).collect(),
            min_nodes: spec.min_nodes,
            spares: spec.spares,
            tier: spec.tier.word(),
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
            held: job.held,
            array: job.array.map(|a| ArrayView { id: a.array.0, index: a.index }),
            begin: spec.begin.map(time),
            after: spec
                .after
                .iter()
                .map(|d| AfterView { job: d.job.0, kind: wishes::dependency_word(d.kind) })
                .collect(),
            singleton: spec.singleton,
            reservation: spec.reservation.as_deref(),
            checkpoint: spec.checkpoint.as_ref().map(|c| CheckpointView {
                signal: c.signal,
                notice_ms: c.notice.0,
                restart_cost_ms: c.restart_cost.0,
                file: c.file.as_deref(),
                migratable: c.migratable,
            }),
            eligible_at: job.eligible_at.map(time),
            promised_at: job.promised_at.map(time),
            last_checkpoint_at: job.last_checkpoint_at.map(time),
            preemptions: job.preemptions,
            certificate: job.certificate.as_ref().map(CertificateView::of),
        }
    }
}

fn role_view(role: &tessera_model::JobRole) -> RoleView<'_> {
    let gang: &Gang = &role.gang;
    RoleView {
        name: &role.name,
        node_count: gang.nodes,
        gpus_per_node: gang.gpus_per_node,
        tasks_per_node: gang.tasks_per_node,
        cpus_per_task: gang.cpus_per_task,
        memory_per_node_bytes: gang.memory_per_node.0,
        gpu_model: gang.gpu_model.as_deref(),
        gpu_milli: gang.gpu_milli,
        placement: PlacementView::of(&role.placement),
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
    /// Of those among `jobs` that wait their turn: the place in the whole queue, by id.
    pub positions: BTreeMap<u64, u32>,
}

impl<'a> QueueView<'a> {
    pub fn of(list: &'a JobList) -> Self {
        Self {
            jobs: list.jobs.iter().map(JobView::of).collect(),
            total: list.total,
            gpus_held: list.gpus_held,
            gpus_total: list.gpus_total,
            positions: list.positions.iter().map(|(id, p)| (id.0, *p)).collect(),
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
    pub promised: Option<String>,
    pub eta: Option<EtaView>,
    pub counterfactuals: Vec<CounterfactualView<'a>>,
    /// Where it would start now.
    pub place: Vec<&'a str>,
    pub hint: Option<&'a str>,
}

/// From how long jobs like those before it really run.
#[derive(Debug, Serialize)]
pub struct EtaView {
    pub p50: String,
    pub p90: String,
}

/// A change that was really tried.
#[derive(Debug, Serialize)]
pub struct CounterfactualView<'a> {
    pub change: &'a str,
    pub starts_at: Option<String>,
    pub sooner_ms: Option<u64>,
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
            promised: e.promised.map(time),
            eta: e.eta.map(|eta| EtaView { p50: time(eta.p50), p90: time(eta.p90) }),
            counterfactuals: e
                .counterfactuals
                .iter()
                .map(|c: &Counterfactual| CounterfactualView {
                    change: &c.change,
                    starts_at: c.starts_at.map(time),
                    sooner_ms: c.sooner.map(|m| m.0),
                })
                .collect(),
            place: e.place.iter().map(|n| n.as_str()).collect(),
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
    pub labels: &'a BTreeMap<String, String>,
    /// Where what it sees contradicts the map.
    pub map_doubts: &'a [String],
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
    /// Thousandths of it that jobs hold.
    pub held_milli: u32,
    /// Of a MIG instance: `1g.10gb`.
    pub mig_profile: Option<&'a str>,
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
            held_milli: now.held_milli,
            mig_profile: gpu.mig.as_ref().map(|m| m.profile.as_str()),
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
            labels: &inventory.labels,
            map_doubts: &node.map_doubts,
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
