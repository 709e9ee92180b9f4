//! `[sources.<name>]`

use std::time::Duration;

use bytesize::ByteSize;
use http::HeaderName;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use url::Url;

use super::rate::{Rate, rate_or_none};
use crate::event::Name;
use crate::secret::{SecretEntry, SecretRef};
use crate::signature::profile::{Answer, Batch, Naming, Profile, Verify};
use crate::signature::{Handshake, Preset, preset};

/// A named sender of webhooks: one path, one way of proving itself.
///
/// docs/verification.md is the manual of the keys that presets and sources share.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A provider that Hookbridge knows. What the source says itself wins, key by key.
    #[serde(default)]
    pub preset: Option<String>,
    /// How requests prove themselves, where no preset says so. `"none"` must be written out.
    #[serde(default)]
    pub verify: Option<Verify>,
    /// The secrets shared with the sender, or its public keys. Any of them may match, which is what makes
    /// rotation possible; `{ secret = "env:OLD", until = "2026-12-01T00:00:00Z" }` stands for one that counts no
    /// longer from then on.
    #[serde(default)]
    pub secrets: Vec<SecretEntry>,
    /// A token that some providers repeat when they ask whether somebody is there.
    #[serde(default)]
    pub verify_token: Option<SecretRef>,
    /// The public URL of this source as the sender knows it, for signatures that cover it. Without it,
    /// `gateway.public_url` and the path.
    #[serde(default)]
    pub public_url: Option<PublicUrl>,
    /// Where the event type is: a place, several that are joined by dots, or a template.
    #[serde(rename = "type", default)]
    pub event_type: Option<Naming>,
    /// Where the delivery id is. Without one, equal bodies count as one delivery within `dedupe_hash_window`.
    #[serde(default)]
    pub id: Option<Naming>,
    /// For how long equal bodies count as one delivery, when there is no delivery id: 5 minutes unless the preset
    /// says otherwise. Zero for not at all, where equal bodies are different events.
    #[serde(default, with = "humantime_serde")]
    pub dedupe_hash_window: Option<Duration>,
    /// The types that are published; `*` stands for any characters. Others are answered like stored ones,
    /// counted, and not published. Without it, all are.
    #[serde(default)]
    pub types: Vec<String>,
    /// How long the sender waits for an answer, where that is less than `gateway.publish_timeout` allows for: what is
    /// not confirmed in four fifths of it is answered 503 in time for the sender to hear it.
    #[serde(default, with = "humantime_serde")]
    pub answer_within: Option<Duration>,
    /// How a list in the body is taken apart.
    #[serde(default)]
    pub batch: Option<Batch>,
    /// Whether it is taken apart: one event per item instead of one per request.
    #[serde(default)]
    pub split: bool,
    /// Requests that are answered and not published.
    #[serde(default)]
    pub handshake: Option<Vec<Handshake>>,
    /// What the sender is answered.
    #[serde(default)]
    pub answer: Option<Answer>,
    /// The methods that carry events.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
    /// The content types that are taken, without their parameters.
    #[serde(default)]
    pub content_types: Option<Vec<String>>,
    /// The largest body, instead of `gateway.max_body`.
    #[serde(default)]
    pub max_body: Option<ByteSize>,
    /// For senders that cannot sign: a random token that must follow in the path, `/hooks/<name>/<token>`.
    #[serde(default)]
    pub path_token: Option<SecretRef>,
    /// Request headers that agents see, as `http-<name>`.
    #[serde(default, deserialize_with = "header_names")]
    pub headers: Vec<HeaderName>,
    /// Whether requests that are answered 401 are kept, for people to study: in the stream QUARANTINE, on
    /// `quarantine.<name>.<reason>`, with the precise reason, the request's headers and the first 64 KiB of its
    /// body, and without anything that is or may be a secret. `hookbridge tail --all 'quarantine.>'` shows them.
    ///
    /// Strangers decide what is in there, and how often: at most 10 a second are kept (50 at once), and the stream
    /// drops its oldest. Bodies are kept as they came, so think of whose data they hold, and who may read the
    /// stream.
    #[serde(default)]
    pub quarantine: bool,
    /// The networks that may send to this source at all; everybody else is answered 403. Empty means everybody.
    /// Behind a reverse proxy, list that one in `gateway.trusted_proxies`: without it every request seems to come
    /// from the proxy.
    #[serde(default)]
    pub networks: Vec<IpNet>,
    /// How many genuine requests are taken. What is over it is answered 429 and not stored. Charged only after
    /// verification, so a stranger cannot use it up.
    #[serde(default, deserialize_with = "rate_or_none")]
    pub rate: Option<Rate>,
    /// Genuine requests handled at once, from verification to answer. One more is answered 429.
    #[serde(default)]
    pub max_concurrent: Option<usize>,
}

/// A URL exactly as the sender knows it: what is signed is its text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PublicUrl(String);

impl TryFrom<String> for PublicUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse::<Url>() {
            Ok(url) if url.has_host() && url.query().is_none() && url.fragment().is_none() => Ok(Self(text)),
            Ok(_) => Err(format!("`{text}` must have a host, and neither a query nor a fragment")),
            Err(error) => Err(format!("`{text}` is not a URL: {error}")),
        }
    }
}

impl Source {
    /// The preset that the source names, if there is such a preset.
    pub fn find_preset(&self) -> Option<Preset> {
        self.preset.as_deref().and_then(preset::find)
    }

    /// Everything that is known of the sender: the source's own word, else the preset's.
    pub fn profile(&self) -> Profile {
        let own = Profile {
            event_type: self.event_type.clone(),
            id: self.id.clone(),
            verify: self.verify.clone(),
            handshake: self.handshake.clone(),
            answer: self.answer.clone(),
            dedupe_hash_window: self.dedupe_hash_window,
            answer_within: self.answer_within,
            batch: self.batch.clone(),
            methods: self.methods.clone(),
            content_types: self.content_types.clone(),
            max_body: self.max_body,
        };
        own.or(self.find_preset().map(|preset| preset.profile).unwrap_or_default())
    }

    /// The public URL of the source without its path token: its own, or made of the gateway's.
    pub fn endpoint(&self, name: &Name, gateway: Option<&Url>) -> Option<String> {
        match (&self.public_url, gateway) {
            (Some(own), _) => Some(own.0.clone()),
            (None, Some(base)) => Some(format!("{}/hooks/{name}", base.as_str().trim_end_matches('/'))),
            (None, None) => None,
        }
    }
}

fn header_names<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<HeaderName>, D::Error> {
    let parse =
        |text: &String| text.parse().map_err(|_| de::Error::custom(format_args!("`{text}` is not a header name")));
    Vec::<String>::deserialize(value)?.iter().map(parse).collect()
}
