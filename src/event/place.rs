//! Where a value is found in a request: `header:NAME`, `json:/POINTER` or `query:NAME`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

/// One place in a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Place {
    /// A request header.
    Header(HeaderName),
    /// A value in the JSON body, by RFC 6901 pointer, already split and unescaped.
    Json(Vec<String>),
    /// A query parameter, percent-decoded.
    Query(String),
}

/// The text is not a place.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a place: use `header:NAME`, `json:/POINTER` or `query:NAME`")]
pub struct PlaceError(String);

/// What a place is looked up in.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The query without its question mark.
    pub query: &'a str,
    /// The raw body.
    pub body: &'a [u8],
}

impl Place {
    /// The text at this place, or `None` when nothing usable is there.
    ///
    /// JSON numbers and booleans count as their text; null, arrays and objects do not count.
    pub fn find<'a>(&self, parts: Parts<'a>) -> Option<Cow<'a, str>> {
        match self {
            Self::Header(name) => Some(String::from_utf8_lossy(parts.headers.get(name)?.as_bytes())),
            Self::Json(path) => scalar(parts.body, path).map(Cow::Owned),
            Self::Query(name) => {
                url::form_urlencoded::parse(parts.query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value)
            }
        }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let refused = || PlaceError(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(refused)?;
        match kind {
            "header" => rest.parse().map(Self::Header).map_err(|_| refused()),
            "json" => {
                let path = rest.strip_prefix('/').ok_or_else(refused)?;
                Ok(Self::Json(path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect()))
            }
            "query" if !rest.is_empty() => Ok(Self::Query(rest.to_owned())),
            _ => Err(refused()),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(formatter, "header:{name}"),
            Self::Query(name) => write!(formatter, "query:{name}"),
            Self::Json(path) => {
                formatter.write_str("json:")?;
                path.iter().try_for_each(|step| write!(formatter, "/{}", step.replace('~', "~0").replace('/', "~1")))
            }
        }
    }
}

/// The scalar at a path of a JSON document. Everything beside the path is skipped, not stored, so a hostile
/// body costs time in proportion to its size and no memory.
fn scalar(json: &[u8], path: &[String]) -> Option<String> {
    let mut document = serde_json::Deserializer::from_slice(json);
    let found = Step(path).deserialize(&mut document).ok()?;
    document.end().ok()?;
    found
}

/// The steps of the path that are still ahead.
struct Step<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        value.deserialize_any(self)
    }
}

impl Step<'_> {
    fn leaf(&self, text: impl Into<String>) -> Option<String> {
        self.0.is_empty().then(|| text.into())
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.leaf(text))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.leaf(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.leaf(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.leaf(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.leaf(value.to_string()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.0.split_first() {
                Some((wanted, ahead)) if *wanted == key => {
                    if found.is_some() {
                        // Two members of one name: readers disagree on which one counts.
                        return Err(M::Error::custom("duplicate member"));
                    }
                    found = Some(map.next_value_seed(Step(ahead))?);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found.flatten())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<Self::Value, S::Error> {
        let (wanted, ahead) = match self.0.split_first() {
            Some((wanted, ahead)) => (wanted.parse::<usize>().ok(), ahead),
            None => (None, self.0),
        };
        let mut found = None;
        let mut index = 0;
        loop {
            if wanted == Some(index) {
                match sequence.next_element_seed(Step(ahead))? {
                    Some(value) => found = value,
                    None => return Ok(None),
                }
            } else if sequence.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(pointer: &str, body: &str) -> Option<String> {
        let parts = Parts { headers: &HeaderMap::new(), query: "", body: body.as_bytes() };
        format!("json:{pointer}").parse::<Place>().unwrap().find(parts).map(Cow::into_owned)
    }

    #[test]
    fn a_pointer_finds_scalars_at_any_depth() {
        let body = r#"{"a":{"b":[1,{"c/d":"deep"}]},"n":7,"t":true}"#;
        assert_eq!(json("/a/b/1/c~1d", body).as_deref(), Some("deep"));
        assert_eq!(json("/a/b/0", body).as_deref(), Some("1"));
        assert_eq!(json("/n", body).as_deref(), Some("7"));
        assert_eq!(json("/t", body).as_deref(), Some("true"));
    }

    #[test]
    fn what_is_no_scalar_is_not_found() {
        for pointer in ["/a", "/missing", "/z", "/a/b/9", "/a/b/x"] {
            assert_eq!(json(pointer, r#"{"a":{"b":[1]},"z":null}"#), None, "{pointer}");
        }
    }

    #[test]
    fn a_body_that_is_not_json_finds_nothing() {
        for body in ["", "{", "{\"a\":1}x", "\u{0}", "{\"a\":1,\"a\":2}"] {
            assert_eq!(json("/a", body), None, "{body:?}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_instead_of_overflowing() {
        let body = "[".repeat(1_000_000);
        assert_eq!(json("/0/0", &body), None);
    }

    #[test]
    fn queries_are_percent_decoded() {
        let parts = Parts { headers: &HeaderMap::new(), query: "x=1&event=a%20b", body: b"" };
        assert_eq!("query:event".parse::<Place>().unwrap().find(parts).as_deref(), Some("a b"));
    }

    #[test]
    fn a_place_prints_as_it_is_written() {
        for text in ["header:x-event", "json:/a~1b/0", "query:type"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in ["header:", "header:a b", "json:x", "query:", "cookie:x", ""] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
