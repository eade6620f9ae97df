//! Whom a task runs as, and what that user is called.
//!
//! In: the order's identity, who the agent is, and whether it may lend its own. Out: an identity
//! to switch to, or none, or a refusal; also when the account service gives no answer. Name, home and groups come from the system's own tools, so
//! that users from LDAP or SSSD are known as well; the change of identity itself is the shim's.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use tessera_model::UnixIdentity;

use super::patience::{self, Patience};

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
    /// A user without an entry gets a number for a name and `/` for a home. Refused, in words,
    /// where the account service gives no answer; what is remembered of the user stands in then.
    /// Blocks, but not for ever.
    pub fn look_up(&self, patience: &Patience, uid: u32, gid: u32) -> Result<Account, String> {
        self.look_up_by(patience, uid, move || find(uid, gid))
    }

    fn look_up_by(
        &self,
        patience: &Patience,
        uid: u32,
        find: impl FnOnce() -> io::Result<Account> + Send + 'static,
    ) -> Result<Account, String> {
        let known = self.known.lock().get(&uid).cloned();
        if let Some((at, account)) = &known
            && at.elapsed() < FRESH
        {
            return Ok(account.clone());
        }
        let what = format!("the account of uid {uid}");
        let found = patience.ask(&what, find).and_then(|found| {
            found.map_err(|error| format!("{what} cannot be looked up on this node: {error}"))
        });
        match (found, known) {
            (Ok(account), _) => {
                let mut known = self.known.lock();
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                known.insert(uid, (Instant::now(), account.clone()));
                Ok(account)
            }
            (Err(why), Some((_, account))) => {
                tracing::warn!(uid, why, "an account is taken as it was");
                Ok(account)
            }
            (Err(why), None) => Err(why),
        }
    }
}

fn find(uid: u32, gid: u32) -> io::Result<Account> {
    let entry = match passwd_file(uid) {
        Some(entry) => Some(entry),
        None => passwd_tool(uid)?,
    };
    Ok(match entry {
        Some((name, home)) => {
            let groups = groups_tool(&name)?.unwrap_or_else(|| vec![gid]);
            Account { name, home, groups }
        }
        None => Account { name: uid.to_string(), home: "/".into(), groups: vec![gid] },
    })
}

fn passwd_file(uid: u32) -> Option<(String, PathBuf)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| passwd_line(line, uid))
}

fn passwd_tool(uid: u32) -> io::Result<Option<(String, PathBuf)>> {
    let text = tool("getent", &["passwd", &uid.to_string()], patience::LIMIT)?;
    Ok(text.and_then(|text| text.lines().find_map(|line| passwd_line(line, uid))))
}

/// `name:password:uid:gid:gecos:home:shell`
fn passwd_line(line: &str, uid: u32) -> Option<(String, PathBuf)> {
    let fields: Vec<&str> = line.split(':').collect();
    let (name, home) = (fields.first()?, fields.get(5)?);
    (fields.get(2)?.parse::<u32>().ok()? == uid && !name.is_empty())
        .then(|| ((*name).to_owned(), PathBuf::from(if home.is_empty() { "/" } else { home })))
}

fn groups_tool(name: &str) -> io::Result<Option<Vec<u32>>> {
    let Some(text) = tool("id", &["-G", "--", name], patience::LIMIT)? else { return Ok(None) };
    let groups: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Ok((!groups.is_empty()).then_some(groups))
}

/// What it prints; `None` where it is missing or says no. One that does not end in time is killed,
/// and an error.
fn tool(program: &str, arguments: &[&str], limit: Duration) -> io::Result<Option<String>> {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else { return Ok(None) };
    let printed = match child.stdout.take() {
        Some(stdout) => read_until(stdout, Instant::now() + limit),
        None => Ok(Vec::new()),
    };
    if printed.is_err() {
        // It may have ended by itself just now.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let printed =
        printed.map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    Ok(status.success().then(|| String::from_utf8_lossy(&printed).into_owned()))
}

fn read_until(mut from: ChildStdout, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match from.read(&mut part)? {
            0 => return Ok(all),
            n => all.extend_from_slice(&part[..n]),
        }
    }
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
        let patience = Patience::new(patience::LIMIT);
        assert_eq!(accounts.look_up(&patience, 0, 0).unwrap().name, "root");
        let stranger = accounts.look_up(&patience, 3_999_999_999, 77).unwrap();
        assert_eq!((stranger.name.as_str(), stranger.groups), ("3999999999", vec![77]));
        assert_eq!(
            passwd_line("a:x:5:5::/home/a:/bin/sh", 5),
            Some(("a".into(), "/home/a".into()))
        );
        assert_eq!(passwd_line("a:x", 5), None);
    }
    #[test]
    fn an_account_service_that_hangs_is_a_refusal_unless_the_user_is_remembered() {
        let accounts = Accounts::default();
        let patience = Patience::new(Duration::from_millis(5));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hangs = move || {
            let _ = hang.recv();
            Err(io::ErrorKind::TimedOut.into())
        };
        let why = accounts.look_up_by(&patience, 5, hangs).unwrap_err();
        assert!(why.contains("uid 5 gives no answer"), "{why}");
        drop(release);
        let fails = || Err(io::Error::other("getent: timed out"));
        let why = accounts.look_up_by(&patience, 5, fails).unwrap_err();
        assert!(why.contains("getent: timed out"), "{why}");
        let long_ago = Instant::now().checked_sub(2 * FRESH).unwrap();
        let ada = Account { name: "ada".into(), home: "/home/ada".into(), groups: vec![5] };
        accounts.known.lock().insert(5, (long_ago, ada.clone()));
        assert_eq!(accounts.look_up_by(&patience, 5, fails), Ok(ada));
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed() {
        let limit = Duration::from_millis(20);
        let error = tool("sleep", &["86400"], limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(tool("printf", &["%s", "a b"], patience::LIMIT).unwrap(), Some("a b".into()));
        assert_eq!(tool("false", &[], patience::LIMIT).unwrap(), None);
        assert_eq!(tool("/no/such/tool", &[], limit).unwrap(), None);
    }
}
