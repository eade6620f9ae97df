//! The control socket `ctl`, protocol v1 (frozen): one line of JSON in, one line out.
//!
//! ```text
//! {"v":1,"op":"signal","signal":15}       to every process of the job
//! {"v":1,"op":"signal_main","signal":10}  to its first process only
//! {"v":1,"op":"stop"}                     SIGTERM, the grace of the spec, SIGKILL
//! {"v":1,"op":"lease"}                    read the lease file again, now
//! {"v":1,"op":"ping"}
//! -> {"v":1,"ok":true,"phase":"running","job_pid":4711}
//! ```
//! The caller must be root or the shim's own user (SO_PEERCRED). Any agent version speaks this to
//! any shim version. Here are the words and the client; serving is the binary's work.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dir::TaskDir;

/// The only version there is.
pub const PROTOCOL: u32 = 1;
/// The longest line either side accepts, bytes.
pub const LINE_BYTES_MAX: usize = 4096;
/// A shim answers at once unless the node is in deep trouble.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// To every process of the job.
    Signal {
        signal: i32,
    },
    /// To the job's first process only, as a batch script that forwards it wants.
    SignalMain {
        signal: i32,
    },
    Stop,
    Lease,
    Ping,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub v: u32,
    #[serde(flatten)]
    pub op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub v: u32,
    pub ok: bool,
    /// Why not, if not ok.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Running,
    /// SIGTERM was sent, the grace runs.
    Stopping,
    /// SIGKILL was sent, the last processes are going.
    Killing,
    /// A phase of a newer shim.
    #[serde(other)]
    Other,
}

impl Reply {
    pub fn done(phase: Phase, job_pid: u32) -> Self {
        Self { v: PROTOCOL, ok: true, error: None, phase: Some(phase), job_pid: Some(job_pid) }
    }

    pub fn refused(error: impl Into<String>) -> Self {
        Self { v: PROTOCOL, ok: false, error: Some(error.into()), phase: None, job_pid: None }
    }
}

/// Reads one request line, without its newline.
pub fn parse_request(line: &[u8]) -> Result<Op, String> {
    let request: Request =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if request.v != PROTOCOL {
        return Err(format!("protocol {} asked for, this shim speaks {PROTOCOL}", request.v));
    }
    match request.op {
        Op::Signal { signal } | Op::SignalMain { signal } if !(1..=64).contains(&signal) => {
            Err(format!("{signal} is not a signal number (1 to 64)"))
        }
        op => Ok(op),
    }
}

/// Asks the task's shim. `NotFound` or `ConnectionRefused` if there is none; see
/// [`crate::liveness`] then. A refusal by the shim is a [`Reply`] that is not ok.
pub fn control(dir: &TaskDir, op: Op) -> io::Result<Reply> {
    let (_held, path) = socket_path(dir)?;
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let mut line = serde_json::to_vec(&Request { v: PROTOCOL, op })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(LINE_BYTES_MAX as u64)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the shim hung up without an answer",
        ));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// A path to the socket that fits the 108 bytes of a socket address however deep the directory
/// lies. Good while the returned descriptor is held.
pub fn socket_path(dir: &TaskDir) -> io::Result<(File, PathBuf)> {
    let held = File::open(dir.path())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/ctl", held.as_raw_fd()));
    Ok((held, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_v1_are_frozen() {
        let cases: [(&str, Result<Op, &str>); 11] = [
            (r#"{"v":1,"op":"signal","signal":15}"#, Ok(Op::Signal { signal: 15 })),
            (r#"{"v":1,"op":"signal_main","signal":10}"#, Ok(Op::SignalMain { signal: 10 })),
            (r#"{"v":1,"op":"stop"}"#, Ok(Op::Stop)),
            (r#"{"v":1,"op":"lease"}"#, Ok(Op::Lease)),
            (r#"{"v":1,"op":"ping"}"#, Ok(Op::Ping)),
            (r#"{"v":2,"op":"ping"}"#, Err("protocol 2")),
            (r#"{"v":1,"op":"signal","signal":0}"#, Err("0 is not a signal")),
            (r#"{"v":1,"op":"signal"}"#, Err("not a request")),
            (r#"{"v":1,"op":"reboot"}"#, Err("not a request")),
            ("", Err("not a request")),
            ("\u{0}\u{ff}[[[[", Err("not a request")),
        ];
        for (line, want) in cases {
            match (parse_request(line.as_bytes()), want) {
                (Ok(op), Ok(want)) => {
                    assert_eq!(op, want, "{line}");
                    let written = serde_json::to_string(&Request { v: PROTOCOL, op }).unwrap();
                    assert_eq!(written, line);
                }
                (Err(error), Err(want)) => assert!(error.starts_with(want), "{line}: {error}"),
                (got, want) => panic!("{line}: {got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn replies_v1_are_frozen() {
        let done = serde_json::to_string(&Reply::done(Phase::Running, 7)).unwrap();
        assert_eq!(done, r#"{"v":1,"ok":true,"phase":"running","job_pid":7}"#);
        let refused = serde_json::to_string(&Reply::refused("no")).unwrap();
        assert_eq!(refused, r#"{"v":1,"ok":false,"error":"no"}"#);
        let newer: Reply =
            serde_json::from_str(r#"{"v":1,"ok":true,"phase":"dreaming","extra":1}"#).unwrap();
        assert_eq!(newer.phase, Some(Phase::Other));
    }
}
