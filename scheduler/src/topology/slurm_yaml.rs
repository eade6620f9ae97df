//! Slurm's `topology.yaml`: several named topologies, each a tree, blocks, or flat.
//!
//! In: the text. Out: a [`Sheet`]. The topology that is the cluster's default, or the first that has
//! levels, is the fabric `net`. Each other one is a fabric of its own name, and its levels' names
//! begin with it, `gpu_leaf`, since a level's name says which fabric is meant. Flat ones have no
//! levels and are passed over; so are kinds that are no trees, with a warning.

use tessera_core::topology::{NET, is_name};
use tessera_model::NodeId;
use tessera_model::refusal::nearest;

use super::draft::{Sheet, Wrong, domain_name, node_list};
use super::ranges::expand_list;
use super::slurm::{Block, Switch, Title, blocks, tree};
use super::yaml::{self, Value, What};

const KINDS: [&str; 5] = ["tree", "block", "flat", "ring", "torus3d"];

pub(super) fn read(text: &str) -> Result<Sheet, Wrong> {
    let hint = "begin each topology with `- topology: NAME`";
    let root = yaml::parse(text)?;
    let root = root.filter(|root| !matches!(root.what, What::Scalar(ref t) if t.is_empty()));
    let root = root.ok_or_else(|| Wrong::new(1, "the file is empty", hint))?;
    let What::List(list) = &root.what else {
        return Err(Wrong::new(root.line, "the file is no list of topologies", hint));
    };
    let topologies: Vec<Named<'_>> = list.iter().map(Named::read).collect::<Result<_, _>>()?;
    for (at, topology) in topologies.iter().enumerate() {
        if let Some(first) = topologies[..at].iter().find(|t| t.name == topology.name) {
            let what = format!("topology {:?} is described twice", topology.name);
            let hint = format!("the first is in line {}; give one another name", first.line);
            return Err(Wrong::new(topology.line, what, hint));
        }
    }
    let mut sheet = Sheet::default();
    let has_levels = |t: &&Named<'_>| matches!(t.kind, "tree" | "block");
    for topology in topologies.iter().filter(|t| matches!(t.kind, "ring" | "torus3d")) {
        let text = format!("topology {:?} is passed over: it has no levels", topology.name);
        sheet.warnings.push((topology.line, text));
    }
    let main = topologies
        .iter()
        .filter(has_levels)
        .find(|t| t.is_default)
        .or_else(|| topologies.iter().find(has_levels));
    let Some(main) = main else {
        let what = "no topology here has levels";
        return Err(Wrong::new(root.line, what, "leave the file out; without a map all is flat"));
    };
    // The one that placements are searched along goes first.
    let others = topologies.iter().filter(has_levels).filter(|t| t.name != main.name);
    for topology in std::iter::once(main).chain(others) {
        let is_main = topology.name == main.name;
        let prefix = format!("{}_", topology.name);
        let title = match is_main {
            true => Title { fabric: NET, prefix: "", line: topology.line },
            false if topology.name == NET => {
                let what = "topology \"net\" is not the default, and the default takes that name";
                return Err(Wrong::new(topology.line, what, "give it another name"));
            }
            false => Title { fabric: topology.name, prefix: &prefix, line: topology.line },
        };
        let draft = topology.draft(&title, &mut sheet.warnings)?;
        sheet.fabrics.push(draft);
    }
    Ok(sheet)
}

/// A topology and its kind.
struct Named<'a> {
    name: &'a str,
    line: usize,
    is_default: bool,
    kind: &'a str,
    body: &'a Value,
}

impl<'a> Named<'a> {
    fn read(value: &'a Value) -> Result<Self, Wrong> {
        let hint = "a topology has topology, cluster_default, and one of tree, block and flat";
        let What::Map(fields) = &value.what else {
            return Err(Wrong::new(value.line, "this is no topology", hint));
        };
        let known = ["topology", "cluster_default"].into_iter().chain(KINDS);
        check_keys(value, "a topology", known)?;
        let name = text(value, "topology", hint)?;
        if !is_name(name) {
            let what = format!("{name:?} is no name for a topology");
            return Err(Wrong::new(value.line, what, "letters, digits, - and _ only, 63 at most"));
        }
        let is_default = value.get("cluster_default").map_or(Ok(false), truth)?;
        let mut kind = None;
        for (key, body) in fields {
            let Some(known) = KINDS.into_iter().find(|k| *k == key.as_str()) else { continue };
            // `flat: false` says nothing.
            if known == "flat" && !truth(body)? {
                continue;
            }
            if let Some((other, _)) = kind.replace((known, body)) {
                let what = format!("topology {name:?} is {other} and {known}");
                return Err(Wrong::new(body.line, what, hint));
            }
        }
        let what = || format!("topology {name:?} is neither tree nor block nor flat");
        let (kind, body) = kind.ok_or_else(|| Wrong::new(value.line, what(), hint))?;
        Ok(Self { name, line: value.line, is_default, kind, body })
    }

    fn draft(
        &self,
        title: &Title<'_>,
        warnings: &mut Vec<(usize, String)>,
    ) -> Result<super::draft::Draft, Wrong> {
        if self.kind == "tree" {
            check_keys(self.body, "a tree", ["switches"])?;
            let hint = "list them: switches: [{switch: s1, nodes: gpu[01-16]}]";
            let list = items(self.body, "switches", hint)?;
            let switches: Vec<Switch> = list.iter().map(switch).collect::<Result<_, _>>()?;
            return tree(title, &switches);
        }
        check_keys(self.body, "a block topology", ["block_sizes", "blocks"])?;
        let hint = "list them: blocks: [{block: b1, nodes: gpu[01-16]}]";
        let rows: Vec<Block> =
            items(self.body, "blocks", hint)?.iter().map(block).collect::<Result<_, _>>()?;
        let mut sizes = Vec::new();
        if let Some(value) = self.body.get("block_sizes") {
            for size in value.scalars() {
                let (text, line) = size.ok_or_else(|| not_a_size(value.line))?;
                for part in text.split(',') {
                    sizes.push(part.trim().parse().map_err(|_| not_a_size(line))?);
                }
            }
        }
        let sizes_line = self.body.get("block_sizes").map_or(self.line, |v| v.line);
        blocks(title, &rows, &sizes, sizes_line, warnings)
    }
}

fn not_a_size(line: usize) -> Wrong {
    Wrong::new(line, "a block size is no number", "write block_sizes: [4, 16]")
}

fn switch(value: &Value) -> Result<Switch, Wrong> {
    let hint = "a switch has switch, and children or nodes";
    check_keys(value, "a switch", ["switch", "children", "nodes"])?;
    let name = text(value, "switch", hint)?;
    domain_name(name, value.line, "switch")?;
    let mut children = Vec::new();
    for (text, line) in list_texts(value, "children")? {
        children.extend(expand_list(text).map_err(|problem| {
            let what = format!("{text:?} {problem}");
            Wrong::new(line, what, "write s[0-3], s[01-16,20] or one name")
        })?);
    }
    Ok(Switch { name: name.to_owned(), line: value.line, nodes: nodes(value)?, children })
}

fn block(value: &Value) -> Result<Block, Wrong> {
    check_keys(value, "a block", ["block", "nodes"])?;
    let name = text(value, "block", "a block has block, and nodes")?;
    domain_name(name, value.line, "block")?;
    Ok(Block { name: name.to_owned(), line: value.line, nodes: nodes(value)? })
}

fn nodes(value: &Value) -> Result<Vec<NodeId>, Wrong> {
    let mut nodes = Vec::new();
    for (text, line) in list_texts(value, "nodes")? {
        nodes.extend(node_list(text, line)?);
    }
    Ok(nodes)
}

/// A text or a list of texts; none at all where the key is missing or empty.
fn list_texts<'a>(value: &'a Value, key: &str) -> Result<Vec<(&'a str, usize)>, Wrong> {
    let Some(list) = value.get(key) else { return Ok(Vec::new()) };
    let wrong = || Wrong::new(list.line, format!("{key} is no text"), "write gpu[01-16,20]");
    let texts = list.scalars().map(|text| text.ok_or_else(wrong));
    let texts: Vec<_> = texts.collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|(text, _)| !text.is_empty()).collect())
}

fn check_keys<'a>(
    value: &Value,
    what: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Result<(), Wrong> {
    let known: Vec<&str> = known.into_iter().collect();
    let hint = || format!("{what} has {}", known.join(", "));
    let What::Map(fields) = &value.what else {
        return Err(Wrong::new(value.line, format!("this is not {what}"), hint()));
    };
    if let Some((key, field)) = fields.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        let hint = match nearest(key, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => hint(),
        };
        return Err(Wrong::new(field.line, format!("{what} has no {key:?}"), hint));
    }
    Ok(())
}

fn text<'a>(value: &'a Value, key: &str, hint: &str) -> Result<&'a str, Wrong> {
    match value.get(key).map(|v| &v.what) {
        Some(What::Scalar(text)) if !text.is_empty() => Ok(text),
        _ => Err(Wrong::new(value.line, format!("it has no {key}"), hint)),
    }
}

fn items<'a>(value: &'a Value, key: &str, hint: &str) -> Result<&'a [Value], Wrong> {
    match value.get(key).map(|v| &v.what) {
        Some(What::List(list)) if !list.is_empty() => Ok(list),
        _ => Err(Wrong::new(value.line, format!("it has no {key}"), hint)),
    }
}

fn truth(value: &Value) -> Result<bool, Wrong> {
    match &value.what {
        What::Scalar(text) if ["true", "yes"].iter().any(|t| text.eq_ignore_ascii_case(t)) => {
            Ok(true)
        }
        What::Scalar(text) if ["false", "no"].iter().any(|t| text.eq_ignore_ascii_case(t)) => {
            Ok(false)
        }
        _ => Err(Wrong::new(value.line, "this is neither true nor false", "write true or false")),
    }
}
