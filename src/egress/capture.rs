//! What of an endpoint's answer goes into the receipts, for agents that called an API rather than sent a notice.
//!
//! The answer comes from outside, so all of it is bounded, and headers are taken by name only. It never decides
//! anything: the status alone does (docs/adr/0002).

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::Serialize;
use tokio::time::Instant;

use super::payload::is_json_type;
use crate::config;

/// The most bytes of an answer's body that are kept, and read.
pub(super) const MAX_ANSWER: usize = 64 * 1024;
/// The most characters of a header's value that are kept.
const MAX_VALUE: usize = 1024;

/// What is kept of an endpoint's answers.
#[derive(Clone, Debug)]
pub(super) struct Capture(Vec<HeaderName>);

/// What is kept of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Captured {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Bytes,
    /// Whether the body may be told as text.
    is_text: bool,
    /// There was more of the body than is kept.
    truncated: bool,
    /// The body broke off, or did not end in time.
    incomplete: bool,
}

/// The answer as a receipt tells it.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    status: u16,
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    truncated: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    incomplete: bool,
}

/// A body, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    bytes: BytesMut,
    /// There may be more than the bound.
    more: bool,
    broken: bool,
}

impl Read {
    /// A body of which nothing could be read.
    pub(super) fn broken() -> Self {
        Self { broken: true, ..Self::default() }
    }
}

impl Capture {
    /// What an endpoint wants; none unless it asks for it.
    pub(super) fn new(endpoint: &config::Endpoint) -> Option<Self> {
        // They parse: the configuration was checked when it was loaded.
        let names = endpoint.capture_headers.iter().filter_map(|name| name.parse().ok()).collect();
        endpoint.capture_response.then_some(Self(names))
    }

    /// Puts together what is kept.
    pub(super) fn keep(&self, status: StatusCode, headers: &HeaderMap, read: Read) -> Captured {
        Captured {
            status: status.as_u16(),
            headers: self.headers(headers),
            is_text: is_text(headers),
            body: read.bytes.freeze(),
            truncated: read.more,
            incomplete: read.broken,
        }
    }

    fn headers(&self, headers: &HeaderMap) -> BTreeMap<String, String> {
        let value = |name: &HeaderName| {
            let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            let text: String = values.join(", ").chars().take(MAX_VALUE).collect();
            (!values.is_empty()).then(|| (name.as_str().to_owned(), text))
        };
        self.0.iter().filter_map(value).collect()
    }
}

impl Captured {
    /// The answer with no more than `room` bytes of its body.
    pub(super) fn told(&self, room: usize) -> Told {
        let cut = room < self.body.len();
        let bytes = &self.body[..room.min(self.body.len())];
        let text = self.is_text.then(|| text(bytes, cut || self.truncated || self.incomplete)).flatten();
        Told {
            status: self.status,
            headers: self.headers.clone(),
            body_base64: text.is_none().then(|| BASE64.encode(bytes)),
            body: text.map(str::to_owned),
            truncated: cut || self.truncated,
            incomplete: self.incomplete,
        }
    }

    /// How many bytes of the body there are to tell.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }
}

/// The bytes as text. Of a body that goes on, the last character may be cut in the middle, and is left out then.
fn text(bytes: &[u8], goes_on: bool) -> Option<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if goes_on && error.error_len().is_none() => std::str::from_utf8(&bytes[..error.valid_up_to()]).ok(),
        Err(_) => None,
    }
}

/// Whether the headers declare a body that people read: text, JSON, XML or a form, and not compressed.
fn is_text(headers: &HeaderMap) -> bool {
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if header(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return false;
    }
    let Some(content_type) = header(CONTENT_TYPE) else { return false };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    is_json_type(&essence)
        || essence.starts_with("text/")
        || essence.ends_with("+xml")
        || ["application/xml", "application/x-www-form-urlencoded"].contains(&essence.as_str())
}

/// Reads a body to its end, its bound or the deadline. What is longer is left, and its connection with it.
pub(super) async fn read<B>(mut body: B, deadline: Instant) -> Read
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let mut read = Read::default();
    loop {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(None) => return read,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                tracing::debug!("An answer broke off after its status: {error}");
                return Read { broken: true, ..read };
            }
            Err(_) => return Read { broken: true, ..read },
        };
        let Ok(data) = frame.into_data() else { continue };
        let room = MAX_ANSWER - read.bytes.len();
        read.bytes.extend_from_slice(&data[..room.min(data.len())]);
        if data.len() > room {
            return Read { more: true, ..read };
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::Full;
    use serde_json::{Value, json};

    use super::*;

    fn captured(content_type: &'static str, body: &[u8]) -> Captured {
        let headers = [(CONTENT_TYPE, HeaderValue::from_static(content_type))].into_iter().collect();
        let read = Read { bytes: BytesMut::from(body), ..Read::default() };
        Capture(vec![CONTENT_TYPE]).keep(StatusCode::OK, &headers, read)
    }

    fn told(captured: &Captured, room: usize) -> Value {
        serde_json::to_value(captured.told(room)).unwrap()
    }

    #[test]
    fn text_is_told_as_text_and_everything_else_as_base64() {
        for content_type in ["application/json", "text/plain; charset=utf-8", "application/problem+json", "a/b+xml"] {
            let expected = json!({
                "status": 200, "headers": {"content-type": content_type}, "body": "{é}", "truncated": false
            });
            assert_eq!(told(&captured(content_type, "{é}".as_bytes()), 100), expected);
        }
        for (content_type, body) in [("image/png", &b"abc"[..]), ("text/plain", b"\xffbc"), ("text/plain", b"ab\xc3")] {
            let told = told(&captured(content_type, body), 100);
            assert_eq!((&told["body_base64"], told.get("body")), (&json!(BASE64.encode(body)), None), "{content_type}");
        }
    }

    #[test]
    fn a_compressed_body_is_no_text() {
        let headers: HeaderMap = [
            (CONTENT_TYPE, HeaderValue::from_static("text/plain")),
            (CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        ]
        .into_iter()
        .collect();
        let read = Read { bytes: BytesMut::from(&b"abc"[..]), ..Read::default() };
        let captured = Capture(Vec::new()).keep(StatusCode::OK, &headers, read);
        assert_eq!(told(&captured, 100)["body_base64"], BASE64.encode(b"abc"));
    }

    #[test]
    fn a_cut_takes_no_half_characters_along() {
        let captured = captured("text/plain", "aé".as_bytes());
        let cut = told(&captured, 2);
        assert_eq!((&cut["body"], &cut["truncated"]), (&json!("a"), &json!(true)));
        assert_eq!(told(&captured, 3)["body"], "aé");
    }

    #[test]
    fn only_the_named_headers_are_kept_bounded_and_readable() {
        let mut headers = HeaderMap::new();
        headers.append("x-many", HeaderValue::from_static("1"));
        headers.append("x-many", HeaderValue::from_static("2"));
        headers.insert("x-long", HeaderValue::from_str(&"l".repeat(5000)).unwrap());
        headers.insert("x-bytes", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.insert("x-other", HeaderValue::from_static("no"));
        let names = ["x-many", "x-long", "x-bytes", "x-absent"].map(HeaderName::from_static).to_vec();
        let kept = Capture(names).headers(&headers);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["x-long", "x-many"]);
        assert_eq!((kept["x-many"].as_str(), kept["x-long"].len()), ("1, 2", MAX_VALUE));
    }

    #[tokio::test]
    async fn no_more_than_the_bound_is_read_and_more_is_told() {
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        for (length, more) in [(0, false), (MAX_ANSWER, false), (MAX_ANSWER + 1, true)] {
            let read = read(Full::new(Bytes::from(vec![b'x'; length])), deadline).await;
            assert_eq!((read.bytes.len(), read.more, read.broken), (length.min(MAX_ANSWER), more, false));
        }
    }
}
