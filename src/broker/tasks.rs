//! The bucket of tasks: one key a task, changed only where it is still as it was read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::{Client, HeaderMap, HeaderValue, Subscriber, jetstream};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::raw::{self, Which};
use super::read::ReadError;
use super::side::{Side, SideClient};
use super::{Broker, Outgoing, PublishError, StoredMessage, bucket, unreadable};
use crate::config::StreamKind;

/// How long one confirmation may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(5);
/// How long the server may take to have read a subscription.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// The shortest time between two words that something may have been missed.
const WAKE_AFTER: Duration = Duration::from_secs(1);
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
pub(crate) struct News {
    /// As the server knows it.
    subject: String,
    news: Subscriber,
    side: SideClient,
    /// How often the connection had been made when something was last said.
    made: u64,
    /// Where a new client comes from when this one has died.
    from: Arc<Side>,
    /// When it was last said that something may have been missed.
    woken: Option<Instant>,
}

impl News {
    /// Waits for the next message, or until the connection over which they come was made anew: what was published
    /// meanwhile is missing, and has to be looked up. `None` when there can be no more.
    pub(crate) async fn next(&mut self) -> Option<()> {
        tokio::select! {
            news = self.news.next() => if news.is_some() {
                return Some(());
            },
            () = self.side.made_after(self.made) => {}
        }
        // Whoever breaks the connection again and again must not make others look all the time.
        if let Some(woken) = self.woken {
            tokio::time::sleep_until(woken + WAKE_AFTER).await;
        }
        self.woken = Some(Instant::now());
        // A living client subscribes again by itself; where the subscription ended, it has died.
        let side = self.from.client().await.ok()?;
        if !side.is(&self.side) {
            self.news = side.client.subscribe(self.subject.clone()).await.ok()?;
        }
        (self.made, self.side) = (side.made(), side);
        Some(())
    }
}

/// Waits until the server has read everything that was sent over a connection. Whether it has.
async fn settle(client: &Client) -> bool {
    let inbox = client.new_inbox();
    let Ok(mut own) = client.subscribe(inbox.clone()).await else { return false };
    client.publish(inbox, Bytes::new()).await.is_ok() && own.next().await.is_some()
}

/// The revisions of tasks that this process wrote a moment ago.
///
/// A leader that has been partitioned from the others still considers itself leader for a few seconds and answers with
/// stale records; so a record that is older than what was written here is ignored.
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
    /// A replica may lag behind: the leader is asked.
    pub(crate) async fn task(&self, key: &str) -> Result<Option<Kept>, ReadError> {
        let found = self.last_of(key).await?;
        let revision = found.as_ref().map_or(0, |found| found.sequence);
        if self.written.is_older(key, revision) {
            let why = format!("task {key} was answered with an older state than the one written before; asking again");
            return Err(ReadError::new(StreamKind::Tasks, why));
        }
        let found = found.filter(Self::is_task);
        Ok(found.map(|found| Kept { value: found.payload, revision: found.sequence }))
    }

    async fn last_of(&self, key: &str) -> Result<Option<StoredMessage>, ReadError> {
        let (name, successor) = (self.tasks_stream(), self.successor());
        let client = &successor.as_ref().unwrap_or(self).client;
        let found = raw::get(client, &name, Which::last(&self.task_subject(key))).await;
        let found = found.map_err(|reason| ReadError::new(StreamKind::Tasks, reason))?;
        Ok(found.map(|found| found.into_stored(&self.names)))
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
                if self.replicas > 1 || self.is_ready().is_none_or(|ready| ready.replicated) {
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
        Ok(found.map_or((None, 0), |found| (Self::is_task(&found).then(|| found.payload.clone()), found.sequence)))
    }

    /// The next values at or after a sequence, at most so many and so many bytes, in the order in which they were
    /// written, and whether there may be more.
    pub(crate) async fn tasks_from(
        &self,
        sequence: u64,
        most: usize,
        most_bytes: usize,
    ) -> Result<(Vec<StoredMessage>, bool), ReadError> {
        // In one page, over the connection that such a page may end; where it did, message by message.
        match self.side.client().await {
            Ok(side) => {
                let page = self.task_page(&side.client, sequence, most, most_bytes);
                let page = tokio::select! {
                    page = tokio::time::timeout(PAGE_WITHIN, page) => page.ok(),
                    () = side.lost() => None,
                };
                if let Some(Ok(found)) = page {
                    return Ok(found);
                }
            }
            Err(error) => tracing::debug!("No second connection for a page of tasks: {error}"),
        }
        let reading = self.tasks_one_by_one(sequence, most, most_bytes);
        let found = tokio::time::timeout(PAGE_WITHIN, reading).await;
        found.map_err(|_| ReadError::new(StreamKind::Tasks, "NATS does not answer"))?
    }

    async fn task_page(
        &self,
        client: &Client,
        sequence: u64,
        most: usize,
        most_bytes: usize,
    ) -> Result<(Vec<StoredMessage>, bool), ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::new(StreamKind::Tasks, error);
        let stream = jetstream::new(client.clone()).get_stream_no_info(self.tasks_stream()).await;
        let stream = stream.map_err(|error| failed(&error))?;
        let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) };
        let place = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            inactive_threshold: ABANDONED_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(place).await.map_err(|error| failed(&error))?;
        // One value is never larger than a message; less would end a page before its first.
        let most_bytes = most_bytes.max(self.max_payload() + PULL_OVERHEAD);
        let page = consumer.fetch().max_messages(most).max_bytes(most_bytes).messages().await;
        let (mut page, mut found, mut pending) = (page.map_err(|error| failed(&error))?, Vec::new(), 0);
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
        // If this fails, the server forgets the place by itself.
        drop(stream.delete_consumer(&consumer.cached_info().name).await);
        Ok((found, pending > 0))
    }

    /// The same without a consumer. What the client library cannot read is removed, so that the next page holds.
    async fn tasks_one_by_one(
        &self,
        sequence: u64,
        most: usize,
        most_bytes: usize,
    ) -> Result<(Vec<StoredMessage>, bool), ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::new(StreamKind::Tasks, error);
        let (name, every) = (self.tasks_stream(), self.task_subject(">"));
        let (mut records, mut from, mut bytes, mut more) = (Vec::new(), sequence, 0, true);
        while records.len() < most && bytes < most_bytes && more {
            match raw::get(&self.client, &name, Which::next(&every, from)).await.map_err(|error| failed(&error))? {
                Some(record) => {
                    (from, bytes) = (record.sequence + 1, bytes + record.payload.len());
                    records.push(record);
                }
                None => more = false,
            }
        }
        let verdicts = unreadable::watchable(&self.client, &name, &records).await.map_err(|error| failed(&error))?;
        let stream = self.jetstream.get_stream_no_info(&name).await.map_err(|error| failed(&error))?;
        let mut found = Vec::with_capacity(records.len());
        for (record, readable) in records.into_iter().zip(verdicts) {
            if readable {
                found.push(record.into_stored(&self.names));
            } else {
                if bucket::remove_record(&stream, &name, &record).await {
                    self.counts.task_record_removed();
                }
            }
        }
        Ok((found, more))
    }

    /// Whether what was read from the bucket is a value, and no sign that one was removed or has ended.
    pub(crate) fn is_task(found: &StoredMessage) -> bool {
        bucket::is_value(&found.headers)
    }

    /// Listens to a subject. What is published from now on comes, or the word that something may have been missed.
    ///
    /// Agents may publish there, so it is another connection than the one over which the role publishes.
    pub(crate) async fn listen(&self, subject: &str) -> Result<News, ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::new(StreamKind::Tasks, error);
        let subject = self.names.subject(subject);
        let side = self.side.client().await.map_err(|error| failed(&error))?;
        let news = side.client.subscribe(subject.clone()).await.map_err(|error| failed(&error))?;
        // A read that follows goes over another connection: it has to find the subscription at the server.
        let settled = tokio::time::timeout(SETTLE_WITHIN, settle(&side.client)).await;
        if !settled.is_ok_and(|settled| settled) {
            return Err(failed(&"the subscription connection is not established yet; retry"));
        }
        Ok(News { subject, news, made: side.made(), side, from: self.side.clone(), woken: None })
    }

    fn tasks_stream(&self) -> String {
        format!("KV_{}", self.names.tasks_bucket())
    }

    fn task_subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.names.tasks_bucket())
    }
}
