//! The HTTP client behind the address guard.
//!
//! It follows no redirect and asks the environment for no proxy; every name it resolves goes through the guard.
//! Connecting has a deadline of its own, because it may go on after the request that asked for it has ended. A
//! connection is used again only up to an age, because its name may point elsewhere by then.
//!
//! A kept connection may have been closed by the other side while the request was on its way. A request that met one,
//! and no byte of an answer, goes out once more over a fresh connection, at once and within the same time.

use std::error::Error;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::HeaderValue;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tower_service::Service;

use super::aged::{Aged, Ages, Made};
use super::connect::{Connector, is_out_of_descriptors};
use super::guard::{Blocked, Guard};
use super::head::MAX_HEAD;
use super::resolve::{Guarded, ResolveError};
use crate::config::{ClientTls, Egress};
use crate::secret::{KeyError, Reload};

/// What every request says of who sends it.
pub(crate) const AGENT: HeaderValue = HeaderValue::from_static(concat!("hookbridge/", env!("CARGO_PKG_VERSION")));

/// The most headers of an answer that are all read.
const MAX_HEADERS: usize = 256;
/// How long the rest of a head is waited for when its status has arrived.
const HEAD_WITHIN: Duration = Duration::from_secs(2);

/// An HTTP client that connects to nothing that the guard refuses.
///
/// The guard sees each address that is connected to, and who makes a request calls [`Guard::check_url`] before it as
/// well: only that sees scheme and port, and a connection that is used again is not made anew.
#[derive(Clone)]
pub(crate) struct Client(Arc<Shared>);

struct Shared {
    guard: Guard,
    options: ClientOptions,
    tls: Option<ClientTls>,
    pools: ArcSwap<Pools>,
}

type Pool = legacy::Client<Checked<HttpsConnector<Connector>>, Full<Bytes>>;

struct Pools {
    kept: Pool,
    /// Makes a connection for each request, and keeps none.
    fresh: Pool,
}

/// The answer to a request, as far as it could be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// None where the rest of the head could not be read: the connection is gone.
    pub(crate) body: Option<Incoming>,
}

/// How a client treats its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientOptions {
    /// The longest that connecting may take, TLS included.
    pub(crate) timeout: Duration,
    /// The most unused connections that are kept for each host.
    pub(crate) kept: usize,
    /// The age up to which a kept connection takes another request.
    pub(crate) max_age: Duration,
}

impl ClientOptions {
    /// What `[egress]` says of the connections of deliveries.
    pub(crate) fn of(egress: &Egress) -> Self {
        Self { timeout: egress.timeout, kept: egress.concurrency, max_age: egress.max_connection_age }
    }
}

impl Client {
    /// Prepares a client that believes the system's certificate authorities.
    pub(crate) fn new(guard: &Guard, options: ClientOptions) -> Result<Self, rustls::Error> {
        let pools = ArcSwap::from_pointee(Pools::new(guard, options, crate::tls::client()?));
        Ok(Self(Arc::new(Shared { guard: guard.clone(), options, tls: None, pools })))
    }

    /// Prepares a client with authorities or a certificate of its own. It can read them [again](Reload).
    pub(crate) fn with_tls(guard: &Guard, options: ClientOptions, tls: &ClientTls) -> Result<Self, KeyError> {
        let pools = ArcSwap::from_pointee(Pools::new(guard, options, load(tls)?));
        Ok(Self(Arc::new(Shared { guard: guard.clone(), options, tls: Some(tls.clone()), pools })))
    }

    /// Makes one request and waits, until `deadline`, for the head of its answer. A status that has arrived by then
    /// is the answer, whatever became of the rest of its head.
    pub(crate) async fn request(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Result<Answer, Cause> {
        let pools = self.0.pools.load_full();
        let again = request.clone();
        match self.once(&pools.kept, request, deadline).await {
            Err(Lost { cause, was_dead: true }) => {
                tracing::debug!("A kept connection was closed meanwhile ({cause:?}); the request goes out once more");
                self.once(&pools.fresh, again, deadline).await
            }
            made => made,
        }
        .map_err(|lost| lost.cause)
    }

    async fn once(&self, pool: &Pool, mut request: Request<Full<Bytes>>, deadline: Instant) -> Result<Answer, Lost> {
        let (ages, begun) = (Ages::up_to(self.0.options.max_age), Instant::now());
        let connection = capture_connection(&mut request);
        let mut answered = pool.request(request);
        let mut chosen = connection.clone();
        let answer = tokio::select! {
            biased;
            answer = &mut answered => Some(answer),
            () = status_without_head(ages, &mut chosen) => None,
            () = tokio::time::sleep_until(deadline.into()) => None,
        };
        match answer {
            Some(Ok(answer)) => {
                let made = ages.retire(&connection);
                // This is how a server may close a connection that it holds for idle: it is no answer to the request
                // that crossed it (RFC 9110, 15.5.9).
                let is_kept = made.is_some_and(|made| made.was_kept(begun));
                if is_kept && answer.status() == StatusCode::REQUEST_TIMEOUT {
                    return Err(Lost { cause: Cause::NoAnswer, was_dead: true });
                }
                let (head, body) = answer.into_parts();
                Ok(Answer { status: head.status, headers: head.headers, body: Some(body) })
            }
            Some(Err(error)) => {
                // Who never got a connection may be told of one that somebody else had.
                let made = ages.retire(&connection).filter(|_| !error.is_connect());
                match made.as_ref().and_then(Made::answer) {
                    Some(answer) => Ok(answer.into()),
                    None => {
                        let was_dead = made.is_some_and(|made| made.was_dead(begun));
                        Err(Lost { cause: Cause::of(&error), was_dead })
                    }
                }
            }
            None => match ages.retire(&connection).as_ref().and_then(Made::unfinished_answer) {
                Some(answer) => Ok(answer.into()),
                None => Err(Lost { cause: Cause::NoAnswer, was_dead: false }),
            },
        }
    }
}

/// A request without an answer.
struct Lost {
    cause: Cause,
    /// Its connection had been kept, and no byte of an answer came.
    was_dead: bool,
}

impl From<(StatusCode, HeaderMap)> for Answer {
    fn from((status, headers): (StatusCode, HeaderMap)) -> Self {
        Self { status, headers, body: None }
    }
}

/// Waits until a status has arrived whose head did not follow for a while. An old connection is retired as soon as it
/// is chosen: with its answer it may at once be another's.
async fn status_without_head(ages: Ages, chosen: &mut CaptureConnection) {
    let Some(made) = ages.retire_chosen(chosen).await else { return std::future::pending().await };
    loop {
        // Also a head that came in two pieces, and that of the request before, is told of.
        made.status_without_head().await;
        tokio::time::sleep(HEAD_WITHIN).await;
        if made.unfinished_answer().is_some() {
            return;
        }
    }
}

impl Reload for Client {
    /// Connections made before are not used again: they stand on the certificates of then.
    fn reload(&self) -> Result<usize, KeyError> {
        let Some(tls) = &self.0.tls else { return Ok(0) };
        self.0.pools.store(Arc::new(Pools::new(&self.0.guard, self.0.options, load(tls)?)));
        Ok(1)
    }
}

fn load(tls: &ClientTls) -> Result<ClientConfig, KeyError> {
    tls.load().map_err(|error| KeyError::Certificate(error.to_string()))
}

impl Pools {
    fn new(guard: &Guard, options: ClientOptions, tls: ClientConfig) -> Self {
        let http = Connector(Guarded(guard.clone()));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
        let connector = Checked { connector, guard: guard.clone(), timeout: options.timeout };
        let pool = |kept| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Ages::up_to(options.max_age).idle)
                .pool_max_idle_per_host(kept)
                .http1_max_buf_size(MAX_HEAD)
                .http1_max_headers(MAX_HEADERS)
                // The status is the answer; oddities of what follows it are not held against it.
                .http1_allow_spaces_after_header_name_in_responses(true)
                .http1_allow_obsolete_multiline_headers_in_responses(true)
                .http1_ignore_invalid_headers_in_responses(true)
                .build(connector.clone())
        };
        Self { kept: pool(options.kept), fresh: pool(0) }
    }
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum Cause {
    /// The host has an address that must not be reached.
    Blocked(Blocked),
    /// The host's name could not be resolved.
    Dns(String),
    /// Connecting took too long, TLS included.
    Timeout(String),
    /// There was no status by the deadline.
    NoAnswer,
    /// This process, or this machine, has no file descriptor left for a connection.
    NoDescriptor(String),
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
            if let Some(blocked) = current.downcast_ref::<Blocked>() {
                return Self::Blocked(blocked.clone());
            }
            match current.downcast_ref::<ResolveError>() {
                Some(ResolveError::Blocked(blocked)) => return Self::Blocked(blocked.clone()),
                Some(dns @ ResolveError::Dns(_)) => return Self::Dns(dns.to_string()),
                Some(ResolveError::NoDescriptor(error)) => return Self::NoDescriptor(error.to_string()),
                None => {}
            }
            if let Some(error) = current.downcast_ref::<std::io::Error>().filter(|error| is_out_of_descriptors(error)) {
                return Self::NoDescriptor(error.to_string());
            }
            if let Some(tls) = tls_error(current) {
                return Self::Tls(tls.to_string());
            }
            if is_timeout(current) {
                return Self::Timeout("no connection was made in time".to_owned());
            }
            cause = current.source();
        }
        if error.is_connect() { Self::Connect(innermost) } else { Self::Protocol(innermost) }
    }
}

/// Whether it is our own limit on connecting, or that of the operating system.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<tokio::time::error::Elapsed>()
        || error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// A TLS error hides inside I/O errors, whose `source` skips it.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inside) => tls_error(inside),
        None => error.downcast_ref(),
    }
}

/// A connector that asks the guard about hosts that are addresses, which no resolver sees, and that is given up when
/// it takes too long, TLS included: the client may go on connecting in the background after the attempt that asked
/// for it has ended.
#[derive(Clone)]
struct Checked<C> {
    connector: C,
    guard: Guard,
    timeout: Duration,
}

impl<C> Service<Uri> for Checked<C>
where
    C: Service<Uri, Error: Into<Box<dyn Error + Send + Sync>>, Future: Send + 'static>,
{
    type Response = Aged<C::Response>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let address = uri.host().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        if let Some(Err(blocked)) = address.map(|address| self.guard.check(address)) {
            return Box::pin(async { Err(blocked.into()) });
        }
        let connecting = tokio::time::timeout(self.timeout, self.connector.call(uri));
        Box::pin(async move { connecting.await?.map(Aged::new).map_err(Into::into) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::loopback::{Server, answer, guard};
    use super::*;

    fn options() -> ClientOptions {
        ClientOptions::of(&Egress::default())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn get(url: &url::Url) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url.as_str().parse().unwrap();
        request
    }

    #[tokio::test]
    async fn a_host_that_is_an_address_is_refused_even_if_nobody_checked_the_url() {
        let server = Server::start(|_| answer("200 OK", "")).await;
        let strict = Guard::new(&Egress { allow_http: true, ..Egress::default() });
        let client = Client::new(&strict, options()).unwrap();
        let mut mapped = server.url("/");
        mapped.set_host(Some("[::ffff:127.0.0.1]")).unwrap();

        for url in [server.url("/"), mapped] {
            let refused = client.request(get(&url), soon()).await.unwrap_err();
            assert!(matches!(refused, Cause::Blocked(Blocked::Address(..))), "{url}: {refused:?}");
        }

        assert_eq!(server.requests(), 0);
        assert!(Client::new(&guard(), options()).unwrap().request(get(&server.url("/")), soon()).await.is_ok());
    }
}
