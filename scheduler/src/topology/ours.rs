//! Our own form, TOML.
//!
//! In: the text of a file in one of the two forms of [`super`]'s head. Out: a [`Sheet`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use tessera_core::topology::{NET, is_name};
use tessera_model::NodeId;
use tessera_model::refusal::nearest;

use super::draft::{Draft, Lines, Placed, Sheet, Wrong, domain_name, node_list, torn};

/// Keys beside the levels' tables, which no level may be called.
const RESERVED: [&str; 8] =
    ["fabric", "levels", "name", "nodes", "node", "switches", "allow_unknown", "unplaced"];

/// A domain as its table gives it.
struct Domain<'a> {
    name: &'a str,
    line: usize,
    parent: Option<&'a str>,
    nodes: Vec<(NodeId, usize)>,
    switches: BTreeSet<String>,
}

pub(super) fn read(text: &str) -> Result<Sheet, Wrong> {
    let lines = Lines::new(text);
    let document = DeTable::parse(text).map_err(|e| {
        let line = lines.at(e.span().map_or(0, |s| s.start));
        let what = e.message().replace('\n', ", ");
        Wrong::new(line, what, "the file is TOML, see https://toml.io")
    })?;
    Reader { lines }.sheet(document.get_ref())
}

struct Reader {
    lines: Lines,
}

impl Reader {
    fn line<T>(&self, at: &Spanned<T>) -> usize {
        self.lines.at(at.span().start)
    }

    fn sheet(&self, document: &DeTable<'_>) -> Result<Sheet, Wrong> {
        let mut sheet = Sheet::default();
        if let Some(value) = document.get("allow_unknown") {
            sheet.allow_unknown = value.get_ref().as_bool().ok_or_else(|| {
                let hint = "allow_unknown = true lets the map name nodes that never joined";
                Wrong::new(self.line(value), "allow_unknown is neither true nor false", hint)
            })?;
        }
        if let Some(value) = document.get("unplaced") {
            let hint = "list the nodes that stand nowhere: unplaced = [\"gpu[01-16]\"]";
            let texts = self.texts(value, "unplaced", hint)?;
            for (text, line) in texts {
                sheet.unplaced.extend(node_list(text, line)?);
            }
        }
        match (document.get("fabric"), document.get("levels")) {
            (Some(fabrics), None) => {
                let known = ["fabric", "allow_unknown", "unplaced"];
                if let Some((key, _)) =
                    document.iter().find(|(k, _)| !known.contains(&&**k.get_ref()))
                {
                    return Err(unknown(self.line(key), "the file", key.get_ref(), &known));
                }
                let hint = "begin each fabric with [[fabric]]";
                let wrong = |line| Wrong::new(line, "fabric is not a list of tables", hint);
                // `fabric = []` says that there is no map.
                let list = fabrics.get_ref().as_array();
                for item in list.ok_or_else(|| wrong(self.line(fabrics)))?.iter() {
                    let table = item.get_ref().as_table().ok_or_else(|| wrong(self.line(item)))?;
                    sheet.fabrics.push(self.named_fabric(table, self.line(item))?);
                }
            }
            (Some(fabric), Some(_)) => {
                return Err(Wrong::new(
                    self.line(fabric),
                    "the file has levels of its own and [[fabric]] beside them",
                    "put the levels into a [[fabric]] with name = \"net\"",
                ));
            }
            (None, _) => {
                let others = ["allow_unknown", "unplaced"];
                sheet.fabrics.push(self.fabric(NET, document, 1, &others)?);
            }
        }
        // What is said to stand nowhere must not stand somewhere.
        for fabric in &sheet.fabrics {
            if let Some(at) = fabric.nodes.iter().find(|at| sheet.unplaced.contains(&at.node)) {
                let what = format!("node {} is unplaced and in fabric {:?}", at.node, fabric.name);
                return Err(Wrong::new(at.line, what, "take it out of one of the two"));
            }
        }
        Ok(sheet)
    }

    fn named_fabric(&self, table: &DeTable<'_>, line: usize) -> Result<Draft, Wrong> {
        const HINT: &str = "name it: name = \"net\"; letters, digits, - and _ only";
        let value =
            table.get("name").ok_or_else(|| Wrong::new(line, "this fabric has no name", HINT))?;
        let name = value.get_ref().as_str().filter(|n| is_name(n));
        let name =
            name.ok_or_else(|| Wrong::new(self.line(value), "this is no name for a fabric", HINT))?;
        self.fabric(name, table, line, &["name"])
    }

    /// A fabric's levels and the tables of its domains; `others` are keys that are read elsewhere.
    fn fabric(
        &self,
        name: &str,
        table: &DeTable<'_>,
        line: usize,
        others: &[&str],
    ) -> Result<Draft, Wrong> {
        let (levels, levels_line) = self.levels(table, line)?;
        let mut domains: Vec<Vec<Domain<'_>>> = levels.iter().map(|_| Vec::new()).collect();
        for (key, value) in table {
            let word: &str = key.get_ref();
            if word == "levels" || others.contains(&word) {
                continue;
            }
            let Some(depth) = levels.iter().position(|l| *l == word) else {
                let known = levels.iter().copied().chain(["levels"]).chain(others.iter().copied());
                let hint = match nearest(word, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("add it to levels, which now has {}", levels.join(", ")),
                };
                return Err(Wrong::new(self.line(key), format!("{word:?} is no level"), hint));
            };
            let not_tables = || {
                let what = format!("{word:?} is not a list of tables");
                Wrong::new(self.line(key), what, format!("begin each with [[{word}]]"))
            };
            for item in value.get_ref().as_array().ok_or_else(not_tables)?.iter() {
                let fields = item.get_ref().as_table().ok_or_else(not_tables)?;
                domains[depth].push(self.domain(fields, self.line(item), depth, &levels)?);
            }
        }
        assemble(name, levels_line, &levels, &domains)
    }

    fn levels<'a>(
        &self,
        table: &'a DeTable<'_>,
        line: usize,
    ) -> Result<(Vec<&'a str>, usize), Wrong> {
        let hint = "begin with levels = [\"block\", \"leaf\"], widest first";
        let value = table
            .get("levels")
            .ok_or_else(|| Wrong::new(line, "the levels are not named", hint))?;
        let line = self.line(value);
        let list = value.get_ref().as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| Wrong::new(line, "levels is not a list of names", hint))?;
        let mut levels: Vec<&str> = Vec::new();
        for item in list.iter() {
            let line = self.line(item);
            let name = item.get_ref().as_str().filter(|name| is_name(name)).ok_or_else(|| {
                let what = "a level's name holds letters, digits, - and _ only, 63 at most";
                Wrong::new(line, what, hint)
            })?;
            if RESERVED.contains(&name) {
                let what = format!("{name:?} cannot be the name of a level");
                return Err(Wrong::new(line, what, hint));
            }
            if levels.contains(&name) {
                return Err(Wrong::new(line, format!("level {name:?} is named twice"), hint));
            }
            levels.push(name);
        }
        Ok((levels, line))
    }

    fn domain<'a>(
        &self,
        fields: &'a DeTable<'_>,
        line: usize,
        depth: usize,
        levels: &[&'a str],
    ) -> Result<Domain<'a>, Wrong> {
        let level = levels[depth];
        let above = depth.checked_sub(1).map(|d| levels[d]);
        let is_narrowest = depth + 1 == levels.len();
        let leaf_only: &[&str] = if is_narrowest { &["nodes", "switches"] } else { &[] };
        let known: Vec<&str> =
            ["name"].into_iter().chain(above).chain(leaf_only.iter().copied()).collect();
        if let Some((key, _)) = fields.iter().find(|(k, _)| !known.contains(&&**k.get_ref())) {
            return Err(unknown(self.line(key), &format!("a {level}"), key.get_ref(), &known));
        }
        let text = |key: &str, hint: String| {
            let value = fields
                .get(key)
                .ok_or_else(|| Wrong::new(line, format!("this {level} has no {key}"), &*hint))?;
            let text = value.get_ref().as_str().unwrap_or_default();
            domain_name(text, self.line(value), if key == "name" { level } else { key })?;
            Ok(text)
        };
        let name = text("name", format!("give the {level} a name"))?;
        let parent = match above {
            Some(above) => {
                Some(text(above, format!("say in which {above} {name} lies: {above} = \"…\""))?)
            }
            None => None,
        };
        let mut domain =
            Domain { name, line, parent, nodes: Vec::new(), switches: BTreeSet::new() };
        if is_narrowest {
            domain.nodes = self.nodes(fields, line, level, name)?;
        }
        if let Some(value) = fields.get("switches") {
            let hint = "list the names that nodes see as neighbours: switches = [\"sw-a1\"]";
            for (switch, line) in self.texts(value, "switches", hint)? {
                domain_name(switch, line, "switch")?;
                domain.switches.insert(switch.to_owned());
            }
        }
        Ok(domain)
    }

    fn nodes(
        &self,
        fields: &DeTable<'_>,
        line: usize,
        level: &str,
        name: &str,
    ) -> Result<Vec<(NodeId, usize)>, Wrong> {
        let hint = format!("list the nodes of {name}: nodes = [\"gpu[01-16]\"]");
        let empty = |line| Wrong::new(line, format!("{level} {name:?} has no nodes"), &*hint);
        let value = fields.get("nodes").ok_or_else(|| empty(line))?;
        let texts = self.texts(value, "nodes", &hint)?;
        if texts.is_empty() {
            return Err(empty(self.line(value)));
        }
        let mut nodes = Vec::new();
        for (text, line) in texts {
            nodes.extend(node_list(text, line)?.into_iter().map(|node| (node, line)));
        }
        Ok(nodes)
    }

    fn texts<'a>(
        &self,
        value: &'a Spanned<DeValue<'_>>,
        key: &str,
        hint: &str,
    ) -> Result<Vec<(&'a str, usize)>, Wrong> {
        let list = value.get_ref().as_array().ok_or_else(|| {
            Wrong::new(self.line(value), format!("{key} is not a list of texts"), hint)
        })?;
        let text = |item: &'a Spanned<DeValue<'_>>| {
            let line = self.line(item);
            let text = item.get_ref().as_str();
            let text = text
                .ok_or_else(|| Wrong::new(line, format!("{key} is not a list of texts"), hint))?;
            Ok((text, line))
        };
        list.iter().map(text).collect()
    }
}

/// Puts the domains together from the narrowest level up.
fn assemble(
    name: &str,
    line: usize,
    levels: &[&str],
    domains: &[Vec<Domain<'_>>],
) -> Result<Draft, Wrong> {
    let narrowest = levels.len() - 1;
    if domains[narrowest].is_empty() {
        let level = levels[narrowest];
        let what = format!("there is no {level}, so no node has a place");
        return Err(Wrong::new(line, what, format!("add [[{level}]] with a name and its nodes")));
    }
    let mut by_name: Vec<BTreeMap<&str, &Domain<'_>>> = Vec::new();
    for (level, domains) in levels.iter().zip(domains) {
        let mut index = BTreeMap::new();
        for domain in domains {
            if let Some(first) = index.insert(domain.name, domain) {
                return Err(twice(level, first, domain));
            }
        }
        by_name.push(index);
    }
    let mut draft = Draft {
        name: name.to_owned(),
        line,
        levels: levels.iter().map(|l| (*l).to_owned()).collect(),
        nodes: Vec::new(),
        switches: BTreeMap::new(),
    };
    let mut used: BTreeSet<(usize, &str)> = BTreeSet::new();
    for leaf in &domains[narrowest] {
        let mut path = vec![leaf.name.to_owned()];
        let mut at = leaf;
        for depth in (0..narrowest).rev() {
            // A domain below the widest level always names its parent: `domain` saw to it.
            let Some(parent) = at.parent else { break };
            path.push(parent.to_owned());
            used.insert((depth, parent));
            match by_name[depth].get(parent) {
                Some(next) => at = next,
                // The widest level, and it has no tables: any name will do.
                None if depth == 0 && by_name[0].is_empty() => break,
                None => return Err(unknown_parent(levels[depth], parent, at, &by_name[depth])),
            }
        }
        path.reverse();
        let path: Arc<[String]> = path.into();
        let nodes = leaf.nodes.iter();
        draft.nodes.extend(nodes.map(|(node, line)| Placed {
            node: node.clone(),
            line: *line,
            path: path.clone(),
        }));
        if !leaf.switches.is_empty() {
            draft.switches.insert(leaf.name.to_owned(), leaf.switches.clone());
        }
    }
    for depth in 0..narrowest {
        if let Some(empty) = domains[depth].iter().find(|d| !used.contains(&(depth, d.name))) {
            let what = format!("{} {:?} is empty", levels[depth], empty.name);
            let hint = format!("no {} lies in it; fill it or take it out", levels[depth + 1]);
            return Err(Wrong::new(empty.line, what, hint));
        }
    }
    Ok(draft)
}

fn unknown(line: usize, what: &str, word: &str, known: &[&str]) -> Wrong {
    let hint = match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{what} has {}", known.join(", ")),
    };
    Wrong::new(line, format!("{what} has no {word:?}"), hint)
}

fn unknown_parent(
    level: &str,
    parent: &str,
    child: &Domain<'_>,
    known: &BTreeMap<&str, &Domain<'_>>,
) -> Wrong {
    let hint = match nearest(parent, known.keys().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("add [[{level}]] with name = {parent:?}"),
    };
    Wrong::new(child.line, format!("there is no {level} {parent:?}"), hint)
}

fn twice(level: &str, first: &Domain<'_>, second: &Domain<'_>) -> Wrong {
    match (first.parent, second.parent) {
        (Some(a), Some(b)) if a != b => torn(second.line, level, second.name, a, b),
        _ => Wrong::new(
            second.line,
            format!("{level} {:?} is described twice", second.name),
            "put both descriptions into one",
        ),
    }
}
