//! Identities: one type each, checked once, at the door.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is no name of that kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} {problem}")]
pub struct BadId {
    pub kind: &'static str,
    pub text: String,
    pub problem: &'static str,
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn parse(text: &str) -> Result<Self, BadId> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(problem) => {
                        let text = text.chars().take(80).collect();
                        Err(BadId { kind: $kind, text, problem })
                    }
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_id!(
    /// The account that pays: a team.
    TeamId, "team", short_name
);
name_id!(
    /// A piece of a team's work that is billed by name.
    ProjectId, "project", short_name
);
name_id!(
    /// A person or a service that calls us.
    UserId, "user", short_name
);
name_id!(
    /// A node, by the name it joined under.
    NodeId, "node", host_name
);
name_id!(
    /// What NVML calls the UUID. It survives a reboot; the index 0..8 need not.
    GpuId, "GPU", device_name
);
name_id!(
    /// What the kernel calls one boot of one machine, `/proc/sys/kernel/random/boot_id`.
    BootId, "boot id", device_name
);

fn short_name(text: &str) -> Result<(), &'static str> {
    match text.as_bytes() {
        [] => Err("is empty"),
        b if b.len() > 63 => Err("is longer than 63 characters"),
        [first, ..] if !(first.is_ascii_lowercase() || first.is_ascii_digit()) => {
            Err("must begin with a lower-case letter or a digit")
        }
        b if b.iter().all(|c| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-' | b'@')
        }) =>
        {
            Ok(())
        }
        _ => Err("may hold lower-case letters, digits and . _ - @ only"),
    }
}

fn host_name(text: &str) -> Result<(), &'static str> {
    match text.as_bytes() {
        [] => Err("is empty"),
        b if b.len() > 253 => Err("is longer than 253 characters"),
        [first, ..] if !first.is_ascii_alphanumeric() => Err("must begin with a letter or a digit"),
        b if b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_')) => {
            Ok(())
        }
        _ => Err("may hold letters, digits and . - _ only"),
    }
}

fn device_name(text: &str) -> Result<(), &'static str> {
    match text.as_bytes() {
        [] => Err("is empty"),
        b if b.len() > 96 => Err("is longer than 96 characters"),
        b if b
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'/')) =>
        {
            Ok(())
        }
        _ => Err("may hold letters, digits and . - _ / only"),
    }
}

/// A job. An integer, since `SLURM_JOB_ID` is parsed as one by JAX and others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One try at running a job, `812.1` for the first. It is also the name of the lease the try holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    pub job: JobId,
    /// From 1.
    pub number: u32,
}

impl AttemptId {
    pub fn parse(text: &str) -> Option<Self> {
        let (job, number) = text.split_once('.')?;
        let id = Self { job: JobId(job.parse().ok()?), number: number.parse().ok()? };
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.number)
    }
}

impl Serialize for AttemptId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no attempt id")))
    }
}

/// Which reign of a scheduler an order comes from. It only grows; agents refuse a lower one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One life of one agent, drawn when it starts and again whenever it regains a lapsed lease. An
/// order names the session it is meant for. Within one boot of a node sessions only grow, so that
/// the late words of a dead agent are told from those of its successor.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// A place in the journal. It only grows, by one for each event.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_door() {
        for good in ["nlp", "team-7", "a.b_c", "7up", "me@host"] {
            assert!(TeamId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "Nlp", "-x", "a b", "a,b", "=cmd", "é", &"x".repeat(64)] {
            assert!(TeamId::parse(bad).is_err(), "{bad}");
        }
        assert!(NodeId::parse("gpu-a01.hall3").is_ok());
        assert!(NodeId::parse("../etc").is_err());
        assert!(GpuId::parse("GPU-5a1c8d2e-0000-1111-2222-333344445555").is_ok());
    }

    #[test]
    fn attempts_read_back_only_in_their_own_form() {
        let id = AttemptId { job: JobId(812), number: 1 };
        assert_eq!(AttemptId::parse("812.1"), Some(id));
        for bad in ["812", "812.", ".1", "+812.1", "812.01", "812.1 "] {
            assert_eq!(AttemptId::parse(bad), None, "{bad:?}");
        }
    }
}
