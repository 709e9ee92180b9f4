//! `[sources.<name>]`

use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

use super::rate::{Rate, rate_or_none};
use crate::event::Place;
use crate::secret::SecretRef;
use crate::signature::{Preset, Scheme, preset};

/// A named sender of webhooks: one path, one way of proving itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A provider that Hookbridge knows. Either this or `verify`.
    #[serde(default)]
    pub preset: Option<String>,
    /// How requests prove themselves, where no preset says so. `"none"` must be written out.
    #[serde(default)]
    pub verify: Option<Verify>,
    /// The secrets shared with the sender. Any of them may match, which is what makes rotation possible.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
    /// Where the event type is; several places are joined by dots. Without it, the preset's.
    #[serde(rename = "type", default, deserialize_with = "one_or_many")]
    pub event_type: Option<Vec<Place>>,
    /// Where the delivery id is. Without it, the preset's; without that, equal bodies count as one delivery
    /// within `dedupe_hash_window`.
    #[serde(default)]
    pub id: Option<Place>,
    /// For how long equal bodies count as one delivery, when there is no delivery id.
    #[serde(default = "default_dedupe_hash_window", with = "humantime_serde")]
    pub dedupe_hash_window: Duration,
    /// For senders that cannot sign: a random token that must follow in the path, `/hooks/<name>/<token>`.
    #[serde(default)]
    pub path_token: Option<SecretRef>,
    /// Request headers that agents see, as `http-<name>`.
    #[serde(default, deserialize_with = "header_names")]
    pub headers: Vec<HeaderName>,
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

/// How a source's requests prove themselves.
#[derive(Clone, Debug)]
pub enum Verify {
    /// Not at all. Whoever knows the URL can send.
    None,
    /// By a signature.
    Scheme(Box<Scheme>),
}

impl Source {
    /// The preset that the source names, if there is such a preset.
    pub fn find_preset(&self) -> Option<Preset> {
        self.preset.as_deref().and_then(preset::find)
    }

    /// Where the event type is: the source's own word, else the preset's.
    pub fn type_places(&self) -> Vec<Place> {
        let of_preset = || self.find_preset().map(|preset| preset.event_type);
        self.event_type.clone().or_else(of_preset).unwrap_or_default()
    }

    /// Where the delivery id is: the source's own word, else the preset's.
    pub fn id_place(&self) -> Option<Place> {
        self.id.clone().or_else(|| self.find_preset()?.id)
    }
}

impl<'de> Deserialize<'de> for Verify {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Verify;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("`\"none\"` or a table that describes a signature")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Verify, E> {
                if text == "none" { Ok(Verify::None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Verify, M::Error> {
                Scheme::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|scheme| Verify::Scheme(Box::new(scheme)))
            }
        }
        value.deserialize_any(Visitor)
    }
}

fn default_dedupe_hash_window() -> Duration {
    Duration::from_secs(300)
}

fn one_or_many<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<Place>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a place such as `header:NAME`, or a list of places")]
    enum Texts {
        One(String),
        Many(Vec<String>),
    }
    let texts = match Texts::deserialize(value)? {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect::<Result<_, _>>().map(Some)
}

fn header_names<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<HeaderName>, D::Error> {
    let parse =
        |text: &String| text.parse().map_err(|_| de::Error::custom(format_args!("`{text}` is not a header name")));
    Vec::<String>::deserialize(value)?.iter().map(parse).collect()
}
