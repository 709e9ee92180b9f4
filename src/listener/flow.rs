//! What a connection's parts tell each other: the socket, the requests, and the loop that looks after both.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};

/// The state of one connection. One task changes it, unless a handler hands a body to another one.
#[derive(Default)]
pub(super) struct Flow {
    /// Requests whose body or answer is still held by somebody.
    held: AtomicUsize,
    begun: AtomicU64,
    fed: AtomicBool,
    stalled: AtomicBool,
}

impl Flow {
    /// A request's head is complete. The request is in progress until every copy of the answer is gone.
    pub(super) fn begin(self: &Arc<Self>) -> InProgress {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.fed.store(false, Ordering::Relaxed);
        InProgress::of(self)
    }

    /// Requests that have begun on this connection.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether a request is in progress, or an answer waits for a sender that takes nothing.
    pub(super) fn is_busy(&self) -> bool {
        self.held.load(Ordering::Acquire) > 0 || self.stalled.load(Ordering::Relaxed)
    }

    /// Bytes have arrived.
    pub(super) fn feed(&self) {
        self.fed.store(true, Ordering::Relaxed);
    }

    /// Whether bytes have arrived since the last head was complete, or since this was asked.
    pub(super) fn take_fed(&self) -> bool {
        self.fed.swap(false, Ordering::Relaxed)
    }

    /// Whether the sender takes nothing now.
    pub(super) fn stall(&self, is_stalled: bool) {
        self.stalled.store(is_stalled, Ordering::Relaxed);
    }
}

/// A request in progress.
pub(super) struct InProgress(Arc<Flow>);

impl InProgress {
    fn of(flow: &Arc<Flow>) -> Self {
        flow.held.fetch_add(1, Ordering::Relaxed);
        Self(flow.clone())
    }
}

impl Clone for InProgress {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Release);
    }
}

/// A body that keeps its request in progress.
pub(super) struct Held<B> {
    body: B,
    _held: InProgress,
}

impl<B> Held<B> {
    pub(super) fn new(body: B, held: InProgress) -> Self {
        Self { body, _held: held }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
