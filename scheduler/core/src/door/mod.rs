//! Requests at the core's door: each is checked against the cluster as it is and answered with the
//! events that carry it out, or with a refusal. Nothing changes here.
//!
//! People come in by [`submit`], [`queue`], [`share`], [`reserve`] and [`people`], agents by
//! [`agents`].

pub mod agents; // joining, hello, and what a node reports
pub mod asks; // what a job asks of its place
pub mod people; // nodes, teams, tokens, prices
pub mod queue; // cancel, hold, release, update, signal, checkpoint, list
pub mod reserve; // calendar reservations, marks on domains
pub mod share; // a team's weight and quotas
pub mod submit; // new jobs and arrays
pub mod topology; // a new map

pub use agents::{Greeting, Hello, Report, hello, report, use_join_token};
pub use people::*;
pub use queue::*;
pub use reserve::{end_reservation, mark_domain, reserve};
pub use share::share_team;
pub use submit::*;
