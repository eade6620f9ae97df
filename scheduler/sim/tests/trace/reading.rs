//! Files as they come, and files as they should not be.

use std::fs;

use tessera_model::Millis;
use tessera_sim::trace::{Format, Kind, NodesFrom, Request, Source, TraceError, Workload};

use crate::{Folder, openb};

const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\n\
    n-a,8000,8192,2,T4\n\
    n-b,16000,16384,4,G2\n";

/// Columns in another order, and one that nobody knows.
const PODS: &str = "memory_mib,name,qos,num_gpu,gpu_milli,gpu_spec,cpu_milli\n\
    10,p3,LS,1,500,,1000\n\
    10,p1,BE,4,1000,T4|G2,1000\n\
    10,p2,LS,0,0,,2000\n";

fn names(workload: &Workload) -> Vec<&str> {
    workload.jobs.iter().map(|j| j.name.as_str()).collect()
}

#[test]
fn columns_are_found_by_name_and_gzip_is_read_as_it_is() {
    let folder = Folder::new();
    let plain = openb(&folder, NODES, PODS);
    let mut packed = plain.clone();
    packed.jobs = folder.gzip("pods.bin", PODS);
    packed.nodes = Some(NodesFrom::File(folder.gzip("nodes.bin", NODES)));
    let workload = plain.load().unwrap();
    assert_eq!(workload, packed.load().unwrap());
    assert_eq!(workload.kind, Kind::Packing);
    assert_eq!(workload.total_gpus(), 6);
    assert_eq!((workload.nodes[1].cpu_milli, workload.nodes[1].model.as_str()), (16_000, "G2"));
    let gang = workload.jobs.iter().find(|j| j.name == "p1").unwrap();
    assert_eq!(
        gang.request,
        Request {
            nodes: 1,
            gpus: 4,
            gpu_milli: 1_000,
            cpu_milli: 1_000,
            memory_mib: 10,
            models: vec!["G2".into(), "T4".into()],
        }
    );
}

#[test]
fn a_raw_list_is_shuffled_by_the_seed_and_inflated_from_itself() {
    let folder = Folder::new();
    let pods: String = (0..40).map(|i| format!("p{i:02},100,1,1,250,,0\n")).collect();
    let header = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time\n";
    let mut source = openb(&folder, NODES, &format!("{header}{pods}"));
    source.inflate = Some(2.0);
    let first = source.load().unwrap();
    // 40 x 250 asked for, 12,000 wanted: eight more.
    assert_eq!(first.jobs.len(), 48);
    let mut base: Vec<&str> = names(&first)[..40].to_vec();
    base.sort_unstable();
    let all: Vec<String> = (0..40).map(|i| format!("p{i:02}")).collect();
    assert_eq!(base, all);
    assert!(names(&first)[..40] != *all, "the list is shuffled");
    assert_eq!(first, source.load().unwrap(), "the same seed gives the same arrivals");
    source.seed = Some(43);
    assert_ne!(names(&first), names(&source.load().unwrap()));
    // The order of the file makes no difference, since it is sorted first.
    let turned: String = (0..40).rev().map(|i| format!("p{i:02},100,1,1,250,,0\n")).collect();
    let mut other = openb(&folder, NODES, &format!("{header}{turned}"));
    (other.inflate, other.seed) = (Some(2.0), source.seed);
    assert_eq!(source.load().unwrap(), other.load().unwrap());
    source.inflate = Some(1.0);
    assert_eq!(source.load().unwrap().jobs.len(), 40, "1.0 adds nothing");
    let seq: Vec<u64> = first.jobs.iter().map(|j| j.seq).collect();
    assert_eq!(seq, (0..48).collect::<Vec<u64>>());
}

#[test]
fn a_list_with_seq_is_replayed_as_it_stands() {
    let folder = Folder::new();
    let pods = "seq,name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n\
        3,z,1,1,1,1000,\n7,a,1,1,1,500,\n8,a,1,1,0,0,\n";
    let source = openb(&folder, NODES, pods);
    let workload = source.load().unwrap();
    assert_eq!(names(&workload), ["z", "a", "a"]);
    assert_eq!(workload.jobs.iter().map(|j| j.seq).collect::<Vec<_>>(), [3, 7, 8]);
    assert!(workload.remarks.is_empty());
    let asked = Source { seed: Some(1), inflate: Some(2.0), ..source };
    let remark = "the list has its order and no time, so --seed or --inflate plays no part";
    assert_eq!(asked.load().unwrap().remarks, [remark]);
}

const JOBS: &str = "job_id,submit_s,duration_s,num_gpus,vc,user,gpu_type,status\n\
    late,100,50,8,v1,,,\n\
    big,0,100,20,v1,,,\n\
    other,5,1,1,v2,,,\n\
    small,0,10.5,1,v1,,,\n";

#[test]
fn a_job_trace_is_sorted_by_time_and_larger_gangs_take_whole_nodes() {
    let folder = Folder::new();
    let mut source = Source::new(folder.gzip("jobs.csv.gz", JOBS));
    source.cluster = Some("v1".to_owned());
    source.nodes = Some(NodesFrom::parse("3:8"));
    source.limit_factor = Some(2.0);
    let workload = source.load().unwrap();
    assert_eq!(names(&workload), ["big", "small", "late"]);
    assert_eq!(workload.jobs[0].request, Request::gpus(3, 8), "20 GPUs are three whole nodes");
    assert_eq!(workload.jobs[1].duration, Millis(10_500));
    assert_eq!(workload.jobs[1].time_limit, Some(Millis(21_000)));
    assert_eq!(workload.jobs[2].submit, Millis(100_000));
    // 24 GPUs for 100 s, 1 for 10.5 and 8 for 50 are 2,810.5 GPU-s as they are held; the load
    // counts what was asked for: 2,410.5 over 100 s are 24.1 GPUs.
    (source.nodes, source.load) = (None, Some(0.5));
    assert_eq!(source.load().unwrap().nodes.len(), 6);
    source.load = Some(5.0);
    assert_eq!(source.load().unwrap().nodes.len(), 3, "the largest gang has to fit");
}

#[test]
fn a_topology_gives_levels_and_its_hosts() {
    let folder = Folder::new();
    // Switch names are used again under another parent, and the columns come in any order.
    let map = "spine,host,leaf\nP1,h3,S1\nP1,h1,S2\nP2,h2,S1\nP1,h0,S1\nP2,h4,S3\n";
    let mut source = Source::new(folder.file("jobs.csv", JOBS));
    source.topology = Some(folder.file("map.csv", map));
    let workload = source.load().unwrap();
    assert_eq!(workload.levels, ["spine", "leaf"]);
    let nodes: Vec<String> =
        workload.nodes.iter().map(|n| format!("{} {}", n.name, n.path.join(" "))).collect();
    assert_eq!(nodes, ["h0 P1 P1/S1", "h3 P1 P1/S1", "h1 P1 P1/S2", "h2 P2 P2/S1", "h4 P2 P2/S3"]);
    assert_eq!(workload.remarks.len(), 1, "that 8 GPUs were taken is told");
    source.nodes = Some(NodesFrom::Count(3, 4));
    let workload = source.load().unwrap();
    assert_eq!(workload.nodes.iter().map(|n| n.gpus).collect::<Vec<_>>(), [4, 4, 4]);
    // A topology may also be the list of nodes.
    source.nodes = source.topology.take().map(NodesFrom::File);
    assert_eq!(source.load().unwrap().nodes.len(), 5);
}

#[test]
fn our_own_export_is_read_as_it_was_printed() {
    let folder = Folder::new();
    let nodes = r#"{"nodes": [
        {"name": "n2", "cpus": 16, "memory_bytes": 1073741824, "gpus": [{"model": "NVIDIA H100"}],
         "domains": {"block": "b0", "leaf": "l1"}, "state": "up"},
        {"name": "n1", "cpus": 16, "memory_bytes": 1073741824, "gpus": [{"model": "NVIDIA H100"}],
         "domains": {"block": "b0", "leaf": "l0"}}]}"#;
    let job = |id: u64, at: &str, started: &str, ended: &str| {
        format!(
            r#"{{"id": {id}, "team": "nlp", "submitted_at": "2026-11-24T11:00:{at}Z",
            "started_at": {started}, "ended_at": {ended}, "node_count": 2, "gpus_per_node": 1,
            "tasks_per_node": 1, "cpus_per_task": 2, "memory_per_node_bytes": 5000000,
            "gpu_model": "h100", "priority": 3, "time_limit_ms": 60000}}"#
        )
    };
    let (noon, later) = (r#""2026-11-24T12:00:00Z""#, r#""2026-11-24T12:00:01.500Z""#);
    let list = [job(9, "05", noon, later), job(7, "01", noon, noon), job(8, "02", "null", "null")];
    let whole = format!("{{\"jobs\": [{}], \"total\": 3}}", list.join(","));
    let mut source = Source::new(folder.file("jobs.json", &whole));
    source.nodes = Some(NodesFrom::File(folder.file("nodes.json", nodes)));
    let workload = source.load().unwrap();
    assert_eq!(workload.levels, ["block", "leaf"]);
    assert_eq!(workload.nodes[0].path, ["b0", "b0/l1"]);
    assert_eq!(workload.jobs.iter().map(|j| j.seq).collect::<Vec<_>>(), [7, 9]);
    let last = &workload.jobs[1];
    assert_eq!((last.submit, last.duration), (Millis(4_000), Millis(1_500)));
    assert_eq!(
        (last.time_limit, last.priority, last.tenant.as_str()),
        (Some(Millis(60_000)), 3, "nlp")
    );
    assert_eq!((last.request.cpu_milli, last.request.memory_mib), (2_000, 5));
    assert_eq!(last.request.models, ["NVIDIA H100"]);
    assert_eq!(workload.remarks, ["jobs left out, since they have not run to their end: 1"]);
    // One object a line is the same.
    source.jobs = folder.gzip("jobs.jsonl", &list.map(|j| j.replace('\n', " ")).join("\n"));
    assert_eq!(source.load().unwrap(), workload);
}

#[test]
fn bad_input_is_told_with_the_place_and_the_way_out() {
    const POD: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n";
    const SEQ: &str = "seq,name,cpu_milli,memory_mib,num_gpu,gpu_milli\n";
    const JOB: &str = "job_id,submit_s,duration_s,num_gpus,vc\n";
    let pod = |row: &str| format!("{POD}{row}\n");
    let cases: Vec<(&str, String, String, &str, &str)> = vec![
        (
            "missing column",
            NODES.into(),
            "name,cpu_milli,num_gpu,gpu_milli\na,1,1,1\n".into(),
            "no column `memory_mib`, only name, cpu_milli, num_gpu, gpu_milli",
            "a pod list has the columns",
        ),
        (
            "node list without model",
            NODES.replace("model", "type"),
            pod("a,1,1,1,1000,"),
            "nodes.csv has no column `model`",
            "a node list has the columns",
        ),
        (
            "letters",
            NODES.into(),
            pod("a,1,1,1,1000,\nb,1,1,one,1000,"),
            "pods.csv, line 3, column `num_gpu`: \"one\" is not a whole number from 0",
            "correct `num_gpu`",
        ),
        (
            "negative",
            NODES.into(),
            pod("a,-1,1,1,1000,"),
            "line 2, column `cpu_milli`: \"-1\" is not a whole number",
            "correct `cpu_milli`",
        ),
        (
            "share above one",
            NODES.into(),
            pod("a,1,1,1,1500,"),
            "column `gpu_milli`: \"1500\" is not a whole number from 0 to 1000",
            "correct `gpu_milli`",
        ),
        (
            "GPUs of nothing",
            NODES.into(),
            pod("a,1,1,2,0,"),
            "line 2: 2 GPUs with gpu_milli 0",
            "1000 for whole",
        ),
        (
            "short row",
            NODES.into(),
            pod("a,1,1"),
            "line 2: 3 fields, the header has 6",
            "needs quotes",
        ),
        (
            "empty",
            NODES.into(),
            String::new(),
            "pods.csv has no row below its header",
            "at least one row",
        ),
        (
            "header only",
            NODES.into(),
            POD.into(),
            "pods.csv has no row below its header",
            "at least one row",
        ),
        (
            "empty nodes",
            "sn,cpu_milli,memory_mib,gpu,model\n".into(),
            pod("a,1,1,1,1000,"),
            "nodes.csv has no row below its header",
            "at least one row",
        ),
        (
            "swapped",
            pod("a,1,1,1,1000,"),
            NODES.into(),
            "lists jobs, where nodes are expected",
            "swapped?",
        ),
        (
            "pods before nodes",
            NODES.into(),
            NODES.into(),
            "lists nodes, where pods are expected",
            "swapped?",
        ),
        (
            "unknown model",
            NODES.into(),
            pod("a,1,1,1,1000,X9|X8"),
            "a asks for GPU model X8 or X9, and no node has that",
            "models of the nodes: G2, T4",
        ),
        (
            "seq falls",
            NODES.into(),
            format!("{SEQ}5,a,1,1,0,0\n5,b,1,1,0,0\n"),
            "line 3: seq 5 comes after 5",
            "sort it by seq",
        ),
        (
            "node twice",
            format!("{NODES}n-a,1,1,1,T4\n"),
            pod("a,1,1,1,1000,"),
            "line 4: node n-a stands there twice",
            "one row",
        ),
        (
            "a node of many",
            "sn,cpu_milli,memory_mib,gpu,model\nn,1,1,65,T4\n".into(),
            pod("a,1,1,1,1000,"),
            "column `gpu`: \"65\" is not a whole number from 0 to 64",
            "correct `gpu`",
        ),
        (
            "no GPU anywhere",
            "sn,cpu_milli,memory_mib,gpu,model\nn,1,1,0,\n".into(),
            pod("a,1,1,0,0,"),
            "no node has a GPU",
            "nodes with GPUs",
        ),
        (
            "negative duration",
            NODES.into(),
            format!("{JOB}a,0,-5,1,v\n"),
            "line 2, column `duration_s`: \"-5\" is not a length of time",
            "correct `duration_s`",
        ),
        (
            "endless",
            NODES.into(),
            format!("{JOB}a,0,99999999999999999999,1,v\n"),
            "is not a length of time",
            "correct",
        ),
        (
            "time in letters",
            NODES.into(),
            format!("{JOB}a,soon,5,1,v\n"),
            "column `submit_s`: \"soon\" is not a length of time in seconds",
            "correct `submit_s`",
        ),
        (
            "no JSON",
            NODES.into(),
            "{\"jobs\": [".into(),
            "pods.csv, line 1: no JSON",
            "tessera queue --all --json",
        ),
        (
            "JSON of something else",
            NODES.into(),
            "{\"a\": 1}".into(),
            "holds no jobs",
            "tessera queue --all --json",
        ),
    ];
    for (name, nodes, pods, message, hint) in cases {
        let folder = Folder::new();
        let error = openb(&folder, &nodes, &pods).load().expect_err(name);
        let text = error.to_string();
        assert!(text.contains(message), "{name}: {text}");
        assert!(error.hint().contains(hint), "{name}: {}", error.hint());
        assert!(!text.ends_with('.'), "{name}: {text}");
        assert!(error.is_input(), "{name}");
    }
}

#[test]
fn a_file_that_ends_too_early_or_is_no_text_is_told() {
    let folder = Folder::new();
    let rows: String = (0..5_000).map(|i| format!("p{i},{},{i},1,1000,\n", i * 7 % 911)).collect();
    let text = format!("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n{rows}");
    let path = folder.gzip("pods.gz", &text);
    let whole = fs::read(&path).unwrap();
    let mut source = openb(&folder, NODES, "");
    source.jobs = path.clone();
    for keep in [whole.len() / 2, whole.len() - 4, 12] {
        fs::write(&path, &whole[..keep]).unwrap();
        let error = source.load().unwrap_err();
        assert!(matches!(error, TraceError::Truncated { .. }), "{keep}: {error}");
        assert!(error.hint().contains("gzip -t"), "{}", error.hint());
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x55;
    fs::write(&path, &flipped).unwrap();
    assert!(source.load().is_err(), "a flipped byte breaks the checksum");
    fs::write(&path, b"name,cpu_milli,memory_mib,num_gpu,gpu_milli\n\xff\xfe,1,1,1,1\n").unwrap();
    let error = source.load().unwrap_err().to_string();
    assert!(error.contains("no UTF-8"), "{error}");
    source.jobs = folder.0.path().join("missing.csv");
    let error = source.load().unwrap_err();
    assert!(error.to_string().starts_with("could not read") && error.hint() == "check the path");
    assert!(!error.is_input());
}

#[test]
fn options_that_make_no_sense_are_told() {
    let folder = Folder::new();
    let good = openb(&folder, NODES, PODS);
    let mut jobs = Source::new(folder.file("jobs.csv", JOBS));
    let expect = |source: &Source, message: &str, hint: &str| {
        let error = source.load().unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().contains(hint), "{}", error.hint());
    };
    expect(
        &Source { inflate: Some(0.5), ..good.clone() },
        "--inflate 0.5 makes no sense",
        "give 1",
    );
    expect(&Source { inflate: Some(f64::NAN), ..good.clone() }, "--inflate", "give 1");
    expect(&Source { load: Some(0.9), ..good.clone() }, "--load is for job traces", "leave it out");
    expect(&Source { nodes: None, ..good.clone() }, "a pod list needs nodes", "--nodes");
    expect(&jobs, "a job trace needs nodes", "--load 0.9");
    expect(&Source { load: Some(-1.0), ..jobs.clone() }, "--load makes no sense", "0.9");
    expect(
        &Source { limit_factor: Some(0.5), ..jobs.clone() },
        "--limit-factor 0.5",
        "at least the job's",
    );
    jobs.cluster = Some("v9".to_owned());
    expect(&Source { load: Some(0.9), ..jobs.clone() }, "no job of cluster v9", "v1, v2");
    let mut map = good.clone();
    map.topology = Some(folder.file("map.csv", "host,leaf\nx,l\n"));
    expect(&map, "names none of the nodes", "must be the same");
    let pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,1,1,0,0\n";
    expect(&openb(&folder, NODES, pods), "cannot be inflated", "--inflate 1");
    assert_eq!(Format::parse("itp"), Some(Format::Itp));
    assert_eq!(Format::parse("slurm"), None);
    assert_eq!(NodesFrom::parse("0:8"), NodesFrom::File("0:8".into()));
}
