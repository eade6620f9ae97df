//! A job's spec: its defaults and its bounds.
//!
//! A submission is read and then checked. A record that comes back from the scheduler is only
//! read: the bounds of this release must not hide a job that an earlier one accepted.

use std::collections::{BTreeMap, BTreeSet};

use tessera_model::{
    Bytes, Gang, JobSpec, Millis, Principal, Program, ProjectId, Refusal, Strength, TeamId,
    UnixIdentity, UserId, Within,
};

use crate::{
    door::{Checked, bad_id, count, is_printable, label, no_nul, quote, range, size},
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
const WITHIN_MAX: usize = 16;
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
    v1::JobSpec {
        name: spec.name.clone(),
        team: spec.team.to_string(),
        project: spec.project.to_string(),
        tags: spec.tags.clone(),
        nodes: spec.gang.nodes,
        gpus_per_node: spec.gang.gpus_per_node,
        tasks_per_node: spec.gang.tasks_per_node,
        cpus_per_task: spec.gang.cpus_per_task,
        memory_per_node_bytes: spec.gang.memory_per_node.0,
        gpu_model: spec.gang.gpu_model.clone().unwrap_or_default(),
        within: spec
            .within
            .iter()
            .map(|w| v1::Within {
                level: w.level.clone(),
                required: w.strength == Strength::Required,
            })
            .collect(),
        priority: spec.priority,
        time_limit_ms: spec.time_limit.map(|t| t.0),
        requeue: spec.requeue,
        argv: spec.program.argv.clone(),
        script: spec.program.script.clone(),
        env: spec.program.env.clone(),
        working_dir: spec.program.working_dir.clone(),
        user: spec.user.to_string(),
    }
}

/// Fills in the defaults; the bounds are [`check`]'s.
pub(super) fn read(
    wire: v1::JobSpec,
    team: TeamId,
    user: UserId,
    unix: Option<UnixIdentity>,
) -> Checked<JobSpec> {
    let or = |given: u32, default: u32| if given == 0 { default } else { given };
    let project = if wire.project.is_empty() { "default" } else { wire.project.as_str() };
    let within = wire.within.into_iter().map(|w| Within {
        level: w.level,
        strength: if w.required { Strength::Required } else { Strength::Preferred },
    });
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
        gang: Gang {
            nodes: or(wire.nodes, 1),
            gpus_per_node: wire.gpus_per_node,
            tasks_per_node: or(wire.tasks_per_node, wire.gpus_per_node.max(1)),
            cpus_per_task: or(wire.cpus_per_task, 1),
            memory_per_node: Bytes(wire.memory_per_node_bytes),
            gpu_model: Some(wire.gpu_model).filter(|m| !m.is_empty()),
        },
        within: within.collect(),
        priority: wire.priority,
        time_limit: wire.time_limit_ms.map(Millis),
        requeue: wire.requeue,
        program: Program {
            argv: wire.argv,
            script: wire.script,
            env: wire.env,
            working_dir: wire.working_dir,
        },
        unix,
    })
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
    check_gang(&spec.gang)?;
    check_within(&spec.within)?;
    range("priority", spec.priority, -1_000, 1_000, "0 is the usual priority")?;
    if let Some(limit) = spec.time_limit {
        let (low, high) = (TIME_LIMIT_MIN, TIME_LIMIT_MAX);
        let hint = "give 1 s to 365 days, or none for no limit";
        range("time_limit_ms", limit.0, low.0, high.0, hint)?;
    }
    check_program(&spec.program)
}

fn check_tags(tags: &BTreeMap<String, String>) -> Checked {
    count("tags", tags.len(), TAGS_MAX, "keep the tags that a report will ask for")?;
    for (key, value) in tags {
        label("tags", key, NAME_CHARS_MAX)?;
        crate::door::line("tags", value, NAME_CHARS_MAX)?;
    }
    Ok(())
}

fn check_gang(gang: &Gang) -> Checked {
    range("nodes", gang.nodes, 1, NODES_MAX, "ask for fewer nodes")?;
    let hint = "ask for fewer GPUs on each node and for more nodes";
    range("gpus_per_node", gang.gpus_per_node, 0, GPUS_PER_NODE_MAX, hint)?;
    let hint = "one task for each GPU is usual";
    range("tasks_per_node", gang.tasks_per_node, 1, TASKS_PER_NODE_MAX, hint)?;
    let ranks = u64::from(gang.nodes) * u64::from(gang.tasks_per_node);
    if ranks > RANKS_MAX {
        let message = format!(
            "{} nodes with {} tasks each are {ranks} ranks, at most {RANKS_MAX} are allowed",
            gang.nodes, gang.tasks_per_node
        );
        return Err(Refusal::invalid("tasks_per_node", message, "ask for fewer tasks or nodes"));
    }
    let hint = "a node has no more CPUs than that";
    range("cpus_per_task", gang.cpus_per_task, 1, CPUS_PER_TASK_MAX, hint)?;
    let hint = "give bytes, or 0 for no wish";
    range("memory_per_node_bytes", gang.memory_per_node.0, 0, MEMORY_MAX.0, hint)?;
    match &gang.gpu_model {
        Some(model) => label("gpu_model", model, NAME_CHARS_MAX),
        None => Ok(()),
    }
}

fn check_within(within: &[Within]) -> Checked {
    count("within", within.len(), WITHIN_MAX, "name each level once")?;
    let mut seen = BTreeSet::new();
    for one in within {
        label("within", &one.level, 63)?;
        if !seen.insert(one.level.as_str()) {
            let message = format!("the level {:?} is named twice", one.level);
            return Err(Refusal::invalid("within", message, "name each level once"));
        }
    }
    Ok(())
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
        let full = v1::JobSpec {
            name: "größer 模型".to_owned(),
            team: "nlp".to_owned(),
            project: "p1".to_owned(),
            tags: pairs(TAGS_MAX),
            nodes: 128,
            gpus_per_node: 8,
            tasks_per_node: 512,
            cpus_per_task: 12,
            memory_per_node_bytes: 1 << 40,
            gpu_model: "h100".to_owned(),
            within: vec![within("block", true), within("leaf", false)],
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
            ("within", "named twice", |s| {
                let level = |required| v1::Within { level: "leaf".to_owned(), required };
                s.within = vec![level(true), level(false)];
            }),
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
