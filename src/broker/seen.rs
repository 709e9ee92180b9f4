//! Which messages this process has read through the client library.
//!
//! What was delivered and is not among them was lost with a connection, or another process has it. Sequences come
//! nearly in order, so they are kept as ranges.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::StreamKind;

/// The most ranges of one stream; the lowest are forgotten first.
const MAX_RANGES: usize = 4096;

/// Sequences of the streams that a courier takes from. What is missing here is only looked at once more.
#[derive(Debug, Default)]
pub(super) struct Seen {
    outbox: Mutex<OfStore>,
    retry: Mutex<OfStore>,
}

/// Ranges of sequences of one store: a sequence says nothing about another store of the same name.
#[derive(Debug, Default)]
struct OfStore {
    generation: u64,
    ranges: Ranges,
}

/// First and last sequence of each range; none touches another.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Seen {
    /// Keeps in mind that a message of the store of this generation was read.
    pub(super) fn insert(&self, stream: StreamKind, generation: u64, sequence: u64) {
        let mut store = self.store(stream);
        store.begin(generation);
        if store.generation == generation {
            store.ranges.insert(sequence);
        }
    }

    /// Forgets what was read of earlier stores than this one.
    pub(super) fn begin(&self, stream: StreamKind, generation: u64) {
        self.store(stream).begin(generation);
    }

    /// Of these sequences, those that are not known to have been read.
    pub(super) fn missing(&self, stream: StreamKind, sequences: impl Iterator<Item = u64>) -> Vec<u64> {
        let store = self.store(stream);
        sequences.filter(|sequence| !store.ranges.contains(*sequence)).collect()
    }

    fn store(&self, stream: StreamKind) -> MutexGuard<'_, OfStore> {
        let store = if stream == StreamKind::Retry { &self.retry } else { &self.outbox };
        store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfStore {
    fn begin(&mut self, generation: u64) {
        if generation > self.generation {
            *self = Self { generation, ranges: Ranges::default() };
        }
    }
}

impl Ranges {
    fn insert(&mut self, sequence: u64) {
        let before = self.0.range(..=sequence).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| sequence <= last) {
            return;
        }
        let behind = self.0.remove(&sequence.saturating_add(1)).unwrap_or(sequence);
        match before {
            Some((first, last)) if last.saturating_add(1) == sequence => self.0.insert(first, behind),
            _ => self.0.insert(sequence, behind),
        };
        if self.0.len() > MAX_RANGES {
            self.0.pop_first();
        }
    }

    fn contains(&self, sequence: u64) -> bool {
        self.0.range(..=sequence).next_back().is_some_and(|(_, last)| sequence <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_together_and_tell_what_is_missing() {
        let mut ranges = Ranges::default();
        for sequence in [5, 4, 7, 6, 9, 9, 1] {
            ranges.insert(sequence);
        }
        assert_eq!(ranges.0.into_iter().collect::<Vec<_>>(), [(1, 1), (4, 7), (9, 9)]);
        let seen = Seen::default();
        [2, 3, 6].iter().for_each(|sequence| seen.insert(StreamKind::Outbox, 0, *sequence));
        assert_eq!(seen.missing(StreamKind::Outbox, 1..=7), [1, 4, 5, 7]);
        assert_eq!(seen.missing(StreamKind::Retry, 2..=3), [2, 3]);
    }

    #[test]
    fn nothing_is_known_of_another_store_of_the_same_name() {
        let seen = Seen::default();
        seen.insert(StreamKind::Outbox, 0, 1);
        seen.insert(StreamKind::Outbox, 1, 2);
        seen.insert(StreamKind::Outbox, 0, 3);
        assert_eq!(seen.missing(StreamKind::Outbox, 1..=3), [1, 3]);
        seen.begin(StreamKind::Outbox, 1);
        assert_eq!(seen.missing(StreamKind::Outbox, 1..=3), [1, 3]);
        seen.begin(StreamKind::Outbox, 2);
        assert_eq!(seen.missing(StreamKind::Outbox, 1..=3), [1, 2, 3]);
    }

    #[test]
    fn there_are_never_too_many_ranges_and_the_lowest_go_first() {
        let mut ranges = Ranges::default();
        (0..2 * MAX_RANGES as u64).for_each(|number| ranges.insert(2 * number));
        assert_eq!(ranges.0.len(), MAX_RANGES);
        assert!(!ranges.contains(0) && ranges.contains(2 * (2 * MAX_RANGES as u64 - 1)));
    }
}
