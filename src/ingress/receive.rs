//! Receiving a webhook: cheap checks first, each before the next one costs anything.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{Extension, RawPathParams, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Request};
use http_body_util::BodyExt;
use ipnet::IpNet;
use tokio::time::Instant;

use super::answer::{Accepted, ReceiveError};
use super::budget::{Budget, Held};
use super::peer::Sender;
use super::peer_rate::PeerRate;
use super::publish::{self, Events, Unnamed};
use super::publisher::Publisher;
use super::quarantine::Quarantine;
use super::shake;
use super::source::{Source, Sources};
use super::{Keys, Parts as Supplies};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, HEADER_ROOM};
use crate::event;
use crate::event::json::MAX_ITEMS;
use crate::event::trace;
use crate::listener::Peer;
use crate::signature::{Genuine, Rejection};
use crate::telemetry::logs::Seldom;
use crate::telemetry::metrics::{ReasonLabels, RejectionLabels, RequestLabels};
use crate::telemetry::{Metrics, traces};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// How long a request waits for newer keys than those that are known and would do.
const REFRESH_WITHIN: Duration = Duration::from_secs(2);

/// What every request needs.
pub(super) struct Receiver {
    pub(super) broker: Broker,
    publisher: Publisher,
    sources: Sources,
    budget: Budget,
    keys: Keys,
    quarantine: Quarantine,
    trusted_proxies: Vec<IpNet>,
    peer_rate: Option<PeerRate>,
    limits: Limits,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
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
    pub(super) fn new(config: &Config, parts: Supplies) -> Self {
        let Supplies { broker, publisher, sources, keys, quarantine, clock, metrics, .. } = parts;
        let gateway = &config.gateway;
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let limits = Limits {
            body: bytes(gateway.max_body),
            headers: bytes(gateway.max_headers),
            body_timeout: gateway.body_timeout,
            request_timeout: gateway.request_timeout,
            publish_timeout: gateway.publish_timeout,
        };
        let budget = Budget::new(gateway.max_in_flight.as_u64(), metrics.body_bytes.clone());
        let (said_401, said_503) = (Seldom::default(), Seldom::default());
        let (trusted_proxies, peer_rate) = (gateway.trusted_proxies.clone(), gateway.peer_rate.map(PeerRate::new));
        Self {
            broker,
            publisher,
            sources,
            budget,
            keys,
            quarantine,
            trusted_proxies,
            peer_rate,
            limits,
            clock,
            metrics,
            said_401,
            said_503,
        }
    }

    /// The largest body that a source can send now: the configured limit, or less where the server takes less.
    fn body_limit(&self, source: &Source) -> usize {
        source.max_body.unwrap_or(self.limits.body).min(self.room())
    }
}

/// `POST /hooks/{source}`
pub(super) async fn hook(
    State(receiver): State<Arc<Receiver>>,
    path: Result<RawPathParams, RawPathParamsRejection>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let begun = Instant::now();
    let sender = receiver.sender(peer, request.headers());
    // A path that is not UTF-8 names no source either.
    let part = |wanted| path.as_ref().ok()?.iter().find(|(name, _)| *name == wanted).map(|(_, part)| part);
    let token = part("token");
    let Some(source) = part("source").and_then(|name| receiver.sources.get(name)).filter(|source| source.is_at(token))
    else {
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
    let arrival = Arrival { source, token, sender, begun, span: &span };
    let received = receiver.receive(arrival, request).await;
    let response = match received {
        Ok(Received::Event(accepted)) => {
            match (accepted.filtered, accepted.duplicate) {
                (true, _) => receiver.count(Some(source), "filtered"),
                (false, true) => drop(source.duplicate.inc()),
                (false, false) => drop(source.stored.inc()),
            }
            receiver.metrics.request_seconds.observe(begun.elapsed().as_secs_f64());
            accepted.response(source.profile.answer.as_ref())
        }
        Ok(Received::Handshake(response)) => {
            receiver.count(Some(source), "handshake");
            response
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

/// What a request turned out to be.
enum Received {
    Event(Accepted),
    Handshake(Response),
}

/// A request on its way through the gateway.
struct Arrival<'a> {
    source: &'a Source,
    /// The path token that it came with.
    token: Option<&'a str>,
    sender: Sender,
    begun: Instant,
    span: &'a tracing::Span,
}

impl Receiver {
    async fn receive(&self, arrival: Arrival<'_>, request: Request<Body>) -> Result<Received, ReceiveError> {
        let Arrival { source, sender, begun, .. } = arrival;
        let (head, body) = request.into_parts();
        if !source.methods.contains(&head.method) {
            return Err(ReceiveError::Method { allowed: source.methods.clone() });
        }
        source.limits.admits(sender)?;
        let limit = self.body_limit(source);
        self.check_size(&head.headers, limit)?;
        let mut encodings = head.headers.get_all(CONTENT_ENCODING).iter();
        if !encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(ReceiveError::ContentEncoding);
        }
        self.check_peer(source, sender)?;
        let (body, _held) = self.body(begun, &head.headers, body, limit).await?;
        // Others from the same address may have failed while this body arrived.
        self.check_peer(source, sender)?;
        let taken = self.take(arrival, &head, &body).await;
        if let Err(ReceiveError::Rejected(why)) = &taken {
            self.quarantine.keep(source, sender, &head, &body, why, self.clock.now());
        }
        taken
    }

    /// Reads a body within its limits. It counts as held until what comes with it is dropped.
    pub(super) async fn body(
        &self,
        begun: Instant,
        headers: &HeaderMap,
        body: Body,
        limit: usize,
    ) -> Result<(Bytes, Held<'_>), ReceiveError> {
        let mut held = self.budget.hold();
        let in_time = self.limits.body_timeout.min(self.limits.request_timeout);
        let reading = read(body, announced(headers), limit, |bytes| held.grow(bytes));
        let body = tokio::time::timeout_at(begun + in_time, reading).await.map_err(|_| ReceiveError::TooSlow)??;
        Ok((body, held))
    }

    /// Decides what a request is, and does it: a handshake, or an event that proves itself.
    async fn take(&self, arrival: Arrival<'_>, head: &Parts, body: &Bytes) -> Result<Received, ReceiveError> {
        let source = arrival.source;
        let (now, endpoint) = (self.clock.now(), source.endpoint(arrival.token));
        let request = event::Request::new(&head.method, &endpoint, head.uri.query(), &head.headers, body);
        if let Some(rule) = source.handshake(&request, false) {
            let reply = source.shake(rule, &request, None, now).map_err(ReceiveError::Handshake)?;
            self.charge(arrival.sender);
            let shaken = shake::act(source, &rule.name, reply, &self.keys.fetcher, now);
            return self.in_time(arrival.begun, shaken).await.map(Received::Handshake);
        }
        if !source.takes_proof_by(&head.method) {
            return Err(ReceiveError::Method { allowed: source.methods.clone() });
        }
        let text = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        if !source.takes_content_type(text(&CONTENT_TYPE)) {
            return Err(ReceiveError::ContentType);
        }
        let genuine = self.in_time(arrival.begun, self.prove(source, &request, now)).await?;
        let _place = source.limits.take()?;
        if let Some(rule) = source.handshake(&request, true) {
            let reply = source.shake(rule, &request, genuine.as_ref(), now).map_err(ReceiveError::Handshake)?;
            let shaken = shake::act(source, &rule.name, reply, &self.keys.fetcher, now);
            return self.in_time(arrival.begun, shaken).await.map(Received::Handshake);
        }
        if !source.takes_events_by(&head.method) {
            return Err(ReceiveError::Method { allowed: source.methods.clone() });
        }
        let sent = trace::Context::parse(text(&TRACEPARENT), text(&TRACESTATE));
        let trace = traces::continue_from(arrival.span, sent);
        let events = publish::events(source, &request, body, now, &trace).map_err(|error| match error {
            Unnamed::TooManyItems => ReceiveError::TooManyItems { limit: MAX_ITEMS },
            Unnamed::Id(rejection) => ReceiveError::Rejected(rejection),
        })?;
        self.store(arrival, events).await.map(Received::Event)
    }

    /// Checks the proof, and fetches the key for it where it stands at an address: once, and once more where the
    /// provider may have a new one since.
    async fn prove(
        &self,
        source: &Source,
        request: &event::Request<'_>,
        now: SystemTime,
    ) -> Result<Option<Genuine>, ReceiveError> {
        for url in source.key_sets() {
            // A key that the provider gave up is forgotten within the hour. If the new set is not to be had now,
            // the old one is better than none; the fetch goes on for those who come later.
            if self.keys.documents.is_old(url.as_str()) {
                let refreshed = tokio::time::timeout(REFRESH_WITHIN, self.keys.documents.fetch(url)).await;
                if !matches!(refreshed, Ok(Ok(_))) {
                    tracing::debug!(source.name = %source.name, "Keys of {} are old: {refreshed:?}", source.name);
                }
            }
        }
        let mut fetched = 0;
        loop {
            let rejection = match source.verify(request, now, &|url| self.keys.documents.known(url)) {
                Ok(genuine) => return Ok(genuine),
                Err(rejection) => rejection,
            };
            let Rejection::Unfetched { url, .. } = &rejection else { return Err(rejection.into()) };
            if fetched == 2 {
                return Err(rejection.into());
            }
            fetched += 1;
            // An address that the request names is the sender's choice, and what it costs is his.
            let ours = source.key_sets().any(|known| known == url);
            let failed = |text| if ours { ReceiveError::NotNow(text) } else { ReceiveError::NoKey(text) };
            self.keys.documents.fetch(url).await.map_err(|error| failed(error.to_string()))?;
        }
    }

    /// What is asked of others must not take longer than the whole request may.
    async fn in_time<T>(
        &self,
        begun: Instant,
        asking: impl Future<Output = Result<T, ReceiveError>>,
    ) -> Result<T, ReceiveError> {
        let answered = tokio::time::timeout_at(begun + self.limits.request_timeout, asking).await;
        answered.unwrap_or_else(|_| Err(ReceiveError::NotNow("others took longer than the request may".to_owned())))
    }

    async fn store(&self, arrival: Arrival<'_>, events: Events) -> Result<Accepted, ReceiveError> {
        let Arrival { source, begun, span, .. } = arrival;
        span.record("hookbridge.event", events.id.as_str());
        let max_payload = self.broker.is_ready().map_or(usize::MAX, |ready| ready.max_payload);
        if events.events.iter().any(|event| event.wire_bytes() > max_payload) {
            return Err(ReceiveError::EventTooLarge { limit: self.body_limit(source) });
        }
        let patience = source.profile.answer_within.map_or(Duration::MAX, |within| within * 4 / 5);
        let left = self.limits.request_timeout.min(patience).saturating_sub(begun.elapsed());
        let duplicate = match events.store(&self.publisher, self.limits.publish_timeout.min(left)).await {
            Err(crate::broker::PublishError::TooLarge) => {
                return Err(ReceiveError::EventTooLarge { limit: self.body_limit(source) });
            }
            stored => stored?,
        };
        tracing::debug!(
            source.name = %source.name,
            event.id = events.id,
            event.count = events.events.len(),
            event.filtered = events.filtered,
            event.duplicate = duplicate,
            "Stored event {} from {}",
            events.id,
            source.name
        );
        let (filtered, count) = (events.events.is_empty() && events.filtered > 0, events.events.len());
        Ok(Accepted { id: events.id, duplicate, events: events.split.then_some(count), filtered })
    }

    pub(super) fn sender(&self, peer: Peer, headers: &HeaderMap) -> Sender {
        Sender::of(peer.0.ip(), headers, &self.trusted_proxies)
    }

    /// Whether the sender's address may still send what might prove nothing.
    fn check_peer(&self, source: &Source, sender: Sender) -> Result<(), ReceiveError> {
        match &self.peer_rate {
            Some(rate) if !source.limits.lists(sender) => rate.check(sender).map_err(ReceiveError::PeerRate),
            _ => Ok(()),
        }
    }

    /// Whether the sender's address may still fail to prove itself.
    pub(super) fn check_stranger(&self, sender: Sender) -> Result<(), ReceiveError> {
        self.peer_rate.as_ref().map_or(Ok(()), |rate| rate.check(sender).map_err(ReceiveError::PeerRate))
    }

    /// The largest message body that can be published now.
    pub(super) fn room(&self) -> usize {
        let room = usize::try_from(HEADER_ROOM).unwrap_or(usize::MAX);
        self.broker.is_ready().map_or(usize::MAX, |ready| ready.max_payload).saturating_sub(room)
    }

    pub(super) fn check_size(&self, headers: &HeaderMap, limit: usize) -> Result<(), ReceiveError> {
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if bytes > self.limits.headers {
            return Err(ReceiveError::HeadersTooLarge { limit: self.limits.headers });
        }
        if announced(headers).is_some_and(|announced| announced > limit) {
            return Err(ReceiveError::BodyTooLarge { limit });
        }
        Ok(())
    }

    /// Charges the sender for a request that proves nothing.
    pub(super) fn charge(&self, sender: Sender) {
        if let Some(rate) = &self.peer_rate {
            rate.charge(sender);
        }
    }

    /// Counts, charges, logs and answers a webhook that is not taken.
    fn refuse(&self, source: Option<&Source>, sender: Sender, error: &ReceiveError) -> Response {
        self.count(source, error.as_str());
        if error.is_charged() {
            self.charge(sender);
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
            ReceiveError::NotNow(cause) | ReceiveError::NoKey(cause) => {
                if let Some(more) = self.said_503.pass(self.clock.now()) {
                    tracing::warn!(source.name = name, log.left_out = more, "Answered 503 to {name}: {cause}");
                }
            }
            other => tracing::debug!(source.name = name, "Answered {} to a webhook: {other}", other.status()),
        }
        error.response(source.and_then(|source| source.profile.answer.as_ref()))
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

/// The length that a request announces.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body up to its limit. A body in one piece is not copied; a larger one is gathered once.
async fn read(
    mut body: Body,
    announced: Option<usize>,
    limit: usize,
    mut grow: impl FnMut(usize) -> bool,
) -> Result<Bytes, ReceiveError> {
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ReceiveError::BrokenOff)?.into_data() else { continue };
        let before = rest.as_ref().map_or(first.len(), BytesMut::len);
        let length = before + data.len();
        if length > limit {
            return Err(ReceiveError::BodyTooLarge { limit });
        }
        if !grow(data.len()) {
            return Err(ReceiveError::Busy);
        }
        match &mut rest {
            Some(rest) => {
                if rest.capacity() < length {
                    rest.reserve(room(length, announced, limit) - before);
                }
                rest.extend_from_slice(&data);
            }
            None if first.is_empty() => first = data,
            None => {
                let mut both = BytesMut::with_capacity(room(length, announced, limit));
                both.extend_from_slice(&first);
                both.extend_from_slice(&data);
                rest = Some(both);
            }
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

/// How much room to make for a body of which so much has arrived: all that is announced once an eighth is there,
/// so that large bodies are gathered in place and announcing alone gains nobody memory.
fn room(arrived: usize, announced: Option<usize>, limit: usize) -> usize {
    match announced {
        Some(announced) if announced >= arrived && announced / 8 <= arrived => announced,
        _ => arrived.next_power_of_two().min(limit).max(arrived),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_a_body_follows_what_arrives_and_not_what_is_announced() {
        let mib = 1 << 20;
        assert_eq!(room(4096, Some(25 * mib), 25 * mib), 4096);
        assert_eq!(room(4097, Some(25 * mib), 25 * mib), 8192);
        assert_eq!(room(4 * mib, Some(25 * mib), 25 * mib), 25 * mib);
        assert_eq!(room(5000, None, 6000), 6000);
        assert_eq!(room(5000, Some(10), 6000), 6000);
    }
}
