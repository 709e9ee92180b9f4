//! Requests that a provider makes to see whether somebody is there: answered here, never published.
//!
//! A rule is a value; [`Handshake::answer`] makes the answer of it. What has to be done besides (keeping a
//! secret, calling a URL) is said in the answer, for the caller to do.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use subtle::ConstantTimeEq;
use url::Url;

use super::encoding::Encoding;
use super::key::KeyForm;
use super::mac::{Hash, MacKey};
use super::scheme::{Address, Algorithm, SchemeError};
use super::template::{Template, Values};
use super::{Conditions, Rejection};
use crate::event::place::Scope;
use crate::event::{Place, Places, Request};
use crate::secret::Secret;

/// The longest value that is signed for a stranger.
const MAX_SIGNED: usize = 256;

/// The longest secret that is taken from a provider.
const MAX_CAPTURED: usize = 256;

/// One rule: which requests it is about, and how they are answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handshake {
    /// For the log and the metric.
    pub name: String,
    /// The methods that it is about.
    #[serde(default = "post")]
    methods: Vec<String>,
    /// What else a request must be.
    #[serde(default)]
    when: Conditions,
    /// Whether the request must prove itself first.
    #[serde(default = "yes")]
    pub verified: bool,
    /// Where the source's `verify_token` must stand.
    #[serde(default)]
    token: Option<Places>,
    /// Where the secret is that the provider chooses.
    #[serde(default)]
    capture: Option<Places>,
    /// A URL to call before the answer.
    #[serde(default)]
    confirm: Option<Address>,
    /// A code to answer with.
    #[serde(default)]
    mac: Option<Mac>,
    /// The answer's status.
    #[serde(default = "ok")]
    status: u16,
    /// The answer's body as text.
    #[serde(default)]
    text: Option<Template>,
    /// The answer's body as a JSON object.
    #[serde(default)]
    json: Option<BTreeMap<String, JsonValue>>,
    /// The answer's headers.
    #[serde(default)]
    headers: BTreeMap<String, Template>,
}

/// A code under the source's first secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mac {
    algorithm: Algorithm,
    #[serde(default)]
    encoding: Encoding,
    #[serde(default)]
    prefix: String,
    signed: Template,
    #[serde(default)]
    key: KeyForm,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a template or a whole number")]
enum JsonValue {
    Number(i64),
    Template(Template),
}

/// What to answer, and what to do before.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: String,
    /// A secret to keep. If one is there already, the handshake is refused.
    pub(crate) capture: Option<Secret>,
    /// A URL to call. If it cannot be called, the sender has to come again.
    pub(crate) confirm: Option<Url>,
}

/// Why a handshake is not answered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It does not know the token.
    #[error("the verify token is missing or wrong")]
    Token,
    /// Something that the answer is made of is missing or unusable.
    #[error("{0}")]
    Unusable(String),
}

/// What a source knows for its handshakes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known<'a> {
    pub(crate) verify_token: Option<&'a Secret>,
    pub(crate) secret: Option<&'a Secret>,
}

impl Handshake {
    /// Whether the rule is about this method.
    pub(crate) fn takes(&self, method: &Method) -> bool {
        self.methods.iter().any(|taken| taken == method.as_str())
    }

    /// The methods that it is about.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().map(String::as_str)
    }

    /// Whether the rule is about this request.
    pub(crate) fn fits(&self, request: &Request<'_>) -> bool {
        self.takes(request.method) && self.when.hold(Scope::of(request))
    }

    /// Whether the provider chooses the secret.
    pub(crate) fn captures(&self) -> bool {
        self.capture.is_some()
    }

    /// Whether it signs what strangers send.
    pub(crate) fn signs_for_strangers(&self) -> bool {
        !self.verified && self.mac.as_ref().is_some_and(|mac| mac.algorithm.is_hmac())
    }

    /// Whether its answer holds a code under the source's secret.
    pub(crate) fn needs_secret(&self) -> bool {
        self.mac.is_some()
    }

    /// Whether the source must say a `verify_token`.
    pub(crate) fn needs_token(&self) -> bool {
        self.token.is_some()
    }

    /// Where a secret itself stands in a request.
    pub(super) fn secret_places(&self) -> impl Iterator<Item = &Place> {
        self.token.iter().chain(&self.capture).flat_map(Places::iter)
    }

    pub(super) fn needs_url(&self) -> bool {
        let templates = self.text.iter().chain(self.mac.as_ref().map(|mac| &mac.signed)).chain(self.headers.values());
        let mut json = self.json.iter().flat_map(BTreeMap::values);
        templates.into_iter().any(Template::has_url)
            || json.any(|value| matches!(value, JsonValue::Template(template) if template.has_url()))
    }

    /// Refuses a rule that could answer nothing.
    pub fn validate(&self) -> Result<(), SchemeError> {
        let wrong = |key, reason| Err(SchemeError { key, reason });
        if self.methods.is_empty() || self.methods.iter().any(|method| method.parse::<Method>().is_err()) {
            return wrong("methods", "names no method");
        }
        if StatusCode::from_u16(self.status).is_err() {
            return wrong("status", "is not an HTTP status");
        }
        if self.text.is_some() && self.json.is_some() {
            return wrong("text", "and `json` are both there; an answer has one body");
        }
        if self.headers.keys().any(|name| name.parse::<HeaderName>().is_err()) {
            return wrong("headers", "has a name that is no header name");
        }
        if self.mac.as_ref().is_some_and(|mac| !mac.algorithm.is_hmac() && mac.algorithm != Algorithm::PlainSha256) {
            return wrong("mac", "needs one of the hmac algorithms, or plain-sha256");
        }
        if self.confirm.as_ref().is_some_and(|confirm| confirm.urls.is_empty() || !self.verified) {
            return wrong("confirm", "needs `urls`, and a request that proved itself");
        }
        Ok(())
    }

    /// What to answer to a request that the rule fits.
    pub(crate) fn answer(&self, request: &Request<'_>, known: Known<'_>) -> Result<Reply, Refusal> {
        let scope = Scope::of(request);
        if let Some(places) = &self.token {
            let said = places.find(scope).ok().flatten().unwrap_or_default();
            let right = known.verify_token.is_some_and(|token| bool::from(token.expose().ct_eq(said.as_bytes())));
            if !right {
                return Err(Refusal::Token);
            }
        }
        let mac = self.mac.as_ref().map(|mac| mac.code(scope, known.secret)).transpose()?;
        let values = Values { mac: mac.as_deref(), ..Values::of(scope) };
        let text = |template: &Template| template.text(values).map_err(|error| Refusal::Unusable(error.to_string()));
        let (content_type, body) = match (&self.text, &self.json) {
            (Some(template), _) => (Some("text/plain; charset=utf-8"), text(template)?),
            (None, Some(json)) => {
                let value = |value: &JsonValue| match value {
                    JsonValue::Number(number) => Ok((*number).into()),
                    JsonValue::Template(template) => text(template).map(serde_json::Value::String),
                };
                let object: serde_json::Map<_, _> =
                    json.iter().map(|(name, wanted)| Ok((name.clone(), value(wanted)?))).collect::<Result<_, _>>()?;
                (Some("application/json"), serde_json::Value::Object(object).to_string())
            }
            (None, None) => (None, String::new()),
        };
        let unusable = |what: &str| Refusal::Unusable(format!("{what} cannot be answered as a header"));
        let header = |(name, template): (&String, &Template)| {
            let value = HeaderValue::try_from(text(template)?).map_err(|_| unusable(name))?;
            Ok((name.parse().map_err(|_| unusable(name))?, value))
        };
        Ok(Reply {
            status: StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK),
            headers: self.headers.iter().map(header).collect::<Result<_, _>>()?,
            content_type,
            body,
            capture: self.captured(scope)?,
            confirm: self.confirmed(scope)?,
        })
    }

    fn captured(&self, scope: Scope<'_>) -> Result<Option<Secret>, Refusal> {
        let Some(places) = &self.capture else { return Ok(None) };
        let value = places.find(scope).ok().flatten().filter(|value| !value.is_empty());
        let visible =
            value.filter(|value| value.len() <= MAX_CAPTURED && value.bytes().all(|byte| byte.is_ascii_graphic()));
        let value = visible.ok_or_else(|| Refusal::Unusable(format!("no secret at `{places}`")))?;
        Ok(Some(Secret::new(value.as_bytes())))
    }

    fn confirmed(&self, scope: Scope<'_>) -> Result<Option<Url>, Refusal> {
        let Some(confirm) = &self.confirm else { return Ok(None) };
        let address = confirm.at.find(scope).ok().flatten().unwrap_or_default();
        let url = address.parse::<Url>().ok().filter(|url| confirm.urls.iter().any(|prefix| prefix.allows(url)));
        let refused = || Refusal::Unusable(format!("`{}` is not an address that may be called", confirm.at));
        url.ok_or_else(refused).map(Some)
    }
}

impl Mac {
    /// The code over what a stranger sent. He could use it as the signature of an event, so nothing that could
    /// be the body of one is signed.
    fn code(&self, scope: Scope<'_>, secret: Option<&Secret>) -> Result<String, Refusal> {
        let unusable = |error: Rejection| Refusal::Unusable(error.to_string());
        let secret = secret.ok_or_else(|| Refusal::Unusable("the source has no secret yet".to_owned()))?;
        let values = Values { secret: Some(secret.expose()), ..Values::of(scope) };
        let pieces = self.signed.fill(values).map_err(unusable)?;
        let text = pieces.concat();
        // A plain hash signs no event: the secret is somewhere in the middle of it.
        if self.algorithm.is_hmac() && (text.is_empty() || text.len() > MAX_SIGNED || !is_challenge(&text)) {
            return Err(Refusal::Unusable("what is to be signed is no challenge".to_owned()));
        }
        let key = |hash| {
            let key = self.key.decode(secret).and_then(|key| MacKey::new(hash, &key));
            key.map(|key| key.mac(&pieces)).map_err(Refusal::Unusable)
        };
        let code = match self.algorithm {
            Algorithm::HmacSha1 => key(Hash::Sha1)?,
            Algorithm::HmacSha512 => key(Hash::Sha512)?,
            Algorithm::PlainSha256 => Hash::Sha256.digest(&pieces),
            _ => key(Hash::Sha256)?,
        };
        Ok(format!("{}{}", self.prefix, self.encoding.encode(&code)))
    }
}

/// Whether bytes could have been signed for a stranger as a challenge. An event's body that is one proves nothing.
pub(crate) fn is_challenge(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=_-".contains(byte))
}

fn post() -> Vec<String> {
    vec!["POST".to_owned()]
}

fn yes() -> bool {
    true
}

fn ok() -> u16 {
    200
}
