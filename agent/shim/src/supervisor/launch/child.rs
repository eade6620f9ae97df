//! What the new process does between clone and exec.
//!
//! In: a [`Plan`] made before the clone. Out: the job's program, or one [`RECORD_BYTES`] record on
//! the error pipe and exit code 127. Here are raw system calls only: no allocation, no lock, no
//! standard library that might use either, since the copy of the shim that runs this is not whole.

use std::ffi::CString;
use std::ptr;

/// A failure as it travels through the pipe: the step, then errno.
pub const RECORD_BYTES: usize = 5;

/// Everything is prepared; descriptors are plain numbers of the parent's, valid in the copy.
pub struct Plan<'a> {
    pub lock: i32,
    pub stdin: i32,
    pub output: i32,
    pub errors: i32,
    /// `cgroup.procs` of v1 controllers.
    pub joins: Vec<i32>,
    pub oom_score_adj: Option<&'static [u8]>,
    pub limits: Vec<Limit>,
    pub become_user: Option<Become>,
    pub umask: u32,
    pub shim_pid: i32,
    pub working_dir: &'a CString,
    pub programs: &'a [CString],
    /// Both end in a null pointer.
    pub argv: &'a [*const libc::c_char],
    pub env: &'a [*const libc::c_char],
}

pub struct Limit {
    pub resource: i32,
    pub soft: u64,
    pub hard: u64,
}

pub struct Become {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// In the order in which they are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    JoinCgroup = 1,
    OomScore,
    Session,
    Limits,
    Groups,
    Gid,
    Uid,
    NoNewPrivileges,
    DeathSignal,
    Signals,
    Stdio,
    Chdir,
    Exec,
}

impl Step {
    const ALL: [Self; 13] = [
        Self::JoinCgroup,
        Self::OomScore,
        Self::Session,
        Self::Limits,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::NoNewPrivileges,
        Self::DeathSignal,
        Self::Signals,
        Self::Stdio,
        Self::Chdir,
        Self::Exec,
    ];

    /// Fits after "could not".
    pub fn what(self) -> &'static str {
        match self {
            Self::JoinCgroup => "join the job's cgroup",
            Self::OomScore => "reset the OOM score",
            Self::Session => "start a session",
            Self::Limits => "set the resource limits",
            Self::Groups => "set the supplementary groups",
            Self::Gid => "become the job's group",
            Self::Uid => "become the job's user",
            Self::NoNewPrivileges => "give up gaining privileges",
            Self::DeathSignal => "tie the job to its shim",
            Self::Signals => "reset the signals",
            Self::Stdio => "connect the output",
            Self::Chdir => "change to the working directory",
            Self::Exec => "run the program",
        }
    }

    pub fn decode(record: &[u8; RECORD_BYTES]) -> Option<(Self, i32)> {
        let [step, errno @ ..] = *record;
        let step = Self::ALL.into_iter().find(|&known| known as u8 == step)?;
        Some((step, i32::from_ne_bytes(errno)))
    }
}

/// Becomes the job. Call only in a fresh copy of the process.
pub fn run(plan: &Plan<'_>) -> ! {
    let (step, errno) = become_job(plan);
    let mut record = [0u8; RECORD_BYTES];
    record[0] = step as u8;
    record[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: write and _exit are async-signal-safe; the record outlives the call. Nobody could be
    // told of a failure to write it.
    unsafe {
        libc::write(plan.errors, record.as_ptr().cast(), RECORD_BYTES);
        libc::_exit(127)
    }
}

/// Returns only if a step failed.
fn become_job(plan: &Plan<'_>) -> (Step, i32) {
    match take_steps(plan) {
        Err(failed) => failed,
        Ok(()) => exec(plan),
    }
}

fn take_steps(plan: &Plan<'_>) -> Result<(), (Step, i32)> {
    // SAFETY, for every block below: async-signal-safe system calls on numbers, and on memory that
    // `plan` owns and that outlives them.
    // First of all: should the shim die now, its lock must be free.
    unsafe { libc::close(plan.lock) };
    for &join in &plan.joins {
        check(Step::JoinCgroup, unsafe { libc::write(join, b"0".as_ptr().cast(), 1) })?;
    }
    if let Some(score) = plan.oom_score_adj {
        reset_oom_score(score)?;
    }
    // A group and session of its own: signals for the job never reach the shim.
    check(Step::Session, unsafe { libc::setsid() } as isize)?;
    for limit in &plan.limits {
        let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
        let rc = unsafe { libc::setrlimit(limit.resource as _, &raw const value) };
        check(Step::Limits, rc as isize)?;
    }
    if let Some(user) = &plan.become_user {
        // Raw calls: libc's wrappers would talk to other threads, which this copy has not.
        let set = |step, number, args: [libc::c_long; 3]| {
            check(step, unsafe { libc::syscall(number, args[0], args[1], args[2]) } as isize)
        };
        let groups = [user.groups.len() as libc::c_long, user.groups.as_ptr() as libc::c_long, 0];
        set(Step::Groups, libc::SYS_setgroups, groups)?;
        set(Step::Gid, libc::SYS_setresgid, [libc::c_long::from(user.gid); 3])?;
        set(Step::Uid, libc::SYS_setresuid, [libc::c_long::from(user.uid); 3])?;
    }
    let on: libc::c_ulong = 1;
    let none: libc::c_ulong = 0;
    check(Step::NoNewPrivileges, unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, none, none, none)
    } as isize)?;
    // A job without its shim has no log, no lease and no witness. Set after the change of user,
    // which clears it.
    let kill = libc::SIGKILL as libc::c_ulong;
    check(
        Step::DeathSignal,
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill, none, none, none) } as isize,
    )?;
    if unsafe { libc::getppid() } != plan.shim_pid {
        // The shim died before that took hold.
        unsafe { libc::_exit(127) };
    }
    reset_signals()?;
    unsafe { libc::umask(plan.umask) };
    for (from, to) in [(plan.stdin, 0), (plan.output, 1), (plan.output, 2)] {
        check(Step::Stdio, unsafe { libc::dup2(from, to) } as isize)?;
    }
    check(Step::Chdir, unsafe { libc::chdir(plan.working_dir.as_ptr()) } as isize)?;
    // All of them are close-on-exec by how they were opened; this holds for any future one too.
    // Before Linux 5.11 it fails without effect.
    let close_on_exec: libc::c_uint = 4;
    unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, close_on_exec)
    };
    Ok(())
}

/// As a shell does: the first that can be run; a forbidden one is remembered and outranks "not found".
fn exec(plan: &Plan<'_>) -> (Step, i32) {
    let mut worst = libc::ENOENT;
    for program in plan.programs {
        // SAFETY: all three are valid C strings or null-terminated arrays of such, owned by the
        // caller of `run`.
        unsafe { libc::execve(program.as_ptr(), plan.argv.as_ptr(), plan.env.as_ptr()) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => worst = libc::EACCES,
            other => return (Step::Exec, other),
        }
    }
    (Step::Exec, worst)
}

fn reset_oom_score(score: &[u8]) -> Result<(), (Step, i32)> {
    // SAFETY: async-signal-safe calls on a constant path and the given bytes.
    unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(Step::OomScore, fd as isize)?;
        let wrote = libc::write(fd, score.as_ptr().cast(), score.len());
        let checked = check(Step::OomScore, wrote);
        libc::close(fd);
        checked
    }
}

/// Everything to its default and nothing blocked, as a login shell would have it.
fn reset_signals() -> Result<(), (Step, i32)> {
    // The kernel's own struct, all zeroes: SIG_DFL, no flags, empty mask. The raw call also reaches
    // the two real-time signals that libc keeps for itself, and that a parent may have ignored.
    let default = [0u64; 4];
    let no_signals = 0u64;
    // SAFETY: both calls read local memory of the size that the kernel expects; SIG_DFL runs no
    // code.
    unsafe {
        for signal in 1..=64 {
            // Refused for SIGKILL and SIGSTOP, which have no other disposition anyway.
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
        let none = ptr::null_mut::<u64>();
        let rc = libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const no_signals,
            none,
            size_of::<u64>(),
        );
        check(Step::Signals, rc as isize)
    }
}

fn check(step: Step, rc: isize) -> Result<(), (Step, i32)> {
    if rc < 0 { Err((step, errno())) } else { Ok(()) }
}

fn errno() -> i32 {
    // SAFETY: libc's errno location is always valid in the calling thread.
    unsafe { *libc::__errno_location() }
}
