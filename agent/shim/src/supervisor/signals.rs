//! Signals and child ends, as far as the shim cares.
//!
//! In: nothing. Out: a descriptor that says "a child ended", and one ended child after the other.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// What a terminal, a dying agent or a closed pipe sends is not for the shim.
pub fn ignore_all_but_kill() {
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGPIPE,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
        // SAFETY: SIG_IGN is a valid disposition for these, and no handler runs any code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// SIGCHLD as a readable descriptor.
pub struct ChildSignals {
    fd: OwnedFd,
}

impl ChildSignals {
    /// Blocks every signal, for good. The job's process inherits that until its own dispositions
    /// are set, so a signal sent to it before its exec waits for it. If it were only ignored, as
    /// the shim ignores SIGTERM, it would be lost.
    pub fn block_and_watch() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the set before any other use; SIGCHLD's default
        // disposition is restored, since an inherited SIG_IGN would throw exit codes away.
        let fd = unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            libc::sigfillset(set.as_mut_ptr());
            if libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just returned this descriptor to us alone.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Forgets what was signalled so far. Call before reaping, so that a later end wakes again.
    pub fn clear(&self) {
        let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>() * 4];
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|read| read > 0) {}
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reaps one ended child: its pid and wait status.
pub fn next_ended_child() -> Option<(u32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the wait status.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    u32::try_from(pid).ok().filter(|&pid| pid > 0).map(|pid| (pid, status))
}
