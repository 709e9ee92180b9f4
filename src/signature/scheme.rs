//! One way of proving oneself, as a value: what a preset and a user's own `verify` table say.
//!
//! docs/verification.md is the manual of this language.

use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;

use super::condition::{self, Conditions};
use super::encoding::Encoding;
use super::jwt::Jwt;
use super::key::{Key, KeyForm};
use super::mac::{Hash, MacKey};
use super::profile::Naming;
use super::public_key::Signing;
use super::template::Template;
use super::timestamp::Unit;
use crate::event::json::Pointer;
use crate::event::url_prefix::UrlPrefix;
use crate::event::{Place, Places};
use crate::secret::Secret;

/// How a request proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// HMAC with SHA-1; only where the provider has nothing better.
    HmacSha1,
    /// HMAC with SHA-256.
    HmacSha256,
    /// HMAC with SHA-512.
    HmacSha512,
    /// SHA-256 over a text that holds the secret; only where the provider has nothing better.
    PlainSha256,
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// ECDSA on P-256 with SHA-256, in DER.
    EcdsaP256,
    /// RSA PKCS#1 v1.5 with SHA-1; only where the provider has nothing better.
    RsaSha1,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaSha256,
    /// A JSON Web Token (RFC 7519).
    Jwt,
    /// The secret itself, word for word.
    Token,
    /// HTTP Basic (RFC 7617).
    Basic,
}

/// One way of proving oneself: where the signature is, how it is written, and what it covers.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Table")]
pub struct Scheme {
    /// When this way applies.
    pub when: Conditions,
    /// Which of the source's secrets belong to it: a pattern, or `!` and a pattern.
    pub secrets: Option<String>,
    /// What the signature is made with.
    pub algorithm: Algorithm,
    /// How a secret's text becomes key bytes.
    pub key: KeyForm,
    /// Where the signature is; any of several places may carry one.
    pub signature: Vec<Place>,
    /// What separates several entries there. Without it there is one.
    pub separator: Option<String>,
    /// What stands before a signature, for example `sha256=`. Entries without it are left alone.
    pub prefix: String,
    /// How the signature is written.
    pub encoding: Encoding,
    /// The bytes that are signed.
    pub signed: Template,
    /// Where the timestamp is.
    pub timestamp: Option<Places>,
    /// How it is written.
    pub unit: Unit,
    /// How old it may be.
    pub tolerance: Duration,
    /// How far ahead it may be.
    pub future: Duration,
    /// A list of items that must each prove themselves.
    pub each: Option<Pointer>,
    /// Where a signed hash of the body is.
    pub body_hash: Option<BodyHash>,
    /// The signature does not cover all of the body, and that is known.
    pub unsigned_body: bool,
    /// Where one of the secrets must stand, word for word.
    pub secret_at: Option<Places>,
    /// Where the address of a certificate is, and which addresses are good.
    pub certificate: Option<Address>,
    /// The address of a JSON Web Key Set.
    pub jwks: Option<url::Url>,
    /// What a JSON Web Token must say.
    pub jwt: Option<Jwt>,
}

/// A hash of the body that stands somewhere in what is signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyHash {
    /// Where it is.
    pub at: Places,
    /// The hash function.
    pub algorithm: Hash,
    /// How it is written.
    #[serde(default)]
    pub encoding: Encoding,
}

/// An address that a request names, and which addresses are good.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Where the address is.
    pub at: Places,
    /// What it may begin with.
    pub urls: Vec<UrlPrefix>,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    when: Conditions,
    #[serde(default)]
    secrets: Option<String>,
    algorithm: Algorithm,
    #[serde(default)]
    key: KeyForm,
    #[serde(default)]
    header: Option<String>,
    #[serde(default)]
    signature: Option<OneOrMany>,
    #[serde(default)]
    separator: Option<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    encoding: Encoding,
    #[serde(default)]
    signed: Option<Template>,
    #[serde(default)]
    timestamp: Option<Places>,
    #[serde(default)]
    unit: Unit,
    #[serde(default = "default_tolerance", with = "humantime_serde")]
    tolerance: Duration,
    #[serde(default, with = "humantime_serde")]
    future: Option<Duration>,
    #[serde(default)]
    each: Option<Pointer>,
    #[serde(default)]
    body_hash: Option<BodyHash>,
    #[serde(default)]
    unsigned_body: bool,
    #[serde(default)]
    secret_at: Option<Places>,
    #[serde(default)]
    certificate: Option<Address>,
    #[serde(default)]
    jwks: Option<url::Url>,
    #[serde(default)]
    jwt: Option<Jwt>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a place such as `header:NAME`, or a list of places")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Something in a scheme that cannot work, with the key it is under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct SchemeError {
    /// The key of the scheme.
    pub key: &'static str,
    /// What is wrong.
    pub reason: &'static str,
}

impl Scheme {
    /// Refuses a scheme that could not verify anything. `id` is the source's place of the delivery id.
    pub fn validate(&self, id: Option<&Naming>) -> Result<(), SchemeError> {
        let wrong = |key, reason| Err(SchemeError { key, reason });
        if self.signature.is_empty() {
            return wrong("signature", "is missing: say where the signature is, with `header` or `signature`");
        }
        if self.separator.as_ref().is_some_and(String::is_empty) {
            return wrong("separator", "is empty");
        }
        if self.algorithm.is_code() {
            self.validate_signed(id)?;
        }
        if self.timestamp.is_none() && self.signed.has_timestamp() {
            return wrong("signed", "has {timestamp}, and `timestamp` does not say where that is");
        }
        match (self.algorithm == Algorithm::Jwt, &self.jwt) {
            (true, None) => return wrong("jwt", "is missing: say which algorithms a token may have"),
            (false, Some(_)) => return wrong("jwt", "belongs to algorithm = \"jwt\""),
            (true, Some(jwt)) => jwt.validate(self.jwks.is_some())?,
            (false, None) => {}
        }
        if self.jwks.is_some() && self.algorithm != Algorithm::Jwt {
            return wrong("jwks", "belongs to algorithm = \"jwt\"");
        }
        // What is a key is no text, so it would never be found word for word; a token has claims instead.
        let keys = self.algorithm.is_hmac() || self.algorithm == Algorithm::Jwt || self.algorithm.signing().is_some();
        if self.secret_at.is_some() && keys && self.certificate.is_none() {
            return wrong("secret_at", "would never match: the secrets are keys, unless `certificate` brings those");
        }
        if self.jwt.as_ref().is_some_and(|jwt| jwt.secret_claim.is_some()) && !self.is_fetched() {
            return wrong("jwt", "has `secret_claim` without `jwks`: the secrets are keys, and no claim is one");
        }
        if self.certificate.is_some() && self.algorithm.signing().is_none() {
            return wrong("certificate", "belongs to an algorithm with a public key");
        }
        if self.certificate.as_ref().is_some_and(|one| one.urls.is_empty() || one.urls.iter().any(UrlPrefix::is_any)) {
            return wrong("certificate", "names no `urls`: whoever chose the address would choose the key");
        }
        Ok(())
    }

    /// What is signed must prove something.
    fn validate_signed(&self, id: Option<&Naming>) -> Result<(), SchemeError> {
        let wrong = |key, reason| Err(SchemeError { key, reason });
        match &self.timestamp {
            Some(places) if !self.signed.has_timestamp() && !places.iter().all(|place| self.signed.covers(place)) => {
                return wrong(
                    "timestamp",
                    "a timestamp that is not signed proves nothing; put {timestamp} into `signed`",
                );
            }
            _ => {}
        }
        if self.signed.has_id() && id.is_none() {
            return wrong("signed", "has {id}, and the source's `id` does not say where that is");
        }
        if (self.algorithm == Algorithm::PlainSha256) != self.signed.has_secret() && self.certificate.is_none() {
            return wrong("signed", "{secret} belongs into what plain-sha256 signs, and nowhere else");
        }
        if !self.signed.covers_body() && self.body_hash.is_none() && !self.unsigned_body {
            return wrong("signed", "does not cover the body; if that is meant, write unsigned_body = true");
        }
        Ok(())
    }

    /// Whether its keys stand at an address.
    fn is_fetched(&self) -> bool {
        self.jwks.is_some() || self.certificate.is_some()
    }

    /// Whether the source must have a secret for it.
    pub(crate) fn needs_secret(&self) -> bool {
        let named = self.secret_at.is_some()
            || self.signed.has_secret()
            || self.jwt.as_ref().is_some_and(|jwt| jwt.secret_claim.is_some());
        !self.is_fetched() || named
    }

    /// Whether both sides share the secret, so that whoever can verify could have signed.
    pub(crate) fn is_shared(&self) -> bool {
        let public = self.algorithm.signing().or_else(|| self.jwt.as_ref().and_then(Jwt::signing));
        !self.is_fetched() && public.is_none()
    }

    /// Whether the public URL is part of what is signed.
    pub(crate) fn needs_url(&self) -> bool {
        self.signed.has_url() || self.jwt.as_ref().is_some_and(Jwt::needs_url)
    }

    /// Whether the delivery id is covered by the signature.
    pub(crate) fn covers(&self, id: &Naming) -> bool {
        let code = self.algorithm.is_code();
        let whole = self.body_hash.is_some() || self.jwt.as_ref().is_some_and(|jwt| jwt.body_claim.is_some());
        id.places()
            .into_iter()
            .all(|place| (code && (self.signed.has_id() || self.signed.covers(place))) || (whole && place.reads_body()))
    }

    /// Where a secret itself stands in a request, or what is as good as one, and not a code made with it.
    pub(crate) fn secret_places(&self) -> impl Iterator<Item = &Place> {
        let named = || self.secret_at.iter().flat_map(Places::iter);
        let within = !self.algorithm.is_code() || named().any(|place| matches!(place, Place::Entry(_)));
        self.signature.iter().filter(move |_| within).chain(named())
    }

    /// Whether a secret of this form belongs to this way.
    pub(crate) fn takes(&self, secret: &Secret) -> bool {
        let Some(pattern) = &self.secrets else { return true };
        let text = String::from_utf8_lossy(secret.expose());
        match pattern.strip_prefix('!') {
            Some(pattern) => !condition::matches(pattern, &text),
            None => condition::matches(pattern, &text),
        }
    }

    /// Prepares a secret for this way. The error says what is wrong and never repeats the value.
    pub(crate) fn key(&self, secret: &Secret) -> Result<Key, String> {
        let mac = |hash| MacKey::new(hash, &self.key.decode(secret)?).map(|key| Key::Mac(Box::new(key)));
        match self.algorithm {
            Algorithm::HmacSha1 => mac(Hash::Sha1),
            Algorithm::HmacSha256 => mac(Hash::Sha256),
            Algorithm::HmacSha512 => mac(Hash::Sha512),
            Algorithm::PlainSha256 | Algorithm::Token => Ok(Key::Text(secret.clone())),
            Algorithm::Basic if secret.expose().contains(&b':') => Ok(Key::Text(secret.clone())),
            Algorithm::Basic => Err("is not of the form `user:password`".to_owned()),
            _ if self.certificate.is_some() || self.jwks.is_some() => Ok(Key::Text(secret.clone())),
            Algorithm::Jwt => match self.jwt.as_ref().and_then(Jwt::signing) {
                Some(signing) => Key::public(secret, signing),
                None => mac(Hash::Sha256),
            },
            Algorithm::Ed25519 => Key::public(secret, Signing::Ed25519),
            Algorithm::EcdsaP256 => Key::public(secret, Signing::P256),
            Algorithm::RsaSha1 => Key::public(secret, Signing::RsaSha1),
            Algorithm::RsaSha256 => Key::public(secret, Signing::RsaSha256),
        }
    }

    /// The header that carries the signature, if one does.
    pub(crate) fn header(&self) -> Option<&HeaderName> {
        match self.signature.first() {
            Some(Place::Header(name)) => Some(name),
            _ => None,
        }
    }

    /// The places of the signature, as they are written.
    pub(crate) fn places(&self) -> String {
        self.signature.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
    }
}

impl Algorithm {
    /// Its name, as it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmac-sha1",
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha512 => "hmac-sha512",
            Self::PlainSha256 => "plain-sha256",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256 => "ecdsa-p256",
            Self::RsaSha1 => "rsa-sha1",
            Self::RsaSha256 => "rsa-sha256",
            Self::Jwt => "jwt",
            Self::Token => "token",
            Self::Basic => "basic",
        }
    }

    /// Whether the signature is a code over bytes, and not the secret itself or a token.
    pub(crate) fn is_code(self) -> bool {
        !matches!(self, Self::Token | Self::Basic | Self::Jwt)
    }

    /// Whether both sides share the secret.
    pub fn is_hmac(self) -> bool {
        matches!(self, Self::HmacSha1 | Self::HmacSha256 | Self::HmacSha512)
    }

    /// How a private key signs, for algorithms that have one.
    pub(super) fn signing(self) -> Option<Signing> {
        match self {
            Self::Ed25519 => Some(Signing::Ed25519),
            Self::EcdsaP256 => Some(Signing::P256),
            Self::RsaSha1 => Some(Signing::RsaSha1),
            Self::RsaSha256 => Some(Signing::RsaSha256),
            _ => None,
        }
    }
}

impl TryFrom<Table> for Scheme {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let header =
            |name: &String| format!("header:{name}").parse().map_err(|_| format!("`{name}` is not a header name"));
        let places = |text: &String| -> Result<Vec<Place>, String> {
            Ok(text.parse::<Places>().map_err(|error| error.to_string())?.iter().cloned().collect())
        };
        let signature = match (&table.header, &table.signature) {
            (Some(_), Some(_)) => return Err("has both `header` and `signature`; they mean the same".to_owned()),
            (Some(name), None) => vec![header(name)?],
            (None, Some(OneOrMany::One(text))) => places(text)?,
            (None, Some(OneOrMany::Many(texts))) => {
                texts.iter().map(places).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()
            }
            (None, None) if table.algorithm == Algorithm::Basic => vec![header(&"authorization".to_owned())?],
            (None, None) => Vec::new(),
        };
        let encoding = match table.algorithm {
            Algorithm::Token | Algorithm::Basic | Algorithm::Jwt => Encoding::Text,
            _ => table.encoding,
        };
        Ok(Self {
            when: table.when,
            secrets: table.secrets,
            algorithm: table.algorithm,
            key: table.key,
            signature,
            separator: table.separator,
            prefix: table.prefix,
            encoding,
            signed: table.signed.map_or_else(|| "{body}".parse().map_err(|error| format!("{error}")), Ok)?,
            timestamp: table.timestamp,
            unit: table.unit,
            tolerance: table.tolerance,
            future: table.future.unwrap_or(table.tolerance),
            each: table.each,
            body_hash: table.body_hash,
            unsigned_body: table.unsigned_body,
            secret_at: table.secret_at,
            certificate: table.certificate,
            jwks: table.jwks,
            jwt: table.jwt,
        })
    }
}

fn default_tolerance() -> Duration {
    Duration::from_secs(300)
}
