//! Destinations that asked, with `Retry-After`, for no request before a time.
//!
//! Until then nothing begins there in any courier: an endpoint is held as a whole, a callback by its origin and the
//! agent that sends, so that one agent's limit holds nobody else up. The courier that was asked holds at once and tells
//! the others through the bucket (`hold.<destination>`, for callbacks `hold.<destination>.<agent>`), where it is
//! also found by couriers that start later. What is told is bounded by the policy of who reads it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use crate::clock::rfc3339;

/// What the keys begin with; the destination's token follows, and the agent where it is a callback.
const PREFIX: &str = "hold.";
/// How long changes are gathered after one was told: no destination is told of more often.
const EVERY: Duration = Duration::from_secs(1);
/// So many keys are written at once.
const CHUNK: usize = 64;
/// How often to look for holds that have ended.
const LOOK_FOR_ENDED: Duration = Duration::from_secs(5);
/// How long the courier that wrote a record has to take it away before others do.
const LEFT_BY_OTHERS: Duration = Duration::from_secs(60);
/// The most endpoints that are held at once, and the most origins of callbacks.
const REMEMBERED: usize = 20_000;
/// The most origins that are held at once for the callbacks of one agent: it may choose them.
const REMEMBERED_OF_AGENT: usize = 1000;
/// The longest time over which deliveries come that waited for the same end.
const LONGEST_SPREAD: Duration = Duration::from_secs(600);

/// What the bucket says of one hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) state: State,
    /// When the next request may be made.
    pub(crate) until: String,
    pub(crate) at: String,
    /// The process that was asked, or who lifted it.
    pub(crate) by: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Nothing begins.
    Held,
    /// Somebody ended it before its time.
    Lifted,
}

impl Record {
    pub(crate) fn new(state: State, until: SystemTime, at: SystemTime, by: &str) -> Self {
        Self { state, until: rfc3339(until), at: rfc3339(at), by: by.to_owned() }
    }

    /// Until when it holds, for who accepts at most so much; none if it does not hold now.
    pub(crate) fn ends(&self, most: Duration, now: SystemTime) -> Option<SystemTime> {
        let (until, at) = self.times()?;
        let ends = at.min(now).checked_add(most).map_or(until, |latest| until.min(latest));
        (self.state == State::Held && now < ends).then_some(ends)
    }

    fn times(&self) -> Option<(SystemTime, SystemTime)> {
        Some((humantime::parse_rfc3339(&self.until).ok()?, humantime::parse_rfc3339(&self.at).ok()?))
    }
}

/// What is held: an endpoint's token, or that of a callback's origin and the agent.
pub(super) fn held_as<'a>(token: &'a str, agent: &str) -> Cow<'a, str> {
    if token.starts_with("c_") { format!("{token}.{agent}").into() } else { token.into() }
}

/// The agent whose callbacks are held; none where it is an endpoint.
fn agent_of(held_as: &str) -> Option<&str> {
    held_as.split_once('.').map(|(_, agent)| agent)
}

/// The key of the bucket.
pub(crate) fn key(held_as: &str) -> String {
    format!("{PREFIX}{held_as}")
}

/// What a key of the bucket holds, if it is about a hold: the destination's token, and the agent of a callback.
pub(crate) fn read_key(key: &str) -> Option<(&str, Option<&str>)> {
    let held_as = key.strip_prefix(PREFIX)?;
    Some(held_as.split_once('.').map_or((held_as, None), |(token, agent)| (token, Some(agent))))
}

/// All holds that this process knows of. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Holds {
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
}

/// Pure: time and chance are arguments.
#[derive(Debug, Default)]
struct Table {
    holds: HashMap<String, Hold>,
    /// How many of them are of endpoints, and of the callbacks of each agent.
    endpoints: usize,
    callbacks: HashMap<String, usize>,
    /// What others have to hear of.
    untold: HashSet<String>,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    until: SystemTime,
    /// When it was asked for, or lifted.
    at: SystemTime,
    lifted: bool,
    /// Whether this process was asked.
    ours: bool,
    /// The last moment that was given to a delivery that waits.
    given: SystemTime,
}

impl Hold {
    fn ends(&self, most: Duration, now: SystemTime) -> Option<SystemTime> {
        let ends = self.until.min(self.at + most);
        (!self.lifted && now < ends).then_some(ends)
    }
}

impl Table {
    /// A destination asked for it.
    fn asked(&mut self, held_as: &str, until: SystemTime, now: SystemTime) {
        // As records and schedules tell it, so that nobody comes a moment too early.
        let until = until - Duration::from_nanos(u64::from(sub_milliseconds(until)));
        if until <= now || !self.has_room(held_as) {
            return;
        }
        let before = self.holds.get(held_as).filter(|before| !before.lifted).copied();
        let longest = before.map_or(until, |before| before.until.max(until));
        if before.is_none_or(|before| before.until < longest) {
            self.untold.insert(held_as.to_owned());
        }
        let given = before.map_or(now, |before| before.given);
        self.put(held_as, Hold { until: longest, at: now, lifted: false, ours: true, given });
    }

    /// Takes over what was told. `true`: it was lifted.
    fn told(&mut self, held_as: &str, state: State, until: SystemTime, at: SystemTime, now: SystemTime) -> bool {
        let at = at.min(now);
        let before = self.holds.get(held_as).copied();
        if before.is_some_and(|before| before.lifted && at <= before.at) || !self.has_room(held_as) {
            // Somebody put back what was lifted.
            return false;
        }
        match (state, before.filter(|before| !before.lifted)) {
            (State::Lifted, Some(before)) if before.at > at => {
                // It was asked for again since.
                self.untold.insert(held_as.to_owned());
                false
            }
            (State::Lifted, before) => {
                let hold = Hold { until, at, lifted: true, ours: false, given: now };
                self.put(held_as, hold);
                before.is_some()
            }
            (State::Held, Some(before)) => {
                // Both are true; the longer one is what everybody has to know.
                if before.until > until && before.ours {
                    self.untold.insert(held_as.to_owned());
                }
                let hold = Hold { until: before.until.max(until), at: before.at.max(at), ..before };
                self.put(held_as, hold);
                false
            }
            (State::Held, None) => {
                let hold = Hold { until, at, lifted: false, ours: false, given: now };
                self.put(held_as, hold);
                false
            }
        }
    }

    /// Its record was taken away. `true`: it held until now.
    fn removed(&mut self, held_as: &str, now: SystemTime) -> bool {
        self.untold.remove(held_as);
        self.take(held_as).is_some_and(|hold| !hold.lifted && now < hold.until)
    }

    /// The moment at which a delivery may come that may not begin now, `apart` from the one before.
    fn give(
        &mut self,
        held_as: &str,
        most: Duration,
        apart: Duration,
        now: SystemTime,
        chance: f64,
    ) -> Option<SystemTime> {
        let hold = self.holds.get_mut(held_as)?;
        let ends = hold.ends(most, now)?;
        let next = hold.given.max(ends) + apart;
        if next > ends + LONGEST_SPREAD {
            return Some(ends + LONGEST_SPREAD.mul_f64(chance.clamp(0.0, 1.0)));
        }
        hold.given = next;
        Some(next)
    }

    /// Forgets what has ended, and says of which there may be a record that nobody else takes away.
    fn ended(&mut self, now: SystemTime) -> Vec<String> {
        let is_over = |hold: &Hold| {
            let left = if hold.ours { Duration::ZERO } else { LEFT_BY_OTHERS };
            now >= hold.until + left
        };
        let ended: Vec<_> = self.holds.iter().filter(|(_, hold)| is_over(hold)).map(|(key, _)| key.clone()).collect();
        for held_as in &ended {
            self.take(held_as);
            self.untold.remove(held_as);
        }
        ended
    }

    fn has_room(&self, held_as: &str) -> bool {
        self.holds.contains_key(held_as)
            || match agent_of(held_as) {
                None => self.endpoints < REMEMBERED,
                Some(agent) => {
                    self.holds.len() - self.endpoints < REMEMBERED
                        && self.callbacks.get(agent).is_none_or(|count| *count < REMEMBERED_OF_AGENT)
                }
            }
    }

    fn put(&mut self, held_as: &str, hold: Hold) {
        if self.holds.insert(held_as.to_owned(), hold).is_none() {
            match agent_of(held_as) {
                None => self.endpoints += 1,
                Some(agent) => *self.callbacks.entry(agent.to_owned()).or_default() += 1,
            }
        }
    }

    fn take(&mut self, held_as: &str) -> Option<Hold> {
        let hold = self.holds.remove(held_as)?;
        match agent_of(held_as) {
            None => self.endpoints -= 1,
            Some(agent) => {
                if let Some(count) = self.callbacks.get_mut(agent) {
                    *count -= 1;
                    if *count == 0 {
                        self.callbacks.remove(agent);
                    }
                }
            }
        }
        Some(hold)
    }
}

/// The nanoseconds beyond the whole millisecond.
fn sub_milliseconds(time: SystemTime) -> u32 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos() % 1_000_000)
}

impl Holds {
    /// A destination asked for no request before `until`.
    pub(super) fn asked(&self, held_as: &str, until: SystemTime, now: SystemTime) {
        let mut table = self.table();
        table.asked(held_as, until, now);
        if !table.untold.is_empty() {
            self.changed.notify_one();
        }
    }

    /// When a delivery comes again that may not begin now; none if it may.
    pub(super) fn wait(
        &self,
        held_as: &str,
        most: Duration,
        apart: impl FnOnce() -> Duration,
        now: SystemTime,
    ) -> Option<SystemTime> {
        self.table().holds.get(held_as)?.ends(most, now)?;
        let apart = apart();
        self.table().give(held_as, most, apart, now, rand::random())
    }

    /// Whether nothing begins there now.
    pub(super) fn is_held(&self, held_as: &str, now: SystemTime) -> bool {
        self.table().holds.get(held_as).is_some_and(|hold| !hold.lifted && now < hold.until)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Tells the others what is held, and takes away what has ended, until stopped.
    pub(super) async fn tell_holds(&self, stop: &CancellationToken) {
        let holds = self.gates.holds();
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = holds.changed.notified() => self.tell_new_holds().await,
                () = tokio::time::sleep(LOOK_FOR_ENDED) => {}
            }
            let ended = holds.table().ended(self.clock.now());
            for chunk in ended.chunks(CHUNK) {
                join_all(chunk.iter().map(|held_as| self.forget_hold(held_as))).await;
            }
            // The first word goes out at once, what follows is gathered.
            stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
        }
    }

    /// Tells the others what they have not heard of yet.
    pub(super) async fn tell_new_holds(&self) {
        let untold: Vec<String> = self.gates.holds().table().untold.drain().collect();
        for chunk in untold.chunks(CHUNK) {
            join_all(chunk.iter().map(|held_as| self.tell_hold(held_as))).await;
        }
    }

    async fn tell_hold(&self, held_as: &str) {
        let (holds, now) = (self.gates.holds(), self.clock.now());
        let hold = holds.table().holds.get(held_as).copied();
        let Some(hold) = hold.filter(|hold| !hold.lifted && now < hold.until) else { return };
        let (key, until) = (key(held_as), rfc3339(hold.until));
        tracing::info!(
            destination = held_as,
            "Destination {held_as} sent Retry-After: no requests before {until}; its deliveries wait"
        );
        let record = Record::new(State::Held, hold.until, hold.at, &self.process);
        let word = self.registry.sealer().word(&key, &record);
        if let Err(error) = self.broker.put_endpoint(&key, word.into()).await {
            tracing::warn!(
                destination = held_as,
                error = %error,
                "Could not publish the hold of {held_as} until {until} to other couriers: {error}; retrying"
            );
            holds.table().untold.insert(held_as.to_owned());
            holds.changed.notify_one();
        }
    }

    /// Takes away the record of a hold that has ended, unless there is a newer one by now.
    async fn forget_hold(&self, held_as: &str) {
        let key = key(held_as);
        let is_over = |value: &[u8]| {
            let record: Option<Record> = self.registry.sealer().authentic(&key, value).ok();
            let until = record.and_then(|record| record.times()).map(|(until, _)| until);
            until.is_none_or(|until| until <= self.clock.now())
        };
        if let Err(error) = self.broker.forget_endpoint_if(&key, is_over).await {
            tracing::debug!(bucket.key = key, error = %error, "Could not delete the record of a hold that has ended: {error}; retrying later");
        }
    }

    /// Hears of a hold. `Ok(false)`: the key is about something else.
    pub(super) fn hears_hold(&self, key: &str, value: Option<&[u8]>) -> Result<bool, String> {
        let Some(held_as) = key.strip_prefix(PREFIX) else { return Ok(false) };
        let (sealer, holds, now) = (self.registry.sealer(), self.gates.holds(), self.clock.now());
        let lifted = match value {
            Some(value) => {
                let record: Record = sealer.authentic(key, value)?;
                let (until, at) = record.times().ok_or("has no times that can be read")?;
                let mut table = holds.table();
                let lifted = table.told(held_as, record.state, until, at, now);
                if !table.untold.is_empty() {
                    holds.changed.notify_one();
                }
                lifted
            }
            // Whoever lifts a hold says so.
            None if sealer.can_seal() && holds.is_held(held_as, now) => {
                return Err("was deleted by another writer before it expired; ignored".to_owned());
            }
            None => holds.table().removed(held_as, now),
        };
        if let (true, Some((token, _))) = (lifted, read_key(key)) {
            tracing::info!(
                destination = held_as,
                "Destination {held_as} is no longer held by Retry-After; its waiting deliveries are being sent"
            );
            self.gates.release(token);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    fn ends(table: &Table, now: u64) -> Option<SystemTime> {
        table.holds.get("e_crm")?.ends(HOUR, at(now))
    }

    #[test]
    fn a_hold_lasts_until_its_end_and_is_only_ever_prolonged() {
        let mut table = Table::default();
        table.asked("e_crm", at(100), NOW);
        table.asked("e_crm", at(50), at(10));
        assert_eq!((ends(&table, 99), ends(&table, 100)), (Some(at(100)), None));
        assert_eq!(table.untold.drain().count(), 1);
        table.asked("e_crm", at(120), at(20));
        table.told("e_crm", State::Held, at(110), at(20), at(20));
        assert_eq!(ends(&table, 20), Some(at(120)));
        assert!(table.untold.contains("e_crm"), "the others know of the shorter one only");
        table.asked("e_crm", at(130) + Duration::from_nanos(1_500_000), at(20));
        table.untold.clear();
        table.told("e_crm", State::Held, at(130) + Duration::from_millis(1), at(20), at(20));
        assert!(table.untold.is_empty(), "what comes back to who told it is no news");
        table.asked("e_new", NOW, NOW);
        assert!(!table.holds.contains_key("e_new"));
    }

    #[test]
    fn what_is_told_is_bounded_by_who_reads_it_and_counts_from_now_at_the_latest() {
        let mut table = Table::default();
        table.told("e_crm", State::Held, at(1_000_000), at(900_000), at(10));
        assert_eq!(ends(&table, 10), Some(at(3610)));
        assert_eq!(ends(&table, 3610), None);
        let foreign = Record::new(State::Held, at(1_000_000), at(900_000), "x");
        assert_eq!(foreign.ends(HOUR, at(10)), Some(at(3610)));
    }

    #[test]
    fn what_was_lifted_stays_lifted_until_it_is_asked_for_again() {
        let mut table = Table::default();
        table.told("e_crm", State::Held, at(100), at(1), at(1));
        assert!(table.told("e_crm", State::Lifted, at(100), at(5), at(5)));
        assert!(!table.told("e_crm", State::Held, at(100), at(1), at(6)), "an older record was put back");
        assert_eq!(ends(&table, 6), None);
        table.asked("e_crm", at(50), at(7));
        assert_eq!(ends(&table, 7), Some(at(50)));
        assert!(!table.told("e_crm", State::Lifted, at(100), at(5), at(8)));
        assert_eq!(ends(&table, 8), Some(at(50)));
    }

    #[test]
    fn what_waits_comes_apart_after_the_end() {
        let mut table = Table::default();
        table.asked("e_crm", at(100), NOW);
        let apart = Duration::from_millis(5);
        let mut given = (0..3).map(|_| table.give("e_crm", HOUR, apart, at(1), 0.5).unwrap());
        for number in 1..=3 {
            assert_eq!(given.next().unwrap(), at(100) + apart * number);
        }
        drop(given);
        let far = table.give("e_crm", HOUR, LONGEST_SPREAD, at(1), 0.5).unwrap();
        assert_eq!(far, at(100) + LONGEST_SPREAD / 2);
        assert_eq!(table.give("e_crm", HOUR, apart, at(100), 0.5), None);
    }

    #[test]
    fn what_has_ended_is_taken_away_by_who_wrote_it_and_later_by_others() {
        let mut table = Table::default();
        table.asked("e_ours", at(100), NOW);
        table.told("e_theirs", State::Held, at(100), NOW, NOW);
        assert_eq!(table.ended(at(99)), Vec::<String>::new());
        assert_eq!(table.ended(at(100)), ["e_ours"]);
        assert_eq!(table.ended(at(160)), ["e_theirs"]);
    }

    #[test]
    fn no_agent_takes_the_room_of_others_or_of_endpoints() {
        let mut table = Table::default();
        for number in 0..REMEMBERED {
            table.asked(&format!("c_{number}.greedy"), at(100), NOW);
            table.told(&format!("c_{number}.told"), State::Held, at(100), NOW, NOW);
        }
        assert_eq!(table.holds.len(), 2 * REMEMBERED_OF_AGENT);
        table.asked("c_1.other", at(100), NOW);
        assert!(table.holds.contains_key("c_1.other"));
        // Many agents together leave room for endpoints, too.
        for number in 0..REMEMBERED {
            table.asked(&format!("c_1.agent-{number}"), at(100), NOW);
        }
        assert_eq!(table.holds.len(), REMEMBERED);
        table.asked("e_crm", at(100), NOW);
        assert_eq!(ends(&table, 1), Some(at(100)));
        // What is asked for again takes no more room, and what has ended gives it back.
        table.asked("c_1.greedy", at(200), NOW);
        assert!(table.removed("c_2.greedy", NOW));
        table.asked("c_999999.greedy", at(100), NOW);
        assert_eq!((table.holds.len(), table.callbacks["greedy"]), (REMEMBERED + 1, REMEMBERED_OF_AGENT));
        table.ended(at(1000));
        assert_eq!((table.holds.len(), table.endpoints, table.callbacks.len()), (0, 0, 0));
    }

    #[test]
    fn a_callback_is_held_by_its_agent() {
        assert_eq!(held_as("e_crm", "a"), "e_crm");
        assert_eq!(held_as("c_0123", "a"), "c_0123.a");
        assert_eq!(read_key("hold.c_0123.a"), Some(("c_0123", Some("a"))));
        assert_eq!(read_key("hold.e_crm"), Some(("e_crm", None)));
        assert_eq!(read_key("breaker.e_crm"), None);
    }
}
