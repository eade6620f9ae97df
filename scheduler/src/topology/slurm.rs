//! Slurm's two kinds of map, as both of its files state them: a tree of switches, and a row of
//! blocks that lie beside each other.
//!
//! In: switches or blocks with their lines. Out: a [`Draft`]. The widest switches need not be
//! joined; link speeds are not read, as Slurm does not use them either.
//!
//! Levels of a tree are called from the nodes up: `leaf`, `spine`, `core`, `tier_3`, … Blocks are
//! the level `block`, and each further block size is a level of its own, `block_16`, whose domains
//! are runs of neighbouring blocks. Slurm counts them by place: a block that is missing in the file
//! moves all that follow, so one without nodes keeps its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_core::topology::{LEVELS_MAX, tier_name};
use tessera_model::NodeId;
use tessera_model::refusal::nearest;

use super::draft::{Draft, Placed, Wrong, torn};

pub(super) struct Switch {
    pub name: String,
    pub line: usize,
    pub nodes: Vec<NodeId>,
    pub children: Vec<String>,
}

pub(super) struct Block {
    pub name: String,
    pub line: usize,
    pub nodes: Vec<NodeId>,
}

/// What a fabric is called, and what stands before its levels' names so that they are nobody else's.
pub(super) struct Title<'a> {
    pub fabric: &'a str,
    pub prefix: &'a str,
    pub line: usize,
}

pub(super) fn tree(title: &Title<'_>, switches: &[Switch]) -> Result<Draft, Wrong> {
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, switch) in switches.iter().enumerate() {
        if let Some(first) = index.insert(&switch.name, at) {
            return Err(twice("switch", &switch.name, switches[first].line, switch.line));
        }
        let what = match (switch.nodes.is_empty(), switch.children.is_empty()) {
            (false, false) => "has nodes and switches below it, so its nodes lack a level",
            (true, true) => "has neither nodes nor switches below it",
            _ => continue,
        };
        return Err(Wrong::new(
            switch.line,
            format!("switch {:?} {what}", switch.name),
            "a switch has either; give nodes beside switches a switch of their own",
        ));
    }
    let parents = parents(switches, &index)?;
    // From each leaf to the top.
    let mut paths: Vec<(usize, Vec<usize>)> = Vec::new();
    for (leaf, switch) in switches.iter().enumerate().filter(|(_, s)| !s.nodes.is_empty()) {
        let mut path = vec![leaf];
        let mut at = leaf;
        while let Some(parent) = parents[at] {
            path.push(parent);
            at = parent;
            if path.len() > LEVELS_MAX {
                let what = format!("switch {:?} lies below {LEVELS_MAX} others", switch.name);
                return Err(Wrong::new(switch.line, what, format!("{LEVELS_MAX} levels at most")));
            }
        }
        paths.push((leaf, path));
    }
    let depth = usual(paths.iter().map(|(_, path)| path.len()));
    if let Some((leaf, path)) = paths.iter().find(|(_, path)| path.len() != depth) {
        return Err(ragged(&switches[*leaf], path.len() - 1, depth - 1));
    }
    let mut draft = Draft {
        name: title.fabric.to_owned(),
        line: title.line,
        levels: (0..depth).rev().map(|t| format!("{}{}", title.prefix, tier_name(t))).collect(),
        nodes: Vec::new(),
        switches: BTreeMap::new(),
    };
    for (leaf, path) in paths {
        let path: Arc<[String]> = path.iter().rev().map(|at| switches[*at].name.clone()).collect();
        place(&mut draft, &switches[leaf].nodes, switches[leaf].line, path);
    }
    Ok(draft)
}

/// Each switch's parent. Looks for unknown children, two parents, and loops.
fn parents(
    switches: &[Switch],
    index: &BTreeMap<&str, usize>,
) -> Result<Vec<Option<usize>>, Wrong> {
    let mut parents: Vec<Option<usize>> = vec![None; switches.len()];
    for (at, switch) in switches.iter().enumerate() {
        let mut own = BTreeSet::new();
        for child in &switch.children {
            let Some(&below) = index.get(child.as_str()) else {
                let hint = match nearest(child, index.keys().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "describe it, or take it out".to_owned(),
                };
                let what = format!("there is no switch {child:?} to lie below {:?}", switch.name);
                return Err(Wrong::new(switch.line, what, hint));
            };
            if !own.insert(below) {
                let what = format!("switch {child:?} is listed twice below {:?}", switch.name);
                return Err(Wrong::new(switch.line, what, "list it once"));
            }
            if let Some(first) = parents[below].replace(at) {
                let first = &switches[first].name;
                return Err(torn(switch.line, "switch", child, first, &switch.name));
            }
        }
    }
    // With one parent each, a way up either ends or runs into itself.
    let mut seen: Vec<usize> = vec![0; switches.len()];
    for start in 0..switches.len() {
        let mut at = Some(start);
        while let Some(here) = at.filter(|at| seen[*at] == 0) {
            seen[here] = start + 1;
            at = parents[here];
        }
        if let Some(met) = at.filter(|at| seen[*at] == start + 1) {
            return Err(circle(switches, &parents, met));
        }
    }
    Ok(parents)
}

fn circle(switches: &[Switch], parents: &[Option<usize>], start: usize) -> Wrong {
    let mut names = vec![switches[start].name.as_str()];
    let mut at = start;
    while let Some(parent) = parents[at] {
        names.push(&switches[parent].name);
        at = parent;
        if at == start {
            break;
        }
    }
    let shown = match names.len() {
        0..=8 => names.join(" in "),
        more => format!("{} in … ({} switches) in {}", names[0], more - 1, names[0]),
    };
    Wrong::new(
        switches[start].line,
        format!("the switches go in a circle: {shown}"),
        "a switch lies below wider ones only; take one of these lines apart",
    )
}

fn ragged(leaf: &Switch, above: usize, usual: usize) -> Wrong {
    let what = format!(
        "switch {:?} has {above} {} above it, most have {usual}",
        leaf.name,
        if above == 1 { "switch" } else { "switches" },
    );
    let hint = match above < usual {
        true => format!(
            "put a switch of its own in between for the missing level: SwitchName={0}-up Switches={0}",
            leaf.name
        ),
        false => format!("take a switch above {} out, or give the others one more", leaf.name),
    };
    Wrong::new(leaf.line, what, hint)
}

/// The commonest number; the larger of two that are as common.
pub(super) fn usual(numbers: impl Iterator<Item = usize>) -> usize {
    let mut count: BTreeMap<usize, usize> = BTreeMap::new();
    numbers.for_each(|n| *count.entry(n).or_default() += 1);
    count.into_iter().max_by_key(|(n, times)| (*times, *n)).map_or(0, |(n, _)| n)
}

/// `sizes` counts nodes: that of a block first, then those of runs of blocks.
pub(super) fn blocks(
    title: &Title<'_>,
    blocks: &[Block],
    sizes: &[u32],
    sizes_line: usize,
    warnings: &mut Vec<(usize, String)>,
) -> Result<Draft, Wrong> {
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    for block in blocks {
        if let Some(first) = index.insert(&block.name, block.line) {
            return Err(twice("block", &block.name, first, block.line));
        }
    }
    // How many blocks a run of each further size has, widest first.
    let mut runs = run_lengths(sizes, sizes_line)?;
    runs.reverse();
    if !runs.is_empty() {
        warnings.extend(gaps(blocks));
    }
    let block = format!("{}block", title.prefix);
    let mut levels: Vec<String> = runs.iter().map(|(size, _)| format!("{block}_{size}")).collect();
    levels.push(block);
    let mut draft = Draft {
        name: title.fabric.to_owned(),
        line: title.line,
        levels,
        nodes: Vec::new(),
        switches: BTreeMap::new(),
    };
    for (at, block) in blocks.iter().enumerate() {
        // A run is called after its first block, so that blocks added behind do not rename it.
        let first = |(_, length): &(u32, usize)| format!("{}+", blocks[at - at % length].name);
        let path: Arc<[String]> = runs.iter().map(first).chain([block.name.clone()]).collect();
        place(&mut draft, &block.nodes, block.line, path);
    }
    Ok(draft)
}

fn run_lengths(sizes: &[u32], line: usize) -> Result<Vec<(u32, usize)>, Wrong> {
    let Some((&base, further)) = sizes.split_first() else { return Ok(Vec::new()) };
    const HINT: &str =
        "the size of a block in nodes first, then power-of-two multiples of it, growing: 4,16";
    if base == 0 {
        return Err(Wrong::new(line, "a block size is 0", HINT));
    }
    let mut before = base;
    let mut runs = Vec::new();
    for &size in further {
        let is_fit = size > before && size % base == 0 && (size / base).is_power_of_two();
        if !is_fit {
            let what = format!("block size {size} does not go with {base} and {before}");
            return Err(Wrong::new(line, what, HINT));
        }
        runs.push((size, (size / base) as usize));
        before = size;
    }
    if runs.len() >= LEVELS_MAX {
        let what = format!("there are {} block sizes", sizes.len());
        return Err(Wrong::new(line, what, format!("{LEVELS_MAX} at most")));
    }
    Ok(runs)
}

/// Blocks that are numbered, and a number is missing: all that follow stand one place too early.
fn gaps(blocks: &[Block]) -> Option<(usize, String)> {
    let numbered = |block: &Block| -> Option<(String, u64)> {
        let digits = block.name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (head, number) = block.name.split_at(block.name.len() - digits);
        Some((head.to_owned(), number.parse().ok()?))
    };
    blocks.windows(2).find_map(|pair| {
        let (a, b) = (numbered(&pair[0])?, numbered(&pair[1])?);
        (a.0 == b.0 && b.1 > a.1 + 1).then(|| {
            let text = format!(
                "no block is numbered between {:?} and {:?}: what follows takes its place in the wider blocks; give a block without nodes to keep it",
                pair[0].name, pair[1].name
            );
            (pair[1].line, text)
        })
    })
}

fn place(draft: &mut Draft, nodes: &[NodeId], line: usize, path: Arc<[String]>) {
    let placed = |node: &NodeId| Placed { node: node.clone(), line, path: path.clone() };
    draft.nodes.extend(nodes.iter().map(placed));
}

fn twice(kind: &str, name: &str, first: usize, second: usize) -> Wrong {
    let what = format!("{kind} {name:?} is described twice");
    Wrong::new(second, what, format!("put it together with line {first}"))
}
