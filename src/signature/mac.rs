//! Message authentication codes, from the RustCrypto crates.

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;

use crate::secret::Secret;

/// The algorithm of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-1; only where the provider has nothing better.
    #[serde(rename = "hmac-sha1", alias = "sha1")]
    HmacSha1,
    /// HMAC with SHA-256.
    #[serde(rename = "hmac-sha256", alias = "sha256")]
    HmacSha256,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512", alias = "sha512")]
    HmacSha512,
}

/// A key with the key schedule already done, so that a request pays for its own bytes only.
#[derive(Clone)]
pub(crate) enum Key {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha512(Hmac<Sha512>),
}

impl Key {
    /// Prepares key bytes. HMAC takes a key of any length.
    pub(crate) fn new(algorithm: Algorithm, key: &Secret) -> Result<Self, String> {
        let key = key.expose();
        let refused = |_| "cannot be used as an HMAC key".to_owned();
        Ok(match algorithm {
            Algorithm::HmacSha1 => Self::Sha1(Hmac::new_from_slice(key).map_err(refused)?),
            Algorithm::HmacSha256 => Self::Sha256(Hmac::new_from_slice(key).map_err(refused)?),
            Algorithm::HmacSha512 => Self::Sha512(Hmac::new_from_slice(key).map_err(refused)?),
        })
    }

    /// The code over the parts, one after the other.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Sha1(key) => code(key.clone(), parts),
            Self::Sha256(key) => code(key.clone(), parts),
            Self::Sha512(key) => code(key.clone(), parts),
        }
    }

    /// Whether any of the claimed codes is right, in time that does not depend on how nearly.
    pub(crate) fn matches(&self, parts: &[&[u8]], claimed: &[Vec<u8>]) -> bool {
        let expected = self.mac(parts);
        claimed.iter().fold(false, |found, claim| found | bool::from(expected.ct_eq(claim)))
    }
}

fn code<M: Mac>(mut mac: M, parts: &[&[u8]]) -> Vec<u8> {
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}
