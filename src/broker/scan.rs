//! Looking through streams, page by page, for what somebody has to see to.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, ErrorCode};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::provision::COURIER;
use super::{Broker, Names, PublishError, ReadError, Schedule, Stored, StoredMessage, Visitor};
use crate::config::StreamKind;
use crate::event::Headers;

/// Up to where each durable of OUTBOX has everything acked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floors(HashMap<String, u64>);

impl Floors {
    /// What the couriers' own durable has done with; 0 where it is not there.
    pub(crate) fn courier(&self) -> u64 {
        self.of(COURIER).unwrap_or(0)
    }

    /// What the durable of this name has done with, if there is one.
    pub(crate) fn of(&self, durable: &str) -> Option<u64> {
        self.0.get(durable).copied()
    }
}

impl Broker {
    /// A visit over this broker's connection.
    pub(crate) fn visitor(&self) -> Visitor {
        let (client, jetstream) = (self.client.clone(), self.jetstream.clone());
        let (names, side) = ((*self.names).clone(), self.side.clone());
        Visitor { client, jetstream, names, side, broker: Some(self.clone()) }
    }
}

impl Visitor {
    /// The messages at or after a sequence whose subject matches, by the leader's word, at most so many.
    pub(crate) async fn page_from(
        &self,
        kind: StreamKind,
        subject: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<StoredMessage>, ReadError> {
        self.page_of(kind, &self.names.stream(kind), &self.names.subject(subject), from, most).await
    }

    /// The values of the bucket of tasks at or after a sequence, at most so many.
    pub(crate) async fn tasks_page(&self, from: u64, most: usize) -> Result<Vec<StoredMessage>, ReadError> {
        let subject = format!("$KV.{}.>", self.names.tasks_bucket());
        self.page_of(StreamKind::Tasks, &self.tasks_stream(), &subject, from, most).await
    }

    /// The value of a task as it is now, by the leader's word.
    pub(crate) async fn task_value(&self, task_id: &str) -> Result<Option<StoredMessage>, ReadError> {
        let subject = format!("$KV.{}.{task_id}", self.names.tasks_bucket());
        let ask = Ask { last_by_subject: Some(&subject), ..Ask::default() };
        Ok(self.ask(StreamKind::Tasks, &self.tasks_stream(), &ask).await?.filter(Broker::is_task))
    }

    /// The message at a sequence, by the leader's word.
    pub(crate) async fn message_at(&self, kind: StreamKind, sequence: u64) -> Result<Option<StoredMessage>, ReadError> {
        let ask = Ask { sequence: Some(sequence), ..Ask::default() };
        self.ask(kind, &self.names.stream(kind), &ask).await
    }

    /// The last message on a subject, by the leader's word.
    pub(crate) async fn last_on(&self, kind: StreamKind, subject: &str) -> Result<Option<StoredMessage>, ReadError> {
        let subject = self.names.subject(subject);
        let ask = Ask { last_by_subject: Some(&subject), ..Ask::default() };
        self.ask(kind, &self.names.stream(kind), &ask).await
    }

    /// Up to where a durable of OUTBOX has everything acked, by its leader's word; none where there is no such durable.
    async fn floor(&self, durable: &str) -> Result<Option<u64>, ReadError> {
        let stream = self.handle(StreamKind::Outbox, self.names.stream(StreamKind::Outbox)).await?;
        match stream.consumer_info(durable).await {
            Ok(info) => Ok(Some(info.ack_floor.stream_sequence)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(ReadError::new(StreamKind::Outbox, error)),
        }
    }

    /// The same of the couriers' own durable, and of these, if they are there. Each is asked for by its name: a list
    /// leaves out what does not answer in time.
    pub(crate) async fn floors(&self, durables: impl IntoIterator<Item = String>) -> Result<Floors, ReadError> {
        let mut floors = HashMap::new();
        for durable in durables.into_iter().chain([COURIER.to_owned()]) {
            if let Some(floor) = self.floor(&durable).await? {
                floors.insert(durable, floor);
            }
        }
        Ok(Floors(floors))
    }

    /// Since when a stream has kept everything; none where it has nothing left of what it had. What it lost at its end
    /// does not show here.
    pub(crate) async fn complete_since(&self, kind: StreamKind) -> Result<Option<SystemTime>, ReadError> {
        let stream = self.handle(kind, self.names.stream(kind)).await?;
        let info = stream.get_info().await.map_err(|error| ReadError::new(kind, error))?;
        let (state, created) = (info.state, SystemTime::from(info.created));
        let never_dropped = state.first_sequence <= 1;
        Ok(match state.messages {
            _ if never_dropped => Some(created),
            0 => None,
            _ => Some(created.max(state.first_timestamp.into())),
        })
    }

    /// When a stream was created.
    pub(super) async fn created(&self, kind: StreamKind) -> Result<SystemTime, ReadError> {
        let stream = self.handle(kind, self.names.stream(kind)).await?;
        stream.get_info().await.map(|info| info.created.into()).map_err(|error| ReadError::new(kind, error))
    }

    /// Publishes a schedule on a subject on which none waits. With the id, the stream knows it if somebody else
    /// publishes the same.
    pub(crate) async fn schedule(
        &self,
        schedule: &Schedule,
        message_id: &str,
        wait: Duration,
    ) -> Result<Stored, PublishError> {
        let (subject, headers) = schedule.message(&self.names, Some(message_id));
        super::publish::confirmed(&self.client, subject.into(), headers, bytes::Bytes::new(), wait).await
    }

    fn tasks_stream(&self) -> String {
        format!("KV_{}", self.names.tasks_bucket())
    }

    async fn handle(&self, kind: StreamKind, name: String) -> Result<Stream<()>, ReadError> {
        self.jetstream.get_stream_no_info(name).await.map_err(|error| ReadError::new(kind, error))
    }

    /// One by one, and not by a consumer: what somebody has published with headers that the library cannot read would
    /// end the connection of whoever it is delivered to.
    async fn page_of(
        &self,
        kind: StreamKind,
        stream: &str,
        subject: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<StoredMessage>, ReadError> {
        let (mut from, mut page) = (from.max(1), Vec::new());
        while page.len() < most {
            let ask = Ask { sequence: Some(from), next_by_subject: Some(subject), ..Ask::default() };
            let Some(found) = self.ask(kind, stream, &ask).await? else { break };
            from = found.sequence + 1;
            page.push(found);
        }
        Ok(page)
    }

    /// Asks a stream's leader for one message.
    async fn ask(&self, kind: StreamKind, stream: &str, ask: &Ask<'_>) -> Result<Option<StoredMessage>, ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::new(kind, error);
        let request = serde_json::to_vec(ask).unwrap_or_default();
        let answer = self.client.request(format!("$JS.API.STREAM.MSG.GET.{stream}"), request.into()).await;
        let answer = answer.map_err(|error| failed(&error))?;
        let answer: Answer = serde_json::from_slice(&answer.payload).map_err(|error| failed(&error))?;
        match (answer.message, answer.error) {
            (Some(raw), _) => Ok(Some(raw.stored(&self.names))),
            (None, Some(error)) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            (None, Some(error)) => Err(failed(&error)),
            (None, None) => Err(failed(&"the answer has no message")),
        }
    }
}

/// Which message of a stream is asked for.
#[derive(Default, Serialize)]
struct Ask<'a> {
    #[serde(rename = "seq", skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(rename = "next_by_subj", skip_serializing_if = "Option::is_none")]
    next_by_subject: Option<&'a str>,
    #[serde(rename = "last_by_subj", skip_serializing_if = "Option::is_none")]
    last_by_subject: Option<&'a str>,
}

#[derive(Deserialize)]
struct Answer {
    message: Option<Raw>,
    error: Option<jetstream::Error>,
}

/// A message in the raw form that the library does not offer: headers as they are.
#[derive(Deserialize)]
struct Raw {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl Raw {
    fn stored(&self, names: &Names) -> StoredMessage {
        let decode = |text: &str| BASE64.decode(text.as_bytes()).unwrap_or_default();
        StoredMessage {
            subject: names.strip(&self.subject).to_owned(),
            sequence: self.seq,
            stored: humantime::parse_rfc3339(&self.time).unwrap_or(SystemTime::UNIX_EPOCH),
            headers: headers(&decode(&self.hdrs)),
            payload: decode(&self.data).into(),
        }
    }
}

/// The headers that can be read; what cannot is left out.
fn headers(raw: &[u8]) -> Headers {
    let text = String::from_utf8_lossy(raw);
    let named = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    named.map(|(name, value)| (name.to_owned().into(), value.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_far_as_they_can_be() {
        let read = headers(b"NATS/1.0\r\nA: b\r\nno colon\r\nHookbridge-Attempt:  2\r\nX: \xff\r\n\r\n");
        assert_eq!((read.get("a"), read.get("hookbridge-attempt")), (Some("b"), Some("2")));
        assert_eq!(headers(b"").iter().count(), 0);
    }
}
