//! A place finds in any body what another reader of JSON finds there, or nothing.
//!
//! The first line is the pointer, the rest the body.

#![no_main]

use hookbridge::event::Request;
use hookbridge::fuzzing::{json, place};
use hookbridge_fuzz::line;
use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Places of every kind.
const PLACES: [&str; 9] =
    ["header:x-a", "query:a", "json:/a/0", "item:/a/b", "form:a", "form:payload:/type", "key:/", "entry:t", "body:"];

fuzz_target!(|bytes: &[u8]| {
    let (pointer, body) = line(bytes);
    let Ok(pointer) = std::str::from_utf8(pointer) else { return };
    in_every_place(pointer, body);
    let Some(found) = json(pointer, body) else { return };
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    let there = at(&document, pointer);
    if let Some(text) = &found.scalar {
        assert!(there.is_some_and(|value| says(value, text)), "{text} is not {there:?}");
        assert!(found.exists);
    }
    // Of two members of one name the other reader takes the last, which may be null: that is no text here either.
    match (found.exists, there.filter(|value| !value.is_null())) {
        (false, Some(value)) => panic!("{value} is not there"),
        (true, None) => assert_eq!(found.scalar, None),
        _ => {}
    }
    if let Some(items) = &found.items {
        let others = there.and_then(Value::as_array).expect("a list is there");
        assert_eq!(items.len(), others.len());
        for (item, other) in items.iter().zip(others) {
            assert_eq!(&serde_json::from_slice::<Value>(item).expect("an item is JSON"), other);
        }
    }
    if let Some(key) = &found.first_key {
        let object = there.and_then(Value::as_object).expect("an object is there");
        assert!(object.contains_key(key));
    }
});

fn in_every_place(text: &str, body: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.extend(HeaderValue::from_str(text).ok().map(|value| (http::HeaderName::from_static("x-a"), value)));
    let request = Request::new(&Method::POST, "https://hooks.example.com/in", Some(text), &headers, body);
    let entries: Vec<&str> = text.split(',').collect();
    for known in PLACES {
        let found = place(known, &request, &entries);
        assert!(found.is_none_or(|found| found.len() <= 3 * (text.len() + body.len()) + 32), "{known}");
    }
}

/// RFC 6901, as serde_json reads it; but indexes of lists are read as numbers here.
fn at<'a>(document: &'a Value, pointer: &str) -> Option<&'a Value> {
    let steps = pointer.strip_prefix('/').map(|steps| steps.split('/')).into_iter().flatten();
    steps.map(|step| step.replace("~1", "/").replace("~0", "~")).try_fold(document, |value, step| match value {
        Value::Object(object) => object.get(&step),
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Whether a text is what a value says. A number is its text as it is written.
fn says(value: &Value, text: &str) -> bool {
    match value {
        Value::String(other) => other == text,
        Value::Bool(_) | Value::Number(_) => serde_json::from_str::<Value>(text).is_ok_and(|read| read == *value),
        _ => false,
    }
}
