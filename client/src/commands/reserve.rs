//! `tessera reserve`: nodes or a domain kept for somebody over a time.

use serde::Serialize;
use tessera_model::{Reservation, TeamId, UnixMillis};
use tessera_proto::admin::reservation_from_wire;
use tessera_proto::v1::{self, reservation::Target};

use crate::call::{Api, strange};
use crate::cli::{ReserveArgs, ReserveMakeArgs, ReserveVerb};
use crate::failure::{Failure, Outcome};
use crate::output::{Grid, Screen, count, left, printable};
use crate::{when, wishes};

pub async fn run(api: &Api, args: &ReserveArgs, screen: &Screen) -> Outcome<u8> {
    match &args.verb {
        ReserveVerb::List => {
            let list = list(api).await?;
            if screen.json {
                screen.json(&list.iter().map(ReservationView::of).collect::<Vec<_>>())?;
            } else {
                screen.text(&table(&list, when::now(), screen))?;
            }
        }
        ReserveVerb::Make(args) => {
            let request = v1::ReserveRequest { reservation: Some(wish(args)?) };
            // Asked once: a second one of the same name is refused.
            let reply = api.once(api.admin().reserve(request)).await?;
            let made = read(reply.reservation.unwrap_or_default())?;
            for warning in &reply.warnings {
                screen.warning(warning);
            }
            if screen.json {
                screen.json(&ReservationView::of(&made))?;
            } else {
                screen.line(format!(
                    "{} is reserved from {} to {}",
                    what(&made),
                    made.from,
                    made.until
                ))?;
                if !made.teams.is_empty() {
                    screen.hint(&format!("tessera submit --reservation {} …", made.name));
                }
            }
        }
        ReserveVerb::End { name } => {
            let request = v1::EndReservationRequest { name: name.clone() };
            let ended = read(api.once(api.admin().end_reservation(request)).await?)?;
            if screen.json {
                screen.json(&ReservationView::of(&ended))?;
            } else {
                screen.line(format!("the reservation {} is over", printable(&ended.name)))?;
            }
        }
    }
    Ok(0)
}

#[derive(Debug, Serialize)]
pub struct ReservationView<'a> {
    pub name: &'a str,
    /// Whose jobs may use it; empty: nobody's.
    pub teams: Vec<&'a str>,
    /// `null` where single nodes are reserved.
    pub level: Option<&'a str>,
    pub domain: Option<&'a str>,
    /// Empty where a domain is reserved.
    pub nodes: Vec<&'a str>,
    pub from: String,
    pub until: String,
    pub owner: &'a str,
    pub reason: &'a str,
}

impl<'a> ReservationView<'a> {
    pub fn of(r: &'a Reservation) -> Self {
        let (level, domain, nodes) = match &r.target {
            tessera_model::Target::Nodes { nodes } => {
                (None, None, nodes.iter().map(|n| n.as_str()).collect())
            }
            tessera_model::Target::Domain { level, name } => {
                (Some(level.as_str()), Some(name.as_str()), Vec::new())
            }
        };
        Self {
            name: &r.name,
            teams: r.teams.iter().map(|t| t.as_str()).collect(),
            level,
            domain,
            nodes,
            from: r.from.rfc3339(),
            until: r.until.rfc3339(),
            owner: r.owner.as_str(),
            reason: &r.reason,
        }
    }
}

async fn list(api: &Api) -> Outcome<Vec<Reservation>> {
    let ask = |api: Api| async move {
        api.admin().list_reservations(v1::ListReservationsRequest {}).await
    };
    api.ask(ask).await?.reservations.into_iter().map(read).collect()
}

fn read(wire: v1::Reservation) -> Outcome<Reservation> {
    reservation_from_wire(wire).map_err(strange)
}

fn wish(args: &ReserveMakeArgs) -> Outcome<v1::Reservation> {
    let target = match (&args.domain, &args.nodes) {
        (Some((level, name)), _) => {
            Target::Domain(v1::Domain { level: level.clone(), name: name.clone() })
        }
        (None, names) => {
            let names = names.as_deref().unwrap_or_default();
            let nodes = wishes::nodes(names)
                .map_err(|why| Failure::usage(format!("--nodes: {why}"), "see tessera nodes"))?;
            Target::Nodes(v1::NodeNames { nodes: nodes.iter().map(|n| n.to_string()).collect() })
        }
    };
    // At once is when the scheduler says so: its clock need not be ours.
    let begins = args.from.unwrap_or_else(when::now);
    let until = match (args.until, args.lasts) {
        (Some(until), _) => until,
        (None, lasts) => begins.plus(lasts.unwrap_or_default()),
    };
    Ok(v1::Reservation {
        name: args.name.clone(),
        teams: args.team.clone(),
        target: Some(target),
        from_unix_ms: args.from.map_or(0, |at| at.0),
        until_unix_ms: until.0,
        owner: String::new(),
        reason: args.reason.clone(),
    })
}

/// `leaf leaf-3`, or `n01 n02`.
fn what(r: &Reservation) -> String {
    let text = match &r.target {
        tessera_model::Target::Domain { level, name } => format!("{level} {name}"),
        tessera_model::Target::Nodes { nodes } if nodes.len() > 4 => {
            count(nodes.len() as u64, "node")
        }
        tessera_model::Target::Nodes { nodes } => {
            nodes.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" ")
        }
    };
    printable(&text).into_owned()
}

pub fn table(list: &[Reservation], now: UnixMillis, screen: &Screen) -> String {
    if list.is_empty() && screen.tty {
        return "no reservations\n".to_owned();
    }
    let mut grid = Grid::with_remark(vec![
        left("NAME"),
        left("WHAT"),
        left("FOR"),
        left("FROM"),
        left("UNTIL"),
        left("STATE"),
        left("OWNER").spare(1),
        left("REASON"),
    ]);
    for r in list {
        let teams: Vec<&str> = r.teams.iter().map(TeamId::as_str).collect();
        let (state, at) = match (r.from <= now, r.until <= now) {
            (_, true) => ("over", r.until),
            (true, false) => ("open", r.until),
            (false, false) => ("to come", r.from),
        };
        grid.row([
            r.name.clone(),
            what(r),
            if teams.is_empty() { "nobody".to_owned() } else { teams.join(",") },
            when::clock(r.from, now),
            when::clock(r.until, now),
            format!("{state}, {}", when::between(now, at)),
            r.owner.to_string(),
            r.reason.clone(),
        ]);
    }
    grid.render(screen)
}
