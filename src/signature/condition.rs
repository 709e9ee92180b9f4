//! `when`: what a request must be for a rule to apply to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::event::place::Scope;
use crate::event::{Place, Places};

/// Places and what must be there, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions(Vec<(Places, Wanted)>);

/// What must be at a place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a text, `true` for anything or `false` for nothing")]
enum Wanted {
    /// Anything, or nothing.
    Present(bool),
    /// A number as its text.
    Number(i64),
    /// A text in which `*` stands for any characters.
    Text(String),
}

impl Conditions {
    /// Whether all of them hold. What is ambiguous is not there.
    pub(crate) fn hold(&self, scope: Scope<'_>) -> bool {
        self.0.iter().all(|(places, wanted)| {
            let text = || places.find(scope).ok().flatten();
            match wanted {
                Wanted::Present(present) => places.is_there(scope) == *present,
                Wanted::Number(number) => text().is_some_and(|text| text == number.to_string()),
                Wanted::Text(pattern) => text().is_some_and(|text| matches(pattern, &text)),
            }
        })
    }

    /// The first that does not hold, in words.
    pub(super) fn unmet(&self, scope: Scope<'_>) -> Option<String> {
        let unmet = self.each().find(|condition| !condition.hold(scope))?;
        unmet.0.first().map(|(places, wanted)| match wanted {
            Wanted::Present(true) => format!("nothing is at `{places}`"),
            Wanted::Present(false) => format!("something is at `{places}`"),
            Wanted::Number(number) => format!("`{places}` is not {number}"),
            Wanted::Text(pattern) => format!("`{places}` is not `{pattern}`"),
        })
    }

    /// Each of them by itself.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> {
        self.0.iter().map(|condition| Self(vec![condition.clone()]))
    }

    /// What to put where, so that they hold: a value that fits, or nothing where any value does. What must not be
    /// there is left out.
    pub(super) fn wishes(&self) -> impl Iterator<Item = (&Places, Option<Value>)> {
        self.0.iter().filter_map(|(places, wanted)| match wanted {
            Wanted::Present(false) => None,
            Wanted::Present(true) => Some((places, None)),
            Wanted::Number(number) => Some((places, Some((*number).into()))),
            Wanted::Text(pattern) => Some((places, Some(pattern.replace('*', "").into()))),
        })
    }

    /// The places where nothing may be.
    pub(super) fn forbidden(&self) -> impl Iterator<Item = &Place> {
        let forbidding = self.0.iter().filter(|(_, wanted)| *wanted == Wanted::Present(false));
        forbidding.flat_map(|(places, _)| places.iter())
    }
}

/// Whether a text fits a pattern in which `*` stands for any characters, also none.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    // A pattern without a star at its end has to be there at the end.
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

impl<'de> Deserialize<'de> for Conditions {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        let wanted = BTreeMap::<String, Wanted>::deserialize(value)?;
        let parse = |(place, wanted): (String, Wanted)| Ok((place.parse().map_err(de::Error::custom)?, wanted));
        wanted.into_iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("v2", "v2", true),
            ("v2", "v20", false),
            ("*algorithm=HMAC_SHA256", "key=a,algorithm=HMAC_SHA256", true),
            ("*algorithm=HMAC_SHA256", "key=a,algorithm=HMAC_SHA256X", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("whpk_*", "whpk_", true),
            ("ab*ba", "aba", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
