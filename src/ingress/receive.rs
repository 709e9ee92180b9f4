//! Receiving a webhook: cheap checks first, each before the next one costs anything.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use ipnet::IpNet;
use tokio::time::Instant;

use super::answer::{Accepted, ReceiveError};
use super::budget::Budget;
use super::peer::Sender;
use super::peer_rate::PeerRate;
use super::publish::Event;
use super::source::{Source, Sources};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, HEADER_ROOM};
use crate::event::place::Parts;
use crate::event::trace;
use crate::listener::Peer;
use crate::telemetry::logs::Seldom;
use crate::telemetry::metrics::{ReasonLabels, RejectionLabels, RequestLabels};
use crate::telemetry::{Metrics, traces};

/// What every request needs.
pub(super) struct Receiver {
    broker: Broker,
    sources: Sources,
    budget: Budget,
    trusted_proxies: Vec<IpNet>,
    peer_rate: Option<PeerRate>,
    limits: Limits,
    clock: Clock,
    metrics: Metrics,
    said_401: Seldom,
    said_503: Seldom,
}

#[derive(Clone, Copy)]
struct Limits {
    body: usize,
    headers: usize,
    body_timeout: Duration,
    request_timeout: Duration,
    publish_timeout: Duration,
}

impl Receiver {
    pub(super) fn new(config: &Config, broker: Broker, sources: Sources, clock: Clock, metrics: Metrics) -> Self {
        let gateway = &config.gateway;
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let limits = Limits {
            body: bytes(gateway.max_body),
            headers: bytes(gateway.max_headers),
            body_timeout: gateway.body_timeout,
            request_timeout: gateway.request_timeout,
            publish_timeout: gateway.publish_timeout,
        };
        let budget = Budget::new(gateway.max_in_flight.as_u64(), metrics.clone());
        let (said_401, said_503) = (Seldom::default(), Seldom::default());
        let (trusted_proxies, peer_rate) = (gateway.trusted_proxies.clone(), gateway.peer_rate.map(PeerRate::new));
        Self { broker, sources, budget, trusted_proxies, peer_rate, limits, clock, metrics, said_401, said_503 }
    }

    /// The largest body that can be taken now: the configured limit, or less where the server takes less.
    fn body_limit(&self) -> usize {
        let room = usize::try_from(HEADER_ROOM).unwrap_or(usize::MAX);
        let max_payload = self.broker.is_ready().map_or(usize::MAX, |ready| ready.max_payload);
        self.limits.body.min(max_payload.saturating_sub(room))
    }
}

/// The path of a hook: a source, and its token where it has one.
#[derive(serde::Deserialize)]
pub(super) struct HookPath {
    source: String,
    token: Option<String>,
}

/// `POST /hooks/{source}`
pub(super) async fn hook(
    State(receiver): State<Arc<Receiver>>,
    path: Result<Path<HookPath>, PathRejection>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let begun = Instant::now();
    let sender = receiver.sender(peer, request.headers());
    // A path that is not UTF-8 names no source either.
    let named = path
        .as_ref()
        .ok()
        .and_then(|Path(path)| receiver.sources.get(&path.source).filter(|source| source.is_at(path.token.as_deref())));
    let Some(source) = named else {
        return receiver.refuse(None, sender, &ReceiveError::NoSource);
    };
    let span = tracing::info_span!(
        target: traces::TARGET,
        "receive webhook",
        otel.kind = "server",
        hookbridge.source = %source.name,
        hookbridge.event = tracing::field::Empty,
        http.response.status_code = tracing::field::Empty,
    );
    // The span is never entered: from then on it could not become a child of the sender's.
    let received = receiver.receive(source, sender, request, begun, &span).await;
    let response = match received {
        Ok(accepted) => {
            if accepted.duplicate {
                source.duplicate.inc()
            } else {
                source.stored.inc()
            };
            receiver.metrics.request_seconds.observe(begun.elapsed().as_secs_f64());
            accepted.into_response()
        }
        Err(error) => {
            receiver.count_reason(source, &error);
            receiver.refuse(Some(source), sender, &error)
        }
    };
    span.record("http.response.status_code", response.status().as_u16());
    response
}

/// Everything that is not a hook.
pub(super) async fn nowhere(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    receiver.refuse(None, receiver.sender(peer, &headers), &ReceiveError::NoSource)
}

impl Receiver {
    async fn receive(
        &self,
        source: &Source,
        sender: Sender,
        request: Request<Body>,
        begun: Instant,
        span: &tracing::Span,
    ) -> Result<Accepted, ReceiveError> {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            return Err(ReceiveError::Method);
        }
        source.limits.admits(sender)?;
        let limit = self.body_limit();
        self.check_size(&head.headers, limit)?;
        let mut encodings = head.headers.get_all(CONTENT_ENCODING).iter();
        if !encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(ReceiveError::ContentEncoding);
        }
        self.check_peer(sender)?;
        let mut held = self.budget.hold();
        let in_time = self.limits.body_timeout.min(self.limits.request_timeout);
        let reading = read(body, limit, |bytes| held.grow(bytes));
        let body = tokio::time::timeout_at(begun + in_time, reading).await.map_err(|_| ReceiveError::TooSlow)??;

        let now = self.clock.now();
        let parts = Parts { headers: &head.headers, query: head.uri.query().unwrap_or_default(), body: &body };
        // Others from the same address may have failed while this body arrived.
        self.check_peer(sender)?;
        source.verify(parts, now)?;
        let _place = source.limits.take()?;
        self.store(source, parts, body.clone(), now, begun, span).await
    }

    async fn store(
        &self,
        source: &Source,
        parts: Parts<'_>,
        body: Bytes,
        now: SystemTime,
        begun: Instant,
        span: &tracing::Span,
    ) -> Result<Accepted, ReceiveError> {
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let trace = traces::continue_from(span, trace::Context::parse(text("traceparent"), text("tracestate")));
        let event = Event::new(source, parts, body, now, &trace);
        span.record("hookbridge.event", event.id.as_str());
        if let Some(ready) = self.broker.is_ready()
            && event.wire_bytes() > ready.max_payload
        {
            return Err(ReceiveError::EventTooLarge { limit: self.body_limit() });
        }
        let left = self.limits.request_timeout.saturating_sub(begun.elapsed());
        let stored = match event.store(&self.broker, self.limits.publish_timeout.min(left)).await {
            Err(crate::broker::PublishError::TooLarge) => {
                return Err(ReceiveError::EventTooLarge { limit: self.body_limit() });
            }
            stored => stored?,
        };
        tracing::debug!(
            source.name = %source.name,
            event.id,
            event.sequence = stored.sequence,
            event.duplicate = stored.duplicate,
            "Stored event {} from {}",
            event.id,
            source.name
        );
        Ok(Accepted { id: event.id, duplicate: stored.duplicate })
    }

    fn sender(&self, peer: Peer, headers: &HeaderMap) -> Sender {
        Sender::of(peer.0.ip(), headers, &self.trusted_proxies)
    }

    /// Whether the sender's address may still send what might prove nothing.
    fn check_peer(&self, sender: Sender) -> Result<(), ReceiveError> {
        self.peer_rate.as_ref().map_or(Ok(()), |rate| rate.check(sender)).map_err(ReceiveError::PeerRate)
    }

    fn check_size(&self, headers: &HeaderMap, limit: usize) -> Result<(), ReceiveError> {
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if bytes > self.limits.headers {
            return Err(ReceiveError::HeadersTooLarge { limit: self.limits.headers });
        }
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|announced| announced > limit as u64) {
            return Err(ReceiveError::BodyTooLarge { limit });
        }
        Ok(())
    }

    /// Counts, charges, logs and answers a webhook that is not taken.
    fn refuse(&self, source: Option<&Source>, sender: Sender, error: &ReceiveError) -> Response {
        self.count(source, error.as_str());
        if let Some(rate) = self.peer_rate.as_ref().filter(|_| error.is_charged()) {
            rate.charge(sender);
        }
        let name = source.map_or("", |source| source.name.as_str());
        // Strangers decide how often these happen; the counters have them all.
        match error {
            ReceiveError::NotStored(cause) => {
                if let Some(more) = self.said_503.pass(self.clock.now()) {
                    tracing::warn!(
                        source.name = name,
                        log.left_out = more,
                        "Answered 503 to {name}: event not stored: {cause}"
                    );
                }
            }
            ReceiveError::Rejected(cause) => {
                if let Some(more) = self.said_401.pass(self.clock.now()) {
                    tracing::info!(source.name = name, log.left_out = more, "Answered 401 to {name}: {cause}");
                }
            }
            other => tracing::debug!(source.name = name, "Answered {} to a webhook: {other}", other.status()),
        }
        error.response()
    }

    fn count_reason(&self, source: &Source, error: &ReceiveError) {
        match error {
            ReceiveError::Rejected(rejection) => {
                let labels = RejectionLabels { source: source.name.to_string(), reason: rejection.as_str() };
                self.metrics.rejections.get_or_create(&labels).inc();
            }
            ReceiveError::NotStored(cause) => {
                self.metrics.unconfirmed.get_or_create(&ReasonLabels { reason: cause.as_str() }).inc();
            }
            _ => {}
        }
    }

    fn count(&self, source: Option<&Source>, outcome: &'static str) {
        let source = source.map(|source| source.name.to_string()).unwrap_or_default();
        self.metrics.requests.get_or_create(&RequestLabels { source, outcome }).inc();
    }
}

/// Reads a body up to its limit. A body in one piece is not copied.
async fn read(mut body: Body, limit: usize, mut grow: impl FnMut(usize) -> bool) -> Result<Bytes, ReceiveError> {
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ReceiveError::BrokenOff)?.into_data() else { continue };
        let before = rest.as_ref().map_or(first.len(), BytesMut::len);
        if before + data.len() > limit {
            return Err(ReceiveError::BodyTooLarge { limit });
        }
        if !grow(data.len()) {
            return Err(ReceiveError::Busy);
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut both = BytesMut::with_capacity((before + data.len()).next_power_of_two().min(limit));
                both.extend_from_slice(&first);
                both.extend_from_slice(&data);
                rest = Some(both);
            }
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}
