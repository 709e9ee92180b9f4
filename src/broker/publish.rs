//! Publishing, with the stream's confirmation as the return value.

use std::time::{Duration, SystemTime};

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_SCHEDULE, NATS_SCHEDULE_TARGET};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;

use super::{Broker, Link, Visitor, to_nats};
use crate::clock::rfc3339;
use crate::config::StreamKind;
use crate::event::Headers;

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

    pub(super) fn message(&self) -> PublishMessage {
        let mut message = PublishMessage::build().payload(self.payload.clone());
        if !self.headers.is_empty() {
            message = message.headers(to_nats(&self.headers));
        }
        if let Some(id) = &self.message_id {
            message = message.message_id(id);
        }
        message
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
            Self::Refused(_) => "refused",
        }
    }
}

impl Broker {
    /// Publishes and waits for the stream's confirmation, for at most `wait`.
    pub(crate) async fn publish(&self, outgoing: &Outgoing, wait: Duration) -> Result<Stored, PublishError> {
        self.send(&outgoing.subject, outgoing.message(), wait).await
    }

    /// Publishes a schedule, unless another one than it is to replace waits on its subject. Replacing is one step: at
    /// no moment does neither wait, or both.
    ///
    /// Never carries a message id: a repeated one would be answered as a duplicate and store nothing.
    pub(crate) async fn schedule(&self, schedule: &Schedule, wait: Duration) -> Result<Stored, PublishError> {
        let mut headers = to_nats(&schedule.headers);
        headers.insert(NATS_SCHEDULE, format!("@at {}", rfc3339(schedule.due)).as_str());
        headers.insert(NATS_SCHEDULE_TARGET, self.names.subject(&schedule.target).as_str());
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, schedule.replaces.to_string().as_str());
        self.send(&schedule.waits_on, PublishMessage::build().headers(headers), wait).await
    }

    async fn send(&self, subject: &str, message: PublishMessage, wait: Duration) -> Result<Stored, PublishError> {
        if self.is_ready().is_none() {
            return Err(PublishError::NotReady(self.link()));
        }
        confirmed(&self.jetstream, self.names.subject(subject), message, wait).await
    }
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
        let message = self.message_for(stream, outgoing)?;
        confirmed(&self.jetstream, self.names.subject(&outgoing.subject), message, wait).await
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
        let message = self.message_for(stream, outgoing)?.expected_last_subject_sequence(last);
        confirmed(&self.jetstream, self.names.subject(&outgoing.subject), message, wait).await
    }

    fn message_for(&self, stream: StreamKind, outgoing: &Outgoing) -> Result<PublishMessage, PublishError> {
        let stream = self.names.stream(stream);
        let expected = "Nats-Expected-Stream: \r\n".len() + stream.len();
        if outgoing.wire_bytes() + expected > self.server().max_payload {
            return Err(PublishError::TooLarge);
        }
        Ok(outgoing.message().expected_stream(stream))
    }
}

/// Publishes on a subject as the server knows it.
pub(super) async fn confirmed(
    jetstream: &jetstream::Context,
    subject: String,
    message: PublishMessage,
    wait: Duration,
) -> Result<Stored, PublishError> {
    let confirmed = async {
        let ack = jetstream.send_publish(subject.clone(), message).await?;
        ack.await
    };
    match tokio::time::timeout(wait, confirmed).await {
        Ok(Ok(ack)) => Ok(Stored { sequence: ack.sequence, duplicate: ack.duplicate }),
        Ok(Err(error)) => Err(classify(&error, &subject)),
        Err(_) => Err(PublishError::Unconfirmed),
    }
}

fn classify(error: &jetstream::context::PublishError, subject: &str) -> PublishError {
    match error.kind() {
        PublishErrorKind::StreamNotFound => PublishError::NoStream(subject.to_owned()),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
            PublishError::Unconfirmed
        }
        PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge,
        PublishErrorKind::WrongLastSequence => PublishError::Occupied,
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::Other => {
            let source = std::error::Error::source(error);
            let server = source.and_then(|source| source.downcast_ref::<jetstream::Error>());
            match server {
                Some(server) if is_full(server) => PublishError::Full,
                Some(server) => PublishError::Refused(server.to_string()),
                None => PublishError::Refused(error.to_string()),
            }
        }
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
