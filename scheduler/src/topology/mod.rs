//! The operator's map, read from the files that say where each node stands.
//!
//! In: files, or their texts. Out: a [`Loaded`]: one [`Topology`] with the line each node stands in,
//! or an error that names the file, the line and what to do. Whether the cluster takes the map is
//! decided in [`tessera_core::door::topology`]; [`live`] carries it there, at the start, at SIGHUP
//! and at a caller's request.
//!
//! Each file adds its fabrics, and replaces those of the same name from the files before it. The
//! form is told from the content, whatever the file is called:
//!
//! **TOML, short.** One fabric, called `net`:
//! ```toml
//! levels = ["block", "leaf"]      # widest first; any names, any depth
//!
//! [[leaf]]                        # the narrowest level lists nodes
//! name  = "leaf-1"
//! block = "block-a"               # and says which domain of the next wider level it lies in
//! nodes = ["gpu-a[01-16]", "gpu-b[1,3-5]"]
//! switches = ["sw-a1", "sw-a2"]   # optional: what its nodes see as neighbours
//! ```
//! Levels between the widest and the narrowest have a table for each domain that names its own
//! parent; the widest need none.
//!
//! **TOML, long.** The same under names, for several fabrics over the same nodes:
//! ```toml
//! allow_unknown = true            # optional: also names nodes that never joined
//! unplaced = ["login-[1-2]"]      # optional: stand nowhere, on purpose
//!
//! [[fabric]]
//! name = "net"                    # the first is the one placements are searched along
//! levels = ["block", "leaf"]
//! [[fabric.leaf]]
//! name = "leaf-1"
//! block = "block-a"
//! nodes = ["gpu-a[01-16]"]
//!
//! [[fabric]]
//! name = "power"
//! levels = ["pdu"]
//! [[fabric.pdu]]
//! name = "pdu-7"
//! nodes = ["gpu-a[01-08]"]
//! ```
//! `fabric = []` alone takes a map back.
//!
//! **Slurm `topology.conf`**, tree or block: the fabric `net`, see [`slurm`] for its levels' names.
//! **Slurm `topology.yaml`**: each topology that has levels is a fabric, see [`slurm_yaml`]. Where
//! both files are given from one folder, the YAML is read and the other is not, as in Slurm.
//! **topograph's graph JSON**: `net` and `nvlink`, see [`topograph`].

mod draft; // what every reader hands over, and its checks
pub mod live; // from here to the cluster
mod ours; // TOML
mod ranges; // gpu-a[01-16,20]
mod slurm; // switches and blocks
mod slurm_conf;
mod slurm_yaml;
mod topograph;
mod yaml; // values with their lines

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tessera_model::{NodeId, Topology};

use draft::{Sheet, Wrong};

/// Longer than the map of any cluster we know of.
const FILE_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("cannot read the topology file {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the topology file {path} is larger than 64 MiB")]
    TooLarge { path: PathBuf },
    #[error("{path}:{line}: {problem}")]
    Wrong { path: PathBuf, line: usize, problem: String, hint: String },
}

impl TopologyError {
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "see that the file exists and may be read".into(),
            Self::TooLarge { .. } => "see that it is the right file".into(),
            Self::Wrong { hint, .. } => hint.clone(),
        }
    }
}

/// A map as files give it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    pub map: Topology,
    pub files: Vec<PathBuf>,
    /// Where each node is named first.
    pub origins: BTreeMap<NodeId, Origin>,
    /// A file says that it may name nodes that never joined.
    pub allow_unknown: bool,
    /// Nodes that stand nowhere on purpose.
    pub unplaced: BTreeSet<NodeId>,
    /// Odd, but no error; each with its file and line.
    pub warnings: Vec<String>,
}

/// A line of a file. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub path: PathBuf,
    pub line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// Reads the files in their order.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, TopologyError> {
    let mut texts = Vec::new();
    for path in paths {
        let unreadable = |source| TopologyError::Unreadable { path: path.clone(), source };
        if fs::metadata(path).map_err(unreadable)?.len() > FILE_MAX {
            return Err(TopologyError::TooLarge { path: path.clone() });
        }
        texts.push((path.clone(), fs::read_to_string(path).map_err(unreadable)?));
    }
    let mut loaded = parse(&texts)?;
    for path in paths.iter().filter(|p| is_named(p, "topology.conf")) {
        let beside = path.with_file_name("topology.yaml");
        if beside.exists() && !paths.contains(&beside) {
            loaded.warnings.push(format!(
                "{}: Slurm itself reads {} beside it instead",
                path.display(),
                beside.display()
            ));
        }
    }
    Ok(loaded)
}

/// Reads texts, each under the name that errors call it by.
pub fn parse(texts: &[(PathBuf, String)]) -> Result<Loaded, TopologyError> {
    let files = texts.iter().map(|(path, _)| path.clone()).collect();
    let mut loaded = Loaded { files, ..Loaded::default() };
    // Where each fabric comes from.
    let mut homes: BTreeMap<String, Origin> = BTreeMap::new();
    let mut lines: BTreeMap<String, BTreeMap<NodeId, Origin>> = BTreeMap::new();
    for (path, text) in texts {
        let yaml = path.with_file_name("topology.yaml");
        if is_named(path, "topology.conf") && texts.iter().any(|(p, _)| *p == yaml) {
            let text = format!("{}: not read, {} goes before it", path.display(), yaml.display());
            loaded.warnings.push(text);
            continue;
        }
        let located = |wrong: Wrong| TopologyError::Wrong {
            path: path.clone(),
            line: wrong.line,
            problem: wrong.problem,
            hint: wrong.hint,
        };
        let sheet = read(path, text).map_err(located)?;
        loaded.allow_unknown |= sheet.allow_unknown;
        loaded.unplaced.extend(sheet.unplaced);
        let said = |(line, text): (usize, String)| format!("{}:{line}: {text}", path.display());
        loaded.warnings.extend(sheet.warnings.into_iter().map(said));
        let mut here = BTreeSet::new();
        for draft in sheet.fabrics {
            let at = Origin { path: path.clone(), line: draft.line };
            let (fabric, nodes) = draft.finish().map_err(located)?;
            if !here.insert(fabric.name.clone()) {
                let what = format!("fabric {:?} is described twice", fabric.name);
                let hint = format!("the first is in line {}", homes[&fabric.name].line);
                return Err(located(Wrong::new(at.line, what, hint)));
            }
            let origin = |line| Origin { path: path.clone(), line };
            let nodes = nodes.into_iter().map(|(node, line)| (node, origin(line))).collect();
            lines.insert(fabric.name.clone(), nodes);
            homes.insert(fabric.name.clone(), at);
            match loaded.map.fabrics.iter_mut().find(|f| f.name == fabric.name) {
                Some(earlier) => *earlier = fabric,
                None => loaded.map.fabrics.push(fabric),
            }
        }
    }
    levels_are_their_own(&loaded.map, &homes)?;
    for nodes in loaded.map.fabrics.iter().filter_map(|f| lines.remove(&f.name)) {
        for (node, origin) in nodes {
            loaded.origins.entry(node).or_insert(origin);
        }
    }
    // A later file may place what an earlier one leaves out.
    loaded.unplaced.retain(|node| !loaded.origins.contains_key(node));
    Ok(loaded)
}

fn levels_are_their_own(
    map: &Topology,
    homes: &BTreeMap<String, Origin>,
) -> Result<(), TopologyError> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for fabric in &map.fabrics {
        for level in &fabric.levels {
            let Some(owner) = owners.insert(level, &fabric.name) else { continue };
            // Said of the one that comes later in the files.
            let (a, b) = (&homes[owner], &homes[&fabric.name]);
            let is_reversed = a.path == b.path && a.line > b.line;
            let (at, first, other) =
                if is_reversed { (a, b, fabric.name.as_str()) } else { (b, a, owner) };
            return Err(TopologyError::Wrong {
                path: at.path.clone(),
                line: at.line,
                problem: format!("level {level:?} is one of fabric {other:?} already ({first})"),
                hint: "give one of the two another name: a level's name says which fabric is meant"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

fn is_named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|file| file == name)
}

/// The forms, told apart by the first line that says something, and where that leaves a doubt, by
/// the file's ending.
fn read(path: &Path, text: &str) -> Result<Sheet, Wrong> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let says = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let first = text.lines().map(str::trim).find(says);
    let Some(first) = first else {
        let hint = "without a map leave --topology away; see deploy/config for how one looks";
        return Err(Wrong::new(1, "the file is empty", hint));
    };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if first.starts_with('{') || extension == "json" {
        return topograph::read(text);
    }
    if first.starts_with("- ") || first == "-" || first == "---" || first.starts_with('%') {
        return slurm_yaml::read(text);
    }
    let key = first.split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
    let is_slurm = ["switchname", "blockname", "blocksizes", "ringname", "include"]
        .contains(&key.to_ascii_lowercase().as_str());
    match extension {
        _ if is_slurm => slurm_conf::read(text),
        "conf" => slurm_conf::read(text),
        "yaml" | "yml" => slurm_yaml::read(text),
        _ => ours::read(text),
    }
}
