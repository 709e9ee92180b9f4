//! Timestamps as providers write them, and how far from now they may be.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Rejection;
use crate::clock::{rfc3339, unix_millis, unix_seconds};

/// How a timestamp is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Unit {
    /// Seconds since 1970, digits only.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since 1970, digits only.
    #[serde(rename = "ms")]
    Milliseconds,
    /// RFC 3339 with any offset and up to nanoseconds.
    #[serde(rename = "rfc3339")]
    Rfc3339,
}

/// The longest timestamp that is looked at.
const MAX_LENGTH: usize = 40;

impl Unit {
    /// Milliseconds since 1970; the error says what is wrong.
    pub(super) fn read(self, text: &str) -> Result<i128, &'static str> {
        if text.len() > MAX_LENGTH {
            return Err("it is too long for a timestamp");
        }
        match self {
            Self::Seconds => digits(text).map(|seconds| seconds * 1000),
            Self::Milliseconds => digits(text),
            Self::Rfc3339 => OffsetDateTime::parse(text, &Rfc3339)
                .map(|time| time.unix_timestamp_nanos() / 1_000_000)
                .map_err(|_| "it is not an RFC 3339 time"),
        }
    }

    /// A time as a sender writes it.
    pub(crate) fn write(self, time: SystemTime) -> String {
        match self {
            Self::Seconds => unix_seconds(time).to_string(),
            Self::Milliseconds => unix_millis(time).to_string(),
            Self::Rfc3339 => rfc3339(time),
        }
    }

    /// Refuses a timestamp that is older or further ahead than it may be.
    pub(super) fn check(
        self,
        text: &str,
        place: &str,
        (past, future): (Duration, Duration),
        now: SystemTime,
    ) -> Result<(), Rejection> {
        let malformed = |reason| Rejection::Malformed { place: place.to_owned(), reason };
        let sent = self.read(text).map_err(malformed)?;
        let now = match self {
            Self::Seconds => i128::from(unix_seconds(now)) * 1000,
            Self::Milliseconds | Self::Rfc3339 => i128::from(unix_millis(now)),
        };
        let beyond = |distance: i128, tolerance: Duration| {
            let over = distance - i128::try_from(tolerance.as_millis()).unwrap_or(i128::MAX);
            (over > 0).then(|| Duration::from_millis(u64::try_from(over).unwrap_or(u64::MAX)))
        };
        match (beyond(now - sent, past), beyond(sent - now, future)) {
            (Some(by), _) => Err(Rejection::TooOld { by }),
            (_, Some(by)) => Err(Rejection::TooNew { by }),
            (None, None) => Ok(()),
        }
    }
}

/// Digits only: `+17`, ` 17` and `1e9` are numbers to some parsers and not to others.
fn digits(text: &str) -> Result<i128, &'static str> {
    let only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u64>().ok().filter(|_| only);
    number.map(i128::from).ok_or("it is not a time in digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(unit: Unit, text: &str) -> Result<(), Rejection> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_760_000_000);
        unit.check(text, "header:t", (Duration::from_secs(300), Duration::from_secs(300)), now)
    }

    #[test]
    fn a_timestamp_within_the_tolerance_is_taken_in_every_unit() {
        for (unit, text) in [
            (Unit::Seconds, "1760000000"),
            (Unit::Seconds, "1759999700"),
            (Unit::Seconds, "1760000300"),
            (Unit::Milliseconds, "1759999700000"),
            (Unit::Rfc3339, "2025-10-09T08:53:20.123456789Z"),
            (Unit::Rfc3339, "2025-10-09T01:53:20-07:00"),
        ] {
            assert_eq!(check(unit, text), Ok(()), "{text}");
        }
    }

    #[test]
    fn one_outside_says_by_how_much() {
        let by = Duration::from_secs(412);
        assert_eq!(check(Unit::Seconds, "1759999288"), Err(Rejection::TooOld { by }));
        assert_eq!(check(Unit::Seconds, "1760000712"), Err(Rejection::TooNew { by }));
        assert!(check(Unit::Milliseconds, "1759999699999").is_err());
        assert_eq!(Rejection::TooOld { by }.to_string(), "too old by 412 s");
    }

    #[test]
    fn the_future_can_have_a_tolerance_of_its_own() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_760_000_000);
        let check =
            |text: &str| Unit::Seconds.check(text, "t", (Duration::from_secs(300), Duration::from_secs(5)), now);
        assert_eq!(check("1759999700"), Ok(()));
        assert_eq!(check("1760000006"), Err(Rejection::TooNew { by: Duration::from_secs(1) }));
    }

    #[test]
    fn one_so_far_ahead_that_the_distance_fits_no_number_is_too_new() {
        for (unit, text) in [
            (Unit::Seconds, "17601760000000000000"),
            (Unit::Seconds, "18446744073709551615"),
            (Unit::Milliseconds, "18446744073709551615"),
        ] {
            assert!(matches!(check(unit, text), Err(Rejection::TooNew { .. })), "{text}");
        }
    }

    #[test]
    fn what_is_no_timestamp_is_malformed() {
        let forty = "1".repeat(40);
        for (unit, bad) in [
            (Unit::Seconds, ""),
            (Unit::Seconds, "+1760000000"),
            (Unit::Seconds, " 1760000000"),
            (Unit::Seconds, "1.76e9"),
            (Unit::Seconds, &forty),
            (Unit::Milliseconds, "-1"),
            (Unit::Rfc3339, "yesterday"),
            (Unit::Rfc3339, "2025-13-09T08:53:20Z"),
        ] {
            assert!(matches!(check(unit, bad), Err(Rejection::Malformed { .. })), "{bad}");
        }
    }
}
