//! What agents and shims do, by the fencing rules R3-R9. A planted bug leaves one of them out.

use std::sync::Arc;

use tessera_core::Order;
use tessera_core::door::agents::Report;
use tessera_model::{AttemptId, Epoch, GpuId, JobSpec, Lease, TaskEnd};

use crate::faults::Planted;
use crate::machine::{Agent, ConnId, PORT, Phase, Process, Record};
use crate::promises::Truth;
use crate::rng::Rng;
use crate::world::{EndsBy, Happening, LIMITS, Message, World};

const HEARTBEAT: u64 = 4_000;
/// Without an answer for this long, an agent hangs up and dials again.
const UNANSWERED: u64 = 15_000;

impl World {
    // ---- the agent's life and its connection

    pub(crate) fn agent_starts(&mut self, node: usize) {
        if !self.machines[node].powered || self.machines[node].agent.is_some() {
            return;
        }
        let fresh = self.draw_session();
        let kept =
            self.machines[node].last_session.filter(|_| self.is_planted(Planted::SameSession));
        let session = kept.unwrap_or(fresh);
        self.lives += 1;
        let life = self.lives;
        let machine = &mut self.machines[node];
        machine.last_session = Some(session);
        machine.agent = Some(Agent { session, conn: None, term: None, answered: self.now, life });
        // What was being prepared is begun anew when it is asked for again.
        machine.disk.records.retain(|_, r| r.phase != Phase::Preparing);
        let ended: Vec<AttemptId> = machine
            .disk
            .records
            .iter()
            .filter(|(_, r)| r.phase == Phase::Running && r.all_ended())
            .map(|(id, _)| *id)
            .collect();
        for attempt in ended {
            self.plan(100, Happening::LookAtGpus { node, life, attempt });
        }
        self.plan(50, Happening::Dial { node, life });
    }

    /// The connection is gone; the agent sees that and dials again.
    pub(crate) fn lose_connection(&mut self, node: usize) {
        let wait = self.rng.between(100, 4_000);
        let Some(agent) = &mut self.machines[node].agent else { return };
        if agent.conn.take().is_some() {
            let life = agent.life;
            self.plan(wait, Happening::Dial { node, life });
        }
    }

    pub(crate) fn dial(&mut self, node: usize, life: u64) {
        let now = self.now;
        let fresh = self.draw_session();
        let same = self.is_planted(Planted::SameSession);
        let machine = &mut self.machines[node];
        let cut = machine.link.up_cut_until.max(machine.link.down_cut_until) > now;
        let Some(agent) = machine.agent.as_mut().filter(|a| a.life == life && a.conn.is_none())
        else {
            return;
        };
        if cut || !self.scheduler.up {
            let wait = self.rng.between(500, 4_000);
            self.plan(wait, Happening::Dial { node, life });
            return;
        }
        // R5: a lease that lapsed ends the session.
        if agent.term.is_some_and(|term| term <= now) {
            agent.term = None;
            if !same {
                agent.session = fresh;
                machine.last_session = Some(fresh);
            }
        }
        self.conns += 1;
        let conn = ConnId(self.conns);
        (agent.conn, agent.answered) = (Some(conn), now);
        let session = agent.session;
        (machine.link.up_last, machine.link.down_last) = (now, now);
        let hide = self.planted == Some(Planted::HidesRunning);
        let hello = machine.hello(session, hide);
        self.send_up(node, Message::Hello(Box::new(hello)));
        if self.is_planted(Planted::ForgetsEarly) {
            self.machines[node].disk.records.retain(|_, r| r.phase != Phase::Finished);
        }
        self.plan(20, Happening::Heartbeat { node, life, conn });
    }

    pub(crate) fn heartbeat(&mut self, node: usize, life: u64, conn: ConnId) {
        let Some(agent) = &self.machines[node].agent else { return };
        if agent.life != life || agent.conn != Some(conn) {
            return;
        }
        if self.now.saturating_sub(agent.answered) > UNANSWERED {
            self.lose_connection(node);
            return;
        }
        self.say(node, Report::Heartbeat { sent_boottime_ms: self.now });
        // Ends are reported until they are acknowledged.
        let finished: Vec<(AttemptId, Record)> = self.machines[node]
            .disk
            .records
            .iter()
            .filter(|(_, r)| r.phase == Phase::Finished)
            .map(|(id, r)| (*id, r.clone()))
            .collect();
        for (attempt, record) in finished {
            self.say(node, Report::Released { attempt, occupied: record.occupied });
        }
        self.plan(HEARTBEAT, Happening::Heartbeat { node, life, conn });
    }

    pub(crate) fn say(&mut self, node: usize, report: Report) {
        self.send_up(node, Message::Report(Box::new(report)));
    }

    // ---- orders

    pub(crate) fn agent_obeys(&mut self, node: usize, epoch: Epoch, order: Order) {
        let disk = &mut self.machines[node].disk;
        if epoch < disk.epoch {
            self.promises.orders_refused += 1;
            return;
        }
        disk.epoch = epoch;
        match order {
            Order::Prepare { spec, lease, place, .. } => self.prepare(node, spec, lease, place),
            Order::Commit { attempt, .. } => self.start_tasks(node, attempt),
            Order::Stop { attempt, grace } => self.stop(node, attempt, grace.0),
            Order::Forget { attempt } => {
                let records = &mut self.machines[node].disk.records;
                if records.get(&attempt).is_some_and(|r| r.phase == Phase::Finished) {
                    records.remove(&attempt);
                }
            }
            Order::Signal { attempt, .. } => self.signal(node, attempt),
            Order::Grant { heartbeat_sent_boottime_ms } => {
                self.granted(node, heartbeat_sent_boottime_ms);
            }
        }
    }

    /// Most tasks that are told to save their work do.
    fn signal(&mut self, node: usize, attempt: AttemptId) {
        let records = &self.machines[node].disk.records;
        let runs = records.get(&attempt).is_some_and(|r| r.phase == Phase::Running);
        if runs && self.rng.chance(70) {
            self.say(node, Report::Checkpoint { attempt });
        }
    }

    fn prepare(&mut self, node: usize, spec: Arc<JobSpec>, lease: Arc<Lease>, place: usize) {
        let attempt = lease.attempt;
        let any_session = self.is_planted(Planted::AnySession);
        let machine = &self.machines[node];
        let Some(agent) = &machine.agent else { return };
        let (session, life) = (agent.session, agent.life);
        if let Some(record) = machine.disk.records.get(&attempt) {
            match record.phase {
                Phase::Prepared => self.say(node, Report::Prepared { attempt, master_port: PORT }),
                Phase::Running => self.say(node, Report::Started { attempt }),
                Phase::Preparing | Phase::Finished => {}
            }
            return;
        }
        let refusal = if lease.places[place].session != session && !any_session {
            Some("the order is meant for another session")
        } else if machine.disk.tombstones.contains(&attempt) {
            Some("the attempt has ended here")
        } else if self.is_claimed(node, attempt, &lease.places[place].gpus) {
            Some("a GPU of it is in use here")
        } else if self.misfortune(self.faults.refuse_percent) {
            Some("the disk is full")
        } else {
            None
        };
        if let Some(why) = refusal {
            self.say(node, Report::Refused { attempt, why: why.to_owned() });
            return;
        }
        let record = Record {
            spec,
            lease,
            place,
            phase: Phase::Preparing,
            ended: Default::default(),
            occupied: Default::default(),
            stopping: false,
            waits_for_grant: false,
            deadline: None,
        };
        self.machines[node].disk.records.insert(attempt, record);
        let wait = if self.misfortune(self.faults.hang_percent) {
            self.rng.between(20_000, 60_000)
        } else {
            self.rng.between(5, 800)
        };
        self.plan(wait, Happening::PrepareDone { node, life, attempt });
    }

    /// An agent gives no GPU away that another attempt has not given back, or that is in use. The
    /// scheduler may not know yet: it wrote the other attempt off when its lease had lapsed.
    fn is_claimed(&self, node: usize, attempt: AttemptId, gpus: &[GpuId]) -> bool {
        let records = self.machines[node].disk.records.iter();
        let mut others = records.filter(|(id, r)| **id != attempt && r.phase != Phase::Finished);
        others.any(|(_, r)| r.gpus().iter().any(|g| gpus.contains(g)))
            || gpus.iter().any(|g| self.promises.squatted.contains(g))
    }

    pub(crate) fn prepare_done(&mut self, node: usize, life: u64, attempt: AttemptId) {
        let machine = &mut self.machines[node];
        if machine.agent.as_ref().is_none_or(|a| a.life != life) {
            return;
        }
        let Some(record) = machine.disk.records.get_mut(&attempt) else { return };
        if record.phase == Phase::Preparing {
            record.phase = Phase::Prepared;
            self.say(node, Report::Prepared { attempt, master_port: PORT });
        }
    }

    /// Starts the tasks of a prepared attempt; under a lease only while there is one.
    fn start_tasks(&mut self, node: usize, attempt: AttemptId) {
        let machine = &mut self.machines[node];
        let Some(agent) = &machine.agent else { return };
        let term = agent.term.filter(|t| *t > self.now);
        let Some(record) = machine.disk.records.get_mut(&attempt) else { return };
        match record.phase {
            Phase::Prepared => {}
            Phase::Running => {
                self.say(node, Report::Started { attempt });
                return;
            }
            Phase::Preparing | Phase::Finished => return,
        }
        if record.spec.requeue {
            let Some(term) = term else {
                record.waits_for_grant = true;
                return;
            };
            record.deadline = Some(term);
            self.plan_at(term, Happening::LeaseRunsOut { node, attempt });
        }
        let record = self.machines[node].disk.records.get_mut(&attempt).expect("it was there");
        (record.phase, record.waits_for_grant) = (Phase::Running, false);
        let (gpus, ranks, spec) =
            (record.gpus().to_vec(), record.ranks(), Arc::clone(&record.spec));
        for rank in ranks {
            let (length, end) = fate(&spec, attempt, rank);
            self.runs += 1;
            let (run, gpus) = (self.runs, gpus.clone());
            self.check_start(node, attempt, rank, &gpus);
            self.machines[node].processes.insert((attempt, rank), Process { run, gpus, end });
            let by = EndsBy::Itself;
            self.plan(length, Happening::ProcessEnds { node, attempt, rank, run, by });
        }
        self.say(node, Report::Started { attempt });
    }

    fn stop(&mut self, node: usize, attempt: AttemptId, grace: u64) {
        let no_tombstones = self.is_planted(Planted::NoTombstones);
        let machine = &mut self.machines[node];
        if !no_tombstones {
            machine.disk.tombstones.insert(attempt);
        }
        let Some(record) = machine.disk.records.get_mut(&attempt) else {
            // Never heard of: it ends before it began.
            self.say(node, Report::Released { attempt, occupied: Default::default() });
            return;
        };
        match record.phase {
            Phase::Preparing | Phase::Prepared => {
                record.phase = Phase::Finished;
                self.say(node, Report::Released { attempt, occupied: Default::default() });
            }
            Phase::Running if !record.stopping => {
                record.stopping = true;
                let live: Vec<(u32, u64)> = machine
                    .processes
                    .iter()
                    .filter(|((a, _), _)| *a == attempt)
                    .map(|((_, rank), p)| (*rank, p.run))
                    .collect();
                for (rank, run) in live {
                    let obedient = self.rng.chance(80);
                    let wait = if obedient { self.rng.below(grace) } else { grace };
                    let by = EndsBy::Signal(if obedient { 15 } else { 9 });
                    self.plan(wait, Happening::ProcessEnds { node, attempt, rank, run, by });
                }
            }
            Phase::Running | Phase::Finished => {}
        }
    }

    /// R6: a grant runs from when the heartbeat it answers was sent.
    fn granted(&mut self, node: usize, sent: u64) {
        let now = self.now;
        let from_arrival = self.is_planted(Planted::GrantFromArrival);
        let Some(agent) = &mut self.machines[node].agent else { return };
        agent.answered = now;
        let from = if from_arrival { now } else { sent.min(now) };
        let until = from + LIMITS.lease.0;
        match agent.term {
            Some(term) if term <= now => {
                // Too late: others may hold our GPUs. Come back as somebody else.
                self.lose_connection(node);
                return;
            }
            Some(term) if until <= term => return,
            None if until <= now => return,
            _ => agent.term = Some(until),
        }
        let records = &mut self.machines[node].disk.records;
        let mut waiting = Vec::new();
        let mut extended = Vec::new();
        for (id, record) in records.iter_mut().filter(|(_, r)| r.spec.requeue) {
            if record.phase == Phase::Running {
                record.deadline = Some(until);
                extended.push(*id);
            } else if record.waits_for_grant {
                waiting.push(*id);
            }
        }
        for attempt in extended {
            self.plan_at(until, Happening::LeaseRunsOut { node, attempt });
        }
        for attempt in waiting {
            self.start_tasks(node, attempt);
        }
    }

    // ---- shims and processes: none of this needs the agent to be alive

    /// R3: the shims stop what they hold when the lease lapses, whether there is an agent or not.
    pub(crate) fn lease_runs_out(&mut self, node: usize, attempt: AttemptId) {
        if self.is_planted(Planted::ShimIgnoresLease) {
            return;
        }
        let now = self.now;
        let machine = &mut self.machines[node];
        let Some(record) = machine.disk.records.get(&attempt) else { return };
        if record.deadline.is_none_or(|d| d > now) {
            return;
        }
        let live: Vec<u32> =
            machine.processes.keys().filter(|(a, _)| *a == attempt).map(|(_, r)| *r).collect();
        for rank in live {
            self.machines[node].processes.remove(&(attempt, rank));
            self.record_end(node, attempt, rank, TaskEnd::Lapsed);
        }
    }

    pub(crate) fn process_ends(
        &mut self,
        node: usize,
        attempt: AttemptId,
        rank: u32,
        run: u64,
        by: EndsBy,
    ) {
        let processes = &mut self.machines[node].processes;
        if processes.get(&(attempt, rank)).is_none_or(|p| p.run != run) {
            return;
        }
        let Some(process) = processes.remove(&(attempt, rank)) else { return };
        let end = match by {
            EndsBy::Itself => process.end,
            EndsBy::Signal(signal) => TaskEnd::Signaled { signal, oom: false },
        };
        self.record_end(node, attempt, rank, end);
    }

    /// The shim writes down how it ended; the agent, if there is one, passes it on.
    fn record_end(&mut self, node: usize, attempt: AttemptId, rank: u32, end: TaskEnd) {
        self.promises.truth.insert((attempt, rank), Truth::Ended(end.clone()));
        let machine = &mut self.machines[node];
        let Some(record) = machine.disk.records.get_mut(&attempt) else { return };
        record.ended.insert(rank, end.clone());
        let all = record.all_ended();
        let Some(life) = machine.agent.as_ref().map(|a| a.life) else { return };
        self.say(node, Report::TaskEnded { attempt, rank, end });
        if all {
            let wait = self.rng.between(20, 500);
            self.plan(wait, Happening::LookAtGpus { node, life, attempt });
        }
    }

    /// All tasks are gone: the GPUs go back, but for those on which something else still runs.
    pub(crate) fn look_at_gpus(&mut self, node: usize, life: u64, attempt: AttemptId) {
        let unlucky = self.misfortune(self.faults.occupied_percent);
        let no_tombstones = self.is_planted(Planted::NoTombstones);
        let forget = self.is_planted(Planted::ForgetsEarly);
        let machine = &mut self.machines[node];
        if machine.agent.as_ref().is_none_or(|a| a.life != life) {
            return;
        }
        let Some(record) = machine.disk.records.get_mut(&attempt) else { return };
        if record.phase != Phase::Running {
            return;
        }
        record.phase = Phase::Finished;
        if !no_tombstones {
            machine.disk.tombstones.insert(attempt);
        }
        if unlucky && let Some(gpu) = record.gpus().first().cloned() {
            record.occupied.insert(gpu.clone(), vec![4_242]);
            self.promises.squatted.insert(gpu);
            let wait = self.rng.between(30_000, 300_000);
            self.plan(wait, Happening::Uncordon { node });
        }
        let occupied = self.machines[node].disk.records[&attempt].occupied.clone();
        self.say(node, Report::Released { attempt, occupied });
        if forget {
            self.machines[node].disk.records.remove(&attempt);
        }
    }
}

/// How long a rank runs and how it ends, as its program says: `work MILLISECONDS SEED`.
fn fate(spec: &JobSpec, attempt: AttemptId, rank: u32) -> (u64, TaskEnd) {
    let number = |i: usize| spec.program.argv.get(i).and_then(|a| a.parse::<u64>().ok());
    let length = number(1).unwrap_or(1_000);
    let seed = number(2).unwrap_or(0);
    let mut rng = Rng::new(seed ^ (u64::from(rank) << 32) ^ u64::from(attempt.number));
    let length = length / 2 + rng.below(length.max(1));
    // Seed 0 always succeeds.
    let end = match rng.below(100) {
        _ if seed == 0 => TaskEnd::Exited { code: 0 },
        0..=87 => TaskEnd::Exited { code: 0 },
        88..=93 => TaskEnd::Exited { code: rng.between(1, 255) as i32 },
        94..=96 => TaskEnd::Signaled { signal: 11, oom: false },
        97 | 98 => TaskEnd::Signaled { signal: 9, oom: true },
        _ => {
            return (1, TaskEnd::NotStarted { code: 127, why: "no such program".to_owned() });
        }
    };
    (length, end)
}
