//! Dials a real server over loopback: the right CA gets through, everything else is told apart.

use std::convert::Infallible;

use hyper_util::{rt::TokioExecutor, server::conn::auto, service::TowerToHyperService};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::v1;

struct Ca {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // All of the same name, as two of our schedulers' would be.
        params.distinguished_name.push(DnType::CommonName, "Tessera CA");
        let cert = params.self_signed(&key).unwrap();
        Self { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn sha256(&self) -> [u8; 32] {
        ring::digest::digest(&ring::digest::SHA256, &self.der).as_ref().try_into().unwrap()
    }

    fn leaf(&self, names: &[&str], years_past: bool) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if years_past {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// What a server shows, and what it asks for.
struct Shows {
    leaf: (rcgen::Certificate, KeyPair),
    then: Vec<CertificateDer<'static>>,
    alpn: &'static [u8],
    client_ca: Option<CertificateDer<'static>>,
}

impl Shows {
    fn of(ca: &Ca) -> Self {
        let leaf = ca.leaf(&["127.0.0.1", "localhost"], false);
        Self { leaf, then: vec![ca.der.clone()], alpn: b"h2", client_ca: None }
    }
}

/// Answers every call with UNIMPLEMENTED; says where.
async fn serve(shows: Shows) -> u16 {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match shows.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca).unwrap();
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let (leaf, key) = shows.leaf;
    let chain = [vec![leaf.der().clone()], shows.then].concat();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![shows.alpn.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = tower::service_fn(|_: http::Request<_>| async {
                    Ok::<_, Infallible>(tonic::Status::unimplemented("here").into_http::<String>())
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let service = TowerToHyperService::new(service);
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    port
}

fn dial(port: u16, trust: Trust) -> Dial {
    Dial { server: format!("https://127.0.0.1:{port}"), trust, identity: None }
}

async fn call(dial: &Dial) -> tonic::Status {
    let channel = connect(dial).await.unwrap();
    let mut admin = v1::admin_client::AdminClient::new(channel);
    admin.who_am_i(v1::WhoAmIRequest {}).await.unwrap_err()
}

#[tokio::test]
async fn a_call_gets_through_with_the_ca_or_with_its_hash() {
    let ca = Ca::new();
    for trust in [Trust::CaPem(ca.pem.clone()), Trust::CaSha256(ca.sha256())] {
        let port = serve(Shows::of(&ca)).await;
        let status = call(&dial(port, trust.clone())).await;
        assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, "here"));
        let by_name = Dial { server: format!("https://localhost:{port}/"), ..dial(port, trust) };
        assert_eq!(call(&by_name).await.code(), tonic::Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_pinned_ca_must_have_signed_what_the_server_shows() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let pin = || Trust::CaSha256(ours.sha256());
    let show = |leaf, then: &[&Ca]| Shows {
        leaf,
        then: then.iter().map(|ca| ca.der.clone()).collect(),
        ..Shows::of(&ours)
    };
    let cases = [
        ("another CA", show(theirs.leaf(&["127.0.0.1"], false), &[&theirs])),
        ("our CA presented, another's signature", {
            show(theirs.leaf(&["127.0.0.1"], false), &[&ours])
        }),
        ("both CAs presented, another's signature", {
            show(theirs.leaf(&["127.0.0.1"], false), &[&theirs, &ours])
        }),
        ("our CA left out", show(ours.leaf(&["127.0.0.1"], false), &[])),
        ("another name", show(ours.leaf(&["elsewhere"], false), &[&ours])),
        ("out of date", show(ours.leaf(&["127.0.0.1"], true), &[&ours])),
    ];
    for (name, shows) in cases {
        let port = serve(shows).await;
        let error = connect(&dial(port, pin())).await.unwrap_err();
        assert!(matches!(error, DialError::Untrusted { .. }), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_ca_is_not_taken_for_the_leaf_it_signed() {
    let ca = Ca::new();
    let (leaf, key) = ca.leaf(&["127.0.0.1"], false);
    let pin = ring::digest::digest(&ring::digest::SHA256, leaf.der()).as_ref().try_into().unwrap();
    let port = serve(Shows { leaf: (leaf, key), ..Shows::of(&ca) }).await;
    let error = connect(&dial(port, Trust::CaSha256(pin))).await.unwrap_err();
    assert!(matches!(error, DialError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn each_failure_has_its_own_hint() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let trust = || Trust::CaPem(ours.pem.clone());
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let leaf = |names: &[&str], past| Shows { leaf: ours.leaf(names, past), ..Shows::of(&ours) };
    let http1 = Shows { alpn: b"http/1.1", ..Shows::of(&ours) };
    let cases = [
        (closed_port, "no connection to", "tessera dev"),
        (serve(Shows::of(&theirs)).await, "could not prove", "another scheduler"),
        (serve(leaf(&["elsewhere"], false)).await, "could not prove", "name or address"),
        (serve(leaf(&["127.0.0.1"], true)).await, "could not prove", "clocks"),
        (serve(http1).await, "does not speak TLS", "address and port"),
    ];
    for (port, message, hint) in cases {
        let error = connect(&dial(port, trust())).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}: {hint}");
        assert!(error.hint().contains(hint), "{error}: {}", error.hint());
    }
}

#[tokio::test]
async fn a_node_shows_its_certificate() {
    let ca = Ca::new();
    let port = serve(Shows { client_ca: Some(ca.der.clone()), ..Shows::of(&ca) }).await;
    let (cert, key) = ca.leaf(&["n0"], false);
    let identity = Some(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() });
    let with = Dial { identity, ..dial(port, Trust::CaPem(ca.pem.clone())) };
    assert_eq!(call(&with).await.code(), tonic::Code::Unimplemented);
    assert!(!format!("{with:?}").contains("PRIVATE"), "the key is in the debug text");

    // With TLS 1.3 a client learns only after its handshake that it was refused.
    let without = dial(port, Trust::CaPem(ca.pem.clone()));
    if let Ok(channel) = connect(&without).await {
        let mut admin = v1::admin_client::AdminClient::new(channel);
        let status = admin.who_am_i(v1::WhoAmIRequest {}).await.unwrap_err();
        let kind = crate::status::from_status(&status).kind;
        assert_eq!(kind, tessera_model::RefusalKind::Unavailable, "{status:?}");
    }
}

#[test]
fn an_address_must_be_whole() {
    let cases = [
        ("http://a:1", "does not begin with https://"),
        ("a:7070", "does not begin with https://"),
        ("https://a", "names no port"),
        ("https://a:1/x", "has a path, which has no meaning here"),
        ("https://a b:1", "is no URL"),
        ("", "is no URL"),
    ];
    for (server, want) in cases {
        match Place::parse(server) {
            Err(DialError::BadServer { problem, .. }) => assert_eq!(problem, want, "{server}"),
            other => panic!("{server}: {other:?}"),
        }
    }
    let six = Place::parse("https://[::1]:7070").unwrap();
    assert_eq!((six.host.as_str(), six.port), ("::1", 7070));
}

#[test]
fn text_that_is_no_certificate_is_refused() {
    for text in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let error = client_tls_config(&Trust::CaPem(text.to_owned()), None).unwrap_err();
        let expected = matches!(error, DialError::BadPem { .. } | DialError::BadCertificate { .. });
        assert!(expected, "{text:?}: {error:?}");
    }
}
