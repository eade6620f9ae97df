//! The cluster at one instant, as a decision sees it.
//!
//! In: the cluster and the time. Out: a [`Snapshot`]: what is free, who waits in the order of their
//! claims, who runs and until when, and which nodes are kept for whom. To take one is cheap, since
//! the cluster keeps what is dear to make; to answer from it may take long and is done elsewhere
//! than where the cluster is. Nothing here decides anything.

use std::collections::BTreeSet;
use std::sync::Arc;

use tessera_model::{
    AttemptId, JobId, JobSpec, JobState, Millis, NodeId, NodeState, Revision, Strength, Target,
    TeamId, Tier, UnixMillis,
};

use crate::cluster::Cluster;
use crate::decide::DEPTH;
use crate::habits::Habits;
use crate::job_table::{Attempt, Job, Phase};
use crate::order::STOP_GRACE;
use crate::placement::nodes::NodeSet;
use crate::placement::packing::Mix;
use crate::placement::space::Layout;
use crate::placement::{Space, Taken};
use crate::promises::{Promise, Slot};
use crate::queue::Quotas;
use crate::queue::surplus::Surplus;

/// From the end of a job's time, or of its notice, until its GPUs are back: the grace between
/// SIGTERM and SIGKILL, and a few beats.
pub const ENDS_WITHIN: Millis = Millis(STOP_GRACE.0 + 5_000);
/// From the grant of a lease until its tasks run, when nothing fails.
pub const BEGINS_WITHIN: Millis = Millis::from_secs(60);
/// The longest notice a job gets before it has to leave.
pub const NOTICE_MAX: Millis = Millis::from_secs(600);
/// Waiting jobs among which those for [`Snapshot::queue`] are chosen, where teams have quotas.
const SEEN: usize = 4 * DEPTH;
/// After so long, what should have ended is not taken to end at any moment any more.
const OVERDUE: Millis = Millis::from_secs(60);

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub now: UnixMillis,
    pub revision: Revision,
    pub space: Space,
    /// The first [`DEPTH`] waiting jobs that may start as far as gates go, and those that were
    /// promised a start: tier by tier, first those with a promise, then in the queue's order.
    pub queue: Vec<Pending>,
    /// All that wait, gates or not.
    pub waiting: usize,
    /// By attempt.
    pub running: Vec<Running>,
    /// Nodes kept for somebody.
    pub closures: Vec<Closure>,
    /// Places and dates that were promised.
    pub slots: Vec<(JobId, Arc<Slot>)>,
    pub quotas: Quotas,
    pub habits: Arc<Habits>,
    /// What single-node jobs to come are expected to ask for.
    pub mix: Arc<Mix>,
}

#[derive(Debug, Clone)]
pub struct Pending {
    pub job: JobId,
    pub spec: Arc<JobSpec>,
    pub submitted_at: UnixMillis,
    /// When nothing but a place was missing first.
    pub eligible_at: UnixMillis,
    pub not_before: Option<UnixMillis>,
    pub avoid: BTreeSet<NodeId>,
    pub former: Vec<NodeId>,
    /// Most nodes of its first role for now.
    pub shrink_to: Option<u32>,
    pub promise: Option<Promise>,
}

#[derive(Debug, Clone)]
pub struct Running {
    pub attempt: AttemptId,
    pub spec: Arc<JobSpec>,
    /// Of the first role.
    pub nodes: u32,
    /// What it has not given back, in rank order.
    pub taken: Arc<[Taken]>,
    /// When its tasks began; `None`: not yet.
    pub started: Option<UnixMillis>,
    /// When everything it holds is back at the latest; `None`: at no known time.
    pub ends_at: Option<UnixMillis>,
    /// Of one that is being stopped: from when on it is not taken to end at any moment any more.
    pub overdue_at: Option<UnixMillis>,
    /// When its work was last known to be safe.
    pub checkpoint_at: Option<UnixMillis>,
    /// GPU-milliseconds of work that are lost if it has to leave now.
    pub cost: u64,
    /// It was asked to leave, or is being stopped.
    pub leaving: bool,
    /// For which job it was asked to leave, and until when.
    pub leaves_for: Option<(JobId, UnixMillis)>,
    /// How often its job had to leave in the last day.
    pub left_lately: u32,
}

/// Nodes that are closed over a time to all but some.
#[derive(Debug, Clone)]
pub struct Closure {
    pub nodes: NodeSet,
    pub from: UnixMillis,
    /// `None`: until further notice.
    pub until: Option<UnixMillis>,
    pub open_to: OpenTo,
    /// Of the job it is open to; calendar reservations go before every tier.
    pub tier: Option<Tier>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenTo {
    /// Freed for one job.
    Job(JobId),
    /// A calendar reservation.
    Teams { name: String, teams: Vec<TeamId> },
}

impl Snapshot {
    pub fn of(cluster: &Cluster, now: UnixMillis) -> Self {
        let space = cluster.space().clone();
        let layout = &space.layout;
        let holds = cluster.holds.values().map(|hold| {
            let holder = cluster.jobs.get(hold.job);
            let limit = holder.and_then(|j| j.spec.time_limit);
            Closure {
                tier: holder.map(|j| j.spec.tier),
                nodes: nodes_of(layout, hold.nodes.iter()),
                from: now,
                // Once it has started there, it stays for as long as it may.
                until: limit.map(|l| hold.until.plus(occupies(l))),
                open_to: OpenTo::Job(hold.job),
            }
        });
        let windows = cluster.reservations.values().filter(|r| r.until > now);
        let windows = windows.map(|r| Closure {
            tier: None,
            nodes: target(layout, &r.target),
            from: r.from,
            until: Some(r.until),
            open_to: OpenTo::Teams { name: r.name.clone(), teams: r.teams.clone() },
        });
        let running: Vec<Running> =
            cluster.jobs.attempts.values().map(|a| running(cluster, a, now)).collect();
        let held = running.iter().map(|r| (&*r.spec, &*r.taken));
        let quotas = Quotas::of(cluster, &space, held);
        Self {
            now,
            revision: cluster.revision,
            queue: queue(cluster, now, &quotas),
            waiting: cluster.jobs.queue_len(),
            running,
            closures: holds.chain(windows).collect(),
            slots: cluster.promises.slots.iter().map(|(j, s)| (*j, Arc::clone(s))).collect(),
            quotas,
            habits: Arc::clone(&cluster.habits),
            mix: Arc::clone(&cluster.mix),
            space,
        }
    }
}

/// Who waits, in the order of their claims. A promise goes before the order among jobs of a tier,
/// since the order may change and a promise must not.
fn queue(cluster: &Cluster, now: UnixMillis, quotas: &Quotas) -> Vec<Pending> {
    let promised = cluster.promises.slots.keys().filter_map(|id| cluster.jobs.get(*id));
    let promised = promised
        .filter(|j| j.state == JobState::Pending && crate::queue::gate(cluster, j).is_none());
    let order = cluster.jobs.in_order(now).filter_map(|id| cluster.jobs.get(id));
    // Where not all are looked at anyway, those that their teams may not start leave room for others.
    let mut surplus = (cluster.jobs.eligible_len() > DEPTH).then(|| Surplus::new(quotas));
    let looked_at = if quotas.is_empty() { usize::MAX } else { SEEN };
    let others = order
        .take(looked_at)
        .filter(|j| !cluster.promises.slots.contains_key(&j.id))
        .filter(|j| surplus.as_mut().is_none_or(|s| s.lets_in(&j.spec)))
        .take(DEPTH);
    let mut queue: Vec<Pending> = promised.chain(others).map(Pending::of).collect();
    let claim = |p: &Pending| p.promise.filter(|_| cluster.promises.slots.contains_key(&p.job));
    // Stable: what compares equal stays in the queue's order.
    queue.sort_by_key(|p| {
        let first = claim(p).map(|promise| (promise.first, p.job));
        (p.spec.tier, first.is_none(), first)
    });
    queue
}

fn running(cluster: &Cluster, attempt: &Attempt, now: UnixMillis) -> Running {
    let id = attempt.lease.attempt;
    let stopping = attempt.settled || attempt.stop.is_some() || attempt.phase == Phase::Stopping;
    let overdue_at = attempt
        .stopping_since
        .map(|since| since.plus(ENDS_WITHIN).plus(OVERDUE))
        .filter(|_| stopping);
    let limit = attempt.deadline();
    let leaves = attempt.leave.as_ref().map(|l| l.deadline);
    let ends_at = if stopping {
        let reachable = |p: &&tessera_model::Place| {
            cluster.nodes.get(&p.node).is_some_and(|n| n.state == NodeState::Up)
        };
        let mut left = attempt.lease.places.iter().filter(|p| !attempt.released.contains(&p.node));
        // At any moment; or, on a node that says nothing, or that has not managed to stop it in all
        // this time, nobody knows when.
        let in_time = overdue_at.is_none_or(|at| now < at);
        (in_time && left.all(|p| reachable(&p))).then_some(now)
    } else {
        let end = limit.into_iter().chain(leaves).min().map(|end| end.plus(ENDS_WITHIN));
        let end = match attempt.running_since {
            Some(_) => end,
            None => end.map(|end| end.plus(BEGINS_WITHIN)),
        };
        end.filter(|end| now.since(*end) <= OVERDUE)
    };
    Running {
        attempt: id,
        spec: Arc::clone(&attempt.spec),
        nodes: attempt.lease.nodes,
        taken: cluster.taken_by(id),
        started: attempt.running_since,
        ends_at,
        overdue_at,
        checkpoint_at: attempt.checkpoint_at,
        cost: attempt.lost_if_stopped(now),
        leaving: stopping || attempt.leave.is_some(),
        leaves_for: attempt.leave.as_ref().map(|l| (l.why.by(), l.deadline)),
        left_lately: cluster.habits.left_lately(id.job, now),
    }
}

/// How long a job with this limit may hold what it gets.
pub fn occupies(limit: Millis) -> Millis {
    Millis(BEGINS_WITHIN.0.saturating_add(limit.0).saturating_add(ENDS_WITHIN.0))
}

/// So long before an instant.
pub fn before(at: UnixMillis, by: Millis) -> UnixMillis {
    UnixMillis(at.0.saturating_sub(i64::try_from(by.0).unwrap_or(i64::MAX)))
}

fn nodes_of<'a>(layout: &Layout, nodes: impl Iterator<Item = &'a NodeId>) -> NodeSet {
    let mut set = NodeSet::new(layout.len());
    nodes.filter_map(|n| layout.index(n)).for_each(|n| set.insert(n));
    set
}

fn target(layout: &Layout, target: &Target) -> NodeSet {
    match target {
        Target::Nodes { nodes } => nodes_of(layout, nodes.iter()),
        Target::Domain { level, name } => {
            let mut set = NodeSet::new(layout.len());
            if let Some((tree, depth)) = layout.level(level) {
                let level = &layout.trees[tree].levels[depth];
                let named = |d: u32| level.domains.get(d as usize).is_some_and(|d| d.name == *name);
                let inside = (0u32..).zip(&level.of).filter(|(_, d)| named(**d));
                inside.for_each(|(n, _)| set.insert(n));
            }
            set
        }
    }
}

impl Pending {
    pub fn of(job: &Job) -> Self {
        Self {
            job: job.id,
            spec: Arc::clone(&job.spec),
            submitted_at: job.submitted_at,
            eligible_at: job.eligible_at.unwrap_or(job.submitted_at),
            not_before: job.not_before,
            avoid: job.avoid.clone(),
            former: job.former.clone(),
            shrink_to: job.shrink_to,
            promise: job.promise,
        }
    }

    /// A job that nobody has submitted.
    pub fn imagined(id: JobId, spec: JobSpec, now: UnixMillis) -> Self {
        Self {
            job: id,
            spec: Arc::new(spec),
            submitted_at: now,
            eligible_at: now,
            not_before: None,
            avoid: BTreeSet::new(),
            former: Vec::new(),
            shrink_to: None,
            promise: None,
        }
    }

    /// The next start of a job that runs, should it have to leave.
    pub fn again(running: &Running, now: UnixMillis) -> Self {
        let spec = JobSpec::clone(&running.spec);
        Self { spec: Arc::clone(&running.spec), ..Self::imagined(running.attempt.job, spec, now) }
    }

    pub fn tier(&self) -> Tier {
        self.spec.tier
    }

    /// When all it holds is back, if it starts at `start`; `None`: nobody knows.
    pub fn ends(&self, start: UnixMillis) -> Option<UnixMillis> {
        self.spec.time_limit.map(|limit| start.plus(occupies(limit)))
    }

    /// Most and fewest nodes of its first role.
    pub fn sizes(&self) -> (u32, u32) {
        let asked = self.spec.gang.nodes;
        let step = self.size_step();
        let least = self.spec.min_nodes.unwrap_or(asked).clamp(1, asked).next_multiple_of(step);
        let most = self.shrink_to.map_or(asked, |n| n.clamp(1, asked) / step * step);
        (most.max(least.min(asked)), least.min(asked))
    }

    /// Its sizes differ by so many nodes: a whole slice.
    pub fn size_step(&self) -> u32 {
        self.spec.placement.slices.first().map_or(1, |s| s.nodes.max(1))
    }

    /// Until when it insists on what it prefers; `None`: it prefers nothing.
    pub fn insists_until(&self) -> Option<UnixMillis> {
        let all = std::iter::once(&self.spec.placement)
            .chain(self.spec.roles.iter().map(|r| &r.placement));
        let soft = |p: &tessera_model::Placement| {
            let preferred = |s: Strength| s == Strength::Preferred;
            p.within.iter().any(|w| preferred(w.strength))
                || p.slices.iter().any(|s| preferred(s.strength))
        };
        let mut soft = all.filter(|p| soft(p)).peekable();
        soft.peek()?;
        let patience = soft.filter_map(|p| p.patience).max().unwrap_or_default();
        Some(self.eligible_at.plus(patience))
    }
}

impl Running {
    /// How long it is told before it is stopped.
    pub fn notice(&self) -> Millis {
        self.spec.checkpoint.as_ref().map_or(Millis(0), |c| c.notice.min(NOTICE_MAX))
    }
}

impl Closure {
    /// Whether it keeps the job out, should it hold nodes over `[start, end)`.
    pub fn keeps_out(&self, job: &Pending, start: UnixMillis, end: Option<UnixMillis>) -> bool {
        !self.is_open_to(job) && self.meets(start, end)
    }

    pub fn meets(&self, start: UnixMillis, end: Option<UnixMillis>) -> bool {
        end.is_none_or(|end| self.from < end) && self.until.is_none_or(|until| until > start)
    }

    /// Whether it is the calendar reservation of that name.
    pub fn is_named(&self, wanted: &str) -> bool {
        matches!(&self.open_to, OpenTo::Teams { name, .. } if name == wanted)
    }

    pub fn is_open_to(&self, job: &Pending) -> bool {
        match &self.open_to {
            OpenTo::Job(id) => *id == job.job,
            OpenTo::Teams { teams, .. } => teams.contains(&job.spec.team),
        }
    }
}
