//! From a verified webhook to stored events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tokio::time::Instant;

use super::publisher::Publisher;
use super::source::Source;
use crate::broker::{Outgoing, PublishError, Stored};
use crate::event::cloud_event::CloudEvent;
use crate::event::headers::Headers;
use crate::event::place::Scope;
use crate::event::{Place, Request, id, subject, trace};
use crate::signature::Rejection;
use crate::signature::profile::Batch;

/// What must be left of the time for another try.
const LAST_TRY: Duration = Duration::from_millis(20);
/// How many items of one batch are on their way to the stream at once.
const IN_FLIGHT: usize = 64;

/// A verified webhook on its way to the stream, or one item of it.
pub(super) struct Event {
    pub(super) id: String,
    outgoing: Arc<Outgoing>,
}

/// What a webhook is made into.
pub(super) struct Events {
    /// The id that the sender is told.
    pub(super) id: String,
    /// One event, or one per item.
    pub(super) events: Vec<Event>,
    /// Whether the body was taken apart.
    pub(super) split: bool,
    /// How many events the source does not want.
    pub(super) filtered: usize,
}

/// Why no events can be made of a webhook.
#[derive(Debug)]
pub(super) enum Unnamed {
    /// The list in the body has more items than are taken apart.
    TooManyItems,
    /// The delivery id is not one.
    Id(Rejection),
}

/// Names everything that a webhook is made into, and leaves out what the source does not want.
pub(super) fn events(
    source: &Source,
    request: &Request<'_>,
    body: &Bytes,
    now: SystemTime,
    trace: &trace::Context,
) -> Result<Events, Unnamed> {
    let provided = source.provider_id(request).map_err(Unnamed::Id)?;
    let event_type = source.event_type(request);
    let named = |id: String, event_type: Option<String>, payload: Bytes, content_type: Option<&str>| {
        Event::new(source, request.headers, id, event_type, payload, content_type, now, trace)
    };
    let batch = source.profile.batch.as_ref().filter(|_| source.split);
    let items = batch.and_then(|batch| Some((batch, list(batch, body)?)));
    let Some((batch, items)) = items else {
        // What has no list is one event, as without `split`.
        let id = provided.unwrap_or_else(|| source.recent.id(body, now));
        let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let wanted = source.wants(event_type.as_deref());
        let events = if wanted { vec![named(id.clone(), event_type, body.clone(), content_type)] } else { Vec::new() };
        return Ok(Events { id, filtered: usize::from(!wanted), events, split: false });
    };
    let items = items?;
    let mut equals = HashMap::new();
    let mut made = Events { id: String::new(), events: Vec::with_capacity(items.len()), split: true, filtered: 0 };
    for (position, item) in items.into_iter().enumerate() {
        let scope = Scope { item: Some(item), ..Scope::of(request) };
        let own_type = batch.event_type.as_ref().and_then(|own| own.event_type(scope)).or_else(|| event_type.clone());
        let own_id = batch.id.as_ref().and_then(|own| id::provider(&own.id(scope).ok()??));
        let of_whole = || provided.as_ref().map(|whole| format!("{whole}.{position}"));
        let id = own_id.or_else(of_whole).unwrap_or_else(|| numbered(source.recent.id(item, now), &mut equals));
        if !source.wants(own_type.as_deref()) {
            made.filtered += 1;
            continue;
        }
        made.events.push(named(id, own_type, body.slice_ref(item), Some("application/json")));
    }
    made.id = provided.or_else(|| Some(made.events.first()?.id.clone())).unwrap_or_else(|| source.recent.id(body, now));
    Ok(made)
}

/// Equal items without an id are different events when they came in one batch: nobody repeats himself there.
fn numbered(id: String, equals: &mut HashMap<String, usize>) -> String {
    let before = equals.entry(id.clone()).or_default();
    *before += 1;
    if *before == 1 { id } else { format!("{id}.{before}") }
}

fn list<'a>(batch: &Batch, body: &'a [u8]) -> Option<Result<Vec<&'a [u8]>, Unnamed>> {
    let Place::Json(pointer) = &batch.items else { return None };
    Some(pointer.items(body)?.map_err(|_| Unnamed::TooManyItems))
}

impl Event {
    #[expect(clippy::too_many_arguments, reason = "every part of a message, once, in one place")]
    fn new(
        source: &Source,
        request: &HeaderMap,
        id: String,
        event_type: Option<String>,
        payload: Bytes,
        content_type: Option<&str>,
        received: SystemTime,
        trace: &trace::Context,
    ) -> Self {
        let attributes = CloudEvent {
            id: &id,
            source: &format!("/hooks/{}", source.name),
            event_type: event_type.as_deref(),
            received,
            content_type,
        };
        let mut headers = attributes.headers(trace);
        pass_on(source, request, &mut headers);
        let subject = subject::event(&source.name, event_type.as_deref());
        let message_id = Some(format!("{}:{id}", source.name));
        Self { id, outgoing: Arc::new(Outgoing { subject, headers, payload, message_id }) }
    }

    /// The bytes of the message, headers and id included.
    pub(super) fn wire_bytes(&self) -> usize {
        self.outgoing.wire_bytes()
    }

    /// Publishes until confirmed or out of time.
    ///
    /// A publish that was not confirmed is ambiguous: it is published again with the same id, and then the stream's
    /// answer `duplicate` may mean our own first try, so it is not passed on.
    async fn store(&self, publisher: &Publisher, deadline: Instant) -> Result<Stored, PublishError> {
        let begun = Instant::now();
        let half = begun + deadline.saturating_duration_since(begun) / 2;
        let mut tried = publisher.publish(&self.outgoing, half, deadline).await;
        let mut is_ambiguous = false;
        loop {
            match &tried {
                Err(PublishError::Unconfirmed) => is_ambiguous = true,
                // Nobody can have taken it.
                Err(PublishError::NotReady(_) | PublishError::NoStream(_)) => {}
                Ok(stored) => return Ok(Stored { duplicate: stored.duplicate && !is_ambiguous, ..*stored }),
                Err(_) => return tried,
            }
            // A connection that breaks says so long before the time is over.
            if Instant::now() + LAST_TRY >= deadline {
                return tried;
            }
            tried = publisher.alone(&self.outgoing, deadline).await;
        }
    }
}

impl Events {
    /// Stores all of them; says whether all were there before.
    ///
    /// If one is not confirmed, the sender comes again with all, and those that are there are recognised by
    /// their ids.
    pub(super) async fn store(&self, publisher: &Publisher, within: Duration) -> Result<bool, PublishError> {
        let deadline = Instant::now() + within;
        if let [event] = &self.events[..] {
            return Ok(event.store(publisher, deadline).await?.duplicate);
        }
        let storing: Vec<_> = self.events.iter().map(|event| event.store(publisher, deadline)).collect();
        let mut stored = stream::iter(storing).buffer_unordered(IN_FLIGHT);
        let mut duplicate = !self.events.is_empty();
        while let Some(stored) = stored.next().await {
            duplicate &= stored?.duplicate;
        }
        Ok(duplicate)
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
