//! Who is calling, and whether this call is for such as them. One table, deny by default.
//!
//! In: a request with its [`Peer`] and perhaps a bearer token. Out: the request with a [`Caller`],
//! or a status with a hint. What a role may do in detail stands in the core's `access`; a test here
//! walks all services and fails if one of their methods has no rule.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HeaderValue};
use parking_lot::Mutex;
use tonic::Status;

use tessera_core::Cluster;
use tessera_core::access::{self, Verb};
use tessera_model::{NodeId, Principal, Refusal, RefusalKind, UnixMillis};
use tessera_proto::status::to_status;

use super::listen::Peer;
use crate::config::wall_clock;
use crate::tokens::{self, Shown};
use crate::writer::Handle;

/// Who may call a method at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// People and services with a token whose role may do this.
    Person(Verb),
    /// A node, by its certificate.
    Node,
    /// Everybody; what it gives away is meant for everybody.
    Anyone,
}

/// Every method there is. One that is not here cannot be called.
pub const RULES: &[(&str, Rule)] = &[
    ("/tessera.v1.Jobs/Submit", Rule::Person(Verb::Submit)),
    ("/tessera.v1.Jobs/Get", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/List", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Explain", Rule::Person(Verb::Look)),
    // Whose jobs one may cancel, hold, change and so on depends on the job.
    ("/tessera.v1.Jobs/Cancel", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Hold", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Release", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Update", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Signal", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/ReportCheckpoint", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Watch", Rule::Person(Verb::Look)),
    ("/tessera.v1.Jobs/Logs", Rule::Person(Verb::Look)),
    ("/tessera.v1.Nodes/List", Rule::Person(Verb::Look)),
    ("/tessera.v1.Nodes/Cordon", Rule::Person(Verb::ManageNodes)),
    ("/tessera.v1.Nodes/Uncordon", Rule::Person(Verb::ManageNodes)),
    ("/tessera.v1.Nodes/Retire", Rule::Person(Verb::ManageNodes)),
    ("/tessera.v1.Nodes/Latest", Rule::Person(Verb::Look)),
    ("/tessera.v1.Usage/Report", Rule::Person(Verb::Look)),
    ("/tessera.v1.Usage/GetPrices", Rule::Person(Verb::SeePrices)),
    ("/tessera.v1.Usage/SetPrices", Rule::Person(Verb::SetPrices)),
    ("/tessera.v1.Admin/WhoAmI", Rule::Person(Verb::Look)),
    ("/tessera.v1.Admin/Status", Rule::Person(Verb::Look)),
    ("/tessera.v1.Admin/ListTeams", Rule::Person(Verb::Look)),
    ("/tessera.v1.Admin/CreateTeam", Rule::Person(Verb::ManageTeams)),
    ("/tessera.v1.Admin/ShareTeam", Rule::Person(Verb::ManageTeams)),
    ("/tessera.v1.Admin/ListTokens", Rule::Person(Verb::ManageTeams)),
    ("/tessera.v1.Admin/CreateToken", Rule::Person(Verb::ManageTeams)),
    ("/tessera.v1.Admin/RevokeToken", Rule::Person(Verb::ManageTeams)),
    ("/tessera.v1.Admin/CreateJoinToken", Rule::Person(Verb::ManageNodes)),
    ("/tessera.v1.Admin/Reserve", Rule::Person(Verb::Reserve)),
    ("/tessera.v1.Admin/EndReservation", Rule::Person(Verb::Reserve)),
    ("/tessera.v1.Admin/ListReservations", Rule::Person(Verb::Look)),
    ("/tessera.v1.Admin/GetTopology", Rule::Person(Verb::Look)),
    ("/tessera.v1.Admin/LoadTopology", Rule::Person(Verb::ManageNodes)),
    ("/tessera.v1.Admin/MarkDomain", Rule::Person(Verb::ManageNodes)),
    // Shows a join token in the message itself.
    ("/tessera.v1.Agents/Join", Rule::Anyone),
    ("/tessera.v1.Agents/Renew", Rule::Node),
    ("/tessera.v1.Agents/Control", Rule::Node),
    ("/tessera.v1.Agents/Telemetry", Rule::Node),
    ("/tessera.v1.Agents/Logs", Rule::Node),
    ("/grpc.health.v1.Health/Check", Rule::Anyone),
    ("/grpc.health.v1.Health/Watch", Rule::Anyone),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Rule::Anyone),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Rule::Anyone),
];

/// The authenticated caller; set on every request that gets past [`guard`].
#[derive(Debug, Clone)]
pub enum Caller {
    Person(Arc<Principal>),
    Node(NodeId),
    Anyone,
}

/// The person behind a call whose rule says that there is one.
pub fn person<T>(request: &tonic::Request<T>) -> Result<Arc<Principal>, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Person(principal)) => Ok(principal.clone()),
        _ => Err(Status::internal("the call came past the guard without a person")),
    }
}

/// The node behind a call whose rule says that there is one.
pub fn node<T>(request: &tonic::Request<T>) -> Result<NodeId, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Node(node)) => Ok(node.clone()),
        _ => Err(Status::internal("the call came past the guard without a node")),
    }
}

fn rule(path: &str) -> Option<Rule> {
    RULES.iter().find(|(p, _)| *p == path).map(|(_, rule)| *rule)
}

/// How long a token's principal is believed without asking again. A revocation here counts at once.
const CACHE_FOR: Duration = Duration::from_secs(2);
const CACHE_MAX: usize = 10_000;

/// Finds the principal behind a token, without asking the writer for each call.
pub struct Gate {
    handle: Handle,
    cache: Mutex<HashMap<Shown, Known>>,
    /// Grows with each revocation; what was looked up before one is not kept after it.
    generation: AtomicU64,
}

struct Known {
    principal: Arc<Principal>,
    expires: Option<UnixMillis>,
    looked_up: Instant,
}

impl Gate {
    pub fn new(handle: Handle) -> Self {
        Self { handle, cache: Mutex::default(), generation: AtomicU64::new(0) }
    }

    /// Forgets all it knows. Called once a revocation is durable.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.cache.lock().clear();
    }

    async fn admit(
        &self,
        rule: Rule,
        peer: Option<Peer>,
        authorization: Option<HeaderValue>,
    ) -> Result<Caller, Refusal> {
        match rule {
            Rule::Anyone => Ok(Caller::Anyone),
            Rule::Node => peer.and_then(|p| p.node).map(Caller::Node).ok_or_else(no_certificate),
            Rule::Person(verb) => {
                let header = authorization.ok_or_else(no_token)?;
                let text = header.to_str().map_err(|_| bad_token())?;
                let token = text.strip_prefix("Bearer ").ok_or_else(bad_token)?;
                let shown = tokens::read(token.trim()).ok_or_else(bad_token)?;
                let principal = self.principal(shown).await?;
                access::require(&principal, verb)?;
                Ok(Caller::Person(principal))
            }
        }
    }

    async fn principal(&self, shown: Shown) -> Result<Arc<Principal>, Refusal> {
        let now = wall_clock();
        if let Some(known) = self.cache.lock().get(&shown)
            && known.looked_up.elapsed() < CACHE_FOR
            && known.expires.is_none_or(|e| e > now)
        {
            return Ok(known.principal.clone());
        }
        let generation = self.generation.load(Ordering::Acquire);
        let asked = shown.clone();
        let (principal, expires) =
            self.handle.read(move |view| look_up(view.cluster, &asked, now)).await??;
        let known = Known { principal: Arc::new(principal), expires, looked_up: Instant::now() };
        let principal = known.principal.clone();
        let mut cache = self.cache.lock();
        if self.generation.load(Ordering::Acquire) == generation {
            if cache.len() >= CACHE_MAX {
                cache.clear();
            }
            cache.insert(shown, known);
        }
        Ok(principal)
    }
}

/// The principal of a token, as long as it is good.
pub(crate) fn look_up(
    cluster: &Cluster,
    shown: &Shown,
    now: UnixMillis,
) -> Result<(Principal, Option<UnixMillis>), Refusal> {
    let token = cluster.tokens.get(&shown.id).filter(|t| tokens::same(&t.hash, &shown.hash));
    let Some(token) = token else { return Err(bad_token()) };
    if token.revoked {
        return Err(unauthenticated(
            format!("the token {} was revoked", shown.id),
            "ask an admin for a new one",
        ));
    }
    if let Some(expired) = token.expires.filter(|e| *e <= now) {
        return Err(unauthenticated(
            format!("the token {} expired at {expired}", shown.id),
            "ask an admin for a new one",
        ));
    }
    Ok((token.principal.clone(), token.expires))
}

fn unauthenticated(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(RefusalKind::Unauthenticated, "", message, hint)
}

fn no_token() -> Refusal {
    unauthenticated(
        "the call carries no token",
        "use the client.toml the scheduler wrote: `tessera --config FILE …` or TESSERA_CONFIG",
    )
}

fn bad_token() -> Refusal {
    unauthenticated(
        "the token is not known",
        "it may belong to another cluster: compare `token` in your client.toml with the one in the scheduler's data folder",
    )
}

fn no_certificate() -> Refusal {
    unauthenticated(
        "the call is for nodes and the connection shows no node's certificate",
        "start the agent with a join token: `TESSERA_JOIN_TOKEN=TOKEN tessera-agent …`",
    )
}

/// Lets a request through to its service, or answers it.
pub async fn guard(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let Some(rule) = rule(request.uri().path()) else {
        return Status::unimplemented("there is no such method").into_http::<Body>();
    };
    let peer = request.extensions().get::<Peer>().cloned();
    let authorization = request.headers().get(AUTHORIZATION).cloned();
    match gate.admit(rule, peer, authorization).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => {
            if refusal.kind == RefusalKind::Unauthenticated {
                let peer = request.extensions().get::<Peer>().map(|p| p.address.to_string());
                tracing::warn!(
                    peer = peer.unwrap_or_default(),
                    method = request.uri().path(),
                    reason = %refusal,
                    "turned a caller away"
                );
            }
            to_status(&refusal).into_http::<Body>()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_has_a_rule_and_every_rule_a_method() {
        let mut methods = BTreeSet::new();
        for bytes in [
            tessera_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(bytes).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        methods.insert(format!(
                            "/{}.{}/{}",
                            file.package(),
                            service.name(),
                            method.name()
                        ));
                    }
                }
            }
        }
        let rules: BTreeSet<String> = RULES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(rules.len(), RULES.len(), "a method has two rules");
        assert_eq!(methods, rules);
    }

    #[test]
    fn only_what_is_meant_for_everybody_is_open_to_everybody() {
        let open: Vec<&str> =
            RULES.iter().filter(|(_, r)| *r == Rule::Anyone).map(|(p, _)| *p).collect();
        let expected = ["Join", "Check", "Watch", "ServerReflectionInfo", "ServerReflectionInfo"];
        let names: Vec<&str> = open.iter().filter_map(|p| p.rsplit('/').next()).collect();
        assert_eq!(names, expected);
    }
}
