//! The writer's clock: wall time at the start, and from there CLOCK_BOOTTIME. A jump of the wall
//! clock moves nothing while the process runs, and time never goes back across restarts.

use tessera_model::UnixMillis;

#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall_at_start: i64,
    boottime_at_start: i64,
}

impl Clock {
    pub fn start() -> Self {
        let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self {
            wall_at_start: wall.tv_sec * 1_000 + wall.tv_nsec / 1_000_000,
            boottime_at_start: boottime_ms(),
        }
    }

    /// Now, but not before `last`.
    pub fn now(&self, last: UnixMillis) -> UnixMillis {
        UnixMillis(self.wall_at_start + boottime_ms() - self.boottime_at_start).max(last)
    }
}

fn boottime_ms() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec * 1_000 + t.tv_nsec / 1_000_000
}
