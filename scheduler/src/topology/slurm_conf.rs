//! Slurm's `topology.conf`, for the plugins topology/tree and topology/block.
//!
//! In: the text. Out: a [`Sheet`] with the one fabric `net`. Keys are read in any case, `#` begins a
//! comment, and a backslash at the end of a line goes on in the next.

use tessera_core::topology::NET;
use tessera_model::NodeId;
use tessera_model::refusal::nearest;

use super::draft::{Sheet, Wrong, domain_name, node_list};
use super::ranges::expand_list;
use super::slurm::{Block, Switch, Title, blocks, tree};

const KEYS: [&str; 6] = ["SwitchName", "Switches", "Nodes", "LinkSpeed", "BlockName", "BlockSizes"];

pub(super) fn read(text: &str) -> Result<Sheet, Wrong> {
    let mut switches: Vec<Switch> = Vec::new();
    let mut rows: Vec<Block> = Vec::new();
    let mut sizes: Option<(Vec<u32>, usize)> = None;
    for statement in statements(text)? {
        match statement.kind()? {
            Kind::Switch => switches.push(statement.switch()?),
            Kind::Block => rows.push(statement.block()?),
            Kind::Sizes => {
                let (list, line) = statement.sizes()?;
                if let Some((_, first)) = sizes.replace((list, line)) {
                    let hint = format!("put it together with line {first}");
                    return Err(Wrong::new(line, "BlockSizes is there twice", hint));
                }
            }
        }
    }
    let mut sheet = Sheet::default();
    let title = |line| Title { fabric: NET, prefix: "", line };
    let draft = match (switches.first(), rows.first(), sizes) {
        (Some(_), Some(block), _) => {
            return Err(Wrong::new(
                block.line,
                "the file has switches and blocks",
                "Slurm reads one kind, by its TopologyPlugin; give each kind a file of its own",
            ));
        }
        (Some(_), None, Some((_, line))) => {
            return Err(Wrong::new(line, "BlockSizes goes with BlockName", "take the line out"));
        }
        (Some(first), None, None) => tree(&title(first.line), &switches)?,
        (None, Some(first), sizes) => {
            let (list, line) = sizes.unwrap_or((Vec::new(), first.line));
            blocks(&title(first.line), &rows, &list, line, &mut sheet.warnings)?
        }
        (None, None, _) => {
            return Err(Wrong::new(
                1,
                "the file has no switch and no block",
                "write SwitchName=… Nodes=… or BlockName=… Nodes=… in each line",
            ));
        }
    };
    sheet.fabrics.push(draft);
    Ok(sheet)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Switch,
    Block,
    Sizes,
}

/// One line of the file, or several that go on in each other.
struct Statement {
    words: Vec<Word>,
}

struct Word {
    line: usize,
    /// As written in [`KEYS`].
    key: &'static str,
    value: String,
}

impl Statement {
    fn kind(&self) -> Result<Kind, Wrong> {
        let first = |kind: Kind| match kind {
            Kind::Switch => "SwitchName",
            Kind::Block => "BlockName",
            Kind::Sizes => "BlockSizes",
        };
        for kind in [Kind::Switch, Kind::Block, Kind::Sizes] {
            if self.words.iter().any(|w| w.key == first(kind)) {
                let known: &[&str] = match kind {
                    Kind::Switch => &["SwitchName", "Switches", "Nodes", "LinkSpeed"],
                    Kind::Block => &["BlockName", "Nodes"],
                    Kind::Sizes => &["BlockSizes"],
                };
                if let Some(word) = self.words.iter().find(|w| !known.contains(&w.key)) {
                    let what = format!("{} does not go with {}", word.key, first(kind));
                    let hint = format!("such a line has {}", known.join(", "));
                    return Err(Wrong::new(word.line, what, hint));
                }
                return Ok(kind);
            }
        }
        let line = self.words.first().map_or(1, |w| w.line);
        let hint = "begin it with SwitchName=…, BlockName=… or BlockSizes=…";
        Err(Wrong::new(line, "the line names neither switch nor block", hint))
    }

    fn word(&self, key: &str) -> Option<&Word> {
        self.words.iter().find(|w| w.key == key)
    }

    fn nodes(&self) -> Result<Vec<NodeId>, Wrong> {
        let Some(word) = self.word("Nodes") else { return Ok(Vec::new()) };
        if word.value.eq_ignore_ascii_case("ALL") {
            let hint = "list them: Nodes=gpu[01-16]";
            return Err(Wrong::new(word.line, "Nodes=ALL names no node", hint));
        }
        node_list(&word.value, word.line)
    }

    fn name(&self, key: &str, what: &str) -> Result<(String, usize), Wrong> {
        let word = self.word(key);
        let (name, line) = word.map_or((String::new(), 1), |w| (w.value.clone(), w.line));
        domain_name(&name, line, what)?;
        if name.contains(['[', ']', ',']) {
            let hint = "give each a line of its own";
            return Err(Wrong::new(line, format!("{name:?} is no single {what}"), hint));
        }
        Ok((name, line))
    }

    fn switch(&self) -> Result<Switch, Wrong> {
        let (name, line) = self.name("SwitchName", "switch")?;
        let children = match self.word("Switches") {
            Some(word) => expand_list(&word.value).map_err(|problem| {
                let what = format!("{:?} {problem}", word.value);
                Wrong::new(word.line, what, "write s[0-3], s[01-16,20] or one name")
            })?,
            None => Vec::new(),
        };
        Ok(Switch { name, line, nodes: self.nodes()?, children })
    }

    fn block(&self) -> Result<Block, Wrong> {
        let (name, line) = self.name("BlockName", "block")?;
        Ok(Block { name, line, nodes: self.nodes()? })
    }

    fn sizes(&self) -> Result<(Vec<u32>, usize), Wrong> {
        let (text, line) = self.word("BlockSizes").map_or(("", 1), |w| (w.value.as_str(), w.line));
        let size = |part: &str| {
            part.trim().parse().map_err(|_| {
                let hint = "write BlockSizes=4,16";
                Wrong::new(line, format!("block size {part:?} is no number"), hint)
            })
        };
        Ok((text.split(',').map(size).collect::<Result<_, _>>()?, line))
    }
}

fn statements(text: &str) -> Result<Vec<Statement>, Wrong> {
    let mut statements = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    for (at, raw) in text.lines().enumerate() {
        let line = at + 1;
        let body = raw.split_once('#').map_or(raw, |(body, _)| body).trim_end();
        let (body, goes_on) = match body.strip_suffix('\\') {
            Some(body) => (body, true),
            None => (body, false),
        };
        read_words(body, line, &mut words)?;
        if !goes_on && !words.is_empty() {
            statements.push(Statement { words: std::mem::take(&mut words) });
        }
    }
    if !words.is_empty() {
        statements.push(Statement { words });
    }
    Ok(statements)
}

fn read_words(body: &str, line: usize, words: &mut Vec<Word>) -> Result<(), Wrong> {
    let mut rest = body.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let known = KEYS.into_iter().find(|k| k.eq_ignore_ascii_case(key));
        let Some(key) = known else { return Err(unknown_key(key, line)) };
        let no_value = |what: &str| {
            Wrong::new(
                line,
                format!("{key} {what}"),
                format!("write {key}=…, without blanks in it"),
            )
        };
        let value =
            after.trim_start().strip_prefix('=').ok_or_else(|| no_value("has no = behind it"))?;
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                quoted.split_once('"').ok_or_else(|| no_value("has a quote that does not end"))?
            }
            None => value.split_at(value.find(char::is_whitespace).unwrap_or(value.len())),
        };
        if value.is_empty() {
            return Err(no_value("has no value"));
        }
        if words.iter().any(|w| w.key == key) {
            return Err(Wrong::new(line, format!("{key} is there twice"), "give it once a line"));
        }
        words.push(Word { line, key, value: value.to_owned() });
        rest = after.trim_start();
    }
    Ok(())
}

fn unknown_key(key: &str, line: usize) -> Wrong {
    if key.eq_ignore_ascii_case("RingName") {
        let what = "rings have no levels";
        return Wrong::new(line, what, "describe the nodes' switches or blocks instead");
    }
    if key.eq_ignore_ascii_case("Include") {
        let hint = "put that file's lines here";
        return Wrong::new(line, "other files are not included", hint);
    }
    let hint = match nearest(key, KEYS) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are {}", KEYS.join(", ")),
    };
    Wrong::new(line, format!("topology.conf has no {key:?}"), hint)
}
