//! Values in a JSON document by RFC 6901 pointer, without building the document.
//!
//! What is beside the path is skipped, not stored, so a hostile body costs time in proportion to its size and
//! hardly any memory. Two members of one name make a document unusable: readers disagree on which one counts.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use memchr::memmem;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The most items of a list that are taken apart; providers' batches have at most a thousand.
pub(crate) const MAX_ITEMS: usize = 1_000;

/// A pointer, split into steps and unescaped. No step is the whole document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

/// A list has more items than are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyItems;

impl Pointer {
    /// Reads a pointer: empty, or steps that each begin with a slash.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self(Vec::new()));
        }
        let steps = text.strip_prefix('/')?.split('/');
        Some(Self(steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect()))
    }

    /// The steps, one after the other.
    pub(crate) fn steps(&self) -> &[String] {
        &self.0
    }

    /// The pointer to what another one finds in an item of the list here.
    pub(crate) fn item(&self, index: usize, inner: &Self) -> Self {
        Self([&self.0[..], &[index.to_string()], &inner.0[..]].concat())
    }

    /// The last step.
    pub(crate) fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }

    /// The text of the scalar there. Numbers and booleans count as their text; null, lists and objects do not.
    pub(crate) fn scalar(&self, json: &[u8]) -> Option<String> {
        if self.leads_nowhere(json) {
            return None;
        }
        walk(json, Step { ahead: &self.0, leaf: PhantomData::<Scalar> })
    }

    /// Whether the document cannot have what is pointed to, as far as a glance tells: a name on the way is nowhere in
    /// it, and nothing in it is written with a backslash, as that name could be. Many kinds of events lack the member
    /// that tells others apart, and need not be read for it.
    fn leads_nowhere(&self, json: &[u8]) -> bool {
        let is_index = |step: &str| step.parse::<usize>().is_ok();
        let mut names = self.0.iter().filter(|step| !is_index(step));
        names.any(|name| memmem::find(json, name.as_bytes()).is_none()) && memchr::memchr(b'\\', json).is_none()
    }

    /// The name of the first member there whose value is an object or a list.
    pub(crate) fn first_key(&self, json: &[u8]) -> Option<String> {
        walk(json, Step { ahead: &self.0, leaf: PhantomData::<FirstKey> })
    }

    /// Whether a value is there that is not null: a scalar, an object or a list. Two members of one name on the way
    /// are something as well.
    pub(crate) fn exists(&self, json: &[u8]) -> bool {
        let mut document = serde_json::Deserializer::from_slice(json);
        let step = Step { ahead: &self.0, leaf: PhantomData::<Anything> };
        match step.deserialize(&mut document) {
            Ok(found) => found.is_some() && document.end().is_ok(),
            Err(error) => error.is_data(),
        }
    }

    /// The items of the list there, each as it is written. `None` when there is no list.
    pub(crate) fn items<'a>(&self, json: &'a [u8]) -> Option<Result<Vec<&'a [u8]>, TooManyItems>> {
        walk(json, Step { ahead: &self.0, leaf: PhantomData::<Items<'a>> })
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(formatter, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

/// What is made of the value at the end of a path.
trait Leaf<'de> {
    type Found;

    fn read<D: Deserializer<'de>>(value: D) -> Result<Option<Self::Found>, D::Error>;
}

fn walk<'de, L: Leaf<'de>>(json: &'de [u8], step: Step<'_, L>) -> Option<L::Found> {
    let mut document = serde_json::Deserializer::from_slice(json);
    let found = step.deserialize(&mut document).ok()?;
    document.end().ok()?;
    found
}

/// The steps of the path that are still ahead.
struct Step<'a, L> {
    ahead: &'a [String],
    leaf: PhantomData<L>,
}

impl<'a, 'de, L: Leaf<'de>> DeserializeSeed<'de> for Step<'a, L> {
    type Value = Option<L::Found>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        if self.ahead.is_empty() { L::read(value) } else { value.deserialize_any(self) }
    }
}

impl<'a, L> Step<'a, L> {
    fn next(&self) -> Option<(&'a str, Step<'a, L>)> {
        let (wanted, ahead) = self.ahead.split_first()?;
        Some((wanted, Step { ahead, leaf: PhantomData }))
    }
}

impl<'de, L: Leaf<'de>> Visitor<'de> for Step<'_, L> {
    type Value = Option<L::Found>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let Some((wanted, _)) = self.next() else { return Ok(None) };
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.next() {
                Some((_, next)) if wanted == key => {
                    if found.is_some() {
                        return Err(M::Error::custom("duplicate member"));
                    }
                    found = Some(map.next_value_seed(next)?);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found.flatten())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<Self::Value, S::Error> {
        let wanted = self.next().and_then(|(wanted, _)| wanted.parse::<usize>().ok());
        let mut found = None;
        let mut index = 0;
        loop {
            match self.next() {
                Some((_, next)) if wanted == Some(index) => match sequence.next_element_seed(next)? {
                    Some(value) => found = value,
                    None => return Ok(None),
                },
                _ if sequence.next_element::<IgnoredAny>()?.is_none() => return Ok(found),
                _ => {}
            }
            index += 1;
        }
    }
}

/// A text, a number or a boolean.
struct Scalar;

impl<'de> Leaf<'de> for Scalar {
    type Found = String;

    fn read<D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
        let text = <&RawValue>::deserialize(value)?.get();
        Ok(match text.as_bytes().first() {
            Some(b'"') => Some(serde_json::from_str(text).map_err(D::Error::custom)?),
            // As it is written: `1.50` and numbers beyond 64 bits are not the same after reading them.
            Some(b'-' | b'0'..=b'9' | b't' | b'f') => Some(text.to_owned()),
            _ => None,
        })
    }
}

/// Any value but null.
struct Anything;

impl<'de> Leaf<'de> for Anything {
    type Found = ();

    fn read<D: Deserializer<'de>>(value: D) -> Result<Option<()>, D::Error> {
        let value = <&RawValue>::deserialize(value)?;
        Ok((value.get() != "null").then_some(()))
    }
}

/// The first member that holds more than a scalar.
struct FirstKey;

impl<'de> Leaf<'de> for FirstKey {
    type Found = String;

    fn read<D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Option<String>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut found = None;
                while let Some((key, value)) = map.next_entry::<Cow<'de, str>, &RawValue>()? {
                    if found.is_none() && value.get().starts_with(['{', '[']) {
                        found = Some(key.into_owned());
                    }
                }
                Ok(found)
            }
        }
        value.deserialize_map(Keys)
    }
}

/// The items of a list.
struct Items<'a>(PhantomData<&'a ()>);

impl<'a> Leaf<'a> for Items<'a> {
    type Found = Result<Vec<&'a [u8]>, TooManyItems>;

    fn read<D: Deserializer<'a>>(value: D) -> Result<Option<Self::Found>, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Result<Vec<&'de [u8]>, TooManyItems>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON list")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<Self::Value, S::Error> {
                let mut items = Vec::new();
                while let Some(item) = sequence.next_element::<&'de RawValue>()? {
                    if items.len() == MAX_ITEMS {
                        while sequence.next_element::<IgnoredAny>()?.is_some() {}
                        return Ok(Err(TooManyItems));
                    }
                    items.push(item.get().as_bytes());
                }
                Ok(Ok(items))
            }
        }
        value.deserialize_seq(List).map(Some)
    }
}

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        let text = String::deserialize(value)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom(format_args!("`{text}` is not a JSON pointer such as `/a/0`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(pointer: &str, json: &str) -> Option<String> {
        Pointer::parse(pointer).unwrap().scalar(json.as_bytes())
    }

    #[test]
    fn a_pointer_finds_scalars_at_any_depth() {
        let body = r#"{"a":{"b":[1,{"c/d":"deep"}]},"n":7,"t":true}"#;
        assert_eq!(scalar("/a/b/1/c~1d", body).as_deref(), Some("deep"));
        assert_eq!(scalar("/a/b/0", body).as_deref(), Some("1"));
        assert_eq!(scalar("/a/b/+0", body).as_deref(), Some("1"));
        assert_eq!(scalar("/n", body).as_deref(), Some("7"));
        assert_eq!(scalar("/t", body).as_deref(), Some("true"));
        assert_eq!(scalar("", "\"whole\"").as_deref(), Some("whole"));
        assert_eq!(scalar("", r#""a\u0062\n\ud83d\ude00""#).as_deref(), Some("ab\n\u{1f600}"));
    }

    #[test]
    fn a_name_is_found_however_it_is_written() {
        assert_eq!(scalar("/action/0", r#"{"\u0061ction":["opened"]}"#).as_deref(), Some("opened"));
        assert_eq!(scalar("/a\"b\\c", r#"{"a\"b\\c":1}"#).as_deref(), Some("1"));
        assert_eq!(scalar("/\u{e9}", r#"{"\u00e9":1}"#).as_deref(), Some("1"));
        assert_eq!(scalar("/\u{e9}", "{\"\u{e9}\":1}").as_deref(), Some("1"));
        assert_eq!(scalar("/a~1b", r#"{"a\/b":1}"#).as_deref(), Some("1"));
        assert_eq!(scalar("/", r#"{"":1}"#).as_deref(), Some("1"));
    }

    #[test]
    fn a_number_is_the_text_that_it_is_written_as() {
        for number in ["0", "-1", "1.50", "1e3", "12345678901234567890123", "0.1"] {
            assert_eq!(scalar("/n", &format!("{{\"n\": {number} }}")).as_deref(), Some(number));
        }
    }

    #[test]
    fn what_is_no_scalar_is_not_found() {
        for pointer in ["/a", "/missing", "/z", "/a/b/9", "/a/b/x", "/a/b", ""] {
            assert_eq!(scalar(pointer, r#"{"a":{"b":[1]},"z":null}"#), None, "{pointer}");
        }
    }

    #[test]
    fn a_body_that_is_not_json_finds_nothing() {
        for body in ["", "{", "{\"a\":1}x", "\u{0}", "{\"a\":1,\"a\":2}"] {
            assert_eq!(scalar("/a", body), None, "{body:?}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_instead_of_overflowing() {
        let body = "[".repeat(1_000_000);
        assert_eq!(scalar("/0/0", &body), None);
        assert_eq!(Pointer::parse("").unwrap().items(body.as_bytes()), None);
    }

    #[test]
    fn an_object_or_a_list_is_there_and_null_is_not() {
        let body = br#"{"o":{},"l":[],"s":"","n":null}"#;
        let exists = |pointer: &str| Pointer::parse(pointer).unwrap().exists(body);
        assert!(exists("/o") && exists("/l") && exists("/s") && exists(""));
        assert!(!exists("/n") && !exists("/x") && !exists("/l/0"));
        assert!(Pointer::parse("/a").unwrap().exists(br#"{"a":1,"a":2}"#));
        assert!(!Pointer::parse("/a").unwrap().exists(br#"{"a":1"#));
    }

    #[test]
    fn a_list_is_taken_apart_byte_for_byte() {
        let items = |pointer: &str, json: &'static str| Pointer::parse(pointer).unwrap().items(json.as_bytes());
        assert_eq!(items("", "[{\"a\": 1},\n 2 ]"), Some(Ok(vec![&b"{\"a\": 1}"[..], b"2"])));
        assert_eq!(items("/e", "{\"e\":[]}"), Some(Ok(Vec::new())));
        assert_eq!(items("/e", "{\"e\":{}}"), None);
        assert_eq!(items("/e", "{\"e\":[1]"), None);
    }

    #[test]
    fn a_list_that_is_too_long_is_said_to_be() {
        let body = format!("[{}0]", "0,".repeat(MAX_ITEMS));
        assert_eq!(Pointer::parse("").unwrap().items(body.as_bytes()), Some(Err(TooManyItems)));
    }

    #[test]
    fn the_first_key_with_something_inside_is_found() {
        let first = |json: &str| Pointer::parse("").unwrap().first_key(json.as_bytes());
        assert_eq!(first(r#"{"update_id":1,"message":{"text":"x"}}"#).as_deref(), Some("message"));
        assert_eq!(first(r#"{"for_user_id":"1","tweet_create_events":[1]}"#).as_deref(), Some("tweet_create_events"));
        assert_eq!(first(r#"{"a":1}"#), None);
        assert_eq!(first("[]"), None);
    }
}
