//! Deliveries that have ended in this process and of which no receipt could be written.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::outbox_message::OutboxMessage;

/// How many are remembered; the oldest are forgotten first.
const REMEMBERED: usize = 100_000;

/// What has ended although RECEIPTS does not say so: it is neither repaired nor attempted again. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Untold(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    order: VecDeque<(OutboxMessage, Arc<str>)>,
    all: HashSet<(OutboxMessage, Arc<str>)>,
}

impl Untold {
    pub(super) fn remember(&self, message: OutboxMessage, delivery_id: &str) {
        let (mut table, key) = (self.table(), (message, Arc::from(delivery_id)));
        if table.all.insert(key.clone()) {
            table.order.push_back(key);
        }
        if table.order.len() > REMEMBERED
            && let Some(oldest) = table.order.pop_front()
        {
            table.all.remove(&oldest);
        }
    }

    pub(super) fn has(&self, message: OutboxMessage, delivery_id: &str) -> bool {
        let table = self.table();
        // Almost always there is nothing to ask for.
        !table.all.is_empty() && table.all.contains(&(message, Arc::from(delivery_id)))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_so_many_and_forgets_the_oldest() {
        let untold = Untold::default();
        assert!(!untold.has(OutboxMessage::at(0), "m"));
        for sequence in 0..=REMEMBERED as u64 {
            untold.remember(OutboxMessage::at(sequence), "m");
            untold.remember(OutboxMessage::at(sequence), "m");
        }
        let has = |sequence, delivery_id| untold.has(OutboxMessage::at(sequence), delivery_id);
        assert!(!has(0, "m") && has(1, "m") && has(REMEMBERED as u64, "m") && !has(1, "other"));
    }
}
