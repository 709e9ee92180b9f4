//! An HTTP/1.1 listener with every limit set: connections, header time, header size, and an end.
//!
//! The gateway, the admin pages and the demo share it. Two kinds of bad requests never reach a handler: headers
//! that are too slow, and too large for the HTTP library. They are answered here.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// How long to wait when the operating system has no connection to give, for example out of file handles.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);
/// The most bytes that are read after the last answer.
const MAX_READ_AWAY: u64 = 1 << 20;
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
        let mut connection = builder.serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
            () = stop.cancelled() => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
        };
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner();
        let owed = match ended {
            // Silence on an idle connection is no request, and no answer is owed.
            Err(error) if error.is_timeout() && !parts.read_buf.is_empty() => TOO_SLOW,
            Err(error) if error.is_parse_too_large() => TOO_LARGE,
            _ => &[],
        };
        let last_words = async {
            stream.write_all(owed).await?;
            stream.shutdown().await?;
            // Closing with bytes unread would reset the connection, and the answer with it.
            read_away(&mut stream).await
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::debug!("A sender did not take its last answer");
        }
    }
}

/// Reads and forgets what a sender is still sending, up to a bound.
async fn read_away(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = stream.take(MAX_READ_AWAY);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}

/// What a sender gets whose headers do not arrive in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 98\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Request Timeout\",\"status\":408,\"detail\":\"the headers were too slow\"}";

/// What a sender gets whose headers are too many or too large for the HTTP library.
const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Payload Too Large\r\n\
content-type: application/problem+json\r\nconnection: close\r\ncontent-length: 98\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Payload Too Large\",\"status\":413,\"detail\":\"the headers are too large\"}";

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
