//! The map for people: as it is in force, another one, and what is said of its domains.
//!
//! In: a file's text or a parsed map. Out: the map with free GPUs, marks and doubts. Reading the
//! formats is `crate::topology`'s, taking a map or not the core's; a map that is refused changes
//! nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tessera_core::door::{self, topology::Allow, topology::MapChange};
use tessera_core::node_table::Node;
use tessera_core::topology::doubts;
use tessera_model::{NodeState, Principal, Refusal, Topology};
use tessera_proto::topology::{
    doubts_to_wire, fabrics_from_wire, fabrics_to_wire, mark_to_wire, wish_from_wire,
};
use tessera_proto::v1::{self, load_topology_request::Map};

use super::{Shared, internal};
use crate::topology::{Loaded, live, parse};
use crate::writer::View;

const TEXT_BYTES_MAX: usize = 3 << 20;
const NAME_CHARS_MAX: usize = 1_024;

impl Shared {
    pub(super) async fn topology(&self) -> Result<v1::TopologyReply, Refusal> {
        self.handle.read(reply).await
    }

    pub(super) async fn load_topology(
        &self,
        who: &Arc<Principal>,
        request: v1::LoadTopologyRequest,
    ) -> Result<v1::LoadTopologyReply, Refusal> {
        let v1::LoadTopologyRequest { map, allow_unknown, drop_nodes, dry_run } = request;
        let loaded = match map {
            Some(Map::Text(text)) => read(text).await?,
            Some(Map::Parsed(map)) => {
                Loaded { map: fabrics_from_wire(map.fabrics)?, ..Loaded::default() }
            }
            None => {
                let hint = "send a file's text, or a map";
                return Err(Refusal::invalid("map", "the map is missing", hint));
            }
        };
        let allow = Allow { unknown: allow_unknown, drop: drop_nodes, ..Allow::default() };
        let change: MapChange = if dry_run {
            let look = move |view: &View<'_>| live::change(view.cluster, &loaded, allow);
            let (change, _events) = self.handle.read(look).await??;
            change
        } else {
            let change = live::take(&self.handle, loaded, allow).await?;
            tracing::info!(by = %who.user, changed = change.changed, "a map was loaded");
            change
        };
        Ok(v1::LoadTopologyReply {
            changed: change.changed && !dry_run,
            warnings: change.warnings,
            nodes: u32::try_from(change.nodes).unwrap_or(u32::MAX),
            levels: change.levels,
        })
    }

    pub(super) async fn mark_domain(
        &self,
        who: &Arc<Principal>,
        request: v1::MarkDomainRequest,
    ) -> Result<v1::DomainMark, Refusal> {
        let mark = wish_from_wire(request, who.user.clone())?;
        let (asking, wish) = (who.clone(), mark.clone());
        self.handle
            .change(move |cluster, now| door::mark_domain(cluster, now, &asking, wish))
            .await?;
        tracing::info!(
            level = mark.level,
            domain = mark.domain,
            health = mark.health,
            by = %who.user,
            "a domain was marked"
        );
        Ok(mark_to_wire(&mark))
    }
}

/// Beside the writer: a large file takes its time.
async fn read(text: v1::TopologyText) -> Result<Loaded, Refusal> {
    let v1::TopologyText { name, text } = text;
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the file has {} bytes, {TEXT_BYTES_MAX} are taken in", text.len());
        let hint = "put it beside the scheduler and name it with `topology` in scheduler.toml";
        return Err(Refusal::invalid("text", message, hint));
    }
    let printable = |c: char| !c.is_control();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || !name.chars().all(printable) {
        let hint = "give the file's name; errors will call it by that";
        return Err(Refusal::invalid("name", "the file has no name that could be shown", hint));
    }
    let reading = tokio::task::spawn_blocking(move || parse(&[(PathBuf::from(name), text)])).await;
    match reading {
        Ok(Ok(loaded)) => Ok(loaded),
        Ok(Err(wrong)) => {
            let hint = format!("the map in force stays; {}", wrong.hint());
            Err(Refusal::invalid("text", wrong.to_string(), hint))
        }
        Err(_) => Err(internal("the reading of the map broke off")),
    }
}

fn reply(view: &View<'_>) -> v1::TopologyReply {
    let (map, nodes) = (view.cluster.map(), &view.cluster.nodes);
    let unplaced = nodes.keys().filter(|n| map.domains_of(n).next().is_none());
    v1::TopologyReply {
        fabrics: fabrics_to_wire(map),
        unplaced: unplaced.map(|n| n.to_string()).collect(),
        marks: view.cluster.marks.values().map(mark_to_wire).collect(),
        doubts: doubts_to_wire(&doubts(map, nodes.values().map(|n| &n.inventory))),
        domains: counts(map, nodes.values()),
    }
}

/// What each domain has, in the order of the fabrics, their levels and their domains' names.
fn counts<'a>(map: &Topology, nodes: impl Iterator<Item = &'a Node>) -> Vec<v1::DomainCount> {
    let mut counts: BTreeMap<(&str, &str), v1::DomainCount> = BTreeMap::new();
    for node in nodes {
        let up = node.state == NodeState::Up;
        let takes_jobs = up && node.cordon.is_none();
        let gpus = &node.inventory.gpus;
        let is_free = |g: &&tessera_model::Gpu| {
            node.condition(&g.id).is_healthy() && node.held_milli(&g.id) == 0
        };
        let free = if takes_jobs { gpus.iter().filter(is_free).count() } else { 0 };
        for (level, domain) in map.domains_of(node.id()) {
            let count = counts.entry((level, domain)).or_insert_with(|| v1::DomainCount {
                level: level.to_owned(),
                domain: domain.to_owned(),
                ..Default::default()
            });
            count.nodes += 1;
            count.nodes_up += u32::from(up);
            count.gpus += u32::try_from(gpus.len()).unwrap_or(0);
            count.gpus_free += u32::try_from(free).unwrap_or(0);
        }
    }
    let place: BTreeMap<&str, usize> = map.levels().zip(0..).collect();
    let mut counts: Vec<v1::DomainCount> = counts.into_values().collect();
    counts.sort_by_key(|c| place.get(c.level.as_str()).copied());
    counts
}
