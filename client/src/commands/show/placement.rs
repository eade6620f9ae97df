//! `tessera show --placement`: what a job asked of its place, what it got, and what was proved.
//!
//! In: a job's record with its certificate, and the nodes it stands on as they are in the map now.
//! Out: each wish with its result, worked out here from the nodes alone and not taken from the
//! scheduler's word; the spans the scheduler proved; which rank is where. Where the map was changed
//! since the job began, the wishes are held against the new one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tessera_model::{JobRecord, JobSpec, LabelRule, NodeRecord, Placement, Strength};

use crate::call::Api;
use crate::failure::{Failure, Outcome};
use crate::output::{Grid, Screen, count, left, printable, right, wrap};
use crate::views::{CertificateView, strength_word};
use crate::wishes::label_text;

pub async fn run(api: &Api, job: &JobRecord, screen: &Screen) -> Outcome<u8> {
    if job.nodes.is_empty() {
        return Err(Failure::no(
            "precondition",
            format!("job {} has no place yet", job.id),
            format!("tessera explain {} says what it waits for", job.id),
        ));
    }
    let names: Vec<String> =
        job.nodes.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>().into_iter().collect();
    let nodes = match api.node_list(&names).await {
        Ok(nodes) => nodes,
        // One of them has left the cluster: of all there are, those that are still there.
        Err(failure) if failure.kind == "not_found" => api.node_list(&[]).await?,
        Err(failure) => return Err(failure),
    };
    let placed = Placed::of(job, &nodes);
    if screen.json {
        screen.json(&placed)?;
    } else {
        screen.text(&placed.text(screen))?;
    }
    Ok(0)
}

/// Why a job stands where it stands.
#[derive(Debug, Serialize)]
pub struct Placed<'a> {
    pub job: u64,
    pub attempt: Option<String>,
    pub constraints: Vec<Constraint>,
    /// `null` for a job of an earlier release.
    pub certificate: Option<CertificateView<'a>>,
    pub ranks: Vec<RankView<'a>>,
}

/// One wish and what came of it.
#[derive(Debug, Serialize)]
pub struct Constraint {
    /// As one would write it: `within leaf`.
    pub what: String,
    /// required or preferred.
    pub strength: &'static str,
    pub result: String,
    /// `null` where a node is not in the map any more, so that nobody can say.
    pub holds: Option<bool>,
}

#[derive(Debug, Serialize)]
pub struct RankView<'a> {
    /// `null` for a spare.
    pub first_rank: Option<u32>,
    pub ranks: u32,
    pub node: &'a str,
    /// Empty for the first; `null` for a spare.
    pub role: Option<&'a str>,
    /// By level.
    pub domains: BTreeMap<&'a str, &'a str>,
}

/// The nodes of one role.
struct Part<'a> {
    /// `None`: spares.
    role: Option<&'a str>,
    tasks_per_node: u32,
    nodes: Vec<&'a str>,
}

/// The place's nodes by role. An elastic job may have fewer in the first.
fn parts<'a>(spec: &'a JobSpec, nodes: &'a [tessera_model::NodeId]) -> Vec<Part<'a>> {
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let further: usize = spec.roles.iter().map(|r| size(r.gang.nodes)).sum();
    let rest = nodes.len().saturating_sub(further);
    // Spares are used up one by one, so it is they of which some may be missing.
    let first = match spec.min_nodes {
        Some(_) => rest.saturating_sub(size(spec.spares)),
        None => rest.min(size(spec.gang.nodes)),
    };
    let mut names = nodes.iter().map(|n| n.as_str());
    let mut part = |role, tasks_per_node, count| Part {
        role,
        tasks_per_node,
        nodes: names.by_ref().take(count).collect(),
    };
    let mut parts = vec![part(Some(""), spec.gang.tasks_per_node, first)];
    for role in &spec.roles {
        let nodes = size(role.gang.nodes);
        parts.push(part(Some(role.name.as_str()), role.gang.tasks_per_node, nodes));
    }
    parts.push(part(None, 0, usize::MAX));
    parts.retain(|p| !p.nodes.is_empty());
    parts
}

type Map<'a> = BTreeMap<&'a str, &'a NodeRecord>;

impl<'a> Placed<'a> {
    pub fn of(job: &'a JobRecord, nodes: &'a [NodeRecord]) -> Self {
        let map: Map<'a> = nodes.iter().map(|n| (n.inventory.node.as_str(), n)).collect();
        let parts = parts(&job.spec, &job.nodes);
        let mut constraints = Vec::new();
        let all: Vec<&str> = parts.iter().flat_map(|p| p.nodes.iter().copied()).collect();
        let first: Vec<&str> = parts.first().map(|p| p.nodes.clone()).unwrap_or_default();
        check(&mut constraints, "", &job.spec.placement, &all, &first, &map);
        for role in &job.spec.roles {
            let own = parts.iter().find(|p| p.role == Some(role.name.as_str()));
            let own = own.map(|p| p.nodes.clone()).unwrap_or_default();
            let prefix = format!("{}: ", role.name);
            check(&mut constraints, &prefix, &role.placement, &own, &own, &map);
        }
        let mut ranks = Vec::new();
        let mut next = 0u32;
        for part in &parts {
            for node in &part.nodes {
                let domains = map.get(node).map(|n| n.domains.iter());
                let domains = domains.into_iter().flatten().map(|(l, d)| (l.as_str(), d.as_str()));
                ranks.push(RankView {
                    first_rank: part.role.map(|_| next),
                    ranks: part.tasks_per_node,
                    node,
                    role: part.role,
                    domains: domains.collect(),
                });
                next = next.saturating_add(part.tasks_per_node);
            }
        }
        Self {
            job: job.id.0,
            attempt: job.attempt.map(|a| a.to_string()),
            constraints,
            certificate: job.certificate.as_ref().map(CertificateView::of),
            ranks,
        }
    }

    pub fn text(&self, screen: &Screen) -> String {
        let mut out = String::new();
        let attempt = self.attempt.as_deref().unwrap_or("no attempt");
        let mut say = |text: &str| {
            for line in wrap(&printable(text), screen.width) {
                out.push_str(&line);
                out.push('\n');
            }
        };
        say(&format!("job {}, attempt {attempt}: {}", self.job, self.proof()));
        for given_up in self.certificate.iter().flat_map(|c| c.given_up) {
            say(&format!("given up: {given_up}"));
        }
        if self.constraints.is_empty() {
            say("it asked nothing of its place");
        } else {
            let mut grid = Grid::new(vec![
                left("ASKED"),
                left("STRENGTH").spare(1),
                left("GOT"),
                left("HOLDS"),
            ]);
            for c in &self.constraints {
                let holds = match c.holds {
                    Some(true) => "yes",
                    Some(false) => "NO",
                    None => "unknown",
                };
                grid.row([c.what.as_str(), c.strength, c.result.as_str(), holds]);
            }
            out.push_str(&grid.render(screen));
        }
        if let Some(certificate) = &self.certificate {
            let mut grid = Grid::new(vec![left("LEVEL"), right("USED"), right("LEAST")]);
            for span in &certificate.spans {
                grid.row([span.level.to_owned(), span.domains.to_string(), span.least.to_string()]);
            }
            out.push_str(&grid.render(screen));
        }
        out.push_str(&self.rank_table(screen));
        out
    }

    /// `optimal at revision 4711`.
    fn proof(&self) -> String {
        let Some(certificate) = &self.certificate else {
            return "nothing is known of how it was found".to_owned();
        };
        let how = match certificate.bound_percent {
            None => "no place spans less".to_owned(),
            Some(percent) => format!("at most {percent}% above the least possible span"),
        };
        format!("{}, {how}, at revision {}", certificate.optimality, certificate.revision)
    }

    /// Nodes that follow each other in one narrowest domain share a line.
    fn rank_table(&self, screen: &Screen) -> String {
        let mut grid = Grid::with_remark(vec![left("RANKS"), left("WHERE"), left("NODES")]);
        let place = |r: &RankView<'_>| {
            let named: Vec<String> = r.domains.iter().map(|(l, d)| format!("{l} {d}")).collect();
            named.join(", ")
        };
        let mut at = 0;
        while at < self.ranks.len() {
            let first = &self.ranks[at];
            let same = |r: &&RankView<'_>| r.role == first.role && place(r) == place(first);
            let group: Vec<&RankView<'_>> = self.ranks[at..].iter().take_while(same).collect();
            let tasks: u32 = group.iter().map(|r| r.ranks).sum();
            let role = first.role.filter(|r| !r.is_empty()).map(|r| format!(" {r}"));
            let ranks = match first.first_rank {
                None => "spare".to_owned(),
                Some(rank) if tasks <= 1 => rank.to_string(),
                Some(rank) => format!("{rank}-{}", rank.saturating_add(tasks - 1)),
            };
            let nodes: Vec<&str> = group.iter().map(|r| r.node).collect();
            grid.row([
                format!("{ranks}{}", role.unwrap_or_default()),
                place(first),
                nodes.join(" "),
            ]);
            at += group.len();
        }
        grid.render(screen)
    }
}

/// Domains of a level that the nodes stand in, in their order; `None` where one is not in the map.
fn domains<'a>(map: &Map<'a>, nodes: &[&str], level: &str) -> Option<Vec<&'a str>> {
    let domain = |node: &&str| {
        let record = map.get(*node)?;
        record.domains.iter().find(|(l, _)| l == level).map(|(_, d)| d.as_str())
    };
    nodes.iter().map(domain).collect()
}

/// How many nodes stand in each domain.
fn counts<'a>(domains: &[&'a str]) -> BTreeMap<&'a str, u32> {
    let mut counts = BTreeMap::new();
    for domain in domains {
        *counts.entry(*domain).or_default() += 1;
    }
    counts
}

fn counts_text(counts: &BTreeMap<&str, u32>) -> String {
    const SHOWN: usize = 6;
    let mut text: Vec<String> =
        counts.iter().take(SHOWN).map(|(d, n)| format!("{n} in {d}")).collect();
    if counts.len() > SHOWN {
        text.push(format!("and {} more", counts.len() - SHOWN));
    }
    text.join(", ")
}

/// Adds a line for each wish. `all` are the nodes it holds for, `gang` those that come in slices.
fn check(
    out: &mut Vec<Constraint>,
    prefix: &str,
    placement: &Placement,
    all: &[&str],
    gang: &[&str],
    map: &Map<'_>,
) {
    let mut add = |what: String, strength: Strength, found: Option<(String, bool)>| {
        let (result, holds) = match found {
            Some((result, holds)) => (result, Some(holds)),
            None => ("a node is not in the map".to_owned(), None),
        };
        let what = format!("{prefix}{what}");
        out.push(Constraint { what, strength: strength_word(strength), result, holds });
    };
    let required = Strength::Required;
    for within in &placement.within {
        let found = domains(map, all, &within.level).map(|d| {
            let counts = counts(&d);
            match counts.keys().next() {
                Some(only) if counts.len() == 1 => (format!("all in {only}"), true),
                _ => (counts_text(&counts), false),
            }
        });
        add(format!("within {}", within.level), within.strength, found);
    }
    for slice in &placement.slices {
        let size = usize::try_from(slice.nodes.max(1)).unwrap_or(usize::MAX);
        let found = domains(map, gang, &slice.level).map(|d| {
            let slices: Vec<&[&str]> = d.chunks(size).collect();
            let whole = slices.iter().filter(|s| s.iter().all(|d| *d == s[0])).count();
            let all = count(slices.len() as u64, "slice");
            (format!("{whole} of {all}, each in one {}", slice.level), whole == slices.len())
        });
        add(format!("slice {}:{}", slice.nodes, slice.level), slice.strength, found);
    }
    for at_most in &placement.at_most {
        let found = domains(map, all, &at_most.level).map(|d| {
            let used = counts(&d).len();
            let holds = u32::try_from(used).is_ok_and(|used| used <= at_most.domains);
            (count(used as u64, &at_most.level), holds)
        });
        add(format!("at most {}:{}", at_most.domains, at_most.level), required, found);
    }
    for spread in &placement.spread {
        // Of the domains it uses; one that it could have used and does not is not known here.
        let found = domains(map, gang, &spread.level).map(|d| {
            let counts = counts(&d);
            let (least, most) = (counts.values().min(), counts.values().max());
            let skew = most.copied().unwrap_or(0) - least.copied().unwrap_or(0);
            (counts_text(&counts), skew <= spread.max_skew)
        });
        add(format!("spread {}:{}", spread.level, spread.max_skew), required, found);
    }
    if let Some(level) = &placement.balance {
        let found = domains(map, gang, level).map(|d| {
            let counts = counts(&d);
            let even = counts.values().collect::<BTreeSet<_>>().len() <= 1;
            (counts_text(&counts), even)
        });
        add(format!("balance {level}"), required, found);
    }
    for rule in &placement.labels {
        add(format!("select {}", label_text(rule)), required, labelled(map, all, rule));
    }
    if !placement.only.is_empty() {
        let strange: Vec<&str> = all
            .iter()
            .filter(|n| !placement.only.iter().any(|o| o.as_str() == **n))
            .copied()
            .collect();
        let what = format!("only {}", count(placement.only.len() as u64, "named node"));
        add(what, required, Some(named(&strange, "all of them named")));
    }
    if !placement.exclude.is_empty() {
        let strange: Vec<&str> = all
            .iter()
            .filter(|n| placement.exclude.iter().any(|o| o.as_str() == **n))
            .copied()
            .collect();
        let what = format!("none of {}", count(placement.exclude.len() as u64, "excluded node"));
        add(what, required, Some(named(&strange, "none of them used")));
    }
}

fn named(strange: &[&str], fine: &str) -> (String, bool) {
    match strange.is_empty() {
        true => (fine.to_owned(), true),
        false => (format!("but {}", strange.join(" ")), false),
    }
}

/// `None` where a node is not there any more.
fn labelled(map: &Map<'_>, nodes: &[&str], rule: &LabelRule) -> Option<(String, bool)> {
    let mut without = Vec::new();
    for node in nodes {
        if !rule.holds(&map.get(node)?.inventory.labels) {
            without.push(*node);
        }
    }
    Some(named(&without, "on all nodes"))
}
