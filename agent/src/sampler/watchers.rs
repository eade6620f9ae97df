//! The threads beside the GPUs': XIDs from NVML, XIDs from the kernel log, NICs and the host.
//!
//! In: NVML's event queue, a log file, sysfs. Out: news for the beat.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;
use parking_lot::MutexGuard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::{Command, News, Shared, spawn};
use crate::probe::host::HostReader;
use crate::probe::nvml::EVENT_XID;
use crate::probe::{nic, xid};

/// How long one wait for an event holds the queue; a GPU that registers waits as long.
const WAIT_MS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at which NICs there are; drivers may load after the agent.
const NICS_EVERY: Duration = Duration::from_secs(60);

pub fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let events = shared.clone();
    spawn("xid", move || wait_for_events(&events))?;
    if let Some(path) = shared.config.kernel_log.clone() {
        let log = shared.clone();
        spawn("kernel-log", move || read_kernel_log(&log, &path))?;
    }
    Ok(())
}

/// XIDs as NVML reports them: one queue for all GPUs.
fn wait_for_events(shared: &Shared) {
    let mut gave_up = 0;
    while !shared.stopped() {
        let open = shared.driver.current().filter(|open| open.generation > gave_up);
        let Some((generation, events)) =
            open.and_then(|open| Some((open.generation, open.events?)))
        else {
            thread::sleep(PAUSE);
            continue;
        };
        let mut set = events.lock();
        let event = set.wait(WAIT_MS);
        // Whoever wants to register goes first.
        MutexGuard::unlock_fair(set);
        match event {
            Ok(event) => {
                let gpus = shared.names.lock().get(&(generation, event.device)).cloned();
                if gpus.is_none() {
                    tracing::warn!(kind = event.kind, data = event.data, "event of an unknown GPU");
                }
                for gpu in gpus.into_iter().flatten() {
                    if event.kind & EVENT_XID == 0 {
                        shared.tell(News::Look { gpu });
                        continue;
                    }
                    let code = u32::try_from(event.data).unwrap_or(u32::MAX);
                    shared.tell(News::Xid { gpu, code });
                }
            }
            Err(NvmlError::Timeout) => {}
            // A set that no device was registered in answers at once: do not spin.
            Err(
                NvmlError::NotSupported
                | NvmlError::FailedToLoadSymbol(_)
                | NvmlError::FunctionNotFound,
            ) => {
                gave_up = generation;
            }
            Err(error) => {
                tracing::trace!(%error, "no event");
                thread::sleep(PAUSE);
            }
        }
    }
}

/// XIDs as the kernel logs them, from now on: what stands in the log already may have been cured since.
fn read_kernel_log(shared: &Shared, path: &Path) {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let Ok(mut file) = opened else {
        tracing::debug!(path = %path.display(), "kernel log cannot be read; XIDs come from NVML only");
        return;
    };
    if file.seek(SeekFrom::End(0)).is_err() {
        return;
    }
    let mut buffer = vec![0_u8; 8 << 10];
    let mut line: Vec<u8> = Vec::new();
    while !shared.stopped() {
        match file.read(&mut buffer) {
            // The end of a plain file, which may grow.
            Ok(0) => thread::sleep(PAUSE),
            Ok(n) => {
                for byte in &buffer[..n] {
                    if *byte == b'\n' {
                        if let Some((slot, code)) =
                            xid::in_kernel_log(&String::from_utf8_lossy(&line))
                        {
                            shared.tell(News::KernelXid { slot, code });
                        }
                        line.clear();
                    } else if line.len() < buffer.len() {
                        line.push(*byte);
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let second = Timespec { tv_sec: 1, tv_nsec: 0 };
                let mut fds = [PollFd::new(&file, PollFlags::IN)];
                let _ = poll(&mut fds, Some(&second));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Records were overwritten before they were read; the next read goes on after them.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(_) => return,
        }
    }
}

/// Reads NICs and the host when the beat says so. A NIC driver may hang as well as a GPU's.
pub fn read_node(shared: &Shared, inbox: &crossbeam_channel::Receiver<Command>) {
    let mut host = HostReader::new();
    let mut found = nic::discover(&shared.config.sysfs);
    let mut looked = Instant::now();
    shared.tell(News::Nics(found.iter().map(|files| files.nic.clone()).collect()));
    while let Ok(command) = inbox.recv() {
        let Command::Beat { number, .. } = command else { continue };
        if looked.elapsed() >= NICS_EVERY {
            looked = Instant::now();
            found = nic::discover(&shared.config.sysfs);
            shared.tell(News::Nics(found.iter().map(|files| files.nic.clone()).collect()));
        }
        let nics = found.iter().map(nic::NicFiles::sample).collect();
        shared.tell(News::Node { number, nics, host: host.sample() });
    }
}
