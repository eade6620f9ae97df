//! Every refusal names the field, the value, the limit and the next step, and ends with the right
//! exit code or gRPC status.

use std::fs;

use tessera_proto::v1;
use tessera_tests::{Cluster, ClusterSpec, RUNTIME};
use tonic::{Code, Status};

/// One mistake at the command line.
struct Case {
    /// Separated by blanks; `_` stands for a blank inside a word.
    args: &'static str,
    exit: i32,
    /// In the `error:` line, all of them.
    error: &'static [&'static str],
    /// In the `hint:` line.
    hint: &'static str,
}

const fn case(
    args: &'static str,
    exit: i32,
    error: &'static [&'static str],
    hint: &'static str,
) -> Case {
    Case { args, exit, error, hint }
}

const CASES: &[Case] = &[
    // ---- submit
    case(
        "submit -G 9 -- true",
        1,
        &["9 GPUs on one node", "largest node has 8"],
        "--gpus-per-node 8",
    ),
    case("submit --gpus 12 -- true", 2, &["12 GPUs", "8"], "8 or 16"),
    case("submit --team nlpp -- true", 1, &["no team nlpp"], "did you mean nlp?"),
    case("submit --team Big -- true", 1, &["Big"], "nlp"),
    case("submit --gpu-model b200 -G 1 -- true", 1, &["model", "b200"], "nvidia h100"),
    case("submit -N 70000 -- true", 1, &["nodes is 70000", "65536"], "fewer nodes"),
    case("submit -G 4000000000 -- true", 1, &["gpus_per_node is 4000000000", "64"], "fewer GPUs"),
    case("submit -c 5000 -- true", 1, &["cpus_per_task is 5000", "4096"], "CPUs"),
    case("submit -c 300 -- true", 1, &["300 CPUs", "224"], "fewer CPUs"),
    case("submit --memory 60T -- true", 1, &["memory", "largest node"], "less memory"),
    case("submit --priority 1001 -- true", 1, &["priority is 1001", "1000"], "0 is the usual"),
    case("submit --priority=-2000 -- true", 1, &["priority is -2000", "-1000"], "0 is the usual"),
    case("submit -t 400d -- true", 1, &["time_limit_ms is 34560000000"], "365 days"),
    case("submit -t 0 -- true", 1, &["time_limit_ms is 0"], "1 s to 365 days"),
    case("submit --within rack -- true", 1, &["no level \"rack\""], "--within"),
    case("submit --env 1A=x -- true", 1, &["1A", "environment variable"], "letters"),
    case("submit --working-dir here -- true", 1, &["\"here\"", "absolute"], "/"),
    case("submit --project Big_Thing -- true", 1, &["Big Thing", "lower-case"], "team-7"),
    case("submit nosuch.sh", 2, &["no script nosuch.sh"], "check the path"),
    case("submit bare.sh", 1, &["begins with", "echo hi"], "#!/bin/bash"),
    case("submit", 2, &["nothing to run"], "after `--`"),
    case(
        "submit -f typo.toml",
        2,
        &["typo.toml:3:", "gpu_per_node"],
        "did you mean `gpus_per_node`?",
    ),
    case("submit -f negative.toml", 2, &["negative.toml:2:", "gpus", "-1"], ""),
    case("submit -f broken.toml", 2, &["broken.toml:2:"], "TOML"),
    case("submit -f nosuch.toml", 2, &["nosuch.toml"], "check the path"),
    case("submit -f noversion.toml", 2, &["`version` is missing"], "version = 1"),
    // ---- verbs about jobs
    case("show 999", 1, &["no job 999"], "tessera queue --all"),
    case("show nine", 2, &["\"nine\" names no job"], "812"),
    case("explain 999", 1, &["no job 999"], "tessera queue"),
    case("logs 999", 1, &["no job 999"], "tessera queue"),
    case("wait 999", 1, &["no job 999"], "tessera queue"),
    case("cancel 999", 1, &["no job 999"], "tessera queue"),
    case("cancel 9-3", 2, &["9-3 ends before it begins"], "3-9"),
    // ---- nodes
    case("nodes n9", 1, &["no node n9"], "did you mean n0?"),
    case("drain n9 --reason x", 1, &["no node n9"], "did you mean n0?"),
    case("drain n0", 1, &["reason has 0 characters"], "--reason"),
    case("cordon gpu-node-77 --reason x", 1, &["no node gpu-node-77"], "tessera nodes"),
    case("uncordon n9", 1, &["no node n9"], "did you mean n0?"),
    // ---- money
    case("usage --from 2026-10-02 --to 2026-10-01", 2, &["ends at", "before it begins"], "--to"),
    case("usage --from soon", 2, &["--from \"soon\""], "2026-11-01"),
    case("prices set --gpu h100=cheap", 2, &["h100=cheap", "no price"], ""),
    case("prices set --gpu h100=-1", 2, &["h100=-1", "no price"], ""),
    case("prices set --gpu h100=2000000", 1, &["2000000", "above 1000000"], "2.95"),
    case("prices set nosuch.toml", 2, &["nosuch.toml"], "check the path"),
    // ---- people
    case("team create nlp", 1, &["a team nlp already"], "another name"),
    case("team create Big_Team", 2, &["Big Team", "lower-case"], "team-7"),
    case("token create --user ada --team nosuch", 1, &["no team nosuch"], ""),
    case("token create --user A_B", 1, &["A B"], ""),
    case("token revoke nosuch", 1, &["no token \"nosuch\""], "tessera token list"),
    // ---- nobody to ask
    case("queue --config /no/such/client.toml", 2, &["/no/such/client.toml"], ""),
    case("queue --config closed.toml", 2, &["no connection to https://127.0.0.1:1"], "scheduler"),
    case("queue --config badtoken.toml", 2, &["token is not known"], "client.toml"),
];

/// Mistakes that are caught while the words are read: clap's own form, exit 2.
const WORDS: &[(&str, &str)] = &[
    ("submit -N -1 -- true", "-1"),
    ("submit -G many -- true", "many"),
    ("submit --gpuz 3 -- true", "--gpuz"),
    ("submit -t forever -- true", "forever"),
    ("submit --memory lots -- true", "lots"),
    ("submit --within :hard -- true", ":hard"),
    ("submit --tag novalue -- true", "novalue"),
    ("queue --state sleeping", "sleeping"),
    ("queue --limit 0", "0"),
    ("usage --by colour", "colour"),
    ("usage --format pdf", "pdf"),
    ("token create --user ada --role king", "king"),
    ("token create", "--user"),
    ("logs --rank 3-1 1", "3-1"),
    ("dev --nodes 0", "0"),
    ("dev --nodes 1000", "1000"),
    ("completions latin", "latin"),
    ("explode", "explode"),
];

#[test]
fn every_mistake_at_the_command_line_is_told_with_the_next_step() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let work = cluster.work();
    let put = |name: &str, text: &str| fs::write(work.join(name), text).unwrap();
    put("bare.sh", "echo hi\n");
    put("typo.toml", "version = 1\nname = \"x\"\ngpu_per_node = 8\ncommand = [\"true\"]\n");
    put("negative.toml", "version = 1\ngpus = -1\ncommand = [\"true\"]\n");
    put("broken.toml", "version = 1\nname = x\n");
    put("noversion.toml", "name = \"x\"\n");
    let settings = fs::read_to_string(cluster.client_toml()).unwrap();
    put("closed.toml", &settings.replace(&cluster.url(), "https://127.0.0.1:1"));
    put("badtoken.toml", &settings.replace(&cluster.admin().token, "tsr_abc.def"));
    let default_team = |args: &str| -> Vec<String> {
        let mut words: Vec<String> = args.split_whitespace().map(|w| w.replace('_', " ")).collect();
        if words[0] == "submit" && !words.contains(&"--team".to_owned()) {
            words.splice(1..1, ["--team".to_owned(), "nlp".to_owned()]);
        }
        words
    };
    let mut wrong = Vec::new();
    for Case { args, exit, error, hint } in CASES {
        let words = default_team(args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = cluster.cli(&words);
        let line = |word: &str| {
            said.stderr.lines().find_map(|l| l.strip_prefix(word)).unwrap_or_default().to_owned()
        };
        let (told, next) = (line("error: "), line("hint: "));
        let mut miss = |what: String| {
            wrong.push(format!("tessera {args}: {what}\n    {}", said.stderr.trim()))
        };
        if said.code() != *exit {
            miss(format!("exit {}, not {exit}", said.code()));
        }
        for word in *error {
            if !told.contains(word) {
                miss(format!("no {word:?} in the error"));
            }
        }
        if !next.to_lowercase().contains(&hint.to_lowercase()) {
            miss(format!("no {hint:?} in the hint"));
        }
        if !said.stdout.is_empty() {
            miss(format!("stdout is not empty: {}", said.stdout));
        }
        // For programs: one object on stdout, the same words.
        let mut words = words;
        words.insert(1, "--json");
        let json = cluster.cli(&words);
        match serde_json::from_str::<serde_json::Value>(&json.stdout) {
            Ok(value) => {
                if value["error"]["message"].as_str() != Some(told.as_str())
                    || value["error"]["kind"].as_str().is_none_or(str::is_empty)
                    || json.code() != *exit
                {
                    miss(format!("--json says {value} with exit {}", json.code()));
                }
            }
            Err(e) => miss(format!("--json gives no JSON: {e}: {:?}", json.stdout)),
        }
    }
    for (args, word) in WORDS {
        let words = default_team(args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = cluster.cli(&words);
        if said.code() != 2 || !said.stderr.contains(word) || !said.stdout.is_empty() {
            wrong.push(format!(
                "tessera {args}: exit {}, {word:?} in {}",
                said.code(),
                said.stderr.trim()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(cluster.admin().all_jobs().len(), 0, "nothing of it made a job");
}

#[test]
fn every_refusal_has_a_fitting_grpc_status() {
    let cluster = Cluster::start(ClusterSpec::nodes(1));
    let admin = cluster.admin();
    let base = cluster.sh("true");
    type Spoil = fn(&mut v1::JobSpec);
    let submits: &[(&str, Code, Spoil)] = &[
        ("gpus_per_node", Code::InvalidArgument, |s| s.gpus_per_node = 9),
        ("gpus_per_node", Code::InvalidArgument, |s| s.gpus_per_node = u32::MAX),
        ("nodes", Code::InvalidArgument, |s| s.nodes = u32::MAX),
        ("tasks_per_node", Code::InvalidArgument, |s| s.tasks_per_node = 2_000),
        ("memory_per_node_bytes", Code::InvalidArgument, |s| s.memory_per_node_bytes = u64::MAX),
        ("priority", Code::InvalidArgument, |s| s.priority = i32::MIN),
        ("time_limit_ms", Code::InvalidArgument, |s| s.time_limit_ms = Some(u64::MAX)),
        ("team", Code::NotFound, |s| s.team = "nlpp".into()),
        ("team", Code::InvalidArgument, |s| s.team = "\u{202e}x".into()),
        ("gpu_model", Code::InvalidArgument, |s| s.gpu_model = "b200".into()),
        ("placement", Code::InvalidArgument, |s| {
            let within = vec![v1::Within { level: "rack".into(), required: true }];
            s.placement = Some(v1::Placement { within, ..Default::default() });
        }),
        ("argv", Code::InvalidArgument, |s| s.argv.clear()),
        ("argv", Code::InvalidArgument, |s| s.argv = vec!["a\0b".into()]),
        ("script", Code::InvalidArgument, |s| s.script = Some("no first line".into())),
        ("env", Code::InvalidArgument, |s| {
            s.env.insert("A=B".into(), "x".into());
        }),
        ("name", Code::InvalidArgument, |s| s.name = "x".repeat(1_000)),
        ("name", Code::InvalidArgument, |s| s.name = "a\u{1b}[31m".into()),
    ];
    for (field, code, spoil) in submits {
        let mut spec = base.clone();
        spoil(&mut spec);
        let request = v1::SubmitRequest { spec: Some(spec), ..Default::default() };
        let status = refusal(async { admin.jobs().submit(request).await });
        check(&status, *code, field);
    }
    let empty = v1::SubmitRequest::default();
    check(&refusal(async { admin.jobs().submit(empty).await }), Code::InvalidArgument, "spec");
    // Keys: too long, and one that was used for something else.
    let with_key = |spec: v1::JobSpec, key: &str| v1::SubmitRequest {
        spec: Some(spec),
        idempotency_key: key.to_owned(),
        array: None,
    };
    let long = with_key(base.clone(), &"k".repeat(129));
    check(
        &refusal(async { admin.jobs().submit(long).await }),
        Code::InvalidArgument,
        "idempotency_key",
    );
    admin.try_submit(base.clone(), "mine").unwrap();
    let other = with_key(v1::JobSpec { priority: 1, ..base.clone() }, "mine");
    check(
        &refusal(async { admin.jobs().submit(other).await }),
        Code::AlreadyExists,
        "idempotency_key",
    );

    let job_id = 999;
    for status in [
        refusal(async { admin.jobs().get(v1::GetJobRequest { job_id, index: None }).await }),
        refusal(async {
            admin.jobs().cancel(v1::CancelRequest { job_id, ..Default::default() }).await
        }),
        refusal(async { admin.jobs().watch(v1::WatchRequest { job_id }).await }),
        refusal(async {
            admin.jobs().logs(v1::LogsRequest { job_id, ..Default::default() }).await
        }),
        refusal(async {
            let subject = Some(v1::explain_request::Subject::JobId(job_id));
            admin.jobs().explain(v1::ExplainRequest { subject }).await
        }),
    ] {
        check(&status, Code::NotFound, "");
    }
    let nothing = v1::ExplainRequest { subject: None };
    let status = refusal(async { admin.jobs().explain(nothing).await });
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let latest = v1::LatestRequest { node: "n9".into() };
    check(&refusal(async { admin.nodes().latest(latest).await }), Code::NotFound, "node");
    let cordon = v1::CordonRequest { node: "n0".into(), drain: true, reason: String::new() };
    check(&refusal(async { admin.nodes().cordon(cordon).await }), Code::InvalidArgument, "reason");

    let report = |from: i64, to: i64, by: &[&str]| v1::UsageRequest {
        from_unix_ms: from,
        to_unix_ms: to,
        by: by.iter().map(|k| (*k).to_owned()).collect(),
        teams: vec![],
    };
    for request in
        [report(10, 5, &["team"]), report(0, 5, &["colour"]), report(0, 5, &["team", "team"])]
    {
        let shown = format!("{request:?}");
        let status = refusal(async { admin.usage().report(request).await });
        assert_eq!(status.code(), Code::InvalidArgument, "{shown}: {status:?}");
    }
    // Prices that were published stay.
    admin.set_price("h100", "2");
    let past = v1::SetPricesRequest {
        effective_from_unix_ms: 1_000,
        prices: vec![v1::Price { gpu_model: "h100".into(), usd_per_gpu_hour: "3".into() }],
        note: String::new(),
    };
    check(
        &refusal(async { admin.usage().set_prices(past).await }),
        Code::FailedPrecondition,
        "effective_from",
    );
    let nan = v1::SetPricesRequest {
        prices: vec![v1::Price { gpu_model: "h100".into(), usd_per_gpu_hour: "NaN".into() }],
        ..Default::default()
    };
    let status = refusal(async { admin.usage().set_prices(nan).await });
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let team = v1::CreateTeamRequest { team: "nlp".into(), description: String::new() };
    check(&refusal(async { admin.admin().create_team(team).await }), Code::AlreadyExists, "team");
    let join = v1::CreateJoinTokenRequest { node: "not a node".into() };
    check(
        &refusal(async { admin.admin().create_join_token(join).await }),
        Code::InvalidArgument,
        "node",
    );
}

#[track_caller]
fn check(status: &Status, code: Code, field: &str) {
    let refusal = tessera_proto::status::from_status(status);
    assert_eq!((status.code(), refusal.field.as_str()), (code, field), "{refusal:?}");
    assert!(!refusal.message.is_empty() && !refusal.hint.is_empty(), "{field}: {refusal:?}");
}

fn refusal<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Status>>) -> Status {
    RUNTIME.block_on(call).expect_err("it is refused")
}
