//! One program of the cluster, and its log.
//!
//! In: a command. Out: a process that dies with us: it holds the other end of a pipe that closes
//! when we go, however we go. It has a process group of its own, so that Ctrl-C reaches only us and
//! the cluster is ended in order.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStdin, Command};

use crate::failure::{Failure, Outcome};

pub struct Child {
    pub name: String,
    pub log: PathBuf,
    process: tokio::process::Child,
    /// Never written to. Its end is what `--exit-with-parent` waits for.
    _lifeline: Option<ChildStdin>,
}

impl Child {
    /// Starts a program; what it says goes to the log.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Outcome<Self> {
        command.stdout(open(log)?);
        Self::spawn(name, command, log)
    }

    /// Starts a program and waits for its first line on stdout.
    pub async fn start_and_hear(
        name: &str,
        mut command: Command,
        log: &Path,
        patience: Duration,
    ) -> Outcome<(Self, String)> {
        command.stdout(Stdio::piped());
        let mut child = Self::spawn(name, command, log)?;
        let Some(stdout) = child.process.stdout.take() else {
            return Err(Failure::no_answer("system", format!("{name} has no stdout"), ""));
        };
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(patience, lines.next_line()).await;
        let line = match first {
            Ok(Ok(Some(line))) => line,
            Ok(_) => {
                // Its stdout has ended, so it is ending too.
                let status = tokio::time::timeout(patience, child.process.wait()).await;
                let how = match status {
                    Ok(Ok(status)) => ended(status),
                    _ => "says nothing more".to_owned(),
                };
                return Err(child.failure(&how));
            }
            Err(_) => {
                let how = format!("did not say that it is ready within {} s", patience.as_secs());
                return Err(child.failure(&how));
            }
        };
        // A full pipe would stop it, so somebody goes on reading.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok((child, line))
    }

    fn spawn(name: &str, mut command: Command, log: &Path) -> Outcome<Self> {
        command.stdin(Stdio::piped()).stderr(open(log)?).process_group(0).kill_on_drop(true);
        let program = command.as_std().get_program().to_owned();
        let mut process =
            command.spawn().map_err(|error| Failure::file("start", Path::new(&program), &error))?;
        let lifeline = process.stdin.take();
        Ok(Self { name: name.to_owned(), log: log.to_owned(), process, _lifeline: lifeline })
    }

    /// Why it is gone, once it is.
    pub fn death(&mut self) -> Option<Failure> {
        match self.process.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(self.failure(&ended(status))),
            Err(error) => Some(self.failure(&format!("cannot be watched: {error}"))),
        }
    }

    fn failure(&self, how: &str) -> Failure {
        let said = tail(&self.log, 40);
        // The program's own error says more than ours can.
        let own = said.iter().rev().find_map(|line| line.strip_prefix("error: "));
        let hint = said.iter().rev().find_map(|line| line.strip_prefix("hint: "));
        let why = own.map(|o| format!(": {o}")).unwrap_or_default();
        let hint = match hint {
            Some(hint) => hint.to_owned(),
            None => format!("its log is {}", self.log.display()),
        };
        Failure::no_answer("child", format!("{} {how}{why}", self.name), hint)
    }

    /// Asks it to end, and ends it when it does not.
    pub async fn end(&mut self, patience: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.process.wait()).await.is_err() {
            self.kill().await;
        }
    }

    pub async fn kill(&mut self) {
        // It fails only for a process that is gone.
        let _ = self.process.kill().await;
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}

fn open(log: &Path) -> Outcome<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|error| Failure::file("write the log", log, &error))
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|l| (*l).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_child_is_heard_and_ends_when_its_lifeline_does() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("c.log");
        // `cat` ends with its stdin, as our programs do with --exit-with-parent.
        let command = shell("echo ready https://x:1; exec cat");
        let patience = Duration::from_secs(20);
        let (mut child, line) = Child::start_and_hear("c", command, &log, patience).await.unwrap();
        assert_eq!(line, "ready https://x:1");
        assert!(child.death().is_none());
        drop(child._lifeline.take());
        let status = tokio::time::timeout(patience, child.process.wait()).await.unwrap().unwrap();
        assert!(status.success());
    }

    #[tokio::test]
    async fn a_child_that_dies_is_told_with_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("c.log");
        let script = "echo 'error: port 7070 is taken' >&2; echo 'hint: take another' >&2; exit 2";
        let patience = Duration::from_secs(20);
        let died = Child::start_and_hear("scheduler", shell(script), &log, patience).await;
        let failure = died.err().unwrap();
        assert_eq!(failure.message, "scheduler ended with exit code 2: port 7070 is taken");
        assert_eq!(failure.hint, "take another");
    }

    #[tokio::test]
    async fn a_child_that_does_not_listen_is_ended_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("c.log");
        let command = shell("trap '' TERM; echo up; while :; do sleep 1; done");
        let patience = Duration::from_secs(20);
        let (mut child, _) = Child::start_and_hear("c", command, &log, patience).await.unwrap();
        child.end(Duration::from_millis(1)).await;
        assert!(child.death().unwrap().message.contains("signal 9"));
    }
}
