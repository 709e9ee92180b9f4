//! Publishing, with the stream's confirmation as the return value.

use std::time::{Duration, SystemTime};

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_SCHEDULE, NATS_SCHEDULE_TARGET};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::{Broker, Link, to_nats};
use crate::clock::rfc3339;
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

/// A message that the server keeps until its time, and then publishes elsewhere in the same stream.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// Where it waits. One schedule a subject.
    pub(crate) waits_on: String,
    /// Where it appears when it is due.
    pub(crate) target: String,
    pub(crate) due: SystemTime,
    pub(crate) headers: Headers,
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
        let mut message = PublishMessage::build().payload(outgoing.payload.clone());
        if !outgoing.headers.is_empty() {
            message = message.headers(to_nats(&outgoing.headers));
        }
        if let Some(id) = &outgoing.message_id {
            message = message.message_id(id);
        }
        self.send(&outgoing.subject, message, wait).await
    }

    /// Publishes a schedule, unless another one waits on its subject.
    ///
    /// Never carries a message id: a repeated one would be answered as a duplicate and store nothing.
    pub(crate) async fn schedule(&self, schedule: &Schedule, wait: Duration) -> Result<Stored, PublishError> {
        let mut headers = to_nats(&schedule.headers);
        headers.insert(NATS_SCHEDULE, format!("@at {}", rfc3339(schedule.due)).as_str());
        headers.insert(NATS_SCHEDULE_TARGET, self.names.subject(&schedule.target).as_str());
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        self.send(&schedule.waits_on, PublishMessage::build().headers(headers), wait).await
    }

    async fn send(&self, subject: &str, message: PublishMessage, wait: Duration) -> Result<Stored, PublishError> {
        if self.is_ready().is_none() {
            return Err(PublishError::NotReady(self.link()));
        }
        let confirmed = async {
            let ack = self.jetstream.send_publish(self.names.subject(subject), message).await?;
            ack.await
        };
        match tokio::time::timeout(wait, confirmed).await {
            Ok(Ok(ack)) => Ok(Stored { sequence: ack.sequence, duplicate: ack.duplicate }),
            Ok(Err(error)) => Err(classify(&error, subject)),
            Err(_) => Err(PublishError::Unconfirmed),
        }
    }
}

fn classify(error: &async_nats::jetstream::context::PublishError, subject: &str) -> PublishError {
    match error.kind() {
        PublishErrorKind::StreamNotFound => PublishError::NoStream(subject.to_owned()),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
            PublishError::Unconfirmed
        }
        PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge,
        PublishErrorKind::WrongLastSequence => PublishError::Occupied,
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::Other => {
            let source = std::error::Error::source(error);
            let server = source.and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
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
fn is_full(error: &async_nats::jetstream::Error) -> bool {
    let code = error.error_code();
    code == ErrorCode::INSUFFICIENT_RESOURCES
        || code == ErrorCode::STORAGE_RESOURCES_EXCEEDED
        || (code == ErrorCode::STREAM_STORE_FAILED && error.to_string().contains("maximum"))
}
