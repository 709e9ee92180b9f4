//! What one source may take up: where from, how often, how much at once.
//!
//! The networks are asked first of all. Rate and places are for requests that have proved themselves, so no
//! stranger can use them up.

use std::sync::Arc;

use governor::clock::Clock;
use governor::{DefaultDirectRateLimiter, RateLimiter};
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::ReceiveError;
use super::peer::Sender;
use super::peer_rate::TooSoon;
use crate::config;

/// The limits of one source.
pub(super) struct SourceLimits {
    networks: Vec<IpNet>,
    rate: Option<DefaultDirectRateLimiter>,
    places: Option<Arc<Semaphore>>,
}

/// A genuine request in hand. It is done when this is dropped.
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl SourceLimits {
    pub(super) fn new(source: &config::Source) -> Self {
        let places = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self {
            networks: source.networks.clone(),
            rate: source.rate.map(|rate| RateLimiter::direct(rate.quota())),
            places: source.max_concurrent.map(places),
        }
    }

    /// Whether the sender may send to the source at all.
    pub(super) fn admits(&self, sender: Sender) -> Result<(), ReceiveError> {
        if self.networks.is_empty() || sender.is_in(&self.networks) { Ok(()) } else { Err(ReceiveError::Network) }
    }

    /// Whether the operator listed the sender's network: then a stranger at the same provider cannot shut out the
    /// provider by failing from its addresses.
    pub(super) fn lists(&self, sender: Sender) -> bool {
        sender.is_in(&self.networks)
    }

    /// Takes a place for a genuine request, and counts it. One that finds no place is not counted.
    pub(super) fn take(&self) -> Result<Place, ReceiveError> {
        let permit = match &self.places {
            Some(places) => Some(places.clone().try_acquire_owned().map_err(|_| ReceiveError::SourceBusy)?),
            None => None,
        };
        if let Some(rate) = &self.rate
            && let Err(refused) = rate.check()
        {
            return Err(ReceiveError::SourceRate(TooSoon::new(&refused, rate.clock().now())));
        }
        Ok(Place { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::{Format, Toml};
    use http::HeaderMap;

    use super::*;

    fn limits(text: &str) -> SourceLimits {
        let source = format!("verify = \"none\"\n{text}");
        SourceLimits::new(&Figment::from(Toml::string(&source)).extract().unwrap())
    }

    #[test]
    fn without_networks_everybody_may_send_and_with_them_only_those() {
        let sender = |address: &str| Sender::of(address.parse().unwrap(), &HeaderMap::new(), &[]);
        assert!(limits("").admits(sender("203.0.113.9")).is_ok());
        let some = limits("networks = [\"198.51.100.0/24\", \"2001:db8::/32\"]");
        for (address, admitted) in [
            ("198.51.100.7", true),
            ("::ffff:198.51.100.7", true),
            ("2001:db8::1", true),
            ("198.51.101.7", false),
            ("2001:db9::1", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(some.admits(sender(address)).is_ok(), admitted, "{address}");
        }
    }

    #[test]
    fn a_request_that_finds_no_place_is_not_counted_by_the_rate() {
        let limits = limits("rate = \"1/h burst 2\"\nmax_concurrent = 1");
        let first = limits.take().unwrap();
        for _ in 0..5 {
            assert!(matches!(limits.take(), Err(ReceiveError::SourceBusy)));
        }
        drop(first);
        drop(limits.take().unwrap());
        assert!(matches!(limits.take(), Err(ReceiveError::SourceRate(TooSoon { seconds: 3540..=3600 }))));
        assert!(matches!(limits.take(), Err(ReceiveError::SourceRate(_))), "a refused one holds no place");
    }
}
