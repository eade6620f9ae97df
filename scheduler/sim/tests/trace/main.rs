//! Recorded workloads, replayed: the readers, the driver as a judge, and the policies against
//! pictures and against published figures. The published traces are used where `TESSERA_TRACES`
//! names their folder; all else is made here.

mod reading; // files, good and bad

mod judge; // the driver
mod policies; // what they do
mod published; // figures that others measured

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use tessera_sim::trace::{
    self, Kind, NodesFrom, PolicyName, PolicyReport, Request, Source, Workload,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn gzip(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let file = fs::File::create(&path).unwrap();
        let mut packer = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        packer.write_all(text.as_bytes()).unwrap();
        packer.finish().unwrap();
        path
    }
}

fn openb(folder: &Folder, nodes: &str, pods: &str) -> Source {
    let mut source = Source::new(folder.file("pods.csv", pods));
    source.nodes = Some(NodesFrom::File(folder.file("nodes.csv", nodes)));
    source
}

fn workload(kind: Kind, nodes: usize, gpus: u32, jobs: &[(u64, u64, Request)]) -> Workload {
    let jobs: Vec<trace::Job> = jobs
        .iter()
        .map(|(at, length, request)| trace::job(*at, *length, request.clone()))
        .collect();
    Workload {
        kind,
        levels: Vec::new(),
        nodes: trace::alike(nodes, gpus),
        typical: trace::typical(jobs.iter().map(|j| &j.request)),
        jobs,
        shuffled: None,
        remarks: Vec::new(),
    }
}

fn run(name: PolicyName, workload: &Workload) -> (trace::Run, PolicyReport) {
    let mut policy = name.make(workload).unwrap();
    let run = trace::replay(workload, policy.as_mut(), &mut |_| {}).unwrap();
    let report = PolicyReport::of(workload, &run);
    (run, report)
}
