//! Faults as they strike, operators who repair, and customers who come all the time.

use std::collections::BTreeMap;

use tessera_core::door;
use tessera_core::event::Event;
use tessera_model::topology::Topology;
use tessera_model::{
    Bytes, CheckpointPlan, Gang, GpuCondition, JobId, JobSpec, Millis, Placement, Principal,
    Program, ProjectId, Refusal, Role, Strength, TeamId, Tier, UserId, WHOLE_GPU, Within,
};

use crate::faults::Planted;
use crate::machine::ConnId;
use crate::promises::Truth;
use crate::world::{Happening, Message, World};
use crate::writer::{Doom, Taken};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    AgentKill,
    NodeReboot,
    NodeGone,
    SchedulerCrash,
    GpuLost,
    Cordon,
    BreakConnection,
    Cut,
    Replay,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::AgentKill,
        Self::NodeReboot,
        Self::NodeGone,
        Self::SchedulerCrash,
        Self::GpuLost,
        Self::Cordon,
        Self::BreakConnection,
        Self::Cut,
        Self::Replay,
    ];
}

/// Customers: what they asked and have not been answered yet.
#[derive(Debug, Default)]
pub(crate) struct Customers {
    count: u64,
    unanswered: BTreeMap<u64, JobSpec>,
    specs: BTreeMap<String, JobSpec>,
}

/// Mean time between two visits of customers, milliseconds.
const VISITS: u64 = 25_000;

fn person(name: &str, role: Role, teams: &[&str]) -> Principal {
    let teams = teams.iter().map(|t| TeamId::parse(t).expect("a plain word is a team")).collect();
    let user = UserId::parse(name).expect("a plain word is a user");
    Principal { user, role, teams, unix: None }
}

impl World {
    /// Teams, and on most seeds a map of the network.
    pub(crate) fn found_cluster(&mut self) {
        let admin = person("root", Role::Admin, &[]);
        for team in ["nlp", "vision"] {
            let team = TeamId::parse(team).expect("a plain word is a team");
            let asked = door::create_team(&self.scheduler.cluster, &admin, team, "");
            let (_, events) = asked.expect("an admin may create a team");
            self.take_in(events);
        }
        let mut paths = BTreeMap::new();
        for i in 0..self.machines.len() {
            // One node in eight is on no map.
            let (block, leaf) = (self.rng.below(2), self.rng.below(2));
            if self.rng.below(8) > 0 {
                let path = vec![format!("b{block}"), format!("b{block}l{leaf}")];
                paths.insert(self.machines[i].id.clone(), path);
            }
        }
        if self.rng.below(4) > 0 {
            let levels = vec!["block".to_owned(), "leaf".to_owned()];
            let topology = Topology::net(levels, paths);
            self.take_in(vec![Event::TopologyLoaded { topology }]);
        }
    }

    // ---- faults

    fn mean(&self, fault: Fault) -> u64 {
        let faults = &self.faults;
        match fault {
            Fault::AgentKill => faults.agent_kill,
            Fault::NodeReboot => faults.node_reboot,
            Fault::NodeGone => faults.node_gone,
            Fault::SchedulerCrash => faults.scheduler_crash,
            Fault::GpuLost => faults.gpu_lost,
            Fault::Cordon => faults.cordon,
            Fault::BreakConnection => faults.break_connection,
            Fault::Cut => faults.cut,
            Fault::Replay => faults.replay,
        }
    }

    pub(crate) fn plan_first_faults(&mut self) {
        Fault::ALL.into_iter().for_each(|fault| self.plan_fault(fault));
    }

    fn plan_fault(&mut self, fault: Fault) {
        let mean = self.mean(fault);
        if mean > 0 {
            let wait = self.rng.between(1, 2 * mean);
            self.plan(wait, Happening::Fault(fault));
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.calm {
            return;
        }
        self.plan_fault(fault);
        let node = self.rng.below(self.machines.len() as u64) as usize;
        match fault {
            Fault::AgentKill => self.kill_agent(node),
            Fault::NodeReboot => {
                let disk_lost = self.misfortune(self.faults.disk_lost_percent);
                if self.take_down(node, disk_lost) {
                    let wait = self.rng.between(5_000, 150_000);
                    self.plan(wait, Happening::PowerOn { node });
                }
            }
            Fault::NodeGone => {
                let gone = self.machines.iter().filter(|m| m.gone).count();
                if (gone + 1) * 3 <= self.machines.len() && self.take_down(node, true) {
                    self.machines[node].gone = true;
                }
            }
            Fault::SchedulerCrash if self.scheduler.up => match self.rng.below(3) {
                0 => self.kill_scheduler(),
                1 => self.scheduler.doom = Some(Doom::BeforeCommit),
                _ => self.scheduler.doom = Some(Doom::AfterCommit),
            },
            Fault::SchedulerCrash => {}
            Fault::GpuLost => self.lose_gpu(node),
            Fault::Cordon => {
                let drain = self.rng.chance(50);
                let operator = person("sre", Role::Operator, &[]);
                let id = self.machines[node].id.clone();
                let asked =
                    door::cordon(&self.scheduler.cluster, &operator, &id, drain, "a fan is loud");
                if let (true, Ok((_, events))) = (self.scheduler.up, asked) {
                    self.take_in(events);
                    let wait = self.rng.between(60_000, 600_000);
                    self.plan(wait, Happening::Uncordon { node });
                }
            }
            Fault::BreakConnection => self.lose_connection(node),
            Fault::Cut => {
                let until = self.now + self.rng.between(1_000, self.faults.cut_length.max(1_000));
                let link = &mut self.machines[node].link;
                match self.rng.below(3) {
                    0 => link.up_cut_until = until,
                    1 => link.down_cut_until = until,
                    _ => (link.up_cut_until, link.down_cut_until) = (until, until),
                }
            }
            Fault::Replay => {
                let mut wait = 0;
                let count = self.machines[node].sent.len();
                for (epoch, order) in self.machines[node].sent.clone().into_iter().take(count) {
                    wait += self.rng.between(1, 2_000);
                    self.plan(wait, Happening::Down { node, conn: None, epoch, order });
                }
            }
        }
    }

    fn kill_agent(&mut self, node: usize) {
        if self.misfortune(self.faults.slow_percent * 5) {
            self.leave_hello_behind(node);
        }
        if self.machines[node].agent.take().is_some() {
            // One in eight stays away for longer than a lease.
            let wait = match self.rng.below(8) {
                0 => self.rng.between(60_000, 120_000),
                _ => self.rng.between(200, 20_000),
            };
            self.plan(wait, Happening::AgentStarts { node });
        }
    }

    /// A hello that the agent has handed to its kernel arrives when the agent is dead, perhaps after
    /// its successor's.
    fn leave_hello_behind(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(session) = machine.agent.as_ref().map(|a| a.session) else { return };
        let hello = Box::new(machine.hello(session, self.planted == Some(Planted::HidesRunning)));
        self.conns += 1;
        let (conn, reign) = (ConnId(self.conns), self.scheduler.reign);
        let wait = self.rng.between(1_000, 40_000);
        self.plan(wait, Happening::Up { node, conn, reign, message: Message::Hello(hello) });
    }

    /// Power off. False where it was off already.
    fn take_down(&mut self, node: usize, disk_lost: bool) -> bool {
        let lose_gpu = self.misfortune(self.faults.gpu_missing_percent);
        let machine = &mut self.machines[node];
        if !machine.powered {
            return false;
        }
        let gpu_missing = lose_gpu && machine.inventory.gpus.len() > 1;
        for process in machine.reboot(node, disk_lost, gpu_missing) {
            self.promises.truth.insert(process, Truth::Vanished);
        }
        for gpu in machine.inventory.gpus.iter().chain(&machine.missing) {
            self.promises.squatted.remove(&gpu.id);
        }
        let id = machine.id.clone();
        let now = self.now();
        self.promises.downs.push((id, now));
        true
    }

    pub(crate) fn power_on(&mut self, node: usize) {
        if !self.machines[node].gone {
            self.machines[node].powered = true;
            self.agent_starts(node);
        }
    }

    fn lose_gpu(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let gpu = self.rng.pick(&machine.inventory.gpus).id.clone();
        machine.conditions.insert(gpu, GpuCondition::Lost);
        let conditions = machine.conditions.clone();
        self.say(node, tessera_core::door::Report::Conditions(conditions));
        let wait = self.rng.between(30_000, 600_000);
        self.plan(wait, Happening::GpuBack { node });
    }

    pub(crate) fn gpu_back(&mut self, node: usize) {
        self.machines[node].conditions.clear();
        self.say(node, tessera_core::door::Report::Conditions(BTreeMap::new()));
    }

    /// An operator has cleaned the node up.
    pub(crate) fn uncordon(&mut self, node: usize) {
        if !self.scheduler.up {
            self.plan(5_000, Happening::Uncordon { node });
            return;
        }
        let machine = &self.machines[node];
        for gpu in machine.inventory.gpus.iter().chain(&machine.missing) {
            self.promises.squatted.remove(&gpu.id);
        }
        let operator = person("sre", Role::Operator, &[]);
        let id = self.machines[node].id.clone();
        if let Ok((_, events)) = door::uncordon(&self.scheduler.cluster, &operator, &id)
            && self.take_in(events) == Taken::Silence
        {
            self.plan(5_000, Happening::Uncordon { node });
        }
    }

    /// Faults stop, cuts heal, what was switched off comes back, operators clear what they marked.
    pub(crate) fn heal(&mut self) {
        self.calm = true;
        self.promises.settled = true;
        self.scheduler.doom = None;
        for node in 0..self.machines.len() {
            let link = &mut self.machines[node].link;
            (link.up_cut_until, link.down_cut_until) = (0, 0);
            self.plan(200_000, Happening::PowerOn { node });
            self.plan(210_000, Happening::GpuBack { node });
            // Twice: a place may still be given back with something on it.
            self.plan(220_000, Happening::Uncordon { node });
            self.plan(1_200_000, Happening::Uncordon { node });
        }
    }

    // ---- customers

    pub(crate) fn customer(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.rng.between(1, 2 * VISITS);
        self.plan(wait, Happening::Customer);
        match self.rng.below(10) {
            0 | 1 => self.cancel_some_job(),
            2 => self.ask_again(),
            _ => {
                self.customers.count += 1;
                let number = self.customers.count;
                let spec = self.some_job();
                self.customers.unanswered.insert(number, spec);
                self.retry(number);
            }
        }
    }

    /// Submits what was not answered yet; the key is the same each time.
    pub(crate) fn retry(&mut self, number: u64) {
        let Some(spec) = self.customers.unanswered.get(&number).cloned() else { return };
        match self.submit_as_customer(spec, &format!("key-{number}")) {
            Some(_) => {
                self.customers.unanswered.remove(&number);
            }
            None => {
                let wait = self.rng.between(1_000, 10_000);
                self.plan(wait, Happening::Retry { number });
            }
        }
    }

    /// `None`: no answer came, and nobody knows whether the job was written.
    pub(crate) fn submit_as_customer(
        &mut self,
        spec: JobSpec,
        key: &str,
    ) -> Option<Result<JobId, Refusal>> {
        if !self.scheduler.up {
            return None;
        }
        let who = person(spec.user.as_str(), Role::Member, &[spec.team.as_str()]);
        let asked = door::submit(&self.scheduler.cluster, self.now(), &who, spec.clone(), key);
        let (submitted, events) = match asked {
            Ok(answer) => answer,
            Err(refusal) => {
                if self.promises.acknowledged.contains_key(key) {
                    let what = format!("P1: the key {key} is refused now: {refusal}");
                    self.promises.broken(self.now, what);
                }
                return Some(Err(refusal));
            }
        };
        if self.take_in(events) == Taken::Silence {
            return None;
        }
        if !key.is_empty() {
            let before = self.promises.acknowledged.insert(key.to_owned(), submitted.job);
            self.customers.specs.insert(key.to_owned(), spec);
            if before.is_some_and(|b| b != submitted.job) {
                let what = format!("P1: the key {key} gave {before:?}, now {}", submitted.job);
                self.promises.broken(self.now, what);
            }
        }
        Some(Ok(submitted.job))
    }

    /// Sends a submission that was answered once more.
    fn ask_again(&mut self) {
        let nth = self.rng.below(self.customers.specs.len() as u64) as usize;
        if let Some((key, spec)) = self.customers.specs.iter().nth(nth) {
            let (key, spec) = (key.clone(), spec.clone());
            self.submit_as_customer(spec, &key);
        }
    }

    fn cancel_some_job(&mut self) {
        let newest = self.scheduler.cluster.next_job;
        let id = JobId(newest.saturating_sub(self.rng.below(20)));
        let operator = person("sre", Role::Operator, &[]);
        if self.scheduler.up
            && let Ok((_, events)) = door::cancel(&self.scheduler.cluster, &operator, id)
            && !events.is_empty()
        {
            self.promises.cancelled.insert(id);
            self.take_in(events);
        }
    }

    fn some_job(&mut self) -> JobSpec {
        let rng = &mut self.rng;
        let (user, team) = *rng.pick(&[("ada", "nlp"), ("bob", "nlp"), ("eve", "vision")]);
        let most = self.machines.len() as u64;
        let nodes = if rng.chance(60) { 1 } else { rng.between(1, most) };
        let length = *rng.pick(&[2_000, 20_000, 60_000, 60_000, 240_000]);
        let limit = match rng.below(4) {
            0 => None,
            1 => Some(Millis(length)),
            _ => Some(Millis(length * 2)),
        };
        let level = *rng.pick(&["block", "leaf"]);
        let strength = if rng.chance(50) { Strength::Required } else { Strength::Preferred };
        let mapped = !self.scheduler.cluster.topology.fabrics.is_empty();
        let within = if mapped && nodes > 1 && rng.chance(60) {
            vec![Within { level: level.to_owned(), strength }]
        } else {
            Vec::new()
        };
        // Idle jobs can always be stopped again; some are told by a signal to save their work.
        let tier = *rng.pick(&[Tier::Normal, Tier::Normal, Tier::Normal, Tier::Idle, Tier::Urgent]);
        let requeue = tier == Tier::Idle || rng.chance(50);
        let checkpoint = (requeue && rng.chance(50)).then(|| CheckpointPlan {
            signal: rng.chance(50).then_some(10),
            notice: Millis(*rng.pick(&[0, 5_000, 60_000])),
            restart_cost: Millis(10_000),
            file: None,
            migratable: false,
        });
        JobSpec {
            name: "work".to_owned(),
            team: TeamId::parse(team).expect("a plain word is a team"),
            project: ProjectId::parse("p").expect("a plain word is a project"),
            user: UserId::parse(user).expect("a plain word is a user"),
            tags: BTreeMap::new(),
            gang: Gang {
                nodes: nodes as u32,
                gpus_per_node: *rng.pick(&[0, 1, 1, 1, 2, 2, 4, 8]),
                tasks_per_node: *rng.pick(&[1, 1, 2]),
                cpus_per_task: *rng.pick(&[1, 2, 4]),
                memory_per_node: Bytes::gib(*rng.pick(&[0, 0, 32, 200])),
                gpu_model: rng
                    .pick(&[None, None, None, Some("H100"), Some("a100")])
                    .map(str::to_owned),
                gpu_milli: WHOLE_GPU,
            },
            tier,
            roles: Vec::new(),
            placement: Placement { within, ..Placement::default() },
            priority: *rng.pick(&[0, 0, 0, 5, -5]),
            time_limit: limit,
            requeue,
            begin: None,
            after: Vec::new(),
            singleton: false,
            hold: false,
            min_nodes: None,
            spares: 0,
            checkpoint,
            reservation: None,
            program: Program {
                argv: vec![
                    "work".to_owned(),
                    length.to_string(),
                    (rng.below(1_000_000) + 1).to_string(),
                ],
                script: None,
                env: BTreeMap::new(),
                working_dir: None,
            },
            unix: None,
        }
    }
}
