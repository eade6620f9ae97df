//! Requests at the core's door: each is checked against the cluster as it is and answered with the
//! events that carry it out, or with a refusal. Nothing changes here.
//!
//! People come in by [`people`], agents by [`agents`].

pub mod agents;
pub mod people; // submit, cancel, cordon, teams, tokens, prices // joining, hello, and what a node reports

pub use agents::{Greeting, Hello, Report, hello, report, use_join_token};
pub use people::*;
