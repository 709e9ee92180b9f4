//! The socket of a connection, as the HTTP library sees it.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::flow::Flow;

/// How long a sender may take nothing of an answer that is ready.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How the HTTP library's own answers look: without a body.
const LIBRARY_MARK: &[u8] = b"content-length: 0\r\n";
/// Where in an answer that mark can stand at the latest.
const MAX_LIBRARY_ANSWER: usize = 256;

/// A socket on which a sender that takes no answers is given up, and on which the HTTP library's own answers
/// to bad requests are left out: ours have a body.
pub(super) struct Socket {
    stream: TcpStream,
    /// What was read before, and is not used yet.
    rest: Bytes,
    flow: Arc<Flow>,
    /// Set while the sender takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// Whether bytes of a sender wait in the operating system, whatever the runtime has heard of them.
pub(super) fn has_bytes(stream: &TcpStream) -> bool {
    SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|count| count > 0)
}

impl Socket {
    pub(super) fn new(stream: TcpStream, rest: Bytes, flow: Arc<Flow>) -> Self {
        Self { stream, rest, flow, stalled: None }
    }

    /// The bare connection, and what nobody has read.
    pub(super) fn into_inner(self) -> (TcpStream, Bytes) {
        (self.stream, self.rest)
    }

    /// Turns a write that waits for too long into an error.
    fn bound<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.flow.stall(false);
            }
            return written;
        }
        self.flow.stall(true);
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
        if !self.rest.is_empty() {
            let count = self.rest.len().min(into.remaining());
            into.put_slice(&self.rest[..count]);
            self.rest.advance(count);
            self.flow.feed();
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.flow.feed();
        }
        read
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
