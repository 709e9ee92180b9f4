//! The age of a connection.
//!
//! A kept connection goes where its host's name pointed when it was made. Under constant traffic it would live for
//! ever and never notice that the name points elsewhere now, so it carries the time at which it was made, and the
//! client does not use an old one again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection};

/// The longest that a connection is kept without use.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// When a connection was made.
#[derive(Clone, Copy, Debug)]
struct Made(Instant);

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
    pub(super) async fn retire_chosen(&self, connection: &mut CaptureConnection) {
        drop(connection.wait_for_connection_metadata().await);
        self.retire(connection);
    }

    /// Ends the reuse of a request's connection if it could be too old when it is used the next time: it may be
    /// idle until then.
    pub(super) fn retire(&self, connection: &CaptureConnection) {
        let connection = connection.connection_metadata();
        let Some(connected) = connection.as_ref() else { return };
        let mut extras = http::Extensions::new();
        connected.get_extras(&mut extras);
        if extras.get::<Made>().is_none_or(|made| made.0.elapsed() + self.idle >= self.max_age) {
            connected.poison();
        }
    }
}

/// A connection that knows when it was made.
pub(super) struct Aged<T> {
    connection: T,
    made: Made,
}

impl<T> Aged<T> {
    /// A connection that was made just now.
    pub(super) fn new(connection: T) -> Self {
        Self { connection, made: Made(Instant::now()) }
    }
}

impl<T: Connection> Connection for Aged<T> {
    fn connected(&self) -> Connected {
        self.connection.connected().extra(self.made)
    }
}

impl<T: Read + Unpin> Read for Aged<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> Write for Aged<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
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
        Pin::new(&mut self.connection).poll_write_vectored(context, slices)
    }
}
