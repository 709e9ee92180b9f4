//! Message authentication codes and hashes, from the RustCrypto crates.

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

use crate::secret::Secret;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hash {
    /// SHA-1; only where the provider has nothing better.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// An HMAC key with the key schedule already done, so that a request pays for its own bytes only.
#[derive(Clone)]
pub(crate) enum MacKey {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha512(Hmac<Sha512>),
}

impl Hash {
    /// The hash over the parts, one after the other.
    pub(crate) fn digest(self, parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
        match self {
            Self::Sha1 => digest::<Sha1>(parts),
            Self::Sha256 => digest::<Sha256>(parts),
            Self::Sha512 => digest::<Sha512>(parts),
        }
    }
}

impl MacKey {
    /// Prepares key bytes. HMAC takes a key of any length.
    pub(crate) fn new(hash: Hash, key: &Secret) -> Result<Self, String> {
        let key = key.expose();
        let refused = |_| "cannot be used as an HMAC key".to_owned();
        Ok(match hash {
            Hash::Sha1 => Self::Sha1(Hmac::new_from_slice(key).map_err(refused)?),
            Hash::Sha256 => Self::Sha256(Hmac::new_from_slice(key).map_err(refused)?),
            Hash::Sha512 => Self::Sha512(Hmac::new_from_slice(key).map_err(refused)?),
        })
    }

    /// The code over the parts, one after the other.
    pub(crate) fn mac(&self, parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
        match self {
            Self::Sha1(key) => code(key.clone(), parts),
            Self::Sha256(key) => code(key.clone(), parts),
            Self::Sha512(key) => code(key.clone(), parts),
        }
    }
}

/// Whether any of the claims is the expected value, in time that does not depend on how nearly.
pub(crate) fn any_equal(expected: &[u8], claims: &[impl AsRef<[u8]>]) -> bool {
    claims.iter().fold(false, |found, claim| found | bool::from(expected.ct_eq(claim.as_ref())))
}

fn code<M: Mac>(mut mac: M, parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    for part in parts {
        mac.update(part.as_ref());
    }
    mac.finalize().into_bytes().to_vec()
}

fn digest<D: Digest>(parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut hash = D::new();
    for part in parts {
        hash.update(part.as_ref());
    }
    hash.finalize().to_vec()
}
