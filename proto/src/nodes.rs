//! Nodes at the door: inventories, conditions, records.
//!
//! An inventory comes from outside, from drivers and sysfs, and its texts end up in tables and
//! labels: lengths and counts are bounded here. Whether a node is the one its certificate names is
//! checked where the certificate is known.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{
    BootId, Bytes, Cordon, Gpu, GpuCondition, GpuId, GpuRecord, JobId, MigInstance, Nic, NodeId,
    NodeInventory, NodeRecord, NodeState, Refusal, TeamId, UnixMillis,
};

use crate::{
    door::{Checked, bad_id, count, label, line, present, quote, range},
    v1,
};

const GPUS_MAX: usize = 64;
const NICS_MAX: usize = 256;
const CPUS_MAX: u32 = 65_536;
const PIDS_MAX: usize = 4_096;
/// Sixteen fabrics of sixteen levels.
const DOMAINS_MAX: usize = 256;
const MODEL_CHARS_MAX: usize = 128;
const WORD_CHARS_MAX: usize = 64;
const REASON_CHARS_MAX: usize = 1_024;
/// Labels of one node, and characters of a name or a value.
pub const LABELS_MAX: usize = 64;
pub const LABEL_CHARS_MAX: usize = 256;
/// Switches one node's links end at.
pub const NEIGHBOURS_MAX: usize = 64;
const DOUBTS_MAX: usize = 256;
const MEMORY_SLICES_MAX: u32 = 64;
const RELEASE: &str = "use agent, scheduler and client of one release";

pub fn inventory_to_wire(inventory: &NodeInventory) -> v1::Inventory {
    let gpu = |g: &Gpu| v1::Gpu {
        uuid: g.id.to_string(),
        index: g.index,
        model: g.model.clone(),
        memory_bytes: g.memory.0,
        pci_bus_id: g.pci_bus_id.clone(),
        numa: g.numa,
        nvlink_group: g.nvlink_group,
        nvlink_domain: g.nvlink_domain.clone(),
        nic: g.nic.clone(),
        rail: g.rail,
        mig: g.mig.as_ref().map(|m| v1::MigInstance {
            parent_uuid: m.parent.to_string(),
            profile: m.profile.clone(),
            memory_slices: m.memory_slices,
        }),
    };
    let nic = |n: &Nic| v1::Nic {
        name: n.name.clone(),
        pci_bus_id: n.pci_bus_id.clone(),
        numa: n.numa,
        speed_mbps: n.speed_mbps,
        rdma: n.rdma,
    };
    v1::Inventory {
        node: inventory.node.to_string(),
        boot_id: inventory.boot.to_string(),
        agent_version: inventory.agent_version.clone(),
        address: inventory.address.clone(),
        cpus: inventory.cpus,
        memory_bytes: inventory.memory.0,
        driver_version: inventory.driver_version.clone(),
        gpus: inventory.gpus.iter().map(gpu).collect(),
        nics: inventory.nics.iter().map(nic).collect(),
        labels: inventory.labels.clone().into_iter().collect(),
        neighbours: inventory.neighbours.clone(),
    }
}

pub fn inventory_from_wire(wire: v1::Inventory) -> Result<NodeInventory, Refusal> {
    let node = NodeId::parse(&wire.node).map_err(bad_id("node"))?;
    let boot = BootId::parse(&wire.boot_id).map_err(bad_id("boot_id"))?;
    line("agent_version", &wire.agent_version, WORD_CHARS_MAX)?;
    check_address(&wire.address)?;
    range("cpus", wire.cpus, 1, CPUS_MAX, "a node has at least one CPU")?;
    optional("driver_version", &wire.driver_version)?;
    count("gpus", wire.gpus.len(), GPUS_MAX, "a node can have no more GPUs than that")?;
    count("nics", wire.nics.len(), NICS_MAX, "leave virtual interfaces out")?;
    let gpus = wire.gpus.into_iter().map(gpu_from_wire).collect::<Checked<Vec<_>>>()?;
    let nics = wire.nics.into_iter().map(nic_from_wire).collect::<Checked<Vec<_>>>()?;
    all_different("gpus", gpus.iter().map(|g| g.id.as_str()))?;
    all_different("nics", nics.iter().map(|n| n.name.as_str()))?;
    let labels = checked_labels(wire.labels)?;
    check_neighbours(&wire.neighbours)?;
    Ok(NodeInventory {
        node,
        boot,
        agent_version: wire.agent_version,
        address: wire.address,
        cpus: wire.cpus,
        memory: Bytes(wire.memory_bytes),
        driver_version: wire.driver_version,
        gpus,
        nics,
        labels,
        neighbours: wire.neighbours,
    })
}

/// A node's labels, or what is wrong with them. Names are of letters, digits and `. _ - / :`, so
/// that they can be written into a selector; a value is one line of anything printable.
pub fn checked_labels(
    labels: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let labels: BTreeMap<String, String> = labels.into_iter().collect();
    count("labels", labels.len(), LABELS_MAX, "leave out what no job selects by")?;
    for (name, value) in &labels {
        label("labels", name, LABEL_CHARS_MAX)?;
        let letters = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        if !name.chars().all(letters) {
            let message = format!("{} is no name of a label", quote(name));
            let hint = "letters, digits and . _ - / : may stand in it";
            return Err(Refusal::invalid("labels", message, hint));
        }
        line(&format!("labels.{name}"), value, LABEL_CHARS_MAX)?;
    }
    Ok(labels)
}

/// Names of switches as an agent may say them.
pub fn check_neighbours(neighbours: &[String]) -> Result<(), Refusal> {
    count("neighbours", neighbours.len(), NEIGHBOURS_MAX, "a node has no more links than that")?;
    neighbours.iter().try_for_each(|n| label("neighbours", n, LABEL_CHARS_MAX))?;
    all_different("neighbours", neighbours.iter().map(String::as_str))
}

fn mig_from_wire(wire: v1::MigInstance) -> Checked<MigInstance> {
    label("mig.profile", &wire.profile, WORD_CHARS_MAX)?;
    let hint = "a GPU has eight memory slices, and an instance at least one of them";
    range("mig.memory_slices", wire.memory_slices, 1, MEMORY_SLICES_MAX, hint)?;
    Ok(MigInstance {
        parent: GpuId::parse(&wire.parent_uuid).map_err(bad_id("mig.parent_uuid"))?,
        profile: wire.profile,
        memory_slices: wire.memory_slices,
    })
}

fn gpu_from_wire(wire: v1::Gpu) -> Checked<Gpu> {
    label("model", &wire.model, MODEL_CHARS_MAX)?;
    line("pci_bus_id", &wire.pci_bus_id, WORD_CHARS_MAX)?;
    optional("nvlink_domain", &wire.nvlink_domain)?;
    optional("nic", &wire.nic)?;
    Ok(Gpu {
        id: GpuId::parse(&wire.uuid).map_err(bad_id("uuid"))?,
        index: wire.index,
        model: wire.model,
        memory: Bytes(wire.memory_bytes),
        pci_bus_id: wire.pci_bus_id,
        numa: wire.numa,
        nvlink_group: wire.nvlink_group,
        nvlink_domain: wire.nvlink_domain,
        nic: wire.nic,
        rail: wire.rail,
        mig: wire.mig.map(mig_from_wire).transpose()?,
    })
}

fn nic_from_wire(wire: v1::Nic) -> Checked<Nic> {
    label("name", &wire.name, WORD_CHARS_MAX)?;
    optional("pci_bus_id", &wire.pci_bus_id)?;
    Ok(Nic {
        name: wire.name,
        pci_bus_id: wire.pci_bus_id,
        numa: wire.numa,
        speed_mbps: wire.speed_mbps,
        rdma: wire.rdma,
    })
}

/// An absent value is fine, an empty or long one is not.
fn optional(field: &str, text: &Option<String>) -> Checked {
    text.as_deref().map_or(Ok(()), |t| label(field, t, 2 * WORD_CHARS_MAX))
}

/// It becomes `MASTER_ADDR`: a host name or an IP address, and no more.
fn check_address(address: &str) -> Checked {
    let letters =
        |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b':' | b'%');
    if address.is_empty() || address.len() > 253 || !address.bytes().all(letters) {
        let message = format!("the address {} is no host name and no IP address", quote(address));
        let hint = "start the agent with --address and what other nodes reach it at";
        return Err(Refusal::invalid("address", message, hint));
    }
    Ok(())
}

fn all_different<'a>(field: &str, names: impl Iterator<Item = &'a str>) -> Checked {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            let message = format!("{} is there twice", quote(name));
            return Err(Refusal::invalid(field, message, "each may be listed once"));
        }
    }
    Ok(())
}

pub fn condition_to_wire(condition: &GpuCondition) -> v1::GpuCondition {
    let (xid, pids) = match condition {
        GpuCondition::Xid { code } => (*code, Vec::new()),
        GpuCondition::Occupied { pids } => (0, pids.clone()),
        _ => (0, Vec::new()),
    };
    let node = match condition {
        GpuCondition::Duplicate { node } => node.to_string(),
        _ => String::new(),
    };
    v1::GpuCondition { word: condition.word().to_owned(), xid, pids, node }
}

pub fn condition_from_wire(wire: v1::GpuCondition) -> Result<GpuCondition, Refusal> {
    count("pids", wire.pids.len(), PIDS_MAX, "report the first of them")?;
    Ok(match wire.word.as_str() {
        "healthy" => GpuCondition::Healthy,
        "unresponsive" => GpuCondition::Unresponsive,
        "lost" => GpuCondition::Lost,
        "reset-required" => GpuCondition::ResetRequired,
        "xid" => GpuCondition::Xid { code: wire.xid },
        "occupied" => GpuCondition::Occupied { pids: wire.pids },
        "duplicate" => {
            let node = NodeId::parse(&wire.node)
                .map_err(|e| Refusal::invalid("condition.node", e.to_string(), RELEASE))?;
            GpuCondition::Duplicate { node }
        }
        word => {
            let message = format!("{} is no condition of a GPU", quote(word));
            return Err(Refusal::invalid("condition", message, RELEASE));
        }
    })
}

/// Healthy GPUs are left out.
pub fn conditions_to_wire(conditions: &BTreeMap<GpuId, GpuCondition>) -> v1::Conditions {
    let report = |(id, condition): (&GpuId, &GpuCondition)| v1::GpuConditionReport {
        uuid: id.to_string(),
        condition: Some(condition_to_wire(condition)),
    };
    let unwell = conditions.iter().filter(|(_, c)| !c.is_healthy());
    v1::Conditions { gpus: unwell.map(report).collect() }
}

/// Of every GPU that is not healthy.
pub fn conditions_from_wire(
    wire: v1::Conditions,
) -> Result<BTreeMap<GpuId, GpuCondition>, Refusal> {
    count("gpus", wire.gpus.len(), GPUS_MAX, "a node can have no more GPUs than that")?;
    all_different("gpus", wire.gpus.iter().map(|r| r.uuid.as_str()))?;
    let mut conditions = BTreeMap::new();
    for report in wire.gpus {
        let id = GpuId::parse(&report.uuid).map_err(bad_id("uuid"))?;
        let condition = condition_from_wire(present("condition", report.condition)?)?;
        if !condition.is_healthy() {
            conditions.insert(id, condition);
        }
    }
    Ok(conditions)
}

pub fn cordon_to_wire(cordon: &Cordon) -> v1::Cordon {
    v1::Cordon { drain: cordon.drain, by: cordon.by.clone(), reason: cordon.reason.clone() }
}

pub fn cordon_from_wire(wire: v1::Cordon) -> Result<Cordon, Refusal> {
    line("by", &wire.by, WORD_CHARS_MAX)?;
    line("reason", &wire.reason, REASON_CHARS_MAX)?;
    Ok(Cordon { drain: wire.drain, by: wire.by, reason: wire.reason })
}

pub fn node_to_wire(node: &NodeRecord) -> v1::Node {
    let gpu = |g: &GpuRecord| v1::GpuStatus {
        condition: Some(condition_to_wire(&g.condition)),
        held_by_job: g.held_by.map(|j| j.0),
        team: g.team.as_ref().map(TeamId::to_string).unwrap_or_default(),
        held_milli: g.held_milli,
    };
    let domain =
        |(level, name): &(String, String)| v1::Domain { level: level.clone(), name: name.clone() };
    v1::Node {
        inventory: Some(inventory_to_wire(&node.inventory)),
        state: node.state.word().to_owned(),
        cordon: node.cordon.as_ref().map(cordon_to_wire),
        domains: node.domains.iter().map(domain).collect(),
        gpus: node.gpus.iter().map(gpu).collect(),
        cpus_held: node.cpus_held,
        last_seen_unix_ms: node.last_seen.0,
        map_doubts: node.map_doubts.clone(),
    }
}

pub fn node_from_wire(wire: v1::Node) -> Result<NodeRecord, Refusal> {
    let inventory = inventory_from_wire(present("inventory", wire.inventory)?)?;
    let states = [NodeState::Up, NodeState::Silent, NodeState::Lost];
    let Some(state) = states.into_iter().find(|s| s.word() == wire.state) else {
        let message = format!("{} is no state of a node", quote(&wire.state));
        return Err(Refusal::invalid("state", message, RELEASE));
    };
    let (listed, told) = (inventory.gpus.len(), wire.gpus.len());
    if listed != told {
        let message = format!("the node lists {listed} GPUs, the state of {told} is given");
        return Err(Refusal::invalid("gpus", message, RELEASE));
    }
    let gpu = |g: v1::GpuStatus| {
        let team = Some(g.team).filter(|t| !t.is_empty());
        Ok(GpuRecord {
            condition: condition_from_wire(present("condition", g.condition)?)?,
            held_by: g.held_by_job.map(JobId),
            team: team.map(|t| TeamId::parse(&t).map_err(bad_id("team"))).transpose()?,
            held_milli: g.held_milli,
        })
    };
    count("domains", wire.domains.len(), DOMAINS_MAX, "a map has no more levels than that")?;
    count("map_doubts", wire.map_doubts.len(), DOUBTS_MAX, "say the first of them")?;
    wire.map_doubts.iter().try_for_each(|d| line("map_doubts", d, REASON_CHARS_MAX))?;
    Ok(NodeRecord {
        inventory,
        state,
        cordon: wire.cordon.map(cordon_from_wire).transpose()?,
        domains: wire.domains.into_iter().map(|d| (d.level, d.name)).collect(),
        gpus: wire.gpus.into_iter().map(gpu).collect::<Checked<_>>()?,
        cpus_held: wire.cpus_held,
        last_seen: UnixMillis(wire.last_seen_unix_ms),
        map_doubts: wire.map_doubts,
    })
}

#[cfg(test)]
mod tests;
