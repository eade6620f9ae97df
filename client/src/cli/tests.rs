//! Command lines as people type them.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::read(line.split_whitespace().map(OsString::from)).map_err(|e| e.to_string())
}

fn submit(line: &str) -> SubmitArgs {
    match parse(line).unwrap().verb {
        Verb::Submit(args) => *args,
        other => panic!("{line:?} is {other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent_and_every_verb_teaches() {
    Cli::command().debug_assert();
    for verb in Cli::command().get_subcommands().filter(|v| !v.is_hide_set()) {
        assert!(verb.get_about().is_some(), "{} has no help", verb.get_name());
        let after = verb.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.contains("tessera "), "{} has no example", verb.get_name());
    }
}

#[test]
fn a_script_takes_all_that_follows_and_a_command_stands_after_two_dashes() {
    let args = submit("tessera submit -N 2 train.sh --lr 3 -N 9 -- x");
    assert_eq!(args.request.nodes, Some(2));
    let want = ["--lr", "3", "-N", "9", "--", "x"].map(str::to_owned).to_vec();
    assert_eq!(args.work(), Some(Work::Script { path: PathBuf::from("train.sh"), args: want }));

    let args = submit("tessera submit -G 8 -- python -m train --json");
    let want = ["python", "-m", "train", "--json"].map(str::to_owned).to_vec();
    assert_eq!(args.work(), Some(Work::Command(want)));
    assert_eq!(submit("tessera submit -f job.toml").work(), None);
    assert!(parse("tessera submit --nmae x run.sh").unwrap_err().contains("--name"));
}

#[test]
fn options_are_read_with_their_units() {
    let args = submit(
        "tessera submit --time-limit 1-12:00:00 --memory 180GB --within leaf --within \
         block:preferred --priority -5 --tag a=b=c --env X=1 --requeue -c 4 --parsable run.sh",
    );
    let draft = args.request.draft();
    assert_eq!(draft.time_limit, Some(Millis(129_600_000)));
    assert_eq!(draft.memory_per_node, Some(Bytes::gib(180)));
    assert_eq!(draft.within.len(), 2);
    assert_eq!(draft.priority, Some(-5));
    assert_eq!(draft.tags["a"], "b=c");
    assert_eq!(draft.requeue, Some(true));
    assert!(args.quiet);
    let bad = [
        ("tessera submit -t soon x", "length of time"),
        ("tessera submit --memory lots x", "size"),
        ("tessera submit --within leaf:must x", "neither \"required\" nor \"preferred\""),
        ("tessera submit --tag novalue x", "NAME=VALUE"),
        ("tessera submit --env NO_SUCH_VARIABLE_HERE x", "is not set here"),
        ("tessera queue --state done", "succeeded"),
        ("tessera queue --limit 0", "0 is not in"),
        ("tessera usage --by colour", "gpu_model"),
        ("tessera logs --rank x 1", "write a rank"),
        ("tessera token create --user a --role boss", "finance"),
        ("tessera token create", "--user"),
        ("tessera prices set", "FILE"),
        ("tessera retire n9", "--reason"),
        ("tessera retire n9 n10 --reason x", "unexpected argument"),
        ("tessera dev --nodes 0", "0 is not in"),
        ("tessera dev --demo --nodes 3", "cannot be used with"),
    ];
    for (line, want) in bad {
        let error = parse(line).map(|c| format!("{c:?}")).unwrap_err();
        assert!(error.contains(want), "{line}: {error}");
    }
}

#[test]
fn the_rest_of_the_verbs_parse() {
    for line in [
        "tessera --json queue --all --team a --team b",
        "tessera show last --json",
        "tessera explain 7",
        "tessera explain -N 4 -- x",
        "tessera logs -f --rank 0-3 12",
        "tessera wait 1-3 last --timeout 2h",
        "tessera cancel 4",
        "tessera nodes n1 n2",
        "tessera drain n1 --reason why",
        "tessera retire n1 --reason why --json",
        "tessera usage --from 7d --by team,day --format csv -o x.csv",
        "tessera prices",
        "tessera prices set --gpu h100=2.95 --from 2026-12-01 --note x",
        "tessera team create nlp",
        "tessera token create --node",
        "tessera token create --node n17",
        "tessera token create --user ada --team nlp --uid 1000 --gid 1000",
        "tessera dev --port 0",
        "tessera completions zsh",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
    }
    let Verb::Usage(args) = parse("tessera usage").unwrap().verb else { panic!() };
    assert_eq!(args.by, [UsageKey::Team, UsageKey::GpuModel, UsageKey::Class]);
    assert_eq!(ranks("0-2,8,1"), Ok(Ranks(vec![0, 1, 2, 8])));
}
