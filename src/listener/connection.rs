//! One connection, from its first byte to its end.
//!
//! A connection on which nothing is in progress is *parked*: taken from the HTTP library, with no buffer, waiting for
//! a byte. So it is known exactly what has arrived on it, and it is never closed while a request waits in the
//! operating system: not for being idle, not to make room, not at the end of the process.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::CONNECTION;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};
use tower_service::Service;

use super::flow::{Flow, Held};
use super::idle::{Asked, Idle};
use super::socket::{Socket, has_bytes};
use super::{Limits, Observer, Peer};

/// How long a connection has to be idle before it is parked, and can be closed for another one. One that is used all the
/// time never is.
const PARK_AFTER: Duration = Duration::from_millis(100);
/// Longer than any process runs.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// How long the final response to a sender may take, until it closes the connection.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What all connections of a listener share.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) builder: http1::Builder,
    pub(super) observer: Observer,
    pub(super) idle: Arc<Idle>,
    /// Set when answers are to say that the connection ends with them.
    pub(super) leaving: AtomicBool,
}

pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) router: Router,
    pub(super) shared: Arc<Shared>,
    /// Changes when the listener has closed its port.
    pub(super) closing: watch::Receiver<()>,
    /// Whether the first answer is the last.
    pub(super) once: bool,
}

/// Why a connection is no longer parked.
enum Awaited {
    /// A byte has arrived.
    Bytes,
    /// Nothing is to come; whoever wanted the place is told by dropping this.
    Close(Option<Asked>),
}

/// What is left when the HTTP library lets a connection go.
enum Left {
    /// It has ended, by an answer that said so, by its sender, or by what the sender sent.
    Ended(hyper::Result<()>),
    /// A request has ended at that time, and the next one is not complete.
    Between(Instant),
    /// The headers of the first request did not come in time.
    Slow,
}

/// What happens next on a connection.
enum Next {
    /// It waits for a request, idle since then.
    Wait(TcpStream, Instant),
    /// The headers of a request have begun to arrive at that time.
    Resume(TcpStream, Bytes, Instant),
    /// It ends, maybe with an answer that is owed.
    End(TcpStream, Option<Prepared>),
}

impl Connection {
    /// Serves requests until the connection ends. When what is returned is dropped, its place must be free.
    pub(super) async fn serve(self, mut stream: TcpStream) -> Option<Asked> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("Could not set TCP_NODELAY: {error}");
        }
        let (mut since, mut rest) = (Instant::now(), Bytes::new());
        loop {
            let mut head = None;
            if rest.is_empty() {
                if let Awaited::Close(asked) = self.wait(&stream, since).await {
                    // Nothing is unread, so the sender sees an orderly end.
                    return asked;
                }
            } else {
                head = Some(since);
            }
            (stream, since, rest) = match self.exchange(stream, rest, head).await {
                Next::Wait(stream, since) => (stream, since, Bytes::new()),
                Next::Resume(stream, rest, since) => (stream, since, rest),
                Next::End(stream, owed) => {
                    self.end(stream, owed).await;
                    return None;
                }
            };
        }
    }

    fn is_closing(&self) -> bool {
        !matches!(self.closing.has_changed(), Ok(false))
    }

    /// Waits for the first byte of a request, for as long as a connection may be idle.
    async fn wait(&self, stream: &TcpStream, since: Instant) -> Awaited {
        // The last look, right before the end: what the runtime has heard of may be older.
        let close = |reason, asked: Option<Asked>| {
            if !has_bytes(stream) {
                (self.shared.observer.closed)(reason);
                return Awaited::Close(asked);
            }
            if let Some(asked) = asked {
                asked.refuse();
            }
            Awaited::Bytes
        };
        let arrived = |peeked: io::Result<usize>| match peeked {
            Ok(count) if count > 0 => Awaited::Bytes,
            _ => Awaited::Close(None),
        };
        let (limits, mut byte) = (&self.shared.limits, [0]);
        let (mut closing, park_at) = (self.closing.clone(), since + PARK_AFTER.min(limits.idle_timeout));
        if !self.is_closing() {
            // A sender that has just connected is about to send.
            tokio::select! {
                biased;
                peeked = stream.peek(&mut byte) => return arrived(peeked),
                _ = closing.changed() => {}
                () = sleep_until(park_at) => {}
            }
        }
        if !self.is_closing() {
            let mut parked = self.shared.idle.park(since);
            tokio::select! {
                biased;
                peeked = stream.peek(&mut byte) => return arrived(peeked),
                asked = parked.asked() => return close("max-connections", Some(asked)),
                _ = closing.changed() => {}
                () = sleep_until(after(since, limits.idle_timeout)) => return close("idle", None),
            }
        }
        // The port is closed. A request that is under way may still come, and is answered.
        tokio::select! {
            biased;
            peeked = stream.peek(&mut byte) => arrived(peeked),
            () = tokio::time::sleep(limits.drain_idle) => close("shutdown", None),
        }
    }

    /// Hands the connection to the HTTP library until nothing is in progress. `head` says since when the headers of
    /// a request arrive, of which `rest` has been read.
    async fn exchange(&self, stream: TcpStream, rest: Bytes, mut head: Option<Instant>) -> Next {
        let Self { peer, router, shared, once, .. } = self;
        let (flow, limits) = (Arc::new(Flow::default()), &shared.limits);
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let (mut router, held) = (router.clone(), flow.begin());
            let mut request = request.map(|body| Body::new(Held::new(body, held.clone())));
            request.extensions_mut().insert(Peer(*peer));
            Box::pin(async move {
                // A router answers every request and is always ready.
                let mut answer = router.call(request).await.unwrap_or_else(|never| match never {});
                if *once || shared.leaving.load(Ordering::Relaxed) {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Held::new(body, held)))
            })
        });
        let socket = Socket::new(stream, rest, flow.clone());
        let mut connection = shared.builder.serve_connection(TokioIo::new(socket), service);

        let mut closing = self.closing.clone();
        let (told, mut end) = (closing.clone(), pin!(unconstrained(closing.changed())));
        let (mut waits, mut is_closing, mut is_last) = (false, false, false);
        let park_after = PARK_AFTER.min(limits.idle_timeout);
        let mut timer = pin!(tokio::time::sleep(park_after));
        let (mut idle, mut seen) = (None::<Instant>, 0);
        let left = poll_fn(|context| {
            let (was_busy, begun) = (flow.is_busy(), flow.begun());
            if let Poll::Ready(ended) = connection.poll_without_shutdown(context) {
                return Poll::Ready(Left::Ended(ended));
            }
            // Waiting for the end takes a lock that all connections share: once, and again when it has come. A task
            // is woken in the same way for as long as it lives, and has no budget that could put this off.
            let looks = !is_closing && (!waits || !matches!(told.has_changed(), Ok(false)));
            waits = true;
            is_closing = is_closing || (looks && end.as_mut().poll(context).is_ready());
            if flow.is_busy() {
                idle = None;
                return Poll::Pending;
            }

            // Between two requests, or before the first.
            let idle_since = match idle {
                Some(since) if seen == flow.begun() => since,
                _ => *idle.insert(Instant::now()),
            };
            if seen != flow.begun() {
                seen = flow.begun();
                head = None;
                // What was read since then is the request's body, and maybe the beginning of the next one. That is
                // found when the connection is to be parked.
                flow.take_fed();
            }
            if flow.take_fed() {
                head.get_or_insert_with(Instant::now);
            }
            let due = head.map_or(idle_since + park_after, |since| after(since, limits.header_timeout));
            let closes = is_closing && head.is_none() && !is_last;
            if !closes {
                if timer.deadline() > due {
                    timer.as_mut().reset(due);
                }
                loop {
                    if timer.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    if Instant::now() >= due {
                        break;
                    }
                    timer.as_mut().reset(due);
                }
            }
            if was_busy || begun != flow.begun() {
                // The library has to see the end of the request first.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if is_last {
                return Poll::Ready(Left::Slow);
            }
            // The library ends a connection at once only if no request is in progress; then it can be used again.
            is_last = true;
            Pin::new(&mut connection).graceful_shutdown();
            match connection.poll_without_shutdown(context) {
                Poll::Ready(Ok(())) if begun == flow.begun() => Poll::Ready(Left::Between(idle_since)),
                Poll::Ready(ended) => Poll::Ready(Left::Ended(ended)),
                Poll::Pending if head.is_some() => Poll::Ready(Left::Slow),
                Poll::Pending => {
                    head = Some(idle_since);
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await;

        let parts = connection.into_parts();
        let (stream, unread) = parts.io.into_inner().into_inner();
        let read = with(parts.read_buf, unread);
        let begun = !read.trim_ascii().is_empty();
        match left {
            Left::Between(since) if !begun => Next::Wait(stream, since),
            Left::Between(since) => {
                let since = head.unwrap_or(since);
                let is_slow = since.elapsed() >= limits.header_timeout;
                if is_slow { Next::End(stream, Some(TOO_SLOW)) } else { Next::Resume(stream, read, since) }
            }
            // Silence on a connection is no request, and no answer is owed.
            Left::Slow => Next::End(stream, begun.then_some(TOO_SLOW)),
            Left::Ended(Err(error)) if error.is_parse_too_large() => Next::End(stream, Some(TOO_LARGE)),
            Left::Ended(Err(error)) if error.is_parse() => Next::End(stream, Some(MALFORMED)),
            Left::Ended(_) => Next::End(stream, None),
        }
    }

    /// Sends the final response, if one is owed, and closes the connection in order.
    async fn end(&self, mut stream: TcpStream, owed: Option<Prepared>) {
        let last_words = async {
            if let Some((outcome, answer)) = owed {
                (self.shared.observer.answered)(outcome);
                stream.write_all(answer).await?;
            }
            stream.shutdown().await?;
            // Closing with bytes unread would reset the connection, and the answer with it.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::debug!("A sender did not close its connection");
        }
    }
}

/// A time limit's end. One that no clock reaches is as good as none.
fn after(since: Instant, limit: Duration) -> Instant {
    since.checked_add(limit).unwrap_or(since + FAR)
}

/// Two runs of bytes as one.
fn with(first: Bytes, second: Bytes) -> Bytes {
    if second.is_empty() {
        return first;
    }
    let mut both = BytesMut::from(first);
    both.extend_from_slice(&second);
    both.freeze()
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
