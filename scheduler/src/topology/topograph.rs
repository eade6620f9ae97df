//! topograph's graph JSON: one record for each instance, with its switches from the leaf up.
//!
//! In: `{"instances":[{"id":"n1","network_layers":["leaf","spine"],"labels":{…}}]}`. Out: a
//! [`Sheet`] with the fabric `net` from the layers, called `leaf`, `spine`, `core`, `tier_3`, … from
//! the nodes up, and `nvlink` from the labels that name an accelerator domain. An instance is the
//! node that its label `kubernetes.io/hostname` names and else the node of its id.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use tessera_core::topology::{NET, nvlink_domain, nvlink_label, tier_name};
use tessera_model::NodeId;
use tessera_model::topology::NVLINK;

use super::draft::{Draft, Lines, Placed, Sheet, Wrong, domain_name};
use super::slurm::usual;

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    instances: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Instance {
    id: String,
    /// Leaf first. Go writes an empty list as null.
    #[serde(default)]
    network_layers: Option<Vec<String>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    /// Older releases: `{"nvlink": "…"}`.
    #[serde(default)]
    attributes: Option<Attributes>,
}

#[derive(Deserialize)]
struct Attributes {
    nvlink: Option<String>,
}

impl Instance {
    fn nvlink(&self) -> Option<&str> {
        let labels = self.labels.as_ref().and_then(nvlink_label);
        let older = self.attributes.as_ref().and_then(|a| a.nvlink.as_deref());
        labels.or_else(|| older.and_then(nvlink_domain))
    }

    fn node(&self, line: usize) -> Result<NodeId, Wrong> {
        let host = self.labels.as_ref().and_then(|l| l.get("kubernetes.io/hostname"));
        let hint = "an instance's id is its node's name";
        NodeId::parse(host.unwrap_or(&self.id)).map_err(|e| Wrong::new(line, e.to_string(), hint))
    }
}

pub(super) fn read(text: &str) -> Result<Sheet, Wrong> {
    const HINT: &str = "topograph's engine `graph` writes {\"instances\": [{\"id\": …}]}";
    let lines = Lines::new(text);
    let document: Document<'_> =
        serde_json::from_str(text).map_err(|e| Wrong::new(e.line().max(1), said(&e), HINT))?;
    let mut instances: Vec<(Instance, usize)> = Vec::new();
    for raw in document.instances {
        // The record borrows from the text: how far into it says in which line it begins.
        let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let line = lines.at(offset);
        let instance: Instance = serde_json::from_str(raw.get())
            .map_err(|e| Wrong::new(line + e.line().saturating_sub(1), said(&e), HINT))?;
        instances.push((instance, line));
    }
    if instances.is_empty() {
        return Err(Wrong::new(1, "there is no instance", HINT));
    }
    let depth_of = |i: &Instance| i.network_layers.as_ref().map_or(0, Vec::len);
    let depth = usual(instances.iter().map(|(i, _)| depth_of(i)));
    if let Some((odd, line)) = instances.iter().find(|(i, _)| depth_of(i) != depth) {
        let what = format!(
            "instance {:?} has {} network layers, most have {depth}",
            odd.id,
            depth_of(odd)
        );
        let hint =
            "give it the layers that are missing, or leave it out: a node without a place is shown";
        return Err(Wrong::new(*line, what, hint));
    }
    let mut sheet = Sheet::default();
    if depth > 0 {
        let levels = (0..depth).rev().map(tier_name).collect();
        let mut net = draft(NET, levels);
        for (instance, line) in &instances {
            let layers = instance.network_layers.iter().flatten();
            for layer in layers.clone() {
                domain_name(layer, *line, "network layer")?;
            }
            let path: Arc<[String]> = layers.rev().cloned().collect();
            net.nodes.push(Placed { node: instance.node(*line)?, line: *line, path });
        }
        sheet.fabrics.push(net);
    }
    let mut nvlink = draft(NVLINK, vec![NVLINK.to_owned()]);
    for (instance, line) in &instances {
        if let Some(domain) = instance.nvlink() {
            let path: Arc<[String]> = Arc::new([domain.to_owned()]);
            nvlink.nodes.push(Placed { node: instance.node(*line)?, line: *line, path });
        }
    }
    if !nvlink.nodes.is_empty() {
        sheet.fabrics.push(nvlink);
    }
    if sheet.fabrics.is_empty() {
        let what = "no instance has network layers or an accelerator domain";
        return Err(Wrong::new(1, what, "see topograph's log for what its provider found"));
    }
    Ok(sheet)
}

fn draft(name: &str, levels: Vec<String>) -> Draft {
    Draft { name: name.to_owned(), line: 1, levels, nodes: Vec::new(), switches: BTreeMap::new() }
}

/// serde_json's words without the place, which we say ourselves.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ").map_or(text.clone(), |at| text[..at].to_owned())
}
