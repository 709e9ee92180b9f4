//! One HTTP request, and what came of it.
//!
//! All deliveries share one client, so that connections are reused; it is the one behind the address guard.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::authorization::Means;
use super::capture::{self, Captured, MAX_ANSWER, Read};
use super::destination::Destination;
use super::intake::Message;
use super::payload::{Maker, Payload};
use super::reason::{Failure, Refusal};
use super::retry::{Outcome, parse_retry_after};
use super::signer::NotSigned;
use crate::clock::{Clock, unix_seconds};
use crate::config::Egress;
use crate::event::trace;
use crate::outbound::{AGENT, Answer, Cause, Client, ClientOptions, Guard, request_target};
use crate::signature::Outgoing;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
/// How long an answer's body is read once its status is there.
const BODY_WITHIN: Duration = Duration::from_secs(2);
/// The most bodies that are read in the background at once.
const MOST_DRAINS: usize = 512;
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");

/// The HTTP client of all deliveries.
#[derive(Clone)]
pub(super) struct Sender {
    client: Client,
    guard: Guard,
    clock: Clock,
    maker: Maker,
    /// Places for bodies that are read in the background.
    drains: Arc<Semaphore>,
}

impl Sender {
    /// Prepares the client of all destinations that have no TLS of their own.
    pub(super) fn new(guard: Guard, egress: &Egress, clock: Clock) -> Result<Self, rustls::Error> {
        let client = Client::new(&guard, ClientOptions::of(egress))?;
        Ok(Self { client, guard, clock, maker: Maker::default(), drains: Arc::new(Semaphore::new(MOST_DRAINS)) })
    }

    /// Makes what a message sends that was stored at this time: the same for every attempt.
    pub(super) async fn payload(
        &self,
        destination: &Destination,
        message: &Message,
        stored: SystemTime,
    ) -> Result<Payload, Refusal> {
        self.maker.make(destination, message, stored).await
    }

    /// Makes one attempt. Takes no longer than the timeout, a token and the answer's body included.
    pub(super) async fn attempt(
        &self,
        destination: &Destination,
        message: &Message,
        payload: &Payload,
        trace: &trace::Context,
    ) -> Attempt {
        if let Err(blocked) = self.guard.check_url(destination.url()) {
            return Outcome::Forbidden { detail: blocked.to_string() }.into();
        }
        let deadline = Instant::now() + destination.policy().timeout;
        let authorized = match destination.endpoint() {
            Some(endpoint) => endpoint.authorization.headers(self.means(deadline)).await,
            None => Ok(HeaderMap::new()),
        };
        let authorized = match authorized {
            Ok(authorized) => authorized,
            Err(outcome) => return outcome.into(),
        };
        let request = match request(destination, message, payload, &authorized, trace, self.clock.now()) {
            Ok(Some(request)) => request,
            Ok(None) => {
                let detail = "the URL cannot be written as a request target".to_owned();
                return Outcome::Forbidden { detail }.into();
            }
            // A failed attempt and not a dead letter: there is time to give the destination another secret.
            Err(unsigned) => {
                return Outcome::Failed { failure: Failure::Unsigned, detail: unsigned.to_string() }.into();
            }
        };
        let attempt = self.exchange(destination, request, deadline).await;
        if let Some(endpoint) = destination.endpoint() {
            endpoint.authorization.heard(&authorized, attempt.outcome.status(), self.clock.now());
        }
        attempt
    }

    fn means(&self, deadline: Instant) -> Means<'_> {
        Means { client: &self.client, guard: &self.guard, clock: &self.clock, deadline }
    }

    /// Sends the request. The attempt is decided as soon as the status is there: the body is read only to be told,
    /// and then for a moment, or elsewhere so that the connection can be used again.
    async fn exchange(&self, destination: &Destination, request: Request<Full<Bytes>>, deadline: Instant) -> Attempt {
        let client = destination.client().unwrap_or(&self.client);
        let answer = match client.request(request, deadline.into_std()).await {
            Ok(answer) => answer,
            Err(cause) => return unanswered(cause, destination).into(),
        };
        let Answer { status, headers, body } = answer;
        let outcome = outcome(status, &headers, destination.policy().max_retry_after, self.clock.now());
        let response = match (destination.endpoint().and_then(|endpoint| endpoint.capture.as_ref()), body) {
            (Some(capture), Some(body)) => {
                let read = capture::read(body, deadline.min(Instant::now() + BODY_WITHIN)).await;
                Some(capture.keep(status, &headers, read))
            }
            (Some(capture), None) => Some(capture.keep(status, &headers, Read::broken())),
            (None, Some(body)) => {
                self.drain(body);
                None
            }
            (None, None) => None,
        };
        Attempt { outcome, response }
    }

    /// Reads an answer's body in the background, for a moment and up to a bound, so that its connection can be used
    /// again. What is longer or slower, and what there are too many of, is left, and its connection with it.
    fn drain(&self, body: Incoming) {
        if body.is_end_stream() {
            return;
        }
        let Ok(place) = self.drains.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(BODY_WITHIN, drain(body)).await {
                tracing::debug!("An answer broke off after its status: {error}");
            }
            drop(place);
        });
    }
}

/// What came of one request.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) outcome: Outcome,
    /// What is kept of the answer, where there was one and the endpoint wants it.
    pub(super) response: Option<Captured>,
}

impl From<Outcome> for Attempt {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, response: None }
    }
}

/// The request of one attempt: signed now, body as it was made. `None` when the URL is no request target.
pub(super) fn request(
    destination: &Destination,
    message: &Message,
    payload: &Payload,
    authorized: &HeaderMap,
    trace: &trace::Context,
    now: SystemTime,
) -> Result<Option<Request<Full<Bytes>>>, NotSigned> {
    let Some(mut headers) = headers(destination, message, payload, authorized, now) else { return Ok(None) };
    insert_trace(&mut headers, trace);
    let mut outgoing = Outgoing {
        id: &message.id,
        event_type: message.event_type.as_deref(),
        now,
        body: &payload.body,
        url: Cow::Borrowed(destination.url()),
        headers: &mut headers,
    };
    destination.signer().sign(&mut outgoing)?;
    let Some(uri) = request_target(&outgoing.url) else { return Ok(None) };
    let mut request = Request::new(Full::new(payload.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(Some(request))
}

/// The headers of one attempt, before it is signed. `None` when they cannot be written.
fn headers(
    destination: &Destination,
    message: &Message,
    payload: &Payload,
    authorized: &HeaderMap,
    now: SystemTime,
) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.extend(destination.headers().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    headers.extend(authorized.iter().map(|(name, value)| (name.clone(), value.clone())));
    headers.insert(USER_AGENT, AGENT);
    headers.insert(CONTENT_TYPE, payload.content_type.clone());
    headers.insert(WEBHOOK_ID, HeaderValue::from_str(&message.id).ok()?);
    headers.insert(WEBHOOK_TIMESTAMP, unix_seconds(now).into());
    Some(headers)
}

fn insert_trace(headers: &mut HeaderMap, trace: &trace::Context) {
    if let Ok(value) = HeaderValue::from_str(&trace.traceparent) {
        headers.insert(HeaderName::from_static("traceparent"), value);
    }
    if let Some(Ok(value)) = trace.tracestate.as_deref().map(HeaderValue::from_str) {
        headers.insert(HeaderName::from_static("tracestate"), value);
    }
}

/// Reads an answer's body to its end, or to the bound: what is longer is left, and its connection with it.
async fn drain(mut body: Incoming) -> Result<(), hyper::Error> {
    let mut read = 0;
    while read < MAX_ANSWER
        && let Some(frame) = body.frame().await
    {
        read += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

/// What the status and `Retry-After` say; no wait is longer than `most`.
fn outcome(status: StatusCode, headers: &HeaderMap, most: Duration, now: SystemTime) -> Outcome {
    let retry_after = || headers.get(RETRY_AFTER)?.to_str().ok().and_then(|value| parse_retry_after(value, now));
    match status {
        status if status.is_success() => Outcome::Accepted { status: status.as_u16() },
        StatusCode::GONE => Outcome::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => match retry_after() {
            Some(asked) => {
                Outcome::Busy { status: status.as_u16(), retry_after: asked.min(most), clamped: asked > most }
            }
            None => Outcome::Refused { status: status.as_u16() },
        },
        status => Outcome::Refused { status: status.as_u16() },
    }
}

/// What it means that there was no answer at all.
fn unanswered(cause: Cause, destination: &Destination) -> Outcome {
    let (failure, detail) = match cause {
        // The URL itself was checked before. What its host's name resolves to may be wrong for a moment, and the
        // operator wants an endpoint reached; who names a callback gets no second look at the inside.
        Cause::Blocked(blocked) if destination.endpoint().is_some() => (Failure::Forbidden, blocked.to_string()),
        Cause::Blocked(blocked) => return Outcome::Forbidden { detail: blocked.to_string() },
        Cause::NoDescriptor(detail) => return Outcome::NotNow { detail },
        Cause::NoAnswer => {
            let within = humantime::format_duration(destination.policy().timeout);
            (Failure::Timeout, format!("no answer within {within}"))
        }
        Cause::Dns(detail) => (Failure::Dns, detail),
        Cause::Timeout(detail) => (Failure::Timeout, detail),
        Cause::Connect(detail) => (Failure::Connect, detail),
        Cause::Tls(detail) => (Failure::Tls, detail),
        Cause::Protocol(detail) => (Failure::Protocol, detail),
    };
    Outcome::Failed { failure, detail }
}
