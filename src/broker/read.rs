//! Reading single messages out of streams, and taking them out.

use std::time::SystemTime;

use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;

use super::raw::{self, Which};
use super::{Broker, Names, Problem, Visitor};
use crate::config::StreamKind;
use crate::event::Headers;

/// A message as it stands in its stream.
#[derive(Clone, Debug)]
pub(crate) struct StoredMessage {
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored: SystemTime,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

/// What a stream holds, and what it can hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) stream: StreamKind,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) max_messages: Option<u64>,
    pub(crate) max_bytes: Option<u64>,
}

/// Where a stream ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// The last sequence that it gave.
    pub(crate) last: u64,
    /// When it stored the last message; long ago where it never had one.
    pub(crate) last_stored: SystemTime,
}

/// The server did not answer the question.
#[derive(Debug, thiserror::Error)]
#[error("reading from {stream} failed: {reason}")]
pub(crate) struct ReadError {
    stream: StreamKind,
    reason: String,
}

impl ReadError {
    pub(super) fn new(stream: StreamKind, reason: impl ToString) -> Self {
        Self { stream, reason: reason.to_string() }
    }
}

impl Broker {
    /// The message at a sequence, or `None` when the stream no longer, or not yet, has it.
    ///
    /// By the leader's word: a replica may lag behind and not know a young message yet. And through the JSON API: the
    /// answer to a direct get is the stored header block with more headers behind it, which the library may take for
    /// a status, or not read at all, even where it reads the message as it is delivered.
    pub(crate) async fn message(&self, kind: StreamKind, sequence: u64) -> Result<Option<StoredMessage>, ReadError> {
        self.read_raw(kind, Which::at(sequence)).await
    }

    /// The last message on a subject, as the stream's leader knows it.
    ///
    /// Others may publish there: what is not readable must not cost the connection, so it is not read directly.
    pub(crate) async fn last(&self, kind: StreamKind, subject: &str) -> Result<Option<StoredMessage>, ReadError> {
        self.read_raw(kind, Which::last(&self.names.subject(subject))).await
    }

    /// The first message at or after a sequence whose subject matches.
    pub(crate) async fn next(
        &self,
        kind: StreamKind,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredMessage>, ReadError> {
        self.read_raw(kind, Which::next(&self.names.subject(subject), from)).await
    }

    pub(super) async fn read_raw(
        &self,
        kind: StreamKind,
        which: Which<'_>,
    ) -> Result<Option<StoredMessage>, ReadError> {
        let successor = self.successor();
        read_raw(&successor.as_ref().unwrap_or(self).client, &self.names, kind, which).await
    }

    /// The first and the last sequence that the stream has.
    pub(crate) async fn span(&self, kind: StreamKind) -> Result<(u64, u64), ReadError> {
        let info = self.stream(kind).await?.get_info().await.map_err(|error| ReadError::new(kind, error))?;
        Ok((info.state.first_sequence, info.state.last_sequence))
    }

    /// Where the stream ends, by its leader's word.
    pub(crate) async fn extent(&self, kind: StreamKind) -> Result<Extent, ReadError> {
        let info = self.stream(kind).await?.get_info().await.map_err(|error| ReadError::new(kind, error))?;
        Ok(Extent { last: info.state.last_sequence, last_stored: info.state.last_timestamp.into() })
    }

    /// How full every stream is.
    pub(crate) async fn fill(&self) -> Result<Vec<Fill>, ReadError> {
        let mut all = Vec::with_capacity(StreamKind::ALL.len());
        for stream in StreamKind::ALL {
            let info = self.stream(stream).await?.get_info().await.map_err(|error| ReadError::new(stream, error))?;
            let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
            all.push(Fill {
                stream,
                messages: info.state.messages,
                bytes: info.state.bytes,
                max_messages: limit(info.config.max_messages),
                max_bytes: limit(info.config.max_bytes),
            });
        }
        Ok(all)
    }

    /// Takes one message out of a stream. `false` when it was not there.
    pub(crate) async fn remove(&self, kind: StreamKind, sequence: u64) -> Result<bool, ReadError> {
        match self.stream(kind).await?.delete_message(sequence).await {
            Ok(removed) => Ok(removed),
            Err(error) if error.to_string().contains("no message found") => Ok(false),
            Err(error) => Err(ReadError::new(kind, error)),
        }
    }

    pub(super) async fn stream(&self, kind: StreamKind) -> Result<Stream<()>, ReadError> {
        let successor = self.successor();
        let stream = successor.as_ref().unwrap_or(self).jetstream.get_stream_no_info(self.names.stream(kind)).await;
        stream.map_err(|error| ReadError::new(kind, error))
    }
}

impl Visitor {
    /// The first message at or after a sequence whose subject matches. A work queue can be looked at only so.
    pub(crate) async fn next(
        &self,
        kind: StreamKind,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredMessage>, ReadError> {
        read_raw(&self.client, &self.names, kind, Which::next(&self.names.subject(subject), from)).await
    }
}

/// Reads a message of a stream in the way that no stored message can break.
pub(super) async fn read_raw(
    client: &Client,
    names: &Names,
    kind: StreamKind,
    which: Which<'_>,
) -> Result<Option<StoredMessage>, ReadError> {
    let found = raw::get(client, &names.stream(kind), which).await;
    Ok(found.map_err(|reason| ReadError::new(kind, reason))?.map(|found| found.into_stored(names)))
}

/// The last sequence of a stream, asked while a connection is being prepared.
pub(super) async fn last_sequence(broker: &Broker, kind: StreamKind) -> Result<u64, Problem> {
    broker.span(kind).await.map(|(_, last)| last).map_err(|error| Problem::NoAnswer(error.to_string()))
}
