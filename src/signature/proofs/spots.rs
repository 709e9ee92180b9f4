//! Where in a request the text of a place stands, and the request with one bit of it the other way round.

use std::collections::BTreeMap;
use std::ops::Range;

use http::{HeaderName, HeaderValue};
use serde_json::value::RawValue;

use super::requests::Sent;
use crate::event::Place;

/// A stretch of bytes of a request.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    part: Part,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Part {
    Header(HeaderName),
    Query,
    Body,
}

impl Spot {
    /// The whole value of a header that is there once.
    pub(super) fn header(name: &HeaderName, sent: &Sent) -> Option<Self> {
        Some(Self { part: Part::Header(name.clone()), range: 0..sent.headers.get(name)?.len() })
    }

    /// The whole query.
    pub(super) fn query(sent: &Sent) -> Option<Self> {
        Some(Self { part: Part::Query, range: 0..sent.query.as_ref()?.len() })
    }

    /// Where a text stands in the value of a header.
    pub(super) fn in_header(name: &HeaderName, sent: &Sent, text: &str) -> Option<Self> {
        let value = sent.headers.get(name)?.to_str().ok()?;
        let start = value.find(text)?;
        Some(Self { part: Part::Header(name.clone()), range: start..start + text.len() })
    }

    /// Where what a place says stands; several for the items of a list.
    pub(super) fn of(place: &Place, sent: &Sent, list: Option<&str>) -> Vec<Self> {
        let body =
            |ranges: Vec<Range<usize>>| ranges.into_iter().map(|range| Self { part: Part::Body, range }).collect();
        match place {
            Place::Header(name) => Self::header(name, sent).into_iter().collect(),
            Place::Query(name) => {
                let range = sent.query.as_ref().and_then(|query| field(query.as_bytes(), name));
                range.map(|range| Self { part: Part::Query, range }).into_iter().collect()
            }
            Place::Json(pointer) => body(in_json(&sent.body, &pointer.to_string()).into_iter().collect()),
            Place::Form(name, _) => body(field(&sent.body, name).into_iter().collect()),
            Place::Item(pointer) => {
                let count = (0..).take_while(|index| item(sent, list, *index, "").is_some()).count();
                body((0..count).filter_map(|index| item(sent, list, index, &pointer.to_string())).collect())
            }
            Place::Body => vec![Self { part: Part::Body, range: 0..sent.body.len() }],
            Place::Numbered(_) | Place::Entry(_) | Place::Key(_) => Vec::new(),
        }
    }

    pub(super) fn bits(&self) -> Range<usize> {
        0..self.range.len() * 8
    }

    /// The request with this bit the other way round; `None` where no server would hand such a request on.
    pub(super) fn flip(&self, sent: &Sent, bit: usize) -> Option<Sent> {
        let (at, mask) = (self.range.start + bit / 8, 1 << (bit % 8));
        let mut changed = sent.clone();
        match &self.part {
            Part::Body => changed.body[at] ^= mask,
            Part::Header(name) => {
                let mut value = sent.headers.get(name)?.as_bytes().to_vec();
                value[at] ^= mask;
                changed.headers.insert(name, HeaderValue::from_bytes(&value).ok()?);
            }
            Part::Query => {
                let mut query = sent.query.clone()?.into_bytes();
                query[at] ^= mask;
                let query = String::from_utf8(query).ok()?;
                // A fragment never arrives.
                changed.query =
                    Some(query).filter(|query| !query.contains(|c: char| !c.is_ascii_graphic() || c == '#'));
                changed.query.as_ref()?;
            }
        }
        Some(changed)
    }
}

fn item(sent: &Sent, list: Option<&str>, index: usize, pointer: &str) -> Option<Range<usize>> {
    in_json(&sent.body, &format!("{}/{index}{pointer}", list?))
}

/// The value of a form's field, as it is written.
fn field(form: &[u8], name: &str) -> Option<Range<usize>> {
    let mut start = 0;
    for pair in form.split(|byte| *byte == b'&') {
        let (key, value) = url::form_urlencoded::parse(pair).next().unwrap_or_default();
        if key == name && !value.is_empty() {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            return Some(start + equals + 1..start + pair.len());
        }
        start += pair.len() + 1;
    }
    None
}

/// The value at a pointer, as it is written.
fn in_json(json: &[u8], pointer: &str) -> Option<Range<usize>> {
    let mut value: &RawValue = serde_json::from_slice(json).ok()?;
    for step in pointer.split('/').skip(1) {
        value = match step.parse::<usize>() {
            Ok(index) => serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(index).copied()?,
            Err(_) => serde_json::from_str::<BTreeMap<String, &RawValue>>(value.get()).ok()?.get(step).copied()?,
        };
    }
    let start = value.get().as_ptr() as usize - json.as_ptr() as usize;
    Some(start..start + value.get().len())
}
