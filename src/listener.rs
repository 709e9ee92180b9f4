//! An HTTP/1.1 listener with every limit set: connections, header time, header size, and an end.
//!
//! The gateway, the admin pages and the demo share it. Two kinds of bad requests never reach a handler: headers
//! that are too slow, and too large for the HTTP library. They are answered here.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// The smallest read buffer that the HTTP library takes.
const MIN_BUFFER: usize = 8192;
/// How long to wait when the operating system has no connection to give, for example out of file handles.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);
/// How long the last words to a sender may take, until it lets go of the connection.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a sender may take nothing of an answer that is ready.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How the HTTP library's own answers look: without a body.
const LIBRARY_MARK: &[u8] = b"content-length: 0\r\n";
/// Where in an answer that mark can stand at the latest.
const MAX_LIBRARY_ANSWER: usize = 256;

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections open at once.
    pub(crate) connections: usize,
    /// How long the headers of a request may take to arrive, and how long a connection may be idle.
    pub(crate) header_timeout: Duration,
    /// The most bytes that are held of a request's headers.
    pub(crate) max_headers: usize,
}

/// Who opened the connection that a request came on; every request has it as an extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Who wants to know what happens on a listener.
#[derive(Clone)]
pub(crate) struct Observer {
    /// Called with 1 for a connection that opens, with -1 for one that closes.
    pub(crate) connections: Arc<dyn Fn(i64) + Send + Sync>,
    /// Called with a word for every answer that the listener gives by itself.
    pub(crate) answered: Arc<dyn Fn(&'static str) + Send + Sync>,
}

impl Default for Observer {
    fn default() -> Self {
        Self { connections: Arc::new(|_| ()), answered: Arc::new(|_| ()) }
    }
}

/// A bound listener.
pub(crate) struct Listener {
    socket: TcpListener,
    limits: Limits,
    observer: Observer,
}

impl Listener {
    /// Binds an address. Port 0 takes a free one.
    pub(crate) async fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        let socket = TcpListener::bind(address).await.map_err(explain)?;
        Ok(Self { socket, limits, observer: Observer::default() })
    }

    /// Tells an observer what happens.
    pub(crate) fn observed_by(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until stopped, then finishes the requests that are under way.
    pub(crate) async fn run(self, router: Router, stop: CancellationToken) {
        let (connections, places) = (TaskTracker::new(), Arc::new(Semaphore::new(self.limits.connections)));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_header_size(self.limits.max_headers)
            .max_buf_size(self.limits.max_headers.max(MIN_BUFFER))
            // A sender that has said all it has to say still gets its answer.
            .half_close(true)
            // One write for head and body.
            .writev(false);
        let (ends, ending) = watch::channel(());
        // One connection more than allowed waits in the operating system's queue.
        while let Some((accepted, place)) = stop.run_until_cancelled(self.accept(&places)).await {
            match accepted {
                Ok((stream, peer)) => {
                    let (router, ending, observer) = (router.clone(), ending.clone(), self.observer.clone());
                    let open = Open::new(observer.connections.clone());
                    let serve =
                        Connection { stream, peer: Peer(peer), router, ending, observer }.serve(builder.clone());
                    connections.spawn(async move {
                        serve.await;
                        drop((open, place));
                    });
                }
                Err(error) => {
                    tracing::warn!("Could not accept a connection: {error}");
                    stop.run_until_cancelled(tokio::time::sleep(AFTER_ACCEPT_ERROR)).await;
                }
            }
        }
        drop(self.socket);
        ends.send_replace(());
        connections.close();
        connections.wait().await;
    }

    /// Waits for a place, then for a connection.
    async fn accept(
        &self,
        places: &Arc<Semaphore>,
    ) -> (io::Result<(TcpStream, SocketAddr)>, Option<OwnedSemaphorePermit>) {
        let place = places.clone().acquire_owned().await.ok();
        (self.socket.accept().await, place)
    }
}

/// Counts a connection for as long as it lives, however it ends.
struct Open(Arc<dyn Fn(i64) + Send + Sync>);

impl Open {
    fn new(connections: Arc<dyn Fn(i64) + Send + Sync>) -> Self {
        connections(1);
        Self(connections)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.0)(-1);
    }
}

struct Connection {
    stream: TcpStream,
    peer: Peer,
    router: Router,
    /// Changes when no further request is wanted.
    ending: watch::Receiver<()>,
    observer: Observer,
}

impl Connection {
    async fn serve(self, builder: http1::Builder) {
        let Self { stream, peer, router, mut ending, observer } = self;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("Could not set TCP_NODELAY: {error}");
        }
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let mut router = router.clone();
            request.extensions_mut().insert(peer);
            Box::pin(async move {
                // A router answers every request and is always ready.
                Ok::<_, Infallible>(router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}))
            })
        });
        let mut connection = builder.serve_connection(TokioIo::new(Socket::new(stream)), service);
        let (told, mut end) = (ending.clone(), pin!(unconstrained(ending.changed())));
        let (mut waits, mut is_ending) = (false, false);
        let ended = poll_fn(|context| {
            let polled = connection.poll_without_shutdown(context);
            if polled.is_ready() || is_ending {
                return polled;
            }
            // Waiting for the end takes a lock that all connections share: once, and again when it has come. A task
            // is woken in the same way for as long as it lives, and has no budget that could put this off.
            let looks = !waits || !matches!(told.has_changed(), Ok(false));
            waits = true;
            if looks && end.as_mut().poll(context).is_ready() {
                is_ending = true;
                Pin::new(&mut connection).graceful_shutdown();
                return connection.poll_without_shutdown(context);
            }
            polled
        })
        .await;
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner().into_inner();
        let owed = match ended {
            // Silence on an idle connection is no request, and no answer is owed.
            Err(error) if error.is_timeout() && !parts.read_buf.trim_ascii().is_empty() => Some(TOO_SLOW),
            Err(error) if error.is_parse_too_large() => Some(TOO_LARGE),
            Err(error) if error.is_parse() => Some(MALFORMED),
            _ => None,
        };
        let last_words = async {
            if let Some((outcome, answer)) = owed {
                (observer.answered)(outcome);
                stream.write_all(answer).await?;
            }
            stream.shutdown().await?;
            // Closing with bytes unread would reset the connection, and the answer with it.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::debug!("A sender did not let go of its connection");
        }
    }
}

/// A socket on which a sender that takes no answers is given up, and on which the HTTP library's own answers
/// to bad requests are left out: ours have a body.
struct Socket {
    stream: TcpStream,
    /// Set while the sender takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        Self { stream, stalled: None }
    }

    fn into_inner(self) -> TcpStream {
        self.stream
    }

    /// Turns a write that waits for too long into an error.
    fn bound<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Whether these bytes are an answer that the HTTP library makes by itself. No handler answers so.
fn is_librarys_own(bytes: &[u8]) -> bool {
    [b"HTTP/1.1 400 ", b"HTTP/1.1 414 ", b"HTTP/1.1 431 "].iter().any(|status| bytes.starts_with(*status))
        && bytes.windows(LIBRARY_MARK.len()).take(MAX_LIBRARY_ANSWER).any(|window| window == LIBRARY_MARK)
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if is_librarys_own(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bound(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A prepared answer, and its word for metrics.
type Prepared = (&'static str, &'static [u8]);

/// What a sender gets whose headers do not arrive in time.
const TOO_SLOW: Prepared = (
    "too-slow",
    b"HTTP/1.1 408 Request Timeout\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 98\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Request Timeout\",\"status\":408,\"detail\":\"the headers were too slow\"}",
);

/// What a sender gets whose headers are too many or too large for the HTTP library.
const TOO_LARGE: Prepared = (
    "too-large",
    b"HTTP/1.1 413 Payload Too Large\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 100\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Payload Too Large\",\"status\":413,\"detail\":\"the headers are too large\"}",
);

/// What a sender gets whose request is not HTTP.
const MALFORMED: Prepared = (
    "malformed",
    b"HTTP/1.1 400 Bad Request\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 85\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Bad Request\",\"status\":400,\"detail\":\"this is not HTTP\"}",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prepared_answers_say_how_long_they_are() {
        for (_, answer) in [TOO_SLOW, TOO_LARGE, MALFORMED] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())), "{} bytes: {text}", body.len());
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
    }
}
