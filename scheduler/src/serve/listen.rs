//! One port for everything: TLS, HTTP/2 with gRPC in it, and HTTP/1.1 for browsers and `curl`.
//!
//! In: an address, the CA, a router. Out: requests with a [`Peer`] in their extensions, which says
//! whose certificate the connection showed. Who may call what is `auth`'s affair. gRPC libraries
//! bring listeners of their own, but those offer HTTP/2 only.
//!
//! Bounds: so many connections, then the newest is closed at once; a handshake and the first
//! request after it must come in time; 128 requests at once on a connection; headers of 16 KiB.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tower::Service;

use tessera_model::{NodeId, UnixMillis};

use crate::ca::{self, Ca, CaError};

/// Whose certificate a connection showed. Set on every request, by this file only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node: Option<NodeId>,
    pub address: SocketAddr,
}

#[derive(Debug, Clone)]
pub struct Bounds {
    pub connections: usize,
    /// For the TLS handshake, and again for the first request.
    pub handshake: Duration,
    /// How long requests may take to end once we are told to stop.
    pub drain: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshake: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{address} is in use by another program")]
    InUse { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("cannot set up TLS")]
    Tls(#[from] tokio_rustls::rustls::Error),
    #[error("cannot check client certificates")]
    Verifier(#[from] tokio_rustls::rustls::server::VerifierBuilderError),
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl ListenError {
    pub fn hint(&self) -> String {
        match self {
            Self::InUse { address } => format!(
                "see what holds it with `ss -ltnp sport = :{0}`, or choose another with --listen {1}:0",
                address.port(),
                address.ip()
            ),
            Self::Bind { .. } => {
                "give --listen an address of this machine; ports below 1024 need rights".into()
            }
            Self::Tls(_) | Self::Verifier(_) => {
                "remove server.pem and server.key from the data folder's tls and start again".into()
            }
            Self::Ca(e) => e.hint(),
        }
    }
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Bind { address, source },
    })
}

/// The server's TLS settings, renewed while it runs: new connections take the newest.
pub struct Tls {
    ca: Arc<Ca>,
    names: Vec<String>,
    present: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    pub fn new(ca: Arc<Ca>, names: Vec<String>, now: UnixMillis) -> Result<Self, ListenError> {
        let present = RwLock::new(Arc::new(server_config(&ca, &names, now)?));
        Ok(Self { ca, names, present })
    }

    /// Loads the certificate again, which makes a new one when the old one grows old.
    pub fn refresh(&self, now: UnixMillis) -> Result<(), ListenError> {
        let fresh = Arc::new(server_config(&self.ca, &self.names, now)?);
        *self.present.write() = fresh;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.present.read().clone())
    }
}

fn server_config(ca: &Ca, names: &[String], now: UnixMillis) -> Result<ServerConfig, ListenError> {
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone())?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let identity = ca.server(names, now)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves until `stop` is ready, then lets requests end within [`Bounds::drain`].
pub async fn serve(
    listener: TcpListener,
    tls: Arc<Tls>,
    router: axum::Router,
    bounds: Bounds,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(bounds.connections));
    let mut turned_away = 0u64;
    tokio::pin!(stop);
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: let some be closed first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            turned_away += 1;
            if turned_away.is_power_of_two() {
                tracing::warn!(turned_away, limit = bounds.connections, "too many connections");
            }
            continue;
        };
        let (acceptor, router, bounds) = (tls.acceptor(), router.clone(), bounds.clone());
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = connection(stream, address, acceptor, router, bounds, watcher).await
            {
                tracing::debug!(%address, %error, "connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(bounds.drain, graceful.shutdown()).await.is_err() {
        tracing::info!("some requests did not end in time and are cut off");
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: axum::Router,
    bounds: Bounds,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(bounds.handshake, acceptor.accept(stream))
        .await
        .map_err(|_| "the TLS handshake took too long")??;
    let (_, session) = stream.get_ref();
    let node = session.peer_certificates().and_then(|chain| ca::node_of(chain.first()?));
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let peer = Peer { node, address };

    let asked = Arc::new(AtomicBool::new(false));
    let service = {
        let asked = asked.clone();
        hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(peer.clone());
            router.clone().call(request)
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.handshake)
        .max_buf_size(16 * 1024)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(16 * 1024)
        .max_concurrent_streams(128)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(10));
    // What the handshake agreed on need not be guessed from the first bytes.
    let builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
    let served =
        watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    tokio::pin!(served);
    let idle = tokio::time::sleep(bounds.handshake);
    tokio::select! {
        ended = &mut served => return ended,
        () = idle => if !asked.load(Ordering::Relaxed) {
            return Err("no request came".into());
        },
    }
    served.await
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;
    use rcgen::{CertificateParams, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::ClientConfig;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    use super::*;
    use crate::config::wall_clock;

    struct Server {
        ca: Arc<Ca>,
        address: SocketAddr,
        stop: Option<oneshot::Sender<()>>,
        ended: tokio::task::JoinHandle<()>,
        _dir: tempfile::TempDir,
    }

    async fn server(bounds: Bounds) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::open(dir.path(), wall_clock()).unwrap());
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let tls = Arc::new(Tls::new(ca.clone(), names, wall_clock()).unwrap());
        let who = |Extension(peer): Extension<Peer>| async move {
            peer.node.map_or("nobody".to_owned(), |n| n.to_string())
        };
        let router = axum::Router::new().route("/who", get(who));
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(serve(listener, tls, router, bounds, async {
            let _ = stopped.await;
        }));
        Server { ca, address, stop: Some(stop), ended, _dir: dir }
    }

    fn client(
        ca: &Ca,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        alpn: &str,
    ) -> TlsConnector {
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    fn node_identity(
        ca: &Ca,
        node: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let node = NodeId::parse(node).unwrap();
        let signed = ca.sign_node(&csr, &node, wall_clock()).unwrap();
        let chain = vec![
            CertificateDer::from_pem_slice(signed.certificate_pem.as_bytes()).unwrap(),
            ca.der().clone(),
        ];
        (chain, PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
    }

    async fn connect(
        server: &Server,
        connector: TlsConnector,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(server.address).await?;
        connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    async fn ask(mut stream: TlsStream<TcpStream>) -> std::io::Result<String> {
        stream
            .write_all(b"GET /who HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
    }

    #[tokio::test]
    async fn the_certificate_says_who_is_calling() {
        let server = server(Bounds::default()).await;
        let anonymous = connect(&server, client(&server.ca, None, "http/1.1")).await.unwrap();
        assert_eq!(ask(anonymous).await.unwrap(), "nobody");
        let identity = node_identity(&server.ca, "gpu-a01");
        let node = connect(&server, client(&server.ca, Some(identity), "http/1.1")).await.unwrap();
        assert_eq!(ask(node).await.unwrap(), "gpu-a01");
    }

    #[tokio::test]
    async fn a_stranger_s_certificate_is_turned_away() {
        let server = server(Bounds::default()).await;
        let dir = tempfile::tempdir().unwrap();
        let other = Ca::open(dir.path(), wall_clock()).unwrap();
        let identity = node_identity(&other, "gpu-a01");
        // With TLS 1.3 the client learns of it at its first read.
        let answer = match connect(&server, client(&server.ca, Some(identity), "http/1.1")).await {
            Ok(stream) => ask(stream).await,
            Err(e) => Err(e),
        };
        assert!(answer.is_err(), "{answer:?}");
    }

    #[tokio::test]
    async fn http2_and_http1_are_both_offered() {
        let server = server(Bounds::default()).await;
        for alpn in ["h2", "http/1.1"] {
            let stream = connect(&server, client(&server.ca, None, alpn)).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        }
    }

    #[tokio::test]
    async fn who_asks_nothing_is_closed() {
        let bounds = Bounds { handshake: Duration::from_millis(300), ..Bounds::default() };
        let server = server(bounds).await;
        let mut mute = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(mute.read(&mut [0; 1]).await.unwrap_or(0), 0, "no handshake");
        let mut idle = connect(&server, client(&server.ca, None, "h2")).await.unwrap();
        let mut rest = Vec::new();
        // The server's preface, then the end.
        let _ = idle.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn too_many_connections_are_closed_at_once() {
        let server = server(Bounds { connections: 1, ..Bounds::default() }).await;
        let first = connect(&server, client(&server.ca, None, "http/1.1")).await.unwrap();
        let second = connect(&server, client(&server.ca, None, "http/1.1")).await;
        assert!(second.is_err());
        assert_eq!(ask(first).await.unwrap(), "nobody");
    }

    #[tokio::test]
    async fn a_stop_ends_the_server_and_frees_the_port() {
        let bounds = Bounds { drain: Duration::from_millis(200), ..Bounds::default() };
        let mut server = server(bounds).await;
        let _open = connect(&server, client(&server.ca, None, "h2")).await.unwrap();
        let _ = server.stop.take().unwrap().send(());
        (&mut server.ended).await.unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let held = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = held.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(error.hint().contains("--listen"), "{}", error.hint());
    }

    #[tokio::test]
    async fn a_node_certificate_cannot_play_the_scheduler() {
        // A listener with a node's certificate, to which a client that trusts our CA connects.
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), wall_clock()).unwrap();
        let (chain, key) = node_identity(&ca, "localhost");
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let fake = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            acceptor.accept(tcp).await.map(|_| ())
        });
        let tcp = TcpStream::connect(address).await.unwrap();
        let outcome =
            client(&ca, None, "h2").connect(ServerName::try_from("localhost").unwrap(), tcp).await;
        assert!(outcome.is_err());
        assert!(fake.await.unwrap().is_err());
    }
}
