//! How persistently deliveries are made: what `[egress]` says for all, and an endpoint may say for itself.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// The most attempts of one delivery, so that a mistyped table makes no endless one.
pub(crate) const MOST_ATTEMPTS: u32 = 1000;

/// The waits between attempts: a list such as `["5s", "5m"]`, or a table
/// `{ first = "5s", factor = 2.0, longest = "6h", attempts = 12 }`, which is written out when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry(Vec<Duration>);

impl Retry {
    /// The waits; one fewer than there are attempts.
    pub fn waits(&self) -> &[Duration] {
        &self.0
    }

    /// How many attempts there are at most.
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    pub(super) fn new(waits: Vec<Duration>) -> Self {
        Self(waits)
    }
}

/// Waits that grow.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exponential {
    #[serde(with = "humantime_serde")]
    first: Duration,
    #[serde(default = "double")]
    factor: f64,
    #[serde(with = "humantime_serde")]
    longest: Duration,
    attempts: u32,
}

fn double() -> f64 {
    2.0
}

impl Exponential {
    fn waits(&self) -> Result<Vec<Duration>, String> {
        if !(1.0..=100.0).contains(&self.factor) {
            return Err("`factor` must be between 1 and 100".to_owned());
        }
        if !(1..=MOST_ATTEMPTS).contains(&self.attempts) {
            return Err(format!("`attempts` must be between 1 and {MOST_ATTEMPTS}"));
        }
        let mut wait = self.first.min(self.longest);
        let mut waits = Vec::new();
        for _ in 1..self.attempts {
            waits.push(wait);
            let longer = wait.as_secs_f64() * self.factor;
            wait = Duration::try_from_secs_f64(longer).unwrap_or(self.longest).min(self.longest);
        }
        Ok(waits)
    }
}

impl<'de> Deserialize<'de> for Retry {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Retry;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(
                    "a list of waits such as [\"5s\", \"5m\"], or { first = \"5s\", longest = \"6h\", attempts = 12 }",
                )
            }

            fn visit_seq<S: de::SeqAccess<'de>>(self, mut list: S) -> Result<Retry, S::Error> {
                let mut waits = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    let wait = humantime::parse_duration(&text)
                        .map_err(|error| de::Error::custom(format_args!("`{text}`: {error}")))?;
                    if waits.len() + 1 == MOST_ATTEMPTS as usize {
                        return Err(de::Error::custom(format_args!("there are at most {MOST_ATTEMPTS} attempts")));
                    }
                    waits.push(wait);
                }
                Ok(Retry(waits))
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Retry, M::Error> {
                let table = Exponential::deserialize(de::value::MapAccessDeserializer::new(map))?;
                table.waits().map(Retry).map_err(de::Error::custom)
            }
        }
        value.deserialize_any(Visitor)
    }
}

/// When a destination is left alone for a while because its attempts fail. `"none"` never does.
///
/// A failure is no answer, or a 5xx. Any other answer shows that somebody is there.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// So many failures in a row open it.
    pub failures: u32,
    /// So large a share of failures in `window` opens it too, from `at_least` attempts on.
    pub failure_rate: f64,
    /// For how long attempts count.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// The fewest attempts in `window` that say anything about a rate.
    pub at_least: u32,
    /// How long it stays open before one attempt probes the destination; doubled with every probe that fails.
    #[serde(with = "humantime_serde")]
    pub open: Duration,
    /// The longest that it stays open between two probes.
    #[serde(with = "humantime_serde")]
    pub longest: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 10,
            failure_rate: 0.5,
            window: Duration::from_secs(60),
            at_least: 50,
            open: Duration::from_secs(30),
            longest: Duration::from_secs(300),
        }
    }
}

/// Reads a breaker's table, or `"none"`.
pub(super) fn breaker_or_none<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Breaker>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Option<Breaker>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a table such as { failures = 10, open = \"30s\" }, or `none`")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<Breaker>, E> {
            if text == "none" { Ok(None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
        }

        fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Option<Breaker>, M::Error> {
            Breaker::deserialize(de::value::MapAccessDeserializer::new(map)).map(Some)
        }
    }
    value.deserialize_any(Visitor)
}

/// The same, for a key that may be left out.
pub(super) fn own_breaker<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<Breaker>>, D::Error> {
    breaker_or_none(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(json: &str) -> Result<Retry, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_is_written_out_up_to_its_longest_wait() {
        let retry = retry(r#"{"first":"1s","factor":3,"longest":"10s","attempts":5}"#).unwrap();
        assert_eq!(retry.waits(), [1, 3, 9, 10].map(Duration::from_secs));
        assert_eq!(retry.attempts(), 5);
    }

    #[test]
    fn a_table_that_says_nothing_sensible_is_refused() {
        for (json, expected) in [
            (r#"{"first":"1s","longest":"10s","attempts":0}"#, "attempts"),
            (r#"{"first":"1s","longest":"10s","attempts":1001}"#, "attempts"),
            (r#"{"first":"1s","longest":"10s","attempts":2,"factor":0.5}"#, "factor"),
            (r#"{"first":"1s","attempts":2}"#, "longest"),
            (r#""often""#, "a list of waits"),
        ] {
            let error = retry(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
