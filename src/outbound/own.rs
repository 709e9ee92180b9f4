//! The addresses of this very machine.
//!
//! One of them can be public, and then whoever names it reaches what listens here: the admin port, a server that
//! trusts its own host. Which they are changes while the process runs, so they are looked up again after a while.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a look-up counts. It asks the kernel, which takes well under a millisecond.
const FRESH: Duration = Duration::from_secs(10);

/// The addresses of the interfaces, without loopback, which is refused by its range.
#[derive(Clone, Debug)]
pub(super) struct Own(Arc<Source>);

#[derive(Debug)]
enum Source {
    Interfaces(Mutex<Option<(Instant, Arc<[IpAddr]>)>>),
    /// For tests.
    #[cfg(test)]
    Fixed(Arc<[IpAddr]>),
}

impl Own {
    /// Those of this machine.
    pub(super) fn of_this_machine() -> Self {
        Self(Arc::new(Source::Interfaces(Mutex::new(None))))
    }

    #[cfg(test)]
    pub(super) fn fixed(addresses: &[IpAddr]) -> Self {
        Self(Arc::new(Source::Fixed(addresses.into())))
    }

    /// The addresses as they were at most 10 s ago. Where the kernel does not say, those that it said before.
    pub(super) fn addresses(&self) -> Arc<[IpAddr]> {
        match &*self.0 {
            Source::Interfaces(known) => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                fresh(&mut known, Instant::now(), look_up)
            }
            #[cfg(test)]
            Source::Fixed(addresses) => addresses.clone(),
        }
    }
}

fn fresh(
    known: &mut Option<(Instant, Arc<[IpAddr]>)>,
    now: Instant,
    look_up: impl FnOnce() -> std::io::Result<Arc<[IpAddr]>>,
) -> Arc<[IpAddr]> {
    if let Some((_, addresses)) = known.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < FRESH) {
        return addresses.clone();
    }
    let addresses = look_up().unwrap_or_else(|error| {
        tracing::warn!("The addresses of this machine cannot be looked up, so new ones are not refused: {error}");
        known.as_ref().map_or_else(|| Arc::new([]) as Arc<[IpAddr]>, |(_, addresses)| addresses.clone())
    });
    *known = Some((now, addresses.clone()));
    addresses
}

fn look_up() -> std::io::Result<Arc<[IpAddr]>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.iter().map(|interface| interface.ip().to_canonical()).filter(|ip| !ip.is_loopback()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_up_again_after_ten_seconds_and_kept_when_that_fails() {
        let (mut known, begun) = (None, Instant::now());
        let found = |address: &str| Ok(Arc::new([address.parse().unwrap()]) as Arc<[IpAddr]>);
        let at = |seconds| begun + Duration::from_secs(seconds);

        assert_eq!(*fresh(&mut known, at(0), || found("10.0.0.1")), *found("10.0.0.1").unwrap());
        assert_eq!(*fresh(&mut known, at(9), || found("10.0.0.2")), *found("10.0.0.1").unwrap());
        assert_eq!(*fresh(&mut known, at(10), || found("10.0.0.2")), *found("10.0.0.2").unwrap());
        let failed = || Err(std::io::Error::other("no"));
        assert_eq!(*fresh(&mut known, at(30), failed), *found("10.0.0.2").unwrap());
    }

    #[test]
    fn this_machine_has_addresses_that_are_not_loopback_or_none() {
        assert!(Own::of_this_machine().addresses().iter().all(|address| !address.is_loopback()));
    }
}
