//! Who is calling. A principal is on every call; what it may do is one table in `core::access`.

use serde::{Deserialize, Serialize};

use crate::{TeamId, UnixIdentity, UserId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Submits, sees and cancels own jobs; sees own teams' queue and usage.
    Member,
    /// Also cancels the jobs of own teams.
    TeamAdmin,
    /// Nodes, drain, any cancel, topology. No prices.
    Operator,
    /// Usage and prices of all teams. No job's content, nothing else to change.
    Finance,
    /// Sets up teams, tokens and everything else.
    Admin,
}

impl Role {
    pub const ALL: [Self; 5] =
        [Self::Member, Self::TeamAdmin, Self::Operator, Self::Finance, Self::Admin];

    pub fn word(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::TeamAdmin => "team-admin",
            Self::Operator => "operator",
            Self::Finance => "finance",
            Self::Admin => "admin",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.word() == word)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    pub user: UserId,
    pub role: Role,
    /// Teams it may act for; an admin acts for all.
    pub teams: Vec<TeamId>,
    /// Whom its jobs run as; `None` leaves it to the agent's configuration.
    pub unix: Option<UnixIdentity>,
}
