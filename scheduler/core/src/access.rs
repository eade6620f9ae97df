//! Who may do what. One table; whatever it does not allow is refused.

use tessera_model::{JobSpec, Principal, Refusal, RefusalKind, Role, TeamId};

/// What a caller may want that is not about one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Submit,
    /// Queue, nodes, topology, own usage: every person may.
    Look,
    ManageNodes,
    /// Keep nodes over a time.
    Reserve,
    /// Ask for more than the usual turn, for jobs one may manage.
    Prioritize,
    SeePrices,
    SetPrices,
    SeeAllUsage,
    ManageTeams,
}

impl Verb {
    #[cfg(test)]
    const ALL: [Self; 9] = [
        Self::Submit,
        Self::Look,
        Self::ManageNodes,
        Self::Reserve,
        Self::Prioritize,
        Self::SeePrices,
        Self::SetPrices,
        Self::SeeAllUsage,
        Self::ManageTeams,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Submit => "submit jobs",
            Self::Look => "look at the cluster",
            Self::ManageNodes => "cordon, drain, uncordon or retire nodes",
            Self::Reserve => "reserve nodes",
            Self::Prioritize => "raise priorities or make jobs urgent",
            Self::SeePrices => "see prices",
            Self::SetPrices => "set prices",
            Self::SeeAllUsage => "see the usage of all teams",
            Self::ManageTeams => "manage teams and tokens",
        }
    }

    fn roles(self) -> &'static [Role] {
        use Role::*;
        match self {
            Self::Submit => &[Member, TeamAdmin, Operator, Admin],
            Self::Look | Self::SeePrices => &[Member, TeamAdmin, Operator, Finance, Admin],
            Self::ManageNodes | Self::Reserve => &[Operator, Admin],
            Self::Prioritize => &[TeamAdmin, Operator, Admin],
            Self::SetPrices | Self::ManageTeams => &[Admin],
            Self::SeeAllUsage => &[Operator, Finance, Admin],
        }
    }
}

pub fn may(who: &Principal, verb: Verb) -> bool {
    verb.roles().contains(&who.role)
}

/// Lets the caller go on, or says what role it would take.
pub fn require(who: &Principal, verb: Verb) -> Result<(), Refusal> {
    if may(who, verb) {
        return Ok(());
    }
    let roles: Vec<&str> = verb.roles().iter().map(|r| r.word()).collect();
    Err(denied(
        format!("{} has the role {} and may not {}", who.user, who.role.word(), verb.words()),
        format!("it takes one of: {}", roles.join(", ")),
    ))
}

/// Whether the caller may act for a team.
pub fn acts_for(who: &Principal, team: &TeamId) -> bool {
    who.role == Role::Admin || who.teams.contains(team)
}

pub fn may_see_job(who: &Principal, spec: &JobSpec) -> bool {
    match who.role {
        Role::Operator | Role::Finance | Role::Admin => true,
        Role::Member | Role::TeamAdmin => spec.user == who.user || who.teams.contains(&spec.team),
    }
}

/// Script, arguments, environment and output.
pub fn may_see_content(who: &Principal, spec: &JobSpec) -> bool {
    match who.role {
        Role::Admin => true,
        Role::TeamAdmin => spec.user == who.user || who.teams.contains(&spec.team),
        Role::Member | Role::Operator | Role::Finance => spec.user == who.user,
    }
}

/// Cancel, hold, release, update, signal.
pub fn may_manage(who: &Principal, spec: &JobSpec) -> bool {
    match who.role {
        Role::Operator | Role::Admin => true,
        Role::TeamAdmin => spec.user == who.user || who.teams.contains(&spec.team),
        Role::Member => spec.user == who.user,
        Role::Finance => false,
    }
}

pub fn denied(message: String, hint: String) -> Refusal {
    Refusal::new(RefusalKind::Denied, "", message, hint)
}

#[cfg(test)]
mod tests {
    use tessera_model::UserId;

    use super::*;

    #[test]
    fn each_role_may_what_the_table_says_and_no_more() {
        let mut table = String::new();
        for role in Role::ALL {
            let user = UserId::parse("someone").unwrap();
            let who = Principal { user, role, teams: vec![], unix: None };
            let verbs: Vec<String> =
                Verb::ALL.iter().filter(|v| may(&who, **v)).map(|v| format!("{v:?}")).collect();
            table += &format!("{}: {}\n", role.word(), verbs.join(" "));
        }
        assert_eq!(
            table,
            "member: Submit Look SeePrices\n\
             team-admin: Submit Look Prioritize SeePrices\n\
             operator: Submit Look ManageNodes Reserve Prioritize SeePrices SeeAllUsage\n\
             finance: Look SeePrices SeeAllUsage\n\
             admin: Submit Look ManageNodes Reserve Prioritize SeePrices SetPrices SeeAllUsage ManageTeams\n"
        );
    }
}
