//! Who this node is to the scheduler: its certificate, from a join token once, then renewed.
//!
//! In: a join token, or what an earlier start left in the state folder. Out: an identity to dial
//! with, and newer ones as they come. The key is made here and never leaves; the token's secret is
//! sent only to a server that has proved to be the token's own (its CA is pinned by hash).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use tessera_model::{Millis, NodeId, Refusal, RefusalKind, UnixMillis};
use tessera_proto::dial::{self, Dial, DialError, Identity, Trust};
use tessera_proto::status::from_status;
use tessera_proto::v1;
use tessera_proto::v1::agents_client::AgentsClient;

use crate::control::retry::jittered;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Between tries to renew; also the longest sleep, since a machine may be suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// `tsrj1.<sha256 of the CA's DER in hex>.<id>.<secret>`
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub ca_sha256: [u8; 32],
    pub id: String,
    secret: String,
}

impl std::fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl JoinToken {
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let bad = |problem| JoinError::BadToken { problem };
        let mut parts = text.trim().split('.');
        if parts.next() != Some("tsrj1") {
            return Err(bad("does not begin with tsrj1."));
        }
        let ca = parts.next().and_then(hex32).ok_or_else(|| bad("holds no SHA-256 of a CA"))?;
        let (id, secret) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if id.is_empty() || secret.is_empty() || parts.next().is_some() {
            return Err(bad("is cut off, or is no join token"));
        }
        Ok(Self { ca_sha256: ca, id: id.to_owned(), secret: secret.to_owned() })
    }
}

fn hex32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the join token {problem}")]
    BadToken { problem: &'static str },
    #[error("this node has not joined yet, and no join token was given")]
    NoToken,
    #[error("this node's certificate ended at {at}")]
    Expired { at: UnixMillis },
    #[error("the state folder belongs to node {kept}, not to {asked}")]
    OtherNode { kept: NodeId, asked: NodeId },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the scheduler did not let this node join: {0}")]
    Refused(Refusal),
    #[error("the scheduler gave no answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("could not make a key for this node")]
    Key(#[source] rcgen::Error),
    #[error("could not use {}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl JoinError {
    pub fn hint(&self) -> String {
        const FRESH: &str = "make a fresh one with `tessera token create --node NAME` and start the agent once with it in its environment: `TESSERA_JOIN_TOKEN=tsrj1.… tessera-agent …`";
        match self {
            Self::BadToken { .. } => format!("copy it whole, or {FRESH}"),
            Self::NoToken => FRESH.to_owned(),
            Self::Expired { .. } => format!("it was away for too long: {FRESH}"),
            Self::OtherNode { kept, .. } => {
                format!("leave --name out, say --name {kept}, or take another --state folder")
            }
            Self::Dial(error) => error.hint(),
            Self::Refused(refusal) if refusal.hint.is_empty() => FRESH.to_owned(),
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::Silent => "see whether the scheduler is well; it is tried again".to_owned(),
            Self::Key(_) => "see whether the system gives random numbers".to_owned(),
            Self::File { .. } => {
                "see that the agent may write its state folder, and that the disk has room"
                    .to_owned()
            }
        }
    }

    /// Whether the same may work a little later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Dial(DialError::Unreachable { .. } | DialError::TimedOut { .. }) => true,
            Self::Dial(DialError::Transport { .. }) | Self::Silent => true,
            Self::Refused(refusal) => refusal.kind == RefusalKind::Unavailable,
            _ => false,
        }
    }
}

/// What is kept in `<state>/tls/identity`, replaced as a whole.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCertificate {
    pub node: NodeId,
    certificate_pem: String,
    key_pem: String,
    ca_pem: String,
    issued: UnixMillis,
    expires: UnixMillis,
}

impl NodeCertificate {
    const FILE: &str = "identity";

    pub fn dial(&self, server: &str) -> Dial {
        Dial {
            server: server.to_owned(),
            trust: Trust::CaPem(self.ca_pem.clone()),
            identity: Some(Identity {
                cert_pem: self.certificate_pem.clone(),
                key_pem: self.key_pem.clone(),
            }),
        }
    }

    pub fn load(state: &Path) -> Result<Option<Self>, JoinError> {
        let path = state.join("tls").join(Self::FILE);
        let failed = |source| JoinError::File { path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    fn store(&self, state: &Path) -> Result<(), JoinError> {
        let dir = state.join("tls");
        let store = || {
            DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
            let bytes = serde_json::to_vec(self)?;
            tessera_shim::dir::write_durably(&dir, Self::FILE, &bytes)
        };
        store().map_err(|source| JoinError::File { path: dir.join(Self::FILE), source })
    }

    /// Half of its life, a little earlier or later, so that nodes do not come all at once.
    fn renew_at(&self) -> UnixMillis {
        let half = self.expires.since(self.issued).0 / 2;
        let jitter = jittered(Duration::from_millis(half / 5)).as_millis() as u64;
        self.issued.plus(Millis(half - jitter.min(half)))
    }
}

/// The identity of an earlier start, or a new one by the token. What passes is tried for as long
/// as it takes.
pub async fn load_or_join(
    state: &Path,
    server: &str,
    name: Option<&NodeId>,
    default_name: &NodeId,
    token: Option<&JoinToken>,
) -> Result<NodeCertificate, JoinError> {
    let kept = NodeCertificate::load(state)?;
    if let Some(kept) = kept {
        if let Some(asked) = name
            && *asked != kept.node
        {
            return Err(JoinError::OtherNode { kept: kept.node, asked: asked.clone() });
        }
        if now() < kept.expires {
            return Ok(kept);
        }
        if token.is_none() {
            return Err(JoinError::Expired { at: kept.expires });
        }
    }
    let token = token.ok_or(JoinError::NoToken)?;
    let node = name.unwrap_or(default_name);
    let mut pause = Duration::from_millis(200);
    loop {
        match join(state, server, node, token).await {
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, hint = error.hint(), retry_ms = pause.as_millis() as u64, "could not join yet");
                sleep(jittered(pause)).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            other => return other,
        }
    }
}

async fn join(
    state: &Path,
    server: &str,
    node: &NodeId,
    token: &JoinToken,
) -> Result<NodeCertificate, JoinError> {
    let trust = Trust::CaSha256(token.ca_sha256);
    let dial = Dial { server: server.to_owned(), trust, identity: None };
    let mut agents = AgentsClient::new(dial::connect(&dial).await?);
    let (key, csr_pem) = key_and_csr(node)?;
    let request = v1::JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        node: node.to_string(),
        csr_pem,
    };
    let reply = answered(agents.join(request)).await?;
    let identity = accepted(node, &key, reply);
    identity.store(state)?;
    tracing::info!(%node, expires = %identity.expires, "joined");
    Ok(identity)
}

async fn renew(
    state: &Path,
    server: &str,
    old: &NodeCertificate,
) -> Result<NodeCertificate, JoinError> {
    let mut agents = AgentsClient::new(dial::connect(&old.dial(server)).await?);
    let (key, csr_pem) = key_and_csr(&old.node)?;
    let reply = answered(agents.renew(v1::RenewRequest { csr_pem })).await?;
    let identity = accepted(&old.node, &key, reply);
    identity.store(state)?;
    tracing::info!(expires = %identity.expires, "the node's certificate was renewed");
    Ok(identity)
}

async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, JoinError> {
    match timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(JoinError::Refused(from_status(&status))),
        Err(_) => Err(JoinError::Silent),
    }
}

fn key_and_csr(node: &NodeId) -> Result<(KeyPair, String), JoinError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(JoinError::Key)?;
    let params = CertificateParams::new(vec![node.to_string()]).map_err(JoinError::Key)?;
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(JoinError::Key)?;
    Ok((key, csr))
}

fn accepted(node: &NodeId, key: &KeyPair, reply: v1::Certificate) -> NodeCertificate {
    NodeCertificate {
        node: node.clone(),
        certificate_pem: reply.certificate_pem,
        key_pem: key.serialize_pem(),
        ca_pem: reply.ca_pem,
        issued: now(),
        expires: UnixMillis(reply.expires_unix_ms),
    }
}

fn now() -> UnixMillis {
    UnixMillis(i64::try_from(tessera_shim::proc::unix_ms()).unwrap_or(i64::MAX))
}

/// Renews for as long as the agent runs; each new identity goes to `dials`. Never returns.
pub async fn keep_renewed(
    state: PathBuf,
    server: String,
    mut identity: NodeCertificate,
    dials: watch::Sender<Dial>,
) {
    let mut renew_at = identity.renew_at();
    loop {
        let left = renew_at.since(now());
        if left.0 > 0 {
            sleep(Duration::from_millis(left.0).min(LOOK_AGAIN)).await;
            continue;
        }
        match renew(&state, &server, &identity).await {
            Ok(newer) => {
                dials.send_replace(newer.dial(&server));
                identity = newer;
                // However short-lived they are, asking is not all that this node does.
                renew_at = identity.renew_at().max(now().plus(Millis::from_secs(1)));
            }
            Err(error) => {
                tracing::warn!(%error, hint = error.hint(), expires = %identity.expires, "could not renew the node's certificate yet");
                sleep(jittered(LOOK_AGAIN)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_tokens_are_whole_or_refused() {
        let ca = "ab".repeat(32);
        let token = JoinToken::parse(&format!(" tsrj1.{ca}.id7.s3cret\n")).unwrap();
        assert_eq!((token.ca_sha256, token.id.as_str()), ([0xab; 32], "id7"));
        assert!(!format!("{token:?}").contains("s3cret"));
        for bad in [
            "",
            "tsr_abc",
            "tsrj1",
            "tsrj1.00.id.s",
            &format!("tsrj1.{ca}.id"),
            &format!("tsrj1.{ca}..s"),
            &format!("tsrj1.{ca}.id.s.x"),
            &format!("tsrj1.{}.id.s", "+1".repeat(32)),
            &format!("tsrj1.{}.id.s", "é".repeat(32)),
        ] {
            assert!(matches!(JoinToken::parse(bad), Err(JoinError::BadToken { .. })), "{bad}");
        }
    }

    fn identity(node: &str, expires: i64) -> NodeCertificate {
        NodeCertificate {
            node: NodeId::parse(node).unwrap(),
            certificate_pem: "cert".into(),
            key_pem: "key".into(),
            ca_pem: "ca".into(),
            issued: UnixMillis(0),
            expires: UnixMillis(expires),
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_used_and_what_cannot_be_is_said() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let name = |n| NodeId::parse(n).unwrap();
        let load = async |asked: Option<&NodeId>| {
            load_or_join(state.path(), "https://127.0.0.1:1", asked, &name("host"), None).await
        };
        assert!(matches!(load(None).await, Err(JoinError::NoToken)));
        identity("n1", now().0 + 3_600_000).store(state.path()).unwrap();
        let file = state.path().join("tls/identity");
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(None).await.ok().map(|i| i.node), Some(name("n1")));
        assert!(matches!(load(Some(&name("n2"))).await, Err(JoinError::OtherNode { .. })));
        identity("n1", 1).store(state.path()).unwrap();
        assert!(matches!(load(None).await, Err(JoinError::Expired { .. })));
    }

    #[test]
    fn renewal_comes_around_half_life() {
        for _ in 0..100 {
            let at = identity("n", 1_000_000).renew_at().0;
            assert!((400_000..=450_000).contains(&at), "{at}");
        }
    }

    #[test]
    fn a_request_names_the_node_and_carries_no_key() {
        let (key, csr) = key_and_csr(&NodeId::parse("n1").unwrap()).unwrap();
        assert!(csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{csr}");
        assert!(key.serialize_pem().contains("PRIVATE KEY") && !csr.contains("PRIVATE"));
    }
}
