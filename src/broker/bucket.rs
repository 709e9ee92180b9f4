//! The bucket of what is said about endpoints.
//!
//! Whoever may write the bucket can put a record there that the client library cannot read. So records are read
//! through the JSON API, changes are followed over a connection of their own, and what cannot be read is removed.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use async_nats::jetstream::stream::Stream;
use async_nats::{Client, jetstream};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::names::ENDPOINTS_STREAM;
use super::raw::{self, Raw, Which};
use super::{Broker, Names, Visitor, from_nats, unreadable};
use crate::event::Headers;

/// How long to wait before watching again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often to compare what was heard with what the bucket has.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The most keys that a visit reads.
const MOST_KEYS: usize = 100_000;
/// Parts of the bucket that are read at once.
const PARTS_AT_ONCE: usize = 16;
/// The fewest sequences of a part, and the most parts.
const PARTS: (u64, u64) = (256, 1024);
/// What the description of a courier's watch begins with; the name of its process follows.
pub(super) const WATCHED_BY: &str = "hookbridge courier ";
/// The header by which a bucket tells a removal from a value.
pub(super) const OPERATION: &str = "KV-Operation";
/// The header by which the server tells that a value has ended.
pub(super) const MARKER: &str = "Nats-Marker-Reason";

/// The bucket did not take it, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("bucket of endpoints: {0}")]
pub(crate) struct BucketError(String);

/// Where a watch has got to.
#[derive(Default)]
struct Place {
    /// When the bucket was made that it is in.
    created: Option<SystemTime>,
    /// The first sequence that was not read.
    next: u64,
}

fn failed(error: &dyn std::fmt::Display) -> BucketError {
    BucketError(error.to_string())
}

async fn open(jetstream: &jetstream::Context, names: &Names) -> Result<Store, BucketError> {
    jetstream.get_key_value(names.endpoints_bucket()).await.map_err(|error| failed(&error))
}

/// The stream under a bucket.
fn stream_of(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Whether headers are those of a value, and no sign that one was removed or has ended.
pub(super) fn is_value(headers: &Headers) -> bool {
    headers.get(OPERATION).is_none() && headers.get(MARKER).is_none()
}

/// A part of the list of a stream's consumers.
#[derive(Deserialize)]
struct Listed {
    total: u64,
    #[serde(default)]
    consumers: Vec<Watch>,
    /// Those that did not answer.
    #[serde(default)]
    missing: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Watch {
    config: WatchConfig,
}

#[derive(Deserialize)]
struct WatchConfig {
    description: Option<String>,
}

impl Listed {
    /// How many of this process are listed; none where there is another, or one that is not known.
    fn own(&self, process: &str) -> Option<u64> {
        let is_own = |watch: &Watch| watch.config.description.as_deref() == Some(process);
        let all_own = self.missing.as_ref().is_none_or(Vec::is_empty) && self.consumers.iter().all(is_own);
        all_own.then_some(self.consumers.len() as u64)
    }
}

/// Whether no other courier watches the bucket, or has in the last half minute. Where the list of who watches is not
/// complete, there may be one.
pub(super) async fn is_alone(client: &Client, names: &Names, process: &str) -> bool {
    let subject = format!("$JS.API.CONSUMER.LIST.{}", stream_of(&names.endpoints_bucket()));
    let mut known = 0;
    loop {
        let answer = client.request(subject.clone(), format!(r#"{{"offset":{known}}}"#).into()).await;
        // An error has no total.
        let listed = answer.ok().and_then(|answer| serde_json::from_slice::<Listed>(&answer.payload).ok());
        let Some((listed, own)) = listed.and_then(|listed| listed.own(process).map(|own| (listed, own))) else {
            return false;
        };
        known += own;
        if known >= listed.total || own == 0 {
            return known == listed.total;
        }
    }
}

/// The parts in which sequences are read, in their order.
fn parts(from: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
    let (fewest, most) = PARTS;
    let length = (last.saturating_add(1).saturating_sub(from)).div_ceil(most).max(fewest);
    let begins = (from..=last).step_by(usize::try_from(length).unwrap_or(usize::MAX));
    begins.map(move |begin| (begin, last.min(begin.saturating_add(length - 1))))
}

/// The records whose sequences are in a part.
async fn part(client: &Client, stream: &str, filter: &str, (from, to): (u64, u64)) -> Result<Vec<Raw>, BucketError> {
    let (mut found, mut next) = (Vec::new(), from);
    while next <= to {
        match raw::get(client, stream, Which::next(filter, next)).await.map_err(|error| failed(&error))? {
            Some(raw) if raw.sequence <= to => {
                next = raw.sequence + 1;
                found.push(raw);
            }
            _ => break,
        }
    }
    Ok(found)
}

/// Removes a record that the client library cannot read. Whether it was there.
///
/// A bucket's stream lets nobody delete single messages, but purge one subject up to a place.
pub(super) async fn remove_record<I>(stream: &Stream<I>, name: &str, record: &Raw) -> bool {
    let purged = stream.purge().sequence(record.sequence + 1).filter(&record.subject).await;
    match purged {
        Ok(purged) if purged.purged > 0 => tracing::warn!(
            nats.stream = name,
            nats.subject = record.subject,
            nats.sequence = record.sequence,
            "Removed record {} from {name}: the NATS client library cannot read it",
            record.sequence
        ),
        Ok(_) => return false,
        Err(error) => {
            tracing::warn!(
                nats.stream = name,
                nats.subject = record.subject,
                nats.sequence = record.sequence,
                "Cannot remove record {} from {name}, which the NATS client library cannot read: {error}",
                record.sequence
            );
            return false;
        }
    }
    true
}

impl Broker {
    /// Writes a key.
    pub(crate) async fn put_endpoint(&self, key: &str, value: Bytes) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        store.put(key, value).await.map(drop).map_err(|error| failed(&error))
    }

    /// The value of a key by the leader's answer, if it has one.
    pub(crate) async fn endpoint_record(&self, key: &str) -> Result<Option<Bytes>, BucketError> {
        let bucket = self.names.endpoints_bucket();
        let found = raw::get(&self.client, &stream_of(&bucket), Which::last(&format!("$KV.{bucket}.{key}"))).await;
        let found = found.map_err(|error| failed(&error))?;
        Ok(found.filter(|found| is_value(&raw::headers(&found.headers))).map(|found| found.payload))
    }

    /// Removes a key.
    pub(crate) async fn remove_endpoint(&self, key: &str) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        store.purge(key).await.map(drop).map_err(|error| failed(&error))
    }

    /// Removes a key, and what removing leaves: a key that nobody writes again would leave it for ever. Who does not
    /// hear of it in time takes the key for there.
    pub(crate) async fn forget_endpoint(&self, key: &str) -> Result<(), BucketError> {
        self.remove_endpoint(key).await?;
        let store = open(&self.jetstream, &self.names).await?;
        let bucket = self.names.endpoints_bucket();
        let subject = format!("$KV.{bucket}.{key}");
        let left = raw::get(&self.client, &stream_of(&bucket), Which::last(&subject)).await;
        let left = left.map_err(|error| failed(&error))?;
        if let Some(left) = left.filter(|left| !is_value(&raw::headers(&left.headers))) {
            // A bucket's stream lets nobody delete single messages, but purge one subject up to a place.
            let purged = store.stream.purge().sequence(left.sequence + 1).filter(subject).await;
            purged.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Removes a key, and what removing leaves, if its value is `over`. Who writes it meanwhile is not in the way.
    pub(crate) async fn forget_endpoint_if(&self, key: &str, over: impl Fn(&[u8]) -> bool) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        let bucket = self.names.endpoints_bucket();
        let subject = format!("$KV.{bucket}.{key}");
        let last = async || {
            let found = raw::get(&self.client, &stream_of(&bucket), Which::last(&subject)).await;
            found.map_err(|error| failed(&error))
        };
        let Some(found) = last().await? else { return Ok(()) };
        if is_value(&raw::headers(&found.headers)) {
            if !over(&found.payload) {
                return Ok(());
            }
            let purged = store.purge_expect_revision(key, Some(found.sequence)).await;
            purged.map_err(|error| failed(&error))?;
        }
        if let Some(left) = last().await?.filter(|left| !is_value(&raw::headers(&left.headers))) {
            let purged = store.stream.purge().sequence(left.sequence + 1).filter(&subject).await;
            purged.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Calls `found` for every key there is now.
    pub(crate) async fn read_endpoints(&self, found: impl Fn(&str, &[u8])) -> Result<(), BucketError> {
        let found = |key: &str, value: Option<&[u8]>| {
            if let Some(value) = value {
                found(key, value);
            }
        };
        // The watch that follows needs the second connection: it is made meanwhile.
        drop(self.side.client().await);
        self.read_records(&mut Place::default(), &found).await
    }

    /// Calls `changed` for every key there is and for every change, until stopped; `None` is a removed one.
    /// Begins anew with every connection of the role; one that only this watch has lost it goes on after.
    pub(crate) async fn watch_endpoints(&self, stop: &CancellationToken, changed: impl Fn(&str, Option<&[u8]>)) {
        let (mut place, mut connection) = (Place::default(), None);
        while !stop.is_cancelled() {
            let Some(Some(ready)) = stop.run_until_cancelled(self.ready()).await else { return };
            if connection.replace(ready.connection) != Some(ready.connection) {
                place = Place::default();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.lost(ready.connection) => continue,
                ended = self.follow_endpoints(&mut place, &changed) => {
                    if let Err(error) = ended {
                        tracing::debug!("Watching the bucket of endpoints ended: {error}");
                    }
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
        }
    }

    async fn follow_endpoints(
        &self,
        place: &mut Place,
        changed: &impl Fn(&str, Option<&[u8]>),
    ) -> Result<(), BucketError> {
        let side = self.side.client().await.map_err(|error| failed(&error))?;
        let lost = side.lost();
        // What ended the last watch may be a record that cannot be read; here it can be, and is removed.
        self.read_records(place, changed).await?;
        let following = self.follow_changes(&side.client, place, changed);
        tokio::select! {
            ended = following => ended,
            () = lost => Err(failed(&"the connection was lost")),
        }
    }

    async fn follow_changes(
        &self,
        client: &Client,
        place: &mut Place,
        changed: &impl Fn(&str, Option<&[u8]>),
    ) -> Result<(), BucketError> {
        let bucket = self.names.endpoints_bucket();
        let stream = jetstream::new(client.clone()).get_stream_no_info(stream_of(&bucket)).await;
        let prefix = format!("$KV.{bucket}.");
        let watch = push::OrderedConfig {
            deliver_subject: client.new_inbox(),
            description: self.burial.as_ref().map(|burial| burial.process.to_string()),
            filter_subject: format!("{prefix}>"),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: place.next.max(1) },
            ..push::OrderedConfig::default()
        };
        let watch = stream.map_err(|error| failed(&error))?.create_consumer(watch).await;
        let messages = watch.map_err(|error| failed(&error))?.messages().await;
        let mut messages = messages.map_err(|error| failed(&error))?;
        let (name, all) = (stream_of(&bucket), format!("{prefix}>"));
        let (mut pace, mut expected) = (tokio::time::interval(LOOK_EVERY), 0);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                biased;
                message = messages.next() => message,
                _ = pace.tick() => {
                    // The library keeps to itself what looks like a status of the server, and begins anew before it,
                    // again and again.
                    if place.next <= expected {
                        return Err(failed(&format!("record {} did not arrive", place.next)));
                    }
                    // What was purged meanwhile need not arrive.
                    if let Ok(last) = raw::get(&self.client, &name, Which::last(&all)).await {
                        expected = last.map_or(0, |last| last.sequence);
                    }
                    continue;
                }
            };
            let Some(message) = message else { return Ok(()) };
            let message = message.map_err(|error| failed(&error))?;
            let sequence = message.info().map_err(|error| failed(&error))?.stream_sequence;
            let headers = message.headers.as_ref().map(from_nats).unwrap_or_default();
            if let Some(key) = message.subject.strip_prefix(&prefix) {
                changed(key, is_value(&headers).then_some(&message.payload[..]));
            }
            place.next = sequence + 1;
        }
    }

    /// Calls `found` for every record from a place on, `None` for a removed one, and removes what the client library
    /// cannot read.
    async fn read_records(&self, place: &mut Place, found: &impl Fn(&str, Option<&[u8]>)) -> Result<(), BucketError> {
        let bucket = self.names.endpoints_bucket();
        let (name, prefix) = (stream_of(&bucket), format!("$KV.{bucket}."));
        let stream = self.jetstream.get_stream(&name).await.map_err(|error| failed(&error))?;
        let info = stream.cached_info();
        let created = Some(info.created.into());
        // A bucket that was made again, or emptied, counts anew.
        if place.created != created || place.next > info.state.last_sequence.saturating_add(1) {
            *place = Place { created, next: 0 };
        }
        let (from, last) = (place.next.max(info.state.first_sequence), info.state.last_sequence);
        let filter = format!("{prefix}>");
        let reading =
            futures_util::stream::iter(parts(from, last)).map(|range| part(&self.client, &name, &filter, range));
        let mut reading = std::pin::pin!(reading.buffered(PARTS_AT_ONCE));
        while let Some(records) = reading.next().await {
            let records = records?;
            let verdicts = unreadable::watchable(&self.client, &name, &records).await;
            for (record, readable) in records.iter().zip(verdicts.map_err(|error| failed(&error))?) {
                if !readable {
                    if remove_record(&stream, &name, record).await
                        && let Some(burial) = &self.burial
                    {
                        burial.bury.removed_record(ENDPOINTS_STREAM);
                    }
                } else if let Some(key) = record.subject.strip_prefix(&prefix) {
                    found(key, is_value(&raw::headers(&record.headers)).then_some(&record.payload[..]));
                }
                place.next = record.sequence + 1;
            }
        }
        place.next = place.next.max(last.saturating_add(1));
        Ok(())
    }
}

impl Visitor {
    /// A key's value, and its revision; 0 for a key that is not there.
    pub(crate) async fn endpoint_key(&self, key: &str) -> Result<(Option<Bytes>, u64), BucketError> {
        let bucket = self.names.endpoints_bucket();
        let subject = format!("$KV.{bucket}.{key}");
        let found = raw::get(&self.client, &stream_of(&bucket), Which::last(&subject)).await;
        Ok(found.map_err(|error| failed(&error))?.map_or((None, 0), |found| {
            (is_value(&raw::headers(&found.headers)).then_some(found.payload), found.sequence)
        }))
    }

    /// Writes a key whose revision is this one. `false`: somebody else wrote it meanwhile.
    pub(crate) async fn write_endpoint_key(&self, key: &str, value: Bytes, revision: u64) -> Result<bool, BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        match store.update(key, value, revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Every key and its value.
    pub(crate) async fn endpoint_keys(&self) -> Result<Vec<(String, Bytes)>, BucketError> {
        let bucket = self.names.endpoints_bucket();
        let (name, prefix) = (stream_of(&bucket), format!("$KV.{bucket}."));
        let stream = self.jetstream.get_stream(&name).await.map_err(|error| failed(&error))?;
        let state = &stream.cached_info().state;
        let filter = format!("{prefix}>");
        let reading = futures_util::stream::iter(parts(state.first_sequence, state.last_sequence))
            .map(|range| part(&self.client, &name, &filter, range));
        let mut reading = std::pin::pin!(reading.buffered(PARTS_AT_ONCE));
        let mut all = Vec::new();
        while let Some(records) = reading.next().await {
            for record in records? {
                if is_value(&raw::headers(&record.headers))
                    && let Some(key) = record.subject.strip_prefix(&prefix)
                    && all.len() < MOST_KEYS
                {
                    all.push((key.to_owned(), record.payload));
                }
            }
        }
        all.sort();
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_is_known_only_from_a_complete_list() {
        let own = |listed: &str| serde_json::from_str::<Listed>(listed).ok()?.own("me");
        let me = r#"{"name":"a","config":{"description":"me"}}"#;
        assert_eq!(own(&format!(r#"{{"total":1,"consumers":[{me}]}}"#)), Some(1));
        assert_eq!(own(r#"{"total":0,"consumers":[],"missing":[]}"#), Some(0));
        assert_eq!(own(&format!(r#"{{"total":2,"consumers":[{me}],"missing":["b"]}}"#)), None);
        assert_eq!(own(&format!(r#"{{"total":2,"consumers":[{me},{{"config":{{}}}}]}}"#)), None);
        assert_eq!(own(r#"{"error":{"code":503,"description":"unavailable"}}"#), None);
    }

    #[test]
    fn parts_cover_every_sequence_once_and_are_not_too_many() {
        assert_eq!(parts(5, 4).count(), 0);
        assert_eq!(parts(1, 1).collect::<Vec<_>>(), [(1, 1)]);
        assert_eq!(parts(1, 300).collect::<Vec<_>>(), [(1, 256), (257, 300)]);
        let many: Vec<_> = parts(7, 10_000_000).collect();
        assert!(many.len() <= 1024);
        assert!(many.windows(2).all(|two| two[0].1 + 1 == two[1].0));
        assert_eq!((many[0].0, many[many.len() - 1].1), (7, 10_000_000));
    }
}
