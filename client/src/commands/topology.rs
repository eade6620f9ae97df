//! `tessera topology`: which node stands where.

use std::collections::BTreeMap;

use serde::Serialize;
use tessera_proto::v1;

use crate::call::Api;
use crate::failure::Outcome;
use crate::output::{Screen, count, printable, wrap};

pub async fn run(api: &Api, screen: &Screen) -> Outcome<u8> {
    let reply = api
        .ask(|api| async move { api.nodes().get_topology(v1::GetTopologyRequest {}).await })
        .await?;
    if screen.json {
        screen.json(&TopologyView::of(&reply))?;
    } else {
        screen.text(&tree(&reply, screen))?;
    }
    Ok(0)
}

#[derive(Debug, Serialize)]
struct TopologyView<'a> {
    /// Widest first.
    levels: &'a [String],
    nodes: Vec<PathView<'a>>,
}

#[derive(Debug, Serialize)]
struct PathView<'a> {
    node: &'a str,
    /// By level; empty: the node is not in the map.
    domains: BTreeMap<&'a str, &'a str>,
}

impl<'a> TopologyView<'a> {
    fn of(reply: &'a v1::TopologyReply) -> Self {
        let path = |n: &'a v1::NodePath| PathView {
            node: &n.node,
            domains: reply
                .levels
                .iter()
                .map(String::as_str)
                .zip(n.domains.iter().map(String::as_str))
                .collect(),
        };
        Self { levels: &reply.levels, nodes: reply.nodes.iter().map(path).collect() }
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

pub fn tree(reply: &v1::TopologyReply, screen: &Screen) -> String {
    let mut root = Branch::default();
    let mut unplaced = Vec::new();
    for node in &reply.nodes {
        if node.domains.is_empty() {
            unplaced.push(node.node.as_str());
            continue;
        }
        let branch = node
            .domains
            .iter()
            .fold(&mut root, |b, domain| b.branches.entry(domain.as_str()).or_default());
        branch.nodes.push(&node.node);
    }
    let mut out = String::new();
    if reply.levels.is_empty() {
        out.push_str("no topology is known: every node stands beside every other\n");
    } else {
        out.push_str(&format!("levels, widest first: {}\n", reply.levels.join(", ")));
    }
    draw(&root, &reply.levels, "", screen, &mut out);
    if !unplaced.is_empty() {
        out.push_str(&format!("not in the map: {}\n", unplaced.join(" ")));
    }
    out
}

fn draw(branch: &Branch<'_>, levels: &[String], indent: &str, screen: &Screen, out: &mut String) {
    let (tee, elbow, bar) =
        if screen.unicode { ("├─ ", "└─ ", "│  ") } else { ("|- ", "`- ", "|  ") };
    let level = levels.first().map_or("", String::as_str);
    let last = branch.branches.len().saturating_sub(1);
    for (i, (name, inner)) in branch.branches.iter().enumerate() {
        let (mark, below) = if i == last { (elbow, "   ") } else { (tee, bar) };
        let size = count(inner.size() as u64, "node");
        out.push_str(&format!("{indent}{mark}{level} {}  {size}\n", printable(name)));
        let indent = format!("{indent}{below}");
        draw(inner, levels.get(1..).unwrap_or_default(), &indent, screen, out);
    }
    if !branch.nodes.is_empty() {
        let width = screen.width.saturating_sub(indent.chars().count() + 3).max(20);
        for line in wrap(&branch.nodes.join(" "), width) {
            out.push_str(&format!("{indent}   {}\n", printable(&line)));
        }
    }
}
