//! Leaving a destination alone that fails.
//!
//! Pure: time is an argument. Closed, attempts go out and are counted. Open, none does until its time; then one
//! attempt probes the destination, and its end closes the breaker or opens it for twice as long.

use std::time::{Duration, SystemTime};

use crate::config::Breaker as Settings;

/// The breaker of one destination in this process.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    /// Failures since the last success.
    in_a_row: u32,
    window: Window,
    /// Whether it is open on another courier's word.
    adopted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open(Opened),
    /// One attempt is out to see; if it is not heard of again by then, the next one is.
    Probing {
        opened: Opened,
        until: SystemTime,
    },
}

/// An open breaker: when the next probe may go out, and for how long it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) until: SystemTime,
    pub(super) length: Duration,
}

/// Attempts and failures in the running window.
#[derive(Debug)]
struct Window {
    since: SystemTime,
    attempts: u32,
    failures: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { since: SystemTime::UNIX_EPOCH, attempts: 0, failures: 0 }
    }
}

/// What an attempt says of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Somebody is there.
    Well,
    /// No answer, or a 5xx.
    Ill,
    /// Neither: nothing was asked, or the receiver is there and has too much to do.
    Unknown,
}

/// What became of the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Opened(Opened),
    Closed,
}

/// Whether an attempt may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Begin,
    /// Not before then.
    Wait(SystemTime),
}

impl Breaker {
    /// Whether an attempt may begin now.
    pub(super) fn asks(&self, now: SystemTime) -> Verdict {
        match self.state {
            State::Open(Opened { until, .. }) | State::Probing { until, .. } if now < until => Verdict::Wait(until),
            State::Closed | State::Open(_) | State::Probing { .. } => Verdict::Begin,
        }
    }

    /// An attempt begins, if it may; while the breaker is open it is the probe, and takes at most so long.
    pub(super) fn may_begin(&mut self, now: SystemTime, attempt_takes: Duration) -> Verdict {
        let verdict = self.asks(now);
        if let (Verdict::Begin, Some(opened)) = (verdict, self.opened()) {
            self.state = State::Probing { opened, until: now + attempt_takes };
        }
        verdict
    }

    /// Counts an attempt that ended.
    pub(super) fn ended(&mut self, settings: &Settings, health: Health, now: SystemTime) -> Option<Change> {
        match (health, self.state) {
            (Health::Unknown, State::Probing { opened, .. }) => {
                self.state = State::Open(Opened { until: now, ..opened });
                None
            }
            (Health::Unknown, _) => None,
            (Health::Well, state) => {
                self.in_a_row = 0;
                self.window.count(settings, false, now);
                (state != State::Closed).then(|| self.close())
            }
            (Health::Ill, State::Closed) => {
                self.in_a_row = self.in_a_row.saturating_add(1);
                self.window.count(settings, true, now);
                let fails = self.in_a_row >= settings.failures || self.window.fails(settings);
                fails.then(|| self.open(settings.open, now))
            }
            (Health::Ill, State::Probing { opened, .. }) => {
                Some(self.open(opened.length.saturating_mul(2).min(settings.longest), now))
            }
            // It had begun before the breaker opened, and says nothing new.
            (Health::Ill, State::Open(_)) => None,
        }
    }

    /// Takes over what another courier found out; none is that it closed, which ends what was opened on its word.
    pub(super) fn adopt(&mut self, told: Option<Opened>) {
        match told {
            Some(opened) if self.opened().is_none_or(|own| own.until < opened.until) => {
                self.state = State::Open(opened);
                self.adopted = true;
            }
            None if self.adopted => *self = Self::default(),
            Some(_) | None => {}
        }
    }

    /// Since when and for how long it is open, if it is.
    pub(super) fn opened(&self) -> Option<Opened> {
        match self.state {
            State::Closed => None,
            State::Open(opened) | State::Probing { opened, .. } => Some(opened),
        }
    }

    fn open(&mut self, length: Duration, now: SystemTime) -> Change {
        let opened = Opened { until: now + length, length };
        self.state = State::Open(opened);
        self.adopted = false;
        Change::Opened(opened)
    }

    fn close(&mut self) -> Change {
        *self = Self::default();
        Change::Closed
    }
}

impl Window {
    fn count(&mut self, settings: &Settings, failed: bool, now: SystemTime) {
        if now.duration_since(self.since).is_ok_and(|age| age > settings.window) {
            *self = Self { since: now, attempts: 0, failures: 0 };
        }
        self.attempts = self.attempts.saturating_add(1);
        self.failures = self.failures.saturating_add(failed.into());
    }

    fn fails(&self, settings: &Settings) -> bool {
        self.attempts >= settings.at_least
            && f64::from(self.failures) >= f64::from(self.attempts) * settings.failure_rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const TIMEOUT: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    fn settings() -> Settings {
        Settings { failures: 3, at_least: 10, ..Settings::default() }
    }

    /// A breaker that three failures have opened at second 0.
    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for expected in [None, None, Some(Change::Opened(Opened { until: at(30), length: Duration::from_secs(30) }))] {
            assert_eq!(breaker.ended(&settings(), Health::Ill, NOW), expected);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_until_its_time_and_then_one_attempt_probes() {
        let mut breaker = opened();
        assert_eq!(breaker.may_begin(at(29), TIMEOUT), Verdict::Wait(at(30)));
        assert_eq!(breaker.may_begin(at(30), TIMEOUT), Verdict::Begin);
        assert_eq!(breaker.may_begin(at(31), TIMEOUT), Verdict::Wait(at(45)));
    }

    #[test]
    fn a_success_between_failures_keeps_it_closed() {
        let mut breaker = Breaker::default();
        for health in [Health::Ill, Health::Ill, Health::Well, Health::Ill, Health::Ill] {
            assert_eq!(breaker.ended(&settings(), health, NOW), None);
        }
        assert_eq!(breaker.may_begin(NOW, TIMEOUT), Verdict::Begin);
    }

    #[test]
    fn a_probe_that_succeeds_closes_it_and_one_that_fails_opens_it_for_longer() {
        let mut breaker = opened();
        breaker.may_begin(at(30), TIMEOUT);
        let longer = Opened { until: at(90), length: Duration::from_secs(60) };
        assert_eq!(breaker.ended(&settings(), Health::Ill, at(30)), Some(Change::Opened(longer)));
        breaker.may_begin(at(90), TIMEOUT);
        assert_eq!(breaker.ended(&settings(), Health::Well, at(91)), Some(Change::Closed));
        assert_eq!(breaker.may_begin(at(91), TIMEOUT), Verdict::Begin);
    }

    #[test]
    fn it_never_stays_open_for_longer_than_the_longest() {
        let mut breaker = opened();
        for _ in 0..20 {
            let until = breaker.opened().unwrap().until;
            breaker.may_begin(until, TIMEOUT);
            breaker.ended(&settings(), Health::Ill, until);
        }
        assert_eq!(breaker.opened().unwrap().length, settings().longest);
    }

    #[test]
    fn a_probe_that_is_never_heard_of_again_is_followed_by_another() {
        let mut breaker = opened();
        assert_eq!(breaker.may_begin(at(30), TIMEOUT), Verdict::Begin);
        assert_eq!(breaker.may_begin(at(45), TIMEOUT), Verdict::Begin);
        // One that asked nothing leaves the place to the next.
        assert_eq!(breaker.ended(&settings(), Health::Unknown, at(46)), None);
        assert_eq!(breaker.may_begin(at(46), TIMEOUT), Verdict::Begin);
    }

    #[test]
    fn a_share_of_failures_opens_it_although_some_succeed() {
        let mut breaker = Breaker::default();
        let mut changes = Vec::new();
        for second in 0..10 {
            let health = if second % 2 == 0 { Health::Well } else { Health::Ill };
            changes.extend(breaker.ended(&settings(), health, at(second)));
        }
        assert_eq!(changes, [Change::Opened(Opened { until: at(39), length: Duration::from_secs(30) })]);
    }

    #[test]
    fn failures_of_long_ago_do_not_count_towards_the_share() {
        let mut breaker = Breaker::default();
        for second in 0..30 {
            let health = if second % 2 == 0 { Health::Well } else { Health::Ill };
            assert_eq!(breaker.ended(&settings(), health, at(second * 20)), None);
        }
    }

    #[test]
    fn what_began_before_it_opened_neither_prolongs_it_nor_is_forgotten() {
        let mut breaker = opened();
        assert_eq!(breaker.ended(&settings(), Health::Ill, at(10)), None);
        assert_eq!(breaker.may_begin(at(29), TIMEOUT), Verdict::Wait(at(30)));
        assert_eq!(breaker.ended(&settings(), Health::Well, at(20)), Some(Change::Closed));
    }

    #[test]
    fn what_another_courier_tells_is_taken_over() {
        let mut breaker = Breaker::default();
        let told = Opened { until: at(7), length: Duration::from_secs(5) };
        breaker.adopt(Some(told));
        assert_eq!(breaker.may_begin(at(1), TIMEOUT), Verdict::Wait(at(7)));
        breaker.adopt(None);
        assert_eq!(breaker.may_begin(at(1), TIMEOUT), Verdict::Begin);
    }
}
