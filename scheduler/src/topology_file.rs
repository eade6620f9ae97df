//! The operator's map: where each node stands in the network.
//!
//! In: a TOML file. Out: a [`Topology`], or an error that names the file, the line and the nearest
//! right name.
//!
//! ```toml
//! levels = ["block", "leaf"]      # widest first; any names, any depth
//!
//! [[leaf]]                        # the narrowest level lists nodes
//! name  = "leaf-1"
//! block = "block-a"               # and says which domain of the next wider level it lies in
//! nodes = ["gpu-a[01-16]", "gpu-b[1,3-5]"]
//! ```
//! Levels between the widest and the narrowest have a table for each domain that names its own
//! parent; the widest need none.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use tessera_model::NodeId;
use tessera_model::refusal::nearest;
use tessera_model::topology::Topology;

/// More than any cluster we know of; a slip such as `n[1-99999999]` ends here.
const NODES_MAX: usize = 200_000;

#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("cannot read the topology file {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}: {problem}")]
    Wrong { path: PathBuf, line: usize, problem: String, hint: String },
}

impl TopologyError {
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "see that the file exists and may be read".into(),
            Self::Wrong { hint, .. } => hint.clone(),
        }
    }
}

pub fn load(path: &Path) -> Result<Topology, TopologyError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TopologyError::Unreadable { path: path.to_owned(), source })?;
    parse(&text).map_err(|wrong| TopologyError::Wrong {
        path: path.to_owned(),
        line: crate::config::line_of(&text, wrong.at),
        problem: wrong.problem,
        hint: wrong.hint,
    })
}

/// What is wrong at which byte.
#[derive(Debug)]
struct Wrong {
    at: usize,
    problem: String,
    hint: String,
}

impl Wrong {
    fn new(span: Range<usize>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { at: span.start, problem: problem.into(), hint: hint.into() }
    }
}

/// A domain as its table gives it.
struct Domain<'a> {
    at: Range<usize>,
    parent: Option<&'a str>,
    nodes: Vec<(NodeId, Range<usize>)>,
}

fn parse(text: &str) -> Result<Topology, Wrong> {
    let document = DeTable::parse(text).map_err(|e| {
        let at = e.span().unwrap_or(0..0);
        Wrong::new(at, e.message().replace('\n', ", "), "the file is TOML, see https://toml.io")
    })?;
    let document = document.get_ref();
    let levels = read_levels(document)?;
    // Depth -> name -> domain.
    let mut domains: Vec<BTreeMap<&str, Domain<'_>>> =
        levels.iter().map(|_| BTreeMap::new()).collect();
    for (key, value) in document {
        if key.get_ref() == "levels" {
            continue;
        }
        let Some(depth) = levels.iter().position(|l| *l == key.get_ref()) else {
            return Err(unknown_level(key, &levels));
        };
        let tables = value.get_ref().as_array().ok_or_else(|| {
            let what = format!("{:?} is not a list of tables", key.get_ref());
            Wrong::new(key.span(), what, format!("begin each {0} with [[{0}]]", key.get_ref()))
        })?;
        for table in tables.iter() {
            let (name, domain) = read_domain(table, depth, &levels)?;
            if let Some(first) = domains[depth].get(name) {
                return Err(twice(levels[depth], name, first, &domain));
            }
            domains[depth].insert(name, domain);
        }
    }
    assemble(&levels, &domains)
}

fn read_levels<'a>(document: &'a DeTable<'_>) -> Result<Vec<&'a str>, Wrong> {
    let hint = "begin with levels = [\"block\", \"leaf\"], widest first";
    let value =
        document.get("levels").ok_or_else(|| Wrong::new(0..0, "the levels are not named", hint))?;
    let wrong = |span, problem: String| Wrong::new(span, problem, hint);
    let list = value
        .get_ref()
        .as_array()
        .filter(|list| !list.is_empty())
        .ok_or_else(|| wrong(value.span(), "levels is not a list of names".into()))?;
    let mut levels: Vec<&str> = Vec::new();
    for item in list.iter() {
        let name = item
            .get_ref()
            .as_str()
            .filter(|n| {
                !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            })
            .ok_or_else(|| {
                wrong(item.span(), "a level's name holds letters, digits, - and _ only".into())
            })?;
        if ["levels", "name", "nodes", "node"].contains(&name) {
            return Err(wrong(item.span(), format!("{name:?} cannot be the name of a level")));
        }
        if levels.contains(&name) {
            return Err(wrong(item.span(), format!("level {name:?} is named twice")));
        }
        levels.push(name);
    }
    Ok(levels)
}

fn read_domain<'a>(
    table: &'a Spanned<DeValue<'_>>,
    depth: usize,
    levels: &[&'a str],
) -> Result<(&'a str, Domain<'a>), Wrong> {
    let level = levels[depth];
    let fields = table.get_ref().as_table().ok_or_else(|| {
        Wrong::new(
            table.span(),
            format!("{level:?} is not a list of tables"),
            format!("begin each with [[{level}]]"),
        )
    })?;
    let above = depth.checked_sub(1).map(|d| levels[d]);
    let is_narrowest = depth + 1 == levels.len();
    let known: Vec<&str> =
        ["name"].into_iter().chain(above).chain(is_narrowest.then_some("nodes")).collect();
    for key in fields.keys() {
        if !known.contains(&key.get_ref().as_ref()) {
            let hint = match nearest(key.get_ref(), known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("a {level} has {}", known.join(", ")),
            };
            let what = format!("a {level} has no {:?}", key.get_ref());
            return Err(Wrong::new(key.span(), what, hint));
        }
    }
    let text = |key: &str, hint: String| {
        let value = fields.get(key).ok_or_else(|| {
            Wrong::new(table.span(), format!("this {level} has no {key}"), hint.clone())
        })?;
        value.get_ref().as_str().filter(|t| !t.is_empty() && t.len() <= 128).ok_or_else(|| {
            Wrong::new(value.span(), format!("{key} is not a text of 1 to 128 bytes"), hint)
        })
    };
    let name = text("name", format!("give the {level} a name"))?;
    let parent = match above {
        Some(above) => {
            Some(text(above, format!("say in which {above} {name} lies: {above} = \"…\""))?)
        }
        None => None,
    };
    let nodes = if is_narrowest { read_nodes(fields, table, level, name)? } else { Vec::new() };
    Ok((name, Domain { at: table.span(), parent, nodes }))
}

fn read_nodes(
    fields: &DeTable<'_>,
    table: &Spanned<DeValue<'_>>,
    level: &str,
    name: &str,
) -> Result<Vec<(NodeId, Range<usize>)>, Wrong> {
    let hint = format!("list the nodes of {name}: nodes = [\"gpu[01-16]\"]");
    let at = fields.get("nodes").map_or_else(|| table.span(), Spanned::span);
    let list = fields
        .get("nodes")
        .and_then(|v| v.get_ref().as_array())
        .filter(|list| !list.is_empty())
        .ok_or_else(|| Wrong::new(at, format!("{level} {name:?} has no nodes"), hint.clone()))?;
    let mut nodes = Vec::new();
    for item in list.iter() {
        let text = item
            .get_ref()
            .as_str()
            .ok_or_else(|| Wrong::new(item.span(), "a node's name is a text", hint.clone()))?;
        let names = expand(text).map_err(|problem| {
            Wrong::new(
                item.span(),
                format!("{text:?} {problem}"),
                "write n[0-3], n[01-16,20] or one name",
            )
        })?;
        for name in names {
            let node = NodeId::parse(&name)
                .map_err(|e| Wrong::new(item.span(), e.to_string(), hint.clone()))?;
            nodes.push((node, item.span()));
        }
        if nodes.len() > NODES_MAX {
            return Err(Wrong::new(item.span(), format!("more than {NODES_MAX} nodes"), hint));
        }
    }
    Ok(nodes)
}

/// Puts the domains together from the narrowest level up.
fn assemble(levels: &[&str], domains: &[BTreeMap<&str, Domain<'_>>]) -> Result<Topology, Wrong> {
    let narrowest = levels.len() - 1;
    if domains[narrowest].is_empty() {
        let level = levels[narrowest];
        let what = format!("there is no {level}, so no node has a place");
        return Err(Wrong::new(0..0, what, format!("add [[{level}]] with a name and its nodes")));
    }
    let mut topology = Topology {
        levels: levels.iter().map(|l| (*l).to_owned()).collect(),
        nodes: BTreeMap::new(),
    };
    let mut used: Vec<BTreeMap<&str, ()>> = levels.iter().map(|_| BTreeMap::new()).collect();
    for (name, leaf) in &domains[narrowest] {
        let mut path = vec![(*name).to_owned()];
        let mut at = leaf;
        for depth in (0..narrowest).rev() {
            // A domain below the widest level always names its parent: `read_domain` saw to it.
            let Some(parent) = at.parent else { break };
            path.push(parent.to_owned());
            used[depth].insert(parent, ());
            match domains[depth].get(parent) {
                Some(next) => at = next,
                // The widest level, and it has no tables: any name will do.
                None if depth == 0 && domains[0].is_empty() => break,
                None => return Err(unknown_parent(levels[depth], parent, at, &domains[depth])),
            }
        }
        path.reverse();
        for (node, span) in &leaf.nodes {
            if let Some(before) = topology.nodes.insert(node.clone(), path.clone()) {
                let (level, first) = (levels[narrowest], before.last().map_or("", |d| d));
                let what = match first == *name {
                    true => format!("node {node} is listed twice in {level} {name:?}"),
                    false => format!("node {node} is in {level} {first:?} and in {name:?}"),
                };
                return Err(Wrong::new(span.clone(), what, "a node stands in one place"));
            }
        }
    }
    if topology.nodes.len() > NODES_MAX {
        return Err(Wrong::new(0..0, format!("more than {NODES_MAX} nodes"), "split the cluster"));
    }
    for depth in 0..narrowest {
        if let Some((name, domain)) =
            domains[depth].iter().find(|(name, _)| !used[depth].contains_key(*name))
        {
            let what = format!("{} {name:?} is empty", levels[depth]);
            let hint = format!("no {} lies in it; fill it or take it out", levels[depth + 1]);
            return Err(Wrong::new(domain.at.clone(), what, hint));
        }
    }
    Ok(topology)
}

fn unknown_level(key: &Spanned<std::borrow::Cow<'_, str>>, levels: &[&str]) -> Wrong {
    let known = levels.iter().copied().chain(["levels"]);
    let hint = match nearest(key.get_ref(), known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add it to levels, which now has {}", levels.join(", ")),
    };
    Wrong::new(key.span(), format!("{:?} is no level", key.get_ref()), hint)
}

fn unknown_parent(
    level: &str,
    parent: &str,
    child: &Domain<'_>,
    known: &BTreeMap<&str, Domain<'_>>,
) -> Wrong {
    let hint = match nearest(parent, known.keys().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add [[{level}]] with name = {parent:?}"),
    };
    Wrong::new(child.at.clone(), format!("there is no {level} {parent:?}"), hint)
}

fn twice(level: &str, name: &str, first: &Domain<'_>, second: &Domain<'_>) -> Wrong {
    match (first.parent, second.parent) {
        (Some(a), Some(b)) if a != b => Wrong::new(
            second.at.clone(),
            format!("{level} {name:?} is torn: it lies in {a:?} and in {b:?}"),
            "a domain lies in one wider domain; give one of the two another name",
        ),
        _ => Wrong::new(
            second.at.clone(),
            format!("{level} {name:?} is described twice"),
            "put both descriptions into one",
        ),
    }
}

/// `n[0-2]x` -> `n0x`, `n1x`, `n2x`; leading zeros are kept, `[01-10]` has two digits throughout.
fn expand(text: &str) -> Result<Vec<String>, String> {
    let Some(open) = text.find('[') else {
        return match text.contains(']') {
            true => Err("has a ] without a [".into()),
            false => Ok(vec![text.to_owned()]),
        };
    };
    let close = text[open..].find(']').ok_or("has a [ without a ]")? + open;
    let (head, list, tail) = (&text[..open], &text[open + 1..close], &text[close + 1..]);
    if head.contains(']') || list.contains('[') {
        return Err("has brackets that do not pair".into());
    }
    let tails = expand(tail)?;
    let mut out = Vec::new();
    for part in list.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let number = |t: &str| match t.len() <= 9 && t.bytes().all(|b| b.is_ascii_digit()) {
            true => {
                t.parse::<u32>().map_err(|_| format!("has {part:?}, which is no number or range"))
            }
            false => Err(format!("has {part:?}, which is no number or range")),
        };
        let (first, last) = (number(low)?, number(high)?);
        if first > last {
            return Err(format!("has {part:?}, which counts down"));
        }
        if (last - first) as usize * tails.len().max(1) > NODES_MAX {
            return Err(format!("names more than {NODES_MAX} nodes"));
        }
        let width = if low.starts_with('0') { low.len() } else { 1 };
        for n in first..=last {
            out.extend(tails.iter().map(|tail| format!("{head}{n:0width$}{tail}")));
        }
        if out.len() > NODES_MAX {
            return Err(format!("names more than {NODES_MAX} nodes"));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(text: &str) -> String {
        match parse(text) {
            Ok(map) => {
                let nodes = map.nodes.iter().map(|(n, path)| format!("{n}={}", path.join("/")));
                format!("{}: {}", map.levels.join("/"), nodes.collect::<Vec<_>>().join(" "))
            }
            Err(w) => {
                format!("{}: {}; {}", crate::config::line_of(text, w.at), w.problem, w.hint)
            }
        }
    }

    #[test]
    fn the_sample_map_is_right() {
        let map = parse(include_str!("../../deploy/config/topology.toml")).unwrap();
        let path = &map.nodes[&NodeId::parse("gpu-a16").unwrap()];
        assert_eq!(path[..], ["block-a", "leaf-1"]);
        assert_eq!(map.nodes.len(), 48);
    }

    #[test]
    fn maps_are_read() {
        for (text, want) in [
            (
                "levels = ['block', 'leaf']\n[[leaf]]\nname='l0'\nblock='b0'\nnodes=['n[0-1]','x']",
                "block/leaf: n0=b0/l0 n1=b0/l0 x=b0/l0",
            ),
            (
                "levels = ['rack']\n[[rack]]\nname='r'\nnodes=['n[08-10,2]-ib']",
                "rack: n08-ib=r n09-ib=r n10-ib=r n2-ib=r",
            ),
            (
                "levels = ['zone','block','leaf']\n[[block]]\nname='b'\nzone='z'\n[[leaf]]\nname='l'\nblock='b'\nnodes=['a[1-2]b[3-4]']",
                "zone/block/leaf: a1b3=z/b/l a1b4=z/b/l a2b3=z/b/l a2b4=z/b/l",
            ),
            (
                "levels = ['block', 'leaf']\n[[block]]\nname='b0'\n[[leaf]]\nname='l0'\nblock='b0'\nnodes=['n']",
                "block/leaf: n=b0/l0",
            ),
        ] {
            assert_eq!(picture(text), want);
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let head = "levels = ['block', 'leaf']\n";
        let leaf = "[[leaf]]\nname='l0'\nblock='b0'\nnodes=['n[0-3]']\n";
        let cases = [
            ("".to_owned(), "1: the levels are not named"),
            ("levels = 'x'".into(), "1: levels is not a list of names"),
            ("levels = []".into(), "1: levels is not a list of names"),
            ("levels = ['a', 'a']".into(), "1: level \"a\" is named twice"),
            ("levels = ['nodes']".into(), "1: \"nodes\" cannot be the name of a level"),
            (head.into(), "1: there is no leaf, so no node has a place"),
            ("levels = ['a'\n\n[[b]]".into(), "3: "),
            (format!("{head}[[laef]]\nname='x'"), "2: \"laef\" is no level; did you mean `leaf`?"),
            (format!("{head}[[rack]]\nname='x'"), "2: \"rack\" is no level; add it to levels"),
            (format!("{head}leaf = 3"), "2: \"leaf\" is not a list of tables"),
            (
                format!("{head}[[leaf]]\nname='x'\nblok='b'"),
                "4: a leaf has no \"blok\"; did you mean `block`?",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nnodes=['n']"),
                "2: this leaf has no block; say in which block x lies",
            ),
            (format!("{head}[[leaf]]\nname=''\nblock='b'\nnodes=['n']"), "3: name is not a text"),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=[]"),
                "5: leaf \"x\" has no nodes",
            ),
            (format!("{head}[[leaf]]\nname='x'\nblock='b'"), "2: leaf \"x\" has no nodes"),
            (
                format!("{head}{leaf}[[leaf]]\nname='l1'\nblock='b0'\nnodes=['n3']"),
                "9: node n3 is in leaf \"l0\" and in \"l1\"",
            ),
            (
                format!("{head}[[leaf]]\nname='l'\nblock='b'\nnodes=['n1',\n'n[0-1]']"),
                "6: node n1 is listed twice in leaf \"l\"",
            ),
            (
                format!("{head}{leaf}[[leaf]]\nname='l0'\nblock='b1'\nnodes=['m']"),
                "6: leaf \"l0\" is torn: it lies in \"b0\" and in \"b1\"",
            ),
            (
                format!("{head}{leaf}[[leaf]]\nname='l0'\nblock='b0'\nnodes=['m']"),
                "6: leaf \"l0\" is described twice",
            ),
            (
                format!("{head}[[block]]\nname='b9'\n{leaf}"),
                "4: there is no block \"b0\"; did you mean `b9`?",
            ),
            (
                format!("{head}[[block]]\nname='b0'\n[[block]]\nname='b1'\n{leaf}"),
                "4: block \"b1\" is empty",
            ),
            (
                format!("{head}[[block]]\nname='b0'\nnodes=['n']\n{leaf}"),
                "4: a block has no \"nodes\"",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['n[3-1]']"),
                "5: \"n[3-1]\" has \"3-1\", which counts down",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['n[1-']"),
                "5: \"n[1-\" has a [ without a ]",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['n[]']"),
                "5: \"n[]\" has \"\", which is no number",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['n[0-999999999]']"),
                "5: \"n[0-999999999]\" names more than",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=['a b']"),
                "5: node \"a b\" may hold letters",
            ),
            (
                format!("{head}[[leaf]]\nname='x'\nblock='b'\nnodes=[3]"),
                "5: a node's name is a text",
            ),
        ];
        for (text, want) in cases {
            let got = picture(&text);
            assert!(got.starts_with(want), "{text}\n got {got}\nwant {want}");
        }
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(&dir.path().join("none.toml")).unwrap_err();
        assert!(error.to_string().contains("none.toml"), "{error}");
        let path = dir.path().join("t.toml");
        std::fs::write(&path, "levels = ['a']\n[[b]]\nname='x'").unwrap();
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("t.toml:2: \"b\" is no level"), "{error}");
    }
}
