//! Everything that is known of a provider: how it proves itself, names its events, shakes hands and wants to
//! be answered. A preset is one, and a source of the configuration is one.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use http::Method;
use serde::{Deserialize, Deserializer, de};

use super::template::{Template, Values};
use super::{Handshake, Scheme, Ways};
use crate::event::place::{Found, Scope};
use crate::event::subject::MAX_TYPE_BYTES;
use crate::event::{Place, Places};

/// How a source's requests prove themselves.
#[derive(Clone, Debug)]
pub enum Verify {
    /// Not at all. Whoever knows the URL can send.
    None,
    /// In one of these ways.
    Ways(Ways),
}

/// What a type or an id is made of: a place, several whose values are joined by dots, or a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Places(Places),
    Template(Template),
}

/// How the list in a body is taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Where the list is; `json:` is the body itself.
    pub items: Place,
    /// Where an item's type is; without it, the type of the whole.
    #[serde(rename = "type", default)]
    pub event_type: Option<Naming>,
    /// Where an item's id is; without it, the id of the whole and the item's position.
    #[serde(default)]
    pub id: Option<Naming>,
}

/// What a sender is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// The status of a stored event or a duplicate; 202 if it is not said.
    pub status: Option<u16>,
    /// The body then, as `text/plain`.
    pub text: Option<String>,
    /// The body then, as a JSON object.
    pub json: Option<serde_json::Map<String, serde_json::Value>>,
    /// The body of a 401, as `text/plain`.
    pub rejected_text: Option<String>,
}

/// The keys that presets and sources share. What is `None` was not said.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Where the event type is.
    pub event_type: Option<Naming>,
    /// Where the delivery id is.
    pub id: Option<Naming>,
    /// How requests prove themselves.
    pub verify: Option<Verify>,
    /// Requests that are answered and not published.
    pub handshake: Option<Vec<Handshake>>,
    /// What senders are answered.
    pub answer: Option<Answer>,
    /// For how long equal bodies without a delivery id are one event; zero for not at all.
    pub dedupe_hash_window: Option<Duration>,
    /// How long the sender waits for an answer.
    pub answer_within: Option<Duration>,
    /// How a list is taken apart.
    pub batch: Option<Batch>,
    /// The methods that carry events.
    pub methods: Option<Vec<String>>,
    /// The content types that are taken.
    pub content_types: Option<Vec<String>>,
    /// The largest body.
    pub max_body: Option<ByteSize>,
}

impl Profile {
    /// This profile, and another one for what it does not say.
    pub fn or(self, other: Self) -> Self {
        Self {
            event_type: self.event_type.or(other.event_type),
            id: self.id.or(other.id),
            verify: self.verify.or(other.verify),
            handshake: self.handshake.or(other.handshake),
            answer: self.answer.or(other.answer),
            dedupe_hash_window: self.dedupe_hash_window.or(other.dedupe_hash_window),
            answer_within: self.answer_within.or(other.answer_within),
            batch: self.batch.or(other.batch),
            methods: self.methods.or(other.methods),
            content_types: self.content_types.or(other.content_types),
            max_body: self.max_body.or(other.max_body),
        }
    }

    /// The ways of proving; none for `verify = "none"`.
    pub fn schemes(&self) -> impl Iterator<Item = &Scheme> {
        match &self.verify {
            Some(Verify::Ways(ways)) => Some(ways.iter()),
            Some(Verify::None) | None => None,
        }
        .into_iter()
        .flatten()
    }

    /// The handshake rules.
    pub fn handshakes(&self) -> &[Handshake] {
        self.handshake.as_deref().unwrap_or_default()
    }

    /// The methods that carry events: POST unless said otherwise.
    pub fn event_methods(&self) -> Vec<Method> {
        let said = self.methods.as_ref().map(|methods| methods.iter().filter_map(|method| method.parse().ok()));
        said.map_or_else(|| vec![Method::POST], Iterator::collect)
    }

    /// Whether every way of proving covers the delivery id, so that nobody can change it. `None` without an id
    /// or without a signature.
    pub fn id_is_signed(&self) -> Option<bool> {
        let id = self.id.as_ref()?;
        let mut schemes = self.schemes().peekable();
        schemes.peek()?;
        Some(schemes.all(|scheme| scheme.covers(id)))
    }

    /// Where a secret itself stands in a request that is an event.
    pub(crate) fn secret_places(&self) -> impl Iterator<Item = &Place> {
        self.schemes().flat_map(Scheme::secret_places)
    }

    /// Where a secret itself stands in a request that is a handshake.
    pub(crate) fn handshake_secret_places(&self) -> impl Iterator<Item = &Place> {
        self.handshakes().iter().flat_map(Handshake::secret_places)
    }

    /// Where a code made with a secret stands.
    pub(crate) fn code_places(&self) -> impl Iterator<Item = &Place> {
        self.schemes().filter(|scheme| scheme.algorithm.is_code()).flat_map(|scheme| &scheme.signature)
    }

    /// Whether something in it needs to know the public URL.
    pub fn needs_url(&self) -> bool {
        self.schemes().any(Scheme::needs_url) || self.handshakes().iter().any(Handshake::needs_url)
    }
}

impl Naming {
    /// The type of a request or an item: what of it is there, joined by dots.
    pub(crate) fn event_type(&self, scope: Scope<'_>) -> Option<String> {
        let part = |part: &Part| match part {
            Part::Places(places) => places.find(scope).ok().flatten().map(Cow::into_owned),
            Part::Template(template) => Some(template.lenient(Values::of(scope))),
        };
        let mut joined = self.0.iter().filter_map(part).collect::<Vec<_>>().join(".");
        // What a template left empty leaves dots that separate nothing.
        if joined.starts_with('.') || joined.ends_with('.') {
            joined = joined.trim_matches('.').to_owned();
        }
        joined.truncate(joined.floor_char_boundary(MAX_TYPE_BYTES));
        (!joined.is_empty()).then_some(joined)
    }

    /// The id of a request or an item. Half of an id names nothing: everything must be there, and once.
    pub(crate) fn id<'a>(&self, scope: Scope<'a>) -> Found<'a> {
        if let [Part::Places(places)] = &self.0[..] {
            return places.find(scope);
        }
        let mut parts = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            let found = match part {
                Part::Places(places) => places.find(scope)?,
                Part::Template(template) => template.text(Values::of(scope)).ok().map(Cow::Owned),
            };
            match found.filter(|text| !text.is_empty()) {
                Some(text) => parts.push(text),
                None => return Ok(None),
            }
        }
        Ok(Some(parts.join(".").into()))
    }

    /// Part by part, the places that stand for each other, and the text that a template has before them.
    pub(super) fn parts(&self) -> Vec<(&str, Vec<&Place>)> {
        let mut parts = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            parts.push(match part {
                Part::Places(places) => ("", places.iter().collect()),
                Part::Template(template) => (template.beginning(), template.places().collect()),
            });
        }
        parts
    }

    /// Every place that is looked at.
    pub(crate) fn places(&self) -> Vec<&Place> {
        let mut all = Vec::new();
        for part in &self.0 {
            match part {
                Part::Places(places) => all.extend(places.iter()),
                Part::Template(template) => all.extend(template.places()),
            }
        }
        all
    }
}

impl FromIterator<Place> for Naming {
    fn from_iter<I: IntoIterator<Item = Place>>(places: I) -> Self {
        Self(places.into_iter().map(|place| Part::Places(place.into())).collect())
    }
}

impl std::fmt::Display for Naming {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str(" and ")?;
            }
            match part {
                Part::Places(places) => places.fmt(formatter)?,
                Part::Template(template) => template.fmt(formatter)?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Naming {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a place such as `header:NAME`, a list of places, or a template")]
        enum Texts {
            One(String),
            Many(Vec<String>),
        }
        let texts = match Texts::deserialize(value)? {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        let part = |text: &String| {
            if text.contains('{') {
                text.parse().map(Part::Template).map_err(de::Error::custom)
            } else {
                text.parse().map(Part::Places).map_err(de::Error::custom)
            }
        };
        texts.iter().map(part).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Verify {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Verify;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("`\"none\"`, a table that describes a signature, or a list of such tables")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Verify, E> {
                if text == "none" { Ok(Verify::None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Verify, M::Error> {
                let scheme = Scheme::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Verify::Ways(Ways::new(vec![scheme])))
            }

            fn visit_seq<S: de::SeqAccess<'de>>(self, sequence: S) -> Result<Verify, S::Error> {
                let schemes = Vec::deserialize(de::value::SeqAccessDeserializer::new(sequence))?;
                Ok(Verify::Ways(Ways::new(schemes)))
            }
        }
        value.deserialize_any(Visitor)
    }
}
