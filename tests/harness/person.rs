//! Somebody with a token, who asks the scheduler by gRPC.
//!
//! In: settings as `client.toml` has them. Out: answers, or refusals in our own words. Reads are
//! asked again while the scheduler is away; what changes something is asked once unless its name
//! says otherwise. A person may be cloned and used from any thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tessera_model::{Refusal, RefusalKind};
use tessera_proto::dial::{Dial, DialError, Trust, connect};
use tessera_proto::status::from_status;
use tessera_proto::v1::{
    self, JobState, admin_client::AdminClient, jobs_client::JobsClient, nodes_client::NodesClient,
    usage_client::UsageClient,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::RUNTIME;
use crate::wait::{PATIENCE, until, until_within};

pub type Line = InterceptedService<Channel, Bearer>;

/// Puts the token on every call; none, for those who have none.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[derive(Clone)]
pub struct Person {
    pub server: String,
    pub ca: String,
    pub token: String,
    channel: Channel,
}

impl Person {
    /// Connects. An empty token is sent as none at all.
    pub fn connect(server: &str, ca: &str, token: &str) -> Result<Self, DialError> {
        let trust = Trust::CaPem(ca.to_owned());
        let dial = Dial { server: server.to_owned(), trust, identity: None };
        let channel = RUNTIME.block_on(connect(&dial))?;
        let own = |text: &str| text.to_owned();
        Ok(Self { server: own(server), ca: own(ca), token: own(token), channel })
    }

    /// Over a connection of its own, as another program would.
    pub fn again(&self) -> Self {
        Self::connect(&self.server, &self.ca, &self.token).expect("the scheduler can be reached")
    }

    fn line(&self) -> Line {
        let text = format!("Bearer {}", self.token);
        let header = (!self.token.is_empty()).then(|| text.parse().expect("tokens are ASCII"));
        InterceptedService::new(self.channel.clone(), Bearer(header))
    }

    pub fn jobs(&self) -> JobsClient<Line> {
        JobsClient::new(self.line()).max_decoding_message_size(64 << 20)
    }

    pub fn nodes(&self) -> NodesClient<Line> {
        NodesClient::new(self.line()).max_decoding_message_size(64 << 20)
    }

    pub fn usage(&self) -> UsageClient<Line> {
        UsageClient::new(self.line()).max_decoding_message_size(64 << 20)
    }

    pub fn admin(&self) -> AdminClient<Line> {
        AdminClient::new(self.line())
    }

    /// Asks once.
    pub fn once<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        let bounded = async { tokio::time::timeout(Duration::from_secs(30), call).await };
        match RUNTIME.block_on(bounded) {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(from_status(&status)),
            Err(_) => Err(Refusal::new(RefusalKind::Unavailable, "", "no answer within 30 s", "")),
        }
    }

    /// Asks until the scheduler is there.
    pub fn ask<T, F, Fut>(&self, call: F) -> Result<T, Refusal>
    where
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let answer = until_within(PATIENCE, || match self.once(call(self.clone())) {
            Err(refusal) if refusal.kind == RefusalKind::Unavailable => Err(refusal.message),
            answer => Ok(answer),
        });
        answer.unwrap_or_else(|why| Err(Refusal::new(RefusalKind::Unavailable, "", why, "")))
    }

    // ---- jobs

    pub fn try_submit(&self, spec: v1::JobSpec, key: &str) -> Result<v1::SubmitReply, Refusal> {
        let request =
            v1::SubmitRequest { spec: Some(spec), idempotency_key: key.to_owned(), array: None };
        self.once(async { self.jobs().submit(request).await })
    }

    /// The id.
    #[track_caller]
    pub fn submit(&self, spec: v1::JobSpec) -> u64 {
        match self.try_submit(spec, "") {
            Ok(reply) => reply.job_id,
            Err(no) => panic!("not submitted: {no} ({}; {})", no.field, no.hint),
        }
    }

    pub fn try_job(&self, job_id: u64) -> Result<v1::Job, Refusal> {
        self.ask(|p| async move { p.jobs().get(v1::GetJobRequest { job_id, index: None }).await })
    }

    #[track_caller]
    pub fn job(&self, job_id: u64) -> v1::Job {
        self.try_job(job_id).unwrap_or_else(|no| panic!("job {job_id}: {no}"))
    }

    /// All there are, ended ones too.
    pub fn all_jobs(&self) -> Vec<v1::Job> {
        let request = v1::ListJobsRequest { ended: true, limit: 10_000, ..Default::default() };
        let reply = self.ask(|p| {
            let request = request.clone();
            async move { p.jobs().list(request).await }
        });
        reply.expect("jobs are listed").jobs
    }

    /// Waits on a Watch stream for a state, or any that ends it; over restarts of the scheduler.
    #[track_caller]
    fn watch(&self, job_id: u64, enough: impl Fn(JobState) -> bool) -> v1::Job {
        let watch = async {
            let mut last = None;
            loop {
                let request = v1::WatchRequest { job_id };
                match self.jobs().watch(request).await {
                    Ok(stream) => {
                        let mut stream = stream.into_inner();
                        while let Ok(Some(job)) = stream.message().await {
                            if enough(job.state()) || is_over(job.state()) {
                                return Ok(job);
                            }
                            last = Some(job);
                        }
                    }
                    Err(status) if from_status(&status).kind == RefusalKind::Unavailable => {}
                    Err(status) => return Err((from_status(&status), last)),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match RUNTIME.block_on(async { tokio::time::timeout(PATIENCE, watch).await }) {
            Ok(Ok(job)) => job,
            Ok(Err((no, last))) => panic!("job {job_id}: {no}; last seen: {last:?}"),
            Err(_) => panic!("job {job_id} does not get there: {:?}", self.job(job_id)),
        }
    }

    /// Its record once it has ended.
    #[track_caller]
    pub fn wait(&self, job: u64) -> v1::Job {
        self.watch(job, is_over)
    }

    #[track_caller]
    pub fn wait_running(&self, job: u64) -> v1::Job {
        self.wait_for(job, JobState::Running)
    }

    #[track_caller]
    pub fn wait_for(&self, job: u64, state: JobState) -> v1::Job {
        let record = self.watch(job, |s| s == state);
        assert_eq!(record.state(), state, "job {job}: {}", record.reason);
        record
    }

    #[track_caller]
    pub fn cancel(&self, job_id: u64) -> v1::Job {
        let request = v1::CancelRequest { job_id, ..Default::default() };
        let reply = self.once(async { self.jobs().cancel(request).await });
        let reply = reply.unwrap_or_else(|no| panic!("job {job_id} is not cancelled: {no}"));
        reply.job.expect("the job that was named")
    }

    pub fn explain_job(&self, job_id: u64) -> v1::ExplainReply {
        let subject = Some(v1::explain_request::Subject::JobId(job_id));
        let reply = self.once(async { self.jobs().explain(v1::ExplainRequest { subject }).await });
        reply.unwrap_or_else(|no| panic!("job {job_id} is not explained: {no}"))
    }

    pub fn explain_spec(&self, spec: v1::JobSpec) -> v1::ExplainReply {
        let subject = Some(v1::explain_request::Subject::Spec(spec));
        let reply = self.once(async { self.jobs().explain(v1::ExplainRequest { subject }).await });
        reply.unwrap_or_else(|no| panic!("it is not explained: {no}"))
    }

    /// What each rank wrote, all of it; the job must have ended. Asked again while a node's agent
    /// is not there to tell.
    #[track_caller]
    pub fn logs(&self, job: u64) -> BTreeMap<u32, String> {
        until(&format!("the whole output of job {job}"), || self.logs_now(job))
    }

    /// The same, or why there is no answer or some bytes are missing.
    pub fn logs_now(&self, job_id: u64) -> Result<BTreeMap<u32, String>, String> {
        let request = v1::LogsRequest { job_id, ..Default::default() };
        let read = async {
            let words = |status: Status| from_status(&status).message;
            let mut bytes: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            let mut stream = self.jobs().logs(request).await.map_err(words)?.into_inner();
            while let Some(chunk) = stream.message().await.map_err(words)? {
                if !chunk.gap.is_empty() {
                    return Err(format!("rank {}: {}", chunk.rank, chunk.gap));
                }
                bytes.entry(chunk.rank).or_default().extend_from_slice(&chunk.data);
            }
            Ok(bytes)
        };
        let all = RUNTIME.block_on(async { tokio::time::timeout(PATIENCE, read).await });
        let all = all.unwrap_or_else(|_| Err("it has no end".to_owned()))?;
        Ok(all.into_iter().map(|(r, b)| (r, String::from_utf8_lossy(&b).into_owned())).collect())
    }

    // ---- nodes

    pub fn all_nodes(&self) -> Vec<v1::Node> {
        let reply =
            self.ask(|p| async move { p.nodes().list(v1::ListNodesRequest::default()).await });
        reply.expect("nodes are listed").nodes
    }

    #[track_caller]
    pub fn node(&self, name: &str) -> v1::Node {
        let nodes = self.all_nodes().into_iter();
        let mut named = nodes.filter(|n| n.inventory.as_ref().is_some_and(|i| i.node == name));
        named.next().unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// The condition's word of one GPU, by its index.
    #[track_caller]
    pub fn condition(&self, node: &str, gpu: usize) -> String {
        let node = self.node(node);
        node.gpus[gpu].condition.as_ref().map(|c| c.word.clone()).unwrap_or_default()
    }

    pub fn latest(&self, node: &str) -> v1::LatestReply {
        let reply = self.ask(|p| {
            let node = node.to_owned();
            async move { p.nodes().latest(v1::LatestRequest { node }).await }
        });
        reply.unwrap_or_else(|no| panic!("no reading of {node}: {no}"))
    }

    #[track_caller]
    pub fn cordon(&self, node: &str, drain: bool) {
        let request =
            v1::CordonRequest { node: node.to_owned(), drain, reason: "a test".to_owned() };
        let done = self.once(async { self.nodes().cordon(request).await });
        done.unwrap_or_else(|no| panic!("{node} is not cordoned: {no}"));
    }

    #[track_caller]
    pub fn uncordon(&self, node: &str) {
        let request = v1::UncordonRequest { node: node.to_owned() };
        let done = self.once(async { self.nodes().uncordon(request).await });
        done.unwrap_or_else(|no| panic!("{node} is not uncordoned: {no}"));
    }

    // ---- money

    pub fn report(&self, from: i64, to: i64, by: &[&str]) -> v1::UsageReply {
        let request = v1::UsageRequest {
            from_unix_ms: from,
            to_unix_ms: to,
            by: by.iter().map(|k| (*k).to_owned()).collect(),
            teams: Vec::new(),
        };
        let reply = self.ask(|p| {
            let request = request.clone();
            async move { p.usage().report(request).await }
        });
        reply.unwrap_or_else(|no| panic!("no report: {no}"))
    }

    #[track_caller]
    pub fn set_price(&self, gpu_model: &str, usd_per_gpu_hour: &str) {
        let price = v1::Price {
            gpu_model: gpu_model.to_owned(),
            usd_per_gpu_hour: usd_per_gpu_hour.to_owned(),
        };
        let request = v1::SetPricesRequest { prices: vec![price], ..Default::default() };
        let done = self.once(async { self.usage().set_prices(request).await });
        done.unwrap_or_else(|no| panic!("the price is not set: {no}"));
    }

    // ---- people

    #[track_caller]
    pub fn create_team(&self, team: &str) {
        let request = v1::CreateTeamRequest { team: team.to_owned(), description: String::new() };
        match self.once(async { self.admin().create_team(request).await }) {
            Ok(_) => {}
            Err(no) if no.kind == RefusalKind::AlreadyExists => {}
            Err(no) => panic!("team {team} is not made: {no}"),
        }
    }

    /// A new person with a token of its own.
    #[track_caller]
    pub fn create_person(&self, user: &str, role: &str, teams: &[&str]) -> Self {
        let request = v1::CreateTokenRequest {
            user: user.to_owned(),
            role: role.to_owned(),
            teams: teams.iter().map(|t| (*t).to_owned()).collect(),
            ..Default::default()
        };
        let reply = self.once(async { self.admin().create_token(request).await });
        let reply = reply.unwrap_or_else(|no| panic!("no token for {user}: {no} ({})", no.hint));
        Self::connect(&self.server, &self.ca, &reply.secret).expect("the scheduler can be reached")
    }

    #[track_caller]
    pub fn join_token(&self, node: &str) -> String {
        let request = v1::CreateJoinTokenRequest { node: node.to_owned() };
        let reply = self.once(async { self.admin().create_join_token(request).await });
        reply.unwrap_or_else(|no| panic!("no join token for {node}: {no}")).token
    }

    /// Waits until a node is up and was heard of after `after`.
    #[track_caller]
    pub fn wait_node_up(&self, name: &str, after: i64) {
        until(&format!("{name} to be up"), || {
            let nodes = self.all_nodes();
            let node = nodes.iter().find(|n| n.inventory.as_ref().is_some_and(|i| i.node == name));
            match node {
                Some(n) if n.state == "up" && n.last_seen_unix_ms > after => Ok(()),
                Some(n) => Err(format!(
                    "{}, last seen {} (want after {after})",
                    n.state, n.last_seen_unix_ms
                )),
                None => Err("it has not joined".to_owned()),
            }
        });
    }
}

pub fn is_over(state: JobState) -> bool {
    use JobState::{Cancelled, Failed, Lost, Succeeded};
    matches!(state, Succeeded | Failed | Cancelled | Lost)
}
