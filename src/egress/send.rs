//! One HTTP request, and what came of it.
//!
//! All deliveries share one client, so that connections are reused. It follows no redirect and asks the
//! environment for no proxy; every name it resolves goes through the address guard.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;
use tower_service::Service;

use super::destination::Destination;
use super::guard::{Guard, Guarded, ResolveError};
use super::intake::Message;
use super::reason::Failure;
use super::retry::{Outcome, parse_retry_after};
use crate::clock::{Clock, unix_seconds};
use crate::event::trace;

/// The most bytes of an answer's body that are read; enough to drain a usual one and keep its connection.
const MAX_ANSWER: usize = 64 * 1024;
/// How long an unused connection is kept. Short, so that a changed address is noticed.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("hookbridge/", env!("CARGO_PKG_VERSION")));

/// The HTTP client of all deliveries.
#[derive(Clone)]
pub(super) struct Sender {
    client: Client<Hurried<HttpsConnector<HttpConnector<Guarded>>>, Full<Bytes>>,
    guard: Guard,
    timeout: Duration,
    clock: Clock,
}

impl Sender {
    /// Prepares the client: TLS with the system's certificate authorities, up to `concurrency` kept connections
    /// per host.
    pub(super) fn new(
        guard: Guard,
        timeout: Duration,
        concurrency: usize,
        clock: Clock,
    ) -> Result<Self, rustls::Error> {
        let mut http = HttpConnector::new_with_resolver(Guarded(guard.clone()));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeout));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(crate::tls::client()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(concurrency)
            .http1_max_buf_size(MAX_ANSWER)
            .build(Hurried { connector, timeout });
        Ok(Self { client, guard, timeout, clock })
    }

    /// Makes one attempt. Takes no longer than the timeout, the answer's body included.
    pub(super) async fn attempt(
        &self,
        destination: &Destination,
        message: &Message,
        trace: &trace::Context,
    ) -> Outcome {
        if let Err(blocked) = self.guard.check_url(destination.url()) {
            return Outcome::Forbidden { detail: blocked.to_string() };
        }
        let Some(request) = request(destination, message, trace, self.clock.now()) else {
            let detail = "the URL cannot be written as a request target".to_owned();
            return Outcome::Forbidden { detail };
        };
        let deadline = Instant::now() + self.timeout;
        let answer = match tokio::time::timeout_at(deadline, self.client.request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return classify(&error),
            Err(_) => {
                let detail = format!("no answer within {}", humantime::format_duration(self.timeout));
                return Outcome::Failed { failure: Failure::Timeout, detail };
            }
        };
        let outcome = outcome(answer.status(), answer.headers(), self.clock.now());
        // The status is the answer. The body is read only so that the connection can be used again.
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, drain(answer.into_body())).await {
            tracing::debug!("An answer broke off after its status: {error}");
        }
        outcome
    }
}

/// The request of one attempt: signed now, body untouched. `None` when the URL is no request target.
fn request(
    destination: &Destination,
    message: &Message,
    trace: &trace::Context,
    now: SystemTime,
) -> Option<Request<Full<Bytes>>> {
    let timestamp = unix_seconds(now);
    let mut request = Request::new(Full::new(message.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = destination.uri()?;
    let headers = request.headers_mut();
    if let Some(own) = destination.headers() {
        headers.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    headers.insert(USER_AGENT, AGENT);
    headers.insert(CONTENT_TYPE, message.content_type.clone());
    headers.insert(WEBHOOK_ID, HeaderValue::from_str(&message.id).ok()?);
    headers.insert(WEBHOOK_TIMESTAMP, timestamp.into());
    for (name, value) in destination.signer().sign(&message.id, timestamp, &message.body) {
        headers.insert(name, value);
    }
    insert_trace(headers, trace);
    Some(request)
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

/// Sorts the client's error by its causes, innermost facts first.
fn classify(error: &hyper_util::client::legacy::Error) -> Outcome {
    let mut failure = if error.is_connect() { Failure::Connect } else { Failure::Protocol };
    let mut innermost = error.to_string();
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        innermost = current.to_string();
        match current.downcast_ref::<ResolveError>() {
            Some(ResolveError::Blocked(blocked)) => return Outcome::Forbidden { detail: blocked.to_string() },
            Some(dns @ ResolveError::Dns(_)) => {
                return Outcome::Failed { failure: Failure::Dns, detail: dns.to_string() };
            }
            None => {}
        }
        if let Some(tls) = tls_error(current) {
            failure = Failure::Tls;
            innermost = tls.to_string();
            break;
        }
        cause = current.source();
    }
    Outcome::Failed { failure, detail: innermost }
}

/// A TLS error hides inside I/O errors, whose `source` skips it.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inside) => tls_error(inside),
        None => error.downcast_ref(),
    }
}

/// A connector that is given up when it takes too long, TLS included: the client may go on connecting in the
/// background after the attempt that asked for it has ended.
#[derive(Clone)]
struct Hurried<C> {
    connector: C,
    timeout: Duration,
}

impl<C> Service<Uri> for Hurried<C>
where
    C: Service<Uri, Error: Into<Box<dyn Error + Send + Sync>>, Future: Send + 'static>,
{
    type Response = C::Response;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.timeout, self.connector.call(uri));
        Box::pin(async move { connecting.await?.map_err(Into::into) })
    }
}
