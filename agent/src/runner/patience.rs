//! Questions that may never be answered: a folder on a file server that is gone, a user of an
//! account server that hangs.
//!
//! In: work that may block in the kernel. Out: its answer, or that none came in time. Each question
//! has a thread of its own, which is left behind where it hangs; when too many hang, no more are
//! asked until some return. Blocks up to its limit; not for async threads.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

/// How long an answer may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// Threads that hang at once.
const STUCK_MAX: usize = 8;
/// A question opens files and starts programs, no more.
const STACK: usize = 256 << 10;

pub(super) struct Patience {
    limit: Duration,
    stuck: Mutex<Vec<JoinHandle<()>>>,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { limit, stuck: Mutex::default() }
    }

    /// Its answer, or what is wrong in words; `what` is who is asked.
    pub fn ask<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let stuck = {
            let mut stuck = self.stuck.lock();
            stuck.retain(|thread| !thread.is_finished());
            stuck.len()
        };
        if stuck >= STUCK_MAX {
            return Err(format!(
                "{what} is not asked, since {stuck} questions about folders and users hang on this node; see its network file systems and account service"
            ));
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let asking = thread::Builder::new().name("ask".to_owned()).stack_size(STACK);
        let thread = asking
            // Nobody may wait any more.
            .spawn(move || drop(reply.send(work())))
            .map_err(|error| format!("{what} could not be asked: {error}"))?;
        match answer.recv_timeout(self.limit) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                self.stuck.lock().push(thread);
                let limit = self.limit.as_secs_f32();
                Err(format!("{what} gives no answer within {limit} s on this node"))
            }
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("it sends before it ends"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_left_behind_and_only_so_many() {
        let patience = Patience::new(Duration::from_millis(5));
        let mut open = Vec::new();
        for n in 0..STUCK_MAX {
            let (release, hang) = mpsc::channel::<()>();
            open.push(release);
            let error = patience.ask(&format!("/nfs/{n}"), move || hang.recv()).unwrap_err();
            assert!(error.starts_with(&format!("/nfs/{n} gives no answer")), "{error}");
        }
        let asked = patience.ask("/nfs/more", || ()).unwrap_err();
        assert!(asked.contains("/nfs/more is not asked, since 8"), "{asked}");
        drop(open);
        let threads = std::mem::take(&mut *patience.stuck.lock());
        assert_eq!(threads.len(), STUCK_MAX);
        for thread in threads.into_iter().skip(1) {
            thread.join().unwrap();
        }
        let patience = Patience::new(LIMIT);
        assert_eq!(patience.ask("/local", || 7), Ok(7));
    }
}
