//! How busy a destination is, and whether one more attempt may begin, should stand in line for a moment, or waits in
//! the stream.
//!
//! Pure: time and chance are arguments. A line in memory is for destinations that move: where the wait is not over
//! in a moment, the delivery goes back to the stream, so that one destination that hangs holds nobody else up.

use std::time::{Duration, SystemTime};

/// The longest expected wait that is worth standing in line for.
pub(super) const LINE: Duration = Duration::from_millis(250);
/// A destination that has ended nothing for so long hangs, when there are few slots left for others.
const HANGS_AFTER: Duration = Duration::from_secs(1);
/// The longest that a delivery is put off because of others; it looks again by then.
const LONGEST: Duration = Duration::from_secs(600);
/// The weight of the newest attempt in the usual duration.
const WEIGHT: f64 = 0.2;

/// The load of one destination in this process.
#[derive(Debug)]
pub(super) struct Load {
    in_flight: usize,
    in_line: usize,
    /// How long attempts usually take.
    usual: Duration,
    /// When an attempt last ended, or began while there was none.
    moved: SystemTime,
    /// The last moment that was given to a delivery that waits.
    given: SystemTime,
}

impl Default for Load {
    fn default() -> Self {
        let never = SystemTime::UNIX_EPOCH;
        Self { in_flight: 0, in_line: 0, usual: Duration::ZERO, moved: never, given: never }
    }
}

/// What one more attempt may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Begin,
    StandInLine,
    Wait,
}

impl Load {
    /// What one more attempt may do where `most` may be in flight. `pressed`: there are few slots left for others.
    pub(super) fn admit(&self, most: usize, pressed: bool, now: SystemTime) -> Admission {
        let hangs = self.in_flight > 0 && self.still_for(now) > HANGS_AFTER;
        if pressed && hangs {
            return Admission::Wait;
        }
        if self.in_flight + self.in_line < most {
            return Admission::Begin;
        }
        let ahead = u32::try_from(self.in_line + 1).unwrap_or(u32::MAX);
        if self.each(most, now).saturating_mul(ahead) <= LINE { Admission::StandInLine } else { Admission::Wait }
    }

    /// The moment that a delivery gets which cannot begin before `earliest`: one after the other, at least `apart`,
    /// so that they do not come back together.
    pub(super) fn give(&mut self, earliest: SystemTime, apart: Duration, now: SystemTime, chance: f64) -> SystemTime {
        let next = self.given.max(earliest) + apart;
        let longest = LONGEST.max(earliest.duration_since(now).unwrap_or_default());
        if next > now + longest {
            // So many wait that order means nothing any more: they are spread over what is left.
            return now + longest.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        }
        self.given = next;
        next
    }

    /// How long the destination needs for each attempt, over all places.
    pub(super) fn each(&self, most: usize, now: SystemTime) -> Duration {
        let places = u32::try_from(most).unwrap_or(u32::MAX).max(1);
        let still = if self.in_flight > 0 { self.still_for(now) } else { Duration::ZERO };
        self.usual.max(still) / places
    }

    /// Whether deliveries wait for a moment that is still far although there is room: then they may come now.
    pub(super) fn has_room(&mut self, most: usize, now: SystemTime) -> bool {
        let room = self.in_line == 0 && self.in_flight <= most / 2 && self.given > now + HANGS_AFTER;
        if room {
            self.given = now;
        }
        room
    }

    pub(super) fn lines_up(&mut self) {
        self.in_line += 1;
    }

    pub(super) fn leaves_line(&mut self) {
        self.in_line = self.in_line.saturating_sub(1);
    }

    pub(super) fn begins(&mut self, now: SystemTime) {
        if self.in_flight == 0 {
            self.moved = now;
        }
        self.in_flight += 1;
    }

    /// `took` is none for an attempt that was dropped.
    pub(super) fn ends(&mut self, took: Option<Duration>, now: SystemTime) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.moved = now;
        if let Some(took) = took {
            self.usual = self.usual.mul_f64(1.0 - WEIGHT) + took.mul_f64(WEIGHT);
        }
    }

    /// Whether nothing would be lost if it were forgotten.
    pub(super) fn is_idle(&self, now: SystemTime) -> bool {
        self.in_flight == 0 && self.in_line == 0 && self.given <= now
    }

    fn still_for(&self, now: SystemTime) -> Duration {
        now.duration_since(self.moved).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn after(millis: u64) -> SystemTime {
        NOW + Duration::from_millis(millis)
    }

    /// Ten attempts in flight since second 0, usually of this duration.
    fn full(usual: u64) -> Load {
        let mut load = Load { usual: Duration::from_millis(usual), ..Load::default() };
        (0..10).for_each(|_| load.begins(NOW));
        load
    }

    #[test]
    fn there_is_room_up_to_the_most() {
        let load = full(1);
        assert_eq!(load.admit(11, false, NOW), Admission::Begin);
        assert_eq!(load.admit(10, false, NOW), Admission::StandInLine);
    }

    #[test]
    fn a_line_is_as_long_as_it_moves_quickly() {
        let mut load = full(100);
        for _ in 0..25 {
            assert_eq!(load.admit(10, false, NOW), Admission::StandInLine);
            load.lines_up();
        }
        assert_eq!(load.admit(10, false, NOW), Admission::Wait);
    }

    #[test]
    fn nobody_stands_in_line_for_what_hangs() {
        let load = full(1);
        assert_eq!(load.admit(10, false, after(2_000)), Admission::StandInLine);
        assert_eq!(load.admit(10, false, after(3_000)), Admission::Wait);
    }

    #[test]
    fn what_hangs_gets_no_more_places_when_others_need_them() {
        let load = full(1);
        assert_eq!(load.admit(64, false, after(2_000)), Admission::Begin);
        assert_eq!(load.admit(64, true, after(2_000)), Admission::Wait);
        assert_eq!(load.admit(64, true, after(500)), Admission::Begin);
    }

    #[test]
    fn those_who_wait_come_back_one_after_the_other_and_never_too_late() {
        let mut load = Load::default();
        let apart = Duration::from_millis(5);
        let given: Vec<_> = (0..3).map(|_| load.give(after(100), apart, NOW, 0.0)).collect();
        assert_eq!(given, [after(105), after(110), after(115)]);
        for _ in 0..200_000 {
            let given = load.give(after(100), apart, NOW, 1.0);
            assert!(given > NOW && given <= NOW + LONGEST);
        }
    }

    #[test]
    fn they_come_sooner_when_there_is_room_and_that_is_said_once() {
        let mut load = full(1);
        load.give(after(60_000), Duration::ZERO, NOW, 0.0);
        assert!(!load.has_room(10, NOW));
        (0..6).for_each(|_| load.ends(Some(Duration::from_millis(1)), NOW));
        assert!(load.has_room(10, NOW));
        assert!(!load.has_room(10, NOW));
    }
}
