//! The lease's deadline as a timer.
//!
//! In: the `lease` file. Out: "it has lapsed", once. On CLOCK_BOOTTIME, so a suspended node or a
//! stepped wall clock changes nothing. What a lapse means is the supervisor's matter.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tessera_shim::{TaskDir, proc};

pub struct LeaseTimer {
    dir: TaskDir,
    timer: OwnedFd,
    deadline_boottime_ms: Option<u64>,
}

impl LeaseTimer {
    /// A lease that is there but cannot be read is an error, since nobody knows what it says.
    pub fn start(dir: &TaskDir) -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let mut lease = Self { dir: dir.clone(), timer, deadline_boottime_ms: None };
        lease.look()?;
        Ok(lease)
    }

    /// Reads the lease file again. If that fails, the deadline stays.
    pub fn look(&mut self) -> io::Result<()> {
        let lease = self.dir.read_lease()?;
        self.deadline_boottime_ms = lease.deadline_boottime_ms;
        self.arm()
    }

    pub fn has_lapsed(&self) -> bool {
        self.deadline_boottime_ms.is_some_and(|deadline| deadline <= proc::boottime_ms())
    }

    /// True once when the deadline passed and the file gives no later one.
    pub fn take_lapse(&mut self) -> bool {
        let mut fired = [0u8; 8];
        if rustix::io::read(&self.timer, &mut fired).is_err() {
            return false;
        }
        if let Err(error) = self.look() {
            eprintln!("tessera-shim: the lease cannot be renewed: {error}");
        }
        if !self.has_lapsed() {
            return false;
        }
        // Said once; only a new lease arms it again.
        self.disarm();
        true
    }

    fn disarm(&self) {
        if let Err(error) = self.set(Timespec { tv_sec: 0, tv_nsec: 0 }) {
            eprintln!("tessera-shim: the lease's timer: {error}");
        }
    }

    fn arm(&self) -> io::Result<()> {
        self.set(match self.deadline_boottime_ms {
            None => Timespec { tv_sec: 0, tv_nsec: 0 },
            // A deadline at 0 would read as "no timer"; one nanosecond later is as long past. The
            // far end is cut where the kernel's seconds end.
            Some(ms) => Timespec {
                tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
                tv_nsec: ((ms % 1000) * 1_000_000).max(1) as _,
            },
        })
    }

    fn set(&self, it_value: Timespec) -> io::Result<()> {
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

impl AsFd for LeaseTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
