//! One way of signing a request, as a value.

use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use http::{HeaderMap, HeaderName};
use serde::Deserialize;

use super::key::KeyForm;
use super::mac::{Algorithm, Key};
use super::template::{Template, Values};
use crate::clock::unix_seconds;
use crate::event::Place;
use crate::event::place::Parts;
use crate::secret::Secret;

/// The most signatures of one request that are looked at; honest senders list one per secret.
const MAX_CLAIMS: usize = 16;

/// Where a signature is, how it is written, and what it covers.
///
/// The same keys describe a preset and a user's own `[sources.X.verify]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheme {
    /// The header that carries the signature.
    #[serde(with = "header_name")]
    pub header: HeaderName,
    /// What stands before the signature itself, for example `sha256=`. Entries without it are ignored.
    #[serde(default)]
    pub prefix: String,
    /// What separates several signatures in the header. Without it there is one.
    #[serde(default)]
    pub separator: Option<String>,
    /// `hmac-sha1`, `hmac-sha256` or `hmac-sha512`.
    pub algorithm: Algorithm,
    /// `hex` or `base64`.
    pub encoding: Encoding,
    /// The bytes that are signed: text with `{body}`, `{timestamp}` and `{id}` in it.
    pub signed: Template,
    /// Where the timestamp is that `{timestamp}` stands for, in seconds since 1970. Headers only: the body
    /// is not read before it is verified.
    #[serde(default)]
    pub timestamp: Option<Place>,
    /// How far the timestamp may be from now, in either direction.
    #[serde(default = "default_tolerance", with = "humantime_serde")]
    pub tolerance: Duration,
    /// How the secret's text becomes key bytes.
    #[serde(default)]
    pub key: KeyForm,
}

/// How signature bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal, in either case.
    Hex,
    /// Base64 with padding.
    Base64,
}

/// Why a request is not genuine. For the log and the counter; the sender learns only that it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// The signature, or something that it covers, is not there.
    #[error("signature missing")]
    Missing,
    /// It is there, in a form that no honest sender writes.
    #[error("signature malformed")]
    Malformed,
    /// It does not belong to these bytes and any of the secrets.
    #[error("signature does not match")]
    Mismatch,
    /// Its timestamp is too far from now.
    #[error("timestamp outside the tolerance")]
    Expired,
}

impl Rejection {
    /// The word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Expired => "expired",
        }
    }
}

/// Something in a scheme that cannot work, with the key it is under.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct SchemeError {
    /// The key of the scheme.
    pub key: &'static str,
    /// What is wrong.
    pub reason: &'static str,
}

impl Scheme {
    /// Refuses a scheme that could not verify anything. `id` is the source's place of the delivery id.
    pub fn validate(&self, id: Option<&Place>) -> Result<(), SchemeError> {
        let wrong = |key, reason| Err(SchemeError { key, reason });
        match &self.timestamp {
            Some(Place::Json(_)) => {
                return wrong("timestamp", "the body is not read before it is verified; use header: or query:");
            }
            None if self.signed.has_timestamp() => {
                return wrong("signed", "has {timestamp}, and `timestamp` does not say where that is");
            }
            Some(_) if !self.signed.has_timestamp() => {
                return wrong(
                    "timestamp",
                    "a timestamp that is not signed proves nothing; put {timestamp} into `signed`",
                );
            }
            _ => {}
        }
        match id {
            Some(Place::Json(_)) if self.signed.has_id() => {
                wrong("signed", "{id} cannot come from the body, which is not read before it is verified")
            }
            None if self.signed.has_id() => {
                wrong("signed", "has {id}, and the source's `id` does not say where that is")
            }
            _ if self.separator.as_ref().is_some_and(String::is_empty) => wrong("separator", "is empty"),
            _ => Ok(()),
        }
    }

    /// Prepares a secret for this scheme.
    pub(crate) fn key(&self, secret: &Secret) -> Result<Key, String> {
        Key::new(self.algorithm, &self.key.decode(secret)?)
    }

    /// Whether the request comes from somebody who knows one of the keys.
    ///
    /// Works on the raw body, tries all keys, and compares in constant time. `id` is the place of the
    /// delivery id, for schemes that sign it.
    pub(crate) fn verify(
        &self,
        keys: &[Key],
        id: Option<&Place>,
        parts: Parts<'_>,
        now: SystemTime,
    ) -> Result<(), Rejection> {
        let claimed = self.claims(parts.headers)?;
        let timestamp = match &self.timestamp {
            Some(place) => Some(place.find(parts).ok_or(Rejection::Missing)?),
            None => None,
        };
        let id = match id {
            Some(place) if self.signed.has_id() => Some(place.find(parts).ok_or(Rejection::Missing)?),
            _ => None,
        };
        let values = Values { body: parts.body, timestamp: timestamp.as_deref(), id: id.as_deref() };
        let signed = self.signed.fill(values).ok_or(Rejection::Missing)?;
        if !keys.iter().fold(false, |found, key| found | key.matches(&signed, &claimed)) {
            return Err(Rejection::Mismatch);
        }
        match timestamp {
            Some(timestamp) => self.check_age(&timestamp, now),
            None => Ok(()),
        }
    }

    /// The header value that signs these bytes with every key.
    pub(crate) fn sign(&self, keys: &[Key], id: &str, timestamp: u64, body: &[u8]) -> String {
        let timestamp = timestamp.to_string();
        let values = Values { body, timestamp: Some(&timestamp), id: Some(id) };
        let signed = self.signed.fill(values).unwrap_or_default();
        let write = |key: &Key| format!("{}{}", self.prefix, self.encoding.encode(&key.mac(&signed)));
        match &self.separator {
            Some(separator) => keys.iter().map(write).collect::<Vec<_>>().join(separator),
            None => keys.first().map(write).unwrap_or_default(),
        }
    }

    /// The signatures that the request claims, decoded. Foreign versions in a list are ignored.
    fn claims(&self, headers: &HeaderMap) -> Result<Vec<Vec<u8>>, Rejection> {
        let mut values = headers.get_all(&self.header).iter();
        let value = values.next().ok_or(Rejection::Missing)?.to_str().map_err(|_| Rejection::Malformed)?;
        if value.is_empty() {
            return Err(Rejection::Missing);
        }
        if values.next().is_some() {
            return Err(Rejection::Malformed);
        }
        let entries: Vec<&str> = match &self.separator {
            Some(separator) => value.split(separator.as_str()).take(MAX_CLAIMS).collect(),
            None => vec![value],
        };
        let decode = |entry: &&str| self.encoding.decode(entry.trim().strip_prefix(self.prefix.as_str())?);
        let claims: Vec<Vec<u8>> = entries.iter().filter_map(decode).collect();
        if claims.is_empty() { Err(Rejection::Malformed) } else { Ok(claims) }
    }

    fn check_age(&self, timestamp: &str, now: SystemTime) -> Result<(), Rejection> {
        // Digits only: `+17`, ` 17` and `1e9` are numbers to some parsers and not to others.
        let digits = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
        let seconds: u64 = timestamp.parse().ok().filter(|_| digits).ok_or(Rejection::Malformed)?;
        let distance = unix_seconds(now).abs_diff(seconds);
        if distance <= self.tolerance.as_secs() { Ok(()) } else { Err(Rejection::Expired) }
    }
}

impl Encoding {
    fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => HEXLOWER.encode(bytes),
            Self::Base64 => BASE64.encode(bytes),
        }
    }

    fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Hex => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok(),
            Self::Base64 => BASE64.decode(text.as_bytes()).ok(),
        }
    }
}

fn default_tolerance() -> Duration {
    Duration::from_secs(300)
}

/// A header name as text.
mod header_name {
    use http::HeaderName;
    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(value: D) -> Result<HeaderName, D::Error> {
        let text = String::deserialize(value)?;
        text.parse().map_err(|_| D::Error::custom(format_args!("`{text}` is not a header name")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::preset;

    const BODY: &[u8] = b"Hello, World!";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn verify(preset: &str, secret: &str, headers: &HeaderMap, body: &[u8], now: u64) -> Result<(), Rejection> {
        let preset = preset::find(preset).unwrap();
        let keys = [preset.verify.key(&Secret::new(secret)).unwrap()];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        preset.verify.verify(&keys, preset.id.as_ref(), Parts { headers, query: "", body }, now)
    }

    /// The example of docs.github.com, "Validating webhook deliveries".
    #[test]
    fn github_s_published_example_is_accepted() {
        let right = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signed = headers(&[("x-hub-signature-256", right)]);
        assert_eq!(verify("github", "It's a Secret to Everybody", &signed, BODY, 0), Ok(()));
        assert_eq!(verify("github", "another", &signed, BODY, 0), Err(Rejection::Mismatch));
        assert_eq!(verify("github", "It's a Secret to Everybody", &signed, b"Hello", 0), Err(Rejection::Mismatch));
    }

    #[test]
    fn a_signature_that_is_missing_or_malformed_is_told_apart() {
        assert_eq!(verify("github", "s", &headers(&[]), BODY, 0), Err(Rejection::Missing));
        for bad in ["sha1=00", "sha256=xyz", "757107", "sha256="] {
            let claimed = headers(&[("x-hub-signature-256", bad)]);
            let rejection = verify("github", "s", &claimed, BODY, 0).unwrap_err();
            assert!(matches!(rejection, Rejection::Malformed | Rejection::Mismatch), "{bad}: {rejection}");
        }
        let twice = headers(&[("x-hub-signature-256", "sha256=00"), ("x-hub-signature-256", "sha256=00")]);
        assert_eq!(verify("github", "s", &twice, BODY, 0), Err(Rejection::Malformed));
    }

    /// The example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn standard_webhooks_published_example_is_accepted_within_five_minutes() {
        let signed = headers(&[
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", "v1a,bm90IG91cnM= v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ]);
        let body = br#"{"test": 2432232314}"#;
        let verify = |now| verify("standard-webhooks", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &signed, body, now);
        assert_eq!(verify(1_614_265_330), Ok(()));
        assert_eq!(verify(1_614_265_330 + 300), Ok(()));
        assert_eq!(verify(1_614_265_330 - 300), Ok(()));
        assert_eq!(verify(1_614_265_330 + 301), Err(Rejection::Expired));
        assert_eq!(verify(1_614_265_330 - 301), Err(Rejection::Expired));
    }

    #[test]
    fn what_is_signed_with_several_keys_verifies_with_each() {
        let scheme = preset::find("standard-webhooks").unwrap().verify;
        let key = |secret: &str| scheme.key(&Secret::new(secret)).unwrap();
        let value = scheme.sign(&[key("old"), key("new")], "m_1", 1000, BODY);
        let signed = headers(&[("webhook-id", "m_1"), ("webhook-timestamp", "1000"), ("webhook-signature", &value)]);
        for secret in ["old", "new"] {
            assert_eq!(verify("standard-webhooks", secret, &signed, BODY, 1000), Ok(()), "{secret}");
        }
        assert_eq!(verify("standard-webhooks", "other", &signed, BODY, 1000), Err(Rejection::Mismatch));
    }
}
