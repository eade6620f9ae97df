//! The client against a small scheduler of our own, over real gRPC: broken connections, writes that
//! are asked again, and the meaning of words such as `last`.

mod common;

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use common::job;
use tessera::call::Api;
use tessera::commands::{change, logs, submit, wait};
use tessera::selector::{self, Target};
use tessera_model::{JobId, JobRecord, JobState, Refusal, RefusalKind};
use tessera_proto::jobs::job_to_wire;
use tessera_proto::status::to_status;
use tessera_proto::v1::admin_server::{Admin, AdminServer};
use tessera_proto::v1::jobs_server::{Jobs, JobsServer};
use tessera_proto::v1::{self};
use tokio_stream::Stream;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic::{Request, Response, Status};

/// What the fake was asked, and how it is to misbehave.
#[derive(Default)]
struct Script {
    jobs: Vec<JobRecord>,
    submits: Vec<v1::SubmitRequest>,
    logs: Vec<v1::LogsRequest>,
    changes: Vec<String>,
    watches: u32,
    tokens: Vec<String>,
    /// So many calls are answered with "unavailable" first.
    away: u32,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    #[allow(clippy::result_large_err)] // What tonic wants.
    fn door<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let mut script = self.0.lock().unwrap();
        let token = request.metadata().get("authorization").map(|t| t.to_str().unwrap().to_owned());
        script.tokens.extend(token);
        if script.away > 0 {
            script.away -= 1;
            let refusal = Refusal::new(RefusalKind::Unavailable, "", "starting up", "ask again");
            return Err(to_status(&refusal));
        }
        Ok(())
    }

    #[allow(clippy::result_large_err)]
    fn find(&self, id: u64) -> Result<v1::Job, Status> {
        let script = self.0.lock().unwrap();
        let job = script.jobs.iter().find(|j| j.id.0 == id).map(job_to_wire);
        job.ok_or_else(|| {
            to_status(&Refusal::not_found(format!("there is no job {id}"), "see `tessera queue`"))
        })
    }
}

/// What all requests that change jobs begin with.
trait Names: std::fmt::Debug {
    fn named(&self) -> (u64, Option<u32>);
}

macro_rules! names {
    ($($request:ident)*) => {$(
        impl Names for v1::$request {
            fn named(&self) -> (u64, Option<u32>) {
                (self.job_id, self.index)
            }
        }
    )*};
}
names!(CancelRequest HoldRequest ReleaseRequest UpdateRequest SignalRequest);

impl Fake {
    #[allow(clippy::result_large_err)]
    fn changed<R: Names>(
        &self,
        verb: &str,
        request: Request<R>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        let asked = format!("{verb} {:?}", request.get_ref());
        self.0.lock().unwrap().changes.push(asked);
        self.door(&request)?;
        let (job, index) = request.get_ref().named();
        let job = self.find(job + u64::from(index.unwrap_or(0)))?;
        Ok(Response::new(v1::ChangeReply { job: Some(job), changed: 1 }))
    }
}

type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn flow<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Response<Flow<T>> {
    Response::new(Box::pin(tokio_stream::iter(items)))
}

#[tonic::async_trait]
impl Jobs for Fake {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        // The request has arrived, and its answer is lost.
        let arrived = request.get_ref().clone();
        self.0.lock().unwrap().submits.push(arrived);
        self.door(&request)?;
        Ok(Response::new(v1::SubmitReply { job_id: 7, ..Default::default() }))
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        self.door(&request)?;
        let request = request.get_ref();
        self.find(request.job_id + u64::from(request.index.unwrap_or(0))).map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        self.door(&request)?;
        let request = request.get_ref();
        let script = self.0.lock().unwrap();
        let jobs = script.jobs.iter().filter(|j| {
            (request.ended || !j.state.is_terminal())
                && (request.user.is_empty() || j.spec.user.as_str() == request.user)
        });
        let jobs: Vec<v1::Job> = jobs.map(job_to_wire).collect();
        Ok(Response::new(v1::ListJobsReply {
            total: jobs.len() as u64,
            jobs,
            ..Default::default()
        }))
    }

    async fn explain(
        &self,
        _: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainReply>, Status> {
        Err(Status::unimplemented("the fake explains nothing"))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.changed("cancel", request)
    }

    async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.changed("hold", request)
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.changed("release", request)
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.changed("update", request)
    }

    async fn signal(
        &self,
        request: Request<v1::SignalRequest>,
    ) -> Result<Response<v1::ChangeReply>, Status> {
        self.changed("signal", request)
    }

    async fn report_checkpoint(
        &self,
        request: Request<v1::ReportCheckpointRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        self.door(&request)?;
        self.find(request.get_ref().job_id).map(Response::new)
    }

    type WatchStream = Flow<v1::Job>;
    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.door(&request)?;
        let mut job = self.find(request.get_ref().job_id)?;
        let mut script = self.0.lock().unwrap();
        script.watches += 1;
        if script.watches == 1 {
            job.state = v1::JobState::Running.into();
            return Ok(flow(vec![Ok(job), Err(Status::unavailable("the scheduler went away"))]));
        }
        Ok(flow(vec![Ok(job)]))
    }

    type LogsStream = Flow<v1::LogChunk>;
    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        self.door(&request)?;
        let request = request.into_inner();
        let chunk = |rank, offset, data: &'static [u8], gap: &str| {
            Ok(v1::LogChunk { rank, offset, data: data.into(), gap: gap.to_owned() })
        };
        let mut script = self.0.lock().unwrap();
        script.logs.push(request.clone());
        if script.logs.len() == 1 {
            return Ok(flow(vec![
                chunk(0, 0, b"one ", ""),
                chunk(1, 0, b"eins", ""),
                Err(Status::unavailable("the scheduler went away")),
            ]));
        }
        Ok(flow(vec![
            // Half of it was sent already.
            chunk(0, 2, b"e two", ""),
            chunk(1, 10, b"drei", "rotated away"),
            chunk(0, 9, b"", ""),
        ]))
    }
}

#[tonic::async_trait]
impl Admin for Fake {
    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::Principal>, Status> {
        self.door(&request)?;
        let me = v1::Principal { user: "ada".into(), role: "member".into(), teams: vec![] };
        Ok(Response::new(me))
    }
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_teams(
        &self,
        _: Request<v1::ListTeamsRequest>,
    ) -> Result<Response<v1::ListTeamsReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_team(
        &self,
        _: Request<v1::CreateTeamRequest>,
    ) -> Result<Response<v1::Team>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_token(
        &self,
        _: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn revoke_token(
        &self,
        _: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::Token>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn share_team(
        &self,
        _: Request<v1::ShareTeamRequest>,
    ) -> Result<Response<v1::ShareTeamReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn reserve(
        &self,
        _: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn end_reservation(
        &self,
        _: Request<v1::EndReservationRequest>,
    ) -> Result<Response<v1::Reservation>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_reservations(
        &self,
        _: Request<v1::ListReservationsRequest>,
    ) -> Result<Response<v1::ListReservationsReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_topology(
        &self,
        _: Request<v1::GetTopologyRequest>,
    ) -> Result<Response<v1::TopologyReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn load_topology(
        &self,
        _: Request<v1::LoadTopologyRequest>,
    ) -> Result<Response<v1::LoadTopologyReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mark_domain(
        &self,
        _: Request<v1::MarkDomainRequest>,
    ) -> Result<Response<v1::DomainMark>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_join_token(
        &self,
        _: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn start(script: Script) -> (Fake, Api) {
    let fake = Fake(Arc::new(Mutex::new(script)));
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let server = Server::builder()
        .add_service(JobsServer::new(fake.clone()))
        .add_service(AdminServer::new(fake.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await;
    (fake, Api::over(channel.unwrap(), "tsr_secret").unwrap())
}

fn ended(id: u64, state: JobState, code: i32) -> JobRecord {
    JobRecord {
        started_at: Some(common::ago("5m")),
        ended_at: Some(common::ago("1m")),
        exit_code: Some(code),
        reason: if code == 0 { String::new() } else { format!("rank 0 exited with {code}") },
        ..job(id, "train", "nlp", 1, 1, state)
    }
}

#[tokio::test]
async fn a_submit_whose_answer_is_lost_is_sent_again_under_the_same_key() {
    let (fake, api) = start(Script { away: 2, ..Default::default() }).await;
    let reply = submit::send(&api, v1::JobSpec::default(), None, "k1".to_owned()).await.unwrap();
    assert_eq!(reply.job_id, 7);
    let script = fake.0.lock().unwrap();
    let keys: Vec<&str> = script.submits.iter().map(|s| s.idempotency_key.as_str()).collect();
    assert_eq!(keys, ["k1", "k1", "k1"]);
    assert!(script.tokens.iter().all(|t| t == "Bearer tsr_secret"));
}

#[tokio::test]
async fn logs_go_on_where_they_broke_off_and_print_nothing_twice() {
    let (fake, api) = start(Script::default()).await;
    let mut got: Vec<(u32, String)> = Vec::new();
    let request = v1::LogsRequest { job_id: 1, follow: true, ..Default::default() };
    logs::pull(&api, request, |piece| {
        got.push(match piece {
            logs::Piece::Bytes { rank, data, .. } => {
                (rank, String::from_utf8_lossy(data).into_owned())
            }
            logs::Piece::Gap { rank, why } => (rank, format!("gap: {why}")),
        });
        Ok(())
    })
    .await
    .unwrap();
    let want =
        [(0, "one "), (1, "eins"), (0, "two"), (1, "gap: rotated away"), (1, "drei"), (0, "gap")];
    let got_short: Vec<(u32, &str)> = got.iter().map(|(r, t)| (*r, t.as_str())).collect();
    assert_eq!(got_short[..5], want[..5]);
    let offsets = &fake.0.lock().unwrap().logs[1].offsets;
    assert_eq!(offsets.iter().map(|(r, o)| (*r, *o)).collect::<Vec<_>>(), [(0, 4), (1, 4)]);
}

#[tokio::test]
async fn wait_sees_the_end_over_a_broken_watch() {
    let jobs = vec![ended(5, JobState::Failed, 3)];
    let (fake, api) = start(Script { jobs, ..Default::default() }).await;
    let mut seen = Vec::new();
    let job = wait::until_end(&api, JobId(5), |job| seen.push(job.state)).await.unwrap();
    assert_eq!(seen, [JobState::Running, JobState::Failed]);
    assert_eq!(wait::exit_code(&job), 1);
    assert_eq!(wait::ended(&job), "job 5 failed with exit code 3: rank 0 exited with 3");
    assert_eq!(fake.0.lock().unwrap().watches, 2);
}

#[tokio::test]
async fn last_is_the_callers_newest_job_and_what_is_not_there_is_a_no() {
    let mut other = ended(9, JobState::Succeeded, 0);
    other.spec.user = tessera_model::UserId::parse("bob").unwrap();
    let jobs = vec![
        job(4, "a", "nlp", 1, 1, JobState::Pending),
        ended(8, JobState::Succeeded, 0),
        other,
        ended(3, JobState::Failed, 1),
    ];
    let (_fake, api) = start(Script { jobs, ..Default::default() }).await;
    let words = ["last", "3-4"].map(str::to_owned);
    let ids = selector::resolve(&api, &words).await.unwrap();
    assert_eq!(ids, [JobId(8), JobId(3), JobId(4)]);
    let failure = change::cancel_one(api.clone(), Target::job(JobId(77))).await.err().unwrap();
    assert_eq!((failure.exit, failure.kind), (1, "not_found"));
    assert_eq!(failure.message, "there is no job 77");
    assert_eq!(failure.hint, "see `tessera queue`");
}

#[tokio::test]
async fn a_scheduler_that_stays_away_is_no_answer() {
    let (_fake, api) = start(Script { away: u32::MAX, ..Default::default() }).await;
    let failure = api.job(JobId(1)).await.unwrap_err();
    assert_eq!((failure.exit, failure.kind), (2, "unavailable"));
}

fn task(id: u64, index: u32) -> JobRecord {
    let array = Some(tessera_model::ArrayTask { array: JobId(id - u64::from(index)), index });
    JobRecord { array, ..job(id, "sweep", "nlp", 1, 1, JobState::Pending) }
}

#[tokio::test]
async fn an_array_is_one_thing_to_change_and_all_its_tasks_to_wait_for() {
    let jobs =
        vec![job(3, "a", "nlp", 1, 1, JobState::Pending), task(4, 0), task(5, 1), task(6, 2)];
    let (_fake, api) = start(Script { jobs, ..Default::default() }).await;
    let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
    let targets = selector::targets(&api, &words("last 4_1 3-4")).await.unwrap();
    let told: Vec<String> =
        targets.iter().map(|t| format!("{t}{}", if t.only { "!" } else { "" })).collect();
    assert_eq!(told, ["4", "4_1", "3!"], "the newest is a task, and its array is meant");
    let ids = selector::resolve(&api, &words("4_2 3")).await.unwrap();
    assert_eq!(ids, [JobId(6), JobId(3)]);
    let ids = selector::resolve_tasks(&api, &words("4 3 4_1")).await.unwrap();
    assert_eq!(ids, [4, 5, 6, 3].map(JobId));
    assert_eq!(selector::resolve_tasks(&api, &words("5")).await.unwrap(), [JobId(5)]);
}

#[tokio::test]
async fn a_wish_for_several_jobs_reaches_those_it_can() {
    let mut placed = job(4, "a", "nlp", 4, 8, JobState::Pending);
    let level = |l: &str| tessera_model::Within {
        level: l.to_owned(),
        strength: tessera_model::Strength::Required,
    };
    placed.spec.placement.within = vec![level("block")];
    placed.spec.placement.balance = Some("leaf".to_owned());
    let (fake, api) = start(Script { jobs: vec![placed], away: 1, ..Default::default() }).await;
    let screen = tessera::output::Screen {
        json: true,
        tty: false,
        width: 80,
        colour: false,
        stderr_colour: false,
        unicode: true,
    };
    let run = |line: &str| {
        let args = line.split(' ').map(std::ffi::OsString::from);
        tessera::cli::Cli::read(args).unwrap().verb
    };
    use tessera::cli::Verb;
    let Verb::Hold(args) = run("tessera hold 9 4") else { panic!() };
    let failure = change::hold(&api, &args, &screen).await.unwrap_err();
    assert_eq!((failure.exit, failure.message.as_str()), (1, "there is no job 9"));
    let Verb::Signal(args) = run("tessera signal usr1 4") else { panic!() };
    assert_eq!(change::signal(&api, &args, &screen).await, Ok(0));
    let Verb::Update(args) = run("tessera update 4 --within leaf:preferred -N 2 --after none")
    else {
        panic!()
    };
    assert_eq!(change::update(&api, &args, &screen).await, Ok(0));
    let Verb::Update(args) = run("tessera update 4 --anywhere") else { panic!() };
    assert_eq!(change::update(&api, &args, &screen).await, Ok(0));
    let Verb::Update(args) = run("tessera update 4") else { panic!() };
    assert!(change::update(&api, &args, &screen).await.unwrap_err().message.contains("nothing"));

    let changes = fake.0.lock().unwrap().changes.clone();
    let verbs: Vec<&str> = changes.iter().filter_map(|c| c.split(' ').next()).collect();
    // The first was answered with "unavailable", and asked again.
    assert_eq!(verbs, ["hold", "hold", "hold", "signal", "update", "update"]);
    assert!(changes[3].contains("signal: 10"), "{}", changes[3]);
    let update = &changes[4];
    for part in ["nodes: Some(2)", "level: \"leaf\", required: false", "balance: \"leaf\""] {
        assert!(update.contains(part), "{part}: {update}");
    }
    assert!(update.contains("after: Some(Dependencies { on: [] })"), "{update}");
    assert!(!update.contains("block"), "the kind that is named is replaced: {update}");
    assert!(changes[5].contains("within: []") && changes[5].contains("balance: \"\""));
}
