//! The HTTP client behind the address guard.
//!
//! It follows no redirect and asks the environment for no proxy; every name it resolves goes through the guard.
//! Connecting has a deadline of its own, because it may go on after the request that asked for it has ended. A
//! connection is used again only up to an age, because its name may point elsewhere by then.

use std::error::Error;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::HeaderValue;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tower_service::Service;

use super::aged::{Aged, Ages};
use super::guard::{Blocked, Guard};
use super::resolve::{Guarded, ResolveError};
use crate::config::{ClientTls, Egress};
use crate::secret::{KeyError, Reload};

/// What every request says of who sends it.
pub(crate) const AGENT: HeaderValue = HeaderValue::from_static(concat!("hookbridge/", env!("CARGO_PKG_VERSION")));

/// The most bytes of an answer that are read at once, and so the largest head that an answer may have.
const READ_BUFFER: usize = 64 * 1024;

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
    pool: ArcSwap<Pool>,
}

type Pool = legacy::Client<Checked<HttpsConnector<HttpConnector<Guarded>>>, Full<Bytes>>;

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
        let pool = ArcSwap::from_pointee(pool(guard, options, crate::tls::client()?));
        Ok(Self(Arc::new(Shared { guard: guard.clone(), options, tls: None, pool })))
    }

    /// Prepares a client with authorities or a certificate of its own. It can read them [again](Reload).
    pub(crate) fn with_tls(guard: &Guard, options: ClientOptions, tls: &ClientTls) -> Result<Self, KeyError> {
        let pool = ArcSwap::from_pointee(pool(guard, options, load(tls)?));
        Ok(Self(Arc::new(Shared { guard: guard.clone(), options, tls: Some(tls.clone()), pool })))
    }

    /// Makes one request and waits for the head of its answer. How long that may take is the caller's to say.
    pub(crate) async fn request(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Cause> {
        let ages = Ages::up_to(self.0.options.max_age);
        let connection = capture_connection(&mut request);
        let mut answered = self.0.pool.load().request(request);
        let mut chosen = connection.clone();
        // An old connection is retired as soon as it is chosen: with its answer it may at once be another's.
        let answer = tokio::select! {
            biased;
            answer = &mut answered => answer,
            () = ages.retire_chosen(&mut chosen) => answered.await,
        };
        let answer = answer.map_err(|error| Cause::of(&error))?;
        ages.retire(&connection);
        Ok(answer)
    }
}

impl Reload for Client {
    /// Connections made before are not used again: they stand on the certificates of then.
    fn reload(&self) -> Result<usize, KeyError> {
        let Some(tls) = &self.0.tls else { return Ok(0) };
        self.0.pool.store(Arc::new(pool(&self.0.guard, self.0.options, load(tls)?)));
        Ok(1)
    }
}

fn load(tls: &ClientTls) -> Result<ClientConfig, KeyError> {
    tls.load().map_err(|error| KeyError::Certificate(error.to_string()))
}

fn pool(guard: &Guard, options: ClientOptions, tls: ClientConfig) -> Pool {
    let mut http = HttpConnector::new_with_resolver(Guarded(guard.clone()));
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(options.timeout));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Ages::up_to(options.max_age).idle)
        .pool_max_idle_per_host(options.kept)
        .http1_max_buf_size(READ_BUFFER)
        .build(Checked { connector, guard: guard.clone(), timeout: options.timeout })
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
                None => {}
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
            let refused = client.request(get(&url)).await.unwrap_err();
            assert!(matches!(refused, Cause::Blocked(Blocked::Address(..))), "{url}: {refused:?}");
        }

        assert_eq!(server.requests(), 0);
        assert!(Client::new(&guard(), options()).unwrap().request(get(&server.url("/"))).await.is_ok());
    }
}
