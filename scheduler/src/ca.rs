//! The built-in certificate authority: who is a scheduler, who is which node.
//!
//! In: the folder it lives in, the names the scheduler is reached by, requests of nodes. Out: the
//! server's certificate, node certificates for a day, the CA's fingerprint for join tokens. Who may
//! ask for a certificate is `serve::agents`' affair.
//!
//! The CA's key never leaves the folder. A server certificate serves and a node certificate calls:
//! neither can be used for the other.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{GeneralName, X509Certificate};

use tessera_model::{Millis, NodeId, UnixMillis};

use crate::durable::{self, Readers};

const CA_LIFE: Millis = Millis(10 * 365 * Millis::DAY.0);
const SERVER_LIFE: Millis = Millis(90 * Millis::DAY.0);
pub const NODE_LIFE: Millis = Millis::DAY;
/// Clocks of a cluster may differ by this much.
const SKEW: Millis = Millis(5 * 60_000);
/// A certificate request has a key and a signature in it, a few hundred bytes.
const CSR_MAX_BYTES: usize = 16 * 1024;
const SCHEDULER_URI: &str = "spiffe://tessera/scheduler";
const NODE_URI: &str = "spiffe://tessera/node/";

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot read or write {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} does not hold what it should: {problem}")]
    Broken { path: PathBuf, problem: String },
    #[error("the certificate request cannot be used: {0}")]
    Request(String),
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("the system gives no random numbers")]
    Random,
}

impl CaError {
    pub fn hint(&self) -> String {
        match self {
            Self::File { path, .. } => {
                format!("see who owns {} and whether its disk is full", path.display())
            }
            Self::Broken { path, .. } => format!(
                "put {} back from a backup; a new CA (an empty tls folder) means that every node and client must be told of it",
                path.display()
            ),
            Self::Request(_) => "send a PKCS #10 request in PEM, made from a P-256 key".into(),
            Self::Make(_) | Self::Random => "start the scheduler again".into(),
        }
    }
}

/// What the scheduler shows of itself: leaf first, then the CA, so that a joining node can check
/// the CA against its token.
pub struct ServerIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub not_after: UnixMillis,
}

/// A node's certificate, ready to be sent.
#[derive(Debug, Clone)]
pub struct NodeCertificate {
    pub certificate_pem: String,
    pub expires: UnixMillis,
}

pub struct Ca {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    fingerprint: [u8; 32],
}

impl Ca {
    /// Loads the CA in `folder`, or makes one if there is none yet.
    pub fn open(folder: &Path, now: UnixMillis) -> Result<Self, CaError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| CaError::File { path, source }
        };
        durable::private_folder(folder).map_err(file(folder))?;
        let (pem_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        // The certificate is written last: without it nobody has ever seen this CA.
        if !pem_path.try_exists().map_err(file(&pem_path))? {
            let key = KeyPair::generate()?;
            let certificate = ca_params(now)?.self_signed(&key)?;
            durable::write(&key_path, key.serialize_pem().as_bytes(), Readers::Owner)
                .map_err(file(&key_path))?;
            durable::write(&pem_path, certificate.pem().as_bytes(), Readers::Everyone)
                .map_err(file(&pem_path))?;
        }
        let pem = fs::read_to_string(&pem_path).map_err(file(&pem_path))?;
        let key = fs::read_to_string(&key_path).map_err(file(&key_path))?;
        let broken = |path: &Path, problem: String| CaError::Broken { path: path.into(), problem };
        let key = KeyPair::from_pem(&key).map_err(|e| broken(&key_path, e.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| broken(&pem_path, e.to_string()))?;
        let parsed = parse(&certificate).map_err(|e| broken(&pem_path, e))?;
        if !parsed.is_ca() {
            return Err(broken(&pem_path, "the certificate is no CA".into()));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(broken(&key_path, "the key is not that of ca.pem".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| broken(&pem_path, e.to_string()))?;
        Ok(Self {
            folder: folder.to_owned(),
            fingerprint: crate::tokens::sha256(&certificate),
            issuer,
            certificate,
            pem,
        })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the CA's certificate (DER).
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The server's certificate. The one on disk as long as more than a third of its life is left
    /// and it names exactly `names`; else a new one.
    pub fn server(&self, names: &[String], now: UnixMillis) -> Result<ServerIdentity, CaError> {
        let (pem_path, key_path) = (self.folder.join("server.pem"), self.folder.join("server.key"));
        if let Some(kept) = self.kept_server(&pem_path, &key_path, names, now) {
            return Ok(kept);
        }
        let mut params = CertificateParams::new(sorted(names))?;
        params.subject_alt_names.push(SanType::URI(SCHEDULER_URI.try_into()?));
        leaf(&mut params, "tessera-scheduler", ExtendedKeyUsagePurpose::ServerAuth);
        live(&mut params, now, SERVER_LIFE)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        for (path, text, readers) in [
            (&key_path, key.serialize_pem(), Readers::Owner),
            (&pem_path, certificate.pem(), Readers::Everyone),
        ] {
            durable::write(path, text.as_bytes(), readers)
                .map_err(|source| CaError::File { path: path.clone(), source })?;
        }
        tracing::info!(names = names.join(","), "issued the server's certificate");
        Ok(ServerIdentity {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
                .map_err(|e| CaError::Broken { path: key_path, problem: e.to_string() })?,
            not_after: now.plus(SERVER_LIFE),
        })
    }

    /// The server's certificate on disk, if it may still be used. Whatever is wrong with it, the
    /// cure is a new one.
    fn kept_server(
        &self,
        pem_path: &Path,
        key_path: &Path,
        names: &[String],
        now: UnixMillis,
    ) -> Option<ServerIdentity> {
        let pem = fs::read(pem_path).ok()?;
        let key_pem = fs::read_to_string(key_path).ok()?;
        let certificate = CertificateDer::from_pem_slice(&pem).ok()?;
        let parsed = parse(&certificate).ok()?;
        let (_, ca) = x509_parser::parse_x509_certificate(&self.certificate).ok()?;
        parsed.verify_signature(Some(ca.public_key())).ok()?;
        let key = KeyPair::from_pem(&key_pem).ok()?;
        let not_after = UnixMillis(parsed.validity().not_after.timestamp().checked_mul(1_000)?);
        let usable = not_after.since(now) > Millis(SERVER_LIFE.0 / 3)
            && parsed.public_key().subject_public_key.data.as_ref() == key.der_bytes()
            && server_names(&parsed)? == sorted(names);
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).ok()?;
        usable.then(|| ServerIdentity {
            chain: vec![certificate.clone(), self.certificate.clone()],
            key,
            not_after,
        })
    }

    /// A certificate for `node` over the public key in the request. Names and wishes in the request
    /// are not looked at: a node is who its join token or its present certificate says.
    pub fn sign_node(
        &self,
        csr_pem: &str,
        node: &NodeId,
        now: UnixMillis,
    ) -> Result<NodeCertificate, CaError> {
        let request = check_request(csr_pem)?;
        let mut params = CertificateParams::default();
        let uri = format!("{NODE_URI}{node}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        leaf(&mut params, node.as_str(), ExtendedKeyUsagePurpose::ClientAuth);
        live(&mut params, now, NODE_LIFE)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(NodeCertificate { certificate_pem: certificate.pem(), expires: now.plus(NODE_LIFE) })
    }
}

/// Reads a certificate request and checks that the sender holds its key.
pub fn check_request(csr_pem: &str) -> Result<CertificateSigningRequestParams, CaError> {
    if csr_pem.len() > CSR_MAX_BYTES {
        return Err(CaError::Request(format!("it is longer than {CSR_MAX_BYTES} bytes")));
    }
    CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| CaError::Request(e.to_string()))
}

/// The node a verified client certificate belongs to; `None` when it names no node of ours.
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let parsed = parse(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NODE_URI),
        _ => None,
    });
    let node = NodeId::parse(nodes.next()?).ok()?;
    nodes.next().is_none().then_some(node)
}

fn ca_params(now: UnixMillis) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = common_name("tessera CA");
    live(&mut params, now, CA_LIFE)?;
    Ok(params)
}

fn leaf(params: &mut CertificateParams, name: &str, usage: ExtendedKeyUsagePurpose) {
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    // X.509 allows 64 characters; the whole name of a node is in its URI.
    subject.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    subject
}

/// Sets the life of a certificate and gives it a random serial number.
fn live(params: &mut CertificateParams, now: UnixMillis, life: Millis) -> Result<(), CaError> {
    let since_1970 = |at: UnixMillis| Duration::from_millis(u64::try_from(at.0).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970(UnixMillis(now.0.saturating_sub(SKEW.0 as i64)));
    params.not_after = epoch + since_1970(now.plus(life));
    let mut serial = [0u8; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| CaError::Random)?;
    // Positive, and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow the certificate".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// DNS names and addresses of a server's certificate, in order; `None` if it lacks our URI.
fn server_names(certificate: &X509Certificate<'_>) -> Option<Vec<String>> {
    let (mut names, mut ours) = (Vec::new(), false);
    for name in &certificate.subject_alternative_name().ok()??.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => names.push(match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => IpAddr::from(v4).to_string(),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string(),
            }),
            GeneralName::URI(uri) => ours |= *uri == SCHEDULER_URI,
            _ => return None,
        }
    }
    ours.then(|| sorted(&names))
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

    fn names() -> Vec<String> {
        ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec()
    }

    fn request(key: &KeyPair) -> String {
        // Asks for what it should not get.
        let mut params = CertificateParams::new(vec!["scheduler".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn node_certificate(ca: &Ca, node: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let signed = ca.sign_node(&request(&key), &NodeId::parse(node).unwrap(), NOW).unwrap();
        CertificateDer::from_pem_slice(signed.certificate_pem.as_bytes()).unwrap()
    }

    #[test]
    fn the_ca_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open(&dir.path().join("tls"), NOW).unwrap();
        let second = Ca::open(&dir.path().join("tls"), NOW.plus(Millis::DAY)).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(first.pem(), second.pem());
        let key = fs::metadata(dir.path().join("tls/ca.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        // A crash between the two files leaves a key that nobody has seen a certificate of.
        fs::remove_file(dir.path().join("tls/ca.pem")).unwrap();
        assert_ne!(
            Ca::open(&dir.path().join("tls"), NOW).unwrap().fingerprint(),
            first.fingerprint()
        );
    }

    #[test]
    fn a_key_that_is_not_the_cas_is_an_error_and_no_new_ca() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open(dir.path(), NOW).unwrap();
        let stranger = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.key"), stranger.serialize_pem()).unwrap();
        let error = Ca::open(dir.path(), NOW).err().unwrap();
        assert!(error.to_string().contains("is not that of ca.pem"), "{error}");
        fs::write(dir.path().join("ca.key"), "rubbish").unwrap();
        assert!(Ca::open(dir.path(), NOW).is_err());
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(Ca::open(dir.path(), NOW).is_err());
    }

    #[test]
    fn the_server_certificate_is_kept_until_it_must_change() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let first = ca.server(&names(), NOW).unwrap();
        let mut other_order = names();
        other_order.reverse();
        let again = ca.server(&other_order, NOW.plus(Millis(50 * Millis::DAY.0))).unwrap();
        assert_eq!(first.chain, again.chain);
        let mut more = names();
        more.push("gpu-head".into());
        let renamed = ca.server(&more, NOW).unwrap();
        assert_ne!(first.chain[0], renamed.chain[0]);
        let old = ca.server(&more, NOW.plus(Millis(61 * Millis::DAY.0))).unwrap();
        assert_ne!(old.chain[0], renamed.chain[0], "less than a third of its life is left");
        fs::write(dir.path().join("server.key"), KeyPair::generate().unwrap().serialize_pem())
            .unwrap();
        let mended = ca.server(&more, NOW.plus(Millis(61 * Millis::DAY.0))).unwrap();
        assert_ne!(mended.chain[0], old.chain[0], "the key did not fit");
        assert_eq!(mended.chain[1], *ca.der());
    }

    #[test]
    fn a_node_gets_its_own_name_and_nothing_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let der = node_certificate(&ca, "gpu-a01.hall3");
        assert_eq!(node_of(&der), Some(NodeId::parse("gpu-a01.hall3").unwrap()));
        let parsed = parse(&der).unwrap();
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let life = parsed.validity().not_after.timestamp() - NOW.0 / 1_000;
        assert_eq!(life, 86_400);
        assert_ne!(parsed.raw_serial(), parse(&node_certificate(&ca, "b")).unwrap().raw_serial());
        assert_eq!(node_of(&ca.server(&names(), NOW).unwrap().chain[0]), None);
    }

    #[test]
    fn a_broken_request_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let good = request(&KeyPair::generate().unwrap());
        let other = request(&KeyPair::generate().unwrap());
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        // The tail holds the signature: with another's tail the sender does not hold the key.
        let mut forged = lines(&good);
        let tail = forged.len() - 2;
        forged[tail] = lines(&other)[tail].clone();
        let cases = [
            ("empty", String::new()),
            ("no PEM", "rubbish".into()),
            ("a certificate", ca.pem().into()),
            ("forged", forged.join("\n")),
            ("too long", "x".repeat(CSR_MAX_BYTES + 1)),
        ];
        for (what, csr) in cases {
            let node = NodeId::parse("n0").unwrap();
            assert!(ca.sign_node(&csr, &node, NOW).is_err(), "{what}");
        }
    }
}
