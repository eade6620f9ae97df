//! `tessera replay` as a process: no scheduler, files in, tables and files out.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn replay(home: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.arg("replay").args(args).current_dir(home).env_clear().env("HOME", home);
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn folder() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    write("nodes.csv", "sn,cpu_milli,memory_mib,gpu,model\nn0,8000,8192,2,T4\nn1,8000,8192,2,G2\n");
    write(
        "pods.csv",
        "seq,name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n\
         1,a,100,1,2,1000,G2\n2,b,100,1,1,500,\n5,c,100,1,1,600,\n9,d,100,1,2,1000,\n10,e,100,1,0,0,\n",
    );
    write(
        "jobs.csv",
        "job_id,submit_s,duration_s,num_gpus,vc\nj0,0,100,8,v\nj1,10,50,16,v\nj2,20,60,4,v\n",
    );
    home
}

#[test]
fn every_pod_has_its_row_and_the_policies_stand_side_by_side() {
    let home = folder();
    let pods = ["--nodes", "nodes.csv", "--jobs", "pods.csv"];
    let files = ["--placements", "out.csv", "--plot", "out.svg", "--json"];
    let (code, out, err) = replay(home.path(), &[&pods[..], &files].concat());
    assert_eq!(code, 0, "{err}");
    let view: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(view["trace"]["gpus"], 4);
    let policies = view["policies"].as_array().unwrap();
    let names: Vec<&str> = policies.iter().map(|p| p["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["ours", "first-fit", "best-fit", "fgd"]);
    for policy in policies {
        assert_eq!(policy["refused"], 1, "{policy}");
        assert_eq!(policy["refused_avoidably"], 0, "{policy}");
        assert_eq!(policy["packing"]["allocated_pct"], 77.5, "{policy}");
    }
    let csv = std::fs::read_to_string(home.path().join("out.csv")).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!(rows[..2], ["seq,node,devices", "1,n1,0-1"]);
    assert!(rows[2].starts_with("2,n0,") && rows[3].starts_with("5,n0,"), "{csv}");
    assert_ne!(rows[2].rsplit(',').next(), rows[3].rsplit(',').next(), "0.5 and 0.6 do not share");
    assert_eq!(rows[4], "9,,");
    assert!(rows[5].starts_with("10,n") && rows[5].ends_with(','), "{csv}");
    assert!(std::fs::read_to_string(home.path().join("out.svg")).unwrap().contains("best-fit"));
}

#[test]
fn waits_are_told_by_policy() {
    let home = folder();
    let jobs = ["--nodes", "2:8", "--jobs", "jobs.csv", "--policy", "ours,fifo,greedy,fifo"];
    let (code, out, err) = replay(home.path(), &jobs);
    assert_eq!(code, 0, "{err}");
    let first: Vec<&str> = out.lines().next().unwrap().split('\t').collect();
    assert_eq!(first, ["WAIT", "MEAN", "P50", "P99", "MAX", "JCT", "USED %", "FRAG %"]);
    // j1 waits 90 s for j0. In order, j2 waits for both; else it fits beside j0.
    assert!(out.contains("\nfifo\t1m13s\t1m30s\t2m10s\t2m10s\t"), "{out}");
    assert!(out.contains("\ngreedy\t30s\t0s\t1m30s\t1m30s\t"), "{out}");
    assert!(out.contains("\nours\t"), "{out}");
    assert_eq!(out.matches("\nfifo\t").count(), 2, "once a table: {out}");
    assert!(err.contains("reading jobs.csv"), "{err}");
}

#[test]
fn what_cannot_be_replayed_gives_no_answer_and_a_hint() {
    let home = folder();
    let cases: [(&[&str], &str, &str); 6] = [
        (
            &["--nodes", "nodes.csv", "--jobs", "gone.csv"],
            "could not read gone.csv",
            "check the path",
        ),
        (&["--nodes", "pods.csv", "--jobs", "nodes.csv"], "lists jobs, where nodes", "swapped"),
        (&["--jobs", "jobs.csv"], "a job trace needs nodes", "--load 0.9"),
        (
            &["--nodes", "2:8", "--jobs", "jobs.csv", "--policy", "magic"],
            "no policy \"magic\"",
            "or all",
        ),
        (&["--nodes", "2:8", "--jobs", "jobs.csv", "--policy", "fgd"], "policy fgd packs", "fifo"),
        (
            &[
                "--nodes",
                "2:8",
                "--jobs",
                "jobs.csv",
                "--policy",
                "fifo",
                "--plot",
                "no/such/x.svg",
            ],
            "could not write no/such/x.svg",
            "check the path",
        ),
    ];
    for (args, message, hint) in cases {
        let (code, out, err) = replay(home.path(), args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(err.contains(message) && err.contains("hint: ") && err.contains(hint), "{err}");
        let (code, out, _) = replay(home.path(), &[args, &["--json"]].concat());
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(code, 2);
        assert!(value["error"]["message"].as_str().unwrap().contains(message), "{value}");
    }
    let (code, _, err) = replay(home.path(), &["--nodes", "2:8"]);
    assert_eq!(code, 2);
    assert!(err.contains("--jobs"), "{err}");
    let (code, _, err) =
        replay(home.path(), &["--nodes", "2:8", "--jobs", "jobs.csv", "--format", "swf"]);
    assert_eq!(code, 2);
    assert!(err.contains("formats are openb, itp, philly, tessera"), "{err}");
}
