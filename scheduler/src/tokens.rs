//! Secrets people and nodes show: how they are made, how they look, how they are compared.
//!
//! A token is `tsr_<id>_<secret>`, a join token `tsrj1.<SHA-256 of the CA>.<id>.<secret>`. The
//! secret is 256 random bits, so its SHA-256 can be stored without salt or stretching. Ids are for
//! people to name a token by; they are no secret. What a token allows is the core's affair.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};

const TOKEN_PREFIX: &str = "tsr_";
const JOIN_PREFIX: &str = "tsrj1";
/// Longer than any token of ours: nothing longer is looked at.
const MAX_CHARS: usize = 256;

#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom;

/// A secret in clear. It is shown once, to the one it is for; `Debug` keeps it to itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// One that was handed out earlier.
    pub fn known(text: String) -> Self {
        Self(text)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A new token: what to store of it, and what to hand out.
#[derive(Debug, Clone)]
pub struct Minted {
    pub id: String,
    /// SHA-256 of the secret part, in hex.
    pub hash: String,
    /// The whole text to hand out.
    pub token: Secret,
}

/// A token somebody showed: which it claims to be, and the hash of what it knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shown {
    pub id: String,
    /// SHA-256 of the secret part, in hex.
    pub hash: String,
}

/// A token for a person or a service.
pub fn mint() -> Result<Minted, NoRandom> {
    let (id, secret) = parts()?;
    let token = Secret(format!("{TOKEN_PREFIX}{id}_{secret}"));
    Ok(Minted { hash: hash(&secret), id, token })
}

/// A token that lets one node join a cluster with this CA.
pub fn mint_join(ca_fingerprint: &[u8; 32]) -> Result<Minted, NoRandom> {
    let (id, secret) = parts()?;
    let ca = hex(ca_fingerprint);
    let token = Secret(format!("{JOIN_PREFIX}.{ca}.{id}.{secret}"));
    Ok(Minted { hash: hash(&secret), id, token })
}

/// Reads `tsr_<id>_<secret>`; `None` for anything else.
pub fn read(text: &str) -> Option<Shown> {
    if text.len() > MAX_CHARS {
        return None;
    }
    let (id, secret) = text.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    shown(id, secret)
}

/// Reads the two parts of a join token that reach the scheduler.
pub fn read_join(id: &str, secret: &str) -> Option<Shown> {
    if id.len() + secret.len() > MAX_CHARS {
        return None;
    }
    shown(id, secret)
}

fn shown(id: &str, secret: &str) -> Option<Shown> {
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    (is_hex(id, 12) && is_hex(secret, 64)).then(|| Shown { id: id.to_owned(), hash: hash(secret) })
}

/// Whether two hashes are the same, in a time that does not tell where they differ.
pub fn same(a: &str, b: &str) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let differ = a.bytes().zip(b.bytes()).fold(0u8, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(differ) == 0
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn hash(secret: &str) -> String {
    hex(&sha256(secret.as_bytes()))
}

fn parts() -> Result<(String, String), NoRandom> {
    let mut bytes = [0u8; 38];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandom)?;
    let (id, secret) = bytes.split_at(6);
    Ok((hex(id), hex(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_to_what_is_stored() {
        let minted = mint().unwrap();
        let shown = read(minted.token.reveal()).unwrap();
        assert_eq!(shown.id, minted.id);
        assert!(same(&shown.hash, &minted.hash));
        assert!(!minted.token.reveal().contains(&minted.hash));
        assert_ne!(mint().unwrap().token, minted.token);
        assert_eq!(format!("{minted:?}").matches("tsr_").count(), 0, "a secret in Debug");
    }

    #[test]
    fn a_join_token_names_the_ca_and_reads_back() {
        let minted = mint_join(&[0xab; 32]).unwrap();
        let parts: Vec<&str> = minted.token.reveal().split('.').collect();
        assert_eq!(parts[0], "tsrj1");
        assert_eq!(parts[1], "ab".repeat(32));
        let shown = read_join(parts[2], parts[3]).unwrap();
        assert_eq!((shown.id, shown.hash), (minted.id, minted.hash));
    }

    #[test]
    fn what_is_no_token_is_not_read() {
        let good = mint().unwrap().token.reveal().to_owned();
        let cases = [
            String::new(),
            "tsr_".into(),
            "tsr_abc_def".into(),
            good.to_uppercase(),
            good[..good.len() - 1].into(),
            format!("{good}0"),
            format!(" {good}"),
            good.replacen("tsr", "tsx", 1),
            "tsr_".to_owned() + &"é".repeat(80),
            "x".repeat(1 << 16),
        ];
        for text in cases {
            assert_eq!(read(&text), None, "{text:.80}");
        }
    }

    #[test]
    fn hashes_are_the_same_or_not() {
        for (a, b, want) in
            [("", "", true), ("ab", "ab", true), ("ab", "ac", false), ("a", "ab", false)]
        {
            assert_eq!(same(a, b), want, "{a} {b}");
        }
        assert_eq!(hex(&sha256(b"abc"))[..16], *"ba7816bf8f01cfea");
    }
}
