//! The bucket of tasks: one key a task, changed only where it is still as it was read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use async_nats::{HeaderMap, HeaderValue, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;

use super::read::{ReadError, is_absent, stored};
use super::{Broker, Outgoing, PublishError, StoredMessage};
use crate::config::StreamKind;

/// The header by which the bucket tells a removal from a value.
const OPERATION: &str = "KV-Operation";
/// The header by which the server tells that a value has ended.
const MARKER: &str = "Nats-Marker-Reason";
/// How long one confirmation may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(5);
/// Room for subject and headers of a message that is pulled.
const PULL_OVERHEAD: usize = 64 * 1024;
/// How long the server keeps a reader's place that was not given back.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// The most tasks whose last written revision is remembered.
const MOST_WRITTEN: usize = 16_384;
/// For how long it is: longer than a leader without a quorum stays one, and shorter than it takes anybody to miss a
/// task after the bucket was emptied or restored.
const BELIEVED_FOR: Duration = Duration::from_secs(30);

/// A value, and the revision by which it can be changed.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
}

/// Messages of a subject as they pass by, from now on.
pub(crate) struct News(Subscriber);

impl News {
    /// Waits for the next one; `None` when the connection is given up.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.0.next().await.map(|message| message.payload)
    }
}

/// The revisions of tasks that this process wrote a moment ago.
///
/// A leader that has been cut off from the others believes in itself for some seconds and answers with what it has; so
/// what is read is never believed when it is older than what was written here.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<HashMap<String, (u64, Instant)>>);

impl Written {
    fn note(&self, key: &str, revision: u64) {
        let now = Instant::now();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.len() >= MOST_WRITTEN {
            written.retain(|_, (_, at)| now - *at < BELIEVED_FOR);
            if written.len() >= MOST_WRITTEN {
                written.clear();
            }
        }
        written.insert(key.to_owned(), (revision, now));
    }

    fn is_older(&self, key: &str, revision: u64) -> bool {
        let written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(key).is_some_and(|(newest, at)| revision < *newest && at.elapsed() < BELIEVED_FOR)
    }
}

impl Broker {
    /// What is kept under a key.
    ///
    /// A replica may lag behind: where there are several, the leader is asked.
    pub(crate) async fn task(&self, key: &str) -> Result<Option<Kept>, ReadError> {
        let found = self.last_of(key).await?;
        let revision = found.as_ref().map_or(0, |found| found.sequence);
        if self.replicas > 1 && self.written.is_older(key, revision) {
            let why = format!("task {key} was answered with an older state than the one written before; asking again");
            return Err(ReadError::new(StreamKind::Tasks, why));
        }
        let found = found.filter(is_value);
        Ok(found.map(|found| Kept { value: found.payload, revision: found.sequence }))
    }

    async fn last_of(&self, key: &str) -> Result<Option<StoredMessage>, ReadError> {
        let (stream, subject) = (self.tasks().await?, self.task_subject(key));
        let found = if self.replicas == 1 {
            match stream.direct_get_last_for_subject(&subject).await {
                Ok(message) => Some(message),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => None,
                Err(error) => return Err(ReadError::new(StreamKind::Tasks, error)),
            }
        } else {
            match stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => Some(message),
                Err(error) if is_absent(&error.kind()) => None,
                Err(error) => return Err(ReadError::new(StreamKind::Tasks, error)),
            }
        };
        Ok(found.map(|message| stored(&self.names, message)))
    }

    /// Writes a key that has this revision; 0 for one that is not there. With `ends`, the value is forgotten after
    /// that time. `None`: somebody else wrote it meanwhile.
    pub(crate) async fn write_task(
        &self,
        key: &str,
        value: Bytes,
        revision: u64,
        ends: Option<Duration>,
    ) -> Result<Option<u64>, PublishError> {
        let headers = || {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string().as_str());
            if let Some(ends) = ends {
                headers.insert(NATS_MESSAGE_TTL, format!("{}s", ends.as_secs().max(1)).as_str());
            }
            headers
        };
        match self.send(self.task_subject(key), None, headers, &value, CONFIRM_WITHIN).await {
            Ok(stored) => {
                if self.replicas > 1 {
                    self.written.note(key, stored.sequence);
                }
                Ok(Some(stored.sequence))
            }
            Err(PublishError::Occupied) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Publishes a message on a subject whose last one has this sequence; 0 for none. `false` where it has another.
    pub(crate) async fn publish_after(
        &self,
        outgoing: &Outgoing,
        last: u64,
        wait: Duration,
    ) -> Result<bool, PublishError> {
        let headers = || {
            let mut headers = outgoing.nats_headers();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(last));
            headers
        };
        let subject = self.names.subject(&outgoing.subject);
        match self.send(subject, None, headers, &outgoing.payload, wait).await {
            Ok(_) => Ok(true),
            Err(PublishError::Occupied) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What stands under a key: a value, or none and what was left when it was removed or had its end. The revision is
    /// the one that [`Broker::write_task`] wants; 0 for nothing at all.
    pub(crate) async fn task_entry(&self, key: &str) -> Result<(Option<Bytes>, u64), ReadError> {
        let found = self.last_of(key).await?;
        Ok(found.map_or((None, 0), |found| (is_value(&found).then(|| found.payload.clone()), found.sequence)))
    }

    /// The next values at or after a sequence, at most so many and so many bytes, in the order in which they were
    /// written, and whether there may be more.
    pub(crate) async fn tasks_from(
        &self,
        sequence: u64,
        most: usize,
        most_bytes: usize,
    ) -> Result<(Vec<StoredMessage>, bool), ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::new(StreamKind::Tasks, error);
        let stream = self.tasks().await?;
        let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) };
        let place = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            inactive_threshold: ABANDONED_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let reading = async {
            let consumer = stream.create_consumer(place).await.map_err(|error| failed(&error))?;
            // One value is never larger than a message; less would end a page before its first.
            let most_bytes = most_bytes.max(self.max_payload() + PULL_OVERHEAD);
            let page = consumer
                .fetch()
                .max_messages(most)
                .max_bytes(most_bytes)
                .messages()
                .await
                .map_err(|error| failed(&error));
            let (mut found, mut pending) = (Vec::new(), 0);
            match page {
                Ok(mut page) => {
                    while let Some(message) = page.next().await {
                        let message = message.map_err(|error| failed(&error))?;
                        let info = message.info().map_err(|error| failed(&error))?;
                        pending = info.pending;
                        found.push(StoredMessage {
                            subject: message.subject.to_string(),
                            sequence: info.stream_sequence,
                            stored: info.published.into(),
                            headers: message.headers.as_ref().map(super::from_nats).unwrap_or_default(),
                            payload: message.payload.clone(),
                        });
                    }
                }
                Err(error) => return Err(error),
            }
            // If this fails, the server forgets the place by itself.
            drop(stream.delete_consumer(&consumer.cached_info().name).await);
            Ok((found, pending > 0))
        };
        let found = tokio::time::timeout(PAGE_WITHIN, reading).await;
        found.map_err(|_| failed(&"NATS does not answer"))?
    }

    /// Whether what was read from the bucket is a value, and no sign that one was removed or has ended.
    pub(crate) fn is_task(found: &StoredMessage) -> bool {
        is_value(found)
    }

    /// Listens to a subject. What is published from now on comes, if the connection lives.
    pub(crate) async fn listen(&self, subject: &str) -> Result<News, ReadError> {
        let subscribed = self.client.subscribe(self.names.subject(subject)).await;
        let news = subscribed.map_err(|error| ReadError::new(StreamKind::Tasks, error))?;
        // The server reads what one connection sends in its order: a read that follows sees the subscription.
        Ok(News(news))
    }

    async fn tasks(&self) -> Result<Stream<()>, ReadError> {
        let stream = self.jetstream.get_stream_no_info(format!("KV_{}", self.names.tasks_bucket())).await;
        stream.map_err(|error| ReadError::new(StreamKind::Tasks, error))
    }

    fn task_subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.names.tasks_bucket())
    }
}

fn is_value(found: &StoredMessage) -> bool {
    found.headers.get(OPERATION).is_none() && found.headers.get(MARKER).is_none()
}
