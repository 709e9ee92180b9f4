//! Public keys in the forms that providers hand them out in, and the signatures that they check.
//!
//! The cryptography is ring's, which TLS uses as well.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;
use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Document};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::encoding::base64;

/// An Ed25519 key or signature value in bytes (RFC 8032): a key has 32.
const ED25519_BYTES: usize = 32;

/// The sizes of RSA keys that ring checks signatures with.
pub(super) const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// RFC 8410, RFC 5480 and RFC 8017.
const ID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const ID_EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ID_P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// Ed25519, 32 bytes.
    Ed25519(Vec<u8>),
    /// A point on P-256, uncompressed.
    P256(Vec<u8>),
    /// RSA, as PKCS#1 writes it.
    Rsa(Vec<u8>),
    /// RSA, modulus and exponent as JSON Web Keys write them.
    RsaNumbers { modulus: Vec<u8>, exponent: Vec<u8> },
}

/// How a signature by a private key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signing {
    Ed25519,
    /// ECDSA on P-256 with SHA-256; the signature in DER.
    P256,
    /// The same; the signature as two numbers of 32 bytes, as JSON Web Tokens have it.
    P256Fixed,
    /// RSA PKCS#1 v1.5 with SHA-1; only where the provider has nothing better.
    RsaSha1,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaSha256,
}

impl Signing {
    /// Whether a key is of the kind that makes such signatures.
    pub(crate) fn takes(self, key: &PublicKey) -> bool {
        match self {
            Self::Ed25519 => matches!(key, PublicKey::Ed25519(_)),
            Self::P256 | Self::P256Fixed => matches!(key, PublicKey::P256(_)),
            Self::RsaSha1 | Self::RsaSha256 => matches!(key, PublicKey::Rsa(_) | PublicKey::RsaNumbers { .. }),
        }
    }
}

impl PublicKey {
    /// Whether the signature was made over the message by this key's owner.
    pub(crate) fn verifies(&self, signing: Signing, message: &[u8], signature: &[u8]) -> bool {
        let with = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match (signing, self) {
            (Signing::Ed25519, Self::Ed25519(key)) => with(&ED25519, key),
            (Signing::P256, Self::P256(key)) => with(&ECDSA_P256_SHA256_ASN1, key),
            (Signing::P256Fixed, Self::P256(key)) => with(&ECDSA_P256_SHA256_FIXED, key),
            (Signing::RsaSha1, Self::Rsa(key)) => with(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, key),
            (Signing::RsaSha256, Self::Rsa(key)) => with(&RSA_PKCS1_2048_8192_SHA256, key),
            (Signing::RsaSha1 | Signing::RsaSha256, Self::RsaNumbers { modulus, exponent }) => {
                let algorithm = match signing {
                    Signing::RsaSha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    _ => &RSA_PKCS1_2048_8192_SHA256,
                };
                PublicKeyComponents { n: modulus, e: exponent }.verify(algorithm, message, signature).is_ok()
            }
            _ => false,
        }
    }

    /// How large an RSA key is, in bits that fill whole bytes.
    pub(super) fn rsa_bits(&self) -> Option<usize> {
        let bits = |number: &[u8]| number.iter().skip_while(|byte| **byte == 0).count() * 8;
        match self {
            // RFC 8017, appendix A.1.1: modulus, then exponent. What is none is too small for anything.
            Self::Rsa(der) => {
                let numbers = Vec::<UintRef<'_>>::from_der(der).unwrap_or_default();
                Some(numbers.first().map_or(0, |modulus| bits(modulus.as_bytes())))
            }
            Self::RsaNumbers { modulus, .. } => Some(bits(modulus)),
            Self::Ed25519(_) | Self::P256(_) => None,
        }
    }

    /// Reads a key as an operator pastes it: PEM, a JSON Web Key, `whpk_…`, base64 of a SubjectPublicKeyInfo,
    /// or the bare bytes of an Ed25519 key in hex or base64.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let text = text.trim_ascii();
        if text.starts_with(b"-----BEGIN") {
            return Self::from_pem(text);
        }
        if text.starts_with(b"{") {
            let jwk: Jwk = serde_json::from_slice(text).map_err(|_| "is not a JSON Web Key")?;
            return jwk.key().ok_or("is a JSON Web Key of a kind that is not known");
        }
        if text.starts_with(b"whsk_") {
            return Err("is a private key; to verify, only the public one is needed");
        }
        let bare = text.strip_prefix(b"whpk_").unwrap_or(text);
        let hex = HEXLOWER_PERMISSIVE.decode(bare).ok();
        match hex.or_else(|| base64(bare)) {
            Some(bytes) if bytes.len() == ED25519_BYTES => Ok(Self::Ed25519(bytes)),
            Some(bytes) => Self::from_spki(&bytes),
            None => Err("is not a public key: use PEM, a JSON Web Key, hex or base64"),
        }
    }

    fn from_pem(text: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_| "is not PEM")?;
        let (label, document) = Document::from_pem(text).map_err(|_| "is not PEM")?;
        match label {
            "PUBLIC KEY" => Self::from_spki(document.as_bytes()),
            "RSA PUBLIC KEY" => Ok(Self::Rsa(document.as_bytes().to_vec())),
            "CERTIFICATE" => Self::from_certificate(document.as_bytes()),
            _ => Err("is PEM of something other than a public key or a certificate"),
        }
    }

    fn from_certificate(der: &[u8]) -> Result<Self, &'static str> {
        let certificate = Certificate::from_der(der).map_err(|_| "is not an X.509 certificate")?;
        Self::of_certificate(&certificate)
    }

    /// The key that a certificate is for.
    pub(crate) fn of_certificate(certificate: &Certificate) -> Result<Self, &'static str> {
        let info = certificate.tbs_certificate().subject_public_key_info();
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.decode_as().ok());
        Self::of_kind(info.algorithm.oid, curve, info.subject_public_key.raw_bytes())
    }

    fn from_spki(der: &[u8]) -> Result<Self, &'static str> {
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| "is not a public key")?;
        let curve = info.algorithm.parameters.and_then(|any| any.decode_as().ok());
        Self::of_kind(info.algorithm.oid, curve, info.subject_public_key.raw_bytes())
    }

    fn of_kind(kind: ObjectIdentifier, curve: Option<ObjectIdentifier>, bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes = bytes.to_vec();
        match kind {
            ID_ED25519 => Ok(Self::Ed25519(bytes)),
            ID_RSA => Ok(Self::Rsa(bytes)),
            ID_EC if curve == Some(ID_P256) => Ok(Self::P256(bytes)),
            _ => Err("is a public key of a kind that is not known: Ed25519, P-256 and RSA are"),
        }
    }
}

/// A JSON Web Key (RFC 7517), as far as it is used here.
#[derive(Deserialize)]
pub(crate) struct Jwk {
    /// Its name, which a token's header repeats.
    #[serde(default)]
    pub(crate) kid: Option<String>,
    kty: String,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

impl Jwk {
    /// The key itself; `None` for kinds that are not used here.
    pub(crate) fn key(&self) -> Option<PublicKey> {
        let number = |text: &Option<String>| BASE64URL_NOPAD.decode(text.as_deref()?.as_bytes()).ok();
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Some(PublicKey::RsaNumbers { modulus: number(&self.n)?, exponent: number(&self.e)? }),
            ("EC", Some("P-256")) => {
                // SEC 1, section 2.3.3: 4, then both coordinates.
                Some(PublicKey::P256([&[4], &number(&self.x)?[..], &number(&self.y)?[..]].concat()))
            }
            ("OKP", Some("Ed25519")) => Some(PublicKey::Ed25519(number(&self.x)?)),
            _ => None,
        }
    }
}
