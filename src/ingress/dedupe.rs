//! Delivery ids for webhooks that bring none.
//!
//! The id is the body's hash and the window that it arrived in, so every gateway gives equal bodies of one
//! window the same id, also after a restart. Equal bodies on both sides of a window's border would get two;
//! what this process saw lately closes that gap.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::event::id;

/// The most bodies that are remembered per half; about 10 MB.
const MAX_REMEMBERED: usize = 50_000;

/// The bodies of the last window, as their ids.
pub(super) struct RecentBodies {
    window: Duration,
    seen: Mutex<Seen>,
}

/// Two halves: the older one is dropped whole when the younger one is a window old, or full.
#[derive(Default)]
struct Seen {
    younger: HashMap<String, (String, SystemTime)>,
    older: HashMap<String, (String, SystemTime)>,
    since: Option<SystemTime>,
}

impl RecentBodies {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, seen: Mutex::default() }
    }

    /// The delivery id of this body.
    pub(super) fn id(&self, body: &[u8], now: SystemTime) -> String {
        if self.window.is_zero() {
            return format!("r_{:032x}", rand::random::<u128>());
        }
        let fresh = id::body(body, now, self.window);
        let Some((hash, _)) = fresh.rsplit_once(':') else { return fresh };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.turn(now, self.window);
        let known = seen.younger.get(hash).or_else(|| seen.older.get(hash));
        if let Some((id, first)) = known
            && now.duration_since(*first).is_ok_and(|age| age < self.window)
        {
            return id.clone();
        }
        seen.younger.insert(hash.to_owned(), (fresh.clone(), now));
        fresh
    }
}

impl Seen {
    fn turn(&mut self, now: SystemTime, window: Duration) {
        let since = *self.since.get_or_insert(now);
        let old = now.duration_since(since).is_ok_and(|age| age >= window);
        if old || self.younger.len() >= MAX_REMEMBERED {
            self.older = std::mem::take(&mut self.younger);
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn equal_bodies_within_a_window_are_one_delivery_also_across_its_border() {
        let recent = RecentBodies::new(WINDOW);
        let first = recent.id(b"x", at(599));
        assert_eq!(recent.id(b"x", at(601)), first);
        assert_eq!(recent.id(b"x", at(898)), first);
    }

    #[test]
    fn equal_bodies_further_apart_are_two_deliveries() {
        let recent = RecentBodies::new(WINDOW);
        let first = recent.id(b"x", at(600));
        assert_ne!(recent.id(b"x", at(900)), first);
    }

    #[test]
    fn without_a_window_no_two_bodies_are_one_delivery() {
        let recent = RecentBodies::new(Duration::ZERO);
        assert_ne!(recent.id(b"x", at(600)), recent.id(b"x", at(600)));
    }

    #[test]
    fn another_process_gives_the_same_id_within_a_window() {
        assert_eq!(RecentBodies::new(WINDOW).id(b"x", at(600)), RecentBodies::new(WINDOW).id(b"x", at(899)));
    }
}
