//! Whom a task runs as, and what that user is called.
//!
//! In: the order's identity, who the agent is, and whether it may lend its own. Out: an identity
//! to switch to, or none, or a refusal. Name, home and groups come from the system's own tools, so
//! that users from LDAP or SSSD are known as well; the change of identity itself is the shim's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use tessera_model::UnixIdentity;

/// Who the agent's process is, and what it may lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentIdentity {
    pub uid: u32,
    pub gid: u32,
    pub run_as_agent_user: bool,
}

impl AgentIdentity {
    pub fn of_process(run_as_agent_user: bool) -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            run_as_agent_user,
        }
    }
}

/// Whom to become before the program runs; `None` stays what the agent is.
pub fn run_as(
    wanted: Option<UnixIdentity>,
    agent: AgentIdentity,
) -> Result<Option<UnixIdentity>, String> {
    const HINT: &str = "start the agent with --run-as-agent-user if its own user may run jobs";
    match wanted {
        None if agent.run_as_agent_user => Ok(None),
        None => Err(format!(
            "the order names no user to run as: give the submitting user a uid, or {HINT}"
        )),
        Some(UnixIdentity { uid: 0, .. }) if !agent.run_as_agent_user => {
            Err(format!("jobs do not run as root here; {HINT}"))
        }
        Some(wanted) if agent.uid == 0 && wanted.uid != 0 => Ok(Some(wanted)),
        Some(wanted) if wanted.uid == agent.uid => Ok(None),
        Some(_) if agent.run_as_agent_user => Ok(None),
        Some(wanted) => Err(format!(
            "the agent runs as uid {} and cannot become uid {}; run it as root, or {HINT}",
            agent.uid, wanted.uid
        )),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub home: PathBuf,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Accounts looked up a moment ago.
#[derive(Debug, Default)]
pub struct Accounts {
    known: Mutex<HashMap<u32, (Instant, Account)>>,
}

const FRESH: Duration = Duration::from_secs(60);
/// More users than this within a minute are looked up again.
const KNOWN_MAX: usize = 4096;

impl Accounts {
    /// A user without an entry gets a number for a name and `/` for a home. May block.
    pub fn look_up(&self, uid: u32, gid: u32) -> Account {
        if let Some((at, account)) = self.known.lock().get(&uid)
            && at.elapsed() < FRESH
        {
            return account.clone();
        }
        let entry = passwd_file(uid).or_else(|| passwd_tool(uid));
        let account = match entry {
            Some((name, home)) => {
                let groups = groups_tool(&name).unwrap_or_else(|| vec![gid]);
                Account { name, home, groups }
            }
            None => Account { name: uid.to_string(), home: "/".into(), groups: vec![gid] },
        };
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(uid, (Instant::now(), account.clone()));
        account
    }
}

fn passwd_file(uid: u32) -> Option<(String, PathBuf)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| passwd_line(line, uid))
}

fn passwd_tool(uid: u32) -> Option<(String, PathBuf)> {
    tool("getent", &["passwd", &uid.to_string()])?.lines().find_map(|line| passwd_line(line, uid))
}

/// `name:password:uid:gid:gecos:home:shell`
fn passwd_line(line: &str, uid: u32) -> Option<(String, PathBuf)> {
    let fields: Vec<&str> = line.split(':').collect();
    let (name, home) = (fields.first()?, fields.get(5)?);
    (fields.get(2)?.parse::<u32>().ok()? == uid && !name.is_empty())
        .then(|| ((*name).to_owned(), PathBuf::from(if home.is_empty() { "/" } else { home })))
}

fn groups_tool(name: &str) -> Option<Vec<u32>> {
    let text = tool("id", &["-G", "--", name])?;
    let groups: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (!groups.is_empty()).then_some(groups)
}

fn tool(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_an_identity_by_accident() {
        let root = AgentIdentity { uid: 0, gid: 0, run_as_agent_user: false };
        let lending_root = AgentIdentity { run_as_agent_user: true, ..root };
        let user = AgentIdentity { uid: 1000, gid: 1000, run_as_agent_user: false };
        let lending_user = AgentIdentity { run_as_agent_user: true, ..user };
        let id = |uid| Some(UnixIdentity { uid, gid: uid });
        let cases = [
            ("root, no uid", None, root, Err("names no user")),
            ("root, uid 0", id(0), root, Err("not run as root")),
            ("root, a user", id(1000), root, Ok(id(1000))),
            ("lending root, no uid", None, lending_root, Ok(None)),
            ("lending root, uid 0", id(0), lending_root, Ok(None)),
            ("lending root, a user", id(1000), lending_root, Ok(id(1000))),
            ("user, itself", id(1000), user, Ok(None)),
            ("user, another", id(1001), user, Err("cannot become")),
            ("user, no uid", None, user, Err("names no user")),
            ("lending user, another", id(1001), lending_user, Ok(None)),
            ("lending user, uid 0", id(0), lending_user, Ok(None)),
        ];
        for (name, wanted, agent, want) in cases {
            match (run_as(wanted, agent), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn root_is_known_and_a_stranger_is_a_number() {
        let accounts = Accounts::default();
        assert_eq!(accounts.look_up(0, 0).name, "root");
        let stranger = accounts.look_up(3_999_999_999, 77);
        assert_eq!((stranger.name.as_str(), stranger.groups), ("3999999999", vec![77]));
        assert_eq!(
            passwd_line("a:x:5:5::/home/a:/bin/sh", 5),
            Some(("a".into(), "/home/a".into()))
        );
        assert_eq!(passwd_line("a:x", 5), None);
    }
}
