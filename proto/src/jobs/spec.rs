//! A job's spec: its defaults and its bounds.
//!
//! A submission is read and then checked. A record that comes back from the scheduler is only
//! read: the bounds of this release must not hide a job that an earlier one accepted.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{
    Bytes, Gang, JobId, JobRole, JobSpec, Millis, Principal, Program, ProjectId, Refusal, TeamId,
    Tier, UnixIdentity, UnixMillis, UserId, WHOLE_GPU,
};

use super::{placement, when};
use crate::{
    door::{Checked, bad_id, count, is_printable, label, no_nul, present, quote, range, size},
    v1,
};

const NAME_CHARS_MAX: usize = 128;
const NODES_MAX: u32 = 65_536;
const RANKS_MAX: u64 = 65_536;
const GPUS_PER_NODE_MAX: u32 = 64;
const TASKS_PER_NODE_MAX: u32 = 1_024;
const CPUS_PER_TASK_MAX: u32 = 4_096;
/// Far above any machine, and so low that a sum over all nodes cannot overflow.
const MEMORY_MAX: Bytes = Bytes::gib(64 << 10);
const TIME_LIMIT_MIN: Millis = Millis::from_secs(1);
const TIME_LIMIT_MAX: Millis = Millis(365 * Millis::DAY.0);
const TAGS_MAX: usize = 32;
const ROLES_MAX: usize = 16;
const ROLE_NAME_CHARS_MAX: usize = 63;
const ARGS_MAX: usize = 4_096;
const ENV_MAX: usize = 1_024;
/// Arguments, and environment: what one `execve` can surely take.
const EXEC_BYTES_MAX: usize = 128 << 10;
const SCRIPT_BYTES_MAX: usize = 1 << 20;
const PATH_BYTES_MAX: usize = 4_095;

/// A submission. User and unix identity are the caller's, whatever the request says.
pub fn spec_from_wire(wire: v1::JobSpec, caller: &Principal) -> Result<JobSpec, Refusal> {
    let team = team_of(&wire.team, caller)?;
    let spec = read(wire, team, caller.user.clone(), caller.unix)?;
    check(&spec)?;
    Ok(spec)
}

pub fn spec_to_wire(spec: &JobSpec) -> v1::JobSpec {
    let gang = gang_to_wire(&spec.gang);
    v1::JobSpec {
        name: spec.name.clone(),
        team: spec.team.to_string(),
        project: spec.project.to_string(),
        tags: spec.tags.clone(),
        nodes: gang.nodes,
        gpus_per_node: gang.gpus_per_node,
        tasks_per_node: gang.tasks_per_node,
        cpus_per_task: gang.cpus_per_task,
        memory_per_node_bytes: gang.memory_per_node_bytes,
        gpu_model: gang.gpu_model,
        gpu_milli: gang.gpu_milli,
        tier: tier_to_wire(spec.tier).into(),
        roles: spec
            .roles
            .iter()
            .map(|r| v1::JobRole {
                name: r.name.clone(),
                gang: Some(gang_to_wire(&r.gang)),
                placement: wish(&r.placement),
            })
            .collect(),
        placement: wish(&spec.placement),
        priority: spec.priority,
        time_limit_ms: spec.time_limit.map(|t| t.0),
        requeue: spec.requeue,
        begin_unix_ms: spec.begin.map(|t| t.0),
        after: when::after_to_wire(&spec.after),
        singleton: spec.singleton,
        hold: spec.hold,
        min_nodes: spec.min_nodes,
        spares: spec.spares,
        checkpoint: spec.checkpoint.as_ref().map(when::checkpoint_to_wire),
        reservation: spec.reservation.clone().unwrap_or_default(),
        argv: spec.program.argv.clone(),
        script: spec.program.script.clone(),
        env: spec.program.env.clone(),
        working_dir: spec.program.working_dir.clone(),
        user: spec.user.to_string(),
    }
}

/// No wish at all takes no room on the wire.
fn wish(placement: &tessera_model::Placement) -> Option<v1::Placement> {
    (!placement.is_empty()).then(|| placement::placement_to_wire(placement))
}

fn gang_to_wire(gang: &Gang) -> v1::Gang {
    v1::Gang {
        nodes: gang.nodes,
        gpus_per_node: gang.gpus_per_node,
        tasks_per_node: gang.tasks_per_node,
        cpus_per_task: gang.cpus_per_task,
        memory_per_node_bytes: gang.memory_per_node.0,
        gpu_model: gang.gpu_model.clone().unwrap_or_default(),
        gpu_milli: gang.gpu_milli,
    }
}

const TIERS: [(Tier, v1::Tier); 3] = [
    (Tier::Urgent, v1::Tier::Urgent),
    (Tier::Normal, v1::Tier::Normal),
    (Tier::Idle, v1::Tier::Idle),
];

pub fn tier_to_wire(tier: Tier) -> v1::Tier {
    TIERS
        .iter()
        .find(|(t, _)| *t == tier)
        .expect("TIERS has every tier; a test goes through them")
        .1
}

/// From the bare number a message holds; unspecified is normal.
pub fn tier_from_wire(number: i32) -> Result<Tier, Refusal> {
    if number == v1::Tier::Unspecified as i32 {
        return Ok(Tier::default());
    }
    let known = TIERS.iter().find(|(_, wire)| *wire as i32 == number).map(|(tier, _)| *tier);
    known.ok_or_else(|| {
        let words: Vec<&str> = Tier::ALL.iter().map(|t| t.word()).collect();
        let hint = format!("there are: {}", words.join(", "));
        Refusal::invalid("tier", format!("{number} is no tier"), hint)
    })
}

/// Fills in the defaults; the bounds are [`check`]'s.
pub(super) fn read(
    wire: v1::JobSpec,
    team: TeamId,
    user: UserId,
    unix: Option<UnixIdentity>,
) -> Checked<JobSpec> {
    let project = if wire.project.is_empty() { "default" } else { wire.project.as_str() };
    let role = |role: v1::JobRole| {
        Ok(JobRole {
            name: role.name,
            gang: gang(present("roles.gang", role.gang)?),
            placement: placement::placement_from_wire(role.placement.unwrap_or_default())?,
        })
    };
    Ok(JobSpec {
        name: if wire.name.is_empty() {
            default_name(&wire.argv, wire.script.is_some())
        } else {
            wire.name
        },
        team,
        project: ProjectId::parse(project).map_err(bad_id("project"))?,
        user,
        tags: wire.tags,
        tier: tier_from_wire(wire.tier)?,
        gang: gang(v1::Gang {
            nodes: wire.nodes,
            gpus_per_node: wire.gpus_per_node,
            tasks_per_node: wire.tasks_per_node,
            cpus_per_task: wire.cpus_per_task,
            memory_per_node_bytes: wire.memory_per_node_bytes,
            gpu_model: wire.gpu_model,
            gpu_milli: wire.gpu_milli,
        }),
        roles: wire.roles.into_iter().map(role).collect::<Checked<_>>()?,
        placement: placement::placement_from_wire(wire.placement.unwrap_or_default())?,
        priority: wire.priority,
        time_limit: wire.time_limit_ms.map(Millis),
        requeue: wire.requeue,
        begin: wire.begin_unix_ms.map(UnixMillis),
        after: when::after_from_wire(&wire.after)?,
        singleton: wire.singleton,
        hold: wire.hold,
        min_nodes: wire.min_nodes,
        spares: wire.spares,
        checkpoint: wire.checkpoint.map(when::checkpoint_from_wire),
        reservation: Some(wire.reservation).filter(|r| !r.is_empty()),
        program: Program {
            argv: wire.argv,
            script: wire.script,
            env: wire.env,
            working_dir: wire.working_dir,
        },
        unix,
    })
}

fn gang(wire: v1::Gang) -> Gang {
    let or = |given: u32, default: u32| if given == 0 { default } else { given };
    Gang {
        nodes: or(wire.nodes, 1),
        gpus_per_node: wire.gpus_per_node,
        tasks_per_node: or(wire.tasks_per_node, wire.gpus_per_node.max(1)),
        cpus_per_task: or(wire.cpus_per_task, 1),
        memory_per_node: Bytes(wire.memory_per_node_bytes),
        gpu_model: Some(wire.gpu_model).filter(|m| !m.is_empty()),
        gpu_milli: or(wire.gpu_milli, WHOLE_GPU),
    }
}

fn team_of(named: &str, caller: &Principal) -> Checked<TeamId> {
    match caller.teams.as_slice() {
        _ if !named.is_empty() => TeamId::parse(named).map_err(bad_id("team")),
        [only] => Ok(only.clone()),
        [] => Err(Refusal::invalid(
            "team",
            format!("no team is named, and {} belongs to none", caller.user),
            "name the team that pays, or ask an administrator to be put into one",
        )),
        several => {
            let names: Vec<&str> = several.iter().map(TeamId::as_str).collect();
            Err(Refusal::invalid(
                "team",
                format!("no team is named, and {} belongs to {}", caller.user, names.len()),
                format!("name one of {}", names.join(", ")),
            ))
        }
    }
}

/// The program's own name; `job` where it has none that could be shown.
fn default_name(argv: &[String], is_script: bool) -> String {
    let program = argv.first().filter(|_| !is_script).map_or("", String::as_str);
    let base = program.rsplit('/').next().unwrap_or_default();
    let name: String = base.chars().filter(|c| is_printable(*c)).take(NAME_CHARS_MAX).collect();
    if name.trim().is_empty() { "job".to_owned() } else { name }
}

fn check(spec: &JobSpec) -> Checked {
    label("name", &spec.name, NAME_CHARS_MAX)?;
    check_tags(&spec.tags)?;
    check_gang("", &spec.gang)?;
    placement::check("", &spec.placement, spec.gang.nodes)?;
    check_roles(spec)?;
    check_elastic(spec)?;
    check_priority(spec.priority)?;
    if let Some(limit) = spec.time_limit {
        check_time_limit(limit)?;
    }
    if let Some(begin) = spec.begin {
        when::check_instant("begin_unix_ms", begin)?;
    }
    when::check_after(&spec.after)?;
    if let Some(zero) = spec.after.iter().find(|d| d.job == JobId(0)) {
        let message = format!("there is no job {}", zero.job);
        return Err(Refusal::invalid("after", message, "`tessera queue` lists ids"));
    }
    if let Some(plan) = &spec.checkpoint {
        when::check_checkpoint(plan)?;
    }
    if let Some(name) = &spec.reservation {
        label("reservation", name, ROLE_NAME_CHARS_MAX)?;
    }
    check_program(&spec.program)
}

pub(super) fn check_priority(priority: i32) -> Checked {
    range("priority", priority, -1_000, 1_000, "0 is the usual priority")
}

pub(super) fn check_time_limit(limit: Millis) -> Checked {
    let (low, high) = (TIME_LIMIT_MIN, TIME_LIMIT_MAX);
    let hint = "give 1 s to 365 days, or none for no limit";
    range("time_limit_ms", limit.0, low.0, high.0, hint)
}

pub(super) fn check_nodes(field: &str, nodes: u32) -> Checked {
    range(field, nodes, 1, NODES_MAX, "ask for fewer nodes")
}

fn check_roles(spec: &JobSpec) -> Checked {
    count("roles", spec.roles.len(), ROLES_MAX, "merge roles of the same shape")?;
    let mut names = BTreeSet::new();
    for (i, role) in spec.roles.iter().enumerate() {
        let at = format!("roles[{i}].");
        label(&format!("{at}name"), &role.name, ROLE_NAME_CHARS_MAX)?;
        if !names.insert(role.name.as_str()) {
            let message = format!("there are two roles called {}", quote(&role.name));
            return Err(Refusal::invalid(format!("{at}name"), message, "name each role once"));
        }
        check_gang(&at, &role.gang)?;
        placement::check(&at, &role.placement, role.gang.nodes)?;
        if role.placement.patience.is_some() {
            let hint = "give one patience for the whole job";
            let message = format!("the role {} has a patience of its own", quote(&role.name));
            return Err(Refusal::invalid(format!("{at}placement.patience_ms"), message, hint));
        }
    }
    let gangs = || spec.all_roles().map(|(_, gang)| gang);
    let nodes: u64 = gangs().map(|g| u64::from(g.nodes)).sum::<u64>() + u64::from(spec.spares);
    if nodes > u64::from(NODES_MAX) {
        let message = format!("all roles and spares are {nodes} nodes, at most {NODES_MAX} may be");
        return Err(Refusal::invalid("roles", message, "ask for fewer nodes"));
    }
    let ranks: u64 = gangs().map(|g| u64::from(g.nodes) * u64::from(g.tasks_per_node)).sum();
    if ranks > RANKS_MAX {
        let message = format!("all roles have {ranks} ranks, at most {RANKS_MAX} are allowed");
        return Err(Refusal::invalid("roles", message, "ask for fewer tasks or nodes"));
    }
    Ok(())
}

fn check_elastic(spec: &JobSpec) -> Checked {
    if let Some(least) = spec.min_nodes {
        let hint = "it may start with as many nodes at least, and with `nodes` at most";
        range("min_nodes", least, 1, spec.gang.nodes, hint)?;
        if let Some(slice) = spec.placement.slices.first()
            && !least.is_multiple_of(slice.nodes)
        {
            let message =
                format!("min_nodes {least} is no multiple of the slice of {}", slice.nodes);
            return Err(Refusal::invalid("min_nodes", message, "it shrinks by whole slices"));
        }
    }
    if spec.spares > 0 && spec.gang.is_share() {
        let message = "spares are asked for beside a share of a GPU";
        return Err(Refusal::invalid("spares", message, "ask for a whole GPU, or for no spare"));
    }
    Ok(())
}

fn check_tags(tags: &BTreeMap<String, String>) -> Checked {
    count("tags", tags.len(), TAGS_MAX, "keep the tags that a report will ask for")?;
    for (key, value) in tags {
        label("tags", key, NAME_CHARS_MAX)?;
        crate::door::line("tags", value, NAME_CHARS_MAX)?;
    }
    Ok(())
}

/// `at` stands before each field's name: `roles[0].`, or nothing.
fn check_gang(at: &str, gang: &Gang) -> Checked {
    let field = |name: &str| format!("{at}{name}");
    check_nodes(&field("nodes"), gang.nodes)?;
    let hint = "ask for fewer GPUs on each node and for more nodes";
    range(&field("gpus_per_node"), gang.gpus_per_node, 0, GPUS_PER_NODE_MAX, hint)?;
    let hint = "one task for each GPU is usual";
    range(&field("tasks_per_node"), gang.tasks_per_node, 1, TASKS_PER_NODE_MAX, hint)?;
    let ranks = u64::from(gang.nodes) * u64::from(gang.tasks_per_node);
    if ranks > RANKS_MAX {
        let message = format!(
            "{} nodes with {} tasks each are {ranks} ranks, at most {RANKS_MAX} are allowed",
            gang.nodes, gang.tasks_per_node
        );
        let hint = "ask for fewer tasks or nodes";
        return Err(Refusal::invalid(field("tasks_per_node"), message, hint));
    }
    let hint = "a node has no more CPUs than that";
    range(&field("cpus_per_task"), gang.cpus_per_task, 1, CPUS_PER_TASK_MAX, hint)?;
    let hint = "give bytes, or 0 for no wish";
    range(&field("memory_per_node_bytes"), gang.memory_per_node.0, 0, MEMORY_MAX.0, hint)?;
    let hint = "a whole GPU is 1000; for more, ask for more GPUs";
    range(&field("gpu_milli"), gang.gpu_milli, 1, WHOLE_GPU, hint)?;
    if gang.gpu_milli < WHOLE_GPU && (gang.nodes, gang.gpus_per_node) != (1, 1) {
        let message = format!(
            "a share of a GPU is asked for on {} nodes with {} GPUs each",
            gang.nodes, gang.gpus_per_node
        );
        let hint = "a share is of one GPU of one node; ask for whole GPUs to have more";
        return Err(Refusal::invalid(field("gpu_milli"), message, hint));
    }
    match &gang.gpu_model {
        Some(model) => label(&field("gpu_model"), model, NAME_CHARS_MAX),
        None => Ok(()),
    }
}

fn check_program(program: &Program) -> Checked {
    match &program.script {
        Some(script) => check_script(script)?,
        None if program.argv.first().is_none_or(String::is_empty) => {
            let message = "there is neither a program nor a script to run";
            return Err(Refusal::invalid("argv", message, "give a program, or a script's text"));
        }
        None => {}
    }
    let hint = "put the arguments into a file and pass its path";
    count("argv", program.argv.len(), ARGS_MAX, hint)?;
    size("argv", program.argv.iter().map(|a| a.len() + 1).sum(), EXEC_BYTES_MAX, hint)?;
    program.argv.iter().try_for_each(|arg| no_nul("argv", arg))?;
    check_env(&program.env)?;
    if let Some(dir) = &program.working_dir {
        no_nul("working_dir", dir)?;
        size("working_dir", dir.len(), PATH_BYTES_MAX, "use a shorter path")?;
        if !dir.starts_with('/') {
            let message = format!("working_dir is {}, not an absolute path", quote(dir));
            return Err(Refusal::invalid("working_dir", message, "begin it with /"));
        }
    }
    Ok(())
}

fn check_script(script: &str) -> Checked {
    let hint = "keep large data in a file of its own, and read it from the script";
    size("script", script.len(), SCRIPT_BYTES_MAX, hint)?;
    no_nul("script", script)?;
    let first = script.split('\n').next().unwrap_or_default();
    if first.ends_with('\r') {
        let message = "the script's lines end in CR LF, the kernel would not find its interpreter";
        return Err(Refusal::invalid("script", message, "convert it, for example with dos2unix"));
    }
    if first.strip_prefix("#!").is_none_or(|rest| !rest.trim_start().starts_with('/')) {
        let message = format!("the script begins with {}, not with #!/…", quote(first));
        return Err(Refusal::invalid("script", message, "make #!/bin/bash its first line"));
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Checked {
    let hint = "pass only the variables that the job reads";
    count("env", env.len(), ENV_MAX, hint)?;
    size("env", env.iter().map(|(k, v)| k.len() + v.len() + 2).sum(), EXEC_BYTES_MAX, hint)?;
    for (name, value) in env {
        let mut letters = name.bytes();
        let starts = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        if !starts || !letters.all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            let message = format!("{} is no name of an environment variable", quote(name));
            let hint = "use letters, digits and _, and begin with no digit";
            return Err(Refusal::invalid("env", message, hint));
        }
        no_nul("env", value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::Role;

    fn caller(teams: &[&str]) -> Principal {
        Principal {
            user: UserId::parse("ada").unwrap(),
            role: Role::Member,
            teams: teams.iter().map(|t| TeamId::parse(t).unwrap()).collect(),
            unix: Some(UnixIdentity { uid: 1000, gid: 100 }),
        }
    }

    fn argv(args: &[&str]) -> Vec<String> {
        args.iter().map(|a| (*a).to_owned()).collect()
    }

    fn wire() -> v1::JobSpec {
        v1::JobSpec { argv: argv(&["/usr/bin/train", "--big"]), ..Default::default() }
    }

    fn role(name: &str, nodes: u32, tasks_per_node: u32) -> v1::JobRole {
        let gang = v1::Gang { nodes, tasks_per_node, ..Default::default() };
        v1::JobRole { name: name.to_owned(), gang: Some(gang), placement: None }
    }

    fn pairs(n: usize) -> BTreeMap<String, String> {
        (0..n).map(|i| (format!("K{i}"), "v".to_owned())).collect()
    }

    #[test]
    fn defaults_are_filled_in() {
        let ask = v1::JobSpec { gpus_per_node: 4, user: "root".to_owned(), ..wire() };
        let spec = spec_from_wire(ask, &caller(&["nlp"])).unwrap();
        assert_eq!((spec.name.as_str(), spec.team.as_str()), ("train", "nlp"));
        assert_eq!((spec.project.as_str(), spec.user.as_str()), ("default", "ada"));
        assert_eq!(spec.unix, Some(UnixIdentity { uid: 1000, gid: 100 }));
        let gang = &spec.gang;
        assert_eq!((gang.nodes, gang.tasks_per_node, gang.cpus_per_task), (1, 4, 1));
        assert_eq!((&gang.gpu_model, spec.time_limit), (&None, None));
        let cpu_only = spec_from_wire(wire(), &caller(&["nlp"])).unwrap();
        assert_eq!(cpu_only.gang.tasks_per_node, 1);
        let script = Some("#!/bin/sh\ntrue\n".to_owned());
        let script = v1::JobSpec { script, argv: argv(&["first-argument"]), ..wire() };
        assert_eq!(spec_from_wire(script, &caller(&["nlp"])).unwrap().name, "job");
    }

    #[test]
    fn the_team_is_named_where_it_is_not_plain() {
        let of = |team: &str, teams: &[&str]| {
            spec_from_wire(v1::JobSpec { team: team.to_owned(), ..wire() }, &caller(teams))
        };
        assert_eq!(of("vision", &["nlp", "vision"]).unwrap().team.as_str(), "vision");
        let several = of("", &["nlp", "vision"]).unwrap_err();
        assert_eq!(
            (several.field.as_str(), several.hint.as_str()),
            ("team", "name one of nlp, vision")
        );
        assert!(of("", &[]).unwrap_err().message.contains("belongs to none"));
        assert_eq!(of("No Such", &["nlp"]).unwrap_err().field, "team");
    }

    #[test]
    fn a_full_spec_survives_the_round_trip() {
        let within = |level: &str, required| v1::Within { level: level.to_owned(), required };
        let slice = v1::Slice { nodes: 4, level: "leaf".to_owned(), required: true };
        let full = v1::JobSpec {
            name: "größer 模型".to_owned(),
            team: "nlp".to_owned(),
            project: "p1".to_owned(),
            tags: pairs(TAGS_MAX),
            nodes: 128,
            gpus_per_node: 8,
            tasks_per_node: 508,
            cpus_per_task: 12,
            memory_per_node_bytes: 1 << 40,
            gpu_model: "h100".to_owned(),
            gpu_milli: 1_000,
            tier: v1::Tier::Urgent.into(),
            roles: vec![v1::JobRole {
                name: "leader".to_owned(),
                gang: Some(v1::Gang {
                    nodes: 1,
                    gpus_per_node: 1,
                    tasks_per_node: 1,
                    cpus_per_task: 2,
                    memory_per_node_bytes: 1,
                    gpu_model: String::new(),
                    gpu_milli: 500,
                }),
                placement: Some(v1::Placement {
                    within: vec![within("leaf", false)],
                    ..Default::default()
                }),
            }],
            placement: Some(v1::Placement {
                within: vec![within("block", true), within("leaf", false)],
                slices: vec![slice],
                patience_ms: Some(60_000),
                ..Default::default()
            }),
            begin_unix_ms: Some(1_800_000_000_000),
            after: vec![v1::Dependency { job_id: 812, kind: v1::DependencyKind::AfterOk.into() }],
            singleton: true,
            hold: true,
            min_nodes: Some(64),
            spares: 2,
            checkpoint: Some(v1::CheckpointPlan {
                signal: Some(10),
                notice_ms: 300_000,
                restart_cost_ms: 60_000,
                file: "ckpt/latest".to_owned(),
                migratable: true,
            }),
            reservation: "course".to_owned(),
            priority: -1_000,
            time_limit_ms: Some(1_000),
            requeue: true,
            argv: argv(&["", "--x"]),
            script: Some("#! /bin/bash -e\n\techo hi\n".to_owned()),
            env: pairs(ENV_MAX),
            working_dir: Some("/home/ada".to_owned()),
            user: "ada".to_owned(),
        };
        let spec = spec_from_wire(full.clone(), &caller(&[])).unwrap();
        assert_eq!(spec_to_wire(&spec), full);
        assert_eq!(spec_from_wire(spec_to_wire(&spec), &caller(&[])).unwrap(), spec);
    }

    #[test]
    fn every_tier_survives_the_round_trip_and_none_is_normal() {
        for tier in Tier::ALL {
            assert_eq!(tier_from_wire(tier_to_wire(tier) as i32), Ok(tier));
        }
        assert_eq!(tier_from_wire(0), Ok(Tier::Normal));
    }

    #[test]
    fn every_bound_refuses_with_its_field() {
        type Spoil = fn(&mut v1::JobSpec);
        let cases: &[(&str, &str, Spoil)] = &[
            ("name", "129 characters", |s| s.name = "x".repeat(129)),
            ("name", "unprintable", |s| s.name = "a\nb".to_owned()),
            ("name", "unprintable", |s| s.name = "a\u{202e}b".to_owned()),
            ("name", "empty", |s| s.name = "  ".to_owned()),
            ("project", "lower-case", |s| s.project = "Big".to_owned()),
            ("nodes", "65537", |s| s.nodes = 65_537),
            ("gpus_per_node", "65", |s| s.gpus_per_node = 65),
            ("tasks_per_node", "1025", |s| s.tasks_per_node = 1_025),
            ("tasks_per_node", "66560 ranks", |s| (s.nodes, s.tasks_per_node) = (65, 1_024)),
            ("cpus_per_task", "4097", |s| s.cpus_per_task = 4_097),
            ("memory_per_node_bytes", "is 1844", |s| s.memory_per_node_bytes = u64::MAX),
            ("gpu_model", "NUL|unprintable", |s| s.gpu_model = "h\0".to_owned()),
            ("priority", "1001", |s| s.priority = 1_001),
            ("priority", "-1001", |s| s.priority = -1_001),
            ("time_limit_ms", "is 0", |s| s.time_limit_ms = Some(0)),
            ("time_limit_ms", "is 999", |s| s.time_limit_ms = Some(999)),
            ("time_limit_ms", "is 3162", |s| s.time_limit_ms = Some(366 * 86_400_000)),
            ("tags", "33 entries", |s| s.tags = pairs(33)),
            ("tags", "129 characters", |s| {
                s.tags.insert("k".to_owned(), "v".repeat(129));
            }),
            ("tags", "empty", |s| {
                s.tags.insert(String::new(), "v".to_owned());
            }),
            ("tier", "9 is no tier", |s| s.tier = 9),
            ("gpu_milli", "1001", |s| (s.gpus_per_node, s.gpu_milli) = (1, 1_001)),
            ("gpu_milli", "with 2 GPUs each", |s| (s.gpus_per_node, s.gpu_milli) = (2, 500)),
            ("gpu_milli", "on 2 nodes", |s| {
                (s.nodes, s.gpus_per_node, s.gpu_milli) = (2, 1, 500);
            }),
            ("gpu_milli", "with 0 GPUs", |s| s.gpu_milli = 500),
            ("spares", "beside a share", |s| {
                (s.gpus_per_node, s.gpu_milli, s.spares) = (1, 500, 1);
            }),
            ("placement.within", "named twice", |s| {
                let level = |required| v1::Within { level: "leaf".to_owned(), required };
                let within = vec![level(true), level(false)];
                s.placement = Some(v1::Placement { within, ..Default::default() });
            }),
            ("placement.slices", "does not divide the gang of 4", |s| {
                let slices = vec![v1::Slice { nodes: 3, level: "leaf".to_owned(), required: true }];
                s.nodes = 4;
                s.placement = Some(v1::Placement { slices, ..Default::default() });
            }),
            ("min_nodes", "is 3, it must be 1 to 2", |s| (s.nodes, s.min_nodes) = (2, Some(3))),
            ("min_nodes", "is 0", |s| s.min_nodes = Some(0)),
            ("min_nodes", "no multiple of the slice of 2", |s| {
                let slices = vec![v1::Slice { nodes: 2, level: "leaf".to_owned(), required: true }];
                (s.nodes, s.min_nodes) = (4, Some(3));
                s.placement = Some(v1::Placement { slices, ..Default::default() });
            }),
            ("roles.gang", "missing", |s| s.roles = vec![v1::JobRole::default()]),
            ("roles[0].name", "empty", |s| s.roles = vec![role("", 1, 1)]),
            ("roles[1].name", "two roles", |s| s.roles = vec![role("a", 1, 1), role("a", 1, 1)]),
            ("roles[0].nodes", "65537", |s| s.roles = vec![role("a", 65_537, 1)]),
            ("roles", "65537 nodes", |s| s.roles = vec![role("a", 65_536, 1)]),
            ("roles", "65537 nodes", |s| s.spares = 65_536),
            ("roles", "nodes, at most", |s| s.spares = u32::MAX),
            ("roles", "66049 ranks", |s| {
                s.tasks_per_node = 513;
                s.roles = vec![role("a", 128, 512)];
            }),
            ("roles", "17 entries", |s| s.roles = vec![role("a", 1, 1); 17]),
            ("roles[0].placement.patience_ms", "of its own", |s| {
                let within = vec![v1::Within { level: "leaf".to_owned(), required: false }];
                let patience_ms = Some(1);
                let placement = v1::Placement { within, patience_ms, ..Default::default() };
                s.roles = vec![v1::JobRole { placement: Some(placement), ..role("a", 1, 1) }];
            }),
            ("begin_unix_ms", "is -1", |s| s.begin_unix_ms = Some(-1)),
            ("begin_unix_ms", "must be", |s| s.begin_unix_ms = Some(i64::MAX)),
            ("after", "no job 0", |s| {
                s.after = vec![v1::Dependency { job_id: 0, kind: 1 }];
            }),
            ("after", "129 entries", |s| {
                s.after = (1..130).map(|job_id| v1::Dependency { job_id, kind: 1 }).collect();
            }),
            ("checkpoint.signal", "0 is no signal", |s| {
                let plan = v1::CheckpointPlan { signal: Some(0), ..Default::default() };
                s.checkpoint = Some(plan);
            }),
            ("reservation", "64 characters", |s| s.reservation = "x".repeat(64)),
            ("argv", "neither a program", |s| s.argv.clear()),
            ("argv", "neither a program", |s| s.argv = argv(&[""])),
            ("argv", "4097 entries", |s| s.argv = vec!["x".to_owned(); 4_097]),
            ("argv", "bytes", |s| s.argv = vec!["x".repeat(128 << 10)]),
            ("argv", "NUL", |s| s.argv.push("a\0b".to_owned())),
            ("env", "1025 entries", |s| s.env = pairs(1_025)),
            ("env", "bytes", |s| {
                s.env.insert("A".to_owned(), "v".repeat(128 << 10));
            }),
            ("env", "no name", |s| {
                s.env.insert("A=B".to_owned(), String::new());
            }),
            ("env", "no name", |s| {
                s.env.insert(String::new(), String::new());
            }),
            ("env", "NUL", |s| {
                s.env.insert("A".to_owned(), "\0".to_owned());
            }),
            ("script", "begins with", |s| s.script = Some("echo hi".to_owned())),
            ("script", "begins with", |s| s.script = Some("#!bash\n".to_owned())),
            ("script", "begins with", |s| s.script = Some(String::new())),
            ("script", "CR LF", |s| s.script = Some("#!/bin/sh\r\nls\r\n".to_owned())),
            ("script", "NUL", |s| s.script = Some("#!/bin/sh\n\0".to_owned())),
            ("script", "bytes", |s| s.script = Some(format!("#!/bin/sh\n{}", "x".repeat(1 << 20)))),
            ("working_dir", "absolute", |s| s.working_dir = Some("work".to_owned())),
            ("working_dir", "NUL", |s| s.working_dir = Some("/a\0".to_owned())),
            ("working_dir", "bytes", |s| s.working_dir = Some(format!("/{}", "a".repeat(4_095)))),
        ];
        for (field, message, spoil) in cases {
            let mut ask = wire();
            spoil(&mut ask);
            let refusal = spec_from_wire(ask, &caller(&["nlp"])).expect_err(field);
            assert_eq!(refusal.field, *field, "{refusal:?}");
            let found = message.split('|').any(|m| refusal.message.contains(m));
            assert!(found && !refusal.hint.is_empty(), "{message}: {refusal:?}");
            assert!(refusal.message.len() < 400, "{refusal:?}");
        }
    }
}
