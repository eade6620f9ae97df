//! Tiny clusters, jobs that ask for everything placement knows, and the truth about them by trying
//! every way: a second, slow opinion that shares no code with the search.
//!
//! A cluster is drawn from a seed. Nodes have two GPUs and stand in two levels of a network, in a
//! power row and in an NVLink domain that pay no heed to each other, or in none of them.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};

use tessera_core::placement::space::{GpuView, Kind, Sketch};
use tessera_core::placement::{NodeSet, Request, Space, Taken, Terms};
use tessera_model::topology::Fabric;
use tessera_model::{
    AtMost, Bytes, DomainMark, Gang, JobRole, JobSpec, LabelOp, LabelRule, NodeId, Placement,
    Program, ProjectId, Slice, Spread, Strength, TeamId, Topology, UserId, WHOLE_GPU, Within,
};

/// Numbers from a seed.
pub struct Draw(pub u64);

impl Draw {
    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn of<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    /// Block and leaf.
    pub path: Option<(u64, u64)>,
    pub row: Option<u64>,
    pub cell: Option<u64>,
    /// GPUs that somebody holds, as bits.
    pub busy: u64,
    pub takes_jobs: bool,
    pub closed: bool,
    pub fast: bool,
}

#[derive(Debug, Clone)]
pub struct World {
    pub nodes: Vec<Node>,
    pub sick_leaf: Option<(u64, u64)>,
}

/// How large and how odd worlds are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub blocks: u64,
    pub leaves: u64,
    pub nodes: u64,
    /// Percent of nodes that cannot be used at all, beside those that are half busy.
    pub gone: u64,
}

impl World {
    pub fn draw(draw: &mut Draw, size: Size) -> Self {
        let (blocks, leaves) = (1 + draw.below(size.blocks), 1 + draw.below(size.leaves));
        let mut nodes = Vec::new();
        let odd = draw.chance(30);
        // NVLink domains inside leaves on some clusters, anywhere on others.
        let inside = draw.chance(50);
        for block in 0..blocks {
            for leaf in 0..leaves {
                for i in 0..1 + draw.below(size.nodes) {
                    let gone = draw.chance(size.gone);
                    let unmapped = odd && draw.chance(15);
                    let cell = if inside { block * 100 + leaf * 10 + i / 2 } else { draw.below(4) };
                    nodes.push(Node {
                        name: String::new(),
                        path: (!unmapped).then_some((block, leaf)),
                        row: (!(odd && draw.chance(10))).then(|| draw.below(3)),
                        cell: (!(odd && draw.chance(10))).then_some(cell),
                        busy: if gone { 3 } else { draw.of(&[0, 0, 0, 0, 1, 2]) },
                        takes_jobs: !draw.chance(5),
                        closed: draw.chance(5),
                        fast: draw.chance(70),
                    });
                }
            }
        }
        let mut names: Vec<usize> = (0..nodes.len()).collect();
        draw.shuffle(&mut names);
        for (node, name) in nodes.iter_mut().zip(names) {
            node.name = format!("n{name:02}");
        }
        let sick = draw.chance(10).then(|| (draw.below(blocks), draw.below(leaves)));
        Self { nodes, sick_leaf: sick }
    }

    pub fn kind() -> Kind {
        let gpu = |rail| GpuView {
            model: "h100".to_owned(),
            numa: Some(0),
            nvlink_group: Some(0),
            rail: Some(rail),
            mig: false,
        };
        Kind { gpus: vec![gpu(0), gpu(1)], cpus: 8, memory: 1 << 30 }
    }

    pub fn map(&self) -> Topology {
        let fabric = |name: &str, levels: &[&str], of: &dyn Fn(&Node) -> Option<Vec<String>>| {
            let path = |n: &Node| Some((id(&n.name), of(n)?));
            Fabric {
                name: name.to_owned(),
                levels: levels.iter().map(|l| (*l).to_owned()).collect(),
                nodes: self.nodes.iter().filter_map(path).collect(),
                switches: BTreeMap::new(),
            }
        };
        let net = |n: &Node| n.path.map(|(b, l)| vec![format!("b{b}"), format!("b{b}l{l}")]);
        let row = |n: &Node| n.row.map(|r| vec![format!("r{r}")]);
        let cell = |n: &Node| n.cell.map(|r| vec![format!("v{r}")]);
        Topology {
            fabrics: vec![
                fabric("net", &["block", "leaf"], &net),
                fabric("power", &["row"], &row),
                fabric("cell", &["cell"], &cell),
            ],
        }
    }

    /// The space, its nodes handed over in the order in which they stand here.
    pub fn space(&self) -> Space {
        let sketch = |n: &Node| {
            let fast = n.fast.then(|| ("disk".to_owned(), "fast".to_owned()));
            Sketch { id: id(&n.name), kind: Self::kind(), labels: fast.into_iter().collect() }
        };
        let mut marks = BTreeMap::new();
        if let Some((b, l)) = self.sick_leaf {
            let (level, domain) = ("leaf".to_owned(), format!("b{b}l{l}"));
            let (by, reason) = (UserId::parse("sre").unwrap(), "flaps".to_owned());
            let mark = DomainMark { level, domain, health: 0, by, reason, until: None };
            marks.insert(format!("leaf/b{b}l{l}"), mark);
        }
        let sketches = self.nodes.iter().map(sketch).collect();
        let mut space = Space::sketch(sketches, &self.map(), &marks);
        for node in &self.nodes {
            let index = space.layout.index(&id(&node.name)).unwrap();
            space.takes_jobs[index as usize] = node.takes_jobs;
            let (gpus, milli) = (node.busy, WHOLE_GPU);
            space.take(&Taken { node: index, gpus, milli, cpus: 0, memory: 0 });
        }
        space
    }

    pub fn closed(&self, space: &Space) -> NodeSet {
        let mut closed = NodeSet::new(space.len());
        for node in self.nodes.iter().filter(|n| n.closed) {
            closed.insert(space.layout.index(&id(&node.name)).unwrap());
        }
        closed
    }

    pub fn request(&self, space: &Space, spec: &JobSpec) -> Request {
        let avoid = BTreeSet::new();
        Request::new(space, spec, &terms(spec, &avoid, &[]))
    }

    pub fn node(&self, id: &NodeId) -> &Node {
        self.nodes.iter().find(|n| n.name == id.as_str()).unwrap()
    }
}

pub fn terms<'a>(spec: &JobSpec, avoid: &'a BTreeSet<NodeId>, former: &'a [NodeId]) -> Terms<'a> {
    Terms { avoid, former, nodes: spec.gang.nodes, preferred: true }
}

pub fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub fn gang(nodes: u32, gpus: u32) -> Gang {
    Gang {
        nodes,
        gpus_per_node: gpus,
        tasks_per_node: 1,
        cpus_per_task: 1,
        memory_per_node: Bytes(0),
        gpu_model: None,
        gpu_milli: WHOLE_GPU,
    }
}

pub fn job(gang: Gang, placement: Placement) -> JobSpec {
    JobSpec {
        name: "t".to_owned(),
        team: TeamId::parse("ml").unwrap(),
        project: ProjectId::parse("p").unwrap(),
        user: UserId::parse("ann").unwrap(),
        tags: BTreeMap::new(),
        tier: Default::default(),
        gang,
        roles: Vec::new(),
        placement,
        priority: 0,
        time_limit: None,
        requeue: false,
        begin: None,
        after: Vec::new(),
        singleton: false,
        hold: false,
        min_nodes: None,
        spares: 0,
        checkpoint: None,
        reservation: None,
        program: Program {
            argv: vec!["true".to_owned()],
            script: None,
            env: BTreeMap::new(),
            working_dir: None,
        },
        unix: None,
    }
}

/// What a question may be about.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    pub roles: bool,
    pub spares: bool,
    /// Levels of the other fabrics as well.
    pub elsewhere: bool,
    pub nodes: u64,
}

pub fn question(draw: &mut Draw, world: &World, wants: Wants) -> JobSpec {
    let nodes = 1 + draw.below(wants.nodes) as u32;
    let mut spec = job(gang(nodes, draw.of(&[1, 2, 2])), Placement::default());
    spec.placement = placement(draw, nodes, wants.elsewhere);
    if draw.chance(10) {
        let some = world.nodes.iter().filter(|_| draw.chance(70)).map(|n| id(&n.name)).collect();
        spec.placement.only = some;
    }
    if draw.chance(20) {
        let some = world.nodes.iter().filter(|_| draw.chance(15)).map(|n| id(&n.name)).collect();
        spec.placement.exclude = some;
    }
    if wants.roles {
        let further = 1 + draw.below(3) as u32;
        let placement = placement(draw, further, wants.elsewhere);
        let (name, gang) = ("ps".to_owned(), gang(further, draw.of(&[0, 1, 2])));
        spec.roles = vec![JobRole { name, gang, placement }];
        spec.placement.slices.retain(|s| spec.gang.nodes.is_multiple_of(s.nodes));
    }
    if wants.spares && draw.chance(40) {
        spec.spares = 1 + draw.below(2) as u32;
    }
    spec
}

fn placement(draw: &mut Draw, nodes: u32, elsewhere: bool) -> Placement {
    let mut asked = Placement::default();
    let level = |draw: &mut Draw| {
        let from: &[&str] =
            if elsewhere { &["block", "leaf", "row", "cell"] } else { &["block", "leaf"] };
        draw.of(from).to_owned()
    };
    let strength = Strength::Required;
    if draw.chance(30) {
        asked.within.push(Within { level: level(draw), strength });
    }
    if draw.chance(10) {
        asked.within.push(Within { level: level(draw), strength: Strength::Preferred });
    }
    let divisors: Vec<u32> = (1..=nodes).filter(|d| nodes.is_multiple_of(*d)).collect();
    if draw.chance(35) {
        let size = draw.of(&divisors);
        asked.slices.push(Slice { nodes: size, level: level(draw), strength });
        let inner: Vec<u32> = (1..=size).filter(|d| size.is_multiple_of(*d)).collect();
        if draw.chance(40) {
            asked.slices.push(Slice { nodes: draw.of(&inner), level: level(draw), strength });
        }
    }
    if draw.chance(20) {
        let domains = 1 + draw.below(3) as u32;
        asked.at_most.push(AtMost { domains, level: level(draw) });
    }
    if draw.chance(20) {
        let max_skew = 1 + draw.below(2) as u32;
        asked.spread.push(Spread { level: level(draw), max_skew });
    }
    if draw.chance(15) {
        asked.balance = Some(level(draw));
    }
    if draw.chance(10) {
        let values = vec!["fast".to_owned()];
        asked.labels.push(LabelRule { key: "disk".to_owned(), op: LabelOp::In, values });
    }
    asked
}

/// A node's domain at a level, told apart by its whole path.
pub fn domain(node: &Node, level: &str) -> Option<(u64, u64)> {
    match level {
        "block" => node.path.map(|(b, _)| (b, 0)),
        "leaf" => node.path,
        "row" => node.row.map(|r| (r, 0)),
        "cell" => node.cell.map(|r| (r, 0)),
        other => panic!("no level {other}"),
    }
}

/// Whether one node may take part in a role, from the world alone.
pub fn fits(world: &World, spec: &JobSpec, role: usize, node: &Node) -> bool {
    let (gang, own) = match role {
        0 => (&spec.gang, None),
        r => (&spec.roles[r - 1].gang, Some(&spec.roles[r - 1].placement)),
    };
    let several = spec.nodes() > 1;
    let sick = several && world.sick_leaf.is_some() && node.path == world.sick_leaf;
    let allowed = |p: &Placement, slices: bool| {
        let id = id(&node.name);
        let labels: BTreeMap<String, String> =
            node.fast.then(|| ("disk".to_owned(), "fast".to_owned())).into_iter().collect();
        // The job's slices are the first role's alone.
        let sliced = p.slices.iter().filter(|_| slices).map(|s| s.level.as_str());
        let plain = Placement { slices: Vec::new(), ..p.clone() };
        (p.only.is_empty() || p.only.contains(&id))
            && !p.exclude.contains(&id)
            && p.labels.iter().all(|r| r.holds(&labels))
            && plain.levels().chain(sliced).all(|l| domain(node, l).is_some())
    };
    node.takes_jobs
        && !node.closed
        && !sick
        && (!node.busy & 3).count_ones() >= gang.gpus_per_node
        && allowed(&spec.placement, role == 0)
        && own.is_none_or(|p| allowed(p, true))
}

type Domains = BTreeMap<Option<(u64, u64)>, u32>;

fn counts(nodes: &[&Node], level: &str) -> Domains {
    let mut counts = BTreeMap::new();
    nodes.iter().for_each(|n| *counts.entry(domain(n, level)).or_insert(0) += 1);
    counts
}

/// What is wrong with these nodes for one scope: the job as a whole, or one role.
fn scope(
    world: &World,
    spec: &JobSpec,
    role: Option<usize>,
    nodes: &[&Node],
) -> Result<(), String> {
    let asked = match role {
        None => &spec.placement,
        Some(r) => &spec.roles[r - 1].placement,
    };
    for within in &asked.within {
        if counts(nodes, &within.level).len() > 1 {
            return Err(format!("not within one {}", within.level));
        }
    }
    for at_most in &asked.at_most {
        if counts(nodes, &at_most.level).len() > at_most.domains as usize {
            return Err(format!("too many {}", at_most.level));
        }
    }
    if let Some(level) = &asked.balance {
        let counts = counts(nodes, level);
        if counts.values().min() != counts.values().max() {
            return Err(format!("not balanced over {level}"));
        }
    }
    for spread in &asked.spread {
        let required = || {
            let own = role.map_or(&[][..], |r| &spec.roles[r - 1].placement.within);
            spec.placement.within.iter().chain(own)
        };
        let roles: Vec<usize> = role.map_or((0..=spec.roles.len()).collect(), |r| vec![r]);
        let reachable = world.nodes.iter().filter(|n| {
            roles.iter().any(|r| fits(world, spec, *r, n))
                && required().all(|w| domain(n, &w.level) == domain(nodes[0], &w.level))
        });
        let used = counts(nodes, &spread.level);
        let most = used.values().max().copied().unwrap_or(0);
        for node in reachable {
            let here = used.get(&domain(node, &spread.level)).copied().unwrap_or(0);
            if here + spread.max_skew < most {
                return Err(format!("uneven over {}", spread.level));
            }
        }
    }
    Ok(())
}

/// Whether nodes of one role can be put into an order in which slices hold.
fn can_be_sliced(slices: &[Slice], nodes: &[&Node]) -> bool {
    (0..slices.len()).all(|j| {
        let mut counts: BTreeMap<Vec<Option<(u64, u64)>>, u32> = BTreeMap::new();
        for node in nodes {
            let key = slices[..=j].iter().map(|s| domain(node, &s.level)).collect();
            *counts.entry(key).or_insert(0) += 1;
        }
        counts.values().all(|c| c % slices[j].nodes == 0)
    })
}

fn slices_of(spec: &JobSpec, role: usize) -> &[Slice] {
    match role {
        0 => &spec.placement.slices,
        r => &spec.roles[r - 1].placement.slices,
    }
}

/// What is wrong with nodes in rank order, spares last.
pub fn judge(world: &World, spec: &JobSpec, places: &[NodeId]) -> Result<(), String> {
    let want = spec.nodes() + spec.spares;
    if places.len() != want as usize {
        return Err(format!("{} places instead of {want}", places.len()));
    }
    if places.iter().collect::<BTreeSet<_>>().len() != places.len() {
        return Err("a node twice".to_owned());
    }
    let nodes: Vec<&Node> = places.iter().map(|p| world.node(p)).collect();
    let ranks = &nodes[..spec.nodes() as usize];
    let mut rest = ranks;
    for role in 0..=spec.roles.len() {
        let count = if role == 0 { spec.gang.nodes } else { spec.roles[role - 1].gang.nodes };
        let (own, further) = rest.split_at(count as usize);
        rest = further;
        if let Some(bad) = own.iter().find(|n| !fits(world, spec, role, n)) {
            return Err(format!("{} does not fit role {role}", bad.name));
        }
        for slice in slices_of(spec, role) {
            for chunk in own.chunks(slice.nodes as usize) {
                if counts(chunk, &slice.level).len() > 1 {
                    return Err(format!("a slice is torn over {}", slice.level));
                }
            }
        }
        if role > 0 {
            scope(world, spec, Some(role), own)?;
        }
    }
    scope(world, spec, None, ranks)?;
    for spare in &nodes[spec.nodes() as usize..] {
        if !fits(world, spec, 0, spare) {
            return Err(format!("spare {} does not fit", spare.name));
        }
        for within in &spec.placement.within {
            if domain(spare, &within.level) != domain(ranks[0], &within.level) {
                return Err(format!("a spare is outside the {}", within.level));
            }
        }
    }
    Ok(())
}

/// Blocks and leaves used; a node outside the map counts as one of its own.
pub fn span(nodes: &[&Node]) -> Vec<u32> {
    let used = |level: &str| {
        let counts = counts(nodes, level);
        let outside = counts.get(&None).copied().unwrap_or(0);
        counts.keys().flatten().count() as u32 + outside
    };
    vec![used("block"), used("leaf")]
}

/// The least span there is, by trying every choice of nodes that could differ; `None`: no way.
pub fn truth(world: &World, spec: &JobSpec) -> Option<Vec<u32>> {
    let roles = 1 + spec.roles.len();
    let mut cells: BTreeMap<_, Vec<&Node>> = BTreeMap::new();
    for node in &world.nodes {
        let fit: Vec<bool> = (0..roles).map(|r| fits(world, spec, r, node)).collect();
        if fit.contains(&true) {
            let alone = node.path.is_none().then_some(&node.name);
            let place = (node.path, alone, node.row, node.cell, fit);
            cells.entry(place).or_default().push(node);
        }
    }
    let cells: Vec<(Vec<bool>, Vec<&Node>)> =
        cells.into_iter().map(|((.., fit), nodes)| (fit, nodes)).collect();
    let mut oracle = Oracle { world, spec, cells: &cells, best: None };
    let mut used = vec![0; cells.len()];
    oracle.role(0, &mut used, &mut Vec::new());
    oracle.best
}

struct Oracle<'a> {
    world: &'a World,
    spec: &'a JobSpec,
    cells: &'a [(Vec<bool>, Vec<&'a Node>)],
    best: Option<Vec<u32>>,
}

impl<'a> Oracle<'a> {
    fn role(&mut self, role: usize, used: &mut Vec<usize>, ranks: &mut Vec<&'a Node>) {
        if role > self.spec.roles.len() {
            self.end(used, ranks);
            return;
        }
        let gang = if role == 0 { &self.spec.gang } else { &self.spec.roles[role - 1].gang };
        let want = gang.nodes as usize;
        self.cell(role, 0, want, used, &mut Vec::new(), ranks);
    }

    fn cell(
        &mut self,
        role: usize,
        at: usize,
        want: usize,
        used: &mut Vec<usize>,
        own: &mut Vec<&'a Node>,
        ranks: &mut Vec<&'a Node>,
    ) {
        if want == 0 {
            let fine = can_be_sliced(slices_of(self.spec, role), own)
                && (role == 0 || scope(self.world, self.spec, Some(role), own).is_ok());
            if fine {
                let before = ranks.len();
                ranks.extend(own.iter());
                self.role(role + 1, used, ranks);
                ranks.truncate(before);
            }
            return;
        }
        if at == self.cells.len() {
            return;
        }
        let (fit, nodes) = &self.cells[at];
        let most = if fit[role] { want.min(nodes.len() - used[at]) } else { 0 };
        for count in 0..=most {
            own.extend(&nodes[used[at]..used[at] + count]);
            used[at] += count;
            self.cell(role, at + 1, want - count, used, own, ranks);
            used[at] -= count;
            own.truncate(own.len() - count);
        }
    }

    fn end(&mut self, used: &[usize], ranks: &[&'a Node]) {
        let span = span(ranks);
        if self.best.as_ref().is_some_and(|b| *b <= span)
            || scope(self.world, self.spec, None, ranks).is_err()
        {
            return;
        }
        let beside = self.cells.iter().zip(used).filter(|((fit, _), _)| fit[0]);
        let within = &self.spec.placement.within;
        let beside: usize = beside
            .map(|((_, nodes), used)| {
                let near = |n: &&&Node| {
                    within.iter().all(|w| domain(n, &w.level) == domain(ranks[0], &w.level))
                };
                nodes[*used..].iter().filter(near).count()
            })
            .sum();
        if beside >= self.spec.spares as usize {
            self.best = Some(span);
        }
    }
}
