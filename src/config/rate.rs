//! How often something may happen.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use governor::Quota;
use serde::{Deserializer, de};

/// The largest number in a rate. Beyond it the time between two is too short to be told from none.
const MOST: u32 = 1_000_000;

/// A rate: `50/s`, `600/m` or `1000/h`, and how many may come at once: `50/s burst 200`.
///
/// Without a burst, what the rate gives in its unit may also come at once: `600/m` takes 600 in one second and
/// from then on ten a second. Senders of webhooks come in bursts, and whoever wants an even flow asks for `10/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    number: NonZeroU32,
    unit: Unit,
    burst: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

impl Rate {
    /// The same for a limiter.
    pub(crate) fn quota(self) -> Quota {
        let even = match self.unit {
            Unit::Second => Quota::per_second(self.number),
            Unit::Minute => Quota::per_minute(self.number),
            Unit::Hour => Quota::per_hour(self.number),
        };
        even.allow_burst(self.burst)
    }

    /// The most that it lets through in so long a time.
    pub(crate) fn most_in(self, time: Duration) -> u64 {
        let each = match self.unit {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3600,
        };
        let even = time.as_secs().saturating_mul(self.number.get().into()) / each;
        even.saturating_add(self.burst.get().into())
    }

    /// A rate per second, for defaults.
    pub(super) fn per_second(number: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { number, unit: Unit::Second, burst }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let (number, unit) = words.next().and_then(|rate| rate.split_once('/')).ok_or_else(|| misspelt(text))?;
        let unit = match unit {
            "s" => Unit::Second,
            "m" => Unit::Minute,
            "h" => Unit::Hour,
            _ => return Err(misspelt(text)),
        };
        let number = in_range(number, text)?;
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => number,
            (Some("burst"), Some(burst), None) => in_range(burst, text)?,
            _ => return Err(misspelt(text)),
        };
        Ok(Self { number, unit, burst })
    }
}

/// A number of the rate `text`.
fn in_range(digits: &str, text: &str) -> Result<NonZeroU32, String> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(misspelt(text));
    }
    match digits.parse().ok().filter(|number| *number <= MOST).map(NonZeroU32::new) {
        Some(Some(number)) => Ok(number),
        Some(None) => Err(format!("`{text}`: 0 would let nothing through; for no limit write \"none\"")),
        None => Err(format!("`{text}`: {MOST} is the most that can be told from no limit; for that write \"none\"")),
    }
}

fn misspelt(text: &str) -> String {
    format!("`{text}`: a rate is written `50/s`, `600/m` or `1000/h`, with `burst 200` behind it for how many at once")
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Second => "s",
            Unit::Minute => "m",
            Unit::Hour => "h",
        };
        write!(formatter, "{}/{unit} burst {}", self.number, self.burst)
    }
}

/// Reads a rate, or `"none"`.
pub(super) fn rate_or_none<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Rate>, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = Option<Rate>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a rate such as `50/s` or `600/m burst 100`, or `none`")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<Rate>, E> {
            if text == "none" { Ok(None) } else { text.parse().map(Some).map_err(E::custom) }
        }
    }
    value.deserialize_any(Visitor)
}

/// The same, for a key that may be left out.
pub(super) fn own_rate<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<Rate>>, D::Error> {
    rate_or_none(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_a_rate_lets_through_is_what_it_gives_and_its_burst() {
        let most = |text: &str| text.parse::<Rate>().unwrap().most_in(Duration::from_secs(7200));
        assert_eq!(most("10/s burst 5"), 72_005);
        assert_eq!(most("600/m"), 72_600);
        assert_eq!(most("1/h burst 1"), 3);
    }

    #[test]
    fn a_rate_is_read_as_it_is_written() {
        for (text, each, burst, printed) in [
            ("50/s", Duration::from_millis(20), 50, "50/s burst 50"),
            ("600/m", Duration::from_millis(100), 600, "600/m burst 600"),
            ("1000/h", Duration::from_millis(3600), 1000, "1000/h burst 1000"),
            ("50/s burst 200", Duration::from_millis(20), 200, "50/s burst 200"),
            ("  1/h   burst  1 ", Duration::from_secs(3600), 1, "1/h burst 1"),
            ("1000000/s", Duration::from_micros(1), 1_000_000, "1000000/s burst 1000000"),
        ] {
            let rate: Rate = text.parse().unwrap();
            let quota = rate.quota();
            assert_eq!((quota.replenish_interval(), quota.burst_size().get()), (each, burst), "{text}");
            assert_eq!(rate.to_string(), printed);
            assert_eq!(printed.parse(), Ok(rate));
        }
    }

    #[test]
    fn what_is_no_rate_is_told_how_one_is_written() {
        for text in [
            "",
            "50",
            "50/d",
            "/s",
            "-1/s",
            "+1/s",
            "1.5/s",
            "50/s burst",
            "50/s 200",
            "50/s burst 2 3",
            "50 / s",
            "s/50",
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.contains("a rate is written `50/s`"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_rate_of_nothing_and_one_that_is_no_limit_are_refused() {
        for text in ["0/s", "50/s burst 0", "00/h"] {
            assert!(text.parse::<Rate>().unwrap_err().contains("0 would let nothing through"), "{text}");
        }
        for text in ["1000001/s", "99999999999999/h", "1/s burst 1000001"] {
            assert!(text.parse::<Rate>().unwrap_err().contains("1000000 is the most"), "{text}");
        }
    }
}
