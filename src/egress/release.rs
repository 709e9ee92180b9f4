//! Letting deliveries come that waited for their destination to recover.

use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::holds::held_as;
use super::pointer::{self, Pointer, Why};
use super::worker::Worker;
use crate::broker::{ReadError, StoredMessage};
use crate::config::StreamKind;

/// So many are moved at once.
const CHUNK: usize = 128;
/// How far apart they come at least.
const APART: Duration = Duration::from_millis(1);

impl Worker {
    /// Brings forward what waits for destinations that have recovered, until stopped.
    pub(super) async fn release_recovered(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.gates.news().release.notified()).await.is_some() {
            for token in self.gates.released() {
                let apart = self.gates.each(&token).max(APART);
                let still = || !self.gates.is_open(&token);
                let may_come = |pointer: &Pointer| match pointer.held {
                    Some(Why::Breaker | Why::Busy) => true,
                    Some(Why::RetryAfter) => {
                        !self.gates.holds().is_held(&held_as(&pointer.token, &pointer.agent), self.clock.now())
                    }
                    _ => false,
                };
                let waiting = pointer::all_waiting(&token);
                match stop.run_until_cancelled(self.bring(&waiting, may_come, apart, still)).await {
                    None => return,
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::warn!("What waits for {token} comes at its own time: {error}"),
                }
            }
        }
    }

    /// Brings forward the waiting deliveries of a destination that wait for such a reason, `apart` from each other,
    /// for as long as that still makes sense. What cannot be moved comes at its own time.
    pub(super) async fn release(
        &self,
        token: &str,
        held: impl Fn(Why) -> bool,
        apart: Duration,
        still: impl Fn() -> bool,
    ) -> Result<(), ReadError> {
        let which = |pointer: &Pointer| pointer.held.is_some_and(&held);
        self.bring(&pointer::all_waiting(token), which, apart, still).await
    }

    /// Brings forward what waits on these subjects and is meant, `apart` from each other, for as long as that still
    /// makes sense. What others have moved meanwhile is left to them.
    pub(super) async fn bring(
        &self,
        waiting: &str,
        which: impl Fn(&Pointer) -> bool,
        apart: Duration,
        still: impl Fn() -> bool,
    ) -> Result<(), ReadError> {
        let (mut from, mut due) = (1, self.clock.now());
        // What is moved stands at the end of the stream again.
        let (_, last) = self.broker.span(StreamKind::Retry).await?;
        while still() {
            let mut chunk: Vec<(StoredMessage, Pointer)> = Vec::with_capacity(CHUNK);
            while chunk.len() < CHUNK {
                match self.broker.next(StreamKind::Retry, waiting, from).await? {
                    Some(stored) if stored.sequence <= last => {
                        from = stored.sequence + 1;
                        let pointer = Pointer::read(&stored.headers);
                        chunk.extend(pointer.filter(&which).map(|found| (stored, found)));
                    }
                    _ => break,
                }
            }
            let moved = chunk.iter().map(|(stored, pointer)| {
                due += apart;
                self.bring_forward(stored, pointer, due)
            });
            for error in join_all(moved.collect::<Vec<_>>()).await.into_iter().filter_map(Result::err) {
                tracing::debug!("A delivery comes at its own time: {error}");
            }
            if chunk.len() < CHUNK {
                break;
            }
        }
        Ok(())
    }
}
