//! What strangers may cost: a bucket for every address, emptied by requests that prove nothing.
//!
//! A bucket is asked before a signature is checked, and charged after that has failed; a genuine request takes
//! nothing out of it. So asking and charging are two things here. The limiter's arithmetic is `governor`'s, which
//! asks and charges in one: [`Table`] tells it what a bucket holds, and writes down what it says only when the
//! bucket is to be charged.
//!
//! The table is bounded. When it is full, buckets that have filled up again long since are dropped, which changes
//! nothing; if it is still full, addresses that have none share one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{NotUntil, RateLimiter};

use super::peer::Sender;
use crate::config::Rate;

/// The most buckets that are kept; about 5 MB.
const MAX_BUCKETS: usize = 100_000;
/// How often a full table is looked through at most. That takes it a few milliseconds, and others wait.
const LOOK_THROUGH_EVERY: Duration = Duration::from_secs(1);

/// A request too many. It may come again after so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSoon {
    pub(super) seconds: u64,
}

impl TooSoon {
    /// In whole seconds, rounded up, and at least one.
    pub(super) fn new<P: Reference>(refused: &NotUntil<P>, now: P) -> Self {
        let wait = refused.wait_time_from(now);
        Self { seconds: (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1) }
    }
}

/// The buckets of all peers.
pub(super) struct PeerRate<C: Clock = DefaultClock> {
    limiter: RateLimiter<Question, Table, C, NoOpMiddleware<C::Instant>>,
    max_buckets: usize,
    looked_through: Mutex<C::Instant>,
}

impl PeerRate {
    pub(super) fn new(rate: Rate) -> Self {
        Self::with(rate, MAX_BUCKETS, DefaultClock::default())
    }
}

impl<C: Clock> PeerRate<C> {
    fn with(rate: Rate, max_buckets: usize, clock: C) -> Self {
        let now = clock.now();
        let table = Table { max_buckets, buckets: Mutex::default() };
        Self { limiter: RateLimiter::new(rate.quota(), table, clock), max_buckets, looked_through: Mutex::new(now) }
    }

    /// Whether the sender may still fail to prove himself. Costs nothing.
    pub(super) fn check(&self, sender: Sender) -> Result<(), TooSoon> {
        self.ask(sender, false)
    }

    /// Charges the sender for a request that proved nothing.
    pub(super) fn charge(&self, sender: Sender) {
        // A bucket that is empty stays so.
        self.ask(sender, true).ok();
    }

    fn ask(&self, sender: Sender, charge: bool) -> Result<(), TooSoon> {
        let Some(peer) = sender.counted_as() else { return Ok(()) };
        if self.limiter.len() >= self.max_buckets {
            self.look_through();
        }
        let answer = self.limiter.check_key(&Question { peer, charge });
        answer.map_err(|refused| TooSoon::new(&refused, self.limiter.clock().now()))
    }

    /// Drops the buckets that are full again, unless that was done a moment ago.
    fn look_through(&self) {
        let now = self.limiter.clock().now();
        {
            let mut last = self.looked_through.lock().unwrap_or_else(PoisonError::into_inner);
            if now.duration_since(*last) < LOOK_THROUGH_EVERY.into() {
                return;
            }
            *last = now;
        }
        self.limiter.retain_recent();
    }
}

/// What a bucket is asked: whether there is room, and whether to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    peer: IpAddr,
    charge: bool,
}

/// What the limiter has to know of every peer. A peer who is not in it has a full bucket.
struct Table {
    max_buckets: usize,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    own: HashMap<IpAddr, Nanos>,
    /// The bucket of everybody who came when there was no place for his own.
    shared: Option<Nanos>,
}

impl Table {
    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Table {
    type Key = Question;

    fn measure_and_replace<T, F, E>(&self, question: &Question, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut buckets = self.buckets();
        let own = buckets.own.get(&question.peer).copied();
        let shares = own.is_none() && buckets.own.len() >= self.max_buckets;
        let (answer, charged) = decide(if shares { buckets.shared } else { own })?;
        if question.charge && shares {
            buckets.shared = Some(charged);
        } else if question.charge {
            buckets.own.insert(question.peer, charged);
        }
        Ok(answer)
    }
}

impl ShrinkableKeyedStateStore<Question> for Table {
    fn retain_recent(&self, drop_below: Nanos) {
        self.buckets().own.retain(|_, bucket| *bucket > drop_below);
    }

    fn len(&self) -> usize {
        self.buckets().own.len()
    }

    fn is_empty(&self) -> bool {
        self.buckets().own.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use http::HeaderMap;

    use super::*;

    fn sender(address: &str) -> Sender {
        Sender::of(address.parse().unwrap(), &HeaderMap::new(), &[])
    }

    fn rate(text: &str, max_buckets: usize) -> (PeerRate<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (PeerRate::with(text.parse().unwrap(), max_buckets, clock.clone()), clock)
    }

    #[test]
    fn asking_costs_nothing_and_a_burst_of_charges_empties_the_bucket() {
        let (rate, _) = rate("1/s burst 3", 10);
        let stranger = sender("203.0.113.9");
        for _ in 0..100 {
            assert_eq!(rate.check(stranger), Ok(()));
        }
        for _ in 0..3 {
            assert_eq!(rate.check(stranger), Ok(()));
            rate.charge(stranger);
        }
        assert_eq!(rate.check(stranger), Err(TooSoon { seconds: 1 }));
        assert_eq!(rate.check(sender("203.0.113.10")), Ok(()), "another one");
    }

    #[test]
    fn a_bucket_fills_up_again_and_charging_an_empty_one_does_not_put_that_off() {
        let (rate, clock) = rate("1/m burst 2", 10);
        let stranger = sender("203.0.113.9");
        for _ in 0..20 {
            rate.charge(stranger);
        }
        assert_eq!(rate.check(stranger), Err(TooSoon { seconds: 60 }));
        clock.advance(Duration::from_millis(59_500));
        assert_eq!(rate.check(stranger), Err(TooSoon { seconds: 1 }));
        clock.advance(Duration::from_millis(500));
        assert_eq!(rate.check(stranger), Ok(()));
        rate.charge(stranger);
        assert_eq!(rate.check(stranger), Err(TooSoon { seconds: 60 }));
    }

    #[test]
    fn the_neighbors_in_a_64_share_a_bucket_and_inside_addresses_have_none() {
        let (rate, _) = rate("1/h", 10);
        rate.charge(sender("2001:db8:1:2::1"));
        assert!(rate.check(sender("2001:db8:1:2:ffff::2")).is_err());
        assert!(rate.check(sender("2001:db8:1:3::1")).is_ok());
        for _ in 0..10 {
            rate.charge(sender("10.0.0.1"));
        }
        assert!(rate.check(sender("10.0.0.1")).is_ok());
        assert_eq!(rate.limiter.len(), 1);
    }

    #[test]
    fn a_full_table_forgets_who_is_idle_and_gives_newcomers_one_bucket_together() {
        let (rate, clock) = rate("1/m", 2);
        rate.charge(sender("203.0.113.1"));
        clock.advance(Duration::from_secs(100));
        rate.charge(sender("203.0.113.2"));

        rate.charge(sender("203.0.113.3"));
        assert_eq!(rate.limiter.len(), 2, "the table grew beyond its bound");
        assert!(rate.check(sender("203.0.113.4")).is_err(), "newcomers share a bucket");
        assert!(rate.check(sender("203.0.113.1")).is_ok(), "who has a bucket keeps it");

        clock.advance(Duration::from_secs(21));
        assert!(rate.check(sender("203.0.113.4")).is_ok(), "one bucket has been full for long and made room");
        rate.charge(sender("203.0.113.4"));
        assert!(rate.check(sender("203.0.113.4")).is_err(), "its own");
        assert!(rate.check(sender("203.0.113.2")).is_err(), "the other is still there");
    }

    #[test]
    fn a_full_table_is_not_looked_through_for_every_newcomer() {
        let (rate, clock) = rate("1000/s burst 1", 1);
        clock.advance(LOOK_THROUGH_EVERY);
        rate.charge(sender("203.0.113.1"));
        rate.check(sender("203.0.113.2")).unwrap();
        clock.advance(LOOK_THROUGH_EVERY / 2);
        rate.check(sender("203.0.113.2")).unwrap();
        assert_eq!(rate.limiter.len(), 1);
        clock.advance(LOOK_THROUGH_EVERY / 2);
        rate.check(sender("203.0.113.2")).unwrap();
        assert_eq!(rate.limiter.len(), 0);
    }
}
