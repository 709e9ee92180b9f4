//! `[endpoints.<name>]`

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, de};
use url::Url;

use super::Authorization;
use super::client_tls::ClientTls;
use super::policy::{Breaker, Retry, own_breaker};
use super::rate::{Rate, own_rate};
use crate::event::{Name, Place};
use crate::secret::{SecretEntry, SecretRef};
use crate::signature::profile::{Naming, Profile, Verify};
use crate::signature::{KeyForm, Scheme, SigningForm, Ways, preset};
use crate::transform::Transform;

/// A named HTTP destination.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Where deliveries go.
    pub url: Url,
    /// The secrets that sign. All of them do, which is what makes rotation possible: `"env:NEW"`, and
    /// `{ secret = "env:OLD", until = "2026-12-01T00:00:00Z" }` for one that signs no longer from then on.
    #[serde(default)]
    pub secrets: Vec<SecretEntry>,
    /// How deliveries are signed: `"standard-webhooks"`, `"x-signature"`, `"preset:NAME"` as that provider does, or
    /// a table as under `[sources.X.verify]`. Write `[]` for an endpoint that wants none.
    #[serde(default = "default_signatures")]
    pub signatures: Vec<SignatureForm>,
    /// The outbox subjects that go here without being asked to: fan-out.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// The agents that may use the endpoint; `"*"` is every agent.
    #[serde(default = "any_agent")]
    pub agents: Vec<AgentPattern>,
    /// Headers that every delivery carries.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The types that fan-out brings here: the message's `ce-type`, else its topic; `*` stands for any run of
    /// characters. Without any, every type.
    #[serde(default)]
    pub types: Vec<String>,
    /// One at a time, in the order of the stream: a failure holds back what comes after it.
    #[serde(default)]
    pub ordered: bool,
    /// Instead of `egress.timeout`.
    #[serde(default, with = "humantime_serde")]
    pub timeout: Option<Duration>,
    /// Instead of `egress.retry`.
    pub retry: Option<Retry>,
    /// Instead of `egress.jitter`.
    pub jitter: Option<f64>,
    /// Instead of `egress.max_retry_after`.
    #[serde(default, with = "humantime_serde")]
    pub max_retry_after: Option<Duration>,
    /// Instead of `egress.max_age`.
    #[serde(default, with = "humantime_serde")]
    pub max_age: Option<Duration>,
    /// Instead of `egress.give_up_on`.
    pub give_up_on: Option<Vec<u16>>,
    /// Instead of `egress.max_concurrent`.
    pub max_concurrent: Option<usize>,
    /// Instead of `egress.rate`.
    #[serde(default, deserialize_with = "own_rate")]
    pub rate: Option<Option<Rate>>,
    /// Instead of `egress.breaker`.
    #[serde(default, deserialize_with = "own_breaker")]
    pub breaker: Option<Option<Breaker>>,
    /// Certificate authorities and a client certificate of the endpoint's own.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Headers that every delivery carries and whose values are secrets.
    #[serde(default)]
    pub secret_headers: BTreeMap<String, SecretRef>,
    /// How deliveries authenticate themselves, beside their signatures.
    pub auth: Option<Authorization>,
    /// A small program in a part of the language of jq, which is given the body (JSON, up to 1 MiB) and gives what
    /// is sent instead, before `payload` wraps it: `"{id: .order.id, kind: \"order\"}"`. A delivery that it cannot
    /// be applied to is dead at once.
    pub transform: Option<Transform>,
    /// What is made of a message's body.
    #[serde(default)]
    pub payload: PayloadForm,
    /// The largest body that is sent, after everything that is made of it. A delivery over it is dead at once.
    pub max_body: Option<ByteSize>,
    /// Whether the endpoint's answer is part of the receipts: its status, some headers, and 64 KiB of its body.
    #[serde(default)]
    pub capture_response: bool,
    /// The headers of an answer that are captured.
    #[serde(default = "default_capture_headers")]
    pub capture_headers: Vec<String>,
}

/// What is made of a message's body before it is signed and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadForm {
    /// Sent as it is, byte for byte.
    #[default]
    AsIs,
    /// Wrapped as CloudEvents 1.0 in JSON, structured mode. What is not JSON is `data_base64`.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// Wrapped as `{"type", "timestamp", "data"}`, the payload structure of Standard Webhooks. A body that is not
    /// JSON is a text in `data`; one that is no text either makes the delivery dead (`malformed`).
    StandardWebhooks,
}

impl fmt::Display for PayloadForm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::AsIs => "as-is",
            Self::CloudEvents => "cloudevents",
            Self::StandardWebhooks => "standard-webhooks",
        })
    }
}

/// The name of an agent, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AgentPattern {
    /// Every agent.
    Any,
    /// This agent.
    Named(Name),
}

/// How an outgoing request is signed.
#[derive(Clone, Debug)]
pub enum SignatureForm {
    /// `"standard-webhooks"`: `webhook-signature` over id, timestamp and body.
    StandardWebhooks,
    /// `"x-signature"`: `X-Signature: sha256=<hex HMAC-SHA256 of the body>`.
    XSignature,
    /// `"preset:NAME"`: as the provider of this name signs.
    Preset(String),
    /// A table in the language of `[sources.X.verify]`: any header name and form.
    Custom(Box<Scheme>),
}

impl AgentPattern {
    /// Whether the agent of this name is meant.
    pub fn allows(&self, agent: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Named(name) => name.as_str() == agent,
        }
    }
}

impl TryFrom<String> for AgentPattern {
    type Error = crate::event::name::NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "*" { Ok(Self::Any) } else { text.parse().map(Self::Named) }
    }
}

impl SignatureForm {
    /// How this form signs; `None` for a preset that there is not. In the first two forms a `whsec_` secret signs
    /// as its base64 value.
    pub fn signing(&self) -> Option<Arc<SigningForm>> {
        match self {
            Self::StandardWebhooks => STANDARD_WEBHOOKS.clone(),
            Self::XSignature => X_SIGNATURE.clone(),
            Self::Preset(name) => of_preset(name),
            Self::Custom(scheme) => Some(alone((**scheme).clone())),
        }
    }
}

/// The two forms that most destinations have, made once: there may be thousands of those.
static STANDARD_WEBHOOKS: LazyLock<Option<Arc<SigningForm>>> = LazyLock::new(|| of_preset("standard-webhooks"));
static X_SIGNATURE: LazyLock<Option<Arc<SigningForm>>> = LazyLock::new(|| {
    let github = preset::find("github")?.profile.schemes().next().cloned()?;
    Some(alone(Scheme {
        signature: vec![Place::Header(http::HeaderName::from_static("x-signature"))],
        separator: Some(", ".to_owned()),
        key: KeyForm::Whsec,
        ..github
    }))
});

fn of_preset(name: &str) -> Option<Arc<SigningForm>> {
    preset::find(name).map(|preset| Arc::new(SigningForm::new(&preset.profile)))
}

/// A scheme by itself, whose `{id}` is the message id.
fn alone(scheme: Scheme) -> Arc<SigningForm> {
    Arc::new(SigningForm::new(&Profile {
        id: Some(Naming::from_iter("header:webhook-id".parse::<Place>())),
        verify: Some(Verify::Ways(Ways::new(vec![scheme]))),
        ..Profile::default()
    }))
}

impl fmt::Display for SignatureForm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StandardWebhooks => formatter.write_str("standard-webhooks"),
            Self::XSignature => formatter.write_str("x-signature"),
            Self::Preset(name) => write!(formatter, "preset:{name}"),
            Self::Custom(scheme) => formatter.write_str(&scheme.places()),
        }
    }
}

impl<'de> Deserialize<'de> for SignatureForm {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = SignatureForm;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("`\"standard-webhooks\"`, `\"x-signature\"`, `\"preset:NAME\"` or a table that describes a signature")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SignatureForm, E> {
                match text {
                    "standard-webhooks" => Ok(SignatureForm::StandardWebhooks),
                    "x-signature" => Ok(SignatureForm::XSignature),
                    _ if text.starts_with("preset:") => Ok(SignatureForm::Preset(text["preset:".len()..].to_owned())),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<SignatureForm, M::Error> {
                let scheme = Scheme::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(SignatureForm::Custom(Box::new(scheme)))
            }
        }
        value.deserialize_any(Visitor)
    }
}

pub(super) fn default_signatures() -> Vec<SignatureForm> {
    vec![SignatureForm::StandardWebhooks]
}

pub(super) fn any_agent() -> Vec<AgentPattern> {
    vec![AgentPattern::Any]
}

/// What an agent needs to go on: what the body is, where the thing is, when to come again, and a name for support.
pub(super) fn default_capture_headers() -> Vec<String> {
    ["content-type", "content-encoding", "location", "retry-after", "etag", "x-request-id"].map(str::to_owned).into()
}
