//! Asking the scheduler.
//!
//! In: settings, requests. Out: answers, or why there is none. Reads and writes that may safely
//! come twice are asked again while the scheduler is away for a moment; other writes are asked once.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tessera_model::{JobId, JobRecord, NodeRecord, UserId};
use tessera_proto::dial::{Dial, DialError, Trust};
use tessera_proto::status::from_status;
use tessera_proto::v1::{
    self, admin_client::AdminClient, jobs_client::JobsClient, nodes_client::NodesClient,
    usage_client::UsageClient,
};
use tessera_proto::{jobs, nodes};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::failure::{Failure, Outcome};
use crate::settings::Settings;

/// How long one answer may take. Streams have no such bound.
const DEADLINE: Duration = Duration::from_secs(30);
/// Waits before asking again: about three seconds in all, as long as a scheduler takes to restart.
const AGAIN_AFTER_MS: [u64; 5] = [100, 200, 400, 800, 1_600];
/// A logs or list answer may be large; what is larger than this is a mistake.
const ANSWER_BYTES_MAX: usize = 256 << 20;

pub type Line = InterceptedService<Channel, Bearer>;

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A line to one scheduler, as one caller.
#[derive(Clone)]
pub struct Api {
    channel: Channel,
    bearer: Bearer,
}

impl Api {
    pub async fn connect(settings: &Settings) -> Outcome<Self> {
        let dial = Dial {
            server: settings.server.clone(),
            trust: Trust::CaPem(settings.ca.clone()),
            identity: None,
        };
        let mut waits = AGAIN_AFTER_MS.iter();
        let channel = loop {
            match tessera_proto::dial::connect(&dial).await {
                Ok(channel) => break channel,
                Err(error) => match (&error, waits.next()) {
                    // Nobody listens: it may be restarting.
                    (DialError::Unreachable { .. }, Some(ms)) => {
                        tokio::time::sleep(Duration::from_millis(*ms)).await;
                    }
                    _ => return Err(no_line(&error, settings)),
                },
            }
        };
        Self::over(channel, &settings.token.0)
    }

    /// Over a channel that is there already.
    pub fn over(channel: Channel, token: &str) -> Outcome<Self> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
            Failure::no_answer("settings", "the token holds strange characters", "take a new one")
        })?;
        value.set_sensitive(true);
        Ok(Self { channel, bearer: Bearer(value) })
    }

    fn line(&self) -> Line {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    pub fn jobs(&self) -> JobsClient<Line> {
        JobsClient::new(self.line()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn nodes(&self) -> NodesClient<Line> {
        NodesClient::new(self.line()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn usage(&self) -> UsageClient<Line> {
        UsageClient::new(self.line()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn admin(&self) -> AdminClient<Line> {
        AdminClient::new(self.line()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Asks, and asks again while the scheduler is unavailable. For reads, and for writes that do
    /// the same when they come twice.
    pub async fn ask<T, F, Fut>(&self, call: F) -> Outcome<T>
    where
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut waits = AGAIN_AFTER_MS.iter();
        loop {
            match self.once(call(self.clone())).await {
                Err(failure) if failure.is_unavailable() => match waits.next() {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
                    None => return Err(failure),
                },
                answer => return answer,
            }
        }
    }

    /// Asks once.
    pub async fn once<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Outcome<T> {
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(from_status(&status).into()),
            Err(_) => Err(Failure::no_answer(
                "deadline",
                format!("the scheduler gave no answer within {} s", DEADLINE.as_secs()),
                "see its log; `tessera status` tells whether it answers at all",
            )),
        }
    }

    pub async fn job(&self, id: JobId) -> Outcome<JobRecord> {
        self.get(id, None).await
    }

    /// A job, or the task of an array with an index.
    pub async fn get(&self, id: JobId, index: Option<u32>) -> Outcome<JobRecord> {
        let request = v1::GetJobRequest { job_id: id.0, index };
        job_record(self.ask(|api| async move { api.jobs().get(request).await }).await?)
    }

    pub async fn list(&self, request: &v1::ListJobsRequest) -> Outcome<JobList> {
        let reply = self.ask(|api| async move { api.jobs().list(request.clone()).await }).await?;
        Ok(JobList {
            jobs: reply.jobs.into_iter().map(job_record).collect::<Outcome<_>>()?,
            total: reply.total,
            gpus_held: reply.gpus_held,
            gpus_total: reply.gpus_total,
            positions: reply.positions.into_iter().map(|(id, p)| (JobId(id), p)).collect(),
            throttles: reply.throttles.into_iter().map(|(id, t)| (JobId(id), t)).collect(),
        })
    }

    pub async fn explain(
        &self,
        subject: v1::explain_request::Subject,
    ) -> Outcome<tessera_model::Explanation> {
        let request = v1::ExplainRequest { subject: Some(subject) };
        let request = &request;
        let reply =
            self.ask(|api| async move { api.jobs().explain(request.clone()).await }).await?;
        explanation(reply)
    }

    /// Nodes by name; none named: all.
    pub async fn node_list(&self, names: &[String]) -> Outcome<Vec<NodeRecord>> {
        let request = &v1::ListNodesRequest { nodes: names.to_vec() };
        let reply = self.ask(|api| async move { api.nodes().list(request.clone()).await }).await?;
        reply.nodes.into_iter().map(node_record).collect()
    }

    /// The map in force, with what is said of it.
    pub async fn topology(&self) -> Outcome<v1::TopologyReply> {
        self.ask(|api| async move { api.admin().get_topology(v1::GetTopologyRequest {}).await })
            .await
    }

    pub async fn who_am_i(&self) -> Outcome<v1::Principal> {
        self.ask(|api| async move { api.admin().who_am_i(v1::WhoAmIRequest {}).await }).await
    }

    /// The newest job of the caller.
    pub async fn last_job(&self) -> Outcome<JobId> {
        let user = self.who_am_i().await?.user;
        let request = v1::ListJobsRequest {
            user: user.clone(),
            ended: true,
            limit: 10_000,
            ..Default::default()
        };
        let newest = self.list(&request).await?.jobs.into_iter().map(|j| j.id).max();
        newest.ok_or_else(|| {
            Failure::no(
                "not_found",
                format!("{user} has no job yet, so there is no last one"),
                "submit one: tessera submit -- hostname",
            )
        })
    }
}

/// An answer of `Jobs.List`.
#[derive(Debug, Clone, PartialEq)]
pub struct JobList {
    pub jobs: Vec<JobRecord>,
    pub total: u64,
    pub gpus_held: u32,
    pub gpus_total: u32,
    /// From 1, of those that wait their turn.
    pub positions: BTreeMap<JobId, u32>,
    /// Of arrays that have one: tasks that may run at once.
    pub throttles: BTreeMap<JobId, u32>,
}

pub fn job_record(job: v1::Job) -> Outcome<JobRecord> {
    jobs::job_from_wire(job).map_err(strange)
}

pub fn node_record(node: v1::Node) -> Outcome<NodeRecord> {
    nodes::node_from_wire(node).map_err(strange)
}

pub fn explanation(reply: v1::ExplainReply) -> Outcome<tessera_model::Explanation> {
    jobs::explanation_from_wire(reply).map_err(strange)
}

/// An answer that this client cannot read: most likely it is older than the scheduler.
pub fn strange(refusal: tessera_model::Refusal) -> Failure {
    Failure::no_answer(
        "strange_answer",
        format!("the scheduler's answer cannot be read: {refusal}"),
        "compare `tessera --version` with the version `tessera status` shows",
    )
}

fn no_line(error: &DialError, settings: &Settings) -> Failure {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    let hint = format!("{} (settings: {})", error.hint(), settings.path.display());
    Failure::no_answer("unavailable", message, hint)
}

/// A user name as the wire has it.
pub fn check_user(text: &str) -> Outcome<String> {
    UserId::parse(text)
        .map(|u| u.to_string())
        .map_err(|bad| Failure::usage(bad.to_string(), "see `tessera queue --all` for names"))
}

/// A key nobody has used before: the time, the process, and what the kernel drew for this call.
pub fn fresh_key() -> String {
    let drawn = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    format!("cli-{}-{}-{}", crate::when::now().0, std::process::id(), drawn.trim())
}
