//! What is known of a connection: its age, how often it was used, and what has arrived of the answer under way.
//!
//! A kept connection goes where its host's name pointed when it was made. Under constant traffic it would live for
//! ever and never notice that the name points elsewhere now, so it carries the time at which it was made, and the
//! client does not use an old one again.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection};
use tokio::sync::Notify;

use super::head::Head;

/// The longest that a connection is kept without use.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// How much of a head is read at once.
const PIECE: usize = 8 * 1024;

/// When a connection was made, and what happens on it.
#[derive(Clone)]
pub(super) struct Made {
    at: Instant,
    exchange: Arc<Exchange>,
}

/// The request that is under way on a connection, and its answer.
#[derive(Default)]
struct Exchange {
    head: Mutex<Head>,
    /// The status has arrived without the rest of its head.
    status: Notify,
}

/// How long connections are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ages {
    max_age: Duration,
    /// How long a connection may be idle.
    pub(super) idle: Duration,
}

impl Ages {
    /// No connection older than `max_age` takes another request.
    pub(super) fn up_to(max_age: Duration) -> Self {
        Self { max_age, idle: MAX_IDLE.min(max_age / 2) }
    }

    /// Waits until a request has its connection, then does as [`Ages::retire`]. Never ends where there is none.
    pub(super) async fn retire_chosen(&self, connection: &mut CaptureConnection) -> Option<Made> {
        drop(connection.wait_for_connection_metadata().await);
        self.retire(connection)
    }

    /// Ends the reuse of a request's connection if it could be too old when it is used the next time: it may be
    /// idle until then. Returns what is known of the connection, where there is one.
    pub(super) fn retire(&self, connection: &CaptureConnection) -> Option<Made> {
        let connection = connection.connection_metadata();
        let connected = connection.as_ref()?;
        let mut extras = http::Extensions::new();
        connected.get_extras(&mut extras);
        let made = extras.remove::<Made>();
        if made.as_ref().is_none_or(|made| made.at.elapsed() + self.idle >= self.max_age) {
            connected.poison();
        }
        made
    }
}

impl Made {
    /// Waits until the status of the answer has arrived without the rest of its head.
    pub(super) async fn status_without_head(&self) {
        self.exchange.status.notified().await;
    }

    /// The status of the answer and what headers can be read, where the client itself cannot go on with it.
    pub(super) fn answer(&self) -> Option<(StatusCode, HeaderMap)> {
        self.exchange.head().answer()
    }

    /// The same, but only of a head that is not complete: a complete one may be that of the request before.
    pub(super) fn unfinished_answer(&self) -> Option<(StatusCode, HeaderMap)> {
        let head = self.exchange.head();
        head.is_unfinished().then(|| head.answer()).flatten()
    }

    /// Whether the connection was there before a request that began at `begun`, and no byte of an answer came.
    pub(super) fn was_dead(&self, begun: Instant) -> bool {
        self.exchange.head().is_silent() && self.was_kept(begun)
    }

    /// Whether the connection was there before a request that began at `begun`.
    pub(super) fn was_kept(&self, begun: Instant) -> bool {
        self.at < begun || self.exchange.head().requests() > 1
    }
}

impl Exchange {
    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that knows when it was made, and reads along.
pub(super) struct Aged<T> {
    connection: T,
    made: Made,
    /// Nothing more can be written.
    broken: bool,
}

impl<T> Aged<T> {
    /// A connection that was made just now.
    pub(super) fn new(connection: T) -> Self {
        let made = Made { at: Instant::now(), exchange: Arc::default() };
        Self { connection, made, broken: false }
    }

    /// What is not taken any more is left unwritten: a receiver may answer and close before it has read the whole
    /// request, and its answer can still be read. One that has not answered is found out by reading, too.
    fn left_unwritten(&mut self, written: io::Result<usize>, all: usize) -> io::Result<usize> {
        match written {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                self.broken = true;
                Ok(all)
            }
            written => written,
        }
    }
}

impl<T: Connection> Connection for Aged<T> {
    fn connected(&self) -> Connected {
        self.connection.connected().extra(self.made.clone())
    }
}

impl<T: Read + Unpin> Read for Aged<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.made.exchange.head().is_under_way() {
            return Pin::new(&mut self.connection).poll_read(context, buffer);
        }
        let mut piece = [const { MaybeUninit::uninit() }; PIECE];
        let room = buffer.remaining().min(PIECE);
        let mut piece = ReadBuf::uninit(&mut piece[..room]);
        ready!(Pin::new(&mut self.connection).poll_read(context, piece.unfilled()))?;
        let exchange = &self.made.exchange;
        let mut head = exchange.head();
        head.read(piece.filled());
        if head.is_unfinished() {
            exchange.status.notify_one();
        }
        drop(head);
        buffer.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Aged<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.made.exchange.head().written(bytes);
        if self.broken {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.connection).poll_write(context, bytes));
        Poll::Ready(self.left_unwritten(written, bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.connection).poll_flush(context));
        Poll::Ready(self.left_unwritten(flushed.map(|()| 0), 0).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.made.exchange.head().written(slices.first().map_or(&[], |first| first));
        let all = slices.iter().map(|slice| slice.len()).sum();
        if self.broken {
            return Poll::Ready(Ok(all));
        }
        let written = ready!(Pin::new(&mut self.connection).poll_write_vectored(context, slices));
        Poll::Ready(self.left_unwritten(written, all))
    }
}
