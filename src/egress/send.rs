//! One HTTP request, and what came of it.
//!
//! All deliveries share one client, so that connections are reused; it is the one behind the address guard.

use std::borrow::Cow;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::authorization::Means;
use super::capture::{self, Captured, MAX_ANSWER};
use super::destination::Destination;
use super::intake::Message;
use super::payload::{Maker, Payload};
use super::reason::{Failure, Refusal};
use super::retry::{Outcome, parse_retry_after};
use super::signer::NotSigned;
use crate::clock::{Clock, unix_seconds};
use crate::config::Egress;
use crate::event::trace;
use crate::outbound::{AGENT, Cause, Client, ClientOptions, Guard, request_target};
use crate::signature::Outgoing;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");

/// The HTTP client of all deliveries.
#[derive(Clone)]
pub(super) struct Sender {
    client: Client,
    guard: Guard,
    clock: Clock,
    maker: Maker,
}

impl Sender {
    /// Prepares the client of all destinations that have no TLS of their own.
    pub(super) fn new(guard: Guard, egress: &Egress, clock: Clock) -> Result<Self, rustls::Error> {
        let client = Client::new(&guard, ClientOptions::of(egress))?;
        Ok(Self { client, guard, clock, maker: Maker::default() })
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

    /// Sends the request and reads the answer.
    async fn exchange(&self, destination: &Destination, request: Request<Full<Bytes>>, deadline: Instant) -> Attempt {
        let client = destination.client().unwrap_or(&self.client);
        let answer = match tokio::time::timeout_at(deadline, client.request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(cause)) => return unanswered(cause).into(),
            Err(_) => {
                let detail = format!("no answer within {}", humantime::format_duration(destination.policy().timeout));
                return Outcome::Failed { failure: Failure::Timeout, detail }.into();
            }
        };
        let (head, body) = answer.into_parts();
        let outcome = outcome(head.status, &head.headers, self.clock.now());
        // The status is the answer. The body is read only so that the connection can be used again, or to be told.
        let response = match destination.endpoint().and_then(|endpoint| endpoint.capture.as_ref()) {
            Some(capture) => Some(capture.keep(head.status, &head.headers, capture::read(body, deadline).await)),
            None => {
                if let Ok(Err(error)) = tokio::time::timeout_at(deadline, drain(body)).await {
                    tracing::debug!("An answer broke off after its status: {error}");
                }
                None
            }
        };
        Attempt { outcome, response }
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

fn outcome(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Outcome {
    let retry_after = || headers.get(RETRY_AFTER)?.to_str().ok().and_then(|value| parse_retry_after(value, now));
    match status {
        status if status.is_success() => Outcome::Accepted { status: status.as_u16() },
        StatusCode::GONE => Outcome::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => match retry_after() {
            Some(retry_after) => Outcome::Busy { status: status.as_u16(), retry_after },
            None => Outcome::Refused { status: status.as_u16() },
        },
        status => Outcome::Refused { status: status.as_u16() },
    }
}

/// What it means that there was no answer at all.
fn unanswered(cause: Cause) -> Outcome {
    let (failure, detail) = match cause {
        Cause::Blocked(blocked) => return Outcome::Forbidden { detail: blocked.to_string() },
        Cause::Dns(detail) => (Failure::Dns, detail),
        Cause::Timeout(detail) => (Failure::Timeout, detail),
        Cause::Connect(detail) => (Failure::Connect, detail),
        Cause::Tls(detail) => (Failure::Tls, detail),
        Cause::Protocol(detail) => (Failure::Protocol, detail),
    };
    Outcome::Failed { failure, detail }
}
