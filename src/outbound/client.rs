//! The HTTP client behind the address guard.
//!
//! It follows no redirect and asks the environment for no proxy; every name it resolves goes through the guard.
//! Connecting has a deadline of its own, because it may go on after the request that asked for it has ended.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use super::guard::{Blocked, Guard, Guarded, ResolveError};

/// What every request says of who sends it.
pub(crate) const AGENT: HeaderValue = HeaderValue::from_static(concat!("hookbridge/", env!("CARGO_PKG_VERSION")));

/// The most bytes of an answer that are read at once, and so the largest head that an answer may have.
const READ_BUFFER: usize = 64 * 1024;
/// How long an unused connection is kept. Short, so that a changed address is noticed.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);

/// An HTTP client that connects to nothing that the guard refuses.
///
/// A host that is written as an address needs no resolver, so the guard does not see it here: who makes a
/// request calls [`Guard::check_url`] first.
#[derive(Clone)]
pub(crate) struct Client(legacy::Client<Hurried<HttpsConnector<HttpConnector<Guarded>>>, Full<Bytes>>);

impl Client {
    /// Prepares the client: TLS with the system's certificate authorities, up to `timeout` for connecting, up to
    /// `kept` unused connections per host.
    pub(crate) fn new(guard: &Guard, timeout: Duration, kept: usize) -> Result<Self, rustls::Error> {
        let mut http = HttpConnector::new_with_resolver(Guarded(guard.clone()));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(crate::tls::client()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(kept)
            .http1_max_buf_size(READ_BUFFER)
            .build(Hurried { connector, timeout });
        Ok(Self(client))
    }

    /// Makes one request and waits for the head of its answer. How long that may take is the caller's to say.
    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Cause> {
        self.0.request(request).await.map_err(|error| Cause::of(&error))
    }
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum Cause {
    /// The host has an address that must not be reached.
    Blocked(Blocked),
    /// The host's name could not be resolved.
    Dns(String),
    /// No connection was made.
    Connect(String),
    /// The TLS handshake failed.
    Tls(String),
    /// The connection broke, or the answer was not HTTP.
    Protocol(String),
}

impl Cause {
    /// Sorts the client's error by its causes, innermost facts first.
    fn of(error: &legacy::Error) -> Self {
        let mut innermost = error.to_string();
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(current) = cause {
            innermost = current.to_string();
            match current.downcast_ref::<ResolveError>() {
                Some(ResolveError::Blocked(blocked)) => return Self::Blocked(blocked.clone()),
                Some(dns @ ResolveError::Dns(_)) => return Self::Dns(dns.to_string()),
                None => {}
            }
            if let Some(tls) = tls_error(current) {
                return Self::Tls(tls.to_string());
            }
            cause = current.source();
        }
        if error.is_connect() { Self::Connect(innermost) } else { Self::Protocol(innermost) }
    }
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
