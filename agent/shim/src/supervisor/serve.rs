//! The control socket's server.
//!
//! In: connections. Out: one valid request at a time, and its answer on the way back. A caller
//! that is slow, silent or too long-winded costs a bounded buffer and then its connection; it
//! never holds up the loop. Obeying is the supervisor's work.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use tessera_shim::control::{LINE_BYTES_MAX, Reply, parse_request, socket_path};
use tessera_shim::{Op, TaskDir};

/// More callers than this at once, and the one waiting longest is dropped.
const CALLERS_MAX: usize = 8;
/// A caller has this long to finish its line.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct ControlServer {
    listener: UnixListener,
    callers: Vec<Caller>,
}

struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
    drop_at: Instant,
}

impl ControlServer {
    pub fn bind(dir: &TaskDir) -> io::Result<Self> {
        let (_held, path) = socket_path(dir)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, callers: Vec::new() })
    }

    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd())
            .chain(self.callers.iter().map(|caller| caller.stream.as_fd()))
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.callers.iter().map(|caller| caller.drop_at).min()
    }

    /// The next whole request. Callers that are done for are dropped on the way.
    pub fn next_request(&mut self) -> Option<(Op, UnixStream)> {
        self.accept();
        let mut index = 0;
        while index < self.callers.len() {
            match self.callers[index].read() {
                Progress::Waiting => index += 1,
                Progress::Gone => drop(self.callers.remove(index)),
                Progress::Line => {
                    let caller = self.callers.remove(index);
                    match parse_request(&caller.line) {
                        Ok(op) => return Some((op, caller.stream)),
                        Err(why) => self.answer(caller.stream, &Reply::refused(why)),
                    }
                }
            }
        }
        None
    }

    /// Fits any socket buffer; a caller that does not listen misses it.
    pub fn answer(&self, mut asker: UnixStream, reply: &Reply) {
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            let _ = asker.write_all(&line);
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let me = rustix::process::geteuid();
            match socket_peercred(&stream) {
                Ok(peer) if peer.uid.is_root() || peer.uid == me => {}
                Ok(peer) => {
                    let why = format!("user {} may not control this task", peer.uid.as_raw());
                    self.answer(stream, &Reply::refused(why));
                    continue;
                }
                Err(_) => continue,
            }
            if self.callers.len() == CALLERS_MAX {
                self.callers.remove(0);
            }
            self.callers.push(Caller {
                stream,
                line: Vec::new(),
                drop_at: Instant::now() + PATIENCE,
            });
        }
    }
}

enum Progress {
    Waiting,
    Line,
    Gone,
}

impl Caller {
    fn read(&mut self) -> Progress {
        let mut buffer = [0u8; 512];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Progress::Gone,
                Ok(read) => {
                    self.line.extend_from_slice(&buffer[..read]);
                    if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                        self.line.truncate(end);
                        return Progress::Line;
                    }
                    if self.line.len() > LINE_BYTES_MAX {
                        return Progress::Gone;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if Instant::now() < self.drop_at {
                        Progress::Waiting
                    } else {
                        Progress::Gone
                    };
                }
                Err(_) => return Progress::Gone,
            }
        }
    }
}
