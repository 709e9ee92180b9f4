//! Whether storing works, judged by what was confirmed and not by what is connected.
//!
//! A confirmed publish confirms its stream; a failed publish or a failed probe (`probe`) makes it unconfirmed. A role is
//! ready while nothing that it needs is unconfirmed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::StreamKind;

/// For how long a publish may fail before the role is not ready: elections and restarts are shorter than a publish
/// and its repeats.
const FAILING_FOR: Duration = Duration::from_secs(3);
/// How long after the last failed publish a probe counts more than it.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(5);

/// Something in NATS that a role cannot work without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Need {
    /// A stream that takes messages.
    Stream(StreamKind),
    /// The courier's durable on a stream.
    Durable(StreamKind),
    /// The bucket of endpoints, to which something is really written.
    Endpoints,
    /// The bucket of tasks.
    Tasks,
}

impl Need {
    /// What the gateway needs, with or without clients that delegate tasks.
    pub(crate) fn of_gateway(has_clients: bool) -> Vec<Self> {
        let mut needs = vec![Self::Stream(StreamKind::Events)];
        if has_clients {
            let streams = [StreamKind::Tasks, StreamKind::Retry, StreamKind::Outbox];
            needs.extend(streams.map(Self::Stream));
            needs.push(Self::Tasks);
        }
        needs
    }

    /// What the courier needs.
    pub(crate) fn of_courier() -> Vec<Self> {
        let streams =
            [StreamKind::Outbox, StreamKind::Retry, StreamKind::Receipts, StreamKind::Dead, StreamKind::Tasks];
        let durables = [StreamKind::Outbox, StreamKind::Retry];
        let mut needs: Vec<Self> = streams.map(Self::Stream).to_vec();
        needs.extend(durables.map(Self::Durable));
        needs.extend([Self::Endpoints, Self::Tasks]);
        needs
    }
}

/// Why storing does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(super) cause: Cause,
    /// The reason in words, with the names of stream and server.
    pub(super) reason: String,
}

/// What kind of reason it is; decides what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing was confirmed on this connection yet.
    Unconfirmed,
    /// A publish failed; nobody has looked why.
    Publish,
    /// A publish was refused because the stream is full; the bytes that did not fit.
    Full { bytes: u64 },
    /// The server does not respond at all.
    Silent,
    /// The server responds, but JetStream does not, or says that it has no quorum.
    NoQuorum,
    /// The stream has no leader, or one that does not confirm.
    NoLeader,
    /// The server refuses to work with it.
    Refused,
    /// It is not there.
    Missing,
    /// The server cannot write it down.
    Disk,
    /// Somebody has paused it.
    Paused,
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

#[derive(Clone, Debug)]
struct Unconfirmed {
    since: Instant,
    /// When the last publish failed, if one did.
    failed: Option<Instant>,
    /// Whether a probe found the same.
    verified: bool,
    trouble: Trouble,
}

/// What is known of each need of a role.
#[derive(Debug)]
pub(crate) struct Health {
    began: Instant,
    /// Milliseconds after `began`, by stream; 0 for never.
    confirmed: [AtomicU64; StreamKind::ALL.len()],
    /// Whether anything is unconfirmed: so that a confirmed publish costs no lock.
    any_unconfirmed: AtomicBool,
    unconfirmed: Mutex<BTreeMap<Need, Unconfirmed>>,
    /// Whether any connection was ready before.
    was_ready: AtomicBool,
    /// Told of every failed publish.
    pub(super) check: Notify,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            confirmed: Default::default(),
            any_unconfirmed: AtomicBool::new(false),
            unconfirmed: Mutex::default(),
            was_ready: AtomicBool::new(false),
            check: Notify::new(),
        }
    }
}

impl Health {
    /// A new connection: what was known of the old one says nothing.
    pub(super) fn begin(&self, needs: &[Need]) {
        let trouble =
            Trouble { cause: Cause::Unconfirmed, reason: "nothing has been confirmed on this connection yet".into() };
        let entry = Unconfirmed { since: Instant::now(), failed: None, verified: true, trouble };
        *self.unconfirmed() = needs.iter().map(|need| (*need, entry.clone())).collect();
        self.any_unconfirmed.store(!needs.is_empty(), Ordering::Release);
        self.was_ready.store(true, Ordering::Release);
        self.check.notify_one();
    }

    /// Whether any connection was ready before.
    pub(super) fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Acquire)
    }

    /// For how long the oldest need has been unconfirmed; zero for none.
    pub(super) fn unconfirmed_for(&self) -> Duration {
        self.unconfirmed().values().map(|entry| entry.since.elapsed()).max().unwrap_or_default()
    }

    /// A stream confirmed a publish.
    pub(super) fn confirmed(&self, stream: StreamKind) {
        self.confirmed[stream as usize].store(self.now_ms(), Ordering::Relaxed);
        if self.any_unconfirmed.load(Ordering::Relaxed) {
            self.clear(Need::Stream(stream), None);
        }
    }

    /// A stream did not confirm a publish.
    pub(super) fn failed(&self, stream: StreamKind, cause: Cause, reason: String) {
        let now = Instant::now();
        let mut unconfirmed = self.unconfirmed();
        let entry = unconfirmed.entry(Need::Stream(stream)).or_insert_with(|| Unconfirmed {
            since: now,
            failed: None,
            verified: false,
            trouble: Trouble { cause, reason: reason.clone() },
        });
        entry.failed = Some(now);
        // What a probe has found out says more than a publish that was not answered.
        if !entry.verified || matches!(entry.trouble.cause, Cause::Unconfirmed) {
            entry.trouble = Trouble { cause, reason };
        }
        self.any_unconfirmed.store(true, Ordering::Release);
        drop(unconfirmed);
        self.check.notify_one();
    }

    /// A probe succeeded. It does not outweigh publishes that fail meanwhile.
    pub(super) fn probe_succeeded(&self, need: Need) {
        self.clear(need, Some(IDLE_AFTER));
        if let Need::Stream(stream) = need {
            self.confirmed[stream as usize].store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// A probe failed.
    pub(super) fn probe_failed(&self, need: Need, trouble: Trouble) {
        let mut unconfirmed = self.unconfirmed();
        let new = Unconfirmed { since: Instant::now(), failed: None, verified: true, trouble: trouble.clone() };
        let entry = unconfirmed.entry(need).or_insert(new);
        (entry.verified, entry.trouble) = (true, trouble);
        self.any_unconfirmed.store(true, Ordering::Release);
    }

    fn clear(&self, need: Need, after: Option<Duration>) {
        let mut unconfirmed = self.unconfirmed();
        let is_over = |entry: &Unconfirmed| match (after, entry.failed) {
            (Some(after), Some(failed)) => failed.elapsed() >= after,
            _ => true,
        };
        if unconfirmed.get(&need).is_some_and(is_over) {
            unconfirmed.remove(&need);
        } else if let Some(entry) = unconfirmed.get_mut(&need) {
            entry.verified = false;
        }
        self.any_unconfirmed.store(!unconfirmed.is_empty(), Ordering::Release);
    }

    /// Why the role is not ready, if it is not: the most informative cause.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        if !self.any_unconfirmed.load(Ordering::Acquire) {
            return None;
        }
        let unconfirmed = self.unconfirmed();
        let mut counting = unconfirmed.values().filter(|entry| entry.verified || entry.since.elapsed() >= FAILING_FOR);
        let first = counting.next()?;
        // What a check found about one need says more than that another one is not confirmed yet.
        let said_more = counting.find(|entry| entry.trouble.cause != Cause::Unconfirmed);
        let is_unconfirmed = first.trouble.cause == Cause::Unconfirmed;
        Some(said_more.filter(|_| is_unconfirmed).unwrap_or(first).trouble.clone())
    }

    /// What has been wrong with a need for how long, if anything is.
    pub(super) fn why_unconfirmed(&self, need: Need) -> Option<(Cause, Duration)> {
        self.unconfirmed().get(&need).map(|entry| (entry.trouble.cause, entry.since.elapsed()))
    }

    /// How long ago a stream confirmed anything.
    pub(super) fn since_confirmed(&self, stream: StreamKind) -> Duration {
        let confirmed = self.confirmed[stream as usize].load(Ordering::Relaxed);
        Duration::from_millis(self.now_ms().saturating_sub(confirmed))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn unconfirmed(&self) -> MutexGuard<'_, BTreeMap<Need, Unconfirmed>> {
        self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: Need = Need::Stream(StreamKind::Events);

    fn failed(health: &Health) {
        health.failed(StreamKind::Events, Cause::Publish, "no".to_owned());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_unconfirmed_until_every_need_is_confirmed() {
        let health = Health::default();
        health.begin(&[EVENTS, Need::Endpoints]);
        assert_eq!(health.trouble().map(|trouble| trouble.cause), Some(Cause::Unconfirmed));
        health.confirmed(StreamKind::Events);
        assert!(health.trouble().is_some());
        health.probe_succeeded(Need::Endpoints);
        assert_eq!(health.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_publish_counts_after_a_while_and_until_one_is_confirmed() {
        let health = Health::default();
        failed(&health);
        assert_eq!(health.trouble(), None);
        tokio::time::advance(FAILING_FOR).await;
        assert!(health.trouble().is_some());
        health.confirmed(StreamKind::Events);
        assert_eq!(health.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_says_nothing_against_publishes_that_fail() {
        let health = Health::default();
        failed(&health);
        tokio::time::advance(FAILING_FOR).await;
        failed(&health);
        health.probe_succeeded(EVENTS);
        assert!(health.trouble().is_some());
        tokio::time::advance(IDLE_AFTER).await;
        health.probe_succeeded(EVENTS);
        assert_eq!(health.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_counts_at_once_and_says_why() {
        let health = Health::default();
        failed(&health);
        let trouble = Trouble { cause: Cause::Disk, reason: "no space left".to_owned() };
        health.probe_failed(EVENTS, trouble.clone());
        failed(&health);
        assert_eq!(health.trouble(), Some(trouble));
    }
}
