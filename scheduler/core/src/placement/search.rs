//! Which nodes: the search from end to end.
//!
//! In: what is free, a [`Request`], and nodes that are closed to it. Out: [`Placed`], or [`NoFit`]
//! with what is missing. Counting proves; `plain` divides alike nodes exactly; `mixed` searches
//! where bonds combine; `finish` picks nodes and GPUs and puts them into rank order.

use tessera_model::{Gang, JobSpec, Optimality, Span};

use super::bonds;
use super::finish;
use super::fit;
use super::former;
use super::mixed::{self, Verdict};
use super::nodes::NodeSet;
use super::plain::{Answer, Best, Plain};
use super::proof;
use super::request::{Request, Terms};
use super::seats::Seats;
use super::space::{Space, Taken};
use super::span;

/// A node of a placement and its GPUs as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    pub node: u32,
    pub gpus: u64,
}

/// What was found, and what is proved of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// In rank order: the first role, further roles, spares.
    pub places: Vec<Chosen>,
    /// Of the first role.
    pub nodes: u32,
    pub optimality: Optimality,
    pub spans: Vec<Span>,
    /// Preferred constraints that do not hold.
    pub given_up: Vec<String>,
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoFit {
    /// Proof by counting: at least one necessary condition fails.
    Short {
        /// `None`: the first, or several together.
        role: Option<String>,
        need: u32,
        /// Most fitting nodes in any one allowed domain.
        have: u32,
        gpus_per_node: u32,
        /// The narrowest level that all of them have to share.
        level: Option<String>,
        /// The domain with the most.
        nearest: Option<String>,
    },
    /// Enough nodes, but no way to divide them as slices, at-most, spread or balance ask: proven
    /// exhaustively.
    Shape { what: String },
    /// Budget spent, no proof either way.
    NotFound { tried: u64 },
}

/// So many of these nodes, for a role.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub role: usize,
    pub nodes: Vec<u32>,
    pub count: u32,
}

/// Places the request on what is free, or says what is missing. The same arguments always give the
/// same answer. Where seats are given, they choose the node of a job of a single one.
pub fn place(
    space: &Space,
    request: &Request,
    closed: &NodeSet,
    seats: Option<&mut Seats>,
) -> Result<Placed, NoFit> {
    if let Some(what) = &request.contradiction {
        return Err(NoFit::Shape { what: what.clone() });
    }
    let fits: Vec<NodeSet> = request.roles.iter().map(|r| fit::fits(space, r, closed)).collect();
    if !request.former.is_empty()
        && let Some(nodes) = former::keep(space, request, &fits)
    {
        return Ok(kept(space, request, &fits, &nodes));
    }
    if request.nodes() == 1 && request.spares == 0 {
        return single(space, request, &fits[0], seats);
    }
    let answer = Plain::of(space, request).map(|plain| {
        let answer = plain.best(space, request, &fits[0]);
        (plain, answer)
    });
    let (parts, proven) = match answer {
        Some((plain, Answer::Best(best))) => {
            let best = same_rails(space, request, &fits[0], &plain, best);
            (plain.parts(space, &best), true)
        }
        Some((_, Answer::None)) => {
            return Err(proof::short(space, request, &fits)
                .unwrap_or_else(|| NoFit::Shape { what: proof::shape(space, request) }));
        }
        Some((_, Answer::Undecided)) | None => {
            if let Some(short) = proof::short(space, request, &fits) {
                return Err(short);
            }
            match mixed::search(space, request, &fits) {
                Verdict::Found { parts, proven } => (parts, proven),
                Verdict::None => {
                    return Err(NoFit::Shape { what: proof::shape(space, request) });
                }
                Verdict::NotFound { tried } => return Err(NoFit::NotFound { tried }),
            }
        }
    };
    let mut places = finish::ranks(space, request, parts);
    let ranks: Vec<u32> = places.iter().map(|c| c.node).collect();
    let spares = finish::spares(space, request, &fits[0], &ranks, request.spares as usize);
    places.extend(spares.expect("a search leaves as many nodes beside as there are spares"));
    Ok(placed(space, request, &fits, places, proven))
}

/// A job of one node: the one that is used best, and of these the fullest.
fn single(
    space: &Space,
    request: &Request,
    fits: &NodeSet,
    seats: Option<&mut Seats>,
) -> Result<Placed, NoFit> {
    let role = &request.roles[0];
    let Some(best) = fit::best(space, role, fits) else {
        let short = proof::short(space, request, std::slice::from_ref(fits));
        return Err(short.expect("no node is fewer than one"));
    };
    let packed = seats.and_then(|seats| seats.choose(space, role, fits));
    let places = vec![packed.unwrap_or(Chosen { node: best.node, gpus: best.gpus })];
    Ok(placed(space, request, std::slice::from_ref(fits), places, true))
}

/// Another division of the same span whose nodes can all give the same GPU set, if the best one's
/// cannot and one of the most common sets makes it possible.
fn same_rails(space: &Space, request: &Request, fits: &NodeSet, plain: &Plain, best: Best) -> Best {
    /// Sets that are tried, the most common ones.
    const SETS: usize = 4;
    let role = &request.roles[0];
    if role.gpus == 0 || role.nodes < 2 || finish::aligned(space, role, &plain.parts(space, &best))
    {
        return best;
    }
    let giving = |set: &u64| finish::giving(space, role, fits, *set);
    let mut sets: Vec<(u32, NodeSet)> = finish::sets(space, role, fits.iter())
        .iter()
        .map(giving)
        .map(|nodes| (nodes.count(), nodes))
        .filter(|(count, _)| *count >= role.nodes)
        .collect();
    sets.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    for (_, nodes) in sets.into_iter().take(SETS) {
        // Spares need not be on the same rails; they are counted among all that fit.
        let mut ranks = request.clone();
        ranks.spares = 0;
        if let Answer::Best(other) = plain.best(space, &ranks, &nodes)
            && other.span() == best.span()
            && plain.room_beside(space, request, fits, &other)
        {
            return other;
        }
    }
    best
}

/// The answer in which former nodes keep their places.
fn kept(space: &Space, request: &Request, fits: &[NodeSet], nodes: &[u32]) -> Placed {
    let ranks = request.nodes() as usize;
    let part = |(place, node): (usize, &u32)| Part {
        role: request.role_of(place),
        nodes: vec![*node],
        count: 1,
    };
    let parts = nodes[..ranks].iter().enumerate().map(part).collect();
    let mut places = finish::ranks(space, request, parts);
    // Ranks stay where they were, whatever the order of the nodes.
    let mut of: std::collections::BTreeMap<u32, Chosen> =
        places.drain(..).map(|c| (c.node, c)).collect();
    for node in &nodes[ranks..] {
        if let Some(worth) = fit::worth(space, &request.roles[0], *node) {
            of.insert(*node, Chosen { node: *node, gpus: worth.gpus });
        }
    }
    let places = nodes.iter().filter_map(|n| of.get(n).copied()).collect();
    placed(space, request, fits, places, false)
}

fn placed(
    space: &Space,
    request: &Request,
    fits: &[NodeSet],
    places: Vec<Chosen>,
    proven: bool,
) -> Placed {
    let count = request.nodes() as usize;
    let ranks: Vec<u32> = places[..count].iter().map(|c| c.node).collect();
    let used = finish::span(space, &ranks);
    let least = if proven { used.clone() } else { least_spans(space, request, fits) };
    let names = space.layout.trees.first().into_iter().flat_map(|t| &t.levels);
    let level = |((level, domains), least): ((&super::space::Level, &u32), &u32)| Span {
        level: level.name.clone(),
        domains: *domains,
        least: *least.min(domains),
    };
    let mut spans: Vec<Span> = names.zip(&used).zip(&least).map(level).collect();
    let nodes = count as u32;
    spans.push(Span { level: "node".to_owned(), domains: nodes, least: nodes });
    let over = |s: &Span| ((s.domains - s.least) * 100).div_ceil(s.least.max(1));
    let percent = spans.iter().map(over).max().unwrap_or(0);
    let waived = request.waived.iter().filter(|w| !w.holds(space, request, &ranks));
    Placed {
        nodes: request.roles[0].nodes,
        optimality: match percent {
            0 => Optimality::Optimal,
            percent => Optimality::Bound { percent },
        },
        spans,
        given_up: waived.map(|w| w.words.clone()).collect(),
        places,
    }
}

/// For each level by itself the fewest domains that hold the largest role, or all together.
fn least_spans(space: &Space, request: &Request, fits: &[NodeSet]) -> Vec<u32> {
    let mut any = fits[0].clone();
    fits.iter().for_each(|f| any.union(f));
    let roles = request.roles.iter().map(|r| r.nodes).zip(fits);
    let mut least = vec![0; space.layout.runs.len()];
    for (need, fits) in roles.chain([(request.nodes(), &any)]) {
        let fitting = span::count(&space.layout, fits);
        for (level, least) in least.iter_mut().enumerate() {
            let mut sizes = fitting[level + 1].clone();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let mut sum = 0u32;
            let short = sizes.iter().take_while(|size| {
                let go_on = sum < need;
                sum += **size;
                go_on
            });
            *least = (*least).max(short.count() as u32);
        }
    }
    least
}

impl super::request::Waived {
    fn holds(&self, space: &Space, request: &Request, ranks: &[u32]) -> bool {
        let Some(at) = self.at else { return false };
        let before = |r: usize| request.roles[..r].iter().map(|r| r.nodes as usize).sum::<usize>();
        let nodes = match self.role {
            None => ranks,
            Some(r) => &ranks[before(r)..before(r + 1)],
        };
        match self.slice {
            None => bonds::one_domain(space, at, nodes),
            Some(size) => bonds::sliced(space, at, size, nodes),
        }
    }
}

/// The same question to the cluster as it would be with every job gone and every node well. `Err`
/// is a proof that the job can never start, in words.
pub fn could_ever_fit(space: &Space, spec: &JobSpec) -> Result<(), String> {
    let avoid = std::collections::BTreeSet::new();
    let least = spec.min_nodes.unwrap_or(spec.gang.nodes).min(spec.gang.nodes);
    // An elastic job is as small as its slices let it be.
    let slice =
        spec.placement.slices.iter().find(|s| s.strength == tessera_model::Strength::Required);
    let nodes = slice.map_or(least, |s| least.next_multiple_of(s.nodes.max(1)));
    let terms =
        Terms { avoid: &avoid, former: &[], nodes: nodes.min(spec.gang.nodes), preferred: false };
    let request = Request::under(space, spec, &terms, true);
    match place(&space.ideal(), &request, &NodeSet::new(space.len()), None) {
        Ok(_) | Err(NoFit::NotFound { .. }) => Ok(()),
        Err(no) => Err(proof::never(&no, spec)),
    }
}

impl Placed {
    /// What it takes, place by place.
    pub fn taken<'a>(&'a self, spec: &'a JobSpec) -> impl Iterator<Item = Taken> + 'a {
        let further = spec.roles.iter().map(|r| (&r.gang, r.gang.nodes as usize));
        let roles = std::iter::once((&spec.gang, self.nodes as usize)).chain(further);
        let gangs = roles.flat_map(|(gang, nodes)| std::iter::repeat_n(gang, nodes));
        let gangs = gangs.chain(std::iter::repeat(&spec.gang));
        self.places.iter().zip(gangs).map(|(chosen, gang): (&Chosen, &Gang)| Taken {
            node: chosen.node,
            gpus: chosen.gpus,
            milli: if gang.is_share() { gang.gpu_milli } else { tessera_model::WHOLE_GPU },
            cpus: gang.cpus_per_node(),
            memory: gang.memory_per_node.0,
        })
    }
}
