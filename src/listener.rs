//! An HTTP/1.1 listener with every limit set: connections, header time, header size, and an end.
//!
//! The gateway, the admin pages and the demo share it. The HTTP library answers two kinds of bad requests by
//! itself, before any handler sees them; here those answers get the form that all others have.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// How long to wait when the operating system has no connection to give, for example out of file handles.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);
/// How long the last words to a sender may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections open at once.
    pub(crate) connections: usize,
    /// How long the headers of a request may take to arrive, and how long a connection may be idle.
    pub(crate) header_timeout: Duration,
}

/// A bound listener.
pub(crate) struct Listener {
    socket: TcpListener,
    limits: Limits,
    opened: Arc<dyn Fn(i64) + Send + Sync>,
}

impl Listener {
    /// Binds an address. Port 0 takes a free one.
    pub(crate) async fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        let socket = TcpListener::bind(address).await.map_err(explain)?;
        Ok(Self { socket, limits, opened: Arc::new(|_| ()) })
    }

    /// Tells a gauge of every connection that opens (1) and closes (-1).
    pub(crate) fn counting(mut self, opened: impl Fn(i64) + Send + Sync + 'static) -> Self {
        self.opened = Arc::new(opened);
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
        builder.timer(TokioTimer::new()).header_read_timeout(self.limits.header_timeout).pipeline_flush(true);
        // One connection more than allowed waits in the operating system's queue.
        while let Some((accepted, place)) = stop.run_until_cancelled(self.accept(&places)).await {
            match accepted {
                Ok((stream, peer)) => {
                    let connection = Connection { stream, peer, router: router.clone(), stop: stop.clone() };
                    let (serve, opened) = (connection.serve(builder.clone()), self.opened.clone());
                    connections.spawn(async move {
                        opened(1);
                        serve.await;
                        opened(-1);
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("Could not accept a connection: {error}");
                    stop.run_until_cancelled(tokio::time::sleep(AFTER_ACCEPT_ERROR)).await;
                }
            }
        }
        drop(self.socket);
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

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
}

impl Connection {
    async fn serve(self, builder: http1::Builder) {
        let Self { stream, peer, router, stop } = self;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("Could not set TCP_NODELAY: {error}");
        }
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            let mut router = router.clone();
            Box::pin(async move {
                // A router answers every request and is always ready.
                Ok::<_, Infallible>(router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}))
            })
        });
        let mut connection = builder.serve_connection(TokioIo::new(Answering(stream)), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
            () = stop.cancelled() => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
        };
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner().0;
        let last_words = async {
            // Silence on an idle connection is no request, and no answer is owed.
            if ended.is_err_and(|error| error.is_timeout()) && !parts.read_buf.is_empty() {
                stream.write_all(TOO_SLOW).await?;
            }
            stream.shutdown().await
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::debug!("A sender did not take its last answer");
        }
    }
}

/// What a sender gets whose headers do not arrive in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 98\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Request Timeout\",\"status\":408,\"detail\":\"the headers were too slow\"}";

/// What a sender gets whose headers are too many or too large for the HTTP library.
const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Payload Too Large\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 98\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Payload Too Large\",\"status\":413,\"detail\":\"the headers are too large\"}";

/// How the HTTP library begins its own answer to headers that are too large. No handler uses that status.
const LIBRARY_TOO_LARGE: &[u8] = b"HTTP/1.1 431 ";

/// A connection on which the library's own answer to too many headers is replaced by ours.
struct Answering(TcpStream);

impl AsyncRead for Answering {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Answering {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.starts_with(LIBRARY_TOO_LARGE) {
            // The first write on a fresh answer; a socket that cannot take these few bytes gets none.
            let written = std::task::ready!(Pin::new(&mut self.0).poll_write(context, TOO_LARGE))?;
            return Poll::Ready(if written == TOO_LARGE.len() {
                Ok(bytes.len())
            } else {
                Err(io::ErrorKind::WriteZero.into())
            });
        }
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices.first() {
            Some(first) if first.starts_with(LIBRARY_TOO_LARGE) => self.poll_write(context, first),
            _ => Pin::new(&mut self.0).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prepared_answers_say_how_long_they_are() {
        for answer in [TOO_SLOW, TOO_LARGE] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())), "{} bytes: {text}", body.len());
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
    }
}
