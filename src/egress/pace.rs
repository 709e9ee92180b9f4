//! How often attempts to one destination may begin.
//!
//! A token bucket, kept as the one moment up to which it is spent (the generic cell rate algorithm). What finds it
//! empty gets a moment of its own, already paid for: what waits for a rate comes back at just that rate, and is not
//! counted again.

use std::time::{Duration, SystemTime};

use crate::config::Rate;

/// The bucket of one destination in this process.
#[derive(Debug)]
pub(super) struct Pace {
    spent_until: SystemTime,
}

impl Default for Pace {
    fn default() -> Self {
        Self { spent_until: SystemTime::UNIX_EPOCH }
    }
}

impl Pace {
    /// Takes a token; the error is the moment at which the one that was taken instead is due.
    pub(super) fn take(&mut self, rate: Rate, now: SystemTime) -> Result<(), SystemTime> {
        let quota = rate.quota();
        let each = quota.replenish_interval();
        let burst = each.saturating_mul(quota.burst_size().get().saturating_sub(1));
        let begins = self.spent_until.max(now);
        self.spent_until = begins + each;
        match begins.duration_since(now).unwrap_or(Duration::ZERO).checked_sub(burst) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(early) => Err(now + early),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_out_at_once_and_what_is_over_at_the_rate() {
        let (mut pace, now) = (Pace::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let rate = "10/s burst 3".parse().unwrap();
        for _ in 0..3 {
            assert_eq!(pace.take(rate, now), Ok(()));
        }
        for tenths in 1..=5 {
            assert_eq!(pace.take(rate, now), Err(now + Duration::from_millis(100 * tenths)));
        }
    }

    #[test]
    fn a_bucket_fills_again_with_time() {
        let (mut pace, now) = (Pace::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let rate = "10/s burst 1".parse().unwrap();
        assert_eq!(pace.take(rate, now), Ok(()));
        assert!(pace.take(rate, now).is_err());
        assert_eq!(pace.take(rate, now + Duration::from_millis(200)), Ok(()));
    }
}
