//! What one attempt runs on this node: the order as it was received, and how it is kept.
//!
//! In: a Prepare that has become ours at the door. Out: the file `order` of the attempt's folder,
//! durable before anything is answered, and read again by a later agent. Whether the order may be
//! obeyed is `prepare`'s question; here it only has to make sense in itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use tessera_model::{
    ArrayTask, AttemptId, Bytes, Epoch, GpuId, Millis, SessionId, UnixIdentity, WHOLE_GPU,
};

/// More ranks than this on one node is a mistake, not a job.
pub const RANKS_MAX: u32 = 1024;

/// The part of one attempt that runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrder {
    pub attempt: AttemptId,
    /// The life of the agent it is meant for; any other refuses.
    pub session: SessionId,
    pub first_rank: u32,
    /// Ranks on this node: `first_rank .. first_rank + ranks`. None on a spare, which holds its
    /// GPUs and starts nothing.
    pub ranks: u32,
    pub world_size: u32,
    pub node_rank: u32,
    /// Nodes of the whole gang, in rank order, spares last, and where each is reached.
    pub nodes: Vec<String>,
    pub addresses: Vec<String>,
    /// Parallel to `nodes`: ranks on each. Empty: as many as here on every node.
    #[serde(default)]
    pub ranks_of: Vec<u32>,
    /// The further role it has here; empty: the first, or a spare.
    #[serde(default)]
    pub role: String,
    /// Here, in local-rank order.
    pub gpus: Vec<GpuId>,
    pub gpus_per_node: u32,
    /// Thousandths of each GPU; less than 1000 is a share, beside those of others.
    #[serde(default = "whole_gpu")]
    pub gpu_milli: u32,
    pub cpus_per_task: u32,
    /// Of all ranks here together; 0 is no limit.
    pub memory: Bytes,
    pub argv: Vec<String>,
    pub script: Option<String>,
    pub env: BTreeMap<String, String>,
    pub working_dir: Option<String>,
    pub unix: Option<UnixIdentity>,
    pub job_name: String,
    pub team: String,
    pub project: String,
    pub user: String,
    /// Its shims stop it when the lease lapses. Otherwise it runs on whatever happens.
    pub stop_on_lapse: bool,
    /// From SIGTERM to SIGKILL then.
    pub lapse_grace: Millis,
    pub time_limit: Option<Millis>,
    /// Relative to the working folder. Its changes are the job's checkpoints; watched on the node
    /// of rank 0.
    #[serde(default)]
    pub checkpoint_file: Option<String>,
    #[serde(default)]
    pub array: Option<ArrayTask>,
}

fn whole_gpu() -> u32 {
    WHOLE_GPU
}

impl TaskOrder {
    /// Holds its GPUs and starts nothing.
    pub fn is_spare(&self) -> bool {
        self.ranks == 0
    }

    pub fn is_share(&self) -> bool {
        !self.gpus.is_empty() && self.gpu_milli < WHOLE_GPU
    }

    /// The same order again. A time limit may have been changed since; that of the first counts
    /// for the environment, and the scheduler's own for the end.
    pub fn is_same(&self, other: &Self) -> bool {
        Self { time_limit: None, ..self.clone() } == Self { time_limit: None, ..other.clone() }
    }

    /// Nodes that run tasks, and how many each.
    pub fn working(&self) -> impl Iterator<Item = (&str, u32)> {
        let ranks = |i: usize| self.ranks_of.get(i).copied().unwrap_or(self.ranks);
        let all = self.nodes.iter().enumerate().map(move |(i, n)| (n.as_str(), ranks(i)));
        all.filter(|(_, ranks)| *ranks > 0)
    }

    pub fn rank_range(&self) -> std::ops::Range<u32> {
        self.first_rank..self.first_rank.saturating_add(self.ranks)
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let last = self.first_rank.checked_add(self.ranks);
        // Only an order that tells the ranks of every node can mean a spare.
        if self.ranks > RANKS_MAX || (self.ranks == 0 && self.ranks_of.is_empty()) {
            return Some(format!(
                "{} ranks on one node; 1 to {RANKS_MAX} are possible",
                self.ranks
            ));
        }
        if last.is_none_or(|last| last > self.world_size) {
            return Some(format!(
                "ranks {}+{} do not fit a world of {}",
                self.first_rank, self.ranks, self.world_size
            ));
        }
        if self.nodes.len() != self.addresses.len() {
            return Some(format!(
                "{} nodes but {} addresses",
                self.nodes.len(),
                self.addresses.len()
            ));
        }
        if self.node_rank as usize >= self.nodes.len() {
            return Some(format!("node rank {} of {} nodes", self.node_rank, self.nodes.len()));
        }
        if let Some(problem) = self.ranks_problem() {
            return Some(problem);
        }
        if self.gpu_milli == 0 || self.gpu_milli > WHOLE_GPU {
            return Some(format!(
                "{} thousandths of a GPU; 1 to {WHOLE_GPU} are possible",
                self.gpu_milli
            ));
        }
        if self.gpus.len() != self.gpus_per_node as usize {
            return Some(format!(
                "{} GPUs are named, {} per node are meant",
                self.gpus.len(),
                self.gpus_per_node
            ));
        }
        if self.gpus.iter().collect::<BTreeSet<_>>().len() != self.gpus.len() {
            return Some("a GPU is named twice".to_owned());
        }
        if self.argv.is_empty() && self.script.is_none() {
            return Some("neither a program nor a script is given".to_owned());
        }
        let texts = self.argv.iter().chain(self.env.keys()).chain(self.env.values());
        let paths = self.working_dir.iter().chain(&self.checkpoint_file);
        if texts.chain(paths).any(|text| text.contains('\0')) {
            return Some(
                "a NUL byte stands in the program, its environment or its folder".to_owned(),
            );
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Some(format!("{name:?} is no name of an environment variable"));
        }
        if let Some(file) = self.checkpoint_file.as_ref().filter(|file| !is_below(file)) {
            return Some(format!("the checkpoint {file:?} is no path below the working folder"));
        }
        None
    }

    fn ranks_problem(&self) -> Option<String> {
        if self.ranks_of.is_empty() {
            return None;
        }
        if self.ranks_of.len() != self.nodes.len() {
            return Some(format!(
                "{} nodes but the ranks of {}",
                self.nodes.len(),
                self.ranks_of.len()
            ));
        }
        let sum = |ranks: &[u32]| ranks.iter().map(|r| u64::from(*r)).sum::<u64>();
        let (before, rest) = self.ranks_of.split_at(self.node_rank as usize);
        let here = rest.first().copied().unwrap_or(0);
        if here != self.ranks || (here > 0 && sum(before) != u64::from(self.first_rank)) {
            return Some(format!(
                "ranks {}+{} here do not fit the ranks of the nodes, {:?}",
                self.first_rank, self.ranks, self.ranks_of
            ));
        }
        let (all, world) = (sum(&self.ranks_of), self.world_size);
        (all != u64::from(world)).then(|| format!("{all} ranks in a world of {world}"))
    }
}

/// A path that does not lead out of the folder it starts from, as far as its own words say.
fn is_below(path: &str) -> bool {
    use std::path::Component;
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The file `order`: what was received and what was decided on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRecord {
    pub order: TaskOrder,
    pub epoch: Epoch,
    pub master_port: u16,
    /// Sets this attempt's cgroups apart from those of another cluster on the same machine.
    pub mark: String,
}

impl OrderRecord {
    pub const FILE: &str = "order";

    pub fn write(&self, attempt_dir: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        tessera_shim::dir::write_durably(attempt_dir, Self::FILE, &bytes)
    }

    /// `None` where there is no such file; any bytes that are no order are an error.
    pub fn read(attempt_dir: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::read(attempt_dir.join(Self::FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The file `tombstone`: this attempt ends, and can never start here again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// From SIGTERM to SIGKILL for what was still running, milliseconds.
    pub grace_ms: u64,
}

impl Tombstone {
    pub const FILE: &str = "tombstone";

    pub fn write(self, attempt_dir: &Path) -> std::io::Result<()> {
        tessera_shim::dir::write_durably(attempt_dir, Self::FILE, &serde_json::to_vec(&self)?)
    }

    /// A damaged tombstone is a tombstone all the same.
    pub fn read(attempt_dir: &Path) -> Option<Self> {
        let bytes = std::fs::read(attempt_dir.join(Self::FILE)).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap_or(Self { grace_ms: 0 }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tessera_model::JobId;

    pub(crate) fn sample() -> TaskOrder {
        TaskOrder {
            attempt: AttemptId { job: JobId(812), number: 1 },
            session: SessionId(7),
            first_rank: 2,
            ranks: 2,
            world_size: 4,
            node_rank: 1,
            nodes: vec!["a".into(), "b".into()],
            addresses: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            ranks_of: vec![2, 2],
            role: String::new(),
            gpus: vec![GpuId::parse("GPU-1").unwrap(), GpuId::parse("GPU-2").unwrap()],
            gpus_per_node: 2,
            gpu_milli: WHOLE_GPU,
            cpus_per_task: 4,
            memory: Bytes(0),
            argv: vec!["true".into()],
            script: None,
            env: BTreeMap::new(),
            working_dir: None,
            unix: None,
            job_name: "train".into(),
            team: "nlp".into(),
            project: "llm".into(),
            user: "ada".into(),
            stop_on_lapse: false,
            lapse_grace: Millis(1_000),
            time_limit: None,
            checkpoint_file: None,
            array: None,
        }
    }

    fn three(ranks_of: Vec<u32>) -> (Vec<String>, Vec<String>, Vec<u32>) {
        let names = |prefix: &str| ["a", "b", "c"].map(|n| format!("{prefix}{n}")).to_vec();
        (names(""), names("10.0.0."), ranks_of)
    }

    #[test]
    fn an_order_of_an_earlier_release_is_read_as_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let record =
            OrderRecord { order: sample(), epoch: Epoch(3), master_port: 1, mark: "ab".into() };
        let mut old = serde_json::to_value(&record).unwrap();
        let order = old["order"].as_object_mut().unwrap();
        for name in ["ranks_of", "role", "gpu_milli", "checkpoint_file", "array"] {
            assert!(order.remove(name).is_some(), "{name}");
        }
        std::fs::write(dir.path().join("order"), old.to_string()).unwrap();
        let read = OrderRecord::read(dir.path()).unwrap().unwrap().order;
        assert_eq!((read.gpu_milli, read.is_share(), read.problem()), (WHOLE_GPU, false, None));
        assert_eq!(read.working().collect::<Vec<_>>(), [("a", 2), ("b", 2)]);
    }

    #[test]
    fn orders_that_make_no_sense_are_named() {
        type Change = fn(&mut TaskOrder);
        let cases: [(&str, Change); 18] = [
            ("0 ranks", |o| (o.ranks, o.ranks_of) = (0, vec![])),
            ("do not fit", |o| (o.first_rank, o.ranks_of) = (3, vec![])),
            ("do not fit", |o| o.ranks = 0),
            ("do not fit", |o| o.ranks_of = vec![1, 2]),
            ("ranks of 1", |o| o.ranks_of = vec![4]),
            ("5 ranks", |o| (o.nodes, o.addresses, o.ranks_of) = three(vec![2, 2, 1])),
            ("0 thousandths", |o| o.gpu_milli = 0),
            ("1001 thousandths", |o| o.gpu_milli = 1001),
            ("checkpoint", |o| o.checkpoint_file = Some("/etc/shadow".into())),
            ("checkpoint", |o| o.checkpoint_file = Some("a/../../b".into())),
            ("checkpoint", |o| o.checkpoint_file = Some(String::new())),
            ("do not fit", |o| o.first_rank = u32::MAX),
            ("1 addresses", |o| o.addresses.truncate(1)),
            ("node rank", |o| o.node_rank = 2),
            ("GPUs are named", |o| o.gpus_per_node = 1),
            ("twice", |o| o.gpus[1] = o.gpus[0].clone()),
            ("neither", |o| o.argv.clear()),
            ("NUL", |o| o.argv[0] = "a\0b".into()),
        ];
        assert_eq!(sample().problem(), None);
        let mut spare = sample();
        (spare.nodes, spare.addresses, spare.ranks_of) = three(vec![2, 2, 0]);
        (spare.node_rank, spare.first_rank, spare.ranks) = (2, 4, 0);
        assert_eq!(spare.problem(), None);
        assert_eq!(spare.working().collect::<Vec<_>>(), [("a", 2), ("b", 2)]);
        for (want, change) in cases {
            let mut order = sample();
            change(&mut order);
            let got = order.problem().unwrap_or_default();
            assert!(got.contains(want), "{got:?} does not say {want:?}");
        }
    }

    #[test]
    fn an_order_is_read_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(OrderRecord::read(dir.path()).unwrap(), None);
        let record = OrderRecord {
            order: sample(),
            epoch: Epoch(3),
            master_port: 29_500,
            mark: "ab".into(),
        };
        record.write(dir.path()).unwrap();
        assert_eq!(OrderRecord::read(dir.path()).unwrap(), Some(record));
        std::fs::write(dir.path().join("order"), b"{").unwrap();
        assert!(OrderRecord::read(dir.path()).is_err());
        std::fs::write(dir.path().join("tombstone"), b"").unwrap();
        assert_eq!(Tombstone::read(dir.path()), Some(Tombstone { grace_ms: 0 }));
    }
}
