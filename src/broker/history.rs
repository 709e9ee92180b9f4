//! Looking back at what a stream has kept, on a visit.
//!
//! A stream may hold millions of messages, so they come in pages, and without their bodies.

use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;

use super::raw::{self, Raw, Which};
use super::read::read_raw;
use super::{StoredMessage, Visitor, from_nats, unreadable};
use crate::config::StreamKind;
use crate::event::Headers;

/// How many messages a page has.
const PAGE: usize = 500;
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(30);
/// How long after a failure it is known whether the connection was lost.
pub(super) const LOSS_SHOWS_WITHIN: Duration = Duration::from_millis(250);
/// How long the server keeps the place in the stream when nobody asks for the next page.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// A stored message without its body.
#[derive(Debug)]
pub(crate) struct Glimpse {
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored: SystemTime,
    pub(crate) headers: Headers,
}

impl Visitor {
    /// The message at a sequence, or `None` when the stream does not have it.
    pub(crate) async fn message(&self, kind: StreamKind, sequence: u64) -> anyhow::Result<Option<StoredMessage>> {
        let read = read_raw(&self.client, &self.names, kind, Which::at(sequence)).await;
        read.with_context(|| format!("message {sequence} of {kind} cannot be read"))
    }

    /// The last message on a subject.
    pub(crate) async fn last(&self, kind: StreamKind, subject: &str) -> anyhow::Result<Option<StoredMessage>> {
        let read = read_raw(&self.client, &self.names, kind, Which::last(&self.names.subject(subject))).await;
        read.with_context(|| format!("the last message on {subject} cannot be read"))
    }

    /// Takes one message out of a stream.
    pub(crate) async fn remove(&self, kind: StreamKind, sequence: u64) -> anyhow::Result<()> {
        let stream = self.jetstream.get_stream_no_info(self.names.stream(kind)).await?;
        let removed = stream.delete_message(sequence).await;
        removed.with_context(|| format!("message {sequence} of {kind} cannot be taken out"))?;
        Ok(())
    }

    /// The first and the last sequence that the stream has; none when it is empty.
    pub(crate) async fn sequences(&self, kind: StreamKind) -> anyhow::Result<Option<(u64, u64)>> {
        let name = self.names.stream(kind);
        let stream = self.jetstream.get_stream(&name).await.with_context(|| format!("stream {name}"))?;
        let state = &stream.cached_info().state;
        Ok((state.messages > 0).then_some((state.first_sequence, state.last_sequence)))
    }

    /// Shows every message on a subject that was stored at `since` or later and is there now, until `seen` returns
    /// `false`.
    pub(crate) async fn look_back(
        &self,
        kind: StreamKind,
        subject: &str,
        since: Option<SystemTime>,
        mut seen: impl FnMut(Glimpse) -> bool,
    ) -> anyhow::Result<()> {
        let name = self.names.stream(kind);
        let stream = self.jetstream.get_stream(&name).await.with_context(|| format!("stream {name}"))?;
        let last = stream.cached_info().state.last_sequence;
        let (subject, mut from) = (self.names.subject(subject), None);
        loop {
            // Over the connection that a page may end. Where it did, the next page is read message by message.
            let side = self.side.client().await.map_err(|error| anyhow!(error))?;
            let mut lost = std::pin::pin!(side.lost());
            let stream = jetstream::new(side.client.clone()).get_stream_no_info(&name).await?;
            let start = (since, from);
            let mut until_last = |glimpse: Glimpse| {
                from = Some(glimpse.sequence + 1);
                glimpse.sequence <= last && seen(glimpse)
            };
            let (looked, is_lost) = tokio::select! {
                looked = self.pages(&stream, &subject, start, &mut until_last) => (looked, false),
                () = &mut lost => (Err(anyhow!("the connection to NATS was lost")), true),
            };
            // A client that has died fails before it is known to have.
            if looked.is_ok() || !(is_lost || tokio::time::timeout(LOSS_SHOWS_WITHIN, lost).await.is_ok()) {
                return looked;
            }
            let (records, next) = self.one_by_one(&name, &subject, from.unwrap_or_default()).await?;
            let verdicts = unreadable::verdicts(&self.client, &name, &records).await?;
            for (record, readable) in records.into_iter().zip(verdicts) {
                let old = since.is_some_and(|since| record.stored < since);
                let record = record.into_stored(&self.names);
                let StoredMessage { subject, sequence, stored, headers, .. } = record;
                if sequence > last || readable && !old && !seen(Glimpse { subject, sequence, stored, headers }) {
                    return Ok(());
                }
            }
            let Some(next) = next else { return Ok(()) };
            from = Some(next);
        }
    }

    /// The next messages on a subject at or after a sequence, as many as a page has, and where to go on; none at the
    /// end.
    pub(super) async fn one_by_one(
        &self,
        stream: &str,
        subject: &str,
        mut from: u64,
    ) -> anyhow::Result<(Vec<Raw>, Option<u64>)> {
        let mut records = Vec::new();
        while records.len() < PAGE {
            let read = raw::get(&self.client, stream, Which::next(subject, from)).await;
            let Some(record) = read.map_err(|error| anyhow!("stream {stream} cannot be read: {error}"))? else {
                return Ok((records, None));
            };
            from = record.sequence + 1;
            records.push(record);
        }
        Ok((records, Some(from)))
    }

    /// Shows every message from a time, or better from a sequence, on.
    async fn pages(
        &self,
        stream: &Stream<()>,
        subject: &str,
        (since, from): (Option<SystemTime>, Option<u64>),
        seen: &mut impl FnMut(Glimpse) -> bool,
    ) -> anyhow::Result<()> {
        let deliver_policy = match (since, from) {
            (_, Some(start_sequence)) => DeliverPolicy::ByStartSequence { start_sequence },
            (Some(since), None) => DeliverPolicy::ByStartTime { start_time: since.into() },
            (None, None) => DeliverPolicy::All,
        };
        let place = pull::Config {
            filter_subject: subject.to_owned(),
            deliver_policy,
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: ABANDONED_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = stream.create_consumer(place).await?;
        let looked = loop {
            match tokio::time::timeout(PAGE_WITHIN, self.page(&consumer, seen)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break Ok(()),
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err(anyhow!("NATS does not answer")),
            }
        };
        // If this fails, the server forgets the place by itself.
        drop(stream.delete_consumer(&consumer.cached_info().name).await);
        looked
    }

    /// Shows one page. Whether there may be more to see.
    async fn page(&self, consumer: &PullConsumer, seen: &mut impl FnMut(Glimpse) -> bool) -> anyhow::Result<bool> {
        let mut page = consumer.fetch().max_messages(PAGE).messages().await?;
        let mut empty = true;
        while let Some(message) = page.next().await {
            let message = message.map_err(|error| anyhow!(error))?;
            empty = false;
            let info = message.info().map_err(|error| anyhow!(error))?;
            let glimpse = Glimpse {
                subject: self.names.strip(&message.subject).to_owned(),
                sequence: info.stream_sequence,
                stored: info.published.into(),
                headers: message.headers.as_ref().map(from_nats).unwrap_or_default(),
            };
            if !seen(glimpse) {
                return Ok(false);
            }
        }
        Ok(!empty)
    }
}
