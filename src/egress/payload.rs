//! What of a message is sent: as it is, transformed, or wrapped.
//!
//! Pure, and the same on every attempt of a delivery: its times are those of the message, not of the attempt.
//! Whatever is wrapped keeps the bytes that it was written with, numbers of any length and precision included.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use bytesize::ByteSize;
use data_encoding::BASE64;
use http::HeaderValue;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::destination::Destination;
use super::intake::Message;
use super::reason::{Reason, Refusal};
use crate::clock::rfc3339;
use crate::config::{self, PayloadForm};
use crate::transform::{MAX_INPUT, Transform};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const CLOUD_EVENT: HeaderValue = HeaderValue::from_static("application/cloudevents+json");

/// The type of a message that says nothing of it.
const DEFAULT_TYPE: &str = "hookbridge.message";

/// Transformations made at once. Each takes one thread, up to a second, and memory in proportion to its budget.
const TRANSFORMING: usize = 2;

/// What an endpoint wants to have made of a body.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    transform: Option<Transform>,
    form: PayloadForm,
    max_body: Option<ByteSize>,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) body: Bytes,
    pub(super) content_type: HeaderValue,
}

/// Makes payloads, and not too many at once of those that take time.
#[derive(Clone)]
pub(super) struct Maker {
    transforming: Arc<Semaphore>,
}

impl Default for Maker {
    fn default() -> Self {
        Self { transforming: Arc::new(Semaphore::new(TRANSFORMING)) }
    }
}

impl Maker {
    /// What a message sends to a destination that was stored in OUTBOX at this time. A callback gets the body as it
    /// is.
    pub(super) async fn make(
        &self,
        destination: &Destination,
        message: &Message,
        stored: SystemTime,
    ) -> Result<Payload, Refusal> {
        let plain = Payload { body: message.body.clone(), content_type: message.content_type.clone() };
        let Some(shape) = destination.endpoint().map(|endpoint| &endpoint.shape) else { return Ok(plain) };
        let plain = match &shape.transform {
            Some(transform) => self.transformed(transform.clone(), plain, shape.largest_output()).await?,
            None => plain,
        };
        shape.wrap(message, plain, stored)
    }

    async fn transformed(&self, transform: Transform, plain: Payload, most: usize) -> Result<Payload, Refusal> {
        let refuse = |detail: String| Refusal::new(Reason::Transform, detail);
        // The semaphore is never closed.
        let _turn = self.transforming.acquire().await;
        let body = plain.body.clone();
        let body = off_the_workers(move || transform.apply(&body, most)).await.map_err(refuse)?;
        let body = body.map_err(|error| refuse(error.to_string()))?.into();
        let content_type = if is_json(&plain.content_type) { plain.content_type } else { JSON };
        Ok(Payload { body, content_type })
    }
}

/// Runs what may take a second where no other delivery waits for it.
#[expect(clippy::disallowed_methods, reason = "its work is bounded by a budget, and its number by a semaphore")]
async fn off_the_workers<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|_| "the transformation did not come to an end".to_owned())
}

impl Shape {
    pub(super) fn new(endpoint: &config::Endpoint) -> Self {
        Self { transform: endpoint.transform.clone(), form: endpoint.payload, max_body: endpoint.max_body }
    }

    /// The most bytes that a transformation may give.
    fn largest_output(&self) -> usize {
        let max_body = self.max_body.and_then(|max| usize::try_from(max.as_u64()).ok());
        max_body.unwrap_or(MAX_INPUT).min(MAX_INPUT)
    }

    /// Wraps a body as the endpoint wants it.
    fn wrap(&self, message: &Message, plain: Payload, stored: SystemTime) -> Result<Payload, Refusal> {
        let made = match self.form {
            PayloadForm::AsIs => plain,
            PayloadForm::CloudEvents => cloud_event(message, &plain, stored),
            PayloadForm::StandardWebhooks => standard_webhook(message, &plain, stored)?,
        };
        self.check_size(made)
    }

    fn check_size(&self, made: Payload) -> Result<Payload, Refusal> {
        let size = u64::try_from(made.body.len()).unwrap_or(u64::MAX);
        match self.max_body.map(|max| max.as_u64()) {
            Some(max) if size > max => {
                let detail = format!("the body would have {size} bytes, and the endpoint takes {max} (`max_body`)");
                Err(Refusal::new(Reason::TooLarge, detail))
            }
            _ => Ok(made),
        }
    }
}

/// A CloudEvent in the JSON format, structured mode (CloudEvents 1.0.2, JSON event format, section 3).
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

fn cloud_event(message: &Message, plain: &Payload, stored: SystemTime) -> Payload {
    let data = json(plain);
    let event = CloudEvent {
        specversion: "1.0",
        id: &message.id,
        source: format!("/agents/{}", message.agent),
        event_type: message.event_type.as_deref().unwrap_or(DEFAULT_TYPE),
        time: rfc3339(stored),
        datacontenttype: plain.content_type.to_str().ok(),
        data_base64: data.is_none().then(|| BASE64.encode(&plain.body)),
        data,
    };
    Payload { body: write(&event), content_type: CLOUD_EVENT }
}

/// The payload structure of Standard Webhooks 1.0.0.
#[derive(Serialize)]
struct StandardWebhook<'a, D> {
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: String,
    data: D,
}

fn standard_webhook(message: &Message, plain: &Payload, stored: SystemTime) -> Result<Payload, Refusal> {
    let event_type = message.event_type.as_deref().unwrap_or(DEFAULT_TYPE);
    let timestamp = rfc3339(stored);
    let body = match json(plain) {
        Some(data) => write(&StandardWebhook { event_type, timestamp, data }),
        None => {
            let data = std::str::from_utf8(&plain.body).map_err(|_| {
                let detail = "the body is neither JSON nor text, which payload `standard-webhooks` cannot carry";
                Refusal::new(Reason::Malformed, detail)
            })?;
            write(&StandardWebhook { event_type, timestamp, data })
        }
    };
    Ok(Payload { body, content_type: JSON })
}

/// Texts and JSON as it was written, and nothing else: this always serializes.
fn write(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// The body as JSON, where its content type says that it is and it is true.
fn json(plain: &Payload) -> Option<&RawValue> {
    is_json(&plain.content_type).then(|| serde_json::from_slice(&plain.body).ok()).flatten()
}

fn is_json(content_type: &HeaderValue) -> bool {
    content_type.to_str().is_ok_and(is_json_type)
}

/// Whether a content type declares JSON: `*/json` or `*/*+json`, whatever its parameters.
pub(super) fn is_json_type(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.split_once('/').map_or("", |(_, subtype)| subtype);
    subtype == "json" || subtype.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::egress::intake::Target;

    const STORED: SystemTime = SystemTime::UNIX_EPOCH;

    fn message(body: &[u8], content_type: &'static str) -> Message {
        Message {
            agent: "planner".to_owned(),
            id: "m-1".to_owned(),
            target: Target::FanOut,
            event_type: Some("ticket.new".to_owned()),
            only: None,
            body: Bytes::copy_from_slice(body),
            content_type: HeaderValue::from_static(content_type),
            trace: None,
            reply: None,
        }
    }

    fn wrapped(shape: &Shape, message: &Message) -> Result<Payload, Refusal> {
        let plain = Payload { body: message.body.clone(), content_type: message.content_type.clone() };
        shape.wrap(message, plain, STORED)
    }

    fn made(form: PayloadForm, body: &[u8], content_type: &'static str) -> Payload {
        wrapped(&Shape { form, ..Shape::default() }, &message(body, content_type)).unwrap()
    }

    fn text(payload: &Payload) -> &str {
        std::str::from_utf8(&payload.body).unwrap()
    }

    #[test]
    fn as_it_is_nothing_is_touched() {
        let payload = made(PayloadForm::AsIs, b" {\"a\":1 }\xff", "application/json");
        assert_eq!((&payload.body[..], &payload.content_type), (&b" {\"a\":1 }\xff"[..], &JSON));
    }

    #[test]
    fn json_is_the_data_of_a_cloud_event_as_it_was_written() {
        let body = br#" {"n": 1.50,"big":123456789012345678901234567890,"n":[ ]} "#;
        let payload = made(PayloadForm::CloudEvents, body, "application/vnd.x+json; charset=utf-8");
        assert_eq!(
            text(&payload),
            r#"{"specversion":"1.0","id":"m-1","source":"/agents/planner","type":"ticket.new","#.to_owned()
                + r#""time":"1970-01-01T00:00:00.000Z","datacontenttype":"application/vnd.x+json; charset=utf-8","#
                + r#""data":{"n": 1.50,"big":123456789012345678901234567890,"n":[ ]}}"#
        );
        assert_eq!(payload.content_type, "application/cloudevents+json");
    }

    #[test]
    fn what_is_not_json_or_does_not_say_so_is_base64_in_a_cloud_event() {
        for (body, content_type) in [
            (&b"\x00\xff"[..], "application/octet-stream"),
            (b"{\"a\":1}", "text/plain"),
            (b"{\"a\":", "application/json"),
            (b"\"\xff\"", "application/json"),
            (b"", "application/json"),
        ] {
            let event: Value =
                serde_json::from_slice(&made(PayloadForm::CloudEvents, body, content_type).body).unwrap();
            assert_eq!(event["data_base64"], BASE64.encode(body), "{body:?}");
            assert_eq!((event.get("data"), &event["datacontenttype"]), (None, &Value::from(content_type)));
        }
    }

    #[test]
    fn a_standard_webhook_has_type_timestamp_and_data() {
        let payload = made(PayloadForm::StandardWebhooks, b"{\"a\": 1.0}", "application/json");
        assert_eq!(text(&payload), r#"{"type":"ticket.new","timestamp":"1970-01-01T00:00:00.000Z","data":{"a": 1.0}}"#);
        assert_eq!(payload.content_type, "application/json");
        let payload = made(PayloadForm::StandardWebhooks, b"say \"hi\"", "text/plain");
        assert!(text(&payload).ends_with(r#""data":"say \"hi\""}"#), "{payload:?}");
    }

    #[test]
    fn a_standard_webhook_of_neither_json_nor_text_is_refused() {
        let shape = Shape { form: PayloadForm::StandardWebhooks, ..Shape::default() };
        let refusal = wrapped(&shape, &message(b"\xff", "image/png")).unwrap_err();
        assert_eq!(refusal.reason, Reason::Malformed);
    }

    #[test]
    fn a_message_without_a_type_is_a_message() {
        let untyped = Message { event_type: None, ..message(b"1", "application/json") };
        let shape = Shape { form: PayloadForm::CloudEvents, ..Shape::default() };
        let event: Value = serde_json::from_slice(&wrapped(&shape, &untyped).unwrap().body).unwrap();
        assert_eq!(event["type"], DEFAULT_TYPE);
    }

    #[test]
    fn the_size_of_what_is_sent_counts_and_both_sizes_are_said() {
        let shape = |form| Shape { form, max_body: Some(ByteSize::b(10)), ..Shape::default() };
        let message = message(b"\"12345678\"", "application/json");
        assert!(wrapped(&shape(PayloadForm::AsIs), &message).is_ok());
        let refusal = wrapped(&shape(PayloadForm::StandardWebhooks), &message).unwrap_err();
        assert_eq!(refusal.reason, Reason::TooLarge);
        assert!(refusal.detail.contains("have 78 bytes") && refusal.detail.contains("takes 10"), "{refusal:?}");
    }

    #[test]
    fn json_is_what_says_that_it_is() {
        for yes in ["application/json", "Application/JSON;charset=utf-8", "text/json", "a/b.c+json ; x=1"] {
            assert!(is_json_type(yes), "{yes}");
        }
        for no in ["", "json", "+json", "text/plain", "application/jsonl", "application/x;json", "text/plain;a/json"] {
            assert!(!is_json_type(no), "{no}");
        }
    }

    /// Any JSON value, as text, with numbers as people and machines write them.
    fn any_json() -> impl Strategy<Value = String> {
        let number = prop_oneof![Just("0".to_owned()), "-?[1-9][0-9]{0,40}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?"];
        let text = any::<String>().prop_map(|text| Value::from(text).to_string());
        let word = prop_oneof![Just("null"), Just("true"), Just("false")].prop_map(str::to_owned);
        let leaf = prop_oneof![number, text.clone(), word];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            let list = prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" ,")));
            let member = (text.clone(), inner).prop_map(|(name, value)| format!("{name}: {value}"));
            let object = prop::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(",")));
            prop_oneof![list, object]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_wrapped_reads_back_as_it_was_written(json in any_json(), agent_type in any::<String>()) {
            #[derive(serde::Deserialize)]
            struct Wrapped<'a> {
                #[serde(rename = "type")]
                event_type: String,
                #[serde(borrow)]
                data: &'a RawValue,
            }
            let message = Message { event_type: Some(agent_type.clone()), ..message(json.as_bytes(), "application/json") };
            for form in [PayloadForm::CloudEvents, PayloadForm::StandardWebhooks] {
                let shape = Shape { form, ..Shape::default() };
                let payload = wrapped(&shape, &message).unwrap();
                let read: Wrapped = serde_json::from_slice(&payload.body).unwrap();
                prop_assert_eq!(read.data.get(), json.as_str());
                prop_assert_eq!(&read.event_type, &agent_type);
                prop_assert_eq!(wrapped(&shape, &message).unwrap(), payload);
            }
        }

        #[test]
        fn whatever_is_no_json_comes_back_from_base64(body in any::<Vec<u8>>()) {
            let event: Value =
                serde_json::from_slice(&made(PayloadForm::CloudEvents, &body, "application/octet-stream").body).unwrap();
            let data = BASE64.decode(event["data_base64"].as_str().unwrap().as_bytes()).unwrap();
            prop_assert_eq!(data, body);
        }
    }
}
