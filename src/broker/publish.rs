//! Publishing, with the stream's confirmation as the return value.

use std::time::{Duration, SystemTime};

use async_nats::header::{
    NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID, NATS_SCHEDULE, NATS_SCHEDULE_TARGET,
};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderValue, Request, RequestError, RequestErrorKind, Subject};
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use super::health::Cause;
use super::{Broker, Link, Names, Visitor, to_nats};
use crate::clock::rfc3339;
use crate::config::StreamKind;
use crate::event::Headers;

/// How long to wait before publishing again what nobody took.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A message on its way to a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    /// By this id the stream recognises a repeat.
    pub(crate) message_id: Option<String>,
}

impl Outgoing {
    /// The bytes of the message, headers and id included.
    pub(crate) fn wire_bytes(&self) -> usize {
        let id = self.message_id.as_ref().map_or(0, |id| id.len() + "Nats-Msg-Id: \r\n".len());
        self.payload.len() + self.headers.wire_bytes() + id
    }

    /// The headers as the library has them, the id among them.
    pub(super) fn nats_headers(&self) -> HeaderMap {
        let mut headers = to_nats(&self.headers);
        if let Some(id) = &self.message_id {
            headers.insert(NATS_MESSAGE_ID, id.as_str());
        }
        headers
    }
}

/// A message that the server keeps until its time, and then publishes elsewhere in the same stream.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// Where it waits. One schedule a subject.
    pub(crate) waits_on: String,
    /// Where it appears when it is due.
    pub(crate) target: String,
    pub(crate) due: SystemTime,
    pub(crate) headers: Headers,
    /// The sequence of the schedule that stands there now and that this one takes the place of; 0 where none may.
    pub(crate) replaces: u64,
}

impl Schedule {
    /// The subject and headers by which the server takes it for a schedule. An id is only for what several may publish
    /// at the same time: a repeated one is answered as a duplicate and stores nothing.
    pub(super) fn message(&self, names: &Names, message_id: Option<&str>) -> (String, HeaderMap) {
        let mut headers = to_nats(&self.headers);
        headers.insert(NATS_SCHEDULE, format!("@at {}", rfc3339(self.due)).as_str());
        headers.insert(NATS_SCHEDULE_TARGET, names.subject(&self.target).as_str());
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.replaces.to_string().as_str());
        if let Some(id) = message_id {
            headers.insert(NATS_MESSAGE_ID, id);
        }
        (names.subject(&self.waits_on), headers)
    }
}

/// The stream has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) duplicate: bool,
}

/// The stream did not say that it has it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("{0}")]
    NotReady(Link),
    /// Ambiguous: it may be stored. Publish again with the same id.
    #[error("the stream did not confirm in time")]
    Unconfirmed,
    #[error("no stream takes subject `{0}`")]
    NoStream(String),
    #[error("the message is larger than the server's max_payload")]
    TooLarge,
    /// Another message waits on the subject, or the one to be replaced no longer does.
    #[error("another message waits on the same subject")]
    Occupied,
    #[error("the stream is full")]
    Full,
    #[error("the server cannot store it: {0}")]
    StoreFailed(String),
    #[error("the server refused the message: {0}")]
    Refused(String),
}

impl PublishError {
    /// The word for metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "not-ready",
            Self::Unconfirmed => "unconfirmed",
            Self::NoStream(_) => "no-stream",
            Self::TooLarge => "too-large",
            Self::Occupied => "occupied",
            Self::Full => "full",
            Self::StoreFailed(_) => "store-failed",
            Self::Refused(_) => "refused",
        }
    }
}

impl Broker {
    /// Publishes and waits for the stream's confirmation, for at most `wait`. A connection that is down and a stream
    /// without a leader are waited for meanwhile.
    pub(crate) async fn publish(&self, outgoing: &Outgoing, wait: Duration) -> Result<Stored, PublishError> {
        let subject = self.names.subject(&outgoing.subject);
        let stream = stream_of(&outgoing.subject);
        // Nobody takes messages from RECEIPTS: how far it has come is known from what is written to it.
        let generation = stream.filter(|kind| *kind == StreamKind::Receipts).map(|kind| self.identities.current(kind));
        let stored = self.send(subject, stream, || outgoing.nats_headers(), &outgoing.payload, wait).await?;
        if let (Some(kind), Some(Some(generation)), false) = (stream, generation, stored.duplicate) {
            self.identities.wrote(kind, generation, stored.sequence);
        }
        Ok(stored)
    }

    /// Publishes a schedule, unless another one than it is to replace waits on its subject. Replacing is one step: at
    /// no moment does neither wait, or both.
    ///
    /// Never carries a message id: a repeated one would be answered as a duplicate and store nothing.
    pub(crate) async fn schedule(&self, schedule: &Schedule, wait: Duration) -> Result<Stored, PublishError> {
        let subject = self.names.subject(&schedule.waits_on);
        let headers = || schedule.message(&self.names, None).1;
        self.send(subject, Some(StreamKind::Retry), headers, &Bytes::new(), wait).await
    }

    /// Publishes on a subject as the server knows it, again and again within `wait` while nobody can have taken it: a
    /// connection that is down, or a stream that has no leader at this moment.
    pub(super) async fn send(
        &self,
        subject: String,
        stream: Option<StreamKind>,
        headers: impl Fn() -> HeaderMap,
        payload: &Bytes,
        wait: Duration,
    ) -> Result<Stored, PublishError> {
        let deadline = Instant::now() + wait;
        let subject = Subject::from(subject);
        loop {
            // Where the client has died, what is in hand is written down over the next one.
            let successor = if self.is_ready().is_some() { None } else { self.successor() };
            let broker = successor.as_ref().unwrap_or(self);
            if broker.is_ready().is_none() {
                // An error means that the process is about to end.
                let Ok(Some(_)) = tokio::time::timeout_at(deadline, broker.ready()).await else {
                    return Err(PublishError::NotReady(broker.link()));
                };
                // The link may be ready in name only, until the supervisor has heard that it is down.
                tokio::task::yield_now().await;
                let is_ready =
                    broker.is_ready().is_some() || self.successor().is_some_and(|next| next.is_ready().is_some());
                if !is_ready && self.pause(deadline).await.is_none() {
                    return Err(PublishError::NotReady(broker.link()));
                }
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let sent = confirmed(&broker.client, subject.clone(), headers(), payload.clone(), left).await;
            if let Some(stream) = stream {
                broker.judge(stream, &sent, payload.len());
            }
            match sent {
                Err(PublishError::NoStream(_)) if self.pause(deadline).await.is_some() => {}
                sent => return sent,
            }
        }
    }

    /// Waits for a moment, if there is one left.
    async fn pause(&self, deadline: Instant) -> Option<()> {
        let next = Instant::now() + TRY_AGAIN_AFTER;
        (next < deadline).then_some(())?;
        tokio::time::sleep_until(next).await;
        Some(())
    }

    /// Takes what became of a publish for a sign of the stream's health.
    fn judge(&self, stream: StreamKind, sent: &Result<Stored, PublishError>, bytes: usize) {
        let cause = match sent {
            Ok(_) => return self.health.confirmed(stream),
            Err(PublishError::Unconfirmed | PublishError::NoStream(_)) => Cause::Publish,
            Err(PublishError::StoreFailed(_)) => Cause::Disk,
            Err(PublishError::Full) => Cause::Full { bytes: bytes as u64 },
            // Of the message or the connection, not of the stream.
            Err(
                PublishError::NotReady(_) | PublishError::TooLarge | PublishError::Occupied | PublishError::Refused(_),
            ) => return,
        };
        if let Err(error) = sent {
            self.health.failed(stream, cause, format!("stream {}: {error}", self.names.stream(stream)));
        }
    }
}

/// The stream that takes a subject, which is without a configured prefix.
pub(super) fn stream_of(subject: &str) -> Option<StreamKind> {
    let (first, _) = subject.split_once('.')?;
    Some(match first {
        "events" => StreamKind::Events,
        "outbox" => StreamKind::Outbox,
        "retry" => StreamKind::Retry,
        "receipts" => StreamKind::Receipts,
        "dead" => StreamKind::Dead,
        "tasks" => StreamKind::Tasks,
        _ => return None,
    })
}

impl Visitor {
    /// Publishes to a stream and waits for its confirmation. A message that the server could not take is not sent:
    /// it would end the connection.
    pub(crate) async fn store(
        &self,
        stream: StreamKind,
        outgoing: &Outgoing,
        wait: Duration,
    ) -> Result<Stored, PublishError> {
        self.store_with(self.headers_for(stream, outgoing)?, outgoing, wait).await
    }

    /// The same, unless something else than the message at the sequence `last` is the last on the subject; 0 for
    /// nothing.
    pub(crate) async fn store_after(
        &self,
        stream: StreamKind,
        outgoing: &Outgoing,
        last: u64,
        wait: Duration,
    ) -> Result<Stored, PublishError> {
        let mut headers = self.headers_for(stream, outgoing)?;
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(last));
        self.store_with(headers, outgoing, wait).await
    }

    async fn store_with(
        &self,
        headers: HeaderMap,
        outgoing: &Outgoing,
        wait: Duration,
    ) -> Result<Stored, PublishError> {
        let subject = self.names.subject(&outgoing.subject);
        confirmed(&self.client, subject.into(), headers, outgoing.payload.clone(), wait).await
    }

    fn headers_for(&self, stream: StreamKind, outgoing: &Outgoing) -> Result<HeaderMap, PublishError> {
        let stream = self.names.stream(stream);
        let expected = "Nats-Expected-Stream: \r\n".len() + stream.len();
        if outgoing.wire_bytes() + expected > self.server().max_payload {
            return Err(PublishError::TooLarge);
        }
        let mut headers = outgoing.nats_headers();
        headers.insert(NATS_EXPECTED_STREAM, stream.as_str());
        Ok(headers)
    }
}

/// What a stream answers to a publish.
#[derive(Deserialize)]
pub(super) struct Ack {
    /// Where the message is stored, of a batch the last one.
    #[serde(rename = "seq")]
    pub(super) sequence: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    /// The batch that is stored, and of how many messages it was.
    pub(super) batch: Option<String>,
    pub(super) count: Option<u64>,
    pub(super) error: Option<jetstream::Error>,
}

/// Publishes on a subject as the server knows it, and reads the stream's answer.
///
/// A request, and not the library's publish for JetStream: that sets a second timer for each message, and reads every
/// answer twice, first as an error.
pub(super) async fn confirmed(
    client: &Client,
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
    wait: Duration,
) -> Result<Stored, PublishError> {
    let mut request = Request::new().payload(payload).timeout(None);
    if !headers.is_empty() {
        request = request.headers(headers);
    }
    match tokio::time::timeout(wait, client.send_request(subject.clone(), request)).await {
        Ok(Ok(answer)) => read(&answer.payload),
        Ok(Err(error)) => Err(classify(&error, &subject)),
        Err(_) => Err(PublishError::Unconfirmed),
    }
}

/// Only an answer with a sequence says that the message is stored.
fn read(answer: &[u8]) -> Result<Stored, PublishError> {
    match serde_json::from_slice(answer) {
        Ok(Ack { error: Some(error), .. }) => Err(refused(&error)),
        Ok(Ack { sequence: Some(sequence), duplicate, .. }) => Ok(Stored { sequence, duplicate }),
        Ok(Ack { sequence: None, .. }) => Err(PublishError::Refused("the answer names no sequence".to_owned())),
        Err(error) => Err(PublishError::Refused(format!("the answer is not a stream's: {error}"))),
    }
}

fn classify(error: &RequestError, subject: &str) -> PublishError {
    match error.kind() {
        RequestErrorKind::NoResponders => PublishError::NoStream(subject.to_owned()),
        RequestErrorKind::MaxPayloadExceeded => PublishError::TooLarge,
        RequestErrorKind::InvalidSubject => PublishError::Refused(error.to_string()),
        // The connection broke before the answer came.
        RequestErrorKind::TimedOut | RequestErrorKind::Other => PublishError::Unconfirmed,
    }
}

fn refused(error: &jetstream::Error) -> PublishError {
    match error.error_code() {
        // The second in a cluster, where another write to the subject is on its way.
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
            PublishError::Occupied
        }
        // In a cluster: a message of this id is on its way, and whether it will be stored is not known yet.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => PublishError::Unconfirmed,
        _ if is_full(error) => PublishError::Full,
        ErrorCode::STREAM_STORE_FAILED => PublishError::StoreFailed(error.to_string()),
        _ => PublishError::Refused(error.to_string()),
    }
}

/// A stream with `discard: new` at its limit answers "maximum bytes exceeded"; a server out of storage
/// says so too.
fn is_full(error: &jetstream::Error) -> bool {
    let code = error.error_code();
    code == ErrorCode::INSUFFICIENT_RESOURCES
        || code == ErrorCode::STORAGE_RESOURCES_EXCEEDED
        || (code == ErrorCode::STREAM_STORE_FAILED && error.to_string().contains("maximum"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_with_a_sequence_says_that_a_message_is_stored() {
        let stored = |duplicate| Stored { sequence: 7, duplicate };
        assert_eq!(read(br#"{"stream":"EVENTS","seq":7}"#).unwrap(), stored(false));
        assert_eq!(read(br#"{"stream":"EVENTS","seq":7,"duplicate":true,"domain":"hub"}"#).unwrap(), stored(true));
        for nothing in ["", "{}", "+ACK", r#"{"stream":"EVENTS"}"#, "[7]", r#"{"seq":"7"}"#] {
            assert!(matches!(read(nothing.as_bytes()), Err(PublishError::Refused(_))), "{nothing}");
        }
    }

    #[test]
    fn a_refusal_says_what_was_refused_whatever_else_stands_beside_it() {
        let refusal = |code: u64, text: &str| {
            let answer = serde_json::json!({
                "error": {"code": 503, "err_code": code, "description": text}, "stream": "EVENTS", "seq": 7,
            });
            read(answer.to_string().as_bytes()).unwrap_err()
        };
        assert!(matches!(refusal(10071, "wrong last sequence: 3"), PublishError::Occupied));
        assert!(matches!(refusal(10164, "wrong last sequence"), PublishError::Occupied));
        assert!(matches!(refusal(10158, "duplicate message id is in process"), PublishError::Unconfirmed));
        assert!(matches!(refusal(10077, "maximum bytes exceeded"), PublishError::Full));
        assert!(matches!(refusal(10023, "insufficient resources"), PublishError::Full));
        let PublishError::Refused(text) = refusal(10060, "expected stream does not match") else { panic!() };
        assert!(text.contains("expected stream does not match"), "{text}");
    }
}
