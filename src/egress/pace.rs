//! How often attempts to one destination may begin.
//!
//! A token bucket, kept as the one moment up to which it is spent (the generic cell rate algorithm). What finds it
//! empty gets a moment of its own, already paid for: what waits for a rate comes back at just that rate, and is not
//! counted again.

use std::time::{Duration, SystemTime};

use crate::config::Rate;

/// How far ahead is paid: a flood must not spend the tokens of those who come long after it.
const HORIZON: Duration = Duration::from_secs(600);

/// Why no attempt may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Later {
    /// It is paid for and may begin at this moment.
    Paid(SystemTime),
    /// It has to ask again, not before this moment.
    Unpaid(SystemTime),
}

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
    /// Takes a token, or pays for one that is due later, unless that is too far away or `ahead` says that nobody will
    /// remember it.
    pub(super) fn take(&mut self, rate: Rate, ahead: bool, now: SystemTime) -> Result<(), Later> {
        let quota = rate.quota();
        let each = quota.replenish_interval();
        let burst = each.saturating_mul(quota.burst_size().get().saturating_sub(1));
        let begins = self.spent_until.max(now);
        let early = begins.duration_since(now).unwrap_or(Duration::ZERO).saturating_sub(burst);
        if early > HORIZON || (!ahead && !early.is_zero()) {
            return Err(Later::Unpaid(now + early.min(HORIZON)));
        }
        self.spent_until = begins + each;
        if early.is_zero() { Ok(()) } else { Err(Later::Paid(now + early)) }
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
            assert_eq!(pace.take(rate, true, now), Ok(()));
        }
        for tenths in 1..=5 {
            assert_eq!(pace.take(rate, true, now), Err(Later::Paid(now + Duration::from_millis(100 * tenths))));
        }
    }

    #[test]
    fn a_bucket_fills_again_with_time() {
        let (mut pace, now) = (Pace::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let rate = "10/s burst 1".parse().unwrap();
        assert_eq!(pace.take(rate, true, now), Ok(()));
        assert!(pace.take(rate, true, now).is_err());
        assert_eq!(pace.take(rate, true, now + Duration::from_millis(200)), Ok(()));
    }

    #[test]
    fn nothing_is_paid_beyond_the_horizon_or_by_who_will_not_remember() {
        let (mut pace, now) = (Pace::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let rate = "1/m burst 1".parse().unwrap();
        assert_eq!(pace.take(rate, true, now), Ok(()));
        for _ in 0..1000 {
            let minute = Later::Unpaid(now + Duration::from_secs(60));
            assert_eq!(pace.take(rate, false, now), Err(minute));
        }
        let paid = (0..1000).filter(|_| matches!(pace.take(rate, true, now), Err(Later::Paid(_)))).count();
        assert_eq!(paid, 10);
        assert_eq!(pace.take(rate, true, now + Duration::from_secs(660)), Ok(()));
    }
}
