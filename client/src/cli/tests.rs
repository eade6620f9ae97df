//! Command lines as people type them.

use clap::CommandFactory;

use super::*;
use crate::jobfile::{Draft, Work};

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
    assert_eq!(draft.placement.within.len(), 2);
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
        ("tessera submit --slice 0:leaf x", "too few"),
        ("tessera submit --slice -4:leaf x", "4:leaf"),
        ("tessera submit --slice 4 x", "4:leaf"),
        ("tessera submit --slice 99999999999:leaf x", "4:leaf"),
        ("tessera submit --at-most 0:block x", "too few"),
        ("tessera submit --spread leaf:0 x", "leaf:1"),
        ("tessera submit --patience soon x", "length of time"),
        ("tessera submit --patience -5m x", "length of time"),
        ("tessera submit --select =a x", "key=value"),
        ("tessera submit --nodelist n[3-1] x", "names no or too many"),
        ("tessera submit --exclude n[0-99999999] x", "too many"),
        ("tessera submit --gpu-share 1.5 x", "part of one GPU"),
        ("tessera submit --gpu-share -0.5 x", "part of one GPU"),
        ("tessera submit --tier high x", "urgent, normal, idle"),
        ("tessera submit --begin yesterday x", "time from now"),
        ("tessera submit --after maybe:1 x", "ok, any, notok"),
        ("tessera submit --after ok:0 x", "is no job's id"),
        ("tessera submit --array 0-4294967296 x", "write indices"),
        ("tessera submit --array -1 x", "write indices"),
        ("tessera submit --array 5-2 x", "ends before it begins"),
        ("tessera submit --array 0-9%0 x", "no task run"),
        ("tessera submit --array 0-9 --follow x", "cannot be used with"),
        ("tessera submit --min-nodes 0 x", "from 1 on"),
        ("tessera submit --spares -1 x", "whole number"),
        ("tessera submit --checkpoint-signal USR9 x", "is no signal"),
        ("tessera submit --notice long x", "length of time"),
        ("tessera submit --restart-cost much x", "length of time"),
        ("tessera submit --dry-run --wait x", "cannot be used with"),
        ("tessera update", "JOBS"),
        ("tessera update 8 --nodes 0", "from 1 on"),
        ("tessera update 8 --throttle -1", "whole number"),
        ("tessera update 8 --after x:1", "ok, any, notok"),
        ("tessera signal USR9 8", "is no signal"),
        ("tessera signal USR1", "JOBS"),
        ("tessera checkpoint", "done"),
        ("tessera team share nlp --weight -5", "-5 is not in"),
        ("tessera team share nlp --weight 0", "0 is not in"),
        ("tessera team share nlp --quota h100", "MODEL=GUARANTEED"),
        ("tessera team share nlp --quota h100=-8", "MODEL=GUARANTEED"),
        ("tessera reserve make x --for 2h --reason y", "--domain"),
        ("tessera reserve make x --for 2h --nodes n1", "--reason"),
        ("tessera reserve make x --nodes n1", "--until"),
        ("tessera reserve make x --nodes n1 --domain leaf:a --for 2h", "cannot be used with"),
        ("tessera reserve make x --domain leaf --for 2h", "leaf:leaf-3"),
        ("tessera topology mark leaf:a", "--health"),
        ("tessera topology mark leaf:a --health 101", "101 is not in"),
        ("tessera topology mark leaf --health 1", "leaf:leaf-3"),
        ("tessera topology load", "FILE"),
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
        "tessera hold 4 5-7 8_2 last",
        "tessera release 8",
        "tessera update 8 -N 4 --priority -3 --tier idle -t 4h --begin now --after none",
        "tessera update 8 --throttle 0 --within leaf --slice 2:leaf --anywhere",
        "tessera signal USR1 8 last",
        "tessera signal 12 8",
        "tessera checkpoint done",
        "tessera checkpoint done 8_1 --json",
        "tessera topology",
        "tessera topology show --json",
        "tessera topology doubts",
        "tessera topology mark leaf:leaf-3 --health 50 --for 4h --reason why",
        "tessera topology load map.conf --allow-unknown --drop-nodes --dry-run",
        "tessera reserve list",
        "tessera reserve end course",
        "tessera reserve make course --domain leaf:l --from 2026-12-01T08:00 --for 10h --team edu \
         --reason x",
        "tessera reserve make fw --nodes n[01-04] --until 2026-12-01 --reason x",
        "tessera team share nlp --parent none --weight 5 --quota any=..8 --drop-quota h100",
        "tessera show 8 --placement",
        "tessera queue --tasks",
        "tessera submit --dry-run -N 8 -- x",
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

#[test]
fn every_wish_has_its_flag() {
    let args = submit(
        "tessera submit -N 8 -G 8 --within block --slice 4:leaf --slice 2:nvlink:preferred \
         --at-most 2:leaf --spread rack:2 --balance leaf --patience 45m --select pool=a,b \
         --select !old --nodelist n[01-08] -w n09 --exclude n03 --tier urgent --begin 2026-12-01 \
         --after ok:812,any:7 --after 9 --singleton --hold --reservation course --min-nodes 4 \
         --spares 1 --checkpoint-signal USR1 --checkpoint-file ckpt/latest --restart-cost 6m \
         --migratable --array 0-99:2%5 train.sh",
    );
    assert_eq!(args.array.as_ref().unwrap().throttle, 5);
    let draft =
        Draft { program: Some(Work::Command(vec!["x".to_owned()])), ..args.request.draft() };
    let spec = draft.spec(8, 8).unwrap();
    let place = spec.placement.as_ref().unwrap();
    assert_eq!((place.within.len(), place.slices.len(), place.labels.len()), (1, 2, 2));
    assert_eq!((place.at_most[0].domains, place.spread[0].max_skew), (2, 2));
    assert_eq!((place.balance.as_str(), place.patience_ms), ("leaf", Some(2_700_000)));
    assert_eq!((place.only.len(), place.exclude.as_slice()), (9, &["n03".to_owned()][..]));
    assert_eq!(spec.tier, v1::Tier::Urgent as i32);
    assert_eq!(spec.begin_unix_ms, UnixMillis::parse_date("2026-12-01").map(|t| t.0));
    let after: Vec<u64> = spec.after.iter().map(|d| d.job_id).collect();
    assert_eq!(after, [812, 7, 9]);
    assert!(spec.singleton && spec.hold);
    assert_eq!((spec.reservation.as_str(), spec.min_nodes, spec.spares), ("course", Some(4), 1));
    let plan = spec.checkpoint.unwrap();
    assert_eq!((plan.signal, plan.notice_ms, plan.restart_cost_ms), (Some(10), 300_000, 360_000));
    assert_eq!((plan.file.as_str(), plan.migratable), ("ckpt/latest", true));

    let share = submit("tessera submit --gpu-share 0.25 x").request.draft();
    assert_eq!(crate::jobfile::shape(&share, 0).unwrap().1, 1, "a share is of one GPU");
    assert_eq!(share.gpu_milli, Some(250));
}
