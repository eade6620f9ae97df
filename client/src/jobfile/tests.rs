//! Job files as people write them, right and wrong.

use tessera_model::{DependencyKind, JobId, Strength};

use super::*;

fn message(text: &str) -> String {
    match parse(text, Path::new("job.toml")) {
        Ok(draft) => format!("accepted: {draft:?}"),
        Err(failure) => format!("{} | {}", failure.message, failure.hint),
    }
}

#[test]
fn a_whole_job_file_is_read() {
    let text = r#"
version = 1
name = "pretrain-70b"
team = "nlp"
project = "atlas"
tags = { cost_center = "4711" }
nodes = 8
gpus_per_node = 8
tasks_per_node = 8
cpus_per_task = 12
memory_per_node = "1440GB"
gpu_model = "h100"
time_limit = "3d"
priority = -5
requeue = true
script = "run.sh"
args = ["--config", "70b.yaml"]
env = { NCCL_DEBUG = "WARN", OMP_NUM_THREADS = 8 }
working_dir = "/data"

[placement]
within = [{ level = "block" }, { level = "leaf", strength = "preferred" }, "pod:preferred"]
"#;
    let draft = parse(text, Path::new("jobs/job.toml")).unwrap();
    assert_eq!(draft.nodes, Some(8));
    assert_eq!(draft.memory_per_node, Some(Bytes::gib(1440)));
    assert_eq!(draft.time_limit, Some(Millis(259_200_000)));
    assert_eq!(draft.priority, Some(-5));
    assert_eq!(draft.env["OMP_NUM_THREADS"], "8");
    let strengths: Vec<_> =
        draft.placement.within.iter().map(|w| (w.level.as_str(), w.strength)).collect();
    let want = [
        ("block", Strength::Required),
        ("leaf", Strength::Preferred),
        ("pod", Strength::Preferred),
    ];
    assert_eq!(strengths, want);
    let args = vec!["--config".to_owned(), "70b.yaml".to_owned()];
    assert_eq!(draft.program, Some(Work::Script { path: PathBuf::from("jobs/run.sh"), args }));
}

#[test]
fn a_job_file_may_wish_for_all_that_flags_may() {
    let text = r#"
version = 1
nodes = 8
min_nodes = 4
spares = 1
tier = "idle"
begin = 2026-12-01T08:00:00Z
after = ["ok:812", "any:7:8"]
singleton = true
hold = true
reservation = "course"
array = "0-9%3"
command = ["x"]

[placement]
within = ["block"]
slices = ["4:leaf:preferred", { size = 2, level = "nvlink" }]
at_most = ["2:leaf"]
spread = ["rack"]
balance = "leaf"
patience = "45m"
select = ["pool=a", "!old"]
nodelist = ["n[01-08]", "n09"]
exclude = "n03"

[checkpoint]
signal = 12
notice = "2m"
restart_cost = "6m"
file = "ckpt/latest"
migratable = true

[[role]]
name = "leader"
gpu_share = 0.5
memory_per_node = "1GB"
[role.placement]
within = ["leaf:preferred"]
"#;
    let mut draft = parse(text, Path::new("job.toml")).unwrap();
    assert_eq!(draft.begin.map(|b| b.rfc3339()).as_deref(), Some("2026-12-01T08:00:00Z"));
    let after: Vec<_> = draft.after.iter().map(|d| (d.kind, d.job)).collect();
    let any = DependencyKind::AfterAny;
    assert_eq!(after, [(DependencyKind::AfterOk, JobId(812)), (any, JobId(7)), (any, JobId(8))]);
    assert_eq!(draft.array.take().unwrap().throttle, 3);
    let place = &draft.placement;
    assert_eq!(place.slices[1].nodes, 2);
    assert_eq!(place.slices[0].strength, Strength::Preferred);
    assert_eq!((place.only.len(), place.exclude.len(), place.labels.len()), (9, 1, 2));
    assert_eq!(draft.tier, Some(Tier::Idle));
    let spec = draft.spec(8, 0).unwrap();
    assert!(spec.singleton && spec.hold);
    assert_eq!((spec.min_nodes, spec.spares, spec.reservation.as_str()), (Some(4), 1, "course"));
    let plan = spec.checkpoint.unwrap();
    assert_eq!((plan.signal, plan.notice_ms, plan.migratable), (Some(12), 120_000, true));
    let role = &spec.roles[0];
    let gang = role.gang.as_ref().unwrap();
    assert_eq!((gang.gpus_per_node, gang.gpu_milli, gang.memory_per_node_bytes), (1, 500, 1 << 30));
    assert!(!role.placement.as_ref().unwrap().within[0].required);
    // Flags go before, each kind of wish by itself.
    let flags = Placement { balance: Some("rack".to_owned()), ..Placement::default() };
    let both = placement_over(flags, parse(text, Path::new("j")).unwrap().placement);
    assert_eq!((both.balance.as_deref(), both.within.len()), (Some("rack"), 1));
    // Without a word about it there is no plan.
    let plain = Draft { program: Some(Work::Command(vec!["x".to_owned()])), ..Draft::default() };
    assert_eq!(plain.spec(1, 0).unwrap().checkpoint, None);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let cases = [
        ("", "job.toml:1: `version` is missing | begin the file with `version = 1`"),
        (
            "version = 2",
            "job.toml:1: version 2 of the job file is unknown | this tessera reads version = 1",
        ),
        (
            "version = 1\ngpu_per_node = 8",
            "job.toml:2: unknown key `gpu_per_node` | did you mean `gpus_per_node`?",
        ),
        (
            "version = 1\n[placment]\n",
            "job.toml:2: unknown key `placment` | did you mean `placement`?",
        ),
        (
            "version = 1\n[placement]\nwithn = []",
            "job.toml:3: unknown key `placement.withn` | did you mean `within`?",
        ),
        (
            "version = 1\nplacement.within = [{ level = \"leaf\", strenght = \"required\" }]",
            "unknown key `placement.within.strenght` | did you mean `strength`?",
        ),
        (
            "version = 1\nplacement.within = [{ level = \"leaf\", strength = \"must\" }]",
            "\"must\" is neither \"required\" nor \"preferred\"",
        ),
        ("version = 1\nplacement.within = [{ strength = \"required\" }]", "`level` is missing"),
        ("version = 1\nnodes = \"8\"", "job.toml:2: `nodes` must be a whole number, not string"),
        ("version = 1\nnodes = -1", "job.toml:2: `nodes` -1 is out of range"),
        (
            "version = 1\n\ntime_limit = 90",
            "job.toml:3: `time_limit` must be a text in quotes, not integer",
        ),
        (
            "version = 1\ntime_limit = \"soon\"",
            "\"soon\" is no length of time; write \"3d\" or \"1h30m\"",
        ),
        ("version = 1\nmemory_per_node = \"lots\"", "\"lots\" is no size"),
        ("version = 1\nrequeue = 1", "`requeue` must be true or false, not integer"),
        ("version = 1\n[placement]\nslices = [\"0:leaf\"]", "job.toml:3: 0 is too few"),
        ("version = 1\n[placement]\nslices = [{ size = 0, level = \"leaf\" }]", "`size` is 0"),
        ("version = 1\n[placement]\nslices = [{ level = \"leaf\" }]", "`size` is missing"),
        (
            "version = 1\n[placement]\nslices = [{ nodes = 4, level = \"leaf\" }]",
            "unknown key `placement.slices.nodes` | known keys are size, level, strength",
        ),
        ("version = 1\n[placement]\nwithin = \"leaf\"", "`placement.within` must be a list"),
        ("version = 1\n[placement]\npatience = 45", "`placement.patience` must be a text"),
        ("version = 1\n[placement]\nselect = [\"=a\"]", "write key=value"),
        ("version = 1\n[placement]\nexclude = \"n[3-1]\"", "names no or too many nodes"),
        ("version = 1\n[[role]]\nnodes = 1", "`name` of the role is missing"),
        ("version = 1\n[role]\nname = \"a\"", "`role` must be a list"),
        (
            "version = 1\n[[role]]\nname = \"a\"\nnods = 1",
            "job.toml:4: unknown key `role.nods` | did you mean `nodes`?",
        ),
        (
            "version = 1\n[[role]]\nname = \"a\"\n[role.placement]\nwithn = []",
            "unknown key `role.placement.withn` | did you mean `within`?",
        ),
        ("version = 1\n[checkpoint]\nsignal = \"USR9\"", "job.toml:3: \"USR9\" is no signal"),
        (
            "version = 1\n[checkpoint]\nnotise = \"5m\"",
            "`checkpoint.notise` | did you mean `notice`?",
        ),
        ("version = 1\nafter = [\"maybe:1\"]", "is no kind of dependency"),
        ("version = 1\narray = \"0-4294967296\"", "write indices"),
        ("version = 1\ntier = \"high\"", "tiers are urgent, normal, idle"),
        ("version = 1\nbegin = \"soon\"", "\"soon\" is no point in time"),
        ("version = 1\ngpu_share = 1.5", "write a part of one GPU"),
        ("version = 1\nmin_nodes = 0", "`min_nodes` is 0"),
        ("version = 1\nspares = -1", "`spares` -1 is out of range"),
        ("version = 1\ncommand = \"python\"", "`command` must be a list of texts"),
        ("version = 1\ncommand = []", "`command` is empty"),
        (
            "version = 1\ncommand = [\"a\"]\nscript = \"b\"",
            "job.toml:3: both `command` and `script` are given",
        ),
        ("version = 1\ncommand = [\"a\"]\nargs = [\"b\"]", "`args` goes with `script`"),
        ("version = 1\nargs = [\"b\"]", "`args` is given, but no `script`"),
        ("version = 1\nenv = { A = true }", "`env.A` must be a text in quotes, not boolean"),
        ("version = 1\nname = train", "job.toml:2: "),
        ("version = 1\nbanana = 1", "known keys are version, name"),
        ("version = 1\nname = \"a\"\nname = \"b\"", "job.toml:3: duplicate key"),
    ];
    for (text, want) in cases {
        let got = message(text);
        assert!(got.contains(want), "{text:?}\n got: {got}\nwant: {want}");
    }
}

#[test]
fn flags_override_the_file() {
    let file = parse(
        "version = 1\nname = \"a\"\nteam = \"nlp\"\ngpus = 16\nenv = { A = \"1\", B = \"1\" }\n\
         command = [\"x\"]\nplacement.within = [\"leaf\"]",
        Path::new("job.toml"),
    )
    .unwrap();
    let flags = Draft {
        name: Some("b".to_owned()),
        gpus_per_node: Some(8),
        env: BTreeMap::from([("B".to_owned(), "2".to_owned())]),
        ..Draft::default()
    };
    let both = flags.over(file.clone());
    assert_eq!(both.name.as_deref(), Some("b"));
    assert_eq!(both.team.as_deref(), Some("nlp"));
    assert_eq!((both.gpus, both.gpus_per_node), (None, Some(8)), "a shape replaces a total");
    assert_eq!((both.env["A"].as_str(), both.env["B"].as_str()), ("1", "2"));
    assert_eq!(both.placement.within.len(), 1);
    let total = Draft { gpus: Some(4), ..Draft::default() };
    let below = Draft { nodes: Some(2), gpus_per_node: Some(8), ..Draft::default() };
    let both = total.over(below);
    assert_eq!((both.gpus, both.nodes, both.gpus_per_node), (Some(4), None, None));
}

#[test]
fn a_total_of_gpus_becomes_a_shape_or_an_error() {
    let cases = [
        ((None, None, None), Ok((1, 0))),
        ((None, Some(2), Some(4)), Ok((2, 4))),
        ((Some(4), None, None), Ok((1, 4))),
        ((Some(8), None, None), Ok((1, 8))),
        ((Some(32), None, None), Ok((4, 8))),
        ((Some(12), None, None), Err("the largest node has 8 | ask for 8 or 16")),
        ((Some(12), Some(3), None), Ok((3, 4))),
        ((Some(12), None, Some(4)), Ok((3, 4))),
        ((Some(12), Some(5), None), Err("12 GPUs do not divide by 5 nodes")),
        ((Some(12), None, Some(5)), Err("12 GPUs do not divide by 5 GPUs per node")),
        ((Some(12), Some(3), Some(8)), Err("12 GPUs on 3 nodes are not 8 on each")),
        ((Some(0), None, None), Ok((1, 0))),
    ];
    for ((gpus, nodes, gpus_per_node), want) in cases {
        let draft = Draft { gpus, nodes, gpus_per_node, ..Draft::default() };
        match (shape(&draft, 8), want) {
            (Ok((nodes, each, note)), Ok(want)) => {
                assert_eq!((nodes, each), want, "{draft:?}");
                assert_eq!(note.is_some(), gpus.is_some());
            }
            (Err(failure), Err(want)) => {
                let got = format!("{} | {}", failure.message, failure.hint);
                assert!(got.contains(want), "{got}");
            }
            (got, want) => panic!("{draft:?}: {got:?}, wanted {want:?}"),
        }
    }
    let draft = Draft { gpus: Some(4), ..Draft::default() };
    assert!(shape(&draft, 0).unwrap_err().message.contains("no node has any"));
}

#[test]
fn a_missing_script_is_named_and_a_binary_is_no_script() {
    let script = |path: &Path| Draft {
        program: Some(Work::Script { path: path.to_owned(), args: vec![] }),
        ..Draft::default()
    };
    let failure = script(Path::new("no/such/run.sh")).spec(1, 0).unwrap_err();
    assert_eq!(failure.message, "there is no script no/such/run.sh");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prog");
    std::fs::write(&path, [0x7f, b'E', b'L', b'F', 0xff]).unwrap();
    assert!(script(&path).spec(1, 0).unwrap_err().hint.contains("submit -- "));
    std::fs::write(&path, "#!/bin/sh\ntrue\n").unwrap();
    let spec = script(&path).spec(2, 8).unwrap();
    assert_eq!((spec.name.as_str(), spec.nodes, spec.gpus_per_node), ("prog", 2, 8));
    assert_eq!(spec.script.as_deref(), Some("#!/bin/sh\ntrue\n"));
    assert_eq!(Draft::default().spec(1, 0).unwrap_err().message, "nothing to run");
}
