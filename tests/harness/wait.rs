//! Waiting for an event, with a bound that only a broken program reaches.

use std::time::{Duration, Instant};

/// Far beyond anything that happens on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks until there is an answer. The error says what is seen instead, for the failure message.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    match until_within(PATIENCE, look) {
        Ok(answer) => answer,
        Err(seen) => panic!("waited {} s for {what}; last seen: {seen}", PATIENCE.as_secs()),
    }
}

/// The same with a bound of one's own, and what was last seen in place of a panic.
pub fn until_within<T>(
    patience: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(answer) => return Ok(answer),
            Err(seen) if Instant::now() > deadline => return Err(seen),
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}
