//! The connections on which nothing is in progress, by how long that has been so.
//!
//! Where a new connection finds no place, the one at the front is closed for it. Each decides for itself: one on
//! which a request has arrived in the meantime refuses, and the next one is asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Since when a connection is idle, and a number that no other has.
type Key = (Instant, u64);

/// The idle connections of a listener.
#[derive(Default)]
pub(super) struct Idle {
    parked: Mutex<IdleTable>,
    changed: Notify,
}

#[derive(Default)]
struct IdleTable {
    connections: BTreeMap<Key, oneshot::Sender<Asked>>,
    next: u64,
}

/// The wish that a connection is closed. Dropped, it says that the connection is gone.
pub(super) struct Asked(oneshot::Sender<()>);

impl Asked {
    /// Says that the connection stays.
    pub(super) fn refuse(self) {
        let (Ok(()) | Err(())) = self.0.send(());
    }
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, IdleTable> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection that is idle since then, until the answer is dropped.
    pub(super) fn park(self: &Arc<Self>, since: Instant) -> Parked {
        let (ask, asked) = oneshot::channel();
        let mut parked = self.lock();
        let key = (since, parked.next);
        parked.next += 1;
        parked.connections.insert(key, ask);
        drop(parked);
        self.changed.notify_one();
        Parked { idle: self.clone(), key, asked }
    }

    /// Asks the connection that has been idle longest to close, and waits for its answer. `false` if none is idle.
    /// `true` does not promise a free place: the connection may have refused.
    pub(super) async fn close_longest(&self) -> bool {
        loop {
            let Some((_, ask)) = self.lock().connections.pop_first() else { return false };
            let (answer, answered) = oneshot::channel();
            if ask.send(Asked(answer)).is_ok() {
                // An answer is a refusal; the end of the channel is the end of the connection.
                drop(answered.await);
                return true;
            }
        }
    }

    /// Waits until a connection has become idle since the last time that somebody waited.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// An idle connection's entry.
pub(super) struct Parked {
    idle: Arc<Idle>,
    key: Key,
    asked: oneshot::Receiver<Asked>,
}

impl Parked {
    /// Waits until the connection's place is wanted.
    pub(super) async fn asked(&mut self) -> Asked {
        match (&mut self.asked).await {
            Ok(asked) => asked,
            // The sender is dropped only with this entry.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.idle.lock().connections.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_longest_idle_connection_is_asked_first_and_may_refuse() {
        let (idle, now) = (Arc::new(Idle::default()), Instant::now());
        let mut younger = idle.park(now + Duration::from_secs(1));
        let mut older = idle.park(now);
        let gone = idle.park(now - Duration::from_secs(1));
        drop(gone);

        let refusing = async { older.asked().await.refuse() };
        assert!(tokio::join!(idle.close_longest(), refusing).0);
        let closing = async { drop(younger.asked().await) };
        assert!(tokio::join!(idle.close_longest(), closing).0);
        assert!(!idle.close_longest().await, "nobody is left to ask");
    }
}
