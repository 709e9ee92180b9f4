//! A request in the making: what places read in a request that came in, a draft writes.
//!
//! Nothing that is there is ever lost by accident: what does not fit beside it is refused, and the caller tries
//! another place.

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::event::json::Pointer;
use crate::event::place::Scope;
use crate::event::{Place, Request};

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Json,
    Form,
}

/// A request whose parts can still be set.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) method: Method,
    /// The public URL that it is for, without a query.
    pub(super) endpoint: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
    /// Where nothing may be.
    pub(super) closed: Vec<Place>,
}

/// The body of a draft.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Bytes that somebody gave; they stay as they are.
    Bytes(Vec<u8>),
    Json(Value),
    Form(Vec<(String, String)>),
}

impl Content {
    /// Takes given bytes apart, so that something can be put into them.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(json) if json.is_object() || json.is_array() => Self::Json(json),
            _ => Self::Form(form_urlencoded::parse(bytes).into_owned().collect()),
        }
    }

    /// The bytes of the body.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Json(json) => json.to_string().into_bytes(),
            Self::Form(fields) => pairs(fields).into_bytes(),
        }
    }
}

impl Draft {
    /// Looks at the draft as at a request that came in.
    pub(super) fn look<T>(&self, see: impl FnOnce(&Request<'_>) -> T) -> T {
        let (query, body) = (self.query(), self.content.bytes());
        see(&Request::new(&self.method, &self.endpoint, query.as_deref(), &self.headers, &body))
    }

    /// The query without its question mark, if there is one.
    pub(super) fn query(&self) -> Option<String> {
        (!self.query.is_empty()).then(|| pairs(&self.query))
    }

    /// What is at a place, if exactly one thing is.
    pub(super) fn at(&self, place: &Place) -> Option<String> {
        self.look(|request| place.find(Scope::of(request)).ok().flatten().map(std::borrow::Cow::into_owned))
    }

    /// Whether something is at a place; in JSON also an object or a list.
    pub(super) fn holds(&self, place: &Place) -> bool {
        self.look(|request| place.is_there(Scope::of(request)))
    }

    /// Puts a value at a place, in place of another one. `false` where it cannot stand.
    pub(super) fn put(&mut self, place: &Place, value: &Value) -> bool {
        if self.closed.contains(place) {
            return false;
        }
        let text = text(value);
        match place {
            Place::Header(name) => self.put_header(name, &text),
            Place::Numbered(name) => {
                format!("{name}1").parse().is_ok_and(|name: HeaderName| self.put_header(&name, &text))
            }
            Place::Query(name) => {
                set(&mut self.query, name, text);
                true
            }
            Place::Json(pointer) => self.put_json(pointer.steps().iter().map(String::as_str), value),
            Place::Key(pointer) => {
                let path = pointer.steps().iter().map(String::as_str).chain([text.as_str()]);
                self.put_json(path, &Value::Object(Map::new()))
            }
            Place::Form(name, pointer) => self.put_form(name, pointer.as_ref(), value),
            Place::Body => {
                self.content = Content::Bytes(text.into_bytes());
                true
            }
            // Items are put by their whole path, entries by whoever writes the signature's header.
            Place::Item(_) | Place::Entry(_) => false,
        }
    }

    /// Puts a value at a pointer into an item of a list.
    pub(super) fn put_item(&mut self, list: &Pointer, index: usize, pointer: &Pointer, value: &Value) -> bool {
        let index = index.to_string();
        let path = list.steps().iter().chain([&index]).chain(pointer.steps()).map(String::as_str);
        self.put_json(path, value)
    }

    fn put_header(&mut self, name: &HeaderName, text: &str) -> bool {
        let Ok(value) = HeaderValue::from_str(text) else { return false };
        self.headers.insert(name, value);
        true
    }

    fn put_json<'a>(&mut self, path: impl Iterator<Item = &'a str>, value: &Value) -> bool {
        let Content::Json(json) = &mut self.content else { return false };
        write(json, &path.collect::<Vec<_>>(), value)
    }

    fn put_form(&mut self, name: &str, pointer: Option<&Pointer>, value: &Value) -> bool {
        let Content::Form(fields) = &mut self.content else { return false };
        let Some(pointer) = pointer else {
            set(fields, name, text(value));
            return true;
        };
        let field = fields.iter().find(|(known, _)| known == name);
        let mut json = field.map_or(Value::Null, |(_, text)| serde_json::from_str(text).unwrap_or_default());
        let written = write(&mut json, &pointer.steps().iter().map(String::as_str).collect::<Vec<_>>(), value);
        set(fields, name, json.to_string());
        written
    }
}

/// Writes a value at the end of a path, and makes the objects and lists on the way. `false` where something else
/// is in the way.
fn write(at: &mut Value, path: &[&str], value: &Value) -> bool {
    let Some((step, rest)) = path.split_first() else {
        let in_the_way = at.is_object() || at.is_array();
        if !in_the_way {
            *at = value.clone();
        }
        return !in_the_way;
    };
    let index = step.parse::<usize>().ok();
    if at.is_null() {
        *at = if index.is_some() { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
    }
    match (at, index) {
        (Value::Object(members), _) => write(members.entry(*step).or_insert(Value::Null), rest, value),
        (Value::Array(items), Some(index)) if index <= items.len() => {
            if index == items.len() {
                items.push(Value::Null);
            }
            write(&mut items[index], rest, value)
        }
        _ => false,
    }
}

fn set(pairs: &mut Vec<(String, String)>, name: &str, text: String) {
    match pairs.iter_mut().find(|(known, _)| known == name) {
        Some((_, value)) => *value = text,
        None => pairs.push((name.to_owned(), text)),
    }
}

fn pairs(pairs: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(content: Content) -> Draft {
        let endpoint = "https://hooks.example.com/hooks/a".to_owned();
        let (query, headers, closed) = (Vec::new(), HeaderMap::new(), vec!["header:x-closed".parse().unwrap()]);
        Draft { method: Method::POST, endpoint, query, headers, content, closed }
    }

    #[test]
    fn what_is_put_at_a_place_is_found_there() {
        let json = ["header:x-a", "query:a b", "json:/a/0/b", "json:/a/0/c", "json:/a/1", "json:/d~1e"];
        let form = ["form:a", "form:b:/c/0", "form:b:/d", "header:x-a"];
        for (content, places) in [(Content::Json(Value::Null), &json[..]), (Content::Form(Vec::new()), &form[..])] {
            let mut draft = draft(content);
            for text in places {
                let place: Place = text.parse().unwrap();
                assert!(draft.put(&place, &(*text).into()), "{text}");
            }
            for text in places {
                assert_eq!(draft.at(&text.parse().unwrap()).as_deref(), Some(*text), "{draft:?}");
            }
        }
    }

    #[test]
    fn nothing_is_put_where_something_else_is_in_the_way() {
        let mut draft = draft(Content::Json(serde_json::json!({ "a": "text", "o": {}, "l": [] })));
        for taken in
            ["json:/a/b", "json:/o", "json:/l/x", "json:/l/7", "json:/l", "form:a", "item:/a", "header:x-closed"]
        {
            assert!(!draft.put(&taken.parse().unwrap(), &"x".into()), "{taken}");
        }
        assert_eq!(draft.content.bytes(), br#"{"a":"text","l":[],"o":{}}"#);
    }

    #[test]
    fn given_bytes_stay_as_they_are() {
        let mut draft = draft(Content::Bytes(b"{ \"a\" : 1 }".to_vec()));
        assert!(!draft.put(&"json:/b".parse().unwrap(), &"x".into()));
        assert_eq!(draft.content.bytes(), b"{ \"a\" : 1 }");
    }
}
