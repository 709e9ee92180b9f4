//! What happens after an attempt.
//!
//! [`decide`] is pure: it neither sleeps nor sends, and time and chance are arguments. The courier acts on the
//! [`Decision`] by acking, by scheduling the next attempt in the stream, or by writing a dead letter.

use std::time::{Duration, SystemTime};

use super::breaker::Health;
use super::reason::{Failure, Reason};
use crate::config::{self, Breaker, Egress, Rate};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// 2xx
    Accepted { status: u16 },
    /// 410: the receiver wants no more.
    Gone,
    /// 429 or 503 with `Retry-After`: the receiver says when, at the latest.
    Busy {
        status: u16,
        /// No longer than the policy's `max_retry_after`.
        retry_after: Duration,
        /// It asked for longer, and `max_retry_after` limited it.
        clamped: bool,
    },
    /// Any other status.
    Refused { status: u16 },
    /// No answer.
    Failed { failure: Failure, detail: String },
    /// The address guard said no, and will say so again.
    Forbidden { detail: String },
    /// Nothing was tried, for want of something of our own: this was no attempt.
    NotNow { detail: String },
}

impl Outcome {
    /// The status, where there was one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Accepted { status } | Self::Busy { status, .. } | Self::Refused { status } => Some(*status),
            Self::Gone => Some(410),
            Self::Failed { .. } | Self::Forbidden { .. } | Self::NotNow { .. } => None,
        }
    }

    /// What went wrong, if anything did.
    pub(super) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Accepted { .. } | Self::NotNow { .. } => None,
            Self::Gone | Self::Busy { .. } | Self::Refused { .. } => Some(Failure::Status),
            Self::Failed { failure, .. } => Some(*failure),
            Self::Forbidden { .. } => Some(Failure::Forbidden),
        }
    }

    /// What it says of the destination: any answer below 500 shows that somebody is there.
    pub(super) fn health(&self) -> Health {
        match self {
            Self::Busy { status: 429, .. }
            | Self::Refused { status: 429 }
            | Self::Forbidden { .. }
            | Self::NotNow { .. }
            | Self::Failed { failure: Failure::Unsigned | Failure::Forbidden, .. } => Health::Unknown,
            Self::Busy { .. } | Self::Refused { status: 500.. } | Self::Failed { .. } => Health::Ill,
            Self::Accepted { .. } | Self::Gone | Self::Refused { .. } => Health::Well,
        }
    }

    /// A sentence for the person who reads the receipt.
    pub(super) fn detail(&self) -> Option<String> {
        match self {
            Self::Accepted { .. } => None,
            Self::Gone => Some("the endpoint answered 410 Gone: it wants no more deliveries".to_owned()),
            Self::Busy { status, retry_after, clamped } => {
                let asked = humantime::format_duration(Duration::from_secs(retry_after.as_secs()));
                Some(match *clamped {
                    true => format!(
                        "the endpoint answered {status} with Retry-After, limited to {asked} by max_retry_after"
                    ),
                    false => format!("the endpoint answered {status} with Retry-After: {asked}"),
                })
            }
            Self::Refused { status } => Some(format!("the endpoint answered {status}")),
            Self::Failed { detail, .. } | Self::Forbidden { detail } | Self::NotNow { detail } => Some(detail.clone()),
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Delivered,
    RetryAt(SystemTime),
    Dead(Reason),
    /// The same attempt is still to be made.
    NotMade,
}

/// How persistently deliveries to one destination are made.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The waits between attempts.
    pub(super) waits: Vec<Duration>,
    /// By what part of itself a wait may be longer or shorter.
    pub(super) jitter: f64,
    /// The longest wait that a receiver can ask for.
    pub(super) max_retry_after: Duration,
    /// How old a message may become before nobody tries again.
    pub(super) max_age: Option<Duration>,
    /// Statuses that nobody repeats.
    pub(super) give_up_on: Vec<u16>,
    /// How long OUTBOX keeps the body, from when it was stored. No attempt is put off beyond that.
    pub(super) kept_for: Option<Duration>,
    /// The longest that one attempt may take.
    pub(super) timeout: Duration,
    /// Attempts in flight at once, in this process.
    pub(super) max_concurrent: usize,
    /// How often attempts may begin, in this process.
    pub(super) rate: Option<Rate>,
    /// When to leave the destination alone.
    pub(super) breaker: Option<Breaker>,
}

/// When a delivery began and how far it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// The attempt that just ended; the first is 1.
    pub(super) attempt: u32,
    /// When the message was stored in OUTBOX.
    pub(super) stored: SystemTime,
    pub(super) now: SystemTime,
    /// Between 0 and 1; spreads retries that would fall on one moment.
    pub(super) chance: f64,
}

/// The shortest wait, so that a schedule is not due before it is stored.
const MIN_WAIT: Duration = Duration::from_millis(50);

/// One line per rule; the first match wins.
pub(super) fn decide(outcome: &Outcome, policy: &Policy, progress: Progress) -> Decision {
    let wait = usize::try_from(progress.attempt).ok().and_then(|attempt| policy.waits.get(attempt.saturating_sub(1)));
    match (outcome, wait) {
        (Outcome::Accepted { .. }, _) => Decision::Delivered,
        (Outcome::NotNow { .. }, _) => Decision::NotMade,
        (Outcome::Gone, _) => Decision::Dead(Reason::Gone),
        (Outcome::Forbidden { .. }, _) => Decision::Dead(Reason::Forbidden),
        _ if outcome.status().is_some_and(|status| policy.give_up_on.contains(&status)) => {
            Decision::Dead(Reason::Refused)
        }
        (_, None) => Decision::Dead(Reason::Exhausted),
        // It only ever puts off: who asks for a second must not use up a schedule of days.
        (Outcome::Busy { retry_after, .. }, Some(wait)) => {
            let wait = jitter(*wait, policy.jitter, progress.chance);
            policy.bound(progress, wait.max((*retry_after).min(policy.max_retry_after)))
        }
        (_, Some(wait)) => policy.bound(progress, jitter(*wait, policy.jitter, progress.chance)),
    }
}

impl Policy {
    /// What the configuration says of an endpoint, or of callbacks where there is none. `kept_for` is how long OUTBOX
    /// keeps a message.
    pub(super) fn new(egress: &Egress, endpoint: Option<&config::Endpoint>, kept_for: Option<Duration>) -> Self {
        let own = endpoint;
        Self {
            waits: own.and_then(|own| own.retry.as_ref()).unwrap_or(&egress.retry).waits().to_vec(),
            jitter: own.and_then(|own| own.jitter).unwrap_or(egress.jitter),
            max_retry_after: own.and_then(|own| own.max_retry_after).unwrap_or(egress.max_retry_after),
            max_age: own.and_then(|own| own.max_age).or(egress.max_age),
            give_up_on: own.and_then(|own| own.give_up_on.as_ref()).unwrap_or(&egress.give_up_on).clone(),
            kept_for,
            timeout: own.and_then(|own| own.timeout).unwrap_or(egress.timeout),
            max_concurrent: own.and_then(|own| own.max_concurrent).unwrap_or(egress.max_concurrent),
            rate: own.and_then(|own| own.rate).unwrap_or(egress.rate),
            breaker: own.and_then(|own| own.breaker).unwrap_or(egress.breaker),
        }
    }

    /// The last moment at which an attempt may begin, if there is one: the last tenth of the body's life is left for
    /// the attempts themselves, and a delivery that gets there has been tried for long enough.
    pub(super) fn last_moment(&self, stored: SystemTime) -> Option<SystemTime> {
        let kept = self.kept_for.map(|kept_for| kept_for * 9 / 10);
        kept.into_iter().chain(self.max_age).min().map(|most| stored + most)
    }

    /// Again after `wait`, but not when the body may be gone or the message is too old.
    fn bound(&self, progress: Progress, wait: Duration) -> Decision {
        let due = progress.now + wait.max(MIN_WAIT);
        match self.last_moment(progress.stored) {
            Some(last) if progress.now >= last => Decision::Dead(Reason::Exhausted),
            Some(last) => Decision::RetryAt(due.min(last)),
            None => Decision::RetryAt(due),
        }
    }
}

/// The wait, longer or shorter by up to this part of itself.
fn jitter(wait: Duration, part: f64, chance: f64) -> Duration {
    let part = part.clamp(0.0, 1.0);
    wait.mul_f64(1.0 - part + 2.0 * part * chance.clamp(0.0, 1.0))
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3), of which a part of a second counts as one.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    let left = date.duration_since(now).unwrap_or_default();
    Some(Duration::from_secs(left.as_secs().saturating_add((left.subsec_nanos() > 0).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn policy() -> Policy {
        let hour = Duration::from_secs(3600);
        let egress = Egress { max_retry_after: hour, give_up_on: vec![401], ..Egress::default() };
        Policy { waits: vec![Duration::from_secs(10), hour], ..Policy::new(&egress, None, Some(hour * 20)) }
    }

    fn decide_at(outcome: &Outcome, attempt: u32, chance: f64) -> Decision {
        decide(outcome, &policy(), Progress { attempt, stored: NOW, now: NOW, chance })
    }

    #[test]
    fn every_row_of_the_outcome_table() {
        let failed = Outcome::Failed { failure: Failure::Timeout, detail: String::new() };
        for (outcome, attempt, expected) in [
            (Outcome::Accepted { status: 204 }, 1, Decision::Delivered),
            (Outcome::Gone, 1, Decision::Dead(Reason::Gone)),
            (Outcome::Forbidden { detail: String::new() }, 1, Decision::Dead(Reason::Forbidden)),
            (Outcome::Refused { status: 500 }, 1, Decision::RetryAt(NOW + Duration::from_secs(10))),
            (Outcome::Refused { status: 302 }, 2, Decision::RetryAt(NOW + Duration::from_secs(3600))),
            (failed.clone(), 1, Decision::RetryAt(NOW + Duration::from_secs(10))),
            (failed, 3, Decision::Dead(Reason::Exhausted)),
            (Outcome::Refused { status: 400 }, 3, Decision::Dead(Reason::Exhausted)),
            (Outcome::Refused { status: 401 }, 1, Decision::Dead(Reason::Refused)),
        ] {
            assert_eq!(decide_at(&outcome, attempt, 0.5), expected, "{outcome:?}, attempt {attempt}");
        }
    }

    #[test]
    fn a_busy_receiver_is_asked_again_no_earlier_than_it_says_within_bounds_and_it_counts_as_an_attempt() {
        let busy = |seconds| Outcome::Busy { status: 429, retry_after: Duration::from_secs(seconds), clamped: false };
        assert_eq!(decide_at(&busy(120), 1, 0.0), Decision::RetryAt(NOW + Duration::from_secs(120)));
        assert_eq!(decide_at(&busy(1_000_000), 1, 0.0), Decision::RetryAt(NOW + Duration::from_secs(3600)));
        assert_eq!(decide_at(&busy(1), 3, 0.0), Decision::Dead(Reason::Exhausted));
    }

    #[test]
    fn a_busy_receiver_never_makes_the_schedule_shorter() {
        for (seconds, chance, expected) in [(0, 0.5, 10), (1, 0.0, 9), (9, 1.0, 11), (10, 0.0, 10)] {
            let busy = Outcome::Busy { status: 503, retry_after: Duration::from_secs(seconds), clamped: false };
            let expected = Decision::RetryAt(NOW + Duration::from_secs(expected));
            assert_eq!(decide_at(&busy, 1, chance), expected, "{seconds} s");
        }
    }

    #[test]
    fn what_was_not_tried_is_no_attempt_also_where_it_would_be_the_last() {
        let not_now = Outcome::NotNow { detail: String::new() };
        assert_eq!((decide_at(&not_now, 1, 0.5), decide_at(&not_now, 3, 0.5)), (Decision::NotMade, Decision::NotMade));
        assert_eq!(not_now.health(), Health::Unknown);
    }

    #[test]
    fn what_was_asked_for_is_told_in_whole_seconds() {
        let busy = |millis, clamped| Outcome::Busy { status: 429, retry_after: Duration::from_millis(millis), clamped };
        let asked = |busy: Outcome| busy.detail().unwrap();
        assert_eq!(asked(busy(3450, false)), "the endpoint answered 429 with Retry-After: 3s");
        let day = 24 * 3600 * 1000;
        assert_eq!(
            asked(busy(day, true)),
            "the endpoint answered 429 with Retry-After, limited to 1day by max_retry_after"
        );
    }

    #[test]
    fn jitter_moves_a_wait_by_a_tenth() {
        let refused = Outcome::Refused { status: 500 };
        assert_eq!(decide_at(&refused, 1, 0.0), Decision::RetryAt(NOW + Duration::from_secs(9)));
        assert_eq!(decide_at(&refused, 1, 1.0), Decision::RetryAt(NOW + Duration::from_secs(11)));
    }

    #[test]
    fn no_attempt_is_put_off_until_the_body_is_gone() {
        let (hour, refused) = (Duration::from_secs(3600), Outcome::Refused { status: 500 });
        let now = NOW + hour * 17 + hour / 2;
        let progress = Progress { attempt: 2, stored: NOW, now, chance: 0.5 };
        assert_eq!(decide(&refused, &policy(), progress), Decision::RetryAt(NOW + hour * 18));
        let progress = Progress { now: NOW + hour * 18, ..progress };
        assert_eq!(decide(&refused, &policy(), progress), Decision::Dead(Reason::Exhausted));
    }

    #[test]
    fn a_message_that_is_too_old_is_tried_no_more() {
        let (hour, refused) = (Duration::from_secs(3600), Outcome::Refused { status: 500 });
        let policy = Policy { max_age: Some(hour / 2), ..policy() };
        let progress = Progress { attempt: 2, stored: NOW, now: NOW + hour / 4, chance: 0.5 };
        assert_eq!(decide(&refused, &policy, progress), Decision::RetryAt(NOW + hour / 2));
        let progress = Progress { now: NOW + hour / 2, ..progress };
        assert_eq!(decide(&refused, &policy, progress), Decision::Dead(Reason::Exhausted));
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(parse_retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_secs(60)));
        let earlier = now - Duration::from_millis(450);
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:40 GMT", earlier), Some(Duration::from_secs(4)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("99999999999999999999", now), None);
        assert_eq!(parse_retry_after("", now), None);
        assert_eq!(parse_retry_after("soon", now), None);
        assert_eq!(parse_retry_after("-1", now), None);
    }
}
