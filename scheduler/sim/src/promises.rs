//! What must hold, whatever happens. Checked at each start of a process, at each commit, after each
//! crash, and at the end; never from what the scheduler says of itself where the processes can be
//! asked.

use std::collections::{BTreeMap, BTreeSet};

use tessera_core::event::Event;
use tessera_core::job_table::Job;
use tessera_core::ledger::timeline::Timeline;
use tessera_model::usage::{Interval, UsageClass};
use tessera_model::{
    AttemptId, Gang, GpuId, JobId, JobState, NodeId, NodeState, PARTS_PER_GPU, Strength, TaskEnd,
    UnixMillis, WaitReason,
};

use crate::world::World;

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Truth {
    Ended(TaskEnd),
    /// Its node went down under it.
    Vanished,
}

#[derive(Debug, Default)]
pub(crate) struct Promises {
    broken: Vec<String>,
    pub steps: u64,
    pub scheduler_crashes: u64,
    pub orders_refused: u64,
    pub settled: bool,
    pub truth: BTreeMap<(AttemptId, u32), Truth>,
    /// GPUs on which something of nobody's runs.
    pub squatted: BTreeSet<GpuId>,
    /// When each node went down.
    pub downs: Vec<(NodeId, UnixMillis)>,
    /// What a customer was told: the job of each key.
    pub acknowledged: BTreeMap<String, JobId>,
    pub cancelled: BTreeSet<JobId>,
    states: BTreeMap<JobId, JobState>,
}

/// A run in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Things that happened: messages, timers, faults.
    pub steps: u64,
    /// Events in the journal.
    pub events: u64,
    pub attempts: u64,
    pub scheduler_crashes: u64,
    /// Orders of an earlier reign that agents turned down.
    pub orders_refused: u64,
    /// Jobs by state, in words.
    pub jobs: BTreeMap<&'static str, u64>,
}

impl Promises {
    pub fn broken(&mut self, now: u64, what: String) {
        // The first few tell the story; the rest only follow from them.
        if self.broken.len() < 20 {
            self.broken.push(format!("{:>9.3} s: {what}", now as f64 / 1_000.0));
        }
    }
}

impl World {
    /// P2, P3, P7: asked of the processes at the moment one starts.
    pub(crate) fn check_start(
        &mut self,
        node: usize,
        attempt: AttemptId,
        rank: u32,
        gpus: &[GpuId],
    ) {
        let mut found = Vec::new();
        for machine in &self.machines {
            for ((other, other_rank), process) in &machine.processes {
                if other.job == attempt.job && (*other != attempt || *other_rank == rank) {
                    found.push(format!(
                        "P2: rank {rank} of attempt {attempt} starts while rank {other_rank} of {other} runs on {}",
                        machine.id
                    ));
                }
                if *other != attempt && process.gpus.iter().any(|g| gpus.contains(g)) {
                    found.push(format!("P3: {attempt} starts on a GPU that {other} uses"));
                }
            }
        }
        for gpu in gpus.iter().filter(|g| self.promises.squatted.contains(*g)) {
            found.push(format!("P4: {attempt} starts on {gpu}, which something else uses"));
        }
        if self.promises.truth.contains_key(&(attempt, rank)) {
            found.push(format!("P2: rank {rank} of attempt {attempt} starts a second time"));
        }
        let job = self.scheduler.cluster.jobs.get(attempt.job);
        if job.is_none_or(|j| j.state.is_terminal()) {
            let node = &self.machines[node].id;
            found.push(format!("P7: {attempt} starts on {node} although its job has ended"));
        }
        found.into_iter().for_each(|what| self.promises.broken(self.now, what));
    }

    /// P2, P4: what is written off is dead, and what is given out is empty.
    pub(crate) fn check_event(&mut self, event: &Event) {
        if let Event::PlaceWrittenOff { attempt, node, why, .. } = event {
            let machine = &self.machines[self.index[node]];
            if machine.processes.keys().any(|(a, _)| a == attempt) {
                let what =
                    format!("P2: {attempt} is written off ({why:?}) while it runs on {node}");
                self.promises.broken(self.now, what);
            }
        }
        let Event::LeaseGranted { lease, .. } = event else { return };
        let mut found = Vec::new();
        for place in &lease.places {
            let machine = &self.machines[self.index[&place.node]];
            for gpu in &place.gpus {
                let user = machine.processes.iter().find(|(_, p)| p.gpus.contains(gpu));
                if let Some(((user, _), _)) = user {
                    found.push(format!(
                        "P4: {gpu} is given to {} while {user} uses it",
                        lease.attempt
                    ));
                }
            }
        }
        found.into_iter().for_each(|what| self.promises.broken(self.now, what));
    }

    /// P7: only along the published graph.
    pub(crate) fn check_transitions(&mut self, jobs: BTreeSet<JobId>) {
        for id in jobs {
            let Some(job) = self.scheduler.cluster.jobs.get(id) else { continue };
            let next = job.state;
            let before = self.promises.states.insert(id, next);
            if before.is_some_and(|b| b != next && !b.may_become(next)) {
                let before = before.map_or("", JobState::word);
                let what = format!("P7: job {id} went from {before} to {}", next.word());
                self.promises.broken(self.now, what);
            }
        }
    }

    /// P1: asked after each restart and at the end.
    pub(crate) fn check_acknowledged(&mut self) {
        let missing: Vec<String> = self
            .promises
            .acknowledged
            .iter()
            .filter(|(_, id)| self.scheduler.cluster.jobs.get(**id).is_none())
            .map(|(key, id)| format!("P1: job {id} of the key {key} was acknowledged and is gone"))
            .collect();
        missing.into_iter().for_each(|what| self.promises.broken(self.now, what));
    }
}

pub(crate) fn report(world: &World) -> Report {
    let mut jobs = BTreeMap::new();
    for job in world.cluster().jobs.jobs.values() {
        *jobs.entry(job.state.word()).or_default() += 1;
    }
    let granted = |e: &&tessera_core::Stamped| matches!(e.event, Event::LeaseGranted { .. });
    Report {
        steps: world.promises.steps,
        events: world.journal().len() as u64,
        attempts: world.journal().iter().filter(granted).count() as u64,
        scheduler_crashes: world.promises.scheduler_crashes,
        orders_refused: world.promises.orders_refused,
        jobs,
    }
}

pub(crate) fn verdict(world: &World) -> String {
    let mut lines = world.promises.broken.clone();
    let grants = grants(world);
    for job in world.cluster().jobs.jobs.values() {
        if let Some(what) = false_outcome(world, job, &grants) {
            lines.push(format!("P6: job {} is {}: {what}", job.id, job.state.word()));
        }
        if let Some(what) = stuck(world, job).filter(|_| world.promises.settled) {
            lines.push(format!("P8: job {} is {}: {what}", job.id, job.state.word()));
        }
    }
    lines.extend(accounts(world));
    lines.join("\n")
}

fn grants(world: &World) -> BTreeMap<AttemptId, UnixMillis> {
    let grant = |s: &tessera_core::Stamped| match &s.event {
        Event::LeaseGranted { lease, .. } => Some((lease.attempt, s.at)),
        _ => None,
    };
    world.journal().iter().filter_map(grant).collect()
}

/// P6: what is wrong with how a job is said to have ended.
fn false_outcome(
    world: &World,
    job: &Job,
    grants: &BTreeMap<AttemptId, UnixMillis>,
) -> Option<String> {
    let ends: Vec<Option<&Truth>> = match job.attempt {
        Some(a) => (0..job.spec.gang.ranks()).map(|r| world.promises.truth.get(&(a, r))).collect(),
        None => Vec::new(),
    };
    let code_of = |t: &Option<&Truth>| match t {
        Some(Truth::Ended(end)) => end.exit_code(),
        _ => None,
    };
    let some_rank_has = |code: i32| ends.iter().any(|t| code_of(t) == Some(code));
    match (job.state, job.exit_code) {
        (JobState::Succeeded, code) => {
            let well = !ends.is_empty() && ends.iter().all(|t| code_of(t) == Some(0));
            (!well || code != Some(0)).then(|| format!("code {code:?}, but its ranks: {ends:?}"))
        }
        (JobState::Cancelled, _) if !world.promises.cancelled.contains(&job.id) => {
            Some("nobody asked for that".to_owned())
        }
        // Told to stop, and it left with 0: that is its code, and no success.
        (JobState::Failed | JobState::Cancelled, Some(0)) => {
            let told = job.state == JobState::Cancelled || job.outcome.contains("time limit");
            let well = ends.iter().all(|t| code_of(t) == Some(0));
            (!told || !well).then(|| format!("with code 0, but its ranks: {ends:?}"))
        }
        (JobState::Failed | JobState::Cancelled, Some(code)) => {
            (!some_rank_has(code)).then(|| format!("with code {code}, but its ranks: {ends:?}"))
        }
        (JobState::Failed, None) => {
            let said = ["given up", "time limit"].iter().any(|w| job.outcome.contains(w));
            (!said).then(|| format!("without a code: {}", job.outcome))
        }
        (JobState::Lost, code) => {
            let granted = job.attempt.and_then(|a| grants.get(&a).copied()).unwrap_or_default();
            let went_down = world
                .promises
                .downs
                .iter()
                .any(|(node, at)| *at >= granted && job.nodes.contains(node));
            let lapsed = ends.iter().any(|t| matches!(t, Some(Truth::Ended(TaskEnd::Lapsed))));
            (code.is_some() || !(went_down || lapsed))
                .then(|| format!("{}, but nothing was lost: {ends:?}", job.outcome))
        }
        _ => None,
    }
}

/// P8: why a job should not be as it is, now that everything has healed.
fn stuck(world: &World, job: &Job) -> Option<String> {
    let cluster = world.cluster();
    match job.state {
        state if state.is_terminal() => None,
        JobState::Pending => {
            if job.cancelled_by.is_some() {
                return Some("it was cancelled".to_owned());
            }
            let room = room(world, &job.spec.gang, required(job), false);
            match world.scheduler.waits.get(&job.id) {
                None => Some("it has no reason".to_owned()),
                Some(_) if room >= job.spec.gang.nodes => {
                    Some(format!("{room} nodes are free for it, and avoided: {:?}", job.avoid))
                }
                Some(WaitReason::Infeasible { proof }) => {
                    let room = self::room(world, &job.spec.gang, required(job), true);
                    (room >= job.spec.gang.nodes).then(|| format!("not infeasible: {proof}"))
                }
                Some(WaitReason::BackingOff { until }) if *until <= world.now() => {
                    Some(format!("backed off until {until}, which has passed"))
                }
                Some(WaitReason::HeldForReservation { job, .. }) => {
                    let held_for = cluster.jobs.get(*job).map(|j| j.state);
                    (held_for != Some(JobState::Pending)).then(|| format!("held for job {job}"))
                }
                Some(_) => None,
            }
        }
        _ => {
            // It may only hang on a node that never came back.
            let attempt = job.attempt.and_then(|a| cluster.jobs.attempts.get(&a));
            let on_gone = attempt.is_some_and(|a| {
                a.lease
                    .places
                    .iter()
                    .any(|p| a.holds(&p.node) && world.machines[world.index[&p.node]].gone)
            });
            (!on_gone).then(|| "and nothing is in its way".to_owned())
        }
    }
}

fn required(job: &Job) -> Option<&str> {
    // In these worlds a job has one required level at most.
    job.spec
        .placement
        .within
        .iter()
        .find(|w| w.strength == Strength::Required)
        .map(|w| w.level.as_str())
}

/// A third opinion on what fits: fitting nodes in the best domain, counted from the cluster.
/// `ideal`: with every node up and empty.
fn room(world: &World, gang: &Gang, level: Option<&str>, ideal: bool) -> u32 {
    let cluster = world.cluster();
    let mut domains: BTreeMap<Option<Vec<String>>, u32> = BTreeMap::new();
    for node in cluster.nodes.values() {
        let model = gang.gpu_model.as_deref().unwrap_or_default().to_lowercase();
        let usable = node.inventory.gpus.iter().filter(|g| {
            g.model.to_lowercase().contains(&model)
                && (ideal || (node.condition(&g.id).is_healthy() && !node.held.contains_key(&g.id)))
        });
        let usable = usable.count();
        let (cpus, memory) = if ideal { (0, 0) } else { (node.cpus_held, node.memory_held.0) };
        let up = node.state == NodeState::Up && node.cordon.is_none();
        let fits = (ideal || up)
            && usable >= gang.gpus_per_node as usize
            && node.inventory.cpus >= cpus + gang.cpus_per_node()
            && node.inventory.memory.0 >= memory + gang.memory_per_node.0;
        if !fits {
            continue;
        }
        let domain = match level {
            None => None,
            Some(level) => {
                let (fabric, depth) =
                    cluster.topology.level(level).map_or((0, 0), |(f, d)| (f, d + 1));
                match cluster.topology.fabrics[fabric].nodes.get(node.id()) {
                    Some(path) => Some(path[..depth].to_vec()),
                    None => continue,
                }
            }
        };
        *domains.entry(domain).or_default() += 1;
    }
    domains.into_values().max().unwrap_or(0)
}

/// P9: intervals tile each GPU's life, and what is charged is what was held.
fn accounts(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    let now = world.now();
    let timeline: &Timeline = &world.cluster().timeline;
    let open: Vec<Interval> = timeline.open_until(now).collect();
    let absent = absent(world);
    let mut charged: BTreeMap<AttemptId, u64> = BTreeMap::new();
    let mut by_gpu: BTreeMap<&GpuId, Vec<&Interval>> = BTreeMap::new();
    for interval in world.scheduler.closed.iter().chain(&open) {
        by_gpu.entry(&interval.gpu).or_default().push(interval);
        if let UsageClass::Allocated { attempt, .. } = interval.class {
            let whole = u64::from(PARTS_PER_GPU);
            let held = interval.end.since(interval.start).0 * u64::from(interval.parts);
            *charged.entry(attempt).or_default() += held * 1_000 / whole;
        }
    }
    for (gpu, intervals) in by_gpu {
        // Where parts begin and end, in order; between two of these the sum stays as it is.
        let mut steps: BTreeMap<UnixMillis, i64> = BTreeMap::new();
        for interval in intervals {
            if interval.start >= interval.end {
                lines.push(format!("P9: {gpu} has an empty interval at {}", interval.start));
            }
            *steps.entry(interval.start).or_default() += i64::from(interval.parts);
            *steps.entry(interval.end).or_default() -= i64::from(interval.parts);
        }
        let mut sum = 0;
        let instants: Vec<UnixMillis> = steps.keys().copied().collect();
        for (at, step) in &steps {
            sum += step;
            let next = instants.iter().find(|t| *t > at);
            // A life may end and another begin only while the node does not list the GPU.
            let away = |until: UnixMillis| {
                let spans = absent.get(gpu).into_iter().flatten();
                spans.into_iter().any(|(a, b)| *a <= *at && until <= *b)
            };
            let whole = sum == i64::from(PARTS_PER_GPU);
            let between_lives = sum == 0 && next.is_none_or(|next| away(*next));
            if !whole && !between_lives {
                lines.push(format!("P9: {sum} parts of {gpu} are accounted from {at} on"));
            }
        }
    }
    let held = held_by_journal(world);
    for (attempt, held) in &held {
        let charged = charged.remove(attempt).unwrap_or(0);
        if charged != *held {
            lines.push(format!(
                "P9: attempt {attempt} is charged {charged} and held {held} GPU-microseconds"
            ));
        }
    }
    lines.extend(charged.keys().map(|a| format!("P9: attempt {a} is charged and held nothing")));
    lines
}

/// When each GPU was missing in its node's inventory.
fn absent(world: &World) -> BTreeMap<GpuId, Vec<(UnixMillis, UnixMillis)>> {
    let mut absent: BTreeMap<GpuId, Vec<(UnixMillis, UnixMillis)>> = BTreeMap::new();
    let mut seen: BTreeMap<NodeId, BTreeMap<GpuId, Option<UnixMillis>>> = BTreeMap::new();
    for stamped in world.journal() {
        let (Event::NodeUp { inventory, .. } | Event::InventoryChanged { inventory }) =
            &stamped.event
        else {
            continue;
        };
        let gpus = seen.entry(inventory.node.clone()).or_default();
        for gpu in &inventory.gpus {
            if let Some(Some(since)) = gpus.insert(gpu.id.clone(), None) {
                absent.entry(gpu.id.clone()).or_default().push((since, stamped.at));
            }
        }
        for (_, since) in
            gpus.iter_mut().filter(|(g, _)| inventory.gpus.iter().all(|i| i.id != **g))
        {
            since.get_or_insert(stamped.at);
        }
    }
    absent
}

/// GPU-milliseconds of each lease, counted from the journal alone.
fn held_by_journal(world: &World) -> BTreeMap<AttemptId, u64> {
    let mut held: BTreeMap<AttemptId, u64> = BTreeMap::new();
    // Since when it is charged, `None` while its node is lost; and thousandths of GPUs.
    type Open = (Option<UnixMillis>, u64);
    let mut open: BTreeMap<(AttemptId, NodeId), Open> = BTreeMap::new();
    let mut give_back = |open: Option<Open>, attempt: AttemptId, until: UnixMillis| {
        if let Some((since, milli)) = open {
            let length = since.map_or(0, |since| until.since(since).0);
            *held.entry(attempt).or_default() += length * milli;
        }
    };
    for stamped in world.journal() {
        match &stamped.event {
            Event::LeaseGranted { lease, .. } => {
                for place in &lease.places {
                    let key = (lease.attempt, place.node.clone());
                    let milli = place.gpus.len() as u64 * u64::from(place.gpu_milli);
                    open.insert(key, (Some(stamped.at), milli));
                }
            }
            Event::NodeLost { node, last_seen } => {
                for ((attempt, _), held) in open.iter_mut().filter(|((_, n), _)| n == node) {
                    give_back(Some(*held), *attempt, (*last_seen).min(stamped.at));
                    held.0 = None;
                }
            }
            Event::NodeUp { inventory, .. } => {
                let here = open.iter_mut().filter(|((_, n), _)| *n == inventory.node);
                here.for_each(|(_, held)| _ = held.0.get_or_insert(stamped.at));
            }
            Event::PlaceReleased { attempt, node, .. } => {
                give_back(open.remove(&(*attempt, node.clone())), *attempt, stamped.at);
            }
            Event::PlaceWrittenOff { attempt, node, charged_until, .. } => {
                let until = (*charged_until).min(stamped.at);
                give_back(open.remove(&(*attempt, node.clone())), *attempt, until);
            }
            _ => {}
        }
    }
    for ((attempt, _), since) in open {
        give_back(Some(since), attempt, world.now());
    }
    held
}
