//! When to try again: soon at first, then ever more seldom, and never all nodes at once.

use std::time::Duration;

use ring::rand::SecureRandom;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(10);

/// Doubles from 0.2 s to 10 s; each pause is drawn from its upper half.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub fn new() -> Self {
        Self { pause: FIRST }
    }

    pub fn reset(&mut self) {
        self.pause = FIRST;
    }

    pub fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST);
        jittered(pause)
    }
}

/// Half of it up to all of it.
pub fn jittered(length: Duration) -> Duration {
    let mut byte = [0u8; 2];
    // Without random numbers the pause is the shortest one; nothing else depends on it.
    let _ = ring::rand::SystemRandom::new().fill(&mut byte);
    let part = f64::from(u16::from_le_bytes(byte)) / f64::from(u16::MAX);
    length.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new();
        for bound_ms in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            let pause = backoff.next().as_millis();
            assert!((bound_ms / 2..=bound_ms).contains(&pause), "{pause} of {bound_ms}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
