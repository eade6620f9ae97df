//! A TLS channel to the scheduler, for the client and for the agent.
//!
//! In: where the server is, whom to trust, and for an agent who we are. Out: a channel that
//! reconnects by itself, or a [`DialError`] with the next step. Deadlines of single calls belong to
//! whoever makes them, since a stream may be silent for as long as it likes.

use std::{fmt, io, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
        SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{self, CryptoProvider},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
    },
};
use tonic::transport::{Channel, Endpoint};

/// Name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that is gone without a word is noticed within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where to call, and how to know that it is the right one.
#[derive(Debug, Clone)]
pub struct Dial {
    /// `https://host:port`.
    pub server: String,
    pub trust: Trust,
    /// A node's certificate; `None` for people, who send a token.
    pub identity: Option<Identity>,
}

#[derive(Debug, Clone)]
pub enum Trust {
    /// One or more CA certificates.
    CaPem(String),
    /// SHA-256 of the DER of the CA's certificate, which the server must present with its own: for
    /// a node that joins and has nothing but its join token.
    CaSha256([u8; 32]),
}

#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the server address {server:?} {problem}")]
    BadServer { server: String, problem: &'static str },
    #[error("{what} cannot be read")]
    BadPem { what: &'static str, source: pem::Error },
    #[error("{what} cannot be used")]
    BadCertificate { what: &'static str, source: rustls::Error },
    #[error("no connection to {server}")]
    Unreachable { server: String, source: Arc<io::Error> },
    #[error("no connection to {server} within {} s", after.as_secs())]
    TimedOut { server: String, after: Duration },
    #[error("the server at {server} could not prove that it is ours")]
    Untrusted { server: String, source: rustls::Error },
    #[error("{server} does not speak TLS with HTTP/2")]
    NotTessera { server: String },
    #[error("the connection to {server} failed")]
    Transport { server: String, source: tonic::transport::Error },
}

impl DialError {
    /// The next step for the person at the keyboard.
    pub fn hint(&self) -> String {
        match self {
            Self::BadServer { .. } => "write it like https://scheduler.example:7070".to_owned(),
            Self::BadPem { .. } => {
                "it must be PEM text, beginning with a line `-----BEGIN …-----`".to_owned()
            }
            Self::BadCertificate { .. } => {
                "take the settings the scheduler wrote, or join the node anew".to_owned()
            }
            Self::Unreachable { server, .. } | Self::TimedOut { server, .. } => format!(
                "check that the scheduler runs and that {server} is its address; `tessera dev` \
                 starts one on this machine"
            ),
            Self::Untrusted { source, .. } => untrusted_hint(source).to_owned(),
            Self::NotTessera { server } => {
                format!("check that {server} is the scheduler's address and port")
            }
            Self::Transport { .. } => "try again; the scheduler's log may say more".to_owned(),
        }
    }
}

fn untrusted_hint(error: &rustls::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    match error {
        InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => {
            "compare the clocks of both machines; then restart the scheduler, which renews its \
              certificate"
        }
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "call the scheduler by a name or address its certificate has: its host name, its \
              listen address or localhost"
        }
        InvalidCertificate(_) => {
            "the CA in the settings or the join token belongs to another scheduler: take fresh ones"
        }
        AlertReceived(_) => "the scheduler refused this node's certificate: join the node anew",
        _ => "check that the address is the scheduler's",
    }
}

/// Connects now, so that a mistake shows here and not in the first call.
pub async fn connect(dial: &Dial) -> Result<Channel, DialError> {
    let place = Place::parse(&dial.server)?;
    let tls = TlsConnector::from(Arc::new(client_tls_config(&dial.trust, dial.identity.as_ref())?));
    let endpoint = Endpoint::from_shared(dial.server.clone())
        .map_err(|source| DialError::Transport { server: dial.server.clone(), source })?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, place) = (tls.clone(), place.clone());
        async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, place.open(&tls)).await {
                Ok(stream) => stream.map(TokioIo::new),
                Err(_) => Err(Failure::TimedOut),
            }
        }
    });
    let server = dial.server.clone();
    endpoint.connect_with_connector(connector).await.map_err(|source| {
        match Failure::behind(&source) {
            Some(Failure::Tcp(source)) => DialError::Unreachable { server, source },
            Some(Failure::Tls(source)) => DialError::Untrusted { server, source },
            Some(Failure::NotTls) => DialError::NotTessera { server },
            Some(Failure::TimedOut) => DialError::TimedOut { server, after: CONNECT_TIMEOUT },
            None => DialError::Transport { server, source },
        }
    })
}

/// The TLS half of a dial: ring, ALPN `h2`, the trust and the identity that were given.
pub fn client_tls_config(
    trust: &Trust,
    identity: Option<&Identity>,
) -> Result<ClientConfig, DialError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let unusable = |what| move |source| DialError::BadCertificate { what, source };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable("this build's TLS"))?;
    let builder = match trust {
        Trust::CaPem(text) => {
            const WHAT: &str = "the CA certificate";
            let mut roots = RootCertStore::empty();
            for cert in certificates(WHAT, text)? {
                roots.add(cert).map_err(unusable(WHAT))?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::CaSha256(sha256) => {
            let pinned = PinnedCa { sha256: *sha256, provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
        }
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            const WHAT: &str = "the node's certificate";
            let chain = certificates(WHAT, &identity.cert_pem)?;
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
                .map_err(|source| DialError::BadPem { what: "the node's key", source })?;
            builder.with_client_auth_cert(chain, key).map_err(unusable(WHAT))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// At least one.
fn certificates(what: &'static str, text: &str) -> Result<Vec<CertificateDer<'static>>, DialError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(certs) if certs.is_empty() => {
            Err(DialError::BadPem { what, source: pem::Error::NoItemsFound })
        }
        Ok(certs) => Ok(certs),
        Err(source) => Err(DialError::BadPem { what, source }),
    }
}

/// An address taken apart.
#[derive(Debug, Clone)]
struct Place {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Place {
    fn parse(server: &str) -> Result<Self, DialError> {
        let bad = |problem| DialError::BadServer { server: server.to_owned(), problem };
        let uri: Uri = server.parse().map_err(|_| bad("is no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("does not begin with https://"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("has a path, which has no meaning here"));
        }
        let port = uri.port_u16().ok_or_else(|| bad("names no port"))?;
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| bad("names no host"))?;
        Ok(Self { host, port, name })
    }

    async fn open(
        &self,
        tls: &TlsConnector,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Failure> {
        let tcp = |e| Failure::Tcp(Arc::new(e));
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(tcp)?;
        stream.set_nodelay(true).map_err(tcp)?;
        let stream = tls.connect(self.name.clone(), stream).await.map_err(Failure::of_tls)?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(stream),
            _ => Err(Failure::NotTls),
        }
    }
}

/// What went wrong below HTTP. It travels through tonic's error as one of its causes.
#[derive(Debug, Clone, thiserror::Error)]
enum Failure {
    #[error("no TCP connection: {0}")]
    Tcp(Arc<io::Error>),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("the server does not speak TLS with HTTP/2")]
    NotTls,
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
}

impl Failure {
    fn of_tls(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).cloned();
        match tls {
            Some(rustls::Error::InvalidMessage(_) | rustls::Error::NoApplicationProtocol) => {
                Self::NotTls
            }
            Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
                Self::NotTls
            }
            Some(tls) => Self::Tls(tls),
            None => Self::Tcp(Arc::new(error)),
        }
    }

    fn behind(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(failure) = error.downcast_ref::<Self>() {
                return Some(failure.clone());
            }
            cause = error.source();
        }
        None
    }
}

/// Trusts the one CA whose certificate has this hash. The hash alone proves nothing, since the
/// certificate is public: the server's own must be signed by it, in time, and for the right name.
#[derive(Debug)]
struct PinnedCa {
    sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
#[error("none of the {presented} certificates presented is the CA of the join token")]
struct PinMissing {
    presented: usize,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned = |cert: &CertificateDer<'_>| {
            ring::digest::digest(&ring::digest::SHA256, cert).as_ref() == self.sha256
        };
        let Some(ca) = intermediates.iter().find(|cert| is_pinned(cert)) else {
            let missing = PinMissing { presented: 1 + intermediates.len() };
            let other = OtherError(Arc::new(missing));
            return Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
