//! What one attempt runs on this node: the order as it was received, and how it is kept.
//!
//! In: a Prepare that has become ours at the door. Out: the file `order` of the attempt's folder,
//! durable before anything is answered, and read again by a later agent. Whether the order may be
//! obeyed is `prepare`'s question; here it only has to make sense in itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use tessera_model::{AttemptId, Bytes, Epoch, GpuId, Millis, SessionId, UnixIdentity};

/// More ranks than this on one node is a mistake, not a job.
pub const RANKS_MAX: u32 = 1024;

/// The part of one attempt that runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrder {
    pub attempt: AttemptId,
    /// The life of the agent it is meant for; any other refuses.
    pub session: SessionId,
    pub first_rank: u32,
    /// Ranks on this node: `first_rank .. first_rank + ranks`.
    pub ranks: u32,
    pub world_size: u32,
    pub node_rank: u32,
    /// Nodes of the whole gang, in rank order, and where each is reached.
    pub nodes: Vec<String>,
    pub addresses: Vec<String>,
    /// Here, in local-rank order.
    pub gpus: Vec<GpuId>,
    pub gpus_per_node: u32,
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
}

impl TaskOrder {
    pub fn rank_range(&self) -> std::ops::Range<u32> {
        self.first_rank..self.first_rank.saturating_add(self.ranks)
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let last = self.first_rank.checked_add(self.ranks);
        if self.ranks == 0 || self.ranks > RANKS_MAX {
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
        if texts.chain(&self.working_dir).any(|text| text.contains('\0')) {
            return Some(
                "a NUL byte stands in the program, its environment or its folder".to_owned(),
            );
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Some(format!("{name:?} is no name of an environment variable"));
        }
        None
    }
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
            gpus: vec![GpuId::parse("GPU-1").unwrap(), GpuId::parse("GPU-2").unwrap()],
            gpus_per_node: 2,
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
        }
    }

    #[test]
    fn orders_that_make_no_sense_are_named() {
        type Change = fn(&mut TaskOrder);
        let cases: [(&str, Change); 9] = [
            ("0 ranks", |o| o.ranks = 0),
            ("do not fit", |o| o.first_rank = 3),
            ("do not fit", |o| o.first_rank = u32::MAX),
            ("1 addresses", |o| o.addresses.truncate(1)),
            ("node rank", |o| o.node_rank = 2),
            ("GPUs are named", |o| o.gpus_per_node = 1),
            ("twice", |o| o.gpus[1] = o.gpus[0].clone()),
            ("neither", |o| o.argv.clear()),
            ("NUL", |o| o.argv[0] = "a\0b".into()),
        ];
        assert_eq!(sample().problem(), None);
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
