//! What happened on the links to NATS of a process, counted for its metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::StreamKind;

/// Counters of rare things. Shared by the links of a process, and kept when one of them is replaced.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Pulls that ended early, by stream and reason.
    pulls_interrupted: Mutex<BTreeMap<(StreamKind, &'static str), u64>>,
    /// Streams, buckets and durables that were made again, by what they are.
    made_again: Mutex<BTreeMap<String, u64>>,
    /// Records of the bucket of tasks that were removed because the client library cannot read them.
    task_records_removed: AtomicU64,
}

impl Counts {
    pub(super) fn pull_interrupted(&self, stream: StreamKind, reason: &'static str) {
        *lock(&self.pulls_interrupted).entry((stream, reason)).or_default() += 1;
    }

    pub(super) fn made_again(&self, what: &str) {
        *lock(&self.made_again).entry(what.to_owned()).or_default() += 1;
    }

    pub(super) fn task_record_removed(&self) {
        self.task_records_removed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many records of the bucket of tasks were removed because the client library cannot read them.
    pub(crate) fn task_records_removed(&self) -> u64 {
        self.task_records_removed.load(Ordering::Relaxed)
    }

    /// How many pulls ended early, by stream and reason.
    pub(crate) fn pulls_interrupted(&self) -> BTreeMap<(StreamKind, &'static str), u64> {
        lock(&self.pulls_interrupted).clone()
    }

    /// How often each stream, bucket and durable was made again.
    pub(crate) fn all_made_again(&self) -> BTreeMap<String, u64> {
        lock(&self.made_again).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
