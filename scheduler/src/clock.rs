//! The writer's clock: wall time at the start, and from there CLOCK_BOOTTIME. A jump of the wall
//! clock moves nothing while the process runs, time never goes back across restarts, and it always
//! goes on: where the wall clock stands before the last event, the count begins at that event.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tessera_model::UnixMillis;

#[derive(Debug, Clone)]
pub struct Clock {
    start: i64,
    boottime_at_start: i64,
    last_look: i64,
}

impl Clock {
    /// A clock that does not show less than `last`.
    pub fn start(last: UnixMillis) -> Self {
        let wall = clock_gettime(ClockId::Realtime);
        let wall = wall.tv_sec * 1_000 + wall.tv_nsec / 1_000_000;
        if wall < last.0 {
            tracing::warn!(
                behind_ms = last.0 - wall,
                "the clock of this machine is behind the last event; times are ahead until it catches up"
            );
        }
        let boottime = boottime_ms();
        Self { start: wall.max(last.0), boottime_at_start: boottime, last_look: boottime }
    }

    /// Now, but not before `last`.
    pub fn now(&self, last: UnixMillis) -> UnixMillis {
        UnixMillis(self.start + boottime_ms() - self.boottime_at_start).max(last)
    }

    /// Since this was last asked; also while the process or the machine slept.
    pub fn since_last_look(&mut self) -> Duration {
        let now = boottime_ms();
        let since = now - std::mem::replace(&mut self.last_look, now);
        Duration::from_millis(u64::try_from(since).unwrap_or(0))
    }
}

fn boottime_ms() -> i64 {
    let t = clock_gettime(ClockId::Boottime);
    t.tv_sec * 1_000 + t.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_even_if_the_last_event_lies_in_the_future() {
        let future = UnixMillis(i64::MAX / 2);
        let clock = Clock::start(future);
        let first = clock.now(future);
        assert!(first >= future);
        while clock.now(future) <= first {}
    }
}
