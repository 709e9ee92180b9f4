//! Looking through streams, page by page, for what somebody has to see to.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;

use super::provision::COURIER;
use super::read::{is_absent, stored};
use super::{Broker, PublishError, ReadError, Schedule, StoredMessage, Stored, Visitor, from_nats};
use crate::config::StreamKind;

/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(10);
/// How long the server keeps a reader's place that was not given back.
const ABANDONED_AFTER: Duration = Duration::from_secs(15);
/// The most durables of OUTBOX that are asked for: the courier's, and one for each ordered endpoint.
const MOST_DURABLES: usize = 10_000;

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
        Visitor { client, jetstream, names: (*self.names).clone() }
    }
}

impl Visitor {
    /// The messages at or after a sequence whose subject matches, at most so many, with their bodies.
    pub(crate) async fn page_from(
        &self,
        kind: StreamKind,
        subject: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<StoredMessage>, ReadError> {
        let (name, subject) = (self.names.stream(kind), self.names.subject(subject));
        self.page_of(kind, name, subject, from, most).await
    }

    /// The values of the bucket of tasks at or after a sequence, at most so many.
    pub(crate) async fn tasks_page(&self, from: u64, most: usize) -> Result<Vec<StoredMessage>, ReadError> {
        let (name, subject) = (self.tasks_stream(), format!("$KV.{}.>", self.names.tasks_bucket()));
        self.page_of(StreamKind::Tasks, name, subject, from, most).await
    }

    /// The value of a task as it is now, by the leader's word.
    pub(crate) async fn task_value(&self, task_id: &str) -> Result<Option<StoredMessage>, ReadError> {
        let stream = self.handle(StreamKind::Tasks, self.tasks_stream()).await?;
        let subject = format!("$KV.{}.{task_id}", self.names.tasks_bucket());
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(found) => Ok(Some(stored(&self.names, found)).filter(Broker::is_task)),
            Err(error) if is_absent(&error.kind()) => Ok(None),
            Err(error) => Err(ReadError::new(StreamKind::Tasks, error)),
        }
    }

    /// Every message whose subject matches, by the leader's word, but no more than so many.
    pub(crate) async fn all_on(
        &self,
        kind: StreamKind,
        subject: &str,
        most: usize,
    ) -> Result<Vec<StoredMessage>, ReadError> {
        let stream = self.handle(kind, self.names.stream(kind)).await?;
        let (subject, mut from, mut all) = (self.names.subject(subject), 1, Vec::new());
        while all.len() < most {
            match stream.raw_message_builder().sequence(from).next_by_subject(subject.clone()).send().await {
                Ok(found) => {
                    from = found.sequence + 1;
                    all.push(stored(&self.names, found));
                }
                Err(error) if is_absent(&error.kind()) => break,
                Err(error) => return Err(ReadError::new(kind, error)),
            }
        }
        Ok(all)
    }

    /// Up to where the durables of OUTBOX have everything acked.
    pub(crate) async fn floors(&self) -> Result<Floors, ReadError> {
        let stream = self.handle(StreamKind::Outbox, self.names.stream(StreamKind::Outbox)).await?;
        let mut consumers = stream.consumers().take(MOST_DURABLES);
        let mut floors = HashMap::new();
        while let Some(info) = consumers.next().await {
            let info = info.map_err(|error| ReadError::new(StreamKind::Outbox, error))?;
            floors.insert(info.name, info.ack_floor.stream_sequence);
        }
        Ok(Floors(floors))
    }

    /// When the oldest message was stored that a stream still has; none where it has none.
    pub(crate) async fn oldest(&self, kind: StreamKind) -> Result<Option<SystemTime>, ReadError> {
        let stream = self.handle(kind, self.names.stream(kind)).await?;
        let state = stream.get_info().await.map_err(|error| ReadError::new(kind, error))?.state;
        Ok((state.messages > 0).then(|| state.first_timestamp.into()))
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
        super::publish::confirmed(&self.client, subject, headers, bytes::Bytes::new(), wait).await
    }

    fn tasks_stream(&self) -> String {
        format!("KV_{}", self.names.tasks_bucket())
    }

    async fn handle(&self, kind: StreamKind, name: String) -> Result<Stream<()>, ReadError> {
        self.jetstream.get_stream_no_info(name).await.map_err(|error| ReadError::new(kind, error))
    }

    async fn page_of(
        &self,
        kind: StreamKind,
        name: String,
        filter_subject: String,
        from: u64,
        most: usize,
    ) -> Result<Vec<StoredMessage>, ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::new(kind, error);
        let stream = self.handle(kind, name).await?;
        let place = pull::Config {
            filter_subject,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            ack_policy: AckPolicy::None,
            inactive_threshold: ABANDONED_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let reading = async {
            let consumer = stream.create_consumer(place).await.map_err(|error| failed(&error))?;
            let mut found = Vec::new();
            let mut page = consumer.fetch().max_messages(most).messages().await.map_err(|error| failed(&error))?;
            while let Some(message) = page.next().await {
                let message = message.map_err(|error| failed(&error))?;
                let info = message.info().map_err(|error| failed(&error))?;
                found.push(StoredMessage {
                    subject: self.names.strip(&message.subject).to_owned(),
                    sequence: info.stream_sequence,
                    stored: info.published.into(),
                    headers: message.headers.as_ref().map(from_nats).unwrap_or_default(),
                    payload: message.payload.clone(),
                });
            }
            // If this fails, the server forgets the place by itself.
            drop(stream.delete_consumer(&consumer.cached_info().name).await);
            Ok(found)
        };
        tokio::time::timeout(PAGE_WITHIN, reading).await.map_err(|_| failed(&"NATS does not answer"))?
    }
}
