//! The order of what belongs together: updates of one task are applied, and told, one after the other, as they were
//! taken from the stream. Updates of different tasks know nothing of each other.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// The most updates of one task in hand: what is over waits in the stream, and takes no slot from other tasks.
const LONGEST: usize = 32;

/// All lanes of a courier. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<String, Arc<Lane>>>>);

/// Where the updates of one task go one after the other.
struct Lane {
    state: Arc<Semaphore>,
    callback: Arc<Semaphore>,
}

/// A place in both queues of a lane, held in the order in which it was taken.
pub(super) struct Turn {
    turns: Turns,
    /// Whose lane it is: an agent and a task.
    key: String,
    /// Nothing but while it is being dropped.
    lane: Option<Arc<Lane>>,
    state: Option<Place>,
    callback: Place,
}

/// A place in a queue.
enum Place {
    Waits(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
    Has(#[expect(dead_code, reason = "held for as long as it is there")] Option<OwnedSemaphorePermit>),
}

impl Turns {
    /// Takes the next place in a lane; none where too many wait there.
    pub(super) fn take(&self, key: &str) -> Option<Turn> {
        let mut lanes = self.lanes();
        let lane = match lanes.get(key) {
            Some(lane) if Arc::strong_count(lane) > LONGEST => return None,
            Some(lane) => lane.clone(),
            None => {
                let one = || Arc::new(Semaphore::new(1));
                let lane = Arc::new(Lane { state: one(), callback: one() });
                lanes.insert(key.to_owned(), lane.clone());
                lane
            }
        };
        // Under the lock, so that both queues have one order.
        let (state, callback) = (Some(Place::take(&lane.state)), Place::take(&lane.callback));
        drop(lanes);
        Some(Turn { turns: self.clone(), key: key.to_owned(), lane: Some(lane), state, callback })
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<String, Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Queues at once: a place is where it was taken, not where it is first waited for.
    fn take(queue: &Arc<Semaphore>) -> Self {
        let mut waits = Box::pin(queue.clone().acquire_owned());
        match waits.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Self::Has(permit.ok()),
            Poll::Pending => Self::Waits(waits),
        }
    }

    async fn come(&mut self) {
        if let Self::Waits(waits) = self {
            // The semaphore is never closed.
            *self = Self::Has(waits.await.ok());
        }
    }
}

impl Turn {
    /// Waits until everything before it has been applied.
    pub(super) async fn wait_to_apply(&mut self) {
        if let Some(place) = &mut self.state {
            place.come().await;
        }
    }

    /// Lets the next update be applied.
    pub(super) fn applied(&mut self) {
        self.state = None;
    }

    /// Waits until nothing before it is being told, but no longer than this. `false`: something still is.
    pub(super) async fn wait_to_tell(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.callback.come()).await.is_ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lanes = self.turns.lanes();
        // Under the lock, so that the last one sees that it is.
        drop(self.lane.take());
        if lanes.get(&self.key).is_some_and(|lane| Arc::strong_count(lane) == 1) {
            lanes.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_in_the_order_in_which_they_were_taken() {
        let turns = Turns::default();
        let (mut first, mut second, mut third) =
            (turns.take("t").unwrap(), turns.take("t").unwrap(), turns.take("t").unwrap());
        assert!(!third.wait_to_tell(Duration::ZERO).await && !second.wait_to_tell(Duration::ZERO).await);
        assert!(first.wait_to_tell(Duration::ZERO).await);
        assert!(turns.take("other").unwrap().wait_to_tell(Duration::ZERO).await, "another task waits for nobody");
        // Who leaves while somebody is being told lets nobody overtake.
        drop(second);
        assert!(!third.wait_to_tell(Duration::ZERO).await);
        drop(first);
        assert!(third.wait_to_tell(Duration::ZERO).await);
    }

    #[tokio::test]
    async fn applying_goes_on_while_telling_waits() {
        let turns = Turns::default();
        let (mut first, mut second) = (turns.take("t").unwrap(), turns.take("t").unwrap());
        first.wait_to_apply().await;
        first.applied();
        second.wait_to_apply().await;
        assert!(!second.wait_to_tell(Duration::ZERO).await);
    }

    #[tokio::test]
    async fn a_lane_that_nobody_is_in_is_forgotten() {
        let turns = Turns::default();
        let (first, second) = (turns.take("t").unwrap(), turns.take("t").unwrap());
        drop(second);
        assert_eq!(turns.lanes().len(), 1);
        let many: Vec<_> = std::iter::from_fn(|| turns.take("t")).take(1000).collect();
        assert_eq!(many.len(), LONGEST - 1, "a lane is bounded");
        drop(many);
        drop(first);
        assert_eq!(turns.lanes().len(), 0);
    }
}
