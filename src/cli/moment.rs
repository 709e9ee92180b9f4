//! A time as a person says it.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use super::Usage;

/// `2h` for two hours ago, or a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Ago(Duration),
    At(SystemTime),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = || humantime::parse_rfc3339_weak(text).map(Self::At);
        humantime::parse_duration(text)
            .map(Self::Ago)
            .or_else(|_| at())
            .map_err(|_| "a time is written `2h` for two hours ago, or `2026-01-31T12:00:00Z`".to_owned())
    }
}

impl Moment {
    /// The time that is meant, said at `now`.
    pub(super) fn time(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::UNIX_EPOCH),
            Self::At(time) => time,
        }
    }
}

/// From when until when, where both are meant; without an end it is now.
pub(super) fn range(since: Moment, until: Option<Moment>, now: SystemTime) -> Result<(SystemTime, SystemTime), Usage> {
    let (since, until) = (since.time(now), until.map_or(now, |until| until.time(now)));
    if until <= since {
        return Err(Usage::Other("--until is not after --since".to_owned()));
    }
    Ok((since, until))
}

/// Where the next run goes on after one that stopped at its limit: exactly, since many are stored in a millisecond.
pub(super) fn go_on(next: u64, stored: SystemTime) -> String {
    format!(
        "more match, and the next is sequence {next}; go on with --since {}",
        humantime::format_rfc3339_nanos(stored)
    )
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_time_is_so_long_ago_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000);
        let time = |text: &str| text.parse::<Moment>().unwrap().time(now);
        assert_eq!(time("2h"), UNIX_EPOCH + Duration::from_secs(2800));
        assert_eq!(time("1000000y"), UNIX_EPOCH);
        assert_eq!(time("1970-01-01T00:00:01.5Z"), UNIX_EPOCH + Duration::from_millis(1500));
        for text in ["", "yesterday", "2h ago", "12:00"] {
            assert!(text.parse::<Moment>().unwrap_err().contains("2h"), "{text}");
        }
    }
}
