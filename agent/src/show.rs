//! What `tessera-agent probe` prints: one JSON object, or tables.
//!
//! What was not measured is `null` in JSON and `-` in a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use tessera_model::sample::{GpuSample, NicSample, NodeSample};
use tessera_model::{Bytes, Gpu, GpuCondition, GpuId, NodeInventory};

type Conditions = BTreeMap<GpuId, GpuCondition>;

pub fn json(inventory: &NodeInventory, conditions: &Conditions, sample: &NodeSample) -> String {
    let host = &sample.host;
    let whole = json!({
        "inventory": inventory,
        "conditions": conditions.iter().map(|(gpu, c)| json!({"gpu": gpu, "condition": c})).collect::<Vec<_>>(),
        "sample": {
            "at": sample.at.rfc3339(),
            "gpus": sample.gpus.iter().map(gpu_json).collect::<Vec<_>>(),
            "nics": sample.nics.iter().map(nic_json).collect::<Vec<_>>(),
            "host": {
                "cpu_percent": host.cpu_percent,
                "memory_used_bytes": host.memory_used_bytes,
                "load_1m": host.load_1m,
            },
        },
    });
    format!("{whole:#}")
}

fn gpu_json(gpu: &GpuSample) -> Value {
    json!({
        "gpu": gpu.gpu,
        "busy_percent": gpu.busy_percent,
        "sm_percent": gpu.sm_percent,
        "tensor_percent": gpu.tensor_percent,
        "dram_percent": gpu.dram_percent,
        "memory_used_bytes": gpu.memory_used_bytes,
        "power_mw": gpu.power_mw,
        "energy_mj": gpu.energy_mj,
        "temperature_c": gpu.temperature_c,
        "memory_temperature_c": gpu.memory_temperature_c,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "memory_clock_mhz": gpu.memory_clock_mhz,
        "clock_event_reasons": gpu.clock_event_reasons,
        "ecc_corrected": gpu.ecc_corrected,
        "ecc_uncorrected": gpu.ecc_uncorrected,
        "pcie_replays": gpu.pcie_replays,
        "processes": gpu.processes,
    })
}

fn nic_json(nic: &NicSample) -> Value {
    json!({
        "name": nic.name,
        "up": nic.up,
        "speed_mbps": nic.speed_mbps,
        "receive_bytes": nic.receive_bytes,
        "transmit_bytes": nic.transmit_bytes,
        "receive_errors": nic.receive_errors,
        "transmit_errors": nic.transmit_errors,
        "carrier_changes": nic.carrier_changes,
        "transmit_wait": nic.transmit_wait,
        "symbol_errors": nic.symbol_errors,
        "link_downed": nic.link_downed,
        "cnp_handled": nic.cnp_handled,
        "cnp_sent": nic.cnp_sent,
    })
}

pub fn table(inventory: &NodeInventory, conditions: &Conditions, sample: &NodeSample) -> String {
    let driver = inventory.driver_version.as_deref().unwrap_or("none");
    let mut text = format!(
        "node {}   {} CPUs   {}   NVIDIA driver {driver}\n",
        inventory.node, inventory.cpus, inventory.memory
    );
    if inventory.gpus.is_empty() {
        text.push_str("\nno GPUs were found\n");
    } else {
        text.push('\n');
        text.push_str(&columns(&gpu_rows(inventory, conditions, sample)));
    }
    if !inventory.nics.is_empty() {
        text.push('\n');
        text.push_str(&columns(&nic_rows(inventory, sample)));
    }
    text
}

fn gpu_rows(
    inventory: &NodeInventory,
    conditions: &Conditions,
    sample: &NodeSample,
) -> Vec<Vec<String>> {
    let mut rows =
        vec![words("GPU|UUID|MODEL|MEMORY|USED|BUSY|POWER|TEMP|NUMA|NIC|RAIL|CONDITION")];
    let silent = GpuSample::default();
    for gpu in &inventory.gpus {
        let read = sample.gpus.iter().find(|read| read.gpu.as_ref() == Some(&gpu.id));
        let read = read.unwrap_or(&silent);
        rows.push(vec![
            gpu.index.to_string(),
            gpu.id.to_string(),
            model(gpu),
            gpu.memory.to_string(),
            or_dash(read.memory_used_bytes.map(|bytes| Bytes(bytes).to_string())),
            or_dash(read.busy_percent.map(|percent| format!("{percent:.0}%"))),
            or_dash(read.power_mw.map(|mw| format!("{:.1} W", f64::from(mw) / 1000.0))),
            or_dash(read.temperature_c.map(|c| format!("{c:.0} C"))),
            or_dash(gpu.numa),
            or_dash(gpu.nic.as_ref()),
            or_dash(gpu.rail),
            conditions.get(&gpu.id).unwrap_or(&GpuCondition::Healthy).to_string(),
        ]);
    }
    rows
}

/// A MIG instance by its profile as well: `NVIDIA H100 80GB HBM3 1g.10gb`.
fn model(gpu: &Gpu) -> String {
    match &gpu.mig {
        Some(mig) => format!("{} {}", gpu.model, mig.profile),
        None => gpu.model.clone(),
    }
}

fn nic_rows(inventory: &NodeInventory, sample: &NodeSample) -> Vec<Vec<String>> {
    let mut rows = vec![words("NIC|PCI|NUMA|RDMA|LINK|SPEED|RECEIVED|SENT")];
    let silent = NicSample::default();
    for nic in &inventory.nics {
        let read = sample.nics.iter().find(|read| read.name == nic.name).unwrap_or(&silent);
        let link = read.up.map(|up| if up { "up" } else { "down" });
        rows.push(vec![
            nic.name.clone(),
            or_dash(nic.pci_bus_id.as_ref()),
            or_dash(nic.numa),
            if nic.rdma { "yes" } else { "no" }.to_owned(),
            or_dash(link),
            or_dash(nic.speed_mbps.map(|mbps| {
                format!("{} Gb/s", f64::from(u32::try_from(mbps).unwrap_or(u32::MAX)) / 1000.0)
            })),
            or_dash(read.receive_bytes.map(|bytes| Bytes(bytes).to_string())),
            or_dash(read.transmit_bytes.map(|bytes| Bytes(bytes).to_string())),
        ]);
    }
    rows
}

fn words(line: &str) -> Vec<String> {
    line.split('|').map(str::to_owned).collect()
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Left-aligned, as wide as the widest cell.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|i| width(i).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::sample::HostSample;
    use tessera_model::{BootId, Nic, NodeId, UnixMillis};

    #[test]
    fn what_was_not_measured_is_never_shown_as_zero() {
        let node = NodeId::parse("n1").unwrap();
        let boot = BootId::parse("b").unwrap();
        let id = GpuId::parse("GPU-1").unwrap();
        let inventory = NodeInventory {
            node: node.clone(),
            boot: boot.clone(),
            agent_version: "0".into(),
            address: "n1".into(),
            cpus: 8,
            memory: Bytes::gib(2),
            driver_version: None,
            gpus: vec![Gpu {
                id: id.clone(),
                index: 0,
                model: "H100".into(),
                memory: Bytes::gib(80),
                pci_bus_id: "0000:1a:00.0".into(),
                numa: Some(0),
                nvlink_group: None,
                nvlink_domain: None,
                nic: None,
                rail: None,
                mig: None,
            }],
            nics: vec![Nic {
                name: "eth0".into(),
                pci_bus_id: None,
                numa: None,
                speed_mbps: Some(100_000),
                rdma: false,
            }],
            labels: Default::default(),
            neighbours: vec![],
        };
        let sample = NodeSample {
            node,
            boot,
            sequence: 1,
            at: UnixMillis(0),
            gpus: vec![GpuSample {
                gpu: Some(id.clone()),
                power_mw: Some(70_500),
                ..Default::default()
            }],
            nics: vec![],
            host: HostSample::default(),
        };
        let conditions = Conditions::from([(id, GpuCondition::Lost)]);
        let table = table(&inventory, &conditions, &sample);
        for part in [
            "node n1   8 CPUs   2 GiB",
            "NVIDIA driver none",
            "70.5 W",
            "fell off the bus",
            "100 Gb/s",
            "eth0",
        ] {
            assert!(table.contains(part), "{part:?} is not in\n{table}");
        }
        let gpu_line = table.lines().find(|line| line.contains("GPU-1")).unwrap();
        assert_eq!(
            gpu_line.matches(" - ").count(),
            5,
            "used, busy, temperature, NIC and rail: {gpu_line}"
        );
        let whole: Value = serde_json::from_str(&json(&inventory, &conditions, &sample)).unwrap();
        assert_eq!(whole["sample"]["gpus"][0]["power_mw"], 70_500);
        assert_eq!(whole["sample"]["gpus"][0]["busy_percent"], Value::Null);
        assert_eq!(whole["inventory"]["gpus"][0]["id"], "GPU-1");
        assert_eq!(whole["conditions"][0]["condition"]["condition"], "lost");
    }
}
