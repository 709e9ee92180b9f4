//! Where a value is found in a request: `header:NAME`, `json:/POINTER`, `query:NAME` and their kin.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::HeaderName;
use serde::Deserialize;

use super::json::Pointer;
use super::request::Request;

/// One place in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A request header.
    Header(HeaderName),
    /// `header:X-Signature-{n}`: the headers of this name that are numbered from 1.
    Numbered(String),
    /// A query parameter, percent-decoded.
    Query(String),
    /// A value in the JSON body.
    Json(Pointer),
    /// A field of a form body, or a value in the JSON that it holds.
    Form(String, Option<Pointer>),
    /// A value in the current item of a list.
    Item(Pointer),
    /// The name of the first member of an object whose value is an object or a list.
    Key(Pointer),
    /// An entry of the signature's header, by name or position.
    Entry(String),
    /// The body as text.
    Body,
}

/// Places that stand for each other: the first that holds something counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Places(Vec<Place>);

/// The text is not a place.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a place: use `header:NAME`, `query:NAME`, `json:/POINTER`, `form:NAME`, `item:/POINTER`, `key:/POINTER` or `body:`"
)]
pub struct PlaceError(String);

/// One value was expected where there are several: which one is meant would be a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ambiguous;

/// What places are looked up in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) request: &'a Request<'a>,
    /// The item that `item:` places are about.
    pub(crate) item: Option<&'a [u8]>,
    /// The entries of the signature's header, for `entry:`.
    pub(crate) entries: &'a [&'a str],
}

/// What is at a place.
pub(crate) type Found<'a> = Result<Option<Cow<'a, str>>, Ambiguous>;

impl<'a> Scope<'a> {
    /// The whole request.
    pub(crate) fn of(request: &'a Request<'a>) -> Self {
        Self { request, item: None, entries: &[] }
    }
}

impl Place {
    /// The text at this place, or nothing when nothing usable is there.
    pub(crate) fn find<'a>(&self, scope: Scope<'a>) -> Found<'a> {
        let request = scope.request;
        match self {
            Self::Header(name) => {
                only(request.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())))
            }
            Self::Numbered(_) => Ok(None),
            Self::Query(name) => only(named(request.parameters(), name)),
            Self::Json(pointer) => Ok(request.scalar(pointer).map(Cow::Owned)),
            Self::Item(pointer) => Ok(scope.item.and_then(|item| pointer.scalar(item)).map(Cow::Owned)),
            Self::Key(pointer) => Ok(pointer.first_key(request.body).map(Cow::Owned)),
            Self::Form(name, pointer) => {
                let fields = request.form().ok_or(Ambiguous)?;
                let field = only(named(fields.iter().map(|(name, value)| (name.as_str(), value.as_str())), name))?;
                Ok(match (field, pointer) {
                    (Some(text), Some(pointer)) => pointer.scalar(text.as_bytes()).map(Cow::Owned),
                    (field, _) => field.map(Cow::Borrowed),
                })
            }
            Self::Entry(name) => match name.parse::<usize>() {
                Ok(position) => Ok(scope.entries.get(position).map(|entry| Cow::Borrowed(*entry))),
                Err(_) => only(
                    scope
                        .entries
                        .iter()
                        .filter_map(|entry| entry.strip_prefix(name.as_str())?.strip_prefix('=').map(Cow::Borrowed)),
                ),
            },
            Self::Body => Ok(std::str::from_utf8(request.body).ok().map(Cow::Borrowed)),
        }
    }

    /// Whether something is there; in JSON also an object or a list.
    pub(crate) fn is_there(&self, scope: Scope<'_>) -> bool {
        match self {
            Self::Json(pointer) => pointer.exists(scope.request.body),
            Self::Item(pointer) => scope.item.is_some_and(|item| pointer.exists(item)),
            // Two values are not nothing.
            other => other.find(scope) != Ok(None),
        }
    }

    /// Whether finding it means reading the body.
    pub(crate) fn reads_body(&self) -> bool {
        match self {
            Self::Json(_) | Self::Form(..) | Self::Item(_) | Self::Key(_) | Self::Body => true,
            Self::Header(_) | Self::Numbered(_) | Self::Query(_) | Self::Entry(_) => false,
        }
    }
}

impl Places {
    /// The text at the first of the places that holds something.
    pub(crate) fn find<'a>(&self, scope: Scope<'a>) -> Found<'a> {
        for place in &self.0 {
            if let Some(found) = place.find(scope)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether something is at one of the places; in JSON also an object or a list.
    pub(crate) fn is_there(&self, scope: Scope<'_>) -> bool {
        self.0.iter().any(|place| place.is_there(scope))
    }

    /// The single places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.0.iter()
    }
}

fn named<'a, K: AsRef<str>, V>(
    pairs: impl Iterator<Item = (K, V)> + 'a,
    name: &'a str,
) -> impl Iterator<Item = V> + 'a {
    pairs.filter(move |(key, _)| key.as_ref() == name).map(|(_, value)| value)
}

fn only<T>(mut values: impl Iterator<Item = T>) -> Result<Option<T>, Ambiguous> {
    let first = values.next();
    if values.next().is_some() { Err(Ambiguous) } else { Ok(first) }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let refused = || PlaceError(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(refused)?;
        let pointer = |text: &str| Pointer::parse(text).ok_or_else(refused);
        match kind {
            "header" => match rest.strip_suffix("{n}") {
                Some(name) if name.parse::<HeaderName>().is_ok() => Ok(Self::Numbered(name.to_ascii_lowercase())),
                _ => rest.parse().map(Self::Header).map_err(|_| refused()),
            },
            "query" if !rest.is_empty() => Ok(Self::Query(rest.to_owned())),
            "json" => pointer(rest).map(Self::Json),
            "item" => pointer(rest).map(Self::Item),
            "key" => pointer(rest.strip_suffix('/').unwrap_or(rest)).map(Self::Key),
            "form" if !rest.is_empty() => match rest.split_once(':') {
                Some((name, path)) => Ok(Self::Form(name.to_owned(), Some(pointer(path)?))),
                None => Ok(Self::Form(rest.to_owned(), None)),
            },
            "entry" if !rest.is_empty() => Ok(Self::Entry(rest.to_owned())),
            "body" if rest.is_empty() => Ok(Self::Body),
            _ => Err(refused()),
        }
    }
}

impl FromStr for Places {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        text.split(" | ").map(|place| place.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<String> for Places {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl From<Place> for Places {
    fn from(place: Place) -> Self {
        Self(vec![place])
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        String::deserialize(value)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(formatter, "header:{name}"),
            Self::Numbered(name) => write!(formatter, "header:{name}{{n}}"),
            Self::Query(name) => write!(formatter, "query:{name}"),
            Self::Json(pointer) => write!(formatter, "json:{pointer}"),
            Self::Form(name, None) => write!(formatter, "form:{name}"),
            Self::Form(name, Some(pointer)) => write!(formatter, "form:{name}:{pointer}"),
            Self::Item(pointer) => write!(formatter, "item:{pointer}"),
            Self::Key(pointer) => write!(formatter, "key:{pointer}"),
            Self::Entry(name) => write!(formatter, "entry:{name}"),
            Self::Body => formatter.write_str("body:"),
        }
    }
}

impl fmt::Display for Places {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str(" | ")?;
            }
            place.fmt(formatter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    fn find(place: &str, headers: &[(&str, &str)], query: &str, body: &str) -> Result<Option<String>, Ambiguous> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
        let request = Request::new(&Method::POST, "", Some(query), &headers, body.as_bytes());
        let scope = Scope { entries: &["t=17", "v1=a", "v1=b"], ..Scope::of(&request) };
        place.parse::<Places>().unwrap().find(scope).map(|found| found.map(Cow::into_owned))
    }

    fn some(text: &str) -> Result<Option<String>, Ambiguous> {
        Ok(Some(text.to_owned()))
    }

    #[test]
    fn every_kind_of_place_finds_its_value() {
        assert_eq!(find("header:X-A", &[("x-a", "1")], "", ""), some("1"));
        assert_eq!(find("query:event", &[], "x=1&event=a%20b", ""), some("a b"));
        assert_eq!(find("json:/a/0", &[], "", r#"{"a":[7]}"#), some("7"));
        assert_eq!(find("form:b", &[], "", "a=1&b=x+y%21"), some("x y!"));
        assert_eq!(find("form:payload:/type", &[], "", "payload=%7B%22type%22%3A%22t%22%7D"), some("t"));
        assert_eq!(find("key:/", &[], "", r#"{"id":1,"message":{}}"#), some("message"));
        assert_eq!(find("entry:t", &[], "", ""), some("17"));
        assert_eq!(find("entry:1", &[], "", ""), some("v1=a"));
        assert_eq!(find("body:", &[], "", "text"), some("text"));
    }

    #[test]
    fn the_first_place_that_holds_something_counts() {
        assert_eq!(find("header:X-A | query:a | json:/a", &[], "b=1", r#"{"a":"j"}"#), some("j"));
        assert_eq!(find("header:X-A | query:a", &[], "a=q", ""), some("q"));
        assert_eq!(find("header:X-A | query:a", &[], "", ""), Ok(None));
    }

    #[test]
    fn two_values_where_one_is_expected_are_no_value() {
        assert_eq!(find("header:X-A", &[("x-a", "1"), ("x-a", "1")], "", ""), Err(Ambiguous));
        assert_eq!(find("query:a", &[], "a=1&a=2", ""), Err(Ambiguous));
        assert_eq!(find("form:a", &[], "", "a=1&a=1"), Err(Ambiguous));
        assert_eq!(find("entry:v1", &[], "", ""), Err(Ambiguous));
        assert_eq!(find("json:/a", &[], "", r#"{"a":1,"a":1}"#), Ok(None));
    }

    #[test]
    fn a_place_prints_as_it_is_written() {
        for text in [
            "header:x-event",
            "header:x-sig-{n}",
            "json:/a~1b/0",
            "json:",
            "query:type",
            "form:a",
            "form:a:/b",
            "item:/x",
            "key:",
            "entry:t",
            "body:",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in ["header:", "header:a b", "json:x", "query:", "cookie:x", "", "form:", "body:x", "form:a:x"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
