//! What this process has in its hands, so that it never works twice on one delivery at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::outbox_message::OutboxMessage;

/// The deliveries in hand. Bounded by the slots of the consumers.
#[derive(Clone, Default)]
pub(super) struct Held(Arc<Mutex<HashSet<String>>>);

/// A delivery in hand, until this is dropped.
pub(super) struct Hold {
    held: Held,
    key: String,
}

impl Held {
    /// Takes a delivery in hand; `None` when it already is.
    pub(super) fn take(&self, message: OutboxMessage, delivery_id: &str) -> Option<Hold> {
        let key = format!("{}.{delivery_id}", message.key());
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone()).then(|| Hold { held: self.clone(), key })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
