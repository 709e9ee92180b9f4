//! From a verified webhook to a stored event.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tokio::time::Instant;

use super::source::Source;
use crate::broker::{Broker, Outgoing, PublishError, Stored};
use crate::event::cloud_event::CloudEvent;
use crate::event::headers::Headers;
use crate::event::place::Parts;
use crate::event::{subject, trace};

/// A verified webhook on its way to the stream.
pub(super) struct Event {
    pub(super) id: String,
    outgoing: Outgoing,
}

impl Event {
    /// Names the event and writes its headers. The body goes on byte for byte.
    pub(super) fn new(source: &Source, parts: Parts<'_>, body: Bytes, now: SystemTime, trace: &trace::Context) -> Self {
        let id = source.provider_id(parts).unwrap_or_else(|| source.recent.id(&body, now));
        let event_type = source.event_type(parts);
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let attributes = CloudEvent {
            id: &id,
            source: &source.name,
            event_type: event_type.as_deref(),
            received: now,
            content_type,
        };
        let mut headers = attributes.headers(trace);
        pass_on(source, parts.headers, &mut headers);
        let subject = subject::event(&source.name, event_type.as_deref());
        let message_id = Some(format!("{}:{id}", source.name));
        Self { id, outgoing: Outgoing { subject, headers, payload: body, message_id } }
    }

    /// The bytes of the message, headers and id included.
    pub(super) fn wire_bytes(&self) -> usize {
        let id = self.outgoing.message_id.as_ref().map_or(0, |id| id.len() + "Nats-Msg-Id: \r\n".len());
        self.outgoing.payload.len() + self.outgoing.headers.wire_bytes() + id
    }

    /// Publishes until confirmed or out of time.
    ///
    /// A publish that was not confirmed is ambiguous: it is published again with the same id, and then the
    /// stream's word `duplicate` may mean our own first try, so it is not passed on.
    pub(super) async fn store(&self, broker: &Broker, within: Duration) -> Result<Stored, PublishError> {
        let deadline = Instant::now() + within;
        match broker.publish(&self.outgoing, within / 2).await {
            Err(PublishError::Unconfirmed) => {}
            other => return other,
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        let stored = broker.publish(&self.outgoing, rest).await?;
        Ok(Stored { duplicate: false, ..stored })
    }
}

/// Adds the allow-listed request headers as `http-<name>`. A value that is not printable ASCII is left out.
fn pass_on(source: &Source, request: &HeaderMap, headers: &mut Headers) {
    for name in &source.headers {
        for value in request.get_all(name) {
            if let Ok(value) = value.to_str()
                && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            {
                headers.push(format!("http-{name}"), value);
            }
        }
    }
}
