//! What the cache holds: which documents are known, which fetches were made, and what has to make room.
//!
//! It neither waits nor asks a clock; a fetch appears in it as a channel that its outcome will come from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::fetch::FetchError;

/// The most URLs that are remembered.
pub(super) const CAPACITY: usize = 64;
/// The most URLs that are asked for the first time at once. Whoever names them must not drive out what is known.
const MAX_STRANGE: usize = CAPACITY / 2;
/// How long a URL is not asked again, whatever came of it.
const PAUSE: Duration = Duration::from_secs(30);
/// The age from which a document ought to be fetched again.
const OLD: Duration = Duration::from_secs(60 * 60);

/// The outcome of a fetch, once there is one.
pub(super) type Outcome<T> = Option<Result<Arc<T>, FetchError>>;

/// The last fetch of a URL. It is under way as long as the other end is there.
pub(super) type Fetch<T> = watch::Receiver<Outcome<T>>;

/// All that is known, by request target.
pub(super) struct Shelf<T> {
    places: HashMap<String, Place<T>>,
    uses: u64,
}

struct Place<T> {
    /// The last good document, and when it came.
    document: Option<(Arc<T>, SystemTime)>,
    fetch: Fetch<T>,
    /// When the URL was asked, if it was.
    asked: Option<SystemTime>,
    /// The shelf's count of uses when this was used last.
    used: u64,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { places: HashMap::new(), uses: 0 }
    }
}

impl<T> Shelf<T> {
    /// The last good document, of any age.
    pub(super) fn document(&mut self, key: &str) -> Option<Arc<T>> {
        let place = self.used(key)?;
        place.document.as_ref().map(|(document, _)| document.clone())
    }

    /// Whether there is a document that ought to be fetched again. A clock that was set back makes it so.
    pub(super) fn is_old(&self, key: &str, now: SystemTime) -> bool {
        let document = self.places.get(key).and_then(|place| place.document.as_ref());
        document.is_some_and(|(_, kept)| !is_within(OLD, *kept, now))
    }

    /// The fetch whose outcome counts now: under way, or made a moment ago.
    pub(super) fn fetch(&mut self, key: &str, now: SystemTime) -> Option<Fetch<T>> {
        let place = self.used(key)?;
        let lately = place.asked.is_some_and(|asked| is_within(PAUSE, asked, now));
        (place.is_under_way() || lately).then(|| place.fetch.clone())
    }

    /// Writes down that a fetch begins. `false` when nothing can make room for it, since too many are under way.
    #[must_use]
    pub(super) fn begin(&mut self, key: &str, fetch: Fetch<T>) -> bool {
        if let Some(place) = self.used(key) {
            place.fetch = fetch;
            return true;
        }
        let strange = self.places.values().filter(|place| place.document.is_none() && place.is_under_way()).count();
        let room = strange < MAX_STRANGE && self.make_room();
        if room {
            let place = Place { document: None, fetch, asked: None, used: self.uses };
            self.places.insert(key.to_owned(), place);
        }
        room
    }

    /// Writes down that the URL is being asked.
    pub(super) fn asked(&mut self, key: &str, now: SystemTime) {
        if let Some(place) = self.places.get_mut(key) {
            place.asked = Some(now);
        }
    }

    /// Keeps a document that came.
    pub(super) fn keep(&mut self, key: &str, document: Arc<T>, now: SystemTime) {
        if let Some(place) = self.places.get_mut(key) {
            place.document = Some((document, now));
        }
    }

    fn used(&mut self, key: &str) -> Option<&mut Place<T>> {
        self.uses += 1;
        let place = self.places.get_mut(key)?;
        place.used = self.uses;
        Some(place)
    }

    /// What nobody got anything from goes first, then what was not used for longest.
    fn make_room(&mut self) -> bool {
        if self.places.len() < CAPACITY {
            return true;
        }
        let idle = self.places.iter().filter(|(_, place)| !place.is_under_way());
        let least = idle.min_by_key(|(_, place)| (place.document.is_some(), place.used));
        let Some(key) = least.map(|(key, _)| key.clone()) else { return false };
        self.places.remove(&key).is_some()
    }
}

impl<T> Place<T> {
    fn is_under_way(&self) -> bool {
        self.fetch.has_changed().is_ok()
    }
}

/// Whether `then` is less than `span` ago. A time to come is not: a clock was set back.
fn is_within(span: Duration, then: SystemTime, now: SystemTime) -> bool {
    now.duration_since(then).is_ok_and(|age| age < span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A fetch that is over.
    fn over() -> Fetch<&'static str> {
        watch::channel(None).1
    }

    fn shelf(documents: usize) -> Shelf<&'static str> {
        let mut shelf = Shelf::default();
        for index in 0..documents {
            assert!(shelf.begin(&index.to_string(), over()));
            shelf.keep(&index.to_string(), Arc::new("document"), at(0));
        }
        shelf
    }

    #[test]
    fn a_fetch_counts_while_under_way_and_for_thirty_seconds() {
        let mut shelf = shelf(0);
        let (under_way, fetch) = watch::channel(None);
        assert!(shelf.begin("a", fetch));
        assert!(shelf.fetch("a", at(1_000_000)).is_some());
        drop(under_way);
        assert!(shelf.fetch("a", at(1000)).is_none(), "nobody was asked");

        shelf.asked("a", at(1000));

        assert!(shelf.fetch("a", at(1029)).is_some());
        assert!(shelf.fetch("a", at(1030)).is_none());
        assert!(shelf.fetch("a", at(900)).is_none(), "the clock was set back");
    }

    #[test]
    fn a_document_is_old_after_an_hour_and_known_all_the_same() {
        let mut shelf = shelf(1);
        assert!(!shelf.is_old("0", at(3599)));
        assert!(shelf.is_old("0", at(3600)));
        assert!(!shelf.is_old("unknown", at(3600)));
        assert_eq!(shelf.document("0").as_deref(), Some(&"document"));
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut shelf = shelf(CAPACITY);
        shelf.document("0").unwrap();

        assert!(shelf.begin("new", over()));

        assert!(shelf.document("0").is_some());
        assert!(shelf.document("1").is_none());
        assert_eq!(shelf.places.len(), CAPACITY);
    }

    #[test]
    fn failures_make_room_before_documents_and_what_is_under_way_never_does() {
        let mut shelf = shelf(CAPACITY - 2);
        let (_under_way, fetch) = watch::channel(None);
        assert!(shelf.begin("under way", fetch));
        assert!(shelf.begin("failed", over()));

        assert!(shelf.begin("new", over()));

        assert!(!shelf.places.contains_key("failed"));
        assert!(shelf.places.contains_key("under way") && shelf.places.contains_key("0"));
    }

    #[test]
    fn what_is_asked_for_the_first_time_leaves_half_of_the_places_to_what_is_known() {
        let (mut shelf, mut senders) = (shelf(CAPACITY / 2), Vec::new());
        for index in 0..MAX_STRANGE {
            let (sender, fetch) = watch::channel(None);
            senders.push(sender);
            assert!(shelf.begin(&format!("strange {index}"), fetch));
        }
        assert!(!shelf.begin("new", over()));
        assert!(shelf.begin("0", over()) && shelf.begin("strange 0", over()), "what has a place needs none");
        assert!((0..CAPACITY / 2).all(|index| shelf.document(&index.to_string()).is_some()));

        senders.clear();
        assert!(shelf.begin("new", over()));
    }
}
