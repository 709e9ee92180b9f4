//! Keys that stand at an address: certificates, and JSON Web Key Sets.
//!
//! Fetching them is somebody else's; here they are read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use x509_cert::Certificate;
use x509_cert::der::{Decode, DecodePem};

use super::public_key::{Jwk, PublicKey};

/// The most keys of a set that are kept; providers have two or three.
const MAX_KEYS: usize = 64;

/// What was found at an address.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    /// An X.509 certificate, in PEM or DER.
    Certificate { key: PublicKey, not_before: SystemTime, not_after: SystemTime },
    /// A JSON Web Key Set: names and keys.
    Keys(Vec<(Option<String>, PublicKey)>),
}

impl Document {
    /// Reads a document. The error says what it is not.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = bytes.trim_ascii_start();
        if text.starts_with(b"{") { Self::key_set(text) } else { Self::certificate(bytes) }
    }

    fn certificate(bytes: &[u8]) -> Result<Self, String> {
        let pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
        let certificate = if pem {
            first_of_chain(bytes).and_then(|pem| Certificate::from_pem(pem).ok())
        } else {
            Certificate::from_der(bytes).ok()
        };
        let certificate = certificate.ok_or("it is not an X.509 certificate")?;
        let validity = certificate.tbs_certificate().validity();
        let at = |since: Duration| UNIX_EPOCH + since;
        Ok(Self::Certificate {
            key: PublicKey::of_certificate(&certificate).map_err(|reason| format!("its key {reason}"))?,
            not_before: at(validity.not_before.to_unix_duration()),
            not_after: at(validity.not_after.to_unix_duration()),
        })
    }

    fn key_set(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Jwk>,
        }
        let set: Set = serde_json::from_slice(text).map_err(|_| "it is not a JSON Web Key Set")?;
        let named = |jwk: &Jwk| Some((jwk.kid.clone(), jwk.key()?));
        let keys: Vec<_> = set.keys.iter().filter_map(named).take(MAX_KEYS).collect();
        if keys.is_empty() { Err("it has no key of a known kind".to_owned()) } else { Ok(Self::Keys(keys)) }
    }
}

/// The first certificate of a chain: the signer's own.
fn first_of_chain(pem: &[u8]) -> Option<&[u8]> {
    const END: &[u8] = b"-----END CERTIFICATE-----";
    let end = pem.windows(END.len()).position(|window| window == END)? + END.len();
    Some(pem[..end].trim_ascii_start())
}
