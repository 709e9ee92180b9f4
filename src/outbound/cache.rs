//! Documents by URL, parsed once: the public keys that webhooks are verified with.
//!
//! Senders say what is fetched, so a hostile one must not make us hammer anybody. A URL has one fetch at a time,
//! whose outcome everybody waits for who asks meanwhile; for 30 s it counts for everybody who asks later. Not
//! more than four fetches are made at once.
//!
//! A fetch goes on when whoever asked for it has gone, or a sender who hangs up could have it begun again and
//! again. It has a deadline, and no more are waiting than the cache has places.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};
use url::Url;

use super::fetch::{FetchError, Fetcher, name};
use super::shelf::{Fetch, Outcome, Shelf};
use super::target::request_target;
use crate::clock::Clock;

/// Fetches made at once.
const MAX_FETCHES: usize = 4;

/// How a document is understood; the error says what is wrong with it.
type Parse<T> = fn(&[u8]) -> Result<T, String>;

/// Parsed documents by URL. A URL's fragment and userinfo make no difference.
pub(crate) struct Cache<T>(Arc<Shared<T>>);

struct Shared<T> {
    fetcher: Fetcher,
    clock: Clock,
    parse: Parse<T>,
    slots: Semaphore,
    shelf: Mutex<Shelf<T>>,
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + Sync + 'static> Cache<T> {
    pub(crate) fn new(fetcher: Fetcher, clock: Clock, parse: Parse<T>) -> Self {
        let (slots, shelf) = (Semaphore::new(MAX_FETCHES), Mutex::default());
        Self(Arc::new(Shared { fetcher, clock, parse, slots, shelf }))
    }

    /// The last good document, without I/O: of any age, also when a later fetch failed.
    pub(crate) fn known(&self, url: &str) -> Option<Arc<T>> {
        self.shelf().document(&key(&url.parse().ok()?)?)
    }

    /// Whether there is a document of more than an hour, which ought to be fetched again.
    pub(crate) fn is_old(&self, url: &str) -> bool {
        let key = url.parse().ok().and_then(|url| key(&url));
        key.is_some_and(|key| self.shelf().is_old(&key, self.0.clock.now()))
    }

    /// The outcome of a fetch of less than 30 s ago, or of one under way, or else of a new one. That includes its
    /// failure: whoever can do with an older document asks for what is [known](Self::known).
    ///
    /// Takes no longer than twice the fetcher's timeout: once for a slot and once for the fetch.
    pub(crate) async fn fetch(&self, url: &Url) -> Result<Arc<T>, FetchError> {
        let key = self.0.fetcher.check(url)?.to_string();
        let mut fetch = self.join_or_begin(url, key).ok_or_else(|| FetchError::Busy { url: name(url) })?;
        let outcome = fetch.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| {
            let detail = "the fetch was not carried through".to_owned();
            Err(FetchError::Unreachable { url: name(url), detail })
        })
    }

    /// Puts a document in place as if it had just been fetched.
    #[cfg(test)]
    fn insert(&self, url: &Url, document: T) {
        let (Some(key), document) = (key(url), Arc::new(document)) else { return };
        let (now, mut shelf) = (self.0.clock.now(), self.shelf());
        if shelf.begin(&key, watch::channel(Some(Ok(document.clone()))).1) {
            shelf.asked(&key, now);
            shelf.keep(&key, document, now);
        }
    }

    fn join_or_begin(&self, url: &Url, key: String) -> Option<Fetch<T>> {
        let mut shelf = self.shelf();
        if let Some(fetch) = shelf.fetch(&key, self.0.clock.now()) {
            return Some(fetch);
        }
        let (outcome, fetch) = watch::channel(None);
        if !shelf.begin(&key, fetch.clone()) {
            return None;
        }
        tokio::spawn(self.clone().carry_out(url.clone(), key, outcome));
        Some(fetch)
    }

    async fn carry_out(self, url: Url, key: String, outcome: watch::Sender<Outcome<T>>) {
        let fetched = self.fetch_in_turn(&url, &key).await;
        if let Ok(document) = &fetched {
            self.shelf().keep(&key, document.clone(), self.0.clock.now());
        }
        outcome.send_replace(Some(fetched));
    }

    /// Only what is really asked counts as asked: who found no slot may come back at once.
    async fn fetch_in_turn(&self, url: &Url, key: &str) -> Result<Arc<T>, FetchError> {
        let slot = tokio::time::timeout(self.0.fetcher.timeout(), self.0.slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else { return Err(FetchError::Busy { url: name(url) }) };
        self.shelf().asked(key, self.0.clock.now());
        let answer = self.0.fetcher.get(url).await?;
        let unusable = |reason| FetchError::Unusable { url: name(url), reason };
        (self.0.parse)(&answer).map(Arc::new).map_err(unusable)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<T>> {
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a document is kept under: what would be asked for.
fn key(url: &Url) -> Option<String> {
    request_target(url).map(|target| target.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use futures_util::future::join_all;

    use super::super::fetch::FETCH_TIMEOUT;
    use super::super::loopback::{Server, answer, guard};
    use super::super::shelf::CAPACITY;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A cache of texts, and its clock.
    fn cache(timeout: Duration) -> (Cache<String>, Clock) {
        let clock = Clock::fixed(at(1_000_000));
        let parse = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok("nonsense") => Err("not a document".to_owned()),
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(error.to_string()),
        };
        (Cache::new(Fetcher::new(guard(), timeout).unwrap(), clock.clone(), parse), clock)
    }

    #[tokio::test]
    async fn a_document_is_fetched_once_for_all_who_ask_at_once() {
        let server = Server::start(|_| answer("200 OK", "key")).await;
        let ((cache, _), url) = (cache(FETCH_TIMEOUT), server.url("/"));
        assert!(cache.known(url.as_str()).is_none());

        let documents = join_all((0..10).map(|_| cache.fetch(&url))).await;

        let known = cache.known(url.as_str()).unwrap();
        assert_eq!(*known, "key");
        assert!(documents.iter().all(|document| Arc::ptr_eq(document.as_ref().unwrap(), &known)));
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn a_fetch_goes_on_when_who_asked_has_gone() {
        let server = Server::start(|_| answer("200 OK", "key")).await;
        let ((cache, _), url) = (cache(FETCH_TIMEOUT), server.url("/"));

        tokio::select! {
            biased;
            _ = cache.fetch(&url) => panic!("the fetch was over before it began"),
            () = std::future::ready(()) => {}
        }

        assert_eq!(*cache.fetch(&url).await.unwrap(), "key");
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn a_url_is_not_asked_again_within_thirty_seconds_and_is_afterwards() {
        let server = Server::start(|_| answer("200 OK", "key")).await;
        let ((cache, clock), url) = (cache(FETCH_TIMEOUT), server.url("/"));
        let mut same = url.clone();
        same.set_fragment(Some("other"));

        cache.fetch(&url).await.unwrap();
        clock.set(at(1_000_029));
        cache.fetch(&same).await.unwrap();
        assert_eq!(server.requests(), 1);

        clock.set(at(1_000_030));
        cache.fetch(&url).await.unwrap();
        assert_eq!(server.requests(), 2);
    }

    #[tokio::test]
    async fn a_failure_counts_for_thirty_seconds_too_and_leaves_what_was_known() {
        let server = Server::start(|_| answer("404 Not Found", "")).await;
        let ((cache, clock), url) = (cache(FETCH_TIMEOUT), server.url("/?token=t0ken"));
        cache.insert(&url, "known beforehand".to_owned());
        assert_eq!(*cache.fetch(&url).await.unwrap(), "known beforehand");
        assert!(!cache.is_old(url.as_str()));
        clock.set(at(1_003_600));
        assert!(cache.is_old(url.as_str()));

        let first = cache.fetch(&url).await.unwrap_err();
        let second = cache.fetch(&url).await.unwrap_err();

        assert_eq!(first, FetchError::Status { url: server.url("/").to_string(), status: 404 });
        assert_eq!((second, server.requests()), (first, 1));
        assert_eq!(*cache.known(url.as_str()).unwrap(), "known beforehand");
        clock.set(at(1_003_630));
        cache.fetch(&url).await.unwrap_err();
        assert_eq!(server.requests(), 2);
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_parsed_is_no_document() {
        let server = Server::start(|_| answer("200 OK", "nonsense")).await;
        let ((cache, _), url) = (cache(FETCH_TIMEOUT), server.url("/"));

        let error = cache.fetch(&url).await.unwrap_err();

        assert_eq!(error, FetchError::Unusable { url: url.to_string(), reason: "not a document".to_owned() });
        assert!(cache.known(url.as_str()).is_none());
    }

    #[tokio::test]
    async fn what_finds_no_slot_in_time_is_not_asked_and_may_come_back_at_once() {
        let server = Server::start(|_| answer("200 OK", "key")).await;
        let ((cache, _), url) = (cache(Duration::from_millis(500)), server.url("/"));
        assert_eq!(cache.0.slots.available_permits(), 4);
        let slots = cache.0.slots.acquire_many(4).await.unwrap();

        let error = cache.fetch(&url).await.unwrap_err();
        drop(slots);

        assert_eq!((error, server.requests()), (FetchError::Busy { url: url.to_string() }, 0));
        assert_eq!(*cache.fetch(&url).await.unwrap(), "key");
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_is_fetched_again() {
        let server = Server::start(|_| answer("200 OK", "fetched")).await;
        let (cache, _) = cache(FETCH_TIMEOUT);
        for index in 0..=CAPACITY {
            cache.insert(&server.url(&format!("/{index}")), "inserted".to_owned());
        }

        assert!(cache.known(server.url("/0").as_str()).is_none());
        assert_eq!(*cache.fetch(&server.url("/1")).await.unwrap(), "inserted");
        assert_eq!(*cache.fetch(&server.url("/0")).await.unwrap(), "fetched");
    }
}
