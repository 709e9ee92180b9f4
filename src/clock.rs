//! Where the time comes from.
//!
//! Everything that decides takes the time as an argument; only the edges ask this clock, so a test can
//! set it and a decision can be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock, or a clock that a test sets.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// A clock that stands still at `time` until [`Clock::set`] moves it.
    pub fn fixed(time: SystemTime) -> Self {
        let clock = Self(Some(Arc::default()));
        clock.set(time);
        clock
    }

    /// Moves a fixed clock; the wall clock does not listen.
    pub fn set(&self, time: SystemTime) {
        if let Some(millis) = &self.0 {
            millis.store(unix_millis(time), Ordering::Relaxed);
        }
    }

    /// The time now, to the millisecond for a fixed clock.
    pub fn now(&self) -> SystemTime {
        match &self.0 {
            Some(millis) => UNIX_EPOCH + Duration::from_millis(millis.load(Ordering::Relaxed)),
            None => SystemTime::now(),
        }
    }
}

/// Whole seconds since 1970; a time before that counts as 0.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds since 1970; a time before that counts as 0.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}

/// RFC 3339 in UTC with milliseconds, the form of every time that Hookbridge writes.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
