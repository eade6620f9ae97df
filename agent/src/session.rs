//! One life of this agent as the scheduler sees it, and how long its lease still runs.
//!
//! In: grants, and the boot clock. Out: the session an order must name, and the deadline that
//! shims of leased attempts may be given. A lease that lapsed is never extended: the session ends
//! with it and a new one begins, so that a scheduler which has given the node up finds nobody who
//! still obeys its old orders.

use parking_lot::Mutex;
use ring::rand::SecureRandom;
use tokio::sync::watch;

use tessera_model::SessionId;

/// Milliseconds of CLOCK_BOOTTIME: never set, never jumps, counts while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootMillis(pub u64);

impl BootMillis {
    pub fn now() -> Self {
        Self(tessera_shim::proc::boottime_ms())
    }
}

/// Until when leased attempts of this session may run, as of the newest grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerm {
    pub until: BootMillis,
    /// Length of the lease, milliseconds; tells how fine the deadline has to be kept.
    pub lease_ms: u64,
}

#[derive(Debug)]
pub struct Session {
    life: Mutex<Life>,
    term: watch::Sender<Option<LeaseTerm>>,
}

#[derive(Debug)]
struct Life {
    id: SessionId,
    term: Option<LeaseTerm>,
}

/// What a grant did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    Extended(LeaseTerm),
    /// It gives no more time than there was.
    Nothing,
    /// The lease had lapsed before it came: this session is over. Connect again with the next one.
    TooLate,
}

impl Session {
    pub fn begin() -> Self {
        Self {
            life: Mutex::new(Life { id: draw(BootMillis::now()), term: None }),
            term: watch::Sender::new(None),
        }
    }

    pub fn id(&self) -> SessionId {
        self.life.lock().id
    }

    pub fn term(&self) -> Option<LeaseTerm> {
        self.life.lock().term
    }

    /// Follows [`Self::term`].
    pub fn follow(&self) -> watch::Receiver<Option<LeaseTerm>> {
        self.term.subscribe()
    }

    /// An answer to a heartbeat that was sent at `sent`.
    pub fn granted(&self, sent: BootMillis, lease_ms: u64, now: BootMillis) -> Granted {
        let mut life = self.life.lock();
        let until = BootMillis(sent.0.min(now.0).saturating_add(lease_ms));
        match life.term {
            Some(term) if term.until <= now => return Granted::TooLate,
            Some(term) if until <= term.until => return Granted::Nothing,
            None if until <= now => return Granted::Nothing,
            _ => {}
        }
        let term = LeaseTerm { until, lease_ms };
        life.term = Some(term);
        drop(life);
        self.term.send_replace(Some(term));
        Granted::Extended(term)
    }

    /// Asked before each connection: begins a new session if the lease has lapsed.
    pub fn renew_if_lapsed(&self, now: BootMillis) -> bool {
        let mut life = self.life.lock();
        if life.term.is_none_or(|term| term.until > now) {
            return false;
        }
        // Two in one millisecond are still in order.
        let id = draw(now).max(SessionId(life.id.0 + 1));
        *life = Life { id, term: None };
        drop(life);
        self.term.send_replace(None);
        true
    }
}

/// The boot clock above, 20 random bits below: within one boot of the machine a later session is a
/// greater one, so the scheduler knows the late words of a dead agent for what they are; and two
/// boots do not meet by chance. 0 is nobody's session.
fn draw(now: BootMillis) -> SessionId {
    const RANDOM_BITS: u32 = 20;
    let mut bytes = [0u8; 4];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("the kernel's random numbers are there once the machine has booted");
    let random = u64::from(u32::from_le_bytes(bytes) >> (32 - RANDOM_BITS));
    SessionId((now.0 << RANDOM_BITS | random).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootMillis {
        BootMillis(ms)
    }

    #[test]
    fn a_lapsed_lease_ends_the_session_and_is_never_extended() {
        let session = Session::begin();
        let first = session.id();
        assert!(!session.renew_if_lapsed(at(1_000_000)), "no lease yet, nothing can lapse");
        assert!(
            matches!(session.granted(at(1_000), 500, at(1_010)), Granted::Extended(t) if t.until == at(1_500))
        );
        assert_eq!(
            session.granted(at(900), 500, at(1_020)),
            Granted::Nothing,
            "an older heartbeat"
        );
        assert!(matches!(session.granted(at(1_200), 500, at(1_499)), Granted::Extended(_)));
        assert!(!session.renew_if_lapsed(at(1_699)));
        // Sent in time, but it arrives after the deadline: others may have been given our jobs.
        assert_eq!(session.granted(at(1_600), 500, at(1_700)), Granted::TooLate);
        assert_eq!(session.id(), first);
        assert!(session.renew_if_lapsed(at(1_700)));
        assert!(session.id() > first, "sessions grow");
        assert_eq!(session.term(), None);
        assert!(matches!(session.granted(at(1_800), 500, at(1_801)), Granted::Extended(_)));
    }

    #[test]
    fn a_grant_counts_from_the_heartbeat_and_never_from_the_future() {
        let session = Session::begin();
        assert_eq!(session.granted(at(0), 10, at(50)), Granted::Nothing, "over before it came");
        let Granted::Extended(term) = session.granted(at(9_999), 10, at(100)) else { panic!() };
        assert_eq!(term.until, at(110), "a heartbeat cannot have been sent after now");
    }
}
