//! Jobs for people: submit, get, list, explain, watch. What is asked of jobs that are there is
//! `changes`'s, what they write `output`'s.
//!
//! In: requests with a person behind them. Out: what the core answers, cut to what the person may
//! see: a job's script, arguments, environment and output are its owner's and its team's admin's.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use tessera_core::door::{self, JobFilter, Submitted};
use tessera_core::job_table::Job;
use tessera_core::{Cluster, Event, access, explain};
use tessera_model::{
    ArrayTask, Explanation, JobId, JobRecord, JobSpec, Principal, Program, Refusal, RefusalKind,
    TeamId, UnixMillis, UserId,
};
use tessera_proto::jobs::{
    array_from_wire, explanation_to_wire, job_to_wire, signal_from_wire, spec_from_wire,
    state_from_wire,
};
use tessera_proto::status::to_status;
use tessera_proto::v1;

use super::changes::{Ask, Whom};
use super::{Shared, Stream, auth, going_down, internal, output, stopped, stream};
use crate::writer::View;

const LIST_DEFAULT: usize = 1_000;
const LIST_MAX: usize = 10_000;

pub struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl v1::jobs_server::Jobs for Service {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.submit(&who, request.into_inner()).await;
        let (reply, jobs) = answer.map_err(|e| to_status(&e))?;
        Ok(Response::new(v1::SubmitReply {
            job_id: reply.job.0,
            existing: reply.existing,
            warnings: reply.warnings,
            jobs,
        }))
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let who = auth::person(&request)?;
        let v1::GetJobRequest { job_id, index } = request.into_inner();
        let answer = async {
            let id = match index {
                None => JobId(job_id),
                Some(_) => self.0.task(&who, JobId(job_id), index).await?,
            };
            self.0.job(&who, id).await
        };
        answer.await.map(|r| Response::new(job_to_wire(&r))).map_err(|e| to_status(&e))
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        let who = auth::person(&request)?;
        let filter = filter(request.into_inner()).map_err(|e| to_status(&e))?;
        let answer = self.0.handle.read(move |view| list(view, &who, &filter));
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainReply>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.explain(who, request.into_inner()).await;
        answer.map(|a| Response::new(explanation_to_wire(&a))).map_err(|e| to_status(&e))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let who = auth::person(&request)?;
        let v1::CancelRequest { job_id, index, only } = request.into_inner();
        let whom = Whom { job: JobId(job_id), index, only };
        let answer = self.0.cancel(&who, whom).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let who = auth::person(&request)?;
        let v1::HoldRequest { job_id, index, only } = request.into_inner();
        let whom = Whom { job: JobId(job_id), index, only };
        let answer = self.0.change(&who, whom, |ask, id| door::hold(ask.cluster, ask.who, id));
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let who = auth::person(&request)?;
        let v1::ReleaseRequest { job_id, index, only } = request.into_inner();
        let whom = Whom { job: JobId(job_id), index, only };
        let answer = self.0.change(&who, whom, |ask, id| door::release(ask.cluster, ask.who, id));
        answer.await.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.update(&who, request.into_inner()).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }

    async fn signal(
        &self,
        request: Request<v1::SignalRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let who = auth::person(&request)?;
        let v1::SignalRequest { job_id, index, only, signal } = request.into_inner();
        let whom = Whom { job: JobId(job_id), index, only };
        let answer = async {
            let signal = signal_from_wire(signal)?;
            let ask = move |ask: &Ask<'_>, id| door::signal(ask.cluster, ask.who, id, signal);
            self.0.change(&who, whom, ask).await
        };
        answer.await.map(Response::new).map_err(|e: Refusal| to_status(&e))
    }

    async fn report_checkpoint(
        &self,
        request: Request<v1::ReportCheckpointRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let who = auth::person(&request)?;
        let answer = self.0.report_checkpoint(&who, request.into_inner()).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }

    type WatchStream = Stream<v1::Job>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let who = auth::person(&request)?;
        let id = JobId(request.into_inner().job_id);
        // Before the first look, so that no change falls between.
        let mut changes = self.0.watches.subscribe(id);
        let mut record = self.0.job(&who, id).await.map_err(|e| to_status(&e))?;
        let (out, answer) = stream();
        let shared = self.0.clone();
        tokio::spawn(async move {
            let mut stopping = shared.stopping.clone();
            loop {
                let (known, over) = (fate(&record), record.state.is_terminal());
                if out.send(Ok(job_to_wire(&record))).await.is_err() || over {
                    return;
                }
                loop {
                    tokio::select! {
                        changed = changes.changed() => if changed.is_err() {
                            let _ = out.send(Err(going_down())).await;
                            return;
                        },
                        () = stopped(&mut stopping) => {
                            let _ = out.send(Err(going_down())).await;
                            return;
                        }
                        () = out.closed() => return,
                    }
                    match shared.job(&who, id).await {
                        Ok(next) if fate(&next) == known => {}
                        Ok(next) => {
                            record = next;
                            break;
                        }
                        Err(refusal) => {
                            let _ = out.send(Err(to_status(&refusal))).await;
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(answer))
    }

    type LogsStream = Stream<v1::LogChunk>;

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let who = auth::person(&request)?;
        let answer = output::follow(self.0.clone(), who, request.into_inner()).await;
        answer.map(Response::new).map_err(|e| to_status(&e))
    }
}

impl Shared {
    /// What was submitted, and how many jobs that made.
    async fn submit(
        &self,
        who: &Arc<Principal>,
        request: v1::SubmitRequest,
    ) -> Result<(Submitted, u32), Refusal> {
        let wire = request
            .spec
            .ok_or_else(|| Refusal::invalid("spec", "the job is missing", "send a spec"))?;
        let spec = spec_from_wire(wire, who)?;
        let array = request.array.as_ref().map(array_from_wire).transpose()?;
        let jobs = array.as_ref().map_or(1, |(i, _)| u32::try_from(i.len()).unwrap_or(u32::MAX));
        let wish = Wish { who: who.clone(), spec, array, key: request.idempotency_key };
        let attempt = self
            .handle
            .change(move |cluster, now| {
                // Of a job that has left memory only the store knows the key.
                let all_in_memory = cluster.jobs.jobs.len() as u64 + 1 >= cluster.next_job.max(1);
                let key = wish.key.as_str();
                let known = key.is_empty() || cluster.jobs.by_key(&wish.spec.user, key).is_some();
                if known || all_in_memory {
                    return wish.submit(cluster, now).map(|(reply, events)| (Ok(reply), events));
                }
                Ok((Err(wish), Vec::new()))
            })
            .await?;
        let wish = match attempt {
            Ok(reply) => return Ok((reply, jobs)),
            Err(undecided) => undecided,
        };
        let reader = self.handle.reader().clone();
        let (user, asked) = (wish.spec.user.clone(), wish.key.clone());
        let earlier = blocking(move || reader.job_by_key(&user, &asked)).await?;
        match earlier {
            Some(job) if job.spec == wish.spec && job.array == wish.first_task(job.id) => {
                Ok((Submitted { job: job.id, existing: true, warnings: Vec::new() }, jobs))
            }
            Some(job) => Err(Refusal::new(
                RefusalKind::AlreadyExists,
                "idempotency_key",
                format!("the key was used for job {}, which is a different one", job.id),
                "use a new key for a new job",
            )),
            None => {
                let reply =
                    self.handle.change(move |cluster, now| wish.submit(cluster, now)).await?;
                Ok((reply, jobs))
            }
        }
    }

    /// The task of an array with an index.
    async fn task(
        &self,
        who: &Arc<Principal>,
        array: JobId,
        index: Option<u32>,
    ) -> Result<JobId, Refusal> {
        let who = who.clone();
        let found =
            self.handle.read(move |view| door::tasks(view.cluster, &who, array, index, true));
        let tasks = found.await??;
        tasks.first().copied().ok_or_else(|| door::no_job(array))
    }

    /// A job as `who` may see it, from memory or from the store.
    pub(super) async fn job(&self, who: &Arc<Principal>, id: JobId) -> Result<JobRecord, Refusal> {
        let asking = who.clone();
        let found = self.handle.read(move |view| visible(view, &asking, id)).await?;
        if let Some(found) = found {
            return found;
        }
        let reader = self.handle.reader().clone();
        let record = blocking(move || reader.job(id)).await?;
        match record {
            Some(record) if access::may_see_job(who, &record.spec) => Ok(scoped(who, record)),
            _ => Err(door::no_job(id)),
        }
    }

    /// Thinks a question out beside the writer, which has other things to do meanwhile.
    async fn answer(&self, question: explain::Question) -> Result<Explanation, Refusal> {
        if let explain::Question::Answered(explanation) = question {
            return Ok(*explanation);
        }
        let broke_off = || internal("the explanation broke off");
        let turn = self.explaining.clone().acquire_owned().await.map_err(|_| broke_off())?;
        let thinking = tokio::task::spawn_blocking(move || {
            // Kept until the end, even if whoever asked has gone away.
            let _turn = turn;
            question.answer()
        });
        thinking.await.map_err(|_| broke_off())
    }

    async fn explain(
        &self,
        who: Arc<Principal>,
        request: v1::ExplainRequest,
    ) -> Result<Explanation, Refusal> {
        use v1::explain_request::Subject;
        match request.subject {
            Some(Subject::JobId(id)) => {
                let (id, asking) = (JobId(id), who.clone());
                let question = self
                    .handle
                    .read(move |view| {
                        let job = view.cluster.jobs.get(id)?;
                        Some(match access::may_see_job(&asking, &job.spec) {
                            true => Ok(explain::ask(view.cluster, view.now, job, view.waits)),
                            false => Err(door::no_job(id)),
                        })
                    })
                    .await?;
                match question {
                    Some(question) => self.answer(question?).await,
                    // It ended so long ago that only the store has it.
                    None => Ok(explain::told(&self.job(&who, id).await?)),
                }
            }
            Some(Subject::Spec(wire)) => {
                let spec = spec_from_wire(wire, &who)?;
                let question = self
                    .handle
                    .read(move |view| {
                        door::check_spec(view.cluster, view.now, &who, &spec)?;
                        Ok(explain::ask_imagined(view.cluster, view.now, &spec))
                    })
                    .await?;
                self.answer(question?).await
            }
            None => Err(Refusal::invalid(
                "subject",
                "nothing to explain is named",
                "name a job, or describe one",
            )),
        }
    }
}

/// `None`: it is not in memory.
fn visible(view: &View<'_>, who: &Principal, id: JobId) -> Option<Result<JobRecord, Refusal>> {
    let job = view.cluster.jobs.get(id)?;
    if !access::may_see_job(who, &job.spec) {
        return Some(Err(door::no_job(id)));
    }
    Some(Ok(match access::may_see_content(who, &job.spec) {
        true => view.record(job),
        false => view.record(&without_program(job)),
    }))
}

/// What of a record `who` may see.
pub(super) fn scoped(who: &Principal, mut record: JobRecord) -> JobRecord {
    if !access::may_see_content(who, &record.spec) {
        record.spec.program = no_program();
    }
    record
}

/// The job without its script and environment, which may take a megabyte: for lists, and for those
/// who may not see them.
fn without_program(job: &Job) -> Job {
    // Every field by name: a new one that is large is noticed here.
    let JobSpec {
        name,
        team,
        project,
        user,
        tags,
        tier,
        gang,
        roles,
        placement,
        priority,
        time_limit,
        requeue,
        begin,
        after,
        singleton,
        hold,
        min_nodes,
        spares,
        checkpoint,
        reservation,
        program: _,
        unix,
    } = &*job.spec;
    let spec = JobSpec {
        name: name.clone(),
        team: team.clone(),
        project: project.clone(),
        user: user.clone(),
        tags: tags.clone(),
        tier: *tier,
        gang: gang.clone(),
        roles: roles.clone(),
        placement: placement.clone(),
        priority: *priority,
        time_limit: *time_limit,
        requeue: *requeue,
        begin: *begin,
        after: after.clone(),
        singleton: *singleton,
        hold: *hold,
        min_nodes: *min_nodes,
        spares: *spares,
        checkpoint: checkpoint.clone(),
        reservation: reservation.clone(),
        program: no_program(),
        unix: *unix,
    };
    Job { spec: Arc::new(spec), ..job.clone() }
}

/// A submission that was read.
struct Wish {
    who: Arc<Principal>,
    spec: JobSpec,
    /// Indices, and how many of them at once.
    array: Option<(Vec<u32>, u32)>,
    key: String,
}

impl Wish {
    fn submit(
        self,
        cluster: &Cluster,
        now: UnixMillis,
    ) -> Result<(Submitted, Vec<Event>), Refusal> {
        let Self { who, spec, array, key } = self;
        match array {
            None => door::submit(cluster, now, &who, spec, &key),
            Some((indices, throttle)) => {
                door::submit_array(cluster, now, &who, spec, &key, indices, throttle)
            }
        }
    }

    /// What the job under the key is of an array, if it is this one.
    fn first_task(&self, array: JobId) -> Option<ArrayTask> {
        let (indices, _) = self.array.as_ref()?;
        indices.first().map(|index| ArrayTask { array, index: *index })
    }
}

fn list(view: &View<'_>, who: &Principal, filter: &JobFilter) -> v1::ListJobsReply {
    let cluster = view.cluster;
    let door::Listed { jobs, total, positions } = door::list(cluster, who, filter, view.now);
    let arrays: BTreeSet<JobId> = jobs.iter().filter_map(|j| j.array).map(|a| a.array).collect();
    let throttle = |id: JobId| Some((id.0, cluster.jobs.array(id)?.throttle));
    let record = |job: &Job| {
        let mut record = view.record(&without_program(job));
        record.certificate = None;
        job_to_wire(&record)
    };
    let nodes = cluster.nodes.values();
    let (held, gpus) =
        nodes.fold((0, 0), |(held, gpus), n| (held + n.held.len(), gpus + n.inventory.gpus.len()));
    v1::ListJobsReply {
        jobs: jobs.into_iter().map(record).collect(),
        total: total as u64,
        gpus_held: u32::try_from(held).unwrap_or(u32::MAX),
        gpus_total: u32::try_from(gpus).unwrap_or(u32::MAX),
        positions: positions.into_iter().map(|(id, position)| (id.0, position)).collect(),
        throttles: arrays.into_iter().filter_map(throttle).filter(|(_, t)| *t > 0).collect(),
    }
}

fn no_program() -> Program {
    Program { argv: Vec::new(), script: None, env: Default::default(), working_dir: None }
}

/// What makes a watcher look up.
fn fate(record: &JobRecord) -> impl PartialEq + use<> {
    (record.state, record.attempt, record.cancel_requested)
}

fn filter(wire: v1::ListJobsRequest) -> Result<JobFilter, Refusal> {
    let team = |text: &String| {
        TeamId::parse(text)
            .map_err(|e| Refusal::invalid("teams", e.to_string(), "name a team: --team NAME"))
    };
    let limit = match wire.limit as usize {
        0 => LIST_DEFAULT,
        n if n > LIST_MAX => {
            let message = format!("{n} jobs are asked for, at most {LIST_MAX} are listed");
            return Err(Refusal::invalid(
                "limit",
                message,
                "narrow it down by team, user or state",
            ));
        }
        n => n,
    };
    let user = match wire.user.as_str() {
        "" => None,
        text => Some(
            UserId::parse(text)
                .map_err(|e| Refusal::invalid("user", e.to_string(), "name a user: --user NAME"))?,
        ),
    };
    Ok(JobFilter {
        teams: wire.teams.iter().map(team).collect::<Result<_, _>>()?,
        states: wire.states.into_iter().map(state_from_wire).collect::<Result<_, _>>()?,
        user,
        ended: wire.ended,
        limit,
    })
}

/// Asks the store beside the writer.
pub(super) async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, crate::store::StoreError> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot read the store");
            Err(internal("the store could not be read"))
        }
        Err(_) => Err(internal("the look into the store broke off")),
    }
}
