//! Looking back at what a stream has kept, on a visit.
//!
//! A stream may hold millions of messages, so they come in pages, and without their bodies.

use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::StreamExt;

use super::read::{is_absent, stored};
use super::{StoredMessage, Visitor, from_nats};
use crate::config::StreamKind;
use crate::event::Headers;

/// How many messages a page has.
const PAGE: usize = 500;
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(30);
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
        let stream = self.jetstream.get_stream_no_info(self.names.stream(kind)).await?;
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(stored(&self.names, message))),
            Err(error) if is_absent(&error.kind()) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("message {sequence} of {kind} cannot be read")),
        }
    }

    /// The last message on a subject.
    pub(crate) async fn last(&self, kind: StreamKind, subject: &str) -> anyhow::Result<Option<StoredMessage>> {
        let stream = self.jetstream.get_stream_no_info(self.names.stream(kind)).await?;
        match stream.get_last_raw_message_by_subject(&self.names.subject(subject)).await {
            Ok(message) => Ok(Some(stored(&self.names, message))),
            Err(error) if is_absent(&error.kind()) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("the last message on {subject} cannot be read")),
        }
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
        let deliver_policy =
            since.map_or(DeliverPolicy::All, |since| DeliverPolicy::ByStartTime { start_time: since.into() });
        let place = pull::Config {
            filter_subject: self.names.subject(subject),
            deliver_policy,
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: ABANDONED_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = stream.create_consumer(place).await?;
        let mut until_last = |glimpse: Glimpse| glimpse.sequence <= last && seen(glimpse);
        let looked = loop {
            match tokio::time::timeout(PAGE_WITHIN, self.page(&consumer, &mut until_last)).await {
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
