//! Starting the job's first process.
//!
//! In: a spec, a cgroup. Out: a [`Job`] whose first process was in its cgroup from its first
//! instant, or a [`LaunchError`]. Whatever fails between clone and exec is fatal and comes back
//! through a pipe that a successful exec closes; the supervisor's loop reads it, so a program on a
//! hung file system holds up nothing. What the child does is `child`'s work.

mod child;

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::pipe::{PipeFlags, pipe_with};
use tessera_shim::cgroup::Cgroup;
use tessera_shim::dir::TaskLock;
use tessera_shim::live::{ATTEMPT_ENV, attempt_entry};
use tessera_shim::proc;
use tessera_shim::spec::{Resource, TaskSpec};

use child::{Become, Limit, Plan, Step};

/// Where programs are looked up if the job's environment has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";
/// clone3's flag does not fit the C int it is declared as.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A job whose first process exists.
pub struct Job {
    pub pid: u32,
    pidfd: OwnedFd,
    /// What the job writes; `None` once it has closed its end.
    pub output: Option<OwnedFd>,
    /// Tells of a failure before exec; `None` once that is decided.
    pub errors: Option<OwnedFd>,
}

/// How the first process ended.
#[derive(Clone, Copy, Default)]
pub struct JobEnd {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub ended_unix_ms: u64,
}

impl JobEnd {
    pub fn new(status: i32) -> Self {
        Self {
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            ended_unix_ms: proc::unix_ms(),
        }
    }
}

/// Why the program never ran.
pub enum LaunchError {
    /// The spec cannot be turned into a process.
    Spec(String),
    /// The shim could not make the process.
    Setup { what: &'static str, source: io::Error },
    /// The process was made and could not become the job.
    Child { step: Step, source: io::Error },
}

impl From<NulError> for LaunchError {
    fn from(_: NulError) -> Self {
        Self::Spec("a program, argument, variable or path of the task holds a NUL byte".to_owned())
    }
}

impl LaunchError {
    /// What a shell would have ended with, where it is about the program itself.
    pub fn shell_code(&self) -> Option<i32> {
        match self {
            Self::Child { step: Step::Exec, source } => match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => Some(127),
                _ => Some(126),
            },
            _ => None,
        }
    }

    /// For the person who submitted the job.
    pub fn explain(&self, spec: &TaskSpec) -> String {
        match self {
            Self::Spec(why) => why.clone(),
            Self::Setup { what, source } => format!("could not {what}: {source}"),
            Self::Child { step: Step::Exec, source } => explain_exec(spec, source),
            Self::Child { step: Step::Chdir, source } => {
                format!(
                    "could not change to the working directory {}: {source}",
                    spec.working_dir.display()
                )
            }
            Self::Child { step, source } => format!("could not {}: {source}", step.what()),
        }
    }
}

fn explain_exec(spec: &TaskSpec, source: &io::Error) -> String {
    let program = spec.argv.first().map_or("", String::as_str);
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if !program.contains('/') => {
            format!("{program}: command not found in PATH={}", search_path(spec))
        }
        Some(libc::ENOENT) if spec.working_dir.join(program).exists() => {
            format!("{program}: the interpreter it names in its first line was not found")
        }
        Some(libc::ENOENT | libc::ENOTDIR) => format!("{program}: no such file"),
        Some(libc::EACCES) => format!("{program}: permission denied; is it executable?"),
        Some(libc::ENOEXEC) => {
            format!("{program}: not a program; does its first line begin with #! ?")
        }
        _ => format!("{program}: {source}"),
    }
}

fn search_path(spec: &TaskSpec) -> &str {
    spec.env.iter().rev().find(|(name, _)| name == "PATH").map_or(PATH_DEFAULT, |(_, value)| value)
}

/// Makes the process. Returns without waiting for its exec.
pub fn start(
    spec: &TaskSpec,
    cgroup: Option<&Cgroup>,
    lock: &TaskLock,
) -> Result<Job, LaunchError> {
    let setup = |what| move |source: io::Error| LaunchError::Setup { what, source };
    let pipe =
        || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(setup("make a pipe"));
    let (output, output_in) = pipe()?;
    let (errors, errors_in) = pipe()?;
    for end in [&output, &errors] {
        // The write end stays blocking: a job that is faster than the disk waits, as at any pipe.
        rustix::fs::fcntl_setfl(end, rustix::fs::OFlags::NONBLOCK)
            .map_err(|error| setup("make a pipe")(error.into()))?;
    }
    let null = File::open("/dev/null").map_err(setup("open /dev/null"))?;
    let folder =
        cgroup.map(Cgroup::open_dir).transpose().map_err(setup("open the job's cgroup"))?;
    let joins = cgroup
        .map(Cgroup::open_v1_joins)
        .transpose()
        .map_err(setup("open the job's cgroup"))?
        .unwrap_or_default();
    let strings = Strings::new(spec)?;
    let argv = pointers(&strings.argv);
    let env = pointers(&strings.env);
    let plan = Plan {
        lock: lock.as_raw_fd(),
        stdin: null.as_raw_fd(),
        output: output_in.as_raw_fd(),
        errors: errors_in.as_raw_fd(),
        joins: joins.iter().map(AsRawFd::as_raw_fd).collect(),
        oom_score_adj: oom_reset(),
        limits: spec.rlimits.iter().map(limit).collect(),
        become_user: become_user(spec),
        umask: spec.umask & 0o777,
        shim_pid: std::process::id() as i32,
        working_dir: &strings.working_dir,
        programs: &strings.programs,
        argv: &argv,
        env: &env,
    };
    let mut pidfd: i32 = -1;
    // SAFETY: clone_args is a plain C struct for which all zeroes is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::addr_of_mut!(pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(folder) = &folder {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = folder.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child gets its own copy of this one thread and
    // its memory. `args` and `pidfd` are valid for the call. The child calls only `child::run`,
    // which makes system calls on what was prepared above, allocates nothing, and never returns.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => child::run(&plan),
        -1 => {
            let what = if folder.is_some() {
                "start a process in the job's cgroup"
            } else {
                "start a process"
            };
            Err(setup(what)(io::Error::last_os_error()))
        }
        pid => Ok(Job {
            pid: pid as u32,
            // SAFETY: the kernel has just put this descriptor here for us alone.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            output: Some(output),
            errors: Some(errors),
        }),
    }
}

impl Job {
    /// A failure before exec, if there was one. Never waits.
    pub fn read_error(&mut self) -> Option<LaunchError> {
        let mut record = [0u8; child::RECORD_BYTES];
        let found = match rustix::io::read(self.errors.as_ref()?, &mut record) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
            // Writes this small arrive whole or not at all.
            Ok(child::RECORD_BYTES) => Step::decode(&record),
            Ok(_) | Err(_) => None,
        };
        self.errors = None;
        found.map(|(step, errno)| LaunchError::Child {
            step,
            source: io::Error::from_raw_os_error(errno),
        })
    }

    /// To the first process. Does nothing once it has ended.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the pidfd is open, and a null siginfo asks for what kill(2) would send.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal,
                ptr::null::<libc::siginfo_t>(),
                0u32,
            )
        };
    }

    /// To its process group. Only before the first process is reaped.
    pub fn signal_group(&self, signal: i32) {
        // SAFETY: kill(2) takes plain numbers; the pid is above 1, so its negative is one group.
        if unsafe { libc::kill(-(self.pid as i32), signal) } != 0 {
            // Between clone and setsid there is no such group yet.
            self.signal(signal);
        }
    }
}

/// Every string that the child needs, made before there is a child.
struct Strings {
    /// What exec tries, in this order.
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    working_dir: CString,
}

impl Strings {
    fn new(spec: &TaskSpec) -> Result<Self, LaunchError> {
        let Some(program) = spec.argv.first().filter(|program| !program.is_empty()) else {
            return Err(LaunchError::Spec("the task has no program to run".to_owned()));
        };
        let programs = if program.contains('/') {
            vec![CString::new(program.as_str())?]
        } else {
            let folders = search_path(spec).split(':').filter(|folder| !folder.is_empty());
            let paths = folders
                .map(|folder| CString::new(Path::new(folder).join(program).as_os_str().as_bytes()));
            paths.collect::<Result<_, _>>()?
        };
        let mut env = Vec::with_capacity(spec.env.len() + 1);
        for (name, value) in &spec.env {
            if name.is_empty() || name.contains('=') {
                return Err(LaunchError::Spec(format!(
                    "{name:?} cannot be the name of an environment variable"
                )));
            }
            env.push(CString::new(format!("{name}={value}"))?);
        }
        if spec.cgroup == tessera_shim::CgroupSpec::None
            && !spec.env.iter().any(|(name, _)| name == ATTEMPT_ENV)
        {
            env.push(CString::new(attempt_entry(spec))?);
        }
        Ok(Self {
            programs,
            argv: spec
                .argv
                .iter()
                .map(|arg| CString::new(arg.as_str()))
                .collect::<Result<_, _>>()?,
            env,
            working_dir: CString::new(spec.working_dir.as_os_str().as_bytes())?,
        })
    }
}

/// Null-terminated, as exec wants it.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// `None` leaves it as it is. The job must not keep the shim's protection, and one that the
/// operator made likelier to be killed stays so.
fn oom_reset() -> Option<&'static [u8]> {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").ok()?;
    let current: i32 = text.trim().parse().ok()?;
    (current < 0).then_some(b"0")
}

/// `None` if the shim is that user already, which an unprivileged shim can only be.
fn become_user(spec: &TaskSpec) -> Option<Become> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let target_uid = spec.uid.unwrap_or(uid.as_raw());
    let target_gid = spec.gid.unwrap_or(gid.as_raw());
    let asked = spec.uid.is_some() || spec.gid.is_some() || !spec.groups.is_empty();
    let same = target_uid == uid.as_raw() && target_gid == gid.as_raw() && spec.groups.is_empty();
    if !asked || (same && !uid.is_root()) {
        return None;
    }
    let groups = if spec.groups.is_empty() { vec![target_gid] } else { spec.groups.clone() };
    Some(Become { uid: target_uid, gid: target_gid, groups })
}

fn limit(rlimit: &tessera_shim::spec::Rlimit) -> Limit {
    let resource = match rlimit.resource {
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
    };
    let value = |value: Option<u64>| value.unwrap_or(libc::RLIM_INFINITY);
    Limit { resource: resource as i32, soft: value(rlimit.soft), hard: value(rlimit.hard) }
}
