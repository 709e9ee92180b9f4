//! Several messages of one stream, stored together or not at all: JetStream's atomic batches.
//!
//! A server that syncs always does so once for a batch instead of once for a message. The price is what the server
//! does for each: it keeps the parts in a place of their own until the last one has come. The headers that make a
//! batch stay on the stored messages.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::header::{NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE};
use async_nats::jetstream::{self, ErrorCode};

use super::health::Cause;
use super::publish::{Ack, stream_of};
use super::{Broker, Link, Outgoing, Stored};

/// The bytes that being part of a batch adds to a message, at most.
pub(crate) const BATCH_HEADERS: usize = 128;

/// The stream did not say that it has the messages; but for the last variant, it has none of them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("{0}")]
    NotReady(Link),
    /// The stream knows the id of one of them, and does not say which.
    #[error("one of the messages is stored already")]
    Repeat,
    /// The stream takes no batches: somebody has changed it since this connection was prepared.
    #[error("the stream takes no atomic batches any more; the next connection turns them on again")]
    Disabled,
    /// Whether the messages would be taken one by one is another question.
    #[error("the server refused the batch: {0}")]
    Refused(String),
    /// Ambiguous: they may be stored. Publish each again with the same id.
    #[error("the stream did not confirm the batch in time")]
    Unconfirmed,
}

impl BatchError {
    /// The word for metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "not-ready",
            Self::Repeat => "repeat",
            Self::Disabled => "disabled",
            Self::Refused(_) => "refused",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

impl Broker {
    /// Publishes up to 1,000 messages of one stream, no two with the same id, and waits until they are stored: for at
    /// most `wait`, and no longer than the connection lasts.
    pub(crate) async fn publish_together(
        &self,
        messages: &[&Outgoing],
        wait: Duration,
    ) -> Result<Vec<Stored>, BatchError> {
        let Some(ready) = self.is_ready() else { return Err(BatchError::NotReady(self.link())) };
        let stored = tokio::select! {
            stored = tokio::time::timeout(wait, self.send_together(messages)) => {
                stored.unwrap_or(Err(BatchError::Unconfirmed))
            }
            () = self.lost(ready.connection) => Err(BatchError::Unconfirmed),
        };
        // A batch that is refused is published one by one, which says more about the stream.
        if let Some(stream) = messages.first().and_then(|message| stream_of(&message.subject)) {
            match &stored {
                Ok(_) => self.health.confirmed(stream),
                Err(error @ BatchError::Unconfirmed) => {
                    self.health.failed(
                        stream,
                        Cause::Publish,
                        format!("stream {}: {error}", self.names.stream(stream)),
                    );
                }
                Err(_) => {}
            }
        }
        stored
    }

    async fn send_together(&self, messages: &[&Outgoing]) -> Result<Vec<Stored>, BatchError> {
        let Some((last, others)) = messages.split_last() else { return Ok(Vec::new()) };
        // An inbox is unique too.
        let inbox = self.client.new_inbox();
        let id = inbox.rsplit_once('.').map_or(&inbox[..], |(_, unique)| unique);
        for (before, message) in others.iter().enumerate() {
            let (subject, headers) = (self.names.subject(&message.subject), part(message, id, before + 1));
            let sent = self.client.publish_with_headers(subject, headers, message.payload.clone()).await;
            sent.map_err(|error| BatchError::Refused(error.to_string()))?;
        }
        let mut headers = part(last, id, messages.len());
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let subject = self.names.subject(&last.subject);
        let answer = self.client.request_with_headers(subject, headers, last.payload.clone()).await;
        let answer = answer.map_err(|error| unanswered(&error))?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Ack { error: Some(error), .. }) => Err(refused(&error)),
            // An answer that does not speak of this batch says nothing about all but the last message.
            Ok(ack) => all(&ack, id, messages.len() as u64).ok_or(BatchError::Unconfirmed),
            Err(_) => Err(BatchError::Unconfirmed),
        }
    }
}

/// Each message of this batch, if that is what the answer to the last one says was stored. They follow each other in
/// the stream.
fn all(ack: &Ack, batch: &str, count: u64) -> Option<Vec<Stored>> {
    let last = ack.sequence?;
    let first = last.checked_sub(count - 1)?;
    let all = || (first..=last).map(|sequence| Stored { sequence, duplicate: false }).collect();
    (ack.batch.as_deref() == Some(batch) && ack.count == Some(count)).then(all)
}

fn part(message: &Outgoing, batch: &str, sequence: usize) -> HeaderMap {
    let mut headers = message.nats_headers();
    headers.insert(NATS_BATCH_ID, batch);
    headers.insert(NATS_BATCH_SEQUENCE, sequence.to_string().as_str());
    headers
}

fn unanswered(error: &RequestError) -> BatchError {
    match error.kind() {
        RequestErrorKind::TimedOut | RequestErrorKind::Other => BatchError::Unconfirmed,
        RequestErrorKind::NoResponders | RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
            BatchError::Refused(error.to_string())
        }
    }
}

fn refused(error: &jetstream::Error) -> BatchError {
    match error.error_code() {
        ErrorCode::ATOMIC_PUBLISH_CONTAINS_DUPLICATE_MESSAGE => BatchError::Repeat,
        ErrorCode::ATOMIC_PUBLISH_DISABLED => BatchError::Disabled,
        _ => BatchError::Refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(answer: &str) -> Option<Vec<u64>> {
        let ack: Ack = serde_json::from_str(answer).unwrap();
        Some(all(&ack, "b", 3)?.iter().map(|stored| stored.sequence).collect())
    }

    #[test]
    fn only_an_answer_about_this_batch_confirms_it() {
        assert_eq!(stored(r#"{"stream":"E","seq":7,"batch":"b","count":3}"#), Some(vec![5, 6, 7]));
        for other in [
            r#"{"stream":"E","seq":7}"#,
            r#"{"stream":"E","batch":"b","count":3}"#,
            r#"{"stream":"E","seq":7,"duplicate":true}"#,
            r#"{"stream":"E","seq":7,"batch":"c","count":3}"#,
            r#"{"stream":"E","seq":7,"batch":"b","count":2}"#,
            r#"{"stream":"E","seq":1,"batch":"b","count":3}"#,
        ] {
            assert_eq!(stored(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_batch_adds_to_a_message_is_within_its_room() {
        let message = Outgoing { message_id: Some("a:b".to_owned()), ..Outgoing::default() };
        let headers = part(&message, &"x".repeat(22), 1000);
        let bytes: usize =
            headers.iter().map(|(name, values)| name.to_string().len() + values[0].as_str().len() + 4).sum();
        let commit = "Nats-Batch-Commit: 1\r\n".len();
        assert!(bytes + commit + "NATS/1.0\r\n\r\n".len() <= message.wire_bytes() + BATCH_HEADERS);
    }
}
