//! Understanding an outbox message: who sends what, and where to.
//!
//! Pure. Whatever cannot be understood becomes a [`Malformed`] with its own id, so that it gets a dead letter
//! and a receipt like everything else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderValue;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use url::Url;

use super::outbox_message::OutboxMessage;
use super::reason::{Reason, Refusal};
use super::replay::Replayed;
use crate::event::headers::Headers;
use crate::event::{cloud_event, id, name, subject, trace};
use crate::task::TASK_ID;

const ENDPOINT: &str = "Hookbridge-Endpoint";
const CALLBACK_URL: &str = "Hookbridge-Callback-Url";
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The header of a message that wants a reply: the agent's own id for what it asks for.
const REPLY: &str = "Hookbridge-Reply";

/// The content type of a body whose sender does not say: agents mostly speak JSON.
const DEFAULT_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// The longest callback URL; servers rarely take more.
const MAX_URL: usize = 8192;

/// A message as it stands in OUTBOX.
#[derive(Clone, Debug)]
pub(super) struct Original {
    pub(super) subject: String,
    pub(super) headers: Headers,
    pub(super) payload: Bytes,
    pub(super) sequence: u64,
    /// When the server stored it.
    pub(super) stored: SystemTime,
    /// The name of OUTBOX there.
    pub(super) stream: Arc<str>,
}

impl Original {
    /// Which message it is.
    pub(super) fn about(&self) -> OutboxMessage {
        OutboxMessage::new(self.sequence, self.stored)
    }

    /// The id that the message has if it brings none.
    fn made_id(&self) -> String {
        id::stored_message(&self.stream, self.sequence, self.stored)
    }
}

/// A message that was understood.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) agent: String,
    /// Safe as a subject token; also the `webhook-id`.
    pub(super) id: String,
    pub(super) target: Target,
    /// Of all deliveries only this one: the message is a replay of it.
    pub(super) only: Option<String>,
    /// What kind of thing it is about: the envelope's `type`, a header `ce-type`, or the topic.
    pub(super) event_type: Option<String>,
    pub(super) body: Bytes,
    pub(super) content_type: HeaderValue,
    pub(super) trace: Option<trace::Context>,
    /// The task, in the agent's own words, that the receiver is to call back for.
    pub(super) reply: Option<String>,
}

/// Where a message says that it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To the endpoint of this name.
    Endpoint(String),
    /// To this URL.
    Callback(Box<Url>),
    /// An update of this task.
    Task(String),
    /// To every endpoint that wants the subject.
    FanOut,
}

/// A message that was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) agent: String,
    pub(super) id: String,
    pub(super) refusal: Refusal,
}

/// Understands a message by the rules that README.md gives to agents.
pub(super) fn understand(original: &Original) -> Result<Message, Malformed> {
    let (agent, topic) = subject::outbox(&original.subject).unwrap_or_default();
    let valid_agent = name::is_token(agent);
    // To NATS an empty id is none.
    let header_id = original.headers.iter().find(|(name, _)| *name == MESSAGE_ID).map(|(_, value)| value);
    let header_id = header_id.filter(|id| !id.is_empty());
    // A replay has an id of its own for NATS, and the one of its original for everybody else.
    let replayed = Replayed::read(&original.headers);
    let header_id = replayed.as_ref().map(|replayed| replayed.message_id.clone()).or(header_id.map(id::message));
    let malformed = |detail: String| Malformed {
        agent: if valid_agent { agent.to_owned() } else { "_".to_owned() },
        id: header_id.clone().unwrap_or_else(|| original.made_id()),
        refusal: Refusal::new(Reason::Malformed, detail),
    };
    if !valid_agent {
        return Err(malformed(format!("`{agent}` is not an agent's name: use 1 to 64 of A-Z a-z 0-9 _ -")));
    }
    refuse_misspelt_id(&original.headers).map_err(malformed)?;
    let only = replayed.map_or(Ok(None), Replayed::only).map_err(malformed)?;
    let envelope = match routing_header(&original.headers).map_err(malformed)? {
        Some(target) => Envelope { target: Some(target), ..Envelope::default() },
        // On a topic the body is never looked into.
        None if topic.is_some() => Envelope::default(),
        None => envelope(&original.payload).map_err(malformed)?,
    };
    let content_type = match envelope.content_type.as_deref().or_else(|| original.headers.get("content-type")) {
        Some(text) => HeaderValue::from_str(text)
            .ok()
            .filter(|value| value.to_str().is_ok())
            .ok_or_else(|| malformed(format!("content type {text:?} is not what an HTTP header can carry")))?,
        None => DEFAULT_CONTENT_TYPE,
    };
    let reply = original.headers.get(REPLY).map(str::to_owned);
    if reply.as_deref().is_some_and(|task_id| !name::is_token(task_id)) {
        return Err(malformed(format!("header `{REPLY}` must have 1 to 64 of A-Z a-z 0-9 _ -")));
    }
    if reply.is_some() && !matches!(envelope.target, Some(Target::Endpoint(_) | Target::Callback(_))) {
        return Err(malformed(format!("header `{REPLY}` needs one endpoint, or one callback URL, to go to")));
    }
    let envelope_id = envelope.id.as_deref().filter(|id| !id.is_empty());
    let id = header_id.clone().or_else(|| envelope_id.map(id::message));
    let body = match envelope.payload {
        Some(payload) => payload,
        None => original.payload.clone(),
    };
    let header_type = original.headers.get("ce-type").map(cloud_event::decode);
    let types = [envelope.event_type, header_type, topic.map(str::to_owned)];
    let event_type = types.into_iter().flatten().find(|event_type| !event_type.is_empty());
    Ok(Message {
        agent: agent.to_owned(),
        id: id.unwrap_or_else(|| original.made_id()),
        target: envelope.target.unwrap_or(Target::FanOut),
        only,
        event_type,
        body,
        content_type,
        trace: trace::Context::read(&original.headers),
        reply,
    })
}

/// NATS knows the id only in its own spelling; in any other the message looks idempotent and is not.
fn refuse_misspelt_id(headers: &Headers) -> Result<(), String> {
    match headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(MESSAGE_ID) && *name != MESSAGE_ID) {
        Some((name, _)) => {
            Err(format!("header `{name}` must be written `{MESSAGE_ID}`: NATS ignores any other spelling"))
        }
        None => Ok(()),
    }
}

/// The target that a routing header names, if there is one. Two are one too many.
fn routing_header(headers: &Headers) -> Result<Option<Target>, String> {
    let named = |header: &'static str| headers.all(header).map(move |value| (header, value));
    let mut all = [ENDPOINT, CALLBACK_URL, TASK_ID].into_iter().flat_map(named);
    let Some((header, value)) = all.next() else { return Ok(None) };
    if let Some((second, _)) = all.next() {
        return Err(format!("has two routing headers, `{header}` and `{second}`: use one"));
    }
    match header {
        ENDPOINT => Ok(Some(Target::Endpoint(value.to_owned()))),
        CALLBACK_URL => callback(value).map(Some),
        _ => Ok(Some(Target::Task(value.to_owned()))),
    }
}

fn callback(url: &str) -> Result<Target, String> {
    if url.len() > MAX_URL {
        return Err(format!("the callback URL is longer than {MAX_URL} bytes"));
    }
    url.parse()
        .map(|url| Target::Callback(Box::new(url)))
        .map_err(|error| format!("the callback URL is not a URL: {error}"))
}

/// What an envelope says.
#[derive(Default)]
struct Envelope {
    target: Option<Target>,
    id: Option<String>,
    event_type: Option<String>,
    content_type: Option<String>,
    /// The body, where it is not the whole message.
    payload: Option<Bytes>,
}

/// The keys that make an object an envelope.
const ROUTING_KEYS: [&str; 3] = ["endpoint", "callback_url", "task_id"];
/// The keys that an envelope can have beside its routing key.
const OTHER_KEYS: [&str; 4] = ["payload", "id", "type", "content_type"];

/// Reads the body of a message on the bare subject. Whatever is not a JSON object with a routing key is data.
fn envelope(body: &Bytes) -> Result<Envelope, String> {
    let Some(members) = members(body) else { return Ok(Envelope::default()) };
    let routing: Vec<&str> = ROUTING_KEYS.into_iter().filter(|key| members.known.contains_key(key)).collect();
    let [key] = routing[..] else {
        return match routing[..] {
            [] => Ok(Envelope::default()),
            _ => Err(format!("has the routing keys {}: use one", routing.join(" and "))),
        };
    };
    if let Some(twice) = members.twice {
        return Err(format!("key `{twice}` occurs twice"));
    }
    let target = text(&members, key)?.unwrap_or_default();
    if key == "task_id" {
        // The whole object is what the callback receives.
        return Ok(Envelope { target: Some(Target::Task(target)), ..Envelope::default() });
    }
    if let Some(other) = &members.unknown {
        return Err(format!("unknown key `{other}`; an envelope has {key}, {}", OTHER_KEYS.join(", ")));
    }
    let event_type = text(&members, "type")?;
    let (id, content_type) = (text(&members, "id")?, text(&members, "content_type")?);
    let payload = members.known.get("payload").ok_or("an envelope needs `payload`, which is what is sent")?;
    let payload = Some(payload_bytes(body, payload, content_type.as_deref()));
    let target = if key == "endpoint" { Target::Endpoint(target) } else { callback(&target)? };
    Ok(Envelope { target: Some(target), id, content_type, event_type, payload })
}

/// The payload as the agent wrote it. A string under a content type that is not JSON is its text.
fn payload_bytes(body: &Bytes, payload: &RawValue, content_type: Option<&str>) -> Bytes {
    let is_json = content_type.is_none_or(|content_type| content_type.to_ascii_lowercase().contains("json"));
    match serde_json::from_str::<String>(payload.get()) {
        Ok(text) if !is_json => text.into(),
        _ => body.slice_ref(payload.get().as_bytes()),
    }
}

fn text(members: &Members<'_>, key: &str) -> Result<Option<String>, String> {
    let Some(value) = members.known.get(key) else { return Ok(None) };
    serde_json::from_str(value.get()).map(Some).map_err(|_| format!("`{key}` must be a text"))
}

/// What is of interest in a JSON object; the rest is skipped, so a large one costs no memory.
#[derive(Default)]
struct Members<'a> {
    known: BTreeMap<&'static str, &'a RawValue>,
    /// The first key that no envelope has.
    unknown: Option<String>,
    /// The first known key that occurs again.
    twice: Option<&'static str>,
}

/// Reads a JSON object; `None` when the body is anything else.
fn members(body: &[u8]) -> Option<Members<'_>> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Members<'de>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut members = Members::default();
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                let known = ROUTING_KEYS.into_iter().chain(OTHER_KEYS).find(|known| *known == key);
                let Some(known) = known else {
                    map.next_value::<IgnoredAny>()?;
                    members.unknown.get_or_insert_with(|| key.into_owned());
                    continue;
                };
                if members.known.insert(known, map.next_value()?).is_some() {
                    members.twice.get_or_insert(known);
                }
            }
            Ok(members)
        }
    }
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return None;
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    json.deserialize_map(Object).and_then(|members| json.end().map(|()| members)).ok()
}

/// The id that a message gets, understood or not: always safe as a subject token.
#[cfg(any(fuzzing, test))]
pub(crate) fn understood_id(subject: &str, headers: Headers, payload: &[u8]) -> String {
    let original = Original {
        subject: subject.to_owned(),
        headers,
        payload: Bytes::copy_from_slice(payload),
        sequence: 1,
        stored: SystemTime::UNIX_EPOCH,
        stream: "OUTBOX".into(),
    };
    let (agent, id) = match understand(&original) {
        Ok(message) => (message.agent, message.id),
        Err(malformed) => (malformed.agent, malformed.id),
    };
    assert!(name::is_token(&agent) && name::is_token(&id), "{agent} {id}");
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original(subject: &str, headers: &[(&'static str, &str)], body: &str) -> Original {
        Original {
            subject: subject.to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).to_owned())).collect(),
            payload: Bytes::copy_from_slice(body.as_bytes()),
            sequence: 1,
            stored: SystemTime::UNIX_EPOCH,
            stream: "OUTBOX".into(),
        }
    }

    fn understood(subject: &str, headers: &[(&'static str, &str)], body: &str) -> Message {
        understand(&original(subject, headers, body)).unwrap()
    }

    fn malformed(subject: &str, headers: &[(&'static str, &str)], body: &str) -> String {
        let malformed = understand(&original(subject, headers, body)).unwrap_err();
        assert_eq!(malformed.refusal.reason, Reason::Malformed);
        malformed.refusal.detail
    }

    const BARE: &str = "outbox.planner";

    #[test]
    fn a_routing_header_in_any_case_makes_the_body_data() {
        let message = understood(BARE, &[("hookbridge-ENDPOINT", "crm")], r#"{"callback_url":"https://x"}"#);
        assert_eq!(message.target, Target::Endpoint("crm".to_owned()));
        assert_eq!(message.body, r#"{"callback_url":"https://x"}"#);
    }

    #[test]
    fn an_envelope_gives_target_id_and_the_payload_as_written() {
        let body = r#" {"endpoint":"crm","id":"p-1","type":"t","payload":{"b": 1.50,"a":[ ]}} "#;
        let message = understood(BARE, &[], body);
        assert_eq!((message.target, message.id.as_str()), (Target::Endpoint("crm".to_owned()), "p-1"));
        assert_eq!(message.body, r#"{"b": 1.50,"a":[ ]}"#);
        assert_eq!(message.content_type, "application/json");
    }

    #[test]
    fn a_text_payload_under_a_text_content_type_is_its_text() {
        let message = understood(BARE, &[], r#"{"endpoint":"crm","content_type":"text/plain","payload":"h\u0069"}"#);
        assert_eq!((&message.body[..], message.content_type.to_str().unwrap()), (&b"hi"[..], "text/plain"));
    }

    #[test]
    fn on_a_topic_the_body_is_never_looked_into() {
        let body = r#"{"callback_url":"https://x","endpoint":"crm","task_id":"t"}"#;
        let message = understood("outbox.planner.ticket.new", &[], body);
        assert_eq!((message.target, &message.body[..]), (Target::FanOut, body.as_bytes()));
    }

    #[test]
    fn what_is_no_envelope_on_the_bare_subject_is_data() {
        for body in ["", "hello", "[1]", r#"{"text":"hello"}"#, r#"{"a":1,"a":2}"#, r#"{"endpoint":"#, "\u{0}"] {
            let message = understood(BARE, &[], body);
            assert_eq!((message.target, &message.body[..]), (Target::FanOut, body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn a_task_update_is_sent_whole() {
        let body = r#"{"task_id":"t1","status":"working","anything":1}"#;
        let message = understood(BARE, &[], body);
        assert_eq!((message.target, &message.body[..]), (Target::Task("t1".to_owned()), body.as_bytes()));
    }

    #[test]
    fn two_places_to_go_are_malformed() {
        let both = [("Hookbridge-Endpoint", "a"), ("Hookbridge-Task-Id", "b")];
        assert!(malformed(BARE, &both, "").contains("two routing headers"));
        let twice = [("Hookbridge-Endpoint", "a"), ("hookbridge-endpoint", "a")];
        assert!(malformed(BARE, &twice, "").contains("two routing headers"));
        assert!(malformed(BARE, &[], r#"{"endpoint":"a","task_id":"b"}"#).contains("endpoint and task_id"));
    }

    #[test]
    fn an_envelope_with_anything_else_in_it_is_malformed() {
        for (body, expected) in [
            (r#"{"endpoint":"a"}"#, "needs `payload`"),
            (r#"{"endpoint":"a","payload":1,"pay_load":2}"#, "unknown key `pay_load`"),
            (r#"{"endpoint":5,"payload":1}"#, "`endpoint` must be a text"),
            (r#"{"endpoint":"a","payload":1,"id":7}"#, "`id` must be a text"),
            (r#"{"endpoint":"a","payload":1,"payload":2}"#, "occurs twice"),
            (r#"{"callback_url":"not a url","payload":1}"#, "is not a URL"),
            (r#"{"endpoint":"a","payload":1,"content_type":"a\nb"}"#, "content type"),
        ] {
            let detail = malformed(BARE, &[], body);
            assert!(detail.contains(expected), "{body}: {detail}");
        }
    }

    #[test]
    fn an_id_header_in_another_spelling_is_malformed() {
        assert!(malformed(BARE, &[("nats-msg-id", "x")], "").contains("Nats-Msg-Id"));
    }

    #[test]
    fn the_id_header_wins_over_the_envelopes_and_the_fallback_comes_last() {
        let body = r#"{"endpoint":"a","payload":1,"id":"inner"}"#;
        assert_eq!(understood(BARE, &[("Nats-Msg-Id", "outer")], body).id, "outer");
        assert_eq!(understood(BARE, &[], body).id, "inner");
        assert_eq!(understood(BARE, &[], "x").id, original(BARE, &[], "x").made_id());
        assert!(understood(BARE, &[("Nats-Msg-Id", "a.b *")], "x").id.starts_with("h_"));
    }

    const REPLAY: [(&str, &str); 3] =
        [("Hookbridge-Replay-Of", "DEAD:17"), ("Hookbridge-Message-Id", "m"), ("Nats-Msg-Id", "replay:DEAD:17:x")];

    #[test]
    fn a_replay_keeps_the_id_of_its_original_and_means_its_delivery_alone() {
        let one = [&REPLAY[..], &[("Hookbridge-Delivery-Id", "m-ABCDEFGH")]].concat();
        let message = understood(BARE, &one, r#"{"endpoint":"a","payload":1,"id":"inner"}"#);
        assert_eq!((message.id.as_str(), message.only.as_deref()), ("m", Some("m-ABCDEFGH")));
        assert_eq!((message.target, &message.body[..]), (Target::Endpoint("a".to_owned()), &b"1"[..]));
        let whole = [&REPLAY[..], &[("Hookbridge-Delivery-Id", "m")]].concat();
        assert_eq!(understood(BARE, &whole, "x").only, None);
        let foreign = [&REPLAY[..], &[("Hookbridge-Delivery-Id", "n-ABCDEFGH")]].concat();
        assert!(malformed(BARE, &foreign, "x").contains("Hookbridge-Delivery-Id"));
    }

    #[test]
    fn the_headers_of_a_replay_change_nothing_in_a_message_that_is_none() {
        let passed_on = [("Hookbridge-Message-Id", "other"), ("Hookbridge-Delivery-Id", "other-ABCDEFGH")];
        let of_an_event = [passed_on[0], passed_on[1], ("Hookbridge-Replay-Of", "17")];
        for headers in [&passed_on[..], &of_an_event] {
            let message = understood(BARE, &[headers, &[("Nats-Msg-Id", "own")]].concat(), "x");
            assert_eq!((message.id.as_str(), message.only), ("own", None));
            assert_eq!(understood(BARE, headers, "x").id, original(BARE, &[], "x").made_id());
        }
    }

    #[test]
    fn the_type_is_the_envelopes_or_the_headers_or_the_topic() {
        let event_type = |subject, headers, body| understood(subject, headers, body).event_type;
        let header: &[(&str, &str)] = &[("CE-Type", "order%20paid")];
        let body = r#"{"endpoint":"a","payload":1,"type":"order.created"}"#;
        assert_eq!(event_type(BARE, header, body).as_deref(), Some("order.created"));
        assert_eq!(event_type("outbox.planner.ticket.new", header, "x").as_deref(), Some("order paid"));
        assert_eq!(event_type("outbox.planner.ticket.new", &[("ce-type", "")], "x").as_deref(), Some("ticket.new"));
        assert_eq!(event_type(BARE, &[], "x"), None);
    }

    #[test]
    fn an_agent_name_that_is_no_token_is_malformed_under_an_underscore() {
        let original = original("outbox.pl$nner.x", &[], "");
        assert_eq!(understand(&original).unwrap_err().agent, "_");
    }

    #[test]
    fn a_content_type_that_http_cannot_carry_is_malformed() {
        assert!(malformed(BARE, &[("content-type", "text/plain\u{1}")], "").contains("content type"));
        assert!(malformed(BARE, &[("content-type", "é")], "").contains("content type"));
    }
}
